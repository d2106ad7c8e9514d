/* Sockets of every family, and a network that leads nowhere. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "probe.h"

struct family {
    const char *name;
    int family;
    int type;
    int protocol;
};

static const struct family families[] = {
    {"vsock, which no namespace confines", 40, SOCK_STREAM, 0},
    {"packet", AF_PACKET, SOCK_RAW, 0x0300},
    {"packet of datagrams", AF_PACKET, SOCK_DGRAM, 0x0300},
    {"raw IPv4", AF_INET, SOCK_RAW, IPPROTO_ICMP},
    {"raw IPv6", AF_INET6, SOCK_RAW, IPPROTO_ICMPV6},
    {"raw IPv4 with headers", AF_INET, SOCK_RAW, IPPROTO_RAW},
    {"the kernel's cryptography", 38, SOCK_SEQPACKET, 0},
    {"key management", 15, SOCK_RAW, 2},
    {"express data path", 44, SOCK_RAW, 0},
    {"bluetooth", 31, SOCK_RAW, 1},
    {"tipc", 30, SOCK_STREAM, 0},
    {"can", 29, SOCK_RAW, 1},
    {"netlink of packet filters", AF_NETLINK, SOCK_RAW, 12},
    {"netlink of audit", AF_NETLINK, SOCK_RAW, 9},
    {"netlink of devices", AF_NETLINK, SOCK_RAW, 15},
    {"netlink of ipsec", AF_NETLINK, SOCK_RAW, 6},
    {"netlink of sockets", AF_NETLINK, SOCK_RAW, 4},
    {"netlink, generic", AF_NETLINK, SOCK_RAW, 16},
    {"netlink of connectors", AF_NETLINK, SOCK_RAW, 11},
};

static bool family_is_refused(const void *with, struct probe_text *what)
{
    const struct family *f = with;
    return probe_failed(what, socket(f->family, f->type, f->protocol));
}

static bool wide_family_is_refused(const void *with, struct probe_text *what)
{
    (void)with;
    return probe_failed(what, syscall(SYS_socket, 0x100000000l | AF_PACKET, SOCK_RAW, 0x0300)) &&
           probe_failed(what, syscall(SYS_socket, 0x100000000l | 40, SOCK_STREAM, 0));
}

static bool usual_families_work(const void *with, struct probe_text *what)
{
    (void)with;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return probe_fail(what, "a pair: %s", strerror(errno));
    if (socket(AF_INET, SOCK_STREAM, 0) < 0 || socket(AF_INET, SOCK_DGRAM, 0) < 0)
        return probe_fail(what, "IPv4: %s", strerror(errno));
    if (probe_profile() != PROBE_STRICT && socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE) < 0)
        return probe_fail(what, "netlink of routes: %s", strerror(errno));
    return true;
}

/* --- links ------------------------------------------------------------------------------------ */

static bool only_loopback(const void *with, struct probe_text *what)
{
    (void)with;
    struct if_nameindex *names = if_nameindex();
    for (struct if_nameindex *at = names; at != NULL && at->if_index != 0; at++)
        if (strcmp(at->if_name, "lo") != 0)
            return probe_fail(what, "there is %s", at->if_name);
    return true;
}

/* The flags that it has already: where it is allowed nothing changes. */
static bool links_cannot_be_set(const void *with, struct probe_text *what)
{
    (void)with;
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (ioctl(fd, SIOCGIFFLAGS, &request) != 0)
        return probe_fail(what, "no flags of lo: %s", strerror(errno));
    return probe_refused(what, ioctl(fd, SIOCSIFFLAGS, &request));
}

struct change {
    const char *name;
    unsigned short type;
};

/* Without attributes: where the change is allowed the kernel finds them wrong and says so. */
static const struct change changes[] = {
    {"links cannot be made", RTM_NEWLINK},
    {"links cannot be removed", RTM_DELLINK},
    {"addresses cannot be set", RTM_NEWADDR},
    {"routes cannot be made", RTM_NEWROUTE},
    {"rules of routes cannot be made", RTM_NEWRULE},
    {"neighbours cannot be set", RTM_NEWNEIGH},
    {"queues cannot be set", RTM_NEWQDISC},
    {"filters of traffic cannot be set", RTM_NEWTFILTER},
    {"namespaces cannot be numbered", RTM_NEWNSID},
};

