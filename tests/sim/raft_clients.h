/* tests/sim/raft_clients.h - clients of the simulated registry: they deploy workloads, reserve and end
 * instances with and without keys, make and revoke tokens, at any member, and tell the checks what they
 * were answered. */
#ifndef SKERRY_TESTS_SIM_RAFT_CLIENTS_H
#define SKERRY_TESTS_SIM_RAFT_CLIENTS_H

#include "tests/sim/raft_world.h"

struct clients;

/* They begin at once; a write each `pause_us` on average, now and then many together. */
struct clients *clients_new(struct world *w, uint64_t pause_us);
/* After world_free. */
void clients_free(struct clients *c);
void clients_stop(struct clients *c);
/* One write at member i, apart from the others', unless one is under way. */
void clients_probe(struct clients *c, uint32_t i);
/* One has been done. */
bool clients_probe_acknowledged(const struct clients *c);
/* Of those that were asked, those that have been told what became of them. */
uint64_t clients_asked(const struct clients *c);
uint64_t clients_answered(const struct clients *c);

#endif
