/* Files into an instance. Archives are hostile towards the folder they are unpacked into: names are
 * resolved beneath it by the kernel, and what is no file, folder or link is refused. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent/files.h"
#include "sandbox/shared/tar.h"

/* Folders whose final mode is set at the end; beyond that they stay writable for their owner. */
#define FOLDERS_MAX 65536

struct folder_mode {
    char *path;
    uint32_t mode;
};

struct unpack {
    int base; /* the folder below which everything stays */
    struct tar_reader reader;
    struct folder_mode *folders;
    size_t folder_count, folder_size;
    struct copy copy;
};

static int open_beneath(int base, const char *path, int flags)
{
    const struct open_how how = {.flags = (unsigned)(flags | O_CLOEXEC),
                                 .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, base, path, &how, sizeof how);
}

static int open_failed(int sys, const char *folder, struct err *e)
{
    if (sys == EXDEV)
        return err_set(e, ERR_DENIED, "%s leads out of the folder", folder);
    return err_sys(e, ERR_DENIED, sys, "open folder %s", folder);
}

/* Makes the folders that lead to `path` and opens the last of them. Each step is resolved from the
 * base, so that links may lead anywhere beneath it and nowhere else. */
static int make_parent(int base, char *folder, struct err *e)
{
    CLEANUP_FD int above = fcntl(base, F_DUPFD_CLOEXEC, 0);
    char *at = folder;
    for (int depth = 0;; depth++) {
        size_t length = strcspn(at, "/");
        bool last = at[length] == '\0';
        at[length] = '\0';
        if (depth > DEPTH_MAX)
            return err_set(e, ERR_LIMIT, "folders nest deeper than %d", DEPTH_MAX);
        if (mkdirat(above, at, 0755) != 0 && errno != EEXIST)
            return err_sys(e, ERR_DENIED, errno, "make folder %s", folder);
        int fd = open_beneath(base, folder, O_PATH | O_DIRECTORY);
        if (fd < 0)
            return open_failed(errno, folder, e);
        memory_close(&above);
        above = fd;
        if (last)
            return steal_fd(&above);
        at[length] = '/';
        at += length + 1;
    }
}

static int open_parent(int base, const char *path, struct err *e)
{
    char folder[TAR_PATH_SIZE];
    (void)text_copy(folder, sizeof folder, path);
    char *slash = strrchr(folder, '/');
    if (slash == NULL)
        return fcntl(base, F_DUPFD_CLOEXEC, 0);
    *slash = '\0';
    int fd = open_beneath(base, folder, O_PATH | O_DIRECTORY);
    if (fd >= 0)
        return fd;
    if (errno != ENOENT)
        return open_failed(errno, folder, e);
    return make_parent(base, folder, e);
}

static void remember_mode(struct unpack *u, const char *path, uint32_t mode)
{
    if (u->folder_count == FOLDERS_MAX)
        return;
    if (u->folder_count == u->folder_size) {
        size_t size = u->folder_size == 0 ? 64 : u->folder_size * 2;
        struct folder_mode *folders = realloc(u->folders, size * sizeof *folders);
        if (folders == NULL)
            return;
        u->folders = folders;
        u->folder_size = size;
    }
    char *copy = strdup(path);
    if (copy != NULL)
        u->folders[u->folder_count++] = (struct folder_mode){.path = copy, .mode = mode};
}

/* Deepest first would do as well: a folder that we lock is not entered again, but by its path. */
static void set_modes(struct unpack *u)
{
    for (size_t i = u->folder_count; i-- > 0;) {
        CLEANUP_FD int fd = open_beneath(u->base, u->folders[i].path, O_RDONLY | O_DIRECTORY);
        if (fd >= 0)
            (void)!fchmod(fd, u->folders[i].mode & 0777);
        free(u->folders[i].path);
    }
    free(u->folders);
}

