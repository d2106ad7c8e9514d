#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/address.h"
#include "base/memory.h"
#include "base/secure_internal.h"
#include "tests/lib/secure_pair.h"

enum { SPEAK_ALL = (1u << SECURE_JOIN) | (1u << SECURE_RAFT) | (1u << SECURE_IMAGE) };

/* One end: sends `to_send` bytes of a known sequence and then END, checks the same of what comes. */
struct end {
    struct secure_stream *s;
    bool opened, failed, closed;
    struct err error;
    size_t to_send, sent, received;
    size_t piece; /* bytes to read at once */
    size_t pending_max;
    bool paused;
    bool want_end; /* END when all is sent */
    bool end_sent, end_seen, broken, garbled;
    bool close_on_ready;
    unsigned ready_count;
};

static uint8_t byte_at(size_t index)
{
    return (uint8_t)(index * 31 + (index >> 8) * 7 + (index >> 16));
}

static void send_more(struct end *end)
{
    uint8_t bytes[40000];
    while (end->sent < end->to_send) {
        size_t size = end->to_send - end->sent, count = 0;
        if (size > sizeof bytes)
            size = sizeof bytes;
        for (size_t i = 0; i < size; i++)
            bytes[i] = byte_at(end->sent + i);
        /* In three parts, one of them empty. */
        struct iovec parts[3] = {{bytes, size / 3}, {NULL, 0}, {bytes + size / 3, size - size / 3}};
        enum secure_result result = secure_stream_write(end->s, parts, 3, &count);
        end->sent += count;
        if (secure_stream_pending(end->s) > end->pending_max)
            end->pending_max = secure_stream_pending(end->s);
        end->broken |= result == SECURE_BROKEN;
        if (result != SECURE_DONE)
            return;
    }
    if (end->want_end && !end->end_sent) {
        end->end_sent = true;
        end->broken |= secure_stream_end(end->s) == SECURE_BROKEN;
    }
}

static void read_more(struct end *end)
{
    uint8_t bytes[70000];
    size_t count = 0;
    size_t size = end->piece == 0 ? sizeof bytes : end->piece;
    switch (secure_stream_read(end->s, bytes, size, &count)) {
    case SECURE_DONE:
        for (size_t i = 0; i < count; i++)
            end->garbled |= bytes[i] != byte_at(end->received + i);
        end->received += count;
        break;
    case SECURE_END:
        end->end_seen = true;
        break;
    case SECURE_BROKEN:
        end->broken = true;
        break;
    default:
        break;
    }
}

static void update_want(struct end *end)
{
    unsigned want = 0;
    if (!end->paused && !end->end_seen)
        want |= SECURE_WANT_READ;
    if (end->sent < end->to_send || (end->want_end && !end->end_sent))
        want |= SECURE_WANT_WRITE;
    if (!end->broken)
        secure_stream_want(end->s, want);
    else
        secure_stream_want(end->s, 0);
}

static void closed_cb(void *user)
{
    ((struct end *)user)->closed = true;
}

static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct end *end = secure_stream_user(s);
    end->ready_count++;
    if (end->close_on_ready) {
        secure_stream_close(s, closed_cb);
        return;
    }
    if (readable)
        read_more(end);
    if (writable && !end->broken)
        send_more(end);
    update_want(end);
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct end *end = secure_stream_user(s);
    end->opened = true;
    if (error != NULL) {
        end->failed = true;
        end->error = *error;
    }
}

static const struct secure_events events = {.opened = opened_cb, .ready = ready_cb};

static int try_connect(struct secure_world *w, struct end *end, node_id from,
                       struct secure_connect_options options, struct err *e)
{
    options.context = w->contexts[from];
    if (options.address == NULL)
        options.address = &w->address;
    options.events = events;
    options.user = end;
    return secure_stream_connect(&end->s, &w->loop, &options, e);
}

static bool has_opened(void *user)
{
    return ((struct end *)user)->opened;
}

