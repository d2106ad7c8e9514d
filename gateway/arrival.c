#include "gateway/arrival.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/record.h"
#include "gateway/remote.h"

enum {
    /* The grant waits so long for the first byte of the code, to leave in one packet with it. */
    GRANT_DELAY_MS = 10,
    SMALL_READ_BYTES = 4096,
    PARTS_MAX = 6,
};

/* --- writing ---------------------------------------------------------------------------------------- */

static size_t write_granted(const struct arrival *a, uint8_t block[TRAVEL_BLOCK_BYTES_MAX])
{
    const struct exchange *x = &a->c.x;
    struct travel_answer answer = {.granted = true,
                                   .instance = x->id,
                                   .start = x->start,
                                   .timing = x->timing,
                                   .ends_wall_ms = x->ends_wall_ms,
                                   .code_us = clock_monotonic_us() - x->joined_us};
    return travel_answer_write(&answer, block);
}

/* What is due of END and HEAD, then data, then END unless that is 0: in one write, which is taken whole
 * since little waits in the stream (see STREAM_WRITE_BYTES_MAX). False: the arrival is closed. */
static bool write_out(struct arrival *a, const uint8_t *block, size_t block_size, const char *data,
                      size_t size, enum record_end ends)
{
    uint8_t before[RECORD_END_BYTES], behind[RECORD_END_BYTES];
    uint8_t head_header[RECORD_HEADER_BYTES], data_header[RECORD_HEADER_BYTES];
    uint8_t granted[TRAVEL_BLOCK_BYTES_MAX];
    struct iovec parts[PARTS_MAX];
    size_t count = 0, whole = 0, written = 0;
    if (a->head_due) {
        block = granted;
        block_size = write_granted(a, granted);
        a->head_due = false;
    }
    if (a->end_due && block_size > 0) {
        record_end(before, RECORD_END_CLOSE);
        parts[count++] = (struct iovec){before, sizeof before};
        a->end_due = false;
    }
    if (block_size > 0) {
        record_header(head_header, RECORD_HEAD, block_size);
        parts[count++] = (struct iovec){head_header, sizeof head_header};
        parts[count++] = (struct iovec){(void *)(uintptr_t)block, block_size};
    }
    if (size > 0) {
        record_header(data_header, RECORD_DATA, size);
        parts[count++] = (struct iovec){data_header, sizeof data_header};
        parts[count++] = (struct iovec){(void *)(uintptr_t)data, size};
    }
    if (ends != 0) {
        record_end(behind, ends);
        parts[count++] = (struct iovec){behind, sizeof behind};
    }
    for (size_t i = 0; i < count; i++)
        whole += parts[i].iov_len;
    if (secure_stream_write(a->stream, parts, count, &written) == SECURE_DONE && written == whole)
        return true;
    arrival_close(a);
    return false;
}

/* --- ends of a join --------------------------------------------------------------------------------- */

static void let_go(struct arrival *a, enum upstream_end end)
{
    struct connection *c = &a->c;
    upstream_stop_waiting(c);
    if (c->x.upstream != NULL)
        upstream_release(c->x.upstream, end);
    dispatch_leave_slot(c);
    queue_clear(&c->thread->blocks, &c->in);
    a->in_sent = 0;
}

/* After a grant: the other side cannot be told otherwise, and nothing may follow. */
static void write_reset(struct arrival *a, const uint8_t *why, size_t size)
{
    uint8_t header[RECORD_RESET_BYTES];
    struct connection *c = &a->c;
    size_t written = 0;
    record_reset(header, RECORD_RESET_BROKEN, size);
    struct iovec parts[2] = {{header, sizeof header}, {(void *)(uintptr_t)why, size}};
    if (secure_stream_write(a->stream, parts, 2, &written) == SECURE_BROKEN) {
        arrival_close(a);
        return;
    }
    /* Closing at once would answer what is still on its way with a reset, which can overtake ours. */
    a->ended = true;
    c->phase = PHASE_LINGER;
    connection_set_deadline(c, thread_now_ms(c->thread) + LINGER_MS);
    arrival_update(c);
}

