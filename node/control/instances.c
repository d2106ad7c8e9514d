/* The life of one instance, from the scheduler's START to the registry's END.
 *
 *                 RESERVE (registry) --.
 *   STARTING --<                        >-- both done --> COMMITTED --ready--> READY
 *                 PREPARE (runner) ----'        |             |                  |
 *                                         one failed        ended              ended
 *                                               v             v                  v
 *                                           STOPPING ------> ENDED: END recorded, runner forgets
 *
 * The two run side by side, so a start costs the longer of them. Each callback records what it
 * brought and calls tick(). */
#include <inttypes.h>
#include <signal.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/control/fences.h"

#define COMMAND_TOLD_MS 20

static void tick(struct instance *i);
static void record_end(struct instance *i);

struct instance *instance_find(struct node *n, const char *id)
{
    struct instance *i = NULL;
    HASH_FIND(by_id, n->instances_by_id, id, strlen(id), i);
    return i;
}

struct instance *instance_by_handle(struct node *n, scheduler_instance handle)
{
    struct instance *i = NULL;
    HASH_FIND(by_handle, n->instances_by_handle, &handle, sizeof handle, i);
    return i;
}

uint64_t instance_age_us(const struct instance *i)
{
    return clock_monotonic_us() - i->asked_us;
}

const char *instance_label(const struct instance *i)
{
    return i->name[0] == '\0' ? "run" : i->name;
}

void instance_note(struct instance *i, const char *kind, const char *format, ...)
{
    if (i->timeline_count == INSTANCE_TIMELINE_MAX)
        return;
    struct timeline_entry *t = &i->timeline[i->timeline_count++];
    t->at_us = instance_age_us(i);
    text_copy(t->kind, sizeof t->kind, kind);
    va_list args;
    va_start(args, format);
    vsnprintf(t->text, sizeof t->text, format, args);
    va_end(args);
}

struct instance *instance_new(struct node *n, const struct instance_id *id)
{
    struct instance *i = calloc(1, sizeof *i);
    if (i == NULL)
        return NULL;
    i->node = n;
    i->exit_code = -1;
    i->descriptors[0] = i->descriptors[1] = i->descriptors[2] = -1;
    if (id != NULL) {
        i->id = *id;
    } else {
        uint8_t random[11];
        do {
            randombytes_buf(random, sizeof random);
            instance_id_make(&i->id, n->id, random);
        } while (instance_find(n, i->id.text) != NULL);
    }
    return i;
}

void instance_link(struct instance *i)
{
    struct node *n = i->node;
    HASH_ADD_KEYPTR(by_id, n->instances_by_id, i->id.text, strlen(i->id.text), i);
    if (i->handle != 0)
        HASH_ADD(by_handle, n->instances_by_handle, handle, sizeof i->handle, i);
    n->instance_count++;
}

static void close_descriptors(struct instance *i)
{
    while (i->spare_count > 0)
        memory_close(&i->spare[--i->spare_count]);
    for (size_t k = 0; k < ARRAY_SIZE(i->descriptors); k++)
        memory_close(&i->descriptors[k]);
}

static void timer_freed_cb(uv_handle_t *handle)
{
    free(handle);
}

/* Does nothing to one that is not there. */
static void untold_remove(struct instance *i)
{
    if (i->untold_prev != NULL)
        DL_DELETE2(i->node->untold, i, untold_prev, untold_next);
    i->untold_prev = NULL;
}

static void free_instance(struct instance *i)
{
    struct node *n = i->node;
    untold_remove(i);
    explain_bury(i);
    HASH_DELETE(by_id, n->instances_by_id, i);
    if (i->handle != 0)
        HASH_DELETE(by_handle, n->instances_by_handle, i);
    n->instance_count--;
    close_descriptors(i);
    if (i->timer != NULL)
        uv_close((uv_handle_t *)i->timer, timer_freed_cb);
    if (i->workload != NULL)
        map_value_drop(&i->workload->value);
    else
        workload_free(&i->run_spec);
    free(i);
}

void instance_abandon(struct instance *i)
{
    if (i->slot.slot != NULL && i->phase != PHASE_ENDED)
        slot_retire(i->node->slots, i->slot);
    free_instance(i);
}

void instance_unpend(struct instance *i)
{
    assert_always(i->pending > 0);
    i->pending--;
    tick(i);
}

/* --- commit ---------------------------------------------------------------------------------------- */