static bool has_accepted(void *user)
{
    return ((struct secure_world *)user)->accepted != NULL;
}

static bool has_closed(void *user)
{
    return ((struct end *)user)->closed;
}

static void close_end(struct end *end)
{
    secure_stream_close(end->s, closed_cb);
}

/* Node 1 connects to node 2. */
static void open_pair(struct secure_world *w, struct end *a, struct end *b)
{
    struct err e;
    memset(a, 0, sizeof *a);
    memset(b, 0, sizeof *b);
    secure_world_open(w);
    secure_world_listen(w, 2, (struct secure_listen_options){.protocols = SPEAK_ALL});
    assert_int_equal(
        try_connect(w, a, 1, (struct secure_connect_options){.protocol = SECURE_JOIN, .peer = 2},
                    &e),
        0);
    assert_true(secure_world_wait(w, has_accepted, w));
    assert_true(secure_world_wait(w, has_opened, a));
    assert_false(a->failed);
    b->s = w->accepted;
    secure_stream_set_events(b->s, &events, b);
}

static void close_pair(struct secure_world *w, struct end *a, struct end *b)
{
    if (a != NULL)
        close_end(a);
    if (b != NULL)
        close_end(b);
    secure_world_close(w);
}

/* What two ends wait for. */
struct both {
    struct end *a, *b;
};

static bool both_ended(void *user)
{
    const struct both *both = user;
    return (both->a->end_seen || both->a->broken) && (both->b->end_seen || both->b->broken);
}

static bool a_stopped(void *user)
{
    const struct end *end = user;
    return end->end_seen || end->broken;
}

/* --- what works ----------------------------------------------------------------------------------- */

static void both_sides_know_each_other(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a, b;
    open_pair(&w, &a, &b);
    assert_int_equal(secure_stream_peer(a.s), 2);
    assert_int_equal(secure_stream_peer(b.s), 1);
    assert_true(
        identity_public_equal(secure_stream_peer_key(b.s), identity_public(w.identities[1])));
    assert_int_equal(secure_stream_protocol(b.s), SECURE_JOIN);
    assert_string_equal(SSL_get_version(a.s->ssl), "TLSv1.3");
    assert_int_equal(SSL_session_reused(a.s->ssl), 0);
    assert_int_equal(w.accepted_count, 1);
    for (unsigned i = 0; i < SECURE_REFUSAL_COUNT; i++)
        assert_int_equal(refusals_count(secure_listener_refusals(w.listener), i), 0);
    assert_true(secure_stream_trusted(a.s) && secure_stream_trusted(b.s));
    w.removed[1] = true;
    assert_true(secure_stream_trusted(a.s));
    assert_false(secure_stream_trusted(b.s));
    close_pair(&w, &a, &b);
    assert_true(a.closed && b.closed);
}

/* Both send `bytes` and END; b reads in pieces of `piece`; the sockets take `socket_bytes` at once, or
 * what the kernel likes. */
static void exchange(size_t bytes, size_t piece, int socket_bytes)
{
    struct secure_world w;
    struct end a, b;
    struct both both = {&a, &b};
    open_pair(&w, &a, &b);
    a.to_send = b.to_send = bytes;
    a.want_end = b.want_end = true;
    b.piece = piece;
    if (socket_bytes != 0) {
        assert_int_equal(setsockopt(a.s->fd, SOL_SOCKET, SO_SNDBUF, &socket_bytes, sizeof(int)), 0);
        assert_int_equal(setsockopt(b.s->fd, SOL_SOCKET, SO_SNDBUF, &socket_bytes, sizeof(int)), 0);
    }
    update_want(&a);
    update_want(&b);
    assert_true(secure_world_wait(&w, both_ended, &both));
    assert_true(a.end_seen && b.end_seen);
    assert_false(a.broken || b.broken || a.garbled || b.garbled);
    assert_int_equal(a.received, bytes);
    assert_int_equal(b.received, bytes);
    assert_true(a.pending_max <= SECURE_WRITE_BYTES_MAX_DEFAULT + 2u * 16384u);
    close_pair(&w, &a, &b);
}

