/* HTTPS at the gateway: a real one in this process, clients of OpenSSL. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "gateway/tls.h"
#include "tests/lib/gateway_expect.h"
#include "tests/lib/tls_files.h"

enum { HANDSHAKE_MS = 700, DAY_S = 86400 };

/* Of the whole program: what *state is by the fixture's own functions has no room for it. */
static struct tls_files files;
static SSL_CTX *client;

static int open_files(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes to sockets that are closed */
    tls_files_open(&files);
    client = tls_files_client();
    return 0;
}

static int close_files(void **state)
{
    (void)state;
    SSL_CTX_free(client);
    tls_files_close(&files);
    return 0;
}

static void start(void **state, struct gateway_fixture_options options, unsigned certificates)
{
    tls_files_make(&files, 0, "first.test", -DAY_S, DAY_S);
    tls_files_make(&files, 1, "*.second.test", -DAY_S, 2 * DAY_S);
    options.tls.certificates = files.certificate_list;
    options.tls.keys = files.key_list;
    options.tls.certificate_count = certificates;
    options.tls.handshake_timeout_ms = HANDSHAKE_MS;
    gateway_start_with(state, &options);
}

static int start_default(void **state)
{
    start(state, (struct gateway_fixture_options){0}, 2);
    return 0;
}

static int start_impatient(void **state)
{
    start(state, (struct gateway_fixture_options){.header_timeout_ms = 600}, 1);
    return 0;
}

static int start_narrow(void **state)
{
    start(state, (struct gateway_fixture_options){.connections_max = 2}, 1);
    return 0;
}

static int start_strict(void **state)
{
    start(state, (struct gateway_fixture_options){.tls = {.tls13_only = true}}, 1);
    return 0;
}

/* --- requests ------------------------------------------------------------------------------------- */

static void a_request_comes_by_https(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open_tls(&c, f, client, NULL);
    for (int i = 0; i < 3; i++) { /* on one connection */
        test_client_send(&c, "GET /w/web/echo?a=%2F HTTP/1.1\r\n" HOST
                             "X-Forwarded-Proto: http\r\n\r\n");
        test_client_read(&c, &a, false);
        assert_int_equal(a.status, 200);
        assert_non_null(strstr(a.body, "GET /echo?a=%2F HTTP/1.1\r\n"));
        assert_non_null(strstr(a.body, "X-Forwarded-Proto: https\r\n"));
        assert_null(strstr(a.body, "X-Forwarded-Proto: http\r\n"));
        test_answer_free(&a);
    }
    assert_string_equal(SSL_get_version(c.ssl), "TLSv1.3");
    test_client_close(&c);
    gateway_expect_body(f, GET("/w/web/"), "ok"); /* and beside it without */
    wait_until(slot_joiners(f->slot) == 0);
    struct gateway_counters counters;
    gateway_counters(f->gateway, &counters);
    assert_int_equal(counters.tls_handshakes, 1);
    assert_int_equal(counters.tls_failures, 0);
    assert_true(counters.certificate_expires_s > (int64_t)(clock_wall_ms() / 1000));
}

/* The n-th byte of what a client sends comes in a packet of its own. */
static void records_may_come_in_pieces(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open_tls(&c, f, client, NULL);
    BIO *wire = BIO_new(BIO_s_mem());
    assert_non_null(wire);
    SSL_set0_wbio(c.ssl, wire); /* to have the bytes of the records */
    static const char request[] = "POST /w/web/echo HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\n";
    assert_int_equal(SSL_write(c.ssl, request, sizeof request - 1), (int)sizeof request - 1);
    assert_int_equal(SSL_write(c.ssl, "by", 2), 2);
    assert_int_equal(SSL_write(c.ssl, "tes", 3), 3);
    char *bytes = NULL;
    long length = BIO_get_mem_data(wire, &bytes);
    for (long i = 0; i < length; i++) {
        assert_int_equal(send(c.fd, bytes + i, 1, MSG_NOSIGNAL), 1);
        if (i % 16 == 0)
            gateway_fixture_pause();
    }
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body + a.body_length - 5, "bytes");
    test_answer_free(&a);
    test_client_close(&c);
}