static int ask_runner_about(struct instance *i, Skerry__Runner__Request__VerbCase verb,
                            sandbox_answer_cb cb, struct err *e)
{
    Skerry__Runner__Instance which = SKERRY__RUNNER__INSTANCE__INIT;
    which.id = i->id.text;
    which.epoch = i->epoch;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = verb;
    r.commit = &which; /* commit, discard, stats and forget share this type in the union */
    int rc = sandbox_ask(i->node->sandbox, &r, cb, i, e);
    i->pending += rc == 0;
    return rc;
}

static void ignored_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                       int *descriptors, size_t descriptor_count)
{
    (void)error;
    (void)reply;
    for (size_t k = 0; k < descriptor_count; k++)
        memory_close(&descriptors[k]);
    instance_unpend(user);
}

static void commit_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                      int *descriptors, size_t descriptor_count)
{
    struct instance *i = user;
    /* A command on a terminal has it from its start on: the one descriptor of this answer. */
    if (descriptor_count > 0 && i->descriptors[0] < 0)
        i->descriptors[0] = steal_fd(&descriptors[0]);
    if (error != NULL && i->phase == PHASE_COMMITTED)
        instance_ended_locally(i, END_START_FAILED, error->msg);
    else if (i->phase == PHASE_COMMITTED && i->spec->kind == WORKLOAD_COMMAND)
        instance_make_ready(i, NULL);
    ignored_cb(user, error, reply, descriptors, descriptor_count);
}

static void discard(struct instance *i)
{
    i->phase = PHASE_STOPPING;
    i->discarded = true;
    struct err e = {0};
    if (i->prepared &&
        ask_runner_about(i, SKERRY__RUNNER__REQUEST__VERB_DISCARD, ignored_cb, &e) != 0)
        log_warn("instance", "%s: the runner could not be told to discard it: %s", i->id.text,
                 e.msg);
    instance_ended_locally(i, i->ending ? i->end_reason : END_START_FAILED, i->detail);
}

static void commit(struct instance *i)
{
    struct err e = {0};
    if (!fences_commit(i)) {
        discard(i);
        return;
    }
    i->phase = PHASE_COMMITTED;
    if (ask_runner_about(i, SKERRY__RUNNER__REQUEST__VERB_COMMIT, commit_cb, &e) != 0)
        instance_ended_locally(i, END_START_FAILED, e.msg);
    else if (i->spec->kind == WORKLOAD_SERVER && i->spec->port != 0)
        joins_spare(i);
}

/* --- ready ------------------------------------------------------------------------------------------ */

static void update_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct instance *i = user;
    if (error == NULL && result->problem != PROBLEM_NONE && i->phase < PHASE_ENDED)
        log_warn("instance", "%s: the registry refused its state: %s", i->id.text, result->detail);
    instance_unpend(i);
}

static void tell_state(struct instance *i, enum instance_state state)
{
    struct registry_instance record = {
        .id = i->id, .epoch = i->epoch, .state = state, .marks = i->marks};
    struct registry_command command = {
        .kind = REGISTRY_INSTANCE_UPDATE, .wall_ms = clock_wall_ms(), .instance = &record};
    struct err e = {0};
    if (registry_propose(i->node->registry, &command, update_cb, i, &e) == 0)
        i->pending++;
    else
        log_warn("instance", "%s: its state was not recorded: %s", i->id.text, e.msg);
}

static void untold_cb(uv_timer_t *timer)
{
    struct node *n = container_of(timer, struct node, untold_timer);
    while (n->untold != NULL) {
        struct instance *i = n->untold;
        untold_remove(i);
        tell_state(i, INSTANCE_STATE_READY);
    }
}

/* Most commands end sooner than anybody asks the registry for them, and what is told of their end tells this too: so
 * they cost it one command less. */
static void tell_ready(struct instance *i)
{
    struct node *n = i->node;
    if (i->spec->kind != WORKLOAD_COMMAND) {
        tell_state(i, INSTANCE_STATE_READY);
        return;
    }
    if (n->untold == NULL)
        uv_timer_start(&n->untold_timer, untold_cb, COMMAND_TOLD_MS, 0);
    DL_APPEND2(n->untold, i, untold_prev, untold_next);
}

void instances_open(struct node *n)
{
    uv_timer_init(&n->loop, &n->untold_timer);
}

void instances_close(struct node *n)
{
    uv_close((uv_handle_t *)&n->untold_timer, NULL);
}

