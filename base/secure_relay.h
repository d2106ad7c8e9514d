/* base/secure_relay.h - a plain socket at one end of a secure stream, for code that knows no TLS.
 *
 *     code --fd-- socketpair -- relay ==secure stream== relay -- socketpair --fd-- code
 *
 * Made for raft: libraft's libuv back-end wants a stream of plain bytes from its transport, in one
 * direction, never notices that the other side fell silent, and sends without a bound. Its transport
 * opens a secure_stream (which is open only when the peer has greeted, or fails within its deadline),
 * makes a relay of it, and gives `fd` to uv_pipe_open or uv_tcp_open; on the other side likewise with
 * what a secure_listener accepted: secure_stream_peer says which node it is.
 *
 * Each way, the relay holds at most one frame of SECURE_RELAY_BYTES beside the stream's and the
 * socket's buffers; what does not fit stays with the code. Both sides send a beat when there is
 * nothing else; a peer from which nothing comes for silent_ms, or which takes nothing for as long,
 * ends the relay. The time that this process itself was stopped does not count.
 *
 * Thread: the loop's, which is that of the stream. */
#ifndef SKERRY_BASE_SECURE_RELAY_H
#define SKERRY_BASE_SECURE_RELAY_H

#include <uv.h>

#include "base/err.h"
#include "base/secure_stream.h"

#define SECURE_RELAY_BYTES 32768u
#define SECURE_RELAY_BEAT_MS 250u
#define SECURE_RELAY_SILENT_MS 1500u

struct secure_relay;

struct secure_relay_options {
    unsigned beat_ms;   /* 0: SECURE_RELAY_BEAT_MS */
    unsigned silent_ms; /* 0: SECURE_RELAY_SILENT_MS; at least two beats */
    /* Once: the code closed its end or the peer ended (`why` NULL), or it broke. The code's fd reads
     * an end. The relay is still to be closed, also out of this call. */
    void (*ended)(void *user, const struct err *why);
    void *user;
};

/* Takes the open stream `s`, also when it fails. *out_fd is the caller's, non-blocking. */
int secure_relay_open(struct secure_relay **out, uv_loop_t *loop, struct secure_stream *s,
                      const struct secure_relay_options *options, int *out_fd,
                      struct err *e) ERR_CHECKED;
node_id secure_relay_peer(const struct secure_relay *r);
/* False when the peer was removed since. */
bool secure_relay_trusted(const struct secure_relay *r);
/* At once; `ended` is not called any more. `cb` (may be NULL) gets the user. */
void secure_relay_close(struct secure_relay *r, secure_closed_cb cb);

#endif
