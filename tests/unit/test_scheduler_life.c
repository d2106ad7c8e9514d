#include "tests/lib/scheduler_bench.h"

/* --- how they end --- */

static void idle_instances_end(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.life.idle_ms = 1000;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    tick(b, 1000); /* its joiner is there */
    assert_int_equal(b->out.count, 0);
    tick(b, 600);
    leave(b, 1);
    tick(b, 400); /* the deadline as it was thought to be */
    assert_int_equal(b->out.count, 0);
    assert_int_equal(b->out.next_ms, b->now + 600);
    tick(b, 599);
    assert_int_equal(b->out.count, 0);
    tick(b, 1);
    assert_true(slot_of(b, 1)->closed);
    assert_false(slot_of(b, 1)->stopped);
    instance_event(b, SCHEDULER_EMPTY, 1);
    assert_int_equal(slot_of(b, 1)->reason, END_IDLE);
    instance_event(b, SCHEDULER_ENDED, 1);
    struct scheduler_counts counts;
    scheduler_counts(b->s, &counts);
    assert_int_equal(counts.instances, 0);
}

static void the_window_closes(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.window_ms = 1000;
    w.scale.max = 2;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    slot_of(b, 1)->window_end_ms = b->now + 1000;
    tick(b, 1000);
    assert_true(slot_of(b, 1)->closed);
    ask(b, 2);
    assert_int_equal(started(b), 2);
    tick(b, 5000); /* its joiner may stay */
    assert_false(slot_of(b, 1)->stopped);
    ask(b, 3);
    ask(b, 4); /* the old one counts against scale.max until it has ended */
    assert_int_equal(b->out.count, 0);
    instance_event(b, SCHEDULER_EMPTY, 1);
    assert_int_equal(slot_of(b, 1)->reason, END_EXPIRED);
    instance_event(b, SCHEDULER_ENDED, 1);
    started(b);
}

static void life_max_ends_after_a_drain(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.life.max_ms = 60000;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    step(b, (struct scheduler_event){
                .kind = SCHEDULER_EXTEND, .instance = 1, .until_ms = b->now + 90000});
    assert_int_equal(b->out.next_ms, b->now + 90000);
    tick(b, 60000);
    assert_int_equal(b->out.count, 0);
    tick(b, 30000);
    assert_true(slot_of(b, 1)->closed);
    assert_int_equal(b->out.next_ms, b->now + 5000);
    tick(b, 5000);
    assert_int_equal(slot_of(b, 1)->reason, END_EXPIRED);
}

static void life_max_bounds_a_closed_window_too(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.window_ms = 1000;
    w.life.max_ms = 3000;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    tick(b, 1000);
    assert_true(slot_of(b, 1)->closed);
    tick(b, 2000);
    assert_false(slot_of(b, 1)->stopped);
    tick(b, 5000);
    assert_true(slot_of(b, 1)->stopped);
}

static void a_new_version_drains_the_old(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.max = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    deploy(b, "web", 1, &w); /* the same again changes nothing */
    assert_int_equal(b->out.count, 0);
    /* It is started at once, and until it is ready the old one goes on. */
    deploy(b, "web", 2, &w);
    assert_int_equal(started(b), 2);
    assert_int_equal(slot_of(b, 2)->version, 2);
    assert_int_equal(slot_of(b, 2)->start, SCHEDULER_POOL);
    assert_false(slot_of(b, 1)->closed);
    ask(b, 2);
    assert_int_equal(find(b, SCHEDULER_GRANT, 0)->instance, 1);
    ask(b, 3); /* for whom it has no room, and who counts on the new one */
    assert_int_equal(count(b, SCHEDULER_GRANT) + count(b, SCHEDULER_REFUSE), 0);
    ready(b, 2, 2);
    assert_int_equal(find(b, SCHEDULER_GRANT, 0)->waiter, 3);
    assert_int_equal(find(b, SCHEDULER_GRANT, 0)->instance, 2);
    assert_true(slot_of(b, 1)->closed);
    assert_false(slot_of(b, 1)->stopped);
    ask(b, 4);
    assert_int_equal(find(b, SCHEDULER_GRANT, 0)->instance, 2);
    tick(b, 5000);
    assert_int_equal(slot_of(b, 1)->reason, END_DRAINED);
}

