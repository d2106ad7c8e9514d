/* raft/proposer_internal.h - what the proposer's files share. */
#ifndef SKERRY_RAFT_PROPOSER_INTERNAL_H
#define SKERRY_RAFT_PROPOSER_INTERNAL_H

#include "raft/proposer.h"

struct proposal {
    struct proposal *next;
    struct command_session session;
    bool foreign; /* of another node, which asks again by itself */
    bool once;    /* of this leader in `term` or of none: asked nowhere else, and not again */
    raft_term term;
    uint64_t deadline_ms;
    registry_result_cb cb; /* NULL: given up */
    void *user;
    unsigned asked; /* times that it may have reached the log */
    bool answered;
    struct registry_result result;
    /* While it is away: */
    unsigned call;
    bool told; /* the leader has answered with `result`, and it is to be applied here as well */
    uint64_t told_ms; /* ... which is waited for until then */
    uint8_t *bytes;
    size_t length;
};

/* First in, first out. */
struct proposals {
    struct proposal *first, *last;
    size_t count;
};

struct barrier {
    struct barrier *next;
    uint64_t deadline_ms;
    proposer_barrier_cb cb;
    void *user;
};

struct barriers {
    struct barrier *first, *last;
    size_t count;
};

/* What libraft was asked for at once; without proposals it is a barrier. */
struct batch {
    struct proposer *proposer;
    raft_term term; /* in which it was asked */
    /* libraft's, until it has called back: for a batch when the first entry was applied. */
    struct raft_apply apply;
    struct raft_barrier barrier;
    bool called_back;
    bool lost;
    struct proposals proposals;
    struct proposal *expected; /* the first that is not answered: they come in order; NULL: none */
    struct barriers barriers;
};

struct proposer {
    struct proposer_options options;
    uint64_t sequence_last;
    /* `again`: those that were asked before; they go first. */
    struct proposals again, waiting, away, done;
    struct proposals over; /* `once`, and its term is over: to be told */
    size_t away_told;
    size_t answered_elsewhere; /* in `away` and `again` */
    struct barriers barriers_waiting, barriers_done;
    bool closed;

    /* A ring; what was asked first is at `first`. */
    struct batch batches[PROPOSER_BATCHES_MAX];
    size_t first, under_way;

    struct proposer_counts counts;
};

/* --- queues: proposer_queue.c --------------------------------------------------------------------------- */

void proposals_push(struct proposals *q, struct proposal *p);
struct proposal *proposals_pop(struct proposals *q);
/* `front` before what is in `q`; empties `front`. */
void proposals_push_front(struct proposals *q, struct proposals *front);
/* Behind what is in `q`; empties `more`. */
void proposals_append(struct proposals *q, struct proposals *more);
/* Takes out those for which `match` is true, in order. */
struct proposals proposals_take(struct proposals *q,
                                bool (*match)(const struct proposal *p, const void *user),
                                const void *user);
void proposal_free(struct proposal *p);

void barriers_push(struct barriers *q, struct barrier *b);
struct barrier *barriers_pop(struct barriers *q);
void barriers_move(struct barriers *to, struct barriers *from);

/* --- proposer.c ------------------------------------------------------------------------------------------- */

void proposer_wake(struct proposer *p);
/* The next that may be asked, those that were asked before first; NULL: none. */
struct proposals *proposer_next_queue(struct proposer *p);
/* Tells its owner and forgets it. `error` NULL: its result. */
void proposer_answer(struct proposal *i, const struct err *error);

#endif
