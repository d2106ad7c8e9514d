#include "scheduler/scheduler.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "scheduler/state.h"

/* A waiter is answered once; an instance is started, closed and stopped once each. */
int scheduler_room(struct scheduler *s, struct err *e)
{
    size_t actions = s->action_count + s->waiter_count + 3 * (size_t)s->instance_count + 8;
    if (actions > s->action_capacity) {
        size_t capacity = s->action_capacity == 0 ? 64 : s->action_capacity;
        while (capacity < actions)
            capacity *= 2;
        struct scheduler_action *grown = realloc(s->actions, capacity * sizeof *grown);
        if (grown == NULL)
            return err_set(e, ERR_NO_MEMORY, "no memory for %zu actions", capacity);
        s->actions = grown;
        s->action_capacity = capacity;
    }
    return scheduler_timers_reserve(
        &s->timers, (size_t)s->waiter_count + s->instance_count + s->workload_count + 2, e);
}

struct scheduler_action *scheduler_act(struct scheduler *s, enum scheduler_action_kind kind)
{
    assert_always(s->action_count < s->action_capacity);
    struct scheduler_action *a = &s->actions[s->action_count++];
    *a = (struct scheduler_action){.kind = kind};
    return a;
}

void scheduler_want(struct scheduler *s, struct scheduler_workload *w)
{
    if (w->wanting)
        return;
    w->wanting = true;
    DL_APPEND2(s->wanting, w, want_prev, want_next);
}

/* --- workloads --- */

struct scheduler_workload *scheduler_workload_get(struct scheduler *s, const char *name,
                                                  struct err *e)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, name, w);
    if (w != NULL)
        return w;
    w = calloc(1, sizeof *w);
    if (w == NULL || !text_copy(w->name, sizeof w->name, name)) {
        err_set(e, w == NULL ? ERR_NO_MEMORY : ERR_INVALID, "workload %.80s: %s", name,
                w == NULL ? "no memory" : "the name is too long");
        free(w);
        return NULL;
    }
    w->timer.owner = TIMER_WORKLOAD;
    w->shared.workload = w;
    w->removed = true;
    w->policy =
        (struct policy){PLACES_UNLIMITED, TIMER_NEVER, TIMER_NEVER, 0, TIMER_NEVER, TIMER_NEVER};
    s->workload_count++;
    HASH_ADD_STR(s->workloads, name, w);
    if (w->hh.tbl == NULL || scheduler_room(s, NULL) != 0) {
        if (w->hh.tbl != NULL)
            HASH_DEL(s->workloads, w);
        s->workload_count--;
        free(w);
        err_set(e, ERR_NO_MEMORY, "no memory for workload %s", name);
        return NULL;
    }
    return w;
}

void scheduler_workload_settle(struct scheduler *s, struct scheduler_workload *w)
{
    if (!w->removed || w->instance_count > 0 || w->waiters > 0)
        return;
    scheduler_timers_set(&s->timers, &w->timer, TIMER_NEVER);
    if (w->wanting)
        DL_DELETE2(s->wanting, w, want_prev, want_next);
    HASH_DEL(s->workloads, w);
    s->workload_count--;
    w->dead_next = s->dead_workloads;
    s->dead_workloads = w;
}

/* What is left for this node of what the cluster keeps ahead. */
static void share_idle(struct scheduler_workload *w, uint64_t elsewhere)
{
    w->idle_min = w->idle_wanted > elsewhere ? w->idle_wanted - elsewhere : 0;
}

static int workload_put(struct scheduler *s, const struct scheduler_event *event, struct err *e)
{
    const struct workload *spec = event->workload;
    struct scheduler_workload *w = scheduler_workload_get(s, event->name, e);
    if (w == NULL)
        return -ERR_NO_MEMORY;
    bool another = w->removed || w->version != event->version;
    w->removed = false;
    w->version = event->version;
    scheduler_policy_from_workload(&w->policy, spec);
    w->command = spec->kind == WORKLOAD_COMMAND;
    w->idle_wanted = spec->scale.idle_min;
    share_idle(w, event->idle_elsewhere);
    w->instances_max = spec->scale.max;
    w->queue_max = spec->scale.queue;
    w->queue_timeout_ms = spec->scale.queue_timeout_ms;
    w->keyed = spec->join.key != NULL && spec->join.key[0] != '\0';
    w->keeps_ahead = w->idle_wanted > 0 && !w->command && !w->keyed;
    w->target = spec->scale.target_thousandths;
    w->barred = event->barred;
    if (another) { /* perhaps this one starts */
        w->failures = w->crashes = 0;
        w->backoff_end_ms = w->crash_end_ms = 0;
        w->replaced = false;
    }
    struct instance *i;
    DL_FOREACH(w->instances, i)
    scheduler_instance_recount(i);
    scheduler_workload_roll(s, w);
    scheduler_want(s, w);
    scheduler_workload_timer(s, w);
    return 0;
}

