/* Instances' way out in the kernel. "The machine" is a network namespace of the test's own, with "the
 * internet" behind one link and a private network behind another: nothing of the real machine is touched.
 * Listening sockets stand where nobody may get to; a control without the rules gets there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/runner/config.h"
#include "sandbox/runner/net_egress.h"
#include "sandbox/runner/net_link.h"
#include "sandbox/runner/net_nft.h"

#define PORT 80
#define PORT_OTHER 81
#define WAIT_MS 700
#define INTERNET 0xcb007103u      /* 203.0.113.3; the machine is .2 */
#define INTERNET_HOST 0xcb007102u /* documentation networks play the internet */
#define FAR_METADATA 0xa9feaa02u  /* 169.254.170.2, behind the default route */
#define LAN 0x0a4d0003u           /* 10.77.0.3 */
#define METADATA 0xa9fea9feu      /* 169.254.169.254, on the machine itself */

struct world {
    int machine, internet, lan;
    int listeners[12];
    size_t listener_count;
    int internet_tcp, internet_udp;
    struct network *network;
    struct runner_config config;
    struct net_egress *egress;
};

static void enter(int fd)
{
    assert_int_equal(setns(fd, CLONE_NEWNET), 0);
}

static int current(void)
{
    int fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void raise_with(const char *name, uint32_t address)
{
    struct nl_sock *socket;
    struct err e;
    assert_int_equal(net_link_socket(&socket, &e), 0);
    if (net_link_raise(socket, name, address, &e) != 0)
        fail_msg("%s", e.msg);
    net_link_socket_close(socket);
}

/* A namespace behind `name`, which gets `here`; its end is called out0 and gets `there`. */
static int neighbour(struct world *w, const char *name, uint32_t here, uint32_t there)
{
    struct nl_sock *socket;
    struct err e;
    assert_int_equal(unshare(CLONE_NEWNET), 0);
    int fd = current();
    raise_with("lo", 0x7f000001);
    enter(w->machine);
    assert_int_equal(net_link_socket(&socket, &e), 0);
    if (net_link_pair(socket, name, "out0", fd, 0, &e) != 0)
        fail_msg("%s", e.msg);
    net_link_socket_close(socket);
    raise_with(name, here);
    enter(fd);
    raise_with("out0", there);
    enter(w->machine);
    return fd;
}

static int bound(int type, uint16_t port)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int fd = socket(AF_INET6, type | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&any, sizeof any), 0);
    if (type == SOCK_STREAM)
        assert_int_equal(listen(fd, 100), 0);
    return fd;
}

/* On all addresses of a namespace; connections wait in the queue and are never taken. */
static int listen_in(struct world *w, int namespace_fd, uint16_t port)
{
    enter(namespace_fd);
    int fd = bound(SOCK_STREAM, port);
    enter(w->machine);
    assert_true(w->listener_count < ARRAY_SIZE(w->listeners));
    w->listeners[w->listener_count++] = fd;
    return fd;
}

static void default_route(const char *name, uint32_t gateway)
{
    struct nl_sock *socket;
    struct err e;
    assert_int_equal(net_link_socket(&socket, &e), 0);
    if (net_link_default_route(socket, name, gateway, &e) != 0)
        fail_msg("%s", e.msg);
    net_link_socket_close(socket);
}

static void egress_open(struct world *w)
{
    struct err e;
    assert_int_equal(net_egress_open(&w->egress, w->network, &w->config, true, &e), 0);
    if (net_egress_refusal(w->egress) != NULL)
        fail_msg("%s", net_egress_refusal(w->egress));
}

