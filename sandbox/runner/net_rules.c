#include "sandbox/runner/net_rules.h"

#include <string.h>

#include "base/buffer.h"
#include "base/memory.h"

#define RULES_BYTES_MAX (64 * 1024)

/* Always denied unless root's file permits it by name. The documentation networks (RFC 5737) are not
 * among them: nothing of anybody's is there. IPv6 is denied as a whole. */
static const struct {
    uint32_t network;
    unsigned prefix;
} denied[] = {
    {0x00000000, 8},  /* this network */
    {0x0a000000, 8},  /* private (RFC 1918) */
    {0x64400000, 10}, /* carriers' own (RFC 6598), some clouds' metadata among it */
    {0x7f000000, 8},  /* loopback */
    {0xa9fe0000, 16}, /* link-local, with the clouds' metadata at 169.254.169.254 */
    {0xac100000, 12}, /* private */
    {0xc0000000, 24}, /* protocol assignments (RFC 6890) */
    {0xc0586300, 24}, /* 6to4 relays (RFC 7526) */
    {0xc0a80000, 16}, /* private */
    {0xc6120000, 15}, /* benchmarks of devices (RFC 2544) */
    {0xe0000000, 4},  /* multicast */
    {0xf0000000, 4},  /* reserved, and broadcast */
};

/* What nodes listen on for each other and for their API. Permitting a network does not permit them: a
 * port has to be named for that. */
#define CLUSTER_PORTS "7600-7603, 8081"

bool net_always_denied(uint32_t address)
{
    for (size_t i = 0; i < ARRAY_SIZE(denied); i++)
        if ((address & destination_mask(denied[i].prefix)) == denied[i].network)
            return true;
    return false;
}

/* --- policies ------------------------------------------------------------------------------------- */

static int list_parse(struct destination *out, size_t *out_count, const char *key,
                      char *const *texts, size_t count, struct err *e)
{
    if (count > NET_DESTINATIONS_MAX)
        return err_set(e, ERR_INVALID, "%s: %zu destinations; at most %d", key, count,
                       NET_DESTINATIONS_MAX);
    for (size_t i = 0; i < count; i++) {
        struct err why;
        if (destination_parse(&out[i], texts[i], &why) < 0)
            return err_set(e, ERR_INVALID, "%s: %s", key, why.msg);
    }
    *out_count = count;
    return 0;
}

/* All of it is denied and none of it permitted. */
static bool never_acts(const struct destination *d, const struct net_site *site)
{
    bool inside = false;
    for (size_t i = 0; i < ARRAY_SIZE(denied); i++)
        inside = inside || (d->prefix >= denied[i].prefix &&
                            destination_overlaps(d, denied[i].network, denied[i].prefix));
    for (size_t i = 0; i < site->permitted_count && inside; i++)
        if (destination_overlaps(d, site->permitted[i].network, site->permitted[i].prefix))
            inside = false;
    return inside;
}

int net_policy_parse(struct net_policy *out, const struct net_site *site, char *const *allow,
                     size_t allow_count, char *const *deny, size_t deny_count, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    memset(out, 0, sizeof *out);
    int rc = list_parse(out->allow, &out->allow_count, "network.allow", allow, allow_count, e);
    if (rc == 0)
        rc = list_parse(out->deny, &out->deny_count, "network.deny", deny, deny_count, e);
    for (size_t i = 0; rc == 0 && i < out->deny_count; i++)
        if (out->deny[i].kind == DESTINATION_NAME)
            rc = err_set(e, ERR_INVALID,
                         "network.deny: %s is a name; write the network that is to be denied",
                         text_show(deny[i], shown));
    for (size_t i = 0; rc == 0 && i < out->allow_count; i++)
        if (out->allow[i].kind == DESTINATION_NETWORK && never_acts(&out->allow[i], site))
            rc = err_set(e, ERR_DENIED,
                         "network.allow: %s is private, link-local or reserved, which no instance "
                         "reaches unless allow.destinations in runner.yaml permits it",
                         text_show(allow[i], shown));
    return rc;
}

