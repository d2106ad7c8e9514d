#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/units.h"
#include "gateway/pass.h"
#include "gateway/thread.h"

/* Answers of Skerry's own, and the fields that it adds to those of the code. */

const double gateway_bucket_bounds[GATEWAY_BUCKETS] = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60,
};

static const char *const start_names[] = {
    [GATEWAY_START_COLD] = "cold",
    [GATEWAY_START_POOL] = "pool",
    [GATEWAY_START_JOIN] = "join",
};

static char *put(char *p, const char *text, size_t length)
{
    memcpy(p, text, length);
    return p + length;
}

static char *put_text(char *p, const char *text)
{
    return put(p, text, strlen(text));
}

static char *put_number(char *p, uint64_t n)
{
    char digits[20];
    size_t count = 0;
    do
        digits[count++] = (char)('0' + n % 10);
    while ((n /= 10) > 0);
    while (count > 0)
        *p++ = digits[--count];
    return p;
}

/* Server-Timing wants milliseconds: 1234 us become "1.234". */
static char *put_timing(char *p, const char *name, uint64_t us)
{
    if (us == 0)
        return p;
    p = put_text(p, p[-1] == ' ' ? "" : ", ");
    p = put_text(p, name);
    p = put_text(p, ";dur=");
    p = put_number(p, us / 1000);
    *p++ = '.';
    *p++ = (char)('0' + us / 100 % 10);
    *p++ = (char)('0' + us / 10 % 10);
    *p++ = (char)('0' + us % 10);
    return p;
}

void answer_request_id(struct connection *c)
{
    static const char digits[] = "0123456789abcdefghjkmnpqrstvwxyz";
    uint64_t n = thread_random(c->thread);
    char *p = c->x.request_id;
    *p++ = 'r';
    *p++ = '-';
    for (int i = 0; i < 12; i++, n >>= 5)
        *p++ = digits[n & 31u];
    *p = '\0';
}

size_t answer_fields_write(struct connection *c, char *out)
{
    struct exchange *x = &c->x;
    char *p = out;
    if (x->id.text[0] != '\0') {
        p = put_text(p, "Skerry-Instance: ");
        p = put_text(p, x->id.text);
        p = put_text(p, "\r\n");
    }
    p = put_text(p, "Skerry-Node: ");
    p = put_text(p, x->node_name != NULL ? x->node_name : c->thread->gateway->node_name);
    if (x->joined_us != 0) {
        p = put_text(p, "\r\nSkerry-Start: ");
        p = put_text(p, start_names[x->start]);
    }
    if (x->ends_wall_ms != 0 && x->ends_wall_ms != UINT64_MAX) {
        char at[CLOCK_RFC3339_SIZE];
        clock_format_rfc3339(x->ends_wall_ms, at);
        p = put_text(p, "\r\nSkerry-Deadline: ");
        p = put_text(p, at);
    }
    p = put_text(p, "\r\nSkerry-Request-Id: ");
    p = put_text(p, x->request_id);
    p = put_text(p, "\r\n");
    if (x->joined_us != 0) {
        uint64_t now_us = clock_monotonic_us();
        p = put_text(p, "Server-Timing: ");
        p = put_timing(p, "queue", x->timing.queue_us);
        p = put_timing(p, "reserve", x->timing.reserve_us);
        p = put_timing(p, "sandbox", x->timing.sandbox_us);
        p = put_timing(p, "start", x->timing.code_us);
        p = put_timing(p, "code", now_us - x->joined_us + 1);
        p = put_text(p, "\r\n");
    }
    assert_always((size_t)(p - out) <= ANSWER_FIELDS_BYTES_MAX);
    return (size_t)(p - out);
}

