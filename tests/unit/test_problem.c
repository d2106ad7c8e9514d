#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "gateway/problem.h"

static json_t *body_of(const struct problem_report *report)
{
    struct buffer out;
    buffer_init(&out, PROBLEM_BODY_BYTES_MAX);
    assert_true(problem_body(&out, report));
    json_t *json = json_loadb(out.data, out.length, 0, NULL);
    assert_non_null(json);
    buffer_free(&out);
    return json;
}

static const char *text(json_t *json, const char *name)
{
    return json_string_value(json_object_get(json, name));
}

static void every_problem_is_a_valid_body(void **state)
{
    (void)state;
    for (int p = 1; p < PROBLEM_COUNT; p++) {
        struct problem_report report = {.problem = (enum problem)p, .ran = RAN_MAYBE};
        const struct problem_word *word = problem_word(report.problem);
        json_t *json = body_of(&report);
        assert_string_equal(text(json, "code"), word->code);
        assert_string_equal(text(json, "title"), word->title);
        assert_string_equal(text(json, "ran"), "maybe");
        assert_int_equal(json_integer_value(json_object_get(json, "status")), word->status);
        assert_int_equal(json_is_true(json_object_get(json, "retryable")), word->retryable);
        assert_null(json_object_get(json, "detail"));
        bool later = word->status == 429 || word->status == 503;
        assert_int_equal(problem_retry_after_s(&report) > 0, later);
        json_decref(json);
    }
}

static void details_are_escaped(void **state)
{
    (void)state;
    struct problem_report report = {
        .problem = PROBLEM_INSTANCE_GONE,
        .ran = RAN_NO,
        .detail = "a \"quote\", a \\, a \n, a \x01 and \xff",
        .request_id = "r-1",
        .instance = "0abc",
        .reason = "idle",
        .retry_after_s = 9,
    };
    json_t *json = body_of(&report);
    assert_string_equal(text(json, "detail"), "a \"quote\", a \\, a \n, a \x01 and \xef\xbf\xbd");
    assert_string_equal(text(json, "request_id"), "r-1");
    assert_string_equal(text(json, "instance"), "0abc");
    assert_string_equal(text(json, "reason"), "idle");
    assert_int_equal(problem_retry_after_s(&report), 9);
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_problem_is_a_valid_body),
        cmocka_unit_test(details_are_escaped),
    };
    return cmocka_run_group_tests_name("problem", tests, NULL, NULL);
}
