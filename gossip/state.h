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

/* What was told of a member, encoded. Never changed: a store may have it for several machines. */
struct kept {
    uint32_t version; /* never 0 */
    uint16_t size;
    uint8_t bytes[];
};

struct load {
    uint64_t heard_ms; /* by the steps' clock */
    const struct kept *kept;
    struct topic_link link;
};

/* There is one of these in each node for each, so a member has only what every one needs; what few
 * have at a time is an activity. */
struct member {
    node_id id; /* 0: a free place */
    uint64_t boot;
    uint64_t since_ms;       /* by the steps' clock */
    const struct kept *meta; /* NULL: never heard */
    struct load *load;       /* NULL: not heard since its boot */
    struct address address;
    uint32_t incarnation;
    uint32_t activity;   /* place among the activities, or NONE */
    uint32_t order : 27; /* place among the others, or NOWHERE: this node itself */
    uint32_t state : 2;  /* enum gossip_state */
    bool removed : 1, seeded : 1;
    bool meta_old : 1; /* an older boot's, which stays until there is a newer one */
};
_Static_assert(sizeof(struct member) == 72, "10,000 nodes that know each other are simulated");
#define NOWHERE ((1u << 27) - 1)

/* What goes on with a member. It has one while it is suspected, or something of it is told on, and
 * through each step that changes it; this node itself always. */
struct activity {
    uint32_t member;
    uint32_t suspicion;                   /* place among the suspicions, or NONE */
    uint32_t change;                      /* place among this step's changes, or NONE */
    struct topic_link topics[TOPIC_LOAD]; /* a load has its own */
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
    uint32_t free_from; /* no place below is free */
    /* All but self: first those that are alive or suspect, shuffled, then those that are gone. */
    uint32_t *order;
    uint32_t order_count, order_next; /* of the former; who is probed next */
    uint32_t others;                  /* both together */
    uint32_t state_counts[GOSSIP_STATE_COUNT];
    struct suspicion *suspicions;
    uint32_t suspicion_count, suspicion_capacity;
    struct activity *activities;
    uint32_t activity_count, activity_capacity; /* and of changes */

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

/* activity.c: what goes on with members, and the bytes that were told of them */
static inline struct activity *gossip_activity(const struct gossip *g, const struct member *m)
{
    return m->activity == NONE ? NULL : &g->activities[m->activity];
}
/* False, and counted: no memory. Else it lasts at least until the end of the step if this changes the
 * member, so that changing, queueing and suspecting it will not fail. */
bool gossip_activity_begin(struct gossip *g, struct member *m);
void gossip_activity_end(struct gossip *g, struct member *m);
/* Ends it if nothing goes on any more. */
void gossip_activity_settle(struct gossip *g, struct member *m);
void gossip_changed(struct gossip *g, struct member *m, uint32_t changed);
struct topic_link *gossip_link(const struct gossip *g, const struct member *m, enum topic topic);
bool gossip_is_queued(const struct gossip *g, const struct member *m, enum topic topic);
/* NULL, and counted: no memory. */
const struct kept *gossip_keep(struct gossip *g, uint32_t version, const uint8_t *bytes,
                               size_t size);
void gossip_drop(struct gossip *g, const struct kept *kept); /* or NULL */
/* False, and counted: no memory; what was there stays. */
bool gossip_meta_set(struct gossip *g, struct member *m, uint32_t version, const uint8_t *bytes,
                     size_t size);
bool gossip_load_set(struct gossip *g, struct member *m, uint32_t version, const uint8_t *bytes,
                     size_t size);
void gossip_load_drop(struct gossip *g, struct member *m);

/* 0: not known, or of an older boot. */
static inline uint32_t gossip_meta_version(const struct member *m)
{
    return m->meta == NULL || m->meta_old ? 0 : m->meta->version;
}

static inline uint32_t gossip_load_version(const struct member *m)
{
    return m->load == NULL ? 0 : m->load->kept->version;
}

/* members.c: the table, and merging what is said of a member */
struct member *gossip_find(const struct gossip *g, node_id id);
struct member *gossip_add(struct gossip *g, node_id id); /* with an activity; NULL: no room */
void gossip_forget_old(struct gossip *g);
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
