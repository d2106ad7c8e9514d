/* base/record.h - the records of a stream that carries forwarded joins, one join at a time.
 *
 *     u8 kind | u24 size, big-endian | size bytes
 *
 *     asking side:     HEAD DATA* END(how)
 *     answering side:  HEAD DATA* END(how)
 *     either, instead of anything behind HEAD, or before it:  RESET(code, why)
 *
 * For one join the stream is a pipe of bytes to a connection of the code: DATA from the asking side is
 * the request as the code gets it, DATA from the answering side what the code says. All of HTTP (1xx,
 * trailers, framing, what an answer's end is) stays with the asking side, so that there is one
 * parser on the way and not two that could differ; this is why there are no records for 1xx and
 * trailers. What HEAD and the `why` of RESET hold is the gateway's (gateway/travel_block.h).
 *
 * After END another join may follow in that direction, also before the other direction has ended:
 * joins and answers are in the same order. After RESET nothing. The end of the stream is clean before
 * HEAD only (record_decoder_idle).
 *
 * Thread: one at a time. */
#ifndef SKERRY_BASE_RECORD_H
#define SKERRY_BASE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define RECORD_HEADER_BYTES 4u
/* Of DATA. */
#define RECORD_BYTES_MAX 65536u
/* Of HEAD and RESET, which are gathered when they come in parts. */
#define RECORD_BLOCK_BYTES_MAX 2048u

/* On the wire, so numbers stay. 3 and 4 were never used by a release. */
enum record_kind {
    RECORD_HEAD = 1,
    RECORD_DATA = 2,
    RECORD_END = 5,
    RECORD_RESET = 6,
};

/* What becomes of the code's connection; the answering side says CLOSE, or HALF. */
enum record_end {
    RECORD_END_CLOSE = 1, /* it must be closed, or was */
    RECORD_END_KEEP,      /* its answer was whole: it may carry the next request */
    RECORD_END_HALF,      /* no more comes from this side, but it goes on reading: a tunnel */
};
#define RECORD_END_LAST RECORD_END_HALF

/* Why a join broke off; on the wire, so numbers stay. */
enum record_reset {
    RECORD_RESET_CANCELED = 1, /* the joiner left */
    RECORD_RESET_BROKEN,       /* the code's connection broke */
    RECORD_RESET_TIMEOUT,
    RECORD_RESET_PROTOCOL, /* this side could not understand the other */
    RECORD_RESET_LIMIT,
    RECORD_RESET_INTERNAL,
};
#define RECORD_RESET_LAST RECORD_RESET_INTERNAL
const char *record_reset_name(enum record_reset code);

/* The 4 bytes before `size` bytes of payload of HEAD or DATA. Within the bounds above. */
void record_header(uint8_t out[RECORD_HEADER_BYTES], enum record_kind kind, size_t size);
#define RECORD_END_BYTES (RECORD_HEADER_BYTES + 1u)
void record_end(uint8_t out[RECORD_END_BYTES], enum record_end how);
/* Before `why_size` bytes that say more, at most RECORD_BLOCK_BYTES_MAX - 4; may be none. */
#define RECORD_RESET_BYTES (RECORD_HEADER_BYTES + 4u)
void record_reset(uint8_t out[RECORD_RESET_BYTES], enum record_reset code, size_t why_size);

/* --- reading ------------------------------------------------------------------------------------ */

enum record_phase { RECORD_BEFORE_HEAD, RECORD_BODY, RECORD_AFTER_RESET };

struct record_decoder {
    enum record_phase phase;
    uint8_t header[RECORD_HEADER_BYTES];
    size_t header_length;
    uint32_t remaining; /* of the record whose header was read */
    char *block;        /* a HEAD, END or RESET that came in parts */
    size_t block_length, block_size;
};

struct record {
    enum record_kind kind;
    /* In the bytes that were read, or in the decoder; valid until the next call for it. Of RESET: what
     * says more. */
    const char *data;
    size_t size;
    enum record_end end;     /* END */
    enum record_reset reset; /* RESET */
};

void record_decoder_init(struct record_decoder *d);
void record_decoder_free(struct record_decoder *d);
/* Takes bytes from the front of `bytes`; *taken says how many. 1: *out is the next thing, call again
 * with the rest; DATA comes as it arrives, also in parts of a record (never empty), all others
 * whole. 0: all was taken, bring more. Negative: the other side broke the protocol, or no memory;
 * the stream must be closed. */
int record_decode(struct record_decoder *d, struct record *out, const char *bytes, size_t length,
                  size_t *taken, struct err *e) ERR_CHECKED;
/* Between joins: the stream may end here, or go back to its pool. */
bool record_decoder_idle(const struct record_decoder *d);

#endif
