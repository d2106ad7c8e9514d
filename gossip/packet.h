/* gossip/packet.h - the bytes of gossip: packets and syncs, before they are sealed.
 *
 *     packet  kind 1, flags 1, sequence varint, target varint, items to the end
 *     sync    'S' 1, version 1, items to the end
 *     item    kind 1, length varint, body: unknown kinds are skipped, so that versions mix
 *
 * Integers are LEB128 varints, shortest form or not; texts are a length byte and bytes. Readers never
 * look behind their bytes, and take nothing that a writer of ours would not write.
 *
 * Thread: any. Memory: readers point into what they read. */
#ifndef SKERRY_GOSSIP_PACKET_H
#define SKERRY_GOSSIP_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gossip/gossip.h"

enum packet_kind { PACKET_PING = 1, PACKET_ASK, PACKET_ACK, PACKET_NACK, PACKET_GOSSIP };

#define PACKET_WANT_META 1 /* flag of PING: the answer shall bring the target's meta */

struct packet_head {
    enum packet_kind kind;
    uint8_t flags;
    uint32_t sequence; /* of PING and ASK; echoed by ACK and NACK; 0 in GOSSIP */
    node_id target;    /* of ASK: whom to ping for the sender; of its answers the same; else 0 */
};

enum packet_item_kind { PACKET_STATE = 1, PACKET_META, PACKET_LOAD };

struct packet_item {
    enum packet_item_kind kind;
    node_id id;    /* never 0 */
    uint64_t boot; /* never 0 */
    /* STATE */
    enum gossip_state state;
    uint32_t incarnation;
    struct address address;
    uint32_t by_count; /* of SUSPECT: who has evidence */
    node_id by[GOSSIP_CONFIRMATIONS_MAX + 1];
    /* META, LOAD: checked, so that decoding will not fail */
    uint32_t version; /* never 0 */
    const uint8_t *bytes;
    size_t size;
};

struct packet_writer {
    uint8_t *data;
    size_t size, length;
};
/* False: it does not fit; nothing was written. */
bool packet_write_head(struct packet_writer *w, const struct packet_head *head);
bool packet_write_sync_head(struct packet_writer *w);
bool packet_write_item(struct packet_writer *w, const struct packet_item *item);

struct packet_reader {
    const uint8_t *at, *end;
};
/* False: malformed. */
bool packet_read_head(struct packet_reader *r, struct packet_head *out);
bool packet_read_sync_head(struct packet_reader *r);
/* 1: an item, 0: the end, -1: malformed. */
int packet_read_item(struct packet_reader *r, struct packet_item *out);

/* The size, or 0 if it is not valid or too large. */
size_t packet_encode_meta(uint8_t out[GOSSIP_META_BYTES_MAX], const struct gossip_meta *meta);
bool packet_decode_meta(struct gossip_meta *out, const uint8_t *bytes, size_t size);
#define PACKET_LOAD_BYTES_MAX 200 /* 4 * 5 + 10 + 8 * (8 + 5 + 5) = 174 */
size_t packet_encode_load(uint8_t out[PACKET_LOAD_BYTES_MAX], const struct gossip_load *load);
bool packet_decode_load(struct gossip_load *out, const uint8_t *bytes, size_t size);

#endif
