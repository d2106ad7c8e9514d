#include "tests/sim/sim_store.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

struct entry {
    struct entry *next; /* of the same bucket */
    uint64_t hash;
    uint32_t keepers, size;
    uint64_t bytes[]; /* aligned for whatever it holds */
};

struct sim_store {
    struct entry **buckets;
    size_t size, count; /* a power of two; entries */
};

/* FNV-1a. */
static uint64_t hash_of(const uint8_t *bytes, size_t size)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3ull;
    return hash ^ hash >> 32;
}

static void grow(struct sim_store *s)
{
    struct entry **old = s->buckets;
    size_t old_size = s->size;
    s->size = old_size == 0 ? 1024 : 2 * old_size;
    s->buckets = calloc(s->size, sizeof(struct entry *));
    assert_always(s->buckets != NULL);
    for (size_t i = 0; i < old_size; i++) {
        struct entry *next;
        for (struct entry *e = old[i]; e != NULL; e = next) {
            struct entry **bucket = &s->buckets[e->hash & (s->size - 1)];
            next = e->next;
            e->next = *bucket;
            *bucket = e;
        }
    }
    free(old);
}

static const void *keep(void *user, const void *bytes, size_t size)
{
    struct sim_store *s = user;
    uint64_t hash = hash_of(bytes, size);
    struct entry *e = s->size == 0 ? NULL : s->buckets[hash & (s->size - 1)];
    while (e != NULL && (e->hash != hash || e->size != size || memcmp(e->bytes, bytes, size) != 0))
        e = e->next;
    if (e != NULL) {
        e->keepers++;
        return e->bytes;
    }
    if (s->count == s->size)
        grow(s);
    e = malloc(sizeof *e + size);
    assert_always(e != NULL);
    struct entry **bucket = &s->buckets[hash & (s->size - 1)];
    *e = (struct entry){.next = *bucket, .hash = hash, .keepers = 1, .size = (uint32_t)size};
    memcpy(e->bytes, bytes, size);
    *bucket = e;
    s->count++;
    return e->bytes;
}

static void drop(void *user, const void *bytes)
{
    struct sim_store *s = user;
    struct entry *e =
        (struct entry *)((uintptr_t)bytes - offsetof(struct entry, bytes)); /* no longer const */
    if (--e->keepers > 0)
        return;
    struct entry **at = &s->buckets[e->hash & (s->size - 1)];
    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    s->count--;
    free(e);
}

struct sim_store *sim_store_new(void)
{
    struct sim_store *s = calloc(1, sizeof *s);
    assert_always(s != NULL);
    return s;
}

void sim_store_free(struct sim_store *s)
{
    assert_always(s->count == 0);
    free(s->buckets);
    free(s);
}

struct gossip_store sim_store_for_gossip(struct sim_store *s)
{
    return (struct gossip_store){.user = s, .keep = keep, .drop = drop};
}
