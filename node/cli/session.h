/* node/cli/session.h - a command that runs elsewhere, at this terminal: skerry-exec/1 (the frames are
 * in docs/openapi.yaml).
 *
 *     stdin ->            frames 0, 1        stdout, stderr <- frames 2, 3
 *     window size, signals -> 4, 5           the end <- 6, or a problem <- 7 */
#ifndef SKERRY_NODE_CLI_SESSION_H
#define SKERRY_NODE_CLI_SESSION_H

#include "node/cli/cli.h"

/* POSTs `spec` (taken) to `path` and passes everything through until the command has ended. `tty`:
 * the terminal is raw meanwhile and restored on every way out. Gives the exit code of the process. */
int cli_session(struct cli *c, const char *path, json_t *spec, bool tty);

/* "tty", "rows" and "columns" of the terminal into `spec`; false if stdin is no terminal. */
bool cli_session_terminal(json_t *spec);

#endif
