#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "tests/lib/gateway_fixture.h"

#define HOST "Host: localhost\r\n"
#define GET(path) "GET " path " HTTP/1.1\r\n" HOST "\r\n"

/* Commands that run as threads of this test, on real pipes. What they do stands in the path of the
 * request. A cancel makes them end as a killed command does. */

struct running {
    struct gateway_ask *ask;
    int fds[3]; /* the command's ends */
    char what[64];
    struct running *next;
    _Atomic int canceled; /* an end_reason */
    uint64_t number;
    pthread_t thread;
};

/* One test at a time runs commands, so one list will do; under the fixture's mutex. */
static struct running *all_running;

static void say(int fd, const char *text)
{
    size_t length = strlen(text);
    while (length > 0) {
        ssize_t n = write(fd, text, length);
        if (n <= 0)
            return;
        text += n;
        length -= (size_t)n;
    }
}

static void copy_input(struct running *r)
{
    char piece[8192];
    ssize_t n;
    while (r->fds[0] >= 0 && (n = read(r->fds[0], piece, sizeof piece)) > 0)
        if (write(r->fds[1], piece, (size_t)n) != n)
            break;
}

static void run(struct running *r)
{
    struct gateway_ask *ask = r->ask;
    const char *what = r->what;
    ask->ended.reason = END_EXITED;
    ask->ended.wall_us = 1500000;
    ask->ended.memory_peak_bytes = 4096;
    if (strcmp(what, "cat") == 0) {
        copy_input(r);
    } else if (strcmp(what, "fail") == 0) {
        say(r->fds[1], "out\n");
        say(r->fds[2], "err\n");
        ask->ended.exit_code = 7;
    } else if (strcmp(what, "signal") == 0) {
        ask->ended.signal = 11;
    } else if (strcmp(what, "binary") == 0) {
        say(r->fds[1], "\xff\xfe");
    } else if (strcmp(what, "much") == 0) {
        for (int i = 0; i < 20000; i++)
            say(r->fds[1], "0123456789012345678901234567890123456789\n");
        ask->ended.exit_code = 3;
    } else if (strcmp(what, "oom") == 0) {
        ask->ended.reason = END_OOM;
        ask->ended.oom = true;
        ask->ended.signal = 9;
    } else if (strcmp(what, "hang") == 0 || strcmp(what, "talk-and-hang") == 0) {
        if (what[0] == 't')
            for (int i = 0; i < 3000; i++)
                say(r->fds[1], "0123456789012345678901234567890123456789\n");
        while (r->canceled == END_NONE)
            gateway_fixture_pause();
    } else if (strcmp(what, "ignore") == 0) {
        memory_close(&r->fds[0]);
        say(r->fds[1], "did not read");
    }
    if (r->canceled != END_NONE) {
        ask->ended.reason = (enum end_reason)r->canceled;
        ask->ended.timed_out = r->canceled == END_TIMED_OUT;
        ask->ended.signal = 9;
    }
}

static void *running_main(void *argument)
{
    struct running *r = argument;
    run(r);
    struct gateway_ask *ask = r->ask;
    r->ask = NULL;
    for (size_t i = 0; i < 3; i++)
        memory_close(&r->fds[i]);
    gateway_command_ended(ask);
    return NULL;
}

