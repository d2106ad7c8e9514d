/* node/api/logs.c - what an instance wrote to stdout and stderr.
 *
 * The worker's thread reads and formats a piece at a time into `piece`; the answer takes it from
 * there. While a job is on its way everything but `request` is the worker's. Followed logs are read
 * again each FOLLOW_MS, until the instance has ended and nothing more came. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "node/api/internal.h"
#include "node/api/worker.h"
#include "sandbox/log_reader.h"

#define FOLLOW_MS 150u
#define PIECE_BYTES 65536u
#define LINE_BYTES_MAX 8192u /* a longer line goes in parts */

struct logs {
    struct api_job job;
    uv_timer_t timer;
    struct api_request *request; /* NULL: left */
    struct api *api;
    bool busy, closing;
    struct instance_id id;
    char directory[256];
    struct log_reader_options options;
    enum api_accept form; /* ANY: plain bytes */
    unsigned stream;      /* enum log_stream, 0: both */
    bool follow;

    struct log_reader *reader;
    struct buffer piece;
    size_t sent;
    struct buffer lines[2]; /* begun and not ended, by stream */
    uint64_t line_wall_ms[2];
    size_t line_seen[2]; /* its length when nothing more came the last time */
    bool drained;        /* nothing more is there now */
    bool failed;
    bool ended;      /* the instance: the next time nothing is there is the last */
    bool last, done; /* the job is the last one; all was written to `piece` */
};

/* --- on the worker's thread --------------------------------------------------------------------- */

static const char *stream_name(unsigned which)
{
    return which == 0 ? "stdout" : "stderr";
}

static bool write_line(struct logs *l, unsigned which, bool partial)
{
    struct buffer *line = &l->lines[which];
    char time[CLOCK_RFC3339_SIZE];
    clock_format_rfc3339(l->line_wall_ms[which], time);
    size_t length = line->length;
    if (!partial && length > 0 && line->data[length - 1] == '\r')
        length--;
    bool events = l->form == API_ACCEPT_EVENTS;
    bool done = (!events || buffer_printf(&l->piece, "event: %s\ndata: ", stream_name(which))) &&
                buffer_printf(&l->piece, "{\"time\":\"%s\",\"stream\":\"%s\",\"text\":", time,
                              stream_name(which)) &&
                result_json_text(&l->piece, line->data == NULL ? "" : line->data, length) &&
                buffer_append_text(&l->piece, partial ? ",\"partial\":true}\n" : "}\n") &&
                (!events || buffer_append_text(&l->piece, "\n"));
    buffer_consume(line, line->length);
    l->line_seen[which] = 0;
    return done;
}

static bool write_lines(struct logs *l, unsigned which, const struct log_record *record)
{
    const char *data = (const char *)record->data;
    size_t left = record->length;
    struct buffer *line = &l->lines[which];
    while (left > 0) {
        const char *end = memchr(data, '\n', left);
        size_t length = end == NULL ? left : (size_t)(end - data);
        bool whole = end != NULL;
        if (length > LINE_BYTES_MAX - line->length) {
            length = LINE_BYTES_MAX - line->length;
            whole = false;
        }
        if (line->length == 0)
            l->line_wall_ms[which] = record->wall_ms;
        if (!buffer_append(line, data, length))
            return false;
        if ((whole || line->length == LINE_BYTES_MAX) && !write_line(l, which, !whole))
            return false;
        data += length + whole;
        left -= length + whole;
    }
    return true;
}

static bool write_record(struct logs *l, const struct log_record *record)
{
    if (l->stream != 0 && l->stream != (unsigned)record->stream)
        return true;
    if (l->form == API_ACCEPT_ANY)
        return buffer_append(&l->piece, record->data, record->length);
    return write_lines(l, record->stream == LOG_STREAM_STDERR, record);
}

/* Lines without an end: all of them at the end of the log, else those to which nothing was added
 * since the last look (a prompt). */
static bool flush_lines(struct logs *l, bool all)
{
    for (unsigned which = 0; which < 2; which++) {
        size_t length = l->lines[which].length;
        bool stale = length > 0 && l->line_seen[which] == length;
        l->line_seen[which] = length;
        if (length > 0 && (all || stale) && !write_line(l, which, !all))
            return false;
    }
    return true;
}

