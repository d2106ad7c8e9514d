#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/memory.h"
#include "tests/lib/gateway_nodes.h"

/* Joins that travel, as clients of the entry node see them. */

static int start_nodes(void **state, const struct gateway_nodes_options *options)
{
    struct gateway_nodes *n = malloc(sizeof *n);
    gateway_nodes_start(n, options);
    *state = n;
    return 0;
}

static int start_two(void **state)
{
    return start_nodes(state, &(struct gateway_nodes_options){.count = 2});
}

static int start_two_threads(void **state)
{
    return start_nodes(state, &(struct gateway_nodes_options){
                                  .count = 2, .fixture = {.threads = 2, .max_joiners = 40}});
}

static int start_three_small(void **state)
{
    return start_nodes(state,
                       &(struct gateway_nodes_options){.count = 3, .fixture = {.max_joiners = 1}});
}

static void ok(struct gateway_fixture *f, struct test_answer *a, const char *request)
{
    gateway_fixture_get(f, a, request);
    if (a->status != 200)
        fail_msg("%s%s", a->head, a->body);
}

static struct gateway_counters counters_of(struct gateway_fixture *f)
{
    struct gateway_counters counters;
    gateway_counters(f->gateway, &counters);
    return counters;
}

/* --- the way ---------------------------------------------------------------------------------------- */

static void a_join_travels_to_the_owner(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_answer a;
    ok(entry(n), &a, GET("/w/web/"));
    assert_string_equal(a.body, "ok");
    assert_string_equal(test_answer_field(&a, "Skerry-Instance"), owner(n)->id.text);
    assert_string_equal(test_answer_field(&a, "Skerry-Node"), "node2");
    assert_string_equal(test_answer_field(&a, "Skerry-Start"), "join");
    assert_non_null(strstr(test_answer_field(&a, "Server-Timing"), "code;dur="));
    test_answer_free(&a);
    wait_until(slot_joiners(owner(n)->slot) == 0);
    assert_int_equal(n->asks, 0);
    assert_int_equal(entry(n)->backend_connections, 0);
}

static void the_code_sees_the_client_and_not_the_way(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_answer a;
    ok(entry(n), &a, "POST /w/web/echo?q=1 HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello");
    assert_ptr_equal(strstr(a.body, "POST /echo?q=1 HTTP/1.1\r\n"), a.body);
    assert_non_null(strstr(a.body, "X-Forwarded-For: 127.0.0.1\r\n"));
    assert_non_null(strstr(a.body, "X-Forwarded-Prefix: /w/web\r\n"));
    assert_non_null(strstr(a.body, "\r\n\r\nhello"));
    char id[160];
    text_format(id, sizeof id, "Skerry-Request-Id: %s\r\n",
                test_answer_field(&a, "Skerry-Request-Id"));
    assert_non_null(strstr(a.body, id));
    test_answer_free(&a);
}

