#include "tests/sim/raft_chaos.h"

#include <inttypes.h>
#include <string.h>

#include "base/memory.h"
#include "tests/sim/raft_clients.h"
#include "tests/sim/raft_leases.h"
#include "tests/sim/raft_roles.h"
#include "tests/sim/raft_world.h"

#define SECOND 1000000ull
#define MS 1000ull

enum {
    FAULT_SECONDS = 20,
    CALM_FAULT_SECONDS = 40,
    /* After healing: a process that had ended starts again (2 s), elections (0.4 s each, some are split),
     * a follower that is far behind is found out (0.2 s for each step back of libraft's probing) and gets
     * a snapshot, again after 3 s if the first went astray. */
    CONVERGE_SECONDS = 20,
    /* Beside that, one change after the other, each after somebody was seen alive for a second or dead for
     * three, and up to 5 s for one whom libraft gives up to bring up to date. */
    ROLES_SECONDS = 60,
    DRIFT_PPM_MAX = LEASES_DRIFT_PPM_MAX,
};

struct chaos {
    struct sim *sim;
    struct world *world;
    struct clients *clients;
    struct roles *roles; /* NULL: members and roles as they are, or changed at random */
    uint32_t n;
    bool over;
    bool changes; /* of who is a member, and what */
    bool calm;    /* faults are rare and long: leases end, and leaders last */
};

/* --- faults ------------------------------------------------------------------------------------------- */

/* One way, or both, between two sides. */
static void cut(struct chaos *c, uint64_t side, bool out, bool in)
{
    world_say(c->world, "fault: members %#" PRIx64 " are cut off%s", side,
              out && in ? ""
              : out     ? ", what they send"
                        : ", what is sent to them");
    for (uint32_t i = 0; i < c->n; i++) {
        for (uint32_t j = 0; j < c->n; j++) {
            if ((side >> i & 1) == 0 || (side >> j & 1) != 0)
                continue;
            if (out)
                sim_cut(c->sim, i, j, true);
            if (in)
                sim_cut(c->sim, j, i, true);
        }
    }
}

static void cut_some(struct chaos *c)
{
    int leader = world_leader(c->world);
    uint64_t side = sim_random(c->sim) & ((1u << c->n) - 1);
    /* A leader alone, or with one other, loses what it appends. */
    if (leader >= 0 && sim_chance(c->sim, 600))
        side = 1ull << leader | (sim_chance(c->sim, 600) ? 1ull << sim_below(c->sim, c->n) : 0);
    uint64_t way = sim_below(c->sim, 4);
    cut(c, side, way != 1, way != 2);
}

static void heal(struct chaos *c)
{
    world_say(c->world, "fault: the network is whole");
    for (uint32_t i = 0; i < c->n; i++)
        for (uint32_t j = 0; j < c->n; j++)
            sim_cut(c->sim, i, j, false);
}

static void start_again(void *user, uint32_t node, uint64_t i)
{
    struct chaos *c = user;
    (void)node;
    if (!c->over && !member_is_up(c->world, (uint32_t)i))
        member_start(c->world, (uint32_t)i);
}

static void kill_one(struct chaos *c, uint32_t i)
{
    member_kill(c->world, i);
    sim_at(c->sim, sim_now_us(c->sim) + sim_between(c->sim, 50 * MS, 4 * SECOND), start_again, c,
           i);
}

static void disk_fault(struct chaos *c, uint32_t i)
{
    struct disk_faults *disk = member_disk(c->world, i);
    switch (sim_below(c->sim, 8)) {
    case 0:
    case 1:
        disk->latency_max_us = disk->latency_min_us + sim_below(c->sim, 600 * MS);
        world_say(c->world, "fault: disk of member %u takes up to %" PRIu64 " us", i + 1,
                  disk->latency_max_us);
        break;
    case 2:
        disk->fail_permille = sim_chance(c->sim, 300) ? 1000 : 100;
        world_say(c->world, "fault: disk of member %u fails", i + 1);
        break;
    case 3:
        disk->full = true;
        world_say(c->world, "fault: disk of member %u is full", i + 1);
        break;
    case 4:
        disk->crash = true;
        world_say(c->world, "fault: member %u crashes with its next write", i + 1);
        break;
    default:
        *disk = (struct disk_faults){.latency_min_us = 200, .latency_max_us = 3000};
        world_say(c->world, "fault: disk of member %u is well", i + 1);
    }
}

