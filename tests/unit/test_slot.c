#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <uv.h>

#include "gateway/slot.h"

static struct slot_ref opened(struct slot_table *table, uint32_t max_joiners)
{
    struct slot_options options = {
        .id = {"00000000000000000"
               "1"},
        .owner = 1,
        .target = {.port = 8080},
        .max_joiners = max_joiners,
        .window_end_ms = UINT64_MAX,
        .lease_deadline_ms = UINT64_MAX,
        .monotonic_ms = 5,
    };
    struct slot_ref ref;
    struct err e;
    assert_int_equal(slot_open(table, &options, &ref, &e), 0);
    return ref;
}

static int make_table(void **state)
{
    struct err e;
    return slot_table_new((struct slot_table **)state, 4, &e);
}

static int free_table(void **state)
{
    slot_table_free(*state);
    return 0;
}

static void full_slot_refuses(void **state)
{
    struct slot_ref ref = opened(*state, 2);
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_ENTERED);
    assert_int_equal(slot_enter_forced(ref, 1), SLOT_ENTERED);
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_FULL);
    assert_int_equal(slot_leave(ref, 9), 0);
    assert_int_equal(ref.slot->last_left_ms, 9);
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_ENTERED);
    assert_int_equal(slot_joiners(ref), 2);
    assert_int_equal(ref.slot->joins, 3);
    assert_int_equal(ref.slot->joiners_peak, 2);
}

static void who_waits_comes_before_who_does_not(void **state)
{
    struct slot_ref ref = opened(*state, 2);
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_ENTERED);
    ref.slot->waited_for = true;
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_WAITED);
    assert_int_equal(slot_enter_next(ref, 1, 1), SLOT_ENTERED);
    assert_int_equal(slot_enter_next(ref, 1, 1), SLOT_FULL);
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_FULL);
    assert_int_equal(slot_leave(ref, 1), SLOT_LEFT_WAITED);
    assert_int_equal(slot_enter_forced(ref, 1), SLOT_ENTERED); /* it wants this one alone */
    assert_int_equal(slot_leave(ref, 1), SLOT_LEFT_WAITED);
    ref.slot->waited_for = false;
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_ENTERED);
}

static void window_and_lease_refuse(void **state)
{
    struct slot_ref ref = opened(*state, 0);
    ref.slot->window_end_ms = 100;
    ref.slot->lease_deadline_ms = 50;
    assert_int_equal(slot_enter(ref, 101, 1), SLOT_LATE);
    assert_int_equal(slot_enter_forced(ref, 1), SLOT_ENTERED);
    assert_int_equal(slot_enter(ref, 100, 49), SLOT_ENTERED);
    assert_int_equal(slot_enter(ref, 100, 50), SLOT_NO_LEASE);
    assert_int_equal(slot_enter_forced(ref, 50), SLOT_NO_LEASE);
}

static void drained_empty_slot_tells_the_drainer(void **state)
{
    struct slot_ref ref = opened(*state, 1);
    assert_true(slot_drain(ref));
    assert_false(slot_drain(ref));
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_CLOSED);
}

static void drained_full_slot_tells_the_last_leaver(void **state)
{
    struct slot_ref ref = opened(*state, 2);
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_ENTERED);
    assert_int_equal(slot_enter(ref, 1, 1), SLOT_ENTERED);
    assert_false(slot_drain(ref));
    ref.slot->waited_for = true;
    assert_int_equal(slot_leave(ref, 1), SLOT_LEFT_WAITED);
    assert_int_equal(slot_leave(ref, 1), SLOT_LEFT_LAST | SLOT_LEFT_WAITED);
    assert_int_equal(slot_leave(ref, 1), 0);
}

