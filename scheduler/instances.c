/* The life of instances: when they start, take no more joiners, and end. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/fields.h"
#include "base/memory.h"
#include "scheduler/state.h"

void scheduler_policy_from_workload(struct policy *out, const struct workload *spec)
{
    *out = (struct policy){
        .places = spec->join.max_joiners == 0 || spec->join.max_joiners > PLACES_UNLIMITED
                      ? PLACES_UNLIMITED
                      : spec->join.max_joiners,
        .window_ms = spec->join.window_ms,
        .start_ms = spec->timeouts.start_ms,
        .drain_ms = spec->timeouts.drain_ms,
        .idle_ms = spec->life.idle_ms,
        .max_ms = spec->life.max_ms,
    };
}

static bool is_shared(const struct instance *i)
{
    return i->group == &i->workload->shared;
}

void scheduler_instance_recount(struct instance *i)
{
    struct scheduler_workload *w = i->workload;
    bool current = i->version == w->version;
    /* Older versions do not keep the new one from starting, which replaces them; rooms are not
     * replaced, and commands that drain are at work. */
    bool counts = current || (i->life <= LIFE_READY && !is_shared(i)) ||
                  (i->group == NULL && i->life == LIFE_DRAINING);
    bool ready = i->life == LIFE_READY && is_shared(i);
    bool older = ready && !current;
    w->live += (uint64_t)counts - (uint64_t)i->counted;
    w->ready_shared += (uint64_t)ready - (uint64_t)i->ready_counted;
    w->older += (uint64_t)older - (uint64_t)i->older;
    i->counted = counts;
    i->ready_counted = ready;
    i->older = older;
}

void scheduler_instance_timer(struct scheduler *s, struct instance *i)
{
    uint64_t at = TIMER_NEVER;
    switch (i->life) {
    case LIFE_STARTING:
        at = i->start_end_ms;
        break;
    case LIFE_READY:
        at = i->life_end_ms;
        at = i->window_end_ms < at ? i->window_end_ms : at;
        at = i->idle_check_ms < at ? i->idle_check_ms : at;
        break;
    case LIFE_DRAINING:
        at = i->drain_end_ms < i->life_end_ms ? i->drain_end_ms : i->life_end_ms;
        break;
    case LIFE_STOPPING:
        break;
    }
    scheduler_timers_set(&s->timers, &i->timer, at);
}

void scheduler_instance_free(struct instance *i)
{
    free(i->key);
    free(i);
}

static struct instance *instance_new(struct scheduler *s, struct scheduler_workload *w,
                                     struct group *g, scheduler_instance handle, struct err *e)
{
    struct instance *i = calloc(1, sizeof *i);
    if (i == NULL)
        goto no_memory;
    if (g != NULL && g->key != NULL && (i->key = strdup(g->key)) == NULL)
        goto no_memory;
    i->handle = handle;
    i->timer.owner = TIMER_INSTANCE;
    s->instance_count++;
    HASH_ADD(hh, s->instances, handle, sizeof i->handle, i);
    if (i->hh.tbl == NULL || scheduler_room(s, e) != 0) {
        if (i->hh.tbl != NULL)
            HASH_DEL(s->instances, i);
        s->instance_count--;
        goto no_memory;
    }
    i->workload = w;
    i->group = g;
    i->version = w->version;
    i->policy = w->policy;
    i->start_end_ms = i->window_end_ms = i->life_end_ms = TIMER_NEVER;
    i->idle_check_ms = i->drain_end_ms = TIMER_NEVER;
    DL_APPEND(w->instances, i);
    w->instance_count++;
    if (g != NULL && g->key != NULL && g->keyed == NULL)
        g->keyed = i;
    return i;
no_memory:
    if (i != NULL)
        scheduler_instance_free(i);
    err_set(e, ERR_NO_MEMORY, "no memory for another instance");
    return NULL;
}

static void enter_starting(struct scheduler *s, struct instance *i)
{
    i->life = LIFE_STARTING;
    i->start_end_ms = time_after(s->now_ms, i->policy.start_ms);
    s->starting++;
    if (i->group != NULL)
        i->group->capacity += i->policy.places;
    scheduler_instance_recount(i);
    scheduler_instance_timer(s, i);
}