static void read_piece(struct api_job *job)
{
    struct logs *l = container_of(job, struct logs, job);
    struct err e = {0};
    int found = 0;
    l->drained = false;
    if (l->reader == NULL) {
        int code = log_reader_open(&l->reader, l->directory, l->id.text, &l->options, &e);
        l->drained = code == -ERR_NOT_FOUND;
        l->failed = code < 0 && !l->drained;
    }
    while (l->reader != NULL && !l->failed && l->piece.length < PIECE_BYTES) {
        struct log_record record;
        found = log_reader_next(l->reader, &record, &e);
        if (found <= 0)
            break;
        l->failed = !write_record(l, &record);
    }
    l->failed = l->failed || found < 0;
    if (found == 0 && l->piece.length < PIECE_BYTES)
        l->drained = true;
    if (l->drained && !l->failed && l->form != API_ACCEPT_ANY)
        l->failed = !flush_lines(l, l->last);
}

/* --- on the API's thread ------------------------------------------------------------------------ */

static void logs_freed_cb(uv_handle_t *handle)
{
    struct logs *l = handle->data;
    if (l->reader != NULL)
        log_reader_close(l->reader);
    buffer_free(&l->piece);
    buffer_free(&l->lines[0]);
    buffer_free(&l->lines[1]);
    free(l);
}

static void logs_leave(struct api_request *r)
{
    struct logs *l = r->state;
    l->request = NULL;
    r->state = NULL;
    if (!l->busy)
        uv_close((uv_handle_t *)&l->timer, logs_freed_cb);
}

static bool instance_ended(struct logs *l, enum end_reason *reason, int *exit_code)
{
    const struct api_calls *calls = &l->api->options.calls;
    struct registry_root *root = calls->root(calls->user);
    const struct registry_instance *i =
        registry_root_instance(root, l->id.text, strlen(l->id.text));
    bool ended = i == NULL || i->state == INSTANCE_STATE_ENDED;
    *reason = i == NULL ? END_NONE : i->reason;
    *exit_code = i == NULL ? -1 : i->exit_code;
    calls->root_return(calls->user, root);
    return ended;
}

static void post_job(struct logs *l)
{
    enum end_reason reason;
    int exit_code;
    /* Looked at before the log is read: what comes after its end is in the log by then. */
    l->ended = instance_ended(l, &reason, &exit_code);
    l->last = !l->follow || l->ended;
    l->busy = true;
    api_worker_post(l->api->worker, &l->job);
}

static void timer_cb(uv_timer_t *timer)
{
    post_job(timer->data);
    api_dirty(timer->loop->data);
}

static bool write_end(struct logs *l)
{
    enum end_reason reason;
    int exit_code;
    if (l->form != API_ACCEPT_EVENTS || !l->follow)
        return true;
    (void)instance_ended(l, &reason, &exit_code);
    char code[16] = "null";
    if (exit_code >= 0)
        (void)text_format(code, sizeof(code), "%d", exit_code);
    return buffer_printf(&l->piece, "event: end\ndata: {\"reason\":\"%s\",\"exit_code\":%s}\n\n",
                         end_reason_name(reason), code);
}

static void job_done(struct api_job *job)
{
    struct logs *l = container_of(job, struct logs, job);
    l->busy = false;
    if (l->request == NULL) {
        uv_close((uv_handle_t *)&l->timer, logs_freed_cb);
        return;
    }
    if (l->drained && l->last) {
        l->done = true;
        l->failed = l->failed || !write_end(l);
    }
    if (l->drained && !l->last && l->piece.length == 0)
        (void)uv_timer_start(&l->timer, timer_cb, FOLLOW_MS, 0);
    else
        api_resume(l->request);
}

static ssize_t logs_read(struct api_request *r, char *out, size_t size)
{
    struct logs *l = r->state;
    if (l->busy)
        return 0;
    if (l->sent < l->piece.length) {
        size_t count = l->piece.length - l->sent < size ? l->piece.length - l->sent : size;
        memcpy(out, l->piece.data + l->sent, count);
        l->sent += count;
        return (ssize_t)count;
    }
    l->sent = 0;
    buffer_consume(&l->piece, l->piece.length);
    if (l->failed)
        return API_READ_BROKEN;
    if (l->done)
        return API_READ_END;
    if (!uv_is_active((uv_handle_t *)&l->timer)) {
        if (l->drained)
            (void)uv_timer_start(&l->timer, timer_cb, FOLLOW_MS, 0);
        else
            post_job(l);
    }
    return 0;
}

