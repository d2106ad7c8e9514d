/* The agent before it is one: process 1 of a sandbox that nobody asked for yet, as root inside with all
 * capabilities. It makes a skeleton of its root and waits; told what is wanted, it finishes the root
 * and locks it. Its channel is read one datagram at a time, so what waits behind is the agent's.
 *
 * Nothing else runs inside yet, so waiting without a loop is right here; the end of the runner is the
 * end of the blank. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent/agent.h"

#define DESCRIPTORS_MAX (BIND_MOUNTS_MAX + 1)

union control {
    char bytes[CMSG_SPACE(sizeof(int) * DESCRIPTORS_MAX)];
    struct cmsghdr align;
};

/* Waits for one datagram of exactly `size` bytes; returns how many descriptors came, at most
 * DESCRIPTORS_MAX. */
static int receive(void *out, size_t size, int *descriptors, struct err *e)
{
    union control control;
    struct iovec part = {.iov_base = out, .iov_len = size};
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = control.bytes,
                            .msg_controllen = sizeof control.bytes};
    ssize_t n = recvmsg(AGENT_CHANNEL_FD, &header, MSG_CMSG_CLOEXEC);
    if (n == 0)
        _exit(0); /* the runner is gone, or has no use for us */
    struct cmsghdr *rights = n < 0 ? NULL : CMSG_FIRSTHDR(&header);
    if (n != (ssize_t)size || rights == NULL || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
        return err_sys(e, ERR_IO, errno, "hear the runner");
    size_t count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(descriptors, CMSG_DATA(rights), sizeof(int) * count);
    return (int)count;
}

static void descriptors_close(int *descriptors, int count)
{
    for (int i = 0; i < count; i++)
        memory_close(&descriptors[i]);
}

static int skeleton(struct bind_skeleton *s, int *proc_sys, struct err *e)
{
    int descriptors[DESCRIPTORS_MAX];
    int count = receive(s, sizeof *s, descriptors, e);
    if (count < 0)
        return count;
    int rc = count == (int)s->mount_count + 1
                 ? bind_skeleton_make(s, descriptors, proc_sys, e)
                 : err_set(e, ERR_PROTOCOL, "%u mounts with %d descriptors", s->mount_count, count);
    descriptors_close(descriptors, count);
    return rc;
}

/* All that is forked from here on is in it. The namespace anew, so that it is the root of what is seen inside,
 * as the groups that the blank was made in are. */
static int group_enter(int entry, struct err *e)
{
    if (write(entry, "0", 1) != 1 || unshare(CLONE_NEWCGROUP) < 0)
        return err_sys(e, ERR_IO, errno, "enter a control group");
    return 0;
}

static int plan(struct bind_plan *p, struct err *e)
{
    int descriptors[DESCRIPTORS_MAX];
    int count = receive(p, sizeof *p, descriptors, e);
    if (count < 0)
        return count;
    int expected = 1 + (p->image ? 3 : 0) + (p->source ? 1 : 0) + (p->group ? 1 : 0);
    int rc = count == expected ? bind_plan_do(p, descriptors, e)
                               : err_set(e, ERR_PROTOCOL, "a plan with %d descriptors", count);
    if (rc == 0 && p->group)
        rc = group_enter(descriptors[count - 1], e);
    if (rc == 0 && dup2(descriptors[0], AGENT_LISTENER_FD) < 0)
        rc = err_sys(e, ERR_IO, errno, "take the listener");
    descriptors_close(descriptors, count);
    return rc;
}

static int become(struct bind_skeleton *s, struct err *e)
{
    struct bind_plan p;
    CLEANUP_FD int proc_sys = -1;
    CLEANUP_FD int user = -1;
    int rc = skeleton(s, &proc_sys, e);
    if (rc == 0 && !s->one_id)
        rc = lock_prepare(proc_sys, s->shared_ids, NULL, &user, e);
    if (rc == 0)
        rc = plan(&p, e);
    /* Whose id it is was not known before. */
    if (rc == 0 && s->one_id)
        rc = lock_prepare(proc_sys, s->shared_ids, &p, &user, e);
    return rc == 0 ? lock_enter(user, e) : rc;
}

bool blank_become(void)
{
    struct bind_skeleton s;
    struct bind_failure failure = {.word = BIND_FAILED};
    /* For whoever looks at a listing of processes. */
    (void)prctl(PR_SET_NAME, BIND_BLANK_NAME, 0, 0, 0);
    if (become(&s, &failure.error) != 0) {
        (void)!send(AGENT_CHANNEL_FD, &failure, sizeof failure, MSG_NOSIGNAL);
        _exit(1);
    }
    (void)prctl(PR_SET_NAME, "skerry-agent", 0, 0, 0);
    return s.one_id;
}
