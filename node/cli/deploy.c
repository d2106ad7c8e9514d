/* skerry deploy, and what can be done with what was deployed. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/document.h"
#include "base/memory.h"
#include "base/workload.h"
#include "node/cli/cli.h"
#include "node/cli/upload.h"

enum { FILES_MAX = 1000, WAIT_EXTRA_MS = 30000, WAIT_POLL_MS = 200 };

/* One workload file, read and checked. */
struct declared {
    char *path; /* as the user named it; "-" stdin */
    struct workload workload;
};

struct declarations {
    struct declared *items;
    size_t count;
};

static void declarations_free(struct declarations *d)
{
    for (size_t i = 0; i < d->count; i++) {
        free(d->items[i].path);
        workload_free(&d->items[i].workload);
    }
    free(d->items);
}

/* --- reading ---------------------------------------------------------------------------------- */

static int read_text(const char *path, struct buffer *out, struct err *e)
{
    CLEANUP_FD int fd = strcmp(path, "-") == 0 ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)
                                               : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s", path);
    char data[16384];
    for (;;) {
        ssize_t n = read(fd, data, sizeof data);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "read %s", path);
        if (n == 0)
            return 0;
        if (!buffer_append(out, data, (size_t)n))
            return err_set(e, ERR_LIMIT, "%s is larger than %d bytes", path, DOCUMENT_BYTES_MAX);
    }
}

static int read_one(struct declarations *d, const char *path, struct err *e)
{
    if (d->count == FILES_MAX)
        return err_set(e, ERR_LIMIT, "more than %d files", FILES_MAX);
    struct declared *items = realloc(d->items, (d->count + 1) * sizeof *items);
    if (items == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    d->items = items;
    struct declared *one = &items[d->count];
    *one = (struct declared){.path = strdup(path)};
    struct buffer text;
    buffer_init(&text, DOCUMENT_BYTES_MAX);
    int rc = read_text(path, &text, e);
    if (rc == 0)
        rc = workload_parse(&one->workload, strcmp(path, "-") == 0 ? "stdin" : path,
                            text.data == NULL ? "" : text.data, text.length, e);
    buffer_free(&text);
    if (rc == 0)
        d->count++;
    else
        free(one->path);
    return rc;
}

static int is_workload_file(const struct dirent *entry)
{
    const char *dot = strrchr(entry->d_name, '.');
    return entry->d_name[0] != '.' && dot != NULL &&
           (strcmp(dot, ".yaml") == 0 || strcmp(dot, ".yml") == 0 || strcmp(dot, ".json") == 0);
}

static int read_folder(struct declarations *d, const char *folder, struct err *e)
{
    struct dirent **entries = NULL;
    int count = scandir(folder, &entries, is_workload_file, alphasort);
    if (count < 0)
        return err_sys(e, ERR_IO, errno, "read folder %s", folder);
    int rc =
        count == 0 ? err_set(e, ERR_NOT_FOUND, "%s holds no .yaml, .yml or .json file", folder) : 0;
    for (int i = 0; i < count; i++) {
        CLEANUP_FREE char *path = text_new("%s/%s", folder, entries[i]->d_name);
        if (rc == 0)
            rc = path == NULL ? err_set(e, ERR_NO_MEMORY, "no memory") : read_one(d, path, e);
        free(entries[i]);
    }
    free(entries);
    return rc;
}

static int read_all(struct cli *c, struct declarations *d, struct err *e)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < c->args.word_count; i++) {
        const char *path = c->args.words[i];
        struct stat st;
        if (strcmp(path, "-") != 0 && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
            rc = read_folder(d, path, e);
        else
            rc = read_one(d, path, e);
    }
    return rc;
}

/* --- declaring -------------------------------------------------------------------------------- */

/* What `source` names lies beside the workload file; its digest takes its place. */
static int send_source(struct cli *c, struct declared *one)
{
    struct workload *w = &one->workload;
    if (w->source[0] == '\0' || strncmp(w->source, "sha256:", 7) == 0)
        return CLI_DONE;
    CLEANUP_FREE char *copy = strdup(one->path);
    const char *folder = strcmp(one->path, "-") == 0 || copy == NULL ? "." : dirname(copy);
    CLEANUP_FREE char *local =
        w->source[0] == '/' ? strdup(w->source) : text_new("%s/%s", folder, w->source);
    char digest[128];
    if (local == NULL)
        return CLI_FAILED;
    if (access(local, F_OK) != 0) {
        cli_say("%s: source: %s: %s; it is looked for beside the workload file", one->path,
                w->source, strerror(errno));
        return CLI_FAILED;
    }
    int code = cli_upload_source(c, local, digest, sizeof digest);
    if (code != CLI_DONE)
        return code;
    free(w->source);
    w->source = strdup(digest);
    return w->source == NULL ? CLI_FAILED : CLI_DONE;
}

