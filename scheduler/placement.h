/* scheduler/placement.h - on which node an instance starts: a decision, nothing else.
 *
 * Local first; else the less loaded of two random ones that may have it (Mitzenmacher, "The Power of Two
 * Choices", 2001). Loads are gossip's hints; the owner's own answer is the truth, and a refusal leads
 * to the next node.
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
    bool refused; /* said no to this very start */
    const struct gossip_meta *meta;
    const struct gossip_load *load;
    uint32_t of_workload; /* live instances of it there, by the registry */
};

/* 0: no node may have it; *why (static text) says what most of them lack. */
node_id placement_choose(const struct workload *w, const struct placement_node *nodes, size_t count,
                         uint64_t random, const char **why);
/* Whether the constraints of `placement:` (zone, labels) hold there, whatever its load. */
bool placement_allows(const struct workload *w, const struct gossip_meta *meta);
/* In thousandths: the fullest of instances, cpu and memory against capacity. */
uint32_t placement_load(const struct gossip_meta *meta, const struct gossip_load *load);

#endif
