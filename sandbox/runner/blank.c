#include "sandbox/runner/blank.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/config.h"
#include "sandbox/runner/user_limits.h"

/* Descriptors of the blank, in order; the agent gets the first two. */
enum { BLANK_FD_LISTENER = 3, BLANK_FD_CHANNEL, BLANK_FD_AGENT, BLANK_FD_ENTRIES };

union control {
    char bytes[CMSG_SPACE(sizeof(int) * BIND_MOUNTS_MAX)];
    struct cmsghdr align;
};

/* --- the channel --------------------------------------------------------- */

static int struct_send(int channel, const void *data, size_t size, const int *descriptors,
                       size_t count, struct err *e)
{
    union control control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        memset(&control, 0, sizeof control);
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * count);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int) * count);
        memcpy(CMSG_DATA(rights), descriptors, sizeof(int) * count);
    }
    if (sendmsg(channel, &header, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)size)
        return err_sys(e, ERR_IO, errno, "tell the blank");
    return 0;
}

bool blank_failure(const void *data, size_t length, struct err *out)
{
    struct blank_message message;
    if (length != sizeof message)
        return false;
    memcpy(&message, data, sizeof message);
    if (message.word != BLANK_FAILED)
        return false;
    message.error.msg[sizeof message.error.msg - 1] = '\0';
    *out = message.error;
    return true;
}

/* --- both sides: maps ------------------------------------------------------------------------- */

static int map_write(pid_t pid, const char *file, const char *map, struct err *e)
{
    char path[64];
    text_format(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    size_t length = strlen(map);
    if (fd < 0 || write(fd, map, length) != (ssize_t)length)
        return err_sys(e, ERR_IO, errno, "write %s", path);
    return 0;
}

static int maps_write(pid_t pid, uint32_t outside, struct err *e)
{
    char map[64];
    text_format(map, sizeof map, "0 %u %u", outside, RUNNER_UIDS_PER_INSTANCE);
    int rc = map_write(pid, "uid_map", map, e);
    return rc == 0 ? map_write(pid, "gid_map", map, e) : rc;
}

/* --- the blank ---------------------------------------------------------------------------------- */

static void blank_fail(int channel, const struct err *error) __attribute__((noreturn));
static void blank_fail(int channel, const struct err *error)
{
    const struct blank_message message = {.word = BLANK_FAILED, .error = *error};
    (void)!send(channel, &message, sizeof message, MSG_NOSIGNAL);
    _exit(1);
}

/* Puts `count` descriptors at 3, 4, ... and closes all others. They may stand in each other's
 * places, so they first go out of the way. */
static int descriptors_arrange(const int *from, size_t count, int null_fd, struct err *e)
{
    int away[BLANK_FD_ENTRIES + CGROUP_TREES_MAX];
    for (size_t i = 0; i < count; i++) {
        away[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 64);
        if (away[i] < 0)
            return err_sys(e, ERR_IO, errno, "arrange descriptors");
    }
    for (int i = 0; i < 3; i++)
        if (dup2(null_fd, i) < 0)
            return err_sys(e, ERR_IO, errno, "arrange descriptors");
    for (size_t i = 0; i < count; i++)
        if (dup3(away[i], BLANK_FD_LISTENER + (int)i, O_CLOEXEC) < 0)
            return err_sys(e, ERR_IO, errno, "arrange descriptors");
    if (close_range(BLANK_FD_LISTENER + (unsigned)count, ~0u, 0) < 0)
        return err_sys(e, ERR_IO, errno, "close descriptors");
    return 0;
}

static int cgroup_enter(size_t entry_count, struct err *e)
{
    for (size_t i = 0; i < entry_count; i++) {
        int fd = BLANK_FD_ENTRIES + (int)i;
        if (write(fd, "0", 1) != 1)
            return err_sys(e, ERR_IO, errno, "enter control group");
        memory_close(&fd);
    }
    /* So that the group of the instance is the root of what it sees. */
    if (unshare(CLONE_NEWCGROUP) < 0)
        return err_sys(e, ERR_IO, errno, "make cgroup namespace");
    return 0;
}

/* Waits for one datagram of exactly `size` bytes; returns how many descriptors came, at most
 * BIND_MOUNTS_MAX. */
static int struct_receive(void *out, size_t size, int *descriptors, struct err *e)
{
    union control control;
    struct iovec part = {.iov_base = out, .iov_len = size};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof control.bytes};
    ssize_t n = recvmsg(BLANK_FD_CHANNEL, &header, MSG_CMSG_CLOEXEC);
    if (n == 0)
        _exit(0); /* the runner is gone, or has no use for us */
    struct cmsghdr *rights = n < 0 ? NULL : CMSG_FIRSTHDR(&header);
    if (n != (ssize_t)size || rights == NULL || (header.msg_flags & MSG_CTRUNC) != 0)
        return err_sys(e, ERR_IO, errno, "hear the runner");
    size_t count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(descriptors, CMSG_DATA(rights), sizeof(int) * count);
    return (int)count;
}