/* One packet holds the end of the handshake and several requests, in records of their own. */
static void many_records_in_one_packet_are_all_read(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open_tls(&c, f, client, NULL);
    BIO *wire = BIO_new(BIO_s_mem());
    SSL_set0_wbio(c.ssl, wire);
    for (int i = 0; i < 20; i++) {
        static const char request[] = GET("/w/web/echo");
        for (size_t at = 0; at < sizeof request - 1; at += 9) {
            size_t n = sizeof request - 1 - at < 9 ? sizeof request - 1 - at : 9;
            assert_int_equal(SSL_write(c.ssl, request + at, (int)n), (int)n);
        }
    }
    char *bytes = NULL;
    long length = BIO_get_mem_data(wire, &bytes);
    assert_int_equal(send(c.fd, bytes, (size_t)length, MSG_NOSIGNAL), length);
    for (int i = 0; i < 20; i++) {
        test_client_read(&c, &a, false);
        assert_int_equal(a.status, 200);
        test_answer_free(&a);
    }
    test_client_close(&c);
}

/* More than is read ahead while an answer is awaited: the rest waits decrypted, and no socket tells. */
static void what_waits_decrypted_is_read_later(void **state)
{
    enum { REQUESTS = 60, BYTES = 600 };
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    char request[BYTES + 1];
    int n = snprintf(request, sizeof request, "GET /w/web/ HTTP/1.1\r\n" HOST "X-Pad: ");
    memset(request + n, 'p', BYTES - (size_t)n - 4);
    memcpy(request + BYTES - 4, "\r\n\r\n", 4);
    f->backend_hold = true;
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, GET("/w/web/hold"));
    wait_until(f->backend_inside == 1);
    BIO *wire = BIO_new(BIO_s_mem());
    SSL_set0_wbio(c.ssl, wire);
    for (int i = 0; i < REQUESTS; i++)
        assert_int_equal(SSL_write(c.ssl, request, BYTES), BYTES);
    char *bytes = NULL;
    long length = BIO_get_mem_data(wire, &bytes);
    assert_int_equal(send(c.fd, bytes, (size_t)length, MSG_NOSIGNAL), length);
    for (int i = 0; i < 50; i++)
        gateway_fixture_pause(); /* all of it has come */
    f->backend_hold = false;
    for (int i = 0; i < REQUESTS + 1; i++) {
        test_client_read(&c, &a, false);
        assert_int_equal(a.status, 200);
        test_answer_free(&a);
    }
    test_client_close(&c);
}

static void big_bodies_stream_both_ways(void **state)
{
    enum { SIZE = 4 * 1024 * 1024 };
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    char piece[10000];
    memset(piece, 'y', sizeof piece);
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, "POST /w/web/ HTTP/1.1\r\n" HOST "Content-Length: 4000000\r\n\r\n");
    for (int i = 0; i < 400; i++)
        test_client_send_bytes(&c, piece, sizeof piece);
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    assert_int_equal(f->backend_body_bytes, 4000000);
    test_answer_free(&a);
    test_client_send(&c, GET("/w/web/size/4194304"));
    test_client_read(&c, &a, false);
    assert_int_equal(a.body_length, SIZE);
    test_answer_free(&a);
    test_client_send(&c, GET("/w/web/chunked/4194304"));
    test_client_read(&c, &a, false);
    assert_int_equal(a.body_length, SIZE);
    assert_non_null(strstr(a.trailers, "X-Sum: 42"));
    test_answer_free(&a);
    test_client_close(&c);
}

static void code_that_does_not_read_stops_the_client(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    char piece[16384];
    memset(piece, 'z', sizeof piece);
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, "POST /w/web/never-read HTTP/1.1\r\n" HOST
                         "Content-Length: 100000000\r\n\r\n");
    fcntl(c.fd, F_SETFL, O_NONBLOCK);
    SSL_set_mode(c.ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    size_t sent = 0;
    uint64_t quiet_ms = clock_monotonic_ms();
    while (clock_monotonic_ms() - quiet_ms < 300) {
        int n = SSL_write(c.ssl, piece, sizeof piece);
        if (n > 0) {
            sent += (size_t)n;
            quiet_ms = clock_monotonic_ms();
        } else {
            gateway_fixture_pause();
        }
    }
    /* The kernel's buffers on both ways, and little of ours. */
    assert_true(sent < 40u * 1000 * 1000);
    f->backend_hold = false;
    test_client_close(&c);
    wait_until(slot_joiners(f->slot) == 0);
}

