/* node/cli/untar.h - a tar stream that comes in pieces, unpacked below a folder.
 *
 * The stream comes from inside a sandbox and is hostile: every name is resolved beneath the folder
 * by the kernel, links are never followed out of it, devices are refused, setuid bits are dropped. */
#ifndef SKERRY_NODE_CLI_UNTAR_H
#define SKERRY_NODE_CLI_UNTAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct untar;
/* `folder` exists. `rename_to` not NULL: the first part of each name is replaced by it. */
int untar_new(struct untar **out, const char *folder, const char *rename_to,
              struct err *e) ERR_CHECKED;
int untar_take(struct untar *u, const void *data, size_t length, struct err *e) ERR_CHECKED;
/* An error unless the stream came to its end. */
int untar_end(struct untar *u, struct err *e) ERR_CHECKED;
/* NULL is fine. */
void untar_free(struct untar *u);
uint64_t untar_count(const struct untar *u); /* entries so far */

#endif
