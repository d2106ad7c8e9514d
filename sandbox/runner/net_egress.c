#include "sandbox/runner/net_egress.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/config.h"
#include "sandbox/runner/net_link.h"
#include "sandbox/runner/net_nft.h"

#define INSIDE "eth0"

struct net_egress {
    struct network *network;
    struct net_site site;
    struct net_host host;
    bool usable;
    char refusal[300];
    char warning[400];
};

/* --- settings of interfaces ---------------------------------------------------------------------- */

/* A file that is not there is a kernel without that protocol. */
static int setting_write(const char *family, const char *name, const char *key, const char *value,
                         struct err *e)
{
    char path[96];
    text_format(path, sizeof path, "/proc/sys/net/%s/conf/%s/%s", family, name, key);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && strcmp(family, "ipv6") == 0)
        return 0;
    if (fd < 0 || write(fd, value, strlen(value)) != (ssize_t)strlen(value))
        return err_sys(e, ERR_IO, errno, "write %s", path);
    return 0;
}

/* --- one instance ---------------------------------------------------------------------------------- */

static int bound(struct nl_sock *socket, const char *link, const struct net_policy *policy,
                 struct err *e)
{
    return policy->bandwidth_bytes == 0 ? 0
                                        : net_link_bound(socket, link, policy->bandwidth_bytes, e);
}

/* Within the instance's namespace. */
static int inside_make(struct net_egress *egress, uint32_t place, const char *link,
                       const struct net_policy *policy, struct err *e)
{
    const struct net_site *site = &egress->site;
    CLEANUP_FREE char *rules = net_instance_rules(site, policy);
    struct nl_sock *socket = NULL;
    int rc = net_nft_run(rules, e);
    /* Of links that are made later; loopback keeps ::1. */
    if (rc == 0)
        rc = setting_write("ipv6", "default", "disable_ipv6", "1", e);
    if (rc == 0)
        rc = net_link_socket(&socket, e);
    if (rc == 0)
        rc =
            net_link_pair(socket, INSIDE, link, network_host(egress->network), egress->host.mtu, e);
    if (rc == 0)
        rc = bound(socket, INSIDE, policy, e);
    if (rc == 0)
        rc = net_link_raise(socket, INSIDE, net_instance_address(site, place), e);
    if (rc == 0)
        rc = net_link_default_route(socket, INSIDE, net_host_address(site, place), e);
    net_link_socket_close(socket);
    return rc;
}

/* Forwarding is switched on by itself where the machine forwards on all interfaces, and here else. */
static int outside_make(struct net_egress *egress, uint32_t place, const char *link,
                        const struct net_policy *policy, struct err *e)
{
    int rc = setting_write("ipv6", link, "disable_ipv6", "1", e);
    if (rc == 0)
        rc = setting_write("ipv4", link, "rp_filter", "1", e);
    if (rc == 0)
        rc = setting_write("ipv4", link, "forwarding", "1", e);
    if (rc == 0)
        rc = setting_write("ipv4", link, "send_redirects", "0", e);
    if (rc == 0)
        rc = bound(egress->host.socket, link, policy, e);
    if (rc == 0)
        rc = net_link_raise(egress->host.socket, link, net_host_address(&egress->site, place), e);
    return rc;
}

static int attach(struct net_egress *egress, int namespace_fd, uint32_t place,
                  const struct net_policy *policy, struct err *e)
{
    char link[NET_NAME_SIZE];
    net_link_name(&egress->site, place, link);
    /* The namespace of an earlier instance of this place may not be gone yet. */
    int rc = net_link_delete(egress->host.socket, link, e);
    if (rc == 0)
        rc = network_enter(egress->network, namespace_fd, e);
    if (rc < 0)
        return rc;
    rc = inside_make(egress, place, link, policy, e);
    network_leave(egress->network);
    return rc == 0 ? outside_make(egress, place, link, policy, e) : rc;
}

int net_egress_attach(struct net_egress *egress, int namespace_fd, uint32_t place,
                      const struct net_policy *policy, struct err *e)
{
    if (!egress->usable)
        return err_set(e, ERR_UNSUPPORTED, "%s", egress->refusal);
    int rc = net_host_check(&egress->host, e);
    if (rc == 0)
        rc = attach(egress, namespace_fd, place, policy, e);
    return rc < 0 ? err_wrap(e, "network: egress") : 0;
}

void net_egress_guard(struct net_egress *egress)
{
    struct err e;
    if (egress->usable && net_host_check(&egress->host, &e) < 0)
        log_warn("runner", "egress: %s", e.msg);
}

bool net_egress_bytes(struct net_egress *egress, uint32_t place, uint64_t *in, uint64_t *out)
{
    char link[NET_NAME_SIZE];
    struct net_link_bytes bytes;
    net_link_name(&egress->site, place, link);
    if (egress->host.socket == NULL || !net_link_bytes(egress->host.socket, link, &bytes))
        return false;
    /* The machine's end receives what the instance sent. */
    *in = bytes.sent;
    *out = bytes.received;
    return true;
}

