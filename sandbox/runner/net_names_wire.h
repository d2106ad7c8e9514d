/* sandbox/runner/net_names_wire.h - what the runner and its forwarder of names say to each other, over a
 * socket pair that keeps messages apart. Both ends are one program, so the messages are structs.
 *
 * The runner does not trust the forwarder, which reads what instances and resolvers send: it takes no
 * message but NAMES_ALLOW from it, in its bounds. */
#ifndef SKERRY_SANDBOX_RUNNER_NET_NAMES_WIRE_H
#define SKERRY_SANDBOX_RUNNER_NET_NAMES_WIRE_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/runner/net_dns.h"
#include "sandbox/runner/net_rules.h"

#define NAMES_CONTROL_FD 3 /* of the forwarder */
#define NAMES_RESOLVERS_MAX 3

enum names_kind {
    NAMES_RESOLVERS = 1, /* to the forwarder: whom to ask from now on */
    NAMES_ADD,           /* an instance, with its two sockets */
    NAMES_REMOVE,
    NAMES_CONFIRM, /* `seq` of NAMES_ALLOW was done, or was not */
    NAMES_ALLOW    /* to the runner: before an answer is given */
};

struct names_rule {
    uint8_t index; /* in the policy's allow */
    bool subdomains;
    char name[NET_DNS_NAME_SIZE];
};

union names_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

struct names_message {
    enum names_kind kind;
    uint32_t count;  /* of what the union has */
    uint64_t number; /* of the instance; none is given twice */
    uint64_t seq;
    uint64_t rules; /* ALLOW: a bit for each index */
    uint32_t ttl;
    bool restricted, done; /* ADD: answers only names of its rules; CONFIRM */
    union {
        union names_address resolvers[NAMES_RESOLVERS_MAX];
        struct names_rule rule[NET_DESTINATIONS_MAX];
        uint32_t addresses[NET_DNS_ADDRESSES_MAX];
    };
};

/* Bytes of it that matter. */
size_t names_message_size(const struct names_message *m);
/* Whether `size` bytes are a message. */
bool names_message_valid(const struct names_message *m, size_t size);
/* 0, or errno: EAGAIN when there is no room. */
int names_message_send(int channel, const struct names_message *m, const int *descriptors,
                       size_t descriptor_count);
/* 1, 0 when there is none, -1 at the end or of something that is no message. Takes at most two
 * descriptors; those that did not come are -1. */
int names_message_receive(int channel, struct names_message *m, int descriptors[2]);

/* So many a second, and `burst` at once; starts full when zeroed. */
struct names_rate {
    uint64_t at_ms;
    uint64_t spent; /* in thousandths */
};
bool names_rate_take(struct names_rate *rate, unsigned per_second, unsigned burst, uint64_t now_ms);

#endif
