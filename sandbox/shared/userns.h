/* sandbox/shared/userns.h - the user namespace in which a user without privileges is root.
 *
 *     MACHINE  root of the machine: it needs none, all user ids are its own
 *     RANGE    newuidmap(1) has given it the user's subordinate ids (/etc/subuid): 0 inside is the user, 1 to
 *              65,536 are they
 *     ONE      nobody gave any: 0 inside is the user, and there is nobody else
 *
 * Whether the kernel lets an ordinary user make one is found out by making one; what forbids it is named,
 * with the remedy.
 *
 * Thread: the calling process has one. */
#ifndef SKERRY_SANDBOX_SHARED_USERNS_H
#define SKERRY_SANDBOX_SHARED_USERNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

enum userns_ids { USERNS_MACHINE, USERNS_RANGE, USERNS_ONE };

/* Of the subordinate ids, as many as an instance has. */
#define USERNS_RANGE_IDS 65536u

/* `count` ids from `first` on, of users and of groups alike. */
struct id_range {
    uint32_t first, count;
};

/* What this process may call its own now: MACHINE also for root of a container that has all ids. */
enum userns_ids userns_ids(void);
/* Root, of the machine or of a container: the rest of this file is for everybody else. */
bool userns_is_machine(void);

/* Takes this process into a new one, as its root, and into a network of its own. What stands in the way of
 * RANGE goes to `lack`, "" when it is one. ERR_DENIED: nobody may, and what forbids it. */
int userns_enter(enum userns_ids *out, char *lack, size_t size, struct err *e) ERR_CHECKED;
/* The same in a child that ends: what userns_enter would say. */
int userns_probe(enum userns_ids *out, char *lack, size_t size, struct err *e) ERR_CHECKED;
/* Into the one that an earlier process of this user made, in which, or in one below which, `pid` still
 * lives; and into a network of its own. */
int userns_join(pid_t pid, struct err *e) ERR_CHECKED;

#endif
