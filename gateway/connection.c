#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "gateway/arrival.h"
#include "gateway/thread.h"
#include "gateway/tls.h"

/* The client's side of a connection.
 *
 *   TLS (handshake.c)
 *     v
 *   HEAD -> (dispatch, ROUTES) -> ASK -> SOCKET -> JOIN ----.
 *     ^          |          |-> COMMAND ------------+-> FLUSH -> HEAD, or LINGER -> CLOSING
 *     |          |          `-> STREAM -> GRANT -> JOIN (on another node)
 *     |          `-- an answer of our own ----------'
 *     `---- keep-alive
 *
 * Any failure of the client's socket goes straight to CLOSING. */

static void closed_cb(uv_handle_t *handle)
{
    struct connection *c = handle->data;
    struct gateway_thread *t = c->thread;
    if (--c->handles > 0)
        return;
    if (t->free_connection_count < CONNECTIONS_KEPT_MAX) {
        c->next = t->free_connections;
        t->free_connections = c;
        t->free_connection_count++;
    } else {
        free(c);
    }
    atomic_fetch_sub(&t->gateway->connections, 1);
    t->connection_count--;
    thread_check_closed(t);
}

void connection_drop_exchange(struct connection *c)
{
    struct block_pool *blocks = &c->thread->blocks;
    queue_clear(blocks, &c->x.head);
    queue_clear(blocks, &c->x.out);
    flow_free(&c->x.up);
    flow_free(&c->x.down);
    c->x = (struct exchange){0};
}

void connection_wait_for_routes(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    connection_drop_exchange(c);
    c->phase = PHASE_ROUTES;
    c->waits_for_routes = true;
    c->wait_previous = NULL;
    c->wait_next = t->waiting_for_routes;
    if (c->wait_next != NULL)
        c->wait_next->wait_previous = c;
    t->waiting_for_routes = c;
    t->waiting_for_routes_count++;
    /* Its first look sets the deadline for all. */
    if (c->routes_until_ms == UINT64_MAX)
        c->routes_until_ms = thread_now_ms(t) + c->routes_patience_ms;
    connection_set_deadline(c, c->routes_until_ms);
}

static void stop_waiting_for_routes(struct connection *c)
{
    if (!c->waits_for_routes)
        return;
    c->waits_for_routes = false;
    if (c->wait_previous != NULL)
        c->wait_previous->wait_next = c->wait_next;
    else
        c->thread->waiting_for_routes = c->wait_next;
    if (c->wait_next != NULL)
        c->wait_next->wait_previous = c->wait_previous;
    c->wait_previous = c->wait_next = NULL;
    c->thread->waiting_for_routes_count--;
}

/* Lets go of whatever works for the exchange. */
void connection_abandon(struct connection *c)
{
    switch (c->phase) {
    case PHASE_ROUTES:
        stop_waiting_for_routes(c);
        break;
    case PHASE_ASK:
    case PHASE_AUTOPSY:
        dispatch_cancel(c, END_CLIENT_GONE);
        break;
    case PHASE_SOCKET:
    case PHASE_JOIN:
        join_abandon(c);
        break;
    case PHASE_STREAM:
    case PHASE_GRANT:
        travel_abandon(c);
        break;
    case PHASE_AWAY:
        away_stop_waiting(c);
        break;
    case PHASE_COMMAND:
        command_abandon(c, END_CLIENT_GONE);
        break;
    default:
        break;
    }
}