static void who_waits_for_an_old_start_gets_one_of_the_new(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.max = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    deploy(b, "web", 2, &w);
    assert_int_equal(slot_of(b, 1)->reason, END_DRAINED);
    assert_int_equal(count(b, SCHEDULER_REFUSE), 0);
    assert_int_equal(find(b, SCHEDULER_START, 0)->version, 2);
    assert_int_equal(find(b, SCHEDULER_START, 0)->waiter, 1);
    ready(b, 2, 2);
    assert_int_equal(find(b, SCHEDULER_GRANT, 0)->waiter, 1);
    /* One that did not become ready is skipped by the next. */
    deploy(b, "web", 3, &w);
    deploy(b, "web", 4, &w);
    assert_true(slot_of(b, 3)->stopped);
    assert_false(slot_of(b, 2)->closed);
    assert_int_equal(slot_of(b, 4)->version, 4);
}

static void a_new_version_that_does_not_start_leaves_the_old(void **state)
{
    struct bench *b = *state;
    struct scheduler_outlook o;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    deploy(b, "web", 2, &w);
    uint64_t pause_ms[] = {0, 1000, 2000, 4000};
    for (size_t k = 0; k < sizeof pause_ms / sizeof pause_ms[0]; k++) {
        assert_true(slot_of(b, 2 + k)->started);
        instance_event(b, SCHEDULER_FAILED, 2 + k);
        assert_true(scheduler_outlook(b->s, "web", b->now, &o));
        assert_int_equal(o.failures, k + 1);
        assert_int_equal(o.failures_pause_ms, pause_ms[k]);
        assert_string_equal(o.failure, "why it ended");
        assert_true(o.older == 1 && o.ready == 0 && o.waiting == 0);
        assert_false(slot_of(b, 1)->closed);
        ask(b, 10 + k);
        assert_int_equal(find(b, SCHEDULER_GRANT, 0)->instance, 1);
        leave(b, 1);
        for (uint64_t ms = 0; ms < pause_ms[k]; ms += 500)
            tick(b, 500);
    }
    /* Nor is it kept for ever: it ends as any other. */
    step(b,
         (struct scheduler_event){.kind = SCHEDULER_DRAIN, .instance = 1, .reason = END_UNHEALTHY});
    assert_true(slot_of(b, 1)->closed);
    assert_false(scheduler_rolls(b->s, "web"));
}

static void another_node_can_have_the_new_version(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    deploy(b, "web", 2, &w);
    assert_true(scheduler_rolls(b->s, "web"));
    step(b, (struct scheduler_event){.kind = SCHEDULER_OTHERS, .name = "web", .replaced = true});
    assert_true(slot_of(b, 1)->closed);
    assert_false(slot_of(b, 1)->stopped);
    assert_false(scheduler_rolls(b->s, "web"));
    /* A word about the version before is not one about the next. */
    ready(b, 2, 2);
    deploy(b, "web", 3, &w);
    assert_false(slot_of(b, 2)->closed);
    /* Where it may not start, nobody waits for it. */
    step(b, (struct scheduler_event){.kind = SCHEDULER_WORKLOAD,
                                     .name = "web",
                                     .version = 4,
                                     .workload = &w,
                                     .barred = true});
    assert_true(slot_of(b, 2)->closed);
    assert_int_equal(count(b, SCHEDULER_START), 0);
}

static void what_cannot_stand_in_drains_at_once(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    w.join.key = "header:X-Room";
    deploy(b, "web", 2, &w);
    assert_true(slot_of(b, 1)->closed);
    assert_int_equal(count(b, SCHEDULER_START), 0);
}

static void the_next_starts_when_the_target_is_passed(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.max_joiners = 10;
    w.scale.target_thousandths = 800;
    deploy(b, "web", 1, &w);
    for (scheduler_waiter k = 1; k <= 9; k++)
        ask(b, k);
    /* Nine are more than 8 of 10: a second one starts although the first has room for all. */
    assert_int_equal(started(b), 2);
    assert_int_equal(slot_of(b, 1)->start, SCHEDULER_COLD);
    assert_int_equal(slot_of(b, 2)->start, SCHEDULER_POOL);
    ready(b, 1, 10);
    ready(b, 2, 10);
    tick(b, 1000);
    assert_int_equal(count(b, SCHEDULER_START), 0);
    for (int k = 0; k < 7; k++) /* joins that take no message: 16 are inside, which is the share */
        assert_true(enter(b, 2, false));
    tick(b, 100);
    assert_int_equal(count(b, SCHEDULER_START), 0);
    assert_true(enter(b, 2, false));
    tick(b, 100);
    assert_int_equal(started(b), 3);
    ready(b, 3, 10);
    /* scale.max holds. */
    for (int k = 0; k < 10; k++)
        assert_true(enter(b, 3, false));
    tick(b, 1000);
    assert_int_equal(count(b, SCHEDULER_START), 0);
}

