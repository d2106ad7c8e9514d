/* The answer of `skerry status`: what registry, gossip, leases and the runner know of all nodes. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/cluster/known.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/control/fences.h"
#include "node/control/reports.h"
#include "node/control/status_facts.h"

/* Refusals are told for so long after the last. */
#define STRANGERS_TOLD_MS (10u * 60u * 1000u)

/* --- of one node ---------------------------------------------------------------------------------- */

struct gathering {
    struct node *node;
    struct registry_root *root;
    struct registry_status registry;
    struct registry_member members[KNOWN_NODES_MAX];
    size_t member_count;
    struct status_facts facts;
    size_t size;
};

static bool count_live(void *user, const struct registry_instance *i)
{
    (void)i;
    ++*(uint32_t *)user;
    return true;
}

static enum registry_role role_of(const struct gathering *g, node_id id)
{
    for (size_t i = 0; i < g->member_count; i++) {
        if (g->members[i].id == id)
            return g->members[i].role;
    }
    /* A spare reads through a neighbour and is no member of raft. */
    return REGISTRY_ROLE_SPARE;
}

static void address_text(const struct address *packed, char out[64])
{
    struct sockaddr_storage address;
    out[0] = '\0';
    if (address_unpack(&address, packed))
        address_format(&address, out);
}

/* What gossip says of another node. */
static void fill_known(struct gathering *g, struct status_fact *f)
{
    struct cluster_node known;
    f->state = GOSSIP_DEAD;
    if (g->node->cluster == NULL || !cluster_get(g->node->cluster, f->id, &known))
        return;
    uint64_t now = clock_monotonic_ms();
    f->state = known.state;
    f->since_wall_ms = known.state_since_ms != 0 && known.state_since_ms <= now
                           ? clock_wall_ms() - (now - known.state_since_ms)
                           : 0;
    (void)text_copy(f->zone, sizeof f->zone, known.meta.zone);
    (void)text_copy(f->version, sizeof f->version, known.meta.version);
    address_text(&known.meta.addresses[GOSSIP_PORT_HTTP], f->http);
    address_text(&known.meta.addresses[GOSSIP_PORT_API], f->api);
    f->role = role_of(g, f->id);
    f->cpus = (double)known.meta.cpu_millis / 1000.0;
    f->cpus_used = (double)known.load.cpu_millis / 1000.0;
    f->memory_bytes = known.meta.memory_bytes;
    f->memory_used_bytes = known.load.memory_bytes;
}

static void fill_self(struct gathering *g, struct status_fact *f)
{
    const struct node *n = g->node;
    const struct config *c = n->config;
    f->self = true;
    f->state = GOSSIP_ALIVE;
    f->role = role_of(g, n->id);
    (void)text_copy(f->name, sizeof f->name, c->name);
    (void)text_copy(f->address, sizeof f->address, c->advertise);
    (void)text_copy(f->http, sizeof f->http, c->http.count > 0 ? c->http.items[0] : "");
    (void)text_copy(f->api, sizeof f->api, c->api);
    (void)text_copy(f->zone, sizeof f->zone, c->zone);
    (void)text_copy(f->version, sizeof f->version, SKERRY_VERSION);
    f->cpus = n->machine.cpus;
    f->cpus_used = n->machine.cpus_used;
    f->memory_bytes = n->machine.memory_bytes;
    f->memory_used_bytes = n->machine.memory_used_bytes;
}

static bool gather_node(void *user, const struct registry_node *r)
{
    struct gathering *g = user;
    if (g->facts.count == g->size)
        return false;
    struct status_fact *f = &g->facts.nodes[g->facts.count++];
    *f = (struct status_fact){
        .id = r->id, .draining = r->draining, .leader = g->registry.leader_id == r->id};
    (void)text_copy(f->name, sizeof f->name, r->name);
    (void)text_copy(f->address, sizeof f->address, r->address);
    registry_root_live(g->root, r->id, count_live, &f->instances);
    struct report report = {0};
    if (r->id == g->node->id)
        fill_self(g, f);
    else
        fill_known(g, f);
    f->clock_known = f->self || (f->state == GOSSIP_ALIVE && reports_get(g->node, r->id, &report));
    f->ahead_ms = f->clock_known && !f->self ? report.ahead_ms : 0;
    uint64_t left_ms = fences_left_ms(g->node, r->id);
    f->lease_known = left_ms != 0;
    f->lease_s = (double)left_ms / 1000.0;
    return true;
}

/* --- of all --------------------------------------------------------------------------------------- */

/* How many strangers were refused since the last time that it was quiet for long. */
static uint64_t strangers(struct node *n)
{
    struct cluster_refusals r = {0};
    uint64_t now = clock_monotonic_ms();
    if (n->cluster != NULL)
        cluster_refusals(n->cluster, &r);
    uint64_t sum = r.gossip_unknown_key + r.gossip_forged + r.streams;
    if (now >= n->strangers_until_ms)
        n->strangers_before = n->strangers_seen;
    if (sum != n->strangers_seen)
        n->strangers_until_ms = now + STRANGERS_TOLD_MS;
    n->strangers_seen = sum;
    return sum - n->strangers_before;
}

