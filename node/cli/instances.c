/* skerry ps, stop and extend. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fields.h"
#include "base/id.h"
#include "base/memory.h"
#include "node/cli/cli.h"

/* --- ps --------------------------------------------------------------------------------------- */

/* All pages of the listing as one array. */
static int list_instances(struct cli *c, json_t **out)
{
    json_t *all = json_array();
    char after[INSTANCE_ID_LENGTH_MAX + 1] = "";
    const char *workload = c->args.word_count > 0 ? c->args.words[0] : NULL;
    char encoded[256] = "";
    if (workload != NULL && !client_encode(encoded, sizeof encoded, workload)) {
        json_decref(all);
        return cli_usage(c, "%.80s is no workload name", workload);
    }
    for (;;) {
        char path[512];
        (void)text_format(path, sizeof path, "/v1/instances?limit=1000&all=%d%s%s%s%s",
                          cli_has(c, "all"), workload != NULL ? "&workload=" : "", encoded,
                          after[0] != '\0' ? "&after=" : "", after);
        struct client_request request = {.path = path, .accept = "application/json"};
        struct client_answer answer;
        int code = cli_ask(c, &request, &answer);
        if (code != CLI_DONE) {
            json_decref(all);
            return code;
        }
        json_t *page = client_json(&answer);
        json_array_extend(all, page);
        json_decref(page);
        bool more = client_header(&answer, "Skerry-Next", after, sizeof after);
        client_answer_free(&answer);
        if (!more)
            break;
    }
    *out = all;
    return CLI_DONE;
}

static size_t prefix_length_of(const json_t *instances)
{
    size_t count = json_array_size(instances);
    const char **ids = calloc(count + 1, sizeof *ids);
    if (ids == NULL)
        return SIZE_MAX;
    for (size_t i = 0; i < count; i++)
        ids[i] = cli_text(json_array_get(instances, i), "id");
    size_t length = cli_prefix_length(ids, count);
    free(ids);
    return length;
}

static int compare_starts(const void *a, const void *b)
{
    /* RFC 3339 in UTC sorts as text. */
    return strcmp(cli_text(*(json_t *const *)a, "started_at"),
                  cli_text(*(json_t *const *)b, "started_at"));
}

/* Oldest first; the order of ids means nothing to people. */
static json_t *sorted_by_start(const json_t *instances)
{
    size_t count = json_array_size(instances);
    json_t *out = json_array();
    json_t **items = calloc(count + 1, sizeof *items);
    for (size_t i = 0; items != NULL && i < count; i++)
        items[i] = json_array_get(instances, i);
    if (items != NULL)
        qsort(items, count, sizeof(json_t *), compare_starts);
    for (size_t i = 0; items != NULL && i < count; i++)
        json_array_append(out, items[i]);
    free(items);
    return out;
}

