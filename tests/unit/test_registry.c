/* The registry as a whole: one voter and a real log on disk. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"
#include "raft/registry.h"
#include "tests/lib/registry_help.h"
#include "tests/lib/registry_lone.h"

static void what_was_acknowledged_is_there_after_a_restart(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct lone n;
    lone_start(&n, directory);
    lone_lease(&n);
    struct registry_result r = lone_deploy(&n, "hello", "");
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_int_equal(r.version, 1);
    assert_true(r.changed);
    r = lone_reserve(&n, "hello", 7);
    assert_int_equal(r.problem, PROBLEM_NONE);
    uint64_t epoch = r.epoch;
    assert_true(n.changes > 0);
    lone_stop(&n);

    lone_start(&n, directory);
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
    lone_stop(&n);
    help_directory_remove(directory);
}

static void a_snapshot_replaces_the_log(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct lone n;
    lone_loop(&n);
    struct registry_options options = lone_options(&n, directory);
    options.snapshot_threshold = 100;
    options.snapshot_trailing = 10;
    lone_start_with(&n, &options);
    lone_lease(&n);
    lone_deploy(&n, "hello", "scale: {max: 100000}\n");
    lone_flood(&n, 8, 1, 1000);
    struct registry_status status;
    registry_status(n.registry, &status);
    assert_true(status.snapshot_index > 500);
    assert_true(status.batches_total < status.proposals_total);
    lone_stop(&n);

    lone_start(&n, directory);
    for (uint64_t i = 1; i <= 1000; i++)
        assert_true(lone_has(&n, i));
    /* The epochs go on where they were. */
    struct registry_result r = lone_reserve(&n, "hello", 5000);
    assert_int_equal(r.epoch & 0xffffffffff, 1002); /* the first was that of the lease */
    lone_stop(&n);
    help_directory_remove(directory);
}

static void what_waits_at_the_end_is_told(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct lone n;
    struct lone_answer a[5] = {0};
    struct err e;
    lone_start(&n, directory);
    const struct registry_command c = {.kind = REGISTRY_SWEEP};
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(registry_propose(n.registry, &c, lone_answered, &a[i], &e), 0);
    registry_close(n.registry, lone_closed, &n);
    assert_int_equal(registry_propose(n.registry, &c, lone_answered, &a[0], &e), -ERR_CANCELED);
    lone_run_until(&n, &n.closed);
    for (unsigned i = 0; i < 5; i++) {
        assert_true(a[i].done);
        assert_int_equal(a[i].err.code, ERR_CANCELED);
    }
    lone_loop_end(&n);
    help_directory_remove(directory);
}

static void close_from_an_answer(void *user, const struct err *error,
                                 const struct registry_result *result)
{
    struct lone *n = user;
    (void)error;
    (void)result;
    registry_close(n->registry, lone_closed, n);
}

static void an_answer_may_close_the_registry(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct lone n;
    struct err e;
    struct lone_answer a = {0};
    lone_start(&n, directory);
    const struct registry_command c = {.kind = REGISTRY_SWEEP};
    assert_int_equal(registry_propose(n.registry, &c, close_from_an_answer, &n, &e), 0);
    assert_int_equal(registry_propose(n.registry, &c, lone_answered, &a, &e), 0);
    lone_run_until(&n, &n.closed);
    assert_true(a.done);
    lone_loop_end(&n);
    help_directory_remove(directory);
}

static void a_command_out_of_bounds_is_refused_at_once(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct lone n;
    struct err e = {0};
    struct lone_answer a = {0};
    lone_start(&n, directory);
    const struct registry_command c = {.kind = REGISTRY_WORKLOAD_REMOVE, .name = "NO"};
    assert_int_equal(registry_propose(n.registry, &c, lone_answered, &a, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "name of a workload"));
    lone_stop(&n);
    assert_false(a.done);
    help_directory_remove(directory);
}

/* --- a folder that is not as it should be ----------------------------------------------------------- */

static void refused(const char *directory, enum err_code code, const char *why)
{
    struct lone n;
    struct err e = {0};
    lone_loop(&n);
    struct registry_options options = lone_options(&n, directory);
    int rc = registry_open(&n.registry, &n.loop, &options, &e);
    if (rc != -(int)code || strstr(e.msg, why) == NULL)
        fail_msg("%d: %s", rc, e.msg);
    lone_loop_end(&n);
}

static void a_folder_belongs_to_one_process(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct lone n;
    lone_start(&n, directory);
    refused(directory, ERR_CONFLICT, "in use");
    lone_stop(&n);
    lone_start(&n, directory);
    lone_stop(&n);
    help_directory_remove(directory);
}

static void a_folder_that_cannot_be_made_is_an_error(void **state)
{
    (void)state;
    refused("/proc/skerry-registry", ERR_IO, "/proc/skerry-registry");
}

