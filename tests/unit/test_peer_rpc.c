#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>
#include <string.h>
#include <unistd.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/peer_rpc.h"
#include "node/cluster/peer_seal.h"

enum { NODES = 4, BYTES_MAX = 100000, WAIT_MS = 10000, KEPT_MAX = 64 };

struct world;

struct node_end {
    struct world *w;
    node_id id;
    struct peer_rpc *rpc;
    struct sockaddr_storage address;
    unsigned asked;
    bool keep; /* questions wait in `kept` */
    bool drop;
    struct peer_question *kept[KEPT_MAX];
    unsigned kept_count;
    bool closed;
};

struct world {
    uv_loop_t loop;
    struct identity *identities[NODES + 1];
    struct node_end ends[NODES + 1];
    bool removed[NODES + 1];
};

/* --- a small cluster ------------------------------------------------------------------------------ */

static bool key_of(void *user, node_id id, struct identity_public *out)
{
    struct world *w = ((struct node_end *)user)->w;
    if (id == 0 || id >= NODES || w->removed[id]) /* 4 is a stranger */
        return false;
    *out = *identity_public(w->identities[id]);
    return true;
}

static bool address_of(void *user, node_id id, struct sockaddr_storage *out)
{
    struct world *w = ((struct node_end *)user)->w;
    if (id == 0 || id > NODES || w->ends[id].address.ss_family == 0)
        return false;
    *out = w->ends[id].address;
    return true;
}

/* Answers "<payload>!". */
static void answer(struct peer_question *q)
{
    size_t size = 0;
    const uint8_t *payload = peer_question_payload(q, &size);
    uint8_t *text = malloc(size + 1);
    if (size > 0)
        memcpy(text, payload, size);
    text[size] = '!';
    peer_question_answer(q, text, size + 1);
    free(text);
}

static void asked_cb(void *user, struct peer_question *q)
{
    struct node_end *end = user;
    end->asked++;
    assert_int_equal(peer_question_what(q), 9);
    if (end->keep && end->kept_count < KEPT_MAX)
        end->kept[end->kept_count++] = q;
    else if (end->drop)
        peer_question_drop(q);
    else
        answer(q);
}

static void start(struct world *w, node_id id, uint64_t boot, const char *address)
{
    struct node_end *end = &w->ends[id];
    struct err e;
    end->w = w;
    end->id = id;
    end->closed = false;
    assert_int_equal(address_parse(&end->address, address, 0, &e), 0);
    struct peer_rpc_options options = {.identity = w->identities[id],
                                       .id = id,
                                       .boot = boot,
                                       .address = &end->address,
                                       .key_of = key_of,
                                       .address_of = address_of,
                                       .asked = asked_cb,
                                       .user = end,
                                       .questions_max = 16,
                                       .calls_max = 1000,
                                       .bytes_max = BYTES_MAX};
    if (peer_rpc_open(&end->rpc, &w->loop, &options, &e) != 0)
        fail_msg("%s", e.msg);
}

static void closed_cb(void *user)
{
    ((struct node_end *)user)->closed = true;
}

static void timeout_cb(uv_timer_t *timer)
{
    (void)timer;
}

static void timer_closed_cb(uv_handle_t *handle)
{
    *(bool *)handle->data = true;
}

static bool wait_until(struct world *w, bool (*done)(void *user), void *user)
{
    uv_timer_t timer;
    bool closed = false;
    uint64_t until_ms = clock_monotonic_ms() + WAIT_MS;
    uv_timer_init(&w->loop, &timer);
    uv_timer_start(&timer, timeout_cb, 5, 5);
    while (!done(user) && clock_monotonic_ms() < until_ms)
        uv_run(&w->loop, UV_RUN_ONCE);
    timer.data = &closed;
    uv_close((uv_handle_t *)&timer, timer_closed_cb);
    while (!closed)
        uv_run(&w->loop, UV_RUN_NOWAIT);
    return done(user);
}

static bool end_closed(void *user)
{
    return ((struct node_end *)user)->closed;
}

