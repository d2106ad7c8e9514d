/* The node's side of the runner's socket.
 *
 *   CLOSED --connect--> GREETING --hello answered--> CONNECTED --broken--> CLOSED, again later
 *
 * Connecting to a local SOCK_SEQPACKET socket does not block: it is there or refused. A datagram is
 * written at once or, when the runner is slow, waits in a bounded queue. */
#include "sandbox/sandbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <uthash.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/shared/wire.h"

#define PROTOCOL 1
#define ANSWER_TIMEOUT_MS 10000u
#define WAITING_MAX 10000u
#define RETRY_MIN_MS 100u
#define RETRY_MAX_MS 2000u
#define SWEEP_INTERVAL_MS 250u
#define DATAGRAMS_PER_TURN 64u

enum client_state { CLIENT_CLOSED, CLIENT_GREETING, CLIENT_CONNECTED, CLIENT_CLOSING };

struct waiting {
    UT_hash_handle hh;
    uint64_t seq;
    uint64_t deadline_ms;
    sandbox_answer_cb cb;
    void *user;
};

struct unsent {
    struct unsent *next;
    Skerry__Runner__Request *request; /* a copy */
};

struct sandbox {
    uv_loop_t *loop;
    struct sandbox_calls calls;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    uint64_t node_boot;
    unsigned answer_timeout_ms;
    size_t waiting_max;
    enum client_state state;
    int fd;
    uv_poll_t *poll; /* freed in its close callback; a new connection has a new one */
    uv_timer_t retry_timer, sweep_timer;
    unsigned retry_ms;
    uint64_t seq_next;
    struct waiting *waiting; /* in the order of asking, which uthash keeps */
    struct unsent *unsent_head, **unsent_tail;
    uint8_t *buffer;
    unsigned handles_open;
    sandbox_closed_cb closed_cb;
    void *closed_user;
};

static void connect_now(struct sandbox *s);
static void disconnect(struct sandbox *s, const char *why);

/* --- answers ------------------------------------------------------------------------------------ */

static void answer(struct sandbox *s, struct waiting *w, const struct err *error,
                   const Skerry__Runner__Reply *reply, int *descriptors, size_t count)
{
    HASH_DEL(s->waiting, w);
    sandbox_answer_cb cb = w->cb;
    void *user = w->user;
    free(w);
    cb(user, error, reply, descriptors, count);
}

static void fail_all(struct sandbox *s, enum err_code code, const char *why)
{
    struct err e = {0};
    (void)err_set(&e, code, "%s", why);
    /* Callbacks may ask anew: those verbs are younger and not for this round. */
    uint64_t last = s->seq_next;
    while (s->waiting != NULL && s->waiting->seq < last)
        answer(s, s->waiting, &e, NULL, NULL, 0);
}

static void sweep_timer_cb(uv_timer_t *timer)
{
    struct sandbox *s = container_of(timer, struct sandbox, sweep_timer);
    uint64_t now_ms = uv_now(s->loop);
    struct err e = {0};
    (void)err_set(&e, ERR_TIMEOUT, "the runner did not answer within %u ms", s->answer_timeout_ms);
    while (s->waiting != NULL && s->waiting->deadline_ms <= now_ms)
        answer(s, s->waiting, &e, NULL, NULL, 0);
}

static void take_reply(struct sandbox *s, const Skerry__Runner__Reply *reply, int *descriptors,
                       size_t count)
{
    struct waiting *w = NULL;
    HASH_FIND(hh, s->waiting, &reply->seq, sizeof reply->seq, w);
    if (w == NULL) { /* its time was over */
        for (size_t k = 0; k < count; k++)
            memory_close(&descriptors[k]);
        return;
    }
    if (reply->error == 0) {
        answer(s, w, NULL, reply, descriptors, count);
        return;
    }
    for (size_t k = 0; k < count; k++)
        memory_close(&descriptors[k]);
    struct err e = {0};
    enum err_code code = reply->error < ERR_CODE_COUNT ? (enum err_code)reply->error : ERR_PROTOCOL;
    (void)err_set(&e, code, "%s", reply->message);
    answer(s, w, &e, reply, NULL, 0);
}

