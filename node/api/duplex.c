/* node/api/duplex.c - a command over an upgraded connection: frames {u8 type, u32 length, bytes} in
 * both directions (docs/openapi.yaml has the types).
 *
 *     socket --frames--> in --payload--> stdin     stdout, stderr --frames--> out --> socket
 *
 * Both directions are bounded: no frame is read while stdin has not taken the one before, nothing is
 * read from the command while `out` is full. A client that closes, or sends what is no frame, ends the
 * command. The end: the command ended -> what its outputs still hold -> frame 6 -> `out` written ->
 * closed. The connection stays libmicrohttpd's, which is told to close it at the end. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/exec_frame.h"
#include "gateway/problem.h"
#include "node/api/internal.h"

#define IN_BYTES_MAX (EXEC_FRAME_HEADER_BYTES + EXEC_FRAME_BYTES_MAX)
#define STDIN_BYTES_MAX (256u * 1024u) /* that the command has not read; signals still pass */
#define LINGER_MS 2000u

struct api_duplex {
    struct api *api;
    struct api_connection *connection;
    struct MHD_UpgradeResponseHandle *upgraded;
    struct api_ask *ask;
    int socket; /* libmicrohttpd's */
    struct api_fd *input, *output, *errors;
    bool tty; /* input and output are one descriptor: `output` */
    struct buffer in;
    struct buffer pending; /* for stdin */
    struct buffer out;
    bool input_ended; /* close stdin when `pending` is empty */
    bool ended, told, gone;
    bool closing; /* all is sent; waiting for the client to close, so that no reset overtakes it */
};

static void duplex_step(struct api_duplex *d);

/* --- frames out --------------------------------------------------------------------------------- */

static json_t *end_json(const struct node_ask *ask)
{
    struct result_end end = api_command_end(ask);
    return json_pack("{s:i, s:o, s:b, s:b, s:f, s:f, s:I, s:s, s:o, s:s}", "exit_code",
                     end.exit_code, "signal",
                     end.signal != 0 ? json_integer(end.signal) : json_null(), "timed_out",
                     end.timed_out, "oom", end.oom, "wall_seconds", (double)end.wall_us / 1e6,
                     "cpu_seconds", (double)end.cpu_us / 1e6, "memory_peak_bytes",
                     (json_int_t)end.memory_peak_bytes, "reason", end_reason_name(ask->end.reason),
                     "detail", api_text_or_null(ask->end.detail), "instance", ask->id.text);
}

/* Its end, or that it is not known how it ended. */
static void tell_end(struct api_duplex *d)
{
    const struct node_ask *ask = &d->ask->ask;
    bool known = api_command_end_known(ask);
    struct buffer text;
    buffer_init(&text, PROBLEM_BODY_BYTES_MAX);
    d->told = true;
    if (known) {
        json_t *json = end_json(ask);
        char *dump = json == NULL ? NULL : json_dumps(json, API_JSON_FLAGS);
        if (dump == NULL || !buffer_append_text(&text, dump))
            d->gone = true;
        free(dump);
        json_decref(json);
    } else if (!problem_body(
                   &text, &(struct problem_report){.problem = PROBLEM_START_FAILED,
                                                   .ran = RAN_MAYBE,
                                                   .detail = ask->end.detail,
                                                   .request_id = ask->request_id,
                                                   .instance = ask->id.text,
                                                   .reason = end_reason_name(ask->end.reason)})) {
        d->gone = true;
    }
    if (!d->gone && !exec_frame_append(&d->out, known ? EXEC_FRAME_EXIT : EXEC_FRAME_PROBLEM,
                                       text.data, text.length))
        d->gone = true;
    buffer_free(&text);
}

/* Reads what the command wrote, as far as `out` has room. */
static void take_output(struct api_duplex *d, struct api_fd **fd, enum exec_frame_type type)
{
    char data[EXEC_FRAME_BYTES_MAX / 2];
    while (*fd != NULL && d->out.length < API_OUTPUT_BYTES_MAX) {
        ssize_t count = read((*fd)->fd, data, sizeof(data));
        if (count > 0) {
            if (!exec_frame_append(&d->out, type, data, (size_t)count))
                d->gone = true;
        } else if (count < 0 && errno == EINTR) {
            continue;
        } else if (count < 0 && errno == EAGAIN && !d->ended) {
            break;
        } else {
            /* A terminal whose other side is closed answers EIO. Its input ends with it. */
            api_fd_close(fd);
        }
    }
}

static void send_out(struct api_duplex *d)
{
    size_t sent = 0;
    while (sent < d->out.length && !d->gone) {
        ssize_t count =
            send(d->socket, d->out.data + sent, d->out.length - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count >= 0)
            sent += (size_t)count;
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            d->gone = true;
    }
    buffer_consume(&d->out, sent);
}

