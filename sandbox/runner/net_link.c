#include "sandbox/runner/net_link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/link/veth.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/qdisc/tbf.h>
#include <netlink/route/route.h>
#include <netlink/route/tc.h>
#include <netlink/socket.h>

#include "base/memory.h"

#define POINT_TO_POINT 31 /* RFC 3021 */

/* libnl has numbers of its own; those that are acted on get errno's back. */
static int failed(int code, struct err *e, const char *what, const char *name)
{
    int rc = err_set(e, ERR_IO, "%s %s: %s", what, name, nl_geterror(code));
    e->sys = code == -NLE_EXIST       ? EEXIST
             : code == -NLE_PERM      ? EPERM
             : code == -NLE_OPNOTSUPP ? EOPNOTSUPP
                                      : EIO;
    return rc;
}

int net_link_socket(struct nl_sock **out, struct err *e)
{
    struct nl_sock *socket = nl_socket_alloc();
    if (socket == NULL)
        return err_set(e, ERR_NO_MEMORY, "netlink");
    int code = nl_connect(socket, NETLINK_ROUTE);
    if (code < 0) {
        nl_socket_free(socket);
        return failed(code, e, "open", "rtnetlink");
    }
    *out = socket;
    return 0;
}

void net_link_socket_close(struct nl_sock *socket)
{
    if (socket != NULL)
        nl_socket_free(socket);
}

int net_link_pair(struct nl_sock *socket, const char *name, const char *peer, int peer_fd,
                  unsigned mtu, struct err *e)
{
    struct rtnl_link *link = rtnl_link_veth_alloc();
    if (link == NULL)
        return err_set(e, ERR_NO_MEMORY, "make %s", name);
    struct rtnl_link *other = rtnl_link_veth_get_peer(link);
    rtnl_link_set_name(link, name);
    rtnl_link_set_name(other, peer);
    rtnl_link_set_ns_fd(other, peer_fd);
    if (mtu > 0) {
        rtnl_link_set_mtu(link, mtu);
        rtnl_link_set_mtu(other, mtu);
    }
    int code = rtnl_link_add(socket, link, NLM_F_CREATE | NLM_F_EXCL);
    rtnl_link_put(other);
    rtnl_link_put(link);
    return code < 0 ? failed(code, e, "make interface", peer) : 0;
}

static int address_add(struct nl_sock *socket, int index, const char *name, uint32_t address,
                       struct err *e)
{
    const uint32_t wire = htonl(address);
    struct rtnl_addr *entry = rtnl_addr_alloc();
    struct nl_addr *local = nl_addr_build(AF_INET, &wire, sizeof wire);
    int code = -NLE_NOMEM;
    if (entry != NULL && local != NULL) {
        nl_addr_set_prefixlen(local, POINT_TO_POINT);
        rtnl_addr_set_ifindex(entry, index);
        code = rtnl_addr_set_local(entry, local);
        if (code == 0)
            code = rtnl_addr_add(socket, entry, 0);
    }
    if (local != NULL)
        nl_addr_put(local);
    if (entry != NULL)
        rtnl_addr_put(entry);
    return code < 0 ? failed(code, e, "set address of", name) : 0;
}

static struct rtnl_link *link_get(struct nl_sock *socket, const char *name)
{
    struct rtnl_link *link = NULL;
    return rtnl_link_get_kernel(socket, 0, name, &link) < 0 ? NULL : link;
}

static int up(struct nl_sock *socket, const char *name, int *out_index, struct err *e)
{
    struct rtnl_link *link = link_get(socket, name), *change = rtnl_link_alloc();
    int code = link == NULL ? -NLE_OBJ_NOTFOUND : change == NULL ? -NLE_NOMEM : 0;
    if (code == 0) {
        *out_index = rtnl_link_get_ifindex(link);
        rtnl_link_set_flags(change, IFF_UP);
        code = rtnl_link_change(socket, link, change, 0);
    }
    if (link != NULL)
        rtnl_link_put(link);
    if (change != NULL)
        rtnl_link_put(change);
    return code < 0 ? failed(code, e, "raise", name) : 0;
}

int net_link_raise(struct nl_sock *socket, const char *name, uint32_t address, struct err *e)
{
    int index = 0;
    int rc = up(socket, name, &index, e);
    return rc == 0 ? address_add(socket, index, name, address, e) : rc;
}

