/* base/secure_listener.c - who knocks, until it is known.
 *
 * Handshakes that are under way are in a list, oldest first. It is bounded: when it is full the
 * oldest goes, so that strangers who connect and say nothing hold nobody up for long. */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/address.h"
#include "base/memory.h"
#include "base/secure_internal.h"

#define HANDSHAKES_MAX_DEFAULT 64u
#define BACKLOG 128
#define ACCEPTS_PER_TURN 16 /* then the loop's other work has its turn */
#define PAUSE_MS 100u       /* without descriptors or memory */

struct secure_listener {
    struct secure_listen_options options;
    uv_loop_t *loop;
    uv_poll_t poll;
    uv_timer_t timer;
    int fd;
    unsigned open_things; /* handles and streams that are not closed yet */
    struct sockaddr_storage address;
    struct secure_stream *oldest, *newest;
    unsigned handshakes;
    struct refusals refusals;
    bool closing;
    secure_closed_cb closed;
};

static const char *const refusal_names[SECURE_REFUSAL_COUNT] = {
    [SECURE_REFUSED_KEY] = "key",         [SECURE_REFUSED_HANDSHAKE] = "handshake",
    [SECURE_REFUSED_TIMEOUT] = "timeout", [SECURE_REFUSED_CROWD] = "crowd",
    [SECURE_REFUSED_PUBLIC] = "public",   [SECURE_REFUSED_MEMORY] = "memory",
};

_Static_assert(SECURE_REFUSAL_COUNT <= REFUSALS_REASONS_MAX, "each refusal has its count");

static void thing_closed(struct secure_listener *l)
{
    if (--l->open_things > 0)
        return;
    secure_closed_cb cb = l->closed;
    void *user = l->options.user;
    close(l->fd);
    free(l);
    if (cb != NULL)
        cb(user);
}

/* --- handshakes ----------------------------------------------------------------------------------- */

static void list_append(struct secure_listener *l, struct secure_stream *s)
{
    s->listener = l;
    s->previous = l->newest;
    if (l->newest != NULL)
        l->newest->next = s;
    else
        l->oldest = s;
    l->newest = s;
    l->handshakes++;
}

static void list_remove(struct secure_listener *l, struct secure_stream *s)
{
    if (s->previous != NULL)
        s->previous->next = s->next;
    else
        l->oldest = s->next;
    if (s->next != NULL)
        s->next->previous = s->previous;
    else
        l->newest = s->previous;
    s->previous = s->next = NULL;
    s->listener = NULL;
    l->handshakes--;
}

static void stream_closed_cb(void *user)
{
    thing_closed(user);
}

static void drop(struct secure_listener *l, struct secure_stream *s)
{
    list_remove(l, s);
    s->user = l;
    l->open_things++;
    secure_stream_close(s, stream_closed_cb);
}

static void refuse(struct secure_listener *l, enum secure_refusal why,
                   const struct sockaddr_storage *from, const char *text)
{
    char address[ADDRESS_TEXT_SIZE], mine[ADDRESS_TEXT_SIZE];
    address_format(from, address);
    address_format(&l->address, mine);
    refusals_note(&l->refusals, why, "%s at %s: %s", address, mine, text);
}

void secure_listener_settled(struct secure_stream *s, enum secure_refusal refusal)
{
    struct secure_listener *l = s->listener;
    if (s->phase == SECURE_OPEN) {
        list_remove(l, s);
        l->options.accepted(l->options.user, s);
        return;
    }
    refuse(l, refusal, &s->peer.address, s->error.msg);
    drop(l, s);
}

/* Takes `fd`. */
static void begin(struct secure_listener *l, int fd, const struct sockaddr_storage *from)
{
    struct secure_stream *s = NULL;
    struct err e;
    if (!address_private(from)) {
        refuse(l, SECURE_REFUSED_PUBLIC, from, "a public address");
        close(fd);
        return;
    }
    if (secure_stream_new(&s, l->loop, l->options.context, fd, l->options.write_bytes_max, &e) !=
        0) {
        refuse(l, SECURE_REFUSED_MEMORY, from, e.msg);
        return;
    }
    s->server = true;
    s->phase = SECURE_HANDSHAKE;
    s->protocols = l->options.protocols;
    s->strangers = l->options.strangers;
    s->peer.address = *from;
    secure_socket_tune(fd);
    list_append(l, s);
    if (secure_context_start(s, &e) != 0) {
        refuse(l, SECURE_REFUSED_MEMORY, from, e.msg);
        drop(l, s);
        return;
    }
    secure_stream_arm(s, l->options.timeout_ms);
    secure_stream_update(s);
    if (l->handshakes > l->options.handshakes_max) {
        s = l->oldest;
        refuse(l, SECURE_REFUSED_CROWD, &s->peer.address, "too many handshakes at once");
        drop(l, s);
    }
}

