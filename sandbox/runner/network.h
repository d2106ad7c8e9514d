/* sandbox/runner/network.h - the network namespace of an instance, and sockets made inside it.
 *
 * A namespace is made by the runner before the instance's user namespace exists, so it belongs to
 * the machine: nothing inside can raise a link, open a packet socket or touch its rules.
 *
 * Thread: the runner's only one. Each call leaves the thread in the namespace it came from. */
#ifndef SKERRY_SANDBOX_RUNNER_NETWORK_H
#define SKERRY_SANDBOX_RUNNER_NETWORK_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct network; /* knows the machine's own namespace */
int network_open(struct network **out, struct err *e) ERR_CHECKED;
void network_close(struct network *network);
/* The machine's own namespace; stays ours. */
int network_host(const struct network *network);

/* A namespace with loopback up, where any user may bind any port. *out_fd is the caller's. */
int network_namespace_make(struct network *network, int *out_fd, struct err *e) ERR_CHECKED;
/* Into the namespace and back. Leaving must not fail: a runner that served from within an
 * instance's network would be open to it. */
int network_enter(struct network *network, int namespace_fd, struct err *e) ERR_CHECKED;
void network_leave(struct network *network);

/* `count` unconnected, non-blocking TCP sockets that live in the namespace. All or none. */
int network_sockets(struct network *network, int namespace_fd, bool ipv6, int *out, size_t count,
                    struct err *e) ERR_CHECKED;

#endif
