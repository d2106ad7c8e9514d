/* node/control/leases_internal.h - what leases.c (the holder) and node/control/leases_leader.c share. */
#ifndef SKERRY_NODE_CONTROL_LEASES_INTERNAL_H
#define SKERRY_NODE_CONTROL_LEASES_INTERNAL_H

#include "node/control/lease_wire.h"
#include "node/control/leases.h"
#include "scheduler/leases.h"

/* A renewal that waits for a barrier or a grant. */
struct renewal {
    struct renewal *next;
    struct leases *leases;
    node_id from;
    uint64_t sent_ms;        /* of this node's own */
    leases_answer_fn answer; /* NULL: this node's own */
    void *question;
};

struct leases {
    struct leases_options options;
    bool stopped;
    unsigned under_way; /* callbacks that hold this */

    /* the holder */
    struct lease_holder holder;
    node_id hint; /* who leads, by the answer of one who does not; 0: ask the registry */
    bool was_valid;
    uv_timer_t holder_timer;

    /* the leader */
    bool leading;
    struct lease_table *table;
    struct renewal *gathered, *asked; /* for the next barrier, for the one under way */
    uint32_t waiting;                 /* renewals in all */
    bool barrier_under_way;
    uint64_t barrier_ms; /* when the last began */
    uv_timer_t gather_timer, due_timer;
    unsigned handles;
};

/* leases.c: the answer to this node's own renewal. */
void leases_own_answer(struct leases *l, uint64_t sent_ms, const struct lease_answer *answer);

/* node/control/leases_leader.c */
int leases_leader_open(struct leases *l, uv_loop_t *loop, struct err *e) ERR_CHECKED;
void leases_leader_stop(struct leases *l);
/* Takes a renewal in line, or answers at once why not. */
void leases_leader_renew(struct leases *l, node_id from, uint64_t sent_ms, leases_answer_fn answer,
                         void *question);
void leases_leader_follow(struct leases *l);

#endif
