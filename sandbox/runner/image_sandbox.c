#include "sandbox/runner/image_sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1 /* shadow memory and reports need more than the limits below allow */
#else
#define SANITIZED 0
#endif

#define MEMORY_BYTES_MAX (1024ull * 1024 * 1024) /* zstd's largest common window is 128 MiB */
#define DESCRIPTORS_MAX 512                      /* one a level of the tree, and some */
#define STAGE_FD 16                              /* above every final number */
#define USR_FD 4                                 /* of a program's mounts, until it is executed */
#define OUTPUT_FD 5
#define ROOT_BYTES "65536" /* of a program's root: a few names */
#define ROOT_INODES "32"

static const int allowed_calls[] = {
    SCMP_SYS(brk),          SCMP_SYS(clock_gettime), SCMP_SYS(close),
    SCMP_SYS(exit),         SCMP_SYS(exit_group),    SCMP_SYS(fchmod),
    SCMP_SYS(fchown),       SCMP_SYS(fchownat),      SCMP_SYS(fcntl),
    SCMP_SYS(fstat),        SCMP_SYS(fstatfs),       SCMP_SYS(futex),
    SCMP_SYS(getdents64),   SCMP_SYS(getpid),        SCMP_SYS(getrandom),
    SCMP_SYS(gettid),       SCMP_SYS(linkat),        SCMP_SYS(lseek),
    SCMP_SYS(madvise),      SCMP_SYS(mkdirat),       SCMP_SYS(mmap),
    SCMP_SYS(mprotect),     SCMP_SYS(mremap),        SCMP_SYS(munmap),
    SCMP_SYS(newfstatat),   SCMP_SYS(openat),        SCMP_SYS(openat2),
    SCMP_SYS(poll),         SCMP_SYS(ppoll),         SCMP_SYS(read),
    SCMP_SYS(readlinkat),   SCMP_SYS(rt_sigaction),  SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn), SCMP_SYS(symlinkat),     SCMP_SYS(tgkill),
    SCMP_SYS(unlinkat),     SCMP_SYS(utimensat),     SCMP_SYS(write),
    SCMP_SYS(writev),
};

/* What a dynamic program needs beside them to begin, and mkfs.erofs to write. */
static const int program_calls[] = {
    SCMP_SYS(access),
    SCMP_SYS(arch_prctl),
    SCMP_SYS(chdir),
    SCMP_SYS(dup),
    SCMP_SYS(execve),
    SCMP_SYS(faccessat),
    SCMP_SYS(faccessat2),
    SCMP_SYS(fallocate),
    SCMP_SYS(fdatasync),
    SCMP_SYS(fsync),
    SCMP_SYS(ftruncate),
    SCMP_SYS(getcwd),
    SCMP_SYS(getegid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(getuid),
    SCMP_SYS(open),
    SCMP_SYS(pread64),
    SCMP_SYS(prlimit64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(readlink),
    SCMP_SYS(rseq),
    SCMP_SYS(sched_yield),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(set_tid_address),
    SCMP_SYS(statx),
    SCMP_SYS(sysinfo),
    SCMP_SYS(uname),
};

static bool filter_calls(bool program)
{
    if (SANITIZED)
        return true;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    if (filter == NULL)
        return false;
    bool good = true;
    for (size_t i = 0; i < ARRAY_SIZE(allowed_calls); i++)
        good = good && seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed_calls[i], 0) == 0;
    for (size_t i = 0; program && i < ARRAY_SIZE(program_calls); i++)
        good = good && seccomp_rule_add(filter, SCMP_ACT_ALLOW, program_calls[i], 0) == 0;
    good = good && seccomp_load(filter) == 0;
    seccomp_release(filter);
    return good;
}

/* `passed_on`: a program has them too. Nothing gains any by an exec, for it is not privileged. */
static bool keep_capabilities(uint32_t mask, bool passed_on)
{
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        /* What is passed on has to be in it. */
        if (!(passed_on && cap < 32 && (mask & 1u << cap) != 0) &&
            prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0)
            return false;
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {
        {.effective = mask, .permitted = mask, .inheritable = passed_on ? mask : 0}};
    if (syscall(SYS_capset, &head, data) != 0)
        return false;
    for (unsigned long cap = 0; passed_on && cap < 32; cap++)
        if ((mask & 1u << cap) != 0 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) != 0)
            return false;
    return true;
}

static bool set_limit(__rlimit_resource_t what, uint64_t value)
{
    struct rlimit limit = {.rlim_cur = (rlim_t)value, .rlim_max = (rlim_t)value};
    return setrlimit(what, &limit) == 0;
}

static bool set_limits(const struct image_sandbox *s)
{
    return set_limit(RLIMIT_CORE, 0) && set_limit(RLIMIT_FSIZE, s->file_bytes_max) &&
           set_limit(RLIMIT_CPU, s->cpu_seconds_max) && set_limit(RLIMIT_NOFILE, DESCRIPTORS_MAX) &&
           (SANITIZED || set_limit(RLIMIT_AS, MEMORY_BYTES_MAX));
}