static void problem(struct connection *c, const struct problem_report *report)
{
    struct arrival *a = c->arrival;
    uint8_t block[TRAVEL_BLOCK_BYTES_MAX];
    struct travel_answer answer = {.problem = report->problem,
                                   .ran = report->ran,
                                   .retry_after_s = report->retry_after_s,
                                   .instance = c->x.id};
    count(&c->thread->counters.problems[report->problem], 1);
    if (report->detail != NULL)
        text_copy(answer.detail, sizeof answer.detail, report->detail);
    if (report->reason != NULL)
        text_copy(answer.reason, sizeof answer.reason, report->reason);
    let_go(a, UPSTREAM_BROKEN_OFF);
    size_t size = travel_answer_write(&answer, block);
    bool head_written = a->granted && !a->head_due;
    a->head_due = false;
    if (head_written) {
        write_reset(a, block, a->answering ? 0 : size);
        return;
    }
    if (!write_out(a, block, size, NULL, 0, RECORD_END_CLOSE))
        return;
    a->ended = true;
    c->phase = PHASE_FLUSH;
    connection_set_deadline(c, UINT64_MAX);
    arrival_update(c);
}

static void problem_simple(struct connection *c, enum problem which, const char *detail)
{
    problem(c, &(struct problem_report){.problem = which, .ran = RAN_NO, .detail = detail});
}

/* Where the end of the instance may be the reason. */
static void fail_or_ended(struct connection *c, enum problem which, const char *detail)
{
    struct arrival *a = c->arrival;
    upstream_stop_waiting(c);
    if (c->x.upstream != NULL)
        upstream_release(c->x.upstream, UPSTREAM_BROKEN_OFF);
    dispatch_leave_slot(c);
    if (!a->answering)
        dispatch_autopsy_begin(c, which, detail);
    else if (!a->head_due || write_out(a, NULL, 0, NULL, 0, 0))
        write_reset(a, NULL, 0);
}

/* Their END: the join is over, and the next may come. */
void arrival_join_over(struct arrival *a, enum record_end how)
{
    struct connection *c = &a->c;
    bool all_sent = queue_pending(&c->in) == a->in_sent;
    let_go(a, how == RECORD_END_KEEP && all_sent ? UPSTREAM_KEEP : UPSTREAM_CLOSE);
    if (!a->ended && !a->our_half)
        a->end_due = true;
    a->granted = a->answering = a->half = a->our_half = a->ended = false;
    arrival_serving_ends(a);
    connection_drop_exchange(c);
    c->phase = PHASE_HEAD;
    connection_set_deadline(c, UINT64_MAX);
}

/* --- to the code ------------------------------------------------------------------------------------ */

/* Until the code answers, what it was sent is kept, in case the connection was one that it had just
 * closed; not beyond the bound of a queue. */
static void consume_sent(struct arrival *a)
{
    struct connection *c = &a->c;
    if (a->kept && !a->answering && queue_pending(&c->in) <= QUEUE_BYTES_MAX)
        return;
    a->kept = false;
    queue_consume(&c->thread->blocks, &c->in, a->in_sent);
    a->in_sent = 0;
}

/* The code had ended, and now gets no more either. */
static void both_ended(struct arrival *a)
{
    struct connection *c = &a->c;
    if (c->x.up_broken) {
        let_go(a, UPSTREAM_BROKEN_OFF);
        write_reset(a, NULL, 0);
        return;
    }
    upstream_end_sending(c->x.upstream);
    arrival_join_over(a, RECORD_END_CLOSE);
    arrival_update(c);
}

