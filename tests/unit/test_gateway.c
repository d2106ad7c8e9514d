#include <errno.h>
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

static int start_patient(void **state)
{
    struct gateway_fixture_options options = {.first_byte_ms = 800};
    gateway_start_with(state, &options);
    return 0;
}

static int start_trusting(void **state)
{
    struct gateway_fixture_options options = {.trust_forwarded = true, .threads = 2};
    gateway_start_with(state, &options);
    return 0;
}

/* Asks for an echo; the caller frees `a`. */
static void echo(struct gateway_fixture *f, struct test_answer *a, const char *request)
{
    gateway_fixture_get(f, a, request);
    if (a->status != 200)
        fail_msg("%s%s", a->head, a->body);
}

/* --- joining --- */

static void join_reaches_the_instance(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/web/"));
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "ok");
    assert_string_equal(test_answer_field(&a, "Skerry-Instance"), f->id.text);
    assert_string_equal(test_answer_field(&a, "Skerry-Start"), "join");
    assert_string_equal(test_answer_field(&a, "Skerry-Node"), "node1");
    assert_non_null(test_answer_field(&a, "Skerry-Request-Id"));
    assert_non_null(test_answer_field(&a, "Server-Timing"));
    assert_null(test_answer_field(&a, "Skerry-Error"));
    test_answer_free(&a);
    wait_until(slot_joiners(f->slot) == 0);
    struct gateway_counters counters;
    gateway_counters(f->gateway, &counters);
    assert_int_equal(counters.requests[2], 1);
    assert_int_equal(counters.by_start[GATEWAY_START_JOIN].count, 1);
}

static void hosts_and_paths_find_the_same(void **state)
{
    struct gateway_fixture *f = *state;
    char request[256];
    gateway_expect_body(f, "GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n", "ok");
    gateway_expect_body(f, "GET / HTTP/1.1\r\nHost: WEB.LocalHost.:8080\r\n\r\n", "ok");
    gateway_expect_body(f, "GET http://web.localhost/ HTTP/1.1\r\nHost: other\r\n\r\n", "ok");
    text_format(request, sizeof request, "GET / HTTP/1.1\r\nHost: %s.localhost\r\n\r\n",
                f->id.text);
    gateway_expect_body(f, request, "ok");
    text_format(request, sizeof request, "GET /i/%s/ HTTP/1.1\r\n" HOST "\r\n", f->id.text);
    gateway_expect_body(f, request, "ok");
    text_format(request, sizeof request, "GET /x HTTP/1.1\r\n" HOST "Skerry-Instance: %s\r\n\r\n",
                f->id.text);
    gateway_expect_body(f, request, "ok");
    text_format(request, sizeof request, "GET /w/web HTTP/1.1\r\n" HOST "Skerry-Prefer: %s\r\n\r\n",
                f->id.text);
    gateway_expect_body(f, request, "ok");
}

static void code_sees_the_request_without_the_prefix(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    echo(f, &a,
         "PUT /w/web/echo?a=1&b=%20 HTTP/1.1\r\n" HOST
         "X-Own: one\r\nContent-Length: 4\r\n\r\nbody");
    assert_ptr_equal(strstr(a.body, "PUT /echo?a=1&b=%20 HTTP/1.1\r\n"), a.body);
    assert_non_null(strstr(a.body, "\r\nHost: localhost\r\n"));
    assert_non_null(strstr(a.body, "\r\nX-Own: one\r\n"));
    assert_non_null(strstr(a.body, "\r\nX-Forwarded-Prefix: /w/web\r\n"));
    assert_non_null(strstr(a.body, "\r\nX-Forwarded-For: 127.0.0.1\r\n"));
    assert_non_null(strstr(a.body, "\r\nX-Forwarded-Proto: http\r\n"));
    assert_non_null(strstr(a.body, "\r\nX-Forwarded-Host: localhost\r\n"));
    assert_non_null(strstr(a.body, "\r\ntraceparent: 00-"));
    assert_non_null(strstr(a.body, "\r\n\r\nbody"));
    test_answer_free(&a);
}

