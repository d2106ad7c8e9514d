/* node/cli/cli.h - the frame of the command line: commands, their arguments, tables, exit codes.
 *
 * Each command is one constant struct cli_command in a file by subject (node/cli/status.c, node/cli/run.c, ...);
 * node/cli/cli.c dispatches and prints help. Thread: one. */
#ifndef SKERRY_NODE_CLI_CLI_H
#define SKERRY_NODE_CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "node/cli/client.h"

/* Stable: scripts rely on them. run and exec have docker's besides. */
enum cli_exit {
    CLI_DONE = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_NOT_FOUND = 3,
    CLI_UNREACHABLE = 4, /* no node */
    CLI_REFUSED = 5,     /* by authorization */
    CLI_RETRY = 6,       /* refused for now */
    CLI_TIMED_OUT = 124,
    CLI_SKERRY_FAILED = 125,
    CLI_NOT_EXECUTABLE = 126,
    CLI_NO_COMMAND = 127,
    CLI_SIGNAL = 128, /* + its number */
};

#define CLI_GIVEN_MAX 1024

struct cli_option {
    char letter;       /* 0: none */
    const char *name;  /* NULL ends the table */
    const char *value; /* what it takes, for --help: "FILE"; NULL: nothing */
    const char *help;
};

struct cli_args {
    struct {
        const struct cli_option *option;
        const char *value;
    } given[CLI_GIVEN_MAX];
    size_t given_count;
    const char **words; /* what is not a flag; points into argv */
    size_t word_count;
};

enum cli_flags {
    CLI_API = 1,        /* talks to a node: --addr, --token-file */
    CLI_JSON = 2,       /* --json */
    CLI_WORDS_LAST = 4, /* flags end at the first word: what follows is another's */
    CLI_RAW = 8,        /* all arguments are another program's, --help too */
};

struct cli;
struct cli_command {
    const char *name;      /* "status", "workload show" */
    const char *arguments; /* "WORKLOAD [PATH]", for help */
    const char *summary;   /* one line */
    const char *text;      /* further paragraphs, then examples */
    const struct cli_option *options;
    unsigned flags;
    size_t words_min, words_max; /* SIZE_MAX: any */
    int failure;                 /* exit code for Skerry's own failures; 0: by kind */
    int (*run)(struct cli *c);
};

/* The runner's ELF as main.c carries it. */
struct cli_embedded {
    const unsigned char *begin, *end;
};

struct cli {
    const struct cli_command *command;
    struct cli_args args;
    const struct cli_embedded *embedded;
    bool json;
    bool color;
    struct client *client; /* opened with the first call */
};

/* The whole program. */
int cli_main(int argc, char **argv, const struct cli_embedded *embedded);

/* --- arguments (node/cli/args.c) --- */
/* `tables` is ended by NULL. */
int cli_args_parse(struct cli_args *a, const struct cli_option *const *tables, int argc,
                   char **argv, bool words_last, struct err *e) ERR_CHECKED;
void cli_args_free(struct cli_args *a);
bool cli_has(const struct cli *c, const char *name);
/* The last value given, or NULL. */
const char *cli_value(const struct cli *c, const char *name);
/* The next value of a flag that may be repeated, from *position (begin with 0); NULL: no more. */
const char *cli_next(const struct cli *c, const char *name, size_t *position);

