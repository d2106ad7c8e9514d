#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/memory.h"
#include "gateway/remote.h"
#include "gateway/thread.h"

/* Connections to code. One that lives on another node is a stream to that node (remote.c). Sockets come from the runner in batches, made inside the instance's network
 * namespace; here they are connected, used for one request after the other, and closed when they
 * idle. A spare socket keeps its namespace alive, so spares of ended instances go with the sweep. */

enum { BATCH_MAX = 32, UPSTREAMS_KEPT_MAX = 256, PORT_POOLS_MAX = 16, PORT_BATCH = 2 };

/* Other ports than the workload's are on the loopback of the instance. What listens on 127.0.0.1 alone is
 * meant for the code itself; what listens on all addresses answers here too. */
static const uint8_t loopback_own[4] = {127, 0, 0, 1}, loopback_open[4] = {127, 83, 75, 82};

static void poll_cb(uv_poll_t *poll, int status, int events);

void upstream_set_mask(struct upstream *u, int mask)
{
    if (mask == u->mask)
        return;
    u->mask = mask;
    if (u->remote != NULL)
        remote_set_mask(u->remote, mask);
    else if (mask != 0)
        uv_poll_start(&u->poll, mask, poll_cb);
    else
        uv_poll_stop(&u->poll);
}

static void closed_cb(uv_handle_t *handle)
{
    struct upstream *u = handle->data;
    struct gateway_thread *t = u->thread;
    t->upstream_count--;
    if (t->free_upstream_count < UPSTREAMS_KEPT_MAX) {
        u->older = t->free_upstreams;
        t->free_upstreams = u;
        t->free_upstream_count++;
    } else {
        free(u);
    }
    thread_check_closed(t);
}

static void idle_remove(struct upstream *u)
{
    struct pool *pool = u->pool;
    if (u->newer != NULL)
        u->newer->older = u->older;
    else
        pool->idle_first = u->older;
    if (u->older != NULL)
        u->older->newer = u->newer;
    else
        pool->idle_last = u->newer;
    u->newer = u->older = NULL;
}

static void upstream_close(struct upstream *u)
{
    struct gateway_thread *t = u->thread;
    u->pool->upstream_count--;
    queue_clear(&t->blocks, &u->in);
    uv_close((uv_handle_t *)&u->poll, closed_cb);
    memory_close(&u->fd);
}

static void pool_use(struct pool *pool)
{
    if (pool->used)
        return;
    pool->used = true;
    pool->next_used = pool->thread->pools_used;
    pool->thread->pools_used = pool;
}

/* To the first that waits for one, which begins as it does on a new connection: in a turn of its own. */
static bool hand_on(struct upstream *u)
{
    struct connection *c = u->pool->waiting_first;
    if (c == NULL || c->waits_for_fresh)
        return false;
    upstream_stop_waiting(c);
    c->phase = PHASE_JOIN;
    c->x.upstream = u;
    u->connection = c;
    u->connected = false;
    u->reused = true;
    count(&u->thread->counters.upstream_reuses, 1);
    upstream_set_mask(u, UV_WRITABLE);
    c->bridge->set_deadline(c);
    return true;
}

