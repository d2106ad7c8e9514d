/* raft/roles.h - who votes, who stands by: a pure function from what is to the next single change.
 *
 * - The number of voters is odd, as large as there are nodes, and at most what is wanted: two nodes are one
 *   voter and one standby, four are three and one.
 * - Voters spread over zones: where a change makes zones more even, it is made.
 * - A voter that is dead is replaced by a standby that is alive; without one a spare stands by first, and
 *   without that it stays. A node that comes back stands by, if there is room, or is a spare.
 * - Spares are no members of raft: they read through a neighbour (raft/spare.h), and there may be as many as
 *   the registry has nodes. One that is to stand by is a member without a role for a moment.
 * - A node that was removed leaves. A leader hands over before it is to leave.
 * - No change leaves half or more of the voters dead, and a node becomes voter only when its log is close
 *   to the leader's.
 * - One change at a time, and none for what has not lasted: ROLES_ALIVE_MS, ROLES_DEAD_MS. After a change
 *   it does not want the opposite.
 *
 * Thread: any. Time: milliseconds, handed in. */
#ifndef SKERRY_RAFT_ROLES_H
#define SKERRY_RAFT_ROLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/id.h"
#include "raft/registry.h"

#define ROLES_ALIVE_MS 1000u /* before a node becomes voter */
#define ROLES_DEAD_MS 3000u  /* before another takes a node's place */
/* Entries by which a node may be behind that becomes voter: libraft sends them in one round. */
#define ROLES_BEHIND_MAX 1000u

/* A node, in raft's configuration or not. */
struct roles_node {
    node_id id;
    enum registry_role role; /* NONE: not in the configuration */
    bool removed;            /* from the registry */
    bool known;              /* somebody told whether it is alive */
    bool alive;
    uint64_t since_ms; /* it is so since then */
    bool synced;       /* it has nearly all of the log */
    char zone[64];
};

struct roles_view {
    node_id self; /* the leader; it counts as alive and synced */
    const struct roles_node *nodes;
    size_t count;
    struct registry_roles_wanted wanted;
    uint64_t now_ms;
};

enum roles_verb { ROLES_NOTHING, ROLES_ADD, ROLES_ASSIGN, ROLES_REMOVE, ROLES_TRANSFER };

struct roles_change {
    enum roles_verb verb;
    node_id id;
    enum registry_role role; /* ASSIGN */
};

struct roles_change roles_next(const struct roles_view *v);

#endif