static void what_is_hop_by_hop_or_forged_stays_here(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    echo(f, &a,
         "GET /echo HTTP/1.1\r\nHost: private.localhost\r\nConnection: X-Drop, keep-alive\r\n"
         "X-Drop: secret\r\nKeep-Alive: timeout=3\r\nTE: gzip, trailers\r\nProxy-Connection: a\r\n"
         "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n"
         "X-Forwarded-Prefix: /evil\r\nForwarded: for=6.6.6.6\r\nSkerry-Token: skt_good\r\n"
         "Authorization: Bearer skt_good\r\nAuthorization: Basic abc\r\n"
         "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n");
    static const char *const gone[] = {
        "X-Drop", "Keep-Alive",         "gzip", "6.6.6.6", "https",
        "evil",   "X-Forwarded-Prefix", "skt_", "Bearer",  "Skerry-Token"};
    for (size_t i = 0; i < ARRAY_SIZE(gone); i++)
        if (strstr(a.body, gone[i]) != NULL)
            fail_msg("%s passed:\n%s", gone[i], a.body);
    assert_non_null(strstr(a.body, "\r\nAuthorization: Basic abc\r\n"));
    assert_non_null(strstr(a.body, "\r\nTE: trailers\r\n"));
    assert_non_null(strstr(
        a.body, "\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"));
    test_answer_free(&a);
}

static void a_trusted_proxy_may_speak_for_its_client(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    echo(f, &a,
         "GET /w/web/echo HTTP/1.1\r\n" HOST "X-Forwarded-For: 6.6.6.6\r\n"
         "X-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /outer\r\n\r\n");
    assert_non_null(strstr(a.body, "X-Forwarded-For: 6.6.6.6\r\n"));
    assert_non_null(strstr(a.body, "X-Forwarded-For: 127.0.0.1\r\n"));
    assert_non_null(strstr(a.body, "X-Forwarded-Proto: https\r\n"));
    assert_null(strstr(a.body, "X-Forwarded-Proto: http\r\n"));
    assert_non_null(strstr(a.body, "X-Forwarded-Prefix: /outer/w/web\r\n"));
    test_answer_free(&a);
}

static void code_cannot_speak_for_skerry(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/web/raw/forged"));
    assert_int_equal(a.status, 200);
    assert_null(test_answer_field(&a, "Skerry-Error"));
    assert_null(test_answer_field(&a, "X-Hop"));
    assert_null(test_answer_field(&a, "Keep-Alive"));
    assert_string_equal(test_answer_field(&a, "Skerry-Instance"), f->id.text);
    test_answer_free(&a);
}

static void tokens_open_private_workloads(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/private/"));
    gateway_assert_problem(&a, 401, "unauthorized");
    assert_non_null(test_answer_field(&a, "WWW-Authenticate"));
    test_answer_free(&a);
    gateway_expect_problem(f, "GET /w/private/ HTTP/1.1\r\n" HOST "Skerry-Token: skt_bad!\r\n\r\n",
                           401, "unauthorized");
    gateway_expect_problem(f, "GET /w/private/ HTTP/1.1\r\n" HOST "Skerry-Token: skt_weak\r\n\r\n",
                           403, "forbidden");
    gateway_expect_body(
        f, "GET /w/private/ HTTP/1.1\r\n" HOST "Authorization: bearer skt_good\r\n\r\n", "ok");
    gateway_expect_body(f, "GET /w/private/ HTTP/1.1\r\n" HOST "Skerry-Token: skt_good\r\n\r\n",
                        "ok");
}

static void own_paths_answer(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    gateway_expect_body(f, GET("/livez"), "ok\n");
    gateway_expect_body(f, GET("/readyz"), "ok\n");
    pthread_mutex_lock(&f->mutex);
    f->not_ready = true;
    pthread_mutex_unlock(&f->mutex);
    gateway_expect_problem(f, GET("/readyz"), 503, "no_quorum");
    gateway_expect_body(f, "GET /readyz HTTP/1.1\r\nHost: web.localhost\r\n\r\n",
                        "ok"); /* the code's */
    gateway_fixture_get(f, &a, "OPTIONS * HTTP/1.1\r\n" HOST "\r\n");
    assert_int_equal(a.status, 204);
    test_answer_free(&a);
    gateway_fixture_get(f, &a, "HEAD /w/nothing/ HTTP/1.1\r\n" HOST "\r\n");
    assert_int_equal(a.status, 404);
    assert_string_equal(a.body, "");
    test_answer_free(&a);
}

