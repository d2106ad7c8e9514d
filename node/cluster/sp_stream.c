#include "node/cluster/sp_stream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/memory.h"

#define GREETING_BYTES 8u
#define HEAD_BYTES 8u
#define REQUEST_BYTES 4u
#define READ_BYTES 4096u  /* what every connection may keep */
#define KEEP_BYTES 65536u /* an empty buffer above this is given back */
#define LISTENS_FOR_S 30u
/* What is sent and not acknowledged for so long has met a dead machine: RFC 5482. */
#define UNACKNOWLEDGED_MS 5000u

struct sp_stream {
    uv_tcp_t tcp;
    uv_connect_t connect;
    struct sp_options options;
    struct buffer in;
    size_t charged; /* to the budget */
    bool greeted;   /* by the other side */
    bool waits;     /* its owner said: not now */
    bool reading, trusted, closing;
};

struct sp_message {
    uv_write_t write;
    struct sp_stream *stream;
    size_t size;
    uint8_t head[HEAD_BYTES + REQUEST_BYTES];
    uint8_t bytes[]; /* right behind the head: both leave as one */
};

static void go_on(struct sp_stream *s);

/* --- sending -------------------------------------------------------------------------------------- */

struct sp_message *sp_message_new(size_t size)
{
    struct sp_message *m = malloc(sizeof *m + size);
    if (m != NULL)
        m->size = size;
    return m;
}

uint8_t *sp_message_bytes(struct sp_message *m)
{
    return m->bytes;
}

void sp_message_free(struct sp_message *m)
{
    free(m);
}

static void sent_cb(uv_write_t *write, int status)
{
    struct sp_message *m = container_of(write, struct sp_message, write);
    struct sp_stream *s = m->stream;
    sp_message_free(m);
    if (status != 0)
        sp_stream_close(s);
    else if (!s->reading)
        go_on(s);
}

static void write_out(struct sp_stream *s, struct sp_message *m, uint8_t *from, size_t size)
{
    uv_buf_t piece = uv_buf_init((char *)from, (unsigned)size);
    m->stream = s;
    if (s->closing || uv_write(&m->write, (uv_stream_t *)&s->tcp, &piece, 1, sent_cb) != 0) {
        sp_message_free(m);
        sp_stream_close(s);
    }
}

void sp_stream_send(struct sp_stream *s, struct sp_message *m, uint32_t request)
{
    bytes_put(m->head, HEAD_BYTES, REQUEST_BYTES + m->size);
    bytes_put(m->head + HEAD_BYTES, REQUEST_BYTES, request);
    write_out(s, m, m->head, sizeof m->head + m->size);
}

static void greet(struct sp_stream *s)
{
    struct sp_message *m = sp_message_new(0);
    if (m == NULL) {
        sp_stream_close(s);
        return;
    }
    memcpy(m->head, "\0SP\0", 4);
    bytes_put(m->head + 4, 2, s->options.protocol);
    bytes_put(m->head + 6, 2, 0);
    write_out(s, m, m->head, GREETING_BYTES);
}

size_t sp_stream_unsent(const struct sp_stream *s)
{
    return uv_stream_get_write_queue_size((const uv_stream_t *)&s->tcp);
}

/* The other side does not take what it asked for. */
static bool unread(const struct sp_stream *s)
{
    return s->options.unsent_max != 0 && sp_stream_unsent(s) > s->options.unsent_max;
}

/* --- what comes in -------------------------------------------------------------------------------- */

static void charge(struct sp_stream *s)
{
    struct sp_budget *budget = s->options.budget;
    size_t now = s->trusted || s->in.capacity <= READ_BYTES ? 0 : s->in.capacity;
    if (budget == NULL)
        return;
    budget->used += now - s->charged;
    s->charged = now;
    if (now > 0 && budget->used > budget->max)
        sp_stream_close(s);
}

static bool take_greeting(struct sp_stream *s, const uint8_t *bytes)
{
    uint8_t wanted[GREETING_BYTES] = {0, 'S', 'P', 0};
    bytes_put(wanted + 4, 2, s->options.protocol == SP_REQ ? SP_REP : SP_REQ);
    if (memcmp(bytes, wanted, sizeof wanted) != 0) {
        sp_stream_close(s);
        return false;
    }
    s->greeted = true;
    if (s->options.events->opened != NULL)
        s->options.events->opened(s->options.user);
    return true;
}

enum sp_piece sp_find(const uint8_t *bytes, size_t length, size_t bytes_max, struct sp_found *out)
{
    if (length < HEAD_BYTES)
        return SP_MORE;
    uint64_t size = bytes_get(bytes, HEAD_BYTES);
    if (size < REQUEST_BYTES || size - REQUEST_BYTES > bytes_max)
        return SP_BAD;
    if (length - HEAD_BYTES < size)
        return SP_MORE;
    *out = (struct sp_found){.request = (uint32_t)bytes_get(bytes + HEAD_BYTES, REQUEST_BYTES),
                             .begin = HEAD_BYTES + REQUEST_BYTES,
                             .size = (size_t)size - REQUEST_BYTES};
    return (out->request & SP_REQUEST_BIT) != 0 ? SP_WHOLE : SP_BAD;
}

/* How many bytes the message at the front had; 0: it is not whole, not wanted now, or wrong. */
static size_t take_message(struct sp_stream *s, uint8_t *bytes, size_t length)
{
    struct sp_found found;
    enum sp_piece piece = sp_find(bytes, length, s->options.bytes_max, &found);
    if (piece == SP_BAD)
        sp_stream_close(s);
    if (piece != SP_WHOLE || unread(s))
        return 0;
    s->waits = !s->options.events->message(s->options.user, found.request, bytes + found.begin,
                                           found.size);
    return s->waits ? 0 : found.begin + found.size;
}

