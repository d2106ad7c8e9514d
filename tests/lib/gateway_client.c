/* The client of tests/lib/gateway_fixture.h. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "gateway/http.h"
#include "tests/lib/gateway_fixture.h"

enum { TEST_TIMEOUT_MS = 40000 };

static void send_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t n = send(fd, data, length, MSG_NOSIGNAL);
        if (n <= 0)
            return; /* the answer says why */
        data += n;
        length -= (size_t)n;
    }
}

void test_client_connect(struct test_client *c, unsigned port)
{
    memset(c, 0, sizeof *c);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(c->fd >= 0);
    assert_int_equal(connect(c->fd, (struct sockaddr *)&a, sizeof a), 0);
}

void test_client_open(struct test_client *c, const struct gateway_fixture *f)
{
    test_client_connect(c, f->port);
}

void test_client_open_tls(struct test_client *c, const struct gateway_fixture *f, SSL_CTX *context,
                          const char *name)
{
    test_client_connect(c, f->https_port);
    c->ssl = SSL_new(context);
    assert_non_null(c->ssl);
    SSL_set_fd(c->ssl, c->fd);
    if (name != NULL)
        SSL_set_tlsext_host_name(c->ssl, name);
    if (SSL_connect(c->ssl) != 1)
        fail_msg("the handshake failed");
}

void test_client_close(struct test_client *c)
{
    SSL_free(c->ssl);
    c->ssl = NULL;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    free(c->data);
    c->data = NULL;
    c->length = c->capacity = 0;
}

void test_client_send_bytes(struct test_client *c, const void *data, size_t length)
{
    size_t sent = 0;
    if (c->ssl == NULL)
        send_all(c->fd, data, length);
    else
        (void)SSL_write_ex(c->ssl, data, length, &sent);
}

void test_client_send(struct test_client *c, const char *text)
{
    test_client_send_bytes(c, text, strlen(text));
}

/* False at the end of the connection. */
static bool test_client_fill(struct test_client *c)
{
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    if ((c->ssl == NULL || SSL_pending(c->ssl) == 0) && poll(&p, 1, TEST_TIMEOUT_MS) != 1)
        fail_msg("no answer within %d ms; so far: %.*s", TEST_TIMEOUT_MS, (int)c->length,
                 c->length > 0 ? c->data : "");
    if (c->capacity - c->length < 65536) {
        c->capacity = c->capacity * 2 + 65536;
        c->data = realloc(c->data, c->capacity);
        assert_non_null(c->data);
    }
    ssize_t n = c->ssl == NULL
                    ? recv(c->fd, c->data + c->length, c->capacity - c->length, 0)
                    : SSL_read(c->ssl, c->data + c->length, (int)(c->capacity - c->length));
    if (n <= 0)
        return false;
    c->length += (size_t)n;
    return true;
}

static void test_client_drop(struct test_client *c, size_t n)
{
    memmove(c->data, c->data + n, c->length - n);
    c->length -= n;
}

bool test_client_at_end(struct test_client *c, bool *reset)
{
    while (test_client_fill(c))
        ;
    if (reset != NULL)
        *reset = errno == ECONNRESET;
    return true;
}

static void read_answer_body(struct test_client *c, struct test_answer *a,
                             const struct http_head *head)
{
    struct buffer body, trailers;
    buffer_init(&body, 64u * 1024 * 1024);
    buffer_init(&trailers, 65536);
    struct http_chunked chunked;
    http_chunked_init(&chunked);
    uint64_t left = head->body == HTTP_BODY_UNTIL_CLOSE ? UINT64_MAX : head->content_length;
    bool is_chunked = head->body == HTTP_BODY_CHUNKED;
    while (head->body != HTTP_BODY_NONE &&
           (is_chunked ? chunked.state != HTTP_CHUNK_DONE : left > 0)) {
        if (c->length == 0 && !test_client_fill(c)) {
            a->broken = head->body != HTTP_BODY_UNTIL_CLOSE;
            break;
        }
        struct http_text span = {c->data, c->length < left ? c->length : (size_t)left};
        struct http_text more = {c->data, 0};
        struct http_fault fault;
        ptrdiff_t n = (ptrdiff_t)span.length;
        if (is_chunked)
            n = http_chunked_read(&chunked, c->data, c->length, &span, &more, &fault);
        assert_true(n >= 0);
        buffer_append(&body, span.data, span.length);
        buffer_append(&trailers, more.data, more.length);
        if (!is_chunked)
            left -= (uint64_t)n;
        test_client_drop(c, (size_t)n);
    }
    buffer_append(&body, "", 1);
    buffer_append(&trailers, "", 1);
    a->body_length = body.length - 1;
    a->body = body.data;
    a->trailers = trailers.data;
}

void test_client_read(struct test_client *c, struct test_answer *a, bool head_only)
{
    memset(a, 0, sizeof *a);
    struct http_bounds bounds = {.head_bytes_max = 200000};
    struct http_scan scan = {0};
    struct http_fault fault = {0};
    ptrdiff_t n;
    while ((n = http_scan(&scan, c->data, c->length, false, &bounds, &fault)) == HTTP_MORE)
        if (!test_client_fill(c))
            break;
    if (n <= 0 || c->data == NULL) {
        a->broken = true;
        a->head = strdup("");
        a->body = strdup("");
        a->trailers = strdup("");
        return;
    }
    a->head = malloc((size_t)n + 1);
    assert_non_null(a->head);
    memcpy(a->head, c->data, (size_t)n);
    a->head[n] = '\0';
    test_client_drop(c, (size_t)n);
    struct http_head *head = malloc(sizeof *head);
    if (!http_answer_parse(head, a->head, (size_t)n, head_only ? HTTP_METHOD_HEAD : HTTP_METHOD_GET,
                           &fault))
        fail_msg("the gateway's answer is malformed: %s\n%s", fault.why, a->head);
    a->status = head->status;
    read_answer_body(c, a, head);
    free(head);
}

void test_answer_free(struct test_answer *a)
{
    free(a->head);
    free(a->body);
    free(a->trailers);
    memset(a, 0, sizeof *a);
}

const char *test_answer_field(const struct test_answer *a, const char *name)
{
    static char value[4096];
    const char *p = a->head;
    size_t length = strlen(name);
    while ((p = strstr(p, "\r\n")) != NULL) {
        p += 2;
        if (strncasecmp(p, name, length) != 0 || p[length] != ':')
            continue;
        p += length + 1;
        while (*p == ' ')
            p++;
        size_t n = strcspn(p, "\r");
        text_format(value, sizeof value, "%.*s", (int)n, p);
        return value;
    }
    return NULL;
}

void gateway_fixture_get(const struct gateway_fixture *f, struct test_answer *a,
                         const char *request)
{
    struct test_client c;
    test_client_open(&c, f);
    test_client_send(&c, request);
    test_client_read(&c, a, strncmp(request, "HEAD ", 5) == 0);
    test_client_close(&c);
}
