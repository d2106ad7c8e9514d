#include "sandbox/runner/seccomp.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/seccomp_calls.h"

/* clone with one of these would make a namespace. clone3 hides its flags in memory, where a filter
 * cannot look: it does not exist here, and libc falls back to clone. */
#define CLONE_NAMESPACES                                                                           \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |  \
     CLONE_NEWNET)

static int add(scmp_filter_ctx filter, uint32_t action, int call, unsigned count,
               const struct scmp_arg_cmp *arguments)
{
    int rc = seccomp_rule_add_array(filter, action, call, count, arguments);
    /* A rule that repeats one is no mistake. */
    return rc == -EEXIST ? 0 : rc;
}

static bool has(const char *const *names, const char *name)
{
    for (; names != NULL && *names != NULL; names++)
        if (strcmp(*names, name) == 0)
            return true;
    return false;
}

/* A name that this libseccomp or architecture does not know is skipped. */
static int add_names(scmp_filter_ctx filter, uint32_t action, const char *const *names,
                     const char *const *but)
{
    for (size_t i = 0; names != NULL && names[i] != NULL; i++) {
        int call = seccomp_syscall_resolve_name(names[i]);
        if (call < 0 || has(but, names[i]))
            continue;
        int rc = add(filter, action, call, 0, NULL);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The kernel looks at the lower 32 bits of ioctl's request only, so these compares do too.
 * libseccomp has no "else": a request is allowed when any one bit differs from TIOCSTI and any one
 * from TIOCLINUX. Both are 0x54xx; 0x5412 and 0x541c differ from each other in bits 1 to 3 only, so
 * whatever differs from both in one and the same bit, or lies outside 0x5410..0x541f, is allowed in
 * one rule each, and what remains is listed. */
static int add_ioctl(scmp_filter_ctx filter)
{
    const uint32_t low = TIOCSTI, high = TIOCLINUX, same = ~(low ^ high);
    for (int bit = 0; bit < 32; bit++) {
        uint32_t mask = 1u << bit;
        if ((same & mask) == 0)
            continue;
        struct scmp_arg_cmp differs = SCMP_A1_32(SCMP_CMP_MASKED_EQ, mask, ~low & mask);
        int rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, &differs);
        if (rc < 0)
            return rc;
    }
    for (uint32_t request = 0; request < 16; request++) {
        uint32_t value = (low & ~15u) | request;
        if ((value & same) != (low & same) || value == low || value == high)
            continue;
        struct scmp_arg_cmp equals = SCMP_A1_32(SCMP_CMP_EQ, value, 0);
        int rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, &equals);
        if (rc < 0)
            return rc;
    }
    for (int i = 0; i < 2; i++) {
        struct scmp_arg_cmp equals =
            SCMP_A1_32(SCMP_CMP_MASKED_EQ, UINT32_MAX, i == 0 ? low : high);
        int rc = add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(ioctl), 1, &equals);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int add_equal(scmp_filter_ctx filter, uint32_t action, int call, unsigned argument,
                     uint32_t value)
{
    struct scmp_arg_cmp equals = SCMP_CMP64(argument, SCMP_CMP_EQ, value, 0);
    return add(filter, action, call, 1, &equals);
}

/* What code needs of the Internet families. Others (SCTP, DCCP, MPTCP) load modules of the kernel that
 * nobody on this machine may ever have tried. */
static int add_internet(scmp_filter_ctx filter, uint32_t family, bool every_protocol)
{
    static const uint32_t protocols[] = {IPPROTO_IP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP,
                                         IPPROTO_ICMPV6};
    if (every_protocol)
        return add_equal(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 0, family);
    for (size_t i = 0; i < ARRAY_SIZE(protocols); i++) {
        struct scmp_arg_cmp both[] = {SCMP_A0_32(SCMP_CMP_EQ, family, 0),
                                      SCMP_A2_32(SCMP_CMP_EQ, protocols[i], 0)};
        int rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, both);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* vsock is not namespaced, packet and alg reach into the kernel: only what is listed exists. */
static int add_sockets(scmp_filter_ctx filter, enum seccomp_profile profile)
{
    bool every_protocol = profile == SECCOMP_RELAXED;
    int rc = add_equal(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 0, AF_UNIX);
    if (rc == 0)
        rc = add_equal(filter, SCMP_ACT_ALLOW, SCMP_SYS(socketpair), 0, AF_UNIX);
    if (rc == 0)
        rc = add_internet(filter, AF_INET, every_protocol);
    if (rc == 0)
        rc = add_internet(filter, AF_INET6, every_protocol);
    struct scmp_arg_cmp route[] = {SCMP_A0_32(SCMP_CMP_EQ, AF_NETLINK, 0),
                                   SCMP_A2_32(SCMP_CMP_EQ, NETLINK_ROUTE, 0)};
    if (rc == 0 && profile != SECCOMP_STRICT)
        rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, route);
    return rc;
}

/* RLIMIT_CORE stays at 1, which the agent sets and the kernel takes for "no core file, and none into
 * the pipe of core_pattern either"; at 0 it would start the machine's handler, as root, for any
 * process that ends itself. Whoever wants 0 wants no core files, and is told that it is done. */
static int add_limits(scmp_filter_ctx filter)
{
    int rc = 0;
    for (uint32_t resource = 0; rc == 0 && resource < RLIM_NLIMITS; resource++) {
        if (resource == RLIMIT_CORE)
            continue;
        rc = add_equal(filter, SCMP_ACT_ALLOW, SCMP_SYS(setrlimit), 0, resource);
        if (rc == 0)
            rc = add_equal(filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 1, resource);
    }
    struct scmp_arg_cmp reads[] = {SCMP_A1_32(SCMP_CMP_EQ, RLIMIT_CORE, 0),
                                   SCMP_A2_64(SCMP_CMP_EQ, 0, 0)};
    struct scmp_arg_cmp sets[] = {SCMP_A1_32(SCMP_CMP_EQ, RLIMIT_CORE, 0),
                                  SCMP_A2_64(SCMP_CMP_NE, 0, 0)};
    if (rc == 0)
        rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2, reads);
    if (rc == 0)
        rc = add(filter, SCMP_ACT_ERRNO(0), SCMP_SYS(prlimit64), 2, sets);
    if (rc == 0)
        rc = add_equal(filter, SCMP_ACT_ERRNO(0), SCMP_SYS(setrlimit), 0, RLIMIT_CORE);
    return rc;
}

