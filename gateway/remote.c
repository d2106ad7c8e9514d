#include "gateway/remote.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"

_Static_assert(STREAM_WRITE_BYTES_MAX + STREAM_PENDING_BYTES_MAX + 16 * 1024 <
                   SECURE_WRITE_BYTES_MAX_DEFAULT,
               "a write is taken whole, with the headers of records and of TLS");

/* --- what is put off to the end of the turn ------------------------------------------------------- */

/* Those that were put off in this turn and those of the turn before, which go now. While there are
 * any, the loop does not block: a join that comes in between takes the END along, and else it leaves a
 * moment later. */
static void prepare_cb(uv_prepare_t *prepare)
{
    struct gateway_thread *t = container_of(prepare, struct gateway_thread, prepare);
    remote_prepare(t);
    if (t->remotes_due != NULL || t->remotes_overdue != NULL)
        return;
    uv_prepare_stop(prepare);
    uv_idle_stop(&t->turn);
}

static void turn_cb(uv_idle_t *idle)
{
    (void)idle; /* that it is active lets the loop turn */
}

static void due_add(struct remote *r)
{
    struct gateway_thread *t = r->u.thread;
    if (r->due)
        return;
    r->due = true;
    r->due_next = t->remotes_due;
    t->remotes_due = r;
    uv_prepare_start(&t->prepare, prepare_cb);
    uv_idle_start(&t->turn, turn_cb);
}

static bool due_remove_from(struct remote **link, struct remote *r)
{
    while (*link != NULL && *link != r)
        link = &(*link)->due_next;
    if (*link == NULL)
        return false;
    *link = r->due_next;
    return true;
}

static void due_remove(struct gateway_thread *t, struct remote *r)
{
    if (r->due && !due_remove_from(&t->remotes_due, r))
        (void)due_remove_from(&t->remotes_overdue, r);
    r->due = false;
}

/* --- peers ------------------------------------------------------------------------------------------ */

static struct peer *peer_find(struct gateway_thread *t, node_id id)
{
    struct peer *peer = NULL;
    HASH_FIND(hh, t->peers, &id, sizeof id, peer);
    return peer;
}

struct peer *remote_peer(struct gateway_thread *t, node_id id)
{
    struct peer *peer = peer_find(t, id);
    if (peer != NULL)
        return peer;
    peer = calloc(1, sizeof *peer);
    if (peer == NULL)
        return NULL;
    peer->id = id;
    peer->thread = t;
    HASH_ADD(hh, t->peers, id, sizeof peer->id, peer);
    return peer;
}

static void idle_remove(struct remote *r)
{
    struct peer *peer = r->peer;
    if (r->newer != NULL)
        r->newer->older = r->older;
    else
        peer->idle_first = r->older;
    if (r->older != NULL)
        r->older->newer = r->newer;
    else
        peer->idle_last = r->newer;
    r->newer = r->older = NULL;
    r->idle = false;
    peer->idle_count--;
}

static void wait_add(struct connection *c, struct peer *peer)
{
    c->waits_for_peer = peer;
    c->wait_next = NULL;
    c->wait_previous = peer->waiting_last;
    if (peer->waiting_last != NULL)
        peer->waiting_last->wait_next = c;
    else
        peer->waiting_first = c;
    peer->waiting_last = c;
    peer->waiting_count++;
}

void remote_stop_waiting(struct connection *c)
{
    struct peer *peer = c->waits_for_peer;
    if (peer == NULL)
        return;
    if (c->wait_previous != NULL)
        c->wait_previous->wait_next = c->wait_next;
    else
        peer->waiting_first = c->wait_next;
    if (c->wait_next != NULL)
        c->wait_next->wait_previous = c->wait_previous;
    else
        peer->waiting_last = c->wait_previous;
    c->wait_previous = c->wait_next = NULL;
    c->waits_for_peer = NULL;
    peer->waiting_count--;
}

bool remote_failed_lately(struct gateway_thread *t, node_id node)
{
    const struct peer *peer = peer_find(t, node);
    return peer != NULL && thread_now_ms(t) < peer->failed_until_ms;
}

/* --- closing ---------------------------------------------------------------------------------------- */

