/* scheduler/timers.h - the next deadline of many, as a binary heap whose entries live in their owners.
 *
 * A timer belongs to the object that embeds it; `timers_set` moves it in O(log n). Setting cannot
 * fail: room is reserved when the owner is made. */
#ifndef SKERRY_SCHEDULER_TIMERS_H
#define SKERRY_SCHEDULER_TIMERS_H

#include <stdint.h>

#include "base/err.h"

#define TIMER_NEVER UINT64_MAX

enum timer_owner { TIMER_WAITER, TIMER_INSTANCE, TIMER_WORKLOAD };

struct timer {
    uint64_t at_ms;
    size_t place; /* in the heap, from 1; 0: not set */
    enum timer_owner owner;
};

struct timers {
    struct timer **heap; /* from 1 */
    size_t count, capacity;
};

/* Room for `count` timers at the same time. */
int scheduler_timers_reserve(struct timers *t, size_t count, struct err *e) ERR_CHECKED;
void scheduler_timers_free(struct timers *t);
/* TIMER_NEVER takes it out. */
void scheduler_timers_set(struct timers *t, struct timer *timer, uint64_t at_ms);
/* The earliest, or NULL. It stays in. */
struct timer *scheduler_timers_first(const struct timers *t);

#endif
