/* System calls that must be refused: mounts, namespaces, the kernel's own business, and numbers
 * that are not what they seem. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"

#define P(text) ((long)(text))

struct call {
    const char *group;
    const char *name;
    long number;
    long a[6];
};

static const char zeros[64];
static const char software_event[128] = {1, 0, 0, 0, 112}; /* type, size of the attributes */

/* Arguments are chosen so that the call does nothing where it is allowed: no path exists, lengths
 * are zero, values are those that hold already. */
#define NOWHERE P("/skerry-probe-nowhere")
static const struct call refused[] = {
    {"mounts", "mount", SYS_mount, {P("none"), NOWHERE, P("tmpfs"), 0, 0}},
    {"mounts", "bind mount", SYS_mount, {P("/"), NOWHERE, 0, MS_BIND, 0}},
    {"mounts", "remount", SYS_mount, {0, NOWHERE, 0, MS_REMOUNT | MS_BIND, 0}},
    {"mounts", "change of propagation", SYS_mount, {0, NOWHERE, 0, MS_SHARED, 0}},
    {"mounts",
     "mount of control groups",
     SYS_mount,
     {P("x"), NOWHERE, P("cgroup"), 0, P("memory")}},
    {"mounts", "mount of proc", SYS_mount, {P("proc"), NOWHERE, P("proc"), 0, 0}},
    {"mounts", "mount of sysfs", SYS_mount, {P("sysfs"), NOWHERE, P("sysfs"), 0, 0}},
    {"mounts", "mount of overlay", SYS_mount, {P("o"), NOWHERE, P("overlay"), 0, P("lowerdir=/")}},
    {"mounts", "mount of FUSE", SYS_mount, {P("f"), NOWHERE, P("fuse"), 0, P("fd=0")}},
    {"mounts", "mount of a disk", SYS_mount, {P("/dev/vda"), NOWHERE, P("ext4"), 0, 0}},
    {"mounts", "mount by moving", SYS_mount, {NOWHERE, NOWHERE, 0, MS_MOVE, 0}},
    {"mounts", "fsopen of control groups", SYS_fsopen, {P("cgroup2"), 0}},
    {"mounts", "fsopen of overlay", SYS_fsopen, {P("overlay"), 0}},
    {"mounts", "open_tree_attr", 467, {AT_FDCWD, NOWHERE, 0, P(zeros), 32}},
    {"mounts", "statmount", 457, {P(zeros), 0, 0, 0}},
    {"mounts", "listmount", 458, {P(zeros), 0, 0, 0}},
    {"mounts", "quotactl_fd", 443, {-1, 0x800001 << 8, 0, 0}},
    {"mounts", "umount", SYS_umount2, {NOWHERE, 0}},
    {"mounts", "umount by detaching", SYS_umount2, {NOWHERE, MNT_DETACH}},
    {"mounts", "pivot_root", SYS_pivot_root, {NOWHERE, NOWHERE}},
    {"mounts", "chroot", SYS_chroot, {P("/")}},
    {"mounts", "fsopen", SYS_fsopen, {P("tmpfs"), 0}},
    {"mounts", "fsconfig", SYS_fsconfig, {-1, 6, 0, 0, 0}},
    {"mounts", "fsmount", SYS_fsmount, {-1, 0, 0}},
    {"mounts", "fspick", SYS_fspick, {AT_FDCWD, P("/"), 0}},
    {"mounts", "open_tree that clones", SYS_open_tree, {AT_FDCWD, P("/"), 1}},
    {"mounts", "move_mount", SYS_move_mount, {AT_FDCWD, NOWHERE, AT_FDCWD, NOWHERE, 0}},
    {"mounts", "mount_setattr", SYS_mount_setattr, {AT_FDCWD, NOWHERE, 0, P(zeros), 32}},
    {"mounts", "swapon", SYS_swapon, {NOWHERE, 0}},
    {"mounts", "swapoff", SYS_swapoff, {NOWHERE}},
    {"mounts", "quotactl", SYS_quotactl, {0x800001 << 8, NOWHERE, 0, 0}},
    {"namespaces", "unshare of users", SYS_unshare, {CLONE_NEWUSER}},
    {"namespaces", "unshare of mounts", SYS_unshare, {CLONE_NEWNS}},
    {"namespaces", "unshare of networks", SYS_unshare, {CLONE_NEWNET}},
    {"namespaces", "unshare of processes", SYS_unshare, {CLONE_NEWPID}},
    {"namespaces", "unshare of ipc", SYS_unshare, {CLONE_NEWIPC}},
    {"namespaces", "unshare of host names", SYS_unshare, {CLONE_NEWUTS}},
    {"namespaces", "unshare of control groups", SYS_unshare, {CLONE_NEWCGROUP}},
    {"namespaces", "unshare of times", SYS_unshare, {CLONE_NEWTIME}},
    {"namespaces", "unshare of everything", SYS_unshare, {0x7e020080 | CLONE_NEWNS}},
    {"namespaces", "setns", SYS_setns, {-1, 0}},
    {"namespaces", "setns to users", SYS_setns, {-1, CLONE_NEWUSER}},
    {"namespaces", "setns to mounts", SYS_setns, {-1, CLONE_NEWNS}},
    {"syscalls", "bpf", SYS_bpf, {0, P("\2\0\0\0\4\0\0\0\4\0\0\0\1\0\0\0"), 16}},
    {"syscalls", "perf_event_open", SYS_perf_event_open, {P(software_event), 0, -1, -1, 0}},
    {"syscalls", "userfaultfd", SYS_userfaultfd, {1}},
    {"syscalls", "io_uring_setup", SYS_io_uring_setup, {1, 0}},
    {"syscalls", "io_uring_enter", SYS_io_uring_enter, {-1, 0, 0, 0, 0, 0}},
    {"syscalls", "io_uring_register", SYS_io_uring_register, {-1, 0, 0, 0}},
    {"syscalls", "add_key", SYS_add_key, {P("user"), P("probe"), P("x"), 1, -1}},
    {"syscalls", "request_key", SYS_request_key, {P("user"), P("probe"), 0, -1}},
    {"syscalls", "keyctl", SYS_keyctl, {0, -3, 0}},
    {"syscalls", "init_module", SYS_init_module, {0, 0, P("")}},
    {"syscalls", "finit_module", SYS_finit_module, {-1, P(""), 0}},
    {"syscalls", "delete_module", SYS_delete_module, {P("skerry_probe"), O_NONBLOCK}},
    {"syscalls", "kexec_load", SYS_kexec_load, {0, 0, 0, 0xffff0000}},
    {"syscalls", "kexec_file_load", SYS_kexec_file_load, {-1, -1, 0, P(""), 0}},
    {"syscalls", "reboot", SYS_reboot, {0, 0, 0, 0}},
    {"syscalls", "settimeofday", SYS_settimeofday, {0, 0}},
    {"syscalls", "syslog", SYS_syslog, {3, P(""), 0}},
    {"syscalls", "clock_settime", SYS_clock_settime, {-1, P(zeros)}},
    {"syscalls", "adjtimex", SYS_adjtimex, {0}},
    {"syscalls", "clock_adjtime", SYS_clock_adjtime, {-1, 0}},
    {"syscalls", "fanotify_mark", SYS_fanotify_mark, {-1, 0, 0, 0, 0}},
    {"syscalls", "vhangup", SYS_vhangup, {0}},
    {"syscalls", "bpf of a program", SYS_bpf, {5, P(zeros), 48}},
    {"syscalls", "bpf of a token", SYS_bpf, {36, P(zeros), 16}},
    {"syscalls", "a joined session keyring", SYS_keyctl, {1, 0}},
    {"syscalls", "a keyring of a user", SYS_keyctl, {0, -4, 0}},
    {"syscalls", "the log cleared", SYS_syslog, {10, 0, 0}},
    {"syscalls", "memory of kinds moved", SYS_migrate_pages, {0, 0, 0, 0}},
    {"syscalls", "uselib", 134, {NOWHERE}},
    {"syscalls", "ustat", 136, {0, 0}},
    {"syscalls", "sysfs", 139, {3}},
    {"syscalls", "set_mempolicy_home_node", 450, {0, 0, 0, 0}},
    {"syscalls", "setxattrat", 463, {AT_FDCWD, NOWHERE, 0, 0, 0, 0}},
    {"syscalls", "file_getattr", 468, {AT_FDCWD, NOWHERE, 0, 0, 0}},
    {"syscalls", "lsm_set_self_attr", 460, {0, 0, 0, 0}},
    {"syscalls", "iopl", SYS_iopl, {3}},
    {"syscalls", "ioperm", SYS_ioperm, {0x80, 1, 1}},
    {"syscalls", "modify_ldt", SYS_modify_ldt, {0, 0, 0}},
    {"syscalls", "acct", SYS_acct, {NOWHERE}},
    {"syscalls", "open_by_handle_at", SYS_open_by_handle_at, {-1, P(zeros), 0}},
    {"syscalls", "fanotify_init", SYS_fanotify_init, {0, 0}},
    {"syscalls", "kcmp", SYS_kcmp, {1, 1, 0, 0, 0}},
    {"syscalls", "lookup_dcookie", SYS_lookup_dcookie, {0, 0, 0}},
    {"syscalls", "move_pages of process 1", SYS_move_pages, {1, 0, 0, 0, 0, 0}},
    {"syscalls", "migrate_pages of process 1", SYS_migrate_pages, {1, 0, 0, 0}},
    {"syscalls", "process_madvise", SYS_process_madvise, {-1, 0, 0, 0, 0}},
    {"syscalls", "personality with no randomization", SYS_personality, {0x0040000}},
    {"syscalls", "name_to_handle_at", SYS_name_to_handle_at, {AT_FDCWD, NOWHERE, 0, 0, 0}},
    {"syscalls", "sethostname", SYS_sethostname, {0, -1}},
    {"syscalls", "setdomainname", SYS_setdomainname, {0, -1}},
    {"syscalls", "memfd_secret", 447, {~0l}},
};

