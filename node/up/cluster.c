#include "node/up/cluster.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"

enum {
    READY_MS = 30000,
    SETTLE_MS = 30000,
    SETTLE_STEP_MS = 50,
    JOIN_STEP_MS = 10,
    VOTERS = 3, /* raft.voters, unless the configuration says otherwise */
};
#define TOKEN_REQUEST "{\"role\":\"node\",\"name\":\"skerry up\",\"ttl\":\"10m\"}"

static void step(const struct up_node *n, const char *text, const char *more)
{
    printf("%-7s %s%s\n", up_node_name(n), text, more);
    (void)fflush(stdout);
}

/* --- which there are -------------------------------------------------------------------------- */

static bool is_member(const struct up_node *n)
{
    static const char *const signs[] = {"data/node.json", "data/raft"};
    for (size_t i = 0; i < ARRAY_SIZE(signs); i++) {
        char path[UP_PATH_SIZE];
        up_node_path(n, signs[i], path);
        if (access(path, F_OK) == 0)
            return true;
    }
    return false;
}

static int add(struct up_cluster *c, const struct up_options *o, unsigned number, struct err *e)
{
    struct up_member *m = &c->members[c->count];
    *m = (struct up_member){0};
    int rc = up_node_init(&m->node, o->dir, number, e);
    if (rc != 0)
        return rc;
    m->made = !up_node_exists(&m->node);
    m->node.embedded = o->embedded;
    if (number == 1) {
        m->node.http = o->http;
        m->node.api = o->api;
    }
    if (!m->made)
        rc = up_node_load(&m->node, e);
    m->idle =
        m->made || (up_node_pid(&m->node, UP_RUNNER) == 0 && up_node_pid(&m->node, UP_SERVE) == 0);
    m->member = !m->made && is_member(&m->node);
    c->fresh = c->fresh && !m->member;
    c->count++;
    return rc;
}

/* New nodes stand behind the first one, as its configuration or --address says. */
static int place(struct up_cluster *c, const struct up_options *o, struct err *e)
{
    char first[ADDRESS_TEXT_SIZE] = UP_ADDRESS_DEFAULT;
    if (o->address != NULL && !text_copy(first, sizeof first, o->address))
        return err_set(e, ERR_INVALID, "--address %.40s...: not an IPv4 address", o->address);
    if (c->count > 0 && c->members[0].node.number == 1 && !c->members[0].made) {
        (void)text_copy(first, sizeof first, c->members[0].node.peer_address);
        char *colon = strrchr(first, ':');
        if (colon != NULL)
            *colon = '\0';
        if (o->address != NULL && strcmp(o->address, first) != 0)
            return err_set(e, ERR_CONFLICT,
                           "--address %s: node1 is at %s, as its skerry.yaml says; leave it out",
                           o->address, first);
    }
    for (unsigned i = 0; i < c->count; i++) {
        struct up_node *n = &c->members[i].node;
        if (c->members[i].made && !up_address(n->address, first, n->number))
            return err_set(e, ERR_INVALID,
                           "node %u would stand %u behind %s, which is no private IPv4 address",
                           n->number, n->number - 1, first);
    }
    return 0;
}

int up_cluster_find(struct up_cluster *c, const struct up_options *o, struct err *e)
{
    *c = (struct up_cluster){.fresh = true};
    bool there[UP_NODES_MAX + 1] = {false};
    unsigned count = 0;
    for (unsigned number = 1; number <= UP_NODES_MAX; number++) {
        struct up_node n;
        int rc = up_node_init(&n, o->dir, number, e);
        if (rc != 0)
            return rc;
        there[number] = up_node_exists(&n);
        count += there[number];
    }
    unsigned wanted = o->nodes > 1 ? o->nodes : 1;
    for (unsigned number = 1; number <= UP_NODES_MAX; number++) {
        bool more = !there[number] && count < wanted;
        int rc = there[number] || more ? add(c, o, number, e) : 0;
        if (rc != 0)
            return rc;
        count += more;
    }
    return place(c, o, e);
}

/* --- starting --------------------------------------------------------------------------------- */

static int start_daemon(struct up_member *m, enum up_daemon daemon, const char *const *more,
                        struct err *e)
{
    if (up_node_pid(&m->node, daemon) != 0)
        return 0;
    if (!m->idle)
        printf("%-7s %s was missing: started it again\n", up_node_name(&m->node),
               up_daemon_names[daemon]);
    m->started = true;
    int rc = up_node_start(&m->node, daemon, more, e);
    return rc == 0 ? 0 : err_wrap(e, "%s", up_node_name(&m->node));
}