bool net_policy_has_names(const struct net_policy *policy)
{
    for (size_t i = 0; i < policy->allow_count; i++)
        if (policy->allow[i].kind == DESTINATION_NAME)
            return true;
    return false;
}

/* --- addresses and names -------------------------------------------------------------------------- */

uint32_t net_host_address(const struct net_site *site, uint32_t place)
{
    assert_always(place < 1u << (32 - NET_PREFIX_MAX - 1));
    return site->network + 2 * place;
}

uint32_t net_instance_address(const struct net_site *site, uint32_t place)
{
    return net_host_address(site, place) + 1;
}

void net_link_prefix(const struct net_site *site, char out[NET_NAME_SIZE])
{
    text_format(out, NET_NAME_SIZE, NET_LINK_PREFIX_ANY "%u-", site->place_first);
}

void net_link_name(const struct net_site *site, uint32_t place, char out[NET_NAME_SIZE])
{
    text_format(out, NET_NAME_SIZE, NET_LINK_PREFIX_ANY "%u-%u", site->place_first, place);
}

void net_table_name(const struct net_site *site, char out[NET_NAME_SIZE])
{
    if (site->place_first == 0)
        text_copy(out, NET_NAME_SIZE, NET_TABLE_PREFIX_ANY);
    else
        text_format(out, NET_NAME_SIZE, NET_TABLE_PREFIX_ANY "_%u", site->place_first);
}

/* --- pieces of a text; the buffer's bound is far above what they can come to ------------------------- */

/* A piece that did not fit closes the text for all that follows, its end among it: rules with a hole would
 * be worse than none. */
#define put(b, ...)                                                                                \
    do {                                                                                           \
        if (!buffer_printf(b, __VA_ARGS__))                                                        \
            (b)->length_max = (b)->length;                                                         \
    } while (0)

#define NETWORK_FORMAT "%u.%u.%u.%u/%u"
#define NETWORK_VALUES(network, prefix)                                                            \
    (network) >> 24, (network) >> 16 & 0xff, (network) >> 8 & 0xff, (network)&0xff, (prefix)

static void set_begin(struct buffer *b, const char *name)
{
    put(b, "set %s { type ipv4_addr; flags interval; auto-merge; elements = { ", name);
}

/* Those without a port. False, and no set, when there is none. */
static bool networks_set(struct buffer *b, const char *name, const struct destination *list,
                         size_t count)
{
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        if (list[i].kind != DESTINATION_NETWORK || !list[i].any_port)
            continue;
        if (!any)
            set_begin(b, name);
        put(b, NETWORK_FORMAT ", ", NETWORK_VALUES(list[i].network, list[i].prefix));
        any = true;
    }
    if (any)
        put(b, "}; }\n");
    return any;
}

static bool same_ports(const struct destination *a, const struct destination *b)
{
    return a->kind == b->kind && a->any_port == b->any_port && a->network == b->network &&
           a->prefix == b->prefix && a->port_first == b->port_first && a->port_last == b->port_last;
}

/* Rules and no set: sets of two dimensions refuse elements that overlap, which a list may hold. */
static void ports_rules(struct buffer *b, const struct destination *list, size_t count,
                        const char *verdict)
{
    for (size_t i = 0; i < count; i++) {
        bool twice = false;
        for (size_t k = 0; k < i; k++)
            twice = twice || same_ports(&list[k], &list[i]);
        if (list[i].kind != DESTINATION_NETWORK || list[i].any_port || twice)
            continue;
        put(b, "meta l4proto { tcp, udp } ip daddr " NETWORK_FORMAT " th dport %u-%u %s\n",
            NETWORK_VALUES(list[i].network, list[i].prefix), list[i].port_first, list[i].port_last,
            verdict);
    }
}

static void denied_set(struct buffer *b)
{
    set_begin(b, "denied");
    for (size_t i = 0; i < ARRAY_SIZE(denied); i++)
        put(b, NETWORK_FORMAT ", ", NETWORK_VALUES(denied[i].network, denied[i].prefix));
    put(b, "}; }\n");
}

