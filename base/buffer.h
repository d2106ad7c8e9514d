/* base/buffer.h - a byte buffer that grows up to a bound.
 *
 * Owner: one thread at a time. After an append failed (bound or memory) the buffer is unchanged. */
#ifndef SKERRY_BASE_BUFFER_H
#define SKERRY_BASE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

struct buffer {
    char *data;
    size_t length;
    size_t capacity;
    size_t length_max;
};

void buffer_init(struct buffer *b, size_t length_max);
void buffer_free(struct buffer *b);
/* Makes room for `more` bytes behind length; false at the bound or without memory. */
bool buffer_reserve(struct buffer *b, size_t more);
bool buffer_append(struct buffer *b, const void *data, size_t length);
bool buffer_append_text(struct buffer *b, const char *text);
bool buffer_printf(struct buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Drops `n` bytes at the front. */
void buffer_consume(struct buffer *b, size_t n);

#endif
