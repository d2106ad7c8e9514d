/* How much a secure stream costs, beside a plain uv_tcp: one thread sends, another receives.
 *
 *     stream KIND SECONDS      KIND: secure-bulk, tcp-bulk, secure-ping, tcp-ping, handshakes
 *
 * Prints one line "KIND key=value ...": bytes, or rounds of 1 KiB there and back, a second, and the
 * CPU of each side. tests/bench/stream runs it beside nginx. */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/secure_stream.h"

enum { PIECE = 65536, PING = 1024, WRITES = 4 };

struct side {
    uv_loop_t loop;
    struct identity *identity;
    struct secure_context *context;
    struct secure_listener *listener;
    struct secure_stream *stream;
    uv_tcp_t tcp, tcp_listener;
    uv_write_t writes[WRITES];
    uv_timer_t timer;
    uv_thread_t thread;
    bool sends, ping, secure, ended, writing;
    uint64_t bytes, rounds, cpu_us, wall_us, begun_us;
    size_t partial, owed; /* of a ping */
    char *data, *in;
};

struct bench {
    struct side sender, receiver;
    struct sockaddr_storage address;
    uint64_t milliseconds;
    bool handshakes;
};

static struct bench bench;

static uint64_t thread_cpu_us(void)
{
    struct rusage u;
    assert_always(getrusage(RUSAGE_THREAD, &u) == 0);
    return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000u +
           (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void begin(struct side *side)
{
    side->begun_us = clock_monotonic_us();
    side->cpu_us = thread_cpu_us();
}

static void end(struct side *side)
{
    if (side->ended)
        return;
    side->ended = true;
    side->wall_us = clock_monotonic_us() - side->begun_us;
    side->cpu_us = thread_cpu_us() - side->cpu_us;
    uv_stop(&side->loop);
}

static void time_over_cb(uv_timer_t *timer)
{
    end(container_of(timer, struct side, timer));
}

static void start_clock(struct side *side)
{
    begin(side);
    uv_timer_init(&side->loop, &side->timer);
    uv_timer_start(&side->timer, time_over_cb, bench.milliseconds, 0);
}

static bool key_of(void *user, node_id id, struct identity_public *out)
{
    (void)user;
    *out = *identity_public(id == 1 ? bench.sender.identity : bench.receiver.identity);
    return true;
}

/* --- secure --------------------------------------------------------------------------------------- */

static void secure_send(struct side *side)
{
    size_t count = 0;
    struct iovec part = {side->data, PIECE};
    if (!side->ping) {
        enum secure_result result = SECURE_DONE;
        for (unsigned i = 0; i < 16 && result == SECURE_DONE; i++) {
            result = secure_stream_write(side->stream, &part, 1, &count);
            side->bytes += count;
        }
        assert_always(result != SECURE_BROKEN);
        return;
    }
    while (side->owed > 0) {
        part.iov_len = side->owed;
        enum secure_result result = secure_stream_write(side->stream, &part, 1, &count);
        side->owed -= count;
        if (result != SECURE_DONE)
            break;
    }
}

static void secure_ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct side *side = secure_stream_user(s);
    size_t count = 0;
    if (readable) {
        enum secure_result result = secure_stream_read(s, side->in, PIECE, &count);
        if (result == SECURE_BROKEN || result == SECURE_END) {
            end(side);
            return;
        }
        side->bytes += count;
        for (side->partial += count; side->ping && side->partial >= PING; side->partial -= PING) {
            side->rounds++;
            side->owed += PING;
        }
    }
    if (writable || side->owed > 0)
        secure_send(side);
    bool write = side->ping ? side->owed > 0 : side->sends;
    secure_stream_want(s, SECURE_WANT_READ | (write ? SECURE_WANT_WRITE : 0u));
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    static const struct secure_events events = {.ready = secure_ready_cb};
    struct side *side = user;
    if (bench.handshakes) {
        secure_stream_close(s, NULL);
        return;
    }
    side->stream = s;
    secure_stream_set_events(s, &events, side);
    secure_stream_want(s, SECURE_WANT_READ);
    begin(side);
}

static void secure_connect(struct side *side);

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct side *side = secure_stream_user(s);
    if (error != NULL) {
        fprintf(stderr, "stream: %s\n", error->msg);
        exit(1);
    }
    if (bench.handshakes) {
        side->rounds++;
        secure_stream_close(s, NULL);
        if (!side->ended)
            secure_connect(side);
        return;
    }
    start_clock(side);
    side->owed = side->ping ? PING : 0;
    secure_stream_want(s, SECURE_WANT_READ | SECURE_WANT_WRITE);
}

