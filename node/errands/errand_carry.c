/* Errands: their lives, and bytes both ways.
 *
 *     entry:  pipe of stdin -> STDIN ->|stream|-> pending -> the command's stdin
 *             pipe of stdout <- pending <-|stream|<- STDOUT <- the command's stdout
 *
 * Every buffer has a bound, and what is full stops what fills it: nothing is read from a pipe while
 * `sending` holds SENDING_BYTES_MAX, no frame is taken at the entry while an output waits for its pipe,
 * and of stdin no more is under way than its window. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/errands/errands_internal.h"

#define SENDING_BYTES_MAX (128u * 1024u)
#define RECEIVED_BYTES_MAX (2u * (ERRAND_HEADER_BYTES + ERRAND_DATA_BYTES_MAX))
#define ROUNDS_PER_TURN 16u

/* --- life ------------------------------------------------------------------------------------------- */

struct errand *errand_new(struct errands *all, bool entry, node_id peer)
{
    struct errand *e = calloc(1, sizeof *e);
    if (e == NULL)
        return NULL;
    e->all = all;
    e->entry = entry;
    e->peer = peer;
    e->holds = 1; /* control's at the entry; at the owner our own, until it is shut */
    buffer_init(&e->received, ERRAND_HEADER_BYTES + ERRAND_QUESTION_BYTES_MAX + RECEIVED_BYTES_MAX);
    buffer_init(&e->sending, ERRAND_HEADER_BYTES + ERRAND_QUESTION_BYTES_MAX + 1024u * 1024u);
    for (int k = 0; k < ERRAND_PIPES; k++) {
        e->pipes[k].errand = e;
        e->pipes[k].fd = -1;
        e->given[k] = -1;
        buffer_init(&e->pipes[k].pending, ERRAND_WINDOW_BYTES + ERRAND_DATA_BYTES_MAX);
    }
    atomic_fetch_add(&all->count, 1);
    return e;
}

void errand_link(struct errand *e)
{
    e->next = e->all->list;
    if (e->next != NULL)
        e->next->previous = e;
    e->all->list = e;
    e->linked = true;
}

static void errand_free(struct errand *e)
{
    struct errands *all = e->all;
    if (e->linked && e->previous != NULL)
        e->previous->next = e->next;
    else if (e->linked)
        all->list = e->next;
    if (e->next != NULL)
        e->next->previous = e->previous;
    for (int k = 0; k < ERRAND_PIPES; k++) {
        buffer_free(&e->pipes[k].pending);
        memory_close(&e->given[k]);
    }
    buffer_free(&e->received);
    buffer_free(&e->sending);
    errand_question_free(&e->question);
    free(e);
    atomic_fetch_sub(&all->count, 1);
}

void errand_hold_drop(struct errand *e)
{
    assert_always(e->holds > 0);
    if (--e->holds == 0)
        errand_free(e);
}

/* --- pipes -------------------------------------------------------------------------------------------- */

static void pipe_cb(uv_poll_t *poll, int status, int events)
{
    struct errand_pipe *p = poll->data;
    (void)status; /* reading or writing tells what is wrong */
    (void)events;
    errand_pump(p->errand);
}

static void pipe_closed_cb(uv_handle_t *handle)
{
    struct errand_pipe *p = handle->data;
    errand_hold_drop(p->errand);
}

bool errand_pipe_open(struct errand *e, int which, int fd)
{
    struct errand_pipe *p = &e->pipes[which];
    if (fd < 0)
        return true;
    if (uv_poll_init(&e->all->loop, &p->poll, fd) != 0) {
        (void)close(fd);
        return false;
    }
    p->poll.data = p;
    p->fd = fd;
    e->holds++;
    return true;
}

static void pipe_close(struct errand_pipe *p)
{
    if (p->fd < 0)
        return;
    uv_close((uv_handle_t *)&p->poll, pipe_closed_cb);
    memory_close(&p->fd);
}

static void pipe_want(struct errand_pipe *p, int events)
{
    if (p->fd < 0 || p->events == events)
        return;
    p->events = events;
    if (events == 0)
        (void)uv_poll_stop(&p->poll);
    else
        (void)uv_poll_start(&p->poll, events, pipe_cb);
}

/* Which of the pipes are read here: the others are written. */
static bool reads(const struct errand *e, int which)
{
    return e->entry == (which == ERRAND_IN);
}