uint64_t instance_ends_wall_ms(const struct instance *i)
{
    uint64_t at_ms = i->extended_ms;
    if (at_ms == 0 && i->spec->life.max_ms != DURATION_NONE)
        at_ms = i->ready_ms + i->spec->life.max_ms;
    if (at_ms == 0 || at_ms == UINT64_MAX)
        return UINT64_MAX;
    uint64_t now_ms = clock_monotonic_ms();
    uint64_t wall_ms = clock_wall_ms();
    return at_ms > now_ms ? wall_ms + (at_ms - now_ms) : wall_ms - (now_ms - at_ms);
}

static int open_slot(struct instance *i, const Skerry__Runner__Address *address, struct err *e)
{
    struct slot_options o = {
        .id = i->id,
        .owner = i->node->id,
        .max_joiners = control_narrow(i->spec->join.max_joiners),
        .window_end_ms = UINT64_MAX,
        .lease_deadline_ms = fences_deadline(i),
        .monotonic_ms = i->ready_ms,
    };
    o.ends_wall_ms = instance_ends_wall_ms(i);
    if (i->spec->join.window_ms != DURATION_NONE && i->key[0] == '\0')
        o.window_end_ms = i->ready_ms + i->spec->join.window_ms;
    if (address != NULL) {
        o.target.ipv6 = address->ipv6;
        o.target.port = (uint16_t)address->port;
        size_t want = address->ipv6 ? 16 : 4;
        if (address->address.len != want)
            return err_set(e, ERR_PROTOCOL, "the agent sent a malformed address");
        memcpy(o.target.address, address->address.data, want);
    } else {
        /* Health checks and adoption without an address: loopback, as declared. */
        o.target.port = (uint16_t)i->spec->port;
        o.target.address[0] = 127;
        o.target.address[3] = 1;
    }
    return slot_open(i->node->slots, &o, &i->slot, e);
}

int instance_open(struct instance *i, const Skerry__Runner__Address *address, struct err *e)
{
    i->phase = PHASE_READY;
    bool server = i->spec->kind == WORKLOAD_SERVER; /* one without a port is joined over SSH */
    if (server && open_slot(i, address, e) != 0)
        return -(int)e->code;
    if (server && i->spec->port != 0)
        joins_spare(i);
    routes_instance(i->node, i);
    return 0;
}

void instance_make_ready(struct instance *i, const Skerry__Runner__Address *address)
{
    struct node *n = i->node;
    if (i->phase != PHASE_COMMITTED)
        return;
    i->ready_ms = clock_monotonic_ms();
    i->last_exec_ms = i->ready_ms;
    i->marks.ready_us = instance_age_us(i);
    uint64_t both_us =
        i->marks.sandbox_us > i->marks.reserved_us ? i->marks.sandbox_us : i->marks.reserved_us;
    i->code_us = i->marks.ready_us - both_us;
    struct err e = {0};
    if (instance_open(i, address, &e) != 0) {
        log_error("instance", "%s: %s", i->id.text, e.msg);
        instance_stop(i, END_START_FAILED, 0);
        return;
    }
    if (address != NULL)
        instance_note(i, "ready", "port %u answered", (unsigned)i->spec->port);
    else
        instance_note(i, "ready", i->spec->kind == WORKLOAD_COMMAND ? "runs" : "ready");
    tell_ready(i);
    pthread_mutex_lock(&n->facts_mutex);
    n->metrics.starts_total++;
    histogram_add(&n->metrics.start_seconds[i->ahead ? GATEWAY_START_POOL : GATEWAY_START_COLD],
                  (double)i->marks.ready_us / 1e6);
    pthread_mutex_unlock(&n->facts_mutex);
    events_post(n, "instance_ready", i->name, i->id.text, "after %.1f ms",
                (double)i->marks.ready_us / 1e3);
    if (i->run_ask != NULL)
        asks_run_granted(i);
    if (i->handle != 0)
        steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_READY, .instance = i->handle});
}

/* --- end -------------------------------------------------------------------------------------------- */

void instance_close(struct instance *i)
{
    if (i->closed)
        return;
    i->closed = true;
    untold_remove(i);
    if (i->phase == PHASE_READY)
        tell_state(i, INSTANCE_STATE_DRAINING);
    if (i->slot.slot != NULL)
        (void)!slot_drain(i->slot);
    instance_note(i, "draining", "takes no joiner any more");
    routes_instance(i->node, i);
    instance_maybe_empty(i);
}

