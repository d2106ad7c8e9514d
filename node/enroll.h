/* node/enroll.h - how a machine becomes a node: the join handshake, both sides.
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
 * Thread: the control loop; enroll_join runs a loop of its own and blocks (before the node opens). */
#ifndef SKERRY_NODE_ENROLL_H
#define SKERRY_NODE_ENROLL_H

#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "base/identity.h"
#include "node/known.h"
#include "node/membership.h"
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
};
int enroll_join(const struct enroll_join_options *options, struct membership *out,
                struct err *e) ERR_CHECKED;

/* --- answering ------------------------------------------------------------------------------------ */

struct enroll;
struct enroll_options {
    const struct identity *identity;
    const char *address; /* "127.0.0.1:7603" */
    node_id id;
    void *user;
    /* Proposes REGISTRY_NODE_JOIN; answered as by registry_propose. */
    int (*propose)(void *user, const struct registry_command *command, registry_result_cb cb,
                   void *cb_user, struct err *e);
    struct registry_root *(*root)(void *user); /* a reference for us */
};
int enroll_open(struct enroll **out, uv_loop_t *loop, const struct enroll_options *options,
                struct err *e) ERR_CHECKED;
void enroll_close(struct enroll *n, void (*cb)(void *user));

/* Makes a join token: `text` is what an operator carries; `out` goes into REGISTRY_TOKEN_PUT. */
int enroll_token_make(struct registry_token *out, char text[ENROLL_TOKEN_TEXT_SIZE],
                      const char *cluster_id, const struct identity_fingerprint *member,
                      struct err *e) ERR_CHECKED;

#endif
