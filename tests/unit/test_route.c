#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "gateway/route.h"

#define ID "012345678901234561"

static bool named(void *user, const char *host, size_t length,
                  char workload[WORKLOAD_NAME_LENGTH_MAX + 1])
{
    (void)user;
    assert_int_equal(length, strlen(host));
    if (strcmp(host, "shop.example.com") != 0)
        return false;
    return text_copy(workload, WORKLOAD_NAME_LENGTH_MAX + 1, "shop");
}
static const struct route_names names = {.domain = "example.org", .named = named};

static const struct http_bounds bounds = {.head_bytes_max = 65536, .target_bytes_max = 8192};

/* Parses "TARGET" with a host and more lines; the head's texts stay valid until the next call. */
static struct http_head *parsed(const char *target, const char *host, const char *lines)
{
    static struct http_head head;
    static char text[4096];
    struct http_fault fault;
    text_format(text, sizeof text, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", target, host, lines);
    if (!http_request_parse(&head, text, strlen(text), &bounds, &fault))
        fail_msg("%s: %s", text, fault.why);
    return &head;
}

static void targets_are_found(void **state)
{
    (void)state;
    static const struct {
        const char *host, *target, *lines;
        enum route_kind kind;
        const char *workload, *instance, *path, *prefix;
    } cases[] = {
        {"h", "/w/hello", "", ROUTE_WORKLOAD, "hello", "", "", "/w/hello"},
        {"h", "/w/hello/", "", ROUTE_WORKLOAD, "hello", "", "/", "/w/hello"},
        {"h", "/w/hello?x", "", ROUTE_WORKLOAD, "hello", "", "?x", "/w/hello"},
        {"h", "/w/hello/a/../b?c", "", ROUTE_WORKLOAD, "hello", "", "/a/../b?c", "/w/hello"},
        {"h", "/w/", "", ROUTE_WORKLOAD, "", "", "", "/w/"},
        {"h", "/w/%68ello/", "", ROUTE_WORKLOAD, "%68ello", "", "/", "/w/%68ello"},
        {"h", "/w", "", ROUTE_NOWHERE, "", "", "/w", ""},
        {"h", "/W/hello/", "", ROUTE_NOWHERE, "", "", "/W/hello/", ""},
        {"h", "/i/" ID "/x", "", ROUTE_INSTANCE, "", ID, "/x", "/i/" ID},
        {"h", "/i/hello/x", "", ROUTE_INSTANCE_WRONG, "", "", "/x", "/i/hello"},
        {"h", "/", "", ROUTE_NOWHERE, "", "", "/", ""},
        {"h", "/livez", "", ROUTE_LIVEZ, "", "", "/livez", ""},
        {"h", "/livez?v", "", ROUTE_LIVEZ, "", "", "/livez?v", ""},
        {"h", "/livez/x", "", ROUTE_NOWHERE, "", "", "/livez/x", ""},
        {"h", "/readyz", "", ROUTE_READYZ, "", "", "/readyz", ""},
        {"hello.example.org", "/w/x", "", ROUTE_WORKLOAD, "hello", "", "/w/x", ""},
        {"HELLO.Example.ORG:80", "/", "", ROUTE_WORKLOAD, "hello", "", "/", ""},
        {"hello.example.org.", "/livez", "", ROUTE_WORKLOAD, "hello", "", "/livez", ""},
        {ID ".example.org", "/", "", ROUTE_INSTANCE, "", ID, "/", ""},
        {"0bad.example.org", "/", "", ROUTE_INSTANCE_WRONG, "", "", "/", ""},
        {"a.b.example.org", "/", "", ROUTE_WORKLOAD, "a.b", "", "/", ""},
        {"example.org", "/w/x", "", ROUTE_WORKLOAD, "x", "", "", "/w/x"},
        {"xexample.org", "/w/x", "", ROUTE_WORKLOAD, "x", "", "", "/w/x"},
        {".example.org", "/w/x", "", ROUTE_WORKLOAD, "x", "", "", "/w/x"},
        {"[::1]:8080", "/w/x", "", ROUTE_WORKLOAD, "x", "", "", "/w/x"},
        {"h", "/w/x/y", "Skerry-Instance: " ID "\r\n", ROUTE_INSTANCE, "x", ID, "/y", "/w/x"},
        {"h", "/any", "Skerry-Instance: " ID "\r\n", ROUTE_INSTANCE, "", ID, "/any", ""},
        {"h", "/any", "Skerry-Instance: nope\r\n", ROUTE_INSTANCE_WRONG, "", "", "/any", ""},
        {"Shop.Example.COM.:80", "/w/x?y", "", ROUTE_WORKLOAD, "shop", "", "/w/x?y", ""},
        {"shop.example.com", "/livez", "", ROUTE_WORKLOAD, "shop", "", "/livez", ""},
        {"a.shop.example.com", "/", "", ROUTE_NOWHERE, "", "", "/", ""},
        {"shop.example.com", "/x", "Skerry-Instance: " ID "\r\n", ROUTE_INSTANCE, "shop", ID, "/x",
         ""},
        {"h", "/livez", "Skerry-Instance: nope\r\n", ROUTE_LIVEZ, "", "", "/livez", ""},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct route route;
        route_find(&route, parsed(cases[i].target, cases[i].host, cases[i].lines), &names);
        if (route.kind != cases[i].kind)
            fail_msg("%s %s: kind %d", cases[i].host, cases[i].target, (int)route.kind);
        assert_string_equal(route.workload, cases[i].workload);
        assert_string_equal(route.instance.text, cases[i].instance);
        assert_true(route.path.length == strlen(cases[i].path) &&
                    memcmp(route.path.data, cases[i].path, route.path.length) == 0);
        assert_true(route.prefix.length == strlen(cases[i].prefix));
    }
}

static void ports_stand_before_an_instance(void **state)
{
    (void)state;
    static const struct {
        const char *label;
        enum route_kind kind;
        unsigned port;
    } cases[] = {
        {"9000--" ID, ROUTE_INSTANCE, 9000},
        {"1--" ID, ROUTE_INSTANCE, 1},
        {"65535--" ID, ROUTE_INSTANCE, 65535},
        {ID, ROUTE_INSTANCE, 0},
        {"0--" ID, ROUTE_INSTANCE_WRONG, 0},
        {"65536--" ID, ROUTE_INSTANCE_WRONG, 0},
        {"09--" ID, ROUTE_INSTANCE_WRONG, 0},
        {"9000-" ID, ROUTE_INSTANCE_WRONG, 0},
        {"9000--", ROUTE_INSTANCE_WRONG, 9000},
        {"9000---" ID, ROUTE_INSTANCE_WRONG, 9000},
        {"--" ID, ROUTE_WORKLOAD, 0},
        {"9000--hello", ROUTE_INSTANCE_WRONG, 9000},
        {"4294968296--" ID, ROUTE_INSTANCE_WRONG, 0},
        {"18446744073709551617--" ID, ROUTE_INSTANCE_WRONG, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char host[120];
        struct route route;
        text_format(host, sizeof host, "%s.example.org", cases[i].label);
        route_find(&route, parsed("/", host, ""), &names);
        if (route.kind != cases[i].kind || route.port != cases[i].port || !route.by_host)
            fail_msg("%s: kind %d, port %u", host, (int)route.kind, route.port);
    }
    struct route route;
    route_find(&route, parsed("/", "70000--" ID ".example.org", "Skerry-Instance: " ID "\r\n"),
               &names);
    assert_true(route.kind == ROUTE_INSTANCE_WRONG && route.port_wrong);
}

static void only_hosts_of_their_own_are_by_host(void **state)
{
    (void)state;
    static const struct {
        const char *host;
        bool by_host;
        const char *kept;
    } cases[] = {
        {"Hello.example.org:1", true, "hello.example.org"},
        {"shop.example.com.", true, "shop.example.com"},
        {"example.org", false, ""},
        {"127.0.0.1", false, ""},
        {"[::1]:80", false, ""},
        {"localhost", false, ""},
        {"other.example.com", false, "other.example.com"}, /* it may be one in a moment */
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct route route;
        route_find(&route, parsed("/w/x/", cases[i].host, ""), &names);
        assert_int_equal(route.by_host, cases[i].by_host);
        assert_string_equal(route.host, cases[i].kept);
    }
}

static void preferences_are_read(void **state)
{
    (void)state;
    struct route route;
    route_find(&route, parsed("/w/x", "h", "Skerry-Prefer: " ID "\r\n"), &names);
    assert_string_equal(route.prefer.text, ID);
    route_find(&route, parsed("/w/x", "h", "Skerry-Prefer: no\r\n"), &names);
    assert_string_equal(route.prefer.text, "");
}

static void keys_come_from_where_the_workload_says(void **state)
{
    (void)state;
    static const struct {
        enum join_key_source source;
        const char *name, *target, *lines;
        enum problem problem;
        const char *key;
    } cases[] = {
        {JOIN_KEY_NONE, "", "/w/x/", "", PROBLEM_NONE, ""},
        {JOIN_KEY_NONE, "", "/w/x/", "Skerry-Key: a\r\n", PROBLEM_BAD_REQUEST, ""},
        {JOIN_KEY_HEADER, "X-Room", "/w/x/", "x-room: blue\r\n", PROBLEM_NONE, "blue"},
        {JOIN_KEY_HEADER, "X-Room", "/w/x/", "", PROBLEM_KEY_MISSING, ""},
        {JOIN_KEY_HEADER, "X-Room", "/w/x/", "X-Room:\r\n", PROBLEM_KEY_MISSING, ""},
        {JOIN_KEY_HEADER, "X-Room", "/w/x/", "X-Room: a\r\nSkerry-Key: b\r\n", PROBLEM_NONE, "b"},
        {JOIN_KEY_HEADER, "X-Room", "/w/x/", "X-Room: a\tb\r\n", PROBLEM_BAD_REQUEST, ""},
        {JOIN_KEY_QUERY, "room", "/w/x/?a=1&room=b+l%75e&room=2", "", PROBLEM_NONE, "b lue"},
        {JOIN_KEY_QUERY, "room", "/w/x/?aroom=1", "", PROBLEM_KEY_MISSING, ""},
        {JOIN_KEY_QUERY, "room", "/w/x/", "", PROBLEM_KEY_MISSING, ""},
        {JOIN_KEY_QUERY, "room", "/w/x/?room=%0", "", PROBLEM_BAD_REQUEST, ""},
        {JOIN_KEY_QUERY, "room", "/w/x/?room=%00", "", PROBLEM_BAD_REQUEST, ""},
        {JOIN_KEY_COOKIE, "room", "/w/x/", "Cookie: a=b; room=red; c=d\r\n", PROBLEM_NONE, "red"},
        {JOIN_KEY_COOKIE, "room", "/w/x/", "Cookie: a=b\r\nCookie: room=\"q\"\r\n", PROBLEM_NONE,
         "q"},
        {JOIN_KEY_COOKIE, "room", "/w/x/", "Cookie: aroom=b\r\n", PROBLEM_KEY_MISSING, ""},
        {JOIN_KEY_PATH, "1", "/w/x/one/two?q", "", PROBLEM_NONE, "one"},
        {JOIN_KEY_PATH, "2", "/w/x/one/t%77o?q", "", PROBLEM_NONE, "two"},
        {JOIN_KEY_PATH, "3", "/w/x/one/two?q", "", PROBLEM_KEY_MISSING, ""},
        {JOIN_KEY_PATH, "1", "/w/x", "", PROBLEM_KEY_MISSING, ""},
        {JOIN_KEY_PATH, "1", "/w/x//a", "", PROBLEM_KEY_MISSING, ""},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct route route;
        struct gateway_workload workload = {.key_source = cases[i].source};
        char key[GATEWAY_KEY_LENGTH_MAX + 1];
        const char *why = NULL;
        text_copy(workload.key_name, sizeof workload.key_name, cases[i].name);
        struct http_head *head = parsed(cases[i].target, "h", cases[i].lines);
        route_find(&route, head, &names);
        enum problem problem = route_key(key, &route, head, &workload, &why);
        if (problem != cases[i].problem)
            fail_msg("%s %s: %s", cases[i].target, cases[i].lines, problem_word(problem)->code);
        if (problem == PROBLEM_NONE)
            assert_string_equal(key, cases[i].key);
        else
            assert_non_null(why);
    }
    char lines[400] = "X-Room: ";
    memset(lines + 8, 'k', GATEWAY_KEY_LENGTH_MAX + 1);
    text_copy(lines + 8 + GATEWAY_KEY_LENGTH_MAX + 1, 3, "\r\n");
    struct route route;
    struct gateway_workload workload = {.key_source = JOIN_KEY_HEADER, .key_name = "X-Room"};
    char key[GATEWAY_KEY_LENGTH_MAX + 1];
    const char *why;
    struct http_head *head = parsed("/w/x", "h", lines);
    route_find(&route, head, &names);
    assert_int_equal(route_key(key, &route, head, &workload, &why), PROBLEM_BAD_REQUEST);
}

static void tokens_are_told_from_other_authorization(void **state)
{
    (void)state;
    static const struct {
        const char *lines, *token;
    } cases[] = {
        {"", ""},
        {"Authorization: Bearer skt_abc\r\n", "skt_abc"},
        {"authorization: BEARER   skt_abc\r\n", "skt_abc"},
        {"Authorization: Bearer other\r\n", ""},
        {"Authorization: Basic skt_abc\r\n", ""},
        {"Authorization: Bearerskt_abc\r\n", ""},
        {"Skerry-Token: abc\r\nAuthorization: Bearer skt_abc\r\n", "abc"},
        {"Authorization: Basic x\r\nAuthorization: Bearer skt_2\r\n", "skt_2"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct http_head *head = parsed("/", "h", cases[i].lines);
        struct http_text token = route_token(head);
        assert_int_equal(token.length, strlen(cases[i].token));
        assert_true(token.length == 0 || memcmp(token.data, cases[i].token, token.length) == 0);
        for (size_t n = 0; n < head->field_count; n++) {
            const struct http_field *field = &head->fields[n];
            bool holds = field->known == HTTP_NAME_SKERRY_TOKEN ||
                         (field->value.length > 4 &&
                          memmem(field->value.data, field->value.length, "r skt_", 6) != NULL) ||
                         memmem(field->value.data, field->value.length, "R   skt_", 8) != NULL;
            assert_int_equal(route_is_token(field), holds);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(targets_are_found),
        cmocka_unit_test(ports_stand_before_an_instance),
        cmocka_unit_test(only_hosts_of_their_own_are_by_host),
        cmocka_unit_test(preferences_are_read),
        cmocka_unit_test(keys_come_from_where_the_workload_says),
        cmocka_unit_test(tokens_are_told_from_other_authorization),
    };
    return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
