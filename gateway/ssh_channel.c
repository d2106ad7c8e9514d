/* gateway/ssh_channel.c - a channel of a session: a shell, a command or sftp, as an exec of the API, or a
 * port of the instance (gateway/ssh_forward.c), as a connection of the API to it.
 *
 *     client --> libssh's window --> frames STDIN --> link          frames STDOUT, STDERR --> `output` -->
 *     client's window --> client
 *
 * Nothing is read from the link while the client has no room, and nothing from the client while the link
 * has none: libssh opens the client's window again only for what was read. Of a port, each direction may end
 * before the other. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/exec_frame.h"
#include "base/memory.h"
#include "gateway/ssh_internal.h"

enum { SKERRY_FAILED = 125 };
#define ROUNDS_MAX 64u /* of one channel: then others have theirs */
#define DRAIN_MS 10000u
/* A client that sends more than its window allows; libssh itself would keep it. */
#define UNREAD_MAX (4u * 1024u * 1024u)

#define SFTP                                                                                       \
    "for s in /usr/lib/openssh/sftp-server /usr/libexec/sftp-server "                              \
    "/usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server; do [ -x $s ] && exec $s; done; "   \
    "echo 'skerry: the image has no sftp-server' >&2; exit 127"

static const struct {
    const char *name;
    unsigned number;
} signals[] = {{"HUP", 1},   {"INT", 2},   {"QUIT", 3},  {"ILL", 4},   {"ABRT", 6},
               {"FPE", 8},   {"KILL", 9},  {"USR1", 10}, {"SEGV", 11}, {"USR2", 12},
               {"PIPE", 13}, {"ALRM", 14}, {"TERM", 15}};

/* --- frames ----------------------------------------------------------------------------------------- */

static void frame_put(struct ssh_run *r, enum exec_frame_type type, const void *data, size_t length)
{
    if (r->link != NULL)
        (void)exec_frame_append(&r->link->out, type, data, length);
}

static void told(struct ssh_run *r, const char *text)
{
    char line[700];
    if (r->port != 0) {
        ssh_forward_told(r->session, text);
        return;
    }
    (void)text_format(line, sizeof line, "skerry: %s\r\n", text);
    (void)ssh_channel_write_stderr(r->channel, line, (uint32_t)strlen(line));
}

static void end_take(struct ssh_run *r, const char *data, size_t length)
{
    json_t *end = json_loadb(data, length, 0, NULL);
    r->ended = true;
    r->signal = (unsigned)json_integer_value(json_object_get(end, "signal"));
    const json_t *code = json_object_get(end, "exit_code");
    r->exit_code = json_is_integer(code) ? (int)json_integer_value(code) : SKERRY_FAILED;
    const char *detail = json_string_value(json_object_get(end, "detail"));
    if (detail != NULL && detail[0] != '\0')
        told(r, detail);
    json_decref(end);
}

/* Takes a frame off the link when the one before is with the client. False: more must come. */
static bool frame_take(struct ssh_run *r)
{
    struct buffer *in = &r->link->in;
    struct exec_frame f;
    if (r->link->phase == SSH_LINK_HEAD || r->link->status != 101)
        return false;
    enum exec_frame_read read = exec_frame_read_answer(&f, in->data, in->length);
    if (read == EXEC_FRAME_BAD)
        r->link->phase = SSH_LINK_OVER;
    if (read != EXEC_FRAME_WHOLE)
        return false;
    if (r->port != 0 && f.type == EXEC_FRAME_STDOUT && f.size == 0) {
        (void)ssh_channel_send_eof(r->channel); /* the client has all that was before it */
    } else if (f.type == EXEC_FRAME_STDOUT || f.type == EXEC_FRAME_STDERR) {
        r->output_errors = f.type == EXEC_FRAME_STDERR;
        (void)buffer_append(&r->output, f.data, f.size);
    } else if (f.type == EXEC_FRAME_EXIT) {
        end_take(r, f.data, f.size);
    } else {
        r->ended = true;
        r->exit_code = SKERRY_FAILED;
        told(r, r->port != 0 ? "the connection to the port broke"
                             : "the command ended without a status");
    }
    buffer_consume(in, EXEC_FRAME_HEADER_BYTES + f.size);
    return !r->ended;
}

