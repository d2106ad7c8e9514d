/* raft/registry.h - the replicated registry: nodes, workloads, instances, keys, images, tokens.
 *
 * A pure state machine of versioned commands (raft/state.h) over immutable maps, on libraft behind a
 * proposer and a guard (design section 5; Ongaro & Ousterhout, "In Search of an Understandable
 * Consensus Algorithm"). What registry_propose has answered with success is durable on a majority.
 *
 * Thread:  the control loop, but for the registry_root_* readers, which any thread may call that was
 *          handed a root and has not given it back.
 * Memory:  a root and all it holds are immutable; registry_root hands out a reference that is given
 *          back with registry_root_release on the control thread.
 * Time:    wall-clock milliseconds come inside commands; apply reads no clock. */
#ifndef SKERRY_RAFT_REGISTRY_H
#define SKERRY_RAFT_REGISTRY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/err.h"
#include "base/id.h"
#include "base/map.h"
#include "base/words.h"
#include "base/workload.h"

#define REGISTRY_KEY_LENGTH_MAX 128 /* of a join key */
#define REGISTRY_DETAIL_LENGTH_MAX 255
#define REGISTRY_ENDED_PER_WORKLOAD_MAX 10000
#define REGISTRY_ENDED_KEPT_MS (24u * 3600u * 1000u)
#define REGISTRY_NODES_MAX 1000u
#define REGISTRY_VERSIONS_KEPT 10 /* of a workload, beyond those that instances run */

/* --- what is in it --------------------------------------------------------------------------- */

#define REGISTRY_KEYRING_MAX 8
#define REGISTRY_GOSSIP_KEY_BYTES 32

struct registry_node {
    struct map_value value;
    node_id id;
    char name[64];
    uint8_t public_key[32]; /* all zero: none yet */
    char address[64]; /* private, with the port of peer RPC: "10.0.0.1:7600"; the ports of streams,
                               gossip and the handshake are the next three */
    bool draining;    /* an operator drains it: nothing is placed there */
    /* Its right to hold instances. Granted when its renewals begin, ended when they cease. */
    bool leased;
    uint64_t lease_epoch; /* of the last grant: what an expiry names */
};

/* A key of gossip's seal. */
struct registry_gossip_key {
    uint8_t bytes[REGISTRY_GOSSIP_KEY_BYTES];
    bool used; /* packets are sealed with it; all others of the ring only open */
};

struct registry_workload {
    struct map_value value;
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    uint64_t version; /* from 1, never reused for this name */
    uint64_t deployed_wall_ms;
    struct workload spec;
    uint32_t live; /* instances of this version that have not ended */
};

/* An epoch is a generation and a sequence, written GENERATION.SEQUENCE for people. 2^40 reservations, a
 * thousand a second for 34 years, before a generation runs out. */
#define REGISTRY_EPOCH_SEQUENCE_BITS 40
#define REGISTRY_EPOCH_FORMAT "%llu.%llu"
#define REGISTRY_EPOCH_PARTS(epoch)                                                                \
    (unsigned long long)((epoch) >> REGISTRY_EPOCH_SEQUENCE_BITS),                                 \
        (unsigned long long)((epoch) & ((1ull << REGISTRY_EPOCH_SEQUENCE_BITS) - 1))

/* When things happened, microseconds since the request that asked for the instance. 0: not (yet). */
struct registry_marks {
    uint64_t reserved_us, sandbox_us, ready_us, ended_us;
};

/* What an instance has used in its life, or all of a workload that have ended: sums that stay at the end of
 * their range. */
struct registry_usage {
    uint64_t wall_us; /* from the execution of its command on */
    uint64_t cpu_us;
    uint64_t memory_peak_bytes; /* the highest */
    uint64_t memory_kib_ms;     /* the peak for as long as it ran; 2^20 * 1000: a GiB second */
    uint64_t network_in_bytes, network_out_bytes;
    uint64_t instances;
};

