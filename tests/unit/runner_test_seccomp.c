/* Filters of every profile and machine, run on a small BPF machine: so the one for arm64 is tested here
 * too, and calls that would end the test can be asked about. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/memory.h"
#include "sandbox/runner/seccomp.h"
#include "sandbox/runner/seccomp_calls.h"
#include "sandbox/shared/agent_check.h"

#define ALLOW SECCOMP_RET_ALLOW
#define FAIL(sys) (SECCOMP_RET_ERRNO | (unsigned)(sys))
#define KILL SECCOMP_RET_KILL_PROCESS
#define CORE_KEPT FAIL(0)
#define WIDE 0x100000000ull

static const struct machine {
    const char *name;
    uint32_t machine, audit;
} machines[] = {{"x86_64", SCMP_ARCH_X86_64, AUDIT_ARCH_X86_64},
                {"arm64", SCMP_ARCH_AARCH64, AUDIT_ARCH_AARCH64}};

struct filters {
    struct seccomp_filter of[ARRAY_SIZE(machines)][SECCOMP_PROFILE_COUNT];
};

static int setup(void **state)
{
    static struct filters filters;
    struct err e;
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (int p = 0; p < SECCOMP_PROFILE_COUNT; p++)
            if (seccomp_filter_compile(&filters.of[m][p], (enum seccomp_profile)p,
                                       machines[m].machine, &e) != 0)
                fail_msg("%s", e.msg);
    *state = &filters;
    return 0;
}

static int teardown(void **state)
{
    struct filters *filters = *state;
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (int p = 0; p < SECCOMP_PROFILE_COUNT; p++)
            seccomp_filter_free(&filters->of[m][p]);
    return 0;
}

/* What seccomp(2) lets a filter be made of, as far as ours are. */
static uint32_t run(const struct seccomp_filter *filter, const struct seccomp_data *data)
{
    const struct sock_filter *program = (const void *)filter->program;
    size_t count = filter->size / sizeof *program;
    uint32_t a = 0;
    for (size_t at = 0; at < count; at++) {
        const struct sock_filter *i = &program[at];
        bool met;
        switch (i->code) {
        case BPF_LD | BPF_W | BPF_ABS:
            assert_true(i->k + 4 <= sizeof *data);
            memcpy(&a, (const uint8_t *)data + i->k, 4);
            continue;
        case BPF_RET | BPF_K:
            return i->k;
        case BPF_JMP | BPF_JEQ | BPF_K:
            met = a == i->k;
            break;
        case BPF_JMP | BPF_JSET | BPF_K:
            met = (a & i->k) != 0;
            break;
        case BPF_JMP | BPF_JGE | BPF_K:
            met = a >= i->k;
            break;
        default:
            fail_msg("instruction %#x", i->code);
            return 0;
        }
        at += met ? i->jt : i->jf;
    }
    fail_msg("the filter has no end");
    return 0;
}

static uint32_t ask_number(const struct filters *f, size_t machine, int profile, int number,
                           const uint64_t arguments[3])
{
    struct seccomp_data data = {.nr = number, .arch = machines[machine].audit};
    for (int i = 0; arguments != NULL && i < 3; i++)
        data.args[i] = arguments[i];
    return run(&f->of[machine][profile], &data);
}

struct question {
    const char *call;
    uint64_t arguments[3];
    uint32_t answers[SECCOMP_PROFILE_COUNT]; /* strict, default, relaxed */
};

