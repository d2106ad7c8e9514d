/* base/secure_stream.h - TCP and TLS 1.3 between two nodes that know each other's keys.
 *
 * Both sides show a self-signed certificate (base/identity.h). It is accepted when its key is the one
 * that `key_of` returns for the node that it names: that map is the only authority. There are no
 * sessions, tickets or early data, so that no stream begins without that question. The name of the
 * protocol (ALPN) says what flows inside; a side that was asked for another closes.
 *
 * A stream behaves like a non-blocking socket under uv_poll: `ready` says that something may be
 * possible, read and write do it or say BLOCKED. What is not read stays with the sender (TCP's
 * back-pressure), what is written and cannot leave waits here up to write_bytes_max. END is a half
 * close: the other direction goes on. Without END a closed connection is BROKEN, never an end.
 *
 * An asking side's stream opens when the other has greeted it, so that it never seems open to a
 * node that then refuses it.
 *
 *     connect -> handshake -> greeting -> opened(NULL) -> ready* -> close -> closed
 *                    any failure, or the deadline -> opened(error) -> close -> closed
 *
 * Thread:  everything of a stream on its loop's; secure_stream_detach moves it to another. A context
 *          may serve several threads if `key_of` may be called there.
 * Memory:  a stream is gone when the callback of secure_stream_close was called. A parked one holds
 *          no buffers.
 * Closing: secure_stream_close may be called in any callback of the stream. */
#ifndef SKERRY_BASE_SECURE_STREAM_H
#define SKERRY_BASE_SECURE_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <uv.h>

#include "base/err.h"
#include "base/identity.h"
#include "base/refusals.h"

/* What flows inside; the names are on the wire. */
enum secure_protocol {
    SECURE_JOIN,   /* "skerry-join/1": forwarded joins, base/record.h */
    SECURE_RAFT,   /* "skerry-raft/1": raft's own messages, base/secure_relay.h */
    SECURE_IMAGE,  /* "skerry-image/1" */
    SECURE_ENROLL, /* "skerry-enroll/1": a machine that is no member yet asks to become one */
    SECURE_API,    /* "skerry-api/1": a request of the API for the owner, node/api/relay.h */
    SECURE_ERRAND, /* "skerry-errand/1": a command or start that another node does, node/errands/errands.h */
    SECURE_SPARE, /* "skerry-spare/1": the registry for a node that is no member of raft, raft/spare_wire.h */
    SECURE_PROTOCOL_COUNT
};
const char *secure_protocol_name(enum secure_protocol protocol);

/* --- who we are and whom we believe --------------------------------------------------------------- */

struct secure_context;

struct secure_context_options {
    const struct identity *identity;
    node_id id; /* of this node; 0 while it is none */
    /* The key that node `id` must have; false when it has none, as one that was removed. On the
     * thread of the stream that asks. */
    bool (*key_of)(void *user, node_id id, struct identity_public *out);
    void *user;
};

int secure_context_open(struct secure_context **out, const struct secure_context_options *options,
                        struct err *e) ERR_CHECKED;
/* After all its streams and listeners were closed. */
void secure_context_free(struct secure_context *context);

/* --- streams -------------------------------------------------------------------------------------- */

#define SECURE_TIMEOUT_MS_DEFAULT 1000u
/* Of bytes, encrypted, that wait for the socket. */
#define SECURE_WRITE_BYTES_MAX_DEFAULT (128u * 1024u)

struct secure_stream;

enum secure_want {
    SECURE_WANT_READ = 1,
    SECURE_WANT_WRITE = 2,
    /* Without READ: that the other side is gone, although what it sent before was not read. Told as
     * readable; the stream is BROKEN then. */
    SECURE_WANT_HANGUP = 4,
};

struct secure_events {
    /* Of a stream that was connected, once: usable, or why not. */
    void (*opened)(struct secure_stream *s, const struct err *error);
    /* Level-triggered, as long as it is wanted: bytes, END or a failure wait to be read; or there is
     * room to write. */
    void (*ready)(struct secure_stream *s, bool readable, bool writable);
};

struct secure_connect_options {
    struct secure_context *context;
    const struct sockaddr_storage *address; /* private, or it is refused */
    const struct sockaddr_storage *from;    /* NULL: as the kernel likes; the port is not used */
    enum secure_protocol protocol;
    node_id peer;                                   /* who must answer; or 0 and */
    const struct identity_fingerprint *fingerprint; /* what its key must hash to: ENROLL only */
    unsigned timeout_ms;                            /* until the greeting; 0: the default */
    size_t write_bytes_max;                         /* 0: the default */
    struct secure_events events;
    void *user;
};

int secure_stream_connect(struct secure_stream **out, uv_loop_t *loop,
                          const struct secure_connect_options *options, struct err *e) ERR_CHECKED;

/* Wants nothing at first. */
void secure_stream_want(struct secure_stream *s, unsigned want);
void secure_stream_set_events(struct secure_stream *s, const struct secure_events *events,
                              void *user);
