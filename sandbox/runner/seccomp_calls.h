/* sandbox/runner/seccomp_calls.h - which system calls a profile allows, by name.
 *
 * What is in none of the tables answers ENOSYS, so that a program that probes for a newer call falls
 * back to an older one. All lists end with NULL. Calls that depend on their arguments (clone,
 * personality, ioctl, socket, setrlimit) are in seccomp.c. */
#ifndef SKERRY_SANDBOX_RUNNER_SECCOMP_CALLS_H
#define SKERRY_SANDBOX_RUNNER_SECCOMP_CALLS_H

/* Allowed in every profile, but for what `strict` takes away. */
extern const char *const *const seccomp_allowed[];
/* Answer EPERM, but for what `relaxed` allows. */
extern const char *const seccomp_denied[];
extern const char *const seccomp_strict_denied[];
extern const char *const seccomp_relaxed_allowed[];

#endif
