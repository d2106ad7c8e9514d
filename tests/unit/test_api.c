/* The API but for commands (test_api_commands.c): who may, what is refused and how, workloads,
 * instances, tokens, and its description. */
#include "tests/lib/api_client.h"

#include <stdio.h>

#define HELLO                                                                                      \
    "id: hello\ncommand: [\"true\"]\nport: 8080\nenvironment: {SECRET: xyzzy}\n"                   \
    "join: {max_joiners: 4}\n"

static struct fake fake;

static int setup(void **state)
{
    *state = &fake;
    fake_open(&fake, NULL);
    return 0;
}

static int teardown(void **state)
{
    fake_close(*state);
    return 0;
}

static const char *text_of(const json_t *json, const char *name)
{
    const char *text = json_string_value(json_object_get(json, name));
    return text == NULL ? "" : text;
}

static void deploy_hello(struct fake *f)
{
    json_decref(client_json(
        f, &(struct request){.method = "PUT", .path = "/v1/workloads/hello", .body = HELLO}, 200));
}

/* A token as an admin makes it; into `out`. */
static void make_token(struct fake *f, const char *body, char out[NODE_TOKEN_TEXT_SIZE])
{
    json_t *json = client_json(
        f, &(struct request){.method = "POST", .path = "/v1/tokens", .body = body}, 201);
    (void)text_copy(out, NODE_TOKEN_TEXT_SIZE, text_of(json, "token"));
    assert_int_equal(strlen(out), 73);
    json_decref(json);
}

/* --- probes and refusals ------------------------------------------------------------------------ */

static void probes_need_no_token(void **state)
{
    struct fake *f = *state;
    struct answer a = client(f, &(struct request){.path = "/livez", .tcp = true});
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "ok\n");
    assert_non_null(strstr(a.headers, "Skerry-Request-Id: r-"));
    answer_free(&a);
    a = client(f, &(struct request){.method = "HEAD", .path = "/readyz", .tcp = true});
    assert_int_equal(a.status, 200);
    assert_int_equal(a.length, 0);
    answer_free(&a);
    fake_set(f, not_ready, true);
    client_refused(f, &(struct request){.path = "/readyz", .tcp = true}, PROBLEM_NO_QUORUM);
    fake_set(f, not_ready, false);
}

static void unknown_targets_are_refused(void **state)
{
    struct fake *f = *state;
    client_refused(f, &(struct request){.path = "/nothing"}, PROBLEM_NOT_FOUND);
    client_refused(f, &(struct request){.path = "/v1/workloads/"}, PROBLEM_NOT_FOUND);
    client_refused(f, &(struct request){.path = "/v1/workloads/a/b/c"}, PROBLEM_NOT_FOUND);
    client_refused(f, &(struct request){.method = "PATCH", .path = "/v1/workloads"},
                   PROBLEM_METHOD_NOT_ALLOWED);
    client_refused(f, &(struct request){.method = "HEAD", .path = "/v1/events"},
                   PROBLEM_METHOD_NOT_ALLOWED);
    client_refused(f, &(struct request){.path = "/v1/workloads?colour=red"}, PROBLEM_BAD_REQUEST);
    client_refused(f, &(struct request){.path = "/v1/workloads/%00"}, PROBLEM_BAD_REQUEST);
    client_refused(f, &(struct request){.path = "/v1/workloads/%zz"}, PROBLEM_BAD_REQUEST);
    client_refused(f, &(struct request){.path = "/v1/events?after=%2"}, PROBLEM_BAD_REQUEST);
    client_refused(f, &(struct request){.path = "/v1/events?after=-1"}, PROBLEM_BAD_REQUEST);
    client_refused(f, &(struct request){.path = "/v1/events?follow=yes"}, PROBLEM_BAD_REQUEST);
}

static void a_long_target_is_refused(void **state)
{
    char path[20000];
    memset(path, 'a', sizeof(path));
    path[0] = '/';
    path[sizeof(path) - 1] = '\0';
    client_refused(*state, &(struct request){.path = path}, PROBLEM_URI_TOO_LONG);
}

static void a_large_header_is_refused(void **state)
{
    char *header = malloc(80000);
    memset(header, 'a', 80000);
    memcpy(header, "X: ", 3);
    header[79999] = '\0';
    client_refused(*state, &(struct request){.path = "/livez", .headers = {header}},
                   PROBLEM_HEADER_TOO_LARGE);
    free(header);
}