static void chunks_are_passed_on_at_once(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    char text[4096] = "";
    int n = 0;
    f->backend_hold = true;
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, GET("/w/web/stream"));
    while (strstr(text, "first\r\n") == NULL) {
        int got = SSL_read(c.ssl, text + n, (int)sizeof text - 1 - n);
        assert_true(got > 0);
        n += got;
    }
    f->backend_hold = false;
    while (strstr(text, "last\r\n0\r\n\r\n") == NULL) {
        int got = SSL_read(c.ssl, text + n, (int)sizeof text - 1 - n);
        assert_true(got > 0);
        n += got;
    }
    test_client_close(&c);
}

/* --- ends ----------------------------------------------------------------------------------------- */

/* What SSL_read says behind all bytes. */
static int end_of(struct test_client *c)
{
    char byte;
    while (SSL_read(c->ssl, &byte, 1) == 1)
        ;
    return SSL_get_error(c->ssl, 0);
}

static void an_answer_ends_with_close_notify(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, "GET /w/web/raw/until-close HTTP/1.0\r\n" HOST "\r\n");
    test_client_read(&c, &a, false);
    assert_string_equal(a.body, "until the end");
    assert_int_equal(end_of(&c), SSL_ERROR_ZERO_RETURN);
    test_answer_free(&a);
    test_client_close(&c);
    /* ... and not when it is not whole. */
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, GET("/w/web/raw/short"));
    test_client_read(&c, &a, false);
    assert_true(a.broken);
    assert_int_not_equal(end_of(&c), SSL_ERROR_ZERO_RETURN);
    test_answer_free(&a);
    test_client_close(&c);
}

static void a_slow_reader_gets_close_notify_too(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    for (int i = 0; i < 10; i++) {
        struct test_client c;
        char request[128];
        test_client_open_tls(&c, f, client, NULL);
        text_format(request, sizeof request, "GET /w/web/chunked/%d HTTP/1.0\r\n" HOST "\r\n",
                    3000000 + i * 1777);
        test_client_send(&c, request);
        for (int k = 0; k < 20; k++)
            gateway_fixture_pause();
        test_client_read(&c, &a, false);
        assert_int_equal(a.body_length, 3000000 + i * 1777);
        assert_int_equal(end_of(&c), SSL_ERROR_ZERO_RETURN);
        test_answer_free(&a);
        test_client_close(&c);
    }
}

/* Both ends of a socket, with a handshake done. */
static struct tls *make_pair(int fds[2], SSL **peer, struct certificates *certificates)
{
    char why[96];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    struct tls *t = tls_new(certificates, fds[0]);
    *peer = SSL_new(client);
    assert_true(t != NULL && *peer != NULL);
    SSL_set_fd(*peer, fds[1]);
    SSL_set_connect_state(*peer);
    bool done = false;
    while (!done || !SSL_is_init_finished(*peer)) {
        (void)SSL_do_handshake(*peer);
        done = done || tls_handshake(t, why, sizeof why) == TLS_DONE;
    }
    return t;
}

/* The kernel takes one byte too many, and then nothing: at the largest number of records that it took
 * whole, close_notify finds no room, and is said when there is some. */
static void close_notify_waits_for_the_socket(void **state)
{
    struct certificates *certificates = NULL;
    struct gateway_tls_options o = {
        .certificates = files.certificate_list, .keys = files.key_list, .certificate_count = 1};
    struct block_pool pool = {0};
    struct err e;
    static const char record[2000];
    bool waited = false, full = false;
    (void)state;
    tls_files_make(&files, 0, "first.test", -DAY_S, DAY_S);
    assert_int_equal(certificates_load(&certificates, &o, &e), 0);
    for (int records = 1; !full; records++) {
        int fds[2];
        SSL *peer;
        struct tls *t = make_pair(fds, &peer, certificates);
        struct queue q = {0};
        size_t written = 0;
        for (int i = 0; i < records && !full; i++) {
            assert_true(queue_append(&pool, &q, record, sizeof record));
            full = tls_send(t, &pool, &q, &written) == QUEUE_BLOCKED;
        }
        assert_int_equal(full, tls_wants_write(t));
        if (!full && !tls_end(t)) {
            assert_true(tls_wants_write(t));
            waited = true;
            char drop[sizeof record];
            for (int i = 0; i < records; i++)
                assert_int_equal(SSL_read(peer, drop, sizeof drop), sizeof record);
            assert_true(tls_end(t));
            assert_int_equal(SSL_read(peer, drop, sizeof drop), 0);
            assert_int_equal(SSL_get_error(peer, 0), SSL_ERROR_ZERO_RETURN);
        }
        queue_clear(&pool, &q);
        SSL_free(peer);
        tls_free(t);
        close(fds[0]);
        close(fds[1]);
    }
    assert_true(waited);
    block_pool_free(&pool);
    certificates_release(certificates);
}

