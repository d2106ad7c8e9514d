/* skerry operator raft snapshot, restore and recover: the registry as a file, and out of what is left. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/lock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/cluster/membership.h"
#include "raft/registry.h"

/* --- snapshot --------------------------------------------------------------------------------- */

static int write_piece(void *user, const void *data, size_t length, struct err *e)
{
    const int *fd = user;
    for (const char *at = data; length > 0;) {
        ssize_t n = write(*fd, at, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_sys(e, ERR_IO, errno, "write the snapshot");
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

static int snapshot(struct cli *c)
{
    const char *path = c->args.words[0];
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        cli_say("%s: %s", path, strerror(errno));
        return CLI_FAILED;
    }
    struct client_request request = {
        .path = "/v1/operator/raft/snapshot", .sink = write_piece, .user = &fd};
    struct client_answer answer;
    int code = cli_ask(c, &request, &answer);
    if (code == CLI_DONE && fsync(fd) != 0) {
        cli_say("%s: %s", path, strerror(errno));
        code = CLI_FAILED;
    }
    if (code != CLI_DONE) {
        (void)unlink(path);
        return code;
    }
    client_answer_free(&answer);
    printf("%s  saved; it holds gossip's keys and hashes of tokens: keep it private\n", path);
    return CLI_DONE;
}

const struct cli_command cli_raft_snapshot_command = {
    .name = "operator raft snapshot",
    .arguments = "FILE",
    .summary = "save the registry to a new file, as the node that is asked has it",
    .text =
        "What a cluster is made of anew with `skerry operator raft restore`. Instances and images "
        "are not\n"
        "in it.\n\n"
        "  skerry operator raft snapshot registry.$(date +%F)",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = snapshot,
};

/* --- offline ---------------------------------------------------------------------------------- */

/* What is written belongs to whom the folder belongs to, which is serve's user. */
static int become_owner(const char *data, struct err *e)
{
    struct stat st;
    if (stat(data, &st) != 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "data folder %s", data);
    if (geteuid() != 0 || st.st_uid == 0)
        return 0;
    if (setgroups(0, NULL) != 0 || setresgid(st.st_gid, st.st_gid, st.st_gid) != 0 ||
        setresuid(st.st_uid, st.st_uid, st.st_uid) != 0)
        return err_sys(e, ERR_IO, errno, "become uid %u, which has %s", (unsigned)st.st_uid, data);
    return 0;
}

/* No serve runs on `data` as long as *out_lock is open; *out_id is the node's. */
static int open_data(const char *data, int *out_lock, node_id *out_id, struct err *e)
{
    struct membership membership;
    char path[1100];
    int rc = become_owner(data, e);
    if (rc != 0)
        return rc;
    if (!text_format(path, sizeof path, "%s/lock", data))
        return err_set(e, ERR_INVALID, "data folder %.60s...: its path is too long", data);
    CLEANUP_FD int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0)
        return err_sys(e, ERR_IO, errno, "open %s", path);
    if (lock_file(lock) != 0)
        return err_set(e, ERR_CONFLICT, "a skerry serve uses %s: stop it first", data);
    rc = membership_load(&membership, data, e);
    if (rc == -ERR_NOT_FOUND)
        return err_set(e, ERR_NOT_FOUND, "%s holds no node: there is no %s in it", data,
                       MEMBERSHIP_FILE);
    if (rc != 0)
        return rc;
    *out_id = membership.id;
    membership_wipe(&membership);
    *out_lock = steal_fd(&lock);
    return 0;
}

/* CLI_DONE when the operator has said yes. */
static int need_yes(const struct cli *c, const char *what)
{
    if (cli_has(c, "yes"))
        return CLI_DONE;
    cli_say("%s\n        Nothing was done. Say --yes to do it.", what);
    return CLI_USAGE;
}

/* A stopped node's folder, which a command works on. */
struct offline {
    const char *data;
    int lock; /* -1: not opened */
    node_id id;
    char directory[1100]; /* of its registry */
};

/* CLI_DONE when the folder was named and the operator has said yes to `what`. */
static int offline_begin(struct cli *c, struct offline *o, const char *what)
{
    *o = (struct offline){.data = cli_value(c, "data"), .lock = -1};
    if (o->data == NULL)
        return cli_usage(c, "--data DIR: the data folder of a stopped node, as in its skerry.yaml");
    int code = need_yes(c, what);
    if (code == CLI_DONE)
        log_setup(LOG_LEVEL_WARN, LOG_FORMAT_TEXT);
    return code;
}

/* The lock is held to the end of the process's life. */
static int offline_open(struct offline *o, struct err *e)
{
    (void)text_format(o->directory, sizeof o->directory, "%s/raft", o->data);
    return open_data(o->data, &o->lock, &o->id, e);
}

static int recover(struct cli *c)
{
    struct offline o;
    char told[4096] = "";
    struct err e = {0};
    int code =
        offline_begin(c, &o,
                      "recover makes this node a cluster of its own out of what it has. What the "
                      "others acknowledged and it had\n        not heard of is lost; they must be "
                      "off for good, or wiped: two clusters would run the same keys.");
    if (code != CLI_DONE)
        return code;
    if (offline_open(&o, &e) != 0 ||
        registry_recover(o.directory, o.id, told, sizeof told, &e) != 0)
        return cli_fail(c, &e);
    printf("%snow start this node: it leads a cluster of one; let the others join it anew\n", told);
    return CLI_DONE;
}

static const struct cli_option offline_options[] = {
    {0, "data", "DIR", "the data folder of the stopped node"},
    {0, "yes", NULL, "do it"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_raft_recover_command = {
    .name = "operator raft recover",
    .arguments = "--data DIR --yes",
    .summary = "a working cluster again out of one survivor, when a majority is lost for good",
    .text =
        "On the survivor with the highest commit index, stopped; the others must be off for good. "
        "Says what\n"
        "may be lost, and keeps the old data beside the new.\n\n"
        "  systemctl stop skerry\n"
        "  skerry operator raft recover --data /var/lib/skerry --yes",
    .options = offline_options,
    .run = recover,
};

static int restore(struct cli *c)
{
    const char *path = c->args.words[0];
    struct offline o;
    struct err e = {0};
    int code = offline_begin(
        c, &o,
        "restore gives this node the registry of the file, as a cluster of its own. "
        "All that came after the file is lost;\n        nodes that are to be in it join anew.");
    if (code != CLI_DONE)
        return code;
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC); /* before this is another user */
    if (fd < 0) {
        cli_say("%s: %s", path, strerror(errno));
        return CLI_NOT_FOUND;
    }
    if (offline_open(&o, &e) != 0 || registry_snapshot_load(o.directory, o.id, fd, &e) != 0)
        return cli_fail(c, &e);
    printf("restored to %s; now start this node: it leads a cluster of one\n", o.data);
    return CLI_DONE;
}

const struct cli_command cli_raft_restore_command = {
    .name = "operator raft restore",
    .arguments = "FILE --data DIR --yes",
    .summary = "give a stopped node the registry of a snapshot",
    .text = "DIR/raft must be empty or missing: move the old one away first.\n\n"
            "  skerry operator raft restore registry.2026-11-28 --data /var/lib/skerry --yes",
    .options = offline_options,
    .words_min = 1,
    .words_max = 1,
    .run = restore,
};