static void closed_cb(void *user)
{
    struct remote *r = user;
    struct gateway_thread *t = r->u.thread;
    record_decoder_free(&r->decoder);
    free(r);
    t->stream_count--;
    thread_check_closed(t);
}

/* Nobody is on it any more; `abort`: within a join, which shall end there too, now. */
static void let_go(struct remote *r, bool abort)
{
    struct gateway_thread *t = r->u.thread;
    if (r->closing)
        return;
    r->closing = true;
    if (r->idle)
        idle_remove(r);
    due_remove(t, r);
    if (r->previous != NULL)
        r->previous->next = r->next;
    else
        t->remotes = r->next;
    if (r->next != NULL)
        r->next->previous = r->previous;
    queue_clear(&t->blocks, &r->u.in);
    if (abort)
        secure_stream_abort(r->stream, closed_cb);
    else
        secure_stream_close(r->stream, closed_cb);
}

static void remote_close(struct remote *r)
{
    let_go(r, false);
}

/* Before anything of an answer came, a request may go again if it does no harm and is all here. */
static bool may_go_again(const struct connection *c)
{
    const struct exchange *x = &c->x;
    return !x->answered && x->informational == 0 && !x->body_began &&
           queue_pending(&x->upstream->in) == 0 && http_method_idempotent(x->method);
}

/* The stream is no use any more. `surely_not_run`: whatever was asked last was not read there. */
static void remote_lost(struct remote *r, bool surely_not_run)
{
    struct connection *c = r->u.connection;
    const struct err *error = secure_stream_error(r->stream);
    char detail[320];
    text_format(detail, sizeof detail, "the stream to %s broke: %s", r->peer->name,
                error != NULL ? error->msg : "it was closed");
    if (c == NULL) {
        remote_close(r);
        return;
    }
    if (c->phase == PHASE_JOIN &&
        !may_go_again(c)) { /* that releases us, and so closes the stream */
        join_failed(c, &(struct problem_report){.problem = PROBLEM_OWNER_UNREACHABLE,
                                                .ran = RAN_MAYBE,
                                                .detail = detail});
        return;
    }
    bool reused = r->reused;
    upstream_release(&r->u, UPSTREAM_BROKEN_OFF);
    travel_failed(c, surely_not_run && c->phase == PHASE_GRANT, reused, detail);
}

/* --- writing ---------------------------------------------------------------------------------------- */

/* The END that was put off goes first. False: the stream is broken; remote_lost follows. */
static bool write_parts(struct remote *r, struct iovec *parts, size_t count)
{
    size_t written = 0, whole = 0;
    if (r->end_due != 0) {
        record_end(r->end_bytes, r->end_due);
        parts[0] = (struct iovec){r->end_bytes, sizeof r->end_bytes};
        r->end_due = 0;
    } else {
        parts++;
        count--;
    }
    for (size_t i = 0; i < count; i++)
        whole += parts[i].iov_len;
    if (secure_stream_write(r->stream, parts, count, &written) == SECURE_DONE && written == whole)
        return true;
    r->lost = true;
    due_add(r);
    return false;
}

static struct iovec part(const void *data, size_t size)
{
    return (struct iovec){(void *)(uintptr_t)data, size};
}

/* The next piece of the request, of at most STREAM_WRITE_BYTES_MAX. `block` goes before it (may be of
 * no bytes). */
static bool write_request(struct remote *r, struct connection *c, const uint8_t *block,
                          size_t block_size)
{
    struct exchange *x = &c->x;
    uint8_t block_header[RECORD_HEADER_BYTES], data_header[RECORD_HEADER_BYTES];
    struct iovec parts[6];
    size_t count = 1; /* the first is for END */
    size_t head = queue_pending(&x->head) - x->head_sent;
    size_t out = queue_pending(&x->out) - x->out_sent;
    if (block_size > 0) {
        record_header(block_header, RECORD_HEAD, block_size);
        parts[count++] = part(block_header, sizeof block_header);
        parts[count++] = part(block, block_size);
    }
    if (head > STREAM_WRITE_BYTES_MAX)
        head = STREAM_WRITE_BYTES_MAX;
    if (out > STREAM_WRITE_BYTES_MAX - head)
        out = STREAM_WRITE_BYTES_MAX - head;
    if (head + out > 0) {
        record_header(data_header, RECORD_DATA, head + out);
        parts[count++] = part(data_header, sizeof data_header);
    }
    if (head > 0)
        parts[count++] = part(queue_data(&x->head) + x->head_sent, head);
    if (out > 0)
        parts[count++] = part(queue_data(&x->out) + x->out_sent, out);
    if (!write_parts(r, parts, count))
        return false;
    x->head_sent += head;
    x->out_sent += out;
    return true;
}