static void a_client_that_only_ended_its_side_is_answered(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, GET("/w/web/echo"));
    SSL_shutdown(c.ssl); /* close_notify; the other direction goes on */
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    test_answer_free(&a);
    assert_int_equal(end_of(&c), SSL_ERROR_ZERO_RETURN);
    test_client_close(&c);
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, GET("/w/web/echo"));
    shutdown(c.fd, SHUT_WR); /* no close_notify: the request was whole all the same */
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    test_answer_free(&a);
    test_client_close(&c);
    wait_until(slot_joiners(f->slot) == 0);
}

static void open_tunnel(struct test_client *c, struct gateway_fixture *f)
{
    struct test_answer a;
    test_client_open_tls(c, f, client, NULL);
    test_client_send(c, "GET /w/web/upgrade HTTP/1.1\r\n" HOST
                        "Connection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ");
    test_client_read(c, &a, false);
    assert_int_equal(a.status, 101);
    test_answer_free(&a);
}

static void upgrades_become_tunnels(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    open_tunnel(&c, f);
    test_client_send(&c, "ping");
    SSL_shutdown(c.ssl);
    assert_true(test_client_at_end(&c, NULL));
    assert_int_equal(c.length, strlen("helloearly ping"));
    assert_memory_equal(c.data, "helloearly ping", c.length);
    assert_int_equal(end_of(&c), SSL_ERROR_ZERO_RETURN);
    test_client_close(&c);
    /* A tunnel's end must be said: FIN alone could be anybody's. */
    open_tunnel(&c, f);
    shutdown(c.fd, SHUT_WR);
    assert_true(test_client_at_end(&c, NULL));
    assert_int_not_equal(end_of(&c), SSL_ERROR_ZERO_RETURN);
    test_client_close(&c);
    wait_until(slot_joiners(f->slot) == 0);
}

/* --- who is no client of HTTPS -------------------------------------------------------------------- */

static void plain_http_is_told_so(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_connect(&c, f->https_port);
    test_client_send(&c, GET("/w/web/"));
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 400, "bad_request");
    assert_non_null(strstr(a.body, "https://"));
    assert_string_equal(test_answer_field(&a, "Connection"), "close");
    assert_true(test_client_at_end(&c, NULL));
    test_answer_free(&a);
    test_client_close(&c);
    assert_int_equal(f->backend_connections, 0);
}

static void hostile_bytes_close_the_connection(void **state)
{
    struct gateway_fixture *f = *state;
    static const struct {
        const char *data;
        size_t length;
    } cases[] = {
        {"\x16\x03\x01\xff\xff", 5},                          /* a record beyond its bound */
        {"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", 10},     /* ServerHello */
        {"\x16\x03\x01\x00\x04\x01\xff\xff\xff", 9},          /* ClientHello of 16 MiB */
        {"\x16\x03\x01\x00\x00\x16\x03\x01\x00\x00", 10},     /* records of nothing */
        {"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03", 11}, /* ClientHello cut short */
        {"\x16\x02\x00\x00\x02hi", 7},                        /* SSL 2 */
        {"\x80\x2e\x01\x00\x02", 5},                          /* its hello */
        {"\0\0\0\0\0\0\0\0", 8},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct test_client c;
        test_client_connect(&c, f->https_port);
        test_client_send_bytes(&c, cases[i].data, cases[i].length);
        assert_true(test_client_at_end(&c, NULL)); /* at once, or by the deadline */
        test_client_close(&c);
    }
    wait_until(gateway_connections(f->gateway) == 0);
    struct gateway_counters counters;
    gateway_counters(f->gateway, &counters);
    assert_int_equal(counters.tls_failures, ARRAY_SIZE(cases));
    assert_int_equal(counters.tls_handshakes, 0);
    assert_int_equal(f->backend_connections, 0);
}

