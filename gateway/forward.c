#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include "base/memory.h"
#include "gateway/pass.h"
#include "gateway/thread.h"

/* Heads as they go on. All that is hop-by-hop stays here, and so does what only Skerry may say. */

/* What the fields that are added take at most, beside what is copied from the head. */
enum { ADDED_BYTES_MAX = 2048 };

struct writer {
    char *at;
};

static void put(struct writer *w, const char *data, size_t length)
{
    memcpy(w->at, data, length);
    w->at += length;
}

#define put_literal(w, text) put(w, text, sizeof(text) - 1)

static void put_text(struct writer *w, struct http_text text)
{
    if (text.length > 0)
        put(w, text.data, text.length);
}

static void put_field(struct writer *w, const struct http_field *field)
{
    put_text(w, field->name);
    put_literal(w, ": ");
    put_text(w, field->value);
    put_literal(w, "\r\n");
}

/* A Cookie field, without the cookie by which a browser joins. */
static void put_cookies(struct writer *w, const struct http_field *field)
{
    char *begin = w->at;
    put_text(w, field->name);
    put_literal(w, ": ");
    size_t length = pass_cookies_strip(field->value, w->at);
    w->at += length;
    if (length > 0)
        put_literal(w, "\r\n");
    else
        w->at = begin;
}

static void put_number(struct writer *w, uint64_t n)
{
    char digits[20];
    size_t count = 0;
    do
        digits[count++] = (char)('0' + n % 10);
    while ((n /= 10) > 0);
    while (count > 0)
        *w->at++ = digits[--count];
}

/* --- requests --- */

const char *forward_peer_text(struct connection *c)
{
    if (c->peer_text[0] == '\0') {
        const void *address = &((const struct sockaddr_in *)(const void *)&c->peer)->sin_addr;
        if (c->peer.ss_family == AF_INET6)
            address = &((const struct sockaddr_in6 *)(const void *)&c->peer)->sin6_addr;
        if (inet_ntop(c->peer.ss_family, address, c->peer_text, sizeof c->peer_text) == NULL)
            text_copy(c->peer_text, sizeof c->peer_text, "unknown");
        /* ::ffff:192.0.2.1 is a client of IPv4 on a socket of IPv6. */
        if (strncmp(c->peer_text, "::ffff:", 7) == 0 && strchr(c->peer_text, '.') != NULL)
            memmove(c->peer_text, c->peer_text + 7, strlen(c->peer_text) - 6);
    }
    return c->peer_text;
}

static bool hex_text(const char *p, size_t length)
{
    bool zero = true;
    for (size_t i = 0; i < length; i++) {
        if (!((p[i] >= '0' && p[i] <= '9') || (p[i] >= 'a' && p[i] <= 'f')))
            return false;
        zero = zero && p[i] == '0';
    }
    return !zero || length == 2;
}

/* W3C Trace Context: version, trace id, parent id, flags. */
static bool traceparent_valid(struct http_text v)
{
    const char *p = v.data;
    return v.length >= 55 && (v.length == 55 || (p[55] == '-' && memcmp(p, "00", 2) != 0)) &&
           hex_text(p, 2) && memcmp(p, "ff", 2) != 0 && p[2] == '-' && hex_text(p + 3, 32) &&
           p[35] == '-' && hex_text(p + 36, 16) && p[52] == '-' && hex_text(p + 53, 2);
}

static bool trace_given(const struct http_head *head)
{
    unsigned count = 0;
    bool valid = false;
    for (size_t i = 0; i < head->field_count; i++) {
        if (head->fields[i].known != HTTP_NAME_TRACEPARENT)
            continue;
        count++;
        valid = traceparent_valid(head->fields[i].value);
    }
    return count == 1 && valid;
}

static void put_hex(struct writer *w, uint64_t n)
{
    static const char digits[] = "0123456789abcdef";
    for (int shift = 60; shift >= 0; shift -= 4)
        *w->at++ = digits[(n >> shift) & 15u];
}

/* Sampled, as an SDK would decide that finds no parent. */
static void put_trace(struct writer *w, struct gateway_thread *t)
{
    put_literal(w, "traceparent: 00-");
    put_hex(w, thread_random(t) | 1);
    put_hex(w, thread_random(t));
    put_literal(w, "-");
    put_hex(w, thread_random(t) | 1);
    put_literal(w, "-01\r\n");
}

