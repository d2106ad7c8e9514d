#include "sandbox/runner/root.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/powers.h"

/* A tmpfs inode with its dentry is about 1 KiB of kernel memory; one file per 8 KiB of disk is more
 * than a tree of sources has. */
#define INODE_BYTES 1024u
#define DISK_BYTES_PER_INODE 8192u
#define INODES_MIN 1024u
/* Of a skeleton, until it is known how much an instance may write. */
#define SKELETON_BYTES (1024u * 1024)

/* Folders at the top of the machine's root that are links into /usr, or folders on older ones. */
static const char *const top_folders[] = {"bin", "sbin", "lib", "lib32", "lib64", "libx32"};

/* What programs need of /etc and nothing else: a host's /etc tells too much. */
static const struct {
    const char *path;
    bool file;
} etc_paths[] = {
    {"etc/ld.so.cache", true},   {"etc/ld.so.conf", true}, {"etc/ld.so.conf.d", false},
    {"etc/alternatives", false}, {"etc/ssl/certs", false}, {"etc/localtime", true},
    {"etc/mime.types", true},    {"etc/services", true},
};

/* Hidden within /usr: what administrators put there is theirs. */
static const char *const usr_hidden[] = {"usr/local", "usr/src"};

struct root_base {
    const struct powers *powers;
    char *folder;        /* of the shared mounts */
    int folder_fd;       /* inside the mount */
    bool layers_by_path; /* overlay takes no descriptors; found out at the first image */
};

uint64_t root_inodes(uint64_t disk_bytes)
{
    return INODES_MIN + disk_bytes / DISK_BYTES_PER_INODE;
}

uint64_t root_inode_bytes(uint64_t inodes)
{
    return inodes * INODE_BYTES;
}

/* --- what all instances share ------------------------------------------------------------------ */

static int bind_clone(int at, const char *path, bool recursive, uint64_t attributes, struct err *e)
{
    unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (recursive ? AT_RECURSIVE : 0);
    CLEANUP_FD int fd = open_tree(at, path, flags | (path[0] == '\0' ? AT_EMPTY_PATH : 0));
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "bind %s", path);
    struct mount_attr set = {.attr_set = attributes};
    if (attributes != 0 &&
        mount_setattr(fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &set, sizeof set) < 0)
        return err_sys(e, ERR_IO, errno, "set attributes of %s", path);
    return steal_fd(&fd);
}