static int become_inside_root(struct err *e)
{
    if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
        return err_sys(e, ERR_IO, errno, "become root inside");
    return 0;
}

/* --- the lock ----------------------------------------------------------------------------------- */

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

static int helper_run(void *argument)
{
    struct helper *h = argument;
    flag_wait(&h->unshared);
    h->rc = maps_write(1, 0, &h->error);
    flag_set(&h->done);
    return 0;
}

/* The second pair of namespaces: mounts copied from one of a more privileged user namespace cannot
 * be taken apart, nor made writable again, with whatever capability in this one. */
static int lock_mounts(struct err *e)
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

static int become_agent(struct err *e)
{
    char name[] = "skerry-agent";
    char *argv[] = {name, NULL}, *envp[] = {NULL};
    for (int fd = BLANK_FD_LISTENER; fd <= BLANK_FD_CHANNEL; fd++)
        if (fcntl(fd, F_SETFD, 0) < 0)
            return err_sys(e, ERR_IO, errno, "hand over descriptors");
    syscall(SYS_execveat, BLANK_FD_AGENT, "", argv, envp, AT_EMPTY_PATH);
    return err_sys(e, ERR_IO, errno, "execute the agent");
}

static void blank_run(const int *descriptors, size_t count, int null_fd) __attribute__((noreturn));
static int root_make(int *proc_sys, struct err *e)
{
    struct bind_plan plan;
    struct bind_mounts mounts;
    struct bind_root root;
    int descriptors[BIND_MOUNTS_MAX];
    int count = struct_receive(&plan, sizeof plan, descriptors, e);
    if (count < 0)
        return count;
    if (count != (plan.overlay ? 2 : 1))
        return err_set(e, ERR_PROTOCOL, "plan with %d descriptors", count);
    int rc = become_inside_root(e);
    if (rc == 0)
        rc = bind_root_begin(&root, &plan, descriptors, e);
    if (rc < 0)
        return rc;
    count = struct_receive(&mounts, sizeof mounts, descriptors, e);
    if (count < 0)
        return count;
    if (count != (int)mounts.mount_count)
        return err_set(e, ERR_PROTOCOL, "%u mounts with %d descriptors", mounts.mount_count, count);
    rc = bind_root_finish(&root, &plan, &mounts, descriptors, e);
    *proc_sys = rc == 0 ? root.proc_sys : -1;
    return rc;
}

static int listener_receive(struct err *e)
{
    uint32_t word;
    int descriptors[BIND_MOUNTS_MAX];
    int count = struct_receive(&word, sizeof word, descriptors, e);
    if (count < 0)
        return count;
    if (count != 1 || dup2(descriptors[0], BLANK_FD_LISTENER) < 0)
        return err_sys(e, ERR_IO, errno, "take the listener");
    memory_close(&descriptors[0]);
    return 0;
}

static void blank_run(const int *descriptors, size_t count, int null_fd)
{
    struct err e;
    int channel = descriptors[BLANK_FD_CHANNEL - BLANK_FD_LISTENER];
    /* For whoever looks at a listing of processes. */
    (void)prctl(PR_SET_NAME, "skerry-blank", 0, 0, 0);
    if (descriptors_arrange(descriptors, count, null_fd, &e) < 0)
        blank_fail(channel, &e);
    int proc_sys = -1;
    int rc = cgroup_enter(count - (BLANK_FD_ENTRIES - BLANK_FD_LISTENER), &e);
    if (rc == 0)
        rc = root_make(&proc_sys, &e);
    if (rc == 0)
        rc = lock_mounts(&e);
    if (rc == 0)
        rc = user_limits_set(proc_sys, &e);
    memory_close(&proc_sys);
    if (rc == 0)
        rc = listener_receive(&e);
    if (rc == 0 && become_agent(&e) == 0)
        err_set(&e, ERR_INTERNAL, "the agent was not executed");
    blank_fail(BLANK_FD_CHANNEL, &e);
}

