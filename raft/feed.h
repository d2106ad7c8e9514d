/* raft/feed.h - a voter or standby brings spares what it applies (raft/spare_wire.h says how).
 *
 * A spare that missed no more than the ring of recent commands holds goes on from there, another gets a
 * snapshot first, encoded on a thread of its own and shared by all that wait for one. Then each has its own
 * place in the ring and takes from it what its stream takes: nothing waits for a slow one. Who falls behind
 * the ring's end, or whose stream does not move, is cut off and begins again.
 *
 *     HELLO -> ASKED -+-> WAITING -> SENDING -> FOLLOWING -> CLOSING -> gone
 *                     +------------------------/
 *                     +-> REFUSED -> CLOSING
 *
 * With many spares each is told at most once in some milliseconds, so that the loop has time for raft: all of
 * them FEED_SENDS_PER_SECOND times in a second, for which a write that was encrypted takes some 5 us.
 *
 * Thread: the loop's, but for the encoding. Time: milliseconds of a monotonic clock. */
#ifndef SKERRY_RAFT_FEED_H
#define SKERRY_RAFT_FEED_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "base/secure_stream.h"
#include "raft/recent.h"
#include "raft/registry.h"
#include "raft/spare_wire.h"

/* 1,000 nodes, of which 3 vote and none stands by. */
#define FEED_LINKS_MAX 512u
#define FEED_SENDS_PER_SECOND 32000u
#define FEED_HEARTBEAT_MS 100u
#define FEED_HELLO_MS 1000u  /* for a greeting */
#define FEED_SILENT_MS 5000u /* ... and then: a spare says how far it is some times a second */
/* With bytes that wait and none that leave: a spare reads nothing while it decodes its snapshot, some seconds
 * for a million instances. */
#define FEED_STALL_MS 30000u
/* The ring while a spare gets a snapshot: what is applied meanwhile must still be there afterwards. 256 s
 * of 1,000 writes a second. */
#define FEED_ENTRIES_MAX ((size_t)256 * 1024)
#define FEED_BYTES_MAX ((size_t)64 * 1024 * 1024)
/* That are held at the same time: one that is being sent, and a newer one. */
#define FEED_IMAGES_MAX 2u

struct feed;

/* What this node knows, from turn to turn. */
struct feed_view {
    bool following; /* it leads, or has lately heard of who does */
    uint64_t generation, applied, commit, term;
    node_id leader;                        /* 0: nobody */
    const struct registry_member *members; /* in order of id, at most SPARE_MEMBERS_MAX count */
    size_t member_count;
};

struct feed_options {
    uv_loop_t *loop;
    struct recent *recent;
    unsigned sends_per_second; /* 0: the default */
    void *user;
    /* The state as it is at the view's `applied`, referenced; NULL: not now. In feed_turn only. */
    struct registry_root *(*root)(void *user);
    /* feed_turn is to be called. */
    void (*wake)(void *user);
};

int feed_new(struct feed **out, const struct feed_options *options, struct err *e) ERR_CHECKED;
/* All streams close; gone after `cb`. */
void feed_close(struct feed *f, void (*cb)(void *user), void *user);

/* An open SECURE_SPARE stream that another node asked for; the feed's from now on. */
void feed_accept(struct feed *f, struct secure_stream *s);
/* There is somebody to be fed: else a turn does nothing, and needs no view. */
bool feed_wanted(const struct feed *f);
void feed_turn(struct feed *f, uint64_t now_ms, const struct feed_view *view);
/* The keys that are believed may have changed: streams of nodes that have none any more close. */
void feed_review(struct feed *f);

struct feed_counts {
    size_t links, following; /* now */
    uint64_t snapshots, resumed, refused,
        cut;         /* `cut`: spares that were too slow, or broke the rules */
    uint64_t writes; /* to streams */
};
struct feed_counts feed_counts(const struct feed *f);

#endif
