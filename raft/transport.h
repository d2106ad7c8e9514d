/* raft/transport.h - raft's messages between nodes, as libraft's libuv back-end wants to send them.
 *
 * That back-end (raft_uv) asks its transport for plain streams: one to each other server for what it
 * sends, and one for each server that sends to it. Here each is a socketpair with a relay behind it
 * (base/secure_relay.h) and TLS behind that:
 *
 *     raft_uv --pipe-- relay ==hello, then frames== relay --pipe-- raft_uv
 *
 * - Who a stream comes from is what its handshake proved. What a server calls "address" is its id in
 *   decimal; where a node is, is asked at each connect, since nodes move.
 * - The connecting side says first from which generation of the cluster it is (`recover` begins a new
 *   one). One of another generation is refused: its log is another history, and raft itself would take
 *   the longer one. Generation 0 is a node that holds nothing yet.
 * - At most one stream from each node: the newer replaces the older.
 * - Streams of a node that was removed close (transport_review).
 *
 * Signals: SIGPIPE must be ignored, since raft_uv writes to pipes whose relay has ended.
 * Thread: the loop's. */
#ifndef SKERRY_RAFT_TRANSPORT_H
#define SKERRY_RAFT_TRANSPORT_H

#include <raft/uv.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/err.h"
#include "base/id.h"
#include "base/secure_stream.h"

/* Streams at the same time, both ways together: whoever comes then is refused. */
#define TRANSPORT_LINKS_MAX 2048u

struct transport;

struct transport_options {
    struct secure_context *secure; /* NULL: nobody is reached and nobody comes */
    void *user;
    bool (*address)(void *user, node_id id, struct sockaddr_storage *out);
    uint64_t (*generation)(void *user);
    /* The last stream of that node to here has ended: its process has, or the way is broken. May be NULL. */
    void (*lost)(void *user, node_id id);
};

int transport_new(struct transport **out, uv_loop_t *loop, const struct transport_options *options,
                  struct err *e) ERR_CHECKED;
/* After raft_uv has closed it, or never began to use it. */
void transport_free(struct transport *t);
/* What raft_uv_init gets. */
struct raft_uv_transport *transport_uv(struct transport *t);
/* Takes an open stream that another node asked for. */
void transport_accept(struct transport *t, struct secure_stream *s);
/* The keys that are believed may have changed: streams of nodes that have none any more close. */
void transport_review(struct transport *t);
size_t transport_links(const struct transport *t);

#endif
