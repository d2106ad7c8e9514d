/* raft/state.h - the registry as a pure state machine.
 *
 * state_apply takes one committed command and answers with a result; a refusal is a result. It reads
 * no clock, draws no random number and depends on no order but that of the log, so that every replica
 * holds the same. What it cannot take (a command of a later build, no memory) halts it for good: a
 * replica that skipped a command would differ from the others, one that stops does not.
 *
 * Thread:  the control loop; readers of a root as raft/registry.h says.
 * Memory:  a root is one consistent state. It shares all that did not change with the roots before
 *          and after it. What only an old root held is freed by state_collect, in slices: a snapshot of
 *          a large registry holds its root for seconds, and may leave a hundred thousand entries. */
#ifndef SKERRY_RAFT_STATE_H
#define SKERRY_RAFT_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/map.h"
#include "raft/command.h"
#include "raft/registry.h"

/* What this build understands; a command above the registry's level is not proposed. */
#define STATE_FEATURE_LEVEL 1u

/* A session remembers the results of its last numbers, a node the sessions of its last starts: a
 * command of a process that is gone may still arrive, but not four starts later. */
#define STATE_SESSION_RESULTS_MAX 1024u
#define STATE_SESSIONS_PER_NODE_MAX 4u
/* Beyond as many as all nodes may have, those of nodes that are not registered are not remembered. */
#define STATE_SESSIONS_MAX (STATE_SESSIONS_PER_NODE_MAX * STATE_NODES_MAX)

/* Bounds of the whole registry: what is beyond gets PROBLEM_LIMIT_REACHED. */
#define STATE_NODES_MAX REGISTRY_NODES_MAX
#define STATE_WORKLOADS_MAX 10000u
/* Of one workload, those that instances still run among them: an end looks at all of them. */
#define STATE_VERSIONS_MAX 100u
/* The JSON of all kept versions; it stands in memory and in each snapshot. */
#define STATE_SPEC_BYTES_MAX ((uint64_t)512 * 1024 * 1024)
#define STATE_LIVE_MAX 1000000u
/* Beyond it a workload that has one more ended instance forgets its oldest. */
#define STATE_ENDED_MAX 1000000u
#define STATE_TOKENS_MAX 10000u
#define STATE_IMAGES_MAX 10000u
#define STATE_SSH_KEYS_MAX 10000u
#define STATE_DOMAINS_MAX 10000u
#define STATE_DOMAINS_PER_WORKLOAD_MAX 50u
/* Used ones, until they are over and longer: 100 a second for a quarter of an hour. */
#define STATE_TICKETS_MAX 100000u
/* So long after its end a used ticket is remembered: clocks of nodes may differ. */
#define STATE_TICKET_KEPT_MS 600000u
#define STATE_EPOCH_SEQUENCE_BITS REGISTRY_EPOCH_SEQUENCE_BITS

/* What one SWEEP removes, so that it holds the loop for less than 5 ms (measured: 3 us each). */
#define STATE_SWEEP_MAX 500u
/* How many instances of a lost node one command ends, for the same reason (measured: 10 us each). */
#define STATE_LOST_MAX 200u

enum state_map {
    STATE_NODES,            /* be64 id -> registry_node */
    STATE_WORKLOADS,        /* name -> state_workload */
    STATE_VERSIONS,         /* name 0 be64 version -> state_version */
    STATE_INSTANCES,        /* id -> registry_instance */
    STATE_KEYS,             /* workload 0 key -> state_key: keys of instances that have not ended */
    STATE_OWNED,            /* be64 owner, id -> registry_instance: of those that have not ended */
    STATE_ENDED,            /* workload 0 be64 ended_wall_ms id -> registry_instance */
    STATE_TOKENS,           /* id -> registry_token */
    STATE_IMAGES,           /* name -> registry_image */
    STATE_SESSIONS,         /* be64 node be64 boot -> state_session */
    STATE_RESULTS,          /* be64 node be64 boot be64 sequence -> state_result */
    STATE_SSH_KEYS,         /* id -> registry_ssh_key */
    STATE_DOMAINS,          /* name -> registry_domain */
    STATE_WORKLOAD_DOMAINS, /* workload 0 name -> registry_domain */
    STATE_TICKETS,          /* be64 expires_wall_ms nonce -> state_ticket: used ones */
    STATE_MAP_COUNT
};

