/* tests/lib/scheduler_bench.h - a scheduler and the instances as a node would hold them. */
#ifndef SKERRY_TESTS_LIB_SCHEDULER_BENCH_H
#define SKERRY_TESTS_LIB_SCHEDULER_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "scheduler/scheduler.h"

/* Instances as the node would hold them: a slot each, and what the scheduler said about it. */
enum { INSTANCES = 4096 };
struct slot {
    bool started, open, closed, stopped;
    uint32_t joiners;
    uint32_t joiners_max;
    uint64_t last_left_ms;
    uint64_t window_end_ms;
    enum end_reason reason;
    enum scheduler_start start;
    char key[32];
    uint64_t version;
};

struct bench {
    struct scheduler *s;
    uint64_t now;
    struct slot slots[INSTANCES];
    struct scheduler_actions out;
};

static inline struct slot *slot_of(struct bench *b, scheduler_instance i)
{
    uint64_t index = i >= SCHEDULER_ADOPTED_FIRST ? INSTANCES / 2 + i - SCHEDULER_ADOPTED_FIRST : i;
    assert_true(index < INSTANCES);
    return &b->slots[index];
}

static inline bool enter(void *user, scheduler_instance i, bool any_window)
{
    struct bench *b = user;
    struct slot *slot = slot_of(b, i);
    if (!slot->open || slot->closed || slot->joiners >= slot->joiners_max)
        return false;
    if (!any_window && b->now >= slot->window_end_ms)
        return false;
    slot->joiners++;
    return true;
}

static inline void load(void *user, scheduler_instance i, struct scheduler_load *out)
{
    struct bench *b = user;
    out->joiners = slot_of(b, i)->joiners;
    out->last_left_ms = slot_of(b, i)->last_left_ms;
}

static inline struct workload spec(void)
{
    struct workload w = {0};
    w.join.max_joiners = 2;
    w.join.window_ms = DURATION_NONE;
    w.timeouts.start_ms = 10000;
    w.timeouts.drain_ms = 5000;
    w.life.idle_ms = DURATION_NONE;
    w.life.max_ms = DURATION_NONE;
    w.scale.max = 3;
    w.scale.target_thousandths = 1000;
    w.scale.queue = 4;
    w.scale.queue_timeout_ms = 2000;
    return w;
}

static inline void open_bench_with(struct bench **out, uint32_t instances_max, uint32_t starts_max)
{
    struct bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->now = 100000;
    struct scheduler_options options = {.instances_max = instances_max,
                                        .starts_max = starts_max,
                                        .waiters_max = 1000,
                                        .calls = {b, enter, load}};
    assert_int_equal(scheduler_new(&b->s, &options, NULL), 0);
    *out = b;
}

static inline int open_bench(void **state)
{
    struct bench *b;
    open_bench_with(&b, 100, 10);
    *state = b;
    return 0;
}

static inline int close_bench(void **state)
{
    struct bench *b = *state;
    scheduler_free(b->s);
    free(b);
    return 0;
}

static inline void step(struct bench *b, struct scheduler_event event)
{
    struct err e;
    assert_int_equal(scheduler_step(b->s, &event, b->now, &b->out, &e), 0);
    for (size_t i = 0; i < b->out.count; i++) {
        const struct scheduler_action *a = &b->out.items[i];
        if (a->kind == SCHEDULER_START) {
            struct slot *slot = slot_of(b, a->instance);
            assert_false(slot->started);
            slot->started = true;
            slot->start = a->start;
            slot->version = a->version;
            snprintf(slot->key, sizeof slot->key, "%s", a->key == NULL ? "" : a->key);
        } else if (a->kind == SCHEDULER_CLOSE) {
            assert_false(slot_of(b, a->instance)->closed);
            slot_of(b, a->instance)->closed = true;
        } else if (a->kind == SCHEDULER_STOP) {
            assert_false(slot_of(b, a->instance)->stopped);
            slot_of(b, a->instance)->stopped = true;
            slot_of(b, a->instance)->reason = a->reason;
        }
    }
}

