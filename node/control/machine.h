/* node/control/machine.h - how busy the machine is that a node runs on.
 *
 * Thread: any; a struct machine belongs to one. Reads /proc, which waits for no disk. */
#ifndef SKERRY_NODE_CONTROL_MACHINE_H
#define SKERRY_NODE_CONTROL_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

struct machine {
    unsigned cpus;
    double cpus_used; /* between the last two reads; 0 after the first */
    uint64_t memory_bytes, memory_used_bytes;
    uint64_t busy_ticks, all_ticks; /* of all processors, since its start */
};

/* The text of /proc/stat; a clock that went back counts as idle. False: not such a text. */
bool machine_take_stat(struct machine *m, const char *text);
/* The text of /proc/meminfo. What programs could still have does not count as used. */
bool machine_take_meminfo(struct machine *m, const char *text);

/* What cannot be read stays as it is. */
void machine_read(struct machine *m);

#endif
