#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* --- security.md: a claim without its test is none ---------------------------------------------- */

static bool file_has(const char *path, const char *text)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    CLEANUP_FREE char *whole = NULL;
    size_t size = 0;
    bool found = getdelim(&whole, &size, '\0', file) > 0 && strstr(whole, text) != NULL;
    fclose(file);
    return found;
}

static bool probe_has_group(const char *group)
{
    glob_t files;
    char text[64];
    bool found = false;
    (void)text_format(text, sizeof text, "\"%s\"", group);
    assert_int_equal(glob("tests/sandbox/probe/*.c", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc && !found; i++)
        found = file_has(files.gl_pathv[i], text);
    globfree(&files);
    return found;
}

/* "probe: GROUP" or "FILE: TEST", FILE below tests/ and TEST a function of it. */
static void reference_check(const char *reference)
{
    char path[128], name[128], text[140];
    if (sscanf(reference, "probe: %100s", name) == 1) {
        if (!probe_has_group(name))
            fail_msg("%s: the probe has no such group", reference);
        return;
    }
    if (sscanf(reference, "%100[^:]: %100s", path, name) != 2)
        return;
    char file[140];
    (void)text_format(file, sizeof file, "tests/%s", path);
    (void)text_format(text, sizeof text, " %s(", name);
    if (!file_has(file, text))
        fail_msg("%s: there is no such test", reference);
}

static void each_claim_of_security_has_its_test(void **state)
{
    (void)state;
    FILE *file = fopen("docs/security.md", "re");
    CLEANUP_FREE char *line = NULL;
    size_t size = 0, references = 0, rows = 0;
    assert_non_null(file);
    while (getline(&line, &size, file) > 0) {
        size_t here = 0;
        for (char *at = strchr(line, '`'); at != NULL; at = strchr(at + 1, '`')) {
            char *end = strchr(at + 1, '`');
            assert_non_null(end); /* a span ends on its line */
            *end = '\0';
            bool one = strncmp(at + 1, "probe: ", 7) == 0 || strncmp(at + 1, "unit/", 5) == 0 ||
                       strncmp(at + 1, "cluster/", 8) == 0;
            if (one)
                reference_check(at + 1);
            here += one;
            at = end;
        }
        /* Each way out of containers names what shows it shut. */
        if (strncmp(line, "| CVE-", 6) == 0) {
            rows++;
            if (here == 0)
                fail_msg("%.40s: no test", line);
        }
        references += here;
    }
    fclose(file);
    assert_in_range(rows, 15, 100);
    assert_in_range(references, 40, 400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_workload_file_is_documented),
        cmocka_unit_test(skerry_yaml_is_documented),
        cmocka_unit_test(the_example_is_right),
        cmocka_unit_test(each_claim_of_security_has_its_test),
    };
    return cmocka_run_group_tests_name("docs", tests, NULL, NULL);
}