static bool network_cannot_be_changed(const void *with, struct probe_text *what)
{
    const struct change *change = with;
    struct {
        struct nlmsghdr head;
        union {
            struct ifinfomsg info;
            char zeros[64];
        };
    } request = {.head = {.nlmsg_len = sizeof request,
                          .nlmsg_type = change->type,
                          .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL}};
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[256];
    } answer;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        return probe_refused(what, fd);
    if (send(fd, &request, sizeof request, 0) < 0)
        return probe_refused(what, -1);
    if (recv(fd, &answer, sizeof answer, 0) < (ssize_t)sizeof answer.head ||
        answer.head.nlmsg_type != NLMSG_ERROR)
        return probe_fail(what, "no answer");
    errno = -answer.error.error;
    return probe_refused(what, answer.error.error == 0 ? 0 : -1);
}

struct option {
    const char *name;
    int level, option;
};

static const struct option options[] = {
    {"packets cannot be marked", SOL_SOCKET, SO_MARK},
    {"buffers cannot be forced", SOL_SOCKET, SO_RCVBUFFORCE},
    {"sockets cannot be made to debug", SOL_SOCKET, SO_DEBUG},
    {"priorities cannot be raised", SOL_SOCKET, SO_PRIORITY},
    {"foreign addresses cannot be taken", SOL_IP, IP_TRANSPARENT},
    {"tables of packets cannot be replaced", SOL_IP, 64 /* IPT_SO_SET_REPLACE */},
    {"tables of IPv6 packets cannot be replaced", SOL_IPV6, 64},
    {"connections cannot be repaired", IPPROTO_TCP, 19 /* TCP_REPAIR */},
};

static bool option_cannot_be_set(const void *with, struct probe_text *what)
{
    const struct option *o = with;
    int value = 7;
    int family = o->level == SOL_IPV6 ? AF_INET6 : AF_INET;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (o->option == 19)
        value = 1;
    int rc = fd < 0 ? -1 : setsockopt(fd, o->level, o->option, &value, sizeof value);
    /* ENOPROTOOPT: a kernel without such tables. */
    return fd < 0 || (rc < 0 && errno == ENOPROTOOPT) || probe_refused(what, rc);
}

static bool addresses_cannot_be_set_by_ioctl(const void *with, struct probe_text *what)
{
    (void)with;
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (ioctl(fd, SIOCGIFADDR, &request) != 0)
        return probe_fail(what, "no address of lo: %s", strerror(errno));
    if (!probe_refused(what, ioctl(fd, SIOCSIFADDR, &request)) ||
        !probe_refused(what, ioctl(fd, SIOCADDRT, &request)))
        return false;
    int rc = ioctl(fd, 0x89a0 /* SIOCBRADDBR */, "skerry-probe");
    /* ENOPKG: a kernel without bridges. */
    return (rc < 0 && errno == ENOPKG) || probe_refused(what, rc);
}

/* --- addresses -------------------------------------------------------------------------------- */

struct target {
    const char *name;
    const char *address;
    unsigned short port;
};

static const struct target nowhere[] = {
    {"there is no route to the internet", "192.0.2.1", 80},
    {"there is no route to a resolver", "8.8.8.8", 53},
    {"there is no route to the cloud's metadata", "169.254.169.254", 80},
    {"there is no route to private networks", "10.0.0.1", 22},
    {"there is no route by broadcast", "255.255.255.255", 9},
    {"there is no route to 172.16/12", "172.17.0.1", 2375},
    {"there is no route to 192.168/16", "192.168.0.1", 80},
    {"there is no route to shared addresses", "100.100.100.200", 80},
    {"there is no route to other instances", "10.166.0.2", 80},
    {"there is no route to groups", "224.0.0.1", 9},
    {"there is no route to a link", "169.254.1.1", 9},
    {"there is no route to the last network", "198.18.0.1", 9},
};

static const char *const nowhere6[][2] = {
    {"there is no IPv6 route", "2001:db8::1"},
    {"there is no IPv6 route to a link", "fe80::1"},
    {"there is no IPv6 route to private networks", "fd00::1"},
    {"there is no IPv6 route to the cloud's metadata", "fd00:ec2::254"},
    {"there is no IPv6 route to groups", "ff02::1"},
    {"there is no mapped route to the cloud's metadata", "::ffff:169.254.169.254"},
    {"there is no mapped route to private networks", "::ffff:10.0.0.1"},
    {"there is no mapped route to the internet", "::ffff:192.0.2.1"},
};

