/* skerry invoke: one HTTP join, through the gateway as anybody would. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/id.h"
#include "base/memory.h"
#include "node/cli/cli.h"

#define STDIN_BYTES_MAX (64u * 1024 * 1024)

enum { HEADERS_MAX = CLIENT_HEADERS_MAX - 4, URL_SIZE = 8192 };

struct join {
    struct cli *cli;
    bool show_head;
    FILE *data; /* of -d @FILE */
    struct buffer body;
    const char *headers[CLIENT_HEADERS_MAX];
    char key[512], instance[128];
    size_t header_count;
};

static int show_head(void *user, const char *text, size_t length, struct err *e)
{
    struct join *j = user;
    if (j->show_head && fwrite(text, 1, length, stdout) != length)
        return err_set(e, ERR_CANCELED, "stdout takes no more");
    return 0;
}

static int show_body(void *user, const void *data, size_t length, struct err *e)
{
    (void)user;
    if (fwrite(data, 1, length, stdout) != length || fflush(stdout) != 0)
        return err_set(e, ERR_CANCELED, "stdout takes no more");
    return 0;
}

static int read_data(void *user, void *out, size_t size, size_t *out_length, struct err *e)
{
    struct join *j = user;
    *out_length = fread(out, 1, size, j->data);
    if (*out_length == 0 && ferror(j->data))
        return err_set(e, ERR_IO, "-d: the file cannot be read");
    return 0;
}

/* Where the node that answers takes joins. */
static int find_gateway(struct cli *c, char *out, size_t size)
{
    const char *given = cli_value(c, "gateway");
    if (given != NULL)
        return text_format(out, size, "%s%s", strstr(given, "://") == NULL ? "http://" : "", given)
                   ? CLI_DONE
                   : cli_usage(c, "--gateway: too long");
    json_t *version = NULL; /* the one thing that a token of role invoke may read anyway */
    int code = cli_get(c, &version, "/v1/version");
    if (code != CLI_DONE)
        return code;
    const char *http = cli_text(version, "http");
    bool known = http[0] != '\0' &&
                 text_format(out, size, "%s%s", strstr(http, "://") == NULL ? "http://" : "", http);
    json_decref(version);
    if (!known) {
        cli_say("the node does not tell where it takes joins; --gateway names it");
        return CLI_FAILED;
    }
    /* An address that means all of them is reached at this machine's own. */
    static const char any[] = "//0.0.0.0:", own[] = "//127.0.0.1:";
    char *found = strstr(out, any);
    if (found != NULL) {
        char port[32];
        (void)text_copy(port, sizeof port, found + sizeof any - 1);
        (void)text_format(found, size - (size_t)(found - out), "%s%s", own, port);
    }
    return CLI_DONE;
}

static int make_headers(struct cli *c, struct join *j)
{
    const char *text;
    size_t position = 0;
    while ((text = cli_next(c, "header", &position)) != NULL) {
        if (strchr(text, ':') == NULL || strpbrk(text, "\r\n") != NULL)
            return cli_usage(c, "-H %.80s: write NAME: VALUE", text);
        if (j->header_count == HEADERS_MAX)
            return cli_usage(c, "more than %d headers", HEADERS_MAX);
        j->headers[j->header_count++] = text;
    }
    const char *key = cli_value(c, "key");
    if (key != NULL) {
        if (strpbrk(key, "\r\n") != NULL ||
            !text_format(j->key, sizeof j->key, "Skerry-Key: %s", key))
            return cli_usage(c, "--key: too long, or of more than one line");
        j->headers[j->header_count++] = j->key;
    }
    const char *instance = cli_value(c, "instance");
    if (instance != NULL) {
        char id[INSTANCE_ID_LENGTH_MAX + 1];
        int code = cli_instance(c, instance, id, sizeof id);
        if (code != CLI_DONE)
            return code;
        (void)text_format(j->instance, sizeof j->instance, "Skerry-Instance: %s", id);
        j->headers[j->header_count++] = j->instance;
    }
    return CLI_DONE;
}