static void wrong_targets_are_named(void **state)
{
    struct gateway_fixture *f = *state;
    gateway_expect_problem(f, GET("/"), 404, "not_found");
    gateway_expect_problem(f, GET("/w/nothing/"), 404, "workload_unknown");
    gateway_expect_problem(f, "GET / HTTP/1.1\r\nHost: nothing.localhost\r\n\r\n", 404,
                           "workload_unknown");
    gateway_expect_problem(f, GET("/i/wrong/"), 404, "instance_unknown");
    gateway_expect_problem(f, GET("/i/000000000000000001/"), 404, "instance_unknown");
    gateway_expect_problem(f, GET("/w/keyed/"), 400, "key_missing");
    gateway_fixture_end_instance(f, END_IDLE);
    char request[160];
    text_format(request, sizeof request, "GET /i/%s/ HTTP/1.1\r\n" HOST "\r\n", f->id.text);
    struct test_answer a;
    wait_until((gateway_fixture_get(f, &a, request), a.status == 410 || (test_answer_free(&a), 0)));
    gateway_assert_problem(&a, 410, "instance_gone");
    assert_non_null(strstr(a.body, "\"reason\":\"idle\""));
    assert_non_null(strstr(a.body, f->id.text));
    test_answer_free(&a);
}

static void a_name_that_was_made_a_moment_ago_is_found(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    f->unknown_once = true;
    gateway_expect_body(f, GET("/w/web/"), "ok");
    /* What follows in the pipeline waits, in order, and so does the body. */
    test_client_open(&c, f);
    f->unknown_once = true;
    test_client_send(&c, "POST /w/web/echo HTTP/1.1\r\n" HOST
                         "Content-Length: 4\r\n\r\nbody" GET("/livez"));
    test_client_read(&c, &a, false);
    assert_non_null(strstr(a.body, "\r\n\r\nbody"));
    test_answer_free(&a);
    test_client_read(&c, &a, false);
    assert_string_equal(a.body, "ok\n");
    test_answer_free(&a);
    test_client_close(&c);
}

/* --- connections and bodies --- */

static void connections_are_kept_on_both_sides(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    test_client_open(&c, f);
    for (int i = 0; i < 20; i++) {
        struct test_answer a;
        test_client_send(&c, GET("/w/web/"));
        test_client_read(&c, &a, false);
        assert_int_equal(a.status, 200);
        assert_null(test_answer_field(&a, "Connection"));
        test_answer_free(&a);
    }
    test_client_close(&c);
    assert_int_equal(f->backend_connections, 1);
}

/* The fixture's code writes head and body apart and lets TCP hold back the second until the first is
 * acknowledged. A delayed acknowledgement takes 40 ms; the quickest of ten tells, on a busy machine
 * too. TCP acknowledges the first 16 or so at once. */
static void code_that_writes_twice_is_not_delayed(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    uint64_t quickest_us = UINT64_MAX;
    test_client_open(&c, f);
    for (int i = 0; i < 40; i++) {
        struct test_answer a;
        uint64_t begin_us = clock_monotonic_us();
        test_client_send(&c, GET("/w/web/"));
        test_client_read(&c, &a, false);
        test_answer_free(&a);
        uint64_t us = clock_monotonic_us() - begin_us;
        if (i >= 30 && us < quickest_us)
            quickest_us = us;
    }
    test_client_close(&c);
    assert_in_range(quickest_us, 0, 30000);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    test_client_open(&c, f);
    struct buffer b;
    buffer_init(&b, 10u * 1024 * 1024);
    for (int i = 0; i < 2000; i++)
        buffer_printf(&b, "POST /w/web/echo?n=%d HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\n%05d",
                      i, i);
    buffer_append_text(&b, GET("/livez") GET("/w/nothing/") GET("/w/web/"));
    /* Not all at once: the gateway must not read without end, so answers are read in between. */
    size_t sent = 0;
    for (int i = 0; i < 2003; i++) {
        size_t more = b.length - sent < 300 ? b.length - sent : 300;
        test_client_send_bytes(&c, b.data + sent, more);
        sent += more;
        struct test_answer a;
        test_client_read(&c, &a, false);
        char expected[64];
        text_format(expected, sizeof expected, "POST /echo?n=%d ", i);
        if (i < 2000)
            assert_ptr_equal(strstr(a.body, expected), a.body);
        else
            assert_int_equal(a.status, i == 2001 ? 404 : 200);
        test_answer_free(&a);
    }
    buffer_free(&b);
    test_client_close(&c);
}

static void a_request_may_come_byte_by_byte(void **state)
{
    struct gateway_fixture *f = *state;
    static const char request[] =
        "\r\nPOST /w/web/echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
        "5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 7\r\n\r\n" GET("/livez");
    struct test_client c;
    struct test_answer a;
    test_client_open(&c, f);
    for (size_t i = 0; i + 1 < sizeof request; i++) {
        test_client_send_bytes(&c, request + i, 1);
        if (i % 7 == 0)
            gateway_fixture_pause();
    }
    test_client_read(&c, &a, false);
    assert_non_null(strstr(a.body, "\r\n\r\nhello!X-Sum: 7\r\n"));
    assert_null(strstr(a.body, "x=y"));
    test_answer_free(&a);
    test_client_read(&c, &a, false);
    assert_string_equal(a.body, "ok\n");
    test_answer_free(&a);
    test_client_close(&c);
}

