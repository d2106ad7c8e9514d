#include "sandbox/runner/seccomp.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

/* Allowed whatever the arguments, by subject. A name that this libseccomp or architecture does not
 * know is skipped. What is in none of the tables answers ENOSYS, so that a program that probes for
 * a newer call falls back to an older one. */
static const char *const allowed_files[] = {"access",
                                            "chdir",
                                            "chmod",
                                            "chown",
                                            "close",
                                            "close_range",
                                            "copy_file_range",
                                            "creat",
                                            "dup",
                                            "dup2",
                                            "dup3",
                                            "faccessat",
                                            "faccessat2",
                                            "fadvise64",
                                            "fallocate",
                                            "fchdir",
                                            "fchmod",
                                            "fchmodat",
                                            "fchmodat2",
                                            "fchown",
                                            "fchownat",
                                            "fcntl",
                                            "fdatasync",
                                            "fgetxattr",
                                            "flistxattr",
                                            "flock",
                                            "fremovexattr",
                                            "fsetxattr",
                                            "fstat",
                                            "fstatfs",
                                            "fsync",
                                            "ftruncate",
                                            "futimesat",
                                            "getcwd",
                                            "getdents",
                                            "getdents64",
                                            "getxattr",
                                            "lchown",
                                            "lgetxattr",
                                            "link",
                                            "linkat",
                                            "listxattr",
                                            "llistxattr",
                                            "lremovexattr",
                                            "lseek",
                                            "lsetxattr",
                                            "lstat",
                                            "mkdir",
                                            "mkdirat",
                                            "newfstatat",
                                            "open",
                                            "openat",
                                            "openat2",
                                            "pread64",
                                            "preadv",
                                            "preadv2",
                                            "pwrite64",
                                            "pwritev",
                                            "pwritev2",
                                            "read",
                                            "readahead",
                                            "readlink",
                                            "readlinkat",
                                            "readv",
                                            "removexattr",
                                            "rename",
                                            "renameat",
                                            "renameat2",
                                            "rmdir",
                                            "sendfile",
                                            "setxattr",
                                            "splice",
                                            "stat",
                                            "statfs",
                                            "statx",
                                            "symlink",
                                            "symlinkat",
                                            "sync",
                                            "sync_file_range",
                                            "syncfs",
                                            "tee",
                                            "truncate",
                                            "umask",
                                            "unlink",
                                            "unlinkat",
                                            "utime",
                                            "utimensat",
                                            "utimes",
                                            "vmsplice",
                                            "write",
                                            "writev",
                                            "cachestat",
                                            NULL};

static const char *const allowed_waiting[] = {"epoll_create",
                                              "epoll_create1",
                                              "epoll_ctl",
                                              "epoll_pwait",
                                              "epoll_pwait2",
                                              "epoll_wait",
                                              "eventfd",
                                              "eventfd2",
                                              "inotify_add_watch",
                                              "inotify_init",
                                              "inotify_init1",
                                              "inotify_rm_watch",
                                              "io_cancel",
                                              "io_destroy",
                                              "io_getevents",
                                              "io_pgetevents",
                                              "io_setup",
                                              "io_submit",
                                              "pause",
                                              "pipe",
                                              "pipe2",
                                              "poll",
                                              "ppoll",
                                              "pselect6",
                                              "select",
                                              "signalfd",
                                              "signalfd4",
                                              "timerfd_create",
                                              "timerfd_gettime",
                                              "timerfd_settime",
                                              NULL};

static const char *const allowed_memory[] = {"brk",
                                             "get_mempolicy",
                                             "madvise",
                                             "mbind",
                                             "membarrier",
                                             "memfd_create",
                                             "mincore",
                                             "mlock",
                                             "mlock2",
                                             "mlockall",
                                             "mmap",
                                             "mprotect",
                                             "mremap",
                                             "msync",
                                             "munlock",
                                             "munlockall",
                                             "munmap",
                                             "pkey_alloc",
                                             "pkey_free",
                                             "pkey_mprotect",
                                             "process_mrelease",
                                             "remap_file_pages",
                                             "set_mempolicy",
                                             "mseal",
                                             "map_shadow_stack",
                                             NULL};

