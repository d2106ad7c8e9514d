/* node/api/spec.c - what `POST /v1/run` and `.../exec` are to run, from a JSON body or the query.
 *
 * Both become the JSON of a workload file of kind command, and are parsed by its table: so limits,
 * names and durations are checked in one place and refused in the same words. */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "node/api/internal.h"

#define EXEC_MEMBERS "command env user timeout tty rows columns stdin stdin_base64"
#define RUN_MEMBERS EXEC_MEMBERS " image source limits network read_only"
#define ROWS_DEFAULT 24u
#define COLUMNS_DEFAULT 80u

/* Sets object.name to a new reference; a missing one means text that is not UTF-8. */
static bool put(struct api_request *r, json_t *object, const char *name, json_t *value)
{
    if (value != NULL && json_object_set_new(object, name, value) == 0)
        return true;
    api_problem(r, PROBLEM_BAD_REQUEST, "%s: not UTF-8", name);
    return false;
}

/* Of a workload file's deploy.resources.limits. */
static const char *const limits[] = {"cpus", "memory", "pids", "disk", "io"};

static bool put_limit(struct api_request *r, json_t *spec, const char *name, json_t *value)
{
    json_t *deploy = json_object_get(spec, "deploy");
    if (deploy == NULL) {
        deploy = json_pack("{s:{s:{}}}", "resources", "limits");
        if (json_object_set(spec, "deploy", deploy) != 0) {
            json_decref(deploy);
            json_decref(value);
            api_problem(r, PROBLEM_INTERNAL, "out of memory");
            return false;
        }
        json_decref(deploy);
    }
    return put(r, json_object_get(json_object_get(deploy, "resources"), "limits"), name, value);
}

/* --- from the query ----------------------------------------------------------------------------- */

