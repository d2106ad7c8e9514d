/* node/control/fences.h - what the lease of this node (node/control/leases.h) means for its instances: deadlines, ends,
 * draining, and whether anything may start.
 *
 * Thread: the control loop. */
#ifndef SKERRY_NODE_CONTROL_FENCES_H
#define SKERRY_NODE_CONTROL_FENCES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"
#include "base/words.h"

struct instance;
struct node;
struct peer_question;

/* After the registry was opened; n->cluster may come and go. */
int fences_open(struct node *n, struct err *e) ERR_CHECKED;
/* Before registry and cluster are closed, and after. */
void fences_stop(struct node *n);
void fences_close(struct node *n);

/* The registry, or the lease, changed. */
void fences_follow(struct node *n);
/* Leadership was gained or lost, or another leads. */
void fences_leader_changed(struct node *n);
/* Another node renews its lease. */
void fences_question(struct node *n, struct peer_question *q);

/* Before the code of an instance runs. False: it must not; problem and detail say why. */
bool fences_commit(struct instance *i);
/* Until when it may be joined, for its slot. */
uint64_t fences_deadline(const struct instance *i);
/* What the runner holds was adopted, or taken up again. */
void fences_adopted(struct node *n);

/* Why nothing may start here now; PROBLEM_NONE: it may. `out` says it to people. */
enum problem fences_hold(struct node *n, char *out, size_t size);
/* This node holds a lease and its registry shows it. */
bool fences_leased(const struct node *n);
/* The registry has no other node. */
bool fences_lone(const struct node *n);
/* What is left of the lease of a node, as far as this one knows: of its own, and of all while it leads. */
uint64_t fences_left_ms(const struct node *n, node_id id);

#endif
