/* sandbox/shared/tar.h - tar archives, block by block: ustar with pax and GNU long names read, ustar
 * with pax where a field does not fit written.
 *
 * Pure: no file is touched here. Archives are hostile; a reader holds at most one entry. */
#ifndef SKERRY_SANDBOX_SHARED_TAR_H
#define SKERRY_SANDBOX_SHARED_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define TAR_BLOCK_BYTES 512
#define TAR_PATH_SIZE 4096
/* What one extended header may hold; more is refused. */
#define TAR_EXTENDED_BYTES_MAX (64 * 1024)
/* A pax header, its two longest fields and numbers, and the entry's own header. */
#define TAR_ENCODED_BYTES_MAX (TAR_BLOCK_BYTES * 20)

enum tar_type {
    TAR_FILE,
    TAR_DIRECTORY,
    TAR_SYMLINK,
    TAR_HARDLINK,
    TAR_OTHER /* devices, fifos and what we do not know */
};

struct tar_entry {
    enum tar_type type;
    char path[TAR_PATH_SIZE];
    char link[TAR_PATH_SIZE];
    uint32_t mode; /* 07777 */
    uint64_t size; /* of the data that follows */
    int64_t mtime_s;
    uint32_t uid, gid; /* written, not read: whoever unpacks with tar_reader owns it; below 2^21 */
};

struct tar_reader {
    struct tar_entry entry; /* valid after TAR_STEP_ENTRY */
    struct tar_entry next;  /* what extended headers said of the next entry */
    bool has_path, has_link, has_size, has_mtime;
    uint8_t *extended; /* being collected */
    size_t extended_length, extended_size;
    char extended_kind; /* 'x', 'g', 'L' or 'K'; 0: none */
};

enum tar_step {
    TAR_STEP_MORE,  /* give the next block */
    TAR_STEP_ENTRY, /* `entry` is there; its data follow, padded to whole blocks */
    TAR_STEP_END
};

void tar_reader_init(struct tar_reader *r);
void tar_reader_free(struct tar_reader *r);
/* Takes one block. The blocks of an entry's data are the caller's, not given here. */
int tar_reader_block(struct tar_reader *r, const uint8_t block[TAR_BLOCK_BYTES],
                     enum tar_step *step, struct err *e) ERR_CHECKED;
/* The bytes that fill the data up to a whole block. */
size_t tar_padding(uint64_t size);
/* Makes `path` relative in place: "./a//b/" becomes "a/b", "." and "./" become "". False for an
 * absolute path and one with a ".." in it. */
bool tar_path_clean(char *path);

/* Writes the blocks before the entry's data to `out`; their length, or 0 for what has no place in
 * a tar archive. A directory's path gets its slash here. */
size_t tar_encode(const struct tar_entry *entry, uint8_t out[TAR_ENCODED_BYTES_MAX]);

#endif
