/* Layers that other nodes ask for. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/layers/internal.h"

#define ASKERS_MAX 16u /* streams whose question has not come yet, or was refused */

static void asker_gone_cb(void *user)
{
    struct asker *a = user;
    struct layers *l = a->layers;
    struct asker **at = &l->askers;
    while (*at != a)
        at = &(*at)->next;
    *at = a->next;
    l->asker_count--;
    memory_close(&a->fd);
    free(a);
    layers_close_check(l);
}

static void asker_close(struct asker *a)
{
    if (a->closing)
        return;
    a->closing = true;
    secure_stream_close(a->stream, asker_gone_cb);
}

/* Says no, ends, and waits for the other's end so that nothing of it is lost. */
static void asker_pump(struct asker *a)
{
    size_t count = 0;
    char rest;
    if (!a->answered) {
        struct iovec part = {&a->answer, 1};
        enum secure_result result = secure_stream_write(a->stream, &part, 1, &count);
        a->answered = result == SECURE_DONE;
        if (a->answered)
            result = secure_stream_end(a->stream);
        if (result == SECURE_BROKEN) {
            asker_close(a);
            return;
        }
        if (!a->answered) {
            secure_stream_want(a->stream, SECURE_WANT_WRITE);
            return;
        }
    }
    if (secure_stream_read(a->stream, &rest, 1, &count) == SECURE_BLOCKED)
        secure_stream_want(a->stream, SECURE_WANT_READ);
    else
        asker_close(a);
}

static void asker_refuse(struct asker *a, enum layer_answer answer)
{
    a->layers->counts.refused++;
    a->answer = (uint8_t)answer;
    a->length = LAYER_ASK_BYTES + 1;
    asker_pump(a);
}

static void served_cb(struct layer_transfer *t, void *user, const struct layer_done *done)
{
    struct serve *s = user;
    struct layers *l = s->layers;
    struct serve **at = &l->serves;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    l->serve_count--;
    l->counts.bytes_out += done->bytes;
    if (done->error == NULL)
        l->counts.served++;
    else
        log_info("layers", "a layer did not go out whole: %s", done->error->msg);
    layer_transfer_free(t);
    free(s);
    layers_close_check(l);
}

static void detached_cb(void *user, struct secure_parcel *parcel)
{
    struct asker *a = user;
    struct layers *l = a->layers;
    struct serve *s = calloc(1, sizeof *s);
    struct err e;
    int fd = steal_fd(&a->fd);
    if (s != NULL && !l->closing) {
        s->layers = l;
        s->to = secure_parcel_peer(parcel);
        s->next = l->serves;
        l->serves = s;
        l->serve_count++;
        if (layer_serve(&s->transfer, l->options.secure, l->options.inbox, parcel, fd, served_cb, s,
                        &e) != 0) {
            log_warn("layers", "%s", e.msg);
            l->serves = s->next;
            l->serve_count--;
            free(s);
        }
    } else {
        free(s);
        memory_close(&fd);
        secure_parcel_drop(parcel);
    }
    asker_gone_cb(a);
}

static void export_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                      int *descriptors, size_t descriptor_count)
{
    (void)reply;
    struct asker *a = user;
    struct layers *l = a->layers;
    l->outside--;
    if (error != NULL || descriptor_count != 1 || l->closing) {
        for (size_t k = 0; k < descriptor_count; k++)
            memory_close(&descriptors[k]);
        if (l->closing)
            asker_close(a);
        else
            asker_refuse(a, error != NULL && error->code == ERR_NOT_FOUND ? LAYER_MISSING
                                                                          : LAYER_BUSY);
        return;
    }
    a->fd = descriptors[0];
    a->closing = true;
    secure_stream_detach(a->stream, detached_cb);
}

static void asker_asked(struct asker *a)
{
    struct layers *l = a->layers;
    if (!layer_ask_read(&a->ask, a->question)) {
        log_warn("layers", "node %llu asked for a layer in a way that is not known here",
                 (unsigned long long)secure_stream_peer(a->stream));
        asker_close(a);
        return;
    }
    if (l->serve_count >= LAYERS_SERVES_MAX) {
        asker_refuse(a, LAYER_BUSY);
        return;
    }
    secure_stream_want(a->stream, 0);
    Skerry__Runner__Export x = SKERRY__RUNNER__EXPORT__INIT;
    x.kind = a->ask.kind;
    x.digest = a->ask.digest;
    x.skip = a->ask.skip;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_EXPORT_STREAM;
    r.export_stream = &x;
    struct err e;
    if (sandbox_ask(l->options.sandbox, &r, export_cb, a, &e) == 0) {
        l->outside++;
        a->until_ms = UINT64_MAX; /* the runner's client has a deadline of its own */
    } else {
        asker_refuse(a, LAYER_BUSY);
    }
}

static void asker_ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    (void)readable;
    (void)writable;
    struct asker *a = secure_stream_user(s);
    if (a->closing)
        return;
    if (a->length > LAYER_ASK_BYTES) {
        asker_pump(a);
        return;
    }
    while (a->length < LAYER_ASK_BYTES) {
        size_t count = 0;
        enum secure_result result =
            secure_stream_read(s, a->question + a->length, LAYER_ASK_BYTES - a->length, &count);
        if (result == SECURE_BLOCKED) {
            secure_stream_want(s, SECURE_WANT_READ);
            return;
        }
        if (result != SECURE_DONE) {
            asker_close(a);
            return;
        }
        a->length += count;
    }
    asker_asked(a);
}

void layers_accept(struct layers *l, struct secure_stream *s)
{
    struct asker *a = l->closing || l->asker_count >= ASKERS_MAX ? NULL : calloc(1, sizeof *a);
    if (a == NULL) {
        l->counts.refused++;
        secure_stream_close(s, NULL);
        return;
    }
    a->layers = l;
    a->stream = s;
    a->fd = -1;
    a->until_ms = clock_monotonic_ms() + LAYER_IDLE_MS;
    a->next = l->askers;
    l->askers = a;
    l->asker_count++;
    const struct secure_events events = {.ready = asker_ready_cb};
    secure_stream_set_events(s, &events, a);
    secure_stream_want(s, SECURE_WANT_READ);
    layers_wake(l, LAYER_IDLE_MS);
}

/* --- for node/layers/layers.c ------------------------------------------------------------------------------- */

void layers_askers_look(struct layers *l, uint64_t now_ms)
{
    for (struct asker *a = l->askers; a != NULL; a = a->next) {
        if (now_ms >= a->until_ms)
            asker_close(a);
        else if (a->until_ms != UINT64_MAX)
            layers_wake(l, a->until_ms - now_ms);
    }
}

void layers_forget(struct layers *l, node_id id)
{
    for (struct serve *s = l->serves; s != NULL; s = s->next)
        if (s->to == id)
            layer_transfer_stop(s->transfer);
    for (struct asker *a = l->askers; a != NULL; a = a->next)
        if (!a->closing && a->until_ms != UINT64_MAX && secure_stream_peer(a->stream) == id)
            asker_close(a);
}

void layers_serves_stop(struct layers *l)
{
    for (struct serve *s = l->serves; s != NULL; s = s->next)
        layer_transfer_stop(s->transfer);
    /* Those whose export is being asked for are closed by its answer. */
    for (struct asker *a = l->askers; a != NULL; a = a->next)
        if (a->until_ms != UINT64_MAX || a->length > LAYER_ASK_BYTES)
            asker_close(a);
}
