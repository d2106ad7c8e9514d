#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "gateway/travel_block.h"

static struct travel_ask sample(void)
{
    const uint8_t random[11] = {1, 2, 3};
    struct travel_ask ask = {.mode = TRAVEL_FORCED,
                             .idempotent = true,
                             .hops = 1,
                             .version = 0x0102030405060708u,
                             .workload = "chat",
                             .request_id = "r-0123456789ab",
                             .asked_by = "GET /w/chat/",
                             .client = "192.0.2.1"};
    instance_id_make(&ask.instance, 7, random);
    return ask;
}

static void a_question_arrives_as_it_was(void **state)
{
    (void)state;
    uint8_t bytes[TRAVEL_BLOCK_BYTES_MAX];
    struct travel_ask ask = sample(), out;
    size_t size = travel_ask_write(&ask, bytes);
    assert_true(travel_ask_read(&out, (char *)bytes, size));
    assert_int_equal(out.mode, TRAVEL_FORCED);
    assert_true(out.idempotent && !out.raw);
    assert_int_equal(out.hops, 1);
    assert_true(out.version == ask.version);
    assert_string_equal(out.workload, "chat");
    assert_string_equal(out.instance.text, ask.instance.text);
    assert_string_equal(out.request_id, ask.request_id);
    assert_string_equal(out.asked_by, ask.asked_by);
    assert_string_equal(out.client, ask.client);
    ask.raw = true;
    ask.idempotent = false;
    size = travel_ask_write(&ask, bytes);
    assert_true(travel_ask_read(&out, (char *)bytes, size));
    assert_true(out.raw && !out.idempotent);
    bytes[2] = 16; /* a flag that nobody knows */
    assert_false(travel_ask_read(&out, (char *)bytes, size));
    ask = sample();
    assert_true(out.port == 0 && !out.port_any);
    for (unsigned any = 0; any < 2; any++) {
        ask.port = 9000;
        ask.port_any = any == 1;
        size = travel_ask_write(&ask, bytes);
        assert_true(travel_ask_read(&out, (char *)bytes, size));
        assert_true(out.port == 9000 && out.port_any == ask.port_any && out.idempotent);
        assert_false(travel_ask_read(&out, (char *)bytes, size - 1));
        bytes[size - 1] = bytes[size - 2] = 0; /* no port, where one is announced */
        assert_false(travel_ask_read(&out, (char *)bytes, size));
    }
    ask.port = 0;
    ask.port_any = false;
    /* The longest that can be. */
    ask.mode = TRAVEL_KEYED;
    memset(ask.workload, 'a', WORKLOAD_NAME_LENGTH_MAX);
    memset(ask.key, 'k', GATEWAY_KEY_LENGTH_MAX);
    memset(ask.asked_by, 'x', sizeof ask.asked_by - 1);
    memset(ask.client, 'x', sizeof ask.client - 1);
    memset(ask.request_id, 'x', sizeof ask.request_id - 1);
    size = travel_ask_write(&ask, bytes);
    assert_in_range(size, 1, sizeof bytes);
    assert_true(travel_ask_read(&out, (char *)bytes, size));
    assert_int_equal(strlen(out.key), GATEWAY_KEY_LENGTH_MAX);
}

static void what_is_cut_or_has_more_is_refused(void **state)
{
    (void)state;
    uint8_t bytes[TRAVEL_BLOCK_BYTES_MAX + 1] = {0};
    struct travel_ask ask = sample(), out;
    size_t size = travel_ask_write(&ask, bytes);
    for (size_t cut = 0; cut < size; cut++)
        assert_false(travel_ask_read(&out, (char *)bytes, cut));
    assert_false(travel_ask_read(&out, (char *)bytes, size + 1));
    struct travel_answer answer = {.problem = PROBLEM_INSTANCE_FULL, .detail = "full"}, got;
    size = travel_answer_write(&answer, bytes);
    for (size_t cut = 0; cut < size; cut++)
        assert_false(travel_answer_read(&got, (char *)bytes, cut));
    assert_true(travel_answer_read(&got, (char *)bytes, size));
    assert_false(travel_answer_read(&got, (char *)bytes, size + 1));
}

static bool ask_passes(const struct travel_ask *ask)
{
    uint8_t bytes[TRAVEL_BLOCK_BYTES_MAX];
    struct travel_ask out;
    return travel_ask_read(&out, (char *)bytes, travel_ask_write(ask, bytes));
}

