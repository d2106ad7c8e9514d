/* Any bytes as a snapshot: refused with a text and nothing left, or a state whose counts agree and that
 * encodes to a snapshot of itself.
 *
 * Input: a zero and then records as they stand inside the lz4 frame, which is made around them (its
 * checksum would hide them from the fuzzer); or any other byte and then a whole snapshot. */
#include <lz4frame.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/snapshot.h"
/* NOLINTNEXTLINE(bugprone-suspicious-include): fuzzers link the library alone */
#include "tests/lib/registry_help.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const uint8_t *data, size_t size)
{
    struct state_content content, again;
    struct err e = {0};
    int rc = snapshot_decode(&content, data, size, &e);
    if (rc < 0) {
        assert_always(rc == -(int)e.code && e.msg[0] != '\0');
        return;
    }
    help_state_check(&content);
    struct buffer first, second;
    buffer_init(&first, SNAPSHOT_BYTES_MAX);
    buffer_init(&second, SNAPSHOT_BYTES_MAX);
    assert_always(snapshot_encode(&content, &first, &e) == 0);
    assert_always(snapshot_decode(&again, first.data, first.length, &e) == 0);
    assert_always(snapshot_encode(&again, &second, &e) == 0);
    assert_always(first.length == second.length &&
                  memcmp(first.data, second.data, first.length) == 0);
    buffer_free(&first);
    buffer_free(&second);
    state_content_release(&content);
    state_content_release(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] != 0) {
        check(data + 1, size - 1);
        return 0;
    }
    size_t bound = LZ4F_compressFrameBound(size - 1, NULL);
    uint8_t *bytes = calloc(1, 16 + bound);
    assert_always(bytes != NULL);
    memcpy(bytes, "SKERRYRS", 8);
    bytes[8] = SNAPSHOT_FORMAT;
    size_t length = LZ4F_compressFrame(bytes + 16, bound, data + 1, size - 1, NULL);
    assert_always(!LZ4F_isError(length));
    check(bytes, 16 + length);
    free(bytes);
    return 0;
}
