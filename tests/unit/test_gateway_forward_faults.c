#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/record.h"
#include "gateway/travel_block.h"
#include "tests/lib/gateway_nodes.h"

/* Joins that travel, when something is wrong: owners that die, code that breaks, clients that leave,
 * peers that lie. */

static int start_nodes(void **state, const struct gateway_nodes_options *options)
{
    struct gateway_nodes *n = malloc(sizeof *n);
    gateway_nodes_start(n, options);
    *state = n;
    return 0;
}

/* Others look at what happens while it is waited for an owner (test_gateway_away.c). */
enum { OWNER_WAIT_MS = 200 };

static int start_two(void **state)
{
    return start_nodes(state, &(struct gateway_nodes_options){
                                  .count = 2, .fixture = {.owner_wait_ms = OWNER_WAIT_MS}});
}

static int start_three(void **state)
{
    return start_nodes(state, &(struct gateway_nodes_options){.count = 3});
}

static int start_strict(void **state)
{
    return start_nodes(state, &(struct gateway_nodes_options){.count = 2,
                                                              .fixture = {.max_joiners = 1,
                                                                          .first_byte_ms = 150,
                                                                          .stream_idle_ms = 150,
                                                                          .body_timeout_ms = 150}});
}

static int start_one_at_a_time(void **state)
{
    return start_nodes(state, &(struct gateway_nodes_options){
                                  .count = 2, .fixture = {.threads = 2, .one_at_a_time = true}});
}

static void expect_problem_with(struct gateway_fixture *f, const char *request, unsigned status,
                                const char *code, const char *member)
{
    struct test_answer a;
    gateway_fixture_get(f, &a, request);
    gateway_assert_problem(&a, status, code);
    if (strstr(a.body, member) == NULL)
        fail_msg("no %s in %s", member, a.body);
    test_answer_free(&a);
}

/* --- owners that are gone --------------------------------------------------------------------------- */

static void a_dead_owner_of_a_forced_join_is_named(void **state)
{
    struct gateway_nodes *n = *state;
    char request[200];
    text_format(request, sizeof request, "GET /i/%s/ HTTP/1.1\r\n" HOST "\r\n", owner(n)->id.text);
    gateway_nodes_kill(n, 1);
    uint64_t begin_ms = clock_monotonic_ms();
    expect_problem_with(entry(n), request, 503, "owner_unreachable", "\"ran\":\"no\"");
    assert_in_range(clock_monotonic_ms() - begin_ms, 0, 1500 + OWNER_WAIT_MS);
}

static void a_dead_owner_leads_to_the_next(void **state)
{
    struct gateway_nodes *n = *state;
    gateway_nodes_kill(n, 1);
    for (int i = 0; i < 10; i++)
        gateway_expect_body(entry(n),
                            "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nxx", "ok");
    gateway_nodes_kill(n, 2);
    gateway_expect_problem(entry(n), GET("/w/web/"), 503, "node_full"); /* control's word */
}

static void control_is_asked_again_and_told_who_refused(void **state)
{
    struct gateway_nodes *n = *state;
    n->no_owners = true;
    n->sent_to = 2;
    gateway_nodes_kill(n, 1);
    gateway_expect_problem(entry(n), GET("/w/web/"), 503, "node_full");
    assert_int_equal(n->asks, 2);
    assert_int_equal(n->refused_seen, 2);
}

/* Streams that idled at the entry are of the owner's life before. */
static void an_owner_that_came_back_is_reached_anew(void **state)
{
    struct gateway_nodes *n = *state;
    for (int i = 0; i < 3; i++) {
        gateway_expect_body(entry(n), GET("/w/web/"), "ok");
        gateway_nodes_kill(n, 1);
        gateway_nodes_revive(n, 1);
        gateway_expect_body(entry(n),
                            "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nxx", "ok");
        wait_until(slot_joiners(owner(n)->slot) == 0);
    }
}

struct killer {
    struct gateway_nodes *n;
    struct test_answer a;
    bool posts;
};

static void *ask_and_wait(void *argument)
{
    struct killer *k = argument;
    gateway_fixture_get(entry(k->n), &k->a,
                        k->posts ? "POST /w/web/hold HTTP/1.1\r\n" HOST
                                   "Content-Length: 2\r\n\r\nxx"
                                 : GET("/w/web/hold"));
    return NULL;
}

