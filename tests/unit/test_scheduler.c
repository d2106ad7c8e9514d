#include "tests/lib/scheduler_bench.h"

/* --- cold starts and the queue --- */

static void cold_requests_share_a_starting_instance(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask(b, 1);
    scheduler_instance first = started(b);
    assert_int_equal(find(b, SCHEDULER_START, 0)->waiter, 1);
    ask(b, 2);
    assert_int_equal(b->out.count, 0);
    ask(b, 3); /* max_joiners is 2 */
    scheduler_instance second = started(b);
    ready(b, first, 2);
    assert_granted(b, 1, first, SCHEDULER_COLD);
    assert_granted(b, 2, first, SCHEDULER_JOIN);
    assert_int_equal(count(b, SCHEDULER_GRANT), 2);
    ready(b, second, 2);
    assert_granted(b, 3, second, SCHEDULER_COLD);
}

static void unlimited_joiners_share_one_instance(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.max_joiners = 0;
    w.scale.queue = 0;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    scheduler_instance i = started(b);
    for (scheduler_waiter n = 2; n <= 100; n++) {
        ask(b, n);
        assert_int_equal(b->out.count, 0);
    }
    ready(b, i, UINT32_MAX);
    assert_int_equal(count(b, SCHEDULER_GRANT), 100);
}

static void first_come_first_served_whichever_is_ready_first(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.max_joiners = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ask(b, 2);
    scheduler_instance second = started(b);
    ready(b, second, 1);
    assert_granted(b, 1, second, SCHEDULER_COLD);
}

static void queue_is_bounded_and_ends(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    for (scheduler_waiter n = 1; n <= 6; n++)
        ask(b, n); /* three instances of two */
    assert_int_equal(slot_of(b, 3)->started, true);
    for (scheduler_waiter n = 7; n <= 10; n++) {
        ask(b, n);
        assert_int_equal(b->out.count, 0);
    }
    ask(b, 11);
    assert_refused(b, 11, PROBLEM_QUEUE_FULL);
    assert_true(find(b, SCHEDULER_REFUSE, 0)->retry_after_ms > 0);
    for (scheduler_instance i = 1; i <= 3; i++)
        ready(b, i, 2);
    tick(b, 1000);
    leave(b, 2);
    assert_granted(b, 7, 2, SCHEDULER_JOIN);
    assert_int_equal(b->out.next_ms, b->now + 1000);
    tick(b, 999);
    assert_int_equal(b->out.count, 0);
    tick(b, 1);
    assert_int_equal(count(b, SCHEDULER_REFUSE), 3);
    assert_refused(b, 8, PROBLEM_QUEUE_TIMEOUT);
    assert_non_null(strstr(find(b, SCHEDULER_REFUSE, 0)->detail, "3 of 3 instances of web"));
    assert_false(slot_of(b, 4)->started);
    assert_false(scheduler_waited_for(b->s, "web"));
}

static void no_queue_still_lets_a_cold_request_start(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.queue = 0;
    w.scale.max = 1;
    w.join.max_joiners = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    started(b);
    ask(b, 2);
    assert_refused(b, 2, PROBLEM_QUEUE_FULL);
}

static void nobody_overtakes_who_waits(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.max = 1;
    w.join.max_joiners = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 1);
    ask(b, 2);
    slot_of(b, 1)->joiners = 0; /* there is room, but nobody was told yet */
    ask(b, 3);
    assert_int_equal(b->out.count, 0);
    instance_event(b, SCHEDULER_LEFT, 1);
    assert_granted(b, 2, 1, SCHEDULER_JOIN);
}

static void leaves_before_the_mark_are_found_by_name(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.max = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 1);
    ask(b, 2);
    assert_true(scheduler_waited_for(b->s, "web"));
    slot_of(b, 1)->joiners = 0;
    step(b, (struct scheduler_event){.kind = SCHEDULER_LEFT, .name = "web"});
    assert_granted(b, 2, 1, SCHEDULER_JOIN);
}

static void a_canceled_waiter_is_forgotten(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.max = 1;
    w.join.max_joiners = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ask(b, 2);
    step(b, (struct scheduler_event){.kind = SCHEDULER_CANCEL, .waiter = 1});
    assert_int_equal(b->out.count, 0);
    ready(b, 1, 1);
    assert_int_equal(count(b, SCHEDULER_GRANT), 1);
    assert_granted(b, 2, 1, SCHEDULER_COLD);
    step(b, (struct scheduler_event){.kind = SCHEDULER_CANCEL, .waiter = 2}); /* crossed */
    assert_int_equal(b->out.count, 0);
}

