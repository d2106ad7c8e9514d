/* Limits that hold before any harm: what is asked for here is far above what an instance gets and
 * far below what hurts a machine without limits. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"

#define CHILDREN 1500
#define DISK_BYTES (320ul << 20)

/* At 1 the kernel writes no core and starts no program of core_pattern; at 0 it would start it. */
static bool no_core_dumps(const void *with, struct probe_text *what)
{
    (void)with;
    struct rlimit limit;
    getrlimit(RLIMIT_CORE, &limit);
    return (limit.rlim_cur == 1 && limit.rlim_max == 1) ||
           probe_fail(what, "the limit is %lu of %lu", (long)limit.rlim_cur, (long)limit.rlim_max);
}

static bool core_limit_stays(const void *with, struct probe_text *what)
{
    struct rlimit zero = {0, 0};
    (void)setrlimit(RLIMIT_CORE, &zero);
    (void)syscall(SYS_setrlimit, RLIMIT_CORE, &zero);
    (void)syscall(SYS_setrlimit, 0x100000000l | RLIMIT_CORE, &zero);
    (void)syscall(SYS_prlimit64, 0, 0x100000000l | RLIMIT_CORE, &zero, NULL);
    (void)syscall(SYS_prlimit64, getpid(), RLIMIT_CORE, &zero, &zero);
    return no_core_dumps(with, what);
}

static bool a_crash_leaves_no_core(const void *with, struct probe_text *what)
{
    (void)with;
    struct rlimit all;
    int status = 0;
    if (getrlimit(RLIMIT_CORE, &all) == 0 && all.rlim_max > 1) {
        /* As whoever has no such limit would, and without leaving a file where there is none. */
        return probe_fail(what, "it would be %lu bytes", (long)all.rlim_max);
    }
    pid_t pid = fork();
    if (pid == 0)
        abort();
    waitpid(pid, &status, 0);
    return (WIFSIGNALED(status) && !WCOREDUMP(status)) || probe_fail(what, "a core was dumped");
}

static bool descriptors_are_bounded(const void *with, struct probe_text *what)
{
    (void)with;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    struct rlimit higher = {limit.rlim_max, limit.rlim_max + 1};
    return (limit.rlim_max <= 1048576 ||
            probe_fail(what, "the hard limit is %lu", (long)limit.rlim_max)) &&
           probe_refused(what, setrlimit(RLIMIT_NOFILE, &higher));
}

static bool memory_cannot_be_locked(const void *with, struct probe_text *what)
{
    (void)with;
    struct rlimit limit;
    getrlimit(RLIMIT_MEMLOCK, &limit);
    return limit.rlim_max <= (64ul << 20) ||
           probe_fail(what, "%lu bytes may be locked", (long)limit.rlim_max);
}

/* All children wait for one pipe to close, so that they are gone when this process is. */
static bool processes_are_bounded(const void *with, struct probe_text *what)
{
    (void)with;
    int gate[2];
    int made = 0;
    if (pipe(gate) != 0)
        return probe_fail(what, "no pipe: %s", strerror(errno));
    for (; made < CHILDREN; made++) {
        pid_t pid = fork();
        if (pid < 0)
            break;
        if (pid == 0) {
            char byte;
            close(gate[1]);
            _exit(read(gate[0], &byte, 1) < 0);
        }
    }
    int sys = errno;
    close(gate[1]);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    if (made == CHILDREN)
        return probe_fail(what, "%d processes", made);
    return sys == EAGAIN || probe_fail(what, "%s after %d", strerror(sys), made);
}

static bool disk_is_bounded(const char *folder, struct probe_text *what)
{
    char path[64];
    snprintf(path, sizeof path, "%s/probe-disk-XXXXXX", folder);
    int fd = mkstemp(path);
    if (fd < 0)
        return true; /* nothing can be written there at all */
    unlink(path);
    int rc = posix_fallocate(fd, 0, (off_t)DISK_BYTES);
    return rc == ENOSPC || rc == EDQUOT || rc == EFBIG ||
           probe_fail(what, "%s takes %lu bytes: %s", folder, DISK_BYTES, strerror(rc));
}

static bool tmp_is_bounded(const void *with, struct probe_text *what)
{
    return disk_is_bounded(with, what);
}

static bool oom_score_cannot_be_lowered(const void *with, struct probe_text *what)
{
    (void)with;
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    return fd < 0 || probe_failed(what, write(fd, "-1000", 5));
}

static bool inotify_works(const void *with, struct probe_text *what)
{
    (void)with;
    int fd = inotify_init1(IN_CLOEXEC);
    return (fd >= 0 && inotify_add_watch(fd, "/tmp", IN_CREATE) >= 0) ||
           probe_fail(what, "%s", strerror(errno));
}

/* CVE-2022-0847: a page of a file that lies in a pipe must not take what is written to the pipe. */
static bool pipes_do_not_write_files(const void *with, struct probe_text *what)
{
    (void)with;
    char path[] = "/tmp/probe-pipe-XXXXXX";
    char bytes[65536];
    int ends[2];
    loff_t from = 0;
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, "untouched", 9) != 9 || pipe(ends) != 0)
        return probe_fail(what, "%s", strerror(errno));
    unlink(path);
    memset(bytes, 'x', sizeof bytes);
    if (write(ends[1], bytes, sizeof bytes) != sizeof bytes ||
        read(ends[0], bytes, sizeof bytes) != sizeof bytes)
        return probe_fail(what, "%s", strerror(errno));
    if (syscall(SYS_splice, fd, &from, ends[1], NULL, 1, 0) != 1)
        return probe_refused(what, -1);
    (void)!write(ends[1], "TOUCHED", 7);
    return (pread(fd, bytes, 9, 0) == 9 && memcmp(bytes, "untouched", 9) == 0) ||
           probe_fail(what, "it wrote a file");
}

void probe_add_limits(struct probe_list *list)
{
    static const char *const folders[] = {"/tmp", "/dev/shm", "/var/tmp", "/run"};
    static const char *const names[] = {"/tmp is bounded", "/dev/shm is bounded",
                                        "/var/tmp is bounded", "/run is bounded"};
    probe_add(list, "limits", "no core dumps, to no pipe either", no_core_dumps, NULL, false);
    probe_add(list, "limits", "the limit of cores cannot be changed", core_limit_stays, NULL,
              false);
    probe_add(list, "limits", "a crash leaves no core", a_crash_leaves_no_core, NULL, false);
    probe_add(list, "limits", "descriptors are bounded", descriptors_are_bounded, NULL, false);
    probe_add(list, "limits", "memory cannot be locked", memory_cannot_be_locked, NULL, false);
    probe_add(list, "limits", "processes are bounded", processes_are_bounded, NULL, false);
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++)
        probe_add(list, "limits", names[i], tmp_is_bounded, folders[i], false);
    probe_add(list, "limits", "the oom score cannot be lowered", oom_score_cannot_be_lowered, NULL,
              false);
    probe_add(list, "limits", "a pipe does not write a file", pipes_do_not_write_files, NULL,
              false);
    probe_add(list, "limits", "inotify works", inotify_works, NULL, false);
}
