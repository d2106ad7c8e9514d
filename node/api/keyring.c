/* node/api/keyring.c - the keys of gossip's seal, and removing a node, which changes them.
 *
 * A key itself is never shown: it is named by eight digits of its hash (gossip/seal.h). */
#include <sodium.h>
#include <string.h>

#include "base/clock.h"
#include "gossip/seal.h"
#include "node/api/internal.h"

_Static_assert(REGISTRY_GOSSIP_KEY_BYTES == SEAL_KEY_BYTES, "the registry keeps gossip's keys");

static size_t ring_of(struct api_request *r, struct registry_gossip_key ring[REGISTRY_KEYRING_MAX])
{
    const struct api_calls *calls = &r->api->options.calls;
    struct registry_root *root = calls->root(calls->user);
    size_t count = registry_root_keyring(root, ring);
    calls->root_return(calls->user, root);
    return count;
}

static json_t *key_json(const uint8_t bytes[SEAL_KEY_BYTES], bool used)
{
    char id[SEAL_KEY_ID_SIZE];
    seal_key_id(bytes, id);
    return json_pack("{s:s, s:b}", "id", id, "used", (int)used);
}

void api_keyring_list(struct api_request *r)
{
    struct registry_gossip_key ring[REGISTRY_KEYRING_MAX];
    json_t *list = json_array();
    size_t count = ring_of(r, ring);
    for (size_t i = 0; i < count; i++)
        (void)json_array_append_new(list, key_json(ring[i].bytes, ring[i].used));
    sodium_memzero(ring, sizeof(ring));
    api_answer_json(r, MHD_HTTP_OK, list);
}

/* --- changes -------------------------------------------------------------------------------------- */

static void propose(struct api_ask *a, enum registry_command_kind kind,
                    void (*answered)(struct api_ask *a))
{
    a->command.gossip_key = a->gossip_key;
    a->command.node = &a->node;
    api_ask_propose(a, kind, answered);
}

static void added(struct api_request *r)
{
    api_answer_json(r, MHD_HTTP_CREATED, key_json(r->ask->gossip_key, false));
}

static void add_answered(struct api_ask *a)
{
    if (!api_ask_result_refused(a->request, a))
        api_settle_index(a->request, a->ask.result.index, added);
}

void api_keyring_add(struct api_request *r)
{
    struct api_ask *a = api_ask_new(r, NODE_ASK_PROPOSE);
    if (a == NULL)
        return;
    randombytes_buf(a->gossip_key, sizeof(a->gossip_key));
    a->command.keyring_verb = REGISTRY_KEYRING_ADD;
    propose(a, REGISTRY_KEYRING, add_answered);
}

/* False: no key of the ring has the id that the path names, and that was answered. */
static bool find_key(struct api_request *r, uint8_t out[SEAL_KEY_BYTES])
{
    struct registry_gossip_key ring[REGISTRY_KEYRING_MAX];
    bool found = false;
    size_t count = ring_of(r, ring);
    for (size_t i = 0; i < count && !found; i++) {
        char id[SEAL_KEY_ID_SIZE];
        seal_key_id(ring[i].bytes, id);
        found = strcmp(id, r->parameter) == 0;
        if (found)
            memcpy(out, ring[i].bytes, SEAL_KEY_BYTES);
    }
    sodium_memzero(ring, sizeof(ring));
    if (!found)
        api_problem(r, PROBLEM_NOT_FOUND,
                    "no key of gossip has the id %.40s; skerry operator keyring list shows them",
                    r->parameter);
    return found;
}

static void change_key(struct api_request *r, enum registry_keyring_verb verb)
{
    uint8_t key[SEAL_KEY_BYTES];
    struct api_ask *a = find_key(r, key) ? api_ask_new(r, NODE_ASK_PROPOSE) : NULL;
    if (a == NULL)
        return;
    memcpy(a->gossip_key, key, sizeof(key));
    sodium_memzero(key, sizeof(key));
    a->command.keyring_verb = verb;
    propose(a, REGISTRY_KEYRING, api_ask_settled_empty);
}

void api_keyring_use(struct api_request *r)
{
    change_key(r, REGISTRY_KEYRING_USE);
}

void api_keyring_remove(struct api_request *r)
{
    change_key(r, REGISTRY_KEYRING_REMOVE);
}

/* What it knew of gossip's keys is worth nothing from then on: another is used. */
void api_node_remove(struct api_request *r)
{
    node_id id = api_node_named(r, r->parameter);
    struct api_ask *a = id == 0 ? NULL : api_ask_new(r, NODE_ASK_PROPOSE);
    if (a == NULL)
        return;
    a->node.id = id;
    randombytes_buf(a->gossip_key, sizeof(a->gossip_key));
    propose(a, REGISTRY_NODE_REMOVE, api_ask_settled_empty);
}
