/* node/cli/upload.h - folders and archives on their way to the node. */
#ifndef SKERRY_NODE_CLI_UPLOAD_H
#define SKERRY_NODE_CLI_UPLOAD_H

#include "node/cli/cli.h"
#include "node/cli/pack.h"

/* Packs what is at `local` and POSTs it; the answer's JSON in *out. `bar`: a progress bar on stderr,
 * if that is a terminal. */
int cli_upload(struct cli *c, const char *path, const char *local, enum pack_kind kind, bool bar,
               json_t **out);
/* Sends source along: its digest, "sha256:<hex>". */
int cli_upload_source(struct cli *c, const char *local, char *out_digest, size_t size);

#endif
