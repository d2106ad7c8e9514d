#include "tests/sim/gossip_chaos.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/memory.h"
#include "tests/sim/sim_gossip.h"

#define SECOND 1000000ull
#define MS 1000ull

enum {
    CHAOS_NODES_MAX = 16,
    /* After healing: two attempts at a sync with the dead (1 s each, p = dead / living, so that halves
     * meet at once but one lost member of 16 may take some), spreading, and one more round for a
     * refutation that was lost; a sync each 10 s repairs what got lost altogether. */
    CONVERGE_SECONDS = 40,
};

static bool fail(struct gossip_failure *f, const char *what)
{
    (void)text_format(f->text, sizeof f->text, "%s", what);
    return false;
}

/* --- faults at random, then peace: all must agree --------------------------------------------- */

struct chaos {
    struct sim *sim;
    struct sim_gossip *world;
    uint32_t count;
    bool trace;
};

static void say(const struct chaos *c, const char *what, uint32_t node, uint64_t number)
{
    if (c->trace)
        printf("%9.3f s  fault: %s, node %u, %" PRIu64 "\n", (double)sim_now_us(c->sim) / 1e6, what,
               node + 1, number);
}

static void cut_some(struct chaos *c)
{
    /* One way, or both, between two random sides. */
    uint64_t side = sim_random(c->sim);
    bool both = sim_chance(c->sim, 500);
    say(c, both ? "cut both ways" : "cut one way", 0, side & 0xffff);
    for (uint32_t i = 0; i < c->count; i++) {
        for (uint32_t j = 0; j < c->count; j++) {
            bool from = (side >> i & 1) != 0, to = (side >> j & 1) != 0;
            if (from && !to)
                sim_cut(c->sim, i, j, true);
            if (from && !to && both)
                sim_cut(c->sim, j, i, true);
        }
    }
}

static void fault_run(void *user, uint32_t unused, uint64_t number)
{
    struct chaos *c = user;
    struct sim *s = c->sim;
    uint32_t node = (uint32_t)sim_below(s, c->count);
    bool up = sim_node_is_up(s, node);
    uint64_t amount = sim_below(s, 8 * SECOND);
    (void)unused;
    switch (sim_below(s, 8)) {
    case 0:
        if (up) {
            say(c, "kill", node, 0);
            sim_gossip_kill(c->world, node);
        }
        break;
    case 1:
    case 2:
        if (!up) {
            say(c, "start", node, 0);
            sim_gossip_start(c->world, node);
        }
        break;
    case 3:
        if (up) {
            say(c, "leave", node, 0);
            sim_gossip_leave(c->world, node);
        }
        break;
    case 4:
        say(c, "pause, us", node, amount);
        sim_node_pause(s, node, sim_now_us(s) + amount);
        break;
    case 5:
        say(c, "slow, us", node, amount / 8);
        sim_node_slow(s, node, amount / 8);
        break;
    case 6:
        cut_some(c);
        break;
    default:
        say(c, "heal", 0, 0);
        sim_heal(s);
    }
    if (number > 0)
        sim_at(s, sim_now_us(s) + sim_between(s, 100 * MS, 4 * SECOND), fault_run, c, number - 1);
}

bool gossip_chaos(uint64_t seed, bool trace, struct gossip_failure *f)
{
    struct sim *s = sim_new(seed, CHAOS_NODES_MAX);
    uint32_t count = (uint32_t)sim_between(s, 2, CHAOS_NODES_MAX);
    struct sim_gossip *w = sim_gossip_new(s, count);
    struct chaos c = {s, w, count, trace};
    sim_gossip_trace(w, trace);
    struct sim_network *net = sim_network(s);
    net->loss_permille = (uint32_t)sim_below(s, 200);
    net->double_permille = (uint32_t)sim_below(s, 100);
    net->delay_max_us = net->delay_min_us + sim_below(s, 60 * MS);
    if (sim_chance(s, 500))
        sim_gossip_loads(w, SECOND);
    for (uint32_t i = 0; i < count; i++)
        sim_gossip_start(w, i);
    sim_at(s, SECOND, fault_run, &c, 20);
    sim_until(s, 60 * SECOND);
    sim_heal(s);
    net->loss_permille = net->loss_permille / 10;
    if (trace)
        printf("%9.3f s  all is healed\n", (double)sim_now_us(s) / 1e6);
    char why[300] = "";
    bool agree = false;
    for (unsigned i = 0; i < CONVERGE_SECONDS * 4 && !agree; i++) {
        sim_until(s, sim_now_us(s) + SECOND / 4);
        agree = sim_gossip_agree(w, why, sizeof why);
    }
    /* And stays so. */
    sim_until(s, sim_now_us(s) + 5 * SECOND);
    bool good = true;
    if (sim_gossip_violation(w) != NULL)
        good = fail(f, sim_gossip_violation(w));
    else if (!agree)
        good = fail(f, why);
    sim_gossip_free(w);
    sim_free(s);
    return good;
}

