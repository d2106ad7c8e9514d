/* Dispatch, help, and how errors are told. */
#include "node/cli/cli.h"

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

static const struct cli_command *const commands[] = {
    &cli_serve_command,
    &cli_runner_command,
    &cli_up_command,
    &cli_down_command,
    &cli_status_command,
    &cli_deploy_command,
    &cli_workload_list_command,
    &cli_workload_show_command,
    &cli_workload_rm_command,
    &cli_workload_rollback_command,
    &cli_invoke_command,
    &cli_run_command,
    &cli_ps_command,
    &cli_explain_command,
    &cli_stop_command,
    &cli_extend_command,
    &cli_logs_command,
    &cli_exec_command,
    &cli_ssh_command,
    &cli_proxy_command,
    &cli_cp_command,
    &cli_image_import_command,
    &cli_image_list_command,
    &cli_image_rm_command,
    &cli_image_gc_command,
    &cli_token_create_command,
    &cli_token_list_command,
    &cli_token_revoke_command,
    &cli_domain_add_command,
    &cli_domain_list_command,
    &cli_domain_remove_command,
    &cli_ticket_command,
    &cli_ssh_key_add_command,
    &cli_ssh_key_list_command,
    &cli_ssh_key_remove_command,
    &cli_node_list_command,
    &cli_node_show_command,
    &cli_node_drain_command,
    &cli_node_undrain_command,
    &cli_node_remove_command,
    &cli_events_command,
    &cli_network_check_command,
    &cli_raft_peers_command,
    &cli_raft_transfer_command,
    &cli_raft_remove_command,
    &cli_keyring_list_command,
    &cli_keyring_add_command,
    &cli_keyring_use_command,
    &cli_keyring_remove_command,
    &cli_raft_snapshot_command,
    &cli_raft_restore_command,
    &cli_raft_recover_command,
    &cli_doctor_command,
    &cli_version_command,
};

static const struct cli_option help_options[] = {
    {'h', "help", NULL, "this text"},
    {0, NULL, NULL, NULL},
};
static const struct cli_option api_options[] = {
    {0, "addr", "ADDR", "the node: unix:PATH, HOST:PORT or http://HOST:PORT"},
    {0, "token-file", "FILE", "a file that holds a token"},
    {0, NULL, NULL, NULL},
};
static const struct cli_option json_options[] = {
    {0, "json", NULL, "for programs"},
    {0, NULL, NULL, NULL},
};
static const struct cli_option no_options[] = {{0, NULL, NULL, NULL}};

/* --- messages --------------------------------------------------------------------------------- */

void cli_say(const char *format, ...)
{
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    /* Details may come from code inside: no escape sequence of its own reaches the terminal. */
    for (char *p = text; *p != '\0'; p++) {
        if (((unsigned char)*p < ' ' && *p != '\n') || *p == 0x7f)
            *p = '?';
    }
    fprintf(stderr, "skerry: %s\n", text);
}

void cli_warning(const json_t *answer)
{
    const char *warning = cli_text(answer, "warning");
    if (warning[0] != '\0')
        cli_say("%s: warning: %s",
                cli_text(answer, json_object_get(answer, "id") != NULL ? "id" : "name"), warning);
}

static int own_failure(const struct cli *c, int code)
{
    return c->command != NULL && c->command->failure != 0 ? c->command->failure : code;
}

enum cli_exit cli_exit_of_err(const struct err *e)
{
    switch (e->code) {
    case ERR_NOT_FOUND:
        return CLI_NOT_FOUND;
    case ERR_UNAVAILABLE:
        return CLI_UNREACHABLE;
    case ERR_DENIED:
        return CLI_REFUSED;
    default:
        return CLI_FAILED;
    }
}

enum cli_exit cli_exit_of_status(unsigned status)
{
    switch (status) {
    case 401:
    case 403:
        return CLI_REFUSED;
    case 404:
    case 410:
        return CLI_NOT_FOUND;
    case 429:
    case 503:
        return CLI_RETRY;
    default:
        return status / 100 == 2 ? CLI_DONE : CLI_FAILED;
    }
}

int cli_fail(const struct cli *c, const struct err *e)
{
    cli_say("%s", e->msg);
    if (e->code == ERR_UNAVAILABLE && c->client != NULL)
        fprintf(stderr, "        Is it running? `skerry up` starts one; --addr or SKERRY_ADDR "
                        "names another.\n");
    return own_failure(c, (int)cli_exit_of_err(e));
}

int cli_usage(const struct cli *c, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const char *name = c->command == NULL ? "" : c->command->name;
    cli_say("%s%s%s", name, *name == '\0' ? "" : ": ", text);
    fprintf(stderr, "        See: skerry %s%s--help\n", name, *name == '\0' ? "" : " ");
    return own_failure(c, CLI_USAGE);
}

int cli_refused(const struct cli *c, const struct client_answer *answer)
{
    json_t *problem = client_json(answer);
    const char *code = cli_text(problem, "code");
    const char *detail = cli_text(problem, "detail");
    if (detail[0] == '\0')
        detail = cli_text(problem, "title");
    if (code[0] != '\0')
        cli_say("%u %s: %s", answer->status, code, detail);
    else
        cli_say("the node answered with status %u", answer->status);
    char retry[32];
    if (client_header(answer, "Retry-After", retry, sizeof retry))
        fprintf(stderr, "        Try again in %s s.\n", retry);
    if (answer->status == 401)
        fprintf(stderr,
                "        Give a token with SKERRY_TOKEN or --token-file; root makes one with "
                "`skerry token create`.\n");
    json_decref(problem);
    return own_failure(c, (int)cli_exit_of_status(answer->status));
}

