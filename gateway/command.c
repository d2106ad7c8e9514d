#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "gateway/result.h"
#include "gateway/thread.h"

/* The bridge between a client and a command's pipes.
 *
 * The request's body goes to stdin as it comes. What comes back depends on Accept:
 *   anything           stdout; up to HELD_BYTES_MAX it is held back, so that the exit code can stand
 *                      in the head; beyond, it streams and the exit code is a trailer
 *   application/json   one object at the end, output cut at RESULT_BYTES_MAX
 *   text/event-stream  events as output comes, and a last `exit`
 *
 * A command is over when its end was told and both outputs are at their end (or OUTPUT_GRACE_MS
 * later). Its struct lives until then, though the client may be gone before. */

enum {
    HELD_BYTES_MAX = 64 * 1024,
    RESULT_BYTES_MAX = 1024 * 1024, /* of each output */
    EVENT_READ_BYTES = 4096,        /* escaped to JSON it may grow six times */
    OUTPUT_GRACE_MS = 1000,
    KILL_GRACE_MS = 10000, /* from the cancel to its end; beyond, the client need not wait */
};

enum stream { STREAM_IN, STREAM_OUT, STREAM_ERR, STREAM_COUNT };
enum mode { MODE_PLAIN, MODE_JSON, MODE_EVENTS };

struct pipe_end {
    uv_poll_t poll;
    struct command *command;
    int fd; /* -1: closed */
    int mask;
};

struct command {
    struct gateway_thread *thread;
    struct connection *connection; /* NULL: the client is gone, or answered */
    struct gateway_ask *ask;       /* until its end was told */
    struct pipe_end pipes[STREAM_COUNT];
    int handles;
    enum mode mode;
    struct queue input;
    bool input_broken;                /* the command reads no more */
    struct buffer held[STREAM_COUNT]; /* OUT and ERR */
    struct result_carry carry[STREAM_COUNT];
    bool truncated;
    bool canceled, timed_out;
    bool over; /* its end was told: `end` and `reason` are set */
    struct result_end end;
    enum end_reason reason;
    char detail[256];
    char node_name[64];     /* of the one that runs it, if that is another */
    uint64_t wait_until_ms; /* for its end, once canceled, or for its outputs, once over */
};

static void poll_cb(uv_poll_t *poll, int status, int events);
static void check_over(struct command *cmd);

static void free_if_done(struct command *cmd)
{
    struct gateway_thread *t = cmd->thread;
    if (cmd->handles > 0 || cmd->ask != NULL || cmd->connection != NULL)
        return;
    queue_clear(&t->blocks, &cmd->input);
    buffer_free(&cmd->held[STREAM_OUT]);
    buffer_free(&cmd->held[STREAM_ERR]);
    free(cmd);
    t->command_count--;
    thread_check_closed(t);
}

static void pipe_closed_cb(uv_handle_t *handle)
{
    struct command *cmd = handle->data;
    cmd->handles--;
    free_if_done(cmd);
}

static void pipe_close(struct pipe_end *end)
{
    if (end->fd < 0)
        return;
    uv_close((uv_handle_t *)&end->poll, pipe_closed_cb);
    memory_close(&end->fd);
}

static void pipe_set_mask(struct pipe_end *end, int mask)
{
    if (end->fd < 0 || mask == end->mask)
        return;
    end->mask = mask;
    if (mask != 0)
        uv_poll_start(&end->poll, mask, poll_cb);
    else
        uv_poll_stop(&end->poll);
}

static void set_deadline(struct connection *c)
{
    struct command *cmd = c->x.command;
    uint64_t at = cmd->wait_until_ms;
    bool runs = !cmd->canceled && !cmd->over;
    if (runs && c->x.request_until_ms < at)
        at = c->x.request_until_ms;
    if (runs && !c->x.up.done && !c->reading_stopped) {
        uint64_t body = c->x.progress_ms + c->thread->gateway->options.body_timeout_ms;
        at = body < at ? body : at;
    }
    if (runs && c->half_closed_ms != 0 && c->half_closed_ms + HALF_CLOSE_MS < at)
        at = c->half_closed_ms + HALF_CLOSE_MS;
    if (c->x.answered && queue_pending(&c->out) > 0) {
        uint64_t write = c->x.progress_ms + c->thread->gateway->options.body_timeout_ms;
        at = write < at ? write : at;
    }
    connection_set_deadline(c, at);
}