void instance_maybe_empty(struct instance *i)
{
    if (!i->closed || i->empty_told || i->execs > 0 || i->phase != PHASE_READY || i->handle == 0)
        return;
    if (i->spec->kind == WORKLOAD_COMMAND || (i->slot.slot != NULL && slot_joiners(i->slot) > 0))
        return;
    i->empty_told = true;
    steps_defer(i->node, &(struct scheduler_event){.kind = SCHEDULER_EMPTY, .instance = i->handle});
}

static void stop_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                    int *descriptors, size_t descriptor_count)
{
    struct instance *i = user;
    if (error != NULL && error->code == ERR_NOT_FOUND && i->phase == PHASE_STOPPING)
        instance_ended_locally(i, i->end_reason, "the runner does not know it");
    else if (error != NULL)
        log_warn("instance", "%s: the runner did not stop it: %s", i->id.text, error->msg);
    ignored_cb(user, error, reply, descriptors, descriptor_count);
}

void instance_stop(struct instance *i, enum end_reason reason, unsigned grace_ms)
{
    if (i->phase == PHASE_ENDED)
        return;
    bool again = i->ending;
    if (!again) {
        i->ending = true;
        i->end_reason = reason;
        instance_note(i, "stopping", "%s", end_reason_name(reason));
    }
    if (i->phase == PHASE_STARTING) {
        /* tick() discards it when both answers are in. */
        if (i->problem == PROBLEM_NONE)
            i->problem = PROBLEM_START_FAILED;
        tick(i);
        return;
    }
    if (i->phase == PHASE_STOPPING && i->discarded)
        return;
    if (i->slot.slot != NULL)
        (void)!slot_drain(i->slot);
    i->phase = PHASE_STOPPING;
    routes_instance(i->node, i);
    Skerry__Runner__Stop stop = SKERRY__RUNNER__STOP__INIT;
    stop.id = i->id.text;
    stop.grace_ms = grace_ms;
    stop.reason = (uint32_t)i->end_reason;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_STOP;
    r.stop = &stop;
    struct err e = {0};
    if (sandbox_ask(i->node->sandbox, &r, stop_cb, i, &e) == 0)
        i->pending++;
    else
        log_warn("instance", "%s: the runner was not told to stop it: %s", i->id.text, e.msg);
}

static void compose_end_detail(struct instance *i, char *out, size_t size)
{
    if (i->end_message[0] != '\0')
        text_copy(out, size, i->end_message);
    else
        text_copy(out, size, i->detail);
}

static void forget_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                      int *descriptors, size_t descriptor_count)
{
    ignored_cb(user, error, reply, descriptors, descriptor_count);
}

static void end_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct instance *i = user;
    struct err e = {0};
    if (error != NULL) {
        log_warn("instance", "%s: its end was not recorded: %s; the next start does it", i->id.text,
                 error->msg);
    } else {
        if (result->problem != PROBLEM_NONE && i->reserved)
            log_warn("instance", "%s: the registry refused its end: %s", i->id.text,
                     result->detail);
        (void)!ask_runner_about(i, SKERRY__RUNNER__REQUEST__VERB_FORGET, forget_cb, &e);
    }
    instance_unpend(i);
}

int instance_exit_code(const struct instance *i)
{
    if (i->end_reason != END_EXITED)
        return -1;
    return i->signal != 0 ? 128 + (int)i->signal : i->exit_code;
}

static void record_end(struct instance *i)
{
    struct err e = {0};
    if (!i->reserved) {
        (void)!ask_runner_about(i, SKERRY__RUNNER__REQUEST__VERB_FORGET, forget_cb, &e);
        return;
    }
    struct registry_instance record = {
        .id = i->id,
        .epoch = i->epoch,
        .state = INSTANCE_STATE_ENDED,
        .reason = i->end_reason,
        .exit_code = instance_exit_code(i),
        .signal = i->signal,
        .ended_wall_ms = clock_wall_ms(),
        .marks = i->marks,
        .joins = i->joins,
        .joiners_peak = i->joiners_peak,
        .usage = i->usage,
    };
    compose_end_detail(i, record.detail, sizeof record.detail);
    struct registry_command command = {
        .kind = REGISTRY_INSTANCE_END, .wall_ms = record.ended_wall_ms, .instance = &record};
    if (registry_propose(i->node->registry, &command, end_cb, i, &e) == 0)
        i->pending++;
    else
        log_warn("instance", "%s: its end was not recorded: %s", i->id.text, e.msg);
}