static void questions_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    struct travel_ask ask = sample();
    assert_true(ask_passes(&ask));
    ask.mode = TRAVEL_TRY; /* with an instance */
    assert_true(ask_passes(&ask));
    ask.mode = TRAVEL_START;
    assert_false(ask_passes(&ask));
    ask.instance.text[0] = '\0';
    assert_true(ask_passes(&ask));
    ask.mode = TRAVEL_FORCED;
    assert_false(ask_passes(&ask));
    ask.mode = TRAVEL_KEYED; /* without a key */
    assert_false(ask_passes(&ask));
    text_copy(ask.key, sizeof ask.key, "room");
    assert_true(ask_passes(&ask));
    ask.mode = TRAVEL_START;
    assert_false(ask_passes(&ask));
    ask = sample();
    ask.mode = (enum travel_mode)9;
    assert_false(ask_passes(&ask));
    ask = sample();
    text_copy(ask.workload, sizeof ask.workload, "../etc");
    assert_false(ask_passes(&ask));
    ask = sample();
    text_copy(ask.instance.text, sizeof ask.instance.text, "0not-an-id");
    assert_false(ask_passes(&ask));
    ask = sample();
    text_copy(ask.asked_by, sizeof ask.asked_by, "GET \x1b[2J");
    assert_false(ask_passes(&ask));
    ask = sample();
    ask.request_id[0] = '\0';
    assert_false(ask_passes(&ask));
}

static void answers_arrive_as_they_were(void **state)
{
    (void)state;
    uint8_t bytes[TRAVEL_BLOCK_BYTES_MAX];
    struct travel_answer answer = {.granted = true,
                                   .instance = sample().instance,
                                   .start = GATEWAY_START_POOL,
                                   .timing = {1, 2, 3, 4},
                                   .code_us = 5,
                                   .ends_wall_ms = 1767225600000};
    struct travel_answer out;
    assert_true(travel_answer_read(&out, (char *)bytes, travel_answer_write(&answer, bytes)));
    assert_true(out.granted);
    assert_int_equal(out.start, GATEWAY_START_POOL);
    assert_true(out.timing.queue_us == 1 && out.timing.reserve_us == 2);
    assert_true(out.timing.sandbox_us == 3 && out.timing.code_us == 4 && out.code_us == 5);
    assert_int_equal(out.ends_wall_ms, 1767225600000);
    answer.ends_wall_ms = UINT64_MAX;
    assert_true(travel_answer_read(&out, (char *)bytes, travel_answer_write(&answer, bytes)));
    answer.ends_wall_ms--; /* no year of four digits */
    assert_false(travel_answer_read(&out, (char *)bytes, travel_answer_write(&answer, bytes)));
    answer.ends_wall_ms = 0;
    answer.start = (enum gateway_start)3;
    assert_false(travel_answer_read(&out, (char *)bytes, travel_answer_write(&answer, bytes)));
    answer = (struct travel_answer){.problem = PROBLEM_INSTANCE_OOM,
                                    .ran = RAN_YES,
                                    .retry_after_s = 100000,
                                    .reason = "oom",
                                    .detail = "it used up its memory"};
    assert_true(travel_answer_read(&out, (char *)bytes, travel_answer_write(&answer, bytes)));
    assert_false(out.granted);
    assert_int_equal(out.problem, PROBLEM_INSTANCE_OOM);
    assert_int_equal(out.ran, RAN_YES);
    assert_int_equal(out.retry_after_s, 3600);
    assert_string_equal(out.reason, "oom");
    assert_string_equal(out.detail, "it used up its memory");
    answer.problem = PROBLEM_COUNT;
    assert_false(travel_answer_read(&out, (char *)bytes, travel_answer_write(&answer, bytes)));
    answer.problem = PROBLEM_NONE;
    assert_false(travel_answer_read(&out, (char *)bytes, travel_answer_write(&answer, bytes)));
    answer.problem = PROBLEM_INTERNAL;
    answer.ran = (enum ran)3;
    assert_false(travel_answer_read(&out, (char *)bytes, travel_answer_write(&answer, bytes)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_question_arrives_as_it_was),
        cmocka_unit_test(what_is_cut_or_has_more_is_refused),
        cmocka_unit_test(questions_that_make_no_sense_are_refused),
        cmocka_unit_test(answers_arrive_as_they_were),
    };
    return cmocka_run_group_tests_name("travel_block", tests, NULL, NULL);
}
