#include "sandbox/runner/server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/dispatch.h"
#include "sandbox/runner/runner.h"
#include "sandbox/shared/wire.h"

/* So that a node that asks without end does not keep events waiting. */
#define REQUESTS_PER_EVENT_MAX 16

struct queued {
    struct queued *next;
    int descriptors[WIRE_DESCRIPTORS_MAX];
    size_t descriptor_count;
    size_t length;
    uint8_t data[];
};

struct server {
    struct runner *runner;
    int listener;
    struct loop_watch listener_watch;
    int node; /* -1: none */
    struct loop_watch node_watch;
    uint64_t connection; /* counts up */
    struct queued *first, **last;
    size_t queue_count, queue_bytes;
    uint8_t received[REQUEST_BYTES_MAX];
};

static void descriptors_close(const int *descriptors, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int fd = descriptors[i];
        memory_close(&fd);
    }
}

static void queue_pop(struct server *s)
{
    struct queued *item = s->first;
    s->first = item->next;
    if (s->first == NULL)
        s->last = &s->first;
    s->queue_count--;
    s->queue_bytes -= item->length;
    descriptors_close(item->descriptors, item->descriptor_count);
    free(item);
}

static void node_drop(struct server *s, const char *why)
{
    if (s->node < 0)
        return;
    log_info("runner", "the node's connection ended: %s", why);
    loop_watch_stop(s->runner->loop, &s->node_watch);
    memory_close(&s->node);
    while (s->first != NULL)
        queue_pop(s);
}

/* --- to the node ------------------------------------------------------------------------------- */

static int queue_send(struct server *s, const struct queued *item, struct err *e)
{
    return wire_send_packed(s->node, item->data, item->length, item->descriptors,
                            item->descriptor_count, e);
}

static void queue_flush(struct server *s)
{
    struct err e;
    while (s->first != NULL) {
        if (queue_send(s, s->first, &e) < 0) {
            if (e.sys != EAGAIN)
                node_drop(s, e.msg);
            return;
        }
        queue_pop(s);
    }
    if (loop_watch_change(s->runner->loop, &s->node_watch, EPOLLIN, &e) < 0)
        node_drop(s, e.msg);
}

static void queue_push(struct server *s, const ProtobufCMessage *message, const int *descriptors,
                       size_t count)
{
    struct err e;
    size_t length = protobuf_c_message_get_packed_size(message);
    struct queued *item = NULL;
    if (s->queue_count < SERVER_QUEUE_MESSAGES_MAX &&
        s->queue_bytes + length <= SERVER_QUEUE_BYTES_MAX)
        item = malloc(sizeof *item + length);
    if (item == NULL) {
        descriptors_close(descriptors, count);
        node_drop(s, "it does not read");
        return;
    }
    item->next = NULL;
    item->length = length;
    item->descriptor_count = count;
    if (count > 0)
        memcpy(item->descriptors, descriptors, count * sizeof *descriptors);
    protobuf_c_message_pack(message, item->data);
    *s->last = item;
    s->last = &item->next;
    s->queue_count++;
    s->queue_bytes += length;
    if (loop_watch_change(s->runner->loop, &s->node_watch, EPOLLIN | EPOLLOUT, &e) < 0)
        node_drop(s, e.msg);
}

/* Takes the descriptors. */
static void node_send(struct server *s, const Skerry__Runner__ToNode *message,
                      const int *descriptors, size_t count)
{
    struct err e = {0};
    int rc = -ERR_UNAVAILABLE;
    if (s->first == NULL) {
        rc = wire_send(s->node, &message->base, descriptors, count, &e);
        if (rc < 0 && e.sys != EAGAIN) {
            descriptors_close(descriptors, count);
            node_drop(s, e.msg);
            return;
        }
    }
    if (rc < 0)
        queue_push(s, &message->base, descriptors, count);
    else
        descriptors_close(descriptors, count);
}

void server_answer(struct server *s, const struct asker *to, const struct err *error,
                   Skerry__Runner__Reply *reply, const int *descriptors, size_t count)
{
    if (s == NULL || s->node < 0 || to->connection != s->connection) {
        descriptors_close(descriptors, count);
        return;
    }
    Skerry__Runner__Reply plain = SKERRY__RUNNER__REPLY__INIT;
    if (reply == NULL)
        reply = &plain;
    reply->seq = to->seq;
    reply->descriptors = (uint32_t)count;
    char text[sizeof error->msg];
    if (error != NULL) {
        reply->error = (uint32_t)error->code;
        text_copy(text, sizeof text, error->msg);
        reply->message = text;
    }
    Skerry__Runner__ToNode message = SKERRY__RUNNER__TO_NODE__INIT;
    message.message_case = SKERRY__RUNNER__TO_NODE__MESSAGE_REPLY;
    message.reply = reply;
    node_send(s, &message, descriptors, count);
}

