#include "sandbox/runner/blank.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/shared/wire.h"

/* Descriptors of the blank, in order; the agent gets the first two. */
enum { BLANK_FD_LISTENER = 3, BLANK_FD_CHANNEL, BLANK_FD_AGENT, BLANK_FD_ENTRIES };

#define DESCRIPTORS_MAX (BIND_MOUNTS_MAX + 1)

/* --- the channel --------------------------------------------------------- */

static int tell(int channel, const void *data, size_t size, const int *descriptors, size_t count,
                struct err *e)
{
    struct err cause;
    if (wire_send_packed(channel, data, size, descriptors, count, &cause) < 0)
        return err_set(e, ERR_IO, "tell the blank: %s", cause.msg);
    return 0;
}

bool blank_failure(const void *data, size_t length, struct err *out)
{
    struct bind_failure failure;
    if (length != sizeof failure)
        return false;
    memcpy(&failure, data, sizeof failure);
    if (failure.word != BIND_FAILED)
        return false;
    failure.error.msg[sizeof failure.error.msg - 1] = '\0';
    *out = failure.error;
    return true;
}

/* --- what is told about it -------------------------------------------------------------------- */

/* When memory runs out on the host, code that we run goes before the host's own services. The agent may go too: it is
 * small, and with it ends what has too little memory anyway. */
#define OOM_SCORE "500"

