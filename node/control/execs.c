/* Commands that run beside the main one of an instance, and what is told to a command that runs. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/control/control.h"
#include "node/errands/errands.h"

static struct exec *exec_of(const struct node_ask *target)
{
    return target != NULL && target->kind == NODE_ASK_EXEC ? target->control : NULL;
}

static void exec_timer_freed_cb(uv_handle_t *handle)
{
    free(handle);
}

static void exec_free(struct exec *x)
{
    struct instance *i = x->instance;
    struct exec **at = &i->exec_list;
    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    if (x->timer != NULL)
        uv_close((uv_handle_t *)x->timer, exec_timer_freed_cb);
    free(x);
    i->execs--;
    i->last_exec_ms = clock_monotonic_ms();
    instance_maybe_empty(i);
}

static void exec_answer_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                           int *descriptors, size_t descriptor_count)
{
    (void)reply;
    struct exec *x = user;
    struct node_ask *ask = x->ask;
    struct instance *i = x->instance;
    if (error != NULL) {
        for (size_t k = 0; k < descriptor_count; k++)
            memory_close(&descriptors[k]);
        exec_free(x);
        ask->control = NULL;
        asks_refuse(ask,
                    error->code == ERR_NOT_FOUND ? PROBLEM_INSTANCE_GONE : asks_problem_of(error),
                    "exec in %s: %s", i->id.text, error->msg);
        instance_unpend(i);
        return;
    }
    x->started = true;
    ask->descriptors[0] = ask->descriptors[1] = ask->descriptors[2] = -1;
    size_t first = descriptor_count == 2 ? 1 : 0;
    for (size_t k = 0; k < descriptor_count; k++) {
        if (first + k < ARRAY_SIZE(ask->descriptors))
            ask->descriptors[first + k] = descriptors[k];
        else
            memory_close(&descriptors[k]);
    }
    ask->started_wall_ms = clock_wall_ms();
    asks_answer(ask);
    instance_unpend(i);
}

static void signal_ignored_cb(void *user, const struct err *error,
                              const Skerry__Runner__Reply *reply, int *descriptors,
                              size_t descriptor_count)
{
    (void)user;
    (void)error;
    (void)reply;
    for (size_t k = 0; k < descriptor_count; k++)
        memory_close(&descriptors[k]);
}

static void send_signal(struct node *n, const struct instance *i, uint32_t exec_id, unsigned signal)
{
    Skerry__Runner__Signal s = SKERRY__RUNNER__SIGNAL__INIT;
    s.id = (char *)(uintptr_t)i->id.text;
    s.exec_id = exec_id;
    s.signal = signal;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_SIGNAL;
    r.signal = &s;
    struct err e = {0};
    if (sandbox_ask(n->sandbox, &r, signal_ignored_cb, NULL, &e) != 0)
        log_warn("runner", "%s: signal %u was not sent: %s", i->id.text, signal, e.msg);
}

static void exec_timeout_cb(uv_timer_t *timer)
{
    struct exec *x = timer->data;
    x->timed_out = true;
    send_signal(x->instance->node, x->instance, x->id, SIGKILL);
}

void execs_ask(struct node *n, struct node_ask *ask)
{
    struct instance *i = asks_need_instance(n, ask);
    if (i == NULL)
        return;
    if (i->phase != PHASE_READY) {
        asks_refuse(ask, PROBLEM_CONFLICT, "instance %s is not ready: nothing can run in it",
                    ask->instance);
        return;
    }
    struct exec *x = calloc(1, sizeof *x);
    if (x == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    x->ask = ask;
    x->instance = i;
    x->id = ++i->exec_next;
    Skerry__Runner__Exec m = SKERRY__RUNNER__EXEC__INIT;
    m.id = i->id.text;
    m.exec_id = x->id;
    m.n_command = ask->spec != NULL ? ask->spec->command.count : 0;
    m.command = ask->spec != NULL ? ask->spec->command.items : NULL;
    m.n_environment = ask->spec != NULL ? ask->spec->environment.count : 0;
    m.environment = ask->spec != NULL ? ask->spec->environment.items : NULL;
    if (ask->set_user && ask->spec != NULL)
        m.set_user = workload_user_parse(ask->spec->user, &m.uid, &m.gid);
    m.tty = ask->tty;
    m.rows = ask->rows;
    m.columns = ask->columns;
    m.no_stdin = ask->no_stdin;
    m.file_verb = (Skerry__Runner__FileVerb)ask->file_verb;
    m.path = (char *)(uintptr_t)(ask->path != NULL ? ask->path : "");
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_EXEC;
    r.exec = &m;
    struct err e = {0};
    if (sandbox_ask(n->sandbox, &r, exec_answer_cb, x, &e) != 0) {
        free(x);
        asks_refuse_err(ask, &e);
        return;
    }
    x->next = i->exec_list;
    i->exec_list = x;
    i->execs++;
    i->pending++;
    ask->id = i->id;
    ask->control = x;
    if (ask->timeout_ms != 0 && (x->timer = calloc(1, sizeof *x->timer)) != NULL) {
        uv_timer_init(&n->loop, x->timer);
        x->timer->data = x;
        uv_timer_start(x->timer, exec_timeout_cb, ask->timeout_ms, 0);
    }
}

static void end_exec(struct exec *x)
{
    struct node_ask *ask = x->ask;
    ask->end.timed_out = x->timed_out;
    ask->control = NULL;
    exec_free(x);
    asks_ended(ask);
}

void execs_ended(struct instance *i, const Skerry__Runner__ExecEnded *ended)
{
    struct exec *x = i->exec_list;
    while (x != NULL && x->id != ended->exec_id)
        x = x->next;
    if (x == NULL || !x->started)
        return; /* of the main command, or from before a restart */
    struct node_ask *ask = x->ask;
    ask->end.exit_code = ended->signal != 0 ? -1 : (int)(ended->exit_code & 0xffu);
    ask->end.signal = ended->signal;
    ask->end.cpu_us = ended->cpu_us;
    ask->end.wall_us = ended->wall_us;
    ask->end.reason = x->timed_out ? END_TIMED_OUT : END_EXITED;
    text_copy(ask->end.detail, sizeof ask->end.detail, ended->message);
    end_exec(x);
}

