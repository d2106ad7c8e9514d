/* gateway/ssh_link.c - a request to the node's own API over its unix socket; what follows the head of the
 * answer is for who asked. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/memory.h"
#include "gateway/http.h"
#include "gateway/ssh_internal.h"

#define HEAD_BYTES_MAX 16384u

static void freed_cb(uv_handle_t *handle)
{
    struct ssh_link *l = handle->data;
    buffer_free(&l->in);
    buffer_free(&l->out);
    free(l);
}

static void ready_cb(uv_poll_t *poll, int status, int events)
{
    struct ssh_link *l = poll->data;
    (void)events;
    if (status < 0)
        l->phase = SSH_LINK_OVER;
    ssh_session_pump(l->session);
}

/* --- the head of the answer ------------------------------------------------------------------------- */

static void field_copy(const struct http_head *head, enum http_name name, char *out, size_t size)
{
    const struct http_field *f = http_field_find(head, name);
    if (f != NULL && f->value.length < size) {
        memcpy(out, f->value.data, f->value.length);
        out[f->value.length] = '\0';
    }
}

static void head_take(struct ssh_link *l)
{
    const struct http_bounds bounds = {.head_bytes_max = HEAD_BYTES_MAX};
    struct http_scan scan = {0};
    struct http_fault fault = {0};
    struct http_head *head = malloc(sizeof *head);
    ptrdiff_t length = head == NULL
                           ? HTTP_REFUSED
                           : http_scan(&scan, l->in.data, l->in.length, false, &bounds, &fault);
    if (length > 0 &&
        http_answer_parse(head, l->in.data, (size_t)length, HTTP_METHOD_POST, &fault)) {
        l->status = head->status;
        if (l->status != 101 && head->content_length_given)
            l->body_length = head->content_length;
        field_copy(head, HTTP_NAME_SKERRY_ERROR, l->code, sizeof l->code);
        field_copy(head, HTTP_NAME_SKERRY_INSTANCE, l->instance, sizeof l->instance);
        buffer_consume(&l->in, (size_t)length);
        l->phase = SSH_LINK_BODY;
    } else if (length != HTTP_MORE) {
        l->phase = SSH_LINK_OVER;
    }
    free(head);
}

/* --- bytes ------------------------------------------------------------------------------------------ */

static void link_receive(struct ssh_link *l)
{
    char data[16384];
    while (l->phase != SSH_LINK_OVER && l->in.length < SSH_LINK_BYTES_MAX) {
        ssize_t count = recv(l->fd, data, sizeof data, MSG_DONTWAIT);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN)
            break;
        if (count <= 0 || !buffer_append(&l->in, data, (size_t)count)) {
            if (l->phase == SSH_LINK_HEAD && l->in.length > 0)
                head_take(l);
            l->phase = SSH_LINK_OVER;
            return;
        }
        if (l->phase == SSH_LINK_HEAD)
            head_take(l);
        /* A refusal that is whole: the node keeps the connection for another request. */
        if (l->phase == SSH_LINK_BODY && l->in.length >= l->body_length)
            l->phase = SSH_LINK_OVER;
    }
}

static void link_send(struct ssh_link *l)
{
    while (l->out.length > 0) {
        ssize_t count = send(l->fd, l->out.data, l->out.length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0) {
            /* What it said before may still be read: its end will show itself there. */
            if (errno != EAGAIN)
                buffer_consume(&l->out, l->out.length);
            return;
        }
        buffer_consume(&l->out, (size_t)count);
    }
}

bool ssh_link_pump(struct ssh_link *l)
{
    size_t before = l->in.length, waiting = l->out.length;
    enum ssh_link_phase phase = l->phase;
    link_receive(l);
    link_send(l);
    int events =
        (l->phase != SSH_LINK_OVER && l->in.length < SSH_LINK_BYTES_MAX ? UV_READABLE : 0) |
        (l->phase != SSH_LINK_OVER && l->out.length > 0 ? UV_WRITABLE : 0);
    if (events == 0)
        (void)uv_poll_stop(&l->poll);
    else
        (void)uv_poll_start(&l->poll, events, ready_cb);
    return l->in.length != before || l->out.length < waiting || l->phase != phase;
}

/* --- life ------------------------------------------------------------------------------------------- */

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!text_copy(address.sun_path, sizeof address.sun_path, path))
        return -1;
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) != 0)
        return -1;
    return steal_fd(&fd);
}

struct ssh_link *ssh_link_open(struct ssh_session *s, const char *path, const char *body,
                               bool upgrade)
{
    struct ssh_front *f = s->front;
    CLEANUP_FD int fd = connect_to(f->api_socket);
    struct ssh_link *l = fd < 0 ? NULL : calloc(1, sizeof *l);
    if (l == NULL || uv_poll_init(&f->loop, &l->poll, fd) != 0) {
        free(l);
        return NULL;
    }
    l->fd = steal_fd(&fd);
    l->poll.data = l;
    l->session = s;
    l->body_length = UINT64_MAX;
    buffer_init(&l->in, SSH_LINK_BYTES_MAX + 32768u);
    buffer_init(&l->out, SSH_LINK_BYTES_MAX + SSH_INPUT_BYTES_MAX + 4u * SSH_COMMAND_MAX);
    if (!buffer_printf(&l->out,
                       "POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Type: application/json\r\n"
                       "Content-Length: %zu\r\n\r\n%s",
                       path,
                       upgrade ? "Connection: Upgrade\r\nUpgrade: skerry-exec/1\r\n"
                               : "Connection: close\r\n",
                       strlen(body), body))
        l->phase = SSH_LINK_OVER;
    (void)ssh_link_pump(l);
    return l;
}

void ssh_link_close(struct ssh_link **link)
{
    struct ssh_link *l = *link;
    if (l == NULL)
        return;
    *link = NULL;
    uv_close((uv_handle_t *)&l->poll, freed_cb);
    memory_close(&l->fd);
}

void ssh_link_problem(const struct ssh_link *l, char *out, size_t size)
{
    json_t *problem = json_loadb(l->in.data == NULL ? "" : l->in.data, l->in.length,
                                 JSON_DISABLE_EOF_CHECK, NULL);
    const char *detail = json_string_value(json_object_get(problem, "detail"));
    if (l->status == 0)
        (void)text_copy(out, size, "the node does not answer; try again");
    else
        (void)text_format(out, size, "%u %s: %s", l->status, l->code,
                          detail == NULL ? "refused" : detail);
    json_decref(problem);
    for (char *c = out; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = ' ';
}
