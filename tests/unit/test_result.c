#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/memory.h"
#include "gateway/result.h"

#define BYTES(t) ((struct result_bytes){t, sizeof(t) - 1})

static json_t *result_of(struct result_bytes output, struct result_bytes errors, bool truncated)
{
    struct result_end end = {.exit_code = 137,
                             .signal = 9,
                             .oom = true,
                             .wall_us = 1250000,
                             .cpu_us = 7,
                             .memory_peak_bytes = 1u << 20};
    struct buffer out;
    buffer_init(&out, 65536);
    assert_true(result_json(&out, &end, output, errors, truncated));
    json_t *json = json_loadb(out.data, out.length, JSON_ALLOW_NUL, NULL);
    assert_non_null(json);
    buffer_free(&out);
    return json;
}

static void result_has_every_member(void **state)
{
    (void)state;
    json_t *json = result_of(BYTES("out\n"), BYTES("\xc3\xa4\0"), false);
    assert_int_equal(json_integer_value(json_object_get(json, "exit_code")), 137);
    assert_int_equal(json_integer_value(json_object_get(json, "signal")), 9);
    assert_true(json_is_false(json_object_get(json, "timed_out")));
    assert_true(json_is_true(json_object_get(json, "oom")));
    assert_true(json_is_false(json_object_get(json, "truncated")));
    assert_string_equal(json_string_value(json_object_get(json, "stdout")), "out\n");
    assert_int_equal(json_string_length(json_object_get(json, "stderr")), 3);
    assert_true(json_real_value(json_object_get(json, "wall_seconds")) == 1.25);
    assert_int_equal(json_integer_value(json_object_get(json, "memory_peak_bytes")), 1 << 20);
    json_decref(json);
}

static void bytes_that_are_no_text_lose_nothing(void **state)
{
    (void)state;
    json_t *json = result_of(BYTES("\xff\x00\x01"), BYTES(""), false);
    static const char replaced[] = "\xef\xbf\xbd\0\x01";
    const json_t *text = json_object_get(json, "stdout");
    assert_int_equal(json_string_length(text), sizeof replaced - 1);
    assert_memory_equal(json_string_value(text), replaced, sizeof replaced - 1);
    assert_string_equal(json_string_value(json_object_get(json, "stdout_base64")), "/wAB");
    assert_string_equal(json_string_value(json_object_get(json, "stderr")), "");
    assert_null(json_object_get(json, "stderr_base64"));
    json_decref(json);
    /* A character that the bound cut in two does not turn the rest into base64. */
    json = result_of(BYTES("abc\xe2\x82"), BYTES(""), true);
    assert_string_equal(json_string_value(json_object_get(json, "stdout")), "abc");
    json_decref(json);
}

static void base64_of_all_lengths(void **state)
{
    (void)state;
    static const char *const expected[] = {"",         "Zg==",     "Zm8=",    "Zm9v",
                                           "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    for (size_t n = 0; n < ARRAY_SIZE(expected); n++) {
        struct buffer out;
        buffer_init(&out, 64);
        assert_true(result_base64(&out, "foobar", n));
        assert_int_equal(out.length, strlen(expected[n]));
        if (n > 0)
            assert_memory_equal(out.data, expected[n], out.length);
        buffer_free(&out);
    }
}

static void utf8_is_checked_strictly(void **state)
{
    (void)state;
    static const char *const good[] = {
        "", "a", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xef\xbf\xbf"};
    static const char *const bad[] = {"\x80",
                                      "\xc3",
                                      "\xc0\xaf",
                                      "\xe0\x80\xaf",
                                      "\xed\xa0\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf8\x88\x80\x80\x80",
                                      "a\xffz",
                                      "\xe2\x82"};
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        assert_true(result_is_utf8(good[i], strlen(good[i])));
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(result_is_utf8(bad[i], strlen(bad[i])));
}

/* Joins the texts of all events in `out`. */
static void texts_of(const struct buffer *out, char *to, size_t size)
{
    size_t n = 0;
    const char *p = out->data;
    const char *end = out->data + out->length;
    while (p < end) {
        const char *data = memmem(p, (size_t)(end - p), "data: ", 6);
        assert_non_null(data);
        const char *stop = memmem(data, (size_t)(end - data), "\n\n", 2);
        assert_non_null(stop);
        json_t *json = json_loadb(data + 6, (size_t)(stop - data - 6), 0, NULL);
        assert_non_null(json);
        const char *text = json_string_value(json_object_get(json, "text"));
        assert_non_null(text); /* never base64 */
        n += strlen(text);
        assert_true(n < size);
        memcpy(to + n - strlen(text), text, strlen(text));
        json_decref(json);
        p = stop + 2;
    }
    to[n] = '\0';
}

static void characters_survive_any_cut_into_events(void **state)
{
    (void)state;
    static const char text[] = "a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80z\xe2\x82\xac";
    for (size_t step = 1; step < sizeof text; step++) {
        struct buffer out;
        struct result_carry carry = {0};
        buffer_init(&out, 65536);
        for (size_t at = 0; at < sizeof text - 1; at += step) {
            size_t n = sizeof text - 1 - at < step ? sizeof text - 1 - at : step;
            struct result_bytes piece = {text + at, n};
            assert_true(result_event_output(&out, "stdout", &carry, piece));
        }
        assert_true(result_event_flush(&out, "stdout", &carry));
        char joined[128];
        texts_of(&out, joined, sizeof joined);
        assert_string_equal(joined, text);
        buffer_free(&out);
    }
}

static void events_end_with_exit(void **state)
{
    (void)state;
    struct buffer out;
    struct result_carry carry = {0};
    struct result_end end = {.exit_code = 2, .timed_out = true};
    buffer_init(&out, 65536);
    assert_true(result_event_output(&out, "stderr", &carry, BYTES("\xff\xe2")));
    assert_true(result_event_flush(&out, "stderr", &carry));
    assert_true(result_event_flush(&out, "stderr", &carry));
    assert_true(result_event_exit(&out, &end));
    assert_true(buffer_append(&out, "", 1));
    assert_string_equal(out.data,
                        "event: stderr\ndata: {\"base64\":\"/w==\"}\n\n"
                        "event: stderr\ndata: {\"base64\":\"4g==\"}\n\n"
                        "event: exit\ndata: {\"exit_code\":2,\"signal\":null,\"timed_out\":true,"
                        "\"oom\":false,\"wall_seconds\":0.000000,\"cpu_seconds\":0.000000,"
                        "\"memory_peak_bytes\":0}\n\n");
    buffer_free(&out);
}

static void the_bound_is_an_error(void **state)
{
    (void)state;
    struct result_end end = {0};
    struct buffer out;
    buffer_init(&out, 64);
    assert_false(result_json(&out, &end, BYTES("x"), BYTES(""), false));
    assert_false(result_base64(&out, "0123456789012345678901234567890123456789012345678", 49));
    buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(result_has_every_member),
        cmocka_unit_test(bytes_that_are_no_text_lose_nothing),
        cmocka_unit_test(base64_of_all_lengths),
        cmocka_unit_test(utf8_is_checked_strictly),
        cmocka_unit_test(characters_survive_any_cut_into_events),
        cmocka_unit_test(events_end_with_exit),
        cmocka_unit_test(the_bound_is_an_error),
    };
    return cmocka_run_group_tests_name("result", tests, NULL, NULL);
}
