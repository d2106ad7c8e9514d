#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/log_reader.h"

/* A writer in little: what the agent does to its two files. */
struct writer {
    int files[2];
    unsigned current;
    uint64_t sequence;
};

static int set_up(void **state)
{
    static struct writer writer;
    writer = (struct writer){
        .files = {memfd_create("log", MFD_CLOEXEC), memfd_create("log.1", MFD_CLOEXEC)}};
    *state = &writer;
    return 0;
}

static int tear_down(void **state)
{
    struct writer *w = *state;
    close(w->files[0]);
    close(w->files[1]);
    return 0;
}

static void put(struct writer *w, const char *text, enum log_stream stream, uint64_t wall_ms)
{
    uint8_t header[LOG_RECORD_HEADER_BYTES];
    const struct log_record record = {.sequence = ++w->sequence,
                                      .wall_ms = wall_ms,
                                      .stream = stream,
                                      .length = (uint32_t)strlen(text),
                                      .data = (const uint8_t *)text};
    log_record_header(&record, header);
    assert_int_equal(write(w->files[w->current], header, sizeof header), sizeof header);
    assert_int_equal(write(w->files[w->current], text, strlen(text)), strlen(text));
}

static void rotate(struct writer *w)
{
    w->current = 1 - w->current;
    assert_int_equal(ftruncate(w->files[w->current], 0), 0);
    assert_int_equal(lseek(w->files[w->current], 0, SEEK_SET), 0);
}

static struct log_reader *reader_of(struct writer *w, const struct log_reader_options *options)
{
    const int files[2] = {dup(w->files[0]), dup(w->files[1])};
    struct log_reader *r = NULL;
    struct err e = {0};
    assert_int_equal(log_reader_open_files(&r, files, options, &e), 0);
    return r;
}

/* All that is there, as one text. */
static const char *read_all(struct log_reader *r)
{
    static char text[1 << 16];
    size_t length = 0;
    struct log_record record;
    struct err e = {0};
    int rc;
    while ((rc = log_reader_next(r, &record, &e)) == 1) {
        assert_true(length + record.length < sizeof text);
        memcpy(text + length, record.data, record.length);
        length += record.length;
    }
    assert_int_equal(rc, 0);
    text[length] = '\0';
    return text;
}

static const struct log_reader_options everything;

static void both_files_are_one_log(void **state)
{
    struct writer *w = *state;
    put(w, "a\n", LOG_STREAM_STDOUT, 1000);
    put(w, "b\n", LOG_STREAM_STDERR, 1001);
    rotate(w);
    put(w, "c\n", LOG_STREAM_STDOUT, 1002);
    struct log_reader *r = reader_of(w, &everything);
    struct log_record record;
    struct err e = {0};
    assert_int_equal(log_reader_next(r, &record, &e), 1);
    assert_int_equal(record.stream, LOG_STREAM_STDOUT);
    assert_int_equal(record.wall_ms, 1000);
    assert_int_equal(log_reader_next(r, &record, &e), 1);
    assert_int_equal(record.stream, LOG_STREAM_STDERR);
    assert_string_equal(read_all(r), "c\n");
    log_reader_close(r);
}

static void following_survives_rotation(void **state)
{
    struct writer *w = *state;
    struct log_reader *r = reader_of(w, &everything);
    assert_string_equal(read_all(r), "");
    put(w, "1", LOG_STREAM_STDOUT, 1);
    assert_string_equal(read_all(r), "1");
    put(w, "2", LOG_STREAM_STDOUT, 1);
    rotate(w);
    put(w, "3", LOG_STREAM_STDOUT, 1);
    assert_string_equal(read_all(r), "23");
    rotate(w);
    /* As long as what stood there before: told apart by its numbers alone. */
    put(w, "4", LOG_STREAM_STDOUT, 1);
    put(w, "5", LOG_STREAM_STDOUT, 1);
    put(w, "6", LOG_STREAM_STDOUT, 1);
    assert_string_equal(read_all(r), "456");
    /* Two rotations unseen: what was lost is lost, the rest comes in order. */
    for (int i = 0; i < 2; i++) {
        rotate(w);
        put(w, i == 0 ? "7" : "8", LOG_STREAM_STDOUT, 1);
    }
    assert_string_equal(read_all(r), "78");
    log_reader_close(r);
}

