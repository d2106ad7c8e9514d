/* node/cluster/peer_internal.h - what the files of peer_rpc share. */
#ifndef SKERRY_NODE_CLUSTER_PEER_INTERNAL_H
#define SKERRY_NODE_CLUSTER_PEER_INTERNAL_H

#include <nng/nng.h>
#include <uthash.h>

#include "base/inbox.h"
#include "node/cluster/peer_rpc.h"
#include "node/cluster/peer_seal.h"

/* The receive bound of nng counts its own header too. */
#define PEER_NNG_HEADER_BYTES 64u

struct peer_question {
    struct inbox_message message; /* to the loop: one came in */
    struct peer_rpc *rpc;
    nng_ctx context;
    nng_aio *aio;
    nng_msg *body;
    bool sending; /* else receiving; of whichever thread works on it */
    struct peer_seal_content content;
};

/* One REQ socket for each node; a new one when the node moved. */
struct peer_link {
    node_id id;
    struct peer_rpc *rpc;
    struct sockaddr_storage address;
    nng_socket socket;
    struct peer_slot *slots;           /* all of them */
    struct peer_slot *idle;            /* ready for a call */
    unsigned calls;                    /* under way */
    bool retired;                      /* its socket is closed; freed with the last call */
    struct peer_link *next, *previous; /* of the retired */
    UT_hash_handle hh;
};

struct peer_slot {
    struct inbox_message message; /* to the loop: the call has ended */
    struct peer_link *link;
    struct peer_slot *next;      /* idle */
    struct peer_slot *next_slot; /* of the link */
    nng_ctx context;
    nng_aio *aio;
    bool busy;      /* a call has it */
    bool receiving; /* the question left; of whichever thread works on it */
    int result;     /* of nng */
    nng_msg *body;
    struct peer_call call;
    uint8_t *payload; /* kept until the peer's boot is sure */
    uint64_t counter;
    uint64_t until_ms; /* CLOCK_MONOTONIC */
    bool again;        /* was asked a second time already */
};

/* By which connection a node asked last. */
struct peer_pipe {
    node_id id;
    nng_pipe pipe;
    UT_hash_handle hh;
};

struct peer_rpc {
    struct peer_rpc_options options;
    uv_loop_t *loop;
    struct inbox *inbox;
    struct peer_seal *seal;
    nng_socket listener;
    struct peer_question *questions;
    struct peer_link *links;
    struct peer_link *retired;
    struct peer_pipe *pipes; /* of members only: a table is bounded by the registry's */
    struct peer_rpc_counts counts;
    unsigned connections; /* in; nng's threads, atomic */
    bool closing;
    void (*closed)(void *user);
};

/* node/cluster/peer_question.c */
int peer_questions_open(struct peer_rpc *rpc, struct err *e) ERR_CHECKED;
/* Waits for nng's callbacks; what they posted is in the inbox. */
void peer_questions_stop(struct peer_rpc *rpc);
void peer_questions_free(struct peer_rpc *rpc);
/* Its connection closes. */
void peer_questions_forget(struct peer_rpc *rpc, node_id id);

/* node/cluster/peer_call.c */
/* As with questions. */
void peer_links_stop(struct peer_rpc *rpc);
/* Ends what calls are left. */
void peer_links_free(struct peer_rpc *rpc);

#endif