/* --- hello ----------------------------------------------------------------------------------------- */

static void hello_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                     int *descriptors, size_t count)
{
    struct sandbox *s = user;
    for (size_t k = 0; k < count; k++)
        memory_close(&descriptors[k]);
    if (s->state != CLIENT_GREETING)
        return;
    if (error != NULL || reply->hello == NULL || reply->hello->protocol != PROTOCOL) {
        log_error("runner", "it does not speak protocol %d: %s", PROTOCOL,
                  error != NULL ? error->msg : "another version of skerry runs there");
        disconnect(s, "the runner speaks another protocol");
        return;
    }
    s->state = CLIENT_CONNECTED;
    s->retry_ms = RETRY_MIN_MS;
    s->calls.connected(s->calls.user, reply->hello);
}

/* --- the socket ---------------------------------------------------------------------------------------- */

static void take_datagram(struct sandbox *s, size_t length, int *descriptors, size_t count)
{
    Skerry__Runner__ToNode *m = skerry__runner__to_node__unpack(NULL, length, s->buffer);
    if (m != NULL && m->message_case == SKERRY__RUNNER__TO_NODE__MESSAGE_REPLY) {
        take_reply(s, m->reply, descriptors, count);
    } else {
        for (size_t k = 0; k < count; k++)
            memory_close(&descriptors[k]);
        if (m != NULL && m->message_case == SKERRY__RUNNER__TO_NODE__MESSAGE_EVENT)
            s->calls.event(s->calls.user, m->event);
        else
            log_warn("runner", "it sent a datagram that cannot be read");
    }
    if (m != NULL)
        skerry__runner__to_node__free_unpacked(m, NULL);
}

static void read_some(struct sandbox *s)
{
    for (unsigned turn = 0; turn < DATAGRAMS_PER_TURN && s->fd >= 0; turn++) {
        int descriptors[WIRE_DESCRIPTORS_MAX];
        size_t count = 0;
        size_t length = 0;
        struct err e = {0};
        int rc = wire_receive(s->fd, s->buffer, SANDBOX_MESSAGE_BYTES_MAX, &length, descriptors,
                              WIRE_DESCRIPTORS_MAX, &count, &e);
        if (rc == 0) {
            take_datagram(s, length, descriptors, count);
        } else if (e.code == ERR_UNAVAILABLE && e.sys == EAGAIN) {
            return;
        } else {
            disconnect(s, "the connection to the runner broke");
            return;
        }
    }
}

static void poll_cb(uv_poll_t *poll, int status, int events);

static void poll_again(struct sandbox *s)
{
    int events = UV_READABLE | (s->unsent_head != NULL ? UV_WRITABLE : 0);
    uv_poll_start(s->poll, events, poll_cb);
}

static void write_some(struct sandbox *s)
{
    while (s->unsent_head != NULL) {
        struct unsent *u = s->unsent_head;
        struct err e = {0};
        int rc = wire_send(s->fd, &u->request->base, NULL, 0, &e);
        if (rc != 0 && e.sys == EAGAIN)
            break;
        if (rc != 0) {
            disconnect(s, "the connection to the runner broke");
            return;
        }
        s->unsent_head = u->next;
        if (s->unsent_head == NULL)
            s->unsent_tail = &s->unsent_head;
        skerry__runner__request__free_unpacked(u->request, NULL);
        free(u);
    }
    poll_again(s);
}

static void poll_cb(uv_poll_t *poll, int status, int events)
{
    struct sandbox *s = poll->data;
    if (status < 0) {
        disconnect(s, "the connection to the runner broke");
        return;
    }
    if (events & UV_WRITABLE)
        write_some(s);
    if (s->fd >= 0 && (events & UV_READABLE))
        read_some(s);
}

static void poll_freed_cb(uv_handle_t *handle)
{
    free(handle);
}

