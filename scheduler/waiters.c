/* Who waits for what: groups, the queue of a workload, and the answers. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/fields.h"
#include "base/memory.h"
#include "scheduler/state.h"

static void answer_refused(struct scheduler *s, scheduler_waiter handle,
                           const struct instance *about, enum problem problem, const char *detail,
                           uint64_t retry_after_ms)
{
    struct scheduler_action *a = scheduler_act(s, SCHEDULER_REFUSE);
    a->waiter = handle;
    a->instance = about == NULL ? 0 : about->handle;
    a->problem = problem;
    a->detail = detail;
    a->retry_after_ms = retry_after_ms;
}

static void answer_granted(struct scheduler *s, scheduler_waiter handle, struct instance *i)
{
    struct scheduler_action *a = scheduler_act(s, SCHEDULER_GRANT);
    a->waiter = handle;
    a->instance = i->handle;
    a->name = i->workload->name;
    a->version = i->version;
    a->key = i->key;
    /* One joiner of an instance is told that it was started (or kept ready) for it; the others
     * joined it. */
    a->start = i->granted ? SCHEDULER_JOIN : i->start;
    i->granted = true;
}

/* --- the queue --- */

static void queue_insert(struct scheduler *s, struct waiter *w)
{
    struct scheduler_workload *load = w->workload;
    struct waiter *after = load->queue == NULL ? NULL : load->queue->queue_prev;
    /* Nearly always the newest. One that comes back stands where it would have stood. */
    while (after != NULL && after->sequence > w->sequence)
        after = after == load->queue ? NULL : after->queue_prev;
    if (after == NULL)
        DL_PREPEND2(load->queue, w, queue_prev, queue_next);
    else
        DL_APPEND_ELEM2(load->queue, after, w, queue_prev, queue_next);
    w->queued = true;
    load->queued++;
    scheduler_timers_set(&s->timers, &w->timer, time_after(s->now_ms, load->queue_timeout_ms));
    scheduler_want(s, load);
}

void scheduler_waiter_unqueue(struct scheduler *s, struct waiter *w)
{
    if (!w->queued)
        return;
    DL_DELETE2(w->workload->queue, w, queue_prev, queue_next);
    w->queued = false;
    w->workload->queued--;
    scheduler_timers_set(&s->timers, &w->timer, TIMER_NEVER);
}

static void waiter_forget(struct scheduler *s, struct waiter *w)
{
    scheduler_waiter_unqueue(s, w);
    if (w->group != NULL) {
        if (w->covered)
            w->group->covered--;
        if (w->group->uncovered == w)
            w->group->uncovered = w->next;
        DL_DELETE2(w->group->waiters, w, prev, next);
    } else if (w->instance != NULL && w->instance->exclusive == w) {
        w->instance->exclusive = NULL;
    } else if (w->instance != NULL) {
        DL_DELETE2(w->instance->forced, w, prev, next);
    }
    if (w->alone != NULL) {
        w->alone->alone--;
        scheduler_group_settle(w->workload, w->alone);
    }
    w->workload->waiters--;
    s->waiter_count--;
    HASH_DEL(s->waiters, w);
    free(w);
}

void scheduler_waiter_refuse(struct scheduler *s, struct waiter *w, const struct instance *about,
                             enum problem problem, const char *detail, uint64_t retry_after_ms)
{
    answer_refused(s, w->handle, about, problem, detail, retry_after_ms);
    waiter_forget(s, w);
}

void scheduler_waiter_grant(struct scheduler *s, struct waiter *w, struct instance *i)
{
    answer_granted(s, w->handle, i);
    waiter_forget(s, w);
}

/* --- groups --- */

struct group *scheduler_group_find(struct scheduler_workload *w, const char *key, struct err *e)
{
    if (key == NULL || key[0] == '\0')
        return &w->shared;
    struct group *g = NULL;
    HASH_FIND_STR(w->groups, key, g);
    if (g != NULL)
        return g;
    g = calloc(1, sizeof *g);
    char *copy = strdup(key);
    if (g != NULL && copy != NULL) {
        g->key = copy;
        g->workload = w;
        HASH_ADD_KEYPTR(hh, w->groups, g->key, strlen(g->key), g);
        if (g->hh.tbl != NULL)
            return g;
    }
    free(copy);
    free(g);
    err_set(e, ERR_NO_MEMORY, "no memory for another key of %s", w->name);
    return NULL;
}

