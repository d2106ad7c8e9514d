#include "base/field_key.h"

#include <stdio.h>
#include <string.h>

#include "base/buffer.h"
#include "base/memory.h"

enum { KEY_COMPARED_LENGTH = 32 }; /* longer keys are no slips of ours */

/* If `path` stands directly or deeper below `prefix` ("" or "join."), the name of the step below:
 * its length, and where it begins. 0 otherwise. */
static size_t step_below(const char *path, const char *prefix, const char **name)
{
    size_t prefix_length = strlen(prefix);
    if (strncmp(path, prefix, prefix_length) != 0)
        return 0;
    *name = path + prefix_length;
    return strcspn(*name, ".");
}

/* The number of letters to change, add, leave out or swap with a neighbour (Damerau, 1964, by
 * Wagner and Fischer's table of three rows). Both at most KEY_COMPARED_LENGTH long. */
static unsigned slip_count(const char *a, size_t a_length, const char *b, size_t b_length)
{
    unsigned rows[3][KEY_COMPARED_LENGTH + 1];
    for (unsigned j = 0; j <= b_length; j++)
        rows[0][j] = j;
    for (unsigned i = 1; i <= a_length; i++) {
        unsigned *now = rows[i % 3];
        const unsigned *last = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];
        now[0] = i;
        for (unsigned j = 1; j <= b_length; j++) {
            bool same = a[i - 1] == b[j - 1];
            unsigned best = last[j - 1] + !same;
            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return rows[a_length % 3][b_length];
}

size_t field_key_nearest(const struct field_table *table, const char *prefix, const char *key,
                         const char **out)
{
    size_t key_length = strlen(key), found = 0;
    unsigned best = key_length <= 4 ? 2 : 3; /* fewer slips than this */
    if (key_length > KEY_COMPARED_LENGTH)
        return 0;
    for (size_t i = 0; i < table->count; i++) {
        const char *name;
        size_t length = step_below(table->fields[i].path, prefix, &name);
        if (length == 0 || length > KEY_COMPARED_LENGTH)
            continue;
        unsigned slips = slip_count(key, key_length, name, length);
        if (slips < best) {
            best = slips;
            found = length;
            *out = name;
        }
    }
    return found;
}

const char *field_key_elsewhere(const struct field_table *table, const char *key)
{
    for (size_t i = 0; i < table->count; i++) {
        const char *dot = strrchr(table->fields[i].path, '.');
        if (dot != NULL && strcmp(dot + 1, key) == 0)
            return table->fields[i].path;
    }
    return NULL;
}

void field_key_nested(const char *path, char out[FIELD_KEYS_SHOWN_SIZE])
{
    struct buffer b;
    size_t steps = 1;
    buffer_init(&b, FIELD_KEYS_SHOWN_SIZE);
    bool fits = true;
    for (const char *dot; fits && (dot = strchr(path, '.')) != NULL; path = dot + 1, steps++)
        fits = buffer_printf(&b, "%.*s: {", (int)(dot - path), path);
    fits = fits && buffer_printf(&b, "%s: ...", path);
    for (; fits && steps > 1; steps--)
        fits = buffer_append_text(&b, "}");
    text_format(out, FIELD_KEYS_SHOWN_SIZE, "%.*s", fits ? (int)b.length : 0, fits ? b.data : "");
    buffer_free(&b);
}

void field_keys_below(const struct field_table *table, const char *prefix,
                      char out[FIELD_KEYS_SHOWN_SIZE])
{
    const char *last = NULL;
    size_t last_length = 0, used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < table->count; i++) {
        const char *name;
        size_t length = step_below(table->fields[i].path, prefix, &name);
        if (length == 0 || (length == last_length && strncmp(name, last, length) == 0))
            continue;
        last = name;
        last_length = length;
        int n = snprintf(out + used, FIELD_KEYS_SHOWN_SIZE - used, "%s%.*s", used == 0 ? "" : ", ",
                         (int)length, name);
        if ((size_t)n >= FIELD_KEYS_SHOWN_SIZE - used) {
            text_copy(out + used, FIELD_KEYS_SHOWN_SIZE - used, ", ...");
            return;
        }
        used += (size_t)n;
    }
}
