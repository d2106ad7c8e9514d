#include "tests/sim/raft_world.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/memory.h"
#include "tests/sim/raft_process.h"

#define SECOND 1000000ull
#define MILLION 1000000ll

struct member {
    struct disk *disk;
    struct process *process; /* NULL: down */
    uint64_t starts;
    bool gone; /* removed: it ends soon, for good */
    /* Its monotonic clock: at `set_us` it showed `shown_us`, and goes that much faster since. */
    uint64_t set_us, shown_us;
    int64_t rate_ppm;
    int64_t wall_ms; /* what its wall clock is ahead of its monotonic one */
};

struct world {
    struct sim *sim;
    struct world_options options;
    struct checks *checks;
    struct member *members;
};

void world_say(struct world *w, const char *format, ...)
{
    if (!w->options.trace)
        return;
    printf("%11.6f s  ", (double)sim_now_us(w->sim) / 1e6);
    va_list args;
    va_start(args, format);
    (void)vprintf(format, args);
    va_end(args);
    printf("\n");
}

/* --- clocks ------------------------------------------------------------------------------------------- */

static uint64_t local_us(const struct world *w, uint32_t i)
{
    const struct member *m = &w->members[i];
    int64_t passed = (int64_t)(sim_now_us(w->sim) - m->set_us);
    return m->shown_us + (uint64_t)(passed + passed * m->rate_ppm / MILLION);
}

uint64_t member_now_ms(const struct world *w, uint32_t i)
{
    return local_us(w, i) / 1000;
}

uint64_t member_wall_ms(const struct world *w, uint32_t i)
{
    return (uint64_t)((int64_t)member_now_ms(w, i) + w->members[i].wall_ms);
}

uint64_t member_real_us(const struct world *w, uint32_t i, uint64_t us)
{
    return (uint64_t)((int64_t)us * MILLION / (MILLION + w->members[i].rate_ppm));
}

void member_clock_rate(struct world *w, uint32_t i, int64_t parts_per_million)
{
    struct member *m = &w->members[i];
    m->shown_us = local_us(w, i);
    m->set_us = sim_now_us(w->sim);
    m->rate_ppm = parts_per_million;
}

void member_wall_step(struct world *w, uint32_t i, int64_t ms)
{
    w->members[i].wall_ms += ms;
}

/* --- lives -------------------------------------------------------------------------------------------- */

static void start_run(void *user, uint32_t node, uint64_t number)
{
    (void)node;
    if (!member_is_up(user, (uint32_t)number))
        member_start(user, (uint32_t)number);
}

static void start_later(struct world *w, uint32_t i)
{
    sim_at(w->sim, sim_now_us(w->sim) + sim_between(w->sim, SECOND / 5, 2 * SECOND), start_run, w,
           i);
}

static void process_gone(struct world *w, uint32_t i)
{
    struct process *p = w->members[i].process;
    w->members[i].process = NULL;
    sim_node_crash(w->sim, i);
    process_end(p);
}

static void ended(void *user, uint32_t i, const char *why)
{
    struct world *w = user;
    world_say(w, "member %u ends: %s", i + 1, why);
    process_gone(w, i);
    start_later(w, i);
}

void member_start(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    char why[200];
    assert_always(m->process == NULL);
    if (m->gone)
        return;
    sim_node_up(w->sim, i);
    const struct process_options options = {.world = w,
                                            .node = i,
                                            .id = i + 1,
                                            .boot = ++m->starts,
                                            .disk = m->disk,
                                            .world_options = &w->options,
                                            .ended = ended,
                                            .user = w};
    if (process_new(&m->process, &options, why, sizeof why)) {
        world_say(w, "member %u starts, term %llu, log to %llu", i + 1,
                  process_raft(m->process)->current_term,
                  raft_last_index(process_raft(m->process)));
        return;
    }
    world_say(w, "member %u: %s", i + 1, why);
    m->process = NULL;
    sim_node_crash(w->sim, i);
    start_later(w, i);
}

void member_kill(struct world *w, uint32_t i)
{
    if (!member_is_up(w, i))
        return;
    world_say(w, "member %u is killed", i + 1);
    process_gone(w, i);
}

/* --- asking ------------------------------------------------------------------------------------------- */

bool member_is_up(const struct world *w, uint32_t i)
{
    return w->members[i].process != NULL;
}

struct disk_faults *member_disk(struct world *w, uint32_t i)
{
    return disk_faults(w->members[i].disk);
}

struct raft *member_raft(struct world *w, uint32_t i)
{
    return w->members[i].process == NULL ? NULL : process_raft(w->members[i].process);
}