static void clock_fault(struct chaos *c, uint32_t i)
{
    int64_t step = (int64_t)sim_below(c->sim, 120000) - 60000;
    int64_t rate = (int64_t)sim_below(c->sim, 2 * DRIFT_PPM_MAX) - DRIFT_PPM_MAX;
    member_wall_step(c->world, i, step);
    member_clock_rate(c->world, i, rate);
    world_say(c->world,
              "fault: clock of member %u steps by %" PRId64 " ms, runs %" PRId64 " ppm fast", i + 1,
              step, rate);
}

static void network_fault(struct chaos *c)
{
    struct sim_network *net = sim_network(c->sim);
    net->loss_permille = sim_chance(c->sim, 500) ? (uint32_t)sim_below(c->sim, 250) : 0;
    net->double_permille = (uint32_t)sim_below(c->sim, 100);
    net->delay_max_us = net->delay_min_us + (sim_chance(c->sim, 300) ? sim_below(c->sim, 400 * MS)
                                                                     : sim_below(c->sim, 20 * MS));
    world_say(c->world, "fault: network loses %u, doubles %u of 1000, takes up to %" PRIu64 " us",
              net->loss_permille, net->double_permille, net->delay_max_us);
}

static void pause_one(struct chaos *c, uint32_t i)
{
    uint64_t us = sim_below(c->sim, c->calm ? 12 * SECOND : 3 * SECOND);
    world_say(c->world, "fault: member %u is stopped for %" PRIu64 " us", i + 1, us);
    sim_node_pause(c->sim, i, sim_now_us(c->sim) + us);
}

static const struct raft_server *server_of(const struct raft *r, raft_id id)
{
    for (unsigned i = 0; i < r->configuration.n; i++)
        if (r->configuration.servers[i].id == id)
            return &r->configuration.servers[i];
    return NULL;
}

/* As the leader would: one change at a time, never of itself, never the last voter but itself away. */
static void change_run(void *user, uint32_t none, uint64_t number)
{
    struct chaos *c = user;
    int leader = world_leader(c->world);
    uint32_t i = (uint32_t)sim_below(c->sim, c->n);
    (void)none;
    (void)number;
    if (c->over)
        return;
    sim_at(c->sim, sim_now_us(c->sim) + sim_between(c->sim, 50 * MS, 900 * MS), change_run, c, 0);
    if (leader < 0 || (uint32_t)leader == i || member_is_gone(c->world, i))
        return;
    const struct raft_server *server = server_of(member_raft(c->world, (uint32_t)leader), i + 1);
    enum world_change change = WORLD_ADD;
    if (server != NULL) {
        uint64_t which = sim_below(c->sim, 100);
        change = which < 50   ? WORLD_VOTER
                 : which < 80 ? WORLD_STANDBY
                 : which < 97 ? WORLD_SPARE
                              : WORLD_REMOVE;
        if ((int)change == WORLD_VOTER && server->role == RAFT_VOTER)
            change = WORLD_STANDBY;
    }
    member_change(c->world, (uint32_t)leader, change, i + 1);
}

static void fault_run(void *user, uint32_t none, uint64_t number)
{
    struct chaos *c = user;
    int leader = world_leader(c->world);
    uint32_t i = (uint32_t)sim_below(c->sim, c->n);
    (void)none;
    (void)number;
    if (c->over)
        return;
    if (leader >= 0 && sim_chance(c->sim, 300))
        i = (uint32_t)leader;
    uint64_t which = sim_below(c->sim, 100);
    if (which < 18)
        cut_some(c);
    else if (which < 40)
        heal(c);
    else if (which < 52)
        kill_one(c, i);
    else if (which < 54)
        for (uint32_t k = 0; k < c->n; k++)
            kill_one(c, k);
    else if (which < 62)
        pause_one(c, i);
    else if (which < 66)
        sim_node_slow(c->sim, i, sim_chance(c->sim, 500) ? 0 : sim_below(c->sim, 300 * MS));
    else if (which < 84)
        disk_fault(c, i);
    else if (which < 88)
        clock_fault(c, i);
    else if (which < 94)
        network_fault(c);
    else if (leader >= 0)
        member_transfer(c->world, (uint32_t)leader, 0);
    uint64_t pause_us = sim_between(c->sim, 20 * MS, c->calm ? 6 * SECOND : 600 * MS);
    sim_at(c->sim, sim_now_us(c->sim) + pause_us, fault_run, c, 0);
}

