/* scheduler/state.h - what the scheduler remembers; private to scheduler/.
 *
 * A workload has groups of waiters: the shared one, whose waiters any instance without a key may
 * serve, and one for each key. A group is one list in the order of arrival. Its first `covered`
 * waiters are expected to be served by instances that are starting (`capacity` places in all), so no
 * queue bound and no queue timeout applies to them; the others stand in the workload's queue too,
 * which is the order in which instances are started.
 *
 *     group:   w1 w2 w3 w4 | w5 w6        capacity 4: one instance starts, max_joiners 4
 *              covered       queued
 *
 * Forced waiters stand with their instance, exclusive ones in the queue until one is made for them. */
#ifndef SKERRY_SCHEDULER_STATE_H
#define SKERRY_SCHEDULER_STATE_H

#define HASH_NONFATAL_OOM 1
#define uthash_nonfatal_oom(element) ((void)(element))
#include <uthash.h>
#include <utlist.h>

#include "scheduler/scheduler.h"
#include "scheduler/timers.h"

#define DETAIL_SIZE 256
/* Places of an instance without a bound on joiners; a sum of these cannot overflow 64 bits. */
#define PLACES_UNLIMITED (1ull << 32)
/* After the second failed start in a row: 1 s, 2 s, 4 s, ... 60 s. */
#define BACKOFF_FIRST_MS 1000u
#define BACKOFF_MAX_MS 60000u
/* An instance that ends by itself sooner than this counts as crashed for what is kept ahead. */
#define STABLE_MS 10000u
/* How often a workload with scale.idle_min looks whether its idle instances were joined: joins take
 * no message, so nobody tells. */
#define POOL_CHECK_MS 500u
/* Likewise for one with scale.target: a burst that fills what is free takes longer than a start. */
#define TARGET_CHECK_MS 100u
#define TARGET_NONE 1000u
/* What is told to those who found no room: instances free places at any time. */
#define RETRY_FULL_MS 1000u
#define RETRY_DRAINING_MS 5000u

/* What instances of one version live by. */
struct policy {
    uint64_t places; /* joiners at the same time, or PLACES_UNLIMITED */
    uint64_t window_ms, start_ms, drain_ms, idle_ms, max_ms; /* DURATION_NONE: no bound */
};

struct waiter {
    struct timer timer; /* end of its time in the queue */
    scheduler_waiter handle;
    uint64_t sequence; /* order of arrival */
    struct scheduler_workload *workload;
    struct group *group; /* whose list it stands in; NULL: forced or exclusive */
    struct group *alone; /* exclusive: the group of the instance that is made for it; NULL for a
                                   command, which nobody else can join */
    struct instance *instance; /* forced: the one it waits for. Exclusive: the one made for it */
    bool exclusive, covered, queued;
    struct waiter *prev, *next;             /* in its group, or with its forced instance */
    struct waiter *queue_prev, *queue_next; /* in its workload's queue */
    UT_hash_handle hh;
};

struct group {
    char *key; /* NULL: the shared group */
    struct scheduler_workload *workload;
    struct waiter *waiters;
    struct waiter *uncovered; /* the first that is not covered */
    uint64_t covered, capacity;
    uint64_t alone;         /* exclusive waiters that name it */
    struct instance *keyed; /* the one instance of the key, until it has ended */
    UT_hash_handle hh;
};

enum life { LIFE_STARTING, LIFE_READY, LIFE_DRAINING, LIFE_STOPPING };

struct instance {
    struct timer timer;
    scheduler_instance handle;
    struct scheduler_workload *workload;
    struct group *group; /* NULL: a command */
    char *key;           /* NULL: none */
    uint64_t version;
    struct policy policy;
    enum life life;
    enum scheduler_start start;
    bool counted, ready_counted; /* in its workload's live and ready_shared */
    bool older;                  /* in its workload's older: takes joiners until it is replaced */
    bool granted;                /* somebody was let in by us */
    enum end_reason reason;      /* of a draining one */
    uint64_t start_end_ms, ready_ms, window_end_ms, life_end_ms, idle_check_ms, drain_end_ms;
    struct waiter *forced;        /* wait until it is ready */
    struct waiter *exclusive;     /* whose command it will run */
    struct instance *prev, *next; /* of the workload; then of the dead */
    UT_hash_handle hh;
};

struct scheduler_workload {
    struct timer timer; /* end of a backoff, next look at the pool */
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    uint64_t version;
    struct policy policy;
    uint64_t idle_min, instances_max, queue_max, queue_timeout_ms;
    uint64_t target; /* thousandths of the places that may be taken before another is started */
    bool removed, wanting, keeps_ahead, command, keyed;
    bool barred;   /* nothing of it may start here */
    bool replaced; /* others have a ready one of the current version */
    struct group shared;
    struct group *groups; /* by key */
    struct waiter *queue;
    uint64_t queued, waiters;
    struct instance *instances;
    uint64_t instance_count, live;
    uint64_t ready_shared; /* joinable without a key, `older` among them */
    uint64_t older;
    uint64_t others;      /* live on other nodes */
    uint64_t idle_wanted; /* scale.idle_min of the cluster; idle_min is the part of this node */
    unsigned failures;    /* starts that failed in a row */
    uint64_t backoff_end_ms;
    unsigned crashes; /* instances that ended soon after they were ready, in a row */
    uint64_t crash_end_ms, pool_check_ms;
    enum problem failure_problem;
    char failure_detail[DETAIL_SIZE]; /* of the last failed start */
    char full_detail[DETAIL_SIZE], timeout_detail[DETAIL_SIZE], pause_detail[DETAIL_SIZE];
    struct scheduler_workload *want_prev, *want_next;
    struct scheduler_workload *dead_next;
    UT_hash_handle hh;
};

