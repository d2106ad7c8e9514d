/* What any thread may read that holds a root. */
#include <string.h>

#include "base/memory.h"
#include "raft/registry.h"
#include "raft/state_parts.h"

/* A look-up by the bytes of a text that need not end. */
static struct map_value *get(const struct registry_root *root, enum state_map map, const char *text,
                             size_t length)
{
    return map_get(&root->content.maps[map], text, length);
}

const struct registry_workload *registry_root_workload(const struct registry_root *root,
                                                       const char *name, size_t length)
{
    const struct map_value *value = get(root, STATE_WORKLOADS, name, length);
    if (value == NULL)
        return NULL;
    const struct state_workload *w = container_of(value, const struct state_workload, value);
    return registry_root_workload_version(root, w->name, w->version_current);
}

void registry_root_workload_usage(const struct registry_root *root, const char *name,
                                  struct registry_usage *out)
{
    const struct state_workload *w = state_workload(&root->content, name);
    *out = (struct registry_usage){0};
    if (w != NULL)
        *out = w->usage;
}

const struct registry_workload *registry_root_workload_version(const struct registry_root *root,
                                                               const char *name, uint64_t version)
{
    if (strlen(name) > WORKLOAD_NAME_LENGTH_MAX)
        return NULL;
    const struct state_version *v = state_version(&root->content, name, version);
    return v == NULL ? NULL : &v->workload;
}

const struct registry_instance *registry_root_instance(const struct registry_root *root,
                                                       const char *id, size_t length)
{
    const struct map_value *value = get(root, STATE_INSTANCES, id, length);
    return value == NULL ? NULL : container_of(value, const struct registry_instance, value);
}

const struct instance_id *registry_root_key_holder(const struct registry_root *root,
                                                   const char *workload, const char *key)
{
    struct registry_instance like = {0};
    if (key[0] == '\0' || !text_copy(like.workload, sizeof like.workload, workload) ||
        !text_copy(like.key, sizeof like.key, key))
        return NULL;
    return state_key_holder(&root->content, &like);
}

uint32_t registry_root_workload_counted(const struct registry_root *root, const char *workload)
{
    const struct state_workload *w = state_workload(&root->content, workload);
    return w == NULL ? 0 : state_workload_counted(&root->content, w);
}

const struct registry_token *registry_root_token(const struct registry_root *root, const char *id,
                                                 size_t length)
{
    const struct map_value *value = get(root, STATE_TOKENS, id, length);
    return value == NULL ? NULL : container_of(value, const struct registry_token, value);
}

const struct registry_ssh_key *registry_root_ssh_key(const struct registry_root *root,
                                                     const char *id, size_t length)
{
    const struct map_value *value = get(root, STATE_SSH_KEYS, id, length);
    return value == NULL ? NULL : container_of(value, const struct registry_ssh_key, value);
}

bool registry_root_ssh_seed(const struct registry_root *root, uint8_t out[REGISTRY_SSH_SEED_BYTES])
{
    if (root->content.ssh_seed_made)
        memcpy(out, root->content.ssh_seed, REGISTRY_SSH_SEED_BYTES);
    return root->content.ssh_seed_made;
}

const struct registry_domain *registry_root_domain(const struct registry_root *root,
                                                   const char *name, size_t length)
{
    const struct map_value *value = get(root, STATE_DOMAINS, name, length);
    return value == NULL ? NULL : container_of(value, const struct registry_domain, value);
}

const struct registry_image *registry_root_image(const struct registry_root *root, const char *name,
                                                 size_t length)
{
    const struct map_value *value = get(root, STATE_IMAGES, name, length);
    return value == NULL ? NULL : container_of(value, const struct registry_image, value);
}

const struct registry_node *registry_root_node(const struct registry_root *root, node_id id)
{
    return state_node(&root->content, id);
}

const struct registry_node *registry_root_node_named(const struct registry_root *root,
                                                     const char *name)
{
    return state_node_named(&root->content, name);
}

node_id registry_root_node_id_next(const struct registry_root *root)
{
    return root->content.node_id_next;
}

size_t registry_root_keyring(const struct registry_root *root,
                             struct registry_gossip_key out[REGISTRY_KEYRING_MAX])
{
    memcpy(out, root->content.keyring, sizeof root->content.keyring);
    return root->content.keyring_count;
}

bool registry_root_workloads_same(const struct registry_root *a, const struct registry_root *b)
{
    /* Maps are copied along the path of a change: one that has not changed has the same root. */
    return a->content.maps[STATE_WORKLOADS].root == b->content.maps[STATE_WORKLOADS].root;
}

uint64_t registry_root_index(const struct registry_root *root)
{
    return root->content.index;
}

const char *registry_root_cluster_id(const struct registry_root *root)
{
    return root->content.cluster_id;
}

/* --- listings --------------------------------------------------------------------------------- */

/* One struct for all: a visitor of the map that hands on to the caller's typed one. */
struct listing {
    const struct registry_root *root;
    struct state_map_key prefix;
    bool (*workload)(void *user, const struct registry_workload *w);
    bool (*instance)(void *user, const struct registry_instance *i);
    bool (*token)(void *user, const struct registry_token *t);
    bool (*image)(void *user, const struct registry_image *i);
    bool (*ssh_key)(void *user, const struct registry_ssh_key *k);
    bool (*domain)(void *user, const struct registry_domain *d);
    bool (*node)(void *user, const struct registry_node *n);
    void *user;
};