static void configure(struct world *w)
{
    struct err e;
    assert_int_equal(fields_defaults(runner_config_fields(), &w->config, &e), 0);
    w->config.egress = true;
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct err e;
    assert_non_null(w);
    assert_int_equal(unshare(CLONE_NEWNET), 0);
    w->machine = current();
    raise_with("lo", METADATA);
    w->internet = neighbour(w, "wan0", INTERNET_HOST, INTERNET);
    w->lan = neighbour(w, "lan0", LAN - 1, LAN);
    enter(w->internet);
    raise_with("lo", FAR_METADATA);
    enter(w->machine);
    default_route("wan0", INTERNET);
    w->internet_tcp = listen_in(w, w->internet, PORT);
    (void)listen_in(w, w->internet, PORT_OTHER);
    (void)listen_in(w, w->lan, PORT);
    (void)listen_in(w, w->machine, PORT);
    enter(w->internet);
    w->internet_udp = bound(SOCK_DGRAM, PORT);
    enter(w->machine);
    assert_int_equal(network_open(&w->network, &e), 0);
    configure(w);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    /* They hold namespaces, and with them links. */
    while (w->listener_count > 0)
        memory_close(&w->listeners[--w->listener_count]);
    net_egress_close(w->egress, false);
    network_close(w->network);
    int *fds[] = {&w->internet_udp, &w->internet, &w->lan, &w->machine};
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        memory_close(fds[i]);
    runner_config_free(&w->config);
    free(w);
    return 0;
}

/* --- probes --------------------------------------------------------------------------------------- */

/* 0, or the errno of a connection to it from within, over IPv4 or as an IPv4 address in IPv6. */
static int try_from(const struct world *w, int from, uint32_t address, uint16_t port, bool mapped)
{
    struct sockaddr_in v4 = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(address)}};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    v6.sin6_addr.s6_addr[10] = v6.sin6_addr.s6_addr[11] = 0xff;
    memcpy(v6.sin6_addr.s6_addr + 12, &v4.sin_addr, 4);
    enter(from);
    int fd = socket(mapped ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    enter(w->machine);
    assert_true(fd >= 0);
    int sys = connect(fd, mapped ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4,
                      mapped ? sizeof v6 : sizeof v4) == 0
                  ? 0
                  : errno;
    if (sys == EINPROGRESS) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        socklen_t length = sizeof sys;
        if (poll(&wait, 1, WAIT_MS) != 1)
            sys = ETIMEDOUT;
        else
            assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_ERROR, &sys, &length), 0);
    }
    close(fd);
    return sys;
}

static int connects(const struct world *w, int from, uint32_t address, uint16_t port)
{
    return try_from(w, from, address, port, false);
}

/* A new link passes nothing until the kernel has seen its carrier, which waits for namespaces that are
 * being taken apart. */
static void reaches(const struct world *w, int from, uint32_t address, uint16_t port)
{
    uint64_t end = clock_monotonic_ms() + 10000;
    int sys = connects(w, from, address, port);
    while (sys == ETIMEDOUT && clock_monotonic_ms() < end)
        sys = connects(w, from, address, port);
    if (sys != 0)
        fail_msg("port %u is not reached: %s", port, strerror(sys));
}

static int namespace_new(struct world *w)
{
    struct err e;
    int fd = -1;
    assert_int_equal(network_namespace_make(w->network, &fd, &e), 0);
    return fd;
}

/* An instance's namespace with these lists, of at most one each. */
static int instance_bounded(struct world *w, uint32_t place, const char *allow, const char *deny,
                            uint64_t bandwidth_bytes)
{
    struct net_policy policy;
    struct err e;
    char *allows[] = {(char *)(uintptr_t)allow}, *denies[] = {(char *)(uintptr_t)deny};
    if (net_policy_parse(&policy, net_egress_site(w->egress), allows, allow != NULL, denies,
                         deny != NULL, &e) != 0)
        fail_msg("%s", e.msg);
    policy.bandwidth_bytes = bandwidth_bytes;
    int fd = namespace_new(w);
    if (net_egress_attach(w->egress, fd, place, &policy, &e) != 0)
        fail_msg("%s", e.msg);
    return fd;
}

static int instance_new(struct world *w, uint32_t place, const char *allow, const char *deny)
{
    return instance_bounded(w, place, allow, deny, 0);
}

/* --- tests ------------------------------------------------------------------------------------------ */

