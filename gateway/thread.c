#include "gateway/thread.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "base/memory.h"
#include "gateway/arrival.h"
#include "gateway/certificates.h"
#include "gateway/remote.h"

/* One gateway thread: its loop, its listeners, the routes it holds, and its end.
 *
 * The end: `closing` is set, listeners and connections are closed and asks canceled; when the last
 * connection, upstream connection, command and answer has come home, inbox and sweep are closed,
 * and the loop ends because no handle is left. */

/* xorshift128+: for load balancing, request ids and trace ids; nothing here is a secret. */
uint64_t thread_random(struct gateway_thread *t)
{
    uint64_t a = t->random[0];
    uint64_t b = t->random[1];
    t->random[0] = b;
    a ^= a << 23;
    t->random[1] = a ^ b ^ (a >> 17) ^ (b >> 26);
    return t->random[1] + b;
}

/* --- accepting --- */

static void listener_poll_cb(uv_poll_t *poll, int status, int events);

static void listener_start(struct listener *listener)
{
    listener->polling = true;
    uv_poll_start(&listener->poll, UV_READABLE, listener_poll_cb);
}

static void accept_waiting(struct listener *listener)
{
    struct gateway_thread *t = listener->thread;
    for (int i = 0; i < ACCEPTS_PER_WAKE_MAX; i++) {
        struct sockaddr_storage peer;
        socklen_t size = sizeof peer;
        int fd =
            accept4(listener->fd, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            connection_accept(listener, fd, &peer);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            /* The client waits in the kernel's queue; the sweep tries again. */
            log_warn("gateway", "cannot accept a connection: %s", strerror(errno));
            count(&t->counters.connections_refused, 1);
            uv_poll_stop(&listener->poll);
            listener->polling = false;
            return;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return;
    }
}

static void listener_poll_cb(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    accept_waiting(container_of(poll, struct listener, poll));
}

static void handle_closed_cb(uv_handle_t *handle)
{
    (void)handle;
}

static void listener_freed_cb(uv_handle_t *handle)
{
    free(container_of((uv_poll_t *)handle, struct listener, poll));
}

static void listener_close(struct listener *listener)
{
    if (listener->fd < 0)
        return;
    /* Who is in the kernel's queue would see a reset. */
    if (!listener->thread->closing)
        accept_waiting(listener);
    uv_close((uv_handle_t *)&listener->poll,
             listener->kind == LISTENER_TCP ? listener_freed_cb : handle_closed_cb);
    memory_close(&listener->fd);
}

static void listeners_close(struct gateway_thread *t)
{
    for (size_t i = 0; i < t->listener_count; i++)
        listener_close(&t->listeners[i]);
    while (t->tcp_listeners != NULL) {
        struct listener *listener = t->tcp_listeners;
        t->tcp_listeners = listener->next;
        listener_close(listener);
    }
}

static void sweep_cb(uv_timer_t *timer)
{
    struct gateway_thread *t = container_of(timer, struct gateway_thread, sweep);
    if (t->closing) {
        thread_check_closed(t);
        return;
    }
    upstream_sweep(t);
    remote_sweep(t);
    arrival_sweep(t);
    for (size_t i = 0; i < t->listener_count; i++)
        if (t->listeners[i].fd >= 0 && !t->listeners[i].polling)
            listener_start(&t->listeners[i]);
    for (struct listener *l = t->tcp_listeners; l != NULL; l = l->next)
        if (!l->polling)
            listener_start(l);
}

/* --- messages of the control thread --- */

struct publication {
    struct inbox_message message;
    const void *routes;
};

static void routes_release(struct gateway_thread *t)
{
    const struct gateway_calls *calls = &t->gateway->options.calls;
    if (t->routes != NULL)
        calls->release(calls->user, t->routes);
    t->routes = NULL;
}

static void publication_deliver(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    struct publication *publication = container_of(message, struct publication, message);
    routes_release(t);
    t->routes = publication->routes;
    free(publication);
    struct connection *next;
    for (struct connection *c = t->waiting_for_routes; c != NULL; c = next) {
        next = c->wait_next;
        connection_look_again(c, false);
    }
}

bool thread_publish(struct gateway_thread *t, const void *routes)
{
    struct publication *publication = malloc(sizeof *publication);
    if (publication == NULL)
        return false;
    publication->message.deliver = publication_deliver;
    publication->routes = routes;
    if (inbox_post_always(t->inbox, &publication->message))
        return true;
    free(publication);
    return false;
}

static void review_deliver(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    free(message);
    arrival_sweep(t);
    remote_review(t);
}

static void leave_deliver(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    (void)message;
    t->draining = true;
    arrival_drain(t);
}

static void drain_deliver(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    (void)message;
    t->draining = true;
    listeners_close(t);
    struct connection *next;
    for (struct connection *c = t->connections; c != NULL; c = next) {
        next = c->next;
        connection_drain(c);
    }
    arrival_note_drain(t);
    arrival_drain(t);
    atomic_fetch_add(&t->gateway->threads_draining, 1);
}

static void shut_deliver(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    (void)message;
    t->shut = true;
    arrival_drain(t);
    atomic_fetch_add(&t->gateway->threads_shut, 1);
}

static void close_deliver(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    (void)message;
    t->closing = t->draining = true;
    atomic_fetch_add(&t->gateway->silent, 1);
    listeners_close(t);
    while (t->connections != NULL)
        connection_close(t->connections, true);
    arrival_close_all(t);
    remote_close_all(t);
    upstream_close_all(t);
    /* The sweep looks whether the others have come so far too. */
    uv_timer_start(&t->sweep, sweep_cb, CLOSE_CHECK_MS, CLOSE_CHECK_MS);
    thread_check_closed(t);
}

void thread_review(struct gateway_thread *t)
{
    struct inbox_message *message = malloc(sizeof *message);
    if (message == NULL)
        return; /* the sweep looks within SWEEP_MS */
    message->deliver = review_deliver;
    if (!inbox_post_always(t->inbox, message))
        free(message);
}

struct listening {
    struct inbox_message message;
    int fd; /* -1: the listener of the port is closed */
    unsigned port;
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1];
};

