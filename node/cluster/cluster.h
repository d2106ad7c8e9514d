/* node/cluster/cluster.h - this node among the others: its key, gossip, questions and streams between nodes.
 *
 *     identity --+-- secure context --- streams' port: joins, raft, images (one listener)
 *                +-- peer_rpc --------- peer port: questions, dispatched by enum cluster_what
 *     seal ------+-- gossip/udp ------- gossip port: who is alive, where, how loaded
 *
 * Whom we believe comes from the registry's nodes. What was last known of them is kept in
 * `data`/peers.json too, since after a restart the registry is up to date only once others were
 * reached; gossip's keys likewise in node.json (node/cluster/membership.h).
 *
 * Ports: `advertise` has the peer port P; streams are at P + 1, gossip at P + 2, the handshake (node/cluster/enroll.h)
 * at P + 3, all at the same address.
 *
 * Thread: the control loop, but for cluster_key_of and cluster_address, which gateway threads call too
 *         (a small table under a lock that is held for a copy only). */
#ifndef SKERRY_NODE_CLUSTER_CLUSTER_H
#define SKERRY_NODE_CLUSTER_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "base/err.h"
#include "base/identity.h"
#include "base/secure_stream.h"
#include "gossip/gossip.h"
#include "gossip/seal.h"
#include "node/cluster/membership.h"
#include "node/cluster/peer_rpc.h"
#include "raft/registry.h"

struct cluster;

/* What a question between nodes is about; numbers travel. */
enum cluster_what {
    CLUSTER_GOSSIP_SYNC = 1, /* a gossip_sync_write, answered by another */
    CLUSTER_REGISTRY = 2,    /* raft/registry.h: registry_question */
    CLUSTER_LEASE = 3,       /* node/control/leases.h: a renewal, for the leader */
    CLUSTER_LAYERS = 4,      /* node/layers/copies.h: whether layers are held */
    CLUSTER_REPORT = 5,      /* node/control/reports.h: what the other says of itself */
    CLUSTER_WHAT_COUNT
};

enum cluster_port {
    CLUSTER_PORT_PEER,
    CLUSTER_PORT_STREAM,
    CLUSTER_PORT_GOSSIP,
    CLUSTER_PORT_ENROLL,
    CLUSTER_PORT_COUNT
};

struct cluster_options {
    const char *data;                    /* folder: identity.key, boot, peers.json, node.json */
    const char *bind;                    /* "127.0.0.1:7600" */
    const char *advertise;               /* likewise */
    const struct membership *membership; /* copied */
    /* Of this node: name, zone, version, capacity, labels, its HTTP and API addresses as others and
     * people reach them. The addresses for nodes are filled in here. Copied. */
    const struct gossip_meta *meta;
    void *user; /* of every callback here */
    /* A question came, not of gossip: answered or dropped once. */
    void (*asked)(void *user, struct peer_question *q);
    /* An open stream came in; the owner's from now on. any but SECURE_ENROLL. */
    void (*accepted)(void *user, struct secure_stream *s);
    /* What follows comes out of the loop, never out of a call here; NULL is allowed for each. */
    /* States, loads or metas changed; look at cluster_next. At most once in 5 ms. */
    void (*changed)(void *user);
    /* After cluster_leave: others were told, or gave no sign within 2 s. */
    void (*left)(void *user);
    /* Another process runs under our id with a later boot: this one must stop. */
    void (*impostor)(void *user);
    /* Out of cluster_follow: another node was removed, or has another key now. Whatever it has open is to be
     * closed. */
    void (*forgot)(void *user, node_id id, bool removed);
    /* The registry says that this node was removed: it must stop, and can only join anew. */
    void (*removed)(void *user);
};

/* When it fails, the loop may have to run once for its handles to go. */
int cluster_open(struct cluster **out, uv_loop_t *loop, const struct cluster_options *options,
                 struct err *e) ERR_CHECKED;
/* Streams of its context must be closed before. May be called in a callback; none but `cb` comes
 * after this. Blocks until the files are stored. */
void cluster_close(struct cluster *c, void (*cb)(void *user));
void cluster_leave(struct cluster *c);

/* The registry changed: nodes that came, moved or were removed, and the keyring. Keeps the files. A
 * root that is older than what is known is passed over, unless the registry has `caught_up` since it
 * was opened: a strong read succeeded. */
void cluster_follow(struct cluster *c, const struct registry_root *root, bool caught_up);

uint64_t cluster_boot(const struct cluster *c);
const struct identity *cluster_identity(const struct cluster *c);
struct secure_context *cluster_secure(const struct cluster *c); /* for streams of any thread */
int cluster_call(struct cluster *c, const struct peer_call *call, struct err *e) ERR_CHECKED;

/* Any thread: */
bool cluster_key_of(void *cluster, node_id id, struct identity_public *out);
/* Where a node is now: gossip's word first, then the registry's. False: nobody knows. */
bool cluster_address(struct cluster *c, node_id id, enum cluster_port port,
                     struct sockaddr_storage *out);

/* One node as known here. */
struct cluster_node {
    node_id id;
    enum gossip_state state; /* of ourselves: alive */
    uint64_t state_since_ms; /* of clock_monotonic_ms */
    struct gossip_meta meta; /* name, zone, version, capacity; only the name if not known */
    struct gossip_load load; /* zero if not known */
    bool self;
};
/* All that gossip or the registry knows, in order of id; *cursor from 0. */
bool cluster_next(struct cluster *c, node_id *cursor, struct cluster_node *out);
bool cluster_get(struct cluster *c, node_id id, struct cluster_node *out);
void cluster_tell_load(struct cluster *c, const struct gossip_load *load);
/* As in the options: when what others should know of this node has changed. */
void cluster_tell_meta(struct cluster *c, const struct gossip_meta *meta);

/* Counters of refused strangers and replays, for metrics and status. */
struct cluster_refusals {
    uint64_t gossip_unknown_key, gossip_forged, gossip_replayed, gossip_other;
    uint64_t rpc;     /* but what was meant for an earlier life of ours, which is usual */
    uint64_t streams; /* that were never accepted */
};
void cluster_refusals(const struct cluster *c, struct cluster_refusals *out);
/* Whether all that live seal with that key, as far as was heard: then none needs an older one. */
bool cluster_all_seal_with(struct cluster *c, const char *key_id);
/* The keyring as gossip uses it: for `skerry operator keyring list`. */
size_t cluster_keyring(const struct cluster *c, struct seal_key_shown *out, size_t out_max);

#endif