static void leave_starting(struct scheduler *s, struct instance *i)
{
    s->starting--;
    if (i->group != NULL)
        i->group->capacity -= i->policy.places;
}

/* --- starting --- */

/* The shared instances of the current version. */
struct tally {
    uint64_t starting, ready, joiners;
    uint64_t idle; /* that nobody uses or is about to use */
};

static struct tally tally(const struct scheduler *s, const struct scheduler_workload *w)
{
    const struct scheduler_calls *calls = &s->options.calls;
    struct tally t = {0};
    struct instance *i;
    DL_FOREACH(w->instances, i)
    {
        if (!is_shared(i) || i->version != w->version)
            continue;
        if (i->life == LIFE_STARTING) {
            t.starting++;
        } else if (i->life == LIFE_READY) {
            struct scheduler_load load = {0};
            calls->load(calls->user, i->handle, &load);
            t.ready++;
            t.joiners += load.joiners;
            t.idle += load.joiners == 0;
        }
    }
    uint64_t used = (w->shared.covered + w->policy.places - 1) / w->policy.places;
    t.idle += t.starting > used ? t.starting - used : 0;
    return t;
}

static bool has_target(const struct scheduler_workload *w)
{
    return w->target < TARGET_NONE && w->policy.places != PLACES_UNLIMITED && !w->command;
}

/* So many instances have room for those who are inside or wait, with the share free that is wanted. */
static uint64_t target_count(const struct scheduler_workload *w, const struct tally *t)
{
    if (!has_target(w) || w->target == 0)
        return 0;
    uint64_t taken = t->joiners + w->shared.covered;
    uint64_t each = w->policy.places * w->target; /* thousandths */
    return (taken * 1000 + each - 1) / each;
}

/* Why another is to start although nobody waits for it; NULL: none is. */
static const char *wants_ahead(const struct scheduler *s, const struct scheduler_workload *w)
{
    if (w->older == 0 && !w->keeps_ahead && !has_target(w))
        return NULL;
    struct tally t = tally(s, w);
    if (w->older > 0 && t.ready + t.starting == 0)
        return "a new version replaces the one before it";
    if (w->keeps_ahead && t.idle < w->idle_min)
        return "kept ahead: scale.idle_min";
    if (t.ready + t.starting < target_count(w, &t))
        return "started ahead: scale.target";
    return NULL;
}

/* Whether an idle one would be started again at once. */
static bool is_kept_ahead(const struct scheduler *s, const struct instance *i)
{
    const struct scheduler_workload *w = i->workload;
    if (!is_shared(i) || i->version != w->version)
        return false;
    struct tally t = tally(s, w);
    return (w->keeps_ahead && t.idle <= w->idle_min) || t.ready + t.starting <= target_count(w, &t);
}

/* For a waiter, or with a reason for nobody. */
static bool start_for(struct scheduler *s, struct scheduler_workload *w, struct group *g,
                      struct waiter *first, const char *why)
{
    struct instance *i = instance_new(s, w, g, s->next_handle, NULL);
    if (i == NULL)
        return false; /* who waits goes on waiting; the next step tries again */
    s->next_handle++;
    i->start = first == NULL ? SCHEDULER_POOL : SCHEDULER_COLD;
    struct scheduler_action *a = scheduler_act(s, SCHEDULER_START);
    a->waiter = first == NULL ? 0 : first->handle;
    a->instance = i->handle;
    a->name = w->name;
    a->version = w->version;
    a->key = i->key;
    a->start = i->start;
    a->detail = why;
    enter_starting(s, i);
    if (first != NULL && first->exclusive) {
        scheduler_waiter_unqueue(s, first);
        first->instance = i;
        i->exclusive = first;
    }
    if (g != NULL)
        scheduler_group_cover(s, g);
    return true;
}

