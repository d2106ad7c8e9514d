/* Questions of the API thread: registry commands, instances made and ended by hand, ad-hoc commands,
 * execs, imports, status. Each is answered once; those that run something also get `ended`. */
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control.h"

/* --- answers -------------------------------------------------------------------------------------- */

static void answered_deliver(struct inbox_message *message, void *owner)
{
    struct node_ask *ask = container_of(message, struct node_ask, message);
    ask->answered(ask, owner);
}

static void ended_deliver(struct inbox_message *message, void *owner)
{
    struct node_ask *ask = container_of(message, struct node_ask, ended_message);
    ask->ended(ask, owner);
}

void asks_answer(struct node_ask *ask)
{
    ask->message.deliver = answered_deliver;
    /* The asker keeps its inbox open until it has all its answers. */
    assert_always(inbox_post_always(ask->reply_to, &ask->message));
}

void asks_ended(struct node_ask *ask)
{
    ask->ended_message.deliver = ended_deliver;
    assert_always(inbox_post_always(ask->reply_to, &ask->ended_message));
}

void asks_refuse(struct node_ask *ask, enum problem problem, const char *format, ...)
{
    ask->problem = problem;
    ask->ran = RAN_NO;
    if (problem_word(problem)->retryable && ask->retry_after_s == 0)
        ask->retry_after_s = 1;
    va_list args;
    va_start(args, format);
    vsnprintf(ask->detail, sizeof ask->detail, format, args);
    va_end(args);
    asks_answer(ask);
}

enum problem asks_problem_of(const struct err *error)
{
    switch (error->code) {
    case ERR_INVALID:
        return PROBLEM_WORKLOAD_INVALID;
    case ERR_NOT_FOUND:
        return PROBLEM_IMAGE_UNKNOWN;
    case ERR_CONFLICT:
    case ERR_EXISTS:
        return PROBLEM_CONFLICT;
    case ERR_LIMIT:
    case ERR_NO_MEMORY:
        return PROBLEM_NODE_FULL;
    case ERR_DENIED:
        return PROBLEM_FORBIDDEN;
    case ERR_UNSUPPORTED:
        return PROBLEM_NOT_ENFORCED;
    default:
        return PROBLEM_START_FAILED;
    }
}

static void refuse_err(struct node_ask *ask, const struct err *error)
{
    asks_refuse(ask, asks_problem_of(error), "%s", error->msg);
}

/* --- registry ----------------------------------------------------------------------------------------- */

struct proposal {
    struct node *node;
    struct node_ask *ask;
};

static void propose_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct proposal *p = user;
    struct node_ask *ask = p->ask;
    free(p);
    if (error != NULL) {
        asks_refuse(ask, error->code == ERR_TIMEOUT ? PROBLEM_OUTCOME_UNKNOWN : PROBLEM_NO_QUORUM,
                    "%s", error->msg);
        return;
    }
    ask->result = *result;
    if (result->problem != PROBLEM_NONE)
        asks_refuse(ask, result->problem, "%s", result->detail);
    else
        asks_answer(ask);
}

static void ask_propose(struct node *n, struct node_ask *ask)
{
    struct err e = {0};
    struct proposal *p = calloc(1, sizeof *p);
    if (p == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    *p = (struct proposal){.node = n, .ask = ask};
    if (registry_propose(n->registry, ask->command, propose_cb, p, &e) != 0) {
        free(p);
        asks_refuse(ask, e.code == ERR_LIMIT ? PROBLEM_LIMIT_REACHED : PROBLEM_NO_QUORUM, "%s",
                    e.msg);
    }
}

/* --- instances ------------------------------------------------------------------------------------------ */

/* A whole id of an instance here, or the question is answered. */
static struct instance *need_instance(struct node *n, struct node_ask *ask)
{
    struct instance *i = instance_find(n, ask->instance);
    if (i != NULL && i->phase != PHASE_ENDED)
        return i;
    struct registry_root *root = registry_root(n->registry);
    const struct registry_instance *r =
        registry_root_instance(root, ask->instance, strlen(ask->instance));
    if (r == NULL)
        asks_refuse(ask, PROBLEM_INSTANCE_UNKNOWN, "%s", ask->instance);
    else
        asks_refuse(ask, PROBLEM_INSTANCE_GONE, "instance %s ended: %s%s%s", ask->instance,
                    end_reason_name(r->reason), r->detail[0] != '\0' ? ": " : "", r->detail);
    registry_root_release(root);
    return NULL;
}

static void ask_start(struct node *n, struct node_ask *ask)
{
    struct registry_root *root = registry_root(n->registry);
    const struct registry_workload *w =
        registry_root_workload(root, ask->workload, strlen(ask->workload));
    bool command = w != NULL && w->spec.kind == WORKLOAD_COMMAND;
    registry_root_release(root);
    if (w == NULL) {
        asks_refuse(ask, PROBLEM_WORKLOAD_UNKNOWN, "%s", ask->workload);
        return;
    }
    if (command) {
        asks_refuse(ask, PROBLEM_CONFLICT,
                    "%s is of kind command: each request runs its own instance; invoke it",
                    ask->workload);
        return;
    }
    struct waiter *waiter = waiter_new(n, NULL, ask);
    if (waiter == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    bool keyed = ask->key != NULL && ask->key[0] != '\0';
    steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_ASK,
                                           .waiter = waiter->handle,
                                           .name = ask->workload,
                                           .key = ask->key,
                                           .exclusive = !keyed});
}

