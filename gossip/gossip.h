/* gossip/gossip.h - who is in the cluster, alive, and how loaded: SWIM as a pure state machine.
 *
 * Thread:  the control loop only.
 * Time:    arrives with each step, in milliseconds of a monotonic clock.
 * Memory:  gossip owns its table, bounded by options; what `out` points to is valid until the next
 *          step. Without memory for a member, its update is dropped and counted: a later one or a
 *          sync brings it again.
 *
 * The protocol is SWIM (Das, Gupta, Motivala 2002): each period one member is probed, round-robin
 * over a shuffled list, at first directly, then through others; updates ride on the packets that
 * are sent anyway. Lifeguard (Dadgar, Phillips, Currey 2018) adds the local health multiplier, a
 * suspicion that shortens as others confirm it (dogpile), and telling a suspect first (buddy).
 * Three things are ours:
 *
 * - A member is judged only by time during which this node itself ran. When a step comes later than
 *   asked for, all deadlines move by that lateness, and the local health counts it.
 * - Only who has evidence of its own (a failed probe) pronounces dead, at the times given below, and
 *   asks the suspect again until then. Of those who merely heard of it a few, on average
 *   `verifiers`, probe at once; the rest do when no verdict came in time. So a verdict takes as
 *   long in a large group as in a small one, and a wrong suspicion meets its refutation first.
 * - Loads fill what is left of a packet, up to load_bytes_max: in a larger group they are older,
 *   not more.
 *
 * What orders two statements about a member: its boot, then its incarnation, then alive < suspect <
 * dead < left. Statements are merged, whichever way they come; only the member itself raises its
 * incarnation, and only its next process its boot. A removed one stays so.
 *
 * What node/ must do:
 * - Open with gossip_new; options.self.boot from a counter on disk that grows with each start.
 * - Give GOSSIP_SEED for each node that the registry knows, at start and when one is added, and
 *   GOSSIP_REMOVE when the registry removes one. A seed counts as dead until it is heard of.
 * - For each id in out->syncs: gossip_sync_write, send it to that node by peer RPC; the peer hands
 *   it in as GOSSIP_SYNC, answers with its own gossip_sync_write, and that goes in here as
 *   GOSSIP_SYNC. If the RPC fails nothing need be said. A node that starts is dead to the others and
 *   they to it until the first sync, which is asked for at once and then each reconnect_interval.
 * - Give GOSSIP_TELL_LOAD as often as it likes; GOSSIP_TELL_META when what others know of this
 *   node changed (roles!).
 * - On graceful stop: GOSSIP_LEAVE, go on until out->left, then close.
 * - Let gossip/udp.h do the rest: it steps this machine with packets and time, and sends. */
#ifndef SKERRY_GOSSIP_GOSSIP_H
#define SKERRY_GOSSIP_GOSSIP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/address.h"
#include "base/buffer.h"
#include "base/err.h"
#include "base/id.h"

struct gossip;

/* --- what is known of a member ------------------------------------------------------------------ */

enum gossip_state { /* numbers travel; their order is the order of merging */
                    GOSSIP_ALIVE,
                    GOSSIP_SUSPECT,
                    GOSSIP_DEAD,
                    GOSSIP_LEFT,
                    GOSSIP_STATE_COUNT
};
const char *gossip_state_name(enum gossip_state state); /* "alive", "suspect", "dead", "left" */

enum gossip_port { /* numbers travel */
                   GOSSIP_PORT_PEER,
                   GOSSIP_PORT_STREAM,
                   GOSSIP_PORT_HANDSHAKE,
                   GOSSIP_PORT_HTTP,
                   GOSSIP_PORT_API,
                   GOSSIP_PORT_SSH,
                   GOSSIP_PORT_COUNT
};

#define GOSSIP_NAME_SIZE 64 /* with the NUL */
#define GOSSIP_VERSION_SIZE 32
#define GOSSIP_LABEL_SIZE 64
#define GOSSIP_LABELS_MAX 16
/* Encoded, so that one member's always fits into one datagram beside its state. */
#define GOSSIP_META_BYTES_MAX 700

struct gossip_label {
    char key[GOSSIP_LABEL_SIZE], value[GOSSIP_LABEL_SIZE];
};

