/* gateway/travel_block.h - what HEAD and RESET of a join stream (base/record.h) hold, on the wire.
 *
 *     ask:      u8 version | u8 mode | u8 flags | u8 hops | u64 workload version
 *               | text workload | text key | text instance | text request id | text asked by
 *               | text client [| u16 port, with its flag]
 *     granted:  u8 version | u8 1 | u8 start | u8 0 | text instance
 *               | u64 queue us | u64 reserve us | u64 sandbox us | u64 start us | u64 code us
 *               | u64 end of life, ms since 1970
 *     refused:  u8 version | u8 2 | u8 ran | u8 0 | u16 problem | u16 retry after
 *               | text instance | text reason | u16 size, detail
 *
 * Numbers are big-endian, `text` is u8 length and bytes. All of it is checked: lengths, values, and
 * that texts are what they should be, since who sends it may be another version, or worse.
 *
 * Thread: any; pure functions. */
#ifndef SKERRY_GATEWAY_TRAVEL_BLOCK_H
#define SKERRY_GATEWAY_TRAVEL_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gateway/gateway.h"

#define TRAVEL_VERSION 2u
/* The largest of the three: a refusal. */
#define TRAVEL_BLOCK_BYTES_MAX 1024u

enum travel_mode {
    TRAVEL_FORCED = 1, /* the instance that is named */
    TRAVEL_TRY,        /* a joinable one of the workload, only if there is room now */
    TRAVEL_START,      /* likewise; or wait for room, or start one */
    TRAVEL_KEYED,      /* the one that holds the key, or shall */
};

struct travel_ask {
    enum travel_mode mode;
    bool port_any;   /* `port` may be one on which the code listens for itself alone */
    uint16_t port;   /* FORCED: another than the workload's; 0: that one */
    bool idempotent; /* may be sent to the code twice, if the first connection fails in silence */
    bool raw;        /* no HTTP: either side may end before the other */
    unsigned hops;   /* 1: from the client's node to this one */
    uint64_t version;
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1]; /* FORCED: may be "" */
    char key[GATEWAY_KEY_LENGTH_MAX + 1];
    struct instance_id instance; /* FORCED; KEYED: may be ""; TRY: this one alone, or "" */
    char request_id[GATEWAY_REQUEST_ID_SIZE];
    char asked_by[64];
    char client[48];
};

struct travel_answer {
    bool granted;
    struct instance_id instance; /* refused: may be "" */
    /* granted */
    enum gateway_start start;
    struct gateway_timing timing;
    uint64_t code_us;      /* since the join was inside */
    uint64_t ends_wall_ms; /* of the instance, by life.max; UINT64_MAX: never */
    /* refused */
    enum problem problem;
    enum ran ran;
    unsigned retry_after_s;
    char reason[32];
    char detail[512];
};

/* Bytes written. */
size_t travel_ask_write(const struct travel_ask *ask, uint8_t out[TRAVEL_BLOCK_BYTES_MAX]);
bool travel_ask_read(struct travel_ask *out, const char *bytes, size_t size);
size_t travel_answer_write(const struct travel_answer *answer, uint8_t out[TRAVEL_BLOCK_BYTES_MAX]);
bool travel_answer_read(struct travel_answer *out, const char *bytes, size_t size);

#endif