static void bytes_flow_both_ways_in_any_size(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 16383, 16384, 16385, 100000, 6000000};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
        exchange(sizes[i], 0, 0);
    exchange(3000, 1, 0);
    exchange(300000, 1000, 0);
    exchange(3000000, 0, 5000);
    exchange(3000000, 0, 50000);
    exchange(3000000, 30000, 200000);
}

static bool a_is_stuck(void *user)
{
    const struct end *a = user;
    return secure_stream_pending(a->s) >= SECURE_WRITE_BYTES_MAX_DEFAULT;
}

static void who_does_not_read_stops_the_sender(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a, b;
    open_pair(&w, &a, &b);
    a.to_send = 64u << 20;
    b.paused = true;
    update_want(&a);
    update_want(&b);
    assert_true(secure_world_wait(&w, a_is_stuck, &a));
    size_t sent = a.sent;
    assert_true(sent < 32u << 20);
    a.to_send = sent;
    a.want_end = true;
    b.want_end = true;
    b.paused = false;
    update_want(&b);
    update_want(&a);
    struct both both = {&a, &b};
    assert_true(secure_world_wait(&w, both_ended, &both));
    assert_int_equal(b.received, sent);
    assert_true(b.end_seen);
    assert_false(b.garbled);
    close_pair(&w, &a, &b);
}

static bool end_seen(void *user)
{
    return ((struct end *)user)->end_seen;
}

static void an_ended_direction_leaves_the_other_open(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a, b;
    open_pair(&w, &a, &b);
    a.to_send = 10;
    a.want_end = true;
    update_want(&a);
    update_want(&b);
    assert_true(secure_world_wait(&w, end_seen, &b));
    assert_int_equal(b.received, 10);
    assert_false(a.end_seen);
    b.to_send = 1000000;
    b.want_end = true;
    update_want(&b);
    assert_true(secure_world_wait(&w, end_seen, &a));
    assert_int_equal(a.received, 1000000);
    assert_false(a.garbled || a.broken);
    close_pair(&w, &a, &b);
}

static bool received_all(void *user)
{
    const struct both *both = user;
    return both->b->received == both->a->to_send;
}

static void bytes_that_wait_in_openssl_are_told_when_wanted_again(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a, b;
    struct both both = {&a, &b};
    open_pair(&w, &a, &b);
    a.to_send = 50000;
    b.piece = 100;
    update_want(&a);
    while (b.received < a.to_send) {
        size_t before = b.received;
        b.paused = false;
        update_want(&b);
        while (b.received == before)
            uv_run(&w.loop, UV_RUN_ONCE);
        /* The loop turns without a word while nothing is wanted. */
        b.paused = true;
        update_want(&b);
        unsigned told = b.ready_count;
        uv_run(&w.loop, UV_RUN_NOWAIT);
        assert_int_equal(b.ready_count, told);
    }
    assert_true(received_all(&both));
    assert_false(b.garbled);
    close_pair(&w, &a, &b);
}

static void message_cb(int write, int version, int type, const void *bytes, size_t size, SSL *ssl,
                       void *argument)
{
    (void)version;
    (void)ssl;
    if (write == 0 && type == SSL3_RT_HANDSHAKE && size > 0 &&
        *(const uint8_t *)bytes == SSL3_MT_KEY_UPDATE)
        ++*(unsigned *)argument;
}

