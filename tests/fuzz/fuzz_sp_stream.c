/* Messages of a connection between nodes, whole, in pieces and damaged. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "node/cluster/sp_stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The message at the front is the same however much follows it, and lies within what came. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sp_found found, again;
    size_t at = 0;
    while (at < size) {
        /* A copy of the right size: a byte too far is seen. */
        uint8_t *bytes = malloc(size - at);
        memcpy(bytes, data + at, size - at);
        enum sp_piece piece = sp_find(bytes, size - at, 4096, &found);
        if (piece == SP_WHOLE) {
            assert_always(found.size <= 4096 && found.begin + found.size <= size - at);
            assert_always(sp_find(bytes, found.begin + found.size, 4096, &again) == SP_WHOLE);
            assert_always(again.request == found.request && again.size == found.size);
            if (found.size > 0)
                assert_always(sp_find(bytes, found.begin + found.size - 1, 4096, &again) ==
                              SP_MORE);
        }
        free(bytes);
        if (piece != SP_WHOLE)
            break;
        at += found.begin + found.size;
    }
    return 0;
}
