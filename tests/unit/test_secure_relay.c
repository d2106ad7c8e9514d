#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/secure_relay.h"
#include "tests/lib/secure_pair.h"

struct side {
    struct secure_relay *relay;
    struct secure_stream *stream; /* while there is no relay */
    int fd;
    bool opened, ended, closed;
    bool broken;
    struct err why;
    size_t sent, received, to_send, to_receive;
    bool eof, garbled;
};

struct both {
    struct secure_world w;
    struct side a, b;
};

static uint8_t byte_at(size_t index)
{
    return (uint8_t)(index * 13 + (index >> 9));
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct side *side = secure_stream_user(s);
    assert_true(error == NULL);
    side->opened = true;
}

static void no_ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    (void)s;
    (void)readable;
    (void)writable;
}

static void ended_cb(void *user, const struct err *why)
{
    struct side *side = user;
    assert_false(side->ended);
    side->ended = true;
    side->broken = why != NULL;
    if (why != NULL)
        side->why = *why;
}

static void closed_cb(void *user)
{
    ((struct side *)user)->closed = true;
}

static bool are_open(void *user)
{
    const struct both *both = user;
    return both->a.opened && both->w.accepted != NULL;
}

/* A machine that is busy elsewhere for so long makes these tests fail. */
#define SILENT_MS 800u

static void relay(struct both *both, struct side *side)
{
    struct err e;
    struct secure_relay_options options = {
        .beat_ms = 20, .silent_ms = SILENT_MS, .ended = ended_cb, .user = side};
    assert_int_equal(
        secure_relay_open(&side->relay, &both->w.loop, side->stream, &options, &side->fd, &e), 0);
    side->stream = NULL;
}

static void open_streams(struct both *both)
{
    struct err e;
    memset(both, 0, sizeof *both);
    both->a.fd = both->b.fd = -1;
    secure_world_open(&both->w);
    secure_world_listen(&both->w, 2,
                        (struct secure_listen_options){.protocols = 1u << SECURE_RAFT});
    struct secure_connect_options options = {
        .context = both->w.contexts[1],
        .address = &both->w.address,
        .protocol = SECURE_RAFT,
        .peer = 2,
        .events = {.opened = opened_cb, .ready = no_ready_cb},
        .user = &both->a,
    };
    assert_int_equal(secure_stream_connect(&both->a.stream, &both->w.loop, &options, &e), 0);
    assert_true(secure_world_wait(&both->w, are_open, both));
    both->b.stream = both->w.accepted;
}

static void open_both(struct both *both)
{
    open_streams(both);
    relay(both, &both->a);
    relay(both, &both->b);
    assert_int_equal(secure_relay_peer(both->b.relay), 1);
    assert_true(secure_relay_trusted(both->b.relay));
}

static void close_side(struct side *side)
{
    memory_close(&side->fd);
    if (side->relay != NULL)
        secure_relay_close(side->relay, closed_cb);
    if (side->stream != NULL)
        secure_stream_close(side->stream, NULL);
}

static void close_both(struct both *both)
{
    bool a = both->a.relay != NULL, b = both->b.relay != NULL;
    close_side(&both->a);
    close_side(&both->b);
    secure_world_close(&both->w);
    assert_true(both->a.closed == a && both->b.closed == b);
}

/* The code at a plain end: writes and reads what is possible. */
static void work(struct side *side)
{
    uint8_t bytes[5000];
    while (side->sent < side->to_send) {
        size_t size = side->to_send - side->sent;
        if (size > sizeof bytes)
            size = sizeof bytes;
        for (size_t i = 0; i < size; i++)
            bytes[i] = byte_at(side->sent + i);
        ssize_t n = send(side->fd, bytes, size, MSG_NOSIGNAL);
        if (n <= 0)
            break;
        side->sent += (size_t)n;
    }
    while (!side->eof) {
        ssize_t n = recv(side->fd, bytes, sizeof bytes, 0);
        if (n <= 0) {
            side->eof = n == 0;
            break;
        }
        for (ssize_t i = 0; i < n; i++)
            side->garbled |= bytes[i] != byte_at(side->received + (size_t)i);
        side->received += (size_t)n;
    }
}

static bool exchanged(void *user)
{
    struct both *both = user;
    work(&both->a);
    work(&both->b);
    return both->a.received == both->b.to_send && both->b.received == both->a.to_send;
}

static void bytes_pass_unchanged(void **state)
{
    (void)state;
    struct both both;
    open_both(&both);
    both.a.to_send = 3000001;
    both.b.to_send = 70000;
    assert_true(secure_world_wait(&both.w, exchanged, &both));
    assert_false(both.a.garbled || both.b.garbled || both.a.ended || both.b.ended);
    close_both(&both);
}

struct passed {
    uv_timer_t timer;
    bool done;
};

static void passed_cb(uv_timer_t *timer)
{
    container_of(timer, struct passed, timer)->done = true;
}