static const char *const allowed_processes[] = {"alarm",
                                                "arch_prctl",
                                                "capget",
                                                "capset",
                                                "execve",
                                                "execveat",
                                                "exit",
                                                "exit_group",
                                                "fork",
                                                "futex",
                                                "futex_wait",
                                                "futex_wake",
                                                "futex_requeue",
                                                "futex_waitv",
                                                "get_robust_list",
                                                "getcpu",
                                                "getegid",
                                                "geteuid",
                                                "getgid",
                                                "getgroups",
                                                "getitimer",
                                                "getpgid",
                                                "getpgrp",
                                                "getpid",
                                                "getppid",
                                                "getpriority",
                                                "getresgid",
                                                "getresuid",
                                                "getrlimit",
                                                "getrusage",
                                                "getsid",
                                                "gettid",
                                                "getuid",
                                                "ioprio_get",
                                                "ioprio_set",
                                                "kill",
                                                "landlock_add_rule",
                                                "landlock_create_ruleset",
                                                "landlock_restrict_self",
                                                "pidfd_open",
                                                "pidfd_send_signal",
                                                "prctl",
                                                "prlimit64",
                                                "process_vm_readv",
                                                "process_vm_writev",
                                                "ptrace",
                                                "restart_syscall",
                                                "rseq",
                                                "rt_sigaction",
                                                "rt_sigpending",
                                                "rt_sigprocmask",
                                                "rt_sigqueueinfo",
                                                "rt_sigreturn",
                                                "rt_sigsuspend",
                                                "rt_sigtimedwait",
                                                "rt_tgsigqueueinfo",
                                                "sched_get_priority_max",
                                                "sched_get_priority_min",
                                                "sched_getaffinity",
                                                "sched_getattr",
                                                "sched_getparam",
                                                "sched_getscheduler",
                                                "sched_rr_get_interval",
                                                "sched_setaffinity",
                                                "sched_setattr",
                                                "sched_setparam",
                                                "sched_setscheduler",
                                                "sched_yield",
                                                "seccomp",
                                                "set_robust_list",
                                                "set_thread_area",
                                                "set_tid_address",
                                                "setfsgid",
                                                "setfsuid",
                                                "setgid",
                                                "setgroups",
                                                "setitimer",
                                                "setpgid",
                                                "setpriority",
                                                "setregid",
                                                "setresgid",
                                                "setresuid",
                                                "setreuid",
                                                "setrlimit",
                                                "setsid",
                                                "setuid",
                                                "sigaltstack",
                                                "tgkill",
                                                "timer_create",
                                                "timer_delete",
                                                "timer_getoverrun",
                                                "timer_gettime",
                                                "timer_settime",
                                                "tkill",
                                                "vfork",
                                                "wait4",
                                                "waitid",
                                                NULL};

static const char *const allowed_sockets[] = {
    "accept",     "accept4", "bind",       "connect",  "getpeername", "getsockname",
    "getsockopt", "listen",  "recvfrom",   "recvmmsg", "recvmsg",     "sendmmsg",
    "sendmsg",    "sendto",  "setsockopt", "shutdown", NULL};

static const char *const allowed_rest[] = {"clock_getres",
                                           "clock_gettime",
                                           "clock_nanosleep",
                                           "getrandom",
                                           "gettimeofday",
                                           "mq_getsetattr",
                                           "mq_notify",
                                           "mq_open",
                                           "mq_timedreceive",
                                           "mq_timedsend",
                                           "mq_unlink",
                                           "msgctl",
                                           "msgget",
                                           "msgrcv",
                                           "msgsnd",
                                           "nanosleep",
                                           "semctl",
                                           "semget",
                                           "semop",
                                           "semtimedop",
                                           "shmat",
                                           "shmctl",
                                           "shmdt",
                                           "shmget",
                                           "sysinfo",
                                           "time",
                                           "times",
                                           "uname",
                                           NULL};

static const char *const *const allowed[] = {allowed_files,     allowed_waiting, allowed_memory,
                                             allowed_processes, allowed_sockets, allowed_rest};

