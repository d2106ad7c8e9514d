/* One question on its way: a resolver is asked over UDP, from a socket and with an id of its own, then
 * the next one; over TCP what was truncated; then the runner, where an answer opens something. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/runner/net_names_internal.h"

#define DATAGRAMS_PER_ROUND 8
#define UNSENT_MS 100u

static bool attempt_begin(struct question *q);

static void upstream_close(struct question *q)
{
    loop_watch_stop(q->served->f->loop, &q->upstream);
    memory_close(&q->upstream_fd);
    free(steal_pointer(&q->reply));
    q->reply_length = 0;
    q->sent = q->stream = false;
}

void names_question_free(struct question *q)
{
    struct forwarder *f = q->served->f;
    upstream_close(q);
    loop_timer_stop(f->loop, &q->timer);
    if (q->seq != 0)
        HASH_DEL(f->allows, q);
    *q->back = q->next;
    if (q->next != NULL)
        q->next->back = q->back;
    q->served->asked_count--;
    f->asked_count--;
    free(q);
}

static void next_attempt(struct question *q)
{
    upstream_close(q);
    q->attempt++;
    if (!attempt_begin(q))
        names_answer(q, NET_DNS_FAILED);
}

static void timer_cb(struct loop_timer *timer)
{
    struct question *q = container_of(timer, struct question, timer);
    if (q->seq != 0 || clock_boot_ms() >= q->end_ms)
        names_answer(q, NET_DNS_FAILED);
    else
        next_attempt(q);
}

/* --- what an answer opens ---------------------------------------------------------------------------- */

/* Before the answer is given, so that the first connection is let through. */
static void runner_ask(struct question *q)
{
    struct forwarder *f = q->served->f;
    struct names_message m = {.kind = NAMES_ALLOW,
                              .number = q->served->number,
                              .seq = ++f->next_seq,
                              .rules = q->rules,
                              .ttl = q->answer.ttl,
                              .count = (uint32_t)q->answer.address_count};
    struct err e;
    memcpy(m.addresses, q->answer.addresses, q->answer.address_count * sizeof(uint32_t));
    q->seq = m.seq;
    HASH_ADD(hh, f->allows, seq, sizeof q->seq, q);
    if (names_message_send(f->channel.fd, &m, NULL, 0) != 0 ||
        loop_timer_start(f->loop, &q->timer, q->end_ms, timer_cb, &e) < 0)
        names_answer(q, NET_DNS_FAILED);
}

void names_confirmed(struct forwarder *f, uint64_t seq, bool done)
{
    struct question *q;
    HASH_FIND(hh, f->allows, &seq, sizeof seq, q);
    if (q != NULL)
        names_answer(q, done ? q->answer.code : NET_DNS_FAILED);
}

static void answered(struct question *q)
{
    upstream_close(q);
    bool opens = q->query.type == NET_DNS_TYPE_A && q->answer.address_count > 0;
    if (q->served->restricted && opens)
        runner_ask(q);
    else
        names_answer(q, q->answer.code);
}

/* --- over TCP ------------------------------------------------------------------------------------------ */

/* False: this attempt is over. */
static bool stream_send(struct question *q)
{
    uint8_t message[2 + NET_DNS_QUERY_MAX];
    struct err e;
    size_t length = net_dns_ask_write(message + 2, q->id, &q->query);
    message[0] = (uint8_t)(length >> 8);
    message[1] = (uint8_t)length;
    /* A new connection's buffer has room for the whole. */
    if (send(q->upstream_fd, message, length + 2, MSG_DONTWAIT | MSG_NOSIGNAL) !=
        (ssize_t)length + 2)
        return false;
    q->sent = true;
    return loop_watch_change(q->served->f->loop, &q->upstream, EPOLLIN, &e) == 0;
}

/* 1: whole, 0: more is to come, -1: this attempt is over. */
static int stream_receive(struct question *q)
{
    size_t want = 2;
    if (q->reply_length >= 2)
        want += (size_t)q->reply[0] << 8 | q->reply[1];
    if (want > 2 + NET_DNS_REPLY_MAX)
        return -1;
    ssize_t n =
        recv(q->upstream_fd, q->reply + q->reply_length, want - q->reply_length, MSG_DONTWAIT);
    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    q->reply_length += (size_t)n;
    return want > 2 && q->reply_length == want;
}

