/* Questions of gateway threads that the routes could not answer: cold starts, queues, commands,
 * forced joins of instances that start, autopsies, and sockets into instances. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control.h"

/* --- waiters ---------------------------------------------------------------------------------------- */

struct waiter *waiter_new(struct node *n, struct gateway_ask *gateway_ask,
                          struct node_ask *node_ask)
{
    struct waiter *w = calloc(1, sizeof *w);
    if (w == NULL)
        return NULL;
    w->handle = ++n->waiter_next;
    w->gateway_ask = gateway_ask;
    w->node_ask = node_ask;
    w->ask_key = gateway_ask != NULL ? (const void *)gateway_ask : (const void *)node_ask;
    HASH_ADD(hh, n->waiters, handle, sizeof w->handle, w);
    HASH_ADD(by_ask, n->waiters_by_ask, ask_key, sizeof w->ask_key, w);
    return w;
}

struct waiter *waiter_find(struct node *n, scheduler_waiter handle)
{
    struct waiter *w = NULL;
    HASH_FIND(hh, n->waiters, &handle, sizeof handle, w);
    return w;
}

struct waiter *waiter_by_ask(struct node *n, const void *ask)
{
    struct waiter *w = NULL;
    HASH_FIND(by_ask, n->waiters_by_ask, &ask, sizeof ask, w);
    return w;
}

void waiter_free(struct node *n, struct waiter *w)
{
    HASH_DELETE(hh, n->waiters, w);
    HASH_DELETE(by_ask, n->waiters_by_ask, w);
    free(w);
}

/* --- answers ------------------------------------------------------------------------------------------ */

static unsigned seconds_up(uint64_t ms)
{
    uint64_t s = (ms + 999) / 1000;
    return s == 0 ? 1 : s > 3600 ? 3600 : (unsigned)s;
}

static void fill_timing(struct gateway_ask *ask, const struct instance *i,
                        enum scheduler_start start)
{
    if (start == SCHEDULER_JOIN || i->adopted)
        return;
    ask->timing.reserve_us = i->marks.reserved_us;
    ask->timing.sandbox_us = i->marks.sandbox_us;
    ask->timing.code_us = i->code_us;
}

static void answer_problem(struct node *n, struct gateway_ask *ask, enum problem problem,
                           const char *detail, uint64_t retry_after_ms)
{
    ask->problem = problem;
    ask->ran = RAN_NO;
    ask->retry_after_s = problem_word(problem)->retryable ? seconds_up(retry_after_ms) : 0;
    text_copy(ask->detail, sizeof ask->detail, detail != NULL ? detail : "");
    explain_remember(n, ask->request_id, ask->id.text[0] != '\0' ? &ask->id : NULL, problem,
                     ask->detail);
    gateway_answer(ask);
}

void joins_grant(struct node *n, struct waiter *w, struct instance *i, enum scheduler_start start)
{
    struct gateway_ask *ask = w->gateway_ask;
    struct node_ask *node_ask = w->node_ask;
    waiter_free(n, w);
    if (ask == NULL) {
        node_ask->id = i->id;
        asks_answer(node_ask);
        return;
    }
    ask->id = i->id;
    if (ask->kind == WORKLOAD_SERVER && i->slot.slot == NULL) {
        /* The gateway refuses these; a version without a port may have come in between. */
        answer_problem(n, ask, PROBLEM_CONFLICT,
                       "the instance has no port: it can be reached by exec and files only", 0);
        return;
    }
    ask->problem = PROBLEM_NONE;
    ask->slot = i->slot;
    ask->start = (enum gateway_start)start;
    fill_timing(ask, i, start);
    if (ask->kind == WORKLOAD_COMMAND) {
        for (size_t k = 0; k < ARRAY_SIZE(ask->descriptors); k++)
            ask->descriptors[k] = steal_fd(&i->descriptors[k]);
        i->command_ask = ask;
    }
    explain_remember(n, ask->request_id, &i->id, PROBLEM_NONE, NULL);
    /* Who reads the id in this answer may come back with it at once, to another thread. */
    if (n->publish_wanted)
        routes_publish(n);
    gateway_answer(ask);
}

