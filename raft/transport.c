/* The way of a link:
 *
 *     connect  -> OPENING -(opened, hello written)-> RELAYING -> CLOSING -> gone
 *     accepted -> HELLO ---(hello read, believed)--> RELAYING -> CLOSING -> gone
 *
 * Any failure leads to CLOSING. Whoever waits for a connect is told on the way there. */
#include "raft/transport.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/secure_relay.h"

/* The hello: "SKRF", the version of what follows, and the generation; numbers big-endian. */
#define HELLO_BYTES 16u
#define HELLO_VERSION 1u
#define SAY_EVERY_MS 10000u
static const uint8_t hello_magic[4] = {'S', 'K', 'R', 'F'};

enum link_state { LINK_OPENING, LINK_HELLO, LINK_RELAYING, LINK_CLOSING };

struct link {
    struct transport *transport;
    struct link *next, *previous;
    enum link_state state;
    node_id peer;
    bool incoming;
    struct raft_uv_connect *request; /* raft_uv waits for its end */
    raft_uv_connect_cb connected;
    struct secure_stream *stream; /* until a relay has it */
    struct secure_relay *relay;
    uint8_t hello[HELLO_BYTES];
    size_t hello_length;
};

struct transport {
    struct transport_options options;
    uv_loop_t *loop;
    struct raft_uv_transport uv;
    raft_uv_accept_cb accept; /* NULL: raft_uv does not listen */
    struct link *links;
    size_t count;
    uint64_t said_ms; /* when a refusal was last logged */
    bool closing;
    raft_uv_transport_close_cb closed;
};

/* --- links -------------------------------------------------------------------------------------------- */

static struct link *link_new(struct transport *t, node_id peer, enum link_state state)
{
    if (t->count >= TRANSPORT_LINKS_MAX)
        return NULL;
    struct link *l = calloc(1, sizeof *l);
    if (l == NULL)
        return NULL;
    l->transport = t;
    l->peer = peer;
    l->state = state;
    l->incoming = state == LINK_HELLO;
    l->next = t->links;
    if (l->next != NULL)
        l->next->previous = l;
    t->links = l;
    t->count++;
    return l;
}

static void link_gone_cb(void *user)
{
    struct link *l = user;
    struct transport *t = l->transport;
    if (l->previous != NULL)
        l->previous->next = l->next;
    else
        t->links = l->next;
    if (l->next != NULL)
        l->next->previous = l->previous;
    t->count--;
    free(l);
    if (t->closing && t->links == NULL)
        t->closed(&t->uv);
}

/* Ends raft_uv's waiting for this link, if it does wait. */
static void connect_answer(struct link *l, struct uv_stream_s *stream, int status)
{
    struct raft_uv_connect *request = l->request;
    l->request = NULL;
    if (request != NULL)
        l->connected(request, stream, status);
}

static void link_close(struct link *l, int status)
{
    if (l->state == LINK_CLOSING)
        return;
    l->state = LINK_CLOSING;
    connect_answer(l, NULL, status);
    if (l->relay != NULL)
        secure_relay_close(l->relay, link_gone_cb);
    else
        secure_stream_close(l->stream, link_gone_cb);
}

static struct link *incoming_of(struct transport *t, node_id peer, enum link_state state,
                                const struct link *but)
{
    for (struct link *l = t->links; l != NULL; l = l->next)
        if (l != but && l->incoming && l->peer == peer && l->state == state)
            return l;
    return NULL;
}

static void relay_ended_cb(void *user, const struct err *why)
{
    struct link *l = user;
    if (why != NULL && !l->incoming)
        log_info("raft", "the stream to node %llu ended: %s", (unsigned long long)l->peer,
                 why->msg);
    struct transport *t = l->transport;
    node_id peer = l->peer;
    bool last = l->incoming && l->state == LINK_RELAYING && !t->closing &&
                incoming_of(t, peer, LINK_RELAYING, l) == NULL;
    link_close(l, RAFT_NOCONNECTION);
    if (last && t->options.lost != NULL)
        t->options.lost(t->options.user, peer);
}

/* A descriptor as what raft_uv takes: memory of raft_malloc, which raft_uv frees. Takes fd. */
static struct uv_stream_s *pipe_new(struct transport *t, int fd)
{
    uv_pipe_t *pipe = raft_malloc(sizeof *pipe);
    if (pipe == NULL) {
        close(fd);
        return NULL;
    }
    int rc = uv_pipe_init(t->loop, pipe, 0);
    assert_always(rc == 0);
    if (uv_pipe_open(pipe, fd) == 0)
        return (struct uv_stream_s *)pipe;
    close(fd);
    uv_close((uv_handle_t *)pipe, (uv_close_cb)raft_free);
    return NULL;
}

