/* Calls of the API, and what their answers hold. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/id.h"
#include "base/memory.h"
#include "node/cli/cli.h"

enum { PATH_SIZE = 8192, LISTED_MAX = 6 };

int cli_client(struct cli *c, struct client **out)
{
    if (c->client == NULL) {
        struct err e = {0};
        struct client_options options = {.address = cli_value(c, "addr"),
                                         .token_file = cli_value(c, "token-file")};
        if (client_open(&c->client, &options, &e) != 0)
            return cli_fail(c, &e);
    }
    *out = c->client;
    return CLI_DONE;
}

int cli_ask(struct cli *c, const struct client_request *request, struct client_answer *answer)
{
    struct client *client = NULL;
    struct err e = {0};
    int code = cli_client(c, &client);
    if (code != CLI_DONE)
        return code;
    int rc = client_do(client, request, answer, &e);
    if (rc == 0 && answer->status / 100 == 2)
        return CLI_DONE;
    code = rc != 0 ? cli_fail(c, &e) : cli_refused(c, answer);
    client_answer_free(answer);
    return code;
}

static int answer_json(const struct cli *c, struct client_answer *answer, json_t **out)
{
    int code = CLI_DONE;
    if (out != NULL) {
        *out = answer->body.length == 0 ? json_null() : client_json(answer);
        if (*out == NULL) {
            struct err e = {0};
            err_set(&e, ERR_PROTOCOL, "the node's answer is not JSON");
            code = cli_fail(c, &e);
        }
    }
    client_answer_free(answer);
    return code;
}

int cli_get(struct cli *c, json_t **out, const char *path_format, ...)
{
    char path[PATH_SIZE];
    va_list args;
    va_start(args, path_format);
    int n = vsnprintf(path, sizeof path, path_format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof path)
        return cli_usage(c, "an argument is too long");
    struct client_request request = {.path = path, .accept = "application/json"};
    struct client_answer answer;
    int code = cli_ask(c, &request, &answer);
    return code == CLI_DONE ? answer_json(c, &answer, out) : code;
}

int cli_send(struct cli *c, const char *method, const char *path, json_t *body, json_t **out)
{
    CLEANUP_FREE char *text = body == NULL ? NULL : json_dumps(body, JSON_COMPACT);
    json_decref(body);
    struct client_request request = {.method = method,
                                     .path = path,
                                     .accept = "application/json",
                                     .body = text,
                                     .body_length = text == NULL ? 0 : strlen(text)};
    struct client_answer answer;
    int code = cli_ask(c, &request, &answer);
    return code == CLI_DONE ? answer_json(c, &answer, out) : code;
}

static int tell_ambiguous(const struct cli *c, const char *text, const json_t *found)
{
    char listed[400] = "";
    size_t count = json_array_size(found);
    for (size_t i = 0; i < count && i < LISTED_MAX; i++) {
        char more[64];
        (void)text_format(more, sizeof more, "%s%s", i == 0 ? "" : ", ",
                          cli_text(json_array_get(found, i), "id"));
        size_t length = strlen(listed);
        (void)text_copy(listed + length, sizeof listed - length, more);
    }
    return cli_usage(c, "%s: more than one instance begins so: %s%s", text, listed,
                     count > LISTED_MAX ? ", ..." : "");
}

int cli_instance(struct cli *c, const char *text, char *out, size_t size)
{
    struct instance_id id;
    if (instance_id_parse(&id, text, strlen(text)))
        return text_copy(out, size, text) ? CLI_DONE : CLI_USAGE;
    if (!instance_id_prefix_valid(text, strlen(text)))
        return cli_usage(c, "%.80s is no instance id: see skerry ps", text);
    json_t *found = NULL;
    int code = cli_get(c, &found, "/v1/instances?prefix=%s", text);
    if (code != CLI_DONE)
        return code;
    if (json_array_size(found) > 1) {
        code = tell_ambiguous(c, text, found);
    } else if (json_array_size(found) == 0) {
        cli_say("404 instance_unknown: no instance begins with %s, or it ended over 24 h ago",
                text);
        code = c->command->failure != 0 ? c->command->failure : CLI_NOT_FOUND;
    } else {
        (void)text_copy(out, size, cli_text(json_array_get(found, 0), "id"));
    }
    json_decref(found);
    return code;
}

void cli_print_json(const json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
    putchar('\n');
}

const char *cli_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text == NULL ? "" : text;
}

int64_t cli_integer(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

bool cli_truth(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

double cli_number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}
