/* raft/spare_wire.h - what flows on a SECURE_SPARE stream, between a spare and the neighbour that feeds it.
 *
 *     u8 kind | u24 size, big-endian | size bytes
 *
 *     spare:      HELLO ACK*
 *     neighbour:  WAIT* REFUSED
 *                 WAIT* then RESUMED or (SNAPSHOT DATA*), then (ENTRY | PROGRESS | MEMBERS)*
 *
 * The decoder holds the other side to that order and to every bound: the snapshot has as many bytes as was
 * said, indices only rise, members are in order of their ids. What a command holds is the state machine's to
 * look at. After an error the stream is worth nothing.
 *
 * Thread: one at a time. Numbers are big-endian. */
#ifndef SKERRY_RAFT_SPARE_WIRE_H
#define SKERRY_RAFT_SPARE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"
#include "raft/command.h"
#include "raft/registry.h"

#define SPARE_WIRE_VERSION 1u
#define SPARE_HEADER_BYTES 4u
#define SPARE_DATA_BYTES_MAX 65536u
#define SPARE_ENTRY_BYTES_MAX (8u + COMMAND_BYTES_MAX)
_Static_assert(SPARE_ENTRY_BYTES_MAX < 1u << 24, "its size has 24 bits");
/* Of raft's configuration: voters and standbys are 62 at most, and there may be some more for a moment. */
#define SPARE_MEMBERS_MAX 128u
/* As in raft/snapshot.h. */
#define SPARE_SNAPSHOT_BYTES_MAX ((uint64_t)4 * 1024 * 1024 * 1024)

/* On the wire, so numbers stay. */
enum spare_kind {
    SPARE_HELLO = 1,
    SPARE_ACK = 2,
    SPARE_REFUSED = 3,
    SPARE_RESUMED = 4,
    SPARE_SNAPSHOT = 5,
    SPARE_DATA = 6,
    SPARE_ENTRY = 7,
    SPARE_PROGRESS = 8,
    SPARE_MEMBERS = 9,
    SPARE_WAIT = 10, /* a snapshot is being made */
};
#define SPARE_KIND_LAST SPARE_WAIT

/* Why a spare is not fed here; likewise. */
enum spare_refusal {
    SPARE_IS_MEMBER = 1, /* raft itself brings it the log */
    SPARE_NOT_FOLLOWING, /* this node hears of no leader itself */
    SPARE_FULL,
    SPARE_OTHER_GENERATION,
    SPARE_OTHER_VERSION,
    SPARE_BEHIND, /* this node knows less than the one that asks */
};
#define SPARE_REFUSAL_LAST SPARE_BEHIND
const char *spare_refusal_text(enum spare_refusal why);

struct spare_record {
    enum spare_kind kind;
    uint32_t version;       /* HELLO */
    enum spare_refusal why; /* REFUSED */
    uint64_t generation;    /* HELLO, RESUMED, SNAPSHOT */
    uint64_t applied; /* HELLO (0: nothing), ACK, RESUMED, SNAPSHOT, PROGRESS; ENTRY: its index */
    uint64_t bytes;   /* SNAPSHOT: of all DATA */
    uint64_t commit, term; /* PROGRESS */
    node_id leader;        /* PROGRESS; 0: nobody */
    const uint8_t *data;   /* DATA, ENTRY: points into what was given, or into the decoder */
    size_t size;
    struct registry_member members[SPARE_MEMBERS_MAX]; /* MEMBERS, REFUSED */
    size_t member_count;
};

/* Of all kinds but DATA and ENTRY, which have their head only: `size` bytes follow it. */
#define SPARE_RECORD_BYTES_MAX (SPARE_HEADER_BYTES + 1u + SPARE_MEMBERS_MAX * 9u)
size_t spare_encode(uint8_t out[SPARE_RECORD_BYTES_MAX], const struct spare_record *record);

/* --- reading ------------------------------------------------------------------------------------ */

enum spare_side { SPARE_ASKS, SPARE_FEEDS };
enum spare_phase { SPARE_BEFORE, SPARE_IN_SNAPSHOT, SPARE_FOLLOWS, SPARE_ENDED };

struct spare_decoder {
    enum spare_side side; /* who writes what is read here */
    enum spare_phase phase;
    uint64_t remaining; /* of the snapshot */
    uint64_t applied;   /* the highest that was said */
    uint8_t *gathered;  /* a record that came in parts */
    size_t gathered_length, gathered_capacity;
};

void spare_decoder_init(struct spare_decoder *d, enum spare_side side);
void spare_decoder_free(struct spare_decoder *d);
/* 1: *out is a record. 0: all was taken, and more is needed. Else an error. *taken bytes are done with;
 * out->data is valid until the next call, as long as `data` is. */
int spare_decode(struct spare_decoder *d, struct spare_record *out, const uint8_t *data,
                 size_t size, size_t *taken, struct err *e) ERR_CHECKED;

#endif
