#include "gateway/slot.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* A retired slot keeps its generation and its joiners in state FREE until the last of them has
 * left: only then may slot_open write `id` and `target` anew. So whoever is inside may read them,
 * whatever happens to the instance. */

enum { GENERATION_SHIFT = 32, STATE_SHIFT = 24 };

struct slot_table {
    struct slot *slots;
    uint32_t slots_max;
    /* Free slots in a ring, oldest first, so that a generation returns as late as possible. */
    uint32_t *free_ring;
    uint32_t free_head;
    uint32_t free_count;
};

static uint64_t word_make(uint32_t generation, enum slot_state state, uint32_t joiners)
{
    return ((uint64_t)generation << GENERATION_SHIFT) | ((uint64_t)state << STATE_SHIFT) | joiners;
}

static uint32_t word_generation(uint64_t word)
{
    return (uint32_t)(word >> GENERATION_SHIFT);
}

static enum slot_state word_state(uint64_t word)
{
    return (enum slot_state)((word >> STATE_SHIFT) & 0xffu);
}

static uint32_t word_joiners(uint64_t word)
{
    return (uint32_t)(word & SLOT_JOINERS_MAX);
}

static void note_peak(struct slot *slot, uint32_t joiners)
{
    uint32_t peak = atomic_load_explicit(&slot->joiners_peak, memory_order_relaxed);
    while (joiners > peak &&
           !atomic_compare_exchange_weak_explicit(&slot->joiners_peak, &peak, joiners,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

/* The bounds are read between the load of the word and its exchange. Should the slot be reused in
 * between, the generation differs and the exchange fails, so bounds of two generations never mix. */
static enum slot_answer enter(struct slot_ref ref, uint64_t monotonic_ms, uint64_t boot_ms,
                              bool next)
{
    struct slot *slot = ref.slot;
    if (slot == NULL)
        return SLOT_STALE;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);
    for (;;) {
        if (word_generation(word) != ref.generation || word_state(word) == SLOT_FREE)
            return SLOT_STALE;
        if (word_state(word) != SLOT_OPEN)
            return SLOT_CLOSED;
        if (boot_ms >= atomic_load_explicit(&slot->lease_deadline_ms, memory_order_relaxed))
            return SLOT_NO_LEASE;
        if (monotonic_ms > atomic_load_explicit(&slot->window_end_ms, memory_order_relaxed))
            return SLOT_LATE;
        uint32_t limit = atomic_load_explicit(&slot->max_joiners, memory_order_relaxed);
        if (limit == 0 || limit > SLOT_JOINERS_MAX)
            limit = SLOT_JOINERS_MAX;
        if (word_joiners(word) >= limit)
            return SLOT_FULL;
        /* A place that becomes free belongs to who has waited longest. */
        if (!next && atomic_load_explicit(&slot->waited_for, memory_order_relaxed))
            return SLOT_WAITED;
        /* Sequentially consistent, as in slot_leave: see waited_for there. */
        if (atomic_compare_exchange_weak(&slot->word, &word, word + 1)) {
            atomic_fetch_add_explicit(&slot->joins, 1, memory_order_relaxed);
            note_peak(slot, word_joiners(word) + 1);
            return SLOT_ENTERED;
        }
    }
}

enum slot_answer slot_enter(struct slot_ref ref, uint64_t monotonic_ms, uint64_t boot_ms)
{
    return enter(ref, monotonic_ms, boot_ms, false);
}

enum slot_answer slot_enter_next(struct slot_ref ref, uint64_t monotonic_ms, uint64_t boot_ms)
{
    return enter(ref, monotonic_ms, boot_ms, true);
}

enum slot_answer slot_enter_forced(struct slot_ref ref, uint64_t boot_ms)
{
    return enter(ref, 0, boot_ms, true); /* time zero is inside every window */
}

unsigned slot_leave(struct slot_ref ref, uint64_t monotonic_ms)
{
    struct slot *slot = ref.slot;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);
    for (;;) {
        if (word_generation(word) != ref.generation || word_joiners(word) == 0)
            return 0;
        /* Before the exchange: afterwards the slot may belong to another generation. */
        atomic_store_explicit(&slot->last_left_ms, monotonic_ms, memory_order_relaxed);
        if (atomic_compare_exchange_weak(&slot->word, &word, word - 1))
            break;
    }
    if (word_state(word) == SLOT_FREE)
        return 0;
    unsigned what = 0;
    if (word_state(word) == SLOT_DRAINING && word_joiners(word) == 1)
        what |= SLOT_LEFT_LAST;
    /* Control sets waited_for and then looks for room; we make room and then look at waited_for.
     * Both in the one order of all sequentially consistent operations, so one of us sees the
     * other. */
    if (atomic_load(&slot->waited_for))
        what |= SLOT_LEFT_WAITED;
    return what;
}

bool slot_drain(struct slot_ref ref)
{
    struct slot *slot = ref.slot;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_acquire);
    for (;;) {
        if (word_generation(word) != ref.generation || word_state(word) != SLOT_OPEN)
            return false;
        uint64_t next = word_make(ref.generation, SLOT_DRAINING, word_joiners(word));
        if (atomic_compare_exchange_weak(&slot->word, &word, next))
            return word_joiners(word) == 0;
    }
}

