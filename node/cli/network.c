/* skerry operator network check: asks a sandbox what it can reach. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/destination.h"
#include "base/memory.h"
#include "node/cli/cli.h"

#define SCRIPT_BYTES_MAX (32u * 1024)
/* A refusal by the rules comes at once; what the machine drops, never. */
#define WAIT_S 2
#define RUN_TIMEOUT "20s"

enum wanted { WANT_REFUSED, WANT_REACHED };

/* GATE and SIBLING are found inside: the other end of the link, and the address of the next place. */
static const struct probe {
    const char *name, *address;
    unsigned port;
} probes[] = {
    {"metadata", "169.254.169.254", 80},
    {"metadata of ECS", "169.254.170.2", 80},
    {"link-local", "169.254.1.1", 80},
    {"private 10/8", "10.0.0.1", 80},
    {"private 172.16/12", "172.16.0.1", 80},
    {"private 192.168/16", "192.168.0.1", 80},
    {"carrier 100.64/10", "100.64.0.1", 80},
    {"benchmark 198.18/15", "198.18.0.1", 80},
    {"multicast", "224.0.0.1", 80},
    {"reserved 240/4", "240.0.0.1", 80},
    {"the machine", "$GATE", 22},
    {"the machine's API", "$GATE", 8081},
    {"a sibling", "$SIBLING", 80},
    {"cluster ports", "10.0.0.1", 7600},
    {"IPv6", "2001:db8::1", 80},
    {"IPv6 link-local", "fe80::1%eth0", 80},
    {"IPv6 private", "fd00::1", 80},
    {"IPv4 in IPv6", "::ffff:169.254.169.254", 80},
};

/* One line a probe: its number and a word. bash opens the connection by itself, so nothing has to be
 * installed. A port that refuses was reached; "refused" means that rules said so. */
static const char script_head[] =
    "hex=$(while read -r i d g r; do [ \"$d\" = 00000000 ] && echo $g; done </proc/net/route)\n"
    "at() { echo $((16#${hex:6:2})).$((16#${hex:4:2})).$((16#${hex:2:2})).$((16#${hex:0:2} + $1)); "
    "}\n"
    "GATE=$(at 0) SIBLING=$(at 3)\n"
    "probe() {\n"
    "  said=$(LC_ALL=C timeout %d bash -c \"exec 3<>/dev/tcp/$2/$3\" 2>&1); code=$?\n"
    "  case \"$code $said\" in\n"
    "  0*|*'onnection refused'*|*reset*) echo $1 reached;;\n"
    "  124*) echo $1 silence;;\n"
    "  *'No route'*|*unreachable*|*'not permitted'*|*'denied'*|*'Invalid argument'*"
    "|*'Cannot assign'*) echo $1 refused;;\n"
    "  *) echo \"$1 unknown $said\" | head -n 1;;\n"
    "  esac\n"
    "}\n";

static bool script_make(struct buffer *b, const struct destination *reach)
{
    bool good = buffer_printf(b, script_head, WAIT_S);
    for (size_t i = 0; i < ARRAY_SIZE(probes); i++)
        good =
            good && buffer_printf(b, "probe %zu %s %u &\n", i, probes[i].address, probes[i].port);
    if (reach != NULL) {
        uint32_t a = reach->network;
        good = good && buffer_printf(b, "probe %zu %u.%u.%u.%u %u &\n", ARRAY_SIZE(probes), a >> 24,
                                     a >> 16 & 0xff, a >> 8 & 0xff, a & 0xff, reach->port_first);
    }
    return good && buffer_append(b, "wait\n", sizeof "wait\n");
}

/* Whether the word means what is wanted. Silence says nothing of an address where nobody may live: the
 * machine itself answers always, so there it is a refusal. */
static bool passed(size_t probe, const char *word, enum wanted wanted)
{
    if (wanted == WANT_REACHED)
        return strcmp(word, "reached") == 0;
    if (strcmp(word, "refused") == 0)
        return true;
    return strcmp(word, "silence") == 0 && strcmp(probes[probe].address, "$GATE") == 0;
}

