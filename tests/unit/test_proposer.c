/* The proposer on three simulated servers: batches, lost leadership, deadlines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "tests/lib/raft_cluster.h"
#include "tests/lib/registry_help.h"

enum { TIMEOUT_MS = 10000 };

struct asked {
    unsigned answers;
    bool error;
    struct err err;
    struct registry_result result;
};

static int setup(void **state)
{
    struct cluster *c = malloc(sizeof *c);
    assert_non_null(c);
    raft_cluster_open(c, 3, false, TIMEOUT_MS);
    *state = c;
    return 0;
}

static int setup_two(void **state)
{
    struct cluster *c = malloc(sizeof *c);
    assert_non_null(c);
    raft_cluster_open(c, 2, false, TIMEOUT_MS);
    *state = c;
    return 0;
}

static int teardown(void **state)
{
    struct cluster *c = *state;
    bool agrees = raft_cluster_agrees(c);
    raft_cluster_close(c);
    free(c);
    assert_true(agrees);
    return 0;
}

static void answered(void *user, const struct err *error, const struct registry_result *result)
{
    struct asked *a = user;
    a->answers++;
    a->error = error != NULL;
    if (error != NULL)
        a->err = *error;
    else
        a->result = *result;
}

static void barred(void *user, const struct err *error)
{
    answered(user, error, error == NULL ? &(struct registry_result){0} : NULL);
}

static bool is_answered(void *user)
{
    return ((struct asked *)user)->answers > 0;
}

static uint64_t now(struct cluster *c)
{
    return raft_fixture_time(&c->fixture);
}

/* A node with a name of its own: applied twice it would be refused. */
static int put(struct cluster *c, unsigned i, unsigned n, struct asked *a)
{
    struct registry_node node = {0};
    text_format(node.name, sizeof node.name, "n%u", n);
    const struct registry_command command = {.kind = REGISTRY_NODE_PUT, .node = &node};
    struct err e;
    *a = (struct asked){0};
    return proposer_propose(c->nodes[i].proposer, &command, now(c), answered, a, &e);
}

static void lead(struct cluster *c, unsigned i)
{
    raft_cluster_elect(c, i);
    while (!guard_leads(c->nodes[i].guard))
        raft_cluster_step(c);
}

/* What 0 had in its log alone is lost, as 1 led meanwhile; then 0 leads again. */
static void lead_after_the_loss(struct cluster *c)
{
    raft_cluster_heal(c);
    raft_cluster_run(c, 1000);
    raft_cluster_isolate(c, 1);
    raft_cluster_depose(c, 1);
    raft_cluster_join(c, 0, 2);
    lead(c, 0);
}

static size_t nodes_of(struct cluster *c, unsigned i)
{
    return state_content(c->nodes[i].state)->maps[STATE_NODES].count;
}

static void many_go_in_few_batches_each_with_its_own_answer(void **state)
{
    struct cluster *c = *state;
    enum { N = 700 };
    struct asked *a = calloc(N, sizeof *a);
    lead(c, 0);
    for (unsigned n = 0; n < N; n++)
        assert_int_equal(put(c, 0, n, &a[n]), 0);
    assert_true(raft_cluster_run_until(c, is_answered, &a[N - 1], 5000));
    for (unsigned n = 0; n < N; n++) {
        assert_int_equal(a[n].answers, 1);
        assert_false(a[n].error);
        assert_int_equal(a[n].result.problem, PROBLEM_NONE);
        assert_int_equal(a[n].result.node, n + 1);
    }
    assert_int_equal(proposer_counts(c->nodes[0].proposer).batches, 3);
    free(a);
}

static void a_refusal_is_a_result(void **state)
{
    struct cluster *c = *state;
    struct asked a, b;
    lead(c, 0);
    put(c, 0, 1, &a);
    put(c, 0, 1, &b);
    assert_true(raft_cluster_run_until(c, is_answered, &b, 5000));
    assert_int_equal(a.result.problem, PROBLEM_NONE);
    assert_false(b.error);
    assert_int_equal(b.result.problem, PROBLEM_CONFLICT);
}