void joins_refuse(struct node *n, struct waiter *w, enum problem problem, const char *detail,
                  uint64_t retry_after_ms, const struct instance *i)
{
    struct gateway_ask *ask = w->gateway_ask;
    struct node_ask *node_ask = w->node_ask;
    waiter_free(n, w);
    if (ask == NULL) {
        node_ask->retry_after_s = seconds_up(retry_after_ms);
        if (i != NULL)
            node_ask->id = i->id;
        asks_refuse(node_ask, problem, "%s", detail != NULL ? detail : "");
        return;
    }
    if (i != NULL)
        ask->id = i->id;
    answer_problem(n, ask, problem, detail, retry_after_ms);
}

/* --- asks ---------------------------------------------------------------------------------------------- */

static void refuse_gone(struct node *n, struct gateway_ask *ask, enum end_reason reason,
                        int exit_code, const char *detail)
{
    char text[400];
    if (reason == END_EXITED && exit_code >= 0)
        text_format(text, sizeof text, "instance %s ended: exited with code %d%s%s", ask->instance,
                    exit_code, detail[0] != '\0' ? ": " : "", detail);
    else
        text_format(text, sizeof text, "instance %s ended: %s%s%s", ask->instance,
                    end_reason_name(reason), detail[0] != '\0' ? ": " : "", detail);
    answer_problem(n, ask, PROBLEM_INSTANCE_GONE, text, 0);
}

static void refuse_unknown(struct node *n, struct gateway_ask *ask)
{
    char text[120];
    text_format(text, sizeof text, "no instance has the id %s, or it ended over 24 h ago",
                ask->instance);
    answer_problem(n, ask, PROBLEM_INSTANCE_UNKNOWN, text, 0);
}

/* An instance that the routes did not show as joinable: what is true now. */
static bool answer_forced_now(struct node *n, struct gateway_ask *ask, struct instance **out)
{
    struct instance *i = instance_find(n, ask->instance);
    *out = i;
    if (i == NULL) {
        struct registry_root *root = registry_root(n->registry);
        const struct registry_instance *r =
            registry_root_instance(root, ask->instance, strlen(ask->instance));
        if (r == NULL)
            refuse_unknown(n, ask);
        else if (r->state == INSTANCE_STATE_ENDED)
            refuse_gone(n, ask, r->reason, r->exit_code, r->detail);
        else
            answer_problem(n, ask, PROBLEM_OWNER_UNREACHABLE,
                           "the instance is being re-adopted after a restart", 1000);
        registry_root_release(root);
        return true;
    }
    if (i->phase == PHASE_ENDED || i->phase == PHASE_STOPPING) {
        refuse_gone(n, ask, i->end_reason, instance_exit_code(i), i->end_message);
        return true;
    }
    if (i->handle == 0 || i->spec->kind == WORKLOAD_COMMAND) {
        answer_problem(n, ask, PROBLEM_CONFLICT,
                       "the instance runs one command and cannot be joined", 0);
        return true;
    }
    if (i->phase == PHASE_READY && i->slot.slot == NULL) {
        answer_problem(n, ask, PROBLEM_CONFLICT,
                       "the instance has no port: it can be reached by exec and files only", 0);
        return true;
    }
    if (i->closed) {
        answer_problem(n, ask, PROBLEM_INSTANCE_GONE,
                       "the instance is draining: it takes no joiner any more", 0);
        return true;
    }
    return false;
}

/* --- autopsies ------------------------------------------------------------------------------------------ */

