/* base/secure_relay.c - frames {u32 size, big-endian, bytes}; size 0 is a beat.
 *
 *     up:   socket -> read behind room for a header -> one frame -> stream
 *     down: stream -> read -> frames, incrementally -> socket
 *
 * Each direction has one buffer and reads again when it is empty. */
#include "base/secure_relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"

#define HEADER_BYTES 4u

struct secure_relay {
    struct secure_relay_options options;
    struct secure_stream *stream;
    uv_poll_t poll;
    uv_timer_t timer;
    int fd; /* our end of the pair */
    int poll_mask;
    unsigned open_things;
    bool ended, closing;
    bool up_seen;           /* since the last beat something went up */
    bool down_blocked;      /* the socket takes no more */
    unsigned silent_beats;  /* with nothing from the peer, while we read */
    unsigned stalled_beats; /* with a frame that the stream does not take */
    unsigned beats_max;
    size_t up_from, up_to;
    size_t down_from, down_to;
    uint32_t frame_rest; /* of the frame that comes down */
    uint8_t header[HEADER_BYTES];
    size_t header_length;
    secure_closed_cb closed;
    char up[HEADER_BYTES + SECURE_RELAY_BYTES];
    char down[SECURE_RELAY_BYTES];
};

/* --- the end -------------------------------------------------------------------------------------- */

static void update(struct secure_relay *r);

static void end(struct secure_relay *r, const struct err *why)
{
    if (r->ended)
        return;
    r->ended = true;
    (void)shutdown(r->fd, SHUT_RDWR);
    uv_timer_stop(&r->timer);
    update(r);
    r->options.ended(r->options.user, why);
}

static void end_code(struct secure_relay *r, enum err_code code, const char *text)
{
    struct err why;
    (void)err_set(&why, code, "relay of node %llu: %s",
                  (unsigned long long)secure_stream_peer(r->stream), text);
    end(r, &why);
}

static void end_stream(struct secure_relay *r)
{
    const struct err *error = secure_stream_error(r->stream);
    end_code(r, ERR_UNAVAILABLE, error == NULL ? "the stream broke" : error->msg);
}

/* --- up: from the socket to the peer -------------------------------------------------------------- */

static void push_up(struct secure_relay *r)
{
    struct iovec part = {r->up + r->up_from, r->up_to - r->up_from};
    size_t count = 0;
    enum secure_result result = secure_stream_write(r->stream, &part, 1, &count);
    r->up_from += count;
    if (count > 0)
        r->stalled_beats = 0;
    if (r->up_from == r->up_to)
        r->up_from = r->up_to = 0;
    r->up_seen = true;
    if (result == SECURE_BROKEN)
        end_stream(r);
}

static void frame_up(struct secure_relay *r, size_t size)
{
    r->up[0] = (char)(size >> 24);
    r->up[1] = (char)(size >> 16);
    r->up[2] = (char)(size >> 8);
    r->up[3] = (char)size;
    r->up_from = 0;
    r->up_to = HEADER_BYTES + size;
    push_up(r);
}

static void read_up(struct secure_relay *r)
{
    ssize_t n;
    do
        n = recv(r->fd, r->up + HEADER_BYTES, SECURE_RELAY_BYTES, 0);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        frame_up(r, (size_t)n);
    } else if (n == 0 || errno != EAGAIN) {
        /* The code has closed its end: whatever it wrote is sent. */
        if (secure_stream_end(r->stream) == SECURE_BROKEN)
            end_stream(r);
        else
            end(r, NULL);
    }
}

/* --- down: from the peer to the socket ------------------------------------------------------------ */

/* Takes what belongs to a header; false when that is nothing valid. */
static bool take_header(struct secure_relay *r)
{
    while (r->header_length < HEADER_BYTES && r->down_from < r->down_to)
        r->header[r->header_length++] = (uint8_t)r->down[r->down_from++];
    if (r->header_length < HEADER_BYTES)
        return true;
    r->header_length = 0;
    r->frame_rest = (uint32_t)r->header[0] << 24 | (uint32_t)r->header[1] << 16 |
                    (uint32_t)r->header[2] << 8 | r->header[3];
    return r->frame_rest <= SECURE_RELAY_BYTES;
}

static bool push_frame(struct secure_relay *r)
{
    size_t size = r->down_to - r->down_from;
    if (size > r->frame_rest)
        size = r->frame_rest;
    ssize_t n;
    do
        n = send(r->fd, r->down + r->down_from, size, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        r->down_blocked = errno == EAGAIN;
        return r->down_blocked;
    }
    r->down_from += (size_t)n;
    r->frame_rest -= (uint32_t)n;
    return true;
}

static void push_down(struct secure_relay *r)
{
    r->down_blocked = false;
    while (r->down_from < r->down_to && !r->down_blocked && !r->ended) {
        if (r->frame_rest > 0) {
            if (!push_frame(r))
                end(r, NULL); /* the code has gone */
        } else if (!take_header(r)) {
            end_code(r, ERR_PROTOCOL, "a frame too large");
        }
    }
    if (r->down_from == r->down_to)
        r->down_from = r->down_to = 0;
}

static void read_down(struct secure_relay *r)
{
    size_t count = 0;
    switch (secure_stream_read(r->stream, r->down, sizeof r->down, &count)) {
    case SECURE_DONE:
        r->silent_beats = 0;
        r->down_to = count;
        push_down(r);
        break;
    case SECURE_END:
        end(r, NULL);
        break;
    case SECURE_BROKEN:
        end_stream(r);
        break;
    default:
        break;
    }
}