static bool request_field_passes(const struct http_field *field, const struct exchange *x,
                                 bool trusted, bool trace)
{
    if (field->named_by_connection)
        return false;
    switch (field->known) {
    case HTTP_NAME_OTHER:
    case HTTP_NAME_ACCEPT:
    case HTTP_NAME_COOKIE:
    case HTTP_NAME_SET_COOKIE:
    case HTTP_NAME_TRAILER:
        return true;
    case HTTP_NAME_AUTHORIZATION:
        return !route_is_token(field);
    case HTTP_NAME_EXPECT:
        return x->expect_continue;
    case HTTP_NAME_TRACEPARENT:
    case HTTP_NAME_TRACESTATE:
        return trace;
    case HTTP_NAME_FORWARDED:
    case HTTP_NAME_X_FORWARDED_FOR:
    case HTTP_NAME_X_FORWARDED_HOST:
    case HTTP_NAME_X_FORWARDED_PROTO:
        return trusted;
    default: /* hop-by-hop, framing, Skerry's own, and what is written anew */
        return false;
    }
}

static void put_request_line(struct writer *w, const struct http_head *head,
                             const struct route *route)
{
    put_text(w, head->method_text);
    put_literal(w, " ");
    if (head->target == HTTP_TARGET_ASTERISK)
        put_literal(w, "*");
    else if (route->path.length == 0 || route->path.data[0] != '/')
        put_literal(w, "/");
    if (head->target != HTTP_TARGET_ASTERISK)
        put_text(w, route->path);
    put_literal(w, " HTTP/1.1\r\n");
}

static void put_forwarded(struct writer *w, struct connection *c, const struct http_head *head,
                          const struct route *route, bool trusted)
{
    put_literal(w, "X-Forwarded-For: ");
    put(w, forward_peer_text(c), strlen(forward_peer_text(c)));
    put_literal(w, "\r\n");
    if (!trusted || http_field_find(head, HTTP_NAME_X_FORWARDED_PROTO) == NULL)
        put_text(w, c->tls != NULL ? (struct http_text){"X-Forwarded-Proto: https\r\n", 26}
                                   : (struct http_text){"X-Forwarded-Proto: http\r\n", 25});
    if (head->authority.length > 0 &&
        (!trusted || http_field_find(head, HTTP_NAME_X_FORWARDED_HOST) == NULL)) {
        put_literal(w, "X-Forwarded-Host: ");
        put_text(w, head->authority);
        put_literal(w, "\r\n");
    }
    const struct http_field *before =
        trusted ? http_field_find(head, HTTP_NAME_X_FORWARDED_PREFIX) : NULL;
    if (route->prefix.length > 0 || before != NULL) {
        put_literal(w, "X-Forwarded-Prefix: ");
        if (before != NULL)
            put_text(w, before->value);
        put_text(w, route->prefix);
        put_literal(w, "\r\n");
    }
}

static void put_request_framing(struct writer *w, const struct http_head *head,
                                const struct exchange *x)
{
    if (head->body == HTTP_BODY_CHUNKED) {
        put_literal(w, "Transfer-Encoding: chunked\r\n");
    } else if (head->content_length_given) {
        put_literal(w, "Content-Length: ");
        put_number(w, head->content_length);
        put_literal(w, "\r\n");
    }
    if (x->upgrade) {
        put_literal(w, "Connection: upgrade\r\nUpgrade: ");
        put_text(w, head->upgrade_to);
        put_literal(w, "\r\n");
    } else if (x->te_trailers) {
        put_literal(w, "Connection: TE\r\nTE: trailers\r\n");
    }
}

