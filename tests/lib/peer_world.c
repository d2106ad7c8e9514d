#include "tests/lib/peer_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>
#include <unistd.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"

/* --- a small cluster ------------------------------------------------------------------------------ */

bool world_key_of(void *user, node_id id, struct identity_public *out)
{
    struct world *w = ((struct node_end *)user)->w;
    if (id == 0 || id >= NODES || w->removed[id]) /* 4 is a stranger */
        return false;
    *out = *identity_public(w->identities[id]);
    return true;
}

bool world_address_of(void *user, node_id id, struct sockaddr_storage *out)
{
    struct world *w = ((struct node_end *)user)->w;
    if (id == 0 || id > NODES || w->ends[id].address.ss_family == 0)
        return false;
    *out = w->ends[id].address;
    return true;
}

/* Answers "<payload>!". */
void world_answer(struct peer_question *q)
{
    size_t size = 0;
    const uint8_t *payload = peer_question_payload(q, &size);
    uint8_t *text = malloc(size + 1);
    if (size > 0)
        memcpy(text, payload, size);
    text[size] = '!';
    peer_question_answer(q, text, size + 1);
    free(text);
}

void world_asked_cb(void *user, struct peer_question *q)
{
    struct node_end *end = user;
    end->asked++;
    assert_int_equal(peer_question_what(q), 9);
    if (end->keep && end->kept_count < KEPT_MAX)
        end->kept[end->kept_count++] = q;
    else if (end->drop)
        peer_question_drop(q);
    else
        world_answer(q);
}

void world_start(struct world *w, node_id id, uint64_t boot, const char *address)
{
    struct node_end *end = &w->ends[id];
    struct err e;
    end->w = w;
    end->id = id;
    end->closed = false;
    assert_int_equal(address_parse(&end->address, address, 0, &e), 0);
    struct peer_rpc_options options = {.identity = w->identities[id],
                                       .id = id,
                                       .boot = boot,
                                       .address = &end->address,
                                       .key_of = world_key_of,
                                       .address_of = world_address_of,
                                       .asked = world_asked_cb,
                                       .user = end,
                                       .questions_max = 16,
                                       .calls_max = 1000,
                                       .connections_max = CONNECTIONS_MAX,
                                       .bytes_max = BYTES_MAX};
    if (peer_rpc_open(&end->rpc, &w->loop, &options, &e) != 0)
        fail_msg("%s", e.msg);
}

static void closed_cb(void *user)
{
    ((struct node_end *)user)->closed = true;
}

static void timeout_cb(uv_timer_t *timer)
{
    (void)timer;
}

static void timer_closed_cb(uv_handle_t *handle)
{
    *(bool *)handle->data = true;
}

bool world_wait_until(struct world *w, bool (*done)(void *user), void *user)
{
    uv_timer_t timer;
    bool closed = false;
    uint64_t until_ms = clock_monotonic_ms() + WAIT_MS;
    uv_timer_init(&w->loop, &timer);
    uv_timer_start(&timer, timeout_cb, 5, 5);
    while (!done(user) && clock_monotonic_ms() < until_ms)
        uv_run(&w->loop, UV_RUN_ONCE);
    timer.data = &closed;
    uv_close((uv_handle_t *)&timer, timer_closed_cb);
    while (!closed)
        uv_run(&w->loop, UV_RUN_NOWAIT);
    return done(user);
}

static bool end_closed(void *user)
{
    return ((struct node_end *)user)->closed;
}

void world_stop(struct world *w, node_id id)
{
    struct node_end *end = &w->ends[id];
    peer_rpc_close(end->rpc, closed_cb);
    end->rpc = NULL;
    end->kept_count = 0;
    assert_true(world_wait_until(w, end_closed, end));
}

/* Ports of this test alone: 17600 and up, by process. */
const char *world_address_at(unsigned host)
{
    static char text[ADDRESS_TEXT_SIZE];
    (void)text_format(text, sizeof text, "127.0.7.%u:%d", host, 17600 + (int)(getpid() % 1000));
    return text;
}

int world_set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct err e;
    assert_int_equal(uv_loop_init(&w->loop), 0);
    for (node_id id = 1; id <= NODES; id++)
        assert_int_equal(identity_new(&w->identities[id], &e), 0);
    world_start(w, 1, 11, world_address_at(1));
    world_start(w, 2, 22, world_address_at(2));
    *state = w;
    return 0;
}

int world_tear_down(void **state)
{
    struct world *w = *state;
    for (node_id id = 1; id <= NODES; id++) {
        if (w->ends[id].rpc != NULL)
            world_stop(w, id);
        identity_free(w->identities[id]);
    }
    assert_int_equal(uv_run(&w->loop, UV_RUN_DEFAULT), 0);
    assert_int_equal(uv_loop_close(&w->loop), 0);
    free(w);
    return 0;
}

/* --- calls ---------------------------------------------------------------------------------------- */

static void answered_cb(void *user, const struct peer_answer *a)
{
    struct asking *asking = user;
    assert_false(asking->ended);
    asking->ended = true;
    if (a->error != NULL) {
        asking->code = a->error->code;
        asking->maybe_heard = a->maybe_heard;
        return;
    }
    asking->size = a->size;
    if (a->size < sizeof asking->text)
        memcpy(asking->text, a->payload, a->size);
}

int world_try_ask(struct world *w, struct asking *asking, node_id to, const void *payload,
                  size_t size, unsigned timeout_ms, struct err *e)
{
    *asking = (struct asking){.ended = false};
    struct peer_call call = {.to = to,
                             .what = 9,
                             .payload = payload,
                             .size = size,
                             .timeout_ms = timeout_ms,
                             .answered = answered_cb,
                             .user = asking};
    return peer_rpc_call(w->ends[1].rpc, &call, e);
}

void world_ask(struct world *w, struct asking *asking, node_id to, const char *text,
               unsigned timeout_ms)
{
    struct err e;
    if (world_try_ask(w, asking, to, text, strlen(text), timeout_ms, &e) != 0)
        fail_msg("%s", e.msg);
}

bool world_has_ended(void *user)
{
    return ((struct asking *)user)->ended;
}

uint64_t world_refused(struct world *w, node_id at, enum peer_seal_refusal why)
{
    return refusals_count(peer_rpc_refusals(w->ends[at].rpc), why);
}

bool world_has_kept(void *user)
{
    return ((struct node_end *)user)->kept_count > 0;
}
