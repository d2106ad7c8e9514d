#include "node/cli/pack.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "node/cli/pack_walk.h"

#define BLOCK_SIZE (64 * 1024)
/* A block and the headers of one entry, which libarchive writes between two reads. */
#define BUFFER_SIZE_MAX (4 * 1024 * 1024)

enum stage {
    STAGE_ENTRIES,  /* of a tree */
    STAGE_ONE,      /* the single file of a source */
    STAGE_VERBATIM, /* an archive */
    STAGE_END,
};

struct pack {
    struct pack_options options;
    char *path; /* as the user wrote it, for errors */
    enum stage stage;
    int root_fd; /* the folder, or the file itself */
    int file_fd; /* being packed; -1 between files */
    uint64_t file_left;
    char file_path[PATH_MAX];
    struct pack_walk *walk;
    struct archive *writer;
    struct archive_entry *entry;
    struct buffer buffer;
    char *block; /* BLOCK_SIZE */
    struct pack_progress progress;
};

struct pack_options pack_options_default(enum pack_kind kind)
{
    const bool source = kind == PACK_SOURCE;
    return (struct pack_options){
        .kind = kind,
        .bytes_max = source ? 256ull << 20 : 16ull << 30,
        .files_max = source ? 100000 : 1000000,
    };
}

/* --- what is there ---------------------------------------------------------------------------- */

static const char *kind_word(mode_t mode)
{
    if (S_ISSOCK(mode))
        return "a socket";
    if (S_ISFIFO(mode))
        return "a named pipe";
    return "a device node";
}

static int count_entry(struct pack *p, const char *path, const struct stat *st, struct err *e)
{
    if (!S_ISREG(st->st_mode) && !S_ISDIR(st->st_mode) && !S_ISLNK(st->st_mode))
        return err_set(e, ERR_INVALID,
                       "%s is %s; only files, folders and symbolic links can be packed: remove it",
                       path, kind_word(st->st_mode));
    if (++p->progress.files_total > p->options.files_max)
        return err_set(e, ERR_LIMIT, "there are more than %llu files",
                       (unsigned long long)p->options.files_max);
    if (S_ISREG(st->st_mode))
        p->progress.bytes_total += (uint64_t)st->st_size;
    if (p->progress.bytes_total > p->options.bytes_max)
        return err_set(e, ERR_LIMIT, "the files have more than %llu bytes",
                       (unsigned long long)p->options.bytes_max);
    return 0;
}

static int survey_tree(struct pack *p, struct err *e)
{
    bool end = false;
    int rc = pack_walk_open(p->walk, p->root_fd, (size_t)p->options.files_max, e);
    while (rc == 0) {
        rc = pack_walk_next(p->walk, &end, e);
        if (rc != 0 || end)
            break;
        rc = count_entry(p, p->walk->path, &p->walk->st, e);
    }
    pack_walk_close(p->walk);
    return rc == 0 ? pack_walk_open(p->walk, p->root_fd, (size_t)p->options.files_max, e) : rc;
}

static int survey(struct pack *p, struct err *e)
{
    struct stat st;
    if (fstat(p->root_fd, &st) != 0)
        return err_sys(e, ERR_IO, errno, "look at it");
    if (S_ISDIR(st.st_mode)) {
        p->stage = STAGE_ENTRIES;
        return survey_tree(p, e);
    }
    if (!S_ISREG(st.st_mode))
        return err_set(e, ERR_INVALID, "it is %s, neither a folder nor a file",
                       kind_word(st.st_mode));
    if (p->options.kind == PACK_SOURCE) {
        p->stage = STAGE_ONE;
        return count_entry(p, p->path, &st, e);
    }
    /* How much an archive holds is not known before it is unpacked; the store bounds it. */
    p->stage = STAGE_VERBATIM;
    p->progress.bytes_total = (uint64_t)st.st_size;
    p->progress.files_total = 1;
    return 0;
}

/* --- the stream ------------------------------------------------------------------------------- */

static la_ssize_t write_cb(struct archive *writer, void *user, const void *data, size_t length)
{
    struct pack *p = user;
    if (!buffer_append(&p->buffer, data, length)) {
        archive_set_error(writer, ENOMEM, "no memory for a block");
        return -1;
    }
    return (la_ssize_t)length;
}

static int writer_refusal(const struct pack *p, struct err *e)
{
    const char *text = archive_error_string(p->writer);
    return err_set(e, ERR_INTERNAL, "pack %s: %s", p->file_path, text != NULL ? text : "failed");
}