struct registry_instance {
    struct map_value value;
    struct instance_id id;
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1]; /* "run" commands: "" */
    uint64_t version;
    node_id owner;
    uint64_t epoch;
    enum instance_state state;
    enum end_reason reason;
    int32_t exit_code; /* -1: none */
    uint32_t signal;
    char key[REGISTRY_KEY_LENGTH_MAX + 1];
    uint64_t started_wall_ms; /* when it was asked for */
    uint64_t ended_wall_ms;
    struct registry_marks marks;
    uint64_t joins;
    uint32_t joiners_peak;
    char detail[REGISTRY_DETAIL_LENGTH_MAX + 1]; /* last line of stderr, or why it failed */
    char asked_by[96];                           /* "GET /w/hello/ at node1, request r-5c1d" */
    struct registry_usage usage;                 /* when it has ended */
};

/* NODE: for one machine that becomes a node; consumed by REGISTRY_NODE_JOIN, good for nothing else. */
enum token_role { TOKEN_ROLE_ADMIN, TOKEN_ROLE_DEPLOY, TOKEN_ROLE_INVOKE, TOKEN_ROLE_NODE };
struct registry_token {
    struct map_value value;
    char id[17];      /* public, 16 characters */
    uint8_t hash[32]; /* of the secret part */
    enum token_role role;
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1]; /* "" any */
    char instance[INSTANCE_ID_LENGTH_MAX + 1];   /* "" any */
    char name[64];                               /* for people */
    uint64_t created_wall_ms;
    uint64_t expires_wall_ms; /* 0: never */
};

/* A public key that may join over SSH. */
#define REGISTRY_SSH_BLOB_MAX 1056 /* RSA of 8192 bits: 1047 */
#define REGISTRY_SSH_SEED_BYTES 32
struct registry_ssh_key {
    struct map_value value;
    char id[17];                                 /* 16 characters, of workload and blob */
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1]; /* "" any */
    char name[64];                               /* for people */
    uint16_t blob_length;
    uint8_t blob[REGISTRY_SSH_BLOB_MAX]; /* RFC 4253 section 6.6: its type, then what that says */
    uint64_t created_wall_ms;
};

/* A host name at which a workload answers: one of its own, or, without a point in it, a label below each
 * node's domain as the workload's name is one (an alias). */
#define REGISTRY_DOMAIN_LENGTH_MAX 253
struct registry_domain {
    struct map_value value;
    char name[REGISTRY_DOMAIN_LENGTH_MAX + 1]; /* base/domain.h */
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1];
    uint64_t created_wall_ms;
};

/* A ticket of a browser, which is good once. */
#define REGISTRY_TICKET_NONCE_BYTES 16
struct registry_ticket {
    uint8_t nonce[REGISTRY_TICKET_NONCE_BYTES];
    uint64_t expires_wall_ms;
};

struct registry_image {
    struct map_value value;
    char name[128];
    char digest[72]; /* "sha256:<hex>" */
    uint64_t bytes, files;
    uint64_t imported_wall_ms;
};

/* --- reading --------------------------------------------------------------------------------- */

struct registry_root; /* opaque; counted */

/* Of all its instances that have ended, of all versions; zero for a name that is not known. */
void registry_root_workload_usage(const struct registry_root *root, const char *name,
                                  struct registry_usage *out);
const struct registry_workload *registry_root_workload(const struct registry_root *root,
                                                       const char *name, size_t length);
const struct registry_workload *registry_root_workload_version(const struct registry_root *root,
                                                               const char *name, uint64_t version);
const struct registry_instance *registry_root_instance(const struct registry_root *root,
                                                       const char *id, size_t length);
/* Who holds a key of a workload; NULL: nobody. */
const struct instance_id *registry_root_key_holder(const struct registry_root *root,
                                                   const char *workload, const char *key);
const struct registry_token *registry_root_token(const struct registry_root *root, const char *id,
                                                 size_t length);
const struct registry_ssh_key *registry_root_ssh_key(const struct registry_root *root,
                                                     const char *id, size_t length);
/* The seed of the Ed25519 key by which clients of SSH know the cluster: a secret, from which others are
 * derived (node/control/ticket.h); false: none yet. */
