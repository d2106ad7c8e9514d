/* tests/sim/gossip_chaos.h - scenarios of gossip, each from a seed. */
#ifndef SKERRY_TESTS_SIM_GOSSIP_CHAOS_H
#define SKERRY_TESTS_SIM_GOSSIP_CHAOS_H

#include <stdbool.h>
#include <stdint.h>

struct gossip_failure {
    char text[600];
};

/* Faults at random, then peace, in which all must agree. */
bool gossip_chaos(uint64_t seed, bool trace, struct gossip_failure *f);
/* A healthy network with slow members: nobody is pronounced dead, but who is killed. */
bool gossip_healthy(uint64_t seed, bool trace, struct gossip_failure *f);
/* Prints times and bytes for groups up to that size, `slow`: and of those with slow members; false if one
 * of them was wrong. 10,000 take some 9 GiB of memory. */
bool gossip_table(uint32_t nodes_max, bool slow, uint64_t seed);

#endif