/* Known, wanted by somebody, and not for code in a sandbox: EPERM says so, where ENOSYS would make
 * a program believe in an old kernel. */
static const char *const denied[] = {"acct",
                                     "add_key",
                                     "adjtimex",
                                     "bpf",
                                     "chroot",
                                     "clock_adjtime",
                                     "clock_settime",
                                     "delete_module",
                                     "fanotify_init",
                                     "fanotify_mark",
                                     "finit_module",
                                     "fsconfig",
                                     "fsmount",
                                     "fsopen",
                                     "fspick",
                                     "init_module",
                                     "ioperm",
                                     "iopl",
                                     "io_uring_enter",
                                     "io_uring_register",
                                     "io_uring_setup",
                                     "kcmp",
                                     "kexec_file_load",
                                     "kexec_load",
                                     "keyctl",
                                     "lookup_dcookie",
                                     "mknod",
                                     "mknodat",
                                     "modify_ldt",
                                     "mount",
                                     "mount_setattr",
                                     "move_mount",
                                     "move_pages",
                                     "name_to_handle_at",
                                     "nfsservctl",
                                     "open_by_handle_at",
                                     "open_tree",
                                     "perf_event_open",
                                     "pidfd_getfd",
                                     "pivot_root",
                                     "process_madvise",
                                     "quotactl",
                                     "quotactl_fd",
                                     "reboot",
                                     "request_key",
                                     "setdomainname",
                                     "sethostname",
                                     "setns",
                                     "settimeofday",
                                     "swapoff",
                                     "swapon",
                                     "syslog",
                                     "umount2",
                                     "unshare",
                                     "userfaultfd",
                                     "vhangup",
                                     NULL};

/* clone with one of these would make a namespace. clone3 hides its flags in memory, where a filter
 * cannot look: it does not exist here, and libc falls back to clone. */
#define CLONE_NAMESPACES                                                                           \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |  \
     CLONE_NEWNET)

static int add(scmp_filter_ctx filter, uint32_t action, int call, unsigned count,
               const struct scmp_arg_cmp *arguments)
{
    int rc = seccomp_rule_add_array(filter, action, call, count, arguments);
    /* A rule that repeats one is no mistake. */
    return rc == -EEXIST ? 0 : rc;
}

static int add_names(scmp_filter_ctx filter, uint32_t action, const char *const *names)
{
    for (size_t i = 0; names[i] != NULL; i++) {
        int call = seccomp_syscall_resolve_name(names[i]);
        if (call < 0)
            continue;
        int rc = add(filter, action, call, 0, NULL);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The kernel looks at the lower 32 bits of ioctl's request only, so these compares do too.
 * libseccomp has no "else": a request is allowed when any one bit differs from TIOCSTI and any one
 * from TIOCLINUX. Both are 0x54xx; 0x5412 and 0x541c differ from each other in bits 1 to 3 only, so
 * whatever differs from both in one and the same bit, or lies outside 0x5410..0x541f, is allowed in
 * one rule each, and what remains is listed. */
static int add_ioctl(scmp_filter_ctx filter)
{
    const uint32_t low = TIOCSTI, high = TIOCLINUX, same = ~(low ^ high);
    for (int bit = 0; bit < 32; bit++) {
        uint32_t mask = 1u << bit;
        if ((same & mask) == 0)
            continue;
        struct scmp_arg_cmp differs = SCMP_A1_32(SCMP_CMP_MASKED_EQ, mask, ~low & mask);
        int rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, &differs);
        if (rc < 0)
            return rc;
    }
    for (uint32_t request = 0; request < 16; request++) {
        uint32_t value = (low & ~15u) | request;
        if ((value & same) != (low & same) || value == low || value == high)
            continue;
        struct scmp_arg_cmp equals = SCMP_A1_32(SCMP_CMP_EQ, value, 0);
        int rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, &equals);
        if (rc < 0)
            return rc;
    }
    for (int i = 0; i < 2; i++) {
        struct scmp_arg_cmp equals = SCMP_A1_32(SCMP_CMP_EQ, i == 0 ? low : high, 0);
        int rc = add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(ioctl), 1, &equals);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* vsock is not namespaced, packet and alg reach into the kernel: only what is listed exists. */
static int add_sockets(scmp_filter_ctx filter)
{
    static const int families[] = {AF_UNIX, AF_INET, AF_INET6};
    static const int calls[] = {SCMP_SYS(socket), SCMP_SYS(socketpair)};
    for (size_t i = 0; i < ARRAY_SIZE(families) * ARRAY_SIZE(calls); i++) {
        struct scmp_arg_cmp family =
            SCMP_A0_32(SCMP_CMP_EQ, (uint32_t)families[i % ARRAY_SIZE(families)], 0);
        int rc = add(filter, SCMP_ACT_ALLOW, calls[i / ARRAY_SIZE(families)], 1, &family);
        if (rc < 0)
            return rc;
    }
    struct scmp_arg_cmp route[] = {SCMP_A0_32(SCMP_CMP_EQ, AF_NETLINK, 0),
                                   SCMP_A2_32(SCMP_CMP_EQ, NETLINK_ROUTE, 0)};
    return add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, route);
}