static void run_timeout_cb(uv_timer_t *timer)
{
    struct instance *i = timer->data;
    instance_stop(i, END_TIMED_OUT, 0);
}

static void ask_run(struct node *n, struct node_ask *ask)
{
    if (n->instance_count >= n->config->limits.instances_max) {
        asks_refuse(ask, PROBLEM_NODE_FULL, "%u instances run here: limits.instances_max",
                    n->instance_count);
        return;
    }
    char by[96];
    text_format(by, sizeof by, "%s at %s%s%s", ask->asked_by, n->config->name,
                ask->request_id != NULL ? ", request " : "",
                ask->request_id != NULL ? ask->request_id : "");
    struct instance_request r = {
        .run_spec = ask->spec,
        .asked_by = by,
        .asked_us = clock_monotonic_us(),
        .tty = ask->tty,
        .no_stdin = ask->no_stdin,
        .rows = ask->rows,
        .columns = ask->columns,
        .run_ask = ask,
    };
    struct instance *i;
    struct err e = {0};
    if (instance_start(n, &r, &i, &e) != 0)
        refuse_err(ask, &e);
}

void asks_run_granted(struct instance *i)
{
    struct node_ask *ask = i->run_ask;
    ask->id = i->id;
    ask->started_wall_ms = i->asked_wall_ms;
    for (size_t k = 0; k < ARRAY_SIZE(ask->descriptors); k++)
        ask->descriptors[k] = steal_fd(&i->descriptors[k]);
    if (ask->tty && ask->descriptors[0] < 0) {
        ask->descriptors[0] = ask->descriptors[1];
        ask->descriptors[1] = -1;
    }
    ask->control = i;
    if (ask->timeout_ms != 0) {
        i->timer = calloc(1, sizeof *i->timer);
        if (i->timer != NULL) {
            uv_timer_init(&i->node->loop, i->timer);
            i->timer->data = i;
            uv_timer_start(i->timer, run_timeout_cb, ask->timeout_ms, 0);
        }
    }
    explain_remember(i->node, ask->request_id, &i->id, PROBLEM_NONE, NULL);
    asks_answer(ask);
}

static void fill_end(struct node_ask *ask, const struct instance *i)
{
    ask->end.reason = i->end_reason;
    ask->end.exit_code = i->exit_code;
    ask->end.signal = i->signal;
    ask->end.timed_out = i->end_reason == END_TIMED_OUT;
    ask->end.oom = i->oom;
    ask->end.wall_us = i->wall_us;
    ask->end.cpu_us = i->cpu_us;
    ask->end.memory_peak_bytes = i->memory_peak_bytes;
    text_copy(ask->end.detail, sizeof ask->end.detail, i->end_message);
}

static void ask_stop(struct node *n, struct node_ask *ask)
{
    struct instance *i = need_instance(n, ask);
    if (i == NULL)
        return;
    ask->id = i->id;
    ask->control = i->stop_asks;
    i->stop_asks = ask;
    uint64_t grace_ms = i->spec->timeouts.drain_ms;
    instance_stop(i, END_KILLED,
                  grace_ms < CONTROL_STOP_GRACE_MS ? (unsigned)grace_ms : CONTROL_STOP_GRACE_MS);
}