void server_tell(struct server *s, const Skerry__Runner__Event *event)
{
    if (s == NULL || s->node < 0)
        return;
    Skerry__Runner__ToNode message = SKERRY__RUNNER__TO_NODE__INIT;
    message.message_case = SKERRY__RUNNER__TO_NODE__MESSAGE_EVENT;
    message.event = (Skerry__Runner__Event *)(uintptr_t)event;
    node_send(s, &message, NULL, 0);
}

/* --- from the node ----------------------------------------------------------------------------- */

/* False when there is nothing more to take. */
static bool request_take(struct server *s)
{
    size_t length, descriptor_count;
    struct err e = {0};
    int rc = wire_receive(s->node, s->received, sizeof s->received, &length, NULL, 0,
                          &descriptor_count, &e);
    if (rc < 0) {
        if (e.sys != EAGAIN)
            node_drop(s, e.msg);
        return false;
    }
    Skerry__Runner__Request *request;
    rc = request_parse(&request, s->received, length, &s->runner->bounds, &e);
    if (request == NULL) {
        node_drop(s, e.msg);
        return false;
    }
    const struct asker asker = {.connection = s->connection, .seq = request->seq};
    if (rc < 0)
        server_answer(s, &asker, &e, NULL, NULL, 0);
    else
        dispatch_request(s->runner, &request, &asker);
    if (request != NULL)
        skerry__runner__request__free_unpacked(request, NULL);
    return s->node >= 0 && asker.connection == s->connection;
}

static void node_cb(struct loop_watch *watch, uint32_t events)
{
    struct server *s = container_of(watch, struct server, node_watch);
    if ((events & EPOLLOUT) != 0)
        queue_flush(s);
    if (s->node < 0 || (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) == 0)
        return;
    for (int i = 0; i < REQUESTS_PER_EVENT_MAX && request_take(s); i++)
        ;
}

static bool peer_allowed(const struct server *s, int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return false;
    if (peer.uid == 0 || peer.uid == s->runner->config.node_uid)
        return true;
    log_warn("runner", "refused a connection of uid %u", (unsigned)peer.uid);
    return false;
}

/* A node that was killed may have its successor at the door before its own end is seen. */
static void node_drop_if_gone(struct server *s)
{
    char byte;
    if (s->node >= 0 && recv(s->node, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
        node_drop(s, "closed");
}

static void listener_cb(struct loop_watch *watch, uint32_t events)
{
    (void)events;
    struct server *s = container_of(watch, struct server, listener_watch);
    CLEANUP_FD int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 || !peer_allowed(s, fd))
        return;
    node_drop_if_gone(s);
    if (s->node >= 0) {
        log_warn("runner", "refused a second connection: a node is connected");
        return;
    }
    /* A datagram of the largest size must fit. */
    int bytes = SERVER_QUEUE_BYTES_MAX / 8;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    struct err e;
    if (loop_watch_start(s->runner->loop, &s->node_watch, fd, EPOLLIN, node_cb, &e) < 0) {
        log_error("runner", "%s", e.msg);
        return;
    }
    s->node = steal_fd(&fd);
    s->connection++;
    log_info("runner", "a node connected");
}

/* --- life -------------------------------------------------------------------------------------- */

static int listener_make(struct server *s, struct err *e)
{
    const struct runner_config *c = &s->runner->config;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!text_copy(address.sun_path, sizeof address.sun_path, c->socket))
        return err_set(e, ERR_INVALID, "socket: %s is too long", c->socket);
    s->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->listener < 0)
        return err_sys(e, ERR_IO, errno, "socket");
    /* The lock of the directory says that no other runner of it lives. */
    (void)unlink(c->socket);
    mode_t before = umask(0177);
    int rc = bind(s->listener, (struct sockaddr *)&address, sizeof address);
    umask(before);
    if (rc < 0)
        return err_sys(e, ERR_IO, errno, "bind %s", c->socket);
    if (chown(c->socket, 0, c->node_gid) < 0 || chmod(c->socket, 0660) < 0)
        return err_sys(e, ERR_IO, errno, "set owner of %s", c->socket);
    if (listen(s->listener, 8) < 0)
        return err_sys(e, ERR_IO, errno, "listen on %s", c->socket);
    return 0;
}

int server_open(struct server **out, struct runner *r, struct err *e)
{
    struct server *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NO_MEMORY, "server");
    s->runner = r;
    s->node = s->listener = -1;
    s->node_watch = s->listener_watch = LOOP_WATCH_STOPPED;
    s->last = &s->first;
    int rc = listener_make(s, e);
    if (rc == 0)
        rc = loop_watch_start(r->loop, &s->listener_watch, s->listener, EPOLLIN, listener_cb, e);
    if (rc < 0) {
        server_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void server_close(struct server *s)
{
    if (s == NULL)
        return;
    node_drop(s, "the runner ends");
    loop_watch_stop(s->runner->loop, &s->listener_watch);
    if (s->listener >= 0)
        (void)unlink(s->runner->config.socket);
    memory_close(&s->listener);
    free(s);
}
