/* cluster_follow: the one place where the cluster reads the registry. */
#include <sodium.h>
#include <string.h>

#include "base/log.h"
#include "node/cluster/internal.h"

static void follow_keyring(struct cluster *c, const struct registry_root *root)
{
    struct registry_gossip_key ring[REGISTRY_KEYRING_MAX];
    uint8_t keys[REGISTRY_KEYRING_MAX][32];
    size_t used = 0, count = registry_root_keyring(root, ring);
    for (size_t i = 0; i < count; i++) {
        memcpy(keys[i], ring[i].bytes, sizeof keys[i]);
        if (ring[i].used)
            used = i;
    }
    cluster_keyring_follow(c, (const uint8_t(*)[32])keys, count, used);
    sodium_memzero(ring, sizeof ring);
    sodium_memzero(keys, sizeof keys);
}

/* --- has anything of it changed? -------------------------------------------------------------------- */

static bool digest_node(void *user, const struct registry_node *n)
{
    crypto_generichash_state *digest = user;
    (void)crypto_generichash_update(digest, (const uint8_t *)&n->id, sizeof n->id);
    (void)crypto_generichash_update(digest, n->public_key, sizeof n->public_key);
    (void)crypto_generichash_update(digest, (const uint8_t *)n->name, strlen(n->name) + 1);
    (void)crypto_generichash_update(digest, (const uint8_t *)n->address, strlen(n->address) + 1);
    return true;
}

/* The registry changes a thousand times a second, its nodes once a month: looking whether they did costs
 * a tenth of taking them over, whose keys are checked one by one. */
static bool digest_changes(struct cluster *c, const struct registry_root *root)
{
    struct registry_gossip_key ring[REGISTRY_KEYRING_MAX] = {0};
    crypto_generichash_state digest;
    uint8_t result[sizeof c->digest];
    node_id next = registry_root_node_id_next(root);
    (void)crypto_generichash_init(&digest, NULL, 0, sizeof result);
    (void)crypto_generichash_update(&digest, (const uint8_t *)&next, sizeof next);
    size_t count = registry_root_keyring(root, ring);
    for (size_t i = 0; i < count; i++) {
        uint8_t used = ring[i].used ? 1 : 0;
        (void)crypto_generichash_update(&digest, ring[i].bytes, sizeof ring[i].bytes);
        (void)crypto_generichash_update(&digest, &used, 1);
    }
    registry_root_nodes(root, digest_node, &digest);
    (void)crypto_generichash_final(&digest, result, sizeof result);
    sodium_memzero(ring, sizeof ring);
    bool changes = memcmp(result, c->digest, sizeof result) != 0;
    memcpy(c->digest, result, sizeof result);
    return changes;
}

void cluster_follow(struct cluster *c, const struct registry_root *root, bool caught_up)
{
    struct known known;
    struct err e = {0};
    if (registry_root_index(root) < c->index && !caught_up)
        return;
    if (!digest_changes(c, root)) {
        c->index = registry_root_index(root);
        return;
    }
    if (known_of_root(&known, root, &e) != 0) {
        log_error("cluster", "the nodes of the registry are not followed: %s", e.msg);
        return;
    }
    cluster_learn(c, &known, caught_up);
    known_free(&known);
    follow_keyring(c, root);
}
