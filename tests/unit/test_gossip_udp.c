/* gossip over real sockets of this machine: five nodes on one loop. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "gossip/udp.h"

enum { NODES_MAX = 5, WAIT_MS = 20000 };
static const uint8_t key[SEAL_KEY_BYTES] = {7};

struct node {
    struct group *group;
    struct gossip *gossip;
    struct seal *seal;
    struct gossip_udp *udp;
    struct sockaddr_storage address;
    bool left, closed;
};

struct group {
    uv_loop_t loop;
    uv_timer_t beat; /* so that waiting looks at its condition now and then */
    size_t count;
    struct node nodes[NODES_MAX];
    bool v6; /* all on ::1, each with a port of its own; else each with an address of its own */
};

static unsigned port(void)
{
    return 20000 + (unsigned)getpid() % 20000;
}

static void closed_cb(void *user)
{
    struct node *n = user;
    n->closed = true;
}

static void left_cb(void *user)
{
    struct node *n = user;
    n->left = true;
    gossip_udp_close(n->udp, closed_cb, n);
}

static void feed(struct node *from, struct node *to)
{
    struct buffer state;
    buffer_init(&state, 1u << 20);
    assert_int_equal(gossip_sync_write(from->gossip, &state, NULL), 0);
    struct gossip_event event = {.kind = GOSSIP_SYNC,
                                 .from = (node_id)(from - from->group->nodes) + 1,
                                 .data = (const uint8_t *)state.data,
                                 .size = state.length};
    assert_int_equal(gossip_udp_step(to->udp, &event, NULL), 0);
    buffer_free(&state);
}

static void open_node(struct group *group, size_t i)
{
    struct node *n = &group->nodes[i];
    struct gossip_meta meta = {.name = "n"};
    struct gossip_options options;
    struct seal_options seal_options = {.self = i + 1, .boot = 1, .senders_max = 16};
    struct err e;
    char text[ADDRESS_TEXT_SIZE];
    *n = (struct node){.group = group};
    if (group->v6)
        (void)text_format(text, sizeof text, "[::1]:%u", port() + (unsigned)i);
    else
        (void)text_format(text, sizeof text, "127.0.0.%u:%u", (unsigned)i + 1, port());
    assert_int_equal(address_parse(&n->address, text, 0, &e), 0);
    gossip_options_defaults(&options);
    options.self.id = i + 1;
    options.self.boot = 1;
    options.self.meta = &meta;
    options.seed = i;
    assert_true(address_pack(&options.self.address, &n->address));
    assert_int_equal(gossip_new(&n->gossip, &options, &e), 0);
    assert_int_equal(seal_new(&n->seal, &seal_options, &e), 0);
    assert_int_equal(seal_key_add(n->seal, key, &e), 0);
    struct gossip_udp_options udp = {
        .gossip = n->gossip, .seal = n->seal, .bind = n->address, .user = n, .left = left_cb};
    if (gossip_udp_open(&n->udp, &group->loop, &udp, &e) != 0)
        fail_msg("%s", e.msg);
}

static void beat_cb(uv_timer_t *timer)
{
    (void)timer;
}

static void open_group(struct group *group, size_t count, bool v6)
{
    *group = (struct group){.count = count, .v6 = v6};
    assert_int_equal(uv_loop_init(&group->loop), 0);
    assert_int_equal(uv_timer_init(&group->loop, &group->beat), 0);
    assert_int_equal(uv_timer_start(&group->beat, beat_cb, 5, 5), 0);
    for (size_t i = 0; i < count; i++)
        open_node(group, i);
    for (size_t i = 1; i < count; i++)
        feed(&group->nodes[i], &group->nodes[0]);
    for (size_t i = 1; i < count; i++)
        feed(&group->nodes[0], &group->nodes[i]);
}

/* False after WAIT_MS. */
static bool wait_until(struct group *group, bool (*done)(const struct group *group))
{
    uint64_t end_ms = clock_monotonic_ms() + WAIT_MS;
    while (!done(group) && clock_monotonic_ms() < end_ms)
        (void)uv_run(&group->loop, UV_RUN_ONCE);
    return done(group);
}

static void close_group(struct group *group)
{
    for (size_t i = 0; i < group->count; i++) {
        struct node *n = &group->nodes[i];
        if (!n->closed && !n->left)
            gossip_udp_close(n->udp, closed_cb, n);
    }
    uv_close((uv_handle_t *)&group->beat, NULL);
    assert_int_equal(uv_run(&group->loop, UV_RUN_DEFAULT), 0);
    assert_int_equal(uv_loop_close(&group->loop), 0);
    for (size_t i = 0; i < group->count; i++) {
        assert_true(group->nodes[i].closed);
        gossip_free(group->nodes[i].gossip);
        seal_free(group->nodes[i].seal);
    }
}

static bool all_see_last(const struct group *group, enum gossip_state state)
{
    for (size_t i = 0; i + 1 < group->count; i++) {
        struct gossip_member m;
        if (!gossip_member_get(group->nodes[i].gossip, group->count, &m) || m.state != state)
            return false;
    }
    return true;
}

static bool last_is_dead(const struct group *group)
{
    return all_see_last(group, GOSSIP_DEAD);
}

static bool last_has_left(const struct group *group)
{
    return all_see_last(group, GOSSIP_LEFT) && group->nodes[group->count - 1].closed;
}

static bool probed_much(const struct group *group)
{
    for (size_t i = 0; i < group->count; i++) {
        struct gossip_counts counts;
        gossip_counts(group->nodes[i].gossip, &counts);
        if (counts.probes < 8)
            return false;
    }
    return true;
}

