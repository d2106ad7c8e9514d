/* Who asks, as another node's API says: cut anywhere it reads the same, and holds no byte that a terminal
 * would obey. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "node/api/relay.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct api_relay_record record, again;
    uint8_t bytes[API_RELAY_RECORD_BYTES_MAX];
    ptrdiff_t length = api_relay_record_read(&record, data, size);
    if (length <= 0)
        return 0;
    assert_always((size_t)length <= size && (size_t)length <= sizeof bytes);
    assert_always(!record.trusted || record.local);
    for (const char *c = record.who; *c != '\0'; c++)
        assert_always(*c >= ' ' && *c < 0x7f);
    for (ptrdiff_t part = 0; part < length; part++)
        assert_always(api_relay_record_read(&again, data, (size_t)part) == 0);
    assert_always(api_relay_record_write(&record, bytes) == (size_t)length);
    assert_always(api_relay_record_read(&again, bytes, (size_t)length) == length);
    assert_always(strcmp(again.who, record.who) == 0);
    return 0;
}
