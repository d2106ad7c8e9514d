/* node/api/connection.c - connections, from accept to close.
 *
 *     arriving --head is whole and strict--> served by libmicrohttpd --> closed
 *         '----it is not, or too slow------> refused: told why, drained --> closed
 *
 * libmicrohttpd takes bare LF, folded lines and the like, and refuses in HTML. So the first head of a
 * connection is looked at (MSG_PEEK) with the gateway's strict reader before libmicrohttpd gets the
 * connection; those that follow on it are its own, but for what node/api/request.c checks. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "gateway/http.h"
#include "gateway/problem.h"
#include "node/api/internal.h"
#include "node/api/relay.h"

#define PEER_GROUPS_MAX 256
/* A peer that vanished is noticed within 60 + 4 * 15 s, also when nothing is to be sent. */
#define KEEPALIVE_IDLE_S 60
#define KEEPALIVE_INTERVAL_S 15
#define KEEPALIVE_COUNT 4
#define ACCEPT_IN_A_ROW_MAX 64
#define ARRIVAL_AGAIN_MS                                                                           \
    10 /* a head that came in part is looked at again; peeking cannot wait for more */
#define LINGER_MS 2000u

/* Whether a peer on the unix socket is admin without a token: root, the node's own user, or a
 * member of the socket's group, as the kernel noted when it connected. */
static bool peer_trusted(const struct api *api, int fd, char *name, size_t size)
{
    struct ucred who;
    socklen_t length = sizeof(who);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) != 0) {
        (void)text_copy(name, size, "unix socket");
        return false;
    }
    (void)text_format(name, size, "uid %u", (unsigned)who.uid);
    if (who.uid == 0 || who.uid == geteuid())
        return true;
    gid_t group = api->options.socket_group;
    if (group == (gid_t)-1)
        return false;
    if (who.gid == group)
        return true;
    gid_t groups[PEER_GROUPS_MAX];
    length = sizeof(groups);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &length) != 0)
        return false;
    for (size_t i = 0; i < length / sizeof(groups[0]); i++)
        if (groups[i] == group)
            return true;
    return false;
}

static void name_peer(int fd, char *name, size_t size)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);
    char host[48];
    char port[8];
    if (getpeername(fd, (struct sockaddr *)&address, &length) != 0 ||
        getnameinfo((struct sockaddr *)&address, length, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        (void)text_copy(name, size, "unknown peer");
    else
        (void)text_format(name, size, "%s port %s", host, port);
}

static void set_option(int fd, int level, int name, int value)
{
    (void)setsockopt(fd, level, name, &value, sizeof(value));
}

static void watch_peer(int fd)
{
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT);
}

void api_connection_prompt(int fd)
{
    set_option(fd, IPPROTO_TCP, TCP_CORK, 0);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
}

/* --- the list ----------------------------------------------------------------------------------- */

static void connection_freed_cb(uv_handle_t *handle)
{
    free(handle->data);
}

/* Takes it out of the list and lets go of the descriptor, which stays open. */
static void connection_drop(struct api_connection *c)
{
    struct api *api = c->listener->api;
    if (c->previous != NULL)
        c->previous->next = c->next;
    else
        api->connections = c->next;
    if (c->next != NULL)
        c->next->previous = c->previous;
    c->listener->connection_count--;
    uv_close((uv_handle_t *)&c->poll, connection_freed_cb);
    api_listener_ready(c->listener);
}

static void connection_close(struct api_connection *c)
{
    int fd = c->fd;
    connection_drop(c);
    (void)close(fd);
}

/* --- refused ------------------------------------------------------------------------------------ */

