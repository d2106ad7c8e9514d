/* How updates travel: queues by how often each was told, packets filled from them, rounds of gossip
 * for what found no other packet, syncs, and the own load's pace. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gossip/state.h"

/* The first round after an update: soon, but with what comes right behind it. */
enum { GOSSIP_SOON_MS = 10 };

/* In a larger group each node syncs less often. */
enum { SYNC_MEMBERS = 32 };

/* --- queues ----------------------------------------------------------------------------------- */

static void link_last(struct gossip *g, struct member *m, enum topic topic, uint8_t transmits)
{
    struct topic_queue *q = &g->queues[topic];
    struct topic_link *link = gossip_link(g, m, topic);
    uint32_t at = (uint32_t)(m - g->members);
    link->transmits = transmits;
    link->queued = true;
    link->next = NONE;
    link->prev = q->last[transmits];
    if (link->prev == NONE)
        q->first[transmits] = at;
    else
        gossip_link(g, &g->members[link->prev], topic)->next = at;
    q->last[transmits] = at;
    q->count++;
}

void gossip_dequeue(struct gossip *g, struct member *m, enum topic topic)
{
    struct topic_queue *q = &g->queues[topic];
    struct topic_link *link = gossip_link(g, m, topic);
    if (link == NULL || !link->queued)
        return;
    if (link->prev == NONE)
        q->first[link->transmits] = link->next;
    else
        gossip_link(g, &g->members[link->prev], topic)->next = link->next;
    if (link->next == NONE)
        q->last[link->transmits] = link->prev;
    else
        gossip_link(g, &g->members[link->next], topic)->prev = link->prev;
    link->queued = false;
    q->count--;
}

void gossip_enqueue(struct gossip *g, struct member *m, enum topic topic)
{
    gossip_dequeue(g, m, topic);
    link_last(g, m, topic, 0);
    /* Loads wait for a packet; the rest gets one if need be. */
    if (topic != TOPIC_LOAD && g->gossip_ms == NEVER)
        g->gossip_ms = g->now_ms + GOSSIP_SOON_MS;
}

/* lambda * log n (SWIM, section 4.1). */
static uint32_t transmits_max(const struct gossip *g)
{
    uint32_t max = g->options.transmit_multiplier * gossip_digits(g);
    return max < TRANSMITS_MAX ? max : TRANSMITS_MAX;
}

static void told(struct gossip *g, struct member *m, enum topic topic)
{
    uint32_t transmits = gossip_link(g, m, topic)->transmits + 1u;
    gossip_dequeue(g, m, topic);
    if (transmits < transmits_max(g))
        link_last(g, m, topic, (uint8_t)transmits);
    else
        gossip_activity_settle(g, m);
}

/* --- packets ---------------------------------------------------------------------------------- */

static bool describe(const struct gossip *g, const struct member *m, enum topic topic,
                     struct packet_item *out)
{
    if (topic == TOPIC_STATE) {
        gossip_describe(g, m, out);
        return m->boot != 0 && !m->removed;
    }
    bool meta = topic == TOPIC_META;
    uint32_t version = meta ? gossip_meta_version(m) : gossip_load_version(m);
    if (version == 0 || m->removed)
        return false;
    const struct kept *kept = meta ? m->meta : m->load->kept;
    *out = (struct packet_item){.kind = meta ? PACKET_META : PACKET_LOAD,
                                .id = m->id,
                                .boot = m->boot,
                                .version = version,
                                .bytes = kept->bytes,
                                .size = kept->size};
    return true;
}

/* False when there is no room for it. What must not be told counts as told, and so leaves. */
static bool write_topic(struct gossip *g, struct packet_writer *w, struct member *m,
                        enum topic topic)
{
    struct packet_item item;
    if (describe(g, m, topic, &item) && !packet_write_item(w, &item))
        return false;
    struct topic_link *link = gossip_link(g, m, topic);
    if (link != NULL)
        link->packet = g->packet;
    return true;
}

/* Those told least go first. */
static void fill(struct gossip *g, struct packet_writer *w, enum topic topic)
{
    struct topic_queue *q = &g->queues[topic];
    for (uint32_t transmits = 0; q->count > 0 && transmits < TRANSMITS_MAX; transmits++) {
        uint32_t next;
        for (uint32_t at = q->first[transmits]; at != NONE; at = next) {
            struct member *m = &g->members[at];
            const struct topic_link *link = gossip_link(g, m, topic);
            next = link->next;
            if (link->packet == g->packet)
                continue;
            if (!write_topic(g, w, m, topic))
                return;
            told(g, m, topic);
        }
    }
}