static void starts_at_the_same_time_are_bounded(void **state)
{
    (void)state;
    struct bench *b;
    open_bench_with(&b, 100, 1);
    struct workload w = spec();
    w.join.max_joiners = 1;
    w.scale.queue = 0;
    deploy(b, "web", 1, &w);
    deploy(b, "other", 1, &w);
    ask(b, 1);
    ask(b, 2);
    step(b, (struct scheduler_event){.kind = SCHEDULER_ASK, .name = "other", .waiter = 3});
    assert_int_equal(b->out.count, 0); /* it waits for its turn, not in a queue of length 0 */
    ready(b, 1, 1);
    assert_int_equal(count(b, SCHEDULER_START), 1);
    assert_string_equal(find(b, SCHEDULER_START, 0)->name, "web");
    ready(b, 2, 1);
    assert_string_equal(find(b, SCHEDULER_START, 0)->name, "other");
    void *p = b;
    close_bench(&p);
}

static void a_full_node_says_so(void **state)
{
    (void)state;
    struct bench *b;
    open_bench_with(&b, 1, 10);
    struct workload w = spec();
    w.join.max_joiners = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ask(b, 2);
    tick(b, 2000);
    assert_refused(b, 2, PROBLEM_NODE_FULL);
    void *p = b;
    close_bench(&p);
}

/* --- keys, forced joins, commands --- */

static void a_key_has_one_instance(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.queue = 1;
    deploy(b, "web", 1, &w);
    ask_key(b, 1, "red");
    scheduler_instance red = started(b);
    assert_string_equal(find(b, SCHEDULER_START, 0)->key, "red");
    ask_key(b, 2, "blue");
    scheduler_instance blue = started(b);
    ask_key(b, 3, "red");
    assert_int_equal(b->out.count, 0);
    ready(b, blue, 2);
    assert_granted(b, 2, blue, SCHEDULER_COLD);
    assert_int_equal(count(b, SCHEDULER_GRANT), 1);
    ready(b, red, 2);
    assert_int_equal(count(b, SCHEDULER_GRANT), 2);
    ask_key(b, 4, "red"); /* full: the queue, though scale.max is not reached */
    assert_int_equal(b->out.count, 0);
    ask_key(b, 5, "red");
    assert_refused(b, 5, PROBLEM_INSTANCE_FULL);
    tick(b, 2000);
    assert_refused(b, 4, PROBLEM_INSTANCE_FULL);
    assert_int_equal(find(b, SCHEDULER_REFUSE, 0)->instance, red);
    instance_event(b, SCHEDULER_ENDED, red);
    ask_key(b, 6, "red");
    assert_int_not_equal(started(b), red);
}

static void a_key_outlives_window_and_version(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.window_ms = 1000;
    deploy(b, "web", 1, &w);
    ask_key(b, 1, "red");
    ready(b, 1, 2);
    slot_of(b, 1)->window_end_ms = b->now;
    tick(b, 5000);
    assert_int_equal(b->out.count, 0);
    deploy(b, "web", 2, &w);
    assert_int_equal(b->out.count, 0);
    ask_key(b, 2, "red");
    assert_granted(b, 2, 1, SCHEDULER_JOIN);
}

static void a_key_waits_for_the_end_of_its_old_instance(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.life.max_ms = 1000;
    deploy(b, "web", 1, &w);
    ask_key(b, 1, "red");
    ready(b, 1, 2);
    tick(b, 1000);
    assert_true(slot_of(b, 1)->closed);
    ask_key(b, 2, "red");
    assert_int_equal(b->out.count, 0);
    instance_event(b, SCHEDULER_EMPTY, 1);
    assert_int_equal(slot_of(b, 1)->reason, END_EXPIRED);
    assert_int_equal(count(b, SCHEDULER_START), 0);
    instance_event(b, SCHEDULER_ENDED, 1);
    assert_int_equal(started(b), 2);
}

static void forced_joins_wait_or_are_refused(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask_forced(b, 1, 77);
    assert_refused(b, 1, PROBLEM_INSTANCE_UNKNOWN);
    ask(b, 2);
    ask_forced(b, 3, 1);
    ask_forced(b, 4, 1);
    assert_int_equal(b->out.count, 0);
    ready(b, 1, 2);
    assert_granted(b, 2, 1, SCHEDULER_COLD);
    assert_granted(b, 3, 1, SCHEDULER_JOIN);
    assert_refused(b, 4, PROBLEM_INSTANCE_FULL);
    ask_forced(b, 5, 1);
    assert_refused(b, 5, PROBLEM_INSTANCE_FULL);
    slot_of(b, 1)->joiners = 1;
    slot_of(b, 1)->window_end_ms = 0; /* forced: the window does not matter */
    ask_forced(b, 6, 1);
    assert_granted(b, 6, 1, SCHEDULER_JOIN);
    step(b,
         (struct scheduler_event){.kind = SCHEDULER_DRAIN, .instance = 1, .reason = END_UNHEALTHY});
    ask_forced(b, 7, 1);
    assert_refused(b, 7, PROBLEM_INSTANCE_GONE);
}