static void answers_of_every_framing_arrive(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/web/chunked/100000"));
    assert_int_equal(a.body_length, 100000);
    assert_non_null(strstr(a.trailers, "X-Sum: 42\r\n"));
    assert_null(strstr(a.trailers, "Skerry-Error"));
    assert_false(a.broken);
    test_answer_free(&a);
    gateway_fixture_get(f, &a, GET("/w/web/raw/until-close"));
    assert_string_equal(a.body, "until the end");
    assert_false(a.broken);
    assert_string_equal(test_answer_field(&a, "Transfer-Encoding"), "chunked");
    test_answer_free(&a);
    gateway_fixture_get(f, &a, GET("/w/web/raw/no-content"));
    assert_int_equal(a.status, 204);
    assert_null(test_answer_field(&a, "Transfer-Encoding"));
    test_answer_free(&a);
    gateway_fixture_get(f, &a, GET("/w/web/raw/not-modified"));
    assert_int_equal(a.status, 304);
    assert_string_equal(test_answer_field(&a, "Content-Length"), "77");
    test_answer_free(&a);
    gateway_fixture_get(f, &a, "HEAD /w/web/ HTTP/1.1\r\n" HOST "\r\n");
    assert_string_equal(test_answer_field(&a, "Content-Length"), "1234");
    test_answer_free(&a);
}

static void old_clients_get_what_they_understand(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    gateway_fixture_get(f, &a, "GET /w/web/chunked/70000 HTTP/1.0\r\n\r\n");
    assert_int_equal(a.body_length, 70000);
    assert_null(test_answer_field(&a, "Transfer-Encoding"));
    assert_string_equal(test_answer_field(&a, "Connection"), "close");
    test_answer_free(&a);
    gateway_fixture_get(f, &a,
                        "GET /w/web/raw/early-hints HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_int_equal(a.status, 200);
    assert_string_equal(test_answer_field(&a, "Connection"), "keep-alive");
    test_answer_free(&a);
    struct test_client c;
    bool reset;
    test_client_open(&c, f);
    test_client_send(&c, "GET /w/web/raw/half-chunk HTTP/1.0\r\n\r\n");
    assert_true(test_client_at_end(&c, &reset));
    assert_true(reset); /* no framing could tell that it is not whole */
    test_client_close(&c);
}

static void informational_answers_pass(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open(&c, f);
    test_client_send(&c, GET("/w/web/raw/early-hints"));
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 103);
    assert_string_equal(test_answer_field(&a, "Link"), "</a>");
    test_answer_free(&a);
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    test_answer_free(&a);
    test_client_close(&c);
}

static void continue_is_the_codes_to_say(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open(&c, f);
    test_client_send(&c, "POST /w/web/expect HTTP/1.1\r\n" HOST
                         "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 100);
    test_answer_free(&a);
    test_client_send(&c, "abc");
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body, "\r\n\r\nabc"));
    test_answer_free(&a);
    test_client_close(&c);
    /* An early answer is final, and the connection does not go on. */
    test_client_open(&c, f);
    test_client_send(&c, "POST /w/web/early HTTP/1.1\r\n" HOST
                         "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 403);
    assert_string_equal(test_answer_field(&a, "Connection"), "close");
    test_answer_free(&a);
    test_client_close(&c);
    gateway_expect_problem(
        f, "POST /w/web/ HTTP/1.1\r\n" HOST "Expect: tea\r\nContent-Length: 1\r\n\r\nx", 417,
        "expectation_failed");
}

static void *send_big(void *argument)
{
    struct test_client *c = argument;
    char *piece = calloc(1, 100000);
    for (int i = 0; i < 200; i++)
        test_client_send_bytes(c, piece, 100000);
    free(piece);
    return NULL;
}

static void big_bodies_stream_both_ways(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    pthread_t thread;
    test_client_open(&c, f);
    test_client_send(&c, "POST /w/web/size/20000000 HTTP/1.1\r\n" HOST
                         "Content-Length: 20000000\r\n\r\n");
    pthread_create(&thread, NULL, send_big, &c);
    test_client_read(&c, &a, false);
    pthread_join(thread, NULL);
    assert_int_equal(a.body_length, 20000000);
    assert_true(f->backend_body_bytes == 20000000);
    assert_false(a.broken);
    test_answer_free(&a);
    test_client_close(&c);
}

