/* skerry node list, show, drain and undrain. */
#include <inttypes.h>
#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "base/fields.h"
#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/cli/nodes.h"

enum { LOOK_MS = 250, PATH_SIZE = 512 };

/* --- a table of nodes, for status too --------------------------------------------------------- */

void cli_nodes_print(const json_t *nodes)
{
    static const char *const heads[] = {"NODE", "STATE",  "ROLE",  "PEER",    ">INST",
                                        "CPU",  "MEMORY", "LEASE", "VERSION", NULL};
    struct cli_table *t = cli_table_new(heads);
    json_t *node;
    size_t i;
    json_array_foreach(nodes, i, node)
    {
        char state[32], role[24], instances[24], cpu[32], memory[2 * CLI_UNIT_SIZE + 2], lease[24];
        char used[CLI_UNIT_SIZE], total[CLI_UNIT_SIZE];
        (void)text_format(state, sizeof state, "%s%s", cli_text(node, "state"),
                          cli_truth(node, "draining") ? ", drains" : "");
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
                               state,
                               role,
                               cli_text(node, "address"),
                               instances,
                               cpu,
                               memory,
                               lease,
                               cli_text(node, "version")};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
}

static int list(struct cli *c)
{
    json_t *nodes = NULL;
    int code = cli_get(c, &nodes, "/v1/nodes");
    if (code != CLI_DONE)
        return code;
    if (c->json)
        cli_print_json(nodes);
    else
        cli_nodes_print(nodes);
    json_decref(nodes);
    return CLI_DONE;
}

const struct cli_command cli_node_list_command = {
    .name = "node list",
    .arguments = "",
    .summary = "nodes, with state, role and load",
    .text = "The star is the leader. LEASE is known of the node that is asked, and of all by the "
            "leader.",
    .flags = CLI_API | CLI_JSON,
    .run = list,
};

/* --- one -------------------------------------------------------------------------------------- */

static int get_node(struct cli *c, const char *name, json_t **out)
{
    char encoded[256];
    if (!client_encode(encoded, sizeof encoded, name))
        return cli_usage(c, "%.80s...: no node has so long a name", name);
    return cli_get(c, out, "/v1/nodes/%s", encoded);
}

static int show(struct cli *c)
{
    static const char *const members[] = {"name",    "id",   "state", "role",   "zone",
                                          "address", "http", "api",   "version"};
    json_t *node = NULL;
    int code = get_node(c, c->args.words[0], &node);
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(node);
        json_decref(node);
        return CLI_DONE;
    }
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        const char *value = cli_text(node, members[i]);
        printf("%-10s %s\n", members[i], value[0] == '\0' ? "-" : value);
    }
    printf("%-10s %s\n%-10s %s\n%-10s %" PRId64 "\n", "leader",
           cli_truth(node, "leader") ? "yes" : "no", "draining",
           cli_truth(node, "draining") ? "yes" : "no", "instances", cli_integer(node, "instances"));
    json_decref(node);
    return CLI_DONE;
}

const struct cli_command cli_node_show_command = {
    .name = "node show",
    .arguments = "NODE",
    .summary = "one node",
    .text = "NODE is its name or its id.",
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = 1,
    .run = show,
};

/* --- draining --------------------------------------------------------------------------------- */

static int change(struct cli *c, const char *verb, json_t **out)
{
    char encoded[256], path[PATH_SIZE];
    if (!client_encode(encoded, sizeof encoded, c->args.words[0]))
        return cli_usage(c, "%.80s...: no node has so long a name", c->args.words[0]);
    (void)text_format(path, sizeof path, "/v1/nodes/%s/%s", encoded, verb);
    return cli_send(c, "POST", path, NULL, out);
}

/* Until nothing runs there, telling what is left each time that it changes. */
static int wait_empty(struct cli *c, uint64_t timeout_ms)
{
    uint64_t end = clock_monotonic_ms() + timeout_ms;
    int64_t last = -1;
    for (;;) {
        json_t *node = NULL;
        int code = get_node(c, c->args.words[0], &node);
        if (code != CLI_DONE)
            return code;
        int64_t left = cli_integer(node, "instances");
        bool draining = cli_truth(node, "draining");
        json_decref(node);
        if (!draining) {
            cli_say("somebody has undrained %s", c->args.words[0]);
            return CLI_FAILED;
        }
        if (left != last && !c->json)
            printf("%s  %" PRId64 " instance%s left\n", c->args.words[0], left,
                   left == 1 ? "" : "s");
        (void)fflush(stdout);
        last = left;
        if (left == 0)
            return CLI_DONE;
        if (timeout_ms != 0 && clock_monotonic_ms() >= end) {
            cli_say("%s: %" PRId64 " instances are left; they go on draining", c->args.words[0],
                    left);
            return CLI_TIMED_OUT;
        }
        (void)poll(NULL, 0, LOOK_MS);
    }
}

static int drain(struct cli *c)
{
    struct err e = {0};
    uint64_t timeout_ms = 0;
    const char *timeout = cli_value(c, "timeout");
    if (timeout != NULL && duration_parse(&timeout_ms, timeout, false, &e) != 0)
        return cli_usage(c, "--timeout: %s", e.msg);
    json_t *node = NULL;
    int code = change(c, "drain", &node);
    if (code != CLI_DONE)
        return code;
    if (!c->json)
        printf("%s  drains: nothing starts there any more\n", c->args.words[0]);
    if (cli_has(c, "wait"))
        code = wait_empty(c, timeout_ms);
    if (c->json && code == CLI_DONE)
        cli_print_json(node);
    json_decref(node);
    return code;
}

static const struct cli_option drain_options[] = {
    {'w', "wait", NULL, "until nothing runs there, telling what is left"},
    {0, "timeout", "T", "wait no longer than this (default: without end)"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_node_drain_command = {
    .name = "node drain",
    .arguments = "NODE",
    .summary = "let a node run empty: nothing starts there, joiners may finish",
    .text =
        "Instances end when their last joiner has left, and after timeouts.drain in any case.\n\n"
        "  skerry node drain node2 --wait && systemctl restart skerry",
    .options = drain_options,
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = 1,
    .run = drain,
};

static int undrain(struct cli *c)
{
    json_t *node = NULL;
    int code = change(c, "undrain", &node);
    if (code != CLI_DONE)
        return code;
    if (c->json)
        cli_print_json(node);
    else
        printf("%s  takes instances again\n", c->args.words[0]);
    json_decref(node);
    return CLI_DONE;
}

const struct cli_command cli_node_undrain_command = {
    .name = "node undrain",
    .arguments = "NODE",
    .summary = "let instances start on a node again",
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = 1,
    .run = undrain,
};