static void without_a_leader_nothing_is_asked(void **state)
{
    struct cluster *c = *state;
    struct asked a;
    assert_int_equal(put(c, 1, 1, &a), 0);
    lead(c, 0);
    /* 1 follows: it never asks by itself. */
    assert_true(raft_cluster_run_until(c, is_answered, &a, TIMEOUT_MS + 1000));
    assert_true(a.error);
    assert_int_equal(a.err.code, ERR_UNAVAILABLE);
    assert_int_equal(nodes_of(c, 0), 0);
}

static void what_waits_is_bounded(void **state)
{
    struct cluster *c = *state;
    struct asked *a = calloc(1001, sizeof *a);
    for (unsigned n = 0; n < 1000; n++)
        assert_int_equal(put(c, 0, n, &a[n]), 0);
    assert_int_equal(put(c, 0, 1000, &a[1000]), -ERR_LIMIT);
    lead(c, 0);
    assert_true(raft_cluster_run_until(c, is_answered, &a[999], 5000));
    assert_int_equal(put(c, 0, 1000, &a[1000]), 0);
    assert_true(raft_cluster_run_until(c, is_answered, &a[1000], 5000));
    free(a);
}

/* The entries die with the old leader's term, and are asked again when it leads again. */
static void a_batch_that_was_lost_is_asked_again(void **state)
{
    struct cluster *c = *state;
    struct asked a[10];
    lead(c, 0);
    raft_cluster_isolate(c, 0);
    for (unsigned n = 0; n < 10; n++)
        put(c, 0, n, &a[n]);
    raft_cluster_run(c, 50);
    assert_true(raft_last_index(raft_cluster_raft(c, 0)) > raft_cluster_raft(c, 0)->commit_index);
    raft_cluster_depose(c, 0);
    raft_cluster_elect(c, 1);
    struct asked other;
    put(c, 1, 100, &other);
    assert_true(raft_cluster_run_until(c, is_answered, &other, 1000));
    assert_int_equal(a[0].answers, 0);
    lead_after_the_loss(c);
    assert_true(raft_cluster_run_until(c, is_answered, &a[9], 5000));
    for (unsigned n = 0; n < 10; n++) {
        assert_int_equal(a[n].answers, 1);
        assert_false(a[n].error);
        assert_int_equal(a[n].result.problem, PROBLEM_NONE);
    }
    assert_int_equal(nodes_of(c, 0), 11);
    assert_int_equal(proposer_counts(c->nodes[0].proposer).asked_again, 10);
}

/* Asks until so many batches more have gone, and returns how often. Each has as many as are under way. */
enum { FILL_MAX = 1 << (PROPOSER_BATCHES_MAX - 1) };
static unsigned fill(struct cluster *c, unsigned i, struct asked a[FILL_MAX],
                     int (*ask)(struct cluster *c, unsigned i, unsigned n, struct asked *a),
                     unsigned batches)
{
    const struct proposer *p = c->nodes[i].proposer;
    uint64_t enough = proposer_counts(p).batches + batches;
    unsigned n = 0;
    for (; proposer_counts(p).batches < enough; n++) {
        assert_true(n < FILL_MAX);
        assert_int_equal(ask(c, i, n, &a[n]), 0);
        raft_cluster_run(c, 5);
    }
    return n;
}