/* Starts one instance of the workload, if one is needed and allowed. */
static bool start_one(struct scheduler *s, struct scheduler_workload *w)
{
    if (w->removed || !scheduler_has_room(w))
        return false;
    if (s->now_ms < w->backoff_end_ms) {
        scheduler_workload_timer(s, w);
        return false;
    }
    struct waiter *q;
    DL_FOREACH2(w->queue, q, queue_next)
    {
        struct group *g = q->exclusive ? q->alone : q->group;
        if (g == NULL || g->keyed == NULL)
            return start_for(s, w, g, q, NULL);
    }
    if (s->now_ms < w->crash_end_ms || w->barred)
        return false;
    const char *why = wants_ahead(s, w);
    return why != NULL && start_for(s, w, &w->shared, NULL, why);
}

void scheduler_instances_start(struct scheduler *s)
{
    while (!s->shutdown && s->hold == PROBLEM_NONE && s->wanting != NULL &&
           s->starting < s->options.starts_max && s->instance_count < s->options.instances_max) {
        struct scheduler_workload *w = s->wanting;
        DL_DELETE2(s->wanting, w, want_prev, want_next);
        w->wanting = false;
        if (start_one(s, w))
            scheduler_want(s, w); /* at the end of the line: others have their turn */
    }
}

void scheduler_workload_timer(struct scheduler *s, struct scheduler_workload *w)
{
    uint64_t at = TIMER_NEVER;
    bool looks = w->keeps_ahead || w->older > 0 || (has_target(w) && w->ready_shared > 0);
    uint64_t every_ms = has_target(w) ? TARGET_CHECK_MS : POOL_CHECK_MS;
    if (!w->removed && s->now_ms < w->backoff_end_ms && w->queued > 0)
        at = w->backoff_end_ms;
    if (!w->removed && looks && s->now_ms + every_ms < at)
        at = s->now_ms + every_ms;
    scheduler_timers_set(&s->timers, &w->timer, at);
}

/* --- the ends --- */

static uint64_t backoff_ms(unsigned failures)
{
    if (failures < 2)
        return 0;
    unsigned doublings = failures - 2 < 6 ? failures - 2 : 6;
    uint64_t ms = (uint64_t)BACKOFF_FIRST_MS << doublings;
    return ms < BACKOFF_MAX_MS ? ms : BACKOFF_MAX_MS;
}

/* A start came to nothing: its waiters are told, and further starts may have to wait. */
static void start_failed(struct scheduler *s, struct instance *i, enum problem problem,
                         const char *detail)
{
    struct scheduler_workload *w = i->workload;
    if ((problem == PROBLEM_START_FAILED || problem == PROBLEM_START_TIMEOUT) &&
        i->version == w->version) {
        w->failures++;
        w->backoff_end_ms = s->now_ms + backoff_ms(w->failures);
        w->failure_problem = problem;
        (void)text_copy(w->failure_detail, sizeof w->failure_detail, detail == NULL ? "" : detail);
        detail = scheduler_pause_detail(s, w);
    } else if (i->start == SCHEDULER_POOL) /* scale.max reached, no leader: not at once again */
        w->crash_end_ms = s->now_ms + BACKOFF_FIRST_MS;
    uint64_t retry = w->backoff_end_ms > s->now_ms ? w->backoff_end_ms - s->now_ms : RETRY_FULL_MS;
    leave_starting(s, i);
    struct group *g = i->group;
    while (g != NULL && g->covered > g->capacity) {
        struct waiter *last = g->uncovered == NULL ? g->waiters->prev : g->uncovered->prev;
        scheduler_waiter_refuse(s, last, i, problem, detail, retry);
    }
    while (i->forced != NULL)
        scheduler_waiter_refuse(s, i->forced, i, problem, detail, retry);
    if (i->exclusive != NULL)
        scheduler_waiter_refuse(s, i->exclusive, i, problem, detail, retry);
}

