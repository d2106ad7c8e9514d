/* raft/spare_choose.h - which neighbour a spare asks: a pure function of what is known and a seed.
 *
 * Thread: the owner's. */
#ifndef SKERRY_RAFT_SPARE_CHOOSE_H
#define SKERRY_RAFT_SPARE_CHOOSE_H

#include <stddef.h>
#include <stdint.h>

#include "raft/registry.h"

#define SPARE_CHOICE_AVOIDED_MAX 16u

struct spare_choice {
    node_id self;
    uint64_t seed; /* changes with each choice */
    const struct registry_peer *peers;
    size_t peer_count;
    const struct registry_member *members; /* as last heard; none: not known */
    size_t member_count;
    struct {
        node_id id;
        uint64_t until_ms;
    } avoided[SPARE_CHOICE_AVOIDED_MAX];
    size_t avoided_next;
};

/* At random, of those that live: before others one that is not avoided, one that votes or stands by as far
 * as is known, and one of the own zone, in this order. 0: nobody lives. */
node_id spare_choose(struct spare_choice *c, uint64_t now_ms);
/* Not while there are others, until then. */
void spare_avoid(struct spare_choice *c, node_id id, uint64_t until_ms);

#endif