static int prepare(struct up_cluster *c, struct err *e)
{
    for (unsigned i = 0; i < c->count; i++) {
        struct up_member *m = c->last = &c->members[i];
        int rc = up_node_prepare(&m->node, e);
        if (rc == 0)
            rc = up_node_load(&m->node, e);
        if (rc == 0)
            rc = start_daemon(m, UP_RUNNER, NULL, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static const char *what_was_done(const struct up_member *m)
{
    return !m->started ? "was up already" : m->idle ? "is up again" : "is whole again";
}

/* The members, or node 1 with a new cluster. */
static int start_members(struct up_cluster *c, struct err *e)
{
    static const char *const bootstrap[] = {"--bootstrap", NULL};
    for (unsigned i = 0; i < c->count; i++) {
        struct up_member *m = c->last = &c->members[i];
        if (!m->member && !(c->fresh && i == 0))
            continue;
        int rc = start_daemon(m, UP_SERVE, c->fresh ? bootstrap : NULL, e);
        if (rc != 0)
            return rc;
    }
    for (unsigned i = 0; i < c->count; i++) {
        struct up_member *m = c->last = &c->members[i];
        if (!m->member && !(c->fresh && i == 0))
            continue;
        int rc = up_node_wait_ready(&m->node, READY_MS, e);
        if (rc != 0)
            return rc;
        step(&m->node, m->member ? what_was_done(m) : "is up, and made the cluster", "");
        m->member = true;
    }
    return 0;
}

/* --- joining ---------------------------------------------------------------------------------- */

/* A token that `member` makes, where serve of `n` alone can read it. */
static int write_token(const struct up_node *member, const struct up_node *n,
                       char path[UP_PATH_SIZE], struct err *e)
{
    json_t *json = NULL;
    up_node_path(n, "run/join.token", path);
    int rc = up_node_call(member, "POST", "/v1/tokens", TOKEN_REQUEST, &json, e);
    if (rc != 0)
        return err_wrap(e, "make a join token");
    const char *token = cli_text(json, "token");
    (void)unlink(path);
    rc = up_write_file(path, token, 0600, e);
    if (rc == 0 && lchown(path, n->uid, n->gid) != 0)
        rc = err_sys(e, ERR_IO, errno, "give %s to the user of serve", path);
    json_decref(json);
    return rc;
}

static int start_joiner(struct up_member *m, const struct up_node *through, char path[UP_PATH_SIZE],
                        struct err *e)
{
    int rc = write_token(through, &m->node, path, e);
    const char *const more[] = {"--peers", through->peer_address, "--token-file", path, NULL};
    return rc == 0 ? start_daemon(m, UP_SERVE, more, e) : rc;
}

/* Until it is a member or has ended: the next one joins after it, so that ids go by number. */
static int wait_member(const struct up_node *n, struct err *e)
{
    uint64_t begun = clock_monotonic_ms();
    while (!is_member(n)) {
        if (up_interrupted())
            return err_set(e, ERR_CANCELED, "interrupted");
        uint64_t waited = clock_monotonic_ms() - begun;
        /* The first look may come before exec has given it its arguments. */
        if (waited >= READY_MS || (waited >= 500 && up_node_end(n, UP_SERVE, 0, 0)))
            return err_set(e, ERR_UNAVAILABLE, "%s: serve did not join", up_node_name(n));
        (void)poll(NULL, 0, JOIN_STEP_MS);
    }
    return 0;
}

/* They join one after the other, and get ready at the same time. */
static int join_others(struct up_cluster *c, struct err *e)
{
    char paths[UP_NODES_MAX][UP_PATH_SIZE] = {{0}};
    const struct up_node *through = NULL;
    int rc = 0;
    for (unsigned i = 0; i < c->count && through == NULL; i++)
        through = c->members[i].member ? &c->members[i].node : NULL;
    for (unsigned i = 0; rc == 0 && i < c->count; i++) {
        c->last = &c->members[i];
        if (!c->members[i].member)
            rc = start_joiner(&c->members[i], through, paths[i], e);
        if (rc == 0)
            rc = wait_member(&c->members[i].node, e);
    }
    for (unsigned i = 0; rc == 0 && i < c->count; i++) {
        struct up_member *m = c->last = &c->members[i];
        if (m->member)
            continue;
        rc = up_node_wait_ready(&m->node, READY_MS, e);
        if (rc == 0)
            step(&m->node, "is up, and joined through ", up_node_name(through));
    }
    for (unsigned i = 0; i < c->count; i++) {
        if (paths[i][0] != '\0')
            (void)unlink(paths[i]);
    }
    return rc;
}

/* --- settled ---------------------------------------------------------------------------------- */

struct roles {
    unsigned alive, voters, others;
};

static struct roles count_roles(const json_t *status)
{
    struct roles roles = {0};
    json_t *node;
    size_t i;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        const char *role = cli_text(node, "role");
        roles.alive += strcmp(cli_text(node, "state"), "alive") == 0;
        roles.voters += strcmp(role, "voter") == 0;
        roles.others += strcmp(role, "standby") == 0 || strcmp(role, "spare") == 0;
    }
    return roles;
}

static int settle(struct up_cluster *c, struct err *e)
{
    const struct up_node *n = &c->members[0].node;
    unsigned wanted = c->count >= VOTERS ? VOTERS : 1;
    uint64_t begun = clock_monotonic_ms();
    c->last = NULL;
    for (;;) {
        json_t *status = NULL;
        int rc = up_node_call(n, "GET", "/v1/status", NULL, &status, e);
        if (rc != 0)
            return rc;
        struct roles roles = count_roles(status);
        bool settled = cli_text(status, "leader")[0] != '\0' && roles.alive >= c->count &&
                       roles.voters >= wanted && roles.voters + roles.others >= c->count;
        if (settled && c->count > 1)
            printf("settled: %u nodes, %u vote, %s leads\n", roles.alive, roles.voters,
                   cli_text(status, "leader"));
        json_decref(status);
        if (settled)
            return 0;
        if (up_interrupted())
            return err_set(e, ERR_CANCELED, "interrupted");
        if (clock_monotonic_ms() - begun >= SETTLE_MS)
            return err_set(e, ERR_TIMEOUT,
                           "after %d s %u of %u nodes are alive and %u of %u vote; skerry status "
                           "tells more",
                           SETTLE_MS / 1000, roles.alive, c->count, roles.voters, wanted);
        (void)poll(NULL, 0, SETTLE_STEP_MS);
    }
}

int up_cluster_start(struct up_cluster *c, struct err *e)
{
    int rc = prepare(c, e);
    if (rc == 0)
        rc = start_members(c, e);
    if (rc == 0)
        rc = join_others(c, e);
    return rc == 0 ? settle(c, e) : rc;
}

/* --- the end ---------------------------------------------------------------------------------- */

enum { END_MS = 10000, /* of a daemon that was told to end at once */ INSTANCES_MS = 30000 };

static uint64_t left_ms(uint64_t until)
{
    uint64_t now = clock_monotonic_ms();
    return now < until ? until - now : 0;
}

static bool end_serve(const struct up_node *n, uint64_t until)
{
    return up_node_end(n, UP_SERVE, 0, (unsigned)left_ms(until)) ||
           up_node_end(n, UP_SERVE, SIGTERM, END_MS) || up_node_end(n, UP_SERVE, SIGKILL, END_MS);
}

static int end_runner(struct up_node *n, struct err *e)
{
    unsigned ended = 0;
    int rc = 0;
    /* A runner that was killed has left its instances to their agents: another takes them up. */
    if (up_node_pid(n, UP_RUNNER) == 0)
        rc = up_node_start(n, UP_RUNNER, NULL, e);
    if (rc == 0)
        rc = up_instances_end(n, INSTANCES_MS, &ended, e);
    if (rc == 0 && ended > 0)
        printf("%-7s ended %u instance%s\n", up_node_name(n), ended, ended == 1 ? "" : "s");
    if (!up_node_end(n, UP_RUNNER, SIGTERM, END_MS) &&
        !up_node_end(n, UP_RUNNER, SIGKILL, END_MS) && rc == 0)
        rc = err_set(e, ERR_TIMEOUT, "the runner does not end");
    return rc;
}

static void remove_leavings(const struct up_node *n)
{
    static const char *const names[] = {"serve.pid", "runner.pid", "run/join.token"};
    up_node_unlink(n);
    (void)unlink(n->api_socket);
    (void)unlink(n->runner_socket);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char path[UP_PATH_SIZE];
        up_node_path(n, names[i], path);
        (void)unlink(path);
    }
}

int up_cluster_end(struct up_cluster *c, unsigned drain_ms, bool idle_only)
{
    int code = CLI_DONE;
    bool told = false;
    uint64_t until = clock_monotonic_ms() + drain_ms;
    for (unsigned i = 0; i < c->count; i++) {
        const struct up_node *n = &c->members[i].node;
        if ((idle_only && !c->members[i].idle) || up_node_pid(n, UP_SERVE) == 0)
            continue;
        if (!told && drain_ms > 0)
            printf("waiting for joins to finish, at most %u s\n", drain_ms / 1000);
        told = true;
        (void)fflush(stdout);
        up_node_signal(n, UP_SERVE, SIGTERM);
    }
    for (unsigned i = 0; i < c->count; i++) {
        struct up_node *n = &c->members[i].node;
        struct err e = {0};
        if ((idle_only && !c->members[i].idle) || !up_node_exists(n))
            continue;
        if (!end_serve(n, until)) {
            cli_say("%s: serve does not end", up_node_name(n));
            code = CLI_FAILED;
        }
        if (end_runner(n, &e) != 0) {
            cli_say("%s: %s", up_node_name(n), e.msg);
            up_node_show_log(n, UP_RUNNER, UP_LOG_LINES);
            code = CLI_FAILED;
        }
        remove_leavings(n);
    }
    return code;
}