static int writer_open(struct pack *p, struct err *e)
{
    p->writer = archive_write_new();
    p->entry = archive_entry_new();
    if (p->writer == NULL || p->entry == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory to pack");
    /* BINARY: names are bytes, whatever the locale. One byte a block: nothing is held back. */
    if (archive_write_set_format_pax_restricted(p->writer) != ARCHIVE_OK ||
        archive_write_set_options(p->writer, "hdrcharset=BINARY") != ARCHIVE_OK ||
        archive_write_set_bytes_per_block(p->writer, 0) != ARCHIVE_OK ||
        archive_write_open(p->writer, p, NULL, write_cb, NULL) != ARCHIVE_OK)
        return writer_refusal(p, e);
    return 0;
}

static mode_t packed_mode(const struct pack *p, const struct stat *st)
{
    if (p->options.kind == PACK_SOURCE)
        return S_ISDIR(st->st_mode) || (st->st_mode & 0111) != 0 ? 0755 : 0644;
    return st->st_mode & (S_ISDIR(st->st_mode) ? 01777 : 0777);
}

static int begin_entry(struct pack *p, const char *path, const struct stat *st, const char *target,
                       struct err *e)
{
    (void)text_copy(p->file_path, sizeof p->file_path, path);
    archive_entry_clear(p->entry);
    archive_entry_set_pathname(p->entry, path);
    archive_entry_set_filetype(p->entry, st->st_mode & S_IFMT);
    archive_entry_set_perm(p->entry, S_ISLNK(st->st_mode) ? 0777 : packed_mode(p, st));
    archive_entry_set_uid(p->entry, 0);
    archive_entry_set_gid(p->entry, 0);
    /* The store keeps times of an image's files, and of nothing else. */
    bool keeps = p->options.kind == PACK_IMAGE && S_ISREG(st->st_mode);
    archive_entry_set_mtime(p->entry, keeps ? st->st_mtime : 0, 0);
    archive_entry_set_size(p->entry, S_ISREG(st->st_mode) ? st->st_size : 0);
    if (target != NULL)
        archive_entry_set_symlink(p->entry, target);
    if (archive_write_header(p->writer, p->entry) != ARCHIVE_OK)
        return writer_refusal(p, e);
    p->file_left = S_ISREG(st->st_mode) ? (uint64_t)st->st_size : 0;
    p->progress.files++;
    return 0;
}

/* `*fd` becomes the pack's. */
static int begin_file(struct pack *p, const char *path, int *fd, struct err *e)
{
    struct stat st;
    if (fstat(*fd, &st) != 0 || !S_ISREG(st.st_mode))
        return err_set(e, ERR_CONFLICT, "%s changed while it was packed; try again", path);
    int rc = begin_entry(p, path, &st, NULL, e);
    if (rc == 0)
        p->file_fd = steal_fd(fd);
    return rc;
}

static int pack_entry(struct pack *p, struct err *e)
{
    const struct pack_walk *walk = p->walk;
    if (S_ISDIR(walk->st.st_mode))
        return begin_entry(p, walk->path, &walk->st, NULL, e);
    if (S_ISLNK(walk->st.st_mode)) {
        char target[PATH_MAX];
        ssize_t n = readlinkat(walk->folder_fd, walk->name, target, sizeof target - 1);
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "read the link %s", walk->path);
        target[n] = '\0';
        return begin_entry(p, walk->path, &walk->st, target, e);
    }
    CLEANUP_FD int fd =
        openat(walk->folder_fd, walk->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open %s", walk->path);
    return begin_file(p, walk->path, &fd, e);
}

static int pack_end(struct pack *p, struct err *e)
{
    p->stage = STAGE_END;
    return archive_write_close(p->writer) == ARCHIVE_OK ? 0 : writer_refusal(p, e);
}

static int pack_content(struct pack *p, struct err *e)
{
    size_t want = p->file_left < BLOCK_SIZE ? (size_t)p->file_left : BLOCK_SIZE;
    ssize_t n = want > 0 ? read(p->file_fd, p->block, want) : 0;
    if (n < 0 && errno == EINTR)
        return 0;
    if (n < 0)
        return err_sys(e, ERR_IO, errno, "read %s", p->file_path);
    if (n == 0 && want > 0)
        return err_set(e, ERR_CONFLICT, "%s changed while it was packed; try again", p->file_path);
    if (n > 0 && archive_write_data(p->writer, p->block, (size_t)n) != (la_ssize_t)n)
        return writer_refusal(p, e);
    p->file_left -= (uint64_t)n;
    p->progress.bytes += (uint64_t)n;
    if (p->file_left == 0)
        memory_close(&p->file_fd);
    return 0;
}

/* One step of the stream: it may put bytes into the buffer. */
static int pack_step(struct pack *p, struct err *e)
{
    if (p->file_fd >= 0)
        return pack_content(p, e);
    if (p->stage == STAGE_ONE) {
        if (p->progress.files > 0)
            return pack_end(p, e);
        const char *slash = strrchr(p->path, '/');
        CLEANUP_FD int fd = steal_fd(&p->root_fd);
        return begin_file(p, slash != NULL ? slash + 1 : p->path, &fd, e);
    }
    bool end = false;
    int rc = pack_walk_next(p->walk, &end, e);
    if (rc != 0)
        return rc;
    return end ? pack_end(p, e) : pack_entry(p, e);
}

static int read_verbatim(struct pack *p, void *out, size_t size, size_t *out_length, struct err *e)
{
    ssize_t n;
    do
        n = read(p->root_fd, out, size);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_sys(e, ERR_IO, errno, "read %s", p->path);
    p->progress.bytes += (uint64_t)n;
    *out_length = (size_t)n;
    return 0;
}

int pack_read(struct pack *pack, void *out, size_t size, size_t *out_length, struct err *e)
{
    assert_always(size > 0);
    if (pack->stage == STAGE_VERBATIM)
        return read_verbatim(pack, out, size, out_length, e);
    while (pack->buffer.length == 0 && pack->stage != STAGE_END) {
        int rc = pack_step(pack, e);
        if (rc != 0)
            return err_wrap(e, "%s", pack->path);
    }
    size_t length = pack->buffer.length < size ? pack->buffer.length : size;
    if (length > 0)
        memcpy(out, pack->buffer.data, length);
    buffer_consume(&pack->buffer, length);
    *out_length = length;
    return 0;
}

int pack_open(struct pack **out, const char *path, const struct pack_options *options,
              struct err *e)
{
    struct pack *p = calloc(1, sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory to pack");
    p->options = *options;
    p->root_fd = -1;
    p->file_fd = -1;
    buffer_init(&p->buffer, BUFFER_SIZE_MAX);
    p->path = strdup(path);
    p->block = malloc(BLOCK_SIZE);
    p->walk = calloc(1, sizeof *p->walk);
    int rc = 0;
    if (p->path == NULL || p->block == NULL || p->walk == NULL)
        rc = err_set(e, ERR_NO_MEMORY, "no memory to pack");
    if (rc == 0) {
        p->root_fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (p->root_fd < 0)
            rc = err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s", path);
    }
    if (rc == 0) {
        rc = survey(p, e);
        if (rc != 0)
            rc = err_wrap(e, "%s", path);
    }
    if (rc == 0 && p->stage != STAGE_VERBATIM)
        rc = writer_open(p, e);
    if (rc != 0) {
        pack_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

struct pack_progress pack_progress(const struct pack *pack)
{
    return pack->progress;
}

void pack_close(struct pack *pack)
{
    if (pack == NULL)
        return;
    if (pack->walk != NULL)
        pack_walk_close(pack->walk);
    if (pack->writer != NULL)
        archive_write_free(pack->writer);
    archive_entry_free(pack->entry);
    memory_close(&pack->root_fd);
    memory_close(&pack->file_fd);
    buffer_free(&pack->buffer);
    free(pack->walk);
    free(pack->block);
    free(pack->path);
    free(pack);
}

int pack_stream(const char *path, const struct pack_options *options, pack_write_cb write,
                void *user, struct err *e)
{
    CLEANUP_FREE char *block = malloc(BLOCK_SIZE);
    struct pack *pack = NULL;
    int rc = block == NULL ? err_set(e, ERR_NO_MEMORY, "no memory to pack")
                           : pack_open(&pack, path, options, e);
    while (rc == 0) {
        size_t length = 0;
        rc = pack_read(pack, block, BLOCK_SIZE, &length, e);
        if (rc != 0 || length == 0)
            break;
        rc = write(user, block, length, &pack->progress, e);
    }
    pack_close(pack);
    return rc;
}
