/* node/cluster/membership.h - what a node keeps of its cluster: which one, who it is there, gossip's keys.
 *
 * `data`/node.json, written whole or not at all, mode 0600: its gossip keys make it a secret.
 *
 * Thread: any, one at a time. */
#ifndef SKERRY_NODE_CLUSTER_MEMBERSHIP_H
#define SKERRY_NODE_CLUSTER_MEMBERSHIP_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"
#include "raft/registry.h"

#define MEMBERSHIP_FILE "node.json"
#define MEMBERSHIP_CLUSTER_SIZE 17 /* 16 hexadecimal digits and the NUL */

struct membership {
    node_id id;
    char cluster_id[MEMBERSHIP_CLUSTER_SIZE];
    uint8_t gossip_keys[REGISTRY_KEYRING_MAX][32]; /* the used one first */
    size_t gossip_key_count;
};

/* Of a cluster that is being made: id 1, a random cluster id and a first key of gossip. */
void membership_make(struct membership *out);
bool membership_cluster_valid(const char *cluster_id);
void membership_wipe(struct membership *m);

/* -ERR_NOT_FOUND: this folder belongs to no cluster yet. */
int membership_load(struct membership *out, const char *data, struct err *e) ERR_CHECKED;
int membership_save(const struct membership *m, const char *data, struct err *e) ERR_CHECKED;
/* The file's text; the caller wipes and frees. NULL without memory. */
char *membership_text(const struct membership *m);
int membership_parse(struct membership *out, const char *text, size_t length,
                     struct err *e) ERR_CHECKED;

#endif
