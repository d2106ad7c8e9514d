#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "base/record.h"

static void add(struct buffer *b, enum record_kind kind, const char *text)
{
    uint8_t header[RECORD_HEADER_BYTES];
    record_header(header, kind, strlen(text));
    assert_true(buffer_append(b, header, sizeof header));
    assert_true(buffer_append(b, text, strlen(text)));
}

static void add_end(struct buffer *b, enum record_end how)
{
    uint8_t bytes[RECORD_END_BYTES];
    record_end(bytes, how);
    assert_true(buffer_append(b, bytes, sizeof bytes));
}

static void add_reset(struct buffer *b, enum record_reset code, const char *why)
{
    uint8_t bytes[RECORD_RESET_BYTES];
    record_reset(bytes, code, strlen(why));
    assert_true(buffer_append(b, bytes, sizeof bytes));
    assert_true(buffer_append(b, why, strlen(why)));
}

/* Decodes `in`, given in parts of `step` bytes, into "H(head)D(data)..." with DATA joined. */
static int decode(const struct buffer *in, size_t step, struct buffer *out, bool *idle)
{
    struct record_decoder d;
    struct err e;
    struct record r;
    bool in_data = false;
    int rc = 0;
    static const char letters[] = "?HD??ER";
    record_decoder_init(&d);
    for (size_t at = 0; at < in->length && rc >= 0;) {
        size_t part = in->length - at < step ? in->length - at : step;
        /* A copy of its own, so that reading beyond it is noticed. */
        char *copy = malloc(part);
        memcpy(copy, in->data + at, part);
        size_t offset = 0;
        do {
            size_t taken = 0;
            rc = record_decode(&d, &r, copy + offset, part - offset, &taken, &e);
            assert_true(taken <= part - offset);
            offset += taken;
            if (rc != 1)
                continue;
            if (!in_data || r.kind != RECORD_DATA)
                assert_true(buffer_append(out, &letters[r.kind], 1));
            in_data = r.kind == RECORD_DATA;
            if (r.kind == RECORD_END)
                assert_true(buffer_printf(out, "%d", (int)r.end));
            else
                assert_true(r.size == 0 || buffer_append(out, r.data, r.size));
        } while (rc == 1);
        assert_true(rc < 0 || offset == part);
        free(copy);
        at += part;
    }
    *idle = record_decoder_idle(&d);
    record_decoder_free(&d);
    return rc;
}

static void records_are_the_same_however_they_are_cut(void **state)
{
    (void)state;
    struct buffer in;
    bool idle = false;
    buffer_init(&in, 1u << 20);
    add(&in, RECORD_HEAD, "200 fine");
    add(&in, RECORD_DATA, "one ");
    add(&in, RECORD_DATA, "two");
    add_end(&in, RECORD_END_KEEP);
    add(&in, RECORD_HEAD, "204");
    add_end(&in, RECORD_END_HALF);
    for (size_t step = 1; step <= in.length; step++) {
        struct buffer out;
        buffer_init(&out, 1u << 20);
        assert_int_equal(decode(&in, step, &out, &idle), 0);
        assert_true(buffer_append(&out, "", 1));
        assert_string_equal(out.data, "H200 fineDone twoE2H204E3");
        assert_true(idle);
        buffer_free(&out);
    }
    buffer_free(&in);
}

static int decode_kinds(const char *kinds, bool *idle)
{
    struct buffer in, out;
    buffer_init(&in, 1u << 20);
    buffer_init(&out, 1u << 20);
    for (const char *at = kinds; *at != '\0'; at++) {
        if (*at == 'R')
            add_reset(&in, RECORD_RESET_CANCELED, "");
        else if (*at == 'E')
            add_end(&in, RECORD_END_CLOSE);
        else
            add(&in, *at == 'H' ? RECORD_HEAD : RECORD_DATA, "x");
    }
    int rc = decode(&in, in.length, &out, idle);
    buffer_free(&in);
    buffer_free(&out);
    return rc;
}

static void the_order_is_kept(void **state)
{
    (void)state;
    static const struct {
        const char *kinds;
        bool good, idle;
    } cases[] = {
        {"HE", true, true},   {"HDDE", true, true},  {"HEHE", true, true},  {"H", true, false},
        {"HD", true, false},  {"R", true, false},    {"HDR", true, false},  {"HER", true, false},
        {"D", false, false},  {"E", false, false},   {"HH", false, false},  {"RH", false, false},
        {"RR", false, false}, {"HEE", false, false}, {"HED", false, false},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        bool idle = false;
        int rc = decode_kinds(cases[i].kinds, &idle);
        if (rc != (cases[i].good ? 0 : -ERR_PROTOCOL))
            fail_msg("%s: %d", cases[i].kinds, rc);
        if (cases[i].good)
            assert_int_equal(idle, cases[i].idle);
    }
}

