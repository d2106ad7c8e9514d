/* node/api/api.c - the API's thread: loop, listeners, connections, and the end of it all.
 *
 * libmicrohttpd runs in its external epoll mode. After anything that may have given it work (its
 * descriptor is ready, a connection was resumed, a time-out) `dirty` is set, and the loop's prepare
 * step runs it until it has nothing more to do: MHD_get_timeout answers 0 as long as it has. Each run
 * costs a call of the kernel, so that daemons without work are left out. */
#include "node/api/api.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/log.h"
#include "node/api/internal.h"
#include "node/api/relay.h"
#include "node/api/worker.h"
#include "node/config.h"

#define RUNS_IN_A_ROW_MAX 200 /* of libmicrohttpd, before the loop gets its turn */
#define SWEEP_MS 1000
#define CLOSE_MS 15000u /* for questions to be answered when the API ends */
#define INBOX_MESSAGES_MAX 65536
/* For one connection: the header block and what libmicrohttpd keeps beside it. Twice of what is
 * allowed (node/api/request.c), so that what is too large is refused by us and not by its HTML. */
#define CONNECTION_BYTES (128 * 1024)

void api_dirty(struct api *api)
{
    api->dirty = true;
}

void api_listener_ready(struct api_listener *l)
{
    l->ready = true;
    api_dirty(l->api);
}

/* --- the loop and libmicrohttpd ----------------------------------------------------------------- */

/* Of one listener: whether its daemon has something to do, as far as is known without running it. */
static bool mhd_wants(struct api_listener *l)
{
    MHD_UNSIGNED_LONG_LONG ms;
    bool wants = l->ready || (MHD_get_timeout(l->daemon, &ms) == MHD_YES && ms == 0);
    l->ready = false;
    return wants;
}

static bool mhd_has_more(struct api *api, uint64_t *wait_ms)
{
    *wait_ms = UINT64_MAX;
    for (size_t i = 0; i < api->listener_count; i++) {
        MHD_UNSIGNED_LONG_LONG ms;
        if (api->listeners[i].daemon == NULL)
            continue;
        if (MHD_get_timeout(api->listeners[i].daemon, &ms) == MHD_YES && ms < *wait_ms)
            *wait_ms = ms;
    }
    return *wait_ms == 0;
}

static void mhd_timer_cb(uv_timer_t *timer)
{
    api_dirty(timer->data);
}

static void finish_if_idle(struct api *api);

static void prepare_cb(uv_prepare_t *prepare)
{
    struct api *api = prepare->data;
    if (!api->dirty)
        return;
    uint64_t wait_ms = UINT64_MAX;
    unsigned runs = 0;
    do {
        api->dirty = false;
        for (size_t i = 0; i < api->listener_count; i++)
            if (api->listeners[i].daemon != NULL && mhd_wants(&api->listeners[i]))
                (void)MHD_run(api->listeners[i].daemon);
    } while (++runs < RUNS_IN_A_ROW_MAX && (mhd_has_more(api, &wait_ms) || api->dirty));
    if (api->dirty)
        wait_ms = 0;
    if (wait_ms == UINT64_MAX)
        (void)uv_timer_stop(&api->mhd_timer);
    else
        (void)uv_timer_start(&api->mhd_timer, mhd_timer_cb, wait_ms, 0);
    if (api->stopping)
        finish_if_idle(api);
}

static void mhd_poll_cb(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    api_listener_ready(poll->data);
}

__attribute__((format(printf, 2, 0))) static void mhd_log_cb(void *user, const char *format,
                                                             va_list args)
{
    (void)user;
    char text[256];
    (void)vsnprintf(text, sizeof(text), format, args);
    text[strcspn(text, "\r\n")] = '\0';
    log_debug("api", "http: %s", text);
}

/* --- the end ------------------------------------------------------------------------------------ */

