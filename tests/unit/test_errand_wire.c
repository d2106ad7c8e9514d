/* What two nodes say about an errand: it comes back as it went, and nothing else is taken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/memory.h"
#include "node/errands/errand_wire.h"

static struct buffer out;

static int begin(void **state)
{
    (void)state;
    buffer_init(&out, 8u << 20);
    return 0;
}

static int finish(void **state)
{
    (void)state;
    buffer_free(&out);
    return 0;
}

/* What stands in `out`: nothing less than all of it is a frame. */
static struct errand_frame whole(bool of_owner)
{
    struct errand_frame f;
    for (size_t length = 0; length < out.length; length++)
        assert_int_equal(errand_frame_read(&f, of_owner, out.data, length), ERRAND_MORE);
    assert_int_equal(errand_frame_read(&f, of_owner, out.data, out.length), ERRAND_WHOLE);
    assert_int_equal(ERRAND_HEADER_BYTES + f.size, out.length);
    assert_int_equal(errand_frame_read(&f, !of_owner, out.data, out.length), ERRAND_BAD);
    assert_int_equal(errand_frame_read(&f, of_owner, out.data, out.length), ERRAND_WHOLE);
    return f;
}

static void a_question_comes_back_as_it_went(void **state)
{
    (void)state;
    struct errand_question q = {.kind = ERRAND_COMMAND,
                                .workload = "hello",
                                .key = "kitchen",
                                .asked_by = "POST /w/hello/",
                                .request_id = "r-1",
                                .no_stdin = true,
                                .rows = 33,
                                .columns = 99,
                                .timeout_ms = 1500};
    struct errand_question read;
    struct err e = {0};
    assert_true(errand_question_write(&out, &q));
    struct errand_frame f = whole(false);
    assert_int_equal(errand_question_read(&read, &f, &e), 0);
    assert_int_equal(read.kind, ERRAND_COMMAND);
    assert_string_equal(read.workload, "hello");
    assert_string_equal(read.key, "kitchen");
    assert_string_equal(read.asked_by, "POST /w/hello/");
    assert_string_equal(read.request_id, "r-1");
    assert_true(read.no_stdin && !read.tty);
    assert_int_equal(read.rows, 33);
    assert_int_equal(read.columns, 99);
    assert_int_equal(read.timeout_ms, 1500);
    errand_question_free(&read);
}

static void a_run_carries_its_whole_spec(void **state)
{
    (void)state;
    static const char text[] =
        "{\"id\":\"run\",\"kind\":\"command\",\"command\":[\"sh\",\"-c\",\"a "
        "'b'\"],\"environment\":[\"A=1\",\"B=x y\"],\"user\":\"1000\","
        "\"read_only\":true,\"deploy\":{\"resources\":{\"limits\":{"
        "\"memory\":\"64M\",\"pids\":7}}}}";
    struct workload spec;
    struct err e = {0};
    assert_int_equal(workload_parse(&spec, "test", text, strlen(text), &e), 0);
    struct errand_question q = {.kind = ERRAND_RUN, .spec = &spec}, read;
    assert_true(errand_question_write(&out, &q));
    struct errand_frame f = whole(false);
    assert_int_equal(errand_question_read(&read, &f, &e), 0);
    json_t *before = workload_to_json(&spec), *after = workload_to_json(read.spec);
    assert_true(json_equal(before, after));
    json_decref(before);
    json_decref(after);
    errand_question_free(&read);
    workload_free(&spec);
}

static void refused(const char *json)
{
    struct errand_question read;
    struct errand_frame f = {ERRAND_QUESTION, json, strlen(json), 0, 0, 0};
    struct err e = {0};
    int rc = errand_question_read(&read, &f, &e);
    if (rc == 0)
        errand_question_free(&read);
    assert_true(rc < 0);
}

static void questions_that_are_none_are_refused(void **state)
{
    (void)state;
    refused("[]");
    refused("{}");
    refused("{\"kind\":0}");
    refused("{\"kind\":4,\"workload\":\"a\"}");
    refused("{\"kind\":2,\"workload\":7}");
    refused("{\"kind\":2,\"workload\":\"a\\u001bb\"}");
    refused("{\"kind\":2,\"workload\":\"a\",\"kind\":1}");
    refused("{\"kind\":2,\"rows\":-1}");
    refused("{\"kind\":2,\"rows\":65536}");
    refused("{\"kind\":2,\"timeout_ms\":-1}");
    refused("{\"kind\":1}");
    refused("{\"kind\":1,\"spec\":{\"id\":\"run\",\"command\":[\"a\"],\"port\":8080}}");
    refused("{\"kind\":1,\"spec\":{\"id\":\"run\",\"kind\":\"command\",\"nonsense\":1}}");
}