static int shared_attach(int mount, int folder, const char *path, struct err *e)
{
    if (move_mount(mount, "", folder, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(e, ERR_IO, errno, "attach %s", path);
    return 0;
}

struct device {
    const char *name;
    unsigned major, minor;
};

static int device_make(int dev, const struct device *device, struct err *e)
{
    if (mknodat(dev, device->name, S_IFCHR | 0666, makedev(device->major, device->minor)) < 0 ||
        fchmodat(dev, device->name, 0666, 0) < 0)
        return err_sys(e, ERR_IO, errno, "make device %s", device->name);
    return 0;
}

/* That of the machine, over a file. */
static int device_bind(int dev, const char *name, struct err *e)
{
    char from[32];
    text_format(from, sizeof from, "/dev/%s", name);
    if (mknodat(dev, name, S_IFREG | 0666, 0) < 0)
        return err_sys(e, ERR_IO, errno, "make a place for device %s", name);
    CLEANUP_FD int fd = bind_clone(AT_FDCWD, from, false, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, e);
    return fd < 0 ? fd : shared_attach(fd, dev, name, e);
}

static int devices_make(int folder, const struct powers *powers, struct err *e)
{
    static const struct device devices[] = {{"null", 1, 3},   {"zero", 1, 5},    {"full", 1, 7},
                                            {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
    static const char *const links[][2] = {{"fd", "/proc/self/fd"},
                                           {"stdin", "/proc/self/fd/0"},
                                           {"stdout", "/proc/self/fd/1"},
                                           {"stderr", "/proc/self/fd/2"},
                                           {"ptmx", "pts/ptmx"}};
    static const char *const folders[] = {"pts", "shm"};
    if (mkdirat(folder, "dev", 0755) < 0)
        return err_sys(e, ERR_IO, errno, "make dev");
    CLEANUP_FD int dev = openat(folder, "dev", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dev < 0)
        return err_sys(e, ERR_IO, errno, "open dev");
    for (size_t i = 0; i < ARRAY_SIZE(devices); i++) {
        int rc = powers->make_devices ? device_make(dev, &devices[i], e)
                                      : device_bind(dev, devices[i].name, e);
        if (rc < 0)
            return rc;
    }
    for (size_t i = 0; i < ARRAY_SIZE(links); i++)
        if (symlinkat(links[i][1], dev, links[i][0]) < 0)
            return err_sys(e, ERR_IO, errno, "make link %s", links[i][0]);
    for (size_t i = 0; i < ARRAY_SIZE(folders); i++)
        if (mkdirat(dev, folders[i], 0755) < 0)
            return err_sys(e, ERR_IO, errno, "make dev/%s", folders[i]);
    return 0;
}

/* /usr as every instance of the host image sees it; cloned whole with one call later. */
static int usr_make(int folder, struct err *e)
{
    const uint64_t locked = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    if (mkdirat(folder, "usr", 0755) < 0 || mkdirat(folder, "empty", 0755) < 0 ||
        mkdirat(folder, "lower", 0755) < 0 || mkdirat(folder, "store", 0755) < 0)
        return err_sys(e, ERR_IO, errno, "make usr");
    CLEANUP_FD int usr = bind_clone(AT_FDCWD, "/usr", true, locked, e);
    if (usr < 0)
        return usr;
    int rc = shared_attach(usr, folder, "usr", e);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(usr_hidden); i++) {
        struct stat st;
        if (fstatat(folder, usr_hidden[i], &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode))
            continue;
        CLEANUP_FD int empty = bind_clone(folder, "empty", false, locked, e);
        rc = empty < 0 ? empty : shared_attach(empty, folder, usr_hidden[i], e);
    }
    return rc;
}

static int bounds_set(int context, uint64_t bytes, uint64_t inodes)
{
    char size[32], nodes[32];
    text_format(size, sizeof size, "%" PRIu64, bytes);
    text_format(nodes, sizeof nodes, "%" PRIu64, inodes);
    int rc = fsconfig(context, FSCONFIG_SET_STRING, "size", size, 0);
    return rc == 0 ? fsconfig(context, FSCONFIG_SET_STRING, "nr_inodes", nodes, 0) : rc;
}

int root_store_limit(int store, uint64_t bytes, uint64_t inodes, struct err *e)
{
    CLEANUP_FD int context = fspick(store, "", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH);
    if (context < 0 || bounds_set(context, bytes, inodes) < 0 ||
        fsconfig(context, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0) < 0)
        return err_sys(e, ERR_IO, errno, "bound the instance's files to %" PRIu64 " bytes", bytes);
    return 0;
}

static int store_make(uint64_t bytes, uint64_t inodes, uint32_t owner, uint64_t attributes,
                      struct err *e)
{
    CLEANUP_FD int context = fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (context < 0)
        return err_sys(e, ERR_IO, errno, "open tmpfs");
    char id[16];
    text_format(id, sizeof id, "%" PRIu32, owner);
    if (bounds_set(context, bytes, inodes) < 0 ||
        fsconfig(context, FSCONFIG_SET_STRING, "uid", id, 0) < 0 ||
        fsconfig(context, FSCONFIG_SET_STRING, "gid", id, 0) < 0 ||
        fsconfig(context, FSCONFIG_SET_STRING, "mode", "0755", 0) < 0 ||
        fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return err_sys(e, ERR_IO, errno, "make tmpfs of %" PRIu64 " bytes", bytes);
    int fd = fsmount(context, FSMOUNT_CLOEXEC, (unsigned)attributes);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "mount tmpfs");
    return fd;
}

static int base_fill(struct root_base *base, struct err *e)
{
    if (unshare(CLONE_NEWNS) < 0)
        return err_sys(e, ERR_IO, errno, "make mount namespace");
    /* Slave and not private: what the machine unmounts must not stay held here. */
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
        return err_sys(e, ERR_IO, errno, "leave the machine's mounts");
    CLEANUP_FD int shared =
        store_make(1024 * 1024, 256, 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, e);
    if (shared < 0)
        return shared;
    int rc = shared_attach(shared, AT_FDCWD, base->folder, e);
    if (rc == 0)
        rc = devices_make(shared, base->powers, e);
    if (rc == 0)
        rc = usr_make(shared, e);
    if (rc == 0)
        base->folder_fd = steal_fd(&shared);
    return rc;
}

int root_base_open(struct root_base **out, const char *folder, const struct powers *powers,
                   struct err *e)
{
    struct root_base *base = calloc(1, sizeof *base);
    if (base == NULL)
        return err_set(e, ERR_NO_MEMORY, "shared mounts");
    base->folder_fd = -1;
    base->powers = powers;
    base->folder = strdup(folder);
    int rc = base->folder == NULL ? err_set(e, ERR_NO_MEMORY, "shared mounts") : base_fill(base, e);
    if (rc < 0) {
        root_base_close(base);
        return err_wrap(e, "prepare shared mounts at %s", folder);
    }
    *out = base;
    return 0;
}

void root_base_close(struct root_base *base)
{
    if (base == NULL)
        return;
    memory_close(&base->folder_fd);
    free(base->folder);
    free(base);
}

int root_base_folder(const struct root_base *base)
{
    return base->folder_fd;
}

/* --- one instance ------------------------------------------------------------------------------ */

struct making {
    struct bind_skeleton *skeleton;
    int *descriptors; /* of its mounts */
};

/* Takes `fd`. */
static void mount_add(struct making *m, int fd, const char *path, bool file)
{
    assert_always(m->skeleton->mount_count < BIND_MOUNTS_MAX);
    m->descriptors[m->skeleton->mount_count] = fd;
    struct bind_mount *mount = &m->skeleton->mounts[m->skeleton->mount_count++];
    text_copy(mount->path, sizeof mount->path, path);
    mount->file = file;
}

static int bind_add(struct making *m, int at, const char *from, bool recursive, uint64_t attributes,
                    const char *path, bool file, struct err *e)
{
    int fd = bind_clone(at, from, recursive, attributes, e);
    if (fd < 0)
        return fd;
    mount_add(m, fd, path, file);
    return 0;
}

static void link_add(struct bind_skeleton *s, const char *path, const char *target)
{
    assert_always(s->link_count < BIND_LINKS_MAX);
    struct bind_link *link = &s->links[s->link_count++];
    text_copy(link->path, sizeof link->path, path);
    text_copy(link->target, sizeof link->target, target);
}

/* A path of the machine: a link is made again, anything else bound. */
static int host_path_add(struct making *m, const char *path, bool file, bool recursive,
                         struct err *e)
{
    char from[BIND_PATH_SIZE + 1], target[BIND_PATH_SIZE];
    text_format(from, sizeof from, "/%s", path);
    ssize_t length = readlink(from, target, sizeof target);
    if (length > 0 && (size_t)length < sizeof target && m->skeleton->link_count < BIND_LINKS_MAX) {
        target[length] = '\0';
        link_add(m->skeleton, path, target);
        return 0;
    }
    int rc = bind_add(m, AT_FDCWD, from, recursive,
                      MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, path, file, e);
    return rc == -ERR_NOT_FOUND ? 0 : rc;
}

static int host_image_add(struct root_base *base, struct making *m, struct err *e)
{
    int rc = bind_add(m, base->folder_fd, "usr", true, 0, "usr", false, e);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(top_folders); i++)
        rc = host_path_add(m, top_folders[i], false, true, e);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(etc_paths); i++)
        rc = host_path_add(m, etc_paths[i].path, etc_paths[i].file, false, e);
    return rc;
}

static int layer_clone(int layer, int map, struct err *e)
{
    CLEANUP_FD int fd = open_tree(layer, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "bind layer");
    struct mount_attr set = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    if (map >= 0) {
        set.attr_set |= MOUNT_ATTR_IDMAP;
        set.userns_fd = (unsigned)map;
    }
    if (mount_setattr(fd, "", AT_EMPTY_PATH, &set, sizeof set) < 0)
        return errno == EINVAL
                   ? err_set(
                         e, ERR_UNSUPPORTED,
                         "this kernel cannot map the ids of files where the images lie; put the "
                         "runner's `directory` on ext4, xfs or btrfs")
                   : err_sys(e, ERR_UNSUPPORTED, errno, "map the ids of a layer");
    return steal_fd(&fd);
}

/* Folders of the upper layer, which has the owner and mode of the image's own root. */
static int upper_make(int store, int lower, struct err *e)
{
    struct stat st;
    if (mkdirat(store, "up", 0755) < 0 || mkdirat(store, "work", 0755) < 0 ||
        fstat(lower, &st) < 0 || fchownat(store, "up", st.st_uid, st.st_gid, 0) < 0 ||
        fchmodat(store, "up", st.st_mode & 07777, 0) < 0)
        return err_sys(e, ERR_IO, errno, "make upper folders");
    return 0;
}

static int overlay_mount(const struct root_base *base, int context, struct err *e)
{
    if (!base->powers->trusted_attributes &&
        fsconfig(context, FSCONFIG_SET_FLAG, "userxattr", NULL, 0) < 0)
        return err_sys(e, ERR_IO, errno, "have overlay do without trusted attributes");
    if (fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return err_sys(e, ERR_IO, errno, "make overlay");
    int fd = fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    return fd < 0 ? err_sys(e, ERR_IO, errno, "mount overlay") : fd;
}

/* -ERR_UNSUPPORTED before Linux 6.13. */
static int overlay_by_descriptor(const struct root_base *base, int store, int lower, struct err *e)
{
    CLEANUP_FD int upper = openat(store, "up", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CLEANUP_FD int work = openat(store, "work", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CLEANUP_FD int context = fsopen("overlay", FSOPEN_CLOEXEC);
    if (upper < 0 || work < 0 || context < 0)
        return err_sys(e, ERR_IO, errno, "open overlay");
    if (fsconfig(context, FSCONFIG_SET_FD, "lowerdir+", NULL, lower) < 0)
        return err_sys(e, ERR_UNSUPPORTED, errno, "give overlay its layer");
    if (fsconfig(context, FSCONFIG_SET_FD, "upperdir", NULL, upper) < 0 ||
        fsconfig(context, FSCONFIG_SET_FD, "workdir", NULL, work) < 0)
        return err_sys(e, ERR_IO, errno, "give overlay its folders");
    return overlay_mount(base, context, e);
}

static int path_give(int context, const char *key, int fd, const char *below, struct err *e)
{
    char path[64];
    text_format(path, sizeof path, "/proc/self/fd/%d%s", fd, below);
    if (fsconfig(context, FSCONFIG_SET_STRING, key, path, 0) < 0)
        return err_sys(e, ERR_IO, errno, "give overlay its %s", key);
    return 0;
}

/* Overlay wants mounts of our own namespace, so both are attached for the moment it takes. What is
 * attached cannot be given away, so *store becomes a copy of it. */
static int overlay_by_path(const struct root_base *base, int *store, int lower, struct err *e)
{
    int rc = shared_attach(lower, base->folder_fd, "lower", e);
    if (rc < 0)
        return rc;
    rc = shared_attach(*store, base->folder_fd, "store", e);
    CLEANUP_FD int context = fsopen("overlay", FSOPEN_CLOEXEC);
    if (rc == 0 && context < 0)
        rc = err_sys(e, ERR_IO, errno, "open overlay");
    if (rc == 0)
        rc = path_give(context, "lowerdir", lower, "", e);
    if (rc == 0)
        rc = path_give(context, "upperdir", *store, "/up", e);
    if (rc == 0)
        rc = path_give(context, "workdir", *store, "/work", e);
    CLEANUP_FD int overlay = rc == 0 ? overlay_mount(base, context, e) : -1;
    int copy = overlay < 0 ? -1 : bind_clone(base->folder_fd, "store", false, 0, e);
    char path[128];
    text_format(path, sizeof path, "%s/lower", base->folder);
    (void)umount2(path, MNT_DETACH);
    text_format(path, sizeof path, "%s/store", base->folder);
    (void)umount2(path, MNT_DETACH);
    if (copy < 0)
        return -(int)e->code;
    memory_close(store);
    *store = copy;
    return steal_fd(&overlay);
}

/* The overlay is made here and not inside: its layers are seen in no namespace but ours, and its
 * notes are trusted.* attributes, which work on a tmpfs of every kernel. Without them (powers.h) a
 * tmpfs needs Linux 6.6 to hold notes: before that a folder that was removed cannot be made again. */
static int overlay_make(struct root_base *base, int *store, int lower, struct err *e)
{
    int rc = upper_make(*store, lower, e);
    if (rc < 0)
        return rc;
    if (!base->layers_by_path) {
        rc = overlay_by_descriptor(base, *store, lower, e);
        if (rc != -ERR_UNSUPPORTED)
            return rc;
        base->layers_by_path = true;
    }
    return overlay_by_path(base, store, lower, e);
}

void root_base_assume_old(struct root_base *base)
{
    base->layers_by_path = true;
}

static int device_folder(struct root_base *base, struct err *e)
{
    return bind_clone(base->folder_fd, "dev", !base->powers->make_devices,
                      MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC, e);
}

int root_skeleton_make(struct root_base *base, uint32_t uid_base, struct bind_skeleton *skeleton,
                       int *descriptors, struct err *e)
{
    memset(skeleton, 0, sizeof *skeleton);
    skeleton->one_id = !base->powers->agent_id;
    skeleton->shared_ids = !base->powers->own_ids;
    descriptors[0] =
        store_make(SKELETON_BYTES, INODES_MIN, uid_base, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, e);
    if (descriptors[0] < 0)
        return descriptors[0];
    struct making m = {.skeleton = skeleton, .descriptors = descriptors + 1};
    int rc = host_image_add(base, &m, e);
    int dev = rc == 0 ? device_folder(base, e) : -1;
    if (dev >= 0) {
        mount_add(&m, dev, "dev", false);
        return 0;
    }
    while (skeleton->mount_count > 0)
        memory_close(&m.descriptors[--skeleton->mount_count]);
    memory_close(&descriptors[0]);
    return -(int)e->code;
}

/* A tmpfs, the image over it, /dev. */
static int image_make(struct root_base *base, const struct root_options *o, int *descriptors,
                      size_t *count, struct err *e)
{
    CLEANUP_FD int store =
        store_make(o->disk_bytes, o->inodes, o->uid_base, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, e);
    if (store < 0)
        return store;
    CLEANUP_FD int lower = layer_clone(o->image_fd, o->layer_map, e);
    if (lower < 0)
        return lower;
    CLEANUP_FD int root = overlay_make(base, &store, lower, e);
    if (root < 0)
        return root;
    int dev = device_folder(base, e);
    if (dev < 0)
        return dev;
    descriptors[(*count)++] = steal_fd(&store);
    descriptors[(*count)++] = steal_fd(&root);
    descriptors[(*count)++] = dev;
    return 0;
}

int root_plan_make(struct root_base *base, const struct root_options *o, struct bind_plan *plan,
                   int *descriptors, size_t *count, struct err *e)
{
    memset(plan, 0, sizeof *plan);
    *count = 0;
    plan->image = o->image_fd >= 0;
    plan->source = o->source_fd >= 0;
    plan->read_only = o->read_only;
    plan->uid = o->uid;
    plan->gid = o->gid;
    text_copy(plan->hostname, sizeof plan->hostname, o->hostname);
    plan->names = o->names;
    int rc = 0;
    if (plan->image)
        rc = image_make(base, o, descriptors, count, e);
    if (rc == 0 && plan->source) {
        int fd = layer_clone(o->source_fd, o->layer_map, e);
        if (fd < 0)
            rc = fd;
        else
            descriptors[(*count)++] = fd;
    }
    while (rc < 0 && *count > 0)
        memory_close(&descriptors[--*count]);
    return rc;
}

/* --- maps -------------------------------------------------------------------------------------- */

static int map_write(pid_t pid, const char *file, uint32_t inside, uint32_t outside, struct err *e)
{
    char path[64], text[64];
    text_format(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    text_format(text, sizeof text, "%u %u 65536", inside, outside);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    size_t length = strlen(text);
    if (fd < 0 || write(fd, text, length) != (ssize_t)length)
        return err_sys(e, ERR_IO, errno, "write %s", path);
    return 0;
}

/* A namespace needs a process to be made; this one waits for its end. It shares our memory, which
 * costs a tenth of a copy, and does nothing with it. */
static int holder_run(void *argument) __attribute__((noreturn));
static int holder_run(void *argument)
{
    (void)argument;
    for (;;)
        pause();
}

int root_map_make(uint32_t inside, uint32_t outside, int *out_fd, struct err *e)
{
    static char stack[4096] __attribute__((aligned(16)));
    pid_t pid = clone(holder_run, stack + sizeof stack, CLONE_VM | CLONE_NEWUSER | SIGCHLD, NULL);
    if (pid < 0)
        return err_sys(e, ERR_IO, errno, "make user namespace");
    int rc = map_write(pid, "uid_map", inside, outside, e);
    if (rc == 0)
        rc = map_write(pid, "gid_map", inside, outside, e);
    char path[64];
    text_format(path, sizeof path, "/proc/%d/ns/user", (int)pid);
    int fd = rc == 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (rc == 0 && fd < 0)
        rc = err_sys(e, ERR_IO, errno, "open %s", path);
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    if (rc == 0)
        *out_fd = fd;
    return rc;
}
