#include "base/record.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define RESET_SIZE 4u

_Static_assert(RECORD_BYTES_MAX < 1u << 24, "three bytes");

/* --- writing ------------------------------------------------------------------------------------ */

static void put_header(uint8_t *out, enum record_kind kind, size_t size)
{
    out[0] = (uint8_t)kind;
    out[1] = (uint8_t)(size >> 16);
    out[2] = (uint8_t)(size >> 8);
    out[3] = (uint8_t)size;
}

void record_header(uint8_t out[RECORD_HEADER_BYTES], enum record_kind kind, size_t size)
{
    assert_always(kind == RECORD_HEAD || kind == RECORD_DATA);
    assert_always(size >= 1 &&
                  size <= (kind == RECORD_DATA ? RECORD_BYTES_MAX : RECORD_BLOCK_BYTES_MAX));
    put_header(out, kind, size);
}

void record_end(uint8_t out[RECORD_END_BYTES], enum record_end how)
{
    put_header(out, RECORD_END, 1);
    out[RECORD_HEADER_BYTES] = (uint8_t)how;
}

void record_reset(uint8_t out[RECORD_RESET_BYTES], enum record_reset code, size_t why_size)
{
    assert_always(why_size <= RECORD_BLOCK_BYTES_MAX - RESET_SIZE);
    put_header(out, RECORD_RESET, RESET_SIZE + why_size);
    memset(out + RECORD_HEADER_BYTES, 0, RESET_SIZE - 1);
    out[RECORD_RESET_BYTES - 1] = (uint8_t)code;
}

const char *record_reset_name(enum record_reset code)
{
    static const char *const names[] = {"",         "canceled", "broken",  "timeout",
                                        "protocol", "limit",    "internal"};
    return code >= RECORD_RESET_CANCELED && code <= RECORD_RESET_LAST ? names[code] : "unknown";
}

/* --- reading ------------------------------------------------------------------------------------ */

void record_decoder_init(struct record_decoder *d)
{
    *d = (struct record_decoder){0};
}

void record_decoder_free(struct record_decoder *d)
{
    free(d->block);
    d->block = NULL;
}

bool record_decoder_idle(const struct record_decoder *d)
{
    return d->phase == RECORD_BEFORE_HEAD && d->header_length == 0;
}

/* May a record of this kind stand here? Moves on to where it leads. */
static bool step_phase(struct record_decoder *d, unsigned kind)
{
    switch (kind) {
    case RECORD_HEAD:
        if (d->phase != RECORD_BEFORE_HEAD)
            return false;
        d->phase = RECORD_BODY;
        return true;
    case RECORD_DATA:
        return d->phase == RECORD_BODY;
    case RECORD_END:
        if (d->phase != RECORD_BODY)
            return false;
        d->phase = RECORD_BEFORE_HEAD;
        return true;
    case RECORD_RESET:
        if (d->phase == RECORD_AFTER_RESET)
            return false;
        d->phase = RECORD_AFTER_RESET;
        return true;
    default:
        return false;
    }
}

/* What a record of this kind may measure. Nothing is empty: nobody needs it, and an endless row of
 * empty ones would be work for nothing. */
static bool size_valid(unsigned kind, uint32_t size)
{
    switch (kind) {
    case RECORD_END:
        return size == 1;
    case RECORD_RESET:
        return size >= RESET_SIZE && size <= RECORD_BLOCK_BYTES_MAX;
    case RECORD_HEAD:
        return size >= 1 && size <= RECORD_BLOCK_BYTES_MAX;
    default:
        return size >= 1 && size <= RECORD_BYTES_MAX;
    }
}

/* 1: the header is whole and good. */
static int take_header(struct record_decoder *d, const char *bytes, size_t length, size_t *taken,
                       struct err *e)
{
    size_t part = RECORD_HEADER_BYTES - d->header_length;
    if (part > length)
        part = length;
    memcpy(d->header + d->header_length, bytes, part);
    d->header_length += part;
    *taken += part;
    if (d->header_length < RECORD_HEADER_BYTES)
        return 0;
    unsigned kind = d->header[0];
    d->remaining = (uint32_t)d->header[1] << 16 | (uint32_t)d->header[2] << 8 | d->header[3];
    if (!size_valid(kind, d->remaining))
        return err_set(e, ERR_PROTOCOL, "join stream: record %u of %u bytes", kind, d->remaining);
    if (!step_phase(d, kind))
        return err_set(e, ERR_PROTOCOL, "join stream: record %u out of order", kind);
    return 1;
}

static bool block_append(struct record_decoder *d, const char *bytes, size_t length)
{
    size_t whole = d->block_length + d->remaining;
    if (whole > d->block_size) {
        char *larger = realloc(d->block, whole);
        if (larger == NULL)
            return false;
        d->block = larger;
        d->block_size = whole;
    }
    memcpy(d->block + d->block_length, bytes, length);
    d->block_length += length;
    d->remaining -= (uint32_t)length;
    return true;
}

/* A whole record: `out->data` is set. */
static int finish(struct record_decoder *d, struct record *out, struct err *e)
{
    const unsigned char *bytes = (const unsigned char *)out->data;
    d->header_length = 0;
    if (out->kind == RECORD_END) {
        if (bytes[0] < RECORD_END_CLOSE || bytes[0] > RECORD_END_LAST)
            return err_set(e, ERR_PROTOCOL, "join stream: unknown end %u", bytes[0]);
        out->end = (enum record_end)bytes[0];
    } else if (out->kind == RECORD_RESET) {
        if (bytes[0] != 0 || bytes[1] != 0 || bytes[2] != 0 || bytes[3] < RECORD_RESET_CANCELED ||
            bytes[3] > RECORD_RESET_LAST)
            return err_set(e, ERR_PROTOCOL, "join stream: unknown reset");
        out->reset = (enum record_reset)bytes[3];
        out->data += RESET_SIZE;
        out->size -= RESET_SIZE;
    }
    return 1;
}

/* Payload of anything but DATA: in place when it is there whole, else gathered. */
static int take_block(struct record_decoder *d, struct record *out, const char *bytes,
                      size_t length, size_t *taken, struct err *e)
{
    size_t part = d->remaining < length ? d->remaining : length;
    if (d->block_length == 0 && part == d->remaining) {
        out->data = bytes;
        out->size = part;
        d->remaining = 0;
        *taken += part;
        return finish(d, out, e);
    }
    if (part == 0)
        return 0;
    if (!block_append(d, bytes, part))
        return err_set(e, ERR_NO_MEMORY, "join stream: no memory");
    *taken += part;
    if (d->remaining > 0)
        return 0;
    out->data = d->block;
    out->size = d->block_length;
    d->block_length = 0;
    return finish(d, out, e);
}

int record_decode(struct record_decoder *d, struct record *out, const char *bytes, size_t length,
                  size_t *taken, struct err *e)
{
    *taken = 0;
    if (d->header_length < RECORD_HEADER_BYTES) {
        int rc = take_header(d, bytes, length, taken, e);
        if (rc <= 0)
            return rc;
    }
    bytes += *taken;
    length -= *taken;
    *out = (struct record){.kind = (enum record_kind)d->header[0]};
    if (out->kind != RECORD_DATA)
        return take_block(d, out, bytes, length, taken, e);
    size_t part = d->remaining < length ? d->remaining : length;
    if (part == 0)
        return 0;
    out->data = bytes;
    out->size = part;
    *taken += part;
    d->remaining -= (uint32_t)part;
    if (d->remaining == 0)
        d->header_length = 0;
    return 1;
}