/* --- frames in ---------------------------------------------------------------------------------- */

static void write_input(struct api_duplex *d)
{
    struct api_fd **fd = d->tty ? &d->output : &d->input;
    size_t written = 0;
    while (*fd != NULL && written < d->pending.length) {
        ssize_t count = write((*fd)->fd, d->pending.data + written, d->pending.length - written);
        if (count >= 0) {
            written += (size_t)count;
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            written = d->pending.length;
            if (!d->tty)
                api_fd_close(fd);
        }
    }
    if (*fd == NULL)
        written = d->pending.length;
    buffer_consume(&d->pending, written);
    if (d->input_ended && d->pending.length == 0 && !d->tty)
        api_fd_close(&d->input);
}

/* False: it has no place here. */
static bool take_frame(struct api_duplex *d, const struct exec_frame *f)
{
    /* End of transmission, which a terminal takes as the end of what is typed. */
    static const char end_of_typing[] = {4};
    switch (f->type) {
    case EXEC_FRAME_STDIN:
        return !d->input_ended && buffer_append(&d->pending, f->data, f->size);
    case EXEC_FRAME_STDIN_END:
        if (d->input_ended)
            return false;
        d->input_ended = true;
        return !d->tty || buffer_append(&d->pending, end_of_typing, sizeof(end_of_typing));
    case EXEC_FRAME_RESIZE:
        if (d->tty && f->rows > 0 && f->columns > 0)
            api_ask_about(d->ask, NODE_ASK_RESIZE, 0, f->rows, f->columns);
        return true;
    case EXEC_FRAME_SIGNAL:
        api_ask_about(d->ask, NODE_ASK_SIGNAL, f->signal, 0, 0);
        return true;
    default:
        return false;
    }
}

/* Takes whole frames off `in` while there is room for what they carry. */
static void take_frames(struct api_duplex *d)
{
    while (!d->told && !d->gone && d->pending.length < STDIN_BYTES_MAX) {
        struct exec_frame frame;
        enum exec_frame_read read = exec_frame_read(&frame, d->in.data, d->in.length);
        if (read == EXEC_FRAME_MORE)
            return;
        if (read == EXEC_FRAME_BAD || !take_frame(d, &frame))
            d->gone = true;
        else
            buffer_consume(&d->in, EXEC_FRAME_HEADER_BYTES + frame.size);
    }
}

static void receive(struct api_duplex *d)
{
    char data[16384];
    for (unsigned times = 0; times < 16 && !d->gone; times++) {
        take_frames(d);
        size_t room = IN_BYTES_MAX - d->in.length;
        if (room == 0 || d->gone)
            return;
        ssize_t count =
            recv(d->socket, data, room < sizeof(data) ? room : sizeof(data), MSG_DONTWAIT);
        if (count < 0 && errno == EAGAIN)
            return;
        if (count < 0 && errno == EINTR)
            continue;
        if (count > 0 && d->told)
            continue; /* nobody is there to take it any more */
        if (count <= 0 || !buffer_append(&d->in, data, (size_t)count))
            d->gone = true;
    }
}

/* --- the whole ---------------------------------------------------------------------------------- */

static void duplex_free(struct api_duplex *d)
{
    api_fd_close(&d->input);
    api_fd_close(&d->output);
    api_fd_close(&d->errors);
    if (d->ask != NULL)
        api_ask_leave(d->ask);
    buffer_free(&d->in);
    buffer_free(&d->pending);
    buffer_free(&d->out);
    free(d);
}

/* libmicrohttpd closes the socket after this; our poll must let go of it before. */
static void duplex_close(struct api_duplex *d)
{
    struct api_listener *l = d->connection->listener;
    (void)uv_poll_stop(&d->connection->poll);
    d->connection->duplex = NULL;
    (void)MHD_upgrade_action(d->upgraded, MHD_UPGRADE_ACTION_CLOSE);
    duplex_free(d);
    api_listener_ready(l);
}

static void socket_cb(uv_poll_t *poll, int status, int events)
{
    struct api_connection *c = poll->data;
    struct api_duplex *d = c->duplex;
    if (d == NULL)
        return;
    /* A client that closes leaves, whatever it sent before and was not taken. */
    if (status < 0 || (events & UV_DISCONNECT) != 0)
        d->gone = true;
    else
        receive(d);
    duplex_step(d);
}

