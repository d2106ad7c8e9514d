#include "sandbox/runner/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"

/* A round is short enough that one busy descriptor does not hold up the others for long. */
#define EVENTS_PER_ROUND 64

struct loop {
    int epoll;
    int clock; /* timerfd, armed at the first timer */
    uint64_t armed_boot_ms;
    bool stopping;
    struct epoll_event round[EVENTS_PER_ROUND];
    int round_count;
    int round_next;
    struct loop_timer **heap; /* from index 1 */
    size_t timer_count;
    size_t timers_max;
};

int loop_open(struct loop **out, size_t timers_max, struct err *e)
{
    struct loop *loop = calloc(1, sizeof *loop);
    if (loop == NULL)
        return err_set(e, ERR_NO_MEMORY, "loop");
    loop->timers_max = timers_max;
    loop->heap = calloc(timers_max + 1, sizeof(struct loop_timer *));
    loop->epoll = epoll_create1(EPOLL_CLOEXEC);
    loop->clock = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (loop->heap == NULL || loop->epoll < 0 || loop->clock < 0 ||
        epoll_ctl(loop->epoll, EPOLL_CTL_ADD, loop->clock, &event) < 0) {
        int rc = err_sys(e, ERR_IO, errno, "loop");
        loop_close(loop);
        return rc;
    }
    *out = loop;
    return 0;
}

void loop_close(struct loop *loop)
{
    if (loop == NULL)
        return;
    memory_close(&loop->epoll);
    memory_close(&loop->clock);
    free(loop->heap);
    free(loop);
}

/* --- descriptors ------------------------------------------------------------------------------ */

int loop_watch_start(struct loop *loop, struct loop_watch *watch, int fd, uint32_t events,
                     void (*cb)(struct loop_watch *, uint32_t), struct err *e)
{
    struct epoll_event event = {.events = events, .data.ptr = watch};
    if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        return err_sys(e, ERR_IO, errno, "watch descriptor %d", fd);
    *watch = (struct loop_watch){.fd = fd, .events = events, .cb = cb};
    return 0;
}

int loop_watch_change(struct loop *loop, struct loop_watch *watch, uint32_t events, struct err *e)
{
    if (watch->events == events)
        return 0;
    struct epoll_event event = {.events = events, .data.ptr = watch};
    if (epoll_ctl(loop->epoll, EPOLL_CTL_MOD, watch->fd, &event) < 0)
        return err_sys(e, ERR_IO, errno, "watch descriptor %d", watch->fd);
    watch->events = events;
    return 0;
}

void loop_watch_stop(struct loop *loop, struct loop_watch *watch)
{
    if (watch->fd < 0)
        return;
    (void)epoll_ctl(loop->epoll, EPOLL_CTL_DEL, watch->fd, NULL);
    /* By hand and not by the last close: a process that was forked meanwhile may hold a copy. */
    watch->fd = -1;
    /* Its event may wait in this round; its memory may be gone when its turn comes. */
    for (int i = loop->round_next; i < loop->round_count; i++)
        if (loop->round[i].data.ptr == watch)
            loop->round[i].events = 0;
}

/* --- timers: a binary heap, the earliest first ------------------------------------------------ */

static void heap_put(struct loop *loop, size_t position, struct loop_timer *timer)
{
    loop->heap[position] = timer;
    timer->position = position;
}

static void heap_rise(struct loop *loop, size_t position)
{
    struct loop_timer *timer = loop->heap[position];
    while (position > 1 && timer->at_boot_ms < loop->heap[position / 2]->at_boot_ms) {
        heap_put(loop, position, loop->heap[position / 2]);
        position /= 2;
    }
    heap_put(loop, position, timer);
}

static void heap_sink(struct loop *loop, size_t position)
{
    struct loop_timer *timer = loop->heap[position];
    for (;;) {
        size_t child = position * 2;
        if (child > loop->timer_count)
            break;
        if (child < loop->timer_count &&
            loop->heap[child + 1]->at_boot_ms < loop->heap[child]->at_boot_ms)
            child++;
        if (timer->at_boot_ms <= loop->heap[child]->at_boot_ms)
            break;
        heap_put(loop, position, loop->heap[child]);
        position = child;
    }
    heap_put(loop, position, timer);
}

