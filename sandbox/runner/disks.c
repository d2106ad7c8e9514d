#include "sandbox/runner/disks.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/mount_lines.h"

/* What root.c shows of the machine. */
static const char *const shown[] = {"/usr", "/etc", "/bin", "/sbin", "/lib"};
/* Below /usr, but not shown. */
static const char *const hidden[] = {"/usr/local", "/usr/src"};

/* The folder of a partition lies in that of its disk. */
static bool disk_of(dev_t device, struct disk *out)
{
    char path[80], text[32];
    text_format(path, sizeof path, "/sys/dev/block/%u:%u/partition", major(device), minor(device));
    bool partition = access(path, F_OK) == 0;
    text_format(path, sizeof path, "/sys/dev/block/%u:%u/%sdev", major(device), minor(device),
                partition ? "../" : "");
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return false;
    text[n] = '\0';
    char *rest;
    out->major = (unsigned)strtoul(text, &rest, 10);
    out->minor = rest[0] == ':' ? (unsigned)strtoul(rest + 1, NULL, 10) : 0;
    return rest[0] == ':';
}

int disks_add_device(struct disks *disks, dev_t device, struct err *e)
{
    struct disk disk;
    if (!disk_of(device, &disk))
        return err_set(e, ERR_UNSUPPORTED, "%u:%u is no disk", major(device), minor(device));
    for (size_t i = 0; i < disks->count; i++)
        if (disks->list[i].major == disk.major && disks->list[i].minor == disk.minor)
            return 0;
    if (disks->count == DISKS_MAX)
        return err_set(e, ERR_LIMIT, "these are more than %d disks", DISKS_MAX);
    disks->list[disks->count++] = disk;
    return 0;
}

int disks_add(struct disks *disks, const char *path, struct err *e)
{
    struct stat st;
    struct statfs fs;
    if (stat(path, &st) < 0 || statfs(path, &fs) < 0)
        return errno == ENOENT ? 0 : err_sys(e, ERR_IO, errno, "look at %s", path);
    if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
        return 0;
    /* btrfs, overlay and what comes over the network have a number that is no device's. */
    struct err why;
    int rc = disks_add_device(disks, st.st_dev, &why);
    return rc == 0 ? 0
                   : err_set(e, why.code, "%s lies on no disk that the kernel could limit: %s",
                             path, why.msg);
}

static bool is_below(const char *path, const char *folder)
{
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* What is mounted below /usr is shown with it. */
static int mounts_add(struct disks *disks, struct err *e)
{
    FILE *file = mount_lines_open(e);
    if (file == NULL)
        return -(int)e->code;
    CLEANUP_FREE char *line = NULL;
    size_t size = 0;
    struct mount_line m;
    int rc = 0;
    while (rc == 0 && mount_lines_next(file, &line, &size, &m)) {
        bool seen = is_below(m.point, "/usr");
        for (size_t i = 0; i < ARRAY_SIZE(hidden); i++)
            seen = seen && !is_below(m.point, hidden[i]);
        rc = seen ? disks_add(disks, m.point, e) : 0;
    }
    fclose(file);
    return rc;
}

void disks_find(struct disks *out, const char *store)
{
    struct err e;
    *out = (struct disks){0};
    int rc = disks_add(out, store, &e);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(shown); i++)
        rc = disks_add(out, shown[i], &e);
    if (rc == 0)
        rc = mounts_add(out, &e);
    if (rc == 0 && out->count == 0)
        rc = err_set(&e, ERR_UNSUPPORTED, "all that instances read lies in memory");
    if (rc == 0)
        return;
    out->count = 0;
    text_copy(out->lack, sizeof out->lack, e.msg);
}
