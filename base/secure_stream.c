#include "base/secure_stream.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/address.h"
#include "base/memory.h"
#include "base/secure_internal.h"

#define RECORD_BYTES SSL3_RT_MAX_PLAIN_LENGTH /* 16 KiB: what a record of TLS holds */
/* AES-GCM may seal 2^24.5 records under one key (RFC 8446, 5.5); a new one comes far before. */
#define RECORDS_PER_KEY (1u << 22)
/* Beyond write_bytes_max there may be one record, its 22 bytes, and an alert or a key update. */
#define OUT_EXTRA_BYTES (2u * RECORD_BYTES)
/* 64 KiB, what OpenSSL reads ahead, in pieces of 4 KiB. */
#define TELLS_PER_TURN 16u

/* --- the socket ----------------------------------------------------------------------------------- */

void secure_socket_tune(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        /* A parked stream whose peer is gone is noticed after 10 + 3 * 3 s. */
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, 10},
        {IPPROTO_TCP, TCP_KEEPINTVL, 3},
        {IPPROTO_TCP, TCP_KEEPCNT, 3},
    };
    for (size_t i = 0; i < ARRAY_SIZE(options); i++)
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value,
                         sizeof options[i].value);
}

void secure_stream_fail(struct secure_stream *s, enum err_code code, const char *format, ...)
{
    if (s->phase == SECURE_FAILED || s->phase == SECURE_CLOSING)
        return;
    va_list args;
    va_start(args, format);
    (void)err_vset(&s->error, code, 0, format, args);
    va_end(args);
    s->phase = SECURE_FAILED;
}

static void fail_tls(struct secure_stream *s)
{
    char reason[96];
    secure_openssl_reason(reason, sizeof reason);
    secure_stream_fail(s, ERR_UNAVAILABLE, "stream of node %llu: %s",
                       (unsigned long long)s->peer.id, reason);
}

/* --- what is waited for --------------------------------------------------------------------------- */

static void poll_cb(uv_poll_t *poll, int status, int events);

static bool has_tidings(const struct secure_stream *s)
{
    if (s->phase == SECURE_FAILED)
        return !s->told && s->want != 0;
    if (s->phase != SECURE_OPEN || (s->want & SECURE_WANT_READ) == 0)
        return false;
    return s->end_seen ? !s->told : !s->read_blocked && SSL_has_pending(s->ssl) == 1;
}

static void again_cb(uv_timer_t *timer);

void secure_stream_update(struct secure_stream *s)
{
    int mask = 0;
    if (s->phase == SECURE_CLOSING)
        return;
    if (s->phase == SECURE_CONNECTING)
        mask = UV_WRITABLE;
    else if (s->phase == SECURE_HANDSHAKE || s->phase == SECURE_GREETING ||
             (s->phase == SECURE_OPEN && (s->want & SECURE_WANT_READ) != 0 && !s->end_seen))
        mask = UV_READABLE;
    if (s->phase == SECURE_OPEN && (s->want & SECURE_WANT_WRITE) != 0)
        mask |= UV_WRITABLE;
    if (s->phase == SECURE_OPEN && (s->want & SECURE_WANT_HANGUP) != 0)
        mask |= UV_DISCONNECT;
    if (s->phase != SECURE_FAILED && s->out_sent < s->out.length)
        mask |= UV_WRITABLE;
    if (mask != s->poll_mask) {
        s->poll_mask = mask;
        if (mask != 0)
            (void)uv_poll_start(&s->poll, mask, poll_cb);
        else
            (void)uv_poll_stop(&s->poll);
    }
    /* Not 0 in a timer's callback: libuv would call it again without end. */
    if (has_tidings(s) && !uv_is_active((uv_handle_t *)&s->timer))
        (void)uv_timer_start(&s->timer, again_cb, s->in_timer ? 1 : 0, 0);
}

