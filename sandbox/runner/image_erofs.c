#include "sandbox/runner/image_erofs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/image_entry.h"
#include "sandbox/runner/image_sandbox.h"

#define TOOL "mkfs.erofs"
/* Each file has at most a block that is not full, 64 bytes of its own, and a name of 267 bytes in a
 * folder whose blocks may be half empty. */
#define FILE_BYTES_MAX (4096 + 1024)
#define FIXED_BYTES (1024 * 1024)
#define LOOP_TRIES 16 /* somebody else may take the device that was free */
#define SAID_BYTES 4096

int image_erofs_in_kernel(struct err *e)
{
    CLEANUP_FD int context = fsopen("erofs", FSOPEN_CLOEXEC);
    if (context >= 0)
        return 0;
    if (errno == ENODEV)
        return err_set(e, ERR_UNSUPPORTED, "this kernel has no erofs (modprobe erofs)");
    return err_sys(e, ERR_UNSUPPORTED, errno, "this kernel does not let us mount erofs");
}

int image_erofs_tool(char out[IMAGE_TOOL_SIZE], const char *folders, struct err *e)
{
    const char *at = folders != NULL ? folders : "/usr/bin:/usr/sbin";
    while (*at != '\0') {
        size_t length = strcspn(at, ":");
        char path[PATH_MAX];
        bool fits = text_format(path, sizeof path, "%.*s/" TOOL, (int)length, at);
        /* What is executed has /usr only; a folder as /bin may be a link into it. */
        CLEANUP_FREE char *real = fits ? realpath(path, NULL) : NULL;
        if (real != NULL && strncmp(real, "/usr/", 5) == 0 && access(real, X_OK) == 0 &&
            text_copy(out, IMAGE_TOOL_SIZE, real))
            return 0;
        at += length;
        at += *at == ':';
    }
    return err_set(e, ERR_NOT_FOUND, "there is no " TOOL " (Debian: apt-get install erofs-utils)");
}

/* --- writing ---------------------------------------------------------------------------------- */

/* In the sandbox, when the tool could not be executed: to what would be its standard error. */
static int say(const void *user, const struct err *failed)
{
    (void)user;
    if (failed != NULL)
        (void)!write(STDERR_FILENO, failed->msg, strlen(failed->msg));
    return 127;
}

/* The last line of what it said, fit to be shown. */
static const char *last_line(int said_fd, char *out, size_t size)
{
    char said[SAID_BYTES + 1];
    ssize_t n = read(said_fd, said, SAID_BYTES);
    said[n > 0 ? n : 0] = '\0';
    size_t end = strlen(said);
    while (end > 0 && said[end - 1] == '\n')
        said[--end] = '\0';
    const char *line = strrchr(said, '\n');
    return image_printable(out, size, line != NULL ? line + 1 : said);
}

static int tool_run(const struct image_erofs_order *o, int output_fd, uint64_t bytes_max,
                    struct err *e)
{
    char name[] = TOOL, attributes[] = "-x-1", output[] = "/output", tree[] = "/tree";
    char *const argv[] = {name, attributes, output, tree, NULL};
    const struct image_program program = {.path = o->tool, .argv = argv, .output_fd = output_fd};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        return err_sys(e, ERR_IO, errno, "make a pipe");
    CLEANUP_FD int read_end = ends[0];
    CLEANUP_FD int write_end = ends[1];
    CLEANUP_FD int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    const struct image_sandbox sandbox = {.tree_fd = o->tree_fd,
                                          .input_fd = null,
                                          .report_fd = write_end,
                                          .read_only = true,
                                          .program = &program,
                                          .file_bytes_max = bytes_max,
                                          .cpu_seconds_max = 3600,
                                          .ids = o->ids};
    pid_t pid;
    int status = 0;
    int rc = image_sandbox_start(&pid, &sandbox, say, NULL, e);
    if (rc == 0)
        rc = image_sandbox_wait(pid, o->deadline_ms, &status, e);
    if (rc != 0 || status == 0)
        return rc;
    char line[160];
    return err_set(e, ERR_IO, TOOL " ended with %s %d: %s",
                   WIFSIGNALED(status) ? "signal" : "status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
                   last_line(read_end, line, sizeof line));
}

/* What a full disk would end must not be risked: the registry may lie on it. */
static int room_check(const struct image_erofs_order *o, uint64_t bytes_max, struct err *e)
{
    struct statvfs fs;
    if (fstatvfs(o->layer_fd, &fs) != 0)
        return err_sys(e, ERR_IO, errno, "look at the free space of the store");
    if ((uint64_t)fs.f_bavail * fs.f_frsize < bytes_max + o->free_bytes_min)
        return err_set(e, ERR_LIMIT, "the disk has no room for both");
    return 0;
}