static bool is_refused(const void *with, struct probe_text *what)
{
    const struct call *c = with;
    long rc = syscall(c->number, c->a[0], c->a[1], c->a[2], c->a[3], c->a[4], c->a[5]);
    if (c->number == SYS_reboot && rc < 0 && errno == EINVAL)
        return probe_fail(what, "allowed, if its magic numbers were right");
    return probe_refused(what, rc);
}

/* --- numbers ---------------------------------------------------------------------------------- */

struct number {
    const char *name;
    long number;
};

static const struct number unknown[] = {
    {"a number that no kernel has", 9999},
    {"a number far above all", 0x3fffffff},
    {"clone3, so that libc falls back to clone", SYS_clone3},
};

static bool is_unknown(const void *with, struct probe_text *what)
{
    const struct number *n = with;
    long rc = syscall(n->number, 0, 0, 0, 0, 0, 0);
    if (n->number == SYS_clone3 && rc < 0 && errno == EINVAL)
        return probe_fail(what, "it looked at its arguments");
    return (rc < 0 && errno == ENOSYS) || probe_fail(what, "%ld: %s", rc, strerror(errno));
}

#if defined(__x86_64__)
static bool x32_call(const void *with, struct probe_text *what)
{
    (void)with;
    long rc = syscall(0x40000000 | SYS_getpid);
    return probe_fail(what, "it came back: %ld", rc);
}