static void secure_connect(struct side *side)
{
    struct err e;
    struct secure_connect_options options = {
        .context = side->context,
        .address = &bench.address,
        .protocol = SECURE_JOIN,
        .peer = 2,
        .events = {.opened = opened_cb, .ready = secure_ready_cb},
        .user = side};
    assert_always(secure_stream_connect(&side->stream, &side->loop, &options, &e) == 0);
}

static void secure_open(struct side *side, node_id id)
{
    struct err e;
    struct secure_context_options options = {
        .identity = side->identity, .id = id, .key_of = key_of};
    assert_always(secure_context_open(&side->context, &options, &e) == 0);
    if (id == 1)
        return;
    struct secure_listen_options listen = {.context = side->context,
                                           .address = &bench.address,
                                           .protocols = 1u << SECURE_JOIN,
                                           .accepted = accepted_cb,
                                           .user = side};
    assert_always(secure_listener_open(&side->listener, &side->loop, &listen, &e) == 0);
    bench.address = *secure_listener_address(side->listener);
}

/* --- plain ---------------------------------------------------------------------------------------- */

static void tcp_pong(struct side *side);

static void tcp_written_cb(uv_write_t *request, int status)
{
    struct side *side = request->data;
    if (status != 0) {
        end(side);
        return;
    }
    side->writing = false;
    if (side->ping) {
        tcp_pong(side);
        return;
    }
    side->bytes += PIECE;
    uv_buf_t buf = uv_buf_init(side->data, PIECE);
    if (!side->ended)
        uv_write(request, (uv_stream_t *)&side->tcp, &buf, 1, tcp_written_cb);
}

static void tcp_pong(struct side *side)
{
    uv_buf_t buf = uv_buf_init(side->data, PING);
    if (side->owed < PING || side->writing)
        return;
    side->owed -= PING;
    if (uv_try_write((uv_stream_t *)&side->tcp, &buf, 1) == PING)
        return;
    side->writing = true;
    side->writes[0].data = side;
    uv_write(&side->writes[0], (uv_stream_t *)&side->tcp, &buf, 1, tcp_written_cb);
}

static void tcp_alloc_cb(uv_handle_t *handle, size_t size, uv_buf_t *buf)
{
    struct side *side = handle->data;
    (void)size;
    *buf = uv_buf_init(side->in, PIECE);
}

static void tcp_read_cb(uv_stream_t *stream, ssize_t count, const uv_buf_t *buf)
{
    struct side *side = stream->data;
    (void)buf;
    if (count < 0) {
        end(side);
        return;
    }
    side->bytes += (size_t)count;
    for (side->partial += (size_t)count; side->ping && side->partial >= PING;
         side->partial -= PING) {
        side->rounds++;
        side->owed += PING;
        tcp_pong(side);
    }
}

static void tcp_begin(struct side *side)
{
    side->tcp.data = side;
    uv_tcp_nodelay(&side->tcp, 1);
    uv_read_start((uv_stream_t *)&side->tcp, tcp_alloc_cb, tcp_read_cb);
}

static void tcp_accept_cb(uv_stream_t *listener, int status)
{
    struct side *side = listener->data;
    assert_always(status == 0);
    uv_tcp_init(&side->loop, &side->tcp);
    assert_always(uv_accept(listener, (uv_stream_t *)&side->tcp) == 0);
    begin(side);
    tcp_begin(side);
}

static void tcp_connected_cb(uv_connect_t *request, int status)
{
    struct side *side = request->data;
    assert_always(status == 0);
    start_clock(side);
    tcp_begin(side);
    if (side->ping) {
        side->owed = PING;
        tcp_pong(side);
        return;
    }
    for (size_t i = 0; i < WRITES; i++) {
        uv_buf_t buf = uv_buf_init(side->data, PIECE);
        side->writes[i].data = side;
        uv_write(&side->writes[i], (uv_stream_t *)&side->tcp, &buf, 1, tcp_written_cb);
    }
}