static void workload_remove(struct scheduler *s, const char *name)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, name, w);
    if (w == NULL || w->removed)
        return;
    w->removed = true;
    scheduler_waiters_refuse_all(s, w, PROBLEM_WORKLOAD_UNKNOWN, "it was removed", 0);
    struct instance *i;
    DL_FOREACH(w->instances, i)
    scheduler_instance_drain(s, i, END_DRAINED, time_after(s->now_ms, i->policy.drain_ms));
    scheduler_workload_timer(s, w);
    scheduler_workload_settle(s, w);
}

static void scheduled_free(struct scheduler_workload *w)
{
    struct group *g, *next;
    HASH_ITER(hh, w->groups, g, next)
    {
        HASH_DEL(w->groups, g);
        free(g->key);
        free(g);
    }
    free(w);
}

/* --- steps --- */

static void bury(struct scheduler *s)
{
    while (s->dead_instances != NULL) {
        struct instance *i = s->dead_instances;
        s->dead_instances = i->next;
        scheduler_instance_free(i);
    }
    while (s->dead_workloads != NULL) {
        struct scheduler_workload *w = s->dead_workloads;
        s->dead_workloads = w->dead_next;
        scheduled_free(w);
    }
}

static void left(struct scheduler *s, const struct scheduler_event *event, struct instance *i)
{
    if (i != NULL) {
        if (i->life == LIFE_READY && i->group != NULL && (i->key != NULL || i->ready_counted)) {
            scheduler_group_serve(s, i->group, i);
            scheduler_group_cover(s, i->group);
        }
        return;
    }
    struct scheduler_workload *w = NULL;
    if (event->instance == 0 && event->name != NULL)
        HASH_FIND_STR(s->workloads, event->name, w);
    if (w == NULL)
        return;
    DL_FOREACH(w->instances, i)
    {
        if (i->life != LIFE_READY || i->group == NULL || (i->key == NULL && !i->ready_counted))
            continue;
        scheduler_group_serve(s, i->group, i);
        scheduler_group_cover(s, i->group);
    }
}

static void shut_down(struct scheduler *s)
{
    s->shutdown = true;
    struct scheduler_workload *w, *next;
    HASH_ITER(hh, s->workloads, w, next)
    {
        scheduler_waiters_refuse_all(s, w, PROBLEM_DRAINING, NULL, RETRY_DRAINING_MS);
    }
}

static void hold(struct scheduler *s, const struct scheduler_event *event)
{
    s->hold = event->problem;
    s->hold_retry_ms = event->retry_after_ms;
    (void)text_copy(s->hold_detail, sizeof s->hold_detail,
                    event->detail == NULL ? "" : event->detail);
    struct scheduler_workload *w, *next;
    HASH_ITER(hh, s->workloads, w, next)
    {
        if (s->hold != PROBLEM_NONE)
            scheduler_waiters_give_up(s, w);
        else
            scheduler_want(s, w);
    }
}

static void count_others(struct scheduler *s, const struct scheduler_event *event)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, event->name, w);
    if (w == NULL)
        return;
    uint64_t idle_min = w->idle_min;
    share_idle(w, event->idle_elsewhere);
    w->replaced = event->replaced;
    scheduler_workload_roll(s, w);
    if (w->others == event->count && w->idle_min == idle_min)
        return;
    w->others = event->count;
    scheduler_want(s, w);
}

static bool stranded(const struct scheduler_workload *w)
{
    return w->shared.waiters != NULL && !scheduler_may_hope(w, &w->shared) &&
           !scheduler_has_room(w);
}

