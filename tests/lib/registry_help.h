/* tests/lib/registry_help.h - what the registry's tests share. */
#ifndef SKERRY_TESTS_LIB_REGISTRY_HELP_H
#define SKERRY_TESTS_LIB_REGISTRY_HELP_H

#include "raft/registry.h"
#include "raft/state.h"

/* The JSON of a workload with all its values, as `deploy` would make it; the caller frees. `more` is
 * added to the file ("scale: {max: 3}\n"), or "". */
char *help_workload_json(const char *name, const char *more);
/* The n-th id of an owner. */
struct instance_id help_instance_id(node_id owner, uint64_t n);
/* A state machine fed by hand: each call of help_apply has the next index and, unless given, the next
 * number of session (node 1, boot 1). */
struct help_state {
    struct state *state;
    uint64_t index, sequence;
};
void help_state_open(struct help_state *h);
void help_state_close(struct help_state *h);
struct registry_result help_apply(struct help_state *h, const struct registry_command *command);
struct state_outcome help_apply_as(struct help_state *h, const struct registry_command *command,
                                   struct command_session session);
/* Registers node `id`, which must be there or the next, as "node<id>" and grants it a lease; the epoch of
 * that. */
uint64_t help_lease(struct help_state *h, node_id id);
struct registry_result help_deploy(struct help_state *h, const char *name, const char *more);
/* For node 1, which needs a lease. */
struct registry_result help_reserve(struct help_state *h, const char *workload, uint64_t version,
                                    uint64_t n, const char *key);
struct registry_result help_end(struct help_state *h, uint64_t n, uint64_t epoch,
                                uint64_t ended_wall_ms);
/* Counts and indexes agree with the instances that there are; aborts if not. */
void help_state_check(const struct state_content *c);

/* An empty folder below /tmp; help_directory_remove removes it and its files. */
char *help_directory(void);
void help_directory_remove(char *path);

#endif
