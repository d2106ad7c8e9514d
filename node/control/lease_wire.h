/* node/control/lease_wire.h - the bytes of a lease's renewal and of its answer (node/control/lease.proto).
 *
 * Thread: any. Reading takes no more than LEASE_WIRE_BYTES_MAX and nothing out of its bounds. */
#ifndef SKERRY_NODE_CONTROL_LEASE_WIRE_H
#define SKERRY_NODE_CONTROL_LEASE_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"

#define LEASE_WIRE_BYTES_MAX 512u
#define LEASE_WHY_SIZE 256

enum lease_outcome { /* numbers travel */
                     LEASE_RENEWED = 1,
                     LEASE_NOT_LEADER,
                     LEASE_REFUSED
};

struct lease_answer {
    enum lease_outcome outcome;
    uint64_t epoch;           /* RENEWED */
    node_id leader;           /* NOT_LEADER; 0: not known */
    char why[LEASE_WHY_SIZE]; /* REFUSED */
};

/* Both return the length. */
size_t lease_renewal_write(uint8_t out[LEASE_WIRE_BYTES_MAX]);
size_t lease_answer_write(uint8_t out[LEASE_WIRE_BYTES_MAX], const struct lease_answer *answer);

int lease_renewal_read(const uint8_t *data, size_t size, struct err *e) ERR_CHECKED;
int lease_answer_read(struct lease_answer *out, const uint8_t *data, size_t size,
                      struct err *e) ERR_CHECKED;

#endif