static void stop(struct world *w, node_id id)
{
    struct node_end *end = &w->ends[id];
    peer_rpc_close(end->rpc, closed_cb);
    end->rpc = NULL;
    end->kept_count = 0;
    assert_true(wait_until(w, end_closed, end));
}

/* Ports of this test alone: 17600 and up, by process. */
static const char *address_at(unsigned host)
{
    static char text[ADDRESS_TEXT_SIZE];
    (void)text_format(text, sizeof text, "127.0.7.%u:%d", host, 17600 + (int)(getpid() % 1000));
    return text;
}

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct err e;
    assert_int_equal(uv_loop_init(&w->loop), 0);
    for (node_id id = 1; id <= NODES; id++)
        assert_int_equal(identity_new(&w->identities[id], &e), 0);
    start(w, 1, 11, address_at(1));
    start(w, 2, 22, address_at(2));
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    for (node_id id = 1; id <= NODES; id++) {
        if (w->ends[id].rpc != NULL)
            stop(w, id);
        identity_free(w->identities[id]);
    }
    assert_int_equal(uv_run(&w->loop, UV_RUN_DEFAULT), 0);
    assert_int_equal(uv_loop_close(&w->loop), 0);
    free(w);
    return 0;
}

/* --- calls ---------------------------------------------------------------------------------------- */

struct asking {
    bool ended, maybe_heard;
    enum err_code code;
    char text[200];
    size_t size;
};

static void answered_cb(void *user, const struct peer_answer *a)
{
    struct asking *asking = user;
    assert_false(asking->ended);
    asking->ended = true;
    if (a->error != NULL) {
        asking->code = a->error->code;
        asking->maybe_heard = a->maybe_heard;
        return;
    }
    asking->size = a->size;
    if (a->size < sizeof asking->text)
        memcpy(asking->text, a->payload, a->size);
}

static int try_ask(struct world *w, struct asking *asking, node_id to, const void *payload,
                   size_t size, unsigned timeout_ms, struct err *e)
{
    *asking = (struct asking){.ended = false};
    struct peer_call call = {.to = to,
                             .what = 9,
                             .payload = payload,
                             .size = size,
                             .timeout_ms = timeout_ms,
                             .answered = answered_cb,
                             .user = asking};
    return peer_rpc_call(w->ends[1].rpc, &call, e);
}

static void ask(struct world *w, struct asking *asking, node_id to, const char *text,
                unsigned timeout_ms)
{
    struct err e;
    if (try_ask(w, asking, to, text, strlen(text), timeout_ms, &e) != 0)
        fail_msg("%s", e.msg);
}

static bool has_ended(void *user)
{
    return ((struct asking *)user)->ended;
}

static uint64_t refused(struct world *w, node_id at, enum peer_seal_refusal why)
{
    return refusals_count(peer_rpc_refusals(w->ends[at].rpc), why);
}

static void a_question_is_answered(void **state)
{
    struct world *w = *state;
    struct asking a, b;
    ask(w, &a, 2, "ready?", 5000);
    ask(w, &b, 2, "", 5000);
    assert_true(wait_until(w, has_ended, &a));
    assert_true(wait_until(w, has_ended, &b));
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
    assert_int_equal(try_ask(w, &a, 2, large, BYTES_MAX + 1, 5000, &e), -ERR_LIMIT);
    assert_int_equal(try_ask(w, &a, 2, large, BYTES_MAX - 1, 5000, &e), 0);
    assert_true(wait_until(w, has_ended, &a));
    assert_int_equal(a.code, ERR_OK);
    assert_int_equal(a.size, BYTES_MAX);
    /* An answer that would be too large is dropped. */
    assert_int_equal(try_ask(w, &a, 2, large, BYTES_MAX, 300, &e), 0);
    assert_true(wait_until(w, has_ended, &a));
    assert_int_equal(a.code, ERR_TIMEOUT);
    free(large);
}

static bool has_kept(void *user)
{
    return ((struct node_end *)user)->kept_count > 0;
}