static void cancel(struct command *cmd, enum end_reason reason)
{
    const struct gateway_calls *calls = &cmd->thread->gateway->options.calls;
    if (cmd->canceled || cmd->ask == NULL)
        return;
    cmd->canceled = true;
    cmd->timed_out = reason == END_TIMED_OUT;
    cmd->wait_until_ms = thread_now_ms(cmd->thread) + KILL_GRACE_MS;
    calls->cancel(calls->user, cmd->ask, reason);
}

/* The connection goes its own way; pipes are closed. */
static void detach(struct command *cmd)
{
    if (cmd->connection != NULL) {
        cmd->connection->x.command = NULL;
        cmd->connection->x.node_name = NULL;
    }
    cmd->connection = NULL;
    for (size_t i = 0; i < STREAM_COUNT; i++)
        pipe_close(&cmd->pipes[i]);
    free_if_done(cmd);
}

void command_abandon(struct connection *c, enum end_reason reason)
{
    struct command *cmd = c->x.command;
    if (cmd == NULL)
        return;
    cancel(cmd, reason);
    detach(cmd);
}

/* --- the answer --- */

static bool put(struct connection *c, const char *text)
{
    return queue_append(&c->thread->blocks, &c->out, text, strlen(text));
}

/* One piece of a streamed body. */
static bool put_piece(struct connection *c, const char *data, size_t length)
{
    struct http_fault fault;
    return flow_push(&c->x.down, &c->thread->blocks, &c->out, data, length, &fault) >= 0;
}

static bool head_begin(struct connection *c, const char *type)
{
    char *out;
    if (!put(c, "HTTP/1.1 200 OK\r\nContent-Type: ") || !put(c, type) || !put(c, "\r\n"))
        return false;
    out = queue_reserve(&c->thread->blocks, &c->out, ANSWER_FIELDS_BYTES_MAX);
    if (out == NULL)
        return false;
    queue_commit(&c->out, answer_fields_write(c, out));
    c->x.answered = true;
    c->x.status = 200;
    return true;
}

static bool head_end(struct connection *c)
{
    struct exchange *x = &c->x;
    if (!x->up.done || c->thread->draining)
        x->keep_alive = false;
    if (!x->keep_alive)
        return put(c, "Connection: close\r\n\r\n");
    return put(c, x->minor == 0 ? "Connection: keep-alive\r\n\r\n" : "\r\n");
}

static const char *type_of(const struct buffer *output)
{
    /* A character may be cut at the end of what is held. */
    size_t length = output->length > 4 ? output->length - 4 : 0;
    return result_is_utf8(output->data, output->length) || result_is_utf8(output->data, length)
               ? "text/plain; charset=utf-8"
               : "application/octet-stream";
}

/* The head of an answer whose length is not known yet. */
static bool stream_begin(struct connection *c, const char *type, bool trailers)
{
    struct exchange *x = &c->x;
    bool chunked = x->minor > 0;
    if (!chunked)
        x->keep_alive = false;
    flow_begin(&x->down, HTTP_BODY_UNTIL_CLOSE, 0, chunked);
    return head_begin(c, type) && (!chunked || put(c, "Transfer-Encoding: chunked\r\n")) &&
           (!chunked || !trailers || put(c, "Trailer: Skerry-Exit-Code, Skerry-Signal\r\n")) &&
           (trailers || put(c, "Cache-Control: no-store\r\n")) && head_end(c);
}

static void exit_lines(const struct command *cmd, char out[96])
{
    if (cmd->end.signal > 0)
        text_format(out, 96, "Skerry-Exit-Code: %d\r\nSkerry-Signal: %u\r\n", cmd->end.exit_code,
                    cmd->end.signal);
    else
        text_format(out, 96, "Skerry-Exit-Code: %d\r\n", cmd->end.exit_code);
}

static bool whole_answer(struct connection *c, const char *type, const char *lines,
                         const char *data, size_t length)
{
    char text[64];
    text_format(text, sizeof text, "Content-Length: %zu\r\n", length);
    flow_begin(&c->x.down, HTTP_BODY_LENGTH, length, false);
    return head_begin(c, type) && put(c, lines) && put(c, text) && head_end(c) &&
           (c->x.head_only || queue_append(&c->thread->blocks, &c->out, data, length));
}