/* Changes seldom. */
struct gossip_meta {
    char name[GOSSIP_NAME_SIZE], zone[GOSSIP_NAME_SIZE], version[GOSSIP_VERSION_SIZE];
    struct address addresses[GOSSIP_PORT_COUNT]; /* the gossip port's is part of the member */
    uint32_t roles;                              /* bits, node's meaning */
    uint32_t cpu_millis;                         /* capacity: thousandths of a core */
    uint32_t instances_max;
    uint64_t memory_bytes;
    uint32_t label_count;
    struct gossip_label labels[GOSSIP_LABELS_MAX];
};

#define GOSSIP_LOAD_WORKLOADS_MAX 8

/* Changes all the time; a hint, never the truth. */
struct gossip_load {
    uint32_t instances, joiners;
    uint32_t cpu_millis; /* in use */
    uint64_t memory_bytes;
    uint32_t workload_count;
    struct gossip_load_workload {
        uint64_t workload; /* gossip_workload_hash of its name */
        uint32_t instances, joiners;
    } workloads[GOSSIP_LOAD_WORKLOADS_MAX]; /* the busiest */
};
/* FNV-1a. A collision misleads a hint, no more. */
uint64_t gossip_workload_hash(const char *name);

struct gossip_member {
    node_id id;
    uint64_t boot;
    uint32_t incarnation;
    enum gossip_state state;
    bool removed;           /* by GOSSIP_REMOVE: for ever */
    uint64_t since_ms;      /* when this state was learned, by the clock of the steps */
    struct address address; /* of its gossip port */
    uint32_t meta_version;  /* 0: its meta is not known yet */
    uint32_t load_version;  /* 0: its load is not known yet */
    uint64_t load_heard_ms; /* when this version of its load came */
};

/* --- options ------------------------------------------------------------------------------------ */

/* Where the bytes are kept that are told of members. They are never changed, so that of many machines in
 * one process, as in a simulation, equal ones need exist only once. */
struct gossip_store {
    void *user;
    /* The same bytes, until as many drops; NULL: no memory. */
    const void *(*keep)(void *user, const void *bytes, size_t size);
    void (*drop)(void *user, const void *bytes);
};

struct gossip_options {
    struct {
        node_id id;
        uint64_t boot; /* larger with each start of this node, never 0 */
        struct address address;
        const struct gossip_meta *meta; /* copied */
    } self;
    struct gossip_store store; /* without `keep`: each machine has its own memory */
    uint64_t seed;             /* of all random choices */
    uint32_t members_max;      /* beyond it the longest dead is forgotten, else an update dropped */
    uint32_t packet_bytes;     /* of an unsealed packet: with SEAL_BYTES below the path's MTU */

    uint32_t probe_interval_ms;
    uint32_t probe_timeout_ms;    /* then others are asked to probe */
    uint32_t indirect_probes;     /* how many others */
    uint32_t health_max;          /* intervals stretch by 1 + local health, at most by this */
    uint32_t suspicion_min_ms;    /* with `confirmations` others who suspect */
    uint32_t suspicion_max_ms;    /* with none */
    uint32_t confirmations;       /* at most GOSSIP_CONFIRMATIONS_MAX */
    uint32_t verifiers;           /* who hear of a suspicion and probe at once, on average */
    uint32_t gossip_interval_ms;  /* between packets for updates that found no other */
    uint32_t gossip_fanout;       /* such packets at a time */
    uint32_t transmit_multiplier; /* an update is sent this * log10(members + 1) times */
    uint32_t load_interval_ms;    /* own load is told at most as often */
    uint32_t load_bytes_max;      /* of others' loads in a packet */
    uint32_t sync_interval_ms;    /* with one random member; less often in groups above 32 */
    uint32_t
        reconnect_interval_ms; /* sync with a dead member; all nodes together as often for one */
    uint32_t dead_keep_ms;     /* then a dead member may be forgotten */
    uint32_t late_ms;          /* a step that comes later than this after its time was late */
};
#define GOSSIP_CONFIRMATIONS_MAX 4
#define GOSSIP_INDIRECT_MAX 8
#define GOSSIP_FANOUT_MAX 8
#define GOSSIP_PACKET_BYTES_MAX 1300
#define GOSSIP_PACKET_BYTES_MIN 900 /* a state with all confirmations and a meta must fit */
/* Everything but self, store and seed. */
void gossip_options_defaults(struct gossip_options *options);

