/* node/cluster/peer_internal.h - what the files of peer_rpc share. */
#ifndef SKERRY_NODE_CLUSTER_PEER_INTERNAL_H
#define SKERRY_NODE_CLUSTER_PEER_INTERNAL_H

#include <uthash.h>
#include <utlist.h>

#include "node/cluster/peer_rpc.h"
#include "node/cluster/peer_seal.h"
#include "node/cluster/sp_stream.h"

/* A connection by which another node asks. */
struct peer_connection {
    struct peer_rpc *rpc;
    struct sp_stream *stream;
    uint64_t serial;
    node_id node;                            /* who asked by it, 0: nobody has shown a key yet */
    bool leaving;                            /* made room for another */
    bool stalled;                            /* in the list of those whose question waits */
    struct peer_connection *next, *previous; /* there */
    UT_hash_handle hh;
};

/* The connection to another node; a new one when the node moved. */
struct peer_link {
    node_id id;
    struct peer_rpc *rpc;
    struct sockaddr_storage address;
    struct sp_stream *stream; /* NULL: waits to connect again */
    bool open;                /* both sides have greeted */
    uv_timer_t timer;         /* connects again, or gives up connecting */
    unsigned wait_ms;         /* before the next attempt */
    unsigned calls;           /* under way */
    bool retired;             /* freed once its handles are closed; its calls end then */
    unsigned open_parts;
    UT_hash_handle hh;
};

/* A call under way. */
struct peer_asking {
    uint32_t request;
    struct peer_link *link;
    struct peer_call call;
    uint8_t *payload;           /* kept until the peer's boot is sure */
    struct sp_message *message; /* waits for the connection; NULL: it left */
    uint64_t counter;           /* of the seal */
    uint64_t until_ms;          /* CLOCK_MONOTONIC */
    bool again;                 /* was asked a second time already */
    UT_hash_handle hh;
};

struct peer_rpc {
    struct peer_rpc_options options;
    uv_loop_t *loop;
    struct peer_seal *seal;
    /* Questions of others: node/cluster/peer_question.c. */
    uv_tcp_t listener;
    struct peer_connection *connections; /* in the order in which they came */
    struct peer_connection *stalled;
    struct peer_question *questions; /* that wait for their answer */
    struct sp_budget budget;
    uv_timer_t resume; /* a question ended: those that wait go on */
    uint64_t serial;   /* of the last connection */
    /* Questions to others: node/cluster/peer_call.c. */
    struct peer_link *links;
    struct peer_asking *askings; /* by request */
    uv_timer_t tick;             /* while calls are under way: ends those that take too long */
    uint32_t request;            /* the last */
    struct peer_rpc_counts counts;
    unsigned open_parts; /* what must close before this is freed */
    bool closing;
    void (*closed)(void *user);
};

/* node/cluster/peer_rpc.c */
void peer_part_closed(struct peer_rpc *rpc);
/* The same, of a handle whose data is the rpc. */
void peer_handle_closed_cb(uv_handle_t *handle);

/* node/cluster/peer_question.c */
int peer_questions_open(struct peer_rpc *rpc, const struct sockaddr_storage *address,
                        struct err *e) ERR_CHECKED;
void peer_questions_close(struct peer_rpc *rpc);
/* What is left when everything has closed. */
void peer_questions_free(struct peer_rpc *rpc);
/* Its connections close. */
void peer_questions_forget(struct peer_rpc *rpc, node_id id);

/* node/cluster/peer_call.c */
void peer_calls_open(struct peer_rpc *rpc);
/* Ends all calls. */
void peer_calls_close(struct peer_rpc *rpc);

#endif