static bool is_passed(void *user)
{
    return ((struct passed *)user)->done;
}

static void a_quiet_pair_lives_by_beats(void **state)
{
    (void)state;
    struct both both;
    struct passed passed = {.done = false};
    open_both(&both);
    uv_timer_init(&both.w.loop, &passed.timer);
    uv_timer_start(&passed.timer, passed_cb, SILENT_MS * 5 / 2, 0);
    assert_true(secure_world_wait(&both.w, is_passed, &passed));
    uv_close((uv_handle_t *)&passed.timer, NULL);
    assert_false(both.a.ended || both.b.ended);
    work(&both.a);
    assert_false(both.a.eof);
    assert_int_equal(both.a.received, 0);
    close_both(&both);
}

static bool a_ended(void *user)
{
    return ((struct both *)user)->a.ended;
}

static void a_silent_peer_ends_it(void **state)
{
    (void)state;
    struct both both;
    open_streams(&both);
    relay(&both, &both.a); /* the other side never beats */
    assert_true(secure_world_wait(&both.w, a_ended, &both));
    assert_true(both.a.broken);
    assert_int_equal(both.a.why.code, ERR_TIMEOUT);
    assert_non_null(strstr(both.a.why.msg, "silent"));
    work(&both.a);
    assert_true(both.a.eof);
    close_both(&both);
}

/* Beats by hand, and reads nothing. */
static void beat_cb(uv_timer_t *timer)
{
    char beat[4] = {0};
    struct iovec part = {beat, sizeof beat};
    size_t count = 0;
    (void)secure_stream_write(timer->data, &part, 1, &count);
}

static bool a_ended_while_sending(void *user)
{
    struct both *both = user;
    work(&both->a);
    return both->a.ended;
}

static void a_peer_that_takes_nothing_ends_it(void **state)
{
    (void)state;
    struct both both;
    uv_timer_t timer;
    open_streams(&both);
    uv_timer_init(&both.w.loop, &timer);
    timer.data = both.b.stream;
    uv_timer_start(&timer, beat_cb, 10, 10);
    relay(&both, &both.a);
    both.a.to_send = 256u << 20;
    assert_true(secure_world_wait(&both.w, a_ended_while_sending, &both));
    assert_int_equal(both.a.why.code, ERR_TIMEOUT);
    assert_non_null(strstr(both.a.why.msg, "takes nothing"));
    assert_true(both.a.sent < 64u << 20);
    uv_close((uv_handle_t *)&timer, NULL);
    close_both(&both);
}

static bool b_ended(void *user)
{
    struct both *both = user;
    work(&both->b);
    return both->b.ended;
}

static void closing_the_plain_end_ends_both_and_loses_nothing(void **state)
{
    (void)state;
    struct both both;
    open_both(&both);
    both.a.to_send = 20000;
    work(&both.a);
    assert_int_equal(both.a.sent, 20000);
    memory_close(&both.a.fd);
    assert_true(secure_world_wait(&both.w, b_ended, &both));
    assert_true(both.a.ended && !both.a.broken && !both.b.broken);
    work(&both.b);
    assert_int_equal(both.b.received, 20000);
    assert_true(both.b.eof && !both.b.garbled);
    close_both(&both);
}

static void a_lost_stream_is_told(void **state)
{
    (void)state;
    struct both both;
    open_both(&both);
    secure_relay_close(both.b.relay, closed_cb);
    both.b.relay = NULL;
    assert_true(secure_world_wait(&both.w, a_ended, &both));
    assert_true(both.a.broken);
    assert_int_equal(both.a.why.code, ERR_UNAVAILABLE);
    both.b.closed = false;
    close_both(&both);
}

static void a_frame_beyond_the_bound_is_refused(void **state)
{
    (void)state;
    struct both both;
    char header[5] = {0, 0, (char)0x80, 1, 'x'};
    struct iovec part = {header, sizeof header};
    size_t count = 0;
    open_streams(&both);
    relay(&both, &both.a);
    assert_int_equal(secure_stream_write(both.b.stream, &part, 1, &count), SECURE_DONE);
    assert_true(secure_world_wait(&both.w, a_ended, &both));
    assert_int_equal(both.a.why.code, ERR_PROTOCOL);
    close_both(&both);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_pass_unchanged),
        cmocka_unit_test(a_quiet_pair_lives_by_beats),
        cmocka_unit_test(a_silent_peer_ends_it),
        cmocka_unit_test(a_peer_that_takes_nothing_ends_it),
        cmocka_unit_test(closing_the_plain_end_ends_both_and_loses_nothing),
        cmocka_unit_test(a_lost_stream_is_told),
        cmocka_unit_test(a_frame_beyond_the_bound_is_refused),
    };
    return cmocka_run_group_tests_name("secure_relay", tests, NULL, NULL);
}