static void the_internet_is_reached_under_the_address_of_the_machine(void **state)
{
    struct world *w = *state;
    egress_open(w);
    int inside = instance_new(w, 7, NULL, NULL);
    reaches(w, inside, INTERNET, PORT);
    assert_int_equal(try_from(w, inside, INTERNET, PORT, true), 0);
    struct sockaddr_in6 peer = {0};
    socklen_t length = sizeof peer;
    int fd = accept(w->internet_tcp, (struct sockaddr *)&peer, &length);
    assert_true(fd >= 0);
    close(fd);
    uint32_t seen;
    memcpy(&seen, peer.sin6_addr.s6_addr + 12, 4);
    assert_int_equal(ntohl(seen), INTERNET_HOST);
    /* And UDP. */
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr = {htonl(INTERNET)}};
    enter(inside);
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    enter(w->machine);
    assert_int_equal(sendto(fd, "x", 1, 0, (struct sockaddr *)&to, sizeof to), 1);
    struct pollfd wait = {.fd = w->internet_udp, .events = POLLIN};
    assert_int_equal(poll(&wait, 1, WAIT_MS), 1);
    close(fd);
    uint64_t in, out;
    assert_true(net_egress_bytes(w->egress, 7, &in, &out));
    assert_true(in > 0 && out > in);
    close(inside);
}

/* Bytes that go from one to the other within so long, as fast as they will. */
static uint64_t pumped(int from, int to, uint64_t ms)
{
    static char data[64 * 1024];
    uint64_t count = 0, end = clock_monotonic_ms() + ms;
    while (clock_monotonic_ms() < end) {
        struct pollfd both[] = {{.fd = from, .events = POLLOUT}, {.fd = to, .events = POLLIN}};
        assert_true(poll(both, 2, 10) >= 0);
        (void)!send(from, data, sizeof data, MSG_DONTWAIT | MSG_NOSIGNAL);
        ssize_t got;
        while ((got = recv(to, data, sizeof data, MSG_DONTWAIT)) > 0)
            count += (uint64_t)got;
    }
    return count;
}

static void bandwidth_is_bounded_each_way(void **state)
{
    struct world *w = *state;
    enum { RATE = 2 * 1024 * 1024, MS = 1500 };
    egress_open(w);
    int inside = instance_bounded(w, 7, NULL, NULL, RATE);
    reaches(w, inside, INTERNET, PORT);
    close(accept(w->internet_tcp, NULL, NULL));
    const struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr = {htonl(INTERNET)}};
    enter(inside);
    int near = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    enter(w->machine);
    assert_int_equal(connect(near, (const struct sockaddr *)&to, sizeof to), 0);
    int far = accept(w->internet_tcp, NULL, NULL);
    assert_true(far >= 0);
    uint64_t out = pumped(near, far, MS), in = pumped(far, near, MS);
    print_message("of %d bytes: %llu out, %llu in\n", RATE / 1000 * MS, (unsigned long long)out,
                  (unsigned long long)in);
    /* A burst, and what waited when the other way began. */
    uint64_t most = (uint64_t)RATE * MS / 1000 + RATE / 4;
    assert_in_range(out, RATE / 4, most);
    assert_in_range(in, RATE / 4, most);
    close(near);
    close(far);
    /* Without a bound it is much faster. */
    int free_one = instance_new(w, 8, NULL, NULL);
    reaches(w, free_one, INTERNET, PORT);
    close(accept(w->internet_tcp, NULL, NULL));
    enter(free_one);
    near = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    enter(w->machine);
    assert_int_equal(connect(near, (const struct sockaddr *)&to, sizeof to), 0);
    far = accept(w->internet_tcp, NULL, NULL);
    assert_true(pumped(near, far, MS) > 2 * most);
    close(near);
    close(far);
    close(inside);
    close(free_one);
}

/* What stands here and must not be reached; the control reaches all of it. */
static const struct {
    const char *name;
    uint32_t address;
} forbidden[] = {
    {"metadata on the machine", METADATA},
    {"metadata behind the default route", FAR_METADATA},
    {"the machine by its public address", INTERNET_HOST},
    {"the machine by its private address", LAN - 1},
    {"the machine's end of the link", 0},
    {"a private network", LAN},
    {"a sibling", 1},
};

static uint32_t address_of(const struct world *w, size_t row)
{
    const struct net_site *site = net_egress_site(w->egress);
    switch (forbidden[row].address) {
    case 0:
        return net_host_address(site, 7);
    case 1:
        return net_instance_address(site, 8);
    default:
        return forbidden[row].address;
    }
}