static void names_set(struct buffer *b, const char *name, const struct net_uplinks *names)
{
    put(b, "set %s { type ifname; ", name);
    if (names->count > 0) {
        put(b, "elements = { ");
        for (size_t i = 0; i < names->count; i++)
            put(b, "\"%s\", ", names->names[i]);
        put(b, "}; ");
    }
    put(b, "}\n");
}

/* What root's file permits first, then the denials. */
static void denials(struct buffer *b, const struct net_site *site, bool permitted,
                    const char *passed, const char *refused)
{
    /* Other instances, whatever root's file permits. */
    put(b, "ip daddr " NETWORK_FORMAT " %s\n", NETWORK_VALUES(site->network, site->prefix),
        refused);
    ports_rules(b, site->permitted, site->permitted_count, passed);
    if (permitted) {
        put(b, "meta l4proto { tcp, udp } ip daddr @denied th dport { " CLUSTER_PORTS " } %s\n",
            refused);
        put(b, "ip daddr @permitted %s\n", passed);
    }
    put(b, "ip daddr @denied %s\n", refused);
}

static char *finish(struct buffer *b)
{
    static const char end[] = "\n# end\n";
    if (!buffer_append(b, end, sizeof end)) {
        buffer_free(b);
        return NULL;
    }
    return b->data;
}

/* --- the machine's table ---------------------------------------------------------------------------- */

/* Before connections are tracked and before anybody rewrites a destination: what is refused costs
 * nothing, and no port that the machine forwards elsewhere is a way around. */
static void host_prerouting(struct buffer *b, const struct net_site *site, const char *prefix,
                            bool permitted)
{
    put(b, "chain instance {\nmeta nfproto != ipv4 drop\n");
    put(b, "ip saddr != " NETWORK_FORMAT " drop\n", NETWORK_VALUES(site->network, site->prefix));
    put(b, "meta l4proto != { tcp, udp, icmp } drop\n");
    denials(b, site, permitted, "accept", "drop");
    /* Its own public addresses, and broadcasts. */
    put(b, "fib daddr type != unicast drop\n}\n");
    put(b,
        "chain prerouting { type filter hook prerouting priority -310; policy accept;\n"
        "iifname \"%s*\" goto instance\n}\n",
        prefix);
}

static void host_input(struct buffer *b, const struct net_site *site, const char *prefix,
                       bool permitted)
{
    put(b, "chain to_host {\n");
    ports_rules(b, site->permitted, site->permitted_count, "accept");
    if (permitted)
        put(b, "meta l4proto { tcp, udp } th dport { " CLUSTER_PORTS " } drop\n"
               "ip daddr @permitted accept\n");
    put(b,
        "drop\n}\nchain input { type filter hook input priority -310; policy accept;\n"
        "iifname \"%s*\" goto to_host\n}\n",
        prefix);
}

/* An interface whose forwarding we switched on forwards for instances only. */
static void host_forward(struct buffer *b, const char *prefix)
{
    put(b,
        "chain forward { type filter hook forward priority -310; policy accept;\n"
        "iifname \"%s*\" oifname != @uplinks drop\n"
        "iifname \"%s*\" accept\n"
        "oifname \"%s*\" ct state established,related accept\n"
        "oifname \"%s*\" drop\n"
        "iifname @switched oifname != \"" NET_LINK_PREFIX_ANY "*\" drop\n}\n",
        prefix, prefix, prefix, prefix);
}

char *net_host_rules(const struct net_site *site, const struct net_uplinks *uplinks,
                     const struct net_uplinks *switched)
{
    char table[NET_NAME_SIZE], prefix[NET_NAME_SIZE];
    struct buffer b;
    net_table_name(site, table);
    net_link_prefix(site, prefix);
    buffer_init(&b, RULES_BYTES_MAX);
    put(&b, "table inet %s\ndelete table inet %s\ntable inet %s {\n", table, table, table);
    denied_set(&b);
    bool permitted = networks_set(&b, "permitted", site->permitted, site->permitted_count);
    names_set(&b, "uplinks", uplinks);
    names_set(&b, "switched", switched);
    host_prerouting(&b, site, prefix, permitted);
    host_input(&b, site, prefix, permitted);
    host_forward(&b, prefix);
    put(&b,
        "chain postrouting { type nat hook postrouting priority 100; policy accept;\n"
        "ip saddr " NETWORK_FORMAT " oifname @uplinks masquerade\n}\n}\n",
        NETWORK_VALUES(site->network, site->prefix));
    return finish(&b);
}

