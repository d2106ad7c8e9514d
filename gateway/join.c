#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/units.h"
#include "gateway/thread.h"

/* The bridge between a client and code that listens.
 *
 * Request: head and body go to the upstream connection; what it does not take waits in exchange->out,
 * up to a bound, beyond which the client is not read. Answer: likewise in connection->out, and
 * beyond its bound the upstream is not read. Every piece is written on as soon as it was read.
 *
 * Failure: before a byte of the answer, a problem (after a look at why the instance ended); after
 * it, a transfer that the client can see is not whole. */

/* What comes in larger pieces is acknowledged by TCP in time. */
enum { SMALL_READ_BYTES = 4096 };

static uint64_t until(uint64_t from_ms, uint64_t duration_ms)
{
    return duration_ms == DURATION_NONE ? UINT64_MAX : from_ms + duration_ms;
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static enum ran whether_it_ran(const struct exchange *x)
{
    return x->sent_any ? RAN_MAYBE : RAN_NO;
}

/* See upstream_suspect_idle. */
static bool is_suspicious(const struct connection *c)
{
    return c->phase == PHASE_JOIN && c->x.upstream->connected && !c->x.answered &&
           upstream_may_suspect(c);
}

void join_set_deadline(struct connection *c)
{
    struct exchange *x = &c->x;
    const struct gateway_options *options = &c->thread->gateway->options;
    uint64_t at = x->tunnel ? UINT64_MAX : x->request_until_ms;
    if (c->half_closed_ms != 0 && !x->tunnel) {
        uint64_t from = x->progress_ms > c->half_closed_ms ? x->progress_ms : c->half_closed_ms;
        at = earlier(at, from + HALF_CLOSE_MS);
    }
    if (c->phase == PHASE_SOCKET || !x->upstream->connected)
        at = earlier(at, x->connect_until_ms);
    else if (x->answered)
        at = earlier(at, until(x->progress_ms, x->workload.stream_idle_ms));
    else if (!x->up.done && !c->reading_stopped && !x->up_broken)
        at = earlier(at, until(x->progress_ms, options->body_timeout_ms));
    else
        at = earlier(at, until(x->progress_ms, x->workload.first_byte_ms));
    if (is_suspicious(c))
        at = earlier(at, x->progress_ms + SUSPECT_IDLE_MS);
    connection_set_deadline(c, at);
}

/* --- ends --- */

void join_abandon(struct connection *c)
{
    upstream_stop_waiting(c);
    if (c->x.upstream != NULL)
        upstream_release(c->x.upstream, UPSTREAM_BROKEN_OFF);
    dispatch_leave_slot(c);
}

/* Before a byte of the answer. */
static void fail(struct connection *c, enum problem problem, enum ran ran, const char *detail)
{
    join_abandon(c);
    c->phase = PHASE_FLUSH;
    answer_problem_simple(c, problem, ran, detail);
}

/* Likewise, where the end of the instance may be the reason. Of one on another node that node alone
 * could tell, and would have. */
static void fail_or_ended(struct connection *c, enum problem problem, const char *detail)
{
    bool away = c->x.travel.node != 0;
    if (away) {
        fail(c, problem, whether_it_ran(&c->x), detail);
        return;
    }
    join_abandon(c);
    dispatch_autopsy_begin(c, problem, detail);
}

/* After it. */
static void break_transfer(struct connection *c)
{
    if (c->x.raw)
        count(&c->thread->counters.tcp_broken, 1);
    join_abandon(c);
    c->x.broken = true;
    answer_count(c, 0);
    connection_exchange_done(c);
}

void join_failed(struct connection *c, const struct problem_report *report)
{
    if (c->x.answered) {
        break_transfer(c);
        return;
    }
    join_abandon(c);
    c->phase = PHASE_FLUSH;
    answer_problem(c, report);
}

static void bad_answer(struct connection *c, const char *why)
{
    char detail[160];
    if (c->x.answered) {
        break_transfer(c);
        return;
    }
    text_format(detail, sizeof detail, "the code's answer is not valid HTTP: %s", why);
    fail(c, PROBLEM_INSTANCE_BAD_ANSWER, RAN_YES, detail);
}

static void answer_done(struct connection *c)
{
    struct exchange *x = &c->x;
    struct upstream *u = x->upstream;
    bool all_sent = x->up.done && !x->up_broken && queue_pending(&x->out) == 0 &&
                    queue_pending(&x->head) == x->head_sent;
    upstream_release(u, u->keep && all_sent ? UPSTREAM_KEEP : UPSTREAM_CLOSE);
    dispatch_leave_slot(c);
    answer_count(c, x->status);
    connection_exchange_done(c);
}

/* --- the request --- */

static void update_upstream(struct upstream *u, bool blocked)
{
    upstream_set_mask(u, (u->reading_stopped ? 0 : UV_READABLE) | (blocked ? UV_WRITABLE : 0));
}

/* Sends what there is of the request; false if the exchange ended by it. */
static bool send_request(struct connection *c)
{
    struct exchange *x = &c->x;
    struct upstream *u = x->upstream;
    enum queue_write result;
    do {
        if (!connection_pump_body(c, &x->out))
            return false;
        if (x->tunnel && c->half_closed && queue_pending(&c->in) == 0)
            x->up.done = true;
        result = upstream_flush(c);
    } while (result == QUEUE_EMPTY && !x->up.done && queue_pending(&c->in) > 0);
    if (result == QUEUE_BROKEN) {
        /* The code takes no more, but it may have answered before: reading will tell. */
        x->up_broken = true;
        queue_clear(&c->thread->blocks, &x->out);
        x->head_sent = queue_pending(&x->head);
        connection_stop_reading(c, true);
        result = QUEUE_EMPTY;
        if (x->raw && x->down.done) { /* it had ended, and now takes nothing either */
            break_transfer(c);
            return false;
        }
    } else {
        connection_stop_reading(c, !x->up.done && queue_room(&x->out) <= FLOW_FRAME_BYTES_MAX);
    }
    if (x->tunnel && x->up.done && result == QUEUE_EMPTY)
        upstream_end_sending(u);
    if (x->raw && x->up.done && x->down.done && result == QUEUE_EMPTY) {
        answer_done(c);
        return false;
    }
    update_upstream(u, result == QUEUE_BLOCKED);
    return true;
}

void join_begin(struct connection *c)
{
    if (c->x.slot.slot->target.port == 0) {
        dispatch_leave_slot(c);
        answer_problem_simple(c, PROBLEM_INSTANCE_UNREACHABLE, RAN_NO,
                              "the workload has no port: there is nothing to connect to");
        return;
    }
    c->x.progress_ms = thread_now_ms(c->thread);
    upstream_acquire(c, c->x.raw);
}

void join_connected(struct connection *c)
{
    struct exchange *x = &c->x;
    struct upstream *u = x->upstream;
    u->keep = false;
    u->scan = (struct http_scan){0};
    x->head_sent = 0;
    x->answered = x->raw;
    x->progress_ms = thread_now_ms(c->thread);
    if (send_request(c))
        join_set_deadline(c);
}

void join_upstream_writable(struct connection *c)
{
    if (send_request(c))
        join_set_deadline(c);
}

void join_client_readable(struct connection *c)
{
    if (c->x.up.done || c->x.up_broken)
        connection_read_ahead(c);
    else if (send_request(c))
        join_set_deadline(c);
}

void join_unreachable(struct connection *c, const char *detail)
{
    fail_or_ended(c, PROBLEM_INSTANCE_UNREACHABLE, detail);
}

/* --- the answer --- */

/* "Keep-Alive: timeout=5": the code closes after 5 s, so we stop a second before. */
static void note_keep_alive(struct upstream *u, const struct http_head *head)
{
    const struct http_field *field = http_field_find(head, HTTP_NAME_KEEP_ALIVE);
    if (field == NULL)
        return;
    struct http_text list = field->value;
    struct http_text item;
    while (http_list_next(&list, &item)) {
        if (item.length < 9 || !http_text_is((struct http_text){item.data, 8}, "timeout="))
            continue;
        uint64_t seconds = 0;
        for (size_t i = 8; i < item.length && item.data[i] >= '0' && item.data[i] <= '9'; i++)
            seconds = seconds < 3600 ? seconds * 10 + (uint64_t)(item.data[i] - '0') : seconds;
        uint64_t ms = seconds > 0 ? seconds * 1000 - 1000 : 0;
        if (ms < u->idle_max_ms)
            u->idle_max_ms = ms;
    }
}

static bool take_informational(struct connection *c, const struct http_head *head, size_t length)
{
    struct exchange *x = &c->x;
    if (++x->informational > INFORMATIONAL_MAX) {
        bad_answer(c, "too many informational answers");
        return false;
    }
    /* HTTP/1.0 knows none, and 100 goes only to who asked for it. */
    if (x->minor == 0 || (head->status == 100 && !x->expect_continue))
        return true;
    if (forward_answer_write(c, head, length))
        return true;
    connection_close(c, true);
    return false;
}

static bool take_upgrade(struct connection *c, const struct http_head *head, size_t length)
{
    struct exchange *x = &c->x;
    if (!x->upgrade || !head->upgrade) {
        bad_answer(c, "101 though no upgrade was asked for");
        return false;
    }
    x->keep_alive = false;
    if (!forward_answer_write(c, head, length)) {
        connection_close(c, true);
        return false;
    }
    x->tunnel = true;
    flow_begin(&x->up, HTTP_BODY_UNTIL_CLOSE, 0, false);
    flow_begin(&x->down, HTTP_BODY_UNTIL_CLOSE, 0, false);
    return true;
}

static bool take_final(struct connection *c, const struct http_head *head, size_t length)
{
    struct exchange *x = &c->x;
    struct upstream *u = x->upstream;
    if (!x->up.done || c->thread->draining)
        x->keep_alive = false;
    u->keep = head->keep_alive && head->body != HTTP_BODY_UNTIL_CLOSE;
    note_keep_alive(u, head);
    if (!forward_answer_write(c, head, length)) {
        connection_close(c, true);
        return false;
    }
    bool unknown_length = head->body == HTTP_BODY_CHUNKED || head->body == HTTP_BODY_UNTIL_CLOSE;
    flow_begin(&x->down, head->body, head->content_length, unknown_length && x->minor > 0);
    return true;
}

/* One head of the code's answer; false if the exchange ended by it. */
static bool take_head(struct connection *c, const char *data, size_t length)
{
    struct gateway_thread *t = c->thread;
    struct exchange *x = &c->x;
    struct http_head *head = &t->head;
    struct http_fault fault;
    if (!http_answer_parse(head, data, length, x->method, &fault)) {
        bad_answer(c, fault.why);
        return false;
    }
    if (head->status < 200 && head->status != 101)
        return take_informational(c, head, length);
    bool taken = head->status == 101 ? take_upgrade(c, head, length) : take_final(c, head, length);
    if (!taken)
        return false;
    if (x->suspected_ms != 0)
        upstream_suspicion_ends(c);
    x->answered = true;
    x->status = head->status;
    x->progress_ms = thread_now_ms(t);
    if (x->head_sent == queue_pending(&x->head)) {
        queue_clear(&t->blocks, &x->head);
        x->head_sent = 0;
    }
    return true;
}

static void take_body(struct connection *c, const char *data, size_t length)
{
    struct exchange *x = &c->x;
    struct http_fault fault;
    size_t now = connection_send_now(c, data, flow_as_is(&x->down, length));
    flow_passed(&x->down, now);
    data += now;
    length -= now;
    ptrdiff_t n = flow_push(&x->down, &c->thread->blocks, &c->out, data, length, &fault);
    if (n < 0) {
        bad_answer(c, fault.why);
        return;
    }
    if ((size_t)n < length) /* what follows belongs to no answer */
        x->upstream->keep = false;
    x->progress_ms = thread_now_ms(c->thread);
    if (x->down.done) {
        answer_done(c);
        return;
    }
    connection_flush(c);
    if (c->phase == PHASE_JOIN)
        join_set_deadline(c);
}

/* Bytes of the answer up to the end of its last head. */
static void take_answer(struct connection *c, const char *data, size_t length)
{
    struct gateway_thread *t = c->thread;
    struct upstream *u = c->x.upstream;
    bool buffered = queue_pending(&u->in) > 0;
    if (buffered) {
        if (!queue_append(&t->blocks, &u->in, data, length)) {
            connection_close(c, true);
            return;
        }
        data = queue_data(&u->in);
        length = queue_pending(&u->in);
    }
    size_t at = 0;
    while (!c->x.answered) {
        struct http_fault fault;
        ptrdiff_t n =
            http_scan(&u->scan, data + at, length - at, false, &t->gateway->bounds, &fault);
        if (n < 0) {
            bad_answer(c, fault.why);
            return;
        }
        if (n == HTTP_MORE) {
            if (buffered)
                queue_consume(&t->blocks, &u->in, at);
            else if (!queue_append(&t->blocks, &u->in, data + at, length - at))
                connection_close(c, true);
            if (c->phase == PHASE_JOIN && queue_pending(&c->out) > 0)
                connection_flush(c);
            return;
        }
        u->scan = (struct http_scan){0};
        if (!take_head(c, data + at, (size_t)n))
            return;
        at += (size_t)n;
    }
    /* The block of `in` outlives take_body, whatever becomes of the upstream connection. */
    struct queue held = u->in;
    u->in = (struct queue){0};
    take_body(c, data + at, length - at);
    queue_clear(&t->blocks, &held);
    if (c->phase == PHASE_JOIN && c->x.tunnel) /* the client may have spoken before */
        send_request(c);
}

static bool may_retry(const struct connection *c)
{
    const struct exchange *x = &c->x;
    if (x->tries >= 2 || x->body_began || x->travel.node != 0 || !slot_live(x->slot))
        return false;
    return !x->sent_any || (http_method_idempotent(x->method) && x->upstream->reused);
}

/* The code of a raw join says no more, but may go on reading. */
static void half_done(struct connection *c)
{
    struct upstream *u = c->x.upstream;
    u->reading_stopped = true;
    upstream_set_mask(u, u->mask & ~UV_READABLE);
    connection_flush(c);
    if (c->phase == PHASE_JOIN)
        join_set_deadline(c);
}

void join_upstream_closed(struct connection *c, int error)
{
    struct exchange *x = &c->x;
    struct upstream *u = x->upstream;
    if (x->raw && error == 0 && !x->up.done && !x->up_broken &&
        flow_source_closed(&x->down, &c->thread->blocks, &c->out)) {
        half_done(c);
        return;
    }
    if (x->raw && x->up_broken && !x->up.done)
        error = ECONNRESET;
    if (x->answered) {
        u->keep = false;
        if (error == 0 && flow_source_closed(&x->down, &c->thread->blocks, &c->out))
            answer_done(c);
        else
            break_transfer(c);
        return;
    }
    if (queue_pending(&u->in) > 0) {
        fail_or_ended(c, PROBLEM_INSTANCE_BAD_ANSWER,
                      "the code closed the connection within the head of its answer");
        return;
    }
    if (may_retry(c)) {
        upstream_release(u, UPSTREAM_BROKEN_OFF);
        x->tries++;
        x->up_broken = false;
        connection_stop_reading(c, false);
        upstream_acquire(c, true);
        return;
    }
    fail_or_ended(c, PROBLEM_INSTANCE_BAD_ANSWER,
                  "the code closed the connection without an answer");
}

void join_take(struct connection *c, const char *data, size_t length)
{
    if (c->x.answered)
        take_body(c, data, length);
    else
        take_answer(c, data, length);
}

void join_upstream_readable(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    struct exchange *x = &c->x;
    struct upstream *u = x->upstream;
    size_t size = SCRATCH_BYTES;
    if (x->answered) {
        size = queue_room(&c->out);
        if (size <= FLOW_FRAME_BYTES_MAX) {
            u->reading_stopped = true;
            upstream_set_mask(u, u->mask & ~UV_READABLE);
            return;
        }
        size -= FLOW_FRAME_BYTES_MAX;
    }
    ssize_t n;
    do
        n = recv(u->fd, t->scratch, size, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        update_upstream(u, (u->mask & UV_WRITABLE) != 0);
        return;
    }
    if (n <= 0) {
        join_upstream_closed(c, n == 0 ? 0 : errno);
        return;
    }
    join_take(c, t->scratch, (size_t)n);
    if (x->upstream == u && !x->tunnel && n < SMALL_READ_BYTES)
        upstream_acknowledge(u);
    if (x->upstream == u && u->mask == 0) /* polling stopped after an error; read on to its end */
        update_upstream(u, false);
}

const struct bridge join_bridge = {
    .begin = join_begin,
    .connected = join_connected,
    .unreachable = join_unreachable,
    .readable = join_upstream_readable,
    .writable = join_upstream_writable,
    .set_deadline = join_set_deadline,
    .problem = answer_own_problem,
};

/* --- the client --- */

void join_client_writable(struct connection *c)
{
    const struct exchange *x = &c->x;
    struct upstream *u = x->upstream;
    if (u->reading_stopped && !x->down.done && queue_room(&c->out) > QUEUE_BYTES_MAX / 2) {
        u->reading_stopped = false;
        upstream_set_mask(u, u->mask | UV_READABLE);
    }
    join_set_deadline(c);
}

void join_client_closed_half(struct connection *c)
{
    struct exchange *x = &c->x;
    if (x->tunnel) {
        if (x->upstream != NULL && x->upstream->connected && send_request(c))
            join_set_deadline(c);
        return;
    }
    if (!x->up.done) { /* the rest of the body will never come */
        connection_close(c, true);
        return;
    }
    if (c->phase == PHASE_COMMAND)
        connection_set_deadline(c, c->half_closed_ms + HALF_CLOSE_MS);
    else
        join_set_deadline(c);
}

/* --- deadlines --- */

static bool passed(const struct connection *c, uint64_t at_ms)
{
    return at_ms != UINT64_MAX && thread_now_ms(c->thread) >= at_ms;
}

static void slow_before_answer(struct connection *c)
{
    struct exchange *x = &c->x;
    enum ran ran = whether_it_ran(x);
    const struct gateway_options *options = &c->thread->gateway->options;
    char limit[UNIT_TEXT_SIZE];
    char detail[240];
    if (passed(c, x->request_until_ms)) {
        dispatch_late_text(c, detail, sizeof detail);
        fail(c, PROBLEM_REQUEST_TIMEOUT, ran, detail);
    } else if (c->phase == PHASE_SOCKET || !x->upstream->connected) {
        fail_or_ended(c, PROBLEM_INSTANCE_UNREACHABLE,
                      "the code did not take the connection in time");
    } else if (!x->up.done && !c->reading_stopped && !x->up_broken &&
               passed(c, until(x->progress_ms, options->body_timeout_ms))) {
        fail(c, PROBLEM_BODY_TIMEOUT, ran, "the body stopped coming");
    } else {
        duration_format(x->workload.first_byte_ms, limit);
        text_format(detail, sizeof detail,
                    "%s took the request and began no answer within its timeouts.first_byte of %s",
                    x->workload.name, limit);
        fail(c, PROBLEM_FIRST_BYTE_TIMEOUT, ran, detail);
    }
}

/* Too late to answer with it: the log and the counters have the code that a problem would have had. */
static void note_late(struct connection *c)
{
    struct exchange *x = &c->x;
    char detail[240], limit[UNIT_TEXT_SIZE];
    bool whole = !x->tunnel && passed(c, x->request_until_ms);
    enum problem problem = whole ? PROBLEM_REQUEST_TIMEOUT : PROBLEM_STREAM_IDLE;
    if (whole) {
        dispatch_late_text(c, detail, sizeof detail);
    } else {
        duration_format(x->workload.stream_idle_ms, limit);
        text_format(detail, sizeof detail,
                    "%s: no byte in either direction for its "
                    "timeouts.stream_idle of %s",
                    x->workload.name, limit);
    }
    count(&c->thread->counters.problems[problem], 1);
    log_info("gateway", "%s: %s, request %s of %s was cut: %s", problem_word(problem)->code,
             x->asked_by, x->request_id, x->id.text, detail);
}

void join_deadline(struct connection *c)
{
    struct exchange *x = &c->x;
    join_set_deadline(c); /* something may have moved since */
    if (passed(c, c->deadline_ms) && is_suspicious(c)) {
        upstream_suspect_idle(c);
        join_set_deadline(c);
    }
    if (!passed(c, c->deadline_ms))
        return;
    bool left =
        c->half_closed_ms != 0 && !x->tunnel &&
        passed(c, (x->progress_ms > c->half_closed_ms ? x->progress_ms : c->half_closed_ms) +
                      HALF_CLOSE_MS);
    bool stuck = x->answered && queue_pending(&c->out) > 0; /* the client does not read */
    if (!left && x->answered)
        note_late(c);
    if (left || stuck)
        connection_close(c, true);
    else if (x->answered)
        break_transfer(c);
    else
        slow_before_answer(c);
}