void upstream_release(struct upstream *u, enum upstream_end end)
{
    struct gateway_thread *t = u->thread;
    struct pool *pool = u->pool;
    /* What broke off does not look to the code as if it had ended. */
    if (end == UPSTREAM_BROKEN_OFF && u->remote == NULL && u->connection != NULL &&
        u->connection->x.raw) {
        struct linger linger = {.l_onoff = 1, .l_linger = 0};
        setsockopt(u->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    if (u->connection != NULL)
        u->connection->x.upstream = NULL;
    u->connection = NULL;
    if (u->remote != NULL) {
        remote_release(u->remote, end);
        return;
    }
    if (end != UPSTREAM_KEEP || pool->one_at_a_time || t->closing || !slot_live(pool->ref)) {
        upstream_close(u);
        return;
    }
    queue_clear(&t->blocks, &u->in);
    u->reading_stopped = false;
    if (hand_on(u))
        return;
    u->idle_until_ms = thread_now_ms(t) + u->idle_max_ms;
    if (pool->idle_first != NULL && pool->parallel_seen < PARALLEL_SEEN_MIN)
        pool->parallel_seen++;
    u->newer = NULL;
    u->older = pool->idle_first;
    if (u->older != NULL)
        u->older->newer = u;
    else
        pool->idle_last = u;
    pool->idle_first = u;
    upstream_set_mask(u, UV_READABLE);
    pool_use(pool);
}

/* --- pools --- */

static void pool_empty(struct pool *pool)
{
    while (pool->idle_first != NULL) {
        struct upstream *u = pool->idle_first;
        idle_remove(u);
        upstream_close(u);
    }
    while (pool->spare_count > 0)
        memory_close(&pool->spare[--pool->spare_count]);
}

static bool pools_grow(struct gateway_thread *t, size_t index)
{
    size_t size = t->pools_size == 0 ? 64 : t->pools_size;
    while (size <= index)
        size *= 2;
    struct pool **pools = realloc(t->pools, size * sizeof *pools);
    if (pools == NULL)
        return false;
    memset(pools + t->pools_size, 0, (size - t->pools_size) * sizeof *pools);
    t->pools = pools;
    t->pools_size = size;
    return true;
}

static struct pool *pool_new(struct gateway_thread *t, struct slot_ref ref)
{
    struct pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return NULL;
    pool->thread = t;
    pool->batch = GATEWAY_SOCKETS_FIRST;
    pool->ref = ref;
    return pool;
}

static void pool_reset(struct pool *pool, struct slot_ref ref)
{
    pool_empty(pool);
    pool->ref = ref;
    pool->batch = GATEWAY_SOCKETS_FIRST;
    pool->one_at_a_time = false;
    pool->suspect_after_ms = 0;
    pool->parallel_seen = 0;
    pool->answers_in_parts = false;
}

static struct pool *pool_lookup(const struct gateway_thread *t, struct slot_ref ref, uint16_t port,
                                bool open_only)
{
    struct pool *pool = ref.slot->index < t->pools_size ? t->pools[ref.slot->index] : NULL;
    while (pool != NULL && (pool->port != port || (port != 0 && pool->open_only != open_only)))
        pool = pool->next_port;
    return pool;
}

/* One that no exchange uses, of whatever port; NULL if there may be one more, or (`*full`) not. */
static struct pool *port_pool_unused(struct pool *of_slot, bool *full)
{
    struct pool *found = NULL;
    unsigned count = 0;
    for (struct pool *pool = of_slot->next_port; pool != NULL; pool = pool->next_port) {
        unsigned idle = 0;
        for (const struct upstream *u = pool->idle_first; u != NULL; u = u->older)
            idle++;
        count++;
        if (pool->upstream_count == idle && pool->waiting_first == NULL && !pool->want_out)
            found = pool;
    }
    *full = count >= PORT_POOLS_MAX;
    return *full ? found : NULL;
}

/* The pool of a port, behind that of the slot. */
static struct pool *port_pool_add(struct gateway_thread *t, struct slot_ref ref, uint16_t port,
                                  bool open_only)
{
    struct pool *of_slot = t->pools[ref.slot->index];
    bool full = false;
    struct pool *pool = port_pool_unused(of_slot, &full);
    if (pool == NULL && !full) {
        pool = pool_new(t, ref);
        if (pool != NULL) {
            pool->next_port = of_slot->next_port;
            of_slot->next_port = pool;
        }
    }
    if (pool == NULL)
        return NULL;
    pool_reset(pool, ref);
    pool->port = port;
    pool->open_only = open_only;
    pool->ipv6 = false;
    return pool;
}

static struct pool *pool_find(struct gateway_thread *t, struct slot_ref ref, uint16_t port,
                              bool open_only)
{
    size_t index = ref.slot->index;
    if (index >= t->pools_size && !pools_grow(t, index))
        return NULL;
    if (t->pools[index] == NULL)
        t->pools[index] = pool_new(t, ref);
    if (t->pools[index] == NULL)
        return NULL;
    struct pool *pool = pool_lookup(t, ref, port, open_only);
    if (pool == NULL)
        return port_pool_add(t, ref, port, open_only);
    if (pool->ref.generation != ref.generation)
        pool_reset(pool, ref);
    return pool;
}

/* --- connecting --- */

static struct upstream *upstream_new(struct gateway_thread *t, struct pool *pool, int fd)
{
    struct upstream *u = t->free_upstreams;
    if (u != NULL) {
        t->free_upstreams = u->older;
        t->free_upstream_count--;
    } else {
        u = malloc(sizeof *u);
    }
    if (u == NULL)
        return NULL;
    *u = (struct upstream){.thread = t, .pool = pool, .fd = fd, .idle_max_ms = UPSTREAM_IDLE_MS};
    if (uv_poll_init(&t->loop, &u->poll, fd) != 0) {
        free(u);
        return NULL;
    }
    u->poll.data = u;
    t->upstream_count++;
    pool->upstream_count++;
    return u;
}

static socklen_t target_address(const struct slot_target *target, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof *out);
    if (target->ipv6) {
        struct sockaddr_in6 *six = (struct sockaddr_in6 *)(void *)out;
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(target->port);
        memcpy(&six->sin6_addr, target->address, 16);
        return sizeof *six;
    }
    struct sockaddr_in *four = (struct sockaddr_in *)(void *)out;
    four->sin_family = AF_INET;
    four->sin_port = htons(target->port);
    memcpy(&four->sin_addr, target->address, 4);
    return sizeof *four;
}

static struct slot_target target_of(const struct pool *pool)
{
    struct slot_target target = pool->ref.slot->target;
    if (pool->port == 0)
        return target;
    target = (struct slot_target){.ipv6 = pool->ipv6, .port = pool->port};
    if (pool->ipv6)
        target.address[15] = 1; /* ::1 */
    else
        memcpy(target.address, pool->open_only ? loopback_open : loopback_own, 4);
    return target;
}

/* Sockets are of one family. */
static bool wants_ipv6(const struct pool *pool)
{
    return pool->port == 0 ? pool->ref.slot->target.ipv6 : pool->ipv6;
}

static void connected(struct upstream *u)
{
    u->connected = true;
    u->connection->bridge->connected(u->connection);
}

static const char no_socket[] = "there was no socket for the instance";

static void connect_failed(struct connection *c, const struct pool *pool, int error)
{
    char detail[240];
    text_format(detail, sizeof detail, "the code does not take connections on port %u%s: %s",
                (unsigned)target_of(pool).port,
                pool->port != 0 && pool->open_only
                    ? " of all addresses (without a token, one on 127.0.0.1 alone is not reached)"
                    : "",
                strerror(error));
    c->bridge->unreachable(c, detail);
}

/* Another port may be on the loopback of the other family: Node's "localhost" is ::1. */
static bool try_other_family(struct connection *c, struct pool *pool, int error)
{
    if (pool->port == 0 || pool->open_only || error != ECONNREFUSED || c->x.port_tries++ > 0)
        return false;
    if (pool->ipv6 == c->x.upstream->ipv6) { /* nobody has learned it meanwhile */
        while (pool->spare_count > 0)
            memory_close(&pool->spare[--pool->spare_count]);
        pool->ipv6 = !pool->ipv6;
    }
    upstream_release(c->x.upstream, UPSTREAM_BROKEN_OFF);
    upstream_acquire(c, true);
    return true;
}

static void connect_with(struct connection *c, struct pool *pool, int fd)
{
    struct gateway_thread *t = c->thread;
    c->phase = PHASE_JOIN;
    struct upstream *u = upstream_new(t, pool, fd);
    if (u == NULL) {
        memory_close(&fd);
        connect_failed(c, pool, ENOMEM);
        return;
    }
    u->ipv6 = wants_ipv6(pool);
    u->connection = c;
    c->x.upstream = u;
    count(&t->counters.upstream_connects, 1);
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_storage address;
    struct slot_target target = target_of(pool);
    socklen_t length = target_address(&target, &address);
    int rc;
    do
        rc = connect(fd, (struct sockaddr *)&address, length);
    while (rc != 0 && errno == EINTR);
    if (rc != 0 && errno != EINPROGRESS) {
        int error = errno;
        if (!try_other_family(c, pool, error))
            connect_failed(c, pool, error);
        return;
    }
    /* Within one machine the connection is there already, though the call says otherwise. */
    struct pollfd now = {.fd = fd, .events = POLLOUT};
    if (rc == 0 || (poll(&now, 1, 0) == 1 && now.revents == POLLOUT)) {
        connected(u);
        return;
    }
    upstream_set_mask(u, UV_WRITABLE);
    c->bridge->set_deadline(c);
}

/* --- sockets --- */

static void wait_add(struct connection *c, struct pool *pool, bool fresh)
{
    c->phase = PHASE_SOCKET;
    c->waits_for = pool;
    c->waits_for_fresh = fresh;
    pool->waiting_count++;
    c->wait_next = NULL;
    c->wait_previous = pool->waiting_last;
    if (pool->waiting_last != NULL)
        pool->waiting_last->wait_next = c;
    else
        pool->waiting_first = c;
    pool->waiting_last = c;
}

void upstream_stop_waiting(struct connection *c)
{
    struct pool *pool = c->waits_for;
    if (pool == NULL)
        return;
    if (c->wait_previous != NULL)
        c->wait_previous->wait_next = c->wait_next;
    else
        pool->waiting_first = c->wait_next;
    if (c->wait_next != NULL)
        c->wait_next->wait_previous = c->wait_previous;
    else
        pool->waiting_last = c->wait_previous;
    c->wait_previous = c->wait_next = NULL;
    c->waits_for = NULL;
    pool->waiting_count--;
}

static void refuse_waiting(struct pool *pool)
{
    while (pool->waiting_first != NULL) {
        struct connection *c = pool->waiting_first;
        upstream_stop_waiting(c);
        c->bridge->unreachable(c, no_socket);
    }
}

static void sockets_ask(struct pool *pool)
{
    struct gateway_thread *t = pool->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    if (pool->want_out)
        return;
    unsigned count = pool->waiting_count > pool->batch ? pool->waiting_count : pool->batch;
    pool->want = (struct gateway_sockets){
        .thread = t,
        .slot = pool->ref,
        .ipv6 = wants_ipv6(pool),
        .count = count < GATEWAY_SOCKETS_MAX ? count : GATEWAY_SOCKETS_MAX};
    if (pool->port != 0) /* somebody may try them all */
        pool->want.count = PORT_BATCH;
    else if (pool->batch < BATCH_MAX)
        pool->batch *= 2;
    pool->want_out = true;
    t->sockets_out++;
    if (calls->sockets(calls->user, &pool->want))
        return;
    t->sockets_out--;
    pool->want_out = false;
    refuse_waiting(pool);
}

static void sockets_answered(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    struct gateway_sockets *want = container_of(message, struct gateway_sockets, message);
    struct pool *pool = container_of(want, struct pool, want);
    pool->want_out = false;
    t->sockets_out--;
    bool current = want->slot.generation == pool->ref.generation && !t->closing &&
                   want->ipv6 == wants_ipv6(pool);
    bool failed = want->error != 0 || want->descriptor_count == 0;
    for (unsigned i = 0; i < want->descriptor_count && i < GATEWAY_SOCKETS_MAX; i++) {
        if (current && pool->spare_count < GATEWAY_SOCKETS_MAX)
            pool->spare[pool->spare_count++] = want->descriptors[i];
        else
            memory_close(&want->descriptors[i]);
    }
    pool->spare_used_ms = thread_now_ms(t);
    pool_use(pool);
    while (pool->waiting_first != NULL && pool->spare_count > 0) {
        struct connection *c = pool->waiting_first;
        upstream_stop_waiting(c);
        connect_with(c, pool, pool->spare[--pool->spare_count]);
    }
    /* Without a runner for a while: one that is used may come free, and the sweep asks again. */
    bool later = want->error == ERR_UNAVAILABLE && pool->upstream_count > 0;
    if (pool->waiting_first != NULL && current && failed && !later)
        refuse_waiting(pool);
    else if (pool->waiting_first != NULL && !(failed && later))
        sockets_ask(pool);
    thread_check_closed(t);
}

void gateway_sockets_answer(struct gateway_sockets *want)
{
    want->message.deliver = sockets_answered;
    bool posted = inbox_post_always(want->thread->inbox, &want->message);
    assert_always(posted);
}

/* A request that must not be sent twice goes only to a connection that is alive right now. */
static bool idle_usable(const struct connection *c, const struct upstream *u)
{
    char byte;
    if (http_method_idempotent(c->x.method) && c->x.up.done)
        return true;
    return recv(u->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

void upstream_acquire(struct connection *c, bool fresh)
{
    struct gateway_thread *t = c->thread;
    struct pool *pool = pool_find(t, c->x.slot, c->x.port, c->x.port != 0 && !c->x.port_any);
    if (pool == NULL) {
        c->bridge->unreachable(
            c, c->x.port == 0 ? no_socket
                              : "too many ports of the instance are joined at once; try again");
        return;
    }
    while (!fresh && pool->idle_first != NULL) {
        struct upstream *u = pool->idle_first;
        idle_remove(u);
        if (!idle_usable(c, u)) {
            upstream_close(u);
            continue;
        }
        u->reused = true;
        u->connection = c;
        c->x.upstream = u;
        count(&t->counters.upstream_reuses, 1);
        c->phase = PHASE_JOIN;
        c->bridge->connected(c);
        return;
    }
    c->x.connect_until_ms = thread_now_ms(t) + CONNECT_TIMEOUT_MS;
    if (pool->spare_count > 0) {
        pool->spare_used_ms = thread_now_ms(t);
        connect_with(c, pool, pool->spare[--pool->spare_count]);
        return;
    }
    wait_add(c, pool, fresh);
    c->bridge->set_deadline(c);
    sockets_ask(pool);
}

/* --- using --- */

enum queue_write upstream_flush(struct connection *c)
{
    struct exchange *x = &c->x;
    struct upstream *u = x->upstream;
    struct block_pool *blocks = &c->thread->blocks;
    if (u->remote != NULL)
        return remote_flush(c);
    size_t head = queue_pending(&x->head) - x->head_sent;
    if (head == 0) {
        size_t written = 0;
        enum queue_write result = queue_send(blocks, &x->out, u->fd, true, &written);
        x->sent_any = x->sent_any || written > 0;
        return result;
    }
    struct iovec parts[2] = {
        {(char *)queue_data(&x->head) + x->head_sent, head},
        {queue_pending(&x->out) > 0 ? (char *)queue_data(&x->out) : NULL, queue_pending(&x->out)},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = parts[1].iov_len > 0 ? 2 : 1};
    ssize_t n;
    do
        n = sendmsg(u->fd, &message, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? QUEUE_BLOCKED : QUEUE_BROKEN;
    x->sent_any = true;
    size_t of_head = (size_t)n < head ? (size_t)n : head;
    x->head_sent += of_head;
    queue_consume(blocks, &x->out, (size_t)n - of_head);
    return of_head == head && queue_pending(&x->out) == 0 ? QUEUE_EMPTY : QUEUE_BLOCKED;
}

void upstream_end_sending(struct upstream *u)
{
    if (u->sending_done)
        return;
    u->sending_done = true;
    if (u->remote != NULL)
        remote_end_sending(u->remote);
    else
        shutdown(u->fd, SHUT_WR);
}

static void poll_cb(uv_poll_t *poll, int status, int events)
{
    struct upstream *u = container_of(poll, struct upstream, poll);
    struct connection *c = u->connection;
    if (status < 0) { /* libuv has stopped polling; reading says why */
        u->mask = 0;
        events = UV_READABLE | UV_WRITABLE;
    }
    if (c == NULL) { /* idle: it was closed, or says what nobody asked */
        idle_remove(u);
        upstream_close(u);
        return;
    }
    if (!u->connected && u->reused) {
        if (idle_usable(c, u)) {
            connected(u);
        } else {
            upstream_release(u, UPSTREAM_BROKEN_OFF);
            upstream_acquire(c, true);
        }
        return;
    }
    if (!u->connected) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(u->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error == 0)
            connected(u);
        else if (!try_other_family(c, u->pool, error))
            connect_failed(c, u->pool, error);
        return;
    }
    if ((events & UV_WRITABLE) != 0)
        c->bridge->writable(c);
    if ((events & UV_READABLE) != 0 && u->connection == c)
        c->bridge->readable(c);
}

/* Code that writes its head and its body apart, without TCP_NODELAY, sends the second only when the
 * first was acknowledged, and a delayed acknowledgement takes 40 ms. This sends it now. */
void upstream_acknowledge(struct upstream *u)
{
    int on = 1;
    if (u->remote == NULL)
        setsockopt(u->fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
}

/* --- code that serves one connection at a time --- */

struct suspicion {
    struct inbox_message message;
    struct slot_ref slot;
    uint16_t port;
    bool open_only;
    bool confirmed;
};

static void suspect(struct gateway_thread *t, const struct suspicion *s)
{
    struct pool *pool = pool_lookup(t, s->slot, s->port, s->open_only);
    bool confirmed = s->confirmed;
    if (pool == NULL || pool->ref.generation != s->slot.generation)
        return;
    pool->one_at_a_time = pool->one_at_a_time || confirmed;
    while (pool->idle_first != NULL) {
        struct upstream *u = pool->idle_first;
        idle_remove(u);
        upstream_close(u);
    }
}

static void suspicion_deliver(struct inbox_message *message, void *owner)
{
    struct suspicion *suspicion = container_of(message, struct suspicion, message);
    suspect(owner, suspicion);
    free(suspicion);
}

static void suspect_everywhere(struct connection *c, bool confirmed)
{
    struct gateway_thread *t = c->thread;
    struct gateway *g = t->gateway;
    const struct suspicion all = {{.deliver = suspicion_deliver},
                                  c->x.slot,
                                  c->x.port,
                                  c->x.port != 0 && !c->x.port_any,
                                  confirmed};
    suspect(t, &all);
    if (t->closing) /* the inboxes of others may be closed already */
        return;
    for (unsigned i = 0; i < g->thread_count; i++) {
        struct suspicion *suspicion = i == t->index ? NULL : malloc(sizeof *suspicion);
        if (suspicion == NULL)
            continue; /* it is only a matter of speed */
        *suspicion = all;
        if (!inbox_post(g->threads[i]->inbox, &suspicion->message))
            free(suspicion);
    }
}

bool upstream_may_suspect(const struct connection *c)
{
    const struct upstream *u = c->x.upstream;
    return c->x.suspected_ms == 0 && u->remote == NULL && c->x.up.done && !c->thread->closing &&
           u->pool->parallel_seen < PARALLEL_SEEN_MIN &&
           thread_now_ms(c->thread) >= u->pool->suspect_after_ms;
}

void upstream_suspect_idle(struct connection *c)
{
    c->x.suspected_ms = thread_now_ms(c->thread);
    suspect_everywhere(c, false);
}

void upstream_suspicion_ends(struct connection *c)
{
    struct pool *pool = c->x.upstream->pool;
    uint64_t now_ms = thread_now_ms(c->thread);
    if (now_ms - c->x.suspected_ms > SUSPECT_HELPED_MS)
        pool->suspect_after_ms = now_ms + SUSPECT_AGAIN_MS; /* it is just slow */
    else if (!pool->one_at_a_time)
        suspect_everywhere(c, true);
}

/* --- upkeep --- */

void upstream_sweep(struct gateway_thread *t)
{
    uint64_t now_ms = thread_now_ms(t);
    struct pool **link = &t->pools_used;
    while (*link != NULL) {
        struct pool *pool = *link;
        if (!slot_live(pool->ref))
            pool_empty(pool);
        while (pool->idle_last != NULL && pool->idle_last->idle_until_ms <= now_ms) {
            struct upstream *u = pool->idle_last;
            idle_remove(u);
            upstream_close(u);
        }
        if (now_ms - pool->spare_used_ms > SPARE_SOCKETS_IDLE_MS) {
            while (pool->spare_count > 0)
                memory_close(&pool->spare[--pool->spare_count]);
            pool->batch = GATEWAY_SOCKETS_FIRST;
        }
        if (pool->waiting_first != NULL)
            sockets_ask(pool);
        if (pool->idle_first == NULL && pool->spare_count == 0 && pool->waiting_first == NULL) {
            *link = pool->next_used;
            pool->used = false;
        } else {
            link = &pool->next_used;
        }
    }
}

void upstream_close_all(struct gateway_thread *t)
{
    for (size_t i = 0; i < t->pools_size; i++)
        for (struct pool *pool = t->pools[i]; pool != NULL; pool = pool->next_port)
            pool_empty(pool);
}

void upstream_free_all(struct gateway_thread *t)
{
    for (size_t i = 0; i < t->pools_size; i++)
        while (t->pools[i] != NULL) {
            struct pool *next = t->pools[i]->next_port;
            free(t->pools[i]);
            t->pools[i] = next;
        }
    free(t->pools);
    t->pools = NULL;
    t->pools_size = 0;
    while (t->free_upstreams != NULL) {
        struct upstream *u = t->free_upstreams;
        t->free_upstreams = u->older;
        free(u);
    }
}
