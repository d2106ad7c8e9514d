/* Frames of an upgraded connection: cut anywhere, they read the same, and never beyond their bytes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/exec_frame.h"
#include "base/memory.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(const struct exec_frame *f, const char *bytes, size_t size)
{
    assert_always(f->data == bytes + EXEC_FRAME_HEADER_BYTES);
    assert_always(f->size <= EXEC_FRAME_BYTES_MAX && EXEC_FRAME_HEADER_BYTES + f->size <= size);
    assert_always(f->type == EXEC_FRAME_STDIN || f->type == EXEC_FRAME_STDIN_END ||
                  f->type == EXEC_FRAME_RESIZE || f->type == EXEC_FRAME_SIGNAL);
    assert_always(f->type != EXEC_FRAME_SIGNAL || (f->signal >= 1 && f->signal <= 64));
    assert_always(f->type != EXEC_FRAME_RESIZE || (f->rows <= 65535 && f->columns <= 65535));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *at = (const char *)data;
    while (size > 0) {
        struct exec_frame frame;
        enum exec_frame_read read = exec_frame_read(&frame, at, size);
        if (read != EXEC_FRAME_WHOLE)
            break;
        expect(&frame, at, size);
        size_t whole = EXEC_FRAME_HEADER_BYTES + frame.size;
        /* A part of it is never a frame, nor refused. */
        char *part = malloc(whole);
        if (part == NULL)
            break;
        memcpy(part, at, whole);
        struct exec_frame other;
        assert_always(exec_frame_read(&other, part, whole - 1) != EXEC_FRAME_WHOLE);
        assert_always(exec_frame_read(&other, part, whole) == EXEC_FRAME_WHOLE);
        assert_always(other.size == frame.size && other.type == frame.type);
        free(part);
        at += whole;
        size -= whole;
    }
    return 0;
}