static void send_stranded(struct scheduler *s, const char *name)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, name, w);
    if (w != NULL && stranded(w))
        scheduler_group_refuse(s, &w->shared, PROBLEM_LIMIT_REACHED,
                               "other nodes run as many instances as scale.max allows",
                               RETRY_FULL_MS);
}

static int handle(struct scheduler *s, const struct scheduler_event *event, struct err *e)
{
    struct instance *i = NULL;
    if (event->instance != 0)
        HASH_FIND(hh, s->instances, &event->instance, sizeof event->instance, i);
    switch (event->kind) {
    case SCHEDULER_WORKLOAD:
        return workload_put(s, event, e);
    case SCHEDULER_WORKLOAD_REMOVED:
        workload_remove(s, event->name);
        return 0;
    case SCHEDULER_ASK:
        return scheduler_waiter_ask(s, event, e);
    case SCHEDULER_CANCEL:
        scheduler_waiter_cancel(s, event->waiter);
        return 0;
    case SCHEDULER_ADOPTED:
        return scheduler_instance_adopt(s, event, e);
    case SCHEDULER_LEFT:
        left(s, event, i);
        return 0;
    case SCHEDULER_HOLD:
        hold(s, event);
        return 0;
    case SCHEDULER_OTHERS:
        count_others(s, event);
        return 0;
    case SCHEDULER_STRANDED:
        send_stranded(s, event->name);
        return 0;
    case SCHEDULER_SHUTDOWN:
        shut_down(s);
        return 0;
    case SCHEDULER_TICK:
        return 0;
    case SCHEDULER_READY:
    case SCHEDULER_FAILED:
    case SCHEDULER_ENDED:
    case SCHEDULER_DRAIN:
    case SCHEDULER_EMPTY:
    case SCHEDULER_EXTEND:
        break;
    }
    if (i == NULL)
        return 0; /* it has ended; the two messages crossed */
    if (event->kind == SCHEDULER_READY)
        scheduler_instance_ready(s, i);
    else if (event->kind == SCHEDULER_DRAIN)
        scheduler_instance_drain(s, i, event->reason, time_after(s->now_ms, i->policy.drain_ms));
    else if (event->kind == SCHEDULER_EXTEND)
        scheduler_instance_extend(s, i, event->until_ms);
    else if (event->kind != SCHEDULER_EMPTY)
        scheduler_instance_ended(s, i, event);
    else if (i->life == LIFE_DRAINING)
        scheduler_instance_stop(s, i, i->reason);
    return 0;
}

static void expire(struct scheduler *s)
{
    struct timer *t;
    while ((t = scheduler_timers_first(&s->timers)) != NULL && t->at_ms <= s->now_ms) {
        switch (t->owner) {
        case TIMER_WAITER:
            scheduler_waiter_expire(s, container_of(t, struct waiter, timer));
            break;
        case TIMER_INSTANCE:
            scheduler_instance_due(s, container_of(t, struct instance, timer));
            break;
        case TIMER_WORKLOAD: {
            struct scheduler_workload *w = container_of(t, struct scheduler_workload, timer);
            scheduler_workload_roll(s, w);
            scheduler_want(s, w);
            scheduler_workload_timer(s, w);
            break;
        }
        }
    }
}

int scheduler_step(struct scheduler *s, const struct scheduler_event *event, uint64_t now_ms,
                   struct scheduler_actions *out, struct err *e)
{
    bury(s);
    s->action_count = 0;
    if (now_ms > s->now_ms)
        s->now_ms = now_ms;
    int rc = handle(s, event, e);
    expire(s);
    scheduler_instances_start(s);
    struct timer *first = scheduler_timers_first(&s->timers);
    *out = (struct scheduler_actions){
        .items = s->actions,
        .count = s->action_count,
        .next_ms = first == NULL ? TIMER_NEVER : first->at_ms,
    };
    return rc;
}

/* --- the rest --- */

