#include "node/cli/session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "base/exec_frame.h"
#include "base/memory.h"

enum {
    STDIN_READ = 16384,
    OUTGOING_MAX = 256 * 1024, /* stdin is read only while less than half of it waits */
};

struct session {
    struct cli *cli;
    int fd, signals;
    bool tty, stdin_open, interrupted, done;
    int code;
    struct buffer in, out;
};

/* --- the terminal ----------------------------------------------------------------------------- */

/* atexit has no argument, so what it needs cannot live in the session. */
static struct termios terminal_before;
static bool terminal_raw;

static void terminal_restore(void)
{
    if (terminal_raw)
        (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &terminal_before);
    terminal_raw = false;
}

static int terminal_make_raw(struct err *e)
{
    if (tcgetattr(STDIN_FILENO, &terminal_before) < 0)
        return err_sys(e, ERR_IO, errno, "read the terminal's settings");
    struct termios raw = terminal_before;
    cfmakeraw(&raw);
    (void)atexit(terminal_restore);
    terminal_raw = true;
    /* What was typed ahead is for the command. */
    if (tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) < 0)
        return err_sys(e, ERR_IO, errno, "make the terminal raw");
    return 0;
}

static void terminal_size(unsigned *rows, unsigned *columns)
{
    struct winsize size = {0};
    *rows = 24;
    *columns = 80;
    if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0) {
        *rows = size.ws_row;
        *columns = size.ws_col;
    }
}

bool cli_session_terminal(json_t *spec)
{
    unsigned rows, columns;
    if (!isatty(STDIN_FILENO))
        return false;
    terminal_size(&rows, &columns);
    json_object_set_new(spec, "tty", json_true());
    json_object_set_new(spec, "rows", json_integer(rows));
    json_object_set_new(spec, "columns", json_integer(columns));
    return true;
}

/* --- frames out ------------------------------------------------------------------------------- */

static int send_frame(struct session *s, enum exec_frame_type type, const void *data, size_t length,
                      struct err *e)
{
    if (!exec_frame_append(&s->out, type, data, length))
        return err_set(e, ERR_LIMIT, "the node takes nothing more");
    return 0;
}

static int flush_out(struct session *s, struct err *e)
{
    while (s->out.length > 0) {
        ssize_t n = send(s->fd, s->out.data, s->out.length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) {
            s->out.length = 0; /* its last word may still be there to read */
            s->stdin_open = false;
            return 0;
        }
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "send to the node");
        buffer_consume(&s->out, (size_t)n);
    }
    return 0;
}

static int read_stdin(struct session *s, struct err *e)
{
    char data[STDIN_READ];
    ssize_t n = read(STDIN_FILENO, data, sizeof data);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return 0;
    if (n > 0)
        return send_frame(s, EXEC_FRAME_STDIN, data, (size_t)n, e);
    s->stdin_open = false;
    return send_frame(s, EXEC_FRAME_STDIN_END, NULL, 0, e);
}

static int take_signal(struct session *s, struct err *e)
{
    struct signalfd_siginfo info;
    if (read(s->signals, &info, sizeof info) != (ssize_t)sizeof info)
        return 0;
    int number = (int)info.ssi_signo;
    if (number == SIGWINCH) {
        if (!s->tty)
            return 0;
        unsigned rows, columns;
        terminal_size(&rows, &columns);
        unsigned char size[4] = {(unsigned char)(rows >> 8), (unsigned char)rows,
                                 (unsigned char)(columns >> 8), (unsigned char)columns};
        return send_frame(s, EXEC_FRAME_RESIZE, size, sizeof size, e);
    }
    /* The first is the command's to handle; after another one we leave, which ends it. */
    if (s->interrupted || number == SIGHUP) {
        s->code = CLI_SIGNAL + number;
        s->done = true;
        return 0;
    }
    s->interrupted = true;
    unsigned char byte = (unsigned char)number;
    return send_frame(s, EXEC_FRAME_SIGNAL, &byte, 1, e);
}

/* --- frames in -------------------------------------------------------------------------------- */

static int write_out(struct session *s, int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, data, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            (void)poll(&p, 1, -1);
            continue;
        }
        if (n < 0) {
            s->code = CLI_SIGNAL + SIGPIPE;
            s->done = true;
            return 0;
        }
        data += n;
        length -= (size_t)n;
    }
    return 0;
}

static void take_end(struct session *s, const char *data, size_t length)
{
    json_t *end = json_loadb(data, length, 0, NULL);
    const json_t *exit_code = json_object_get(end, "exit_code");
    const char *detail = cli_text(end, "detail");
    const char *reason = cli_text(end, "reason");
    terminal_restore();
    s->done = true;
    if (cli_truth(end, "timed_out"))
        s->code = CLI_TIMED_OUT;
    else if (json_is_integer(exit_code))
        s->code = (int)json_integer_value(exit_code);
    else if (cli_integer(end, "signal") > 0)
        s->code = CLI_SIGNAL + (int)cli_integer(end, "signal");
    else
        s->code = CLI_SKERRY_FAILED;
    if (cli_truth(end, "timed_out"))
        cli_say("the command ran longer than its --timeout%s%s",
                cli_value(s->cli, "timeout") != NULL ? " of " : "",
                cli_value(s->cli, "timeout") != NULL ? cli_value(s->cli, "timeout") : "");
    else if (cli_truth(end, "oom"))
        cli_say("the command used up its memory; raise --memory");
    else if (detail[0] != '\0')
        cli_say("%s", detail);
    else if (s->code == CLI_SKERRY_FAILED)
        cli_say("the command ended without a status: %s", reason[0] == '\0' ? "unknown" : reason);
    json_decref(end);
}