static void a_large_body_is_refused(void **state)
{
    size_t size = 1536 * 1024;
    char *body = malloc(size);
    memset(body, ' ', size);
    struct request q = {
        .method = "POST", .path = "/v1/workloads", .body = body, .body_length = size};
    client_refused(*state, &q, PROBLEM_BODY_TOO_LARGE);
    q.headers[0] = "Transfer-Encoding: chunked";
    client_refused(*state, &q, PROBLEM_BODY_TOO_LARGE);
    free(body);
}

static void too_many_questions_are_refused(void **state)
{
    struct fake *f = *state;
    fake_set(f, refuse_asks, true);
    struct answer a = client(f, &(struct request){.path = "/v1/status"});
    assert_int_equal(a.status, 429);
    assert_non_null(strstr(a.headers, "Retry-After: "));
    answer_free(&a);
    fake_set(f, refuse_asks, false);
}

/* Sends bytes and reads all that comes; the answer must be one problem, then the end. */
static void raw_refused(struct fake *f, const char *bytes, size_t size, enum problem problem)
{
    const struct problem_word *word = problem_word(problem);
    char answer[16384];
    char want[64];
    size_t used = 0;
    int fd = raw_connect(f, true);
    raw_send(fd, bytes, size);
    while (used + 1 < sizeof(answer) && raw_read(fd, answer + used, 1))
        used++;
    answer[used] = '\0';
    (void)close(fd);
    (void)text_format(want, sizeof(want), "HTTP/1.1 %d ", word->status);
    if (strncmp(answer, want, strlen(want)) != 0)
        fail_msg("not %s: %s", want, answer);
    (void)text_format(want, sizeof(want), "\r\nSkerry-Error: %s\r\n", word->code);
    assert_non_null(strstr(answer, want));
    (void)text_format(want, sizeof(want), "\"code\":\"%s\"", word->code);
    assert_non_null(strstr(answer, want));
    assert_non_null(strstr(answer, "\r\nSkerry-Request-Id: r-"));
}

static void malformed_requests_get_a_problem(void **state)
{
    struct fake *f = *state;
#define RAW(bytes, problem)                                                                        \
    {                                                                                              \
        bytes, sizeof(bytes) - 1, problem                                                          \
    }
#define POST "POST /v1/tokens HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    static const struct {
        const char *bytes;
        size_t size;
        enum problem problem;
    } bad[] = {
        RAW("GET /livez HTTP/1.1\r\n\r\n", PROBLEM_BAD_REQUEST),
        RAW("GET /livez HTTP/1.1\nHost: 127.0.0.1\n\n", PROBLEM_BAD_REQUEST),
        RAW("GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b\r\n c\r\n\r\n", PROBLEM_BAD_REQUEST),
        RAW("GET /livez HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n", PROBLEM_BAD_REQUEST),
        RAW("GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b\0c\r\n\r\n", PROBLEM_BAD_REQUEST),
        RAW("GET /livez HTTP/3.0\r\nHost: 127.0.0.1\r\n\r\n", PROBLEM_HTTP_VERSION),
        RAW("\x16\x03\x01\x02\x00\x01\r\n\r\n", PROBLEM_BAD_REQUEST),
        RAW(POST "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", PROBLEM_BAD_REQUEST),
        RAW(POST "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", PROBLEM_BAD_REQUEST),
        RAW(POST "Content-Length: two\r\n\r\n{}", PROBLEM_BAD_REQUEST),
        RAW(POST "Transfer-Encoding: gzip\r\n\r\n{}", PROBLEM_NOT_IMPLEMENTED),
        RAW(POST "Transfer-Encoding: gzip, chunked\r\n\r\n{}", PROBLEM_NOT_IMPLEMENTED),
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        raw_refused(f, bad[i].bytes, bad[i].size, bad[i].problem);
    size_t size = 300000;
    char *huge = malloc(size);
    memset(huge, 'a', size);
    memcpy(huge, "GET /", 5);
    raw_refused(f, huge, size, PROBLEM_URI_TOO_LONG);
    memcpy(huge, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: ", 37);
    raw_refused(f, huge, size, PROBLEM_HEADER_TOO_LARGE);
    free(huge);
}

static void a_used_connection_is_checked_too(void **state)
{
    struct fake *f = *state;
    static const char *const bad[] = {
        POST "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        POST "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    };
    static const char good[] = "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char answer[1024];
        char body[8];
        int fd = raw_connect(f, true);
        raw_send(fd, good, strlen(good));
        raw_head(fd, answer, sizeof(answer));
        assert_memory_equal(answer, "HTTP/1.1 200", 12);
        assert_true(raw_read(fd, body, 3));
        raw_send(fd, bad[i], strlen(bad[i]));
        raw_head(fd, answer, sizeof(answer));
        assert_memory_equal(answer, "HTTP/1.1 400", 12);
        assert_non_null(strstr(answer, "Skerry-Error: bad_request"));
        (void)close(fd);
    }
}

