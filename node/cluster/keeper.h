/* node/cluster/keeper.h - keeps a small file as its owner last said, without waiting for the disk.
 *
 * A thread of its own stores what was put last; what was put before and not begun yet is skipped. A
 * failure is told in the log, and the file stays as it was.
 *
 * Thread: one owner. Memory: takes the text, wipes and frees it. */
#ifndef SKERRY_NODE_CLUSTER_KEEPER_H
#define SKERRY_NODE_CLUSTER_KEEPER_H

#include "base/err.h"

struct keeper;
/* `directory` and `name` are copied. */
int keeper_open(struct keeper **out, const char *directory, const char *name,
                struct err *e) ERR_CHECKED;
void keeper_put(struct keeper *k, char *text);
/* Blocks until what was put is stored. NULL is fine. */
void keeper_close(struct keeper *k);

#endif
