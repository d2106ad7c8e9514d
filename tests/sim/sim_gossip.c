#include "tests/sim/sim_gossip.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gossip/packet.h"
#include "gossip/seal.h"
#include "tests/sim/sim_store.h"

enum { UDP_IP_BYTES = 28, ENVELOPE_BYTES = 16, PORT = 7602 };

/* A settled cluster hears of itself so many members at a time, since gossip keeps room for what one step
 * changes. */
enum { SETTLED_MEMBERS = 128 };

/* So many at most are asked for the loads that they know. */
enum { LOAD_OBSERVERS = 1001 };

/* What an observer last believed of a subject that was gone. */
struct gone {
    uint64_t boot;
    uint32_t incarnation;
    bool is;
};

struct world_node {
    struct gossip *gossip; /* NULL: no process */
    uint64_t boot;
    uint64_t timer; /* serial of the timer that counts */
    uint32_t load;
};

struct sim_gossip {
    struct sim *sim;
    uint32_t count;
    struct world_node *nodes;
    struct gone **gone; /* [subject][observer]; NULL: nobody saw it gone */
    struct sim_store *store;
    bool trace;
    uint64_t load_interval_us;
    char violation[200];
    struct sim_gossip_counts counts;
    uint32_t killed;
    uint32_t knowing; /* all nodes before this one know of it, or knew */
    uint64_t killed_us, first_suspect_us, first_dead_us, all_dead_us;
};

static uint64_t now_ms(const struct sim_gossip *w)
{
    return sim_now_us(w->sim) / 1000;
}

static void tick_run(void *user, uint32_t node, uint64_t serial);
static void packet_deliver(void *user, uint32_t to, uint32_t from, const uint8_t *data,
                           size_t size);
static void ask_deliver(void *user, uint32_t to, uint32_t from, const uint8_t *data, size_t size);
static void end(struct sim_gossip *w, uint32_t node);

/* --- checks ----------------------------------------------------------------------------------- */

static void violate(struct sim_gossip *w, const char *what, uint32_t observer, node_id subject)
{
    if (w->violation[0] == '\0')
        (void)text_format(w->violation, sizeof w->violation,
                          "at %" PRIu64 " ms node %u: %s: node %" PRIu64, now_ms(w), observer + 1,
                          what, subject);
}

static bool knows_dead(const struct sim_gossip *w, uint32_t observer, uint32_t subject)
{
    struct gossip_member m;
    return !gossip_member_get(w->nodes[observer].gossip, subject + 1ull, &m) ||
           m.state >= GOSSIP_DEAD;
}

static uint32_t know_dead(const struct sim_gossip *w, uint32_t subject, uint32_t *living)
{
    uint32_t know = 0;
    *living = 0;
    for (uint32_t i = 0; i < w->count; i++) {
        if (w->nodes[i].gossip == NULL || i == subject)
            continue;
        ++*living;
        know += knows_dead(w, i, subject);
    }
    return know;
}

/* Looks on from the first who did not know when it was asked last: with each change all of them would
 * be too many. */
static bool all_know(struct sim_gossip *w)
{
    uint32_t living;
    while (w->knowing < w->count &&
           (w->nodes[w->knowing].gossip == NULL || knows_dead(w, w->knowing, w->killed)))
        w->knowing++;
    if (w->knowing < w->count)
        return false;
    if (know_dead(w, w->killed, &living) == living)
        return true;
    w->knowing = 0; /* somebody thought better of it */
    return false;
}

static void watch_killed(struct sim_gossip *w, const struct gossip_change *change)
{
    uint64_t since_us = sim_now_us(w->sim) - w->killed_us;
    if (w->killed_us == 0 || change->id != w->killed + 1ull || w->nodes[w->killed].gossip != NULL)
        return;
    if (change->state == GOSSIP_SUSPECT && w->first_suspect_us == 0)
        w->first_suspect_us = since_us;
    if (change->state != GOSSIP_DEAD)
        return;
    if (w->first_dead_us == 0)
        w->first_dead_us = since_us;
    if (w->all_dead_us == 0 && all_know(w))
        w->all_dead_us = since_us;
}

