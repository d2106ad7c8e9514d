/* sandbox/runner/net_rules.h - the texts of nftables' rules: the machine's one table, and the table
 * inside an instance's network namespace. And which addresses a place has.
 *
 * Pure: no descriptor, no clock. Every number in a text comes from a parsed struct and never from
 * what somebody wrote, so nobody can write rules of their own.
 *
 * Two layers, either of which keeps the denials alone: the instance's table (exact for its workload;
 * lives and dies with its namespace, which nothing inside can touch) and the machine's (constant in
 * size, by the names of interfaces). */
#ifndef SKERRY_SANDBOX_RUNNER_NET_RULES_H
#define SKERRY_SANDBOX_RUNNER_NET_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/destination.h"
#include "base/err.h"

#define NET_DESTINATIONS_MAX 64
#define NET_UPLINKS_MAX 16
#define NET_NAME_SIZE 16 /* IFNAMSIZ */
/* Two addresses for each of the 4,080 places there can be on one machine: 8,160 fit 13 bits. */
#define NET_PREFIX_MAX 19u
#define NET_PREFIX_MIN 8u
/* What one instance may have open at a time; without a bound it could fill the machine's table of
 * connections, and with it end everybody's. */
#define NET_CONNECTIONS_MAX 4096u
/* Addresses that names were answered with, each with its port. */
#define NET_NAMED_MAX 4096u

/* --- what root's file says, the same for all instances of this runner ---------------------------- */

struct net_site {
    uint32_t network; /* sandbox.network */
    unsigned prefix;
    uint32_t place_first; /* of this runner among all places of the machine */
    struct destination permitted[NET_DESTINATIONS_MAX]; /* allow.destinations */
    size_t permitted_count;
};

/* --- what a workload says -------------------------------------------------------------------------- */

struct net_policy {
    struct destination allow[NET_DESTINATIONS_MAX]; /* none: all that is not denied */
    size_t allow_count;
    struct destination deny[NET_DESTINATIONS_MAX];
    size_t deny_count;
    uint64_t bandwidth_bytes; /* a second, each way; 0: no bound. Not of the texts. */
};

/* From the texts of a request. An `allow` that could never act here (it lies in what is always denied,
 * and root's file does not permit it) is an error that says so. */
int net_policy_parse(struct net_policy *out, const struct net_site *site, char *const *allow,
                     size_t allow_count, char *const *deny, size_t deny_count,
                     struct err *e) ERR_CHECKED;
/* Whether it allows names, so that their addresses will be asked for. */
bool net_policy_has_names(const struct net_policy *policy);

/* --- addresses and names --------------------------------------------------------------------------- */

/* A place (its number on this machine, 0..4079) has a /31 of the network, machine first: who has the
 * place has the addresses, so they are handed out, taken back and found again with it. */
uint32_t net_host_address(const struct net_site *site, uint32_t place);
uint32_t net_instance_address(const struct net_site *site, uint32_t place);
/* The interface of the machine's end, "skv0-17". */
void net_link_name(const struct net_site *site, uint32_t place, char out[NET_NAME_SIZE]);
/* What all such names of this runner begin with, "skv0-". */
void net_link_prefix(const struct net_site *site, char out[NET_NAME_SIZE]);
/* The name of the machine's table: "skerry", or "skerry_1000" of a runner whose places do not begin at 0. */
void net_table_name(const struct net_site *site, char out[NET_NAME_SIZE]);
/* What the names of interfaces and tables of any runner begin with. */
#define NET_LINK_PREFIX_ANY "skv"
#define NET_TABLE_PREFIX_ANY "skerry"

/* --- texts; new ones, the caller frees; NULL without memory ------------------------------------------ */

struct net_uplinks {
    char names[NET_UPLINKS_MAX][NET_NAME_SIZE];
    size_t count;
};

/* The machine's table, replacing what there is in one transaction. `uplinks`: where instances may go
 * out; `switched`: those whose forwarding was off before us. */
char *net_host_rules(const struct net_site *site, const struct net_uplinks *uplinks,
                     const struct net_uplinks *switched);
char *net_host_rules_remove(const struct net_site *site);
/* For an empty namespace. */
char *net_instance_rules(const struct net_site *site, const struct net_policy *policy);
/* Allows what an answer said of a name, for so long. */
char *net_named_rules(const uint32_t *addresses, size_t count, uint16_t port, unsigned seconds);

/* Whether the address lies in what is always denied. */
bool net_always_denied(uint32_t address);

#endif
