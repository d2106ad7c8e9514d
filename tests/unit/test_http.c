#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "gateway/flow.h"
#include "gateway/http.h"

static const struct http_bounds bounds = {.head_bytes_max = 65536, .target_bytes_max = 8192};

/* A text with its length, so that NUL may stand in it. */
#define TEXT(t) t, sizeof(t) - 1
#define H "Host: a\r\n"

struct request_case {
    const char *text;
    size_t length;
    enum problem problem; /* PROBLEM_NONE: good */
    enum http_body body;
    uint64_t content_length;
    bool keep_alive;
};

static const struct request_case requests[] = {
    /* good */
    {TEXT("GET / HTTP/1.1\r\n" H "\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0, true},
    {TEXT("\r\nGET / HTTP/1.1\r\n" H "\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0, true},
    {TEXT("GET / HTTP/1.0\r\n\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0, false},
    {TEXT("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0,
     true},
    {TEXT("GET / HTTP/1.9\r\n" H "\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0, true},
    {TEXT("GET / HTTP/1.1\r\nHost:\r\n\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0, true},
    {TEXT("GET / HTTP/1.1\r\nHost:a:80\r\nX:\r\nY: \t v \t\r\n\r\n"), PROBLEM_NONE, HTTP_BODY_NONE,
     0, true},
    {TEXT("GET / HTTP/1.1\r\n" H "Connection: x, CLOSE\r\n\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0,
     false},
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length: 0\r\n\r\n"), PROBLEM_NONE, HTTP_BODY_LENGTH, 0,
     true},
    {TEXT("POST / HTTP/1.1\r\n" H "content-LENGTH: 42\r\n\r\n"), PROBLEM_NONE, HTTP_BODY_LENGTH, 42,
     true},
    {TEXT("POST / HTTP/1.1\r\n" H "Transfer-Encoding: Chunked\r\n\r\n"), PROBLEM_NONE,
     HTTP_BODY_CHUNKED, 0, true},
    {TEXT("M-SEARCH * HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("OPTIONS * HTTP/1.1\r\n" H "\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0, true},
    {TEXT("GET http://a/b HTTP/1.1\r\nHost: other\r\n\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0, true},
    {TEXT("GET /a|b{c} HTTP/1.1\r\n" H "\r\n"), PROBLEM_NONE, HTTP_BODY_NONE, 0, true},
    {TEXT("GET / HTTP/1.1\r\nHost: [::1]:8080\r\nX: \xc3\xa4\r\n\r\n"), PROBLEM_NONE,
     HTTP_BODY_NONE, 0, true},
    {TEXT("PATCH / HTTP/1.1\r\n" H "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\n"),
     PROBLEM_NONE, HTTP_BODY_LENGTH, 1, true},
    /* line ends */
    {TEXT("GET / HTTP/1.1\nHost: a\n\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\nHost: a\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\nHost: a\r\n\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("\nGET / HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("\r\n\r\nGET / HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H "X: a\r\n b\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n X: a\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    /* names and values */
    {TEXT("GET / HTTP/1.1\r\nHost : a\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H "X\t: a\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H ": a\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H "X\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H "X(: a\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H "X\xe4: a\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H "X: \0\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H "X: a\x01\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H "X: a\x7f\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n\0: a\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    /* request line */
    {TEXT("GET  / HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET /  HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1 \r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET\t/ HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET /\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / http/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1x\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/11\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/2.0\r\n" H "\r\n"), PROBLEM_HTTP_VERSION, 0, 0, false},
    {TEXT("PRI * HTTP/2.0\r\n\r\n"), PROBLEM_HTTP_VERSION, 0, 0, false},
    {TEXT("GET / HTTP/0.9\r\n" H "\r\n"), PROBLEM_HTTP_VERSION, 0, 0, false},
    {TEXT("G(T / HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT(" GET / HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("\x16\x03\x01\x02"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("CONNECT a:443 HTTP/1.1\r\n" H "\r\n"), PROBLEM_NOT_IMPLEMENTED, 0, 0, false},
    {TEXT("THISMETHODISLONGERTHANTHIRTYTWOBYTES / HTTP/1.1\r\n" H "\r\n"), PROBLEM_NOT_IMPLEMENTED,
     0, 0, false},
    /* targets and hosts */
    {TEXT("GET a HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET /a#b HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET /\xc3\xa4 HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET /\0 HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET ftp://a/ HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET http:///x HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET http://u@a/ HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET * HTTP/1.1\r\n" H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H H "\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET http://a/ HTTP/1.1\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    /* framing */
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length: 1\r\nContent-Length: 1\r\n\r\n"),
     PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length: 1, 1\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0,
     false},
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length:\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length: +1\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length: 0x1\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length: 1 2\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length: 99999999999999999999\r\n\r\n"),
     PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length: 9999999999999999999\r\n\r\n"),
     PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
     PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Transfer-Encoding: gzip, chunked\r\n\r\n"),
     PROBLEM_NOT_IMPLEMENTED, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Transfer-Encoding: xchunked\r\n\r\n"), PROBLEM_NOT_IMPLEMENTED,
     0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, chunked\r\n\r\n"),
     PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H
          "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"),
     PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.1\r\n" H "Transfer-Encoding:\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0,
     false},
    {TEXT("POST / HTTP/1.1\r\n" H "Expect: coffee\r\n\r\n"), PROBLEM_EXPECTATION_FAILED, 0, 0,
     false},
    {TEXT("GET / HTTP/1.1\r\n" H "Connection: a b\r\n\r\n"), PROBLEM_BAD_REQUEST, 0, 0, false},
    {TEXT("GET / HTTP/1.1\r\n" H
          "Connection: 1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0,1,2,3\r\n\r\n"),
     PROBLEM_BAD_REQUEST, 0, 0, false},
};

/* Feeds `text` in pieces that end at `split` and at the end. */
static bool read_request(struct http_head *head, const char *text, size_t length, size_t split,
                         struct http_fault *fault)
{
    struct http_scan scan = {0};
    ptrdiff_t n = http_scan(&scan, text, split, true, &bounds, fault);
    if (n == HTTP_MORE)
        n = http_scan(&scan, text, length, true, &bounds, fault);
    if (n < 0)
        return false;
    assert_int_equal(n, length);
    return http_request_parse(head, text + scan.begin, (size_t)n - scan.begin, &bounds, fault);
}

static void requests_are_judged_alike_at_every_split(void **state)
{
    (void)state;
    struct http_head *head = malloc(sizeof *head);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        const struct request_case *r = &requests[i];
        /* Exactly as long as the text, so that a read beyond its end is found. */
        char *text = malloc(r->length);
        memcpy(text, r->text, r->length);
        for (size_t split = 0; split <= r->length; split++) {
            struct http_fault fault = {0};
            bool good = read_request(head, text, r->length, split, &fault);
            if (good != (r->problem == PROBLEM_NONE) || fault.problem != r->problem)
                fail_msg("%s\nsplit at %zu: %s (%s)", r->text, split,
                         problem_word(fault.problem)->code, good ? "taken" : fault.why);
            if (!good) {
                assert_non_null(fault.why);
                continue;
            }
            assert_int_equal(head->body, r->body);
            assert_true(head->content_length == r->content_length);
            assert_int_equal(head->keep_alive, r->keep_alive);
        }
        free(text);
    }
    free(head);
}

static void a_head_is_read_into_its_parts(void **state)
{
    (void)state;
    static const char text[] = "PUT http://WEB.x:8080?q=1 HTTP/1.1\r\nhOST: other\r\n"
                               "Connection: keep-alive, X-a, upgrade\r\nx-A: 1\r\nUpgrade: ws\r\n"
                               "TE: deflate;q=0.5, trailers\r\n\r\n";
    struct http_head *head = malloc(sizeof *head);
    struct http_fault fault = {0};
    assert_true(read_request(head, text, sizeof text - 1, 5, &fault));
    assert_int_equal(head->method, HTTP_METHOD_PUT);
    assert_int_equal(head->target, HTTP_TARGET_ABSOLUTE);
    assert_true(http_text_is(head->authority, "web.x:8080"));
    assert_true(http_text_is(head->path, "?q=1"));
    assert_true(head->upgrade && http_text_is(head->upgrade_to, "ws"));
    assert_true(head->te_trailers);
    assert_int_equal(head->field_count, 5);
    assert_int_equal(head->fields[0].known, HTTP_NAME_HOST);
    assert_false(head->fields[0].named_by_connection);
    assert_true(head->fields[2].named_by_connection);
    free(head);
}

static void known_names_are_found_in_any_case(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum http_name name;
    } names[] = {
        {"te", HTTP_NAME_TE},
        {"TE", HTTP_NAME_TE},
        {"hoST", HTTP_NAME_HOST},
        {"Accept", HTTP_NAME_ACCEPT},
        {"COOKIE", HTTP_NAME_COOKIE},
        {"Expect", HTTP_NAME_EXPECT},
        {"Trailer", HTTP_NAME_TRAILER},
        {"Upgrade", HTTP_NAME_UPGRADE},
        {"Forwarded", HTTP_NAME_FORWARDED},
        {"Connection", HTTP_NAME_CONNECTION},
        {"Keep-Alive", HTTP_NAME_KEEP_ALIVE},
        {"Skerry-Key", HTTP_NAME_SKERRY_KEY},
        {"tracestate", HTTP_NAME_TRACESTATE},
        {"Skerry-Node", HTTP_NAME_SKERRY_NODE},
        {"traceparent", HTTP_NAME_TRACEPARENT},
        {"Skerry-Error", HTTP_NAME_SKERRY_ERROR},
        {"Skerry-Start", HTTP_NAME_SKERRY_START},
        {"Skerry-Token", HTTP_NAME_SKERRY_TOKEN},
        {"Authorization", HTTP_NAME_AUTHORIZATION},
        {"Skerry-Prefer", HTTP_NAME_SKERRY_PREFER},
        {"Content-Length", HTTP_NAME_CONTENT_LENGTH},
        {"HTTP2-Settings", HTTP_NAME_HTTP2_SETTINGS},
        {"Skerry-Deadline", HTTP_NAME_SKERRY_DEADLINE},
        {"Skerry-Instance", HTTP_NAME_SKERRY_INSTANCE},
        {"X-Forwarded-For", HTTP_NAME_X_FORWARDED_FOR},
        {"Proxy-Connection", HTTP_NAME_PROXY_CONNECTION},
        {"X-Forwarded-Host", HTTP_NAME_X_FORWARDED_HOST},
        {"Skerry-Request-Id", HTTP_NAME_SKERRY_REQUEST_ID},
        {"Transfer-Encoding", HTTP_NAME_TRANSFER_ENCODING},
        {"X-Forwarded-Proto", HTTP_NAME_X_FORWARDED_PROTO},
        {"Proxy-Authenticate", HTTP_NAME_PROXY_AUTHENTICATE},
        {"X-Forwarded-Prefix", HTTP_NAME_X_FORWARDED_PREFIX},
        {"Proxy-Authorization", HTTP_NAME_PROXY_AUTHORIZATION},
        {"Skerry-Tokens", HTTP_NAME_OTHER},
        {"X", HTTP_NAME_OTHER},
        {"Content-Lengti", HTTP_NAME_OTHER},
        {"A-Name-That-Is-Longer-Than-All-Of-Them", HTTP_NAME_OTHER},
    };
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        assert_int_equal(http_name_find((struct http_text){names[i].text, strlen(names[i].text)}),
                         names[i].name);
}

static void bounds_are_kept_before_the_end_is_seen(void **state)
{
    (void)state;
    const struct http_bounds small = {.head_bytes_max = 200, .target_bytes_max = 20};
    struct http_fault fault;
    char text[600];
    memset(text, 'a', sizeof text);
    memcpy(text, "GET /", 5);
    struct http_scan scan = {0};
    assert_int_equal(http_scan(&scan, text, 60, true, &small, &fault), HTTP_MORE);
    assert_int_equal(http_scan(&scan, text, 100, true, &small, &fault), HTTP_REFUSED);
    assert_int_equal(fault.problem, PROBLEM_URI_TOO_LONG);
    memcpy(text, "GET / HTTP/1.1\r\nX: ", 19);
    scan = (struct http_scan){0};
    assert_int_equal(http_scan(&scan, text, 200, true, &small, &fault), HTTP_MORE);
    assert_int_equal(http_scan(&scan, text, 201, true, &small, &fault), HTTP_REFUSED);
    assert_int_equal(fault.problem, PROBLEM_HEADER_TOO_LARGE);
    memcpy(text + 300, "\r\n\r\n", 4); /* whole, and still too large */
    scan = (struct http_scan){0};
    assert_int_equal(http_scan(&scan, text, 304, true, &small, &fault), HTTP_REFUSED);
    assert_int_equal(fault.problem, PROBLEM_HEADER_TOO_LARGE);
    const char *target = "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: a\r\n\r\n";
    struct http_head *head = malloc(sizeof *head);
    assert_false(http_request_parse(head, target, strlen(target), &small, &fault));
    assert_int_equal(fault.problem, PROBLEM_URI_TOO_LONG);
    char *many = malloc(20000);
    size_t n = (size_t)snprintf(many, 20000, "GET / HTTP/1.1\r\nHost: a\r\n");
    for (int i = 0; i < HTTP_FIELDS_MAX; i++)
        n += (size_t)snprintf(many + n, 20000 - n, "X: %d\r\n", i);
    n += (size_t)snprintf(many + n, 20000 - n, "\r\n");
    assert_false(http_request_parse(head, many, n, &bounds, &fault));
    assert_int_equal(fault.problem, PROBLEM_HEADER_TOO_LARGE);
    free(many);
    free(head);
}

static const struct answer_case {
    const char *text;
    size_t length;
    enum http_method method;
    bool good;
    enum http_body body;
    unsigned status;
    bool keep_alive;
} answers[] = {
    {TEXT("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), HTTP_METHOD_GET, true, HTTP_BODY_LENGTH,
     200, true},
    {TEXT("HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n"), HTTP_METHOD_GET, true, HTTP_BODY_LENGTH,
     200, true},
    {TEXT("HTTP/1.1 200 \r\n\r\n"), HTTP_METHOD_GET, true, HTTP_BODY_UNTIL_CLOSE, 200, true},
    {TEXT("HTTP/1.0 404 Not Found\r\n\r\n"), HTTP_METHOD_GET, true, HTTP_BODY_UNTIL_CLOSE, 404,
     false},
    {TEXT("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), HTTP_METHOD_HEAD, true, HTTP_BODY_NONE,
     200, true},
    {TEXT("HTTP/1.1 204 No Content\r\n\r\n"), HTTP_METHOD_GET, true, HTTP_BODY_NONE, 204, true},
    {TEXT("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"), HTTP_METHOD_GET, true,
     HTTP_BODY_NONE, 304, true},
    {TEXT("HTTP/1.1 100 Continue\r\n\r\n"), HTTP_METHOD_GET, true, HTTP_BODY_NONE, 100, true},
    {TEXT("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"),
     HTTP_METHOD_POST, true, HTTP_BODY_CHUNKED, 200, false},
    {TEXT("HTTP/1.1 200 OK\nContent-Length: 3\n\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("HTTP/1.1 2000 OK\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("HTTP/1.1 20 OK\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("HTTP/1.1 600 OK\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("HTTP/1.1 099 OK\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("HTTP/1.1  200 OK\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("HTTP/2.0 200 OK\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("ICY 200 OK\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("hello\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("HTTP/1.1 200 O\0K\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n"), HTTP_METHOD_GET,
     false, 0, 0, false},
    {TEXT("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
     HTTP_METHOD_GET, false, 0, 0, false},
    {TEXT("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0,
     false},
    {TEXT("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0,
     false},
    {TEXT("\r\nHTTP/1.1 200 OK\r\n\r\n"), HTTP_METHOD_GET, false, 0, 0, false},
};

static void answers_are_judged_alike_at_every_split(void **state)
{
    (void)state;
    struct http_head *head = malloc(sizeof *head);
    for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
        const struct answer_case *r = &answers[i];
        char *text = malloc(r->length);
        memcpy(text, r->text, r->length);
        for (size_t split = 0; split <= r->length; split++) {
            struct http_fault fault = {0};
            struct http_scan scan = {0};
            ptrdiff_t n = http_scan(&scan, text, split, false, &bounds, &fault);
            if (n == HTTP_MORE)
                n = http_scan(&scan, text, r->length, false, &bounds, &fault);
            bool good = n > 0 && http_answer_parse(head, text, (size_t)n, r->method, &fault);
            if (good != r->good)
                fail_msg("%s\nsplit at %zu: %s", r->text, split, good ? "taken" : fault.why);
            if (!good)
                continue;
            assert_int_equal(head->body, r->body);
            assert_int_equal(head->status, r->status);
            assert_int_equal(head->keep_alive, r->keep_alive);
        }
        free(text);
    }
    free(head);
}

static const struct chunked_case {
    const char *text;
    size_t length;
    const char *content; /* NULL: refused */
    const char *trailers;
    size_t rest; /* bytes behind the body */
} bodies[] = {
    {TEXT("0\r\n\r\n"), "", "\r\n", 0},
    {TEXT("5\r\nhello\r\n0\r\n\r\n"), "hello", "\r\n", 0},
    {TEXT("5\r\nhello\r\n0\r\n\r\nGET"), "hello", "\r\n", 3},
    {TEXT("3\r\nabc\r\n002\r\nde\r\n00\r\n\r\n"), "abcde", "\r\n", 0},
    {TEXT("A\r\n0123456789\r\n0\r\n\r\n"), "0123456789", "\r\n", 0},
    {TEXT("1;a=b;c=\"d e\"\r\nx\r\n0;last\r\n\r\n"), "x", "\r\n", 0},
    {TEXT("1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n"), "x", "A: b\r\nC: d\r\n\r\n", 0},
    {TEXT("\r\n"), NULL, NULL, 0},
    {TEXT("x\r\n"), NULL, NULL, 0},
    {TEXT("-1\r\n"), NULL, NULL, 0},
    {TEXT(" 1\r\nx\r\n"), NULL, NULL, 0},
    {TEXT("1 \r\nx\r\n"), NULL, NULL, 0},
    {TEXT("0x1\r\nx\r\n"), NULL, NULL, 0},
    {TEXT("1\nx\r\n0\r\n\r\n"), NULL, NULL, 0},
    {TEXT("1\r\nx\n0\r\n\r\n"), NULL, NULL, 0},
    {TEXT("1\r\nxy\r\n0\r\n\r\n"), NULL, NULL, 0},
    {TEXT("1\rx\r\n"), NULL, NULL, 0},
    {TEXT("1;a\nb\r\nx\r\n"), NULL, NULL, 0},
    {TEXT("1;\0\r\nx\r\n"), NULL, NULL, 0},
    {TEXT("1000000000000000\r\n"), NULL, NULL, 0},
    {TEXT(";a\r\n"), NULL, NULL, 0},
    {TEXT("0\r\nA: b\n\r\n"), NULL, NULL, 0},
    {TEXT("0\r\nA: b\rc\r\n\r\n"), NULL, NULL, 0},
};

/* Reads in pieces of `step` bytes. False: refused. */
static bool read_chunked(const struct chunked_case *b, size_t step, char *content, char *trailers,
                         size_t *rest)
{
    struct http_chunked chunked;
    struct http_fault fault;
    size_t at = 0, content_length = 0, trailers_length = 0;
    http_chunked_init(&chunked);
    while (at < b->length && chunked.state != HTTP_CHUNK_DONE) {
        size_t length = b->length - at < step ? b->length - at : step;
        char *piece = malloc(length);
        memcpy(piece, b->text + at, length);
        size_t used = 0;
        while (used < length && chunked.state != HTTP_CHUNK_DONE) {
            struct http_text span, more;
            ptrdiff_t n =
                http_chunked_read(&chunked, piece + used, length - used, &span, &more, &fault);
            if (n < 0) {
                free(piece);
                return false;
            }
            memcpy(content + content_length, span.data, span.length);
            content_length += span.length;
            memcpy(trailers + trailers_length, more.data, more.length);
            trailers_length += more.length;
            used += (size_t)n;
        }
        free(piece);
        at += used;
    }
    content[content_length] = trailers[trailers_length] = '\0';
    *rest = b->length - at;
    return chunked.state == HTTP_CHUNK_DONE;
}

static void chunked_bodies_are_read_alike_in_any_pieces(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
        const struct chunked_case *b = &bodies[i];
        for (size_t step = 1; step <= b->length; step++) {
            char content[256], trailers[256];
            size_t rest;
            bool good = read_chunked(b, step, content, trailers, &rest);
            if (good != (b->content != NULL))
                fail_msg("%s\nin pieces of %zu: %s", b->text, step, good ? "taken" : "refused");
            if (!good)
                continue;
            assert_string_equal(content, b->content);
            assert_string_equal(trailers, b->trailers);
            assert_int_equal(rest, b->rest);
        }
    }
}

static void extensions_and_trailers_are_bounded(void **state)
{
    (void)state;
    struct http_chunked c;
    struct http_text span, more;
    struct http_fault fault;
    char *text = malloc(40000);
    memset(text, 'a', 40000);
    memcpy(text, "1;", 2);
    http_chunked_init(&c);
    assert_true(http_chunked_read(&c, text, 200, &span, &more, &fault) > 0);
    assert_int_equal(http_chunked_read(&c, text + 2, 300, &span, &more, &fault), HTTP_REFUSED);
    memcpy(text, "0\r\n", 3);
    http_chunked_init(&c);
    ptrdiff_t n = http_chunked_read(&c, text, 3, &span, &more, &fault);
    assert_int_equal(n, 3);
    for (size_t at = 3; at < 40000 && n > 0; at += 1000)
        n = http_chunked_read(&c, text + at, 1000, &span, &more, &fault);
    assert_int_equal(n, HTTP_REFUSED);
    free(text);
}

/* Each piece of a body comes out framed anew, with nothing of the old framing. */
static void a_flow_frames_bodies_anew(void **state)
{
    (void)state;
    static const char body[] =
        "3;x\r\nabc\r\n1\r\nd\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\nrest";
    struct block_pool pool = {0};
    struct queue to = {0};
    struct flow flow;
    struct http_fault fault;
    flow_begin(&flow, HTTP_BODY_CHUNKED, 0, true);
    assert_int_equal(flow_push(&flow, &pool, &to, body, sizeof body - 1, &fault),
                     sizeof body - 1 - 4);
    assert_true(flow.done);
    const char *expected = "3\r\nabc\r\n1\r\nd\r\n0\r\nX-Sum: 1\r\n\r\n";
    assert_int_equal(queue_pending(&to), strlen(expected));
    assert_memory_equal(queue_data(&to), expected, strlen(expected));
    queue_clear(&pool, &to);
    flow_free(&flow);
    flow_begin(&flow, HTTP_BODY_LENGTH, 4, false);
    assert_int_equal(flow_push(&flow, &pool, &to, "abcdefg", 7, &fault), 4);
    assert_true(flow.done);
    queue_clear(&pool, &to);
    flow_free(&flow);
    flow_begin(&flow, HTTP_BODY_UNTIL_CLOSE, 0, true);
    assert_int_equal(flow_push(&flow, &pool, &to, "0123456789abcdefg", 17, &fault), 17);
    assert_false(flow.done);
    assert_true(flow_source_closed(&flow, &pool, &to));
    expected = "11\r\n0123456789abcdefg\r\n0\r\n\r\n";
    assert_int_equal(queue_pending(&to), strlen(expected));
    assert_memory_equal(queue_data(&to), expected, strlen(expected));
    queue_clear(&pool, &to);
    flow_free(&flow);
    flow_begin(&flow, HTTP_BODY_LENGTH, 4, false);
    assert_false(flow_source_closed(&flow, &pool, &to));
    flow_free(&flow);
    block_pool_free(&pool);
}

static void a_queue_keeps_its_bytes_in_order(void **state)
{
    (void)state;
    struct block_pool pool = {0};
    struct queue q = {0};
    size_t in = 0, out = 0;
    for (int round = 0; round < 3000; round++) {
        unsigned char piece[997];
        for (size_t i = 0; i < sizeof piece; i++)
            piece[i] = (unsigned char)(in++ * 7);
        assert_true(queue_append(&pool, &q, piece, sizeof piece));
        size_t take = round % 5 == 0 ? queue_pending(&q) / 2 : 900;
        take = take > queue_pending(&q) ? queue_pending(&q) : take;
        for (size_t i = 0; i < take; i++)
            assert_int_equal((unsigned char)queue_data(&q)[i], (unsigned char)(out++ * 7));
        queue_consume(&pool, &q, take);
    }
    queue_clear(&pool, &q);
    assert_int_equal(queue_pending(&q), 0);
    block_pool_free(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_are_judged_alike_at_every_split),
        cmocka_unit_test(a_head_is_read_into_its_parts),
        cmocka_unit_test(known_names_are_found_in_any_case),
        cmocka_unit_test(bounds_are_kept_before_the_end_is_seen),
        cmocka_unit_test(answers_are_judged_alike_at_every_split),
        cmocka_unit_test(chunked_bodies_are_read_alike_in_any_pieces),
        cmocka_unit_test(extensions_and_trailers_are_bounded),
        cmocka_unit_test(a_flow_frames_bodies_anew),
        cmocka_unit_test(a_queue_keeps_its_bytes_in_order),
    };
    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