/* A row for one that is seen gone for the first time: most never are. */
static void check_gone(struct sim_gossip *w, uint32_t node, const struct gossip_member *m)
{
    struct gone **row = &w->gone[m->id - 1];
    bool is = m->state >= GOSSIP_DEAD && m->boot != 0;
    if (*row == NULL && !is)
        return;
    if (*row == NULL)
        *row = calloc(w->count, sizeof **row);
    assert_always(*row != NULL);
    struct gone *gone = &(*row)[node];
    bool newer = m->boot != gone->boot ? m->boot > gone->boot : m->incarnation > gone->incarnation;
    if (m->state <= GOSSIP_SUSPECT && gone->is && !newer)
        violate(w, "resurrected without a higher incarnation", node, m->id);
    *gone = (struct gone){m->boot, m->incarnation, is};
}

static void check_change(struct sim_gossip *w, uint32_t node, const struct gossip_change *change)
{
    struct gossip_member m;
    if ((change->changed & (GOSSIP_CHANGED_STATE | GOSSIP_CHANGED_META)) == 0)
        return;
    if (!gossip_member_get(w->nodes[node].gossip, change->id, &m) || m.id > w->count)
        return violate(w, "a member out of nothing", node, change->id);
    uint32_t subject = (uint32_t)m.id - 1;
    check_gone(w, node, &m);
    if (change->from == change->state)
        return;
    if (w->trace)
        printf("%9.3f s  node %u: node %u is %s, incarnation %u, boot %" PRIu64 "\n",
               (double)sim_now_us(w->sim) / 1e6, node + 1, subject + 1, gossip_state_name(m.state),
               m.incarnation, m.boot);
    bool running = w->nodes[subject].gossip != NULL && w->nodes[subject].boot == m.boot;
    w->counts.suspicions += running && m.state == GOSSIP_SUSPECT;
    w->counts.false_deaths += running && m.state == GOSSIP_DEAD;
    watch_killed(w, change);
}

/* --- a step of one node ----------------------------------------------------------------------- */

static void send_packet(struct sim_gossip *w, uint32_t node, const struct gossip_send *send)
{
    uint8_t bytes[ENVELOPE_BYTES + GOSSIP_PACKET_BYTES_MAX];
    memcpy(bytes, &w->nodes[node].boot, 8);
    memcpy(bytes + 8, &send->to_boot, 8);
    memcpy(bytes + ENVELOPE_BYTES, send->data, send->size);
    assert_always(send->to >= 1 && send->to <= w->count && send->to != node + 1ull);
    w->counts.packets++;
    w->counts.bytes += send->size + SEAL_BYTES + UDP_IP_BYTES;
    sim_datagram(w->sim, node, (uint32_t)send->to - 1, bytes, ENVELOPE_BYTES + send->size,
                 packet_deliver, w);
}

static void send_state(struct sim_gossip *w, uint32_t node, uint32_t to, sim_deliver deliver)
{
    struct buffer state;
    struct err e;
    buffer_init(&state, 64u << 20);
    assert_always(gossip_sync_write(w->nodes[node].gossip, &state, &e) == 0);
    w->counts.sync_bytes += state.length;
    sim_message(w->sim, node, to, state.data, state.length, deliver, w);
    buffer_free(&state);
}