void execs_instance_ended(struct instance *i)
{
    struct exec *x = i->exec_list;
    while (x != NULL) {
        struct exec *next = x->next;
        if (x->started) {
            x->ask->end.reason = i->end_reason;
            x->ask->end.exit_code = -1;
            x->ask->end.signal = SIGKILL;
            x->ask->end.oom = i->oom;
            text_format(x->ask->end.detail, sizeof x->ask->end.detail, "the instance ended: %s",
                        end_reason_name(i->end_reason));
            end_exec(x);
        }
        x = next;
    }
}

/* --- of what runs ------------------------------------------------------------------------------------------- */

/* A command that waits for a place still. */
static bool cancel_waiter(struct node *n, const struct node_ask *ask)
{
    struct waiter *w = ask->kind == NODE_ASK_CANCEL ? waiter_by_ask(n, ask->target) : NULL;
    if (w == NULL)
        return false;
    steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_CANCEL, .waiter = w->handle});
    w = waiter_by_ask(n, ask->target);
    if (w != NULL)
        joins_refuse(n, w, PROBLEM_INTERNAL, "the client left", 0, NULL);
    return true;
}

void execs_ask_target(struct node *n, struct node_ask *ask)
{
    struct exec *x = exec_of(ask->target);
    bool command = ask->target->kind == NODE_ASK_RUN || ask->target->kind == NODE_ASK_COMMAND;
    struct instance *i = x != NULL ? x->instance : command ? ask->target->control : NULL;
    if (command && (errands_target(n, ask) || cancel_waiter(n, ask))) {
        asks_answer(ask);
        return;
    }
    if (i == NULL) {
        asks_answer(ask); /* it has ended meanwhile: nothing is left to do */
        return;
    }
    uint32_t exec_id = x != NULL ? x->id : 0;
    if (ask->kind == NODE_ASK_SIGNAL) {
        send_signal(n, i, exec_id, ask->signal);
    } else if (ask->kind == NODE_ASK_CANCEL) {
        if (x != NULL)
            send_signal(n, i, exec_id, SIGKILL);
        else
            instance_stop(i, ask->reason != END_NONE ? ask->reason : END_CLIENT_GONE, 0);
    } else {
        Skerry__Runner__Resize m = SKERRY__RUNNER__RESIZE__INIT;
        m.id = i->id.text;
        m.exec_id = exec_id;
        m.rows = ask->rows;
        m.columns = ask->columns;
        Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
        r.verb_case = SKERRY__RUNNER__REQUEST__VERB_RESIZE;
        r.resize = &m;
        struct err e = {0};
        if (sandbox_ask(n->sandbox, &r, signal_ignored_cb, NULL, &e) != 0)
            log_debug("runner", "resize: %s", e.msg);
    }
    asks_answer(ask);
}
