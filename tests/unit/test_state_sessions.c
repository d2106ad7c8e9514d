/* Sessions of the registry's state machine: what was asked is done once, and remembered in bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state.h"
#include "tests/lib/registry_help.h"

static int setup(void **state)
{
    struct help_state *h = malloc(sizeof *h);
    help_state_open(h);
    help_lease(h, 1);
    *state = h;
    return 0;
}

static int teardown(void **state)
{
    help_state_close(*state);
    free(*state);
    return 0;
}

static const struct registry_workload *workload_of(struct help_state *h, const char *name)
{
    struct registry_root *root = state_root(h->state);
    const struct registry_workload *w = registry_root_workload(root, name, strlen(name));
    registry_root_release(root); /* the state still holds it */
    return w;
}

static const struct registry_instance *instance_of(struct help_state *h, uint64_t n)
{
    struct registry_root *root = state_root(h->state);
    struct instance_id id = help_instance_id(1, n);
    const struct registry_instance *i = registry_root_instance(root, id.text, strlen(id.text));
    registry_root_release(root);
    return i;
}

static struct registry_result sweep(struct help_state *h, uint64_t wall_ms)
{
    struct registry_command c = {.kind = REGISTRY_SWEEP, .wall_ms = wall_ms};
    return help_apply(h, &c);
}

static struct state_outcome ask(struct help_state *h, uint64_t boot, uint64_t sequence, uint64_t n)
{
    struct registry_instance i = {
        .id = help_instance_id(1, n), .version = 1, .owner = 1, .workload = "hello"};
    struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &i};
    struct command_session s = {.node = 1, .boot = boot, .sequence = sequence};
    return help_apply_as(h, &c, s);
}

static void a_number_asked_twice_is_answered_once(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    struct state_outcome first = ask(h, 2, 1, 1);
    assert_false(first.repeated);
    /* The number counts, not what is asked with it. */
    struct state_outcome again = ask(h, 2, 1, 2);
    assert_true(again.repeated);
    assert_memory_equal(&again.result, &first.result, sizeof first.result);
    assert_int_equal(workload_of(h, "hello")->live, 1);
    /* A refusal is remembered as well. */
    struct registry_command c = {.kind = REGISTRY_WORKLOAD_REMOVE, .name = "other"};
    struct command_session s = {.node = 1, .boot = 2, .sequence = 2};
    assert_int_equal(help_apply_as(h, &c, s).result.problem, PROBLEM_WORKLOAD_UNKNOWN);
    help_deploy(h, "other", "");
    again = help_apply_as(h, &c, s);
    assert_true(again.repeated);
    assert_int_equal(again.result.problem, PROBLEM_WORKLOAD_UNKNOWN);
    assert_non_null(workload_of(h, "other"));
}

static void a_number_that_was_overtaken_still_counts(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    ask(h, 2, 10, 1);
    assert_false(ask(h, 2, 7, 2).repeated);
    assert_true(ask(h, 2, 7, 2).repeated);
    assert_int_equal(workload_of(h, "hello")->live, 2);
}

static void a_number_older_than_the_window_is_not_done_again(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    ask(h, 2, 1, 1);
    ask(h, 2, STATE_SESSION_RESULTS_MAX, 2);
    assert_true(ask(h, 2, 1, 1).repeated);
    ask(h, 2, STATE_SESSION_RESULTS_MAX + 1, 3);
    struct state_outcome old = ask(h, 2, 1, 4);
    assert_true(old.repeated);
    assert_int_equal(old.result.problem, PROBLEM_OUTCOME_UNKNOWN);
    assert_null(instance_of(h, 4));
    assert_true(ask(h, 2, STATE_SESSION_RESULTS_MAX, 2).repeated);
    /* One result more pushes one out. */
    size_t results = state_content(h->state)->maps[STATE_RESULTS].count;
    for (uint64_t n = 2; n <= 50; n++)
        ask(h, 2, STATE_SESSION_RESULTS_MAX + n, 100 + n);
    assert_int_equal(state_content(h->state)->maps[STATE_RESULTS].count, results + 49);
    for (uint64_t n = 51; n <= STATE_SESSION_RESULTS_MAX * 2; n++)
        ask(h, 2, STATE_SESSION_RESULTS_MAX + n, 100 + n);
    /* The session of the helper has asked three times. */
    assert_int_equal(state_content(h->state)->maps[STATE_RESULTS].count,
                     STATE_SESSION_RESULTS_MAX + 3);
}

