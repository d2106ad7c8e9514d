#include "node/api/target.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

bool api_text_decode(char *text, bool plus)
{
    char *out = text;
    for (const char *in = text; *in != '\0'; in++) {
        char c = *in;
        if (c == '%') {
            int high = hex_value(in[1]);
            int low = high < 0 ? -1 : hex_value(in[2]);
            if (low < 0 || high * 16 + low == 0)
                return false;
            c = (char)(high * 16 + low);
            in += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        *out++ = c;
    }
    *out = '\0';
    return true;
}

int api_query_split(char *query, struct api_query **out, size_t *count, struct err *e)
{
    *out = NULL;
    *count = 0;
    if (query == NULL || *query == '\0')
        return 0;
    size_t pairs = 1;
    for (const char *c = query; *c != '\0'; c++)
        pairs += *c == '&';
    if (pairs > API_QUERY_MAX)
        return err_set(e, ERR_LIMIT, "more than %u parameters", API_QUERY_MAX);
    *out = calloc(pairs, sizeof(**out));
    if (*out == NULL)
        return err_set(e, ERR_NO_MEMORY, "out of memory");
    char *rest = query;
    char *pair;
    while ((pair = strsep(&rest, "&")) != NULL) {
        char *value = strchr(pair, '=');
        if (value != NULL)
            *value++ = '\0';
        if (pair[0] == '\0' || !api_text_decode(pair, true) ||
            (value != NULL && !api_text_decode(value, true)))
            return err_set(e, ERR_INVALID, "bad encoding");
        (*out)[(*count)++] = (struct api_query){pair, value == NULL ? "" : value};
    }
    return 0;
}

bool api_word_among(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = words; at != NULL && *at != '\0';) {
        size_t step = strcspn(at, " ");
        if (step == length && memcmp(at, word, length) == 0)
            return true;
        at += step;
        at += strspn(at, " ");
    }
    return false;
}

bool api_list_has(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; at != NULL && *at != '\0';) {
        at += strspn(at, " \t,");
        size_t step = strcspn(at, " \t,;");
        if (step == length && strncasecmp(at, word, length) == 0)
            return true;
        at += strcspn(at, ",");
    }
    return false;
}

bool api_host_name(const char *host, char *out, size_t size)
{
    size_t length = strcspn(host, ":");
    if (host[0] == '[') {
        const char *end = strchr(host, ']');
        if (end == NULL)
            return false;
        host++;
        length = (size_t)(end - host);
    }
    if (length == 0 || length >= size)
        return false;
    memcpy(out, host, length);
    out[length] = '\0';
    return true;
}
