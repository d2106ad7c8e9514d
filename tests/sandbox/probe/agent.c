/* Process 1: it can be neither read, stopped, limited nor traced. Where it can, nothing is done. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"

struct proc_file {
    const char *name;
    const char *path;
    int flags;
};

static const struct proc_file proc_files[] = {
    {"its memory is closed", "/proc/1/mem", O_RDONLY},
    {"its memory cannot be written", "/proc/1/mem", O_RDWR},
    {"its program is closed", "/proc/1/exe", O_RDONLY},
    {"its program cannot be written", "/proc/1/exe", O_WRONLY},
    {"its descriptors are closed", "/proc/1/fd", O_RDONLY | O_DIRECTORY},
    {"its environment is closed", "/proc/1/environ", O_RDONLY},
    {"its root is closed", "/proc/1/root", O_RDONLY | O_DIRECTORY},
    {"its working folder is closed", "/proc/1/cwd", O_RDONLY | O_DIRECTORY},
    {"its control groups cannot be changed", "/proc/1/oom_score_adj", O_WRONLY},
    {"its mapped files are closed", "/proc/1/map_files", O_RDONLY | O_DIRECTORY},
    {"its mappings cannot be forgotten", "/proc/1/clear_refs", O_WRONLY},
    {"its filter of dumps is closed", "/proc/1/coredump_filter", O_WRONLY},
    {"its thread's memory is closed", "/proc/1/task/1/mem", O_RDWR},
    {"its map of users cannot be written", "/proc/1/uid_map", O_WRONLY},
    {"its map of groups cannot be written", "/proc/1/gid_map", O_WRONLY},
    {"its setgroups cannot be denied", "/proc/1/setgroups", O_WRONLY},
    {"its vectors are closed", "/proc/1/auxv", O_RDONLY},
    {"its pages are closed", "/proc/1/pagemap", O_RDONLY},
    {"its name cannot be changed", "/proc/1/comm", O_WRONLY},
    {"its stack is closed", "/proc/1/stack", O_RDONLY},
    {"its timers are closed", "/proc/1/timens_offsets", O_WRONLY},
    {"its personality is closed", "/proc/1/personality", O_RDONLY},
    {"its calls are closed", "/proc/1/syscall", O_RDONLY},
};

static bool proc_is_closed(const void *with, struct probe_text *what)
{
    const struct proc_file *f = with;
    return open(f->path, f->flags) < 0 || probe_fail(what, "%s opens", f->path);
}

static bool maps_tell_nothing(const void *with, struct probe_text *what)
{
    (void)with;
    char bytes[64];
    int fd = open("/proc/1/maps", O_RDONLY);
    return fd < 0 || read(fd, bytes, sizeof bytes) <= 0 ||
           probe_fail(what, "/proc/1/maps tells addresses");
}

static bool no_exe_link(const void *with, struct probe_text *what)
{
    (void)with;
    char target[256];
    ssize_t n = readlink("/proc/1/exe", target, sizeof target - 1);
    if (n < 0)
        return true;
    target[n] = '\0';
    return probe_fail(what, "/proc/1/exe is %s", target);
}

static bool no_trace(const void *with, struct probe_text *what)
{
    (void)with;
    long rc = ptrace(PTRACE_SEIZE, 1, NULL, NULL);
    if (rc == 0)
        ptrace(PTRACE_DETACH, 1, NULL, NULL);
    return probe_refused(what, rc);
}

static bool no_read(const void *with, struct probe_text *what)
{
    (void)with;
    char byte;
    struct iovec local = {&byte, 1};
    struct iovec remote = {(void *)0x400000, 1};
    long rc = process_vm_readv(1, &local, 1, &remote, 1, 0);
    return probe_refused(what, rc);
}

static bool no_write(const void *with, struct probe_text *what)
{
    (void)with;
    char byte = 0;
    struct iovec local = {&byte, 1};
    struct iovec remote = {NULL, 1};
    return probe_refused(what, process_vm_writev(1, &local, 1, &remote, 1, 0));
}

static bool no_signal(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_refused(what, kill(1, 0)) && probe_refused(what, syscall(SYS_tgkill, 1, 1, 0)) &&
           probe_refused(what, syscall(SYS_tkill, 1, 0));
}

static bool no_signal_by_descriptor(const void *with, struct probe_text *what)
{
    (void)with;
    int fd = (int)syscall(SYS_pidfd_open, 1, 0);
    return fd < 0 || probe_refused(what, syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0));
}

static bool no_descriptor(const void *with, struct probe_text *what)
{
    (void)with;
    int fd = (int)syscall(SYS_pidfd_open, 1, 0);
    for (int i = 0; i < 16; i++)
        if (!probe_refused(what, syscall(SYS_pidfd_getfd, fd, i, 0)))
            return false;
    return true;
}

static bool no_limit(const void *with, struct probe_text *what)
{
    (void)with;
    struct rlimit old;
    if (!probe_refused(what, prlimit(1, RLIMIT_NOFILE, NULL, &old)))
        return false;
    /* Where it is allowed it sets what no process is stopped by. */
    struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
    return probe_refused(what, prlimit(1, RLIMIT_RTTIME, &all, NULL));
}