static void tcp_listen(struct gateway_thread *t, const struct listening *l)
{
    int fd = l->fd;
    struct listener *listener = t->draining ? NULL : calloc(1, sizeof *listener);
    if (listener == NULL || uv_poll_init(&t->loop, &listener->poll, fd) != 0) {
        free(listener);
        memory_close(&fd);
        return;
    }
    listener->thread = t;
    listener->fd = fd;
    listener->kind = LISTENER_TCP;
    listener->port = l->port;
    text_copy(listener->workload, sizeof listener->workload, l->workload);
    listener->next = t->tcp_listeners;
    t->tcp_listeners = listener;
    listener_start(listener);
}

static void tcp_unlisten(struct gateway_thread *t, unsigned port)
{
    struct listener **at = &t->tcp_listeners;
    while (*at != NULL && (*at)->port != port)
        at = &(*at)->next;
    struct listener *listener = *at;
    if (listener == NULL)
        return;
    *at = listener->next;
    listener_close(listener);
}

static void listening_deliver(struct inbox_message *message, void *owner)
{
    struct listening *l = container_of(message, struct listening, message);
    if (l->fd >= 0)
        tcp_listen(owner, l);
    else
        tcp_unlisten(owner, l->port);
    free(l);
}

static bool listening_post(struct gateway_thread *t, int fd, unsigned port, const char *workload)
{
    struct listening *l = malloc(sizeof *l);
    if (l != NULL) {
        *l = (struct listening){.message.deliver = listening_deliver, .fd = fd, .port = port};
        text_copy(l->workload, sizeof l->workload, workload);
        if (inbox_post_always(t->inbox, &l->message))
            return true;
    }
    free(l);
    memory_close(&fd);
    return false;
}

bool thread_listen_tcp(struct gateway_thread *t, int fd, unsigned port, const char *workload)
{
    return listening_post(t, fd, port, workload);
}

void thread_unlisten_tcp(struct gateway_thread *t, unsigned port)
{
    (void)listening_post(t, -1, port, "");
}

void thread_leave(struct gateway_thread *t)
{
    t->leave_message.deliver = leave_deliver;
    bool posted = inbox_post_always(t->inbox, &t->leave_message);
    assert_always(posted);
}

void thread_drain(struct gateway_thread *t)
{
    t->drain_message.deliver = drain_deliver;
    bool posted = inbox_post_always(t->inbox, &t->drain_message);
    assert_always(posted);
}

void thread_shut(struct gateway_thread *t)
{
    t->shut_message.deliver = shut_deliver;
    bool posted = inbox_post_always(t->inbox, &t->shut_message);
    assert_always(posted);
}

