/* node/api/frame.h - frames of skerry-exec/1: {u8 type, u32 length big-endian, bytes}.
 *
 * Thread: any. */
#ifndef SKERRY_NODE_API_FRAME_H
#define SKERRY_NODE_API_FRAME_H

#include <stdbool.h>
#include <stddef.h>

#define API_FRAME_HEADER_BYTES 5u
#define API_FRAME_BYTES_MAX 65536u

enum api_frame_type {
    API_FRAME_STDIN,
    API_FRAME_STDIN_END,
    API_FRAME_STDOUT,
    API_FRAME_STDERR,
    API_FRAME_RESIZE,
    API_FRAME_SIGNAL,
    API_FRAME_EXIT,
    API_FRAME_PROBLEM,
};

/* A client's frame. `data` points into what was read. */
struct api_frame {
    enum api_frame_type type;
    const char *data;
    size_t size;
    unsigned rows, columns; /* RESIZE; 0 is possible */
    unsigned signal;        /* SIGNAL, 1 to 64 */
};

enum api_frame_read {
    API_FRAME_WHOLE, /* it is the first API_FRAME_HEADER_BYTES + out->size bytes */
    API_FRAME_MORE,  /* it is not whole yet */
    API_FRAME_BAD,   /* no frame of a client's */
};
enum api_frame_read api_frame_read(struct api_frame *out, const char *bytes, size_t length);
void api_frame_header(char out[API_FRAME_HEADER_BYTES], enum api_frame_type type, size_t size);

#endif
