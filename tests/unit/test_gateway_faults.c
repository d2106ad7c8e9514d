#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/memory.h"
#include "tests/lib/gateway_expect.h"

static int start_strict(void **state)
{
    struct gateway_fixture_options options = {
        .max_joiners = 1,
        .body_bytes_max = 1000,
        .connections_max = 5,
    };
    gateway_start_with(state, &options);
    return 0;
}

/* Long enough for a busy machine to do in time what shall be done in time. */
static int start_hasty(void **state)
{
    struct gateway_fixture_options options = {
        .first_byte_ms = 500,
        .request_ms = 1300,
        .stream_idle_ms = 500,
        .header_timeout_ms = 500,
        .body_timeout_ms = 500,
        .keepalive_timeout_ms = 500,
        .body_bytes_max = 1000,
    };
    gateway_start_with(state, &options);
    return 0;
}

/* --- bad requests --- */

static void malformed_requests_are_refused(void **state)
{
    struct gateway_fixture *f = *state;
    static const struct {
        const char *request;
        unsigned status;
        const char *code;
    } bad[] = {
        {"GET / HTTP/1.1\nHost: a\n\n", 400, "bad_request"},
        {"GET / HTTP/1.1\r\nHost: a\n\r\n", 400, "bad_request"},
        {"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400, "bad_request"},
        {"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "bad_request"},
        {"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"},
        {"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "bad_request"},
        {"POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400,
         "bad_request"},
        {"POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 1, 1\r\n\r\nx", 400, "bad_request"},
        {"POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: -1\r\n\r\nx", 400, "bad_request"},
        {"POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
         400, "bad_request"},
        {"POST /w/web/ HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip\r\n\r\n", 501,
         "not_implemented"},
        {"POST /w/web/ HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", 400,
         "bad_request"},
        {"POST /w/web/ HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
         400, "bad_request"},
        {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version"},
        {"GET / HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n", 400, "bad_request"},
        {"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 501, "not_implemented"},
        {"\x16\x03\x01", 400, "bad_request"},
        {"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        gateway_expect_problem(f, bad[i].request, bad[i].status, bad[i].code);
    struct test_client c;
    struct test_answer a;
    test_client_open(&c, f);
    test_client_send_bytes(&c, "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 33);
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 400, "bad_request");
    test_answer_free(&a);
    assert_true(test_client_at_end(&c, NULL)); /* and nothing more is taken from it */
    test_client_close(&c);
    wait_until(slot_joiners(f->slot) == 0);
}

static void bounds_of_heads_and_targets_hold(void **state)
{
    struct gateway_fixture *f = *state;
    struct buffer b;
    buffer_init(&b, 1u << 20);
    buffer_append_text(&b, "GET /w/web/echo HTTP/1.1\r\n" HOST);
    for (int i = 0; i < 100; i++)
        buffer_printf(&b, "X-Header-%03d: %0100d\r\n", i, i);
    buffer_append(&b, "\r\n", 3);
    struct test_answer a;
    gateway_fixture_get(f, &a, b.data); /* 11 KiB are welcome */
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body, "X-Header-099: "));
    test_answer_free(&a);
    b.length = 0;
    buffer_append_text(&b, "GET / HTTP/1.1\r\n" HOST "X: ");
    for (int i = 0; i < 70000; i++)
        buffer_append(&b, "x", 1);
    buffer_append(&b, "\r\n\r\n", 5);
    gateway_expect_problem(f, b.data, 431, "header_too_large");
    b.length = 0;
    buffer_append_text(&b, "GET /");
    for (int i = 0; i < 9000; i++)
        buffer_append(&b, "x", 1);
    buffer_append(&b, " HTTP/1.1\r\n" HOST "\r\n", sizeof(" HTTP/1.1\r\n" HOST "\r\n"));
    gateway_expect_problem(f, b.data, 414, "uri_too_long");
    buffer_free(&b);
}

static void bodies_have_a_bound(void **state)
{
    struct gateway_fixture *f = *state;
    gateway_expect_problem(f, "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 1001\r\n\r\n", 413,
                           "body_too_large");
    struct buffer b;
    buffer_init(&b, 1u << 20);
    buffer_append_text(&b, "POST /w/web/ HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 200; i++)
        buffer_append_text(&b, "a\r\n0123456789\r\n");
    buffer_append(&b, "", 1);
    gateway_expect_problem(f, b.data, 413, "body_too_large");
    buffer_free(&b);
    wait_until(slot_joiners(f->slot) == 0);
}

static void slow_clients_are_cut(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    /* One byte each few ms is activity, but the head has a deadline as a whole. */
    test_client_open(&c, f);
    uint64_t begin_ms = clock_monotonic_ms();
    const char *slow = "GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ";
    test_client_send(&c, slow);
    char byte;
    while (recv(c.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0) {
        assert_true(clock_monotonic_ms() - begin_ms < 5000);
        test_client_send(&c, "x");
        gateway_fixture_pause();
    }
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 408, "header_timeout");
    test_answer_free(&a);
    test_client_close(&c);
    test_client_open(&c, f); /* says nothing at all */
    assert_true(test_client_at_end(&c, NULL));
    test_client_close(&c);
    test_client_open(&c, f); /* its body stops */
    test_client_send(&c, "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\n12345");
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 408, "body_timeout");
    test_answer_free(&a);
    test_client_close(&c);
    test_client_open(&c, f); /* idles after an answer */
    test_client_send(&c, GET("/livez"));
    test_client_read(&c, &a, false);
    test_answer_free(&a);
    assert_true(test_client_at_end(&c, NULL));
    test_client_close(&c);
    test_client_open(&c, f); /* closes its side within the head */
    test_client_send(&c, "GET / HT");
    shutdown(c.fd, SHUT_WR);
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 400, "bad_request");
    test_answer_free(&a);
    test_client_close(&c);
}

static void connections_have_a_bound(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c[6];
    for (size_t i = 0; i < 6; i++)
        test_client_open(&c[i], f);
    struct gateway_counters counters;
    wait_until((gateway_counters(f->gateway, &counters), counters.connections_refused > 0));
    for (size_t i = 0; i < 6; i++)
        test_client_close(&c[i]);
    wait_until(gateway_connections(f->gateway) == 0);
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/livez"));
    assert_int_equal(a.status, 200);
    test_answer_free(&a);
}

/* --- clients that leave --- */

static void a_client_that_leaves_frees_its_place(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    f->backend_hold = true;
    test_client_open(&c, f);
    test_client_send(&c, GET("/w/web/hold"));
    wait_until(f->backend_inside == 1);
    assert_int_equal(slot_joiners(f->slot), 1);
    test_client_close(&c);
    wait_until(slot_joiners(f->slot) == 0);
    wait_until(f->backend_inside == 0);
    assert_true(f->backend_hold);
}

static void a_client_that_only_closed_its_side_is_answered(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open(&c, f);
    test_client_send(&c, GET("/w/web/size/3000000") GET("/livez"));
    shutdown(c.fd, SHUT_WR);
    test_client_read(&c, &a, false);
    assert_int_equal(a.body_length, 3000000);
    test_answer_free(&a);
    test_client_read(&c, &a, false);
    assert_string_equal(a.body, "ok\n");
    test_answer_free(&a);
    assert_true(test_client_at_end(&c, NULL));
    test_client_close(&c);
}

/* --- code that misbehaves --- */

static void malformed_answers_are_named(void **state)
{
    struct gateway_fixture *f = *state;
    static const char *const paths[] = {"bare-lf",   "garbage", "two-lengths", "both",
                                        "half-head", "nothing", "101"};
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        char request[128];
        text_format(request, sizeof request, "GET /w/web/raw/%s HTTP/1.1\r\n" HOST "\r\n",
                    paths[i]);
        gateway_expect_problem(f, request, 502, "instance_bad_answer");
    }
    gateway_expect_problem(f, "POST /w/web/reset HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx",
                           502, "instance_bad_answer");
    wait_until(slot_joiners(f->slot) == 0);
}

static void a_cut_answer_never_ends_cleanly(void **state)
{
    struct gateway_fixture *f = *state;
    static const char *const paths[] = {"short", "bad-chunk", "half-chunk"};
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        char request[128];
        struct test_answer a;
        text_format(request, sizeof request, "GET /w/web/raw/%s HTTP/1.1\r\n" HOST "\r\n",
                    paths[i]);
        gateway_fixture_get(f, &a, request);
        assert_int_equal(a.status, 200);
        assert_true(a.broken);
        test_answer_free(&a);
    }
    wait_until(slot_joiners(f->slot) == 0);
}

static void three_times_bound_an_answer(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    f->backend_hold = true;
    gateway_expect_problem(f, GET("/w/web/hold"), 504, "first_byte_timeout");
    wait_until(slot_joiners(f->slot) == 0);
    test_client_open(&c, f);
    test_client_send(&c, GET("/w/web/stream")); /* begins, and then is idle */
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "first");
    assert_true(a.broken);
    test_answer_free(&a);
    test_client_close(&c);
    wait_until(slot_joiners(f->slot) == 0);
    test_client_open(&c, f); /* a body that drips, until the request's time is over */
    test_client_send(&c, "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 999\r\n\r\n");
    char byte;
    while (recv(c.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0) {
        test_client_send(&c, "x");
        gateway_fixture_pause();
        gateway_fixture_pause();
        gateway_fixture_pause();
    }
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 504, "request_timeout");
    test_answer_free(&a);
    test_client_close(&c);
}

static void a_full_instance_refuses_the_forced(void **state)
{
    struct gateway_fixture *f = *state;
    char request[160];
    assert_int_equal(slot_enter(f->slot, 0, 0), SLOT_ENTERED);
    text_format(request, sizeof request, "GET /i/%s/ HTTP/1.1\r\n" HOST "\r\n", f->id.text);
    gateway_expect_problem(f, request, 503, "instance_full");
    assert_int_equal(slot_drain(f->slot), false);
    gateway_expect_problem(f, request, 410, "instance_gone");
    assert_int_equal(slot_leave(f->slot, 0), SLOT_LEFT_LAST);
}

static void the_last_to_leave_a_draining_instance_is_reported(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    f->backend_hold = true;
    test_client_open(&c, f);
    test_client_send(&c, GET("/w/web/hold"));
    wait_until(f->backend_inside == 1);
    assert_false(slot_drain(f->slot));
    f->backend_hold = false;
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    test_answer_free(&a);
    test_client_close(&c);
    pthread_mutex_lock(&f->mutex);
    unsigned reports = f->left_reports;
    pthread_mutex_unlock(&f->mutex);
    assert_int_equal(reports, 1);
}

static void ended(struct gateway_fixture *f, enum end_reason reason, unsigned status,
                  const char *code)
{
    struct test_client c;
    struct test_answer a;
    test_client_open(&c, f);
    test_client_send(&c, GET("/w/web/never-read"));
    wait_until(f->backend_hold); /* by itself */
    f->backend_hold = false;     /* the code closes without an answer */
    gateway_fixture_end_instance(f, reason);
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, status, code);
    assert_non_null(strstr(a.body, "\"ran\":\"yes\""));
    assert_non_null(strstr(a.body, f->id.text));
    test_answer_free(&a);
    test_client_close(&c);
}