/* Only the machine's table knows its public addresses. */
static void every_class_is_denied_but(struct world *w, int inside, uint32_t except)
{
    for (size_t i = 0; i < ARRAY_SIZE(forbidden); i++) {
        if (forbidden[i].address == except)
            continue;
        uint32_t address = address_of(w, i);
        if (connects(w, inside, address, PORT) == 0)
            fail_msg("reached: %s", forbidden[i].name);
        if (try_from(w, inside, address, PORT, true) == 0)
            fail_msg("reached as ::ffff: %s", forbidden[i].name);
    }
}

static void every_class_is_denied(struct world *w, int inside)
{
    every_class_is_denied_but(w, inside, UINT32_MAX);
}

static void namespace_rules_delete(const struct world *w, int namespace_fd)
{
    struct err e;
    enter(namespace_fd);
    assert_int_equal(net_nft_run("delete table inet skerry\n", &e), 0);
    enter(w->machine);
}

/* Each layer alone suffices; without both, the same probes get through. */
static void what_is_always_denied_is_denied_by_either_layer(void **state)
{
    struct world *w = *state;
    struct err e;
    egress_open(w);
    int inside = instance_new(w, 7, NULL, NULL), sibling = instance_new(w, 8, NULL, NULL);
    (void)listen_in(w, sibling, PORT);
    every_class_is_denied(w, inside);
    namespace_rules_delete(w, inside);
    every_class_is_denied(w, inside);
    reaches(w, inside, INTERNET, PORT);
    close(inside);
    /* The other layer: the machine's table is gone, the instance's rules hold. */
    inside = instance_new(w, 7, NULL, NULL);
    assert_int_equal(net_nft_run("delete table inet skerry\n", &e), 0);
    every_class_is_denied_but(w, inside, INTERNET_HOST);
    /* The control. */
    namespace_rules_delete(w, inside);
    namespace_rules_delete(w, sibling);
    assert_int_equal(net_nft_run("table ip t { chain n { type nat hook postrouting priority 100; "
                                 "masquerade; }; }",
                                 &e),
                     0);
    enter(w->machine);
    int fd = open("/proc/sys/net/ipv4/conf/all/forwarding", O_WRONLY | O_CLOEXEC);
    assert_int_equal(write(fd, "1", 1), 1);
    close(fd);
    for (size_t i = 0; i < ARRAY_SIZE(forbidden); i++) {
        int sys = connects(w, inside, address_of(w, i), PORT);
        if (sys != 0)
            fail_msg("the control does not reach %s: %s", forbidden[i].name, strerror(sys));
    }
    close(inside);
    close(sibling);
}

static void a_workloads_lists_choose_and_deny_wins(void **state)
{
    struct world *w = *state;
    egress_open(w);
    int only_port = instance_new(w, 1, "203.0.113.0/24:80", NULL);
    reaches(w, only_port, INTERNET, PORT);
    assert_int_equal(connects(w, only_port, INTERNET, PORT_OTHER), EHOSTUNREACH);
    int elsewhere = instance_new(w, 2, "198.51.100.0/24", NULL);
    assert_int_equal(connects(w, elsewhere, INTERNET, PORT), EHOSTUNREACH);
    int denied = instance_new(w, 3, "203.0.113.0/24", "203.0.113.3:81");
    reaches(w, denied, INTERNET, PORT);
    assert_int_equal(connects(w, denied, INTERNET, PORT_OTHER), EHOSTUNREACH);
    int named = instance_new(w, 4, "example.org:80", NULL);
    assert_int_equal(connects(w, named, INTERNET, PORT), EHOSTUNREACH);
    const uint32_t answers[] = {INTERNET, METADATA, LAN};
    struct err e;
    for (int round = 0; round < 2; round++)
        if (net_egress_allow(w->egress, named, answers, ARRAY_SIZE(answers), PORT, 30, &e) != 0)
            fail_msg("%s", e.msg);
    reaches(w, named, INTERNET, PORT);
    assert_int_equal(connects(w, named, INTERNET, PORT_OTHER), EHOSTUNREACH);
    /* A name that answers with what is denied (rebinding) opens nothing. */
    assert_int_not_equal(connects(w, named, METADATA, PORT), 0);
    assert_int_not_equal(connects(w, named, LAN, PORT), 0);
    int all[] = {only_port, elsewhere, denied, named};
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        close(all[i]);
}