static bool is_settled(const struct secure_stream *s)
{
    return s->phase == SECURE_OPEN || s->phase == SECURE_FAILED;
}

static bool has_room(const struct secure_stream *s)
{
    return s->out.length - s->out_sent < s->write_bytes_max;
}

/* Tells the owner as far as it wants to know; again while OpenSSL's buffer holds more than was read,
 * since the socket does not tell of that. */
static void tell(struct secure_stream *s, bool readable, bool writable)
{
    for (unsigned i = 0; i < TELLS_PER_TURN; i++) {
        bool failed = s->phase == SECURE_FAILED;
        readable = (readable && (s->want & SECURE_WANT_READ) != 0) ||
                   (failed && (s->want & (SECURE_WANT_READ | SECURE_WANT_HANGUP)) != 0);
        writable = (failed || (writable && has_room(s))) && (s->want & SECURE_WANT_WRITE) != 0;
        if (readable || writable)
            s->events.ready(s, readable, writable);
        if (!has_tidings(s))
            break;
        readable = true;
        writable = false;
    }
}

/* No half-close of TCP is ever used here: who closed its side is gone. */
static void note_hangup(struct secure_stream *s, int status, int events)
{
    bool gone = status < 0 || (events & UV_DISCONNECT) != 0;
    bool reads = (s->want & SECURE_WANT_READ) != 0; /* then it reads on to the end, and sees */
    if (gone && !reads && s->phase == SECURE_OPEN && (s->want & SECURE_WANT_HANGUP) != 0)
        secure_stream_fail(s, ERR_UNAVAILABLE, "stream of node %llu: it closed the connection",
                           (unsigned long long)s->peer.id);
}

static void again_cb(uv_timer_t *timer)
{
    struct secure_stream *s = container_of(timer, struct secure_stream, timer);
    s->in_timer = true;
    if (has_tidings(s))
        tell(s, true, false);
    secure_stream_update(s);
    s->in_timer = false;
}

static void poll_cb(uv_poll_t *poll, int status, int events)
{
    struct secure_stream *s = container_of(poll, struct secure_stream, poll);
    bool begun = s->phase == SECURE_OPEN || s->phase == SECURE_FAILED;
    note_hangup(s, status, events);
    if (status < 0) {
        /* libuv has stopped polling; what is wrong shows when the socket is used. */
        s->poll_mask = 0;
        events = UV_READABLE | UV_WRITABLE;
    }
    if ((events & UV_WRITABLE) != 0 && s->phase != SECURE_CONNECTING && !secure_bio_flush(s) &&
        begun)
        secure_stream_fail(s, ERR_UNAVAILABLE, "stream of node %llu: %s",
                           (unsigned long long)s->peer.id, strerror(errno));
    if ((events & UV_READABLE) != 0)
        s->read_blocked = false;
    if (begun)
        tell(s, (events & UV_READABLE) != 0, (events & UV_WRITABLE) != 0);
    else
        secure_handshake_step(s);
    secure_stream_update(s);
}

static void deadline_cb(uv_timer_t *timer)
{
    struct secure_stream *s = container_of(timer, struct secure_stream, timer);
    secure_handshake_timeout(s);
    secure_stream_update(s);
}

void secure_stream_arm(struct secure_stream *s, unsigned timeout_ms)
{
    unsigned ms = timeout_ms == 0 ? SECURE_TIMEOUT_MS_DEFAULT : timeout_ms;
    (void)uv_timer_start(&s->timer, deadline_cb, ms, 0);
}

/* --- making one ----------------------------------------------------------------------------------- */

