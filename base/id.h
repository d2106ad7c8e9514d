/* base/id.h - ids of nodes and instances.
 *
 * A node id is a 64-bit counter of the registry, from 1, never used twice; 0 is "none".
 * An instance id is lower-case base32 (digits and letters without i, l, o, u), written as
 *     D RRRRRRRRRRRRRRRR N...
 * one of the digits 0-7, 16 characters of randomness (80 bits) and the owner's node id in base 32
 * without leading zeros. It starts with a digit, so it never collides with a workload name in a
 * host name, and any node routes it without a look-up. */
#ifndef SKERRY_BASE_ID_H
#define SKERRY_BASE_ID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t node_id;

#define INSTANCE_ID_RANDOM_LENGTH 17
#define INSTANCE_ID_LENGTH_MAX 30 /* 17 + ceil(64 / 5) */

struct instance_id {
    char text[INSTANCE_ID_LENGTH_MAX + 1];
};

/* `random` is 11 bytes from a cryptographic source. */
void instance_id_make(struct instance_id *out, node_id owner, const uint8_t random[11]);
/* Parses exactly `length` bytes; false unless they are one valid, canonical id. */
bool instance_id_parse(struct instance_id *out, const char *text, size_t length);
node_id instance_id_owner(const struct instance_id *id);
/* True if `text` could be the beginning of an instance id (used for shortened ids). */
bool instance_id_prefix_valid(const char *text, size_t length);

/* ^[a-z][a-z0-9-]{0,61}[a-z0-9]$: two to 63 characters, a host name label. */
#define WORKLOAD_NAME_LENGTH_MAX 63
bool workload_name_valid(const char *text, size_t length);

#endif