int loop_timer_start(struct loop *loop, struct loop_timer *timer, uint64_t at_boot_ms,
                     void (*cb)(struct loop_timer *), struct err *e)
{
    loop_timer_stop(loop, timer);
    if (loop->timer_count == loop->timers_max)
        return err_set(e, ERR_LIMIT, "more than %zu timers", loop->timers_max);
    timer->at_boot_ms = at_boot_ms;
    timer->cb = cb;
    loop->timer_count++;
    heap_put(loop, loop->timer_count, timer);
    heap_rise(loop, loop->timer_count);
    return 0;
}

void loop_timer_stop(struct loop *loop, struct loop_timer *timer)
{
    size_t position = timer->position;
    if (position == 0)
        return;
    timer->position = 0;
    struct loop_timer *last = loop->heap[loop->timer_count--];
    if (last == timer)
        return;
    heap_put(loop, position, last);
    heap_rise(loop, position);
    heap_sink(loop, last->position);
}

/* Arms the clock for the first timer; one system call only when that changed. */
static int clock_arm(struct loop *loop, struct err *e)
{
    uint64_t at = loop->timer_count == 0 ? 0 : loop->heap[1]->at_boot_ms;
    if (at == loop->armed_boot_ms)
        return 0;
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(at / 1000), .tv_nsec = (long)(at % 1000) * 1000000}};
    /* Zero would disarm; a time in the past fires at once. */
    if (loop->timer_count > 0 && at == 0)
        when.it_value.tv_nsec = 1;
    if (timerfd_settime(loop->clock, TFD_TIMER_ABSTIME, &when, NULL) < 0)
        return err_sys(e, ERR_IO, errno, "arm timer");
    loop->armed_boot_ms = at;
    return 0;
}

static void timers_fire(struct loop *loop)
{
    uint64_t now = clock_boot_ms();
    /* A timer that starts itself anew for "now" gets its turn in the next round. */
    for (size_t n = loop->timer_count; n > 0 && loop->timer_count > 0; n--) {
        struct loop_timer *timer = loop->heap[1];
        if (timer->at_boot_ms > now)
            break;
        loop_timer_stop(loop, timer);
        timer->cb(timer);
    }
    loop->armed_boot_ms = 0;
}

/* --- processes -------------------------------------------------------------------------------- */

static void child_ready_cb(struct loop_watch *watch, uint32_t events)
{
    (void)events;
    struct loop_child *child = container_of(watch, struct loop_child, watch);
    int status = -1;
    if (child->ours && waitpid(child->pid, &status, WNOHANG) == 0)
        return;
    loop_child_stop(child->loop, child);
    child->cb(child, status);
}

int loop_child_start(struct loop *loop, struct loop_child *child, pid_t pid, int pidfd, bool ours,
                     void (*cb)(struct loop_child *, int status), struct err *e)
{
    if (pidfd < 0)
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        return err_sys(e, ERR_IO, errno, "open process %d", (int)pid);
    *child = (struct loop_child){
        .pid = pid, .ours = ours, .loop = loop, .watch = LOOP_WATCH_STOPPED, .cb = cb};
    int rc = loop_watch_start(loop, &child->watch, pidfd, EPOLLIN, child_ready_cb, e);
    if (rc < 0)
        memory_close(&pidfd);
    return rc;
}

void loop_child_stop(struct loop *loop, struct loop_child *child)
{
    int pidfd = child->watch.fd;
    loop_watch_stop(loop, &child->watch);
    memory_close(&pidfd);
}

/* --- running ---------------------------------------------------------------------------------- */

int loop_run(struct loop *loop, struct err *e)
{
    while (!loop->stopping) {
        int rc = clock_arm(loop, e);
        if (rc < 0)
            return rc;
        int count = epoll_wait(loop->epoll, loop->round, EVENTS_PER_ROUND, -1);
        if (count < 0 && errno != EINTR)
            return err_sys(e, ERR_IO, errno, "wait for events");
        loop->round_count = count < 0 ? 0 : count;
        bool clock = false;
        for (loop->round_next = 0; loop->round_next < loop->round_count;) {
            struct epoll_event event = loop->round[loop->round_next++];
            struct loop_watch *watch = event.data.ptr;
            if (watch == NULL)
                clock = true;
            else if (event.events != 0)
                watch->cb(watch, event.events);
        }
        loop->round_count = loop->round_next = 0;
        uint64_t expirations;
        if (clock && read(loop->clock, &expirations, sizeof expirations) >= 0)
            timers_fire(loop);
    }
    return 0;
}

void loop_stop(struct loop *loop)
{
    loop->stopping = true;
}
