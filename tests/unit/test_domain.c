/* Host names and aliases of workloads, as people write them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/domain.h"
#include "base/memory.h"

static void names_are_brought_into_one_form(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"App.Example.ORG", "app.example.org"},
        {"app.example.org.", "app.example.org"},
        {"xn--bcher-kva.example", "xn--bcher-kva.example"},
        {"a.b", "a.b"},
        {"1.2.3.a4", "1.2.3.a4"},
        {"Room", "room"},
        {"room.", "room"},
        {"r2", "r2"},
        {"127.0.0.1.example.org", "127.0.0.1.example.org"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char out[DOMAIN_TEXT_SIZE];
        struct err e = {0};
        if (domain_parse(out, cases[i][0], &e) < 0)
            fail_msg("%s", e.msg);
        assert_string_equal(out, cases[i][1]);
        assert_true(domain_valid(out));
    }
}

static void what_is_none_is_refused_with_what_to_do(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "like app.example.org"},
        {".", "no host name"},
        {"..", "no host name"},
        {"*.example.org", "wildcard"},
        {"b\xc3\xbc.example", "xn--"},
        {"http://a.b/", "URL"},
        {"a.b:80", "port"},
        {"[::1]", "address"},
        {"::1", "address"},
        {"10.0.0.1", "address"},
        {"a.127", "address"},
        {"a.0x1f", "address"},
        {"a.0x", "address"},
        {"a..b", "no host name"},
        {".a.b", "no host name"},
        {"-a.b", "no host name"},
        {"a.b-", "no host name"},
        {"a b.c", "no host name"},
        {"a_b.c", "no host name"},
        {"a.b\n", "no host name"},
        {"9room", "no alias"},
        {"r", "no alias"},
        {"room-", "no alias"},
        {"7", "no alias"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char out[DOMAIN_TEXT_SIZE];
        struct err e = {0};
        assert_int_equal(domain_parse(out, cases[i][0], &e), -ERR_INVALID);
        if (strstr(e.msg, cases[i][1]) == NULL)
            fail_msg("%s: %s", cases[i][0], e.msg);
    }
}

/* 63 in a label, 253 in all. */
static void lengths_are_bounded(void **state)
{
    (void)state;
    char out[DOMAIN_TEXT_SIZE], name[400];
    struct err e = {0};
    size_t length = 0;
    for (unsigned i = 0; i < 4; i++) {
        memset(name + length, 'a', 62);
        name[length + 62] = '.';
        length += 63;
    }
    name[length] = 'b';
    name[length + 1] = '\0'; /* 4 * 63 + 1 */
    assert_int_equal(domain_parse(out, name, &e), 0);
    assert_int_equal(strlen(out), DOMAIN_LENGTH_MAX);
    name[length + 1] = 'b';
    name[length + 2] = '\0';
    assert_int_equal(domain_parse(out, name, &e), -ERR_INVALID);
    assert_false(domain_valid(name));
    memset(name, 'a', 64);
    memcpy(name + 64, ".b", 3);
    assert_int_equal(domain_parse(out, name, &e), -ERR_INVALID);
    assert_int_equal(domain_parse(out, name + 1, &e), 0);
}

static void within_a_domain_is_it_or_below(void **state)
{
    (void)state;
    assert_true(domain_within("example.org", "example.org"));
    assert_true(domain_within("a.b.example.org", "example.org"));
    assert_false(domain_within("aexample.org", "example.org"));
    assert_false(domain_within("org", "example.org"));
    assert_true(domain_is_alias("room"));
    assert_false(domain_is_alias("a.b"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_brought_into_one_form),
        cmocka_unit_test(what_is_none_is_refused_with_what_to_do),
        cmocka_unit_test(lengths_are_bounded),
        cmocka_unit_test(within_a_domain_is_it_or_below),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
