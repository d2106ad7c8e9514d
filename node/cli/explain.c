/* skerry explain: why something is as it is, as a time line. */
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#include "base/memory.h"
#include "node/cli/cli.h"

enum { SHORT_ID = 8 };

/* Texts may come from the code inside. */
static void put_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void put_line(const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *p = text; *p != '\0'; p++) {
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    }
    puts(text);
}

static void print_head(const json_t *x)
{
    char joins[96] = "";
    if (json_is_integer(json_object_get(x, "joins")))
        (void)text_format(joins, sizeof joins, "   %" PRId64 " joins, peak %" PRId64 "/%" PRId64,
                          cli_integer(x, "joins"), cli_integer(x, "joiners_peak"),
                          cli_integer(x, "max_joiners"));
    const char *kind = cli_text(x, "kind");
    const char *workload = cli_text(x, "workload");
    if (strcmp(kind, "instance") == 0)
        put_line("%s  %s v%" PRId64 " on %s   %s%s", cli_text(x, "subject"),
                 workload[0] == '\0' ? "(run)" : workload, cli_integer(x, "version"),
                 cli_text(x, "node"), cli_text(x, "summary"), joins);
    else
        put_line("%s  %s   %s%s", cli_text(x, "subject"), kind, cli_text(x, "summary"), joins);
}

static void print_events(const json_t *x)
{
    json_t *event;
    size_t i;
    json_array_foreach(json_object_get(x, "events"), i, event)
    {
        char at[CLI_UNIT_SIZE];
        cli_duration((uint64_t)cli_integer(event, "at_us"), at);
        put_line("%12s  %-10s %s", at, cli_text(event, "what"), cli_text(event, "text"));
    }
}

static void print_instances(const json_t *x)
{
    json_t *i;
    size_t n;
    json_array_foreach(json_object_get(x, "instances"), n, i)
    {
        const char *reason = cli_text(i, "reason");
        put_line("  %.*s  v%" PRId64 "  %s%s%s", SHORT_ID, cli_text(i, "id"),
                 cli_integer(i, "version"), cli_text(i, "state"), reason[0] == '\0' ? "" : ": ",
                 reason);
    }
}

static int explain(struct cli *c)
{
    char subject[512];
    json_t *x = NULL;
    if (!client_encode(subject, sizeof subject, c->args.words[0]))
        return cli_usage(c, "%.80s...: too long", c->args.words[0]);
    int code = cli_get(c, &x, "/v1/explain/%s", subject);
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(x);
    } else {
        print_head(x);
        print_events(x);
        print_instances(x);
        if (cli_text(x, "starts")[0] != '\0')
            put_line("starts  %s", cli_text(x, "starts"));
        if (cli_text(x, "stderr")[0] != '\0')
            put_line("stderr  %s", cli_text(x, "stderr"));
        if (cli_text(x, "hint")[0] != '\0')
            put_line("hint    %s", cli_text(x, "hint"));
    }
    json_decref(x);
    return CLI_DONE;
}

const struct cli_command cli_explain_command = {
    .name = "explain",
    .arguments = "ID|REQUEST|WORKLOAD",
    .summary = "why it is as it is: a time line",
    .text =
        "REQUEST is the Skerry-Request-Id of an answer, but for those that merely joined: joins "
        "leave no\ntrace here.\n\n"
        "  skerry explain 7k3q\n"
        "  skerry explain hello",
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = 1,
    .run = explain,
};
