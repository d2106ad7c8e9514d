/* node/api/request.c - one request from its first line to its completion: what it names, who asks,
 * and how its body comes. The way is drawn in node/api/internal.h. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/log.h"
#include "node/api/internal.h"
#include "node/api/relay.h"

/* A refused request of up to this size is read to its end first: an answer before it would be lost
 * in the reset that closing a socket with unread bytes causes. */
#define REFUSED_BODY_READ_MAX (4u * 1024u * 1024u)

/* --- the target --------------------------------------------------------------------------------- */

static bool query_parse(struct api_request *r)
{
    struct err e = {0};
    if (r->target_query != NULL && (r->query_text = strdup(r->target_query)) == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return false;
    }
    if (api_query_split(r->query_text, &r->query, &r->query_count, &e) == 0)
        return true;
    api_problem(r, e.code == ERR_NO_MEMORY ? PROBLEM_INTERNAL : PROBLEM_BAD_REQUEST, "query: %s",
                e.msg);
    return false;
}

static bool query_known(struct api_request *r)
{
    for (size_t i = 0; i < r->query_count; i++) {
        if (api_word_among(r->route->query, r->query[i].name))
            continue;
        api_problem(r, PROBLEM_BAD_REQUEST, "query: unknown parameter \"%.60s\"%s%s",
                    r->query[i].name, r->route->query[0] != '\0' ? "; there are: " : "",
                    r->route->query);
        return false;
    }
    return true;
}

static void refuse_method(struct api_request *r)
{
    char methods[64];
    api_route_methods(r->target, strlen(r->target), methods, sizeof methods);
    api_problem(r, PROBLEM_METHOD_NOT_ALLOWED, "%s is not allowed on %.200s; there are: %s",
                r->method, r->target, methods);
    if (r->response != NULL)
        api_header_add(r, "Allow", methods);
}

/* Splits the target and finds the route. */
static bool route_find(struct api_request *r)
{
    if (r->target == NULL || r->path == NULL) {
        api_problem(r, PROBLEM_URI_TOO_LONG, "the target is longer than %u bytes",
                    API_TARGET_LENGTH_MAX);
        return false;
    }
    char *query = strchr(r->target, '?');
    if (query != NULL)
        *query++ = '\0';
    r->target_query = query;
    const char *parameter = NULL;
    size_t length = 0;
    bool known = false;
    const char *method = r->head ? "GET" : r->method;
    r->route = api_route_find(method, r->target, strlen(r->target), &parameter, &length, &known);
    if (r->route == NULL || (r->head && r->route->streams)) {
        if (known || r->route != NULL)
            refuse_method(r);
        else
            api_problem(r, PROBLEM_NOT_FOUND,
                        "nothing at %.200s; docs/openapi.yaml lists what there is", r->target);
        r->route = NULL;
        return false;
    }
    if (parameter != NULL) {
        r->parameter = strndup(parameter, length);
        if (r->parameter == NULL || !api_text_decode(r->parameter, false)) {
            api_problem(r, PROBLEM_BAD_REQUEST, "path: bad encoding");
            return false;
        }
    }
    return true;
}

/* --- the body ----------------------------------------------------------------------------------- */

static void read_headers(struct api_request *r)
{
    const char *accept = api_header(r, "Accept");
    if (api_list_has(accept, "text/event-stream"))
        r->accept = API_ACCEPT_EVENTS;
    else if (api_list_has(accept, "application/x-ndjson"))
        r->accept = API_ACCEPT_LINES;
    else if (api_list_has(accept, "application/json"))
        r->accept = API_ACCEPT_JSON;
    r->json = api_list_has(api_header(r, "Content-Type"), "application/json");
    r->upgrade = api_list_has(api_header(r, "Connection"), "upgrade") &&
                 api_list_has(api_header(r, "Upgrade"), "skerry-exec/1");
}

uint64_t api_request_body_length(const struct api_request *r)
{
    if (api_header(r, "Transfer-Encoding") != NULL)
        return UINT64_MAX;
    const char *length = api_header(r, "Content-Length");
    return length == NULL ? 0 : strtoull(length, NULL, 10);
}

static bool body_check(struct api_request *r, uint64_t length)
{
    r->body_kind = r->route->body;
    if (r->body_kind == API_BODY_COMMAND)
        r->body_kind = r->json || r->upgrade ? API_BODY_TEXT : API_BODY_STREAM;
    uint64_t max =
        r->body_kind == API_BODY_STREAM ? r->api->options.upload_bytes_max : API_BODY_BYTES_MAX;
    if (length == UINT64_MAX || length <= max)
        return true;
    api_problem(r, PROBLEM_BODY_TOO_LARGE, "the body may have %llu bytes", (unsigned long long)max);
    return false;
}

struct header_sum {
    size_t bytes;
    unsigned lengths, codings;
};