void scheduler_group_settle(struct scheduler_workload *w, struct group *g)
{
    if (g == NULL || g->key == NULL || g->waiters != NULL || g->keyed != NULL || g->alone > 0)
        return;
    HASH_DEL(w->groups, g);
    free(g->key);
    free(g);
}

void scheduler_group_cover(struct scheduler *s, struct group *g)
{
    while (g->covered > g->capacity) {
        struct waiter *last = g->uncovered == NULL ? g->waiters->prev : g->uncovered->prev;
        last->covered = false;
        g->covered--;
        g->uncovered = last;
        queue_insert(s, last);
    }
    while (g->covered < g->capacity && g->uncovered != NULL) {
        struct waiter *next = g->uncovered;
        scheduler_waiter_unqueue(s, next);
        next->covered = true;
        g->covered++;
        g->uncovered = next->next;
    }
}

void scheduler_group_serve(struct scheduler *s, struct group *g, struct instance *i)
{
    const struct scheduler_calls *calls = &s->options.calls;
    while (g->waiters != NULL && i->life == LIFE_READY &&
           calls->enter(calls->user, i->handle, g->key != NULL))
        scheduler_waiter_grant(s, g->waiters, i);
}

/* --- asking --- */

bool scheduler_may_hope(const struct scheduler_workload *w, const struct group *g)
{
    if (g == NULL)
        return false;
    return g->key != NULL ? g->keyed != NULL : w->ready_shared > 0 || g->capacity > 0;
}

/* How many may stand in the queue: scale.queue, and those for whom an instance may still be started
 * and only waits for its turn. */
static uint64_t queue_bound(const struct scheduler_workload *w, const struct group *g)
{
    uint64_t startable = scheduler_has_room(w) ? w->instances_max - w->live - w->others : 0;
    if (g != NULL && g->keyed != NULL)
        startable = 0;
    uint64_t places = g == NULL || g->key != NULL ? 1 : w->policy.places;
    uint64_t more = startable > PLACES_UNLIMITED / places ? PLACES_UNLIMITED : startable * places;
    return w->queue_max > UINT64_MAX - more ? UINT64_MAX : w->queue_max + more;
}

static bool key_is_full(const struct group *g)
{
    return g != NULL && g->keyed != NULL && g->keyed->life == LIFE_READY;
}

static const char *full_detail(struct scheduler_workload *w, const struct group *g, bool timeout)
{
    char within[UNIT_TEXT_SIZE + 16] = "";
    if (timeout) {
        char text[UNIT_TEXT_SIZE];
        duration_format(w->queue_timeout_ms, text);
        (void)text_format(within, sizeof within, " within %s", text);
    }
    if (key_is_full(g))
        (void)text_format(w->full_detail, sizeof w->full_detail,
                          "the instance of this key had no room%s; %" PRIu64 " requests wait",
                          within, w->queued);
    else if (scheduler_has_room(w))
        (void)text_format(w->full_detail, sizeof w->full_detail,
                          "this node starts as many instances as it can; %s got none%s; %" PRIu64
                          " requests wait",
                          w->name, within, w->queued);
    else
        (void)text_format(w->full_detail, sizeof w->full_detail,
                          "%" PRIu64 " of %" PRIu64
                          " instances of %s run and none had room%s; %" PRIu64 " requests wait",
                          w->live + w->others, w->instances_max, w->name, within, w->queued);
    return w->full_detail;
}

