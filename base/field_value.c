#include "base/field_value.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum {
    TEXT_LENGTH_MAX = 4096,  /* of a text whose field gives no max */
    ITEM_LENGTH_MAX = 32768, /* of one text in a list or map */
    ITEMS_MAX = 256,         /* in a list whose field gives no max */
    WORDS_SHOWN_SIZE = 140,  /* of the allowed words in an error */
};

void *field_member(const struct field *f, const void *target)
{
    return (char *)(uintptr_t)target + f->offset;
}

bool field_is_list(const struct field *f)
{
    return f->type == FIELD_TEXT_LIST || f->type == FIELD_TEXT_MAP;
}

size_t field_size(const struct field *f)
{
    switch (f->type) {
    case FIELD_TEXT:
        return sizeof(char *);
    case FIELD_BOOL:
        return sizeof(bool);
    case FIELD_WORD:
        return sizeof(int);
    case FIELD_TEXT_LIST:
    case FIELD_TEXT_MAP:
        return sizeof(struct field_list);
    default:
        return sizeof(uint64_t);
    }
}

uint64_t field_items_max(const struct field *f)
{
    return f->max == 0 ? ITEMS_MAX : f->max;
}

static int no_memory(struct err *e)
{
    return err_set(e, ERR_NO_MEMORY, "no memory");
}

static void list_free(struct field_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (struct field_list){0};
}

int field_list_add(struct field_list *list, char *item, struct err *e)
{
    char **items = item == NULL ? NULL : realloc(list->items, (list->count + 1) * sizeof *items);
    if (items == NULL) {
        free(item);
        return no_memory(e);
    }
    items[list->count++] = item;
    list->items = items;
    return 0;
}

int field_list_check(const struct field *f, const struct field_list *list, struct err *e)
{
    uint64_t max = field_items_max(f);
    if (list->count < f->min || list->count > max)
        return err_set(e, ERR_INVALID, "%s items than allowed: %" PRIu64 " to %" PRIu64,
                       list->count > max ? "more" : "fewer", f->min, max);
    return 0;
}

int field_item_check(const char *text, struct err *e)
{
    if (strlen(text) > ITEM_LENGTH_MAX)
        return err_set(e, ERR_INVALID, "a text of %zu bytes; at most %d are allowed", strlen(text),
                       ITEM_LENGTH_MAX);
    return 0;
}

static int text_set(const struct field *f, char **member, const char *text, struct err *e)
{
    size_t length = strlen(text);
    uint64_t max = f->max == 0 ? TEXT_LENGTH_MAX : f->max;
    if (length < f->min && length == 0)
        return err_set(e, ERR_INVALID, "it is empty; %s", f->meaning);
    if (length < f->min || length > max)
        return err_set(e, ERR_INVALID, "%zu bytes; %" PRIu64 " to %" PRIu64 " are allowed", length,
                       f->min, max);
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return err_set(e, ERR_INVALID, "a control character in it");
    }
    *member = strdup(text);
    return *member == NULL ? no_memory(e) : 0;
}

static int bool_set(bool *member, const char *text, bool quoted, struct err *e)
{
    char shown[TEXT_SHOWN_SIZE];
    bool yes = strcmp(text, "true") == 0;
    if (!yes && strcmp(text, "false") != 0)
        return err_set(e, ERR_INVALID, "%s is neither true nor false", text_show(text, shown));
    if (quoted)
        return err_set(e, ERR_INVALID, "\"%s\" in quotes is a text; write %s", text, text);
    *member = yes;
    return 0;
}

static int word_set(const struct field *f, int *member, const char *text, struct err *e)
{
    char words[WORDS_SHOWN_SIZE] = "";
    char shown[TEXT_SHOWN_SIZE];
    size_t used = 0;
    for (int i = 0; f->words[i] != NULL; i++) {
        if (strcmp(text, f->words[i]) == 0) {
            *member = i;
            return 0;
        }
        int n = snprintf(words + used, sizeof words - used, "%s%s",
                         i == 0                    ? ""
                         : f->words[i + 1] == NULL ? " or "
                                                   : ", ",
                         f->words[i]);
        used += (size_t)n < sizeof words - used ? (size_t)n : 0;
    }
    return err_set(e, ERR_INVALID, "%s is not possible; %s are allowed", text_show(text, shown),
                   words);
}

static void number_format(enum field_type type, uint64_t value, char out[UNIT_TEXT_SIZE])
{
    switch (type) {
    case FIELD_BYTES:
        bytes_format(value, out);
        break;
    case FIELD_DURATION:
        duration_format(value, out);
        break;
    case FIELD_DECIMAL:
        decimal_format(value, out);
        break;
    default:
        text_format(out, UNIT_TEXT_SIZE, "%" PRIu64, value);
    }
}

static uint64_t number_max(const struct field *f)
{
    /* JSON has no whole numbers beyond this. */
    return f->max == 0 ? (uint64_t)INT64_MAX : f->max;
}

static int range_check(const struct field *f, uint64_t value, struct err *e)
{
    char is[UNIT_TEXT_SIZE], min[UNIT_TEXT_SIZE], max[UNIT_TEXT_SIZE];
    if (f->none_allowed && value == DURATION_NONE) /* and BYTES_NONE */
        return 0;
    if (value >= f->min && value <= number_max(f))
        return 0;
    number_format(f->type, value, is);
    number_format(f->type, f->min, min);
    if (f->max == 0)
        return err_set(e, ERR_INVALID, "%s is too small; at least %s%s", is, min,
                       f->none_allowed ? ", or none" : "");
    number_format(f->type, f->max, max);
    return err_set(e, ERR_INVALID, "%s is not possible; %s to %s%s are allowed", is, min, max,
                   f->none_allowed ? ", or none," : "");
}

