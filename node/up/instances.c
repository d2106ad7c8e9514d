/* Ending what a runner holds, without a node: the last act of `skerry down`. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/words.h"
#include "node/up/node.h"
#include "sandbox/runner.pb-c.h"
#include "sandbox/shared/wire.h"

/* Protocol 1; pauses between looks; what a process gets between SIGTERM and SIGKILL. */
enum { PROTOCOL = 1, LOOK_MS = 50, GRACE_MS = 2000, ANSWER_MS = 10000 };
#define MESSAGE_BYTES_MAX (256u * 1024)

struct talk {
    int fd;
    uint64_t seq;
    uint8_t *bytes;
};

static int open_talk(struct talk *t, const struct up_node *n, struct err *e)
{
    const char *path = n->runner_socket;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!text_copy(address.sun_path, sizeof address.sun_path, path))
        return err_set(e, ERR_INVALID, "%s is too long for a socket", path);
    t->bytes = malloc(MESSAGE_BYTES_MAX);
    t->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (t->bytes == NULL || t->fd < 0)
        return err_sys(e, ERR_IO, errno, "talk to the runner");
    uint64_t end = clock_monotonic_ms() + ANSWER_MS;
    while (connect(t->fd, (const struct sockaddr *)&address, sizeof address) < 0) {
        if (clock_monotonic_ms() >= end)
            return err_sys(e, ERR_UNAVAILABLE, errno, "connect to the runner at %s", path);
        (void)poll(NULL, 0, LOOK_MS);
    }
    return 0;
}

static void close_talk(struct talk *t)
{
    memory_close(&t->fd);
    free(t->bytes);
}

/* The reply to `request`; events that come between are not for us. The caller frees. */
static int ask(struct talk *t, Skerry__Runner__Request *request, Skerry__Runner__ToNode **out,
               struct err *e)
{
    request->seq = ++t->seq;
    int rc = wire_send(t->fd, &request->base, NULL, 0, e);
    uint64_t end = clock_monotonic_ms() + ANSWER_MS;
    while (rc == 0) {
        size_t length = 0, descriptors = 0;
        struct pollfd p = {.fd = t->fd, .events = POLLIN};
        uint64_t now = clock_monotonic_ms();
        if (now >= end || poll(&p, 1, (int)(end - now)) <= 0)
            return err_set(e, ERR_TIMEOUT, "the runner does not answer");
        rc = wire_receive(t->fd, t->bytes, MESSAGE_BYTES_MAX, &length, NULL, 0, &descriptors, e);
        if (rc != 0)
            break;
        Skerry__Runner__ToNode *message = skerry__runner__to_node__unpack(NULL, length, t->bytes);
        if (message == NULL)
            return err_set(e, ERR_PROTOCOL, "the runner's answer cannot be read");
        if (message->message_case == SKERRY__RUNNER__TO_NODE__MESSAGE_REPLY &&
            message->reply->seq == t->seq) {
            *out = message;
            return 0;
        }
        skerry__runner__to_node__free_unpacked(message, NULL);
    }
    return rc;
}

static int say(struct talk *t, Skerry__Runner__Request *request, struct err *e)
{
    Skerry__Runner__ToNode *reply = NULL;
    int rc = ask(t, request, &reply, e);
    if (rc == 0)
        skerry__runner__to_node__free_unpacked(reply, NULL);
    return rc;
}

static int stop_one(struct talk *t, char *id, struct err *e)
{
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    Skerry__Runner__Stop stop = SKERRY__RUNNER__STOP__INIT;
    stop.id = id;
    stop.grace_ms = GRACE_MS;
    stop.reason = END_KILLED;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_STOP;
    request.stop = &stop;
    return say(t, &request, e);
}

static int forget_one(struct talk *t, char *id, struct err *e)
{
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    Skerry__Runner__Instance instance = SKERRY__RUNNER__INSTANCE__INIT;
    instance.id = id;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_FORGET;
    request.forget = &instance;
    return say(t, &request, e);
}

/* Stops (once) or forgets each of one page; *live counts those that have not ended. */
static int end_page(struct talk *t, const Skerry__Runner__List *list, bool stop, unsigned *live,
                    struct err *e)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < list->n_held; i++) {
        if (list->held[i]->state == SKERRY__RUNNER__HELD_STATE__HELD_ENDED) {
            rc = forget_one(t, list->held[i]->id, e);
            continue;
        }
        ++*live;
        if (stop)
            rc = stop_one(t, list->held[i]->id, e);
    }
    return rc;
}

static int end_all(struct talk *t, bool stop, unsigned *live, struct err *e)
{
    char after[64] = "";
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    bool more = true;
    int rc = 0;
    *live = 0;
    while (rc == 0 && more) {
        Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
        Skerry__Runner__ToNode *reply = NULL;
        request.verb_case = SKERRY__RUNNER__REQUEST__VERB_LIST;
        request.list = &empty;
        request.list_after = after;
        rc = ask(t, &request, &reply, e);
        if (rc != 0)
            break;
        more = false;
        if (reply->reply->result_case == SKERRY__RUNNER__REPLY__RESULT_LIST) {
            const Skerry__Runner__List *list = reply->reply->list;
            rc = end_page(t, list, stop, live, e);
            more = list->more && text_copy(after, sizeof after, list->next);
        }
        skerry__runner__to_node__free_unpacked(reply, NULL);
    }
    return rc;
}

int up_instances_end(const struct up_node *n, unsigned timeout_ms, unsigned *out, struct err *e)
{
    struct talk t = {.fd = -1};
    Skerry__Runner__Request hello = SKERRY__RUNNER__REQUEST__INIT;
    Skerry__Runner__Hello protocol = SKERRY__RUNNER__HELLO__INIT;
    protocol.protocol = PROTOCOL;
    protocol.node_boot = clock_boot_ms();
    hello.verb_case = SKERRY__RUNNER__REQUEST__VERB_HELLO;
    hello.hello = &protocol;
    unsigned live = 0;
    int rc = open_talk(&t, n, e);
    if (rc == 0)
        rc = say(&t, &hello, e);
    if (rc == 0)
        rc = end_all(&t, true, &live, e);
    *out = live;
    uint64_t end = clock_monotonic_ms() + timeout_ms;
    while (rc == 0 && live > 0) {
        if (clock_monotonic_ms() >= end)
            rc = err_set(e, ERR_TIMEOUT, "%u instances have not ended", live);
        (void)poll(NULL, 0, LOOK_MS);
        if (rc == 0)
            rc = end_all(&t, false, &live, e);
    }
    close_talk(&t);
    return rc;
}