static void list(const struct listing *l, enum state_map map, const char *from,
                 bool (*visit)(void *user, const void *key, size_t key_length,
                               struct map_value *value))
{
    map_walk(&l->root->content.maps[map], from, from == NULL ? 0 : strlen(from), visit,
             (void *)(uintptr_t)l);
}

static bool workload_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct listing *l = user;
    (void)key;
    (void)key_length;
    const struct state_workload *w = container_of(value, const struct state_workload, value);
    if (w->version_current == 0)
        return true;
    return l->workload(l->user,
                       registry_root_workload_version(l->root, w->name, w->version_current));
}

void registry_root_workloads(const struct registry_root *root, const char *from,
                             bool (*visit)(void *user, const struct registry_workload *w),
                             void *user)
{
    const struct listing l = {.root = root, .workload = visit, .user = user};
    list(&l, STATE_WORKLOADS, from, workload_visit);
}

static bool version_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct listing *l = user;
    if (!state_key_starts_with(key, key_length, &l->prefix))
        return false;
    return l->workload(l->user, container_of(value, const struct registry_workload, value));
}

void registry_root_versions(const struct registry_root *root, const char *name,
                            bool (*visit)(void *user, const struct registry_workload *w),
                            void *user)
{
    struct listing l = {.root = root, .workload = visit, .user = user};
    if (strlen(name) > WORKLOAD_NAME_LENGTH_MAX)
        return;
    state_key_text(&l.prefix, name);
    map_walk(&root->content.maps[STATE_VERSIONS], l.prefix.bytes, l.prefix.length, version_visit,
             &l);
}

static bool instance_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct listing *l = user;
    (void)key;
    (void)key_length;
    return l->instance(l->user, container_of(value, const struct registry_instance, value));
}

void registry_root_instances(const struct registry_root *root, const char *from,
                             bool (*visit)(void *user, const struct registry_instance *i),
                             void *user)
{
    const struct listing l = {.root = root, .instance = visit, .user = user};
    list(&l, STATE_INSTANCES, from, instance_visit);
}

static bool live_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct listing *l = user;
    if (l->prefix.length > 0 && !state_key_starts_with(key, key_length, &l->prefix))
        return false;
    return l->instance(l->user, container_of(value, const struct registry_instance, value));
}

void registry_root_live(const struct registry_root *root, node_id owner,
                        bool (*visit)(void *user, const struct registry_instance *i), void *user)
{
    struct listing l = {.root = root, .instance = visit, .user = user};
    if (owner != 0)
        state_key_u64(&l.prefix, owner);
    map_walk(&root->content.maps[STATE_OWNED], l.prefix.bytes, l.prefix.length, live_visit, &l);
}

static bool token_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct listing *l = user;
    (void)key;
    (void)key_length;
    return l->token(l->user, container_of(value, const struct registry_token, value));
}

void registry_root_tokens(const struct registry_root *root,
                          bool (*visit)(void *user, const struct registry_token *t), void *user)
{
    const struct listing l = {.root = root, .token = visit, .user = user};
    list(&l, STATE_TOKENS, NULL, token_visit);
}

static bool ssh_key_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct listing *l = user;
    (void)key;
    (void)key_length;
    return l->ssh_key(l->user, container_of(value, const struct registry_ssh_key, value));
}

void registry_root_ssh_keys(const struct registry_root *root,
                            bool (*visit)(void *user, const struct registry_ssh_key *k), void *user)
{
    const struct listing l = {.root = root, .ssh_key = visit, .user = user};
    list(&l, STATE_SSH_KEYS, NULL, ssh_key_visit);
}

static bool domain_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct listing *l = user;
    if (!state_key_starts_with(key, key_length, &l->prefix))
        return false;
    return l->domain(l->user, container_of(value, const struct registry_domain, value));
}

void registry_root_domains(const struct registry_root *root, const char *workload,
                           bool (*visit)(void *user, const struct registry_domain *d), void *user)
{
    struct listing l = {.root = root, .domain = visit, .user = user};
    if (workload != NULL && strlen(workload) > WORKLOAD_NAME_LENGTH_MAX)
        return;
    if (workload != NULL)
        state_key_text(&l.prefix, workload);
    map_walk(&root->content.maps[workload == NULL ? STATE_DOMAINS : STATE_WORKLOAD_DOMAINS],
             l.prefix.bytes, l.prefix.length, domain_visit, &l);
}

static bool image_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct listing *l = user;
    (void)key;
    (void)key_length;
    return l->image(l->user, container_of(value, const struct registry_image, value));
}

void registry_root_images(const struct registry_root *root,
                          bool (*visit)(void *user, const struct registry_image *i), void *user)
{
    const struct listing l = {.root = root, .image = visit, .user = user};
    list(&l, STATE_IMAGES, NULL, image_visit);
}

static bool node_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct listing *l = user;
    (void)key;
    (void)key_length;
    return l->node(l->user, container_of(value, const struct registry_node, value));
}

void registry_root_nodes(const struct registry_root *root,
                         bool (*visit)(void *user, const struct registry_node *n), void *user)
{
    const struct listing l = {.root = root, .node = visit, .user = user};
    list(&l, STATE_NODES, NULL, node_visit);
}