static void answer_autopsy(struct node *n, struct gateway_ask *ask, const struct instance *i)
{
    ask->ran = RAN_YES;
    ask->retry_after_s = 1;
    if (i == NULL || i->phase != PHASE_ENDED) {
        ask->problem = PROBLEM_INSTANCE_UNREACHABLE;
        text_format(ask->detail, sizeof ask->detail,
                    "the code closed the connection before it answered");
    } else {
        ask->id = i->id;
        ask->problem = i->end_reason == END_OOM ? PROBLEM_INSTANCE_OOM : PROBLEM_INSTANCE_EXITED;
        if (i->end_reason == END_OOM) {
            char limit[UNIT_TEXT_SIZE];
            bytes_format(i->spec->limits.memory_bytes, limit);
            text_format(ask->detail, sizeof ask->detail,
                        "the instance used up its memory of %s and was ended; raise "
                        "deploy.resources.limits.memory, or lower join.max_joiners",
                        limit);
        } else {
            text_format(ask->detail, sizeof ask->detail, "the instance ended: %s%s%s",
                        end_reason_name(i->end_reason), i->end_message[0] != '\0' ? ": " : "",
                        i->end_message);
        }
    }
    explain_remember(n, ask->request_id, &ask->id, ask->problem, ask->detail);
    gateway_answer(ask);
}

static void autopsy_timer_cb(uv_timer_t *timer)
{
    struct node *n = container_of(timer, struct node, autopsy_timer);
    uint64_t now_ms = clock_monotonic_ms();
    struct autopsy **at = &n->autopsies;
    while (*at != NULL) {
        struct autopsy *a = *at;
        if (a->until_ms > now_ms && !n->stopping) {
            at = &a->next;
            continue;
        }
        *at = a->next;
        answer_autopsy(n, a->ask, instance_find(n, a->ask->instance));
        free(a);
    }
    if (n->autopsies != NULL)
        uv_timer_start(timer, autopsy_timer_cb, 50, 0);
}

static void begin_autopsy(struct node *n, struct gateway_ask *ask)
{
    struct instance *i = instance_find(n, ask->instance);
    struct autopsy *a = i != NULL && i->phase != PHASE_ENDED ? calloc(1, sizeof *a) : NULL;
    if (a == NULL) {
        if (i == NULL) {
            /* Gone from memory already; the registry keeps the reason. */
            struct registry_root *root = registry_root(n->registry);
            const struct registry_instance *r =
                registry_root_instance(root, ask->instance, strlen(ask->instance));
            if (r != NULL && r->state == INSTANCE_STATE_ENDED) {
                ask->ran = RAN_YES;
                ask->problem =
                    r->reason == END_OOM ? PROBLEM_INSTANCE_OOM : PROBLEM_INSTANCE_EXITED;
                text_format(ask->detail, sizeof ask->detail, "the instance ended: %s",
                            end_reason_name(r->reason));
                registry_root_release(root);
                gateway_answer(ask);
                return;
            }
            registry_root_release(root);
        }
        answer_autopsy(n, ask, i);
        return;
    }
    a->ask = ask;
    a->until_ms = clock_monotonic_ms() + CONTROL_AUTOPSY_MS;
    a->next = n->autopsies;
    n->autopsies = a;
    if (!uv_is_active((uv_handle_t *)&n->autopsy_timer))
        uv_timer_start(&n->autopsy_timer, autopsy_timer_cb, 50, 0);
}

void joins_autopsies(struct node *n, const struct instance *ended)
{
    struct autopsy **at = &n->autopsies;
    while (*at != NULL) {
        struct autopsy *a = *at;
        if (strcmp(a->ask->instance, ended->id.text) != 0) {
            at = &a->next;
            continue;
        }
        *at = a->next;
        answer_autopsy(n, a->ask, ended);
        free(a);
    }
}

/* --- delivery --------------------------------------------------------------------------------------------- */