static void each_command_has_its_own_instance(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.kind = WORKLOAD_COMMAND;
    w.scale.max = 2;
    w.scale.queue = 1;
    deploy(b, "web", 1, &w);
    ask_exclusive(b, 1);
    scheduler_instance first = started(b);
    ask_exclusive(b, 2);
    scheduler_instance second = started(b);
    assert_int_not_equal(first, second);
    ask_exclusive(b, 3);
    assert_int_equal(b->out.count, 0);
    ask_exclusive(b, 4);
    assert_refused(b, 4, PROBLEM_QUEUE_FULL);
    step(b, (struct scheduler_event){.kind = SCHEDULER_READY, .instance = second});
    assert_granted(b, 2, second, SCHEDULER_COLD);
    assert_int_equal(slot_of(b, second)->joiners, 0);
    ask_forced(b, 5, second);
    assert_refused(b, 5, PROBLEM_CONFLICT);
    instance_event(b, SCHEDULER_ENDED, second);
    assert_int_equal(find(b, SCHEDULER_START, 0)->waiter, 3);
    /* A client that leaves takes its instance along. */
    step(b, (struct scheduler_event){.kind = SCHEDULER_CANCEL, .waiter = 1});
    assert_int_equal(slot_of(b, first)->reason, END_CLIENT_GONE);
    instance_event(b, SCHEDULER_FAILED, first);
    assert_int_equal(b->out.count, 0);
    /* A failure is told to the one whose command it was. */
    instance_event(b, SCHEDULER_FAILED, 3);
    assert_refused(b, 3, PROBLEM_START_FAILED);
}

static void a_server_started_on_its_own_can_be_joined(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask_exclusive(b, 1);
    scheduler_instance i = started(b);
    ask(b, 2); /* shares the start */
    assert_int_equal(b->out.count, 0);
    ready(b, i, 2);
    assert_granted(b, 1, i, SCHEDULER_COLD);
    assert_granted(b, 2, i, SCHEDULER_JOIN);
    assert_int_equal(slot_of(b, i)->joiners, 1);
    ask_exclusive(b, 3);
    assert_int_not_equal(started(b), i);
}

static void a_key_started_on_its_own_is_made_once(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    struct scheduler_event event = {
        .kind = SCHEDULER_ASK, .name = "web", .waiter = 1, .key = "red", .exclusive = true};
    step(b, event);
    scheduler_instance i = started(b);
    event.waiter = 2;
    step(b, event);
    assert_int_equal(b->out.count, 0);
    ready(b, i, 2);
    assert_granted(b, 1, i, SCHEDULER_COLD);
    assert_granted(b, 2, i, SCHEDULER_JOIN);
    event.waiter = 3;
    step(b, event);
    assert_granted(b, 3, i, SCHEDULER_JOIN);
    assert_int_equal(slot_of(b, i)->joiners, 0);
}

/* --- failures --- */

static void a_failed_start_is_told_to_its_waiters(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.max = 1;
    deploy(b, "web", 1, &w);
    for (scheduler_waiter n = 1; n <= 3; n++)
        ask(b, n);
    ask_forced(b, 4, 1);
    instance_event(b, SCHEDULER_FAILED, 1);
    assert_refused(b, 1, PROBLEM_START_FAILED);
    assert_refused(b, 2, PROBLEM_START_FAILED);
    assert_refused(b, 4, PROBLEM_START_FAILED);
    assert_int_equal(count(b, SCHEDULER_REFUSE), 3);
    assert_string_equal(find(b, SCHEDULER_REFUSE, 0)->detail, "why it ended");
    assert_int_equal(find(b, SCHEDULER_REFUSE, 0)->instance, 1);
    /* The third was not its waiter and gets another start. */
    assert_int_equal(find(b, SCHEDULER_START, 0)->waiter, 3);
}

static void another_starting_instance_takes_the_waiters(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ask(b, 2);
    ask(b, 3);
    step(b, (struct scheduler_event){.kind = SCHEDULER_CANCEL, .waiter = 1});
    instance_event(b, SCHEDULER_FAILED, 1);
    assert_int_equal(count(b, SCHEDULER_REFUSE), 0);
    ready(b, 2, 2);
    assert_int_equal(count(b, SCHEDULER_GRANT), 2);
}

