/* base/field_value.h - one member of a struct that a field table describes: set, release, copy,
 * print. A part of base/fields.h that its users do not need.
 *
 * Errors begin with what is wrong; who calls puts file, line and key before it. */
#ifndef SKERRY_BASE_FIELD_VALUE_H
#define SKERRY_BASE_FIELD_VALUE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/fields.h"

void *field_member(const struct field *f, const void *target);
bool field_is_list(const struct field *f);
size_t field_size(const struct field *f);
/* The most items that a list of this field may have. */
uint64_t field_items_max(const struct field *f);

/* From one text; of a list, adds one item. */
int field_set(const struct field *f, void *target, const char *text, bool quoted,
              struct err *e) ERR_CHECKED;
int field_set_fallback(const struct field *f, void *target, struct err *e) ERR_CHECKED;
int field_item_check(const char *text, struct err *e) ERR_CHECKED;
/* Takes `item`, also on failure. NULL means that there was no memory to make it. */
int field_list_add(struct field_list *list, char *item, struct err *e) ERR_CHECKED;
int field_list_check(const struct field *f, const struct field_list *list,
                     struct err *e) ERR_CHECKED;

/* A new reference, or NULL without memory. */
json_t *field_to_json(const struct field *f, const void *target);
/* The member of `to` is empty before. */
int field_copy(const struct field *f, void *to, const void *from, struct err *e) ERR_CHECKED;
/* Releases the member and zeroes it. */
void field_free(const struct field *f, void *target);

#endif