static void joiners_hear_of_memory(void **state)
{
    ended(*state, END_OOM, 503, "instance_oom");
}

static void joiners_hear_of_an_exit(void **state)
{
    ended(*state, END_EXITED, 502, "instance_exited");
}

static void code_that_listens_no_more_is_unreachable(void **state)
{
    struct gateway_fixture *f = *state;
    shutdown(f->backend_fd, SHUT_RDWR);
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/web/"));
    gateway_assert_problem(&a, 502, "instance_unreachable");
    assert_non_null(strstr(a.body, "\"ran\":\"no\""));
    test_answer_free(&a);
    wait_until(slot_joiners(f->slot) == 0);
}

static void no_socket_means_unreachable(void **state)
{
    struct gateway_fixture *f = *state;
    f->refuse_sockets = true;
    gateway_expect_problem(f, GET("/w/web/"), 502, "instance_unreachable");
    wait_until(slot_joiners(f->slot) == 0);
}

static int start_one_thread(void **state)
{
    struct gateway_fixture_options options = {.threads = 1};
    gateway_start_with(state, &options);
    return 0;
}

/* One holds the only connection, and behind it some wait, as no runner gives sockets. */
static void open_waiting(struct gateway_fixture *f, struct test_client *holds,
                         struct test_client *waiting, size_t count, const char *request)
{
    f->backend_hold = f->one_socket = true;
    test_client_open(holds, f);
    test_client_send(holds, GET("/w/web/hold"));
    wait_until(f->backend_inside == 1);
    f->runner_away = true;
    for (size_t i = 0; i < count; i++) {
        test_client_open(&waiting[i], f);
        test_client_send(&waiting[i], request);
    }
    wait_until(slot_joiners(f->slot) == 1 + count);
    struct pollfd readable = {.fd = waiting[0].fd, .events = POLLIN};
    assert_int_equal(poll(&readable, 1, 300), 0);
}