void *secure_stream_user(const struct secure_stream *s);
/* Who is there; id 0 for one that enrolls. Valid as long as the stream. */
node_id secure_stream_peer(const struct secure_stream *s);
const struct identity_public *secure_stream_peer_key(const struct secure_stream *s);
const struct sockaddr_storage *secure_stream_address(const struct secure_stream *s);
enum secure_protocol secure_stream_protocol(const struct secure_stream *s);
/* Asks key_of again: false when the peer was removed since. */
bool secure_stream_trusted(const struct secure_stream *s);
/* The peer was trusted once, and is not any more: unlike the above false while a handshake goes on. */
bool secure_stream_distrusted(const struct secure_stream *s);

enum secure_result {
    SECURE_DONE,    /* at least a byte was read; everything was written */
    SECURE_BLOCKED, /* nothing to read; not all was written */
    SECURE_END,     /* read: the other side has ended its direction */
    SECURE_BROKEN,  /* secure_stream_error says why; only closing is left */
};

/* Decrypts into the caller's buffer; as much as is there, up to `size` > 0. */
enum secure_result secure_stream_read(struct secure_stream *s, void *out, size_t size,
                                      size_t *count);
/* *count says how many bytes were taken from the front of the parts: they are encrypted or copied,
 * the caller's buffers are free again. Small parts share a record of TLS and a packet. Parts change
 * nothing about what the other side reads. Not after secure_stream_end. */
enum secure_result secure_stream_write(struct secure_stream *s, const struct iovec *parts,
                                       size_t part_count, size_t *count);
/* Half-close: the other side reads END behind everything that was written. */
enum secure_result secure_stream_end(struct secure_stream *s);
/* Bytes that wait for the socket. Whoever closes after END waits for 0, and better for the END of
 * the other side, since closing throws away what waits. */
size_t secure_stream_pending(const struct secure_stream *s);
/* NULL unless BROKEN. */
const struct err *secure_stream_error(const struct secure_stream *s);

typedef void (*secure_closed_cb)(void *user);
/* At once, without END; `cb` (may be NULL) gets the user of secure_stream_set_events. */
void secure_stream_close(struct secure_stream *s, secure_closed_cb cb);
/* Likewise, and the other side hears of it even if it does not read: what it was sent is lost. (A FIN
 * stands in line behind all bytes that are not read yet.) */
void secure_stream_abort(struct secure_stream *s, secure_closed_cb cb);

/* --- from one loop to another --------------------------------------------------------------------- */

/* An open stream without a loop. */
struct secure_parcel;
/* On the stream's loop, for one that is open; instead of closing it. `cb` (not in this call) gets
 * the parcel, which may then go to any thread. Nothing that was read or waits is lost. */
void secure_stream_detach(struct secure_stream *s, void (*cb)(void *user, struct secure_parcel *p));
/* On the new loop's thread; takes the parcel, also when it fails. */
int secure_stream_attach(struct secure_stream **out, uv_loop_t *loop,
                         struct secure_context *context, struct secure_parcel *parcel,
                         const struct secure_events *events, void *user, struct err *e) ERR_CHECKED;
enum secure_protocol secure_parcel_protocol(const struct secure_parcel *p);
node_id secure_parcel_peer(const struct secure_parcel *p);
void secure_parcel_drop(struct secure_parcel *p);

/* --- listening ------------------------------------------------------------------------------------ */

struct secure_listener;

enum secure_refusal {
    SECURE_REFUSED_KEY,       /* no node has it, or another than it says */
    SECURE_REFUSED_HANDSHAKE, /* no TLS 1.3, no certificate, another protocol, nonsense */
    SECURE_REFUSED_TIMEOUT,
    SECURE_REFUSED_CROWD,  /* more handshakes at once than handshakes_max: the oldest goes */
    SECURE_REFUSED_PUBLIC, /* it came from a public address */
    SECURE_REFUSED_MEMORY,
    SECURE_REFUSAL_COUNT
};

struct secure_listen_options {
    struct secure_context *context;
    const struct sockaddr_storage *address; /* private; port 0: any */
    unsigned protocols;                     /* a bit (1u << enum secure_protocol) each */
    /* Any key may come: SECURE_ENROLL alone. */
    bool strangers;
    bool reuse_port;         /* several threads listen on one address */
    unsigned handshakes_max; /* at the same time; 0: 64 */
    unsigned timeout_ms;     /* 0: the default */
    size_t write_bytes_max;  /* 0: the default */
    /* `s` is open and is the owner's now: it gets events, is detached, or closed. */
    void (*accepted)(void *user, struct secure_stream *s);
    void *user;
};

int secure_listener_open(struct secure_listener **out, uv_loop_t *loop,
                         const struct secure_listen_options *options, struct err *e) ERR_CHECKED;
/* Where it listens, with the port. */
const struct sockaddr_storage *secure_listener_address(const struct secure_listener *l);
const struct refusals *secure_listener_refusals(const struct secure_listener *l);
/* Handshakes under way end; accepted streams stay. */
void secure_listener_close(struct secure_listener *l, secure_closed_cb cb);

#endif
