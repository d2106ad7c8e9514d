/* sandbox/runner/image_export.h - a layer on its way out, as a tar archive: the other direction of an
 * import.
 *
 * The archive depends on the layer's content alone (names in order, no times), so that every machine that
 * has the layer writes the same bytes: a transfer that broke goes on where it was, also from another
 * machine. It is written by a process of its own, executed anew from the runner's ELF, that reads the
 * tree in the sandbox of an import (image_sandbox.h), read-only. The runner's main must begin with
 *
 *     if (argc == 2 && strcmp(argv[1], IMAGE_EXPORT_ARGUMENT) == 0)
 *         return image_export_main();
 *
 * An archive that could not be written whole ends without the two zero blocks of a whole one.
 *
 * Thread: one. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_EXPORT_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_EXPORT_H

#include "sandbox/runner/image.h"

#define IMAGE_EXPORT_ARGUMENT "export-layer"
#define IMAGE_EXPORTS_MAX 4

struct image_export;

/* Holds the layer while it runs. `*out_read_fd` gives the archive from byte `skip` on; the caller hands
 * it to the node and closes its own copy. -ERR_NOT_FOUND for a layer that is not here, -ERR_LIMIT when
 * IMAGE_EXPORTS_MAX are running. */
int image_export_start(struct image_export **out, struct image_store *store, const char *digest,
                       enum image_kind kind, uint64_t skip, int *out_read_fd,
                       struct err *e) ERR_CHECKED;
/* Readable as soon as the process has ended; stays the export's. */
int image_export_fd(const struct image_export *x);
/* Reaps and frees it; kills it if it still runs. */
void image_export_end(struct image_export *x);

/* The process of an export; returns its exit status. Called by main only. */
int image_export_main(void);

#endif
