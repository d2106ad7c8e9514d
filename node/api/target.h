/* node/api/target.h - small texts of a request, read without any state.
 *
 * Thread: any. */
#ifndef SKERRY_NODE_API_TARGET_H
#define SKERRY_NODE_API_TARGET_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define API_QUERY_MAX 1536u /* pairs: 1,024 words of a command, 256 of its environment, the rest */

struct api_query {
    const char *name, *value;
};

/* Decodes %XX in place (and + as a space in a query); false for what is not so, and for NUL. */
bool api_text_decode(char *text, bool plus);
/* Splits `query` in place; the pairs point into it. *out is the caller's to free, NULL for none, also
 * when it fails. */
int api_query_split(char *query, struct api_query **out, size_t *count, struct err *e) ERR_CHECKED;
/* Whether `word` stands between the spaces of `words`. */
bool api_word_among(const char *words, const char *word);
/* Whether a header's list ("a, b;q=1") holds the word, in any case. `list` NULL: no. */
bool api_list_has(const char *list, const char *word);
/* The name in "name", "name:port", "1.2.3.4:port" or "[::1]:port". */
bool api_host_name(const char *host, char *out, size_t size);

#endif
