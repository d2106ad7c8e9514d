/* tests/sim/raft_checks.h - what must hold of a simulated cluster's registry, whatever happens to it.
 *
 * All the time: nobody commits another entry at an index than anybody else did, skips one, or applies
 * another command there or with another result; states at one index are the same; a term has one leader;
 * a number of a session is answered once; epochs are unique and rise; a key has one live holder; scale.max
 * is kept. In the end: what was acknowledged is in everybody's state, what was said not to be proposed in
 * nobody's.
 *
 * The first to apply an index sets what the others are held to; a model of keys, limits and epochs, which
 * shares no code with the state machine, follows it. */
#ifndef SKERRY_TESTS_SIM_RAFT_CHECKS_H
#define SKERRY_TESTS_SIM_RAFT_CHECKS_H

#include <raft.h>
#include <stdbool.h>
#include <stdint.h>

#include "raft/command.h"
#include "raft/state.h"

struct checks;

struct checks *checks_new(void);
void checks_free(struct checks *c);
/* NULL, or what was violated first. */
const char *checks_violation(const struct checks *c);
void checks_violate(struct checks *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Of one life of a process. */
struct checks_process {
    raft_id id;
    uint64_t applied;   /* index of its last command; that of the snapshot which holds it */
    uint64_t committed; /* followed up to there */
};

struct checks_applied {
    uint64_t index;
    const struct raft_buffer *command;
    const struct state_outcome *outcome;
    const struct state_content *state;
};
void checks_applied(struct checks *c, struct checks_process *p, const struct checks_applied *a);
void checks_restored(struct checks *c, struct checks_process *p, const struct state_content *state);
/* After anything libraft did. */
void checks_follow(struct checks *c, struct checks_process *p, const struct raft *r);

/* A client was told so. */
void checks_acknowledged(struct checks *c, const struct command_session *session,
                         const struct registry_result *result);
void checks_not_proposed(struct checks *c, const struct command_session *session);

/* All is healed and one state is everybody's. */
void checks_final(struct checks *c, const struct state_content *state);
uint64_t checks_acknowledged_count(const struct checks *c);
/* The highest index that anybody was seen to have committed. */
uint64_t checks_committed_last(const struct checks *c);

#endif
