#include "sandbox/runner/image_place.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"

/* Written at most between two looks at what is free; a file counts as one block at least. */
#define FREE_CHECK_BYTES (16 * 1024 * 1024)
#define FILE_BYTES_MIN 4096

static int open_beneath(int root_fd, const char *path)
{
    struct open_how how = {
        .flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
    };
    return (int)syscall(SYS_openat2, root_fd, path[0] == '\0' ? "." : path, &how, sizeof how);
}

static int space_check(struct image_place *p, uint64_t bytes, struct err *e)
{
    p->bytes_unchecked += bytes > FILE_BYTES_MIN ? bytes : FILE_BYTES_MIN;
    if (p->bytes_unchecked < FREE_CHECK_BYTES)
        return 0;
    p->bytes_unchecked = 0;
    struct statvfs fs;
    if (fstatvfs(p->root_fd, &fs) != 0)
        return err_sys(e, ERR_IO, errno, "look at the free space of the store");
    if ((uint64_t)fs.f_bavail * fs.f_frsize < p->free_bytes_min)
        return err_set(e, ERR_LIMIT, "the disk of the image store is nearly full");
    return 0;
}

/* Makes the folders of `path` one by one. Only called when a look-up said that one is missing. */
static int make_folders(struct image_place *p, const char *path, int *out_fd, struct err *e)
{
    char part[PATH_MAX];
    CLEANUP_FD int fd = -1;
    for (const char *end = path; end != NULL;) {
        end = strchr(end, '/');
        size_t length = end != NULL ? (size_t)(end - path) : strlen(path);
        memcpy(part, path, length);
        part[length] = '\0';
        if (end != NULL)
            end++;
        memory_close(&fd);
        fd = open_beneath(p->root_fd, part);
        if (fd >= 0)
            continue;
        if (errno != ENOENT)
            break;
        if (++p->folders_made > p->folders_max)
            return err_set(e, ERR_LIMIT, "the archive needs more than %llu folders",
                           (unsigned long long)p->folders_max);
        char *slash = strrchr(part, '/');
        const char *name = slash != NULL ? slash + 1 : part;
        if (slash != NULL)
            *slash = '\0';
        CLEANUP_FD int above = open_beneath(p->root_fd, slash != NULL ? part : "");
        if (above < 0 || mkdirat(above, name, 0755) != 0)
            return err_sys(e, ERR_IO, errno, "make the folder of %s", p->shown);
        if (slash != NULL)
            *slash = '/';
        fd = open_beneath(p->root_fd, part);
        if (fd < 0)
            break;
    }
    if (fd < 0)
        return -1;
    *out_fd = steal_fd(&fd);
    return 0;
}

static void forget_parent(struct image_place *p)
{
    memory_close(&p->parent_fd);
    p->parent[0] = '\0';
}

/* The folder that holds `path` in p->parent_fd, made if it is missing; `*out_name` is the last part
 * of `path`. */
static int reach_parent(struct image_place *p, const char *path, const char **out_name,
                        struct err *e)
{
    const char *slash = strrchr(path, '/');
    size_t length = slash != NULL ? (size_t)(slash - path) : 0;
    *out_name = slash != NULL ? slash + 1 : path;
    image_printable(p->shown, sizeof p->shown, path);
    if (p->parent_fd >= 0 && strlen(p->parent) == length && memcmp(p->parent, path, length) == 0)
        return 0;
    forget_parent(p);
    memcpy(p->parent, path, length);
    p->parent[length] = '\0';
    p->parent_fd = open_beneath(p->root_fd, p->parent);
    if (p->parent_fd < 0 && errno == ENOENT) {
        int rc = make_folders(p, p->parent, &p->parent_fd, e);
        if (rc < -1)
            return rc;
    }
    if (p->parent_fd >= 0)
        return 0;
    int sys = errno;
    forget_parent(p);
    if (sys == ELOOP)
        return err_set(e, ERR_INVALID, "the path of %s leads through a symbolic link", p->shown);
    if (sys == ENOTDIR)
        return err_set(e, ERR_INVALID, "the path of %s leads through a file", p->shown);
    return err_sys(e, ERR_IO, sys, "open the folder of %s", p->shown);
}

/* A later entry replaces an earlier one of the same name, as tar does; a folder that holds
 * something is not replaced. */
