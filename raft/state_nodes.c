/* Nodes and what they may: their entries, joining and leaving, leases, and the keys of gossip's seal. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state_parts.h"

/* --- values ----------------------------------------------------------------------------------------- */

static void node_release(struct map_value *value)
{
    free(container_of(value, struct registry_node, value));
}

static struct state_map_key node_key(node_id id)
{
    struct state_map_key key = {0};
    state_key_u64(&key, id);
    return key;
}

int state_node_put(struct state_content *c, const struct registry_node *like, struct err *e)
{
    struct registry_node *node = malloc(sizeof *node);
    if (node == NULL)
        return err_set(e, ERR_NO_MEMORY, "node %s: no memory", like->name);
    *node = *like;
    map_value_init(&node->value, node_release);
    struct state_map_key key = node_key(node->id);
    return state_put_new(c, STATE_NODES, &key, &node->value, e);
}

/* One of this name or of this key: there are at most STATE_NODES_MAX, and few ask. */
struct like {
    const char *name;          /* NULL: any */
    const uint8_t *public_key; /* NULL: any */
    node_id but;               /* not this one */
    const struct registry_node *found;
};

static bool like_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct like *l = user;
    (void)key;
    (void)key_length;
    const struct registry_node *n = container_of(value, const struct registry_node, value);
    if (n->id != l->but && (l->name == NULL || strcmp(n->name, l->name) == 0) &&
        (l->public_key == NULL || memcmp(n->public_key, l->public_key, sizeof n->public_key) == 0))
        l->found = n;
    return l->found == NULL;
}

static const struct registry_node *find(const struct state_content *c, struct like like)
{
    map_walk(&c->maps[STATE_NODES], NULL, 0, like_visit, &like);
    return like.found;
}

const struct registry_node *state_node_named(const struct state_content *c, const char *name)
{
    return find(c, (struct like){.name = name});
}

/* The node that a command names; NULL, and refused: there is none. */
static const struct registry_node *named(const struct state_content *c, node_id id,
                                         struct registry_result *r)
{
    const struct registry_node *n = state_node(c, id);
    if (n == NULL)
        state_refuse(r, PROBLEM_NOT_FOUND, "no node has the id %llu", (unsigned long long)id);
    return n;
}

static bool has_key(const struct registry_node *n)
{
    static const uint8_t none[sizeof n->public_key];
    return memcmp(n->public_key, none, sizeof none) != 0;
}

/* --- putting ---------------------------------------------------------------------------------------- */

static bool may_be_new(const struct state_content *c, const struct registry_node *asked,
                       struct registry_result *r)
{
    if (asked->id != 0 && asked->id < c->node_id_next)
        state_refuse(r, PROBLEM_CONFLICT, "node id %llu has been used",
                     (unsigned long long)asked->id);
    else if (asked->id > c->node_id_next)
        state_refuse(r, PROBLEM_CONFLICT, "node id %llu is not the next; that is %llu",
                     (unsigned long long)asked->id, (unsigned long long)c->node_id_next);
    else if (asked->name[0] == '\0')
        state_refuse(r, PROBLEM_BAD_REQUEST, "a new node needs a name");
    else if (c->maps[STATE_NODES].count >= STATE_NODES_MAX)
        state_refuse(r, PROBLEM_LIMIT_REACHED, "there are %u nodes, as many as there may be",
                     STATE_NODES_MAX);
    return r->problem == PROBLEM_NONE;
}

/* Names and keys belong to one node each. */
static bool is_unique(const struct state_content *c, const struct registry_node *n,
                      struct registry_result *r)
{
    const struct registry_node *other = find(c, (struct like){.name = n->name, .but = n->id});
    if (other != NULL) {
        state_refuse(r, PROBLEM_CONFLICT, "node %llu has the name %s",
                     (unsigned long long)other->id, n->name);
        return false;
    }
    if (!has_key(n))
        return true;
    other = find(c, (struct like){.public_key = n->public_key, .but = n->id});
    if (other != NULL)
        state_refuse(r, PROBLEM_CONFLICT, "node %llu, %s, has this key",
                     (unsigned long long)other->id, other->name);
    return other == NULL;
}

int state_apply_node_put(struct state_content *c, const struct registry_command *command,
                         struct registry_result *r, struct err *e)
{
    const struct registry_node *asked = command->node;
    const struct registry_node *there = state_node(c, asked->id);
    struct registry_node n = {.id = c->node_id_next};
    if (there != NULL)
        n = *there;
    else if (!may_be_new(c, asked, r))
        return 0;
    if (asked->name[0] != '\0')
        text_copy(n.name, sizeof n.name, asked->name);
    if (asked->address[0] != '\0')
        text_copy(n.address, sizeof n.address, asked->address);
    if (has_key(asked))
        memcpy(n.public_key, asked->public_key, sizeof n.public_key);
    if (!is_unique(c, &n, r))
        return 0;
    if (n.id == c->node_id_next)
        c->node_id_next++;
    r->node = n.id;
    r->changed = true;
    return state_node_put(c, &n, e);
}