static void what_the_target_needs_does_not_end_as_idle(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.max_joiners = 2;
    w.life.idle_ms = 1000;
    w.scale.target_thousandths = 500;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    assert_true(enter(b, 1, false)); /* both places are taken: one more is kept */
    tick(b, 100);
    assert_int_equal(started(b), 2);
    ready(b, 2, 2);
    for (int k = 0; k < 10; k++)
        tick(b, 1000);
    assert_false(slot_of(b, 2)->closed);
    leave(b, 1);
    leave(b, 1);
    for (int k = 0; k < 3; k++)
        tick(b, 1000);
    assert_true(slot_of(b, 1)->closed && slot_of(b, 2)->closed);
}

static void a_removed_workload_refuses_and_drains(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.max = 1;
    w.join.max_joiners = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 1);
    ask(b, 2);
    ask_key(b, 3, "red");
    step(b, (struct scheduler_event){.kind = SCHEDULER_WORKLOAD_REMOVED, .name = "web"});
    assert_refused(b, 2, PROBLEM_WORKLOAD_UNKNOWN);
    assert_refused(b, 3, PROBLEM_WORKLOAD_UNKNOWN);
    assert_true(slot_of(b, 1)->closed);
    ask(b, 4);
    assert_refused(b, 4, PROBLEM_WORKLOAD_UNKNOWN);
    tick(b, 5000);
    assert_true(slot_of(b, 1)->stopped);
    instance_event(b, SCHEDULER_ENDED, 1);
    deploy(b, "web", 2, &w);
    ask(b, 5);
    started(b);
}

static void shutdown_refuses_and_starts_nothing(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    w.kind = WORKLOAD_COMMAND;
    deploy(b, "job", 1, &w);
    ask(b, 1);
    ask_forced(b, 2, 1);
    ask_key(b, 3, "red");
    step(b, (struct scheduler_event){
                .kind = SCHEDULER_ASK, .name = "job", .waiter = 4, .exclusive = true});
    step(b, (struct scheduler_event){.kind = SCHEDULER_SHUTDOWN});
    assert_int_equal(count(b, SCHEDULER_REFUSE), 4);
    assert_refused(b, 4, PROBLEM_DRAINING);
    assert_int_equal(count(b, SCHEDULER_STOP), 1); /* the command */
    ask(b, 5);
    assert_refused(b, 5, PROBLEM_DRAINING);
    ready(b, 1, 2);
    assert_int_equal(b->out.count, 0);
}

/* --- kept ahead, adopted --- */

static void instances_are_kept_ahead(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.idle_min = 1;
    w.life.idle_ms = 1000;
    deploy(b, "web", 1, &w);
    assert_int_equal(started(b), 1);
    assert_int_equal(find(b, SCHEDULER_START, 0)->waiter, 0);
    assert_int_equal(slot_of(b, 1)->start, SCHEDULER_POOL);
    ready(b, 1, 2);
    assert_int_equal(b->out.count, 0);
    ask(b, 1);
    assert_granted(b, 1, 1, SCHEDULER_POOL);
    tick(b, 500);
    assert_int_equal(started(b), 2); /* the first is no longer idle */
    ready(b, 2, 2);
    leave(b, 1);
    for (int i = 0; i < 10; i++)
        tick(b, 500);
    /* Two were idle for long: one of them ended, the other never does. */
    assert_int_equal(slot_of(b, 1)->closed + slot_of(b, 2)->closed, 1);
}

static void a_crashing_instance_is_not_kept_ahead_in_a_tight_loop(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.idle_min = 1;
    deploy(b, "web", 1, &w);
    unsigned starts = 0;
    scheduler_instance next = 1;
    for (unsigned ms = 0; ms < 60000; ms += 100) {
        tick(b, 100);
        if (!slot_of(b, next)->started)
            continue;
        ready(b, next, 2);
        instance_event(b, SCHEDULER_ENDED, next);
        starts++;
        next++;
    }
    assert_in_range(starts, 3, 10);
}

