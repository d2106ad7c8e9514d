/* node/control/certain.h - "there is no such thing" is said only after a strong read: a follower learns of a commit
 * up to a heartbeat late.
 *
 *   wait -> gathered --registry_read--> reading -> sure      the root held all that was committed before
 *                \-----CERTAIN_WAIT_MS-----/    -> not sure   no leader answered in time
 *
 * One read is under way at a time, at most one each CERTAIN_PAUSE_MS; all that wait when it begins share it. The
 * leader of a registry with one voter needs none.
 *
 * Thread: the control loop. Bounds: CERTAIN_WAITING_MAX; who comes above it is not sure at once. */
#ifndef SKERRY_NODE_CONTROL_CERTAIN_H
#define SKERRY_NODE_CONTROL_CERTAIN_H

#include <stdbool.h>

#include "base/err.h"

#define CERTAIN_WAIT_MS 1000u
#define CERTAIN_PAUSE_MS 10u
#define CERTAIN_WAITING_MAX 10000u

struct node;

int certain_open(struct node *n, struct err *e) ERR_CHECKED;
/* After the registry was closed; whoever waits still is not sure. */
void certain_close(struct node *n);

/* `cb` once, in this call or later. */
typedef void (*certain_cb)(void *user, bool sure);
void certain_wait(struct node *n, certain_cb cb, void *user);

#endif