static void a_request_may_come_in_pieces(void **state)
{
    static const char request[] = "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
                                  "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    for (int tcp = 0; tcp < 2; tcp++) {
        char answer[1024];
        int fd = raw_connect(*state, tcp);
        for (size_t i = 0; i < sizeof(request) - 1; i++) {
            raw_send(fd, request + i, 1);
            fake_pause();
        }
        for (unsigned i = 0; i < 2; i++) {
            raw_head(fd, answer, sizeof(answer));
            assert_memory_equal(answer, "HTTP/1.1 200", 12);
            assert_true(raw_read(fd, answer, 3));
        }
        (void)close(fd);
    }
}

static void a_slow_header_is_cut(void **state)
{
    struct fake *f = *state;
    uint64_t begin = clock_monotonic_ms();
    raw_refused(f, "GET /livez HTTP/1.1\r\nHost: 127", 30, PROBLEM_HEADER_TIMEOUT);
    /* By its own deadline (1 s here), long before the client's patience. */
    assert_true(clock_monotonic_ms() - begin < FAKE_WAIT_MS / 4);
    /* One that says nothing is told nothing. */
    char byte;
    int fd = raw_connect(f, true);
    assert_false(raw_read(fd, &byte, 1));
    (void)close(fd);
}

/* --- who may ------------------------------------------------------------------------------------ */

static void tcp_always_needs_a_token(void **state)
{
    struct fake *f = *state;
    struct request q = {.path = "/v1/workloads", .tcp = true};
    client_refused(f, &q, PROBLEM_UNAUTHORIZED);
    q.token = "skt_0000000000000000_0000000000000000000000000000000000000000000000000000";
    client_refused(f, &q, PROBLEM_UNAUTHORIZED);
    char wrong[NODE_TOKEN_TEXT_SIZE];
    (void)text_copy(wrong, sizeof(wrong), f->admin);
    wrong[72] = wrong[72] == '0' ? '1' : '0';
    q.token = wrong;
    client_refused(f, &q, PROBLEM_UNAUTHORIZED);
    q.token = ADMIN;
    json_decref(client_json(f, &q, 200));
    char bearer[128];
    (void)text_format(bearer, sizeof(bearer), "Authorization: Bearer %s", f->admin);
    json_decref(client_json(
        f, &(struct request){.path = "/v1/workloads", .tcp = true, .headers = {bearer}}, 200));
}

static void a_sent_token_counts_on_the_socket_too(void **state)
{
    struct fake *f = *state;
    client_refused(f, &(struct request){.path = "/v1/workloads", .token = "skt_x"},
                   PROBLEM_UNAUTHORIZED);
}

static void roles_and_scopes_bound_what_a_token_may(void **state)
{
    struct fake *f = *state;
    char invoke[NODE_TOKEN_TEXT_SIZE];
    char deploy[NODE_TOKEN_TEXT_SIZE];
    deploy_hello(f);
    make_token(f, "{\"role\":\"invoke\",\"workload\":\"hello\"}", invoke);
    make_token(f, "{\"role\":\"deploy\",\"workload\":\"hello\"}", deploy);
    struct request q = {.path = "/v1/workloads/hello", .tcp = true, .token = invoke};
    json_t *json = client_json(f, &q, 200);
    assert_null(json_object_get(json, "spec")); /* its environment may hold secrets */
    json_decref(json);
    q.path = "/v1/workloads/other";
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    q.path = "/v1/workloads";
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    q.path = "/metrics";
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    q = (struct request){
        .method = "POST", .path = "/v1/workloads", .tcp = true, .token = deploy, .body = HELLO};
    json_decref(client_json(f, &q, 200));
    q.body = "{\"id\":\"other\",\"command\":[\"true\"],\"port\":80}";
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    /* More system calls are an admin's to give, whichever way the workload is named. */
    q.body = HELLO "sandbox: {profile: relaxed}\n";
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    q.method = "PUT";
    q.path = "/v1/workloads/hello";
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    q.token = ADMIN;
    json_decref(client_json(f, &q, 200));
    q = (struct request){.path = "/v1/tokens", .tcp = true, .token = deploy};
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    q = (struct request){
        .method = "POST", .path = "/v1/run?command=true", .tcp = true, .token = deploy};
    client_refused(f, &q, PROBLEM_FORBIDDEN); /* a run is no part of its workload */
    q.token = invoke;
    q.path = "/v1/instances";
    q.body = "{\"workload\":\"hello\"}";
    json_decref(client_json(f, &q, 201));
}

