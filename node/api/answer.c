/* node/api/answer.c - what goes back: JSON, text, streams, and problems (RFC 9457). */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "gateway/problem.h"
#include "node/api/internal.h"

#define STREAM_IDLE_S 3600u

void api_header_add(struct api_request *r, const char *name, const char *value)
{
    /* Refused are line ends only; none of ours hold any. */
    (void)MHD_add_response_header(r->response, name, value);
}

static void answer_set(struct api_request *r, unsigned status, struct MHD_Response *response)
{
    if (r->response != NULL || response == NULL) {
        /* Without memory even for that, the connection ends. */
        if (response == NULL)
            api_request_gone(r);
        else
            MHD_destroy_response(response);
        return;
    }
    r->response = response;
    r->status = status;
    if (!r->elsewhere) {
        api_header_add(r, "Skerry-Request-Id", r->id);
        api_header_add(r, "Cache-Control", "no-store");
        api_header_add(r, "X-Content-Type-Options", "nosniff");
    }
    /* What another node passes on is one request; its stream ends with the answer. */
    if (status != MHD_HTTP_SWITCHING_PROTOCOLS && r->connection->relayed)
        api_header_add(r, "Connection", "close");
    api_resume(r);
}

void api_answer_text(struct api_request *r, unsigned status, const char *type, const char *text,
                     size_t length)
{
    union {
        const char *in;
        void *out;
    } body = {.in = text}; /* copied by libmicrohttpd, which does not say const */
    answer_set(r, status, MHD_create_response_from_buffer(length, body.out, MHD_RESPMEM_MUST_COPY));
    if (r->response != NULL)
        api_header_add(r, "Content-Type", type);
}

void api_answer_file(struct api_request *r, const char *type, int fd, uint64_t size)
{
    struct MHD_Response *response = MHD_create_response_from_fd64(size, fd);
    if (response == NULL)
        memory_close(&fd);
    answer_set(r, MHD_HTTP_OK, response);
    if (r->response != NULL)
        api_header_add(r, "Content-Type", type);
}

void api_answer_empty(struct api_request *r, unsigned status)
{
    answer_set(r, status, MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT));
}

void api_warn(json_t *json, const char *warning)
{
    if (warning[0] != '\0')
        (void)json_object_set_new(json, "warning", json_string(warning));
}

void api_answer_json(struct api_request *r, unsigned status, json_t *json)
{
    char *text = json == NULL ? NULL : json_dumps(json, API_JSON_FLAGS);
    json_decref(json);
    if (r->response != NULL) {
        free(text);
        return;
    }
    if (text == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return;
    }
    answer_set(r, status,
               MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE));
    if (r->response != NULL)
        api_header_add(r, "Content-Type", "application/json");
}

void api_answer_json_header(struct api_request *r, unsigned status, json_t *json, const char *name,
                            const char *value)
{
    bool first = r->response == NULL;
    api_answer_json(r, status, json);
    if (first && r->response != NULL)
        api_header_add(r, name, value);
}

/* --- streams ------------------------------------------------------------------------------------ */

static ssize_t read_cb(void *user, uint64_t position, char *out, size_t size)
{
    struct api_request *r = user;
    (void)position;
    if (r->gone)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    ssize_t count = r->read(r, out, size);
    if (count > 0)
        return count;
    if (count == API_READ_END)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (count == API_READ_BROKEN || r->gone)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    api_request_suspend(r);
    return 0;
}

void api_answer_content(struct api_request *r, unsigned status, uint64_t size)
{
    /* A pager may keep a log waiting for long. */
    if (size == MHD_SIZE_UNKNOWN)
        (void)MHD_set_connection_option(r->mhd, MHD_CONNECTION_OPTION_TIMEOUT, STREAM_IDLE_S);
    answer_set(r, status, MHD_create_response_from_callback(size, 65536, read_cb, r, NULL));
}

void api_answer_stream(struct api_request *r, const char *type)
{
    api_answer_content(r, MHD_HTTP_OK, MHD_SIZE_UNKNOWN);
    if (r->response != NULL)
        api_header_add(r, "Content-Type", type);
}

void api_answer_upgrade(struct api_request *r, MHD_UpgradeHandler upgraded)
{
    answer_set(r, MHD_HTTP_SWITCHING_PROTOCOLS, MHD_create_response_for_upgrade(upgraded, r));
}

/* --- problems ----------------------------------------------------------------------------------- */

void api_problem_of(struct api_request *r, const struct api_trouble *t)
{
    if (r->response != NULL)
        return;
    const struct problem_word *word = problem_word(t->problem);
    struct problem_report report = {
        .problem = t->problem,
        .ran = t->ran,
        .retry_after_s = t->retry_after_s,
        .detail = t->detail != NULL && t->detail[0] != '\0' ? t->detail : word->title,
        .request_id = r->id,
        .instance = t->instance,
        .reason = t->reason};
    struct buffer body;
    buffer_init(&body, PROBLEM_BODY_BYTES_MAX);
    if (problem_body(&body, &report))
        api_answer_text(r, (unsigned)word->status, PROBLEM_CONTENT_TYPE, body.data, body.length);
    else
        api_request_gone(r);
    buffer_free(&body);
    if (r->response == NULL)
        return;
    api_header_add(r, "Skerry-Error", word->code);
    unsigned retry_after_s = problem_retry_after_s(&report);
    if (retry_after_s != 0) {
        char seconds[16];
        (void)text_format(seconds, sizeof(seconds), "%u", retry_after_s);
        api_header_add(r, "Retry-After", seconds);
    }
    if (t->problem == PROBLEM_UNAUTHORIZED)
        api_header_add(r, "WWW-Authenticate", "Bearer realm=\"skerry\"");
}

void api_problem(struct api_request *r, enum problem problem, const char *format, ...)
{
    char detail[512];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(detail, sizeof(detail), format, args);
    va_end(args);
    api_problem_of(r, &(struct api_trouble){.problem = problem, .detail = detail});
}

/* --- small values ------------------------------------------------------------------------------- */

json_t *api_time(uint64_t wall_ms)
{
    char text[CLOCK_RFC3339_SIZE];
    if (wall_ms == 0)
        return json_null();
    clock_format_rfc3339(wall_ms, text);
    return json_string(text);
}

json_t *api_text_or_null(const char *text)
{
    return text == NULL || text[0] == '\0' ? json_null() : api_text_lossy(text, strlen(text));
}

json_t *api_text_lossy(const char *bytes, size_t length)
{
    json_t *plain = json_stringn(bytes, length);
    if (plain != NULL)
        return plain;
    struct buffer text;
    buffer_init(&text, length * 6 + 3);
    if (result_json_text(&text, bytes, length))
        plain = json_loadb(text.data, text.length, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    buffer_free(&text);
    return plain;
}
