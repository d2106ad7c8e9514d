#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/workload.h"
#include "node/config.h"
#include "tests/lib/docs.h"

static void the_workload_file_is_documented(void **state)
{
    (void)state;
    docs_check("The workload file", workload_fields());
}

static void skerry_yaml_is_documented(void **state)
{
    (void)state;
    docs_check("skerry.yaml", config_fields());
}

/* The examples in the docs are taken as they stand. */
static void the_example_is_right(void **state)
{
    (void)state;
    CLEANUP_FREE char *section = docs_section("The workload file");
    char *begin = strstr(section, "```yaml\n");
    assert_non_null(begin);
    begin += 8;
    char *end = strstr(begin, "```");
    assert_non_null(end);
    struct workload w;
    struct err e = {0};
    if (workload_parse(&w, "example", begin, (size_t)(end - begin), &e) != 0)
        fail_msg("%s", e.msg);
    workload_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_workload_file_is_documented),
        cmocka_unit_test(skerry_yaml_is_documented),
        cmocka_unit_test(the_example_is_right),
    };
    return cmocka_run_group_tests_name("docs", tests, NULL, NULL);
}
