/* The root of the instance: made of the host image before anybody asked, changed into what is asked
 * for. Nothing that is not ours runs meanwhile; what an image holds is hostile all the same. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent/agent.h"

/* Where the skeleton's root holds the mounts of an image until that is entered. */
#define IMAGE_PLACE "/home"

/* Covered by /dev/null or an empty folder. The user namespace keeps most of them shut already;
 * covered they are shut on every kernel. */
static const char *const proc_covered[] = {
    "kcore",       "keys",       "timer_list", "sysrq-trigger", "latency_stats", "timer_stats",
    "sched_debug", "interrupts", "acpi",       "scsi",          "asound",        "firmware",
};
/* Read-only, whatever their modes say. */
static const char *const proc_read_only[] = {"sys", "bus", "fs", "irq"};

/* --- places ------------------------------------------------------------------------------------ */

/* Opens the folder that holds the last word of `path`, making folders on the way. A link anywhere
 * on it is refused: an image could lead us out of its root. *last points into `path`. */
static int parent_open(int root, const char *path, const char **last, struct err *e)
{
    CLEANUP_FD int at = fcntl(root, F_DUPFD_CLOEXEC, 0);
    if (at < 0)
        return err_sys(e, ERR_IO, errno, "open root");
    const char *word = path;
    for (const char *slash = strchr(word, '/'); slash != NULL; slash = strchr(word, '/')) {
        char name[BIND_PATH_SIZE];
        text_format(name, sizeof name, "%.*s", (int)(slash - word), word);
        if (mkdirat(at, name, 0755) < 0 && errno != EEXIST)
            return err_sys(e, ERR_IO, errno, "make /%.*s", (int)(slash - path), path);
        int next = openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0)
            return err_sys(e, ERR_INVALID, errno, "the image's /%.*s is not a folder",
                           (int)(slash - path), path);
        memory_close(&at);
        at = next;
        word = slash + 1;
    }
    *last = word;
    return steal_fd(&at);
}

/* The place for a mount, made if it is not there, as an O_PATH descriptor. */
static int place_open(int root, const char *path, bool file, struct err *e)
{
    const char *name;
    CLEANUP_FD int parent = parent_open(root, path, &name, e);
    if (parent < 0)
        return parent;
    int made = file ? mknodat(parent, name, S_IFREG | 0644, 0) : mkdirat(parent, name, 0755);
    if (made < 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make /%s", path);
    int fd = openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC | (file ? 0 : O_DIRECTORY));
    if (fd < 0)
        return err_sys(e, ERR_INVALID, errno, "the image's /%s is not a %s", path,
                       file ? "file" : "folder");
    struct stat st;
    if (file && (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))) {
        memory_close(&fd);
        return err_set(e, ERR_INVALID, "the image's /%s is not a file", path);
    }
    return fd;
}

