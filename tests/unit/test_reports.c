/* What a node says of itself, and how clocks are compared. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "node/control/reports.h"

static void clocks_are_compared_by_the_middle_of_the_trip(void **state)
{
    (void)state;
    assert_int_equal(report_ahead_ms(1000, 1000, 1000), 0);
    assert_int_equal(report_ahead_ms(1000, 1100, 1050), 0);
    /* What half the trip may hide is given to the other's favour. */
    assert_int_equal(report_ahead_ms(1000, 1100, 1100), 0);
    assert_int_equal(report_ahead_ms(1000, 1100, 6050), 5000 - 51);
    assert_int_equal(report_ahead_ms(10000, 10100, 5050), -(5000 - 51));
    assert_int_equal(report_ahead_ms(1000, 900, 1000), 0);
}

static bool taken(const char *text, struct report *r)
{
    uint64_t wall_ms = 0;
    bool good = report_read(r, &wall_ms, text, strlen(text));
    assert_true(!good || wall_ms == 5);
    assert_true(good == (r->warnings != NULL));
    return good;
}

static void a_report_is_read_without_what_terminals_obey(void **state)
{
    (void)state;
    struct report r;
    assert_true(
        taken("{\"wall_ms\":5,\"well\":true,\"warnings\":[\"node1  a\\u001b[2J\"],\"x\":1}", &r));
    assert_true(r.well);
    assert_int_equal(json_array_size(r.warnings), 1);
    assert_string_equal(json_string_value(json_array_get(r.warnings, 0)), "node1  a?[2J");
    json_decref(r.warnings);
}

static void what_is_no_report_is_refused(void **state)
{
    (void)state;
    struct report r;
    assert_false(taken("", &r));
    assert_false(taken("[]", &r));
    assert_false(taken("{\"wall_ms\":0,\"well\":true,\"warnings\":[]}", &r));
    assert_false(taken("{\"wall_ms\":5,\"well\":true}", &r));
    assert_false(taken("{\"wall_ms\":5,\"well\":true,\"warnings\":[7]}", &r));
    assert_false(taken("{\"wall_ms\":5,\"well\":1,\"warnings\":[]}", &r));
    assert_false(
        taken("{\"wall_ms\":5,\"well\":true,\"warnings\":[\"\",\"\",\"\",\"\",\"\",\"\",\"\","
              "\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\"]}",
              &r));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clocks_are_compared_by_the_middle_of_the_trip),
        cmocka_unit_test(a_report_is_read_without_what_terminals_obey),
        cmocka_unit_test(what_is_no_report_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