static bool no_attach(const void *with, struct probe_text *what)
{
    (void)with;
    if (getppid() == 0)
        return probe_fail(what, "it is process 1 itself");
    long rc = ptrace(PTRACE_ATTACH, 1, NULL, NULL);
    if (rc == 0) {
        waitpid(1, NULL, 0);
        ptrace(PTRACE_DETACH, 1, NULL, NULL);
    }
    return probe_refused(what, rc);
}

static bool no_attributes(const void *with, struct probe_text *what)
{
    (void)with;
    struct {
        unsigned size, policy;
        unsigned long long flags;
        int nice;
        unsigned priority;
        unsigned long long runtime, deadline, period;
    } attributes = {.size = 48};
    return probe_refused(what, syscall(SYS_sched_setattr, 1, &attributes, 0));
}

static bool no_io_priority(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_refused(what, syscall(SYS_ioprio_set, 1, 1, 0));
}

static bool no_signal_queued(const void *with, struct probe_text *what)
{
    (void)with;
    siginfo_t info = {.si_code = SI_QUEUE};
    return probe_refused(what, syscall(SYS_rt_sigqueueinfo, 1, 0, &info)) &&
           probe_refused(what, syscall(SYS_rt_tgsigqueueinfo, 1, 1, 0, &info));
}

static bool no_group_of_processes(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_failed(what, setpgid(1, 0)) && probe_failed(what, setpgid(0, 1));
}

static bool no_priority(const void *with, struct probe_text *what)
{
    (void)with;
    errno = 0;
    int now = getpriority(PRIO_PROCESS, 1);
    if (now == -1 && errno != 0)
        return true;
    return probe_refused(what, setpriority(PRIO_PROCESS, 1, now));
}

static bool no_affinity(const void *with, struct probe_text *what)
{
    (void)with;
    cpu_set_t set;
    if (sched_getaffinity(1, sizeof set, &set) != 0)
        return true;
    return probe_refused(what, sched_setaffinity(1, sizeof set, &set));
}

static bool no_scheduler(const void *with, struct probe_text *what)
{
    (void)with;
    struct sched_param param = {0};
    return probe_refused(what, sched_setscheduler(1, sched_getscheduler(1), &param));
}

/* Code of the same user may trace itself: a debugger works. */
static bool own_child_can_be_traced(const void *with, struct probe_text *what)
{
    (void)with;
    int status = 0;
    pid_t pid = fork();
    if (pid < 0)
        return probe_fail(what, "no child: %s", strerror(errno));
    if (pid == 0) {
        for (;;)
            pause();
    }
    long rc = ptrace(PTRACE_SEIZE, pid, NULL, NULL);
    int sys = errno;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return rc == 0 || probe_fail(what, "%s", strerror(sys));
}

void probe_add_agent(struct probe_list *list)
{
    for (size_t i = 0; i < sizeof proc_files / sizeof proc_files[0]; i++)
        probe_add(list, "agent", proc_files[i].name, proc_is_closed, &proc_files[i], false);
    probe_add(list, "agent", "its maps tell nothing", maps_tell_nothing, NULL, false);
    probe_add(list, "agent", "its program is not named", no_exe_link, NULL, false);
    probe_add(list, "agent", "it cannot be traced", no_trace, NULL, false);
    probe_add(list, "agent", "it cannot be read", no_read, NULL, false);
    probe_add(list, "agent", "it cannot be written", no_write, NULL, false);
    probe_add(list, "agent", "it cannot be signalled", no_signal, NULL, false);
    probe_add(list, "agent", "it cannot be signalled by descriptor", no_signal_by_descriptor, NULL,
              false);
    probe_add(list, "agent", "it gives no descriptor away", no_descriptor, NULL, false);
    probe_add(list, "agent", "it cannot be limited", no_limit, NULL, false);
    probe_add(list, "agent", "it cannot be slowed by priority", no_priority, NULL, false);
    probe_add(list, "agent", "it cannot be bound to a processor", no_affinity, NULL, false);
    probe_add(list, "agent", "it cannot be slowed by its scheduler", no_scheduler, NULL, false);
    probe_add(list, "agent", "it cannot be attached to", no_attach, NULL, false);
    probe_add(list, "agent", "it cannot be given attributes", no_attributes, NULL, false);
    probe_add(list, "agent", "it cannot be given an I/O priority", no_io_priority, NULL, false);
    probe_add(list, "agent", "it takes no queued signal", no_signal_queued, NULL, false);
    probe_add(list, "agent", "it joins no group of processes", no_group_of_processes, NULL, false);
    if (probe_profile() != PROBE_STRICT)
        probe_add(list, "agent", "an own child can be traced", own_child_can_be_traced, NULL,
                  false);
}