/* Why a start failed, for those who waited for it. */
static void explain_failure(struct instance *i)
{
    if (i->problem != PROBLEM_NONE && i->detail[0] != '\0')
        return;
    if (i->oom) {
        i->problem = PROBLEM_INSTANCE_OOM;
        text_format(i->detail, sizeof i->detail,
                    "%s used up its memory before it was ready: raise "
                    "deploy.resources.limits.memory",
                    instance_label(i));
        return;
    }
    i->problem = PROBLEM_START_FAILED;
    const char *tail = i->end_message[0] != '\0' ? i->end_message : "it wrote nothing to stderr";
    if (i->signal != 0)
        text_format(i->detail, sizeof i->detail,
                    "%s was ended by signal %u before it was ready: %s", instance_label(i),
                    i->signal, tail);
    else if (i->exit_code >= 0)
        text_format(i->detail, sizeof i->detail, "%s exited with code %d before it was ready: %s",
                    instance_label(i), i->exit_code, tail);
    else
        text_format(i->detail, sizeof i->detail, "%s did not start: %s", instance_label(i), tail);
}

static void finish(struct instance *i, enum end_reason reason)
{
    struct node *n = i->node;
    bool was_ready = i->ready_ms != 0;
    i->phase = PHASE_ENDED;
    untold_remove(i);
    i->marks.ended_us = instance_age_us(i);
    if (!i->ending || reason == END_OOM)
        i->end_reason = reason;
    i->ending = true;
    if (i->slot.slot != NULL) {
        i->joins = atomic_load(&i->slot.slot->joins);
        i->joiners_peak = atomic_load(&i->slot.slot->joiners_peak);
        slot_retire(n->slots, i->slot);
    }
    if (!was_ready)
        explain_failure(i);
    char code[32] = "";
    if (instance_exit_code(i) >= 0)
        text_format(code, sizeof code, " with code %d", instance_exit_code(i));
    instance_note(i, "ended", "%s%s%s%s", end_reason_name(i->end_reason), code,
                  i->end_message[0] != '\0' ? ", " : "", i->end_message);
    if (i->usage.wall_us > 0)
        instance_note(i, "used",
                      "%.3f s of CPU, at most %.1f MiB of memory, network %" PRIu64
                      " bytes in and %" PRIu64 " out",
                      (double)i->usage.cpu_us / 1e6,
                      (double)i->usage.memory_peak_bytes / (1024.0 * 1024.0),
                      i->usage.network_in_bytes, i->usage.network_out_bytes);
    routes_instance(n, i);
    pthread_mutex_lock(&n->facts_mutex);
    n->metrics.ended_total[i->end_reason]++;
    n->metrics.oom_total += i->end_reason == END_OOM;
    n->metrics.start_failures_total += !was_ready;
    pthread_mutex_unlock(&n->facts_mutex);
    events_post(n, "instance_ended", i->name, i->id.text, "%s", end_reason_name(i->end_reason));
    joins_autopsies(n, i);
    joins_command_ended(i);
    asks_instance_ended(i);
    close_descriptors(i);
    record_end(i);
    if (i->handle != 0)
        steps_defer(
            n, &(struct scheduler_event){.kind = was_ready ? SCHEDULER_ENDED : SCHEDULER_FAILED,
                                         .instance = i->handle,
                                         .problem = i->problem,
                                         .reason = i->end_reason,
                                         .detail = i->detail});
    steps_poke(i);
}

void instance_end_tell(const struct instance *i, struct command_end *out)
{
    *out = (struct command_end){.reason = i->end_reason,
                                .exit_code = i->exit_code,
                                .signal = i->signal,
                                .timed_out = i->end_reason == END_TIMED_OUT,
                                .oom = i->oom,
                                .wall_us = i->usage.wall_us,
                                .cpu_us = i->usage.cpu_us,
                                .memory_peak_bytes = i->usage.memory_peak_bytes};
    text_copy(out->detail, sizeof out->detail, i->end_message);
}

void instance_ended_locally(struct instance *i, enum end_reason reason, const char *message)
{
    if (i->phase == PHASE_ENDED)
        return;
    if (message != NULL && message != i->detail)
        text_copy(i->end_message, sizeof i->end_message, message);
    finish(i, reason);
}