bool registry_root_ssh_seed(const struct registry_root *root, uint8_t out[REGISTRY_SSH_SEED_BYTES]);
/* Whose host name or alias this is. */
const struct registry_domain *registry_root_domain(const struct registry_root *root,
                                                   const char *name, size_t length);
const struct registry_image *registry_root_image(const struct registry_root *root, const char *name,
                                                 size_t length);
const struct registry_node *registry_root_node(const struct registry_root *root, node_id id);
uint64_t registry_root_index(const struct registry_root *root);
/* The random id that the first command gave the cluster, 16 hex characters; "" before. */
const char *registry_root_cluster_id(const struct registry_root *root);

/* In key order, from the first key >= `from` (NULL: all). Stops when visit returns false. */
void registry_root_workloads(const struct registry_root *root, const char *from,
                             bool (*visit)(void *user, const struct registry_workload *w),
                             void *user);
/* Whether both have the same workloads in the same versions; false also where that is not known at once. */
bool registry_root_workloads_same(const struct registry_root *a, const struct registry_root *b);
/* All kept versions of one workload, oldest first. */
void registry_root_versions(const struct registry_root *root, const char *name,
                            bool (*visit)(void *user, const struct registry_workload *w),
                            void *user);
void registry_root_instances(const struct registry_root *root, const char *from,
                             bool (*visit)(void *user, const struct registry_instance *i),
                             void *user);
/* Those of one owner (0: of any, in order of owner) that have not ended. */
void registry_root_live(const struct registry_root *root, node_id owner,
                        bool (*visit)(void *user, const struct registry_instance *i), void *user);
/* What scale.max bounds: instances that have not ended, of the current version and of keys. Those of older
 * versions are being replaced. */
uint32_t registry_root_workload_counted(const struct registry_root *root, const char *workload);
void registry_root_tokens(const struct registry_root *root,
                          bool (*visit)(void *user, const struct registry_token *t), void *user);
void registry_root_ssh_keys(const struct registry_root *root,
                            bool (*visit)(void *user, const struct registry_ssh_key *k),
                            void *user);
/* Of one workload, or (NULL) of all. */
void registry_root_domains(const struct registry_root *root, const char *workload,
                           bool (*visit)(void *user, const struct registry_domain *d), void *user);
void registry_root_images(const struct registry_root *root,
                          bool (*visit)(void *user, const struct registry_image *i), void *user);
void registry_root_nodes(const struct registry_root *root,
                         bool (*visit)(void *user, const struct registry_node *n), void *user);
const struct registry_node *registry_root_node_named(const struct registry_root *root,
                                                     const char *name);
/* Of gossip, in the order of adding; returns how many. */
size_t registry_root_keyring(const struct registry_root *root,
                             struct registry_gossip_key out[REGISTRY_KEYRING_MAX]);
/* The id that no node has had yet: whatever is below it and not there was removed. */
node_id registry_root_node_id_next(const struct registry_root *root);

/* --- writing --------------------------------------------------------------------------------- */