static void ask_extend(struct node *n, struct node_ask *ask)
{
    struct instance *i = need_instance(n, ask);
    if (i == NULL)
        return;
    if (i->handle == 0 || i->phase != PHASE_READY) {
        asks_refuse(ask, PROBLEM_CONFLICT, "instance %s is %s: only a ready one is extended",
                    ask->instance, i->handle == 0 ? "a single command" : "not ready");
        return;
    }
    uint64_t until_ms =
        ask->duration_ms == DURATION_NONE ? UINT64_MAX : clock_monotonic_ms() + ask->duration_ms;
    instance_note(i, "extended", "by an operator");
    steps_run(n, &(struct scheduler_event){
                     .kind = SCHEDULER_EXTEND, .instance = i->handle, .until_ms = until_ms});
    ask->id = i->id;
    asks_answer(ask);
}

/* --- execs ------------------------------------------------------------------------------------------------- */

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
    send_signal(x->instance->node, x->instance, x->id, 9);
}

static void ask_exec(struct node *n, struct node_ask *ask)
{
    struct instance *i = need_instance(n, ask);
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
        refuse_err(ask, &e);
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

void asks_exec_ended(struct instance *i, const Skerry__Runner__ExecEnded *ended)
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

void asks_instance_ended(struct instance *i)
{
    if (i->run_ask != NULL) {
        struct node_ask *ask = i->run_ask;
        i->run_ask = NULL;
        bool granted = ask->control == i;
        ask->control = NULL;
        fill_end(ask, i);
        ask->id = i->id;
        if (granted)
            asks_ended(ask);
        else
            asks_refuse(ask, i->problem != PROBLEM_NONE ? i->problem : PROBLEM_START_FAILED, "%s",
                        i->detail);
    }
    while (i->stop_asks != NULL) {
        struct node_ask *ask = i->stop_asks;
        i->stop_asks = ask->control;
        ask->control = NULL;
        asks_answer(ask);
    }
    struct exec *x = i->exec_list;
    while (x != NULL) {
        struct exec *next = x->next;
        if (x->started) {
            x->ask->end.reason = i->end_reason;
            x->ask->end.exit_code = -1;
            x->ask->end.signal = 9;
            x->ask->end.oom = i->oom;
            text_format(x->ask->end.detail, sizeof x->ask->end.detail, "the instance ended: %s",
                        end_reason_name(i->end_reason));
            end_exec(x);
        }
        x = next;
    }
}

/* --- of what runs ------------------------------------------------------------------------------------------- */

static void ask_about_target(struct node *n, struct node_ask *ask)
{
    struct exec *x = exec_of(ask->target);
    struct instance *i = x != NULL                           ? x->instance
                         : ask->target->kind == NODE_ASK_RUN ? ask->target->control
                                                             : NULL;
    if (i == NULL) {
        asks_answer(ask); /* it has ended meanwhile: nothing is left to do */
        return;
    }
    uint32_t exec_id = x != NULL ? x->id : 0;
    if (ask->kind == NODE_ASK_SIGNAL) {
        send_signal(n, i, exec_id, ask->signal);
    } else if (ask->kind == NODE_ASK_CANCEL) {
        if (x != NULL)
            send_signal(n, i, exec_id, 9);
        else
            instance_stop(i, END_CLIENT_GONE, 0);
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

/* --- imports -------------------------------------------------------------------------------------------------- */

static void import_answer_cb(void *user, const struct err *error,
                             const Skerry__Runner__Reply *reply, int *descriptors,
                             size_t descriptor_count)
{
    struct import *m = user;
    struct node_ask *ask = m->ask;
    struct node *n = ask->control;
    if (error != NULL || descriptor_count != 1 || reply->import_started == NULL) {
        for (size_t k = 0; k < descriptor_count; k++)
            memory_close(&descriptors[k]);
        free(m);
        asks_refuse(ask,
                    error != NULL && error->code == ERR_LIMIT ? PROBLEM_LIMIT_REACHED
                                                              : PROBLEM_INTERNAL,
                    "import: %s", error != NULL ? error->msg : "the runner sent no pipe");
        return;
    }
    m->id = reply->import_started->import_id;
    m->next = n->imports;
    n->imports = m;
    ask->descriptors[0] = descriptors[0];
    asks_answer(ask);
}

static void ask_import(struct node *n, struct node_ask *ask)
{
    struct import *m = calloc(1, sizeof *m);
    struct err e = {0};
    if (m == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    m->ask = ask;
    ask->control = n;
    Skerry__Runner__Import i = SKERRY__RUNNER__IMPORT__INIT;
    i.kind = ask->import_source ? SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE
                                : SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE;
    i.name = (char *)(uintptr_t)(ask->name != NULL ? ask->name : "");
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMPORT_STREAM;
    r.import_stream = &i;
    if (sandbox_ask(n->sandbox, &r, import_answer_cb, m, &e) != 0) {
        free(m);
        refuse_err(ask, &e);
    }
}

void asks_import_ended(struct node *n, const Skerry__Runner__ImportEnded *ended)
{
    struct import **at = &n->imports;
    while (*at != NULL && (*at)->id != ended->import_id)
        at = &(*at)->next;
    struct import *m = *at;
    if (m == NULL)
        return;
    *at = m->next;
    struct node_ask *ask = m->ask;
    free(m);
    ask->control = NULL;
    if (ended->error != 0) {
        ask->end.problem =
            ended->error == ERR_LIMIT ? PROBLEM_LIMIT_REACHED : PROBLEM_IMAGE_INVALID;
        text_copy(ask->end.detail, sizeof ask->end.detail, ended->message);
    } else {
        text_copy(ask->end.digest, sizeof ask->end.digest, ended->digest);
        ask->end.bytes = ended->bytes;
        ask->end.files = ended->files;
    }
    asks_ended(ask);
}

void asks_runner_gone(struct node *n)
{
    while (n->imports != NULL) {
        struct import *m = n->imports;
        n->imports = m->next;
        m->ask->control = NULL;
        m->ask->end.problem = PROBLEM_INTERNAL;
        text_copy(m->ask->end.detail, sizeof m->ask->end.detail,
                  "the runner went away during the import; try again");
        asks_ended(m->ask);
        free(m);
    }
}

/* --- images: what nothing names any more --------------------------------------------------------------------- */

struct collection {
    struct node_ask *ask;
    struct node *node;
    unsigned waiting;
};

struct digest_search {
    const char *digest;
    const char *workload;
    struct registry_root *root;
    bool found;
};

static bool search_version(void *user, const struct registry_workload *w)
{
    struct digest_search *s = user;
    s->found = strcmp(w->spec.source, s->digest) == 0 || strcmp(w->spec.image, s->digest) == 0;
    return !s->found;
}

static bool search_workload(void *user, const struct registry_workload *w)
{
    struct digest_search *s = user;
    registry_root_versions(s->root, w->name, search_version, s);
    return !s->found;
}

static bool search_image(void *user, const struct registry_image *i)
{
    struct digest_search *s = user;
    s->found = strcmp(i->digest, s->digest) == 0;
    return !s->found;
}

static void collection_done(struct collection *c)
{
    if (--c->waiting > 0)
        return;
    asks_answer(c->ask);
    free(c);
}

static void remove_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                      int *descriptors, size_t descriptor_count)
{
    (void)reply;
    (void)descriptors;
    (void)descriptor_count;
    struct collection *c = user;
    if (error == NULL)
        c->ask->end.files++;
    collection_done(c);
}

static void image_list_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                          int *descriptors, size_t descriptor_count)
{
    (void)descriptors;
    (void)descriptor_count;
    struct collection *c = user;
    if (error != NULL || reply->images == NULL) {
        struct node_ask *ask = c->ask;
        free(c);
        asks_refuse(ask, PROBLEM_INTERNAL, "%s",
                    error != NULL ? error->msg : "the runner sent no list");
        return;
    }
    struct registry_root *root = registry_root(c->node->registry);
    for (size_t k = 0; k < reply->images->n_images; k++) {
        const Skerry__Runner__ImageEntry *entry = reply->images->images[k];
        struct digest_search s = {.digest = entry->digest, .root = root, .found = entry->users > 0};
        if (!s.found)
            registry_root_images(root, search_image, &s);
        if (!s.found)
            registry_root_workloads(root, NULL, search_workload, &s);
        if (s.found)
            continue;
        Skerry__Runner__ImageRemove m = SKERRY__RUNNER__IMAGE_REMOVE__INIT;
        m.digest = entry->digest;
        Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
        r.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMAGE_REMOVE;
        r.image_remove = &m;
        struct err e = {0};
        if (sandbox_ask(c->node->sandbox, &r, remove_cb, c, &e) == 0) {
            c->waiting++;
            c->ask->end.bytes += entry->bytes;
        }
    }
    registry_root_release(root);
    collection_done(c);
}

static void ask_image_gc(struct node *n, struct node_ask *ask)
{
    struct collection *c = calloc(1, sizeof *c);
    struct err e = {0};
    if (c == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    *c = (struct collection){.ask = ask, .node = n, .waiting = 1};
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMAGE_LIST;
    r.image_list = &empty;
    if (sandbox_ask(n->sandbox, &r, image_list_cb, c, &e) != 0) {
        free(c);
        refuse_err(ask, &e);
    }
}

/* --- the rest --------------------------------------------------------------------------------------------------- */

static void stats_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                     int *descriptors, size_t descriptor_count)
{
    (void)descriptors;
    (void)descriptor_count;
    struct node_ask *ask = user;
    if (error != NULL || reply->stats == NULL) {
        asks_refuse(ask, PROBLEM_INSTANCE_GONE, "%s",
                    error != NULL ? error->msg : "the runner sent no numbers");
        return;
    }
    ask->usage.cpu_us = reply->stats->cpu_us;
    ask->usage.memory_bytes = reply->stats->memory_bytes;
    ask->usage.memory_peak_bytes = reply->stats->memory_peak_bytes;
    ask->usage.disk_bytes = reply->stats->disk_bytes;
    ask->usage.pids = reply->stats->pids;
    asks_answer(ask);
}

static void ask_stats(struct node *n, struct node_ask *ask)
{
    struct instance *i = need_instance(n, ask);
    if (i == NULL)
        return;
    ask->usage.joiners = i->slot.slot != NULL ? slot_joiners(i->slot) : 0;
    Skerry__Runner__Instance which = SKERRY__RUNNER__INSTANCE__INIT;
    which.id = i->id.text;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_STATS;
    r.stats = &which;
    struct err e = {0};
    if (sandbox_ask(n->sandbox, &r, stats_cb, ask, &e) != 0)
        refuse_err(ask, &e);
}

static void ask_explain(struct node *n, struct node_ask *ask)
{
    ask->json = explain_json(n, ask->instance);
    if (ask->json == NULL)
        asks_refuse(ask, PROBLEM_NOT_FOUND,
                    "%s is no instance, request or workload that this node knows", ask->instance);
    else
        asks_answer(ask);
}

static void deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct node_ask *ask = container_of(message, struct node_ask, message);
    bool makes = ask->kind == NODE_ASK_START || ask->kind == NODE_ASK_RUN ||
                 ask->kind == NODE_ASK_EXEC || ask->kind == NODE_ASK_IMPORT;
    if (n->stopping && makes) {
        asks_refuse(ask, PROBLEM_DRAINING, "the node is stopping");
        return;
    }
    switch (ask->kind) {
    case NODE_ASK_PROPOSE:
        ask_propose(n, ask);
        break;
    case NODE_ASK_START:
        ask_start(n, ask);
        break;
    case NODE_ASK_RUN:
        ask_run(n, ask);
        break;
    case NODE_ASK_STOP:
        ask_stop(n, ask);
        break;
    case NODE_ASK_EXTEND:
        ask_extend(n, ask);
        break;
    case NODE_ASK_EXEC:
        ask_exec(n, ask);
        break;
    case NODE_ASK_SIGNAL:
    case NODE_ASK_RESIZE:
    case NODE_ASK_CANCEL:
        ask_about_target(n, ask);
        break;
    case NODE_ASK_IMPORT:
        ask_import(n, ask);
        break;
    case NODE_ASK_STATS:
        ask_stats(n, ask);
        break;
    case NODE_ASK_STATUS:
        ask->json = status_json(n);
        asks_answer(ask);
        break;
    case NODE_ASK_EXPLAIN:
        ask_explain(n, ask);
        break;
    case NODE_ASK_IMAGE_GC:
        ask_image_gc(n, ask);
        break;
    }
}

bool node_ask(struct node *n, struct node_ask *ask)
{
    ask->problem = PROBLEM_NONE;
    ask->ran = RAN_NO;
    ask->retry_after_s = 0;
    ask->detail[0] = '\0';
    ask->id.text[0] = '\0';
    ask->json = NULL;
    ask->control = NULL;
    ask->descriptors[0] = ask->descriptors[1] = ask->descriptors[2] = -1;
    memset(&ask->end, 0, sizeof ask->end);
    ask->end.exit_code = -1;
    ask->message.deliver = deliver;
    return inbox_post(n->inbox, &ask->message);
}
