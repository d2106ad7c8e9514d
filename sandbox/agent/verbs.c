/* What a runner asks, each answered with Done or State. */
#include <errno.h>
#include <sys/ioctl.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/agent/agent.h"

static void answer(struct agent *a, uint64_t seq, int rc, const struct err *e, pid_t pid,
                   const int *fd)
{
    Skerry__Agent__Done done = SKERRY__AGENT__DONE__INIT;
    done.error = (uint32_t)-rc;
    if (rc != 0)
        done.message = (char *)(uintptr_t)e->msg;
    done.pid = (uint32_t)pid;
    Skerry__Agent__FromAgent message = SKERRY__AGENT__FROM_AGENT__INIT;
    message.seq = seq;
    message.message_case = SKERRY__AGENT__FROM_AGENT__MESSAGE_DONE;
    message.done = &done;
    channel_send(a, &message, fd);
}

static void answer_state(struct agent *a, uint64_t seq)
{
    Skerry__Agent__State state = SKERRY__AGENT__STATE__INIT;
    Skerry__Agent__Ready ready;
    uint32_t exec_ids[AGENT_COMMANDS_MAX];
    uint32_t ports[PORTS_MAX];
    Skerry__Agent__Exited exited[EXITS_MAX];
    Skerry__Agent__Exited *exited_pointers[EXITS_MAX];
    state.setup = a->setup != NULL;
    state.started = a->started;
    state.main_exited = a->main_exited;
    state.unhealthy = a->health.unhealthy;
    state.started_boot_ms = a->started_boot_ms;
    if (a->readiness.ready) {
        ready_message(a, &ready);
        state.ready = &ready;
    } else {
        for (size_t i = 0; i < a->readiness.port_count; i++)
            ports[i] = a->readiness.ports[i];
        state.listening = ports;
        state.n_listening = a->readiness.port_count;
    }
    for (size_t i = 0; i < AGENT_COMMANDS_MAX; i++)
        if (a->commands[i].pid != 0 && a->commands[i].exec_id != EXEC_ID_HEALTH)
            exec_ids[state.n_exec_ids++] = a->commands[i].exec_id;
    state.exec_ids = exec_ids;
    size_t kept = a->exit_count < EXITS_MAX ? a->exit_count : EXITS_MAX;
    for (size_t i = 0; i < kept; i++) {
        command_exit_message(&a->exits[(a->exit_count - kept + i) % EXITS_MAX], &exited[i]);
        exited_pointers[i] = &exited[i];
    }
    state.exited = exited_pointers;
    state.n_exited = kept;
    Skerry__Agent__FromAgent message = SKERRY__AGENT__FROM_AGENT__INIT;
    message.seq = seq;
    message.message_case = SKERRY__AGENT__FROM_AGENT__MESSAGE_STATE;
    message.state = &state;
    channel_send(a, &message, NULL);
}

static int take_setup(struct agent *a, Skerry__Agent__ToAgent **message, const int *fds,
                      size_t fd_count, struct err *e)
{
    if (a->setup != NULL)
        return err_set(e, ERR_CONFLICT, "this instance is set up already");
    const Skerry__Agent__Setup *setup = (*message)->setup;
    int rc = channel_listen(a, e);
    if (rc == 0 && fd_count == 2)
        rc = logs_open(a, fds, setup->log_bytes_max, e);
    if (rc != 0)
        return rc;
    a->setup_message = steal_pointer(message);
    a->setup = setup;
    return 0;
}

static void set_life(struct agent *a, uint64_t remaining_ms)
{
    uint64_t now = clock_boot_ms();
    bool ends = remaining_ms > 0 && remaining_ms < UINT64_MAX - now;
    loop_deadline(a, DEADLINE_LIFE, ends ? now + remaining_ms : 0);
}

static void started(struct agent *a)
{
    a->started_us = clock_monotonic_us();
    a->started_boot_ms = clock_boot_ms();
    a->started = true;
    if (a->setup->life_max_ms > 0)
        set_life(a, a->setup->life_max_ms);
}

