#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

enum { SUBJECT_BUCKETS = 32, LINE_SIZE = 1024 };

/* Set once by log_setup before threads start, and the counters of the bound per subject. */
static enum log_level minimum = LOG_LEVEL_INFO;
static enum log_format shape = LOG_FORMAT_TEXT;
static struct {
    _Atomic uint64_t second;
    _Atomic unsigned lines;
} buckets[SUBJECT_BUCKETS];

static const char *const level_names[] = {"debug", "info", "warn", "error"};

void log_setup(enum log_level level, enum log_format format)
{
    minimum = level;
    shape = format;
}

static unsigned bucket_of(const char *subject)
{
    unsigned h = 5381;
    for (; *subject != '\0'; subject++)
        h = h * 33u + (unsigned char)*subject;
    return h % SUBJECT_BUCKETS;
}

/* Control characters would let a client forge lines or colour a terminal. JSON needs two escapes
 * more. What does not fit is cut. */
static size_t escape(char *out, size_t size, const char *text)
{
    size_t n = 0;
    for (; *text != '\0' && n + 7 < size; text++) {
        unsigned char c = (unsigned char)*text;
        if (shape == LOG_FORMAT_JSON && (c == '"' || c == '\\')) {
            out[n++] = '\\';
            out[n++] = (char)c;
        } else if (c < 0x20 || c == 0x7f) {
            n += (size_t)snprintf(out + n, size - n,
                                  shape == LOG_FORMAT_JSON ? "\\u%04x" : "\\x%02x", c);
        } else {
            out[n++] = (char)c;
        }
    }
    out[n] = '\0';
    return n;
}

static void write_line(enum log_level level, const char *subject, const char *text)
{
    char now[CLOCK_RFC3339_SIZE];
    clock_format_rfc3339(clock_wall_ms(), now);
    char safe[LINE_SIZE];
    escape(safe, sizeof safe, text);
    char line[LINE_SIZE + 128];
    int n = snprintf(line, sizeof line,
                     shape == LOG_FORMAT_JSON
                         ? "{\"time\":\"%s\",\"level\":\"%s\",\"subject\":\"%s\",\"text\":\"%s\"}\n"
                         : "%s %-5s %s: %s\n",
                     now, level_names[level], subject, safe);
    if (n > 0)
        (void)!write(STDERR_FILENO, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
}

void log_line(enum log_level level, const char *subject, const char *format, ...)
{
    if (level < minimum)
        return;
    unsigned b = bucket_of(subject);
    uint64_t second = clock_monotonic_ms() / 1000u;
    uint64_t last = atomic_load(&buckets[b].second);
    if (last != second && atomic_compare_exchange_strong(&buckets[b].second, &last, second)) {
        unsigned dropped = atomic_exchange(&buckets[b].lines, 0);
        if (dropped > LOG_LINES_PER_SECOND_MAX) {
            char text[96];
            snprintf(text, sizeof text, "%u more lines were not written",
                     dropped - LOG_LINES_PER_SECOND_MAX);
            write_line(LOG_LEVEL_WARN, subject, text);
        }
    }
    if (atomic_fetch_add(&buckets[b].lines, 1) >= LOG_LINES_PER_SECOND_MAX)
        return;
    char text[LINE_SIZE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    write_line(level, subject, text);
}