/* Its bit for x32 is set. */
static bool negative_call(const void *with, struct probe_text *what)
{
    (void)with;
    long rc = syscall(-2);
    return probe_fail(what, "it came back: %ld", rc);
}

/* Where a kernel is a program of another one, the entry is that one's: what comes through it has x86-64's
 * numbers, and is filtered by them. */
static bool in_user_mode_linux(void)
{
    char text[512] = "";
    FILE *f = fopen("/proc/cpuinfo", "re");
    size_t length = f == NULL ? 0 : fread(text, 1, sizeof text - 1, f);
    if (f != NULL)
        (void)fclose(f);
    text[length] = '\0';
    return strstr(text, "User Mode Linux") != NULL;
}

static long i386_getpid(void)
{
    long rc = 20; /* writev here */
    __asm__ volatile("int $0x80" : "+a"(rc) : : "memory", "r8", "r9", "r10", "r11");
    return rc;
}

static bool i386_call(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_fail(what, "it came back: %ld", i386_getpid());
}

static bool i386_is_none(const void *with, struct probe_text *what)
{
    (void)with;
    long rc = i386_getpid();
    return rc == -EBADF || probe_fail(what, "it came back: %ld", rc);
}

/* A number whose upper half is set: the kernel and the filter must see the same call. */
static bool wide_number(const void *with, struct probe_text *what)
{
    (void)with;
    long rc = syscall(0x100000000l | SYS_unshare, CLONE_NEWUSER);
    return probe_refused(what, rc);
}
#endif

