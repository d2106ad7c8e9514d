/* node/control/reports.h - what every node says of itself, so that status tells the same wherever it is asked: whether
 * it is well, what it cannot do (limits that it does not enforce, a runner that is away), and its clock.
 *
 *     every REPORTS_MS, of each living node:  question  u8 REPORTS_VERSION
 *                                             answer    JSON {"wall_ms", "well", "warnings": [...]}
 *
 * Clocks are compared by the round trip: theirs is taken to have been read in its middle, and what half the
 * trip may hide is given to the other node's favour.
 *
 * Thread: the control loop, but for the pure functions. Bounds: KNOWN_NODES_MAX nodes, REPORT_WARNINGS_MAX texts
 * of each. */
#ifndef SKERRY_NODE_CONTROL_REPORTS_H
#define SKERRY_NODE_CONTROL_REPORTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/id.h"

#define REPORTS_VERSION 1u
#define REPORTS_MS 3000u
/* Older than this it is not told any more. */
#define REPORTS_KEPT_MS 15000u
#define REPORT_WARNINGS_MAX 16u
#define REPORT_TEXT_BYTES_MAX 400u
#define REPORT_BYTES_MAX 16384u

struct node;
struct peer_question;

int reports_open(struct node *n, struct err *e) ERR_CHECKED;
/* Nobody is asked any more. */
void reports_stop(struct node *n);
/* After the cluster was closed, which answers what is under way. */
void reports_close(struct node *n);
/* CLUSTER_REPORT, of another node. */
void reports_question(struct node *n, struct peer_question *q);

struct report {
    bool well;
    int64_t ahead_ms; /* its clock, of ours */
    json_t *warnings; /* texts; the reports' own */
};
/* The last one of a node, if it is not too old. */
bool reports_get(const struct node *n, node_id id, struct report *out);

/* --- pure ------------------------------------------------------------------------------------------- */

/* How far `theirs` is ahead (negative: behind) of a clock that showed `sent` and `received`, at least. */
int64_t report_ahead_ms(uint64_t sent_ms, uint64_t received_ms, uint64_t theirs_ms);
/* What another node answered; warnings are new, without what a terminal would obey. */
bool report_read(struct report *out, uint64_t *wall_ms, const void *data, size_t size);

#endif
