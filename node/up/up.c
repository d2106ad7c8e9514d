/* skerry up: a cluster on this machine for one command. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/up/cluster.h"
#include "sandbox/shared/userns.h"

enum { DRAIN_MS = 30000, LOOK_MS = 500 };

/* As root, or as anybody whom the kernel lets make user namespaces. */
int cli_need_sandboxes(const struct cli *c)
{
    enum userns_ids ids;
    char lack[256];
    struct err e = {0};
    if (userns_is_machine() || userns_probe(&ids, lack, sizeof lack, &e) == 0)
        return CLI_DONE;
    cli_say("%s: %s", c->command->name, e.msg);
    return CLI_REFUSED;
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

static void show_log(const struct up_node *n, enum up_daemon daemon)
{
    (void)fflush(stdout);
    up_node_show_log(n, daemon, UP_LOG_LINES);
}

/* --- in the foreground ------------------------------------------------------------------------ */

/* A daemon that is looked after: `fd` is a pidfd, -1 while it does not run. */
struct watched {
    const struct up_node *node;
    enum up_daemon daemon;
    int fd;
};

static void watch(struct watched *w)
{
    pid_t pid = up_node_pid(w->node, w->daemon);
    w->fd = pid == 0 ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
}

static void tell_end(const struct watched *w)
{
    cli_say("%s: %s has ended; `skerry up` with the same --dir starts it again",
            up_node_name(w->node), up_daemon_names[w->daemon]);
    show_log(w->node, w->daemon);
}

/* True when a signal came. Tells who ended and who came back; *running counts those that serve. */
static bool look(int signals, struct watched *all, size_t count, unsigned *running)
{
    struct pollfd p[1 + 2 * UP_NODES_MAX] = {{.fd = signals, .events = POLLIN}};
    bool missing = false;
    for (size_t i = 0; i < count; i++) {
        p[1 + i] = (struct pollfd){.fd = all[i].fd, .events = POLLIN};
        missing = missing || all[i].fd < 0;
    }
    if (poll(p, 1 + count, missing ? LOOK_MS : -1) < 0)
        return errno != EINTR;
    if (p[0].revents != 0)
        return true;
    *running = 0;
    for (size_t i = 0; i < count; i++) {
        if (all[i].fd < 0) {
            watch(&all[i]);
            if (all[i].fd >= 0)
                printf("%-7s %s runs again\n", up_node_name(all[i].node),
                       up_daemon_names[all[i].daemon]);
        } else if (p[1 + i].revents != 0) {
            (void)waitpid(-1, NULL, WNOHANG);
            memory_close(&all[i].fd);
            tell_end(&all[i]);
        }
        *running += all[i].daemon == UP_SERVE && all[i].fd >= 0;
    }
    (void)fflush(stdout);
    return false;
}

/* Until a signal (they are blocked since before the start), or until nobody serves any more. With one
 * node that is as soon as one of its daemons has ended. */
static int stay(struct up_cluster *c)
{
    sigset_t set = end_signals();
    CLEANUP_FD int signals = signalfd(-1, &set, SFD_CLOEXEC);
    struct watched all[2 * UP_NODES_MAX];
    size_t count = 0;
    unsigned running = c->count;
    for (unsigned i = 0; i < c->count; i++) {
        all[count++] = (struct watched){.node = &c->members[i].node, .daemon = UP_RUNNER};
        all[count++] = (struct watched){.node = &c->members[i].node, .daemon = UP_SERVE};
    }
    for (size_t i = 0; i < count; i++) {
        watch(&all[i]);
        if (all[i].fd < 0) /* since it was ready */
            tell_end(&all[i]);
    }
    bool interrupted = false;
    bool over = false;
    while (!interrupted && !over) {
        interrupted = look(signals, all, count, &running);
        over = running == 0 || (c->count == 1 && (all[0].fd < 0 || all[1].fd < 0));
    }
    for (size_t i = 0; i < count; i++)
        memory_close(&all[i].fd);
    if (!interrupted)
        cli_say("nobody serves any more; bringing the rest down");
    struct signalfd_siginfo taken;
    if (interrupted && read(signals, &taken, sizeof taken) > 0)
        printf("\n");
    /* A second Ctrl-C is not waited for: it ends this process as usual. */
    (void)sigprocmask(SIG_UNBLOCK, &set, NULL);
    int ended = up_cluster_end(c, DRAIN_MS, false);
    return interrupted ? ended : CLI_FAILED;
}

/* --- up --------------------------------------------------------------------------------------- */

/* What a node without root goes without. */
static void tell_warnings(const struct up_node *n)
{
    json_t *status = NULL, *warning;
    size_t i;
    struct err e = {0};
    if (up_node_call(n, "GET", "/v1/status", NULL, &status, &e) != 0)
        return;
    json_array_foreach(json_object_get(status, "warnings"), i, warning)
        printf("! %s\n", json_string_value(warning));
    if (i > 0)
        putchar('\n');
    json_decref(status);
}

static void tell(const struct up_cluster *c, bool linked, bool detach, const char *dir)
{
    const struct up_node *first = &c->members[0].node;
    const char *port = strrchr(first->http_address, ':');
    char link[UP_PATH_SIZE];
    bool news = false;
    for (unsigned i = 0; i < c->count; i++)
        news = news || c->members[i].made;
    for (unsigned i = 0; news && i < c->count; i++) {
        const struct up_node *n = &c->members[i].node;
        printf("%s%-7s joins http://%s/w/WORKLOAD/   API http://%s\n", i == 0 ? "\n" : "",
               up_node_name(n), n->http_address, n->api_address);
    }
    if (news)
        printf("\nJoins also at http://WORKLOAD.localhost%s/. The API takes a token; %s none at "
               "unix:%s\n",
               port == NULL ? "" : port, first->root ? "root needs" : "you need",
               first->api_socket);
    putchar('\n');
    printf("export SKERRY_ADDR=unix:%s", first->api_socket);
    if (linked && up_node_link_path(first, link))
        printf("   # not needed: %s is this node", link);
    printf("\n\n");
    if (!first->root)
        tell_warnings(first);
    if (c->fresh)
        printf("  skerry deploy deploy/examples/hello.yaml\n"
               "  curl -si http://%s/w/hello/\n",
               first->http_address);
    if (detach)
        printf("  skerry down%s%s\n", dir != NULL ? " --dir " : "", dir != NULL ? dir : "");
    else
        printf("\nCtrl-C brings it down.\n");
    (void)fflush(stdout);
}

/* "--nodes 3"; 0 without it. False: told. */
static bool read_nodes(struct cli *c, unsigned *out)
{
    const char *text = cli_value(c, "nodes");
    *out = 0;
    if (text == NULL)
        return true;
    if (text[0] == '\0' || strlen(text) > 3 || strspn(text, "0123456789") != strlen(text) ||
        atoi(text) < 1) {
        (void)cli_usage(c, "--nodes: %.20s is no number of nodes", text);
        return false;
    }
    *out = (unsigned)atoi(text);
    if (*out <= UP_NODES_MAX)
        return true;
    (void)cli_usage(c, "--nodes: at most %d on one machine", UP_NODES_MAX);
    return false;
}

static int failed(struct up_cluster *c, const struct err *e)
{
    (void)fflush(stdout);
    cli_say("%s", e->msg);
    if (c->last != NULL && e->code != ERR_CANCELED) {
        show_log(&c->last->node, UP_RUNNER);
        show_log(&c->last->node, UP_SERVE);
    }
    /* What ran before may hold instances, which nobody asked to end. */
    (void)up_cluster_end(c, 0, true);
    return CLI_FAILED;
}

static int up(struct cli *c)
{
    struct up_cluster cluster;
    struct err e = {0};
    struct up_options options = {.dir = cli_value(c, "dir"),
                                 .address = cli_value(c, "address"),
                                 .http = cli_value(c, "http"),
                                 .api = cli_value(c, "api"),
                                 .embedded = c->embedded};
    bool detach = cli_has(c, "detach");
    if (!read_nodes(c, &options.nodes))
        return CLI_USAGE;
    int code = cli_need_sandboxes(c);
    if (code != CLI_DONE)
        return code;
    if (up_cluster_find(&cluster, &options, &e) != 0)
        return cli_fail(c, &e);
    if (options.nodes != 0 && options.nodes < cluster.count)
        printf("there are %u nodes already: starting all of them\n", cluster.count);
    /* A Ctrl-C that comes during the start must not leave half of it behind. */
    sigset_t set = end_signals();
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return CLI_FAILED;
    if (!cluster.members[0].node.root)
        up_group_enter();
    if (up_cluster_start(&cluster, &e) != 0)
        return failed(&cluster, &e);
    bool linked = up_node_link(&cluster.members[0].node);
    tell(&cluster, linked, detach, options.dir);
    return detach ? CLI_DONE : stay(&cluster);
}

static const struct cli_option up_options[] = {
    {'d', "detach", NULL, "leave it running and return when it is ready"},
    {0, "nodes", "N", "at least so many; 3 survive the loss of one (default 1)"},
    {0, "dir", "DIR",
     "its data (default $XDG_STATE_HOME/skerry, else /var/lib/skerry/up of root and\n"
     "                         ~/.local/state/skerry of others)"},
    {0, "address", "IP", "of node 1; the others have the next ones (default 127.0.0.1)"},
    {0, "http", "ADDR", "of node 1's gateway (default port 8080 of its address)"},
    {0, "api", "ADDR", "of node 1's API (default port 8081 of its address)"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_up_command = {
    .name = "up",
    .arguments = "[--nodes N] [--detach]",
    .summary = "a cluster on this machine",
    .text =
        "Node i is at 127.0.0.i: a runner as root and a node as an unprivileged user; or both as "
        "the\n"
        "ordinary user that calls it, without egress and, mostly, without limits (docs/security.md "
        "tells\n"
        "what then holds). Returns when all are ready and roles have settled. Run again, it starts "
        "what is missing (instances have\n"
        "outlived it) and adds nodes up to N. The configurations are in DIR/node*, yours to "
        "change.\n\n"
        "  skerry up --nodes 3 --detach\n"
        "  skerry up --dir /tmp/try --address 127.0.0.11",
    .options = up_options,
    .run = up,
};