static void drop_socket(struct sandbox *s)
{
    if (s->poll != NULL) {
        uv_poll_stop(s->poll);
        uv_close((uv_handle_t *)s->poll, poll_freed_cb);
        s->poll = NULL;
    }
    memory_close(&s->fd);
    while (s->unsent_head != NULL) {
        struct unsent *u = s->unsent_head;
        s->unsent_head = u->next;
        skerry__runner__request__free_unpacked(u->request, NULL);
        free(u);
    }
    s->unsent_tail = &s->unsent_head;
}

static void retry_timer_cb(uv_timer_t *timer)
{
    connect_now(container_of(timer, struct sandbox, retry_timer));
}

static void retry_later(struct sandbox *s)
{
    uv_timer_start(&s->retry_timer, retry_timer_cb, s->retry_ms, 0);
    s->retry_ms = s->retry_ms * 2 > RETRY_MAX_MS ? RETRY_MAX_MS : s->retry_ms * 2;
}

static void disconnect(struct sandbox *s, const char *why)
{
    if (s->state == CLIENT_CLOSED || s->state == CLIENT_CLOSING)
        return;
    bool was_connected = s->state == CLIENT_CONNECTED;
    s->state = CLIENT_CLOSED;
    drop_socket(s);
    fail_all(s, ERR_UNAVAILABLE, why);
    if (was_connected)
        s->calls.disconnected(s->calls.user);
    retry_later(s);
}

static int open_socket(const struct sandbox *s, struct err *e)
{
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "make a socket");
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    (void)text_copy(a.sun_path, sizeof a.sun_path, s->path);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0)
        return err_sys(e, ERR_UNAVAILABLE, errno, "connect to the runner at %s", s->path);
    /* A whole message must fit in beside the kernel's own overhead. */
    int bytes = 2 * SANDBOX_MESSAGE_BYTES_MAX;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    return steal_fd(&fd);
}

static int send_request(struct sandbox *s, Skerry__Runner__Request *request, struct err *e)
{
    if (s->unsent_head == NULL) {
        struct err failure = {0};
        if (wire_send(s->fd, &request->base, NULL, 0, &failure) == 0)
            return 0;
        if (failure.sys != EAGAIN) {
            /* The break itself is handled when poll tells of it: not inside the caller. */
            return err_set(e, ERR_UNAVAILABLE, "the runner cannot be told: %s", failure.msg);
        }
    }
    size_t size = skerry__runner__request__get_packed_size(request);
    uint8_t *packed = malloc(size > 0 ? size : 1);
    struct unsent *u = calloc(1, sizeof *u);
    if (packed != NULL && u != NULL) {
        skerry__runner__request__pack(request, packed);
        u->request = skerry__runner__request__unpack(NULL, size, packed);
    }
    free(packed);
    if (u == NULL || u->request == NULL) {
        free(u);
        return err_set(e, ERR_NO_MEMORY, "ask the runner");
    }
    *s->unsent_tail = u;
    s->unsent_tail = &u->next;
    poll_again(s);
    return 0;
}

static int ask(struct sandbox *s, Skerry__Runner__Request *request, sandbox_answer_cb cb,
               void *user, struct err *e)
{
    if (HASH_COUNT(s->waiting) >= s->waiting_max)
        return err_set(e, ERR_LIMIT, "%zu verbs wait for the runner", s->waiting_max);
    struct waiting *w = calloc(1, sizeof *w);
    if (w == NULL)
        return err_set(e, ERR_NO_MEMORY, "ask the runner");
    request->seq = s->seq_next++;
    if (send_request(s, request, e) != 0) {
        free(w);
        return -(int)(e != NULL ? e->code : ERR_UNAVAILABLE);
    }
    w->seq = request->seq;
    w->deadline_ms = uv_now(s->loop) + s->answer_timeout_ms;
    w->cb = cb;
    w->user = user;
    HASH_ADD(hh, s->waiting, seq, sizeof w->seq, w);
    return 0;
}