static void an_answer_may_come_later(void **state)
{
    struct world *w = *state;
    struct asking a, b;
    w->ends[2].keep = true;
    ask(w, &a, 2, "first", 5000);
    assert_true(wait_until(w, has_kept, &w->ends[2]));
    w->ends[2].keep = false;
    ask(w, &b, 2, "second", 5000);
    assert_true(wait_until(w, has_ended, &b));
    assert_string_equal(b.text, "second!");
    assert_false(a.ended);
    answer(w->ends[2].kept[0]);
    assert_true(wait_until(w, has_ended, &a));
    assert_string_equal(a.text, "first!");
}

static void no_answer_is_a_timeout_that_may_have_been_heard(void **state)
{
    struct world *w = *state;
    struct asking a;
    w->ends[2].drop = true;
    ask(w, &a, 2, "x", 300);
    assert_true(wait_until(w, has_ended, &a));
    assert_int_equal(a.code, ERR_TIMEOUT);
    assert_true(a.maybe_heard);
    w->ends[2].drop = false;
    ask(w, &a, 2, "y", 5000);
    assert_true(wait_until(w, has_ended, &a));
    assert_string_equal(a.text, "y!");
}

static void nobody_there_was_never_heard(void **state)
{
    struct world *w = *state;
    struct asking a;
    struct err e;
    assert_int_equal(address_parse(&w->ends[3].address, address_at(3), 0, &e), 0);
    ask(w, &a, 3, "x", 200);
    assert_true(wait_until(w, has_ended, &a));
    assert_int_equal(a.code, ERR_TIMEOUT);
    assert_false(a.maybe_heard);
    /* It comes, and the same link finds it. */
    start(w, 3, 33, address_at(3));
    ask(w, &a, 3, "y", 8000);
    assert_true(wait_until(w, has_ended, &a));
    assert_string_equal(a.text, "y!");
}

static void a_peer_that_vanishes_ends_the_call_at_once(void **state)
{
    struct world *w = *state;
    struct asking a;
    w->ends[2].keep = true;
    ask(w, &a, 2, "x", 9000);
    assert_true(wait_until(w, has_kept, &w->ends[2]));
    uint64_t begin_ms = clock_monotonic_ms();
    stop(w, 2);
    assert_true(wait_until(w, has_ended, &a));
    assert_int_equal(a.code, ERR_UNAVAILABLE);
    assert_true(a.maybe_heard);
    assert_true(clock_monotonic_ms() - begin_ms < 5000);
}

static void a_restarted_peer_is_asked_again_by_itself(void **state)
{
    struct world *w = *state;
    struct asking a;
    ask(w, &a, 2, "x", 5000);
    assert_true(wait_until(w, has_ended, &a));
    stop(w, 2);
    w->ends[2].asked = 0;
    start(w, 2, 23, address_at(2));
    /* Until nng has noticed the end of the old connection, a question may still leave by it, and
     * nobody can say what became of that one. */
    uint64_t until_ms = clock_monotonic_ms() + WAIT_MS;
    do {
        ask(w, &a, 2, "y", 8000);
        assert_true(wait_until(w, has_ended, &a));
    } while (a.code == ERR_UNAVAILABLE && clock_monotonic_ms() < until_ms);
    assert_string_equal(a.text, "y!");
    assert_int_equal(w->ends[2].asked, 1);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_LIFE), 1);
}

static void a_moved_peer_is_found(void **state)
{
    struct world *w = *state;
    struct asking a;
    ask(w, &a, 2, "x", 5000);
    assert_true(wait_until(w, has_ended, &a));
    stop(w, 2);
    start(w, 2, 24, address_at(22));
    ask(w, &a, 2, "y", 5000);
    assert_true(wait_until(w, has_ended, &a));
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
        ask(w, &all[i], 2, text, 9000);
    }
    assert_int_equal(try_ask(w, &all[CALLS], 2, "x", 1, 9000, &e), -ERR_LIMIT);
    assert_true(wait_until(w, all_ended, &many));
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
    ask(w, &a, 2, "x", 9000);
    assert_int_equal(address_parse(&w->ends[3].address, address_at(3), 0, &e), 0);
    ask(w, &b, 3, "x", 9000); /* never connected */
    assert_true(wait_until(w, has_kept, &w->ends[2]));
    stop(w, 1);
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
    ask(w, &a, 2, "x", 9000);
    assert_true(wait_until(w, has_kept, &w->ends[2]));
    w->removed[2] = true;
    peer_rpc_forget(w->ends[1].rpc, 2);
    assert_true(wait_until(w, has_ended, &a));
    assert_int_equal(a.code, ERR_UNAVAILABLE);
    assert_int_equal(try_ask(w, &a, 2, "y", 1, 500, &e), -ERR_NOT_FOUND);
    w->removed[2] = false;
    w->removed[1] = true; /* now node 2 does not know node 1 */
    unsigned asked = w->ends[2].asked;
    ask(w, &a, 2, "z", 300);
    assert_true(wait_until(w, has_ended, &a));
    assert_int_equal(a.code, ERR_TIMEOUT);
    assert_int_equal(w->ends[2].asked, asked);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_STRANGER), 1);
}

