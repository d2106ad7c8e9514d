/* skerry domain add, list and rm. */
#include <string.h>

#include "base/clock.h"
#include "base/domain.h"
#include "base/memory.h"
#include "node/cli/cli.h"

static int add(struct cli *c)
{
    char name[DOMAIN_TEXT_SIZE];
    struct err e = {0};
    json_t *added = NULL;
    if (domain_parse(name, c->args.words[1], &e) < 0)
        return cli_usage(c, "%s", e.msg);
    json_t *body = json_pack("{s:s, s:s}", "workload", c->args.words[0], "domain", name);
    if (body == NULL)
        return cli_usage(c, "%.80s is no name of a workload", c->args.words[0]);
    int code = cli_send(c, "POST", "/v1/domains", body, &added);
    if (code != CLI_DONE)
        return code;
    if (c->json)
        cli_print_json(added);
    else
        printf("%s%s leads to %s\n", cli_text(added, "domain"),
               domain_is_alias(name) ? ".DOMAIN of each node" : "", cli_text(added, "workload"));
    json_decref(added);
    return CLI_DONE;
}

const struct cli_command cli_domain_add_command = {
    .name = "domain add",
    .arguments = "WORKLOAD DOMAIN",
    .summary = "a host name leads to a workload",
    .text =
        "DOMAIN is a host name of its own, which DNS leads to the nodes, or, without a point, an\n"
        "alias: another name below the nodes' domain.\n\n"
        "  skerry domain add chat chat.example.org     # http://chat.example.org:8080/\n"
        "  skerry domain add chat room                 # http://room.localhost:8080/\n\n"
        "All nodes know it. With gateway.tls a certificate with that name is shown to those who\n"
        "ask for it. `skerry workload rm` gives the domains of a workload back.",
    .flags = CLI_API | CLI_JSON,
    .words_min = 2,
    .words_max = 2,
    .run = add,
};

static int list(struct cli *c)
{
    json_t *domains = NULL;
    const char *workload = cli_value(c, "workload");
    char name[256];
    if (workload != NULL && !client_encode(name, sizeof name, workload))
        return cli_usage(c, "--workload: %.40s...: no workload's name is so long", workload);
    int code = workload != NULL ? cli_get(c, &domains, "/v1/domains?workload=%s", name)
                                : cli_get(c, &domains, "/v1/domains");
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(domains);
        json_decref(domains);
        return CLI_DONE;
    }
    static const char *const heads[] = {"DOMAIN", "WORKLOAD", "KIND", ">AGE", NULL};
    struct cli_table *t = cli_table_new(heads);
    uint64_t now = clock_wall_ms();
    json_t *domain;
    size_t i;
    json_array_foreach(domains, i, domain)
    {
        char age[CLI_UNIT_SIZE];
        cli_age(cli_text(domain, "created_at"), now, age);
        const char *cells[] = {cli_text(domain, "domain"), cli_text(domain, "workload"),
                               cli_text(domain, "kind"), age};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
    json_decref(domains);
    return CLI_DONE;
}

static const struct cli_option list_options[] = {
    {0, "workload", "NAME", "of this workload only"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_domain_list_command = {
    .name = "domain list",
    .arguments = "",
    .summary = "host names and aliases of workloads",
    .options = list_options,
    .flags = CLI_API | CLI_JSON,
    .run = list,
};

static int rm(struct cli *c)
{
    char name[DOMAIN_TEXT_SIZE], path[DOMAIN_TEXT_SIZE + 32];
    struct err e = {0};
    if (domain_parse(name, c->args.words[0], &e) < 0)
        return cli_usage(c, "%s", e.msg);
    (void)text_format(path, sizeof path, "/v1/domains/%s", name);
    int code = cli_send(c, "DELETE", path, NULL, NULL);
    if (code == CLI_DONE)
        printf("%s  removed\n", name);
    return code;
}

const struct cli_command cli_domain_remove_command = {
    .name = "domain rm",
    .arguments = "DOMAIN",
    .summary = "a host name leads to no workload any more",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = rm,
};
