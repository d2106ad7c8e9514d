#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sandbox/runner/config.h"
#include "tests/lib/docs.h"

static void runner_yaml_is_documented(void **state)
{
    (void)state;
    docs_check("runner.yaml", runner_config_fields());
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(runner_yaml_is_documented)};
    return cmocka_run_group_tests_name("runner docs", tests, NULL, NULL);
}