/* Random damage at each place of a real client's first flight. */
static void a_damaged_hello_closes_the_connection(void **state)
{
    struct gateway_fixture *f = *state;
    SSL *ssl = SSL_new(client);
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    SSL_set_connect_state(ssl);
    assert_true(SSL_do_handshake(ssl) < 0);
    char *hello = NULL;
    long length = BIO_get_mem_data(SSL_get_wbio(ssl), &hello);
    assert_true(length > 100);
    for (long at = 0; at < length; at += 3) {
        struct test_client c;
        char kept = hello[at];
        test_client_connect(&c, f->https_port);
        hello[at] = (char)(kept ^ 0x55);
        test_client_send_bytes(&c, hello, (size_t)length);
        hello[at] = kept;
        shutdown(c.fd, SHUT_WR);
        assert_true(test_client_at_end(&c, NULL));
        test_client_close(&c);
    }
    SSL_free(ssl);
    wait_until(gateway_connections(f->gateway) == 0);
}

static void a_handshake_has_a_deadline(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client silent, slow;
    uint64_t began_ms = clock_monotonic_ms();
    test_client_connect(&silent, f->https_port);
    test_client_connect(&slow, f->https_port);
    test_client_send_bytes(&slow, "\x16\x03\x01", 3);
    assert_true(test_client_at_end(&silent, NULL));
    assert_true(test_client_at_end(&slow, NULL));
    uint64_t took_ms = clock_monotonic_ms() - began_ms;
    assert_true(took_ms >= HANDSHAKE_MS - 50 && took_ms < HANDSHAKE_MS + 5000);
    test_client_close(&silent);
    test_client_close(&slow);
}

/* As on the plain port, it begins anew once the handshake is done. */
static void a_head_has_a_deadline(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, "GET /w/web/ HTTP/1.1\r\nHos");
    test_client_read(&c, &a, false);
    gateway_assert_problem(&a, 408, "header_timeout");
    test_answer_free(&a);
    test_client_close(&c);
    test_client_open_tls(&c, f, client, NULL);
    assert_int_equal(end_of(&c), SSL_ERROR_ZERO_RETURN);
    test_client_close(&c);
}

static void connections_have_a_bound(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c[2], late;
    test_client_open_tls(&c[0], f, client, NULL);
    test_client_connect(&c[1], f->https_port);
    wait_until(gateway_connections(f->gateway) == 2);
    test_client_connect(&late, f->https_port);
    assert_true(test_client_at_end(&late, NULL));
    test_client_close(&late);
    test_client_close(&c[1]);
    wait_until(gateway_connections(f->gateway) == 1);
    test_client_open_tls(&late, f, client, NULL);
    test_client_close(&late);
    test_client_close(&c[0]);
}

/* --- versions, protocols, names ------------------------------------------------------------------- */

/* The version that both agree on, or NULL. */
static const char *try_handshake(struct gateway_fixture *f, int most, const char *alpn,
                                 size_t alpn_length)
{
    static char version[32];
    struct test_client c;
    SSL_CTX *context = tls_files_client();
    SSL_CTX_set_min_proto_version(context, TLS1_VERSION);
    SSL_CTX_set_max_proto_version(context, most);
    SSL_CTX_set_security_level(context, 0);
    SSL_CTX_set_cipher_list(context, "ALL");
    test_client_connect(&c, f->https_port);
    c.ssl = SSL_new(context);
    SSL_set_fd(c.ssl, c.fd);
    if (alpn != NULL)
        SSL_set_alpn_protos(c.ssl, (const unsigned char *)alpn, (unsigned)alpn_length);
    const char *found = NULL;
    /* With TLS 1.3 a server's refusal may come behind the client's end of the handshake. */
    static const char request[] = GET("/livez");
    char answer[64];
    if (SSL_connect(c.ssl) == 1 && SSL_write(c.ssl, request, sizeof request - 1) > 0 &&
        SSL_read(c.ssl, answer, sizeof answer) > 0) {
        const unsigned char *chosen = NULL;
        unsigned length = 0;
        SSL_get0_alpn_selected(c.ssl, &chosen, &length);
        text_format(version, sizeof version, "%s %.*s", SSL_get_version(c.ssl), (int)length,
                    chosen == NULL ? "" : (const char *)chosen);
        found = version;
    }
    ERR_clear_error();
    test_client_close(&c);
    SSL_CTX_free(context);
    return found;
}

