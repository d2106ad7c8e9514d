/* What keeps everything inside as it was made: a second user namespace, and what the kernel counts per user,
 * lowered.
 *
 * The mounts, and all other namespaces, belong to the first user namespace, in which nobody is left. So no
 * capability that is got hold of in the second one is good for them: nothing is mounted, taken apart or made
 * writable again (mount_namespaces(7), user_namespaces(7)). It is made ahead, and entered when all mounts are
 * there.
 *
 * Namespaces cannot be made by a filtered program anyhow; here the kernel itself says no, to a process
 * that got around the filter too. Most holes that gave away a machine began with a user namespace of
 * the attacker's own (CVE-2021-3493, 2022-0185, 2023-0386, 2024-1086). Watches are bounded below what
 * a machine gives one user, as each holds an inode in memory. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent/agent.h"

/* --- what is counted per user -------------------------------------------------------------------- */

/* 128 instances are the kernel's own default for a user; 64 Ki watches are what editors and bundlers
 * ask for at most, at about 1 KiB each. Where all instances are one user to the kernel, an eighth, so
 * that a greedy one leaves its neighbours some. */
static const struct {
    const char *name, *own, *shared;
} user_limits[] = {
    {"max_user_namespaces", "0", "0"},      {"max_mnt_namespaces", "0", "0"},
    {"max_pid_namespaces", "0", "0"},       {"max_net_namespaces", "0", "0"},
    {"max_ipc_namespaces", "0", "0"},       {"max_uts_namespaces", "0", "0"},
    {"max_cgroup_namespaces", "0", "0"},    {"max_time_namespaces", "0", "0"},
    {"max_fanotify_groups", "0", "0"},      {"max_fanotify_marks", "0", "0"},
    {"max_inotify_instances", "128", "16"}, {"max_inotify_watches", "65536", "8192"},
};

/* Whose limits they are is decided when a file is looked up: the caller's user namespace's. One that this
 * kernel does not have is left out. */
static int limits_lower(int proc_sys, bool shared_ids, struct err *e)
{
    for (size_t i = 0; i < ARRAY_SIZE(user_limits); i++) {
        const char *value = shared_ids ? user_limits[i].shared : user_limits[i].own;
        char path[64];
        text_format(path, sizeof path, "user/%s", user_limits[i].name);
        CLEANUP_FD int fd = openat(proc_sys, path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 && errno == ENOENT)
            continue;
        size_t length = strlen(value);
        if (fd < 0 || write(fd, value, length) != (ssize_t)length)
            return err_sys(e, ERR_IO, errno, "lower user.%s", user_limits[i].name);
    }
    return 0;
}

/* --- the namespace ------------------------------------------------------------------------------- */

/* It is made by a helper that is born in it: its maps are written from outside, its limits from within. The
 * helper shares our memory, and waits until its maps are there. */
struct helper {
    int proc_sys;
    int mapped; /* to be read from */
    bool shared_ids;
    int rc;
    struct err error;
    char stack[16 * 1024] __attribute__((aligned(16)));
};

static int helper_run(void *argument)
{
    struct helper *h = argument;
    char byte;
    if (read(h->mapped, &byte, 1) == 1)
        h->rc = limits_lower(h->proc_sys, h->shared_ids, &h->error);
    return 0;
}

/* Root outside is `first` inside. */
static int map_write(pid_t pid, const char *name, uint32_t first, uint32_t count, struct err *e)
{
    char path[48], map[32];
    text_format(map, sizeof map, "%u 0 %u", first, count);
    size_t length = strlen(map);
    text_format(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, map, length) != (ssize_t)length)
        return err_sys(e, ERR_IO, errno, "write %s", path);
    return 0;
}

static int maps_write(pid_t pid, const struct bind_plan *only, struct err *e)
{
    uint32_t count = only != NULL ? 1 : AGENT_UID + 1;
    int rc = map_write(pid, "uid_map", only != NULL ? only->uid : 0, count, e);
    return rc == 0 ? map_write(pid, "gid_map", only != NULL ? only->gid : 0, count, e) : rc;
}

int lock_prepare(int proc_sys, bool shared_ids, const struct bind_plan *only, int *user,
                 struct err *e)
{
    static struct helper helper;
    int mapped[2];
    char path[48];
    /* A process that changed its ids belongs to nobody in /proc, until it says otherwise. Nobody
     * else is inside yet, and the agent is undumpable again. */
    if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0 || pipe2(mapped, O_CLOEXEC) < 0)
        return err_sys(e, ERR_IO, errno, "prepare the second user namespace");
    CLEANUP_FD int read_end = mapped[0];
    CLEANUP_FD int write_end = mapped[1];
    helper.proc_sys = proc_sys;
    helper.mapped = read_end;
    helper.shared_ids = shared_ids;
    pid_t pid = clone(helper_run, helper.stack + sizeof helper.stack,
                      CLONE_VM | CLONE_NEWUSER | SIGCHLD, &helper);
    if (pid < 0)
        return err_sys(e, ERR_IO, errno, "make the second user namespace");
    text_format(path, sizeof path, "/proc/%d/ns/user", (int)pid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    int rc = fd < 0 ? err_sys(e, ERR_IO, errno, "open %s", path) : maps_write(pid, only, e);
    if (rc == 0 && (write(write_end, "m", 1) != 1 || waitpid(pid, NULL, 0) != pid))
        rc = err_sys(e, ERR_IO, errno, "wait for the second user namespace");
    if (rc < 0)
        return rc; /* the helper ends with us, the first process of its namespace */
    if (helper.rc < 0)
        return err_set(e, ERR_IO, "in the second user namespace: %s", helper.error.msg);
    *user = steal_fd(&fd);
    return 0;
}

int lock_enter(int user, struct err *e)
{
    if (setns(user, CLONE_NEWUSER) < 0)
        return err_sys(e, ERR_IO, errno, "enter the second user namespace");
    return 0;
}
