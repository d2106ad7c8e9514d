/* cmocka.h needs these before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/runner/loop.h"

struct fixture {
    struct loop *loop;
    struct loop_timer timers[40];
    struct loop_watch watches[2];
    struct loop_child child;
    int pipes[2][2];
    int fired;
    uint64_t last;
    int status;
};

static struct fixture *now_running;

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct err e;
    if (f == NULL || loop_open(&f->loop, 40, &e) < 0)
        return -1;
    for (int i = 0; i < 2; i++) {
        f->watches[i] = LOOP_WATCH_STOPPED;
        if (pipe(f->pipes[i]) < 0)
            return -1;
    }
    now_running = f;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    loop_close(f->loop);
    for (int i = 0; i < 4; i++)
        close(f->pipes[i / 2][i % 2]);
    free(f);
    return 0;
}

static void timer_cb(struct loop_timer *timer)
{
    struct fixture *f = now_running;
    assert_true(timer->at_boot_ms >= f->last);
    assert_true(clock_boot_ms() >= timer->at_boot_ms);
    f->last = timer->at_boot_ms;
    f->fired++;
    if (f->fired == 38)
        loop_stop(f->loop);
}

static void timers_fire_in_order(void **state)
{
    struct fixture *f = *state;
    struct err e;
    uint64_t now = clock_boot_ms();
    for (size_t i = 0; i < 40; i++)
        assert_int_equal(
            loop_timer_start(f->loop, &f->timers[i], now + (i * 7919) % 40, timer_cb, &e), 0);
    struct loop_timer more = {0};
    assert_int_equal(loop_timer_start(f->loop, &more, now, timer_cb, &e), -ERR_LIMIT);
    loop_timer_stop(f->loop, &f->timers[3]);
    loop_timer_stop(f->loop, &f->timers[3]);
    loop_timer_stop(f->loop, &f->timers[0]);
    assert_int_equal(loop_run(f->loop, &e), 0);
    assert_int_equal(f->fired, 38);
}

static void stops_the_other_cb(struct loop_watch *watch, uint32_t events)
{
    struct fixture *f = now_running;
    assert_true(events & EPOLLIN);
    f->fired++;
    loop_watch_stop(f->loop, &f->watches[watch == &f->watches[0] ? 1 : 0]);
    loop_stop(f->loop);
}

static void stopped_watch_is_not_called_in_the_same_round(void **state)
{
    struct fixture *f = *state;
    struct err e;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(write(f->pipes[i][1], "x", 1), 1);
        assert_int_equal(loop_watch_start(f->loop, &f->watches[i], f->pipes[i][0], EPOLLIN,
                                          stops_the_other_cb, &e),
                         0);
    }
    assert_int_equal(loop_run(f->loop, &e), 0);
    assert_int_equal(f->fired, 1);
}

static void ended_cb(struct loop_child *child, int status)
{
    (void)child;
    now_running->status = status;
    loop_stop(now_running->loop);
}

static void end_of_a_child_comes_with_its_status(void **state)
{
    struct fixture *f = *state;
    struct err e;
    pid_t pid = fork();
    if (pid == 0)
        _exit(7);
    assert_int_equal(loop_child_start(f->loop, &f->child, pid, -1, true, ended_cb, &e), 0);
    assert_int_equal(loop_run(f->loop, &e), 0);
    assert_true(WIFEXITED(f->status));
    assert_int_equal(WEXITSTATUS(f->status), 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(timers_fire_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(stopped_watch_is_not_called_in_the_same_round, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(end_of_a_child_comes_with_its_status, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
