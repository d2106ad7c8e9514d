/* Names inside instances, in the kernel. "The machine" is a network namespace of the test's own, "the
 * internet" with a resolver (tests/lib/dns_server.py) another. A process of the test's plays the runner;
 * this program is the forwarder too. What an instance asks goes by libc's own resolver. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/runner/config.h"
#include "sandbox/runner/net_dns.h"
#include "sandbox/runner/net_link.h"
#include "sandbox/runner/net_names.h"

#define PORT 80
#define PORT_OTHER 81
#define WAIT_MS 700
#define MACHINE 0xc6336406u  /* 198.51.100.6 */
#define INTERNET 0xc6336407u /* 198.51.100.7, what good.example.org is */
#define RESOLVER 0xc6336435u /* 198.51.100.53 */
#define LAN 0x0a4d0003u      /* 10.77.0.3, on the machine itself */
#define METADATA 0xa9fea9feu
#define FOUND_MAX 64

enum { OPEN, NAMED, BAD, FLOOD, NETWORKS, INSTANCES };
static const char *const allowed[INSTANCES] = {NULL, "good.example.org:80", "*.bad.example.org:80",
                                               NULL, "203.0.113.0/24:443"};

struct world {
    int machine, internet, listeners[4], namespaces[INSTANCES];
    struct network *network;
    pid_t resolver, runner;
};

/* --- the world ---------------------------------------------------------------------------------------- */

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

static void raise_with(const char *name, uint32_t address, uint32_t gateway)
{
    struct nl_sock *socket;
    struct err e;
    assert_int_equal(net_link_socket(&socket, &e), 0);
    if (net_link_raise(socket, name, address, &e) != 0 ||
        (gateway != 0 && net_link_default_route(socket, name, gateway, &e) != 0))
        fail_msg("%s", e.msg);
    net_link_socket_close(socket);
}

static int listen_here(uint16_t port)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&any, sizeof any), 0);
    assert_int_equal(listen(fd, 100), 0);
    return fd;
}

static void networks_make(struct world *w)
{
    struct nl_sock *socket;
    struct err e;
    assert_int_equal(unshare(CLONE_NEWNET), 0);
    w->internet = current();
    raise_with("lo", RESOLVER, 0);
    w->listeners[0] = listen_here(PORT);
    w->listeners[1] = listen_here(PORT_OTHER);
    assert_int_equal(unshare(CLONE_NEWNET), 0);
    w->machine = current();
    raise_with("lo", LAN, 0);
    raise_with("lo", METADATA, 0);
    w->listeners[2] = listen_here(PORT);
    assert_int_equal(net_link_socket(&socket, &e), 0);
    assert_int_equal(net_link_pair(socket, "wan0", "out0", w->internet, 0, &e), 0);
    net_link_socket_close(socket);
    enter(w->internet);
    raise_with("out0", INTERNET, MACHINE);
    enter(w->machine);
    raise_with("wan0", MACHINE, INTERNET);
}

static void resolver_start(struct world *w)
{
    int ends[2];
    char ready;
    w->listeners[3] = -1;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    w->resolver = fork();
    assert_true(w->resolver >= 0);
    if (w->resolver == 0) {
        if (setns(w->internet, CLONE_NEWNET) < 0 || dup2(ends[1], STDOUT_FILENO) < 0)
            _exit(1);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        execlp("python3", "python3", "tests/lib/dns_server.py", "198.51.100.53", (char *)NULL);
        _exit(1);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &ready, 1), 1);
    w->listeners[3] = ends[0]; /* it may write on */
}

/* --- the runner ------------------------------------------------------------------------------------------ */

static void guard_cb(struct loop_timer *timer);
static struct loop_timer guard;
static struct loop *guard_loop;
static struct net_names *guard_names;

static void guard_cb(struct loop_timer *timer)
{
    struct err e;
    net_names_guard(guard_names);
    if (loop_timer_start(guard_loop, timer, clock_boot_ms() + 200, guard_cb, &e) < 0)
        _exit(1);
}

