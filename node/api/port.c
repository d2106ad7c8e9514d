/* node/api/port.c - a connection to a port of an instance's own loopback, over an upgraded connection.
 *
 *     (a place in the instance ->) a socket made in its network -> connecting -> 101
 *                                                                     '-> refused: once, of the other family
 *     socket --frames STDIN, STDIN_END--> in --> to_port --> port
 *     port --> out --frames STDOUT, of which an empty one is its end--> socket
 *
 * The request names a number and a family, never an address: the node itself connects to 127.0.0.1 or ::1,
 * by a socket that the runner has made inside the instance's network namespace, as joins over HTTP do. So
 * nothing but the instance can be reached.
 *
 * Either side may end before the other. When both have, frame EXIT says so; where the connection breaks,
 * frame PROBLEM. Neither direction holds more than PORT_BYTES and a frame: who does not take is not read
 * for.
 *
 * With a place (node/api/join.c) it is a joiner as any other: counted, and ended when no byte moves for
 * timeouts.stream_idle or the instance ends. Without one it is none; sessions of SSH have theirs. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/exec_frame.h"
#include "gateway/problem.h"
#include "node/api/internal.h"

#define PORT_BYTES (64u * 1024u)
#define IN_BYTES_MAX (EXEC_FRAME_HEADER_BYTES + EXEC_FRAME_BYTES_MAX)
#define READS_PER_TURN 8u
#define LINGER_MS 2000u
/* Code that listens and never accepts: its queue is full. 1 + 2 + 4 s of the kernel's, then no more. */
#define CONNECT_AGAIN 2

struct api_port {
    struct api *api;
    struct api_request *request; /* until it is upgraded */
    struct api_connection *connection;
    struct MHD_UpgradeResponseHandle *upgraded;
    int socket; /* libmicrohttpd's */
    struct api_fd *port;
    unsigned number;
    bool ipv6, other_too; /* of the family that is tried; the other is tried next */
    struct instance_id id;
    struct place *place;        /* NULL: it holds none, or no more */
    uint64_t idle_ms, moved_ms; /* with a place: timeouts.stream_idle; when a byte last moved */
    struct buffer in;           /* frames that are not whole, or have no room */
    struct buffer to_port, out;
    bool input_ended;  /* the client sends no more: told to the port when `to_port` is empty */
    bool input_passed; /* that was told, or the port takes no more */
    bool output_ended; /* the port sends no more, and the client was told */
    bool told, closing, gone;
};

static void port_step(struct api_port *p);

/* --- from the port ------------------------------------------------------------------------------ */

static void tell(struct api_port *p, enum exec_frame_type type, const void *data, size_t size)
{
    if (!exec_frame_append(&p->out, type, data, size))
        p->gone = true;
}

static void tell_problem(struct api_port *p, enum problem problem, const char *detail)
{
    struct buffer text;
    buffer_init(&text, PROBLEM_BODY_BYTES_MAX);
    p->told = true;
    if (problem_body(&text, &(struct problem_report){.problem = problem,
                                                     .ran = RAN_MAYBE,
                                                     .detail = detail,
                                                     .instance = p->id.text}))
        tell(p, EXEC_FRAME_PROBLEM, text.data, text.length);
    else
        p->gone = true;
    buffer_free(&text);
}

static void tell_broken(struct api_port *p, int error)
{
    char detail[160];
    (void)text_format(detail, sizeof detail, "the connection to port %u broke: %s", p->number,
                      strerror(error));
    tell_problem(p, PROBLEM_INSTANCE_UNREACHABLE, detail);
}

static void moved(struct api_port *p)
{
    if (p->place != NULL)
        p->moved_ms = clock_monotonic_ms();
}

