/* The table of members, and the merging of statements: a join in the order (boot, incarnation,
 * state), so that all who have heard the same believe the same, in whatever order it came. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gossip/state.h"

/* --- the table -------------------------------------------------------------------------------- */

static uint32_t slot_of(const struct gossip *g, node_id id)
{
    return (uint32_t)((id * 0x9e3779b97f4a7c15ull) >> 32) & (g->table_size - 1);
}

static void table_put(struct gossip *g, uint32_t member)
{
    uint32_t slot = slot_of(g, g->members[member].id);
    while (g->table[slot] != NONE)
        slot = (slot + 1) & (g->table_size - 1);
    g->table[slot] = member;
}

static void table_fill(struct gossip *g)
{
    for (uint32_t i = 0; i < g->table_size; i++)
        g->table[i] = NONE;
    for (uint32_t i = 0; i < g->member_capacity; i++) {
        if (g->members[i].id != 0)
            table_put(g, i);
    }
}

struct member *gossip_find(const struct gossip *g, node_id id)
{
    if (id == 0 || g->table_size == 0)
        return NULL;
    for (uint32_t slot = slot_of(g, id); g->table[slot] != NONE;
         slot = (slot + 1) & (g->table_size - 1)) {
        if (g->members[g->table[slot]].id == id)
            return &g->members[g->table[slot]];
    }
    return NULL;
}

/* Everything that has a place for each member grows together; what was enlarged before a failure
 * just stays so. */
static bool grow(struct gossip *g)
{
    uint32_t capacity = g->member_capacity == 0 ? 16 : g->member_capacity * 2;
    if (capacity > g->options.members_max)
        capacity = g->options.members_max;
    uint32_t table_size = 16;
    while (table_size / 4 * 3 < capacity)
        table_size *= 2;
    struct member *members = realloc(g->members, capacity * sizeof *members);
    if (members == NULL)
        return false;
    g->members = members;
    uint32_t *order = realloc(g->order, capacity * sizeof *order);
    if (order == NULL)
        return false;
    g->order = order;
    uint32_t *table = realloc(g->table, table_size * sizeof *table);
    if (table == NULL)
        return false;
    g->table = table;
    g->table_size = table_size;
    memset(members + g->member_capacity, 0, (capacity - g->member_capacity) * sizeof *members);
    g->member_capacity = capacity;
    table_fill(g);
    return true;
}

static void order_swap(struct gossip *g, uint32_t a, uint32_t b)
{
    uint32_t moved = g->order[a];
    g->order[a] = g->order[b];
    g->order[b] = moved;
    g->members[g->order[a]].order = a & NOWHERE;
    g->members[g->order[b]].order = b & NOWHERE;
}

static void order_add(struct gossip *g, struct member *m)
{
    /* At a random place: who was there goes to the end. */
    uint32_t at = (uint32_t)gossip_random_below(g, g->order_count + 1ull);
    uint32_t last = g->order_count++;
    order_swap(g, m->order, last);
    order_swap(g, at, last);
}

static void order_remove(struct gossip *g, struct member *m)
{
    order_swap(g, m->order, --g->order_count);
}

/* Not for one that this step's changes name. */
static void forget(struct gossip *g, struct member *m)
{
    for (unsigned t = 0; t < TOPIC_COUNT; t++)
        gossip_dequeue(g, m, t);
    gossip_suspicion_end(g, m);
    gossip_activity_end(g, m);
    g->state_counts[m->state]--;
    gossip_drop(g, m->meta);
    gossip_load_drop(g, m);
    order_swap(g, m->order, --g->others);
    uint32_t place = (uint32_t)(m - g->members);
    if (place < g->free_from)
        g->free_from = place;
    *m = (struct member){0};
    g->member_count--;
}

static bool forgettable(const struct gossip *g, const struct member *m)
{
    const struct activity *a = gossip_activity(g, m);
    return (m->removed || !m->seeded) && (a == NULL || a->change == NONE);
}