static void torn_record_waits_for_its_rest(void **state)
{
    struct writer *w = *state;
    put(w, "whole", LOG_STREAM_STDOUT, 1);
    put(w, "torn", LOG_STREAM_STDOUT, 1);
    off_t size = lseek(w->files[0], 0, SEEK_CUR);
    assert_int_equal(ftruncate(w->files[0], size - 2), 0);
    struct log_reader *r = reader_of(w, &everything);
    assert_string_equal(read_all(r), "whole");
    assert_int_equal(pwrite(w->files[0], "rn", 2, size - 2), 2);
    assert_string_equal(read_all(r), "torn");
    log_reader_close(r);
}

static void damage_ends_a_file(void **state)
{
    struct writer *w = *state;
    put(w, "good", LOG_STREAM_STDOUT, 1);
    put(w, "bad", LOG_STREAM_STDOUT, 1);
    put(w, "hidden", LOG_STREAM_STDOUT, 1);
    assert_int_equal(pwrite(w->files[0], "X", 1, LOG_RECORD_HEADER_BYTES * 2 + 5), 1);
    struct log_reader *r = reader_of(w, &everything);
    assert_string_equal(read_all(r), "good");
    log_reader_close(r);
}

static void content_cannot_forge_records(void **state)
{
    struct writer *w = *state;
    uint8_t forged[LOG_RECORD_HEADER_BYTES + 2];
    const struct log_record record = {
        .sequence = 2, .stream = LOG_STREAM_STDOUT, .length = 1, .data = (const uint8_t *)"F"};
    log_record_header(&record, forged);
    forged[LOG_RECORD_HEADER_BYTES] = 'F';
    forged[LOG_RECORD_HEADER_BYTES + 1] = '\0';
    for (size_t i = 0; i < LOG_RECORD_HEADER_BYTES; i++)
        forged[i] = forged[i] == 0 ? 1 : forged[i]; /* it is text for `put` */
    put(w, (const char *)forged, LOG_STREAM_STDOUT, 1);
    put(w, "true", LOG_STREAM_STDOUT, 1);
    struct log_reader *r = reader_of(w, &everything);
    const char *text = read_all(r);
    assert_int_equal(strlen(text), sizeof forged - 1 + 4);
    log_reader_close(r);
}

static void tail_counts_lines(void **state)
{
    struct writer *w = *state;
    put(w, "one\ntwo\nth", LOG_STREAM_STDOUT, 1);
    rotate(w);
    put(w, "ree\nfour\nfi", LOG_STREAM_STDOUT, 1);
    static const struct {
        uint64_t lines;
        const char *want;
    } cases[] = {{0, ""},
                 {1, "fi"},
                 {2, "four\nfi"},
                 {3, "three\nfour\nfi"},
                 {5, "one\ntwo\nthree\nfour\nfi"},
                 {UINT64_MAX, "one\ntwo\nthree\nfour\nfi"}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct log_reader_options options = {.tail = true, .tail_lines = cases[i].lines};
        struct log_reader *r = reader_of(w, &options);
        assert_string_equal(read_all(r), cases[i].want);
        log_reader_close(r);
    }
}

static void tail_then_follow(void **state)
{
    struct writer *w = *state;
    put(w, "one\ntwo\n", LOG_STREAM_STDOUT, 1);
    const struct log_reader_options options = {.tail = true, .tail_lines = 1};
    struct log_reader *r = reader_of(w, &options);
    assert_string_equal(read_all(r), "two\n");
    put(w, "three\n", LOG_STREAM_STDOUT, 1);
    assert_string_equal(read_all(r), "three\n");
    log_reader_close(r);
}

static void since_leaves_out_what_is_older(void **state)
{
    struct writer *w = *state;
    put(w, "old\n", LOG_STREAM_STDOUT, 1000);
    put(w, "new\n", LOG_STREAM_STDOUT, 2000);
    const struct log_reader_options options = {.since_wall_ms = 1001};
    struct log_reader *r = reader_of(w, &options);
    assert_string_equal(read_all(r), "new\n");
    log_reader_close(r);
}

static void log_that_is_not_there_is_said(void **state)
{
    (void)state;
    struct log_reader *r = NULL;
    struct err e = {0};
    assert_int_equal(log_reader_open(&r, "/nowhere", "abc", &everything, &e), -ERR_NOT_FOUND);
    assert_int_equal(log_reader_open(&r, "/tmp", "../etc/passwd", &everything, &e), -ERR_INVALID);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(both_files_are_one_log),
        TEST(following_survives_rotation),
        TEST(torn_record_waits_for_its_rest),
        TEST(damage_ends_a_file),
        TEST(content_cannot_forge_records),
        TEST(tail_counts_lines),
        TEST(tail_then_follow),
        TEST(since_leaves_out_what_is_older),
        cmocka_unit_test(log_that_is_not_there_is_said),
    };
    return cmocka_run_group_tests_name("log_reader", tests, NULL, NULL);
}
