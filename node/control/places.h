/* node/control/places.h - where a request goes that needs a start, or that cannot be served here.
 *
 *   its key is held          -> the holder's owner
 *   an instance here has room, or waits for some: here
 *   scale.max allows another -> a node by scheduler/placement.h: this one first, if it may
 *   scale.max is reached     -> an owner of the workload's instances, where it waits for room
 *
 * What gossip and this node's root say are hints: the node that is named decides, and a refusal leads back
 * here with its id in `refused`.
 *
 * Thread: the control loop. */
#ifndef SKERRY_NODE_CONTROL_PLACES_H
#define SKERRY_NODE_CONTROL_PLACES_H

#include "base/id.h"
#include "base/words.h"

struct instance;
struct node;
struct registry_workload;
struct workload;

struct places_want {
    const char *workload;
    const char *key; /* NULL or "": none */
    bool stays;      /* it can be served on this node only, or not at all */
    const node_id *refused;
    size_t refused_count;
};

enum places_verdict { PLACES_HERE, PLACES_THERE, PLACES_NOWHERE };
struct places_found {
    enum places_verdict verdict;
    node_id node;          /* THERE */
    struct instance_id id; /* THERE: of a key's holder; "" none */
    enum problem problem;  /* NOWHERE */
    uint64_t retry_after_ms;
    char detail[512];
};

/* Before the scheduler is asked. */
void places_find(struct node *n, const struct places_want *want, struct places_found *out);
/* Likewise, for what is to have an instance of its own. */
void places_start(struct node *n, const struct places_want *want, struct places_found *out);
/* Likewise, for a command that is no workload's. */
void places_run(struct node *n, const struct workload *spec, const struct places_want *want,
                struct places_found *out);
/* After it has refused: HERE means that the refusal stands. */
void places_after(struct node *n, const struct places_want *want, enum problem problem,
                  const struct instance *i, struct places_found *out);
/* Tells the scheduler what others have of it now. */
void places_tell(struct node *n, const char *workload);
/* Tells the scheduler what others have of the workloads that are waited for or kept ahead. Some times a
 * second. */
void places_tick(struct node *n);
/* Whether this node may not have an instance of it, wherever there is room. */
bool places_barred(struct node *n, const struct registry_workload *w);
/* How many of scale.idle_min other nodes keep. */
uint64_t places_idle_elsewhere(struct node *n, const struct registry_workload *w);

#endif