static void an_expired_or_revoked_token_is_refused(void **state)
{
    struct fake *f = *state;
    char token[NODE_TOKEN_TEXT_SIZE];
    char path[64];
    make_token(f, "{\"role\":\"deploy\",\"name\":\"ci\",\"ttl\":\"1h\"}", token);
    struct request q = {.path = "/v1/status", .tcp = true, .token = token};
    json_decref(client_json(f, &q, 200));
    json_t *list = client_json(f, &(struct request){.path = "/v1/tokens"}, 200);
    bool listed = false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        assert_null(json_object_get(item, "token"));
        assert_null(json_object_get(item, "hash"));
        listed = listed || (strcmp(text_of(item, "name"), "ci") == 0 &&
                            text_of(item, "expires_at")[0] != '\0');
    }
    assert_true(listed);
    json_decref(list);
    (void)text_format(path, sizeof(path), "/v1/tokens/%.16s", token + 4);
    struct answer a = client(f, &(struct request){.method = "DELETE", .path = path});
    assert_int_equal(a.status, 204);
    answer_free(&a);
    client_refused(f, &q, PROBLEM_UNAUTHORIZED);
    make_token(f, "{\"role\":\"deploy\",\"ttl\":\"1ms\"}", token);
    uint64_t made = clock_wall_ms();
    fake_wait_for(clock_wall_ms() > made + 1);
    client_refused(f, &q, PROBLEM_UNAUTHORIZED);
}

static void bad_tokens_are_not_made(void **state)
{
    static const char *const bodies[] = {
        "{}",
        "{\"role\":\"king\"}",
        "{\"role\":\"deploy\",\"ttl\":\"0s\"}",
        "{\"role\":\"deploy\",\"ttl\":\"soon\"}",
        "{\"role\":\"admin\",\"workload\":\"hello\"}",
        "{\"role\":\"invoke\",\"instance\":\"hello\"}",
        "{\"role\":\"invoke\",\"workload\":\"Hello!\"}",
        "{\"role\":\"deploy\",\"colour\":\"red\"}",
        "{\"role\":\"deploy\",\"role\":\"admin\"}",
        "[]",
        "role: deploy",
        "{\"role\":5}",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bodies); i++)
        client_refused(*state,
                       &(struct request){.method = "POST", .path = "/v1/tokens", .body = bodies[i]},
                       PROBLEM_BAD_REQUEST);
}

static void web_pages_elsewhere_are_refused(void **state)
{
    struct fake *f = *state;
    char origin[64];
    struct request q = {
        .path = "/v1/status", .tcp = true, .token = ADMIN, .headers = {"Host: evil.example"}};
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    q.headers[0] = "Host: API.example:99";
    json_decref(client_json(f, &q, 200));
    q.headers[0] = "Host: [::1]:8081";
    json_decref(client_json(f, &q, 200));
    q.headers[0] = "Origin: http://evil.example";
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    q.headers[0] = "Origin: null";
    client_refused(f, &q, PROBLEM_FORBIDDEN);
    (void)text_format(origin, sizeof(origin), "Origin: http://127.0.0.1:%u", f->port);
    q.headers[0] = origin;
    json_decref(client_json(f, &q, 200));
}

/* --- workloads ---------------------------------------------------------------------------------- */