const char *scheduler_pause_detail(const struct scheduler *s, struct scheduler_workload *w)
{
    char pause[96] = "", text[UNIT_TEXT_SIZE];
    if (w->backoff_end_ms > s->now_ms) {
        uint64_t seconds = (w->backoff_end_ms - s->now_ms + 999) / 1000;
        duration_format(seconds * 1000, text);
        (void)text_format(pause, sizeof pause,
                          " (%u starts failed in a row; the next is tried in %s)", w->failures,
                          text);
    }
    /* What the code said may be long: that is cut. */
    (void)text_format(w->pause_detail, sizeof w->pause_detail, "%.*s%s",
                      (int)(sizeof w->pause_detail - sizeof pause), w->failure_detail, pause);
    return w->pause_detail;
}

static void refuse_backing_off(struct scheduler *s, scheduler_waiter handle,
                               struct scheduler_workload *w)
{
    answer_refused(s, handle, NULL, w->failure_problem, scheduler_pause_detail(s, w),
                   w->backoff_end_ms - s->now_ms);
}

/* Nothing starts: neither now nor when a failed start's pause is over. */
static bool refuse_held(struct scheduler *s, scheduler_waiter handle)
{
    if (s->hold == PROBLEM_NONE)
        return false;
    answer_refused(s, handle, NULL, s->hold, s->hold_detail, s->hold_retry_ms);
    return true;
}

static bool serve_now(struct scheduler *s, struct group *g, scheduler_waiter handle)
{
    const struct scheduler_calls *calls = &s->options.calls;
    if (g->waiters != NULL)
        return false; /* first come, first served: their turn comes before */
    if (g->key != NULL) {
        struct instance *i = g->keyed;
        if (i == NULL || i->life != LIFE_READY || !calls->enter(calls->user, i->handle, true))
            return false;
        answer_granted(s, handle, i);
        return true;
    }
    struct instance *i;
    DL_FOREACH(g->workload->instances, i)
    {
        if (i->group != g || i->life != LIFE_READY || !calls->enter(calls->user, i->handle, false))
            continue;
        answer_granted(s, handle, i);
        return true;
    }
    return false;
}

static struct waiter *waiter_new(struct scheduler *s, scheduler_waiter handle,
                                 struct scheduler_workload *load, struct err *e)
{
    struct waiter *w = calloc(1, sizeof *w);
    if (w == NULL) {
        err_set(e, ERR_NO_MEMORY, "no memory for another waiting request");
        return NULL;
    }
    w->handle = handle;
    w->workload = load;
    w->timer.owner = TIMER_WAITER;
    w->sequence = ++s->sequence;
    s->waiter_count++;
    HASH_ADD(hh, s->waiters, handle, sizeof w->handle, w);
    if (w->hh.tbl == NULL || scheduler_room(s, e) != 0) {
        if (w->hh.tbl != NULL)
            HASH_DEL(s->waiters, w);
        s->waiter_count--;
        free(w);
        err_set(e, ERR_NO_MEMORY, "no memory for another waiting request");
        return NULL;
    }
    load->waiters++;
    return w;
}

static int ask_forced(struct scheduler *s, const struct scheduler_event *event, struct err *e)
{
    const struct scheduler_calls *calls = &s->options.calls;
    struct instance *i = NULL;
    HASH_FIND(hh, s->instances, &event->instance, sizeof event->instance, i);
    if (i == NULL) {
        answer_refused(s, event->waiter, NULL, PROBLEM_INSTANCE_UNKNOWN, NULL, 0);
        return 0;
    }
    if (i->group == NULL) {
        answer_refused(s, event->waiter, i, PROBLEM_CONFLICT,
                       "it runs one command for one request and cannot be joined", 0);
        return 0;
    }
    switch (i->life) {
    case LIFE_STARTING: {
        struct waiter *w = waiter_new(s, event->waiter, i->workload, e);
        if (w == NULL)
            return -ERR_NO_MEMORY;
        w->instance = i;
        DL_APPEND2(i->forced, w, prev, next);
        return 0;
    }
    case LIFE_READY:
        if (calls->enter(calls->user, i->handle, true))
            answer_granted(s, event->waiter, i);
        else
            answer_refused(s, event->waiter, i, PROBLEM_INSTANCE_FULL, NULL, RETRY_FULL_MS);
        return 0;
    case LIFE_DRAINING:
    case LIFE_STOPPING:
        break;
    }
    answer_refused(s, event->waiter, i, PROBLEM_INSTANCE_GONE,
                   i->life == LIFE_DRAINING
                       ? "it takes no more joiners and ends when the last one has left"
                       : "it is being ended",
                   0);
    return 0;
}

