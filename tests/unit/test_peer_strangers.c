/* Questions of those who know no key, repeat what they saw, or speak something else; by nng's own
 * client where they speak the protocol. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <errno.h>
#include <netinet/in.h>
#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "tests/lib/peer_world.h"

static unsigned connections_at(struct world *w, node_id id)
{
    struct peer_rpc_counts counts;
    peer_rpc_counts(w->ends[id].rpc, &counts);
    return counts.connections_now;
}

static int raw_connect(struct world *w, node_id to)
{
    const struct sockaddr_storage *at = &w->ends[to].address;
    int fd = socket(at->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)at, sizeof(struct sockaddr_in)), 0);
    return fd;
}

static bool has_no_connections(void *user)
{
    const struct node_end *end = user;
    return connections_at(end->w, end->id) == 0;
}

/* Bytes that are none of the protocol's, and a size that nobody may have, close the connection. */
static void what_is_no_message_closes(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *bytes;
        size_t size;
    } all[] = {
        {"GET / HTTP/1.1\r\n\r\n", 18},
        {"\0SP\0\0\x31\0\0", 8}, /* a REP at a REP */
        {"\0SP\0\0\x30\0\1", 8},
        {"\0SP\0\0\x30\0\0"
         "\0\0\0\0\0\0\0\3abc",
         19}, /* no room for the request */
        {"\0SP\0\0\x30\0\0"
         "\0\0\0\0\0\0\0\5\0\0\0\1x",
         21}, /* its bit is missing */
        {"\0SP\0\0\x30\0\0"
         "\xff\xff\xff\xff\xff\xff\xff\xff\x80\0\0\1",
         20},
    };
    for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
        int fd = raw_connect(w, 2);
        assert_int_equal(write(fd, all[i].bytes, all[i].size), (ssize_t)all[i].size);
        /* Its greeting, then the end. */
        uint64_t until_ms = clock_monotonic_ms() + WAIT_MS;
        char answer[64];
        ssize_t got, all_got = 0;
        while ((got = recv(fd, answer, sizeof answer, MSG_DONTWAIT)) != 0 &&
               clock_monotonic_ms() < until_ms) {
            if (got > 0)
                all_got += got;
            else if (errno == ECONNRESET)
                break;
            uv_run(&w->loop, UV_RUN_NOWAIT);
        }
        assert_true(clock_monotonic_ms() < until_ms);
        assert_true(all_got <= 8);
        (void)close(fd);
        assert_true(world_wait_until(w, has_no_connections, &w->ends[2]));
    }
}

static bool has_all_connections(void *user)
{
    const struct node_end *end = user;
    return connections_at(end->w, end->id) == CONNECTIONS_MAX;
}

/* Connections of nobody do not keep a node out. */
static void strangers_make_room(void **state)
{
    struct world *w = *state;
    struct asking a;
    int fds[CONNECTIONS_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = raw_connect(w, 2);
    assert_true(world_wait_until(w, has_all_connections, &w->ends[2]));
    world_ask(w, &a, 2, "x", 9000);
    assert_true(world_wait_until(w, world_has_ended, &a));
    assert_string_equal(a.text, "x!");
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        (void)close(fds[i]);
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
    assert_int_equal(nng_dial(raw->socket, url, NULL, NNG_FLAG_NONBLOCK), 0);
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
    while (nng_sendmsg(raw->socket, m, NNG_FLAG_NONBLOCK) == NNG_EAGAIN) {
        uv_run(&raw->w->loop, UV_RUN_NOWAIT); /* not connected yet */
        assert_true(clock_monotonic_ms() < until_ms + WAIT_MS);
    }
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
    assert_int_equal(world_refused(w, 2, PEER_SEAL_REFUSED_FORMAT), 2);
    assert_int_equal(w->ends[2].asked, 0);
    (void)nng_close(raw.socket);
}

static void an_oversize_message_harms_its_own_connection_only(void **state)
{
    struct world *w = *state;
    struct raw raw;
    struct asking a;
    w->ends[2].keep = true;
    world_ask(w, &a, 2, "x", 9000);
    assert_true(world_wait_until(w, world_has_kept, &w->ends[2]));
    char *large = calloc(1, 4u * BYTES_MAX);
    raw_open(&raw, w, 2);
    assert_int_equal(raw_ask(&raw, large, 4u * BYTES_MAX, false), 0);
    world_answer(w->ends[2].kept[0]);
    assert_true(world_wait_until(w, world_has_ended, &a));
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
    struct peer_seal_options options = {.identity = w->identities[3],
                                        .id = 3,
                                        .boot = 5,
                                        .key_of = world_key_of,
                                        .user = &w->ends[1]};
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
    struct peer_seal_options other = {.identity = w->identities[2],
                                      .id = 2,
                                      .boot = 22,
                                      .key_of = world_key_of,
                                      .user = &w->ends[1]};
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
    assert_int_equal(world_refused(w, 2, PEER_SEAL_REFUSED_REPLAY), 1);
    peer_seal_free(sender);
    peer_seal_free(receiver);
    (void)nng_close(raw.socket);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_set_up, world_tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_no_message_closes),
        TEST(strangers_make_room),
        TEST(strangers_get_no_answer),
        TEST(an_oversize_message_harms_its_own_connection_only),
        TEST(a_recorded_question_is_not_asked_again),
    };
    signal(SIGPIPE, SIG_IGN);
    int rc = cmocka_run_group_tests_name("peer_strangers", tests, NULL, NULL);
    nng_fini();
    return rc;
}
