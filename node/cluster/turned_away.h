/* node/cluster/turned_away.h - open streams of other nodes that nobody here takes: a part of this node is not
 * open yet, or not any more.
 *
 * Such a stream is ended, and closed when the other side has hung up. Closing it at once would answer a
 * question that is on its way with a reset, and who asked could not tell whether it was read.
 *
 * Thread: the control loop. Memory: bounded by TURNED_AWAY_MAX streams for TURNED_AWAY_MS each; what is
 * beyond that is closed at once. */
#ifndef SKERRY_NODE_CLUSTER_TURNED_AWAY_H
#define SKERRY_NODE_CLUSTER_TURNED_AWAY_H

#include <uv.h>

#include "base/secure_stream.h"

enum { TURNED_AWAY_MAX = 256, TURNED_AWAY_MS = 300 };

struct turned_away_list {
    uv_loop_t *loop;
    void (*gone)(void *user); /* after each */
    void *user;
    unsigned count;
};

/* Takes the stream. */
void turned_away_add(struct turned_away_list *list, struct secure_stream *s);

#endif
