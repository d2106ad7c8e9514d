/* scheduler/leases.h - the leases of nodes, as their leader and as their holder see them: two pure state
 * machines.
 *
 * A lease is a node's right to hold instances. It is granted and ended by commands of the registry;
 * renewals are held in the leader's memory. The argument why no two nodes hold one key:
 *
 *   - The holder counts its lease from the time when it *sent* the renewal, by CLOCK_BOOTTIME.
 *   - The leader counts from the time when it *answers*, and answers only after a barrier that was
 *     proposed after the renewal came: a deposed leader extends nothing.
 *   - A new leader waits a whole lease and two election timeouts before it ends any.
 *   - LEASE_DRIFT_PERCENT more is given at the leader, for clocks that run apart.
 *
 * So what the holder believes ends before what the leader believes (Gray and Cheriton, "Leases", 1989).
 *
 * Thread: the control loop. Time: milliseconds, handed in; the leader's monotonic, the holder's
 * CLOCK_BOOTTIME. */
#ifndef SKERRY_SCHEDULER_LEASES_H
#define SKERRY_SCHEDULER_LEASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"

/* The one table of times (design section 5). */
#define LEASE_RENEW_MS 2000u
#define LEASE_MS 6000u
#define LEASE_ELECTION_MS 200u
#define LEASE_BARRIER_SHARE_MS 250u
#define LEASE_DRIFT_PERCENT 5u

/* --- the leader ----------------------------------------------------------------------------------- */

struct lease_table;
int lease_table_new(struct lease_table **out, uint32_t nodes_max, struct err *e) ERR_CHECKED;
void lease_table_free(struct lease_table *t);

/* This node leads from now on: nothing ends before a whole lease and two elections have passed. */
void lease_table_lead(struct lease_table *t, uint64_t now_ms);
void lease_table_depose(struct lease_table *t);
/* The registry shows this lease (after lead, and whenever it changes); `leased` false: it has none. */
void lease_table_node(struct lease_table *t, node_id id, bool leased, uint64_t epoch,
                      uint64_t now_ms);
void lease_table_forget(struct lease_table *t, node_id id);
/* A renewal whose barrier has committed. */
void lease_table_renewed(struct lease_table *t, node_id id, uint64_t now_ms);
/* The next lease that is over: propose LEASE_EXPIRE for it (it is named again until the registry shows
 * its end). False: none; *next_ms says when to look again. */
bool lease_table_due(struct lease_table *t, uint64_t now_ms, node_id *id, uint64_t *epoch,
                     uint64_t *next_ms);
/* Until when the leader believes it; 0: it has none. For status. */
uint64_t lease_table_until(const struct lease_table *t, node_id id);

/* --- the holder ------------------------------------------------------------------------------------ */

struct lease_holder {
    uint64_t epoch;
    uint64_t deadline_ms; /* CLOCK_BOOTTIME; 0: none */
    uint64_t sent_ms;     /* of the renewal that is under way; 0: none is */
    uint64_t renew_ms;    /* when to send the next */
};
void lease_holder_init(struct lease_holder *h, uint64_t boot_ms);
/* True when a renewal is to be sent now; it is noted as sent. */
bool lease_holder_send(struct lease_holder *h, uint64_t boot_ms);
/* The answer to what was sent at `sent_ms`; a new deadline for runner and slots follows when true. */
bool lease_holder_granted(struct lease_holder *h, uint64_t sent_ms, uint64_t epoch);
/* It failed: sent again soon. */
void lease_holder_failed(struct lease_holder *h, uint64_t boot_ms);
bool lease_holder_valid(const struct lease_holder *h, uint64_t boot_ms);

#endif
