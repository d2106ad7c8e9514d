#include "node/cluster/confirm.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/enroll_io.h"
#include "node/cluster/enroll_wire.h"

enum { CONNECT_MS = 1000, ANSWER_MS = 2000, ANSWER_BYTES_MAX = 512 };

struct confirm {
    struct confirm_options options;
    uint64_t lost_ms; /* since when it is out of touch; 0: it is in touch */
    uint64_t next_ms;

    /* The question that is under way. */
    struct secure_stream *stream;
    node_id asked;
    bool sending, closing;
    uint64_t deadline_ms;
    struct buffer in, out;

    bool told;
    void (*closed)(void *user);
};

static void maybe_closed(struct confirm *c)
{
    if (c->closed == NULL || c->stream != NULL)
        return;
    void (*closed)(void *user) = c->closed;
    void *user = c->options.user;
    free(c);
    closed(user);
}

static void stream_closed_cb(void *user)
{
    struct confirm *c = user;
    c->stream = NULL;
    buffer_free(&c->in);
    buffer_free(&c->out);
    maybe_closed(c);
}

static void question_end(struct confirm *c, const char *words)
{
    if (c->closing)
        return;
    if (words[0] != '\0')
        log_debug("cluster", "node %" PRIu64 ", asked whether this node is one: %s", c->asked,
                  words);
    c->closing = true;
    secure_stream_close(c->stream, stream_closed_cb);
}

static void take_answer(struct confirm *c)
{
    struct enroll_answer answer;
    struct err e = {0};
    int rc = enroll_answer_read(&answer, (uint8_t *)c->in.data + ENROLL_LENGTH_BYTES,
                                c->in.length - ENROLL_LENGTH_BYTES, &e);
    bool removed = rc == 0 && answer.verdict == ENROLL_REMOVED;
    question_end(c, rc == 0 ? answer.words : e.msg);
    known_free(&answer.known);
    membership_wipe(&answer.membership);
    if (!removed || c->told || c->closed != NULL)
        return;
    c->told = true;
    c->options.removed(c->options.user, c->asked);
}

static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct confirm *c = secure_stream_user(s);
    (void)readable;
    (void)writable;
    if (c->closing)
        return;
    if (c->sending) {
        enum enroll_io io = enroll_send(s, &c->out);
        if (io == ENROLL_IO_WAIT) {
            secure_stream_want(s, SECURE_WANT_WRITE);
            return;
        }
        /* A broken one says so when it is read. */
        c->sending = false;
        secure_stream_want(s, SECURE_WANT_READ);
    }
    switch (enroll_receive(s, &c->in, ANSWER_BYTES_MAX)) {
    case ENROLL_IO_DONE:
        take_answer(c);
        break;
    case ENROLL_IO_BROKEN:
        question_end(c, "the connection ended before an answer came");
        break;
    case ENROLL_IO_WAIT:
        break;
    }
}

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct confirm *c = secure_stream_user(s);
    const struct membership *m = c->options.membership;
    struct enroll_request request = {
        .major = ENROLL_PROTOCOL_MAJOR, .wall_ms = clock_wall_ms(), .member = m->id};
    if (error != NULL) {
        question_end(c, error->msg);
        return;
    }
    (void)text_copy(request.cluster_id, sizeof request.cluster_id, m->cluster_id);
    (void)text_copy(request.name, sizeof request.name, c->options.name);
    (void)text_copy(request.version, sizeof request.version, SKERRY_VERSION);
    if (!enroll_request_write(&request, &c->out)) {
        question_end(c, "no memory");
        return;
    }
    c->sending = true;
    ready_cb(s, false, true);
}

static void ask(struct confirm *c, uint64_t now_ms)
{
    struct sockaddr_storage address;
    struct err e = {0};
    if (!c->options.peer(c->options.user, &c->asked, &address))
        return;
    const struct secure_connect_options options = {
        .context = c->options.secure,
        .address = &address,
        .protocol = SECURE_ENROLL,
        .peer = c->asked,
        .timeout_ms = CONNECT_MS,
        .events = {.opened = opened_cb, .ready = ready_cb},
        .user = c};
    c->closing = c->sending = false;
    c->deadline_ms = now_ms + ANSWER_MS;
    if (secure_stream_connect(&c->stream, c->options.loop, &options, &e) != 0) {
        log_debug("cluster", "ask node %" PRIu64 " whether this node is one: %s", c->asked, e.msg);
        return;
    }
    buffer_init(&c->in, ENROLL_LENGTH_BYTES + ANSWER_BYTES_MAX);
    buffer_init(&c->out, ENROLL_LENGTH_BYTES + ENROLL_REQUEST_BYTES_MAX);
}

void confirm_tick(struct confirm *c, uint64_t now_ms, bool in_touch)
{
    if (c->stream != NULL && now_ms >= c->deadline_ms)
        question_end(c, "it did not answer in time");
    if (in_touch || c->told) {
        c->lost_ms = 0;
        return;
    }
    if (c->lost_ms == 0) {
        c->lost_ms = now_ms;
        c->next_ms = now_ms + CONFIRM_AFTER_MS;
    }
    if (c->stream != NULL || now_ms < c->next_ms)
        return;
    c->next_ms = now_ms + CONFIRM_EVERY_MS;
    ask(c, now_ms);
}

int confirm_open(struct confirm **out, const struct confirm_options *options, struct err *e)
{
    struct confirm *c = calloc(1, sizeof *c);
    if (c == NULL)
        return err_set(e, ERR_NO_MEMORY, "start the node: no memory");
    c->options = *options;
    *out = c;
    return 0;
}

void confirm_close(struct confirm *c, void (*cb)(void *user))
{
    c->closed = cb;
    if (c->stream != NULL)
        question_end(c, "");
    else
        maybe_closed(c);
}
