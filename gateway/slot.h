/* gateway/slot.h - admission of joiners to an instance: one 64-bit word, changed by compare-and-swap.
 *
 *     63            32 31    24 23                0
 *     [  generation  ][ state ][     joiners      ]
 *
 * slot_enter succeeds only while the slot has that generation, is open, inside its window, below
 * max_joiners and before its lease deadline. Draining sets the state; whoever brings a draining slot
 * to zero joiners is told so, once, and posts the end. Slot memory never moves and is never freed
 * before the table; the generation changes with every reuse, so a stale reference only fails.
 *
 * Threads: slot_open, slot_retire and the table belong to the control thread; all else any thread.
 * A joiner that is inside may read `id` and `target`: a retired slot is used anew only when the last
 * joiner of its old generation has left. */
#ifndef SKERRY_GATEWAY_SLOT_H
#define SKERRY_GATEWAY_SLOT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"

#define SLOT_JOINERS_MAX 0xffffffu

enum slot_state { SLOT_FREE = 0, SLOT_OPEN = 1, SLOT_DRAINING = 2 };

struct slot_target { /* where the code listens, in the instance's network namespace */
    bool ipv6;
    uint8_t address[16]; /* 4 or 16 bytes */
    uint16_t port;
};

struct slot {
    _Atomic uint64_t word;
    _Atomic uint32_t max_joiners;       /* 0: SLOT_JOINERS_MAX */
    _Atomic uint64_t window_end_ms;     /* monotonic; UINT64_MAX: none */
    _Atomic uint64_t lease_deadline_ms; /* CLOCK_BOOTTIME; UINT64_MAX: none */
    _Atomic uint64_t last_left_ms;      /* monotonic: when a joiner left last */
    _Atomic uint64_t joins;             /* in this generation */
    _Atomic uint32_t joiners_peak;
    _Atomic bool waited_for; /* control has waiters: tell it of every leave, and take no place */
    _Atomic uint64_t ends_wall_ms; /* end of life.max; UINT64_MAX: none */
    uint32_t index;
    struct instance_id id;
    struct slot_target target;
    node_id owner;
};

struct slot_ref {
    struct slot *slot;
    uint32_t generation;
};

enum slot_answer {
    SLOT_ENTERED,
    SLOT_STALE,  /* another generation, or free */
    SLOT_CLOSED, /* draining */
    SLOT_LATE,   /* its window has passed */
    SLOT_FULL,
    SLOT_WAITED,   /* others wait for a place in it: control lets them in, in the order they came */
    SLOT_NO_LEASE, /* its lease deadline has passed */
};

enum slot_answer slot_enter(struct slot_ref ref, uint64_t monotonic_ms, uint64_t boot_ms);
/* As slot_enter, for who is the next of those who wait: for control. */
enum slot_answer slot_enter_next(struct slot_ref ref, uint64_t monotonic_ms, uint64_t boot_ms);
/* As slot_enter_next, but the window is not looked at: for forced and keyed joins. */
enum slot_answer slot_enter_forced(struct slot_ref ref, uint64_t boot_ms);

/* What the leaver has to do: a set of these. */
#define SLOT_LEFT_LAST 1u   /* it was the last of a draining slot: post the end */
#define SLOT_LEFT_WAITED 2u /* control waits for room */
unsigned slot_leave(struct slot_ref ref, uint64_t monotonic_ms);

/* True if the slot is empty now: the caller posts the end. False: joiners are inside (the last will
 * be told), or it was draining already, or the reference is stale. */
bool slot_drain(struct slot_ref ref);
uint32_t slot_joiners(struct slot_ref ref); /* 0 if stale */
bool slot_live(struct slot_ref ref);        /* open or draining, and of that generation */

struct slot_table;
int slot_table_new(struct slot_table **out, uint32_t slots_max, struct err *e) ERR_CHECKED;
void slot_table_free(struct slot_table *table);
struct slot_options {
    struct instance_id id;
    node_id owner;
    struct slot_target target;
    uint32_t max_joiners;
    uint64_t window_end_ms;
    uint64_t lease_deadline_ms;
    uint64_t ends_wall_ms;
    uint64_t monotonic_ms;
};
/* -ERR_LIMIT when all are in use. */
int slot_open(struct slot_table *table, const struct slot_options *options, struct slot_ref *out,
              struct err *e) ERR_CHECKED;
/* Ends the generation whoever is inside: their slot_leave reports nothing. The slot itself is used
 * anew when they all have left. */
void slot_retire(struct slot_table *table, struct slot_ref ref);

#endif