static int attach(int mount, int root, const char *path, bool file, struct err *e)
{
    CLEANUP_FD int place = place_open(root, path, file, e);
    if (place < 0)
        return place;
    if (move_mount(mount, "", place, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
        return err_sys(e, ERR_IO, errno, "attach /%s", path);
    return 0;
}

static int file_write(int root, const char *path, const char *text, struct err *e)
{
    const char *name;
    CLEANUP_FD int parent = parent_open(root, path, &name, e);
    if (parent < 0)
        return parent;
    /* An image may have a link there. */
    (void)unlinkat(parent, name, 0);
    CLEANUP_FD int fd =
        openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    size_t length = strlen(text);
    if (fd < 0 || write(fd, text, length) != (ssize_t)length)
        return err_sys(e, ERR_IO, errno, "write /%s", path);
    return 0;
}

/* --- file systems that only the blank can mount ------------------------------------------------ */

static int filesystem_make(const char *type, const char *const (*options)[2], unsigned attributes,
                           struct err *e)
{
    CLEANUP_FD int context = fsopen(type, FSOPEN_CLOEXEC);
    if (context < 0)
        return err_sys(e, ERR_IO, errno, "open file system %s", type);
    for (; options != NULL && (*options)[0] != NULL; options++)
        /* An option that this kernel does not know is done without. */
        (void)fsconfig(context, FSCONFIG_SET_STRING, (*options)[0], (*options)[1], 0);
    if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return err_sys(e, ERR_IO, errno, "make file system %s", type);
    int fd = fsmount(context, FSMOUNT_CLOEXEC, attributes);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "mount %s", type);
    return fd;
}

static int cover(int root, const char *name, struct err *e)
{
    char path[64];
    text_format(path, sizeof path, "proc/%s", name);
    struct stat st;
    if (fstatat(root, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    /* /dev/pts is an empty folder until devpts is mounted, which comes after this. */
    CLEANUP_FD int mount = open_tree(root, S_ISDIR(st.st_mode) ? "dev/pts" : "dev/null",
                                     OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (mount < 0 || move_mount(mount, "", root, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(e, ERR_IO, errno, "cover /%s", path);
    return 0;
}

static int make_read_only(int root, const char *name, struct err *e)
{
    char path[64];
    text_format(path, sizeof path, "proc/%s", name);
    CLEANUP_FD int mount =
        open_tree(root, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW);
    if (mount < 0 && errno == ENOENT)
        return 0;
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY};
    if (mount < 0 || mount_setattr(mount, "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0 ||
        move_mount(mount, "", root, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(e, ERR_IO, errno, "make /%s read-only", path);
    return 0;
}

/* Needs the host's /proc in sight, so before the old root goes. */
static int mount_proc(int root, int *proc_sys, struct err *e)
{
    static const char *const options[][2] = {{"hidepid", "invisible"}, {NULL, NULL}};
    CLEANUP_FD int fd = filesystem_make(
        "proc", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, e);
    if (fd < 0)
        return fd;
    int rc = attach(fd, root, "proc", false, e);
    CLEANUP_FD int sys =
        rc == 0 ? openat(fd, "sys", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (rc == 0 && sys < 0)
        rc = err_sys(e, ERR_IO, errno, "open /proc/sys");
    /* Those that this kernel has. */
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(proc_covered); i++)
        rc = cover(root, proc_covered[i], e);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(proc_read_only); i++)
        rc = make_read_only(root, proc_read_only[i], e);
    if (rc == 0)
        *proc_sys = steal_fd(&sys);
    return rc;
}

/* gid 5 is tty in every distribution; with one id there is no such group, and older kernels make no devpts
 * for one that is not mapped. `max` because the machine's terminals are shared. */
static int mount_pts(int root, bool one_id, struct err *e)
{
    static const char *const options[][2] = {
        {"gid", "5"}, {"mode", "0620"}, {"ptmxmode", "0666"}, {"max", "128"}, {NULL, NULL}};
    CLEANUP_FD int fd = filesystem_make("devpts", options + (one_id ? 1 : 0),
                                        MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, e);
    return fd < 0 ? fd : attach(fd, root, "dev/pts", false, e);
}

/* A folder of the store, everybody's as /tmp is, as a mount of its own. */
static int mount_scratch(int store, const char *folder, int root, const char *path,
                         unsigned attributes, struct err *e)
{
    if (mkdirat(store, folder, 01777) < 0 || fchmodat(store, folder, 01777, 0) < 0)
        return err_sys(e, ERR_IO, errno, "make %s", folder);
    CLEANUP_FD int fd = open_tree(store, folder, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    struct mount_attr set = {.attr_set = attributes};
    if (fd < 0 || mount_setattr(fd, "", AT_EMPTY_PATH, &set, sizeof set) < 0)
        return err_sys(e, ERR_IO, errno, "mount /%s", path);
    return attach(fd, root, path, false, e);
}

static int scratches_mount(int store, int root, struct err *e)
{
    int rc = mount_scratch(store, "shm", root, "dev/shm", MOUNT_ATTR_NOEXEC, e);
    return rc == 0 ? mount_scratch(store, "tmp", root, "tmp", 0, e) : rc;
}

/* --- the root ---------------------------------------------------------------------------------- */

/* In a folder that we made ourselves a moment ago, so nothing can be in the way. */
static int fresh_write(int folder, const char *name, const char *text, struct err *e)
{
    CLEANUP_FD int fd = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    size_t length = strlen(text);
    if (fd < 0 || write(fd, text, length) != (ssize_t)length)
        return err_sys(e, ERR_IO, errno, "write /etc/%s", name);
    return 0;
}

static int folders_make(int root, struct err *e)
{
    static const struct {
        const char *path;
        mode_t mode;
    } folders[] = {
        {"etc", 0755}, {"etc/ssl", 0755}, {"root", 0700},     {"home", 0755},
        {"run", 0755}, {"var", 0755},     {"var/tmp", 01777}, {"var/lib", 0755},
        {"usr", 0755}, {"dev", 0755},     {"proc", 0755},     {"tmp", 0755},
    };
    for (size_t i = 0; i < ARRAY_SIZE(folders); i++)
        if (mkdirat(root, folders[i].path, folders[i].mode) < 0 ||
            ((folders[i].mode & S_ISVTX) != 0 &&
             fchmodat(root, folders[i].path, folders[i].mode, 0) < 0))
            return err_sys(e, ERR_IO, errno, "make /%s", folders[i].path);
    if (symlinkat("../run", root, "var/run") < 0)
        return err_sys(e, ERR_IO, errno, "make /var/run");
    CLEANUP_FD int etc = openat(root, "etc", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fresh_write(etc, "nsswitch.conf",
                       "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
                       "services: files\nprotocols: files\n",
                       e);
}

static int accounts_write(int etc, const struct bind_plan *plan, struct err *e)
{
    char passwd[512], group[512];
    size_t length =
        (size_t)snprintf(passwd, sizeof passwd,
                         "root:x:0:0:root:/root:/bin/sh\n"
                         "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
    size_t groups =
        (size_t)snprintf(group, sizeof group, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n");
    if (plan->uid != 0 && plan->uid != 65534)
        snprintf(passwd + length, sizeof passwd - length, "app:x:%u:%u:app:/tmp:/bin/sh\n",
                 plan->uid, plan->gid);
    if (plan->gid != 0 && plan->gid != 5 && plan->gid != 65534)
        snprintf(group + groups, sizeof group - groups, "app:x:%u:\n", plan->gid);
    int rc = fresh_write(etc, "passwd", passwd, e);
    return rc == 0 ? fresh_write(etc, "group", group, e) : rc;
}

static int name_write(int root, int etc, const char *name, const char *text, struct err *e)
{
    char path[32];
    if (etc >= 0)
        return fresh_write(etc, name, text, e);
    text_format(path, sizeof path, "etc/%s", name);
    return file_write(root, path, text, e);
}

/* `etc`: a fresh one, or -1: the image's, whatever that is. */
static int names_write(int root, int etc, const struct bind_plan *plan, struct err *e)
{
    char text[512];
    text_format(text, sizeof text,
                "127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.0.1 %s\n", plan->hostname);
    int rc = name_write(root, etc, "hosts", text, e);
    text_format(text, sizeof text, "%s\n", plan->hostname);
    if (rc == 0)
        rc = name_write(root, etc, "hostname", text, e);
    if (rc == 0)
        rc = name_write(root, etc, "resolv.conf",
                        plan->names ? "nameserver 127.0.0.1\n" : "# Nobody answers names here.\n",
                        e);
    return rc;
}

/* A descriptor of `root`, or else of a folder of the store, which is a mount below the store then. */
static int root_attach(int store, const char *place, int root, struct err *e)
{
    CLEANUP_FD int fd = root < 0 ? -1 : fcntl(root, F_DUPFD_CLOEXEC, 0);
    if (move_mount(store, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(e, ERR_IO, errno, "attach store");
    if (mkdirat(store, "root", 0755) < 0)
        return err_sys(e, ERR_IO, errno, "make root");
    if (root < 0)
        fd = open_tree(store, "root", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (fd < 0 || move_mount(fd, "", store, "root", MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(e, ERR_IO, errno, "attach root");
    return steal_fd(&fd);
}

static int root_enter(int root, struct err *e)
{
    /* The old root comes to lie over the new one and is taken away from there: pivot_root(2). */
    if (fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 ||
        chdir("/") < 0)
        return err_sys(e, ERR_IO, errno, "enter root");
    return 0;
}

/* In a root that we made ourselves: its folders are there, and nothing leads astray. */
static int fresh_attach(int mount, int root, const char *path, bool file, struct err *e)
{
    int made = file ? mknodat(root, path, S_IFREG | 0644, 0) : mkdirat(root, path, 0755);
    if ((made < 0 && errno != EEXIST) ||
        move_mount(mount, "", root, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(e, ERR_IO, errno, "attach /%s", path);
    return 0;
}

static int mounts_attach(int root, const struct bind_skeleton *s, const int *mounts, struct err *e)
{
    for (uint32_t i = 0; i < s->link_count; i++)
        if (symlinkat(s->links[i].target, root, s->links[i].path) < 0)
            return err_sys(e, ERR_IO, errno, "make /%s", s->links[i].path);
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < s->mount_count; i++)
        rc = fresh_attach(mounts[i], root, s->mounts[i].path, s->mounts[i].file, e);
    return rc;
}

int bind_skeleton_make(const struct bind_skeleton *s, const int *descriptors, int *proc_sys,
                       struct err *e)
{
    int store = descriptors[0];
    umask(022);
    /* Any folder of the old root does; it goes with it. */
    CLEANUP_FD int root = root_attach(store, "/usr", -1, e);
    if (root < 0)
        return root;
    int rc = folders_make(root, e);
    if (rc == 0)
        rc = mounts_attach(root, s, descriptors + 1, e);
    CLEANUP_FD int sys = -1;
    if (rc == 0)
        rc = mount_proc(root, &sys, e);
    if (rc == 0)
        rc = mount_pts(root, s->one_id, e);
    if (rc == 0)
        rc = scratches_mount(store, root, e);
    if (rc == 0)
        rc = root_enter(root, e);
    if (rc == 0)
        *proc_sys = steal_fd(&sys);
    return rc;
}

/* What only the skeleton could mount. */
static int move(const char *from, int root, const char *path, struct err *e)
{
    CLEANUP_FD int fd = open(from, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open %s", from);
    return attach(fd, root, path, false, e);
}

/* From the skeleton into the root of an image. */
static int image_enter(const struct bind_plan *plan, int store, int image, int dev, int source,
                       struct err *e)
{
    CLEANUP_FD int root = root_attach(store, IMAGE_PLACE, image, e);
    if (root < 0)
        return root;
    int rc = names_write(root, -1, plan, e);
    if (rc == 0)
        rc = attach(dev, root, "dev", false, e);
    if (rc == 0 && source >= 0)
        rc = attach(source, root, "app", false, e);
    if (rc == 0)
        rc = move("/proc", root, "proc", e);
    if (rc == 0)
        rc = move("/dev/pts", root, "dev/pts", e);
    if (rc == 0)
        rc = scratches_mount(store, root, e);
    return rc == 0 ? root_enter(root, e) : rc;
}

static int host_finish(const struct bind_plan *plan, int source, struct err *e)
{
    CLEANUP_FD int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CLEANUP_FD int etc = openat(root, "etc", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (root < 0 || etc < 0)
        return err_sys(e, ERR_IO, errno, "open /etc");
    int rc = accounts_write(etc, plan, e);
    if (rc == 0)
        rc = names_write(root, etc, plan, e);
    return rc == 0 && source >= 0 ? fresh_attach(source, root, "app", false, e) : rc;
}

int bind_plan_do(const struct bind_plan *plan, const int *descriptors, struct err *e)
{
    if (sethostname(plan->hostname, strlen(plan->hostname)) < 0)
        return err_sys(e, ERR_IO, errno, "set host name");
    const int *mounts = descriptors + 1;
    int rc = plan->image ? image_enter(plan, mounts[0], mounts[1], mounts[2],
                                       plan->source ? mounts[3] : -1, e)
                         : host_finish(plan, plan->source ? mounts[0] : -1, e);
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY};
    if (rc == 0 && plan->read_only &&
        mount_setattr(AT_FDCWD, "/", 0, &attributes, sizeof attributes) < 0)
        rc = err_sys(e, ERR_IO, errno, "make root read-only");
    return rc;
}
