/* node/cluster/confirm.h - a node that has lost touch with the registry asks others whether it still is one.
 *
 * Who was removed while it was away, stood still or was cut off hears it from nobody: raft leads it no
 * more and every port refuses its key. Only the handshake's port still answers it, with the word of a
 * node whose key it knows.
 *
 *     in touch --CONFIRM_AFTER_MS without a leader--> asks one --REMOVED--> options.removed
 *        ^                                              | member, not known yet, busy, silent
 *        '---- a leader is there again ----------- CONFIRM_EVERY_MS: the next one
 *
 * One at a time, chosen at random by `peer`: when a whole cluster has lost its quorum, nobody is asked by
 * all the others at once.
 *
 * Thread: the control loop. Time: milliseconds of a monotonic clock. */
#ifndef SKERRY_NODE_CLUSTER_CONFIRM_H
#define SKERRY_NODE_CLUSTER_CONFIRM_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "base/secure_stream.h"
#include "node/cluster/membership.h"

/* Longer than an election; what a peer takes to answer is a fraction of the second. */
#define CONFIRM_AFTER_MS 2000u
#define CONFIRM_EVERY_MS 3000u

struct confirm;

struct confirm_options {
    uv_loop_t *loop;
    struct secure_context *secure; /* of this node, with the keys of the others */
    const struct membership *membership;
    const char *name; /* of this node */
    void *user;
    /* Another node, any, and its handshake's address; false: nobody is known. */
    bool (*peer)(void *user, node_id *id, struct sockaddr_storage *out);
    /* Once, out of the loop: that node says that this one was removed. */
    void (*removed)(void *user, node_id by);
};
/* What the options point to stays until it is closed. */
int confirm_open(struct confirm **out, const struct confirm_options *options,
                 struct err *e) ERR_CHECKED;
/* Some times a second. */
void confirm_tick(struct confirm *c, uint64_t now_ms, bool in_touch);
void confirm_close(struct confirm *c, void (*cb)(void *user));

#endif
