/* node/cluster/enroll.h - how a machine becomes a node: the join handshake, both sides.
 *
 *     joiner                                          member (the enroll port, which does nothing else)
 *       | SECURE_ENROLL: TLS 1.3, our fresh key; the        |
 *       |   member's key must hash to the token's print     |
 *       | token, name, address, version, wall clock  ------>| checks, then REGISTRY_NODE_JOIN
 *       |<------ id, cluster id, nodes, gossip's keys       |
 *
 * A token's text is "skn_<token id>_<secret>_<cluster id>_<fingerprint>". The fingerprint is that of the
 * node that made it: it is the one to ask, and its key is checked before anything of the token is sent.
 *
 * Refused, with words for people: another cluster's id, another major protocol, clocks more than 5 s
 * apart, a token that is unknown, used, late, or of another kind, a public address.
 *
 * Who asks again with a key that is a node's already (its answer was lost) gets the same answer, and
 * needs no token that is still good: the key is the proof.
 *
 * A node that has lost touch asks the same port, without a token and with its own id, whether it still is
 * one (node/cluster/confirm.h): who was removed while it was away hears it from nobody else, as every
 * other port refuses it.
 *
 * Thread: the control loop; enroll_join runs a loop of its own and blocks (before the node opens).
 * Bounds: ENROLL_CONNECTIONS_MAX at once, each for some seconds; a rate; one small message. */
#ifndef SKERRY_NODE_CLUSTER_ENROLL_H
#define SKERRY_NODE_CLUSTER_ENROLL_H

#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "base/identity.h"
#include "base/refusals.h"
#include "node/cluster/known.h"
#include "node/cluster/membership.h"
#include "raft/registry.h"

#define ENROLL_PROTOCOL_MAJOR 1u
#define ENROLL_CLOCK_APART_MS 5000u
#define ENROLL_TOKEN_TEXT_SIZE 200

/* --- joining -------------------------------------------------------------------------------------- */

struct enroll_join_options {
    const char *data; /* membership and peers.json are written there */
    const struct identity *identity;
    const char *name, *advertise;
    const char *const *peers; /* "10.0.0.1:7600" or without a port: asked in turn */
    size_t peer_count;
    const char *token; /* its text, wiped by the caller */
    unsigned timeout_ms;
    uint64_t (*wall_ms)(void); /* NULL: clock_wall_ms */
};
/* -ERR_DENIED: refused for good; -ERR_UNAVAILABLE: nobody answered, or not now, until the time was
 * over. When it returns 0 the files are stored. */
int enroll_join(const struct enroll_join_options *options, struct membership *out,
                struct err *e) ERR_CHECKED;

/* --- answering ------------------------------------------------------------------------------------ */

#define ENROLL_CONNECTIONS_MAX 8u
/* How often strangers may ask: so many at once, then so many a second. */
#define ENROLL_TRIES_MAX 16u
#define ENROLL_TRIES_PER_SECOND 4u

enum enroll_refusal {
    ENROLL_REFUSED_FORMAT,   /* no request to join, or no whole one in time */
    ENROLL_REFUSED_PROTOCOL, /* another major version */
    ENROLL_REFUSED_CLUSTER,
    ENROLL_REFUSED_CLOCK,
    ENROLL_REFUSED_TOKEN,
    ENROLL_REFUSED_NAME,
    ENROLL_REFUSED_ADDRESS,
    ENROLL_REFUSED_FULL,     /* as many nodes as may follow the registry */
    ENROLL_REFUSED_BUSY,     /* too many ask */
    ENROLL_REFUSED_REGISTRY, /* it refused, or could not be asked */
    ENROLL_REFUSAL_COUNT
};

struct enroll;
struct enroll_options {
    const struct identity *identity;
    const char *address; /* "127.0.0.1:7603" */
    const char *name;    /* of this node, for words */
    node_id id;
    uint64_t nodes_max;        /* 0: as many as come */
    uint64_t (*wall_ms)(void); /* NULL: clock_wall_ms */
    void *user;
    /* Proposes REGISTRY_NODE_JOIN; answered as by registry_propose. */
    int (*propose)(void *user, const struct registry_command *command, registry_result_cb cb,
                   void *cb_user, struct err *e);
    struct registry_root *(*root)(void *user); /* a reference for us; NULL: not now */
};
int enroll_open(struct enroll **out, uv_loop_t *loop, const struct enroll_options *options,
                struct err *e) ERR_CHECKED;
/* Proposals that are under way must end before `cb` comes: close the registry meanwhile. */
void enroll_close(struct enroll *n, void (*cb)(void *user));
const struct refusals *enroll_refusals(const struct enroll *n);
/* Connections and handshakes that never came so far. */
const struct refusals *enroll_stream_refusals(const struct enroll *n);

/* Makes a join token: `text` is what an operator carries; `out` goes into REGISTRY_TOKEN_PUT. */
int enroll_token_make(struct registry_token *out, char text[ENROLL_TOKEN_TEXT_SIZE],
                      const char *cluster_id, const struct identity_fingerprint *member,
                      struct err *e) ERR_CHECKED;

#endif
