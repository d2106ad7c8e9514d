#include "sandbox/runner/image_sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
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

#include "base/memory.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1 /* shadow memory and reports need more than the limits below allow */
#else
#define SANITIZED 0
#endif

#define MEMORY_BYTES_MAX (1024ull * 1024 * 1024) /* zstd's largest common window is 128 MiB */
#define DESCRIPTORS_MAX 512                      /* one a level of the tree, and some */
#define STAGE_FD 16                              /* above every final number */

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
    SCMP_SYS(unlinkat),     SCMP_SYS(write),         SCMP_SYS(writev),
};

static bool filter_calls(void)
{
    if (SANITIZED)
        return true;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    if (filter == NULL)
        return false;
    bool good = true;
    for (size_t i = 0; i < ARRAY_SIZE(allowed_calls); i++)
        good = good && seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed_calls[i], 0) == 0;
    good = good && seccomp_load(filter) == 0;
    seccomp_release(filter);
    return good;
}

static bool keep_capabilities(uint32_t mask)
{
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0)
            return false;
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{.effective = mask, .permitted = mask}};
    return syscall(SYS_capset, &head, data) == 0;
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

/* The mount `tree` becomes the root, and every mount of the machine goes. */
static bool enter_tree(int tree)
{
    CLEANUP_FD int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (old < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        return false;
    if (move_mount(tree, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) != 0 || fchdir(tree) != 0 ||
        syscall(SYS_pivot_root, ".", ".") != 0)
        return false;
    /* The old root now lies on top of the new one. */
    return fchdir(old) == 0 && umount2(".", MNT_DETACH) == 0 && chdir("/") == 0;
}

static bool arrange_descriptors(const struct image_sandbox *s, int tree)
{
    CLEANUP_FD int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int staged[4] = {
        fcntl(s->input_fd, F_DUPFD_CLOEXEC, STAGE_FD),
        fcntl(s->report_fd, F_DUPFD_CLOEXEC, STAGE_FD),
        fcntl(SANITIZED ? STDERR_FILENO : null, F_DUPFD_CLOEXEC, STAGE_FD),
        fcntl(tree, F_DUPFD_CLOEXEC, STAGE_FD),
    };
    for (int i = 0; i < 4; i++)
        if (staged[i] < 0 || dup2(staged[i], i) < 0)
            return false;
    return close_range(4, ~0u, 0) == 0;
}

static bool become_inside_root(void)
{
    /* PDEATHSIG is cleared by a change of ids, so it comes after them. */
    return setgroups(0, NULL) == 0 && setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0 &&
           prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0 &&
           prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0;
}

__attribute__((noreturn)) static void child(const struct image_sandbox *s, int tree, int mapped,
                                            int (*run)(const void *user, const struct err *failed),
                                            const void *user)
{
    const uint32_t caps = s->read_only
                              ? 1u << CAP_DAC_READ_SEARCH
                              : 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER;
    char go;
    const char *failed = NULL;
    if (read(mapped, &go, 1) != 1)
        _exit(1); /* the parent gave up */
    umask(0);
    if (!arrange_descriptors(s, tree))
        failed = "descriptors";
    else if (!become_inside_root())
        failed = "ids";
    else if (!enter_tree(IMAGE_SANDBOX_TREE_FD))
        failed = "root";
    else if (!set_limits(s))
        failed = "limits";
    else if (!keep_capabilities(caps))
        failed = "capabilities";
    else if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || !filter_calls())
        failed = "system calls";
    struct err why;
    if (failed != NULL)
        (void)err_sys(&why, ERR_UNSUPPORTED, errno, "make the sandbox of an import: %s", failed);
    _exit(run(user, failed != NULL ? &why : NULL));
}

static bool write_map(pid_t pid, const char *file)
{
    char path[64];
    char line[64];
    (void)text_format(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    (void)text_format(line, sizeof line, "0 %u 65536\n", IMAGE_UID_BASE);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, line, strlen(line)) == (ssize_t)strlen(line);
}

/* A mount of the folder that belongs to no namespace yet. */
static int detach_tree(const struct image_sandbox *s, struct err *e)
{
    CLEANUP_FD int fd =
        open_tree(s->tree_fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open the tree of an import");
    struct mount_attr attr = {
        .attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC |
                    (s->read_only ? (uint64_t)MOUNT_ATTR_RDONLY : 0),
        .propagation = MS_PRIVATE,
    };
    if (mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof attr) != 0)
        return err_sys(e, ERR_IO, errno, "lock the tree of an import");
    return steal_fd(&fd);
}

int image_sandbox_start(pid_t *out_pid, const struct image_sandbox *sandbox,
                        int (*run)(const void *user, const struct err *failed), const void *user,
                        struct err *e)
{
    CLEANUP_FD int tree = detach_tree(sandbox, e);
    if (tree < 0)
        return tree;
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
        memory_close(&go_end);
        child(sandbox, tree, wait_end, run, user);
    }
    if (!write_map((pid_t)pid, "uid_map") || !write_map((pid_t)pid, "gid_map") ||
        write(go_end, "g", 1) != 1) {
        int sys = errno;
        kill((pid_t)pid, SIGKILL);
        while (waitpid((pid_t)pid, NULL, 0) < 0 && errno == EINTR)
            ;
        return err_sys(e, ERR_UNSUPPORTED, sys, "map the ids of an import");
    }
    *out_pid = (pid_t)pid;
    return 0;
}