static bool has_connections(void *user)
{
    const struct node_end *end = user;
    struct peer_rpc_counts counts;
    peer_rpc_counts(end->rpc, &counts);
    return counts.connections_now == 1;
}

static bool has_no_connections(void *user)
{
    return !has_connections(user);
}

/* It may connect again, as any stranger may; what it had is gone. */
static void a_removed_peers_connection_closes(void **state)
{
    struct world *w = *state;
    struct asking a;
    ask(w, &a, 2, "x", 9000);
    assert_true(wait_until(w, has_ended, &a));
    assert_true(wait_until(w, has_connections, &w->ends[2]));
    w->removed[1] = true;
    peer_rpc_forget(w->ends[2].rpc, 1);
    assert_true(wait_until(w, has_no_connections, &w->ends[2]));
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
    assert_int_equal(try_ask(w, &a, 3, "x", 1, 500, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "9.9.9.9:7600"));
    w->ends[3].address = (struct sockaddr_storage){0};
    assert_int_equal(try_ask(w, &a, 3, "x", 1, 500, &e), -ERR_UNAVAILABLE);
    /* An address that is taken. */
    struct node_end *end = &w->ends[1];
    options = (struct peer_rpc_options){.identity = w->identities[1],
                                        .id = 1,
                                        .boot = 1,
                                        .address = &end->address,
                                        .key_of = key_of,
                                        .address_of = address_of,
                                        .asked = asked_cb,
                                        .user = end};
    assert_int_equal(peer_rpc_open(&rpc, &w->loop, &options, &e), -ERR_IO);
}

/* --- who knows no key, or repeats what it saw ----------------------------------------------------- */

struct raw {
    nng_socket socket;
    struct world *w;
};

static void raw_open(struct raw *raw, struct world *w, node_id to)
{
    char address[ADDRESS_TEXT_SIZE], url[ADDRESS_TEXT_SIZE + 8];
    address_format(&w->ends[to].address, address);
    (void)text_format(url, sizeof url, "tcp://%s", address);
    raw->w = w;
    assert_int_equal(nng_req0_open(&raw->socket), 0);
    assert_int_equal(nng_dial(raw->socket, url, NULL, 0), 0);
}

/* Sends, and waits for an answer while the loop turns, half a second where none is expected; its
 * size, or 0. */
static size_t raw_ask(struct raw *raw, const void *bytes, size_t size, bool answered)
{
    nng_msg *m = NULL;
    size_t answer_size = 0;
    uint64_t until_ms = clock_monotonic_ms() + (answered ? WAIT_MS : 500);
    assert_int_equal(nng_msg_alloc(&m, size), 0);
    memcpy(nng_msg_body(m), bytes, size);
    assert_int_equal(nng_sendmsg(raw->socket, m, 0), 0);
    while (clock_monotonic_ms() < until_ms && answer_size == 0) {
        uv_run(&raw->w->loop, UV_RUN_NOWAIT);
        if (nng_recvmsg(raw->socket, &m, NNG_FLAG_NONBLOCK) == 0) {
            answer_size = nng_msg_len(m);
            nng_msg_free(m);
        }
    }
    return answer_size;
}