/* --- both directions -------------------------------------------------------------------------------- */

/* Writes what the client's window takes, and no more than libssh has sent on. False: the client is slow. */
static bool output_flush(struct ssh_run *r)
{
    while (r->output.length > 0) {
        uint32_t window = ssh_channel_window_size(r->channel);
        uint32_t length = r->output.length < window ? (uint32_t)r->output.length : window;
        bool pending = (ssh_get_poll_flags(r->session->ssh) & SSH_WRITE_PENDING) != 0;
        r->session->blocked |= pending;
        if (length == 0 || pending)
            return false;
        length = length < 32768 ? length : 32768;
        int count = r->output_errors ? ssh_channel_write_stderr(r->channel, r->output.data, length)
                                     : ssh_channel_write(r->channel, r->output.data, length);
        if (count <= 0)
            return false;
        buffer_consume(&r->output, (size_t)count);
        r->session->active_ms = clock_monotonic_ms();
    }
    return true;
}

static void input_frames(struct ssh_run *r, const char *data, size_t length)
{
    while (length > 0) {
        size_t part = length < EXEC_FRAME_BYTES_MAX ? length : EXEC_FRAME_BYTES_MAX;
        frame_put(r, EXEC_FRAME_STDIN, data, part);
        data += part;
        length -= part;
    }
}

/* True if something was taken. */
static bool input_take(struct ssh_run *r)
{
    char *data = r->session->front->input;
    bool taken = false;
    while (r->link->out.length < SSH_LINK_BYTES_MAX / 4 && !r->input_ended) {
        int count = ssh_channel_read_nonblocking(r->channel, data, SSH_INPUT_BYTES_MAX, 0);
        if (count > 0) {
            r->session->active_ms = clock_monotonic_ms();
            taken = true;
            input_frames(r, data, (size_t)count);
        } else if (count == SSH_EOF || ssh_channel_is_eof(r->channel)) {
            r->input_ended = taken = true;
            frame_put(r, EXEC_FRAME_STDIN_END, NULL, 0);
        } else {
            break;
        }
    }
    r->unread = 0;
    return taken;
}

static const char *signal_name(unsigned number)
{
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
        if (signals[i].number == number)
            return signals[i].name;
    return NULL;
}

static void finish(struct ssh_run *r)
{
    const char *name = signal_name(r->signal);
    r->closed = true;
    /* How it ended is for commands. */
    if (r->port == 0 && r->signal != 0 && name != NULL)
        (void)ssh_channel_request_send_exit_signal(r->channel, name, 0, "", "");
    else if (r->port == 0)
        (void)ssh_channel_request_send_exit_status(r->channel, r->exit_code);
    (void)ssh_channel_send_eof(r->channel);
    (void)ssh_channel_close(r->channel);
}

static void fail(struct ssh_run *r, const char *why)
{
    told(r, why);
    r->ended = true;
    r->exit_code = SKERRY_FAILED;
}

/* --- beginning -------------------------------------------------------------------------------------- */

static json_t *variables_of(const struct ssh_run *r)
{
    json_t *all = json_object();
    for (size_t i = 0; i < r->variable_count; i++) {
        const char *value = strchr(r->variables[i], '=') + 1;
        char name[SSH_VARIABLE_MAX + 1];
        (void)text_format(name, sizeof name, "%.*s", (int)(value - 1 - r->variables[i]),
                          r->variables[i]);
        json_object_set_new(all, name, json_string(value));
    }
    return all;
}

