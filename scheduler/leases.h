/* scheduler/leases.h - the leases of nodes, as their leader and as their holder see them: two pure state
 * machines.
 *
 * A lease is a node's right to hold instances. It is granted and ended by commands of the registry;
 * renewals are held in the leader's memory. The argument why no two nodes hold one key:
 *
 *   - The holder counts its lease from the time when it *sent* the renewal, by CLOCK_BOOTTIME.
 *   - The leader counts from the time when it *answers*, and answers only after a barrier that was
 *     proposed after the renewal came: a deposed leader extends nothing.
 *   - A new leader waits a whole lease and two elections before it ends any. Whatever its predecessor
 *     answered was sent before the new one was elected.
 *   - LEASE_DRIFT_PERCENT more is given at the leader, for clocks that run apart.
 *   - A lease whose end was proposed is never renewed again, whatever became of the proposal. And that
 *     proposal is of this leader in this term or of none: it is not sent to another leader and not
 *     tried again in a later term (raft/registry.h: REGISTRY_LEASE_EXPIRE), where somebody else
 *     may have renewed the lease meanwhile.
 *
 * So what the holder believes ends before what the leader believes (Gray and Cheriton, "Leases", 1989).
 *
 * Thread: the control loop. Time: milliseconds, handed in; the leader's monotonic, the holder's
 * CLOCK_BOOTTIME. Memory: bounded by `nodes_max`, all of it made at the beginning. */
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
/* A renewal that failed is sent again so soon: several fit into what is left of a lease. */
#define LEASE_RETRY_MS 250u
/* An answer that is not there by then is not waited for: two more tries fit into the lease. */
#define LEASE_ANSWER_MS 1000u
/* What a leader gives: 6.3 s. */
#define LEASE_GIVEN_MS (LEASE_MS + LEASE_MS * LEASE_DRIFT_PERCENT / 100u)

/* --- the leader ----------------------------------------------------------------------------------- */

struct lease_table;
int lease_table_new(struct lease_table **out, uint32_t nodes_max, struct err *e) ERR_CHECKED;
void lease_table_free(struct lease_table *t);

/* This node leads from now on: nothing ends before a whole lease and two elections have passed. */
void lease_table_lead(struct lease_table *t, uint64_t now_ms);
void lease_table_depose(struct lease_table *t);
/* The registry shows this lease (after lead, and whenever it changes); `leased` false: it has none.
 * -ERR_LIMIT: more nodes than `nodes_max`; such a node gets no lease. */
int lease_table_node(struct lease_table *t, node_id id, bool leased, uint64_t epoch,
                     uint64_t now_ms, struct err *e) ERR_CHECKED;
void lease_table_forget(struct lease_table *t, node_id id);
/* What the registry shows no more is forgotten: between the two, lease_table_node for each that is
 * there. */
void lease_table_mark(struct lease_table *t);
void lease_table_sweep(struct lease_table *t);
/* A renewal whose barrier has committed, after the table was told what the registry shows. False: it
 * must not be answered as renewed (the lease of that epoch is over, or its end was proposed). */
bool lease_table_renewed(struct lease_table *t, node_id id, uint64_t epoch,
                         uint64_t now_ms) ERR_CHECKED;
/* The next lease that is over: propose LEASE_EXPIRE for it (it is named again, each LEASE_RETRY_MS,
 * until the registry shows its end). False: none; *next_ms says when to look again, UINT64_MAX: when
 * something changes. */
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
/* When to ask lease_holder_send again. */
uint64_t lease_holder_next(const struct lease_holder *h);
/* The answer to what was sent at `sent_ms`; a new deadline for runner and slots follows when true.
 * A late answer counts from when its question was sent; one about an older epoch does not count. */
bool lease_holder_granted(struct lease_holder *h, uint64_t sent_ms, uint64_t epoch);
/* What was sent at `sent_ms` failed: sent again soon. */
void lease_holder_failed(struct lease_holder *h, uint64_t sent_ms, uint64_t boot_ms);
bool lease_holder_valid(const struct lease_holder *h, uint64_t boot_ms);

#endif
