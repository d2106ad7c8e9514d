/* sandbox/shared/agent_check.h - what the agent takes from a runner, bounded before it acts.
 *
 * The runner checks the node's wishes against its own limits; the agent checks again only what it
 * would break on itself. Needs libc and protobuf-c alone. */
#ifndef SKERRY_SANDBOX_SHARED_AGENT_CHECK_H
#define SKERRY_SANDBOX_SHARED_AGENT_CHECK_H

#include "base/err.h"
#include "sandbox/agent.pb-c.h"

#define AGENT_MESSAGE_BYTES_MAX (128 * 1024)
/* The agent's own uid and gid inside; no command may have it. */
#define AGENT_UID 65535u
/* Commands at the same time, main and the health check included. */
#define AGENT_COMMANDS_MAX 64
#define AGENT_DESCRIPTORS_MAX 3
/* The kernel takes at most 4,096 instructions of 8 bytes. */
#define AGENT_SECCOMP_BYTES_MAX (4096 * 8)

/* -ERR_INVALID names what is wrong with `message`, which came with `descriptor_count`. */
int agent_check(const Skerry__Agent__ToAgent *message, size_t descriptor_count,
                struct err *e) ERR_CHECKED;

#endif