static void refused_cb(uv_poll_t *poll, int status, int events)
{
    struct api_connection *c = poll->data;
    char data[4096];
    (void)events;
    for (unsigned times = 0; status >= 0 && times < 16; times++) {
        ssize_t count = recv(c->fd, data, sizeof(data), MSG_DONTWAIT);
        if (count < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (count <= 0)
            break;
        if (times == 15)
            return; /* more, the next time */
    }
    connection_close(c);
}

static void linger(struct api_connection *c)
{
    (void)shutdown(c->fd, SHUT_WR);
    c->phase = API_CONNECTION_REFUSED;
    c->waiting = false;
    c->deadline_ms = clock_monotonic_ms() + LINGER_MS;
    (void)uv_poll_start(&c->poll, UV_READABLE, refused_cb);
}

/* Answers without libmicrohttpd, then waits for the client to close. */
static void refuse(struct api_connection *c, const struct problem_report *why)
{
    const struct problem_word *word = problem_word(why->problem);
    struct problem_report report = *why;
    struct buffer body;
    struct buffer answer;
    char id[GATEWAY_REQUEST_ID_SIZE];
    char retry[48] = "";
    api_request_id(c->listener->api, id);
    report.request_id = id;
    if (problem_retry_after_s(&report) > 0)
        (void)text_format(retry, sizeof(retry), "Retry-After: %u\r\n",
                          problem_retry_after_s(&report));
    buffer_init(&body, PROBLEM_BODY_BYTES_MAX);
    buffer_init(&answer, PROBLEM_BODY_BYTES_MAX + 1024);
    if (problem_body(&body, &report) &&
        buffer_printf(&answer,
                      "HTTP/1.1 %d %s\r\nContent-Type: " PROBLEM_CONTENT_TYPE "\r\n"
                      "Content-Length: %zu\r\nSkerry-Error: %s\r\nSkerry-Request-Id: %s\r\n"
                      "%sConnection: close\r\n\r\n",
                      word->status, MHD_get_reason_phrase_for((unsigned)word->status), body.length,
                      word->code, id, retry) &&
        buffer_append(&answer, body.data, body.length))
        (void)send(c->fd, answer.data, answer.length, MSG_DONTWAIT | MSG_NOSIGNAL);
    buffer_free(&answer);
    buffer_free(&body);
    c->listener->api->requests_total[word->status / 100]++;
    linger(c);
}

/* --- arriving ----------------------------------------------------------------------------------- */

/* libmicrohttpd calls back for it, in here or later, and closes the descriptor in any case. */
static void serve(struct api_connection *c)
{
    struct api_listener *l = c->listener;
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);
    c->phase = API_CONNECTION_GIVEN;
    c->waiting = false;
    (void)uv_poll_stop(&c->poll);
    (void)getpeername(c->fd, (struct sockaddr *)&address, &length);
    if (MHD_add_connection(l->daemon, c->fd, (struct sockaddr *)&address, length) != MHD_YES)
        connection_drop(c);
    api_listener_ready(l);
}