static int declare(struct cli *c, struct declared *one, json_t **out)
{
    int code = send_source(c, one);
    if (code != CLI_DONE)
        return code;
    json_t *spec = workload_to_json(&one->workload);
    if (spec == NULL)
        return CLI_FAILED;
    return cli_send(c, "POST", cli_has(c, "dry-run") ? "/v1/workloads?dry_run=1" : "/v1/workloads",
                    spec, out);
}

/* Whether what runs is of the newest version, and as many as are kept ahead are ready. */
static int settled(struct cli *c, const struct declared *one, int64_t version, bool *out)
{
    json_t *instances = NULL;
    int code = cli_get(c, &instances, "/v1/instances?workload=%s&limit=10000", one->workload.id);
    if (code != CLI_DONE)
        return code;
    uint64_t ready = 0;
    bool old = false;
    json_t *i;
    size_t n;
    json_array_foreach(instances, n, i)
    {
        bool current = cli_integer(i, "version") == version;
        old = old || (!current && cli_text(i, "key")[0] == '\0');
        ready += current && strcmp(cli_text(i, "state"), "ready") == 0;
    }
    *out = !old && ready >= one->workload.scale.idle_min;
    json_decref(instances);
    return CLI_DONE;
}

static int wait_settled(struct cli *c, const struct declared *one, int64_t version)
{
    const struct workload *w = &one->workload;
    uint64_t bound = WAIT_EXTRA_MS;
    if (w->timeouts.start_ms != DURATION_NONE)
        bound += w->timeouts.start_ms;
    if (w->timeouts.drain_ms != DURATION_NONE)
        bound += w->timeouts.drain_ms;
    uint64_t end = clock_monotonic_ms() + bound;
    for (;;) {
        bool done = false;
        int code = settled(c, one, version, &done);
        if (code != CLI_DONE || done)
            return code;
        if (clock_monotonic_ms() >= end) {
            cli_say(
                "%s v%" PRId64 " is declared, but after %" PRIu64
                " s not all is ready or an older version still runs: see skerry explain %s, and "
                "skerry ps -a %s",
                w->id, version, bound / 1000, w->id, w->id);
            return CLI_FAILED;
        }
        (void)poll(NULL, 0, WAIT_POLL_MS);
    }
}

static int deploy_one(struct cli *c, struct declared *one, json_t *results)
{
    json_t *deployed = NULL;
    int code = declare(c, one, &deployed);
    if (code != CLI_DONE)
        return code;
    bool changed = cli_truth(deployed, "changed");
    int64_t version = cli_integer(deployed, "version");
    if (!c->json)
        printf("%s v%" PRId64 "  %s\n", cli_text(deployed, "id"), version,
               cli_has(c, "dry-run") ? (changed ? "would be deployed" : "would not change")
                                     : (changed ? "deployed" : "unchanged"));
    (void)fflush(stdout);
    cli_warning(deployed);
    json_array_append_new(results, deployed);
    if (cli_has(c, "force") && !cli_has(c, "dry-run"))
        code = cli_stop_older(c, one->workload.id, version);
    if (code == CLI_DONE && cli_has(c, "wait") && !cli_has(c, "dry-run"))
        code = wait_settled(c, one, version);
    return code;
}

static int deploy(struct cli *c)
{
    struct declarations d = {0};
    struct err e = {0};
    int code = CLI_DONE;
    /* All are checked before the first is declared. */
    if (read_all(c, &d, &e) != 0) {
        cli_say("%s", e.msg);
        code = e.code == ERR_NOT_FOUND ? CLI_NOT_FOUND : CLI_FAILED;
    }
    json_t *results = json_array();
    for (size_t i = 0; code == CLI_DONE && i < d.count; i++)
        code = deploy_one(c, &d.items[i], results);
    if (c->json && json_array_size(results) > 0)
        cli_print_json(d.count == 1 ? json_array_get(results, 0) : results);
    json_decref(results);
    declarations_free(&d);
    return code;
}

static const struct cli_option deploy_options[] = {
    {0, "dry-run", NULL, "check only, register nothing"},
    {0, "force", NULL, "stop instances of older versions; their joiners are cut off"},
    {0, "wait", NULL, "until older versions have ended and what is kept ahead is ready"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_deploy_command = {
    .name = "deploy",
    .arguments = "FILE|DIR|-...",
    .summary = "declare workloads (YAML or JSON)",
    .text =
        "A file that changed makes a new version, of which an instance is started where one of the "
        "version\nbefore runs. When it is ready, new requests go there, and older instances end "
        "with "
        "their joiners\n(timeouts.drain); until then, also if it never is, they go on. Instances "
        "of "
        "keys live on.\n\n"
        "Of a folder, all .yaml, .yml and .json files; if one is wrong, none is declared. "
        "`source:` is a folder or file beside the\n"
        "workload file and is sent along. docs/configuration.md has every key.\n\n"
        "  skerry deploy hello.yaml\n"
        "  skerry deploy --dry-run workloads/\n"
        "  generate | skerry deploy -",
    .options = deploy_options,
    .flags = CLI_API | CLI_JSON,
    .words_min = 1,
    .words_max = SIZE_MAX,
    .run = deploy,
};
