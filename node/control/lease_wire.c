#include "node/control/lease_wire.h"

#include <string.h>

#include "base/memory.h"
#include "node/control/lease.pb-c.h"

size_t lease_renewal_write(uint8_t out[LEASE_WIRE_BYTES_MAX])
{
    Skerry__Lease__Renewal m = SKERRY__LEASE__RENEWAL__INIT;
    return skerry__lease__renewal__pack(&m, out);
}

size_t lease_answer_write(uint8_t out[LEASE_WIRE_BYTES_MAX], const struct lease_answer *answer)
{
    /* Three numbers of at most 11 bytes and a text of at most LEASE_WHY_SIZE + 2. */
    _Static_assert(LEASE_WHY_SIZE + 3 + 3 * 11 < LEASE_WIRE_BYTES_MAX, "an answer fits");
    Skerry__Lease__Answer m = SKERRY__LEASE__ANSWER__INIT;
    m.outcome = (Skerry__Lease__Outcome)answer->outcome;
    m.epoch = answer->epoch;
    m.leader = answer->leader;
    m.why = (char *)(uintptr_t)answer->why;
    return skerry__lease__answer__pack(&m, out);
}

static int too_long(size_t size, struct err *e)
{
    return err_set(e, ERR_PROTOCOL, "a message about a lease has %zu bytes; at most %u are taken",
                   size, LEASE_WIRE_BYTES_MAX);
}

int lease_renewal_read(const uint8_t *data, size_t size, struct err *e)
{
    if (size > LEASE_WIRE_BYTES_MAX)
        return too_long(size, e);
    Skerry__Lease__Renewal *m = skerry__lease__renewal__unpack(NULL, size, data);
    if (m == NULL)
        return err_set(e, ERR_PROTOCOL, "a renewal of a lease cannot be read");
    /* What a later version adds to the question does not matter to this one. */
    skerry__lease__renewal__free_unpacked(m, NULL);
    return 0;
}

int lease_answer_read(struct lease_answer *out, const uint8_t *data, size_t size, struct err *e)
{
    if (size > LEASE_WIRE_BYTES_MAX)
        return too_long(size, e);
    Skerry__Lease__Answer *m = skerry__lease__answer__unpack(NULL, size, data);
    if (m == NULL)
        return err_set(e, ERR_PROTOCOL, "the answer to a renewal of a lease cannot be read");
    int outcome = (int)m->outcome;
    *out = (struct lease_answer){.epoch = m->epoch, .leader = m->leader};
    bool good = outcome >= LEASE_RENEWED && outcome <= LEASE_REFUSED &&
                (outcome != LEASE_RENEWED || m->epoch != 0) &&
                text_copy(out->why, sizeof out->why, m->why);
    skerry__lease__answer__free_unpacked(m, NULL);
    if (!good)
        return err_set(e, ERR_PROTOCOL, "the answer to a renewal of a lease makes no sense");
    out->outcome = (enum lease_outcome)outcome;
    return 0;
}