static int proc_write(pid_t pid, const char *file, const char *text, struct err *e)
{
    char path[64];
    text_format(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    size_t length = strlen(text);
    if (fd < 0 || write(fd, text, length) != (ssize_t)length)
        return err_sys(e, ERR_IO, errno, "write %s", path);
    return 0;
}

static int maps_write(pid_t pid, struct id_range ids, struct err *e)
{
    char map[64];
    text_format(map, sizeof map, "0 %u %u", ids.first, ids.count);
    int rc = proc_write(pid, "uid_map", map, e);
    return rc == 0 ? proc_write(pid, "gid_map", map, e) : rc;
}

/* --- the blank ---------------------------------------------------------------------------------- */

static void blank_fail(int channel, const struct err *error) __attribute__((noreturn));
static void blank_fail(int channel, const struct err *error)
{
    const struct bind_failure failure = {.word = BIND_FAILED, .error = *error};
    (void)!send(channel, &failure, sizeof failure, MSG_NOSIGNAL);
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

/* What is told first is told when the maps are written. */
static int maps_wait(struct err *e)
{
    struct pollfd wait = {.fd = BLANK_FD_CHANNEL, .events = POLLIN};
    if (poll(&wait, 1, -1) != 1)
        return err_sys(e, ERR_IO, errno, "wait for the runner");
    if ((wait.revents & POLLIN) == 0)
        _exit(0); /* the runner is gone */
    return 0;
}

/* With one id there is no right to leave a group; nothing that is in sight belongs to any. */
static int become_inside_root(bool one_id, struct err *e)
{
    if ((!one_id && setgroups(0, NULL) < 0) || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
        return err_sys(e, ERR_IO, errno, "become root inside");
    return 0;
}

static int become_agent(struct err *e)
{
    char name[] = BIND_BLANK_NAME;
    char *argv[] = {name, NULL}, *envp[] = {NULL};
    for (int fd = BLANK_FD_LISTENER; fd <= BLANK_FD_CHANNEL; fd++)
        if (fcntl(fd, F_SETFD, 0) < 0)
            return err_sys(e, ERR_IO, errno, "hand over descriptors");
    syscall(SYS_execveat, BLANK_FD_AGENT, "", argv, envp, AT_EMPTY_PATH);
    return err_sys(e, ERR_IO, errno, "execute the agent");
}

static void blank_run(const int *descriptors, size_t count, const struct blank_options *o)
    __attribute__((noreturn));
static void blank_run(const int *descriptors, size_t count, const struct blank_options *o)
{
    struct err e;
    int channel = descriptors[BLANK_FD_CHANNEL - BLANK_FD_LISTENER];
    if (descriptors_arrange(descriptors, count, o->null_fd, &e) < 0)
        blank_fail(channel, &e);
    int rc = cgroup_enter(count - (BLANK_FD_ENTRIES - BLANK_FD_LISTENER), &e);
    if (rc == 0)
        rc = maps_wait(&e);
    if (rc == 0)
        rc = become_inside_root(o->ids.count == 1, &e);
    if (rc == 0 && become_agent(&e) == 0)
        err_set(&e, ERR_INTERNAL, "the agent was not executed");
    blank_fail(BLANK_FD_CHANNEL, &e);
}

/* --- the runner --------------------------------------------------------------------------------- */

/* Clones with the effective ids of the instance's range. The file system id stays root's, for
 * CLONE_INTO_CGROUP asks whether we may write to the group. */
static pid_t clone_as(uint32_t uid, int cgroup_fd, pid_t *sibling, int *pidfd)
{
    struct clone_args args = {
        .flags =
            CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD,
        .pidfd = (uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
    };
    if (sibling != NULL) {
        args.flags |= CLONE_PARENT | CLONE_PARENT_SETTID;
        args.exit_signal = 0; /* as ours */
        args.parent_tid = (uintptr_t)sibling;
    }
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
        out->pid = clone_as(o->ids.first, cgroup_fd, o->sibling, &out->pidfd);
        if (out->pid == 0)
            blank_run(descriptors, fixed + entries, o);
        if (out->pid < 0)
            rc = err_sys(e, ERR_IO, errno, "clone");
        network_leave(o->network);
    }
    for (size_t i = 0; i < entries; i++)
        memory_close(&descriptors[fixed + i]);
    return rc;
}

/* So that it can make its root before anybody asks. */
static int skeleton_tell(struct blank *blank, const struct blank_options *o, struct err *e)
{
    struct bind_skeleton skeleton;
    int descriptors[DESCRIPTORS_MAX];
    int rc = root_skeleton_make(o->root_base, o->ids.first, &skeleton, descriptors, e);
    if (rc < 0)
        return rc;
    rc = tell(blank->channel, &skeleton, sizeof skeleton, descriptors, 1 + skeleton.mount_count, e);
    while (skeleton.mount_count > 0)
        memory_close(&descriptors[skeleton.mount_count--]);
    blank->store = descriptors[0];
    return rc;
}

int blank_make(struct blank *out, const struct blank_options *o, struct err *e)
{
    *out = (struct blank){.pidfd = -1, .channel = -1, .store = -1};
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return err_sys(e, ERR_IO, errno, "make channel");
    out->channel = pair[0];
    CLEANUP_FD int theirs = pair[1];
    int rc = start(out, o, theirs, e);
    if (rc < 0) {
        memory_close(&out->channel);
        return rc;
    }
    rc = proc_write(out->pid, "oom_score_adj", OOM_SCORE, e);
    if (rc == 0)
        rc = maps_write(out->pid, o->ids, e);
    if (rc == 0)
        rc = skeleton_tell(out, o, e);
    if (rc < 0) {
        (void)kill(out->pid, SIGKILL);
        if (o->sibling == NULL)
            (void)waitpid(out->pid, NULL, 0);
        blank_close(out);
    }
    return rc;
}

void blank_close(struct blank *blank)
{
    memory_close(&blank->pidfd);
    memory_close(&blank->channel);
    memory_close(&blank->store);
}

int blank_bind(struct blank *blank, const struct bind_plan *plan, const int *descriptors,
               size_t count, struct err *e)
{
    int rc = tell(blank->channel, plan, sizeof *plan, descriptors, count, e);
    struct bind_failure last;
    ssize_t n = rc < 0 ? recv(blank->channel, &last, sizeof last, MSG_DONTWAIT) : -1;
    /* It ended before it was told all, and said why. */
    if (n > 0 && blank_failure(&last, (size_t)n, e))
        return -(int)e->code;
    return rc;
}
