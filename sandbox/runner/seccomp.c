#include "sandbox/runner/seccomp.h"

#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/memory.h"
#include "sandbox/runner/seccomp_calls.h"
#include "sandbox/runner/seccomp_program.h"

/* clone with one of these would make a namespace. clone3 hides its flags in memory, where a filter
 * cannot look: it does not exist here, and libc falls back to clone. */
#define CLONE_NAMESPACES                                                                           \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |  \
     CLONE_NEWNET)

/* One that is being made: the program, and the label of each call's number. */
struct making {
    struct seccomp_program program;
    uint8_t labels[SECCOMP_NUMBERS];
    uint32_t machine;
    enum seccomp_profile profile;
    bool misnumbered;
};

static bool has(const char *const *names, const char *name)
{
    for (; names != NULL && *names != NULL; names++)
        if (strcmp(*names, name) == 0)
            return true;
    return false;
}

/* A name that this libseccomp or architecture does not know is skipped. */
static void answer(struct making *m, const char *name, unsigned label)
{
    int number = seccomp_syscall_resolve_name_arch(m->machine, name);
    if (number >= 0 && (unsigned)number < SECCOMP_NUMBERS && label < SECCOMP_LABELS)
        m->labels[number] = (uint8_t)label;
    else if (number >= 0)
        m->misnumbered = true;
}

static void answer_all(struct making *m, const char *const *names, const char *const *but,
                       unsigned label)
{
    for (size_t i = 0; names != NULL && names[i] != NULL; i++)
        if (!has(but, names[i]))
            answer(m, names[i], label);
}

/* --- calls that depend on their arguments ------------------------------------------------------------ */

static void put_clone(struct making *m)
{
    seccomp_load_low(&m->program, 0);
    seccomp_jump(&m->program, BPF_JSET, CLONE_NAMESPACES, SECCOMP_ENOSYS, SECCOMP_ALLOW);
}

/* PER_LINUX, and the question which one is set; debuggers want fixed addresses. */
static void put_personality(struct making *m)
{
    struct seccomp_program *p = &m->program;
    seccomp_load_low(p, 0);
    if (m->profile == SECCOMP_RELAXED)
        seccomp_jump(p, BPF_JEQ, ADDR_NO_RANDOMIZE, SECCOMP_ALLOW, SECCOMP_NEXT);
    seccomp_jump(p, BPF_JEQ, PER_LINUX, SECCOMP_ALLOW, SECCOMP_NEXT);
    seccomp_jump(p, BPF_JEQ, UINT32_MAX, SECCOMP_ALLOW, SECCOMP_ENOSYS);
}

/* What would type on the terminal of who called. */
static void put_ioctl(struct making *m)
{
    struct seccomp_program *p = &m->program;
    seccomp_load_low(p, 1);
    seccomp_jump(p, BPF_JEQ, TIOCSTI, SECCOMP_EPERM, SECCOMP_NEXT);
    seccomp_jump(p, BPF_JEQ, TIOCLINUX, SECCOMP_EPERM, SECCOMP_ALLOW);
}

static void put_socketpair(struct making *m)
{
    seccomp_load_low(&m->program, 0);
    seccomp_jump(&m->program, BPF_JEQ, AF_UNIX, SECCOMP_ALLOW, SECCOMP_ENOSYS);
}

/* vsock is not namespaced, packet and alg reach into the kernel: only what is listed exists. Of the
 * Internet's protocols too: SCTP, DCCP, MPTCP load modules of the kernel that nobody on this machine may
 * ever have tried. */
static void put_socket(struct making *m)
{
    static const uint32_t protocols[] = {IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_ICMPV6};
    struct seccomp_program *p = &m->program;
    unsigned internet = m->profile == SECCOMP_RELAXED ? SECCOMP_ALLOW : seccomp_label(p);
    seccomp_load_low(p, 0);
    seccomp_jump(p, BPF_JEQ, AF_UNIX, SECCOMP_ALLOW, SECCOMP_NEXT);
    seccomp_jump(p, BPF_JEQ, AF_INET, internet, SECCOMP_NEXT);
    if (m->profile == SECCOMP_STRICT) {
        seccomp_jump(p, BPF_JEQ, AF_INET6, internet, SECCOMP_ENOSYS);
    } else {
        seccomp_jump(p, BPF_JEQ, AF_INET6, internet, SECCOMP_NEXT);
        seccomp_jump(p, BPF_JEQ, AF_NETLINK, SECCOMP_NEXT, SECCOMP_ENOSYS);
        seccomp_load_low(p, 2);
        seccomp_jump(p, BPF_JEQ, NETLINK_ROUTE, SECCOMP_ALLOW, SECCOMP_ENOSYS);
    }
    if (m->profile == SECCOMP_RELAXED)
        return;
    seccomp_place(p, internet);
    seccomp_load_low(p, 2);
    for (size_t i = 0; i < ARRAY_SIZE(protocols); i++)
        seccomp_jump(p, BPF_JEQ, protocols[i], SECCOMP_ALLOW, SECCOMP_NEXT);
    seccomp_jump(p, BPF_JEQ, IPPROTO_IP, SECCOMP_ALLOW, SECCOMP_ENOSYS);
}

