/* node/cluster/peer_rpc.h - questions and answers between nodes, each message sealed
 * (node/cluster/peer_seal.h), on the wire of nng's REQ and REP (node/cluster/sp_stream.h).
 *
 * For control: registry commands on their way to the leader, renewals, push/pull of gossip. Not for
 * joins, raft or images, which go by secure streams.
 *
 * A question is asked once and never sent again by itself, but when the other node says that it was
 * meant for its earlier life: then it did nothing. A call ends with the answer, or an error that says
 * whether the other node may have seen the question. Nobody asks while it answers (a node that is
 * not the leader answers with who is): that keeps the bounded number of questions from waiting for
 * each other in a circle.
 *
 *     call -> link -> . . . network . . . -> connection -> asked
 *     answered <- link <- . . . . . . . . <- connection <- peer_question_answer
 *
 * Thread: the loop's. SIGPIPE must be ignored.
 * Bounds:  calls_max to each peer and questions_max here at the same time, bytes_max a message,
 * connections_max in. Only private addresses. */
#ifndef SKERRY_NODE_CLUSTER_PEER_RPC_H
#define SKERRY_NODE_CLUSTER_PEER_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/err.h"
#include "base/identity.h"
#include "base/refusals.h"

#define PEER_RPC_QUESTIONS_MAX_DEFAULT 64u
#define PEER_RPC_CALLS_MAX_DEFAULT 1024u
#define PEER_RPC_CONNECTIONS_MAX_DEFAULT 2048u
#define PEER_RPC_BYTES_MAX_DEFAULT (1024u * 1024u)
#define PEER_RPC_TIMEOUT_MS_DEFAULT 1000u

struct peer_rpc;
struct peer_question; /* one that another node asked */

struct peer_rpc_options {
    const struct identity *identity;
    node_id id;
    uint64_t boot;                          /* identity_boot_next */
    const struct sockaddr_storage *address; /* private; where questions come in */
    /* As in node/cluster/peer_seal.h. */
    bool (*key_of)(void *user, node_id id, struct identity_public *out);
    /* Where node `id` listens for questions; false when nobody knows. */
    bool (*address_of)(void *user, node_id id, struct sockaddr_storage *out);
    /* `q` is to be answered or dropped, once, in this call or later. */
    void (*asked)(void *user, struct peer_question *q);
    /* Another node knows a process of our id with a later boot: this one must stop. NULL is fine. */
    void (*outlived)(void *user);
    void *user;
    unsigned questions_max, calls_max, connections_max; /* 0: the defaults */
    size_t bytes_max;                                   /* 0: the default */
};

int peer_rpc_open(struct peer_rpc **out, uv_loop_t *loop, const struct peer_rpc_options *options,
                  struct err *e) ERR_CHECKED;
/* Calls that are under way end with ERR_CANCELED before `cb` (gets the user); questions that wait
 * for their answer are gone with this call. */
void peer_rpc_close(struct peer_rpc *rpc, void (*cb)(void *user));

/* --- asking --------------------------------------------------------------------------------------- */

struct peer_answer {
    node_id from;            /* who was asked */
    const struct err *error; /* NULL: answered */
    bool maybe_heard;        /* with an error: the other node may have acted */
    const uint8_t *payload;  /* valid in the callback */
    size_t size;
};

struct peer_call {
    node_id to;
    uint16_t what;
    const void *payload; /* copied */
    size_t size;
    unsigned timeout_ms;                                            /* 0: the default */
    void (*answered)(void *user, const struct peer_answer *answer); /* once, not in peer_rpc_call */
    void *user;
};

/* Fails at once (and does not call back) when the peer is no member, has no private address, too
 * many calls to it are under way, or the payload is too large. */
int peer_rpc_call(struct peer_rpc *rpc, const struct peer_call *call, struct err *e) ERR_CHECKED;
/* A node that was removed: the connections to it and from it close, calls end. */
void peer_rpc_forget(struct peer_rpc *rpc, node_id id);

/* --- answering ------------------------------------------------------------------------------------ */

node_id peer_question_from(const struct peer_question *q);
uint16_t peer_question_what(const struct peer_question *q);
const uint8_t *peer_question_payload(const struct peer_question *q, size_t *size);
/* `payload` is copied. One that is too large is dropped, and told in the log. */
void peer_question_answer(struct peer_question *q, const void *payload, size_t size);
/* The other node's call ends by its timeout. */
void peer_question_drop(struct peer_question *q);

/* --- facts ---------------------------------------------------------------------------------------- */

struct peer_rpc_counts {
    uint64_t calls, answered, timed_out, failed, questions;
    unsigned calls_now, questions_now;
    uint64_t connections;     /* in, ever */
    unsigned connections_now; /* in */
};
void peer_rpc_counts(const struct peer_rpc *rpc, struct peer_rpc_counts *out);
const struct refusals *peer_rpc_refusals(const struct peer_rpc *rpc);

#endif
