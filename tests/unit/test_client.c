#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory.h"
#include "node/cli/client.h"

/* A node that says the same to everybody: reads a request's head and as much of the body as its
 * length tells, keeps what it read, and sends `script`. */
struct node {
    char folder[64], path[96], address[128];
    int listener;
    const char *script;
    struct buffer seen;
    pthread_t thread;
};

static size_t body_length(const struct buffer *seen, const char *head_end)
{
    const char *line = memmem(seen->data, seen->length, "Content-Length: ", 16);
    return line != NULL && line < head_end ? strtoul(line + 16, NULL, 10) : 0;
}

static void *serve_one(void *user)
{
    struct node *n = user;
    CLEANUP_FD int fd = accept(n->listener, NULL, NULL);
    if (fd < 0)
        return NULL;
    for (;;) {
        char data[4096];
        const char *end =
            n->seen.length == 0 ? NULL : memmem(n->seen.data, n->seen.length, "\r\n\r\n", 4);
        if (end != NULL &&
            n->seen.length >= (size_t)(end + 4 - n->seen.data) + body_length(&n->seen, end))
            break;
        ssize_t got = read(fd, data, sizeof data);
        if (got <= 0 || !buffer_append(&n->seen, data, (size_t)got))
            return NULL;
    }
    (void)!buffer_append(&n->seen, "", 1);
    size_t length = strlen(n->script);
    (void)!send(fd, n->script, length, MSG_NOSIGNAL);
    return NULL;
}