static inline void deploy(struct bench *b, const char *name, uint64_t version,
                          const struct workload *w)
{
    step(b, (struct scheduler_event){
                .kind = SCHEDULER_WORKLOAD, .name = name, .version = version, .workload = w});
}

static inline void ask(struct bench *b, scheduler_waiter waiter)
{
    step(b, (struct scheduler_event){.kind = SCHEDULER_ASK, .name = "web", .waiter = waiter});
}

static inline void ask_key(struct bench *b, scheduler_waiter waiter, const char *key)
{
    step(b, (struct scheduler_event){
                .kind = SCHEDULER_ASK, .name = "web", .waiter = waiter, .key = key});
}

static inline void ask_forced(struct bench *b, scheduler_waiter waiter, scheduler_instance i)
{
    step(b, (struct scheduler_event){
                .kind = SCHEDULER_ASK, .name = "web", .waiter = waiter, .instance = i});
}

static inline void ask_exclusive(struct bench *b, scheduler_waiter waiter)
{
    step(b, (struct scheduler_event){
                .kind = SCHEDULER_ASK, .name = "web", .waiter = waiter, .exclusive = true});
}

static inline void ready(struct bench *b, scheduler_instance i, uint32_t joiners_max)
{
    struct slot *slot = slot_of(b, i);
    slot->open = true;
    slot->joiners_max = joiners_max;
    slot->last_left_ms = b->now;
    slot->window_end_ms = UINT64_MAX;
    step(b, (struct scheduler_event){.kind = SCHEDULER_READY, .instance = i});
}

static inline void instance_event(struct bench *b, enum scheduler_event_kind kind,
                                  scheduler_instance i)
{
    if (kind == SCHEDULER_FAILED || kind == SCHEDULER_ENDED)
        slot_of(b, i)->open = false;
    step(b, (struct scheduler_event){.kind = kind, .instance = i, .detail = "why it ended"});
}

static inline void leave(struct bench *b, scheduler_instance i)
{
    slot_of(b, i)->joiners--;
    slot_of(b, i)->last_left_ms = b->now;
    instance_event(b, SCHEDULER_LEFT, i);
}

static inline void tick(struct bench *b, uint64_t ms)
{
    b->now += ms;
    step(b, (struct scheduler_event){.kind = SCHEDULER_TICK});
}

static inline const struct scheduler_action *find(struct bench *b, enum scheduler_action_kind kind,
                                                  size_t nth)
{
    for (size_t i = 0; i < b->out.count; i++)
        if (b->out.items[i].kind == kind && nth-- == 0)
            return &b->out.items[i];
    return NULL;
}

static inline size_t count(struct bench *b, enum scheduler_action_kind kind)
{
    size_t n = 0;
    for (size_t i = 0; i < b->out.count; i++)
        n += b->out.items[i].kind == kind;
    return n;
}

static inline scheduler_instance started(struct bench *b)
{
    const struct scheduler_action *a = find(b, SCHEDULER_START, 0);
    assert_non_null(a);
    return a->instance;
}

static inline void assert_refused(struct bench *b, scheduler_waiter waiter, enum problem problem)
{
    for (size_t n = 0;; n++) {
        const struct scheduler_action *a = find(b, SCHEDULER_REFUSE, n);
        assert_non_null(a);
        if (a->waiter == waiter) {
            assert_string_equal(problem_word(a->problem)->code, problem_word(problem)->code);
            return;
        }
    }
}

static inline void assert_granted(struct bench *b, scheduler_waiter waiter, scheduler_instance i,
                                  enum scheduler_start start)
{
    for (size_t n = 0;; n++) {
        const struct scheduler_action *a = find(b, SCHEDULER_GRANT, n);
        assert_non_null(a);
        if (a->waiter == waiter) {
            assert_int_equal(a->instance, i);
            assert_int_equal(a->start, start);
            return;
        }
    }
}

#define WITH_BENCH(f) cmocka_unit_test_setup_teardown(f, open_bench, close_bench)

#endif