enum registry_command_kind {
    REGISTRY_CLUSTER_INIT = 1, /* cluster_id; gossip_key: the first, and used; NULL: none */
    REGISTRY_NODE_PUT,     /* node; id 0: a new one. Name, key and address: of what is known, empty
                                  ones stay as they are */
    REGISTRY_WORKLOAD_PUT, /* workload_json; its image must be registered, or "host" */
    REGISTRY_WORKLOAD_REMOVE, /* name; live instances keep running until drained by the owner; its
                                 domains are given back */
    REGISTRY_WORKLOAD_ROLLBACK, /* name, version (0: the one before): its spec becomes a new version */
    REGISTRY_INSTANCE_RESERVE, /* instance: id, workload, version, owner, key, started_wall_ms,
                                  asked_by; workload "" is a `run` command. Refused as NODE_FULL for an
                                  owner without a lease, or one that drains */
    REGISTRY_INSTANCE_UPDATE,  /* instance: id, epoch, state READY or DRAINING, marks */
    REGISTRY_INSTANCE_END,     /* instance: id, epoch, reason, exit_code, signal, ended_wall_ms,
                                  marks, joins, joiners_peak, detail */
    REGISTRY_SWEEP,            /* wall_ms: forgets what ended REGISTRY_ENDED_KEPT_MS before, and
                                  expired tokens; ends what removed nodes, and those whose lease has
                                  ended, still have; 500 things at once */
    REGISTRY_TOKEN_PUT,        /* token */
    REGISTRY_TOKEN_REVOKE,     /* token.id */
    REGISTRY_IMAGE_PUT,        /* image */
    REGISTRY_IMAGE_REMOVE,     /* image.name; refused while a kept workload version names it */
    REGISTRY_FEATURE_LEVEL,    /* version: what every node of the cluster now understands */
    REGISTRY_NODE_JOIN,   /* node (name, public_key, address) and token.id, which is consumed: a new
                                  id. Refused: an unknown, used or late token (wall_ms), a key that
                                  another node has. A node of that name that holds another key is
                                  replaced: removed as by NODE_REMOVE */
    REGISTRY_NODE_REMOVE, /* node.id, and gossip_key: its instances end as node_lost (200 of them;
                                  changed: a SWEEP ends the rest), its key is worth nothing any
                                  more, and gossip_key is added to the keyring, in place of the
                                  oldest of a full one, and used. Refused for the last node */
    REGISTRY_NODE_DRAIN,  /* node.id, node.draining */
    REGISTRY_LEASE_GRANT, /* node.id -> epoch; the one that runs, if one does. Refused as CONFLICT
                                  while instances of the lease before are left: each try ends 200 */
    REGISTRY_LEASE_EXPIRE, /* node.id, node.lease_epoch: its instances end as node_lost, at most 200
                                  at once (changed: ask again; nobody can reserve for it meanwhile);
                                  refused as CONFLICT for an epoch that is over. Of this leader
                                  in this term or of none: ERR_UNAVAILABLE at once where this node
                                  does not lead, never sent to another, never tried again in a
                                  later term, where the lease may have been renewed meanwhile
                                  (scheduler/leases.h) */
    REGISTRY_KEYRING,      /* keyring_verb, gossip_key. Removing is refused for the used one */
    REGISTRY_SSH_KEY_PUT,  /* ssh_key */
    REGISTRY_SSH_KEY_REMOVE, /* ssh_key.id */
    REGISTRY_SSH_HOST_KEY,   /* ssh_seed; the first that a leader proposes stays */
    REGISTRY_DOMAIN_PUT, /* domain. Refused as CONFLICT if another workload has it, or an alias is
                                the name of a workload; LIMIT_REACHED: the workload has 50 */
    REGISTRY_DOMAIN_REMOVE, /* domain.name */
    REGISTRY_TICKET_USE,    /* ticket, wall_ms. Refused as CONFLICT if it was used or is over */
};

enum registry_keyring_verb {
    REGISTRY_KEYRING_ADD = 1,
    REGISTRY_KEYRING_USE,
    REGISTRY_KEYRING_REMOVE
};

/* Filled by the caller; copied by registry_propose. Only the members of its kind are read. */
struct registry_command {
    enum registry_command_kind kind;
    uint64_t wall_ms;
    const char *name;
    const char *workload_json; /* workload_to_json, compact */
    uint64_t version;
    const struct registry_instance *instance;
    const struct registry_token *token;
    const struct registry_image *image;
    const struct registry_node *node;
    const struct registry_ssh_key *ssh_key;
    const uint8_t *ssh_seed; /* REGISTRY_SSH_SEED_BYTES, not all zero */
    const struct registry_domain *domain;
    const struct registry_ticket *ticket;
    const char *cluster_id;
    enum registry_keyring_verb keyring_verb;
    const uint8_t *gossip_key; /* REGISTRY_GOSSIP_KEY_BYTES, not all zero */
};