/* The word of a probe in the script's output; "missing" without one. */
static void word_find(const char *output, size_t probe, char *out, size_t size)
{
    char head[16];
    text_copy(out, size, "missing");
    size_t length = (size_t)snprintf(head, sizeof head, "%zu ", probe);
    for (const char *line = output; *line != '\0';) {
        size_t end = strcspn(line, "\n");
        if (strncmp(line, head, length) == 0)
            (void)text_format(out, size, "%.*s", (int)(end - length), line + length);
        line += end + (line[end] == '\n');
    }
}

static int judge(struct cli *c, const char *output, const char *reach)
{
    static const char *const heads[] = {"CLASS", "ADDRESS", "RESULT", "", NULL};
    struct cli_table *t = c->json ? NULL : cli_table_new(heads);
    json_t *all = json_array();
    bool well = true;
    for (size_t i = 0; i < ARRAY_SIZE(probes) + (reach != NULL); i++) {
        bool last = i == ARRAY_SIZE(probes);
        char word[120], address[64];
        word_find(output, i, word, sizeof word);
        bool good = passed(i, word, last ? WANT_REACHED : WANT_REFUSED);
        const char *name = last ? "allowed" : probes[i].name;
        if (last)
            (void)text_copy(address, sizeof address, reach);
        else
            (void)text_format(address, sizeof address,
                              strchr(probes[i].address, ':') != NULL ? "[%s]:%u" : "%s:%u",
                              probes[i].address + (probes[i].address[0] == '$'), probes[i].port);
        well = well && good;
        const char *cells[] = {name, address, word, good ? "pass" : "FAIL"};
        if (t != NULL)
            cli_table_row(t, cells);
        (void)json_array_append_new(all, json_pack("{s:s, s:s, s:s, s:b}", "class", name, "address",
                                                   address, "result", word, "pass", (int)good));
    }
    json_t *out = json_pack("{s:b, s:o}", "pass", (int)well, "probes", all);
    if (t == NULL)
        cli_print_json(out);
    else
        cli_table_print(t, stdout);
    json_decref(out);
    return well ? CLI_DONE : CLI_FAILED;
}

static int check(struct cli *c)
{
    struct destination reach;
    struct err e;
    const char *text = cli_value(c, "reach");
    if (text != NULL &&
        (destination_parse(&reach, text, &e) < 0 || reach.kind != DESTINATION_NETWORK ||
         reach.prefix != 32 || reach.any_port || reach.port_first != reach.port_last))
        return cli_usage(c, "--reach takes an address with a port: 203.0.113.7:443");
    struct buffer script;
    buffer_init(&script, SCRIPT_BYTES_MAX);
    json_t *answer = NULL;
    int code = CLI_FAILED;
    if (!script_make(&script, text != NULL ? &reach : NULL))
        cli_say("no memory");
    else
        code = cli_send(c, "POST", "/v1/run",
                        json_pack("{s:[s,s,s], s:s, s:s}", "command", "/bin/bash", "-c",
                                  script.data, "network", "egress", "timeout", RUN_TIMEOUT),
                        &answer);
    buffer_free(&script);
    if (code != CLI_DONE)
        return code;
    code = judge(c, cli_text(answer, "stdout"), text);
    if (code != CLI_DONE && cli_text(answer, "stderr")[0] != '\0')
        cli_say("the probe said: %.300s", cli_text(answer, "stderr"));
    json_decref(answer);
    return code;
}

static const struct cli_option check_options[] = {
    {0, "reach", "ADDRESS:PORT", "also require that this one is reached, as a control"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_network_check_command = {
    .name = "operator network check",
    .arguments = "",
    .summary = "prove by probing from inside what an instance with egress cannot reach",
    .text = "Starts a sandbox with network: {mode: egress} and connects from it to one address of "
            "each class\nthat is always denied. A line each; exit code 1 if one is not refused. "
            "What root's file permits\n(allow.destinations) is reported as it is found.",
    .options = check_options,
    .flags = CLI_API | CLI_JSON,
    .run = check,
};
