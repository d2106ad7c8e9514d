/* sandbox/runner/blank.h - an empty sandbox: namespaces, control group, network, and a process that
 * waits in it to be told its root and to become the agent.
 *
 *     runner                          blank (process 1 of its pid namespace)
 *     netns, cgroup, clone3  ------>  enters its cgroup, waits
 *     writes its maps
 *     the skeleton of a root ------>  becomes root inside, executes the agent, which makes the
 *                                     skeleton its root and waits
 *     ... until somebody asks
 *     the plan               ------>  finishes its root and locks it: sandbox/shared/bind.h
 *     what the agent is to do
 *
 * The runner does not wait between these: they lie in the channel until the blank reads them, and
 * both work at the same time.
 *
 * The user namespace is made with the effective uid of the instance's own range, so limits that the
 * kernel counts per user (inotify instances, pending signals) are the instance's own, where it has one
 * (powers.h).
 *
 * Thread: one. The blank is a copy of the runner for the moment until it executes the agent; it
 * closes everything that is not its own as its first act and ends when the runner does. */
#ifndef SKERRY_SANDBOX_RUNNER_BLANK_H
#define SKERRY_SANDBOX_RUNNER_BLANK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "sandbox/runner/cgroup.h"
#include "sandbox/runner/network.h"
#include "sandbox/runner/root.h"
#include "sandbox/shared/bind.h"
#include "sandbox/shared/userns.h"

struct blank_options {
    struct id_range ids; /* of the instance */
    const struct cgroup *cgroup;
    struct network *network;
    int network_fd; /* the instance's namespace */
    struct root_base *root_base;
    int agent_fd; /* the sealed agent */
    int null_fd;
    /* NULL: a child of ours, which is waited for if it cannot be made. Else a child of our parent, who
     * waits for it in any case: it is written here by the kernel before the process runs. */
    pid_t *sibling;
};

struct blank {
    pid_t pid;
    int pidfd;
    int channel; /* SOCK_SEQPACKET; later the agent's */
    int store;   /* the tmpfs of its skeleton, until it is bound */
};

int blank_make(struct blank *out, const struct blank_options *options, struct err *e) ERR_CHECKED;
/* Its descriptors; the process is the caller's. */
void blank_close(struct blank *blank);
/* Once. Descriptors stay the caller's. What is sent on the channel behind this is for the agent. */
int blank_bind(struct blank *blank, const struct bind_plan *plan, const int *descriptors,
               size_t count, struct err *e) ERR_CHECKED;
/* True when the datagram is what a blank says that fails; then *out is why. */
bool blank_failure(const void *data, size_t length, struct err *out);

#endif
