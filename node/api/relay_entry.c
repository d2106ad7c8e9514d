/* Relays at the entry: the request written anew, and the owner's answer read.
 *
 * Out: record, head and pieces of the body go through `out`; a body without a length goes in chunks, of
 * the pieces that libmicrohttpd gives. In: the answer's head is searched in `down`, becomes the answer of
 * the request, and its body is read from `down` as the client takes it. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "gateway/problem.h"
#include "node/api/relay_internal.h"

/* As many bytes as a chunk's size and its line ends take. */
#define CHUNK_FRAME_BYTES 20u

static void want(struct api_relay *relay)
{
    const struct relay_way *w = &relay->down;
    bool room = relay->phase == RELAY_HEAD || (relay->phase == RELAY_BODY && w->from == w->to);
    secure_stream_want(relay->stream, (room ? SECURE_WANT_READ : 0u) |
                                          (relay->out.length > 0 ? SECURE_WANT_WRITE : 0u));
}

static void ended(struct api_relay *relay)
{
    relay->phase = RELAY_END;
    buffer_consume(&relay->out, relay->out.length);
}

/* No answer comes, or not the rest of it. */
void api_relay_broke_off(struct api_relay *relay, const char *why)
{
    struct api_request *r = relay->request;
    char detail[400];
    ended(relay);
    relay->broken = true;
    log_debug("api", "a request at node %llu broke off: %s", (unsigned long long)relay->peer, why);
    (void)text_format(detail, sizeof detail, "%s, which owns instance %s, broke off: %s",
                      relay->name, relay->instance, why);
    if (r->response != NULL)
        api_resume(r); /* who reads finds it broken */
    else
        api_problem_of(r, &(struct api_trouble){.problem = PROBLEM_OWNER_UNREACHABLE,
                                                .ran = RAN_MAYBE,
                                                .instance = relay->instance,
                                                .detail = detail});
}

static const char *stream_trouble(const struct api_relay *relay)
{
    const struct err *e = secure_stream_error(relay->stream);
    return e == NULL ? "the stream ended" : e->msg;
}

/* --- the request -------------------------------------------------------------------------------- */

struct head_writing {
    struct buffer *out;
    bool failed;
};

/* What is between two nodes is said by us; nothing that could be read as another line goes on. */
static enum MHD_Result write_field(void *user, enum MHD_ValueKind kind, const char *name,
                                   const char *value)
{
    struct head_writing *h = user;
    struct http_text text = {name, strlen(name)};
    (void)kind;
    if (value == NULL)
        value = "";
    switch (http_name_find(text)) {
    case HTTP_NAME_CONNECTION:
    case HTTP_NAME_KEEP_ALIVE:
    case HTTP_NAME_UPGRADE:
    case HTTP_NAME_EXPECT:
    case HTTP_NAME_CONTENT_LENGTH:
    case HTTP_NAME_TRANSFER_ENCODING:
        return MHD_YES;
    default:
        break;
    }
    h->failed = h->failed || !http_is_token(text);
    for (const char *c = value; *c != '\0'; c++)
        h->failed = h->failed || ((unsigned char)*c < ' ' && *c != '\t') || *c == 0x7f;
    if (!h->failed && !buffer_printf(h->out, "%s: %s\r\n", name, value))
        h->failed = true;
    return h->failed ? MHD_NO : MHD_YES;
}

/* The target holds no space and no control byte. */
static bool target_fits(const struct api_request *r)
{
    for (const char *c = r->target; *c != '\0'; c++)
        if ((unsigned char)*c <= ' ' || *c == 0x7f)
            return false;
    for (const char *c = r->target_query; c != NULL && *c != '\0'; c++)
        if ((unsigned char)*c <= ' ' || *c == 0x7f)
            return false;
    return true;
}

static bool write_head(struct api_relay *relay)
{
    struct api_request *r = relay->request;
    struct head_writing h = {.out = &relay->out};
    uint64_t length = api_request_body_length(r);
    if (!target_fits(r) || !buffer_printf(&relay->out, "%s %s%s%s HTTP/1.1\r\n", r->method,
                                          r->target, r->target_query == NULL ? "" : "?",
                                          r->target_query == NULL ? "" : r->target_query))
        return false;
    (void)MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, write_field, &h);
    if (h.failed)
        return false;
    if (length == UINT64_MAX && !buffer_append_text(&relay->out, "Transfer-Encoding: chunked\r\n"))
        return false;
    if (length != UINT64_MAX && api_header(r, "Content-Length") != NULL &&
        !buffer_printf(&relay->out, "Content-Length: %llu\r\n", (unsigned long long)length))
        return false;
    return buffer_append_text(&relay->out, r->upgrade
                                               ? "Connection: Upgrade\r\nUpgrade: skerry-exec/1\r\n"
                                               : "Connection: close\r\n") &&
           (!relay->expects || buffer_append_text(&relay->out, "Expect: 100-continue\r\n")) &&
           buffer_append_text(&relay->out, "\r\n");
}