struct registry_result {
    enum problem problem; /* PROBLEM_NONE: done. A refusal is a result and committed as such */
    char detail[REGISTRY_DETAIL_LENGTH_MAX + 1];
    uint64_t index;
    uint64_t version;            /* WORKLOAD_PUT (the current one if nothing changed), ROLLBACK */
    bool changed;                /* WORKLOAD_PUT: a new version was made; INSTANCE_END: it had not
                                    ended before; SWEEP, LEASE_EXPIRE, NODE_REMOVE: there is
                                    more to forget or to end */
    uint64_t epoch;              /* INSTANCE_RESERVE, LEASE_GRANT */
    struct instance_id existing; /* INSTANCE_RESERVE refused with CONFLICT: who holds the key */
    node_id node;                /* NODE_PUT, NODE_JOIN */
    node_id replaced;            /* NODE_JOIN: who had the name; 0: nobody */
};

/* `error` NULL: `result` holds the committed result, and the local root the change, or the root is more
 * than a second behind. Else ERR_UNAVAILABLE: it was not proposed; ERR_DENIED: nor will it be, since the
 * leader refuses it from this node; or ERR_TIMEOUT, ERR_CANCELED: it is not known whether it will be
 * done. */
typedef void (*registry_result_cb)(void *user, const struct err *error,
                                   const struct registry_result *result);

struct registry;
struct secure_context;
struct secure_stream;

/* What another node's registry said. */
struct registry_peer_answer {
    const struct err *error; /* NULL: answered */
    bool maybe_heard;        /* with an error: it may have acted */
    const uint8_t *payload;  /* valid in the callback */
    size_t size;
};
typedef void (*registry_peer_cb)(void *user, const struct registry_peer_answer *answer);

/* Of a question to another registry or an answer: a command of the largest kind, or many small ones. */
#define REGISTRY_QUESTION_BYTES_MAX (1024u * 1024u + 64u * 1024u)

/* How registries of a cluster reach each other. */
struct registry_peers {
    struct secure_context *secure; /* for raft's streams; NULL: this node is alone for ever */
    void *user;
    /* Where node `id` takes streams; false: nobody knows. */
    bool (*stream_address)(void *user, node_id id, struct sockaddr_storage *out);
    /* A question to another registry, which gets it by registry_question. Not answered out of this
     * call. */
    int (*ask)(void *user, node_id to, const void *payload, size_t size, unsigned timeout_ms,
               registry_peer_cb answered, void *answered_user, struct err *e);
};

struct registry_options {
    const char *directory;       /* made if missing, 0700 */
    node_id id;                  /* of this node; 1 with bootstrap */
    bool bootstrap;              /* make a cluster of one voter if the directory is empty */
    struct registry_peers peers; /* zero: alone */
    uint64_t boot;               /* random, of this start: names the session */
    unsigned snapshot_threshold; /* entries; default 8192 */
    unsigned snapshot_trailing;  /* default 2048 */
    size_t waiting_max;          /* proposals not yet committed; default 10,000 */
    unsigned propose_timeout_ms; /* default 10,000 */
    /* The wall clock, by which the leader judges the times in commands of other nodes; NULL: it does not. */
    uint64_t (*wall_ms)(void);
    void *user;
    /* A new root exists (after each applied batch). Coalesce before doing much. */
    void (*changed)(void *user);
    /* Leadership gained (after the guard's barrier is stored) or lost. */
    void (*leader_changed)(void *user, bool leader);
    /* The disk failed: the process must end; the runner keeps the instances. */
    void (*failed)(void *user, const struct err *error);
};

int registry_open(struct registry **out, uv_loop_t *loop, const struct registry_options *options,
                  struct err *e) ERR_CHECKED;
/* Fails waiting proposals with ERR_CANCELED, then `cb`. May be called from any callback here, `failed`
 * included. Roots may be given back later. */
void registry_close(struct registry *r, void (*cb)(void *user), void *user);

/* Session, sequence number, batching, encoding and the way to the leader are done
 * here, on any node; with a new leader the same number is asked again, until the deadline. The commands of
 * instances and REGISTRY_NODE_PUT are taken from the owner, or the node, alone. */
int registry_propose(struct registry *r, const struct registry_command *command,
                     registry_result_cb cb, void *user, struct err *e) ERR_CHECKED;

/* `cb` (error NULL) once the local root holds all that was committed anywhere before this call: a
 * strong read. Those that are asked for within a moment share one barrier of the leader. */
