/* tests/sim/raft_world.h - a cluster of raft members on the simulated nodes: libraft under our guard,
 * proposer and state machine, over a raft_io of the simulation's own (disk, network, clock).
 *
 * Member i runs on node i and has id i + 1. A process that ends by itself (its disk failed) is started
 * again after a while, as a service manager would; one that is killed stays down.
 *
 * Callbacks of members run inside the simulation's events; none may start or kill a member. */
#ifndef SKERRY_TESTS_SIM_RAFT_WORLD_H
#define SKERRY_TESTS_SIM_RAFT_WORLD_H

#include <raft.h>
#include <stdbool.h>
#include <stdint.h>

#include "raft/command.h"
#include "raft/proposer.h"
#include "raft/state.h"
#include "tests/sim/raft_checks.h"
#include "tests/sim/raft_disk.h"
#include "tests/sim/sim.h"

/* As raft/replica.h runs it. */
#define WORLD_ELECTION_MS 200
#define WORLD_HEARTBEAT_MS 50
/* libraft's 30 s would be the time in which a lost snapshot is sent again. */
#define WORLD_INSTALL_MS 3000
#define WORLD_MEMBERS_MAX 8

/* Not a member yet. */
#define WORLD_OUTSIDE (-1)

/* DISMISS: it is no member any more, does not hear so from raft, and lives on, with its log, until it is added
 * again: a spare. */
enum world_change {
    WORLD_ADD,
    WORLD_VOTER,
    WORLD_STANDBY,
    WORLD_SPARE,
    WORLD_DISMISS,
    WORLD_REMOVE
};

struct world_options {
    uint32_t members;
    int role[WORLD_MEMBERS_MAX]; /* at first: of libraft, or WORLD_OUTSIDE */
    bool guard_off;
    bool trace, trace_messages;
    unsigned snapshot_threshold, snapshot_trailing;
    unsigned propose_timeout_ms;
};

struct world;

struct world *world_new(struct sim *s, const struct world_options *options);
void world_free(struct world *w);
struct sim *world_sim(struct world *w);
struct checks *world_checks(struct world *w);
uint32_t world_members(const struct world *w);
/* A line of the trace, if there is one. */
void world_say(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

void member_start(struct world *w, uint32_t i);
void member_kill(struct world *w, uint32_t i);
bool member_is_up(const struct world *w, uint32_t i);
/* The number of its last process. */
uint64_t member_life(const struct world *w, uint32_t i);
struct disk_faults *member_disk(struct world *w, uint32_t i);
/* NULL while it is down. */
struct raft *member_raft(struct world *w, uint32_t i);
struct state *member_state(struct world *w, uint32_t i);
/* May take proposals. */
bool member_leads(struct world *w, uint32_t i);
/* Who leads the highest term, or -1. */
int world_leader(struct world *w);
/* Leadership goes to member `to`; 0: whom libraft chooses. */
void member_transfer(struct world *w, uint32_t i, raft_id to);

/* Asks who leads to change what member `id` is. Who is removed ends for good, some time later. */
void member_change(struct world *w, uint32_t i, enum world_change change, raft_id id);
bool member_is_gone(const struct world *w, uint32_t i);
/* For raft_process.c: libraft said what became of it. */
void world_changed(struct world *w, enum world_change change, raft_id id, bool done);

/* By its own clocks. */
uint64_t member_now_ms(const struct world *w, uint32_t i);
uint64_t member_wall_ms(const struct world *w, uint32_t i);
/* How long that takes in the simulation's time. */
uint64_t member_real_us(const struct world *w, uint32_t i, uint64_t us);
void member_clock_rate(struct world *w, uint32_t i, int64_t parts_per_million);
void member_wall_step(struct world *w, uint32_t i, int64_t ms);

/* For raft_process.c: one of libraft's messages goes on its way. */
void world_send(struct world *w, uint32_t from, uint32_t to, const uint8_t *bytes, size_t size);

/* By the proposer of that process; *session says under which number. False: it takes no more. `cb` comes
 * once, also when the process ends. */
bool member_propose(struct world *w, uint32_t i, const struct registry_command *command,
                    registry_result_cb cb, void *user, struct command_session *session);
/* Of a session of the caller's, as another node would ask. */
bool member_propose_foreign(struct world *w, uint32_t i, const struct command_session *session,
                            const struct registry_command *command, registry_result_cb cb,
                            void *user);
bool member_barrier(struct world *w, uint32_t i, proposer_barrier_cb cb, void *user);

#endif
