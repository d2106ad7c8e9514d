/* raft/remote_internal.h - what the asking and the answering half share. */
#ifndef SKERRY_RAFT_REMOTE_INTERNAL_H
#define SKERRY_RAFT_REMOTE_INTERNAL_H

#include "raft/remote.h"
#include "raft/remote_wire.h"

struct remote_read_one {
    struct remote_read_one *next;
    struct remote *remote;
    uint64_t deadline_ms;
    uint64_t index; /* to be applied here */
    registry_read_cb cb;
    void *user;
};

struct remote_reads {
    struct remote_read_one *first, *last;
    size_t count;
};

/* A question under way. Lives until it is answered, also when nobody waits for that any more. */
struct remote_call {
    struct remote *remote; /* NULL: nobody waits */
    node_id to;
    unsigned number; /* of the proposals that are away with it; 0: it is about reads */
    size_t count;
    uint64_t sequences[REMOTE_COMMANDS_MAX];
    struct remote_reads reads;
};

struct remote {
    struct remote_options options;
    bool closed;
    uint64_t now_ms; /* of the last turn */
    struct remote_reads reads_waiting, reads_applying;
    size_t reads_barred; /* that wait for a barrier of our own proposer */
    struct remote_call *calls[REMOTE_CALLS_MAX], *read_call;
    unsigned number_last;
    uint64_t pause_until_ms;
    uint64_t leader_seen_ms; /* when raft last knew who leads */
    /* What nodes said: `denied` does not lead, `hint` does; 0: nothing. */
    node_id denied, hint;
    uint64_t hint_until_ms;
    node_id *candidates;
    size_t candidate_count, candidate_next;
    size_t questions; /* that are being answered */
    struct remote_counts counts;
};

bool remote_elected(const struct remote *r);

#endif
