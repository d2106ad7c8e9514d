/* sandbox/shared/ids.h - which user ids of this machine belong to which runner.
 *
 * Instances of two runners must not share ids: limits that the kernel keeps for a user would be shared,
 * and one's code could signal the other's. Each runner holds a lock on its range of numbers, in a file
 * that only root can reach, for as long as it lives. Its instances outlive it, and their ids with them:
 * a range is given to one configuration for good, and the lock finds two that were given the same.
 *
 * Thread: any; ids_claim blocks for LOCK_WAIT_MS (base/lock.h) at most. */
#ifndef SKERRY_SANDBOX_SHARED_IDS_H
#define SKERRY_SANDBOX_SHARED_IDS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define IDS_LOCK_PATH "/run/skerry-uids.lock"

/* `count` ids from `first` on; *out_fd holds them until it is closed, with any other descriptor of that
 * file. ERR_CONFLICT names the process that has some of them. Needs root. */
int ids_claim(uint64_t first, uint64_t count, int *out_fd, struct err *e) ERR_CHECKED;
/* Whether a runner that lives has some of them. */
bool ids_taken(uint64_t first, uint64_t count);

/* Whether no other runner lives that holds any. `fd`: of ids_claim. */
bool ids_alone(int fd);

#endif
