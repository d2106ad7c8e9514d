/* skerry workload list, show, rm and rollback. */
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/id.h"
#include "base/memory.h"
#include "node/cli/cli.h"

enum { NAME_SIZE = 3 * (WORKLOAD_NAME_LENGTH_MAX + 1) };

/* A name as a part of a path. */
static int encode_name(const struct cli *c, char out[NAME_SIZE])
{
    const char *name = c->args.words[0];
    if (!workload_name_valid(name, strlen(name)) || !client_encode(out, NAME_SIZE, name))
        return cli_usage(c, "%.80s is no workload name", name);
    return CLI_DONE;
}

/* --- list ------------------------------------------------------------------------------------- */

static int list(struct cli *c)
{
    json_t *workloads = NULL;
    int code = cli_get(c, &workloads, "/v1/workloads");
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(workloads);
        json_decref(workloads);
        return CLI_DONE;
    }
    static const char *const heads[] = {"WORKLOAD", ">V",    "KIND", "IMAGE",
                                        "ACCESS",   ">INST", ">AGE", NULL};
    struct cli_table *t = cli_table_new(heads);
    uint64_t now = clock_wall_ms();
    json_t *w;
    size_t n;
    json_array_foreach(workloads, n, w)
    {
        char version[24], instances[24], age[CLI_UNIT_SIZE];
        (void)text_format(version, sizeof version, "%" PRId64, cli_integer(w, "version"));
        (void)text_format(instances, sizeof instances, "%" PRId64, cli_integer(w, "instances"));
        cli_age(cli_text(w, "deployed_at"), now, age);
        const char *cells[] = {cli_text(w, "id"),
                               version,
                               cli_text(w, "kind"),
                               cli_text(w, "image"),
                               cli_text(w, "access"),
                               instances,
                               age};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
    json_decref(workloads);
    return CLI_DONE;
}

const struct cli_command cli_workload_list_command = {
    .name = "workload list",
    .arguments = "",
    .summary = "what is deployed",
    .flags = CLI_API | CLI_JSON,
    .run = list,
};

/* --- show ------------------------------------------------------------------------------------- */

static bool needs_quotes(const char *text)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_./";
    return text[0] == '\0' || strchr(plain, text[0]) == NULL ||
           strpbrk(text, ":#{}[],&*!|>'\"%@`\n\t\\") != NULL || strcmp(text, "none") == 0 ||
           strcmp(text, "null") == 0 || strcmp(text, "true") == 0 || strcmp(text, "false") == 0 ||
           strcmp(text, "yes") == 0 || strcmp(text, "no") == 0;
}

static void print_scalar(const json_t *value)
{
    const char *text = json_string_value(value);
    /* "none" is a word of ours where no quotes stand. */
    if (text != NULL && (!needs_quotes(text) || strcmp(text, "none") == 0))
        fputs(text, stdout);
    else
        json_dumpf(value, stdout, JSON_ENCODE_ANY | JSON_COMPACT);
}

/* As a workload file would say it. */
static void print_yaml(const json_t *object, int indent)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        printf("%*s%s:", indent, "", key);
        if (json_is_object(value) && json_object_size(value) > 0) {
            putchar('\n');
            print_yaml(value, indent + 2);
            continue;
        }
        putchar(' ');
        if (json_is_array(value)) {
            putchar('[');
            for (size_t i = 0; i < json_array_size(value); i++) {
                if (i > 0)
                    fputs(", ", stdout);
                json_dumpf(json_array_get(value, i), stdout, JSON_ENCODE_ANY | JSON_COMPACT);
            }
            putchar(']');
        } else {
            print_scalar(value);
        }
        putchar('\n');
    }
}

static void print_usage(const json_t *u)
{
    char in[CLI_UNIT_SIZE], out[CLI_UNIT_SIZE];
    if (cli_integer(u, "instances") == 0)
        return;
    cli_bytes((uint64_t)cli_integer(u, "network_in_bytes"), in);
    cli_bytes((uint64_t)cli_integer(u, "network_out_bytes"), out);
    printf("# ended so far: %" PRId64 ", which ran %.3f s and used %.3f s of CPU, %.3f GiB seconds,"
           " network %s in, %s out\n",
           cli_integer(u, "instances"), json_number_value(json_object_get(u, "wall_seconds")),
           json_number_value(json_object_get(u, "cpu_seconds")),
           json_number_value(json_object_get(u, "memory_gib_seconds")), in, out);
}

