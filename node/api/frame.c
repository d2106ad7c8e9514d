#include "node/api/frame.h"

#define SIGNAL_MAX 64u

static unsigned number16(const char *bytes)
{
    return (unsigned)(unsigned char)bytes[0] << 8 | (unsigned char)bytes[1];
}

/* What a whole frame must hold, by its type. */
static bool fill(struct api_frame *f)
{
    switch (f->type) {
    case API_FRAME_STDIN:
        return true;
    case API_FRAME_STDIN_END:
        return f->size == 0;
    case API_FRAME_RESIZE:
        if (f->size != 4)
            return false;
        f->rows = number16(f->data);
        f->columns = number16(f->data + 2);
        return true;
    case API_FRAME_SIGNAL:
        if (f->size != 1)
            return false;
        f->signal = (unsigned char)f->data[0];
        return f->signal >= 1 && f->signal <= SIGNAL_MAX;
    default:
        return false;
    }
}

enum api_frame_read api_frame_read(struct api_frame *out, const char *bytes, size_t length)
{
    const unsigned char *h = (const unsigned char *)bytes;
    if (length < API_FRAME_HEADER_BYTES)
        return API_FRAME_MORE;
    size_t size = (size_t)h[1] << 24 | (size_t)h[2] << 16 | (size_t)h[3] << 8 | h[4];
    if (size > API_FRAME_BYTES_MAX || h[0] > API_FRAME_PROBLEM)
        return API_FRAME_BAD;
    if (length < API_FRAME_HEADER_BYTES + size)
        return API_FRAME_MORE;
    *out = (struct api_frame){
        .type = (enum api_frame_type)h[0], .data = bytes + API_FRAME_HEADER_BYTES, .size = size};
    return fill(out) ? API_FRAME_WHOLE : API_FRAME_BAD;
}

void api_frame_header(char out[API_FRAME_HEADER_BYTES], enum api_frame_type type, size_t size)
{
    out[0] = (char)type;
    out[1] = (char)(size >> 24);
    out[2] = (char)(size >> 16);
    out[3] = (char)(size >> 8);
    out[4] = (char)size;
}
