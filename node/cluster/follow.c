/* What the cluster believes follows the registry: who its nodes are, and the keyring of gossip. */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "node/cluster/internal.h"

/* --- nodes ---------------------------------------------------------------------------------------- */

static bool same_node(const struct known_node *a, const struct known_node *b)
{
    return strcmp(a->name, b->name) == 0 && strcmp(a->address, b->address) == 0 &&
           a->has_key == b->has_key && (!a->has_key || identity_public_equal(&a->key, &b->key));
}

static void tell_forgot(struct cluster *c, node_id id, bool removed)
{
    if (c->options.forgot != NULL)
        c->options.forgot(c->options.user, id, removed);
}

/* True if that was new. */
static bool learn_node(struct cluster *c, const struct known_node *node)
{
    const struct cluster_entry *entry = cluster_table_find(&c->table, node->id);
    struct err e = {0};
    if (entry != NULL && same_node(&entry->known, node))
        return false;
    bool other_key = entry != NULL && entry->known.has_key &&
                     !(node->has_key && identity_public_equal(&entry->known.key, &node->key));
    if (cluster_table_know(&c->table, node, &e) != 0) {
        log_error("cluster", "%s", e.msg);
        return false;
    }
    if (other_key) {
        peer_rpc_forget(c->rpc, node->id);
        tell_forgot(c, node->id, false);
    }
    cluster_gossip_seed(c, node);
    return true;
}

static void forget_node(struct cluster *c, node_id id)
{
    const struct cluster_entry *entry = cluster_table_find(&c->table, id);
    bool known = entry->known.name[0] != '\0';
    if (known)
        log_info("cluster", "node %llu (%s) was removed; nothing of it is believed any more",
                 (unsigned long long)id, entry->known.name);
    /* The key first: from here on it is refused. */
    cluster_table_remove(&c->table, id);
    peer_rpc_forget(c->rpc, id);
    cluster_gossip_remove(c, id);
    if (known)
        tell_forgot(c, id, true);
}

/* Ourselves we know better than the registry, which may not have heard yet where we are. */
static void learn_self(struct cluster *c, const struct known *known)
{
    if (known_find(known, c->membership.id) != NULL || c->membership.id >= known->next ||
        c->removed_told || c->removed)
        return;
    c->removed = true;
    cluster_notify_soon(c);
}

void cluster_learn(struct cluster *c, const struct known *known, bool caught_up)
{
    bool news = false;
    if (known->index < c->index && !caught_up)
        return;
    c->index = known->index;
    c->next = known->next;
    for (size_t i = 0; i < known->node_count; i++) {
        if (known->nodes[i].id != c->membership.id)
            news |= learn_node(c, &known->nodes[i]);
    }
    const struct cluster_entry *entry;
    for (node_id at = 0; (entry = cluster_table_above(&c->table, at)) != NULL;) {
        at = entry->known.id;
        if (at == c->membership.id || at >= known->next || known_find(known, at) != NULL)
            continue;
        forget_node(c, at);
        news = true;
    }
    learn_self(c, known);
    if (!news)
        return;
    char *text = known_text(known);
    if (text != NULL)
        keeper_put(c->known_keeper, text);
    c->changed = true;
    cluster_notify_soon(c);
}

void cluster_remove_strays(struct cluster *c)
{
    const struct cluster_entry *entry;
    for (node_id at = 0; (entry = cluster_table_above(&c->table, at)) != NULL;) {
        at = entry->known.id;
        if (at != c->membership.id && at < c->next && entry->known.name[0] == '\0')
            forget_node(c, at);
    }
}

/* --- the keyring ---------------------------------------------------------------------------------- */

static bool among(const uint8_t (*keys)[32], size_t count, const char *id)
{
    for (size_t i = 0; i < count; i++) {
        char other[SEAL_KEY_ID_SIZE];
        seal_key_id(keys[i], other);
        if (strcmp(other, id) == 0)
            return true;
    }
    return false;
}

/* Those that the registry does not have, but for the one in use. */
static void drop_old(struct cluster *c, const uint8_t (*keys)[32], size_t count)
{
    struct seal_key_shown key;
    struct err e;
    for (size_t i = 0; seal_key_get(c->seal, i, &key);) {
        if (key.used || among(keys, count, key.id) || seal_key_remove(c->seal, key.id, &e) != 0)
            i++;
        else
            log_info("gossip", "key %s opens nothing any more", key.id);
    }
}

static void add_key(struct cluster *c, const uint8_t key[32])
{
    char id[SEAL_KEY_ID_SIZE];
    struct err e = {0};
    int rc = seal_key_add(c->seal, key, &e);
    seal_key_id(key, id);
    if (rc == 0)
        log_info("gossip", "key %s opens from now on", id);
    else if (rc != -ERR_EXISTS)
        log_error("gossip", "key %s is not taken: %s", id, e.msg);
}

static void use_key(struct cluster *c, const uint8_t key[32])
{
    char id[SEAL_KEY_ID_SIZE];
    struct seal_key_shown shown;
    struct err e = {0};
    seal_key_id(key, id);
    for (size_t i = 0; seal_key_get(c->seal, i, &shown); i++) {
        if (shown.used && strcmp(shown.id, id) == 0)
            return;
    }
    if (seal_key_use(c->seal, id, &e) == 0)
        log_info("gossip", "packets are sealed with key %s from now on", id);
    else
        log_error("gossip", "key %s is not used: %s", id, e.msg);
}

static void keep_membership(struct cluster *c, const uint8_t (*keys)[32], size_t count, size_t used)
{
    struct membership m = {.id = c->membership.id};
    memcpy(m.cluster_id, c->membership.cluster_id, sizeof m.cluster_id);
    memcpy(m.gossip_keys[m.gossip_key_count++], keys[used], 32);
    for (size_t i = 0; i < count; i++) {
        if (i != used)
            memcpy(m.gossip_keys[m.gossip_key_count++], keys[i], 32);
    }
    if (m.gossip_key_count != c->membership.gossip_key_count ||
        memcmp(m.gossip_keys, c->membership.gossip_keys, sizeof m.gossip_keys) != 0) {
        char *text = membership_text(&m);
        if (text != NULL)
            keeper_put(c->membership_keeper, text);
        c->membership = m;
    }
    membership_wipe(&m);
}

void cluster_keyring_follow(struct cluster *c, const uint8_t (*keys)[32], size_t count, size_t used)
{
    if (count == 0)
        return;
    /* In this order there is room for every step, even if no key stays: the old ones but one go, the
     * new one comes and is used, then the last old one can go. */
    drop_old(c, keys, count);
    add_key(c, keys[used]);
    use_key(c, keys[used]);
    drop_old(c, keys, count);
    for (size_t i = 0; i < count; i++)
        add_key(c, keys[i]);
    keep_membership(c, keys, count, used);
}
