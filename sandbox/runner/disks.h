/* sandbox/runner/disks.h - the disks that instances read from: what the machine shows them lies there, or the
 * store of layers.
 *
 * All that an instance writes lies in memory, so reading is what it can do to a disk. The kernel limits whole
 * disks: a partition counts as its disk. What is made of disks (LVM, RAID, encryption) is one itself. */
#ifndef SKERRY_SANDBOX_RUNNER_DISKS_H
#define SKERRY_SANDBOX_RUNNER_DISKS_H

#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"

#define DISKS_MAX 8

struct disks {
    struct disk {
        unsigned major, minor;
    } list[DISKS_MAX];
    size_t count;
    char lack[256]; /* why there are none; "": there are */
};

/* `store`: the folder of layers. All of them or none: a limit that holds for a part of what is read is none. */
void disks_find(struct disks *out, const char *store);
/* Adds that of the file or folder, unless that is kept in memory. */
int disks_add(struct disks *disks, const char *path, struct err *e) ERR_CHECKED;
/* Adds the disk that a device of blocks is or is a part of; -ERR_UNSUPPORTED: it is none. */
int disks_add_device(struct disks *disks, dev_t device, struct err *e) ERR_CHECKED;

#endif
