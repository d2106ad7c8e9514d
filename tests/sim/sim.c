#include "tests/sim/sim.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { WORLD = UINT32_MAX };

struct event {
    uint64_t at_us, serial; /* equal times in the order of making */
    uint32_t node, life;    /* WORLD: nobody's */
    sim_run run;            /* or: */
    sim_deliver deliver;
    void *user;
    uint64_t number;
    uint32_t from, from_life;
    bool message;
    uint8_t *data;
    size_t size;
};

struct sim_node {
    bool up;
    uint32_t life;
    uint64_t awake_us; /* stalled until then */
    uint64_t burst_us; /* events of this moment all run */
    uint64_t stall_max_us;
};

struct sim {
    uint64_t random[4];
    uint64_t now_us, serial;
    struct event *heap;
    size_t count, capacity;
    uint32_t node_count;
    struct sim_node *nodes;
    struct sim_network network;
    uint8_t *cut;          /* [from * node_count + to]; NULL: no link is cut */
    uint64_t **message_us; /* [from][to]: the last one's arrival; a row is made when first needed */
};

/* --- randomness: splitmix64 for the seed, xoshiro256** for the rest --------------------------- */

static uint64_t rotate(uint64_t x, unsigned by)
{
    return x << by | x >> (64 - by);
}

uint64_t sim_random(struct sim *s)
{
    uint64_t *r = s->random, result = rotate(r[1] * 5, 7) * 9, t = r[1] << 17;
    r[2] ^= r[0];
    r[3] ^= r[1];
    r[1] ^= r[2];
    r[0] ^= r[3];
    r[2] ^= t;
    r[3] = rotate(r[3], 45);
    return result;
}

uint64_t sim_below(struct sim *s, uint64_t bound)
{
    return bound == 0 ? 0 : sim_random(s) % bound;
}

uint64_t sim_between(struct sim *s, uint64_t low, uint64_t high)
{
    return low + sim_below(s, high - low + 1);
}

bool sim_chance(struct sim *s, uint32_t permille)
{
    return sim_below(s, 1000) < permille;
}

/* --- the queue: a binary heap ----------------------------------------------------------------- */

static bool before(const struct event *a, const struct event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->serial < b->serial;
}

static void push(struct sim *s, struct event event)
{
    if (s->count == s->capacity) {
        s->capacity = s->capacity == 0 ? 1024 : s->capacity * 2;
        s->heap = realloc(s->heap, s->capacity * sizeof *s->heap);
        assert_always(s->heap != NULL);
    }
    event.serial = ++s->serial;
    size_t at = s->count++;
    for (; at > 0 && before(&event, &s->heap[(at - 1) / 2]); at = (at - 1) / 2)
        s->heap[at] = s->heap[(at - 1) / 2];
    s->heap[at] = event;
}

static struct event pop(struct sim *s)
{
    struct event first = s->heap[0], moved = s->heap[--s->count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= s->count)
            break;
        if (child + 1 < s->count && before(&s->heap[child + 1], &s->heap[child]))
            child++;
        if (!before(&s->heap[child], &moved))
            break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = moved;
    return first;
}

uint64_t sim_now_us(const struct sim *s)
{
    return s->now_us;
}

/* --- running ---------------------------------------------------------------------------------- */

bool sim_reachable(const struct sim *s, uint32_t from, uint32_t to)
{
    return s->cut == NULL || s->cut[(size_t)from * s->node_count + to] == 0;
}

static void run(struct sim *s, struct event event)
{
    struct sim_node *n = event.node == WORLD ? NULL : &s->nodes[event.node];
    if (n != NULL && (!n->up || n->life != event.life)) {
        free(event.data);
        return;
    }
    if (n != NULL && event.at_us < n->awake_us && event.at_us != n->burst_us) {
        event.at_us = n->awake_us;
        push(s, event);
        return;
    }
    if (n != NULL && n->stall_max_us > 0 && event.at_us != n->burst_us) {
        n->burst_us = event.at_us;
        n->awake_us = event.at_us + sim_below(s, n->stall_max_us);
    }
    if (event.run != NULL) {
        event.run(event.user, event.node, event.number);
        return;
    }
    assert_always(n != NULL);
    bool whole =
        s->nodes[event.from].life == event.from_life && sim_reachable(s, event.from, event.node);
    if (!event.message || whole)
        event.deliver(event.user, event.node, event.from, event.data, event.size);
    free(event.data);
}

void sim_until(struct sim *s, uint64_t at_us)
{
    while (s->count > 0 && s->heap[0].at_us <= at_us) {
        struct event event = pop(s);
        s->now_us = event.at_us;
        run(s, event);
    }
    s->now_us = at_us;
}

void sim_at(struct sim *s, uint64_t at_us, sim_run run_it, void *user, uint64_t number)
{
    push(s, (struct event){.at_us = at_us < s->now_us ? s->now_us : at_us,
                           .node = WORLD,
                           .run = run_it,
                           .user = user,
                           .number = number});
}