/* A plain answer of which nothing was sent yet may still become an error. */
static enum problem problem_of(const struct command *cmd)
{
    if (cmd->timed_out || cmd->end.timed_out || cmd->reason == END_TIMED_OUT)
        return PROBLEM_REQUEST_TIMEOUT;
    if (cmd->end.oom || cmd->reason == END_OOM)
        return PROBLEM_INSTANCE_OOM;
    if (cmd->reason == END_START_FAILED)
        return PROBLEM_START_FAILED;
    if (cmd->reason != END_EXITED && cmd->reason != END_NONE)
        return PROBLEM_INSTANCE_EXITED;
    return PROBLEM_NONE;
}

static bool finish_plain(struct command *cmd, struct connection *c)
{
    struct buffer *output = &cmd->held[STREAM_OUT];
    char lines[96];
    exit_lines(cmd, lines);
    if (c->x.answered) {
        /* Of what was lost with its node nobody knows how much there was. */
        if (problem_of(cmd) == PROBLEM_REQUEST_TIMEOUT || cmd->reason == END_NODE_LOST) {
            c->x.broken = true; /* never a clean end */
            return true;
        }
        c->x.down.done = true;
        return !c->x.down.chunked_out || c->x.head_only ||
               flow_last_chunk(&c->thread->blocks, &c->out, lines, strlen(lines));
    }
    return whole_answer(c, type_of(output), lines, output->data, output->length);
}

static bool finish_json(struct command *cmd, struct connection *c)
{
    struct buffer *output = &cmd->held[STREAM_OUT];
    struct buffer *errors = &cmd->held[STREAM_ERR];
    struct buffer body;
    buffer_init(&body, (size_t)RESULT_BYTES_MAX * 16 + 4096);
    bool ok =
        result_json(&body, &cmd->end, (struct result_bytes){output->data, output->length},
                    (struct result_bytes){errors->data, errors->length}, cmd->truncated) &&
        whole_answer(c, "application/json", "Cache-Control: no-store\r\n", body.data, body.length);
    buffer_free(&body);
    return ok;
}

static bool finish_events(struct command *cmd, struct connection *c)
{
    struct buffer body;
    buffer_init(&body, 4096);
    bool ok = result_event_flush(&body, "stdout", &cmd->carry[STREAM_OUT]) &&
              result_event_flush(&body, "stderr", &cmd->carry[STREAM_ERR]) &&
              result_event_exit(&body, &cmd->end);
    if (!c->x.head_only)
        ok = ok && put_piece(c, body.data, body.length) &&
             flow_source_closed(&c->x.down, &c->thread->blocks, &c->out);
    buffer_free(&body);
    return ok;
}

static void finish_problem(struct connection *c, struct command *cmd, enum problem problem)
{
    char detail[320];
    const char *reason = end_reason_name(cmd->reason);
    text_format(detail, sizeof detail, "the command ended: %s%s%s", reason,
                cmd->detail[0] != '\0' ? ": " : "", cmd->detail);
    if (problem == PROBLEM_REQUEST_TIMEOUT)
        dispatch_late_text(c, detail, sizeof detail);
    if (problem == PROBLEM_INSTANCE_OOM)
        text_copy(detail, sizeof detail,
                  "the command used up its memory; raise deploy.resources.limits.memory");
    detach(cmd);
    c->phase = PHASE_FLUSH;
    if (cmd->node_name[0] != '\0') /* the caller keeps the command until this is written */
        c->x.node_name = cmd->node_name;
    answer_problem(c, &(struct problem_report){
                          .problem = problem, .ran = RAN_YES, .detail = detail, .reason = reason});
}

static void finish(struct command *cmd)
{
    struct connection *c = cmd->connection;
    enum problem problem = problem_of(cmd);
    if (cmd->mode == MODE_PLAIN && !c->x.answered && problem != PROBLEM_NONE) {
        cmd->handles++; /* keeps it until the detail was copied */
        finish_problem(c, cmd, problem);
        cmd->handles--;
        free_if_done(cmd);
        return;
    }
    bool ok = cmd->mode == MODE_JSON     ? finish_json(cmd, c)
              : cmd->mode == MODE_EVENTS ? finish_events(cmd, c)
                                         : finish_plain(cmd, c);
    detach(cmd);
    if (!ok) {
        connection_close(c, true);
        return;
    }
    answer_count(c, c->x.broken ? 0 : 200);
    connection_exchange_done(c);
}

