/* The small texts of API requests, and frames of upgraded ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/exec_frame.h"
#include "base/memory.h"
#include "node/api/target.h"

static void percent_and_plus_are_decoded(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
        bool plus;
    } good[] = {
        {"plain", "plain", true}, {"a%20b+c", "a b c", true},   {"a%20b+c", "a b+c", false},
        {"%2f%2F", "//", false},  {"%c3%a4", "\xc3\xa4", true}, {"", "", true},
    };
    static const char *const bad[] = {"%", "%2", "%2x", "%x2", "%00", "a%", "%%20"};
    char text[32];
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        (void)text_copy(text, sizeof(text), good[i].in);
        assert_true(api_text_decode(text, good[i].plus));
        assert_string_equal(text, good[i].out);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        (void)text_copy(text, sizeof(text), bad[i]);
        assert_false(api_text_decode(text, true));
    }
}

static void a_query_is_split_into_pairs(void **state)
{
    (void)state;
    char text[] = "a=1&b&c=x%3Dy=z&a=2";
    struct api_query *query;
    size_t count;
    struct err e = {0};
    assert_int_equal(api_query_split(text, &query, &count, &e), 0);
    assert_int_equal(count, 4);
    assert_string_equal(query[1].name, "b");
    assert_string_equal(query[1].value, "");
    assert_string_equal(query[2].value, "x=y=z");
    assert_string_equal(query[3].value, "2");
    free(query);
    char empty_name[] = "a=1&=2";
    assert_int_equal(api_query_split(empty_name, &query, &count, &e), -ERR_INVALID);
    free(query);
    char *many = malloc(2 * API_QUERY_MAX + 2);
    for (size_t i = 0; i <= API_QUERY_MAX; i++)
        memcpy(many + 2 * i, "a&", 2);
    many[2 * API_QUERY_MAX + 1] = '\0';
    assert_int_equal(api_query_split(many, &query, &count, &e), -ERR_LIMIT);
    many[2 * API_QUERY_MAX - 1] = '\0';
    assert_int_equal(api_query_split(many, &query, &count, &e), 0);
    assert_int_equal(count, API_QUERY_MAX);
    free(query);
    free(many);
    assert_int_equal(api_query_split(NULL, &query, &count, &e), 0);
    assert_int_equal(count, 0);
}

static void words_lists_and_hosts_are_told_apart(void **state)
{
    (void)state;
    char name[32];
    assert_true(api_word_among("follow tail since", "tail"));
    assert_false(api_word_among("follow tail since", "tai"));
    assert_false(api_word_among("follow tail since", "tail since"));
    assert_false(api_word_among("", "tail"));
    assert_true(api_list_has("keep-alive, Upgrade", "upgrade"));
    assert_true(api_list_has("text/html;q=0.9,application/json;q=0.1", "application/json"));
    assert_false(api_list_has("application/jsonx", "application/json"));
    assert_false(api_list_has(NULL, "upgrade"));
    assert_true(api_host_name("[::1]:80", name, sizeof(name)));
    assert_string_equal(name, "::1");
    assert_true(api_host_name("localhost", name, sizeof(name)));
    assert_true(api_host_name("1.2.3.4:80", name, sizeof(name)));
    assert_string_equal(name, "1.2.3.4");
    assert_false(api_host_name("", name, sizeof(name)));
    assert_false(api_host_name(":80", name, sizeof(name)));
    assert_false(api_host_name("[::1", name, sizeof(name)));
    assert_false(api_host_name("a-very-long-name-that-does-not-fit.example", name, sizeof(name)));
}

static void a_frame_is_whole_more_or_bad(void **state)
{
    (void)state;
    struct exec_frame f;
    static const char size[] = {4, 0, 0, 0, 4, 0, 24, 1, 0, 9};
    for (size_t i = 0; i < 9; i++)
        assert_int_equal(exec_frame_read(&f, size, i), EXEC_FRAME_MORE);
    assert_int_equal(exec_frame_read(&f, size, sizeof(size)), EXEC_FRAME_WHOLE);
    assert_int_equal(f.type, EXEC_FRAME_RESIZE);
    assert_int_equal(f.rows, 24);
    assert_int_equal(f.columns, 256);
    assert_int_equal(f.size, 4);
    /* Too long is bad before the rest has come. */
    assert_int_equal(exec_frame_read(&f, "\0\0\1\0\1", 5), EXEC_FRAME_BAD);
    assert_int_equal(exec_frame_read(&f, "\0\0\1\0\0", 5), EXEC_FRAME_MORE);
    assert_int_equal(exec_frame_read(&f, "\x8\0\0\0\0", 5), EXEC_FRAME_BAD);
    assert_int_equal(exec_frame_read(&f, "\x6\0\0\0\0", 5), EXEC_FRAME_BAD);
    assert_int_equal(exec_frame_read(&f, "\x5\0\0\0\1\x41", 6), EXEC_FRAME_BAD);
    assert_int_equal(exec_frame_read(&f, "\x5\0\0\0\1\x40", 6), EXEC_FRAME_WHOLE);
    assert_int_equal(f.signal, 64);
    char header[EXEC_FRAME_HEADER_BYTES];
    exec_frame_header(header, EXEC_FRAME_STDOUT, 0x10203);
    assert_memory_equal(header, "\2\0\1\2\3", 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percent_and_plus_are_decoded),
        cmocka_unit_test(a_query_is_split_into_pairs),
        cmocka_unit_test(words_lists_and_hosts_are_told_apart),
        cmocka_unit_test(a_frame_is_whole_more_or_bad),
    };
    return cmocka_run_group_tests_name("api texts", tests, NULL, NULL);
}
