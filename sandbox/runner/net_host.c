#include "sandbox/runner/net_host.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/net_link.h"
#include "sandbox/runner/net_nft.h"

/* Runners of one machine change forwarding one after the other. */
#define LOCK_PATH "/run/skerry-network.lock"
/* A link goes a moment after the namespace of its other end. */
#define GONE_WAIT_MS 2000
#define GONE_STEP_US 10000
/* Default routes come first. */
#define ROUTES_BYTES 8192

/* --- forwarding ---------------------------------------------------------------------------------- */

static int forwarding_open(const char *name, int flags, struct err *e)
{
    char path[64];
    text_format(path, sizeof path, "/proc/sys/net/ipv4/conf/%s/forwarding", name);
    int fd = open(path, flags | O_CLOEXEC);
    return fd < 0 ? err_sys(e, ERR_IO, errno, "open %s", path) : fd;
}

static bool forwarding_on(const char *name)
{
    struct err e;
    char value = '0';
    CLEANUP_FD int fd = forwarding_open(name, O_RDONLY, &e);
    return fd >= 0 && read(fd, &value, 1) == 1 && value != '0';
}

static int forwarding_set(const char *name, bool on, struct err *e)
{
    CLEANUP_FD int fd = forwarding_open(name, O_WRONLY, e);
    if (fd < 0)
        return fd;
    if (write(fd, on ? "1" : "0", 1) != 1)
        return err_sys(e, ERR_IO, errno, "set net.ipv4.conf.%s.forwarding", name);
    return 0;
}

/* --- other tables ----------------------------------------------------------------------------------- */

static int switched_read(const char *table, struct net_uplinks *out, struct err *e)
{
    char command[64];
    CLEANUP_FREE char *text = NULL;
    text_format(command, sizeof command, "list set inet %s switched", table);
    int rc = net_nft_read(command, &text, e);
    if (rc == 0)
        net_uplinks_of_set(out, text);
    return rc;
}

/* What other runners of this machine have switched on. */
static int switched_elsewhere(const struct net_host *host, struct net_uplinks *out, struct err *e)
{
    static const char head[] = "table inet " NET_TABLE_PREFIX_ANY;
    char own[NET_NAME_SIZE];
    CLEANUP_FREE char *tables = NULL;
    out->count = 0;
    net_table_name(host->site, own);
    int rc = net_nft_read("list tables inet", &tables, e);
    for (const char *line = tables; rc == 0 && *line != '\0';) {
        size_t length = strcspn(line, "\n");
        const char *name = line + sizeof "table inet " - 1;
        char table[NET_NAME_SIZE];
        struct net_uplinks found;
        struct err ignored;
        if (strncmp(line, head, sizeof head - 1) == 0 &&
            text_format(table, sizeof table, "%.*s", (int)(length - (size_t)(name - line)), name) &&
            strcmp(table, own) != 0 && switched_read(table, &found, &ignored) == 0)
            for (size_t i = 0; i < found.count; i++)
                (void)net_uplinks_add(out, found.names[i], strlen(found.names[i]));
        line += length + (line[length] == '\n');
    }
    return rc;
}

/* --- uplinks ------------------------------------------------------------------------------------------ */

static int uplinks_find(struct net_host *host, struct net_uplinks *out, struct err *e)
{
    if (host->configured.count > 0) {
        *out = host->configured;
        return 0;
    }
    static const char path[] = "/proc/self/net/route";
    char text[ROUTES_BYTES];
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n < 0)
        return err_sys(e, ERR_IO, errno, "read %s", path);
    text[n] = '\0';
    net_uplinks_of_routes(out, text);
    if (out->count == 0)
        return err_set(e, ERR_UNSUPPORTED,
                       "there is no default route to go out by; name interfaces with "
                       "sandbox.uplinks in runner.yaml");
    return 0;
}

static void mtu_find(struct net_host *host)
{
    host->mtu = 0;
    for (size_t i = 0; i < host->uplinks.count; i++) {
        unsigned mtu = net_link_mtu(host->socket, host->uplinks.names[i]);
        if (mtu > 0 && (host->mtu == 0 || mtu < host->mtu))
            host->mtu = mtu;
    }
}