static void answers_come_back_as_they_went(void **state)
{
    (void)state;
    struct errand_answer a = {0}, read;
    instance_id_make(&a.instance, 7, (const uint8_t[11]){1, 2, 3});
    assert_true(errand_answer_write(&out, &a));
    struct errand_frame f = whole(true);
    assert_int_equal(f.type, ERRAND_GRANTED);
    assert_true(errand_answer_read(&read, &f));
    assert_int_equal(read.problem, PROBLEM_NONE);
    assert_string_equal(read.instance.text, a.instance.text);

    buffer_consume(&out, out.length);
    a = (struct errand_answer){.problem = PROBLEM_NODE_FULL, .ran = RAN_MAYBE, .retry_after_s = 3};
    (void)text_copy(a.detail, sizeof a.detail, "full\x1b[2J");
    assert_true(errand_answer_write(&out, &a));
    f = whole(true);
    assert_true(errand_answer_read(&read, &f));
    assert_int_equal(read.problem, PROBLEM_NODE_FULL);
    assert_int_equal(read.ran, RAN_MAYBE);
    assert_int_equal(read.retry_after_s, 3);
    assert_string_equal(read.detail, "full?[2J");
    assert_string_equal(read.instance.text, "");
}

static void a_problem_of_a_newer_node_is_a_refusal(void **state)
{
    (void)state;
    static const char text[] = "{\"problem\":9999,\"more\":[]}";
    struct errand_answer read;
    struct errand_frame f = {ERRAND_REFUSED, text, strlen(text), 0, 0, 0};
    assert_true(errand_answer_read(&read, &f));
    assert_int_equal(read.problem, PROBLEM_INTERNAL);
    f.type = ERRAND_GRANTED; /* and of what is granted it must be known which */
    assert_false(errand_answer_read(&read, &f));
}

static void an_end_comes_back_as_it_went(void **state)
{
    (void)state;
    struct command_end end = {.reason = END_OOM,
                              .exit_code = -1,
                              .signal = 9,
                              .oom = true,
                              .wall_us = 1ull << 40,
                              .cpu_us = 5,
                              .memory_peak_bytes = 1ull << 33,
                              .detail = "too much"};
    struct command_end read;
    assert_true(errand_end_write(&out, &end));
    struct errand_frame f = whole(true);
    assert_true(errand_end_read(&read, &f));
    assert_int_equal(read.reason, END_OOM);
    assert_int_equal(read.exit_code, -1);
    assert_int_equal(read.signal, 9);
    assert_true(read.oom && !read.timed_out);
    assert_int_equal(read.wall_us, 1ull << 40);
    assert_int_equal(read.memory_peak_bytes, 1ull << 33);
    assert_string_equal(read.detail, "too much");
}

static void frames_keep_to_their_sizes_and_numbers(void **state)
{
    (void)state;
    struct errand_frame f;
    assert_true(errand_resize_write(&out, 24, 80));
    f = whole(false);
    assert_int_equal(f.rows, 24);
    assert_int_equal(f.columns, 80);
    buffer_consume(&out, out.length);
    assert_true(errand_number_write(&out, ERRAND_TAKEN, 70000));
    f = whole(true);
    assert_int_equal(f.number, 70000);
    const struct {
        const char *bytes;
        size_t length;
        bool of_owner;
    } bad[] = {
        {"\x00", 1, false},
        {"\x0d", 1, true},
        {"\x04\x00\x00\x00\x00", 5, false},                /* STDIN of nothing */
        {"\x04\x00\x00\x80\x01", 5, false},                /* more than a frame may hold */
        {"\x06\x00\x00\x00\x04\x00\x02\x00\x01", 9, true}, /* TAKEN of more than the window */
        {"\x06\x00\x00\x00\x04\x00\x00\x00\x00", 9, true},
        {"\x0a\x00\x00\x00\x01\x41", 6, false},             /* signal 65 */
        {"\x0b\x00\x00\x00\x01\x06", 6, false},             /* a cancel for another reason */
        {"\x09\x00\x00\x00\x04\x00\x00\x00\x50", 9, false}, /* no rows */
        {"\x01\x00\x40\x00\x01", 5, false},                 /* a question above its bound */
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(errand_frame_read(&f, bad[i].of_owner, bad[i].bytes, bad[i].length),
                         ERRAND_BAD);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, finish)
    const struct CMUnitTest tests[] = {
        TEST(a_question_comes_back_as_it_went),       TEST(a_run_carries_its_whole_spec),
        TEST(questions_that_are_none_are_refused),    TEST(answers_come_back_as_they_went),
        TEST(a_problem_of_a_newer_node_is_a_refusal), TEST(an_end_comes_back_as_it_went),
        TEST(frames_keep_to_their_sizes_and_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
