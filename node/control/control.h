/* node/control/control.h - the inside of the control thread, shared by the files of that thread only.
 *
 * One libuv loop owns the registry, the scheduler, the client of the runner and all instances of
 * this node. Nothing here blocks and nothing grows with the rate of warm joins.
 *
 *   gateway thread --ask--> node/control/joins.c --event--> node/control/steps.c (scheduler) --action--> instances.c
 *   API thread     --ask--> node/control/asks.c  ----------------------------------------^      |   ^
 *                                                registry (raft/), runner (sandbox/) answers
 *   node/control/routes.c publishes what gateway and API threads read. */
#ifndef SKERRY_NODE_CONTROL_CONTROL_H
#define SKERRY_NODE_CONTROL_CONTROL_H

#include <pthread.h>
#include <stdatomic.h>
#include <uthash.h>
#include <uv.h>

#include "base/map.h"
#include "gateway/gateway.h"
#include "gateway/slot.h"
#include "node/control/machine.h"
#include "node/node.h"
#include "raft/registry.h"
#include "sandbox/sandbox.h"
#include "scheduler/scheduler.h"

#define INSTANCE_TIMELINE_MAX 32
#define INSTANCE_PORTS_MAX 8
/* Sockets into an instance that are made ahead: the first joiner does not wait for one, and while
 * the runner is away joins go on. */
#define INSTANCE_SPARE_SOCKETS 4
#define CONTROL_STOP_GRACE_MS 10000u
#define CONTROL_PUBLISH_INTERVAL_MS 5u
#define CONTROL_SWEEP_INTERVAL_MS 60000u
#define CONTROL_AUTOPSY_MS 500u
/* How much later than this node the agent ends an instance by itself. */
#define CONTROL_LIFE_SLACK_MS 5000u

struct api;
struct certain;
struct cluster;
struct elsewhere;
struct errands;
struct fences;
struct layers;
struct members;
struct reports;

/* What is outstanding of an instance; it is freed when nothing is. */
enum instance_phase {
    PHASE_STARTING,  /* RESERVE and PREPARE are under way, side by side */
    PHASE_COMMITTED, /* both are done, the code was told to run */
    PHASE_READY,
    PHASE_STOPPING, /* the runner was told to end or discard it */
    PHASE_ENDED     /* it is gone; its end is being recorded */
};

struct timeline_entry {
    uint64_t at_us; /* since asked */
    char kind[12];
    char text[180];
};

struct instance {
    struct node *node;
    UT_hash_handle by_id;     /* key: id.text */
    UT_hash_handle by_handle; /* key: handle; not for `run` commands */
    struct instance_id id;
    scheduler_instance handle; /* 0: not the scheduler's (a `run`) */
    enum instance_phase phase;
    unsigned pending;                           /* callbacks under way that hold this pointer */
    struct instance *untold_prev, *untold_next; /* prev NULL: not in the list */

    struct registry_workload *workload; /* a reference, NULL for `run` */
    struct workload run_spec;           /* of a `run` */
    const struct workload *spec;
    uint64_t version;
    uint64_t epoch;
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    char key[REGISTRY_KEY_LENGTH_MAX + 1];
    char asked_by[96];

    bool unasked; /* for its sandbox the runner is asked when the reservation is on its way */
    bool reserved, prepared, discarded, adopted, closed, empty_told;
    bool fetching;      /* its layers were asked of other nodes */
    bool tty, no_stdin; /* of a command */
    unsigned terminal_rows, terminal_columns;
    bool ahead;  /* started before anybody asked */
    bool ending; /* reason, below, is why we end it */
    enum end_reason end_reason;
    enum problem problem; /* why the start failed */
    char detail[512];
    struct instance_id existing; /* ... because this one holds its key */
    uint64_t fence_ms;           /* the deadline that the runner was told last; UINT64_MAX: none */

    struct slot_ref slot; /* .slot NULL: has none */
    uint32_t execs;
    uint64_t last_exec_ms;
    uint64_t ready_ms;
    int descriptors[3]; /* of a command, until granted */
    int spare[INSTANCE_SPARE_SOCKETS];
    unsigned spare_count;
    bool spare_ipv6, spare_asked;

