/* What keeps everything inside as it was made: a second pair of namespaces, and what the kernel counts
 * per user, lowered.
 *
 * Namespaces cannot be made by a filtered program anyhow; here the kernel itself says no, to a process
 * that got around the filter too. Most holes that gave away a machine began with a user namespace of
 * the attacker's own (CVE-2021-3493, 2022-0185, 2023-0386, 2024-1086). Watches are bounded below what
 * a machine gives one user, as each holds an inode in memory. */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent/agent.h"

/* --- the second pair ---------------------------------------------------------------------------- */

/* Maps are written by a process of the parent namespace, which the blank leaves with unshare. So a
 * helper that shares its memory stays behind for the moment that takes. The two wait for each other
 * for less time than a sleep and a wake-up cost, so they look a few times before they sleep. */
struct helper {
    _Atomic uint32_t unshared, done;
    int rc;
    struct err error;
    char stack[16 * 1024] __attribute__((aligned(16)));
};

/* About 100 us. */
#define LOOKS_MAX 4000

static void flag_set(_Atomic uint32_t *flag)
{
    atomic_store(flag, 1);
    (void)syscall(SYS_futex, flag, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void look_again(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("" ::: "memory");
#endif
}

static void flag_wait(_Atomic uint32_t *flag)
{
    for (int i = 0; i < LOOKS_MAX; i++) {
        if (atomic_load(flag) != 0)
            return;
        look_again();
    }
    while (atomic_load(flag) == 0)
        (void)syscall(SYS_futex, flag, FUTEX_WAIT, 0, NULL, NULL, 0);
}

static int map_write(const char *path, struct err *e)
{
    static const char all[] = "0 0 65536";
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, all, sizeof all - 1) != (ssize_t)(sizeof all - 1))
        return err_sys(e, ERR_IO, errno, "write %s", path);
    return 0;
}

static int maps_write(struct err *e)
{
    int rc = map_write("/proc/1/uid_map", e);
    return rc == 0 ? map_write("/proc/1/gid_map", e) : rc;
}

static int helper_run(void *argument)
{
    struct helper *h = argument;
    flag_wait(&h->unshared);
    h->rc = maps_write(&h->error);
    flag_set(&h->done);
    return 0;
}

/* The second pair of namespaces: mounts copied from one of a more privileged user namespace cannot
 * be taken apart, nor made writable again, with whatever capability in this one. */
int lock_mounts(struct err *e)
{
    static struct helper helper;
    /* A process that changed its ids belongs to nobody in /proc, until it says otherwise. Nobody
     * else is inside yet, and the agent is undumpable again. */
    if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
        return err_sys(e, ERR_IO, errno, "become dumpable");
    /* The helper is not waited for. */
    (void)signal(SIGCHLD, SIG_IGN);
    pid_t pid = clone(helper_run, helper.stack + sizeof helper.stack, CLONE_VM | SIGCHLD, &helper);
    if (pid < 0)
        return err_sys(e, ERR_IO, errno, "clone helper");
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
        return err_sys(e, ERR_IO, errno, "lock mounts");
    flag_set(&helper.unshared);
    flag_wait(&helper.done);
    return helper.rc == 0 ? 0 : err_set(e, ERR_IO, "second maps: %s", helper.error.msg);
}

/* --- what is counted per user -------------------------------------------------------------------- */

/* 128 instances are the kernel's own default for a user; 64 Ki watches are what editors and bundlers
 * ask for at most, at about 1 KiB each. */
static const char *const user_limits[][2] = {
    {"max_user_namespaces", "0"},     {"max_mnt_namespaces", "0"},
    {"max_pid_namespaces", "0"},      {"max_net_namespaces", "0"},
    {"max_ipc_namespaces", "0"},      {"max_uts_namespaces", "0"},
    {"max_cgroup_namespaces", "0"},   {"max_time_namespaces", "0"},
    {"max_fanotify_groups", "0"},     {"max_fanotify_marks", "0"},
    {"max_inotify_instances", "128"}, {"max_inotify_watches", "65536"},
};

int lock_user_limits(int proc_sys, struct err *e)
{
    for (size_t i = 0; i < ARRAY_SIZE(user_limits); i++) {
        char path[64];
        text_format(path, sizeof path, "user/%s", user_limits[i][0]);
        CLEANUP_FD int fd = openat(proc_sys, path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 && errno == ENOENT)
            continue;
        size_t length = strlen(user_limits[i][1]);
        if (fd < 0 || write(fd, user_limits[i][1], length) != (ssize_t)length)
            return err_sys(e, ERR_IO, errno, "lower user.%s", user_limits[i][0]);
    }
    return 0;
}