/* --- the runner --------------------------------------------------------------------------------- */

/* Clones with the effective ids of the instance's range. The file system id stays root's, for
 * CLONE_INTO_CGROUP asks whether we may write to the group. */
static pid_t clone_as(uint32_t uid, int cgroup_fd, int *pidfd)
{
    struct clone_args args = {
        .flags =
            CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD,
        .pidfd = (uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
    };
    if (cgroup_fd >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (unsigned)cgroup_fd;
    }
    pid_t pid = -1;
    if (setegid(uid) == 0 && seteuid(uid) == 0) {
        if (cgroup_fd >= 0)
            (void)setfsuid(0);
        pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    }
    int sys = errno;
    if (pid != 0)
        assert_always(seteuid(0) == 0 && setegid(0) == 0);
    errno = sys;
    return pid;
}

static int start(struct blank *out, const struct blank_options *o, int channel, struct err *e)
{
    int descriptors[BLANK_FD_ENTRIES + CGROUP_TREES_MAX] = {o->null_fd, channel, o->agent_fd};
    size_t fixed = BLANK_FD_ENTRIES - BLANK_FD_LISTENER, entries = 0;
    int rc = cgroup_entries_open(o->cgroup, descriptors + fixed, &entries, e);
    if (rc < 0)
        return rc;
    CLEANUP_FD int cgroup_fd = cgroup_clone_fd(o->cgroup);
    rc = network_enter(o->network, o->network_fd, e);
    if (rc == 0) {
        out->pid = clone_as(o->uid_base, cgroup_fd, &out->pidfd);
        if (out->pid == 0)
            blank_run(descriptors, fixed + entries, o->null_fd);
        if (out->pid < 0)
            rc = err_sys(e, ERR_IO, errno, "clone");
        network_leave(o->network);
    }
    for (size_t i = 0; i < entries; i++)
        memory_close(&descriptors[fixed + i]);
    return rc;
}

int blank_make(struct blank *out, const struct blank_options *o, struct err *e)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return err_sys(e, ERR_IO, errno, "make channel");
    CLEANUP_FD int ours = pair[0];
    CLEANUP_FD int theirs = pair[1];
    int rc = start(out, o, theirs, e);
    if (rc < 0)
        return rc;
    rc = maps_write(out->pid, o->uid_base, e);
    if (rc < 0) {
        (void)kill(out->pid, SIGKILL);
        memory_close(&out->pidfd);
        return rc;
    }
    out->channel = steal_fd(&ours);
    return 0;
}

static int tell(const struct blank *blank, const void *data, size_t size, const int *descriptors,
                size_t count, struct err *e)
{
    int rc = struct_send(blank->channel, data, size, descriptors, count, e);
    struct blank_message last;
    ssize_t n = rc < 0 ? recv(blank->channel, &last, sizeof last, MSG_DONTWAIT) : -1;
    /* It ended before it was told all, and said why. */
    if (n > 0 && blank_failure(&last, (size_t)n, e))
        return -(int)e->code;
    return rc;
}

int blank_plan(const struct blank *blank, const struct bind_plan *plan, const int *descriptors,
               size_t descriptor_count, struct err *e)
{
    return tell(blank, plan, sizeof *plan, descriptors, descriptor_count, e);
}

int blank_mounts(const struct blank *blank, const struct bind_mounts *mounts,
                 const int *descriptors, struct err *e)
{
    return tell(blank, mounts, sizeof *mounts, descriptors, mounts->mount_count, e);
}

int blank_go(const struct blank *blank, int listener, struct err *e)
{
    const uint32_t word = 1;
    return tell(blank, &word, sizeof word, &listener, 1, e);
}
