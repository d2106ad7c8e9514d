/* tests/sim/raft_chaos.h - scenarios of the registry: faults at random, then peace, in which all must
 * agree. */
#ifndef SKERRY_TESTS_SIM_RAFT_CHAOS_H
#define SKERRY_TESTS_SIM_RAFT_CHAOS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct raft_chaos_options {
    uint64_t seed;
    bool guard_off;
    bool trace, trace_messages;
};

struct raft_chaos_counts {
    uint64_t asked, acknowledged, committed;
    uint64_t started, expired; /* exclusive instances, leases */
    uint64_t converged_us;     /* after healing */
};

/* False: `why` says what did not hold. */
bool raft_chaos(const struct raft_chaos_options *options, struct raft_chaos_counts *counts,
                char *why, size_t size);

#endif