static void code_that_does_not_read_stops_the_client(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    char *piece = calloc(1, 1 << 20);
    test_client_open(&c, f);
    test_client_send(&c, "POST /w/web/never-read HTTP/1.1\r\n" HOST
                         "Content-Length: 1000000000\r\n\r\n");
    size_t sent = 0;
    unsigned idle = 0;
    while (idle < 300) { /* ms without room */
        ssize_t n = send(c.fd, piece, 1 << 20, MSG_DONTWAIT | MSG_NOSIGNAL);
        idle = n > 0 ? 0 : idle + 1;
        sent += n > 0 ? (size_t)n : 0;
        gateway_fixture_pause();
    }
    /* What kernel buffers hold on four sockets, and 24 KiB of ours. */
    assert_in_range(sent, 1, 40u * 1024 * 1024);
    /* Then the code has as long as it has for its first byte. */
    struct test_answer a;
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 504, "first_byte_timeout");
    test_answer_free(&a);
    test_client_close(&c);
    wait_until(slot_joiners(f->slot) == 0);
    free(piece);
}

static void chunks_are_passed_on_at_once(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    test_client_open(&c, f);
    f->backend_hold = true;
    test_client_send(&c, GET("/w/web/stream"));
    char text[4096] = "";
    size_t n = 0;
    while (strstr(text, "first") == NULL) {
        ssize_t got = recv(c.fd, text + n, sizeof text - 1 - n, 0);
        assert_true(got > 0);
        n += (size_t)got;
    }
    f->backend_hold = false;
    while (strstr(text, "last\r\n0\r\n\r\n") == NULL) {
        ssize_t got = recv(c.fd, text + n, sizeof text - 1 - n, 0);
        assert_true(got > 0);
        n += (size_t)got;
    }
    test_client_close(&c);
}

static void upgrades_become_tunnels(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open(&c, f);
    test_client_send(&c, "GET /w/web/upgrade HTTP/1.1\r\n" HOST
                         "Connection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ");
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 101);
    assert_string_equal(test_answer_field(&a, "Upgrade"), "echo");
    assert_string_equal(test_answer_field(&a, "Skerry-Instance"), f->id.text);
    test_answer_free(&a);
    test_client_send(&c, "ping");
    shutdown(c.fd, SHUT_WR);
    assert_true(test_client_at_end(&c, NULL));
    assert_int_equal(c.length, strlen("helloearly ping"));
    assert_memory_equal(c.data, "helloearly ping", c.length);
    test_client_close(&c);
    wait_until(slot_joiners(f->slot) == 0);
}

#define TEST(test, start) cmocka_unit_test_setup_teardown(test, start, gateway_stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(join_reaches_the_instance, gateway_start_default),
        TEST(hosts_and_paths_find_the_same, gateway_start_default),
        TEST(code_sees_the_request_without_the_prefix, gateway_start_default),
        TEST(what_is_hop_by_hop_or_forged_stays_here, gateway_start_default),
        TEST(a_trusted_proxy_may_speak_for_its_client, start_trusting),
        TEST(code_cannot_speak_for_skerry, gateway_start_default),
        TEST(tokens_open_private_workloads, gateway_start_default),
        TEST(own_paths_answer, gateway_start_default),
        TEST(wrong_targets_are_named, gateway_start_default),
        TEST(a_name_that_was_made_a_moment_ago_is_found, gateway_start_default),
        TEST(connections_are_kept_on_both_sides, gateway_start_default),
        TEST(code_that_writes_twice_is_not_delayed, gateway_start_default),
        TEST(pipelined_requests_are_answered_in_order, gateway_start_default),
        TEST(a_request_may_come_byte_by_byte, gateway_start_default),
        TEST(answers_of_every_framing_arrive, gateway_start_default),
        TEST(old_clients_get_what_they_understand, gateway_start_default),
        TEST(informational_answers_pass, gateway_start_default),
        TEST(continue_is_the_codes_to_say, gateway_start_default),
        TEST(big_bodies_stream_both_ways, gateway_start_default),
        TEST(code_that_does_not_read_stops_the_client, start_patient),
        TEST(chunks_are_passed_on_at_once, gateway_start_default),
        TEST(upgrades_become_tunnels, gateway_start_default),
    };
    return cmocka_run_group_tests_name("gateway", tests, NULL, NULL);
}
