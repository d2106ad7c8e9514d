/* Process 1 of an instance: its start and its loop. See agent.h. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/agent/agent.h"
#include "sandbox/shared/wire.h"

#define EVENTS_MAX 16

int loop_watch(struct agent *a, int fd, uint32_t events, enum event_kind kind, uint32_t index,
               struct err *e)
{
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)kind << 32 | index};
    if (epoll_ctl(a->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return err_sys(e, ERR_IO, errno, "watch a descriptor");
    return 0;
}

void loop_rewatch(struct agent *a, int fd, uint32_t events, enum event_kind kind, uint32_t index)
{
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)kind << 32 | index};
    (void)epoll_ctl(a->epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

void loop_deadline(struct agent *a, enum deadline which, uint64_t boot_ms)
{
    a->deadlines[which] = boot_ms;
}

/* One timer for the nearest deadline. */
static void arm_timer(struct agent *a)
{
    uint64_t nearest = 0;
    for (size_t i = 0; i < DEADLINE_COUNT; i++)
        if (a->deadlines[i] != 0 && (nearest == 0 || a->deadlines[i] < nearest))
            nearest = a->deadlines[i];
    if (nearest == a->armed_ms)
        return;
    a->armed_ms = nearest;
    const struct itimerspec at = {.it_value = {.tv_sec = (time_t)(nearest / 1000),
                                               .tv_nsec = (long)(nearest % 1000) * 1000000}};
    assert_always(timerfd_settime(a->timer_fd, TFD_TIMER_ABSTIME, &at, NULL) == 0);
}

static void deadline_passed(struct agent *a, enum deadline which)
{
    switch (which) {
    case DEADLINE_READY:
        ready_poll(a);
        break;
    case DEADLINE_HEALTH:
        ready_health_tick(a);
        break;
    case DEADLINE_STOP:
        ending_now(a, a->stop_reason, "");
    case DEADLINE_LIFE:
        ending_stop(a, END_EXPIRED, a->setup == NULL ? 0 : a->setup->drain_ms);
        break;
    case DEADLINE_LEASE:
        ending_now(a, END_LEASE_LOST, "its lease was over");
    case DEADLINE_RUNNER_GRACE:
        ending_now(a, END_AGENT_LOST, "no runner came back");
    case DEADLINE_LOG:
        logs_resume(a);
        break;
    case DEADLINE_REAP:
        command_reap(a);
        break;
    case DEADLINE_COUNT:
        break;
    }
}

static void timer_event(struct agent *a)
{
    uint64_t expirations;
    (void)!read(a->timer_fd, &expirations, sizeof expirations);
    a->armed_ms = 0;
    uint64_t now = clock_boot_ms();
    for (enum deadline i = 0; i < DEADLINE_COUNT; i++) {
        if (a->deadlines[i] == 0 || a->deadlines[i] > now)
            continue;
        a->deadlines[i] = 0;
        deadline_passed(a, i);
    }
}

static void signal_event(struct agent *a)
{
    struct signalfd_siginfo info[16];
    (void)!read(a->signal_fd, info, sizeof info);
    command_reap(a);
}

static void dispatch(struct agent *a, const struct epoll_event *event)
{
    uint32_t index = (uint32_t)event->data.u64;
    switch ((enum event_kind)(event->data.u64 >> 32)) {
    case EVENT_SIGNAL:
        signal_event(a);
        break;
    case EVENT_TIMER:
        timer_event(a);
        break;
    case EVENT_LISTENER:
        channel_accept(a);
        break;
    case EVENT_CHANNEL:
        channel_event(a, index, event->events);
        break;
    case EVENT_LOG:
        logs_event(a, index);
        break;
    case EVENT_STATUS:
        command_status_event(a, index);
        break;
    }
}

/* 0, 1 and 2 are /dev/null for reading and writing, without O_CLOEXEC: commands that get nothing
 * else inherit them. 3 and 4 are the runner's; whatever else came is closed. */
