/* The forwarder's process: `skerry runner` with NET_NAMES_ARGUMENT. It gives away all that it does not
 * need before it reads the first message. */
#include <fcntl.h>
#include <grp.h>
#include <seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/config.h"
#include "sandbox/runner/net_names.h"
#include "sandbox/runner/net_names_internal.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1 /* shadow memory and reports need more than the limits below allow */
#else
#define SANITIZED 0
#endif

#define NOBODY 65534u
#define MEMORY_BYTES_MAX (256ull * 1024 * 1024)
/* Two sockets an instance, one a question and one a connection. */
#define DESCRIPTORS_MAX (2 * RUNNER_INSTANCES_MAX + NAMES_ASKED_MAX + NAMES_CLIENTS_MAX + 64)
#define TIMERS_MAX (RUNNER_INSTANCES_MAX + NAMES_ASKED_MAX + NAMES_CLIENTS_MAX)
#define MESSAGES_PER_ROUND 16

/* No file can be opened and no program started. */
static const int allowed_calls[] = {
    SCMP_SYS(accept4), SCMP_SYS(brk),        SCMP_SYS(clock_gettime),   SCMP_SYS(close),
    SCMP_SYS(connect), SCMP_SYS(epoll_ctl),  SCMP_SYS(epoll_wait),      SCMP_SYS(epoll_pwait),
    SCMP_SYS(exit),    SCMP_SYS(exit_group), SCMP_SYS(getrandom),       SCMP_SYS(madvise),
    SCMP_SYS(mmap),    SCMP_SYS(mprotect),   SCMP_SYS(mremap),          SCMP_SYS(munmap),
    SCMP_SYS(read),    SCMP_SYS(recvfrom),   SCMP_SYS(recvmsg),         SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sendmsg), SCMP_SYS(sendto),     SCMP_SYS(timerfd_settime),
};

static struct scmp_arg_cmp argument_is(unsigned number, int value)
{
    return (struct scmp_arg_cmp){.arg = number, .op = SCMP_CMP_EQ, .datum_a = (scmp_datum_t)value};
}

static bool sockets_allow(scmp_filter_ctx filter)
{
    static const int families[] = {AF_INET, AF_INET6}, types[] = {SOCK_STREAM, SOCK_DGRAM};
    bool good = true;
    for (size_t f = 0; f < ARRAY_SIZE(families); f++)
        for (size_t t = 0; t < ARRAY_SIZE(types); t++)
            good = good && seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 3,
                                            argument_is(0, families[f]),
                                            argument_is(1, types[t] | SOCK_NONBLOCK | SOCK_CLOEXEC),
                                            argument_is(2, 0)) == 0;
    return good;
}

static bool filter_calls(void)
{
    if (SANITIZED)
        return true;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (filter == NULL)
        return false;
    bool good = sockets_allow(filter);
    for (size_t i = 0; i < ARRAY_SIZE(allowed_calls); i++)
        good = good && seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed_calls[i], 0) == 0;
    good = good && seccomp_load(filter) == 0;
    seccomp_release(filter);
    return good;
}

static bool limit(__rlimit_resource_t what, uint64_t value)
{
    struct rlimit both = {.rlim_cur = (rlim_t)value, .rlim_max = (rlim_t)value};
    return setrlimit(what, &both) == 0;
}

/* The runner's own input and output are none of its business. */
static bool descriptors_drop(void)
{
    CLEANUP_FD int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    return null >= 0 && dup2(null, STDIN_FILENO) >= 0 && dup2(null, STDOUT_FILENO) >= 0 &&
           (SANITIZED || dup2(null, STDERR_FILENO) >= 0);
}

static bool privileges_drop(void)
{
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0)
            return false;
    /* PDEATHSIG is cleared by a change of ids, so it comes after them. */
    return limit(RLIMIT_CORE, 0) && limit(RLIMIT_FSIZE, 0) && limit(RLIMIT_NPROC, 0) &&
           limit(RLIMIT_NOFILE, DESCRIPTORS_MAX) &&
           (SANITIZED || limit(RLIMIT_AS, MEMORY_BYTES_MAX)) && setgroups(0, NULL) == 0 &&
           setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0 &&
           prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0 &&
           prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

static void message_take(struct forwarder *f, const struct names_message *m, int descriptors[2])
{
    struct served *s;
    switch (m->kind) {
    case NAMES_RESOLVERS:
        memcpy(f->resolvers, m->resolvers, m->count * sizeof m->resolvers[0]);
        f->resolver_count = m->count;
        break;
    case NAMES_ADD:
        if (descriptors[0] >= 0 && descriptors[1] >= 0)
            names_served_add(f, m, steal_fd(&descriptors[0]), steal_fd(&descriptors[1]));
        break;
    case NAMES_REMOVE:
        HASH_FIND(hh, f->served, &m->number, sizeof m->number, s);
        if (s != NULL)
            names_served_free(s);
        break;
    case NAMES_CONFIRM:
        names_confirmed(f, m->seq, m->done);
        break;
    case NAMES_ALLOW:
        break;
    }
    memory_close(&descriptors[0]);
    memory_close(&descriptors[1]);
}

static void channel_cb(struct loop_watch *watch, uint32_t events)
{
    struct forwarder *f = container_of(watch, struct forwarder, channel);
    struct names_message m;
    int descriptors[2];
    (void)events;
    for (int i = 0; i < MESSAGES_PER_ROUND; i++) {
        int got = names_message_receive(watch->fd, &m, descriptors);
        if (got > 0)
            message_take(f, &m, descriptors);
        if (got < 0)
            loop_stop(f->loop);
        if (got <= 0)
            return;
    }
}

int net_names_main(void)
{
    struct forwarder f = {.channel = LOOP_WATCH_STOPPED};
    struct err e;
    if (loop_open(&f.loop, TIMERS_MAX, &e) < 0 || !descriptors_drop() || !privileges_drop() ||
        !filter_calls() ||
        loop_watch_start(f.loop, &f.channel, NAMES_CONTROL_FD, EPOLLIN, channel_cb, &e) < 0)
        return 1;
    int rc = loop_run(f.loop, &e);
    while (f.served != NULL)
        names_served_free(f.served);
    loop_close(f.loop);
    return rc == 0 ? 0 : 1;
}