static void connect_now(struct sandbox *s)
{
    struct err e = {0};
    int fd = open_socket(s, &e);
    if (fd < 0) {
        log_debug("runner", "%s", e.msg);
        retry_later(s);
        return;
    }
    s->fd = fd;
    s->poll = calloc(1, sizeof *s->poll);
    assert_always(s->poll != NULL);
    uv_poll_init(s->loop, s->poll, fd);
    s->poll->data = s;
    s->state = CLIENT_GREETING;
    poll_again(s);
    Skerry__Runner__Hello hello = SKERRY__RUNNER__HELLO__INIT;
    hello.protocol = PROTOCOL;
    hello.node_boot = s->node_boot;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_HELLO;
    r.hello = &hello;
    if (ask(s, &r, hello_cb, s, &e) != 0)
        disconnect(s, e.msg);
}

/* --- public ---------------------------------------------------------------------------------------------- */

int sandbox_open(struct sandbox **out, uv_loop_t *loop, const struct sandbox_options *options,
                 struct err *e)
{
    struct sandbox *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NO_MEMORY, "open the runner's client");
    s->buffer = malloc(SANDBOX_MESSAGE_BYTES_MAX);
    if (s->buffer == NULL || !text_copy(s->path, sizeof s->path, options->socket_path)) {
        int rc = s->buffer == NULL
                     ? err_set(e, ERR_NO_MEMORY, "open the runner's client")
                     : err_set(e, ERR_INVALID, "the socket's path %s is longer than %zu bytes",
                               options->socket_path, sizeof s->path - 1);
        free(s->buffer);
        free(s);
        return rc;
    }
    s->loop = loop;
    s->fd = -1;
    s->calls = options->calls;
    s->node_boot = options->node_boot;
    s->answer_timeout_ms =
        options->answer_timeout_ms != 0 ? options->answer_timeout_ms : ANSWER_TIMEOUT_MS;
    s->waiting_max = options->waiting_max != 0 ? options->waiting_max : WAITING_MAX;
    s->retry_ms = RETRY_MIN_MS;
    s->seq_next = 1;
    s->unsent_tail = &s->unsent_head;
    uv_timer_init(loop, &s->retry_timer);
    uv_timer_init(loop, &s->sweep_timer);
    uv_timer_start(&s->sweep_timer, sweep_timer_cb, SWEEP_INTERVAL_MS, SWEEP_INTERVAL_MS);
    uv_timer_start(&s->retry_timer, retry_timer_cb, 0, 0);
    *out = s;
    return 0;
}

static void timer_closed_cb(uv_handle_t *handle)
{
    struct sandbox *s = handle->data;
    if (--s->handles_open > 0)
        return;
    sandbox_closed_cb cb = s->closed_cb;
    void *user = s->closed_user;
    free(s->buffer);
    free(s);
    if (cb != NULL)
        cb(user);
}

void sandbox_close(struct sandbox *s, sandbox_closed_cb cb, void *user)
{
    s->state = CLIENT_CLOSING;
    s->closed_cb = cb;
    s->closed_user = user;
    drop_socket(s);
    fail_all(s, ERR_CANCELED, "the node is stopping");
    s->handles_open = 2;
    s->retry_timer.data = s->sweep_timer.data = s;
    uv_close((uv_handle_t *)&s->retry_timer, timer_closed_cb);
    uv_close((uv_handle_t *)&s->sweep_timer, timer_closed_cb);
}

int sandbox_ask(struct sandbox *s, Skerry__Runner__Request *request, sandbox_answer_cb cb,
                void *user, struct err *e)
{
    int rc = sandbox_check(s, e);
    return rc == 0 ? ask(s, request, cb, user, e) : rc;
}

int sandbox_check(const struct sandbox *s, struct err *e)
{
    return s->state == CLIENT_CONNECTED
               ? 0
               : err_set(e, ERR_UNAVAILABLE,
                         "the runner is not reachable at %s; start skerry runner", s->path);
}

bool sandbox_connected(const struct sandbox *s)
{
    return s->state == CLIENT_CONNECTED;
}