static void close_handle_cb(uv_handle_t *handle, void *user)
{
    (void)user;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

static void inbox_closed(void *owner)
{
    struct api *api = owner;
    uv_walk(&api->loop, close_handle_cb, NULL);
}

/* When no connection and no question is left, nothing refers to the daemons or the loop. */
static void finish_if_idle(struct api *api)
{
    if (api->connections != NULL || api->relays != NULL || api->asks != 0 || api->places != NULL ||
        api_worker_busy(api->worker) || api->handles_closing)
        return;
    api->handles_closing = true;
    for (size_t i = 0; i < api->listener_count; i++) {
        struct api_listener *l = &api->listeners[i];
        if (l->poll_open)
            uv_close((uv_handle_t *)&l->poll, NULL);
        if (l->daemon != NULL)
            MHD_stop_daemon(l->daemon);
        l->daemon = NULL;
    }
    inbox_close(api->inbox, inbox_closed);
}

static void stop_cb(uv_async_t *async)
{
    struct api *api = async->data;
    if (api->stopping)
        return;
    api->stopping = true;
    for (size_t i = 0; i < api->listener_count; i++) {
        if (api->listeners[i].accept_open)
            uv_close((uv_handle_t *)&api->listeners[i].accept, NULL);
        memory_close(&api->listeners[i].fd);
    }
    struct api_connection *next;
    for (struct api_connection *c = api->connections; c != NULL; c = next) {
        next = c->next;
        api_connection_cut(c);
    }
    api_relay_stop(api);
    api_dirty(api);
}

static void event_cb(uv_async_t *async)
{
    api_events_wake(async->data);
}

/* Any thread. */
static void event_posted(void *user)
{
    struct api *api = user;
    (void)uv_async_send(&api->event);
}

static void *thread_main(void *user)
{
    struct api *api = user;
    sigset_t all;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, NULL);
    (void)pthread_setname_np(pthread_self(), "skerry-api");
    (void)uv_run(&api->loop, UV_RUN_DEFAULT);
    atomic_store(&api->finished, true);
    return NULL;
}

/* --- opening ------------------------------------------------------------------------------------ */

_Static_assert(offsetof(struct sockaddr_in, sin_port) == offsetof(struct sockaddr_in6, sin6_port),
               "the port stands at the same place");

static int tcp_listen(const char *address, unsigned *port, struct err *e)
{
    char host[64];
    const char *colon = strrchr(address, ':');
    size_t length = colon == NULL ? 0 : (size_t)(colon - address);
    if (length > 2 && address[0] == '[' && address[length - 1] == ']') {
        address++;
        length -= 2;
    }
    if (colon == NULL || length >= sizeof(host))
        return err_set(e, ERR_INVALID, "API address %s: not ADDRESS:PORT", address);
    memcpy(host, address, length);
    host[length] = '\0';
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0)
        return err_set(e, ERR_INVALID, "API address %s:%s: not an IP address and a port", host,
                       colon + 1);
    CLEANUP_FD int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    struct sockaddr_storage bound = {0};
    socklen_t bound_length = sizeof(bound);
    bool done = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) == 0 &&
                bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 256) == 0 &&
                getsockname(fd, (struct sockaddr *)&bound, &bound_length) == 0;
    int sys = errno;
    freeaddrinfo(found);
    if (!done)
        return err_sys(e, ERR_IO, sys, "listen for the API on %s:%s", host, colon + 1);
    in_port_t bound_port;
    memcpy(&bound_port, (const char *)&bound + offsetof(struct sockaddr_in, sin_port),
           sizeof(bound_port));
    *port = ntohs(bound_port);
    if (!address_private(&bound))
        log_warn("api", "%s:%s is a public address; the API is meant for private ones", host,
                 colon + 1);
    return steal_fd(&fd);
}

/* A socket file that nobody listens on is left over from a process that was killed. */
static bool socket_left_over(const struct sockaddr_un *address)
{
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    return connect(fd, (const struct sockaddr *)address, sizeof(*address)) != 0 &&
           errno == ECONNREFUSED;
}

static int unix_listen(struct api *api, struct err *e)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!text_copy(address.sun_path, sizeof(address.sun_path), api->socket_path))
        return err_set(e, ERR_INVALID, "API socket %s: the path is too long", api->socket_path);
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "make the API's socket");
    if (socket_left_over(&address))
        (void)unlink(address.sun_path);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        return err_sys(e, errno == EADDRINUSE ? ERR_EXISTS : ERR_IO, errno, "bind API socket %s",
                       address.sun_path);
    /* Nobody can connect before listen, so the mode is right from the first connection on. */
    if (api->options.socket_group != (gid_t)-1 &&
        chown(address.sun_path, (uid_t)-1, api->options.socket_group) != 0)
        log_warn("api", "socket %s: cannot give it to group %u; only its owner can use it",
                 address.sun_path, (unsigned)api->options.socket_group);
    if (chmod(address.sun_path, 0660) != 0 || listen(fd, 256) != 0) {
        int sys = errno;
        (void)unlink(address.sun_path);
        return err_sys(e, ERR_IO, sys, "listen on API socket %s", address.sun_path);
    }
    return steal_fd(&fd);
}

