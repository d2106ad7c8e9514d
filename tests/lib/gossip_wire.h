/* tests/lib/gossip_wire.h - a few gossip machines on a wire without delay, and one hand-made clock.
 *
 * Node i has id i + 1 and boot GOSSIP_WIRE_BOOT. What needs many members, loss and time is in
 * tests/sim. */
#ifndef SKERRY_TESTS_LIB_GOSSIP_WIRE_H
#define SKERRY_TESTS_LIB_GOSSIP_WIRE_H

#include "gossip/gossip.h"
#include "gossip/packet.h"

enum { GOSSIP_WIRE_NODES_MAX = 6, GOSSIP_WIRE_BOOT = 7 };

struct gossip_wire {
    size_t count;
    struct gossip *nodes[GOSSIP_WIRE_NODES_MAX];
    bool cut[GOSSIP_WIRE_NODES_MAX]; /* hears and says nothing; its clock stands still */
    bool broken[GOSSIP_WIRE_NODES_MAX][GOSSIP_WIRE_NODES_MAX], no_sync;
    unsigned pings_of_50;
    uint64_t next_ms[GOSSIP_WIRE_NODES_MAX], now_ms;
    unsigned sends, syncs;
    uint32_t changed; /* of all nodes */
    bool left, impostor;
    unsigned depth;
};

struct address gossip_wire_address_of(node_id id);
struct gossip *gossip_wire_make(node_id id, void (*tune)(struct gossip_options *));
/* `count` nodes that have synced; `tune` may be NULL. */
void gossip_wire_open_tuned(struct gossip_wire *w, size_t count,
                            void (*tune)(struct gossip_options *));
void gossip_wire_open(struct gossip_wire *w, size_t count);
void gossip_wire_close(struct gossip_wire *w);

/* What gossip_step answers; sends and syncs are delivered at once. */
int gossip_wire_step(struct gossip_wire *w, size_t i, const struct gossip_event *event);
void gossip_wire_run(struct gossip_wire *w, uint64_t ms);
/* Hands node j the whole state of node i. */
void gossip_wire_exchange(struct gossip_wire *w, size_t i, size_t j);
/* Tells node i, as if by a packet of `from`. */
void gossip_wire_tell(struct gossip_wire *w, size_t i, node_id from,
                      const struct packet_item *items, size_t count);
/* A suspicion is by node 90. */
struct packet_item gossip_wire_statement(node_id id, uint64_t boot, uint32_t incarnation,
                                         enum gossip_state state);
/* State GOSSIP_STATE_COUNT: not known. */
struct gossip_member gossip_wire_look(struct gossip_wire *w, size_t i, node_id id);
void gossip_wire_all_alive(struct gossip_wire *w);

#endif