static void keys_change_before_they_wear_out(void **state)
{
    unsigned updates = 0;
    (void)state;
    struct secure_world w;
    struct end a, b;
    struct both both = {&a, &b};
    open_pair(&w, &a, &b);
    SSL_set_msg_callback(a.s->ssl, message_cb);
    SSL_set_msg_callback(b.s->ssl, message_cb);
    SSL_set_msg_callback_arg(a.s->ssl, &updates);
    SSL_set_msg_callback_arg(b.s->ssl, &updates);
    a.s->records = (1u << 22) - 3;
    b.s->records = (1u << 22) - 2;
    a.to_send = b.to_send = 400000;
    a.want_end = b.want_end = true;
    update_want(&a);
    update_want(&b);
    assert_true(secure_world_wait(&w, both_ended, &both));
    assert_true(a.end_seen && b.end_seen && !a.garbled && !b.garbled);
    assert_int_equal(updates, 2);
    close_pair(&w, &a, &b);
}

/* --- what is refused ------------------------------------------------------------------------------ */

static bool refused_once(void *user)
{
    const struct secure_world *w = user;
    uint64_t all = 0;
    for (unsigned i = 0; i < SECURE_REFUSAL_COUNT; i++)
        all += refusals_count(secure_listener_refusals(w->listener), i);
    return all > 0;
}

static void expect_refused(struct secure_world *w, node_id from,
                           struct secure_connect_options options, enum err_code code)
{
    struct end a = {0};
    struct err e;
    assert_int_equal(try_connect(w, &a, from, options, &e), 0);
    assert_true(secure_world_wait(w, has_opened, &a));
    assert_true(a.failed);
    if (a.error.code != code)
        fail_msg("%s: %s", err_code_name(a.error.code), a.error.msg);
    assert_true(secure_world_wait(w, refused_once, w));
    assert_int_equal(w->accepted_count, 0);
    close_end(&a);
    /* What is told of its end stands on this stack. */
    assert_true(secure_world_wait(w, has_closed, &a));
}

static void a_stranger_is_refused(void **state)
{
    (void)state;
    struct secure_world w;
    secure_world_open(&w);
    secure_world_listen(&w, 2, (struct secure_listen_options){.protocols = SPEAK_ALL});
    expect_refused(&w, 4, (struct secure_connect_options){.protocol = SECURE_JOIN, .peer = 2},
                   ERR_DENIED);
    const struct refusals *r = secure_listener_refusals(w.listener);
    assert_int_equal(refusals_count(r, SECURE_REFUSED_KEY), 1);
    w.removed[1] = true;
    expect_refused(&w, 1, (struct secure_connect_options){.protocol = SECURE_JOIN, .peer = 2},
                   ERR_DENIED);
    assert_int_equal(refusals_count(r, SECURE_REFUSED_KEY), 2);
    secure_world_close(&w);
}

static void a_node_that_claims_another_id_is_refused(void **state)
{
    (void)state;
    struct secure_world w;
    struct err e;
    secure_world_open(&w);
    secure_context_free(w.contexts[1]);
    struct secure_context_options liar = {
        .identity = w.identities[1], .id = 3, .key_of = secure_world_key_of, .user = &w};
    assert_int_equal(secure_context_open(&w.contexts[1], &liar, &e), 0);
    secure_world_listen(&w, 2, (struct secure_listen_options){.protocols = SPEAK_ALL});
    expect_refused(&w, 1, (struct secure_connect_options){.protocol = SECURE_JOIN, .peer = 2},
                   ERR_DENIED);
    assert_int_equal(refusals_count(secure_listener_refusals(w.listener), SECURE_REFUSED_KEY), 1);
    secure_world_close(&w);
}

static void another_node_than_expected_is_refused(void **state)
{
    (void)state;
    struct secure_world w;
    secure_world_open(&w);
    secure_world_listen(&w, 2, (struct secure_listen_options){.protocols = SPEAK_ALL});
    expect_refused(&w, 1, (struct secure_connect_options){.protocol = SECURE_JOIN, .peer = 3},
                   ERR_DENIED);
    secure_world_close(&w);
}