static void step(struct sim_gossip *w, uint32_t node, const struct gossip_event *event)
{
    struct world_node *n = &w->nodes[node];
    struct gossip_actions actions;
    struct err e;
    assert_always(n->gossip != NULL);
    if (gossip_step(n->gossip, event, now_ms(w), &actions, &e) != 0)
        violate(w, e.msg, node, event->from);
    for (size_t i = 0; i < actions.send_count; i++)
        send_packet(w, node, &actions.sends[i]);
    for (size_t i = 0; i < actions.change_count; i++)
        check_change(w, node, &actions.changes[i]);
    for (size_t i = 0; i < actions.sync_count; i++)
        send_state(w, node, (uint32_t)actions.syncs[i] - 1, ask_deliver);
    if (actions.impostor)
        violate(w, "an impostor", node, node + 1ull);
    sim_node_at(w->sim, node, actions.next_ms * 1000, tick_run, w, ++n->timer);
    if (actions.left)
        end(w, node);
}

static void tick_run(void *user, uint32_t node, uint64_t serial)
{
    struct sim_gossip *w = user;
    struct gossip_event event = {.kind = GOSSIP_TICK};
    if (serial == w->nodes[node].timer)
        step(w, node, &event);
}

static struct address address_of(uint32_t node)
{
    struct address a = {.family = ADDRESS_V4, .port = PORT};
    a.bytes[0] = 10;
    a.bytes[2] = (uint8_t)(node >> 8);
    a.bytes[3] = (uint8_t)node;
    return a;
}

static void packet_deliver(void *user, uint32_t to, uint32_t from, const uint8_t *data, size_t size)
{
    struct sim_gossip *w = user;
    uint64_t boot;
    memcpy(&boot, data + 8, 8);
    if (boot != w->nodes[to].boot)
        return; /* the seal would not open */
    struct gossip_event event = {.kind = GOSSIP_PACKET,
                                 .from = from + 1ull,
                                 .address = address_of(from),
                                 .data = data + ENVELOPE_BYTES,
                                 .size = size - ENVELOPE_BYTES};
    memcpy(&event.from_boot, data, 8);
    step(w, to, &event);
}

static void answer_deliver(void *user, uint32_t to, uint32_t from, const uint8_t *data, size_t size)
{
    struct gossip_event event = {
        .kind = GOSSIP_SYNC, .from = from + 1ull, .data = data, .size = size};
    step(user, to, &event);
}

static void ask_deliver(void *user, uint32_t to, uint32_t from, const uint8_t *data, size_t size)
{
    struct sim_gossip *w = user;
    answer_deliver(w, to, from, data, size);
    if (w->nodes[to].gossip != NULL)
        send_state(w, to, from, answer_deliver);
}

/* --- life of nodes ---------------------------------------------------------------------------- */

static void load_run(void *user, uint32_t node, uint64_t number)
{
    struct sim_gossip *w = user;
    struct world_node *n = &w->nodes[node];
    struct gossip_load load = {.instances = ++n->load,
                               .joiners = n->load * 3,
                               .cpu_millis = n->load % 2000,
                               .memory_bytes = (uint64_t)n->load << 20,
                               .workload_count = 4};
    for (uint32_t i = 0; i < load.workload_count; i++)
        load.workloads[i] = (struct gossip_load_workload){i * 0x0123456789abcdefull, 2, n->load};
    struct gossip_event event = {.kind = GOSSIP_TELL_LOAD, .load = &load};
    step(w, node, &event);
    sim_node_at(w->sim, node, sim_now_us(w->sim) + w->load_interval_us, load_run, w, number);
}

static void create(struct sim_gossip *w, uint32_t node)
{
    struct world_node *n = &w->nodes[node];
    struct gossip_meta meta = {.roles = 1, .cpu_millis = 2000, .memory_bytes = 4ull << 30};
    struct gossip_options options;
    struct err e;
    (void)text_format(meta.name, sizeof meta.name, "node%u", node + 1);
    (void)text_copy(meta.version, sizeof meta.version, "0.1.0");
    meta.addresses[GOSSIP_PORT_PEER] = address_of(node);
    gossip_options_defaults(&options);
    options.self.id = node + 1ull;
    options.self.boot = ++n->boot;
    options.self.address = address_of(node);
    options.self.meta = &meta;
    options.seed = sim_random(w->sim);
    options.store = sim_store_for_gossip(w->store);
    if (options.members_max < w->count)
        options.members_max = w->count;
    assert_always(gossip_new(&n->gossip, &options, &e) == 0);
    sim_node_up(w->sim, node);
    for (uint32_t i = 0; i < w->count; i++) {
        if (w->gone[i] != NULL)
            w->gone[i][node] = (struct gone){0};
    }
}

