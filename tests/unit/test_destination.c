/* Where code may connect to: what is taken, what is refused, and what a text means. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/destination.h"
#include "base/memory.h"

static void networks_and_ports_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint32_t network;
        unsigned prefix, first, last; /* first 0: any */
    } rows[] = {
        {"203.0.113.0/24", 0xcb007100, 24, 0, 0},
        {"203.0.113.7", 0xcb007107, 32, 0, 0},
        {"203.0.113.7:443", 0xcb007107, 32, 443, 443},
        {"203.0.113.0/24:8000-8099", 0xcb007100, 24, 8000, 8099},
        {"0.0.0.0/0:53", 0, 0, 53, 53},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct destination d;
        struct err e;
        assert_int_equal(destination_parse(&d, rows[i].text, &e), 0);
        assert_int_equal(d.kind, DESTINATION_NETWORK);
        assert_int_equal(d.network, rows[i].network);
        assert_int_equal(d.prefix, rows[i].prefix);
        assert_int_equal(d.any_port, rows[i].first == 0);
        assert_int_equal(d.port_first, rows[i].first);
        assert_int_equal(d.port_last, rows[i].last);
    }
}

static void names_are_read_in_lower_case(void **state)
{
    (void)state;
    struct destination d;
    struct err e;
    assert_int_equal(destination_parse(&d, "PyPI.org:443", &e), 0);
    assert_int_equal(d.kind, DESTINATION_NAME);
    assert_string_equal(d.name, "pypi.org");
    assert_int_equal(d.port_first, 443);
    assert_false(d.subdomains);
    assert_true(destination_matches_name(&d, "pypi.org"));
    assert_false(destination_matches_name(&d, "a.pypi.org"));
    assert_int_equal(destination_parse(&d, "*.example.org:80", &e), 0);
    assert_true(d.subdomains);
    assert_true(destination_matches_name(&d, "a.b.example.org"));
    assert_false(destination_matches_name(&d, "example.org"));
    assert_false(destination_matches_name(&d, "evilexample.org"));
    assert_false(destination_matches_name(&d, ".example.org"));
}

static void what_is_none_is_refused_with_the_remedy(void **state)
{
    (void)state;
    static const struct {
        const char *text, *why;
    } rows[] = {
        {"", "is neither an IPv4 network nor a name"},
        {"example", "is neither"},
        {"example..org:1", "is neither"},
        {"exa mple.org:1", "is neither"},
        {"a.1:443", "is neither"},
        {"1.2.3.4.5:443", "is neither"},
        {"1.2.3.999", "is neither"},
        {"*.*.org:1", "is neither"},
        {"10.0.0.0/8; drop", "more behind"},
        {"10.0.0.0/33", "no prefix length"},
        {"10.0.0.0/08", "no prefix length"},
        {"10.0.0.1/8", "bits behind its prefix"},
        {"10.0.0/8", "no IPv4 network"},
        {"example.org/8:1", "no IPv4 network"},
        {"10.0.0.1:0", "no port"},
        {"10.0.0.1:65536", "no port"},
        {"10.0.0.1:9-8", "no port"},
        {"10.0.0.1:", "no port"},
        {"10.0.0.1:http", "no port"},
        {"example.org", "needs one port; write example.org:443"},
        {"example.org:1-2", "needs one port"},
        {"::1", "no IPv6 way out"},
        {"[2001:db8::1]:443", "no IPv6 way out"},
        {"::ffff:10.0.0.1", "no IPv6 way out"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct destination d;
        struct err e = {0};
        if (destination_parse(&d, rows[i].text, &e) == 0)
            fail_msg("%s was taken", rows[i].text);
        if (strstr(e.msg, rows[i].why) == NULL)
            fail_msg("%s: %s", rows[i].text, e.msg);
    }
}

static void names_have_bounds(void **state)
{
    (void)state;
    struct destination d;
    struct err e;
    char text[400];
    memset(text, 'a', sizeof text);
    memcpy(text + 63, ".org:1", 7);
    assert_int_equal(destination_parse(&d, text, &e), 0);
    memset(text, 'a', sizeof text);
    memcpy(text + 64, ".org:1", 7);
    assert_int_not_equal(destination_parse(&d, text, &e), 0);
    for (size_t i = 0; i < 390; i += 2)
        memcpy(text + i, "a.", 3);
    memcpy(text + 390, "org:1", 6);
    assert_int_not_equal(destination_parse(&d, text, &e), 0);
    memcpy(text + 250, "org:1", 6);
    assert_int_equal(destination_parse(&d, text, &e), 0);
    memcpy(text + 252, "org:1", 6);
    assert_int_not_equal(destination_parse(&d, text, &e), 0);
}

static void overlaps_are_seen_both_ways(void **state)
{
    (void)state;
    struct destination d;
    struct err e;
    assert_int_equal(destination_parse(&d, "10.1.0.0/16", &e), 0);
    assert_true(destination_overlaps(&d, 0x0a000000, 8));
    assert_true(destination_overlaps(&d, 0x0a010203, 32));
    assert_true(destination_overlaps(&d, 0, 0));
    assert_false(destination_overlaps(&d, 0x0a020000, 16));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(networks_and_ports_are_read),
        cmocka_unit_test(names_are_read_in_lower_case),
        cmocka_unit_test(what_is_none_is_refused_with_the_remedy),
        cmocka_unit_test(names_have_bounds),
        cmocka_unit_test(overlaps_are_seen_both_ways),
    };
    return cmocka_run_group_tests_name("destination", tests, NULL, NULL);
}
