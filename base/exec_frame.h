/* base/exec_frame.h - frames of skerry-exec/1 (docs/openapi.yaml): {u8 type, u32 length big-endian, bytes}.
 *
 * Thread: any. */
#ifndef SKERRY_BASE_EXEC_FRAME_H
#define SKERRY_BASE_EXEC_FRAME_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buffer.h"

#define EXEC_FRAME_HEADER_BYTES 5u
#define EXEC_FRAME_BYTES_MAX 65536u

enum exec_frame_type {
    EXEC_FRAME_STDIN,
    EXEC_FRAME_STDIN_END,
    EXEC_FRAME_STDOUT,
    EXEC_FRAME_STDERR,
    EXEC_FRAME_RESIZE,
    EXEC_FRAME_SIGNAL,
    EXEC_FRAME_EXIT,
    EXEC_FRAME_PROBLEM,
};

/* `data` points into what was read. */
struct exec_frame {
    enum exec_frame_type type;
    const char *data;
    size_t size;
    unsigned rows, columns; /* RESIZE; 0 is possible */
    unsigned signal;        /* SIGNAL, 1 to 64 */
};

enum exec_frame_read {
    EXEC_FRAME_WHOLE, /* it is the first EXEC_FRAME_HEADER_BYTES + out->size bytes */
    EXEC_FRAME_MORE,  /* it is not whole yet */
    EXEC_FRAME_BAD,   /* no frame of that side's */
};
/* A client's, and the server's: STDOUT, STDERR, EXIT and PROBLEM. */
enum exec_frame_read exec_frame_read(struct exec_frame *out, const char *bytes, size_t length);
enum exec_frame_read exec_frame_read_answer(struct exec_frame *out, const char *bytes,
                                            size_t length);
void exec_frame_header(char out[EXEC_FRAME_HEADER_BYTES], enum exec_frame_type type, size_t size);
/* Whole or not at all: false, nothing was appended. */
bool exec_frame_append(struct buffer *out, enum exec_frame_type type, const void *data,
                       size_t size);

#endif