void arrival_send(struct connection *c)
{
    struct arrival *a = c->arrival;
    struct upstream *u = c->x.upstream;
    size_t left = queue_pending(&c->in) - a->in_sent;
    ssize_t n = 0;
    if (left > 0) {
        do
            n = send(u->fd, queue_data(&c->in) + a->in_sent, left, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
    }
    if (n > 0) {
        a->in_sent += (size_t)n;
        left -= (size_t)n;
        c->x.sent_any = true;
        c->x.progress_ms = thread_now_ms(c->thread);
        consume_sent(a);
    } else if (n < 0 && errno != EAGAIN) {
        /* The code takes no more, but it may have answered before: reading will tell. */
        a->in_sent = queue_pending(&c->in);
        a->kept = false;
        c->x.up_broken = true;
        left = 0;
    }
    if (a->our_half && (c->x.up_broken || (a->half && left == 0))) {
        both_ended(a);
        return;
    }
    if (left == 0 && a->half)
        upstream_end_sending(u);
    upstream_set_mask(u, (u->reading_stopped || a->our_half ? 0 : UV_READABLE) |
                             (left > 0 ? UV_WRITABLE : 0));
    arrival_update(c);
}

static void begin(struct connection *c)
{
    if (c->x.slot.slot->target.port == 0 && c->x.port == 0) {
        problem_simple(c, PROBLEM_INSTANCE_UNREACHABLE,
                       "the workload has no port: there is nothing to connect to");
        return;
    }
    c->x.progress_ms = thread_now_ms(c->thread);
    upstream_acquire(c, c->x.raw);
}

static void connected(struct connection *c)
{
    struct arrival *a = c->arrival;
    uint64_t now_ms = thread_now_ms(c->thread);
    if (!a->granted) {
        a->granted = a->head_due = true;
        a->head_until_ms = now_ms + GRANT_DELAY_MS;
    }
    a->answering = c->x.raw; /* that it says nothing is an answer too */
    a->in_sent = 0;
    c->x.progress_ms = now_ms;
    arrival_send(c);
    arrival_set_deadline(c);
}

static void unreachable(struct connection *c, const char *detail)
{
    fail_or_ended(c, PROBLEM_INSTANCE_UNREACHABLE, detail);
}

/* --- from the code ---------------------------------------------------------------------------------- */

static void code_closed(struct connection *c, int error)
{
    struct arrival *a = c->arrival;
    struct upstream *u = c->x.upstream;
    if (c->x.raw && error == 0 && !a->half && !c->x.up_broken) {
        a->our_half = true;
        upstream_set_mask(u, u->mask & ~UV_READABLE);
        if (write_out(a, NULL, 0, NULL, 0, RECORD_END_HALF))
            arrival_update(c);
    } else if (c->x.raw && error == 0 && c->x.up_broken) {
        fail_or_ended(c, PROBLEM_INSTANCE_BAD_ANSWER, "the code takes no more");
    } else if (a->answering && error == 0) {
        bool over = a->half; /* their END was the first */
        let_go(a, UPSTREAM_CLOSE);
        a->ended = true;
        if (!write_out(a, NULL, 0, NULL, 0, RECORD_END_CLOSE))
            return;
        c->phase = PHASE_FLUSH;
        connection_set_deadline(c, UINT64_MAX);
        if (over)
            arrival_join_over(a, RECORD_END_CLOSE);
        arrival_update(c);
    } else if (!a->answering && u->reused && a->kept && a->ask.idempotent && a->retries == 0 &&
               slot_live(c->x.slot)) {
        a->retries++;
        c->x.up_broken = false;
        upstream_release(u, UPSTREAM_BROKEN_OFF);
        upstream_acquire(c, true);
    } else {
        fail_or_ended(c, PROBLEM_INSTANCE_BAD_ANSWER,
                      "the code closed the connection without an answer");
    }
}

static void readable(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    struct arrival *a = c->arrival;
    struct upstream *u = c->x.upstream;
    if (secure_stream_pending(a->stream) > STREAM_PENDING_BYTES_MAX) {
        u->reading_stopped = true;
        upstream_set_mask(u, u->mask & ~UV_READABLE);
        arrival_update(c);
        return;
    }
    ssize_t n;
    do
        n = recv(u->fd, t->scratch, SCRATCH_BYTES, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        upstream_set_mask(u, UV_READABLE | (u->mask & UV_WRITABLE));
        return;
    }
    if (n <= 0) {
        code_closed(c, n == 0 ? 0 : errno);
        return;
    }
    if (!a->answering && c->x.suspected_ms != 0)
        upstream_suspicion_ends(c);
    /* Where an answer ends is not known here, so this is learned instead of asked each time. */
    if (a->answering)
        u->pool->answers_in_parts = true;
    a->answering = true;
    c->x.progress_ms = thread_now_ms(t);
    if (a->in_sent > 0)
        consume_sent(a);
    if (!write_out(a, NULL, 0, t->scratch, (size_t)n, 0))
        return;
    if (n < SMALL_READ_BYTES && u->pool->answers_in_parts)
        upstream_acknowledge(u);
    if (u->mask == 0) /* polling stopped after an error; read on to its end */
        upstream_set_mask(u, UV_READABLE);
    arrival_set_deadline(c);
}

/* --- deadlines -------------------------------------------------------------------------------------- */

/* See upstream_suspect_idle. */
static bool is_suspicious(const struct connection *c)
{
    const struct arrival *a = c->arrival;
    return c->phase == PHASE_JOIN && c->x.upstream->connected && !a->answering && c->x.sent_any &&
           a->in_sent == queue_pending(&c->in) && upstream_may_suspect(c);
}

static uint64_t deadline(const struct connection *c)
{
    const struct arrival *a = c->arrival;
    uint64_t at = UINT64_MAX;
    if (c->phase == PHASE_SOCKET || !c->x.upstream->connected)
        return c->x.connect_until_ms;
    if (a->head_due)
        at = a->head_until_ms;
    if (is_suspicious(c) && c->x.progress_ms + SUSPECT_IDLE_MS < at)
        at = c->x.progress_ms + SUSPECT_IDLE_MS;
    return at;
}

void arrival_set_deadline(struct connection *c)
{
    connection_set_deadline(c, deadline(c));
}

static void join_deadline_passed(struct connection *c)
{
    struct arrival *a = c->arrival;
    uint64_t now_ms = thread_now_ms(c->thread);
    if (deadline(c) > now_ms) { /* something has moved since */
        arrival_set_deadline(c);
        return;
    }
    if (c->phase == PHASE_SOCKET || !c->x.upstream->connected) {
        fail_or_ended(c, PROBLEM_INSTANCE_UNREACHABLE,
                      "the code did not take the connection in time");
        return;
    }
    if (a->head_due && now_ms >= a->head_until_ms && !write_out(a, NULL, 0, NULL, 0, 0))
        return;
    if (is_suspicious(c) && now_ms >= c->x.progress_ms + SUSPECT_IDLE_MS)
        upstream_suspect_idle(c);
    arrival_set_deadline(c);
}

void arrival_deadline(struct connection *c)
{
    switch (c->phase) {
    case PHASE_ROUTES:
        connection_look_again(c, true);
        break;
    case PHASE_AUTOPSY:
        dispatch_autopsy_late(c);
        break;
    case PHASE_SOCKET:
    case PHASE_JOIN:
        join_deadline_passed(c);
        break;
    case PHASE_LINGER:
        arrival_close(c->arrival);
        break;
    default:
        break;
    }
}

const struct bridge arrival_bridge = {
    .begin = begin,
    .connected = connected,
    .unreachable = unreachable,
    .readable = readable,
    .writable = arrival_send,
    .set_deadline = arrival_set_deadline,
    .problem = problem,
};

/* --- admission -------------------------------------------------------------------------------------- */

static void wait_for_routes(struct connection *c)
{
    c->routes_patience_ms = ROUTES_ELSEWHERE_MS;
    connection_wait_for_routes(c);
}

static void exchange_begin(struct arrival *a)
{
    struct exchange *x = &a->c.x;
    x->raw = a->ask.raw;
    x->up.done = true; /* how a body is framed is not known here */
    /* Then a connection that idled need not be looked at first: code_closed tries another. */
    x->method = a->ask.idempotent ? HTTP_METHOD_GET : HTTP_METHOD_OTHER;
    x->started_us = clock_monotonic_us();
    x->request_until_ms = UINT64_MAX;
    x->id = a->ask.instance;
    x->forced = a->ask.mode == TRAVEL_FORCED;
    x->port = a->ask.port;
    x->port_any = a->ask.port_any;
    text_copy(x->key, sizeof x->key, a->ask.key);
    text_copy(x->request_id, sizeof x->request_id, a->ask.request_id);
    text_copy(x->asked_by, sizeof x->asked_by, a->ask.asked_by);
}

static void find_forced(struct connection *c, bool final)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    struct gateway_instance instance;
    memset(&instance, 0, sizeof instance);
    if (instance_id_owner(&c->x.id) != t->gateway->options.id) {
        problem_simple(c, PROBLEM_OWNER_UNREACHABLE, "the instance is not one of this node");
    } else if (t->routes == NULL ||
               !calls->instance(calls->user, t->routes, &c->x.id, &instance, &c->x.workload)) {
        if (final)
            dispatch_ask(c);
        else
            wait_for_routes(c);
    } else if (dispatch_judge_forced(c, &instance) == DISPATCH_READY) {
        dispatch_enter_forced(c);
    }
}

