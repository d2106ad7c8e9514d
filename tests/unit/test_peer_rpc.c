#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <signal.h>
#include <string.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "tests/lib/peer_world.h"

static void a_question_is_answered(void **state)
{
    struct world *w = *state;
    struct asking a, b;
    world_ask(w, &a, 2, "ready?", 5000);
    world_ask(w, &b, 2, "", 5000);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_true(world_wait_until(w, world_has_ended, &b));
    assert_int_equal(a.code, ERR_OK);
    assert_string_equal(a.text, "ready?!");
    assert_string_equal(b.text, "!");
    /* The first two found out the boot; each was asked once. */
    assert_int_equal(w->ends[2].asked, 2);
    struct peer_rpc_counts counts;
    peer_rpc_counts(w->ends[1].rpc, &counts);
    assert_int_equal(counts.calls, 2);
    assert_int_equal(counts.answered, 2);
    assert_int_equal(counts.calls_now, 0);
}

static void a_large_message_passes_and_a_larger_one_is_refused(void **state)
{
    struct world *w = *state;
    struct asking a;
    struct err e;
    char *large = calloc(1, BYTES_MAX + 1);
    assert_int_equal(world_try_ask(w, &a, 2, large, BYTES_MAX + 1, 5000, &e), -ERR_LIMIT);
    assert_int_equal(world_try_ask(w, &a, 2, large, BYTES_MAX - 1, 5000, &e), 0);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_int_equal(a.code, ERR_OK);
    assert_int_equal(a.size, BYTES_MAX);
    /* An answer that would be too large is dropped. */
    assert_int_equal(world_try_ask(w, &a, 2, large, BYTES_MAX, 300, &e), 0);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_int_equal(a.code, ERR_TIMEOUT);
    free(large);
}

static void an_answer_may_come_later(void **state)
{
    struct world *w = *state;
    struct asking a, b;
    w->ends[2].keep = true;
    world_ask(w, &a, 2, "first", 5000);
    assert_true(world_wait_until(w, world_has_kept, &w->ends[2]));
    w->ends[2].keep = false;
    world_ask(w, &b, 2, "second", 5000);
    assert_true(world_wait_until(w, world_has_ended, &b));
    assert_string_equal(b.text, "second!");
    assert_false(a.ended);
    world_answer(w->ends[2].kept[0]);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_string_equal(a.text, "first!");
}

static void no_answer_is_a_timeout_that_may_have_been_heard(void **state)
{
    struct world *w = *state;
    struct asking a;
    w->ends[2].drop = true;
    world_ask(w, &a, 2, "x", 300);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_int_equal(a.code, ERR_TIMEOUT);
    assert_true(a.maybe_heard);
    w->ends[2].drop = false;
    world_ask(w, &a, 2, "y", 5000);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_string_equal(a.text, "y!");
}

static void nobody_there_was_never_heard(void **state)
{
    struct world *w = *state;
    struct asking a;
    struct err e;
    assert_int_equal(address_parse(&w->ends[3].address, world_address_at(3), 0, &e), 0);
    world_ask(w, &a, 3, "x", 200);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_int_equal(a.code, ERR_TIMEOUT);
    assert_false(a.maybe_heard);
    /* It comes, and the same link finds it. */
    world_start(w, 3, 33, world_address_at(3));
    world_ask(w, &a, 3, "y", 8000);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_string_equal(a.text, "y!");
}

static void a_peer_that_vanishes_ends_the_call_at_once(void **state)
{
    struct world *w = *state;
    struct asking a;
    w->ends[2].keep = true;
    world_ask(w, &a, 2, "x", 9000);
    assert_true(world_wait_until(w, world_has_kept, &w->ends[2]));
    uint64_t begin_ms = clock_monotonic_ms();
    world_stop(w, 2);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_int_equal(a.code, ERR_UNAVAILABLE);
    assert_true(a.maybe_heard);
    assert_true(clock_monotonic_ms() - begin_ms < 5000);
}

