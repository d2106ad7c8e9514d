/* Entries on their way into libraft: whose memory is whose. Sanitizers see the rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "raft/entries.h"

#define SIZE 24

/* Entries from..to of a message's one memory. */
static void share(struct raft_entry *entries, size_t from, size_t to)
{
    char *batch = raft_malloc((to - from) * SIZE);
    assert_non_null(batch);
    for (size_t i = from; i < to; i++) {
        char *base = batch + (i - from) * SIZE;
        memset(base, 'a' + (int)i, SIZE);
        entries[i] = (struct raft_entry){
            .term = 1, .type = RAFT_COMMAND, .buf = {base, SIZE}, .batch = batch};
    }
}

static void entries_that_share_memory_get_their_own(void **state)
{
    (void)state;
    struct raft_entry entries[6];
    char expected[SIZE];
    share(entries, 0, 3);
    share(entries, 3, 5);
    entries[5] = (struct raft_entry){.term = 1, .type = RAFT_BARRIER};
    assert_true(entries_part(entries, 6));
    for (size_t i = 0; i < 5; i++) {
        assert_null(entries[i].batch);
        assert_int_equal(entries[i].buf.len, SIZE);
        memset(expected, 'a' + (int)i, SIZE);
        assert_memory_equal(entries[i].buf.base, expected, SIZE);
        raft_free(entries[i].buf.base);
    }
    assert_null(entries[5].buf.base);
    assert_true(entries_part(NULL, 0));
}

static struct raft_append_entries message(raft_index before, unsigned count)
{
    struct raft_append_entries m = {.prev_log_index = before, .n_entries = count};
    m.entries = raft_malloc(count * sizeof *m.entries);
    assert_non_null(m.entries);
    share(m.entries, 0, count);
    return m;
}

static void drop(struct raft_append_entries *m)
{
    struct raft_message whole = {.type = RAFT_IO_APPEND_ENTRIES, .append_entries = *m};
    entries_drop(&whole);
}

static void what_the_snapshot_has_is_left_out(void **state)
{
    (void)state;
    const struct raft_log log = {.offset = 10, .snapshot = {.last_index = 10, .last_term = 3}};
    struct raft_append_entries m = message(7, 5);
    entries_skip(&log, &m);
    assert_int_equal(m.n_entries, 2);
    assert_int_equal(m.prev_log_index, 10);
    assert_int_equal(m.prev_log_term, 3);
    assert_int_equal(((char *)m.entries[0].buf.base)[0], 'd');
    drop(&m);
    /* All of it. */
    m = message(5, 5);
    entries_skip(&log, &m);
    assert_int_equal(m.n_entries, 0);
    assert_null(m.entries);
    assert_int_equal(m.prev_log_index, 10);
    /* None. */
    m = message(10, 2);
    entries_skip(&log, &m);
    assert_int_equal(m.n_entries, 2);
    drop(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_that_share_memory_get_their_own),
        cmocka_unit_test(what_the_snapshot_has_is_left_out),
    };
    return cmocka_run_group_tests_name("entries", tests, NULL, NULL);
}