void sim_node_at(struct sim *s, uint32_t node, uint64_t at_us, sim_run run_it, void *user,
                 uint64_t number)
{
    push(s, (struct event){.at_us = at_us < s->now_us ? s->now_us : at_us,
                           .node = node,
                           .life = s->nodes[node].life,
                           .run = run_it,
                           .user = user,
                           .number = number});
}

/* --- nodes ------------------------------------------------------------------------------------ */

void sim_node_up(struct sim *s, uint32_t node)
{
    struct sim_node *n = &s->nodes[node];
    assert_always(!n->up);
    *n = (struct sim_node){.up = true, .life = n->life + 1, .burst_us = UINT64_MAX};
}

void sim_node_crash(struct sim *s, uint32_t node)
{
    s->nodes[node].up = false;
}

bool sim_node_is_up(const struct sim *s, uint32_t node)
{
    return s->nodes[node].up;
}

void sim_node_pause(struct sim *s, uint32_t node, uint64_t until_us)
{
    struct sim_node *n = &s->nodes[node];
    n->burst_us = UINT64_MAX;
    if (until_us > n->awake_us)
        n->awake_us = until_us;
}

void sim_node_slow(struct sim *s, uint32_t node, uint64_t stall_max_us)
{
    s->nodes[node].stall_max_us = stall_max_us;
}

/* --- network ---------------------------------------------------------------------------------- */

struct sim_network *sim_network(struct sim *s)
{
    return &s->network;
}

void sim_cut(struct sim *s, uint32_t from, uint32_t to, bool cut)
{
    if (s->cut == NULL)
        s->cut = calloc((size_t)s->node_count * s->node_count, 1);
    assert_always(s->cut != NULL);
    s->cut[(size_t)from * s->node_count + to] = cut;
}

void sim_heal(struct sim *s)
{
    free(s->cut);
    s->cut = NULL;
    for (uint32_t i = 0; i < s->node_count; i++)
        s->nodes[i].stall_max_us = s->nodes[i].awake_us = 0;
}

static void send(struct sim *s, uint32_t from, uint32_t to, const void *data, size_t size,
                 struct event event)
{
    event.at_us = s->now_us + sim_between(s, s->network.delay_min_us, s->network.delay_max_us);
    event.node = to;
    event.life = s->nodes[to].life;
    event.from = from;
    event.from_life = s->nodes[from].life;
    event.data = malloc(size > 0 ? size : 1);
    event.size = size;
    assert_always(event.data != NULL);
    memcpy(event.data, data, size);
    if (event.message) {
        uint64_t *last_us = &s->message_us[from][to];
        if (event.at_us <= *last_us)
            event.at_us = *last_us + 1;
        *last_us = event.at_us;
    }
    push(s, event);
}

void sim_datagram(struct sim *s, uint32_t from, uint32_t to, const void *data, size_t size,
                  sim_deliver deliver, void *user)
{
    struct event event = {.deliver = deliver, .user = user};
    if (!sim_reachable(s, from, to) || !s->nodes[to].up || sim_chance(s, s->network.loss_permille))
        return;
    send(s, from, to, data, size, event);
    if (sim_chance(s, s->network.double_permille))
        send(s, from, to, data, size, event);
}

void sim_message(struct sim *s, uint32_t from, uint32_t to, const void *data, size_t size,
                 sim_deliver deliver, void *user)
{
    struct event event = {.deliver = deliver, .user = user, .message = true};
    if (!sim_reachable(s, from, to) || !s->nodes[to].up)
        return;
    if (s->message_us[from] == NULL)
        s->message_us[from] = calloc(s->node_count, sizeof **s->message_us);
    assert_always(s->message_us[from] != NULL);
    send(s, from, to, data, size, event);
}

/* --- life ------------------------------------------------------------------------------------- */

struct sim *sim_new(uint64_t seed, uint32_t nodes)
{
    struct sim *s = calloc(1, sizeof *s);
    assert_always(s != NULL);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15ull;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        s->random[i] = z ^ z >> 31;
    }
    s->node_count = nodes;
    s->nodes = calloc(nodes, sizeof *s->nodes);
    s->message_us = calloc(nodes, sizeof *s->message_us);
    assert_always(s->nodes != NULL && s->message_us != NULL);
    s->network = (struct sim_network){.delay_min_us = 50, .delay_max_us = 500};
    return s;
}

void sim_free(struct sim *s)
{
    for (size_t i = 0; i < s->count; i++)
        free(s->heap[i].data);
    for (uint32_t i = 0; i < s->node_count; i++)
        free(s->message_us[i]);
    free(s->heap);
    free(s->nodes);
    free(s->cut);
    free(s->message_us);
    free(s);
}
