/* node/cluster/known.h - what is known of the nodes of a cluster: who, with which key, where.
 *
 * One form for three sources: the registry, the answer of the handshake (node/cluster/enroll.h), and
 * `data`/peers.json, in which the last one is kept for the next start. `index` orders them: the
 * registry's index at which it was so. A node with an id below `next` that is not here was removed.
 *
 * Thread: any, one at a time. */
#ifndef SKERRY_NODE_CLUSTER_KNOWN_H
#define SKERRY_NODE_CLUSTER_KNOWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/address.h"
#include "base/err.h"
#include "base/identity.h"
#include "raft/registry.h"

#define KNOWN_FILE "peers.json"
#define KNOWN_NODES_MAX 1024u
/* 1,024 nodes of 64 bytes of name, 64 of address, 52 of key, 20 of id and the words between. */
#define KNOWN_TEXT_MAX (512u * 1024u)

struct known_node {
    node_id id;
    char name[64];
    char address[ADDRESS_TEXT_SIZE]; /* canonical and private, with the peer port; "" not known */
    bool has_key;
    struct identity_public key;
};

struct known {
    uint64_t index;
    node_id next;
    size_t node_count;
    struct known_node *nodes; /* in order of id */
};

void known_free(struct known *k);
const struct known_node *known_find(const struct known *k, node_id id);
/* Appends; the id must be above all that are there, else -ERR_PROTOCOL; -ERR_LIMIT when full. */
int known_add(struct known *k, const struct known_node *node, struct err *e) ERR_CHECKED;
/* What a node says of itself or a file says of it: a name, and an address that is private and leaves
 * room for the three ports behind it. */
bool known_name_valid(const char *name);
int known_address_check(const char *address, struct sockaddr_storage *out,
                        struct err *e) ERR_CHECKED;

/* Of a registry's root. Nodes that break the rules above, which no registry takes, are left out. */
int known_of_root(struct known *out, const struct registry_root *root, struct err *e) ERR_CHECKED;

/* As text for the file; the caller frees. NULL without memory. Nodes without key or address are no
 * help to a start and left out. */
char *known_text(const struct known *k);
int known_parse(struct known *out, const char *text, size_t length, struct err *e) ERR_CHECKED;
/* -ERR_NOT_FOUND when there is no such file yet. */
int known_load(struct known *out, const char *data, struct err *e) ERR_CHECKED;
int known_save(const struct known *k, const char *data, struct err *e) ERR_CHECKED;

#endif
