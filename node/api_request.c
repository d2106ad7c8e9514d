/* node/api_request.c - one request from its first line to its completion: what it names, who asks,
 * and how its body comes. The way is drawn in api_internal.h. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/log.h"
#include "node/api_internal.h"

/* A refused request of up to this size is read to its end first: an answer before it would be lost
 * in the reset that closing a socket with unread bytes causes. */
#define REFUSED_BODY_READ_MAX (1024u * 1024u)

/* --- parameters --------------------------------------------------------------------------------- */

const char *api_query(const struct api_request *r, const char *name)
{
    for (size_t i = 0; i < r->query_count; i++)
        if (strcmp(r->query[i].name, name) == 0)
            return r->query[i].value;
    return NULL;
}

bool api_query_flag(struct api_request *r, const char *name, bool *out)
{
    const char *value = api_query(r, name);
    if (value == NULL)
        return true;
    if (strcmp(value, "0") != 0 && strcmp(value, "1") != 0) {
        api_problem(r, PROBLEM_BAD_REQUEST, "%s=%.40s: 0 or 1", name, value);
        return false;
    }
    *out = value[0] == '1';
    return true;
}

bool api_query_number(struct api_request *r, const char *name, uint64_t max, uint64_t *out)
{
    const char *value = api_query(r, name);
    if (value == NULL)
        return true;
    char *end;
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    if (!isdigit((unsigned char)value[0]) || *end != '\0' || errno != 0 || number > max) {
        api_problem(r, PROBLEM_BAD_REQUEST, "%s=%.40s: a number up to %llu", name, value,
                    (unsigned long long)max);
        return false;
    }
    *out = number;
    return true;
}

const char *api_header(const struct api_request *r, const char *name)
{
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

/* Whether `word` stands between the spaces of `words`. */
static bool word_among(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = words; at != NULL && *at != '\0';) {
        size_t step = strcspn(at, " ");
        if (step == length && memcmp(at, word, length) == 0)
            return true;
        at += step;
        at += strspn(at, " ");
    }
    return false;
}

json_t *api_body_json(struct api_request *r, const char *members)
{
    json_error_t error;
    json_t *json = json_loadb(r->body.data == NULL ? "" : r->body.data, r->body.length,
                              JSON_REJECT_DUPLICATES, &error);
    if (json == NULL) {
        api_problem(r, PROBLEM_BAD_REQUEST, "body: not JSON, line %d: %s", error.line, error.text);
        return NULL;
    }
    const char *key = NULL;
    json_t *value;
    if (!json_is_object(json)) {
        api_problem(r, PROBLEM_BAD_REQUEST, "body: must be a JSON object");
        json_decref(json);
        return NULL;
    }
    json_object_foreach(json, key, value) if (!word_among(members, key))
    {
        api_problem(r, PROBLEM_BAD_REQUEST, "body: unknown member \"%.60s\"; there are: %s", key,
                    members);
        json_decref(json);
        return NULL;
    }
    return json;
}

bool api_json_text(struct api_request *r, const json_t *object, const char *name, const char **out)
{
    const json_t *value = json_object_get(object, name);
    *out = NULL;
    if (value == NULL || json_is_null(value))
        return true;
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value)) {
        api_problem(r, PROBLEM_BAD_REQUEST, "body: %s must be a text", name);
        return false;
    }
    *out = json_string_value(value);
    return true;
}

/* --- the target --------------------------------------------------------------------------------- */