static int decode_bytes(const void *bytes, size_t length)
{
    struct buffer in, out;
    bool idle = false;
    buffer_init(&in, 1u << 20);
    buffer_init(&out, 1u << 20);
    add(&in, RECORD_HEAD, "x");
    assert_true(buffer_append(&in, bytes, length));
    int rc = decode(&in, 3, &out, &idle);
    buffer_free(&in);
    buffer_free(&out);
    return rc;
}

static void bad_headers_are_refused_at_once(void **state)
{
    (void)state;
    assert_int_equal(decode_bytes("\0\0\0\1", 4), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\7\0\0\1", 4), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\377\0\0\1", 4), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\2\0\0\0", 4), -ERR_PROTOCOL); /* empty DATA */
    assert_int_equal(decode_bytes("\2\1\0\0", 4), 0);             /* 64 KiB */
    assert_int_equal(decode_bytes("\2\1\0\1", 4), -ERR_PROTOCOL); /* and one more */
    assert_int_equal(decode_bytes("\3\0\0\1", 4), -ERR_PROTOCOL); /* no kind */
    assert_int_equal(decode_bytes("\4\0\0\1", 4), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\1\0\10\1", 4), -ERR_PROTOCOL); /* HEAD: 2 KiB */
    assert_int_equal(decode_bytes("\5\0\0\0", 4), -ERR_PROTOCOL);  /* END without its byte */
    assert_int_equal(decode_bytes("\5\0\0\2", 4), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\5\0\0\1\0", 5), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\5\0\0\1\4", 5), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\5\0\0\1\3", 5), 0);
    assert_int_equal(decode_bytes("\6\0\10\1", 4), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\6\0\0\3", 4), -ERR_PROTOCOL); /* a short RESET */
    assert_int_equal(decode_bytes("\6\0\0\4\0\0\0\1", 8), 0);
    assert_int_equal(decode_bytes("\6\0\0\4\0\0\0\0", 8), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\6\0\0\4\0\0\0\7", 8), -ERR_PROTOCOL);
    assert_int_equal(decode_bytes("\6\0\0\4\1\0\0\1", 8), -ERR_PROTOCOL);
}

static void a_large_body_passes_without_copies(void **state)
{
    (void)state;
    struct record_decoder d;
    struct record r;
    struct err e;
    size_t taken = 0;
    char *whole = malloc(RECORD_HEADER_BYTES * 2 + 1 + RECORD_BYTES_MAX);
    record_header((uint8_t *)whole, RECORD_HEAD, 1);
    whole[4] = 'x';
    record_header((uint8_t *)whole + 5, RECORD_DATA, RECORD_BYTES_MAX);
    memset(whole + 9, 'y', RECORD_BYTES_MAX);
    record_decoder_init(&d);
    assert_int_equal(record_decode(&d, &r, whole, 9 + RECORD_BYTES_MAX, &taken, &e), 1);
    assert_ptr_equal(r.data, whole + 4);
    assert_int_equal(taken, 5);
    assert_int_equal(record_decode(&d, &r, whole + 5, 4 + RECORD_BYTES_MAX, &taken, &e), 1);
    assert_ptr_equal(r.data, whole + 9);
    assert_int_equal(r.size, RECORD_BYTES_MAX);
    assert_null(d.block);
    record_decoder_free(&d);
    free(whole);
}

static void a_reset_names_its_code(void **state)
{
    (void)state;
    for (unsigned code = RECORD_RESET_CANCELED; code <= RECORD_RESET_LAST; code++) {
        uint8_t bytes[RECORD_RESET_BYTES];
        struct record_decoder d;
        struct record r;
        struct err e;
        size_t taken = 0;
        record_reset(bytes, (enum record_reset)code, 0);
        record_decoder_init(&d);
        assert_int_equal(record_decode(&d, &r, (const char *)bytes, sizeof bytes, &taken, &e), 1);
        assert_int_equal(r.kind, RECORD_RESET);
        assert_int_equal(r.reset, code);
        assert_int_equal(r.size, 0);
        assert_string_not_equal(record_reset_name(r.reset), "unknown");
        record_decoder_free(&d);
    }
    assert_string_equal(record_reset_name((enum record_reset)99), "unknown");
    struct buffer in, out;
    bool idle;
    buffer_init(&in, 1024);
    buffer_init(&out, 1024);
    add_reset(&in, RECORD_RESET_BROKEN, "because");
    assert_int_equal(decode(&in, 1, &out, &idle), 0);
    assert_int_equal(out.length, 8);
    assert_memory_equal(out.data, "Rbecause", 8);
    buffer_free(&in);
    buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_are_the_same_however_they_are_cut),
        cmocka_unit_test(the_order_is_kept),
        cmocka_unit_test(bad_headers_are_refused_at_once),
        cmocka_unit_test(a_large_body_passes_without_copies),
        cmocka_unit_test(a_reset_names_its_code),
    };
    return cmocka_run_group_tests_name("record", tests, NULL, NULL);
}
