#include "node/errands/errand_wire.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/memory.h"

#define SIGNAL_LAST 64u
#define SIDE_MAX 65535

/* --- frames --------------------------------------------------------------------------------------- */

struct frame_rule {
    bool of_owner;
    size_t size_min, size_max;
};

static const struct frame_rule rules[] = {
    [ERRAND_QUESTION] = {false, 2, ERRAND_QUESTION_BYTES_MAX},
    [ERRAND_GRANTED] = {true, 2, ERRAND_TEXT_BYTES_MAX},
    [ERRAND_REFUSED] = {true, 2, ERRAND_TEXT_BYTES_MAX},
    [ERRAND_STDIN] = {false, 1, ERRAND_DATA_BYTES_MAX},
    [ERRAND_STDIN_END] = {false, 0, 0},
    [ERRAND_TAKEN] = {true, 4, 4},
    [ERRAND_STDOUT] = {true, 1, ERRAND_DATA_BYTES_MAX},
    [ERRAND_STDERR] = {true, 1, ERRAND_DATA_BYTES_MAX},
    [ERRAND_RESIZE] = {false, 4, 4},
    [ERRAND_SIGNAL] = {false, 1, 1},
    [ERRAND_CANCEL] = {false, 1, 1},
    [ERRAND_ENDED] = {true, 2, ERRAND_TEXT_BYTES_MAX},
};

static bool numbers_read(struct errand_frame *f)
{
    switch (f->type) {
    case ERRAND_TAKEN:
        f->number = (uint32_t)bytes_get(f->data, 4);
        return f->number > 0 && f->number <= ERRAND_WINDOW_BYTES;
    case ERRAND_SIGNAL:
        f->number = (uint8_t)f->data[0];
        return f->number > 0 && f->number <= SIGNAL_LAST;
    case ERRAND_CANCEL:
        f->number = (uint8_t)f->data[0];
        return f->number == END_CLIENT_GONE || f->number == END_TIMED_OUT;
    case ERRAND_RESIZE:
        f->rows = (uint32_t)bytes_get(f->data, 2);
        f->columns = (uint32_t)bytes_get(f->data + 2, 2);
        return f->rows > 0 && f->columns > 0;
    default:
        return true;
    }
}

enum errand_read errand_frame_read(struct errand_frame *out, bool of_owner, const char *bytes,
                                   size_t length)
{
    if (length == 0)
        return ERRAND_MORE;
    size_t type = (uint8_t)bytes[0];
    if (type < ERRAND_QUESTION || type > ERRAND_ENDED || rules[type].of_owner != of_owner)
        return ERRAND_BAD;
    if (length < ERRAND_HEADER_BYTES)
        return ERRAND_MORE;
    size_t size = (size_t)bytes_get(bytes + 1, 4);
    if (size < rules[type].size_min || size > rules[type].size_max)
        return ERRAND_BAD;
    if (length < ERRAND_HEADER_BYTES + size)
        return ERRAND_MORE;
    *out = (struct errand_frame){
        .type = (enum errand_frame_type)type, .data = bytes + ERRAND_HEADER_BYTES, .size = size};
    return numbers_read(out) ? ERRAND_WHOLE : ERRAND_BAD;
}

bool errand_frame_write(struct buffer *out, enum errand_frame_type type, const void *data,
                        size_t size)
{
    char header[ERRAND_HEADER_BYTES] = {(char)type};
    assert_always(size >= rules[type].size_min && size <= rules[type].size_max);
    bytes_put(header + 1, 4, size);
    return buffer_reserve(out, sizeof header + size) && buffer_append(out, header, sizeof header) &&
           (size == 0 || buffer_append(out, data, size));
}

bool errand_number_write(struct buffer *out, enum errand_frame_type type, uint32_t number)
{
    char bytes[4];
    unsigned size = type == ERRAND_TAKEN ? 4 : 1;
    bytes_put(bytes, size, number);
    return errand_frame_write(out, type, bytes, size);
}

bool errand_resize_write(struct buffer *out, unsigned rows, unsigned columns)
{
    char bytes[4];
    bytes_put(bytes, 2, rows);
    bytes_put(bytes + 2, 2, columns);
    return errand_frame_write(out, ERRAND_RESIZE, bytes, sizeof bytes);
}

/* --- JSON ------------------------------------------------------------------------------------------- */

/* Takes the object. */
static bool json_write(struct buffer *out, enum errand_frame_type type, json_t *json)
{
    CLEANUP_FREE char *text = json == NULL ? NULL : json_dumps(json, JSON_COMPACT);
    json_decref(json);
    size_t length = text == NULL ? 0 : strlen(text);
    return length > 0 && length <= rules[type].size_max &&
           errand_frame_write(out, type, text, length);
}