/* An instance of its own; a key's instance is made once and then granted to all who ask for it. */
static int ask_exclusive(struct scheduler *s, const struct scheduler_event *event,
                         struct scheduler_workload *load, struct group *alone, struct err *e)
{
    struct instance *keyed = alone == NULL ? NULL : alone->keyed;
    if (keyed != NULL && keyed->life == LIFE_READY) {
        answer_granted(s, event->waiter, keyed);
        return 0;
    }
    bool starting = keyed != NULL && keyed->life == LIFE_STARTING;
    if (!starting && refuse_held(s, event->waiter))
        return 0;
    if (!starting && s->now_ms < load->backoff_end_ms) {
        refuse_backing_off(s, event->waiter, load);
        return 0;
    }
    if (!starting && load->queued >= queue_bound(load, NULL)) {
        answer_refused(s, event->waiter, NULL, PROBLEM_QUEUE_FULL, full_detail(load, NULL, false),
                       RETRY_FULL_MS);
        return 0;
    }
    struct waiter *w = waiter_new(s, event->waiter, load, e);
    if (w == NULL)
        return -ERR_NO_MEMORY;
    w->exclusive = true;
    w->alone = alone;
    if (alone != NULL)
        alone->alone++;
    if (starting) {
        w->instance = keyed;
        DL_APPEND2(keyed->forced, w, prev, next);
    } else {
        queue_insert(s, w);
    }
    return 0;
}

/* Stands in line, or is refused at once. */
static int ask_wait(struct scheduler *s, const struct scheduler_event *event,
                    struct scheduler_workload *load, struct group *g, struct err *e)
{
    bool covered = g->uncovered == NULL && g->covered < g->capacity;
    if (!covered && !scheduler_may_hope(load, g) && refuse_held(s, event->waiter))
        return 0;
    if (!covered && s->now_ms < load->backoff_end_ms && !scheduler_may_hope(load, g)) {
        refuse_backing_off(s, event->waiter, load);
        return 0;
    }
    if (!covered && load->queued >= queue_bound(load, g)) {
        answer_refused(s, event->waiter, key_is_full(g) ? g->keyed : NULL,
                       key_is_full(g) ? PROBLEM_INSTANCE_FULL : PROBLEM_QUEUE_FULL,
                       full_detail(load, g, false), RETRY_FULL_MS);
        return 0;
    }
    struct waiter *w = waiter_new(s, event->waiter, load, e);
    if (w == NULL)
        return -ERR_NO_MEMORY;
    w->group = g;
    w->covered = covered;
    DL_APPEND2(g->waiters, w, prev, next);
    if (covered) {
        g->covered++;
        return 0;
    }
    if (g->uncovered == NULL)
        g->uncovered = w;
    queue_insert(s, w);
    return 0;
}

int scheduler_waiter_ask(struct scheduler *s, const struct scheduler_event *event, struct err *e)
{
    struct waiter *known = NULL;
    HASH_FIND(hh, s->waiters, &event->waiter, sizeof event->waiter, known);
    if (event->waiter == 0 || known != NULL)
        return err_set(e, ERR_INVALID, "waiter %" PRIu64 " is not new", event->waiter);
    if (s->shutdown) {
        answer_refused(s, event->waiter, NULL, PROBLEM_DRAINING, NULL, RETRY_DRAINING_MS);
        return 0;
    }
    if (s->waiter_count >= s->options.waiters_max) {
        answer_refused(s, event->waiter, NULL, PROBLEM_QUEUE_FULL,
                       "as many requests wait on this node as may", RETRY_FULL_MS);
        return 0;
    }
    if (event->instance != 0)
        return ask_forced(s, event, e);
    struct scheduler_workload *load = NULL;
    HASH_FIND_STR(s->workloads, event->name, load);
    if (load == NULL || load->removed) {
        answer_refused(s, event->waiter, NULL, PROBLEM_WORKLOAD_UNKNOWN, NULL, 0);
        return 0;
    }
    if (load->command)
        return ask_exclusive(s, event, load, NULL, e);
    struct group *g = scheduler_group_find(load, event->key, e);
    if (g == NULL)
        return -ERR_NO_MEMORY;
    int rc = 0;
    if (event->exclusive)
        rc = ask_exclusive(s, event, load, g, e);
    else if (!serve_now(s, g, event->waiter))
        rc = ask_wait(s, event, load, g, e);
    if (load->target < TARGET_NONE)
        scheduler_want(s, load); /* for those who come next */
    scheduler_group_settle(load, g);
    return rc;
}