int secure_stream_new(struct secure_stream **out, uv_loop_t *loop, struct secure_context *context,
                      int fd, size_t write_bytes_max, struct err *e)
{
    struct secure_stream *s = calloc(1, sizeof *s);
    if (s == NULL) {
        close(fd);
        return err_set(e, ERR_NO_MEMORY, "open a stream: no memory");
    }
    int rc = uv_poll_init(loop, &s->poll, fd);
    if (rc != 0) {
        close(fd);
        free(s);
        return err_sys(e, ERR_IO, -rc, "open a stream");
    }
    (void)uv_timer_init(loop, &s->timer);
    s->handles = 2;
    s->fd = fd;
    s->context = context;
    s->write_bytes_max = write_bytes_max == 0 ? SECURE_WRITE_BYTES_MAX_DEFAULT : write_bytes_max;
    buffer_init(&s->out, s->write_bytes_max + OUT_EXTRA_BYTES);
    *out = s;
    return 0;
}

static int dial(const struct secure_connect_options *options, struct err *e)
{
    const struct sockaddr_storage *to = options->address;
    CLEANUP_FD int fd = socket(to->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "make a socket");
    secure_socket_tune(fd);
    if (options->from != NULL) {
        struct sockaddr_storage from = *options->from;
        if (from.ss_family == AF_INET)
            ((struct sockaddr_in *)(void *)&from)->sin_port = 0;
        else
            ((struct sockaddr_in6 *)(void *)&from)->sin6_port = 0;
        if (bind(fd, (struct sockaddr *)&from, address_length(&from)) != 0)
            return err_sys(e, ERR_IO, errno, "bind to our address");
    }
    if (connect(fd, (const struct sockaddr *)to, address_length(to)) != 0 && errno != EINPROGRESS)
        return err_sys(e, ERR_UNAVAILABLE, errno, "connect");
    return steal_fd(&fd);
}

int secure_stream_connect(struct secure_stream **out, uv_loop_t *loop,
                          const struct secure_connect_options *options, struct err *e)
{
    struct secure_stream *s = NULL;
    int rc = address_check_private(options->address, e);
    if (rc != 0)
        return rc;
    assert_always((options->peer == 0) == (options->fingerprint != NULL));
    assert_always(options->fingerprint == NULL || options->protocol == SECURE_ENROLL);
    int fd = dial(options, e);
    if (fd < 0)
        return fd;
    rc = secure_stream_new(&s, loop, options->context, fd, options->write_bytes_max, e);
    if (rc != 0)
        return rc;
    s->protocol = options->protocol;
    s->expected = options->peer;
    s->by_fingerprint = options->fingerprint != NULL;
    if (s->by_fingerprint)
        s->fingerprint = *options->fingerprint;
    s->peer.address = *options->address;
    s->events = options->events;
    s->user = options->user;
    rc = secure_context_start(s, e);
    if (rc != 0) {
        secure_stream_close(s, NULL);
        return rc;
    }
    secure_stream_arm(s, options->timeout_ms);
    secure_stream_update(s);
    *out = s;
    return 0;
}

/* --- reading and writing -------------------------------------------------------------------------- */

void secure_stream_want(struct secure_stream *s, unsigned want)
{
    s->want = want;
    secure_stream_update(s);
}

enum secure_result secure_stream_read(struct secure_stream *s, void *out, size_t size,
                                      size_t *count)
{
    *count = 0;
    assert_always(size > 0 && is_settled(s));
    while (*count < size && s->phase == SECURE_OPEN && !s->end_seen) {
        size_t n = 0;
        ERR_clear_error();
        int rc = SSL_read_ex(s->ssl, (char *)out + *count, size - *count, &n);
        if (rc == 1) {
            *count += n;
            /* It may have read on from the socket, which then does not tell of what is left here. */
            s->read_blocked = false;
            /* Not to ask the socket again for the sake of EAGAIN: it is level-triggered. */
            if (SSL_has_pending(s->ssl) == 0)
                break;
            continue;
        }
        int why = SSL_get_error(s->ssl, rc);
        if (why == SSL_ERROR_WANT_READ) {
            s->read_blocked = true;
            break;
        }
        if (why == SSL_ERROR_ZERO_RETURN)
            s->end_seen = true;
        else
            fail_tls(s);
    }
    if (*count == 0 && (s->end_seen || s->phase == SECURE_FAILED))
        s->told = true;
    secure_stream_update(s);
    if (*count > 0)
        return SECURE_DONE;
    return s->phase == SECURE_FAILED ? SECURE_BROKEN : s->end_seen ? SECURE_END : SECURE_BLOCKED;
}

