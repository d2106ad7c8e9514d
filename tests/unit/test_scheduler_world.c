#include "tests/lib/scheduler_bench.h"

/* --- a random world: whatever happens in whatever order, some things always hold --- */

enum { WORLD_WAITERS = 3000, WORLD_STEPS = 4000, WORKLOADS = 3 };
enum fate { FATE_NEW, FATE_WAITS, FATE_GRANTED, FATE_REFUSED, FATE_CANCELED };

struct resident {
    int workload;
    uint64_t version;
    bool starting, ready, closed, stopping, ended, empty_told, keyed;
    char key[8];
    uint32_t joiners, joiners_max;
    uint64_t last_left_ms;
};

struct world {
    struct scheduler *s;
    uint64_t now, random, next_ms;
    unsigned long seed;
    struct workload specs[WORKLOADS];
    uint64_t versions[WORKLOADS];
    struct resident residents[INSTANCES];
    size_t resident_count; /* handles 1.. */
    enum fate fates[WORLD_WAITERS];
    bool exclusive[WORLD_WAITERS];
    size_t waiter_count;
    unsigned entered; /* in this step, not yet granted */
    size_t granted, refused;
};

static const char *const world_names[WORKLOADS] = {"aa", "bb", "cc"};

#define world_assert(w, condition)                                                                 \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("seed %lu: %s", (w)->seed, #condition);                                       \
    } while (0)

static uint64_t roll(struct world *w, uint64_t below)
{
    w->random += 0x9e3779b97f4a7c15u; /* splitmix64 */
    uint64_t z = w->random;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % below;
}

static bool world_enter(void *user, scheduler_instance i, bool any_window)
{
    struct world *w = user;
    (void)any_window;
    struct resident *r = &w->residents[i];
    world_assert(w, i <= w->resident_count && !r->ended);
    if (!r->ready || r->closed || r->joiners >= r->joiners_max)
        return false;
    r->joiners++;
    w->entered++;
    return true;
}

static void world_load(void *user, scheduler_instance i, struct scheduler_load *out)
{
    struct world *w = user;
    out->joiners = w->residents[i].joiners;
    out->last_left_ms = w->residents[i].last_left_ms;
}

static void world_check(struct world *w)
{
    unsigned live[WORKLOADS] = {0}, starting = 0;
    for (size_t i = 1; i <= w->resident_count; i++) {
        struct resident *r = &w->residents[i];
        if (r->ended)
            continue;
        starting += r->starting && !r->stopping;
        bool leaving = r->closed || r->stopping;
        /* Of older versions only those that are not replaced: rooms, and commands at work. */
        live[r->workload] +=
            r->version == w->versions[r->workload] || (!leaving && (r->keyed || r->workload == 2));
        world_assert(w, r->joiners <= r->joiners_max || !r->ready);
        for (size_t j = 1; r->keyed && j < i; j++)
            world_assert(w, w->residents[j].ended || w->residents[j].workload != r->workload ||
                                strcmp(w->residents[j].key, r->key) != 0);
    }
    for (int i = 0; i < WORKLOADS; i++)
        world_assert(w, live[i] <= w->specs[i].scale.max);
    world_assert(w, starting <= 3);
}