static void usage_take(struct registry_usage *out, const Skerry__Runner__Ended *ended)
{
    const Skerry__Runner__Stats *s = ended->stats;
    *out = (struct registry_usage){.wall_us = ended->wall_us};
    if (s == NULL)
        return;
    out->cpu_us = s->cpu_us;
    out->memory_peak_bytes = s->memory_peak_bytes;
    out->memory_kib_ms = s->memory_peak_bytes / 1024 * (ended->wall_us / 1000);
    out->network_in_bytes = s->network_in_bytes;
    out->network_out_bytes = s->network_out_bytes;
}

void instance_ended(struct instance *i, const Skerry__Runner__Ended *ended)
{
    if (i->phase == PHASE_ENDED)
        return;
    i->oom = ended->oom;
    /* Killed as a whole, so that nobody was left to see how main ended. */
    bool killed = ended->oom || ended->reason == END_TIMED_OUT ||
                  ended->reason == END_CLIENT_GONE || ended->reason == END_LEASE_LOST;
    i->signal = ended->signal == 0 && killed ? SIGKILL : ended->signal;
    i->exit_code = i->signal != 0 ? -1 : (int)(ended->exit_code & 0xffu);
    usage_take(&i->usage, ended);
    const char *message = ended->stderr_tail[0] != '\0' ? ended->stderr_tail : ended->message;
    text_copy(i->end_message, sizeof i->end_message, message);
    enum end_reason reason = ended->oom ? END_OOM : END_EXITED;
    if (!ended->oom && ended->reason > END_NONE && ended->reason < END_REASON_COUNT)
        reason = (enum end_reason)ended->reason;
    finish(i, reason);
}

/* --- events of the runner ------------------------------------------------------------------------ */

static void listening_event(struct instance *i, const Skerry__Runner__Listening *l)
{
    i->port_count = 0;
    for (size_t k = 0; k < l->n_ports && k < INSTANCE_PORTS_MAX; k++)
        i->ports[i->port_count++] = l->ports[k];
    if (i->port_count > 0)
        instance_note(i, "listens", "on port %u, not on %u", i->ports[0], (unsigned)i->spec->port);
}

static void health_event(struct instance *i, const Skerry__Runner__Health *h)
{
    instance_note(i, h->healthy ? "healthy" : "unhealthy", "%s", h->message);
    if (!h->healthy && i->phase == PHASE_READY && i->handle != 0)
        steps_run(i->node, &(struct scheduler_event){.kind = SCHEDULER_DRAIN,
                                                     .instance = i->handle,
                                                     .reason = END_UNHEALTHY});
}

void instance_event(struct node *n, const Skerry__Runner__Event *event)
{
    struct instance *i = NULL;
    switch (event->event_case) {
    case SKERRY__RUNNER__EVENT__EVENT_READY:
        i = instance_find(n, event->ready->id);
        if (i != NULL && i->spec->kind == WORKLOAD_SERVER)
            instance_make_ready(i, event->ready->address);
        break;
    case SKERRY__RUNNER__EVENT__EVENT_EXEC_ENDED:
        i = instance_find(n, event->exec_ended->id);
        if (i != NULL)
            execs_ended(i, event->exec_ended);
        break;
    case SKERRY__RUNNER__EVENT__EVENT_ENDED:
        i = instance_find(n, event->ended->id);
        if (i != NULL)
            instance_ended(i, event->ended);
        break;
    case SKERRY__RUNNER__EVENT__EVENT_LISTENING:
        i = instance_find(n, event->listening->id);
        if (i != NULL)
            listening_event(i, event->listening);
        break;
    case SKERRY__RUNNER__EVENT__EVENT_HEALTH:
        i = instance_find(n, event->health->id);
        if (i != NULL)
            health_event(i, event->health);
        break;
    case SKERRY__RUNNER__EVENT__EVENT_IMPORT_ENDED:
        imports_ended(n, event->import_ended);
        break;
    default:
        log_warn("runner", "it sent an event of an unknown kind");
        break;
    }
}

/* --- the one place that moves a start on ---------------------------------------------------------- */

static void tick(struct instance *i)
{
    if (i->phase == PHASE_STARTING) {
        /* A loss is known as soon as one side failed, but both answers must be in: the sandbox
         * that the runner still makes has to be discarded. */
        if (i->unasked)
            instance_ask_runner(i);
        if (i->pending > 0)
            return;
        if (i->problem != PROBLEM_NONE || !i->reserved || !i->prepared)
            discard(i);
        else
            commit(i);
        return;
    }
    if (i->phase == PHASE_ENDED && i->pending == 0 && i->execs == 0)
        free_instance(i);
}
