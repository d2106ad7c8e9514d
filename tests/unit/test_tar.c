#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>

#include "base/memory.h"
#include "sandbox/shared/tar.h"

/* Feeds whole blocks until an entry comes; the blocks it took, or a negative error. */
static int feed(struct tar_reader *r, const uint8_t *blocks, size_t length)
{
    struct err e = {0};
    for (size_t at = 0; at < length; at += TAR_BLOCK_BYTES) {
        enum tar_step step;
        int rc = tar_reader_block(r, blocks + at, &step, &e);
        if (rc != 0)
            return rc;
        if (step == TAR_STEP_ENTRY)
            return (int)(at / TAR_BLOCK_BYTES) + 1;
    }
    return 0;
}

static void what_is_written_reads_back(void **state)
{
    (void)state;
    static struct tar_entry entries[] = {
        {.type = TAR_FILE, .path = "a", .mode = 0640, .size = 5, .mtime_s = 1700000000},
        {.type = TAR_FILE, .path = "big", .mode = 04755, .size = (1ULL << 40) + 7},
        {.type = TAR_DIRECTORY, .path = "d", .mode = 0755},
        {.type = TAR_SYMLINK, .path = "l", .link = "../x", .mode = 0777},
        {.type = TAR_HARDLINK, .path = "h", .link = "a", .mode = 0640},
        {.type = TAR_FILE, .mode = 0600},
    };
    struct tar_entry *longest = &entries[ARRAY_SIZE(entries) - 1];
    memset(longest->path, 'p', TAR_PATH_SIZE - 2);
    for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
        uint8_t blocks[TAR_ENCODED_BYTES_MAX];
        size_t length = tar_encode(&entries[i], blocks);
        assert_true(length > 0 && length % TAR_BLOCK_BYTES == 0);
        struct tar_reader r;
        tar_reader_init(&r);
        assert_int_equal(feed(&r, blocks, length), length / TAR_BLOCK_BYTES);
        if (r.entry.type == TAR_DIRECTORY)
            assert_true(tar_path_clean(r.entry.path));
        assert_int_equal(r.entry.type, entries[i].type);
        assert_string_equal(r.entry.path, entries[i].path);
        assert_string_equal(r.entry.link, entries[i].link);
        assert_int_equal(r.entry.mode, entries[i].mode);
        assert_true(r.entry.size == entries[i].size);
        assert_true(r.entry.mtime_s == entries[i].mtime_s);
        tar_reader_free(&r);
    }
}

static void damaged_header_is_refused(void **state)
{
    (void)state;
    const struct tar_entry entry = {.type = TAR_FILE, .path = "a", .mode = 0644};
    uint8_t blocks[TAR_ENCODED_BYTES_MAX];
    assert_int_equal(tar_encode(&entry, blocks), TAR_BLOCK_BYTES);
    for (size_t i = 0; i < TAR_BLOCK_BYTES; i++) {
        struct tar_reader r;
        tar_reader_init(&r);
        blocks[i] ^= 1;
        /* The check covers every byte but its own terminator. */
        if (i != 154 && i != 155)
            assert_int_equal(feed(&r, blocks, TAR_BLOCK_BYTES), -ERR_INVALID);
        blocks[i] ^= 1;
        tar_reader_free(&r);
    }
}

static void hostile_extended_headers_are_refused(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "9 path=a",        /* longer than the header */
        "0 path=a\n",      /* no length */
        "path=a\n",        /* no number */
        "6 ab\n\n",        /* no equals sign */
        "999999 path=a\n", /* far longer */
        "12 size=-1x\n",   /* no number */
        "12 size=-10\n",   /* negative */
        "11 size=12\n5 a", /* one is right, the next is cut */
    };
    for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
        const struct tar_entry entry = {.type = TAR_FILE, .path = "x", .size = strlen(bodies[i])};
        uint8_t blocks[TAR_ENCODED_BYTES_MAX + TAR_BLOCK_BYTES] = {0};
        assert_int_equal(tar_encode(&entry, blocks), TAR_BLOCK_BYTES);
        blocks[156] = 'x';
        unsigned sum = 0;
        for (size_t k = 0; k < TAR_BLOCK_BYTES; k++)
            sum += k >= 148 && k < 156 ? ' ' : blocks[k];
        snprintf((char *)blocks + 148, 8, "%06o", sum);
        memcpy(blocks + TAR_BLOCK_BYTES, bodies[i], strlen(bodies[i]));
        struct tar_reader r;
        tar_reader_init(&r);
        assert_true(feed(&r, blocks, 2 * TAR_BLOCK_BYTES) < 0);
        tar_reader_free(&r);
    }
}

static void paths_stay_inside(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        const char *clean; /* NULL: refused */
    } cases[] = {{"a/b", "a/b"},     {"./a//b/", "a/b"}, {".", ""},        {"", ""},
                 {"/a", NULL},       {"..", NULL},       {"a/../b", NULL}, {"a/..", NULL},
                 {"a/..b", "a/..b"}, {"...", "..."},     {"a/./.", "a"},   {"../../etc", NULL}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char path[32];
        assert_true(text_copy(path, sizeof path, cases[i].path));
        assert_int_equal(tar_path_clean(path), cases[i].clean != NULL);
        if (cases[i].clean != NULL)
            assert_string_equal(path, cases[i].clean);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(damaged_header_is_refused),
        cmocka_unit_test(hostile_extended_headers_are_refused),
        cmocka_unit_test(paths_stay_inside),
    };
    return cmocka_run_group_tests_name("tar", tests, NULL, NULL);
}
