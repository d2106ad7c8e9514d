/* What two registries say to each other, as bytes; and what a node may propose that does not lead. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/remote.h"
#include "raft/remote_wire.h"
#include "tests/lib/registry_help.h"

static struct remote_question *question_again(const struct remote_question *q)
{
    uint8_t *bytes;
    size_t size;
    struct err e = {0};
    assert_int_equal(remote_question_encode(&bytes, &size, q, &e), 0);
    struct remote_question *out = calloc(1, sizeof *out);
    if (remote_question_decode(out, bytes, size, &e) < 0)
        fail_msg("%s", e.msg);
    /* Cut anywhere it is refused, or asks for less; it never reads beyond. */
    for (size_t cut = 0; cut < size; cut++) {
        struct remote_question part;
        uint8_t *copy = malloc(cut + 1);
        memcpy(copy, bytes, cut);
        if (remote_question_decode(&part, copy, cut, &e) == 0)
            remote_question_free(&part);
        free(copy);
    }
    free(bytes);
    return out;
}

static void a_question_comes_as_it_was_asked(void **state)
{
    (void)state;
    struct remote_question q = {
        .asks = REMOTE_PROPOSE,
        .generation = 7,
        .timeout_ms = 900,
        .count = 2,
        .commands = {{(const uint8_t *)"one", 3}, {(const uint8_t *)"three", 5}}};
    struct remote_question *again = question_again(&q);
    assert_int_equal(again->asks, REMOTE_PROPOSE);
    assert_int_equal(again->generation, 7);
    assert_int_equal(again->timeout_ms, 900);
    assert_int_equal(again->count, 2);
    assert_memory_equal(again->commands[1].bytes, "three", 5);
    remote_question_free(again);
    free(again);
    q = (struct remote_question){.asks = REMOTE_READ, .timeout_ms = 5};
    again = question_again(&q);
    assert_int_equal(again->asks, REMOTE_READ);
    assert_int_equal(again->timeout_ms, 5);
    remote_question_free(again);
    free(again);
}

static void a_question_beyond_the_bounds_is_refused(void **state)
{
    (void)state;
    struct remote_question q = {.asks = REMOTE_READ, .timeout_ms = REMOTE_TIMEOUT_MS_MAX + 1};
    struct remote_question out;
    uint8_t *bytes;
    size_t size;
    struct err e;
    assert_int_equal(remote_question_encode(&bytes, &size, &q, &e), 0);
    assert_int_equal(remote_question_decode(&out, bytes, size, &e), -ERR_PROTOCOL);
    free(bytes);
    /* One large command is taken, two are not. */
    uint8_t *large = calloc(1, REMOTE_COMMANDS_BYTES_MAX);
    q = (struct remote_question){.asks = REMOTE_PROPOSE,
                                 .count = 2,
                                 .commands = {{large, REMOTE_COMMANDS_BYTES_MAX}, {large, 8}}};
    assert_int_equal(remote_question_encode(&bytes, &size, &q, &e), 0);
    assert_int_equal(remote_question_decode(&out, bytes, size, &e), -ERR_PROTOCOL);
    free(bytes);
    q.count = 1;
    assert_int_equal(remote_question_encode(&bytes, &size, &q, &e), 0);
    assert_int_equal(remote_question_decode(&out, bytes, size, &e), 0);
    remote_question_free(&out);
    /* A version and a field that this build does not know: {1: 2}, {99: 1}. */
    assert_int_equal(remote_question_decode(&out, (const uint8_t *)"\x08\x02\x5a\x00", 4, &e),
                     -ERR_PROTOCOL);
    assert_int_equal(remote_question_decode(&out, (const uint8_t *)"\x08\x01\x5a\x00", 4, &e), 0);
    remote_question_free(&out);
    assert_int_equal(
        remote_question_decode(&out, (const uint8_t *)"\x08\x01\x5a\x00\x98\x06\x01", 7, &e),
        -ERR_PROTOCOL);
    assert_int_equal(remote_question_decode(&out, (const uint8_t *)"", 0, &e), -ERR_PROTOCOL);
    free(bytes);
    free(large);
}

