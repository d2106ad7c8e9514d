/* sandbox/runner/reaper.h - what is slow about ends, in a child of the runner.
 *
 * Ended instances are collected for a moment; then one child waits until their groups are empty,
 * removes the groups and the folders, and exits. The same kind of child deletes old logs. A place is
 * free again only when all of it is gone; what cannot be removed is tried again and logged. */
#ifndef SKERRY_SANDBOX_RUNNER_REAPER_H
#define SKERRY_SANDBOX_RUNNER_REAPER_H

#include "base/err.h"
#include "sandbox/runner/blanks.h"

struct runner;
struct reaper;

int reaper_open(struct reaper **out, struct runner *r, struct err *e) ERR_CHECKED;
/* Removes what waits, in this process. */
void reaper_close(struct reaper *reaper);
/* Takes the place. `id` names the folder below instances/. */
void reaper_add(struct reaper *reaper, struct place *place, const char *id);

#endif
