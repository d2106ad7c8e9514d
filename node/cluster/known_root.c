/* What the registry says of the nodes. */
#include <sodium.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/known.h"

struct visit {
    struct known *known;
    struct err *error;
    int rc;
};

static bool visit_node(void *user, const struct registry_node *n)
{
    struct visit *v = user;
    struct known_node node = {.id = n->id};
    struct err e = {0};
    (void)text_copy(node.name, sizeof node.name, n->name);
    (void)text_copy(node.address, sizeof node.address, n->address);
    node.has_key = sodium_is_zero(n->public_key, sizeof n->public_key) == 0;
    if (node.has_key)
        memcpy(node.key.bytes, n->public_key, sizeof node.key.bytes);
    int rc = known_add(v->known, &node, &e);
    if (rc == -ERR_PROTOCOL) {
        log_warn("cluster",
                 "the registry's entry of node %llu is left out: its name, key or "
                 "address is none",
                 (unsigned long long)n->id);
        return true;
    }
    if (rc != 0) {
        v->rc = rc;
        if (v->error != NULL)
            *v->error = e;
    }
    return rc == 0;
}

int known_of_root(struct known *out, const struct registry_root *root, struct err *e)
{
    *out = (struct known){.index = registry_root_index(root),
                          .next = registry_root_node_id_next(root)};
    struct visit v = {.known = out, .error = e};
    registry_root_nodes(root, visit_node, &v);
    if (v.rc != 0)
        known_free(out);
    return v.rc;
}
