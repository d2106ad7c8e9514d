/* tests/sim/raft_roles.h - who leads gives out roles, as raft/roles decides by what it can reach. */
#ifndef SKERRY_TESTS_SIM_RAFT_ROLES_H
#define SKERRY_TESTS_SIM_RAFT_ROLES_H

#include "tests/sim/raft_world.h"

struct roles;

struct roles *roles_new(struct world *w, unsigned voters, unsigned standbys);
void roles_free(struct roles *r);
/* Everybody is there, and voters are as many as may be and odd; if not, `why` says what is. */
bool roles_settled(struct roles *r, char *why, size_t size);

#endif