/* False: no memory. The caller frees facts.nodes and releases the root. */
static bool gather(struct node *n, struct gathering *g)
{
    *g = (struct gathering){.node = n, .size = KNOWN_NODES_MAX};
    g->facts.nodes = calloc(KNOWN_NODES_MAX, sizeof *g->facts.nodes);
    registry_status(n->registry, &g->registry);
    g->member_count = registry_members(n->registry, g->members, ARRAY_SIZE(g->members));
    if (g->member_count > ARRAY_SIZE(g->members))
        g->member_count = ARRAY_SIZE(g->members);
    g->root = registry_root(n->registry);
    if (g->facts.nodes == NULL)
        return false;
    registry_root_nodes(g->root, gather_node, g);
    g->facts.has_leader = g->registry.leader || g->registry.leader_id != 0;
    g->facts.voters_wanted = (unsigned)n->config->raft.voters;
    g->facts.strangers = strangers(n);
    return true;
}

/* Whoever renews does it long before: certbot a third of the time before the end. */
static void warn_certificate(const struct node *n, json_t *warnings)
{
    enum { WARN_DAYS = 5, DAY_S = 86400 };
    int64_t ends = n->gateway == NULL ? 0 : gateway_certificate_expires_s(n->gateway);
    int64_t left = ends - (int64_t)(clock_wall_ms() / 1000);
    if (ends == 0 || left > (int64_t)WARN_DAYS * DAY_S)
        return;
    status_warn(warnings,
                left > 0 ? "%s  a certificate of HTTPS ends in %lld h; renew it, and reload "
                           "(SIGHUP) so that it is used"
                         : "%s  a certificate of HTTPS ended %lld h ago; renew it, and reload "
                           "(SIGHUP) so that it is used",
                n->config->name, (long long)(left > 0 ? left : -left) / 3600);
}

static void warn_unenforced(const struct node *n, json_t *warnings)
{
    char names[128] = "";
    for (size_t k = 0; n->hello != NULL && k < n->hello->n_unenforced; k++) {
        size_t length = strlen(names);
        (void)text_format(names + length, sizeof names - length, "%s%s", k == 0 ? "" : ", ",
                          n->hello->unenforced[k]);
    }
    if (names[0] != '\0')
        status_warn(warnings, "%s  limits not enforced: %s; workloads that set one %s",
                    n->config->name, names,
                    n->config->sandbox.allow_unenforced
                        ? "run here without it (sandbox.allow_unenforced)"
                        : "are refused here unless sandbox.allow_unenforced is set");
}

bool status_self(const struct node *n, json_t *warnings)
{
    const char *name = n->config->name;
    if (!sandbox_connected(n->sandbox))
        status_warn(warnings,
                    "%s  the runner is not reachable at %s; nothing can start, running "
                    "instances can still be joined",
                    name, n->config->runner_socket);
    else if (!n->reconciled)
        status_warn(warnings, "%s  instances are being re-adopted", name);
    warn_unenforced(n, warnings);
    for (size_t k = 0; n->hello != NULL && k < n->hello->n_warnings; k++)
        status_warn(warnings, "%s  %s", name, n->hello->warnings[k]);
    warn_certificate(n, warnings);
    tcp_ports_warn(n, warnings);
    return sandbox_connected(n->sandbox) && n->reconciled;
}

/* What each node says of itself. False: one of them is not well. */
static bool warn_selves(const struct node *n, const struct status_facts *facts, json_t *warnings)
{
    bool well = true;
    for (size_t i = 0; i < facts->count; i++) {
        const struct status_fact *f = &facts->nodes[i];
        struct report r;
        if (f->self) {
            well = status_self(n, warnings) && well;
        } else if (f->state == GOSSIP_ALIVE && reports_get(n, f->id, &r)) {
            (void)json_array_extend(warnings, r.warnings);
            well = well && r.well;
        }
    }
    return well;
}

json_t *status_json(struct node *n)
{
    struct gathering *g = malloc(sizeof *g);
    if (g == NULL)
        return NULL;
    json_t *out = NULL;
    if (gather(n, g)) {
        struct status_verdict v = status_judge(&g->facts);
        json_t *nodes = json_array(), *warnings = json_array();
        const char *leader = NULL;
        for (size_t i = 0; i < g->facts.count; i++) {
            const struct status_fact *f = &g->facts.nodes[i];
            leader = f->leader ? f->name : leader;
            (void)json_array_append_new(nodes, status_node_json(f));
        }
        status_warnings(warnings, &g->facts);
        bool healthy = warn_selves(n, &g->facts, warnings) && v.well;
        out = json_pack("{s:s, s:s, s:b, s:s?, s:I, s:I, s:i, s:i, s:o, s:o}", "cluster",
                        n->config->cluster, "cluster_id", registry_root_cluster_id(g->root),
                        "healthy", (int)healthy, "leader", leader, "term",
                        (json_int_t)g->registry.term, "commit_index",
                        (json_int_t)g->registry.commit_index, "voters", (int)v.voters, "can_lose",
                        (int)v.can_lose, "warnings", warnings, "nodes", nodes);
    }
    registry_root_release(g->root);
    free(g->facts.nodes);
    free(g);
    return out;
}
