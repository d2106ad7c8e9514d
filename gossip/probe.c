/* Probing: one member an interval, directly, then through others; pings for others; and what all that
 * tells of our own health (Lifeguard's local health multiplier). */
#include "base/memory.h"
#include "gossip/state.h"

/* A helper that has no answer says so after this share of its timeout, in percent, so that the one
 * who asked hears of it within its interval (Lifeguard, section IV.A). */
enum { NACK_PERCENT = 80 };

void gossip_health(struct gossip *g, int by)
{
    int64_t health = (int64_t)g->health + by;
    if (health < 0)
        health = 0;
    if (health > g->options.health_max)
        health = g->options.health_max;
    g->health = (uint32_t)health;
}

static uint64_t stretched(const struct gossip *g, uint32_t ms)
{
    return ms * (1ull + g->health);
}

void gossip_probe(struct gossip *g, struct member *m, bool regular)
{
    struct probe *p = NULL;
    for (unsigned i = 0; i < PROBES_MAX; i++) {
        if (!g->probes[i].active)
            p = &g->probes[i];
        else if (g->probes[i].target == m->id)
            return; /* already under way */
    }
    if (p == NULL)
        return;
    g->counts.probes++;
    *p = (struct probe){.active = true,
                        .regular = regular,
                        .target = m->id,
                        .sequence = ++g->sequence,
                        .ask_ms = g->now_ms + stretched(g, g->options.probe_timeout_ms),
                        .end_ms = g->now_ms + stretched(g, g->options.probe_interval_ms)};
    struct packet_head head = {.kind = PACKET_PING,
                               .flags = gossip_meta_version(m) == 0 ? PACKET_WANT_META : 0,
                               .sequence = p->sequence};
    gossip_send_member(g, m, &head);
}

/* Through members that are neither the target nor each other. */
static void ask_others(struct gossip *g, struct probe *p)
{
    struct packet_head head = {.kind = PACKET_ASK, .sequence = p->sequence, .target = p->target};
    node_id asked[GOSSIP_INDIRECT_MAX] = {0};
    p->asked = true;
    p->nacks_wanted = 0;
    for (uint32_t i = 0; i < 3 * g->options.indirect_probes; i++) {
        if (p->nacks_wanted == g->options.indirect_probes || g->order_count == 0)
            return;
        const struct member *m = &g->members[g->order[gossip_random_below(g, g->order_count)]];
        bool again = m->id == p->target || m->state != GOSSIP_ALIVE;
        for (uint32_t k = 0; k < p->nacks_wanted; k++)
            again |= asked[k] == m->id;
        if (again)
            continue;
        asked[p->nacks_wanted++] = m->id;
        g->counts.indirect_probes++;
        gossip_send_member(g, m, &head);
    }
}

static void fail(struct gossip *g, struct probe *p)
{
    p->active = false;
    g->counts.probes_failed++;
    /* Helpers that had no answer either and said so: then it is not us. */
    if (p->nacks_wanted == 0)
        gossip_health(g, 1);
    else
        gossip_health(g, (int)(p->nacks_wanted - p->nacks));
    struct member *m = gossip_find(g, p->target);
    if (m != NULL)
        gossip_suspect(g, m);
}

/* --- packets ---------------------------------------------------------------------------------- */

static void reply(struct gossip *g, const struct gossip_event *event, enum packet_kind kind,
                  uint32_t sequence, bool meta)
{
    struct packet_head head = {.kind = kind, .sequence = sequence};
    gossip_send(g, event->from, event->from_boot, &event->address, &head, meta);
}

static void help(struct gossip *g, const struct gossip_event *event, const struct packet_head *head)
{
    struct member *m = gossip_find(g, head->target);
    if (m == NULL || m->boot == 0 || m->removed || head->target == g->options.self.id)
        return reply(g, event, PACKET_NACK, head->sequence, false);
    if (g->refuted == m->id) {
        /* The suspicion that came with it is out of date: the answer says so, at once. */
        struct packet_head nack = {
            .kind = PACKET_NACK, .sequence = head->sequence, .target = head->target};
        return gossip_send(g, event->from, event->from_boot, &event->address, &nack, false);
    }
    /* When there are too many, the oldest is given up. */
    struct relay *r = &g->relays[g->relay_next++ % RELAYS_MAX];
    uint64_t timeout_ms = g->options.probe_timeout_ms;
    *r = (struct relay){.active = true,
                        .origin = event->from,
                        .origin_boot = event->from_boot,
                        .origin_address = event->address,
                        .target = head->target,
                        .origin_sequence = head->sequence,
                        .sequence = ++g->sequence,
                        .nack_ms = g->now_ms + timeout_ms * NACK_PERCENT / 100,
                        .end_ms = g->now_ms + 4 * timeout_ms};
    struct packet_head ping = {.kind = PACKET_PING, .sequence = r->sequence};
    gossip_send_member(g, m, &ping);
}