static void begin(struct sim_gossip *w, uint32_t node)
{
    struct gossip_event tick = {.kind = GOSSIP_TICK};
    step(w, node, &tick);
    if (w->load_interval_us > 0)
        sim_node_at(w->sim, node, sim_now_us(w->sim) + sim_below(w->sim, w->load_interval_us),
                    load_run, w, 0);
}

void sim_gossip_start(struct sim_gossip *w, uint32_t node)
{
    create(w, node);
    begin(w, node);
    for (uint32_t i = 0; i < w->count; i++) {
        struct gossip_event event = {
            .kind = GOSSIP_SEED, .from = i + 1ull, .address = address_of(i)};
        if (i != node)
            step(w, node, &event);
    }
}

/* What the nodes from `first` on say of themselves, as one sync. */
static void settled_write(struct sim_gossip *w, uint32_t first, uint32_t end, struct buffer *out)
{
    struct buffer own;
    struct err e;
    uint8_t head[8];
    struct packet_writer writer = {head, sizeof head, 0};
    buffer_init(&own, GOSSIP_SYNC_MEMBER_BYTES_MAX);
    assert_always(packet_write_sync_head(&writer) && buffer_append(out, head, writer.length));
    for (uint32_t i = first; i < end; i++) {
        buffer_consume(&own, own.length);
        assert_always(gossip_sync_write(w->nodes[i].gossip, &own, &e) == 0);
        assert_always(buffer_append(out, own.data + writer.length, own.length - writer.length));
    }
    buffer_free(&own);
}

/* As from a stranger: what a member says of itself is told on. */
static void settled_read(struct sim_gossip *w, uint32_t node, const struct buffer *state)
{
    struct gossip_event event = {.kind = GOSSIP_SYNC,
                                 .from = w->count + 1ull,
                                 .data = (const uint8_t *)state->data,
                                 .size = state->length};
    step(w, node, &event);
}

