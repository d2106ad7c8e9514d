/* raft/spare.h - the registry on a node to which raft brings no log: a neighbour feeds it (raft/feed.h).
 *
 * It holds a state of its own, beside that of this node's raft replica, and applies with the same state
 * machine what the neighbour has applied. So nothing that a neighbour says ever gets into raft's state, and
 * nothing is applied twice: whichever of the two is further is what the node reads.
 *
 *     IDLE -> OPENING -> GREETED -> LOADING -> DECODING -> FOLLOWING -> (stream closed) IDLE
 *                           +------------------------------/
 *
 * - A neighbour is a voter or standby that is alive, of the own zone if there is one, else any; another one
 *   when it fails, is silent, refuses, or hears of no leader itself.
 * - When the stream breaks, the state stays; the next neighbour goes on from it, or sends a snapshot.
 * - When raft brings the log (this node has become a standby) and has come as far, the state here goes.
 *
 * Nothing here must survive the process. A mark in the registry's folder says that the node is a spare, of
 * which generation of the cluster: its log, if it has one, is of another time, so `operator raft recover`
 * refuses to begin a cluster with it.
 *
 * Thread: the loop's, but for decoding, and the mark, which have a thread while they last.
 * Time: milliseconds of a monotonic clock. */
#ifndef SKERRY_RAFT_SPARE_H
#define SKERRY_RAFT_SPARE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/err.h"
#include "base/secure_stream.h"
#include "raft/registry.h"
#include "raft/state.h"

/* A neighbour tells of itself each FEED_HEARTBEAT_MS; six that are missing are no accident. */
#define SPARE_SILENT_MS 600u
/* ... and so long while a snapshot is on its way, which fills the path. */
#define SPARE_LOADING_MS 3000u
/* That a neighbour may hear of no leader: an election is over by then, if there is a majority. */
#define SPARE_LEADERLESS_MS 1000u
#define SPARE_ACK_MS 500u
#define SPARE_TICK_MS 50u
/* Between tries that fail, doubled each time; the first one after a break is at once. */
#define SPARE_PAUSE_MS 50u
#define SPARE_PAUSE_MAX_MS 2000u
/* For which a neighbour that failed is not asked again while there are others. */
#define SPARE_AVOID_MS 5000u
#define SPARE_PEERS_MAX 1024u

#define SPARE_MARK "spare" /* in the registry's folder */

struct spare;

struct spare_options {
    uv_loop_t *loop;
    const char *directory;         /* of the registry */
    node_id id;                    /* of this node */
    uint64_t seed;                 /* random */
    struct secure_context *secure; /* NULL: nobody is asked */
    void *user;
    bool (*address)(void *user, node_id id, struct sockaddr_storage *out);
    /* A command was applied. Only notes it. */
    void (*applied)(void *user, const struct state_outcome *outcome);
    /* spare_turn is to be called. */
    void (*wake)(void *user);
};

/* Reads the mark: blocks for a moment. */
int spare_new(struct spare **out, const struct spare_options *options, struct err *e) ERR_CHECKED;
/* The stream closes; gone after `cb`. */
void spare_close(struct spare *s, void (*cb)(void *user), void *user);

struct spare_want {
    bool feed;           /* raft brings nothing, and has not for a while */
    bool follows;        /* raft brings the log */
    uint64_t applied;    /* by raft: what is older is of no use */
    uint64_t generation; /* of raft's state; 0: it has none */
};
void spare_turn(struct spare *s, uint64_t now_ms, const struct spare_want *want);
/* Whom to ask; copied. At most SPARE_PEERS_MAX. */
void spare_peers(struct spare *s, const struct registry_peer *peers, size_t count);
/* As feed_review. */
void spare_review(struct spare *s);
/* As state_collect. */
bool spare_collect(struct spare *s, size_t entries_max);

/* What it has. `state` NULL: nothing. Valid until the loop goes on. */
struct spare_view {
    struct state *state;
    uint64_t generation, applied;
    /* Of the neighbour that feeds it now; 0 without one: */
    node_id neighbour, leader;
    uint64_t commit, term; /* as last heard, likewise the members */
    const struct registry_member *members;
    size_t member_count;
    uint64_t snapshots, resumed; /* that were taken */
};
struct spare_view spare_view(const struct spare *s);

/* The mark in a folder: the generation, or 0: none. */
uint64_t spare_mark_read(const char *directory);

#endif
