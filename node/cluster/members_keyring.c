/* The keys of gossip after a removal: who was removed knew all that were in the ring.
 *
 *   removed by `node rm`         -> that command brings a new key and uses it
 *   replaced by a join, or else  -> wanted: the leader adds a key, and a tick later uses it
 *   older than the used one      -> the leader takes it out once all that live seal with the used one, and after
 *                                   KEYRING_PATIENCE_MS in any case: who hears of the new key later hears of it
 *                                   from the registry, as a node that was away does
 *
 * Each node notes that a change is wanted, so that it is made whoever leads then. */
#include <sodium.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "gossip/seal.h"
#include "node/cluster/members_internal.h"

enum {
    KEYRING_SETTLE_MS = 3000, /* packets that are under way, and nodes that come up meanwhile */
    KEYRING_PATIENCE_MS = 60000,
    NONE = -1
};

struct ring {
    struct registry_gossip_key keys[REGISTRY_KEYRING_MAX];
    size_t count;
    int used;
};

static void ring_read(const struct registry_root *root, struct ring *out)
{
    out->count = registry_root_keyring(root, out->keys);
    out->used = NONE;
    for (size_t i = 0; i < out->count; i++)
        if (out->keys[i].used)
            out->used = (int)i;
}

void members_keyring_open(struct members *m)
{
    if (m->membership.gossip_key_count > 0)
        seal_key_id(m->membership.gossip_keys[0], m->keyring.used);
    m->keyring.since_ms = clock_monotonic_ms();
}

void members_keyring_removed(struct members *m)
{
    m->keyring.wanted = true;
}

void members_keyring_follow(struct members *m, const struct registry_root *root)
{
    struct ring ring;
    char id[SEAL_KEY_ID_SIZE];
    ring_read(root, &ring);
    if (ring.used != NONE) {
        seal_key_id(ring.keys[ring.used].bytes, id);
        if (strcmp(id, m->keyring.used) != 0) {
            /* Whatever was removed until now does not know this one. */
            m->keyring.wanted = false;
            m->keyring.since_ms = clock_monotonic_ms();
            (void)text_copy(m->keyring.used, sizeof m->keyring.used, id);
        }
    }
    sodium_memzero(&ring, sizeof ring);
}

/* --- the leader's part ------------------------------------------------------------------------------ */

static void proposed_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct members *m = user;
    m->keyring.proposing = false;
    if (error != NULL)
        log_info("gossip", "its keys are changed later: %s", error->msg);
    else if (result->problem != PROBLEM_NONE)
        log_info("gossip", "its keys are changed later: %s", result->detail);
}

static void propose(struct members *m, enum registry_keyring_verb verb,
                    const uint8_t key[REGISTRY_GOSSIP_KEY_BYTES])
{
    const struct registry_command command = {.kind = REGISTRY_KEYRING,
                                             .wall_ms = clock_wall_ms(),
                                             .keyring_verb = verb,
                                             .gossip_key = key};
    struct err e = {0};
    m->keyring.proposing = true;
    if (registry_propose(m->node->registry, &command, proposed_cb, m, &e) == 0)
        return;
    m->keyring.proposing = false;
    log_info("gossip", "its keys are changed later: %s", e.msg);
}

/* The oldest that only opens. */
static int oldest_unused(const struct ring *ring)
{
    for (size_t i = 0; i < ring->count; i++)
        if (!ring->keys[i].used)
            return (int)i;
    return NONE;
}

/* A step of the change: room, the new key, its use. */
static void change(struct members *m, const struct ring *ring)
{
    uint8_t key[REGISTRY_GOSSIP_KEY_BYTES];
    size_t last = ring->count - 1;
    char id[SEAL_KEY_ID_SIZE];
    seal_key_id(ring->keys[last].bytes, id);
    if (strcmp(id, m->keyring.added) == 0) {
        propose(m, REGISTRY_KEYRING_USE, ring->keys[last].bytes);
    } else if (ring->count == REGISTRY_KEYRING_MAX) {
        propose(m, REGISTRY_KEYRING_REMOVE, ring->keys[oldest_unused(ring)].bytes);
    } else {
        randombytes_buf(key, sizeof key);
        seal_key_id(key, m->keyring.added);
        log_info("gossip", "a node was replaced, which knew key %s: %s is used from now on",
                 m->keyring.used, m->keyring.added);
        propose(m, REGISTRY_KEYRING_ADD, key);
        sodium_memzero(key, sizeof key);
    }
}

static bool may_retire(const struct members *m)
{
    uint64_t since_ms = clock_monotonic_ms() - m->keyring.since_ms;
    return since_ms >= KEYRING_PATIENCE_MS ||
           (since_ms >= KEYRING_SETTLE_MS &&
            cluster_all_seal_with(m->node->cluster, m->keyring.used));
}

void members_keyring_lead(struct members *m)
{
    struct ring ring;
    if (m->keyring.proposing || m->keyring.used[0] == '\0')
        return;
    struct registry_root *root = registry_root(m->node->registry);
    ring_read(root, &ring);
    registry_root_release(root);
    if (ring.used != NONE && m->keyring.wanted)
        change(m, &ring);
    else if (ring.used > 0 && may_retire(m)) /* the first came before it */
        propose(m, REGISTRY_KEYRING_REMOVE, ring.keys[0].bytes);
    sodium_memzero(&ring, sizeof ring);
}