static void check_over(struct command *cmd)
{
    bool outputs_done = cmd->pipes[STREAM_OUT].fd < 0 && cmd->pipes[STREAM_ERR].fd < 0;
    struct connection *c = cmd->connection;
    uint64_t now_ms = thread_now_ms(cmd->thread);
    if (c == NULL)
        return;
    /* What is in a pipe waits as long as its reader, the client, takes what was before it. */
    if (cmd->over && c->x.answered && queue_pending(&c->out) > 0)
        cmd->wait_until_ms = now_ms + OUTPUT_GRACE_MS;
    if (cmd->over && (outputs_done || now_ms >= cmd->wait_until_ms))
        finish(cmd);
    else
        set_deadline(cmd->connection);
}

/* --- output --- */

static bool hold(struct command *cmd, enum stream which, const char *data, size_t length)
{
    struct buffer *held = &cmd->held[which];
    size_t room = held->length_max - held->length;
    if (length > room) {
        cmd->truncated = true;
        length = room;
    }
    return buffer_append(held, data, length);
}

static bool take_plain(struct command *cmd, struct connection *c, const char *data, size_t length)
{
    struct buffer *held = &cmd->held[STREAM_OUT];
    if (!c->x.answered && held->length + length <= HELD_BYTES_MAX)
        return buffer_append(held, data, length);
    bool ok = true;
    if (!c->x.answered) {
        ok = stream_begin(c, type_of(held), true) &&
             (c->x.head_only || put_piece(c, held->data, held->length));
        buffer_free(held);
    }
    return ok && (c->x.head_only || put_piece(c, data, length));
}

static bool take_event(struct command *cmd, struct connection *c, enum stream which,
                       const char *data, size_t length)
{
    struct buffer body;
    buffer_init(&body, (size_t)EVENT_READ_BYTES * 8 + 1024);
    const char *name = which == STREAM_OUT ? "stdout" : "stderr";
    bool ok =
        result_event_output(&body, name, &cmd->carry[which], (struct result_bytes){data, length});
    if (body.length > 0 && !c->x.head_only)
        ok = ok && put_piece(c, body.data, body.length);
    buffer_free(&body);
    return ok;
}

static void output_readable(struct command *cmd, enum stream which)
{
    struct pipe_end *end = &cmd->pipes[which];
    struct connection *c = cmd->connection;
    struct gateway_thread *t = cmd->thread;
    size_t size = cmd->mode == MODE_EVENTS ? EVENT_READ_BYTES : QUEUE_BYTES_MAX / 2;
    if (c->x.answered && queue_room(&c->out) < size) {
        pipe_set_mask(end, 0); /* command_client_writable goes on */
        return;
    }
    ssize_t n = read(end->fd, t->scratch, size);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        pipe_close(end);
        check_over(cmd);
        return;
    }
    bool ok = true;
    if (cmd->mode == MODE_EVENTS)
        ok = take_event(cmd, c, which, t->scratch, (size_t)n);
    else if (cmd->mode == MODE_JSON)
        ok = hold(cmd, which, t->scratch, (size_t)n);
    else if (which == STREAM_OUT)
        ok = take_plain(cmd, c, t->scratch, (size_t)n);
    if (!ok) {
        connection_close(c, true);
        return;
    }
    if (queue_pending(&c->out) > 0)
        connection_flush(c);
    if (c->phase == PHASE_COMMAND)
        set_deadline(c);
}

void command_client_writable(struct connection *c)
{
    struct command *cmd = c->x.command;
    size_t size = cmd->mode == MODE_EVENTS ? EVENT_READ_BYTES : QUEUE_BYTES_MAX / 2;
    if (queue_room(&c->out) < size)
        return;
    pipe_set_mask(&cmd->pipes[STREAM_OUT], UV_READABLE);
    pipe_set_mask(&cmd->pipes[STREAM_ERR], UV_READABLE);
    set_deadline(c);
}

/* --- input --- */