int state_apply_node_drain(struct state_content *c, const struct registry_command *command,
                           struct registry_result *r, struct err *e)
{
    const struct registry_node *there = named(c, command->node->id, r);
    if (there == NULL || there->draining == command->node->draining)
        return 0;
    struct registry_node n = *there;
    n.draining = command->node->draining;
    r->changed = true;
    return state_node_put(c, &n, e);
}

/* --- leaving and joining ------------------------------------------------------------------------------ */

/* The entry goes at once, and with it its lease and what its key is worth; of its instances as many as
 * one command may end. A sweep ends the rest. */
static int leave(struct state_content *c, node_id id, uint64_t wall_ms, bool *more, struct err *e)
{
    struct state_map_key key = node_key(id);
    size_t ended = 0;
    int rc = state_remove(c, STATE_NODES, &key, e);
    if (rc == 0)
        rc = state_owned_lose(c, id, wall_ms, STATE_LOST_MAX, &ended, e);
    *more = rc == 0 && state_owned_first(c, id) != NULL;
    return rc;
}

int state_apply_node_remove(struct state_content *c, const struct registry_command *command,
                            struct registry_result *r, struct err *e)
{
    const struct registry_node *there = named(c, command->node->id, r);
    if (there == NULL)
        return 0;
    if (c->maps[STATE_NODES].count == 1) {
        state_refuse(r, PROBLEM_CONFLICT, "%s is the last node of its cluster", there->name);
        return 0;
    }
    state_keyring_put(c, command->gossip_key, true);
    return leave(c, there->id, command->wall_ms, &r->changed, e);
}

/* The entry of a node that has lost its folder, or none; *r may refuse. */
static const struct registry_node *replaced_by(const struct state_content *c,
                                               const struct registry_node *asked,
                                               struct registry_result *r)
{
    const struct registry_node *there = state_node_named(c, asked->name);
    const struct registry_node *holder = find(
        c, (struct like){.public_key = asked->public_key, .but = there == NULL ? 0 : there->id});
    if (holder != NULL)
        state_refuse(r, PROBLEM_CONFLICT, "node %llu, %s, has this key",
                     (unsigned long long)holder->id, holder->name);
    else if (there != NULL && c->maps[STATE_NODES].count == 1)
        state_refuse(r, PROBLEM_CONFLICT, "%s is the name of the last node of this cluster",
                     there->name);
    else if (there == NULL && c->maps[STATE_NODES].count >= STATE_NODES_MAX)
        state_refuse(r, PROBLEM_LIMIT_REACHED, "there are %u nodes, as many as there may be",
                     STATE_NODES_MAX);
    return there;
}

static bool token_allows(const struct state_content *c, const struct registry_command *command,
                         struct registry_result *r)
{
    const struct registry_token *t = state_token(c, command->token->id);
    if (t == NULL || t->role != TOKEN_ROLE_NODE)
        state_refuse(r, PROBLEM_UNAUTHORIZED,
                     "join token %s is unknown or has been used; skerry token create --node "
                     "makes another",
                     command->token->id);
    else if (t->expires_wall_ms != 0 && command->wall_ms >= t->expires_wall_ms)
        state_refuse(r, PROBLEM_UNAUTHORIZED,
                     "join token %s is too old; skerry token create --node makes another", t->id);
    return r->problem == PROBLEM_NONE;
}

int state_apply_node_join(struct state_content *c, const struct registry_command *command,
                          struct registry_result *r, struct err *e)
{
    if (!token_allows(c, command, r))
        return 0;
    const struct registry_node *before = replaced_by(c, command->node, r);
    if (r->problem != PROBLEM_NONE)
        return 0;
    struct registry_node n = {.id = c->node_id_next};
    text_copy(n.name, sizeof n.name, command->node->name);
    text_copy(n.address, sizeof n.address, command->node->address);
    memcpy(n.public_key, command->node->public_key, sizeof n.public_key);
    r->node = n.id;
    r->replaced = before == NULL ? 0 : before->id;
    c->node_id_next++;
    int rc = state_token_remove(c, command->token->id, e);
    if (rc == 0 && before != NULL)
        rc = leave(c, before->id, command->wall_ms, &r->changed, e);
    return rc < 0 ? rc : state_node_put(c, &n, e);
}

/* --- leases ------------------------------------------------------------------------------------------ */