static void take_output(struct api_port *p)
{
    char data[16384];
    while (!p->output_ended && !p->told && !p->gone && p->out.length < PORT_BYTES) {
        ssize_t count = recv(p->port->fd, data, sizeof data, MSG_DONTWAIT);
        if (count > 0) {
            moved(p);
            tell(p, EXEC_FRAME_STDOUT, data, (size_t)count);
        } else if (count == 0) {
            p->output_ended = true;
            tell(p, EXEC_FRAME_STDOUT, NULL, 0);
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            tell_broken(p, errno);
        }
    }
}

static void send_out(struct api_port *p)
{
    while (p->out.length > 0 && !p->gone) {
        ssize_t count = send(p->socket, p->out.data, p->out.length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count >= 0)
            buffer_consume(&p->out, (size_t)count);
        else if (errno == EAGAIN)
            return;
        else if (errno != EINTR)
            p->gone = true;
    }
}

/* --- to the port -------------------------------------------------------------------------------- */

static void write_input(struct api_port *p)
{
    while (p->to_port.length > 0 && !p->input_passed) {
        ssize_t count =
            send(p->port->fd, p->to_port.data, p->to_port.length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count >= 0) {
            moved(p);
            buffer_consume(&p->to_port, (size_t)count);
        } else if (errno == EAGAIN)
            return;
        else if (errno != EINTR)
            p->input_passed = true; /* what it sent before it closed may still be there to read */
    }
    if (p->input_ended && !p->input_passed) {
        p->input_passed = true;
        (void)shutdown(p->port->fd, SHUT_WR);
    }
    if (p->input_passed)
        buffer_consume(&p->to_port, p->to_port.length);
}

static bool take_frame(struct api_port *p, const struct exec_frame *f)
{
    if (p->input_ended || (f->type != EXEC_FRAME_STDIN && f->type != EXEC_FRAME_STDIN_END))
        return false;
    p->input_ended = f->type == EXEC_FRAME_STDIN_END;
    return p->input_passed || buffer_append(&p->to_port, f->data, f->size);
}

static void take_frames(struct api_port *p)
{
    while (!p->told && !p->gone && p->to_port.length < PORT_BYTES) {
        struct exec_frame frame;
        enum exec_frame_read read = exec_frame_read(&frame, p->in.data, p->in.length);
        if (read == EXEC_FRAME_MORE)
            return;
        if (read == EXEC_FRAME_BAD || !take_frame(p, &frame))
            p->gone = true;
        else
            buffer_consume(&p->in, EXEC_FRAME_HEADER_BYTES + frame.size);
    }
}

static void receive(struct api_port *p)
{
    char data[16384];
    for (unsigned times = 0; times < READS_PER_TURN && !p->gone; times++) {
        take_frames(p);
        write_input(p);
        size_t room = IN_BYTES_MAX - p->in.length;
        if (room == 0 || p->gone)
            return;
        ssize_t count =
            recv(p->socket, data, room < sizeof data ? room : sizeof data, MSG_DONTWAIT);
        if (count < 0 && errno == EAGAIN)
            return;
        if (count < 0 && errno == EINTR)
            continue;
        if (count > 0 && p->told)
            continue; /* nobody is there to take it any more */
        if (count <= 0 || !buffer_append(&p->in, data, (size_t)count))
            p->gone = true;
    }
}

/* --- the whole ---------------------------------------------------------------------------------- */

/* The code's side is closed: somebody else may have the place. What a joiner broke off does not look to
 * the code as if it had ended. */