static void nobody_died(const struct group *group, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct gossip_counts counts;
        gossip_counts(group->nodes[i].gossip, &counts);
        assert_int_equal(counts.deaths, 0);
        assert_int_equal(counts.malformed, 0);
        assert_int_equal(seal_count(group->nodes[i].seal, SEAL_FORGED), 0);
        assert_int_equal(seal_count(group->nodes[i].seal, SEAL_REPLAYED), 0);
        assert_true(seal_count(group->nodes[i].seal, SEAL_TAKEN) > 0);
    }
}

static void a_node_that_falls_silent_is_dead_to_all(void **state)
{
    struct group g;
    (void)state;
    open_group(&g, 5, false);
    assert_true(wait_until(&g, probed_much));
    nobody_died(&g, 5);
    gossip_udp_close(g.nodes[4].udp, closed_cb, &g.nodes[4]);
    g.nodes[4].left = true; /* closed already */
    uint64_t begin_ms = clock_monotonic_ms();
    assert_true(wait_until(&g, last_is_dead));
    print_message("dead to all after %u ms\n", (unsigned)(clock_monotonic_ms() - begin_ms));
    close_group(&g);
}

static void a_node_that_leaves_is_told_of_and_closes(void **state)
{
    struct group g;
    struct gossip_event leave = {.kind = GOSSIP_LEAVE};
    (void)state;
    open_group(&g, 3, false);
    assert_true(wait_until(&g, probed_much));
    assert_int_equal(gossip_udp_step(g.nodes[2].udp, &leave, NULL), 0);
    assert_true(wait_until(&g, last_has_left));
    nobody_died(&g, 3);
    close_group(&g);
}

static void ipv6_works_likewise(void **state)
{
    struct group g;
    (void)state;
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool there = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
    memory_close(&fd);
    if (!there) {
        print_message("skipped: this machine has no ::1\n");
        skip();
    }
    open_group(&g, 2, true);
    assert_true(wait_until(&g, probed_much));
    nobody_died(&g, 2);
    close_group(&g);
}

static bool all_have_come(const struct group *group)
{
    struct gossip_udp_counts counts;
    gossip_udp_counts(group->nodes[0].udp, &counts);
    return counts.received >= 6;
}

static void strangers_and_replays_are_refused_and_counted(void **state)
{
    struct group g;
    struct seal_options options = {.self = 9, .boot = 1, .senders_max = 2};
    struct seal *friend_seal = NULL, *stranger = NULL;
    uint8_t bytes[4096] = {1}, other_key[SEAL_KEY_BYTES] = {66};
    size_t size = 0;
    struct err e;
    (void)state;
    open_group(&g, 1, false);
    assert_int_equal(seal_new(&friend_seal, &options, &e), 0);
    assert_int_equal(seal_new(&stranger, &options, &e), 0);
    assert_int_equal(seal_key_add(friend_seal, key, &e), 0);
    assert_int_equal(seal_key_add(stranger, other_key, &e), 0);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const struct sockaddr *to = (const struct sockaddr *)&g.nodes[0].address;
    socklen_t length = sizeof(struct sockaddr_in);
    assert_true(fd >= 0);
    assert_true(sendto(fd, bytes, 3, 0, to, length) == 3);
    assert_true(sendto(fd, bytes, sizeof bytes, 0, to, length) == sizeof bytes);
    uint8_t packet[] = {5, 0, 0, 0};
    assert_int_equal(seal_packet(stranger, 1, 1, packet, sizeof packet, bytes, &size, &e), 0);
    assert_true(sendto(fd, bytes, size, 0, to, length) == (ssize_t)size);
    assert_int_equal(seal_packet(friend_seal, 1, 1, packet, sizeof packet, bytes, &size, &e), 0);
    assert_true(sendto(fd, bytes, size, 0, to, length) == (ssize_t)size);
    assert_true(sendto(fd, bytes, size, 0, to, length) == (ssize_t)size);
    bytes[size - 1] ^= 1;
    assert_true(sendto(fd, bytes, size, 0, to, length) == (ssize_t)size);
    assert_true(wait_until(&g, all_have_come));
    struct seal *s = g.nodes[0].seal;
    assert_int_equal(seal_count(s, SEAL_SHORT), 2);
    assert_int_equal(seal_count(s, SEAL_UNKNOWN_KEY), 1);
    assert_int_equal(seal_count(s, SEAL_TAKEN), 1);
    assert_int_equal(seal_count(s, SEAL_REPLAYED), 1);
    assert_int_equal(seal_count(s, SEAL_FORGED), 1);
    memory_close(&fd);
    seal_free(friend_seal);
    seal_free(stranger);
    close_group(&g);
}

static void public_and_taken_addresses_are_refused(void **state)
{
    struct group g;
    struct gossip_udp *udp = NULL;
    struct err e;
    (void)state;
    open_group(&g, 1, false);
    struct gossip_udp_options options = {.gossip = g.nodes[0].gossip, .seal = g.nodes[0].seal};
    static const char *const bad[] = {"8.8.8.8:7602", "0.0.0.0:7602", "[2001:db8::1]:7602"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(address_parse(&options.bind, bad[i], 0, NULL), 0);
        assert_int_equal(gossip_udp_open(&udp, &g.loop, &options, &e), -ERR_INVALID);
        assert_non_null(strstr(e.msg, bad[i]));
    }
    options.bind = g.nodes[0].address;
    assert_int_equal(gossip_udp_open(&udp, &g.loop, &options, &e), -ERR_EXISTS);
    close_group(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_node_that_falls_silent_is_dead_to_all),
        cmocka_unit_test(a_node_that_leaves_is_told_of_and_closes),
        cmocka_unit_test(ipv6_works_likewise),
        cmocka_unit_test(strangers_and_replays_are_refused_and_counted),
        cmocka_unit_test(public_and_taken_addresses_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
