/* tests/sim/raft_process.h - one life of a raft member: what its crash takes with it. */
#ifndef SKERRY_TESTS_SIM_RAFT_PROCESS_H
#define SKERRY_TESTS_SIM_RAFT_PROCESS_H

#include "base/buffer.h"
#include "raft/guard.h"
#include "raft/proposer.h"
#include "tests/sim/raft_world.h"

struct process;

/* Its surroundings, which outlive it. */
struct process_options {
    struct world *world;
    uint32_t node;
    raft_id id;
    uint64_t boot;
    struct disk *disk;
    const struct world_options *world_options;
    /* The process ended by itself: process_end it, now. */
    void (*ended)(void *user, uint32_t node, const char *why);
    void *user;
};

/* False: it could not start and `why` says why; it is gone. */
bool process_new(struct process **out, const struct process_options *options, char *why,
                 size_t size);
/* Killed: what was under way is done in part or not at all. */
void process_end(struct process *p);

struct raft *process_raft(struct process *p);
struct state *process_state(struct process *p);
bool process_leads(struct process *p);
void process_receive(struct process *p, uint32_t from, const uint8_t *data, size_t size);
void process_transfer(struct process *p, raft_id to);
bool process_changes(const struct process *p); /* a change is under way */
void process_change(struct process *p, enum world_change change, raft_id id);
bool process_propose(struct process *p, const struct registry_command *command,
                     registry_result_cb cb, void *user, struct command_session *session);
bool process_propose_foreign(struct process *p, const struct command_session *session,
                             const struct registry_command *command, registry_result_cb cb,
                             void *user);
bool process_barrier(struct process *p, proposer_barrier_cb cb, void *user);

#endif
