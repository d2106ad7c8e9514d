/* Suspicions: who has evidence, how long until the verdict, and asking the suspect again. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gossip/state.h"

/* Thousandths of log(c + 1) / log(k + 1): what c of k confirmations take from max to min. */
static const uint16_t shortening[GOSSIP_CONFIRMATIONS_MAX + 1][GOSSIP_CONFIRMATIONS_MAX + 1] = {
    {1000, 1000, 1000, 1000, 1000}, {0, 1000, 1000, 1000, 1000}, {0, 631, 1000, 1000, 1000},
    {0, 500, 792, 1000, 1000},      {0, 431, 683, 861, 1000},
};

static bool named(const struct suspicion *s, node_id id)
{
    for (uint32_t i = 0; i < s->by_count; i++) {
        if (s->by[i] == id)
            return true;
    }
    return false;
}

static bool name(struct suspicion *s, node_id id)
{
    if (s->by_count == ARRAY_SIZE(s->by) || named(s, id))
        return false;
    s->by[s->by_count++] = id;
    return true;
}

static void set_deadline(struct gossip *g, struct suspicion *s)
{
    const struct gossip_options *o = &g->options;
    uint64_t range = o->suspicion_max_ms - o->suspicion_min_ms;
    if (!s->evidence) {
        /* Without word by then this node looks for itself; not all at once. */
        if (s->deadline_ms == 0)
            s->deadline_ms =
                s->begin_ms + o->suspicion_max_ms + gossip_random_below(g, o->suspicion_max_ms);
        return;
    }
    /* Others who could confirm: all but this node and the suspect. */
    uint32_t others = g->order_count > 0 ? g->order_count - 1 : 0;
    uint32_t wanted = o->confirmations < others ? o->confirmations : others;
    uint64_t less = range * shortening[wanted][s->by_count - 1] / 1000;
    s->deadline_ms = s->begin_ms + o->suspicion_max_ms - less;
    /* Who got evidence late asks at least once more before the verdict. */
    if (s->deadline_ms < s->again_ms + o->probe_timeout_ms)
        s->deadline_ms = s->again_ms + o->probe_timeout_ms;
}

static struct suspicion *begin(struct gossip *g, struct member *m)
{
    if (g->suspicion_count == g->suspicion_capacity) {
        uint32_t capacity = g->suspicion_capacity == 0 ? 8 : g->suspicion_capacity * 2;
        struct suspicion *grown = realloc(g->suspicions, capacity * sizeof *grown);
        if (grown == NULL) {
            g->counts.dropped++;
            return NULL;
        }
        g->suspicions = grown;
        g->suspicion_capacity = capacity;
    }
    gossip_activity(g, m)->suspicion = g->suspicion_count;
    struct suspicion *s = &g->suspicions[g->suspicion_count++];
    *s = (struct suspicion){
        .member = (uint32_t)(m - g->members), .begin_ms = g->now_ms, .again_ms = g->now_ms};
    return s;
}

bool gossip_suspicion_begin(struct gossip *g, struct member *m, const node_id *by, uint32_t count)
{
    struct suspicion *s = begin(g, m);
    if (s == NULL)
        return false;
    for (uint32_t i = 0; i < count; i++)
        (void)name(s, by[i]);
    set_deadline(g, s);
    return true;
}

void gossip_suspicion_verify(struct gossip *g, struct member *m)
{
    if (!g->leaving && gossip_random_below(g, g->order_count) < g->options.verifiers)
        gossip_probe(g, m, false);
}

void gossip_suspicion_add(struct gossip *g, struct member *m, const node_id *by, uint32_t count)
{
    struct suspicion *s = &g->suspicions[gossip_activity(g, m)->suspicion];
    bool news = false;
    for (uint32_t i = 0; i < count; i++)
        news |= name(s, by[i]);
    if (!news)
        return;
    set_deadline(g, s);
    gossip_enqueue(g, m, TOPIC_STATE);
}

void gossip_suspicion_end(struct gossip *g, struct member *m)
{
    struct activity *a = gossip_activity(g, m);
    if (a == NULL || a->suspicion == NONE)
        return;
    uint32_t last = --g->suspicion_count;
    if (a->suspicion != last) {
        struct suspicion *moved = &g->suspicions[a->suspicion];
        *moved = g->suspicions[last];
        gossip_activity(g, &g->members[moved->member])->suspicion = a->suspicion;
    }
    a->suspicion = NONE;
}

void gossip_suspect(struct gossip *g, struct member *m)
{
    if (m->state > GOSSIP_SUSPECT)
        return;
    if (!gossip_activity_begin(g, m))
        return;
    if (gossip_activity(g, m)->suspicion == NONE && begin(g, m) == NULL)
        return gossip_activity_settle(g, m);
    struct suspicion *s = &g->suspicions[gossip_activity(g, m)->suspicion];
    if (s->evidence)
        return;
    g->counts.suspicions++;
    s->evidence = true;
    s->again_ms = g->now_ms;
    (void)name(s, g->options.self.id);
    set_deadline(g, s);
    gossip_set_state(g, m, GOSSIP_SUSPECT);
}

/* The suspect is told, and asked, directly and through others: an answer brings its refutation, and so
 * does one of theirs if they have heard of it. The last time is just before the verdict. */
static void ask_again(struct gossip *g, struct suspicion *s)
{
    const struct gossip_options *o = &g->options;
    struct member *m = &g->members[s->member];
    struct packet_head head = {.kind = PACKET_PING, .sequence = ++g->sequence};
    gossip_send_member(g, m, &head);
    head = (struct packet_head){.kind = PACKET_ASK, .sequence = ++g->sequence, .target = m->id};
    for (uint32_t i = 0; i < o->indirect_probes; i++) {
        const struct member *helper = &g->members[g->order[gossip_random_below(g, g->order_count)]];
        if (helper->state == GOSSIP_ALIVE)
            gossip_send_member(g, helper, &head);
    }
    s->again_ms = g->now_ms + o->probe_interval_ms;
    if (s->deadline_ms > g->now_ms + o->probe_timeout_ms)
        s->again_ms = earlier(s->again_ms, s->deadline_ms - o->probe_timeout_ms);
}

void gossip_suspicions_tick(struct gossip *g)
{
    uint32_t i = 0;
    while (!g->leaving && i < g->suspicion_count) {
        struct suspicion *s = &g->suspicions[i];
        if (s->deadline_ms <= g->now_ms && !s->evidence) {
            s->deadline_ms = g->now_ms + g->options.suspicion_max_ms;
            gossip_probe(g, &g->members[s->member], false);
        } else if (s->deadline_ms <= g->now_ms) {
            g->counts.deaths++;
            /* Ends this suspicion; another takes its place. */
            gossip_set_state(g, &g->members[s->member], GOSSIP_DEAD);
            continue;
        }
        if (s->evidence && s->again_ms <= g->now_ms)
            ask_again(g, s);
        i++;
    }
}

uint64_t gossip_suspicions_due(const struct gossip *g)
{
    uint64_t due = NEVER;
    for (uint32_t i = 0; !g->leaving && i < g->suspicion_count; i++) {
        const struct suspicion *s = &g->suspicions[i];
        due = earlier(due, s->deadline_ms);
        if (s->evidence)
            due = earlier(due, s->again_ms);
    }
    return due;
}
