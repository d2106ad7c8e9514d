/* node/layers/copies.h - whether a second node holds the layers of what was just declared.
 *
 * The others fetch what the registry names as soon as they hear of it (node/layers/layers.h); until one has, a node
 * that dies takes the only copy with it. So who declares is answered only then:
 *
 *   ask -> round: this node and some others say whether they hold it -> two do: answered
 *            ^                                                      \-> fewer: again, a little later
 *            '--------------------------------------------------------'   COPIES_WAIT_MS: answered, with
 *                                                                         where it is in `detail`
 *
 * Whoever is asked and lacks a layer fetches it from then on, and answers at once: no question waits with
 * another node.
 *
 * Thread: the control loop. Bounds: COPIES_WAITING_MAX; who comes above it is answered at once. */
#ifndef SKERRY_NODE_LAYERS_COPIES_H
#define SKERRY_NODE_LAYERS_COPIES_H

#include "base/err.h"

#define COPIES_WAIT_MS 10000u
#define COPIES_WAITING_MAX 256u

struct node;
struct node_ask;
struct peer_question;

int copies_open(struct node *n, struct err *e) ERR_CHECKED;
/* All who wait are answered, and nobody is asked any more. */
void copies_stop(struct node *n);
/* After layers and cluster were closed, which answer what is under way. */
void copies_close(struct node *n);

/* NODE_ASK_COPIES. */
void copies_ask(struct node *n, struct node_ask *ask);
/* CLUSTER_LAYERS, of another node. */
void copies_question(struct node *n, struct peer_question *q);

#endif
