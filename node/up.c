/* skerry up and down: a cluster on this machine for one command. */
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/address.h"
#include "base/fields.h"
#include "base/memory.h"
#include "node/cli.h"
#include "node/config.h"
#include "node/up_node.h"

enum {
    READY_MS = 15000,
    LOG_LINES = 15,
    DRAIN_MS = 30000,
    END_MS = 10000, /* of a daemon that was told to end at once */
};

static int check_root(const struct cli *c)
{
    if (geteuid() == 0)
        return CLI_DONE;
    cli_say(
        "%s needs root: sandboxes get user ids, control groups and networks of their own, and the "
        "part that makes them runs as root. The part that serves the network does not.",
        c->command->name);
    return CLI_REFUSED;
}

/* --- down ------------------------------------------------------------------------------------- */

static bool end_serve(const struct up_node *n, unsigned drain_ms)
{
    if (up_node_pid(n, UP_SERVE) == 0)
        return true;
    printf("%s: waiting for joins to finish, at most %u s\n", n->directory, drain_ms / 1000);
    (void)fflush(stdout);
    return up_node_end(n, UP_SERVE, SIGTERM, drain_ms) ||
           up_node_end(n, UP_SERVE, SIGTERM, END_MS) || up_node_end(n, UP_SERVE, SIGKILL, END_MS);
}

static int end_runner(struct up_node *n, struct err *e)
{
    unsigned ended = 0;
    pid_t pid;
    int rc = 0;
    /* A runner that was killed has left its instances to their agents: another takes them up. */
    if (up_node_pid(n, UP_RUNNER) == 0)
        rc = up_node_start(n, UP_RUNNER, &pid, e);
    if (rc == 0)
        rc = up_instances_end(n, DRAIN_MS, &ended, e);
    if (rc == 0 && ended > 0)
        printf("%s: ended %u instance%s\n", n->directory, ended, ended == 1 ? "" : "s");
    if (!up_node_end(n, UP_RUNNER, SIGTERM, END_MS) &&
        !up_node_end(n, UP_RUNNER, SIGKILL, END_MS) && rc == 0)
        rc = err_set(e, ERR_TIMEOUT, "the runner does not end");
    return rc;
}

static void remove_leavings(const struct up_node *n)
{
    static const char *const names[] = {"serve.pid", "runner.pid"};
    up_node_unlink(n);
    (void)unlink(n->api_socket);
    (void)unlink(n->runner_socket);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char path[UP_PATH_SIZE];
        up_node_path(n, names[i], path);
        (void)unlink(path);
    }
}

static int bring_down(struct up_node *n, unsigned drain_ms)
{
    struct err e = {0};
    int code = CLI_DONE;
    if (!end_serve(n, drain_ms)) {
        cli_say("serve does not end");
        code = CLI_FAILED;
    }
    if (end_runner(n, &e) != 0) {
        cli_say("%s", e.msg);
        up_node_show_log(n, UP_RUNNER, LOG_LINES);
        code = CLI_FAILED;
    }
    remove_leavings(n);
    return code;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(path);
}

static int down(struct cli *c)
{
    struct up_node n;
    struct err e = {0};
    uint64_t drain_ms = DRAIN_MS;
    const char *drain = cli_value(c, "timeout");
    int code = check_root(c);
    if (code != CLI_DONE)
        return code;
    if (drain != NULL &&
        (duration_parse(&drain_ms, drain, false, &e) != 0 || drain_ms > 24 * 3600 * 1000ull))
        return cli_usage(c, "--timeout: a duration up to 24h");
    if (up_node_init(&n, cli_value(c, "dir"), 1, &e) != 0)
        return cli_fail(c, &e);
    n.embedded = c->embedded;
    if (access(n.directory, F_OK) < 0) {
        printf("nothing is there: %s\n", n.directory);
        return CLI_DONE;
    }
    char config[UP_PATH_SIZE];
    up_node_path(&n, "skerry.yaml", config);
    if (access(config, F_OK) == 0 && up_node_load(&n, &e) != 0)
        return cli_fail(c, &e);
    if (access(config, F_OK) == 0)
        code = bring_down(&n, (unsigned)drain_ms);
    if (code != CLI_DONE)
        return code;
    if (!cli_has(c, "delete")) {
        printf("down; the data is kept in %s (skerry down --delete removes it)\n", n.directory);
        return CLI_DONE;
    }
    if (nftw(n.directory, remove_entry, 32, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) != 0) {
        cli_say("remove %s: %s", n.directory, strerror(errno));
        return CLI_FAILED;
    }
    printf("down; %s is removed\n", n.directory);
    return CLI_DONE;
}

