/* sandbox/runner/seccomp.h - system call profiles, compiled to BPF once.
 *
 * The filter is loaded by the agent as the last step before exec; libseccomp needs 3 ms to build
 * one, so it is done when the runner starts and never again. */
#ifndef SKERRY_SANDBOX_RUNNER_SECCOMP_H
#define SKERRY_SANDBOX_RUNNER_SECCOMP_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct seccomp_filter {
    uint8_t *program; /* struct sock_filter[] */
    size_t size;      /* bytes */
};

/* The names of all profiles, ended by NULL. */
const char *const *seccomp_profile_names(void);
int seccomp_filter_compile(struct seccomp_filter *out, const char *profile,
                           struct err *e) ERR_CHECKED;
void seccomp_filter_free(struct seccomp_filter *filter);

#endif