static void tcp_listen(struct side *side)
{
    int size = sizeof bench.address;
    uv_tcp_init(&side->loop, &side->tcp_listener);
    side->tcp_listener.data = side;
    assert_always(uv_tcp_bind(&side->tcp_listener, (const struct sockaddr *)&bench.address, 0) ==
                  0);
    assert_always(uv_listen((uv_stream_t *)&side->tcp_listener, 8, tcp_accept_cb) == 0);
    assert_always(
        uv_tcp_getsockname(&side->tcp_listener, (struct sockaddr *)&bench.address, &size) == 0);
}

/* --- both ----------------------------------------------------------------------------------------- */

static void receiver_thread(void *argument)
{
    struct side *side = argument;
    begin(side);
    uv_run(&side->loop, UV_RUN_DEFAULT);
}

static void run(void)
{
    struct side *s = &bench.sender;
    uv_connect_t connect = {.data = s};
    assert_always(uv_thread_create(&bench.receiver.thread, receiver_thread, &bench.receiver) == 0);
    if (s->secure) {
        if (bench.handshakes)
            start_clock(s);
        secure_connect(s);
    } else {
        uv_tcp_init(&s->loop, &s->tcp);
        assert_always(uv_tcp_connect(&connect, &s->tcp, (const struct sockaddr *)&bench.address,
                                     tcp_connected_cb) == 0);
    }
    uv_run(&s->loop, UV_RUN_DEFAULT);
    /* The process ends here, and with it the other side. */
}

static void open_side(struct side *side, bool secure, bool ping)
{
    struct err e;
    side->secure = secure;
    side->ping = ping;
    side->data = calloc(1, PIECE);
    side->in = calloc(1, PIECE);
    assert_always(side->data != NULL && side->in != NULL && uv_loop_init(&side->loop) == 0);
    assert_always(identity_new(&side->identity, &e) == 0);
}

/* CPU of the receiver up to now, which only its own thread can ask for: by its clock. */
static uint64_t receiver_cpu_us(void)
{
    clockid_t id;
    struct timespec at;
    pthread_t thread = bench.receiver.thread;
    assert_always(pthread_getcpuclockid(thread, &id) == 0 && clock_gettime(id, &at) == 0);
    return (uint64_t)at.tv_sec * 1000000u + (uint64_t)at.tv_nsec / 1000u;
}

int main(int argc, char **argv)
{
    struct err e;
    const char *kind = argc == 3 ? argv[1] : "";
    bool secure = strncmp(kind, "tcp-", 4) != 0;
    bool ping = strstr(kind, "-ping") != NULL;
    bench.handshakes = strcmp(kind, "handshakes") == 0;
    if (argc != 3 || (!ping && !bench.handshakes && strstr(kind, "-bulk") == NULL)) {
        fprintf(stderr, "usage: stream secure-bulk|tcp-bulk|secure-ping|tcp-ping|handshakes S\n");
        return 2;
    }
    bench.milliseconds = strtoull(argv[2], NULL, 10) * 1000u;
    assert_always(address_parse(&bench.address, "127.0.0.1:0", 0, &e) == 0);
    open_side(&bench.sender, secure, ping);
    open_side(&bench.receiver, secure, ping);
    bench.sender.sends = true;
    if (secure) {
        secure_open(&bench.receiver, 2);
        secure_open(&bench.sender, 1);
    } else {
        tcp_listen(&bench.receiver);
    }
    run();
    const struct side *s = &bench.sender;
    double seconds = (double)s->wall_us / 1e6;
    double other_us = (double)receiver_cpu_us();
    if (ping || bench.handshakes)
        printf("%s per_second=%.0f sender_cpu_us=%.2f receiver_cpu_us=%.2f\n", kind,
               (double)s->rounds / seconds, (double)s->cpu_us / (double)s->rounds,
               other_us / (double)s->rounds);
    else
        printf("%s megabytes_per_second=%.0f sender_cpu_ns_per_kib=%.1f "
               "receiver_cpu_ns_per_kib=%.1f\n",
               kind, (double)s->bytes / 1e6 / seconds,
               (double)s->cpu_us * 1e3 / ((double)s->bytes / 1024),
               other_us * 1e3 / ((double)s->bytes / 1024));
    fflush(stdout);
    _Exit(0);
}