void gossip_send(struct gossip *g, node_id to, uint64_t to_boot, const struct address *address,
                 const struct packet_head *head, bool meta)
{
    if (g->send_count == SENDS_MAX || to_boot == 0 || address->family == ADDRESS_NONE)
        return;
    uint8_t *data = g->packets[g->send_count];
    struct packet_writer w = {data, g->options.packet_bytes, 0};
    g->packet++;
    assert_always(packet_write_head(&w, head));
    /* Who asks learns of us; who is suspected learns that first (Lifeguard's buddy). */
    struct member *self = &g->members[g->self], *m = gossip_find(g, to);
    struct member *target = gossip_find(g, head->target);
    if (head->kind == PACKET_PING)
        (void)write_topic(g, &w, self, TOPIC_STATE);
    bool buddy = m != NULL && m->state != GOSSIP_ALIVE;
    if (buddy)
        (void)write_topic(g, &w, m, TOPIC_STATE);
    /* And whoever is asked about one, or answers, says what it believes: a refutation that passed one of
     * them by arrives with that. */
    if (target != NULL && !(buddy && target == m))
        (void)write_topic(g, &w, target, TOPIC_STATE);
    if (meta)
        (void)write_topic(g, &w, self, TOPIC_META);
    fill(g, &w, TOPIC_STATE);
    fill(g, &w, TOPIC_META);
    size_t left = w.size - w.length;
    if (left > g->options.load_bytes_max)
        w.size = w.length + g->options.load_bytes_max;
    /* Not in those that are sent beyond the steady pace. */
    if (head->kind != PACKET_GOSSIP)
        fill(g, &w, TOPIC_LOAD);
    g->sends[g->send_count++] = (struct gossip_send){
        .to = to, .to_boot = to_boot, .address = *address, .data = data, .size = w.length};
}

void gossip_send_member(struct gossip *g, const struct member *m, const struct packet_head *head)
{
    gossip_send(g, m->id, m->boot, &m->address, head, false);
}

int gossip_read_items(struct gossip *g, struct packet_reader *r, node_id synced, struct err *e)
{
    struct packet_item item;
    int rc;
    while ((rc = packet_read_item(r, &item)) > 0)
        gossip_merge(g, &item, synced);
    if (rc == 0)
        return 0;
    g->counts.malformed++;
    return err_set(e, ERR_PROTOCOL, "malformed item");
}

/* --- rounds ----------------------------------------------------------------------------------- */

static void gossip_round(struct gossip *g)
{
    struct packet_head head = {.kind = PACKET_GOSSIP};
    node_id told_to[GOSSIP_FANOUT_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < 2 * g->options.gossip_fanout && g->order_count > 0; i++) {
        const struct member *m = &g->members[g->order[gossip_random_below(g, g->order_count)]];
        bool again = count == g->options.gossip_fanout;
        for (uint32_t k = 0; k < count; k++)
            again |= told_to[k] == m->id;
        if (again || g->queues[TOPIC_STATE].count + g->queues[TOPIC_META].count == 0)
            continue;
        told_to[count++] = m->id;
        gossip_send_member(g, m, &head);
    }
}

static void gossip_tick(struct gossip *g)
{
    bool alone = g->order_count == 0;
    if (!alone)
        gossip_round(g);
    /* When somebody comes there is an update again. */
    bool more = !alone && g->queues[TOPIC_STATE].count + g->queues[TOPIC_META].count > 0;
    g->gossip_ms = more ? g->now_ms + g->options.gossip_interval_ms : NEVER;
    if (g->leaving && (alone || !gossip_is_queued(g, &g->members[g->self], TOPIC_STATE)))
        g->left = true;
}

static void sync_with(struct gossip *g, const struct member *m)
{
    if (g->sync_count < GOSSIP_SYNCS_MAX)
        g->syncs[g->sync_count++] = m->id;
}

static void sync_tick(struct gossip *g)
{
    uint64_t interval = g->options.sync_interval_ms;
    g->sync_ms = g->now_ms + interval / 2 + gossip_random_below(g, interval);
    /* A state has the size of the group; so that its bytes per second have not, each node syncs less
     * often in groups above 32. By chance, for a node that starts does not know yet how large it is: or
     * all of a group that starts at once would sync within one interval. */
    if (g->order_count > 0 && !g->leaving &&
        gossip_random_below(g, 1 + g->order_count / SYNC_MEMBERS) == 0)
        sync_with(g, &g->members[g->order[gossip_random_below(g, g->order_count)]]);
}