static void world_step(struct world *w, struct scheduler_event event)
{
    struct scheduler_actions out;
    w->entered = 0;
    int rc = scheduler_step(w->s, &event, w->now, &out, NULL);
    world_assert(w, rc == 0);
    w->next_ms = out.next_ms;
    for (size_t n = 0; n < out.count; n++) {
        const struct scheduler_action *a = &out.items[n];
        struct resident *r = &w->residents[a->instance]; /* the one of 0 is nobody's */
        switch (a->kind) {
        case SCHEDULER_START:
            world_assert(w, a->instance == ++w->resident_count);
            r->starting = true;
            r->version = a->version;
            while (strcmp(world_names[r->workload], a->name) != 0)
                r->workload++;
            uint64_t bound = w->specs[r->workload].join.max_joiners;
            r->joiners_max = bound == 0 ? UINT32_MAX : (uint32_t)bound;
            r->keyed = a->key != NULL;
            snprintf(r->key, sizeof r->key, "%s", a->key == NULL ? "" : a->key);
            break;
        case SCHEDULER_GRANT:
            world_assert(w, w->fates[a->waiter] == FATE_WAITS);
            world_assert(w, r->ready && !r->stopping);
            w->fates[a->waiter] = FATE_GRANTED;
            w->granted++;
            if (!w->exclusive[a->waiter])
                world_assert(w, w->entered-- > 0);
            break;
        case SCHEDULER_REFUSE:
            world_assert(w, w->fates[a->waiter] == FATE_WAITS && a->problem != PROBLEM_NONE);
            w->fates[a->waiter] = FATE_REFUSED;
            w->refused++;
            break;
        case SCHEDULER_CLOSE:
            world_assert(w, r->ready && !r->closed && !r->stopping);
            r->closed = true;
            break;
        case SCHEDULER_STOP:
            world_assert(w, !r->stopping && !r->ended && a->reason != END_NONE);
            r->stopping = true;
            break;
        }
    }
    world_assert(w, w->entered == 0);
    world_check(w);
}

static void world_deploy(struct world *w, int i)
{
    struct workload *s = &w->specs[i];
    *s = spec();
    s->kind = i == 2 ? WORKLOAD_COMMAND : WORKLOAD_SERVER;
    s->join.max_joiners = roll(w, 4);
    s->join.window_ms = roll(w, 2) == 0 ? DURATION_NONE : 500 + roll(w, 5000);
    s->life.idle_ms = 200 + roll(w, 2000);
    s->life.max_ms = 5000 + roll(w, 20000);
    s->timeouts.start_ms = 300 + roll(w, 1000);
    s->timeouts.drain_ms = 500 + roll(w, 2000);
    /* Never fewer than before: what runs is not ended because scale.max went down. */
    s->scale.max = 4;
    s->scale.queue = roll(w, 20);
    s->scale.target_thousandths = roll(w, 2) == 0 ? 1000 : 300 + roll(w, 700);
    s->scale.queue_timeout_ms = 300 + roll(w, 3000);
    s->scale.idle_min = i == 0 ? roll(w, 2) : 0;
    w->versions[i]++;
    world_step(w, (struct scheduler_event){.kind = SCHEDULER_WORKLOAD,
                                           .name = world_names[i],
                                           .version = w->versions[i],
                                           .workload = s});
}

static void world_ask(struct world *w)
{
    static const char *const keys[] = {"k1", "k2", "k3"};
    if (w->waiter_count + 1 >= WORLD_WAITERS)
        return;
    scheduler_waiter waiter = ++w->waiter_count;
    int i = (int)roll(w, WORKLOADS);
    struct scheduler_event event = {
        .kind = SCHEDULER_ASK, .name = world_names[i], .waiter = waiter};
    event.exclusive = i == 2 || roll(w, 20) == 0;
    if (i == 1)
        event.key = keys[roll(w, 3)];
    if (i != 2 && w->resident_count > 0 && roll(w, 8) == 0) {
        event.instance = 1 + roll(w, w->resident_count);
        event.exclusive = false;
    }
    w->exclusive[waiter] = event.exclusive;
    w->fates[waiter] = FATE_WAITS;
    world_step(w, event);
}

/* Something happens to one instance. `heal`: nothing fails any more. */
static void world_happen(struct world *w, size_t i, bool heal)
{
    struct resident *r = &w->residents[i];
    struct scheduler_event event = {.instance = i, .detail = "it failed"};
    uint64_t chance = roll(w, 10);
    if (r->ended)
        return;
    if (r->stopping || (!heal && chance == 0)) {
        event.kind = r->starting ? SCHEDULER_FAILED : SCHEDULER_ENDED;
        event.reason = END_EXITED;
        r->ended = true;
        r->joiners = 0;
    } else if (r->starting) {
        event.kind = SCHEDULER_READY;
        r->starting = false;
        r->ready = true;
        r->last_left_ms = w->now;
    } else if (r->joiners > 0) {
        event.kind = SCHEDULER_LEFT;
        r->joiners--;
        r->last_left_ms = w->now;
        if (r->closed && r->joiners == 0)
            event.kind = SCHEDULER_EMPTY;
    } else if (r->closed) {
        event.kind = SCHEDULER_EMPTY;
    } else if (r->workload == 2) {
        event.kind = SCHEDULER_ENDED; /* the command is done */
        r->ended = true;
    } else if (chance == 1) {
        event.kind = SCHEDULER_DRAIN;
        event.reason = END_UNHEALTHY;
    } else {
        return;
    }
    world_step(w, event);
}

