/* skerry ssh-key add, list and rm. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/control/ssh_key.h"

static int read_file(const char *path, char *out, size_t size, size_t *length, struct err *e)
{
    bool standard = strcmp(path, "-") == 0;
    FILE *f = standard ? stdin : fopen(path, "re");
    if (f == NULL)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s", path);
    *length = fread(out, 1, size, f);
    bool failed = ferror(f) != 0;
    if (!standard)
        (void)fclose(f);
    return failed ? err_set(e, ERR_IO, "%s cannot be read", path) : 0;
}

static int add(struct cli *c)
{
    char text[SSH_KEY_TEXT_MAX + 1];
    size_t length = 0;
    struct err e = {0};
    struct registry_ssh_key key;
    const char *path = c->args.words[0];
    const char *workload = cli_value(c, "workload");
    const char *name = cli_value(c, "name");
    int rc = read_file(path, text, sizeof text, &length, &e);
    if (rc == 0) {
        rc = ssh_key_parse(&key, text, length, &e);
        if (rc < 0)
            err_wrap(&e, "%s", path);
    }
    if (rc < 0)
        return cli_fail(c, &e);
    json_t *body = json_pack("{s:s%}", "key", text, length), *added = NULL;
    if (body == NULL)
        return cli_usage(c, "%s: its comment is no text", path);
    if (workload != NULL)
        json_object_set_new(body, "workload", json_string(workload));
    if (name != NULL)
        json_object_set_new(body, "name", json_string(name));
    int code = cli_send(c, "POST", "/v1/ssh-keys", body, &added);
    if (code != CLI_DONE)
        return code;
    if (c->json)
        cli_print_json(added);
    else
        printf("%s  %s may join %s%s\n", cli_text(added, "id"), cli_text(added, "fingerprint"),
               workload == NULL ? "every workload" : "workload ", workload == NULL ? "" : workload);
    json_decref(added);
    return CLI_DONE;
}

static const struct cli_option add_options[] = {
    {0, "workload", "NAME", "for this workload and its instances only; else for all"},
    {0, "name", "TEXT", "for people, instead of the key's comment"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_ssh_key_add_command = {
    .name = "ssh-key add",
    .arguments = "FILE|-",
    .summary = "lets a public key join over SSH",
    .text = "FILE is what ssh-keygen wrote beside the private key:\n\n"
            "  skerry ssh-key add --workload chat ~/.ssh/id_ed25519.pub\n"
            "  ssh -p 2222 chat@127.0.0.1\n\n"
            "The address is gateway.ssh of any node. The name is a workload, WORKLOAD+KEY, or an\n"
            "instance's whole id.",
    .options = add_options,
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = 1,
    .run = add,
};

static int list(struct cli *c)
{
    json_t *keys = NULL;
    int code = cli_get(c, &keys, "/v1/ssh-keys");
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(keys);
        json_decref(keys);
        return CLI_DONE;
    }
    static const char *const heads[] = {"KEY",         "NAME", "WORKLOAD", "TYPE",
                                        "FINGERPRINT", ">AGE", NULL};
    struct cli_table *t = cli_table_new(heads);
    uint64_t now = clock_wall_ms();
    json_t *key;
    size_t i;
    json_array_foreach(keys, i, key)
    {
        char age[CLI_UNIT_SIZE];
        const char *workload = cli_text(key, "workload");
        cli_age(cli_text(key, "created_at"), now, age);
        const char *cells[] = {cli_text(key, "id"),
                               cli_text(key, "name"),
                               workload[0] == '\0' ? "(all)" : workload,
                               cli_text(key, "type"),
                               cli_text(key, "fingerprint"),
                               age};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
    json_decref(keys);
    return CLI_DONE;
}

const struct cli_command cli_ssh_key_list_command = {
    .name = "ssh-key list",
    .arguments = "",
    .summary = "public keys that may join over SSH",
    .flags = CLI_API | CLI_JSON,
    .run = list,
};

static int rm(struct cli *c)
{
    char id[256], path[320];
    if (!client_encode(id, sizeof id, c->args.words[0]))
        return cli_usage(c, "%.40s...: no key's id is so long", c->args.words[0]);
    (void)text_format(path, sizeof path, "/v1/ssh-keys/%s", id);
    int code = cli_send(c, "DELETE", path, NULL, NULL);
    if (code == CLI_DONE)
        printf("%s  removed\n", c->args.words[0]);
    return code;
}

const struct cli_command cli_ssh_key_remove_command = {
    .name = "ssh-key rm",
    .arguments = "ID",
    .summary = "a public key joins no more",
    .text = "ID is the one that `skerry ssh-key list` shows. Sessions of that key end within\n"
            "seconds.",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = rm,
};
