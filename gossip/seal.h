/* gossip/seal.h - what makes a datagram believable: XChaCha20-Poly1305 under a keyring of the cluster,
 * with sender, receiver, their boots and a counter inside.
 *
 *     version 1, key id 4, nonce 24, sealed { from 8, from boot 8, to 8, to boot 8, counter 8, packet },
 *     tag 16; big endian. Version, key id and cluster id are authenticated too.
 *
 * Refused and counted: what no key of ours opens; what is meant for another node or for an earlier
 * process of this one (so that nothing recorded before a restart works after it); a sender's earlier
 * boot; a counter that was seen, or is SEAL_WINDOW behind the newest. Counters are in memory: the boot
 * must grow with each start.
 *
 * Rotation with no restart: add the new key on all nodes, use it on all, remove the old one on all.
 *
 * Thread: the control loop. Memory: bounded by SEAL_KEYS_MAX and senders_max; keys are wiped. */
#ifndef SKERRY_GOSSIP_SEAL_H
#define SKERRY_GOSSIP_SEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"

#define SEAL_KEY_BYTES 32
#define SEAL_KEYS_MAX 8
#define SEAL_CLUSTER_BYTES 16
#define SEAL_WINDOW 1024
#define SEAL_BYTES (1 + 4 + 24 + 40 + 16) /* a sealed packet is this much larger */
#define SEAL_KEY_ID_SIZE 9                /* eight hexadecimal digits and the NUL */

struct seal;

struct seal_options {
    node_id self;
    uint64_t boot;
    uint8_t cluster[SEAL_CLUSTER_BYTES];
    uint32_t senders_max; /* beyond it the one that is silent longest is forgotten */
};

int seal_new(struct seal **out, const struct seal_options *options, struct err *e) ERR_CHECKED;
void seal_free(struct seal *s);

/* --- the keyring -------------------------------------------------------------------------------- */

/* The first one is used at once. -ERR_EXISTS if it is there, -ERR_LIMIT when full. */
int seal_key_add(struct seal *s, const uint8_t key[SEAL_KEY_BYTES], struct err *e) ERR_CHECKED;
/* Seals with it from now on. -ERR_NOT_FOUND. */
int seal_key_use(struct seal *s, const char *key_id, struct err *e) ERR_CHECKED;
/* -ERR_NOT_FOUND, or -ERR_CONFLICT for the one in use. */
int seal_key_remove(struct seal *s, const char *key_id, struct err *e) ERR_CHECKED;
/* The i-th, in the order of adding; false at the end. Its opens so far tell whether others still use
 * it. */
struct seal_key_shown {
    char id[SEAL_KEY_ID_SIZE]; /* of a hash of the key: no secret */
    bool used;
    uint64_t opened;
};
bool seal_key_get(const struct seal *s, size_t i, struct seal_key_shown *out);
/* The id of any key, as it will be shown. */
void seal_key_id(const uint8_t key[SEAL_KEY_BYTES], char out[SEAL_KEY_ID_SIZE]);

/* --- packets ------------------------------------------------------------------------------------ */

/* `out` has room for size + SEAL_BYTES; the sealed size. -ERR_CONFLICT without a key. */
int seal_packet(struct seal *s, node_id to, uint64_t to_boot, const uint8_t *data, size_t size,
                uint8_t *out, size_t *out_size, struct err *e) ERR_CHECKED;

enum seal_refusal {
    SEAL_TAKEN = 0,
    SEAL_SHORT,       /* too short or another version: noise, or no Skerry */
    SEAL_UNKNOWN_KEY, /* a stranger, or a removed node's key */
    SEAL_FORGED,      /* does not authenticate */
    SEAL_MISDIRECTED, /* for another node, or for an earlier process of this one */
    SEAL_OLD_BOOT,    /* of an earlier process of the sender */
    SEAL_REPLAYED,    /* a counter that was seen, or far behind */
    SEAL_REFUSAL_COUNT
};
const char *seal_refusal_name(enum seal_refusal refusal); /* "unknown key" */

struct seal_opened {
    node_id from;
    uint64_t boot;
    uint8_t *data; /* inside the datagram, which is overwritten by it */
    size_t size;
};
enum seal_refusal seal_open(struct seal *s, uint8_t *datagram, size_t size,
                            struct seal_opened *out);
/* Whether the last packet of `sender` that was taken was sealed with that key: then it has it. */
bool seal_sender_uses(const struct seal *s, node_id sender, const char *key_id);
/* A removed node's counters need not be kept. */
void seal_forget(struct seal *s, node_id sender);
uint64_t seal_count(const struct seal *s, enum seal_refusal refusal);

#endif