typedef void (*registry_read_cb)(void *user, const struct err *error);
int registry_read(struct registry *r, registry_read_cb cb, void *user, struct err *e) ERR_CHECKED;
/* `cb` (error NULL) once this node has proved that it still led after this call: what a renewal of a
 * lease is answered after. ERR_CONFLICT when it does not lead. */
int registry_barrier(struct registry *r, registry_read_cb cb, void *user,
                     struct err *e) ERR_CHECKED;

/* --- between nodes ------------------------------------------------------------------------------ */

/* A question of another node's registry (registry_peers.ask there); `answer` is called once, in this
 * call or later, and copies. */
typedef void (*registry_answer_fn)(void *question, const void *payload, size_t size);
void registry_question(struct registry *r, node_id from, const uint8_t *payload, size_t size,
                       registry_answer_fn answer, void *question);
/* An open stream of SECURE_RAFT or SECURE_SPARE that another node asked for; the registry's from now on. */
void registry_accept(struct registry *r, struct secure_stream *s);

/* What each node is told of the others, some times a second. A leader gives out roles: up to `voters` vote
 * (an odd number, spread over zones), up to `standbys` more follow the log, the rest are spares. A
 * removed node leaves. One change at a time. Spares are no members of raft; a spare learns whom to ask. */
struct registry_peer {
    node_id id;
    bool alive;
    char zone[64];
};
struct registry_roles_wanted {
    unsigned voters, standbys;
};
void registry_roles(struct registry *r, const struct registry_peer *peers, size_t count,
                    const struct registry_roles_wanted *wanted);

enum registry_role {
    REGISTRY_ROLE_NONE,
    REGISTRY_ROLE_VOTER,
    REGISTRY_ROLE_STANDBY,
    REGISTRY_ROLE_SPARE
};
struct registry_member {
    node_id id;
    enum registry_role role;
};
/* As this node knows it; returns how many there are. Who is registered and not among them is a spare. */
size_t registry_members(const struct registry *r, struct registry_member *out, size_t out_max);

/* Leader: hands over to `to` (0: the voter that is most up to date); `cb` when another leads or it
 * failed. Used by a graceful stop. */
int registry_transfer(struct registry *r, node_id to, registry_read_cb cb, void *user,
                      struct err *e) ERR_CHECKED;

/* Offline, on the folder of a stopped node: */

/* Makes this node's log and snapshot those of a cluster of which it is the only voter, raises the
 * generation of epochs, and says in `out` what may be lost (for people). The old folder stays beside it,
 * as `directory`.lost-TIME. Blocks. */
int registry_recover(const char *directory, node_id id, char *out, size_t size,
                     struct err *e) ERR_CHECKED;
/* A root as a file (any thread that holds the root), or the newest. Both block until it is written. */
int registry_root_save(const struct registry_root *root, int fd, struct err *e) ERR_CHECKED;
int registry_snapshot_save(struct registry *r, int fd, struct err *e) ERR_CHECKED;
/* A fresh folder, with `id` as the only voter and the generation raised, out of such a file. Refused with
 * ERR_EXISTS unless `directory` is missing or empty. Blocks. */
int registry_snapshot_load(const char *directory, node_id id, int fd, struct err *e) ERR_CHECKED;

/* The newest root, a counted reference; without memory for it, the one before. */
struct registry_root *registry_root(struct registry *r);
struct registry_root *registry_root_hold(struct registry_root *root);
void registry_root_release(struct registry_root *root);

struct registry_status {
    bool leader;
    node_id leader_id;
    uint64_t term, commit_index, applied_index, snapshot_index;
    unsigned voters;
    uint64_t proposals_total, batches_total, refusals_total;
    uint64_t foreign_total; /* of other nodes, proposed here */
    uint64_t asked_total;   /* questions to other nodes */
    size_t waiting;
    size_t streams; /* of raft, from and to other nodes */
    node_id fed_by; /* raft brings this node nothing, and that one what it applies; 0: nobody */
    size_t spares;  /* that this node feeds */
};
void registry_status(const struct registry *r, struct registry_status *out);

#endif
