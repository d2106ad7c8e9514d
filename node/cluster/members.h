/* node/cluster/members.h - the node among the others: who it is, what it hears and tells, when it may take part.
 *
 *   members_begin                  who we are: node.json, or a cluster is made, joined, or taken over
 *   members_open                   key, ports, gossip (node/cluster/cluster.h) and the join handshake
 *   registry read, caught up  ->   registered as name, address and key say  ->  node_progress
 *   members_leave                  SIGTERM: leadership is handed over, the others are told
 *
 *   a node removed             ->  what it has open ends, gossip's keys change (node/cluster/members_keyring.c)
 *
 * What asks other nodes goes through members_ask; what they ask and their streams are dispatched here.
 *
 * Thread: the control loop; members_begin before it runs, and blocks. */
#ifndef SKERRY_NODE_CLUSTER_MEMBERS_H
#define SKERRY_NODE_CLUSTER_MEMBERS_H

#include "node/api/api.h"
#include "node/cluster/cluster.h"
#include "node/control/control.h"
#include "node/layers/layers.h"

/* Who this node is; sets n->members and n->id. Joining may take a minute. Refuses with the remedy where
 * the data folder belongs to no cluster and nothing says what to do. */
int members_begin(struct node *n, struct err *e) ERR_CHECKED;
/* Before the registry. Sets n->cluster and n->boot. */
int members_open(struct node *n, struct err *e) ERR_CHECKED;
/* Fills what the registry needs to know of this node and the others. */
void members_registry_options(struct node *n, struct registry_options *out);
void members_api_peers(struct node *n, struct api_peers *out);

/* For layers_options.peers: living nodes, beginning anywhere, so that not all ask the same one. */
size_t members_layers_peers(void *node, struct layers_peer *out, size_t out_max);

/* The registry has a new root; cheap. */
void members_registry_changed(struct node *n);
/* Leadership was gained or lost. */
void members_leader_changed(struct node *n);
/* The runner said what the machine has. */
void members_machine_changed(struct node *n);

/* A question to another node; `answered` once, not out of this call: its error, or what it said. */
typedef void (*members_answered_cb)(void *user, const struct peer_answer *answer);
int members_ask(struct node *n, node_id to, enum cluster_what what, const void *payload,
                size_t size, unsigned timeout_ms, members_answered_cb answered, void *user,
                struct err *e) ERR_CHECKED;

/* SIGTERM: another node shall lead, at once. */
void members_resign(struct node *n);
/* Whether another node lives, as far as is known. */
bool members_others(const struct node *n);
/* Then, when joins are done: the others are told. `cb` at most some seconds later. */
void members_leave(struct node *n, void (*cb)(struct node *n));
/* Nothing is asked or answered any more; before the registry is closed. NULL members are fine. */
void members_stop(struct node *n);
/* After registry, gateway, API and layers, which have streams; `cb` then. */
void members_close(struct node *n, void (*cb)(void *user));

/* What was refused at the ports for nodes, into the metrics; nothing before they are open. */
void members_metrics(const struct node *n, struct node_metrics *out);

#endif