bool forward_request_write(struct connection *c, const struct http_head *head,
                           const struct route *route, size_t head_length)
{
    struct gateway_thread *t = c->thread;
    struct exchange *x = &c->x;
    bool trusted = t->gateway->options.trust_forwarded;
    bool trace = trace_given(head);
    /* A field grows by one space at most; host, prefix and upgrade may be written twice. */
    size_t size = head_length * 2 + HTTP_FIELDS_MAX + ADDED_BYTES_MAX;
    char *begin = queue_reserve(&t->blocks, &x->head, size);
    if (begin == NULL)
        return false;
    struct writer w = {begin};
    put_request_line(&w, head, route);
    put_literal(&w, "Host: ");
    if (http_field_find(head, HTTP_NAME_HOST) == NULL && head->authority.length == 0)
        put(&w, t->gateway->domain, strlen(t->gateway->domain));
    put_text(&w, head->authority);
    put_literal(&w, "\r\n");
    for (size_t i = 0; i < head->field_count; i++)
        if (!request_field_passes(&head->fields[i], x, trusted, trace))
            continue;
        else if (head->fields[i].known == HTTP_NAME_COOKIE &&
                 pass_cookies_has(head->fields[i].value))
            put_cookies(&w, &head->fields[i]);
        else
            put_field(&w, &head->fields[i]);
    put_forwarded(&w, c, head, route, trusted);
    if (!trace)
        put_trace(&w, t);
    put_literal(&w, "Skerry-Request-Id: ");
    put(&w, x->request_id, strlen(x->request_id));
    put_literal(&w, "\r\n");
    put_request_framing(&w, head, x);
    put_literal(&w, "\r\n");
    assert_always((size_t)(w.at - begin) <= size);
    queue_commit(&x->head, (size_t)(w.at - begin));
    return true;
}

/* --- answers --- */

static bool answer_field_passes(const struct http_field *field)
{
    if (field->named_by_connection)
        return false;
    switch (field->known) {
    case HTTP_NAME_CONNECTION:
    case HTTP_NAME_KEEP_ALIVE:
    case HTTP_NAME_PROXY_CONNECTION:
    case HTTP_NAME_PROXY_AUTHENTICATE:
    case HTTP_NAME_TRANSFER_ENCODING:
    case HTTP_NAME_CONTENT_LENGTH:
    case HTTP_NAME_UPGRADE:
    case HTTP_NAME_SKERRY_ERROR:
    case HTTP_NAME_SKERRY_NODE:
    case HTTP_NAME_SKERRY_START:
    case HTTP_NAME_SKERRY_DEADLINE:
    case HTTP_NAME_SKERRY_INSTANCE:
    case HTTP_NAME_SKERRY_REQUEST_ID:
        return false;
    case HTTP_NAME_SET_COOKIE: /* by which browsers join: no code gives that away */
        return !pass_cookie_sets(field->value);
    default:
        return true;
    }
}

static void put_answer_framing(struct writer *w, const struct http_head *head, struct exchange *x)
{
    bool none = head->status < 200 || head->status == 204;
    if (head->body == HTTP_BODY_LENGTH || (head->content_length_given && !none)) {
        put_literal(w, "Content-Length: ");
        put_number(w, head->content_length);
        put_literal(w, "\r\n");
    } else if (head->body != HTTP_BODY_NONE && x->minor > 0) {
        put_literal(w, "Transfer-Encoding: chunked\r\n");
    } else if (head->body != HTTP_BODY_NONE) {
        x->keep_alive = false; /* HTTP/1.0: the end of the connection is the end of the body */
    }
    if (head->status == 101) {
        put_literal(w, "Connection: upgrade\r\nUpgrade: ");
        put_text(w, head->upgrade_to);
        put_literal(w, "\r\n");
    } else if (head->status >= 200 && !x->keep_alive) {
        put_literal(w, "Connection: close\r\n");
    } else if (head->status >= 200 && x->minor == 0) {
        put_literal(w, "Connection: keep-alive\r\n");
    }
}

bool forward_answer_write(struct connection *c, const struct http_head *head, size_t head_length)
{
    struct gateway_thread *t = c->thread;
    struct exchange *x = &c->x;
    size_t size = head_length + HTTP_FIELDS_MAX + ANSWER_FIELDS_BYTES_MAX + ADDED_BYTES_MAX;
    char *begin = queue_reserve(&t->blocks, &c->out, size);
    if (begin == NULL)
        return false;
    struct writer w = {begin};
    put_literal(&w, "HTTP/1.1 ");
    put_number(&w, head->status);
    put_literal(&w, " ");
    put_text(&w, head->reason);
    put_literal(&w, "\r\n");
    for (size_t i = 0; i < head->field_count; i++)
        if (answer_field_passes(&head->fields[i]))
            put_field(&w, &head->fields[i]);
    if (head->status == 101 || head->status >= 200)
        w.at += answer_fields_write(c, w.at);
    put_answer_framing(&w, head, x);
    put_literal(&w, "\r\n");
    assert_always((size_t)(w.at - begin) <= size);
    queue_commit(&c->out, (size_t)(w.at - begin));
    return true;
}
