#include "raft/recent.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { SLOTS_FIRST = 256 };

struct slot {
    uint64_t index;
    uint8_t *bytes;
    size_t length;
};

struct recent {
    struct slot *slots; /* a ring of `size`, a power of two */
    size_t size, first, count;
    size_t bytes;
    size_t entries_max, bytes_max;
    uint64_t after; /* every command behind it is here */
};

static struct slot *slot_at(const struct recent *r, size_t i)
{
    return &r->slots[(r->first + i) & (r->size - 1)];
}

static void drop_first(struct recent *r)
{
    struct slot *s = slot_at(r, 0);
    r->after = s->index;
    r->bytes -= s->length;
    free(s->bytes);
    r->first = (r->first + 1) & (r->size - 1);
    r->count--;
}

/* Makes room for one more of `length` bytes; false without memory. */
static bool make_room(struct recent *r, size_t length)
{
    while (r->count > 0 && (r->count >= r->entries_max || r->bytes + length > r->bytes_max))
        drop_first(r);
    if (r->count < r->size)
        return true;
    size_t size = r->size == 0 ? SLOTS_FIRST : r->size * 2;
    struct slot *slots = calloc(size, sizeof *slots);
    if (slots == NULL)
        return false;
    for (size_t i = 0; i < r->count; i++)
        slots[i] = *slot_at(r, i);
    free(r->slots);
    r->slots = slots;
    r->size = size;
    r->first = 0;
    return true;
}

void recent_push(struct recent *r, uint64_t index, const void *bytes, size_t length)
{
    assert_always(index > r->after && (r->count == 0 || index > slot_at(r, r->count - 1)->index));
    uint8_t *copy = length <= r->bytes_max ? malloc(length + 1) : NULL;
    if (copy == NULL || !make_room(r, length)) {
        free(copy);
        recent_reset(r, index);
        return;
    }
    memcpy(copy, bytes, length);
    *slot_at(r, r->count++) = (struct slot){.index = index, .bytes = copy, .length = length};
    r->bytes += length;
}

void recent_reset(struct recent *r, uint64_t index)
{
    while (r->count > 0)
        drop_first(r);
    r->after = index;
}

void recent_bound(struct recent *r, size_t entries_max, size_t bytes_max)
{
    assert_always(entries_max > 0);
    r->entries_max = entries_max;
    r->bytes_max = bytes_max;
    while (r->count > 0 && (r->count > entries_max || r->bytes > bytes_max))
        drop_first(r);
}

bool recent_covers(const struct recent *r, uint64_t index)
{
    return index >= r->after;
}

bool recent_next(const struct recent *r, uint64_t index, struct recent_entry *out)
{
    size_t low = 0, high = r->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (slot_at(r, middle)->index <= index)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == r->count)
        return false;
    const struct slot *s = slot_at(r, low);
    *out = (struct recent_entry){.index = s->index, .bytes = s->bytes, .length = s->length};
    return true;
}

size_t recent_count(const struct recent *r)
{
    return r->count;
}

size_t recent_bytes(const struct recent *r)
{
    return r->bytes;
}

int recent_new(struct recent **out, struct err *e)
{
    struct recent *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(e, ERR_NO_MEMORY, "the ring of applied commands: no memory");
    r->entries_max = RECENT_ENTRIES_MAX;
    r->bytes_max = RECENT_BYTES_MAX;
    *out = r;
    return 0;
}

void recent_free(struct recent *r)
{
    if (r == NULL)
        return;
    recent_reset(r, 0);
    free(r->slots);
    free(r);
}
