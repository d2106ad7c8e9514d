/* raft/remote_wire.h - what two registries say to each other, as bytes (raft/remote.proto).
 *
 * A question is a bundle of encoded commands for the leader, or asks for the index of a strong read. Every
 * bound is checked on both sides; the commands themselves are the leader's to look at.
 *
 * Thread: any. */
#ifndef SKERRY_RAFT_REMOTE_WIRE_H
#define SKERRY_RAFT_REMOTE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "raft/command.h"
#include "raft/registry.h"

#define REMOTE_VERSION 1u
#define REMOTE_COMMANDS_MAX 256u
/* Of commands in a question, beyond one that is alone: the largest is REGISTRY_QUESTION_BYTES_MAX. */
#define REMOTE_COMMANDS_BYTES_MAX (256u * 1024u)
#define REMOTE_TIMEOUT_MS_MAX 60000u

enum remote_asks { REMOTE_PROPOSE = 1, REMOTE_READ };

struct remote_bytes {
    const uint8_t *bytes;
    size_t length;
};

struct remote_question {
    enum remote_asks asks;
    uint64_t generation;
    uint32_t timeout_ms;
    struct remote_bytes commands[REMOTE_COMMANDS_MAX]; /* PROPOSE */
    size_t count;
    void *message; /* of a decoded one, which the commands point into */
};

enum remote_says { REMOTE_NOT_LEADER = 1, REMOTE_PROPOSED, REMOTE_INDEX, REMOTE_REFUSED };
enum remote_fate { REMOTE_RESULT = 1, REMOTE_NOT_PROPOSED, REMOTE_UNKNOWN, REMOTE_DENIED };

struct remote_outcome {
    enum remote_fate fate;
    struct registry_result result;             /* RESULT */
    char text[REGISTRY_DETAIL_LENGTH_MAX + 1]; /* DENIED */
};

struct remote_answer {
    enum remote_says says;
    node_id leader;                            /* NOT_LEADER */
    uint64_t index;                            /* INDEX */
    char text[REGISTRY_DETAIL_LENGTH_MAX + 1]; /* REFUSED */
    struct remote_outcome *outcomes;           /* PROPOSED; of a decoded one: malloc'ed */
    size_t count;
};

/* *out is malloc'ed, the caller's. */
int remote_question_encode(uint8_t **out, size_t *out_size, const struct remote_question *q,
                           struct err *e) ERR_CHECKED;
int remote_question_decode(struct remote_question *out, const uint8_t *bytes, size_t size,
                           struct err *e) ERR_CHECKED;
void remote_question_free(struct remote_question *q); /* a decoded one */

int remote_answer_encode(uint8_t **out, size_t *out_size, const struct remote_answer *a,
                         struct err *e) ERR_CHECKED;
int remote_answer_decode(struct remote_answer *out, const uint8_t *bytes, size_t size,
                         struct err *e) ERR_CHECKED;
void remote_answer_free(struct remote_answer *a); /* a decoded one */

#endif
