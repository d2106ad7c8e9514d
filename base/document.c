#include "base/document.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/memory.h"

/* A node and the texts that it points to, in one block. */
struct stored {
    struct stored *made_before;
    struct document_node node;
    char text[];
};

struct document {
    char name[DOCUMENT_NAME_SHOWN + 4];
    struct stored *stored; /* the newest; all of them, for release */
    size_t node_count;
    struct document_node *root;
};

/* A map or list that is open while its children are read. */
struct level {
    struct document_node *node;
    struct document_node *last_child;
    const char *key; /* of a map: read, its value not yet; points into the level's key node */
    int key_line;
    size_t key_count;
};

struct reader {
    struct document *document;
    yaml_parser_t parser;
    struct level levels[DOCUMENT_DEPTH_MAX];
    size_t depth;
    struct err *e;
};

__attribute__((format(printf, 4, 0))) static int
refuse_va(const struct document *d, int line, struct err *e, const char *format, va_list args)
{
    err_vset(e, ERR_INVALID, 0, format, args);
    if (line > 0)
        err_wrap(e, "%s:%d", d->name, line);
    else
        err_wrap(e, "%s", d->name);
    return -ERR_INVALID;
}

int document_refuse(const struct document *d, int line, struct err *e, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int rc = refuse_va(d, line, e, format, args);
    va_end(args);
    return rc;
}

static int line_of(const yaml_mark_t *mark)
{
    return (int)mark->line + 1;
}

/* NULL with an error when the bound or the memory is reached. */
static struct document_node *node_new(struct reader *r, enum document_kind kind, int line,
                                      const char *text, size_t length)
{
    struct document *d = r->document;
    if (d->node_count >= DOCUMENT_NODES_MAX) {
        document_refuse(d, line, r->e, "more than %d values", DOCUMENT_NODES_MAX);
        return NULL;
    }
    struct stored *s = malloc(sizeof *s + length + 1);
    if (s == NULL) {
        err_set(r->e, ERR_NO_MEMORY, "read %s: no memory", d->name);
        return NULL;
    }
    *s = (struct stored){.made_before = d->stored, .node = {.kind = kind, .line = line}};
    if (length > 0)
        memcpy(s->text, text, length);
    s->text[length] = '\0';
    if (kind == DOCUMENT_SCALAR)
        s->node.text = s->text;
    d->stored = s;
    d->node_count++;
    return &s->node;
}

static int duplicate_check(const struct reader *r, const struct document_node *map, const char *key,
                           int line)
{
    char shown[TEXT_SHOWN_SIZE];
    const struct document_node *first = document_find(map, key);
    if (first == NULL)
        return 0;
    return document_refuse(r->document, line, r->e, "%s: written twice, first in line %d",
                           text_show(key, shown), first->line);
}

/* Puts a value behind its siblings, or takes it as the root. */
static int attach(struct reader *r, struct document_node *node)
{
    if (r->depth == 0) {
        r->document->root = node;
        return 0;
    }
    struct level *level = &r->levels[r->depth - 1];
    if (level->node->kind == DOCUMENT_MAP) {
        if (level->key == NULL)
            return document_refuse(r->document, node->line, r->e,
                                   "a list or map stands where a key is expected");
        node->key = level->key;
        node->line = level->key_line;
        level->key = NULL;
    }
    if (level->last_child == NULL)
        level->node->first = node;
    else
        level->last_child->next = node;
    level->last_child = node;
    return 0;
}

/* YAML's ways to point elsewhere or to change a type have no use here, and each of them has been a
 * way to make a small text large or to say something else than it shows. */
static int refuse_pointers(const struct reader *r, int line, const yaml_char_t *anchor,
                           const yaml_char_t *tag)
{
    char shown[TEXT_SHOWN_SIZE];
    if (anchor != NULL)
        return document_refuse(r->document, line, r->e,
                               "&%s: anchors are not taken; write the value where it is meant",
                               text_show((const char *)anchor, shown));
    if (tag != NULL)
        return document_refuse(r->document, line, r->e, "%s: tags are not taken; leave it out",
                               text_show((const char *)tag, shown));
    return 0;
}

