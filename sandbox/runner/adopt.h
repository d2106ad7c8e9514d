/* sandbox/runner/adopt.h - instances of an earlier runner of this directory.
 *
 * Each folder below instances/ is one. If its process 1 lives (pid and start time as written down),
 * its agent is asked for its state, over the socket in the folder. What does not answer in time, and
 * what has no process, is swept: processes, groups, folder. Groups in our own place that belong to
 * no instance (blanks of the earlier runner) are swept too. */
#ifndef SKERRY_SANDBOX_RUNNER_ADOPT_H
#define SKERRY_SANDBOX_RUNNER_ADOPT_H

#include "base/err.h"

struct runner;
struct adoption;

/* Ends with runner_serve, now or when the agents have answered. */
int adopt_start(struct runner *r, struct err *e) ERR_CHECKED;
/* One agent told its state, or ended. */
void adopt_done(struct runner *r);
void adopt_free(struct adoption *adoption);

#endif