/* --- peace -------------------------------------------------------------------------------------------- */

static void peace(struct chaos *c)
{
    struct sim_network *net = sim_network(c->sim);
    world_say(c->world, "all is healed");
    c->over = true;
    sim_heal(c->sim);
    net->loss_permille = net->double_permille = 0;
    net->delay_max_us = 2 * MS;
    for (uint32_t i = 0; i < c->n; i++) {
        *member_disk(c->world, i) =
            (struct disk_faults){.latency_min_us = 200, .latency_max_us = 3000};
        if (!member_is_up(c->world, i))
            member_start(c->world, i); /* unless it was removed */
    }
}

static int role_of(const struct raft *r, raft_id id)
{
    const struct raft_server *server = server_of(r, id);
    return server == NULL ? WORLD_OUTSIDE : server->role;
}

/* Everybody who follows the log is where the leader is. */
static bool agreed(struct chaos *c, char *why, size_t size)
{
    int leader = world_leader(c->world);
    if (leader < 0 || !member_leads(c->world, (uint32_t)leader)) {
        (void)text_format(why, size, "nobody leads");
        return false;
    }
    const struct raft *first = member_raft(c->world, (uint32_t)leader);
    for (uint32_t i = 0; i < c->n; i++) {
        const struct raft *r = member_raft(c->world, i);
        int role = role_of(first, i + 1);
        if (role == RAFT_SPARE || role == WORLD_OUTSIDE)
            continue;
        if (r != NULL &&
            r->last_applied == raft_last_index(member_raft(c->world, (uint32_t)leader)))
            continue;
        (void)text_format(why, size, "member %u has applied %llu of %llu", i + 1,
                          r == NULL ? 0 : r->last_applied, first->last_applied);
        return false;
    }
    return true;
}

/* Whether it is whole again: a leader, everybody where it is, a new write done, nobody without an answer. */
static bool whole(struct chaos *c, char *why, size_t size)
{
    int leader = world_leader(c->world);
    if (leader >= 0 && member_leads(c->world, (uint32_t)leader))
        clients_probe(c->clients, (uint32_t)leader);
    if (!agreed(c, why, size))
        return false;
    (void)text_format(why, size,
                      "a new write is %sacknowledged, %" PRIu64 " of %" PRIu64 " have an answer",
                      clients_probe_acknowledged(c->clients) ? "" : "not ",
                      clients_answered(c->clients), clients_asked(c->clients));
    return clients_probe_acknowledged(c->clients) &&
           clients_answered(c->clients) == clients_asked(c->clients) &&
           (c->roles == NULL || roles_settled(c->roles, why, size));
}

static bool converge(struct chaos *c, struct raft_chaos_counts *counts, char *why, size_t size)
{
    uint64_t healed_us = sim_now_us(c->sim);
    bool good = false;
    uint64_t seconds = c->roles == NULL ? CONVERGE_SECONDS : ROLES_SECONDS;
    while (!good && sim_now_us(c->sim) < healed_us + seconds * SECOND &&
           checks_violation(world_checks(c->world)) == NULL) {
        sim_until(c->sim, sim_now_us(c->sim) + 100 * MS);
        if (sim_now_us(c->sim) > healed_us + SECOND)
            clients_stop(c->clients);
        good = whole(c, why, size);
    }
    counts->converged_us = sim_now_us(c->sim) - healed_us;
    return good;
}

static void final_checks(struct chaos *c)
{
    struct checks *checks = world_checks(c->world);
    int leader = world_leader(c->world);
    if (leader < 0 || checks_violation(checks) != NULL)
        return;
    checks_final(checks, state_content(member_state(c->world, (uint32_t)leader)));
}