static void begin_port(struct ssh_run *r)
{
    char path[128];
    (void)text_format(path, sizeof path, "/v1/instances/%s/connect?port=%u&host=%s",
                      r->session->place->instance, r->port, r->host);
    r->link = ssh_link_open(r->session, path, "", true);
    if (r->link == NULL)
        fail(r, "the node takes no more requests");
}

static void begin(struct ssh_run *r)
{
    char path[96];
    json_t *list =
        json_pack("[s, s, s]", "/bin/sh", "-c", r->command == NULL ? SSH_SHELL : r->command);
    json_t *variables = variables_of(r);
    json_t *spec =
        list == NULL ? NULL : json_pack("{s:o, s:b}", "command", list, "tty", (int)r->tty);
    if (spec != NULL)
        json_object_set(spec, "env", variables);
    if (spec != NULL && r->tty) {
        json_object_set_new(spec, "rows", json_integer(r->rows));
        json_object_set_new(spec, "columns", json_integer(r->columns));
    }
    char *text = spec == NULL ? NULL : json_dumps(spec, JSON_COMPACT);
    (void)text_format(path, sizeof path, "/v1/instances/%s/exec", r->session->place->instance);
    if (text != NULL)
        r->link = ssh_link_open(r->session, path, text, true);
    if (r->link == NULL)
        fail(r, text == NULL ? "the command is no UTF-8 text" : "the node takes no more requests");
    free(text);
    json_decref(variables);
    json_decref(spec);
}

static void move(struct ssh_run *r)
{
    (void)ssh_link_pump(r->link);
    if (r->link->phase != SSH_LINK_HEAD && r->link->status != 101 && !r->ended &&
        r->link->phase == SSH_LINK_OVER) {
        char why[600];
        ssh_link_problem(r->link, why, sizeof why);
        fail(r, why);
        return;
    }
    /* What was read ahead shows itself by no event any more: so on until nothing moves. */
    bool moved = true;
    for (unsigned rounds = 0; moved && !r->ended && rounds < ROUNDS_MAX; rounds++) {
        moved = false;
        while (!r->ended && output_flush(r) && frame_take(r))
            moved = true;
        moved |= !r->ended && input_take(r);
        moved |= ssh_link_pump(r->link);
    }
    r->session->again |= moved && !r->ended;
    (void)output_flush(r);
    if (!r->ended && r->link->phase == SSH_LINK_OVER && r->output.length == 0 &&
        r->link->in.length < EXEC_FRAME_HEADER_BYTES)
        fail(r, "the connection to the instance broke off");
}

/* The client has closed its channel, as OpenSSH's does at once when the code has ended its side before. What
 * it had sent still goes to the port; the client waits meanwhile, for it gets no answer to its close. */
static bool drain(struct ssh_run *r)
{
    uint64_t now_ms = clock_monotonic_ms();
    if (r->port == 0 || r->link == NULL || r->ended)
        return false;
    if (r->drain_until_ms == 0)
        r->drain_until_ms = now_ms + DRAIN_MS;
    (void)input_take(r);
    if (!r->input_ended && r->unread == 0 && r->link->out.length < SSH_LINK_BYTES_MAX / 4)
        return false; /* it broke off */
    r->session->again |= ssh_link_pump(r->link);
    while (r->output.length == 0 && frame_take(r))
        ;
    /* Code that sends to a client that has closed meets a reset, as over TCP. */
    return !r->ended && r->output.length == 0 && r->link->phase != SSH_LINK_OVER &&
           now_ms < r->drain_until_ms;
}

bool ssh_run_pump(struct ssh_run *r)
{
    struct ssh_session *s = r->session;
    if (r->unread > UNREAD_MAX)
        s->cut = true;
    if (ssh_channel_is_closed(r->channel))
        return drain(r);
    if (r->closed)
        return true;
    if (r->wanted && r->link == NULL && !r->ended) {
        if (s->refusal[0] != '\0')
            fail(r, s->refusal);
        else if (r->too_long)
            fail(r, SSH_COMMAND_TOO_LONG);
        else if (s->joined && r->port != 0)
            begin_port(r);
        else if (s->joined)
            begin(r);
    }
    if (r->link != NULL && !r->ended)
        move(r);
    if (r->ended && output_flush(r))
        finish(r);
    return true;
}