bool slot_live(struct slot_ref ref)
{
    if (ref.slot == NULL)
        return false;
    uint64_t word = atomic_load(&ref.slot->word);
    return word_generation(word) == ref.generation && word_state(word) != SLOT_FREE;
}

uint32_t slot_joiners(struct slot_ref ref)
{
    if (ref.slot == NULL)
        return 0;
    uint64_t word = atomic_load(&ref.slot->word);
    if (word_generation(word) != ref.generation || word_state(word) == SLOT_FREE)
        return 0;
    return word_joiners(word);
}

int slot_table_new(struct slot_table **out, uint32_t slots_max, struct err *e)
{
    struct slot_table *table = calloc(1, sizeof *table);
    if (table != NULL) {
        table->slots = calloc(slots_max, sizeof *table->slots);
        table->free_ring = calloc(slots_max, sizeof *table->free_ring);
    }
    if (table == NULL || table->slots == NULL || table->free_ring == NULL) {
        slot_table_free(table);
        return err_set(e, ERR_NO_MEMORY, "make a table of %u slots", (unsigned)slots_max);
    }
    table->slots_max = slots_max;
    for (uint32_t i = 0; i < slots_max; i++) {
        table->slots[i].index = i;
        table->free_ring[i] = i;
    }
    table->free_count = slots_max;
    *out = table;
    return 0;
}

void slot_table_free(struct slot_table *table)
{
    if (table == NULL)
        return;
    free(table->slots);
    free(table->free_ring);
    free(table);
}

static void free_push(struct slot_table *table, uint32_t index)
{
    assert_always(table->free_count < table->slots_max);
    table->free_ring[(table->free_head + table->free_count) % table->slots_max] = index;
    table->free_count++;
}

static uint32_t free_pop(struct slot_table *table)
{
    uint32_t index = table->free_ring[table->free_head];
    table->free_head = (table->free_head + 1) % table->slots_max;
    table->free_count--;
    return index;
}

/* The oldest free slot that nobody is inside any more, or NULL. */
static struct slot *take_empty(struct slot_table *table)
{
    for (uint32_t tries = table->free_count; tries > 0; tries--) {
        uint32_t index = free_pop(table);
        struct slot *slot = &table->slots[index];
        if (word_joiners(atomic_load(&slot->word)) == 0)
            return slot;
        free_push(table, index);
    }
    return NULL;
}

int slot_open(struct slot_table *table, const struct slot_options *options, struct slot_ref *out,
              struct err *e)
{
    struct slot *slot = take_empty(table);
    if (slot == NULL)
        return err_set(e, ERR_LIMIT, "all %u slots for instances are in use",
                       (unsigned)table->slots_max);
    uint32_t generation = word_generation(atomic_load(&slot->word)) + 1;
    if (generation == 0) /* never valid, so that a zeroed reference is stale */
        generation = 1;
    slot->id = options->id;
    slot->target = options->target;
    slot->owner = options->owner;
    atomic_store_explicit(&slot->max_joiners, options->max_joiners, memory_order_relaxed);
    atomic_store_explicit(&slot->window_end_ms, options->window_end_ms, memory_order_relaxed);
    atomic_store_explicit(&slot->lease_deadline_ms, options->lease_deadline_ms,
                          memory_order_relaxed);
    atomic_store_explicit(&slot->ends_wall_ms, options->ends_wall_ms, memory_order_relaxed);
    atomic_store_explicit(&slot->last_left_ms, options->monotonic_ms, memory_order_relaxed);
    atomic_store_explicit(&slot->joins, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->joiners_peak, 0, memory_order_relaxed);
    atomic_store(&slot->waited_for, false);
    atomic_store(&slot->word, word_make(generation, SLOT_OPEN, 0)); /* publishes all of the above */
    *out = (struct slot_ref){slot, generation};
    return 0;
}

void slot_retire(struct slot_table *table, struct slot_ref ref)
{
    struct slot *slot = ref.slot;
    uint64_t word = atomic_load(&slot->word);
    do {
        if (word_generation(word) != ref.generation || word_state(word) == SLOT_FREE)
            return;
    } while (!atomic_compare_exchange_weak(
        &slot->word, &word, word_make(ref.generation, SLOT_FREE, word_joiners(word))));
    free_push(table, slot->index);
}
