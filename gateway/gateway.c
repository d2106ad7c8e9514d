#include "gateway/gateway.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "gateway/certificates.h"
#include "gateway/thread.h"

enum { BACKLOG = 4096 };

/* "127.0.0.1:8080" or "[::1]:8080". */
static int address_parse(struct sockaddr_storage *out, const char *text, struct err *e)
{
    char host[64];
    const char *colon = strrchr(text, ':');
    size_t length = colon == NULL ? 0 : (size_t)(colon - text);
    char *end = NULL;
    unsigned long port = colon == NULL ? 0 : strtoul(colon + 1, &end, 10);
    if (colon == NULL || colon[1] == '\0' || *end != '\0' || port > 65535 || length >= sizeof host)
        return err_set(e, ERR_INVALID, "%s is no address: 127.0.0.1:8080 or [::1]:8080", text);
    bool six = length > 2 && text[0] == '[' && text[length - 1] == ']';
    memcpy(host, text + (six ? 1 : 0), length - (six ? 2 : 0));
    host[length - (six ? 2 : 0)] = '\0';
    memset(out, 0, sizeof *out);
    struct sockaddr_in *a4 = (struct sockaddr_in *)(void *)out;
    struct sockaddr_in6 *a6 = (struct sockaddr_in6 *)(void *)out;
    if (six && inet_pton(AF_INET6, host, &a6->sin6_addr) == 1) {
        a6->sin6_family = AF_INET6;
        a6->sin6_port = htons((uint16_t)port);
        return 0;
    }
    if (!six && inet_pton(AF_INET, host, &a4->sin_addr) == 1) {
        a4->sin_family = AF_INET;
        a4->sin_port = htons((uint16_t)port);
        return 0;
    }
    return err_set(e, ERR_INVALID, "%s is no address: 127.0.0.1:8080 or [::1]:8080", text);
}

static socklen_t address_size(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                          : sizeof(struct sockaddr_in);
}

/* A listening socket; *address gets the port that was picked. Accepted sockets inherit NODELAY. */
static int listen_open(int *out, struct sockaddr_storage *address, const char *name, struct err *e)
{
    CLEANUP_FD int fd = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "make a socket for %s", name);
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (address->ss_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    socklen_t size = address_size(address);
    if (bind(fd, (struct sockaddr *)address, size) != 0)
        return err_sys(e, ERR_IO, errno, "listen on %s", name);
    if (listen(fd, BACKLOG) != 0)
        return err_sys(e, ERR_IO, errno, "listen on %s", name);
    size = sizeof *address;
    if (getsockname(fd, (struct sockaddr *)address, &size) != 0)
        return err_sys(e, ERR_IO, errno, "listen on %s", name);
    *out = steal_fd(&fd);
    return 0;
}

/* SO_REUSEPORT would let a second node of the same user take half of our clients in silence, so the
 * first bind is tried without it. */
static int check_free(const struct sockaddr_storage *address, const char *name, struct err *e)
{
    CLEANUP_FD int fd = socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "make a socket for %s", name);
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address->ss_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, (const struct sockaddr *)address, address_size(address)) != 0)
        return err_sys(e, ERR_IO, errno, "listen on %s", name);
    return 0;
}

static unsigned core_count(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores > THREADS_MAX ? THREADS_MAX : (unsigned)cores;
}

static void options_default(struct gateway_options *o)
{
    if (o->threads == 0)
        o->threads = core_count();
    if (o->threads > THREADS_MAX)
        o->threads = THREADS_MAX;
    if (o->header_bytes_max == 0)
        o->header_bytes_max = 65536;
    if (o->body_bytes_max == 0)
        o->body_bytes_max = UINT64_MAX;
    if (o->header_timeout_ms == 0)
        o->header_timeout_ms = 10000;
    if (o->body_timeout_ms == 0)
        o->body_timeout_ms = 30000;
    if (o->keepalive_timeout_ms == 0)
        o->keepalive_timeout_ms = 75000;
    if (o->connections_max == 0)
        o->connections_max = 16384;
    if (o->owner_wait_ms == 0)
        o->owner_wait_ms = 5000;
    if (o->tls.handshake_timeout_ms == 0)
        o->tls.handshake_timeout_ms = 10000;
}

static void gateway_free(struct gateway *g)
{
    for (unsigned i = 0; i < g->thread_count; i++)
        thread_free(g->threads[i]);
    uv_cond_destroy(&g->stopped);
    uv_mutex_destroy(&g->mutex);
    free(g->domain);
    free(g->node_name);
    free(g);
}

static int open_listeners(struct gateway *g, const char *const *names, size_t count,
                          enum listener_kind kind, struct err *e)
{
    for (size_t n = 0; n < count; n++) {
        struct sockaddr_storage *address = &g->addresses[g->listener_count];
        int rc = address_parse(address, names[n], e);
        if (rc == 0)
            rc = check_free(address, names[n], e);
        for (unsigned i = 0; rc == 0 && i < g->thread_count; i++) {
            CLEANUP_FD int fd = -1;
            rc = listen_open(&fd, address, names[n], e);
            if (rc == 0)
                rc = thread_listen(g->threads[i], fd, kind, e);
            if (rc == 0)
                steal_fd(&fd);
        }
        if (rc < 0)
            return rc;
        g->listener_count++;
    }
    return 0;
}