/* Where a writer stands in its parts. */
struct cursor {
    const struct iovec *part;
    size_t offset;    /* in *part */
    size_t remaining; /* in all parts */
};

static void cursor_skip(struct cursor *c, size_t n)
{
    c->remaining -= n;
    while (n > 0) {
        size_t rest = c->part->iov_len - c->offset;
        if (n < rest) {
            c->offset += n;
            return;
        }
        n -= rest;
        c->part++;
        c->offset = 0;
    }
}

/* The next record's bytes: where they lie when they are in one piece, else copied together. */
static const char *cursor_record(const struct cursor *c, char scratch[RECORD_BYTES], size_t *size)
{
    const struct iovec *part = c->part;
    size_t offset = c->offset;
    *size = c->remaining < RECORD_BYTES ? c->remaining : RECORD_BYTES;
    while (part->iov_len == offset) {
        part++;
        offset = 0;
    }
    if (part->iov_len - offset >= *size)
        return (const char *)part->iov_base + offset;
    for (size_t filled = 0; filled < *size; part++, offset = 0) {
        size_t rest = part->iov_len - offset;
        if (rest > *size - filled)
            rest = *size - filled;
        if (rest > 0)
            memcpy(scratch + filled, (const char *)part->iov_base + offset, rest);
        filled += rest;
    }
    return scratch;
}

static bool write_record(struct secure_stream *s, const char *data, size_t size, size_t *written)
{
    ERR_clear_error();
    if (++s->records % RECORDS_PER_KEY == 0 &&
        SSL_key_update(s->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) != 1)
        return false;
    return SSL_write_ex(s->ssl, data, size, written) == 1;
}

enum secure_result secure_stream_write(struct secure_stream *s, const struct iovec *parts,
                                       size_t part_count, size_t *count)
{
    char scratch[RECORD_BYTES];
    struct cursor c = {.part = parts};
    *count = 0;
    assert_always(is_settled(s) && !s->end_sent);
    for (size_t i = 0; i < part_count; i++)
        c.remaining += parts[i].iov_len;
    if (c.remaining > RECORD_BYTES)
        (void)buffer_reserve(&s->out, c.remaining + RECORD_BYTES < s->write_bytes_max
                                          ? c.remaining + RECORD_BYTES
                                          : s->write_bytes_max);
    while (c.remaining > 0 && s->phase == SECURE_OPEN && has_room(s)) {
        size_t size = 0, written = 0;
        const char *data = cursor_record(&c, scratch, &size);
        size_t pending = s->out.length - s->out_sent + size;
        s->gathering = c.remaining > size && pending + RECORD_BYTES < s->write_bytes_max;
        if (!write_record(s, data, size, &written))
            fail_tls(s);
        *count += written;
        cursor_skip(&c, written);
    }
    s->gathering = false;
    if (s->phase == SECURE_FAILED)
        s->told = true;
    secure_stream_update(s);
    if (s->phase == SECURE_FAILED)
        return SECURE_BROKEN;
    return c.remaining == 0 ? SECURE_DONE : SECURE_BLOCKED;
}

enum secure_result secure_stream_end(struct secure_stream *s)
{
    assert_always(is_settled(s));
    if (s->phase == SECURE_OPEN && !s->end_sent) {
        ERR_clear_error();
        s->end_sent = true;
        if (SSL_shutdown(s->ssl) < 0)
            fail_tls(s);
    }
    secure_stream_update(s);
    return s->phase == SECURE_FAILED ? SECURE_BROKEN : SECURE_DONE;
}