static const struct question questions[] = {
    {"read", {0}, {ALLOW, ALLOW, ALLOW}},
    {"execve", {0}, {ALLOW, ALLOW, ALLOW}},
    {"mount", {0}, {FAIL(EPERM), FAIL(EPERM), FAIL(EPERM)}},
    {"setns", {0}, {FAIL(EPERM), FAIL(EPERM), FAIL(EPERM)}},
    {"bpf", {0}, {FAIL(EPERM), FAIL(EPERM), FAIL(EPERM)}},
    {"unshare", {CLONE_NEWUSER}, {FAIL(EPERM), FAIL(EPERM), FAIL(EPERM)}},
    {"open_by_handle_at", {0}, {FAIL(EPERM), FAIL(EPERM), FAIL(EPERM)}},
    {"keyctl", {0}, {FAIL(EPERM), FAIL(EPERM), FAIL(EPERM)}},
    {"clone3", {0}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"clone", {17}, {ALLOW, ALLOW, ALLOW}},
    {"clone", {CLONE_NEWUSER | 17}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"clone", {CLONE_NEWNS | CLONE_VM}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"ptrace", {0}, {FAIL(EPERM), ALLOW, ALLOW}},
    {"process_vm_writev", {0}, {FAIL(EPERM), ALLOW, ALLOW}},
    {"splice", {0}, {FAIL(EPERM), ALLOW, ALLOW}},
    {"vmsplice", {0}, {FAIL(EPERM), ALLOW, ALLOW}},
    {"io_setup", {0}, {FAIL(EPERM), ALLOW, ALLOW}},
    {"setxattr", {0}, {FAIL(EPERM), ALLOW, ALLOW}},
    {"msgget", {0}, {FAIL(EPERM), ALLOW, ALLOW}},
    {"io_uring_setup", {0}, {FAIL(EPERM), FAIL(EPERM), ALLOW}},
    {"userfaultfd", {0}, {FAIL(EPERM), FAIL(EPERM), ALLOW}},
    {"personality", {0}, {FAIL(EPERM), ALLOW, ALLOW}},
    {"personality", {0x0040000}, {FAIL(EPERM), FAIL(ENOSYS), ALLOW}},
    {"personality", {0x0400000}, {FAIL(EPERM), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"ioctl", {0, 0x5413}, {ALLOW, ALLOW, ALLOW}},
    {"ioctl", {0, 0x5412}, {FAIL(EPERM), FAIL(EPERM), FAIL(EPERM)}},
    {"ioctl", {0, WIDE | 0x5412}, {FAIL(EPERM), FAIL(EPERM), FAIL(EPERM)}},
    {"ioctl", {0, ~0xffffffffull | 0x541c}, {FAIL(EPERM), FAIL(EPERM), FAIL(EPERM)}},
    {"socket", {AF_UNIX, SOCK_STREAM, 0}, {ALLOW, ALLOW, ALLOW}},
    {"socket", {AF_INET, SOCK_STREAM, 0}, {ALLOW, ALLOW, ALLOW}},
    {"socket", {AF_INET6, SOCK_DGRAM, IPPROTO_UDP}, {ALLOW, ALLOW, ALLOW}},
    {"socket", {AF_INET, SOCK_STREAM, 132}, {FAIL(ENOSYS), FAIL(ENOSYS), ALLOW}},
    {"socket", {AF_INET, SOCK_STREAM, WIDE | 132}, {FAIL(ENOSYS), FAIL(ENOSYS), ALLOW}},
    {"socket", {AF_NETLINK, SOCK_RAW, 0}, {FAIL(ENOSYS), ALLOW, ALLOW}},
    {"socket", {AF_NETLINK, SOCK_RAW, 12}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"socket", {AF_PACKET, SOCK_RAW, 0}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"socket", {40, SOCK_STREAM, 0}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"socket", {WIDE | 40, SOCK_STREAM, 0}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"prlimit64", {0, RLIMIT_NOFILE, 1}, {ALLOW, ALLOW, ALLOW}},
    {"prlimit64", {0, RLIMIT_CORE, 0}, {ALLOW, ALLOW, ALLOW}},
    {"prlimit64", {0, RLIMIT_CORE, 1}, {CORE_KEPT, CORE_KEPT, CORE_KEPT}},
    {"prlimit64", {0, RLIMIT_CORE, WIDE}, {CORE_KEPT, CORE_KEPT, CORE_KEPT}},
    {"prlimit64", {0, WIDE | RLIMIT_CORE, 1}, {CORE_KEPT, CORE_KEPT, CORE_KEPT}},
    {"prlimit64", {0, RLIM_NLIMITS, 1}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"prlimit64", {0, UINT32_MAX, 0}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"setrlimit", {RLIMIT_CORE}, {CORE_KEPT, CORE_KEPT, CORE_KEPT}},
    {"setrlimit", {WIDE | RLIMIT_CORE}, {CORE_KEPT, CORE_KEPT, CORE_KEPT}},
    {"setrlimit", {RLIM_NLIMITS}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"personality", {UINT32_MAX}, {FAIL(EPERM), ALLOW, ALLOW}},
    {"socketpair", {AF_UNIX}, {ALLOW, ALLOW, ALLOW}},
    {"socketpair", {AF_INET}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"socket", {AF_INET6, SOCK_STREAM, 262}, {FAIL(ENOSYS), FAIL(ENOSYS), ALLOW}},
    {"socket", {AF_ALG, SOCK_SEQPACKET, 0}, {FAIL(ENOSYS), FAIL(ENOSYS), FAIL(ENOSYS)}},
    {"setrlimit", {RLIMIT_NOFILE}, {ALLOW, ALLOW, ALLOW}},
};

static void calls_are_answered_as_the_profile_says(void **state)
{
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (size_t q = 0; q < ARRAY_SIZE(questions); q++)
            for (int p = 0; p < SECCOMP_PROFILE_COUNT; p++) {
                const struct question *ask = &questions[q];
                int number = seccomp_syscall_resolve_name_arch(machines[m].machine, ask->call);
                assert_true(number >= 0);
                uint32_t got = ask_number(*state, m, p, number, ask->arguments);
                if (got != ask->answers[p])
                    fail_msg("%s, %s: %s(%#llx, %#llx, %#llx) is answered %#x and not %#x",
                             machines[m].name, seccomp_profile_name((enum seccomp_profile)p),
                             ask->call, (unsigned long long)ask->arguments[0],
                             (unsigned long long)ask->arguments[1],
                             (unsigned long long)ask->arguments[2], got, ask->answers[p]);
            }
}

static bool listed(const char *const *names, const char *name)
{
    for (; *names != NULL; names++)
        if (strcmp(*names, name) == 0)
            return true;
    return false;
}

static uint32_t answer_of_tables(const char *name, int profile)
{
    bool allowed = profile == SECCOMP_RELAXED && listed(seccomp_relaxed_allowed, name);
    if (profile == SECCOMP_STRICT && listed(seccomp_strict_denied, name))
        return FAIL(EPERM);
    if (!allowed && listed(seccomp_denied, name))
        return FAIL(EPERM);
    for (size_t i = 0; seccomp_allowed[i] != NULL; i++)
        allowed = allowed || listed(seccomp_allowed[i], name);
    return allowed ? ALLOW : FAIL(ENOSYS);
}

/* The search finds each number, also between and at the ends of ranges. */
static void every_number_is_answered_as_its_name_s_table_says(void **state)
{
    static const char *const by_argument[] = {"clone",     "ioctl",  "personality", "prlimit64",
                                              "setrlimit", "socket", "socketpair",  NULL};
    size_t found = 0;
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (int number = 0; number < 1100; number++) {
            char *name = seccomp_syscall_resolve_num_arch(machines[m].machine, number);
            bool skipped = name != NULL && listed(by_argument, name);
            found += name != NULL;
            for (int p = 0; !skipped && p < SECCOMP_PROFILE_COUNT; p++) {
                uint32_t wanted = name != NULL ? answer_of_tables(name, p) : FAIL(ENOSYS);
                uint32_t got = ask_number(*state, m, p, number, NULL);
                if (got != wanted)
                    fail_msg("%s, %s: %d (%s) is answered %#x and not %#x", machines[m].name,
                             seccomp_profile_name((enum seccomp_profile)p), number,
                             name != NULL ? name : "no call", got, wanted);
            }
            free(name);
        }
    assert_in_range(found, 600, 1100);
}

/* The kernel translates it at each start: 640, as one rule after the other gave, cost
 * 0.15 ms. */
static void a_filter_is_short(void **state)
{
    const struct filters *f = *state;
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (int p = 0; p < SECCOMP_PROFILE_COUNT; p++) {
            size_t count = f->of[m][p].size / sizeof(struct sock_filter);
            print_message("%s, %s: %zu instructions\n", machines[m].name,
                          seccomp_profile_name((enum seccomp_profile)p), count);
            assert_in_range(count, 50, 200);
        }
}

/* A call that a debugger has taken away is none; all other numbers are the kernel's to refuse. */
static void a_call_that_was_taken_away_kills_nothing(void **state)
{
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (int p = 0; p < SECCOMP_PROFILE_COUNT; p++)
            assert_int_equal(ask_number(*state, m, p, -1, NULL), FAIL(ENOSYS));
}

/* Every number up to one that no kernel has: allowed in strict is allowed in default, and so on. */
static void a_stricter_profile_allows_no_more(void **state)
{
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (int number = 0; number < 1024; number++)
            for (int p = 1; p < SECCOMP_PROFILE_COUNT; p++)
                if (ask_number(*state, m, p - 1, number, NULL) == ALLOW)
                    assert_int_equal(ask_number(*state, m, p, number, NULL), ALLOW);
}

static void unknown_calls_do_not_exist(void **state)
{
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (int p = 0; p < SECCOMP_PROFILE_COUNT; p++)
            for (int number = 480; number < 2048; number++)
                assert_int_equal(ask_number(*state, m, p, number, NULL), FAIL(ENOSYS));
}

static void another_machine_s_calls_kill(void **state)
{
    const struct filters *f = *state;
    static const uint32_t foreign[] = {AUDIT_ARCH_I386, AUDIT_ARCH_ARM, AUDIT_ARCH_MIPS, 0};
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (int p = 0; p < SECCOMP_PROFILE_COUNT; p++) {
            for (size_t i = 0; i < ARRAY_SIZE(foreign); i++)
                assert_int_equal(run(&f->of[m][p], &(struct seccomp_data){.arch = foreign[i]}),
                                 KILL);
            assert_int_equal(
                run(&f->of[m][p], &(struct seccomp_data){.arch = machines[1 - m].audit}), KILL);
        }
}

/* x32: the same architecture to the kernel, other numbers. */
static void x32_calls_kill(void **state)
{
    for (int p = 0; p < SECCOMP_PROFILE_COUNT; p++)
        for (int number = 0; number < 600; number++)
            assert_int_equal(ask_number(*state, 0, p, 0x40000000 | number, NULL), KILL);
}

/* A name that is misspelt would be skipped in silence. */
static void every_name_is_a_call(void **state)
{
    (void)state;
    /* Of kernels that this libseccomp is older than. */
    static const char *const newer[] = {"cachestat",  "fchmodat2", "futex_requeue",   "futex_wait",
                                        "futex_wake", "mseal",     "map_shadow_stack"};
    const char *const *lists[16] = {seccomp_denied, seccomp_strict_denied, seccomp_relaxed_allowed};
    size_t count = 3;
    for (size_t i = 0; seccomp_allowed[i] != NULL; i++)
        lists[count++] = seccomp_allowed[i];
    for (size_t l = 0; l < count; l++)
        for (const char *const *name = lists[l]; *name != NULL; name++) {
            bool known = seccomp_syscall_resolve_name(*name) != __NR_SCMP_ERROR;
            for (size_t n = 0; n < ARRAY_SIZE(newer); n++)
                known = known || strcmp(newer[n], *name) == 0;
            if (!known)
                fail_msg("%s is no system call", *name);
        }
}

static void the_agent_takes_every_filter(void **state)
{
    const struct filters *f = *state;
    for (size_t m = 0; m < ARRAY_SIZE(machines); m++)
        for (int p = 0; p < SECCOMP_PROFILE_COUNT; p++)
            assert_in_range(f->of[m][p].size, 8, AGENT_SECCOMP_BYTES_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_are_answered_as_the_profile_says),
        cmocka_unit_test(every_number_is_answered_as_its_name_s_table_says),
        cmocka_unit_test(a_filter_is_short),
        cmocka_unit_test(a_call_that_was_taken_away_kills_nothing),
        cmocka_unit_test(a_stricter_profile_allows_no_more),
        cmocka_unit_test(unknown_calls_do_not_exist),
        cmocka_unit_test(another_machine_s_calls_kill),
        cmocka_unit_test(x32_calls_kill),
        cmocka_unit_test(every_name_is_a_call),
        cmocka_unit_test(the_agent_takes_every_filter),
    };
    return cmocka_run_group_tests_name("seccomp", tests, setup, teardown);
}
