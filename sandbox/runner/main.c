/* The runner, root of the machine or of a user namespace. See runner.h. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/image_export.h"
#include "sandbox/runner/net_names.h"
#include "sandbox/runner/rootless.h"
#include "sandbox/runner/runner.h"

extern const uint8_t embedded_agent_begin[], embedded_agent_end[];

static const char usage[] =
    "usage: skerry runner [--config FILE] [--directory DIR] [--socket PATH]\n"
    "                     [--node-uid UID] [--node-gid GID] [--blanks N] [--log-json]\n"
    "                     [--uid-base UID] [--instances-max N] [--ready-fd FD]\n"
    "\n"
    "Makes and holds sandboxes, as root, or as an ordinary user in a user namespace of its own.\n"
    "What it allows at most comes from FILE (default " RUNNER_CONFIG_PATH "), which root or\n"
    "that user alone may write.\n";

static bool number_parse(const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 0 || value > UINT32_MAX - 1)
        return false;
    *out = value;
    return true;
}

/* 0: run; 1: done; 2: usage. */
static int options_parse(int argc, char **argv, struct runner_options *o, enum log_format *format)
{
    enum {
        CONFIG = 1,
        DIRECTORY,
        SOCKET,
        NODE_UID,
        NODE_GID,
        BLANKS,
        UID_BASE,
        INSTANCES,
        READY_FD,
        INSIDE,
        LOG_JSON,
        HELP
    };
    static const struct option options[] = {
        {"config", required_argument, NULL, CONFIG},
        {"directory", required_argument, NULL, DIRECTORY},
        {"socket", required_argument, NULL, SOCKET},
        {"node-uid", required_argument, NULL, NODE_UID},
        {"node-gid", required_argument, NULL, NODE_GID},
        {"blanks", required_argument, NULL, BLANKS},
        {"uid-base", required_argument, NULL, UID_BASE},
        {"instances-max", required_argument, NULL, INSTANCES},
        {"ready-fd", required_argument, NULL, READY_FD},
        {ROOTLESS_ARGUMENT, required_argument, NULL, INSIDE},
        {"log-json", no_argument, NULL, LOG_JSON},
        {"help", no_argument, NULL, HELP},
        {NULL, 0, NULL, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        int64_t number = -1;
        bool good = true;
        switch (option) {
        case CONFIG:
            o->config_path = optarg;
            break;
        case DIRECTORY:
            o->directory = optarg;
            break;
        case SOCKET:
            o->socket = optarg;
            break;
        case NODE_UID:
            good = number_parse(optarg, &o->node_uid);
            break;
        case NODE_GID:
            good = number_parse(optarg, &o->node_gid);
            break;
        case BLANKS:
            good = number_parse(optarg, &o->blanks) && o->blanks <= 64;
            break;
        case UID_BASE:
            good = number_parse(optarg, &o->uid_base);
            break;
        case INSTANCES:
            good = number_parse(optarg, &o->instances_max);
            break;
        case READY_FD:
            good = number_parse(optarg, &number);
            o->ready_fd = (int)number;
            break;
        case INSIDE:
            o->lack = optarg;
            break;
        case LOG_JSON:
            *format = LOG_FORMAT_JSON;
            break;
        case HELP:
            fputs(usage, stdout);
            return 1;
        default:
            good = false;
        }
        if (!good) {
            fputs(usage, stderr);
            return 2;
        }
    }
    if (optind == argc)
        return 0;
    fputs(usage, stderr);
    return 2;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], IMAGE_IMPORT_ARGUMENT) == 0)
        return image_import_main();
    if (argc == 2 && strcmp(argv[1], IMAGE_EXPORT_ARGUMENT) == 0)
        return image_export_main();
    if (argc == 2 && strcmp(argv[1], NET_NAMES_ARGUMENT) == 0)
        return net_names_main();
    struct runner_options options = {.node_uid = -1,
                                     .node_gid = -1,
                                     .blanks = -1,
                                     .uid_base = -1,
                                     .instances_max = -1,
                                     .ready_fd = -1,
                                     .agent = embedded_agent_begin,
                                     .agent_size =
                                         (size_t)(embedded_agent_end - embedded_agent_begin)};
    enum log_format format = LOG_FORMAT_TEXT;
    int rc = options_parse(argc, argv, &options, &format);
    if (rc != 0)
        return rc == 1 ? 0 : 2;
    log_setup(LOG_LEVEL_INFO, format);
    struct err e;
    /* Root of the machine, or inside already. */
    bool ready = userns_is_machine() || options.lack != NULL;
    if ((ready ? runner_run(&options, &e) : rootless_enter(&options, argv, &e)) < 0) {
        log_error("runner", "%s", e.msg);
        return 1;
    }
    return 0;
}