void scheduler_instance_stop(struct scheduler *s, struct instance *i, enum end_reason reason)
{
    if (i->life == LIFE_STOPPING)
        return;
    bool was_starting = i->life == LIFE_STARTING;
    if (was_starting)
        leave_starting(s, i);
    i->life = LIFE_STOPPING;
    i->reason = reason;
    scheduler_instance_recount(i);
    scheduler_instance_timer(s, i);
    struct scheduler_action *a = scheduler_act(s, SCHEDULER_STOP);
    a->instance = i->handle;
    a->name = i->workload->name;
    a->reason = reason;
    if (!was_starting)
        return;
    /* Whoever counted on it stands in line again; who wanted this very one is told. */
    while (i->forced != NULL)
        scheduler_waiter_refuse(s, i->forced, i, PROBLEM_INSTANCE_GONE,
                                "it was ended before it was ready", 0);
    if (i->exclusive != NULL)
        scheduler_waiter_refuse(s, i->exclusive, i, PROBLEM_INSTANCE_GONE,
                                "it was ended before it was ready", 0);
    if (i->group != NULL)
        scheduler_group_cover(s, i->group);
    scheduler_waiters_give_up(s, i->workload);
}

void scheduler_instance_drain(struct scheduler *s, struct instance *i, enum end_reason reason,
                              uint64_t drain_end_ms)
{
    switch (i->life) {
    case LIFE_STARTING:
        scheduler_instance_stop(s, i, reason);
        break;
    case LIFE_READY: {
        i->life = LIFE_DRAINING;
        i->reason = reason;
        i->drain_end_ms = drain_end_ms;
        scheduler_instance_recount(i);
        if (i->group != NULL) { /* a command has nobody to close it for: it ends by itself */
            struct scheduler_action *a = scheduler_act(s, SCHEDULER_CLOSE);
            a->instance = i->handle;
            a->name = i->workload->name;
            a->reason = reason;
        }
        scheduler_instance_timer(s, i);
        scheduler_waiters_give_up(s, i->workload);
        break;
    }
    case LIFE_DRAINING:
        if (drain_end_ms < i->drain_end_ms)
            i->drain_end_ms = drain_end_ms;
        scheduler_instance_timer(s, i);
        break;
    case LIFE_STOPPING:
        break;
    }
    scheduler_want(s, i->workload);
}

void scheduler_workload_roll(struct scheduler *s, struct scheduler_workload *w)
{
    /* Requests with a key, and commands, have no use for what is shared. Where this node is full, what
     * is old has to make room. */
    bool stands_in = !w->command && !w->keyed && !w->barred && !w->removed &&
                     s->instance_count < s->options.instances_max;
    bool drains = !stands_in || w->replaced || w->ready_shared > w->older;
    struct instance *i, *next;
    DL_FOREACH_SAFE(w->instances, i, next)
    {
        if (!is_shared(i) || i->version == w->version)
            continue;
        if (i->life == LIFE_STARTING || (i->life == LIFE_READY && drains))
            scheduler_instance_drain(s, i, END_DRAINED, time_after(s->now_ms, i->policy.drain_ms));
    }
}

static void count_crash(struct scheduler *s, struct instance *i, enum end_reason reason)
{
    struct scheduler_workload *w = i->workload;
    if (i->group == NULL || i->life != LIFE_READY || reason == END_KILLED)
        return;
    if (s->now_ms - i->ready_ms >= STABLE_MS) {
        w->crashes = 0;
        return;
    }
    w->crashes++;
    w->crash_end_ms = s->now_ms + backoff_ms(w->crashes);
}

void scheduler_instance_ended(struct scheduler *s, struct instance *i,
                              const struct scheduler_event *event)
{
    struct scheduler_workload *w = i->workload;
    struct group *g = i->group;
    if (i->life == LIFE_STARTING)
        start_failed(s, i, event->problem == PROBLEM_NONE ? PROBLEM_START_FAILED : event->problem,
                     event->detail);
    count_crash(s, i, event->reason);
    scheduler_timers_set(&s->timers, &i->timer, TIMER_NEVER);
    i->life = LIFE_STOPPING;
    w->live -= i->counted;
    w->ready_shared -= i->ready_counted;
    w->older -= i->older;
    w->instance_count--;
    s->instance_count--;
    if (g != NULL) {
        g->alone++; /* keeps it while others give up */
        if (g->keyed == i)
            g->keyed = NULL;
    }
    HASH_DEL(s->instances, i);
    DL_DELETE(w->instances, i);
    i->next = s->dead_instances;
    s->dead_instances = i;
    scheduler_waiters_give_up(s, w);
    if (g != NULL) {
        g->alone--;
        scheduler_group_settle(w, g);
    }
    scheduler_want(s, w);
    scheduler_workload_timer(s, w);
    scheduler_workload_settle(s, w);
}