struct state *member_state(struct world *w, uint32_t i)
{
    return w->members[i].process == NULL ? NULL : process_state(w->members[i].process);
}

bool member_leads(struct world *w, uint32_t i)
{
    return w->members[i].process != NULL && process_leads(w->members[i].process);
}

int world_leader(struct world *w)
{
    int found = -1;
    raft_term term = 0;
    for (uint32_t i = 0; i < w->options.members; i++) {
        const struct raft *r = member_raft(w, i);
        if (r == NULL || r->state != RAFT_LEADER || r->current_term <= term)
            continue;
        found = (int)i;
        term = r->current_term;
    }
    return found;
}

void member_transfer(struct world *w, uint32_t i, raft_id to)
{
    if (w->members[i].process != NULL)
        process_transfer(w->members[i].process, to);
}

static void gone_run(void *user, uint32_t node, uint64_t i)
{
    struct world *w = user;
    (void)node;
    member_kill(w, (uint32_t)i);
}

static const char *const change_names[] = {[WORLD_ADD] = "added",
                                           [WORLD_VOTER] = "made a voter",
                                           [WORLD_STANDBY] = "made a standby",
                                           [WORLD_SPARE] = "made a spare",
                                           [WORLD_DISMISS] = "dismissed",
                                           [WORLD_REMOVE] = "removed"};

void world_changed(struct world *w, enum world_change change, raft_id id, bool done)
{
    world_say(w, "member %llu is %s%s", id, done ? "" : "perhaps not ", change_names[change]);
    if (!done || change != WORLD_REMOVE)
        return;
    w->members[id - 1].gone = true;
    sim_at(w->sim, sim_now_us(w->sim) + sim_below(w->sim, 3 * SECOND), gone_run, w, id - 1);
}

void member_change(struct world *w, uint32_t i, enum world_change change, raft_id id)
{
    if (w->members[i].process == NULL)
        return;
    if (process_changes(w->members[i].process))
        return;
    world_say(w, "member %llu is to be %s", id, change_names[change]);
    process_change(w->members[i].process, change, id);
}

bool member_is_gone(const struct world *w, uint32_t i)
{
    return w->members[i].gone;
}

bool member_propose(struct world *w, uint32_t i, const struct registry_command *command,
                    registry_result_cb cb, void *user, struct command_session *session)
{
    return w->members[i].process != NULL &&
           process_propose(w->members[i].process, command, cb, user, session);
}

bool member_propose_foreign(struct world *w, uint32_t i, const struct command_session *session,
                            const struct registry_command *command, registry_result_cb cb,
                            void *user)
{
    return w->members[i].process != NULL &&
           process_propose_foreign(w->members[i].process, session, command, cb, user);
}

bool member_barrier(struct world *w, uint32_t i, proposer_barrier_cb cb, void *user)
{
    return w->members[i].process != NULL && process_barrier(w->members[i].process, cb, user);
}

uint64_t member_life(const struct world *w, uint32_t i)
{
    return w->members[i].starts;
}

static void arrived(void *user, uint32_t to, uint32_t from, const uint8_t *data, size_t size)
{
    struct world *w = user;
    process_receive(w->members[to].process, from, data, size);
}

void world_send(struct world *w, uint32_t from, uint32_t to, const uint8_t *bytes, size_t size)
{
    sim_datagram(w->sim, from, to, bytes, size, arrived, w);
}

/* --- life --------------------------------------------------------------------------------------------- */

struct sim *world_sim(struct world *w)
{
    return w->sim;
}

struct checks *world_checks(struct world *w)
{
    return w->checks;
}

uint32_t world_members(const struct world *w)
{
    return w->options.members;
}

struct world *world_new(struct sim *s, const struct world_options *options)
{
    struct world *w = calloc(1, sizeof *w);
    assert_always(w != NULL && options->members <= WORLD_MEMBERS_MAX);
    w->sim = s;
    w->options = *options;
    w->checks = checks_new();
    w->members = calloc(options->members, sizeof *w->members);
    assert_always(w->members != NULL);
    for (uint32_t i = 0; i < options->members; i++) {
        struct member *m = &w->members[i];
        m->disk = disk_new(s, i);
        m->shown_us = sim_between(s, SECOND, 1000 * SECOND);
        m->wall_ms = (int64_t)(1700000000000 + sim_below(s, 4000));
    }
    return w;
}

void world_free(struct world *w)
{
    for (uint32_t i = 0; i < w->options.members; i++) {
        if (w->members[i].process != NULL)
            process_gone(w, i);
        disk_free(w->members[i].disk);
    }
    checks_free(w->checks);
    free(w->members);
    free(w);
}
