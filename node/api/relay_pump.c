/* Relays: their lives, and bytes both ways between a descriptor and a stream: all of the owner's, and of the
 * entry those whose connection was upgraded. */
#include "node/api/relay_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "gateway/problem.h"

#define MOVES_PER_TURN 8u /* of each direction: then others have theirs */
#define LINGER_MS 2000u

/* --- life --------------------------------------------------------------------------------------- */

struct api_relay *api_relay_new(struct api *api, bool entry)
{
    struct api_relay *r = calloc(1, sizeof *r);
    if (r == NULL)
        return NULL;
    r->api = api;
    r->entry = entry;
    r->fd = -1;
    buffer_init(&r->out, API_RELAY_OUT_BYTES_MAX);
    buffer_init(&r->trailers, HTTP_TRAILER_BYTES_MAX);
    r->up.bytes = entry ? NULL : malloc(API_RELAY_BYTES); /* an entry's, when it is upgraded */
    r->down.bytes = malloc(API_RELAY_BYTES);
    if ((r->up.bytes == NULL && !entry) || r->down.bytes == NULL) {
        free(r->up.bytes);
        free(r->down.bytes);
        free(r);
        return NULL;
    }
    r->next = api->relays;
    if (r->next != NULL)
        r->next->previous = r;
    api->relays = r;
    api->relay_count++;
    return r;
}

static void relay_free(struct api_relay *r)
{
    struct api *api = r->api;
    if (r->previous != NULL)
        r->previous->next = r->next;
    else
        api->relays = r->next;
    if (r->next != NULL)
        r->next->previous = r->previous;
    api->relay_count--;
    buffer_free(&r->out);
    buffer_free(&r->trailers);
    free(r->up.bytes);
    free(r->down.bytes);
    free(r);
    api_dirty(api); /* the API may be waiting for the last of them */
}

static void part_closed(struct api_relay *r)
{
    if (--r->handles == 0)
        relay_free(r);
}

static void stream_closed_cb(void *user)
{
    part_closed(user);
}

static void poll_closed_cb(uv_handle_t *handle)
{
    part_closed(handle->data);
}

