/* sandbox/runner/mount_lines.h - /proc/self/mountinfo, line by line; see proc(5). */
#ifndef SKERRY_SANDBOX_RUNNER_MOUNT_LINES_H
#define SKERRY_SANDBOX_RUNNER_MOUNT_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "base/err.h"

struct mount_line {
    char *point, *root, *type, *options; /* as written there: a space is \040 */
};

/* NULL: it cannot be read; fclose is the caller's. */
FILE *mount_lines_open(struct err *e);
/* False behind the last. *line, of *size bytes, is what `m` points into; the caller's to free. */
bool mount_lines_next(FILE *file, char **line, size_t *size, struct mount_line *m);

#endif
