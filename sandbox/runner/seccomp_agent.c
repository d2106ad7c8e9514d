#include "sandbox/runner/seccomp_agent.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "base/memory.h"

#define AGENT_PID 1u
#define IOPRIO_WHO_USER 3u /* linux/ioprio.h; all processes of a user, the agent too */

/* Refused when the argument has this value. The kernel looks at the lower half of each only. */
static const struct {
    uint32_t call, argument, value;
} refused[] = {
    {SYS_kill, 0, AGENT_PID},
    {SYS_tkill, 0, AGENT_PID},
    {SYS_tgkill, 0, AGENT_PID},
    {SYS_rt_sigqueueinfo, 0, AGENT_PID},
    {SYS_rt_tgsigqueueinfo, 0, AGENT_PID},
    {SYS_pidfd_open, 0, AGENT_PID},
    {SYS_prlimit64, 0, AGENT_PID},
    {SYS_sched_setaffinity, 0, AGENT_PID},
    {SYS_sched_setattr, 0, AGENT_PID},
    {SYS_sched_setparam, 0, AGENT_PID},
    {SYS_sched_setscheduler, 0, AGENT_PID},
    {SYS_setpriority, 1, AGENT_PID},
    {SYS_setpriority, 0, PRIO_USER},
    {SYS_ioprio_set, 1, AGENT_PID},
    {SYS_ioprio_set, 0, IOPRIO_WHO_USER},
};

/* Of a refusal: is it this call, does its argument have the value, if so the answer, and the number of
 * the call again for the next one. */
enum { HEAD = 3, EACH = 5 };
#define GUARD_SIZE (HEAD + EACH * ARRAY_SIZE(refused))

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the lower half of an argument is taken to come first"
#endif

static void guard_fill(struct sock_filter *out)
{
    const uint32_t number = offsetof(struct seccomp_data, nr);
    /* Another machine's calls have numbers of their own; what is behind us kills them. */
    *out++ =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    *out++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, seccomp_arch_native(), 0,
                                          GUARD_SIZE - 2);
    *out++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, number);
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        uint32_t argument = (uint32_t)offsetof(struct seccomp_data, args) +
                            refused[i].argument * (uint32_t)sizeof(uint64_t);
        *out++ =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused[i].call, 0, EACH - 1);
        *out++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument);
        *out++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused[i].value, 0, 1);
        *out++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
        *out++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, number);
    }
}

int seccomp_agent_guard(struct seccomp_filter *filter, struct err *e)
{
    struct sock_filter guard[GUARD_SIZE];
    size_t size = sizeof guard + filter->size;
    guard_fill(guard);
    if (size / sizeof *guard > BPF_MAXINSNS)
        return err_set(e, ERR_LIMIT, "a seccomp filter of %zu instructions", size / sizeof *guard);
    uint8_t *program = malloc(size);
    if (program == NULL)
        return err_set(e, ERR_NO_MEMORY, "seccomp filter");
    memcpy(program, guard, sizeof guard);
    memcpy(program + sizeof guard, filter->program, filter->size);
    free(filter->program);
    *filter = (struct seccomp_filter){.program = program, .size = size};
    return 0;
}