static void one_stream_and_one_connection_serve_one_after_another(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    test_client_open(&c, entry(n));
    for (int i = 0; i < 50; i++) {
        struct test_answer a;
        test_client_send(&c, i % 3 == 0 ? "POST /w/web/ HTTP/1.1\r\n" HOST
                                          "Content-Length: 2\r\n\r\nxx"
                                        : GET("/w/web/"));
        test_client_read(&c, &a, false);
        assert_int_equal(a.status, 200);
        test_answer_free(&a);
    }
    test_client_close(&c);
    struct gateway_counters counters = counters_of(entry(n));
    assert_int_equal(counters.streams_connects, 1);
    assert_int_equal(counters.streams_reuses, 49);
    assert_int_equal(counters.forwarded, 50);
    assert_int_equal(owner(n)->backend_connections, 1);
    assert_int_equal(counters_of(owner(n)).arrivals, 50);
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

static void local_places_come_first(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_answer a;
    n->local = true;
    ok(entry(n), &a, GET("/w/web/"));
    assert_string_equal(test_answer_field(&a, "Skerry-Node"), "node1");
    test_answer_free(&a);
    assert_int_equal(counters_of(entry(n)).forwarded, 0);
}

/* --- which node ------------------------------------------------------------------------------------- */

static void a_forced_join_goes_to_the_ids_owner(void **state)
{
    struct gateway_nodes *n = *state;
    char request[200];
    struct test_answer a;
    n->no_owners = true;
    text_format(request, sizeof request, "GET /i/%s/echo HTTP/1.1\r\n" HOST "\r\n",
                owner(n)->id.text);
    ok(entry(n), &a, request);
    assert_string_equal(test_answer_field(&a, "Skerry-Node"), "node2");
    assert_ptr_equal(strstr(a.body, "GET /echo HTTP/1.1\r\n"), a.body);
    test_answer_free(&a);
    /* What ended there a moment ago is told by who knows. */
    gateway_fixture_end_instance(owner(n), END_IDLE);
    gateway_fixture_get(entry(n), &a, request);
    gateway_assert_problem(&a, 410, "instance_gone");
    assert_non_null(strstr(a.body, "\"reason\":\"idle\""));
    assert_non_null(strstr(a.body, owner(n)->id.text));
    assert_string_equal(test_answer_field(&a, "Skerry-Node"), "node2");
    test_answer_free(&a);
}

static void an_unknown_instance_of_another_node_is_asked_for(void **state)
{
    struct gateway_nodes *n = *state;
    struct instance_id id;
    char request[200];
    const uint8_t random[11] = {9, 9, 9};
    instance_id_make(&id, 2, random);
    text_format(request, sizeof request, "GET /i/%s/ HTTP/1.1\r\n" HOST "\r\n", id.text);
    gateway_expect_problem(entry(n), request, 404, "instance_unknown");
    assert_int_equal(counters_of(entry(n)).forwarded, 0);
}

static void control_says_where_a_cold_one_starts(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_answer a;
    n->no_owners = true;
    n->sent_to = 2;
    gateway_fixture_publish(owner(n));
    assert_int_equal(slot_enter_forced(owner(n)->slot, 0), SLOT_ENTERED);
    pthread_mutex_lock(&owner(n)->mutex);
    owner(n)->no_candidates = true;
    pthread_mutex_unlock(&owner(n)->mutex);
    ok(entry(n), &a, GET("/w/web/"));
    assert_string_equal(test_answer_field(&a, "Skerry-Start"), "cold");
    assert_non_null(strstr(test_answer_field(&a, "Server-Timing"), "reserve;dur=2.000"));
    test_answer_free(&a);
    assert_int_equal(n->asks, 2); /* here, and there */
    assert_int_equal(n->asks_forwarded, 1);
    assert_int_equal(slot_leave(owner(n)->slot, 0), 0);
}

static void a_key_travels_to_its_holder(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_answer a;
    n->sent_to = 2;
    ok(entry(n), &a, "GET /w/keyed/ HTTP/1.1\r\n" HOST "X-Room: kitchen\r\n\r\n");
    assert_string_equal(test_answer_field(&a, "Skerry-Node"), "node2");
    test_answer_free(&a);
    assert_int_equal(n->asks_forwarded, 1);
    assert_string_equal(n->key_asked, "kitchen");
}

static void a_full_owner_leads_to_the_next(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_answer a;
    assert_int_equal(slot_enter_forced(n->nodes[1].f.slot, 0), SLOT_ENTERED);
    for (int i = 0; i < 8; i++) {
        ok(entry(n), &a, GET("/w/web/"));
        assert_string_equal(test_answer_field(&a, "Skerry-Node"), "node3");
        test_answer_free(&a);
        wait_until(slot_joiners(n->nodes[2].f.slot) == 0);
    }
    assert_int_equal(n->asks, 0);
    /* And when all are: control is asked. With a body, which comes along whole each time. */
    assert_int_equal(slot_enter_forced(n->nodes[2].f.slot, 0), SLOT_ENTERED);
    gateway_expect_problem(entry(n), GET("/w/web/"), 503, "node_full");
    assert_int_equal(n->asks, 1);
    assert_int_equal(slot_leave(n->nodes[2].f.slot, 0), 0);
    ok(entry(n), &a, "POST /w/web/echo HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello");
    assert_non_null(strstr(a.body, "\r\n\r\nhello"));
    test_answer_free(&a);
    assert_int_equal(slot_leave(n->nodes[1].f.slot, 0), 0);
}

static void the_less_loaded_owner_is_tried_first(void **state)
{
    struct gateway_nodes *n = *state;
    unsigned node3 = 0;
    n->nodes[1].load = 900;
    for (int i = 0; i < 40; i++) {
        struct test_answer a;
        ok(entry(n), &a, GET("/w/web/"));
        node3 += strcmp(test_answer_field(&a, "Skerry-Node"), "node3") == 0;
        test_answer_free(&a);
        wait_until(slot_joiners(n->nodes[1].f.slot) == 0 && slot_joiners(n->nodes[2].f.slot) == 0);
    }
    /* Of two random ones that may be the same: three quarters. */
    assert_in_range(node3, 21, 40);
}

/* --- all of HTTP ------------------------------------------------------------------------------------ */

static void every_framing_arrives(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_answer a;
    ok(entry(n), &a, GET("/w/web/chunked/100000"));
    assert_int_equal(a.body_length, 100000);
    assert_non_null(strstr(a.trailers, "X-Sum: 42\r\n"));
    assert_null(strstr(a.trailers, "Skerry-Error"));
    test_answer_free(&a);
    ok(entry(n), &a, GET("/w/web/raw/until-close"));
    assert_string_equal(a.body, "until the end");
    assert_false(a.broken);
    test_answer_free(&a);
    gateway_fixture_get(entry(n), &a, "HEAD /w/web/ HTTP/1.1\r\n" HOST "\r\n");
    assert_string_equal(test_answer_field(&a, "Content-Length"), "1234");
    test_answer_free(&a);
    gateway_fixture_get(entry(n), &a, GET("/w/web/raw/no-content"));
    assert_int_equal(a.status, 204);
    test_answer_free(&a);
    /* That code closes in silence; a POST that comes at that moment is lost, and rightly not sent twice. */
    wait_until(owner(n)->backend_open == 0);
    ok(entry(n), &a,
       "POST /w/web/echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
       "5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 7\r\n\r\n");
    assert_non_null(strstr(a.body, "\r\n\r\nhello!X-Sum: 7\r\n"));
    test_answer_free(&a);
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

static void informational_answers_and_continue_pass(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open(&c, entry(n));
    test_client_send(&c, GET("/w/web/raw/early-hints"));
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 103);
    test_answer_free(&a);
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    test_answer_free(&a);
    /* That code closes in silence; what comes at that moment is lost, and rightly not sent twice. */
    wait_until(owner(n)->backend_open == 0);
    test_client_send(&c, "POST /w/web/expect HTTP/1.1\r\n" HOST
                         "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 100);
    test_answer_free(&a);
    test_client_send(&c, "abc");
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.body, "\r\n\r\nabc"));
    test_answer_free(&a);
    test_answer_free(&a);
    test_client_close(&c);
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

static void pieces_are_passed_on_at_once(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    char text[4096] = "";
    size_t length = 0;
    test_client_open(&c, entry(n));
    owner(n)->backend_hold = true;
    test_client_send(&c, GET("/w/web/stream"));
    while (strstr(text, "first") == NULL) {
        ssize_t got = recv(c.fd, text + length, sizeof text - 1 - length, 0);
        assert_true(got > 0);
        length += (size_t)got;
    }
    owner(n)->backend_hold = false;
    while (strstr(text, "last\r\n0\r\n\r\n") == NULL) {
        ssize_t got = recv(c.fd, text + length, sizeof text - 1 - length, 0);
        assert_true(got > 0);
        length += (size_t)got;
    }
    test_client_close(&c);
}

static void upgrades_become_tunnels(void **state)
{
    struct gateway_nodes *n = *state;
    for (int i = 0; i < 3; i++) { /* the stream is good for the next */
        struct test_client c;
        struct test_answer a;
        test_client_open(&c, entry(n));
        test_client_send(&c, "GET /w/web/upgrade HTTP/1.1\r\n" HOST
                             "Connection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ");
        test_client_read(&c, &a, false);
        assert_int_equal(a.status, 101);
        assert_string_equal(test_answer_field(&a, "Skerry-Instance"), owner(n)->id.text);
        test_answer_free(&a);
        test_client_send(&c, "ping");
        shutdown(c.fd, SHUT_WR);
        assert_true(test_client_at_end(&c, NULL));
        assert_int_equal(c.length, strlen("helloearly ping"));
        assert_memory_equal(c.data, "helloearly ping", c.length);
        test_client_close(&c);
        wait_until(slot_joiners(owner(n)->slot) == 0);
        gateway_expect_body(entry(n), GET("/w/web/"), "ok");
    }
    assert_int_equal(counters_of(entry(n)).streams_connects, 1);
}

static void code_may_close_after_each_answer(void **state)
{
    struct gateway_nodes *n = *state;
    for (int i = 0; i < 20; i++)
        gateway_expect_body(entry(n), GET("/w/web/close-after"), "ok");
    assert_int_equal(counters_of(entry(n)).streams_connects, 1);
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

/* --- much ------------------------------------------------------------------------------------------- */

static size_t resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long size = 0, resident = 0;
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%lu %lu", &size, &resident), 2);
    fclose(f);
    return resident * 4096u;
}

enum { LARGE = 256 * 1024 * 1024, GROWTH_MAX = 24 * 1024 * 1024 };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { BULK = LARGE / 8, MEMORY_TOLD = 0 };
#else
enum { BULK = LARGE, MEMORY_TOLD = 1 };
#endif

static void a_large_download_takes_no_memory(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    char request[128];
    char *piece = malloc(1 << 20);
    gateway_expect_body(entry(n), GET("/w/web/"), "ok");
    size_t before = resident_bytes(), got = 0;
    test_client_open(&c, entry(n));
    text_format(request, sizeof request, "GET /w/web/size/%u HTTP/1.1\r\n" HOST "\r\n",
                (unsigned)BULK);
    test_client_send(&c, request);
    while (got < (size_t)BULK) {
        ssize_t r = recv(c.fd, piece, 1 << 20, 0);
        assert_true(r > 0);
        got += (size_t)r;
    }
    if (MEMORY_TOLD)
        assert_in_range(resident_bytes() - before, 0, GROWTH_MAX);
    test_client_close(&c);
    free(piece);
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

static void *send_bulk(void *argument)
{
    struct test_client *c = argument;
    char *piece = calloc(1, 1 << 20);
    for (size_t i = 0; i < (size_t)BULK >> 20; i++)
        test_client_send_bytes(c, piece, 1 << 20);
    free(piece);
    return NULL;
}

static void a_large_upload_takes_no_memory(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    struct test_answer a;
    char request[160];
    pthread_t thread;
    size_t before = resident_bytes();
    test_client_open(&c, entry(n));
    text_format(request, sizeof request,
                "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: %u\r\n\r\n", (unsigned)BULK);
    test_client_send(&c, request);
    pthread_create(&thread, NULL, send_bulk, &c);
    test_client_read(&c, &a, false);
    pthread_join(thread, NULL);
    assert_int_equal(a.status, 200);
    assert_true(owner(n)->backend_body_bytes == BULK);
    if (MEMORY_TOLD)
        assert_in_range(resident_bytes() - before, 0, GROWTH_MAX);
    test_answer_free(&a);
    test_client_close(&c);
}

static void a_client_that_does_not_read_stops_the_code(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    char byte;
    test_client_open(&c, entry(n));
    size_t before = resident_bytes();
    test_client_send(&c, GET("/w/web/size/2000000000"));
    assert_int_equal(recv(c.fd, &byte, 1, 0), 1);
    for (int i = 0; i < 700; i++)
        gateway_fixture_pause();
    if (MEMORY_TOLD)
        assert_in_range(resident_bytes() - before, 0, GROWTH_MAX);
    assert_int_equal(slot_joiners(owner(n)->slot), 1);
    test_client_close(&c);
    wait_until(slot_joiners(owner(n)->slot) == 0);
    wait_until(owner(n)->backend_inside == 0);
}

enum { CROWD = 200 };

static void *join_often(void *argument)
{
    struct gateway_fixture *f = argument;
    struct test_client c;
    unsigned served = 0;
    test_client_open(&c, f);
    for (int i = 0; i < 10; i++) {
        struct test_answer a;
        test_client_send(&c, GET("/w/web/"));
        test_client_read(&c, &a, false);
        served += a.status == 200;
        if (a.status != 200 && a.status != 503)
            fail_msg("%s%s", a.head, a.body);
        test_answer_free(&a);
    }
    test_client_close(&c);
    return (void *)(uintptr_t)served;
}

static void places_are_counted_exactly_in_a_crowd(void **state)
{
    struct gateway_nodes *n = *state;
    pthread_t threads[CROWD];
    unsigned served = 0;
    for (int i = 0; i < CROWD; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, join_often, entry(n)), 0);
    for (int i = 0; i < CROWD; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        served += (unsigned)(uintptr_t)result;
    }
    assert_in_range(served, CROWD, CROWD * 10);
    assert_in_range(owner(n)->backend_inside_most, 2, 40);
    assert_in_range(atomic_load(&owner(n)->slot.slot->joiners_peak), 2, 40);
    wait_until(slot_joiners(owner(n)->slot) == 0);
    assert_true(atomic_load(&owner(n)->slot.slot->joins) == served);
    gateway_expect_body(entry(n), GET("/w/web/"), "ok");
}

#define TEST(test, start) cmocka_unit_test_setup_teardown(test, start, gateway_nodes_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_join_travels_to_the_owner, start_two),
        TEST(the_code_sees_the_client_and_not_the_way, start_two),
        TEST(one_stream_and_one_connection_serve_one_after_another, start_two),
        TEST(local_places_come_first, start_two),
        TEST(a_forced_join_goes_to_the_ids_owner, start_two),
        TEST(an_unknown_instance_of_another_node_is_asked_for, start_two),
        TEST(control_says_where_a_cold_one_starts, start_two),
        TEST(a_key_travels_to_its_holder, start_two),
        TEST(a_full_owner_leads_to_the_next, start_three_small),
        TEST(the_less_loaded_owner_is_tried_first, start_three_small),
        TEST(every_framing_arrives, start_two),
        TEST(informational_answers_and_continue_pass, start_two),
        TEST(pieces_are_passed_on_at_once, start_two),
        TEST(upgrades_become_tunnels, start_two),
        TEST(code_may_close_after_each_answer, start_two),
        TEST(a_large_download_takes_no_memory, start_two),
        TEST(a_large_upload_takes_no_memory, start_two),
        TEST(a_client_that_does_not_read_stops_the_code, start_two),
        TEST(places_are_counted_exactly_in_a_crowd, start_two_threads),
    };
    return cmocka_run_group_tests_name("gateway_forward", tests, NULL, NULL);
}