static void find_workload(struct connection *c, bool final)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    const struct travel_ask *ask = &c->arrival->ask;
    struct exchange *x = &c->x;
    bool found = t->routes != NULL && calls->workload(calls->user, t->routes, ask->workload,
                                                      strlen(ask->workload), &x->workload);
    if ((!found || x->workload.version < ask->version) && !final)
        wait_for_routes(c);
    else if (!found)
        problem_simple(c, PROBLEM_WORKLOAD_UNKNOWN, "the instance's node does not know it yet");
    else if (x->workload.kind == WORKLOAD_COMMAND || x->workload.no_port ||
             x->workload.tcp != x->raw)
        problem_simple(c, PROBLEM_CONFLICT, "it cannot be joined from another node");
    else if (ask->mode == TRAVEL_TRY && ask->instance.text[0] != '\0'
                 ? dispatch_enter_preferred(c, &ask->instance)
                 : ask->mode != TRAVEL_KEYED && dispatch_enter_candidate(c))
        return;
    else if (ask->mode == TRAVEL_TRY)
        problem_simple(c, PROBLEM_INSTANCE_FULL, "all places in the node's instances are taken");
    else
        dispatch_ask(c);
}

void arrival_look_again(struct connection *c, bool final)
{
    exchange_begin(c->arrival);
    c->phase = PHASE_ASK;
    if (c->x.forced)
        find_forced(c, final);
    else
        find_workload(c, final);
}

void arrival_take_head(struct arrival *a, const struct record *record)
{
    struct connection *c = &a->c;
    struct gateway_thread *t = c->thread;
    if (a->serving || !travel_ask_read(&a->ask, record->data, record->size)) {
        arrival_protocol_broken(a, a->serving ? "two joins at once" : "a malformed question");
        return;
    }
    if (t->shut || t->closing) {
        arrival_end(a);
        return;
    }
    count(&t->counters.arrivals, 1);
    a->serving = a->kept = true;
    atomic_fetch_add(&t->gateway->arrivals_serving, 1);
    a->retries = 0;
    a->in_sent = 0;
    c->routes_until_ms = UINT64_MAX;
    exchange_begin(a);
    if (a->ask.hops != 1)
        problem_simple(c, PROBLEM_OWNER_UNREACHABLE,
                       "it was sent here by a node that does not have the instance either");
    else if (t->draining && (a->ask.mode == TRAVEL_TRY || a->ask.mode == TRAVEL_START))
        /* Others can serve it; not so who wants this instance, or the one of a key. */
        problem_simple(c, PROBLEM_DRAINING, "the node is stopping");
    else
        arrival_look_again(c, t->waiting_for_routes_count >= ROUTES_WAITING_MAX);
}
