/* tests/sim/sim_gossip.h - gossip on the simulated nodes, and what must hold of it.
 *
 * Node i has id i + 1. Checked all the time: nobody dead or left comes back without a higher boot or
 * incarnation. Counted: living members pronounced dead. Asked for: that all agree. */
#ifndef SKERRY_TESTS_SIM_SIM_GOSSIP_H
#define SKERRY_TESTS_SIM_SIM_GOSSIP_H

#include "gossip/gossip.h"
#include "tests/sim/sim.h"

struct sim_gossip;

struct sim_gossip *sim_gossip_new(struct sim *sim, uint32_t nodes);
void sim_gossip_free(struct sim_gossip *w);
/* Prints each change of state. */
void sim_gossip_trace(struct sim_gossip *w, bool on);
/* Nodes tell a new load this often; 0: never. */
void sim_gossip_loads(struct sim_gossip *w, uint64_t interval_us);

/* A process on the node starts, with a higher boot than before, and knows the ids of all. */
void sim_gossip_start(struct sim_gossip *w, uint32_t node);
/* All `count` at once, as a cluster that has been running: everybody knows everybody. */
void sim_gossip_start_settled(struct sim_gossip *w, uint32_t count);
void sim_gossip_kill(struct sim_gossip *w, uint32_t node);
void sim_gossip_leave(struct sim_gossip *w, uint32_t node); /* and ends when it may */

/* NULL, or what was violated first. */
const char *sim_gossip_violation(const struct sim_gossip *w);
/* Every running node sees all running ones alive at their own incarnation, and no other alive or
 * suspect. If not, `why` says who sees what. */
bool sim_gossip_agree(const struct sim_gossip *w, char *why, size_t size);

struct sim_gossip_counts {
    uint64_t false_deaths;   /* a running member pronounced or believed dead, per observer */
    uint64_t suspicions;     /* of running ones */
    uint64_t packets, bytes; /* datagrams with seal, UDP and IP header, IPv4 */
    uint64_t sync_bytes;
};
void sim_gossip_counts(const struct sim_gossip *w, struct sim_gossip_counts *out);
void sim_gossip_counts_reset(struct sim_gossip *w);

/* Of the node killed last. */
struct sim_gossip_detection {
    uint64_t first_suspect_us, first_dead_us, all_dead_us; /* since the kill; 0: not yet */
    uint32_t know, living;
};
void sim_gossip_detection(const struct sim_gossip *w, struct sim_gossip_detection *out);
/* The mean age of the others' loads as nodes know them, in steps of the interval; of a large group some
 * nodes are asked. */
uint64_t sim_gossip_load_age_ms(const struct sim_gossip *w);

#endif
