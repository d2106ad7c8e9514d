/* skerry image import, list, rm and gc. */
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/cli/upload.h"

enum { NAME_SIZE = 512, SHORT_DIGEST = 19 /* "sha256:" and twelve digits */ };

static int encode_name(const struct cli *c, char out[NAME_SIZE])
{
    if (!client_encode(out, NAME_SIZE, c->args.words[0]))
        return cli_usage(c, "%.80s...: the name is too long", c->args.words[0]);
    return CLI_DONE;
}

static int import(struct cli *c)
{
    char name[NAME_SIZE], path[NAME_SIZE + 32], bytes[CLI_UNIT_SIZE];
    json_t *image = NULL;
    int code = encode_name(c, name);
    if (code != CLI_DONE)
        return code;
    /* The node refuses it too, after all has been sent. */
    if (strcmp(c->args.words[0], "host") == 0)
        return cli_usage(c, "host is built in: this machine's own programs; choose another name");
    (void)text_format(path, sizeof path, "/v1/images?name=%s", name);
    code = cli_upload(c, path, c->args.words[1], PACK_IMAGE, !c->json, &image);
    if (code != CLI_DONE)
        return code;
    cli_bytes((uint64_t)cli_integer(image, "bytes"), bytes);
    if (c->json)
        cli_print_json(image);
    else
        printf("%s  %s, %s in %" PRId64 " files\n", cli_text(image, "name"),
               cli_text(image, "digest"), bytes, cli_integer(image, "files"));
    cli_warning(image);
    json_decref(image);
    return CLI_DONE;
}

const struct cli_command cli_image_import_command = {
    .name = "image import",
    .arguments = "NAME DIR|FILE.tar[.gz|.zst|.lz4]",
    .summary = "make an image of a folder or an archive",
    .text = "It is unpacked in a sandbox of its own. Archives with absolute paths, `..`, device "
            "nodes or\n"
            "links out of the tree are refused. An image of this name is replaced.\n\n"
            "  skerry image import alpine alpine-minirootfs.tar.gz\n"
            "  skerry image import mine ./rootfs",
    .flags = CLI_API | CLI_JSON,
    .words_min = 2,
    .words_max = 2,
    .run = import,
};

static int list(struct cli *c)
{
    json_t *images = NULL;
    int code = cli_get(c, &images, "/v1/images");
    if (code != CLI_DONE)
        return code;
    if (c->json) {
        cli_print_json(images);
        json_decref(images);
        return CLI_DONE;
    }
    static const char *const heads[] = {"IMAGE", "DIGEST", ">SIZE", ">FILES", ">AGE", NULL};
    struct cli_table *t = cli_table_new(heads);
    uint64_t now = clock_wall_ms();
    json_t *image;
    size_t i;
    json_array_foreach(images, i, image)
    {
        char digest[SHORT_DIGEST + 1], bytes[CLI_UNIT_SIZE], files[24], age[CLI_UNIT_SIZE];
        (void)text_copy(digest, sizeof digest, cli_text(image, "digest"));
        cli_bytes((uint64_t)cli_integer(image, "bytes"), bytes);
        (void)text_format(files, sizeof files, "%" PRId64, cli_integer(image, "files"));
        cli_age(cli_text(image, "imported_at"), now, age);
        const char *cells[] = {cli_text(image, "name"), digest, bytes, files, age};
        cli_table_row(t, cells);
    }
    cli_table_print(t, stdout);
    json_decref(images);
    return CLI_DONE;
}

const struct cli_command cli_image_list_command = {
    .name = "image list",
    .arguments = "",
    .summary = "images (`host` is built in and not listed)",
    .flags = CLI_API | CLI_JSON,
    .run = list,
};

static int rm(struct cli *c)
{
    char name[NAME_SIZE], path[NAME_SIZE + 32];
    int code = encode_name(c, name);
    if (code != CLI_DONE)
        return code;
    (void)text_format(path, sizeof path, "/v1/images/%s", name);
    code = cli_send(c, "DELETE", path, NULL, NULL);
    if (code == CLI_DONE)
        printf("%s  removed; its files go with the next `skerry image gc`\n", c->args.words[0]);
    return code;
}

const struct cli_command cli_image_rm_command = {
    .name = "image rm",
    .arguments = "NAME",
    .summary = "forget an image that no workload names",
    .flags = CLI_API,
    .words_min = 1,
    .words_max = 1,
    .run = rm,
};

static int gc(struct cli *c)
{
    json_t *freed = NULL;
    char bytes[CLI_UNIT_SIZE];
    int code = cli_send(c, "POST", "/v1/images/gc", NULL, &freed);
    if (code != CLI_DONE)
        return code;
    cli_bytes((uint64_t)cli_integer(freed, "bytes"), bytes);
    if (c->json)
        cli_print_json(freed);
    else
        printf("%s freed\n", bytes);
    json_decref(freed);
    return CLI_DONE;
}

const struct cli_command cli_image_gc_command = {
    .name = "image gc",
    .arguments = "",
    .summary = "remove the node's files that no image, workload or instance names",
    .flags = CLI_API | CLI_JSON,
    .run = gc,
};