/* Within the runner's process: an exit code. `again`: the instances have their links already. */
static int runner_play(struct world *w, int ready, bool again)
{
    static struct net_policy policies[INSTANCES];
    static struct runner_config config;
    struct net_names_instance *instances[INSTANCES];
    struct net_egress *egress;
    struct err e;
    if (fields_defaults(runner_config_fields(), &config, &e) < 0)
        return 2;
    config.egress = true;
    char *resolver = (char *)(uintptr_t) "198.51.100.53";
    config.sandbox.resolvers = (struct field_list){.items = &resolver, .count = 1};
    if (net_egress_open(&egress, w->network, &config, true, &e) < 0 ||
        net_egress_refusal(egress) != NULL || loop_open(&guard_loop, 16, &e) < 0 ||
        net_names_open(&guard_names, guard_loop, w->network, egress, &config.sandbox.resolvers,
                       &e) < 0)
        return 3;
    for (uint32_t i = 0; i < INSTANCES; i++) {
        char *allow[] = {(char *)(uintptr_t)allowed[i]};
        if (net_policy_parse(&policies[i], net_egress_site(egress), allow, allowed[i] != NULL, NULL,
                             0, &e) < 0 ||
            (!again && net_egress_attach(egress, w->namespaces[i], i, &policies[i], &e) < 0) ||
            net_names_add(guard_names, "an instance", w->namespaces[i], &policies[i], &instances[i],
                          &e) < 0) {
            (void)fprintf(stderr, "%s\n", e.msg);
            return 4;
        }
    }
    guard_cb(&guard);
    if (write(ready, "r", 1) != 1)
        return 5;
    return loop_run(guard_loop, &e) == 0 ? 0 : 6;
}

static void runner_start(struct world *w, bool again)
{
    int ends[2];
    char ready;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    w->runner = fork();
    assert_true(w->runner >= 0);
    if (w->runner == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        _exit(runner_play(w, ends[1], again));
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &ready, 1), 1);
    close(ends[0]);
}

static void end(pid_t *pid)
{
    if (*pid > 0) {
        kill(*pid, SIGKILL);
        assert_int_equal(waitpid(*pid, NULL, 0), *pid);
    }
    *pid = 0;
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct err e;
    assert_non_null(w);
    networks_make(w);
    assert_int_equal(network_open(&w->network, &e), 0);
    for (size_t i = 0; i < INSTANCES; i++)
        assert_int_equal(network_namespace_make(w->network, &w->namespaces[i], &e), 0);
    resolver_start(w);
    runner_start(w, false);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    end(&w->runner);
    end(&w->resolver);
    for (size_t i = 0; i < ARRAY_SIZE(w->listeners); i++)
        memory_close(&w->listeners[i]);
    for (size_t i = 0; i < INSTANCES; i++)
        memory_close(&w->namespaces[i]);
    network_close(w->network);
    memory_close(&w->internet);
    memory_close(&w->machine);
    free(w);
    return 0;
}

/* --- what an instance does ---------------------------------------------------------------------------------- */

/* An answer of getaddrinfo: 0 or its error, and what was found. */
struct found {
    int code;
    size_t count;
    uint32_t addresses[FOUND_MAX];
};

static void found_fill(struct found *f, const char *name)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
    f->code = getaddrinfo(name, "80", &hints, &list);
    for (struct addrinfo *a = list; a != NULL && f->count < FOUND_MAX; a = a->ai_next)
        if (a->ai_family == AF_INET)
            f->addresses[f->count++] =
                ntohl(((const struct sockaddr_in *)(const void *)a->ai_addr)->sin_addr.s_addr);
    if (list != NULL)
        freeaddrinfo(list);
}

static bool own_resolv_conf(void)
{
    static const char text[] = "nameserver 127.0.0.1\noptions timeout:3 attempts:1\n";
    char path[] = "/tmp/skerry-resolv-XXXXXX";
    int fd = mkstemp(path);
    bool good = fd >= 0 && write(fd, text, sizeof text - 1) == (ssize_t)sizeof text - 1 &&
                unshare(CLONE_NEWNS) == 0 &&
                mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
                mount(path, "/etc/resolv.conf", NULL, MS_BIND, NULL) == 0;
    unlink(path);
    return good;
}

/* By libc, in a process of its own within the instance's network. */
static struct found look_up(const struct world *w, int instance, const char *name)
{
    struct found f = {.code = 0};
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (!own_resolv_conf() || setns(w->namespaces[instance], CLONE_NEWNET) < 0)
            _exit(1);
        found_fill(&f, name);
        _exit(write(ends[1], &f, sizeof f) == (ssize_t)sizeof f ? 0 : 1);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &f, sizeof f), sizeof f);
    close(ends[0]);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    return f;
}

static void finds(const struct world *w, int instance, const char *name, uint32_t address)
{
    struct found f = look_up(w, instance, name);
    if (f.code != 0)
        fail_msg("%s: %s", name, gai_strerror(f.code));
    assert_int_equal(f.count, 1);
    assert_int_equal(f.addresses[0], address);
}

