#include "gossip/gossip.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gossip/state.h"

static const char *const state_names[GOSSIP_STATE_COUNT] = {"alive", "suspect", "dead", "left"};

const char *gossip_state_name(enum gossip_state state)
{
    return (unsigned)state < GOSSIP_STATE_COUNT ? state_names[state] : "unknown";
}

uint64_t gossip_workload_hash(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    for (; *name != '\0'; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3ull;
    return hash;
}

/* --- randomness: xoshiro256**, seeded by splitmix64 (Blackman, Vigna 2018) -------------------- */

static uint64_t rotate(uint64_t x, unsigned by)
{
    return x << by | x >> (64 - by);
}

static uint64_t random_next(uint64_t s[4])
{
    uint64_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}

static void random_seed(uint64_t s[4], uint64_t seed)
{
    for (unsigned i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15ull;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        s[i] = z ^ z >> 31;
    }
}

/* The bias of the modulus is below 2^-32 for bounds that fit 32 bits. */
uint64_t gossip_random_below(struct gossip *g, uint64_t bound)
{
    return bound == 0 ? 0 : random_next(g->random) % bound;
}

/* --- life ------------------------------------------------------------------------------------- */

void gossip_options_defaults(struct gossip_options *o)
{
    /* A node is killed. With 4 others probing, the first probe of it begins after 160 ms on average
     * and rarely after more than 550 (4 intervals to the power of 4); 200 to find it failed; 500 from
     * suspicion to verdict, since the others confirm within 250; some 20 to tell: 0.9 s, rarely
     * 1.3. */
    *o = (struct gossip_options){
        .members_max = 4096,
        .packet_bytes = GOSSIP_PACKET_BYTES_MAX,
        .probe_interval_ms = 200,
        .probe_timeout_ms = 80,
        .indirect_probes = 3,
        .health_max = 8,
        .suspicion_min_ms = 500,
        .suspicion_max_ms = 1500,
        .confirmations = 3,
        .verifiers = 6,
        .gossip_interval_ms = 100,
        .gossip_fanout = 3,
        .transmit_multiplier = 4,
        .load_interval_ms = 500,
        .load_bytes_max = 400,
        .sync_interval_ms = 10000,
        .reconnect_interval_ms = 1000,
        .dead_keep_ms = 24 * 3600 * 1000,
        .late_ms = 20,
    };
}

static int check_options(const struct gossip_options *o, struct err *e)
{
    if (o->self.id == 0 || o->self.boot == 0 || o->self.address.family == ADDRESS_NONE ||
        o->self.meta == NULL)
        return err_set(e, ERR_INVALID, "gossip needs an id, a boot, an address and a meta");
    if (o->packet_bytes < GOSSIP_PACKET_BYTES_MIN || o->packet_bytes > GOSSIP_PACKET_BYTES_MAX)
        return err_set(e, ERR_INVALID, "gossip packets of %u bytes: %d to %d are possible",
                       o->packet_bytes, GOSSIP_PACKET_BYTES_MIN, GOSSIP_PACKET_BYTES_MAX);
    if (o->members_max == 0 || o->probe_interval_ms == 0 || o->gossip_interval_ms == 0 ||
        o->gossip_fanout == 0 || o->transmit_multiplier == 0 || o->sync_interval_ms == 0 ||
        o->reconnect_interval_ms == 0)
        return err_set(e, ERR_INVALID, "intervals and numbers of gossip must not be 0");
    if (o->probe_timeout_ms > o->probe_interval_ms || o->suspicion_min_ms > o->suspicion_max_ms ||
        o->members_max >= NOWHERE || o->confirmations > GOSSIP_CONFIRMATIONS_MAX ||
        o->indirect_probes > GOSSIP_INDIRECT_MAX || o->gossip_fanout > GOSSIP_FANOUT_MAX)
        return err_set(e, ERR_INVALID, "options of gossip out of range");
    return 0;
}

static int set_meta(struct gossip *g, const struct gossip_meta *meta, struct err *e)
{
    struct member *self = &g->members[g->self];
    uint8_t encoded[GOSSIP_META_BYTES_MAX];
    size_t size = packet_encode_meta(encoded, meta);
    if (size == 0)
        return err_set(e, ERR_LIMIT,
                       "what others shall know of this node (name, zone, labels) is above %d bytes "
                       "or no text",
                       GOSSIP_META_BYTES_MAX);
    if (!gossip_meta_set(g, self, gossip_meta_version(self) + 1, encoded, size))
        return err_set(e, ERR_NO_MEMORY, "no memory for gossip's meta");
    gossip_changed(g, self, GOSSIP_CHANGED_META);
    gossip_enqueue(g, self, TOPIC_META);
    return 0;
}

int gossip_new(struct gossip **out, const struct gossip_options *options, struct err *e)
{
    int rc = check_options(options, e);
    if (rc != 0)
        return rc;
    struct gossip *g = calloc(1, sizeof *g);
    if (g == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for gossip");
    g->options = *options;
    g->options.self.meta = NULL;
    random_seed(g->random, options->seed);
    g->sequence = (uint32_t)random_next(g->random);
    g->gossip_ms = g->load_ms = NEVER;
    for (unsigned t = 0; t < TOPIC_COUNT; t++) {
        memset(g->queues[t].first, 0xff, sizeof g->queues[t].first); /* NONE */
        memset(g->queues[t].last, 0xff, sizeof g->queues[t].last);
    }
    struct member *self = gossip_add(g, options->self.id);
    if (self == NULL) {
        gossip_free(g);
        return err_set(e, ERR_NO_MEMORY, "no memory for gossip");
    }
    g->self = (uint32_t)(self - g->members);
    self->incarnation = 1;
    self->address = options->self.address;
    gossip_set_state(g, self, GOSSIP_ALIVE);
    self->boot = options->self.boot;
    rc = set_meta(g, options->self.meta, e);
    if (rc != 0) {
        gossip_free(g);
        return rc;
    }
    *out = g;
    return 0;
}

void gossip_free(struct gossip *g)
{
    if (g == NULL)
        return;
    gossip_free_members(g);
    free(g);
}

/* --- events ----------------------------------------------------------------------------------- */

static int take_packet(struct gossip *g, const struct gossip_event *event, struct err *e)
{
    struct packet_reader r = {event->data, event->data + event->size};
    struct packet_head head;
    if (event->from == 0 || event->from_boot == 0 || event->from == g->options.self.id ||
        !packet_read_head(&r, &head)) {
        g->counts.malformed++;
        return err_set(e, ERR_PROTOCOL, "malformed packet of node %llu",
                       (unsigned long long)event->from);
    }
    const struct member *m = gossip_find(g, event->from);
    if (m != NULL && m->removed)
        return 0;
    g->refuted = 0;
    int rc = gossip_read_items(g, &r, 0, e);
    if (rc == 0)
        gossip_probe_packet(g, event, &head);
    return rc;
}

static int take_sync(struct gossip *g, const struct gossip_event *event, struct err *e)
{
    struct packet_reader r = {event->data, event->data + event->size};
    const struct member *m = gossip_find(g, event->from);
    if (m != NULL && m->removed)
        return 0;
    if (event->from == 0 || !packet_read_sync_head(&r)) {
        g->counts.malformed++;
        return err_set(e, ERR_PROTOCOL, "malformed sync of node %llu",
                       (unsigned long long)event->from);
    }
    return gossip_read_items(g, &r, event->from, e);
}

static int take_seed(struct gossip *g, const struct gossip_event *event, struct err *e)
{
    struct member *m = gossip_find(g, event->from);
    if (m == NULL) {
        m = gossip_add(g, event->from);
        if (m == NULL)
            return err_set(e, ERR_NO_MEMORY, "no room for node %llu in gossip",
                           (unsigned long long)event->from);
        gossip_changed(g, m, GOSSIP_CHANGED_STATE);
        m->address = event->address;
        gossip_reconnect_soon(g);
    }
    m->seeded = true;
    return 0;
}

static int take_remove(struct gossip *g, const struct gossip_event *event, struct err *e)
{
    if (event->from == g->options.self.id)
        return 0; /* node/ knows what to do then */
    struct member *m = gossip_find(g, event->from);
    if (m != NULL && m->removed)
        return 0;
    /* One that is not known may be heard of later. */
    if (m == NULL)
        m = gossip_add(g, event->from);
    if (m == NULL || !gossip_activity_begin(g, m))
        return err_set(e, ERR_NO_MEMORY, "no room for node %llu in gossip",
                       (unsigned long long)event->from);
    gossip_changed(g, m, GOSSIP_CHANGED_STATE);
    m->removed = true;
    gossip_set_state(g, m, GOSSIP_LEFT);
    for (unsigned t = 0; t < TOPIC_COUNT; t++)
        gossip_dequeue(g, m, t);
    return 0;
}

static void leave(struct gossip *g)
{
    if (g->leaving)
        return;
    g->leaving = true;
    gossip_set_state(g, &g->members[g->self], GOSSIP_LEFT);
    memset(g->probes, 0, sizeof g->probes);
    g->gossip_ms = g->now_ms;
}

static void tick(struct gossip *g)
{
    gossip_probes_tick(g);
    gossip_suspicions_tick(g);
    gossip_spread_tick(g);
}

static int take(struct gossip *g, const struct gossip_event *event, struct err *e)
{
    switch (event->kind) {
    case GOSSIP_TICK:
        tick(g);
        return 0;
    case GOSSIP_PACKET:
        return take_packet(g, event, e);
    case GOSSIP_SYNC:
        return take_sync(g, event, e);
    case GOSSIP_SEED:
        return take_seed(g, event, e);
    case GOSSIP_REMOVE:
        return take_remove(g, event, e);
    case GOSSIP_TELL_META:
        return set_meta(g, event->meta, e);
    case GOSSIP_TELL_LOAD:
        gossip_tell_load(g, event->load);
        return 0;
    case GOSSIP_LEAVE:
        leave(g);
        return 0;
    }
    return err_set(e, ERR_INVALID, "no such event of gossip");
}

/* --- a step ----------------------------------------------------------------------------------- */

static void begin_time(struct gossip *g, uint64_t now_ms)
{
    g->now_ms = now_ms;
    g->started = true;
    g->due_ms = NEVER;
    /* Not all nodes of a cluster that starts at once shall probe at the same moments. */
    g->probe_ms = now_ms + gossip_random_below(g, g->options.probe_interval_ms);
    g->sync_ms = now_ms + gossip_random_below(g, g->options.sync_interval_ms);
    g->reconnect_ms = now_ms + gossip_random_below(g, g->options.reconnect_interval_ms);
    g->gossip_ms = now_ms;
    g->members[g->self].since_ms = now_ms;
}

/* Late is a step that comes after the one that was asked for should have: this node did not run, or
 * its loop was held up, and packets that arrived in time may still wait to be read. */
static void advance_time(struct gossip *g, uint64_t now_ms)
{
    if (!g->started)
        return begin_time(g, now_ms);
    uint64_t own_ms = now_ms > g->lateness_ms ? now_ms - g->lateness_ms : 0;
    if (g->due_ms != NEVER && own_ms > g->due_ms + g->options.late_ms) {
        uint64_t late_ms = own_ms - g->due_ms - g->options.late_ms;
        g->lateness_ms += late_ms;
        own_ms -= late_ms;
        g->counts.late++;
        if (late_ms >= g->options.probe_timeout_ms / 2)
            gossip_health(g, 1);
    }
    if (own_ms > g->now_ms)
        g->now_ms = own_ms;
}

static void finish(struct gossip *g, struct gossip_actions *out)
{
    uint64_t due = earlier(gossip_probes_due(g), gossip_suspicions_due(g));
    g->due_ms = earlier(due, gossip_spread_due(g));
    for (size_t i = 0; i < g->change_count; i++) {
        struct member *m = gossip_find(g, g->changes[i].id);
        g->changes[i].state = m->state;
        gossip_activity(g, m)->change = NONE;
        gossip_activity_settle(g, m);
    }
    *out = (struct gossip_actions){.sends = g->sends,
                                   .send_count = g->send_count,
                                   .changes = g->changes,
                                   .change_count = g->change_count,
                                   .sync_count = g->sync_count,
                                   .next_ms = g->due_ms + g->lateness_ms,
                                   .left = g->left,
                                   .impostor = g->impostor};
    memcpy(out->syncs, g->syncs, sizeof out->syncs);
}

int gossip_step(struct gossip *g, const struct gossip_event *event, uint64_t now_ms,
                struct gossip_actions *out, struct err *e)
{
    g->change_count = 0;
    g->send_count = 0;
    g->sync_count = 0;
    if (!g->started) /* what gossip_new changed nobody needs to hear */
        gossip_activity(g, &g->members[g->self])->change = NONE;
    advance_time(g, now_ms);
    int rc = take(g, event, e);
    finish(g, out);
    return rc;
}

/* --- reading ---------------------------------------------------------------------------------- */

static void show(const struct member *m, struct gossip_member *out)
{
    *out = (struct gossip_member){.id = m->id,
                                  .boot = m->boot,
                                  .incarnation = m->incarnation,
                                  .state = m->state,
                                  .removed = m->removed,
                                  .since_ms = m->since_ms,
                                  .address = m->address,
                                  .meta_version = gossip_meta_version(m),
                                  .load_version = gossip_load_version(m),
                                  .load_heard_ms = m->load == NULL ? 0 : m->load->heard_ms};
}

bool gossip_member_get(const struct gossip *g, node_id id, struct gossip_member *out)
{
    const struct member *m = gossip_find(g, id);
    if (m != NULL)
        show(m, out);
    return m != NULL;
}

bool gossip_member_next(const struct gossip *g, size_t *cursor, struct gossip_member *out)
{
    while (*cursor < g->member_capacity) {
        const struct member *m = &g->members[(*cursor)++];
        if (m->id != 0) {
            show(m, out);
            return true;
        }
    }
    return false;
}

bool gossip_meta_get(const struct gossip *g, node_id id, struct gossip_meta *out)
{
    const struct member *m = gossip_find(g, id);
    return m != NULL && m->meta != NULL && packet_decode_meta(out, m->meta->bytes, m->meta->size);
}

bool gossip_load_get(const struct gossip *g, node_id id, struct gossip_load *out)
{
    const struct member *m = gossip_find(g, id);
    return m != NULL && m->load != NULL &&
           packet_decode_load(out, m->load->kept->bytes, m->load->kept->size);
}

void gossip_counts(const struct gossip *g, struct gossip_counts *out)
{
    *out = g->counts;
    memcpy(out->members, g->state_counts, sizeof out->members);
    out->health = g->health;
}
