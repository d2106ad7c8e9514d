/* tests/sim/raft_model.h - what the registry promises of keys, limits and epochs, modelled from the
 * commands that were committed and their results, without any code of the state machine. */
#ifndef SKERRY_TESTS_SIM_RAFT_MODEL_H
#define SKERRY_TESTS_SIM_RAFT_MODEL_H

#include <stdbool.h>
#include <stddef.h>

#include "raft/command.h"

struct model;

struct model *model_new(void);
void model_free(struct model *m);
/* The next committed command that was not a repetition. False: `why` says what its result violates. */
bool model_apply(struct model *m, const struct command *command,
                 const struct registry_result *result, char *why, size_t size);

#endif