static int lock_open(struct err *e)
{
    CLEANUP_FD int fd = open(LOCK_PATH, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    int sys = fd < 0 ? errno : lock_file(fd);
    if (sys != 0)
        return err_sys(e, ERR_IO, sys, "lock %s", LOCK_PATH);
    return steal_fd(&fd);
}

/* --- the table ----------------------------------------------------------------------------------------- */

/* What we switched before, now or for another runner's sake too: the last to leave switches it off. */
static int switched_decide(struct net_host *host, struct err *e)
{
    char table[NET_NAME_SIZE];
    struct net_uplinks elsewhere;
    struct err none;
    net_table_name(host->site, table);
    /* Of an earlier runner; when somebody removed the table, what this one remembers. */
    struct net_uplinks kept;
    if (switched_read(table, &kept, &none) == 0)
        host->switched = kept;
    int rc = switched_elsewhere(host, &elsewhere, e);
    for (size_t i = 0; rc == 0 && i < host->uplinks.count; i++) {
        const char *name = host->uplinks.names[i];
        if ((!forwarding_on(name) || net_uplinks_has(&elsewhere, name)) &&
            !net_uplinks_add(&host->switched, name, strlen(name)))
            rc = err_set(e, ERR_LIMIT, "more than %d uplinks", NET_UPLINKS_MAX);
    }
    return rc;
}

int net_host_install(struct net_host *host, struct err *e)
{
    CLEANUP_FD int lock = lock_open(e);
    if (lock < 0)
        return lock;
    int rc = uplinks_find(host, &host->uplinks, e);
    if (rc == 0)
        rc = switched_decide(host, e);
    if (rc < 0)
        return rc;
    mtu_find(host);
    /* The rules first: nothing is ever forwarded without them. */
    CLEANUP_FREE char *text = net_host_rules(host->site, &host->uplinks, &host->switched);
    rc = net_nft_run(text, e);
    for (size_t i = 0; rc == 0 && i < host->uplinks.count; i++)
        if (!forwarding_on(host->uplinks.names[i]))
            rc = forwarding_set(host->uplinks.names[i], true, e);
    return rc;
}

static bool same(const struct net_uplinks *a, const struct net_uplinks *b)
{
    for (size_t i = 0; i < a->count; i++)
        if (!net_uplinks_has(b, a->names[i]))
            return false;
    return a->count == b->count;
}

int net_host_check(struct net_host *host, struct err *e)
{
    char table[NET_NAME_SIZE];
    struct net_uplinks now, kept;
    struct err gone;
    int rc = uplinks_find(host, &now, e);
    if (rc < 0)
        return rc;
    net_table_name(host->site, table);
    bool there = switched_read(table, &kept, &gone) == 0;
    bool on = true;
    for (size_t i = 0; i < now.count; i++)
        on = on && forwarding_on(now.names[i]);
    if (there && on && same(&now, &host->uplinks))
        return 0;
    log_warn("runner", "egress: %s; putting the rules in place again",
             !there ? "somebody removed the table"
             : on   ? "the uplinks changed"
                    : "somebody switched forwarding off");
    return net_host_install(host, e);
}

/* --- the end ------------------------------------------------------------------------------------------- */

static bool links_left(const struct net_host *host)
{
    char prefix[NET_NAME_SIZE];
    net_link_prefix(host->site, prefix);
    struct if_nameindex *all = if_nameindex();
    bool any = all == NULL;
    for (size_t i = 0; all != NULL && all[i].if_index != 0; i++)
        any = any || strncmp(all[i].if_name, prefix, strlen(prefix)) == 0;
    if (all != NULL)
        if_freenameindex(all);
    return any;
}

int net_host_remove(struct net_host *host, struct err *e)
{
    uint64_t end = clock_monotonic_ms() + GONE_WAIT_MS;
    while (links_left(host)) {
        if (clock_monotonic_ms() > end)
            return err_set(e, ERR_CONFLICT,
                           "links of instances are still there; the table stays to guard them");
        (void)usleep(GONE_STEP_US);
    }
    CLEANUP_FD int lock = lock_open(e);
    if (lock < 0)
        return lock;
    struct net_uplinks elsewhere;
    struct err ignored;
    int rc = switched_elsewhere(host, &elsewhere, e);
    for (size_t i = 0; rc == 0 && i < host->switched.count; i++)
        if (!net_uplinks_has(&elsewhere, host->switched.names[i]))
            /* An interface may be gone. */
            (void)forwarding_set(host->switched.names[i], false, &ignored);
    CLEANUP_FREE char *text = net_host_rules_remove(host->site);
    return rc == 0 ? net_nft_run(text, e) : rc;
}

void net_host_tidy(struct net_host *host)
{
    char table[NET_NAME_SIZE];
    struct err e;
    net_table_name(host->site, table);
    if (switched_read(table, &host->switched, &e) == 0 && !links_left(host) &&
        net_host_remove(host, &e) < 0)
        log_warn("runner", "egress: %s", e.msg);
}

/* --- foreign chains ---------------------------------------------------------------------------------- */

bool net_host_foreign_policy(const struct net_host *host, char *out, size_t size)
{
    char prefix[NET_NAME_SIZE], table[64], chain[64], command[96];
    CLEANUP_FREE char *chains = NULL, *rules = NULL;
    struct err ignored;
    if (net_nft_read("list chains", &chains, &ignored) < 0 ||
        !net_forward_drop_find(chains, table, sizeof table, chain, sizeof chain))
        return false;
    /* Rules that name our links are the remedy, done already. */
    net_link_prefix(host->site, prefix);
    text_format(command, sizeof command, "list table %s", table);
    if (net_nft_read(command, &rules, &ignored) == 0 && strstr(rules, prefix) != NULL)
        return false;
    const char *before = strstr(chains, "DOCKER-USER") != NULL ? "DOCKER-USER" : chain;
    text_format(out, size,
                "egress: table %s drops what is forwarded (chain %s), also of instances; let it "
                "pass: iptables -I %s -i %s+ -j ACCEPT; iptables -I %s -o %s+ -m conntrack "
                "--ctstate RELATED,ESTABLISHED -j ACCEPT",
                table, chain, before, prefix, before, prefix);
    return true;
}