static json_t *json_read(const struct errand_frame *frame)
{
    json_t *json = json_loadb(frame->data, frame->size, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(json))
        return json;
    json_decref(json);
    return NULL;
}

/* False: too long, or what a terminal would obey. */
static bool text_take(char *out, size_t size, const char *text)
{
    for (const char *c = text; *c != '\0'; c++)
        if ((uint8_t)*c < ' ' || *c == 0x7f)
            return false;
    return text_copy(out, size, text);
}

/* As text_take; of what is for people: cut, and without what a terminal would obey. */
static void prose_take(char *out, size_t size, const char *text)
{
    size_t length = strnlen(text, size - 1);
    memcpy(out, text, length);
    out[length] = '\0';
    for (char *c = out; *c != '\0'; c++)
        if (((uint8_t)*c < ' ' && *c != '\n' && *c != '\t') || *c == 0x7f)
            *c = '?';
}

static json_t *prose(const char *text)
{
    json_t *json = json_string(text);
    return json != NULL ? json : json_string("(not UTF-8)");
}

bool errand_question_write(struct buffer *out, const struct errand_question *q)
{
    json_t *json = json_pack("{s:i, s:s, s:o, s:o, s:s, s:b, s:b, s:i, s:i, s:I}", "kind",
                             (int)q->kind, "workload", q->workload, "key", prose(q->key),
                             "asked_by", prose(q->asked_by), "request_id", q->request_id, "tty",
                             (int)q->tty, "no_stdin", (int)q->no_stdin, "rows", (int)q->rows,
                             "columns", (int)q->columns, "timeout_ms", (json_int_t)q->timeout_ms);
    json_t *spec = q->spec != NULL ? workload_to_json(q->spec) : NULL;
    bool good = q->spec == NULL ||
                (json != NULL && spec != NULL && json_object_set(json, "spec", spec) == 0);
    json_decref(spec);
    if (good)
        return json_write(out, ERRAND_QUESTION, json);
    json_decref(json);
    return false;
}

static int spec_read(struct errand_question *out, const json_t *spec, struct err *e)
{
    CLEANUP_FREE char *text = spec == NULL ? NULL : json_dumps(spec, JSON_COMPACT);
    if (text == NULL)
        return err_set(e, ERR_PROTOCOL, "an errand has no spec");
    if (workload_parse(&out->read_spec, "command", text, strlen(text), e) != 0)
        return -(int)e->code;
    if (out->read_spec.kind == WORKLOAD_COMMAND && out->read_spec.command.count > 0) {
        out->spec = &out->read_spec;
        return 0;
    }
    workload_free(&out->read_spec);
    return err_set(e, ERR_PROTOCOL, "an errand's spec is no command");
}

int errand_question_read(struct errand_question *out, const struct errand_frame *frame,
                         struct err *e)
{
    const char *workload = "", *key = "", *asked_by = "", *request_id = "";
    int kind = 0, tty = 0, no_stdin = 0, rows = 0, columns = 0;
    json_int_t timeout_ms = 0;
    json_t *json = json_read(frame), *spec = NULL;
    *out = (struct errand_question){0};
    bool good =
        json != NULL &&
        json_unpack(json, "{s:i, s?s, s?s, s?s, s?s, s?b, s?b, s?i, s?i, s?I, s?o}", "kind", &kind,
                    "workload", &workload, "key", &key, "asked_by", &asked_by, "request_id",
                    &request_id, "tty", &tty, "no_stdin", &no_stdin, "rows", &rows, "columns",
                    &columns, "timeout_ms", &timeout_ms, "spec", &spec) == 0;
    good = good && kind >= ERRAND_RUN && kind <= ERRAND_KIND_LAST && rows >= 0 &&
           rows <= SIDE_MAX && columns >= 0 && columns <= SIDE_MAX && timeout_ms >= 0 &&
           text_take(out->workload, sizeof out->workload, workload) &&
           text_copy(out->key, sizeof out->key, key) &&
           text_take(out->request_id, sizeof out->request_id, request_id);
    int rc = 0;
    if (!good) {
        rc = err_set(e, ERR_PROTOCOL, "an errand is not what it should be");
    } else {
        prose_take(out->asked_by, sizeof out->asked_by, asked_by);
        out->kind = (enum errand_kind)kind;
        out->tty = tty != 0;
        out->no_stdin = no_stdin != 0;
        out->rows = (unsigned)rows;
        out->columns = (unsigned)columns;
        out->timeout_ms = (uint64_t)timeout_ms;
        if (kind == ERRAND_RUN)
            rc = spec_read(out, spec, e);
    }
    json_decref(json);
    return rc;
}

