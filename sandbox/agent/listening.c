/* Which TCP sockets listen in our network namespace.
 *
 * sock_diag asks for the listening ones alone: some microseconds. /proc/net/tcp walks the table of
 * all connections of the machine, 1.6 ms on a big one even when the namespace is empty; it serves
 * kernels without tcp_diag. */
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent/agent.h"

#define TCP_LISTENING 10 /* TCP_LISTEN of the kernel, also 0A in /proc/net/tcp */
#define DIAG_NONE (-2)
/* What hostile code opens beyond this is not looked at. */
#define ANSWERS_MAX 8
#define ROWS_BYTES_MAX (64 * 1024)

struct diag_request {
    struct nlmsghdr header;
    struct inet_diag_req_v2 body;
};

static void take_diag(const struct inet_diag_msg *m, struct listener *out)
{
    *out = (struct listener){.ipv6 = m->idiag_family == AF_INET6, .port = ntohs(m->id.idiag_sport)};
    memcpy(out->address, m->id.idiag_src, sizeof out->address);
}

/* One datagram of an answer. Returns 1: more follow, 0: that was the end, -1: refused. */
static int take_answer(const uint8_t *data, size_t length, uint32_t seq, struct listener *out,
                       size_t max, size_t *count)
{
    while (length >= sizeof(struct nlmsghdr)) {
        struct nlmsghdr header;
        memcpy(&header, data, sizeof header);
        if (header.nlmsg_len < sizeof header || header.nlmsg_len > length)
            return -1;
        if (header.nlmsg_seq == seq && header.nlmsg_type == NLMSG_ERROR)
            return -1;
        if (header.nlmsg_seq == seq && header.nlmsg_type == NLMSG_DONE)
            return 0;
        struct inet_diag_msg body;
        if (header.nlmsg_seq == seq && header.nlmsg_type == SOCK_DIAG_BY_FAMILY &&
            header.nlmsg_len >= sizeof header + sizeof body && *count < max) {
            memcpy(&body, data + sizeof header, sizeof body);
            take_diag(&body, &out[(*count)++]);
        }
        size_t step = NLMSG_ALIGN(header.nlmsg_len);
        if (step >= length)
            break;
        data += step;
        length -= step;
    }
    return 1;
}

/* False: the kernel refused, or the answer did not come to its end. */
static bool diag_find(struct readiness *r, bool ipv6, uint16_t port, struct listener *out,
                      size_t max, size_t *count)
{
    const struct diag_request request = {
        .header = {.nlmsg_len = sizeof request,
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
                   .nlmsg_seq = ++r->diag_seq},
        .body = {.sdiag_family = ipv6 ? AF_INET6 : AF_INET,
                 .sdiag_protocol = IPPROTO_TCP,
                 .idiag_states = 1u << TCP_LISTENING,
                 .id = {.idiag_sport = htons(port)}},
    };
    if (send(r->diag_fd, &request, sizeof request, MSG_DONTWAIT) != (ssize_t)sizeof request)
        return false;
    for (int i = 0; i < ANSWERS_MAX; i++) {
        uint8_t data[8192] __attribute__((aligned(NLMSG_ALIGNTO)));
        ssize_t length = recv(r->diag_fd, data, sizeof data, MSG_DONTWAIT);
        if (length <= 0)
            return false;
        int more = take_answer(data, (size_t)length, r->diag_seq, out, max, count);
        if (more <= 0)
            return more == 0;
    }
    return false;
}

static bool diag_ready(struct readiness *r)
{
    if (r->diag_fd >= 0)
        return true;
    if (r->diag_fd == DIAG_NONE)
        return false;
    r->diag_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_SOCK_DIAG);
    if (r->diag_fd < 0)
        r->diag_fd = DIAG_NONE;
    return r->diag_fd >= 0;
}

/* Addresses stand there as groups of 32 bits in the machine's order. */
static bool parse_address(const char *text, bool ipv6, uint8_t out[16])
{
    for (size_t i = 0; i < (ipv6 ? 4u : 1u); i++) {
        char group[9] = {0};
        char *end;
        memcpy(group, text + 8 * i, 8);
        uint32_t value = (uint32_t)strtoul(group, &end, 16);
        if (*end != '\0')
            return false;
        memcpy(out + 4 * i, &value, sizeof value);
    }
    return true;
}

bool listening_row(const char *line, bool ipv6, struct listener *out)
{
    char local[33], remote[33];
    unsigned port, remote_port, state;
    if (sscanf(line, " %*u: %32[0-9A-Fa-f]:%4x %32[0-9A-Fa-f]:%4x %2x", local, &port, remote,
               &remote_port, &state) != 5)
        return false;
    *out = (struct listener){.ipv6 = ipv6, .port = (uint16_t)port};
    return state == TCP_LISTENING && strlen(local) == (ipv6 ? 32u : 8u) &&
           parse_address(local, ipv6, out->address);
}

/* The listening ones stand first, behind a row of titles. */
static void proc_find(struct agent *a, bool ipv6, uint16_t port, struct listener *out, size_t max,
                      size_t *count)
{
    CLEANUP_FD int fd = openat(a->proc_fd, ipv6 ? "self/net/tcp6" : "self/net/tcp",
                               O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    CLEANUP_FREE char *rows = malloc(ROWS_BYTES_MAX);
    if (fd < 0 || rows == NULL)
        return;
    size_t length = 0;
    ssize_t got;
    while ((got = read(fd, rows + length, ROWS_BYTES_MAX - 1 - length)) > 0)
        length += (size_t)got;
    rows[length] = '\0';
    char *rest = strchr(rows, '\n');
    for (char *line = rest == NULL ? NULL : rest + 1; line != NULL && *line != '\0';) {
        char *end = strchr(line, '\n');
        if (end == NULL)
            return; /* cut by our bound */
        *end = '\0';
        struct listener found;
        if (!listening_row(line, ipv6, &found))
            return;
        if ((port == 0 || found.port == port) && *count < max)
            out[(*count)++] = found;
        line = end + 1;
    }
}

size_t listening_find(struct agent *a, uint16_t port, struct listener *out, size_t max)
{
    struct readiness *r = &a->readiness;
    size_t count = 0;
    if (diag_ready(r)) {
        if (diag_find(r, false, port, out, max, &count) &&
            diag_find(r, true, port, out, max, &count))
            return count;
        /* Whatever is left of the answer goes with the socket. */
        bool refused = count == 0;
        close(r->diag_fd);
        r->diag_fd = refused ? DIAG_NONE : -1;
        if (!refused)
            return count;
    }
    proc_find(a, false, port, out, max, &count);
    proc_find(a, true, port, out, max, &count);
    return count;
}