static void read_all(struct test_client *clients, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct test_answer a;
        test_client_read(&clients[i], &a, false);
        assert_int_equal(a.status, 200);
        test_answer_free(&a);
        test_client_close(&clients[i]);
    }
}

/* Who came first, too: nobody who comes later takes it away. */
static void who_waits_for_a_socket_takes_what_comes_free(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client holds, waiting[20];
    open_waiting(f, &holds, waiting, ARRAY_SIZE(waiting), GET("/w/web/"));
    f->backend_hold = false;
    read_all(&holds, 1);
    read_all(waiting, ARRAY_SIZE(waiting));
    assert_int_equal(f->backend_connections, 1);
    wait_until(slot_joiners(f->slot) == 0);
}

static void a_runner_that_is_back_is_asked_again(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client holds, waiting[3];
    open_waiting(f, &holds, waiting, ARRAY_SIZE(waiting), GET("/w/web/"));
    f->runner_away = false;
    read_all(waiting, ARRAY_SIZE(waiting));
    f->backend_hold = false;
    read_all(&holds, 1);
    wait_until(slot_joiners(f->slot) == 0);
}

/* It looks first whether the connection lives. */
static void what_is_sent_once_takes_what_comes_free(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client holds, waiting[3];
    open_waiting(f, &holds, waiting, ARRAY_SIZE(waiting),
                 "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx");
    f->backend_hold = false;
    read_all(&holds, 1);
    read_all(waiting, ARRAY_SIZE(waiting));
    assert_int_equal(f->backend_connections, 1);
    wait_until(slot_joiners(f->slot) == 0);
}

