/* Records of a join stream: cut anywhere they read the same, and what was read writes to the same
 * bytes again. The first byte chooses the cuts. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "base/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct read {
    struct buffer content; /* kind and bytes of everything, DATA joined */
    size_t data_bytes;
    int rc;
};

static void note(struct read *read, const struct record *r)
{
    char kind = (char)r->kind;
    if (r->kind == RECORD_DATA) {
        assert_always(r->size > 0 && r->size <= RECORD_BYTES_MAX);
        read->data_bytes += r->size;
    } else {
        char how = (char)r->end;
        assert_always(r->size <= RECORD_BLOCK_BYTES_MAX);
        assert_always(buffer_append(&read->content, &kind, 1));
        assert_always(buffer_append(&read->content, &how, 1));
    }
    assert_always(r->size == 0 || buffer_append(&read->content, r->data, r->size));
}

static void read_all(struct read *read, const uint8_t *data, size_t size, size_t step)
{
    struct record_decoder d;
    struct record r;
    struct err e;
    buffer_init(&read->content, 4u << 20);
    read->data_bytes = 0;
    read->rc = 0;
    record_decoder_init(&d);
    while (size > 0 && read->rc >= 0) {
        size_t part = size < step ? size : step;
        char *copy = malloc(part);
        assert_always(copy != NULL);
        memcpy(copy, data, part);
        size_t offset = 0;
        do {
            size_t taken = 0;
            read->rc = record_decode(&d, &r, copy + offset, part - offset, &taken, &e);
            assert_always(taken <= part - offset);
            offset += taken;
            if (read->rc == 1)
                note(read, &r);
        } while (read->rc == 1);
        assert_always(read->rc < 0 || offset == part);
        free(copy);
        data += part;
        size -= part;
    }
    record_decoder_free(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > 1u << 20)
        return 0;
    size_t step = data[0] + 1u;
    struct read whole, cut;
    read_all(&whole, data + 1, size - 1, size);
    read_all(&cut, data + 1, size - 1, step);
    assert_always(whole.rc == cut.rc);
    assert_always(whole.data_bytes == cut.data_bytes);
    assert_always(whole.content.length == cut.content.length);
    assert_always(whole.content.length == 0 ||
                  memcmp(whole.content.data, cut.content.data, whole.content.length) == 0);
    buffer_free(&whole.content);
    buffer_free(&cut.content);
    return 0;
}