static int hex_value(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Decodes %XX in place (and + as a space in a query); false for what is not so, and for NUL. */
static bool decode(char *text, bool plus)
{
    char *out = text;
    for (const char *in = text; *in != '\0'; in++) {
        char c = *in;
        if (c == '%') {
            int high = hex_value(in[1]);
            int low = high < 0 ? -1 : hex_value(in[2]);
            if (low < 0 || high * 16 + low == 0)
                return false;
            c = (char)(high * 16 + low);
            in += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        *out++ = c;
    }
    *out = '\0';
    return true;
}

static bool query_parse(struct api_request *r, char *query)
{
    if (query == NULL || *query == '\0')
        return true;
    size_t pairs = 1;
    for (const char *c = query; *c != '\0'; c++)
        pairs += *c == '&';
    if (pairs > API_QUERY_MAX) {
        api_problem(r, PROBLEM_BAD_REQUEST, "query: more than %u parameters", API_QUERY_MAX);
        return false;
    }
    r->query = calloc(pairs, sizeof(*r->query));
    if (r->query == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return false;
    }
    char *rest = query;
    char *pair;
    while ((pair = strsep(&rest, "&")) != NULL) {
        char *value = strchr(pair, '=');
        if (value != NULL)
            *value++ = '\0';
        if (pair[0] == '\0' || !decode(pair, true) || (value != NULL && !decode(value, true))) {
            api_problem(r, PROBLEM_BAD_REQUEST, "query: bad encoding");
            return false;
        }
        r->query[r->query_count++] = (struct api_query){pair, value == NULL ? "" : value};
    }
    return true;
}

static bool query_known(struct api_request *r)
{
    for (size_t i = 0; i < r->query_count; i++) {
        if (word_among(r->route->query, r->query[i].name))
            continue;
        api_problem(r, PROBLEM_BAD_REQUEST, "query: unknown parameter \"%.60s\"%s%s",
                    r->query[i].name, r->route->query[0] != '\0' ? "; there are: " : "",
                    r->route->query);
        return false;
    }
    return true;
}

/* Splits the target and finds the route. */
static bool target_parse(struct api_request *r)
{
    if (r->target == NULL || r->path == NULL) {
        api_problem(r, PROBLEM_URI_TOO_LONG, "the target is longer than %u bytes",
                    API_TARGET_LENGTH_MAX);
        return false;
    }
    char *query = strchr(r->target, '?');
    if (query != NULL)
        *query++ = '\0';
    const char *parameter = NULL;
    size_t length = 0;
    bool known = false;
    const char *method = r->head ? "GET" : r->method;
    r->route = api_route_find(method, r->target, strlen(r->target), &parameter, &length, &known);
    if (r->route == NULL || (r->head && r->route->streams)) {
        if (known || r->route != NULL)
            api_problem(r, PROBLEM_METHOD_NOT_ALLOWED, "%s is not allowed on %.200s", r->method,
                        r->target);
        else
            api_problem(r, PROBLEM_NOT_FOUND,
                        "nothing at %.200s; docs/openapi.yaml lists what there is", r->target);
        r->route = NULL;
        return false;
    }
    if (parameter != NULL) {
        r->parameter = strndup(parameter, length);
        if (r->parameter == NULL || !decode(r->parameter, false)) {
            api_problem(r, PROBLEM_BAD_REQUEST, "path: bad encoding");
            return false;
        }
    }
    return query_parse(r, query) && query_known(r);
}

/* --- who asks ----------------------------------------------------------------------------------- */

/* The name in "name", "name:port", "1.2.3.4:port" or "[::1]:port". */
static bool host_name(const char *host, char *out, size_t size)
{
    size_t length = strcspn(host, ":");
    if (host[0] == '[') {
        const char *end = strchr(host, ']');
        if (end == NULL)
            return false;
        host++;
        length = (size_t)(end - host);
    }
    if (length == 0 || length >= size)
        return false;
    memcpy(out, host, length);
    out[length] = '\0';
    return true;
}

/* A page that resolves its own name to this address (DNS rebinding) sends that name. */
static bool host_allowed(const struct api *api, const char *host)
{
    char name[256];
    unsigned char address[16];
    if (host == NULL || !host_name(host, name, sizeof(name)))
        return false;
    if (inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1 ||
        strcasecmp(name, "localhost") == 0)
        return true;
    for (size_t i = 0; api->hosts[i] != NULL; i++)
        if (strcasecmp(name, api->hosts[i]) == 0)
            return true;
    return false;
}

static bool origin_check(struct api_request *r)
{
    if (r->connection->listener->local)
        return true;
    const char *host = api_header(r, "Host");
    if (!host_allowed(r->api, host)) {
        api_problem(r, PROBLEM_FORBIDDEN,
                    "Host %.100s is not one of this API's; use its IP address or localhost",
                    host == NULL ? "(none)" : host);
        return false;
    }
    const char *origin = api_header(r, "Origin");
    char own[300];
    if (origin == NULL)
        return true;
    (void)text_format(own, sizeof(own), "http://%s", host);
    if (strcasecmp(origin, own) == 0)
        return true;
    api_problem(r, PROBLEM_FORBIDDEN, "requests of web pages elsewhere are refused");
    return false;
}

/* Skerry-Token, else Authorization: Bearer skt_...; NULL: none. */
static const char *token_of(const struct api_request *r)
{
    const char *token = api_header(r, "Skerry-Token");
    if (token != NULL)
        return token;
    const char *authorization = api_header(r, "Authorization");
    if (authorization == NULL || strncasecmp(authorization, "Bearer ", 7) != 0)
        return NULL;
    authorization += 7;
    authorization += strspn(authorization, " ");
    return authorization;
}

static void log_refused(const struct api_request *r, const char *token, enum problem problem)
{
    /* The part before the secret is public: 16 characters behind "skt_". */
    char id[17] = "";
    if (token != NULL && strncmp(token, "skt_", 4) == 0 && strlen(token) > 21)
        for (size_t i = 0; i < 16 && isalnum((unsigned char)token[4 + i]); i++)
            id[i] = token[4 + i];
    log_warn("api", "%s: %s %.100s from %s, request %s, token %s", problem_word(problem)->code,
             r->method, r->path, r->connection->peer, r->id,
             token == NULL   ? "none"
             : id[0] != '\0' ? id
                             : "malformed");
}

/* The most that the token allows on what the request is about. `workload`: what its body names. */
static enum problem role_of(struct api_request *r, const struct registry_root *root,
                            const char *token, const char *workload)
{
    const struct api_calls *calls = &r->api->options.calls;
    const char *instance = NULL;
    if (r->route->scope == API_SCOPE_WORKLOAD)
        workload = r->parameter;
    if (r->route->scope == API_SCOPE_QUERY)
        workload = api_query(r, "workload");
    if (r->route->scope == API_SCOPE_INSTANCE) {
        const struct registry_instance *i =
            registry_root_instance(root, r->parameter, strlen(r->parameter));
        instance = r->parameter;
        workload = i == NULL ? NULL : i->workload;
    }
    enum problem problem = PROBLEM_UNAUTHORIZED;
    for (int role = TOKEN_ROLE_ADMIN; role <= TOKEN_ROLE_INVOKE; role++) {
        problem = calls->authorize(calls->user, root, token, token == NULL ? 0 : strlen(token),
                                   (enum token_role)role, workload, instance, clock_wall_ms());
        if (problem == PROBLEM_NONE) {
            r->role = (enum token_role)role;
            return PROBLEM_NONE;
        }
        if (problem == PROBLEM_UNAUTHORIZED)
            break;
    }
    return problem;
}

/* `later`: it is known, and what it may is asked again with api_may. */
static bool allowed(struct api_request *r, enum token_role need, const char *workload, bool later)
{
    const struct api_calls *calls = &r->api->options.calls;
    const char *token = token_of(r);
    r->role = TOKEN_ROLE_ADMIN;
    if (token == NULL && r->connection->trusted)
        return true;
    struct registry_root *root = calls->root(calls->user);
    enum problem problem = role_of(r, root, token, workload);
    calls->root_return(calls->user, root);
    if (problem == PROBLEM_NONE && r->role > need)
        problem = PROBLEM_FORBIDDEN;
    if (problem == PROBLEM_NONE || (later && problem == PROBLEM_FORBIDDEN))
        return true;
    log_refused(r, token, problem);
    api_problem(r, problem, "%s",
                problem == PROBLEM_FORBIDDEN ? "the token's role or scope does not allow this"
                : token == NULL ? "no token: send Skerry-Token, or Authorization: Bearer"
                                : "the token is not valid, or no longer");
    return false;
}

static bool authorize(struct api_request *r)
{
    if (r->route->open)
        return true;
    return allowed(r, r->route->need, NULL, r->route->scope == API_SCOPE_BODY);
}

bool api_may(struct api_request *r, enum token_role need, const char *workload)
{
    return allowed(r, need, workload, false);
}

/* --- the body ----------------------------------------------------------------------------------- */

static bool list_has(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; at != NULL && *at != '\0';) {
        at += strspn(at, " \t,");
        size_t step = strcspn(at, " \t,;");
        if (step == length && strncasecmp(at, word, length) == 0)
            return true;
        at += strcspn(at, ",");
    }
    return false;
}

static void read_headers(struct api_request *r)
{
    const char *accept = api_header(r, "Accept");
    if (list_has(accept, "text/event-stream"))
        r->accept = API_ACCEPT_EVENTS;
    else if (list_has(accept, "application/x-ndjson"))
        r->accept = API_ACCEPT_LINES;
    else if (list_has(accept, "application/json"))
        r->accept = API_ACCEPT_JSON;
    r->json = list_has(api_header(r, "Content-Type"), "application/json");
    r->upgrade = list_has(api_header(r, "Connection"), "upgrade") &&
                 list_has(api_header(r, "Upgrade"), "skerry-exec/1");
}

/* UINT64_MAX: chunked; 0: none. */
static uint64_t body_length(const struct api_request *r)
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

static enum MHD_Result queue(struct api_request *r)
{
    r->queued = true;
    return MHD_queue_response(r->mhd, r->status, r->response);
}

/* A refusal that need not wait for the body. */
static bool refuse_now(const struct api_request *r)
{
    uint64_t length = body_length(r);
    return r->response != NULL && length != 0 &&
           (length > REFUSED_BODY_READ_MAX || api_header(r, "Expect") != NULL);
}

static enum MHD_Result begin(struct api_request *r)
{
    uint64_t length = body_length(r);
    uint64_t now = clock_monotonic_ms();
    r->begun = true;
    r->has_body = length != 0;
    r->connection->deadline_ms = 0;
    read_headers(r);
    if (target_parse(r) && origin_check(r) && authorize(r) && body_check(r, length) &&
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
            r->route->handle(r);
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

static void make_id(char out[GATEWAY_REQUEST_ID_SIZE])
{
    uint8_t random[6];
    randombytes_buf(random, sizeof(random));
    char hex[sizeof(random) * 2 + 1];
    (void)sodium_bin2hex(hex, sizeof(hex), random, sizeof(random));
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
    make_id(r->id);
    if (strlen(uri) <= API_TARGET_LENGTH_MAX) {
        r->target = strdup(uri);
        r->path = strndup(uri, strcspn(uri, "?"));
    }
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
    if (r->connection != NULL && r->connection->duplex == NULL) {
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
    if (r->watched && r->connection->polled)
        (void)uv_poll_start(&r->connection->poll, UV_DISCONNECT, hangup_cb);
}

void api_resume(struct api_request *r)
{
    if (!r->suspended)
        return;
    r->suspended = false;
    if (r->connection->polled)
        (void)uv_poll_stop(&r->connection->poll);
    MHD_resume_connection(r->mhd);
    api_dirty(r->api);
}

void api_request_gone(struct api_request *r)
{
    r->gone = true;
    api_resume(r);
}
