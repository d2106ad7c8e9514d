/* gossip/state.h - what the files of the state machine share. Private to gossip/.
 *
 * All times here are the machine's own: the steps' clock less the time by which steps came late
 * (`lateness_ms`), so that a deadline never runs while this node did not. */
#ifndef SKERRY_GOSSIP_STATE_H
#define SKERRY_GOSSIP_STATE_H

#include "gossip/gossip.h"
#include "gossip/packet.h"

#define NONE UINT32_MAX
#define NEVER UINT64_MAX

/* An update's copies: transmit_multiplier * log10 stays below. */
enum { TRANSMITS_MAX = 64, PROBES_MAX = 8, RELAYS_MAX = 32, SENDS_MAX = 32 };

/* The three things that are told of a member, each in a queue by how often it was told. */
enum topic { TOPIC_STATE, TOPIC_META, TOPIC_LOAD, TOPIC_COUNT };

struct topic_link {
    uint32_t prev, next; /* members, or NONE */
    uint32_t packet;     /* the last one it went into */
    uint8_t transmits;
    bool queued;
};

struct member {
    node_id id; /* 0: a free place */
    uint64_t boot;
    uint64_t since_ms, load_heard_ms; /* by the steps' clock */
    uint32_t incarnation;
    uint32_t meta_version, load_version;
    uint32_t order;     /* place among those that are probed, or NONE */
    uint32_t suspicion; /* place among the suspicions, or NONE */
    uint32_t change;    /* place among this step's changes, or NONE */
    uint16_t meta_size, load_size;
    uint8_t state;
    bool removed, seeded;
    struct address address;
    uint8_t *meta, *load; /* encoded; the meta of an older boot stays until there is a newer one */
    struct topic_link topics[TOPIC_COUNT];
};

struct suspicion {
    uint32_t member;
    bool evidence; /* a probe of ours failed */
    uint32_t by_count;
    node_id by[GOSSIP_CONFIRMATIONS_MAX + 1];
    uint64_t begin_ms, again_ms, deadline_ms;
};

struct probe {
    bool active, regular, asked;
    node_id target;
    uint32_t sequence;
    uint32_t nacks_wanted, nacks;
    uint64_t ask_ms, end_ms;
};

/* A ping for another node. */
struct relay {
    bool active, nacked;
    node_id origin, target;
    uint64_t origin_boot;
    struct address origin_address;
    uint32_t origin_sequence, sequence;
    uint64_t nack_ms, end_ms;
};

struct topic_queue {
    uint32_t first[TRANSMITS_MAX + 1], last[TRANSMITS_MAX + 1];
    uint32_t count;
};

struct gossip {
    struct gossip_options options;
    uint64_t random[4];

    struct member *members;
    uint32_t member_count, member_capacity; /* places in use, made */
    uint32_t self;
    uint32_t *table; /* open addressing by id; a power of two */
    uint32_t table_size;
    uint32_t *order; /* alive and suspect ones but self, shuffled */
    uint32_t order_count, order_next;
    uint32_t state_counts[GOSSIP_STATE_COUNT];
    struct suspicion *suspicions;
    uint32_t suspicion_count, suspicion_capacity;

    struct topic_queue queues[TOPIC_COUNT];
    uint32_t packet; /* serial of the one being filled */
    node_id refuted; /* of whom the packet being read told a suspicion that is out of date, or 0 */

    struct probe probes[PROBES_MAX];
    struct relay relays[RELAYS_MAX];
    uint32_t relay_next;
    uint32_t sequence;
    uint32_t health;

    bool started, leaving, left;
    uint64_t now_ms, lateness_ms, due_ms;
    uint64_t probe_ms, gossip_ms, sync_ms, reconnect_ms, load_ms;
    uint8_t load_wanted[PACKET_LOAD_BYTES_MAX]; /* own load, waiting for load_ms */
    size_t load_wanted_size;

    struct gossip_counts counts;
    struct gossip_change *changes;
    size_t change_count;
    struct gossip_send sends[SENDS_MAX];
    size_t send_count;
    uint8_t packets[SENDS_MAX][GOSSIP_PACKET_BYTES_MAX];
    node_id syncs[GOSSIP_SYNCS_MAX];
    size_t sync_count;
    bool impostor;
};

/* gossip.c */
uint64_t gossip_random_below(struct gossip *g, uint64_t bound); /* 0 for 0 */

/* members.c: the table, and merging what is said of a member */
struct member *gossip_find(const struct gossip *g, node_id id);
struct member *gossip_add(struct gossip *g, node_id id); /* NULL: no room */
void gossip_forget_old(struct gossip *g);
void gossip_changed(struct gossip *g, struct member *m, uint32_t changed);
/* `synced`: 0 for what a packet brought, else whose sync did. Of that, what this node hears for the
 * first time is not told on, but for the other's own: a newcomer need not repeat the whole group. And
 * tombstones of unknown ones are not taken, or those forgotten would come back for ever. */
void gossip_merge(struct gossip *g, const struct packet_item *item, node_id synced);
void gossip_set_state(struct gossip *g, struct member *m, enum gossip_state state);
void gossip_describe(const struct gossip *g, const struct member *m, struct packet_item *out);
void gossip_free_members(struct gossip *g);

/* suspicion.c */
bool gossip_suspicion_begin(struct gossip *g, struct member *m, const node_id *by, uint32_t count);
void gossip_suspicion_add(struct gossip *g, struct member *m, const node_id *by, uint32_t count);
/* Some look for themselves at once: so many in the whole group, however large. */
void gossip_suspicion_verify(struct gossip *g, struct member *m);
void gossip_suspicion_end(struct gossip *g, struct member *m);
void gossip_suspect(struct gossip *g, struct member *m); /* a probe of ours failed */
void gossip_suspicions_tick(struct gossip *g);
uint64_t gossip_suspicions_due(const struct gossip *g);

/* spread.c: packets, and what rides on them */
void gossip_enqueue(struct gossip *g, struct member *m, enum topic topic);
void gossip_dequeue(struct gossip *g, struct member *m, enum topic topic);
/* Fills the rest of the packet with updates and sends it; does nothing when too many are under way
 * in this step. `meta`: own meta is wanted. */
void gossip_send(struct gossip *g, node_id to, uint64_t to_boot, const struct address *address,
                 const struct packet_head *head, bool meta);
void gossip_send_member(struct gossip *g, const struct member *m, const struct packet_head *head);
void gossip_spread_tick(struct gossip *g);
uint64_t gossip_spread_due(const struct gossip *g);
/* A seed came: a first sync is due. */
void gossip_reconnect_soon(struct gossip *g);
/* 0, or -ERR_PROTOCOL after the good ones were merged. */
int gossip_read_items(struct gossip *g, struct packet_reader *r, node_id synced, struct err *e);
void gossip_tell_load(struct gossip *g, const struct gossip_load *load);

/* probe.c */
void gossip_probe(struct gossip *g, struct member *m, bool regular);
void gossip_health(struct gossip *g, int by);
void gossip_probe_packet(struct gossip *g, const struct gossip_event *event,
                         const struct packet_head *head);
void gossip_probes_tick(struct gossip *g);
uint64_t gossip_probes_due(const struct gossip *g);

static inline uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* ceil(log10(members + 1)), at least 1. */
static inline uint32_t gossip_digits(const struct gossip *g)
{
    uint32_t digits = 1;
    for (uint64_t n = g->order_count + 1ull; n >= 10; n /= 10)
        digits++;
    return digits;
}

#endif
