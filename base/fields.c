#include "base/fields.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/field_key.h"
#include "base/field_value.h"
#include "base/memory.h"

enum {
    FIELDS_MAX = 96, /* of one table */
    PATH_SIZE = 128, /* of a known path, and of one unknown key behind it */
};

static const char *const type_words[] = {
    [FIELD_TEXT] = "a text",
    [FIELD_BOOL] = "true or false",
    [FIELD_UINT] = "a whole number",
    [FIELD_BYTES] = "a size like 128M",
    [FIELD_DURATION] = "a duration like 30s",
    [FIELD_DECIMAL] = "a number like 0.5",
    [FIELD_WORD] = "a word",
    [FIELD_TEXT_LIST] = "a list of texts",
    [FIELD_TEXT_MAP] = "a map of texts",
};

struct reader {
    const struct field_table *table;
    const struct document *document;
    void *target;
    bool seen[FIELDS_MAX];
    struct err *e;
};

/* Puts "NAME:LINE: PATH" before the error that is there. */
static int at_node(const struct reader *r, const struct document_node *node, const char *path)
{
    return err_wrap(r->e, "%s:%d: %s", document_name(r->document), node->line, path);
}

static bool is_null(const struct document_node *node)
{
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    if (node->kind != DOCUMENT_SCALAR || node->quoted)
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        if (strcmp(node->text, words[i]) == 0)
            return true;
    }
    return false;
}

static int list_read_item(struct field_list *list, const struct field *f,
                          const struct document_node *node, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    if (node->kind != DOCUMENT_SCALAR)
        return err_set(e, ERR_INVALID, "a list or map stands where a text is expected");
    if (is_null(node))
        return err_set(e, ERR_INVALID, "an item has no value; write \"\" for an empty text");
    if (field_item_check(node->text, e) != 0)
        return -ERR_INVALID;
    if (f->type == FIELD_TEXT_LIST)
        return field_list_add(list, strdup(node->text), e);
    const char *equals = strchr(node->text, '=');
    if (equals == NULL || equals == node->text)
        return err_set(e, ERR_INVALID, "%s has no value; write NAME=value",
                       text_show(node->text, shown));
    size_t name_length = (size_t)(equals - node->text) + 1;
    for (size_t i = 0; i < list->count; i++) {
        if (strncmp(list->items[i], node->text, name_length) == 0)
            return err_set(e, ERR_INVALID, "%s is given twice", text_show(node->text, shown));
    }
    return field_list_add(list, strdup(node->text), e);
}

static int map_read_item(struct field_list *list, const struct document_node *node, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    text_show(node->key, shown);
    if (node->key[0] == '\0' || strchr(node->key, '=') != NULL)
        return err_set(e, ERR_INVALID, "\"%s\" is no name", shown);
    if (node->kind != DOCUMENT_SCALAR)
        return err_set(e, ERR_INVALID, "%s: a list or map stands where a text is expected", shown);
    if (is_null(node))
        return err_set(e, ERR_INVALID,
                       "%s has no value; nothing is taken from outside, write \"\" for an empty "
                       "text",
                       shown);
    char *item = text_new("%s=%s", node->key, node->text);
    if (item != NULL && field_item_check(item, e) != 0) {
        free(item);
        return -ERR_INVALID;
    }
    return field_list_add(list, item, e);
}

static int list_read(const struct reader *r, const struct field *f,
                     const struct document_node *node)
{
    struct field_list *list = field_member(f, r->target);
    int rc = 0;
    if (node->kind == DOCUMENT_MAP && f->type == FIELD_TEXT_LIST) {
        err_set(r->e, ERR_INVALID, "a map stands here; %s is expected", type_words[f->type]);
        return at_node(r, node, f->path);
    }
    if (node->kind == DOCUMENT_SCALAR) {
        rc = list_read_item(list, f, node, r->e);
    } else {
        uint64_t max = field_items_max(f);
        for (const struct document_node *child = node->first; rc == 0 && child != NULL;
             child = child->next) {
            rc = node->kind == DOCUMENT_MAP ? map_read_item(list, child, r->e)
                                            : list_read_item(list, f, child, r->e);
            if (rc != 0)
                return at_node(r, child, f->path);
            if (list->count > max)
                break; /* list_check tells */
        }
    }
    if (rc == 0)
        rc = field_list_check(f, list, r->e);
    return rc == 0 ? 0 : at_node(r, node, f->path);
}

