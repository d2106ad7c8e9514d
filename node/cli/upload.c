#include "node/cli/upload.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"

enum { BAR_WIDTH = 30, BAR_EVERY_MS = 100 };

struct upload {
    struct pack *pack;
    const char *local;
    bool bar;
    uint64_t shown_ms;
};

static void show(struct upload *u, bool last)
{
    uint64_t now = clock_monotonic_ms();
    if (!u->bar || (!last && now - u->shown_ms < BAR_EVERY_MS))
        return;
    u->shown_ms = now;
    struct pack_progress p = pack_progress(u->pack);
    double part = p.bytes_total == 0 ? 1.0 : (double)p.bytes / (double)p.bytes_total;
    int full = (int)(part * BAR_WIDTH);
    char done[CLI_UNIT_SIZE], total[CLI_UNIT_SIZE], line[BAR_WIDTH + 1];
    cli_bytes(p.bytes, done);
    cli_bytes(p.bytes_total, total);
    for (int i = 0; i < BAR_WIDTH; i++)
        line[i] = i < full ? '#' : '.';
    line[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r[%s] %3.0f %%  %s of %s, %" PRIu64 " of %" PRIu64 " files ", line,
            part * 100, done, total, p.files, p.files_total);
    if (last)
        fputc('\n', stderr);
}

static int next_block(void *user, void *out, size_t size, size_t *out_length, struct err *e)
{
    struct upload *u = user;
    int rc = pack_read(u->pack, out, size, out_length, e);
    if (rc != 0)
        return rc;
    show(u, *out_length == 0);
    return 0;
}

int cli_upload(struct cli *c, const char *path, const char *local, enum pack_kind kind, bool bar,
               json_t **out)
{
    struct upload u = {.local = local, .bar = bar && isatty(STDERR_FILENO)};
    struct pack_options options = pack_options_default(kind);
    struct err e = {0};
    if (pack_open(&u.pack, local, &options, &e) != 0)
        return cli_fail(c, &e);
    struct client_request request = {.method = "POST",
                                     .path = path,
                                     .accept = "application/json",
                                     .content_type = "application/x-tar",
                                     .source = next_block,
                                     .user = &u};
    struct client_answer answer;
    int code = cli_ask(c, &request, &answer);
    pack_close(u.pack);
    if (code != CLI_DONE)
        return code;
    *out = client_json(&answer);
    client_answer_free(&answer);
    return CLI_DONE;
}

int cli_upload_source(struct cli *c, const char *local, char *out_digest, size_t size)
{
    json_t *stored = NULL;
    int code = cli_upload(c, "/v1/sources", local, PACK_SOURCE, false, &stored);
    if (code != CLI_DONE)
        return code;
    if (!text_copy(out_digest, size, cli_text(stored, "digest")) || out_digest[0] == '\0') {
        cli_say("%s: the node did not tell the digest of the source", local);
        code = CLI_FAILED;
    }
    json_decref(stored);
    return code;
}