    uint64_t asked_us, asked_wall_ms;
    struct registry_marks marks;
    uint64_t blank_us, bind_us, agent_us, code_us;
    uint32_t ports[INSTANCE_PORTS_MAX]; /* what it listens on instead */
    size_t port_count;
    struct timeline_entry timeline[INSTANCE_TIMELINE_MAX];
    size_t timeline_count;

    /* How it ended. */
    int exit_code; /* -1: none */
    unsigned signal;
    bool oom;
    struct registry_usage usage;
    char end_message[256];
    uint64_t joins;
    uint32_t joiners_peak;

    struct gateway_ask *command_ask; /* granted to a gateway command */
    struct node_ask *run_ask;        /* a `run`, or a command for another node */
    struct node_ask *stop_asks;      /* answered when it has ended; linked by node_ask.control */
    struct exec *exec_list;
    uint32_t exec_next;
    uv_timer_t *timer; /* timeout of a `run` */
    uint64_t
        extended_ms; /* when it ends, if somebody moved that; UINT64_MAX: never, 0: nobody did */
};

/* A command that runs beside the main one. */
struct exec {
    struct exec *next;
    struct instance *instance;
    struct node_ask *ask;
    uint32_t id;
    bool started, timed_out;
    uv_timer_t *timer;
};

/* Somebody who waits for an instance. */
struct waiter {
    UT_hash_handle hh;
    scheduler_waiter handle;
    struct gateway_ask *gateway_ask; /* one of the two */
    struct node_ask *node_ask;
    UT_hash_handle by_ask;
    const void *ask_key;
};

struct routes {
    struct registry_root *root;
    struct map local;            /* "i" ID -> local_instance, "w" NAME -> local_list */
    struct elsewhere *elsewhere; /* NULL: there are no other nodes */
    atomic_uint gateway_holders;
    unsigned readers; /* under node.roots_mutex */
    struct routes *next;
};

struct autopsy {
    struct autopsy *next;
    struct gateway_ask *ask;
    uint64_t until_ms;
};

struct import {
    struct import *next;
    struct node_ask *ask;
    uint64_t id;
};

/* What was imported here and nothing names yet: whoever sent it is about to. */
struct landed {
    char digest[80];
    uint64_t until_ms; /* 0: free */
};
#define LANDED_MAX 32u

struct node {
    const struct config *config;
    uv_loop_t loop;
    struct inbox *inbox;
    struct registry *registry;
    struct sandbox *sandbox;
    struct scheduler *scheduler;
    struct slot_table *slots;
    struct gateway *gateway;
    struct ssh_front *ssh; /* NULL: not served */
    struct tcp_ports *tcp_ports;
    struct api *api;
    struct layers *layers;   /* NULL until the client of the runner is there */
    bool layers_wanted;      /* a workload came or changed since they followed the registry */
    struct cluster *cluster; /* likewise */
    struct members *members;
    struct fences *fences;
    struct certain *certain;
    struct reports *reports;
    struct errands *errands; /* NULL until the node is open, and once it closes */
    struct copies *copies;
    node_id id;
    uint64_t boot;

    struct instance *instances_by_id;
    struct instance *instances_by_handle;
    uint32_t instance_count;
    scheduler_instance adopted_next;
    struct waiter *waiters;
    struct waiter *waiters_by_ask;
    scheduler_waiter waiter_next;
    struct autopsy *autopsies;
    struct import *imports;
    struct landed landed[LANDED_MAX];
    unsigned landed_next;
    struct strong_read *strong_reads; /* node/control/asks.c */

    /* node/control/instances.c: commands that run, which the registry is about to be told. */
    struct instance *untold;
    uv_timer_t untold_timer;

    /* node/control/steps.c */
    unsigned step_depth;
    struct deferred *deferred_head, *deferred_tail;
    uv_idle_t step_idle;
    uv_timer_t step_timer;
    struct buried *buried_by_id, *asked_by_request; /* node/control/explain.c */

    /* node/control/routes.c; roots_mutex guards current, the list and `readers`. */
    pthread_mutex_t roots_mutex;
    struct routes *current;
    struct routes *routes_list;
    struct map local;
    struct elsewhere *elsewhere; /* as it was made last */
    bool elsewhere_dirty;        /* what gossip says has changed since */
    uint64_t elsewhere_index;    /* of the registry's root then */
    uint64_t elsewhere_next_us;  /* not again before */
    bool publish_wanted;
    uint64_t published_ms;
    uv_timer_t publish_timer;
    atomic_uint rotation;
    struct registry_root
        *workloads_root;        /* whose workloads the scheduler knows; NULL: of none yet */
    struct map known_workloads; /* name -> known version */