static void a_stale_connection_is_not_the_clients_trouble(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    test_client_open(&c, f);
    for (int i = 0; i < 50; i++) {
        struct test_answer a;
        /* Says keep-alive and closes. */
        test_client_send(&c, i % 2 == 0 ? GET("/w/web/close-after")
                                        : "POST /w/web/ HTTP/1.1\r\n" HOST
                                          "Content-Length: 1\r\n\r\nx");
        test_client_read(&c, &a, false);
        assert_int_equal(a.status, 200);
        test_answer_free(&a);
        if (i % 2 == 0)
            wait_until(f->backend_open == 0);
    }
    test_client_close(&c);
}

static int start_one_at_a_time(void **state)
{
    struct gateway_fixture_options options = {.one_at_a_time = true, .threads = 4};
    gateway_start_with(state, &options);
    return 0;
}

/* Its first connection idles in the pool of some thread; without help, whoever comes to another
 * thread would wait for seconds until that one is closed: 60 of them for minutes. */
static void code_may_serve_one_connection_at_a_time(void **state)
{
    struct gateway_fixture *f = *state;
    uint64_t begin_ms = clock_monotonic_ms();
    for (int i = 0; i < 60; i++) {
        gateway_expect_body(f, GET("/w/web/"), "ok");
        assert_in_range(clock_monotonic_ms() - begin_ms, 0, 60000);
    }
}

/* --- the control thread --- */

static void control_refuses(struct gateway_fixture *f, struct gateway_ask *ask)
{
    (void)f;
    ask->problem = PROBLEM_QUEUE_FULL;
    ask->retry_after_s = 7;
    text_copy(ask->detail, sizeof ask->detail, "all \"full\"");
    gateway_answer(ask);
}

static int start_refusing(void **state)
{
    struct gateway_fixture_options options = {.on_ask = control_refuses};
    gateway_start_with(state, &options);
    return 0;
}

static void refusals_of_control_reach_the_client(void **state)
{
    struct gateway_fixture *f = *state;
    f->no_candidates = true;
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/web/"));
    gateway_assert_problem(&a, 503, "queue_full");
    assert_string_equal(test_answer_field(&a, "Retry-After"), "7");
    assert_non_null(strstr(a.body, "all \\\"full\\\""));
    test_answer_free(&a);
    gateway_fixture_get(f, &a, "GET /w/keyed/ HTTP/1.1\r\n" HOST "X-Room: blue\r\n\r\n");
    gateway_assert_problem(&a, 503, "queue_full");
    test_answer_free(&a);
}