/* --- a healthy network, some members slow: nobody is pronounced dead, but who is killed -------- */

enum { KILLS_MAX = 15 };

struct health {
    uint32_t nodes, slow_permille, loss_permille;
    uint32_t kills; /* one after the other */
    uint64_t delay_max_us, stall_max_us, quiet_us, load_interval_us;
};

struct measured {
    struct sim_gossip_counts counts;
    struct sim_gossip_detection detections[KILLS_MAX];
    uint64_t load_age_ms, slow;
};

static void kill_one(struct sim *s, struct sim_gossip *w, uint32_t node, bool trace,
                     struct sim_gossip_detection *out)
{
    sim_gossip_kill(w, node);
    for (unsigned i = 0; i < 100 && out->all_dead_us == 0; i++) {
        sim_until(s, sim_now_us(s) + SECOND / 10);
        sim_gossip_detection(w, out);
    }
    if (trace)
        printf("killed: suspected after %" PRIu64 " us, pronounced dead after %" PRIu64
               " us, known to all after %" PRIu64 " us\n",
               out->first_suspect_us, out->first_dead_us, out->all_dead_us);
}

static void measure(uint64_t seed, const struct health *h, bool trace, struct measured *out)
{
    struct sim *s = sim_new(seed, h->nodes);
    struct sim_gossip *w = sim_gossip_new(s, h->nodes);
    struct sim_network *net = sim_network(s);
    net->loss_permille = h->loss_permille;
    net->double_permille = h->loss_permille;
    net->delay_max_us = h->delay_max_us;
    sim_gossip_trace(w, trace);
    sim_gossip_loads(w, h->load_interval_us);
    sim_gossip_start_settled(w, h->nodes);
    /* The last one is not slow: it is to be killed, first if there are several. */
    for (uint32_t i = 0; i + 1 < h->nodes; i++) {
        if (i * h->slow_permille / 1000 != (i + 1) * h->slow_permille / 1000) {
            sim_node_slow(s, i, h->stall_max_us);
            out->slow++;
        }
    }
    /* Each has had its first sync; from then on their pace depends on the group's size. */
    sim_until(s, 12 * SECOND);
    sim_gossip_counts_reset(w);
    sim_until(s, 12 * SECOND + h->quiet_us);
    sim_gossip_counts(w, &out->counts);
    out->load_age_ms = sim_gossip_load_age_ms(w);
    for (uint32_t i = 0; i < h->kills; i++)
        kill_one(s, w, h->nodes - 1 - i, trace, &out->detections[i]);
    struct sim_gossip_counts after;
    sim_gossip_counts(w, &after);
    out->counts.false_deaths = after.false_deaths;
    sim_gossip_free(w);
    sim_free(s);
}

bool gossip_healthy(uint64_t seed, bool trace, struct gossip_failure *f)
{
    struct sim *s = sim_new(seed ^ 0x5eed, 1);
    struct health h = {.nodes = (uint32_t)sim_between(s, 3, 40),
                       .slow_permille = 100,
                       .kills = 1,
                       .loss_permille = (uint32_t)sim_below(s, 30),
                       .delay_max_us = sim_between(s, 500, 20 * MS),
                       .stall_max_us = sim_between(s, 50 * MS, 400 * MS),
                       .quiet_us = 20 * SECOND};
    struct measured m = {0};
    sim_free(s);
    measure(seed, &h, trace, &m);
    char text[200];
    if (m.counts.false_deaths > 0) {
        (void)text_format(text, sizeof text,
                          "%u nodes, healthy but slow ones: living members were pronounced dead by "
                          "%" PRIu64 " observers",
                          h.nodes, m.counts.false_deaths);
        return fail(f, text);
    }
    const struct sim_gossip_detection *d = &m.detections[0];
    if (d->all_dead_us == 0) {
        (void)text_format(text, sizeof text, "%u nodes: %u of %u know of the death after 10 s",
                          h.nodes, d->know, d->living);
        return fail(f, text);
    }
    return true;
}

