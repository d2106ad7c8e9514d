/* The registry as a whole: one voter, a real log on disk, restarts and crashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "raft/registry.h"
#include "tests/lib/registry_help.h"

/* One registry on a loop of its own, and what it told. */
struct node {
    uv_loop_t loop;
    uv_timer_t alarm; /* bounds every wait */
    struct registry *registry;
    bool leader, late, failed, closed;
    unsigned changes;
    struct err failure;
};

enum { DEADLINE_MS = 20000 };

static void changed(void *user)
{
    ((struct node *)user)->changes++;
}

static void leader_changed(void *user, bool leader)
{
    ((struct node *)user)->leader = leader;
}

static void failed(void *user, const struct err *error)
{
    struct node *n = user;
    n->failed = true;
    n->failure = *error;
}

static void closed(void *user)
{
    ((struct node *)user)->closed = true;
}

static void late(uv_timer_t *timer)
{
    ((struct node *)timer->data)->late = true;
}

/* Runs the loop until *flag. */
static void run_until(struct node *n, const bool *flag)
{
    uv_timer_start(&n->alarm, late, DEADLINE_MS, 0);
    n->late = false;
    while (!*flag && !n->late)
        uv_run(&n->loop, UV_RUN_ONCE);
    uv_timer_stop(&n->alarm);
    assert_true(*flag);
}

static struct registry_options options_of(struct node *n, const char *directory)
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

static void node_loop(struct node *n)
{
    memset(n, 0, sizeof *n);
    assert_int_equal(uv_loop_init(&n->loop), 0);
    assert_int_equal(uv_timer_init(&n->loop, &n->alarm), 0);
    n->alarm.data = n;
}

static void node_loop_end(struct node *n)
{
    uv_close((uv_handle_t *)&n->alarm, NULL);
    uv_run(&n->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&n->loop), 0);
}

static void node_start_with(struct node *n, const struct registry_options *options)
{
    struct err e = {0};
    int rc = registry_open(&n->registry, &n->loop, options, &e);
    if (rc < 0)
        fail_msg("%s", e.msg);
    run_until(n, &n->leader);
}

static void node_start(struct node *n, const char *directory)
{
    node_loop(n);
    struct registry_options options = options_of(n, directory);
    node_start_with(n, &options);
}

static void node_stop(struct node *n)
{
    registry_close(n->registry, closed, n);
    run_until(n, &n->closed);
    node_loop_end(n);
}

struct answer {
    bool done;
    bool error;
    struct err err;
    struct registry_result result;
};

static void answered(void *user, const struct err *error, const struct registry_result *result)
{
    struct answer *a = user;
    a->done = true;
    a->error = error != NULL;
    if (error != NULL)
        a->err = *error;
    else
        a->result = *result;
}

static struct registry_result propose(struct node *n, const struct registry_command *command)
{
    struct answer a = {0};
    struct err e = {0};
    assert_int_equal(registry_propose(n->registry, command, answered, &a, &e), 0);
    run_until(n, &a.done);
    if (a.error)
        fail_msg("%s", a.err.msg);
    return a.result;
}

static struct registry_result deploy(struct node *n, const char *name, const char *more)
{
    char *json = help_workload_json(name, more);
    struct registry_command c = {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = json};
    struct registry_result r = propose(n, &c);
    free(json);
    return r;
}

static struct registry_result reserve(struct node *n, const char *workload, uint64_t i)
{
    struct registry_instance instance = {.id = help_instance_id(1, i), .owner = 1, .version = 1};
    text_copy(instance.workload, sizeof instance.workload, workload);
    struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &instance};
    return propose(n, &c);
}

static void what_was_acknowledged_is_there_after_a_restart(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    node_start(&n, directory);
    struct registry_result r = deploy(&n, "hello", "");
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_int_equal(r.version, 1);
    assert_true(r.changed);
    r = reserve(&n, "hello", 7);
    assert_int_equal(r.problem, PROBLEM_NONE);
    uint64_t epoch = r.epoch;
    assert_true(n.changes > 0);
    node_stop(&n);

    node_start(&n, directory);
    struct registry_root *root = registry_root(n.registry);
    const struct registry_workload *w = registry_root_workload(root, "hello", 5);
    assert_non_null(w);
    assert_int_equal(w->live, 1);
    assert_string_equal(w->spec.id, "hello");
    struct instance_id id = help_instance_id(1, 7);
    const struct registry_instance *i = registry_root_instance(root, id.text, strlen(id.text));
    assert_non_null(i);
    assert_int_equal(i->epoch, epoch);
    registry_root_release(root);
    struct registry_status status;
    registry_status(n.registry, &status);
    assert_true(status.leader);
    assert_int_equal(status.leader_id, 1);
    assert_int_equal(status.voters, 1);
    node_stop(&n);
    help_directory_remove(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_acknowledged_is_there_after_a_restart),
    };
    return cmocka_run_group_tests_name("registry", tests, NULL, NULL);
}