    /* runner */
    bool runner_seen, reconciled, reconciling;
    Skerry__Runner__HelloReply *hello;
    pthread_mutex_t facts_mutex; /* logs_directory, ready_why, metrics, events */
    char logs_directory[256];

    /* life */
    uv_signal_t signals[3];
    uv_timer_t sweep_timer, lag_timer, drain_timer, autopsy_timer;
    uint64_t lag_expected_us;
    /* Of the notice before a drain: when it ends at the latest, the joins that were answered then and when
     * the last was. */
    uint64_t notice_until_ms, notice_joins, notice_quiet_ms;
    uint64_t drain_until_ms;
    atomic_bool ready;
    atomic_bool draining;  /* SIGTERM has come; `stopping` once the notice is over */
    atomic_bool no_quorum; /* nothing may start for want of one; for node_ready */
    bool stopping, gateway_opened;
    unsigned closing;
    int exit_code;
    bool leader, registered;
    uint64_t started_wall_ms;
    struct node_states *node_states;                               /* node/control/events_nodes.c */
    uint64_t strangers_seen, strangers_before, strangers_until_ms; /* node/control/status.c */

    struct node_metrics metrics; /* under facts_mutex */
    struct machine machine;
    uint64_t machine_read_us;

    struct node_event *events; /* ring of NODE_EVENTS_KEPT, under facts_mutex */
    uint64_t event_sequence;
    struct {
        void (*post)(void *user);
        void *user;
    } event_watchers[8];
    size_t event_watcher_count;
};

/* --- instances.c -------------------------------------------------------------------------------- */

struct instance_request {
    scheduler_instance handle; /* 0: `run` */
    const struct registry_workload *workload;
    const struct workload *run_spec;
    const char *key;
    const char *asked_by;
    uint64_t asked_us;
    bool ahead, tty, no_stdin;
    unsigned rows, columns;
    struct node_ask *run_ask;
};
void instances_open(struct node *n);
void instances_close(struct node *n);
struct instance *instance_find(struct node *n, const char *id);
struct instance *instance_by_handle(struct node *n, scheduler_instance handle);
int instance_start(struct node *n, const struct instance_request *request, struct instance **out,
                   struct err *e) ERR_CHECKED;
/* For the sandbox of one that was `unasked`. */
void instance_ask_runner(struct instance *i);
/* How long the agent lets an instance live: the scheduler ends it first, gently, unless nobody is
 * there to do it. 0: for ever. */
uint64_t instance_life_bound_ms(const struct instance *i, uint64_t life_ms);
/* When its life.max ends, or what it was extended to; UINT64_MAX: never. */
uint64_t instance_ends_wall_ms(const struct instance *i);
void instance_stop(struct instance *i, enum end_reason reason, unsigned grace_ms);
/* No joiner is taken any more. */
void instance_close(struct instance *i);
void instance_maybe_empty(struct instance *i);
void instance_event(struct node *n, const Skerry__Runner__Event *event);
void instance_make_ready(struct instance *i, const Skerry__Runner__Address *address);
/* The part of it that adoption shares: lets joiners in, from `ready_ms` on. */
int instance_open(struct instance *i, const Skerry__Runner__Address *address,
                  struct err *e) ERR_CHECKED;