void sim_gossip_start_settled(struct sim_gossip *w, uint32_t count)
{
    uint32_t pieces = (count + SETTLED_MEMBERS - 1) / SETTLED_MEMBERS;
    struct buffer *states = calloc(pieces, sizeof *states);
    assert_always(states != NULL);
    for (uint32_t i = 0; i < count; i++)
        create(w, i);
    for (uint32_t i = 0; i < pieces; i++) {
        uint32_t first = i * SETTLED_MEMBERS, left = count - first;
        buffer_init(&states[i], 64u << 20);
        settled_write(w, first, first + (left < SETTLED_MEMBERS ? left : SETTLED_MEMBERS),
                      &states[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        begin(w, i);
        for (uint32_t k = 0; k < pieces; k++)
            settled_read(w, i, &states[k]);
    }
    for (uint32_t i = 0; i < pieces; i++)
        buffer_free(&states[i]);
    free(states);
}

static void end(struct sim_gossip *w, uint32_t node)
{
    sim_node_crash(w->sim, node);
    gossip_free(w->nodes[node].gossip);
    w->nodes[node].gossip = NULL;
}

void sim_gossip_kill(struct sim_gossip *w, uint32_t node)
{
    end(w, node);
    w->killed = node;
    w->knowing = 0;
    w->killed_us = sim_now_us(w->sim);
    w->first_suspect_us = w->first_dead_us = w->all_dead_us = 0;
}

void sim_gossip_leave(struct sim_gossip *w, uint32_t node)
{
    struct gossip_event event = {.kind = GOSSIP_LEAVE};
    step(w, node, &event);
}

/* --- the whole -------------------------------------------------------------------------------- */

struct sim_gossip *sim_gossip_new(struct sim *sim, uint32_t nodes)
{
    struct sim_gossip *w = calloc(1, sizeof *w);
    assert_always(w != NULL);
    w->sim = sim;
    w->count = nodes;
    w->nodes = calloc(nodes, sizeof *w->nodes);
    w->gone = calloc(nodes, sizeof *w->gone);
    w->store = sim_store_new();
    assert_always(w->nodes != NULL && w->gone != NULL);
    return w;
}

void sim_gossip_free(struct sim_gossip *w)
{
    for (uint32_t i = 0; i < w->count; i++) {
        gossip_free(w->nodes[i].gossip);
        free(w->gone[i]);
    }
    sim_store_free(w->store);
    free(w->nodes);
    free(w->gone);
    free(w);
}

void sim_gossip_trace(struct sim_gossip *w, bool on)
{
    w->trace = on;
}

void sim_gossip_loads(struct sim_gossip *w, uint64_t interval_us)
{
    w->load_interval_us = interval_us;
}

const char *sim_gossip_violation(const struct sim_gossip *w)
{
    return w->violation[0] == '\0' ? NULL : w->violation;
}

bool sim_gossip_agree(const struct sim_gossip *w, char *why, size_t size)
{
    for (uint32_t i = 0; i < w->count; i++) {
        for (uint32_t j = 0; j < w->count && w->nodes[i].gossip != NULL; j++) {
            struct gossip_member m = {.state = GOSSIP_DEAD}, own = {0};
            bool known = gossip_member_get(w->nodes[i].gossip, j + 1ull, &m);
            bool runs = w->nodes[j].gossip != NULL;
            if (runs)
                (void)gossip_member_get(w->nodes[j].gossip, j + 1ull, &own);
            bool good = runs ? known && m.state == GOSSIP_ALIVE && m.boot == own.boot &&
                                   m.incarnation == own.incarnation
                             : m.state >= GOSSIP_DEAD;
            if (good)
                continue;
            (void)text_format(why, size,
                              "node %u, which %s, is %s to node %u: boot %" PRIu64
                              ", incarnation %u, itself %" PRIu64 ", %u",
                              j + 1, runs ? "runs" : "does not run",
                              known ? gossip_state_name(m.state) : "unknown", i + 1, m.boot,
                              m.incarnation, own.boot, own.incarnation);
            return false;
        }
    }
    return true;
}

void sim_gossip_counts(const struct sim_gossip *w, struct sim_gossip_counts *out)
{
    *out = w->counts;
}

void sim_gossip_counts_reset(struct sim_gossip *w)
{
    w->counts = (struct sim_gossip_counts){0};
}

void sim_gossip_detection(const struct sim_gossip *w, struct sim_gossip_detection *out)
{
    *out =
        (struct sim_gossip_detection){w->first_suspect_us, w->first_dead_us, w->all_dead_us, 0, 0};
    out->know = know_dead(w, w->killed, &out->living);
}

uint64_t sim_gossip_load_age_ms(const struct sim_gossip *w)
{
    uint64_t sum = 0, count = 0;
    for (uint32_t i = 0; i < w->count; i += 1 + w->count / LOAD_OBSERVERS) {
        struct gossip_load load;
        for (uint32_t j = 0; j < w->count && w->nodes[i].gossip != NULL; j++) {
            /* Each load says its number. */
            if (j == i || w->nodes[j].gossip == NULL ||
                !gossip_load_get(w->nodes[i].gossip, j + 1ull, &load))
                continue;
            sum += (w->nodes[j].load - load.instances) * w->load_interval_us / 1000;
            count++;
        }
    }
    return count == 0 ? 0 : sum / count;
}