/* A mount of an empty tmpfs. */
static int small_root(void)
{
    CLEANUP_FD int context = fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (context < 0 || fsconfig(context, FSCONFIG_SET_STRING, "size", ROOT_BYTES, 0) != 0 ||
        fsconfig(context, FSCONFIG_SET_STRING, "nr_inodes", ROOT_INODES, 0) != 0 ||
        fsconfig(context, FSCONFIG_SET_STRING, "mode", "0755", 0) != 0 ||
        fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) != 0)
        return -1;
    return fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
}

/* What a program finds in it. Where libraries lie is said by links of the machine's root: /lib64. */
static bool furnish(int root)
{
    static const char *const tops[] = {"bin", "lib", "lib32", "lib64", "libx32", "sbin"};
    static const struct {
        const char *name;
        int mount;
    } folders[] = {{"usr", USR_FD}, {"tree", IMAGE_SANDBOX_TREE_FD}};
    char from[16];
    char target[64];
    for (size_t i = 0; i < ARRAY_SIZE(tops); i++) {
        (void)text_format(from, sizeof from, "/%s", tops[i]);
        ssize_t length = readlink(from, target, sizeof target - 1);
        if (length < 0)
            continue;
        target[length] = '\0';
        if (symlinkat(target, root, tops[i]) != 0)
            return false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(folders); i++)
        if (mkdirat(root, folders[i].name, 0755) != 0 ||
            move_mount(folders[i].mount, "", root, folders[i].name, MOVE_MOUNT_F_EMPTY_PATH) != 0)
            return false;
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY};
    return mknodat(root, "output", S_IFREG | 0600, 0) == 0 &&
           move_mount(OUTPUT_FD, "", root, "output", MOVE_MOUNT_F_EMPTY_PATH) == 0 &&
           mount_setattr(root, "", AT_EMPTY_PATH, &attr, sizeof attr) == 0;
}

/* The mount `tree`, or one that has it in it, becomes the root, and every mount of the machine goes. */
static bool enter_root(int tree, bool program)
{
    CLEANUP_FD int small = program ? small_root() : -1;
    int root = program ? small : tree;
    CLEANUP_FD int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0 || old < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return false;
    if (move_mount(root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) != 0 || fchdir(root) != 0 ||
        (program && !furnish(root)) || syscall(SYS_pivot_root, ".", ".") != 0)
        return false;
    /* The old root now lies on top of the new one. */
    return fchdir(old) == 0 && umount2(".", MNT_DETACH) == 0 && chdir("/") == 0;
}

/* Mounts that belong to no namespace yet; of those of a program -1 without one. */
struct mounts {
    int tree, usr, output;
};

static bool arrange_descriptors(const struct image_sandbox *s, const struct mounts *m)
{
    CLEANUP_FD int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    const bool program = s->program != NULL;
    const int from[] = {s->input_fd,
                        program ? null : s->report_fd,
                        program     ? s->report_fd
                        : SANITIZED ? STDERR_FILENO
                                    : null,
                        m->tree,
                        m->usr,
                        m->output};
    const int count = program ? OUTPUT_FD + 1 : IMAGE_SANDBOX_TREE_FD + 1;
    int staged[ARRAY_SIZE(from)];
    for (int i = 0; i < count; i++)
        staged[i] = fcntl(from[i], F_DUPFD_CLOEXEC, STAGE_FD);
    for (int i = 0; i < count; i++)
        if (staged[i] < 0 || dup2(staged[i], i) < 0)
            return false;
    for (int i = IMAGE_SANDBOX_TREE_FD; i < count; i++)
        if (fcntl(i, F_SETFD, FD_CLOEXEC) != 0)
            return false;
    return close_range((unsigned)count, ~0u, 0) == 0;
}

/* The first of its ids, as the child sees it. */
static unsigned inside_id(const struct image_sandbox *s)
{
    return s->program != NULL ? s->ids.first : 0;
}

/* With one id there is no right to leave a group; nothing but the tree is in sight. */
static bool become_inside_root(unsigned id, bool one_id)
{
    /* PDEATHSIG is cleared by a change of ids, so it comes after them. */
    return (one_id || setgroups(0, NULL) == 0) && setresgid(id, id, id) == 0 &&
           setresuid(id, id, id) == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0 &&
           prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0;
}

/* Whether it did not die before its death would have been a signal: the pipe closes before that is sent. */
static bool parent_lives(int mapped)
{
    struct pollfd end = {.fd = mapped};
    return poll(&end, 1, 0) == 0;
}

