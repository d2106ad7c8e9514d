/* The small tools of base/: buffers, errors, texts, the bound of the log. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/words.h"

static void a_buffer_grows_to_its_bound_and_not_beyond(void **state)
{
    (void)state;
    struct buffer b;
    buffer_init(&b, 1000);
    for (int i = 0; i < 100; i++)
        assert_true(buffer_append(&b, "0123456789", 10));
    assert_int_equal(b.length, 1000);
    assert_false(buffer_append(&b, "x", 1));
    assert_true(buffer_append(&b, "", 0));
    assert_false(buffer_printf(&b, "%d", 1));
    assert_false(buffer_reserve(&b, SIZE_MAX));
    assert_int_equal(b.length, 1000);
    assert_memory_equal(b.data + 990, "0123456789", 10);
    buffer_consume(&b, 995);
    assert_int_equal(b.length, 5);
    assert_memory_equal(b.data, "56789", 5);
    assert_true(buffer_printf(&b, "-%s-%d", "x", 7));
    assert_int_equal(b.length, 9);
    assert_memory_equal(b.data, "56789-x-7", 9);
    buffer_free(&b);
    assert_int_equal(b.length_max, 1000);
    assert_true(buffer_append_text(&b, "again"));
    buffer_free(&b);
}

static int fails_deep(struct err *e)
{
    return err_sys(e, ERR_IO, ENOENT, "open %s", "/x");
}

static void context_stands_before_the_cause(void **state)
{
    (void)state;
    struct err e = {0};
    assert_int_equal(fails_deep(&e), -ERR_IO);
    assert_int_equal(e.sys, ENOENT);
    assert_string_equal(e.msg, "open /x: No such file or directory");
    assert_int_equal(err_wrap(&e, "start %d", 7), -ERR_IO);
    assert_string_equal(e.msg, "start 7: open /x: No such file or directory");
    assert_int_equal(err_sys(&e, ERR_IO, ENOMEM, "map"), -ERR_NO_MEMORY);
    assert_int_equal(fails_deep(NULL), -ERR_IO);
    char text[400];
    memset(text, 'x', sizeof text);
    text[399] = '\0';
    err_set(&e, ERR_LIMIT, "%s", text);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
    err_wrap(&e, "%s", text);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
    for (int i = 0; i < ERR_CODE_COUNT; i++)
        assert_non_null(err_code_name((enum err_code)i));
}

static void texts_are_cut_and_say_so(void **state)
{
    (void)state;
    char out[4], shown[TEXT_SHOWN_SIZE];
    assert_true(text_copy(out, sizeof out, "abc"));
    assert_false(text_copy(out, sizeof out, "abcd"));
    assert_string_equal(out, "abc");
    assert_false(text_format(out, sizeof out, "%d", 12345));
    assert_string_equal(out, "123");
    assert_string_equal(text_show("a\x1b[2J\n\xc3\xa9", shown), "a?[2J???");
    assert_string_equal(text_show("0123456789012345678901234567890123456789", shown),
                        "0123456789012345678901234567890123456789");
    assert_string_equal(text_show("01234567890123456789012345678901234567890", shown),
                        "0123456789012345678901234567890123456789...");
}

static void secrets_are_equal_or_not(void **state)
{
    (void)state;
    assert_true(memory_equal_constant_time("abc", "abc", 3));
    assert_false(memory_equal_constant_time("abc", "abd", 3));
    assert_false(memory_equal_constant_time("abc", "Abc", 3));
    assert_true(memory_equal_constant_time("x", "y", 0));
}

static void every_word_has_a_name(void **state)
{
    (void)state;
    for (int i = 0; i < INSTANCE_STATE_COUNT; i++)
        assert_non_null(instance_state_name((enum instance_state)i));
    for (int i = 0; i < END_REASON_COUNT; i++)
        assert_non_null(end_reason_name((enum end_reason)i));
    for (int i = 1; i < PROBLEM_COUNT; i++) {
        const struct problem_word *word = problem_word((enum problem)i);
        assert_non_null(word->code);
        assert_in_range(word->status, 400, 599);
        for (int j = 1; j < i; j++)
            assert_string_not_equal(word->code, problem_word((enum problem)j)->code);
    }
}

/* --- the log, with stderr caught in a pipe ------------------------------------------------------ */

struct catch
{
    int kept, reader;
    char text[400000];
    size_t length;
};
static struct catch caught;