/* The client's bytes to stdin; false if the exchange ended by it. */
static bool send_input(struct connection *c)
{
    struct command *cmd = c->x.command;
    struct pipe_end *end = &cmd->pipes[STREAM_IN];
    struct block_pool *blocks = &c->thread->blocks;
    enum queue_write result = QUEUE_EMPTY;
    do {
        if (!connection_pump_body(c, &cmd->input))
            return false;
        if (end->fd < 0) {
            queue_clear(blocks, &cmd->input); /* it reads no more; the client may still send */
            continue;
        }
        size_t written = 0;
        result = queue_send(blocks, &cmd->input, end->fd, false, &written);
        c->x.sent_any = true;
        if (written > 0)
            c->x.progress_ms = thread_now_ms(c->thread);
        if (result == QUEUE_BROKEN) {
            pipe_close(end);
            queue_clear(blocks, &cmd->input);
            result = QUEUE_EMPTY;
        }
    } while (result == QUEUE_EMPTY && !c->x.up.done && queue_pending(&c->in) > 0);
    if (c->x.up.done && result == QUEUE_EMPTY)
        pipe_close(end);
    pipe_set_mask(end, result == QUEUE_BLOCKED ? UV_WRITABLE : 0);
    connection_stop_reading(c, !c->x.up.done && queue_room(&cmd->input) <= FLOW_FRAME_BYTES_MAX);
    return true;
}

void command_client_readable(struct connection *c)
{
    if (c->x.up.done)
        connection_read_ahead(c);
    else if (send_input(c))
        set_deadline(c);
}

static void poll_cb(uv_poll_t *poll, int status, int events)
{
    struct pipe_end *end = container_of(poll, struct pipe_end, poll);
    struct command *cmd = end->command;
    enum stream which = (enum stream)(end - cmd->pipes);
    (void)events;
    if (status < 0)
        end->mask = 0;
    if (cmd->connection == NULL)
        return;
    if (which == STREAM_IN) {
        if (status < 0)
            pipe_close(end); /* its reader is gone */
        if (send_input(cmd->connection))
            set_deadline(cmd->connection);
        return;
    }
    output_readable(cmd, which);
    if (status < 0 && end->fd >= 0)
        pipe_set_mask(end, UV_READABLE);
}

/* --- beginning and end --- */

static bool pipes_open(struct command *cmd, struct gateway_ask *ask)
{
    bool ok = true;
    for (size_t i = 0; i < STREAM_COUNT; i++) {
        struct pipe_end *end = &cmd->pipes[i];
        end->command = cmd;
        end->fd = steal_fd(&ask->descriptors[i]);
        if (end->fd < 0)
            continue;
        int flags = fcntl(end->fd, F_GETFL);
        if (flags < 0 || fcntl(end->fd, F_SETFL, flags | O_NONBLOCK) != 0 ||
            uv_poll_init(&cmd->thread->loop, &end->poll, end->fd) != 0) {
            memory_close(&end->fd);
            ok = false;
            continue;
        }
        end->poll.data = cmd;
        cmd->handles++;
    }
    return ok;
}

static enum mode mode_of(const struct exchange *x)
{
    return x->accept_events ? MODE_EVENTS : x->accept_json ? MODE_JSON : MODE_PLAIN;
}

static void exchange_start(struct connection *c, struct command *cmd)
{
    struct exchange *x = &c->x;
    struct gateway_ask *ask = cmd->ask;
    x->ask = NULL;
    x->command = cmd;
    x->id = ask->id;
    x->start = ask->start;
    x->timing = ask->timing;
    x->joined_us = clock_monotonic_us();
    x->up.chunked_out = false; /* stdin has no chunks */
    x->progress_ms = thread_now_ms(c->thread);
    if (x->workload.request_ms != DURATION_NONE)
        x->request_until_ms = x->progress_ms + x->workload.request_ms;
    c->phase = PHASE_COMMAND;
}

/* The instance's id names its owner. */
static void name_owner(struct command *cmd)
{
    const struct gateway *g = cmd->thread->gateway;
    const struct gateway_calls *calls = &g->options.calls;
    node_id owner = instance_id_owner(&cmd->ask->id);
    struct gateway_peer peer = {0};
    if (owner == g->options.id || calls->peer == NULL || !calls->peer(calls->user, owner, &peer))
        return;
    (void)text_copy(cmd->node_name, sizeof cmd->node_name, peer.name);
    cmd->connection->x.node_name = cmd->node_name;
}