static void a_place_that_others_wait_for_is_not_taken(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    atomic_store(&f->slot.slot->ends_wall_ms, 1767225600000);
    gateway_fixture_get(f, &a, GET("/w/web/"));
    assert_int_equal(a.status, 200);
    assert_string_equal(test_answer_field(&a, "Skerry-Deadline"), "2026-01-01T00:00:00.000Z");
    test_answer_free(&a);
    /* Free as it is, control decides whose it is. */
    atomic_store(&f->slot.slot->waited_for, true);
    gateway_expect_problem(f, GET("/w/web/"), 503, "queue_full");
    atomic_store(&f->slot.slot->waited_for, false);
    atomic_store(&f->slot.slot->ends_wall_ms, UINT64_MAX);
    gateway_fixture_get(f, &a, GET("/w/web/"));
    assert_int_equal(a.status, 200);
    assert_null(test_answer_field(&a, "Skerry-Deadline"));
    test_answer_free(&a);
}

static void control_starts(struct gateway_fixture *f, struct gateway_ask *ask)
{
    if (strcmp(ask->workload, "keyed") == 0)
        assert_string_equal(ask->key, "blue");
    assert_int_equal(slot_enter_forced(f->slot, 0), SLOT_ENTERED);
    ask->slot = f->slot;
    ask->start = GATEWAY_START_COLD;
    ask->timing.sandbox_us = 1234;
    gateway_answer(ask);
}

static int start_starting(void **state)
{
    struct gateway_fixture_options options = {.on_ask = control_starts};
    gateway_start_with(state, &options);
    return 0;
}

static void a_cold_start_is_joined(void **state)
{
    struct gateway_fixture *f = *state;
    f->no_candidates = true;
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/web/"));
    assert_int_equal(a.status, 200);
    assert_string_equal(test_answer_field(&a, "Skerry-Start"), "cold");
    assert_non_null(strstr(test_answer_field(&a, "Server-Timing"), "sandbox;dur=1.234, code;dur="));
    test_answer_free(&a);
    gateway_expect_body(f, "GET /w/keyed/ HTTP/1.1\r\n" HOST "X-Room: blue\r\n\r\n", "ok");
    wait_until(slot_joiners(f->slot) == 0);
}

static struct gateway_ask *_Atomic kept_ask;

static void control_keeps(struct gateway_fixture *f, struct gateway_ask *ask)
{
    (void)f;
    kept_ask = ask;
}

static int start_keeping(void **state)
{
    kept_ask = NULL;
    struct gateway_fixture_options options = {.on_ask = control_keeps};
    gateway_start_with(state, &options);
    return 0;
}

static void a_client_that_leaves_cancels_its_ask(void **state)
{
    struct gateway_fixture *f = *state;
    f->no_candidates = true;
    struct test_client c;
    test_client_open(&c, f);
    test_client_send(&c, GET("/w/web/"));
    wait_until(kept_ask != NULL);
    test_client_close(&c);
    unsigned canceled = 0;
    wait_until((pthread_mutex_lock(&f->mutex), canceled = f->canceled,
                pthread_mutex_unlock(&f->mutex), canceled == 1));
    /* The grant crosses the cancel: the place is given back. */
    assert_int_equal(slot_enter_forced(f->slot, 0), SLOT_ENTERED);
    kept_ask->slot = f->slot;
    gateway_answer(kept_ask);
    wait_until(slot_joiners(f->slot) == 0);
}

/* --- draining --- */

static void a_draining_gateway_finishes_what_runs(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client idle, busy;
    struct test_answer a;
    test_client_open(&idle, f);
    test_client_send(&idle, GET("/livez"));
    test_client_read(&idle, &a, false);
    test_answer_free(&a);
    f->backend_hold = true;
    test_client_open(&busy, f);
    test_client_send(&busy, GET("/w/web/hold"));
    wait_until(f->backend_inside == 1);
    gateway_drain(f->gateway);
    assert_true(test_client_at_end(&idle, NULL));
    f->backend_hold = false;
    test_client_read(&busy, &a, false);
    assert_int_equal(a.status, 200);
    assert_string_equal(test_answer_field(&a, "Connection"), "close");
    test_answer_free(&a);
    assert_true(test_client_at_end(&busy, NULL));
    test_client_close(&idle);
    test_client_close(&busy);
    wait_until(gateway_connections(f->gateway) == 0);
}

