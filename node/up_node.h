/* node/up_node.h - one node of `skerry up`: its folder, its two daemons, their ends.
 *
 *     DIR/node1/skerry.yaml, runner.yaml   written once, then the user's
 *     DIR/node1/serve.log, runner.log      what the daemons say
 *     DIR/node1/serve.pid, runner.pid
 *     DIR/node1/data                       of serve, 0700: the registry
 *     DIR/node1/run/api.sock               of serve
 *     DIR/node1/run/runner.sock            of the runner
 *     DIR/node1/runner                     of the runner: images, instances, logs
 *
 * A pid file alone is not believed: the process must also have been started with the node's own
 * configuration file. Thread: one; blocks. */
#ifndef SKERRY_NODE_UP_NODE_H
#define SKERRY_NODE_UP_NODE_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "node/cli.h"

/* Used when there is no user skerry: below the ranges of instances, which begin at 0x70000000. */
#define UP_UID_DEFAULT 1879000000u
#define UP_PATH_SIZE 512
#define UP_LINK CLIENT_ADDRESS_DEFAULT

enum up_daemon { UP_SERVE, UP_RUNNER };

struct up_node {
    char directory[UP_PATH_SIZE - 64]; /* DIR/node1 */
    uid_t uid;                         /* of serve */
    gid_t gid;
    const char *http, *api;                   /* NULL: as the configuration says */
    char api_socket[128], runner_socket[128]; /* as the configuration says */
    const struct cli_embedded *embedded;
};

/* DIR from --dir or the default, absolute; and who serve will be. */
int up_node_init(struct up_node *n, const char *dir, unsigned number, struct err *e) ERR_CHECKED;
void up_node_path(const struct up_node *n, const char *name, char out[UP_PATH_SIZE]);
/* What the node's own configuration file says; before it is there, nothing changes. */
int up_node_load(struct up_node *n, struct err *e) ERR_CHECKED;
/* Makes the folders and, where they are missing, the two configuration files. */
int up_node_prepare(const struct up_node *n, struct err *e) ERR_CHECKED;

/* The pid of a daemon that runs, or 0. */
pid_t up_node_pid(const struct up_node *n, enum up_daemon daemon);
int up_node_start(const struct up_node *n, enum up_daemon daemon, pid_t *out,
                  struct err *e) ERR_CHECKED;
/* Waits until /readyz says yes; fails as soon as a daemon has ended. */
int up_node_wait_ready(const struct up_node *n, unsigned timeout_ms, struct err *e) ERR_CHECKED;
/* The last lines of a daemon's log to stderr. */
void up_node_show_log(const struct up_node *n, enum up_daemon daemon, unsigned lines);
/* Sends `number` and waits up to `timeout_ms`; false: it still runs. */
bool up_node_end(const struct up_node *n, enum up_daemon daemon, int number, unsigned timeout_ms);

/* Points UP_LINK at this node's socket unless another live node has it; false: another has. */
bool up_node_link(const struct up_node *n);
void up_node_unlink(const struct up_node *n);

/* up_instances.c: stops all that the runner holds and waits for their ends. *out: how many. */
int up_instances_end(const struct up_node *n, unsigned timeout_ms, unsigned *out,
                     struct err *e) ERR_CHECKED;

#endif
