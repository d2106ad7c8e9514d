#include "gateway/flow.h"

#include <string.h>

#include "base/memory.h"

void flow_begin(struct flow *flow, enum http_body body, uint64_t length, bool chunked_out)
{
    flow->body = body;
    flow->chunked_out = chunked_out;
    flow->remaining = length;
    flow->content_bytes = 0;
    flow->done = body == HTTP_BODY_NONE || (body == HTTP_BODY_LENGTH && length == 0);
    http_chunked_init(&flow->chunked);
    buffer_init(&flow->trailers, HTTP_TRAILER_BYTES_MAX);
}

void flow_free(struct flow *flow)
{
    buffer_free(&flow->trailers);
}

static bool no_memory(struct http_fault *fault)
{
    *fault = (struct http_fault){PROBLEM_INTERNAL, "out of memory"};
    return false;
}

static size_t hex_write(char *out, size_t value)
{
    static const char digits[] = "0123456789abcdef";
    size_t count = 1;
    for (size_t rest = value >> 4; rest != 0; rest >>= 4)
        count++;
    for (size_t i = count; i > 0; i--) {
        out[i - 1] = digits[value & 15u];
        value >>= 4;
    }
    return count;
}

static bool content(struct flow *flow, struct block_pool *pool, struct queue *to, const char *data,
                    size_t length, struct http_fault *fault)
{
    if (length == 0)
        return true;
    flow->content_bytes += length;
    char *out = queue_reserve(pool, to, length + FLOW_FRAME_BYTES_MAX);
    if (out == NULL)
        return no_memory(fault);
    size_t n = 0;
    if (flow->chunked_out) {
        n = hex_write(out, length);
        out[n++] = '\r';
        out[n++] = '\n';
    }
    memcpy(out + n, data, length);
    n += length;
    if (flow->chunked_out) {
        out[n++] = '\r';
        out[n++] = '\n';
    }
    queue_commit(to, n);
    return true;
}

bool flow_trailer_passes(const struct http_field *field)
{
    switch (field->known) {
    case HTTP_NAME_OTHER:
    case HTTP_NAME_ACCEPT:
    case HTTP_NAME_TRACESTATE:
        return !http_text_is(field->name, "content-encoding") &&
               !http_text_is(field->name, "content-type") &&
               !http_text_is(field->name, "content-range");
    default: /* framing, routing and Skerry's own: RFC 9110 section 6.5.1 */
        return false;
    }
}

bool flow_last_chunk(struct block_pool *pool, struct queue *to, const char *lines, size_t length)
{
    return queue_append(pool, to, "0\r\n", 3) && queue_append(pool, to, lines, length) &&
           queue_append(pool, to, "\r\n", 2);
}

/* The source's body is whole. */
static bool finish(struct flow *flow, struct block_pool *pool, struct queue *to,
                   struct http_fault *fault)
{
    flow->done = true;
    if (!flow->chunked_out)
        return true;
    /* An empty trailer section is "\r\n". */
    if (flow->trailers.length <= 2)
        return flow_last_chunk(pool, to, NULL, 0) || no_memory(fault);
    struct http_head head;
    if (!http_trailers_parse(&head, flow->trailers.data, flow->trailers.length, fault))
        return false;
    struct buffer lines;
    buffer_init(&lines, HTTP_TRAILER_BYTES_MAX * 2);
    bool ok = true;
    for (size_t i = 0; i < head.field_count && ok; i++) {
        const struct http_field *field = &head.fields[i];
        if (flow_trailer_passes(field))
            ok = buffer_append(&lines, field->name.data, field->name.length) &&
                 buffer_append(&lines, ": ", 2) &&
                 buffer_append(&lines, field->value.data, field->value.length) &&
                 buffer_append(&lines, "\r\n", 2);
    }
    ok = ok && flow_last_chunk(pool, to, lines.data, lines.length);
    buffer_free(&lines);
    return ok || no_memory(fault);
}

static ptrdiff_t push_chunked(struct flow *flow, struct block_pool *pool, struct queue *to,
                              const char *data, size_t length, struct http_fault *fault)
{
    size_t at = 0;
    while (at < length && flow->chunked.state != HTTP_CHUNK_DONE) {
        struct http_text span, trailers;
        ptrdiff_t n =
            http_chunked_read(&flow->chunked, data + at, length - at, &span, &trailers, fault);
        if (n < 0)
            return HTTP_REFUSED;
        at += (size_t)n;
        if (!content(flow, pool, to, span.data, span.length, fault))
            return HTTP_REFUSED;
        if (!buffer_append(&flow->trailers, trailers.data, trailers.length)) {
            no_memory(fault);
            return HTTP_REFUSED;
        }
    }
    if (flow->chunked.state == HTTP_CHUNK_DONE && !finish(flow, pool, to, fault))
        return HTTP_REFUSED;
    return (ptrdiff_t)at;
}

ptrdiff_t flow_push(struct flow *flow, struct block_pool *pool, struct queue *to, const char *data,
                    size_t length, struct http_fault *fault)
{
    if (flow->done)
        return 0;
    if (flow->body == HTTP_BODY_CHUNKED)
        return push_chunked(flow, pool, to, data, length, fault);
    size_t n = length;
    if (flow->body == HTTP_BODY_LENGTH) {
        if (n > flow->remaining)
            n = (size_t)flow->remaining;
        flow->remaining -= n;
    }
    if (!content(flow, pool, to, data, n, fault))
        return HTTP_REFUSED;
    if (flow->body == HTTP_BODY_LENGTH && flow->remaining == 0 && !finish(flow, pool, to, fault))
        return HTTP_REFUSED;
    return (ptrdiff_t)n;
}

size_t flow_as_is(const struct flow *flow, size_t length)
{
    if (flow->done || flow->chunked_out || flow->body == HTTP_BODY_CHUNKED)
        return 0;
    return flow->body == HTTP_BODY_LENGTH && length >= flow->remaining ? 0 : length;
}

void flow_passed(struct flow *flow, size_t length)
{
    flow->content_bytes += length;
    if (flow->body == HTTP_BODY_LENGTH)
        flow->remaining -= length;
}

bool flow_source_closed(struct flow *flow, struct block_pool *pool, struct queue *to)
{
    struct http_fault fault;
    if (flow->done)
        return true;
    return flow->body == HTTP_BODY_UNTIL_CLOSE && finish(flow, pool, to, &fault);
}
