#include "raft/spare_choose.h"

#include <string.h>

#include "base/memory.h"

/* splitmix64 (Vigna). */
static uint64_t next_random(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool is_avoided(const struct spare_choice *c, node_id id, uint64_t now_ms)
{
    for (size_t i = 0; i < ARRAY_SIZE(c->avoided); i++)
        if (c->avoided[i].id == id && c->avoided[i].until_ms > now_ms)
            return true;
    return false;
}

static bool is_member(const struct spare_choice *c, node_id id)
{
    for (size_t i = 0; i < c->member_count; i++)
        if (c->members[i].id == id)
            return c->members[i].role == REGISTRY_ROLE_VOTER ||
                   c->members[i].role == REGISTRY_ROLE_STANDBY;
    return false;
}

node_id spare_choose(struct spare_choice *c, uint64_t now_ms)
{
    node_id chosen = 0;
    int best = -1;
    uint64_t equals = 0;
    const char *zone = "";
    for (size_t i = 0; i < c->peer_count; i++)
        if (c->peers[i].id == c->self)
            zone = c->peers[i].zone;
    for (size_t i = 0; i < c->peer_count; i++) {
        const struct registry_peer *p = &c->peers[i];
        if (p->id == c->self || !p->alive)
            continue;
        int rank = (is_avoided(c, p->id, now_ms) ? 0 : 4) + (is_member(c, p->id) ? 2 : 0) +
                   (strcmp(p->zone, zone) == 0);
        if (rank < best)
            continue;
        equals = rank > best ? 1 : equals + 1;
        best = rank;
        if (next_random(&c->seed) % equals == 0)
            chosen = p->id;
    }
    return chosen;
}

void spare_avoid(struct spare_choice *c, node_id id, uint64_t until_ms)
{
    size_t place = c->avoided_next;
    for (size_t i = 0; i < ARRAY_SIZE(c->avoided); i++)
        if (c->avoided[i].id == id)
            place = i;
    if (place == c->avoided_next)
        c->avoided_next = (place + 1) % ARRAY_SIZE(c->avoided);
    c->avoided[place].id = id;
    c->avoided[place].until_ms = until_ms;
}