/* Of several batches that are lost, in the order in which they were asked, before what waits behind them. */
static void batches_that_were_lost_keep_their_order(void **state)
{
    struct cluster *c = *state;
    enum { N = FILL_MAX + 3 };
    struct asked a[N];
    lead(c, 0);
    raft_cluster_isolate(c, 0);
    assert_int_equal(fill(c, 0, a, put, PROPOSER_BATCHES_MAX), FILL_MAX);
    for (unsigned n = FILL_MAX; n < N; n++)
        assert_int_equal(put(c, 0, n, &a[n]), 0);
    raft_cluster_run(c, 50);
    assert_int_equal(proposer_counts(c->nodes[0].proposer).batches, PROPOSER_BATCHES_MAX);
    raft_cluster_depose(c, 0);
    raft_cluster_elect(c, 1);
    struct asked other;
    put(c, 1, 100, &other);
    assert_true(raft_cluster_run_until(c, is_answered, &other, 1000));
    lead_after_the_loss(c);
    assert_true(raft_cluster_run_until(c, is_answered, &a[N - 1], 5000));
    for (unsigned n = 0; n < N; n++) {
        assert_int_equal(a[n].answers, 1);
        assert_false(a[n].error);
        assert_int_equal(a[n].result.node, n + 2); /* behind `other` */
    }
    assert_int_equal(proposer_counts(c->nodes[0].proposer).asked_again, FILL_MAX);
}

static void slow_network(struct cluster *c, unsigned each_way_ms)
{
    for (unsigned i = 0; i < 3; i++) {
        raft_fixture_set_network_latency(&c->fixture, i, each_way_ms);
        raft_fixture_set_disk_latency(&c->fixture, i, 1);
    }
}

/* Who comes while a batch is under way waits for its own way, and the first is not kept by the second. */
static void batches_do_not_wait_for_each_other(void **state)
{
    struct cluster *c = *state;
    struct asked a, b;
    lead(c, 0);
    slow_network(c, 50);
    raft_cluster_run(c, 500);
    uint64_t begun = now(c);
    put(c, 0, 1, &a);
    raft_cluster_run(c, 30);
    uint64_t later = now(c);
    assert_in_range(later - begun, 30, 60);
    put(c, 0, 2, &b);
    assert_true(raft_cluster_run_until(c, is_answered, &a, 1000));
    assert_in_range(now(c) - begun, 100, 110);
    assert_int_equal(b.answers, 0);
    assert_true(raft_cluster_run_until(c, is_answered, &b, 1000));
    assert_in_range(now(c) - later, 100, 110);
}

/* The leader is told of none of the second batch until the first is committed, for which it needs nobody any
 * more. */
static void batches_outlive_the_voter_that_they_waited_for(void **state)
{
    struct cluster *c = *state;
    struct asked a[FILL_MAX];
    struct raft_change remove;
    lead(c, 0);
    raft_cluster_isolate(c, 0);
    unsigned filled = fill(c, 0, a, put, PROPOSER_BATCHES_MAX);
    assert_int_equal(a[0].answers, 0);
    assert_int_equal(raft_remove(raft_cluster_raft(c, 0), &remove, 2, NULL), 0);
    assert_true(raft_cluster_run_until(c, is_answered, &a[filled - 1], 300));
    for (unsigned n = 0; n < filled; n++)
        assert_false(a[n].error);
}

/* Open loop: what the leader has stored is always ahead of what the others have. */
static void a_steady_stream_is_answered(void **state)
{
    struct cluster *c = *state;
    enum { N = 1000 };
    struct asked *a = calloc(N, sizeof *a);
    uint64_t *asked_at = calloc(N, sizeof *asked_at);
    unsigned next = 0;
    lead(c, 0);
    slow_network(c, 20);
    raft_cluster_run(c, 500);
    for (unsigned n = 0; n < N; n++) {
        asked_at[n] = now(c);
        assert_int_equal(put(c, 0, n, &a[n]), 0);
        raft_cluster_run(c, 2);
        while (next <= n && a[next].answers > 0) {
            assert_false(a[next].error);
            /* Its own way, and at most another one until a batch may go; time goes on from event to event. */
            assert_in_range(now(c) - asked_at[next], 40, 2 * 40 + 10);
            next++;
        }
    }
    assert_true(next > N - 50);
    assert_true(raft_cluster_run_until(c, is_answered, &a[N - 1], 1000));
    free(asked_at);
    free(a);
}

