/* raft/remote.h - proposals and strong reads on their way to the node that leads, and of those that come.
 *
 * Asking, on a node that does not lead: what waits in the proposer goes in bundles, REMOTE_CALLS_MAX at a
 * time, so that many that wait share a question, and its answer. Who leads is known from raft, else by what
 * a node answers that was thought to lead, else by asking around. When raft tells of a new leader, what
 * was asked of the old one is asked again at once; its state machine knows which numbers it has answered.
 *
 * Answering, on the leader: the session of a command must be one of the node that asks (its seal or its
 * stream proved who it is), and its kind one that a node may propose that does not lead.
 *
 *     strong read:  waiting -> a barrier of our own, or asked of the leader -> applied up to its index
 *
 * Thread: the loop's. Time: milliseconds of a monotonic clock, handed in.
 * Re-entry: callbacks come out of remote_turn, remote_expire, remote_close and the proposer's calls. */
#ifndef SKERRY_RAFT_REMOTE_H
#define SKERRY_RAFT_REMOTE_H

#include <raft.h>
#include <stdbool.h>

#include "raft/proposer.h"
#include "raft/registry.h"
#include "raft/state.h"

#define REMOTE_CALLS_MAX 2u         /* under way, with proposals; one more with reads */
#define REMOTE_ASK_TIMEOUT_MS 1000u /* below PROPOSER_AWAY_WAIT_MS */
#define REMOTE_PAUSE_MS 25u         /* after a question that failed */
#define REMOTE_HINT_MS 1000u        /* for which a node's word about the leader is believed */
#define REMOTE_LEADERLESS_MS 500u   /* after which a node that hears of no leader asks around */
#define REMOTE_QUESTIONS_MAX 1024u
#define REMOTE_CANDIDATES_MAX 1000u
/* Nodes' clocks may be so far apart (as at the join handshake); and a command is as old as it may be asked
 * again. */
#define REMOTE_CLOCK_MS 5000u
#define REMOTE_COMMAND_AGE_MS (REMOTE_CLOCK_MS + 10000u)

struct remote;

struct remote_options {
    node_id id;
    const struct state *state;
    struct raft *raft;
    struct proposer *proposer;
    const struct registry_peers *peers; /* `ask` NULL: nobody is asked */
    size_t waiting_max;                 /* strong reads */
    unsigned timeout_ms;                /* of a strong read */
    uint64_t (*wall_ms)(void);          /* NULL: times in commands are not judged */
    void *user;
    uint64_t (*generation)(void *user);
    node_id (*leader)(void *user);   /* as far as is known; 0: nobody */
    uint64_t (*applied)(void *user); /* up to where this node's root is */
    void (*wake)(void *user);        /* remote_turn is to be called */
};

int remote_new(struct remote **out, const struct remote_options *options,
               struct err *e) ERR_CHECKED;
/* After proposer_close. Reads end with ERR_CANCELED; answers that are still to come find nobody. */
void remote_close(struct remote *r);
void remote_free(struct remote *r);

int remote_read(struct remote *r, uint64_t now_ms, registry_read_cb cb, void *user,
                struct err *e) ERR_CHECKED;
/* What waits is asked; what has come is told. Before proposer_ask. */
void remote_turn(struct remote *r, uint64_t now_ms);
void remote_expire(struct remote *r, uint64_t now_ms);
bool remote_idle(const struct remote *r); /* no read waits */
/* Whom to ask when raft knows no leader. */
void remote_candidates(struct remote *r, const struct registry_peer *peers, size_t count);

/* As registry_question. */
void remote_question(struct remote *r, uint64_t now_ms, node_id from, const uint8_t *payload,
                     size_t size, registry_answer_fn answer, void *question);

/* Fails unless node `from` may propose these bytes, their time is near `wall_ms` (0: any will do), and this
 * state admits them. */
int remote_command_check(const struct state *state, node_id from, const uint8_t *bytes,
                         size_t length, uint64_t wall_ms, struct command_session *out,
                         struct err *e) ERR_CHECKED;

struct remote_counts {
    uint64_t calls, questions;
};
struct remote_counts remote_counts(const struct remote *r);

#endif