static void world_run(unsigned long seed)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->seed = seed;
    w->random = seed;
    w->now = 1000;
    struct scheduler_options options = {.instances_max = 9,
                                        .starts_max = 3,
                                        .waiters_max = 60,
                                        .calls = {w, world_enter, world_load}};
    assert_int_equal(scheduler_new(&w->s, &options, NULL), 0);
    for (int i = 0; i < WORKLOADS; i++)
        world_deploy(w, i);
    for (int n = 0; n < WORLD_STEPS && w->resident_count < INSTANCES - 20; n++) {
        uint64_t what = roll(w, 100);
        if (what < 40)
            world_ask(w);
        else if (what < 80 && w->resident_count > 0)
            world_happen(w,
                         1 + w->resident_count - 1 -
                             roll(w, w->resident_count < 20 ? w->resident_count : 20),
                         false);
        else if (what < 83 && w->waiter_count > 0) {
            scheduler_waiter waiter = 1 + roll(w, w->waiter_count);
            if (w->fates[waiter] == FATE_WAITS)
                w->fates[waiter] = FATE_CANCELED;
            world_step(w, (struct scheduler_event){.kind = SCHEDULER_CANCEL, .waiter = waiter});
        } else if (what == 83) {
            world_deploy(w, (int)roll(w, WORKLOADS));
        } else if (what == 84 && roll(w, 5) == 0) {
            int i = (int)roll(w, WORKLOADS);
            world_step(w, (struct scheduler_event){.kind = SCHEDULER_WORKLOAD_REMOVED,
                                                   .name = world_names[i]});
            world_deploy(w, i);
        } else {
            w->now += roll(w, 200);
            world_step(w, (struct scheduler_event){.kind = SCHEDULER_TICK});
        }
    }
    /* Nobody asks any more and nothing fails: everything must come to its end. */
    for (int i = 0; i < WORKLOADS; i++) {
        w->specs[i].scale.idle_min = 0;
        world_step(w, (struct scheduler_event){.kind = SCHEDULER_WORKLOAD,
                                               .name = world_names[i],
                                               .version = w->versions[i],
                                               .workload = &w->specs[i]});
    }
    struct scheduler_counts counts;
    for (int n = 0; n < 2000; n++) {
        for (size_t i = 1; i <= w->resident_count; i++)
            world_happen(w, i, true);
        w->now += 100;
        world_step(w, (struct scheduler_event){.kind = SCHEDULER_TICK});
        scheduler_counts(w->s, &counts);
        if (counts.instances == 0 && counts.waiters == 0)
            break;
    }
    world_assert(w, counts.instances == 0 && counts.waiters == 0 && counts.starting == 0);
    for (size_t i = 1; i <= w->waiter_count; i++)
        world_assert(w, w->fates[i] != FATE_WAITS);
    world_assert(w, w->granted > 100 && w->refused > 10);
    scheduler_free(w->s);
    free(w);
}

static void random_worlds_keep_the_rules(void **state)
{
    (void)state;
    const char *text = getenv("SEED");
    if (text != NULL) {
        world_run(strtoul(text, NULL, 10));
        return;
    }
    for (unsigned long seed = 1; seed <= 1000; seed++)
        world_run(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_worlds_keep_the_rules),
    };
    return cmocka_run_group_tests_name("scheduler: random worlds", tests, NULL, NULL);
}
