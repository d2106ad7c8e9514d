/* base/identity.h - who a node is: an Ed25519 key, kept in its data folder, never anywhere else.
 *
 * The public half is what the registry maps a node id to. From the secret half come the certificate
 * that streams show (base/secure_stream.h) and the keys that seal single messages (node/seal.h).
 *
 * Thread: constant once made; any. Memory: secrets live in guarded, locked pages that core dumps
 * leave out, and are wiped when released. No function here writes one into an error or a log. */
#ifndef SKERRY_BASE_IDENTITY_H
#define SKERRY_BASE_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"

#define IDENTITY_FILE "identity.key"
#define IDENTITY_BOOT_FILE "boot"

/* 32 bytes as RFC 8032 writes them; a point of the prime-order group, since both ways to make one
 * (identity_public, identity_public_parse) and identity_public_valid see to that. */
struct identity_public {
    uint8_t bytes[32];
};

struct identity;

/* The key in `directory`/identity.key; made there (mode 0600, whole or not at all) at the first
 * start. A file that others could read, or that is not ours, is refused. */
int identity_open(struct identity **out, const char *directory, struct err *e) ERR_CHECKED;
/* A key that is kept nowhere. */
int identity_new(struct identity **out, struct err *e) ERR_CHECKED;
void identity_free(struct identity *identity);

const struct identity_public *identity_public(const struct identity *identity);
bool identity_public_equal(const struct identity_public *a, const struct identity_public *b);
bool identity_public_valid(const struct identity_public *key);

/* "ed25519:" and 43 characters of base64url. */
#define IDENTITY_TEXT_SIZE 52
void identity_public_format(const struct identity_public *key, char out[IDENTITY_TEXT_SIZE]);
/* False unless `text` is the canonical form of a valid key. */
bool identity_public_parse(struct identity_public *out, const char *text);

/* SHA-256 of the public key: what a join token carries, to know whom it may be told. */
struct identity_fingerprint {
    uint8_t bytes[32];
};
void identity_fingerprint(const struct identity_public *key, struct identity_fingerprint *out);
/* "sha256:" and 43 characters of base64url. */
#define IDENTITY_FINGERPRINT_TEXT_SIZE 51
void identity_fingerprint_format(const struct identity_fingerprint *print,
                                 char out[IDENTITY_FINGERPRINT_TEXT_SIZE]);

/* A self-signed certificate of this key for node `id` (0: not a member yet) and the key itself, both
 * OpenSSL's and the caller's to free. They never expire: what they are worth is the registry's to
 * say. */
struct x509_st;
struct evp_pkey_st;
int identity_certificate(const struct identity *identity, node_id id,
                         struct x509_st **out_certificate, struct evp_pkey_st **out_key,
                         struct err *e) ERR_CHECKED;
/* What such a certificate says; false unless it has exactly that form. That its owner holds the key
 * is proved by the handshake around it, not by this. */
bool identity_certificate_read(struct x509_st *certificate, node_id *out_id,
                               struct identity_public *out_key);

/* The key of libsodium's crypto_box_*_afternm between this node and the owner of `peer`; equal on
 * both sides. The caller wipes it. False for a key that is no point. */
#define IDENTITY_SHARED_BYTES 32
bool identity_shared(const struct identity *identity, const struct identity_public *peer,
                     uint8_t out[IDENTITY_SHARED_BYTES]);

/* A number for this start of the node, above all earlier ones of this folder; stored before it is
 * given out. `wall_ms` keeps it rising when the file was lost or came from a backup. */
int identity_boot_next(uint64_t *out, const char *directory, uint64_t wall_ms,
                       struct err *e) ERR_CHECKED;

#endif