static const struct target services[] = {
    {"the machine's API cannot be reached", "127.0.0.1", 8081},
    {"the machine's gateway cannot be reached", "127.0.0.1", 8080},
    {"the machine's ssh cannot be reached", "127.0.0.1", 22},
    {"the cluster's questions cannot be reached", "127.0.0.1", 7600},
    {"the cluster's streams cannot be reached", "127.0.0.1", 7601},
    {"the cluster's handshake cannot be reached", "127.0.0.1", 7603},
    {"a second node cannot be reached", "127.0.0.2", 8080},
};

/* Connecting a datagram socket looks for a route and sends nothing. */
static bool has_no_route(const void *with, struct probe_text *what)
{
    const struct target *t = with;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(t->port)};
    int yes = 1;
    inet_pton(AF_INET, t->address, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &yes, sizeof yes);
    return probe_failed(what, connect(fd, (struct sockaddr *)&to, sizeof to));
}

static bool has_no_route6(const void *with, struct probe_text *what)
{
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_port = htons(9)};
    inet_pton(AF_INET6, with, &to.sin6_addr);
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return fd < 0 || probe_failed(what, connect(fd, (struct sockaddr *)&to, sizeof to));
}

static bool cannot_connect(const void *with, struct probe_text *what)
{
    const struct target *t = with;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(t->port)};
    inet_pton(AF_INET, t->address, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return probe_failed(what, connect(fd, (struct sockaddr *)&to, sizeof to));
}

static bool loopback_works(const void *with, struct probe_text *what)
{
    (void)with;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int caller = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&at, &size) != 0 ||
        connect(caller, (struct sockaddr *)&at, size) != 0)
        return probe_fail(what, "%s", strerror(errno));
    return true;
}

/* Abstract sockets live in the network namespace: none of the machine's may be there. */
static bool no_foreign_unix_sockets(const void *with, struct probe_text *what)
{
    (void)with;
    char line[512];
    FILE *file = fopen("/proc/net/unix", "re");
    bool good = true;
    while (file != NULL && good && fgets(line, sizeof line, file) != NULL) {
        const char *name = strpbrk(line, "@/");
        if (name != NULL)
            good = probe_fail(what, "%.100s is visible", name);
    }
    if (file != NULL)
        fclose(file);
    return good;
}

static bool no_well_known_unix_sockets(const void *with, struct probe_text *what)
{
    (void)with;
    static const char *const paths[] = {"/run/dbus/system_bus_socket",
                                        "/run/systemd/notify",
                                        "/run/systemd/private",
                                        "/var/run/docker.sock",
                                        "/run/containerd/containerd.sock",
                                        "/run/skerry/api.sock",
                                        "/run/skerry/runner.sock",
                                        "/dev/log"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
        if (access(paths[i], F_OK) == 0)
            return probe_fail(what, "%s is there", paths[i]);
    return true;
}

void probe_add_network(struct probe_list *list)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        probe_add(list, "sockets", families[i].name, family_is_refused, &families[i], false);
    probe_add(list, "sockets", "a family with high bits", wide_family_is_refused, NULL, false);
    probe_add(list, "sockets", "the usual families work", usual_families_work, NULL, false);
    probe_add(list, "network", "there is only loopback", only_loopback, NULL, false);
    probe_add(list, "network", "links cannot be set", links_cannot_be_set, NULL, false);
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++)
        probe_add(list, "network", changes[i].name, network_cannot_be_changed, &changes[i], false);
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        probe_add(list, "network", options[i].name, option_cannot_be_set, &options[i], false);
    probe_add(list, "network", "addresses cannot be set by ioctl", addresses_cannot_be_set_by_ioctl,
              NULL, false);
    for (size_t i = 0; i < sizeof nowhere / sizeof nowhere[0]; i++)
        probe_add(list, "network", nowhere[i].name, has_no_route, &nowhere[i], false);
    for (size_t i = 0; i < sizeof services / sizeof services[0]; i++)
        probe_add(list, "network", services[i].name, cannot_connect, &services[i], false);
    for (size_t i = 0; i < sizeof nowhere6 / sizeof nowhere6[0]; i++)
        probe_add(list, "network", nowhere6[i][0], has_no_route6, nowhere6[i][1], false);
    probe_add(list, "network", "loopback works", loopback_works, NULL, false);
    probe_add(list, "network", "no foreign unix socket is visible", no_foreign_unix_sockets, NULL,
              false);
    probe_add(list, "network", "no service of the machine is there", no_well_known_unix_sockets,
              NULL, false);
}