static int take_start(struct agent *a, const Skerry__Agent__Command *what, const int *fds,
                      size_t fd_count, int *master, pid_t *pid, struct err *e)
{
    assert_always(a->setup != NULL);
    if (a->started || a->go_fd >= 0)
        return err_set(e, ERR_CONFLICT, "this instance was started already");
    if (what->hold)
        return command_start(a, what, fds, fd_count, master, pid, e);
    int rc = what->n_command > 0 ? command_start(a, what, fds, fd_count, master, pid, e) : 0;
    if (rc == 0)
        started(a);
    return rc;
}

static int take_go(struct agent *a, pid_t *pid, struct err *e)
{
    const struct command *main = command_go(a);
    if (main == NULL)
        return err_set(e, ERR_CONFLICT, "no command is held in this instance");
    started(a);
    *pid = main->pid;
    return 0;
}

static int take_signal(struct agent *a, const Skerry__Agent__Signal *what, struct err *e)
{
    const struct command *c = command_find(a, what->exec_id);
    if (c == NULL)
        return err_set(e, ERR_NOT_FOUND, "exec id %u does not run", what->exec_id);
    command_signal(c, (int)what->signal);
    return 0;
}

static int take_resize(struct agent *a, const Skerry__Agent__Resize *what, struct err *e)
{
    const struct command *c = command_find(a, what->exec_id);
    if (c == NULL || c->tty_fd < 0)
        return err_set(e, ERR_NOT_FOUND, "exec id %u has no terminal", what->exec_id);
    const struct winsize size = {.ws_row = (unsigned short)what->rows,
                                 .ws_col = (unsigned short)what->columns};
    if (ioctl(c->tty_fd, TIOCSWINSZ, &size) != 0)
        return err_sys(e, ERR_IO, errno, "resize");
    return 0;
}

void verb_take(struct agent *a, Skerry__Agent__ToAgent **message, int *fds, size_t fd_count)
{
    const Skerry__Agent__ToAgent *m = *message;
    uint64_t seq = m->seq;
    struct err e = {0};
    pid_t pid = 0;
    CLEANUP_FD int master = -1;
    bool starts = false;
    int rc = agent_check(m, fd_count, &e);
    if (rc == 0 && a->setup == NULL &&
        (m->verb_case == SKERRY__AGENT__TO_AGENT__VERB_START ||
         m->verb_case == SKERRY__AGENT__TO_AGENT__VERB_EXEC))
        rc = err_set(&e, ERR_CONFLICT, "this instance is not set up");
    if (rc != 0) {
        answer(a, seq, rc, &e, 0, NULL);
        return;
    }
    switch (m->verb_case) {
    case SKERRY__AGENT__TO_AGENT__VERB_SETUP:
        rc = take_setup(a, message, fds, fd_count, &e);
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_START:
        rc = take_start(a, m->start, fds, fd_count, &master, &pid, &e);
        starts = rc == 0 && a->started;
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_GO:
        rc = take_go(a, &pid, &e);
        starts = rc == 0;
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_EXEC:
        rc = command_start(a, m->exec, fds, fd_count, &master, &pid, &e);
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_SIGNAL:
        rc = take_signal(a, m->signal, &e);
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_RESIZE:
        rc = take_resize(a, m->resize, &e);
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_STOP:
        ending_stop(a, (enum end_reason)m->stop->reason, m->stop->grace_ms);
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_LIFE:
        set_life(a, m->life->remaining_ms);
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_DEADLINE:
        loop_deadline(a, DEADLINE_LEASE, m->deadline->boot_ms);
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_HELLO:
        answer_state(a, seq);
        return;
    default:
        assert_always(false); /* agent_check let it pass */
    }
    answer(a, seq, rc, &e, pid, master >= 0 ? &master : NULL);
    /* After the answer: what follows from a start (Ready) comes behind it. */
    if (starts)
        ready_started(a);
}