/* What to wait for, by what there is room for. */
static void wait_for(struct api_duplex *d)
{
    bool room = d->out.length < API_OUTPUT_BYTES_MAX;
    int terminal = d->tty && d->pending.length > 0 ? UV_WRITABLE : 0;
    if (d->output != NULL)
        api_fd_want(d->output, (room ? UV_READABLE : 0) | terminal);
    if (d->errors != NULL)
        api_fd_want(d->errors, room ? UV_READABLE : 0);
    if (d->input != NULL)
        api_fd_want(d->input, d->pending.length > 0 ? UV_WRITABLE : 0);
    int events = UV_DISCONNECT;
    if (d->told || (d->in.length < IN_BYTES_MAX && d->pending.length < STDIN_BYTES_MAX))
        events |= UV_READABLE;
    if (d->out.length > 0)
        events |= UV_WRITABLE;
    (void)uv_poll_start(&d->connection->poll, events, socket_cb);
}

/* A socket that is closed with unread bytes resets the connection, and the client may lose the last
 * frame: so the client closes first, within LINGER_MS. */
static void linger(struct api_duplex *d)
{
    d->closing = true;
    d->connection->deadline_ms = clock_monotonic_ms() + LINGER_MS;
    (void)shutdown(d->socket, SHUT_WR);
    buffer_consume(&d->in, d->in.length);
}

static void duplex_step(struct api_duplex *d)
{
    take_frames(d);
    write_input(d);
    take_frames(d);
    take_output(d, &d->output, EXEC_FRAME_STDOUT);
    take_output(d, &d->errors, EXEC_FRAME_STDERR);
    if (d->ended && !d->told && d->output == NULL && d->errors == NULL)
        tell_end(d);
    send_out(d);
    if (d->told && d->out.length == 0 && !d->closing)
        linger(d);
    if (d->gone)
        duplex_close(d);
    else
        wait_for(d);
}

void api_duplex_gone(struct api_duplex *d)
{
    d->gone = true;
    duplex_step(d);
}

static void fd_ready(struct api_fd *f, int events)
{
    (void)events;
    duplex_step(f->owner);
}

static void duplex_ended(struct api_ask *a)
{
    struct api_duplex *d = a->duplex;
    d->ended = true;
    api_fd_close(&d->input);
    duplex_step(d);
}

/* --- beginning ---------------------------------------------------------------------------------- */

/* A command may have ended before its connection was upgraded. */
static void ended_early(struct api_ask *a)
{
    (void)a;
}

static struct api_fd *take_descriptor(struct api_duplex *d, size_t index)
{
    int fd = steal_fd(&d->ask->ask.descriptors[index]);
    return fd < 0 ? NULL : api_fd_open(d->api, fd, d, fd_ready);
}

static void upgraded_cb(void *user, struct MHD_Connection *mhd, void *request, const char *extra,
                        size_t extra_size, MHD_socket socket, struct MHD_UpgradeResponseHandle *u)
{
    struct api_request *r = request;
    struct api_duplex *d = calloc(1, sizeof(*d));
    (void)user;
    (void)mhd;
    if (d == NULL || r->ask == NULL) {
        free(d);
        (void)MHD_upgrade_action(u, MHD_UPGRADE_ACTION_CLOSE);
        return; /* the ask is canceled when the request is completed */
    }
    d->api = r->api;
    d->connection = r->connection;
    d->connection->duplex = d;
    d->connection->request = NULL;
    d->connection->deadline_ms = 0;
    d->upgraded = u;
    d->socket = socket;
    d->ask = r->ask;
    d->ask->duplex = d;
    d->ask->request = NULL;
    d->ask->ended = duplex_ended;
    r->ask = NULL;
    buffer_init(&d->in, IN_BYTES_MAX);
    buffer_init(&d->pending, STDIN_BYTES_MAX + EXEC_FRAME_BYTES_MAX);
    buffer_init(&d->out, API_OUTPUT_BYTES_MAX + 2 * EXEC_FRAME_BYTES_MAX);
    d->tty = d->ask->ask.tty;
    if (!d->connection->listener->local)
        api_connection_prompt(socket);
    d->ended = !d->ask->in_flight;
    if (d->tty) {
        d->output = take_descriptor(d, 0);
    } else {
        d->input = take_descriptor(d, 0);
        d->output = take_descriptor(d, 1);
        d->errors = take_descriptor(d, 2);
    }
    if (!buffer_append(&d->in, extra, extra_size))
        d->gone = true;
    duplex_step(d);
}

void api_duplex_begin(struct api_ask *a)
{
    struct api_request *r = a->request;
    if (api_ask_refused(r, a))
        return;
    a->ended = ended_early;
    api_answer_upgrade(r, upgraded_cb);
    if (r->response == NULL)
        return;
    api_header_add(r, "Upgrade", "skerry-exec/1");
    api_header_add(r, "Skerry-Instance", a->ask.id.text);
}