/* False: the stream is broken, and that was told. */
static bool flush(struct api_relay *relay)
{
    if (relay->out.length == 0)
        return true;
    struct iovec part = {.iov_base = relay->out.data, .iov_len = relay->out.length};
    size_t count = 0;
    enum secure_result result = secure_stream_write(relay->stream, &part, 1, &count);
    buffer_consume(&relay->out, count);
    if (result != SECURE_BROKEN)
        return true;
    api_relay_broke_off(relay, stream_trouble(relay));
    return false;
}

/* Takes what there is room for; false: that is the end of it, and was told. */
static bool body_append(struct api_relay *relay, const char *data, size_t size, size_t *taken)
{
    bool chunked = api_request_body_length(relay->request) == UINT64_MAX;
    size_t room = relay->out.length + CHUNK_FRAME_BYTES >= API_RELAY_BYTES
                      ? 0
                      : API_RELAY_BYTES - CHUNK_FRAME_BYTES - relay->out.length;
    *taken = size < room ? size : room;
    if (*taken == 0)
        return true;
    if (buffer_reserve(&relay->out, *taken + CHUNK_FRAME_BYTES) &&
        (!chunked || buffer_printf(&relay->out, "%zx\r\n", *taken)) &&
        buffer_append(&relay->out, data, *taken) &&
        (!chunked || buffer_append_text(&relay->out, "\r\n")))
        return flush(relay);
    api_relay_broke_off(relay, "out of memory");
    return false;
}

static size_t body_upload(struct api_request *r, const char *data, size_t size)
{
    struct api_relay *relay = r->state;
    size_t done = 0;
    size_t taken = 1;
    if (relay->phase != RELAY_HEAD)
        return size; /* it has answered, or is away: the rest is thrown away */
    /* As long as the stream takes what it is given. */
    while (done < size && taken > 0) {
        if (!body_append(relay, data + done, size - done, &taken))
            return size;
        done += taken;
    }
    relay->full = done < size;
    want(relay);
    return done;
}

static void body_end(struct api_request *r)
{
    struct api_relay *relay = r->state;
    if (relay->phase != RELAY_HEAD || api_request_body_length(r) != UINT64_MAX)
        return;
    if (!buffer_append_text(&relay->out, "0\r\n\r\n"))
        api_relay_broke_off(relay, "out of memory");
    else if (flush(relay))
        want(relay);
}

static void body_begin(struct api_relay *relay)
{
    relay->request->upload = body_upload;
    relay->request->upload_end = body_end;
    api_resume(relay->request);
}

void api_relay_ask(struct api_relay *relay)
{
    const struct api_connection *c = relay->request->connection;
    struct api_relay_record record = {.trusted = c->trusted, .local = c->local};
    uint8_t bytes[API_RELAY_RECORD_BYTES_MAX];
    (void)text_format(record.who, sizeof record.who, "%.48s", c->peer);
    relay->phase = RELAY_HEAD;
    if (!buffer_append(&relay->out, bytes, api_relay_record_write(&record, bytes)) ||
        !write_head(relay)) {
        ended(relay);
        api_problem(relay->request, PROBLEM_BAD_REQUEST,
                    "the head of the request cannot be passed on to %s", relay->name);
        return;
    }
    if (!flush(relay))
        return;
    want(relay);
    if (!relay->expects)
        body_begin(relay);
}

/* --- the answer --------------------------------------------------------------------------------- */

/* What stands behind a name or a value in a head is ours to overwrite: a colon, a space, a line end. */
static const char *ended_text(struct http_text text)
{
    union {
        const char *in;
        char *out;
    } at = {.in = text.data}; /* points into relay->down */
    at.out[text.length] = '\0';
    return at.in;
}

