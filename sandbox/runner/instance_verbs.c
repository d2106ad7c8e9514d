/* What the node asks of an instance that is there. Each verb is answered once: here, or when the
 * agent has answered. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/instance.h"
#include "sandbox/runner/runner.h"
#include "sandbox/runner/state.h"

/* The agent kills after the grace by itself; this is for one that does not. */
#define STOP_MARGIN_MS 1000

static void answer(struct instance *i, const struct asker *asker, const struct err *error)
{
    server_answer(i->runner->server, asker, error, NULL, NULL, 0);
}

static bool running(struct instance *i, const struct asker *asker)
{
    if (i->phase == INSTANCE_STARTING || i->phase == INSTANCE_READY)
        return true;
    struct err e;
    err_set(&e, ERR_CONFLICT, "instance %s %s", i->id,
            i->phase < INSTANCE_STARTING ? "was not started" : "has ended");
    answer(i, asker, &e);
    return false;
}

/* Asks the agent; the answer goes to the asker. */
static void forward(struct instance *i, Skerry__Agent__ToAgent *message, const struct asker *asker)
{
    struct err e;
    struct waiting *w = waiting_new(asker);
    int rc =
        w == NULL ? err_set(&e, ERR_NO_MEMORY, "verb") : instance_ask(i, message, NULL, 0, w, &e);
    if (rc < 0)
        answer(i, asker, &e);
}

/* --- start ------------------------------------------------------------------------------------- */

static void command_of_main(const struct instance *i, Skerry__Agent__Command *c)
{
    const Skerry__Runner__Prepare *p = i->request->prepare;
    c->command = p->command;
    c->n_command = p->n_command;
    c->tty = p->main_pipes && p->tty;
    c->rows = p->rows;
    c->columns = p->columns;
    c->pipes = p->main_pipes && !p->tty;
    c->no_stdin = c->pipes && p->no_stdin;
    c->hold = !c->tty && c->n_command > 0;
}

static int main_send(struct instance *i, struct waiting *w, const Skerry__Agent__Command *command,
                     struct err *e)
{
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_START;
    message.start = (Skerry__Agent__Command *)(uintptr_t)command;
    int rc = instance_ask(i, &message, i->code_descriptors, i->code_descriptor_count, w, e);
    while (i->code_descriptor_count > 0)
        memory_close(&i->code_descriptors[--i->code_descriptor_count]);
    return rc;
}

int instance_hold_main(struct instance *i, struct err *e)
{
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command_of_main(i, &command);
    if (!command.hold)
        return 0;
    struct waiting *w = waiting_new(NULL);
    if (w == NULL)
        return err_set(e, ERR_NO_MEMORY, "start");
    w->kind = WAITING_HOLD;
    return main_send(i, w, &command, e);
}

static int main_go(struct instance *i, const struct asker *asker, struct err *e)
{
    struct waiting *w = waiting_new(asker);
    if (w == NULL)
        return err_set(e, ERR_NO_MEMORY, "commit");
    w->kind = WAITING_START;
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command_of_main(i, &command);
    if (!command.hold)
        return main_send(i, w, &command, e);
    Skerry__Agent__Empty empty = SKERRY__AGENT__EMPTY__INIT;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_GO;
    message.go = &empty;
    return instance_ask(i, &message, NULL, 0, w, e);
}

void instance_commit(struct instance *i, uint64_t epoch, const struct asker *asker)
{
    struct err e;
    if (i->phase != INSTANCE_PREPARED) {
        err_set(&e, ERR_CONFLICT, "instance %s is not prepared", i->id);
        answer(i, asker, &e);
        return;
    }
    if (epoch != 0 && epoch != i->epoch) {
        i->epoch = epoch;
        if (state_epoch_write(i, &e) < 0) {
            answer(i, asker, &e);
            instance_kill(i, END_START_FAILED);
            return;
        }
    }
    int rc = main_go(i, asker, &e);
    if (rc < 0) {
        answer(i, asker, &e);
        instance_kill(i, END_START_FAILED);
        return;
    }
    i->phase = INSTANCE_STARTING;
    i->started = true;
    i->started_boot_ms = clock_boot_ms();
    i->started_us = clock_monotonic_us();
    char path[48];
    text_format(path, sizeof path, "/proc/%d/ns/mnt", (int)i->pid);
    i->place->mounts_fd = open(path, O_RDONLY | O_CLOEXEC); /* without it its end takes longer */
}

void instance_discard(struct instance *i, const struct asker *asker)
{
    struct err e;
    if (i->phase > INSTANCE_PREPARED) {
        err_set(&e, ERR_CONFLICT, "instance %s was started; stop it", i->id);
        answer(i, asker, &e);
        return;
    }
    i->told = false; /* its end is of interest to nobody */
    instance_kill(i, END_CLIENT_GONE);
    answer(i, asker, NULL);
}