static void an_owner_that_dies_before_an_answer(void **state)
{
    struct gateway_nodes *n = *state;
    pthread_t thread;
    /* What may have run once is not sent again ... */
    struct killer k = {.n = n, .posts = true};
    n->nodes[2].load = 2000;
    n->nodes[1].load = n->nodes[2].load = 0;
    owner(n)->backend_hold = n->nodes[2].f.backend_hold = true;
    pthread_create(&thread, NULL, ask_and_wait, &k);
    wait_until(owner(n)->backend_inside + n->nodes[2].f.backend_inside == 1);
    unsigned on = owner(n)->backend_inside == 1 ? 1 : 2;
    gateway_nodes_kill(n, on);
    pthread_join(thread, NULL);
    gateway_assert_problem(&k.a, 503, "owner_unreachable");
    assert_non_null(strstr(k.a.body, "\"ran\":\"maybe\""));
    test_answer_free(&k.a);
    /* ... but an idempotent request finds another owner. */
    gateway_nodes_revive(n, on);
    k = (struct killer){.n = n};
    owner(n)->backend_hold = n->nodes[2].f.backend_hold = true;
    pthread_create(&thread, NULL, ask_and_wait, &k);
    wait_until(owner(n)->backend_inside + n->nodes[2].f.backend_inside == 1);
    on = owner(n)->backend_inside == 1 ? 1 : 2;
    n->nodes[3 - on].f.backend_hold = false;
    gateway_nodes_kill(n, on);
    pthread_join(thread, NULL);
    assert_int_equal(k.a.status, 200);
    test_answer_free(&k.a);
}

static void an_owner_that_dies_within_an_answer(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    struct test_answer a;
    owner(n)->backend_hold = true;
    test_client_open(&c, entry(n));
    test_client_send(&c, GET("/w/web/stream"));
    wait_until(owner(n)->backend_inside == 1);
    struct gateway_counters counters;
    wait_until((gateway_counters(entry(n)->gateway, &counters), counters.bytes_out > 0));
    gateway_nodes_kill(n, 1);
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    assert_true(a.broken);
    test_answer_free(&a);
    test_client_close(&c);
}

static bool answers_with(struct gateway_fixture *f, unsigned status)
{
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/web/"));
    bool same = a.status == status;
    test_answer_free(&a);
    return same;
}

static void a_draining_owner_refuses_and_ends_its_streams(void **state)
{
    struct gateway_nodes *n = *state;
    gateway_expect_body(entry(n), GET("/w/web/"), "ok");
    gateway_drain(owner(n)->gateway);
    wait_until(answers_with(entry(n), 503)); /* its threads hear of it a moment later */
    for (int i = 0; i < 5; i++) /* what was not read there is surely safe to send again */
        gateway_expect_problem(entry(n),
                               "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\nxx", 503,
                               "node_full");
}

/* --- code that breaks ------------------------------------------------------------------------------- */

static void malformed_answers_are_named(void **state)
{
    struct gateway_nodes *n = *state;
    static const char *const paths[] = {"bare-lf",   "garbage", "two-lengths", "both",
                                        "half-head", "nothing", "101"};
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        char request[128];
        text_format(request, sizeof request, "GET /w/web/raw/%s HTTP/1.1\r\n" HOST "\r\n",
                    paths[i]);
        gateway_expect_problem(entry(n), request, 502, "instance_bad_answer");
    }
    gateway_expect_problem(entry(n),
                           "POST /w/web/reset HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx", 502,
                           "instance_bad_answer");
    wait_until(slot_joiners(owner(n)->slot) == 0);
    gateway_expect_body(entry(n), GET("/w/web/"), "ok");
}

static void a_cut_answer_never_ends_cleanly(void **state)
{
    struct gateway_nodes *n = *state;
    static const char *const paths[] = {"short", "bad-chunk", "half-chunk"};
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
        char request[128];
        struct test_answer a;
        text_format(request, sizeof request, "GET /w/web/raw/%s HTTP/1.1\r\n" HOST "\r\n",
                    paths[i]);
        gateway_fixture_get(entry(n), &a, request);
        assert_int_equal(a.status, 200);
        assert_true(a.broken);
        test_answer_free(&a);
    }
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

static void *end_by_memory(void *argument)
{
    struct gateway_fixture *f = argument;
    wait_until(f->backend_inside == 1);
    gateway_fixture_end_instance(f, END_OOM);
    f->backend_hold = false;
    return NULL;
}

