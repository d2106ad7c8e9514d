#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent.pb-c.h"
#include "sandbox/shared/wire.h"

struct pair {
    int left, right;
};

static int pair_open(void **state)
{
    static struct pair pair;
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
        return -1;
    pair = (struct pair){.left = fds[0], .right = fds[1]};
    *state = &pair;
    return 0;
}

static int pair_close(void **state)
{
    struct pair *pair = *state;
    memory_close(&pair->left);
    memory_close(&pair->right);
    return 0;
}

static void send_signal_verb(int socket, uint64_t seq, const int *fds, size_t count)
{
    Skerry__Agent__Signal verb = SKERRY__AGENT__SIGNAL__INIT;
    verb.signal = 15;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.seq = seq;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_SIGNAL;
    message.signal = &verb;
    struct err e = {0};
    assert_int_equal(wire_send(socket, &message.base, fds, count, &e), 0);
}

static int descriptors_open(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Why somebody ends is often what it says last, with a message of ours still unread. */
static void what_was_said_last_comes_after_the_reset(void **state)
{
    struct pair *pair = *state;
    uint8_t data[128];
    int fds[4];
    size_t length = 0, count = 0;
    struct err e = {0};
    send_signal_verb(pair->left, 8, NULL, 0);
    send_signal_verb(pair->right, 9, NULL, 0);
    memory_close(&pair->left);
    assert_int_equal(wire_receive(pair->right, data, sizeof data, &length, fds, 4, &count, &e),
                     -ERR_UNAVAILABLE);
    assert_int_equal(e.sys, ECONNRESET);
    assert_int_equal(wire_receive(pair->right, data, sizeof data, &length, fds, 4, &count, &e), 0);
    e = (struct err){0};
    assert_int_equal(wire_receive(pair->right, data, sizeof data, &length, fds, 4, &count, &e),
                     -ERR_UNAVAILABLE);
    assert_int_equal(e.sys, 0);
}

static void message_and_descriptors_arrive(void **state)
{
    struct pair *pair = *state;
    CLEANUP_FD int file = open("/dev/null", O_RDONLY);
    const int sent[] = {file, file};
    send_signal_verb(pair->left, 7, sent, 2);
    uint8_t data[128];
    size_t length = 0, count = 0;
    int fds[4];
    struct err e = {0};
    assert_int_equal(wire_receive(pair->right, data, sizeof data, &length, fds, 4, &count, &e), 0);
    assert_int_equal(count, 2);
    Skerry__Agent__ToAgent *got = skerry__agent__to_agent__unpack(NULL, length, data);
    assert_non_null(got);
    assert_int_equal(got->seq, 7);
    assert_int_equal(got->verb_case, SKERRY__AGENT__TO_AGENT__VERB_SIGNAL);
    skerry__agent__to_agent__free_unpacked(got, NULL);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
        close(fds[i]);
    }
}

static void too_many_descriptors_are_closed_and_refused(void **state)
{
    struct pair *pair = *state;
    CLEANUP_FD int file = open("/dev/null", O_RDONLY);
    int sent[WIRE_DESCRIPTORS_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(sent); i++)
        sent[i] = file;
    int before = descriptors_open();
    uint8_t data[128];
    size_t length = 0, count = 0;
    int fds[2];
    struct err e = {0};
    for (size_t n = 1; n + 2 <= ARRAY_SIZE(sent); n += 21) {
        send_signal_verb(pair->left, 1, sent, n + 2);
        assert_int_equal(wire_receive(pair->right, data, sizeof data, &length, fds, 2, &count, &e),
                         -ERR_PROTOCOL);
    }
    assert_int_equal(descriptors_open(), before);
}

static void long_datagram_is_refused(void **state)
{
    struct pair *pair = *state;
    char bytes[64] = {1};
    assert_int_equal(send(pair->left, bytes, sizeof bytes, 0), sizeof bytes);
    uint8_t data[63];
    size_t length = 0, count = 0;
    struct err e = {0};
    assert_int_equal(wire_receive(pair->right, data, sizeof data, &length, NULL, 0, &count, &e),
                     -ERR_PROTOCOL);
}

static void empty_and_closed_are_told_apart(void **state)
{
    struct pair *pair = *state;
    uint8_t data[64];
    size_t length = 0, count = 0;
    struct err e = {0};
    assert_int_equal(wire_receive(pair->right, data, sizeof data, &length, NULL, 0, &count, &e),
                     -ERR_UNAVAILABLE);
    assert_int_equal(e.sys, EAGAIN);
    memory_close(&pair->left);
    e = (struct err){0};
    assert_int_equal(wire_receive(pair->right, data, sizeof data, &length, NULL, 0, &count, &e),
                     -ERR_UNAVAILABLE);
    assert_int_equal(e.sys, 0);
}

static void full_and_closed_receiver_never_block(void **state)
{
    struct pair *pair = *state;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.seq = 1;
    struct err e = {0};
    int rc = 0;
    for (int i = 0; i < 100000 && rc == 0; i++)
        rc = wire_send(pair->left, &message.base, NULL, 0, &e);
    assert_int_equal(rc, -ERR_UNAVAILABLE);
    assert_int_equal(e.sys, EAGAIN);
    memory_close(&pair->right);
    assert_int_equal(wire_send(pair->left, &message.base, NULL, 0, &e), -ERR_UNAVAILABLE);
    assert_int_equal(e.sys, EPIPE);
}

static void empty_message_is_refused(void **state)
{
    struct pair *pair = *state;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    struct err e = {0};
    assert_int_equal(wire_send(pair->left, &message.base, NULL, 0, &e), -ERR_INVALID);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, pair_open, pair_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(message_and_descriptors_arrive),
        TEST(what_was_said_last_comes_after_the_reset),
        TEST(too_many_descriptors_are_closed_and_refused),
        TEST(long_datagram_is_refused),
        TEST(empty_and_closed_are_told_apart),
        TEST(full_and_closed_receiver_never_block),
        TEST(empty_message_is_refused),
    };
    return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