/* The k-th of the dead: those that left lie among them. */
static const struct member *dead_member(const struct gossip *g, uint64_t k)
{
    for (uint32_t i = g->order_count; i < g->others; i++) {
        const struct member *m = &g->members[g->order[i]];
        if (m->state == GOSSIP_DEAD && k-- == 0)
            return m;
    }
    return NULL;
}

/* One dead member is tried as often by the whole group as it would be by a single node: the chance is
 * the dead per living. After a partition in halves that is one attempt each. */
static void reconnect_tick(struct gossip *g)
{
    uint64_t interval = g->options.reconnect_interval_ms;
    g->reconnect_ms = g->now_ms + interval / 2 + gossip_random_below(g, interval);
    gossip_forget_old(g);
    uint32_t dead = g->state_counts[GOSSIP_DEAD];
    if (g->leaving || gossip_random_below(g, g->order_count + 1ull) >= dead)
        return;
    const struct member *m = dead_member(g, gossip_random_below(g, dead));
    assert_always(m != NULL);
    sync_with(g, m);
}

void gossip_reconnect_soon(struct gossip *g)
{
    if (g->order_count == 0)
        g->reconnect_ms = g->now_ms;
}

/* --- the own load ----------------------------------------------------------------------------- */

static void load_tick(struct gossip *g)
{
    struct member *self = &g->members[g->self];
    const struct load *told = self->load;
    g->load_ms = NEVER;
    if (told != NULL && told->kept->size == g->load_wanted_size &&
        memcmp(told->kept->bytes, g->load_wanted, g->load_wanted_size) == 0)
        return;
    if (!gossip_load_set(g, self, gossip_load_version(self) + 1, g->load_wanted,
                         g->load_wanted_size))
        return;
    gossip_changed(g, self, GOSSIP_CHANGED_LOAD);
    gossip_enqueue(g, self, TOPIC_LOAD);
}

void gossip_tell_load(struct gossip *g, const struct gossip_load *load)
{
    size_t size = packet_encode_load(g->load_wanted, load);
    assert_always(size > 0);
    g->load_wanted_size = size;
    if (g->load_ms != NEVER)
        return; /* it goes with the one that waits */
    const struct load *told = g->members[g->self].load;
    g->load_ms = g->now_ms;
    if (told == NULL)
        return;
    uint64_t told_ms = told->heard_ms > g->lateness_ms ? told->heard_ms - g->lateness_ms : 0;
    if (told_ms + g->options.load_interval_ms > g->now_ms)
        g->load_ms = told_ms + g->options.load_interval_ms;
}

/* ---------------------------------------------------------------------------------------------- */

void gossip_spread_tick(struct gossip *g)
{
    if (g->load_ms <= g->now_ms)
        load_tick(g);
    if (g->gossip_ms <= g->now_ms)
        gossip_tick(g);
    if (g->sync_ms <= g->now_ms)
        sync_tick(g);
    if (g->reconnect_ms <= g->now_ms)
        reconnect_tick(g);
}

uint64_t gossip_spread_due(const struct gossip *g)
{
    return earlier(earlier(g->gossip_ms, g->load_ms), earlier(g->sync_ms, g->reconnect_ms));
}

int gossip_sync_write(const struct gossip *g, struct buffer *out, struct err *e)
{
    uint8_t bytes[GOSSIP_SYNC_MEMBER_BYTES_MAX];
    struct packet_writer w = {bytes, sizeof bytes, 0};
    size_t before = out->length;
    bool done = packet_write_sync_head(&w);
    for (uint32_t i = 0; done && i < g->member_capacity; i++) {
        const struct member *m = &g->members[i];
        for (unsigned topic = 0; done && topic < TOPIC_COUNT; topic++) {
            struct packet_item item;
            if (m->id != 0 && describe(g, m, topic, &item))
                done = packet_write_item(&w, &item);
        }
        done = done && buffer_append(out, bytes, w.length);
        w.length = 0;
    }
    if (done)
        return 0;
    out->length = before;
    return err_set(e, ERR_LIMIT, "the state of %u members is larger than %zu bytes",
                   g->member_count, out->length_max);
}
