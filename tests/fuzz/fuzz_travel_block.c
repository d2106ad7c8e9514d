/* Blocks of a join stream: what is read is within its bounds and writes to the same bytes again. The
 * first byte chooses question or answer. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gateway/travel_block.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void same(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size)
{
    assert_always(a_size == b_size);
    assert_always(memcmp(a, b, a_size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t again[TRAVEL_BLOCK_BYTES_MAX];
    if (size < 2 || size > 4096)
        return 0;
    /* A copy of its own, so that reading beyond it is noticed. */
    char *copy = malloc(size - 1);
    assert_always(copy != NULL);
    memcpy(copy, data + 1, size - 1);
    if ((data[0] & 1) != 0) {
        struct travel_ask ask;
        if (travel_ask_read(&ask, copy, size - 1)) {
            assert_always(strlen(ask.key) <= GATEWAY_KEY_LENGTH_MAX);
            same(data + 1, size - 1, again, travel_ask_write(&ask, again));
        }
    } else {
        struct travel_answer answer;
        if (travel_answer_read(&answer, copy, size - 1))
            same(data + 1, size - 1, again, travel_answer_write(&answer, again));
    }
    free(copy);
    return 0;
}
