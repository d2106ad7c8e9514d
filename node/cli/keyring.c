/* skerry operator keyring: the keys that seal what nodes gossip. */
#include <stdlib.h>

#include "base/memory.h"
#include "node/cli/cli.h"

static int list(struct cli *c)
{
    static const char *const heads[] = {"KEY", "USED", NULL};
    json_t *keys = NULL, *key;
    size_t i;
    int code = cli_get(c, &keys, "/v1/operator/keyring");
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(keys);
        json_decref(keys);
        return CLI_DONE;
    }
    struct cli_table *t = cli_table_new(heads);
    json_array_foreach(keys, i, key)
    {
        const char *cells[] = {cli_text(key, "id"), cli_truth(key, "used") ? "yes" : "opens only"};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
    json_decref(keys);
    return CLI_DONE;
}

const struct cli_command cli_keyring_list_command = {
    .name = "operator keyring list",
    .arguments = "",
    .summary = "the keys of gossip, by their ids",
    .text =
        "Packets are sealed with the used one; all of the ring open. A key itself is never shown.",
    .flags = CLI_API | CLI_JSON,
    .run = list,
};

static int add(struct cli *c)
{
    json_t *key = NULL;
    int code = cli_send(c, "POST", "/v1/operator/keyring", NULL, &key);
    if (code != CLI_DONE)
        return code;
    if (c->json)
        cli_print_json(key);
    else
        printf("%s\n", cli_text(key, "id"));
    json_decref(key);
    return CLI_DONE;
}

const struct cli_command cli_keyring_add_command = {
    .name = "operator keyring add",
    .arguments = "",
    .summary = "a new random key, which opens and does not seal yet",
    .text = "To change keys without losing a packet, let each step reach all nodes (a second):\n\n"
            "  key=$(skerry operator keyring add)\n"
            "  skerry operator keyring use $key\n\n"
            "Keys that are older than the used one are taken out when all nodes seal with that. "
            "When a node\n"
            "is removed or replaced, all of this is done by itself.",
    .flags = CLI_API | CLI_JSON,
    .run = add,
};

static int change(struct cli *c, const char *method, const char *verb, const char *done)
{
    char encoded[64], path[160];
    if (!client_encode(encoded, sizeof encoded, c->args.words[0]))
        return cli_usage(c, "%.20s...: an id of a key has eight digits", c->args.words[0]);
    (void)text_format(path, sizeof path, "/v1/operator/keyring/%s%s", encoded, verb);
    int code = cli_send(c, method, path, NULL, NULL);
    if (code == CLI_DONE)
        printf("%s  %s\n", c->args.words[0], done);
    return code;
}

static int use(struct cli *c)
{
    return change(c, "POST", "/use", "seals from now on");
}

const struct cli_command cli_keyring_use_command = {
    .name = "operator keyring use",
    .arguments = "KEY",
    .summary = "seal with a key of the ring from now on",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = use,
};

static int drop(struct cli *c)
{
    return change(c, "DELETE", "", "opens nothing any more");
}

const struct cli_command cli_keyring_remove_command = {
    .name = "operator keyring remove",
    .arguments = "KEY",
    .summary = "take a key out of the ring; not the used one",
    .text =
        "A node that was away through add, use and remove is told the new keys when it is back.",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = drop,
};
