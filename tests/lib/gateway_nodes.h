/* tests/lib/gateway_nodes.h - gateways of several nodes in this process, with real keys and streams
 * between them on loopback.
 *
 * Node 1 is where clients ask. Each has one instance of "web" (tests/lib/gateway_fixture.h); node 1's
 * own is not joinable unless `local` says so, so that its joins travel to the others. */
#ifndef SKERRY_TESTS_LIB_GATEWAY_NODES_H
#define SKERRY_TESTS_LIB_GATEWAY_NODES_H

#include "tests/lib/gateway_expect.h"
#include "tests/lib/secure_pair.h"

enum { NODES_MAX = 3 };

struct gateway_nodes;
struct gateway_node {
    struct gateway_nodes *all;
    node_id id;
    bool up;
    struct gateway_fixture f;
    struct instance_id instance; /* its only one; stays the same while the node is away */
    struct secure_listener *listener;
    struct sockaddr_storage address; /* where it takes streams */
    _Atomic bool dead;               /* by gossip */
    _Atomic bool lost;               /* its instance has ended, as the registry says */
    _Atomic uint32_t load;
};

struct gateway_nodes {
    struct gateway_node nodes[NODES_MAX]; /* nodes[0] is node 1 */
    unsigned count;
    struct secure_world world; /* keys; its loop is unused */
    uv_loop_t loop;            /* the control thread's, for all */
    uv_thread_t control;
    uv_async_t wake;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    void (*command)(struct gateway_nodes *n, unsigned index);
    unsigned command_index;
    _Atomic bool local;      /* node 1's instance may be joined there */
    _Atomic bool no_owners;  /* nothing is known to be joinable elsewhere */
    _Atomic node_id sent_to; /* what control answers as `elsewhere` */
    _Atomic unsigned asks, asks_forwarded;
    _Atomic node_id refused_seen; /* the first of `refused` in the last question */
    char key_asked[64];           /* of the last question; under the mutex */
};

struct gateway_nodes_options {
    unsigned count;                         /* 2 or 3 */
    struct gateway_fixture_options fixture; /* of each; what makes it a node is set here */
};
void gateway_nodes_start(struct gateway_nodes *n, const struct gateway_nodes_options *options);
void gateway_nodes_stop(struct gateway_nodes *n);
/* Node n->nodes[index] is gone, with its streams broken; its port refuses. */
void gateway_nodes_kill(struct gateway_nodes *n, unsigned index);
/* And comes back, at the same address, with another instance. */
void gateway_nodes_revive(struct gateway_nodes *n, unsigned index);

/* Tear-down: *state is from malloc. */
int gateway_nodes_teardown(void **state);

/* Node 1, which clients ask, and node 2, which has what they ask for. */
static inline struct gateway_fixture *entry(struct gateway_nodes *n)
{
    return &n->nodes[0].f;
}

static inline struct gateway_fixture *owner(struct gateway_nodes *n)
{
    return &n->nodes[1].f;
}

#endif
