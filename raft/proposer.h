/* raft/proposer.h - a few batches of commands under way at a time.
 *
 * libraft 0.15 acknowledges nothing under a steady stream of single proposals, and calls back for a
 * batch when its first entry is applied. So commands wait here while batches are under way, until there are
 * as many as those have or one has ended, and go together (group commit). What becomes of each is learnt
 * from the state machine: proposer_applied finds the proposal by its session's number.
 *
 *     waiting -> in a batch, or away with another node that leads -> answered
 *        ^              |
 *        +--------------+   leadership lost: asked again, with the same number, until its deadline
 *
 * Of a proposal that is away this node learns by its own state machine too, as soon as the entry is applied
 * here: so whoever is answered finds the change in the local root. Should that take longer than
 * PROPOSER_APPLY_WAIT_MS, the leader's word is enough.
 *
 * A command that a later leader must not do (the end of a lease, which it may have renewed) goes into the log
 * in the term in which it was proposed, or not at all.
 *
 * Proposals of other nodes (foreign) share the batches of the leader. They are not asked again from here.
 *
 * Thread: the loop's. Time: milliseconds of a monotonic clock, handed in.
 * Re-entry: callbacks come out of proposer_deliver, proposer_expire, proposer_depose, proposer_away_refuse
 * and proposer_close only, never out of libraft's stack, and may propose. */
#ifndef SKERRY_RAFT_PROPOSER_H
#define SKERRY_RAFT_PROPOSER_H

#include <raft.h>
#include <stdbool.h>

#include "raft/command.h"
#include "raft/registry.h"

#define PROPOSER_BATCH_MAX 256
/* Who comes while a batch is under way need not wait for its way to other nodes and back. */
#define PROPOSER_BATCHES_MAX 4
/* A batch is one message and one write: beyond a command that is alone, no larger than this. */
#define PROPOSER_BATCH_BYTES_MAX (1024u * 1024u)
#define PROPOSER_APPLY_WAIT_MS 1000u
/* For what a question to another node takes at most: until it has ended nobody knows whether that node
 * heard it, so a proposal that is away is given up so much later than its deadline. */
#define PROPOSER_AWAY_WAIT_MS 1100u

struct proposer;

struct proposer_options {
    struct raft *raft;
    node_id node;
    uint64_t boot;
    size_t waiting_max;
    unsigned timeout_ms;
    void *user;
    /* Up to where this node's root is; NULL: as raft has applied. */
    uint64_t (*applied)(void *user);
    /* Something is to be delivered or asked: call proposer_deliver and proposer_ask soon. */
    void (*wake)(void *user);
};

typedef void (*proposer_barrier_cb)(void *user, const struct err *error);

int proposer_new(struct proposer **out, const struct proposer_options *options,
                 struct err *e) ERR_CHECKED;
/* Answers everything with ERR_CANCELED. libraft may still call back until raft_close is done. */
void proposer_close(struct proposer *p);
/* After raft_close's callback. */
void proposer_free(struct proposer *p);

int proposer_propose(struct proposer *p, const struct registry_command *command, uint64_t now_ms,
                     registry_result_cb cb, void *user, struct err *e) ERR_CHECKED;
/* Encoded already, by another node, whose session and numbers were looked at; `bytes` is taken over, also
 * when it fails. `cb` gets ERR_UNAVAILABLE when it was not proposed, ERR_TIMEOUT when it may have been. */
int proposer_propose_foreign(struct proposer *p, const struct command_session *session,
                             uint8_t *bytes, size_t length, uint64_t deadline_ms,
                             registry_result_cb cb, void *user, struct err *e) ERR_CHECKED;
/* `cb` once all that was committed before this call is applied here, and this node still led. */
int proposer_barrier(struct proposer *p, uint64_t now_ms, proposer_barrier_cb cb, void *user,
                     struct err *e) ERR_CHECKED;

/* From the state machine's apply. */
void proposer_applied(struct proposer *p, const struct command_session *asked,
                      const struct registry_result *result);
/* Hands out what has been answered. */
void proposer_deliver(struct proposer *p);
/* Asks for what waits, if this node leads and not too much is under way. */
void proposer_ask(struct proposer *p, bool leads);
/* This node does not lead: barriers and foreign proposals that wait end, with ERR_CONFLICT and
 * ERR_UNAVAILABLE. */
void proposer_depose(struct proposer *p);

/* --- another node leads ----------------------------------------------------------------------------- */

struct proposer_item {
    const uint8_t *bytes; /* until the next call of the proposer */
    size_t length;
    uint64_t sequence;
};
/* The next that wait go away under a number of the caller's, which is used once. At least one, if one
 * waits. */
size_t proposer_away_take(struct proposer *p, unsigned call, struct proposer_item out[],
                          size_t items_max, size_t bytes_max);
/* What became of one. Whatever comes too late, or of an earlier call, is ignored. */
void proposer_away_answer(struct proposer *p, unsigned call, uint64_t sequence,
                          const struct registry_result *result, uint64_t now_ms);
void proposer_away_refuse(struct proposer *p, unsigned call, uint64_t sequence,
                          const struct err *error);
/* It waits again. `maybe_heard`: it may have come into the log. */
void proposer_away_back(struct proposer *p, unsigned call, uint64_t sequence, bool maybe_heard);
/* Likewise all of that call of which nothing is known. */
void proposer_away_all_back(struct proposer *p, unsigned call, bool maybe_heard);

/* Gives up what is past its deadline. */
void proposer_expire(struct proposer *p, uint64_t now_ms);

size_t proposer_waiting(const struct proposer *p); /* proposals not yet committed */
/* Some wait to be asked; what its term left behind is dropped first. */
bool proposer_wanting(struct proposer *p);
bool proposer_idle(const struct proposer *p); /* nobody waits for anything */
struct proposer_counts {
    uint64_t proposals, foreign, batches, barriers, asked_again;
};
struct proposer_counts proposer_counts(const struct proposer *p);

#endif
