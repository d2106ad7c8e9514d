/* sandbox/runner/seccomp_agent.h - the agent left alone by code that has the same user id.
 *
 * Where agent and code share an id (powers.h) the kernel would let one change the priority, the limits
 * and the processors of the other. The agent is process 1 of its pid namespace and the code sees no
 * other one, so calls that name process 1 are refused, whatever else the profile says. That it cannot
 * be read or traced needs no filter: it is not dumpable. */
#ifndef SKERRY_SANDBOX_RUNNER_SECCOMP_AGENT_H
#define SKERRY_SANDBOX_RUNNER_SECCOMP_AGENT_H

#include "base/err.h"
#include "sandbox/runner/seccomp.h"

/* Puts these refusals in front of a filter for this machine. */
int seccomp_agent_guard(struct seccomp_filter *filter, struct err *e) ERR_CHECKED;

#endif
