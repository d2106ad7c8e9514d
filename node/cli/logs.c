/* skerry logs and events. */
#include <string.h>

#include "base/buffer.h"
#include "base/id.h"
#include "base/memory.h"
#include "node/cli/cli.h"

/* --- logs ------------------------------------------------------------------------------------- */

static int to_stdout(void *user, const void *data, size_t length, struct err *e)
{
    (void)user;
    if (fwrite(data, 1, length, stdout) != length || fflush(stdout) != 0)
        return err_set(e, ERR_CANCELED, "stdout takes no more");
    return 0;
}

static int logs(struct cli *c)
{
    char id[INSTANCE_ID_LENGTH_MAX + 1], path[512], since[128] = "", tail[64] = "";
    int code = cli_instance(c, c->args.words[0], id, sizeof id);
    if (code != CLI_DONE)
        return code;
    if (cli_value(c, "since") != NULL && !client_encode(since, sizeof since, cli_value(c, "since")))
        return cli_usage(c, "--since: too long");
    if (cli_value(c, "tail") != NULL && !client_encode(tail, sizeof tail, cli_value(c, "tail")))
        return cli_usage(c, "-n: too long");
    const char *stream = cli_value(c, "stream");
    if (stream != NULL && strcmp(stream, "stdout") != 0 && strcmp(stream, "stderr") != 0)
        return cli_usage(c, "--stream: stdout or stderr");
    (void)text_format(path, sizeof path, "/v1/instances/%s/logs?follow=%d%s%s%s%s%s%s", id,
                      cli_has(c, "follow"), tail[0] != '\0' ? "&tail=" : "", tail,
                      since[0] != '\0' ? "&since=" : "", since, stream != NULL ? "&stream=" : "",
                      stream != NULL ? stream : "");
    struct client_request request = {
        .path = path, .accept = c->json ? "application/x-ndjson" : "text/plain", .sink = to_stdout};
    struct client_answer answer;
    code = cli_ask(c, &request, &answer);
    if (code == CLI_DONE)
        client_answer_free(&answer);
    return code;
}

static const struct cli_option logs_options[] = {
    {'f', "follow", NULL, "go on until the instance ends"},
    {'n', "tail", "N", "the last N lines only"},
    {0, "since", "T", "not older than this: 5m, or a time (RFC 3339)"},
    {0, "stream", "NAME", "stdout or stderr alone"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_logs_command = {
    .name = "logs",
    .arguments = "ID",
    .summary = "what an instance wrote, also after its end",
    .text = "  skerry logs -f 7k3q\n  skerry logs -n 20 --since 5m 7k3q",
    .options = logs_options,
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = 1,
    .run = logs,
};

/* --- events ----------------------------------------------------------------------------------- */

enum { EVENT_LINE_MAX = 65536 };

static void print_event(const char *line, size_t length)
{
    json_t *event = json_loadb(line, length, 0, NULL);
    if (event == NULL)
        return;
    char row[512];
    const char *instance = cli_text(event, "instance");
    const char *workload = cli_text(event, "workload");
    (void)text_format(row, sizeof row, "%s  %-20s %-12s %-19s %s", cli_text(event, "time"),
                      cli_text(event, "kind"), workload[0] == '\0' ? "-" : workload,
                      instance[0] == '\0' ? "-" : instance, cli_text(event, "text"));
    for (char *p = row; *p != '\0'; p++) {
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    }
    puts(row);
    json_decref(event);
}

static int take_events(void *user, const void *data, size_t length, struct err *e)
{
    struct buffer *b = user;
    if (!buffer_append(b, data, length))
        return err_set(e, ERR_PROTOCOL, "an event is too long");
    char *end;
    while (b->length > 0 && (end = memchr(b->data, '\n', b->length)) != NULL) {
        print_event(b->data, (size_t)(end - b->data));
        buffer_consume(b, (size_t)(end - b->data) + 1);
    }
    return fflush(stdout) == 0 ? 0 : err_set(e, ERR_CANCELED, "stdout takes no more");
}

static int events(struct cli *c)
{
    struct buffer lines;
    buffer_init(&lines, EVENT_LINE_MAX);
    struct client_request request = {.path = cli_has(c, "follow") ? "/v1/events?follow=1"
                                                                  : "/v1/events?follow=0",
                                     .accept = "application/x-ndjson",
                                     .sink = c->json ? to_stdout : take_events,
                                     .user = &lines};
    struct client_answer answer;
    int code = cli_ask(c, &request, &answer);
    if (code == CLI_DONE)
        client_answer_free(&answer);
    buffer_free(&lines);
    return code;
}

static const struct cli_option events_options[] = {
    {'f', "follow", NULL, "go on with new ones"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_events_command = {
    .name = "events",
    .arguments = "",
    .summary = "what happened on the node",
    .text = "With --json one event a line.\n\n  skerry events -f",
    .options = events_options,
    .flags = CLI_API | CLI_JSON,
    .run = events,
};