static void print_instances(const struct cli *c, const json_t *instances)
{
    static const char *const heads[] = {"ID",       "WORKLOAD", ">V",  "NODE",  "STATE",
                                        ">JOINERS", ">AGE",     "KEY", "ENDED", NULL};
    struct cli_table *t = cli_table_new(heads);
    size_t length = cli_has(c, "no-trunc") ? SIZE_MAX : prefix_length_of(instances);
    uint64_t now = clock_wall_ms();
    json_t *i;
    size_t n;
    json_array_foreach(instances, n, i)
    {
        char id[INSTANCE_ID_LENGTH_MAX + 1], version[24], joiners[32], age[CLI_UNIT_SIZE],
            ended[96];
        (void)text_format(id, sizeof id, "%.*s", length > 64 ? 64 : (int)length, cli_text(i, "id"));
        (void)text_format(version, sizeof version, "%" PRId64, cli_integer(i, "version"));
        int64_t bound = cli_integer(i, "max_joiners");
        bool live = strcmp(cli_text(i, "state"), "ended") != 0;
        if (!live || !json_is_integer(json_object_get(i, "joiners")))
            (void)text_copy(joiners, sizeof joiners, "-"); /* only its node knows them */
        else if (bound == 0)
            (void)text_format(joiners, sizeof joiners, "%" PRId64, cli_integer(i, "joiners"));
        else
            (void)text_format(joiners, sizeof joiners, "%" PRId64 "/%" PRId64,
                              cli_integer(i, "joiners"), bound);
        cli_age(cli_text(i, "started_at"), now, age);
        ended[0] = '\0';
        if (!live) {
            char ago[CLI_UNIT_SIZE];
            cli_age(cli_text(i, "ended_at"), now, ago);
            (void)text_format(ended, sizeof ended, "%s %s ago", cli_text(i, "reason"), ago);
            if (json_is_integer(json_object_get(i, "exit_code")))
                (void)text_format(ended, sizeof ended, "%s (%" PRId64 ") %s ago",
                                  cli_text(i, "reason"), cli_integer(i, "exit_code"), ago);
        }
        const char *workload = cli_text(i, "workload");
        const char *cells[] = {id,
                               workload[0] == '\0' ? "(run)" : workload,
                               version,
                               cli_text(i, "node"),
                               cli_text(i, "state"),
                               joiners,
                               age,
                               cli_text(i, "key"),
                               ended};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
}

static int ps(struct cli *c)
{
    json_t *instances = NULL;
    int code = list_instances(c, &instances);
    if (code != CLI_DONE)
        return code;
    json_t *i;
    size_t n;
    if (c->json) {
        cli_print_json(instances);
    } else if (cli_has(c, "quiet")) {
        json_array_foreach(instances, n, i) puts(cli_text(i, "id"));
    } else {
        json_t *sorted = sorted_by_start(instances);
        print_instances(c, sorted);
        json_decref(sorted);
    }
    json_decref(instances);
    return CLI_DONE;
}

static const struct cli_option ps_options[] = {
    {'a', "all", NULL, "those that have ended too"},
    {'q', "quiet", NULL, "whole ids only"},
    {0, "no-trunc", NULL, "whole ids in the table"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_ps_command = {
    .name = "ps",
    .arguments = "[WORKLOAD]",
    .summary = "instances",
    .text = "Ids are shortened to a beginning that is unique in the listing; every command takes "
            "them so.\n"
            "\n"
            "  skerry ps -a hello\n"
            "  skerry ps -q | xargs -n1 skerry stop",
    .options = ps_options,
    .flags = CLI_API | CLI_JSON,
    .words_max = 1,
    .run = ps,
};

/* --- stop ------------------------------------------------------------------------------------- */

static int stop(struct cli *c)
{
    int worst = CLI_DONE;
    for (size_t n = 0; n < c->args.word_count; n++) {
        char id[INSTANCE_ID_LENGTH_MAX + 1], path[128];
        json_t *instance = NULL;
        int code = cli_instance(c, c->args.words[n], id, sizeof id);
        if (code == CLI_DONE) {
            (void)text_format(path, sizeof path, "/v1/instances/%s/stop", id);
            code = cli_send(c, "POST", path, NULL, &instance);
        }
        if (code != CLI_DONE) {
            worst = code;
            continue;
        }
        if (c->json)
            cli_print_json(instance);
        else
            printf("%s  ended: %s\n", id, cli_text(instance, "reason"));
        json_decref(instance);
    }
    return worst;
}

const struct cli_command cli_stop_command = {
    .name = "stop",
    .arguments = "ID...",
    .summary = "stop instances, and wait until they have ended",
    .text = "Joiners are cut off. Later joins by id get 410 with the reason `killed`.\n\n"
            "  skerry stop 7k3q",
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = SIZE_MAX,
    .run = stop,
};

/* --- extend ----------------------------------------------------------------------------------- */

static int extend(struct cli *c)
{
    char id[INSTANCE_ID_LENGTH_MAX + 1], path[128];
    struct err e = {0};
    uint64_t ms;
    if (duration_parse(&ms, c->args.words[1], false, &e) != 0)
        return cli_usage(c, "%s", e.msg);
    int code = cli_instance(c, c->args.words[0], id, sizeof id);
    if (code != CLI_DONE)
        return code;
    json_t *instance = NULL;
    (void)text_format(path, sizeof path, "/v1/instances/%s/extend", id);
    code = cli_send(c, "POST", path, json_pack("{s:s}", "for", c->args.words[1]), &instance);
    if (code != CLI_DONE)
        return code;
    if (c->json)
        cli_print_json(instance);
    else
        printf("%s  ends in %s\n", id, c->args.words[1]);
    json_decref(instance);
    return CLI_DONE;
}

const struct cli_command cli_extend_command = {
    .name = "extend",
    .arguments = "ID DURATION",
    .summary = "let the life of an instance end so long from now",
    .text = "Replaces what is left of life.max.\n\n  skerry extend 7k3q 1h",
    .flags = CLI_API | CLI_JSON,
    .words_min = 2,
    .words_max = 2,
    .run = extend,
};
