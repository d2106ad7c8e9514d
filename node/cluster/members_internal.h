/* node/cluster/members_internal.h - what the files of node/cluster/members.h share. The control loop's. */
#ifndef SKERRY_NODE_CLUSTER_MEMBERS_INTERNAL_H
#define SKERRY_NODE_CLUSTER_MEMBERS_INTERNAL_H

#include "node/cluster/confirm.h"
#include "node/cluster/enroll.h"
#include "node/cluster/members.h"
#include "node/cluster/turned_away.h"

struct members {
    struct node *node;
    struct membership membership;
    struct enroll *enroll;
    struct confirm *confirm;
    bool opened; /* timers, too */

    uv_timer_t tick;         /* roles, load, and what did not go at first */
    uv_timer_t follow;       /* the registry's nodes, soon after a change */
    struct gossip_meta meta; /* as told last */
    uint64_t load_told_ms;
    struct registry_peer *peers; /* KNOWN_NODES_MAX */

    /* node/cluster/members_register.c */
    bool caught_up; /* a strong read succeeded */
    bool reading, proposing;
    uint64_t begun_ms, waiting_told_ms, refused_told_ms;

    struct {
        char used[SEAL_KEY_ID_SIZE]; /* "": not known yet */
        uint64_t since_ms;
        bool wanted;                  /* somebody who was removed knows it */
        char added[SEAL_KEY_ID_SIZE]; /* by this node, to be used next */
        bool proposing;
    } keyring; /* node/cluster/members_keyring.c */

    void (*left)(struct node *n);
    bool stopping;
    unsigned open_parts, detaching; /* streams on their way to another thread */
    struct turned_away_list turned_away;
    bool closing_ports;
    void (*closed)(void *user);
    void *closed_user;
};

/* --- node/cluster/members_register.c --- */
/* Reads the registry strongly and brings its entry of this node up to date, a step a call. */
void members_register(struct members *m);

/* --- node/cluster/members_keyring.c --- */
/* With what was kept of the last run: a node that was removed since knows it. */
void members_keyring_open(struct members *m);
/* A node was removed or replaced; before the root that says so is followed. */
void members_keyring_removed(struct members *m);
void members_keyring_follow(struct members *m, const struct registry_root *root);
/* While this node leads, now and then. */
void members_keyring_lead(struct members *m);

/* --- node/cluster/members_load.c --- */
/* Of this node, as it is now. */
void members_meta(struct members *m, struct gossip_meta *out);
void members_tell(struct members *m);

#endif
