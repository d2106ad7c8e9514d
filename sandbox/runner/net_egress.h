/* sandbox/runner/net_egress.h - the way out of an instance's network, and what closes it.
 *
 *     instance's namespace                     the machine
 *     table skerry: exact, for its workload    table skerry: constant, by names of interfaces
 *     eth0 10.166.0.35/31 ──── veth pair ──── skv0-17 10.166.0.34/31 ── forwarded, masqueraded ── uplink
 *     127.0.0.1:53 ─ names (net_names.h)
 *
 * The namespace belongs to the machine's user namespace, so nothing inside can touch its link and its
 * rules, which are loaded before the link is up and go with it. A link is never removed by itself
 * (29 ms): its namespace dies.
 *
 * Whatever fails, fails closed: without the machine's table an instance is not given a link; when the
 * table is lost later, its own rules still hold and nothing is masqueraded.
 *
 * Thread: the runner's only one. Attaching takes about 1.5 ms. */
#ifndef SKERRY_SANDBOX_RUNNER_NET_EGRESS_H
#define SKERRY_SANDBOX_RUNNER_NET_EGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/runner/net_host.h"
#include "sandbox/runner/net_rules.h"
#include "sandbox/runner/network.h"

struct runner_config;
struct net_egress;

/* What root's file says, checked. On failure *out_key is the key that is wrong. Pure. */
int net_site_read(struct net_site *site, struct net_uplinks *uplinks,
                  const struct runner_config *config, const char **out_key,
                  struct err *e) ERR_CHECKED;

/* Tries in a namespace of its own all that an instance will need, then puts the machine's table in
 * place. That it cannot be is no error here: net_egress_refusal says why, and nothing gets a way out.
 * `config` and `network` outlive it. `able` false: this runner has no power over the machine's network, and
 * nothing is tried. */
int net_egress_open(struct net_egress **out, struct network *network,
                    const struct runner_config *config, bool able, struct err *e) ERR_CHECKED;
/* `in_use`: instances with a link live on, so the table stays. NULL: nothing. */
void net_egress_close(struct net_egress *egress, bool in_use);

/* To be called every NET_GUARD_MS while an instance has a link: puts the machine's table back when
 * somebody flushed it. 0.3 ms. */
#define NET_GUARD_MS 2000
void net_egress_guard(struct net_egress *egress);

/* NULL: instances can have a way out. */
const char *net_egress_refusal(const struct net_egress *egress);
/* What an operator should know; NULL: nothing. */
const char *net_egress_warning(const struct net_egress *egress);
const struct net_site *net_egress_site(const struct net_egress *egress);

/* Gives a namespace that has only loopback its rules, and a link when they hold. On failure the
 * namespace must not be used: it may have rules already. */
int net_egress_attach(struct net_egress *egress, int namespace_fd, uint32_t place,
                      const struct net_policy *policy, struct err *e) ERR_CHECKED;
/* Bytes since it was attached, as the instance sees them. False when the link is gone. */
bool net_egress_bytes(struct net_egress *egress, uint32_t place, uint64_t *in, uint64_t *out);
/* Lets it reach what a name that its policy allows was answered with, for so long. */
int net_egress_allow(struct net_egress *egress, int namespace_fd, const uint32_t *addresses,
                     size_t count, uint16_t port, unsigned seconds, struct err *e) ERR_CHECKED;

#endif
