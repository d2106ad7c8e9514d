/* sandbox/runner/seccomp.h - system call profiles, compiled to BPF once.
 *
 * The filter is loaded by the agent as the last step before exec, and made when the runner starts.
 * libseccomp knows the numbers of the calls; the program is ours (seccomp_program.h), as its own is five
 * times as long, and the kernel translates it at each start.
 *
 *   strict   without tracing, IPC of System V and POSIX, splicing, old asynchronous I/O, attributes
 *            of files, netlink
 *   default  what compilers, interpreters and servers use
 *   relaxed  also io_uring, userfaultfd, every Internet protocol, fixed addresses; a runner.yaml
 *            must allow it
 * None makes a namespace or a mount, in none is there a vsock, packet or raw netlink socket. */
#ifndef SKERRY_SANDBOX_RUNNER_SECCOMP_H
#define SKERRY_SANDBOX_RUNNER_SECCOMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum seccomp_profile { SECCOMP_STRICT, SECCOMP_DEFAULT, SECCOMP_RELAXED, SECCOMP_PROFILE_COUNT };

struct seccomp_filter {
    uint8_t *program; /* struct sock_filter[] */
    size_t size;      /* bytes */
};

const char *seccomp_profile_name(enum seccomp_profile profile);
bool seccomp_profile_find(const char *name, enum seccomp_profile *out);
/* `machine`: an SCMP_ARCH_* of libseccomp; 0: this one. */
int seccomp_filter_compile(struct seccomp_filter *out, enum seccomp_profile profile,
                           uint32_t machine, struct err *e) ERR_CHECKED;
void seccomp_filter_free(struct seccomp_filter *filter);

#endif
