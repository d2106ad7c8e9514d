/* base/document.h - a YAML or JSON text (JSON is read as YAML) as a tree that knows its lines.
 *
 * Read with libyaml; anchors, aliases, tags, merge keys and more than one document are refused, as
 * are duplicate keys, texts above DOCUMENT_BYTES_MAX, and more than DOCUMENT_NODES_MAX nodes,
 * DOCUMENT_KEYS_MAX keys of one map or DOCUMENT_DEPTH_MAX levels. An empty text is an
 * empty map. Scalars stay text; `quoted` tells "5" from 5.
 *
 * Memory: the document owns its nodes. Thread: any, one at a time. */
#ifndef SKERRY_BASE_DOCUMENT_H
#define SKERRY_BASE_DOCUMENT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define DOCUMENT_BYTES_MAX (1024 * 1024)
#define DOCUMENT_NODES_MAX 20000
#define DOCUMENT_DEPTH_MAX 16
#define DOCUMENT_KEYS_MAX 1000 /* of one map */
#define DOCUMENT_NAME_SHOWN 80

enum document_kind { DOCUMENT_SCALAR, DOCUMENT_LIST, DOCUMENT_MAP };

struct document_node {
    enum document_kind kind;
    int line;                    /* from 1 */
    bool quoted;                 /* a scalar in quotes is text, never a number or null */
    const char *key;             /* in a map, else NULL */
    const char *text;            /* of a scalar, NUL-terminated; embedded NULs are refused */
    struct document_node *first; /* child of a list or map, in the order of the text */
    struct document_node *next;  /* sibling */
};

struct document;
/* `name` is what errors call the text ("chat.yaml", "request body"). */
int document_parse(struct document **out, const char *name, const char *text, size_t length,
                   struct err *e) ERR_CHECKED;
/* As in errors: the last DOCUMENT_NAME_SHOWN bytes of what document_parse was given. */
const char *document_name(const struct document *d);
const struct document_node *document_root(const struct document *d);
const struct document_node *document_find(const struct document_node *map, const char *key);
/* Refuses the text: "NAME:LINE: ..." with ERR_INVALID (no line when it is 0). */
int document_refuse(const struct document *d, int line, struct err *e, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void document_free(struct document *d);

#endif