int state_apply_lease_grant(struct state_content *c, const struct registry_command *command,
                            struct registry_result *r, struct err *e)
{
    const struct registry_node *there = named(c, command->node->id, r);
    if (there == NULL)
        return 0;
    struct registry_node n = *there;
    r->epoch = n.lease_epoch;
    if (n.leased)
        return 0;
    /* What the last lease held ended with it, and must not come to life under the next. A node that
     * never had one (its registry is older than leases) keeps what it has. */
    size_t ended = 0;
    int rc = n.lease_epoch == 0
                 ? 0
                 : state_owned_lose(c, n.id, command->wall_ms, STATE_LOST_MAX, &ended, e);
    if (rc < 0)
        return rc;
    if (n.lease_epoch != 0 && state_owned_first(c, n.id) != NULL) {
        r->changed = true;
        state_refuse(r, PROBLEM_CONFLICT, "instances of the last lease of %s are being ended",
                     n.name);
        return 0;
    }
    if (!state_epoch_next(c, &n.lease_epoch, r))
        return 0;
    n.leased = true;
    r->epoch = n.lease_epoch;
    r->changed = true;
    return state_node_put(c, &n, e);
}

int state_apply_lease_expire(struct state_content *c, const struct registry_command *command,
                             struct registry_result *r, struct err *e)
{
    const struct registry_node *there = named(c, command->node->id, r);
    if (there == NULL)
        return 0;
    struct registry_node n = *there;
    if (n.lease_epoch == 0 || n.lease_epoch != command->node->lease_epoch) {
        state_refuse(r, PROBLEM_CONFLICT, "the lease of %s has epoch %llu, not %llu", n.name,
                     (unsigned long long)n.lease_epoch,
                     (unsigned long long)command->node->lease_epoch);
        return 0;
    }
    size_t ended = 0;
    int rc = 0;
    if (n.leased) {
        n.leased = false;
        rc = state_node_put(c, &n, e);
    }
    if (rc == 0)
        rc = state_owned_lose(c, n.id, command->wall_ms, STATE_LOST_MAX, &ended, e);
    r->epoch = n.lease_epoch;
    r->changed = rc == 0 && state_owned_first(c, n.id) != NULL;
    return rc;
}

/* --- gossip's keys ------------------------------------------------------------------------------------ */

/* Where it is in the ring; keyring_count: it is not. */
static uint32_t keyring_find(const struct state_content *c, const uint8_t *key)
{
    uint32_t at = 0;
    while (at < c->keyring_count &&
           memcmp(c->keyring[at].bytes, key, REGISTRY_GOSSIP_KEY_BYTES) != 0)
        at++;
    return at;
}

static void keyring_drop(struct state_content *c, uint32_t at)
{
    c->keyring_count--;
    memmove(&c->keyring[at], &c->keyring[at + 1], (c->keyring_count - at) * sizeof c->keyring[at]);
    memset(&c->keyring[c->keyring_count], 0, sizeof c->keyring[0]);
}

static void keyring_use(struct state_content *c, uint32_t at)
{
    for (uint32_t i = 0; i < c->keyring_count; i++)
        c->keyring[i].used = i == at;
}

void state_keyring_put(struct state_content *c, const uint8_t key[REGISTRY_GOSSIP_KEY_BYTES],
                       bool used)
{
    uint32_t at = keyring_find(c, key);
    if (at == c->keyring_count) {
        /* A removed node is locked out in any case: the oldest key that is not used makes room. */
        if (c->keyring_count == REGISTRY_KEYRING_MAX)
            keyring_drop(c, c->keyring[0].used ? 1 : 0);
        at = c->keyring_count++;
        memcpy(c->keyring[at].bytes, key, REGISTRY_GOSSIP_KEY_BYTES);
        c->keyring[at].used = false;
    }
    if (used)
        keyring_use(c, at);
}

int state_apply_keyring(struct state_content *c, const struct registry_command *command,
                        struct registry_result *r, struct err *e)
{
    (void)e;
    uint32_t at = keyring_find(c, command->gossip_key);
    bool there = at < c->keyring_count;
    bool used = there && c->keyring[at].used;
    switch (command->keyring_verb) {
    case REGISTRY_KEYRING_ADD:
        r->changed = !there;
        if (!there && c->keyring_count == REGISTRY_KEYRING_MAX)
            state_refuse(r, PROBLEM_LIMIT_REACHED, "gossip has %u keys; remove an old one first",
                         (unsigned)REGISTRY_KEYRING_MAX);
        else if (!there)
            state_keyring_put(c, command->gossip_key, false);
        break;
    case REGISTRY_KEYRING_USE:
        r->changed = there && !used;
        if (there)
            keyring_use(c, at);
        else
            state_refuse(r, PROBLEM_NOT_FOUND, "gossip has no such key; add it first");
        break;
    case REGISTRY_KEYRING_REMOVE:
        r->changed = there && !used;
        if (used)
            state_refuse(r, PROBLEM_CONFLICT, "gossip uses this key; use another first");
        else if (there)
            keyring_drop(c, at);
        break;
    }
    return 0;
}
