/* base/private_file.h - small files that nobody else may read, written whole or not at all.
 *
 * A name is relative to `folder`, a descriptor of the folder. What is stored is on disk when the call
 * returns 0. All block: for start-up, and for threads whose work it is.
 *
 * Thread: any. */
#ifndef SKERRY_BASE_PRIVATE_FILE_H
#define SKERRY_BASE_PRIVATE_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/* A descriptor of the folder, or a negative code. */
int private_folder_open(const char *directory, struct err *e) ERR_CHECKED;

/* The first `size` bytes of it at most. -ERR_NOT_FOUND when there is none; -ERR_DENIED unless it is a
 * plain file of ours that nobody else can read. */
int private_file_read(int folder, const char *name, char *out, size_t size, size_t *length,
                      struct err *e) ERR_CHECKED;
/* The whole of it and a NUL behind; the caller frees. -ERR_LIMIT when it has more than length_max
 * bytes, else as above. */
int private_file_load(int folder, const char *name, size_t length_max, char **out, size_t *length,
                      struct err *e) ERR_CHECKED;
/* Mode 0600. In place of what is there; or, without `replace`, only if nothing is there: of two that
 * do it at once, one stores its text, and both return 0. */
int private_file_store(int folder, const char *name, const char *text, size_t length, bool replace,
                       struct err *e) ERR_CHECKED;

#endif