void answer_count(struct connection *c, unsigned status)
{
    struct exchange *x = &c->x;
    struct thread_counters *counters = &c->thread->counters;
    if (x->counted || c->kind == LISTENER_TCP)
        return;
    x->counted = true;
    unsigned class = status / 100 < 6 ? status / 100 : 0;
    count(&counters->requests[class], 1);
    uint64_t us = clock_monotonic_us() - x->started_us;
    log_debug("gateway", "%s %s %u %" PRIu64 " us", x->request_id, x->asked_by, status, us);
    if (x->joined_us == 0)
        return;
    size_t bucket = 0;
    while (bucket < GATEWAY_BUCKETS && (double)us > gateway_bucket_bounds[bucket] * 1e6)
        bucket++;
    count(&counters->buckets[x->start][bucket], 1);
    count(&counters->sum_us[x->start], us);
}

/* A whole answer: status line, `fields` ("A: b\r\n"...), ours, and the body unless it was HEAD. */
static void answer_whole(struct connection *c, unsigned status, const char *fields,
                         const char *body, size_t length)
{
    struct exchange *x = &c->x;
    struct block_pool *blocks = &c->thread->blocks;
    if (!x->up.done || c->thread->draining)
        x->keep_alive = false;
    char *head = queue_reserve(blocks, &c->out, strlen(fields) + ANSWER_FIELDS_BYTES_MAX + 512);
    if (head == NULL) {
        answer_count(c, status);
        connection_close(c, true);
        return;
    }
    char *p = head;
    p += snprintf(p, 64, "HTTP/1.1 %u %s\r\n", status, http_status_phrase(status));
    p = put_text(p, fields);
    if (status != 204)
        p += snprintf(p, 64, "Content-Length: %zu\r\n", length);
    p += answer_fields_write(c, p);
    if (!x->keep_alive)
        p = put_text(p, "Connection: close\r\n");
    else if (x->minor == 0)
        p = put_text(p, "Connection: keep-alive\r\n");
    p = put_text(p, "\r\n");
    x->answered = true;
    queue_commit(&c->out, (size_t)(p - head));
    bool ok = true;
    if (!x->head_only)
        ok = queue_append(blocks, &c->out, body, length);
    answer_count(c, status);
    if (!ok)
        connection_close(c, true);
    else
        connection_exchange_done(c);
}

void answer_problem(struct connection *c, const struct problem_report *report)
{
    c->bridge->problem(c, report);
}

void answer_own_problem(struct connection *c, const struct problem_report *report)
{
    struct exchange *x = &c->x;
    count(&c->thread->counters.problems[report->problem], 1);
    if (x->answered) { /* too late to say it: the client must see that the answer is not whole */
        x->broken = true;
        x->keep_alive = false;
        answer_count(c, 0);
        connection_close(c, true);
        return;
    }
    if (x->request_id[0] == '\0')
        answer_request_id(c);
    struct problem_report whole = *report;
    whole.request_id = x->request_id;
    if (whole.instance == NULL)
        whole.instance = x->id.text;
    const struct problem_word *word = problem_word(report->problem);
    char fields[512];
    int n = snprintf(fields, sizeof fields,
                     "Content-Type: " PROBLEM_CONTENT_TYPE "\r\nSkerry-Error: %s\r\n"
                     "Cache-Control: no-store\r\n",
                     word->code);
    unsigned retry_after_s = problem_retry_after_s(&whole);
    if (retry_after_s > 0)
        n += snprintf(fields + n, sizeof fields - (size_t)n, "Retry-After: %u\r\n", retry_after_s);
    if (word->status == 401)
        snprintf(fields + n, sizeof fields - (size_t)n,
                 "WWW-Authenticate: Bearer realm=\"skerry\"\r\n");
    struct buffer body;
    buffer_init(&body, PROBLEM_BODY_BYTES_MAX);
    if (!problem_body(&body, &whole))
        body.length = 0; /* no memory: the header fields still say it */
    answer_whole(c, (unsigned)word->status, fields, body.data, body.length);
    buffer_free(&body);
}

