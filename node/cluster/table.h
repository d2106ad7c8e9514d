/* node/cluster/table.h - the nodes that node/cluster/cluster.c knows: keys and addresses, for all threads.
 *
 * What the registry says of a node (key, name, peer address) and what gossip says (its addresses now)
 * stand side by side; a node that only gossip knows has no key, and nobody believes it.
 *
 * Thread: the control loop changes it and reads; others read what cluster_table_key and
 * cluster_table_address copy, under a lock. */
#ifndef SKERRY_NODE_CLUSTER_TABLE_H
#define SKERRY_NODE_CLUSTER_TABLE_H

#include <pthread.h>
#include <stdbool.h>

#include "gossip/gossip.h"
#include "node/cluster/cluster.h"
#include "node/cluster/known.h"

/* Beside those of the registry there may be some that it does not show yet. */
#define CLUSTER_ENTRIES_MAX (KNOWN_NODES_MAX + 64u)

struct cluster_entry {
    struct known_node known; /* id; the rest zero until the registry knows it */
    struct address heard[CLUSTER_PORT_COUNT];
};

struct cluster_table {
    pthread_mutex_t lock;
    struct cluster_entry *entries; /* in order of id */
    size_t count, room;
};

void cluster_table_open(struct cluster_table *t);
void cluster_table_free(struct cluster_table *t);

/* The control loop's view; valid until the next change. NULL: not known. */
const struct cluster_entry *cluster_table_find(const struct cluster_table *t, node_id id);
/* The first one with an id above `id`. */
const struct cluster_entry *cluster_table_above(const struct cluster_table *t, node_id id);
/* The registry's word. -ERR_LIMIT, -ERR_NO_MEMORY. */
int cluster_table_know(struct cluster_table *t, const struct known_node *node,
                       struct err *e) ERR_CHECKED;
/* Gossip's word; false without room. */
bool cluster_table_hear(struct cluster_table *t, node_id id,
                        const struct address addresses[CLUSTER_PORT_COUNT]);
void cluster_table_remove(struct cluster_table *t, node_id id);

/* Any thread. */
bool cluster_table_key(struct cluster_table *t, node_id id, struct identity_public *out);
bool cluster_table_address(struct cluster_table *t, node_id id, enum cluster_port port,
                           struct sockaddr_storage *out);

/* The port of a node whose peer port is the address's. */
void cluster_port_shift(struct sockaddr_storage *address, enum cluster_port port);

#endif