static int add_rest(scmp_filter_ctx filter, enum seccomp_profile profile)
{
    struct scmp_arg_cmp no_namespace = SCMP_A0_32(SCMP_CMP_MASKED_EQ, CLONE_NAMESPACES, 0);
    int rc = add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, &no_namespace);
    /* PER_LINUX, and the question which one is set; debuggers want fixed addresses. */
    static const uint32_t personalities[] = {PER_LINUX, UINT32_MAX, ADDR_NO_RANDOMIZE};
    size_t count = profile == SECCOMP_STRICT ? 0 : profile == SECCOMP_DEFAULT ? 2 : 3;
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = add_equal(filter, SCMP_ACT_ALLOW, SCMP_SYS(personality), 0, personalities[i]);
    return rc;
}

static int machine_set(scmp_filter_ctx filter, uint32_t machine)
{
    if (machine == 0 || machine == seccomp_arch_native())
        return 0;
    int rc = seccomp_arch_add(filter, machine);
    return rc == 0 ? seccomp_arch_remove(filter, seccomp_arch_native()) : rc;
}

static int fill(scmp_filter_ctx filter, enum seccomp_profile profile, uint32_t machine)
{
    const char *const *without = profile == SECCOMP_STRICT ? seccomp_strict_denied : NULL;
    const char *const *with = profile == SECCOMP_RELAXED ? seccomp_relaxed_allowed : NULL;
    /* A binary search; x32 and i386 calls kill the process. */
    int rc = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (rc == 0)
        rc = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (rc == 0)
        rc = machine_set(filter, machine);
    for (size_t i = 0; rc == 0 && seccomp_allowed[i] != NULL; i++)
        rc = add_names(filter, SCMP_ACT_ALLOW, seccomp_allowed[i], without);
    if (rc == 0)
        rc = add_names(filter, SCMP_ACT_ALLOW, with, NULL);
    if (rc == 0)
        rc = add_names(filter, SCMP_ACT_ERRNO(EPERM), seccomp_denied, with);
    if (rc == 0)
        rc = add_names(filter, SCMP_ACT_ERRNO(EPERM), without, NULL);
    if (rc == 0)
        rc = add_ioctl(filter);
    if (rc == 0)
        rc = add_sockets(filter, profile);
    if (rc == 0)
        rc = add_limits(filter);
    if (rc == 0)
        rc = add_rest(filter, profile);
    return rc;
}

static int export(scmp_filter_ctx filter, struct seccomp_filter *out, struct err *e)
{
    CLEANUP_FD int fd = memfd_create("filter", MFD_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "memfd");
    int rc = seccomp_export_bpf(filter, fd);
    if (rc < 0)
        return err_sys(e, ERR_INTERNAL, -rc, "export seccomp filter");
    off_t size = lseek(fd, 0, SEEK_END);
    if (size <= 0 || size % 8 != 0)
        return err_set(e, ERR_INTERNAL, "seccomp filter of %lld bytes", (long long)size);
    CLEANUP_FREE uint8_t *program = malloc((size_t)size);
    if (program == NULL)
        return err_set(e, ERR_NO_MEMORY, "seccomp filter");
    if (pread(fd, program, (size_t)size, 0) != size)
        return err_sys(e, ERR_IO, errno, "read seccomp filter");
    out->program = steal_pointer(&program);
    out->size = (size_t)size;
    return 0;
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
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    if (filter == NULL)
        return err_set(e, ERR_NO_MEMORY, "seccomp filter");
    int failed = fill(filter, profile, machine);
    int rc = failed < 0 ? err_sys(e, ERR_INTERNAL, -failed, "build seccomp filter %s",
                                  profile_names[profile])
                        : export(filter, out, e);
    seccomp_release(filter);
    return rc;
}

void seccomp_filter_free(struct seccomp_filter *filter)
{
    free(filter->program);
    *filter = (struct seccomp_filter){0};
}