static void versions_and_protocols_are_agreed_on(void **state)
{
    struct gateway_fixture *f = *state;
    assert_string_equal(try_handshake(f, TLS1_3_VERSION, NULL, 0), "TLSv1.3 ");
    assert_string_equal(try_handshake(f, TLS1_2_VERSION, NULL, 0), "TLSv1.2 ");
    assert_null(try_handshake(f, TLS1_1_VERSION, NULL, 0));
    assert_string_equal(try_handshake(f, TLS1_3_VERSION, "\x02h2\x08http/1.1", 12),
                        "TLSv1.3 http/1.1");
    assert_null(try_handshake(f, TLS1_3_VERSION, "\x02h2", 3));
    assert_null(try_handshake(f, TLS1_2_VERSION, "\x09http/1.1x", 10));
}

static void the_minimum_can_be_raised(void **state)
{
    struct gateway_fixture *f = *state;
    assert_string_equal(try_handshake(f, TLS1_3_VERSION, NULL, 0), "TLSv1.3 ");
    assert_null(try_handshake(f, TLS1_2_VERSION, NULL, 0));
}

static void the_name_chooses_the_certificate(void **state)
{
    struct gateway_fixture *f = *state;
    gateway_expect_certificate(f, client, NULL, "first.test");
    gateway_expect_certificate(f, client, "first.test", "first.test");
    gateway_expect_certificate(f, client, "a.second.test", "*.second.test");
    gateway_expect_certificate(f, client, "a.b.second.test", "first.test");
    gateway_expect_certificate(f, client, "nobody.test", "first.test");
}

static void a_session_is_resumed(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_client c;
    struct test_answer a;
    test_client_open_tls(&c, f, client, NULL);
    test_client_send(&c, GET("/w/web/"));
    test_client_read(&c, &a, false); /* the ticket came before it */
    test_answer_free(&a);
    SSL_SESSION *session = SSL_get1_session(c.ssl);
    SSL_shutdown(c.ssl); /* else OpenSSL would not use it again */
    test_client_close(&c);
    test_client_connect(&c, f->https_port);
    c.ssl = SSL_new(client);
    SSL_set_fd(c.ssl, c.fd);
    SSL_set_session(c.ssl, session);
    assert_int_equal(SSL_connect(c.ssl), 1);
    assert_true(SSL_session_reused(c.ssl));
    test_client_send(&c, GET("/w/web/"));
    test_client_read(&c, &a, false);
    assert_int_equal(a.status, 200);
    test_answer_free(&a);
    test_client_close(&c);
    SSL_SESSION_free(session);
    struct gateway_counters counters;
    gateway_counters(f->gateway, &counters);
    assert_int_equal(counters.tls_handshakes, 2);
    assert_int_equal(counters.tls_resumed, 1);
}

#define TEST(test, start) cmocka_unit_test_setup_teardown(test, start, gateway_stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_request_comes_by_https, start_default),
        TEST(records_may_come_in_pieces, start_default),
        TEST(many_records_in_one_packet_are_all_read, start_default),
        TEST(what_waits_decrypted_is_read_later, start_default),
        TEST(big_bodies_stream_both_ways, start_default),
        TEST(code_that_does_not_read_stops_the_client, start_default),
        TEST(chunks_are_passed_on_at_once, start_default),
        TEST(an_answer_ends_with_close_notify, start_default),
        TEST(a_slow_reader_gets_close_notify_too, start_default),
        cmocka_unit_test(close_notify_waits_for_the_socket),
        TEST(a_client_that_only_ended_its_side_is_answered, start_default),
        TEST(upgrades_become_tunnels, start_default),
        TEST(plain_http_is_told_so, start_default),
        TEST(hostile_bytes_close_the_connection, start_default),
        TEST(a_damaged_hello_closes_the_connection, start_default),
        TEST(a_handshake_has_a_deadline, start_default),
        TEST(a_head_has_a_deadline, start_impatient),
        TEST(connections_have_a_bound, start_narrow),
        TEST(versions_and_protocols_are_agreed_on, start_default),
        TEST(the_minimum_can_be_raised, start_strict),
        TEST(the_name_chooses_the_certificate, start_default),
        TEST(a_session_is_resumed, start_default),
    };
    return cmocka_run_group_tests_name("gateway_tls", tests, open_files, close_files);
}
