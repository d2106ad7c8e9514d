/* tests/lib/registry_help.h - what the registry's tests share. */
#ifndef SKERRY_TESTS_REGISTRY_HELP_H
#define SKERRY_TESTS_REGISTRY_HELP_H

#include "raft/registry.h"

/* The JSON of a workload with all its values, as `deploy` would make it; the caller frees. `more` is
 * added to the file ("scale: {max: 3}\n"), or "". */
char *help_workload_json(const char *name, const char *more);
/* The n-th id of an owner. */
struct instance_id help_instance_id(node_id owner, uint64_t n);
/* An empty folder below /tmp; help_directory_remove removes it and its files. */
char *help_directory(void);
void help_directory_remove(char *path);

#endif