static enum MHD_Result sum_header(void *user, enum MHD_ValueKind kind, const char *name,
                                  const char *value)
{
    struct header_sum *sum = user;
    (void)kind;
    sum->bytes += strlen(name) + (value == NULL ? 0 : strlen(value)) + strlen(": \r\n");
    sum->lengths += strcasecmp(name, "Content-Length") == 0;
    sum->codings += strcasecmp(name, "Transfer-Encoding") == 0;
    return MHD_YES;
}

/* What libmicrohttpd does not refuse, on connections that are used again. */
static bool header_check(struct api_request *r)
{
    struct header_sum sum = {0};
    (void)MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, sum_header, &sum);
    const char *coding = api_header(r, "Transfer-Encoding");
    if (sum.bytes > API_HEADER_BYTES_MAX)
        api_problem(r, PROBLEM_HEADER_TOO_LARGE, "the header block may have %u bytes",
                    API_HEADER_BYTES_MAX);
    else if (sum.lengths + sum.codings > 1)
        api_problem(r, PROBLEM_BAD_REQUEST, "more than one length, or one beside a coding");
    else if (coding != NULL && strcasecmp(coding, "chunked") != 0)
        api_problem(r, PROBLEM_NOT_IMPLEMENTED, "the only transfer coding is chunked");
    return r->response == NULL;
}

static enum MHD_Result queue(struct api_request *r)
{
    r->queued = true;
    return MHD_queue_response(r->mhd, r->status, r->response);
}

/* A refusal that need not wait for the body. */
static bool refuse_now(const struct api_request *r)
{
    uint64_t length = api_request_body_length(r);
    return r->response != NULL && length != 0 &&
           (length > REFUSED_BODY_READ_MAX || api_header(r, "Expect") != NULL);
}

/* Whether it may be served here; else a problem was answered. */
static bool local_check(struct api_request *r)
{
    return query_parse(r) && query_known(r) && api_origin_check(r) && api_authorize(r) &&
           body_check(r, api_request_body_length(r));
}

void api_request_keep(struct api_request *r)
{
    if (local_check(r) && r->body_kind == API_BODY_STREAM)
        r->route->handle(r);
    api_resume(r);
}

static enum MHD_Result begin(struct api_request *r)
{
    uint64_t length = api_request_body_length(r);
    uint64_t now = clock_monotonic_ms();
    r->begun = true;
    r->has_body = length != 0;
    r->connection->deadline_ms = 0;
    read_headers(r);
    if (header_check(r) && route_find(r) && !api_relay_begin(r) && local_check(r) &&
        r->body_kind == API_BODY_STREAM)
        r->route->handle(r);
    if (r->gone)
        return MHD_NO;
    if (refuse_now(r))
        return queue(r);
    if (r->body_kind == API_BODY_STREAM && r->response == NULL && r->upload == NULL) {
        r->begin_again = true;
        api_request_suspend(r);
    } else if (length != 0 && r->body_kind != API_BODY_STREAM) {
        r->connection->deadline_ms = now + r->api->options.body_timeout_ms;
    }
    return MHD_YES;
}

static enum MHD_Result take(struct api_request *r, const char *data, size_t *size)
{
    size_t offered = *size;
    if (r->gone)
        return MHD_NO;
    r->received += offered;
    if (r->response == NULL && r->body_kind == API_BODY_STREAM &&
        r->received > r->api->options.upload_bytes_max)
        api_problem(r, PROBLEM_BODY_TOO_LARGE, "the body may have %llu bytes",
                    (unsigned long long)r->api->options.upload_bytes_max);
    if (r->response == NULL && r->upload != NULL) {
        size_t taken = r->upload(r, data, offered);
        r->received -= offered - taken;
        *size = offered - taken;
        if (r->gone)
            return MHD_NO;
        if (*size > 0 && r->response == NULL)
            api_request_suspend(r);
        return MHD_YES;
    }
    *size = 0;
    if (r->response == NULL && r->body_kind == API_BODY_TEXT) {
        if (!buffer_append(&r->body, data, offered))
            api_problem(r, PROBLEM_BODY_TOO_LARGE, "the body may have %u bytes",
                        API_BODY_BYTES_MAX);
        return MHD_YES;
    }
    r->discarded += offered;
    return r->discarded > API_DISCARD_BYTES_MAX ? MHD_NO : MHD_YES;
}

/* Behind the body, and again after each resume. */
static enum MHD_Result finish(struct api_request *r)
{
    /* A connection that was suspended before its body is asked once more before it. */
    if (r->begin_again) {
        r->begin_again = false;
        return r->gone ? MHD_NO : refuse_now(r) ? queue(r) : MHD_YES;
    }
    if (!r->body_complete && !r->gone) {
        r->body_complete = true;
        r->connection->deadline_ms = 0;
        if (r->response == NULL && r->body_kind != API_BODY_STREAM)
            api_read_then_handle(r);
        else if (r->response == NULL && r->upload_end != NULL)
            r->upload_end(r);
    }
    if (r->gone)
        return MHD_NO;
    if (r->response != NULL)
        return r->queued ? MHD_YES : queue(r);
    api_request_suspend(r);
    return MHD_YES;
}

