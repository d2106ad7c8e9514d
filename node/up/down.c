/* skerry down: ends what `skerry up` started. */
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fields.h"
#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/up/cluster.h"
#include "sandbox/shared/userns.h"

enum { DRAIN_MS = 30000 };

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(path);
}

static int remove_folders(const struct up_cluster *c)
{
    for (unsigned i = 0; i < c->count; i++) {
        const char *directory = c->members[i].node.directory;
        if (access(directory, F_OK) == 0 &&
            nftw(directory, remove_entry, 32, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) != 0) {
            cli_say("remove %s: %s", directory, strerror(errno));
            return CLI_FAILED;
        }
        up_forget_claims(&c->members[i].node);
    }
    return CLI_DONE;
}

/* Files of images may belong to the user's subordinate ids, over which it has power inside only. */
static int remove_data(const struct up_cluster *c)
{
    if (c->members[0].node.root)
        return remove_folders(c);
    pid_t child = fork();
    if (child == 0) {
        enum userns_ids ids;
        char lack[256];
        struct err e;
        if (userns_enter(&ids, lack, sizeof lack, &e) != 0)
            cli_say("%s", e.msg);
        _exit(remove_folders(c));
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status)
               ? WEXITSTATUS(status)
               : CLI_FAILED;
}

static int down(struct cli *c)
{
    struct up_cluster cluster;
    struct err e = {0};
    uint64_t drain_ms = DRAIN_MS;
    const char *drain = cli_value(c, "timeout");
    int code = cli_need_sandboxes(c);
    if (code != CLI_DONE)
        return code;
    if (drain != NULL &&
        (duration_parse(&drain_ms, drain, false, &e) != 0 || drain_ms > 24 * 3600 * 1000ull))
        return cli_usage(c, "--timeout: a duration up to 24h");
    struct up_options options = {.dir = cli_value(c, "dir"), .embedded = c->embedded};
    if (up_cluster_find(&cluster, &options, &e) != 0)
        return cli_fail(c, &e);
    char base[UP_PATH_SIZE];
    (void)text_copy(base, sizeof base, cluster.members[0].node.directory);
    *strrchr(base, '/') = '\0';
    if (access(cluster.members[0].node.directory, F_OK) < 0) {
        printf("nothing is there: %s\n", base);
        return CLI_DONE;
    }
    code = up_cluster_end(&cluster, (unsigned)drain_ms, false);
    if (code != CLI_DONE)
        return code;
    if (!cli_has(c, "delete")) {
        printf("down; the data is kept in %s (skerry down --delete removes it)\n", base);
        return CLI_DONE;
    }
    code = remove_data(&cluster);
    if (code == CLI_DONE)
        printf("down; the data in %s is removed\n", base);
    return code;
}

static const struct cli_option down_options[] = {
    {0, "dir", "DIR", "as given to up"},
    {0, "timeout", "T", "how long joins may take to finish (default 30s)"},
    {0, "delete", NULL, "remove the data too"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_down_command = {
    .name = "down",
    .arguments = "[--dir DIR]",
    .summary = "stop what `skerry up` started, and all its instances",
    .text = "Joins may finish first. No process, control group or mount is left; the data is kept.",
    .options = down_options,
    .run = down,
};
