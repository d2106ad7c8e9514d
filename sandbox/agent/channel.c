/* The one connection to a runner. Happy path: it is there from the start on fd 4; a runner that was
 * restarted connects to the listening socket, fd 3, and the newest connection replaces the older.
 *
 * A runner that does not read fills its socket, then our queue; then it is dropped, and has to come
 * back and ask for the state. Without a runner for Setup.runner_grace_ms the instance ends. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/agent/agent.h"
#include "sandbox/shared/wire.h"

#define RECEIVED_PER_EVENT_MAX 16
#define SMALL_BYTES 4096 /* a page: as much of a message stays in memory */
#define FLUSH_MS 200
/* When Setup does not say. */
#define RUNNER_GRACE_DEFAULT_MS 30000

static void queue_clear(struct channel *channel)
{
    for (size_t i = 0; i < channel->queue_count; i++) {
        free(channel->queue[i].data);
        memory_close(&channel->queue[i].fd);
    }
    channel->queue_count = 0;
    channel->queue_bytes = 0;
}

static void drop(struct agent *a)
{
    queue_clear(&a->channel);
    memory_close(&a->channel.fd);
    a->channel.generation++;
    uint64_t grace = a->setup == NULL ? 0 : a->setup->runner_grace_ms;
    if (grace == 0)
        grace = RUNNER_GRACE_DEFAULT_MS;
    loop_deadline(a, DEADLINE_RUNNER_GRACE, clock_boot_ms() + grace);
}

void channel_open(struct agent *a, int fd)
{
    struct channel *channel = &a->channel;
    queue_clear(channel);
    memory_close(&channel->fd);
    channel->generation++;
    channel->fd = fd;
    loop_deadline(a, DEADLINE_RUNNER_GRACE, 0);
    if (loop_watch(a, fd, EPOLLIN, EVENT_CHANNEL, channel->generation, NULL) != 0)
        drop(a);
}

int channel_listen(struct agent *a, struct err *e)
{
    int flags = fcntl(AGENT_LISTENER_FD, F_GETFL);
    if (flags < 0 || fcntl(AGENT_LISTENER_FD, F_SETFL, flags | O_NONBLOCK) != 0 ||
        listen(AGENT_LISTENER_FD, 4) != 0)
        return err_sys(e, ERR_IO, errno, "listen for runners");
    return loop_watch(a, AGENT_LISTENER_FD, EPOLLIN, EVENT_LISTENER, 0, e);
}

void channel_accept(struct agent *a)
{
    int fd = accept4(AGENT_LISTENER_FD, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0)
        channel_open(a, fd);
}

static int queue_add(struct channel *channel, const Skerry__Agent__FromAgent *message,
                     const int *fd)
{
    size_t length = skerry__agent__from_agent__get_packed_size(message);
    if (channel->queue_count == QUEUE_MESSAGES_MAX ||
        channel->queue_bytes + length > QUEUE_BYTES_MAX)
        return -1;
    struct queued item = {.data = malloc(length), .length = length, .fd = -1};
    if (item.data == NULL)
        return -1;
    item.fd = fd == NULL ? -1 : dup(*fd);
    if (fd != NULL && item.fd < 0) {
        free(item.data);
        return -1;
    }
    (void)skerry__agent__from_agent__pack(message, item.data);
    channel->queue[channel->queue_count++] = item;
    channel->queue_bytes += length;
    return 0;
}

/* What such a runner asked before may lie in the channel still, and is heard: its end is read behind
 * that. So what it cannot be told any more is no reason to drop it. */
static bool gone(const struct err *e)
{
    return e->sys == EPIPE || e->sys == ECONNRESET;
}