static void ask_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct gateway_ask *ask = container_of(message, struct gateway_ask, message);
    ask->problem = PROBLEM_NONE;
    ask->ran = RAN_NO;
    ask->descriptors[0] = ask->descriptors[1] = ask->descriptors[2] = -1;
    if (ask->autopsy) {
        begin_autopsy(n, ask);
        return;
    }
    if (n->stopping) {
        answer_problem(n, ask, PROBLEM_DRAINING, "the node is stopping", 1000);
        return;
    }
    struct instance *forced = NULL;
    if (ask->instance[0] != '\0' && answer_forced_now(n, ask, &forced))
        return;
    struct waiter *w = waiter_new(n, ask, NULL);
    if (w == NULL) {
        answer_problem(n, ask, PROBLEM_INTERNAL, "the node is out of memory", 1000);
        return;
    }
    steps_run(n, &(struct scheduler_event){
                     .kind = SCHEDULER_ASK,
                     .waiter = w->handle,
                     .name = forced != NULL ? forced->name : ask->workload,
                     .instance = forced != NULL ? forced->handle : 0,
                     .key = forced != NULL ? NULL : ask->key,
                     .exclusive = ask->kind == WORKLOAD_COMMAND,
                 });
}

bool joins_ask(void *user, struct gateway_ask *ask)
{
    struct node *n = user;
    ask->message.deliver = ask_deliver;
    return inbox_post(n->inbox, &ask->message);
}

struct cancel_message {
    struct inbox_message message;
    struct gateway_ask *ask;
    char instance[INSTANCE_ID_LENGTH_MAX + 1];
    enum end_reason reason;
};

static void cancel_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct cancel_message *c = container_of(message, struct cancel_message, message);
    struct waiter *w = waiter_by_ask(n, c->ask);
    struct instance *i, *next;
    if (w != NULL) {
        steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_CANCEL, .waiter = w->handle});
        w = waiter_by_ask(n, c->ask);
        if (w != NULL)
            joins_refuse(n, w, PROBLEM_INTERNAL, "the client left", 0, NULL);
    } else {
        /* Not waiting any more: a command that runs, or an answer that is under way. */
        HASH_ITER(by_handle, n->instances_by_handle, i, next)
        if (i->command_ask == c->ask)
            instance_stop(i, c->reason, 0);
    }
    free(c);
}

void joins_cancel(void *user, struct gateway_ask *ask, enum end_reason reason)
{
    struct node *n = user;
    struct cancel_message *c = calloc(1, sizeof *c);
    assert_always(c != NULL); /* a command that nobody waits for must not run on */
    c->message.deliver = cancel_deliver;
    c->ask = ask;
    c->reason = reason;
    if (!inbox_post_always(n->inbox, &c->message))
        free(c);
}

void joins_command_ended(struct instance *i)
{
    struct gateway_ask *ask = i->command_ask;
    if (ask == NULL)
        return;
    i->command_ask = NULL;
    ask->ended.reason = i->end_reason;
    ask->ended.exit_code = i->exit_code;
    ask->ended.signal = i->signal;
    ask->ended.timed_out = i->end_reason == END_TIMED_OUT;
    ask->ended.oom = i->oom;
    ask->ended.wall_us = i->wall_us;
    ask->ended.cpu_us = i->cpu_us;
    ask->ended.memory_peak_bytes = i->memory_peak_bytes;
    text_copy(ask->ended.detail, sizeof ask->ended.detail, i->end_message);
    gateway_command_ended(ask);
}

/* --- sockets ------------------------------------------------------------------------------------------------ */

static void drop_spare(struct instance *i)
{
    while (i->spare_count > 0)
        memory_close(&i->spare[--i->spare_count]);
}

static void spare_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                     int *descriptors, size_t descriptor_count)
{
    (void)reply;
    struct instance *i = user;
    i->spare_asked = false;
    for (size_t k = 0; k < descriptor_count; k++) {
        if (i->spare_count < INSTANCE_SPARE_SOCKETS && i->phase < PHASE_ENDED)
            i->spare[i->spare_count++] = descriptors[k];
        else
            memory_close(&descriptors[k]);
    }
    if (error != NULL)
        log_debug("runner", "%s: no sockets ahead: %s", i->id.text, error->msg);
    instance_unpend(i);
}

