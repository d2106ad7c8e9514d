#include "sandbox/runner/network.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"

struct network {
    int host; /* the namespace of the machine */
};

int network_open(struct network **out, struct err *e)
{
    struct network *network = calloc(1, sizeof *network);
    if (network == NULL)
        return err_set(e, ERR_NO_MEMORY, "network");
    network->host = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (network->host < 0) {
        int rc = err_sys(e, ERR_IO, errno, "open /proc/self/ns/net");
        free(network);
        return rc;
    }
    *out = network;
    return 0;
}

void network_close(struct network *network)
{
    if (network == NULL)
        return;
    memory_close(&network->host);
    free(network);
}

int network_host(const struct network *network)
{
    return network->host;
}

int network_enter(struct network *network, int namespace_fd, struct err *e)
{
    (void)network;
    if (setns(namespace_fd, CLONE_NEWNET) < 0)
        return err_sys(e, ERR_IO, errno, "enter network namespace");
    return 0;
}

void network_leave(struct network *network)
{
    assert_always(setns(network->host, CLONE_NEWNET) == 0);
}

static int loopback_up(struct err *e)
{
    CLEANUP_FD int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "socket");
    struct ifreq request = {.ifr_name = "lo"};
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        return err_sys(e, ERR_IO, errno, "raise loopback");
    return 0;
}

/* So that code that is not root inside may listen on 80. */
static int allow_low_ports(struct err *e)
{
    static const char path[] = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "0", 1) != 1)
        return err_sys(e, ERR_IO, errno, "write %s", path);
    return 0;
}

int network_namespace_make(struct network *network, int *out_fd, struct err *e)
{
    if (unshare(CLONE_NEWNET) < 0)
        return err_sys(e, ERR_IO, errno, "make network namespace");
    CLEANUP_FD int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    int rc = fd < 0 ? err_sys(e, ERR_IO, errno, "open /proc/self/ns/net") : 0;
    if (rc == 0)
        rc = loopback_up(e);
    if (rc == 0)
        rc = allow_low_ports(e);
    network_leave(network);
    if (rc == 0)
        *out_fd = steal_fd(&fd);
    return rc;
}

int network_sockets(struct network *network, int namespace_fd, bool ipv6, int *out, size_t count,
                    struct err *e)
{
    int rc = network_enter(network, namespace_fd, e);
    if (rc < 0)
        return rc;
    size_t made = 0;
    for (; made < count; made++) {
        out[made] =
            socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (out[made] < 0)
            break;
    }
    int sys = errno;
    network_leave(network);
    if (made == count)
        return 0;
    while (made > 0)
        memory_close(&out[--made]);
    return err_sys(e, ERR_IO, sys, "socket in the instance's network");
}