/* Writes what waits. What nobody reads any more is taken all the same. */
static void give(struct errand *e, int which)
{
    struct errand_pipe *p = &e->pipes[which];
    size_t written = 0;
    if (p->pending.length == 0 || e->phase != ERRAND_OPEN)
        return;
    while (p->fd >= 0 && written < p->pending.length) {
        ssize_t count = write(p->fd, p->pending.data + written, p->pending.length - written);
        if (count >= 0)
            written += (size_t)count;
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            pipe_close(p);
    }
    if (p->fd < 0)
        written = p->pending.length;
    buffer_consume(&p->pending, written);
    if (!e->entry && written > 0 &&
        !errand_number_write(&e->sending, ERRAND_TAKEN, (uint32_t)written))
        errand_broken(e, "out of memory");
}

static size_t take_max(const struct errand *e)
{
    if (e->sending.length >= SENDING_BYTES_MAX)
        return 0;
    size_t room = e->entry ? ERRAND_WINDOW_BYTES - e->untaken : ERRAND_DATA_BYTES_MAX;
    return room < ERRAND_DATA_BYTES_MAX ? room : ERRAND_DATA_BYTES_MAX;
}

static void take_end(struct errand *e, int which)
{
    pipe_close(&e->pipes[which]);
    /* A terminal's input ends with what was typed. */
    if (e->entry && !e->tty && !errand_frame_write(&e->sending, ERRAND_STDIN_END, NULL, 0))
        errand_broken(e, "out of memory");
}

/* Reads what is there, as far as there is room. */
static void take(struct errand *e, int which)
{
    static const enum errand_frame_type types[] = {ERRAND_STDIN, ERRAND_STDOUT, ERRAND_STDERR};
    struct errand_pipe *p = &e->pipes[which];
    char data[ERRAND_DATA_BYTES_MAX];
    size_t max;
    while (e->phase == ERRAND_OPEN && p->fd >= 0 && (max = take_max(e)) > 0) {
        ssize_t count = read(p->fd, data, max);
        if (count > 0) {
            if (!errand_frame_write(&e->sending, types[which], data, (size_t)count))
                errand_broken(e, "out of memory");
            else if (e->entry)
                e->untaken += (uint32_t)count;
        } else if (count < 0 && errno == EINTR) {
            continue;
        } else if (count < 0 && errno == EAGAIN && !e->ended) {
            return;
        } else {
            /* Once the command has ended nothing more comes than is there. */
            take_end(e, which);
        }
    }
}

static void pipes_want(struct errand *e)
{
    for (int k = 0; k < ERRAND_PIPES; k++) {
        struct errand_pipe *p = &e->pipes[k];
        bool waits = reads(e, k) ? take_max(e) > 0 : p->pending.length > 0;
        pipe_want(p, e->phase != ERRAND_OPEN || !waits ? 0
                     : reads(e, k)                     ? UV_READABLE
                                                       : UV_WRITABLE);
    }
}

/* --- the stream --------------------------------------------------------------------------------------- */

static bool usable(const struct errand *e)
{
    return e->phase != ERRAND_CLOSING && e->phase != ERRAND_CONNECTING && e->stream != NULL;
}

static bool flush(struct errand *e)
{
    size_t count = 0;
    if (e->sending.length == 0 || !usable(e))
        return false;
    const struct iovec part = {e->sending.data, e->sending.length};
    e->sent = true;
    enum secure_result result = secure_stream_write(e->stream, &part, 1, &count);
    buffer_consume(&e->sending, count);
    if (result == SECURE_BROKEN && e->entry)
        buffer_consume(&e->sending, e->sending.length); /* an end may have come: `receive` tells */
    else if (result == SECURE_BROKEN)
        errand_broken(e, secure_stream_error(e->stream)->msg);
    return count > 0;
}

/* Nothing more comes. What came is still told at the entry: the command's end may be in it, behind output
 * that waits for its reader. The owner's command has nobody left to work for. */
static void stream_over(struct errand *e, const char *why)
{
    e->stream_over = true;
    if (e->entry)
        (void)text_copy(e->why_over, sizeof e->why_over, why);
    else
        errand_broken(e, why);
}

/* A question is longer than what follows. */
static size_t receive_max(const struct errand *e)
{
    bool question = !e->entry && e->phase == ERRAND_ASKED && !e->asked;
    size_t max = question ? e->received.length_max : RECEIVED_BYTES_MAX;
    return e->received.length < max ? max - e->received.length : 0;
}

static bool receive(struct errand *e)
{
    char data[16384];
    size_t count = 0, room = receive_max(e);
    if (!usable(e) || room == 0 || e->stream_over)
        return false;
    enum secure_result result =
        secure_stream_read(e->stream, data, room < sizeof data ? room : sizeof data, &count);
    if (result == SECURE_BLOCKED)
        return false;
    if (result == SECURE_END || result == SECURE_BROKEN) {
        stream_over(e,
                    result == SECURE_END ? "it ended early" : secure_stream_error(e->stream)->msg);
        return false;
    }
    if (!buffer_append(&e->received, data, count))
        errand_broken(e, "out of memory");
    return true;
}