char *net_host_rules_remove(const struct net_site *site)
{
    char table[NET_NAME_SIZE];
    net_table_name(site, table);
    return text_new("table inet %s\ndelete table inet %s\n", table, table);
}

/* --- the instance's table ------------------------------------------------------------------------------ */

/* Refusals answer, so that code hears of them at once instead of after its own timeout. */
#define REFUSE "reject with icmp type admin-prohibited"

static void instance_output(struct buffer *b, const struct net_site *site,
                            const struct net_policy *policy, bool permitted, bool denying)
{
    /* Connections that were allowed once go on, also when the answer that named them has run out. */
    put(b, "chain output { type filter hook output priority 0; policy drop;\n"
           "oifname \"lo\" accept\n"
           "meta nfproto != ipv4 drop\n"
           "meta l4proto != { tcp, udp, icmp } drop\n"
           "ct state established,related accept\n");
    ports_rules(b, policy->deny, policy->deny_count, REFUSE);
    if (denying)
        put(b, "ip daddr @workload_denied " REFUSE "\n");
    denials(b, site, permitted, "goto chosen", REFUSE);
    put(b, "goto chosen\n}\n");
}

static void instance_chosen(struct buffer *b, const struct net_policy *policy, bool allowing)
{
    put(b, "chain chosen {\nct count over %u drop\n", NET_CONNECTIONS_MAX);
    if (policy->allow_count == 0) {
        put(b, "accept\n}\n");
        return;
    }
    if (allowing)
        put(b, "ip daddr @workload_allowed accept\n");
    ports_rules(b, policy->allow, policy->allow_count, "accept");
    if (net_policy_has_names(policy))
        put(b, "meta l4proto { tcp, udp } ip daddr . th dport @named accept\n");
    put(b, REFUSE "\n}\n");
}

char *net_instance_rules(const struct net_site *site, const struct net_policy *policy)
{
    struct buffer b;
    buffer_init(&b, RULES_BYTES_MAX);
    put(&b, "table inet skerry {\n");
    denied_set(&b);
    bool permitted = networks_set(&b, "permitted", site->permitted, site->permitted_count);
    bool allowing = networks_set(&b, "workload_allowed", policy->allow, policy->allow_count);
    bool denying = networks_set(&b, "workload_denied", policy->deny, policy->deny_count);
    if (net_policy_has_names(policy))
        put(&b, "set named { type ipv4_addr . inet_service; flags timeout; size %u; }\n",
            NET_NAMED_MAX);
    put(&b, "chain input { type filter hook input priority 0; policy drop;\n"
            "iifname \"lo\" accept\n"
            "ct state established,related accept\n}\n"
            "chain forward { type filter hook forward priority 0; policy drop; }\n");
    instance_chosen(&b, policy, allowing);
    instance_output(&b, site, policy, permitted, denying);
    put(&b, "}\n");
    return finish(&b);
}

char *net_named_rules(const uint32_t *addresses, size_t count, uint16_t port, unsigned seconds)
{
    static const char *const verbs[] = {"add", "delete", "add"};
    struct buffer b;
    buffer_init(&b, RULES_BYTES_MAX);
    /* Adding what is there would leave its time as it was. */
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < ARRAY_SIZE(verbs); k++) {
            uint32_t a = addresses[i];
            put(&b, "%s element inet skerry named { %u.%u.%u.%u . %u timeout %us }\n", verbs[k],
                a >> 24, a >> 16 & 0xff, a >> 8 & 0xff, a & 0xff, port, seconds);
        }
    return finish(&b);
}
