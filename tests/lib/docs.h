/* tests/lib/docs.h - a field table against its tables in docs/configuration.md: each key has one row
 * in the table's section, with the default and the allowed values that the code has, and no row
 * names a key that does not exist. Included by one test for the node's library and one for the
 * runner's. */
#ifndef SKERRY_TESTS_LIB_DOCS_H
#define SKERRY_TESTS_LIB_DOCS_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/fields.h"
#include "base/memory.h"

#define DOCS_PATH "docs/configuration.md"

/* The text of the section that begins with the line "## TITLE", NUL-terminated; the caller frees. */
static char *docs_section(const char *title)
{
    FILE *f = fopen(DOCS_PATH, "r");
    if (f == NULL)
        fail_msg("%s cannot be read; run from the top of the tree", DOCS_PATH);
    struct buffer b;
    buffer_init(&b, 1 << 20);
    char line[2048];
    bool inside = false;
    while (fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "## ", 3) == 0) {
            line[strcspn(line, "\n")] = '\0';
            inside = strcmp(line + 3, title) == 0;
        } else if (inside) {
            assert_true(buffer_append_text(&b, line));
        }
    }
    fclose(f);
    assert_true(b.length > 0);
    assert_true(buffer_append(&b, "", 1));
    return b.data;
}

static void docs_number(const struct field *f, uint64_t value, char out[UNIT_TEXT_SIZE])
{
    if (f->type == FIELD_BYTES)
        bytes_format(value, out);
    else if (f->type == FIELD_DURATION)
        duration_format(value, out);
    else if (f->type == FIELD_DECIMAL)
        decimal_format(value, out);
    else
        text_format(out, UNIT_TEXT_SIZE, "%" PRIu64, value);
}

static void docs_allowed(const struct field *f, struct buffer *b)
{
    char min[UNIT_TEXT_SIZE], max[UNIT_TEXT_SIZE];
    switch (f->type) {
    case FIELD_TEXT:
        buffer_append_text(b, "text");
        break;
    case FIELD_BOOL:
        buffer_append_text(b, "`true`, `false`");
        break;
    case FIELD_WORD:
        for (int i = 0; f->words[i] != NULL; i++)
            buffer_printf(b, "%s`%s`", i == 0 ? "" : ", ", f->words[i]);
        break;
    case FIELD_TEXT_LIST:
        buffer_append_text(b, "list of texts");
        break;
    case FIELD_TEXT_MAP:
        buffer_append_text(b, "map, or list of `NAME=value`");
        break;
    default:
        docs_number(f, f->min, min);
        docs_number(f, f->max, max);
        if (f->max == 0)
            buffer_printf(b, "%s or more", min);
        else
            buffer_printf(b, "%s to %s", min, max);
        if (f->none_allowed)
            buffer_append_text(b, ", `none`");
    }
}

/* How the row of a field begins; the meaning behind it is free. */
static void docs_row(const struct field *f, struct buffer *b)
{
    buffer_init(b, 4096);
    buffer_printf(b, "\n| `%s` | ", f->path);
    if (f->fallback == NULL)
        buffer_append_text(b, "required");
    else if (f->fallback[0] == '\0')
        buffer_append_text(b, "empty");
    else
        buffer_printf(b, "`%s`", f->fallback);
    buffer_append_text(b, " | ");
    docs_allowed(f, b);
    assert_true(buffer_append(b, " | ", 4)); /* with its NUL */
}

static void docs_check(const char *title, const struct field_table *table)
{
    CLEANUP_FREE char *section = docs_section(title);
    size_t rows = 0, missing = 0;
    for (const char *at = section; (at = strstr(at, "\n| `")) != NULL; at++)
        rows++;
    for (size_t i = 0; i < table->count; i++) {
        struct buffer row;
        docs_row(&table->fields[i], &row);
        if (strstr(section, row.data) == NULL) {
            missing++;
            print_error("%s, section \"%s\", needs the row:%s%s |\n", DOCS_PATH, title, row.data,
                        table->fields[i].meaning);
        }
        buffer_free(&row);
    }
    if (missing > 0)
        fail_msg("%zu keys are not documented as they are", missing);
    if (rows != table->count)
        fail_msg("%s, section \"%s\": %zu rows for %zu keys", DOCS_PATH, title, rows, table->count);
}

#endif
