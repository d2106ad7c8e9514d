#include "node/cli/untar.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/shared/tar.h"

enum { DEPTH_MAX = 128 };

enum where { AT_HEADER, AT_DATA, AT_PADDING, AT_END };

struct untar {
    int base;
    char *rename_to;
    struct tar_reader reader;
    enum where where;
    uint8_t block[TAR_BLOCK_BYTES];
    size_t block_length;
    uint64_t left; /* of the data, then of the padding */
    int file;      /* being written; -1: none */
    uint64_t count;
    char path[TAR_PATH_SIZE];
};

int untar_new(struct untar **out, const char *folder, const char *rename_to, struct err *e)
{
    struct untar *u = calloc(1, sizeof *u);
    if (u == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    tar_reader_init(&u->reader);
    u->file = -1;
    u->base = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    u->rename_to = rename_to == NULL ? NULL : strdup(rename_to);
    if (u->base < 0 || (rename_to != NULL && u->rename_to == NULL)) {
        int rc = err_sys(e, ERR_IO, errno, "open folder %s", folder);
        untar_free(u);
        return rc;
    }
    *out = u;
    return 0;
}

void untar_free(struct untar *u)
{
    if (u == NULL)
        return;
    memory_close(&u->base);
    memory_close(&u->file);
    tar_reader_free(&u->reader);
    free(u->rename_to);
    free(u);
}

uint64_t untar_count(const struct untar *u)
{
    return u->count;
}

static int open_beneath(int base, const char *path, int flags)
{
    const struct open_how how = {.flags = (unsigned)(flags | O_CLOEXEC),
                                 .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, base, path, &how, sizeof how);
}

/* Makes the folders that lead to `path` and opens the last of them, O_PATH. */
static int open_parent(int base, const char *path, struct err *e)
{
    char folder[TAR_PATH_SIZE];
    (void)text_copy(folder, sizeof folder, path);
    char *last = strrchr(folder, '/');
    CLEANUP_FD int above = fcntl(base, F_DUPFD_CLOEXEC, 3);
    if (last == NULL)
        return steal_fd(&above);
    *last = '\0';
    char *at = folder;
    for (int depth = 0; depth < DEPTH_MAX; depth++) {
        size_t length = strcspn(at, "/");
        bool done = at[length] == '\0';
        at[length] = '\0';
        if (mkdirat(above, at, 0755) < 0 && errno != EEXIST)
            return err_sys(e, ERR_IO, errno, "make folder %s", folder);
        int fd = open_beneath(base, folder, O_PATH | O_DIRECTORY);
        if (fd < 0)
            return err_sys(e, ERR_IO, errno, "open folder %s", folder);
        memory_close(&above);
        above = fd;
        if (done)
            return steal_fd(&above);
        at[length] = '/';
        at += length + 1;
    }
    return err_set(e, ERR_LIMIT, "%.100s: folders nest deeper than %d", path, DEPTH_MAX);
}

static int place(struct untar *u, const char *path, int parent, struct err *e)
{
    struct tar_entry *entry = &u->reader.entry;
    const char *slash = strrchr(path, '/');
    const char *name = slash == NULL ? path : slash + 1;
    unsigned mode = entry->mode & 0777;
    switch (entry->type) {
    case TAR_DIRECTORY:
        if (mkdirat(parent, name, mode | 0700) < 0 && errno != EEXIST)
            return err_sys(e, ERR_IO, errno, "make folder %s", path);
        return 0;
    case TAR_FILE:
        (void)unlinkat(parent, name, 0);
        u->file = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
        return u->file < 0 ? err_sys(e, ERR_IO, errno, "write %s", path) : 0;
    case TAR_SYMLINK:
        (void)unlinkat(parent, name, 0);
        return symlinkat(entry->link, parent, name) < 0 ? err_sys(e, ERR_IO, errno, "link %s", path)
                                                        : 0;
    case TAR_HARDLINK: /* the other side sends each name with its content */
    case TAR_OTHER:
        break;
    }
    return err_set(e, ERR_DENIED, "%.100s is a device, or of an unknown kind", path);
}

static int take_entry(struct untar *u, struct err *e)
{
    struct tar_entry *entry = &u->reader.entry;
    if (!tar_path_clean(entry->path))
        return err_set(e, ERR_DENIED, "%.100s: absolute paths and .. are refused", entry->path);
    const char *rest = u->rename_to == NULL ? entry->path : strchr(entry->path, '/');
    bool fits = u->rename_to == NULL ? text_copy(u->path, sizeof u->path, entry->path)
                                     : text_format(u->path, sizeof u->path, "%s%s", u->rename_to,
                                                   rest == NULL ? "" : rest);
    if (!fits)
        return err_set(e, ERR_LIMIT, "%.100s...: the path is too long", entry->path);
    u->count++;
    if (u->path[0] == '\0')
        return 0; /* the folder itself */
    CLEANUP_FD int parent = open_parent(u->base, u->path, e);
    return parent < 0 ? parent : place(u, u->path, parent, e);
}

static int take_block(struct untar *u, struct err *e)
{
    enum tar_step step;
    int rc = tar_reader_block(&u->reader, u->block, &step, e);
    if (rc != 0 || step == TAR_STEP_MORE)
        return rc;
    if (step == TAR_STEP_END) {
        u->where = AT_END;
        return 0;
    }
    rc = take_entry(u, e);
    u->where = AT_DATA;
    u->left = u->reader.entry.size;
    return rc;
}

static int write_data(struct untar *u, const uint8_t *data, size_t length, struct err *e)
{
    while (u->file >= 0 && length > 0) {
        ssize_t n = write(u->file, data, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "write %s", u->path);
        data += n;
        length -= (size_t)n;
    }
    return 0;
}

int untar_take(struct untar *u, const void *bytes, size_t length, struct err *e)
{
    const uint8_t *data = bytes;
    int rc = 0;
    while (rc == 0) {
        if (u->where == AT_DATA && u->left == 0) {
            memory_close(&u->file);
            u->where = AT_PADDING;
            u->left = tar_padding(u->reader.entry.size);
        }
        if (u->where == AT_PADDING && u->left == 0)
            u->where = AT_HEADER;
        if (length == 0 || u->where == AT_END)
            break;
        size_t want = u->where == AT_HEADER ? TAR_BLOCK_BYTES - u->block_length : (size_t)u->left;
        size_t n = length < want ? length : want;
        if (u->where == AT_HEADER) {
            memcpy(u->block + u->block_length, data, n);
            u->block_length += n;
            if (u->block_length == TAR_BLOCK_BYTES) {
                u->block_length = 0;
                rc = take_block(u, e);
            }
        } else {
            if (u->where == AT_DATA)
                rc = write_data(u, data, n, e);
            u->left -= n;
        }
        data += n;
        length -= n;
    }
    return rc;
}

int untar_end(struct untar *u, struct err *e)
{
    memory_close(&u->file);
    return u->where == AT_END ? 0 : err_set(e, ERR_IO, "the archive broke off");
}
