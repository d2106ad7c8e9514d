/* base/refusals.h - what was refused: counted by reason, and told in the log at most once a second
 * for each, with how many were not told, so that a stranger who knocks all day fills no disk.
 *
 * Thread: one at a time; counts may be read from any (they are aligned words, read as they are). */
#ifndef SKERRY_BASE_REFUSALS_H
#define SKERRY_BASE_REFUSALS_H

#include <stdint.h>

#define REFUSALS_REASONS_MAX 16u

struct refusals {
    const char *subject;      /* for log lines: "peer" */
    const char *const *names; /* of the reasons, for metrics; stable words */
    uint64_t counts[REFUSALS_REASONS_MAX];
    uint64_t untold[REFUSALS_REASONS_MAX];
    uint64_t told_ms[REFUSALS_REASONS_MAX]; /* CLOCK_MONOTONIC; 0: never */
};

/* `format` says who and what: "127.0.0.9:4711: its key is unknown". No secret may stand there. */
void refusals_note(struct refusals *r, unsigned reason, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Only counts: for what is usual. */
void refusals_add(struct refusals *r, unsigned reason);
uint64_t refusals_count(const struct refusals *r, unsigned reason);

#endif
