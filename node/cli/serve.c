/* skerry serve, runner and version: what becomes a daemon, and what it is. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/config.h"
#include "node/node.h"

/* --- serve ------------------------------------------------------------------------------------ */

static const struct cli_option serve_options[] = {
    {'c', "config", "FILE", "the configuration (default " CONFIG_PATH_DEFAULT ", may be missing)"},
    {0, "name", "NAME", "of this node"},
    {0, "bind", "ADDR", "for other nodes, private"},
    {0, "advertise", "ADDR", "as other nodes reach it"},
    {0, "http", "ADDR,...", "of the gateway"},
    {0, "api", "ADDR", "of the API, or none"},
    {0, "data", "DIR", "the folder of the registry"},
    {0, "bootstrap", NULL, "make a new cluster if DIR holds none"},
    {0, "peers", "ADDR,...", "nodes to join"},
    {0, "token-file", "FILE", "a join token"},
    {0, NULL, NULL, NULL},
};

static int serve_configure(struct cli *c, struct config *config, struct err *e)
{
    const char *path = cli_value(c, "config");
    int rc = config_load(config, path == NULL ? CONFIG_PATH_DEFAULT : path, e);
    if (rc == -ERR_NOT_FOUND && path == NULL)
        rc = config_defaults(config, e);
    if (rc != 0)
        return rc;
    for (size_t i = 0; rc == 0 && i < c->args.given_count; i++) {
        char flag[32];
        bool takes_value;
        (void)text_format(flag, sizeof flag, "--%s", c->args.given[i].option->name);
        if (config_flag_known(flag, &takes_value))
            rc = config_flag(config, flag, c->args.given[i].value, e);
    }
    if (rc == 0)
        rc = config_finish(config, e);
    if (rc != 0)
        config_free(config);
    return rc;
}

static int serve(struct cli *c)
{
    struct config config;
    struct err e = {0};
    if (serve_configure(c, &config, &e) != 0) {
        cli_say("serve: %s", e.msg);
        return CLI_USAGE;
    }
    int code = node_run(&config);
    config_free(&config);
    return code;
}

const struct cli_command cli_serve_command = {
    .name = "serve",
    .arguments = "--config FILE",
    .summary = "run a node",
    .text =
        "Runs until SIGTERM or SIGINT, then lets joins finish; a second signal ends at once.\n"
        "Instances outlive it: they are taken up again at the next start. It needs no root; the\n"
        "sandboxes are made by `skerry runner`, best as root.\n\n"
        "  skerry serve --config /etc/skerry/skerry.yaml --bootstrap\n"
        "  skerry serve --http 0.0.0.0:80 --api 127.0.0.1:8081",
    .options = serve_options,
    .run = serve,
};

/* --- runner ----------------------------------------------------------------------------------- */

static int write_all(int fd, const unsigned char *data, size_t length, struct err *e)
{
    while (length > 0) {
        ssize_t n = write(fd, data, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "copy the runner into memory");
        data += n;
        length -= (size_t)n;
    }
    return 0;
}

/* The runner is executed from a sealed copy in memory: what runs as root cannot be changed under it,
 * and needs no second file on disk. */
static int runner_descriptor(const struct cli_embedded *embedded, int *out, struct err *e)
{
    CLEANUP_FD int fd = memfd_create("skerry-runner", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "memfd_create");
    int rc = write_all(fd, embedded->begin, (size_t)(embedded->end - embedded->begin), e);
    if (rc != 0)
        return rc;
    if (fchmod(fd, 0500) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        return err_sys(e, ERR_IO, errno, "seal the runner");
    *out = steal_fd(&fd);
    return 0;
}

static int runner(struct cli *c)
{
    int fd = -1;
    struct err e = {0};
    if (runner_descriptor(c->embedded, &fd, &e) != 0)
        return cli_fail(c, &e);
    const char **argv = calloc(c->args.word_count + 2, sizeof *argv);
    if (argv == NULL)
        return CLI_FAILED;
    argv[0] = "skerry-runner";
    for (size_t i = 0; i < c->args.word_count; i++)
        argv[i + 1] = c->args.words[i];
    syscall(SYS_execveat, fd, "", argv, environ, AT_EMPTY_PATH);
    cli_say("runner: execute it: %s", strerror(errno));
    free(argv);
    return CLI_FAILED;
}

const struct cli_command cli_runner_command = {
    .name = "runner",
    .arguments = "[--config FILE]",
    .summary = "run the part that makes sandboxes",
    .text = "A program of its own that this one carries, for root; an ordinary user's is root of a "
            "user\n"
            "namespace. It listens on a unix socket only, for one node on this machine. What it "
            "allows at\n"
            "most comes from a root-owned file, by default /etc/skerry/runner.yaml;\n"
            "docs/configuration.md has its keys.",
    .flags = CLI_RAW,
    .run = runner,
};

/* --- version ---------------------------------------------------------------------------------- */

static int version(struct cli *c)
{
    if (c->json)
        printf("{\"version\": \"" SKERRY_VERSION "\", \"api\": \"v1\"}\n");
    else
        printf("skerry " SKERRY_VERSION "\n");
    return CLI_DONE;
}

const struct cli_command cli_version_command = {
    .name = "version",
    .arguments = "",
    .summary = "which version this program is",
    .flags = CLI_JSON,
    .run = version,
};
