/* base/field_key.h - what an unknown key may have been meant to be. A part of base/fields.h that
 * its users do not need.
 *
 * A prefix is "" for the top, else it ends in a point: "join.". */
#ifndef SKERRY_BASE_FIELD_KEY_H
#define SKERRY_BASE_FIELD_KEY_H

#include <stddef.h>

#include "base/fields.h"

/* The known key below `prefix` that `key` may be a slip of: its length, and where it begins (not
 * ended by a NUL); 0 when none is near. */
size_t field_key_nearest(const struct field_table *table, const char *prefix, const char *key,
                         const char **out);
/* The path of a field elsewhere whose last step is `key`, or NULL. */
const char *field_key_elsewhere(const struct field_table *table, const char *key);
#define FIELD_KEYS_SHOWN_SIZE 140
/* "a.b" as it is written: "a: {b: ...}". */
void field_key_nested(const char *path, char out[FIELD_KEYS_SHOWN_SIZE]);
/* "id, kind, join": each step below `prefix` once, in the table's order, cut if longer. */
void field_keys_below(const struct field_table *table, const char *prefix,
                      char out[FIELD_KEYS_SHOWN_SIZE]);

#endif