static void leave(struct api_port *p)
{
    const struct linger at_once = {.l_onoff = 1};
    if (p->place != NULL && p->port != NULL && !(p->input_passed && p->output_ended))
        (void)setsockopt(p->port->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    api_fd_close(&p->port);
    if (p->place != NULL)
        api_place_leave(p->place);
    p->place = NULL;
}

static void port_free(struct api_port *p)
{
    leave(p);
    buffer_free(&p->in);
    buffer_free(&p->to_port);
    buffer_free(&p->out);
    free(p);
}

/* libmicrohttpd closes the socket after this; our poll must let go of it before. */
static void port_close(struct api_port *p)
{
    struct api_listener *l = p->connection->listener;
    (void)uv_poll_stop(&p->connection->poll);
    p->connection->port = NULL;
    (void)MHD_upgrade_action(p->upgraded, MHD_UPGRADE_ACTION_CLOSE);
    port_free(p);
    api_listener_ready(l);
}

static void socket_cb(uv_poll_t *poll, int status, int events)
{
    struct api_connection *c = poll->data;
    struct api_port *p = c->port;
    if (p == NULL)
        return;
    if (status < 0 || (events & UV_DISCONNECT) != 0)
        p->gone = true;
    else
        receive(p);
    port_step(p);
}

static void wait_for(struct api_port *p)
{
    bool room = p->out.length < PORT_BYTES;
    if (p->port != NULL)
        api_fd_want(p->port, (room && !p->output_ended ? UV_READABLE : 0) |
                                 (p->to_port.length > 0 ? UV_WRITABLE : 0));
    int events = UV_DISCONNECT;
    if (p->told || (p->in.length < IN_BYTES_MAX && p->to_port.length < PORT_BYTES))
        events |= UV_READABLE;
    if (p->out.length > 0)
        events |= UV_WRITABLE;
    (void)uv_poll_start(&p->connection->poll, events, socket_cb);
}

/* As of a command (node/api/duplex.c): the client closes first, so that no reset overtakes the last frame. */
static void linger(struct api_port *p)
{
    p->closing = true;
    p->connection->deadline_ms = clock_monotonic_ms() + LINGER_MS;
    (void)shutdown(p->socket, SHUT_WR);
    buffer_consume(&p->in, p->in.length);
}

static void port_step(struct api_port *p)
{
    if (p->port != NULL) {
        take_frames(p);
        write_input(p);
        take_frames(p);
        take_output(p);
    }
    if (p->output_ended && p->input_passed && !p->told) {
        p->told = true;
        tell(p, EXEC_FRAME_EXIT, "{}", 2);
    }
    if (p->told) {
        leave(p);
        /* A client that does not take the rest is not waited for without end. */
        if (p->connection->deadline_ms == 0)
            p->connection->deadline_ms = clock_monotonic_ms() + p->api->options.idle_timeout_ms;
    }
    send_out(p);
    if (p->told && p->out.length == 0 && !p->closing && !p->gone)
        linger(p);
    if (p->gone)
        port_close(p);
    else
        wait_for(p);
}

void api_port_gone(struct api_port *p)
{
    p->gone = true;
    port_step(p);
}

/* --- connecting --------------------------------------------------------------------------------- */

/* The request lets go before it was upgraded. */
static void port_leave(struct api_request *r)
{
    port_free(r->state);
    r->state = NULL;
}

static void upgraded_cb(void *user, struct MHD_Connection *mhd, void *request, const char *extra,
                        size_t extra_size, MHD_socket socket, struct MHD_UpgradeResponseHandle *u)
{
    struct api_request *r = request;
    struct api_port *p = r->state;
    (void)user;
    (void)mhd;
    r->state = NULL;
    r->state_free = NULL;
    p->request = NULL;
    p->connection = r->connection;
    p->connection->port = p;
    p->connection->request = NULL;
    p->connection->deadline_ms = 0;
    p->upgraded = u;
    p->socket = socket;
    moved(p);
    if (!p->connection->listener->local)
        api_connection_prompt(socket);
    if (!buffer_append(&p->in, extra, extra_size))
        p->gone = true;
    port_step(p);
}

static bool socket_ask(struct api_port *p, const char *instance);

static void connect_failed(struct api_port *p, int error)
{
    api_fd_close(&p->port);
    if (error == ECONNREFUSED && p->other_too) {
        p->other_too = false;
        p->ipv6 = !p->ipv6;
        (void)socket_ask(p, p->id.text);
        return;
    }
    api_problem_of(p->request, &(struct api_trouble){.problem = PROBLEM_INSTANCE_UNREACHABLE,
                                                     .instance = p->id.text,
                                                     .detail = error == ECONNREFUSED
                                                                   ? "nothing listens on this port "
                                                                     "of the instance's loopback"
                                                                   : strerror(error)});
}

static void ready_cb(struct api_fd *f, int events)
{
    struct api_port *p = f->owner;
    int error = 0;
    socklen_t length = sizeof error;
    (void)events;
    if (p->request == NULL) {
        port_step(p);
        return;
    }
    if (getsockopt(f->fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0)
        error = errno;
    if (error != 0) {
        connect_failed(p, error);
        return;
    }
    api_answer_upgrade(p->request, upgraded_cb);
    if (p->request->response == NULL)
        return;
    api_header_add(p->request, "Upgrade", "skerry-exec/1");
    api_header_add(p->request, "Skerry-Instance", p->id.text);
}

static int loopback_connect(int fd, bool ipv6, unsigned port)
{
    const struct sockaddr_in v4 = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
                                    .sin6_port = htons((uint16_t)port),
                                    .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    const int again = CONNECT_AGAIN, on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &again, sizeof again);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return ipv6 ? connect(fd, (const struct sockaddr *)&v6, sizeof v6)
                : connect(fd, (const struct sockaddr *)&v4, sizeof v4);
}

static void socket_made(struct api_ask *a)
{
    struct api_request *r = a->request;
    struct api_port *p = r->state;
    if (api_ask_refused(r, a))
        return;
    p->id = a->ask.id;
    int fd = steal_fd(&a->ask.descriptors[0]);
    int error = loopback_connect(fd, p->ipv6, p->number) == 0 || errno == EINPROGRESS ? 0 : errno;
    p->port = api_fd_open(p->api, fd, p, ready_cb);
    if (p->port == NULL)
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
    else if (error != 0)
        connect_failed(p, error);
    else
        api_fd_want(p->port, UV_WRITABLE);
}

static bool socket_ask(struct api_port *p, const char *instance)
{
    bool failed = false;
    struct api_ask *a = api_ask_new(p->request, NODE_ASK_SOCKET);
    if (a == NULL)
        return false;
    a->ask.instance = api_ask_text(a, instance, &failed);
    a->ask.ipv6 = p->ipv6;
    if (!failed)
        return api_ask_send(a, socket_made);
    api_problem(p->request, PROBLEM_INTERNAL, "out of memory");
    return false;
}

/* --- with a place ------------------------------------------------------------------------------- */

/* Role invoke reaches what it may join anyway; what else listens in an instance is not its to see. */
static bool may_reach(struct api_request *r, const struct registry_workload *w, unsigned number)
{
    if (r->role <= TOKEN_ROLE_DEPLOY ||
        (w != NULL && w->spec.protocol == PROTOCOL_TCP && w->spec.port == number))
        return true;
    api_problem(r, PROBLEM_FORBIDDEN,
                "role invoke reaches the port of a workload with protocol: tcp, as a joiner; any "
                "other port needs role deploy");
    return false;
}

static void port_held(void *owner)
{
    struct api_port *p = owner;
    const struct api_calls *calls = &p->api->options.calls;
    const char *id = api_place_instance(p->place);
    struct registry_root *root = calls->root(calls->user);
    const struct registry_instance *i = registry_root_instance(root, id, strlen(id));
    const struct registry_workload *w =
        i == NULL ? NULL : registry_root_workload_version(root, i->workload, i->version);
    p->idle_ms = w == NULL ? DURATION_NONE : w->spec.timeouts.stream_idle_ms;
    bool may = may_reach(p->request, w, p->number);
    calls->root_return(calls->user, root);
    if (may)
        (void)socket_ask(p, id);
}

static void port_look(void *owner, bool live)
{
    struct api_port *p = owner;
    char limit[UNIT_TEXT_SIZE], detail[160];
    if (p->request != NULL || p->told || p->gone)
        return;
    bool idle =
        live && p->idle_ms != DURATION_NONE && clock_monotonic_ms() - p->moved_ms >= p->idle_ms;
    if (!live) {
        tell_problem(p, PROBLEM_INSTANCE_GONE, "the instance has ended");
    } else if (idle) {
        duration_format(p->idle_ms, limit);
        (void)text_format(detail, sizeof detail,
                          "no byte moved for the %s of the workload's timeouts.stream_idle", limit);
        tell_problem(p, PROBLEM_STREAM_IDLE, detail);
    }
    if (p->told)
        port_step(p);
}

/* --- the two requests --------------------------------------------------------------------------- */

/* What it asks for; NULL: a problem was answered. */
static struct api_port *port_new(struct api_request *r)
{
    const char *host = api_query(r, "host");
    uint64_t number = 0;
    if (!api_query_number(r, "port", UINT16_MAX, &number))
        return NULL;
    bool any = host == NULL || strcmp(host, "localhost") == 0;
    bool ipv6 = !any && strcmp(host, "::1") == 0;
    if (number == 0)
        api_problem(r, PROBLEM_BAD_REQUEST, "port: a number from 1 to 65535");
    else if (!any && !ipv6 && strcmp(host, "127.0.0.1") != 0)
        api_problem(r, PROBLEM_BAD_REQUEST,
                    "host: %.80s is not the instance: localhost, 127.0.0.1 or ::1", host);
    else if (!r->upgrade)
        api_problem(r, PROBLEM_BAD_REQUEST,
                    "a port is reached with Connection: Upgrade and Upgrade: skerry-exec/1");
    struct api_port *p = r->response != NULL ? NULL : calloc(1, sizeof *p);
    if (p == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory"); /* the first answer counts */
        return NULL;
    }
    p->api = r->api;
    p->request = r;
    p->number = (unsigned)number;
    p->ipv6 = ipv6;
    p->other_too = any;
    buffer_init(&p->in, IN_BYTES_MAX);
    buffer_init(&p->to_port, PORT_BYTES + EXEC_FRAME_BYTES_MAX);
    buffer_init(&p->out, PORT_BYTES + 2 * EXEC_FRAME_BYTES_MAX);
    r->state = p;
    r->state_free = port_leave;
    r->watched = true;
    return p;
}

/* False: a problem was answered. */
static bool place_new(struct api_port *p)
{
    static const struct api_place_events events = {.held = port_held, .look = port_look};
    p->place = api_place_new(p->request, &events, p);
    return p->place != NULL;
}

void api_instance_connect(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    bool joins = false;
    struct api_port *p = api_query_flag(r, "join", &joins) ? port_new(r) : NULL;
    if (p == NULL || (!joins && !may_reach(r, NULL, p->number)))
        return;
    if (joins) {
        if (place_new(p))
            api_place_seek_instance(p->place);
        return;
    }
    struct registry_root *root = calls->root(calls->user);
    bool live = api_instance_live(r, root) != NULL;
    calls->root_return(calls->user, root);
    if (live)
        (void)socket_ask(p, r->parameter);
}

void api_workload_connect(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct gateway_workload w;
    struct api_port *p = api_place_workload(r, &w) ? port_new(r) : NULL;
    if (p == NULL)
        return;
    struct registry_root *root = calls->root(calls->user);
    bool may = may_reach(r, registry_root_workload(root, w.name, strlen(w.name)), p->number);
    calls->root_return(calls->user, root);
    /* It may go on to another node, without what it had as a body. */
    if (may && r->has_body)
        api_problem(r, PROBLEM_BAD_REQUEST, "it takes no body");
    else if (may && place_new(p))
        api_place_seek_workload(p->place, &w);
}
