#include "gateway/arrival.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "gateway/remote.h"

/* The stream of an arrival: from the control thread to one of ours, what it brings, its end. */

enum {
    READ_BYTES = 32 * 1024,
    /* The other side hangs up within a round trip; should it not, this does. */
    END_LINGER_MS = 500,
};

/* --- closing ---------------------------------------------------------------------------------------- */

void arrival_serving_ends(struct arrival *a)
{
    struct gateway *g = a->c.thread->gateway;
    if (a->serving)
        atomic_fetch_sub(&g->arrivals_serving, 1);
    if (a->old)
        atomic_fetch_sub(&g->arrivals_old, 1);
    a->serving = a->old = false;
}

static void closed(struct arrival *a)
{
    struct gateway_thread *t = a->c.thread;
    if (--a->c.handles > 0)
        return;
    record_decoder_free(&a->decoder);
    free(a);
    atomic_fetch_sub(&t->gateway->arrivals, 1);
    t->stream_count--;
    thread_check_closed(t);
}

static void timer_closed_cb(uv_handle_t *handle)
{
    closed(((struct connection *)handle->data)->arrival);
}

static void stream_closed_cb(void *user)
{
    closed(user);
}

void arrival_close(struct arrival *a)
{
    struct connection *c = &a->c;
    struct gateway_thread *t = c->thread;
    if (c->phase == PHASE_CLOSING)
        return;
    connection_abandon(c);
    connection_drop_exchange(c);
    c->phase = PHASE_CLOSING;
    arrival_serving_ends(a);
    queue_clear(&t->blocks, &c->in);
    if (a->previous != NULL)
        a->previous->next = a->next;
    else
        t->arrivals = a->next;
    if (a->next != NULL)
        a->next->previous = a->previous;
    secure_stream_close(a->stream, stream_closed_cb);
    uv_close((uv_handle_t *)&c->timer, timer_closed_cb);
}

/* Closing at once would answer a question that is on its way with a reset: nobody could tell whether the
 * code has it. */
void arrival_end(struct arrival *a)
{
    struct connection *c = &a->c;
    if (a->serving || c->phase == PHASE_CLOSING || c->phase == PHASE_LINGER)
        return;
    enum secure_result result = secure_stream_end(a->stream);
    if (result != SECURE_DONE && result != SECURE_BLOCKED) {
        arrival_close(a);
        return;
    }
    a->ended = true;
    c->phase = PHASE_LINGER;
    connection_set_deadline(c, thread_now_ms(c->thread) + END_LINGER_MS);
    arrival_update(c);
}

void arrival_protocol_broken(struct arrival *a, const char *why)
{
    uint8_t reset[RECORD_RESET_BYTES];
    struct iovec part = {reset, sizeof reset};
    size_t written = 0;
    log_warn("gateway", "node %llu sends what is no join: %s",
             (unsigned long long)secure_stream_peer(a->stream), why);
    record_reset(reset, RECORD_RESET_PROTOCOL, 0);
    (void)secure_stream_write(a->stream, &part, 1, &written);
    arrival_close(a);
}

/* --- the stream ------------------------------------------------------------------------------------- */

static void take_end(struct arrival *a, enum record_end how)
{
    struct connection *c = &a->c;
    /* Before the grant was told, or while another connection to the code is sought, nobody can know of
     * a whole answer. */
    if (!a->ended && (c->phase != PHASE_JOIN || !a->granted || a->head_due)) {
        arrival_protocol_broken(a, "an end before an answer");
    } else if (how == RECORD_END_HALF && !a->ended) {
        a->half = true;
        if (c->phase == PHASE_JOIN)
            arrival_send(c);
        /* The next thing from there can only be a join after our END. */
    } else {
        arrival_join_over(a, how);
    }
}

static void take_record(struct arrival *a, const struct record *record)
{
    struct connection *c = &a->c;
    switch (record->kind) {
    case RECORD_HEAD:
        arrival_take_head(a, record);
        break;
    case RECORD_DATA:
        if (!a->ended && !c->x.up_broken &&
            !queue_append(&c->thread->blocks, &c->in, record->data, record->size))
            arrival_close(a);
        break;
    case RECORD_END:
        take_end(a, record->end);
        break;
    case RECORD_RESET:
        arrival_close(a);
        break;
    }
}

static void take_bytes(struct arrival *a, const char *bytes, size_t length)
{
    struct connection *c = &a->c;
    size_t at = 0;
    while (at < length && c->phase != PHASE_CLOSING) {
        struct record record;
        struct err e;
        size_t taken = 0;
        int rc = record_decode(&a->decoder, &record, bytes + at, length - at, &taken, &e);
        at += taken;
        if (rc < 0)
            arrival_protocol_broken(a, e.msg);
        else if (rc == 1 && c->phase != PHASE_LINGER)
            take_record(a, &record);
    }
    const struct upstream *u = c->x.upstream;
    if (c->phase == PHASE_JOIN && u != NULL && u->connected && !a->ended &&
        queue_pending(&c->in) > a->in_sent) {
        arrival_send(c);
        if (c->phase == PHASE_JOIN)
            arrival_set_deadline(c);
    }
}

static bool has_room(const struct arrival *a)
{
    return a->ended || queue_pending(&a->c.in) - a->in_sent < QUEUE_BYTES_MAX;
}