static void a_restarted_peer_is_asked_again_by_itself(void **state)
{
    struct world *w = *state;
    struct asking a;
    world_ask(w, &a, 2, "x", 5000);
    assert_true(world_wait_until(w, world_has_ended, &a));
    world_stop(w, 2);
    w->ends[2].asked = 0;
    world_start(w, 2, 23, world_address_at(2));
    /* Until the end of the old connection is noticed, a question may still leave by it, and nobody
     * can say what became of that one. */
    uint64_t until_ms = clock_monotonic_ms() + WAIT_MS;
    do {
        world_ask(w, &a, 2, "y", 8000);
        assert_true(world_wait_until(w, world_has_ended, &a));
    } while (a.code == ERR_UNAVAILABLE && clock_monotonic_ms() < until_ms);
    assert_string_equal(a.text, "y!");
    assert_int_equal(w->ends[2].asked, 1);
    assert_int_equal(world_refused(w, 2, PEER_SEAL_REFUSED_LIFE), 1);
}

static void a_moved_peer_is_found(void **state)
{
    struct world *w = *state;
    struct asking a;
    world_ask(w, &a, 2, "x", 5000);
    assert_true(world_wait_until(w, world_has_ended, &a));
    world_stop(w, 2);
    world_start(w, 2, 24, world_address_at(22));
    world_ask(w, &a, 2, "y", 5000);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_string_equal(a.text, "y!");
}

struct many {
    struct asking *all;
    size_t count;
};

static bool all_ended(void *user)
{
    const struct many *many = user;
    for (size_t i = 0; i < many->count; i++)
        if (!many->all[i].ended)
            return false;
    return true;
}

static void a_thousand_calls_at_once(void **state)
{
    struct world *w = *state;
    enum { CALLS = 1000 };
    struct asking *all = calloc(CALLS + 1, sizeof *all);
    struct many many = {all, CALLS};
    struct err e;
    char text[16];
    for (size_t i = 0; i < CALLS; i++) {
        (void)text_format(text, sizeof text, "%zu", i);
        world_ask(w, &all[i], 2, text, 9000);
    }
    assert_int_equal(world_try_ask(w, &all[CALLS], 2, "x", 1, 9000, &e), -ERR_LIMIT);
    assert_true(world_wait_until(w, all_ended, &many));
    for (size_t i = 0; i < CALLS; i++) {
        (void)text_format(text, sizeof text, "%zu!", i);
        if (all[i].code != ERR_OK)
            fail_msg("call %zu: %s", i, err_code_name(all[i].code));
        assert_string_equal(all[i].text, text);
    }
    assert_int_equal(w->ends[2].asked, CALLS);
    free(all);
}

static void closing_ends_calls_and_forgets_questions(void **state)
{
    struct world *w = *state;
    struct asking a, b;
    struct err e;
    w->ends[2].keep = true;
    world_ask(w, &a, 2, "x", 9000);
    assert_int_equal(address_parse(&w->ends[3].address, world_address_at(3), 0, &e), 0);
    world_ask(w, &b, 3, "x", 9000); /* never connected */
    assert_true(world_wait_until(w, world_has_kept, &w->ends[2]));
    world_stop(w, 1);
    assert_true(a.ended && b.ended);
    assert_int_equal(a.code, ERR_CANCELED);
    assert_int_equal(b.code, ERR_CANCELED);
    assert_false(b.maybe_heard);
}

static void a_removed_peer_is_neither_asked_nor_heard(void **state)
{
    struct world *w = *state;
    struct asking a;
    struct err e;
    w->ends[2].keep = true;
    world_ask(w, &a, 2, "x", 9000);
    assert_true(world_wait_until(w, world_has_kept, &w->ends[2]));
    w->removed[2] = true;
    peer_rpc_forget(w->ends[1].rpc, 2);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_int_equal(a.code, ERR_UNAVAILABLE);
    assert_int_equal(world_try_ask(w, &a, 2, "y", 1, 500, &e), -ERR_NOT_FOUND);
    w->removed[2] = false;
    w->removed[1] = true; /* now node 2 does not know node 1 */
    unsigned asked = w->ends[2].asked;
    world_ask(w, &a, 2, "z", 300);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_int_equal(a.code, ERR_TIMEOUT);
    assert_int_equal(w->ends[2].asked, asked);
    assert_int_equal(world_refused(w, 2, PEER_SEAL_REFUSED_STRANGER), 1);
}

static bool has_connections(void *user)
{
    const struct node_end *end = user;
    struct peer_rpc_counts counts;
    peer_rpc_counts(end->rpc, &counts);
    return counts.connections_now == 1;
}

