/* raft/recent.h - the commands that were applied last, for spares that missed a few of them.
 *
 * A ring, in the order of their indices; what entries that hold no command leave out is no gap. `after` is
 * the index behind which every command is still here.
 *
 * Thread: the loop's. Memory: copies; what recent_next returns is valid until the next change.
 * Bounds: entries and bytes, RECENT_ENTRIES_MAX and RECENT_BYTES_MAX unless told otherwise. */
#ifndef SKERRY_RAFT_RECENT_H
#define SKERRY_RAFT_RECENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* A spare whose stream broke is back within a second or two: some thousand commands of 200 bytes each. */
#define RECENT_ENTRIES_MAX 8192u
#define RECENT_BYTES_MAX ((size_t)8 * 1024 * 1024)

struct recent;

struct recent_entry {
    uint64_t index;
    const uint8_t *bytes;
    size_t length;
};

int recent_new(struct recent **out, struct err *e) ERR_CHECKED;
void recent_free(struct recent *r);

/* Drops the oldest until it keeps to them. */
void recent_bound(struct recent *r, size_t entries_max, size_t bytes_max);
/* All is forgotten: the state came whole, as it is at `index`. */
void recent_reset(struct recent *r, uint64_t index);
/* The next command. Without memory for it all is forgotten. `index` is above all before. */
void recent_push(struct recent *r, uint64_t index, const void *bytes, size_t length);

/* Whether all commands behind `index` are here. */
bool recent_covers(const struct recent *r, uint64_t index);
/* The first behind `index`; false: there is none. */
bool recent_next(const struct recent *r, uint64_t index, struct recent_entry *out);
size_t recent_count(const struct recent *r);
size_t recent_bytes(const struct recent *r);

#endif