static void control_runs(struct gateway_fixture *f, struct gateway_ask *ask)
{
    struct running *r = calloc(1, sizeof *r);
    int in[2] = {-1, -1}, out[2], err[2];
    assert_int_equal(pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
    if (!ask->no_stdin)
        assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    r->ask = ask;
    r->number = ask->number;
    r->fds[0] = in[0];
    r->fds[1] = out[1];
    r->fds[2] = err[1];
    text_copy(r->what, sizeof r->what, strrchr(ask->asked_by, '/') + 1);
    ask->descriptors[0] = in[1];
    ask->descriptors[1] = out[0];
    ask->descriptors[2] = err[0];
    ask->id = f->id;
    ask->start = GATEWAY_START_COLD;
    pthread_mutex_lock(&f->mutex);
    r->next = all_running;
    all_running = r;
    pthread_mutex_unlock(&f->mutex);
    gateway_answer(ask);
    pthread_create(&r->thread, NULL, running_main, r);
}

static void control_cancels(struct gateway_fixture *f, uint64_t number, enum end_reason reason)
{
    pthread_mutex_lock(&f->mutex);
    for (struct running *r = all_running; r != NULL; r = r->next)
        if (r->number == number)
            r->canceled = (int)reason;
    pthread_mutex_unlock(&f->mutex);
}

static int start_with(void **state, uint64_t request_ms)
{
    struct gateway_fixture *f = malloc(sizeof *f);
    struct gateway_fixture_options options = {
        .on_ask = control_runs, .on_cancel = control_cancels, .request_ms = request_ms};
    gateway_fixture_start(f, &options);
    *state = f;
    return 0;
}

static int start(void **state)
{
    return start_with(state, 0);
}

/* For commands that never end; "talk-and-hang" says its 64 KiB well before. */
static int start_timed(void **state)
{
    return start_with(state, 1000);
}

static int stop(void **state)
{
    struct gateway_fixture *f = *state;
    gateway_fixture_stop(f);
    while (all_running != NULL) {
        struct running *r = all_running;
        all_running = r->next;
        pthread_join(r->thread, NULL);
        free(r);
    }
    free(f);
    return 0;
}

static unsigned cancels(struct gateway_fixture *f, enum end_reason *reason)
{
    pthread_mutex_lock(&f->mutex);
    unsigned n = f->canceled;
    *reason = f->canceled_reason;
    pthread_mutex_unlock(&f->mutex);
    return n;
}

static void exit_code_stands_in_the_head(void **state)
{
    struct test_answer a;
    gateway_fixture_get(*state, &a, GET("/w/job/fail"));
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "out\n");
    assert_string_equal(test_answer_field(&a, "Skerry-Exit-Code"), "7");
    assert_null(test_answer_field(&a, "Skerry-Signal"));
    assert_string_equal(test_answer_field(&a, "Skerry-Start"), "cold");
    assert_string_equal(test_answer_field(&a, "Content-Length"), "4");
    test_answer_free(&a);
    gateway_fixture_get(*state, &a, GET("/w/job/signal"));
    assert_string_equal(test_answer_field(&a, "Skerry-Exit-Code"), "139");
    assert_string_equal(test_answer_field(&a, "Skerry-Signal"), "11");
    test_answer_free(&a);
}

static void body_goes_to_stdin(void **state)
{
    struct test_answer a;
    struct test_client c;
    test_client_open(&c, *state);
    test_client_send(&c, "POST /w/job/cat HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello");
    test_client_read(&c, &a, false);
    assert_string_equal(a.body, "hello");
    test_answer_free(&a);
    test_client_send(&c, "POST /w/job/cat HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n"
                         "Expect: 100-continue\r\n\r\n");
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 100);
    test_answer_free(&a);
    test_client_send(&c, "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n");
    test_client_read(&c, &a, false);
    assert_string_equal(a.body, "abcdefg");
    test_answer_free(&a);
    test_client_send(&c, GET("/w/job/cat")); /* no body, no stdin */
    test_client_read(&c, &a, false);
    assert_string_equal(a.body, "");
    test_answer_free(&a);
    test_client_close(&c);
}

static void *send_much(void *argument)
{
    struct test_client *c = argument;
    char *piece = calloc(1, 100000);
    for (int i = 0; i < 50; i++)
        test_client_send_bytes(c, piece, 100000);
    free(piece);
    return NULL;
}

static void a_command_may_ignore_its_input(void **state)
{
    struct test_answer a;
    struct test_client c;
    pthread_t thread;
    test_client_open(&c, *state);
    test_client_send(&c, "POST /w/job/ignore HTTP/1.1\r\n" HOST "Content-Length: 5000000\r\n\r\n");
    pthread_create(&thread, NULL, send_much, &c);
    test_client_read(&c, &a, false);
    assert_string_equal(a.body, "did not read");
    test_answer_free(&a);
    shutdown(c.fd, SHUT_RDWR);
    pthread_join(thread, NULL);
    test_client_close(&c);
}

static void much_input_comes_back(void **state)
{
    struct test_answer a;
    struct test_client c;
    pthread_t thread;
    test_client_open(&c, *state);
    test_client_send(&c, "POST /w/job/cat HTTP/1.1\r\n" HOST "Content-Length: 5000000\r\n\r\n");
    pthread_create(&thread, NULL, send_much, &c);
    test_client_read(&c, &a, false);
    pthread_join(thread, NULL);
    assert_int_equal(a.body_length, 5000000);
    assert_non_null(strstr(a.trailers, "Skerry-Exit-Code: 0\r\n"));
    test_answer_free(&a);
    test_client_close(&c);
}

static void much_output_has_trailers(void **state)
{
    struct test_answer a;
    gateway_fixture_get(*state, &a, GET("/w/job/much"));
    assert_int_equal(a.status, 200);
    assert_int_equal(a.body_length, 20000 * 41);
    assert_null(test_answer_field(&a, "Skerry-Exit-Code"));
    assert_string_equal(test_answer_field(&a, "Trailer"), "Skerry-Exit-Code, Skerry-Signal");
    assert_non_null(strstr(a.trailers, "Skerry-Exit-Code: 3\r\n"));
    assert_false(a.broken);
    test_answer_free(&a);
}

