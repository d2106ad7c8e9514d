/* skerry ticket: a link by which a browser comes to a private workload. */
#include <stdlib.h>
#include <string.h>

#include "base/id.h"
#include "base/memory.h"
#include "node/cli/cli.h"

/* False: it is no port. */
static bool add_port(json_t *body, const char *text)
{
    char *end = NULL;
    long port = strtol(text, &end, 10);
    if (end == text || *end != '\0' || port < 1 || port > UINT16_MAX)
        return false;
    return json_object_set_new(body, "port", json_integer(port)) == 0;
}

static int ticket(struct cli *c)
{
    const char *subject = c->args.words[0], *port = cli_value(c, "port");
    static const char *const durations[] = {"ttl", "session"};
    char path[320], name[256];
    bool of_instance = subject[0] >= '0' && subject[0] <= '9';
    if (port != NULL && !of_instance)
        return cli_usage(c, "--port is one of an instance: give its id");
    if (of_instance) {
        char id[INSTANCE_ID_LENGTH_MAX + 1];
        int code = cli_instance(c, subject, id, sizeof id);
        if (code != CLI_DONE)
            return code;
        (void)text_format(path, sizeof path, "/v1/instances/%s/ticket", id);
    } else if (client_encode(name, sizeof name, subject)) {
        (void)text_format(path, sizeof path, "/v1/workloads/%s/ticket", name);
    } else {
        return cli_usage(c, "%.40s...: no workload's name is so long", subject);
    }
    json_t *body = json_object(), *made = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(durations); i++)
        if (cli_value(c, durations[i]) != NULL)
            json_object_set_new(body, durations[i], json_string(cli_value(c, durations[i])));
    if (port != NULL && !add_port(body, port)) {
        json_decref(body);
        return cli_usage(c, "--port: %.20s is no number from 1 to 65535", port);
    }
    int code = cli_send(c, "POST", path, body, &made);
    if (code != CLI_DONE)
        return code;
    if (c->json)
        cli_print_json(made);
    else
        printf("%s\n", cli_text(made, cli_text(made, "url")[0] != '\0' ? "url" : "ticket"));
    json_decref(made);
    return CLI_DONE;
}

static const struct cli_option ticket_options[] = {
    {0, "ttl", "T", "how long the link is good, once: 60s, at most 10m"},
    {0, "session", "T", "how long the browser may come with its cookie: 1h, at most 24h"},
    {0, "port", "N", "to another port of the instance than its workload's"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_ticket_command = {
    .name = "ticket",
    .arguments = "WORKLOAD|ID",
    .summary = "a link that lets a browser join a private workload",
    .text =
        "The link is good once, for a minute. The browser gets a cookie for that host, with which\n"
        "pages and WebSockets work, until it is over or the token that you ask with ends.\n\n"
        "  xdg-open \"$(skerry ticket chat)\"\n\n"
        "On another host name of the workload the same `?skerry_ticket=` does as well.",
    .options = ticket_options,
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = 1,
    .run = ticket,
};