static void crash_loops_back_off(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.max_joiners = 1;
    w.scale.max = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    instance_event(b, SCHEDULER_FAILED, started(b));
    ask(b, 2);
    scheduler_instance second = started(b); /* one failure is nothing */
    ask(b, 3);
    instance_event(b, SCHEDULER_FAILED, second);
    assert_refused(b, 2, PROBLEM_START_FAILED);
    assert_refused(b, 3, PROBLEM_START_FAILED); /* no start will come for it soon */
    uint64_t expected = 1000;
    scheduler_waiter waiter = 10;
    for (int round = 0; round < 8; round++) {
        ask(b, waiter);
        assert_refused(b, waiter++, PROBLEM_START_FAILED);
        assert_int_equal(find(b, SCHEDULER_REFUSE, 0)->retry_after_ms, expected);
        char detail[200], pause[UNIT_TEXT_SIZE];
        duration_format(expected, pause);
        snprintf(detail, sizeof detail,
                 "why it ended (%d starts failed in a row; the next is tried in %s)", round + 2,
                 pause);
        assert_string_equal(find(b, SCHEDULER_REFUSE, 0)->detail, detail);
        tick(b, expected);
        ask(b, waiter++);
        instance_event(b, SCHEDULER_FAILED, started(b));
        expected = expected * 2 > 60000 ? 60000 : expected * 2;
    }
    deploy(b, "web", 2, &w); /* a new version has its own chance */
    ask(b, waiter);
    ready(b, started(b), 1);
    assert_int_equal(count(b, SCHEDULER_GRANT), 1);
}

static void ready_instances_go_on_while_starts_back_off(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.max_joiners = 1;
    w.scale.queue_timeout_ms = 60000;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 1);
    ask(b, 2);
    instance_event(b, SCHEDULER_FAILED, started(b));
    ask(b, 3);
    instance_event(b, SCHEDULER_FAILED, started(b));
    ask(b, 4);
    assert_int_equal(b->out.count, 0);
    leave(b, 1);
    assert_granted(b, 4, 1, SCHEDULER_JOIN);
    ask(b, 5);
    assert_int_equal(b->out.count, 0);
    assert_int_equal(b->out.next_ms, b->now + 1000);
    tick(b, 1000);
    started(b);
    /* The last instance that could serve goes away while starts back off. */
    instance_event(b, SCHEDULER_FAILED, 4);
    ask(b, 6);
    assert_int_equal(b->out.count, 0);
    instance_event(b, SCHEDULER_ENDED, 1);
    assert_refused(b, 6, PROBLEM_START_FAILED);
}

static void a_start_that_takes_too_long_is_ended(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ask_forced(b, 2, 1);
    assert_int_equal(b->out.next_ms, b->now + 10000);
    tick(b, 10000);
    assert_refused(b, 1, PROBLEM_START_TIMEOUT);
    assert_refused(b, 2, PROBLEM_START_TIMEOUT);
    assert_string_equal(find(b, SCHEDULER_REFUSE, 0)->detail, "web was not ready within 10s");
    assert_int_equal(slot_of(b, 1)->reason, END_START_TIMEOUT);
    ready(b, 1, 2); /* too late */
    assert_int_equal(b->out.count, 0);
    instance_event(b, SCHEDULER_FAILED, 1);
    assert_int_equal(b->out.count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_BENCH(cold_requests_share_a_starting_instance),
        WITH_BENCH(unlimited_joiners_share_one_instance),
        WITH_BENCH(first_come_first_served_whichever_is_ready_first),
        WITH_BENCH(queue_is_bounded_and_ends),
        WITH_BENCH(no_queue_still_lets_a_cold_request_start),
        WITH_BENCH(nobody_overtakes_who_waits),
        WITH_BENCH(leaves_before_the_mark_are_found_by_name),
        WITH_BENCH(a_canceled_waiter_is_forgotten),
        cmocka_unit_test(starts_at_the_same_time_are_bounded),
        cmocka_unit_test(a_full_node_says_so),
        WITH_BENCH(a_key_has_one_instance),
        WITH_BENCH(a_key_outlives_window_and_version),
        WITH_BENCH(a_key_waits_for_the_end_of_its_old_instance),
        WITH_BENCH(forced_joins_wait_or_are_refused),
        WITH_BENCH(each_command_has_its_own_instance),
        WITH_BENCH(a_server_started_on_its_own_can_be_joined),
        WITH_BENCH(a_key_started_on_its_own_is_made_once),
        WITH_BENCH(a_failed_start_is_told_to_its_waiters),
        WITH_BENCH(another_starting_instance_takes_the_waiters),
        WITH_BENCH(crash_loops_back_off),
        WITH_BENCH(ready_instances_go_on_while_starts_back_off),
        WITH_BENCH(a_start_that_takes_too_long_is_ended),
    };
    return cmocka_run_group_tests_name("scheduler", tests, NULL, NULL);
}
