#include "gateway/remote.h"

/* A join whose instance only one node has, while that node is away: its `serve` restarts, and the
 * instance lives on in its runner. The client's node waits and asks again, as long as no byte of the
 * request reached the instance.
 *
 *     refused, or not reached -> AWAY -> the routes are looked at anew: ended -> said so
 *                                 ^ |                                `-> its node is asked again
 *                                 '-'
 *
 * It ends after owner_wait_ms, or when the request's own time is over. Of a node that has been away
 * for longer than owner_wait_ms nobody waits: requests must not pile up before one that is dead. When
 * its lease is over, its instances have ended, and that is the answer. */

enum {
    AWAY_MAX = 1024, /* of a thread: they wait at the same time */
    AWAY_FIRST_MS = 25,
    AWAY_PAUSE_MS = 250,
    /* A node that came back has other things to do than many handshakes: of all who wait for it one
     * asks at a time. */
    AWAY_GATE_MS = 40,
    /* Whoever asks for a node that was not missed for so long finds out anew. */
    AWAY_FORGET_MS = 2000,
};

static uint64_t wait_ms(const struct connection *c)
{
    return c->thread->gateway->options.owner_wait_ms;
}

static uint64_t bounded(uint64_t at_ms, uint64_t from_ms, uint64_t span_ms)
{
    return span_ms == DURATION_NONE || from_ms + span_ms > at_ms ? at_ms : from_ms + span_ms;
}

/* Until when the request may wait at most. */
static uint64_t patience_ends_ms(const struct connection *c, uint64_t now_ms)
{
    const struct gateway_workload *w = &c->x.workload;
    uint64_t asked_ms = c->x.started_us / 1000;
    uint64_t at_ms = now_ms + wait_ms(c);
    if (w->queue_timeout_ms != 0)
        at_ms = bounded(at_ms, now_ms, w->queue_timeout_ms);
    return bounded(at_ms, asked_ms, w->request_ms);
}

/* False: it has been away for too long already. */
static bool miss(struct connection *c, node_id owner, uint64_t now_ms)
{
    const struct gateway_calls *calls = &c->thread->gateway->options.calls;
    struct gateway_peer to = {0};
    struct peer *peer = NULL;
    if (owner == c->thread->gateway->options.id)
        return true; /* it takes up its instances, which has an end */
    /* One that was removed is not waited for. */
    if (calls->peer != NULL && calls->peer(calls->user, owner, &to))
        peer = remote_peer(c->thread, owner);
    if (peer == NULL)
        return false;
    if (peer->missed_ms == 0 || now_ms - peer->missed_ms > AWAY_FORGET_MS)
        peer->missed_since_ms = now_ms;
    peer->missed_ms = now_ms;
    peer->gate_until_ms = now_ms + AWAY_GATE_MS;
    return now_ms - peer->missed_since_ms < wait_ms(c);
}

/* Between half of it and all, so that those who came together do not come again together. */
static uint64_t with_jitter(struct connection *c, uint64_t pause_ms)
{
    return pause_ms / 2 + thread_random(c->thread) % (pause_ms / 2 + 1);
}

static void pause_begin(struct connection *c, uint64_t pause_ms)
{
    uint64_t at_ms = thread_now_ms(c->thread) + with_jitter(c, pause_ms);
    c->phase = PHASE_AWAY;
    c->thread->away_count++;
    if (c->half_closed_ms != 0 && c->half_closed_ms + HALF_CLOSE_MS < at_ms)
        at_ms = c->half_closed_ms + HALF_CLOSE_MS;
    connection_set_deadline(c, at_ms);
}

bool away_is(enum problem problem)
{
    return problem == PROBLEM_OWNER_UNREACHABLE || problem == PROBLEM_DRAINING;
}

bool away_wait(struct connection *c, node_id owner, enum problem problem)
{
    struct exchange *x = &c->x;
    struct away *away = &x->away;
    uint64_t now_ms = thread_now_ms(c->thread);
    bool here = owner == c->thread->gateway->options.id;
    /* What this node itself refuses because it stops, it will not serve in a moment. */
    if (!away_is(problem) || (here && problem == PROBLEM_DRAINING) || owner == 0 ||
        c->arrival != NULL || x->unknown || x->workload.kind == WORKLOAD_COMMAND ||
        (!x->forced && x->key[0] == '\0') || c->thread->closing ||
        c->thread->away_count >= AWAY_MAX)
        return false;
    if (away->until_ms == 0)
        away->until_ms = patience_ends_ms(c, now_ms);
    if (!miss(c, owner, now_ms) || now_ms >= away->until_ms)
        return false;
    uint64_t pause_ms = (uint64_t)AWAY_FIRST_MS << (away->tries < 8 ? away->tries : 8);
    away->owner = owner;
    away->tries++;
    pause_begin(c, pause_ms < AWAY_PAUSE_MS ? pause_ms : AWAY_PAUSE_MS);
    return true;
}

void away_over(struct gateway_thread *t, node_id owner)
{
    struct peer *peer = remote_peer(t, owner);
    if (peer != NULL)
        peer->missed_ms = peer->gate_until_ms = 0;
}

void away_stop_waiting(struct connection *c)
{
    c->thread->away_count--;
}

/* Another is asking its node right now. */
static bool must_wait(struct connection *c, uint64_t now_ms)
{
    node_id owner = c->x.away.owner;
    struct peer *peer =
        owner == c->thread->gateway->options.id ? NULL : remote_peer(c->thread, owner);
    if (peer == NULL || now_ms >= c->x.away.until_ms)
        return false;
    if (now_ms < peer->gate_until_ms)
        return true;
    if (peer->gate_until_ms != 0)
        peer->gate_until_ms = now_ms + AWAY_GATE_MS;
    return false;
}

static void ask_again(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    struct exchange *x = &c->x;
    struct gateway_instance instance;
    struct gateway_workload workload;
    memset(&instance, 0, sizeof instance);
    memset(x->travel.refused, 0, sizeof x->travel.refused);
    x->travel.refused_count = 0;
    x->travel.fresh = false;
    x->travel.node = 0;
    x->node_name = NULL;
    if (!x->forced) {
        x->id.text[0] = '\0';
        dispatch_ask(c);
        return;
    }
    if (!calls->instance(calls->user, t->routes, &x->id, &instance, &workload)) {
        dispatch_ask(c);
        return;
    }
    if (!instance.local)
        x->travel.node = instance.owner;
    if (dispatch_judge_forced(c, &instance) == DISPATCH_READY)
        dispatch_find_instance(c);
}

void away_deadline(struct connection *c)
{
    uint64_t now_ms = thread_now_ms(c->thread);
    if (c->half_closed_ms != 0 && now_ms >= c->half_closed_ms + HALF_CLOSE_MS) {
        connection_close(c, true);
        return;
    }
    away_stop_waiting(c);
    if (must_wait(c, now_ms))
        pause_begin(c, AWAY_GATE_MS);
    else
        ask_again(c);
}

void away_client_closed_half(struct connection *c)
{
    if (c->x.raw)
        return;        /* it goes on waiting for its turn */
    if (!c->x.up.done) /* the rest of the body will never come */
        connection_close(c, true);
    else
        connection_set_deadline(c, thread_now_ms(c->thread) + HALF_CLOSE_MS);
}