/* --- ready, and what follows by time --- */

/* The clocks of a ready instance, from `ready_ms` on. */
static void begin(struct scheduler *s, struct instance *i)
{
    bool keyed = i->key != NULL;
    i->window_end_ms =
        keyed || i->group == NULL ? TIMER_NEVER : time_after(i->ready_ms, i->policy.window_ms);
    if (i->life_end_ms == TIMER_NEVER) /* else it was extended while it started */
        i->life_end_ms = time_after(i->ready_ms, i->policy.max_ms);
    i->idle_check_ms = i->group == NULL ? TIMER_NEVER : time_after(s->now_ms, i->policy.idle_ms);
    scheduler_instance_recount(i);
    scheduler_instance_timer(s, i);
}

void scheduler_instance_ready(struct scheduler *s, struct instance *i)
{
    const struct scheduler_calls *calls = &s->options.calls;
    struct scheduler_workload *w = i->workload;
    if (i->life != LIFE_STARTING)
        return; /* it was told to stop meanwhile */
    leave_starting(s, i);
    i->life = LIFE_READY;
    i->ready_ms = s->now_ms;
    if (i->version == w->version) {
        w->failures = 0;
        w->backoff_end_ms = 0;
    }
    begin(s, i);
    struct group *g = i->group;
    if (i->exclusive != NULL)
        scheduler_waiter_grant(s, i->exclusive, i);
    while (g != NULL && (i->forced != NULL || g->waiters != NULL)) {
        /* Both lines in the order of arrival. */
        bool forced =
            i->forced != NULL && (g->waiters == NULL || i->forced->sequence < g->waiters->sequence);
        bool entered = (forced && i->forced->exclusive) ||
                       calls->enter(calls->user, i->handle, forced || g->key != NULL);
        if (entered)
            scheduler_waiter_grant(s, forced ? i->forced : g->waiters, i);
        else if (i->forced != NULL)
            scheduler_waiter_refuse(s, i->forced, i, PROBLEM_INSTANCE_FULL, NULL, RETRY_FULL_MS);
        else
            break;
    }
    if (i->start == SCHEDULER_COLD)
        i->granted = true; /* whoever comes later has not waited for the start */
    if (g != NULL)
        scheduler_group_cover(s, g);
    scheduler_workload_roll(s, w);
    scheduler_want(s, w);
    scheduler_workload_timer(s, w);
}

static void look_if_idle(struct scheduler *s, struct instance *i)
{
    const struct scheduler_calls *calls = &s->options.calls;
    struct scheduler_load load = {0};
    calls->load(calls->user, i->handle, &load);
    /* Whoever is inside now leaves now at the soonest. */
    uint64_t since = load.joiners > 0 ? s->now_ms : load.last_left_ms;
    uint64_t end = time_after(since, i->policy.idle_ms);
    if (end <= s->now_ms && !is_kept_ahead(s, i)) {
        scheduler_instance_drain(s, i, END_IDLE, TIMER_NEVER);
        return;
    }
    i->idle_check_ms = end > s->now_ms ? end : time_after(s->now_ms, i->policy.idle_ms);
    if (i->idle_check_ms <= s->now_ms)
        i->idle_check_ms = s->now_ms + 1;
    scheduler_instance_timer(s, i);
}

static void start_timed_out(struct scheduler *s, struct instance *i)
{
    struct scheduler_workload *w = i->workload;
    char text[UNIT_TEXT_SIZE];
    duration_format(i->policy.start_ms, text);
    (void)text_format(w->timeout_detail, sizeof w->timeout_detail, "%s was not ready within %s",
                      w->name, text);
    start_failed(s, i, PROBLEM_START_TIMEOUT, w->timeout_detail);
    i->life = LIFE_STOPPING;
    scheduler_instance_recount(i);
    scheduler_instance_timer(s, i);
    struct scheduler_action *a = scheduler_act(s, SCHEDULER_STOP);
    a->instance = i->handle;
    a->name = w->name;
    a->reason = END_START_TIMEOUT;
    scheduler_waiters_give_up(s, w);
    scheduler_want(s, w);
    scheduler_workload_timer(s, w);
}

