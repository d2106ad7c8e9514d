#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "node/control/machine.h"

static void processors_in_use_are_counted_between_two_reads(void **state)
{
    (void)state;
    struct machine m = {.cpus = 4};
    assert_true(machine_take_stat(&m, "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8\n"));
    assert_true(m.cpus_used == 0.0);
    /* 400 ticks passed, 100 of them busy (50 stolen): one of four processors. */
    assert_true(machine_take_stat(&m, "cpu  120 10 110 1050 50 5 5 50 9 9\n"));
    assert_true(m.cpus_used > 0.999 && m.cpus_used < 1.001);
    assert_true(machine_take_stat(&m, "cpu  0 0 0 10 0 0 0 0 0 0\n")); /* it went back */
    assert_true(m.cpus_used == 0.0);
    assert_false(machine_take_stat(&m, "cpu  1 2 3\n"));
    assert_false(machine_take_stat(&m, ""));
}

static void memory_that_can_be_had_is_not_used(void **state)
{
    (void)state;
    struct machine m = {0};
    assert_true(machine_take_meminfo(&m, "MemTotal:       1000 kB\nMemFree:          10 kB\n"
                                         "MemAvailable:    700 kB\nBuffers: 1 kB\n"));
    assert_int_equal(m.memory_bytes, 1000 * 1024);
    assert_int_equal(m.memory_used_bytes, 300 * 1024);
    assert_false(machine_take_meminfo(&m, "MemTotal:       1000 kB\n"));
    assert_int_equal(m.memory_used_bytes, 300 * 1024);
}

static void this_machine_is_read(void **state)
{
    (void)state;
    struct machine m = {0};
    machine_read(&m);
    machine_read(&m);
    assert_true(m.cpus >= 1 && m.all_ticks > m.busy_ticks);
    assert_true(m.memory_used_bytes > 0 && m.memory_used_bytes < m.memory_bytes);
    assert_true(m.cpus_used >= 0.0 && m.cpus_used <= m.cpus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(processors_in_use_are_counted_between_two_reads),
        cmocka_unit_test(memory_that_can_be_had_is_not_used),
        cmocka_unit_test(this_machine_is_read),
    };
    return cmocka_run_group_tests_name("machine", tests, NULL, NULL);
}