void thread_close(struct gateway_thread *t)
{
    t->close_message.deliver = close_deliver;
    bool posted = inbox_post_always(t->inbox, &t->close_message);
    assert_always(posted);
}

void thread_check_closed(struct gateway_thread *t)
{
    if (!t->closing || t->inbox_closing ||
        atomic_load(&t->gateway->silent) < t->gateway->thread_count || t->connection_count > 0 ||
        t->upstream_count > 0 || t->stream_count > 0 || t->command_count > 0 || t->asks_out > 0 ||
        t->sockets_out > 0)
        return;
    t->inbox_closing = true;
    uv_close((uv_handle_t *)&t->sweep, handle_closed_cb);
    uv_close((uv_handle_t *)&t->prepare, handle_closed_cb);
    uv_close((uv_handle_t *)&t->turn, handle_closed_cb);
    uv_close((uv_handle_t *)&t->tls_turn, handle_closed_cb);
    inbox_close(t->inbox, NULL);
}

/* --- life --- */

static void thread_main(void *argument)
{
    struct gateway_thread *t = argument;
    struct gateway *g = t->gateway;
    /* Signals are the control thread's; a broken pipe is an error of write. */
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    uv_run(&t->loop, UV_RUN_DEFAULT);
    routes_release(t);
    uv_mutex_lock(&g->mutex);
    atomic_fetch_sub(&g->running, 1);
    uv_cond_signal(&g->stopped);
    uv_mutex_unlock(&g->mutex);
}

int thread_open(struct gateway_thread **out, struct gateway *g, unsigned index, struct err *e)
{
    struct gateway_thread *t = calloc(1, sizeof *t);
    if (t == NULL)
        return err_set(e, ERR_NO_MEMORY, "make a gateway thread");
    t->gateway = g;
    t->index = index;
    t->tcp_refusals = (struct refusals){.subject = "gateway", .names = tcp_refusal_names};
    int rc = uv_loop_init(&t->loop);
    if (rc != 0) {
        free(t);
        return err_sys(e, ERR_IO, -rc, "make the loop of a gateway thread");
    }
    if (getrandom(t->random, sizeof t->random, 0) != sizeof t->random || t->random[0] == 0)
        t->random[0] = 1 + index;
    rc = inbox_open(&t->inbox, &t->loop, t, SIZE_MAX, e);
    if (rc < 0) {
        uv_loop_close(&t->loop);
        free(t);
        return rc;
    }
    uv_prepare_init(&t->loop, &t->prepare);
    uv_idle_init(&t->loop, &t->turn);
    uv_idle_init(&t->loop, &t->tls_turn);
    uv_timer_init(&t->loop, &t->sweep);
    uv_timer_start(&t->sweep, sweep_cb, SWEEP_MS, SWEEP_MS);
    *out = t;
    return 0;
}

int thread_listen(struct gateway_thread *t, int fd, enum listener_kind kind, struct err *e)
{
    struct listener *listener = &t->listeners[t->listener_count];
    int rc = uv_poll_init(&t->loop, &listener->poll, fd);
    if (rc != 0)
        return err_sys(e, ERR_IO, -rc, "poll a listening socket");
    listener->thread = t;
    listener->fd = fd;
    listener->kind = kind;
    t->listener_count++;
    listener_start(listener);
    return 0;
}

int thread_start(struct gateway_thread *t, struct err *e)
{
    atomic_fetch_add(&t->gateway->running, 1);
    int rc = uv_thread_create(&t->id, thread_main, t);
    if (rc == 0) {
        t->started = true;
        return 0;
    }
    atomic_fetch_sub(&t->gateway->running, 1);
    return err_sys(e, ERR_IO, -rc, "start a gateway thread");
}

void thread_free(struct gateway_thread *t)
{
    if (t->started) {
        uv_thread_join(&t->id);
    } else { /* gateway_open failed half-way: the loop runs here until it is empty */
        close_deliver(NULL, t);
        uv_run(&t->loop, UV_RUN_DEFAULT);
        routes_release(t);
    }
    assert_always(uv_loop_close(&t->loop) == 0);
    upstream_free_all(t);
    remote_free_all(t);
    block_pool_free(&t->blocks);
    certificates_release(t->certificates);
    while (t->free_connections != NULL) {
        struct connection *c = t->free_connections;
        t->free_connections = c->next;
        free(c);
    }
    free(t);
}