static void add_fields(struct api_relay *relay, const struct http_head *head)
{
    for (size_t i = 0; i < head->field_count; i++) {
        const struct http_field *f = &head->fields[i];
        if (f->known == HTTP_NAME_CONNECTION || f->known == HTTP_NAME_KEEP_ALIVE ||
            f->known == HTTP_NAME_CONTENT_LENGTH || f->known == HTTP_NAME_TRANSFER_ENCODING ||
            http_text_is(f->name, "date"))
            continue;
        api_header_add(relay->request, ended_text(f->name), ended_text(f->value));
    }
}

static bool add_trailers(struct api_relay *relay)
{
    struct http_head *head = &relay->api->head;
    struct http_fault fault = {0};
    if (relay->trailers.length == 0)
        return true;
    if (!http_trailers_parse(head, relay->trailers.data, relay->trailers.length, &fault))
        return false;
    for (size_t i = 0; i < head->field_count; i++)
        (void)MHD_add_response_footer(relay->request->response, ended_text(head->fields[i].name),
                                      ended_text(head->fields[i].value));
    return true;
}

/* Fills `down` when it is empty. False: nothing is there now, or the answer is over. */
static bool body_fill(struct api_relay *relay)
{
    struct relay_way *w = &relay->down;
    size_t count = 0;
    if (w->from < w->to)
        return true;
    w->from = w->to = 0;
    switch (secure_stream_read(relay->stream, w->bytes, API_RELAY_BYTES, &count)) {
    case SECURE_DONE:
        w->to = count;
        return true;
    case SECURE_BLOCKED:
        return false;
    case SECURE_END:
        if (relay->body == HTTP_BODY_UNTIL_CLOSE) {
            ended(relay);
            return false;
        }
        break;
    case SECURE_BROKEN:
        break;
    }
    api_relay_broke_off(relay, stream_trouble(relay));
    return false;
}

/* One span of content out of `down`; false: what came is no body. */
static bool body_take(struct api_relay *relay, size_t size, struct http_text *content)
{
    struct relay_way *w = &relay->down;
    size_t there = w->to - w->from < size ? w->to - w->from : size;
    struct http_text trailers = {0};
    struct http_fault fault = {0};
    *content = (struct http_text){w->bytes + w->from, there};
    if (relay->body == HTTP_BODY_CHUNKED) {
        ptrdiff_t took = http_chunked_read(&relay->chunked, w->bytes + w->from, there, content,
                                           &trailers, &fault);
        if (took < 0 || !buffer_append(&relay->trailers, trailers.data, trailers.length))
            return false;
        w->from += (size_t)took;
        if (relay->chunked.state != HTTP_CHUNK_DONE)
            return true;
        ended(relay);
        return add_trailers(relay);
    }
    if (relay->body == HTTP_BODY_LENGTH) {
        if (content->length > relay->remaining)
            content->length = (size_t)relay->remaining;
        relay->remaining -= content->length;
        if (relay->remaining == 0)
            ended(relay);
    }
    w->from += content->length;
    return true;
}

static ssize_t body_read(struct api_request *r, char *out, size_t size)
{
    struct api_relay *relay = r->state;
    struct http_text content = {0};
    while (relay->phase == RELAY_BODY && content.length == 0) {
        if (!body_fill(relay)) {
            if (relay->phase == RELAY_BODY)
                want(relay);
            break;
        }
        if (!body_take(relay, size, &content)) {
            content.length = 0;
            api_relay_broke_off(relay, "its answer is not HTTP");
        }
    }
    if (content.length > 0) {
        memcpy(out, content.data, content.length);
        return (ssize_t)content.length;
    }
    return relay->broken ? API_READ_BROKEN : relay->phase == RELAY_END ? API_READ_END : 0;
}

static void upgraded_cb(void *user, struct MHD_Connection *mhd, void *request, const char *extra,
                        size_t extra_size, MHD_socket socket, struct MHD_UpgradeResponseHandle *u)
{
    struct api_request *r = request;
    struct api_relay *relay = r->state;
    (void)user;
    (void)mhd;
    relay->up.bytes = malloc(extra_size > API_RELAY_BYTES ? extra_size : API_RELAY_BYTES);
    if (relay->up.bytes == NULL) {
        (void)MHD_upgrade_action(u, MHD_UPGRADE_ACTION_CLOSE);
        return; /* the relay ends with the request */
    }
    memcpy(relay->up.bytes, extra, extra_size);
    relay->up.to = extra_size;
    relay->request = NULL;
    r->state = NULL;
    r->state_free = NULL;
    relay->connection = r->connection;
    relay->connection->relay = relay;
    relay->connection->request = NULL;
    relay->connection->deadline_ms = 0;
    relay->upgraded = u;
    relay->fd = socket;
    relay->poller = &relay->connection->poll;
    relay->phase = RELAY_OPEN;
    if (!relay->connection->listener->local)
        api_connection_prompt(socket);
    secure_stream_set_events(relay->stream, &(struct secure_events){.ready = api_relay_ready_cb},
                             relay);
    api_relay_pump(relay);
}