static void catch_begin(void)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    (void)fcntl(ends[0], F_SETPIPE_SZ, 1 << 20);
    fflush(stderr);
    caught.kept = dup(STDERR_FILENO);
    assert_true(dup2(ends[1], STDERR_FILENO) >= 0);
    close(ends[1]);
    caught.reader = ends[0];
    caught.length = 0;
}

static void catch_end(void)
{
    assert_true(dup2(caught.kept, STDERR_FILENO) >= 0);
    close(caught.kept);
    for (;;) {
        ssize_t n = read(caught.reader, caught.text + caught.length,
                         sizeof caught.text - 1 - caught.length);
        if (n <= 0)
            break;
        caught.length += (size_t)n;
    }
    caught.text[caught.length] = '\0';
    close(caught.reader);
}

static size_t lines_with(const char *text)
{
    size_t count = 0;
    for (const char *at = caught.text; (at = strstr(at, text)) != NULL; at++)
        count++;
    return count;
}

static void a_log_line_is_one_line(void **state)
{
    (void)state;
    catch_begin();
    log_setup(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    log_debug("shape", "not shown");
    log_info("shape", "GET /%s", "a\nb\x1b[2J");
    log_setup(LOG_LEVEL_DEBUG, LOG_FORMAT_JSON);
    log_debug("shape", "quote \" and \\ and \n");
    log_setup(LOG_LEVEL_INFO, LOG_FORMAT_TEXT);
    char long_text[3000];
    memset(long_text, 'y', sizeof long_text);
    long_text[2999] = '\0';
    log_warn("shape", "%s", long_text);
    catch_end();
    assert_int_equal(lines_with("\n"), 3);
    assert_int_equal(lines_with("not shown"), 0);
    assert_int_equal(lines_with(" info  shape: GET /a\\x0ab\\x1b[2J\n"), 1);
    assert_int_equal(
        lines_with("\"level\":\"debug\",\"subject\":\"shape\",\"text\":\"quote \\\" and "
                   "\\\\ and \\u000a\"}\n"),
        1);
    assert_int_equal(caught.text[caught.length - 1], '\n');
}

/* Waits for the next second of the clock that the log counts by. */
static void next_second(void)
{
    uint64_t begin = clock_monotonic_ms();
    while (clock_monotonic_ms() / 1000 == begin / 1000) {
        assert_true(clock_monotonic_ms() - begin < 10000);
        poll(NULL, 0, 5);
    }
}

static void a_subject_cannot_flood_the_log(void **state)
{
    (void)state;
    enum { LINES = 3000 };
    uint64_t begin, end;
    do { /* until all lines fall into one second */
        next_second();
        catch_begin();
        begin = clock_monotonic_ms();
        for (int i = 0; i < LINES; i++)
            log_info("flood", "line %d", i);
        end = clock_monotonic_ms();
        log_info("calm", "still heard");
        catch_end();
    } while (begin / 1000 != end / 1000);
    size_t before = lines_with(" were not written");
    assert_int_equal(lines_with("flood: line "), LOG_LINES_PER_SECOND_MAX);
    assert_int_equal(lines_with("calm: still heard"), 1);
    next_second();
    catch_begin();
    log_info("flood", "after");
    catch_end();
    char told[64];
    text_format(told, sizeof told, "flood: %d more lines were not written",
                LINES - LOG_LINES_PER_SECOND_MAX);
    assert_int_equal(before, 0);
    assert_int_equal(lines_with(told), 1);
    assert_int_equal(lines_with("flood: after"), 1);
}

static void times_are_written_as_rfc3339(void **state)
{
    (void)state;
    char out[CLOCK_RFC3339_SIZE];
    clock_format_rfc3339(0, out);
    assert_string_equal(out, "1970-01-01T00:00:00.000Z");
    clock_format_rfc3339(1795337220123, out);
    assert_string_equal(out, "2026-11-22T08:47:00.123Z");
    assert_true(clock_monotonic_us() / 1000 <= clock_monotonic_ms());
    assert_true(clock_wall_ms() > 1600000000000);
    assert_true(clock_boot_ms() > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_buffer_grows_to_its_bound_and_not_beyond),
        cmocka_unit_test(context_stands_before_the_cause),
        cmocka_unit_test(texts_are_cut_and_say_so),
        cmocka_unit_test(secrets_are_equal_or_not),
        cmocka_unit_test(every_word_has_a_name),
        cmocka_unit_test(a_log_line_is_one_line),
        cmocka_unit_test(a_subject_cannot_flood_the_log),
        cmocka_unit_test(times_are_written_as_rfc3339),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
