#include "sandbox/runner/net_names.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/net_names_wire.h"

#define DNS_PORT 53
#define BACKLOG 8
#define SOCKET_BYTES (32 * 1024) /* what waits while an instance is not heard */
#define CHANNEL_BYTES (1024 * 1024)
#define RESTART_MS_MIN 1000u
#define RESTART_MS_MAX 30000u
#define LASTED_MS 60000u /* behind one that lived so long the next need not wait long */
#define RESOLV_CONF_BYTES 4096u
/* What the rules cost the runner: changes of one instance's, and of all together. */
#define CHANGES_PER_SECOND 10u
#define CHANGES_BURST 60u
#define CHANGES_PER_SECOND_ALL 200u
#define CHANGES_BURST_ALL 400u

struct net_names_instance {
    struct net_names_instance *next, **back;
    struct net_names *names;
    uint64_t number;
    const char *id;
    int namespace_fd;
    const struct net_policy *policy;
    int udp, tcp; /* -1: not made yet */
    bool told;    /* the forwarder of now has them */
    bool gone;    /* only its end is to be told */
    bool warned;
    struct names_rate rate;
};

struct net_names {
    struct loop *loop;
    struct network *network;
    struct net_egress *egress;
    const struct field_list *configured;
    struct net_names_instance *first;
    uint64_t last_number;
    struct names_rate rate;
    struct stat file; /* of resolv.conf when it was read */
    bool resolvers_told;
    bool started;
    int channel; /* -1: no process */
    struct loop_watch watch;
    struct loop_child child;
    struct loop_timer restart;
    unsigned restart_ms;
    uint64_t started_ms;
};

/* --- resolvers ------------------------------------------------------------------------------------- */

static bool resolver_read(union names_address *out, const char *text)
{
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, text, &out->v4.sin_addr) == 1) {
        out->v4.sin_family = AF_INET;
        out->v4.sin_port = htons(DNS_PORT);
        return true;
    }
    out->v6.sin6_family = AF_INET6;
    out->v6.sin6_port = htons(DNS_PORT);
    return inet_pton(AF_INET6, text, &out->v6.sin6_addr) == 1;
}

bool net_names_resolver_valid(const char *text)
{
    union names_address address;
    return resolver_read(&address, text);
}

static void resolver_add(struct names_message *m, const char *text)
{
    if (m->count < NAMES_RESOLVERS_MAX && resolver_read(&m->resolvers[m->count], text))
        m->count++;
}

/* What is behind the first RESOLV_CONF_BYTES does not count; lines that are not understood neither. */
static void resolv_conf_read(struct net_names *names, struct names_message *m)
{
    char text[RESOLV_CONF_BYTES + 1], *rest = NULL;
    CLEANUP_FD int fd = open(NET_NAMES_RESOLV_CONF, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    memset(&names->file, 0, sizeof names->file);
    ssize_t n = fd < 0 || fstat(fd, &names->file) < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n < 0)
        return;
    text[n] = '\0';
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        char *words = NULL, *key = strtok_r(line, " \t\r", &words);
        char *value = key == NULL ? NULL : strtok_r(NULL, " \t\r", &words);
        if (value != NULL && strcmp(key, "nameserver") == 0)
            resolver_add(m, value);
    }
}

static bool resolv_conf_changed(const struct net_names *names)
{
    struct stat now;
    if (names->configured->count > 0 || stat(NET_NAMES_RESOLV_CONF, &now) < 0)
        return false;
    return now.st_ino != names->file.st_ino || now.st_size != names->file.st_size ||
           now.st_mtim.tv_sec != names->file.st_mtim.tv_sec ||
           now.st_mtim.tv_nsec != names->file.st_mtim.tv_nsec;
}

static int resolvers_tell(struct net_names *names)
{
    struct names_message m = {.kind = NAMES_RESOLVERS};
    for (size_t i = 0; i < names->configured->count; i++)
        resolver_add(&m, names->configured->items[i]);
    if (names->configured->count == 0)
        resolv_conf_read(names, &m);
    if (m.count == 0)
        log_warn("runner", "names: " NET_NAMES_RESOLV_CONF " has no nameserver, so instances are "
                           "answered no names; set sandbox.resolvers in runner.yaml");
    int sys = names_message_send(names->channel, &m, NULL, 0);
    names->resolvers_told = sys == 0;
    return sys;
}

