#include "node/cluster/known.h"

#include <jansson.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/private_file.h"

/* Peer, streams, gossip, handshake: four ports in a row. */
#define PORT_MAX (65535u - 3u)

void known_free(struct known *k)
{
    free(k->nodes);
    *k = (struct known){0};
}

const struct known_node *known_find(const struct known *k, node_id id)
{
    size_t low = 0, high = k->node_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (k->nodes[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < k->node_count && k->nodes[low].id == id ? &k->nodes[low] : NULL;
}

bool known_name_valid(const char *name)
{
    size_t length = strlen(name);
    if (length == 0 || length > 63 || name[0] == '-' || name[length - 1] == '-')
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == length;
}

int known_address_check(const char *address, struct sockaddr_storage *out, struct err *e)
{
    int rc = address_parse(out, address, 0, e);
    if (rc == 0)
        rc = address_check_private(out, e);
    if (rc != 0)
        return rc;
    in_port_t port = out->ss_family == AF_INET6 ? ((struct sockaddr_in6 *)out)->sin6_port
                                                : ((struct sockaddr_in *)out)->sin_port;
    if (ntohs(port) > PORT_MAX)
        return err_set(e, ERR_INVALID,
                       "%s: streams, gossip and the handshake take the three ports behind it; "
                       "choose a port up to %u",
                       address, PORT_MAX);
    return 0;
}

/* A node's id is a counter; one beyond that comes from no registry of ours. */
static bool node_valid(const struct known_node *node)
{
    struct sockaddr_storage address;
    struct err e;
    return node->id != 0 && node->id <= INT64_MAX && known_name_valid(node->name) &&
           (node->address[0] == '\0' || known_address_check(node->address, &address, &e) == 0) &&
           (!node->has_key || identity_public_valid(&node->key));
}

int known_add(struct known *k, const struct known_node *node, struct err *e)
{
    if (!node_valid(node) || (k->node_count > 0 && k->nodes[k->node_count - 1].id >= node->id))
        return err_set(e, ERR_PROTOCOL, "node %llu is not described as a node is",
                       (unsigned long long)node->id);
    if (k->node_count == KNOWN_NODES_MAX)
        return err_set(e, ERR_LIMIT, "more than %u nodes", KNOWN_NODES_MAX);
    /* Room doubles: at powers of two there is none left. */
    if ((k->node_count & (k->node_count - 1)) == 0) {
        size_t room = k->node_count == 0 ? 1 : k->node_count * 2;
        struct known_node *nodes = realloc(k->nodes, room * sizeof *nodes);
        if (nodes == NULL)
            return err_set(e, ERR_NO_MEMORY, "no memory for the nodes of the cluster");
        k->nodes = nodes;
    }
    k->nodes[k->node_count++] = *node;
    return 0;
}

/* --- the file ------------------------------------------------------------------------------------- */

char *known_text(const struct known *k)
{
    json_t *nodes = json_array();
    for (size_t i = 0; i < k->node_count; i++) {
        const struct known_node *node = &k->nodes[i];
        char key[IDENTITY_TEXT_SIZE];
        if (!node->has_key || node->address[0] == '\0')
            continue;
        identity_public_format(&node->key, key);
        json_array_append_new(nodes,
                              json_pack("{s:I, s:s, s:s, s:s}", "id", (json_int_t)node->id, "name",
                                        node->name, "address", node->address, "key", key));
    }
    json_t *all = json_pack("{s:I, s:I, s:o}", "index", (json_int_t)k->index, "next",
                            (json_int_t)k->next, "nodes", nodes);
    char *text = all == NULL ? NULL : json_dumps(all, JSON_INDENT(1));
    json_decref(all);
    return text;
}

static int parse_node(struct known *k, json_t *json, struct err *e)
{
    struct known_node node = {.has_key = true};
    json_int_t id = 0;
    const char *name, *address, *key;
    if (json_unpack(json, "{s:I, s:s, s:s, s:s !}", "id", &id, "name", &name, "address", &address,
                    "key", &key) != 0 ||
        id <= 0 || !text_copy(node.name, sizeof node.name, name) ||
        !text_copy(node.address, sizeof node.address, address) ||
        !identity_public_parse(&node.key, key))
        return err_set(e, ERR_PROTOCOL, "an entry is not described as a node is");
    node.id = (node_id)id;
    return known_add(k, &node, e);
}

static int parse_all(struct known *out, json_t *json, struct err *e)
{
    json_int_t index = 0, next = 0;
    json_t *nodes, *node;
    size_t i;
    int rc = 0;
    if (json_unpack(json, "{s:I, s:I, s:o !}", "index", &index, "next", &next, "nodes", &nodes) !=
            0 ||
        index < 0 || next < 0 || !json_is_array(nodes))
        return err_set(e, ERR_PROTOCOL, "it needs index, next and nodes");
    out->index = (uint64_t)index;
    out->next = (node_id)next;
    json_array_foreach(nodes, i, node)
    {
        rc = parse_node(out, node, e);
        if (rc != 0)
            break;
    }
    return rc;
}

int known_parse(struct known *out, const char *text, size_t length, struct err *e)
{
    json_error_t error;
    *out = (struct known){0};
    json_t *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (json == NULL)
        return err_set(e, ERR_PROTOCOL, "line %d: %s", error.line, error.text);
    int rc = parse_all(out, json, e);
    json_decref(json);
    if (rc != 0)
        known_free(out);
    return rc;
}

int known_load(struct known *out, const char *data, struct err *e)
{
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;
    struct err cause = {0};
    CLEANUP_FD int folder = private_folder_open(data, &cause);
    int rc = folder < 0
                 ? folder
                 : private_file_load(folder, KNOWN_FILE, KNOWN_TEXT_MAX, &text, &length, &cause);
    if (rc == 0)
        rc = known_parse(out, text, length, &cause);
    if (rc == 0)
        return 0;
    if (e != NULL)
        *e = cause;
    return err_wrap(e, "%s/" KNOWN_FILE, data);
}

int known_save(const struct known *k, const char *data, struct err *e)
{
    CLEANUP_FREE char *text = known_text(k);
    if (text == NULL)
        return err_set(e, ERR_NO_MEMORY, "store %s/" KNOWN_FILE ": no memory", data);
    CLEANUP_FD int folder = private_folder_open(data, e);
    if (folder < 0)
        return folder;
    int rc = private_file_store(folder, KNOWN_FILE, text, strlen(text), true, e);
    return rc == 0 ? 0 : err_wrap(e, "%s", data);
}
