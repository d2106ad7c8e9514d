/* The scheduler's events in, its actions out. A step never starts inside another: what actions bring
 * about at once is deferred and runs when the loop comes round. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/control/places.h"

struct deferred {
    struct deferred *next;
    struct scheduler_event event;
    struct instance *instance; /* of `event`, or to be poked: held by its `pending` */
    bool poke;
    scheduler_waiter again; /* 0: none */
};

/* --- what the scheduler asks ------------------------------------------------------------------- */

static bool enter_cb(void *user, scheduler_instance handle, bool any_window)
{
    struct instance *i = instance_by_handle(user, handle);
    if (i == NULL || i->phase != PHASE_READY)
        return false;
    if (i->slot.slot == NULL)
        return true; /* ready: none, without a port: nothing to count */
    uint64_t boot_ms = clock_boot_ms();
    enum slot_answer a = any_window ? slot_enter_forced(i->slot, boot_ms)
                                    : slot_enter_next(i->slot, clock_monotonic_ms(), boot_ms);
    return a == SLOT_ENTERED;
}

static void load_cb(void *user, scheduler_instance handle, struct scheduler_load *out)
{
    struct instance *i = instance_by_handle(user, handle);
    *out = (struct scheduler_load){0};
    if (i == NULL)
        return;
    out->joiners = i->execs;
    out->last_left_ms = i->last_exec_ms;
    if (i->slot.slot == NULL)
        return;
    out->joiners += slot_joiners(i->slot);
    uint64_t left_ms = atomic_load(&i->slot.slot->last_left_ms);
    if (left_ms > out->last_left_ms)
        out->last_left_ms = left_ms;
}

/* --- actions ------------------------------------------------------------------------------------- */

static const char *asked_by_of(const struct waiter *w, const struct scheduler_action *a)
{
    if (w == NULL)
        return a->detail != NULL ? a->detail : "who asked has left";
    return w->gateway_ask != NULL ? w->gateway_ask->asked_by : w->node_ask->asked_by;
}

static void start_action(struct node *n, const struct scheduler_action *a)
{
    struct registry_root *root = registry_root(n->registry);
    const struct registry_workload *workload =
        registry_root_workload_version(root, a->name, a->version);
    struct waiter *w = waiter_find(n, a->waiter);
    char by[96];
    const char *request = w != NULL && w->gateway_ask != NULL ? w->gateway_ask->request_id
                          : w != NULL                         ? w->node_ask->request_id
                                                              : NULL;
    text_format(by, sizeof by, "%s at %s%s%s", asked_by_of(w, a), n->config->name,
                request != NULL ? ", request " : "", request != NULL ? request : "");
    struct instance_request r = {
        .handle = a->instance,
        .workload = workload,
        .key = a->key,
        .ahead = a->waiter == 0,
        .asked_by = by,
        .asked_us =
            w != NULL && w->gateway_ask != NULL ? w->gateway_ask->asked_us : clock_monotonic_us(),
        .no_stdin = w != NULL && w->gateway_ask != NULL && w->gateway_ask->no_stdin,
    };
    struct instance *i;
    struct err e = {0};
    if (workload == NULL)
        (void)err_set(&e, ERR_NOT_FOUND, "workload %s has no version %llu any more", a->name,
                      (unsigned long long)a->version);
    if (workload == NULL || instance_start(n, &r, &i, &e) != 0) {
        log_error("instance", "%s did not start: %s", a->name, e.msg);
        steps_defer(n, &(struct scheduler_event){.kind = SCHEDULER_FAILED,
                                                 .instance = a->instance,
                                                 .problem = PROBLEM_START_FAILED,
                                                 .detail = "the node is out of memory"});
    }
    registry_root_release(root);
}

static void start_timeout_detail(const struct instance *i, char *out, size_t size)
{
    char limit[UNIT_TEXT_SIZE];
    duration_format(i->spec->timeouts.start_ms, limit);
    if (i->phase == PHASE_STARTING)
        text_format(out, size, "%s: its sandbox was not made within %s", i->name, limit);
    else if (i->port_count > 0)
        text_format(out, size,
                    "%s runs but nothing answered on port %u within %s. It listens on %u: set "
                    "port: %u.",
                    i->name, (unsigned)i->spec->port, limit, i->ports[0], i->ports[0]);
    else if (i->spec->ready == READY_HEALTHCHECK)
        text_format(out, size, "%s runs but its health check did not pass within %s.", i->name,
                    limit);
    else
        text_format(out, size,
                    "%s runs but nothing answered on port %u within %s. It listens on no port: "
                    "skerry logs %.10s shows what it says.",
                    i->name, (unsigned)i->spec->port, limit, i->id.text);
}