int scheduler_new(struct scheduler **out, const struct scheduler_options *options, struct err *e)
{
    if (options->instances_max == 0 || options->starts_max == 0 || options->waiters_max == 0 ||
        options->calls.enter == NULL || options->calls.load == NULL)
        return err_set(e, ERR_INVALID, "scheduler: bounds and calls must be given");
    struct scheduler *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for a scheduler");
    s->options = *options;
    s->next_handle = 1;
    int rc = scheduler_room(s, e);
    if (rc != 0) {
        scheduler_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void scheduler_free(struct scheduler *s)
{
    if (s == NULL)
        return;
    bury(s);
    struct waiter *w, *next_waiter;
    HASH_ITER(hh, s->waiters, w, next_waiter)
    {
        HASH_DEL(s->waiters, w);
        free(w);
    }
    struct instance *i, *next_instance;
    HASH_ITER(hh, s->instances, i, next_instance)
    {
        HASH_DEL(s->instances, i);
        scheduler_instance_free(i);
    }
    struct scheduler_workload *load, *next_load;
    HASH_ITER(hh, s->workloads, load, next_load)
    {
        HASH_DEL(s->workloads, load);
        scheduled_free(load);
    }
    scheduler_timers_free(&s->timers);
    free(s->actions);
    free(s);
}

void scheduler_counts(const struct scheduler *s, struct scheduler_counts *out)
{
    *out = (struct scheduler_counts){s->instance_count, s->starting, s->waiter_count};
}

bool scheduler_waited_for(const struct scheduler *s, const char *name)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, name, w);
    return w != NULL && w->waiters > 0;
}

bool scheduler_hopes(const struct scheduler *s, const char *name)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, name, w);
    return w != NULL && scheduler_may_hope(w, &w->shared);
}

bool scheduler_stranded(const struct scheduler *s, const char *name)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, name, w);
    return w != NULL && stranded(w);
}

bool scheduler_place_waited_for(const struct scheduler *s, scheduler_instance instance)
{
    struct instance *i = NULL;
    HASH_FIND(hh, s->instances, &instance, sizeof instance, i);
    return i != NULL && i->group != NULL && i->group->waiters != NULL;
}

bool scheduler_rolls(const struct scheduler *s, const char *name)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, name, w);
    return w != NULL && w->older > 0;
}

bool scheduler_outlook(const struct scheduler *s, const char *name, uint64_t now_ms,
                       struct scheduler_outlook *out)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, name, w);
    if (w == NULL || w->removed)
        return false;
    *out = (struct scheduler_outlook){
        .waiting = w->waiters,
        .ready = w->ready_shared - w->older,
        .older = w->older,
        .failures = w->failures,
        .failures_pause_ms = w->backoff_end_ms > now_ms ? w->backoff_end_ms - now_ms : 0,
        .crashes = w->crashes,
        .crashes_pause_ms = w->crash_end_ms > now_ms ? w->crash_end_ms - now_ms : 0,
        .failure = w->failure_detail,
    };
    struct instance *i;
    DL_FOREACH(w->instances, i)
    out->starting += i->life == LIFE_STARTING && i->version == w->version;
    return true;
}

/* A ready one with room, by its load: entering is what tells for sure. */
static bool has_place(const struct scheduler *s, const struct scheduler_workload *w)
{
    const struct scheduler_calls *calls = &s->options.calls;
    struct instance *i;
    DL_FOREACH(w->instances, i)
    {
        if (i->life != LIFE_READY || !i->ready_counted)
            continue;
        struct scheduler_load load = {0};
        calls->load(calls->user, i->handle, &load);
        if (load.joiners < i->policy.places)
            return true;
    }
    return false;
}

enum scheduler_prospect scheduler_prospect(const struct scheduler *s, const char *name,
                                           const char *key)
{
    struct scheduler_workload *w = NULL;
    HASH_FIND_STR(s->workloads, name, w);
    if (w == NULL)
        return SCHEDULER_STARTS;
    if (!w->command && key != NULL && key[0] != '\0') {
        struct group *g = NULL;
        HASH_FIND_STR(w->groups, key, g);
        if (g != NULL && scheduler_may_hope(w, g))
            return SCHEDULER_SERVED;
    } else if (!w->command) {
        const struct group *g = &w->shared;
        bool covered = g->uncovered == NULL && g->covered < g->capacity;
        if (covered || (g->waiters == NULL && has_place(s, w)))
            return SCHEDULER_SERVED;
        if (!scheduler_has_room(w) && scheduler_may_hope(w, g))
            return SCHEDULER_WAITS;
    }
    return scheduler_has_room(w) ? SCHEDULER_STARTS : SCHEDULER_NOTHING;
}
