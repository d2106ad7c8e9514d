/* sandbox/runner/rootless.h - the runner of an ordinary user, on its way to where it is root.
 *
 * It enters a user namespace (sandbox/shared/userns.h): the one that instances of an earlier runner of
 * this folder still live in, for only there it may speak for them, or a new one. Then it executes itself
 * again: what its memory is from then on belongs to that namespace, also in the eyes of /proc. */
#ifndef SKERRY_SANDBOX_RUNNER_ROOTLESS_H
#define SKERRY_SANDBOX_RUNNER_ROOTLESS_H

#include "base/err.h"
#include "sandbox/runner/runner.h"

/* The argument that main gets then, with what is lacking behind it. */
#define ROOTLESS_ARGUMENT "inside"

/* Returns only if it fails. `argv` as main got it. */
int rootless_enter(const struct runner_options *options, char *const *argv,
                   struct err *e) ERR_CHECKED;

#endif
