/* node/control/status_facts.h - what is known of all nodes, and what a person should be told about it.
 *
 * Pure: node/control/status.c gathers, this judges. Thread: any. */
#ifndef SKERRY_NODE_CONTROL_STATUS_FACTS_H
#define SKERRY_NODE_CONTROL_STATUS_FACTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/id.h"
#include "gossip/gossip.h"
#include "raft/registry.h"

struct status_fact {
    node_id id;
    char name[64], address[64], http[64], api[64], zone[64], version[32];
    enum gossip_state state;
    uint64_t since_wall_ms; /* of the state; 0: not known */
    enum registry_role role;
    bool leader, self, draining;
    uint32_t instances; /* that have not ended, as the registry knows */
    double cpus, cpus_used;
    uint64_t memory_bytes, memory_used_bytes;
    bool lease_known;
    double lease_s;
    bool clock_known;
    int64_t ahead_ms; /* its clock, of that of the node that is asked */
};

struct status_facts {
    struct status_fact *nodes;
    size_t count;
    bool has_leader;
    unsigned voters_wanted; /* raft.voters */
    uint64_t strangers;     /* packets and streams of strangers that were refused lately */
};

/* A clock further off than this is told. */
#define STATUS_CLOCK_OFF_MS 1000

struct status_verdict {
    unsigned voters, voters_alive;
    unsigned can_lose; /* voters, with a quorum left */
    bool well;         /* somebody leads, and no node is missed */
};
struct status_verdict status_judge(const struct status_facts *f);
json_t *status_node_json(const struct status_fact *n);
/* Appends texts: what it is about, two spaces, what is the matter and what it means. */
void status_warn(json_t *warnings, const char *format, ...) __attribute__((format(printf, 2, 3)));
void status_warnings(json_t *warnings, const struct status_facts *f);

#endif
