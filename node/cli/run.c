/* skerry run, exec and ssh: a command's own streams and exit code pass through. */
#include <stdlib.h>
#include <string.h>

#include "base/fields.h"
#include "base/id.h"
#include "base/memory.h"
#include "gateway/ssh.h"
#include "node/cli/cli.h"
#include "node/cli/session.h"
#include "node/cli/upload.h"

static int add_words(json_t *spec, const char *const *words, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        if (json_array_append_new(list, json_string(words[i])) != 0) {
            json_decref(list);
            return -1; /* not UTF-8 */
        }
    }
    return json_object_set_new(spec, "command", list);
}

/* -e K=V, and -e K for a variable of ours. */
static int add_environment(struct cli *c, json_t *spec)
{
    json_t *environment = json_object();
    const char *text;
    size_t position = 0;
    while ((text = cli_next(c, "env", &position)) != NULL) {
        const char *equals = strchr(text, '=');
        const char *value = equals != NULL ? equals + 1 : getenv(text);
        CLEANUP_FREE char *name =
            equals != NULL ? strndup(text, (size_t)(equals - text)) : strdup(text);
        if (value == NULL)
            continue;
        if (name == NULL || name[0] == '\0' ||
            json_object_set_new(environment, name, json_string(value)) != 0) {
            json_decref(environment);
            return cli_usage(c, "-e %.80s: write NAME=VALUE", text);
        }
    }
    json_object_set_new(spec, "env", environment);
    return CLI_DONE;
}

static void add_text(const struct cli *c, json_t *object, const char *flag, const char *key)
{
    const char *value = cli_value(c, flag);
    if (value != NULL)
        json_object_set_new(object, key, json_string(value));
}

static int add_common(struct cli *c, json_t *spec, const char *const *words, size_t count)
{
    if (add_words(spec, words, count) != 0)
        return cli_usage(c, "the command is not UTF-8");
    add_text(c, spec, "user", "user");
    add_text(c, spec, "timeout", "timeout");
    struct err e = {0};
    uint64_t ms;
    const char *timeout = cli_value(c, "timeout");
    if (timeout != NULL && duration_parse(&ms, timeout, false, &e) != 0)
        return cli_usage(c, "--timeout: %s", e.msg);
    if (cli_has(c, "tty") && !cli_session_terminal(spec))
        return cli_usage(c, "-t: stdin is no terminal");
    return add_environment(c, spec);
}

/* --- run -------------------------------------------------------------------------------------- */

static int add_limits(struct cli *c, json_t *spec)
{
    json_t *limits = json_object();
    struct err e = {0};
    uint64_t n;
    int code = CLI_DONE;
    const char *memory = cli_value(c, "memory"), *disk = cli_value(c, "disk");
    const char *cpus = cli_value(c, "cpus"), *pids = cli_value(c, "pids");
    const char *io = cli_value(c, "io");
    if (memory != NULL && bytes_parse(&n, memory, &e) != 0)
        code = cli_usage(c, "--memory: %s", e.msg);
    else if (disk != NULL && bytes_parse(&n, disk, &e) != 0)
        code = cli_usage(c, "--disk: %s", e.msg);
    else if (io != NULL && bytes_parse(&n, io, &e) != 0)
        code = cli_usage(c, "--io: %s", e.msg);
    else if (cpus != NULL && decimal_parse(&n, cpus, &e) != 0)
        code = cli_usage(c, "--cpus: %s", e.msg);
    else if (pids != NULL && (pids[0] == '\0' || strspn(pids, "0123456789") != strlen(pids)))
        code = cli_usage(c, "--pids: %.40s is no number", pids);
    add_text(c, limits, "memory", "memory");
    add_text(c, limits, "disk", "disk");
    add_text(c, limits, "io", "io");
    add_text(c, limits, "cpus", "cpus");
    if (pids != NULL)
        json_object_set_new(limits, "pids", json_integer(strtoll(pids, NULL, 10)));
    if (json_object_size(limits) > 0)
        json_object_set(spec, "limits", limits);
    json_decref(limits);
    return code;
}

static int run(struct cli *c)
{
    json_t *spec = json_object();
    int code = add_common(c, spec, c->args.words, c->args.word_count);
    if (code == CLI_DONE)
        code = add_limits(c, spec);
    add_text(c, spec, "image", "image");
    add_text(c, spec, "network", "network");
    if (cli_has(c, "read-only"))
        json_object_set_new(spec, "read_only", json_true());
    char digest[128];
    const char *source = cli_value(c, "source");
    if (code == CLI_DONE && source != NULL) {
        code = cli_upload_source(c, source, digest, sizeof digest);
        if (code == CLI_DONE)
            json_object_set_new(spec, "source", json_string(digest));
    }
    if (code != CLI_DONE) {
        json_decref(spec);
        return code;
    }
    return cli_session(c, "/v1/run", spec, cli_has(c, "tty"));
}