void connection_close(struct connection *c, bool reset)
{
    struct gateway_thread *t = c->thread;
    if (c->phase == PHASE_CLOSING)
        return;
    bool idle = c->phase == PHASE_TLS || c->phase == PHASE_HEAD || c->phase == PHASE_LINGER;
    /* An end that is not clean must not look like one. */
    if (c->tls != NULL && !reset && !c->x.broken && queue_pending(&c->out) == 0)
        (void)tls_end(c->tls);
    if (c->x.raw && c->phase == PHASE_JOIN)
        count(&t->counters.tcp_broken, 1);
    connection_abandon(c);
    if (!idle && !c->x.counted)
        answer_count(c, 0);
    handshake_forget_due(c);
    tls_free(c->tls);
    c->tls = NULL;
    connection_drop_exchange(c);
    c->phase = PHASE_CLOSING;
    queue_clear(&t->blocks, &c->in);
    queue_clear(&t->blocks, &c->out);
    if (c->previous != NULL)
        c->previous->next = c->next;
    else
        t->connections = c->next;
    if (c->next != NULL)
        c->next->previous = c->previous;
    uv_close((uv_handle_t *)&c->poll, closed_cb);
    uv_close((uv_handle_t *)&c->timer, closed_cb);
    if (reset) {
        struct linger linger = {.l_onoff = 1, .l_linger = 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    memory_close(&c->fd);
}

/* --- deadlines --- */

static void deadline_passed(struct connection *c)
{
    if (c->arrival != NULL) {
        arrival_deadline(c);
        return;
    }
    switch (c->phase) {
    case PHASE_HEAD:
        if (queue_pending(&c->in) > 0) {
            c->x.keep_alive = false;
            answer_problem_simple(c, PROBLEM_HEADER_TIMEOUT, RAN_NO,
                                  "the header block was not complete in time");
        } else {
            connection_close(c, false);
        }
        break;
    case PHASE_SOCKET:
    case PHASE_JOIN:
        join_deadline(c);
        break;
    case PHASE_STREAM:
    case PHASE_GRANT:
        travel_deadline(c);
        break;
    case PHASE_AWAY:
        away_deadline(c);
        break;
    case PHASE_ROUTES:
        connection_look_again(c, true);
        break;
    case PHASE_AUTOPSY:
        dispatch_autopsy_late(c);
        break;
    case PHASE_COMMAND:
        command_deadline(c);
        break;
    case PHASE_ASK:
    case PHASE_FLUSH:
        connection_close(c, true);
        break;
    case PHASE_TLS:
        count(&c->thread->counters.tls_failures, 1);
        connection_close(c, false);
        break;
    case PHASE_LINGER:
        connection_close(c, false);
        break;
    case PHASE_CLOSING:
        break;
    }
}

static void timer_cb(uv_timer_t *timer)
{
    struct connection *c = container_of(timer, struct connection, timer);
    uint64_t deadline_ms = c->deadline_ms;
    c->armed_ms = UINT64_MAX;
    if (deadline_ms == UINT64_MAX)
        return;
    if (thread_now_ms(c->thread) < deadline_ms) {
        connection_set_deadline(c, deadline_ms);
        return;
    }
    c->deadline_ms = UINT64_MAX;
    deadline_passed(c);
}

/* A deadline that moves away costs nothing: the timer fires early once and is armed again. */
void connection_set_deadline(struct connection *c, uint64_t at_ms)
{
    c->deadline_ms = at_ms;
    if (at_ms >= c->armed_ms)
        return;
    uint64_t now_ms = thread_now_ms(c->thread);
    c->armed_ms = at_ms;
    uv_timer_start(&c->timer, timer_cb, at_ms > now_ms ? at_ms - now_ms : 0, 0);
}

static uint64_t after_ms(const struct connection *c, uint64_t ms)
{
    return thread_now_ms(c->thread) + ms;
}

/* --- what is polled for --- */

static void poll_cb(uv_poll_t *poll, int status, int events);

void connection_update(struct connection *c)
{
    if (c->phase == PHASE_CLOSING)
        return;
    if (c->arrival != NULL) {
        arrival_update(c);
        return;
    }
    int mask = 0;
    if (!c->half_closed && !c->reading_stopped)
        mask |= UV_READABLE;
    if (!c->half_closed && c->reading_stopped && !c->disconnect_seen)
        mask |= UV_DISCONNECT;
    if (queue_pending(&c->out) > 0 || (c->tls != NULL && tls_wants_write(c->tls)))
        mask |= UV_WRITABLE;
    if (c->tls != NULL && c->phase != PHASE_LINGER && (mask & UV_READABLE) != 0 &&
        tls_pending(c->tls))
        handshake_note_due(c);
    if (mask == c->mask)
        return;
    c->mask = mask;
    if (mask != 0)
        uv_poll_start(&c->poll, mask, poll_cb);
    else
        uv_poll_stop(&c->poll);
}

/* --- reading --- */

/* FIN: whoever waits for nothing more is served to the end, whoever still owed us bytes is gone. */
static void client_closed_half(struct connection *c)
{
    c->half_closed = true;
    if (!c->x.raw) /* there it says nothing about who waits for an answer */
        c->half_closed_ms = thread_now_ms(c->thread);
    /* Requests say by themselves where they end; what goes through a tunnel does not. */
    if (c->tls != NULL && c->x.tunnel && tls_truncated(c->tls)) {
        connection_close(c, true);
        return;
    }
    switch (c->phase) {
    case PHASE_HEAD:
        if (queue_pending(&c->in) > 0 && queue_pending(&c->out) == 0) {
            c->x.keep_alive = false;
            answer_problem_simple(c, PROBLEM_BAD_REQUEST, RAN_NO,
                                  "the connection was closed within the header block");
        } else if (queue_pending(&c->out) == 0) {
            connection_close(c, false);
        }
        break;
    case PHASE_ASK:
        if (!c->x.raw)
            connection_set_deadline(c, after_ms(c, HALF_CLOSE_MS));
        break;
    case PHASE_JOIN:
    case PHASE_SOCKET:
    case PHASE_COMMAND:
        join_client_closed_half(c);
        break;
    case PHASE_STREAM:
    case PHASE_GRANT:
        travel_client_closed_half(c);
        break;
    case PHASE_AWAY:
        away_client_closed_half(c);
        break;
    case PHASE_LINGER:
        connection_close(c, false);
        break;
    default:
        break;
    }
    connection_update(c);
}

/* Bytes from the socket into `to`: more than 0, 0 nothing now or no longer, -1 the connection is
 * closed or half closed. */
static ssize_t receive(struct connection *c, char *to, size_t size)
{
    ssize_t n;
    do /* what lingers is dropped, and need not be understood */
        n = c->tls != NULL && c->phase != PHASE_LINGER ? tls_receive(c->tls, to, size)
                                                       : recv(c->fd, to, size, 0);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        count(&c->thread->counters.bytes_in, (uint64_t)n);
        return n;
    }
    if (n == 0) {
        client_closed_half(c);
        return -1;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK)
        return 0;
    connection_close(c, true);
    return -1;
}

void connection_read_ahead(struct connection *c)
{
    size_t pending = queue_pending(&c->in);
    if (pending >= QUEUE_BYTES_MAX) {
        c->reading_stopped = true;
        connection_update(c);
        return;
    }
    char *scratch = c->thread->scratch;
    ssize_t n = receive(c, scratch, QUEUE_BYTES_MAX - pending);
    if (n > 0 && !queue_append(&c->thread->blocks, &c->in, scratch, (size_t)n))
        connection_close(c, true);
}

static void refuse_head(struct connection *c, const struct http_fault *fault)
{
    c->x.keep_alive = false;
    answer_problem_simple(c, fault->problem, RAN_NO, fault->why);
}

/* Judges a whole head of `length` bytes. */
static enum dispatch take_head(struct connection *c, const char *data, size_t length)
{
    size_t begin = c->scan.begin;
    c->scan = (struct http_scan){0};
    if (c->thread->waiting_for_routes_count >= ROUTES_WAITING_MAX || c->thread->closing)
        c->routes_final = true;
    c->routes_patience_ms = ROUTES_MS;
    enum dispatch next = dispatch_request(c, data + begin, length - begin);
    if (next == DISPATCH_AGAIN) {
        connection_wait_for_routes(c);
        return next;
    }
    c->routes_final = false;
    c->routes_until_ms = UINT64_MAX;
    return next;
}

/* The same, for a head that c->in begins with. */
static void take_head_from_in(struct connection *c, size_t length)
{
    enum dispatch next = take_head(c, queue_data(&c->in), length);
    if (next == DISPATCH_AGAIN)
        return; /* the bytes stay for the next look */
    if (c->phase != PHASE_CLOSING && c->phase != PHASE_LINGER)
        queue_consume(&c->thread->blocks, &c->in, length);
    if (next == DISPATCH_READY)
        dispatch_find_instance(c);
}

void connection_look_again(struct connection *c, bool final)
{
    stop_waiting_for_routes(c);
    c->phase = PHASE_HEAD;
    c->routes_final = final;
    if (c->arrival != NULL)
        arrival_look_again(c, final);
    else
        connection_advance(c);
}

static void head_awaits_more(struct connection *c)
{
    if (c->head_until_ms == UINT64_MAX)
        c->head_until_ms = after_ms(c, c->thread->gateway->options.header_timeout_ms);
    connection_set_deadline(c, c->head_until_ms);
}

void connection_advance(struct connection *c)
{
    if (c->advancing)
        return;
    c->advancing = true;
    while (c->phase == PHASE_HEAD && queue_pending(&c->out) == 0 && queue_pending(&c->in) > 0) {
        struct http_fault fault;
        const char *data = queue_data(&c->in);
        ptrdiff_t n = http_scan(&c->scan, data, queue_pending(&c->in), true,
                                &c->thread->gateway->bounds, &fault);
        if (n == HTTP_MORE && c->half_closed)
            client_closed_half(c);
        else if (n == HTTP_MORE)
            head_awaits_more(c);
        else if (n < 0)
            refuse_head(c, &fault);
        else
            take_head_from_in(c, (size_t)n);
        if (n == HTTP_MORE)
            break;
    }
    c->advancing = false;
    if (c->phase == PHASE_HEAD && c->half_closed && queue_pending(&c->in) == 0 &&
        queue_pending(&c->out) == 0)
        connection_close(c, false);
    connection_update(c);
}

/* Most requests come in one piece: they are parsed where they were read. */
static void read_head(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    ssize_t n = receive(c, t->scratch, SCRATCH_BYTES);
    if (n <= 0)
        return;
    ptrdiff_t head = HTTP_MORE;
    struct http_fault fault;
    bool direct = queue_pending(&c->in) == 0 && queue_pending(&c->out) == 0;
    if (direct)
        head = http_scan(&c->scan, t->scratch, (size_t)n, true, &t->gateway->bounds, &fault);
    if (head < 0) {
        refuse_head(c, &fault);
        return;
    }
    c->advancing = true;
    enum dispatch next = DISPATCH_AGAIN;
    if (head > 0)
        next = take_head(c, t->scratch, (size_t)head);
    size_t taken = next == DISPATCH_AGAIN ? 0 : (size_t)head;
    /* What was not taken waits in front of all that comes. */
    if (c->phase != PHASE_CLOSING &&
        !queue_append(&t->blocks, &c->in, t->scratch + taken, (size_t)n - taken))
        connection_close(c, true);
    else if (next == DISPATCH_READY)
        dispatch_find_instance(c);
    c->advancing = false;
    connection_advance(c);
}

/* What the client sent cannot go on. */
static void exchange_refuse(struct connection *c, const struct http_fault *fault)
{
    if (c->phase == PHASE_JOIN)
        join_abandon(c);
    else if (c->phase == PHASE_STREAM || c->phase == PHASE_GRANT)
        travel_abandon(c);
    else if (c->phase == PHASE_COMMAND)
        command_abandon(c, END_CLIENT_GONE);
    c->phase = PHASE_FLUSH;
    c->x.keep_alive = false; /* whatever follows, nobody can say where it begins */
    answer_problem_simple(c, fault->problem, c->x.sent_any ? RAN_MAYBE : RAN_NO, fault->why);
}

/* Puts bytes of the body into the flow. False: the exchange ended by it. */
static bool push_body(struct connection *c, struct queue *to, const char *data, size_t length,
                      size_t *taken)
{
    struct gateway_thread *t = c->thread;
    struct exchange *x = &c->x;
    struct http_fault fault;
    ptrdiff_t n = flow_push(&x->up, &t->blocks, to, data, length, &fault);
    if (n >= 0 && !x->tunnel && x->up.content_bytes > t->gateway->options.body_bytes_max) {
        fault = (struct http_fault){PROBLEM_BODY_TOO_LARGE, "the body is larger than allowed here"};
        n = HTTP_REFUSED;
    }
    if (n < 0) {
        exchange_refuse(c, &fault);
        return false;
    }
    x->body_began = true;
    x->progress_ms = thread_now_ms(t);
    *taken = (size_t)n;
    return true;
}

bool connection_pump_body(struct connection *c, struct queue *to)
{
    struct gateway_thread *t = c->thread;
    enum phase phase = c->phase;
    size_t taken;
    while (!c->x.up.done && queue_pending(&c->in) > 0 && queue_room(to) > FLOW_FRAME_BYTES_MAX) {
        size_t room = queue_room(to) - FLOW_FRAME_BYTES_MAX;
        size_t length = queue_pending(&c->in) < room ? queue_pending(&c->in) : room;
        if (!push_body(c, to, queue_data(&c->in), length, &taken))
            return false;
        queue_consume(&t->blocks, &c->in, taken);
    }
    if (c->x.up.done || c->half_closed || queue_room(to) <= FLOW_FRAME_BYTES_MAX)
        return true;
    ssize_t n = receive(c, t->scratch, queue_room(to) - FLOW_FRAME_BYTES_MAX);
    if (n <= 0)
        return c->phase == phase;
    if (!push_body(c, to, t->scratch, (size_t)n, &taken))
        return false;
    if (queue_append(&t->blocks, &c->in, t->scratch + taken, (size_t)n - taken))
        return true;
    connection_close(c, true);
    return false;
}

void connection_stop_reading(struct connection *c, bool stop)
{
    if (stop == c->reading_stopped)
        return;
    c->reading_stopped = stop;
    connection_update(c);
}

static void linger_read(struct connection *c)
{
    ssize_t n = receive(c, c->thread->scratch, SCRATCH_BYTES);
    if (n <= 0)
        return;
    c->lingered_bytes += (size_t)n;
    if (c->lingered_bytes > LINGER_BYTES_MAX)
        connection_close(c, false);
}

void connection_readable(struct connection *c)
{
    switch (c->phase) {
    case PHASE_TLS:
        handshake_progress(c);
        break;
    case PHASE_HEAD:
        if (queue_pending(&c->out) > 0)
            connection_read_ahead(c);
        else
            read_head(c);
        break;
    case PHASE_JOIN:
        join_client_readable(c);
        break;
    case PHASE_COMMAND:
        command_client_readable(c);
        break;
    case PHASE_LINGER:
        linger_read(c);
        break;
    case PHASE_CLOSING:
        break;
    default:
        connection_read_ahead(c);
        break;
    }
}

/* --- writing --- */

void connection_linger(struct connection *c)
{
    connection_drop_exchange(c);
    c->phase = PHASE_LINGER;
    c->lingered_bytes = 0;
    c->reading_stopped = false;
    queue_clear(&c->thread->blocks, &c->in);
    shutdown(c->fd, SHUT_WR);
    connection_set_deadline(c, after_ms(c, LINGER_MS));
    connection_update(c);
}

/* The answer is out: the next request, or the end. */
static void answer_flushed(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    bool keep = c->x.keep_alive && !c->half_closed && !t->closing;
    bool unread = !c->x.up.done || queue_pending(&c->in) > 0;
    /* Where a length or a last chunk is missing, the client sees it; else RST must tell. */
    bool broken = c->x.broken;
    bool reset = broken && !c->x.down.chunked_out && c->x.down.body != HTTP_BODY_LENGTH;
    if (keep || (c->x.keep_alive && c->half_closed && queue_pending(&c->in) > 0)) {
        connection_drop_exchange(c);
        c->phase = PHASE_HEAD;
        c->head_until_ms = UINT64_MAX;
        c->reading_stopped = false;
        connection_set_deadline(c, after_ms(c, t->gateway->options.keepalive_timeout_ms));
        connection_advance(c);
        return;
    }
    if (c->tls != NULL && !broken && !tls_end(c->tls))
        return; /* until the socket takes it */
    if (broken || c->half_closed || !unread) {
        connection_close(c, reset);
        return;
    }
    /* Closing now would send RST because of the unread bytes, and RST can overtake the answer. */
    connection_linger(c);
}

void connection_exchange_done(struct connection *c)
{
    struct exchange *x = &c->x;
    if (!x->up.done || x->broken || c->thread->draining)
        x->keep_alive = false;
    c->served_before = true;
    c->phase = PHASE_FLUSH;
    c->write_progress_ms = thread_now_ms(c->thread);
    connection_flush(c);
    if (c->phase == PHASE_FLUSH && queue_pending(&c->out) > 0)
        connection_set_deadline(c, after_ms(c, c->thread->gateway->options.body_timeout_ms));
}

size_t connection_send_now(struct connection *c, const char *data, size_t length)
{
    if (length == 0 || queue_pending(&c->out) > 0 || c->tls != NULL)
        return 0;
    ssize_t n;
    do
        n = send(c->fd, data, length, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return 0; /* why is found when the rest is flushed */
    count(&c->thread->counters.bytes_out, (uint64_t)n);
    return (size_t)n;
}

void connection_flush(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    size_t written = 0;
    enum queue_write result = c->tls != NULL
                                  ? tls_send(c->tls, &t->blocks, &c->out, &written)
                                  : queue_send(&t->blocks, &c->out, c->fd, true, &written);
    if (written > 0)
        count(&t->counters.bytes_out, written);
    if (result == QUEUE_BROKEN) {
        connection_close(c, true);
        return;
    }
    if (written > 0)
        c->x.progress_ms = thread_now_ms(t);
    if (result == QUEUE_EMPTY && c->x.raw && c->x.down.done && !c->x.down_told) {
        c->x.down_told = true;
        shutdown(c->fd, SHUT_WR);
    }
    if (result == QUEUE_EMPTY && c->phase == PHASE_FLUSH) {
        answer_flushed(c);
        if (c->phase == PHASE_FLUSH)
            connection_update(c);
        return;
    }
    if (written > 0 && c->phase == PHASE_FLUSH)
        connection_set_deadline(c, after_ms(c, t->gateway->options.body_timeout_ms));
    connection_update(c);
}

static void writable(struct connection *c)
{
    connection_flush(c);
    switch (c->phase) {
    case PHASE_JOIN:
        join_client_writable(c);
        break;
    case PHASE_COMMAND:
        command_client_writable(c);
        break;
    case PHASE_HEAD:
        connection_advance(c);
        break;
    default:
        break;
    }
}

/* FIN came while we do not read: what is before it will be read when there is room. */
static void disconnected(struct connection *c)
{
    c->disconnect_seen = true;
    if (c->x.raw) {
        connection_update(c);
        return;
    }
    c->half_closed_ms = thread_now_ms(c->thread);
    if (c->phase == PHASE_JOIN || c->phase == PHASE_SOCKET)
        join_set_deadline(c);
    else if (c->phase == PHASE_STREAM || c->phase == PHASE_GRANT)
        travel_set_deadline(c);
    else
        connection_set_deadline(c, after_ms(c, HALF_CLOSE_MS));
    connection_update(c);
}

static void poll_cb(uv_poll_t *poll, int status, int events)
{
    struct connection *c = container_of(poll, struct connection, poll);
    if (status < 0) { /* libuv has stopped polling */
        c->mask = 0;
        events = UV_READABLE | UV_WRITABLE;
        /* A reset is told although bytes before it may still wait to be read, by nobody. */
        int error = 0;
        socklen_t size = sizeof error;
        char byte;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error != 0 || recv(c->fd, &byte, 1, MSG_PEEK) < 0) {
            connection_close(c, true);
            return;
        }
    }
    if ((events & UV_WRITABLE) != 0 && c->tls != NULL && tls_wants_write(c->tls) &&
        (c->phase == PHASE_TLS || tls_receive_waits_for_write(c->tls)))
        events |= UV_READABLE;
    if ((events & UV_WRITABLE) != 0 && c->phase != PHASE_TLS &&
        (queue_pending(&c->out) > 0 || (c->tls != NULL && tls_wants_write(c->tls))))
        writable(c);
    if ((events & UV_READABLE) != 0 && c->phase != PHASE_CLOSING)
        connection_readable(c);
    else if ((events & UV_DISCONNECT) != 0 && c->phase != PHASE_CLOSING)
        disconnected(c);
    if (c->phase != PHASE_CLOSING)
        connection_update(c);
}

/* --- beginning --- */

static struct connection *connection_take(struct gateway_thread *t)
{
    struct connection *c = t->free_connections;
    if (c != NULL) {
        t->free_connections = c->next;
        t->free_connection_count--;
    } else {
        c = malloc(sizeof *c);
    }
    if (c != NULL)
        *c = (struct connection){.thread = t, .bridge = &join_bridge};
    return c;
}

void connection_accept(const struct listener *listener, int fd, const struct sockaddr_storage *peer)
{
    struct gateway_thread *t = listener->thread;
    enum listener_kind kind = listener->kind;
    struct gateway *g = t->gateway;
    bool room = atomic_fetch_add(&g->connections, 1) < g->options.connections_max;
    struct connection *c = room ? connection_take(t) : NULL;
    if (c == NULL || uv_poll_init(&t->loop, &c->poll, fd) != 0) {
        free(c);
        atomic_fetch_sub(&g->connections, 1);
        count(&t->counters.connections_refused, 1);
        memory_close(&fd);
        return;
    }
    uv_timer_init(&t->loop, &c->timer);
    c->poll.data = c->timer.data = c;
    c->handles = 2;
    c->fd = fd;
    c->peer = *peer;
    c->kind = kind;
    c->phase = kind == LISTENER_TLS ? PHASE_TLS : PHASE_HEAD;
    c->deadline_ms = c->armed_ms = c->routes_until_ms = UINT64_MAX;
    c->next = t->connections;
    if (c->next != NULL)
        c->next->previous = c;
    t->connections = c;
    t->connection_count++;
    count(&t->counters.connections_accepted, 1);
    if (kind == LISTENER_TCP) {
        tcp_begin(c, listener->workload);
        connection_update(c);
        return;
    }
    /* A client that sends nothing is held to the same time as one that sends slowly. */
    c->head_until_ms = after_ms(c, kind == LISTENER_TLS ? g->options.tls.handshake_timeout_ms
                                                        : g->options.header_timeout_ms);
    connection_set_deadline(c, c->head_until_ms);
    connection_update(c);
}

/* A new connection is about to bring its first request: it is served, and then closed. */
void connection_drain(struct connection *c)
{
    if (c->served_before && c->phase == PHASE_HEAD && queue_pending(&c->in) == 0 &&
        queue_pending(&c->out) == 0)
        connection_close(c, false);
}