static bool has_come_again(void *user)
{
    const struct node_end *end = user;
    struct peer_rpc_counts counts;
    peer_rpc_counts(end->rpc, &counts);
    return counts.connections == 2;
}

/* What it had is gone; it may connect again, as any stranger may. */
static void a_removed_peers_connection_closes(void **state)
{
    struct world *w = *state;
    struct asking a;
    world_ask(w, &a, 2, "x", 9000);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_true(world_wait_until(w, has_connections, &w->ends[2]));
    w->removed[1] = true;
    peer_rpc_forget(w->ends[2].rpc, 1);
    assert_true(world_wait_until(w, has_come_again, &w->ends[2]));
    assert_true(has_connections(&w->ends[2]));
}

enum { FLOOD_CALLS = 32 };

struct flood {
    unsigned ended;
};

static void flood_answered(void *user, const struct peer_answer *answer)
{
    (void)answer;
    ((struct flood *)user)->ended++;
}

static bool flood_is_over(void *user)
{
    return ((struct flood *)user)->ended == FLOOD_CALLS;
}

/* A node that stops and comes again while messages are on their way, both ways: every call ends, and
 * so does every close. */
static void closing_amid_messages_ends(void **state)
{
    struct world *w = *state;
    struct err e;
    for (unsigned round = 0; round < 40; round++) {
        struct flood flood = {.ended = 0};
        for (unsigned i = 0; i < FLOOD_CALLS; i++) {
            struct peer_call call = {.to = 2,
                                     .what = 9,
                                     .payload = "x",
                                     .size = 1,
                                     .timeout_ms = 9000,
                                     .answered = flood_answered,
                                     .user = &flood};
            assert_int_equal(peer_rpc_call(w->ends[1].rpc, &call, &e), 0);
        }
        for (unsigned turn = 0; turn < round % 8 && flood.ended < FLOOD_CALLS / 2; turn++)
            uv_run(&w->loop, UV_RUN_ONCE);
        world_stop(w, 2);
        world_start(w, 2, 23 + round, world_address_at(2));
        assert_true(world_wait_until(w, flood_is_over, &flood));
    }
}

static void public_addresses_are_refused(void **state)
{
    struct world *w = *state;
    struct asking a;
    struct err e;
    struct peer_rpc *rpc = NULL;
    struct sockaddr_storage public;
    assert_int_equal(address_parse(&public, "9.9.9.9:7600", 0, &e), 0);
    struct peer_rpc_options options = {.address = &public};
    assert_int_equal(peer_rpc_open(&rpc, &w->loop, &options, &e), -ERR_INVALID);
    w->ends[3].address = public;
    assert_int_equal(world_try_ask(w, &a, 3, "x", 1, 500, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "9.9.9.9:7600"));
    w->ends[3].address = (struct sockaddr_storage){0};
    assert_int_equal(world_try_ask(w, &a, 3, "x", 1, 500, &e), -ERR_UNAVAILABLE);
    /* An address that is taken. */
    struct node_end *end = &w->ends[1];
    options = (struct peer_rpc_options){.identity = w->identities[1],
                                        .id = 1,
                                        .boot = 1,
                                        .address = &end->address,
                                        .key_of = world_key_of,
                                        .address_of = world_address_of,
                                        .asked = world_asked_cb,
                                        .user = end};
    assert_int_equal(peer_rpc_open(&rpc, &w->loop, &options, &e), -ERR_IO);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_set_up, world_tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_question_is_answered),
        TEST(a_large_message_passes_and_a_larger_one_is_refused),
        TEST(an_answer_may_come_later),
        TEST(no_answer_is_a_timeout_that_may_have_been_heard),
        TEST(nobody_there_was_never_heard),
        TEST(a_peer_that_vanishes_ends_the_call_at_once),
        TEST(a_restarted_peer_is_asked_again_by_itself),
        TEST(a_moved_peer_is_found),
        TEST(a_thousand_calls_at_once),
        TEST(closing_ends_calls_and_forgets_questions),
        TEST(a_removed_peer_is_neither_asked_nor_heard),
        TEST(a_removed_peers_connection_closes),
        TEST(closing_amid_messages_ends),
        TEST(public_addresses_are_refused),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("peer_rpc", tests, NULL, NULL);
}