enum queue_write remote_flush(struct connection *c)
{
    struct exchange *x = &c->x;
    struct remote *r = x->upstream->remote;
    while (queue_pending(&x->head) > x->head_sent || queue_pending(&x->out) > 0) {
        if (secure_stream_pending(r->stream) > STREAM_PENDING_BYTES_MAX)
            return QUEUE_BLOCKED;
        if (!write_request(r, c, NULL, 0))
            return QUEUE_BROKEN;
        queue_consume(&c->thread->blocks, &x->out, x->out_sent);
        x->out_sent = 0;
    }
    return QUEUE_EMPTY;
}

void remote_end_sending(struct remote *r)
{
    if (r->end_due != 0 || r->half_sent)
        return;
    r->half_sent = true;
    r->end_due = RECORD_END_HALF;
    due_add(r);
}

void remote_set_mask(struct remote *r, int mask)
{
    /* After their END comes a RESET at most, and that at any time: they get what nobody reads any more. */
    unsigned read = (mask & UV_READABLE) != 0 || r->their_end ? SECURE_WANT_READ : 0u;
    secure_stream_want(r->stream, read | ((mask & UV_WRITABLE) != 0 ? SECURE_WANT_WRITE : 0u));
}

/* --- a join on it ----------------------------------------------------------------------------------- */

static size_t write_ask(struct connection *c, uint8_t block[TRAVEL_BLOCK_BYTES_MAX])
{
    struct exchange *x = &c->x;
    struct travel_ask ask = {
        .mode = x->travel.mode,
        /* All of it leaves with this question, so the owner can keep it. */
        .idempotent = http_method_idempotent(x->method) && x->up.done,
        .raw = x->raw,
        .hops = 1,
        .version = x->workload.version,
        .port = x->port,
        .port_any = x->port_any && x->port != 0,
    };
    text_copy(ask.workload, sizeof ask.workload, x->workload.name);
    text_copy(ask.request_id, sizeof ask.request_id, x->request_id);
    text_copy(ask.asked_by, sizeof ask.asked_by, x->asked_by);
    text_copy(ask.client, sizeof ask.client, forward_peer_text(c));
    if (ask.mode == TRAVEL_KEYED)
        text_copy(ask.key, sizeof ask.key, x->key);
    if (ask.mode == TRAVEL_FORCED || ask.mode == TRAVEL_KEYED)
        ask.instance = x->id;
    else if (ask.mode == TRAVEL_TRY)
        ask.instance = x->prefer;
    return travel_ask_write(&ask, block);
}

/* Gives the stream to the exchange: its question and what there is of its request leave at once. What
 * is sent stays until it is granted. */
static void remote_start(struct remote *r, struct connection *c)
{
    struct exchange *x = &c->x;
    uint8_t block[TRAVEL_BLOCK_BYTES_MAX];
    if (r->idle)
        idle_remove(r);
    r->u.connection = c;
    r->u.connected = false;
    r->u.keep = r->u.reading_stopped = r->u.sending_done = false;
    r->u.scan = (struct http_scan){0};
    r->granted = r->their_end = r->half_sent = false;
    x->upstream = &r->u;
    x->node_name = r->peer->name;
    x->head_sent = x->out_sent = 0;
    c->phase = PHASE_GRANT;
    if (!connection_pump_body(c, &x->out))
        return; /* it ended by that, and let go of the stream */
    upstream_set_mask(&r->u, UV_READABLE);
    size_t size = write_ask(c, block);
    count(&c->thread->counters.forwarded, 1);
    bool ok = write_request(r, c, block, size);
    while (ok && (queue_pending(&x->head) > x->head_sent || queue_pending(&x->out) > x->out_sent) &&
           secure_stream_pending(r->stream) <= STREAM_PENDING_BYTES_MAX)
        ok = write_request(r, c, NULL, 0);
    travel_sent(c); /* should it have failed: remote_lost follows */
}