/* --- commands ---------------------------------------------------------------------------------- */

static bool exec_id_taken(const struct instance *i, uint32_t exec_id)
{
    for (size_t n = 0; n < i->exec_count; n++)
        if (i->execs[n] == exec_id)
            return true;
    return false;
}

static int exec(struct instance *i, const Skerry__Runner__Exec *x, const struct asker *asker,
                struct err *e)
{
    if (exec_id_taken(i, x->exec_id))
        return err_set(e, ERR_EXISTS, "exec %u of instance %s runs already", x->exec_id, i->id);
    if (i->exec_count == INSTANCE_EXECS_MAX)
        return err_set(e, ERR_LIMIT, "%d commands run in instance %s already", INSTANCE_EXECS_MAX,
                       i->id);
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command.exec_id = x->exec_id;
    command.command = x->command;
    command.n_command = x->n_command;
    command.environment = x->environment;
    command.n_environment = x->n_environment;
    command.set_user = x->set_user;
    command.uid = x->uid;
    command.gid = x->gid;
    command.tty = x->tty;
    command.rows = x->rows;
    command.columns = x->columns;
    command.file_verb = (uint32_t)x->file_verb;
    command.path = x->path;
    command.pipes = !x->tty;
    command.no_stdin = command.pipes && x->no_stdin;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_EXEC;
    message.exec = &command;
    struct waiting *w = waiting_new(asker);
    if (w == NULL)
        return err_set(e, ERR_NO_MEMORY, "exec");
    int code[3];
    size_t count = 0;
    if (command.pipes) {
        uint32_t uid = x->set_user ? x->uid : i->uid, gid = x->set_user ? x->gid : i->gid;
        if (instance_pipes(i, uid, gid, x->no_stdin, code, w->descriptors, &count, e) < 0) {
            waiting_free(w);
            return -(int)e->code;
        }
        w->descriptor_count = count;
    }
    w->kind = WAITING_EXEC;
    w->exec_id = x->exec_id;
    int rc = instance_ask(i, &message, code, count, w, e);
    while (count > 0)
        memory_close(&code[--count]);
    if (rc == 0)
        i->execs[i->exec_count++] = x->exec_id;
    return rc;
}

void instance_exec(struct instance *i, const Skerry__Runner__Exec *x, const struct asker *asker)
{
    struct err e;
    if (running(i, asker) && exec(i, x, asker, &e) < 0)
        answer(i, asker, &e);
}

void instance_signal(struct instance *i, const Skerry__Runner__Signal *s, const struct asker *asker)
{
    if (!running(i, asker))
        return;
    Skerry__Agent__Signal verb = SKERRY__AGENT__SIGNAL__INIT;
    verb.exec_id = s->exec_id;
    verb.signal = s->signal;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_SIGNAL;
    message.signal = &verb;
    forward(i, &message, asker);
}

void instance_resize(struct instance *i, const Skerry__Runner__Resize *z, const struct asker *asker)
{
    if (!running(i, asker))
        return;
    Skerry__Agent__Resize verb = SKERRY__AGENT__RESIZE__INIT;
    verb.exec_id = z->exec_id;
    verb.rows = z->rows;
    verb.columns = z->columns;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_RESIZE;
    message.resize = &verb;
    forward(i, &message, asker);
}

void instance_life(struct instance *i, const Skerry__Runner__Life *l, const struct asker *asker)
{
    if (!running(i, asker))
        return;
    Skerry__Agent__Life verb = SKERRY__AGENT__LIFE__INIT;
    verb.remaining_ms = l->remaining_ms;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_LIFE;
    message.life = &verb;
    forward(i, &message, asker);
}

/* --- ends -------------------------------------------------------------------------------------- */

static void stop_timeout_cb(struct loop_timer *timer)
{
    instance_kill(container_of(timer, struct instance, watchdog), END_KILLED);
}

static int stop_gently(struct instance *i, const Skerry__Runner__Stop *s, const struct asker *asker,
                       struct err *e)
{
    Skerry__Agent__Stop verb = SKERRY__AGENT__STOP__INIT;
    verb.grace_ms = s->grace_ms;
    verb.reason = s->reason;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_STOP;
    message.stop = &verb;
    struct waiting *w = waiting_new(asker);
    if (w == NULL)
        return err_set(e, ERR_NO_MEMORY, "stop");
    int rc = instance_ask(i, &message, NULL, 0, w, e);
    if (rc < 0)
        return rc;
    rc = loop_timer_start(i->runner->loop, &i->watchdog,
                          clock_boot_ms() + s->grace_ms + STOP_MARGIN_MS, stop_timeout_cb, e);
    if (rc < 0)
        instance_kill(i, (enum end_reason)s->reason);
    return 0;
}

