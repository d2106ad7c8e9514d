/* node/up/node.h - one node of `skerry up`: its folder, its two daemons, their ends.
 *
 *     DIR/node1/skerry.yaml, runner.yaml   written once, then the user's
 *     DIR/node1/serve.log, runner.log      what the daemons say
 *     DIR/node1/serve.pid, runner.pid
 *     DIR/node1/data                       of serve, 0700: the registry
 *     DIR/node1/run/api.sock               of serve
 *     DIR/node1/run/runner.sock            of the runner
 *     DIR/node1/run/join.token             0600, while it joins
 *     DIR/node1/runner                     of the runner: images, instances, logs
 *
 * Root starts the runner as root and serve as another user; an ordinary user starts both as it is, in
 * folders that are closed to all others (sandbox/shared/userns.h: what such a runner is).
 *
 * A pid file alone is not believed: the process must also have been started with the node's own
 * configuration file. Thread: one; blocks. */
#ifndef SKERRY_NODE_UP_NODE_H
#define SKERRY_NODE_UP_NODE_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/address.h"
#include "base/err.h"
#include "node/cli/cli.h"

/* Used when there is no user skerry: below the ranges of instances, which begin at 0x70000000. */
#define UP_UID_DEFAULT 1879000000u
#define UP_PATH_SIZE 512
/* As many as there are ranges of user ids for them (node/up/config.c). */
#define UP_NODES_MAX 14
#define UP_ADDRESS_DEFAULT "127.0.0.1"

enum up_daemon { UP_SERVE, UP_RUNNER };
extern const char *const up_daemon_names[], *const up_config_names[];

struct up_node {
    unsigned number;                   /* from 1 */
    char directory[UP_PATH_SIZE - 64]; /* DIR/node1 */
    char address[ADDRESS_TEXT_SIZE];   /* of a node that is made; no port */
    bool root;                         /* we are; else all is ours, and we are an ordinary user */
    uid_t uid;                         /* of serve */
    gid_t gid;
    const char *http, *api; /* NULL: as the configuration says */
    /* As the configuration says: */
    char api_socket[128], runner_socket[128];
    char http_address[ADDRESS_TEXT_SIZE], api_address[ADDRESS_TEXT_SIZE];
    char peer_address[ADDRESS_TEXT_SIZE]; /* with the port */
    const struct cli_embedded *embedded;
};

/* DIR from --dir or the default, absolute; and who serve will be. */
int up_node_init(struct up_node *n, const char *dir, unsigned number, struct err *e) ERR_CHECKED;
const char *up_node_name(const struct up_node *n); /* "node1" */
void up_node_path(const struct up_node *n, const char *name, char out[UP_PATH_SIZE]);
/* Whether it was made before. */
bool up_node_exists(const struct up_node *n);
/* What the node's own configuration file says. */
int up_node_load(struct up_node *n, struct err *e) ERR_CHECKED;
/* Makes the folders and, where they are missing, the two configuration files. */
int up_node_prepare(const struct up_node *n, struct err *e) ERR_CHECKED;

/* The pid of a daemon that runs, or 0. */
pid_t up_node_pid(const struct up_node *n, enum up_daemon daemon);
/* `more`: further arguments of serve, ended by NULL, at most 4; or NULL. */
int up_node_start(const struct up_node *n, enum up_daemon daemon, const char *const *more,
                  struct err *e) ERR_CHECKED;
/* Waits until /readyz says yes; fails as soon as a daemon has ended, or when a signal waits for this
 * process. */
int up_node_wait_ready(const struct up_node *n, unsigned timeout_ms, struct err *e) ERR_CHECKED;
/* Whether SIGINT, SIGTERM or SIGHUP is blocked and waits. */
bool up_interrupted(void);
/* The last lines of a daemon's log to stderr. */
void up_node_show_log(const struct up_node *n, enum up_daemon daemon, unsigned lines);
void up_node_signal(const struct up_node *n, enum up_daemon daemon, int number);
/* Sends `number` (0: nothing) and waits up to `timeout_ms`; false: it still runs. */
bool up_node_end(const struct up_node *n, enum up_daemon daemon, int number, unsigned timeout_ms);
/* A call of its API over the unix socket; its JSON answer (NULL without one), the caller's reference. */
int up_node_call(const struct up_node *n, const char *method, const char *path, const char *body,
                 json_t **out, struct err *e) ERR_CHECKED;

/* Where commands without an address look: for root CLIENT_ADDRESS_DEFAULT, else as node/cli/home.h. */
bool up_node_link_path(const struct up_node *n, char out[UP_PATH_SIZE]);
/* Points that at this node's socket unless another live node has it; false: another has. */
bool up_node_link(const struct up_node *n);
void up_node_unlink(const struct up_node *n);

/* node/up/instances.c: stops all that the runner holds and waits for their ends. *out: how many. */
int up_instances_end(const struct up_node *n, unsigned timeout_ms, unsigned *out,
                     struct err *e) ERR_CHECKED;

/* node/up/group.c: a user who is alone in a control group of version 2 that it may divide (systemd-run
 * --user --scope -p Delegate=yes) goes aside in it, and with it what it starts: then the runner can give
 * instances groups. Nothing else is touched. */
void up_group_enter(void);

/* node/up/config.c */
/* A new file; one that is there stays as it is. */
int up_write_file(const char *path, const char *text, mode_t mode, struct err *e) ERR_CHECKED;
int up_write_configuration(const struct up_node *n, struct err *e) ERR_CHECKED;
/* With the folder goes what the machine keeps for it: its range of user ids. */
void up_forget_claims(const struct up_node *n);
/* The address of node `number` when node 1 has `first`; false: it is no private IPv4 address. */
bool up_address(char out[ADDRESS_TEXT_SIZE], const char *first, unsigned number);

#endif