static void idle_add(struct remote *r)
{
    struct gateway_thread *t = r->u.thread;
    struct peer *peer = r->peer;
    if (t->closing || peer->idle_count >= STREAMS_IDLE_MAX) {
        remote_close(r);
        return;
    }
    r->idle = true;
    r->reused = true;
    r->idle_until_ms = thread_now_ms(t) + STREAM_IDLE_MS;
    r->newer = NULL;
    r->older = peer->idle_first;
    if (r->older != NULL)
        r->older->newer = r;
    else
        peer->idle_last = r;
    peer->idle_first = r;
    peer->idle_count++;
    upstream_set_mask(&r->u, UV_READABLE);
    if (peer->waiting_first != NULL) {
        t->peers_due = true;
        due_add(r);
    }
}

void remote_release(struct remote *r, enum upstream_end end)
{
    queue_clear(&r->u.thread->blocks, &r->u.in);
    if (end == UPSTREAM_BROKEN_OFF || r->lost || !r->granted || (r->half_sent && !r->their_end)) {
        let_go(r, true);
        return;
    }
    r->skipping = !r->their_end;
    if (!r->half_sent) {
        r->end_due = end == UPSTREAM_KEEP ? RECORD_END_KEEP : RECORD_END_CLOSE;
        due_add(r);
    }
    idle_add(r);
}

/* --- reading ---------------------------------------------------------------------------------------- */

/* It leaves the exchange, which may take another way. */
static void take_refusal(struct remote *r, struct connection *c, const struct travel_answer *answer)
{
    count(&c->thread->counters.forward_refused, 1);
    c->x.upstream = NULL;
    r->u.connection = NULL;
    r->skipping = true;
    r->end_due = RECORD_END_CLOSE;
    due_add(r);
    idle_add(r);
    travel_refused(c, answer);
}

static void protocol_broken(struct remote *r, const char *why)
{
    log_warn("gateway", "%s answers what is no join stream: %s", r->peer->name, why);
    remote_lost(r, false);
}

static void take_reset(struct remote *r, const struct record *record)
{
    struct connection *c = r->u.connection;
    struct travel_answer answer;
    bool said = record->size > 0 && travel_answer_read(&answer, record->data, record->size) &&
                !answer.granted;
    if (c == NULL || c->phase != PHASE_JOIN) {
        /* Of the join before, perhaps: then the owner has read no further. */
        remote_lost(r, r->skipping);
        return;
    }
    struct problem_report report = {.problem = PROBLEM_INSTANCE_BAD_ANSWER,
                                    .ran = RAN_MAYBE,
                                    .detail = "the connection to the code broke"};
    if (said)
        report = (struct problem_report){.problem = answer.problem,
                                         .ran = answer.ran,
                                         .retry_after_s = answer.retry_after_s,
                                         .detail = answer.detail,
                                         .reason = answer.reason};
    join_failed(c, &report);
}

static void take_head(struct remote *r, const struct record *record)
{
    struct connection *c = r->u.connection;
    struct travel_answer answer;
    if (c == NULL || c->phase != PHASE_GRANT ||
        !travel_answer_read(&answer, record->data, record->size)) {
        protocol_broken(r, "a head that nobody asked for, or is malformed");
        return;
    }
    if (!answer.granted) {
        take_refusal(r, c, &answer);
        return;
    }
    r->granted = true;
    r->u.connected = true;
    r->u.reused = r->reused;
    travel_granted(c, &answer);
}

static void take_record(struct remote *r, const struct record *record)
{
    struct connection *c = r->u.connection;
    if (record->kind == RECORD_RESET) {
        take_reset(r, record);
    } else if (r->skipping) {
        r->skipping = record->kind != RECORD_END;
    } else if (record->kind == RECORD_HEAD) {
        take_head(r, record);
    } else if (c == NULL || !r->granted || r->their_end) {
        protocol_broken(r, "bytes outside an answer");
    } else if (record->kind == RECORD_DATA) {
        join_take(c, record->data, record->size);
    } else {
        r->their_end = true;
        join_upstream_closed(c, 0);
    }
}