void instance_ended(struct instance *i, const Skerry__Runner__Ended *ended);
/* How the main command of one that has ended did so. */
void instance_end_tell(const struct instance *i, struct command_end *out);
/* Its agent or runner is gone, or it never came to be: as if the runner had said so. */
void instance_ended_locally(struct instance *i, enum end_reason reason, const char *message);
/* Of code that ended by itself: its own, or 128 + signal; -1: none, it was ended. */
int instance_exit_code(const struct instance *i);
struct instance *instance_new(struct node *n, const struct instance_id *id);
void instance_link(struct instance *i);
void instance_unpend(struct instance *i);
/* At the end of the process: frees what is here; the instance itself lives on in the runner. */
void instance_abandon(struct instance *i);
void instance_note(struct instance *i, const char *kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
uint64_t instance_age_us(const struct instance *i);
const char *instance_label(const struct instance *i); /* "hello v2", "run" */

/* Of numbers that a wire or a word holds in 32 bits. */
static inline uint32_t control_narrow(uint64_t value)
{
    return value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

/* --- node/control/steps.c ------------------------------------------------------------------------------------ */

void steps_run(struct node *n, const struct scheduler_event *event);
/* For use where a step may be under way: runs after it. Strings are not copied: only events about
 * instances, with static or instance-owned text. */
void steps_defer(struct node *n, const struct scheduler_event *event);
/* Holds the instance and looks at it again when no step is under way. */
void steps_poke(struct instance *i);
/* joins_waiter_again when no step is under way, if it waits then. */
void steps_defer_again(struct node *n, const struct waiter *w);
int steps_open(struct node *n, struct err *e) ERR_CHECKED;
void steps_close(struct node *n);
/* Tells the scheduler of new, changed and removed workloads. */
void steps_sync_workloads(struct node *n);

/* --- node/control/joins.c ------------------------------------------------------------------------------------ */

bool joins_ask(void *user, struct gateway_ask *ask);
void joins_cancel(void *user, struct gateway_ask *ask, enum end_reason reason);
bool joins_sockets(void *user, struct gateway_sockets *want);
void joins_slot_left(void *user, struct slot_ref slot, unsigned what);
void joins_grant(struct node *n, struct waiter *w, struct instance *i, enum scheduler_start start);
void joins_answer_problem(struct node *n, struct gateway_ask *ask, enum problem problem,
                          const char *detail, uint64_t retry_after_ms);
void joins_answer_ran(struct node *n, struct gateway_ask *ask, enum problem problem, enum ran ran,
                      const char *detail, uint64_t retry_after_ms);
/* One that another node refused; ask->refused names it. */
void joins_ask_again(struct node *n, struct gateway_ask *ask);
void joins_waiter_again(struct node *n, struct waiter *w);
void joins_refuse(struct node *n, struct waiter *w, enum problem problem, const char *detail,
                  uint64_t retry_after_ms, const struct instance *i);
/* Asks for sockets ahead, unless there are some or they are on their way. */
void joins_spare(struct instance *i);
struct waiter *waiter_new(struct node *n, struct gateway_ask *gateway_ask,
                          struct node_ask *node_ask);
struct waiter *waiter_find(struct node *n, scheduler_waiter handle);
struct waiter *waiter_by_ask(struct node *n, const void *ask);
void waiter_free(struct node *n, struct waiter *w);
void joins_autopsies(struct node *n, const struct instance *ended);
void joins_command_ended(struct instance *i);

/* --- node/control/asks.c ------------------------------------------------------------------------------------- */

void asks_answer(struct node_ask *ask);
void asks_refuse(struct node_ask *ask, enum problem problem, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Nobody has led for long: whoever waits for a strong read is told. */
void asks_leaderless(struct node *n);
void asks_ended(struct node_ask *ask);
/* A RUN or START that a node refused, which is in ask->refused. */
void asks_again(struct node *n, struct node_ask *ask);
/* Of a RUN, COMMAND or START that was refused here: true if another node is asked now. `i`: the instance that
 * it is about, or NULL. */
bool asks_elsewhere(struct node *n, struct node_ask *ask, enum problem problem,
                    const struct instance *i);
void asks_run_granted(struct instance *i);
void asks_instance_ended(struct instance *i);
enum problem asks_problem_of(const struct err *error);
void asks_refuse_err(struct node_ask *ask, const struct err *error);
/* A whole id of an instance here that has not ended, or the question is answered. */
struct instance *asks_need_instance(struct node *n, struct node_ask *ask);

/* --- node/control/execs.c, imports.c -------------------------------------------------------------------------- */

void execs_ask(struct node *n, struct node_ask *ask);
/* SIGNAL, RESIZE and CANCEL of a run, command or exec that is under way. */
void execs_ask_target(struct node *n, struct node_ask *ask);
/* NODE_ASK_SOCKET (node/control/sockets.c). */
void sockets_ask(struct node *n, struct node_ask *ask);
void execs_ended(struct instance *i, const Skerry__Runner__ExecEnded *ended);
void execs_instance_ended(struct instance *i);
void imports_ask(struct node *n, struct node_ask *ask);
/* The registry changed; `workloads`: those too. */
void imports_follow(struct node *n, struct registry_root *root, bool workloads);
void imports_collect(struct node *n, struct node_ask *ask);
void imports_ended(struct node *n, const Skerry__Runner__ImportEnded *ended);
void imports_runner_gone(struct node *n);

/* --- node/control/routes.c ----------------------------------------------------------------------------------- */

int routes_open(struct node *n, struct err *e) ERR_CHECKED;
void routes_close(struct node *n);
/* The registry or a local instance changed: publish within CONTROL_PUBLISH_INTERVAL_MS. */
void routes_dirty(struct node *n);
void routes_publish(struct node *n);
void routes_instance(struct node *n, struct instance *i); /* put, changed or (when ended) removed */
bool routes_workload(void *user, const void *routes, const char *name, size_t length,
                     struct gateway_workload *out);
/* By the routes that are current, from any thread. */
bool routes_workload_now(struct node *n, const char *name, struct gateway_workload *out);
bool routes_find_instance(void *user, const void *routes, const struct instance_id *id,
                          struct gateway_instance *out, struct gateway_workload *out_workload);
enum problem routes_authorize(void *user, const void *routes, const struct gateway_workload *w,
                              const struct instance_id *instance, const char *token, size_t length);
void routes_release(void *user, const void *routes);
bool routes_peer(void *user, node_id id, struct gateway_peer *out);
bool routes_domain(void *user, const void *routes, const char *name, size_t length,
                   char workload[WORKLOAD_NAME_LENGTH_MAX + 1]);

/* --- node/control/passes.c --- */
enum problem routes_pass(void *user, const void *routes, const struct gateway_pass_want *want,
                         struct gateway_pass *out);
void passes_redeem(struct node *n, struct gateway_ask *ask);

/* --- adopt.c ------------------------------------------------------------------------------------ */

void adopt_connected(void *user, const Skerry__Runner__HelloReply *hello);
void adopt_disconnected(void *user);
/* Once the registry has caught up and the runner is there; ends with node_progress. */
void adopt_reconcile(struct node *n);

/* --- node/control/ssh_calls.c ----------------------------------------------------------------------------------- */

/* Joins over SSH from now on, if configured and possible; else that is told. */
void node_ssh_open(struct node *n);

/* --- node/control/tcp_ports.c ----------------------------------------------------------------------------------- */

int tcp_ports_open(struct node *n, struct err *e) ERR_CHECKED;
void tcp_ports_close(struct node *n);
/* Opens what workloads want and closes what none wants any more, once the gateway is there. */
void tcp_ports_sync(struct node *n);
/* What could not be opened, and what is not allowed here. */
void tcp_ports_warn(const struct node *n, json_t *warnings);

/* --- node/control/quorum.c ------------------------------------------------------------------------------------- */

/* "1 of 3 voters reachable; nothing can start. 4 running instances can still be joined. Lost: ..." */
void quorum_text(struct node *n, char *out, size_t size);

/* --- node/control/events.c, node/control/events_nodes.c, node/control/status.c, node/control/explain.c --------------------------------------------------------------- */

void events_post(struct node *n, const char *kind, const char *workload, const char *instance,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));
/* The states of nodes changed (cluster_options.changed): tells what is new. */
void events_nodes(struct node *n);
void histogram_add(struct gateway_histogram *h, double seconds);
json_t *status_json(struct node *n);
/* What only this node knows of itself; false: it is not well. */
bool status_self(const struct node *n, json_t *warnings);
/* NULL: nothing is known of it. */
json_t *explain_json(struct node *n, const char *what);
/* Keeps the time line of an instance that is about to be freed. */
void explain_bury(const struct instance *i);
void explain_close(struct node *n);
void explain_remember(struct node *n, const char *request_id, const struct instance_id *id,
                      enum problem problem, const char *detail);

/* --- node.c --------------------------------------------------------------------------------------- */

/* Opens the gateway and turns ready, once this node is registered and the runner was reconciled. */
void node_progress(struct node *n);
/* Ends the process without waiting for joins. */
void node_stop(struct node *n, int exit_code);

#endif
