/* node/control/leases.h - the lease of this node, and while it leads, those of all: scheduler/leases.h with
 * messages, commands and timers around it.
 *
 *   holder: each LEASE_RENEW_MS --renewal--> leader: gathers --barrier--> proved that it still leads
 *           new deadline <------answer------         renewed, or LEASE_GRANT first
 *                                            lease_table_due --LEASE_EXPIRE--> node_lost
 *
 * The leader renews its own by the same way without a message. Where this node is the only voter there
 * is nobody who could lead instead: no barrier is needed, and a lone node writes nothing for it.
 *
 * Thread: the control loop. Memory: the renewals that wait are bounded by `nodes_max`, one a node. */
#ifndef SKERRY_NODE_CONTROL_LEASES_H
#define SKERRY_NODE_CONTROL_LEASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "base/id.h"
#include "raft/registry.h"

struct leases;

/* An answer to leases_calls.ask: `error` NULL, or nothing was answered. */
typedef void (*leases_answered_cb)(void *user, const struct err *error, const uint8_t *payload,
                                   size_t size);

struct leases_leader {
    bool self;       /* this node leads */
    node_id id;      /* who leads, as far as is known; 0: nobody */
    unsigned voters; /* how many there are */
};

/* What is needed of registry and peers. */
struct leases_calls {
    void *user;
    /* Asks another node's leases; `answered` once, not out of this call. NULL: alone for ever. */
    int (*ask)(void *user, node_id to, const void *payload, size_t size, unsigned timeout_ms,
               leases_answered_cb answered, void *answered_user, struct err *e);
    /* As registry_barrier, registry_propose, registry_root. */
    int (*barrier)(void *user, registry_read_cb cb, void *cb_user, struct err *e);
    int (*propose)(void *user, const struct registry_command *command, registry_result_cb cb,
                   void *cb_user, struct err *e);
    struct registry_root *(*root)(void *user);
    void (*leader)(void *user, struct leases_leader *out);
    /* This node's lease has a new deadline or a new epoch, or is over (leases_held tells). */
    void (*changed)(void *user);
};

struct leases_options {
    node_id self;
    uint32_t nodes_max;
    struct leases_calls calls;
};

int leases_open(struct leases **out, uv_loop_t *loop, const struct leases_options *options,
                struct err *e) ERR_CHECKED;
/* Nothing is sent or proposed any more; renewals of others that wait are dropped. */
void leases_stop(struct leases *l);
/* After the registry and the peers were closed, which answer what is under way; before the loop is run for
 * the last time, which frees it. */
void leases_close(struct leases *l);

/* Leadership was gained or lost, or another leads. */
void leases_leader_changed(struct leases *l);

/* Another node's renewal; `answer` is called once, in this call or later, and copies; with 0 bytes: not
 * to be answered. */
typedef void (*leases_answer_fn)(void *question, const void *payload, size_t size);
void leases_question(struct leases *l, node_id from, const uint8_t *payload, size_t size,
                     leases_answer_fn answer, void *question);

/* --- facts ------------------------------------------------------------------------------------------ */

struct leases_held {
    uint64_t epoch;       /* 0: it has had none since this process began */
    uint64_t deadline_ms; /* CLOCK_BOOTTIME */
    bool valid;           /* now */
};
struct leases_held leases_held(const struct leases *l);
/* Milliseconds that the leader gives the lease of a node still; 0: it has none, or this node does not
 * lead. For status. */
uint64_t leases_left_ms(const struct leases *l, node_id id);

#endif
