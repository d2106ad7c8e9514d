/* Chunked bodies: read whole and in pieces they hold the same content, and what a flow makes of them
 * reads as that content again. The first byte is the size of the pieces. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gateway/flow.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The content, or false if it was refused; *used: how much of the bytes. */
static bool read_in_pieces(const char *text, size_t length, size_t piece, struct buffer *content,
                           size_t *used, bool *done)
{
    struct http_chunked chunked;
    struct http_fault fault;
    size_t at = 0;
    http_chunked_init(&chunked);
    while (at < length && chunked.state != HTTP_CHUNK_DONE) {
        size_t n = length - at < piece ? length - at : piece;
        struct http_text span, trailers;
        ptrdiff_t taken = http_chunked_read(&chunked, text + at, n, &span, &trailers, &fault);
        if (taken < 0)
            return false;
        assert_always(taken > 0 && (size_t)taken <= n);
        assert_always(buffer_append(content, span.data, span.length));
        at += (size_t)taken;
    }
    *used = at;
    *done = chunked.state == HTTP_CHUNK_DONE;
    return true;
}

static void expect_same_through_flow(const char *text, size_t length, const struct buffer *content)
{
    struct block_pool pool = {0};
    struct queue to = {0};
    struct flow flow;
    struct http_fault fault;
    flow_begin(&flow, HTTP_BODY_CHUNKED, 0, true);
    ptrdiff_t n = flow_push(&flow, &pool, &to, text, length, &fault);
    if (n >= 0) { /* trailers may still be refused as fields */
        struct buffer again;
        size_t used;
        bool done;
        buffer_init(&again, 1u << 20);
        assert_always(flow.done && (size_t)n == length);
        assert_always(
            read_in_pieces(queue_data(&to), queue_pending(&to), 1u << 20, &again, &used, &done));
        assert_always(done && used == queue_pending(&to) && again.length == content->length &&
                      (again.length == 0 || memcmp(again.data, content->data, again.length) == 0));
        buffer_free(&again);
    }
    queue_clear(&pool, &to);
    flow_free(&flow);
    block_pool_free(&pool);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > 65536)
        return 0;
    const char *text = (const char *)data + 1;
    struct buffer whole, pieces;
    size_t used = 0, used_pieces = 0;
    bool done = false, done_pieces = false;
    buffer_init(&whole, 1u << 20);
    buffer_init(&pieces, 1u << 20);
    bool good = read_in_pieces(text, size - 1, 1u << 20, &whole, &used, &done);
    bool good_pieces =
        read_in_pieces(text, size - 1, data[0] % 7 + 1, &pieces, &used_pieces, &done_pieces);
    assert_always(good == good_pieces);
    if (good) {
        assert_always(used == used_pieces && done == done_pieces && whole.length == pieces.length);
        assert_always(whole.length == 0 || memcmp(whole.data, pieces.data, whole.length) == 0);
    }
    if (good && done)
        expect_same_through_flow(text, used, &whole);
    buffer_free(&whole);
    buffer_free(&pieces);
    return 0;
}
