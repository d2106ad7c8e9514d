/* Renewals of leases and their answers, as another node may send them: refused with a text, or read into
 * what encodes to the same answer again. The first byte chooses which. */
#include <stdint.h>
#include <string.h>

#include "base/memory.h"
#include "node/control/lease_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err e = {0};
    if (size == 0)
        return 0;
    if ((data[0] & 1) == 0) {
        int rc = lease_renewal_read(data + 1, size - 1, &e);
        assert_always(rc == 0 || (e.code == ERR_PROTOCOL && e.msg[0] != '\0'));
        return 0;
    }
    struct lease_answer answer, again;
    if (lease_answer_read(&answer, data + 1, size - 1, &e) != 0) {
        assert_always(e.code == ERR_PROTOCOL && e.msg[0] != '\0');
        return 0;
    }
    uint8_t bytes[LEASE_WIRE_BYTES_MAX];
    size_t length = lease_answer_write(bytes, &answer);
    assert_always(length <= sizeof bytes);
    assert_always(lease_answer_read(&again, bytes, length, &e) == 0);
    assert_always(again.outcome == answer.outcome && again.epoch == answer.epoch &&
                  again.leader == answer.leader && strcmp(again.why, answer.why) == 0);
    return 0;
}