static void a_workload_is_deployed_changed_and_rolled_back(void **state)
{
    struct fake *f = *state;
    deploy_hello(f);
    struct request put = {.method = "POST",
                          .path = "/v1/workloads?dry_run=1",
                          .body = "{\"id\":\"hello\",\"command\":[\"false\"],\"port\":8080}"};
    json_t *json = client_json(f, &put, 200);
    json_int_t next = json_integer_value(json_object_get(json, "version"));
    assert_true(json_is_true(json_object_get(json, "changed")));
    assert_true(json_is_true(json_object_get(json, "dry_run")));
    json_decref(json);
    put.path = "/v1/workloads";
    json = client_json(f, &put, 200);
    assert_int_equal(json_integer_value(json_object_get(json, "version")), next);
    json_decref(json);
    json = client_json(f, &put, 200);
    assert_true(json_is_false(json_object_get(json, "changed")));
    assert_null(json_object_get(json, "warning"));
    json_decref(json);
    f->copies_warning = "its layers are only on node a yet";
    json = client_json(f, &put, 200);
    assert_string_equal(text_of(json, "warning"), f->copies_warning);
    json_decref(json);
    json = client_json(
        f, &(struct request){.method = "POST", .path = "/v1/workloads/hello/rollback"}, 200);
    assert_int_equal(json_integer_value(json_object_get(json, "version")), next + 1);
    json_decref(json);
    json = client_json(f, &(struct request){.path = "/v1/workloads/hello"}, 200);
    const json_t *spec = json_object_get(json, "spec");
    assert_string_equal(text_of(json_object_get(spec, "environment"), "SECRET"), "xyzzy");
    assert_non_null(json_object_get(spec, "timeouts")); /* every effective value */
    json_decref(json);
    json = client_json(f, &(struct request){.path = "/v1/workloads/hello/versions"}, 200);
    assert_int_equal(json_array_size(json), next + 1);
    assert_true(json_is_true(json_object_get(json_array_get(json, (size_t)next), "current")));
    json_decref(json);
    json = client_json(f, &(struct request){.path = "/v1/workloads/hello?version=1"}, 200);
    assert_true(json_is_false(json_object_get(json, "current")));
    json_decref(json);
    client_refused(f, &(struct request){.path = "/v1/workloads/hello?version=99"},
                   PROBLEM_WORKLOAD_UNKNOWN);
}

static void a_bad_workload_is_refused_with_its_line(void **state)
{
    struct fake *f = *state;
    struct request q = {.method = "POST",
                        .path = "/v1/workloads",
                        .body = "id: hello\nport: 8080\nnetwork_mode: host\n"};
    struct answer a = client(f, &q);
    assert_int_equal(a.status, 400);
    assert_non_null(strstr(a.body, "body:3: network_mode"));
    answer_free(&a);
    client_refused(f, &q, PROBLEM_WORKLOAD_INVALID);
    q.body = "id: hello\ncommand: [\"true\"]\nport: 8080\nsource: ./app\n";
    client_refused(f, &q, PROBLEM_WORKLOAD_INVALID);
    q.body = HELLO;
    q.method = "PUT";
    q.path = "/v1/workloads/other";
    client_refused(f, &q, PROBLEM_WORKLOAD_INVALID);
    q.path = "/v1/workloads/hello?dry_run=1";
    q.body = "id: hello\nimage: nowhere\ncommand: [\"true\"]\nport: 8080\n";
    client_refused(f, &q, PROBLEM_IMAGE_UNKNOWN);
}

static void a_workload_is_listed_and_removed(void **state)
{
    struct fake *f = *state;
    json_decref(client_json(f,
                            &(struct request){.method = "PUT",
                                              .path = "/v1/workloads/gone",
                                              .body = "id: gone\ncommand: [\"x\"]\nport: 80\n"},
                            200));
    json_t *list = client_json(f, &(struct request){.path = "/v1/workloads"}, 200);
    assert_string_equal(text_of(json_array_get(list, 0), "id"), "gone");
    assert_string_equal(text_of(json_array_get(list, 0), "access"), "private");
    json_decref(list);
    struct answer a =
        client(f, &(struct request){.method = "DELETE", .path = "/v1/workloads/gone"});
    assert_int_equal(a.status, 204);
    answer_free(&a);
    client_refused(f, &(struct request){.path = "/v1/workloads/gone"}, PROBLEM_WORKLOAD_UNKNOWN);
    client_refused(f, &(struct request){.method = "DELETE", .path = "/v1/workloads/gone"},
                   PROBLEM_WORKLOAD_UNKNOWN);
}

static void what_was_done_shows_in_the_next_answer(void **state)
{
    struct fake *f = *state;
    char path[128];
    fake_set(f, root_lag, 4);
    json_decref(client_json(f,
                            &(struct request){.method = "PUT",
                                              .path = "/v1/workloads/late",
                                              .body = "id: late\ncommand: [x]\nport: 80\n"},
                            200));
    json_decref(client_json(f, &(struct request){.path = "/v1/workloads/late"}, 200));
    fake_set(f, root_lag, 4);
    json_t *json = client_json(f,
                               &(struct request){.method = "POST",
                                                 .path = "/v1/instances",
                                                 .body = "{\"workload\":\"late\"}"},
                               201);
    (void)text_format(path, sizeof(path), "/v1/instances/%s", text_of(json, "id"));
    json_decref(json);
    fake_set(f, root_lag, 4);
    json = client_json(f, &(struct request){.method = "DELETE", .path = path}, 200);
    assert_string_equal(text_of(json, "state"), "ended");
    json_decref(json);
}

