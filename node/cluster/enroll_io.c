#include "node/cluster/enroll_io.h"

#include "base/memory.h"
#include "node/cluster/enroll_wire.h"

/* How many bytes are to be in `in` before more can be said; 0: its length is none. */
static size_t wanted(const struct buffer *in, size_t length_max)
{
    if (in->length < ENROLL_LENGTH_BYTES)
        return ENROLL_LENGTH_BYTES;
    size_t length = enroll_length_read((const uint8_t *)in->data, length_max);
    return length == 0 ? 0 : ENROLL_LENGTH_BYTES + length;
}

enum enroll_io enroll_receive(struct secure_stream *s, struct buffer *in, size_t length_max)
{
    for (;;) {
        size_t count = 0, whole = wanted(in, length_max);
        if (whole == 0)
            return ENROLL_IO_BROKEN;
        if (whole > ENROLL_LENGTH_BYTES && whole == in->length)
            return ENROLL_IO_DONE;
        if (!buffer_reserve(in, whole - in->length))
            return ENROLL_IO_BROKEN;
        switch (secure_stream_read(s, in->data + in->length, whole - in->length, &count)) {
        case SECURE_DONE:
            in->length += count;
            break;
        case SECURE_BLOCKED:
            return ENROLL_IO_WAIT;
        default:
            return ENROLL_IO_BROKEN;
        }
    }
}

enum enroll_io enroll_send(struct secure_stream *s, struct buffer *out)
{
    size_t count = 0;
    struct iovec part = {.iov_base = out->data, .iov_len = out->length};
    enum secure_result result = secure_stream_write(s, &part, 1, &count);
    buffer_consume(out, count);
    if (result == SECURE_BROKEN)
        return ENROLL_IO_BROKEN;
    return out->length == 0 ? ENROLL_IO_DONE : ENROLL_IO_WAIT;
}