/* From a stream that has said or heard its hello to one for raft_uv; NULL: the link closes. */
static struct uv_stream_s *link_relay(struct link *l)
{
    struct transport *t = l->transport;
    const struct secure_relay_options options = {.ended = relay_ended_cb, .user = l};
    struct secure_stream *s = steal_pointer(&l->stream);
    struct err e;
    int fd = -1;
    if (secure_relay_open(&l->relay, t->loop, s, &options, &fd, &e) < 0) {
        log_warn("raft", "the stream of node %llu: %s", (unsigned long long)l->peer, e.msg);
        l->state = LINK_CLOSING;
        connect_answer(l, NULL, RAFT_NOCONNECTION);
        link_gone_cb(l);
        return NULL;
    }
    l->state = LINK_RELAYING;
    struct uv_stream_s *pipe = pipe_new(t, fd);
    if (pipe == NULL)
        link_close(l, RAFT_NOMEM);
    return pipe;
}

/* --- out ---------------------------------------------------------------------------------------------- */

static bool hello_write(struct link *l)
{
    struct transport *t = l->transport;
    uint8_t hello[HELLO_BYTES];
    memcpy(hello, hello_magic, sizeof hello_magic);
    bytes_put(hello + 4, 4, HELLO_VERSION);
    bytes_put(hello + 8, 8, t->options.generation(t->options.user));
    const struct iovec part = {hello, sizeof hello};
    size_t count = 0;
    return secure_stream_write(l->stream, &part, 1, &count) == SECURE_DONE && count == sizeof hello;
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct link *l = secure_stream_user(s);
    if (l->state == LINK_CLOSING)
        return;
    if (error != NULL || !hello_write(l)) {
        link_close(l, RAFT_NOCONNECTION);
        return;
    }
    struct uv_stream_s *pipe = link_relay(l);
    if (pipe != NULL)
        connect_answer(l, pipe, 0);
}

static int uv_connect(struct raft_uv_transport *uv, struct raft_uv_connect *request, raft_id id,
                      const char *address, raft_uv_connect_cb cb)
{
    struct transport *t = uv->impl;
    struct sockaddr_storage where;
    (void)address;
    if (t->closing || t->options.secure == NULL || !t->options.address(t->options.user, id, &where))
        return RAFT_NOCONNECTION;
    struct link *l = link_new(t, id, LINK_OPENING);
    if (l == NULL)
        return RAFT_NOMEM;
    l->request = request;
    l->connected = cb;
    const struct secure_connect_options options = {.context = t->options.secure,
                                                   .address = &where,
                                                   .protocol = SECURE_RAFT,
                                                   .peer = id,
                                                   .events = {.opened = opened_cb},
                                                   .user = l};
    struct err e;
    if (secure_stream_connect(&l->stream, t->loop, &options, &e) == 0)
        return 0;
    l->request = NULL;
    link_gone_cb(l);
    return RAFT_NOCONNECTION;
}

/* --- in ----------------------------------------------------------------------------------------------- */

/* The link of that node in that state, other than `but`. */
/* Whoever was left behind asks again and again. */
static bool to_be_said(struct transport *t)
{
    uint64_t now_ms = clock_monotonic_ms();
    if (t->said_ms != 0 && now_ms - t->said_ms < SAY_EVERY_MS)
        return false;
    t->said_ms = now_ms;
    return true;
}

static bool hello_believed(struct link *l)
{
    struct transport *t = l->transport;
    if (memcmp(l->hello, hello_magic, sizeof hello_magic) != 0 ||
        bytes_get(l->hello + 4, 4) != HELLO_VERSION) {
        if (to_be_said(t))
            log_warn("raft",
                     "node %llu greets in a way that this build does not know: upgrade all nodes",
                     (unsigned long long)l->peer);
        return false;
    }
    uint64_t theirs = bytes_get(l->hello + 8, 8);
    uint64_t ours = t->options.generation(t->options.user);
    if (theirs == ours || theirs == 0 || ours == 0)
        return true;
    if (to_be_said(t))
        log_warn("raft",
                 "node %llu is of generation %llu of the cluster, this node of %llu: one was left "
                 "behind by `operator raft recover`; wipe its data and let it join anew",
                 (unsigned long long)l->peer, (unsigned long long)theirs, (unsigned long long)ours);
    return false;
}