int image_erofs_write(const struct image_erofs_order *o, struct err *e)
{
    const uint64_t bytes_max = o->bytes + o->files * FILE_BYTES_MAX + FIXED_BYTES;
    int rc = room_check(o, bytes_max, e);
    if (rc != 0)
        return rc;
    CLEANUP_FD int fd = openat(o->layer_fd, IMAGE_EROFS_FILE,
                               O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || fchown(fd, o->ids.first, o->ids.first) != 0)
        rc = err_sys(e, ERR_IO, errno, "make the file of erofs");
    if (rc == 0)
        rc = tool_run(o, fd, bytes_max, e);
    /* Whoever wrote it is gone, and nobody else ever may. */
    if (rc == 0 && (fchown(fd, 0, 0) != 0 || fchmod(fd, 0400) != 0))
        rc = err_sys(e, ERR_IO, errno, "lock the file of erofs");
    if (rc != 0)
        (void)unlinkat(o->layer_fd, IMAGE_EROFS_FILE, 0);
    return rc;
}

/* --- mounting --------------------------------------------------------------------------------- */

static int mount_source(const char *source, int *out_fd, struct err *e)
{
    CLEANUP_FD int context = fsopen("erofs", FSOPEN_CLOEXEC);
    if (context < 0)
        return err_sys(e, ERR_UNSUPPORTED, errno, "open the file system erofs");
    /* Of a file: what is read of it is kept once, by erofs. From Linux 6.15; done without before. */
    (void)fsconfig(context, FSCONFIG_SET_FLAG, "directio", NULL, 0);
    if (fsconfig(context, FSCONFIG_SET_STRING, "source", source, 0) != 0 ||
        fsconfig(context, FSCONFIG_SET_FLAG, "ro", NULL, 0) != 0 ||
        fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) != 0)
        return err_sys(e, errno == ENOTBLK ? ERR_UNSUPPORTED : ERR_IO, errno, "mount erofs");
    int fd =
        fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "mount erofs");
    *out_fd = fd;
    return 0;
}

/* A loop device that the kernel frees when its last user is gone, whoever dies before. */
static int loop_make(int file, char path[32], int *out_fd, struct err *e)
{
    CLEANUP_FD int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return err_sys(e, ERR_UNSUPPORTED, errno, "open /dev/loop-control");
    const struct loop_config config = {
        .fd = (uint32_t)file,
        .info = {.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO}};
    for (int i = 0; i < LOOP_TRIES; i++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0)
            return err_sys(e, ERR_IO, errno, "get a loop device");
        (void)text_format(path, 32, "/dev/loop%d", number);
        CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return err_sys(e, ERR_IO, errno, "open %s", path);
        if (ioctl(fd, LOOP_CONFIGURE, &config) == 0) {
            *out_fd = steal_fd(&fd);
            return 0;
        }
        if (errno != EBUSY)
            return err_sys(e, ERR_IO, errno, "set up %s", path);
    }
    return err_set(e, ERR_LIMIT, "others take every loop device");
}

static int mount_make(int layer_fd, bool by_loop, int *out_fd, struct err *e)
{
    CLEANUP_FD int file = openat(layer_fd, IMAGE_EROFS_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (file < 0)
        return err_sys(e, ERR_IO, errno, "open the file of erofs");
    char path[32];
    if (!by_loop) {
        (void)text_format(path, sizeof path, "/proc/self/fd/%d", file);
        int rc = mount_source(path, out_fd, e);
        if (rc != -(int)ERR_UNSUPPORTED)
            return rc;
    }
    CLEANUP_FD int loop = -1;
    int rc = loop_make(file, path, &loop, e);
    return rc == 0 ? mount_source(path, out_fd, e) : rc;
}

int image_erofs_mount(int layer_fd, bool by_loop, struct err *e)
{
    CLEANUP_FD int mount = -1;
    int rc = mount_make(layer_fd, by_loop, &mount, e);
    return rc == 0 ? image_erofs_attach(layer_fd, mount, e) : rc;
}

int image_erofs_detach(int layer_fd, int *out_fd, struct err *e)
{
    CLEANUP_FD int fd =
        open_tree(layer_fd, "tree", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW);
    if (fd < 0 || !image_erofs_unmount(layer_fd))
        return err_sys(e, ERR_IO, errno, "detach erofs");
    *out_fd = steal_fd(&fd);
    return 0;
}

int image_erofs_attach(int layer_fd, int mount_fd, struct err *e)
{
    if (move_mount(mount_fd, "", layer_fd, "tree", MOVE_MOUNT_F_EMPTY_PATH) != 0)
        return err_sys(e, ERR_IO, errno, "attach erofs");
    return 0;
}

void image_erofs_forget(int layer_fd)
{
    CLEANUP_FD int file = openat(layer_fd, IMAGE_EROFS_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (file >= 0)
        (void)posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
}

bool image_erofs_unmount(int layer_fd)
{
    char path[64];
    (void)text_format(path, sizeof path, "/proc/self/fd/%d/tree", layer_fd);
    return umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0;
}
