#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "tests/lib/gateway_fixture.h"

#define GET(path) "GET " path " HTTP/1.1\r\nHost: localhost\r\n\r\n"

static int start_default(void **state)
{
    struct gateway_fixture *f = malloc(sizeof *f);
    struct gateway_fixture_options options = {0};
    gateway_fixture_start(f, &options);
    *state = f;
    return 0;
}

static int stop(void **state)
{
    struct gateway_fixture *f = *state;
    gateway_fixture_stop(f);
    free(f);
    return 0;
}

static void join_reaches_the_instance(void **state)
{
    struct gateway_fixture *f = *state;
    struct test_answer a;
    gateway_fixture_get(f, &a, GET("/w/web/"));
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "ok");
    assert_string_equal(test_answer_field(&a, "Skerry-Instance"), f->id.text);
    assert_string_equal(test_answer_field(&a, "Skerry-Start"), "join");
    assert_string_equal(test_answer_field(&a, "Skerry-Node"), "node1");
    assert_non_null(test_answer_field(&a, "Skerry-Request-Id"));
    assert_non_null(test_answer_field(&a, "Server-Timing"));
    test_answer_free(&a);
    wait_until(slot_joiners(f->slot) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(join_reaches_the_instance, start_default, stop),
    };
    return cmocka_run_group_tests_name("gateway", tests, NULL, NULL);
}