static int listener_open(struct api *api, int fd, bool local, unsigned port, struct err *e)
{
    struct api_listener *l = &api->listeners[api->listener_count];
    *l = (struct api_listener){.api = api, .fd = fd, .local = local, .port = port};
    api->listener_count++;
    l->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME | MHD_ALLOW_UPGRADE |
            MHD_USE_ERROR_LOG,
        0, NULL, NULL, api_request_access_cb, l, MHD_OPTION_EXTERNAL_LOGGER, mhd_log_cb, l,
        MHD_OPTION_URI_LOG_CALLBACK, api_request_uri_cb, l, MHD_OPTION_NOTIFY_COMPLETED,
        api_request_completed_cb, l, MHD_OPTION_NOTIFY_CONNECTION, api_connection_notify_cb, l,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_CONNECTION_LIMIT,
        api->options.connections_max + 1, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_BYTES, MHD_OPTION_CONNECTION_TIMEOUT,
        (api->options.idle_timeout_ms + 999) / 1000, MHD_OPTION_END);
    if (l->daemon == NULL)
        return err_set(e, ERR_INTERNAL, "libmicrohttpd did not start");
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(l->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    int status = info == NULL ? UV_EINVAL : uv_poll_init(&api->loop, &l->poll, info->epoll_fd);
    if (status != 0)
        return err_set(e, ERR_INTERNAL, "poll libmicrohttpd: %s", uv_strerror(status));
    l->poll.data = l;
    l->poll_open = true;
    (void)uv_poll_start(&l->poll, UV_READABLE, mhd_poll_cb);
    if (fd < 0)
        return 0;
    status = uv_poll_init(&api->loop, &l->accept, fd);
    if (status != 0)
        return err_set(e, ERR_INTERNAL, "poll the API's socket: %s", uv_strerror(status));
    l->accept.data = l;
    l->accept_open = true;
    (void)uv_poll_start(&l->accept, UV_READABLE, api_accept_cb);
    return 0;
}

static int listeners_open(struct api *api, struct err *e)
{
    if (api->options.listen_count > API_LISTENERS_MAX - 2)
        return err_set(e, ERR_LIMIT, "API: %zu addresses; at most %d", api->options.listen_count,
                       API_LISTENERS_MAX - 2);
    for (size_t i = 0; i < api->options.listen_count; i++) {
        unsigned port = 0;
        int fd = tcp_listen(api->options.listen[i], &port, e);
        if (fd < 0)
            return fd;
        int code = listener_open(api, fd, false, port, e);
        if (code < 0)
            return code;
    }
    if (api->options.peers.self != 0) {
        struct api_listener *l = &api->listeners[api->listener_count];
        int code = listener_open(api, -1, false, 0, e);
        if (code < 0)
            return code;
        api->relay_listener = l;
    }
    if (api->socket_path[0] == '\0')
        return 0;
    int fd = unix_listen(api, e);
    if (fd < 0) {
        api->socket_path[0] = '\0'; /* It is not ours to remove. */
        return fd;
    }
    return listener_open(api, fd, true, 0, e);
}

static void options_default(struct api_options *o)
{
    o->connections_max = o->connections_max != 0 ? o->connections_max : 1024;
    o->header_timeout_ms = o->header_timeout_ms != 0 ? o->header_timeout_ms : 10000;
    o->body_timeout_ms = o->body_timeout_ms != 0 ? o->body_timeout_ms : 30000;
    o->keepalive_timeout_ms = o->keepalive_timeout_ms != 0 ? o->keepalive_timeout_ms : 75000;
    o->idle_timeout_ms = o->idle_timeout_ms != 0 ? o->idle_timeout_ms : 300000;
    o->upload_bytes_max = o->upload_bytes_max != 0 ? o->upload_bytes_max : 16ull << 30;
}

static int options_copy(struct api *api, const struct api_options *options, struct err *e)
{
    api->options = *options;
    options_default(&api->options);
    if (!text_copy(api->node_name, sizeof(api->node_name), options->node_name))
        return err_set(e, ERR_INVALID, "node name %s: too long", options->node_name);
    if (options->socket_path != NULL &&
        !text_copy(api->socket_path, sizeof(api->socket_path), options->socket_path))
        return err_set(e, ERR_INVALID, "API socket %s: the path is too long", options->socket_path);
    api->peek = malloc(API_PEEK_BYTES);
    api->hosts = calloc(options->host_count + 1, sizeof(*api->hosts));
    if (api->hosts == NULL || api->peek == NULL)
        return err_set(e, ERR_NO_MEMORY, "open the API");
    for (size_t i = 0; i < options->host_count; i++)
        if ((api->hosts[i] = strdup(options->hosts[i])) == NULL)
            return err_set(e, ERR_NO_MEMORY, "open the API");
    return 0;
}