static void retired_slot_is_stale_and_kept_until_empty(void **state)
{
    struct slot_table *table = *state;
    struct slot_ref refs[4];
    for (size_t i = 0; i < 4; i++)
        refs[i] = opened(table, 1);
    struct err e;
    struct slot_ref more;
    struct slot_options options = {.owner = 1};
    assert_int_equal(slot_open(table, &options, &more, &e), -ERR_LIMIT);
    assert_int_equal(slot_enter(refs[2], 1, 1), SLOT_ENTERED);
    slot_retire(table, refs[2]);
    slot_retire(table, refs[2]);
    assert_int_equal(slot_enter(refs[2], 1, 1), SLOT_STALE);
    assert_int_equal(slot_joiners(refs[2]), 0);
    /* Somebody is still inside and may read the target. */
    assert_int_equal(slot_open(table, &options, &more, &e), -ERR_LIMIT);
    assert_int_equal(slot_leave(refs[2], 1), 0);
    more = opened(table, 1);
    assert_ptr_equal(more.slot, refs[2].slot);
    assert_int_not_equal(more.generation, refs[2].generation);
    assert_int_equal(slot_enter(more, 1, 1), SLOT_ENTERED);
    assert_int_equal(slot_leave(refs[2], 1), 0); /* of the old generation: does nothing */
    assert_int_equal(slot_joiners(more), 1);
    assert_int_equal(slot_enter(((struct slot_ref){0}), 1, 1), SLOT_STALE);
}

enum { THREADS = 4, ROUNDS = 20000, LIMIT = 3 };

struct crowd {
    struct slot_ref ref;
    _Atomic int inside, inside_most;
    _Atomic int last, entered;
    _Atomic unsigned target_sum;
};

static void crowd_main(void *argument)
{
    struct crowd *crowd = argument;
    for (int i = 0; i < ROUNDS; i++) {
        enum slot_answer answer = slot_enter(crowd->ref, 1, 1);
        if (answer == SLOT_CLOSED || answer == SLOT_STALE)
            break;
        if (answer != SLOT_ENTERED)
            continue;
        crowd->entered++;
        int inside = ++crowd->inside;
        if (inside > crowd->inside_most)
            crowd->inside_most = inside;
        crowd->target_sum += crowd->ref.slot->target.port;
        crowd->inside--;
        if (slot_leave(crowd->ref, 2) & SLOT_LEFT_LAST)
            crowd->last++;
    }
}

static void crowd_never_exceeds_the_bound_and_one_is_told(void **state)
{
    for (int round = 0; round < 30; round++) {
        struct crowd crowd = {.ref = opened(*state, LIMIT)};
        uv_thread_t threads[THREADS];
        for (size_t i = 0; i < THREADS; i++)
            assert_int_equal(uv_thread_create(&threads[i], crowd_main, &crowd), 0);
        while (crowd.entered < round * 40)
            ;
        bool told_here = slot_drain(crowd.ref);
        if (round % 3 == 0) {
            slot_retire(*state, crowd.ref);
            /* Reused while threads still hold the old reference. */
            struct slot_ref next = opened(*state, 1);
            slot_retire(*state, next);
        }
        for (size_t i = 0; i < THREADS; i++)
            uv_thread_join(&threads[i]);
        assert_in_range(crowd.inside_most, 0, LIMIT);
        if (round % 3 != 0)
            assert_int_equal(crowd.last + (told_here ? 1 : 0), 1);
        else
            assert_in_range(crowd.last + (told_here ? 1 : 0), 0, 1);
        slot_retire(*state, crowd.ref);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(full_slot_refuses, make_table, free_table),
        cmocka_unit_test_setup_teardown(who_waits_comes_before_who_does_not, make_table,
                                        free_table),
        cmocka_unit_test_setup_teardown(window_and_lease_refuse, make_table, free_table),
        cmocka_unit_test_setup_teardown(drained_empty_slot_tells_the_drainer, make_table,
                                        free_table),
        cmocka_unit_test_setup_teardown(drained_full_slot_tells_the_last_leaver, make_table,
                                        free_table),
        cmocka_unit_test_setup_teardown(retired_slot_is_stale_and_kept_until_empty, make_table,
                                        free_table),
        cmocka_unit_test_setup_teardown(crowd_never_exceeds_the_bound_and_one_is_told, make_table,
                                        free_table),
    };
    return cmocka_run_group_tests_name("slot", tests, NULL, NULL);
}
