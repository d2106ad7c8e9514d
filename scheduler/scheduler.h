/* scheduler/scheduler.h - which instance serves whom, and when instances start and end: decisions
 * only, as a pure state machine. It reads no clock and calls nothing but `enter` and `load`.
 *
 * Thread: the control loop. Time: monotonic milliseconds, handed in. Memory: bounded by options;
 * `actions` point into the scheduler until the next step.
 *
 * Waiters of a workload are served first come, first served; a keyed waiter only by its key's
 * instance. A full workload below scale.max starts another instance: concurrent cold requests share
 * a starting one up to max_joiners. At scale.max they queue up to scale.queue, for at most
 * scale.queue_timeout. Instances are started before anybody waits for them as scale.idle_min and
 * scale.target say.
 *
 * A new version is started at once where one before it is joined. Until one of it is ready, here or on
 * another node, those before it go on taking joiners; then they drain. Neither they nor what drains of
 * them counts for scale.max, but for instances of keys, which live on. */
#ifndef SKERRY_SCHEDULER_SCHEDULER_H
#define SKERRY_SCHEDULER_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"
#include "base/words.h"
#include "base/workload.h"

struct scheduler;

/* Handles of the caller's: opaque here, unique while in use, never 0. */
typedef uint64_t scheduler_waiter;
typedef uint64_t scheduler_instance;

enum scheduler_start { SCHEDULER_COLD, SCHEDULER_POOL, SCHEDULER_JOIN };

struct scheduler_load {
    uint32_t joiners;      /* execs count as joiners here */
    uint64_t last_left_ms; /* when the last one left; the start if none ever came */
};

struct scheduler_calls {
    void *user;
    /* Takes a place in a ready instance for a waiter; false: full, closed or late. `any_window`:
     * forced and keyed joins. Draws no randomness and has no other effect. */
    bool (*enter)(void *user, scheduler_instance instance, bool any_window);
    void (*load)(void *user, scheduler_instance instance, struct scheduler_load *out);
};

struct scheduler_options {
    uint32_t instances_max; /* on this node */
    uint32_t starts_max;  /* instances starting at the same time; further starts wait their turn */
    uint32_t waiters_max; /* in all */
    struct scheduler_calls calls;
};

enum scheduler_event_kind {
    SCHEDULER_WORKLOAD, /* workload, version: new or changed; older instances drain when one of
                                   it is ready, at once if `barred` or if they cannot stand in for it */
    SCHEDULER_WORKLOAD_REMOVED, /* name: waiters are refused, instances drain */
    SCHEDULER_ASK,     /* waiter, name, key or instance (forced), exclusive for command kind */
    SCHEDULER_CANCEL,  /* waiter: its client left */
    SCHEDULER_ADOPTED, /* instance, name, version, key, ready, age: found at start */
    SCHEDULER_READY,   /* instance; `enter` is called for it in this step */
    SCHEDULER_FAILED,  /* instance never became ready; problem, detail: its waiters are refused,
                            unless another instance can take them */
    SCHEDULER_ENDED,   /* instance that was ready; reason. Every START is answered by one of FAILED
                            and ENDED in the end, also after STOP */
    SCHEDULER_LEFT,    /* instance: a joiner left while somebody waits; instance 0: any of `name`.
                            When scheduler_place_waited_for turns true, mark the slot and step this
                            once for it: who left before the mark told nobody */
    SCHEDULER_DRAIN,   /* instance, reason: an operator, its health */
    SCHEDULER_EMPTY,   /* instance that drains has no joiner any more */
    SCHEDULER_EXTEND,  /* instance, until_ms: a new end of life.max; too late once it drains for
                            that */
    SCHEDULER_HOLD, /* problem, detail, retry_after_ms: nothing starts here until another HOLD with
                            PROBLEM_NONE. Whoever could only be served by a start is refused with it, now
                            and on arrival; instances that start go on */
    SCHEDULER_OTHERS, /* name, count: live instances of the workload on other nodes, which count for
                            scale.max; replaced: one of the current version is ready there */
    SCHEDULER_STRANDED, /* name: while scheduler_stranded, those who wait without a key are refused as
                            LIMIT_REACHED: they may wait where the instances are */
    SCHEDULER_SHUTDOWN, /* waiters are refused with PROBLEM_DRAINING, nothing starts any more */
    SCHEDULER_TICK,
};