/* --- a disk that is full ---------------------------------------------------------------------------- */

static void a_disk_that_fails_is_told(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct lone n;
    lone_start(&n, directory);
    lone_lease(&n);
    lone_deploy(&n, "hello", "scale: {max: 100000}\n");
    /* No file may grow: the next segment cannot be made. */
    struct rlimit before, none;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    none = before;
    none.rlim_cur = 1;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
    struct lone_flood f = {.n = &n, .in_flight_max = 256, .next = 1, .last = UINT64_MAX - 1};
    lone_flood_fill(&f);
    lone_run_until(&n, &n.failed);
    f.last = 0;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_non_null(strstr(n.failure.msg, "raft:"));
    const struct registry_command c = {.kind = REGISTRY_SWEEP};
    struct lone_answer a = {0};
    struct err e;
    assert_int_equal(registry_propose(n.registry, &c, lone_answered, &a, &e), -ERR_UNAVAILABLE);
    uint64_t known = f.answered;
    lone_stop(&n);
    assert_true(f.failed > 0);
    /* All that was answered before is there. */
    lone_start(&n, directory);
    for (uint64_t i = 1; i <= known; i++)
        assert_true(lone_has(&n, i));
    lone_stop(&n);
    help_directory_remove(directory);
}

/* --- pauses ----------------------------------------------------------------------------------------- */

struct pauses {
    uv_timer_t timer;
    uint64_t last_us, longest_us;
};

/* CPU time of this thread, so that what other processes take does not count. */
static uint64_t cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void pause_tick(uv_timer_t *timer)
{
    struct pauses *p = timer->data;
    uint64_t now = cpu_us();
    if (p->last_us != 0 && now - p->last_us > p->longest_us)
        p->longest_us = now - p->last_us;
    p->last_us = now;
}

/* Says for how long the loop did nothing else, and asserts nothing about time. */
static void the_loop_goes_on_while_a_snapshot_is_taken(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct lone n;
    struct pauses p = {0};
    lone_loop(&n);
    struct registry_options options = lone_options(&n, directory);
    lone_start_with(&n, &options);
    uv_timer_init(&n.loop, &p.timer);
    p.timer.data = &p;
    lone_lease(&n);
    lone_deploy(&n, "hello", "scale: {max: 100000}\n");
    lone_flood(&n, 256, 1, 60000);
    uv_timer_start(&p.timer, pause_tick, 1, 1);
    lone_flood(&n, 256, 60001, 100000);
    uv_close((uv_handle_t *)&p.timer, NULL);
    printf("longest pause of the loop with 100000 instances, 256 writes in flight, and snapshots: "
           "%.1f ms\n",
           (double)p.longest_us / 1e3);
    lone_stop(&n);
    uint64_t begin = clock_monotonic_us();
    lone_start(&n, directory);
    printf("restart with 100000 instances: %.0f ms\n",
           (double)(clock_monotonic_us() - begin) / 1e3);
    lone_stop(&n);
    help_directory_remove(directory);
}

/* --- how fast --------------------------------------------------------------------------------------- */

static void how_fast_it_writes(void **state)
{
    (void)state;
    static const unsigned in_flight[] = {1, 32, 256};
    char *directory = help_directory();
    struct lone n;
    lone_start(&n, directory);
    lone_lease(&n);
    lone_deploy(&n, "hello", "scale: {max: 100000}\n");
    uint64_t first = 1;
    for (size_t i = 0; i < ARRAY_SIZE(in_flight); i++) {
        uint64_t count = 500 * in_flight[i] / (i + 1);
        uint64_t begin = clock_monotonic_us();
        lone_flood(&n, in_flight[i], first, first + count - 1);
        uint64_t took = clock_monotonic_us() - begin;
        first += count;
        printf("durable writes, %u in flight: %.0f/s\n", in_flight[i],
               (double)count * 1e6 / (double)took);
    }
    lone_stop(&n);
    help_directory_remove(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_acknowledged_is_there_after_a_restart),
        cmocka_unit_test(a_snapshot_replaces_the_log),
        cmocka_unit_test(what_waits_at_the_end_is_told),
        cmocka_unit_test(an_answer_may_close_the_registry),
        cmocka_unit_test(a_command_out_of_bounds_is_refused_at_once),
        cmocka_unit_test(a_folder_belongs_to_one_process),
        cmocka_unit_test(a_folder_that_cannot_be_made_is_an_error),
        cmocka_unit_test(a_disk_that_fails_is_told),
        cmocka_unit_test(the_loop_goes_on_while_a_snapshot_is_taken),
        cmocka_unit_test(how_fast_it_writes),
    };
    return cmocka_run_group_tests_name("registry", tests, NULL, NULL);
}