static int expire(struct cluster *c, unsigned i, unsigned n, struct asked *a)
{
    (void)n;
    const struct registry_node node = {.id = 1, .lease_epoch = 7};
    const struct registry_command command = {.kind = REGISTRY_LEASE_EXPIRE, .node = &node};
    struct err e;
    *a = (struct asked){0};
    return proposer_propose(c->nodes[i].proposer, &command, now(c), answered, a, &e);
}

/* Another leader, or the same one later, may have renewed the lease. */
static void the_end_of_a_lease_is_of_one_term(void **state)
{
    struct cluster *c = *state;
    struct asked a, b[FILL_MAX], waits, other;
    assert_int_equal(expire(c, 0, 0, &a), -ERR_UNAVAILABLE);
    lead(c, 0);
    assert_int_equal(expire(c, 0, 0, &a), 0);
    assert_true(raft_cluster_run_until(c, is_answered, &a, 5000));
    assert_false(a.error);
    /* One is in the log that is lost, one waits behind that when leadership goes; it comes back. */
    raft_cluster_isolate(c, 0);
    assert_int_equal(expire(c, 0, 0, &a), 0);
    unsigned filled = fill(c, 0, b, put, PROPOSER_BATCHES_MAX - 1);
    assert_int_equal(expire(c, 0, 0, &waits), 0);
    raft_cluster_depose(c, 0);
    raft_cluster_elect(c, 1);
    assert_int_equal(put(c, 1, 100, &other), 0);
    assert_true(raft_cluster_run_until(c, is_answered, &other, 1000));
    lead_after_the_loss(c);
    assert_true(raft_cluster_run_until(c, is_answered, &b[filled - 1], 5000));
    assert_false(b[filled - 1].error);
    assert_true(raft_cluster_run_until(c, is_answered, &waits, 5000));
    assert_true(a.answers == 1 && waits.answers == 1);
    assert_true(a.error && waits.error);
    assert_int_equal(a.err.code, ERR_TIMEOUT);
    assert_int_equal(waits.err.code, ERR_UNAVAILABLE);
}

/* Whoever asks another node for what is wanted must find something. */
static void what_is_over_is_not_wanted(void **state)
{
    struct cluster *c = *state;
    struct asked a[FILL_MAX], waits;
    lead(c, 0);
    raft_cluster_isolate(c, 0);
    fill(c, 0, a, expire, PROPOSER_BATCHES_MAX);
    assert_int_equal(expire(c, 0, 0, &waits), 0);
    raft_cluster_depose(c, 0);
    assert_false(proposer_wanting(c->nodes[0].proposer));
    raft_cluster_heal(c);
    assert_true(raft_cluster_run_until(c, is_answered, &waits, 5000));
    assert_true(waits.error);
}

/* The entries reached the others before the leader lost its way: another leader commits them. */
static void what_another_leader_commits_is_answered_and_not_done_twice(void **state)
{
    struct cluster *c = *state;
    struct asked a[10];
    lead(c, 0);
    /* Nothing comes back to 0. */
    raft_fixture_disconnect(&c->fixture, 1, 0);
    raft_fixture_disconnect(&c->fixture, 2, 0);
    for (unsigned n = 0; n < 10; n++)
        put(c, 0, n, &a[n]);
    raft_cluster_depose(c, 0);
    assert_int_equal(a[0].answers, 0);
    assert_true(raft_cluster_raft(c, 1)->last_stored > raft_cluster_raft(c, 1)->commit_index);
    raft_cluster_isolate(c, 0);
    raft_cluster_elect(c, 1);
    raft_cluster_run(c, 500);
    assert_int_equal(nodes_of(c, 1), 10);
    raft_cluster_heal(c);
    assert_true(raft_cluster_run_until(c, is_answered, &a[9], 5000));
    assert_int_equal(raft_cluster_raft(c, 0)->state, RAFT_FOLLOWER);
    for (unsigned n = 0; n < 10; n++) {
        assert_int_equal(a[n].answers, 1);
        assert_int_equal(a[n].result.problem, PROBLEM_NONE);
        assert_int_equal(a[n].result.node, n + 1);
    }
    raft_cluster_run(c, 1000);
    assert_int_equal(nodes_of(c, 0), 10);
}

