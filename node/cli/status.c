/* skerry status: is the cluster well. */
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/cli/nodes.h"

enum { WATCH_MS = 1000 };

static const char *paint(const struct cli *c, const char *code)
{
    return c->color ? code : "";
}

static void print_head(const struct cli *c, const json_t *status)
{
    size_t voters = 0, alive = 0, i;
    json_t *node;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        if (strcmp(cli_text(node, "role"), "voter") != 0)
            continue;
        voters++;
        alive += strcmp(cli_text(node, "state"), "alive") == 0;
    }
    bool healthy = cli_truth(status, "healthy");
    size_t needed = voters / 2 + 1;
    printf("%s  %s%s%s  %zu of %zu voters", cli_text(status, "cluster"),
           paint(c, healthy ? "\033[1;32m" : "\033[1;31m"), healthy ? "HEALTHY" : "NOT HEALTHY",
           paint(c, "\033[0m"), alive, voters);
    if (alive >= needed)
        printf(" (can lose %zu)", alive - needed);
    const char *leader = cli_text(status, "leader");
    printf(", leader %s, term %" PRId64 "\n\n", leader[0] == '\0' ? "none" : leader,
           cli_integer(status, "term"));
}

static int status_once(struct cli *c)
{
    json_t *status = NULL;
    int code = cli_get(c, &status, "/v1/status");
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(status);
    } else {
        print_head(c, status);
        cli_nodes_print(json_object_get(status, "nodes"));
        json_t *warnings = json_object_get(status, "warnings");
        if (json_array_size(warnings) > 0)
            putchar('\n');
        json_t *warning;
        size_t i;
        json_array_foreach(warnings, i, warning) printf(
            "%s! %s%s\n", paint(c, "\033[33m"), json_string_value(warning), paint(c, "\033[0m"));
    }
    json_decref(status);
    return code;
}

static int status(struct cli *c)
{
    if (!cli_has(c, "watch"))
        return status_once(c);
    for (;;) {
        if (isatty(STDOUT_FILENO) && !c->json)
            fputs("\033[H\033[2J", stdout);
        int code = status_once(c);
        if (code != CLI_DONE && code != CLI_FAILED && code != CLI_UNREACHABLE)
            return code;
        if (fflush(stdout) != 0)
            return CLI_FAILED;
        struct pollfd gone = {.fd = STDOUT_FILENO};
        if (poll(&gone, 1, WATCH_MS) > 0 && (gone.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0)
            return CLI_DONE;
    }
}

static const struct cli_option status_options[] = {
    {'w', "watch", NULL, "again each second"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_status_command = {
    .name = "status",
    .arguments = "",
    .summary = "is the cluster well: leader, nodes, load, warnings",
    .text = "As the node that is asked sees it: its own view, also without a quorum.\n\n"
            "  skerry status --watch\n"
            "  skerry status --json | jq .healthy",
    .options = status_options,
    .flags = CLI_API | CLI_JSON,
    .run = status,
};