void gossip_forget_old(struct gossip *g)
{
    bool any = false;
    uint64_t keep_ms = g->options.dead_keep_ms;
    /* Backwards: the last one takes the place of one that is forgotten. */
    for (uint32_t i = g->others; i > g->order_count; i--) {
        struct member *m = &g->members[g->order[i - 1]];
        if (forgettable(g, m) && g->now_ms + g->lateness_ms - m->since_ms > keep_ms) {
            forget(g, m);
            any = true;
        }
    }
    if (any)
        table_fill(g);
}

static void forget_oldest(struct gossip *g)
{
    struct member *oldest = NULL;
    for (uint32_t i = g->order_count; i < g->others; i++) {
        struct member *m = &g->members[g->order[i]];
        if (forgettable(g, m) && (oldest == NULL || m->since_ms < oldest->since_ms))
            oldest = m;
    }
    if (oldest == NULL)
        return;
    forget(g, oldest);
    table_fill(g);
}

struct member *gossip_add(struct gossip *g, node_id id)
{
    if (g->member_count == g->options.members_max)
        forget_oldest(g);
    if (g->member_count == g->options.members_max ||
        (g->member_count == g->member_capacity && !grow(g))) {
        g->counts.dropped++;
        return NULL;
    }
    while (g->members[g->free_from].id != 0)
        g->free_from++;
    struct member *m = &g->members[g->free_from];
    *m = (struct member){.id = id,
                         .state = GOSSIP_DEAD,
                         .since_ms = g->now_ms + g->lateness_ms,
                         .order = NOWHERE,
                         .activity = NONE};
    if (!gossip_activity_begin(g, m)) {
        m->id = 0;
        return NULL;
    }
    if (id != g->options.self.id) {
        g->order[g->others] = g->free_from;
        m->order = g->others++ & NOWHERE;
    }
    g->member_count++;
    g->state_counts[GOSSIP_DEAD]++;
    table_put(g, g->free_from++);
    return m;
}

void gossip_free_members(struct gossip *g)
{
    for (uint32_t i = 0; i < g->member_capacity; i++) {
        gossip_drop(g, g->members[i].meta);
        gossip_load_drop(g, &g->members[i]);
    }
    free(g->members);
    free(g->table);
    free(g->order);
    free(g->changes);
    free(g->activities);
    free(g->suspicions);
}

/* --- merging ---------------------------------------------------------------------------------- */

void gossip_set_state(struct gossip *g, struct member *m, enum gossip_state state)
{
    if (m->state != state) {
        gossip_changed(g, m, GOSSIP_CHANGED_STATE);
        g->state_counts[m->state]--;
        g->state_counts[state]++;
        m->state = state & 3u;
        m->since_ms = g->now_ms + g->lateness_ms;
    }
    bool probed = state <= GOSSIP_SUSPECT, was = m->order < g->order_count;
    if (m->order != NOWHERE && probed && !was)
        order_add(g, m);
    else if (m->order != NOWHERE && !probed && was)
        order_remove(g, m);
    if (state != GOSSIP_SUSPECT)
        gossip_suspicion_end(g, m);
    gossip_enqueue(g, m, TOPIC_STATE);
}

void gossip_describe(const struct gossip *g, const struct member *m, struct packet_item *out)
{
    *out = (struct packet_item){.kind = PACKET_STATE,
                                .id = m->id,
                                .boot = m->boot,
                                .state = m->state,
                                .incarnation = m->incarnation,
                                .address = m->address};
    if (m->state == GOSSIP_SUSPECT) {
        const struct suspicion *s = &g->suspicions[gossip_activity(g, m)->suspicion];
        out->by_count = s->by_count;
        memcpy(out->by, s->by, sizeof s->by);
    }
}