/* --- what it is ----------------------------------------------------------------------------------- */

void secure_stream_set_events(struct secure_stream *s, const struct secure_events *events,
                              void *user)
{
    s->events = *events;
    s->user = user;
}

void *secure_stream_user(const struct secure_stream *s)
{
    return s->user;
}

node_id secure_stream_peer(const struct secure_stream *s)
{
    return s->peer.id;
}

const struct identity_public *secure_stream_peer_key(const struct secure_stream *s)
{
    return &s->peer.key;
}

const struct sockaddr_storage *secure_stream_address(const struct secure_stream *s)
{
    return &s->peer.address;
}

enum secure_protocol secure_stream_protocol(const struct secure_stream *s)
{
    return s->protocol;
}

size_t secure_stream_pending(const struct secure_stream *s)
{
    return s->out.length - s->out_sent;
}

const struct err *secure_stream_error(const struct secure_stream *s)
{
    return s->error.code == ERR_OK ? NULL : &s->error;
}

/* --- the end -------------------------------------------------------------------------------------- */

/* What is left when no handle is. */
static void stream_free(struct secure_stream *s)
{
    SSL_free(s->ssl);
    close(s->fd);
    buffer_free(&s->out);
    free(s);
}

static void handle_closed_cb(uv_handle_t *handle)
{
    struct secure_stream *s = handle->data;
    if (--s->handles > 0)
        return;
    void *user = s->user;
    if (s->detached != NULL) {
        s->detached(user, (struct secure_parcel *)(void *)s);
        return;
    }
    secure_closed_cb cb = s->closed;
    stream_free(s);
    if (cb != NULL)
        cb(user);
}

static void close_handles(struct secure_stream *s)
{
    assert_always(s->phase != SECURE_CLOSING);
    s->phase = SECURE_CLOSING;
    s->poll.data = s;
    s->timer.data = s;
    uv_close((uv_handle_t *)&s->timer, handle_closed_cb);
    uv_close((uv_handle_t *)&s->poll, handle_closed_cb);
}

void secure_stream_close(struct secure_stream *s, secure_closed_cb cb)
{
    s->closed = cb;
    close_handles(s);
}

void secure_stream_abort(struct secure_stream *s, secure_closed_cb cb)
{
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    (void)setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    secure_stream_close(s, cb);
}

void secure_stream_detach(struct secure_stream *s, void (*cb)(void *user, struct secure_parcel *p))
{
    assert_always(s->phase == SECURE_OPEN);
    s->detached = cb;
    close_handles(s);
}

/* A parcel is a stream whose handles are closed. */
static struct secure_stream *parcel_stream(const struct secure_parcel *p)
{
    return (struct secure_stream *)(uintptr_t)p;
}

int secure_stream_attach(struct secure_stream **out, uv_loop_t *loop,
                         struct secure_context *context, struct secure_parcel *parcel,
                         const struct secure_events *events, void *user, struct err *e)
{
    struct secure_stream *s = parcel_stream(parcel);
    int rc = uv_poll_init(loop, &s->poll, s->fd);
    if (rc != 0) {
        stream_free(s);
        return err_sys(e, ERR_IO, -rc, "take over a stream");
    }
    (void)uv_timer_init(loop, &s->timer);
    s->handles = 2;
    s->poll_mask = 0;
    s->want = 0;
    s->detached = NULL;
    s->context = context;
    s->phase = SECURE_OPEN;
    s->events = *events;
    s->user = user;
    secure_stream_update(s);
    *out = s;
    return 0;
}

enum secure_protocol secure_parcel_protocol(const struct secure_parcel *p)
{
    return parcel_stream(p)->protocol;
}

node_id secure_parcel_peer(const struct secure_parcel *p)
{
    return parcel_stream(p)->peer.id;
}

void secure_parcel_drop(struct secure_parcel *p)
{
    stream_free(parcel_stream(p));
}