/* RLIMIT_CORE stays at 1, which the agent sets and the kernel takes for "no core file, and none into
 * the pipe of core_pattern either"; at 0 it would start the machine's handler, as root, for any
 * process that ends itself. Whoever wants 0 wants no core files, and is told that it is done. */
static void put_setrlimit(struct making *m)
{
    struct seccomp_program *p = &m->program;
    seccomp_load_low(p, 0);
    seccomp_jump(p, BPF_JEQ, RLIMIT_CORE, SECCOMP_DONE, SECCOMP_NEXT);
    seccomp_jump(p, BPF_JGE, RLIM_NLIMITS, SECCOMP_ENOSYS, SECCOMP_ALLOW);
}

/* Without a new limit it only reads. */
static void put_prlimit(struct making *m)
{
    struct seccomp_program *p = &m->program;
    seccomp_load_low(p, 1);
    seccomp_jump(p, BPF_JGE, RLIM_NLIMITS, SECCOMP_ENOSYS, SECCOMP_NEXT);
    seccomp_jump(p, BPF_JEQ, RLIMIT_CORE, SECCOMP_NEXT, SECCOMP_ALLOW);
    seccomp_load_low(p, 2);
    seccomp_jump(p, BPF_JEQ, 0, SECCOMP_NEXT, SECCOMP_DONE);
    seccomp_load_high(p, 2);
    seccomp_jump(p, BPF_JEQ, 0, SECCOMP_ALLOW, SECCOMP_DONE);
}

static const struct {
    const char *name;
    void (*put)(struct making *m);
} by_argument[] = {
    {"clone", put_clone},           {"ioctl", put_ioctl},         {"personality", put_personality},
    {"prlimit64", put_prlimit},     {"setrlimit", put_setrlimit}, {"socket", put_socket},
    {"socketpair", put_socketpair},
};

/* --- the whole ------------------------------------------------------------------------------------------ */

static void fill(struct making *m)
{
    const char *const *without = m->profile == SECCOMP_STRICT ? seccomp_strict_denied : NULL;
    const char *const *with = m->profile == SECCOMP_RELAXED ? seccomp_relaxed_allowed : NULL;
    memset(m->labels, SECCOMP_ENOSYS, sizeof m->labels);
    for (size_t i = 0; seccomp_allowed[i] != NULL; i++)
        answer_all(m, seccomp_allowed[i], without, SECCOMP_ALLOW);
    answer_all(m, with, NULL, SECCOMP_ALLOW);
    answer_all(m, seccomp_denied, with, SECCOMP_EPERM);
    unsigned labels[ARRAY_SIZE(by_argument)];
    for (size_t i = 0; i < ARRAY_SIZE(by_argument); i++) {
        labels[i] = seccomp_label(&m->program);
        answer(m, by_argument[i].name, labels[i]);
    }
    answer_all(m, without, NULL, SECCOMP_EPERM);
    seccomp_dispatch(&m->program, m->machine, m->machine == SCMP_ARCH_X86_64, m->labels);
    for (size_t i = 0; i < ARRAY_SIZE(by_argument); i++)
        if (!has(without, by_argument[i].name)) {
            seccomp_place(&m->program, labels[i]);
            by_argument[i].put(m);
        }
}

static const char *const profile_names[] = {
    [SECCOMP_STRICT] = "strict", [SECCOMP_DEFAULT] = "default", [SECCOMP_RELAXED] = "relaxed"};

const char *seccomp_profile_name(enum seccomp_profile profile)
{
    return profile_names[profile];
}

bool seccomp_profile_find(const char *name, enum seccomp_profile *out)
{
    for (size_t i = 0; i < ARRAY_SIZE(profile_names); i++)
        if (strcmp(profile_names[i], name) == 0) {
            *out = (enum seccomp_profile)i;
            return true;
        }
    return false;
}

int seccomp_filter_compile(struct seccomp_filter *out, enum seccomp_profile profile,
                           uint32_t machine, struct err *e)
{
    struct sock_filter *program = NULL;
    size_t count = 0;
    CLEANUP_FREE struct making *m = calloc(1, sizeof *m);
    if (m == NULL)
        return err_set(e, ERR_NO_MEMORY, "seccomp filter");
    m->machine = machine == 0 ? seccomp_arch_native() : machine;
    m->profile = profile;
    fill(m);
    if (m->misnumbered)
        return err_set(e, ERR_INTERNAL, "build seccomp filter %s: a call has a number above %u",
                       profile_names[profile], SECCOMP_NUMBERS);
    int rc = seccomp_assemble(&m->program, &program, &count, e);
    if (rc != 0)
        return rc;
    *out = (struct seccomp_filter){.program = (uint8_t *)program, .size = count * sizeof *program};
    return 0;
}

void seccomp_filter_free(struct seccomp_filter *filter)
{
    free(filter->program);
    *filter = (struct seccomp_filter){0};
}
