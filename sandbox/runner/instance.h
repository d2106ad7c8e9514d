/* sandbox/runner/instance.h - the instances that this runner holds, from Prepare to Forget.
 *
 *   prepare                              commit
 *  ────────> PREPARING ──> PREPARED ────> STARTING ──> READY
 *                │            │              │           │
 *                └────────────┴──── end ─────┴───────────┴──> ENDING ──> ENDED ──> (forgotten)
 *
 *  PREPARING  a blank was told its root and its agent's setup; the agent has not answered
 *  ADOPTING   of an earlier runner; its agent was asked for its state
 *  ENDING     process 1 was killed or said it ends
 *  ENDED      nothing of it runs; kept for the node
 *
 * An instance ends when its process 1 is gone: the kernel has then killed all others of its pid
 * namespace. When main has exited and its control group holds none but process 1, which says that it goes, that is
 * waited for behind the end. Groups and folder are removed behind that, by the reaper.
 *
 * Trust: the node is held to its verbs and their order here (their content is checked before). The
 * agent is less trusted than the runner: its numbers and texts are bounded before they are used. */
#ifndef SKERRY_SANDBOX_RUNNER_INSTANCE_H
#define SKERRY_SANDBOX_RUNNER_INSTANCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uthash.h>

#include "base/err.h"
#include "base/id.h"
#include "base/words.h"
#include "sandbox/agent.pb-c.h"
#include "sandbox/runner.pb-c.h"
#include "sandbox/runner/blanks.h"
#include "sandbox/runner/loop.h"
#include "sandbox/runner/server.h"
#include "sandbox/runner/state.h"

#define INSTANCE_WAITING_MAX 256 /* verbs that wait for the agent */
#define INSTANCE_EXECS_MAX 64
#define INSTANCE_PORTS_MAX 16
#define INSTANCE_ENDED_MAX 10000 /* kept until the node forgets them; then the oldest go */
#define INSTANCE_LAYERS_MAX 2

enum instance_phase {
    INSTANCE_PREPARING,
    INSTANCE_PREPARED,
    INSTANCE_STARTING,
    INSTANCE_READY,
    INSTANCE_ADOPTING,
    INSTANCE_ENDING,
    INSTANCE_ENDED
};

/* A verb that waits for the agent's answer. */
struct waiting {
    struct waiting *next;
    uint64_t agent_seq;
    struct asker asker; /* seq 0 with connection 0: nobody asked */
    enum { WAITING_PLAIN, WAITING_HOLD, WAITING_START, WAITING_EXEC } kind;
    uint32_t exec_id;
    int descriptors[3]; /* the node's ends, sent with the answer */
    size_t descriptor_count;
};

struct instance {
    UT_hash_handle hh;
    struct runner *runner;
    char id[INSTANCE_ID_LENGTH_MAX + 1];
    uint64_t epoch;
    enum instance_phase phase;
    bool started; /* commit came; the code may have run */
    bool told;    /* the node knows of it, so it must learn of its end */

    /* While process 1 lives. */
    struct place *place;
    struct loop_child process;
    pid_t pid;
    int channel;
    struct loop_watch channel_watch;
    int network_fd;
    struct net_policy *egress; /* NULL: it has no way out */
    struct net_names_instance *names;
    int oom_fd;
    struct loop_watch oom_watch;
    struct loop_timer oom_look;
    unsigned oom_look_ms;
    struct loop_timer watchdog; /* of the preparation, then of a stop */
    struct loop_timer deadline; /* of its lease */
    bool agent_fenced;          /* its agent keeps a deadline too */
    int deadline_fd; /* a file of 8 bytes, so that a restarted runner knows it; -1: none yet */
    struct state_folder folder;
    char layers[INSTANCE_LAYERS_MAX][80];
    size_t layer_count;

    /* While it is prepared. */
    Skerry__Runner__Request *request;
    struct asker asker; /* of Prepare */
    struct blank blank;
    int code_descriptors[3]; /* the code's ends of its pipes, until it starts */
    size_t code_descriptor_count;
    int node_descriptors[3];
    size_t node_descriptor_count;
    uint64_t prepared_us[3]; /* when: asked, blank there, plan sent */

    uint32_t uid, gid; /* inside, of its commands */

    /* Towards the agent. */
    uint64_t agent_seq;
    struct waiting *waiting;
    size_t waiting_count;
    uint32_t execs[INSTANCE_EXECS_MAX];
    size_t exec_count;

    /* What is known of it. */
    uint64_t started_boot_ms;
    uint64_t started_us;
    bool ready;
    bool ready_ipv6;
    uint8_t ready_address[16];
    uint32_t ready_port;
    uint64_t ready_after_us;
    uint32_t ports[INSTANCE_PORTS_MAX];
    size_t port_count;
    enum end_reason asked_reason; /* of a stop or of ours; NONE: nobody asked */
    enum end_reason agent_reason;
    enum end_reason reason; /* when ended */
    bool main_exited;
    bool leaving;   /* it has ended but for process 1, whose last word was taken */
    bool forgotten; /* and the node knows */
    uint32_t exit_code, exit_signal;
    bool oom;
    uint64_t wall_us;
    struct cgroup_stats stats;
    uint64_t looked_us; /* when they were read for its end */
    uint64_t network_in_bytes, network_out_bytes;
    char stderr_tail[257];
    char message[257];
};

