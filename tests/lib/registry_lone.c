#include "tests/lib/registry_lone.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "tests/lib/registry_help.h"

static void changed(void *user)
{
    ((struct lone *)user)->changes++;
}

static void leader_changed(void *user, bool leader)
{
    ((struct lone *)user)->leader = leader;
}

static void failed(void *user, const struct err *error)
{
    struct lone *n = user;
    n->failed = true;
    n->failure = *error;
}

void lone_closed(void *user)
{
    ((struct lone *)user)->closed = true;
}

static void late(uv_timer_t *timer)
{
    ((struct lone *)timer->data)->late = true;
}

/* Runs the loop until *flag. */
void lone_run_until(struct lone *n, const bool *flag)
{
    uv_timer_start(&n->alarm, late, LONE_DEADLINE_MS, 0);
    n->late = false;
    while (!*flag && !n->late)
        uv_run(&n->loop, UV_RUN_ONCE);
    uv_timer_stop(&n->alarm);
    assert_true(*flag);
}

struct registry_options lone_options(struct lone *n, const char *directory)
{
    return (struct registry_options){.directory = directory,
                                     .id = 1,
                                     .bootstrap = true,
                                     .boot = clock_monotonic_us(),
                                     .user = n,
                                     .changed = changed,
                                     .leader_changed = leader_changed,
                                     .failed = failed};
}

void lone_loop(struct lone *n)
{
    memset(n, 0, sizeof *n);
    assert_int_equal(uv_loop_init(&n->loop), 0);
    assert_int_equal(uv_timer_init(&n->loop, &n->alarm), 0);
    n->alarm.data = n;
}

void lone_loop_end(struct lone *n)
{
    uv_close((uv_handle_t *)&n->alarm, NULL);
    uv_run(&n->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&n->loop), 0);
}

void lone_start_with(struct lone *n, const struct registry_options *options)
{
    struct err e = {0};
    int rc = registry_open(&n->registry, &n->loop, options, &e);
    if (rc < 0)
        fail_msg("%s", e.msg);
    lone_run_until(n, &n->leader);
}

void lone_start(struct lone *n, const char *directory)
{
    lone_loop(n);
    struct registry_options options = lone_options(n, directory);
    lone_start_with(n, &options);
}

void lone_stop(struct lone *n)
{
    registry_close(n->registry, lone_closed, n);
    lone_run_until(n, &n->closed);
    lone_loop_end(n);
}

void lone_answered(void *user, const struct err *error, const struct registry_result *result)
{
    struct lone_answer *a = user;
    a->done = true;
    a->error = error != NULL;
    if (error != NULL)
        a->err = *error;
    else
        a->result = *result;
}

struct registry_result lone_propose(struct lone *n, const struct registry_command *command)
{
    struct lone_answer a = {0};
    struct err e = {0};
    assert_int_equal(registry_propose(n->registry, command, lone_answered, &a, &e), 0);
    lone_run_until(n, &a.done);
    if (a.error)
        fail_msg("%s", a.err.msg);
    return a.result;
}

void lone_lease(struct lone *n)
{
    const struct registry_node node = {.id = 1, .name = "node1"};
    struct registry_command c = {.kind = REGISTRY_NODE_PUT, .node = &node};
    assert_int_equal(lone_propose(n, &c).problem, PROBLEM_NONE);
    c.kind = REGISTRY_LEASE_GRANT;
    assert_int_equal(lone_propose(n, &c).problem, PROBLEM_NONE);
}

struct registry_result lone_deploy(struct lone *n, const char *name, const char *more)
{
    char *json = help_workload_json(name, more);
    struct registry_command c = {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = json};
    struct registry_result r = lone_propose(n, &c);
    free(json);
    return r;
}

struct registry_result lone_reserve(struct lone *n, const char *workload, uint64_t i)
{
    struct registry_instance instance = {.id = help_instance_id(1, i), .owner = 1, .version = 1};
    text_copy(instance.workload, sizeof instance.workload, workload);
    struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &instance};
    return lone_propose(n, &c);
}

bool lone_has(struct lone *n, uint64_t i)
{
    struct registry_root *root = registry_root(n->registry);
    struct instance_id id = help_instance_id(1, i);
    bool there = registry_root_instance(root, id.text, strlen(id.text)) != NULL;
    registry_root_release(root);
    return there;
}

struct flood_ask {
    struct lone_flood *flood;
    uint64_t i;
};

static void flood_answered(void *user, const struct err *error, const struct registry_result *r)
{
    struct flood_ask *ask = user;
    struct lone_flood *f = ask->flood;
    f->in_flight--;
    if (error != NULL)
        f->failed++;
    else if (r->problem != PROBLEM_NONE)
        f->refused++;
    else
        f->answered++;
    if (error == NULL && f->each != NULL)
        f->each(f, r, ask->i);
    free(ask);
    lone_flood_fill(f);
    f->done = f->in_flight == 0 && f->next > f->last;
}

void lone_flood_fill(struct lone_flood *f)
{
    while (f->in_flight < f->in_flight_max && f->next <= f->last) {
        struct flood_ask *ask = malloc(sizeof *ask);
        *ask = (struct flood_ask){.flood = f, .i = f->next++};
        struct registry_instance instance = {
            .id = help_instance_id(1, ask->i), .owner = 1, .version = 1, .workload = "hello"};
        struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &instance};
        struct err e;
        if (registry_propose(f->n->registry, &c, flood_answered, ask, &e) < 0)
            fail_msg("%s", e.msg);
        f->in_flight++;
    }
}

void lone_flood(struct lone *n, unsigned in_flight, uint64_t first, uint64_t last)
{
    struct lone_flood f = {.n = n, .in_flight_max = in_flight, .next = first, .last = last};
    lone_flood_fill(&f);
    lone_run_until(n, &f.done);
    assert_int_equal(f.answered, last - first + 1);
}
