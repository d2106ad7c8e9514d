/* base/log.h - one line per event on stderr: time, level, subject, text.
 *
 * Thread: any; a line is one write(2). Secrets never go into a log line. A subject (its folder or
 * thing: "runner", "gateway") may write at most LOG_LINES_PER_SECOND_MAX lines in a second; what is
 * beyond is counted and told in one line, so that a hostile client cannot fill a disk. */
#ifndef SKERRY_BASE_LOG_H
#define SKERRY_BASE_LOG_H

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

#define LOG_LINES_PER_SECOND_MAX 200

/* Once, before other threads start. */
void log_setup(enum log_level level, enum log_format format);
void log_line(enum log_level level, const char *subject, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_debug(subject, ...) log_line(LOG_LEVEL_DEBUG, subject, __VA_ARGS__)
#define log_info(subject, ...) log_line(LOG_LEVEL_INFO, subject, __VA_ARGS__)
#define log_warn(subject, ...) log_line(LOG_LEVEL_WARN, subject, __VA_ARGS__)
#define log_error(subject, ...) log_line(LOG_LEVEL_ERROR, subject, __VA_ARGS__)

#endif
