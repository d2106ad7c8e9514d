/* node/cluster/elsewhere.h - what the gateway needs of other nodes, as an immutable table that is published with
 * the routes: who they are, and which of them have joinable instances of a workload.
 *
 * It is made from the registry's root and gossip's word on the control thread, when one of them has
 * changed, and not so often that it takes more than a twentieth of that thread.
 *
 * Thread:  made, held and dropped on the control loop; read on any while a holder of the routes holds
 *          them. */
#ifndef SKERRY_NODE_CLUSTER_ELSEWHERE_H
#define SKERRY_NODE_CLUSTER_ELSEWHERE_H

#include "gateway/gateway.h"

struct cluster;
struct elsewhere;
struct registry_root;

/* NULL without memory. */
struct elsewhere *elsewhere_new(struct cluster *cluster, const struct registry_root *root);
struct elsewhere *elsewhere_hold(struct elsewhere *e); /* NULL: NULL */
void elsewhere_drop(struct elsewhere *e);              /* NULL: nothing */

/* owners and owner_count of out; out->name and version are set. */
void elsewhere_owners(const struct elsewhere *e, struct gateway_workload *out);
bool elsewhere_alive(const struct elsewhere *e, node_id id);
/* All but the address. */
bool elsewhere_peer(const struct elsewhere *e, node_id id, struct gateway_peer *out);

#endif