static void relay_answer(struct gossip *g, struct relay *r, enum packet_kind kind)
{
    struct packet_head head = {.kind = kind, .sequence = r->origin_sequence, .target = r->target};
    gossip_send(g, r->origin, r->origin_boot, &r->origin_address, &head, false);
}

static void answered(struct gossip *g, uint32_t sequence, bool yes)
{
    for (unsigned i = 0; i < PROBES_MAX; i++) {
        struct probe *p = &g->probes[i];
        if (!p->active || p->sequence != sequence)
            continue;
        if (!yes) {
            p->nacks += p->nacks < p->nacks_wanted;
            return;
        }
        p->active = false;
        gossip_health(g, -1);
        return;
    }
    for (unsigned i = 0; yes && i < RELAYS_MAX; i++) {
        struct relay *r = &g->relays[i];
        if (r->active && r->sequence == sequence) {
            r->active = false;
            return relay_answer(g, r, PACKET_ACK);
        }
    }
}

void gossip_probe_packet(struct gossip *g, const struct gossip_event *event,
                         const struct packet_head *head)
{
    switch (head->kind) {
    case PACKET_PING:
        return reply(g, event, PACKET_ACK, head->sequence, (head->flags & PACKET_WANT_META) != 0);
    case PACKET_ASK:
        return help(g, event, head);
    case PACKET_ACK:
        return answered(g, head->sequence, true);
    case PACKET_NACK:
        return answered(g, head->sequence, false);
    case PACKET_GOSSIP:
        return;
    }
}

/* --- time ------------------------------------------------------------------------------------- */

static void shuffle(struct gossip *g)
{
    for (uint32_t i = g->order_count; i > 1; i--) {
        uint32_t j = (uint32_t)gossip_random_below(g, i), k = g->order[j];
        g->order[j] = g->order[i - 1];
        g->order[i - 1] = k;
        g->members[k].order = (i - 1) & NOWHERE;
        g->members[g->order[j]].order = j & NOWHERE;
    }
}

static void probe_next(struct gossip *g)
{
    if (!g->leaving && g->order_count > 0) {
        if (g->order_next >= g->order_count) {
            g->order_next = 0;
            shuffle(g);
        }
        gossip_probe(g, &g->members[g->order[g->order_next++]], true);
    }
    g->probe_ms = g->now_ms + stretched(g, g->options.probe_interval_ms);
}

void gossip_probes_tick(struct gossip *g)
{
    for (unsigned i = 0; i < PROBES_MAX; i++) {
        struct probe *p = &g->probes[i];
        if (p->active && p->end_ms <= g->now_ms)
            fail(g, p);
        else if (p->active && !p->asked && p->ask_ms <= g->now_ms)
            ask_others(g, p);
    }
    for (unsigned i = 0; i < RELAYS_MAX; i++) {
        struct relay *r = &g->relays[i];
        if (r->active && !r->nacked && r->nack_ms <= g->now_ms) {
            r->nacked = true;
            relay_answer(g, r, PACKET_NACK);
        }
        r->active &= r->end_ms > g->now_ms;
    }
    if (g->probe_ms <= g->now_ms)
        probe_next(g);
}

uint64_t gossip_probes_due(const struct gossip *g)
{
    uint64_t due = g->probe_ms;
    for (unsigned i = 0; i < PROBES_MAX; i++) {
        const struct probe *p = &g->probes[i];
        if (p->active)
            due = earlier(due, p->asked ? p->end_ms : p->ask_ms);
    }
    for (unsigned i = 0; i < RELAYS_MAX; i++) {
        const struct relay *r = &g->relays[i];
        if (r->active)
            due = earlier(due, r->nacked ? r->end_ms : r->nack_ms);
    }
    return due;
}