/* --- sockets ------------------------------------------------------------------------------------------ */

/* In the instance's namespace. A runner that came back finds the sockets of the one before still there
 * for a moment. */
static int socket_make(int type)
{
    const struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons(DNS_PORT), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int on = 1, bytes = SOCKET_BYTES;
    CLEANUP_FD int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes) < 0 ||
        bind(fd, (const struct sockaddr *)&at, sizeof at) < 0 ||
        (type == SOCK_STREAM && listen(fd, BACKLOG) < 0))
        return -1;
    return steal_fd(&fd);
}

static int sockets_make(struct net_names_instance *i, struct err *e)
{
    int rc = network_enter(i->names->network, i->namespace_fd, e);
    if (rc < 0)
        return rc;
    i->udp = socket_make(SOCK_DGRAM);
    i->tcp = i->udp < 0 ? -1 : socket_make(SOCK_STREAM);
    int sys = errno;
    network_leave(i->names->network);
    if (i->tcp >= 0)
        return 0;
    memory_close(&i->udp);
    return err_sys(e, ERR_IO, sys, "listen at 127.0.0.1:%d inside", DNS_PORT);
}

/* --- telling the forwarder ------------------------------------------------------------------------------ */

static void instance_free(struct net_names_instance *i)
{
    *i->back = i->next;
    if (i->next != NULL)
        i->next->back = i->back;
    free(i);
}

static void add_fill(struct names_message *m, const struct net_names_instance *i)
{
    const struct net_policy *p = i->policy;
    memset(m, 0, sizeof *m);
    m->kind = NAMES_ADD;
    m->number = i->number;
    /* A list that allows networks alone allows no questions either: these carry data out as well. */
    m->restricted = p->allow_count > 0;
    for (size_t n = 0; n < p->allow_count; n++) {
        if (p->allow[n].kind != DESTINATION_NAME)
            continue;
        struct names_rule *rule = &m->rule[m->count++];
        rule->index = (uint8_t)n;
        rule->subdomains = p->allow[n].subdomains;
        text_copy(rule->name, sizeof rule->name, p->allow[n].name);
    }
}

static int instance_tell(struct net_names_instance *i)
{
    struct names_message m = {.kind = NAMES_REMOVE, .number = i->number};
    const int descriptors[2] = {i->udp, i->tcp};
    if (!i->gone)
        add_fill(&m, i);
    int sys = names_message_send(i->names->channel, &m, descriptors, i->gone ? 0 : 2);
    if (sys == 0)
        i->told = true;
    return sys;
}

/* All that the forwarder does not know yet, until its channel is full. */
static void tell_all(struct net_names *names)
{
    struct err e;
    int sys = 0;
    if (names->channel < 0)
        return;
    if (!names->resolvers_told)
        sys = resolvers_tell(names);
    for (struct net_names_instance *i = names->first, *next; i != NULL && sys == 0; i = next) {
        next = i->next;
        if (i->gone || (!i->told && i->tcp >= 0))
            sys = instance_tell(i);
        if (i->gone && sys == 0)
            instance_free(i);
    }
    uint32_t events = EPOLLIN | (sys == EAGAIN ? (uint32_t)EPOLLOUT : 0);
    if (loop_watch_change(names->loop, &names->watch, events, &e) < 0)
        log_error("runner", "names: %s", e.msg);
}

/* --- what the forwarder asks for ------------------------------------------------------------------------ */

static struct net_names_instance *instance_of(struct net_names *names, uint64_t number)
{
    struct net_names_instance *i = names->first;
    while (i != NULL && (i->number != number || i->gone))
        i = i->next;
    return i;
}

static bool rules_valid(const struct net_policy *policy, uint64_t rules)
{
    for (size_t n = 0; n < NET_DESTINATIONS_MAX; n++)
        if ((rules >> n & 1) != 0 &&
            (n >= policy->allow_count || policy->allow[n].kind != DESTINATION_NAME))
            return false;
    return rules != 0;
}