static int read_key(struct reader *r, struct level *level, const yaml_event_t *event)
{
    int line = line_of(&event->start_mark);
    const char *text = (const char *)event->data.scalar.value;
    if (event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && strcmp(text, "<<") == 0)
        return document_refuse(r->document, line, r->e,
                               "<<: merge keys are not taken; write the keys where they are meant");
    if (++level->key_count > DOCUMENT_KEYS_MAX)
        return document_refuse(r->document, line, r->e, "more than %d keys in one map",
                               DOCUMENT_KEYS_MAX);
    if (duplicate_check(r, level->node, text, line) != 0)
        return -ERR_INVALID;
    /* Kept as a node of its own, so that it is counted and released like any other. */
    struct document_node *key = node_new(r, DOCUMENT_SCALAR, line, text, event->data.scalar.length);
    if (key == NULL)
        return -(int)r->e->code;
    level->key = key->text;
    level->key_line = line;
    return 0;
}

static int read_scalar(struct reader *r, const yaml_event_t *event)
{
    int line = line_of(&event->start_mark);
    const char *text = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    if (refuse_pointers(r, line, event->data.scalar.anchor, event->data.scalar.tag) != 0)
        return -ERR_INVALID;
    if (memchr(text, '\0', length) != NULL)
        return document_refuse(r->document, line, r->e, "a NUL byte in a text");
    struct level *level = r->depth == 0 ? NULL : &r->levels[r->depth - 1];
    if (level != NULL && level->node->kind == DOCUMENT_MAP && level->key == NULL)
        return read_key(r, level, event);
    struct document_node *node = node_new(r, DOCUMENT_SCALAR, line, text, length);
    if (node == NULL)
        return -(int)r->e->code;
    node->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    return attach(r, node);
}

static int read_open(struct reader *r, enum document_kind kind, const yaml_event_t *event,
                     const yaml_char_t *anchor, const yaml_char_t *tag)
{
    int line = line_of(&event->start_mark);
    if (refuse_pointers(r, line, anchor, tag) != 0)
        return -ERR_INVALID;
    if (r->depth == DOCUMENT_DEPTH_MAX)
        return document_refuse(r->document, line, r->e, "more than %d levels", DOCUMENT_DEPTH_MAX);
    struct document_node *node = node_new(r, kind, line, NULL, 0);
    if (node == NULL)
        return -(int)r->e->code;
    if (attach(r, node) != 0)
        return -ERR_INVALID;
    r->levels[r->depth++] = (struct level){.node = node};
    return 0;
}

/* *done becomes true after the last event. */
static int read_event(struct reader *r, const yaml_event_t *event, bool *done)
{
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return read_scalar(r, event);
    case YAML_SEQUENCE_START_EVENT:
        return read_open(r, DOCUMENT_LIST, event, event->data.sequence_start.anchor,
                         event->data.sequence_start.tag);
    case YAML_MAPPING_START_EVENT:
        return read_open(r, DOCUMENT_MAP, event, event->data.mapping_start.anchor,
                         event->data.mapping_start.tag);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        r->depth--;
        return 0;
    case YAML_ALIAS_EVENT:
        return document_refuse(r->document, line_of(&event->start_mark), r->e,
                               "aliases (*name) are not taken; write the value where it is meant");
    case YAML_DOCUMENT_START_EVENT:
        if (r->document->root != NULL)
            return document_refuse(r->document, line_of(&event->start_mark), r->e,
                                   "a second document begins here; one is allowed");
        return 0;
    case YAML_STREAM_END_EVENT:
        *done = true;
        return 0;
    default:
        return 0;
    }
}

static int refuse_parser(const struct reader *r, const char *text, size_t length)
{
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR)
        return err_set(r->e, ERR_NO_MEMORY, "read %s: no memory", r->document->name);
    /* libyaml counts one line more at the end of a text, and its reader knows an offset only. */
    size_t end = p->error == YAML_READER_ERROR ? p->problem_offset : length;
    int line = 1;
    for (size_t i = 0; i < length && i < end; i++)
        line += text[i] == '\n' && i + 1 < length;
    if (p->error != YAML_READER_ERROR && line_of(&p->problem_mark) < line)
        line = line_of(&p->problem_mark);
    return document_refuse(r->document, line, r->e, "not YAML: %s%s%s",
                           p->problem == NULL ? "unreadable" : p->problem,
                           p->context == NULL ? "" : " ", p->context == NULL ? "" : p->context);
}

static int read_events(struct reader *r, const char *text, size_t length)
{
    bool done = false;
    while (!done) {
        yaml_event_t event;
        if (!yaml_parser_parse(&r->parser, &event))
            return refuse_parser(r, text, length);
        int rc = read_event(r, &event, &done);
        yaml_event_delete(&event);
        if (rc != 0)
            return rc;
    }
    if (r->document->root == NULL) /* nothing, or comments alone */
        r->document->root = node_new(r, DOCUMENT_MAP, 1, NULL, 0);
    return r->document->root == NULL ? -(int)r->e->code : 0;
}

