/* raft/snapshot.h - the registry's whole state as bytes.
 *
 *     8 bytes   "SKERRYRS"
 *     4 bytes   format, little endian: SNAPSHOT_FORMAT
 *     4 bytes   zeros
 *     the rest  one lz4 frame with a checksum of its content: a stream of records, each 4 bytes of
 *               length, little endian, and a Record (raft/registry.proto)
 *
 * Thread: any, for encoding (the content belongs to a root that is held) and for decoding (the maps
 * are new). */
#ifndef SKERRY_RAFT_SNAPSHOT_H
#define SKERRY_RAFT_SNAPSHOT_H

#include <stddef.h>

#include "base/buffer.h"
#include "raft/state.h"

#define SNAPSHOT_FORMAT 1u
#define SNAPSHOT_MAGIC "SKERRYRS"
#define SNAPSHOT_HEADER_BYTES 16
#define SNAPSHOT_STAGE_BYTES                                                                       \
    (64u * 1024u) /* of raw content, handed to lz4 and taken from it at once */
/* A version's JSON and little else. */
#define SNAPSHOT_RECORD_BYTES_MAX COMMAND_BYTES_MAX
/* Compressed. A million instances take some 150 MB. */
#define SNAPSHOT_BYTES_MAX ((size_t)4 * 1024 * 1024 * 1024)

/* Appends to `out`. */
int snapshot_encode(const struct state_content *content, struct buffer *out,
                    struct err *e) ERR_CHECKED;
/* *out is the caller's to release or hand to state_restore; nothing on failure. */
int snapshot_decode(struct state_content *out, const void *data, size_t length,
                    struct err *e) ERR_CHECKED;

#endif
