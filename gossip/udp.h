/* gossip/udp.h - the driver of gossip/gossip.h: one UDP socket, one timer, on libuv.
 *
 * Reads datagrams, opens their seals, steps the machine, seals and sends what it says, and steps it
 * when its time comes. Only private addresses are bound, heard and sent to. What is refused is counted
 * and logged, at most one line per kind in ten seconds.
 *
 * Thread: the loop's.
 * Memory: gossip and seal outlive the driver: free them in the callback of gossip_udp_close or later.
 * Life:   gossip_udp_open, gossip_udp_close and its callback; then the loop has no handle of it. When
 *         gossip_udp_open fails, the loop may have to run once for its handles to go. */
#ifndef SKERRY_GOSSIP_UDP_H
#define SKERRY_GOSSIP_UDP_H

#include <sys/socket.h>
#include <uv.h>

#include "gossip/gossip.h"
#include "gossip/seal.h"

struct gossip_udp;

struct gossip_udp_options {
    struct gossip *gossip;
    struct seal *seal;
    struct sockaddr_storage bind; /* also what others are told, as self.address */
    void *user;
    /* Called last in a step; none may call gossip_udp_step, and NULL is allowed for each. */
    void (*changed)(void *user, const struct gossip_change *changes, size_t count);
    void (*sync)(void *user, node_id with); /* exchange states by peer RPC: see gossip.h */
    void (*left)(void *user);               /* once, after GOSSIP_LEAVE */
    void (*impostor)(void *user);           /* once: another process runs under our id */
};

/* -ERR_INVALID for a public address, with a message that names it. */
int gossip_udp_open(struct gossip_udp **out, uv_loop_t *loop,
                    const struct gossip_udp_options *options, struct err *e) ERR_CHECKED;
/* No callback but `cb` comes after this. May be called in one. */
void gossip_udp_close(struct gossip_udp *u, void (*cb)(void *user), void *user);
/* All events but PACKET and TICK, which the driver finds itself. Errors as of gossip_step. */
int gossip_udp_step(struct gossip_udp *u, const struct gossip_event *event,
                    struct err *e) ERR_CHECKED;

struct gossip_udp_counts {
    uint64_t received, received_bytes; /* datagrams as they came, refused ones among them */
    uint64_t sent, sent_bytes;
    uint64_t send_failed; /* the system had no room or no way; probes will tell */
    uint64_t public_addresses;
};
void gossip_udp_counts(const struct gossip_udp *u, struct gossip_udp_counts *out);

#endif
