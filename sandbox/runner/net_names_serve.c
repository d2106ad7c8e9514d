/* What instances ask. An instance that asks more than its share is not read for a while, so that its
 * flood fills its own socket and costs nobody anything. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/runner/net_names_internal.h"

#define DATAGRAMS_PER_ROUND 8
#define PAUSE_MS 200u
#define CLIENT_IDLE_MS 10000u

/* A TCP connection: one question at a time, as many as it likes. */
struct client {
    struct client *next, **back;
    struct served *served;
    struct loop_watch watch;
    int fd;
    struct loop_timer idle;
    struct question *question;
    uint8_t data[2 + NET_DNS_QUERY_MAX];
    size_t length;
};

static void client_turn(struct client *c);

/* --- questions --------------------------------------------------------------------------------------- */

static void respond(struct served *s, struct client *c, const struct sockaddr_in *to,
                    const struct net_dns_query *query, enum net_dns_code code,
                    const struct net_dns_answer *answer)
{
    uint8_t data[2 + NET_DNS_ANSWER_MAX];
    size_t length = net_dns_answer_write(data + 2, c != NULL ? NET_DNS_ANSWER_MAX : query->udp_max,
                                         query, code, answer);
    if (c == NULL) {
        (void)sendto(s->udp_fd, data + 2, length, MSG_DONTWAIT | MSG_NOSIGNAL,
                     (const struct sockaddr *)to, sizeof *to);
        return;
    }
    data[0] = (uint8_t)(length >> 8);
    data[1] = (uint8_t)length;
    /* One that does not read its answers loses them; its connection ends when it is idle. */
    (void)send(c->fd, data, length + 2, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* The rules that `name` fits. */
static uint64_t rules_of(const struct served *s, const char *name)
{
    uint64_t rules = 0;
    struct destination d = {.kind = DESTINATION_NAME};
    for (size_t i = 0; i < s->rule_count; i++) {
        d.subdomains = s->rules[i].subdomains;
        text_copy(d.name, sizeof d.name, s->rules[i].name);
        if (destination_matches_name(&d, name))
            rules |= 1ull << s->rules[i].index;
    }
    return rules;
}

static bool room_for(const struct served *s)
{
    size_t each = s->f->asked_count < NAMES_ASKED_CROWD ? NAMES_ASKED_EACH : NAMES_ASKED_FEW;
    return s->asked_count < each && s->f->asked_count < NAMES_ASKED_MAX && s->f->resolver_count > 0;
}

static struct question *question_new(struct served *s, struct client *c,
                                     const struct net_dns_query *query, uint64_t rules)
{
    struct question *q = room_for(s) ? calloc(1, sizeof *q) : NULL;
    if (q == NULL)
        return NULL;
    q->served = s;
    q->client = c;
    q->query = *query;
    q->rules = rules;
    q->upstream = LOOP_WATCH_STOPPED;
    q->upstream_fd = -1;
    q->next = s->questions;
    q->back = &s->questions;
    if (q->next != NULL)
        q->next->back = &q->next;
    s->questions = q;
    s->asked_count++;
    s->f->asked_count++;
    return q;
}

/* True: it is under way, and names_answer will be called. */
static bool question_take(struct served *s, struct client *c, const struct sockaddr_in *from,
                          const uint8_t *data, size_t size)
{
    struct net_dns_query query;
    enum net_dns_code code;
    if (!net_dns_query_read(&query, &code, data, size))
        return false;
    uint64_t rules = s->restricted && code == NET_DNS_OK ? rules_of(s, query.name) : 0;
    if (code == NET_DNS_OK && s->restricted && rules == 0)
        code = NET_DNS_NO_NAME;
    bool ask = code == NET_DNS_OK;
    struct question *q = ask ? question_new(s, c, &query, rules) : NULL;
    if (q == NULL) {
        respond(s, c, from, &query, ask ? NET_DNS_FAILED : code, NULL);
        return false;
    }
    if (from != NULL)
        q->from = *from;
    if (c != NULL)
        c->question = q;
    if (names_ask(q))
        return true;
    if (c != NULL)
        c->question = NULL;
    names_question_free(q);
    respond(s, c, from, &query, NET_DNS_FAILED, NULL);
    return false;
}

void names_answer(struct question *q, enum net_dns_code code)
{
    struct served *s = q->served;
    struct client *c = q->client;
    bool whole = code == NET_DNS_OK || code == NET_DNS_NO_NAME;
    respond(s, c, &q->from, &q->query, code, whole ? &q->answer : NULL);
    names_question_free(q);
    if (c != NULL) {
        c->question = NULL;
        client_turn(c);
    }
}

/* --- shares -------------------------------------------------------------------------------------------- */

static void udp_cb(struct loop_watch *watch, uint32_t events);
static void tcp_cb(struct loop_watch *watch, uint32_t events);

static bool listening_start(struct served *s)
{
    struct err e;
    return loop_watch_start(s->f->loop, &s->udp, s->udp_fd, EPOLLIN, udp_cb, &e) == 0 &&
           loop_watch_start(s->f->loop, &s->tcp, s->tcp_fd, EPOLLIN, tcp_cb, &e) == 0;
}

static void resume_cb(struct loop_timer *timer)
{
    struct served *s = container_of(timer, struct served, resume);
    if (!listening_start(s))
        names_served_free(s);
}

/* False: it has asked too much, and is not heard for a while. */
static bool share_take(struct served *s)
{
    struct err e;
    uint64_t now = clock_boot_ms();
    if (names_rate_take(&s->rate, NAMES_PER_SECOND, NAMES_BURST, now))
        return true;
    loop_watch_stop(s->f->loop, &s->udp);
    loop_watch_stop(s->f->loop, &s->tcp);
    /* There is a timer for each instance. */
    assert_always(loop_timer_start(s->f->loop, &s->resume, now + PAUSE_MS, resume_cb, &e) == 0);
    return false;
}

static void udp_cb(struct loop_watch *watch, uint32_t events)
{
    struct served *s = container_of(watch, struct served, udp);
    uint8_t data[NET_DNS_QUERY_MAX + 1];
    (void)events;
    for (int i = 0; i < DATAGRAMS_PER_ROUND; i++) {
        struct sockaddr_in from = {0};
        socklen_t length = sizeof from;
        ssize_t n =
            recvfrom(s->udp_fd, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&from, &length);
        if (n < 0 || !share_take(s))
            return;
        if (length == sizeof from && from.sin_family == AF_INET)
            (void)question_take(s, NULL, &from, data, (size_t)n);
    }
}

/* --- connections ---------------------------------------------------------------------------------------- */

static void client_free(struct client *c)
{
    struct served *s = c->served;
    if (c->question != NULL)
        names_question_free(c->question);
    loop_watch_stop(s->f->loop, &c->watch);
    loop_timer_stop(s->f->loop, &c->idle);
    memory_close(&c->fd);
    *c->back = c->next;
    if (c->next != NULL)
        c->next->back = c->back;
    s->client_count--;
    s->f->client_count--;
    free(c);
}

static void client_idle_cb(struct loop_timer *timer)
{
    client_free(container_of(timer, struct client, idle));
}

/* Takes a question that is whole; false when there is none. */
static bool client_question(struct client *c, uint8_t data[NET_DNS_QUERY_MAX], size_t *size)
{
    *size = c->length < 2 ? 0 : (size_t)c->data[0] << 8 | c->data[1];
    if (c->length < 2 || *size > NET_DNS_QUERY_MAX || c->length < 2 + *size)
        return false;
    memcpy(data, c->data + 2, *size);
    c->length -= 2 + *size;
    memmove(c->data, c->data + 2 + *size, c->length);
    return true;
}

static void client_cb(struct loop_watch *watch, uint32_t events)
{
    struct client *c = container_of(watch, struct client, watch);
    (void)events;
    ssize_t n = recv(c->fd, c->data + c->length, sizeof c->data - c->length, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        client_free(c);
        return;
    }
    c->length += (size_t)n;
    loop_watch_stop(c->served->f->loop, &c->watch);
    client_turn(c);
}

/* Questions that came, until one is under way or more has to be read. Its watch is stopped. */
static void client_turn(struct client *c)
{
    uint8_t data[NET_DNS_QUERY_MAX];
    size_t size;
    struct err e;
    while (client_question(c, data, &size)) {
        if (!share_take(c->served)) {
            client_free(c);
            return;
        }
        if (question_take(c->served, c, NULL, data, size))
            return;
    }
    if (size > NET_DNS_QUERY_MAX ||
        loop_watch_start(c->served->f->loop, &c->watch, c->fd, EPOLLIN, client_cb, &e) < 0)
        client_free(c);
}

static void tcp_cb(struct loop_watch *watch, uint32_t events)
{
    struct served *s = container_of(watch, struct served, tcp);
    struct err e;
    (void)events;
    if (!share_take(s))
        return;
    int fd = accept4(s->tcp_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct client *c =
        s->client_count < NAMES_CLIENTS_EACH && s->f->client_count < NAMES_CLIENTS_MAX
            ? calloc(1, sizeof *c)
            : NULL;
    if (c == NULL) {
        close(fd);
        return;
    }
    c->served = s;
    c->fd = fd;
    c->watch = LOOP_WATCH_STOPPED;
    c->next = s->clients;
    c->back = &s->clients;
    if (c->next != NULL)
        c->next->back = &c->next;
    s->clients = c;
    s->client_count++;
    s->f->client_count++;
    if (loop_timer_start(s->f->loop, &c->idle, clock_boot_ms() + CLIENT_IDLE_MS, client_idle_cb,
                         &e) < 0 ||
        loop_watch_start(s->f->loop, &c->watch, fd, EPOLLIN, client_cb, &e) < 0)
        client_free(c);
}

/* --- instances ------------------------------------------------------------------------------------------- */

void names_served_free(struct served *s)
{
    while (s->clients != NULL)
        client_free(s->clients);
    while (s->questions != NULL)
        names_question_free(s->questions);
    loop_timer_stop(s->f->loop, &s->resume);
    loop_watch_stop(s->f->loop, &s->udp);
    loop_watch_stop(s->f->loop, &s->tcp);
    memory_close(&s->udp_fd);
    memory_close(&s->tcp_fd);
    HASH_DEL(s->f->served, s);
    free(s->rules);
    free(s);
}

void names_served_add(struct forwarder *f, const struct names_message *m, int udp, int tcp)
{
    struct served *s = calloc(1, sizeof *s);
    struct names_rule *rules = calloc(m->count + 1, sizeof *rules);
    if (s == NULL || rules == NULL) {
        free(s);
        free(rules);
        memory_close(&udp);
        memory_close(&tcp);
        return;
    }
    memcpy(rules, m->rule, m->count * sizeof *rules);
    *s = (struct served){.f = f,
                         .number = m->number,
                         .udp = LOOP_WATCH_STOPPED,
                         .tcp = LOOP_WATCH_STOPPED,
                         .udp_fd = udp,
                         .tcp_fd = tcp,
                         .restricted = m->restricted,
                         .rule_count = m->count,
                         .rules = rules};
    HASH_ADD(hh, f->served, number, sizeof s->number, s);
    if (!listening_start(s))
        names_served_free(s);
}