struct scheduler {
    struct scheduler_options options;
    uint64_t now_ms;
    uint64_t sequence, next_handle;
    bool shutdown;
    enum problem hold; /* why nothing starts; PROBLEM_NONE: it may */
    uint64_t hold_retry_ms;
    char hold_detail[DETAIL_SIZE];
    struct scheduler_workload *workloads;
    size_t workload_count;
    struct scheduler_workload *wanting; /* workloads that may have something to start, in turn */
    struct instance *instances;
    uint32_t instance_count, starting;
    struct waiter *waiters;
    uint32_t waiter_count;
    struct timers timers;
    struct scheduler_action *actions;
    size_t action_count, action_capacity;
    /* Actions of the last step point into these. */
    struct instance *dead_instances;
    struct scheduler_workload *dead_workloads;
};

/* Adds without overflow; DURATION_NONE gives TIMER_NEVER. */
static inline uint64_t time_after(uint64_t from_ms, uint64_t duration_ms)
{
    return duration_ms >= TIMER_NEVER - from_ms ? TIMER_NEVER : from_ms + duration_ms;
}

/* --- scheduler.c: memory and actions --- */
int scheduler_room(struct scheduler *s, struct err *e) ERR_CHECKED;
struct scheduler_action *scheduler_act(struct scheduler *s, enum scheduler_action_kind kind);
void scheduler_want(struct scheduler *s, struct scheduler_workload *w);
/* Finds it, or makes one that counts as removed. NULL without memory. */
struct scheduler_workload *scheduler_workload_get(struct scheduler *s, const char *name,
                                                  struct err *e);
/* Forgets a removed workload that has nothing left. */
void scheduler_workload_settle(struct scheduler *s, struct scheduler_workload *w);

/* --- waiters.c: who waits for what --- */
int scheduler_waiter_ask(struct scheduler *s, const struct scheduler_event *event,
                         struct err *e) ERR_CHECKED;
void scheduler_waiter_cancel(struct scheduler *s, scheduler_waiter handle);
/* Its time in the queue is over. */
void scheduler_waiter_expire(struct scheduler *s, struct waiter *w);
/* Answers and forgets the waiter. `about`: the instance that the problem is with, or NULL. */
void scheduler_waiter_refuse(struct scheduler *s, struct waiter *w, const struct instance *about,
                             enum problem problem, const char *detail, uint64_t retry_after_ms);
void scheduler_waiter_grant(struct scheduler *s, struct waiter *w, struct instance *i);
/* Whether somebody of the group (NULL: a command) who is not covered may be served though nothing can be
 * started now. */
bool scheduler_may_hope(const struct scheduler_workload *w, const struct group *g);
/* Takes it out of the queue: an instance is being started for it. */
void scheduler_waiter_unqueue(struct scheduler *s, struct waiter *w);
/* Lets waiters of the group into a ready instance while there is room. */
void scheduler_group_serve(struct scheduler *s, struct group *g, struct instance *i);
/* The group's waiters again in step with `capacity`. */
void scheduler_group_cover(struct scheduler *s, struct group *g);
/* The group of a key, made if there is none yet; NULL without memory. */
struct group *scheduler_group_find(struct scheduler_workload *w, const char *key, struct err *e);
/* Forgets the group of a key that nobody uses any more. NULL is fine. */
void scheduler_group_settle(struct scheduler_workload *w, struct group *g);
/* Whether scale.max allows another. */
static inline bool scheduler_has_room(const struct scheduler_workload *w)
{
    return w->live < w->instances_max && w->others < w->instances_max - w->live;
}
/* Refuses who waits for a start that will not come while the workload backs off, or all are held. */
void scheduler_waiters_give_up(struct scheduler *s, struct scheduler_workload *w);
void scheduler_group_refuse(struct scheduler *s, struct group *g, enum problem problem,
                            const char *detail, uint64_t retry_after_ms);
void scheduler_waiters_refuse_all(struct scheduler *s, struct scheduler_workload *w,
                                  enum problem problem, const char *detail,
                                  uint64_t retry_after_ms);

/* --- instances.c: their life --- */
void scheduler_instances_start(struct scheduler *s);
int scheduler_instance_adopt(struct scheduler *s, const struct scheduler_event *event,
                             struct err *e) ERR_CHECKED;
void scheduler_instance_ready(struct scheduler *s, struct instance *i);
void scheduler_instance_ended(struct scheduler *s, struct instance *i,
                              const struct scheduler_event *event);
void scheduler_instance_drain(struct scheduler *s, struct instance *i, enum end_reason reason,
                              uint64_t drain_end_ms);
void scheduler_instance_stop(struct scheduler *s, struct instance *i, enum end_reason reason);
void scheduler_instance_timer(struct scheduler *s, struct instance *i);
void scheduler_instance_extend(struct scheduler *s, struct instance *i, uint64_t until_ms);
/* Adjusts `live` after a change of state or version. */
void scheduler_instance_recount(struct instance *i);
/* Older instances drain if they are replaced, or cannot stand in for the current version. */
void scheduler_workload_roll(struct scheduler *s, struct scheduler_workload *w);
/* The last failed start, how many failed before it, and when the next is tried; in the workload. */
const char *scheduler_pause_detail(const struct scheduler *s, struct scheduler_workload *w);
void scheduler_instance_free(struct instance *i);
void scheduler_instance_due(struct scheduler *s, struct instance *i);
/* When the workload must be looked at again by itself. */
void scheduler_workload_timer(struct scheduler *s, struct scheduler_workload *w);
void scheduler_policy_from_workload(struct policy *out, const struct workload *spec);

#endif