/* Whether the head is whole and right; else what to do about it was done. */
static void arrival_look(struct api_connection *c)
{
    struct api *api = c->listener->api;
    const struct http_bounds bounds = {.head_bytes_max = API_HEADER_BYTES_MAX,
                                       .target_bytes_max = API_TARGET_LENGTH_MAX};
    struct http_scan scan = {0};
    struct http_fault fault = {0};
    ssize_t count = recv(c->fd, api->peek, API_PEEK_BYTES, MSG_PEEK | MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (count <= 0) {
        connection_close(c);
        return;
    }
    c->begun = true;
    ptrdiff_t length = http_scan(&scan, api->peek, (size_t)count, true, &bounds, &fault);
    if (length == HTTP_MORE) {
        (void)uv_poll_stop(&c->poll);
        c->waiting = true;
        if (!uv_is_active((uv_handle_t *)&api->arrivals))
            (void)uv_timer_start(&api->arrivals, api_arrivals_cb, ARRIVAL_AGAIN_MS,
                                 ARRIVAL_AGAIN_MS);
    } else if (length < 0 || !http_request_parse(&api->head, api->peek + scan.begin,
                                                 (size_t)length - scan.begin, &bounds, &fault)) {
        refuse(c, &(struct problem_report){.problem = fault.problem, .detail = fault.why});
    } else {
        serve(c);
    }
}

static void arrival_cb(uv_poll_t *poll, int status, int events)
{
    (void)events;
    if (status < 0)
        connection_close(poll->data);
    else
        arrival_look(poll->data);
}

void api_arrivals_cb(uv_timer_t *timer)
{
    struct api *api = timer->data;
    bool waiting = false;
    struct api_connection *next;
    for (struct api_connection *c = api->connections; c != NULL; c = next) {
        next = c->next;
        if (!c->waiting)
            continue;
        /* What it peeked last time is still there: it waits again, or is done. */
        arrival_look(c);
        waiting = true;
    }
    if (!waiting)
        (void)uv_timer_stop(&api->arrivals);
}

struct api_connection *api_connection_open(struct api_listener *l, int fd)
{
    struct api *api = l->api;
    struct api_connection *c = calloc(1, sizeof(*c));
    if (c == NULL || l->connection_count >= api->options.connections_max ||
        uv_poll_init(&api->loop, &c->poll, fd) != 0) {
        free(c);
        (void)close(fd);
        return NULL;
    }
    c->listener = l;
    c->fd = fd;
    c->deadline_ms = clock_monotonic_ms() + api->options.header_timeout_ms;
    c->local = l->local;
    if (l == api->relay_listener) {
        c->relayed = true;
    } else if (l->local) {
        c->trusted = peer_trusted(api, fd, c->peer, sizeof(c->peer));
    } else {
        name_peer(fd, c->peer, sizeof(c->peer));
        watch_peer(fd);
    }
    c->poll.data = c;
    c->next = api->connections;
    if (c->next != NULL)
        c->next->previous = c;
    api->connections = c;
    l->connection_count++;
    (void)uv_poll_start(&c->poll, UV_READABLE, arrival_cb);
    return c;
}

void api_accept_cb(uv_poll_t *poll, int status, int events)
{
    struct api_listener *l = poll->data;
    (void)status;
    (void)events;
    for (unsigned i = 0; i < ACCEPT_IN_A_ROW_MAX; i++) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            (void)api_connection_open(l, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            /* Nothing can be done now; api_sweep_cb tries again. */
            (void)uv_poll_stop(poll);
            l->accept_paused = true;
            return;
        } else if (errno != ECONNABORTED && errno != EINTR) {
            return;
        }
    }
}

/* --- served ------------------------------------------------------------------------------------- */

void api_connection_notify_cb(void *user, struct MHD_Connection *mhd, void **context,
                              enum MHD_ConnectionNotificationCode code)
{
    struct api_listener *l = user;
    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (*context != NULL)
            connection_drop(*context); /* libmicrohttpd closes the descriptor after this */
        *context = NULL;
        return;
    }
    int fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    struct api_connection *c = l->api->connections;
    while (c != NULL && (c->fd != fd || c->phase != API_CONNECTION_GIVEN))
        c = c->next;
    if (c != NULL)
        c->phase = API_CONNECTION_SERVED;
    *context = c;
}

void api_connection_cut(struct api_connection *c)
{
    c->deadline_ms = 0;
    if (c->phase == API_CONNECTION_ARRIVING && c->begun && !c->listener->api->stopping) {
        refuse(c, &(struct problem_report){.problem = PROBLEM_HEADER_TIMEOUT,
                                           .detail = "the header block did not come in time"});
    } else if (c->phase == API_CONNECTION_ARRIVING || c->phase == API_CONNECTION_REFUSED) {
        connection_close(c);
    } else if (c->duplex != NULL) {
        api_duplex_gone(c->duplex);
    } else if (c->port != NULL) {
        api_port_gone(c->port);
    } else if (c->relay != NULL) {
        api_relay_end(c->relay);
    } else {
        if (c->request != NULL)
            api_request_gone(c->request);
        (void)shutdown(c->fd, SHUT_RDWR);
    }
}

void api_sweep_cb(uv_timer_t *timer)
{
    struct api *api = timer->data;
    uint64_t now = clock_monotonic_ms();
    struct api_connection *next;
    for (struct api_connection *c = api->connections; c != NULL; c = next) {
        next = c->next;
        if (c->deadline_ms != 0 && now >= c->deadline_ms)
            api_connection_cut(c);
    }
    api_relay_sweep(api, now);
    for (size_t i = 0; i < api->listener_count; i++) {
        struct api_listener *l = &api->listeners[i];
        if (l->accept_paused && l->fd >= 0)
            (void)uv_poll_start(&l->accept, UV_READABLE, api_accept_cb);
        l->accept_paused = false;
    }
}