/* --- instances ---------------------------------------------------------------------------------- */

static void an_instance_lives_and_ends(void **state)
{
    struct fake *f = *state;
    char path[128];
    char id[64];
    deploy_hello(f);
    struct request start = {.method = "POST",
                            .path = "/v1/instances",
                            .body = "{\"workload\":\"hello\",\"key\":\"room 1\"}"};
    json_t *json = client_json(f, &start, 201);
    (void)text_copy(id, sizeof(id), text_of(json, "id"));
    assert_string_equal(text_of(json, "state"), "ready");
    assert_string_equal(text_of(json, "key"), "room 1");
    assert_string_equal(text_of(json, "node"), "node1");
    assert_int_equal(json_integer_value(json_object_get(json, "max_joiners")), 7);
    assert_true(json_is_null(json_object_get(json, "exit_code")));
    json_decref(json);
    (void)text_format(path, sizeof(path), "/v1/instances/%s", id);
    json = client_json(f, &(struct request){.path = path}, 200);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(json, "usage"), "memory_bytes")), 12345);
    json_decref(json);
    (void)text_format(path, sizeof(path), "/v1/instances?prefix=%.8s", id);
    json = client_json(f, &(struct request){.path = path}, 200);
    assert_int_equal(json_array_size(json), 1);
    json_decref(json);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/extend", id);
    json_decref(client_json(
        f, &(struct request){.method = "POST", .path = path, .body = "{\"for\":\"10m\"}"}, 200));
    assert_int_equal(fake_get(f, extended_ms), 600000);
    client_refused(f, &(struct request){.method = "POST", .path = path}, PROBLEM_BAD_REQUEST);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/stop", id);
    json = client_json(f, &(struct request){.method = "POST", .path = path}, 200);
    assert_string_equal(text_of(json, "state"), "ended");
    assert_string_equal(text_of(json, "reason"), "killed");
    json_decref(json);
    struct answer a = client(f, &(struct request){.method = "POST", .path = path});
    assert_int_equal(a.status, 410);
    assert_non_null(strstr(a.body, "\"reason\":\"killed\""));
    assert_non_null(strstr(a.body, id));
    answer_free(&a);
    client_refused(f, &(struct request){.path = "/v1/instances/0aaaaaaaaaaaaaaaa1"},
                   PROBLEM_INSTANCE_UNKNOWN);
}

static void instances_are_listed_by_page_and_filter(void **state)
{
    struct fake *f = *state;
    struct instance_id ids[5];
    deploy_hello(f);
    (void)pthread_mutex_lock(&f->lock);
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(fake_instance(f, "hello", NULL, &ids[i]), PROBLEM_NONE);
    assert_true(fake_end_instance(f, ids[0].text, END_OOM));
    (void)pthread_mutex_unlock(&f->lock);
    json_t *live = client_json(f, &(struct request){.path = "/v1/instances?workload=hello"}, 200);
    json_t *all =
        client_json(f, &(struct request){.path = "/v1/instances?workload=hello&all=1"}, 200);
    json_t *ended = client_json(f, &(struct request){.path = "/v1/instances?state=ended"}, 200);
    assert_true(json_array_size(all) > json_array_size(live));
    bool found = false;
    for (size_t i = 0; i < json_array_size(ended); i++)
        found = found || (strcmp(text_of(json_array_get(ended, i), "id"), ids[0].text) == 0 &&
                          strcmp(text_of(json_array_get(ended, i), "reason"), "oom") == 0);
    assert_true(found);
    /* Pages of two are the whole list, in order. */
    char path[128] = "/v1/instances?all=1&workload=hello&limit=2";
    size_t seen = 0;
    for (;;) {
        struct answer a = client(f, &(struct request){.path = path});
        json_t *page = json_loads(a.body, 0, NULL);
        assert_true(json_array_size(page) <= 2);
        for (size_t i = 0; i < json_array_size(page); i++)
            assert_string_equal(text_of(json_array_get(page, i), "id"),
                                text_of(json_array_get(all, seen++), "id"));
        json_decref(page);
        const char *next = strstr(a.headers, "Skerry-Next: ");
        if (next != NULL)
            (void)text_format(path, sizeof(path),
                              "/v1/instances?all=1&workload=hello&limit=2&after=%.*s",
                              (int)strcspn(next + 13, "\r"), next + 13);
        answer_free(&a);
        if (next == NULL)
            break;
    }
    assert_int_equal(seen, json_array_size(all));
    json_decref(live);
    json_decref(all);
    json_decref(ended);
    client_refused(f, &(struct request){.path = "/v1/instances?state=asleep"}, PROBLEM_BAD_REQUEST);
    client_refused(f, &(struct request){.path = "/v1/instances?prefix=UPPER"}, PROBLEM_BAD_REQUEST);
    client_refused(f, &(struct request){.path = "/v1/instances?limit=0"}, PROBLEM_BAD_REQUEST);
}

