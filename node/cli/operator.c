/* skerry operator raft: who votes, who leads; skerry node rm. */
#include <string.h>

#include "base/memory.h"
#include "node/cli/cli.h"

static int list_peers(struct cli *c)
{
    static const char *const heads[] = {"NODE", "ID", "PEER", "STATE", "ROLE", "LEADER", NULL};
    json_t *nodes = NULL;
    int code = cli_get(c, &nodes, "/v1/nodes");
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(nodes);
        json_decref(nodes);
        return CLI_DONE;
    }
    struct cli_table *t = cli_table_new(heads);
    json_t *node;
    size_t i;
    json_array_foreach(nodes, i, node)
    {
        const char *cells[] = {cli_text(node, "name"),    cli_text(node, "id"),
                               cli_text(node, "address"), cli_text(node, "state"),
                               cli_text(node, "role"),    cli_truth(node, "leader") ? "yes" : ""};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
    json_decref(nodes);
    return CLI_DONE;
}

const struct cli_command cli_raft_peers_command = {
    .name = "operator raft list-peers",
    .arguments = "",
    .summary = "who votes in the registry, who follows it",
    .flags = CLI_API | CLI_JSON,
    .run = list_peers,
};

static int transfer(struct cli *c)
{
    char encoded[256] = "", path[320];
    const char *to = c->args.word_count > 0 ? c->args.words[0] : NULL;
    if (to != NULL && !client_encode(encoded, sizeof encoded, to))
        return cli_usage(c, "%.80s...: no node has so long a name", to);
    (void)text_format(path, sizeof path, "/v1/operator/raft/transfer%s%s", to != NULL ? "?to=" : "",
                      encoded);
    int code = cli_send(c, "POST", path, NULL, NULL);
    if (code == CLI_DONE)
        printf("%s  leads\n", to != NULL ? to : "another node");
    return code;
}

const struct cli_command cli_raft_transfer_command = {
    .name = "operator raft transfer",
    .arguments = "[NODE]",
    .summary = "hand leadership over, to NODE or to the voter that is most up to date",
    .text =
        "To be asked of the leader (skerry status names it). A graceful stop does it by itself.",
    .flags = CLI_API,
    .words_max = 1,
    .run = transfer,
};

static int remove_peer(struct cli *c)
{
    char encoded[256], path[320];
    if (!client_encode(encoded, sizeof encoded, c->args.words[0]))
        return cli_usage(c, "%.80s...: no node has so long a name", c->args.words[0]);
    (void)text_format(path, sizeof path, "/v1/nodes/%s", encoded);
    int code = cli_send(c, "DELETE", path, NULL, NULL);
    if (code == CLI_DONE)
        printf("%s  removed\n", c->args.words[0]);
    return code;
}

const struct cli_command cli_raft_remove_command = {
    .name = "operator raft remove",
    .arguments = "NODE",
    .summary = "take a node out of the cluster for good, as `skerry node rm`",
    .text = "Its instances end as node_lost and its key is worth nothing any more.",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = remove_peer,
};

const struct cli_command cli_node_remove_command = {
    .name = "node rm",
    .arguments = "NODE",
    .summary = "take a node out of the cluster for good",
    .text =
        "Its instances end as node_lost, its key is worth nothing any more, and gossip is sealed "
        "with\na new one. Drain it first, if it still runs. To come back it needs a new token.",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = remove_peer,
};