static const struct cli_option down_options[] = {
    {0, "dir", "DIR", "as given to up"},
    {0, "timeout", "T", "how long joins may take to finish (default 30s)"},
    {0, "delete", NULL, "remove the data too"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_down_command = {
    .name = "down",
    .arguments = "[--dir DIR]",
    .summary = "stop what `skerry up` started, and all its instances",
    .text = "Joins may finish first. No process, control group or mount is left; the data is kept.",
    .options = down_options,
    .run = down,
};

/* --- up --------------------------------------------------------------------------------------- */

/* Starts what does not run; *started says whether anything was, *fresh whether nothing ran. */
static int start_missing(struct up_node *n, bool *started, bool *fresh, struct err *e)
{
    static const enum up_daemon order[] = {UP_RUNNER, UP_SERVE};
    static const char *const names[] = {[UP_SERVE] = "serve", [UP_RUNNER] = "runner"};
    bool one_runs = up_node_pid(n, UP_RUNNER) != 0 || up_node_pid(n, UP_SERVE) != 0;
    *started = false;
    *fresh = !one_runs;
    for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
        pid_t pid = 0;
        if (up_node_pid(n, order[i]) != 0)
            continue;
        int rc = up_node_start(n, order[i], &pid, e);
        if (rc != 0)
            return rc;
        if (one_runs)
            printf("%s was missing: started it again\n", names[order[i]]);
        *started = true;
    }
    return 0;
}

/* The gateway's and the API's address, as the configuration and the flags say. */
static void read_addresses(const struct up_node *n, char http[ADDRESS_TEXT_SIZE],
                           char api[ADDRESS_TEXT_SIZE])
{
    char path[UP_PATH_SIZE];
    struct config config;
    up_node_path(n, "skerry.yaml", path);
    (void)text_copy(http, ADDRESS_TEXT_SIZE, n->http != NULL ? n->http : "");
    (void)text_copy(api, ADDRESS_TEXT_SIZE, n->api != NULL ? n->api : "");
    if (config_load(&config, path, NULL) != 0)
        return;
    if (n->http == NULL && config.http.count > 0)
        (void)text_copy(http, ADDRESS_TEXT_SIZE, config.http.items[0]);
    if (n->api == NULL)
        (void)text_copy(api, ADDRESS_TEXT_SIZE, config.api);
    config_free(&config);
}

static void tell(const struct up_node *n, bool started, bool fresh, bool linked, bool detach,
                 const char *dir)
{
    char http[ADDRESS_TEXT_SIZE], api[ADDRESS_TEXT_SIZE];
    read_addresses(n, http, api);
    const char *port = strrchr(http, ':');
    printf("%s  %s\n", strrchr(n->directory, '/') + 1, started ? "is up" : "was up already");
    printf("  joins   http://%s/w/WORKLOAD/   http://WORKLOAD.localhost%s/\n", http,
           port == NULL ? "" : port);
    printf("  API     http://%s (with a token), unix:%s (root)\n", api, n->api_socket);
    printf("  data    %s\n\n", n->directory);
    printf("export SKERRY_ADDR=unix:%s%s\n\n", n->api_socket,
           linked ? "   # not needed: " UP_LINK " is this node" : "");
    if (fresh)
        printf("  skerry deploy deploy/examples/hello.yaml\n"
               "  curl -si http://%s/w/hello/\n",
               http);
    if (detach)
        printf("  skerry down%s%s\n", dir != NULL ? " --dir " : "", dir != NULL ? dir : "");
    else
        printf("\nCtrl-C brings it down.\n");
    (void)fflush(stdout);
}

static sigset_t end_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    return set;
}

/* In the foreground: until a signal (they are blocked since before the start), or until a daemon is
 * gone. */