/* Before the threads run. */
static int open_https(struct gateway *g, struct err *e)
{
    const struct gateway_tls_options *o = &g->options.tls;
    struct certificates *certificates;
    char described[512];
    int rc = certificates_load(&certificates, o, e);
    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < g->thread_count; i++)
        g->threads[i]->certificates = certificates_hold(certificates);
    g->certificate_expires_s = certificates_expire_s(certificates);
    certificates_describe(certificates, described, sizeof described);
    certificates_release(certificates);
    size_t first = g->listener_count;
    rc = open_listeners(g, o->listen, o->listen_count, LISTENER_TLS, e);
    if (rc == 0)
        rc = open_listeners(g, o->redirect, o->redirect_count, LISTENER_REDIRECT, e);
    if (rc < 0)
        return rc;
    g->https_port = o->redirect_port != 0 ? o->redirect_port : gateway_port(g, first);
    log_info("gateway", "HTTPS at %s: %s", o->listen[0], described);
    return 0;
}

static int open_threads(struct gateway *g, struct err *e)
{
    const struct gateway_options *o = &g->options;
    for (unsigned i = 0; i < o->threads; i++) {
        int rc = thread_open(&g->threads[g->thread_count], g, i, e);
        if (rc < 0)
            return rc;
        g->thread_count++;
    }
    int opened = open_listeners(g, o->listen, o->listen_count, LISTENER_PLAIN, e);
    if (opened == 0 && o->tls.listen_count > 0)
        opened = open_https(g, e);
    if (opened < 0)
        return opened;
    for (unsigned i = 0; i < g->thread_count; i++) {
        int rc = thread_start(g->threads[i], e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static char *lower_copy(const char *text)
{
    char *copy = strdup(text);
    for (char *p = copy; p != NULL && *p != '\0'; p++)
        if (*p >= 'A' && *p <= 'Z')
            *p = (char)(*p | 0x20);
    return copy;
}

int gateway_open(struct gateway **out, const struct gateway_options *options, struct err *e)
{
    if (options->listen_count + options->tls.listen_count + options->tls.redirect_count >
        LISTENERS_MAX)
        return err_set(e, ERR_INVALID, "at most %d addresses can be listened on", LISTENERS_MAX);
    struct gateway *g = calloc(1, sizeof *g);
    if (g == NULL)
        return err_set(e, ERR_NO_MEMORY, "open the gateway");
    g->options = *options;
    options_default(&g->options);
    g->bounds = (struct http_bounds){.head_bytes_max = g->options.header_bytes_max,
                                     .target_bytes_max = TARGET_BYTES_MAX};
    uv_mutex_init(&g->mutex);
    uv_cond_init(&g->stopped);
    g->domain = lower_copy(options->domain != NULL ? options->domain : "localhost");
    g->node_name = strdup(options->node_name != NULL ? options->node_name : "node");
    int rc = 0;
    if (g->domain == NULL || g->node_name == NULL)
        rc = err_set(e, ERR_NO_MEMORY, "open the gateway");
    if (rc == 0)
        rc = open_threads(g, e);
    if (rc != 0) {
        atomic_store(&g->silent, THREADS_MAX); /* none has a reason to post yet */
        for (unsigned i = 0; i < g->thread_count; i++)
            if (g->threads[i]->started)
                thread_close(g->threads[i]);
        gateway_free(g);
        return rc;
    }
    *out = g;
    return 0;
}

static unsigned port_of(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET6
               ? ntohs(((const struct sockaddr_in6 *)(const void *)address)->sin6_port)
               : ntohs(((const struct sockaddr_in *)(const void *)address)->sin_port);
}

unsigned gateway_port(const struct gateway *g, size_t listener)
{
    return listener < g->listener_count ? port_of(&g->addresses[listener]) : 0;
}

int gateway_listen_tcp(struct gateway *g, const char *address, const char *workload, struct err *e)
{
    struct sockaddr_storage at;
    int descriptors[THREADS_MAX];
    unsigned opened = 0;
    if (g->draining || g->closing)
        return err_set(e, ERR_UNAVAILABLE, "listen on %s: the gateway drains", address);
    int rc = address_parse(&at, address, e);
    if (rc == 0)
        rc = check_free(&at, address, e);
    while (rc == 0 && opened < g->thread_count) {
        rc = listen_open(&descriptors[opened], &at, address, e);
        opened += rc == 0;
    }
    unsigned port = rc == 0 ? port_of(&at) : 0;
    for (unsigned i = 0; i < opened; i++)
        if (rc < 0)
            memory_close(&descriptors[i]);
        else if (!thread_listen_tcp(g->threads[i], descriptors[i], port, workload))
            log_warn("gateway", "%s: a thread has no memory to listen", address);
    return rc;
}

void gateway_unlisten_tcp(struct gateway *g, unsigned port)
{
    for (unsigned i = 0; !g->closing && i < g->thread_count; i++)
        thread_unlisten_tcp(g->threads[i], port);
}

void gateway_publish(struct gateway *g, const void *routes)
{
    const struct gateway_calls *calls = &g->options.calls;
    for (unsigned i = 0; i < g->thread_count; i++)
        if (g->closing || !thread_publish(g->threads[i], routes))
            calls->release(calls->user, routes);
}

unsigned gateway_thread_count(const struct gateway *g)
{
    return g->thread_count;
}

void gateway_review(struct gateway *g)
{
    for (unsigned i = 0; !g->closing && i < g->thread_count; i++)
        thread_review(g->threads[i]);
}

void gateway_leave(struct gateway *g)
{
    if (g->leaving || g->draining || g->closing)
        return;
    g->leaving = true;
    for (unsigned i = 0; i < g->thread_count; i++)
        thread_leave(g->threads[i]);
}

void gateway_drain(struct gateway *g)
{
    if (g->draining || g->closing)
        return;
    g->draining = true;
    for (unsigned i = 0; i < g->thread_count; i++)
        thread_drain(g->threads[i]);
}

void gateway_shut(struct gateway *g)
{
    if (g->shut || g->closing)
        return;
    g->shut = true;
    for (unsigned i = 0; i < g->thread_count; i++)
        thread_shut(g->threads[i]);
}

bool gateway_is_shut(const struct gateway *g)
{
    return atomic_load(&g->threads_shut) == g->thread_count;
}

bool gateway_accepts(const struct gateway *g)
{
    return !g->shut && !g->closing;
}

unsigned gateway_old_connections(const struct gateway *g)
{
    unsigned noted = atomic_load(&g->threads_draining);
    return atomic_load(&g->connections) + atomic_load(&g->arrivals_old) +
           (g->draining ? g->thread_count - noted : 0);
}

unsigned gateway_connections(const struct gateway *g)
{
    return atomic_load(&g->connections) + atomic_load(&g->arrivals_serving);
}

void gateway_close(struct gateway *g, void (*pump)(void *user), void *user)
{
    const uint64_t pause_ns = 1000000;
    g->closing = true;
    gateway_end_reload(g);
    for (unsigned i = 0; i < g->thread_count; i++)
        thread_close(g->threads[i]);
    while (atomic_load(&g->running) > 0) {
        if (pump != NULL)
            pump(user);
        uv_mutex_lock(&g->mutex);
        if (atomic_load(&g->running) > 0)
            uv_cond_timedwait(&g->stopped, &g->mutex, pause_ns);
        uv_mutex_unlock(&g->mutex);
    }
    gateway_free(g);
}

static uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void add(struct gateway_counters *out, const struct thread_counters *c)
{
    for (size_t i = 0; i < ARRAY_SIZE(out->requests); i++)
        out->requests[i] += get(&c->requests[i]);
    for (size_t i = 0; i < PROBLEM_COUNT; i++)
        out->problems[i] += get(&c->problems[i]);
    for (size_t s = 0; s < ARRAY_SIZE(out->by_start); s++) {
        struct gateway_histogram *h = &out->by_start[s];
        uint64_t below = 0;
        for (size_t b = 0; b <= GATEWAY_BUCKETS; b++) {
            below += get(&c->buckets[s][b]);
            h->buckets[b] += below;
        }
        h->count += below;
        h->sum_seconds += (double)get(&c->sum_us[s]) / 1e6;
    }
    out->bytes_in += get(&c->bytes_in);
    out->bytes_out += get(&c->bytes_out);
    out->connections_accepted += get(&c->connections_accepted);
    out->connections_refused += get(&c->connections_refused);
    out->upstream_connects += get(&c->upstream_connects);
    out->upstream_reuses += get(&c->upstream_reuses);
    out->forwarded += get(&c->forwarded);
    out->forward_refused += get(&c->forward_refused);
    out->streams_connects += get(&c->streams_connects);
    out->streams_reuses += get(&c->streams_reuses);
    out->arrivals += get(&c->arrivals);
    out->tls_handshakes += get(&c->tls_handshakes);
    out->tls_resumed += get(&c->tls_resumed);
    out->tls_failures += get(&c->tls_failures);
    out->tcp_accepted += get(&c->tcp_accepted);
    out->tcp_refused += get(&c->tcp_refused);
    out->tcp_broken += get(&c->tcp_broken);
}

int64_t gateway_certificate_expires_s(const struct gateway *g)
{
    return g->certificate_expires_s;
}

void gateway_counters(const struct gateway *g, struct gateway_counters *out)
{
    *out = (struct gateway_counters){.certificate_expires_s = gateway_certificate_expires_s(g)};
    for (unsigned i = 0; i < g->thread_count; i++)
        add(out, &g->threads[i]->counters);
}