static void frames(struct errand *e)
{
    while (usable(e) && e->phase != ERRAND_TOLD) {
        struct errand_frame f;
        if (e->entry &&
            (e->pipes[ERRAND_OUT].pending.length > 0 || e->pipes[ERRAND_ERR].pending.length > 0))
            return;
        enum errand_read read =
            errand_frame_read(&f, e->entry, e->received.data, e->received.length);
        if (read == ERRAND_MORE && e->stream_over)
            errand_broken(e, e->why_over);
        if (read == ERRAND_MORE)
            return;
        if (read == ERRAND_BAD ||
            !(e->entry ? errand_entry_frame(e, &f) : errand_owner_frame(e, &f))) {
            errand_broken(e, "it broke the protocol of errands");
            return;
        }
        if (e->phase == ERRAND_CLOSING)
            return;
        buffer_consume(&e->received, ERRAND_HEADER_BYTES + f.size);
        give(e, e->entry ? ERRAND_OUT : ERRAND_IN);
        give(e, ERRAND_ERR);
    }
}

static void stream_want(struct errand *e)
{
    if (!usable(e))
        return;
    unsigned want = e->sending.length > 0 ? SECURE_WANT_WRITE : 0;
    if (e->stream_over) {
        secure_stream_want(e->stream, 0);
        return;
    }
    secure_stream_want(e->stream, want | (receive_max(e) > 0 ? (unsigned)SECURE_WANT_READ
                                                             : (unsigned)SECURE_WANT_HANGUP));
}

void errand_pump(struct errand *e)
{
    bool moved = true;
    e->holds++;
    for (unsigned round = 0; moved && round < ROUNDS_PER_TURN; round++) {
        moved = flush(e);
        moved = receive(e) || moved;
        for (int k = 0; k < ERRAND_PIPES; k++)
            if (reads(e, k))
                take(e, k);
            else
                give(e, k);
        frames(e);
        if (!e->entry && e->phase == ERRAND_OPEN)
            errand_owner_check(e);
        moved = flush(e) || moved;
    }
    if (e->phase == ERRAND_TOLD && e->sending.length == 0 && usable(e) && !e->stream_ended) {
        e->stream_ended = true;
        (void)secure_stream_end(e->stream);
    }
    if (e->phase != ERRAND_CLOSING) {
        if (e->pipes[ERRAND_IN].pending.length == 0 && e->input_ended && !e->entry)
            pipe_close(&e->pipes[ERRAND_IN]);
        pipes_want(e);
        stream_want(e);
    }
    errand_hold_drop(e);
}

void errand_ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    (void)readable;
    (void)writable;
    errand_pump(secure_stream_user(s));
}

/* --- ends --------------------------------------------------------------------------------------------- */

static void stream_closed_cb(void *user)
{
    errand_hold_drop(user);
}

void errand_shut(struct errand *e)
{
    if (e->phase == ERRAND_CLOSING)
        return;
    e->phase = ERRAND_CLOSING;
    e->holds++;
    for (int k = 0; k < ERRAND_PIPES; k++)
        pipe_close(&e->pipes[k]);
    if (e->stream != NULL) {
        e->holds++;
        secure_stream_close(e->stream, stream_closed_cb);
        e->stream = NULL;
    }
    if (!e->entry)
        errand_hold_drop(e);
    errand_hold_drop(e);
}

void errand_broken(struct errand *e, const char *why)
{
    if (e->phase == ERRAND_CLOSING)
        return;
    if (!e->entry) {
        if (e->phase != ERRAND_TOLD)
            log_debug("errand", "of node %llu: %s", (unsigned long long)e->peer, why);
        e->holds++;
        errand_shut(e);
        errand_owner_cancel(e, END_CLIENT_GONE);
        errand_hold_drop(e);
        return;
    }
    if (e->phase == ERRAND_OPEN) {
        e->end = (struct command_end){.reason = END_NODE_LOST, .exit_code = -1};
        (void)text_format(e->end.detail, sizeof e->end.detail, "its node was lost while it ran: %s",
                          why);
    } else {
        e->answer = (struct errand_answer){.problem = PROBLEM_OWNER_UNREACHABLE,
                                           .ran = e->sent ? RAN_MAYBE : RAN_NO,
                                           .retry_after_s = 1};
        (void)text_format(e->answer.detail, sizeof e->answer.detail,
                          "node %llu, which was to run it, does not answer: %s",
                          (unsigned long long)e->peer, why);
    }
    errand_entry_over(e);
}