static void adopted_instances_go_on(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.life.max_ms = 60000;
    w.scale.max = 2;
    deploy(b, "web", 1, &w);
    scheduler_instance one = SCHEDULER_ADOPTED_FIRST + 1, two = SCHEDULER_ADOPTED_FIRST + 2;
    slot_of(b, one)->open = true;
    slot_of(b, one)->joiners_max = 2;
    slot_of(b, one)->window_end_ms = UINT64_MAX;
    step(b, (struct scheduler_event){.kind = SCHEDULER_ADOPTED,
                                     .name = "web",
                                     .version = 1,
                                     .instance = one,
                                     .ready = true,
                                     .started_ms = b->now - 50000});
    assert_int_equal(b->out.next_ms, b->now + 10000);
    step(b, (struct scheduler_event){
                .kind = SCHEDULER_ADOPTED, .name = "web", .version = 1, .instance = two});
    ask(b, 1);
    assert_granted(b, 1, one, SCHEDULER_JOIN);
    ask(b, 2);
    ask(b, 3); /* waits for the one that starts; no third */
    assert_int_equal(b->out.count, 0);
    ready(b, two, 2);
    assert_granted(b, 3, two, SCHEDULER_JOIN);
    tick(b, 10000);
    assert_true(slot_of(b, one)->closed);
    struct scheduler_event again = {.kind = SCHEDULER_ADOPTED, .name = "web", .instance = two};
    assert_int_equal(scheduler_step(b->s, &again, b->now, &b->out, NULL), -ERR_INVALID);
}

static void what_is_adopted_of_an_old_version_drains(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 2, &w);
    scheduler_instance i = SCHEDULER_ADOPTED_FIRST + 1;
    struct scheduler_event event = {.kind = SCHEDULER_ADOPTED,
                                    .name = "web",
                                    .version = 1,
                                    .instance = i,
                                    .ready = true,
                                    .workload = &w,
                                    .started_ms = b->now};
    step(b, event);
    /* Once there is something to take its place. */
    assert_false(slot_of(b, i)->closed);
    assert_int_equal(started(b), 1);
    ready(b, 1, 2);
    assert_true(slot_of(b, i)->closed);
    event.instance = ++i;
    event.name = "gone";
    step(b, event);
    assert_true(slot_of(b, i)->closed);
    /* Of two that claim one key, the second goes. */
    event = (struct scheduler_event){.kind = SCHEDULER_ADOPTED,
                                     .name = "web",
                                     .version = 2,
                                     .instance = ++i,
                                     .key = "red",
                                     .ready = true,
                                     .started_ms = b->now};
    step(b, event);
    assert_false(slot_of(b, i)->closed);
    event.instance = ++i;
    step(b, event);
    assert_true(slot_of(b, i)->closed);
}

static void misuse_is_an_error(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask(b, 1);
    struct scheduler_event event = {.kind = SCHEDULER_ASK, .name = "web", .waiter = 1};
    assert_int_equal(scheduler_step(b->s, &event, b->now, &b->out, NULL), -ERR_INVALID);
    event.waiter = 0;
    assert_int_equal(scheduler_step(b->s, &event, b->now, &b->out, NULL), -ERR_INVALID);
    event = (struct scheduler_event){.kind = SCHEDULER_READY, .instance = 99};
    assert_int_equal(scheduler_step(b->s, &event, b->now, &b->out, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_BENCH(idle_instances_end),
        WITH_BENCH(the_window_closes),
        WITH_BENCH(life_max_ends_after_a_drain),
        WITH_BENCH(life_max_bounds_a_closed_window_too),
        WITH_BENCH(a_new_version_drains_the_old),
        WITH_BENCH(who_waits_for_an_old_start_gets_one_of_the_new),
        WITH_BENCH(a_new_version_that_does_not_start_leaves_the_old),
        WITH_BENCH(another_node_can_have_the_new_version),
        WITH_BENCH(what_cannot_stand_in_drains_at_once),
        WITH_BENCH(the_next_starts_when_the_target_is_passed),
        WITH_BENCH(what_the_target_needs_does_not_end_as_idle),
        WITH_BENCH(a_removed_workload_refuses_and_drains),
        WITH_BENCH(shutdown_refuses_and_starts_nothing),
        WITH_BENCH(instances_are_kept_ahead),
        WITH_BENCH(a_crashing_instance_is_not_kept_ahead_in_a_tight_loop),
        WITH_BENCH(adopted_instances_go_on),
        WITH_BENCH(what_is_adopted_of_an_old_version_drains),
        WITH_BENCH(misuse_is_an_error),
    };
    return cmocka_run_group_tests_name("scheduler: life", tests, NULL, NULL);
}
