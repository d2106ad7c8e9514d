/* sandbox/runner/net_link.h - interfaces, by rtnetlink, in the namespace of the socket.
 *
 * Thread: the runner's only one. */
#ifndef SKERRY_SANDBOX_RUNNER_NET_LINK_H
#define SKERRY_SANDBOX_RUNNER_NET_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct nl_sock;

/* Of the namespace that the thread is in; stays of it. */
int net_link_socket(struct nl_sock **out, struct err *e) ERR_CHECKED;
void net_link_socket_close(struct nl_sock *socket);

/* A pair: `name` here, down, and `peer` in the namespace `peer_fd`, down. EEXIST in e->sys when one of
 * the names is taken. */
int net_link_pair(struct nl_sock *socket, const char *name, const char *peer, int peer_fd,
                  unsigned mtu, struct err *e) ERR_CHECKED;
/* Gives it one of two addresses of a /31 and raises it. */
int net_link_raise(struct nl_sock *socket, const char *name, uint32_t address,
                   struct err *e) ERR_CHECKED;
int net_link_default_route(struct nl_sock *socket, const char *name, uint32_t gateway,
                           struct err *e) ERR_CHECKED;
/* Lets it send at most so many bytes a second (1 to NET_BANDWIDTH_MAX), with bursts of 20 ms of that or one
 * packet of the largest; what comes faster waits for 50 ms, then it is dropped: tc-tbf(8). */
#define NET_BANDWIDTH_MAX (1024u * 1024 * 1024)
int net_link_bound(struct nl_sock *socket, const char *name, uint64_t bytes_per_second,
                   struct err *e) ERR_CHECKED;
/* 29 ms: only for what an earlier namespace has left. One that is not there is no error. */
int net_link_delete(struct nl_sock *socket, const char *name, struct err *e) ERR_CHECKED;

struct net_link_bytes {
    uint64_t received, sent; /* by the interface */
};
/* False when it is not there. */
bool net_link_bytes(struct nl_sock *socket, const char *name, struct net_link_bytes *out);
/* 0 when it is not there. */
unsigned net_link_mtu(struct nl_sock *socket, const char *name);

#endif
