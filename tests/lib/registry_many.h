/* tests/lib/registry_many.h - several registries on one loop, on real disks, with real secure streams
 * between ports of 127.0.0.1, and an `ask` that hands questions over in memory.
 *
 * Nodes are numbered from 1; node 1 makes the cluster, the others join it. Whatever takes longer than
 * MANY_DEADLINE_MS fails the test. */
#ifndef SKERRY_TESTS_REGISTRY_MANY_H
#define SKERRY_TESTS_REGISTRY_MANY_H

#include <uv.h>

#include "base/identity.h"
#include "base/secure_stream.h"
#include "raft/registry.h"

enum { MANY_MAX = 6, MANY_DEADLINE_MS = 20000 };

struct many;

struct many_node {
    struct many *many;
    node_id id;
    char *directory;
    struct identity *identity;
    struct secure_context *secure;
    struct secure_listener *listener;
    struct sockaddr_storage address;
    struct registry *registry; /* NULL: stopped */
    bool leader, failed, closed;
    struct err failure;
    bool removed;  /* its key is believed by nobody */
    bool cut;      /* questions from and to it are lost */
    bool stranger; /* it holds another key than the one that is believed */
    uint64_t boot;
    unsigned streams; /* that were taken */
};

struct many_question;

struct many {
    uv_loop_t loop;
    uv_timer_t alarm, tick;
    uv_idle_t carrier; /* runs while questions or answers are on their way */
    bool late;
    struct many_node nodes[MANY_MAX + 1];
    unsigned count;
    struct many_question *first, **last;
    /* Options of what is opened from now on; 0: the defaults. */
    unsigned snapshot_threshold, snapshot_trailing, propose_timeout_ms;
    unsigned asked; /* questions */
    bool roles;     /* every 50 ms each node is told of the others */
    struct registry_roles_wanted wanted;
    bool dead[MANY_MAX + 1];
    bool unsent;       /* what is cut never leaves: it ends as "not heard" */
    bool lose_answers; /* of questions: they end as "maybe heard" */
};

/* Folders and keys of `count` nodes; nothing is started. */
void many_open(struct many *m, unsigned count);
/* Stops what runs, and the loop must be empty. */
void many_close(struct many *m);
/* With the folder that there is, else as a new one. */
void many_start(struct many *m, node_id id);
void many_stop(struct many *m, node_id id);
/* Its folder is emptied. */
void many_wipe(struct many *m, node_id id);
void many_run_until(struct many *m, bool (*done)(struct many *m, void *user), void *user);
void many_run_for(struct many *m, unsigned ms);
/* Node 1 as a cluster of its own, then 2 to `voters`, who become voters. All know a leader at the end. */
void many_form(struct many *m, unsigned voters);
/* Until one leads and all that run know it; returns who. */
node_id many_leader(struct many *m);
/* Some node that runs and does not lead. */
node_id many_follower(struct many *m);

struct many_answer {
    bool done, error;
    struct err err;
    struct registry_result result;
};
void many_answered(void *user, const struct err *error, const struct registry_result *result);
void many_read_done(void *user, const struct err *error); /* likewise a struct many_answer */
/* Deploys workload `name` at that node; `a` may be looked at when it is done. */
void many_deploy(struct many *m, node_id at, const char *name, struct many_answer *a);
/* Waits for it; fails the test on an error. */
struct registry_result many_wait(struct many *m, struct many_answer *a);
/* Both. */
struct registry_result many_put(struct many *m, node_id at, const char *name);
void many_read(struct many *m, node_id at);
bool many_has(struct many *m, node_id at, const char *name);
enum registry_role many_role(struct many *m, node_id at, node_id of);

#endif