/* --- the table -------------------------------------------------------------------------------- */

static int compare_times(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Times of all kills of one size. */
struct times {
    uint64_t suspect[KILLS_MAX], dead[KILLS_MAX], all[KILLS_MAX];
    unsigned count;
};

static void times_add(struct times *t, const struct measured *m, uint32_t kills)
{
    for (uint32_t i = 0; i < kills; i++) {
        const struct sim_gossip_detection *d = &m->detections[i];
        t->suspect[t->count] = d->first_suspect_us / MS;
        t->dead[t->count] = d->first_dead_us / MS;
        t->all[t->count++] = d->all_dead_us / MS;
    }
}

static void times_sort(struct times *t)
{
    qsort(t->suspect, t->count, sizeof *t->suspect, compare_times);
    qsort(t->dead, t->count, sizeof *t->dead, compare_times);
    qsort(t->all, t->count, sizeof *t->all, compare_times);
}

/* One line of the table: several kills in groups of that size, or in one if it is large. */
static bool table_line(uint32_t nodes, uint32_t slow_permille, uint64_t seed)
{
    struct health h = {.nodes = nodes,
                       .slow_permille = slow_permille,
                       .loss_permille = 10,
                       .kills = nodes > 1000 ? 5 : 1,
                       .delay_max_us = 2 * MS,
                       .stall_max_us = 400 * MS,
                       .quiet_us = 10 * SECOND,
                       .load_interval_us = SECOND};
    unsigned groups = nodes >= 300 ? 1 + 1000 / nodes : KILLS_MAX;
    struct times t = {.count = 0};
    uint64_t false_deaths = 0, slow = 0;
    double packets = 0, bytes = 0, sync = 0, age = 0;
    for (unsigned i = 0; i < groups; i++) {
        struct measured m = {0};
        measure(seed + i, &h, false, &m);
        double node_seconds = (double)nodes * (double)h.quiet_us / (double)SECOND * groups;
        times_add(&t, &m, h.kills);
        false_deaths += m.counts.false_deaths;
        slow = m.slow;
        packets += (double)m.counts.packets / node_seconds;
        bytes += (double)m.counts.bytes / node_seconds;
        sync += (double)m.counts.sync_bytes / node_seconds;
        age += (double)m.load_age_ms / groups;
    }
    times_sort(&t);
    printf("%6u %5" PRIu64 " %6u %9" PRIu64 " %7" PRIu64 " %7" PRIu64 " %7" PRIu64
           " %9.1f %8.0f %8.0f %8.1f %7" PRIu64 "\n",
           nodes, slow, t.count, t.suspect[t.count / 2], t.dead[t.count / 2], t.all[t.count / 2],
           t.all[t.count - 1], packets, bytes, sync, age / 1000, false_deaths);
    fflush(stdout);
    return false_deaths == 0 && t.all[0] > 0;
}

bool gossip_table(uint32_t nodes_max, bool slow, uint64_t seed)
{
    static const uint32_t sizes[] = {5, 10, 30, 100, 300, 1000, 10000};
    bool good = true;
    printf(
        "a member is killed; 1%% loss; the slow ones run in bursts up to 0.4 s apart; each tells a "
        "new load a second\n"
        "                      milliseconds, median         max  per node and second       load\n"
        " nodes  slow  kills suspected    dead    all    all    packets    bytes  in sync "
        "   age s   false\n");
    for (size_t i = 0; i < ARRAY_SIZE(sizes) && sizes[i] <= nodes_max; i++)
        good &= table_line(sizes[i], 0, seed);
    for (size_t i = 1; slow && i < ARRAY_SIZE(sizes) && sizes[i] <= nodes_max; i++)
        good &= table_line(sizes[i], 100, seed);
    return good;
}
