/* tests/lib/raft_cluster.h - up to five registries in one process, on libraft's fixture: simulated
 * time, network and disks, our guard, proposer and state machine on each.
 *
 * The fixture keeps memory over a "crash", so that a crash here is a long disconnection. */
#ifndef SKERRY_TESTS_LIB_RAFT_CLUSTER_H
#define SKERRY_TESTS_LIB_RAFT_CLUSTER_H

#include <raft.h>
#include <raft/fixture.h>
#include <stdbool.h>

#include "raft/guard.h"
#include "raft/proposer.h"
#include "raft/state.h"

#define CLUSTER_MAX 5
#define CLUSTER_APPLIED_MAX 20000
#define CLUSTER_HELD_MAX 8

struct cluster;

struct cluster_node {
    struct cluster *cluster;
    unsigned i;
    struct raft_fsm fsm;
    struct guard *guard;
    struct proposer *proposer;
    struct state *state;
    raft_index committed; /* seen so far */
    bool failed;
    struct err failure;
    bool snapshots; /* it makes some, when libraft asks */
    bool deaf;      /* the proposer does not hear what is applied */
    /* What was applied at which index: a checksum of the command, in order. */
    uint64_t *applied_index;
    uint64_t *applied_sum;
    size_t applied_count;
    /* Appends are held back, or fail. */
    int (*inner_append)(struct raft_io *io, struct raft_io_append *req,
                        const struct raft_entry entries[], unsigned n, raft_io_append_cb cb);
    int (*inner_start)(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick,
                       raft_io_recv_cb recv);
    raft_io_recv_cb recv; /* the guard's */
    bool hold_appends;
    struct raft_io_append *held[CLUSTER_HELD_MAX];
    raft_io_append_cb held_cb;
    size_t held_count;
};

struct cluster {
    unsigned n;
    /* The term of the entry at each index that any node has called committed; 0: none has. */
    raft_term committed[CLUSTER_APPLIED_MAX];
    bool disagreed; /* two nodes called different entries at one index committed */
    struct raft_fixture fixture;
    struct cluster_node nodes[CLUSTER_MAX];
};

void raft_cluster_open(struct cluster *c, unsigned n, bool guard_off, unsigned propose_timeout_ms);
void raft_cluster_close(struct cluster *c);

/* One event of the fixture, then what each node's loop would do after it. */
void raft_cluster_step(struct cluster *c);
void raft_cluster_run(struct cluster *c, unsigned ms);
/* False if `done` did not become true within `ms`. */
bool raft_cluster_run_until(struct cluster *c, bool (*done)(void *user), void *user, unsigned ms);
struct raft *raft_cluster_raft(struct cluster *c, unsigned i);
/* The leader of the highest term, or -1. */
int raft_cluster_leader(struct cluster *c);
/* Lets node i and nobody else become leader. */
void raft_cluster_elect(struct cluster *c, unsigned i);
void raft_cluster_depose(struct cluster *c, unsigned i);
void raft_cluster_cut(struct cluster *c, unsigned i, unsigned j);
void raft_cluster_join(struct cluster *c, unsigned i, unsigned j);
void raft_cluster_isolate(struct cluster *c, unsigned i);
void raft_cluster_heal(struct cluster *c);
/* A command straight into node i's log: a SWEEP at `wall_ms`, so that it can be told apart. */
int raft_cluster_put(struct cluster *c, unsigned i, uint64_t wall_ms);
/* Node `to` is handed the whole log of the leader `from`, as if it had asked for it. */
void raft_cluster_send_all(struct cluster *c, unsigned from, unsigned to);
/* The held appends of node i come to their end, oldest first; no more are held. */
void raft_cluster_appends_finish(struct cluster *c, unsigned i, int status);
/* No two nodes ever called different entries at one index committed, or applied different commands. */
bool raft_cluster_agrees(const struct cluster *c);

#endif
