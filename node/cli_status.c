/* skerry status: is the cluster well. */
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "node/cli.h"

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

static void print_nodes(const json_t *status)
{
    static const char *const heads[] = {"NODE", "STATE",  "ROLE",  "PEER",    "JOINS AT", ">INST",
                                        "CPU",  "MEMORY", "LEASE", "VERSION", NULL};
    struct cli_table *t = cli_table_new(heads);
    json_t *node;
    size_t i;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        char role[24], instances[24], cpu[32], memory[2 * CLI_UNIT_SIZE + 2], lease[24];
        char used[CLI_UNIT_SIZE], total[CLI_UNIT_SIZE];
        (void)text_format(role, sizeof role, "%s%s", cli_text(node, "role"),
                          cli_truth(node, "leader") ? "*" : "");
        (void)text_format(instances, sizeof instances, "%" PRId64, cli_integer(node, "instances"));
        (void)text_format(cpu, sizeof cpu, "%.1f/%g", cli_number(node, "cpus_used"),
                          cli_number(node, "cpus"));
        cli_bytes((uint64_t)cli_integer(node, "memory_used_bytes"), used);
        cli_bytes((uint64_t)cli_integer(node, "memory_bytes"), total);
        (void)text_format(memory, sizeof memory, "%s/%s", used, total);
        (void)text_copy(lease, sizeof lease, "-");
        if (json_is_number(json_object_get(node, "lease_seconds")))
            (void)text_format(lease, sizeof lease, "%.1fs", cli_number(node, "lease_seconds"));
        const char *cells[] = {cli_text(node, "name"),
                               cli_text(node, "state"),
                               role,
                               cli_text(node, "address"),
                               cli_text(node, "http"),
                               instances,
                               cpu,
                               memory,
                               lease,
                               cli_text(node, "version")};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
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
        print_nodes(status);
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
    .text = "Exits with 1 when it is not.\n\n"
            "  skerry status --watch\n"
            "  skerry status --json | jq .healthy",
    .options = status_options,
    .flags = CLI_API | CLI_JSON,
    .run = status,
};
