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
#include "tests/lib/gateway_fixture.h"

#define HOST "Host: localhost\r\n"
#define GET(path) "GET " path " HTTP/1.1\r\n" HOST "\r\n"

static void start_with(void **state, const struct gateway_fixture_options *options)
{
    struct gateway_fixture *f = malloc(sizeof *f);
    gateway_fixture_start(f, options);
    *state = f;
}

static int start_default(void **state)
{
    struct gateway_fixture_options options = {0};
    start_with(state, &options);
    return 0;
}

static int start_strict(void **state)
{
    struct gateway_fixture_options options = {
        .max_joiners = 1,
        .first_byte_ms = 150,
        .request_ms = 400,
        .stream_idle_ms = 150,
        .header_timeout_ms = 150,
        .body_timeout_ms = 150,
        .keepalive_timeout_ms = 150,
        .body_bytes_max = 1000,
        .connections_max = 5,
    };
    start_with(state, &options);
    return 0;
}

static int start_patient(void **state)
{
    struct gateway_fixture_options options = {.first_byte_ms = 800};
    start_with(state, &options);
    return 0;
}

static int start_trusting(void **state)
{
    struct gateway_fixture_options options = {.trust_forwarded = true, .threads = 2};
    start_with(state, &options);
    return 0;
}

static int stop(void **state)
{
    struct gateway_fixture *f = *state;
    gateway_fixture_stop(f);
    free(f);
    return 0;
}

static void assert_problem(struct test_answer *a, unsigned status, const char *code)
{
    char member[96];
    if (a->status != status)
        fail_msg("status %u instead of %u\n%s%s", a->status, status, a->head, a->body);
    assert_non_null(test_answer_field(a, "Skerry-Error"));
    assert_string_equal(test_answer_field(a, "Skerry-Error"), code);
    assert_string_equal(test_answer_field(a, "Content-Type"), "application/problem+json");
    text_format(member, sizeof member, "\"code\":\"%s\"", code);
    assert_non_null(strstr(a->body, member));
    assert_non_null(strstr(a->body, "\"ran\":\""));
    assert_non_null(strstr(a->body, "\"retryable\":"));
    assert_non_null(strstr(a->body, "\"request_id\":\"r-"));
    if (status == 429 || status == 503)
        assert_non_null(test_answer_field(a, "Retry-After"));
}

static void expect_problem(struct gateway_fixture *f, const char *request, unsigned status,
                           const char *code)
{
    struct test_answer a;
    gateway_fixture_get(f, &a, request);
    assert_problem(&a, status, code);
    test_answer_free(&a);
}

static void expect_body(struct gateway_fixture *f, const char *request, const char *body)
{
    struct test_answer a;
    gateway_fixture_get(f, &a, request);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, body);
    test_answer_free(&a);
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
    expect_body(f, "GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n", "ok");
    expect_body(f, "GET / HTTP/1.1\r\nHost: WEB.LocalHost.:8080\r\n\r\n", "ok");
    expect_body(f, "GET http://web.localhost/ HTTP/1.1\r\nHost: other\r\n\r\n", "ok");
    text_format(request, sizeof request, "GET / HTTP/1.1\r\nHost: %s.localhost\r\n\r\n",
                f->id.text);
    expect_body(f, request, "ok");
    text_format(request, sizeof request, "GET /i/%s/ HTTP/1.1\r\n" HOST "\r\n", f->id.text);
    expect_body(f, request, "ok");
    text_format(request, sizeof request, "GET /x HTTP/1.1\r\n" HOST "Skerry-Instance: %s\r\n\r\n",
                f->id.text);
    expect_body(f, request, "ok");
    text_format(request, sizeof request, "GET /w/web HTTP/1.1\r\n" HOST "Skerry-Prefer: %s\r\n\r\n",
                f->id.text);
    expect_body(f, request, "ok");
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
    assert_problem(&a, 401, "unauthorized");
    assert_non_null(test_answer_field(&a, "WWW-Authenticate"));
    test_answer_free(&a);
    expect_problem(f, "GET /w/private/ HTTP/1.1\r\n" HOST "Skerry-Token: skt_bad!\r\n\r\n", 401,
                   "unauthorized");
    expect_problem(f, "GET /w/private/ HTTP/1.1\r\n" HOST "Skerry-Token: skt_weak\r\n\r\n", 403,
                   "forbidden");
    expect_body(f, "GET /w/private/ HTTP/1.1\r\n" HOST "Authorization: bearer skt_good\r\n\r\n",
                "ok");
    expect_body(f, "GET /w/private/ HTTP/1.1\r\n" HOST "Skerry-Token: skt_good\r\n\r\n", "ok");
}