static int add_rest(scmp_filter_ctx filter)
{
    struct scmp_arg_cmp no_namespace = SCMP_A0_32(SCMP_CMP_MASKED_EQ, CLONE_NAMESPACES, 0);
    int rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, &no_namespace);
    /* PER_LINUX, and the question which one is set. */
    static const uint32_t personalities[] = {0, UINT32_MAX};
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(personalities); i++) {
        struct scmp_arg_cmp equals = SCMP_A0_32(SCMP_CMP_EQ, personalities[i], 0);
        rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(personality), 1, &equals);
    }
    return rc;
}

static int fill(scmp_filter_ctx filter)
{
    /* A binary search; x32 and i386 calls kill the process. */
    int rc = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (rc == 0)
        rc = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(allowed); i++)
        rc = add_names(filter, SCMP_ACT_ALLOW, allowed[i]);
    if (rc == 0)
        rc = add_names(filter, SCMP_ACT_ERRNO(EPERM), denied);
    if (rc == 0)
        rc = add_ioctl(filter);
    if (rc == 0)
        rc = add_sockets(filter);
    if (rc == 0)
        rc = add_rest(filter);
    return rc;
}

static int export(scmp_filter_ctx filter, struct seccomp_filter *out, struct err *e)
{
    CLEANUP_FD int fd = memfd_create("filter", MFD_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "memfd");
    int rc = seccomp_export_bpf(filter, fd);
    if (rc < 0)
        return err_sys(e, ERR_INTERNAL, -rc, "export seccomp filter");
    off_t size = lseek(fd, 0, SEEK_END);
    if (size <= 0 || size % 8 != 0)
        return err_set(e, ERR_INTERNAL, "seccomp filter of %lld bytes", (long long)size);
    CLEANUP_FREE uint8_t *program = malloc((size_t)size);
    if (program == NULL)
        return err_set(e, ERR_NO_MEMORY, "seccomp filter");
    if (pread(fd, program, (size_t)size, 0) != size)
        return err_sys(e, ERR_IO, errno, "read seccomp filter");
    out->program = steal_pointer(&program);
    out->size = (size_t)size;
    return 0;
}

static const char *const profile_names[] = {"default", NULL};

const char *const *seccomp_profile_names(void)
{
    return profile_names;
}

int seccomp_filter_compile(struct seccomp_filter *out, const char *profile, struct err *e)
{
    if (strcmp(profile, profile_names[0]) != 0)
        return err_set(e, ERR_NOT_FOUND, "profile %s: there is only %s", profile, profile_names[0]);
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    if (filter == NULL)
        return err_set(e, ERR_NO_MEMORY, "seccomp filter");
    int failed = fill(filter);
    int rc = failed < 0 ? err_sys(e, ERR_INTERNAL, -failed, "build seccomp filter")
                        : export(filter, out, e);
    seccomp_release(filter);
    return rc;
}

void seccomp_filter_free(struct seccomp_filter *filter)
{
    free(filter->program);
    *filter = (struct seccomp_filter){0};
}