/* --- what the client asks of the channel ------------------------------------------------------------ */

static int data_cb(ssh_session ssh, ssh_channel channel, void *data, uint32_t length, int is_stderr,
                   void *user)
{
    struct ssh_run *r = user;
    (void)ssh;
    (void)channel;
    (void)data;
    (void)is_stderr;
    r->unread = length; /* read when the link has room */
    r->session->stirred = true;
    return 0;
}

/* Of the end of what it sends, and of the channel. */
static void end_cb(ssh_session ssh, ssh_channel channel, void *user)
{
    struct ssh_run *r = user;
    (void)ssh;
    (void)channel;
    r->session->stirred = true;
}

static int window_cb(ssh_session ssh, ssh_channel channel, uint32_t bytes, void *user)
{
    struct ssh_run *r = user;
    (void)ssh;
    (void)channel;
    (void)bytes;
    r->session->stirred = true;
    return 0;
}

/* False: there are too many, or it is no variable. */
static bool variable_add(struct ssh_run *r, const char *name, const char *value)
{
    if (r->variable_count == SSH_VARIABLES_MAX || value == NULL ||
        strlen(name) + strlen(value) > SSH_VARIABLE_MAX ||
        strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") != strlen(name))
        return false;
    char *text = text_new("%s=%s", name, value);
    if (text != NULL)
        r->variables[r->variable_count++] = text;
    return text != NULL;
}

static int pty_cb(ssh_session ssh, ssh_channel channel, const char *term, int width, int height,
                  int pixel_width, int pixel_height, void *user)
{
    struct ssh_run *r = user;
    (void)ssh;
    (void)channel;
    (void)pixel_width;
    (void)pixel_height;
    if (r->wanted || r->tty)
        return -1;
    r->tty = true;
    r->rows = height > 0 && height <= 10000 ? (unsigned)height : 24;
    r->columns = width > 0 && width <= 10000 ? (unsigned)width : 80;
    (void)variable_add(r, "TERM", term);
    return 0;
}

static int resize_cb(ssh_session ssh, ssh_channel channel, int width, int height, int pixel_width,
                     int pixel_height, void *user)
{
    struct ssh_run *r = user;
    (void)ssh;
    (void)channel;
    (void)pixel_width;
    (void)pixel_height;
    if (!r->tty || width <= 0 || height <= 0 || width > 10000 || height > 10000)
        return -1;
    r->rows = (unsigned)height;
    r->columns = (unsigned)width;
    r->session->stirred = true;
    const unsigned char size[4] = {(unsigned char)(height >> 8), (unsigned char)height,
                                   (unsigned char)(width >> 8), (unsigned char)width};
    frame_put(r, EXEC_FRAME_RESIZE, size, sizeof size);
    return 0;
}

static void signal_cb(ssh_session ssh, ssh_channel channel, const char *name, void *user)
{
    struct ssh_run *r = user;
    r->session->stirred = true;
    (void)ssh;
    (void)channel;
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
        if (strcmp(signals[i].name, name) == 0) {
            const unsigned char number = (unsigned char)signals[i].number;
            frame_put(r, EXEC_FRAME_SIGNAL, &number, 1);
        }
}

/* The locale alone: whatever else a client would set may change what the code's programs do. */
static int env_cb(ssh_session ssh, ssh_channel channel, const char *name, const char *value,
                  void *user)
{
    struct ssh_run *r = user;
    (void)ssh;
    (void)channel;
    bool locale = strcmp(name, "LANG") == 0 || strncmp(name, "LC_", 3) == 0;
    return locale && variable_add(r, name, value) ? 0 : 1;
}

/* One that is too long is taken as well: a refusal of the request has no room for a reason. */
static int want(struct ssh_run *r, const char *command)
{
    if (r->wanted)
        return 1;
    r->session->stirred = true;
    r->too_long = command != NULL && strlen(command) > SSH_COMMAND_MAX;
    r->command = command == NULL || r->too_long ? NULL : strdup(command);
    r->wanted = command == NULL || r->too_long || r->command != NULL;
    return r->wanted ? 0 : 1;
}

static int shell_cb(ssh_session ssh, ssh_channel channel, void *user)
{
    (void)ssh;
    (void)channel;
    return want(user, NULL);
}

static int exec_cb(ssh_session ssh, ssh_channel channel, const char *command, void *user)
{
    (void)ssh;
    (void)channel;
    return want(user, command);
}

static int subsystem_cb(ssh_session ssh, ssh_channel channel, const char *name, void *user)
{
    (void)ssh;
    (void)channel;
    return strcmp(name, "sftp") == 0 ? want(user, SFTP) : 1;
}

/* --- life ------------------------------------------------------------------------------------------- */

/* In a free place of runs[from] to runs[to - 1]; takes the channel, also when there is none. */
static struct ssh_run *run_make(struct ssh_session *s, ssh_channel channel, size_t from, size_t to)
{
    size_t at = from;
    while (at < to && s->runs[at] != NULL)
        at++;
    struct ssh_run *r = at == to || channel == NULL ? NULL : calloc(1, sizeof *r);
    if (r == NULL) {
        if (channel != NULL)
            ssh_channel_free(channel);
        return NULL;
    }
    r->session = s;
    r->channel = channel;
    buffer_init(&r->output, SSH_LINK_BYTES_MAX);
    r->callbacks.userdata = r;
    r->callbacks.channel_data_function = data_cb;
    r->callbacks.channel_eof_function = end_cb;
    r->callbacks.channel_close_function = end_cb;
    r->callbacks.channel_write_wontblock_function = window_cb;
    s->stirred = true;
    s->runs[at] = r;
    return r;
}

ssh_channel ssh_run_new(struct ssh_session *s)
{
    struct ssh_run *r = run_make(s, ssh_channel_new(s->ssh), 0, SSH_CHANNELS_MAX);
    if (r == NULL)
        return NULL;
    r->callbacks.channel_pty_request_function = pty_cb;
    r->callbacks.channel_pty_window_change_function = resize_cb;
    r->callbacks.channel_signal_function = signal_cb;
    r->callbacks.channel_env_request_function = env_cb;
    r->callbacks.channel_shell_request_function = shell_cb;
    r->callbacks.channel_exec_request_function = exec_cb;
    r->callbacks.channel_subsystem_request_function = subsystem_cb;
    ssh_callbacks_init(&r->callbacks);
    (void)ssh_set_channel_callbacks(r->channel, &r->callbacks);
    return r->channel;
}

struct ssh_run *ssh_run_new_port(struct ssh_session *s, ssh_channel channel)
{
    struct ssh_run *r = run_make(s, channel, SSH_CHANNELS_MAX, SSH_RUNS_MAX);
    if (r == NULL)
        return NULL;
    r->wanted = true;
    s->forward_count++;
    s->front->forward_count++;
    ssh_callbacks_init(&r->callbacks);
    (void)ssh_set_channel_callbacks(r->channel, &r->callbacks);
    return r;
}

void ssh_run_free(struct ssh_run *r)
{
    if (r->port != 0) {
        r->session->forward_count--;
        r->session->front->forward_count--;
    }
    (void)ssh_remove_channel_callbacks(r->channel, &r->callbacks);
    ssh_channel_free(r->channel);
    ssh_link_close(&r->link);
    buffer_free(&r->output);
    free(r->command);
    for (size_t i = 0; i < r->variable_count; i++)
        free(r->variables[i]);
    free(r);
}
