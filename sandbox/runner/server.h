/* sandbox/runner/server.h - the one connection of the node.
 *
 * Whoever connects must be the node's user or root. A second connection is refused while the first
 * lives. What the node sends that is not a request, or brings a descriptor, ends the connection; so
 * does a node that does not read: nothing here ever blocks, and the queue has a bound. Instances do
 * not notice any of this. */
#ifndef SKERRY_SANDBOX_RUNNER_SERVER_H
#define SKERRY_SANDBOX_RUNNER_SERVER_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/runner.pb-c.h"

struct runner;
struct server;

#define SERVER_QUEUE_MESSAGES_MAX 4096
#define SERVER_QUEUE_BYTES_MAX (8u * 1024 * 1024)

int server_open(struct server **out, struct runner *r, struct err *e) ERR_CHECKED;
void server_close(struct server *s);

/* Whom to answer. An answer to a connection that is gone is dropped. */
struct asker {
    uint64_t connection;
    uint64_t seq;
};

/* Descriptors are taken (closed here when they were sent or could not be). `error` NULL: done. */
void server_answer(struct server *s, const struct asker *to, const struct err *error,
                   Skerry__Runner__Reply *reply, const int *descriptors, size_t count);
/* Dropped when no node is connected: it lists what there is when it comes. NULL server is fine. */
void server_tell(struct server *s, const Skerry__Runner__Event *event);

#endif