static void refuse_action(struct node *n, const struct scheduler_action *a)
{
    struct waiter *w = waiter_find(n, a->waiter);
    if (w == NULL)
        return;
    struct instance *i = a->instance != 0 ? instance_by_handle(n, a->instance) : NULL;
    char text[512];
    const char *detail = a->detail;
    if (a->problem == PROBLEM_START_TIMEOUT && i != NULL) {
        start_timeout_detail(i, text, sizeof text);
        detail = text;
    }
    joins_refuse(n, w, a->problem, detail, a->retry_after_ms, i);
}

/* How long the code has between SIGTERM and SIGKILL. Somebody asked for most ends; a start that is
 * over its time and a client that left have nothing to finish. */
static unsigned grace_of(const struct instance *i, enum end_reason reason)
{
    if (reason == END_START_TIMEOUT || reason == END_CLIENT_GONE || reason == END_TIMED_OUT)
        return 0;
    uint64_t drain_ms = i->spec->timeouts.drain_ms;
    return drain_ms < CONTROL_STOP_GRACE_MS ? (unsigned)drain_ms : CONTROL_STOP_GRACE_MS;
}

static void act(struct node *n, const struct scheduler_action *a)
{
    struct instance *i = a->instance != 0 ? instance_by_handle(n, a->instance) : NULL;
    struct waiter *w = a->waiter != 0 ? waiter_find(n, a->waiter) : NULL;
    switch (a->kind) {
    case SCHEDULER_START:
        start_action(n, a);
        break;
    case SCHEDULER_GRANT:
        if (w != NULL && i != NULL)
            joins_grant(n, w, i, a->start);
        break;
    case SCHEDULER_REFUSE:
        refuse_action(n, a);
        break;
    case SCHEDULER_CLOSE:
        if (i != NULL)
            instance_close(i);
        break;
    case SCHEDULER_STOP:
        if (i != NULL) {
            if (a->reason == END_START_TIMEOUT && i->detail[0] == '\0')
                start_timeout_detail(i, i->detail, sizeof i->detail);
            instance_stop(i, a->reason, grace_of(i, a->reason));
        }
        break;
    }
}

/* While somebody waits for room in an instance, leaves of its slot are told, and nobody else takes a place
 * there. One who left between the scheduler's look and this mark told nobody: so the scheduler looks
 * once more. */
static void mark_waited(struct node *n)
{
    struct instance *i, *next;
    HASH_ITER(by_handle, n->instances_by_handle, i, next)
    {
        if (i->slot.slot == NULL || i->phase != PHASE_READY)
            continue;
        bool waited = scheduler_place_waited_for(n->scheduler, i->handle);
        if (!atomic_exchange(&i->slot.slot->waited_for, waited) && waited)
            steps_defer(n,
                        &(struct scheduler_event){.kind = SCHEDULER_LEFT, .instance = i->handle});
    }
}

static void timer_cb(uv_timer_t *timer)
{
    steps_run(container_of(timer, struct node, step_timer),
              &(struct scheduler_event){.kind = SCHEDULER_TICK});
}

static void step(struct node *n, const struct scheduler_event *event)
{
    struct scheduler_actions actions;
    struct err e = {0};
    uint64_t now_ms = clock_monotonic_ms();
    struct scheduler_counts before, after;
    scheduler_counts(n->scheduler, &before);
    if (scheduler_step(n->scheduler, event, now_ms, &actions, &e) != 0) {
        log_error("scheduler", "event %d: %s", (int)event->kind, e.msg);
        return;
    }
    for (size_t k = 0; k < actions.count; k++)
        act(n, &actions.items[k]);
    scheduler_counts(n->scheduler, &after);
    pthread_mutex_lock(&n->facts_mutex);
    n->metrics.instances = after.instances;
    n->metrics.starting = after.starting;
    n->metrics.waiters = after.waiters;
    pthread_mutex_unlock(&n->facts_mutex);
    if (before.waiters != 0 || after.waiters != 0)
        mark_waited(n);
    if (actions.next_ms == UINT64_MAX)
        uv_timer_stop(&n->step_timer);
    else
        uv_timer_start(&n->step_timer, timer_cb,
                       actions.next_ms > now_ms ? actions.next_ms - now_ms : 0, 0);
}

static void idle_cb(uv_idle_t *idle)
{
    struct node *n = container_of(idle, struct node, step_idle);
    /* Only what is there now: a step may defer more, which the next turn of the loop runs. */
    struct deferred *d = n->deferred_head;
    n->deferred_head = n->deferred_tail = NULL;
    while (d != NULL) {
        struct deferred *next = d->next;
        struct waiter *again = d->again != 0 ? waiter_find(n, d->again) : NULL;
        if (again != NULL)
            joins_waiter_again(n, again);
        else if (!d->poke && d->again == 0)
            steps_run(n, &d->event);
        if (d->instance != NULL)
            instance_unpend(d->instance);
        free(d);
        d = next;
    }
    if (n->deferred_head == NULL)
        uv_idle_stop(idle);
}

