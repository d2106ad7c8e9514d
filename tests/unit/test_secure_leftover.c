/* What a read of a stream leaves in OpenSSL's buffer, of which the socket does not tell. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/secure_internal.h"
#include "tests/lib/secure_pair.h"

enum { SENT = 1000, PIECE = 100 };

struct end {
    struct secure_stream *s;
    bool opened;
    size_t received;
};

static void read_piece(struct end *end)
{
    uint8_t bytes[PIECE];
    size_t count = 0;
    (void)secure_stream_read(end->s, bytes, sizeof bytes, &count);
    end->received += count;
}

static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    (void)writable;
    if (readable)
        read_piece(secure_stream_user(s));
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct end *end = secure_stream_user(s);
    end->opened = error == NULL;
}

static bool has_opened(void *user)
{
    return ((struct end *)user)->opened;
}

static bool has_accepted(void *user)
{
    return ((struct secure_world *)user)->accepted != NULL;
}

static bool has_all(void *user)
{
    return ((struct end *)user)->received == SENT;
}

static bool is_written(void *user)
{
    return secure_stream_pending(((struct end *)user)->s) == 0;
}

static void bytes_that_a_read_of_its_own_accord_left_are_told(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a = {0}, b = {0};
    struct err e;
    const struct secure_events events = {.opened = opened_cb, .ready = ready_cb};
    secure_world_open(&w);
    secure_world_listen(&w, 2, (struct secure_listen_options){.protocols = 1u << SECURE_JOIN});
    const struct secure_connect_options options = {.protocol = SECURE_JOIN,
                                                   .peer = 2,
                                                   .context = w.contexts[1],
                                                   .address = &w.address,
                                                   .events = events,
                                                   .user = &a};
    assert_int_equal(secure_stream_connect(&a.s, &w.loop, &options, &e), 0);
    assert_true(secure_world_wait(&w, has_accepted, &w));
    assert_true(secure_world_wait(&w, has_opened, &a));
    b.s = w.accepted;
    secure_stream_set_events(b.s, &events, &b);
    read_piece(&b); /* the socket has nothing */
    assert_int_equal(b.received, 0);
    uint8_t bytes[SENT] = {0};
    const struct iovec part = {bytes, sizeof bytes};
    size_t count;
    assert_int_equal(secure_stream_write(a.s, &part, 1, &count), SECURE_DONE);
    assert_int_equal(count, SENT);
    assert_true(secure_world_wait(&w, is_written, &a));
    read_piece(&b); /* now it has all, and nothing behind it */
    assert_int_equal(b.received, PIECE);
    secure_stream_want(b.s, SECURE_WANT_READ);
    assert_true(secure_world_wait(&w, has_all, &b));
    secure_stream_close(a.s, NULL);
    secure_stream_close(b.s, NULL);
    secure_world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_that_a_read_of_its_own_accord_left_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