void scheduler_instance_due(struct scheduler *s, struct instance *i)
{
    switch (i->life) {
    case LIFE_STARTING:
        start_timed_out(s, i);
        break;
    case LIFE_READY:
        if (i->life_end_ms <= s->now_ms) {
            i->life_end_ms = TIMER_NEVER;
            scheduler_instance_drain(s, i, END_EXPIRED, time_after(s->now_ms, i->policy.drain_ms));
        } else if (i->window_end_ms <= s->now_ms)
            scheduler_instance_drain(s, i, END_EXPIRED, TIMER_NEVER);
        else
            look_if_idle(s, i);
        break;
    case LIFE_DRAINING:
        if (i->drain_end_ms <= s->now_ms) {
            scheduler_instance_stop(s, i, i->reason);
            break;
        }
        /* life.max bounds also those that wait for their last joiner for another reason. */
        i->life_end_ms = TIMER_NEVER;
        i->drain_end_ms = time_after(s->now_ms, i->policy.drain_ms);
        scheduler_instance_timer(s, i);
        break;
    case LIFE_STOPPING:
        scheduler_timers_set(&s->timers, &i->timer, TIMER_NEVER);
        break;
    }
}

void scheduler_instance_extend(struct scheduler *s, struct instance *i, uint64_t until_ms)
{
    if (i->life == LIFE_STOPPING)
        return;
    i->life_end_ms = until_ms;
    scheduler_instance_timer(s, i);
}

int scheduler_instance_adopt(struct scheduler *s, const struct scheduler_event *event,
                             struct err *e)
{
    struct instance *i = NULL;
    HASH_FIND(hh, s->instances, &event->instance, sizeof event->instance, i);
    if (event->instance < SCHEDULER_ADOPTED_FIRST || i != NULL)
        return err_set(e, ERR_INVALID, "instance %" PRIu64 " is not a new one to adopt",
                       event->instance);
    if (s->instance_count >= s->options.instances_max)
        return err_set(e, ERR_LIMIT, "%" PRIu32 " instances are as many as this node may have",
                       s->instance_count);
    struct scheduler_workload *w = scheduler_workload_get(s, event->name, e);
    if (w == NULL)
        return -ERR_NO_MEMORY;
    bool command = event->workload != NULL ? event->workload->kind == WORKLOAD_COMMAND
                                           : event->exclusive || w->command;
    struct group *g = NULL;
    if (!command && (g = scheduler_group_find(w, event->key, e)) == NULL) {
        scheduler_workload_settle(s, w);
        return -ERR_NO_MEMORY;
    }
    bool duplicate = g != NULL && g->keyed != NULL;
    i = instance_new(s, w, g, event->instance, e);
    if (i == NULL) {
        scheduler_group_settle(w, g);
        scheduler_workload_settle(s, w);
        return -ERR_NO_MEMORY;
    }
    i->version = event->version;
    if (event->workload != NULL)
        scheduler_policy_from_workload(&i->policy, event->workload);
    i->start = SCHEDULER_COLD;
    i->granted = true;
    enter_starting(s, i);
    if (event->ready) {
        leave_starting(s, i);
        i->life = LIFE_READY;
        i->ready_ms = event->started_ms;
        begin(s, i);
    } else if (g != NULL) {
        scheduler_group_cover(s, g);
    }
    if (w->removed || duplicate)
        scheduler_instance_drain(s, i, END_DRAINED, time_after(s->now_ms, i->policy.drain_ms));
    else
        scheduler_workload_roll(s, w);
    if (i->life == LIFE_READY && g != NULL)
        scheduler_group_serve(s, g, i);
    scheduler_want(s, w);
    scheduler_workload_timer(s, w);
    return 0;
}
