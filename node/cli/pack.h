/* node/cli/pack.h - a folder or a file as a tar stream, for `source:` and `skerry image import`.
 *
 * The same content gives the same bytes: names in order, owner 0. Sources have no times, and their modes
 * normalized as the store does (folders 0755, files 0644 or 0755); images keep modes without setuid and
 * setgid, and the times of files. A file that is given as an image is an archive already and is streamed as it
 * is.
 *
 * pack_open walks the tree once without reading files, so that what cannot be packed is refused
 * before the first byte is sent, and the total is known for a progress bar.
 *
 * Thread: any one at a time. Blocks on the disk: not for a loop. */
#ifndef SKERRY_NODE_CLI_PACK_H
#define SKERRY_NODE_CLI_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum pack_kind { PACK_IMAGE, PACK_SOURCE };

struct pack_options {
    enum pack_kind kind;
    uint64_t bytes_max; /* of all files */
    uint64_t files_max;
};
/* The store's own defaults: 16 GiB and 1,000,000 files; 256 MiB and 100,000 for sources. */
struct pack_options pack_options_default(enum pack_kind kind);

struct pack_progress {
    uint64_t bytes; /* of files' content read so far; of the archive, if it is one */
    uint64_t bytes_total;
    uint64_t files;
    uint64_t files_total;
};

struct pack;
int pack_open(struct pack **out, const char *path, const struct pack_options *options,
              struct err *e) ERR_CHECKED;
/* Up to `size` (> 0) bytes of the stream; `*out_length` is 0 at its end. After an error there is
 * only pack_close. */
int pack_read(struct pack *pack, void *out, size_t size, size_t *out_length,
              struct err *e) ERR_CHECKED;
struct pack_progress pack_progress(const struct pack *pack);
/* NULL is fine. */
void pack_close(struct pack *pack);

/* Takes `length` bytes, all of them, or fails. */
typedef int (*pack_write_cb)(void *user, const void *data, size_t length,
                             const struct pack_progress *progress, struct err *e);
/* The whole stream into `write`, in blocks of at most 64 KiB. */
int pack_stream(const char *path, const struct pack_options *options, pack_write_cb write,
                void *user, struct err *e) ERR_CHECKED;

#endif