void arrival_update(struct connection *c)
{
    const struct arrival *a = c->arrival;
    const struct upstream *u = c->x.upstream;
    if (c->phase == PHASE_CLOSING)
        return;
    unsigned want = has_room(a) ? SECURE_WANT_READ : SECURE_WANT_HANGUP;
    if (u != NULL && u->reading_stopped && !a->our_half)
        want |= SECURE_WANT_WRITE;
    secure_stream_want(a->stream, want);
}

static void stream_readable(struct arrival *a)
{
    struct connection *c = &a->c;
    struct gateway_thread *t = c->thread;
    size_t n = 0;
    if (!has_room(a)) {
        if (secure_stream_error(a->stream) != NULL) /* it hung up */
            arrival_close(a);
        return;
    }
    enum secure_result result = secure_stream_read(a->stream, t->stream_scratch, READ_BYTES, &n);
    if (result == SECURE_DONE)
        take_bytes(a, t->stream_scratch, n);
    else if (result != SECURE_BLOCKED)
        arrival_close(a);
    if (c->phase == PHASE_HEAD && t->draining && !a->serving && record_decoder_idle(&a->decoder))
        arrival_end(a);
    arrival_update(c);
}

static void ready_cb(struct secure_stream *s, bool is_readable, bool is_writable)
{
    struct arrival *a = secure_stream_user(s);
    struct upstream *u = a->c.x.upstream;
    if (is_writable && u != NULL && u->reading_stopped && !a->our_half &&
        secure_stream_pending(s) <= STREAM_PENDING_BYTES_MAX / 2) {
        u->reading_stopped = false;
        upstream_set_mask(u, u->mask | UV_READABLE);
        arrival_update(&a->c);
    }
    if (is_readable)
        stream_readable(a);
}

/* --- beginning -------------------------------------------------------------------------------------- */

static void arrival_open(struct gateway_thread *t, struct secure_parcel *parcel)
{
    static const struct secure_events events = {.ready = ready_cb};
    struct gateway *g = t->gateway;
    struct err e;
    bool room = atomic_fetch_add(&g->arrivals, 1) < g->options.connections_max;
    struct arrival *a = room ? calloc(1, sizeof *a) : NULL;
    if (a == NULL) {
        atomic_fetch_sub(&g->arrivals, 1);
        secure_parcel_drop(parcel);
        return;
    }
    struct connection *c = &a->c;
    c->thread = t;
    c->arrival = a;
    c->bridge = &arrival_bridge;
    c->fd = -1;
    c->deadline_ms = c->armed_ms = c->routes_until_ms = UINT64_MAX;
    record_decoder_init(&a->decoder);
    if (secure_stream_attach(&a->stream, &t->loop, g->options.secure, parcel, &events, a, &e) < 0) {
        log_warn("gateway", "%s", e.msg);
        atomic_fetch_sub(&g->arrivals, 1);
        free(a);
        return;
    }
    uv_timer_init(&t->loop, &c->timer);
    c->timer.data = c;
    c->handles = 2; /* the timer and the stream */
    a->next = t->arrivals;
    if (a->next != NULL)
        a->next->previous = a;
    t->arrivals = a;
    t->stream_count++;
    arrival_update(c);
    if (t->shut || t->closing)
        arrival_end(a);
}

/* --- from the control thread ------------------------------------------------------------------------ */

struct handover {
    struct inbox_message message;
    struct secure_parcel *parcel;
};

static void handover_deliver(struct inbox_message *message, void *owner)
{
    struct handover *h = container_of(message, struct handover, message);
    arrival_open(owner, h->parcel);
    free(h);
}

void gateway_accept(struct gateway *g, struct secure_parcel *parcel)
{
    struct handover *h = g->closing ? NULL : malloc(sizeof *h);
    if (h != NULL) {
        *h = (struct handover){{.deliver = handover_deliver}, parcel};
        struct gateway_thread *t = g->threads[g->accept_next++ % g->thread_count];
        if (inbox_post_always(t->inbox, &h->message))
            return;
    }
    free(h);
    secure_parcel_drop(parcel);
}

/* --- upkeep ----------------------------------------------------------------------------------------- */

void arrival_note_drain(struct gateway_thread *t)
{
    for (struct arrival *a = t->arrivals; a != NULL; a = a->next) {
        if (!a->serving || a->old)
            continue;
        a->old = true;
        atomic_fetch_add(&t->gateway->arrivals_old, 1);
    }
}

void arrival_drain(struct gateway_thread *t)
{
    struct arrival *next;
    for (struct arrival *a = t->arrivals; a != NULL; a = next) {
        next = a->next;
        if (!a->serving && record_decoder_idle(&a->decoder))
            arrival_end(a);
    }
}

void arrival_sweep(struct gateway_thread *t)
{
    struct arrival *next;
    for (struct arrival *a = t->arrivals; a != NULL; a = next) {
        next = a->next;
        /* A node that was removed from the cluster gets nothing more. */
        if (!secure_stream_trusted(a->stream))
            arrival_close(a);
    }
}

void arrival_close_all(struct gateway_thread *t)
{
    struct arrival *next;
    for (struct arrival *a = t->arrivals; a != NULL; a = next) {
        next = a->next;
        if (a->serving)
            arrival_close(a);
        else
            arrival_end(a);
    }
}
