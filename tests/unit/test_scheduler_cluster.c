/* The scheduler as one among others: when nothing may start here, and when others have instances. */
#include "tests/lib/scheduler_bench.h"

static void hold(struct bench *b, enum problem problem)
{
    step(b, (struct scheduler_event){.kind = SCHEDULER_HOLD,
                                     .problem = problem,
                                     .detail = "1 of 3 voters reachable",
                                     .retry_after_ms = 2000});
}

static void others(struct bench *b, uint64_t count)
{
    step(b, (struct scheduler_event){.kind = SCHEDULER_OTHERS, .name = "web", .count = count});
}

static void what_is_held_starts_nothing_and_says_why(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    hold(b, PROBLEM_NO_QUORUM);
    ask(b, 1);
    assert_refused(b, 1, PROBLEM_NO_QUORUM);
    assert_string_equal(find(b, SCHEDULER_REFUSE, 0)->detail, "1 of 3 voters reachable");
    assert_int_equal(find(b, SCHEDULER_REFUSE, 0)->retry_after_ms, 2000);
    ask_key(b, 2, "room");
    assert_refused(b, 2, PROBLEM_NO_QUORUM);
    hold(b, PROBLEM_NONE);
    ask(b, 3);
    started(b);
}

static void what_runs_is_joined_while_starts_are_held(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ready(b, 1, 2);
    hold(b, PROBLEM_NO_QUORUM);
    ask(b, 2);
    assert_granted(b, 2, 1, SCHEDULER_JOIN);
    /* Full: it waits for room, since one that leaves may make some. */
    ask(b, 3);
    assert_int_equal(b->out.count, 0);
    leave(b, 1);
    assert_granted(b, 3, 1, SCHEDULER_JOIN);
    /* The last that could serve goes: whoever waits is told. */
    ask(b, 4);
    assert_int_equal(b->out.count, 0);
    instance_event(b, SCHEDULER_ENDED, 1);
    assert_refused(b, 4, PROBLEM_NO_QUORUM);
}

static void who_waits_for_a_start_is_refused_when_starts_are_held(void **state)
{
    (void)state;
    struct bench *b;
    open_bench_with(&b, 100, 1);
    struct workload w = spec();
    w.join.max_joiners = 1;
    deploy(b, "web", 1, &w);
    deploy(b, "other", 1, &w);
    ask(b, 1);
    started(b);
    step(b, (struct scheduler_event){.kind = SCHEDULER_ASK, .name = "other", .waiter = 2});
    assert_int_equal(b->out.count, 0); /* its turn comes when the first has started */
    hold(b, PROBLEM_DRAINING);
    assert_refused(b, 2, PROBLEM_DRAINING);
    /* What was started goes on. */
    ready(b, 1, 1);
    assert_granted(b, 1, 1, SCHEDULER_COLD);
    scheduler_free(b->s);
    free(b);
}

static void a_pool_is_filled_when_the_hold_ends(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.idle_min = 1;
    hold(b, PROBLEM_NO_QUORUM);
    deploy(b, "web", 1, &w);
    assert_int_equal(count(b, SCHEDULER_START), 0);
    tick(b, 600);
    assert_int_equal(count(b, SCHEDULER_START), 0);
    hold(b, PROBLEM_NONE);
    assert_int_equal(count(b, SCHEDULER_START), 1);
}

static void a_pool_is_shared_with_others(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.idle_min = 2;
    step(b, (struct scheduler_event){.kind = SCHEDULER_WORKLOAD,
                                     .name = "web",
                                     .version = 1,
                                     .workload = &w,
                                     .idle_elsewhere = 1});
    assert_int_equal(count(b, SCHEDULER_START), 1);
    ready(b, 1, 2);
    tick(b, 600);
    assert_int_equal(count(b, SCHEDULER_START), 0);
    /* The other node is gone. */
    step(b, (struct scheduler_event){.kind = SCHEDULER_OTHERS, .name = "web"});
    assert_int_equal(count(b, SCHEDULER_START), 1);
}

static void a_pool_that_cannot_grow_pauses(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.idle_min = 1;
    deploy(b, "web", 1, &w);
    step(b, (struct scheduler_event){
                .kind = SCHEDULER_FAILED, .instance = 1, .problem = PROBLEM_LIMIT_REACHED});
    assert_int_equal(count(b, SCHEDULER_START), 0);
    tick(b, 600);
    assert_int_equal(count(b, SCHEDULER_START), 0);
    tick(b, 600);
    assert_int_equal(count(b, SCHEDULER_START), 1);
}

static void instances_of_others_count_for_scale_max(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.max_joiners = 1;
    deploy(b, "web", 1, &w); /* scale.max 3 */
    others(b, 2);
    ask(b, 1);
    started(b);
    ask(b, 2);
    assert_int_equal(b->out.count, 0);
    ready(b, 1, 1);
    assert_granted(b, 1, 1, SCHEDULER_COLD);
    tick(b, 2000);
    assert_refused(b, 2, PROBLEM_QUEUE_TIMEOUT);
    assert_non_null(strstr(find(b, SCHEDULER_REFUSE, 0)->detail, "3 of 3 instances of web"));
    /* One of theirs ends: who waits gets another here. */
    ask(b, 3);
    assert_int_equal(b->out.count, 0);
    others(b, 1);
    assert_int_equal(count(b, SCHEDULER_START), 1);
    /* More than there may be is no room either. */
    others(b, 9);
    ask(b, 4);
    assert_int_equal(count(b, SCHEDULER_START), 0);
}