static int take_folder(struct unpack *u, int parent, const struct tar_entry *entry, struct err *e)
{
    const char *name = file_base_name(entry->path);
    struct stat st;
    if (mkdirat(parent, name, 0700) != 0) {
        if (errno != EEXIST || fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
            return err_sys(e, ERR_DENIED, errno, "make folder %s", entry->path);
        if (!S_ISDIR(st.st_mode))
            return err_set(e, ERR_EXISTS, "%s is there and is not a folder", entry->path);
    }
    remember_mode(u, entry->path, entry->mode);
    return 0;
}

static int take_file(struct unpack *u, int parent, const struct tar_entry *entry, struct err *e)
{
    const char *name = file_base_name(entry->path);
    CLEANUP_FD int fd =
        openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(e, ERR_DENIED, errno, "write %s", entry->path);
    uint64_t left = entry->size;
    while (left > 0) {
        size_t want = left < COPY_BYTES ? (size_t)left : COPY_BYTES;
        ssize_t got = file_read_full(STDIN_FILENO, u->copy.bytes, want);
        if (got < (ssize_t)want)
            return err_set(e, ERR_INVALID, "archive: it ends within %s", entry->path);
        int rc = file_write_all(u->copy.bytes, want, fd, e);
        if (rc != 0)
            return err_wrap(e, "%s", entry->path);
        left -= want;
    }
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = entry->mtime_s}};
    (void)futimens(fd, times);
    if (fchmod(fd, entry->mode & 0777) != 0)
        return err_sys(e, ERR_IO, errno, "set the mode of %s", entry->path);
    return 0;
}

static int take_hardlink(struct unpack *u, int parent, struct tar_entry *entry, struct err *e)
{
    if (!tar_path_clean(entry->link) || entry->link[0] == '\0')
        return err_set(e, ERR_DENIED, "%s links out of the archive", entry->path);
    CLEANUP_FD int from = open_parent(u->base, entry->link, e);
    if (from < 0)
        return from;
    if (linkat(from, file_base_name(entry->link), parent, file_base_name(entry->path), 0) != 0)
        return err_sys(e, ERR_DENIED, errno, "link %s", entry->path);
    return 0;
}

static int take_entry(struct unpack *u, struct err *e)
{
    struct tar_entry *entry = &u->reader.entry;
    char shown[128];
    (void)text_copy(shown, sizeof shown, entry->path);
    if (!tar_path_clean(entry->path))
        return err_set(e, ERR_DENIED, "%s: absolute paths and .. are refused", shown);
    if (entry->path[0] == '\0')
        return entry->type == TAR_DIRECTORY
                   ? 0
                   : err_set(e, ERR_INVALID, "archive: an entry has no name");
    if (entry->type == TAR_OTHER)
        return err_set(e, ERR_DENIED, "%s is a device, a fifo or of an unknown kind", shown);
    CLEANUP_FD int parent = open_parent(u->base, entry->path, e);
    if (parent < 0)
        return parent;
    if (entry->type == TAR_DIRECTORY)
        return take_folder(u, parent, entry, e);
    /* As tar does: what is there gives way, a link there is never followed. */
    const char *name = file_base_name(entry->path);
    if (unlinkat(parent, name, 0) != 0 && errno != ENOENT)
        return err_sys(e, ERR_DENIED, errno, "replace %s", shown);
    if (entry->type == TAR_FILE)
        return take_file(u, parent, entry, e);
    if (entry->type == TAR_HARDLINK)
        return take_hardlink(u, parent, entry, e);
    if (symlinkat(entry->link, parent, name) != 0)
        return err_sys(e, ERR_DENIED, errno, "link %s", shown);
    return 0;
}

