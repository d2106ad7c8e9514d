/* skerry token create, list and revoke. */
#include <string.h>

#include "base/clock.h"
#include "base/fields.h"
#include "base/id.h"
#include "base/memory.h"
#include "node/cli/cli.h"

static void add_text(const struct cli *c, json_t *body, const char *name)
{
    if (cli_value(c, name) != NULL)
        json_object_set_new(body, name, json_string(cli_value(c, name)));
}

static int create(struct cli *c)
{
    const char *role = cli_value(c, "role"), *ttl = cli_value(c, "ttl");
    struct err e = {0};
    uint64_t ms;
    if (cli_has(c, "node") && role != NULL)
        return cli_usage(c, "--node is a role of its own; leave --role out");
    if (role == NULL)
        role = cli_has(c, "node") ? "node" : "invoke";
    if (strcmp(role, "node") != 0 && strcmp(role, "admin") != 0 && strcmp(role, "deploy") != 0 &&
        strcmp(role, "invoke") != 0)
        return cli_usage(c, "--role: admin, deploy or invoke");
    if (ttl != NULL && duration_parse(&ms, ttl, false, &e) != 0)
        return cli_usage(c, "--ttl: %s", e.msg);
    json_t *body = json_object(), *token = NULL;
    json_object_set_new(body, "role", json_string(role));
    add_text(c, body, "name");
    add_text(c, body, "workload");
    add_text(c, body, "ttl");
    if (cli_value(c, "instance") != NULL) {
        char id[INSTANCE_ID_LENGTH_MAX + 1];
        int code = cli_instance(c, cli_value(c, "instance"), id, sizeof id);
        if (code != CLI_DONE) {
            json_decref(body);
            return code;
        }
        json_object_set_new(body, "instance", json_string(id));
    }
    int code = cli_send(c, "POST", "/v1/tokens", body, &token);
    if (code != CLI_DONE)
        return code;
    if (c->json)
        cli_print_json(token);
    else
        printf("%s\n", cli_text(token, "token"));
    json_decref(token);
    return CLI_DONE;
}

static const struct cli_option create_options[] = {
    {0, "role", "ROLE", "admin, deploy or invoke (default)"},
    {0, "node", NULL, "a join token: one machine becomes a node with it, once, within 1h or --ttl"},
    {0, "name", "TEXT", "for people"},
    {0, "workload", "NAME", "for this workload only"},
    {0, "instance", "ID", "for this instance only"},
    {0, "ttl", "T", "it ends by itself after this"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_token_create_command = {
    .name = "token create",
    .arguments = "[--role ROLE | --node]",
    .summary = "a token, shown this once",
    .text =
        "Clients send it as `Skerry-Token` or `Authorization: Bearer`; it never reaches the "
        "code.\n\n"
        "  export SKERRY_TOKEN=$(skerry token create --role invoke --workload chat --ttl 30d)\n\n"
        "A machine joins the cluster with a join token of the node that it asks:\n\n"
        "  (umask 077; skerry token create --node > join.token)     # here; carry the file there\n"
        "  skerry serve --peers 10.0.0.1 --token-file join.token    # there",
    .options = create_options,
    .flags = CLI_API | CLI_JSON,
    .run = create,
};

static int list(struct cli *c)
{
    json_t *tokens = NULL;
    int code = cli_get(c, &tokens, "/v1/tokens");
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(tokens);
        json_decref(tokens);
        return CLI_DONE;
    }
    static const char *const heads[] = {"TOKEN", "NAME", "ROLE", "SCOPE", ">AGE", "EXPIRES", NULL};
    struct cli_table *t = cli_table_new(heads);
    uint64_t now = clock_wall_ms();
    json_t *token;
    size_t i;
    json_array_foreach(tokens, i, token)
    {
        char age[CLI_UNIT_SIZE], scope[128];
        const char *workload = cli_text(token, "workload"), *instance = cli_text(token, "instance");
        (void)text_format(scope, sizeof scope, "%s%s%s", workload,
                          workload[0] != '\0' && instance[0] != '\0' ? " " : "", instance);
        cli_age(cli_text(token, "created_at"), now, age);
        const char *expires = cli_text(token, "expires_at");
        const char *cells[] = {cli_text(token, "id"),
                               cli_text(token, "name"),
                               cli_text(token, "role"),
                               scope[0] == '\0' ? "-" : scope,
                               age,
                               expires[0] == '\0' ? "never" : expires};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
    json_decref(tokens);
    return CLI_DONE;
}

const struct cli_command cli_token_list_command = {
    .name = "token list",
    .arguments = "",
    .summary = "tokens, without their secrets",
    .flags = CLI_API | CLI_JSON,
    .run = list,
};

static int revoke(struct cli *c)
{
    char id[256], path[320];
    if (!client_encode(id, sizeof id, c->args.words[0]))
        return cli_usage(c, "%.40s...: no token id is so long", c->args.words[0]);
    (void)text_format(path, sizeof path, "/v1/tokens/%s", id);
    int code = cli_send(c, "DELETE", path, NULL, NULL);
    if (code == CLI_DONE)
        printf("%s  revoked\n", c->args.words[0]);
    return code;
}

const struct cli_command cli_token_revoke_command = {
    .name = "token revoke",
    .arguments = "ID",
    .summary = "revoke a token, at once",
    .text = "ID is the one that `skerry token list` shows, not the secret.",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = revoke,
};