static int allow(struct net_names_instance *i, const struct names_message *m, struct err *e)
{
    struct net_names *names = i->names;
    unsigned seconds = m->ttl < NET_NAMES_SECONDS_MIN   ? NET_NAMES_SECONDS_MIN
                       : m->ttl > NET_NAMES_SECONDS_MAX ? NET_NAMES_SECONDS_MAX
                                                        : m->ttl;
    int rc = 0;
    if (m->count == 0 || !rules_valid(i->policy, m->rules))
        return err_set(e, ERR_INVALID, "an answer fits no rule");
    for (size_t n = 0; n < i->policy->allow_count && rc == 0; n++) {
        if ((m->rules >> n & 1) == 0)
            continue;
        uint64_t now = clock_boot_ms();
        if (!names_rate_take(&i->rate, CHANGES_PER_SECOND, CHANGES_BURST, now) ||
            !names_rate_take(&names->rate, CHANGES_PER_SECOND_ALL, CHANGES_BURST_ALL, now))
            return err_set(e, ERR_LIMIT, "more names a second than the rules take");
        rc = net_egress_allow(names->egress, i->namespace_fd, m->addresses, m->count,
                              i->policy->allow[n].port_first, seconds, e);
    }
    return rc;
}

static void allow_asked(struct net_names *names, const struct names_message *m)
{
    struct names_message answer = {.kind = NAMES_CONFIRM, .seq = m->seq};
    struct net_names_instance *i = instance_of(names, m->number);
    struct err e;
    answer.done = i != NULL && allow(i, m, &e) == 0;
    if (i != NULL && !answer.done && !i->warned) {
        log_warn("runner", "%s: names: %s; said once", i->id, e.msg);
        i->warned = true;
    }
    /* Without room for it the forwarder waits in vain and says so inside. */
    (void)names_message_send(names->channel, &answer, NULL, 0);
}

static void forwarder_end(struct net_names *names)
{
    if (names->child.watch.fd >= 0)
        (void)kill(names->child.pid, SIGKILL); /* not waited for yet, so the number is its own */
}

static void channel_cb(struct loop_watch *watch, uint32_t events)
{
    struct net_names *names = container_of(watch, struct net_names, watch);
    struct names_message m;
    int descriptors[2];
    if ((events & EPOLLOUT) != 0)
        tell_all(names);
    /* One a round: whatever the forwarder sends, the others have their turn. */
    int got = names_message_receive(names->channel, &m, descriptors);
    memory_close(&descriptors[0]);
    memory_close(&descriptors[1]);
    if (got > 0 && m.kind == NAMES_ALLOW) {
        allow_asked(names, &m);
    } else if (got != 0) {
        loop_watch_stop(names->loop, watch);
        forwarder_end(names);
    }
}

/* --- its process ------------------------------------------------------------------------------------------ */

static void start(struct net_names *names);

static void restart_cb(struct loop_timer *timer)
{
    start(container_of(timer, struct net_names, restart));
}

static void channel_close(struct net_names *names)
{
    loop_watch_stop(names->loop, &names->watch);
    memory_close(&names->channel);
    names->resolvers_told = false;
    for (struct net_names_instance *i = names->first, *next; i != NULL; i = next) {
        next = i->next;
        i->told = false;
        if (i->gone)
            instance_free(i);
    }
}

static void restart_later(struct net_names *names)
{
    struct err e;
    uint64_t at = clock_boot_ms() + names->restart_ms;
    names->restart_ms *= 2;
    if (names->restart_ms > RESTART_MS_MAX)
        names->restart_ms = RESTART_MS_MAX;
    if (loop_timer_start(names->loop, &names->restart, at, restart_cb, &e) < 0)
        log_error("runner", "names: %s", e.msg);
}

static void ended_cb(struct loop_child *child, int status)
{
    struct net_names *names = container_of(child, struct net_names, child);
    if (clock_boot_ms() - names->started_ms > LASTED_MS)
        names->restart_ms = RESTART_MS_MIN;
    log_warn("runner", "names: the forwarder ended (status %d); a new one in %u s", status,
             names->restart_ms / 1000);
    channel_close(names);
    restart_later(names);
}

