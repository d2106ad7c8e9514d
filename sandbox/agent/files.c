/* The built-in commands: files out of an instance and into it (unpack.c), as its user and confined
 * as any command. */
#include "sandbox/agent/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent/agent.h"
#include "sandbox/runner.pb-c.h"
#include "sandbox/shared/tar.h"

int file_write_all(const void *data, size_t length, int fd, struct err *e)
{
    const uint8_t *at = data;
    while (length > 0) {
        ssize_t written = write(fd, at, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return err_sys(e, ERR_IO, errno, "write");
        at += written;
        length -= (size_t)written;
    }
    return 0;
}

ssize_t file_read_full(int fd, void *data, size_t length)
{
    size_t got = 0;
    while (got < length) {
        ssize_t n = read(fd, (uint8_t *)data + got, length - got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

const char *file_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

static int put_header(const struct tar_entry *entry, struct err *e)
{
    uint8_t blocks[TAR_ENCODED_BYTES_MAX];
    size_t length = tar_encode(entry, blocks);
    if (length == 0)
        return err_set(e, ERR_LIMIT, "%.100s...: the path is too long", entry->path);
    return file_write_all(blocks, length, STDOUT_FILENO, e);
}

/* Exactly entry->size bytes: a file that shrinks meanwhile is filled with zeros. */
static int put_file(int fd, const struct tar_entry *entry, struct copy *copy, struct err *e)
{
    int rc = put_header(entry, e);
    uint64_t left = entry->size;
    bool ended = false;
    while (rc == 0 && left > 0) {
        size_t want = left < COPY_BYTES ? (size_t)left : COPY_BYTES;
        ssize_t got = ended ? 0 : file_read_full(fd, copy->bytes, want);
        if (got < 0)
            return err_sys(e, ERR_IO, errno, "read %s", entry->path);
        ended = (size_t)got < want;
        memset(copy->bytes + got, 0, want - (size_t)got);
        rc = file_write_all(copy->bytes, want, STDOUT_FILENO, e);
        left -= want;
    }
    memset(copy->bytes, 0, TAR_BLOCK_BYTES);
    return rc != 0 ? rc : file_write_all(copy->bytes, tar_padding(entry->size), STDOUT_FILENO, e);
}

static int put_any(int parent, const char *name, struct tar_entry *entry, struct copy *copy,
                   int depth, struct err *e);

static int put_folder(int fd, struct tar_entry *entry, struct copy *copy, int depth, struct err *e)
{
    size_t length = strlen(entry->path);
    int rc = length == 0 ? 0 : put_header(entry, e);
    DIR *folder = rc == 0 ? fdopendir(fd) : NULL;
    if (folder == NULL) {
        close(fd);
        return rc != 0 ? rc : err_sys(e, ERR_IO, errno, "read %s", entry->path);
    }
    struct dirent *child;
    while (rc == 0 && (child = readdir(folder)) != NULL) {
        if (strcmp(child->d_name, ".") == 0 || strcmp(child->d_name, "..") == 0)
            continue;
        if (!text_format(entry->path + length, TAR_PATH_SIZE - length, "%s%s",
                         length > 0 ? "/" : "", child->d_name))
            rc = err_set(e, ERR_LIMIT, "%.100s...: the path is too long", entry->path);
        else
            rc = put_any(dirfd(folder), child->d_name, entry, copy, depth + 1, e);
        entry->path[length] = '\0';
    }
    closedir(folder);
    return rc;
}

static void describe(struct tar_entry *entry, const struct stat *st, enum tar_type type)
{
    entry->type = type;
    entry->mode = st->st_mode & 07777;
    entry->mtime_s = st->st_mtime;
    entry->size = type == TAR_FILE ? (uint64_t)st->st_size : 0;
    entry->link[0] = '\0';
}

static int put_opened(int fd, struct tar_entry *entry, struct copy *copy, int depth, struct err *e)
{
    struct stat st;
    CLEANUP_FD int owned = fd;
    if (fstat(fd, &st) != 0)
        return err_sys(e, ERR_IO, errno, "read %s", entry->path);
    if (S_ISDIR(st.st_mode)) {
        if (depth > DEPTH_MAX)
            return err_set(e, ERR_LIMIT, "folders nest deeper than %d", DEPTH_MAX);
        describe(entry, &st, TAR_DIRECTORY);
        return put_folder(steal_fd(&owned), entry, copy, depth, e);
    }
    if (!S_ISREG(st.st_mode))
        return 0;
    describe(entry, &st, TAR_FILE);
    return put_file(fd, entry, copy, e);
}

/* Sockets, fifos and devices are left out: they mean nothing elsewhere. */
static int put_any(int parent, const char *name, struct tar_entry *entry, struct copy *copy,
                   int depth, struct err *e)
{
    struct stat st;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : err_sys(e, ERR_IO, errno, "read %s", entry->path);
    if (S_ISLNK(st.st_mode)) {
        describe(entry, &st, TAR_SYMLINK);
        ssize_t length = readlinkat(parent, name, entry->link, TAR_PATH_SIZE - 1);
        if (length < 0)
            return err_sys(e, ERR_IO, errno, "read %s", entry->path);
        entry->link[length] = '\0';
        return put_header(entry, e);
    }
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return 0;
    int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_DENIED, errno, "read %s", entry->path);
    return put_opened(fd, entry, copy, depth, e);
}

/* The archive holds PATH under its last name; what / holds without one. */
static int put_tree(const char *path, struct copy *copy, struct err *e)
{
    CLEANUP_FREE struct tar_entry *entry = calloc(1, sizeof *entry);
    CLEANUP_FREE char *clean = strdup(path);
    if (entry == NULL || clean == NULL)
        return err_set(e, ERR_NO_MEMORY, "read %s", path);
    for (size_t n = strlen(clean); n > 0 && clean[n - 1] == '/'; n--)
        clean[n - 1] = '\0';
    const char *name = file_base_name(clean);
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        name = "";
    if (!text_copy(entry->path, sizeof entry->path, name))
        return err_set(e, ERR_INVALID, "the path is too long");
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat st;
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_DENIED, errno, "%s", path);
    if (fstat(fd, &st) != 0 || (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))) {
        close(fd);
        return err_set(e, ERR_INVALID, "%s is neither a file nor a folder", path);
    }
    int rc = put_opened(fd, entry, copy, 0, e);
    memset(copy->bytes, 0, 2 * TAR_BLOCK_BYTES);
    return rc != 0 ? rc : file_write_all(copy->bytes, 2 * TAR_BLOCK_BYTES, STDOUT_FILENO, e);
}

static int put_plain(const char *path, struct copy *copy, struct err *e)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat st;
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_DENIED, errno, "%s", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return err_set(e, ERR_INVALID, "%s is not a regular file", path);
    for (;;) {
        ssize_t got = file_read_full(fd, copy->bytes, COPY_BYTES);
        if (got < 0)
            return err_sys(e, ERR_IO, errno, "read %s", path);
        if (got == 0)
            return 0;
        int rc = file_write_all(copy->bytes, (size_t)got, STDOUT_FILENO, e);
        if (rc != 0)
            return rc;
    }
}

int files_run(uint32_t verb, const char *path, struct err *e)
{
    CLEANUP_FREE struct copy *copy = malloc(sizeof *copy);
    if (copy == NULL) {
        err_set(e, ERR_NO_MEMORY, "%s", path);
        return 1;
    }
    int rc;
    switch (verb) {
    case SKERRY__RUNNER__FILE_VERB__FILE_READ:
        rc = put_tree(path, copy, e);
        break;
    case SKERRY__RUNNER__FILE_VERB__FILE_READ_PLAIN:
        rc = put_plain(path, copy, e);
        break;
    case SKERRY__RUNNER__FILE_VERB__FILE_WRITE:
        rc = unpack_tree(path, e);
        break;
    default:
        rc = unpack_plain(path, copy, e);
        break;
    }
    return rc == 0 ? 0 : 1;
}
