/* What the profiles differ in. The harness says with --profile which one holds. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "probe.h"

#define P(text) ((long)(text))

struct call {
    const char *name;
    long number;
    long a[6];
};

/* Arguments are such that the call does nothing where it is allowed. */
static const struct call only_default[] = {
    {"ptrace", SYS_ptrace, {0x4206, -1, 0, 0}},
    {"process_vm_readv", SYS_process_vm_readv, {-1, 0, 0, 0, 0, 0}},
    {"process_vm_writev", SYS_process_vm_writev, {-1, 0, 0, 0, 0, 0}},
    {"personality", SYS_personality, {0xffffffff}},
    {"splice", SYS_splice, {-1, 0, -1, 0, 0, 0}},
    {"tee", SYS_tee, {-1, -1, 0, 0}},
    {"vmsplice", SYS_vmsplice, {-1, 0, 0, 0}},
    {"io_setup", SYS_io_setup, {0, 0}},
    {"io_submit", SYS_io_submit, {0, 0, 0}},
    {"setxattr", SYS_setxattr, {P(""), P("user.x"), P(""), 0, 0}},
    {"fsetxattr", SYS_fsetxattr, {-1, P("user.x"), P(""), 0, 0}},
    {"shmget", SYS_shmget, {0x534b5258, 0, 0}},
    {"semget", SYS_semget, {0x534b5258, 0, 0}},
    {"msgget", SYS_msgget, {0x534b5258, 0, 0}},
    {"mq_open", SYS_mq_open, {P("skerry-none"), O_RDONLY, 0, 0}},
    {"mbind", SYS_mbind, {0, 0, 0, 0, 0, 0}},
    {"remap_file_pages", SYS_remap_file_pages, {0, 0, 0, 0, 0}},
    {"process_mrelease", 448, {-1, 0}},
};

/* Refused means: by the filter. Where it is allowed the arguments are wrong, which is another error. */
static bool is_refused(const void *with, struct probe_text *what)
{
    const struct call *c = with;
    long rc = syscall(c->number, c->a[0], c->a[1], c->a[2], c->a[3], c->a[4], c->a[5]);
    return probe_refused(what, rc);
}

static bool is_there(const void *with, struct probe_text *what)
{
    const struct call *c = with;
    long rc = syscall(c->number, c->a[0], c->a[1], c->a[2], c->a[3], c->a[4], c->a[5]);
    /* A kernel that knows one processor's memory alone has neither policies of it nor pages that move. */
    if (rc < 0 && errno == ENOSYS && (c->number == SYS_mbind || c->number == SYS_move_pages) &&
        syscall(SYS_get_mempolicy, NULL, NULL, 0, NULL, 0) != 0)
        return errno == ENOSYS || probe_fail(what, "%s", strerror(errno));
    return rc >= 0 || (errno != EPERM && errno != ENOSYS) ||
           probe_fail(what, "%s", strerror(errno));
}

static bool no_netlink(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_refused(what, socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
}

static const struct call only_relaxed[] = {
    {"io_uring_setup", SYS_io_uring_setup, {0, 0}},
    {"process_madvise", SYS_process_madvise, {-1, 0, 0, 0, 0}},
    {"move_pages", SYS_move_pages, {0, 0, 0, 0, 0, -1}},
    {"name_to_handle_at", SYS_name_to_handle_at, {-1, P(""), 0, 0, -1}},
};

struct protocol {
    const char *name;
    int family, type, protocol;
};

static const struct protocol protocols[] = {
    {"SCTP", AF_INET, SOCK_STREAM, 132},
    {"SCTP by IPv6", AF_INET6, SOCK_STREAM, 132},
    {"DCCP", AF_INET, 6, 33},
    {"MPTCP", AF_INET, SOCK_STREAM, 262},
    {"UDP-Lite", AF_INET, SOCK_DGRAM, 136},
    {"L2TP", AF_INET, SOCK_DGRAM, 115},
    {"SCTP in packets", AF_INET, SOCK_SEQPACKET, 132},
    {"SMC", 43, SOCK_STREAM, 0},
};

/* ENOSYS is the filter's word; any other means that the kernel went to look for a module. */
static bool protocol_does_not_exist(const void *with, struct probe_text *what)
{
    const struct protocol *p = with;
    int fd = socket(p->family, p->type | SOCK_CLOEXEC, p->protocol);
    return (fd < 0 && errno == ENOSYS) ||
           probe_fail(what, "the kernel was asked: %s", fd < 0 ? strerror(errno) : "it is there");
}

void probe_add_profile(struct probe_list *list)
{
    enum probe_profile profile = probe_profile();
    for (size_t i = 0; i < sizeof only_default / sizeof only_default[0]; i++)
        probe_add(list, "profile", only_default[i].name,
                  profile == PROBE_STRICT ? is_refused : is_there, &only_default[i], false);
    for (size_t i = 0; i < sizeof only_relaxed / sizeof only_relaxed[0]; i++)
        probe_add(list, "profile", only_relaxed[i].name,
                  profile == PROBE_RELAXED ? is_there : is_refused, &only_relaxed[i], false);
    if (profile == PROBE_STRICT)
        probe_add(list, "profile", "netlink", no_netlink, NULL, false);
    for (size_t i = 0; profile != PROBE_RELAXED && i < sizeof protocols / sizeof protocols[0]; i++)
        probe_add(list, "sockets", protocols[i].name, protocol_does_not_exist, &protocols[i],
                  false);
}
