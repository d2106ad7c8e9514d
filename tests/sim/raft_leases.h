/* tests/sim/raft_leases.h - leases of the members and exclusive instances on them: scheduler/leases on both
 * sides, renewals over the simulated network, confirmed by barriers, and a runner on each node that ends
 * instances at their deadlines whatever becomes of the member's process.
 *
 * Checked: no two running instances of one key, at any time. */
#ifndef SKERRY_TESTS_SIM_RAFT_LEASES_H
#define SKERRY_TESTS_SIM_RAFT_LEASES_H

#include "tests/sim/raft_world.h"

struct leases;

/* What LEASE_DRIFT_PERCENT allows two clocks to be apart, shared between them: 1.05 >= 1.024 / 0.976. */
#define LEASES_DRIFT_PPM_MAX 24000

/* The workload "excl" must be there. */
struct leases *leases_new(struct world *w);
/* After world_free. */
void leases_free(struct leases *l);
struct leases_counts {
    uint64_t renewed, started, expired;
};
struct leases_counts leases_counts(const struct leases *l);

#endif