/* --- what libmicrohttpd calls ------------------------------------------------------------------- */

void api_request_id(struct api *api, char out[GATEWAY_REQUEST_ID_SIZE])
{
    enum { ID_BYTES = 6 };
    char hex[ID_BYTES * 2 + 1];
    if (api->random_left < ID_BYTES) {
        randombytes_buf(api->random, sizeof(api->random));
        api->random_left = sizeof(api->random);
    }
    api->random_left -= ID_BYTES;
    (void)sodium_bin2hex(hex, sizeof(hex), api->random + api->random_left, ID_BYTES);
    (void)text_format(out, GATEWAY_REQUEST_ID_SIZE, "r-%s", hex);
}

void *api_request_uri_cb(void *user, const char *uri, struct MHD_Connection *mhd)
{
    struct api_listener *l = user;
    struct api_request *r = calloc(1, sizeof(*r));
    if (r == NULL)
        return NULL;
    r->api = l->api;
    r->mhd = mhd;
    r->connection =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    buffer_init(&r->body, API_BODY_BYTES_MAX);
    api_request_id(r->api, r->id);
    if (strlen(uri) <= API_TARGET_LENGTH_MAX) {
        r->target = strdup(uri);
        r->path = strndup(uri, strcspn(uri, "?"));
    }
    /* It is for logs and `explain`, which end up on terminals. */
    for (char *c = r->path; c != NULL && *c != '\0'; c++)
        if (*c <= ' ' || *c > '~')
            *c = '?';
    if (r->connection != NULL) {
        r->connection->request = r;
        r->connection->deadline_ms = clock_monotonic_ms() + r->api->options.header_timeout_ms;
    }
    return r;
}

enum MHD_Result api_request_access_cb(void *user, struct MHD_Connection *mhd, const char *url,
                                      const char *method, const char *version, const char *data,
                                      size_t *size, void **request)
{
    struct api_request *r = *request;
    (void)user;
    (void)mhd;
    (void)url;
    (void)version;
    if (r == NULL || r->connection == NULL)
        return MHD_NO;
    if (!r->begun) {
        (void)text_copy(r->method, sizeof(r->method), method);
        r->head = strcmp(method, "HEAD") == 0;
        return begin(r);
    }
    if (*size > 0) {
        r->begin_again = false;
        return take(r, data, size);
    }
    return finish(r);
}

void api_request_completed_cb(void *user, struct MHD_Connection *mhd, void **request,
                              enum MHD_RequestTerminationCode code)
{
    struct api_request *r = *request;
    (void)user;
    (void)mhd;
    if (r == NULL)
        return;
    *request = NULL;
    bool whole = code == MHD_REQUEST_TERMINATED_COMPLETED_OK && r->status != 0;
    r->api->requests_total[whole ? r->status / 100 : 0]++;
    if (r->connection != NULL && r->connection->duplex == NULL && r->connection->port == NULL &&
        r->connection->relay == NULL) {
        r->connection->request = NULL;
        r->connection->deadline_ms = clock_monotonic_ms() + r->api->options.keepalive_timeout_ms;
    }
    log_debug("api", "%s %.100s %u request %s", r->method, r->path == NULL ? "" : r->path,
              r->status, r->id);
    api_settle_cancel(r);
    api_events_leave(r);
    if (r->ask != NULL)
        api_ask_leave(r->ask);
    if (r->state_free != NULL)
        r->state_free(r);
    if (r->response != NULL)
        MHD_destroy_response(r->response);
    buffer_free(&r->body);
    free(r->query);
    free(r->parameter);
    free(r->path);
    free(r->target);
    free(r->query_text);
    free(r);
}

/* --- suspended ---------------------------------------------------------------------------------- */

static void hangup_cb(uv_poll_t *poll, int status, int events)
{
    struct api_connection *c = poll->data;
    (void)status;
    (void)events;
    api_dirty(c->listener->api);
    (void)uv_poll_stop(poll);
    if (c->request != NULL)
        api_request_gone(c->request);
}

void api_request_suspend(struct api_request *r)
{
    if (r->suspended)
        return;
    r->suspended = true;
    MHD_suspend_connection(r->mhd);
    /* libmicrohttpd does not see a suspended connection close. */
    if (r->watched)
        (void)uv_poll_start(&r->connection->poll, UV_DISCONNECT, hangup_cb);
}

void api_resume(struct api_request *r)
{
    if (!r->suspended)
        return;
    r->suspended = false;
    if (r->watched)
        (void)uv_poll_stop(&r->connection->poll);
    MHD_resume_connection(r->mhd);
    api_listener_ready(r->connection->listener);
}

void api_request_gone(struct api_request *r)
{
    r->gone = true;
    api_resume(r);
}
