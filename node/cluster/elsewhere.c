#include "node/cluster/elsewhere.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "raft/registry.h"

struct other {
    UT_hash_handle hh;
    node_id id;
    char name[64];
    bool alive, serves; /* serves: neither suspected nor draining */
    uint32_t load;
};

struct shared_workload {
    UT_hash_handle hh;
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    uint64_t version;
    bool replaced; /* one of the current version is ready somewhere: `owners` have it too */
    uint32_t owner_count;
    node_id owners[GATEWAY_OWNERS_MAX];
};

struct elsewhere {
    unsigned holders;
    struct other *others;
    struct shared_workload *workloads;
};

static struct other *other_find(const struct elsewhere *e, node_id id)
{
    struct other *other = NULL;
    HASH_FIND(hh, e->others, &id, sizeof id, other);
    return other;
}

/* Thousandths of its cores that are in use; of a node that tells nothing: it may be full. */
static uint32_t load_of(const struct cluster_node *node)
{
    if (node->meta.cpu_millis == 0)
        return 1000;
    uint64_t load = (uint64_t)node->load.cpu_millis * 1000 / node->meta.cpu_millis;
    return load > UINT32_MAX ? UINT32_MAX : (uint32_t)load;
}

static bool add_others(struct elsewhere *e, struct cluster *cluster,
                       const struct registry_root *root)
{
    struct cluster_node node;
    for (node_id at = 0; cluster_next(cluster, &at, &node);) {
        const struct registry_node *registered = registry_root_node(root, node.id);
        struct other *other = node.self ? NULL : calloc(1, sizeof *other);
        if (node.self)
            continue;
        if (other == NULL)
            return false;
        other->id = node.id;
        (void)text_copy(other->name, sizeof other->name, node.meta.name);
        other->alive = node.state == GOSSIP_ALIVE || node.state == GOSSIP_SUSPECT;
        other->serves = node.state == GOSSIP_ALIVE && registered != NULL && registered->leased &&
                        !registered->draining;
        other->load = load_of(&node);
        HASH_ADD(hh, e->others, id, sizeof other->id, other);
    }
    return true;
}

struct adding {
    struct elsewhere *e;
    const struct registry_root *root;
    struct shared_workload *last; /* instances of one workload come in rows */
    bool failed;
};

static struct shared_workload *workload_get(struct adding *a, const struct registry_instance *i)
{
    struct shared_workload *w = a->last;
    size_t length = strlen(i->workload);
    if (w != NULL && strcmp(w->name, i->workload) == 0)
        return w;
    HASH_FIND(hh, a->e->workloads, i->workload, length, w);
    if (w == NULL) {
        const struct registry_workload *current =
            registry_root_workload(a->root, i->workload, length);
        w = calloc(1, sizeof *w);
        if (w == NULL)
            return NULL;
        (void)text_copy(w->name, sizeof w->name, i->workload);
        w->version = current != NULL ? current->version : 0;
        HASH_ADD_KEYPTR(hh, a->e->workloads, w->name, length, w);
    }
    a->last = w;
    return w;
}

static bool add_instance(void *user, const struct registry_instance *i)
{
    struct adding *a = user;
    if (i->state != INSTANCE_STATE_READY || i->key[0] != '\0' || i->workload[0] == '\0')
        return true;
    struct shared_workload *w = workload_get(a, i);
    if (w == NULL) {
        a->failed = true;
        return false;
    }
    if (i->version == w->version && !w->replaced) {
        w->replaced = true;
        w->owner_count = 0;
    }
    const struct other *other = other_find(a->e, i->owner);
    if (other == NULL || !other->serves || (w->replaced && i->version != w->version) ||
        w->owner_count >= GATEWAY_OWNERS_MAX)
        return true;
    /* They come in order of owner. */
    if (w->owner_count == 0 || w->owners[w->owner_count - 1] != i->owner)
        w->owners[w->owner_count++] = i->owner;
    return true;
}

static void elsewhere_free(struct elsewhere *e)
{
    struct other *other, *next_other;
    struct shared_workload *w, *next_w;
    HASH_ITER(hh, e->others, other, next_other)
    {
        HASH_DEL(e->others, other);
        free(other);
    }
    HASH_ITER(hh, e->workloads, w, next_w)
    {
        HASH_DEL(e->workloads, w);
        free(w);
    }
    free(e);
}

struct elsewhere *elsewhere_new(struct cluster *cluster, const struct registry_root *root)
{
    struct elsewhere *e = calloc(1, sizeof *e);
    if (e == NULL)
        return NULL;
    e->holders = 1;
    struct adding adding = {.e = e, .root = root};
    bool ok = add_others(e, cluster, root);
    if (ok && e->others != NULL)
        registry_root_live(root, 0, add_instance, &adding);
    if (ok && !adding.failed)
        return e;
    elsewhere_free(e);
    return NULL;
}

struct elsewhere *elsewhere_hold(struct elsewhere *e)
{
    if (e != NULL)
        e->holders++;
    return e;
}

void elsewhere_drop(struct elsewhere *e)
{
    if (e != NULL && --e->holders == 0)
        elsewhere_free(e);
}

/* --- reading ---------------------------------------------------------------------------------------- */

void elsewhere_owners(const struct elsewhere *e, struct gateway_workload *out)
{
    struct shared_workload *w = NULL;
    out->owner_count = 0;
    if (e == NULL || e->workloads == NULL)
        return;
    HASH_FIND(hh, e->workloads, out->name, strlen(out->name), w);
    if (w == NULL || w->version != out->version)
        return;
    for (uint32_t k = 0; k < w->owner_count; k++) {
        const struct other *other = other_find(e, w->owners[k]);
        out->owners[k] = (struct gateway_owner){w->owners[k], other->load};
    }
    out->owner_count = w->owner_count;
}

bool elsewhere_alive(const struct elsewhere *e, node_id id)
{
    const struct other *other = e == NULL ? NULL : other_find(e, id);
    return other != NULL && other->alive;
}

bool elsewhere_peer(const struct elsewhere *e, node_id id, struct gateway_peer *out)
{
    const struct other *other = e == NULL ? NULL : other_find(e, id);
    if (other == NULL)
        return false;
    (void)text_copy(out->name, sizeof out->name, other->name);
    out->alive = other->alive;
    return true;
}
