#include "base/buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

void buffer_init(struct buffer *b, size_t length_max)
{
    *b = (struct buffer){.length_max = length_max};
}

void buffer_free(struct buffer *b)
{
    free(b->data);
    *b = (struct buffer){.length_max = b->length_max};
}

bool buffer_reserve(struct buffer *b, size_t more)
{
    if (more > b->length_max - b->length)
        return false;
    size_t need = b->length + more;
    if (need <= b->capacity)
        return true;
    size_t capacity = b->capacity < 256 ? 256 : b->capacity;
    while (capacity < need)
        capacity *= 2;
    char *data = realloc(b->data, capacity);
    if (data == NULL)
        return false;
    b->data = data;
    b->capacity = capacity;
    return true;
}

bool buffer_append(struct buffer *b, const void *data, size_t length)
{
    if (length == 0)
        return true;
    if (!buffer_reserve(b, length))
        return false;
    memcpy(b->data + b->length, data, length);
    b->length += length;
    return true;
}

bool buffer_append_text(struct buffer *b, const char *text)
{
    return buffer_append(b, text, strlen(text));
}

bool buffer_printf(struct buffer *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    bool ok = n >= 0 && buffer_reserve(b, (size_t)n + 1);
    if (ok) {
        vsnprintf(b->data + b->length, (size_t)n + 1, format, again);
        b->length += (size_t)n;
    }
    va_end(again);
    return ok;
}

void buffer_consume(struct buffer *b, size_t n)
{
    assert_always(n <= b->length);
    if (n == 0)
        return;
    memmove(b->data, b->data + n, b->length - n);
    b->length -= n;
}
