/* scheduler/placement.h - on which node an instance starts: a decision, nothing else.
 *
 * Local first; else the less loaded of two random ones that may have it (Mitzenmacher, "The Power of Two
 * Choices", 2001). With `spread`, only the nodes (or the nodes of the zones) that have the fewest instances
 * of the workload are looked at. Loads are gossip's hints; the owner's own answer is the truth, and a
 * refusal leads to the next node.
 *
 * Thread: any. */
#ifndef SKERRY_SCHEDULER_PLACEMENT_H
#define SKERRY_SCHEDULER_PLACEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/id.h"
#include "base/workload.h"
#include "gossip/gossip.h"

struct placement_node {
    node_id id;
    bool self;
    bool alive, leased, draining;
    bool refused;                   /* said no to this very start */
    const struct gossip_meta *meta; /* NULL: not known; then it has neither zone nor labels */
    const struct gossip_load *load; /* NULL: not known */
    uint32_t of_workload;           /* live instances of it there, by the registry */
};

/* How many nodes lack what; each is counted once, for the first that it lacks in this order. */
struct placement_lacks {
    uint32_t nodes, dead, unleased, draining, refused, zone, labels, full;
};

/* 0: no node may have it, and *lacks says why. `random` decides between equals. */
node_id placement_choose(const struct workload *w, const struct placement_node *nodes, size_t count,
                         uint64_t random, struct placement_lacks *lacks);
/* "of 3 nodes 2 run as many instances as they may (limits.instances_max), 1 is being drained" */
void placement_why(const struct placement_lacks *lacks, char *out, size_t size);
/* Whether the constraints of `placement:` (zone, labels) hold there, whatever its load. */
bool placement_allows(const struct workload *w, const struct gossip_meta *meta);
/* In thousandths: the fullest of instances, cpu and memory against capacity; what is not known of
 * either is not counted. */
uint32_t placement_load(const struct gossip_meta *meta, const struct gossip_load *load);

#endif