/* --- steps -------------------------------------------------------------------------------------- */

enum gossip_event_kind {
    GOSSIP_TICK,      /* time went by */
    GOSSIP_PACKET,    /* from, from_boot, address, data, size: authenticated, meant for this boot */
    GOSSIP_SYNC,      /* from, data, size: another node's gossip_sync_write, authenticated */
    GOSSIP_SEED,      /* from, address: a node that the registry knows */
    GOSSIP_REMOVE,    /* from: the registry removed it */
    GOSSIP_TELL_META, /* meta: what others know of this node changed */
    GOSSIP_TELL_LOAD, /* load */
    GOSSIP_LEAVE,
};

struct gossip_event {
    enum gossip_event_kind kind;
    node_id from;
    uint64_t from_boot;
    struct address address; /* PACKET: where it came from; SEED: its gossip port */
    const uint8_t *data;
    size_t size;
    const struct gossip_meta *meta;
    const struct gossip_load *load;
};

struct gossip_send {
    node_id to;
    uint64_t to_boot; /* goes into the seal */
    struct address address;
    const uint8_t *data;
    size_t size;
};

enum gossip_changed { /* bits */
                      GOSSIP_CHANGED_STATE = 1,
                      GOSSIP_CHANGED_META = 2, /* and address, boot */
                      GOSSIP_CHANGED_LOAD = 4,
};

/* What a step changed of one member; look it up by gossip_member_get. */
struct gossip_change {
    node_id id;
    uint32_t changed;       /* enum gossip_changed */
    enum gossip_state from; /* its state before; GOSSIP_STATE_COUNT: it was not known */
    enum gossip_state state;
};

#define GOSSIP_SYNCS_MAX 2

struct gossip_actions {
    const struct gossip_send *sends;
    size_t send_count;
    const struct gossip_change *changes;
    size_t change_count;
    node_id syncs[GOSSIP_SYNCS_MAX]; /* exchange states with these */
    size_t sync_count;
    uint64_t next_ms; /* step with TICK then */
    bool left;        /* after LEAVE: enough others were told */
    bool impostor;    /* somebody else runs under our id with a later boot: stop, loudly */
};

int gossip_new(struct gossip **out, const struct gossip_options *options,
               struct err *e) ERR_CHECKED;
void gossip_free(struct gossip *g);
/* -ERR_PROTOCOL for a packet or sync that is malformed: what came before the fault is taken, `out`
 * is valid. -ERR_LIMIT for a meta too large, -ERR_NO_MEMORY for a seed. */
int gossip_step(struct gossip *g, const struct gossip_event *event, uint64_t now_ms,
                struct gossip_actions *out, struct err *e) ERR_CHECKED;

/* All this node knows, for another; appended. -ERR_LIMIT if `out` is too small. About 400 bytes a
 * member, GOSSIP_SYNC_MEMBER_BYTES_MAX at most. */
#define GOSSIP_SYNC_MEMBER_BYTES_MAX (GOSSIP_META_BYTES_MAX + 400)
int gossip_sync_write(const struct gossip *g, struct buffer *out, struct err *e) ERR_CHECKED;

/* --- reading ------------------------------------------------------------------------------------ */

bool gossip_member_get(const struct gossip *g, node_id id, struct gossip_member *out);
/* Members in no order, self among them: *cursor from 0; false at the end. */
bool gossip_member_next(const struct gossip *g, size_t *cursor, struct gossip_member *out);
/* False if not known. */
bool gossip_meta_get(const struct gossip *g, node_id id, struct gossip_meta *out);
bool gossip_load_get(const struct gossip *g, node_id id, struct gossip_load *out);

struct gossip_counts {
    uint32_t members[GOSSIP_STATE_COUNT]; /* self among the alive */
    uint32_t health;                      /* 0: well; each point slows our judgement */
    uint64_t probes, probes_failed, indirect_probes;
    uint64_t suspicions;  /* of ours: after a failed probe */
    uint64_t refutations; /* of ours: somebody suspected us */
    uint64_t deaths;      /* pronounced by us */
    uint64_t late;        /* steps that came late */
    uint64_t malformed;   /* packets and syncs */
    uint64_t dropped;     /* updates without room or memory */
};
void gossip_counts(const struct gossip *g, struct gossip_counts *out);

#endif
