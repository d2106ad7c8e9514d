/* node/api/command.c - commands whose stdin is the request's body and whose output is the answer, and
 * files of an instance, which are commands of the agent's own.
 *
 *     body --upload--> stdin   ...the command...   stdout --buffer--> answer
 *                                                  stderr --buffer--> (events, JSON, a refusal)
 *
 * libmicrohttpd answers only behind the body. Until then output waits here, up to
 * OUTPUT_EARLY_BYTES_MAX, and then in the pipe; a command that reads no input before it can write on
 * is refused. The duplex way (node/api/duplex.c) and the gateway have no such bound. Happy path: begun ->
 * body complete -> answer chosen -> both outputs and the command ended -> last bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gateway/result.h"
#include "node/api/internal.h"

#define OUTPUT_EARLY_BYTES_MAX (4u * 1024u * 1024u)
#define RESULT_BYTES_MAX (1024u * 1024u) /* of stdout, and of stderr, in a JSON result */
#define HEADERS_WITHIN_BYTES 65536u      /* exit code as header if it ends within so much output */
#define ERRORS_BYTES_MAX 4096u           /* of what a file command complains */
#define READ_BYTES 65536u

enum mode { MODE_PLAIN, MODE_JSON, MODE_EVENTS, MODE_READ, MODE_WRITE };

struct command {
    struct api_request *r;
    enum mode mode;
    struct api_fd *input, *output, *errors;
    struct buffer in;   /* stdin out of a JSON body */
    struct buffer out;  /* for the client */
    struct buffer kept; /* stderr: MODE_JSON, READ and WRITE */
    struct result_carry carries[2];
    bool streaming, truncated, ended, trailed;
    struct result_end end;
    const char *plain_type;
};

static void command_free(struct api_request *r)
{
    struct command *c = r->state;
    api_fd_close(&c->input);
    api_fd_close(&c->output);
    api_fd_close(&c->errors);
    buffer_free(&c->in);
    buffer_free(&c->out);
    buffer_free(&c->kept);
    free(c);
    r->state = NULL;
}

/* --- how it ended ------------------------------------------------------------------------------- */

struct result_end api_command_end(const struct node_ask *ask)
{
    struct result_end end = {.exit_code = ask->end.exit_code,
                             .signal = ask->end.signal,
                             .timed_out = ask->end.timed_out,
                             .oom = ask->end.oom,
                             .wall_us = ask->end.wall_us,
                             .cpu_us = ask->end.cpu_us,
                             .memory_peak_bytes = ask->end.memory_peak_bytes};
    /* Ended from outside: there is no code of its own. */
    if (end.signal == 0 && end.exit_code <= 0 && (end.timed_out || end.oom))
        end.signal = 9;
    if (end.signal != 0)
        end.exit_code = 128 + (int)end.signal;
    else if (end.exit_code < 0)
        end.exit_code = 125; /* its end is not known: Skerry failed */
    return end;
}

bool api_command_end_known(const struct node_ask *ask)
{
    return ask->end.exit_code >= 0 || ask->end.signal != 0 || ask->end.timed_out || ask->end.oom;
}

/* As headers, or in a footer when the headers have gone. */
static void add_end(struct command *c, bool footer)
{
    struct api_request *r = c->r;
    enum MHD_Result (*add)(struct MHD_Response *, const char *, const char *) =
        footer ? MHD_add_response_footer : MHD_add_response_header;
    char number[16];
    (void)text_format(number, sizeof(number), "%d", c->end.exit_code);
    (void)add(r->response, "Skerry-Exit-Code", number);
    if (c->end.signal != 0) {
        (void)text_format(number, sizeof(number), "%u", c->end.signal);
        (void)add(r->response, "Skerry-Signal", number);
    }
    if (c->end.timed_out)
        (void)add(r->response, "Skerry-Timed-Out", "true");
    if (c->end.oom)
        (void)add(r->response, "Skerry-Oom", "true");
}

/* Nothing more comes. */
static bool command_over(const struct command *c)
{
    return c->ended && c->output == NULL && c->errors == NULL;
}

/* --- the answer --------------------------------------------------------------------------------- */

static void command_pump(struct command *c);

static ssize_t command_read(struct api_request *r, char *out, size_t size)
{
    struct command *c = r->state;
    if (c->out.length == 0 && !command_over(c))
        command_pump(c);
    if (c->out.length > 0) {
        size_t count = c->out.length < size ? c->out.length : size;
        memcpy(out, c->out.data, count);
        buffer_consume(&c->out, count);
        return (ssize_t)count;
    }
    if (!command_over(c))
        return 0;
    if (c->mode == MODE_READ)
        return c->end.exit_code == 0 ? API_READ_END : API_READ_BROKEN;
    if (c->mode == MODE_PLAIN && !c->trailed)
        add_end(c, true);
    c->trailed = true;
    return API_READ_END;
}