void command_begin(struct connection *c, struct gateway_ask *ask)
{
    struct gateway_thread *t = ask->thread;
    ask->request = NULL;
    struct command *cmd = c == NULL ? NULL : calloc(1, sizeof *cmd);
    if (cmd == NULL) { /* canceled meanwhile; its end will come */
        for (size_t i = 0; i < ARRAY_SIZE(ask->descriptors); i++)
            memory_close(&ask->descriptors[i]);
        if (c == NULL)
            return;
        ask->request = NULL;
        dispatch_cancel(c, END_CLIENT_GONE);
        answer_problem_simple(c, PROBLEM_INTERNAL, RAN_MAYBE, "out of memory");
        return;
    }
    *cmd = (struct command){.thread = t,
                            .connection = c,
                            .ask = ask,
                            .mode = mode_of(&c->x),
                            .wait_until_ms = UINT64_MAX};
    t->command_count++;
    size_t held_max = cmd->mode == MODE_JSON ? RESULT_BYTES_MAX : HELD_BYTES_MAX;
    buffer_init(&cmd->held[STREAM_OUT], held_max);
    buffer_init(&cmd->held[STREAM_ERR], held_max);
    ask->request = cmd;
    exchange_start(c, cmd);
    name_owner(cmd);
    bool ok = pipes_open(cmd, ask);
    if (ok && cmd->mode == MODE_EVENTS)
        ok = stream_begin(c, "text/event-stream", false);
    if (ok && c->x.expect_continue && !c->x.up.done && !c->x.answered)
        ok = put(c, "HTTP/1.1 100 Continue\r\n\r\n");
    if (!ok) {
        connection_close(c, true);
        return;
    }
    if (queue_pending(&c->out) > 0)
        connection_flush(c);
    if (c->phase != PHASE_COMMAND)
        return;
    pipe_set_mask(&cmd->pipes[STREAM_OUT], UV_READABLE);
    pipe_set_mask(&cmd->pipes[STREAM_ERR], UV_READABLE);
    if (send_input(c))
        check_over(cmd);
}

void command_ended(struct gateway_ask *ask)
{
    struct command *cmd = ask->request;
    if (cmd == NULL)
        return;
    cmd->ask = NULL;
    cmd->over = true;
    cmd->reason = ask->ended.reason;
    cmd->end = (struct result_end){
        .exit_code = ask->ended.exit_code,
        .signal = ask->ended.signal,
        .timed_out = ask->ended.timed_out || cmd->timed_out,
        .oom = ask->ended.oom,
        .wall_us = ask->ended.wall_us,
        .cpu_us = ask->ended.cpu_us,
        .memory_peak_bytes = ask->ended.memory_peak_bytes,
    };
    if (cmd->end.signal > 0)
        cmd->end.exit_code = 128 + (int)cmd->end.signal;
    text_copy(cmd->detail, sizeof cmd->detail, ask->ended.detail);
    cmd->wait_until_ms = thread_now_ms(cmd->thread) + OUTPUT_GRACE_MS;
    if (cmd->connection == NULL)
        free_if_done(cmd);
    else
        check_over(cmd);
}

void command_deadline(struct connection *c)
{
    struct command *cmd = c->x.command;
    struct exchange *x = &c->x;
    uint64_t now_ms = thread_now_ms(c->thread);
    uint64_t body_ms = x->progress_ms + c->thread->gateway->options.body_timeout_ms;
    if (x->answered && queue_pending(&c->out) > 0 && now_ms >= body_ms) {
        connection_close(c, true);
        return;
    }
    if (cmd->over) {
        check_over(cmd);
        return;
    }
    if (cmd->canceled && now_ms >= cmd->wait_until_ms) {
        command_abandon(c, END_TIMED_OUT);
        c->phase = PHASE_FLUSH;
        char detail[200];
        dispatch_late_text(c, detail, sizeof detail);
        answer_problem_simple(c, PROBLEM_REQUEST_TIMEOUT, RAN_YES, detail);
        return;
    }
    if (!cmd->canceled && now_ms >= x->request_until_ms)
        cancel(cmd, END_TIMED_OUT);
    else if (!cmd->canceled && c->half_closed_ms != 0 &&
             now_ms >= c->half_closed_ms + HALF_CLOSE_MS) {
        connection_close(c, true);
        return;
    } else if (!cmd->canceled && !x->up.done && !c->reading_stopped && now_ms >= body_ms) {
        command_abandon(c, END_CLIENT_GONE);
        c->phase = PHASE_FLUSH;
        answer_problem_simple(c, PROBLEM_BODY_TIMEOUT, RAN_MAYBE, "the body stopped coming");
        return;
    }
    set_deadline(c);
}