/* The final head became the answer of the request. */
static void answer_begin(struct api_relay *relay, const struct http_head *head)
{
    struct api_request *r = relay->request;
    const struct http_field *id = http_field_find(head, HTTP_NAME_SKERRY_REQUEST_ID);
    if (id != NULL && id->value.length < sizeof r->id)
        (void)text_format(r->id, sizeof r->id, "%.*s", (int)id->value.length, id->value.data);
    relay->phase = RELAY_BODY;
    relay->body = head->body;
    relay->remaining = head->content_length;
    http_chunked_init(&relay->chunked);
    buffer_consume(&relay->out, relay->out.length);
    r->elsewhere = true;
    if (head->status == MHD_HTTP_SWITCHING_PROTOCOLS) {
        api_answer_upgrade(r, upgraded_cb);
    } else {
        if (head->body == HTTP_BODY_NONE ||
            (head->body == HTTP_BODY_LENGTH && head->content_length == 0))
            ended(relay);
        r->read = body_read;
        api_answer_content(r, head->status,
                           head->content_length_given     ? head->content_length
                           : head->body == HTTP_BODY_NONE ? 0
                                                          : MHD_SIZE_UNKNOWN);
    }
    if (r->response != NULL)
        add_fields(relay, head);
}

/* One head out of `down`, if it is whole. False: more must come, or no more will. */
static bool head_take(struct api_relay *relay)
{
    const struct http_bounds bounds = {.head_bytes_max = API_RELAY_BYTES};
    struct relay_way *w = &relay->down;
    struct http_head *head = &relay->api->head;
    struct http_fault fault = {0};
    ptrdiff_t length =
        http_scan(&relay->scan, w->bytes + w->from, w->to - w->from, false, &bounds, &fault);
    if (length == HTTP_MORE && w->to - w->from < API_RELAY_BYTES)
        return false;
    if (length <= 0 ||
        !http_answer_parse(head, w->bytes + w->from, (size_t)length,
                           relay->request->head ? HTTP_METHOD_HEAD : HTTP_METHOD_OTHER, &fault) ||
        (head->status == MHD_HTTP_SWITCHING_PROTOCOLS && !relay->request->upgrade)) {
        api_relay_broke_off(relay, "its answer is not HTTP");
        return false;
    }
    w->from += (size_t)length;
    relay->scan = (struct http_scan){0};
    if (head->status / 100 != 1 || head->status == MHD_HTTP_SWITCHING_PROTOCOLS) {
        answer_begin(relay, head);
        return false;
    }
    if (head->status == MHD_HTTP_CONTINUE && relay->expects) {
        relay->expects = false;
        body_begin(relay);
    }
    return true;
}

static void heads_read(struct api_relay *relay)
{
    struct relay_way *w = &relay->down;
    size_t count = 0;
    if (w->from > 0) {
        memmove(w->bytes, w->bytes + w->from, w->to - w->from);
        w->to -= w->from;
        w->from = 0;
    }
    enum secure_result result =
        secure_stream_read(relay->stream, w->bytes + w->to, API_RELAY_BYTES - w->to, &count);
    w->to += count;
    if (result == SECURE_DONE)
        while (head_take(relay))
            ;
    else if (result != SECURE_BLOCKED)
        api_relay_broke_off(relay, stream_trouble(relay));
}

void api_relay_answer_ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct api_relay *relay = secure_stream_user(s);
    if (relay->request == NULL || relay->phase == RELAY_CLOSING)
        return;
    if (writable && !flush(relay))
        return;
    if (relay->full && relay->out.length < API_RELAY_BYTES / 2) {
        relay->full = false;
        api_resume(relay->request);
    }
    if (readable && relay->phase == RELAY_HEAD)
        heads_read(relay);
    else if (readable && relay->phase == RELAY_BODY)
        api_resume(relay->request);
    /* A body that is there is waited for again when the client has taken what it was given. */
    if (relay->phase == RELAY_BODY)
        secure_stream_want(s, 0);
    else
        want(relay);
}
