/* tests/sim/sim_store.h - memory for a cluster in one process: of what its nodes keep, equal bytes exist
 * once, as long as one of them keeps them. */
#ifndef SKERRY_TESTS_SIM_SIM_STORE_H
#define SKERRY_TESTS_SIM_SIM_STORE_H

#include "gossip/gossip.h"

struct sim_store;

struct sim_store *sim_store_new(void);
void sim_store_free(struct sim_store *s); /* all must have been dropped */
/* As an option of gossip. */
struct gossip_store sim_store_for_gossip(struct sim_store *s);

#endif