static void an_end_by_memory_is_told_over_the_wire(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_answer a;
    pthread_t thread;
    owner(n)->backend_hold = true;
    pthread_create(&thread, NULL, end_by_memory, owner(n));
    /* It holds, and then closes without an answer. */
    gateway_fixture_get(entry(n), &a,
                        "POST /w/web/never-read HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx");
    pthread_join(thread, NULL);
    gateway_assert_problem(&a, 503, "instance_oom");
    assert_non_null(strstr(a.body, "\"reason\":\"oom\""));
    assert_non_null(strstr(a.body, "\"ran\":\"yes\""));
    assert_non_null(strstr(a.body, owner(n)->id.text));
    test_answer_free(&a);
}

static void code_that_takes_no_connection_is_named(void **state)
{
    struct gateway_nodes *n = *state;
    pthread_mutex_lock(&owner(n)->mutex);
    owner(n)->refuse_sockets = true;
    pthread_mutex_unlock(&owner(n)->mutex);
    char request[200];
    text_format(request, sizeof request, "GET /i/%s/ HTTP/1.1\r\n" HOST "\r\n", owner(n)->id.text);
    expect_problem_with(entry(n), request, 502, "instance_unreachable", "\"ran\":\"no\"");
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

/* The owner's threads hold connections that idle, each of which such code would serve for ever. */
static void code_that_serves_one_connection_is_found_out(void **state)
{
    struct gateway_nodes *n = *state;
    for (int i = 0; i < 10; i++)
        gateway_expect_body(entry(n), GET("/w/web/"), "ok");
    uint64_t begin_ms = clock_monotonic_ms();
    for (int i = 0; i < 10; i++)
        gateway_expect_body(entry(n), GET("/w/web/"), "ok");
    assert_in_range(clock_monotonic_ms() - begin_ms, 0, 3000);
}

static void times_are_the_entrys(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    struct test_answer a;
    owner(n)->backend_hold = true;
    gateway_expect_problem(entry(n), GET("/w/web/hold"), 504, "first_byte_timeout");
    wait_until(slot_joiners(owner(n)->slot) == 0);
    wait_until(owner(n)->backend_inside == 0);
    owner(n)->backend_hold = true;
    gateway_fixture_get(entry(n), &a, GET("/w/web/stream"));
    assert_int_equal(a.status, 200);
    assert_true(a.broken);
    test_answer_free(&a);
    wait_until(slot_joiners(owner(n)->slot) == 0);
    test_client_open(&c, entry(n)); /* its body stops */
    test_client_send(&c, "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\n12345");
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 408, "body_timeout");
    test_answer_free(&a);
    test_client_close(&c);
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

/* --- clients that leave ----------------------------------------------------------------------------- */

static void a_client_that_leaves_frees_its_place(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    owner(n)->backend_hold = true;
    test_client_open(&c, entry(n));
    test_client_send(&c, GET("/w/web/hold"));
    wait_until(owner(n)->backend_inside == 1);
    assert_int_equal(slot_joiners(owner(n)->slot), 1);
    assert_int_equal(gateway_connections(owner(n)->gateway), 1); /* a drain waits for it */
    test_client_close(&c);
    wait_until(slot_joiners(owner(n)->slot) == 0);
    wait_until(owner(n)->backend_inside == 0);
    wait_until(gateway_connections(owner(n)->gateway) == 0);
}

static void and_so_does_one_whose_bytes_nobody_reads(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    char *piece = calloc(1, 1 << 20);
    test_client_open(&c, entry(n));
    test_client_send(&c, "POST /w/web/never-read HTTP/1.1\r\n" HOST
                         "Content-Length: 1000000000\r\n\r\n");
    size_t sent = 0;
    unsigned idle = 0;
    while (idle < 300) {
        ssize_t r = send(c.fd, piece, 1 << 20, MSG_DONTWAIT | MSG_NOSIGNAL);
        idle = r > 0 ? 0 : idle + 1;
        sent += r > 0 ? (size_t)r : 0;
        gateway_fixture_pause();
    }
    assert_in_range(sent, 1, 60u * 1024 * 1024); /* what kernel buffers hold on six sockets */
    assert_int_equal(slot_joiners(owner(n)->slot), 1);
    /* With a reset: a FIN would stand in line behind what nobody reads. */
    struct linger reset = {.l_onoff = 1};
    assert_int_equal(setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
    test_client_close(&c);
    wait_until(slot_joiners(owner(n)->slot) == 0);
    free(piece);
}

/* --- a peer that lies ------------------------------------------------------------------------------- */

/* A stream to node 2 by hand, as node 3, on a loop of its own. */
struct liar {
    struct secure_world *world;
    uv_loop_t loop;
    uv_timer_t tick;
    struct secure_stream *stream;
    char in[4096];
    size_t length;
    bool opened, over, failed;
};

static void liar_opened(struct secure_stream *s, const struct err *error)
{
    struct liar *l = secure_stream_user(s);
    l->opened = error == NULL;
    l->failed = error != NULL;
}

static void liar_ready(struct secure_stream *s, bool readable, bool writable)
{
    struct liar *l = secure_stream_user(s);
    size_t n = 0;
    (void)readable, (void)writable;
    enum secure_result result =
        secure_stream_read(s, l->in + l->length, sizeof l->in - l->length, &n);
    l->length += n;
    if (result == SECURE_END || result == SECURE_BROKEN) {
        l->over = true;
        secure_stream_want(s, 0);
    }
}

static void tick_cb(uv_timer_t *timer)
{
    (void)timer;
}

#define liar_wait(l, condition)                                                                    \
    do {                                                                                           \
        uint64_t end_ = clock_monotonic_ms() + 20000;                                              \
        while (!(condition) && clock_monotonic_ms() < end_)                                        \
            uv_run(&(l)->loop, UV_RUN_ONCE);                                                       \
        assert_true(condition);                                                                    \
    } while (0)

static void liar_open(struct liar *l, struct gateway_nodes *n)
{
    struct err e;
    memset(l, 0, sizeof *l);
    assert_int_equal(uv_loop_init(&l->loop), 0);
    uv_timer_init(&l->loop, &l->tick);
    uv_timer_start(&l->tick, tick_cb, 5, 5);
    struct secure_connect_options options = {.context = n->world.contexts[3],
                                             .address = &n->nodes[1].address,
                                             .protocol = SECURE_JOIN,
                                             .peer = 2,
                                             .events = {liar_opened, liar_ready},
                                             .user = l};
    assert_int_equal(secure_stream_connect(&l->stream, &l->loop, &options, &e), 0);
    liar_wait(l, l->opened);
    secure_stream_want(l->stream, SECURE_WANT_READ);
}

static void liar_send(struct liar *l, const void *data, size_t size)
{
    struct iovec part = {(void *)(uintptr_t)data, size};
    size_t written = 0;
    assert_int_not_equal(secure_stream_write(l->stream, &part, 1, &written), SECURE_BROKEN);
}

static void liar_send_ask(struct liar *l, const struct travel_ask *ask)
{
    uint8_t block[TRAVEL_BLOCK_BYTES_MAX], header[RECORD_HEADER_BYTES];
    size_t size = travel_ask_write(ask, block);
    record_header(header, RECORD_HEAD, size);
    liar_send(l, header, sizeof header);
    liar_send(l, block, size);
}

static void liar_send_data(struct liar *l, const char *text)
{
    uint8_t header[RECORD_HEADER_BYTES];
    record_header(header, RECORD_DATA, strlen(text));
    liar_send(l, header, sizeof header);
    liar_send(l, text, strlen(text));
}

static void liar_send_end(struct liar *l, enum record_end how)
{
    uint8_t end[RECORD_END_BYTES];
    record_end(end, how);
    liar_send(l, end, sizeof end);
}

/* In one piece: between the two the code could end the join, and then the question would be a new one. */
static void liar_send_half_and_ask(struct liar *l, const struct travel_ask *ask)
{
    uint8_t bytes[RECORD_END_BYTES + RECORD_HEADER_BYTES + TRAVEL_BLOCK_BYTES_MAX];
    uint8_t *block = bytes + RECORD_END_BYTES + RECORD_HEADER_BYTES;
    size_t size = travel_ask_write(ask, block);
    record_end(bytes, RECORD_END_HALF);
    record_header(bytes + RECORD_END_BYTES, RECORD_HEAD, size);
    liar_send(l, bytes, RECORD_END_BYTES + RECORD_HEADER_BYTES + size);
}

static void liar_close(struct liar *l)
{
    secure_stream_abort(l->stream, NULL);
    uv_close((uv_handle_t *)&l->tick, NULL);
    assert_int_equal(uv_run(&l->loop, UV_RUN_DEFAULT), 0);
    assert_int_equal(uv_loop_close(&l->loop), 0);
}

static struct travel_ask honest(void)
{
    struct travel_ask ask = {.mode = TRAVEL_TRY, .hops = 1, .version = 1};
    text_copy(ask.workload, sizeof ask.workload, "web");
    text_copy(ask.request_id, sizeof ask.request_id, "r-1");
    return ask;
}

/* The first record that came back, whole. */
static struct travel_answer liar_answer(struct liar *l)
{
    struct travel_answer answer;
    liar_wait(l, l->length >= 4 &&
                     l->length >= 4 + ((size_t)(uint8_t)l->in[2] << 8 | (uint8_t)l->in[3]));
    size_t size = (size_t)(uint8_t)l->in[2] << 8 | (uint8_t)l->in[3];
    assert_int_equal(l->in[0], RECORD_HEAD);
    assert_true(travel_answer_read(&answer, l->in + 4, size));
    return answer;
}

static void nonsense_closes_the_stream_and_nothing_else(void **state)
{
    struct gateway_nodes *n = *state;
    static const struct {
        const char *bytes;
        size_t size;
    } bad[] = {
        {"GET / HTTP/1.1\r\n\r\n", 18},
        {"\0\0\0\0", 4},
        {"\2\0\0\1x", 5},
        {"\1\0\0\4abcd", 8},
        {"\5\0\0\1\1", 5},
        {"\1\377\377\377", 4},
        {"\1\0\0\1\0\1\0\0\1\0", 10},
        {"\6\0\0\4\0\0\0\1", 8},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct liar l;
        liar_open(&l, n);
        liar_send(&l, bad[i].bytes, bad[i].size);
        liar_wait(&l, l.over);
        liar_close(&l);
    }
    gateway_expect_body(entry(n), GET("/w/web/"), "ok");
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

static void records_out_of_place_close_the_stream(void **state)
{
    struct gateway_nodes *n = *state;
    struct travel_ask ask = honest();
    struct liar l;
    liar_open(&l, n); /* an END before the answer */
    ask.mode = TRAVEL_START;
    owner(n)->backend_hold = true;
    liar_send_ask(&l, &ask);
    liar_send_end(&l, RECORD_END_KEEP);
    liar_wait(&l, l.over);
    liar_close(&l);
    wait_until(slot_joiners(owner(n)->slot) == 0);
    liar_open(&l, n); /* a second question within a join */
    liar_send_ask(&l, &ask);
    liar_send_ask(&l, &ask);
    liar_wait(&l, l.over);
    liar_close(&l);
    wait_until(slot_joiners(owner(n)->slot) == 0);
    liar_open(&l, n); /* another behind half an end */
    liar_send_ask(&l, &ask);
    liar_send_data(&l, "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_true(liar_answer(&l).granted);
    liar_send_half_and_ask(&l, &ask);
    liar_wait(&l, l.over);
    liar_close(&l);
    wait_until(slot_joiners(owner(n)->slot) == 0);
    owner(n)->backend_hold = false;
}

static void a_join_travels_once(void **state)
{
    struct gateway_nodes *n = *state;
    struct travel_ask ask = honest();
    struct travel_answer answer;
    struct liar l;
    liar_open(&l, n);
    ask.hops = 2;
    liar_send_ask(&l, &ask);
    answer = liar_answer(&l);
    assert_false(answer.granted);
    assert_int_equal(answer.problem, PROBLEM_OWNER_UNREACHABLE);
    assert_int_equal(answer.ran, RAN_NO);
    liar_close(&l);
    liar_open(&l, n); /* nor to another's instance */
    ask = honest();
    ask.mode = TRAVEL_FORCED;
    ask.instance = entry(n)->id;
    liar_send_ask(&l, &ask);
    answer = liar_answer(&l);
    assert_false(answer.granted);
    assert_int_equal(answer.problem, PROBLEM_OWNER_UNREACHABLE);
    liar_close(&l);
    liar_open(&l, n); /* nor what is not joined */
    ask = honest();
    text_copy(ask.workload, sizeof ask.workload, "job");
    liar_send_ask(&l, &ask);
    answer = liar_answer(&l);
    assert_int_equal(answer.problem, PROBLEM_CONFLICT);
    liar_close(&l);
    liar_open(&l, n);
    text_copy(ask.workload, sizeof ask.workload, "nothing");
    liar_send_ask(&l, &ask);
    answer = liar_answer(&l);
    assert_int_equal(answer.problem, PROBLEM_WORKLOAD_UNKNOWN);
    liar_close(&l);
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

static void a_peer_that_sends_without_end_is_not_read(void **state)
{
    struct gateway_nodes *n = *state;
    struct travel_ask ask = honest();
    struct liar l;
    char *piece = calloc(1, 65536);
    size_t sent = 0;
    unsigned idle = 0;
    liar_open(&l, n);
    liar_send_ask(&l, &ask);
    liar_send_data(&l, "POST /never-read HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n");
    while (idle < 200) {
        uint8_t header[RECORD_HEADER_BYTES];
        record_header(header, RECORD_DATA, 65536);
        struct iovec parts[2] = {{header, sizeof header}, {piece, 65536}};
        size_t written = 0;
        if (secure_stream_pending(l.stream) == 0) {
            (void)secure_stream_write(l.stream, parts, 2, &written);
            idle = 0;
        }
        idle++;
        sent += written;
        assert_in_range(sent, 0, 60u * 1024 * 1024);
        uv_run(&l.loop, UV_RUN_NOWAIT);
        gateway_fixture_pause();
    }
    assert_int_equal(slot_joiners(owner(n)->slot), 1);
    liar_close(&l);
    free(piece);
    wait_until(slot_joiners(owner(n)->slot) == 0);
}

static void a_node_that_was_removed_loses_its_streams(void **state)
{
    struct gateway_nodes *n = *state;
    struct liar l;
    liar_open(&l, n);
    n->world.removed[3] = true;
    liar_wait(&l, l.over);
    liar_close(&l);
    n->world.removed[3] = false;
}

/* At the entry, of an owner that goes on answering; at once, not when its streams are looked at next. */
static void a_join_ends_when_its_owner_is_removed(void **state)
{
    struct gateway_nodes *n = *state;
    struct test_client c;
    struct test_answer a;
    owner(n)->backend_hold = true;
    test_client_open(&c, entry(n));
    test_client_send(&c, GET("/w/web/stream"));
    struct gateway_counters counters;
    wait_until((gateway_counters(entry(n)->gateway, &counters), counters.bytes_out > 0));
    n->world.removed[2] = true;
    uint64_t begun_ms = clock_monotonic_ms();
    gateway_review(entry(n)->gateway);
    test_client_read(&c, &a, false);
    assert_true(a.broken);
    assert_true(clock_monotonic_ms() - begun_ms < 900); /* the sweep's second */
    n->world.removed[2] = false;
    test_answer_free(&a);
    test_client_close(&c);
}

#define TEST(test, start) cmocka_unit_test_setup_teardown(test, start, gateway_nodes_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_dead_owner_of_a_forced_join_is_named, start_two),
        TEST(a_dead_owner_leads_to_the_next, start_three),
        TEST(control_is_asked_again_and_told_who_refused, start_two),
        TEST(an_owner_that_came_back_is_reached_anew, start_two),
        TEST(an_owner_that_dies_before_an_answer, start_three),
        TEST(an_owner_that_dies_within_an_answer, start_two),
        TEST(a_draining_owner_refuses_and_ends_its_streams, start_two),
        TEST(malformed_answers_are_named, start_two),
        TEST(a_cut_answer_never_ends_cleanly, start_two),
        TEST(an_end_by_memory_is_told_over_the_wire, start_two),
        TEST(code_that_takes_no_connection_is_named, start_two),
        TEST(code_that_serves_one_connection_is_found_out, start_one_at_a_time),
        TEST(times_are_the_entrys, start_strict),
        TEST(a_client_that_leaves_frees_its_place, start_two),
        TEST(and_so_does_one_whose_bytes_nobody_reads, start_two),
        TEST(nonsense_closes_the_stream_and_nothing_else, start_two),
        TEST(records_out_of_place_close_the_stream, start_two),
        TEST(a_join_travels_once, start_two),
        TEST(a_peer_that_sends_without_end_is_not_read, start_two),
        TEST(a_node_that_was_removed_loses_its_streams, start_two),
        TEST(a_join_ends_when_its_owner_is_removed, start_two),
    };
    return cmocka_run_group_tests_name("gateway_forward_faults", tests, NULL, NULL);
}