struct request {
    const char *name;
    unsigned long request;
};

/* The kernel looks at the lower 32 bits of a request; a filter that compares all 64 is fooled. On
 * something that is no terminal an allowed request answers ENOTTY. */
static const struct request requests[] = {
    {"ioctl TIOCSTI", TIOCSTI},
    {"ioctl TIOCSTI with a high bit", 0x100000000ul | TIOCSTI},
    {"ioctl TIOCSTI with all high bits", 0xffffffff00000000ul | TIOCSTI},
    {"ioctl TIOCLINUX", 0x541c},
    {"ioctl TIOCLINUX with a high bit", 0x8000000000000000ul | 0x541c},
};

static bool request_is_refused(const void *with, struct probe_text *what)
{
    const struct request *r = with;
    int fd = open("/dev/null", O_RDWR);
    return probe_refused(what, syscall(SYS_ioctl, fd, r->request, "x"));
}

static bool other_requests_work(const void *with, struct probe_text *what)
{
    (void)with;
    int ends[2];
    int waiting = -1;
    if (pipe(ends) != 0 || write(ends[1], "abc", 3) != 3)
        return probe_fail(what, "%s", strerror(errno));
    struct winsize size;
    if (ioctl(ends[0], TIOCGWINSZ, &size) == 0 || errno != ENOTTY)
        return probe_fail(what, "TIOCGWINSZ: %s", strerror(errno));
    return (ioctl(ends[0], FIONREAD, &waiting) == 0 && waiting == 3) ||
           probe_fail(what, "FIONREAD: %s", strerror(errno));
}

/* --- namespaces by clone ---------------------------------------------------------------------- */

static const struct number clones[] = {
    {"clone with users", CLONE_NEWUSER},
    {"clone with mounts", CLONE_NEWNS},
    {"clone with networks", CLONE_NEWNET},
    {"clone with processes", CLONE_NEWPID},
    {"clone with ipc", CLONE_NEWIPC},
    {"clone with host names", CLONE_NEWUTS},
    {"clone with control groups", CLONE_NEWCGROUP},
};

static bool clone_is_refused(const void *with, struct probe_text *what)
{
    const struct number *n = with;
    long pid = syscall(SYS_clone, (unsigned long)n->number | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    if (pid > 0)
        waitpid((pid_t)pid, NULL, 0);
    return probe_refused(what, pid);
}

static bool clone3_is_unknown(const void *with, struct probe_text *what)
{
    (void)with;
    struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        _exit(0);
    if (pid > 0)
        waitpid((pid_t)pid, NULL, 0);
    return (pid < 0 && errno == ENOSYS) ||
           probe_fail(what, "%s", pid < 0 ? strerror(errno) : "it made a namespace");
}

static const char *const kinds[] = {"user", "mnt", "net", "pid", "ipc", "uts", "cgroup"};

/* The kernel's own count, should the filter fail. */
static bool none_may_be_made(const void *with, struct probe_text *what)
{
    char path[64];
    char text[32] = "";
    snprintf(path, sizeof path, "/proc/sys/user/max_%s_namespaces", (const char *)with);
    int fd = open(path, O_RDONLY);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return probe_fail(what, "%s: %s", path, strerror(errno));
    return strcmp(text, "0\n") == 0 || probe_fail(what, "%s is %s", path, text);
}

/* By what leads to one's own: refused also where nothing would change. */
static bool own_cannot_be_entered(const void *with, struct probe_text *what)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/ns/%s", (const char *)with);
    int fd = open(path, O_RDONLY);
    return probe_refused(what, setns(fd, 0));
}