static void another_protocol_is_refused(void **state)
{
    (void)state;
    struct secure_world w;
    secure_world_open(&w);
    secure_world_listen(&w, 2, (struct secure_listen_options){.protocols = 1u << SECURE_RAFT});
    expect_refused(&w, 1, (struct secure_connect_options){.protocol = SECURE_JOIN, .peer = 2},
                   ERR_UNAVAILABLE);
    assert_int_equal(refusals_count(secure_listener_refusals(w.listener), SECURE_REFUSED_HANDSHAKE),
                     1);
    secure_world_close(&w);
}

static void who_enrolls_knows_whom_it_asks(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a = {0};
    struct err e;
    struct identity_fingerprint good, bad;
    secure_world_open(&w);
    identity_fingerprint(identity_public(w.identities[2]), &good);
    identity_fingerprint(identity_public(w.identities[3]), &bad);
    secure_world_listen(
        &w, 2, (struct secure_listen_options){.protocols = 1u << SECURE_ENROLL, .strangers = true});
    expect_refused(&w, 4,
                   (struct secure_connect_options){.protocol = SECURE_ENROLL, .fingerprint = &bad},
                   ERR_DENIED);
    assert_int_equal(try_connect(&w, &a, 4,
                                 (struct secure_connect_options){.protocol = SECURE_ENROLL,
                                                                 .fingerprint = &good},
                                 &e),
                     0);
    assert_true(secure_world_wait(&w, has_accepted, &w));
    assert_true(secure_world_wait(&w, has_opened, &a));
    assert_false(a.failed);
    assert_int_equal(secure_stream_peer(w.accepted), 0);
    assert_true(identity_public_equal(secure_stream_peer_key(w.accepted),
                                      identity_public(w.identities[4])));
    close_end(&a);
    secure_stream_close(w.accepted, NULL);
    secure_world_close(&w);
}

static void public_addresses_are_refused(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a = {0};
    struct err e;
    struct sockaddr_storage public;
    struct secure_listener *l = NULL;
    secure_world_open(&w);
    assert_int_equal(address_parse(&public, "8.8.8.8:7601", 0, &e), 0);
    assert_int_equal(
        try_connect(&w, &a, 1, (struct secure_connect_options){.address = &public, .peer = 2}, &e),
        -ERR_INVALID);
    assert_non_null(strstr(e.msg, "8.8.8.8:7601"));
    struct secure_listen_options options = {
        .context = w.contexts[1], .address = &public, .protocols = SPEAK_ALL};
    assert_int_equal(secure_listener_open(&l, &w.loop, &options, &e), -ERR_INVALID);
    secure_world_close(&w);
}

static void nobody_there_and_nobody_who_answers(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a = {0}, b = {0};
    struct err e;
    struct sockaddr_storage at;
    socklen_t size = sizeof at;
    secure_world_open(&w);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(address_parse(&at, "127.0.0.1:0", 0, &e), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, address_length(&at)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    struct secure_connect_options options = {
        .address = &at, .protocol = SECURE_JOIN, .peer = 2, .timeout_ms = 200};
    if (try_connect(&w, &a, 1, options, &e) == 0) {
        assert_true(secure_world_wait(&w, has_opened, &a));
        assert_int_equal(a.error.code, ERR_UNAVAILABLE);
        close_end(&a);
    }
    assert_int_equal(listen(fd, 4), 0);
    assert_int_equal(try_connect(&w, &b, 1, options, &e), 0);
    assert_true(secure_world_wait(&w, has_opened, &b));
    assert_int_equal(b.error.code, ERR_TIMEOUT);
    close_end(&b);
    close(fd);
    secure_world_close(&w);
}

static int plain_connect(const struct secure_world *w)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&w->address, address_length(&w->address)),
                     0);
    return fd;
}

struct refusal_wait {
    const struct secure_world *w;
    enum secure_refusal reason;
    uint64_t count;
};

static bool refused_enough(void *user)
{
    const struct refusal_wait *wait = user;
    return refusals_count(secure_listener_refusals(wait->w->listener), wait->reason) >= wait->count;
}

