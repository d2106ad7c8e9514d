/* skerry proxy: ports of an instance at addresses of this machine.
 *
 *     client === ADDRESS:LOCAL --- connection of the API, frames of skerry-exec/1 === port REMOTE inside
 *
 * Each connection that is accepted is one of the API (`.../connect`) and one joiner; it is refused or
 * broken off alone. One loop serves them all: only connecting to the node blocks. Neither direction holds
 * more than LINK_BYTES and a frame. What did not end on both sides is reset, so that nobody takes it for
 * whole. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/address.h"
#include "base/exec_frame.h"
#include "base/id.h"
#include "base/memory.h"
#include "node/cli/cli.h"

enum {
    FORWARDS_MAX = 16,
    LINKS_MAX = 256, /* at a time; further clients wait in the kernel's queue */
    LINK_BYTES = 64 * 1024,
    READ_BYTES = 32 * 1024,
    BACKLOG = 128,
    SPECIFICATION_MAX = 128,
    PATH_SIZE = 1024,
    DESCRIPTORS_PAUSE_MS = 200, /* before accept is tried again */
};

struct forward {
    int fd; /* listens */
    char local[ADDRESS_TEXT_SIZE];
    unsigned remote;
};

/* One connection of a client. */
struct link {
    struct link *next;
    const struct forward *forward;
    int local, node;
    struct client_answer answer; /* until `open` */
    unsigned tries;
    bool open, over;
    struct buffer in, out; /* frames from the node, and to it */
    struct buffer to_local;
    bool local_ended;  /* the client sends no more, and the node was told */
    bool output_ended; /* the port sends no more */
    bool output_told;  /* and the client was told */
    bool exited;       /* both have ended, says the node */
};

struct proxy {
    struct cli *cli;
    struct client *client;
    bool workload; /* a connection joins some instance of it; else one instance is meant */
    char about[WORKLOAD_NAME_LENGTH_MAX + INSTANCE_ID_LENGTH_MAX + 1];
    char key[512]; /* "&key=...", encoded */
    struct forward forwards[FORWARDS_MAX];
    size_t forward_count;
    struct link *links;
    size_t link_count;
    int signals;
    bool paused; /* no descriptor was left for another client */
    bool done;
    int code;
};

/* --- one connection --------------------------------------------------------------------------- */

static void link_say(const struct link *l, const char *text)
{
    cli_say("%s -> %u: %s", l->forward->local, l->forward->remote, text);
}

