/* node/control/metrics.h - what /metrics says, in Prometheus' text format (version 0.0.4): base units, one
 * HELP and TYPE a family, histograms cumulative.
 *
 * Thread: any. */
#ifndef SKERRY_NODE_CONTROL_METRICS_H
#define SKERRY_NODE_CONTROL_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buffer.h"
#include "gateway/ssh.h"
#include "node/node.h"

struct metrics_process {
    double cpu_seconds;
    uint64_t resident_bytes, virtual_bytes;
    uint64_t open_fds, max_fds;
    double start_time_seconds; /* since 1970 */
};
/* What of it cannot be read is 0. Reads /proc, which waits for no disk. */
void metrics_process_read(struct metrics_process *out);

struct metrics_input {
    const char *version, *node_name;
    const struct node_metrics *node;
    const struct gateway_counters *gateway;
    unsigned gateway_connections;
    const uint64_t *api_requests; /* by status class, 6; 0: broken */
    uint64_t instances_by_state[INSTANCE_STATE_COUNT];
    struct metrics_process process;
    struct ssh_front_counters ssh;
};
#define METRICS_BYTES_MAX (256 * 1024)
/* Appends; false when `out` is at its bound or memory is gone. */
bool metrics_write(struct buffer *out, const struct metrics_input *in);

#endif