static void a_node_has_the_sessions_of_its_last_starts(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    /* Boots in no order: the log says which is the oldest. */
    const uint64_t boots[] = {90, 20, 70, 40, 60};
    for (uint64_t i = 0; i < ARRAY_SIZE(boots); i++)
        ask(h, boots[i], 1, 1 + i);
    const struct state_content *c = state_content(h->state);
    assert_int_equal(c->maps[STATE_SESSIONS].count, STATE_SESSIONS_PER_NODE_MAX);
    assert_int_equal(c->maps[STATE_RESULTS].count, STATE_SESSIONS_PER_NODE_MAX);
    assert_true(ask(h, 20, 1, 1).repeated);
    assert_false(ask(h, 90, 1, 9).repeated);
    /* Sessions of other nodes are not touched by that. */
    struct registry_command sweeping = {.kind = REGISTRY_SWEEP};
    help_apply_as(h, &sweeping, (struct command_session){.node = 2, .boot = 1, .sequence = 1});
    assert_int_equal(state_content(h->state)->maps[STATE_SESSIONS].count,
                     STATE_SESSIONS_PER_NODE_MAX + 1);
}

static struct state_outcome put_as(struct help_state *h, node_id node, uint64_t boot,
                                   uint64_t sequence)
{
    struct registry_image i = {.name = "alpine", .digest = "sha256:00"};
    struct registry_command c = {.kind = REGISTRY_IMAGE_PUT, .image = &i};
    return help_apply_as(
        h, &c, (struct command_session){.node = node, .boot = boot, .sequence = sequence});
}

static void what_a_removed_node_asked_is_not_done(void **state)
{
    struct help_state *h = *state;
    static const uint8_t key[REGISTRY_GOSSIP_KEY_BYTES] = {1};
    help_lease(h, 2);
    for (uint64_t n = 1; n <= STATE_SWEEP_MAX + 20; n++)
        assert_int_equal(put_as(h, 2, 1, n).result.problem, PROBLEM_NONE);
    struct registry_node node = {.id = 2};
    struct registry_command c = {.kind = REGISTRY_NODE_REMOVE, .node = &node, .gossip_key = key};
    help_apply(h, &c);
    struct registry_image i = {.name = "alpine"};
    c = (struct registry_command){.kind = REGISTRY_IMAGE_REMOVE, .image = &i};
    help_apply(h, &c);
    struct state_outcome o = put_as(h, 2, 1, 9999);
    assert_int_equal(o.result.problem, PROBLEM_FORBIDDEN);
    assert_int_equal(o.result.index, h->index);
    assert_int_equal(state_content(h->state)->index, h->index);
    assert_int_equal(put_as(h, 2, 1, 1).result.problem, PROBLEM_FORBIDDEN);
    assert_int_equal(put_as(h, 0, 1, 1).result.problem, PROBLEM_FORBIDDEN);
    struct registry_root *root = state_root(h->state);
    assert_null(registry_root_image(root, "alpine", 6));
    registry_root_release(root);
    /* Nor are its sessions kept for ever; they go in slices as all else. */
    const struct state_content *s = state_content(h->state);
    assert_int_equal(s->maps[STATE_SESSIONS].count, 2);
    assert_true(sweep(h, 1).changed);
    assert_int_equal(s->maps[STATE_SESSIONS].count, 2);
    assert_false(sweep(h, 1).changed);
    assert_int_equal(s->maps[STATE_SESSIONS].count, 1);
    assert_int_equal(s->maps[STATE_RESULTS].count, h->sequence);
    /* A node that is not there yet may ask: it is how a registry begins. */
    assert_int_equal(put_as(h, 3, 1, 1).result.problem, PROBLEM_NONE);
}

static void strangers_are_remembered_up_to_a_bound(void **state)
{
    struct help_state *h = *state;
    for (uint64_t n = 0; n < STATE_SESSIONS_MAX + 10; n++)
        assert_int_equal(put_as(h, 100 + n, 1, 1).result.problem, PROBLEM_NONE);
    const struct state_content *s = state_content(h->state);
    assert_int_equal(s->maps[STATE_SESSIONS].count, STATE_SESSIONS_MAX);
    /* A registered node has its place all the same. */
    put_as(h, 1, 77, 1);
    assert_int_equal(s->maps[STATE_SESSIONS].count, STATE_SESSIONS_MAX + 1);
    assert_true(put_as(h, 1, 77, 1).repeated);
    while (sweep(h, 1).changed)
        ;
    assert_int_equal(s->maps[STATE_SESSIONS].count, 2);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_number_asked_twice_is_answered_once),
        TEST(a_number_that_was_overtaken_still_counts),
        TEST(a_number_older_than_the_window_is_not_done_again),
        TEST(a_node_has_the_sessions_of_its_last_starts),
        TEST(what_a_removed_node_asked_is_not_done),
        TEST(strangers_are_remembered_up_to_a_bound),
    };
    return cmocka_run_group_tests_name("sessions of the state", tests, NULL, NULL);
}