static int show(struct cli *c)
{
    char name[NAME_SIZE];
    json_t *w = NULL;
    int code = encode_name(c, name);
    if (code != CLI_DONE)
        return code;
    const char *version = cli_value(c, "version");
    if (version != NULL && (version[0] == '\0' || strspn(version, "0123456789") != strlen(version)))
        return cli_usage(c, "--version: %.40s is no number", version);
    code = version == NULL ? cli_get(c, &w, "/v1/workloads/%s", name)
                           : cli_get(c, &w, "/v1/workloads/%s?version=%s", name, version);
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(w);
    } else {
        printf("# version %" PRId64 "%s, deployed %s, %" PRId64 " instances\n",
               cli_integer(w, "version"), cli_truth(w, "current") ? " (current)" : "",
               cli_text(w, "deployed_at"), cli_integer(w, "instances"));
        print_usage(json_object_get(w, "usage"));
        print_yaml(json_object_get(w, "spec"), 0);
    }
    json_decref(w);
    return CLI_DONE;
}

static const struct cli_option show_options[] = {
    {0, "version", "N", "one that is still kept"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_workload_show_command = {
    .name = "workload show",
    .arguments = "WORKLOAD",
    .summary = "one workload with every effective value",
    .options = show_options,
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = 1,
    .run = show,
};

/* --- what is older ---------------------------------------------------------------------------- */

int cli_stop_older(struct cli *c, const char *workload, int64_t version)
{
    json_t *instances = NULL;
    int worst = cli_get(c, &instances, "/v1/instances?workload=%s&limit=10000", workload);
    json_t *i;
    size_t n;
    json_array_foreach(instances, n, i)
    {
        char path[128];
        json_t *ended = NULL;
        if (cli_integer(i, "version") == version)
            continue;
        (void)text_format(path, sizeof path, "/v1/instances/%s/stop", cli_text(i, "id"));
        int code = cli_send(c, "POST", path, NULL, &ended);
        if (code != CLI_DONE)
            worst = code;
        else if (!c->json)
            printf("%s v%" PRId64 "  %s ended: %s\n", workload, cli_integer(i, "version"),
                   cli_text(i, "id"), cli_text(ended, "reason"));
        json_decref(ended);
    }
    json_decref(instances);
    return worst;
}

/* --- rm, rollback ----------------------------------------------------------------------------- */

static int rm(struct cli *c)
{
    char name[NAME_SIZE], path[NAME_SIZE + 64];
    int code = encode_name(c, name);
    if (code != CLI_DONE)
        return code;
    (void)text_format(path, sizeof path, "/v1/workloads/%s", name);
    code = cli_send(c, "DELETE", path, NULL, NULL);
    if (code == CLI_DONE)
        printf("%s  removed; its instances drain\n", c->args.words[0]);
    return code;
}

const struct cli_command cli_workload_rm_command = {
    .name = "workload rm",
    .arguments = "WORKLOAD",
    .summary = "remove a workload; its instances drain",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = rm,
};

static int rollback(struct cli *c)
{
    char name[NAME_SIZE], path[NAME_SIZE + 96];
    int code = encode_name(c, name);
    if (code != CLI_DONE)
        return code;
    const char *version = c->args.word_count > 1 ? c->args.words[1] : NULL;
    if (version != NULL && (version[0] == '\0' || strspn(version, "0123456789") != strlen(version)))
        return cli_usage(c, "%.40s is no version", version);
    (void)text_format(path, sizeof path, "/v1/workloads/%s/rollback%s%s", name,
                      version != NULL ? "?version=" : "", version != NULL ? version : "");
    json_t *deployed = NULL;
    code = cli_send(c, "POST", path, NULL, &deployed);
    if (code != CLI_DONE)
        return code;
    if (c->json)
        cli_print_json(deployed);
    else
        printf("%s v%" PRId64 "  deployed\n", cli_text(deployed, "id"),
               cli_integer(deployed, "version"));
    if (cli_has(c, "force"))
        code = cli_stop_older(c, cli_text(deployed, "id"), cli_integer(deployed, "version"));
    json_decref(deployed);
    return code;
}

static const struct cli_option rollback_options[] = {
    {0, "force", NULL, "stop instances of other versions; their joiners are cut off"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_workload_rollback_command = {
    .name = "workload rollback",
    .arguments = "WORKLOAD [VERSION]",
    .summary = "make an older version the current one, under a new number",
    .text =
        "Without VERSION: the one before the current. As with a deploy, what runs goes on taking\n"
        "joiners until an instance of it is ready.",
    .options = rollback_options,
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = 2,
    .run = rollback,
};
