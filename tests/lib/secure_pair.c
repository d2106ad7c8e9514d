#include "tests/lib/secure_pair.h"

#include <netinet/in.h>
#include <string.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"

#define WAIT_MS 20000u

bool secure_world_key_of(void *user, node_id id, struct identity_public *out)
{
    const struct secure_world *w = user;
    if (id == 0 || id >= SECURE_NODES || w->removed[id])
        return false;
    *out = *identity_public(w->identities[id]);
    return true;
}

void secure_world_open(struct secure_world *w)
{
    struct err e;
    memset(w, 0, sizeof *w);
    assert_always(uv_loop_init(&w->loop) == 0);
    for (node_id id = 1; id <= SECURE_NODES; id++) {
        assert_always(identity_new(&w->identities[id], &e) == 0);
        struct secure_context_options options = {
            .identity = w->identities[id], .id = id, .key_of = secure_world_key_of, .user = w};
        assert_always(secure_context_open(&w->contexts[id], &options, &e) == 0);
    }
}

void secure_world_close(struct secure_world *w)
{
    if (w->listener != NULL)
        secure_listener_close(w->listener, NULL);
    assert_always(uv_run(&w->loop, UV_RUN_DEFAULT) == 0);
    assert_always(uv_loop_close(&w->loop) == 0);
    for (node_id id = 1; id <= SECURE_NODES; id++) {
        secure_context_free(w->contexts[id]);
        identity_free(w->identities[id]);
    }
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    struct secure_world *w = user;
    w->accepted = s;
    w->accepted_count++;
}

void secure_world_listen(struct secure_world *w, node_id id, struct secure_listen_options options)
{
    struct sockaddr_storage any;
    struct err e;
    assert_always(address_parse(&any, "127.0.0.1:0", 0, &e) == 0);
    options.context = w->contexts[id];
    options.address = &any;
    if (options.accepted == NULL) {
        options.accepted = accepted_cb;
        options.user = w;
    }
    assert_always(secure_listener_open(&w->listener, &w->loop, &options, &e) == 0);
    w->address = *secure_listener_address(w->listener);
}

static void timeout_cb(uv_timer_t *timer)
{
    (void)timer;
}

static void timer_closed_cb(uv_handle_t *handle)
{
    *(bool *)handle->data = true;
}

bool secure_world_wait(struct secure_world *w, bool (*done)(void *user), void *user)
{
    uv_timer_t timer;
    bool closed = false;
    uint64_t until_ms = clock_monotonic_ms() + WAIT_MS;
    uv_timer_init(&w->loop, &timer);
    uv_timer_start(&timer, timeout_cb, 10, 10);
    while (!done(user) && clock_monotonic_ms() < until_ms)
        uv_run(&w->loop, UV_RUN_ONCE);
    bool ok = done(user);
    timer.data = &closed;
    uv_close((uv_handle_t *)&timer, timer_closed_cb);
    while (!closed)
        uv_run(&w->loop, UV_RUN_NOWAIT);
    return ok;
}
