/* From an open registry to a node that may take part:
 *
 *   read strongly -> caught up -> cluster made? -> our entry right? -> registered -> node_progress
 *                                    | CLUSTER_INIT    | NODE_PUT
 *
 * Each step is looked at again whenever the registry changes, and each tick: what failed is tried again.
 * A follower proposes like the leader; its proposals travel. */
#include <sodium.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/members_internal.h"
#include "node/config.h"
#include "node/control/fences.h"

enum { TELL_FIRST_MS = 5000, TELL_EVERY_MS = 30000 };

static void read_cb(void *user, const struct err *error)
{
    struct members *m = user;
    uint64_t now_ms = clock_monotonic_ms();
    m->reading = false;
    if (m->stopping)
        return;
    if (error == NULL) {
        m->caught_up = true;
        log_info("registry", "caught up");
        members_registry_changed(m->node);
        members_register(m);
        return;
    }
    if (now_ms - m->begun_ms < TELL_FIRST_MS || now_ms - m->waiting_told_ms < TELL_EVERY_MS)
        return;
    m->waiting_told_ms = now_ms;
    log_warn("registry", "cannot be read yet: %s. Most voters must run and be reached", error->msg);
}

static void proposed_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct members *m = user;
    uint64_t now_ms = clock_monotonic_ms();
    m->proposing = false;
    if (m->stopping)
        return;
    if (error == NULL && result->problem == PROBLEM_NONE) {
        members_register(m);
        return;
    }
    /* The next tick tries again: the name may be free by then, or the leader there. */
    if (m->refused_told_ms != 0 && now_ms - m->refused_told_ms < TELL_EVERY_MS)
        return;
    m->refused_told_ms = now_ms;
    log_error("registry", "%s: %s",
              m->node->registered ? "the cluster has no host key for SSH yet"
                                  : "this node is not registered yet",
              error != NULL ? error->msg : result->detail);
}

static void propose(struct members *m, struct registry_command *command)
{
    struct err e = {0};
    command->wall_ms = clock_wall_ms();
    m->proposing = true;
    if (registry_propose(m->node->registry, command, proposed_cb, m, &e) == 0)
        return;
    m->proposing = false;
    log_debug("registry", "%s", e.msg);
}

static bool is_registered(const struct members *m, const struct registry_node *self)
{
    const struct config *c = m->node->config;
    return self != NULL && strcmp(self->name, c->name) == 0 &&
           strcmp(self->address, c->advertise) == 0 &&
           memcmp(self->public_key, identity_public(cluster_identity(m->node->cluster))->bytes,
                  sizeof self->public_key) == 0;
}

static void put_self(struct members *m, bool known)
{
    struct node *n = m->node;
    struct registry_node record = {.id = known ? n->id : 0};
    (void)text_copy(record.name, sizeof record.name, n->config->name);
    (void)text_copy(record.address, sizeof record.address, n->config->advertise);
    memcpy(record.public_key, identity_public(cluster_identity(n->cluster))->bytes,
           sizeof record.public_key);
    propose(m, &(struct registry_command){.kind = REGISTRY_NODE_PUT, .node = &record});
}

/* A registry that is older than gossip has no key for it: ours is added, then used. */
static void put_key(struct members *m, enum registry_keyring_verb verb, const uint8_t *key)
{
    propose(m, &(struct registry_command){
                   .kind = REGISTRY_KEYRING, .keyring_verb = verb, .gossip_key = key});
}

/* False: no key of the ring is used yet, and that is seen to. */
static bool has_key(struct members *m, const struct registry_root *root)
{
    struct registry_gossip_key ring[REGISTRY_KEYRING_MAX];
    bool used = false;
    size_t count = registry_root_keyring(root, ring);
    for (size_t i = 0; i < count; i++)
        used |= ring[i].used;
    if (!used && m->node->leader)
        put_key(m, count == 0 ? REGISTRY_KEYRING_ADD : REGISTRY_KEYRING_USE,
                count == 0 ? m->membership.gossip_keys[0] : ring[0].bytes);
    explicit_bzero(ring, sizeof ring);
    return used;
}

/* By which clients of SSH know the cluster: the first leader makes it. */
static void put_ssh_seed(struct members *m)
{
    uint8_t seed[REGISTRY_SSH_SEED_BYTES];
    randombytes_buf(seed, sizeof seed);
    propose(m, &(struct registry_command){.kind = REGISTRY_SSH_HOST_KEY, .ssh_seed = seed});
    explicit_bzero(seed, sizeof seed);
}

static bool has_ssh_seed(const struct registry_root *root)
{
    uint8_t seed[REGISTRY_SSH_SEED_BYTES];
    bool made = registry_root_ssh_seed(root, seed);
    explicit_bzero(seed, sizeof seed);
    return made;
}

static void make_cluster(struct members *m)
{
    propose(m, &(struct registry_command){.kind = REGISTRY_CLUSTER_INIT,
                                          .cluster_id = m->membership.cluster_id,
                                          .gossip_key = m->membership.gossip_keys[0]});
}

static void registered(struct members *m)
{
    m->node->registered = true;
    fences_leader_changed(m->node); /* it can have a lease now */
    log_info("registry", "%s is node %llu of cluster %s", m->node->config->name,
             (unsigned long long)m->node->id, m->membership.cluster_id);
    node_progress(m->node);
}

static void look(struct members *m, const struct registry_root *root)
{
    struct node *n = m->node;
    const char *cluster = registry_root_cluster_id(root);
    const struct registry_node *self = registry_root_node(root, n->id);
    if (cluster[0] == '\0') {
        if (n->leader)
            make_cluster(m);
    } else if (strcmp(cluster, m->membership.cluster_id) != 0) {
        log_error("registry",
                  "the registry in %s is of cluster %s, %s/" MEMBERSHIP_FILE " of %s: they belong "
                  "to different backups; restore both from one",
                  n->config->data, cluster, n->config->data, m->membership.cluster_id);
        node_stop(n, 1);
    } else if (!has_key(m, root)) {
        return; /* a key first */
    } else if (n->leader && !has_ssh_seed(root)) {
        put_ssh_seed(m);
    } else if (is_registered(m, self)) {
        registered(m);
    } else if (self != NULL || registry_root_node_id_next(root) == n->id) {
        put_self(m, self != NULL);
    }
}

void members_register(struct members *m)
{
    struct err e = {0};
    struct node *n = m->node;
    if (m->stopping || n->registry == NULL || (n->registered && !n->leader))
        return;
    if (!m->caught_up) {
        if (m->reading)
            return;
        m->reading = true;
        if (registry_read(n->registry, read_cb, m, &e) != 0)
            read_cb(m, &e);
        return;
    }
    if (m->proposing)
        return;
    struct registry_root *root = registry_root(n->registry);
    if (!n->registered)
        look(m, root);
    else if (!has_ssh_seed(root)) /* a registry of before there was one */
        put_ssh_seed(m);
    registry_root_release(root);
}
