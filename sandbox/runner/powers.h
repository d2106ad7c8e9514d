/* sandbox/runner/powers.h - what this runner may do on its machine: asked once, when it starts.
 *
 * Root of the machine may do all of it. A runner that an ordinary user started is root of a user
 * namespace (sandbox/shared/userns.h) and goes without: everybody who acts differently then has one
 * field here, and nobody asks who the runner is. */
#ifndef SKERRY_SANDBOX_RUNNER_POWERS_H
#define SKERRY_SANDBOX_RUNNER_POWERS_H

#include <stdbool.h>
#include <stdint.h>

#include "sandbox/shared/userns.h"

struct powers {
    /* Each instance has ids of its own, which a lock of the machine guards; else all have the same. */
    bool own_ids;
    /* The agent has another id than the code beside it, and groups can be changed. */
    bool agent_id;
    /* Files of the store have ids of their own, and mounts map them to an instance's. */
    bool map_layers;
    bool mount_erofs;        /* else images stay folders */
    bool make_devices;       /* else the machine's are bound */
    bool trusted_attributes; /* overlay keeps its notes in them; else in attributes of users */
    bool egress;
    bool every_group; /* of control groups: that one cannot be used is worth a warning */
    /* Owners of the files in the store, as this process sees them. */
    struct id_range layers;
    char note[400]; /* what is missing, for people; "": nothing */
};

/* `lack`: why the user has no range of ids, "" or NULL. */
void powers_ask(struct powers *p, const char *lack);
/* Ids of the instance in place `slot`; `uid_base` as configured. */
struct id_range powers_ids(const struct powers *p, uint64_t uid_base, uint32_t slot);
/* A limit that nothing enforces is part of the note. */
void powers_note_limits(struct powers *p, bool any_missing);

/* The id outside of one inside. */
uint32_t id_range_outside(struct id_range ids, uint32_t inside);

#endif