static int connects(const struct world *w, int instance, uint32_t address, uint16_t port)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(address)}};
    enter(w->namespaces[instance]);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    enter(w->machine);
    assert_true(fd >= 0);
    int sys = connect(fd, (struct sockaddr *)&to, sizeof to) == 0 ? 0 : errno;
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

/* A new link passes nothing until the kernel has seen its carrier. */
static void reaches(const struct world *w, int instance, uint32_t address, uint16_t port)
{
    uint64_t until = clock_monotonic_ms() + 10000;
    int sys = connects(w, instance, address, port);
    while (sys == ETIMEDOUT && clock_monotonic_ms() < until)
        sys = connects(w, instance, address, port);
    if (sys != 0)
        fail_msg("port %u is not reached: %s", port, strerror(sys));
}

/* --- tests ---------------------------------------------------------------------------------------------------- */

static void names_are_answered_over_udp_and_tcp(void **state)
{
    struct world *w = *state;
    finds(w, OPEN, "good.example.org", INTERNET);
    finds(w, OPEN, "GOOD.example.org", INTERNET);
    finds(w, OPEN, "alias.example.org", INTERNET);
    /* Too large for what libc takes over UDP, then also for what the resolver gives over it. */
    assert_int_equal(look_up(w, OPEN, "big.example.org").count, 40);
    assert_int_equal(look_up(w, OPEN, "huge.example.org").count, NET_DNS_ADDRESSES_MAX);
    assert_int_equal(look_up(w, OPEN, "nothere.example.org").code, EAI_NONAME);
}

static void a_rule_opens_what_was_answered_and_nothing_else(void **state)
{
    struct world *w = *state;
    reaches(w, OPEN, INTERNET, PORT);
    assert_int_equal(connects(w, NAMED, INTERNET, PORT), EHOSTUNREACH);
    finds(w, NAMED, "good.example.org", INTERNET);
    reaches(w, NAMED, INTERNET, PORT);
    assert_int_equal(connects(w, NAMED, INTERNET, PORT_OTHER), EHOSTUNREACH);
    assert_int_equal(connects(w, NAMED, RESOLVER, PORT), EHOSTUNREACH);
    /* A neighbour has nothing of it. */
    assert_int_equal(connects(w, BAD, INTERNET, PORT), EHOSTUNREACH);
}

static void names_without_a_rule_do_not_exist(void **state)
{
    struct world *w = *state;
    static const char *const names[] = {"also.good.example.org", "alias.example.org", "example.org",
                                        "xgood.example.org"};
    struct found before = look_up(w, OPEN, "count.example.org");
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        assert_int_equal(look_up(w, NAMED, names[i]).code, EAI_NONAME);
    assert_int_equal(look_up(w, NETWORKS, "good.example.org").code, EAI_NONAME);
    /* And nobody is told that they were asked for. */
    struct found after = look_up(w, OPEN, "count.example.org");
    assert_true(after.addresses[0] - before.addresses[0] <= 3); /* libc asks for both kinds */
}

static void an_answer_with_what_is_denied_opens_nothing(void **state)
{
    struct world *w = *state;
    finds(w, BAD, "meta.bad.example.org", METADATA);
    finds(w, BAD, "lan.bad.example.org", LAN);
    assert_int_not_equal(connects(w, BAD, METADATA, PORT), 0);
    assert_int_not_equal(connects(w, BAD, LAN, PORT), 0);
    finds(w, OPEN, "meta.bad.example.org", METADATA);
    assert_int_not_equal(connects(w, OPEN, METADATA, PORT), 0);
}

static void answers_that_fit_no_question_are_dropped(void **state)
{
    finds(*state, OPEN, "spoof.example.org", INTERNET);
}

/* As many questions as can be sent, for names that are answered or for those that never are. */
static pid_t flood_start(const struct world *w, const char *name)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(53), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    uint8_t data[100] = {0, 1, 1, 0, 0, 1};
    size_t at = 12;
    for (const char *part = name; *part != '\0';) {
        size_t length = strcspn(part, ".");
        data[at++] = (uint8_t)length;
        memcpy(data + at, part, length);
        at += length;
        part += length + (part[length] == '.');
    }
    data[at + 2] = data[at + 4] = 1;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (setns(w->namespaces[FLOOD], CLONE_NEWNET) < 0)
        _exit(1);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    for (;;)
        (void)sendto(fd, data, at + 5, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to);
}

