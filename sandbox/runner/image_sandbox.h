/* sandbox/runner/image_sandbox.h - one function, or one program of the machine, run by a child that has
 * one folder and nothing else.
 *
 * The child lives in user, mount, pid, ipc, uts, network and cgroup namespaces of its own; its ids
 * 0, 1, .. are `ids` outside; `tree_fd` is its root, mounted nosuid, nodev and noexec; it has three
 * descriptors (below), the capabilities to make files of any owner or none at all, no new privileges,
 * limits, and a list of allowed system calls. It dies with its parent.
 *
 * A program (struct image_program) is confined in the same way, and may execute. Its root is a small
 * tmpfs, read-only, with the machine's /usr, the folder as /tree and the one file that it may write as
 * /output. Its ids are the same inside, so that it sees owners as they are in the store. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_SANDBOX_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_SANDBOX_H

#include <sys/types.h>

#include "sandbox/runner/image.h"

#define IMAGE_SANDBOX_INPUT_FD 0
#define IMAGE_SANDBOX_REPORT_FD 1
#define IMAGE_SANDBOX_TREE_FD 3

struct image_program {
    const char *path; /* below /usr */
    char *const *argv;
    int output_fd; /* open on a regular file that IMAGE_UID_BASE owns */
};

struct image_sandbox {
    int tree_fd; /* the folder that becomes its root; all three stay the caller's */
    int input_fd;
    int report_fd;  /* of a program: its standard error */
    bool read_only; /* the tree; and of the capabilities only the one to read everything */
    const struct image_program *program; /* NULL: none, `run` does the work */
    uint64_t file_bytes_max;
    uint32_t cpu_seconds_max;
    struct id_range ids;
};

/* In the child only `run` is called, and the child exits with its result. `failed` is NULL, or why
 * the sandbox could not be made: then `run` does nothing but tell. With a program, `run` is called only
 * if that could not be executed. The caller is a process of image_process.h: single-threaded, root, and not
 * for long, as a descriptor stays open in it; it waits for `*out_pid`. */
int image_sandbox_start(pid_t *out_pid, const struct image_sandbox *sandbox,
                        int (*run)(const void *user, const struct err *failed), const void *user,
                        struct err *e) ERR_CHECKED;
/* Waits for it, and kills it at the deadline: -ERR_TIMEOUT. It is reaped in any case. */
int image_sandbox_wait(pid_t pid, uint64_t deadline_ms, int *out_status, struct err *e) ERR_CHECKED;

#endif
