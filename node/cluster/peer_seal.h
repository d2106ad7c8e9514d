/* node/cluster/peer_seal.h - messages between two nodes, sealed one by one.
 *
 *     "SKR1" | from u64 | nonce 24 | crypto_box of
 *         { from, to, boot of the sender, boot of the receiver, counter, answers: u64 each,
 *           kind u8, 0 u8, what u16, payload }                              numbers big-endian
 *
 * The box is libsodium's crypto_box between the two nodes' keys, which `key_of` alone gives: a node
 * that was removed is refused at once.
 *
 * Nothing is accepted twice. A message names the boots of both sides. The receiver refuses one that
 * was meant for an earlier life of its own (and says so, sealed, so that the sender learns the new
 * boot and asks again), or that comes from an earlier life of the sender (and tells that one, which
 * must stop: its folder was copied and runs elsewhere); within one pair of boots
 * the counter may be seen once, and no further back than PEER_SEAL_WINDOW. Boots of a node rise
 * (identity_boot_next). An answer names the counter of its question, so that answers cannot be
 * exchanged.
 *
 * Thread: one at a time. */
#ifndef SKERRY_NODE_CLUSTER_PEER_SEAL_H
#define SKERRY_NODE_CLUSTER_PEER_SEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/identity.h"
#include "base/refusals.h"

/* Magic, from, nonce, the box's tag, what is inside before the payload. */
#define PEER_SEAL_OVERHEAD_BYTES (4u + 8u + 24u + 16u + 52u)
#define PEER_SEAL_WINDOW 8192u /* far more than questions and answers under way between two nodes */
#define PEER_SEAL_PEERS_MAX_DEFAULT 4096u
#define PEER_SEAL_BYTES_MAX_DEFAULT (1024u * 1024u)

enum peer_seal_kind {
    PEER_SEAL_ASK = 1,
    PEER_SEAL_ANSWER,
    PEER_SEAL_REFUSAL, /* the ask was for an earlier life of who refuses; it did nothing */
};

struct peer_seal_content {
    node_id peer; /* to whom it goes, or from whom it comes */
    enum peer_seal_kind kind;
    uint16_t what;    /* the question's kind, the caller's to define */
    uint64_t counter; /* of this message; set by peer_seal_message and peer_seal_open */
    uint64_t answers; /* counter of the ask; 0 in one */
    uint64_t boot;    /* of the sender, set by peer_seal_open; to answer, that of the ask */
    const uint8_t *payload;
    size_t size;
};

enum peer_seal_refusal {
    PEER_SEAL_REFUSED_FORMAT,
    PEER_SEAL_REFUSED_SIZE,
    PEER_SEAL_REFUSED_STRANGER, /* who it says it is from has no key */
    PEER_SEAL_REFUSED_KEY,      /* another key, or altered on the way */
    PEER_SEAL_REFUSED_OTHER,    /* meant for another node */
    PEER_SEAL_REFUSED_LIFE,     /* meant for an earlier life of ours; usual after a restart */
    PEER_SEAL_REFUSED_STALE,    /* from an earlier life of the sender */
    PEER_SEAL_REFUSED_REPLAY,
    PEER_SEAL_REFUSED_PEERS, /* more than peers_max */
    PEER_SEAL_REFUSAL_COUNT
};

struct peer_seal_options {
    const struct identity *identity;
    node_id id;
    uint64_t boot; /* above 0 */
    bool (*key_of)(void *user, node_id id, struct identity_public *out);
    void *user;
    size_t peers_max; /* 0: the default */
    size_t bytes_max; /* of a payload; 0: the default */
};

struct peer_seal;

int peer_seal_new(struct peer_seal **out, const struct peer_seal_options *options,
                  struct err *e) ERR_CHECKED;
void peer_seal_free(struct peer_seal *s);

/* Writes size + PEER_SEAL_OVERHEAD_BYTES bytes and sets content->counter. Fails when the peer has no key
 * or the payload is too large. */
int peer_seal_message(struct peer_seal *s, struct peer_seal_content *content, uint8_t *out,
                      struct err *e) ERR_CHECKED;

enum peer_seal_result {
    PEER_SEAL_GOOD,
    PEER_SEAL_BAD,          /* counted and told in the log; nobody is answered */
    PEER_SEAL_EARLIER_LIFE, /* an ask: answer it with PEER_SEAL_REFUSAL */
    /* An ask of an earlier life of the sender, counted as STALE: answer it with PEER_SEAL_REFUSAL and
     * PEER_SEAL_OUTLIVED_PAYLOAD. A replay of one learns nothing by it: the answer is sealed, and for
     * that earlier life alone. */
    PEER_SEAL_OUTLIVED
};
#define PEER_SEAL_OUTLIVED_PAYLOAD "\1"
/* Opens in place: `bytes` are overwritten, out->payload lies in them. */
enum peer_seal_result peer_seal_open(struct peer_seal *s, uint8_t *bytes, size_t size,
                                     struct peer_seal_content *out);

/* What is known of a node that was removed; its id never comes back. */
void peer_seal_forget(struct peer_seal *s, node_id peer);
const struct refusals *peer_seal_refusals(const struct peer_seal *s);

#endif