static void a_flood_is_bounded_and_disturbs_no_neighbour(void **state)
{
    struct world *w = *state;
    static const char *const names[] = {"good.example.org", "a.silent.example.org"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        uint32_t before = look_up(w, OPEN, "count.example.org").addresses[0];
        pid_t flood = flood_start(w, names[i]);
        uint64_t begun = clock_monotonic_ms();
        for (int n = 0; n < 5; n++) {
            uint64_t asked = clock_monotonic_ms();
            finds(w, OPEN, "good.example.org", INTERNET);
            assert_true(clock_monotonic_ms() - asked < 1000);
            usleep(200 * 1000);
        }
        end(&flood);
        uint64_t seconds = (clock_monotonic_ms() - begun) / 1000 + 1;
        uint32_t all = look_up(w, OPEN, "count.example.org").addresses[0] - before;
        print_message("%u questions got out in %llu s\n", all, (unsigned long long)seconds);
        /* 100 at once, 20 a second, asked twice when they are not answered; and our own. */
        assert_true(all < 2 * (100 + 20 * seconds) + 30);
    }
}

static pid_t child_of(pid_t parent)
{
    char path[64], text[32] = "";
    text_format(path, sizeof path, "/proc/%d/task/%d/children", (int)parent, (int)parent);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_true(read(fd, text, sizeof text - 1) >= 0);
    close(fd);
    return (pid_t)strtol(text, NULL, 10);
}

static void finds_again(const struct world *w, int instance, const char *name, uint32_t address)
{
    uint64_t until = clock_monotonic_ms() + 10000;
    while (look_up(w, instance, name).code != 0 && clock_monotonic_ms() < until)
        usleep(100 * 1000);
    finds(w, instance, name, address);
}

static void a_forwarder_that_died_is_followed_by_another(void **state)
{
    struct world *w = *state;
    pid_t first = child_of(w->runner);
    finds(w, NAMED, "good.example.org", INTERNET);
    assert_true(first > 1);
    assert_int_equal(kill(first, SIGKILL), 0);
    finds_again(w, NAMED, "good.example.org", INTERNET);
    finds(w, OPEN, "good.example.org", INTERNET);
    assert_int_not_equal(child_of(w->runner), first);
}

static void instances_of_a_runner_that_died_get_names_from_the_next(void **state)
{
    struct world *w = *state;
    end(&w->runner);
    assert_int_equal(connects(w, NAMED, INTERNET, PORT), EHOSTUNREACH);
    runner_start(w, true);
    finds_again(w, NAMED, "good.example.org", INTERNET);
    reaches(w, NAMED, INTERNET, PORT);
    assert_int_equal(look_up(w, NAMED, "alias.example.org").code, EAI_NONAME);
}

/* What the process has given away. */
static void the_forwarder_is_nobody(void **state)
{
    struct world *w = *state;
    char path[64], text[4096];
    text_format(path, sizeof path, "/proc/%d/status", (int)child_of(w->runner));
    finds(w, OPEN, "good.example.org", INTERNET);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, sizeof text - 1);
    assert_true(n > 0);
    close(fd);
    text[n] = '\0';
    assert_non_null(strstr(text, "Uid:\t65534\t65534\t65534\t65534"));
    assert_non_null(strstr(text, "Groups:\t \n"));
    assert_non_null(strstr(text, "CapPrm:\t0000000000000000"));
    assert_non_null(strstr(text, "CapBnd:\t0000000000000000"));
    assert_non_null(strstr(text, "NoNewPrivs:\t1"));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_non_null(strstr(text, "Seccomp:\t2"));
#endif
}

#define EACH(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], NET_NAMES_ARGUMENT) == 0)
        return net_names_main();
    const struct CMUnitTest tests[] = {
        EACH(names_are_answered_over_udp_and_tcp),
        EACH(a_rule_opens_what_was_answered_and_nothing_else),
        EACH(names_without_a_rule_do_not_exist),
        EACH(an_answer_with_what_is_denied_opens_nothing),
        EACH(answers_that_fit_no_question_are_dropped),
        EACH(a_flood_is_bounded_and_disturbs_no_neighbour),
        EACH(a_forwarder_that_died_is_followed_by_another),
        EACH(instances_of_a_runner_that_died_get_names_from_the_next),
        EACH(the_forwarder_is_nobody),
    };
    return cmocka_run_group_tests_name("net names", tests, NULL, NULL);
}