/* An upgraded connection is libmicrohttpd's to close; our poll lets go of it before. */
static void connection_end(struct api_relay *r)
{
    const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    (void)uv_poll_stop(&r->connection->poll);
    if (!r->down.passed)
        (void)setsockopt(r->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    struct api_listener *l = r->connection->listener;
    r->connection->relay = NULL;
    r->connection->deadline_ms = 0;
    r->connection = NULL;
    (void)MHD_upgrade_action(r->upgraded, MHD_UPGRADE_ACTION_CLOSE);
    api_listener_ready(l);
}

void api_relay_end(struct api_relay *r)
{
    if (r->phase == RELAY_CLOSING)
        return;
    r->phase = RELAY_CLOSING;
    r->handles = 1; /* ours, until all was told to close */
    if (r->connection != NULL) {
        connection_end(r);
    } else if (r->poller != NULL) {
        r->handles++;
        uv_close((uv_handle_t *)&r->poll, poll_closed_cb);
    }
    if (!r->entry)
        memory_close(&r->fd);
    if (r->stream != NULL) {
        r->handles++;
        /* A client that left in the midst: its owner shall hear of it also where it reads no further. */
        if (r->entry && r->upgraded != NULL && !r->down.passed)
            secure_stream_abort(r->stream, stream_closed_cb);
        else
            secure_stream_close(r->stream, stream_closed_cb);
    }
    part_closed(r);
}

/* --- moving ------------------------------------------------------------------------------------- */

enum moved { MOVED_NOTHING, MOVED_SOME, MOVED_BROKEN };

/* An API that has answered may close with a part of the body unread: that is the end of its answer,
 * and what still comes of the body is thrown away. A client that does so has left. */
static enum moved fd_failed(const struct api_relay *r, struct relay_way *w)
{
    if (r->entry)
        return MOVED_BROKEN;
    w->from = w->to = 0;
    if (w == &r->up)
        w->ended = true;
    else
        w->thrown_away = true;
    return MOVED_SOME;
}

static enum moved take_from_fd(struct api_relay *r)
{
    struct relay_way *w = &r->up;
    if (w->ended || w->from < w->to)
        return MOVED_NOTHING;
    ssize_t n;
    do
        n = recv(r->fd, w->bytes, API_RELAY_BYTES, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? MOVED_NOTHING : fd_failed(r, w);
    w->from = 0;
    w->to = (size_t)n;
    w->ended = n == 0;
    return MOVED_SOME;
}

static enum moved give_to_stream(struct api_relay *r)
{
    struct relay_way *w = &r->up;
    size_t count = 0;
    if (w->from < w->to) {
        struct iovec part = {.iov_base = w->bytes + w->from, .iov_len = w->to - w->from};
        if (secure_stream_write(r->stream, &part, 1, &count) == SECURE_BROKEN)
            return MOVED_BROKEN;
        w->from += count;
    }
    if (w->from == w->to && w->ended && !w->passed) {
        w->passed = true;
        return secure_stream_end(r->stream) == SECURE_BROKEN ? MOVED_BROKEN : MOVED_SOME;
    }
    return count > 0 ? MOVED_SOME : MOVED_NOTHING;
}

static enum moved take_from_stream(struct api_relay *r)
{
    struct relay_way *w = &r->down;
    size_t count = 0;
    if (w->ended || w->from < w->to)
        return MOVED_NOTHING;
    switch (secure_stream_read(r->stream, w->bytes, API_RELAY_BYTES, &count)) {
    case SECURE_DONE:
        w->from = 0;
        w->to = w->thrown_away ? 0 : count;
        return MOVED_SOME;
    case SECURE_END:
        w->ended = true;
        return MOVED_SOME;
    case SECURE_BROKEN:
        return MOVED_BROKEN;
    case SECURE_BLOCKED:
        break;
    }
    return MOVED_NOTHING;
}

static enum moved give_to_fd(struct api_relay *r)
{
    struct relay_way *w = &r->down;
    ssize_t n = 0;
    if (w->from < w->to) {
        do
            n = send(r->fd, w->bytes + w->from, w->to - w->from, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        if (n < 0 && errno != EAGAIN)
            return fd_failed(r, w);
        n = n < 0 ? 0 : n;
        w->from += (size_t)n;
    }
    if (w->from == w->to && w->ended && !w->passed) {
        w->passed = true;
        (void)shutdown(r->fd, SHUT_WR);
        return MOVED_SOME;
    }
    return n > 0 ? MOVED_SOME : MOVED_NOTHING;
}

/* What is wrong with a descriptor shows when it is used, unless it is not read for want of room: then
 * whoever closes it has left. */
static void entry_cb(uv_poll_t *poll, int status, int events)
{
    const struct api_connection *c = poll->data;
    (void)status;
    if ((events & UV_DISCONNECT) != 0 && c->relay->up.from < c->relay->up.to)
        api_relay_end(c->relay);
    else
        api_relay_pump(c->relay);
}

static void owner_cb(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    api_relay_pump(poll->data);
}

static bool both_ended(const struct api_relay *r)
{
    return r->up.passed && r->down.passed;
}

/* What each side may bring or take next. */
static void want(struct api_relay *r)
{
    bool up_waits = r->up.from < r->up.to;
    bool down_waits = r->down.from < r->down.to;
    int events = (!up_waits && !r->up.ended ? UV_READABLE : 0) | (down_waits ? UV_WRITABLE : 0) |
                 (up_waits && r->entry && !r->up.ended ? UV_DISCONNECT : 0);
    if (events == 0)
        (void)uv_poll_stop(r->poller);
    else
        (void)uv_poll_start(r->poller, events, r->entry ? entry_cb : owner_cb);
    secure_stream_want(r->stream, (!down_waits && !r->down.ended ? SECURE_WANT_READ : 0u) |
                                      (down_waits && !r->entry ? SECURE_WANT_HANGUP : 0u) |
                                      (up_waits || both_ended(r) ? SECURE_WANT_WRITE : 0u));
    /* A client that does not take its answer is not waited for without end. */
    if (!r->entry || !down_waits)
        r->deadline_ms = 0;
    else if (r->deadline_ms == 0)
        r->deadline_ms = clock_monotonic_ms() + r->api->options.idle_timeout_ms;
}

/* The client has all, and closes first: a socket that is closed with unread bytes resets the connection,
 * and the client may lose the end of what it was sent. */
static void left_cb(uv_poll_t *poll, int status, int events)
{
    const struct api_connection *c = poll->data;
    struct api_relay *r = c->relay;
    (void)events;
    for (unsigned times = 0; status >= 0 && times < MOVES_PER_TURN; times++) {
        ssize_t count = recv(r->fd, r->up.bytes, API_RELAY_BYTES, MSG_DONTWAIT);
        if (count < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (count <= 0)
            break;
        if (times + 1 == MOVES_PER_TURN)
            return; /* more, the next time */
    }
    api_relay_end(r);
}

static void passed(struct api_relay *r)
{
    if (!r->entry) {
        api_relay_end(r);
        return;
    }
    r->phase = RELAY_END;
    r->deadline_ms = clock_monotonic_ms() + LINGER_MS;
    secure_stream_want(r->stream, 0);
    (void)uv_poll_start(r->poller, UV_READABLE, left_cb);
}

void api_relay_pump(struct api_relay *r)
{
    bool moved = true;
    for (unsigned turn = 0; moved && turn < MOVES_PER_TURN; turn++) {
        enum moved taken = take_from_fd(r);
        enum moved given = give_to_stream(r);
        enum moved came = take_from_stream(r);
        enum moved gone = give_to_fd(r);
        if (given == MOVED_BROKEN || came == MOVED_BROKEN || taken == MOVED_BROKEN ||
            gone == MOVED_BROKEN) {
            api_relay_end(r);
            return;
        }
        if (gone == MOVED_SOME)
            r->deadline_ms = 0;
        moved =
            taken == MOVED_SOME || given == MOVED_SOME || came == MOVED_SOME || gone == MOVED_SOME;
    }
    /* The entry ends it once the client has it all; the owner then sees the stream close, or has seen
     * its end before. */
    if (r->entry ? r->down.passed : both_ended(r) && secure_stream_pending(r->stream) == 0)
        passed(r);
    else
        want(r);
}

void api_relay_ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct api_relay *r = secure_stream_user(s);
    (void)writable;
    if (r->phase != RELAY_OPEN)
        return;
    if (readable && r->down.from < r->down.to && secure_stream_error(s) != NULL)
        api_relay_end(r); /* the client left, behind what is not taken */
    else
        api_relay_pump(r);
}