static void take_problem(struct session *s, const char *data, size_t length)
{
    json_t *problem = json_loadb(data, length, 0, NULL);
    terminal_restore();
    cli_say("%d %s: %s", (int)cli_integer(problem, "status"), cli_text(problem, "code"),
            cli_text(problem, "detail"));
    json_decref(problem);
    s->done = true;
    s->code = CLI_SKERRY_FAILED;
}

static int take_frames(struct session *s, struct err *e)
{
    struct exec_frame f;
    while (!s->done) {
        enum exec_frame_read read = exec_frame_read_answer(&f, s->in.data, s->in.length);
        if (read == EXEC_FRAME_BAD)
            return err_set(e, ERR_PROTOCOL, "the node sent a frame that is none");
        if (read == EXEC_FRAME_MORE)
            return 0;
        if (f.type == EXEC_FRAME_STDOUT)
            write_out(s, STDOUT_FILENO, f.data, f.size);
        else if (f.type == EXEC_FRAME_STDERR)
            write_out(s, STDERR_FILENO, f.data, f.size);
        else if (f.type == EXEC_FRAME_EXIT)
            take_end(s, f.data, f.size);
        else
            take_problem(s, f.data, f.size);
        buffer_consume(&s->in, EXEC_FRAME_HEADER_BYTES + f.size);
    }
    return 0;
}

static int read_node(struct session *s, struct err *e)
{
    char data[EXEC_FRAME_BYTES_MAX];
    ssize_t n = recv(s->fd, data, sizeof data, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0)
        return err_set(e, ERR_IO, "the connection to the node broke; the command was ended");
    if (!buffer_append(&s->in, data, (size_t)n))
        return err_set(e, ERR_PROTOCOL, "the node sent a frame that is too long");
    return take_frames(s, e);
}

/* --- all of it -------------------------------------------------------------------------------- */

static int pass_through(struct session *s, struct err *e)
{
    int rc = take_frames(s, e);
    while (rc == 0 && !s->done) {
        bool room = s->out.length < OUTGOING_MAX / 2;
        struct pollfd p[3] = {
            {.fd = s->fd, .events = (short)(POLLIN | (s->out.length > 0 ? POLLOUT : 0))},
            {.fd = s->signals, .events = POLLIN},
            {.fd = s->stdin_open && room ? STDIN_FILENO : -1, .events = POLLIN},
        };
        if (poll(p, 3, -1) < 0 && errno != EINTR)
            return err_sys(e, ERR_IO, errno, "poll");
        if (p[1].revents != 0)
            rc = take_signal(s, e);
        if (rc == 0 && p[2].revents != 0)
            rc = read_stdin(s, e);
        if (rc == 0)
            rc = flush_out(s, e);
        if (rc == 0 && (p[0].revents & (POLLIN | POLLHUP | POLLERR)) != 0)
            rc = read_node(s, e);
    }
    return rc;
}

static int open_signals(struct session *s, struct err *e)
{
    sigset_t set;
    sigemptyset(&set);
    static const int numbers[] = {SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGWINCH};
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        sigaddset(&set, numbers[i]);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return err_sys(e, ERR_IO, errno, "block signals");
    s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s->signals < 0)
        return err_sys(e, ERR_IO, errno, "signalfd");
    (void)signal(SIGPIPE, SIG_IGN);
    return 0;
}

int cli_session(struct cli *c, const char *path, json_t *spec, bool tty)
{
    struct session s = {.cli = c, .fd = -1, .signals = -1, .tty = tty, .code = CLI_SKERRY_FAILED};
    struct client *client = NULL;
    struct client_answer answer = {0};
    struct err e = {0};
    CLEANUP_FREE char *body = json_dumps(spec, JSON_COMPACT);
    json_decref(spec);
    int code = cli_client(c, &client);
    if (code != CLI_DONE)
        return code;
    if (body == NULL)
        return cli_usage(c, "the command is not UTF-8");
    buffer_init(&s.in, 2 * (EXEC_FRAME_HEADER_BYTES + EXEC_FRAME_BYTES_MAX));
    buffer_init(&s.out, OUTGOING_MAX);
    int rc = client_upgrade(client, path, body, &s.fd, &answer, &e);
    if (rc == 0 && s.fd < 0) {
        code = cli_refused(c, &answer);
        client_answer_free(&answer);
        return code;
    }
    if (rc == 0)
        rc = open_signals(&s, &e);
    if (rc == 0 && tty)
        rc = terminal_make_raw(&e);
    if (rc == 0 && !buffer_append(&s.in, answer.body.data, answer.body.length))
        rc = err_set(&e, ERR_PROTOCOL, "the node sent too much at once");
    /* A terminal that is not given away with -t is not read either: it belongs to the shell. */
    s.stdin_open = tty || cli_has(c, "interactive") || !isatty(STDIN_FILENO);
    if (rc == 0 && !s.stdin_open)
        rc = send_frame(&s, EXEC_FRAME_STDIN_END, NULL, 0, &e);
    if (rc == 0)
        rc = pass_through(&s, &e);
    terminal_restore();
    if (rc != 0)
        s.code = cli_fail(c, &e);
    client_answer_free(&answer);
    buffer_free(&s.in);
    buffer_free(&s.out);
    memory_close(&s.fd);
    memory_close(&s.signals);
    return s.code;
}