static void answer_stream(struct command *c, const char *type)
{
    struct api_request *r = c->r;
    c->streaming = true;
    r->read = command_read;
    api_answer_stream(r, type);
    if (r->response == NULL)
        return;
    if (c->mode != MODE_READ)
        api_header_add(r, "Skerry-Instance", r->ask->ask.id.text);
    if (c->mode == MODE_PLAIN)
        api_header_add(r, "Trailer",
                       "Skerry-Exit-Code, Skerry-Signal, Skerry-Timed-Out, Skerry-Oom");
}

static void answer_whole(struct command *c)
{
    struct api_request *r = c->r;
    api_answer_text(r, MHD_HTTP_OK, c->plain_type, c->out.data == NULL ? "" : c->out.data,
                    c->out.length);
    if (r->response == NULL)
        return;
    api_header_add(r, "Skerry-Instance", r->ask->ask.id.text);
    add_end(c, false);
}

static void answer_json(struct command *c)
{
    struct api_request *r = c->r;
    struct buffer json;
    buffer_init(&json, 16 * RESULT_BYTES_MAX);
    if (result_json(&json, &c->end, (struct result_bytes){c->out.data, c->out.length},
                    (struct result_bytes){c->kept.data, c->kept.length}, c->truncated))
        api_answer_text(r, MHD_HTTP_OK, "application/json", json.data, json.length);
    else
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
    if (r->response != NULL)
        api_header_add(r, "Skerry-Instance", r->ask->ask.id.text);
    buffer_free(&json);
}

/* What a file command wrote to stderr, or else why the agent says it failed. */
static void answer_file_failure(struct command *c)
{
    size_t length = c->kept.length;
    while (length > 0 && (c->kept.data[length - 1] == '\n' || c->kept.data[length - 1] == '\r'))
        length--;
    const char *why = c->r->ask->ask.end.detail;
    bool missing = memmem(c->kept.data, length, "No such file", 12) != NULL ||
                   strstr(why, "No such file") != NULL;
    char text[400];
    if (length > 0)
        (void)text_format(text, sizeof(text), "%.*s", (int)(length > 300 ? 300 : length),
                          c->kept.data);
    else
        (void)text_copy(text, sizeof(text), why[0] != '\0' ? why : "the transfer failed");
    api_problem(c->r, missing ? PROBLEM_NOT_FOUND : PROBLEM_CONFLICT, "%s", text);
}

static void answer_unknown_end(struct command *c)
{
    const struct node_ask *ask = &c->r->ask->ask;
    api_problem_of(c->r, &(struct api_trouble){.problem = PROBLEM_START_FAILED,
                                               .ran = RAN_MAYBE,
                                               .instance = ask->id.text,
                                               .reason = end_reason_name(ask->end.reason),
                                               .detail = ask->end.detail});
}

/* Answers as soon as it is clear how. */
static void command_answer(struct command *c)
{
    struct api_request *r = c->r;
    bool over = command_over(c);
    if (r->response != NULL || !r->body_complete)
        return;
    if (over && !api_command_end_known(&r->ask->ask)) {
        answer_unknown_end(c);
        return;
    }
    switch (c->mode) {
    case MODE_PLAIN:
        if (over && c->out.length <= HEADERS_WITHIN_BYTES)
            answer_whole(c);
        else if (c->out.length > HEADERS_WITHIN_BYTES)
            answer_stream(c, c->plain_type);
        break;
    case MODE_EVENTS:
        answer_stream(c, "text/event-stream");
        break;
    case MODE_JSON:
        if (over)
            answer_json(c);
        break;
    case MODE_READ:
        if (over && c->end.exit_code != 0 && c->out.length == 0)
            answer_file_failure(c);
        else if (over || c->out.length > 0)
            answer_stream(c, c->plain_type);
        break;
    case MODE_WRITE:
        if (over && c->end.exit_code == 0)
            api_answer_empty(r, MHD_HTTP_NO_CONTENT);
        else if (over)
            answer_file_failure(c);
        break;
    }
}

/* --- output ------------------------------------------------------------------------------------- */

static bool keep(struct command *c, struct buffer *b, size_t max, const char *data, size_t size)
{
    size_t room = b->length < max ? max - b->length : 0;
    if (size > room)
        c->truncated = true;
    return buffer_append(b, data, size < room ? size : room);
}

