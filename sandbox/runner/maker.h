/* sandbox/runner/maker.h - a process that makes blanks, so that the runner serves starts meanwhile.
 *
 * To make namespaces takes the kernel some milliseconds in which the runner would answer nobody, and
 * in which what was started last would wait for the same processor. The maker is a copy of the runner
 * without its descriptors: as privileged, it hears the runner alone. What it makes is the runner's
 * child (CLONE_PARENT).
 *
 * Thread: one. One order is under way at a time. The maker ends when the runner does. */
#ifndef SKERRY_SANDBOX_RUNNER_MAKER_H
#define SKERRY_SANDBOX_RUNNER_MAKER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/runner/blank.h"
#include "sandbox/runner/cgroup.h"
#include "sandbox/runner/state.h"

struct runner;
struct maker;

struct maker_order {
    struct id_range ids;
    struct cgroup cgroup; /* named, not made; the folder has its name */
    bool layer_map;       /* make one too */
};

struct maker_made {
    int network_fd;
    int layer_map; /* -1: not asked for */
    struct state_folder folder;
    struct blank blank;
};

/* The work itself, in whatever process; nothing but groups and a folder is left
 * of what fails. `sibling`: as in blank.h. */
int maker_make(const struct runner *r, const struct maker_order *order, pid_t *sibling,
               struct maker_made *out, struct err *e) ERR_CHECKED;

/* Forks. `light`: without what makes a copy of it dear; one that did not live so is best made whole. */
int maker_open(struct maker **out, const struct runner *r, bool light, struct err *e) ERR_CHECKED;
/* Ends what is under way; nothing but groups and a folder is left of it. */
void maker_close(struct maker *m);
/* Readable: an answer is there, or the maker is gone. */
int maker_fd(const struct maker *m);
bool maker_gone(const struct maker *m);
int maker_ask(struct maker *m, const struct maker_order *order, struct err *e) ERR_CHECKED;
/* Waits for the answer. -ERR_UNAVAILABLE: the maker is gone, or takes too long. */
int maker_take(struct maker *m, struct maker_made *out, struct err *e) ERR_CHECKED;

#endif