/* All of what was read; the stream may be closing then, or be on another join. */
static void take_bytes(struct remote *r, const char *bytes, size_t length)
{
    size_t at = 0;
    r->reading = true;
    while (at < length && !r->closing) {
        struct record record;
        struct err e;
        size_t taken = 0;
        int rc = record_decode(&r->decoder, &record, bytes + at, length - at, &taken, &e);
        at += taken;
        if (rc < 0)
            protocol_broken(r, e.msg);
        else if (rc == 1)
            take_record(r, &record);
    }
    r->reading = false;
}

/* How much may be read: what the client's side has room for. */
static size_t room(struct remote *r)
{
    struct connection *c = r->u.connection;
    if (c == NULL || !c->x.answered || r->their_end)
        return SCRATCH_BYTES;
    size_t size = queue_room(&c->out);
    return size <= FLOW_FRAME_BYTES_MAX ? 0 : size - FLOW_FRAME_BYTES_MAX;
}

static void readable(struct remote *r)
{
    struct gateway_thread *t = r->u.thread;
    size_t size = room(r);
    size_t n = 0;
    if (size == 0) {
        r->u.reading_stopped = true;
        upstream_set_mask(&r->u, r->u.mask & ~UV_READABLE);
        return;
    }
    enum secure_result result = secure_stream_read(r->stream, t->stream_scratch, size, &n);
    if (result == SECURE_DONE)
        take_bytes(r, t->stream_scratch, n);
    else if (result != SECURE_BLOCKED)
        /* Who ends a stream has read no join on it before. */
        remote_lost(r, result == SECURE_END && !r->granted);
}

static void ready_cb(struct secure_stream *s, bool is_readable, bool is_writable)
{
    struct remote *r = secure_stream_user(s);
    struct connection *c = r->u.connection;
    if (is_writable && c != NULL && c->phase == PHASE_JOIN)
        join_upstream_writable(c);
    else if (is_writable && c == NULL)
        upstream_set_mask(&r->u, UV_READABLE);
    if (is_readable && !r->closing)
        readable(r);
}

/* --- opening ---------------------------------------------------------------------------------------- */

static void fail_waiting(struct peer *peer, const char *detail)
{
    /* Whoever comes back by this does not wait here again: the peer failed lately. */
    while (peer->waiting_first != NULL) {
        struct connection *c = peer->waiting_first;
        remote_stop_waiting(c);
        travel_failed(c, true, false, detail);
    }
}

static void serve_waiting(struct peer *peer)
{
    while (peer->waiting_first != NULL && peer->idle_first != NULL) {
        struct connection *c = peer->waiting_first;
        remote_stop_waiting(c);
        remote_start(peer->idle_first, c);
    }
}

static void opened_cb(struct secure_stream *s, const struct err *error);

/* False: it could not be begun. */
static bool dial(struct peer *peer, const struct gateway_peer *to)
{
    struct gateway_thread *t = peer->thread;
    struct remote *r = calloc(1, sizeof *r);
    struct err e;
    if (r == NULL)
        return false;
    struct secure_connect_options options = {
        .context = t->gateway->options.secure,
        .address = &to->address,
        .protocol = SECURE_JOIN,
        .peer = peer->id,
        .timeout_ms = to->alive ? STREAM_CONNECT_MS : STREAM_CONNECT_DEAD_MS,
        .events = {opened_cb, ready_cb},
        .user = r,
    };
    r->u.thread = t;
    r->u.remote = r;
    r->peer = peer;
    record_decoder_init(&r->decoder);
    if (secure_stream_connect(&r->stream, &t->loop, &options, &e) < 0) {
        log_debug("gateway", "%s: %s", peer->name, e.msg);
        free(r);
        return false;
    }
    r->next = t->remotes;
    if (r->next != NULL)
        r->next->previous = r;
    t->remotes = r;
    t->stream_count++;
    peer->dials++;
    return true;
}

