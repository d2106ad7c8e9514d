/* sandbox/runner/image_sandbox.h - one function, run by a child that has one folder and nothing
 * else.
 *
 * The child lives in user, mount, pid, ipc, uts, network and cgroup namespaces of its own; its ids
 * 0..65535 are IMAGE_UID_BASE.. outside; `tree_fd` is its root, mounted nosuid, nodev and noexec;
 * it has three descriptors (below), the capabilities to make files of any owner or none at all, no
 * new privileges, limits, and a list of allowed system calls. It dies with its parent. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_SANDBOX_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_SANDBOX_H

#include <sys/types.h>

#include "sandbox/runner/image.h"

#define IMAGE_SANDBOX_INPUT_FD 0
#define IMAGE_SANDBOX_REPORT_FD 1
#define IMAGE_SANDBOX_TREE_FD 3

struct image_sandbox {
    int tree_fd; /* the folder that becomes its root; all three stay the caller's */
    int input_fd;
    int report_fd;
    bool read_only; /* the tree; and of the capabilities only the one to read everything */
    uint64_t file_bytes_max;
    uint32_t cpu_seconds_max;
};

/* In the child only `run` is called, and the child exits with its result. `failed` is NULL, or why
 * the sandbox could not be made: then `run` does nothing but tell. The caller is single-threaded
 * and root, and waits for `*out_pid`. */
int image_sandbox_start(pid_t *out_pid, const struct image_sandbox *sandbox,
                        int (*run)(const void *user, const struct err *failed), const void *user,
                        struct err *e) ERR_CHECKED;

#endif