static const struct cli_option run_options[] = {
    {'i', "interactive", NULL, "give it stdin even if that is a terminal"},
    {'t', "tty", NULL, "a terminal"},
    {'e', "env", "K=V", "an environment variable; K alone: ours"},
    {0, "image", "NAME", "an image (default host)"},
    {0, "source", "DIR", "a folder or file, read-only at /app"},
    {0, "timeout", "T", "it is ended after this; exit code 124"},
    {0, "memory", "SIZE", "limit: 128M"},
    {0, "cpus", "N", "limit: 0.5"},
    {0, "pids", "N", "limit of processes and threads"},
    {0, "disk", "SIZE", "limit of what it may write"},
    {0, "io", "SIZE", "limit of what is read from a disk, a second"},
    {0, "network", "MODE", "none (default) or egress"},
    {0, "user", "UID[:GID]", "inside"},
    {0, "read-only", NULL, "the root file system"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_run_command = {
    .name = "run",
    .arguments = "[FLAGS] -- CMD...",
    .summary = "one command in a fresh sandbox",
    .text =
        "stdin, stdout, stderr and the exit code pass through. Exit codes as docker's: the "
        "command's\n"
        "own, 124 timeout, 125 Skerry failed, 126 not executable, 127 not found, 128 + signal.\n"
        "Leaving it ends the whole sandbox.\n\n"
        "  echo hi | skerry run -- cat\n"
        "  skerry run --timeout 1s -- sleep 9\n"
        "  skerry run --source ./judge --memory 64M -- python3 main.py < input.txt\n"
        "  skerry run -it -- bash",
    .options = run_options,
    .flags = CLI_API | CLI_WORDS_LAST,
    .words_min = 1,
    .words_max = SIZE_MAX,
    .failure = CLI_SKERRY_FAILED,
    .run = run,
};

/* --- exec ------------------------------------------------------------------------------------- */

static int exec_words(struct cli *c, json_t *spec, const char *const *words, size_t count, bool tty)
{
    char id[INSTANCE_ID_LENGTH_MAX + 1], path[128];
    int code = add_common(c, spec, words, count);
    json_t *environment = json_object_get(spec, "env");
    const char *kind = tty ? getenv("TERM") : NULL;
    if (code == CLI_DONE && kind != NULL && json_object_get(environment, "TERM") == NULL)
        (void)json_object_set_new(environment, "TERM", json_string(kind)); /* not if not UTF-8 */
    if (code == CLI_DONE)
        code = cli_instance(c, c->args.words[0], id, sizeof id);
    if (code != CLI_DONE) {
        json_decref(spec);
        return code;
    }
    (void)text_format(path, sizeof path, "/v1/instances/%s/exec", id);
    return cli_session(c, path, spec, tty);
}

static int exec(struct cli *c)
{
    return exec_words(c, json_object(), c->args.words + 1, c->args.word_count - 1,
                      cli_has(c, "tty"));
}

static const struct cli_option exec_options[] = {
    {'i', "interactive", NULL, "give it stdin even if that is a terminal"},
    {'t', "tty", NULL, "a terminal"},
    {'e', "env", "K=V", "an environment variable; K alone: ours"},
    {0, "timeout", "T", "it is ended after this; exit code 124"},
    {0, "user", "UID[:GID]", "inside (default: the instance's own)"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_exec_command = {
    .name = "exec",
    .arguments = "[FLAGS] ID -- CMD...",
    .summary = "a command in a running instance",
    .text = "Counts as a joiner while it runs. Exit codes as `skerry run`.\n\n"
            "  skerry exec 7k3q -- ps aux\n"
            "  skerry exec -it 7k3q -- bash",
    .options = exec_options,
    .flags = CLI_API | CLI_WORDS_LAST,
    .words_min = 2,
    .words_max = SIZE_MAX,
    .failure = CLI_SKERRY_FAILED,
    .run = exec,
};

/* --- ssh ---------------------------------------------------------------------------------------- */

/* As exec -it of a shell; without a terminal here there is none inside, as with OpenSSH's client. */
static int ssh(struct cli *c)
{
    static const char *const shell[] = {"/bin/sh", "-c", SSH_SHELL};
    json_t *spec = json_object();
    bool tty = cli_session_terminal(spec);
    return exec_words(c, spec, shell, ARRAY_SIZE(shell), tty);
}

static const struct cli_option ssh_options[] = {
    {'e', "env", "K=V", "an environment variable; K alone: ours"},
    {0, "user", "UID[:GID]", "inside (default: the instance's own)"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_ssh_command = {
    .name = "ssh",
    .arguments = "[FLAGS] ID",
    .summary = "a shell in a running instance",
    .text = "bash where the image has it, else sh; `skerry exec -it ID` of it. It needs no key: "
            "the token, or the\n"
            "unix socket, is what lets you in. Without a terminal it reads commands from stdin. "
            "Exit codes as\n"
            "`skerry run`: the shell's own, 125 Skerry failed, 128 + signal.\n\n"
            "  skerry ssh 7k3q\n"
            "  echo 'ps aux' | skerry ssh 7k3q",
    .options = ssh_options,
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .failure = CLI_SKERRY_FAILED,
    .run = ssh,
};
