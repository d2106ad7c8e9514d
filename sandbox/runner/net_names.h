/* sandbox/runner/net_names.h - names inside instances that have a way out: 127.0.0.1:53 answers there.
 *
 *     instance's namespace            process of nobody              the machine
 *     127.0.0.1:53 ── sockets ──── forwarder of names ──────────── its resolvers
 *                                         │ "these addresses, of this rule"
 *                                       runner ── net_egress_allow, then: "done"
 *
 * The runner makes the sockets in the namespace and keeps them; one process without privileges, files
 * or programs reads from them and from the resolvers (net_dns.h says what it takes). When it dies, the
 * runner starts another with the same sockets. An instance with names in its policy is answered these
 * alone, and an answer is given when the instance may reach its addresses, at the ports of the rules and
 * nowhere that is denied.
 *
 * A forwarder that was taken over can tell an instance wrong addresses, connect from the machine as
 * nobody, and let instances that have names in their policy reach, at the ports of these, what is not
 * denied. It cannot open what is denied and cannot touch instances without names.
 *
 * Thread: the runner's only one. Allowing an answer takes about 0.5 ms, which is bounded. */
#ifndef SKERRY_SANDBOX_RUNNER_NET_NAMES_H
#define SKERRY_SANDBOX_RUNNER_NET_NAMES_H

#include "base/err.h"
#include "base/fields.h"
#include "sandbox/runner/loop.h"
#include "sandbox/runner/net_egress.h"
#include "sandbox/runner/network.h"

#define NET_NAMES_ARGUMENT "names"
#define NET_NAMES_RESOLV_CONF "/etc/resolv.conf"
/* How long an instance may begin connections to what it was answered, whatever the answer says. */
#define NET_NAMES_SECONDS_MIN 60u
#define NET_NAMES_SECONDS_MAX 86400u

struct net_names;
struct net_names_instance;

/* `resolvers`: addresses; none: those of NET_NAMES_RESOLV_CONF, also when it changes. All outlive it. The
 * process is started with the first instance. */
int net_names_open(struct net_names **out, struct loop *loop, struct network *network,
                   struct net_egress *egress, const struct field_list *resolvers,
                   struct err *e) ERR_CHECKED;
/* After the last net_names_remove. */
void net_names_close(struct net_names *names);

/* From here on names are answered in this namespace. `namespace_fd`, `policy` and `id` stay the caller's
 * and live until net_names_remove. That the port is taken there is no error: it is tried again. */
int net_names_add(struct net_names *names, const char *id, int namespace_fd,
                  const struct net_policy *policy, struct net_names_instance **out,
                  struct err *e) ERR_CHECKED;
/* NULL: nothing. */
void net_names_remove(struct net_names_instance *instance);
/* To be called every NET_GUARD_MS: looks for changed resolvers, and tries again what failed. */
void net_names_guard(struct net_names *names);

/* Whether `text` is an address that can be asked, "192.0.2.53" or "2001:db8::53". */
bool net_names_resolver_valid(const char *text);

/* The process; does not return before the runner is gone. */
int net_names_main(void);

#endif