static void handles_open(struct api *api)
{
    (void)uv_prepare_init(&api->loop, &api->prepare);
    (void)uv_timer_init(&api->loop, &api->mhd_timer);
    (void)uv_timer_init(&api->loop, &api->sweep);
    (void)uv_timer_init(&api->loop, &api->settle);
    (void)uv_timer_init(&api->loop, &api->arrivals);
    (void)uv_timer_init(&api->loop, &api->places_timer);
    api->places_timer.data = api;
    api->arrivals.data = api;
    api->prepare.data = api->mhd_timer.data = api->sweep.data = api->settle.data = api;
    api->stop.data = api->event.data = api;
    (void)uv_prepare_start(&api->prepare, prepare_cb);
    (void)uv_timer_start(&api->sweep, api_sweep_cb, SWEEP_MS, SWEEP_MS);
}

static void api_free(struct api *api)
{
    if (api->socket_path[0] != '\0')
        (void)unlink(api->socket_path);
    api_worker_free(api->worker);
    for (size_t i = 0; api->hosts != NULL && api->hosts[i] != NULL; i++)
        free(api->hosts[i]);
    free(api->hosts);
    free(api->peek);
    free(api);
}

/* Undoes what was opened when the thread does not run yet. */
static int open_failed(struct api *api, int code)
{
    stop_cb(&api->stop);
    if (api->inbox != NULL)
        (void)uv_run(&api->loop, UV_RUN_DEFAULT);
    assert_always(uv_loop_close(&api->loop) == 0);
    api_free(api);
    return code;
}

int api_open(struct api **out, const struct api_options *options, struct err *e)
{
    struct api *api = calloc(1, sizeof(*api));
    if (api == NULL)
        return err_set(e, ERR_NO_MEMORY, "open the API");
    int code = options_copy(api, options, e);
    int status = code < 0 ? 0 : uv_loop_init(&api->loop);
    if (code < 0 || status != 0) {
        api->socket_path[0] = '\0';
        api_free(api);
        return code < 0 ? code : err_set(e, ERR_INTERNAL, "API loop: %s", uv_strerror(status));
    }
    api->loop.data = api;
    code = inbox_open(&api->inbox, &api->loop, api, INBOX_MESSAGES_MAX, e);
    if (code < 0) {
        api->socket_path[0] = '\0';
        return open_failed(api, code);
    }
    handles_open(api);
    if (uv_async_init(&api->loop, &api->stop, stop_cb) != 0 ||
        uv_async_init(&api->loop, &api->event, event_cb) != 0)
        return open_failed(api, err_set(e, ERR_INTERNAL, "API loop: no descriptor left"));
    code = api_worker_open(&api->worker, api, e);
    if (code < 0)
        return open_failed(api, code);
    code = listeners_open(api, e);
    if (code < 0)
        return open_failed(api, code);
    if (pthread_create(&api->thread, NULL, thread_main, api) != 0)
        return open_failed(api, err_set(e, ERR_NO_MEMORY, "start the API's thread"));
    api->options.calls.events_watch(api->options.calls.user, event_posted, api);
    *out = api;
    return 0;
}

unsigned api_port(const struct api *api, size_t listener)
{
    return listener < api->listener_count ? api->listeners[listener].port : 0;
}

void api_close(struct api *api, void (*pump)(void *user), void *user)
{
    api->options.calls.events_watch(api->options.calls.user, NULL, api);
    (void)uv_async_send(&api->stop);
    uint64_t deadline_ms = clock_monotonic_ms() + CLOSE_MS;
    while (!atomic_load(&api->finished)) {
        if (clock_monotonic_ms() >= deadline_ms) {
            /* A runner that is away tells no ends. The thread keeps what such questions point to,
             * and ends with the process. */
            log_warn("api", "questions are left without an answer; not waiting for them");
            if (api->socket_path[0] != '\0')
                (void)unlink(api->socket_path);
            (void)pthread_detach(api->thread);
            return;
        }
        pump(user);
    }
    (void)pthread_join(api->thread, NULL);
    assert_always(uv_loop_close(&api->loop) == 0);
    api_free(api);
}