struct instances;
int instances_open(struct instances **out, struct runner *r, struct err *e) ERR_CHECKED;
/* Lets go of all; their agents go on. */
void instances_close(struct instances *all);
struct instance *instance_find(struct instances *all, const char *id);
struct instance *instances_first(struct instances *all); /* then hh.next */
size_t instances_held_count(const struct instances *all);
/* Whether one that lives has a way out. */
bool instances_use_egress(const struct instances *all);
struct runner *instances_runner(struct instances *all);
bool instances_log_in_use(struct instances *all, const char *id);
/* In the order of their coming, the one behind `after` first ("": from the start). */
void instances_list(struct instances *all, const char *after, const struct asker *asker);

/* --- instance.c: life ------------------------------------------------------------------------- */

int instance_new(struct instances *all, const char *id, struct instance **out,
                 struct err *e) ERR_CHECKED;
/* Forgets it, at once or when its process 1 is gone: it never came to be, or the node knows its end. */
void instance_free(struct instances *all, struct instance *i);
/* Watches process 1. Takes pidfd. */
int instance_watch(struct instance *i, int pidfd, bool ours, struct err *e) ERR_CHECKED;
/* Watches its memory. */
int instance_watch_memory(struct instance *i, struct err *e) ERR_CHECKED;
/* SIGKILL to process 1, and with it to all; the end follows. */
void instance_kill(struct instance *i, enum end_reason reason);
/* Process 1 was found dead: the end, as if it had been seen. */
void instance_ended_unseen(struct instance *i);
/* It is `leaving`: the end is told, process 1 killed and waited for. */
void instance_ended_leaving(struct instance *i);
/* Reads what it uses into its fields, while its place is there. */
void instance_usage_read(struct instance *i);
/* What it used, and whether memory ran out, as its end tells. Takes a while: when main has exited, process 1 is
 * on its way out, and there is time for it. */
void instance_look(struct instance *i);
/* Into a message. */
void instance_stats_fill(const struct instance *i, Skerry__Runner__Stats *out);
/* The number of its place on this machine, for its addresses. */
uint32_t instance_place_number(const struct instance *i);

/* --- instance_start.c ------------------------------------------------------------------------- */

/* Takes the request. */
void instance_prepare(struct instances *all, Skerry__Runner__Request **request,
                      const struct asker *asker);
/* The preparation failed before process 1 could be told; or process 1 ended during it. */
void instance_prepare_failed(struct instance *i, const struct err *error);
void instance_prepared(struct instance *i);

/* --- instance_agent.c ------------------------------------------------------------------------- */

/* Sends and keeps `waiting` (taken) until the answer. On failure the caller answers; the
 * descriptors of `waiting` are closed. */
int instance_ask(struct instance *i, Skerry__Agent__ToAgent *message, const int *descriptors,
                 size_t descriptor_count, struct waiting *waiting, struct err *e) ERR_CHECKED;
struct waiting *waiting_new(const struct asker *asker);
void waiting_free(struct waiting *w);
void instance_channel_cb(struct loop_watch *watch, uint32_t events);
/* Every verb that waits gets this answer. */
void instance_waiting_fail(struct instance *i, const struct err *error);

/* --- instance_verbs.c: what the node asks of an instance that is there -------------------------- */

/* Has the agent start the main command up to its execve, and hold it there until the commit. What goes
 * wrong with it is told as a failed start. Nothing, with a terminal or without a command. */
int instance_hold_main(struct instance *i, struct err *e) ERR_CHECKED;
void instance_commit(struct instance *i, uint64_t epoch, const struct asker *asker);
void instance_discard(struct instance *i, const struct asker *asker);
void instance_exec(struct instance *i, const Skerry__Runner__Exec *x, const struct asker *asker);
void instance_signal(struct instance *i, const Skerry__Runner__Signal *s,
                     const struct asker *asker);
void instance_resize(struct instance *i, const Skerry__Runner__Resize *z,
                     const struct asker *asker);
void instance_stop(struct instance *i, const Skerry__Runner__Stop *s, const struct asker *asker);
void instance_life(struct instance *i, const Skerry__Runner__Life *l, const struct asker *asker);
void instance_deadline(struct instance *i, const Skerry__Runner__Deadline *d,
                       const struct asker *asker);
/* Also used when it is adopted. */
int instance_deadline_set(struct instance *i, uint64_t boot_ms, struct err *e) ERR_CHECKED;
void instance_sockets(struct instance *i, const Skerry__Runner__Sockets *s,
                      const struct asker *asker);
void instance_stats(struct instance *i, const struct asker *asker);
/* `count` pipes towards code that runs with these ids; the first is its stdin unless `no_stdin`. */
int instance_pipes(const struct instance *i, uint32_t uid, uint32_t gid, bool no_stdin, int *code,
                   int *node, size_t *count, struct err *e) ERR_CHECKED;

#endif