static void an_answer_comes_as_it_was_given(void **state)
{
    (void)state;
    struct remote_outcome outcomes[4] = {
        {.fate = REMOTE_RESULT,
         .result = {.problem = PROBLEM_CONFLICT,
                    .detail = "taken",
                    .index = 12,
                    .version = 3,
                    .changed = true,
                    .epoch = 1ull << 41,
                    .existing = help_instance_id(2, 5),
                    .node = 4,
                    .replaced = 1}},
        {.fate = REMOTE_NOT_PROPOSED},
        {.fate = REMOTE_UNKNOWN},
        {.fate = REMOTE_DENIED, .text = "no"},
    };
    const struct remote_answer answers[] = {
        {.says = REMOTE_PROPOSED, .outcomes = outcomes, .count = ARRAY_SIZE(outcomes)},
        {.says = REMOTE_NOT_LEADER, .leader = 9},
        {.says = REMOTE_INDEX, .index = 77},
        {.says = REMOTE_REFUSED, .text = "never"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
        struct remote_answer out;
        uint8_t *bytes;
        size_t size;
        struct err e = {0};
        assert_int_equal(remote_answer_encode(&bytes, &size, &answers[i], &e), 0);
        assert_int_equal(remote_answer_decode(&out, bytes, size, &e), 0);
        assert_int_equal(out.says, answers[i].says);
        assert_int_equal(out.leader, answers[i].leader);
        assert_int_equal(out.index, answers[i].index);
        assert_string_equal(out.text, answers[i].text);
        assert_int_equal(out.count, answers[i].count);
        for (size_t k = 0; k < out.count; k++) {
            assert_int_equal(out.outcomes[k].fate, outcomes[k].fate);
            assert_string_equal(out.outcomes[k].text, outcomes[k].text);
            const struct registry_result *a = &outcomes[k].result, *b = &out.outcomes[k].result;
            assert_string_equal(b->detail, a->detail);
            assert_string_equal(b->existing.text, a->existing.text);
            assert_true(b->problem == a->problem && b->index == a->index &&
                        b->version == a->version && b->changed == a->changed &&
                        b->epoch == a->epoch && b->node == a->node && b->replaced == a->replaced);
        }
        remote_answer_free(&out);
        free(bytes);
    }
}

/* --- what may be proposed --------------------------------------------------------------------------- */

static int check_at(uint64_t wall_ms, node_id from, node_id session_node,
                    const struct registry_command *c)
{
    struct help_state h;
    struct command_session session = {.node = session_node, .boot = 1, .sequence = 1}, out;
    uint8_t *bytes;
    size_t size;
    struct err e = {0};
    if (command_encode(&bytes, &size, &session, c, &e) < 0)
        fail_msg("%s", e.msg);
    help_state_open(&h);
    int rc = remote_command_check(h.state, from, bytes, size, wall_ms, &out, &e);
    help_state_close(&h);
    free(bytes);
    return rc;
}

static int check_as(node_id from, node_id session_node, const struct registry_command *c)
{
    return check_at(0, from, session_node, c);
}

static void a_session_is_that_of_the_node_that_asks(void **state)
{
    (void)state;
    const struct registry_command c = {.kind = REGISTRY_WORKLOAD_REMOVE, .name = "hello"};
    assert_int_equal(check_as(2, 2, &c), 0);
    assert_int_equal(check_as(2, 3, &c), -ERR_DENIED);
}

static void an_instance_is_its_owners(void **state)
{
    (void)state;
    struct registry_instance i = {.id = help_instance_id(2, 1), .owner = 2, .epoch = 5};
    struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &i};
    assert_int_equal(check_as(2, 2, &c), 0);
    assert_int_equal(check_as(3, 3, &c), -ERR_DENIED);
    i.reason = END_KILLED;
    c.kind = REGISTRY_INSTANCE_END;
    assert_int_equal(check_as(2, 2, &c), 0);
    assert_int_equal(check_as(3, 3, &c), -ERR_DENIED);
}

static void leases_and_levels_are_the_leaders(void **state)
{
    (void)state;
    struct registry_node n = {.id = 2, .lease_epoch = 5, .name = "node2"};
    memset(n.public_key, 1, sizeof n.public_key);
    struct registry_command c = {.kind = REGISTRY_LEASE_GRANT, .node = &n};
    assert_int_equal(check_as(2, 2, &c), -ERR_DENIED);
    c.kind = REGISTRY_LEASE_EXPIRE;
    assert_int_equal(check_as(2, 2, &c), -ERR_DENIED);
    c = (struct registry_command){.kind = REGISTRY_FEATURE_LEVEL, .version = 1};
    assert_int_equal(check_as(2, 2, &c), -ERR_DENIED);
    /* A node speaks for itself. */
    c = (struct registry_command){.kind = REGISTRY_NODE_PUT, .node = &n};
    assert_int_equal(check_as(2, 2, &c), 0);
    assert_int_equal(check_as(3, 3, &c), -ERR_DENIED);
}

static void times_are_near_the_leaders(void **state)
{
    (void)state;
    const uint64_t now_ms = 1000000000;
    struct registry_node n = {.id = 2, .name = "node2", .draining = true};
    struct registry_command c = {.kind = REGISTRY_NODE_DRAIN, .node = &n, .wall_ms = now_ms};
    assert_int_equal(check_at(now_ms, 2, 2, &c), 0);
    c.wall_ms = now_ms + REMOTE_CLOCK_MS;
    assert_int_equal(check_at(now_ms, 2, 2, &c), 0);
    c.wall_ms++;
    assert_int_equal(check_at(now_ms, 2, 2, &c), -ERR_DENIED);
    c.wall_ms = UINT64_MAX;
    assert_int_equal(check_at(now_ms, 2, 2, &c), -ERR_DENIED);
    c.wall_ms = now_ms - REMOTE_COMMAND_AGE_MS;
    assert_int_equal(check_at(now_ms, 2, 2, &c), 0);
    c.wall_ms--;
    assert_int_equal(check_at(now_ms, 2, 2, &c), -ERR_DENIED);
    /* What is not judged by its time may have any. */
    c = (struct registry_command){.kind = REGISTRY_WORKLOAD_REMOVE, .name = "hello", .wall_ms = 1};
    assert_int_equal(check_at(now_ms, 2, 2, &c), 0);
}

static void nonsense_is_refused(void **state)
{
    struct help_state h;
    struct command_session out;
    struct err e;
    (void)state;
    help_state_open(&h);
    assert_int_equal(remote_command_check(h.state, 2, (const uint8_t *)"", 0, 0, &out, &e),
                     -ERR_PROTOCOL);
    assert_int_equal(
        remote_command_check(h.state, 2, (const uint8_t *)"xxxxxxxxxxxxxxxx", 16, 0, &out, &e),
        -ERR_PROTOCOL);
    help_state_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_question_comes_as_it_was_asked),
        cmocka_unit_test(a_question_beyond_the_bounds_is_refused),
        cmocka_unit_test(an_answer_comes_as_it_was_given),
        cmocka_unit_test(a_session_is_that_of_the_node_that_asks),
        cmocka_unit_test(an_instance_is_its_owners),
        cmocka_unit_test(leases_and_levels_are_the_leaders),
        cmocka_unit_test(times_are_near_the_leaders),
        cmocka_unit_test(nonsense_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