static int ask_sockets(struct node *n, const char *id, unsigned count, bool ipv6,
                       sandbox_answer_cb cb, void *user, struct err *e)
{
    Skerry__Runner__Sockets s = SKERRY__RUNNER__SOCKETS__INIT;
    s.id = (char *)(uintptr_t)id;
    s.count = count;
    s.ipv6 = ipv6;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_SOCKETS;
    r.sockets = &s;
    return sandbox_ask(n->sandbox, &r, cb, user, e);
}

void joins_spare(struct instance *i)
{
    bool ipv6 = i->slot.slot != NULL && i->slot.slot->target.ipv6;
    if (i->spare_ipv6 != ipv6)
        drop_spare(i);
    if (i->spare_asked || i->spare_count > 0 || i->phase > PHASE_READY)
        return;
    i->spare_ipv6 = ipv6;
    struct err e = {0};
    if (ask_sockets(i->node, i->id.text, INSTANCE_SPARE_SOCKETS, ipv6, spare_cb, i, &e) != 0)
        return;
    i->spare_asked = true;
    i->pending++;
}

static void sockets_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                       int *descriptors, size_t descriptor_count)
{
    (void)reply;
    struct gateway_sockets *want = user;
    want->error = error != NULL ? (int)error->code : 0;
    for (size_t k = 0; k < descriptor_count; k++) {
        if (want->descriptor_count < GATEWAY_SOCKETS_MAX)
            want->descriptors[want->descriptor_count++] = descriptors[k];
        else
            memory_close(&descriptors[k]);
    }
    gateway_sockets_answer(want);
}

static bool give_spare(struct instance *i, struct gateway_sockets *want)
{
    if (i->spare_count == 0 || i->spare_ipv6 != want->slot.slot->target.ipv6)
        return false;
    /* A few at a time: other threads may want one too while the runner is away. */
    unsigned give = i->spare_count > 2 ? 2 : 1;
    while (give-- > 0)
        want->descriptors[want->descriptor_count++] = i->spare[--i->spare_count];
    want->error = 0;
    joins_spare(i);
    gateway_sockets_answer(want);
    return true;
}

static void sockets_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct gateway_sockets *want = container_of(message, struct gateway_sockets, message);
    want->descriptor_count = 0;
    const struct slot *slot = want->slot.slot;
    struct err e = {0};
    /* Only this thread retires slots, so the generation cannot change under us. */
    bool stale = atomic_load(&slot->word) >> 32 != want->slot.generation;
    struct instance *i = stale ? NULL : instance_find(n, slot->id.text);
    if (i != NULL && give_spare(i, want))
        return;
    unsigned count = want->count < GATEWAY_SOCKETS_MAX ? want->count : GATEWAY_SOCKETS_MAX;
    if (stale || ask_sockets(n, slot->id.text, count, slot->target.ipv6, sockets_cb, want, &e)) {
        want->error = stale ? ERR_NOT_FOUND : (int)e.code;
        gateway_sockets_answer(want);
    }
}

bool joins_sockets(void *user, struct gateway_sockets *want)
{
    struct node *n = user;
    want->message.deliver = sockets_deliver;
    return inbox_post_always(n->inbox, &want->message);
}

struct left_message {
    struct inbox_message message;
    struct slot_ref slot;
    unsigned what;
};

static void left_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct left_message *l = container_of(message, struct left_message, message);
    struct instance *i = instance_find(n, l->slot.slot->id.text);
    if (i != NULL && i->slot.slot == l->slot.slot && i->slot.generation == l->slot.generation) {
        if (l->what & SLOT_LEFT_LAST)
            instance_maybe_empty(i);
        if (l->what & SLOT_LEFT_WAITED)
            steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_LEFT, .instance = i->handle});
    }
    free(l);
}

void joins_slot_left(void *user, struct slot_ref slot, unsigned what)
{
    struct node *n = user;
    struct left_message *l = malloc(sizeof *l);
    assert_always(l != NULL); /* a lost leave would keep an instance for ever */
    *l = (struct left_message){.message = {.deliver = left_deliver}, .slot = slot, .what = what};
    if (!inbox_post_always(n->inbox, &l->message))
        free(l);
}