static void strangers_get_no_answer(void **state)
{
    struct world *w = *state;
    struct raw raw;
    char nonsense[300];
    memset(nonsense, 'x', sizeof nonsense);
    raw_open(&raw, w, 2);
    assert_int_equal(raw_ask(&raw, nonsense, sizeof nonsense, false), 0);
    assert_int_equal(raw_ask(&raw, nonsense, 1, false), 0);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_FORMAT), 2);
    assert_int_equal(w->ends[2].asked, 0);
    (void)nng_close(raw.socket);
}

static void an_oversize_message_harms_its_own_connection_only(void **state)
{
    struct world *w = *state;
    struct raw raw;
    struct asking a;
    w->ends[2].keep = true;
    ask(w, &a, 2, "x", 9000);
    assert_true(wait_until(w, has_kept, &w->ends[2]));
    char *large = calloc(1, 4u * BYTES_MAX);
    raw_open(&raw, w, 2);
    assert_int_equal(raw_ask(&raw, large, 4u * BYTES_MAX, false), 0);
    answer(w->ends[2].kept[0]);
    assert_true(wait_until(w, has_ended, &a));
    assert_string_equal(a.text, "x!");
    (void)nng_close(raw.socket);
    free(large);
}

static void a_recorded_question_is_not_asked_again(void **state)
{
    struct world *w = *state;
    struct raw raw;
    struct peer_seal *sender = NULL;
    struct err e;
    uint8_t bytes[PEER_SEAL_OVERHEAD_BYTES + 3];
    struct peer_seal_options options = {
        .identity = w->identities[3], .id = 3, .boot = 5, .key_of = key_of, .user = &w->ends[1]};
    struct peer_seal_content content = {
        .peer = 2, .kind = PEER_SEAL_ASK, .what = 9, .payload = (const uint8_t *)"pay", .size = 3};
    assert_int_equal(peer_seal_new(&sender, &options, &e), 0);
    raw_open(&raw, w, 2);
    /* Without the boot of node 2 it is told that, and nothing is asked. */
    assert_int_equal(peer_seal_message(sender, &content, bytes, &e), 0);
    assert_int_equal(raw_ask(&raw, bytes, sizeof bytes, true), PEER_SEAL_OVERHEAD_BYTES);
    assert_int_equal(w->ends[2].asked, 0);
    /* With it, as an answer of kind ANSWER takes it from the content. */
    content.kind = PEER_SEAL_ASK;
    peer_seal_free(sender);
    assert_int_equal(peer_seal_new(&sender, &options, &e), 0);
    struct peer_seal *receiver = NULL;
    struct peer_seal_options other = {
        .identity = w->identities[2], .id = 2, .boot = 22, .key_of = key_of, .user = &w->ends[1]};
    assert_int_equal(peer_seal_new(&receiver, &other, &e), 0);
    uint8_t hello[PEER_SEAL_OVERHEAD_BYTES];
    struct peer_seal_content refusal = {
        .peer = 3, .kind = PEER_SEAL_REFUSAL, .answers = 1, .boot = 5};
    assert_int_equal(peer_seal_message(receiver, &refusal, hello, &e), 0);
    assert_int_equal(peer_seal_open(sender, hello, sizeof hello, &refusal), PEER_SEAL_GOOD);
    assert_int_equal(peer_seal_message(sender, &content, bytes, &e), 0);
    assert_int_equal(raw_ask(&raw, bytes, sizeof bytes, true), PEER_SEAL_OVERHEAD_BYTES + 4);
    assert_int_equal(w->ends[2].asked, 1);
    assert_int_equal(raw_ask(&raw, bytes, sizeof bytes, false), 0);
    assert_int_equal(w->ends[2].asked, 1);
    assert_int_equal(refused(w, 2, PEER_SEAL_REFUSED_REPLAY), 1);
    peer_seal_free(sender);
    peer_seal_free(receiver);
    (void)nng_close(raw.socket);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

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
        TEST(public_addresses_are_refused),
        TEST(strangers_get_no_answer),
        TEST(an_oversize_message_harms_its_own_connection_only),
        TEST(a_recorded_question_is_not_asked_again),
    };
    int rc = cmocka_run_group_tests_name("peer_rpc", tests, NULL, NULL);
    nng_fini();
    return rc;
}
