/* sandbox/runner/net_host.h - the machine's side of egress: one static table, and forwarding on the
 * interfaces that instances go out by.
 *
 * The table stays when the runner dies, however it dies: an nft table that belongs to a process would
 * go with it while the kernel goes on forwarding. It holds what has to be undone (the set `switched`:
 * interfaces whose forwarding was off before us), so the next runner knows it too.
 *
 * Forwarding is per interface (net.ipv4.conf.NAME.forwarding): net.ipv4.ip_forward stays as it is, and
 * an interface that we switched on forwards for instances only.
 *
 * Thread: the runner's only one, in the machine's network namespace. */
#ifndef SKERRY_SANDBOX_RUNNER_NET_HOST_H
#define SKERRY_SANDBOX_RUNNER_NET_HOST_H

#include "sandbox/runner/net_rules.h"

struct nl_sock;

struct net_host {
    const struct net_site *site;
    struct nl_sock *socket;        /* of the machine's namespace */
    struct net_uplinks configured; /* sandbox.uplinks; none: those of the default routes */
    struct net_uplinks uplinks, switched;
    unsigned mtu; /* the smallest of the uplinks; 0: unknown */
};

/* Puts the table in place, or the current one in the place of an older one, and switches forwarding on.
 * No uplink at all is an error. */
int net_host_install(struct net_host *host, struct err *e) ERR_CHECKED;
/* Before an instance gets its link: the table is there (somebody may have flushed all rules), and knows
 * the uplinks of now. */
int net_host_check(struct net_host *host, struct err *e) ERR_CHECKED;
/* Switches back what was switched and removes the table; when a link of ours is still there after a
 * short wait, all stays as it is. */
int net_host_remove(struct net_host *host, struct err *e) ERR_CHECKED;

/* Root does not allow egress any more: undoes what an earlier runner left, unless links are still there. */
void net_host_tidy(struct net_host *host);

/* A foreign chain that drops what is forwarded, as Docker's: our accepting it first changes nothing.
 * True: *out says which and what to do. */
bool net_host_foreign_policy(const struct net_host *host, char *out, size_t size);

/* --- of texts that nftables and the kernel print; pure -------------------------------------------------- */

/* The interfaces of default routes, from /proc/net/route. */
void net_uplinks_of_routes(struct net_uplinks *out, const char *text);
/* The elements of a set of interfaces, from `nft list set`. */
void net_uplinks_of_set(struct net_uplinks *out, const char *text);
/* The first base chain of the hook forward that drops, from `nft list chains`: "ip filter" and
 * "FORWARD". Tables of ours do not count. */
bool net_forward_drop_find(const char *text, char *table, size_t table_size, char *chain,
                           size_t chain_size);
bool net_uplinks_add(struct net_uplinks *list, const char *name, size_t length);
bool net_uplinks_has(const struct net_uplinks *list, const char *name);
/* A name that may stand in a rule: letters, digits and . _ - @, at most 15. */
bool net_name_valid(const char *name, size_t length);

#endif
