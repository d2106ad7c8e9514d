/* tests/lib/registry_lone.h - a registry of one voter on a loop of its own, for tests on a real disk.
 *
 * Whatever takes longer than LONE_DEADLINE_MS fails the test. */
#ifndef SKERRY_TESTS_REGISTRY_LONE_H
#define SKERRY_TESTS_REGISTRY_LONE_H

#include <uv.h>

#include "raft/registry.h"

enum { LONE_DEADLINE_MS = 60000 };

struct lone {
    uv_loop_t loop;
    uv_timer_t alarm; /* bounds every wait */
    struct registry *registry;
    bool leader, late, failed, closed;
    unsigned changes;
    struct err failure;
};

void lone_loop(struct lone *n);
void lone_loop_end(struct lone *n);
struct registry_options lone_options(struct lone *n, const char *directory);
/* Until it leads. */
void lone_start_with(struct lone *n, const struct registry_options *options);
void lone_start(struct lone *n, const char *directory); /* lone_loop as well */
void lone_stop(struct lone *n);                         /* lone_loop_end as well */
void lone_run_until(struct lone *n, const bool *flag);
void lone_closed(void *user); /* for registry_close: sets `closed` */

struct lone_answer {
    bool done;
    bool error;
    struct err err;
    struct registry_result result;
};
/* A registry_result_cb; `user` is a struct lone_answer. */
void lone_answered(void *user, const struct err *error, const struct registry_result *result);
/* These wait for the answer. */
struct registry_result lone_propose(struct lone *n, const struct registry_command *command);
void lone_lease(struct lone *n); /* of node 1, for which all is reserved */
struct registry_result lone_deploy(struct lone *n, const char *name, const char *more);
struct registry_result lone_reserve(struct lone *n, const char *workload, uint64_t i);
bool lone_has(struct lone *n, uint64_t i); /* instance i */

/* Reserves instances `next` to `last` of workload hello, so many at a time; the next as soon as one is
 * answered. */
struct lone_flood {
    struct lone *n;
    unsigned in_flight, in_flight_max;
    uint64_t next, last;
    uint64_t answered, refused, failed;
    bool done;
    void (*each)(struct lone_flood *f, const struct registry_result *r, uint64_t i);
    int report;
};
void lone_flood_fill(struct lone_flood *f);
/* All of them, and waits. */
void lone_flood(struct lone *n, unsigned in_flight, uint64_t first, uint64_t last);

#endif