void scheduler_waiter_cancel(struct scheduler *s, scheduler_waiter handle)
{
    struct waiter *w = NULL;
    HASH_FIND(hh, s->waiters, &handle, sizeof handle, w);
    if (w == NULL)
        return; /* answered already; the two messages crossed */
    struct scheduler_workload *load = w->workload;
    struct group *g = w->group;
    struct instance *made_for_it =
        w->instance != NULL && w->instance->exclusive == w && load->command ? w->instance : NULL;
    waiter_forget(s, w);
    if (made_for_it != NULL)
        scheduler_instance_stop(s, made_for_it, END_CLIENT_GONE);
    if (g != NULL) {
        scheduler_group_cover(s, g);
        scheduler_group_settle(load, g);
    }
}

void scheduler_waiter_expire(struct scheduler *s, struct waiter *w)
{
    struct scheduler_workload *load = w->workload;
    struct group *g = w->group;
    enum problem problem = PROBLEM_QUEUE_TIMEOUT;
    if (key_is_full(g))
        problem = PROBLEM_INSTANCE_FULL;
    else if (scheduler_has_room(load) && s->instance_count >= s->options.instances_max)
        problem = PROBLEM_NODE_FULL;
    const char *detail = full_detail(load, g, true);
    scheduler_waiter_refuse(s, w, key_is_full(g) ? g->keyed : NULL, problem, detail, RETRY_FULL_MS);
    if (g != NULL)
        scheduler_group_settle(load, g);
}

void scheduler_waiters_give_up(struct scheduler *s, struct scheduler_workload *load)
{
    if (s->now_ms >= load->backoff_end_ms && s->hold == PROBLEM_NONE)
        return;
    struct waiter *w, *next;
    DL_FOREACH_SAFE2(load->queue, w, next, queue_next)
    {
        struct group *g = w->group;
        if (scheduler_may_hope(load, g))
            continue;
        if (!refuse_held(s, w->handle))
            refuse_backing_off(s, w->handle, load);
        waiter_forget(s, w);
        scheduler_group_settle(load, g);
    }
}

void scheduler_group_refuse(struct scheduler *s, struct group *g, enum problem problem,
                            const char *detail, uint64_t retry_after_ms)
{
    while (g->waiters != NULL)
        scheduler_waiter_refuse(s, g->waiters, NULL, problem, detail, retry_after_ms);
}

void scheduler_waiters_refuse_all(struct scheduler *s, struct scheduler_workload *load,
                                  enum problem problem, const char *detail, uint64_t retry_after_ms)
{
    scheduler_group_refuse(s, &load->shared, problem, detail, retry_after_ms);
    struct group *g, *next;
    HASH_ITER(hh, load->groups, g, next)
    {
        scheduler_group_refuse(s, g, problem, detail, retry_after_ms);
        scheduler_group_settle(load, g);
    }
    while (load->queue != NULL) /* the exclusive ones are left */
        scheduler_waiter_refuse(s, load->queue, NULL, problem, detail, retry_after_ms);
    struct instance *i;
    DL_FOREACH(load->instances, i)
    {
        while (i->forced != NULL)
            scheduler_waiter_refuse(s, i->forced, i, problem, detail, retry_after_ms);
        if (i->exclusive == NULL)
            continue;
        scheduler_waiter_refuse(s, i->exclusive, i, problem, detail, retry_after_ms);
        if (i->group == NULL)
            scheduler_instance_stop(s, i, END_DRAINED);
    }
}