void channel_send(struct agent *a, Skerry__Agent__FromAgent *message, const int *fd)
{
    struct channel *channel = &a->channel;
    struct err e = {0};
    if (channel->fd < 0)
        return;
    if (channel->queue_count == 0) {
        if (wire_send(channel->fd, &message->base, fd, fd == NULL ? 0 : 1, &e) == 0 || gone(&e))
            return;
        if (e.sys != EAGAIN) {
            drop(a);
            return;
        }
        loop_rewatch(a, channel->fd, EPOLLIN | EPOLLOUT, EVENT_CHANNEL, channel->generation);
    }
    if (queue_add(channel, message, fd) != 0)
        drop(a);
}

/* Sends what waits, as far as the socket takes it. */
static void queue_send(struct agent *a)
{
    struct channel *channel = &a->channel;
    size_t sent = 0;
    while (sent < channel->queue_count) {
        struct queued *item = &channel->queue[sent];
        struct err e = {0};
        int rc = wire_send_packed(channel->fd, item->data, item->length, &item->fd,
                                  item->fd < 0 ? 0 : 1, &e);
        if (rc != 0 && e.sys == EAGAIN)
            break;
        if (rc != 0 && gone(&e)) {
            queue_clear(channel);
            sent = 0;
            break;
        }
        if (rc != 0) {
            drop(a);
            return;
        }
        channel->queue_bytes -= item->length;
        free(steal_pointer(&item->data));
        memory_close(&item->fd);
        sent++;
    }
    channel->queue_count -= sent;
    for (size_t i = 0; i < channel->queue_count; i++)
        channel->queue[i] = channel->queue[i + sent];
    if (channel->queue_count == 0)
        loop_rewatch(a, channel->fd, EPOLLIN, EVENT_CHANNEL, channel->generation);
}

void channel_flush(struct agent *a)
{
    uint64_t until = clock_boot_ms() + FLUSH_MS;
    while (a->channel.fd >= 0 && a->channel.queue_count > 0) {
        uint64_t now = clock_boot_ms();
        struct pollfd wait = {.fd = a->channel.fd, .events = POLLOUT};
        if (now >= until || poll(&wait, 1, (int)(until - now)) <= 0)
            return;
        queue_send(a);
    }
}

/* Takes one message; false: there is none, or the connection is gone. `*most`: of the longest so far. */
static bool receive(struct agent *a, uint8_t *data, size_t *most)
{
    size_t length;
    int fds[AGENT_DESCRIPTORS_MAX];
    size_t fd_count;
    struct err e = {0};
    if (wire_receive(a->channel.fd, data, AGENT_MESSAGE_BYTES_MAX, &length, fds,
                     AGENT_DESCRIPTORS_MAX, &fd_count, &e) != 0) {
        /* A runner that died with answers of ours unread; told once, and before what it asked last. */
        if (e.sys == ECONNRESET)
            return true;
        if (e.sys != EAGAIN)
            drop(a);
        return false;
    }
    *most = length > *most ? length : *most;
    Skerry__Agent__ToAgent *message = skerry__agent__to_agent__unpack(NULL, length, data);
    uint32_t generation = a->channel.generation;
    if (message == NULL)
        drop(a);
    else
        verb_take(a, &message, fds, fd_count);
    if (message != NULL)
        skerry__agent__to_agent__free_unpacked(message, NULL);
    for (size_t i = 0; i < fd_count; i++)
        memory_close(&fds[i]);
    return a->channel.fd >= 0 && a->channel.generation == generation;
}

void channel_event(struct agent *a, uint32_t generation, uint32_t events)
{
    if (a->channel.fd < 0 || generation != a->channel.generation)
        return;
    if ((events & EPOLLOUT) != 0)
        queue_send(a);
    if (a->channel.fd < 0 || (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) == 0)
        return;
    static _Alignas(SMALL_BYTES) uint8_t data[AGENT_MESSAGE_BYTES_MAX];
    size_t most = 0;
    for (int i = 0; i < RECEIVED_PER_EVENT_MAX && receive(a, data, &most); i++)
        ;
    /* One big Setup would stay in our memory for good. */
    if (most > SMALL_BYTES)
        (void)madvise(data + SMALL_BYTES, sizeof data - SMALL_BYTES, MADV_DONTNEED);
}