/* `clean`: both sides have ended. */
static void link_close(struct link *l, bool clean)
{
    const struct linger at_once = {.l_onoff = 1};
    if (l->over)
        return;
    l->over = true;
    if (!clean)
        (void)setsockopt(l->local, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    memory_close(&l->local);
    memory_close(&l->node);
}

static void link_failed(struct link *l, const struct err *e)
{
    link_say(l, e->msg);
    link_close(l, false);
}

/* False: the connection is over. */
static bool link_ask(struct proxy *p, struct link *l)
{
    char path[PATH_SIZE];
    struct err e = {0};
    (void)text_format(path, sizeof path, "/v1/%s/%s/connect?port=%u%s%s",
                      p->workload ? "workloads" : "instances", p->about, l->forward->remote,
                      !p->workload     ? "&join=1"
                      : l->tries++ > 0 ? "&again=1"
                                       : "",
                      p->key);
    client_answer_free(&l->answer);
    memory_close(&l->node);
    if (client_upgrade_begin(p->client, path, "", &l->node, &l->answer, &e) == 0)
        return true;
    link_failed(l, &e);
    return false;
}

static void link_refused(struct proxy *p, struct link *l)
{
    unsigned status = l->answer.status;
    /* The nodes that are known to have some had no room: this node shall decide anew. */
    if (p->workload && status == 503 && l->tries == 1) {
        (void)link_ask(p, l);
        return;
    }
    json_t *problem = client_json(&l->answer);
    char text[1024];
    (void)text_format(text, sizeof text, "refused: %u %s: %s", status, cli_text(problem, "code"),
                      cli_text(problem, "detail"));
    json_decref(problem);
    link_say(l, text);
    link_close(l, false);
    /* No later connection could do better. */
    if (status == 401 || status == 403 || (!p->workload && (status == 404 || status == 410))) {
        p->code = (int)cli_exit_of_status(status);
        p->done = true;
    }
}

static void link_answered(struct proxy *p, struct link *l)
{
    struct err e = {0};
    bool whole = false;
    if (client_upgrade_take(l->node, &l->answer, &whole, &e) != 0) {
        link_failed(l, &e);
    } else if (whole && l->answer.status != 101) {
        link_refused(p, l);
    } else if (whole) {
        l->open = true;
        if (!buffer_append(&l->in, l->answer.body.data, l->answer.body.length))
            link_close(l, false);
        client_answer_free(&l->answer);
    }
}

static void take_problem(struct link *l, const struct exec_frame *f)
{
    json_t *problem = json_loadb(f->data, f->size, 0, NULL);
    char text[1024];
    (void)text_format(text, sizeof text, "%d %s: %s", (int)cli_integer(problem, "status"),
                      cli_text(problem, "code"), cli_text(problem, "detail"));
    json_decref(problem);
    link_say(l, text);
    link_close(l, false);
}

static void take_frame(struct link *l, const struct exec_frame *f)
{
    bool taken = f->type == EXEC_FRAME_STDOUT && !l->output_ended &&
                 buffer_append(&l->to_local, f->data, f->size);
    if (f->type == EXEC_FRAME_PROBLEM)
        take_problem(l, f);
    else if (f->type == EXEC_FRAME_EXIT)
        l->exited = true;
    else if (!taken)
        link_close(l, false);
    else
        l->output_ended = f->size == 0;
}

static void take_frames(struct link *l)
{
    while (!l->over && !l->exited && l->to_local.length < LINK_BYTES) {
        struct exec_frame f;
        enum exec_frame_read read = exec_frame_read_answer(&f, l->in.data, l->in.length);
        if (read == EXEC_FRAME_MORE)
            return;
        if (read == EXEC_FRAME_BAD) {
            link_say(l, "the node sent a frame that is none");
            link_close(l, false);
            return;
        }
        take_frame(l, &f);
        buffer_consume(&l->in, EXEC_FRAME_HEADER_BYTES + f.size);
    }
}

static bool in_has_room(const struct link *l)
{
    return !l->exited && l->to_local.length < LINK_BYTES &&
           l->in.length < EXEC_FRAME_HEADER_BYTES + EXEC_FRAME_BYTES_MAX;
}

static void read_node(struct link *l)
{
    char data[READ_BYTES];
    ssize_t n = recv(l->node, data, sizeof data, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        link_say(l, "the connection to the node broke");
        link_close(l, false);
    } else if (!buffer_append(&l->in, data, (size_t)n)) {
        link_close(l, false);
    }
}

static void read_local(struct link *l)
{
    char data[READ_BYTES];
    ssize_t n = recv(l->local, data, sizeof data, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    l->local_ended = n == 0;
    if (n < 0 || !exec_frame_append(&l->out, n > 0 ? EXEC_FRAME_STDIN : EXEC_FRAME_STDIN_END, data,
                                    (size_t)n))
        link_close(l, false);
}

/* False: it broke. What waits stays where the other side takes no more now. */
static bool send_some(int fd, struct buffer *b)
{
    while (b->length > 0) {
        ssize_t n = send(fd, b->data, b->length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            return true;
        if (n < 0 && errno != EINTR)
            return false;
        if (n > 0)
            buffer_consume(b, (size_t)n);
    }
    return true;
}

static void link_move(struct link *l)
{
    take_frames(l);
    if (!l->over && !send_some(l->local, &l->to_local))
        link_close(l, false);
    if (l->over)
        return;
    take_frames(l);
    if (!send_some(l->node, &l->out))
        l->out.length = 0; /* its last word may still be there to read */
    if (l->output_ended && l->to_local.length == 0 && !l->output_told) {
        l->output_told = true;
        (void)shutdown(l->local, SHUT_WR);
    }
    if (l->exited && l->to_local.length == 0)
        link_close(l, true);
}

/* --- all of them ------------------------------------------------------------------------------ */

static void link_new(struct proxy *p, const struct forward *forward, int fd)
{
    const int on = 1;
    struct link *l = calloc(1, sizeof *l);
    if (l == NULL) {
        memory_close(&fd);
        return;
    }
    l->forward = forward;
    l->local = fd;
    l->node = -1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    buffer_init(&l->in, EXEC_FRAME_HEADER_BYTES + EXEC_FRAME_BYTES_MAX + READ_BYTES);
    buffer_init(&l->out, LINK_BYTES + READ_BYTES + 2 * EXEC_FRAME_HEADER_BYTES);
    buffer_init(&l->to_local, LINK_BYTES + EXEC_FRAME_BYTES_MAX);
    l->next = p->links;
    p->links = l;
    p->link_count++;
    (void)link_ask(p, l);
}

static void accept_some(struct proxy *p, const struct forward *forward)
{
    while (p->link_count < LINKS_MAX && !p->done) {
        int fd = accept4(forward->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            link_new(p, forward, fd);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED)
            continue;
        p->paused = errno != EAGAIN;
        return;
    }
}

static void sweep(struct proxy *p, bool all)
{
    for (struct link **at = &p->links; *at != NULL;) {
        struct link *l = *at;
        if (all)
            link_close(l, false);
        if (!l->over) {
            at = &l->next;
            continue;
        }
        *at = l->next;
        p->link_count--;
        client_answer_free(&l->answer);
        buffer_free(&l->in);
        buffer_free(&l->out);
        buffer_free(&l->to_local);
        free(l);
    }
}

/* The two of a link, in this order: its client's and the node's. */
static void want(const struct link *l, struct pollfd polls[2])
{
    bool room = l->open && !l->local_ended && l->out.length < LINK_BYTES;
    polls[0] = (struct pollfd){
        .fd = l->local,
        .events = (short)((room ? POLLIN : 0) | (l->to_local.length > 0 ? POLLOUT : 0))};
    polls[1] = (struct pollfd){.fd = l->node,
                               .events = (short)((!l->open || in_has_room(l) ? POLLIN : 0) |
                                                 (l->out.length > 0 ? POLLOUT : 0))};
    /* A client that has ended hangs up once it was told the same; that is no news. */
    if (polls[0].events == 0 && l->local_ended)
        polls[0].fd = -1;
    if (polls[1].events == 0)
        polls[1].fd = -1;
}

static void link_turn(struct proxy *p, struct link *l, const struct pollfd polls[2])
{
    const short broken = POLLERR | POLLHUP;
    if (!l->open) {
        if ((polls[1].revents & (POLLIN | broken)) != 0)
            link_answered(p, l);
        else if ((polls[0].revents & broken) != 0) /* it waits no more */
            link_close(l, false);
    } else {
        if ((polls[1].revents & (POLLIN | broken)) != 0)
            read_node(l);
        if (!l->over && (polls[0].revents & POLLERR) != 0)
            link_close(l, false);
        if (!l->over && (polls[0].revents & POLLIN) != 0)
            read_local(l);
    }
    if (!l->over && l->open)
        link_move(l);
}

static int serve(struct proxy *p)
{
    struct pollfd polls[1 + FORWARDS_MAX + 2 * LINKS_MAX];
    struct link *links[LINKS_MAX];
    while (!p->done) {
        size_t count = 0, link_count = 0;
        bool full = p->link_count >= LINKS_MAX || p->paused;
        polls[count++] = (struct pollfd){.fd = p->signals, .events = POLLIN};
        for (size_t i = 0; i < p->forward_count; i++)
            polls[count++] = (struct pollfd){.fd = full ? -1 : p->forwards[i].fd, .events = POLLIN};
        for (struct link *l = p->links; l != NULL; l = l->next, count += 2) {
            links[link_count++] = l;
            want(l, &polls[count]);
        }
        int ready = poll(polls, count, p->paused ? DESCRIPTORS_PAUSE_MS : -1);
        p->paused = false;
        if (ready < 0 && errno != EINTR) {
            cli_say("poll: %s", strerror(errno));
            return CLI_FAILED;
        }
        if (ready <= 0)
            continue;
        if (polls[0].revents != 0)
            return CLI_DONE;
        for (size_t i = 0; i < link_count; i++)
            link_turn(p, links[i], &polls[1 + p->forward_count + 2 * i]);
        for (size_t i = 0; i < p->forward_count; i++)
            if (polls[1 + i].revents != 0)
                accept_some(p, &p->forwards[i]);
        sweep(p, false);
    }
    return p->code;
}

/* --- beginning -------------------------------------------------------------------------------- */

static bool is_port(const char *text, bool zero, unsigned *out)
{
    size_t digits = strspn(text, "0123456789");
    unsigned long n = digits == 0 || digits > 5 ? 65536 : strtoul(text, NULL, 10);
    *out = (unsigned)n;
    return text[digits] == '\0' && n <= UINT16_MAX && (n > 0 || zero);
}

/* "5433:5432", "5432", ":5432", "127.0.0.2:5433:5432", "[::1]:5433:5432". */
static bool specification_parse(const char *text, struct sockaddr_storage *local, unsigned *remote)
{
    char copy[SPECIFICATION_MAX], address[SPECIFICATION_MAX + 16];
    struct err e = {0};
    unsigned port = 0;
    if (!text_copy(copy, sizeof copy, text))
        return false;
    char *colon = strrchr(copy, ':');
    if (!is_port(colon == NULL ? copy : colon + 1, false, remote))
        return false;
    if (colon != NULL)
        *colon = '\0';
    static const char localhost[] = "localhost:";
    const char *rest = copy;
    if (strncmp(rest, localhost, sizeof localhost - 1) == 0)
        rest += sizeof localhost - 1;
    if (rest[0] == '\0' && rest == copy)
        (void)text_copy(address, sizeof address, "127.0.0.1:0");
    else if (is_port(rest, true, &port))
        (void)text_format(address, sizeof address, "127.0.0.1:%u", port);
    else
        (void)text_copy(address, sizeof address, copy);
    return address_parse(local, address, 0, &e) == 0;
}

static int forward_open(struct proxy *p, const char *text)
{
    struct forward *f = &p->forwards[p->forward_count];
    struct sockaddr_storage address;
    struct sockaddr *generic = (struct sockaddr *)(void *)&address;
    const int on = 1;
    if (!specification_parse(text, &address, &f->remote))
        return cli_usage(p->cli,
                         "%.80s: write LOCAL:REMOTE as in 5433:5432, 127.0.0.2:5433:5432 or 0:5432",
                         text);
    socklen_t length = address_length(&address);
    address_format(&address, f->local);
    f->fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (f->fd < 0)
        goto failed;
    p->forward_count++;
    (void)setsockopt(f->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address.ss_family == AF_INET6)
        (void)setsockopt(f->fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(f->fd, generic, length) != 0 || listen(f->fd, BACKLOG) != 0 ||
        getsockname(f->fd, generic, &length) != 0)
        goto failed;
    address_format(&address, f->local);
    if (strncmp(f->local, "127.", 4) != 0 && strncmp(f->local, "[::1]", 5) != 0)
        cli_say("warning: whoever reaches %s gets in with your token", f->local);
    return CLI_DONE;
failed:
    cli_say("listen on %s: %s%s", f->local, strerror(errno),
            errno == EADDRINUSE ? "; 0 as LOCAL picks a free port" : "");
    return CLI_FAILED;
}

static int signals_open(struct proxy *p)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    p->signals = sigprocmask(SIG_BLOCK, &set, NULL) == 0
                     ? signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)
                     : -1;
    (void)signal(SIGPIPE, SIG_IGN);
    if (p->signals >= 0)
        return CLI_DONE;
    cli_say("signalfd: %s", strerror(errno));
    return CLI_FAILED;
}

/* Whether it is there, before anybody connects. */
static int find_subject(struct proxy *p)
{
    struct cli *c = p->cli;
    const char *word = c->args.words[0];
    const char *key = cli_value(c, "key");
    char encoded[400];
    json_t *found = NULL;
    p->workload = word[0] >= 'a' && word[0] <= 'z';
    if (key != NULL && !p->workload)
        return cli_usage(c, "--key goes with a workload, not with an instance");
    if (key != NULL && (key[0] == '\0' || !client_encode(encoded, sizeof encoded, key)))
        return cli_usage(c, "--key: 1 to 128 bytes");
    if (key != NULL)
        (void)text_format(p->key, sizeof p->key, "&key=%s", encoded);
    if (p->workload && !workload_name_valid(word, strlen(word)))
        return cli_usage(c, "%.80s is no name of a workload", word);
    int code = CLI_DONE;
    if (p->workload)
        (void)text_copy(p->about, sizeof p->about, word);
    else
        code = cli_instance(c, word, p->about, sizeof p->about);
    if (code == CLI_DONE)
        code = cli_get(c, &found, "/v1/%s/%s", p->workload ? "workloads" : "instances", p->about);
    if (code == CLI_DONE && !p->workload && strcmp(cli_text(found, "state"), "ended") == 0) {
        cli_say("410 instance_gone: instance %s has ended: %s", p->about,
                cli_text(found, "reason"));
        code = CLI_NOT_FOUND;
    }
    json_decref(found);
    return code;
}

static void tell(const struct proxy *p)
{
    for (size_t i = 0; i < p->forward_count; i++) {
        const struct forward *f = &p->forwards[i];
        printf(p->cli->json ? "{\"local\":\"%s\",\"remote\":%u}\n" : "Forwarding from %s -> %u\n",
               f->local, f->remote);
    }
    (void)fflush(stdout);
}

static int proxy(struct cli *c)
{
    struct proxy p = {.cli = c, .signals = -1};
    int code = CLI_DONE;
    for (size_t i = 1; code == CLI_DONE && i < c->args.word_count; i++)
        code = forward_open(&p, c->args.words[i]);
    if (code == CLI_DONE)
        code = cli_client(c, &p.client);
    if (code == CLI_DONE)
        code = find_subject(&p);
    if (code == CLI_DONE)
        code = signals_open(&p);
    if (code == CLI_DONE) {
        tell(&p);
        code = serve(&p);
    }
    sweep(&p, true);
    for (size_t i = 0; i < p.forward_count; i++)
        memory_close(&p.forwards[i].fd);
    memory_close(&p.signals);
    return code;
}

static const struct cli_option proxy_options[] = {
    {0, "key", "KEY", "the instance of that key, of a workload that is joined with one"},
    {0, NULL, NULL, NULL},
};

const struct cli_command cli_proxy_command = {
    .name = "proxy",
    .arguments = "ID|WORKLOAD LOCAL:REMOTE...",
    .summary = "ports of an instance, at addresses of this machine",
    .text =
        "REMOTE is a port that the code listens on; LOCAL is where connections to it are taken "
        "here:\n"
        "a port of 127.0.0.1, 0 for a free one, or ADDRESS:PORT. REMOTE alone takes the same port\n"
        "here.\n\n"
        "Each connection is a joiner of the instance: shown by `skerry ps`, refused when there is\n"
        "no room, ended by timeouts.stream_idle and with the instance. For a WORKLOAD each finds\n"
        "or starts an instance, as a request does. Ctrl-C ends all.\n\n"
        "A token of role deploy reaches any port; one of role invoke the port of workloads with\n"
        "protocol: tcp.\n\n"
        "  skerry proxy 7k3q 5433:5432 &\n"
        "  psql -h 127.0.0.1 -p 5433\n"
        "  skerry proxy redis 6379",
    .options = proxy_options,
    .flags = CLI_API | CLI_JSON,
    .words_min = 2,
    .words_max = 1 + FORWARDS_MAX,
    .run = proxy,
};