static int open_node(void **state)
{
    struct node *n = calloc(1, sizeof *n);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    assert_non_null(n);
    snprintf(n->folder, sizeof n->folder, "/tmp/skerry-client-XXXXXX");
    assert_non_null(mkdtemp(n->folder));
    snprintf(n->path, sizeof n->path, "%s/s", n->folder);
    snprintf(n->address, sizeof n->address, "unix:%s", n->path);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", n->path);
    n->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(n->listener, (const struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(n->listener, 4), 0);
    buffer_init(&n->seen, 1 << 20);
    unsetenv("SKERRY_TOKEN");
    unsetenv("SKERRY_ADDR");
    *state = n;
    return 0;
}

static int close_node(void **state)
{
    struct node *n = *state;
    close(n->listener);
    unlink(n->path);
    rmdir(n->folder);
    buffer_free(&n->seen);
    free(n);
    return 0;
}

static struct client *begin(struct node *n, const char *script)
{
    struct client_options options = {.address = n->address};
    struct client *c = NULL;
    n->script = script;
    assert_int_equal(client_open(&c, &options, NULL), 0);
    assert_int_equal(pthread_create(&n->thread, NULL, serve_one, n), 0);
    return c;
}

static void end(struct node *n, struct client *c, struct client_answer *answer)
{
    pthread_join(n->thread, NULL);
    client_answer_free(answer);
    client_close(c);
}

static void an_answer_is_taken_apart(void **state)
{
    struct node *n = *state;
    struct client *c = begin(n, "HTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\n"
                                "HTTP/1.1 404 Not Found\r\nSkerry-Error: workload_unknown\r\n"
                                "Content-Length: 16\r\n\r\n{\"code\": \"gone\"}");
    struct client_request request = {.path = "/v1/workloads/x"};
    struct client_answer answer;
    char value[64];
    assert_int_equal(client_do(c, &request, &answer, NULL), 0);
    assert_int_equal(answer.status, 404);
    assert_true(client_header(&answer, "skerry-error", value, sizeof value));
    assert_string_equal(value, "workload_unknown");
    assert_false(client_header(&answer, "X-Early", value, sizeof value));
    assert_false(client_header(&answer, "Skerry", value, sizeof value));
    json_t *json = client_json(&answer);
    assert_string_equal(json_string_value(json_object_get(json, "code")), "gone");
    json_decref(json);
    end(n, c, &answer);
    assert_non_null(strstr(n->seen.data, "GET /v1/workloads/x HTTP/1.1\r\n"));
    assert_null(strstr(n->seen.data, "Skerry-Token"));
}

static void the_token_goes_in_its_header_and_no_error(void **state)
{
    struct node *n = *state;
    setenv("SKERRY_TOKEN", "skt_id_secret", 1);
    struct client *c = begin(n, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    struct client_request request = {
        .method = "POST", .path = "/v1/x", .body = "{}", .body_length = 2};
    struct client_answer answer;
    assert_int_equal(client_do(c, &request, &answer, NULL), 0);
    end(n, c, &answer);
    assert_non_null(strstr(n->seen.data, "Skerry-Token: skt_id_secret\r\n"));
    assert_non_null(strstr(n->seen.data, "Content-Type: application/json\r\n"));
    struct err e = {0};
    struct client_options options = {.address = "unix:/nowhere/at/all"};
    assert_int_equal(client_open(&c, &options, &e), 0);
    assert_int_equal(client_do(c, &request, &answer, &e), -ERR_UNAVAILABLE);
    assert_null(strstr(e.msg, "secret"));
    assert_non_null(strstr(e.msg, "/nowhere/at/all"));
    client_answer_free(&answer);
    client_close(c);
    setenv("SKERRY_TOKEN", "skt_id_sec\nret: x", 1); /* it would make a header of its own */
    assert_int_equal(client_open(&c, &options, &e), -ERR_INVALID);
    assert_null(strstr(e.msg, "sec\n"));
}

struct sink {
    size_t length;
    bool refuse;
};

static int take(void *user, const void *data, size_t length, struct err *e)
{
    struct sink *s = user;
    (void)data;
    s->length += length;
    return s->refuse ? err_set(e, ERR_CANCELED, "enough") : 0;
}

static void a_sink_takes_successes_only(void **state)
{
    struct node *n = *state;
    struct sink s = {0};
    struct client *c = begin(n, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    struct client_request request = {.path = "/", .sink = take, .user = &s};
    struct client_answer answer;
    assert_int_equal(client_do(c, &request, &answer, NULL), 0);
    assert_int_equal(s.length, 5);
    assert_int_equal(answer.body.length, 0);
    end(n, c, &answer);
    n->seen.length = 0;
    c = begin(n, "HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nhello");
    assert_int_equal(client_do(c, &request, &answer, NULL), 0);
    assert_int_equal(s.length, 5);
    assert_int_equal(answer.body.length, 5);
    end(n, c, &answer);
}

static void what_a_callback_says_is_the_error(void **state)
{
    struct node *n = *state;
    struct sink s = {.refuse = true};
    struct err e = {0};
    struct client *c = begin(n, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    struct client_request request = {.path = "/", .sink = take, .user = &s};
    struct client_answer answer;
    assert_int_equal(client_do(c, &request, &answer, &e), -ERR_CANCELED);
    assert_string_equal(e.msg, "enough");
    end(n, c, &answer);
}

static void an_answer_that_breaks_off_is_an_error(void **state)
{
    struct node *n = *state;
    struct err e = {0};
    struct client *c = begin(n, "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello");
    struct client_request request = {.path = "/"};
    struct client_answer answer;
    assert_int_equal(client_do(c, &request, &answer, &e), -ERR_IO);
    end(n, c, &answer);
    n->seen.length = 0;
    c = begin(n, "");
    assert_int_equal(client_do(c, &request, &answer, &e), -ERR_UNAVAILABLE);
    end(n, c, &answer);
}

static void an_upgrade_hands_out_the_socket(void **state)
{
    struct node *n = *state;
    struct client_answer answer;
    int fd = -1;
    struct client *c =
        begin(n, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: skerry-exec/1\r\n\r\nearly");
    assert_int_equal(client_upgrade(c, "/v1/run", "{\"command\":[\"true\"]}", &fd, &answer, NULL),
                     0);
    assert_true(fd >= 0);
    assert_int_equal(answer.status, 101);
    pthread_join(n->thread, NULL);
    char rest[16];
    ssize_t got;
    while ((got = read(fd, rest, sizeof rest)) > 0)
        assert_true(buffer_append(&answer.body, rest, (size_t)got));
    assert_int_equal(answer.body.length, 5);
    assert_memory_equal(answer.body.data, "early", 5);
    close(fd);
    client_answer_free(&answer);
    client_close(c);
    assert_non_null(strstr(n->seen.data, "Upgrade: skerry-exec/1\r\n"));
    assert_non_null(strstr(n->seen.data, "{\"command\":[\"true\"]}"));
}

static void a_refused_upgrade_is_an_answer(void **state)
{
    struct node *n = *state;
    struct client_answer answer;
    int fd = -1;
    struct client *c = begin(n, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}");
    assert_int_equal(client_upgrade(c, "/v1/run", "{}", &fd, &answer, NULL), 0);
    assert_int_equal(fd, -1);
    assert_int_equal(answer.status, 403);
    assert_int_equal(answer.body.length, 2);
    end(n, c, &answer);
    n->seen.length = 0;
    c = begin(n, "HTTP/1.1 101 Sw");
    struct err e = {0};
    assert_int_equal(client_upgrade(c, "/v1/run", "{}", &fd, &answer, &e), -ERR_IO);
    end(n, c, &answer);
}

static void addresses_and_paths_are_checked(void **state)
{
    (void)state;
    struct client *c = NULL;
    struct err e = {0};
    char text[32];
    struct client_options options = {.address = "ftp://host"};
    assert_int_equal(client_open(&c, &options, &e), -ERR_INVALID);
    options.address = "127.0.0.1:8081";
    options.token_file = "/nowhere/token";
    assert_int_equal(client_open(&c, &options, &e), -ERR_NOT_FOUND);
    assert_true(client_encode(text, sizeof text, "a/b c~\xc3\xa4"));
    assert_string_equal(text, "a%2Fb%20c~%C3%A4");
    assert_false(client_encode(text, 4, "a/b"));
}

int main(void)
{
#define WITH_NODE(f) cmocka_unit_test_setup_teardown(f, open_node, close_node)
    const struct CMUnitTest tests[] = {
        WITH_NODE(an_answer_is_taken_apart),
        WITH_NODE(the_token_goes_in_its_header_and_no_error),
        WITH_NODE(a_sink_takes_successes_only),
        WITH_NODE(what_a_callback_says_is_the_error),
        WITH_NODE(an_answer_that_breaks_off_is_an_error),
        WITH_NODE(an_upgrade_hands_out_the_socket),
        WITH_NODE(a_refused_upgrade_is_an_answer),
        cmocka_unit_test(addresses_and_paths_are_checked),
    };
    return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}
