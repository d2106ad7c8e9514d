#include "scheduler/timers.h"

#include <stdlib.h>

#include "base/memory.h"

int scheduler_timers_reserve(struct timers *t, size_t count, struct err *e)
{
    if (count + 1 <= t->capacity)
        return 0;
    size_t capacity = t->capacity == 0 ? 64 : t->capacity;
    while (capacity < count + 1)
        capacity *= 2;
    struct timer **heap = realloc(t->heap, capacity * sizeof *heap);
    if (heap == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for %zu timers", capacity);
    t->heap = heap;
    t->capacity = capacity;
    return 0;
}

void scheduler_timers_free(struct timers *t)
{
    free(t->heap);
    *t = (struct timers){0};
}

static void put(struct timers *t, size_t place, struct timer *timer)
{
    t->heap[place] = timer;
    timer->place = place;
}

static void rise(struct timers *t, struct timer *timer)
{
    size_t place = timer->place;
    while (place > 1 && t->heap[place / 2]->at_ms > timer->at_ms) {
        put(t, place, t->heap[place / 2]);
        place /= 2;
    }
    put(t, place, timer);
}

static void sink(struct timers *t, struct timer *timer)
{
    size_t place = timer->place;
    for (;;) {
        size_t child = place * 2;
        if (child > t->count)
            break;
        if (child < t->count && t->heap[child + 1]->at_ms < t->heap[child]->at_ms)
            child++;
        if (t->heap[child]->at_ms >= timer->at_ms)
            break;
        put(t, place, t->heap[child]);
        place = child;
    }
    put(t, place, timer);
}

static void take_out(struct timers *t, struct timer *timer)
{
    size_t place = timer->place;
    struct timer *last = t->heap[t->count--];
    timer->place = 0;
    if (last == timer)
        return;
    put(t, place, last);
    rise(t, last);
    sink(t, last);
}

void scheduler_timers_set(struct timers *t, struct timer *timer, uint64_t at_ms)
{
    if (at_ms == TIMER_NEVER) {
        if (timer->place != 0)
            take_out(t, timer);
        return;
    }
    timer->at_ms = at_ms;
    if (timer->place == 0) {
        assert_always(t->count + 1 < t->capacity);
        put(t, ++t->count, timer);
    }
    rise(t, timer);
    sink(t, timer);
}

struct timer *scheduler_timers_first(const struct timers *t)
{
    return t->count == 0 ? NULL : t->heap[1];
}