/* The old leader leads again, with its entries still in its log: its barrier commits them before it may
 * ask for anything. */
static void what_the_new_barrier_commits_is_not_asked_again(void **state)
{
    struct cluster *c = *state;
    struct asked a[10];
    lead(c, 0);
    raft_cluster_isolate(c, 0);
    for (unsigned n = 0; n < 10; n++)
        put(c, 0, n, &a[n]);
    raft_cluster_depose(c, 0);
    raft_index before = raft_last_index(raft_cluster_raft(c, 0));
    raft_cluster_heal(c);
    lead(c, 0);
    assert_true(raft_cluster_run_until(c, is_answered, &a[9], 5000));
    raft_cluster_run(c, 1000);
    for (unsigned n = 0; n < 10; n++) {
        assert_int_equal(a[n].answers, 1);
        assert_int_equal(a[n].result.problem, PROBLEM_NONE);
        assert_int_equal(a[n].result.node, n + 1);
    }
    assert_int_equal(raft_last_index(raft_cluster_raft(c, 0)), before + 1);
    assert_int_equal(nodes_of(c, 0), 10);
    assert_int_equal(nodes_of(c, 2), 10);
}

/* libraft has called back, for the first entry, and leads no more before the others are answered. */
static void an_answer_that_was_missed_is_asked_for_again_and_nothing_done_twice(void **state)
{
    struct cluster *c = *state;
    struct asked a[10];
    lead(c, 0);
    for (unsigned n = 0; n < 10; n++)
        put(c, 0, n, &a[n]);
    c->nodes[0].deaf = true;
    raft_cluster_run(c, 500);
    assert_int_equal(nodes_of(c, 0), 10);
    assert_int_equal(a[0].answers, 0);
    c->nodes[0].deaf = false;
    raft_cluster_isolate(c, 0);
    raft_cluster_depose(c, 0);
    raft_cluster_heal(c);
    lead(c, 0);
    assert_true(raft_cluster_run_until(c, is_answered, &a[9], 5000));
    for (unsigned n = 0; n < 10; n++) {
        assert_int_equal(a[n].answers, 1);
        assert_int_equal(a[n].result.problem, PROBLEM_NONE);
        assert_int_equal(a[n].result.node, n + 1);
    }
    assert_int_equal(nodes_of(c, 0), 10);
}

static void past_its_deadline_the_outcome_is_unknown(void **state)
{
    struct cluster *c = *state;
    struct asked a, late;
    lead(c, 0);
    raft_cluster_isolate(c, 0);
    put(c, 0, 1, &a);
    raft_cluster_run(c, 100);
    assert_true(raft_cluster_run_until(c, is_answered, &a, TIMEOUT_MS + 1000));
    assert_int_equal(a.err.code, ERR_TIMEOUT);
    assert_int_equal(a.answers, 1);
    /* The next ones are served when there is a leader again. */
    raft_cluster_heal(c);
    lead(c, 0);
    put(c, 0, 2, &late);
    assert_true(raft_cluster_run_until(c, is_answered, &late, 5000));
    assert_int_equal(late.result.problem, PROBLEM_NONE);
    assert_int_equal(a.answers, 1);
}

/* The deadline passes while libraft has the batch: its memory and its place must not be lost. */
static void a_deadline_while_the_batch_is_under_way(void **state)
{
    struct cluster *c = *state;
    struct asked a, next;
    lead(c, 0);
    c->nodes[0].hold_appends = true;
    raft_fixture_saturate(&c->fixture, 0, 1);
    raft_fixture_saturate(&c->fixture, 0, 2);
    put(c, 0, 1, &a);
    proposer_ask(c->nodes[0].proposer, true);
    assert_int_equal(c->nodes[0].held_count, 1);
    proposer_expire(c->nodes[0].proposer, now(c) + TIMEOUT_MS);
    assert_int_equal(a.err.code, ERR_TIMEOUT);
    raft_fixture_desaturate(&c->fixture, 0, 1);
    raft_fixture_desaturate(&c->fixture, 0, 2);
    put(c, 0, 2, &next);
    raft_cluster_appends_finish(c, 0, 0);
    assert_true(raft_cluster_run_until(c, is_answered, &next, 5000));
    assert_int_equal(next.result.node, 2);
    assert_int_equal(a.answers, 1);
}

