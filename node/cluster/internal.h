/* node/cluster/internal.h - what the files of node/cluster/cluster.h share. The control loop's. */
#ifndef SKERRY_NODE_CLUSTER_INTERNAL_H
#define SKERRY_NODE_CLUSTER_INTERNAL_H

#include "gossip/udp.h"
#include "node/cluster/cluster.h"
#include "node/cluster/keeper.h"
#include "node/cluster/table.h"

/* A sync holds all members of gossip. */
#define CLUSTER_MESSAGE_BYTES_MAX (2u * 1024u * 1024u)
_Static_assert(CLUSTER_ENTRIES_MAX *GOSSIP_SYNC_MEMBER_BYTES_MAX < CLUSTER_MESSAGE_BYTES_MAX,
               "a sync fits");

struct cluster {
    struct cluster_options options; /* callbacks; its pointers are not kept */
    uv_loop_t *loop;
    struct membership membership;
    struct sockaddr_storage advertise;
    char advertise_text[ADDRESS_TEXT_SIZE];
    uint64_t boot, started_ms;
    struct identity *identity;
    struct secure_context *secure;
    struct secure_listener *listener;
    struct peer_rpc *rpc;
    struct gossip *gossip;
    struct seal *seal;
    struct gossip_udp *udp;

    struct cluster_table table;
    uint64_t index; /* of what is known; as struct known */
    node_id next;
    uint8_t digest[32]; /* of what was last followed of the registry */
    bool full_told;     /* that a node found no room */
    struct keeper *known_keeper, *membership_keeper;

    /* What the notify timer has to tell. */
    uv_timer_t notify, leaving;
    bool changed, left, impostor, removed, strays;
    bool removed_told, left_told, leave_asked;

    unsigned open_parts;
    bool closing;
    void (*closed)(void *user);
};

/* Arms the timer that tells what is pending. */
void cluster_notify_soon(struct cluster *c);

/* --- node/cluster/gossip.c --- */
/* Of this node, with the addresses for other nodes. */
void cluster_meta_fill(const struct cluster *c, struct gossip_meta *meta);
int cluster_gossip_open(struct cluster *c, const struct gossip_meta *meta,
                        const struct sockaddr_storage *bind, struct err *e) ERR_CHECKED;
/* A question of what CLUSTER_GOSSIP_SYNC. */
void cluster_gossip_asked(struct cluster *c, struct peer_question *q);
void cluster_gossip_seed(struct cluster *c, const struct known_node *node);
/* The registry removed it. */
void cluster_gossip_remove(struct cluster *c, node_id id);

/* --- node/cluster/follow.c --- */
/* Takes over what is known: keys, addresses, removals. */
void cluster_learn(struct cluster *c, const struct known *known, bool caught_up);
/* The keyring as it is to be, `used` an index of it. Nothing happens for none. */
void cluster_keyring_follow(struct cluster *c, const uint8_t (*keys)[32], size_t count,
                            size_t used);
/* Removes what gossip told of nodes that the registry had removed before. */
void cluster_remove_strays(struct cluster *c);

#endif