void instance_stop(struct instance *i, const Skerry__Runner__Stop *s, const struct asker *asker)
{
    struct err e;
    bool gently = s->grace_ms > 0 && (i->phase == INSTANCE_STARTING || i->phase == INSTANCE_READY);
    if (i->phase < INSTANCE_ENDING && i->asked_reason == END_NONE)
        i->asked_reason = (enum end_reason)s->reason;
    /* Its answer is the agent's when it takes the verb; an agent that cannot hear is killed. */
    if (gently && stop_gently(i, s, asker, &e) == 0)
        return;
    instance_kill(i, (enum end_reason)s->reason);
    answer(i, asker, NULL);
}

static void deadline_cb(struct loop_timer *timer)
{
    struct instance *i = container_of(timer, struct instance, deadline);
    log_warn("runner", "%s: its lease ended", i->id);
    /* Before any other reason: whoever asked meanwhile, the lease was over. */
    i->asked_reason = END_LEASE_LOST;
    instance_kill(i, END_LEASE_LOST);
}

int instance_deadline_set(struct instance *i, uint64_t boot_ms, struct err *e)
{
    if (i->deadline_fd < 0)
        i->deadline_fd = openat(i->folder.fd, STATE_DEADLINE_FILE,
                                O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (i->deadline_fd < 0 ||
        pwrite(i->deadline_fd, &boot_ms, sizeof boot_ms, 0) != (ssize_t)sizeof boot_ms)
        return err_sys(e, ERR_IO, errno, "write deadline");
    if (boot_ms == 0) {
        loop_timer_stop(i->runner->loop, &i->deadline);
        return 0;
    }
    return loop_timer_start(i->runner->loop, &i->deadline, boot_ms, deadline_cb, e);
}

/* For the time when no runner is there. Its answer tells nobody anything: this runner has its own timer. */
static int tell_agent(struct instance *i, uint64_t boot_ms, struct err *e)
{
    Skerry__Agent__Deadline verb = SKERRY__AGENT__DEADLINE__INIT;
    verb.boot_ms = boot_ms;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_DEADLINE;
    message.deadline = &verb;
    struct waiting *w = waiting_new(NULL);
    if (w == NULL)
        return err_set(e, ERR_NO_MEMORY, "deadline");
    return instance_ask(i, &message, NULL, 0, w, e);
}

void instance_deadline(struct instance *i, const Skerry__Runner__Deadline *d,
                       const struct asker *asker)
{
    struct err e;
    int rc = i->phase >= INSTANCE_ENDING ? err_set(&e, ERR_CONFLICT, "instance %s has ended", i->id)
                                         : instance_deadline_set(i, d->boot_ms, &e);
    if (rc == 0 && tell_agent(i, d->boot_ms, &e) == 0)
        i->agent_fenced = true;
    else if (rc == 0 && !i->agent_fenced)
        rc =
            -(int)e.code; /* one that could not be told anew keeps the earlier one, which is safe */
    answer(i, asker, rc < 0 ? &e : NULL);
}

/* --- looking in -------------------------------------------------------------------------------- */

void instance_sockets(struct instance *i, const Skerry__Runner__Sockets *s,
                      const struct asker *asker)
{
    if (!running(i, asker))
        return;
    struct err e;
    int made[REQUEST_SOCKETS_MAX];
    if (network_sockets(i->runner->network, i->network_fd, s->ipv6, made, s->count, &e) < 0) {
        answer(i, asker, &e);
        return;
    }
    Skerry__Runner__SocketsReply sockets = SKERRY__RUNNER__SOCKETS_REPLY__INIT;
    sockets.count = s->count;
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    reply.result_case = SKERRY__RUNNER__REPLY__RESULT_SOCKETS;
    reply.sockets = &sockets;
    server_answer(i->runner->server, asker, NULL, &reply, made, s->count);
}

/* What its root, /tmp and /dev/shm hold together: they lie on one file system. */
static uint64_t disk_bytes(const struct instance *i)
{
    char path[64];
    struct statvfs st;
    text_format(path, sizeof path, "/proc/%d/root/tmp", (int)i->pid);
    if (i->place == NULL || statvfs(path, &st) < 0)
        return 0;
    return (uint64_t)(st.f_blocks - st.f_bfree) * st.f_frsize;
}

void instance_stats(struct instance *i, const struct asker *asker)
{
    if (i->place != NULL)
        instance_usage_read(i);
    Skerry__Runner__Stats stats;
    instance_stats_fill(i, &stats);
    stats.disk_bytes = disk_bytes(i);
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    reply.result_case = SKERRY__RUNNER__REPLY__RESULT_STATS;
    reply.stats = &stats;
    server_answer(i->runner->server, asker, NULL, &reply, NULL, 0);
}