static void stream_cb(struct loop_watch *watch, uint32_t events)
{
    struct question *q = container_of(watch, struct question, upstream);
    (void)events;
    if (!q->sent) {
        if (!stream_send(q))
            next_attempt(q);
        return;
    }
    int got = stream_receive(q);
    if (got == 0)
        return;
    if (got > 0 && net_dns_reply_read(&q->answer, q->reply + 2, q->reply_length - 2, q->id,
                                      &q->query) == NET_DNS_REPLY_WHOLE)
        answered(q);
    else
        next_attempt(q);
}

/* --- over UDP ------------------------------------------------------------------------------------------ */

static const union names_address *resolver_of(const struct question *q)
{
    const struct forwarder *f = q->served->f;
    return &f->resolvers[q->attempt % f->resolver_count];
}

/* A socket to the resolver; its port is the kernel's random choice. */
static bool upstream_open(struct question *q, int type)
{
    const union names_address *to = resolver_of(q);
    socklen_t length = to->any.sa_family == AF_INET ? sizeof to->v4 : sizeof to->v6;
    q->upstream_fd = socket(to->any.sa_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return q->upstream_fd >= 0 && getrandom(&q->id, sizeof q->id, 0) == (ssize_t)sizeof q->id &&
           (connect(q->upstream_fd, &to->any, length) == 0 || errno == EINPROGRESS);
}

static void stream_begin(struct question *q)
{
    struct err e;
    upstream_close(q);
    q->stream = true;
    q->reply = malloc(2 + NET_DNS_REPLY_MAX);
    if (q->reply == NULL || !upstream_open(q, SOCK_STREAM) ||
        loop_watch_start(q->served->f->loop, &q->upstream, q->upstream_fd, EPOLLOUT, stream_cb,
                         &e) < 0)
        next_attempt(q);
}

static void datagram_cb(struct loop_watch *watch, uint32_t events)
{
    struct question *q = container_of(watch, struct question, upstream);
    uint8_t data[NET_DNS_UDP_MAX + 1];
    (void)events;
    for (int i = 0; i < DATAGRAMS_PER_ROUND; i++) {
        ssize_t n = recv(q->upstream_fd, data, sizeof data, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        enum net_dns_reply reply =
            n < 0 ? NET_DNS_REPLY_FAILED /* nobody is there */
                  : net_dns_reply_read(&q->answer, data, (size_t)n, q->id, &q->query);
        if (reply == NET_DNS_REPLY_FOREIGN && ++q->foreign % NAMES_FOREIGN_MAX != 0)
            continue;
        if (reply == NET_DNS_REPLY_WHOLE)
            answered(q);
        else if (reply == NET_DNS_REPLY_TRUNCATED)
            stream_begin(q);
        else
            next_attempt(q);
        return;
    }
}

/* False: there is none any more. */
static bool attempt_begin(struct question *q)
{
    struct forwarder *f = q->served->f;
    uint8_t message[NET_DNS_QUERY_MAX];
    struct err e;
    uint64_t now = clock_boot_ms(), end = now + NAMES_ATTEMPT_MS;
    /* Each is asked twice at most. */
    if (now >= q->end_ms || q->attempt >= 2 * f->resolver_count)
        return false;
    bool good = upstream_open(q, SOCK_DGRAM);
    if (good) {
        size_t length = net_dns_ask_write(message, q->id, &q->query);
        good =
            send(q->upstream_fd, message, length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)length &&
            loop_watch_start(f->loop, &q->upstream, q->upstream_fd, EPOLLIN, datagram_cb, &e) == 0;
    }
    /* One that cannot even be sent to is left for the timer, so that nothing turns in a circle. */
    if (!good)
        upstream_close(q);
    return loop_timer_start(f->loop, &q->timer,
                            good ? (end < q->end_ms ? end : q->end_ms) : now + UNSENT_MS, timer_cb,
                            &e) == 0;
}

bool names_ask(struct question *q)
{
    q->end_ms = clock_boot_ms() + NAMES_TOTAL_MS;
    return attempt_begin(q);
}