static json_t *query_list(const struct api_request *r, const char *name)
{
    json_t *list = json_array();
    for (size_t i = 0; i < r->query_count; i++)
        if (strcmp(r->query[i].name, name) == 0 &&
            json_array_append_new(list, json_string(r->query[i].value)) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static bool spec_of_query(struct api_request *r, json_t *spec)
{
    static const char *const plain[] = {"image", "source", "user"};
    const char *network = api_query(r, "network");
    bool read_only = false;
    if (!put(r, spec, "command", query_list(r, "command")) ||
        !put(r, spec, "environment", query_list(r, "env")) ||
        !api_query_flag(r, "read_only", &read_only) ||
        !put(r, spec, "read_only", json_boolean(read_only)))
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
        if (api_query(r, plain[i]) != NULL &&
            !put(r, spec, plain[i], json_string(api_query(r, plain[i]))))
            return false;
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        const char *value = api_query(r, limits[i]);
        /* A text would be quoted, and a quoted number is none. */
        bool number = strcmp(limits[i], "pids") == 0;
        json_t *json = value == NULL ? NULL
                       : number      ? json_integer(strtoll(value, NULL, 10))
                                     : json_string(value);
        if (value != NULL && !put_limit(r, spec, limits[i], json))
            return false;
    }
    return network == NULL || put(r, spec, "network", json_pack("{s:s}", "mode", network));
}

/* --- from JSON ---------------------------------------------------------------------------------- */

static bool spec_of_json(struct api_request *r, const json_t *body, json_t *spec)
{
    static const char *const same[] = {"command", "image", "source", "user", "read_only"};
    const char *network;
    for (size_t i = 0; i < ARRAY_SIZE(same); i++) {
        json_t *value = json_object_get(body, same[i]);
        if (value != NULL && !json_is_null(value) && !put(r, spec, same[i], json_incref(value)))
            return false;
    }
    json_t *env = json_object_get(body, "env");
    if (env != NULL && !json_is_object(env)) {
        api_problem(r, PROBLEM_BAD_REQUEST, "body: env must be an object");
        return false;
    }
    if (env != NULL && !put(r, spec, "environment", json_incref(env)))
        return false;
    const char *key = NULL;
    json_t *value;
    json_object_foreach(json_object_get(body, "limits"), key, value)
    {
        bool known = false;
        for (size_t i = 0; i < ARRAY_SIZE(limits); i++)
            known = known || strcmp(key, limits[i]) == 0;
        if (!known) {
            api_problem(r, PROBLEM_BAD_REQUEST,
                        "body: limits.%.40s: there are cpus, memory, pids, disk and io", key);
            return false;
        }
        if (!put_limit(r, spec, key, json_incref(value)))
            return false;
    }
    if (!api_json_text(r, body, "network", &network))
        return false;
    return network == NULL || put(r, spec, "network", json_pack("{s:s}", "mode", network));
}

/* stdin or stdin_base64; `*given` if either. */
static bool input_of_json(struct api_request *r, const json_t *body, struct buffer *input,
                          bool *given)
{
    const json_t *text = json_object_get(body, "stdin");
    const json_t *base64 = json_object_get(body, "stdin_base64");
    *given = text != NULL || base64 != NULL;
    if (!*given)
        return true;
    if (r->upgrade || (text != NULL && base64 != NULL) || !json_is_string(text ? text : base64)) {
        api_problem(r, PROBLEM_BAD_REQUEST,
                    r->upgrade ? "body: stdin comes in frames"
                               : "body: stdin or stdin_base64, one text");
        return false;
    }
    size_t length = json_string_length(text ? text : base64);
    if (text != NULL) {
        if (buffer_append(input, json_string_value(text), length))
            return true;
    } else if (buffer_reserve(input, length)) {
        if (sodium_base642bin((unsigned char *)input->data, length, json_string_value(base64),
                              length, "\r\n", &input->length, NULL,
                              sodium_base64_VARIANT_ORIGINAL) == 0)
            return true;
        api_problem(r, PROBLEM_BAD_REQUEST, "body: stdin_base64 is not base64");
        return false;
    }
    api_problem(r, PROBLEM_INTERNAL, "out of memory");
    return false;
}

/* --- how it runs -------------------------------------------------------------------------------- */

static bool number_of(struct api_request *r, const json_t *body, const char *name, unsigned *out)
{
    uint64_t number = *out;
    const json_t *value = json_object_get(body, name);
    if (value == NULL) {
        if (!api_query_number(r, name, 65535, &number))
            return false;
    } else {
        json_int_t given = json_integer_value(value);
        number = given < 0 ? 0 : (uint64_t)given;
    }
    if (number >= 1 && number <= 65535) {
        *out = (unsigned)number;
        return true;
    }
    api_problem(r, PROBLEM_BAD_REQUEST, "%s: 1 to 65535", name);
    return false;
}

static bool flag_of(struct api_request *r, const json_t *body, const char *name, bool *out)
{
    const json_t *value = json_object_get(body, name);
    if (value == NULL)
        return api_query_flag(r, name, out);
    *out = json_is_true(value);
    if (json_is_boolean(value))
        return true;
    api_problem(r, PROBLEM_BAD_REQUEST, "body: %s must be true or false", name);
    return false;
}

static bool manner(struct api_request *r, const json_t *body, struct node_ask *ask,
                   bool input_given)
{
    struct err e = {0};
    const char *timeout = api_query(r, "timeout");
    const char *in_body = NULL;
    bool input = r->upgrade || input_given || (!r->json && r->has_body);
    ask->rows = ROWS_DEFAULT;
    ask->columns = COLUMNS_DEFAULT;
    if (body != NULL && !api_json_text(r, body, "timeout", &in_body))
        return false;
    timeout = in_body != NULL ? in_body : timeout;
    if (timeout != NULL && duration_parse(&ask->timeout_ms, timeout, true, &e) < 0) {
        api_problem(r, PROBLEM_BAD_REQUEST, "timeout: %s", e.msg);
        return false;
    }
    if (ask->timeout_ms == DURATION_NONE)
        ask->timeout_ms = 0;
    if (!flag_of(r, body, "tty", &ask->tty) || !number_of(r, body, "rows", &ask->rows) ||
        !number_of(r, body, "columns", &ask->columns) || !api_query_flag(r, "stdin", &input))
        return false;
    if (ask->tty && !r->upgrade) {
        api_problem(r, PROBLEM_BAD_REQUEST, "tty: only when upgraded to skerry-exec/1");
        return false;
    }
    ask->no_stdin = !input && !ask->tty;
    return true;
}

static bool spec_parse(struct api_request *r, struct api_ask *a, json_t *spec)
{
    struct err e = {0};
    char *text = json_dumps(spec, JSON_COMPACT);
    int code = text == NULL ? err_set(&e, ERR_NO_MEMORY, "out of memory")
                            : workload_parse(&a->spec, "command", text, strlen(text), &e);
    free(text);
    if (code < 0) {
        api_problem(r, e.code == ERR_NO_MEMORY ? PROBLEM_INTERNAL : PROBLEM_BAD_REQUEST, "%s",
                    e.msg);
        return false;
    }
    a->has_spec = true;
    if (a->spec.command.count == 0) {
        api_problem(r, PROBLEM_BAD_REQUEST, "command is missing: one parameter for each word");
        return false;
    }
    a->ask.spec = &a->spec;
    a->ask.set_user = json_object_get(spec, "user") != NULL;
    return true;
}

bool api_command_spec(struct api_request *r, struct api_ask *a, bool run, struct buffer *input)
{
    json_t *body = r->json ? api_body_json(r, run ? RUN_MEMBERS : EXEC_MEMBERS) : NULL;
    if (r->json && body == NULL)
        return false;
    if (!r->json && r->body.length > 0) {
        api_problem(r, PROBLEM_BAD_REQUEST, "a body beside Upgrade must be application/json");
        return false;
    }
    if (!r->json && api_query(r, "command") == NULL) {
        api_problem(r, PROBLEM_BAD_REQUEST,
                    "command is missing: send a JSON body with Content-Type: application/json, or "
                    "command=WORD in the query for each word");
        return false;
    }
    bool given = false;
    json_t *spec = json_pack("{s:s, s:s}", "id", "run", "kind", "command");
    bool done = (body != NULL ? spec_of_json(r, body, spec) : spec_of_query(r, spec)) &&
                (body == NULL || input_of_json(r, body, input, &given)) &&
                manner(r, body, &a->ask, given) && spec_parse(r, a, spec);
    json_decref(spec);
    json_decref(body);
    return done;
}
