#include "base/exec_frame.h"

#define SIGNAL_MAX 64u

static unsigned number16(const char *bytes)
{
    return (unsigned)(unsigned char)bytes[0] << 8 | (unsigned char)bytes[1];
}

/* What a whole frame must hold, by its type. */
static bool fill(struct exec_frame *f)
{
    switch (f->type) {
    case EXEC_FRAME_STDIN:
        return true;
    case EXEC_FRAME_STDIN_END:
        return f->size == 0;
    case EXEC_FRAME_RESIZE:
        if (f->size != 4)
            return false;
        f->rows = number16(f->data);
        f->columns = number16(f->data + 2);
        return true;
    case EXEC_FRAME_SIGNAL:
        if (f->size != 1)
            return false;
        f->signal = (unsigned char)f->data[0];
        return f->signal >= 1 && f->signal <= SIGNAL_MAX;
    default:
        return false;
    }
}

static enum exec_frame_read split(struct exec_frame *out, const char *bytes, size_t length)
{
    const unsigned char *h = (const unsigned char *)bytes;
    if (length < EXEC_FRAME_HEADER_BYTES)
        return EXEC_FRAME_MORE;
    size_t size = (size_t)h[1] << 24 | (size_t)h[2] << 16 | (size_t)h[3] << 8 | h[4];
    if (size > EXEC_FRAME_BYTES_MAX || h[0] > EXEC_FRAME_PROBLEM)
        return EXEC_FRAME_BAD;
    if (length < EXEC_FRAME_HEADER_BYTES + size)
        return EXEC_FRAME_MORE;
    *out = (struct exec_frame){
        .type = (enum exec_frame_type)h[0], .data = bytes + EXEC_FRAME_HEADER_BYTES, .size = size};
    return EXEC_FRAME_WHOLE;
}

enum exec_frame_read exec_frame_read(struct exec_frame *out, const char *bytes, size_t length)
{
    enum exec_frame_read read = split(out, bytes, length);
    return read != EXEC_FRAME_WHOLE || fill(out) ? read : EXEC_FRAME_BAD;
}

enum exec_frame_read exec_frame_read_answer(struct exec_frame *out, const char *bytes,
                                            size_t length)
{
    enum exec_frame_read read = split(out, bytes, length);
    if (read != EXEC_FRAME_WHOLE)
        return read;
    return out->type == EXEC_FRAME_STDOUT || out->type == EXEC_FRAME_STDERR ||
                   out->type == EXEC_FRAME_EXIT || out->type == EXEC_FRAME_PROBLEM
               ? EXEC_FRAME_WHOLE
               : EXEC_FRAME_BAD;
}

void exec_frame_header(char out[EXEC_FRAME_HEADER_BYTES], enum exec_frame_type type, size_t size)
{
    out[0] = (char)type;
    out[1] = (char)(size >> 24);
    out[2] = (char)(size >> 16);
    out[3] = (char)(size >> 8);
    out[4] = (char)size;
}

bool exec_frame_append(struct buffer *out, enum exec_frame_type type, const void *data, size_t size)
{
    char head[EXEC_FRAME_HEADER_BYTES];
    exec_frame_header(head, type, size);
    return buffer_reserve(out, sizeof head + size) && buffer_append(out, head, sizeof head) &&
           buffer_append(out, data, size);
}
