#include "gateway/problem.h"

#include <string.h>

#include "gateway/result.h"

enum { RETRY_AFTER_DEFAULT_S = 1 };

unsigned problem_retry_after_s(const struct problem_report *report)
{
    int status = problem_word(report->problem)->status;
    if (report->retry_after_s > 0)
        return report->retry_after_s;
    return status == 429 || status == 503 ? RETRY_AFTER_DEFAULT_S : 0;
}

static bool member(struct buffer *out, const char *name, const char *value)
{
    if (value == NULL || value[0] == '\0')
        return true;
    return buffer_printf(out, ",\"%s\":", name) && result_json_text(out, value, strlen(value));
}

bool problem_body(struct buffer *out, const struct problem_report *report)
{
    const struct problem_word *word = problem_word(report->problem);
    unsigned retry_after_s = problem_retry_after_s(report);
    return buffer_printf(out,
                         "{\"type\":\"urn:skerry:problem:%s\",\"title\":\"%s\",\"status\":%d,"
                         "\"code\":\"%s\",\"retryable\":%s,\"ran\":\"%s\"",
                         word->code, word->title, word->status, word->code,
                         word->retryable ? "true" : "false", ran_name(report->ran)) &&
           member(out, "detail", report->detail) && member(out, "reason", report->reason) &&
           member(out, "instance", report->instance) &&
           member(out, "request_id", report->request_id) &&
           (retry_after_s == 0 || buffer_printf(out, ",\"retry_after\":%u", retry_after_s)) &&
           buffer_append_text(out, "}\n");
}