static void list_set(struct field_list *list, const char *item)
{
    list->items = calloc(1, sizeof *list->items);
    list->items[0] = strdup(item);
    list->count = 1;
}

static void root_can_permit_by_name(void **state)
{
    struct world *w = *state;
    list_set(&w->config.destinations, "10.77.0.0/16:80");
    static const char *const uplinks[] = {"wan0", "lan0"};
    w->config.sandbox.uplinks.items = calloc(2, sizeof(char *));
    for (size_t i = 0; i < 2; i++)
        w->config.sandbox.uplinks.items[i] = strdup(uplinks[i]);
    w->config.sandbox.uplinks.count = 2;
    egress_open(w);
    int inside = instance_new(w, 1, NULL, NULL);
    reaches(w, inside, LAN, PORT);
    reaches(w, inside, LAN - 1, PORT); /* the machine, by that network */
    assert_int_not_equal(connects(w, inside, METADATA, PORT), 0);
    assert_int_not_equal(connects(w, inside, INTERNET_HOST, PORT), 0);
    close(inside);
}

static bool forwards(const char *name)
{
    char path[96], value = '?';
    text_format(path, sizeof path, "/proc/sys/net/ipv4/conf/%s/forwarding", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && read(fd, &value, 1) == 1);
    close(fd);
    return value == '1';
}

/* An interface that we switched on forwards for instances alone; and all is undone at the end. */
static void the_machine_becomes_no_router_and_is_left_as_it_was(void **state)
{
    struct world *w = *state;
    CLEANUP_FREE char *before = NULL, *after = NULL;
    struct err e;
    assert_int_equal(net_nft_read("list ruleset", &before, &e), 0);
    assert_false(forwards("wan0"));
    egress_open(w);
    assert_true(forwards("wan0"));
    assert_false(forwards("all"));
    assert_false(forwards("lan0"));
    /* From the internet into the private network, through us. */
    enter(w->internet);
    default_route("out0", INTERNET_HOST);
    enter(w->lan);
    default_route("out0", LAN - 1);
    enter(w->machine);
    assert_int_not_equal(connects(w, w->internet, LAN, PORT), 0);
    int inside = instance_new(w, 1, NULL, NULL);
    (void)listen_in(w, inside, PORT);
    assert_int_not_equal(
        connects(w, w->internet, net_instance_address(net_egress_site(w->egress), 1), PORT), 0);
    /* A runner that dies leaves the table, the next one knows what was switched. */
    net_egress_close(steal_pointer(&w->egress), true);
    assert_true(forwards("wan0"));
    every_class_is_denied((egress_open(w), w), inside);
    reaches(w, inside, INTERNET, PORT);
    /* Its listener holds the namespace too. */
    memory_close(&w->listeners[--w->listener_count]);
    close(inside);
    net_egress_close(steal_pointer(&w->egress), false);
    assert_false(forwards("wan0"));
    assert_int_equal(net_nft_read("list ruleset", &after, &e), 0);
    assert_string_equal(before, after);
}

static void what_somebody_removed_is_put_back_before_the_next_link(void **state)
{
    struct world *w = *state;
    struct err e;
    egress_open(w);
    assert_int_equal(net_nft_run("flush ruleset\n", &e), 0);
    int inside = instance_new(w, 7, NULL, NULL), sibling = instance_new(w, 8, NULL, NULL);
    (void)listen_in(w, sibling, PORT);
    namespace_rules_delete(w, inside);
    every_class_is_denied(w, inside);
    close(inside);
    close(sibling);
    memory_close(&w->listeners[--w->listener_count]);
    net_egress_close(steal_pointer(&w->egress), false);
    assert_false(forwards("wan0"));
}