/* Its start lost the last place to another node's: those who counted on it wait where that is. */
static void who_waits_where_nothing_may_start_is_sent_on(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.join.max_joiners = 1;
    w.scale.max = 1;
    deploy(b, "web", 1, &w);
    ask(b, 1);
    ask(b, 2);
    ask_key(b, 3, "room");
    assert_false(scheduler_stranded(b->s, "web")); /* one starts */
    assert_true(scheduler_hopes(b->s, "web"));
    step(b, (struct scheduler_event){.kind = SCHEDULER_STRANDED, .name = "web"});
    assert_int_equal(b->out.count, 0);
    others(b, 1);
    step(b, (struct scheduler_event){
                .kind = SCHEDULER_FAILED, .instance = 1, .problem = PROBLEM_LIMIT_REACHED});
    assert_refused(b, 1, PROBLEM_LIMIT_REACHED);
    assert_int_equal(count(b, SCHEDULER_REFUSE), 1);
    assert_int_equal(count(b, SCHEDULER_START), 0);
    assert_true(scheduler_stranded(b->s, "web"));
    assert_false(scheduler_hopes(b->s, "web"));
    step(b, (struct scheduler_event){.kind = SCHEDULER_STRANDED, .name = "web"});
    assert_refused(b, 2, PROBLEM_LIMIT_REACHED);
    assert_int_equal(count(b, SCHEDULER_REFUSE), 1); /* a key's waits for one of its own */
    assert_false(scheduler_stranded(b->s, "web"));
    /* With room again nobody is sent on. */
    step(b, (struct scheduler_event){.kind = SCHEDULER_CANCEL, .waiter = 3});
    ask(b, 4);
    assert_true(scheduler_stranded(b->s, "web"));
    others(b, 0);
    assert_int_equal(count(b, SCHEDULER_START), 1);
    assert_false(scheduler_stranded(b->s, "web"));
}

static void what_a_request_would_meet_is_told_before_it_asks(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.scale.max = 2;
    assert_int_equal(scheduler_prospect(b->s, "web", NULL), SCHEDULER_STARTS);
    deploy(b, "web", 1, &w);
    assert_int_equal(scheduler_prospect(b->s, "web", NULL), SCHEDULER_STARTS);
    ask(b, 1);
    assert_int_equal(scheduler_prospect(b->s, "web", ""), SCHEDULER_SERVED); /* shares the start */
    assert_int_equal(scheduler_prospect(b->s, "web", "room"), SCHEDULER_STARTS);
    ask(b, 2);
    assert_int_equal(scheduler_prospect(b->s, "web", NULL), SCHEDULER_STARTS);
    ready(b, 1, 2);
    assert_int_equal(scheduler_prospect(b->s, "web", NULL), SCHEDULER_STARTS); /* it is full */
    slot_of(b, 1)->joiners = 1;
    assert_int_equal(scheduler_prospect(b->s, "web", NULL), SCHEDULER_SERVED);
    slot_of(b, 1)->joiners = 2;
    others(b, 1);
    assert_int_equal(scheduler_prospect(b->s, "web", NULL), SCHEDULER_WAITS);
    assert_int_equal(scheduler_prospect(b->s, "web", "room"), SCHEDULER_NOTHING);
    instance_event(b, SCHEDULER_ENDED, 1);
    others(b, 2);
    assert_int_equal(scheduler_prospect(b->s, "web", NULL), SCHEDULER_NOTHING);
    others(b, 0);
    ask_key(b, 3, "room");
    assert_int_equal(scheduler_prospect(b->s, "web", "room"), SCHEDULER_SERVED);
    ready(b, 2, 2);
    slot_of(b, 2)->joiners = 2;
    /* Of a key there is one: it is waited for. */
    assert_int_equal(scheduler_prospect(b->s, "web", "room"), SCHEDULER_SERVED);
    assert_int_equal(scheduler_prospect(b->s, "web", "other"), SCHEDULER_STARTS);
}

static void a_command_always_needs_a_start(void **state)
{
    struct bench *b = *state;
    struct workload w = spec();
    w.kind = WORKLOAD_COMMAND;
    w.scale.max = 1;
    deploy(b, "web", 1, &w);
    assert_int_equal(scheduler_prospect(b->s, "web", NULL), SCHEDULER_STARTS);
    others(b, 1);
    assert_int_equal(scheduler_prospect(b->s, "web", NULL), SCHEDULER_NOTHING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_BENCH(what_is_held_starts_nothing_and_says_why),
        WITH_BENCH(what_runs_is_joined_while_starts_are_held),
        cmocka_unit_test(who_waits_for_a_start_is_refused_when_starts_are_held),
        WITH_BENCH(a_pool_is_filled_when_the_hold_ends),
        WITH_BENCH(a_pool_is_shared_with_others),
        WITH_BENCH(a_pool_that_cannot_grow_pauses),
        WITH_BENCH(instances_of_others_count_for_scale_max),
        WITH_BENCH(who_waits_where_nothing_may_start_is_sent_on),
        WITH_BENCH(what_a_request_would_meet_is_told_before_it_asks),
        WITH_BENCH(a_command_always_needs_a_start),
    };
    return cmocka_run_group_tests_name("scheduler among others", tests, NULL, NULL);
}