/* What others say of us: better known here. */
static void merge_self(struct gossip *g, const struct packet_item *item)
{
    struct member *self = &g->members[g->self];
    bool alive = item->state == GOSSIP_ALIVE;
    if (item->boot > self->boot || (item->boot == self->boot && item->incarnation == UINT32_MAX)) {
        g->impostor = true;
        return;
    }
    if (item->boot < self->boot || g->leaving || item->incarnation < self->incarnation ||
        (alive && item->incarnation == self->incarnation))
        return;
    /* An alive one of a higher incarnation can only be a mistake of ours, and is outdone likewise. */
    self->incarnation = item->incarnation + 1;
    if (!alive) {
        g->counts.refutations++;
        gossip_health(g, 1);
    }
    gossip_enqueue(g, self, TOPIC_STATE);
}

/* Below, equal to or above 0: what is said is older, the same, or newer. */
static int compare(const struct packet_item *item, const struct member *m)
{
    if (item->boot != m->boot)
        return item->boot < m->boot ? -1 : 1;
    if (item->incarnation != m->incarnation)
        return item->incarnation < m->incarnation ? -1 : 1;
    return (int)item->state - (int)m->state;
}

static void merge_state(struct gossip *g, const struct packet_item *item, node_id synced)
{
    struct member *m = gossip_find(g, item->id);
    if (m == NULL) {
        if (item->state >= GOSSIP_DEAD && synced != 0)
            return; /* else those forgotten would come back with each sync */
        m = gossip_add(g, item->id);
        if (m == NULL)
            return;
    }
    int order = m->removed ? -1 : compare(item, m);
    if (order < 0) {
        if (item->state == GOSSIP_SUSPECT && m->state == GOSSIP_ALIVE)
            g->refuted = m->id;
        return;
    }
    if (order == 0) {
        if (item->state == GOSSIP_SUSPECT)
            gossip_suspicion_add(g, m, item->by, item->by_count);
        return;
    }
    if (!gossip_activity_begin(g, m))
        return;
    bool quiet = synced != 0 && synced != item->id && m->boot == 0;
    uint32_t changed = GOSSIP_CHANGED_STATE;
    if (item->boot != m->boot || !address_pack_equal(&item->address, &m->address))
        changed |= GOSSIP_CHANGED_META;
    gossip_changed(g, m, changed);
    if (item->boot != m->boot) {
        m->meta_old = true;
        gossip_load_drop(g, m);
    }
    if (item->boot != m->boot || item->incarnation != m->incarnation)
        gossip_suspicion_end(g, m);
    m->boot = item->boot;
    m->incarnation = item->incarnation;
    m->address = item->address;
    if (item->state == GOSSIP_SUSPECT && !gossip_suspicion_begin(g, m, item->by, item->by_count))
        return gossip_set_state(g, m, GOSSIP_ALIVE); /* without memory: it is suspected again */
    gossip_set_state(g, m, item->state);
    if (quiet)
        gossip_dequeue(g, m, TOPIC_STATE);
    if (item->state == GOSSIP_SUSPECT)
        gossip_suspicion_verify(g, m);
}

static void merge_bytes(struct gossip *g, const struct packet_item *item, node_id synced)
{
    struct member *m = gossip_find(g, item->id);
    bool meta = item->kind == PACKET_META;
    if (m == NULL || m == &g->members[g->self] || m->removed || item->boot != m->boot)
        return;
    uint32_t known = meta ? gossip_meta_version(m) : gossip_load_version(m);
    if (item->version <= known || !gossip_activity_begin(g, m))
        return;
    bool set = meta ? gossip_meta_set(g, m, item->version, item->bytes, item->size)
                    : gossip_load_set(g, m, item->version, item->bytes, item->size);
    if (!set)
        return gossip_activity_settle(g, m);
    gossip_changed(g, m, meta ? GOSSIP_CHANGED_META : GOSSIP_CHANGED_LOAD);
    if (synced == 0 || synced == item->id || known != 0)
        gossip_enqueue(g, m, meta ? TOPIC_META : TOPIC_LOAD);
}

void gossip_merge(struct gossip *g, const struct packet_item *item, node_id synced)
{
    if (item->kind != PACKET_STATE)
        merge_bytes(g, item, synced);
    else if (item->id == g->options.self.id)
        merge_self(g, item);
    else
        merge_state(g, item, synced);
}
