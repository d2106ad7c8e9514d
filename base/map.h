/* base/map.h - an immutable, path-copying ordered map from byte strings to values.
 *
 * A `struct map` is a root: a value, never changed. map_put and map_remove return another root that
 * shares all but the path to the change. Any number of threads may read a root; making, referencing
 * and releasing roots belong to one thread (the control loop), so counts are plain integers: other
 * threads hand their root back for release.
 *
 * Values are counted too: a struct map_value is the first member of the stored struct, begins with
 * count 1 (owned by its maker), and is released with the last node that holds it.
 *
 * Cost: O(log n) per change and look-up. Memory: about 64 bytes an entry plus the key. */
#ifndef SKERRY_BASE_MAP_H
#define SKERRY_BASE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct map_value {
    uint32_t references;
    void (*release)(struct map_value *value); /* called when the count reaches zero */
};
void map_value_init(struct map_value *value, void (*release)(struct map_value *));
void map_value_hold(struct map_value *value);
void map_value_drop(struct map_value *value);

struct map_node;
struct map {
    struct map_node *root; /* NULL: empty */
    size_t count;
};

#define MAP_KEY_LENGTH_MAX 512

/* *out may be == *in (then the old root is released). The map takes its own reference on value.
 * On failure nothing changed. */
int map_put(struct map *out, const struct map *in, const void *key, size_t key_length,
            struct map_value *value, struct err *e) ERR_CHECKED;
/* Removing what is not there gives an equal map. */
int map_remove(struct map *out, const struct map *in, const void *key, size_t key_length,
               struct err *e) ERR_CHECKED;
struct map map_hold(const struct map *m);
void map_release(struct map *m); /* *m becomes empty */

/* As map_release, in slices: what nobody holds any more waits in `garbage` for map_collect, so that the
 * end of an old root with a million entries of its own does not hold up a loop. `garbage` begins as
 * zeros, belongs to the thread of the maps, and is empty once map_collect has answered false. */
struct map_garbage {
    struct map_node *first;
};
void map_discard(struct map *m, struct map_garbage *garbage);
/* Frees at most so many entries; false: nothing is left. */
bool map_collect(struct map_garbage *garbage, size_t entries_max);

/* Any thread that holds the root: */
struct map_value *map_get(const struct map *m, const void *key, size_t key_length);
/* In key order (memcmp, shorter first). Starts at the first key >= `from` (NULL: the first). Stops
 * when `visit` returns false. */
void map_walk(const struct map *m, const void *from, size_t from_length,
              bool (*visit)(void *user, const void *key, size_t key_length,
                            struct map_value *value),
              void *user);

#endif