static int uint_parse(const struct field *f, uint64_t *out, const char *text, bool quoted,
                      struct err *e)
{
    char shown[TEXT_SHOWN_SIZE], max[UNIT_TEXT_SIZE];
    uint64_t value = 0;
    /* A leading zero would be octal to some. */
    bool good = *text != '\0' && (text[0] != '0' || text[1] == '\0');
    for (const char *at = text; good && *at != '\0'; at++)
        good = *at >= '0' && *at <= '9' && !__builtin_mul_overflow(value, 10u, &value) &&
               !__builtin_add_overflow(value, (uint64_t)(*at - '0'), &value);
    number_format(f->type, number_max(f), max);
    if (!good)
        return err_set(e, ERR_INVALID, "%s is no whole number; %" PRIu64 " to %s are allowed",
                       text_show(text, shown), f->min, max);
    if (quoted)
        return err_set(e, ERR_INVALID, "\"%s\" in quotes is a text; write %s", text, text);
    *out = value;
    return 0;
}

static int number_set(const struct field *f, uint64_t *member, const char *text, bool quoted,
                      struct err *e)
{
    uint64_t value = 0;
    int rc;
    if (f->type == FIELD_BYTES && f->none_allowed && strcmp(text, "none") == 0) {
        value = BYTES_NONE;
        rc = 0;
    } else if (f->type == FIELD_BYTES)
        rc = bytes_parse(&value, text, e);
    else if (f->type == FIELD_DURATION)
        rc = duration_parse(&value, text, f->none_allowed, e);
    else if (f->type == FIELD_DECIMAL)
        rc = decimal_parse(&value, text, e);
    else
        rc = uint_parse(f, &value, text, quoted, e);
    if (rc == 0)
        rc = range_check(f, value, e);
    if (rc == 0)
        *member = value;
    return rc;
}

int field_set(const struct field *f, void *target, const char *text, bool quoted, struct err *e)
{
    void *member = field_member(f, target);
    switch (f->type) {
    case FIELD_TEXT:
        return text_set(f, member, text, e);
    case FIELD_BOOL:
        return bool_set(member, text, quoted, e);
    case FIELD_WORD:
        return word_set(f, member, text, e);
    case FIELD_TEXT_LIST:
    case FIELD_TEXT_MAP:
        if (field_item_check(text, e) != 0)
            return -ERR_INVALID;
        return field_list_add(member, strdup(text), e);
    default:
        return number_set(f, member, text, quoted, e);
    }
}

void field_free(const struct field *f, void *target)
{
    void *member = field_member(f, target);
    if (f->type == FIELD_TEXT)
        free(*(char **)member);
    else if (field_is_list(f))
        list_free(member);
    memset(member, 0, field_size(f));
}

int field_set_fallback(const struct field *f, void *target, struct err *e)
{
    if (field_is_list(f) && f->fallback[0] == '\0')
        return 0;
    int rc = field_set(f, target, f->fallback, false, e);
    return rc == 0 ? 0 : err_wrap(e, "the default of %s", f->path);
}

static json_t *list_to_json(const struct field *f, const struct field_list *list)
{
    json_t *out = f->type == FIELD_TEXT_MAP ? json_object() : json_array();
    for (size_t i = 0; out != NULL && i < list->count; i++) {
        const char *item = list->items[i];
        int rc = -1;
        if (f->type == FIELD_TEXT_MAP) {
            size_t name_length = strcspn(item, "=");
            CLEANUP_FREE char *name = strndup(item, name_length);
            if (name != NULL)
                rc = json_object_set_new(out, name, json_string(item + name_length + 1));
        } else {
            rc = json_array_append_new(out, json_string(item));
        }
        if (rc != 0) {
            json_decref(out);
            return NULL;
        }
    }
    return out;
}

json_t *field_to_json(const struct field *f, const void *target)
{
    char text[UNIT_TEXT_SIZE];
    const void *member = field_member(f, target);
    switch (f->type) {
    case FIELD_TEXT:
        return json_string(*(char *const *)member == NULL ? "" : *(char *const *)member);
    case FIELD_BOOL:
        return json_boolean(*(const bool *)member);
    case FIELD_UINT:
        return json_integer((json_int_t)(*(const uint64_t *)member));
    case FIELD_WORD:
        return json_string(f->words[*(const int *)member]);
    case FIELD_TEXT_LIST:
    case FIELD_TEXT_MAP:
        return list_to_json(f, member);
    default:
        number_format(f->type, *(const uint64_t *)member, text);
        return json_string(text);
    }
}

int field_copy(const struct field *f, void *to, const void *from, struct err *e)
{
    const void *member = field_member(f, from);
    if (f->type == FIELD_TEXT) {
        const char *text = *(char *const *)member;
        char *copy = text == NULL ? NULL : strdup(text);
        memcpy(field_member(f, to), &copy, sizeof copy);
        return text != NULL && copy == NULL ? no_memory(e) : 0;
    }
    if (field_is_list(f)) {
        const struct field_list *list = member;
        int rc = 0;
        for (size_t i = 0; rc == 0 && i < list->count; i++)
            rc = field_list_add(field_member(f, to), strdup(list->items[i]), e);
        return rc;
    }
    memcpy(field_member(f, to), member, field_size(f));
    return 0;
}