/* False: no memory, or too much before the answer. */
static bool take_output(struct command *c, bool errors, const char *data, size_t size)
{
    struct result_bytes bytes = {data, size};
    switch (c->mode) {
    case MODE_JSON:
        return keep(c, errors ? &c->kept : &c->out, RESULT_BYTES_MAX, data, size);
    case MODE_EVENTS:
        return result_event_output(&c->out, errors ? "stderr" : "stdout", &c->carries[errors],
                                   bytes);
    case MODE_PLAIN:
        return errors || buffer_append(&c->out, data, size);
    case MODE_READ:
        return errors ? keep(c, &c->kept, ERRORS_BYTES_MAX, data, size)
                      : buffer_append(&c->out, data, size);
    case MODE_WRITE:
        return !errors || keep(c, &c->kept, ERRORS_BYTES_MAX, data, size);
    }
    return false;
}

static size_t output_bound(const struct command *c)
{
    if (c->mode == MODE_JSON || c->mode == MODE_WRITE)
        return SIZE_MAX; /* what is kept has its own bound, the rest is dropped */
    return c->r->body_complete ? API_OUTPUT_BYTES_MAX : OUTPUT_EARLY_BYTES_MAX;
}

static void command_fail(struct command *c)
{
    struct api_request *r = c->r;
    api_ask_cancel(r->ask);
    api_fd_close(&c->input);
    api_fd_close(&c->output);
    api_fd_close(&c->errors);
    if (r->response != NULL)
        api_request_gone(r);
    else
        api_problem_of(r, &(struct api_trouble){
                              .problem = PROBLEM_LIMIT_REACHED,
                              .ran = RAN_YES,
                              .instance = r->ask->ask.id.text,
                              .detail = "the command wrote more than 4 MiB before it had read its "
                                        "input; use Upgrade: skerry-exec/1, or a workload"});
}

/* The command takes no more input before we take more output, and we would take none before it had all
 * its input. */
static bool stuck(const struct command *c)
{
    return !c->r->body_complete && c->out.length >= output_bound(c) && c->input != NULL &&
           (c->input->events & UV_WRITABLE) != 0;
}

/* Reads what is there, as far as there is room. Once the command has ended nothing more comes than
 * is there, even if a process that it left behind holds the descriptor open. */
static void drain(struct command *c, struct api_fd **fd, bool errors)
{
    char data[READ_BYTES];
    while (*fd != NULL) {
        if (c->out.length >= output_bound(c)) {
            api_fd_want(*fd, 0);
            if (stuck(c))
                command_fail(c);
            return;
        }
        ssize_t count = read((*fd)->fd, data, sizeof(data));
        if (count > 0) {
            if (!take_output(c, errors, data, (size_t)count)) {
                command_fail(c);
                return;
            }
        } else if (count < 0 && errno == EINTR) {
            continue;
        } else if (count < 0 && errno == EAGAIN && !c->ended) {
            api_fd_want(*fd, UV_READABLE);
            return;
        } else {
            api_fd_close(fd);
        }
    }
}

static void finish_events(struct command *c)
{
    c->trailed = true;
    if (!result_event_flush(&c->out, "stdout", &c->carries[0]) ||
        !result_event_flush(&c->out, "stderr", &c->carries[1]) ||
        !result_event_exit(&c->out, &c->end))
        command_fail(c);
}

static void command_pump(struct command *c)
{
    drain(c, &c->output, false);
    drain(c, &c->errors, true);
    if (command_over(c) && c->mode == MODE_EVENTS && !c->trailed)
        finish_events(c);
    command_answer(c);
}

static void output_ready(struct api_fd *f, int events)
{
    struct command *c = f->owner;
    struct api_request *r = c->r;
    (void)events;
    command_pump(c);
    if (r->response != NULL)
        api_resume(r);
}

static void command_ended(struct api_ask *a)
{
    struct api_request *r = a->request;
    struct command *c = r->state;
    c->ended = true;
    c->end = api_command_end(&a->ask);
    api_fd_close(&c->input);
    command_pump(c);
    /* Also what waits for its stdin to take more. */
    api_resume(r);
}

/* --- input -------------------------------------------------------------------------------------- */

/* Returns what the pipe took; closes it when nobody reads any more. */
static size_t input_write(struct command *c, const char *data, size_t size)
{
    size_t taken = 0;
    while (c->input != NULL && taken < size) {
        ssize_t count = write(c->input->fd, data + taken, size - taken);
        if (count >= 0) {
            taken += (size_t)count;
        } else if (errno == EAGAIN) {
            api_fd_want(c->input, UV_WRITABLE);
            return taken;
        } else if (errno != EINTR) {
            api_fd_close(&c->input);
        }
    }
    return c->input == NULL ? size : taken;
}

static size_t command_upload(struct api_request *r, const char *data, size_t size)
{
    struct command *c = r->state;
    size_t taken = input_write(c, data, size);
    if (stuck(c))
        command_fail(c);
    return taken;
}

