/* raft/registry_internal.h - the registry's parts, for the files that it is made of. */
#ifndef SKERRY_RAFT_REGISTRY_INTERNAL_H
#define SKERRY_RAFT_REGISTRY_INTERNAL_H

#include <uv.h>

#include "raft/feed.h"
#include "raft/proposer.h"
#include "raft/recent.h"
#include "raft/registry.h"
#include "raft/remote.h"
#include "raft/replica.h"
#include "raft/spare.h"
#include "raft/state.h"

/* A node as its neighbours were told of it. */
struct members_peer {
    struct registry_peer peer;
    uint64_t since_ms; /* it is alive, or dead */
};

struct members {
    struct members_peer *peers;
    size_t count;
    struct raft_change change;
    bool changing;     /* libraft has `change` */
    int change_status; /* of the last one, until it was told */
    uint64_t pause_until_ms;
    struct raft_transfer transfer;
    bool transferring; /* libraft has `transfer`, or it is over and not yet told */
    bool transfer_over;
    node_id transfer_to; /* 0: whoever is the heir when it is tried */
    uint64_t transfer_until_ms;
    registry_read_cb transfer_done;
    void *transfer_user;
};

struct registry {
    struct registry_options options;
    char *directory;
    uv_loop_t *loop;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_timer_t timer;
    uv_idle_t idle;      /* runs while there is something to free */
    unsigned handles;    /* that are open */
    bool awake;          /* prepare and check run */
    bool turning, again; /* a turn is under way, and another is wanted */
    bool ticked;         /* deadlines are due to be looked at */

    struct state *state; /* raft's; what is read: registry_state */
    struct proposer *proposer;
    struct replica *replica;
    struct remote *remote;
    struct recent *recent;
    struct feed *feed;    /* of others */
    struct spare *spare;  /* by another */
    uint64_t followed_ms; /* when raft last brought the log */
    struct members members;

    const struct map_node *nodes_seen; /* the root of the nodes that replica_review knew */
    uint64_t told_index;               /* of the last `changed` */
    bool told_leader;
    bool failed, told_failed;
    struct err failure;
    uint64_t refusals;

    bool closing, parts_closing;
    void (*closed)(void *user);
    void *closed_user;
};

/* registry.c: something is to be looked at in the next turn. */
void registry_wake(void *registry);
/* registry_members.c */
void registry_members_turn(struct registry *r);
void registry_members_close(struct registry *r);
void registry_members_free(struct registry *r);
enum registry_role registry_role_of(const struct raft_server *server);

/* registry_spare.c */
int registry_spare_open(struct registry *r, struct err *e) ERR_CHECKED;
void registry_spare_turn(struct registry *r, uint64_t now_ms);
void registry_spare_review(struct registry *r);
/* Fills what a neighbour knows better, and the voters. */
void registry_spare_status(const struct registry *r, struct registry_status *out);
/* The newest that this node has, by raft or fed, and up to where it was applied. */
struct state *registry_state(const struct registry *r);
uint64_t registry_applied(void *registry);
uint64_t registry_generation(void *registry);
/* Who leads, as far as is known now; 0: nobody. */
node_id registry_leader(void *registry);

#endif