static int field_read(const struct reader *r, const struct field *f,
                      const struct document_node *node)
{
    if (is_null(node)) {
        err_set(r->e, ERR_INVALID, "it has no value; %s is expected", type_words[f->type]);
        return at_node(r, node, f->path);
    }
    if (field_is_list(f))
        return list_read(r, f, node);
    if (node->kind != DOCUMENT_SCALAR) {
        err_set(r->e, ERR_INVALID, "a %s stands here; %s is expected",
                node->kind == DOCUMENT_LIST ? "list" : "map", type_words[f->type]);
        return at_node(r, node, f->path);
    }
    if (field_set(f, r->target, node->text, node->quoted, r->e) != 0)
        return at_node(r, node, f->path);
    return 0;
}

static const struct field *find(const struct field_table *table, const char *path)
{
    for (size_t i = 0; i < table->count; i++) {
        if (strcmp(table->fields[i].path, path) == 0)
            return &table->fields[i];
    }
    return NULL;
}

static int refuse_unknown(const struct reader *r, const char *prefix,
                          const struct document_node *node, const char *path)
{
    char keys[FIELD_KEYS_SHOWN_SIZE];
    const char *name = NULL;
    for (const struct field_hint *h = r->table->hints; h != NULL && h->path != NULL; h++) {
        if (strcmp(h->path, path) != 0)
            continue;
        err_set(r->e, ERR_INVALID, "unknown key. %s", h->remedy);
        return at_node(r, node, path);
    }
    if (find(r->table, path) != NULL) { /* known, but written with its points */
        field_key_nested(path, keys);
        err_set(r->e, ERR_INVALID, "unknown key. Write %s", keys);
        return at_node(r, node, path);
    }
    size_t length = field_key_nearest(r->table, prefix, node->key, &name);
    const char *elsewhere = field_key_elsewhere(r->table, node->key);
    if (elsewhere != NULL && length == 0)
        err_set(r->e, ERR_INVALID, "unknown key here; it stands at %s", elsewhere);
    else if (length > 0)
        err_set(r->e, ERR_INVALID, "unknown key. Did you mean %s%.*s?", prefix, (int)length, name);
    else {
        field_keys_below(r->table, prefix, keys);
        err_set(r->e, ERR_INVALID, "unknown key. Allowed %s%s: %s",
                prefix[0] == '\0' ? "here" : "below ", prefix, keys);
    }
    return at_node(r, node, path);
}

static bool is_section(const struct field_table *table, const char *prefix)
{
    for (size_t i = 0; i < table->count; i++) {
        if (strncmp(table->fields[i].path, prefix, strlen(prefix)) == 0)
            return true;
    }
    return false;
}

/* Reads the keys of one map; `prefix` is "" or ends in a point. The depth of documents bounds the
 * recursion. */
