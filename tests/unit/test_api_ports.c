/* Connections to ports of an instance: here, ports of this machine's loopback. */
#include "tests/lib/api_client.h"
#include "tests/lib/api_frames.h"

#define EXEC_BLOCK 32768u /* a frame, with its head, that is pushed again and again */

static struct fake fake;
static struct instance_id instance;

static int setup(void **state)
{
    *state = &fake;
    fake_open(&fake, NULL);
    json_decref(client_json(&fake,
                            &(struct request){.method = "POST",
                                              .path = "/v1/workloads",
                                              .body = "id: hello\ncommand: [x]\nport: 80\n"},
                            200));
    (void)pthread_mutex_lock(&fake.lock);
    assert_int_equal(fake_instance(&fake, "hello", NULL, &instance), PROBLEM_NONE);
    (void)pthread_mutex_unlock(&fake.lock);
    return 0;
}

static int teardown(void **state)
{
    fake_close(*state);
    return 0;
}

static int listen_at(bool ipv6, unsigned *port)
{
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr *address = ipv6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
    socklen_t length = ipv6 ? sizeof v6 : sizeof v4;
    int fd = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, address, length), 0);
    assert_int_equal(listen(fd, 4), 0);
    assert_int_equal(getsockname(fd, address, &length), 0);
    *port = ntohs(ipv6 ? v6.sin6_port : v4.sin_port);
    return fd;
}

static void path_of(char out[128], unsigned port, const char *more)
{
    (void)text_format(out, 128, "/v1/instances/%s/connect?port=%u%s", instance.text, port, more);
}

/* Our side of a connection that was asked for: *port_fd is the code's. */
static int open_port(struct fake *f, bool ipv6, const char *more, int *port_fd)
{
    unsigned port;
    char path[128];
    int listener = listen_at(ipv6, &port);
    path_of(path, port, more);
    int fd = upgrade(f, path, "");
    *port_fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(*port_fd >= 0);
    (void)close(listener);
    return fd;
}

static void expect_end(int fd)
{
    struct frame frame = {0};
    char byte;
    assert_true(frame_read(fd, &frame));
    assert_int_equal(frame.type, 6);
    assert_string_equal(frame.data, "{}");
    assert_false(raw_read(fd, &byte, 1));
    (void)close(fd);
}

static void bytes_go_both_ways_and_either_side_ends_first(void **state)
{
    struct frame frame = {0};
    char got[8] = "";
    for (unsigned port_first = 0; port_first < 2; port_first++) {
        int port, fd = open_port(*state, false, "", &port);
        frame_send(fd, 0, "ping", 4);
        assert_true(raw_read(port, got, 4));
        assert_string_equal(got, "ping");
        if (port_first) {
            raw_send(port, "bye", 3);
            assert_int_equal(shutdown(port, SHUT_WR), 0);
        } else {
            frame_send(fd, 1, "", 0);
            assert_false(raw_read(port, got, 1));
            raw_send(port, "bye", 3);
            (void)close(port);
        }
        assert_true(frame_read(fd, &frame));
        assert_int_equal(frame.type, 2);
        assert_string_equal(frame.data, "bye");
        assert_true(frame_read(fd, &frame));
        assert_int_equal(frame.type, 2);
        assert_int_equal(frame.size, 0); /* it sends no more */
        if (port_first) {
            frame_send(fd, 0, "more", 4);
            frame_send(fd, 1, "", 0);
            assert_true(raw_read(port, got, 4));
            assert_string_equal(got, "more");
            assert_false(raw_read(port, got, 1));
            (void)close(port);
        }
        expect_end(fd);
    }
}

static void localhost_is_either_family_and_an_address_is_one(void **state)
{
    static const struct {
        bool ipv6;
        const char *host;
    } good[] = {{false, "&host=localhost"},
                {true, "&host=localhost"},
                {true, ""},
                {false, "&host=127.0.0.1"},
                {true, "&host=::1"}};
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        int port, fd = open_port(*state, good[i].ipv6, good[i].host, &port);
        (void)close(port);
        (void)close(fd);
    }
    static const struct {
        bool ipv6;
        const char *host;
    } bad[] = {{true, "&host=127.0.0.1"}, {false, "&host=::1"}};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        unsigned number;
        char path[128];
        int listener = listen_at(bad[i].ipv6, &number);
        path_of(path, number, bad[i].host);
        client_refused(
            *state,
            &(struct request){.method = "POST",
                              .path = path,
                              .headers = {"Connection: Upgrade", "Upgrade: skerry-exec/1"}},
            PROBLEM_INSTANCE_UNREACHABLE);
        (void)close(listener);
    }
}

