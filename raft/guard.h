/* raft/guard.h - what libraft 0.15 does wrong, put right between it and its disk and network.
 *
 * The guard is a raft_io around another. Its rules (design section 5):
 *
 * - A new leader proposes a barrier, and results of its followers' appends wait until the barrier is
 *   stored here. libraft counts replicas of entries of older terms and calls them committed, which a
 *   later leader may overwrite (Raft paper, figure 8). It counts up to the last entry that the leader
 *   itself has stored: once that is the barrier, all counting is of the leader's own term.
 * - A leader hears that entries are stored once those before them, from its barrier on, are committed. libraft
 *   commits up to what the leader has stored or nothing: while that is always ahead of what the others have
 *   stored, as under a steady stream, it would commit nothing at all.
 * - What is loaded has memory of its own for each entry. libraft frees what entries share when its log has none
 *   of them left, though a message or a write under way still does (found by tests/sim).
 * - A failed append, truncate, set_term, set_vote, or installed snapshot ends everything: libraft would
 *   stay leader and use the index of the lost entry again. From then on nothing passes in either
 *   direction, and the owner must end the process.
 * - A follower tells a leader no more than what it was asked about. libraft answers an append with the end
 *   of its own log, whatever stands there from older terms; the leader takes it for its own entries, as
 *   soon as it has as many, and calls them committed (found by tests/unit/test_registry_faults.c). Nor does
 *   it tell a leader what one of an older term was asked for: libraft answers whoever leads when it is
 *   stored.
 * - While an append of this server's own is in flight, a follower hears no tick and gives no vote:
 *   libraft would campaign and vote with entries that the disk does not have yet. The same holds while a
 *   leader's snapshot is being written: when that is done libraft answers the leader that it follows, out
 *   of memory that a candidate uses for other things (found by tests/sim).
 * - A lone voter leads a term of its own each time. libraft makes it leader of the term that it left off
 *   in: entries that it lost with its last life and that a standby has, and the ones that it appends in
 *   their place, then pass for the same (found by tests/sim).
 * * - A change of members that is taken back leaves those from before it (raft/membership.h), and no
 *   snapshot is taken while one is under way: libraft would write down members that may never be. It
 *   leaves this server when it is stored here: a voter that learns that it is none does not campaign any
 *   more, and the others, without the change, might need its vote for ever.
 * * - Who refuses a pre-vote because it knows of a later term says so. libraft does not: if the votes of two
 *   are needed and the one with the shorter log has the later term, nobody would ever lead again.
 *
 * Work that libraft wants done off the loop (snapshots) runs on a thread of its own, not in libuv's
 * pool, which belongs to the disk.
 *
 * Thread:  the loop's.
 * Memory:  the guard lives from before raft_init until after raft_close's callback. */
#ifndef SKERRY_RAFT_GUARD_H
#define SKERRY_RAFT_GUARD_H

#include <raft.h>
#include <stdbool.h>

#include "base/err.h"

/* Messages that wait. A message beyond that is dropped: libraft sends all of them again. */
#define GUARD_WAITING_MAX 64

#define GUARD_TOLD_MAX 64

struct guard;

struct guard_options {
    struct raft_io *inner; /* outlives the guard */
    /* How often libraft looks at its clock; 0: with each heartbeat, as it asks for. */
    unsigned tick_ms;
    /* Only for tests that show what the guard is for: everything passes. */
    bool off;
    void *user;
    /* After anything was handed to libraft: its state may have changed. Called inside libraft's or
     * libuv's stack: only notes things. */
    void (*after)(void *user);
    /* Once. Likewise only notes it. */
    void (*failed)(void *user, const struct err *error);
    /* Runs work->work(work) on another thread and gives what it answered to guard_async_work_done on
     * the loop's, before libraft is closed; 0 or a code of libraft. NULL: the inner one does it. */
    int (*async_work)(void *user, struct raft_io_async_work *work);
};

int guard_new(struct guard **out, const struct guard_options *options, struct err *e) ERR_CHECKED;
void guard_free(struct guard *g);
/* What raft_init gets. */
struct raft_io *guard_io(struct guard *g);
void guard_async_work_done(struct guard *g, struct raft_io_async_work *work, int status);
/* After raft_start, which may make a lone voter leader at once. */
void guard_started(struct guard *g);
/* This server leads and its barrier is committed: proposals may come. */
bool guard_leads(const struct guard *g);
/* A snapshot asked for by libraft may be taken; else its `snapshot` answers RAFT_BUSY. */
bool guard_may_snapshot(const struct guard *g);
bool guard_failed(const struct guard *g);
/* Leader, outside of libraft's stack: tells followers what has committed, who would learn it from the next
 * entries or heartbeat only. Only those who have stored it, and each once; no more than GUARD_TOLD_MAX,
 * the rest learn it by the heartbeat. */
void guard_spread(struct guard *g);

#endif
