/* node/cluster/enroll_wire.h - the two messages of the join handshake, as they travel inside TLS.
 *
 *     length u32 | "SKE" and a byte 1 | major u16 | minor u16 | the rest by major
 *
 * Numbers are big-endian; a text is its length (one byte) and its bytes. Everything before "the rest"
 * is the same in every major version, so that two that do not understand each other can say so: the
 * rest of an answer begins with verdict and words in all of them too.
 *
 *     request  wall_ms u64 | cluster id, token id, secret, name, address, version: texts |
 *              without a token, from who is a node: its id u64
 *     answer   verdict u8 | words | when joined: id u64 | cluster id | keys u8, 32 bytes each |
 *              index u64 | next u64 | nodes u16 | each: id u64, has key u8, key 32, name, address
 *
 * What is read has exactly this form and nothing behind it; names, addresses, ids and keys are valid.
 *
 * Thread: any. */
#ifndef SKERRY_NODE_CLUSTER_ENROLL_WIRE_H
#define SKERRY_NODE_CLUSTER_ENROLL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/err.h"
#include "node/cluster/enroll.h"
#include "node/cluster/known.h"
#include "node/cluster/membership.h"

#define ENROLL_LENGTH_BYTES 4u
#define ENROLL_REQUEST_BYTES_MAX 512u
/* 1,024 nodes of at most 8 + 1 + 32 + 64 + 64 bytes, eight keys, and words. */
#define ENROLL_ANSWER_BYTES_MAX (192u * 1024u)
#define ENROLL_WORDS_SIZE 256u
#define ENROLL_VERSION_SIZE 32u
#define ENROLL_ID_SIZE 17u     /* of a token */
#define ENROLL_SECRET_SIZE 53u /* 52 digits and the NUL */

struct enroll_request {
    uint16_t major, minor;
    uint64_t wall_ms;
    node_id member; /* who asks whether it still is one, and shows no token; 0: who wants to join */
    char cluster_id[MEMBERSHIP_CLUSTER_SIZE];
    char token_id[ENROLL_ID_SIZE];
    char secret[ENROLL_SECRET_SIZE];
    char name[64];
    char address[ADDRESS_TEXT_SIZE];
    char version[ENROLL_VERSION_SIZE];
};

enum enroll_verdict { /* numbers travel */
                      ENROLL_JOINED = 1,
                      ENROLL_REFUSED, /* asking again does not help */
                      ENROLL_LATER,   /* it may */
                      ENROLL_MEMBER,  /* it is one */
                      ENROLL_REMOVED  /* it was one, and never will be again */
};

struct enroll_answer {
    uint16_t major, minor;
    enum enroll_verdict verdict;
    char words[ENROLL_WORDS_SIZE]; /* for people; empty when joined or a member */
    struct membership membership;  /* when joined, like what follows */
    struct known known;
};

/* Appended, length and all. False without memory or when a text is too long. */
bool enroll_request_write(const struct enroll_request *request, struct buffer *out);
bool enroll_answer_write(const struct enroll_answer *answer, struct buffer *out);

/* What stands behind the length. -ERR_PROTOCOL, or -ERR_UNSUPPORTED for another major, when only major
 * and minor (and of an answer verdict and words) are set. */
int enroll_request_read(struct enroll_request *out, const uint8_t *data, size_t size,
                        struct err *e) ERR_CHECKED;
/* The caller frees out->known and wipes out->membership, also when it failed. */
int enroll_answer_read(struct enroll_answer *out, const uint8_t *data, size_t size,
                       struct err *e) ERR_CHECKED;
/* Of the four bytes before a message; 0 unless it is one that may be. */
size_t enroll_length_read(const uint8_t bytes[ENROLL_LENGTH_BYTES], size_t length_max);

/* The parts of a token's text. */
struct enroll_token {
    char id[ENROLL_ID_SIZE];
    char secret[ENROLL_SECRET_SIZE];
    char cluster_id[MEMBERSHIP_CLUSTER_SIZE];
    struct identity_fingerprint member;
};
/* Spaces around it are passed over, as an editor leaves a line feed. */
int enroll_token_parse(struct enroll_token *out, const char *text, struct err *e) ERR_CHECKED;

#endif