static void nonsense_silence_and_crowds_are_refused(void **state)
{
    (void)state;
    struct secure_world w;
    enum { CROWD = 12, AT_ONCE = 4 };
    int fds[CROWD];
    secure_world_open(&w);
    secure_world_listen(&w, 2,
                        (struct secure_listen_options){
                            .protocols = SPEAK_ALL, .handshakes_max = AT_ONCE, .timeout_ms = 300});
    int fd = plain_connect(&w);
    static const char request[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_int_equal(write(fd, request, sizeof request - 1), sizeof request - 1);
    struct refusal_wait wait = {&w, SECURE_REFUSED_HANDSHAKE, 1};
    assert_true(secure_world_wait(&w, refused_enough, &wait));
    close(fd);
    for (size_t i = 0; i < CROWD; i++)
        fds[i] = plain_connect(&w);
    wait = (struct refusal_wait){&w, SECURE_REFUSED_CROWD, CROWD - AT_ONCE};
    assert_true(secure_world_wait(&w, refused_enough, &wait));
    wait = (struct refusal_wait){&w, SECURE_REFUSED_TIMEOUT, AT_ONCE};
    assert_true(secure_world_wait(&w, refused_enough, &wait));
    for (size_t i = 0; i < CROWD; i++)
        close(fds[i]);
    assert_int_equal(w.accepted_count, 0);
    secure_world_close(&w);
}

static void a_listener_can_close_amid_handshakes(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a = {0};
    struct err e;
    secure_world_open(&w);
    secure_world_listen(&w, 2, (struct secure_listen_options){.protocols = SPEAK_ALL});
    int fd = plain_connect(&w);
    assert_int_equal(
        try_connect(&w, &a, 1, (struct secure_connect_options){.protocol = SECURE_JOIN, .peer = 2},
                    &e),
        0);
    uv_run(&w.loop, UV_RUN_ONCE);
    secure_listener_close(w.listener, NULL);
    w.listener = NULL;
    assert_true(secure_world_wait(&w, has_opened, &a));
    assert_true(a.failed);
    close_end(&a);
    close(fd);
    secure_world_close(&w);
}

/* --- the end -------------------------------------------------------------------------------------- */

static void a_close_without_end_is_no_end(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a, b;
    open_pair(&w, &a, &b);
    a.to_send = 100000;
    send_more(&a);
    assert_int_equal(a.sent, 100000);
    while (secure_stream_pending(a.s) > 0)
        uv_run(&w.loop, UV_RUN_ONCE);
    close_end(&a);
    update_want(&b);
    assert_true(secure_world_wait(&w, a_stopped, &b));
    assert_true(b.broken);
    assert_false(b.end_seen || b.garbled);
    assert_int_equal(b.received, 100000);
    assert_non_null(secure_stream_error(b.s));
    close_pair(&w, NULL, &b);
}

static void writing_to_a_closed_peer_is_broken(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a, b;
    open_pair(&w, &a, &b);
    close_end(&b);
    a.to_send = 64u << 20;
    a.paused = true;
    update_want(&a);
    assert_true(secure_world_wait(&w, a_stopped, &a));
    assert_true(a.broken);
    close_pair(&w, &a, NULL);
}

static void a_stream_may_close_in_its_callback(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a, b;
    open_pair(&w, &a, &b);
    a.to_send = 100000;
    b.close_on_ready = true;
    update_want(&a);
    update_want(&b);
    assert_true(secure_world_wait(&w, has_closed, &b));
    assert_int_equal(b.ready_count, 1);
    close_pair(&w, &a, NULL);
}

/* --- from one loop to another --------------------------------------------------------------------- */

struct mover {
    struct secure_world *w;
    struct secure_parcel *parcel;
    struct end end;
};

static void detached_cb(void *user, struct secure_parcel *parcel)
{
    ((struct mover *)user)->parcel = parcel;
}

static bool has_parcel(void *user)
{
    return ((struct mover *)user)->parcel != NULL;
}

static void other_thread(void *argument)
{
    struct mover *m = argument;
    struct err e;
    uv_loop_t loop;
    assert_always(uv_loop_init(&loop) == 0);
    assert_always(secure_stream_attach(&m->end.s, &loop, m->w->contexts[2], m->parcel, &events,
                                       &m->end, &e) == 0);
    update_want(&m->end);
    while (!m->end.end_seen && !m->end.broken)
        uv_run(&loop, UV_RUN_ONCE);
    secure_stream_close(m->end.s, NULL);
    assert_always(uv_run(&loop, UV_RUN_DEFAULT) == 0);
    assert_always(uv_loop_close(&loop) == 0);
}

static void a_stream_moves_to_another_thread(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a, b;
    uv_thread_t thread;
    open_pair(&w, &a, &b);
    struct mover m = {.w = &w};
    a.to_send = 2000000;
    a.want_end = true;
    update_want(&a);
    /* Some is read here, so that OpenSSL holds a part of what follows. */
    b.piece = 100;
    update_want(&b);
    while (b.received == 0)
        uv_run(&w.loop, UV_RUN_ONCE);
    secure_stream_set_events(b.s, &events, &m);
    secure_stream_detach(b.s, detached_cb);
    assert_true(secure_world_wait(&w, has_parcel, &m));
    assert_int_equal(secure_parcel_protocol(m.parcel), SECURE_JOIN);
    assert_int_equal(secure_parcel_peer(m.parcel), 1);
    m.end.received = b.received;
    m.end.to_send = 1000;
    m.end.want_end = true;
    assert_int_equal(uv_thread_create(&thread, other_thread, &m), 0);
    assert_true(secure_world_wait(&w, a_stopped, &a));
    uv_thread_join(&thread);
    assert_true(m.end.end_seen && !m.end.garbled);
    assert_int_equal(m.end.received, 2000000);
    assert_int_equal(a.received, 1000);
    close_pair(&w, &a, NULL);
}

static void a_parcel_can_be_dropped(void **state)
{
    (void)state;
    struct secure_world w;
    struct end a, b;
    open_pair(&w, &a, &b);
    struct mover m = {.w = &w};
    secure_stream_set_events(b.s, &events, &m);
    secure_stream_detach(b.s, detached_cb);
    assert_true(secure_world_wait(&w, has_parcel, &m));
    secure_parcel_drop(m.parcel);
    update_want(&a);
    assert_true(secure_world_wait(&w, a_stopped, &a));
    assert_true(a.broken);
    close_pair(&w, &a, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_sides_know_each_other),
        cmocka_unit_test(bytes_flow_both_ways_in_any_size),
        cmocka_unit_test(who_does_not_read_stops_the_sender),
        cmocka_unit_test(an_ended_direction_leaves_the_other_open),
        cmocka_unit_test(bytes_that_wait_in_openssl_are_told_when_wanted_again),
        cmocka_unit_test(keys_change_before_they_wear_out),
        cmocka_unit_test(a_stranger_is_refused),
        cmocka_unit_test(a_node_that_claims_another_id_is_refused),
        cmocka_unit_test(another_node_than_expected_is_refused),
        cmocka_unit_test(another_protocol_is_refused),
        cmocka_unit_test(who_enrolls_knows_whom_it_asks),
        cmocka_unit_test(public_addresses_are_refused),
        cmocka_unit_test(nobody_there_and_nobody_who_answers),
        cmocka_unit_test(nonsense_silence_and_crowds_are_refused),
        cmocka_unit_test(a_listener_can_close_amid_handshakes),
        cmocka_unit_test(a_close_without_end_is_no_end),
        cmocka_unit_test(writing_to_a_closed_peer_is_broken),
        cmocka_unit_test(a_stream_may_close_in_its_callback),
        cmocka_unit_test(a_stream_moves_to_another_thread),
        cmocka_unit_test(a_parcel_can_be_dropped),
    };
    return cmocka_run_group_tests_name("secure_stream", tests, NULL, NULL);
}
