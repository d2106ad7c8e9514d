#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "tests/lib/gateway_nodes.h"

/* Joins that only one node can serve, while that node is away. */

enum { WAIT_MS = 1500, ASKERS = 40 };

static int start_two(void **state)
{
    struct gateway_nodes *n = malloc(sizeof *n);
    gateway_nodes_start(
        n, &(struct gateway_nodes_options){.count = 2, .fixture = {.owner_wait_ms = WAIT_MS}});
    *state = n;
    return 0;
}

/* Not idempotent: nobody may send it twice. */
#define KEYED "POST /w/keyed/ HTTP/1.1\r\n" HOST "X-Room: blue\r\nContent-Length: 2\r\n\r\nxx"

static void forced(const struct gateway_nodes *n, char out[200])
{
    text_format(out, 200, "POST /i/%s/ HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nxx",
                n->nodes[1].f.id.text);
}

struct asker {
    struct gateway_nodes *n;
    char request[200];
    struct test_answer a;
    uint64_t took_ms;
    pthread_t thread;
};

static void *ask(void *argument)
{
    struct asker *a = argument;
    uint64_t begun_ms = clock_monotonic_ms();
    gateway_fixture_get(entry(a->n), &a->a, a->request);
    a->took_ms = clock_monotonic_ms() - begun_ms;
    return NULL;
}

static void ask_begin(struct asker *a, struct gateway_nodes *n, const char *request)
{
    *a = (struct asker){.n = n};
    text_copy(a->request, sizeof a->request, request);
    pthread_create(&a->thread, NULL, ask, a);
}

static void pause_ms(unsigned ms)
{
    usleep(ms * 1000);
}

/* --- it comes back ---------------------------------------------------------------------------------- */

static void is_served_when_it_is_back(struct gateway_nodes *n, const char *request)
{
    struct asker a[ASKERS];
    gateway_nodes_kill(n, 1);
    for (int i = 0; i < ASKERS; i++)
        ask_begin(&a[i], n, request);
    pause_ms(400);
    gateway_nodes_revive(n, 1);
    for (int i = 0; i < ASKERS; i++) {
        pthread_join(a[i].thread, NULL);
        if (a[i].a.status != 200)
            fail_msg("%s%s", a[i].a.head, a[i].a.body);
        assert_in_range(a[i].took_ms, 300, WAIT_MS);
        test_answer_free(&a[i].a);
    }
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

static void forced_joins_wait_for_their_owner(void **state)
{
    struct gateway_nodes *n = *state;
    char request[200];
    forced(n, request);
    gateway_expect_body(entry(n), request, "ok");
    is_served_when_it_is_back(n, request);
    is_served_when_it_is_back(n, request); /* nothing is left of the time before */
}

static void keyed_joins_wait_for_their_holder(void **state)
{
    struct gateway_nodes *n = *state;
    n->sent_to = 2;
    gateway_expect_body(entry(n), KEYED, "ok");
    is_served_when_it_is_back(n, KEYED);
}

/* --- it does not ------------------------------------------------------------------------------------ */

static void patience_has_an_end(void **state)
{
    struct gateway_nodes *n = *state;
    struct asker a;
    char request[200];
    forced(n, request);
    gateway_nodes_kill(n, 1);
    ask_begin(&a, n, request);
    pthread_join(a.thread, NULL);
    gateway_assert_problem(&a.a, 503, "owner_unreachable");
    assert_non_null(test_answer_field(&a.a, "Retry-After"));
    assert_non_null(strstr(a.a.body, "\"ran\":\"no\""));
    assert_in_range(a.took_ms, WAIT_MS - 300, WAIT_MS + 1000);
    test_answer_free(&a.a);
    /* It is known to be away now: nobody else waits as long again. */
    ask_begin(&a, n, request);
    pthread_join(a.thread, NULL);
    gateway_assert_problem(&a.a, 503, "owner_unreachable");
    assert_in_range(a.took_ms, 0, WAIT_MS / 2);
    test_answer_free(&a.a);
}

static void an_end_that_is_heard_of_meanwhile_is_the_answer(void **state)
{
    struct gateway_nodes *n = *state;
    struct asker a;
    char request[200];
    forced(n, request);
    gateway_nodes_kill(n, 1);
    ask_begin(&a, n, request);
    pause_ms(200);
    n->nodes[1].lost = true;
    pthread_join(a.thread, NULL);
    gateway_assert_problem(&a.a, 410, "instance_gone");
    assert_non_null(strstr(a.a.body, "node_lost"));
    assert_in_range(a.took_ms, 150, WAIT_MS - 300);
    test_answer_free(&a.a);
}

static void a_client_that_leaves_is_not_waited_with(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    char request[200];
    forced(n, request);
    gateway_nodes_kill(n, 1);
    test_client_open(&c, entry(n));
    test_client_send(&c, request);
    pause_ms(200);
    unsigned before = gateway_connections(entry(n)->gateway);
    assert_int_equal(before, 1);
    test_client_close(&c);
    uint64_t begun_ms = clock_monotonic_ms();
    wait_until(gateway_connections(entry(n)->gateway) == 0);
    assert_in_range(clock_monotonic_ms() - begun_ms, 0, 1200);
    gateway_nodes_revive(n, 1);
    pause_ms(300);
    assert_int_equal(owner(n)->backend_connections, 0);
}

/* --- it says goodbye ---------------------------------------------------------------------------------- */

/* Streams of a node that goes, or is not there yet, end so that who asks knows that nothing was read. */
static void a_shut_owner_lets_in_nobody_and_cuts_off_nobody(void **state)
{
    struct gateway_nodes *n = *state;
    struct asker held, a[ASKERS];
    char request[200];
    forced(n, request);
    gateway_expect_body(entry(n), request, "ok");
    owner(n)->backend_hold = true;
    text_format(request, sizeof request,
                "POST /i/%s/hold HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nxx",
                owner(n)->id.text);
    ask_begin(&held, n, request);
    wait_until(owner(n)->backend_inside == 1);
    assert_true(gateway_accepts(owner(n)->gateway));
    gateway_drain(owner(n)->gateway);
    gateway_shut(owner(n)->gateway);
    wait_until(gateway_is_shut(owner(n)->gateway));
    assert_false(gateway_accepts(owner(n)->gateway));
    unsigned connections = owner(n)->backend_connections;
    forced(n, request);
    for (int i = 0; i < ASKERS; i++)
        ask_begin(&a[i], n, request);
    pause_ms(300);
    assert_int_equal(owner(n)->backend_connections, connections);
    owner(n)->backend_hold = false;
    pthread_join(held.thread, NULL);
    assert_int_equal(held.a.status, 200);
    test_answer_free(&held.a);
    wait_until(gateway_connections(owner(n)->gateway) == 0);
    gateway_nodes_kill(n, 1);
    gateway_nodes_revive(n, 1);
    for (int i = 0; i < ASKERS; i++) {
        pthread_join(a[i].thread, NULL);
        if (a[i].a.status != 200)
            fail_msg("%s%s", a[i].a.head, a[i].a.body);
        test_answer_free(&a[i].a);
    }
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, start_two, gateway_nodes_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(forced_joins_wait_for_their_owner),
        TEST(keyed_joins_wait_for_their_holder),
        TEST(patience_has_an_end),
        TEST(an_end_that_is_heard_of_meanwhile_is_the_answer),
        TEST(a_client_that_leaves_is_not_waited_with),
        TEST(a_shut_owner_lets_in_nobody_and_cuts_off_nobody),
    };
    return cmocka_run_group_tests_name("gateway_away", tests, NULL, NULL);
}