static int clear_name(struct image_place *p, const char *name, struct err *e)
{
    if (unlinkat(p->parent_fd, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno == EISDIR && unlinkat(p->parent_fd, name, AT_REMOVEDIR) == 0)
        return 0;
    if (errno == ENOTEMPTY || errno == EEXIST)
        return err_set(e, ERR_INVALID, "%s is in the archive as a folder and as something else",
                       p->shown);
    return err_sys(e, ERR_IO, errno, "replace %s", p->shown);
}

static int place_folder(void *user, const char *path, mode_t mode, uid_t uid, gid_t gid,
                        struct err *e)
{
    struct image_place *p = user;
    const char *name;
    int rc = reach_parent(p, path, &name, e);
    if (rc == 0)
        rc = space_check(p, 0, e);
    if (rc != 0)
        return rc;
    if (mkdirat(p->parent_fd, name, 0700) != 0) {
        if (errno != EEXIST)
            return err_sys(e, ERR_IO, errno, "make the folder %s", p->shown);
        struct stat st;
        if (fstatat(p->parent_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISDIR(st.st_mode)) {
            rc = clear_name(p, name, e);
            if (rc != 0)
                return rc;
            if (mkdirat(p->parent_fd, name, 0700) != 0)
                return err_sys(e, ERR_IO, errno, "make the folder %s", p->shown);
        }
    }
    CLEANUP_FD int fd = openat(p->parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fchown(fd, uid, gid) != 0 || fchmod(fd, mode) != 0)
        return err_sys(e, ERR_IO, errno, "make the folder %s", p->shown);
    return 0;
}

static int place_file_begin(void *user, const char *path, mode_t mode, uid_t uid, gid_t gid,
                            uint32_t changed_s, struct err *e)
{
    struct image_place *p = user;
    const char *name;
    int rc = reach_parent(p, path, &name, e);
    if (rc == 0)
        rc = space_check(p, 0, e);
    if (rc != 0)
        return rc;
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    p->file_fd = openat(p->parent_fd, name, flags, 0600);
    if (p->file_fd < 0 && errno == EEXIST) {
        rc = clear_name(p, name, e);
        if (rc != 0)
            return rc;
        forget_parent(p); /* it may have been the folder that went */
        rc = reach_parent(p, path, &name, e);
        if (rc != 0)
            return rc;
        p->file_fd = openat(p->parent_fd, name, flags, 0600);
    }
    if (p->file_fd < 0)
        return err_sys(e, ERR_IO, errno, "make the file %s", p->shown);
    p->file_mode = mode;
    p->file_uid = uid;
    p->file_gid = gid;
    p->file_changed_s = changed_s;
    return 0;
}

static int place_file_data(void *user, const void *data, size_t length, struct err *e)
{
    struct image_place *p = user;
    const char *at = data;
    int rc = space_check(p, length, e);
    while (rc == 0 && length > 0) {
        ssize_t n = write(p->file_fd, at, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_sys(e, n < 0 && errno == ENOSPC ? ERR_LIMIT : ERR_IO, n < 0 ? errno : EIO,
                           "write the file %s", p->shown);
        at += n;
        length -= (size_t)n;
    }
    return rc;
}

static int place_file_end(void *user, struct err *e)
{
    struct image_place *p = user;
    int rc = 0;
    if (fchown(p->file_fd, p->file_uid, p->file_gid) != 0 || fchmod(p->file_fd, p->file_mode) != 0)
        rc = err_sys(e, ERR_IO, errno, "set owner and mode of %s", p->shown);
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = p->file_changed_s}};
    if (rc == 0 && futimens(p->file_fd, times) != 0)
        rc = err_sys(e, ERR_IO, errno, "set the time of %s", p->shown);
    memory_close(&p->file_fd);
    return rc;
}

static int place_link(void *user, const char *path, const char *target, uid_t uid, gid_t gid,
                      struct err *e)
{
    struct image_place *p = user;
    const char *name;
    int rc = reach_parent(p, path, &name, e);
    if (rc == 0)
        rc = clear_name(p, name, e);
    if (rc == 0)
        rc = space_check(p, 0, e);
    if (rc != 0)
        return rc;
    if (symlinkat(target, p->parent_fd, name) != 0 ||
        fchownat(p->parent_fd, name, uid, gid, AT_SYMLINK_NOFOLLOW) != 0)
        return err_sys(e, ERR_IO, errno, "make the symbolic link %s", p->shown);
    return 0;
}

static int place_hard_link(void *user, const char *path, const char *existing, uint64_t *out_bytes,
                           struct err *e)
{
    struct image_place *p = user;
    char above[PATH_MAX];
    const char *slash = strrchr(existing, '/');
    size_t length = slash != NULL ? (size_t)(slash - existing) : 0;
    memcpy(above, existing, length);
    above[length] = '\0';
    const char *old = slash != NULL ? slash + 1 : existing;
    const char *name;
    int rc = reach_parent(p, path, &name, e);
    if (rc != 0)
        return rc;
    struct stat st;
    CLEANUP_FD int from = open_beneath(p->root_fd, above);
    if (from < 0 || fstatat(from, old, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return err_set(e, ERR_INVALID, "the hard link %s leads to nothing in the archive before it",
                       p->shown);
    if (!S_ISREG(st.st_mode))
        return err_set(e, ERR_INVALID, "the hard link %s does not lead to a file", p->shown);
    struct stat own;
    if (fstatat(p->parent_fd, name, &own, AT_SYMLINK_NOFOLLOW) == 0) {
        if (own.st_ino == st.st_ino && own.st_dev == st.st_dev)
            return 0;
        rc = clear_name(p, name, e);
        if (rc != 0)
            return rc;
    }
    if (linkat(from, old, p->parent_fd, name, 0) != 0)
        return err_sys(e, ERR_IO, errno, "make the hard link %s", p->shown);
    *out_bytes = (uint64_t)st.st_size;
    return 0;
}

void image_place_open(struct image_place *place, struct image_sink *out)
{
    place->file_fd = -1;
    place->parent_fd = -1;
    place->parent[0] = '\0';
    place->shown[0] = '\0';
    place->folders_made = 0;
    place->bytes_unchecked = FREE_CHECK_BYTES; /* the first entry looks */
    *out = (struct image_sink){
        .user = place,
        .folder = place_folder,
        .file_begin = place_file_begin,
        .file_data = place_file_data,
        .file_end = place_file_end,
        .link = place_link,
        .hard_link = place_hard_link,
    };
}

void image_place_close(struct image_place *place)
{
    memory_close(&place->file_fd);
    memory_close(&place->parent_fd);
}