static int take_stream(struct unpack *u, struct err *e)
{
    for (;;) {
        uint8_t block[TAR_BLOCK_BYTES];
        enum tar_step step;
        ssize_t got = file_read_full(STDIN_FILENO, block, sizeof block);
        if (got == 0)
            return 0;
        if (got != (ssize_t)sizeof block)
            return err_set(e, ERR_INVALID, "archive: it ends within a block");
        int rc = tar_reader_block(&u->reader, block, &step, e);
        if (rc == 0 && step == TAR_STEP_ENTRY) {
            size_t padding = tar_padding(u->reader.entry.size);
            rc = take_entry(u, e);
            if (rc == 0 && file_read_full(STDIN_FILENO, block, padding) != (ssize_t)padding)
                rc = err_set(e, ERR_INVALID, "archive: it ends within a block");
        }
        if (rc != 0)
            return rc;
        if (step == TAR_STEP_END)
            break;
    }
    /* Whoever writes the stream shall not see it break. */
    while (file_read_full(STDIN_FILENO, u->copy.bytes, COPY_BYTES) > 0)
        ;
    return 0;
}

int unpack_tree(const char *path, struct err *e)
{
    CLEANUP_FREE struct unpack *u = calloc(1, sizeof *u);
    CLEANUP_FD int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CLEANUP_FREE char *inside = strdup(path + strspn(path, "/"));
    if (u == NULL || inside == NULL || root < 0)
        return err_set(e, ERR_NO_MEMORY, "unpack below %s", path);
    if (!tar_path_clean(inside))
        return err_set(e, ERR_INVALID, "%s: .. is refused", path);
    CLEANUP_FD int parent = open_parent(root, inside, e);
    if (parent < 0)
        return parent;
    if (inside[0] != '\0' && mkdirat(parent, file_base_name(inside), 0755) != 0 && errno != EEXIST)
        return err_sys(e, ERR_DENIED, errno, "make folder %s", path);
    CLEANUP_FD int base = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (base < 0)
        return err_sys(e, ERR_DENIED, errno, "%s", path);
    u->base = base;
    tar_reader_init(&u->reader);
    int rc = take_stream(u, e);
    set_modes(u);
    tar_reader_free(&u->reader);
    return rc;
}

static int copy_in(int fd, struct copy *copy, struct err *e)
{
    for (;;) {
        ssize_t got = file_read_full(STDIN_FILENO, copy->bytes, COPY_BYTES);
        if (got < 0)
            return err_sys(e, ERR_IO, errno, "read the stream");
        if (got == 0)
            return 0;
        int rc = file_write_all(copy->bytes, (size_t)got, fd, e);
        if (rc != 0)
            return rc;
    }
}

/* Beside the file and then in its place: whoever reads it sees the old one or the new one. */
int unpack_plain(const char *path, struct copy *copy, struct err *e)
{
    char beside[TAR_PATH_SIZE];
    char inside[TAR_PATH_SIZE];
    struct stat st;
    CLEANUP_FD int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (!text_copy(inside, sizeof inside, path + strspn(path, "/")) ||
        path[strlen(path) - 1] == '/' || !tar_path_clean(inside) || inside[0] == '\0')
        return err_set(e, ERR_INVALID, "%s is not the path of a file", path);
    CLEANUP_FD int parent = open_parent(root, inside, e);
    if (parent < 0)
        return parent;
    const char *name = file_base_name(inside);
    bool there = fstatat(parent, name, &st, 0) == 0;
    if (there && !S_ISREG(st.st_mode))
        return err_set(e, ERR_EXISTS, "%s is there and is not a regular file", path);
    if (!text_format(beside, sizeof beside, ".%.200s.%d", name, (int)getpid()))
        return err_set(e, ERR_INVALID, "the path is too long");
    CLEANUP_FD int fd = openat(parent, beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(e, ERR_DENIED, errno, "write %s", path);
    int rc = copy_in(fd, copy, e);
    if (rc == 0 && (fchmod(fd, there ? st.st_mode & 0777 : 0644) != 0 ||
                    renameat(parent, beside, parent, name) != 0))
        rc = err_sys(e, ERR_DENIED, errno, "write %s", path);
    if (rc != 0)
        (void)unlinkat(parent, beside, 0);
    return rc;
}
