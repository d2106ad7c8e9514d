/* sandbox/runner/blanks.h - places for instances, and blanks kept ready in some of them.
 *
 * A place is a range of user ids and control groups named after it. It is taken with a blank and
 * given back when nothing of the instance is left, so a range is never in use twice; but where all
 * instances have the same ids (powers.h), a place is a number and nothing more. */
#ifndef SKERRY_SANDBOX_RUNNER_BLANKS_H
#define SKERRY_SANDBOX_RUNNER_BLANKS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/runner/blank.h"
#include "sandbox/runner/cgroup.h"
#include "sandbox/runner/state.h"

struct runner;
struct blanks;

struct place {
    bool owned; /* false: of another runner's range, seen at adoption */
    uint32_t slot;
    struct id_range ids;
    struct cgroup cgroup; /* its folder has the same name until it is an instance's */
    int layer_map; /* a user namespace that maps the ids of layers to ours; -1: none yet, or no more */
    /* Of a running instance: its mounts, whose taking apart (RCU waits of the kernel) would else be the
     * last thing that its process 1 does before anybody hears of its end; -1: none. */
    int mounts_fd;
};

struct spare {
    struct place *place;
    int network_fd;
    struct state_folder folder;
    struct blank blank;
};

int blanks_open(struct blanks **out, struct runner *r, struct err *e) ERR_CHECKED;
/* Ends the blanks that wait and removes their groups and folders. */
void blanks_close(struct blanks *b);

/* One from the stock, or made now. All of it becomes the caller's. */
int blanks_take(struct blanks *b, struct spare *out, struct err *e) ERR_CHECKED;
/* Whether a folder has the name of a place: nothing has come of it yet. */
bool blanks_place_named(const char *name);
/* Marks the place of an adopted instance; a new place, the caller's. */
int blanks_place_claim(struct blanks *b, uint32_t uid_base, struct place **out,
                       struct err *e) ERR_CHECKED;
void blanks_place_free(struct blanks *b, struct place *place);
/* Refills the stock: the maker is told to. */
void blanks_start(struct blanks *b);
/* Makes the place's map of layers, if there is to be one and it was not made ahead. */
int blanks_layer_map(const struct blanks *b, struct place *place, struct err *e) ERR_CHECKED;
/* Places that can still be taken. */
uint32_t blanks_free_count(const struct blanks *b);

#endif