static void take_all(struct sp_stream *s)
{
    size_t taken = 0;
    while (!s->closing && !s->waits) {
        uint8_t *bytes = (uint8_t *)s->in.data + taken;
        size_t length = s->in.length - taken, one = 0;
        if (s->greeted)
            one = take_message(s, bytes, length);
        else if (length >= GREETING_BYTES && take_greeting(s, bytes))
            one = GREETING_BYTES;
        if (one == 0)
            break;
        taken += one;
    }
    buffer_consume(&s->in, taken);
    if (s->in.length == 0 && s->in.capacity > KEEP_BYTES)
        buffer_free(&s->in);
    charge(s);
}

static void room_cb(uv_handle_t *handle, size_t suggested, uv_buf_t *out)
{
    struct sp_stream *s = container_of(handle, struct sp_stream, tcp);
    (void)suggested;
    *out = uv_buf_init(NULL, 0);
    if (!buffer_reserve(&s->in, READ_BYTES / 2))
        return; /* read_cb is told UV_ENOBUFS */
    *out = uv_buf_init(s->in.data + s->in.length, (unsigned)(s->in.capacity - s->in.length));
}

static void read_cb(uv_stream_t *stream, ssize_t count, const uv_buf_t *into)
{
    struct sp_stream *s = container_of((uv_tcp_t *)stream, struct sp_stream, tcp);
    (void)into;
    if (count < 0) {
        sp_stream_close(s);
        return;
    }
    s->in.length += (size_t)count;
    go_on(s);
}

/* Takes what may be taken, and reads while that helps. */
static void go_on(struct sp_stream *s)
{
    take_all(s);
    if (s->closing)
        return;
    bool read = !s->waits && !unread(s);
    if (read && !s->reading && uv_read_start((uv_stream_t *)&s->tcp, room_cb, read_cb) != 0)
        sp_stream_close(s);
    else if (!read && s->reading)
        (void)uv_read_stop((uv_stream_t *)&s->tcp);
    s->reading = read;
}

void sp_stream_resume(struct sp_stream *s)
{
    s->waits = false;
    if (!s->closing)
        go_on(s);
}

void sp_stream_trust(struct sp_stream *s)
{
    s->trusted = true;
    charge(s);
}

/* --- life ----------------------------------------------------------------------------------------- */

bool sp_stream_peer(const struct sp_stream *s, struct sockaddr_storage *out)
{
    int size = sizeof *out;
    return uv_tcp_getpeername(&s->tcp, (struct sockaddr *)out, &size) == 0;
}

static int make(struct sp_stream **out, uv_loop_t *loop, const struct sp_options *options,
                struct err *e)
{
    struct sp_stream *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    int rc = uv_tcp_init(loop, &s->tcp);
    if (rc != 0) {
        free(s);
        return err_set(e, ERR_IO, "%s", uv_strerror(rc));
    }
    s->options = *options;
    buffer_init(&s->in, HEAD_BYTES + REQUEST_BYTES + options->bytes_max + 2u * KEEP_BYTES);
    *out = s;
    return 0;
}

void sp_stream_begin(struct sp_stream *s)
{
    int fd = -1;
    unsigned within_ms = UNACKNOWLEDGED_MS;
    (void)uv_tcp_nodelay(&s->tcp, 1);
    (void)uv_tcp_keepalive(&s->tcp, 1, LISTENS_FOR_S);
    if (uv_fileno((uv_handle_t *)&s->tcp, &fd) == 0)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &within_ms, sizeof within_ms);
    greet(s);
    if (!s->closing)
        go_on(s);
}

static void connected_cb(uv_connect_t *connect, int status)
{
    struct sp_stream *s = container_of(connect, struct sp_stream, connect);
    if (status != 0)
        sp_stream_close(s);
    else if (!s->closing)
        sp_stream_begin(s);
}

/* Of a stream that nobody knows yet. */
static void free_cb(uv_handle_t *handle)
{
    free(container_of(handle, struct sp_stream, tcp));
}

int sp_stream_connect(struct sp_stream **out, uv_loop_t *loop, const struct sockaddr_storage *to,
                      const struct sp_options *options, struct err *e)
{
    struct sp_stream *s = NULL;
    int rc = make(&s, loop, options, e);
    if (rc != 0)
        return rc;
    rc = uv_tcp_connect(&s->connect, &s->tcp, (const struct sockaddr *)to, connected_cb);
    if (rc != 0) {
        uv_close((uv_handle_t *)&s->tcp, free_cb);
        return err_set(e, ERR_IO, "%s", uv_strerror(rc));
    }
    *out = s;
    return 0;
}

int sp_stream_accept(struct sp_stream **out, uv_stream_t *listener,
                     const struct sp_options *options, struct err *e)
{
    struct sp_stream *s = NULL;
    int rc = make(&s, listener->loop, options, e);
    if (rc != 0)
        return rc;
    rc = uv_accept(listener, (uv_stream_t *)&s->tcp);
    if (rc != 0) {
        uv_close((uv_handle_t *)&s->tcp, free_cb);
        return err_set(e, ERR_IO, "%s", uv_strerror(rc));
    }
    *out = s;
    return 0;
}

static void closed_cb(uv_handle_t *handle)
{
    struct sp_stream *s = container_of(handle, struct sp_stream, tcp);
    if (s->options.budget != NULL)
        s->options.budget->used -= s->charged;
    buffer_free(&s->in);
    s->options.events->closed(s->options.user);
    free(s);
}

void sp_stream_close(struct sp_stream *s)
{
    if (s->closing)
        return;
    s->closing = true;
    uv_close((uv_handle_t *)&s->tcp, closed_cb);
}