/* "5m" or "2026-11-22T08:47:00Z". */
static bool since_parse(struct api_request *r, uint64_t *out)
{
    const char *text = api_query(r, "since");
    struct err e = {0};
    uint64_t ms = 0;
    if (text == NULL)
        return true;
    uint64_t now = clock_wall_ms();
    if (duration_parse(&ms, text, false, &e) == 0) {
        *out = ms < now ? now - ms : 1;
        return true;
    }
    struct tm t = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &t);
    double fraction = 0;
    char *end = NULL;
    if (rest != NULL && *rest == '.') {
        fraction = strtod(rest, &end);
        rest = end;
    }
    long offset_s = 0;
    int hours;
    int minutes;
    char sign;
    char more;
    if (rest != NULL && (*rest == '+' || *rest == '-' || *rest == ' ') &&
        sscanf(rest, "%c%2d:%2d%c", &sign, &hours, &minutes, &more) == 3) {
        /* A plus that was not encoded arrives as a space. */
        offset_s = (sign == '-' ? -1 : 1) * (hours * 3600L + minutes * 60L);
        rest = "";
    } else if (rest != NULL && (*rest == 'Z' || *rest == 'z')) {
        rest++;
    }
    time_t seconds = timegm(&t) - offset_s;
    if (rest == NULL || *rest != '\0' || seconds < 0) {
        api_problem(r, PROBLEM_BAD_REQUEST,
                    "since=%.60s: a duration as 5m, or a time as 2026-11-22T08:47:00Z", text);
        return false;
    }
    *out = (uint64_t)seconds * 1000 + (uint64_t)(fraction * 1000);
    return true;
}

static bool stream_parse(struct api_request *r, unsigned *out)
{
    const char *text = api_query(r, "stream");
    if (text == NULL)
        return true;
    *out = strcmp(text, "stdout") == 0 ? LOG_STREAM_STDOUT : LOG_STREAM_STDERR;
    if (*out == LOG_STREAM_STDOUT || strcmp(text, "stderr") == 0)
        return true;
    api_problem(r, PROBLEM_BAD_REQUEST, "stream=%.40s: stdout or stderr", text);
    return false;
}

static bool logs_fill(struct api_request *r, struct logs *l)
{
    const struct api_calls *calls = &r->api->options.calls;
    uint64_t lines = 0;
    if (!api_query_flag(r, "follow", &l->follow) || !api_query_number(r, "tail", 1000000, &lines) ||
        !since_parse(r, &l->options.since_wall_ms) || !stream_parse(r, &l->stream))
        return false;
    l->options.tail = api_query(r, "tail") != NULL;
    l->options.tail_lines = lines;
    l->form = r->accept == API_ACCEPT_JSON ? API_ACCEPT_LINES : r->accept;
    calls->logs_directory(calls->user, l->directory, sizeof(l->directory));
    if (l->directory[0] == '\0') {
        api_problem(r, PROBLEM_DRAINING, "the runner was not heard yet; try again");
        return false;
    }
    struct registry_root *root = calls->root(calls->user);
    const struct registry_instance *i = api_instance_find(r, root);
    if (i != NULL)
        l->id = i->id;
    calls->root_return(calls->user, root);
    return i != NULL;
}

void api_logs_get(struct api_request *r)
{
    struct logs *l = calloc(1, sizeof(*l));
    if (l == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return;
    }
    if (!logs_fill(r, l)) {
        free(l);
        return;
    }
    l->api = r->api;
    l->request = r;
    l->job.work = read_piece;
    l->job.done = job_done;
    /* A record may grow six-fold as JSON. */
    buffer_init(&l->piece, 4 * PIECE_BYTES + 6 * LOG_RECORD_DATA_BYTES_MAX);
    buffer_init(&l->lines[0], LINE_BYTES_MAX);
    buffer_init(&l->lines[1], LINE_BYTES_MAX);
    (void)uv_timer_init(&r->api->loop, &l->timer);
    l->timer.data = l;
    r->state = l;
    r->state_free = logs_leave;
    r->read = logs_read;
    r->watched = true;
    api_answer_stream(r, l->form == API_ACCEPT_EVENTS  ? "text/event-stream"
                         : l->form == API_ACCEPT_LINES ? "application/x-ndjson"
                                                       : "text/plain; charset=utf-8");
}
