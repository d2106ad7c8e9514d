/* Relays at the owner: what another node passes on becomes a connection of this API. */
#include "node/api/relay_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "gateway/problem.h"

#define RECORD_WAIT_MS 1000u

/* --- the record --------------------------------------------------------------------------------- */

enum { FLAG_TRUSTED = 1, FLAG_LOCAL = 2 };

size_t api_relay_record_write(const struct api_relay_record *record,
                              uint8_t out[API_RELAY_RECORD_BYTES_MAX])
{
    size_t length = strlen(record->who);
    out[0] = (uint8_t)((record->trusted ? FLAG_TRUSTED : 0) | (record->local ? FLAG_LOCAL : 0));
    out[1] = (uint8_t)length;
    memcpy(out + 2, record->who, length);
    return 2 + length;
}

ptrdiff_t api_relay_record_read(struct api_relay_record *out, const uint8_t *bytes, size_t length)
{
    if (length < 2)
        return length == 1 && bytes[0] > (FLAG_TRUSTED | FLAG_LOCAL) ? -1 : 0;
    if (bytes[0] > (FLAG_TRUSTED | FLAG_LOCAL) || bytes[1] >= sizeof out->who)
        return -1;
    /* Nobody is trusted but on a unix socket. */
    if ((bytes[0] & FLAG_TRUSTED) != 0 && (bytes[0] & FLAG_LOCAL) == 0)
        return -1;
    if (length < 2u + bytes[1])
        return 0;
    *out = (struct api_relay_record){.trusted = (bytes[0] & FLAG_TRUSTED) != 0,
                                     .local = (bytes[0] & FLAG_LOCAL) != 0};
    for (size_t i = 0; i < bytes[1]; i++) {
        uint8_t c = bytes[2 + i];
        out->who[i] = c > ' ' && c < 0x7f ? (char)c : c == ' ' ? ' ' : '?';
    }
    return 2 + (ptrdiff_t)bytes[1];
}

/* --- the owner ---------------------------------------------------------------------------------- */

/* A connection like others, at one end of a pair; we have the other. */
static int connection_make(struct api_relay *r, const struct api_relay_record *record)
{
    int pair[2];
    struct api *api = r->api;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return -ERR_IO;
    r->fd = pair[0];
    if (uv_poll_init(&api->loop, &r->poll, r->fd) != 0) {
        (void)close(pair[1]);
        return -ERR_IO;
    }
    r->poll.data = r;
    r->poller = &r->poll;
    struct api_connection *c = api_connection_open(api->relay_listener, pair[1]);
    if (c == NULL)
        return -ERR_LIMIT;
    c->relayed = true;
    c->trusted = record->trusted;
    c->local = record->local;
    (void)text_format(c->peer, sizeof c->peer, "%.40s at node %llu", record->who,
                      (unsigned long long)r->peer);
    return 0;
}

static void record_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct api_relay *r = secure_stream_user(s);
    struct relay_way *w = &r->down;
    struct api_relay_record record;
    size_t count = 0;
    (void)readable;
    (void)writable;
    if (r->phase != RELAY_RECORD)
        return;
    enum secure_result result =
        secure_stream_read(s, w->bytes + w->to, API_RELAY_BYTES - w->to, &count);
    if (result == SECURE_BLOCKED)
        return;
    w->to += count;
    ptrdiff_t length = api_relay_record_read(&record, (const uint8_t *)w->bytes, w->to);
    if (result == SECURE_DONE && length == 0)
        return;
    if (result != SECURE_DONE || length < 0 || connection_make(r, &record) != 0) {
        log_warn("api", "a request by node %llu was dropped: %s", (unsigned long long)r->peer,
                 result != SECURE_DONE ? "it broke off"
                 : length < 0          ? "it does not say who asks"
                                       : "no more connections");
        api_relay_end(r);
        return;
    }
    w->from = (size_t)length;
    r->deadline_ms = 0;
    r->phase = RELAY_OPEN;
    secure_stream_set_events(s, &(struct secure_events){.ready = api_relay_ready_cb}, r);
    api_relay_pump(r);
}

struct arrival {
    struct inbox_message message;
    struct secure_parcel *parcel;
};

static void arrive_cb(struct inbox_message *message, void *owner)
{
    struct arrival *a = container_of(message, struct arrival, message);
    struct secure_parcel *parcel = a->parcel;
    struct api *api = owner;
    struct err e = {0};
    free(a);
    struct api_relay *r =
        api->stopping || api->relay_listener == NULL || api->relay_count >= API_RELAYS_MAX
            ? NULL
            : api_relay_new(api, false);
    if (r == NULL) {
        log_warn("api", "a request by node %llu was dropped: too many are under way",
                 (unsigned long long)secure_parcel_peer(parcel));
        secure_parcel_drop(parcel);
        return;
    }
    r->peer = secure_parcel_peer(parcel);
    r->phase = RELAY_RECORD;
    r->deadline_ms = clock_monotonic_ms() + RECORD_WAIT_MS;
    struct secure_events events = {.ready = record_cb};
    if (secure_stream_attach(&r->stream, &api->loop, api->options.peers.secure, parcel, &events, r,
                             &e) != 0) {
        log_warn("api", "a request by node %llu was dropped: %s", (unsigned long long)r->peer,
                 e.msg);
        r->stream = NULL;
        api_relay_end(r);
        return;
    }
    secure_stream_want(r->stream, SECURE_WANT_READ);
}

void api_relay_accept(struct api *api, struct secure_parcel *parcel)
{
    struct arrival *a = calloc(1, sizeof *a);
    if (a != NULL) {
        a->message.deliver = arrive_cb;
        a->parcel = parcel;
        if (inbox_post(api->inbox, &a->message))
            return;
    }
    free(a);
    secure_parcel_drop(parcel);
}

/* --- who was removed --- */

static void review_cb(struct inbox_message *message, void *owner)
{
    struct api *api = owner;
    struct api_relay *next;
    free(message);
    for (struct api_relay *r = api->relays; r != NULL; r = next) {
        next = r->next;
        if (r->phase == RELAY_CLOSING || r->stream == NULL || !secure_stream_distrusted(r->stream))
            continue;
        if (r->request != NULL && (r->phase == RELAY_HEAD || r->phase == RELAY_BODY))
            api_relay_broke_off(r, "it was removed from the cluster");
        else if (r->request == NULL)
            api_relay_end(r);
    }
}

void api_relay_review(struct api *api)
{
    struct inbox_message *message = malloc(sizeof *message);
    if (message == NULL)
        return;
    message->deliver = review_cb;
    if (!inbox_post_always(api->inbox, message))
        free(message);
}

/* --- all of them -------------------------------------------------------------------------------- */

void api_relay_sweep(struct api *api, uint64_t now_ms)
{
    struct api_relay *next;
    for (struct api_relay *r = api->relays; r != NULL; r = next) {
        next = r->next;
        if (r->deadline_ms != 0 && now_ms >= r->deadline_ms && r->phase != RELAY_CLOSING)
            api_relay_end(r); /* too slow */
    }
}

void api_relay_stop(struct api *api)
{
    struct api_relay *next;
    for (struct api_relay *r = api->relays; r != NULL; r = next) {
        next = r->next;
        if (!r->entry)
            api_relay_end(r);
    }
}
