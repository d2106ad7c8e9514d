/* sandbox/runner/image_process.h - a process of an import or export: the runner's own ELF executed anew, so
 * that it holds nothing of the runner's memory, with three descriptors and no more.
 *
 *     3  a SOCK_SEQPACKET pair: the order is its first message; closed when the process ends
 *     4  its end of the pipe with the archive
 *     5  `folder_fd`
 *
 * Thread: one. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_PROCESS_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"

#define IMAGE_PROCESS_CONTROL_FD 3
#define IMAGE_PROCESS_ARCHIVE_FD 4
#define IMAGE_PROCESS_FOLDER_FD 5

struct image_process {
    const char *argument; /* what main sees as argv[1] */
    const void *order;
    size_t order_size;
    int folder_fd; /* stays the caller's */
    bool writes;   /* the archive; else it reads it */
};

/* The caller reaps `*out_pid`; `*out_control_fd` and `*out_archive_fd`, the other end of the pipe, are
 * its own. */
int image_process_start(pid_t *out_pid, int *out_control_fd, int *out_archive_fd,
                        const struct image_process *process, struct err *e) ERR_CHECKED;

#endif