/* Streams that are busy may be so for long: who waits gets new ones. */
static void dial_for_waiting(struct peer *peer)
{
    const struct gateway_calls *calls = &peer->thread->gateway->options.calls;
    struct gateway_peer to = {0};
    if (peer->waiting_count <= peer->dials || !calls->peer(calls->user, peer->id, &to))
        return;
    while (peer->dials < DIALS_MAX && peer->dials < peer->waiting_count)
        if (!dial(peer, &to))
            return;
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct remote *r = secure_stream_user(s);
    struct peer *peer = r->peer;
    peer->dials--;
    if (error != NULL) {
        char detail[320];
        text_format(detail, sizeof detail, "%s cannot be reached: %s", peer->name, error->msg);
        log_debug("gateway", "%s", detail);
        peer->failed_until_ms = thread_now_ms(r->u.thread) + PEER_FAILED_MS;
        remote_close(r);
        if (peer->dials == 0)
            fail_waiting(peer, detail);
        return;
    }
    peer->failed_until_ms = 0;
    count(&r->u.thread->counters.streams_connects, 1);
    idle_add(r);
    if (r->closing)
        return;
    r->reused = false;
    serve_waiting(peer);
    dial_for_waiting(peer);
}

/* What must not be sent twice goes only on a stream that is alive right now. */
static bool idle_usable(struct remote *r, const struct connection *c)
{
    char bytes[256]; /* an END may be waiting, no more; the thread's buffer may be in use */
    size_t n = 0;
    if (r->reading || (http_method_idempotent(c->x.method) && c->x.up.done))
        return true;
    enum secure_result result = secure_stream_read(r->stream, bytes, sizeof bytes, &n);
    if (result == SECURE_DONE)
        take_bytes(r, bytes, n);
    else if (result != SECURE_BLOCKED)
        remote_close(r);
    return !r->closing;
}

bool remote_acquire(struct connection *c, node_id node, bool fresh)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    struct peer *peer = t->gateway->options.secure == NULL || calls->peer == NULL || t->closing
                            ? NULL
                            : remote_peer(t, node);
    if (peer == NULL)
        return false;
    while (!fresh && peer->idle_first != NULL) {
        struct remote *r = peer->idle_first;
        if (!idle_usable(r, c))
            continue;
        count(&t->counters.streams_reuses, 1);
        remote_start(r, c);
        return true;
    }
    struct gateway_peer to = {0};
    if (!calls->peer(calls->user, node, &to))
        return false;
    text_copy(peer->name, sizeof peer->name, to.name);
    wait_add(c, peer);
    dial_for_waiting(peer);
    if (peer->dials > 0)
        return true;
    remote_stop_waiting(c);
    return false;
}

/* --- upkeep ----------------------------------------------------------------------------------------- */

void remote_prepare(struct gateway_thread *t)
{
    while (t->remotes_overdue != NULL) {
        struct iovec parts[1];
        struct remote *r = t->remotes_overdue;
        due_remove(t, r);
        if (!r->lost && r->end_due != 0)
            (void)write_parts(r, parts, 1);
        if (r->lost)
            remote_lost(r, false);
    }
    t->remotes_overdue = t->remotes_due;
    t->remotes_due = NULL;
    if (!t->peers_due)
        return;
    t->peers_due = false;
    struct peer *peer, *next;
    HASH_ITER(hh, t->peers, peer, next)
    serve_waiting(peer);
}

void remote_sweep(struct gateway_thread *t)
{
    uint64_t now_ms = thread_now_ms(t);
    struct peer *peer, *next;
    HASH_ITER(hh, t->peers, peer, next)
    {
        while (peer->idle_last != NULL && peer->idle_last->idle_until_ms <= now_ms)
            remote_close(peer->idle_last);
    }
    remote_review(t);
}

void remote_review(struct gateway_thread *t)
{
    for (struct remote *r = t->remotes; r != NULL; r = r->next) {
        if (r->closing || r->lost || !secure_stream_distrusted(r->stream))
            continue;
        r->lost = true;
        due_add(r);
    }
}

void remote_close_all(struct gateway_thread *t)
{
    while (t->remotes != NULL) /* connections were closed before */
        remote_close(t->remotes);
}

void remote_free_all(struct gateway_thread *t)
{
    struct peer *peer, *next;
    HASH_ITER(hh, t->peers, peer, next)
    {
        HASH_DEL(t->peers, peer);
        free(peer);
    }
}