static void hello_heard(struct link *l)
{
    struct transport *t = l->transport;
    if (t->accept == NULL || !hello_believed(l)) {
        link_close(l, RAFT_NOCONNECTION);
        return;
    }
    struct link *older = incoming_of(t, l->peer, LINK_RELAYING, l);
    if (older != NULL)
        link_close(older, RAFT_NOCONNECTION);
    struct uv_stream_s *pipe = link_relay(l);
    if (pipe == NULL)
        return;
    char address[24];
    text_format(address, sizeof address, "%llu", (unsigned long long)l->peer);
    t->accept(&t->uv, l->peer, address, pipe);
}

static void hello_ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct link *l = secure_stream_user(s);
    (void)writable;
    if (l->state != LINK_HELLO || !readable)
        return;
    size_t count = 0;
    enum secure_result result =
        secure_stream_read(s, l->hello + l->hello_length, HELLO_BYTES - l->hello_length, &count);
    if (result == SECURE_DONE) {
        l->hello_length += count;
        if (l->hello_length == HELLO_BYTES)
            hello_heard(l);
    } else if (result != SECURE_BLOCKED) {
        link_close(l, RAFT_NOCONNECTION);
    }
}

void transport_accept(struct transport *t, struct secure_stream *s)
{
    static const struct secure_events events = {.ready = hello_ready_cb};
    node_id peer = secure_stream_peer(s);
    bool usable = !t->closing && t->options.secure != NULL && peer != 0 &&
                  secure_stream_protocol(s) == SECURE_RAFT;
    struct link *l = usable ? link_new(t, peer, LINK_HELLO) : NULL;
    if (l == NULL) {
        secure_stream_close(s, NULL);
        return;
    }
    /* Whoever does not greet holds one link, no more. */
    struct link *older = incoming_of(t, peer, LINK_HELLO, l);
    if (older != NULL)
        link_close(older, RAFT_NOCONNECTION);
    l->stream = s;
    secure_stream_set_events(s, &events, l);
    secure_stream_want(s, SECURE_WANT_READ);
}

/* --- the rest of what raft_uv asks for ------------------------------------------------------------------ */

static int uv_init(struct raft_uv_transport *uv, raft_id id, const char *address)
{
    (void)uv;
    (void)id;
    (void)address;
    return 0;
}

static int uv_listen_start(struct raft_uv_transport *uv, raft_uv_accept_cb cb)
{
    struct transport *t = uv->impl;
    t->accept = cb;
    return 0;
}

static void uv_close_all(struct raft_uv_transport *uv, raft_uv_transport_close_cb cb)
{
    struct transport *t = uv->impl;
    t->closing = true;
    t->accept = NULL;
    t->closed = cb;
    if (t->links == NULL) {
        cb(uv);
        return;
    }
    for (struct link *l = t->links; l != NULL; l = l->next)
        link_close(l, RAFT_CANCELED);
}

static bool link_trusted(const struct link *l)
{
    switch (l->state) {
    case LINK_HELLO:
        return secure_stream_trusted(l->stream);
    case LINK_RELAYING:
        return secure_relay_trusted(l->relay);
    case LINK_OPENING: /* asked when the handshake is done */
    case LINK_CLOSING:
        break;
    }
    return true;
}

void transport_review(struct transport *t)
{
    for (struct link *l = t->links; l != NULL; l = l->next) {
        if (link_trusted(l))
            continue;
        log_info("raft", "node %llu was removed: its stream closes", (unsigned long long)l->peer);
        link_close(l, RAFT_NOCONNECTION);
    }
}

size_t transport_links(const struct transport *t)
{
    return t->count;
}

struct raft_uv_transport *transport_uv(struct transport *t)
{
    return &t->uv;
}

int transport_new(struct transport **out, uv_loop_t *loop, const struct transport_options *options,
                  struct err *e)
{
    struct transport *t = calloc(1, sizeof *t);
    if (t == NULL)
        return err_set(e, ERR_NO_MEMORY, "raft's transport: no memory");
    t->options = *options;
    t->loop = loop;
    t->uv = (struct raft_uv_transport){.impl = t,
                                       .init = uv_init,
                                       .listen = uv_listen_start,
                                       .connect = uv_connect,
                                       .close = uv_close_all};
    *out = t;
    return 0;
}

void transport_free(struct transport *t)
{
    if (t == NULL)
        return;
    assert_always(t->links == NULL);
    free(t);
}
