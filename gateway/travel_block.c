#include "gateway/travel_block.h"

#include <string.h>

#include "base/bytes.h"
#include "base/memory.h"

/* The year 9999: beyond it RFC 3339 has no words. */
#define WALL_MS_MAX 253402300799999ull

enum {
    ANSWER_GRANTED = 1,
    ANSWER_REFUSED = 2,
    FLAG_IDEMPOTENT = 1,
    FLAG_PORT = 2,
    FLAG_PORT_ANY = 4,
    FLAG_RAW = 8,
    FLAGS_ALL = 15,
    RETRY_AFTER_MAX_S = 3600
};

_Static_assert(12 + 6 + WORKLOAD_NAME_LENGTH_MAX + GATEWAY_KEY_LENGTH_MAX + INSTANCE_ID_LENGTH_MAX +
                       GATEWAY_REQUEST_ID_SIZE + 64 + 48 + 2 <=
                   TRAVEL_BLOCK_BYTES_MAX,
               "a question fits");
_Static_assert(8 + 1 + INSTANCE_ID_LENGTH_MAX + 1 + 32 + 2 + 512 <= TRAVEL_BLOCK_BYTES_MAX,
               "an answer fits");

/* --- writing ------------------------------------------------------------------------------------ */

static uint8_t *put_number(uint8_t *p, uint64_t n, unsigned bytes)
{
    for (unsigned i = bytes; i > 0; i--, n >>= 8)
        p[i - 1] = (uint8_t)n;
    return p + bytes;
}

static uint8_t *put_bytes(uint8_t *p, const char *text, unsigned length_bytes)
{
    size_t length = strlen(text);
    p = put_number(p, length, length_bytes);
    memcpy(p, text, length);
    return p + length;
}

size_t travel_ask_write(const struct travel_ask *ask, uint8_t out[TRAVEL_BLOCK_BYTES_MAX])
{
    uint8_t *p = out;
    *p++ = TRAVEL_VERSION;
    *p++ = (uint8_t)ask->mode;
    *p++ = (uint8_t)((ask->idempotent ? FLAG_IDEMPOTENT : 0) | (ask->port != 0 ? FLAG_PORT : 0) |
                     (ask->port != 0 && ask->port_any ? FLAG_PORT_ANY : 0) |
                     (ask->raw ? FLAG_RAW : 0));
    *p++ = (uint8_t)ask->hops;
    p = put_number(p, ask->version, 8);
    p = put_bytes(p, ask->workload, 1);
    p = put_bytes(p, ask->key, 1);
    p = put_bytes(p, ask->instance.text, 1);
    p = put_bytes(p, ask->request_id, 1);
    p = put_bytes(p, ask->asked_by, 1);
    p = put_bytes(p, ask->client, 1);
    if (ask->port != 0)
        p = put_number(p, ask->port, 2);
    return (size_t)(p - out);
}

size_t travel_answer_write(const struct travel_answer *answer, uint8_t out[TRAVEL_BLOCK_BYTES_MAX])
{
    uint8_t *p = out;
    *p++ = TRAVEL_VERSION;
    *p++ = answer->granted ? ANSWER_GRANTED : ANSWER_REFUSED;
    *p++ = (uint8_t)(answer->granted ? (unsigned)answer->start : (unsigned)answer->ran);
    *p++ = 0;
    if (answer->granted) {
        p = put_bytes(p, answer->instance.text, 1);
        p = put_number(p, answer->timing.queue_us, 8);
        p = put_number(p, answer->timing.reserve_us, 8);
        p = put_number(p, answer->timing.sandbox_us, 8);
        p = put_number(p, answer->timing.code_us, 8);
        p = put_number(p, answer->code_us, 8);
        p = put_number(p, answer->ends_wall_ms, 8);
    } else {
        unsigned retry = answer->retry_after_s;
        p = put_number(p, (uint64_t)answer->problem, 2);
        p = put_number(p, retry < RETRY_AFTER_MAX_S ? retry : RETRY_AFTER_MAX_S, 2);
        p = put_bytes(p, answer->instance.text, 1);
        p = put_bytes(p, answer->reason, 1);
        p = put_bytes(p, answer->detail, 2);
    }
    return (size_t)(p - out);
}

/* --- reading ------------------------------------------------------------------------------------ */

/* `good` turns false at the first thing that is wrong; what was read by then means nothing. */
struct reader {
    const uint8_t *at, *end;
    bool good;
};

static uint64_t number(struct reader *r, unsigned bytes)
{
    if (!r->good || (size_t)(r->end - r->at) < bytes) {
        r->good = false;
        return 0;
    }
    r->at += bytes;
    return bytes_get(r->at - bytes, bytes);
}

