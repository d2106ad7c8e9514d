/* cluster_follow: the one place where the cluster reads the registry. */
#include <sodium.h>
#include <string.h>

#include "base/log.h"
#include "node/cluster_internal.h"

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

void cluster_follow(struct cluster *c, const struct registry_root *root, bool caught_up)
{
    struct known known;
    struct err e = {0};
    if (registry_root_index(root) < c->index && !caught_up)
        return;
    if (known_of_root(&known, root, &e) != 0) {
        log_error("cluster", "the nodes of the registry are not followed: %s", e.msg);
        return;
    }
    cluster_learn(c, &known, caught_up);
    known_free(&known);
    follow_keyring(c, root);
}
