/* skerry cp: files out of an instance and into one, as `docker cp` does it. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/id.h"
#include "base/memory.h"
#include "node/cli/cli.h"
#include "node/cli/pack.h"
#include "node/cli/untar.h"
#include "sandbox/shared/tar.h"

enum { URL_SIZE = 3 * TAR_PATH_SIZE + 256 };

/* The last name of a path without trailing slashes; "" for / . and .. */
static void last_name(const char *path, char out[TAR_PATH_SIZE])
{
    CLEANUP_FREE char *copy = strdup(path);
    const char *name = copy == NULL ? "" : basename(copy);
    if (strcmp(name, "/") == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        name = "";
    (void)text_copy(out, TAR_PATH_SIZE, name);
}

static void folder_of(const char *path, char out[TAR_PATH_SIZE])
{
    CLEANUP_FREE char *copy = strdup(path);
    (void)text_copy(out, TAR_PATH_SIZE, copy == NULL ? "." : dirname(copy));
}

/* "ID:PATH": the id resolved, the path encoded into a URL of .../files. */
static int remote_url(struct cli *c, const char *text, const char *path, char url[URL_SIZE])
{
    char prefix[INSTANCE_ID_LENGTH_MAX + 1], id[INSTANCE_ID_LENGTH_MAX + 1];
    CLEANUP_FREE char *encoded = malloc(URL_SIZE);
    size_t length = strcspn(text, ":");
    if (length >= sizeof prefix)
        return cli_usage(c, "%.40s... is no instance id", text);
    (void)text_format(prefix, sizeof prefix, "%.*s", (int)length, text);
    if (path[0] != '/')
        return cli_usage(c, "%s: the path inside must be absolute", path);
    int code = cli_instance(c, prefix, id, sizeof id);
    if (code != CLI_DONE)
        return code;
    if (encoded == NULL || !client_encode(encoded, URL_SIZE, path) ||
        !text_format(url, URL_SIZE, "/v1/instances/%s/files?path=%s", id, encoded))
        return cli_usage(c, "%.80s...: the path is too long", path);
    return CLI_DONE;
}

/* --- out of an instance ----------------------------------------------------------------------- */

static int take_out(void *user, const void *data, size_t length, struct err *e)
{
    if (user == NULL) {
        if (fwrite(data, 1, length, stdout) != length)
            return err_set(e, ERR_CANCELED, "stdout takes no more");
        return 0;
    }
    return untar_take(user, data, length, e);
}

static int copy_out(struct cli *c, const char *from, const char *to)
{
    CLEANUP_FREE char *url = malloc(URL_SIZE);
    const char *path = strchr(from, ':') + 1;
    struct untar *u = NULL;
    struct err e = {0};
    char name[TAR_PATH_SIZE], folder[TAR_PATH_SIZE];
    if (url == NULL)
        return CLI_FAILED;
    int code = remote_url(c, from, path, url);
    if (code != CLI_DONE)
        return code;
    int rc = 0;
    struct stat st;
    bool into = stat(to, &st) == 0 && S_ISDIR(st.st_mode);
    if (strcmp(to, "-") != 0) {
        last_name(path, name);
        if (!into && name[0] == '\0' && mkdir(to, 0755) < 0)
            rc = err_sys(&e, ERR_IO, errno, "make folder %s", to);
        into = into || name[0] == '\0';
        last_name(to, name);
        folder_of(to, folder);
        if (rc == 0)
            rc = untar_new(&u, into ? to : folder, into ? NULL : name, &e);
        if (rc != 0)
            return cli_fail(c, &e);
    }
    struct client_request request = {
        .path = url, .accept = "application/x-tar", .sink = take_out, .user = u};
    struct client_answer answer;
    code = cli_ask(c, &request, &answer);
    if (code == CLI_DONE) {
        client_answer_free(&answer);
        if (u != NULL && untar_end(u, &e) != 0)
            code = cli_fail(c, &e);
    }
    untar_free(u);
    return code;
}

/* --- into an instance ------------------------------------------------------------------------- */

/* A tar stream made of a folder's (by node/cli/pack.h, its names put below `top`) or of one file. */
struct outgoing {
    struct pack *pack; /* NULL: one file */
    int file;
    const char *top, *local;
    struct tar_reader reader;
    uint64_t left; /* of an entry's data and padding that pass as they are */
    struct buffer ready;
    bool ended;
};

static int put_header(struct outgoing *o, const struct tar_entry *entry, struct err *e)
{
    uint8_t blocks[TAR_ENCODED_BYTES_MAX];
    size_t length = tar_encode(entry, blocks);
    if (length == 0)
        return err_set(e, ERR_LIMIT, "%.100s...: the path is too long", entry->path);
    return buffer_append(&o->ready, blocks, length) ? 0 : err_set(e, ERR_NO_MEMORY, "no memory");
}

static int put_end(struct outgoing *o, struct err *e)
{
    static const uint8_t zeros[2 * TAR_BLOCK_BYTES];
    o->ended = true;
    return buffer_append(&o->ready, zeros, sizeof zeros) ? 0
                                                         : err_set(e, ERR_NO_MEMORY, "no memory");
}

static int open_file(struct outgoing *o, struct err *e)
{
    struct stat st;
    CLEANUP_FREE struct tar_entry *entry = calloc(1, sizeof *entry);
    o->file = open(o->local, O_RDONLY | O_CLOEXEC);
    if (entry == NULL || o->file < 0 || fstat(o->file, &st) < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "%s", o->local);
    if (!S_ISREG(st.st_mode))
        return err_set(e, ERR_INVALID, "%s is neither a file nor a folder", o->local);
    entry->type = TAR_FILE;
    entry->mode = st.st_mode & 0777;
    entry->size = (uint64_t)st.st_size;
    entry->mtime_s = st.st_mtime;
    (void)text_copy(entry->path, sizeof entry->path, o->top);
    o->left = entry->size;
    return put_header(o, entry, e);
}

static int next_of_file(struct outgoing *o, void *out, size_t size, size_t *out_length,
                        struct err *e)
{
    if (o->left == 0) {
        struct stat st;
        static const uint8_t zeros[TAR_BLOCK_BYTES];
        size_t padding = fstat(o->file, &st) == 0 ? tar_padding((uint64_t)st.st_size) : 0;
        if (!buffer_append(&o->ready, zeros, padding))
            return err_set(e, ERR_NO_MEMORY, "no memory");
        return put_end(o, e);
    }
    size_t want = size < o->left ? size : (size_t)o->left;
    ssize_t n = read(o->file, out, want);
    if (n <= 0)
        return err_set(e, ERR_IO, "%s changed while it was read", o->local);
    o->left -= (uint64_t)n;
    *out_length = (size_t)n;
    return 0;
}

static int read_block(struct outgoing *o, uint8_t *block, struct err *e)
{
    size_t have = 0;
    while (have < TAR_BLOCK_BYTES) {
        size_t n = 0;
        int rc = pack_read(o->pack, block + have, TAR_BLOCK_BYTES - have, &n, e);
        if (rc != 0)
            return rc;
        if (n == 0)
            return err_set(e, ERR_INTERNAL, "%s: the packed stream broke off", o->local);
        have += n;
    }
    return 0;
}

static int next_of_folder(struct outgoing *o, void *out, size_t size, size_t *out_length,
                          struct err *e)
{
    if (o->left > 0) {
        size_t want = size < o->left ? size : (size_t)o->left;
        int rc = pack_read(o->pack, out, want, out_length, e);
        o->left -= *out_length;
        return rc;
    }
    uint8_t block[TAR_BLOCK_BYTES];
    enum tar_step step = TAR_STEP_MORE;
    while (step == TAR_STEP_MORE) {
        int rc = read_block(o, block, e);
        if (rc == 0)
            rc = tar_reader_block(&o->reader, block, &step, e);
        if (rc != 0)
            return rc;
    }
    if (step == TAR_STEP_END)
        return put_end(o, e);
    struct tar_entry *entry = &o->reader.entry;
    o->left = entry->size + tar_padding(entry->size);
    char *inner = strdup(tar_path_clean(entry->path) ? entry->path : "");
    bool fits =
        inner != NULL && text_format(entry->path, sizeof entry->path, "%s%s%s", o->top,
                                     inner[0] != '\0' && o->top[0] != '\0' ? "/" : "", inner);
    free(inner);
    return fits ? put_header(o, entry, e)
                : err_set(e, ERR_LIMIT, "%.100s...: the path is too long", entry->path);
}

static int give_in(void *user, void *out, size_t size, size_t *out_length, struct err *e)
{
    struct outgoing *o = user;
    *out_length = 0;
    while (*out_length == 0) {
        if (o->ready.length > 0) {
            *out_length = size < o->ready.length ? size : o->ready.length;
            memcpy(out, o->ready.data, *out_length);
            buffer_consume(&o->ready, *out_length);
            return 0;
        }
        if (o->ended)
            return 0;
        int rc = o->pack != NULL ? next_of_folder(o, out, size, out_length, e)
                                 : next_of_file(o, out, size, out_length, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* Whether a path inside is a folder: the first entry of its archive tells. */
struct look {
    struct tar_reader reader;
    bool known, folder;
};

static int look_at(void *user, const void *data, size_t length, struct err *e)
{
    struct look *l = user;
    const uint8_t *blocks = data;
    enum tar_step step = TAR_STEP_MORE;
    while (step == TAR_STEP_MORE && length >= TAR_BLOCK_BYTES) {
        if (tar_reader_block(&l->reader, blocks, &step, e) != 0)
            break;
        blocks += TAR_BLOCK_BYTES;
        length -= TAR_BLOCK_BYTES;
    }
    l->known = step != TAR_STEP_MORE;
    l->folder =
        step == TAR_STEP_END || (step == TAR_STEP_ENTRY && l->reader.entry.type == TAR_DIRECTORY);
    return err_set(e, ERR_CANCELED, "seen");
}

static int is_folder(struct cli *c, const char *url, bool *out)
{
    struct client *client = NULL;
    struct look l = {0};
    struct client_request request = {
        .path = url, .accept = "application/x-tar", .sink = look_at, .user = &l};
    struct client_answer answer = {0};
    struct err e = {0};
    int code = cli_client(c, &client);
    if (code != CLI_DONE)
        return code;
    tar_reader_init(&l.reader);
    int rc = client_do(client, &request, &answer, &e);
    if (rc != 0 && e.code == ERR_UNAVAILABLE)
        code = cli_fail(c, &e);
    *out = l.known && l.folder;
    client_answer_free(&answer);
    tar_reader_free(&l.reader);
    return code;
}

static int open_outgoing(struct outgoing *o, struct err *e)
{
    struct stat st;
    struct pack_options options = pack_options_default(PACK_IMAGE);
    buffer_init(&o->ready, 4 * TAR_ENCODED_BYTES_MAX);
    tar_reader_init(&o->reader);
    if (stat(o->local, &st) != 0 || !S_ISDIR(st.st_mode))
        return open_file(o, e);
    int rc = pack_open(&o->pack, o->local, &options, e);
    if (rc != 0 || o->top[0] == '\0')
        return rc;
    /* The folder itself, which the packed stream takes for granted. */
    CLEANUP_FREE struct tar_entry *entry = calloc(1, sizeof *entry);
    if (entry == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    entry->type = TAR_DIRECTORY;
    entry->mode = st.st_mode & 0777;
    entry->mtime_s = st.st_mtime;
    (void)text_copy(entry->path, sizeof entry->path, o->top);
    return put_header(o, entry, e);
}

static int copy_in(struct cli *c, const char *from, const char *to)
{
    const char *path = strchr(to, ':') + 1;
    char top[TAR_PATH_SIZE], folder[TAR_PATH_SIZE];
    CLEANUP_FREE char *url = malloc(URL_SIZE);
    struct outgoing o = {.file = -1, .local = from, .top = top};
    struct err e = {0};
    bool into = path[0] != '\0' && path[strlen(path) - 1] == '/';
    if (url == NULL)
        return CLI_FAILED;
    int code = remote_url(c, to, path, url);
    if (code == CLI_DONE && !into)
        code = is_folder(c, url, &into);
    last_name(into ? from : path, top);
    folder_of(path, folder);
    if (code == CLI_DONE)
        code = remote_url(c, to, into ? path : folder, url);
    if (code != CLI_DONE)
        return code;
    if (open_outgoing(&o, &e) != 0) {
        code = cli_fail(c, &e);
    } else {
        struct client_request request = {.method = "PUT",
                                         .path = url,
                                         .content_type = "application/x-tar",
                                         .source = give_in,
                                         .user = &o};
        struct client_answer answer;
        code = cli_ask(c, &request, &answer);
        if (code == CLI_DONE)
            client_answer_free(&answer);
    }
    pack_close(o.pack);
    memory_close(&o.file);
    tar_reader_free(&o.reader);
    buffer_free(&o.ready);
    return code;
}

/* "7k3q:/tmp/x", but not "./a:b" and not "/a:b". */
static bool is_remote(const char *text)
{
    size_t length = strcspn(text, ":");
    return text[length] == ':' && length > 0 && instance_id_prefix_valid(text, length);
}

static int cp(struct cli *c)
{
    const char *from = c->args.words[0], *to = c->args.words[1];
    if (is_remote(from) == is_remote(to))
        return cli_usage(c, "one of the two is ID:PATH, the other is here");
    return is_remote(from) ? copy_out(c, from, to) : copy_in(c, from, to);
}

const struct cli_command cli_cp_command = {
    .name = "cp",
    .arguments = "ID:PATH LOCAL | LOCAL ID:PATH",
    .summary = "files out of an instance, and into one",
    .text = "Folders with all they hold. Into a folder that is there, under their own name; else "
            "under the\n"
            "name given. Read and written as the instance's own user. LOCAL - is a tar stream on "
            "stdout.\n"
            "\n"
            "  skerry cp 7k3q:/tmp/result.json .\n"
            "  skerry cp ./data 7k3q:/tmp/",
    .flags = CLI_API,
    .words_min = 2,
    .words_max = 2,
    .run = cp,
};
