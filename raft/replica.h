/* raft/replica.h - libraft, its disk, its guard and its transport, around our state machine.
 *
 * This file and its neighbours are the only ones that know libraft.
 *
 * Thread: the loop's, but for the encoding of snapshots, which has a thread of its own while it lasts.
 * Life:   replica_open, then replica_close and its callback, after which the loop has no handle of the
 *         replica. When replica_open fails after libraft had opened handles, they close on the loop by
 *         themselves. */
#ifndef SKERRY_RAFT_REPLICA_H
#define SKERRY_RAFT_REPLICA_H

#include <raft.h>
#include <uv.h>

#include "base/err.h"
#include "base/id.h"
#include "raft/guard.h"
#include "raft/recent.h"
#include "raft/registry.h"
#include "raft/state.h"

#define REPLICA_ELECTION_TIMEOUT_MS 200
#define REPLICA_HEARTBEAT_MS 50
/* Between those that stand for election when the leader's process has ended: a pre-vote and a vote, with
 * the writes to disk that a vote takes, are over by then. */
#define REPLICA_SUCCESSION_MS 50u
/* libraft would look at its clock with each heartbeat: every second time or so, two of the followers that
 * miss a leader would find that out in the same moment, and split the votes. */
#define REPLICA_TICK_MS 10
/* A follower that is not reached is tried again so soon: within an election's timeout. */
#define REPLICA_CONNECT_AGAIN_MS 100u
/* A snapshot that was sent whole and not answered is sent again. */
#define REPLICA_INSTALL_TIMEOUT_MS 10000u

struct replica;

struct replica_options {
    const char *directory; /* made if missing */
    node_id id;
    bool bootstrap; /* else a node without a log waits for what a leader sends */
    const struct registry_peers *peers;
    unsigned snapshot_threshold, snapshot_trailing;
    struct state *state;   /* outlives the replica */
    struct recent *recent; /* likewise: what it applies */
    void *user;
    /* All three out of libraft's stack: they only note things. */
    void (*applied)(void *user, const struct state_outcome *outcome);
    void (*after)(void *user);
    void (*failed)(void *user, const struct err *error);
};

int replica_open(struct replica **out, uv_loop_t *loop, const struct replica_options *options,
                 struct err *e) ERR_CHECKED;
/* Not out of one of the callbacks above. */
void replica_close(struct replica *r, void (*cb)(void *user), void *user);

struct raft *replica_raft(struct replica *r);
bool replica_leads(const struct replica *r);
/* This node is raft's leader, and leads as soon as its barrier has committed. */
bool replica_elected(const struct replica *r);
uint64_t replica_snapshot_index(const struct replica *r);
/* Of the cluster, as far as this node holds anything of it; 0: nothing yet. */
uint64_t replica_generation(struct replica *r);
/* It leads, or has heard of who does within so long. */
bool replica_follows(const struct replica *r, unsigned within_ms);
/* Who leads, as far as this node knows; 0: nobody. */
node_id replica_leader(const struct replica *r);
/* Leader, outside of libraft's stack: followers learn at once what has committed. */
void replica_spread(struct replica *r);

void replica_accept(struct replica *r, struct secure_stream *s);
/* The keys that are believed may have changed. */
void replica_review(struct replica *r);
size_t replica_streams(const struct replica *r);

#endif
