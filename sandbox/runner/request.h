/* sandbox/runner/request.h - what the node says, checked before anything is done with it.
 *
 * Pure: no descriptor, no clock. The node is the network's first prey and therefore hostile here:
 * every length, id, path and number is held against the runner's own bounds. */
#ifndef SKERRY_SANDBOX_RUNNER_REQUEST_H
#define SKERRY_SANDBOX_RUNNER_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/runner.pb-c.h"

#define REQUEST_BYTES_MAX (256 * 1024)
#define REQUEST_ARGUMENTS_MAX 1024
#define REQUEST_ARGUMENTS_BYTES_MAX (96 * 1024) /* all of them; the agent takes 128 KiB a message */
#define REQUEST_SOCKETS_MAX 64
#define REQUEST_GRACE_MS_MAX (3600u * 1000)

struct request_bounds {
    const char *const *profiles; /* beside strict */
    size_t profile_count;
    bool egress, io;
    uint64_t cpu_thousandths, memory_bytes, pids, disk_bytes, log_bytes;
    uint64_t bandwidth_bytes, io_bytes; /* a second */
};

/* On success *out is a checked request, to be freed with skerry__runner__request__free_unpacked.
 * -ERR_PROTOCOL: not a request at all. Any other error: *out is set too, so that it can be
 * answered. */
int request_parse(Skerry__Runner__Request **out, const void *data, size_t length,
                  const struct request_bounds *bounds, struct err *e) ERR_CHECKED;

#endif