static void nothing_but_a_port_of_the_loopback_is_asked_for(void **state)
{
    static const char *const paths[] = {"?port=0",
                                        "?port=65536",
                                        "?port=-1",
                                        "?port=x",
                                        "",
                                        "?port=80&host=127.0.0.2",
                                        "?port=80&host=0",
                                        "?port=80&host=",
                                        "?port=80&host=node2.example",
                                        "?port=80&host=%3a%3affff:127.0.0.1"};
    struct request q = {.method = "POST",
                        .headers = {"Connection: Upgrade", "Upgrade: skerry-exec/1"}};
    char path[128];
    q.path = path;
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        (void)text_format(path, sizeof path, "/v1/instances/%s/connect%s", instance.text, paths[i]);
        client_refused(*state, &q, PROBLEM_BAD_REQUEST);
    }
    path_of(path, 80, "");
    q.headers[0] = q.headers[1] = NULL;
    client_refused(*state, &q, PROBLEM_BAD_REQUEST); /* no upgrade */
    q.tcp = true;
    client_refused(*state, &q, PROBLEM_UNAUTHORIZED);
    q.tcp = false;
    q.path = "/v1/instances/0aaaaaaaaaaaaaaaa1/connect?port=80";
    q.headers[0] = "Connection: Upgrade";
    q.headers[1] = "Upgrade: skerry-exec/1";
    client_refused(*state, &q, PROBLEM_INSTANCE_UNKNOWN);
}

/* How much goes in before nothing more is taken. */
static size_t push(int fd, bool framed)
{
    char data[EXEC_BLOCK] = {0};
    size_t sent = 0;
    if (framed)
        data[3] = (char)((sizeof data - 5) >> 8), data[4] = (char)(sizeof data - 5);
    for (struct pollfd p = {.fd = fd, .events = POLLOUT}; poll(&p, 1, 300) == 1;) {
        ssize_t count = send(fd, data + sent % sizeof data, sizeof data - sent % sizeof data,
                             MSG_DONTWAIT | MSG_NOSIGNAL);
        assert_true(count > 0);
        sent += (size_t)count;
        assert_true(sent < 64u * 1024 * 1024);
    }
    return sent;
}

static void who_does_not_take_is_not_read_for(void **state)
{
    struct frame *frame = calloc(1, sizeof *frame);
    int port, fd = open_port(*state, false, "", &port);
    size_t out = push(port, false), in = push(fd, true);
    assert_true(in > 0);
    char *got = malloc(EXEC_BLOCK);
    for (size_t left = out; left > 0; left -= frame->size) {
        assert_true(frame_read(fd, frame));
        assert_int_equal(frame->type, 2);
        assert_in_range(frame->size, 1, left);
    }
    /* What was pushed as whole frames, without their heads. */
    for (size_t left = in / EXEC_BLOCK; left > 0; left--)
        assert_true(raw_read(port, got, EXEC_BLOCK - 5));
    free(got);
    free(frame);
    (void)close(port);
    (void)close(fd);
}

static void a_reset_is_told(void **state)
{
    struct frame frame = {0};
    int port, fd = open_port(*state, false, "", &port);
    const struct linger at_once = {.l_onoff = 1};
    (void)setsockopt(port, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    (void)close(port);
    assert_true(frame_read(fd, &frame));
    assert_int_equal(frame.type, 7);
    assert_non_null(strstr(frame.data, "instance_unreachable"));
    (void)close(fd);
}

static void a_client_that_leaves_or_sends_no_frame_ends_it(void **state)
{
    char byte;
    static const unsigned types[] = {2, 4, 5, 6, 9};
    int port, fd = open_port(*state, false, "", &port);
    (void)close(fd);
    assert_false(raw_read(port, &byte, 1));
    (void)close(port);
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        fd = open_port(*state, false, "", &port);
        frame_send(fd, types[i], "\0\1\0\1", 4);
        assert_false(raw_read(port, &byte, 1));
        (void)close(port);
        (void)close(fd);
    }
}

static void it_closes_while_connected(void **state)
{
    char byte;
    (void)state;
    fake_close(&fake);
    assert_int_equal(setup(state), 0);
    int port, fd = open_port(&fake, false, "", &port);
    fake_close(&fake);
    assert_false(raw_read(port, &byte, 1));
    assert_false(raw_read(fd, &byte, 1));
    (void)close(port);
    (void)close(fd);
    assert_int_equal(setup(state), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_go_both_ways_and_either_side_ends_first),
        cmocka_unit_test(localhost_is_either_family_and_an_address_is_one),
        cmocka_unit_test(nothing_but_a_port_of_the_loopback_is_asked_for),
        cmocka_unit_test(who_does_not_take_is_not_read_for),
        cmocka_unit_test(a_reset_is_told),
        cmocka_unit_test(a_client_that_leaves_or_sends_no_frame_ends_it),
        cmocka_unit_test(it_closes_while_connected),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