void errand_question_free(struct errand_question *q)
{
    if (q->spec == &q->read_spec)
        workload_free(&q->read_spec);
    q->spec = NULL;
}

/* --- answers ---------------------------------------------------------------------------------------- */

bool errand_answer_write(struct buffer *out, const struct errand_answer *a)
{
    if (a->problem == PROBLEM_NONE)
        return json_write(out, ERRAND_GRANTED, json_pack("{s:s}", "instance", a->instance.text));
    return json_write(out, ERRAND_REFUSED,
                      json_pack("{s:i, s:i, s:i, s:s, s:o}", "problem", (int)a->problem, "ran",
                                (int)a->ran, "retry_after", (int)a->retry_after_s, "instance",
                                a->instance.text, "detail", prose(a->detail)));
}

bool errand_answer_read(struct errand_answer *out, const struct errand_frame *frame)
{
    const char *instance = "", *detail = "";
    int problem = 0, ran = 0, retry_after = 0;
    json_t *json = json_read(frame);
    *out = (struct errand_answer){0};
    bool refused = frame->type == ERRAND_REFUSED;
    bool good = json != NULL && json_unpack(json, "{s?s, s?i, s?i, s?i, s?s}", "instance",
                                            &instance, "problem", &problem, "ran", &ran,
                                            "retry_after", &retry_after, "detail", &detail) == 0;
    good = good &&
           (instance[0] == '\0' ? refused
                                : instance_id_parse(&out->instance, instance, strlen(instance)));
    good = good && ran >= RAN_NO && ran <= RAN_YES && retry_after >= 0 && retry_after <= 3600;
    if (good && refused) {
        /* One that a newer node knows is a refusal all the same. */
        out->problem = problem > PROBLEM_NONE && problem < PROBLEM_COUNT ? (enum problem)problem
                                                                         : PROBLEM_INTERNAL;
        out->ran = (enum ran)ran;
        out->retry_after_s = (unsigned)retry_after;
        prose_take(out->detail, sizeof out->detail, detail);
    }
    json_decref(json);
    return good;
}

bool errand_end_write(struct buffer *out, const struct command_end *end)
{
    return json_write(out, ERRAND_ENDED,
                      json_pack("{s:i, s:i, s:i, s:b, s:b, s:I, s:I, s:I, s:o}", "reason",
                                (int)end->reason, "exit_code", end->exit_code, "signal",
                                (int)end->signal, "timed_out", (int)end->timed_out, "oom",
                                (int)end->oom, "wall_us", (json_int_t)end->wall_us, "cpu_us",
                                (json_int_t)end->cpu_us, "memory_peak_bytes",
                                (json_int_t)end->memory_peak_bytes, "detail", prose(end->detail)));
}

bool errand_end_read(struct command_end *out, const struct errand_frame *frame)
{
    const char *detail = "";
    int reason = 0, exit_code = -1, sig = 0, timed_out = 0, oom = 0;
    json_int_t wall_us = 0, cpu_us = 0, peak = 0;
    json_t *json = json_read(frame);
    *out = (struct command_end){0};
    bool good = json != NULL &&
                json_unpack(json, "{s:i, s:i, s?i, s?b, s?b, s?I, s?I, s?I, s?s}", "reason",
                            &reason, "exit_code", &exit_code, "signal", &sig, "timed_out",
                            &timed_out, "oom", &oom, "wall_us", &wall_us, "cpu_us", &cpu_us,
                            "memory_peak_bytes", &peak, "detail", &detail) == 0 &&
                reason >= END_NONE && reason < END_REASON_COUNT && exit_code >= -1 &&
                exit_code <= 255 && sig >= 0 && sig <= (int)SIGNAL_LAST && wall_us >= 0 &&
                cpu_us >= 0 && peak >= 0;
    if (good) {
        *out = (struct command_end){.reason = (enum end_reason)reason,
                                    .exit_code = exit_code,
                                    .signal = (unsigned)sig,
                                    .timed_out = timed_out != 0,
                                    .oom = oom != 0,
                                    .wall_us = (uint64_t)wall_us,
                                    .cpu_us = (uint64_t)cpu_us,
                                    .memory_peak_bytes = (uint64_t)peak};
        prose_take(out->detail, sizeof out->detail, detail);
    }
    json_decref(json);
    return good;
}
