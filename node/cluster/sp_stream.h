/* node/cluster/sp_stream.h - messages over TCP as nng and nanomsg put them on the wire.
 *
 *     greeting, both ways:  00 'S' 'P' 00 | protocol u16 | 0 u16
 *     then messages:        size u64 | request u32, its highest bit set | bytes      (big-endian)
 *
 * Source: the SP protocol's "sp-tcp-mapping-01" and "sp-request-reply-01" (nanomsg, rfc/). One word of
 * request id, as between a REQ and a REP that know each other: no devices between.
 *
 * Thread: the loop's. Signals: SIGPIPE must be ignored. Bounds: bytes_max a message; what waits to be sent, by who sends. What arrives is
 * stored as it arrives, not as its head promises. */
#ifndef SKERRY_NODE_CLUSTER_SP_STREAM_H
#define SKERRY_NODE_CLUSTER_SP_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/err.h"

#define SP_REQUEST_BIT 0x80000000u

enum sp_protocol { SP_REQ = 0x30, SP_REP = 0x31 };

struct sp_stream;

/* Any of them may call sp_stream_close and sp_stream_send. */
struct sp_events {
    /* The other side has greeted: messages may go. */
    void (*opened)(void *user);
    /* `bytes` are of the stream, and may be written to, in this call. False: not now; the message and
     * all that follow wait for sp_stream_resume. */
    bool (*message)(void *user, uint32_t request, uint8_t *bytes, size_t size);
    /* Once, last, never within sp_stream_close: the stream is freed behind it. */
    void (*closed)(void *user);
};

/* What streams that nobody vouches for may keep in memory together. */
struct sp_budget {
    size_t used, max;
};

struct sp_options {
    enum sp_protocol protocol; /* ours; the other side's is its counterpart */
    size_t bytes_max;          /* of a message that comes in */
    size_t unsent_max;         /* while more waits to be sent no message is taken; 0: never so */
    struct sp_budget *budget;  /* NULL: none */
    const struct sp_events *events;
    void *user;
};

int sp_stream_connect(struct sp_stream **out, uv_loop_t *loop, const struct sockaddr_storage *to,
                      const struct sp_options *options, struct err *e) ERR_CHECKED;
/* The next connection of `listener`; sp_stream_begin or sp_stream_close follows. */
int sp_stream_accept(struct sp_stream **out, uv_stream_t *listener,
                     const struct sp_options *options, struct err *e) ERR_CHECKED;
/* Greets and listens. */
void sp_stream_begin(struct sp_stream *s);
/* What was sent and has not left is dropped. */
void sp_stream_close(struct sp_stream *s);

/* The other side has shown who it is: it no longer counts against the budget. */
void sp_stream_trust(struct sp_stream *s);
void sp_stream_resume(struct sp_stream *s);
size_t sp_stream_unsent(const struct sp_stream *s);
/* False when it is not known. */
bool sp_stream_peer(const struct sp_stream *s, struct sockaddr_storage *out);

/* --- the format, by itself ------------------------------------------------------------------------ */

enum sp_piece {
    SP_MORE, /* not whole yet */
    SP_BAD,
    SP_WHOLE
};
struct sp_found {
    uint32_t request;
    size_t begin, size; /* of the message's bytes */
};
/* The message at the front of bytes[length]; `bytes_max` as in the options. */
enum sp_piece sp_find(const uint8_t *bytes, size_t length, size_t bytes_max, struct sp_found *out);

/* --- sending -------------------------------------------------------------------------------------- */

/* A message to be sent: its bytes are written in place. */
struct sp_message;
/* NULL: no memory. */
struct sp_message *sp_message_new(size_t size);
uint8_t *sp_message_bytes(struct sp_message *m);
void sp_message_free(struct sp_message *m);
/* Takes `m`; `request` has its highest bit set. An error of the connection is told by `closed`. */
void sp_stream_send(struct sp_stream *s, struct sp_message *m, uint32_t request);

#endif
