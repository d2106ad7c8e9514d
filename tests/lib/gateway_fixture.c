#include "tests/lib/gateway_fixture.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/memory.h"
#include "gateway/http.h"

void gateway_fixture_pause(void)
{
    struct timespec t = {.tv_nsec = 1000000};
    nanosleep(&t, NULL);
}

/* --- the code behind the gateway: one thread per connection --- */

struct backend_connection {
    struct gateway_fixture *f;
    int fd;
    char data[128 * 1024];
    size_t length;
};

static bool write_all(int fd, const void *data, size_t length)
{
    const char *p = data;
    while (length > 0) {
        ssize_t n = send(fd, p, length, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        p += n;
        length -= (size_t)n;
    }
    return true;
}

static bool write_text(int fd, const char *text)
{
    return write_all(fd, text, strlen(text));
}

static bool fill(struct backend_connection *b)
{
    if (b->length == sizeof b->data)
        return false;
    ssize_t n = recv(b->fd, b->data + b->length, sizeof b->data - b->length, 0);
    if (n <= 0)
        return false;
    b->length += (size_t)n;
    return true;
}

static void drop(struct backend_connection *b, size_t n)
{
    memmove(b->data, b->data + n, b->length - n);
    b->length -= n;
}

/* Reads a body; what is read goes to `echo` (if not NULL) and is counted. */
static bool read_body(struct backend_connection *b, const struct http_head *head,
                      struct buffer *echo)
{
    uint64_t left = head->content_length;
    struct http_chunked chunked;
    http_chunked_init(&chunked);
    while (head->body == HTTP_BODY_LENGTH
               ? left > 0
               : head->body == HTTP_BODY_CHUNKED && chunked.state != HTTP_CHUNK_DONE) {
        if (b->length == 0 && !fill(b))
            return false;
        struct http_text span = {b->data, b->length < left ? b->length : (size_t)left};
        struct http_text trailers = {b->data, 0};
        struct http_fault fault;
        ptrdiff_t n = (ptrdiff_t)span.length;
        if (head->body == HTTP_BODY_CHUNKED)
            n = http_chunked_read(&chunked, b->data, b->length, &span, &trailers, &fault);
        if (n < 0)
            return false;
        b->f->backend_body_bytes += span.length;
        if (echo != NULL)
            buffer_append(echo, span.data, span.length);
        if (echo != NULL && trailers.length > 2)
            buffer_append(echo, trailers.data, trailers.length);
        left -= head->body == HTTP_BODY_LENGTH ? (uint64_t)n : 0;
        drop(b, (size_t)n);
    }
    return true;
}

static bool send_text_answer(int fd, const char *text, size_t length)
{
    char head[128];
    text_format(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", length);
    return write_text(fd, head) && write_all(fd, text, length);
}

static bool send_size_answer(int fd, unsigned long size, bool chunked)
{
    char head[128];
    char piece[16384];
    memset(piece, 'x', sizeof piece);
    if (chunked)
        write_text(fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
    else {
        text_format(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %lu\r\n\r\n", size);
        write_text(fd, head);
    }
    while (size > 0) {
        size_t n = size < sizeof piece ? size : sizeof piece;
        text_format(head, sizeof head, "%zx\r\n", n);
        if (chunked && !write_text(fd, head))
            return false;
        if (!write_all(fd, piece, n) || (chunked && !write_text(fd, "\r\n")))
            return false;
        size -= n;
    }
    return !chunked || write_text(fd, "0\r\nX-Sum: 42\r\nSkerry-Error: forged\r\n\r\n");
}

static void wait_while_held(struct backend_connection *b)
{
    char byte;
    while (b->f->backend_hold) {
        struct pollfd p = {.fd = b->fd, .events = POLLIN};
        if (poll(&p, 1, 1) == 1 && recv(b->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
            return; /* the gateway left */
    }
}

static bool path_is(struct http_text path, const char *text)
{
    return path.length >= strlen(text) && memcmp(path.data, text, strlen(text)) == 0;
}

/* What the code answers verbatim, and then closes. */
static const struct {
    const char *path, *answer;
} raw_answers[] = {
    {"/raw/bare-lf", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"},
    {"/raw/garbage", "this is no HTTP at all\r\n\r\n"},
    {"/raw/two-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"},
    {"/raw/both", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok"},
    {"/raw/half-head", "HTTP/1.1 200 OK\r\nContent-Le"},
    {"/raw/nothing", ""},
    {"/raw/short", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"},
    {"/raw/bad-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n"},
    {"/raw/half-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"},
    {"/raw/until-close", "HTTP/1.0 200 OK\r\nX-A: b\r\n\r\nuntil the end"},
    {"/raw/forged", "HTTP/1.1 200 OK\r\nSkerry-Error: forged\r\nSkerry-Instance: forged\r\n"
                    "Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\n"
                    "Content-Length: 2\r\n\r\nok"},
    {"/raw/no-content", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n"},
    {"/raw/not-modified", "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"},
    {"/raw/early-hints", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
                         "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
    {"/raw/101", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"},
};

/* True: the connection goes on. */
static bool serve(struct backend_connection *b, const struct http_head *head, const char *text,
                  size_t text_length)
{
    struct http_text path = head->path;
    int fd = b->fd;
    for (size_t i = 0; i < ARRAY_SIZE(raw_answers); i++) {
        if (path_is(path, raw_answers[i].path)) {
            write_text(fd, raw_answers[i].answer);
            return false;
        }
    }
    if (path_is(path, "/expect")) {
        write_text(fd, "HTTP/1.1 100 Continue\r\n\r\n");
    } else if (path_is(path, "/early")) {
        write_text(fd, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        return false;
    } else if (path_is(path, "/never-read")) {
        b->f->backend_hold = true;
        wait_while_held(b);
        return false;
    } else if (path_is(path, "/upgrade")) {
        write_text(fd, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n"
                       "Upgrade: echo\r\n\r\nhello");
        do {
            write_all(fd, b->data, b->length);
            b->length = 0;
        } while (fill(b));
        return false;
    }
    struct buffer echo;
    buffer_init(&echo, 1024 * 1024);
    bool echoes = path_is(path, "/echo") || path_is(path, "/expect") || path_is(path, "/path:1");
    if (echoes)
        buffer_append(&echo, text, text_length);
    bool ok = read_body(b, head, echoes ? &echo : NULL);
    if (path_is(path, "/hold"))
        wait_while_held(b);
    if (ok && path_is(path, "/size/"))
        ok = send_size_answer(fd, strtoul(path.data + 6, NULL, 10), false);
    else if (ok && path_is(path, "/chunked/"))
        ok = send_size_answer(fd, strtoul(path.data + 9, NULL, 10), true);
    else if (ok && path_is(path, "/reset"))
        ok = false;
    else if (ok && head->method == HTTP_METHOD_HEAD)
        ok = write_text(fd, "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n");
    else if (ok && echoes)
        ok = send_text_answer(fd, echo.data, echo.length);
    else if (ok && path_is(path, "/stream")) {
        write_text(fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        wait_while_held(b);
        ok = write_text(fd, "4\r\nlast\r\n0\r\n\r\n");
    } else if (ok && path_is(path, "/close-after"))
        send_text_answer(fd, "ok", 2), ok = false;
    else if (ok)
        ok = send_text_answer(fd, "ok", 2);
    buffer_free(&echo);
    return ok;
}

static void *backend_connection_main(void *argument)
{
    struct backend_connection *b = argument;
    struct http_bounds bounds = {.head_bytes_max = 100000, .target_bytes_max = 60000};
    struct http_head *head = malloc(sizeof *head);
    bool go_on = head != NULL;
    while (go_on) {
        struct http_scan scan = {0};
        struct http_fault fault;
        ptrdiff_t n = 0;
        while ((n = http_scan(&scan, b->data, b->length, true, &bounds, &fault)) == HTTP_MORE)
            if (!fill(b))
                break;
        if (n <= 0)
            break;
        /* A copy, since reading the body moves the bytes. */
        char *text = malloc((size_t)n + 1);
        memcpy(text, b->data, (size_t)n);
        text[n] = '\0';
        if (!http_request_parse(head, text, (size_t)n, &bounds, &fault)) {
            free(text);
            break;
        }
        drop(b, (size_t)n);
        unsigned inside = ++b->f->backend_inside;
        unsigned most = b->f->backend_inside_most;
        while (inside > most &&
               !atomic_compare_exchange_weak(&b->f->backend_inside_most, &most, inside))
            ;
        go_on = serve(b, head, text, (size_t)n);
        b->f->backend_inside--;
        free(text);
    }
    free(head);
    close(b->fd);
    b->f->backend_open--;
    free(b);
    return NULL;
}

static void *backend_main(void *argument)
{
    struct gateway_fixture *f = argument;
    for (;;) {
        int fd = accept4(f->backend_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return NULL;
        f->backend_connections++;
        f->backend_open++;
        struct backend_connection *b = malloc(sizeof *b);
        b->f = f;
        b->fd = fd;
        b->length = 0;
        pthread_t thread;
        pthread_create(&thread, NULL, backend_connection_main, b);
        if (f->options.one_at_a_time)
            pthread_join(thread, NULL);
        else
            pthread_detach(thread);
    }
}

/* --- the provider --- */

static bool fill_workload(struct gateway_fixture *f, const char *name, struct gateway_workload *out)
{
    memset(out, 0, sizeof *out);
    text_copy(out->name, sizeof out->name, name);
    out->version = 1;
    out->kind = strcmp(name, "job") == 0 ? WORKLOAD_COMMAND : WORKLOAD_SERVER;
    out->public_access = strcmp(name, "private") != 0;
    if (strcmp(name, "keyed") == 0) {
        out->key_source = JOIN_KEY_HEADER;
        text_copy(out->key_name, sizeof out->key_name, "X-Room");
    }
    const struct gateway_fixture_options *o = &f->options;
    out->first_byte_ms = o->first_byte_ms != 0 ? o->first_byte_ms : DURATION_NONE;
    out->request_ms = o->request_ms != 0 ? o->request_ms : DURATION_NONE;
    out->stream_idle_ms = o->stream_idle_ms != 0 ? o->stream_idle_ms : DURATION_NONE;
    out->queue_timeout_ms = DURATION_NONE;
    if (!f->no_candidates && f->state == INSTANCE_STATE_READY && out->kind == WORKLOAD_SERVER) {
        out->candidates[0] = f->slot;
        out->candidate_count = 1;
    }
    if (f->options.on_workload != NULL)
        f->options.on_workload(f, out);
    return true;
}

static bool call_workload(void *user, const void *routes, const char *name, size_t length,
                          struct gateway_workload *out)
{
    static const char *const known[] = {"web", "keyed", "private", "job"};
    struct gateway_fixture *f = user;
    (void)routes;
    bool found = false;
    pthread_mutex_lock(&f->mutex);
    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (strlen(known[i]) == length && memcmp(known[i], name, length) == 0)
            found = !f->unknown_once && fill_workload(f, known[i], out);
    f->unknown_once = false;
    pthread_mutex_unlock(&f->mutex);
    return found;
}

static bool call_instance(void *user, const void *routes, const struct instance_id *id,
                          struct gateway_instance *out, struct gateway_workload *out_workload)
{
    struct gateway_fixture *f = user;
    (void)routes;
    if (strcmp(id->text, f->id.text) != 0)
        return f->options.on_instance != NULL && f->options.on_instance(f, id, out, out_workload);
    pthread_mutex_lock(&f->mutex);
    out->owner = f->options.id;
    out->owner_alive = true;
    out->state = f->state;
    out->reason = f->reason;
    out->exit_code = 3;
    text_copy(out->ended_at, sizeof out->ended_at, "2026-01-01T00:00:00Z");
    out->local = true;
    out->slot = f->slot;
    fill_workload(f, "web", out_workload);
    pthread_mutex_unlock(&f->mutex);
    return true;
}

static enum problem call_authorize(void *user, const void *routes, const struct gateway_workload *w,
                                   const struct instance_id *instance, const char *token,
                                   size_t length)
{
    (void)user, (void)routes, (void)w, (void)instance;
    if (token == NULL || length != 8)
        return PROBLEM_UNAUTHORIZED;
    return memcmp(token, "skt_good", 8) == 0   ? PROBLEM_NONE
           : memcmp(token, "skt_weak", 8) == 0 ? PROBLEM_FORBIDDEN
                                               : PROBLEM_UNAUTHORIZED;
}

static void control_post(struct gateway_fixture *f, struct inbox_message *message,
                         void (*deliver)(struct inbox_message *, void *))
{
    message->deliver = deliver;
    message->next = NULL;
    pthread_mutex_lock(&f->mutex);
    *f->queue_last = message;
    f->queue_last = &message->next;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mutex);
}

/* As the control thread does: it waits a little for the end of the instance to be known. */
static void answer_autopsy(struct gateway_fixture *f, struct gateway_ask *ask)
{
    enum { AUTOPSY_WAIT_MS = 200 };
    uint64_t until_ms = clock_monotonic_ms() + AUTOPSY_WAIT_MS;
    bool ended = false;
    while (!ended && clock_monotonic_ms() < until_ms) {
        gateway_fixture_pause();
        pthread_mutex_lock(&f->mutex);
        ended = f->state == INSTANCE_STATE_ENDED;
        ask->problem = !ended                 ? PROBLEM_INSTANCE_UNREACHABLE
                       : f->reason == END_OOM ? PROBLEM_INSTANCE_OOM
                                              : PROBLEM_INSTANCE_EXITED;
        pthread_mutex_unlock(&f->mutex);
    }
    text_copy(ask->detail, sizeof ask->detail, "as the test wanted");
    gateway_answer(ask);
}

static void deliver_ask(struct inbox_message *message, void *owner)
{
    struct gateway_fixture *f = owner;
    struct gateway_ask *ask = container_of(message, struct gateway_ask, message);
    if (ask->autopsy) {
        answer_autopsy(f, ask);
        return;
    }
    if (ask->instance[0] != '\0' && strcmp(ask->instance, f->id.text) != 0) {
        ask->problem = PROBLEM_INSTANCE_UNKNOWN;
        gateway_answer(ask);
        return;
    }
    if (f->options.on_ask != NULL) {
        f->options.on_ask(f, ask);
        return;
    }
    ask->problem = PROBLEM_START_FAILED;
    text_copy(ask->detail, sizeof ask->detail, "nothing starts here");
    gateway_answer(ask);
}

static bool call_ask(void *user, struct gateway_ask *ask)
{
    control_post(user, &ask->message, deliver_ask);
    return true;
}

static void call_cancel(void *user, struct gateway_ask *ask, enum end_reason reason)
{
    struct gateway_fixture *f = user;
    uint64_t number = ask->number;
    pthread_mutex_lock(&f->mutex);
    f->canceled++;
    f->canceled_reason = reason;
    pthread_mutex_unlock(&f->mutex);
    if (f->options.on_cancel != NULL)
        f->options.on_cancel(f, number, reason);
}

static void deliver_sockets(struct inbox_message *message, void *owner)
{
    struct gateway_fixture *f = owner;
    struct gateway_sockets *want = container_of(message, struct gateway_sockets, message);
    unsigned count = f->one_socket ? 1 : want->count;
    want->error = f->refuse_sockets ? ERR_NOT_FOUND : f->runner_away ? ERR_UNAVAILABLE : 0;
    want->descriptor_count = 0;
    for (unsigned i = 0; i < count && want->error == 0; i++)
        want->descriptors[want->descriptor_count++] =
            socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    gateway_sockets_answer(want);
}

static bool call_sockets(void *user, struct gateway_sockets *want)
{
    control_post(user, &want->message, deliver_sockets);
    return true;
}

static void call_slot_left(void *user, struct slot_ref slot, unsigned what)
{
    struct gateway_fixture *f = user;
    (void)slot, (void)what;
    pthread_mutex_lock(&f->mutex);
    f->left_reports++;
    pthread_mutex_unlock(&f->mutex);
}

static void call_release(void *user, const void *routes)
{
    struct gateway_fixture *f = user;
    (void)routes;
    pthread_mutex_lock(&f->mutex);
    f->released++;
    pthread_mutex_unlock(&f->mutex);
}

static enum problem call_ready(void *user, char *why, size_t size)
{
    struct gateway_fixture *f = user;
    pthread_mutex_lock(&f->mutex);
    bool ready = !f->not_ready;
    pthread_mutex_unlock(&f->mutex);
    text_copy(why, size, ready ? "" : "not yet");
    return ready ? PROBLEM_NONE : PROBLEM_NO_QUORUM;
}

static void *control_main(void *argument)
{
    struct gateway_fixture *f = argument;
    pthread_mutex_lock(&f->mutex);
    for (;;) {
        struct inbox_message *message = f->queue_first;
        if (message == NULL && f->stopping)
            break;
        if (message == NULL) {
            pthread_cond_wait(&f->changed, &f->mutex);
            continue;
        }
        f->queue_first = message->next;
        if (f->queue_first == NULL)
            f->queue_last = &f->queue_first;
        pthread_mutex_unlock(&f->mutex);
        message->deliver(message, f);
        pthread_mutex_lock(&f->mutex);
    }
    pthread_mutex_unlock(&f->mutex);
    return NULL;
}

/* --- life --- */

static int listen_somewhere(unsigned *port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 512) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &size) != 0)
        abort();
    *port = ntohs(a.sin_port);
    return fd;
}

static void open_instance(struct gateway_fixture *f)
{
    struct slot_options options = {
        .owner = f->options.id,
        .max_joiners = f->options.max_joiners,
        .window_end_ms = UINT64_MAX,
        .lease_deadline_ms = UINT64_MAX,
        .target = {.address = {127, 0, 0, 1}, .port = (uint16_t)f->backend_port},
    };
    const uint8_t random[11] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    struct err e;
    instance_id_make(&f->id, f->options.id, random);
    options.id = f->id;
    if (slot_open(f->slots, &options, &f->slot, &e) < 0)
        abort();
    f->state = INSTANCE_STATE_READY;
}

void gateway_fixture_publish(struct gateway_fixture *f)
{
    static const char routes[] = "routes";
    gateway_publish(f->gateway, routes);
}

void gateway_fixture_start(struct gateway_fixture *f, const struct gateway_fixture_options *options)
{
    memset(f, 0, sizeof *f);
    f->options = *options;
    if (f->options.id == 0)
        f->options.id = 1;
    pthread_mutex_init(&f->mutex, NULL);
    pthread_cond_init(&f->changed, NULL);
    f->queue_last = &f->queue_first;
    f->backend_fd = listen_somewhere(&f->backend_port);
    pthread_create(&f->backend, NULL, backend_main, f);
    if (options->backend_port != 0)
        f->backend_port = options->backend_port;
    struct err e;
    if (slot_table_new(&f->slots, 64, &e) < 0)
        abort();
    open_instance(f);
    pthread_create(&f->control, NULL, control_main, f);
    const char *any = "127.0.0.1:0";
    const char *listen = options->listen != NULL ? options->listen : any;
    struct gateway_options o = {
        .listen = &listen,
        .listen_count = 1,
        .tls = options->tls,
        .acme_webroot = options->acme_webroot,
        .threads = options->threads == 0 ? 1 : options->threads,
        .node_name = options->node_name != NULL ? options->node_name : "node1",
        .id = f->options.id,
        .secure = options->secure,
        .trust_forwarded = options->trust_forwarded,
        .body_bytes_max = options->body_bytes_max,
        .header_timeout_ms = options->header_timeout_ms,
        .body_timeout_ms = options->body_timeout_ms,
        .keepalive_timeout_ms = options->keepalive_timeout_ms,
        .connections_max = options->connections_max,
        .owner_wait_ms = options->owner_wait_ms,
        .calls = {f, call_workload, call_instance, call_authorize, call_ask, call_cancel,
                  call_sockets, call_slot_left, call_release, call_ready, options->peer},
    };
    if (options->tls.certificate_count > 0) {
        o.tls.listen = o.tls.redirect = &any;
        o.tls.listen_count = o.tls.redirect_count = 1;
    }
    if (gateway_open(&f->gateway, &o, &e) < 0) {
        fprintf(stderr, "%s\n", e.msg);
        abort();
    }
    f->port = gateway_port(f->gateway, 0);
    f->https_port = gateway_port(f->gateway, 1);
    f->redirect_port = gateway_port(f->gateway, 2);
    gateway_fixture_publish(f);
}

void gateway_fixture_end_instance(struct gateway_fixture *f, enum end_reason reason)
{
    pthread_mutex_lock(&f->mutex);
    f->state = INSTANCE_STATE_ENDED;
    f->reason = reason;
    pthread_mutex_unlock(&f->mutex);
    slot_retire(f->slots, f->slot);
    gateway_fixture_publish(f);
}

void gateway_fixture_stop(struct gateway_fixture *f)
{
    f->backend_hold = false;
    gateway_close(f->gateway, NULL, NULL);
    pthread_mutex_lock(&f->mutex);
    f->stopping = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mutex);
    pthread_join(f->control, NULL);
    shutdown(f->backend_fd, SHUT_RDWR);
    pthread_join(f->backend, NULL);
    close(f->backend_fd);
    while (f->backend_open > 0)
        gateway_fixture_pause();
    slot_table_free(f->slots);
    pthread_mutex_destroy(&f->mutex);
    pthread_cond_destroy(&f->changed);
}