/* --- turns ---------------------------------------------------------------------------------------- */

static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct secure_relay *r = secure_stream_user(s);
    if (r->ended)
        return;
    if (writable && r->up_to > r->up_from)
        push_up(r);
    if (readable && !r->ended && r->down_to == r->down_from)
        read_down(r);
    update(r);
}

static void poll_cb(uv_poll_t *poll, int status, int events)
{
    struct secure_relay *r = container_of(poll, struct secure_relay, poll);
    if (status < 0) {
        r->poll_mask = 0;
        events = UV_READABLE | UV_WRITABLE;
    }
    if ((events & UV_WRITABLE) != 0 && r->down_to > r->down_from)
        push_down(r);
    if ((events & UV_READABLE) != 0 && !r->ended && r->up_to == r->up_from)
        read_up(r);
    update(r);
}

static void update(struct secure_relay *r)
{
    unsigned want = 0;
    int mask = 0;
    if (r->closing)
        return;
    if (!r->ended) {
        if (r->down_to == r->down_from)
            want |= SECURE_WANT_READ;
        else
            mask |= UV_WRITABLE;
        if (r->up_to == r->up_from)
            mask |= UV_READABLE;
        else
            want |= SECURE_WANT_WRITE;
    }
    secure_stream_want(r->stream, want);
    if (mask == r->poll_mask)
        return;
    r->poll_mask = mask;
    if (mask != 0)
        (void)uv_poll_start(&r->poll, mask, poll_cb);
    else
        (void)uv_poll_stop(&r->poll);
}

/* Beats are counted, not milliseconds: after a pause of this process one beat has passed, and the
 * peer's are still in the socket. */
static void beat_cb(uv_timer_t *timer)
{
    struct secure_relay *r = container_of(timer, struct secure_relay, timer);
    if (r->up_to > r->up_from) {
        if (++r->stalled_beats > r->beats_max)
            end_code(r, ERR_TIMEOUT, "it takes nothing");
    } else if (r->up_seen) {
        r->up_seen = false;
    } else {
        frame_up(r, 0);
        r->up_seen = false;
    }
    if (!r->ended && r->down_to == r->down_from && ++r->silent_beats > r->beats_max)
        end_code(r, ERR_TIMEOUT, "it fell silent");
    update(r);
}

/* --- life ----------------------------------------------------------------------------------------- */

static const struct secure_events stream_events = {.ready = ready_cb};

static int fail_open(struct secure_relay *r, struct secure_stream *s, int pair[2], int rc)
{
    memory_close(&pair[0]);
    memory_close(&pair[1]);
    secure_stream_close(s, NULL);
    free(r);
    return rc;
}

int secure_relay_open(struct secure_relay **out, uv_loop_t *loop, struct secure_stream *s,
                      const struct secure_relay_options *options, int *out_fd, struct err *e)
{
    int pair[2] = {-1, -1};
    struct secure_relay *r = calloc(1, sizeof *r);
    if (r == NULL)
        return fail_open(r, s, pair, err_set(e, ERR_NO_MEMORY, "open a relay: no memory"));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return fail_open(r, s, pair, err_sys(e, ERR_IO, errno, "open a relay"));
    int rc = uv_poll_init(loop, &r->poll, pair[0]);
    if (rc != 0)
        return fail_open(r, s, pair, err_sys(e, ERR_IO, -rc, "open a relay"));
    (void)uv_timer_init(loop, &r->timer);
    r->options = *options;
    if (r->options.beat_ms == 0)
        r->options.beat_ms = SECURE_RELAY_BEAT_MS;
    if (r->options.silent_ms == 0)
        r->options.silent_ms = SECURE_RELAY_SILENT_MS;
    r->beats_max = r->options.silent_ms / r->options.beat_ms;
    assert_always(r->beats_max >= 2);
    r->stream = s;
    r->fd = pair[0];
    r->open_things = 3;
    secure_stream_set_events(s, &stream_events, r);
    (void)uv_timer_start(&r->timer, beat_cb, r->options.beat_ms, r->options.beat_ms);
    update(r);
    *out_fd = pair[1];
    *out = r;
    return 0;
}

node_id secure_relay_peer(const struct secure_relay *r)
{
    return secure_stream_peer(r->stream);
}

bool secure_relay_trusted(const struct secure_relay *r)
{
    return secure_stream_trusted(r->stream);
}

static void thing_closed(void *user)
{
    struct secure_relay *r = user;
    if (--r->open_things > 0)
        return;
    secure_closed_cb cb = r->closed;
    void *owner = r->options.user;
    close(r->fd);
    free(r);
    if (cb != NULL)
        cb(owner);
}

static void handle_closed_cb(uv_handle_t *handle)
{
    thing_closed(handle->data);
}

void secure_relay_close(struct secure_relay *r, secure_closed_cb cb)
{
    assert_always(!r->closing);
    r->closing = true;
    r->ended = true;
    r->closed = cb;
    (void)shutdown(r->fd, SHUT_RDWR);
    r->poll.data = r;
    r->timer.data = r;
    secure_stream_close(r->stream, thing_closed);
    uv_close((uv_handle_t *)&r->poll, handle_closed_cb);
    uv_close((uv_handle_t *)&r->timer, handle_closed_cb);
}
