/* gateway/result.h - how a command ended, as JSON and as an event stream; for the gateway and the API.
 *
 * Output is bytes. `stdout` and `stderr` are always there; bytes that are not UTF-8 are replaced in
 * them, and then all goes as base64 too, so that nothing is lost: {"stdout": "...",
 * "stdout_base64": "..."}. In events it is {"text": "..."} or {"base64": "..."}.
 *
 * Thread: any. All functions append to `out` and return false when it is at its bound or memory is
 * gone. */
#ifndef SKERRY_GATEWAY_RESULT_H
#define SKERRY_GATEWAY_RESULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"

struct result_end {
    int exit_code;   /* 128 + signal if one ended it */
    unsigned signal; /* 0: none */
    bool timed_out, oom;
    uint64_t wall_us, cpu_us, memory_peak_bytes;
};

struct result_bytes {
    const char *data;
    size_t length;
};

/* {"exit_code", "signal", "timed_out", "oom", "stdout", "stderr", "truncated", "wall_seconds",
 * "cpu_seconds", "memory_peak_bytes"} */
bool result_json(struct buffer *out, const struct result_end *end, struct result_bytes output,
                 struct result_bytes errors, bool truncated);

/* A stream of output cut into events keeps an unfinished UTF-8 character until its rest comes. */
struct result_carry {
    char bytes[4];
    unsigned count;
};
/* `event` is "stdout" or "stderr". May append nothing yet. */
bool result_event_output(struct buffer *out, const char *event, struct result_carry *carry,
                         struct result_bytes bytes);
/* What is still carried, at the end of the stream. */
bool result_event_flush(struct buffer *out, const char *event, struct result_carry *carry);
/* The last event: as result_json without the output. */
bool result_event_exit(struct buffer *out, const struct result_end *end);

/* A JSON string in quotes; bytes that are not UTF-8 become U+FFFD. */
bool result_json_text(struct buffer *out, const char *data, size_t length);
bool result_is_utf8(const char *data, size_t length);
bool result_base64(struct buffer *out, const char *data, size_t length);

#endif