struct state_content {
    uint64_t index; /* of the last command in it */
    uint32_t feature_level;
    char cluster_id[17];
    node_id node_id_next;
    uint64_t generation; /* of epochs: raised when a registry is recovered or restored */
    uint64_t epoch_sequence;
    uint64_t live;       /* instances that have not ended */
    uint64_t spec_bytes; /* of the JSON of all versions */
    struct registry_gossip_key keyring[REGISTRY_KEYRING_MAX];
    uint32_t keyring_count;
    bool ssh_seed_made;
    uint8_t ssh_seed[REGISTRY_SSH_SEED_BYTES];
    struct map maps[STATE_MAP_COUNT];
};

/* A name that has been deployed, or "" for `run` commands. */
struct state_workload {
    struct map_value value;
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    uint64_t version_last;    /* the highest ever given out */
    uint64_t version_current; /* 0: removed, and remembered as long as its instances are */
    uint64_t removed_wall_ms;
    uint32_t live, ended; /* instances of all versions */
    struct registry_usage usage;
};

/* A spec may be that of several versions, after a rollback. */
struct state_spec {
    struct map_value value;
    struct workload spec;
    char *json;
    size_t json_length;
};

/* `workload.spec` borrows from `spec`. */
struct state_version {
    struct registry_workload workload;
    struct state_spec *spec;
};

struct state_key {
    struct map_value value;
    struct instance_id holder;
};

/* One that was used. */
struct state_ticket {
    struct map_value value;
    struct registry_ticket ticket;
};

struct state_session {
    struct map_value value;
    node_id node;
    uint64_t boot;
    uint64_t sequence_last;
    uint64_t opened_index; /* of its first command: the order of a node's starts */
};

struct state_result {
    struct map_value value;
    struct command_session asked;
    struct registry_result result;
};

/* Counted: roots may outlive the state. */
struct state_garbage {
    uint32_t references;
    struct map_garbage maps;
};

struct registry_root {
    uint32_t references;
    struct state_content content;
    struct state_garbage *garbage;
};

struct state;

int state_new(struct state **out, struct err *e) ERR_CHECKED;
void state_free(struct state *s);

struct state_outcome {
    struct command_session session;
    struct registry_result result;
    bool repeated; /* the session had asked this before: nothing was changed */
};
/* Fails only by halting: the state stays as it was, and so does every later call. */
int state_apply(struct state *s, uint64_t index, const void *data, size_t length,
                struct state_outcome *out, struct err *e) ERR_CHECKED;
bool state_halted(const struct state *s);
/* What a leader asks before it appends a command, whoever made it: one that decodes here may still be of
 * a later feature level than the cluster's, or raise that level above what this build understands, and
 * would halt those that apply it. */
int state_admits(const struct state *s, const struct registry_command *command,
                 struct err *e) ERR_CHECKED;
/* Replaces all by a decoded snapshot, whose maps it takes over (*content becomes empty). */
void state_restore(struct state *s, struct state_content *content);

/* Every epoch given out from now on is higher than any before, also than those that a part of the
 * cluster which is lost, or went on elsewhere, may have given out after what is known here. No command
 * does this, for there is no majority that could commit it: recover and restore read snapshot and log
 * into a state, raise it, and write snapshot_encode(state_content(s)) as the one thing in the new
 * folder. Fails when there are no generations left (2^24). */
int state_raise_generation(struct state *s, struct err *e) ERR_CHECKED;

/* The newest root, referenced. Without memory for a new one: the one before, again. */
struct registry_root *state_root(struct state *s);
const struct state_content *state_content(const struct state *s);
/* Frees at most so many entries that nobody holds any more; false: none are left. */
bool state_collect(struct state *s, size_t entries_max);

void state_content_release(struct state_content *c);

#endif
