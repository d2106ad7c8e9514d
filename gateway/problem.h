/* gateway/problem.h - Skerry's own errors as problem+json (RFC 9457); for the gateway and the API.
 *
 * Thread: any. */
#ifndef SKERRY_GATEWAY_PROBLEM_H
#define SKERRY_GATEWAY_PROBLEM_H

#include <stdbool.h>

#include "base/buffer.h"
#include "base/words.h"

#define PROBLEM_CONTENT_TYPE "application/problem+json"
#define PROBLEM_BODY_BYTES_MAX 8192

/* Texts may be NULL or "": then their member is left out. */
struct problem_report {
    enum problem problem;
    enum ran ran;
    unsigned retry_after_s; /* 0: the default of the problem */
    const char *detail;     /* what, why and what to do */
    const char *request_id;
    const char *instance;
    const char *reason; /* why the instance ended */
};

/* Appends the body; false when `out` is at its bound or memory is gone. */
bool problem_body(struct buffer *out, const struct problem_report *report);
/* Seconds for Retry-After; 0: no such field. */
unsigned problem_retry_after_s(const struct problem_report *report);

#endif