static bool read_one(struct test_client *c, const char *request)
{
    struct test_answer a;
    test_client_send(c, request);
    test_client_read(c, &a, false);
    assert_int_equal(a.status, 200);
    const char *connection = test_answer_field(&a, "Connection");
    bool last = connection != NULL && strcmp(connection, "close") == 0;
    test_answer_free(&a);
    return last;
}

static void a_leaving_gateway_takes_all_that_come_and_lets_them_go(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client idle, late;
    test_client_open(&idle, f);
    assert_false(read_one(&idle, GET("/w/web/")));
    gateway_leave(f->gateway);
    /* Its thread hears of it a moment later. */
    wait_until(read_one(&idle, GET("/w/web/")));
    assert_true(test_client_at_end(&idle, NULL));
    test_client_open(&late, f);
    assert_true(read_one(&late, GET("/w/web/")));
    assert_true(test_client_at_end(&late, NULL));
    test_client_close(&idle);
    test_client_close(&late);
    gateway_drain(f->gateway);
    wait_until(gateway_connections(f->gateway) == 0);
}

static void closing_breaks_what_is_left(void **state)
{
    struct gateway_fixture_options options = {.threads = 2};
    struct gateway_fixture *f = malloc(sizeof *f);
    (void)state;
    gateway_fixture_start(f, &options);
    f->backend_hold = true;
    struct test_client c[4];
    for (size_t i = 0; i < 4; i++) {
        test_client_open(&c[i], f);
        test_client_send(&c[i], GET("/w/web/hold"));
    }
    wait_until(f->backend_inside == 4);
    gateway_fixture_stop(f);
    assert_int_equal(f->released, 2); /* each thread gave its routes back */
    for (size_t i = 0; i < 4; i++) {
        assert_true(test_client_at_end(&c[i], NULL));
        test_client_close(&c[i]);
    }
    free(f);
}

#define TEST(test, start) cmocka_unit_test_setup_teardown(test, start, gateway_stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(malformed_requests_are_refused, gateway_start_default),
        TEST(bounds_of_heads_and_targets_hold, gateway_start_default),
        TEST(bodies_have_a_bound, start_strict),
        TEST(slow_clients_are_cut, start_hasty),
        TEST(connections_have_a_bound, start_strict),
        TEST(a_client_that_leaves_frees_its_place, gateway_start_default),
        TEST(a_client_that_only_closed_its_side_is_answered, gateway_start_default),
        TEST(malformed_answers_are_named, gateway_start_default),
        TEST(a_cut_answer_never_ends_cleanly, gateway_start_default),
        TEST(three_times_bound_an_answer, start_hasty),
        TEST(a_full_instance_refuses_the_forced, start_strict),
        TEST(the_last_to_leave_a_draining_instance_is_reported, gateway_start_default),
        TEST(joiners_hear_of_memory, gateway_start_default),
        TEST(joiners_hear_of_an_exit, gateway_start_default),
        TEST(code_that_listens_no_more_is_unreachable, gateway_start_default),
        TEST(no_socket_means_unreachable, gateway_start_default),
        TEST(a_stale_connection_is_not_the_clients_trouble, gateway_start_default),
        TEST(who_waits_for_a_socket_takes_what_comes_free, start_one_thread),
        TEST(a_runner_that_is_back_is_asked_again, start_one_thread),
        TEST(what_is_sent_once_takes_what_comes_free, start_one_thread),
        TEST(code_may_serve_one_connection_at_a_time, start_one_at_a_time),
        TEST(refusals_of_control_reach_the_client, start_refusing),
        TEST(a_place_that_others_wait_for_is_not_taken, start_refusing),
        TEST(a_cold_start_is_joined, start_starting),
        TEST(a_client_that_leaves_cancels_its_ask, start_keeping),
        TEST(a_draining_gateway_finishes_what_runs, gateway_start_default),
        TEST(a_leaving_gateway_takes_all_that_come_and_lets_them_go, gateway_start_default),
        cmocka_unit_test(closing_breaks_what_is_left),
    };
    return cmocka_run_group_tests_name("gateway faults", tests, NULL, NULL);
}
