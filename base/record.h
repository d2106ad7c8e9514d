/* base/record.h - the records of a stream that carries forwarded joins, one join at a time.
 *
 *     u8 kind | u24 size, big-endian | size bytes
 *
 *     asking side:     HEAD DATA* [TRAILERS] END
 *     answering side:  INFO* HEAD DATA* [TRAILERS] END
 *     either, instead of anything:  RESET(code)
 *
 * After END another join may follow in that direction; after RESET nothing. The end of the stream is
 * clean before HEAD or INFO only (record_decoder_idle). What HEAD, INFO and TRAILERS hold is the
 * gateway's: a record here is bytes.
 *
 * Thread: one at a time. */
#ifndef SKERRY_BASE_RECORD_H
#define SKERRY_BASE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define RECORD_HEADER_BYTES 4u
/* Of any record. HEAD, INFO and TRAILERS are HTTP heads, which the gateway bounds more tightly. */
#define RECORD_BYTES_MAX 65536u
/* Of one answer; a proxy passes a few 100, 102 and 103. */
#define RECORD_INFOS_MAX 64u

enum record_kind {
    RECORD_HEAD = 1,
    RECORD_DATA,
    RECORD_INFO,
    RECORD_TRAILERS,
    RECORD_END,
    RECORD_RESET,
};

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

/* The 4 bytes before `size` bytes of payload; END has none. Both within the bounds above. */
void record_header(uint8_t out[RECORD_HEADER_BYTES], enum record_kind kind, size_t size);
#define RECORD_RESET_BYTES (RECORD_HEADER_BYTES + 4u)
void record_reset(uint8_t out[RECORD_RESET_BYTES], enum record_reset code);

/* --- reading ------------------------------------------------------------------------------------ */

enum record_phase { RECORD_BEFORE_HEAD, RECORD_BODY, RECORD_AFTER_TRAILERS, RECORD_AFTER_RESET };

struct record_decoder {
    enum record_phase phase;
    bool answers; /* this direction answers: INFO is allowed */
    unsigned infos;
    uint8_t header[RECORD_HEADER_BYTES];
    size_t header_length;
    uint32_t remaining; /* of the record whose header was read */
    char *block;        /* a HEAD, INFO, TRAILERS or RESET that came in parts */
    size_t block_length, block_size;
};

struct record {
    enum record_kind kind;
    /* In the bytes that were read, or in the decoder; valid until the next call for it. */
    const char *data;
    size_t size;
    enum record_reset reset; /* RESET */
};

void record_decoder_init(struct record_decoder *d, bool answers);
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