static int map_read(struct reader *r, const struct document_node *map, const char *prefix)
{
    for (const struct document_node *node = map->first; node != NULL; node = node->next) {
        char path[PATH_SIZE], below[PATH_SIZE + 1], shown[TEXT_SHOWN_SIZE],
            keys[FIELD_KEYS_SHOWN_SIZE];
        text_format(path, sizeof path, "%s%s", prefix, text_show(node->key, shown));
        text_format(below, sizeof below, "%s.", path);
        /* Steps are written one below the other: a key with a point in it is none of ours. */
        bool one_step = strchr(node->key, '.') == NULL;
        const struct field *f = one_step ? find(r->table, path) : NULL;
        int rc = 0;
        if (f != NULL) {
            r->seen[f - r->table->fields] = true;
            rc = field_read(r, f, node);
        } else if (!one_step || !is_section(r->table, below)) {
            rc = refuse_unknown(r, prefix, node, path);
        } else if (node->kind == DOCUMENT_MAP) {
            rc = map_read(r, node, below);
        } else if (!is_null(node)) { /* a section with nothing in it is as none */
            field_keys_below(r->table, below, keys);
            err_set(r->e, ERR_INVALID, "a map is expected here, with: %s", keys);
            rc = at_node(r, node, path);
        }
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int missing_read(struct reader *r)
{
    for (size_t i = 0; i < r->table->count; i++) {
        const struct field *f = &r->table->fields[i];
        if (r->seen[i])
            continue;
        if (f->fallback == NULL) {
            err_set(r->e, ERR_INVALID, "missing; %s", f->meaning);
            return at_node(r, document_root(r->document), f->path);
        }
        int rc = field_set_fallback(f, r->target, r->e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static void clear(const struct field_table *table, void *target)
{
    assert_always(table->count <= FIELDS_MAX);
    for (size_t i = 0; i < table->count; i++)
        memset(field_member(&table->fields[i], target), 0, field_size(&table->fields[i]));
}

int fields_parse(const struct field_table *table, const struct document *d, void *target,
                 struct err *e)
{
    struct err local = {0};
    struct reader r = {
        .table = table, .document = d, .target = target, .e = e == NULL ? &local : e};
    char keys[FIELD_KEYS_SHOWN_SIZE];
    clear(table, target);
    const struct document_node *root = document_root(d);
    if (root->kind != DOCUMENT_MAP) {
        field_keys_below(table, "", keys);
        return document_refuse(d, root->line, e, "keys and values are expected: %s", keys);
    }
    int rc = map_read(&r, root, "");
    if (rc == 0)
        rc = missing_read(&r);
    if (rc != 0)
        fields_free(table, target);
    return rc;
}

int fields_defaults(const struct field_table *table, void *target, struct err *e)
{
    clear(table, target);
    for (size_t i = 0; i < table->count; i++) {
        if (table->fields[i].fallback == NULL)
            continue;
        int rc = field_set_fallback(&table->fields[i], target, e);
        if (rc != 0) {
            fields_free(table, target);
            return rc;
        }
    }
    return 0;
}

int fields_set(const struct field_table *table, void *target, const char *path, const char *text,
               const char *who, struct err *e)
{
    const struct field *f = find(table, path);
    assert_always(f != NULL);
    /* A document is checked for this by its reader; JSON could not hold it. */
    json_t *json = json_string(text);
    if (json == NULL)
        return err_set(e, ERR_INVALID, "%s: not UTF-8", who);
    json_decref(json);
    /* The old value stays until the new one is known to be right. */
    union {
        char *text;
        bool flag;
        int word;
        uint64_t number;
        struct field_list list;
    } fresh = {0};
    struct field alone = *f;
    alone.offset = 0;
    if (field_set(&alone, &fresh, text, false, e) != 0)
        return err_wrap(e, "%s", who);
    field_free(f, target);
    memcpy(field_member(f, target), &fresh, field_size(f));
    return 0;
}

const struct document_node *fields_find(const struct document *d, const char *path)
{
    const struct document_node *node = document_root(d);
    while (node != NULL) {
        char step[PATH_SIZE];
        size_t length = strcspn(path, ".");
        if (!text_format(step, sizeof step, "%.*s", (int)length, path))
            return NULL;
        node = document_find(node, step);
        if (path[length] == '\0')
            return node;
        path += length + 1;
    }
    return NULL;
}

int fields_line(const struct document *d, const char *path)
{
    const struct document_node *node = fields_find(d, path);
    return node == NULL ? 0 : node->line;
}

int fields_refuse(const struct document *d, const char *path, struct err *e, const char *format,
                  ...)
{
    int line = fields_line(d, path);
    va_list args;
    va_start(args, format);
    err_vset(e, ERR_INVALID, 0, format, args);
    va_end(args);
    err_wrap(e, "%s:%d: %s", document_name(d), line > 0 ? line : document_root(d)->line, path);
    return -ERR_INVALID;
}

/* Takes `value`; false without memory. */
static bool json_put(json_t *object, const char *path, json_t *value)
{
    char step[PATH_SIZE];
    size_t length = strcspn(path, ".");
    while (value != NULL && path[length] == '.') {
        text_format(step, sizeof step, "%.*s", (int)length, path);
        json_t *below = json_object_get(object, step);
        if (below == NULL) {
            below = json_object();
            if (json_object_set_new(object, step, below) != 0)
                break;
        }
        object = below;
        path += length + 1;
        length = strcspn(path, ".");
    }
    if (path[length] == '\0')
        return json_object_set_new(object, path, value) == 0;
    json_decref(value);
    return false;
}

json_t *fields_to_json(const struct field_table *table, const void *target)
{
    json_t *out = json_object();
    for (size_t i = 0; out != NULL && i < table->count; i++) {
        const struct field *f = &table->fields[i];
        if (!json_put(out, f->path, field_to_json(f, target))) {
            json_decref(out);
            return NULL;
        }
    }
    return out;
}

int fields_copy(const struct field_table *table, void *to, const void *from, struct err *e)
{
    clear(table, to);
    for (size_t i = 0; i < table->count; i++) {
        int rc = field_copy(&table->fields[i], to, from, e);
        if (rc != 0) {
            fields_free(table, to);
            return rc;
        }
    }
    return 0;
}

void fields_free(const struct field_table *table, void *target)
{
    for (size_t i = 0; i < table->count; i++)
        field_free(&table->fields[i], target);
}