/* A text of at most size - 1 bytes without NUL. */
static size_t text(struct reader *r, unsigned length_bytes, char *out, size_t size)
{
    size_t length = (size_t)number(r, length_bytes);
    out[0] = '\0';
    if (!r->good || length >= size || length > (size_t)(r->end - r->at) ||
        memchr(r->at, '\0', length) != NULL) {
        r->good = false;
        return 0;
    }
    memcpy(out, r->at, length);
    out[length] = '\0';
    r->at += length;
    return length;
}

static void instance(struct reader *r, struct instance_id *out)
{
    char id[INSTANCE_ID_LENGTH_MAX + 1];
    size_t length = text(r, 1, id, sizeof id);
    out->text[0] = '\0';
    if (length > 0 && !instance_id_parse(out, id, length))
        r->good = false;
}

/* Goes to logs and to `skerry explain`. */
static void printable(struct reader *r, char *out, size_t size)
{
    size_t length = text(r, 1, out, size);
    for (size_t i = 0; i < length; i++)
        if (out[i] < ' ' || out[i] > '~')
            r->good = false;
}

static bool ask_makes_sense(const struct travel_ask *ask, bool with_port)
{
    size_t length = strlen(ask->workload);
    bool named = workload_name_valid(ask->workload, length);
    if ((length > 0 && !named) || with_port != (ask->port != 0) || (ask->port_any && !with_port) ||
        (with_port && ask->mode != TRAVEL_FORCED))
        return false;
    switch (ask->mode) {
    case TRAVEL_FORCED:
        return ask->instance.text[0] != '\0' && ask->key[0] == '\0';
    case TRAVEL_TRY:
        return named && ask->key[0] == '\0';
    case TRAVEL_START:
        return named && ask->instance.text[0] == '\0' && ask->key[0] == '\0';
    case TRAVEL_KEYED:
        return named && ask->key[0] != '\0';
    }
    return false;
}

bool travel_ask_read(struct travel_ask *out, const char *bytes, size_t size)
{
    const uint8_t *begin = (const uint8_t *)bytes;
    struct reader r = {begin, begin + size, true};
    *out = (struct travel_ask){0};
    uint64_t version = number(&r, 1);
    out->mode = (enum travel_mode)number(&r, 1);
    uint64_t flags = number(&r, 1);
    out->idempotent = (flags & FLAG_IDEMPOTENT) != 0;
    out->port_any = (flags & FLAG_PORT_ANY) != 0;
    out->raw = (flags & FLAG_RAW) != 0;
    out->hops = (unsigned)number(&r, 1);
    out->version = number(&r, 8);
    (void)text(&r, 1, out->workload, sizeof out->workload);
    (void)text(&r, 1, out->key, sizeof out->key);
    instance(&r, &out->instance);
    printable(&r, out->request_id, sizeof out->request_id);
    printable(&r, out->asked_by, sizeof out->asked_by);
    printable(&r, out->client, sizeof out->client);
    if ((flags & FLAG_PORT) != 0)
        out->port = (uint16_t)number(&r, 2);
    return r.good && r.at == r.end && version == TRAVEL_VERSION && flags <= FLAGS_ALL &&
           out->request_id[0] != '\0' && ask_makes_sense(out, (flags & FLAG_PORT) != 0);
}

bool travel_answer_read(struct travel_answer *out, const char *bytes, size_t size)
{
    const uint8_t *begin = (const uint8_t *)bytes;
    struct reader r = {begin, begin + size, true};
    *out = (struct travel_answer){0};
    uint64_t version = number(&r, 1);
    uint64_t kind = number(&r, 1);
    uint64_t word = number(&r, 1);
    uint64_t zero = number(&r, 1);
    out->granted = kind == ANSWER_GRANTED;
    if (out->granted) {
        out->start = (enum gateway_start)word;
        instance(&r, &out->instance);
        out->timing.queue_us = number(&r, 8);
        out->timing.reserve_us = number(&r, 8);
        out->timing.sandbox_us = number(&r, 8);
        out->timing.code_us = number(&r, 8);
        out->code_us = number(&r, 8);
        out->ends_wall_ms = number(&r, 8);
        r.good = r.good && word <= GATEWAY_START_JOIN && out->instance.text[0] != '\0' &&
                 (out->ends_wall_ms <= WALL_MS_MAX || out->ends_wall_ms == UINT64_MAX);
    } else {
        uint64_t problem = number(&r, 2);
        out->problem = (enum problem)problem;
        out->retry_after_s = (unsigned)number(&r, 2);
        out->ran = (enum ran)word;
        instance(&r, &out->instance);
        printable(&r, out->reason, sizeof out->reason);
        (void)text(&r, 2, out->detail, sizeof out->detail);
        r.good = r.good && kind == ANSWER_REFUSED && word <= RAN_YES && problem > PROBLEM_NONE &&
                 problem < PROBLEM_COUNT && out->retry_after_s <= RETRY_AFTER_MAX_S;
    }
    return r.good && r.at == r.end && version == TRAVEL_VERSION && zero == 0;
}