static void a_barrier_needs_a_leader_that_still_leads(void **state)
{
    struct cluster *c = *state;
    struct asked a[5];
    struct err e;
    lead(c, 0);
    for (unsigned i = 0; i < 5; i++) {
        a[i] = (struct asked){0};
        assert_int_equal(proposer_barrier(c->nodes[0].proposer, now(c), barred, &a[i], &e), 0);
    }
    assert_true(raft_cluster_run_until(c, is_answered, &a[4], 1000));
    assert_false(a[0].error);
    assert_int_equal(proposer_counts(c->nodes[0].proposer).barriers, 1);
    /* A batch serves as well. */
    struct asked b;
    put(c, 0, 1, &b);
    a[0] = (struct asked){0};
    assert_int_equal(proposer_barrier(c->nodes[0].proposer, now(c), barred, &a[0], &e), 0);
    assert_true(raft_cluster_run_until(c, is_answered, &a[0], 1000));
    assert_int_equal(proposer_counts(c->nodes[0].proposer).barriers, 1);
    raft_cluster_isolate(c, 0);
    a[0] = (struct asked){0};
    assert_int_equal(proposer_barrier(c->nodes[0].proposer, now(c), barred, &a[0], &e), 0);
    assert_true(raft_cluster_run_until(c, is_answered, &a[0], TIMEOUT_MS + 1000));
    assert_true(a[0].error);
    assert_int_equal(a[0].answers, 1);
}

static void closing_answers_everybody_once(void **state)
{
    struct cluster *c = *state;
    struct asked a, b, w;
    struct err e;
    lead(c, 0);
    put(c, 0, 1, &a);
    proposer_ask(c->nodes[0].proposer, true);
    put(c, 0, 2, &b);
    w = (struct asked){0};
    assert_int_equal(proposer_barrier(c->nodes[0].proposer, now(c), barred, &w, &e), 0);
    proposer_close(c->nodes[0].proposer);
    assert_int_equal(a.answers + b.answers + w.answers, 3);
    assert_int_equal(a.err.code, ERR_CANCELED);
    assert_int_equal(b.err.code, ERR_CANCELED);
    assert_int_equal(w.err.code, ERR_CANCELED);
    raft_cluster_run(c, 1000);
    assert_int_equal(a.answers + b.answers + w.answers, 3);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(many_go_in_few_batches_each_with_its_own_answer),
        TEST(a_refusal_is_a_result),
        TEST(without_a_leader_nothing_is_asked),
        TEST(what_waits_is_bounded),
        TEST(a_batch_that_was_lost_is_asked_again),
        TEST(batches_that_were_lost_keep_their_order),
        TEST(batches_do_not_wait_for_each_other),
        TEST(a_steady_stream_is_answered),
        cmocka_unit_test_setup_teardown(batches_outlive_the_voter_that_they_waited_for, setup_two,
                                        teardown),
        TEST(the_end_of_a_lease_is_of_one_term),
        TEST(what_is_over_is_not_wanted),
        TEST(what_another_leader_commits_is_answered_and_not_done_twice),
        TEST(what_the_new_barrier_commits_is_not_asked_again),
        TEST(an_answer_that_was_missed_is_asked_for_again_and_nothing_done_twice),
        TEST(past_its_deadline_the_outcome_is_unknown),
        TEST(a_deadline_while_the_batch_is_under_way),
        TEST(a_barrier_needs_a_leader_that_still_leads),
        TEST(closing_answers_everybody_once),
    };
    return cmocka_run_group_tests_name("proposer", tests, NULL, NULL);
}