static void command_upload_end(struct api_request *r)
{
    struct command *c = r->state;
    api_fd_close(&c->input);
    command_pump(c);
}

static void input_ready(struct api_fd *f, int events)
{
    struct command *c = f->owner;
    (void)events;
    if (!c->r->body_complete) {
        api_resume(c->r);
        return;
    }
    buffer_consume(&c->in, input_write(c, c->in.data, c->in.length));
    if (c->in.length == 0)
        api_fd_close(&c->input);
}

/* --- beginning ---------------------------------------------------------------------------------- */

static struct api_fd *take_descriptor(struct command *c, struct api_ask *a, size_t index,
                                      void (*ready)(struct api_fd *f, int events))
{
    int fd = steal_fd(&a->ask.descriptors[index]);
    return fd < 0 ? NULL : api_fd_open(c->r->api, fd, c, ready);
}

static void command_begun(struct api_ask *a)
{
    struct api_request *r = a->request;
    struct command *c = r->state;
    if (api_ask_refused(r, a))
        return;
    c->input = take_descriptor(c, a, 0, input_ready);
    c->output = take_descriptor(c, a, 1, output_ready);
    c->errors = take_descriptor(c, a, 2, output_ready);
    if (r->body_complete && c->input != NULL)
        input_ready(c->input, 0);
    r->upload = command_upload;
    r->upload_end = command_upload_end;
    command_pump(c);
    api_resume(r);
}

static struct command *command_new(struct api_request *r, enum mode mode)
{
    struct command *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return NULL;
    }
    c->r = r;
    c->mode = mode;
    c->plain_type = "application/octet-stream";
    buffer_init(&c->in, API_BODY_BYTES_MAX);
    /* Events and base64 are longer than what they carry. */
    buffer_init(&c->out, 8 * OUTPUT_EARLY_BYTES_MAX);
    buffer_init(&c->kept, RESULT_BYTES_MAX);
    r->state = c;
    r->state_free = command_free;
    r->watched = true;
    return c;
}

static void command_start(struct api_request *r, enum node_ask_kind kind)
{
    bool failed = false;
    struct api_ask *a = api_ask_new(r, kind);
    if (a == NULL)
        return;
    struct command *c = command_new(r, r->accept == API_ACCEPT_JSON     ? MODE_JSON
                                       : r->accept == API_ACCEPT_EVENTS ? MODE_EVENTS
                                                                        : MODE_PLAIN);
    if (c == NULL || !api_command_spec(r, a, kind == NODE_ASK_RUN, &c->in))
        return;
    if (kind == NODE_ASK_EXEC)
        a->ask.instance = api_ask_text(a, r->parameter, &failed);
    if (failed) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return;
    }
    a->ended = command_ended;
    (void)api_ask_send(a, r->upgrade ? api_duplex_begin : command_begun);
}

static bool instance_is_live(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct registry_root *root = calls->root(calls->user);
    bool live = api_instance_live(r, root) != NULL;
    calls->root_return(calls->user, root);
    return live;
}

void api_exec(struct api_request *r)
{
    if (instance_is_live(r))
        command_start(r, NODE_ASK_EXEC);
}

void api_run(struct api_request *r)
{
    command_start(r, NODE_ASK_RUN);
}

/* --- files -------------------------------------------------------------------------------------- */

static void files_start(struct api_request *r, bool write)
{
    const char *path = api_query(r, "path");
    bool plain = false;
    bool failed = false;
    if (!api_query_flag(r, "plain", &plain) || !instance_is_live(r))
        return;
    if (path == NULL || path[0] != '/' || strlen(path) > 4096) {
        api_problem(r, PROBLEM_BAD_REQUEST, "path: an absolute path of at most 4096 bytes");
        return;
    }
    struct api_ask *a = api_ask_new(r, NODE_ASK_EXEC);
    struct command *c = a == NULL ? NULL : command_new(r, write ? MODE_WRITE : MODE_READ);
    if (c == NULL)
        return;
    c->plain_type = plain ? "application/octet-stream" : "application/x-tar";
    a->ask.instance = api_ask_text(a, r->parameter, &failed);
    a->ask.path = api_ask_text(a, path, &failed);
    a->ask.no_stdin = !write;
    a->ask.file_verb = write ? (plain ? NODE_FILE_WRITE_PLAIN : NODE_FILE_WRITE)
                             : (plain ? NODE_FILE_READ_PLAIN : NODE_FILE_READ);
    a->ended = command_ended;
    if (failed)
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
    else
        (void)api_ask_send(a, command_begun);
}

void api_files_read(struct api_request *r)
{
    files_start(r, false);
}

void api_files_write(struct api_request *r)
{
    files_start(r, true);
}