int net_link_default_route(struct nl_sock *socket, const char *name, uint32_t gateway,
                           struct err *e)
{
    const uint32_t wire = htonl(gateway);
    struct rtnl_link *link = link_get(socket, name);
    struct rtnl_route *route = rtnl_route_alloc();
    struct rtnl_nexthop *hop = rtnl_route_nh_alloc();
    struct nl_addr *via = nl_addr_build(AF_INET, &wire, sizeof wire);
    struct nl_addr *any = NULL;
    int code = nl_addr_parse("0.0.0.0/0", AF_INET, &any);
    if (code == 0 && (link == NULL || route == NULL || hop == NULL || via == NULL))
        code = link == NULL ? -NLE_OBJ_NOTFOUND : -NLE_NOMEM;
    if (code == 0) {
        rtnl_route_nh_set_ifindex(hop, rtnl_link_get_ifindex(link));
        rtnl_route_nh_set_gateway(hop, via);
        rtnl_route_add_nexthop(route, hop);
        hop = NULL; /* the route's */
        code = rtnl_route_set_dst(route, any);
        if (code == 0)
            code = rtnl_route_add(socket, route, 0);
    }
    if (any != NULL)
        nl_addr_put(any);
    if (via != NULL)
        nl_addr_put(via);
    if (hop != NULL)
        rtnl_route_nh_free(hop);
    if (route != NULL)
        rtnl_route_put(route);
    if (link != NULL)
        rtnl_link_put(link);
    return code < 0 ? failed(code, e, "set default route of", name) : 0;
}

/* A packet of the largest, with segmentation by the interface. */
#define PACKET_BYTES (66u * 1024)

int net_link_bound(struct nl_sock *socket, const char *name, uint64_t bytes_per_second,
                   struct err *e)
{
    struct rtnl_link *link = link_get(socket, name);
    struct rtnl_qdisc *qdisc = rtnl_qdisc_alloc();
    int rate = (int)bytes_per_second;
    int burst = rate / 50 + (int)PACKET_BYTES;
    int code = link == NULL ? -NLE_OBJ_NOTFOUND : qdisc == NULL ? -NLE_NOMEM : 0;
    if (code == 0) {
        rtnl_tc_set_link(TC_CAST(qdisc), link);
        rtnl_tc_set_parent(TC_CAST(qdisc), TC_H_ROOT);
        code = rtnl_tc_set_kind(TC_CAST(qdisc), "tbf");
    }
    if (code == 0) {
        rtnl_qdisc_tbf_set_rate(qdisc, rate, burst, 0);
        rtnl_qdisc_tbf_set_limit(qdisc, burst + rate / 20);
        code = rtnl_qdisc_add(socket, qdisc, NLM_F_CREATE | NLM_F_EXCL);
    }
    if (qdisc != NULL)
        rtnl_qdisc_put(qdisc);
    if (link != NULL)
        rtnl_link_put(link);
    return code < 0 ? failed(code, e, "bound (by the kernel's sch_tbf)", name) : 0;
}

int net_link_delete(struct nl_sock *socket, const char *name, struct err *e)
{
    struct rtnl_link *link = link_get(socket, name);
    if (link == NULL)
        return 0;
    int code = rtnl_link_delete(socket, link);
    rtnl_link_put(link);
    if (code < 0 && code != -NLE_NODEV && code != -NLE_OBJ_NOTFOUND)
        return failed(code, e, "remove", name);
    return 0;
}

bool net_link_bytes(struct nl_sock *socket, const char *name, struct net_link_bytes *out)
{
    struct rtnl_link *link = link_get(socket, name);
    if (link == NULL)
        return false;
    out->received = rtnl_link_get_stat(link, RTNL_LINK_RX_BYTES);
    out->sent = rtnl_link_get_stat(link, RTNL_LINK_TX_BYTES);
    rtnl_link_put(link);
    return true;
}

unsigned net_link_mtu(struct nl_sock *socket, const char *name)
{
    struct rtnl_link *link = link_get(socket, name);
    if (link == NULL)
        return 0;
    unsigned mtu = rtnl_link_get_mtu(link);
    rtnl_link_put(link);
    return mtu;
}