/* 4 hexadecimal digits, or -1. */
static int hex4(const char *text)
{
    int value = 0;
    for (int i = 0; i < 4; i++) {
        static const char digits[] = "0123456789abcdef";
        const char *at = text[i] == '\0' ? NULL : strchr(digits, text[i] | 0x20);
        if (at == NULL || at == digits + 16)
            return -1;
        value = value * 16 + (int)(at - digits);
    }
    return value;
}

/* JSON writes what is beyond 16 bits as two \u escapes, which YAML does not know: strict JSON gets
 * its pairs rewritten as UTF-8. NULL when nothing needs it. */
static char *join_surrogates(const char *text, size_t length, size_t *out_length)
{
    if (memmem(text, length, "\\ud", 3) == NULL && memmem(text, length, "\\uD", 3) == NULL)
        return NULL;
    json_t *json = json_loadb(text, length, 0, NULL);
    if (json == NULL)
        return NULL;
    json_decref(json);
    char *out = malloc(length + 1);
    size_t n = 0;
    for (size_t i = 0; out != NULL && i < length;) {
        /* A backslash stands in strings only, and JSON has been checked: all bytes are there. */
        if (text[i] != '\\') {
            out[n++] = text[i++];
            continue;
        }
        int high = text[i + 1] == 'u' ? hex4(text + i + 2) : -1;
        if (high >= 0xd800 && high < 0xdc00) {
            uint32_t c = 0x10000u + (((uint32_t)high & 0x3ffu) << 10) +
                         ((uint32_t)hex4(text + i + 8) & 0x3ffu);
            out[n++] = (char)(0xf0u | c >> 18);
            out[n++] = (char)(0x80u | (c >> 12 & 0x3fu));
            out[n++] = (char)(0x80u | (c >> 6 & 0x3fu));
            out[n++] = (char)(0x80u | (c & 0x3fu));
            i += 12;
        } else {
            out[n++] = text[i++];
            out[n++] = text[i++];
        }
    }
    *out_length = n;
    return out;
}

static int parse_text(struct document *d, const char *text, size_t length, struct err *e)
{
    if (length > DOCUMENT_BYTES_MAX)
        return document_refuse(d, 0, e, "%zu bytes; at most %d are taken", length,
                               DOCUMENT_BYTES_MAX);
    if (length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark */
        text += 3;
        length -= 3;
    }
    CLEANUP_FREE char *joined = join_surrogates(text, length, &length);
    if (joined != NULL)
        text = joined;
    struct err local = {0};
    struct reader r = {.document = d, .e = e == NULL ? &local : e};
    if (!yaml_parser_initialize(&r.parser))
        return err_set(e, ERR_NO_MEMORY, "read %s: no memory", d->name);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, length);
    int rc = read_events(&r, text, length);
    yaml_parser_delete(&r.parser);
    return rc;
}

int document_parse(struct document **out, const char *name, const char *text, size_t length,
                   struct err *e)
{
    struct document *d = calloc(1, sizeof *d);
    if (d == NULL)
        return err_set(e, ERR_NO_MEMORY, "read %s: no memory", name);
    size_t name_length = strlen(name);
    if (name_length > DOCUMENT_NAME_SHOWN)
        text_format(d->name, sizeof d->name, "...%s", name + name_length - DOCUMENT_NAME_SHOWN);
    else
        text_copy(d->name, sizeof d->name, name);
    int rc = parse_text(d, text, length, e);
    if (rc != 0) {
        document_free(d);
        return rc;
    }
    *out = d;
    return 0;
}

const char *document_name(const struct document *d)
{
    return d->name;
}

const struct document_node *document_root(const struct document *d)
{
    return d->root;
}

const struct document_node *document_find(const struct document_node *map, const char *key)
{
    if (map == NULL || map->kind != DOCUMENT_MAP)
        return NULL;
    for (const struct document_node *child = map->first; child != NULL; child = child->next) {
        if (strcmp(child->key, key) == 0)
            return child;
    }
    return NULL;
}

void document_free(struct document *d)
{
    if (d == NULL)
        return;
    while (d->stored != NULL) {
        struct stored *s = d->stored;
        d->stored = s->made_before;
        free(s);
    }
    free(d);
}
