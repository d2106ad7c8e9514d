/* node/errands/errands.h - commands and starts that another node does for this one, because this one is full, drains
 * or is not where the workload may be (node/control/places.h says which).
 *
 *     gateway, API --ask--> control ==question==> the chosen node: its control thread starts it
 *             ^                |                     |
 *             '-- pipes like those of a command ==stream (SECURE_ERRAND)== the command's pipes
 *                 that runs here, and its end
 *
 * Whoever asked sees no difference: it gets descriptors, and then the end. The chosen node decides: what it
 * refuses before anything ran goes on to the next one by node/control/places.h, at most ERRAND_REFUSALS_MAX
 * times; what arrives here from another node is started here or refused, never sent on. When the stream
 * breaks, the command ends with reason node_lost at the entry, and client_gone on its node.
 *
 * Threads: one of its own moves all bytes. errands_accept may be called on any thread, all others on the
 *          control loop. Bounds: ERRANDS_MAX, beyond it nothing is sent away, and what comes is dropped. */
#ifndef SKERRY_NODE_ERRANDS_ERRANDS_H
#define SKERRY_NODE_ERRANDS_ERRANDS_H

#include "base/err.h"
#include "base/id.h"
#include "base/secure_stream.h"
#include "node/node.h"

#define ERRANDS_MAX 1024u
#define ERRAND_REFUSALS_MAX 4u

int errands_open(struct node *n, struct err *e) ERR_CHECKED;
/* All are broken off and answered; `pump` lets the control loop go on meanwhile. Before gateway and API,
 * which wait for their answers. */
void errands_close(struct node *n, void (*pump)(void *user), void *user);
/* Under way here, for this node or for others. */
unsigned errands_count(const struct node *n);

/* An open SECURE_ERRAND stream of another node; taken in any case. */
void errands_accept(struct node *n, struct secure_parcel *parcel);

/* A gateway's command, and an ask of kind RUN or START, for `node`. They are answered, also after
 * refusals: then by another node or this one. */
void errands_command(struct node *n, struct gateway_ask *ask, node_id node);
void errands_ask(struct node *n, struct node_ask *ask, node_id node);
/* False: it is none of these. */
bool errands_cancel(struct node *n, const void *ask, enum end_reason reason);
bool errands_target(struct node *n, const struct node_ask *ask);
/* Gossip says something new: what is with a dead node is over. */
void errands_changed(struct node *n);
/* That node is a stranger now: likewise. */
void errands_forget(struct node *n, node_id id);

#endif
