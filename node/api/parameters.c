/* node/api/parameters.c - what handlers read of a request: its query, headers and JSON body. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "node/api/internal.h"

const char *api_query(const struct api_request *r, const char *name)
{
    for (size_t i = 0; i < r->query_count; i++)
        if (strcmp(r->query[i].name, name) == 0)
            return r->query[i].value;
    return NULL;
}

bool api_query_flag(struct api_request *r, const char *name, bool *out)
{
    const char *value = api_query(r, name);
    if (value == NULL)
        return true;
    if (strcmp(value, "0") != 0 && strcmp(value, "1") != 0) {
        api_problem(r, PROBLEM_BAD_REQUEST, "%s=%.40s: 0 or 1", name, value);
        return false;
    }
    *out = value[0] == '1';
    return true;
}

bool api_query_number(struct api_request *r, const char *name, uint64_t max, uint64_t *out)
{
    const char *value = api_query(r, name);
    if (value == NULL)
        return true;
    char *end;
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    if (!isdigit((unsigned char)value[0]) || *end != '\0' || errno != 0 || number > max) {
        api_problem(r, PROBLEM_BAD_REQUEST, "%s=%.40s: a number up to %llu", name, value,
                    (unsigned long long)max);
        return false;
    }
    *out = number;
    return true;
}

const char *api_header(const struct api_request *r, const char *name)
{
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

json_t *api_body_json(struct api_request *r, const char *members)
{
    json_error_t error;
    json_t *json = json_loadb(r->body.data == NULL ? "" : r->body.data, r->body.length,
                              JSON_REJECT_DUPLICATES, &error);
    if (json == NULL) {
        api_problem(r, PROBLEM_BAD_REQUEST, "body: not JSON, line %d: %s", error.line, error.text);
        return NULL;
    }
    const char *key = NULL;
    json_t *value;
    if (!json_is_object(json)) {
        api_problem(r, PROBLEM_BAD_REQUEST, "body: must be a JSON object");
        json_decref(json);
        return NULL;
    }
    json_object_foreach(json, key, value) if (!api_word_among(members, key))
    {
        api_problem(r, PROBLEM_BAD_REQUEST, "body: unknown member \"%.60s\"; there are: %s", key,
                    members);
        json_decref(json);
        return NULL;
    }
    return json;
}

bool api_json_text(struct api_request *r, const json_t *object, const char *name, const char **out)
{
    const json_t *value = json_object_get(object, name);
    *out = NULL;
    if (value == NULL || json_is_null(value))
        return true;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value)) {
        api_problem(r, PROBLEM_BAD_REQUEST, "body: %s must be a text", name);
        return false;
    }
    *out = json_string_value(value);
    return true;
}
