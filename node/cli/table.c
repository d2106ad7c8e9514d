/* Tables, and numbers as people read them. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "node/cli/cli.h"

enum { COLUMNS_MAX = 16, GAP = 2, PREFIX_MIN = 4 };

struct cli_table {
    size_t columns;
    bool right[COLUMNS_MAX];
    size_t width[COLUMNS_MAX];
    char **cells; /* rows one after the other; the first are the heads */
    size_t count, capacity;
};

/* Characters, not bytes: continuation bytes of UTF-8 take no place. */
static size_t width_of(const char *text)
{
    size_t n = 0;
    for (; *text != '\0'; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

/* What runs inside may choose texts: no escape sequence of theirs reaches the terminal. */
static char *clean_copy(const char *text)
{
    char *copy = strdup(text == NULL ? "" : text);
    for (char *p = copy; p != NULL && *p != '\0'; p++) {
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    }
    return copy;
}

static void add_cell(struct cli_table *t, const char *text)
{
    if (t->count == t->capacity) {
        size_t capacity = t->capacity == 0 ? 64 : t->capacity * 2;
        char **cells = realloc(t->cells, capacity * sizeof *cells);
        assert_always(cells != NULL);
        t->cells = cells;
        t->capacity = capacity;
    }
    char *copy = clean_copy(text);
    assert_always(copy != NULL);
    size_t column = t->count % t->columns;
    size_t width = width_of(copy);
    if (width > t->width[column])
        t->width[column] = width;
    t->cells[t->count++] = copy;
}

struct cli_table *cli_table_new(const char *const *heads)
{
    struct cli_table *t = calloc(1, sizeof *t);
    assert_always(t != NULL);
    while (heads[t->columns] != NULL) {
        assert_always(t->columns < COLUMNS_MAX);
        t->right[t->columns] = heads[t->columns][0] == '>';
        t->columns++;
    }
    for (size_t i = 0; i < t->columns; i++)
        add_cell(t, heads[i] + t->right[i]);
    return t;
}

void cli_table_row(struct cli_table *t, const char *const *cells)
{
    for (size_t i = 0; i < t->columns; i++)
        add_cell(t, cells[i]);
}

void cli_table_print(struct cli_table *t, FILE *out)
{
    for (size_t i = 0; i < t->count; i++) {
        size_t column = i % t->columns;
        bool last = column + 1 == t->columns;
        size_t pad = t->width[column] - width_of(t->cells[i]);
        if (t->right[column])
            fprintf(out, "%*s%s", (int)pad, "", t->cells[i]);
        else
            fprintf(out, "%s%*s", t->cells[i], last ? 0 : (int)pad, "");
        if (last)
            fputc('\n', out);
        else
            fprintf(out, "%*s", GAP, "");
        free(t->cells[i]);
    }
    free(t->cells);
    free(t);
}

void cli_bytes(uint64_t bytes, char out[CLI_UNIT_SIZE])
{
    static const char units[] = "KMGTPE";
    double value = (double)bytes;
    int unit = -1;
    while (value >= 1024 && unit < 5) {
        value /= 1024;
        unit++;
    }
    if (unit < 0)
        (void)text_format(out, CLI_UNIT_SIZE, "%" PRIu64, bytes);
    else
        (void)text_format(out, CLI_UNIT_SIZE, value < 10 ? "%.1f%c" : "%.0f%c", value, units[unit]);
}

void cli_duration(uint64_t us, char out[CLI_UNIT_SIZE])
{
    uint64_t seconds = us / 1000000;
    if (us < 1000000)
        (void)text_format(out, CLI_UNIT_SIZE, "%.1f ms", (double)us / 1e3);
    else if (seconds < 60)
        (void)text_format(out, CLI_UNIT_SIZE, "%.1f s", (double)us / 1e6);
    else if (seconds < 3600)
        (void)text_format(out, CLI_UNIT_SIZE, "%" PRIu64 "m %" PRIu64 "s", seconds / 60,
                          seconds % 60);
    else if (seconds < 86400)
        (void)text_format(out, CLI_UNIT_SIZE, "%" PRIu64 "h %" PRIu64 "m", seconds / 3600,
                          seconds / 60 % 60);
    else
        (void)text_format(out, CLI_UNIT_SIZE, "%" PRIu64 "d %" PRIu64 "h", seconds / 86400,
                          seconds / 3600 % 24);
}

uint64_t cli_time(const char *rfc3339)
{
    struct tm tm = {0};
    const char *rest = strptime(rfc3339, "%Y-%m-%dT%H:%M:%S", &tm);
    if (rest == NULL)
        return 0;
    time_t seconds = timegm(&tm);
    if (seconds < 0)
        return 0;
    uint64_t ms = 0;
    if (*rest == '.')
        ms = (uint64_t)(strtod(rest, NULL) * 1000 + 0.5);
    return (uint64_t)seconds * 1000 + ms;
}

void cli_age(const char *rfc3339, uint64_t now_ms, char out[CLI_UNIT_SIZE])
{
    uint64_t then = cli_time(rfc3339);
    uint64_t s = now_ms > then ? (now_ms - then) / 1000 : 0;
    if (then == 0)
        (void)text_copy(out, CLI_UNIT_SIZE, "-");
    else if (s < 60)
        (void)text_format(out, CLI_UNIT_SIZE, "%" PRIu64 "s", s);
    else if (s < 3600)
        (void)text_format(out, CLI_UNIT_SIZE, "%" PRIu64 "m", s / 60);
    else if (s < 86400)
        (void)text_format(out, CLI_UNIT_SIZE, "%" PRIu64 "h", s / 3600);
    else
        (void)text_format(out, CLI_UNIT_SIZE, "%" PRIu64 "d", s / 86400);
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

size_t cli_prefix_length(const char *const *ids, size_t count)
{
    size_t longest = PREFIX_MIN;
    const char **sorted = calloc(count + 1, sizeof *sorted);
    if (sorted == NULL)
        return SIZE_MAX;
    for (size_t i = 0; i < count; i++)
        sorted[i] = ids[i];
    qsort(sorted, count, sizeof *sorted, compare_texts);
    for (size_t i = 1; i < count; i++) {
        size_t same = 0;
        while (sorted[i][same] != '\0' && sorted[i][same] == sorted[i - 1][same])
            same++;
        if (same + 1 > longest)
            longest = same + 1;
    }
    free(sorted);
    return longest;
}