static bool process_1_gives_no_namespace(const void *with, struct probe_text *what)
{
    (void)with;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/1/ns/%s", kinds[i]);
        if (open(path, O_RDONLY) >= 0)
            return probe_fail(what, "%s opens", path);
    }
    return true;
}

static const char *const counted[][2] = {{"user", "the count of users is 0"},
                                         {"mnt", "the count of mounts is 0"},
                                         {"net", "the count of networks is 0"},
                                         {"pid", "the count of processes is 0"},
                                         {"ipc", "the count of ipc is 0"},
                                         {"uts", "the count of host names is 0"},
                                         {"cgroup", "the count of control groups is 0"},
                                         {"time", "the count of times is 0"}};
static const char *const entered[][2] = {{"user", "users cannot be entered"},
                                         {"mnt", "mounts cannot be entered"},
                                         {"net", "networks cannot be entered"},
                                         {"pid", "processes cannot be entered"},
                                         {"ipc", "ipc cannot be entered"},
                                         {"uts", "host names cannot be entered"},
                                         {"cgroup", "control groups cannot be entered"}};

/* What `relaxed` is there for. */
static bool allowed_by_profile(long number)
{
    static const long relaxed[] = {SYS_userfaultfd,
                                   SYS_io_uring_setup,
                                   SYS_io_uring_enter,
                                   SYS_io_uring_register,
                                   SYS_kcmp,
                                   SYS_move_pages,
                                   SYS_process_madvise,
                                   SYS_name_to_handle_at,
                                   SYS_personality,
                                   447 /* memfd_secret */};
    for (size_t i = 0; probe_profile() == PROBE_RELAXED && i < sizeof relaxed / sizeof relaxed[0];
         i++)
        if (relaxed[i] == number)
            return true;
    return false;
}

void probe_add_calls(struct probe_list *list)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (!allowed_by_profile(refused[i].number))
            probe_add(list, refused[i].group, refused[i].name, is_refused, &refused[i], false);
    for (size_t i = 0; i < sizeof clones / sizeof clones[0]; i++)
        probe_add(list, "namespaces", clones[i].name, clone_is_refused, &clones[i], false);
    probe_add(list, "namespaces", "clone3 hides no namespace", clone3_is_unknown, NULL, false);
    for (size_t i = 0; i < sizeof counted / sizeof counted[0]; i++)
        probe_add(list, "namespaces", counted[i][1], none_may_be_made, counted[i][0], false);
    for (size_t i = 0; i < sizeof entered / sizeof entered[0]; i++)
        probe_add(list, "namespaces", entered[i][1], own_cannot_be_entered, entered[i][0], false);
    probe_add(list, "namespaces", "process 1 gives none away", process_1_gives_no_namespace, NULL,
              false);
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
        probe_add(list, "numbers", unknown[i].name, is_unknown, &unknown[i], false);
    for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++)
        probe_add(list, "numbers", requests[i].name, request_is_refused, &requests[i], false);
    probe_add(list, "numbers", "other ioctls work", other_requests_work, NULL, false);
#if defined(__x86_64__)
    probe_add(list, "numbers", "an x32 call kills", x32_call, NULL, true);
    probe_add(list, "numbers", "a negative number kills", negative_call, NULL, true);
    bool none = in_user_mode_linux();
    probe_add(list, "numbers", none ? "an i386 call is one of x86-64" : "an i386 call kills",
              none ? i386_is_none : i386_call, NULL, !none);
    probe_add(list, "numbers", "a wide number is the same call", wide_number, NULL, false);
#endif
}