static int take_descriptors(struct agent *a, struct err *e)
{
    if (close_range(AGENT_CHANNEL_FD + 1, ~0u, 0) != 0)
        return err_sys(e, ERR_IO, errno, "close descriptors");
    if (fcntl(AGENT_LISTENER_FD, F_SETFD, FD_CLOEXEC) != 0 ||
        fcntl(AGENT_CHANNEL_FD, F_SETFD, FD_CLOEXEC) != 0)
        return err_sys(e, ERR_IO, errno, "take the runner's descriptors");
    CLEANUP_FD int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return err_sys(e, ERR_IO, errno, "open /dev/null");
    for (int i = 0; i < 3; i++)
        if (null == i ? fcntl(null, F_SETFD, 0) != 0 : dup2(null, i) < 0)
            return err_sys(e, ERR_IO, errno, "take /dev/null");
    if (null < 3)
        (void)steal_fd(&null);
    /* No terminal and no /proc are found out by whoever needs them. */
    a->proc_fd = open("/proc", O_PATH | O_CLOEXEC | O_DIRECTORY);
    a->pts_fd = open("/dev/pts", O_PATH | O_CLOEXEC | O_DIRECTORY);
    return 0;
}

static int prepare(struct agent *a, struct err *e)
{
    for (size_t i = 0; i < AGENT_COMMANDS_MAX; i++)
        a->commands[i].status_fd = a->commands[i].tty_fd = -1;
    a->logs.files[0] = a->logs.files[1] = a->logs.pipes[0] = a->logs.pipes[1] = -1;
    a->readiness.diag_fd = -1;
    a->channel.fd = a->go_fd = -1;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    if (sigprocmask(SIG_BLOCK, &child, NULL) != 0)
        return err_sys(e, ERR_IO, errno, "block SIGCHLD");
    a->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    a->signal_fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    a->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (a->epoll_fd < 0 || a->signal_fd < 0 || a->timer_fd < 0)
        return err_sys(e, ERR_IO, errno, "make the loop");
    int rc = loop_watch(a, a->signal_fd, EPOLLIN, EVENT_SIGNAL, 0, e);
    if (rc == 0)
        rc = loop_watch(a, a->timer_fd, EPOLLIN, EVENT_TIMER, 0, e);
    if (rc == 0)
        channel_open(a, AGENT_CHANNEL_FD);
    return rc;
}

static void report_failure(const struct err *e)
{
    Skerry__Agent__Ending ending = SKERRY__AGENT__ENDING__INIT;
    ending.reason = END_START_FAILED;
    ending.message = (char *)(uintptr_t)e->msg;
    Skerry__Agent__FromAgent message = SKERRY__AGENT__FROM_AGENT__INIT;
    message.message_case = SKERRY__AGENT__FROM_AGENT__MESSAGE_ENDING;
    message.ending = &ending;
    (void)!wire_send(AGENT_CHANNEL_FD, &message.base, NULL, 0, NULL);
}

int main(int argc, char **argv)
{
    (void)argc;
    /* All the agent's state; static, as most of its pages are never touched. */
    static struct agent agent;
    struct agent *a = &agent;
    struct err e = {0};
    privilege_signals_reset();
    /* In a microVM and in tests the root is there already. */
    if (argv[0] != NULL && strcmp(argv[0], BIND_BLANK_NAME) == 0)
        a->one_id = blank_become();
    int rc = privilege_drop(a->one_id, &e);
    if (rc == 0)
        rc = take_descriptors(a, &e);
    if (rc == 0)
        rc = prepare(a, &e);
    if (rc != 0) {
        err_wrap(&e, "agent");
        report_failure(&e);
        return 1;
    }
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        arm_timer(a);
        int count = epoll_wait(a->epoll_fd, events, EVENTS_MAX, -1);
        for (int i = 0; i < count; i++)
            dispatch(a, &events[i]);
    }
}
