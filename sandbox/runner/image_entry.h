/* sandbox/runner/image_entry.h - what an archive may hold: checks of names, links and kinds, and
 * the reading of an archive into a sink.
 *
 * Pure but for the reads: nothing here touches a file system, so that it can be fuzzed. Hostile
 * input throughout; texts of errors hold names with what is not printable replaced. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_ENTRY_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_ENTRY_H

#include <archive.h>
#include <limits.h>
#include <sys/types.h>

#include "sandbox/runner/image.h"

/* Where entries go. Paths are normalized: relative, no empty, "." or ".." component. Every call
 * answers 0 or a negative code. `mode` holds permission bits only, setuid and setgid cleared. */
struct image_sink {
    void *user;
    int (*folder)(void *user, const char *path, mode_t mode, uid_t uid, gid_t gid, struct err *e);
    /* `changed_s`: seconds of the epoch; the same for all files of sources. */
    int (*file_begin)(void *user, const char *path, mode_t mode, uid_t uid, gid_t gid,
                      uint32_t changed_s, struct err *e);
    int (*file_data)(void *user, const void *data, size_t length, struct err *e);
    int (*file_end)(void *user, struct err *e);
    int (*link)(void *user, const char *path, const char *target, uid_t uid, gid_t gid,
                struct err *e);
    /* `out_bytes` is the size of the file that got a second name. */
    int (*hard_link)(void *user, const char *path, const char *existing, uint64_t *out_bytes,
                     struct err *e);
};

struct image_count {
    uint64_t bytes;
    uint64_t files;
};

/* A reader that takes tar, plain or as gzip, zstd or lz4, and nothing else; NULL without memory.
 * The caller opens it on its input and frees it with archive_read_free. */
struct archive *image_reader_new(void);

/* Reads the whole archive into the sink. */
int image_reader_run(struct archive *reader, enum image_kind kind,
                     const struct image_bounds *bounds, const struct image_sink *sink,
                     struct image_count *out, struct err *e) ERR_CHECKED;

/* Why the reader failed, for one that could not even be opened. */
int image_reader_refusal(struct archive *reader, const struct image_bounds *bounds, struct err *e);

/* Normalizes the name of an entry into `out`; "" is the root itself. Refuses absolute names, ".."
 * and what is too long or deeper than `depth_max`. */
int image_path_normalize(char out[PATH_MAX], const char *name, uint32_t depth_max,
                         struct err *e) ERR_CHECKED;
/* Whether the target of a symbolic link at (normalized) `path` stays in the tree. An absolute
 * target does: it is looked up below the image's own root. */
bool image_link_stays(const char *path, const char *target);
/* A copy of hostile text fit for a terminal and a log: printable ASCII stays, the rest becomes
 * '?', and what is too long ends in dots. */
const char *image_printable(char *out, size_t size, const char *text);

#endif