__attribute__((noreturn)) static void child(const struct image_sandbox *s, const struct mounts *m,
                                            int mapped,
                                            int (*run)(const void *user, const struct err *failed),
                                            const void *user)
{
    const bool program = s->program != NULL;
    const uint32_t caps = s->read_only
                              ? 1u << CAP_DAC_READ_SEARCH
                              : 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER;
    char go;
    const char *failed = NULL;
    if (read(mapped, &go, 1) != 1)
        _exit(1); /* the parent gave up */
    umask(0);
    if (!become_inside_root(inside_id(s), s->ids.count == 1))
        failed = "ids";
    else if (!parent_lives(mapped))
        _exit(1);
    else if (!arrange_descriptors(s, m))
        failed = "descriptors";
    else if (!enter_root(IMAGE_SANDBOX_TREE_FD, program))
        failed = "root";
    else if (!set_limits(s))
        failed = "limits";
    else if (!keep_capabilities(caps, program))
        failed = "capabilities";
    else if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || !filter_calls(program))
        failed = "system calls";
    if (failed == NULL && program) {
        char *const none[] = {NULL};
        execve(s->program->path, s->program->argv, none);
        failed = s->program->path;
    }
    struct err why;
    if (failed != NULL)
        (void)err_sys(&why, ERR_UNSUPPORTED, errno, "make the sandbox of an import: %s", failed);
    _exit(run(user, failed != NULL ? &why : NULL));
}

static bool write_map(pid_t pid, const char *file, unsigned inside, struct id_range ids)
{
    char path[64];
    char line[64];
    (void)text_format(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    (void)text_format(line, sizeof line, "%u %u %u\n", inside, ids.first, ids.count);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line);
}

/* A mount of what `at` is open on, or of `path`, that belongs to no namespace yet. */
static int detach(int at, const char *path, uint64_t attributes, struct err *e)
{
    const unsigned below = path[0] == '\0' ? AT_EMPTY_PATH : AT_RECURSIVE;
    CLEANUP_FD int fd = open_tree(at, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | below);
    struct mount_attr attr = {.attr_set = attributes, .propagation = MS_PRIVATE};
    if (fd < 0 || mount_setattr(fd, "", below | AT_EMPTY_PATH, &attr, sizeof attr) != 0)
        return err_sys(e, ERR_IO, errno, "bind %s of an import", path[0] == '\0' ? "a tree" : path);
    return steal_fd(&fd);
}

int image_sandbox_start(pid_t *out_pid, const struct image_sandbox *sandbox,
                        int (*run)(const void *user, const struct err *failed), const void *user,
                        struct err *e)
{
    CLEANUP_FD int tree = detach(sandbox->tree_fd, "",
                                 MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC |
                                     (sandbox->read_only ? (uint64_t)MOUNT_ATTR_RDONLY : 0),
                                 e);
    if (tree < 0)
        return tree;
    CLEANUP_FD int usr = -1;
    CLEANUP_FD int output = -1;
    if (sandbox->program != NULL) {
        usr = detach(AT_FDCWD, "/usr", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, e);
        if (usr < 0)
            return usr;
        output = detach(sandbox->program->output_fd, "",
                        MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, e);
        if (output < 0)
            return output;
    }
    int mapped[2];
    if (pipe2(mapped, O_CLOEXEC) != 0)
        return err_sys(e, ERR_IO, errno, "make a pipe");
    CLEANUP_FD int wait_end = mapped[0];
    CLEANUP_FD int go_end = mapped[1];
    /* As fork, in new namespaces: there is one thread, so nothing of libc's needs to be told. */
    const unsigned long flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET |
                                CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | SIGCHLD;
    long pid = syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    if (pid < 0)
        return err_sys(e, ERR_UNSUPPORTED, errno, "make the namespaces of an import");
    if (pid == 0) {
        const struct mounts mounts = {tree, usr, output};
        memory_close(&go_end);
        child(sandbox, &mounts, wait_end, run, user);
    }
    const unsigned inside = inside_id(sandbox);
    if (!write_map((pid_t)pid, "uid_map", inside, sandbox->ids) ||
        !write_map((pid_t)pid, "gid_map", inside, sandbox->ids) || write(go_end, "g", 1) != 1) {
        int sys = errno;
        kill((pid_t)pid, SIGKILL);
        while (waitpid((pid_t)pid, NULL, 0) < 0 && errno == EINTR)
            ;
        return err_sys(e, ERR_UNSUPPORTED, sys, "map the ids of an import");
    }
    go_end = -1; /* stays open for as long as this process lives: parent_lives */
    *out_pid = (pid_t)pid;
    return 0;
}

int image_sandbox_wait(pid_t pid, uint64_t deadline_ms, int *out_status, struct err *e)
{
    CLEANUP_FD int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    bool late = false;
    while (pidfd >= 0) {
        uint64_t now = clock_monotonic_ms();
        uint64_t left = deadline_ms > now ? deadline_ms - now : 0;
        struct pollfd wait = {.fd = pidfd, .events = POLLIN};
        int rc = poll(&wait, 1, left > INT_MAX ? INT_MAX : (int)left);
        if (rc > 0)
            break;
        if (rc == 0 && left == 0) {
            late = true;
            break;
        }
    }
    if (late || pidfd < 0)
        (void)kill(pid, SIGKILL);
    while (waitpid(pid, out_status, 0) < 0 && errno == EINTR)
        ;
    if (late)
        return err_set(e, ERR_TIMEOUT, "the import took longer than it may");
    return 0;
}
