/* Commands: started with pipes, a terminal or the log; reaped; told to the runner.
 *
 * A command's process group is its pid, which stays ours until we reap it, so a signal can never
 * reach a stranger. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/agent/agent.h"

/* A pass of reaping ends here, so that a fork bomb does not keep the runner waiting. */
#define REAPED_PER_PASS_MAX 256

struct command *command_find(struct agent *a, uint32_t exec_id)
{
    for (size_t i = 0; i < AGENT_COMMANDS_MAX; i++)
        if (a->commands[i].pid != 0 && a->commands[i].exec_id == exec_id)
            return &a->commands[i];
    return NULL;
}

static struct command *command_by_pid(struct agent *a, pid_t pid)
{
    for (size_t i = 0; i < AGENT_COMMANDS_MAX; i++)
        if (a->commands[i].pid == pid)
            return &a->commands[i];
    return NULL;
}

/* The slave belongs to the user, so that programs may open it again by name. */
static int terminal_open(struct agent *a, const Skerry__Agent__Command *what, uint32_t uid,
                         uint32_t gid, int *master, int *slave, struct err *e)
{
    if (a->pts_fd < 0)
        return err_set(e, ERR_UNSUPPORTED, "no terminals in this instance: /dev/pts is missing");
    privilege_files_as(uid, gid);
    CLEANUP_FD int m = openat(a->pts_fd, "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    int sys = errno;
    privilege_files_own();
    if (m < 0)
        return err_sys(e, ERR_IO, sys, "open a terminal");
    int unlocked = 0;
    const struct winsize size = {.ws_row = (unsigned short)(what->rows > 0 ? what->rows : 24),
                                 .ws_col =
                                     (unsigned short)(what->columns > 0 ? what->columns : 80)};
    if (ioctl(m, TIOCSPTLCK, &unlocked) != 0 || ioctl(m, TIOCSWINSZ, &size) != 0)
        return err_sys(e, ERR_IO, errno, "set up a terminal");
    int s = ioctl(m, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (s < 0)
        return err_sys(e, ERR_IO, errno, "open the terminal's other end");
    *master = steal_fd(&m);
    *slave = s;
    return 0;
}

/* What the child gets as 0, 1, 2; `owned` are ours to close after the fork. */
static int stdio_for(struct agent *a, const Skerry__Agent__Command *what, const int *fds,
                     struct child_plan *plan, int owned[2], struct err *e)
{
    for (int i = 0; i < 3; i++)
        plan->stdio[i] = STDIN_FILENO; /* our own, /dev/null for reading and writing */
    if (what->pipes && what->no_stdin) {
        plan->stdio[1] = fds[0];
        plan->stdio[2] = fds[1];
    } else if (what->pipes) {
        memcpy(plan->stdio, fds, sizeof plan->stdio);
    } else if (what->exec_id == 0 && !what->tty && a->logs.files[0] >= 0) {
        int rc = logs_pipes(a, owned, e);
        if (rc != 0)
            return rc;
        plan->stdio[1] = owned[0];
        plan->stdio[2] = owned[1];
    }
    return 0;
}

static int fork_child(struct agent *a, struct command *c, struct child_plan *plan, struct err *e)
{
    int status[2];
    if (pipe2(status, O_CLOEXEC | O_NONBLOCK) != 0)
        return err_sys(e, ERR_LIMIT, errno, "start the command");
    CLEANUP_FD int read_end = status[0];
    CLEANUP_FD int write_end = status[1];
    plan->status_fd = write_end;
    uint32_t slot = (uint32_t)(c - a->commands);
    int rc = loop_watch(a, read_end, EPOLLIN, EVENT_STATUS, slot, e);
    if (rc != 0)
        return rc;
    pid_t pid = fork();
    if (pid < 0)
        return err_sys(e, ERR_LIMIT, errno, "start the command (its process limit may be reached)");
    if (pid == 0)
        child_run(plan);
    *c = (struct command){.exec_id = plan->what->exec_id,
                          .pid = pid,
                          .status_fd = steal_fd(&read_end),
                          .tty_fd = -1,
                          .started_us = clock_monotonic_us()};
    return 0;
}

int command_start(struct agent *a, const Skerry__Agent__Command *what, const int *fds,
                  size_t fd_count, int *master, pid_t *pid, struct err *e)
{
    (void)fd_count; /* agent_check compared it with what->pipes */
    *master = -1;
    if (command_find(a, what->exec_id) != NULL)
        return err_set(e, ERR_EXISTS, "exec id %u runs already", what->exec_id);
    struct command *c = command_by_pid(a, 0);
    if (c == NULL)
        return err_set(e, ERR_LIMIT, "%d commands run in this instance already",
                       AGENT_COMMANDS_MAX);
    struct child_plan plan = {.agent = a,
                              .what = what,
                              .tty = -1,
                              .go_fd = -1,
                              .uid = what->set_user ? what->uid : a->setup->uid,
                              .gid = what->set_user ? what->gid : a->setup->gid};
    if (a->one_id && (plan.uid != a->setup->uid || plan.gid != a->setup->gid))
        return err_set(
            e, ERR_UNSUPPORTED,
            "user %u:%u: this instance has %u:%u and no other ids, as its node runs without "
            "root",
            plan.uid, plan.gid, a->setup->uid, a->setup->gid);
    int owned[2] = {-1, -1};
    CLEANUP_FD int terminal = -1;
    CLEANUP_FD int slave = -1;
    int rc = stdio_for(a, what, fds, &plan, owned, e);
    if (rc == 0 && what->tty)
        rc = terminal_open(a, what, plan.uid, plan.gid, &terminal, &slave, e);
    plan.tty = slave;
    if (rc == 0 && what->hold) {
        a->go_fd = plan.go_fd = eventfd(0, EFD_CLOEXEC);
        if (a->go_fd < 0)
            rc = err_sys(e, ERR_LIMIT, errno, "hold the command");
    }
    if (rc == 0)
        rc = fork_child(a, c, &plan, e);
    memory_close(&owned[0]);
    memory_close(&owned[1]);
    if (rc != 0) {
        memory_close(&a->go_fd);
        return rc;
    }
    c->tty_fd = steal_fd(&slave);
    *master = steal_fd(&terminal);
    *pid = c->pid;
    return 0;
}

const struct command *command_go(struct agent *a)
{
    struct command *main = command_find(a, 0);
    if (a->go_fd < 0 || main == NULL)
        return NULL;
    main->started_us = clock_monotonic_us();
    (void)eventfd_write(a->go_fd, 1);
    memory_close(&a->go_fd);
    return main;
}

void command_status_event(struct agent *a, uint32_t slot)
{
    if (slot >= AGENT_COMMANDS_MAX || a->commands[slot].pid == 0)
        return;
    struct command *c = &a->commands[slot];
    struct child_status status;
    ssize_t length = c->status_fd < 0 ? -1 : read(c->status_fd, &status, sizeof status);
    if (length < 0)
        return;
    memory_close(&c->status_fd);
    if (length == (ssize_t)sizeof status) {
        /* Written by our own child, which no code inside can write into. */
        status.message[sizeof status.message - 1] = '\0';
        c->failed = true;
        c->failed_code = status.exit_code;
        (void)text_copy(c->message, sizeof c->message, status.message);
        return;
    }
    c->executed = true;
    if (c->exec_id == 0)
        ready_executed(a);
}

void command_signal(const struct command *c, int signal)
{
    /* Until the child has called setsid its group is still ours. */
    if (kill(-c->pid, signal) != 0 && errno == ESRCH)
        (void)kill(c->pid, signal);
}

void command_exit_message(const struct exit_record *record, Skerry__Agent__Exited *out)
{
    skerry__agent__exited__init(out);
    out->exec_id = record->exec_id;
    out->exit_code = record->exit_code;
    out->signal = record->signal;
    out->cpu_us = record->cpu_us;
    out->wall_us = record->wall_us;
    out->message = (char *)(uintptr_t)record->message;
    out->stderr_tail = (char *)(uintptr_t)record->stderr_tail;
}

static uint64_t time_us(const struct timeval *t)
{
    return (uint64_t)t->tv_sec * 1000000u + (uint64_t)t->tv_usec;
}

static void command_ended(struct agent *a, struct command *c, int status,
                          const struct rusage *usage)
{
    /* What is in the status pipe now is all there will be: its writer is dead. */
    if (c->status_fd >= 0)
        command_status_event(a, (uint32_t)(c - a->commands));
    memory_close(&c->status_fd);
    memory_close(&c->tty_fd);
    uint32_t exec_id = c->exec_id;
    if (exec_id == EXEC_ID_HEALTH) {
        c->pid = 0;
        ready_health_ended(a, status);
        return;
    }
    struct exit_record *record = &a->exits[a->exit_count++ % EXITS_MAX];
    *record = (struct exit_record){
        .exec_id = exec_id,
        .exit_code = WIFEXITED(status) ? (uint32_t)WEXITSTATUS(status) : 0,
        .signal = WIFSIGNALED(status) ? (uint32_t)WTERMSIG(status) : 0,
        .cpu_us = time_us(&usage->ru_utime) + time_us(&usage->ru_stime),
        .wall_us = clock_monotonic_us() - c->started_us,
    };
    if (c->failed)
        (void)text_copy(record->message, sizeof record->message, c->message);
    c->pid = 0;
    if (exec_id == 0) {
        logs_drain(a);
        logs_tail(a, record->stderr_tail, sizeof record->stderr_tail);
    }
    Skerry__Agent__Exited exited;
    command_exit_message(record, &exited);
    if (exec_id == 0)
        exited.ending = (uint32_t)ending_of_main(a);
    Skerry__Agent__FromAgent message = SKERRY__AGENT__FROM_AGENT__INIT;
    message.message_case = SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED;
    message.exited = &exited;
    channel_send(a, &message, NULL);
    if (exec_id == 0)
        ending_main_exited(a);
}

void command_reap(struct agent *a)
{
    for (int i = 0; i < REAPED_PER_PASS_MAX; i++) {
        int status;
        struct rusage usage;
        pid_t pid = wait4(-1, &status, WNOHANG, &usage);
        if (pid < 0 && errno == ECHILD && a->stopping)
            ending_now(a, a->stop_reason, "");
        if (pid <= 0)
            return;
        struct command *c = command_by_pid(a, pid);
        if (c != NULL)
            command_ended(a, c, status, &usage);
    }
    loop_deadline(a, DEADLINE_REAP, clock_boot_ms());
}