struct scheduler_event {
    enum scheduler_event_kind kind;
    const char *name;                /* workload */
    const struct workload *workload; /* valid during the step; copied as far as needed */
    uint64_t version;
    scheduler_waiter waiter;
    scheduler_instance instance;
    const char *key; /* NULL or "": none */
    bool
        exclusive; /* ASK: a new instance for this waiter, not entered by `enter`; instances of kind
                       server may be joined by others afterwards, those of kind command never */
    bool ready;
    uint64_t started_ms; /* ADOPTED: when it became ready, on this clock (may be in the past) */
    uint64_t until_ms;
    enum end_reason reason;
    enum problem problem;
    const char *detail;
    uint64_t retry_after_ms, count;
    uint64_t
        idle_elsewhere; /* WORKLOAD, OTHERS: so many of scale.idle_min are for other nodes to keep */
    bool barred;        /* WORKLOAD: this node may not have an instance of it */
    bool replaced;
};

enum scheduler_action_kind {
    SCHEDULER_START, /* make an instance of name, version (key); its handle is `instance`, made
                         here; `waiter` is the first it is for, 0: started ahead, as `detail` says */
    SCHEDULER_GRANT, /* waiter may join instance; `start`; it has entered already, unless exclusive */
    SCHEDULER_REFUSE, /* waiter: problem, detail (or NULL), retry_after_ms; instance: the one that
                         the problem is with, or 0 */
    SCHEDULER_CLOSE,  /* instance takes no joiner any more: slot_drain; then EMPTY is awaited */
    SCHEDULER_STOP,   /* instance: end it, reason */
};

struct scheduler_action {
    enum scheduler_action_kind kind;
    scheduler_waiter waiter;
    scheduler_instance instance;
    const char *name;
    uint64_t version;
    const char *key;
    enum scheduler_start start;
    enum problem problem;
    const char *detail;
    uint64_t retry_after_ms;
    enum end_reason reason;
};

struct scheduler_actions {
    const struct scheduler_action *items;
    size_t count;
    uint64_t next_ms; /* when to step with TICK at the latest; UINT64_MAX: never */
};

int scheduler_new(struct scheduler **out, const struct scheduler_options *options,
                  struct err *e) ERR_CHECKED;
void scheduler_free(struct scheduler *s);
/* Instances started here get handles from 1 upwards; ADOPTED ones bring handles from
 * SCHEDULER_ADOPTED_FIRST upwards. */
#define SCHEDULER_ADOPTED_FIRST (1ull << 48)
int scheduler_step(struct scheduler *s, const struct scheduler_event *event, uint64_t now_ms,
                   struct scheduler_actions *out, struct err *e) ERR_CHECKED;

/* For status and metrics. */
struct scheduler_counts {
    uint32_t instances, starting, waiters;
};
void scheduler_counts(const struct scheduler *s, struct scheduler_counts *out);
bool scheduler_waited_for(const struct scheduler *s, const char *name);
/* Whether an instance that all share runs or starts here: one without a key may wait for room in it. */
bool scheduler_hopes(const struct scheduler *s, const char *name);
/* Whether some wait without a key where none does, and others have what scale.max allows. */
bool scheduler_stranded(const struct scheduler *s, const char *name);
/* Whether a place in this instance would be somebody's who waits. */
bool scheduler_place_waited_for(const struct scheduler *s, scheduler_instance instance);
/* Older instances of it still take joiners, until one of the current version is ready. */
bool scheduler_rolls(const struct scheduler *s, const char *name);

/* How a workload stands here, for people. */
struct scheduler_outlook {
    uint64_t waiting;  /* requests */
    uint64_t starting; /* instances of the current version */
    uint64_t ready;    /* likewise; without those of keys */
    uint64_t older;    /* ready ones of older versions that take joiners until one of it is */
    unsigned failures; /* starts that failed in a row, and how long the next one waits */
    uint64_t failures_pause_ms;
    unsigned
        crashes; /* instances that ended soon after they were ready, in a row; nothing is started
                         ahead for so long */
    uint64_t crashes_pause_ms;
    const char *failure; /* of the last start that failed; until the next step */
};
/* False: it is not known here. */
bool scheduler_outlook(const struct scheduler *s, const char *name, uint64_t now_ms,
                       struct scheduler_outlook *out);

/* What a request for a workload (key NULL or "": without one) would meet here. */
enum scheduler_prospect {
    SCHEDULER_SERVED, /* an instance with room, one that starts, or its key's */
    SCHEDULER_WAITS,  /* those here are full, and scale.max allows no other */
    SCHEDULER_STARTS, /* it needs a start: here or elsewhere */
    SCHEDULER_NOTHING /* nothing is here, and scale.max is reached by others */
};
enum scheduler_prospect scheduler_prospect(const struct scheduler *s, const char *name,
                                           const char *key);

#endif