static int stay(struct up_node *n)
{
    sigset_t set = end_signals();
    CLEANUP_FD int signals = signalfd(-1, &set, SFD_CLOEXEC);
    CLEANUP_FD int serve = (int)syscall(SYS_pidfd_open, up_node_pid(n, UP_SERVE), 0);
    CLEANUP_FD int runner = (int)syscall(SYS_pidfd_open, up_node_pid(n, UP_RUNNER), 0);
    struct pollfd p[3] = {{.fd = signals, .events = POLLIN},
                          {.fd = serve, .events = POLLIN},
                          {.fd = runner, .events = POLLIN}};
    int code = CLI_DONE;
    while (poll(p, 3, -1) < 0 && errno == EINTR)
        ;
    if (p[0].revents == 0) {
        bool was_serve = p[1].revents != 0;
        cli_say("%s has ended; bringing the rest down", was_serve ? "serve" : "runner");
        up_node_show_log(n, was_serve ? UP_SERVE : UP_RUNNER, LOG_LINES);
        code = CLI_FAILED;
    } else {
        struct signalfd_siginfo taken;
        if (read(signals, &taken, sizeof taken) > 0)
            printf("\n");
    }
    /* A second Ctrl-C is not waited for: it ends this process as usual. */
    (void)sigprocmask(SIG_UNBLOCK, &set, NULL);
    int ended = bring_down(n, DRAIN_MS);
    return code != CLI_DONE ? code : ended;
}

static int start_and_wait(struct up_node *n, bool *started, bool *fresh, struct err *e)
{
    int rc = up_node_prepare(n, e);
    if (rc == 0)
        rc = up_node_load(n, e);
    if (rc == 0)
        rc = start_missing(n, started, fresh, e);
    if (rc != 0)
        return rc;
    rc = up_node_wait_ready(n, READY_MS, e);
    if (rc != 0) {
        up_node_show_log(n, UP_RUNNER, LOG_LINES);
        up_node_show_log(n, UP_SERVE, LOG_LINES);
    }
    return rc;
}

static int up(struct cli *c)
{
    struct up_node n;
    struct err e = {0};
    const char *nodes = cli_value(c, "nodes");
    if (nodes != NULL && strcmp(nodes, "1") != 0) {
        if (nodes[0] == '\0' || strspn(nodes, "0123456789") != strlen(nodes) || atoi(nodes) < 1)
            return cli_usage(c, "--nodes: %.20s is no number", nodes);
        cli_say("up --nodes %s: this version runs one node", nodes);
        return CLI_USAGE;
    }
    int code = check_root(c);
    if (code != CLI_DONE)
        return code;
    if (up_node_init(&n, cli_value(c, "dir"), 1, &e) != 0)
        return cli_fail(c, &e);
    n.embedded = c->embedded;
    n.http = cli_value(c, "http");
    n.api = cli_value(c, "api");
    bool started = false, fresh = false;
    bool detach = cli_has(c, "detach");
    /* A Ctrl-C that comes during the start must not leave half of it behind. */
    sigset_t set = end_signals();
    if (!detach && sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return CLI_FAILED;
    if (start_and_wait(&n, &started, &fresh, &e) != 0) {
        cli_say("%s", e.msg);
        if (fresh) /* else there may be instances of before, which nobody asked to end */
            (void)bring_down(&n, 0);
        return CLI_FAILED;
    }
    bool linked = up_node_link(&n);
    tell(&n, started, fresh, linked, detach, cli_value(c, "dir"));
    return detach ? CLI_DONE : stay(&n);
}

static const struct cli_option up_options[] = {
    {'d', "detach", NULL, "leave it running and return when it is ready"},
    {0, "dir", "DIR", "its data (default $XDG_STATE_HOME/skerry or /var/lib/skerry/up)"},
    {0, "nodes", "N", "1 in this version"},
    {0, "http", "ADDR", "of the gateway (default 127.0.0.1:8080)"},
    {0, "api", "ADDR", "of the API (default 127.0.0.1:8081)"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_up_command = {
    .name = "up",
    .arguments = "[--detach]",
    .summary = "a cluster on this machine",
    .text = "Starts a runner as root and a node as an unprivileged user, and waits until they are "
            "ready.\n"
            "Run again, it starts what is missing: instances have outlived it. The configuration "
            "is in\n"
            "DIR/node1 and yours to change.\n\n"
            "  skerry up --detach\n"
            "  skerry up --dir /tmp/try --http 127.0.0.1:9080 --api 127.0.0.1:9081",
    .options = up_options,
    .run = up,
};