/* --- help ------------------------------------------------------------------------------------- */

static void print_options(const struct cli_option *options)
{
    for (const struct cli_option *o = options; o->name != NULL; o++) {
        char left[64];
        char letter[8] = "    ";
        if (o->letter != 0)
            (void)text_format(letter, sizeof letter, "-%c, ", o->letter);
        (void)text_format(left, sizeof left, "%s--%s%s%s", letter, o->name,
                          o->value != NULL ? " " : "", o->value != NULL ? o->value : "");
        printf("  %-26s %s\n", left, o->help);
    }
}

static int help_command(const struct cli_command *command)
{
    printf("skerry %s%s%s\n\n%s\n", command->name, command->arguments[0] != '\0' ? " " : "",
           command->arguments, command->summary);
    if (command->text != NULL)
        printf("\n%s\n", command->text);
    printf("\nFlags:\n");
    if (command->options != NULL)
        print_options(command->options);
    if (command->flags & CLI_JSON)
        print_options(json_options);
    if (command->flags & CLI_API)
        print_options(api_options);
    print_options(help_options);
    return CLI_DONE;
}

static int help_all(FILE *out)
{
    fprintf(out, "Skerry runs untrusted code: a request starts an instance of a workload, later "
                 "requests join it.\n\n");
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
        fprintf(out, "  %-24s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(
        out,
        "\n`skerry COMMAND --help` tells more. Address: --addr or SKERRY_ADDR, else a node of "
        "yours, else\n"
        "%s. Token: --token-file or SKERRY_TOKEN. Exit codes: 0 done, 1 failed,\n"
        "2 usage, 3 not found, 4 no node reachable, 5 refused (auth), 6 refused for now (retry).\n",
        CLIENT_ADDRESS_DEFAULT);
    return out == stdout ? CLI_DONE : CLI_USAGE;
}

/* --- dispatch --------------------------------------------------------------------------------- */

/* Finds the command that the words name, at most three; *used is how many they are. */
static const struct cli_command *find_command(int argc, char **argv, int *used)
{
    for (int words = argc < 3 ? argc : 3; words > 0; words--) {
        char name[128] = "";
        for (int i = 0; i < words; i++) {
            size_t length = strlen(name);
            (void)text_format(name + length, sizeof name - length, "%s%s", i == 0 ? "" : " ",
                              argv[i]);
        }
        *used = words;
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
            if (strcmp(commands[i]->name, name) == 0)
                return commands[i];
    }
    return NULL;
}

/* "skerry workload", "skerry image --help": the verbs of a noun; false if it is no noun. */
static bool help_noun(const char *noun, FILE *out)
{
    size_t length = strlen(noun);
    bool found = false;
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strncmp(commands[i]->name, noun, length) != 0 || commands[i]->name[length] != ' ')
            continue;
        fprintf(out, "  skerry %-20s %s\n", commands[i]->name, commands[i]->summary);
        found = true;
    }
    return found;
}

static int no_command(struct cli *c, int argc, char **argv)
{
    bool help = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    if (help_noun(argv[0], help || argc == 1 ? stdout : stderr)) {
        if (help)
            return CLI_DONE;
        return argc > 1 ? cli_usage(c, "%s %s: unknown command", argv[0], argv[1]) : CLI_USAGE;
    }
    return cli_usage(c, "%.80s: unknown command", argv[0]);
}

static int run_command(struct cli *c, int argc, char **argv)
{
    const struct cli_command *command = c->command;
    const struct cli_option *tables[] = {
        command->options != NULL ? command->options : no_options,
        command->flags & CLI_JSON ? json_options : no_options,
        command->flags & CLI_API ? api_options : no_options,
        help_options,
        NULL,
    };
    struct err e = {0};
    if ((command->flags & CLI_RAW) != 0) {
        c->args.words = (const char **)argv;
        c->args.word_count = (size_t)argc;
        return command->run(c);
    }
    if (cli_args_parse(&c->args, tables, argc, argv, (command->flags & CLI_WORDS_LAST) != 0, &e) !=
        0)
        return cli_usage(c, "%s", e.msg);
    int code;
    if (cli_has(c, "help"))
        code = help_command(command);
    else if (c->args.word_count < command->words_min)
        code = cli_usage(c, "it takes %s", command->arguments);
    else if (c->args.word_count > command->words_max)
        code = cli_usage(c, "%s: one argument too many", c->args.words[command->words_max]);
    else {
        c->json = cli_has(c, "json");
        code = command->run(c);
    }
    client_close(c->client);
    cli_args_free(&c->args);
    return code;
}

int cli_main(int argc, char **argv, const struct cli_embedded *embedded)
{
    const char *no_color = getenv("NO_COLOR");
    struct cli c = {.embedded = embedded,
                    .color = isatty(STDOUT_FILENO) && (no_color == NULL || no_color[0] == '\0')};
    if (argc < 2)
        return help_all(stderr);
    argc--;
    argv++;
    char version[] = "version";
    if (strcmp(argv[0], "--version") == 0)
        argv[0] = version;
    if (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0 ||
        (strcmp(argv[0], "help") == 0 && argc == 1))
        return help_all(stdout);
    bool help = strcmp(argv[0], "help") == 0;
    argc -= help;
    argv += help;
    int used = 0;
    c.command = find_command(argc, argv, &used);
    if (c.command == NULL && help && help_noun(argv[0], stdout))
        return CLI_DONE;
    if (c.command == NULL)
        return no_command(&c, argc, argv);
    if (help)
        return help_command(c.command);
    int code = run_command(&c, argc - used, argv + used);
    if (fflush(stdout) != 0 && code == CLI_DONE)
        code = CLI_FAILED;
    return code;
}