static void json_holds_both_outputs(void **state)
{
    struct test_answer a;
    gateway_fixture_get(*state, &a,
                        "GET /w/job/fail HTTP/1.1\r\n" HOST "Accept: application/json\r\n\r\n");
    assert_string_equal(a.body,
                        "{\"exit_code\":7,\"signal\":null,\"timed_out\":false,\"oom\":false,"
                        "\"wall_seconds\":1.500000,\"cpu_seconds\":0.000000,"
                        "\"memory_peak_bytes\":4096,\"stdout\":\"out\\n\",\"stderr\":\"err\\n\","
                        "\"truncated\":false}\n");
    test_answer_free(&a);
    gateway_fixture_get(*state, &a,
                        "GET /w/job/binary HTTP/1.1\r\n" HOST "Accept: application/json\r\n\r\n");
    assert_non_null(strstr(a.body, "\"stdout_base64\":\"//4=\""));
    test_answer_free(&a);
}

static void json_tells_of_a_timeout(void **state)
{
    struct test_answer a;
    gateway_fixture_get(*state, &a,
                        "GET /w/job/hang HTTP/1.1\r\n" HOST "Accept: application/json\r\n\r\n");
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body, "\"timed_out\":true"));
    test_answer_free(&a);
}

static void events_come_and_end_with_exit(void **state)
{
    struct test_answer a;
    gateway_fixture_get(*state, &a,
                        "GET /w/job/fail HTTP/1.1\r\n" HOST "Accept: text/event-stream\r\n\r\n");
    assert_string_equal(test_answer_field(&a, "Content-Type"), "text/event-stream");
    assert_non_null(strstr(a.body, "event: stdout\ndata: {\"text\":\"out\\n\"}\n\n"));
    assert_non_null(strstr(a.body, "event: stderr\ndata: {\"text\":\"err\\n\"}\n\n"));
    const char *exit_event = strstr(a.body, "event: exit\ndata: {\"exit_code\":7,");
    assert_non_null(exit_event);
    assert_null(strstr(exit_event + 1, "event: "));
    assert_false(a.broken);
    test_answer_free(&a);
}

static void a_command_has_its_time(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    enum end_reason reason;
    gateway_fixture_get(f, &a, GET("/w/job/hang"));
    assert_int_equal(a.status, 504);
    assert_string_equal(test_answer_field(&a, "Skerry-Error"), "request_timeout");
    assert_non_null(strstr(a.body, "\"ran\":\"yes\""));
    test_answer_free(&a);
    assert_int_equal(cancels(f, &reason), 1);
    assert_int_equal(reason, END_TIMED_OUT);
    gateway_fixture_get(f, &a, GET("/w/job/talk-and-hang"));
    assert_int_equal(a.status, 200);
    assert_true(a.broken);
    test_answer_free(&a);
}

static void memory_is_named(void **state)
{
    struct test_answer a;
    gateway_fixture_get(*state, &a, GET("/w/job/oom"));
    assert_int_equal(a.status, 503);
    assert_string_equal(test_answer_field(&a, "Skerry-Error"), "instance_oom");
    test_answer_free(&a);
}

static void a_client_that_leaves_ends_its_command(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    enum end_reason reason;
    test_client_open(&c, f);
    test_client_send(&c, GET("/w/job/hang"));
    struct running *r = NULL;
    wait_until((pthread_mutex_lock(&f->mutex), r = all_running, pthread_mutex_unlock(&f->mutex),
                r != NULL));
    test_client_close(&c);
    wait_until(cancels(f, &reason) == 1);
    assert_int_equal(reason, END_CLIENT_GONE);
}

static void commands_cannot_be_joined_and_have_no_head_body(void **state)
{
    struct test_answer a;
    gateway_fixture_get(*state, &a, "HEAD /w/job/fail HTTP/1.1\r\n" HOST "\r\n");
    assert_int_equal(a.status, 200);
    assert_string_equal(test_answer_field(&a, "Skerry-Exit-Code"), "7");
    assert_int_equal(a.body_length, 0);
    test_answer_free(&a);
    gateway_fixture_get(*state, &a, "GET /w/job/much HTTP/1.0\r\n\r\n");
    assert_int_equal(a.body_length, 20000 * 41);
    test_answer_free(&a);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, start, stop)
#define TEST_TIMED(test) cmocka_unit_test_setup_teardown(test, start_timed, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(exit_code_stands_in_the_head),
        TEST(body_goes_to_stdin),
        TEST(a_command_may_ignore_its_input),
        TEST(much_input_comes_back),
        TEST(much_output_has_trailers),
        TEST(json_holds_both_outputs),
        TEST_TIMED(json_tells_of_a_timeout),
        TEST(events_come_and_end_with_exit),
        TEST_TIMED(a_command_has_its_time),
        TEST(memory_is_named),
        TEST(a_client_that_leaves_ends_its_command),
        TEST(commands_cannot_be_joined_and_have_no_head_body),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("gateway command", tests, NULL, NULL);
}