/* In the child, up to exec: only calls that are safe after fork. */
__attribute__((noreturn)) static void become(int channel)
{
    char *const argv[] = {(char *)(uintptr_t) "skerry-runner",
                          (char *)(uintptr_t)NET_NAMES_ARGUMENT, NULL};
    char *const envp[] = {NULL};
    sigset_t none;
    sigemptyset(&none);
    /* The runner blocks signals to take them by descriptor. */
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    if ((channel == NAMES_CONTROL_FD ? fcntl(channel, F_SETFD, 0)
                                     : dup2(channel, NAMES_CONTROL_FD)) < 0 ||
        close_range(NAMES_CONTROL_FD + 1, ~0u, 0) != 0)
        _exit(127);
    execve("/proc/self/exe", argv, envp);
    _exit(127);
}

static int process_start(struct net_names *names, struct err *e)
{
    int ends[2];
    const int bytes = CHANNEL_BYTES;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return err_sys(e, ERR_IO, errno, "make a socket pair");
    CLEANUP_FD int ours = ends[0], theirs = ends[1];
    (void)setsockopt(ours, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    pid_t pid = fork();
    if (pid < 0)
        return err_sys(e, ERR_IO, errno, "start a process");
    if (pid == 0)
        become(theirs);
    int rc = loop_child_start(names->loop, &names->child, pid, -1, true, ended_cb, e);
    if (rc < 0) {
        (void)kill(pid, SIGKILL);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
        return rc;
    }
    names->channel = steal_fd(&ours);
    rc = loop_watch_start(names->loop, &names->watch, names->channel, EPOLLIN, channel_cb, e);
    if (rc < 0)
        forwarder_end(names); /* its end is seen, and another follows */
    return rc;
}

static void start(struct net_names *names)
{
    struct err e;
    names->started = true;
    names->started_ms = clock_boot_ms();
    if (process_start(names, &e) == 0)
        tell_all(names);
    else
        log_warn("runner", "names: %s", e.msg);
    if (names->child.watch.fd < 0)
        restart_later(names);
}

/* --- life --------------------------------------------------------------------------------------------------- */

int net_names_open(struct net_names **out, struct loop *loop, struct network *network,
                   struct net_egress *egress, const struct field_list *resolvers, struct err *e)
{
    struct net_names *names = calloc(1, sizeof *names);
    if (names == NULL)
        return err_set(e, ERR_NO_MEMORY, "names");
    names->loop = loop;
    names->network = network;
    names->egress = egress;
    names->configured = resolvers;
    names->channel = -1;
    names->restart_ms = RESTART_MS_MIN;
    names->watch = names->child.watch = LOOP_WATCH_STOPPED;
    *out = names;
    return 0;
}

void net_names_close(struct net_names *names)
{
    if (names == NULL)
        return;
    loop_timer_stop(names->loop, &names->restart);
    if (names->child.watch.fd >= 0) {
        forwarder_end(names);
        loop_child_stop(names->loop, &names->child);
        while (waitpid(names->child.pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    channel_close(names);
    assert_always(names->first == NULL);
    free(names);
}

int net_names_add(struct net_names *names, const char *id, int namespace_fd,
                  const struct net_policy *policy, struct net_names_instance **out, struct err *e)
{
    struct err why;
    struct net_names_instance *i = calloc(1, sizeof *i);
    if (i == NULL)
        return err_set(e, ERR_NO_MEMORY, "names");
    *i = (struct net_names_instance){.names = names,
                                     .number = ++names->last_number,
                                     .id = id,
                                     .namespace_fd = namespace_fd,
                                     .policy = policy,
                                     .udp = -1,
                                     .tcp = -1,
                                     .next = names->first,
                                     .back = &names->first};
    if (i->next != NULL)
        i->next->back = &i->next;
    names->first = i;
    if (sockets_make(i, &why) < 0)
        log_warn("runner", "%s: names: %s; trying again", id, why.msg);
    *out = i;
    if (names->started)
        tell_all(names);
    else
        start(names);
    return 0;
}

void net_names_remove(struct net_names_instance *i)
{
    if (i == NULL)
        return;
    memory_close(&i->udp);
    memory_close(&i->tcp);
    i->gone = true;
    if (!i->told)
        instance_free(i);
    else
        tell_all(i->names);
}

void net_names_guard(struct net_names *names)
{
    struct err e;
    for (struct net_names_instance *i = names->first; i != NULL; i = i->next)
        if (!i->gone && i->tcp < 0)
            (void)!sockets_make(i, &e);
    if (resolv_conf_changed(names))
        names->resolvers_told = false;
    tell_all(names);
}
