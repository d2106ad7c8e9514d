/* base/fields.h - one table per configuration: it parses, checks, fills defaults, prints and
 * documents every key, so that no key exists in one place only.
 *
 * A struct field describes a key by its dotted path ("join.max_joiners") and the member of the
 * target struct that it fills. fields_parse refuses unknown keys with file, line and key, and with
 * the remedy when `hints` knows the word from elsewhere (Compose's "network_mode").
 *
 * Memory: text and list members point into memory that fields_free releases. */
#ifndef SKERRY_BASE_FIELDS_H
#define SKERRY_BASE_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/document.h"
#include "base/err.h"
#include "base/units.h"

enum field_type {
    FIELD_TEXT,     /* char * */
    FIELD_BOOL,     /* bool */
    FIELD_UINT,     /* uint64_t */
    FIELD_BYTES,    /* uint64_t, from "128M"; binary units K M G T, also Ki Mi Gi Ti and b suffix */
    FIELD_DURATION, /* uint64_t milliseconds, from "250ms" "30s" "5m" "1h" "2d"; see NONE */
    FIELD_DECIMAL,  /* uint64_t thousandths, from "0.5" or 2 */
    FIELD_WORD,     /* int, an index into `words` */
    FIELD_TEXT_LIST, /* struct field_list of text; one text alone is a list of one */
    FIELD_TEXT_MAP,  /* struct field_list of "KEY=value"; from a map, or a list of KEY=value */
};

struct field_list {
    char **items;
    size_t count;
};

struct field {
    const char *path;
    enum field_type type;
    size_t offset;
    const char *fallback;     /* default as it would be written; NULL: required */
    uint64_t min, max;        /* of UINT, BYTES, DURATION (ms), CPUS; of items in lists; of text
                                  length. max 0: no bound but the type's own */
    bool none_allowed;        /* DURATION and BYTES: the word "none" */
    const char *const *words; /* WORD: NULL-terminated */
    const char *meaning;      /* one sentence for docs and errors */
};

struct field_hint {
    const char *path;   /* where a foreign key stands: "network_mode", "deploy.replicas" */
    const char *remedy; /* "Compose's name; here: network: {mode: egress}." */
};

struct field_table {
    const struct field *fields;
    size_t count;
    const struct field_hint *hints; /* ended by a NULL path */
};

/* Fills every member that the table names, from the document or its fallback; what they held is
 * overwritten, not released. On failure they are all empty. */
int fields_parse(const struct field_table *table, const struct document *d, void *target,
                 struct err *e) ERR_CHECKED;
/* Every member from its fallback; a field that must be given is left empty. */
int fields_defaults(const struct field_table *table, void *target, struct err *e) ERR_CHECKED;
/* Replaces one member, as a flag of the command line does; `who` names the flag in errors. Text,
 * numbers and words are as in a file; lists take one item a call and are replaced by it. */
int fields_set(const struct field_table *table, void *target, const char *path, const char *text,
               const char *who, struct err *e) ERR_CHECKED;
/* The value of a key in the document, or NULL. */
const struct document_node *fields_find(const struct document *d, const char *path);
/* The line of a key in the document, or 0: for checks across fields after fields_parse. */
int fields_line(const struct document *d, const char *path);
/* Refuses the value of `path`: "NAME:LINE: PATH: ...", ERR_INVALID. */
int fields_refuse(const struct document *d, const char *path, struct err *e, const char *format,
                  ...) __attribute__((format(printf, 4, 5)));
/* All effective values as nested JSON with the same keys, which fields_parse reads back to the
 * same struct. A new reference, or NULL without memory. */
json_t *fields_to_json(const struct field_table *table, const void *target);
/* A deep copy. */
int fields_copy(const struct field_table *table, void *to, const void *from,
                struct err *e) ERR_CHECKED;
void fields_free(const struct field_table *table, void *target);

#endif