static int open_data(struct cli *c, struct join *j, struct client_request *request)
{
    const char *data = cli_value(c, "data");
    if (data == NULL)
        return CLI_DONE;
    request->content_type = "application/octet-stream";
    for (size_t i = 0; i < j->header_count; i++) {
        if (strncasecmp(j->headers[i], "content-type:", 13) == 0)
            request->content_type = j->headers[i] + 13 + strspn(j->headers[i] + 13, " ");
    }
    if (data[0] != '@') {
        request->body = data;
        request->body_length = strlen(data);
        return CLI_DONE;
    }
    struct stat st;
    j->data = strcmp(data, "@-") == 0 ? stdin : fopen(data + 1, "re");
    if (j->data == NULL)
        return cli_usage(c, "-d: cannot open %.200s", data + 1);
    if (fstat(fileno(j->data), &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
        request->source = read_data;
        request->source_length = (uint64_t)st.st_size;
        return CLI_DONE;
    }
    /* Many servers want a length: what is short enough is read whole. */
    buffer_init(&j->body, STDIN_BYTES_MAX);
    while (!feof(j->data) && !ferror(j->data)) {
        char piece[16384];
        size_t n = fread(piece, 1, sizeof piece, j->data);
        if (!buffer_append(&j->body, piece, n))
            return cli_usage(c, "-d @-: more than %u bytes; use -d @FILE", STDIN_BYTES_MAX);
    }
    request->body = j->body.data == NULL ? "" : j->body.data;
    request->body_length = j->body.length;
    return CLI_DONE;
}

static int invoke(struct cli *c)
{
    struct join j = {.cli = c, .show_head = cli_has(c, "include")};
    char gateway[512], path[URL_SIZE];
    const char *name = c->args.words[0];
    const char *rest = c->args.word_count > 1 ? c->args.words[1] : "/";
    if (!workload_name_valid(name, strlen(name)))
        return cli_usage(c, "%.80s is no workload name", name);
    if (!text_format(path, sizeof path, "/w/%s%s%s", name, rest[0] == '/' ? "" : "/", rest) ||
        strpbrk(path, " \r\n\t") != NULL)
        return cli_usage(c, "the path is too long, or not percent-encoded");
    struct client_request request = {.base = gateway,
                                     .path = path,
                                     .headers = j.headers,
                                     .head = show_head,
                                     .sink = show_body,
                                     .any_status = true,
                                     .user = &j};
    int code = make_headers(c, &j);
    if (code == CLI_DONE)
        code = open_data(c, &j, &request);
    if (code == CLI_DONE)
        code = find_gateway(c, gateway, sizeof gateway);
    if (code == CLI_DONE) {
        request.method = cli_value(c, "method");
        if (request.method == NULL)
            request.method = cli_value(c, "data") != NULL ? "POST" : "GET";
        struct client *client = NULL;
        struct client_answer answer = {0};
        struct err e = {0};
        code = cli_client(c, &client);
        if (code == CLI_DONE && client_do(client, &request, &answer, &e) != 0)
            code = cli_fail(c, &e);
        char error[64];
        if (code == CLI_DONE && answer.status >= 400)
            /* A status of the code's own is its business, Skerry's are told apart. */
            code = client_header(&answer, "Skerry-Error", error, sizeof error)
                       ? (int)cli_exit_of_status(answer.status)
                       : CLI_FAILED;
        client_answer_free(&answer);
    }
    if (j.data != NULL && j.data != stdin)
        fclose(j.data);
    buffer_free(&j.body);
    return code;
}

static const struct cli_option invoke_options[] = {
    {'X', "method", "METHOD", "default GET, with -d POST"},
    {'H', "header", "LINE", "a request header, may be repeated"},
    {'d', "data", "DATA", "the body; @FILE from a file, @- from stdin"},
    {'i', "include", NULL, "the answer's headers too"},
    {0, "instance", "ID", "join this instance"},
    {0, "key", "KEY", "join the instance of this key"},
    {0, "gateway", "ADDR", "where joins go (default: as the cluster tells)"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_invoke_command = {
    .name = "invoke",
    .arguments = "WORKLOAD [PATH]",
    .summary = "one HTTP join",
    .text = "Exits with 1 when the code answers with a status of 400 or above. Private workloads "
            "need a\n"
            "token.\n\n"
            "  skerry invoke hello\n"
            "  skerry invoke judge /run -d @solution.py -i\n"
            "  skerry invoke chat /say --key red -d 'hi'",
    .options = invoke_options,
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 2,
    .run = invoke,
};
