/* sandbox/runner/loop.h - the runner's only loop: descriptors, timers and ends of processes.
 *
 * Thread:  one; nothing here is safe from another, nor from a signal handler.
 * Memory:  watches, timers and children are members of their owner's structs. A started one must
 *          be stopped before its memory goes; a callback may stop and free any of them, itself and
 *          others whose events came in the same round included.
 * Time:    milliseconds of CLOCK_BOOTTIME (clock_boot_ms), so that a deadline that passed while the
 *          machine slept fires at once. */
#ifndef SKERRY_SANDBOX_RUNNER_LOOP_H
#define SKERRY_SANDBOX_RUNNER_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

struct loop;

/* `events` are those of epoll: EPOLLIN, EPOLLOUT, EPOLLHUP, EPOLLERR. Level-triggered. */
struct loop_watch {
    int fd; /* the owner's; -1 when stopped */
    uint32_t events;
    void (*cb)(struct loop_watch *watch, uint32_t events);
};

struct loop_timer {
    uint64_t at_boot_ms;
    size_t position; /* in the heap, from 1; 0 when stopped */
    void (*cb)(struct loop_timer *timer);
};

struct loop_child {
    pid_t pid;
    bool ours; /* a child of this process; else its status cannot be known */
    struct loop *loop;
    struct loop_watch watch; /* its fd, a pidfd, belongs to the loop_child */
    /* `status` as of waitpid, or -1 when it is not ours. Stopped before the callback. */
    void (*cb)(struct loop_child *child, int status);
};

/* At most `timers_max` timers at a time. */
int loop_open(struct loop **out, size_t timers_max, struct err *e) ERR_CHECKED;
void loop_close(struct loop *loop);
/* Until loop_stop. */
int loop_run(struct loop *loop, struct err *e) ERR_CHECKED;
void loop_stop(struct loop *loop);

/* A zeroed struct loop_watch is not a stopped one: fd must be -1. */
#define LOOP_WATCH_STOPPED                                                                         \
    (struct loop_watch)                                                                            \
    {                                                                                              \
        .fd = -1                                                                                   \
    }
int loop_watch_start(struct loop *loop, struct loop_watch *watch, int fd, uint32_t events,
                     void (*cb)(struct loop_watch *, uint32_t), struct err *e) ERR_CHECKED;
int loop_watch_change(struct loop *loop, struct loop_watch *watch, uint32_t events,
                      struct err *e) ERR_CHECKED;
/* Does not close the descriptor. Stopping a stopped one does nothing. */
void loop_watch_stop(struct loop *loop, struct loop_watch *watch);

/* Starts or moves it. */
int loop_timer_start(struct loop *loop, struct loop_timer *timer, uint64_t at_boot_ms,
                     void (*cb)(struct loop_timer *), struct err *e) ERR_CHECKED;
void loop_timer_stop(struct loop *loop, struct loop_timer *timer);

/* Takes `pidfd`, also when it fails; -1: one is opened here. */
int loop_child_start(struct loop *loop, struct loop_child *child, pid_t pid, int pidfd, bool ours,
                     void (*cb)(struct loop_child *, int status), struct err *e) ERR_CHECKED;
/* Forgets it; an own child stays a zombie until somebody waits for it. */
void loop_child_stop(struct loop *loop, struct loop_child *child);

#endif
