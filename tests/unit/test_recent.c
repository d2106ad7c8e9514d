#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "raft/recent.h"

static struct recent *ring_new(void)
{
    struct recent *r;
    struct err e;
    assert_int_equal(recent_new(&r, &e), 0);
    return r;
}

/* Indices as they come: with gaps where an entry was no command. */
static void push_range(struct recent *r, uint64_t from, uint64_t to, uint64_t step)
{
    for (uint64_t i = from; i <= to; i += step)
        recent_push(r, i, &i, sizeof i);
}

static void commands_come_back_in_order_and_gaps_are_none(void **unused)
{
    (void)unused;
    struct recent *r = ring_new();
    struct recent_entry e;
    assert_false(recent_next(r, 0, &e));
    recent_reset(r, 10);
    push_range(r, 13, 1013, 2);
    assert_true(recent_covers(r, 10));
    assert_false(recent_covers(r, 9));
    uint64_t at = 10, count = 0;
    for (; recent_next(r, at, &e); count++) {
        uint64_t held;
        assert_int_equal(e.length, sizeof held);
        memcpy(&held, e.bytes, sizeof held);
        assert_int_equal(e.index, 13 + 2 * count);
        assert_int_equal(held, e.index);
        at = e.index;
    }
    assert_int_equal(count, 501);
    assert_true(recent_next(r, 500, &e));
    assert_int_equal(e.index, 501);
    recent_free(r);
}

static void the_oldest_go_at_the_bounds(void **unused)
{
    (void)unused;
    struct recent *r = ring_new();
    struct recent_entry e;
    recent_bound(r, 100, 1 << 20);
    push_range(r, 1, 1000, 1);
    assert_int_equal(recent_count(r), 100);
    assert_false(recent_covers(r, 899));
    assert_true(recent_covers(r, 900));
    assert_true(recent_next(r, 0, &e));
    assert_int_equal(e.index, 901);
    recent_bound(r, 100, 80); /* bytes: ten of eight */
    assert_int_equal(recent_count(r), 10);
    push_range(r, 1001, 1005, 1);
    assert_int_equal(recent_bytes(r), 80);
    assert_true(recent_next(r, 0, &e));
    assert_int_equal(e.index, 996);
    recent_free(r);
}

static void what_is_too_large_leaves_nothing_that_lies(void **unused)
{
    (void)unused;
    struct recent *r = ring_new();
    struct recent_entry e;
    uint8_t large[64] = {0};
    recent_bound(r, 100, 32);
    push_range(r, 1, 3, 1);
    recent_push(r, 4, large, sizeof large);
    assert_int_equal(recent_count(r), 0);
    assert_false(recent_covers(r, 3)); /* 4 is not here */
    assert_true(recent_covers(r, 4));
    push_range(r, 5, 5, 1);
    assert_true(recent_next(r, 4, &e));
    assert_int_equal(e.index, 5);
    recent_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_come_back_in_order_and_gaps_are_none),
        cmocka_unit_test(the_oldest_go_at_the_bounds),
        cmocka_unit_test(what_is_too_large_leaves_nothing_that_lies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
