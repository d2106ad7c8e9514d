/* gateway/remote.h - streams to other nodes, for joins of instances that live there.
 *
 *     dial -> open -> HEAD+DATA -> granted -> DATA both ways -> END -> idle -> HEAD ...
 *                                `-> refused -> END -> idle
 *
 * A thread has its own, in a pool for each node, one join at a time on each. The owner's END needs not
 * be awaited: what comes before it belongs to the join before. Our END leaves with the next HEAD if
 * that comes in the same turn of the loop, else at its end; so a join costs two packets in each
 * direction at most, and under load one.
 *
 * Thread: the gateway thread that owns it. */
#ifndef SKERRY_GATEWAY_REMOTE_H
#define SKERRY_GATEWAY_REMOTE_H

#include <uthash.h>

#include "base/record.h"
#include "gateway/thread.h"

enum {
    /* Handshakes at the same time, of one thread with one node; whoever waits takes the first stream
     * that is free. A listener has room for 64. */
    DIALS_MAX = 4,
    STREAMS_IDLE_MAX = 256, /* of one thread to one node */
    STREAM_IDLE_MS = 60000,
    STREAM_CONNECT_MS = 1000,
    STREAM_CONNECT_DEAD_MS = 300, /* for a node that gossip calls dead */
    /* After a failed dial nobody else waits for the same. */
    PEER_FAILED_MS = 500,
    /* What goes into one write of a stream, and what may wait in it before: together below
     * SECURE_WRITE_BYTES_MAX_DEFAULT, so that a write is taken whole. */
    STREAM_WRITE_BYTES_MAX = 64 * 1024,
    STREAM_PENDING_BYTES_MAX = 32 * 1024,
};

struct remote {
    struct upstream u; /* as join.c sees it; without connection: opening or idle */
    struct peer *peer;
    struct secure_stream *stream;
    struct record_decoder decoder;
    struct remote *previous, *next; /* all of the thread */
    struct remote *newer, *older;   /* the idle ones of the peer */
    struct remote *due_next;
    bool due;
    bool idle, closing;
    bool reading;            /* what it brought is being taken */
    bool reused;             /* carried a join before */
    bool skipping;           /* what comes up to the next END belongs to the join before */
    bool granted;            /* the owner's HEAD said so */
    bool their_end;          /* the owner's END was seen */
    bool half_sent;          /* our END was, of a tunnel */
    bool lost;               /* a write failed */
    enum record_end end_due; /* 0: none */
    uint8_t end_bytes[RECORD_END_BYTES];
    uint64_t idle_until_ms;
};

struct peer {
    UT_hash_handle hh;
    node_id id;
    struct gateway_thread *thread;
    char name[64];
    struct remote *idle_first, *idle_last; /* newest first */
    unsigned idle_count;
    unsigned dials;
    uint64_t failed_until_ms;
    /* See away.c: since when it is missed, when last (0: it is not), and when the next may ask. */
    uint64_t missed_since_ms, missed_ms, gate_until_ms;
    struct connection *waiting_first, *waiting_last;
    unsigned waiting_count;
};

/* A stream for the exchange, on which its join then is, or a place in the queue for one; goes on with
 * travel_granted, _refused or _failed. False: there is no way to the node. */
bool remote_acquire(struct connection *c, node_id node, bool fresh);
void remote_stop_waiting(struct connection *c);
/* What the thread knows of a node; NULL without memory. Lives as long as the thread. */
struct peer *remote_peer(struct gateway_thread *t, node_id node);
/* Whether a dial failed a moment ago. */
bool remote_failed_lately(struct gateway_thread *t, node_id node);
/* For upstream.c: */
void remote_release(struct remote *r, enum upstream_end end);
void remote_set_mask(struct remote *r, int mask);
enum queue_write remote_flush(struct connection *c);
void remote_end_sending(struct remote *r);
/* For thread.c: */
void remote_prepare(struct gateway_thread *t);
void remote_sweep(struct gateway_thread *t);
/* A node that was removed from the cluster gets nothing more, and what it says is nobody's answer. */
void remote_review(struct gateway_thread *t);
void remote_close_all(struct gateway_thread *t);
void remote_free_all(struct gateway_thread *t);

#endif