int net_egress_allow(struct net_egress *egress, int namespace_fd, const uint32_t *addresses,
                     size_t count, uint16_t port, unsigned seconds, struct err *e)
{
    CLEANUP_FREE char *rules = net_named_rules(addresses, count, port, seconds);
    int rc = network_enter(egress->network, namespace_fd, e);
    if (rc < 0)
        return rc;
    rc = net_nft_run(rules, e);
    network_leave(egress->network);
    return rc;
}

/* --- life ------------------------------------------------------------------------------------------ */

/* Every kind of rule and a link, both of its ends in a namespace that goes at once. */
static int trial_inside(struct net_egress *egress, int namespace_fd, struct err *e)
{
    static const char *const allow[] = {"203.0.113.0/24", "203.0.113.1:443", "example.org:443"};
    static const char *const deny[] = {"203.0.113.9"};
    struct net_policy policy;
    struct nl_sock *socket = NULL;
    int rc =
        net_policy_parse(&policy, &egress->site, (char *const *)(uintptr_t)allow, ARRAY_SIZE(allow),
                         (char *const *)(uintptr_t)deny, ARRAY_SIZE(deny), e);
    if (rc < 0)
        return rc;
    CLEANUP_FREE char *rules = net_instance_rules(&egress->site, &policy);
    rc = net_nft_run(rules, e);
    if (rc < 0)
        return err_wrap(e, "this kernel or its modules lack what the rules need (nf_tables, "
                           "nft_ct, nft_connlimit, nft_reject_inet)");
    rc = net_link_socket(&socket, e);
    if (rc == 0)
        rc = net_link_pair(socket, INSIDE, "trial", namespace_fd, 0, e);
    net_link_socket_close(socket);
    return rc < 0 ? err_wrap(e, "this kernel or its modules lack veth") : 0;
}

static int trial(struct net_egress *egress, struct err *e)
{
    CLEANUP_FD int namespace_fd = -1;
    int rc = network_namespace_make(egress->network, &namespace_fd, e);
    if (rc == 0)
        rc = network_enter(egress->network, namespace_fd, e);
    if (rc < 0)
        return rc;
    rc = trial_inside(egress, namespace_fd, e);
    network_leave(egress->network);
    return rc;
}

static int host_open(struct net_egress *egress, struct err *e)
{
    int rc = net_link_socket(&egress->host.socket, e);
    if (rc == 0)
        rc = trial(egress, e);
    if (rc < 0)
        return rc;
    rc = net_host_install(&egress->host, e);
    return rc < 0 ? err_wrap(e, "put the rules of the machine in place") : 0;
}

int net_egress_open(struct net_egress **out, struct network *network,
                    const struct runner_config *config, bool able, struct err *e)
{
    const char *key;
    struct err why;
    struct net_egress *egress = calloc(1, sizeof *egress);
    if (egress == NULL)
        return err_set(e, ERR_NO_MEMORY, "egress");
    egress->network = network;
    egress->host.site = &egress->site;
    int rc = net_site_read(&egress->site, &egress->host.configured, config, &key, &why);
    if (!able) {
        text_format(
            egress->refusal, sizeof egress->refusal,
            "network: egress is not possible here: this runner was started without root and "
            "has no say in the machine's network; run skerry as root for it");
    } else if (rc == 0 && !config->egress) {
        net_host_tidy(&egress->host);
        text_format(egress->refusal, sizeof egress->refusal,
                    "network: egress is not allowed here; set allow.egress in runner.yaml");
    } else {
        rc = rc == 0 ? host_open(egress, &why) : rc;
        egress->usable = rc == 0;
        if (rc < 0) {
            text_format(egress->refusal, sizeof egress->refusal,
                        "network: egress is not possible here: %s", why.msg);
            text_format(egress->warning, sizeof egress->warning,
                        "workloads with network: {mode: egress} are refused: %s", why.msg);
        } else {
            (void)net_host_foreign_policy(&egress->host, egress->warning, sizeof egress->warning);
        }
    }
    if (egress->warning[0] != '\0')
        log_warn("runner", "%s", egress->warning);
    *out = egress;
    return 0;
}

void net_egress_close(struct net_egress *egress, bool in_use)
{
    struct err e;
    if (egress == NULL)
        return;
    if (egress->usable && !in_use && net_host_remove(&egress->host, &e) < 0)
        log_warn("runner", "egress: %s", e.msg);
    net_link_socket_close(egress->host.socket);
    free(egress);
}

const char *net_egress_refusal(const struct net_egress *egress)
{
    return egress->usable ? NULL : egress->refusal;
}

const char *net_egress_warning(const struct net_egress *egress)
{
    return egress->warning[0] == '\0' ? NULL : egress->warning;
}

const struct net_site *net_egress_site(const struct net_egress *egress)
{
    return &egress->site;
}