/* --- messages and exit codes (node/cli/cli.c) --- */
/* "skerry: text" on stderr. */
/* The `warning` of an answer, if it has one, on stderr. */
void cli_warning(const json_t *answer);
void cli_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Tells an error and gives the exit code for it. */
int cli_fail(const struct cli *c, const struct err *e);
/* A mistake in the arguments: CLI_USAGE, with a pointer to --help. */
int cli_usage(const struct cli *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Tells the problem of an answer that is no success. */
int cli_refused(const struct cli *c, const struct client_answer *answer);
enum cli_exit cli_exit_of_status(unsigned status);
enum cli_exit cli_exit_of_err(const struct err *e);

/* CLI_DONE for root, else CLI_REFUSED after telling why (node/up/up.c). */
int cli_need_sandboxes(const struct cli *c);

/* --- calls (node/cli/call.c) --- */
int cli_client(struct cli *c, struct client **out);
/* Asks; CLI_DONE and a 2xx answer that the caller frees, or the exit code after telling why. */
int cli_ask(struct cli *c, const struct client_request *request, struct client_answer *answer);
/* A GET whose answer is JSON; a reference in *out. */
int cli_get(struct cli *c, json_t **out, const char *path_format, ...)
    __attribute__((format(printf, 3, 4)));
/* With a JSON body (may be NULL, taken). `out` may be NULL. */
int cli_send(struct cli *c, const char *method, const char *path, json_t *body, json_t **out);
/* A whole instance id from a unique beginning of it. */
int cli_instance(struct cli *c, const char *text, char *out, size_t size);
/* Stops what runs of a workload in another version than this. */
int cli_stop_older(struct cli *c, const char *workload, int64_t version);
void cli_print_json(const json_t *value);

/* --- reading answers: missing and null members read as "" and 0 --- */
const char *cli_text(const json_t *object, const char *key);
int64_t cli_integer(const json_t *object, const char *key);
bool cli_truth(const json_t *object, const char *key);
double cli_number(const json_t *object, const char *key);

/* --- tables and units (node/cli/table.c) --- */
struct cli_table;
/* `heads` is ended by NULL; a head that begins with '>' is of a column aligned to the right. */
struct cli_table *cli_table_new(const char *const *heads);
/* One text a column, copied; control characters are replaced. */
void cli_table_row(struct cli_table *t, const char *const *cells);
/* Prints and frees. */
void cli_table_print(struct cli_table *t, FILE *out);

#define CLI_UNIT_SIZE 32
/* "210M", "4.0G", "12K". */
void cli_bytes(uint64_t bytes, char out[CLI_UNIT_SIZE]);
/* "0.4 ms", "12.0 s", "4m 12s", "3h 5m". */
void cli_duration(uint64_t us, char out[CLI_UNIT_SIZE]);
/* How long ago an RFC 3339 time is: "4m", "now", "-" for none. */
void cli_age(const char *rfc3339, uint64_t now_ms, char out[CLI_UNIT_SIZE]);
/* Wall-clock milliseconds of "2026-11-22T08:47:00.123Z"; 0 if it is none. */
uint64_t cli_time(const char *rfc3339);
/* Lengths of the shortest unique beginnings, at least 4. */
size_t cli_prefix_length(const char *const *ids, size_t count);

/* --- the commands --- */
extern const struct cli_command cli_serve_command, cli_runner_command, cli_up_command,
    cli_down_command, cli_status_command, cli_deploy_command, cli_workload_list_command,
    cli_workload_show_command, cli_workload_rm_command, cli_workload_rollback_command,
    cli_invoke_command, cli_run_command, cli_ps_command, cli_explain_command, cli_stop_command,
    cli_extend_command, cli_logs_command, cli_exec_command, cli_cp_command,
    cli_image_import_command, cli_image_list_command, cli_image_rm_command, cli_image_gc_command,
    cli_token_create_command, cli_token_list_command, cli_token_revoke_command, cli_events_command,
    cli_doctor_command, cli_version_command, cli_node_list_command, cli_node_show_command,
    cli_node_drain_command, cli_node_undrain_command, cli_raft_peers_command,
    cli_raft_transfer_command, cli_raft_remove_command, cli_node_remove_command,
    cli_keyring_list_command, cli_keyring_add_command, cli_keyring_use_command,
    cli_keyring_remove_command, cli_raft_snapshot_command, cli_raft_restore_command,
    cli_raft_recover_command, cli_ssh_key_add_command, cli_ssh_key_list_command,
    cli_ssh_key_remove_command, cli_domain_add_command, cli_domain_list_command,
    cli_domain_remove_command, cli_ticket_command, cli_ssh_command, cli_proxy_command,
    cli_network_check_command;

#endif