/* --- accepting ------------------------------------------------------------------------------------ */

static void accept_cb(uv_poll_t *poll, int status, int events);

static void resume_cb(uv_timer_t *timer)
{
    struct secure_listener *l = container_of(timer, struct secure_listener, timer);
    (void)uv_poll_start(&l->poll, UV_READABLE, accept_cb);
}

static void accept_cb(uv_poll_t *poll, int status, int events)
{
    struct secure_listener *l = container_of(poll, struct secure_listener, poll);
    (void)status;
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_TURN && !l->closing; i++) {
        struct sockaddr_storage from = {0};
        socklen_t size = sizeof from;
        int fd = accept4(l->fd, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            begin(l, fd, &from);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* The connection would make the loop turn without end. */
            refuse(l, SECURE_REFUSED_MEMORY, &l->address, "no descriptor or memory left");
            (void)uv_poll_stop(&l->poll);
            (void)uv_timer_start(&l->timer, resume_cb, PAUSE_MS, 0);
        }
        if (errno != EINTR && errno != ECONNABORTED)
            return;
    }
}

static int open_socket(const struct secure_listen_options *options, struct sockaddr_storage *bound,
                       struct err *e)
{
    const struct sockaddr_storage *at = options->address;
    char text[ADDRESS_TEXT_SIZE];
    int on = 1;
    socklen_t size = sizeof *bound;
    address_format(at, text);
    CLEANUP_FD int fd = socket(at->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        (options->reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0) ||
        (at->ss_family == AF_INET6 &&
         setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) != 0) ||
        bind(fd, (const struct sockaddr *)at, address_length(at)) != 0 ||
        listen(fd, BACKLOG) != 0 || getsockname(fd, (struct sockaddr *)bound, &size) != 0)
        return err_sys(e, ERR_IO, errno, "listen for other nodes on %s", text);
    return steal_fd(&fd);
}

int secure_listener_open(struct secure_listener **out, uv_loop_t *loop,
                         const struct secure_listen_options *options, struct err *e)
{
    int rc = address_check_private(options->address, e);
    if (rc != 0)
        return rc;
    assert_always(options->protocols != 0 && options->protocols >> SECURE_PROTOCOL_COUNT == 0);
    assert_always(!options->strangers || options->protocols == 1u << SECURE_ENROLL);
    struct secure_listener *l = calloc(1, sizeof *l);
    if (l == NULL)
        return err_set(e, ERR_NO_MEMORY, "listen for other nodes: no memory");
    l->options = *options;
    l->options.address = &l->address;
    if (l->options.handshakes_max == 0)
        l->options.handshakes_max = HANDSHAKES_MAX_DEFAULT;
    l->loop = loop;
    l->refusals = (struct refusals){.subject = "peer", .names = refusal_names};
    l->fd = open_socket(options, &l->address, e);
    rc = l->fd < 0 ? l->fd : 0;
    if (rc == 0) {
        rc = uv_poll_init(loop, &l->poll, l->fd);
        if (rc != 0)
            rc = err_sys(e, ERR_IO, -rc, "listen for other nodes");
    }
    if (rc != 0) {
        memory_close(&l->fd);
        free(l);
        return rc;
    }
    (void)uv_timer_init(loop, &l->timer);
    (void)uv_poll_start(&l->poll, UV_READABLE, accept_cb);
    l->open_things = 2;
    *out = l;
    return 0;
}

const struct sockaddr_storage *secure_listener_address(const struct secure_listener *l)
{
    return &l->address;
}

const struct refusals *secure_listener_refusals(const struct secure_listener *l)
{
    return &l->refusals;
}

static void handle_closed_cb(uv_handle_t *handle)
{
    thing_closed(handle->data);
}

void secure_listener_close(struct secure_listener *l, secure_closed_cb cb)
{
    l->closed = cb;
    l->closing = true;
    while (l->oldest != NULL)
        drop(l, l->oldest);
    l->poll.data = l;
    l->timer.data = l;
    uv_close((uv_handle_t *)&l->timer, handle_closed_cb);
    uv_close((uv_handle_t *)&l->poll, handle_closed_cb);
}
