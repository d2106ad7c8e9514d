/* node/up/cluster.h - the nodes of one `skerry up` folder, as a cluster.
 *
 *     no node of DIR is a member yet:  node 1 makes the cluster (--bootstrap)
 *     some are:                        they are started; together they have their quorum
 *     each node that is none:          gets a join token of a member, in a file that only serve's user
 *                                      can read, and joins through that member
 *
 * So the same command makes a cluster, starts it again, starts what is missing of it, and adds nodes.
 *
 * Thread: one; blocks. */
#ifndef SKERRY_NODE_UP_CLUSTER_H
#define SKERRY_NODE_UP_CLUSTER_H

#include <stdbool.h>

#include "base/err.h"
#include "node/up/node.h"

struct up_member {
    struct up_node node;
    bool made;    /* its configuration was written just now */
    bool idle;    /* nothing of it ran when we came */
    bool member;  /* it belongs to a cluster */
    bool started; /* one of its daemons was started just now */
};

struct up_cluster {
    struct up_member members[UP_NODES_MAX];
    unsigned count;
    bool fresh;             /* there was no cluster */
    struct up_member *last; /* of an error: whose log may tell why, or NULL */
};

struct up_options {
    const char *dir;        /* --dir or NULL */
    unsigned nodes;         /* at least so many; 0: those that are there, at least one */
    const char *address;    /* of node 1, when it is made; NULL: the default */
    const char *http, *api; /* of node 1; NULL: as its configuration says */
    const struct cli_embedded *embedded;
};

/* Which nodes there are; makes nothing. With `nodes` 0 and no folder, one that is still to be made. */
int up_cluster_find(struct up_cluster *c, const struct up_options *options,
                    struct err *e) ERR_CHECKED;
/* Starts what does not run, lets the new ones join, and waits until all are ready and roles have settled.
 * Tells each step on stdout. */
int up_cluster_start(struct up_cluster *c, struct err *e) ERR_CHECKED;
/* Ends all: joins may finish within drain_ms, then the instances. `idle_only`: only nodes of which
 * nothing ran before. An exit code of node/cli/cli.h. */
int up_cluster_end(struct up_cluster *c, unsigned drain_ms, bool idle_only);

#define UP_LOG_LINES 15

#endif