static void starts_that_are_refused_say_why(void **state)
{
    struct fake *f = *state;
    struct request q = {
        .method = "POST", .path = "/v1/instances", .body = "{\"workload\":\"nobody\"}"};
    client_refused(f, &q, PROBLEM_WORKLOAD_UNKNOWN);
    q.body = "{}";
    client_refused(f, &q, PROBLEM_BAD_REQUEST);
    q.body = "";
    client_refused(f, &q, PROBLEM_BAD_REQUEST);
}

/* --- the cluster -------------------------------------------------------------------------------- */

static void status_nodes_explain_and_version_answer(void **state)
{
    struct fake *f = *state;
    deploy_hello(f);
    json_t *json = client_json(f, &(struct request){.path = "/v1/status"}, 200);
    assert_string_equal(text_of(json, "cluster"), "demo");
    json_decref(json);
    json = client_json(f, &(struct request){.path = "/v1/nodes"}, 200);
    assert_int_equal(json_array_size(json), 1);
    json_decref(json);
    json = client_json(f, &(struct request){.path = "/v1/nodes/node1"}, 200);
    assert_string_equal(text_of(json, "id"), "1");
    json_decref(json);
    client_refused(f, &(struct request){.path = "/v1/nodes/node9"}, PROBLEM_NOT_FOUND);
    json = client_json(f, &(struct request){.path = "/v1/explain/hello"}, 200);
    assert_true(json_array_size(json_object_get(json, "instances")) > 0);
    json_decref(json);
    client_refused(f, &(struct request){.path = "/v1/explain/nothing"}, PROBLEM_NOT_FOUND);
    struct answer a = client(f, &(struct request){.path = "/metrics"});
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.headers, "Content-Type: text/plain; version=0.0.4"));
    assert_non_null(strstr(a.body, "\nskerry_gateway_connections 9\n"));
    assert_non_null(strstr(a.body, "\nskerry_instances{state=\"ready\"} "));
    answer_free(&a);
    json = client_json(f, &(struct request){.path = "/v1/version"}, 200);
    assert_string_equal(text_of(json, "version"), SKERRY_VERSION);
    assert_string_equal(text_of(json, "cluster"), "0011223344556677");
    json_decref(json);
}

/* --- its description ---------------------------------------------------------------------------- */

/* Reads paths, methods and the names of query parameters by their indentation. */
static bool described(const char *method, const char *path, const char *yaml)
{
    char want[128];
    (void)text_format(want, sizeof(want), "\n  %s:\n", path);
    const char *at = strstr(yaml, want);
    if (at == NULL)
        return false;
    const char *end = at + strlen(want);
    while (strncmp(end, "    ", 4) == 0 || *end == '\n')
        end = strchr(end, '\n') + 1;
    char verb[16];
    (void)text_format(verb, sizeof(verb), "\n    %s:\n", method);
    for (char *c = verb; *c != '\0'; c++)
        if (*c >= 'A' && *c <= 'Z')
            *c = (char)(*c - 'A' + 'a');
    const char *found = strstr(at, verb);
    return found != NULL && found < end;
}

static void every_route_is_described_and_the_other_way_round(void **state)
{
    (void)state;
    FILE *file = fopen("docs/openapi.yaml", "re");
    assert_non_null(file);
    char *yaml = calloc(1, 1024 * 1024);
    assert_true(fread(yaml, 1, 1024 * 1024 - 1, file) > 1000);
    (void)fclose(file);
    size_t routes = 0;
    for (size_t i = 0; i < api_route_count(); i++) {
        struct api_route_view r = api_route_at(i);
        if (!described(r.method, r.path, yaml))
            fail_msg("%s %s is not in docs/openapi.yaml", r.method, r.path);
        char query[512];
        char *rest = query;
        const char *name;
        (void)text_copy(query, sizeof(query), r.query);
        while ((name = strsep(&rest, " ")) != NULL) {
            char item[64];
            (void)text_format(item, sizeof(item), "name: %s", name);
            if (name[0] != '\0' && strstr(yaml, item) == NULL)
                fail_msg("%s %s: parameter %s is not described", r.method, r.path, name);
        }
        routes++;
    }
    size_t operations = 0;
    for (const char *at = yaml; (at = strstr(at, "\n      operationId: ")) != NULL; at++)
        operations++;
    assert_int_equal(operations, routes);
    free(yaml);
}