static void own_paths_answer(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    expect_body(f, GET("/livez"), "ok\n");
    expect_body(f, GET("/readyz"), "ok\n");
    pthread_mutex_lock(&f->mutex);
    f->not_ready = true;
    pthread_mutex_unlock(&f->mutex);
    expect_problem(f, GET("/readyz"), 503, "draining");
    expect_body(f, "GET /readyz HTTP/1.1\r\nHost: web.localhost\r\n\r\n", "ok"); /* the code's */
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
    expect_problem(f, GET("/"), 404, "not_found");
    expect_problem(f, GET("/w/nothing/"), 404, "workload_unknown");
    expect_problem(f, "GET / HTTP/1.1\r\nHost: nothing.localhost\r\n\r\n", 404, "workload_unknown");
    expect_problem(f, GET("/i/wrong/"), 404, "instance_unknown");
    expect_problem(f, GET("/i/000000000000000001/"), 404, "instance_unknown");
    expect_problem(f, GET("/w/keyed/"), 400, "key_missing");
    gateway_fixture_end_instance(f, END_IDLE);
    char request[160];
    text_format(request, sizeof request, "GET /i/%s/ HTTP/1.1\r\n" HOST "\r\n", f->id.text);
    struct test_answer a;
    wait_until((gateway_fixture_get(f, &a, request), a.status == 410 || (test_answer_free(&a), 0)));
    assert_problem(&a, 410, "instance_gone");
    assert_non_null(strstr(a.body, "\"reason\":\"idle\""));
    assert_non_null(strstr(a.body, f->id.text));
    test_answer_free(&a);
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
    expect_problem(f, "POST /w/web/ HTTP/1.1\r\n" HOST "Expect: tea\r\nContent-Length: 1\r\n\r\nx",
                   417, "expectation_failed");
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
    assert_problem(&a, 504, "first_byte_timeout");
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
        expect_problem(f, bad[i].request, bad[i].status, bad[i].code);
    struct test_client c;
    struct test_answer a;
    test_client_open(&c, f);
    test_client_send_bytes(&c, "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 33);
    test_client_read(&c, &a, false);
    assert_problem(&a, 400, "bad_request");
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
    expect_problem(f, b.data, 431, "header_too_large");
    b.length = 0;
    buffer_append_text(&b, "GET /");
    for (int i = 0; i < 9000; i++)
        buffer_append(&b, "x", 1);
    buffer_append(&b, " HTTP/1.1\r\n" HOST "\r\n", sizeof(" HTTP/1.1\r\n" HOST "\r\n"));
    expect_problem(f, b.data, 414, "uri_too_long");
    buffer_free(&b);
}

static void bodies_have_a_bound(void **state)
{
    struct gateway_fixture *f = *state;
    expect_problem(f, "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 1001\r\n\r\n", 413,
                   "body_too_large");
    struct buffer b;
    buffer_init(&b, 1u << 20);
    buffer_append_text(&b, "POST /w/web/ HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 200; i++)
        buffer_append_text(&b, "a\r\n0123456789\r\n");
    buffer_append(&b, "", 1);
    expect_problem(f, b.data, 413, "body_too_large");
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
    assert_problem(&a, 408, "header_timeout");
    test_answer_free(&a);
    test_client_close(&c);
    test_client_open(&c, f); /* says nothing at all */
    assert_true(test_client_at_end(&c, NULL));
    test_client_close(&c);
    test_client_open(&c, f); /* its body stops */
    test_client_send(&c, "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\n12345");
    test_client_read(&c, &a, false);
    assert_problem(&a, 408, "body_timeout");
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
    assert_problem(&a, 400, "bad_request");
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
        expect_problem(f, request, 502, "instance_bad_answer");
    }
    expect_problem(f, "POST /w/web/reset HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx", 502,
                   "instance_bad_answer");
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
    expect_problem(f, GET("/w/web/hold"), 504, "first_byte_timeout");
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
    assert_problem(&a, 504, "request_timeout");
    test_answer_free(&a);
    test_client_close(&c);
}

static void a_full_instance_refuses_the_forced(void **state)
{
    struct gateway_fixture *f = *state;
    char request[160];
    assert_int_equal(slot_enter(f->slot, 0, 0), SLOT_ENTERED);
    text_format(request, sizeof request, "GET /i/%s/ HTTP/1.1\r\n" HOST "\r\n", f->id.text);
    expect_problem(f, request, 503, "instance_full");
    assert_int_equal(slot_drain(f->slot), false);
    expect_problem(f, request, 410, "instance_gone");
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
    f->backend_hold = true;
    test_client_open(&c, f);
    test_client_send(&c, GET("/w/web/never-read"));
    wait_until(f->backend_inside == 1);
    f->backend_hold = false; /* the code closes without an answer */
    gateway_fixture_end_instance(f, reason);
    test_client_read(&c, &a, false);
    assert_problem(&a, status, code);
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
    assert_problem(&a, 502, "instance_unreachable");
    assert_non_null(strstr(a.body, "\"ran\":\"no\""));
    test_answer_free(&a);
    wait_until(slot_joiners(f->slot) == 0);
}

static void no_socket_means_unreachable(void **state)
{
    struct gateway_fixture *f = *state;
    f->refuse_sockets = true;
    expect_problem(f, GET("/w/web/"), 502, "instance_unreachable");
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
    start_with(state, &options);
    return 0;
}

static void refusals_of_control_reach_the_client(void **state)
{
    struct gateway_fixture *f = *state;
    f->no_candidates = true;
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/web/"));
    assert_problem(&a, 503, "queue_full");
    assert_string_equal(test_answer_field(&a, "Retry-After"), "7");
    assert_non_null(strstr(a.body, "all \\\"full\\\""));
    test_answer_free(&a);
    gateway_fixture_get(f, &a, "GET /w/keyed/ HTTP/1.1\r\n" HOST "X-Room: blue\r\n\r\n");
    assert_problem(&a, 503, "queue_full");
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
    start_with(state, &options);
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
    expect_body(f, "GET /w/keyed/ HTTP/1.1\r\n" HOST "X-Room: blue\r\n\r\n", "ok");
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
    start_with(state, &options);
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

#define TEST(test, start) cmocka_unit_test_setup_teardown(test, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(join_reaches_the_instance, start_default),
        TEST(hosts_and_paths_find_the_same, start_default),
        TEST(code_sees_the_request_without_the_prefix, start_default),
        TEST(what_is_hop_by_hop_or_forged_stays_here, start_default),
        TEST(a_trusted_proxy_may_speak_for_its_client, start_trusting),
        TEST(code_cannot_speak_for_skerry, start_default),
        TEST(tokens_open_private_workloads, start_default),
        TEST(own_paths_answer, start_default),
        TEST(wrong_targets_are_named, start_default),
        TEST(connections_are_kept_on_both_sides, start_default),
        TEST(pipelined_requests_are_answered_in_order, start_default),
        TEST(a_request_may_come_byte_by_byte, start_default),
        TEST(answers_of_every_framing_arrive, start_default),
        TEST(old_clients_get_what_they_understand, start_default),
        TEST(informational_answers_pass, start_default),
        TEST(continue_is_the_codes_to_say, start_default),
        TEST(big_bodies_stream_both_ways, start_default),
        TEST(code_that_does_not_read_stops_the_client, start_patient),
        TEST(chunks_are_passed_on_at_once, start_default),
        TEST(upgrades_become_tunnels, start_default),
        TEST(malformed_requests_are_refused, start_default),
        TEST(bounds_of_heads_and_targets_hold, start_default),
        TEST(bodies_have_a_bound, start_strict),
        TEST(slow_clients_are_cut, start_strict),
        TEST(connections_have_a_bound, start_strict),
        TEST(a_client_that_leaves_frees_its_place, start_default),
        TEST(a_client_that_only_closed_its_side_is_answered, start_default),
        TEST(malformed_answers_are_named, start_default),
        TEST(a_cut_answer_never_ends_cleanly, start_default),
        TEST(three_times_bound_an_answer, start_strict),
        TEST(a_full_instance_refuses_the_forced, start_strict),
        TEST(the_last_to_leave_a_draining_instance_is_reported, start_default),
        TEST(joiners_hear_of_memory, start_default),
        TEST(joiners_hear_of_an_exit, start_default),
        TEST(code_that_listens_no_more_is_unreachable, start_default),
        TEST(no_socket_means_unreachable, start_default),
        TEST(a_stale_connection_is_not_the_clients_trouble, start_default),
        TEST(refusals_of_control_reach_the_client, start_refusing),
        TEST(a_cold_start_is_joined, start_starting),
        TEST(a_client_that_leaves_cancels_its_ask, start_keeping),
        TEST(a_draining_gateway_finishes_what_runs, start_default),
        cmocka_unit_test(closing_breaks_what_is_left),
    };
    return cmocka_run_group_tests_name("gateway", tests, NULL, NULL);
}
