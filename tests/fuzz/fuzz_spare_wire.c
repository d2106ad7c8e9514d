/* Records between a spare and its neighbour: cut anywhere they read the same, what was read keeps to every
 * bound, and writes to the same bytes again. The first byte chooses who speaks and the cuts. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "raft/spare_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct reading {
    struct buffer written; /* what was read, written again */
    uint64_t applied;
    int rc;
};

static void note(struct reading *reading, const struct spare_record *r)
{
    uint8_t bytes[SPARE_RECORD_BYTES_MAX];
    assert_always(r->size <= SPARE_ENTRY_BYTES_MAX && r->member_count <= SPARE_MEMBERS_MAX);
    if (r->kind == SPARE_ENTRY)
        assert_always(r->applied > reading->applied && r->size > 0);
    if (r->kind == SPARE_ENTRY || r->kind == SPARE_PROGRESS || r->kind == SPARE_ACK)
        assert_always(r->applied >= reading->applied);
    if (r->applied > reading->applied)
        reading->applied = r->applied;
    assert_always(buffer_append(&reading->written, bytes, spare_encode(bytes, r)));
    assert_always(r->size == 0 || buffer_append(&reading->written, r->data, r->size));
}

static void read_all(struct reading *reading, enum spare_side side, const uint8_t *data,
                     size_t size, size_t step)
{
    struct spare_decoder d;
    struct spare_record r;
    struct err e;
    buffer_init(&reading->written, 4u << 20);
    reading->rc = 0;
    reading->applied = 0;
    spare_decoder_init(&d, side);
    while (size > 0 && reading->rc >= 0) {
        size_t part = size < step ? size : step;
        uint8_t *copy = malloc(part);
        assert_always(copy != NULL);
        memcpy(copy, data, part);
        size_t offset = 0;
        do {
            size_t taken = 0;
            reading->rc = spare_decode(&d, &r, copy + offset, part - offset, &taken, &e);
            assert_always(taken <= part - offset);
            offset += taken;
            if (reading->rc == 1)
                note(reading, &r);
        } while (reading->rc == 1);
        assert_always(reading->rc < 0 || offset == part);
        free(copy);
        data += part;
        size -= part;
    }
    spare_decoder_free(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > 1u << 20)
        return 0;
    enum spare_side side = (data[0] & 1) == 0 ? SPARE_ASKS : SPARE_FEEDS;
    size_t step = data[0] / 2 + 1u;
    struct reading whole, cut;
    data++;
    size--;
    read_all(&whole, side, data, size, size + 1);
    read_all(&cut, side, data, size, step);
    assert_always(whole.rc == cut.rc && whole.applied == cut.applied);
    assert_always(whole.written.length == cut.written.length && whole.written.length <= size);
    assert_always(whole.written.length == 0 ||
                  (memcmp(whole.written.data, cut.written.data, whole.written.length) == 0 &&
                   memcmp(whole.written.data, data, whole.written.length) == 0));
    buffer_free(&whole.written);
    buffer_free(&cut.written);
    return 0;
}