static void many_come_and_go(void **state)
{
    struct world *w = *state;
    egress_open(w);
    uint64_t begun = clock_monotonic_us();
    enum { ROUNDS = 50 };
    for (int i = 0; i < ROUNDS; i++) {
        int inside = instance_new(w, (uint32_t)i, NULL, NULL);
        close(inside);
    }
    uint64_t between = clock_monotonic_us();
    for (int i = 0; i < ROUNDS; i++)
        close(namespace_new(w));
    uint64_t bare = clock_monotonic_us() - between;
    print_message("a namespace: %.2f ms, with rules and link: %.2f ms\n",
                  (double)bare / 1000 / ROUNDS, (double)(between - begun) / 1000 / ROUNDS);
    /* A place whose link is not gone yet. */
    close(instance_new(w, 3, NULL, NULL));
    int inside = instance_new(w, 3, NULL, NULL);
    reaches(w, inside, INTERNET, PORT);
    close(inside);
}

static void a_foreign_policy_is_named_with_its_remedy(void **state)
{
    struct world *w = *state;
    struct err e;
    assert_int_equal(net_nft_run("table ip filter { chain DOCKER-USER { }; chain FORWARD { type "
                                 "filter hook forward priority 0; policy drop; jump DOCKER-USER; "
                                 "}; }",
                                 &e),
                     0);
    egress_open(w);
    const char *warning = net_egress_warning(w->egress);
    assert_non_null(warning);
    assert_non_null(strstr(warning, "iptables -I DOCKER-USER -i skv0-+ -j ACCEPT"));
    int inside = instance_new(w, 7, NULL, NULL);
    assert_int_not_equal(connects(w, inside, INTERNET, PORT), 0);
    assert_int_equal(net_nft_run("insert rule ip filter DOCKER-USER iifname \"skv0-*\" accept\n"
                                 "insert rule ip filter DOCKER-USER oifname \"skv0-*\" ct state "
                                 "established,related accept\n",
                                 &e),
                     0);
    reaches(w, inside, INTERNET, PORT);
    close(inside);
    net_egress_close(steal_pointer(&w->egress), true);
    egress_open(w);
    assert_null(net_egress_warning(w->egress));
}

static void what_is_not_allowed_any_more_is_undone(void **state)
{
    struct world *w = *state;
    CLEANUP_FREE char *rules = NULL;
    struct err e;
    egress_open(w);
    net_egress_close(steal_pointer(&w->egress), true);
    assert_true(forwards("wan0"));
    w->config.egress = false;
    assert_int_equal(net_egress_open(&w->egress, w->network, &w->config, true, &e), 0);
    assert_non_null(strstr(net_egress_refusal(w->egress), "set allow.egress"));
    assert_false(forwards("wan0"));
    assert_int_equal(net_nft_read("list ruleset", &rules, &e), 0);
    assert_string_equal(rules, "");
}

static void without_a_way_out_of_the_machine_it_is_refused(void **state)
{
    struct world *w = *state;
    struct err e;
    list_set(&w->config.sandbox.uplinks, "nothere0");
    assert_int_equal(net_egress_open(&w->egress, w->network, &w->config, true, &e), 0);
    assert_non_null(net_egress_refusal(w->egress));
    assert_non_null(strstr(net_egress_refusal(w->egress), "nothere0"));
    struct net_policy policy = {.allow_count = 0};
    int fd = namespace_new(w);
    assert_int_equal(net_egress_attach(w->egress, fd, 1, &policy, &e), -(int)ERR_UNSUPPORTED);
    close(fd);
}

#define EACH(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH(the_internet_is_reached_under_the_address_of_the_machine),
        EACH(bandwidth_is_bounded_each_way),
        EACH(what_is_always_denied_is_denied_by_either_layer),
        EACH(a_workloads_lists_choose_and_deny_wins),
        EACH(root_can_permit_by_name),
        EACH(the_machine_becomes_no_router_and_is_left_as_it_was),
        EACH(what_somebody_removed_is_put_back_before_the_next_link),
        EACH(many_come_and_go),
        EACH(a_foreign_policy_is_named_with_its_remedy),
        EACH(what_is_not_allowed_any_more_is_undone),
        EACH(without_a_way_out_of_the_machine_it_is_refused),
    };
    return cmocka_run_group_tests_name("net egress", tests, NULL, NULL);
}
