/* sandbox/runner/blank.h - an empty sandbox: namespaces, control group, network, and a process that
 * waits in it to be told its root and to become the agent.
 *
 *     runner                          blank (process 1 of its pid namespace)
 *     netns, cgroup, clone3  ------>  enters its cgroup, waits
 *     writes its maps
 *     the plan of its root   ------>  becomes root inside, makes what is in its root
 *     the mounts of its root ------>  attaches them, enters the root
 *     go, with a listener    ------>  makes a second user and mount namespace, which locks all,
 *     what the agent is to do         lowers user.max_* there, executes the agent, which takes
 *                                     over the channel
 *
 * The runner does not wait between these: they lie in the channel until the blank reads them, and
 * both work at the same time.
 *
 * The user namespace is made with the effective uid of the instance's own range, so limits that the
 * kernel counts per user (inotify instances, pending signals) are the instance's own.
 *
 * Thread: one. The blank is a copy of the runner until it executes the agent; it closes everything
 * that is not its own as its first act and ends when the runner does. */
#ifndef SKERRY_SANDBOX_RUNNER_BLANK_H
#define SKERRY_SANDBOX_RUNNER_BLANK_H

#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "sandbox/runner/bind.h"
#include "sandbox/runner/cgroup.h"
#include "sandbox/runner/network.h"

struct blank_options {
    uint32_t uid_base;
    const struct cgroup *cgroup;
    struct network *network;
    int network_fd; /* the instance's namespace */
    int agent_fd;   /* the sealed agent */
    int null_fd;
};

struct blank {
    pid_t pid;
    int pidfd;
    int channel; /* SOCK_SEQPACKET; later the agent's */
};

int blank_make(struct blank *out, const struct blank_options *options, struct err *e) ERR_CHECKED;

/* In this order. Descriptors stay the caller's. What is sent on the channel behind blank_go is for
 * the agent. */
int blank_plan(const struct blank *blank, const struct bind_plan *plan, const int *descriptors,
               size_t descriptor_count, struct err *e) ERR_CHECKED;
int blank_mounts(const struct blank *blank, const struct bind_mounts *mounts,
                 const int *descriptors, struct err *e) ERR_CHECKED;
int blank_go(const struct blank *blank, int listener, struct err *e) ERR_CHECKED;

/* What the blank says when it cannot become the agent: one datagram, which no message of the agent
 * can be, as no protobuf message begins with this word. */
#define BLANK_FAILED 7u
struct blank_message {
    uint32_t word;
    struct err error;
};
/* True when it is that; then *out is why. */
bool blank_failure(const void *data, size_t length, struct err *out);

#endif
