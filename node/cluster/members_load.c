/* What others are told of this node: what it is (meta), now and then, and how busy (load), each second. */
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/members_internal.h"
#include "node/config.h"

enum { LOAD_MS = 1000 };

/* --- meta ------------------------------------------------------------------------------------------- */

/* Where `listen` is reached from outside: "0.0.0.0" is every address, the advertised one among them. */
static void meta_address(const struct config *c, const char *listen, struct address *out)
{
    struct sockaddr_storage address, own;
    struct err e;
    if (address_parse(&address, listen, 0, &e) != 0)
        return;
    bool any4 = address.ss_family == AF_INET &&
                ((struct sockaddr_in *)&address)->sin_addr.s_addr == htonl(INADDR_ANY);
    bool any6 = address.ss_family == AF_INET6 &&
                IN6_IS_ADDR_UNSPECIFIED(&((struct sockaddr_in6 *)&address)->sin6_addr);
    if ((any4 || any6) && address_parse(&own, c->advertise, 0, &e) == 0) {
        in_port_t port = any4 ? ((struct sockaddr_in *)&address)->sin_port
                              : ((struct sockaddr_in6 *)&address)->sin6_port;
        address = own;
        if (own.ss_family == AF_INET)
            ((struct sockaddr_in *)&address)->sin_port = port;
        else
            ((struct sockaddr_in6 *)&address)->sin6_port = port;
    }
    (void)address_pack(out, &address);
}

static void meta_labels(const struct config *c, struct gossip_meta *out)
{
    for (size_t i = 0; i < c->labels.count && i < GOSSIP_LABELS_MAX; i++) {
        const char *item = c->labels.items[i];
        size_t length = strcspn(item, "=");
        struct gossip_label *label = &out->labels[out->label_count++];
        (void)text_format(label->key, sizeof label->key, "%.*s", (int)length, item);
        (void)text_copy(label->value, sizeof label->value, item + length + 1);
    }
}

static uint32_t own_role(const struct node *n)
{
    struct registry_member members[KNOWN_NODES_MAX];
    if (n->registry == NULL)
        return REGISTRY_ROLE_NONE;
    size_t count = registry_members(n->registry, members, ARRAY_SIZE(members));
    for (size_t i = 0; i < count && i < ARRAY_SIZE(members); i++) {
        if (members[i].id == n->id)
            return (uint32_t)members[i].role;
    }
    return n->registered ? REGISTRY_ROLE_SPARE : REGISTRY_ROLE_NONE;
}

void members_meta(struct members *m, struct gossip_meta *out)
{
    const struct node *n = m->node;
    const struct config *c = n->config;
    memset(out, 0, sizeof *out); /* what lies between members too: it is compared whole */
    out->roles = own_role(n);
    out->instances_max = control_narrow(c->limits.instances_max);
    (void)text_copy(out->name, sizeof out->name, c->name);
    (void)text_copy(out->zone, sizeof out->zone, c->zone);
    (void)text_copy(out->version, sizeof out->version, SKERRY_VERSION);
    if (n->hello != NULL) {
        out->cpu_millis = control_narrow((uint64_t)n->hello->cpus * 1000u);
        out->memory_bytes = n->hello->memory_bytes;
    }
    if (c->http.count > 0)
        meta_address(c, c->http.items[0], &out->addresses[GOSSIP_PORT_HTTP]);
    if (strcmp(c->api, "none") != 0)
        meta_address(c, c->api, &out->addresses[GOSSIP_PORT_API]);
    meta_labels(c, out);
}

/* --- load ------------------------------------------------------------------------------------------- */

struct tally {
    UT_hash_handle hh;
    struct gossip_load_workload of;
};

/* The busiest first. */
static int by_joiners(const struct tally *a, const struct tally *b)
{
    uint64_t left = (uint64_t)a->of.joiners + a->of.instances;
    uint64_t right = (uint64_t)b->of.joiners + b->of.instances;
    return left == right ? 0 : left > right ? -1 : 1;
}

static void tally_workload(struct tally **all, const struct instance *i, uint32_t joiners)
{
    uint64_t hash = gossip_workload_hash(i->name);
    struct tally *t = NULL;
    HASH_FIND(hh, *all, &hash, sizeof hash, t);
    if (t == NULL) {
        t = calloc(1, sizeof *t);
        if (t == NULL)
            return; /* a hint is missing, no more */
        t->of.workload = hash;
        HASH_ADD(hh, *all, of.workload, sizeof t->of.workload, t);
    }
    t->of.instances++;
    t->of.joiners += joiners;
}

static void load_of(const struct node *n, struct gossip_load *out)
{
    struct tally *all = NULL, *t, *next;
    *out = (struct gossip_load){.cpu_millis =
                                    control_narrow((uint64_t)(n->machine.cpus_used * 1000.0)),
                                .memory_bytes = n->machine.memory_used_bytes};
    for (const struct instance *i = n->instances_by_id; i != NULL; i = i->by_id.next) {
        if (i->phase == PHASE_ENDED)
            continue;
        uint32_t joiners = i->slot.slot != NULL ? slot_joiners(i->slot) : 0;
        out->instances++;
        out->joiners += joiners;
        if (i->name[0] != '\0')
            tally_workload(&all, i, joiners);
    }
    HASH_SRT(hh, all, by_joiners);
    HASH_ITER(hh, all, t, next)
    {
        if (out->workload_count < GOSSIP_LOAD_WORKLOADS_MAX)
            out->workloads[out->workload_count++] = t->of;
        HASH_DEL(all, t);
        free(t);
    }
}

void members_tell(struct members *m)
{
    struct gossip_meta meta;
    struct gossip_load load;
    uint64_t now_ms = clock_monotonic_ms();
    members_meta(m, &meta);
    /* Both were zeroed whole; a difference in what pads them would cost one packet.
     * NOLINTNEXTLINE(bugprone-suspicious-memory-comparison) */
    if (memcmp(&meta, &m->meta, sizeof meta) != 0) {
        m->meta = meta;
        cluster_tell_meta(m->node->cluster, &meta);
    }
    if (m->load_told_ms != 0 && now_ms - m->load_told_ms < LOAD_MS)
        return;
    m->load_told_ms = now_ms;
    load_of(m->node, &load);
    cluster_tell_load(m->node->cluster, &load);
}