/* What ran into a bound of this node is told which, and under which name to raise it. */
static bool name_bound(const struct connection *c, enum problem problem, char *out, size_t size)
{
    const struct gateway_options *o = &c->thread->gateway->options;
    char bound[UNIT_TEXT_SIZE];
    if (problem == PROBLEM_HEADER_TOO_LARGE) {
        bytes_format(o->header_bytes_max, bound);
        text_format(out, size,
                    "the header block has more than %s (gateway.header_max) or %d fields", bound,
                    HTTP_FIELDS_MAX);
    } else if (problem == PROBLEM_BODY_TOO_LARGE) {
        bytes_format(o->body_bytes_max, bound);
        text_format(out, size, "the body is larger than %s (gateway.body_max)", bound);
    } else if (problem == PROBLEM_HEADER_TIMEOUT) {
        duration_format(o->header_timeout_ms, bound);
        text_format(out, size,
                    "the header block was not complete within %s "
                    "(gateway.header_timeout)",
                    bound);
    } else if (problem == PROBLEM_BODY_TIMEOUT) {
        duration_format(o->body_timeout_ms, bound);
        text_format(out, size, "the body made no progress for %s (gateway.body_timeout)", bound);
    } else {
        return false;
    }
    return true;
}

void answer_problem_simple(struct connection *c, enum problem problem, enum ran ran,
                           const char *detail)
{
    char bound[120];
    if (name_bound(c, problem, bound, sizeof bound))
        detail = bound;
    answer_problem(c, &(struct problem_report){.problem = problem, .ran = ran, .detail = detail});
}

void answer_text(struct connection *c, unsigned status, const char *text)
{
    answer_whole(c, status,
                 "Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n", text,
                 strlen(text));
}

void answer_bytes(struct connection *c, const char *data, size_t length)
{
    answer_whole(c, 200,
                 "Content-Type: application/octet-stream\r\nX-Content-Type-Options: nosniff\r\n"
                 "Cache-Control: no-store\r\n",
                 data, length);
}

void answer_redirect(struct connection *c, struct http_text host, unsigned port,
                     struct http_text path)
{
    char at[16] = "";
    struct buffer fields;
    if (port != 443)
        (void)snprintf(at, sizeof at, ":%u", port);
    buffer_init(&fields, TARGET_BYTES_MAX + host.length + 128);
    bool ok = buffer_append(&fields, "Location: https://", 18) &&
              buffer_append(&fields, host.data, host.length) &&
              buffer_append(&fields, at, strlen(at)) &&
              (path.length > 0 && path.data[0] == '/' ? true : buffer_append(&fields, "/", 1)) &&
              buffer_append(&fields, path.data, path.length) &&
              buffer_append(&fields, "\r\n", 3); /* and its NUL */
    if (ok)
        answer_whole(c, 308, fields.data, "", 0);
    else
        connection_close(c, true);
    buffer_free(&fields);
}

void answer_admitted(struct connection *c, const char *cookie, uint64_t seconds, bool secure)
{
    struct queue *location = &c->x.head;
    struct buffer fields;
    buffer_init(&fields, TARGET_BYTES_MAX + GATEWAY_PASS_TEXT_MAX + 512);
    bool ok = buffer_append_text(&fields, "Location: ") &&
              buffer_append(&fields, queue_data(location), queue_pending(location)) &&
              buffer_append_text(&fields, "\r\nCache-Control: no-store\r\n"
                                          "Referrer-Policy: no-referrer\r\n");
    if (ok && cookie != NULL)
        ok = buffer_printf(
            &fields, "Set-Cookie: %s=%s; Path=/; Max-Age=%" PRIu64 "; HttpOnly; SameSite=Lax%s\r\n",
            secure ? PASS_COOKIE_SECURE : PASS_COOKIE, cookie, seconds, secure ? "; Secure" : "");
    if (ok && buffer_append(&fields, "", 1)) /* its NUL */
        answer_whole(c, 303, fields.data, "", 0);
    else
        connection_close(c, true);
    if (fields.length > 0)
        explicit_bzero(fields.data, fields.length);
    buffer_free(&fields);
}

void answer_options(struct connection *c)
{
    answer_whole(c, 204, "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE\r\n", "", 0);
}