/* --- its end ------------------------------------------------------------------------------------ */

static void it_closes_with_streams_and_connections_open(void **state)
{
    (void)state;
    struct fake f;
    char byte[16];
    static const char follow[] = "GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n";
    static const char begun[] = "POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{";
    static const char run[] = "POST /v1/run?command=sleep&command=30 HTTP/1.1\r\nHost: x\r\n\r\n";
    fake_open(&f, NULL);
    int idle = raw_connect(&f, false);
    int stream = raw_connect(&f, false);
    int half = raw_connect(&f, false);
    int running = raw_connect(&f, false);
    raw_send(stream, follow, sizeof(follow) - 1);
    assert_true(raw_read(stream, byte, 12));
    raw_send(half, begun, sizeof(begun) - 1);
    raw_send(running, run, sizeof(run) - 1);
    fake_wait_for(fake_get(&f, index) >= 5); /* the run is registered */
    fake_close(&f);
    assert_int_equal(f.canceled, 1);
    (void)close(idle);
    (void)close(stream);
    (void)close(half);
    (void)close(running);
}

static void bad_addresses_are_refused(void **state)
{
    struct fake *f = *state;
    static const char *const bad[] = {"localhost:80", "127.0.0.1", "127.0.0.1:http",
                                      "1.2.3.4.5:80"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct err e = {0};
        struct api *api = NULL;
        struct api_options o = {.listen = &bad[i],
                                .listen_count = 1,
                                .node_name = "n",
                                .calls = {.user = f, .events_watch = fake_events_watch}};
        assert_true(api_open(&api, &o, &e) < 0);
        assert_non_null(strstr(e.msg, "API address"));
    }
    struct err e = {0};
    struct api *api = NULL;
    struct api_options o = {.socket_path = f->socket_path, .node_name = "n", .calls = {.user = f}};
    assert_int_equal(api_open(&api, &o, &e), -ERR_EXISTS); /* another one listens there */
    struct stat s;
    assert_int_equal(stat(f->socket_path, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0660);
}

static void impatient(struct api_options *o)
{
    o->header_timeout_ms = 1000;
}

static int setup_impatient(void **state)
{
    *state = &fake;
    fake_open(&fake, impatient);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probes_need_no_token),
        cmocka_unit_test(unknown_targets_are_refused),
        cmocka_unit_test(a_long_target_is_refused),
        cmocka_unit_test(a_large_header_is_refused),
        cmocka_unit_test(a_large_body_is_refused),
        cmocka_unit_test(malformed_requests_get_a_problem),
        cmocka_unit_test(a_used_connection_is_checked_too),
        cmocka_unit_test(a_request_may_come_in_pieces),
        cmocka_unit_test(too_many_questions_are_refused),
        cmocka_unit_test(tcp_always_needs_a_token),
        cmocka_unit_test(a_sent_token_counts_on_the_socket_too),
        cmocka_unit_test(roles_and_scopes_bound_what_a_token_may),
        cmocka_unit_test(an_expired_or_revoked_token_is_refused),
        cmocka_unit_test(bad_tokens_are_not_made),
        cmocka_unit_test(web_pages_elsewhere_are_refused),
        cmocka_unit_test(a_workload_is_listed_and_removed),
        cmocka_unit_test(a_workload_is_deployed_changed_and_rolled_back),
        cmocka_unit_test(a_bad_workload_is_refused_with_its_line),
        cmocka_unit_test(what_was_done_shows_in_the_next_answer),
        cmocka_unit_test(an_instance_lives_and_ends),
        cmocka_unit_test(instances_are_listed_by_page_and_filter),
        cmocka_unit_test(starts_that_are_refused_say_why),
        cmocka_unit_test(status_nodes_explain_and_version_answer),
        cmocka_unit_test(every_route_is_described_and_the_other_way_round),
        cmocka_unit_test(bad_addresses_are_refused),
        cmocka_unit_test(it_closes_with_streams_and_connections_open),
    };
    const struct CMUnitTest slow[] = {
        cmocka_unit_test(a_slow_header_is_cut),
    };
    int failed = cmocka_run_group_tests_name("api", tests, setup, teardown);
    failed += cmocka_run_group_tests_name("api, impatient", slow, setup_impatient, teardown);
    return failed;
}