static void defer(struct node *n, const struct deferred *what)
{
    struct deferred *d = malloc(sizeof *d);
    assert_always(d != NULL); /* losing an end would leak an instance for ever */
    *d = *what;
    if (d->instance != NULL)
        d->instance->pending++;
    if (n->deferred_tail != NULL)
        n->deferred_tail->next = d;
    else
        n->deferred_head = d;
    n->deferred_tail = d;
    uv_idle_start(&n->step_idle, idle_cb);
}

void steps_defer(struct node *n, const struct scheduler_event *event)
{
    defer(n, &(struct deferred){
                 .event = *event,
                 .instance = event->instance != 0 ? instance_by_handle(n, event->instance) : NULL});
}

void steps_poke(struct instance *i)
{
    defer(i->node, &(struct deferred){.instance = i, .poke = true});
}

void steps_defer_again(struct node *n, const struct waiter *w)
{
    defer(n, &(struct deferred){.again = w->handle});
}

void steps_run(struct node *n, const struct scheduler_event *event)
{
    if (n->step_depth > 0) {
        steps_defer(n, event);
        return;
    }
    n->step_depth++;
    step(n, event);
    n->step_depth--;
}

int steps_open(struct node *n, struct err *e)
{
    struct scheduler_options o = {
        .instances_max = (uint32_t)n->config->limits.instances_max,
        .starts_max = (uint32_t)n->config->sandbox.starts_max,
        .waiters_max = (uint32_t)n->config->limits.waiters_max,
        .calls = {.user = n, .enter = enter_cb, .load = load_cb},
    };
    uv_idle_init(&n->loop, &n->step_idle);
    uv_timer_init(&n->loop, &n->step_timer);
    return scheduler_new(&n->scheduler, &o, e);
}

void steps_close(struct node *n)
{
    while (n->deferred_head != NULL) {
        struct deferred *d = n->deferred_head;
        n->deferred_head = d->next;
        free(d);
    }
    n->deferred_tail = NULL;
    uv_close((uv_handle_t *)&n->step_idle, NULL);
    uv_close((uv_handle_t *)&n->step_timer, NULL);
}

/* --- workloads ------------------------------------------------------------------------------------ */

struct known {
    struct map_value value;
    uint64_t version;
    bool seen;
};

static void known_release(struct map_value *value)
{
    free(container_of(value, struct known, value));
}

static bool sync_one(void *user, const struct registry_workload *w)
{
    struct node *n = user;
    struct known *k = (struct known *)map_get(&n->known_workloads, w->name, strlen(w->name));
    if (k != NULL) {
        k->seen = true;
        if (k->version == w->version)
            return true;
        k->version = w->version;
    } else {
        k = calloc(1, sizeof *k);
        struct err e = {0};
        if (k == NULL)
            return false;
        map_value_init(&k->value, known_release);
        k->version = w->version;
        k->seen = true;
        if (map_put(&n->known_workloads, &n->known_workloads, w->name, strlen(w->name), &k->value,
                    &e) != 0)
            log_error("scheduler", "workload %s: %s", w->name, e.msg);
        map_value_drop(&k->value);
    }
    n->layers_wanted = true;
    steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_WORKLOAD,
                                           .name = w->name,
                                           .workload = &w->spec,
                                           .version = w->version,
                                           .idle_elsewhere = places_idle_elsewhere(n, w),
                                           .barred = places_barred(n, w)});
    return true;
}

struct gone {
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    bool found;
};

static bool find_gone(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct known *k = container_of(value, struct known, value);
    struct gone *g = user;
    if (k->seen) {
        k->seen = false;
        return true;
    }
    memcpy(g->name, key, key_length);
    g->name[key_length] = '\0';
    g->found = true;
    return false;
}

void steps_sync_workloads(struct node *n)
{
    struct registry_root *root = registry_root(n->registry);
    registry_root_workloads(root, NULL, sync_one, n);
    for (;;) {
        struct gone g = {.found = false};
        map_walk(&n->known_workloads, NULL, 0, find_gone, &g);
        if (!g.found)
            break;
        steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_WORKLOAD_REMOVED, .name = g.name});
        struct err e = {0};
        if (map_remove(&n->known_workloads, &n->known_workloads, g.name, strlen(g.name), &e) != 0)
            break;
        /* `seen` of those before it was taken back already; mark the living again. */
        registry_root_workloads(root, NULL, sync_one, n);
    }
    registry_root_release(root);
    tcp_ports_sync(n);
}