/* --- a run -------------------------------------------------------------------------------------------- */

/* With `roles` it begins as a cluster does: with one member, whom the others join. */
static void options_choose(struct sim *s, const struct raft_chaos_options *options, bool roles,
                           struct world_options *out)
{
    uint32_t n = (uint32_t)sim_between(s, 1, WORLD_MEMBERS_MAX);
    if (sim_chance(s, 500))
        n = sim_chance(s, 500) ? 3 : 5;
    uint32_t voters = n >= 5 && sim_chance(s, 700) ? 5 : n >= 3 ? 3 : 1;
    *out = (struct world_options){.members = n,
                                  .guard_off = options->guard_off,
                                  .trace = options->trace,
                                  .trace_messages = options->trace_messages,
                                  .snapshot_threshold = (unsigned)sim_between(s, 20, 200),
                                  .propose_timeout_ms = (unsigned)sim_between(s, 500, 4000)};
    out->snapshot_trailing = (unsigned)sim_between(s, 5, out->snapshot_threshold);
    for (uint32_t i = 0; i < n && roles; i++)
        out->role[i] = i == 0 ? RAFT_VOTER : WORLD_OUTSIDE;
    for (uint32_t i = 0; i < n && !roles; i++) {
        out->role[i] = i < voters            ? RAFT_VOTER
                       : !sim_chance(s, 600) ? RAFT_SPARE
                       : sim_chance(s, 200)  ? WORLD_OUTSIDE
                                             : RAFT_STANDBY;
    }
}

bool raft_chaos(const struct raft_chaos_options *options, struct raft_chaos_counts *counts,
                char *why, size_t size)
{
    struct sim *s = sim_new(options->seed ^ 0x5a5a5a5a, WORLD_MEMBERS_MAX);
    struct world_options wo;
    /* Without the guard: what libraft does wrong while members stay. */
    bool plain = options->guard_off, roles = !plain && sim_chance(s, 400);
    options_choose(s, options, roles, &wo);
    struct chaos c = {.sim = s, .n = wo.members};
    c.world = world_new(s, &wo);
    c.clients = clients_new(c.world, sim_between(s, 60 * MS, 400 * MS));
    struct leases *leases = leases_new(c.world);
    if (roles)
        c.roles = roles_new(c.world, sim_chance(s, 500) ? 3 : 5, (unsigned)sim_below(s, 4));
    world_say(c.world, "%u members, a snapshot each %u entries, %u kept", wo.members,
              wo.snapshot_threshold, wo.snapshot_trailing);
    for (uint32_t i = 0; i < c.n; i++)
        member_start(c.world, i);
    sim_at(s, 2 * SECOND, fault_run, &c, 0);
    c.calm = !plain && sim_chance(s, 300);
    c.changes = !plain && c.roles == NULL && c.n > 1 && sim_chance(s, 600);
    if (c.changes)
        sim_at(s, 2 * SECOND, change_run, &c, 0);
    struct checks *checks = world_checks(c.world);
    unsigned tenths = (c.calm ? CALM_FAULT_SECONDS : FAULT_SECONDS) * 10;
    for (unsigned i = 0; i < tenths && checks_violation(checks) == NULL; i++)
        sim_until(s, (i + 1) * SECOND / 10);
    bool good = checks_violation(checks) == NULL;
    if (good) {
        peace(&c);
        good = converge(&c, counts, why, size);
        final_checks(&c);
    }
    if (checks_violation(checks) != NULL) {
        (void)text_format(why, size, "at %.3f s: %s", (double)sim_now_us(s) / 1e6,
                          checks_violation(checks));
        good = false;
    }
    counts->asked = clients_asked(c.clients);
    counts->acknowledged = checks_acknowledged_count(checks);
    counts->committed = checks_committed_last(checks);
    counts->started = leases_counts(leases).started;
    counts->expired = leases_counts(leases).expired;
    world_free(c.world);
    leases_free(leases);
    roles_free(c.roles);
    clients_free(c.clients);
    sim_free(s);
    return good;
}
