/* Tickets in links, and cookies in heads: found, taken out, and told apart from those of the code. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/memory.h"
#include "gateway/pass.h"

static struct http_text text_of(const char *text)
{
    return (struct http_text){text, strlen(text)};
}

static void tickets_are_found_and_taken_out(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        enum pass_ticket found;
        const char *ticket, *location;
    } cases[] = {
        {"/", PASS_TICKET_NONE, "", "/"},
        {"", PASS_TICKET_NONE, "", "/"},
        {"?a", PASS_TICKET_NONE, "", "/?a"},
        {"/a?", PASS_TICKET_NONE, "", "/a?"},
        {"/a?skerry_ticket=x", PASS_TICKET_ONE, "x", "/a"},
        {"?skerry_ticket=x", PASS_TICKET_ONE, "x", "/"},
        {"/a?b=1&skerry_ticket=x&c=%2F", PASS_TICKET_ONE, "x", "/a?b=1&c=%2F"},
        {"/a?skerry_ticket=x&&b", PASS_TICKET_ONE, "x", "/a?&b"},
        {"/a?b;skerry_ticket=x=y;c", PASS_TICKET_ONE, "x=y", "/a?b;c"},
        {"/a?%73kerry%5fticket=x&b", PASS_TICKET_ONE, "x", "/a?b"},
        {"/a?b?skerry_ticket=x", PASS_TICKET_NONE, "", "/a?b?skerry_ticket=x"},
        {"/a?skerry_tickets=x", PASS_TICKET_NONE, "", "/a?skerry_tickets=x"},
        {"/a?Skerry_ticket=x", PASS_TICKET_NONE, "", "/a?Skerry_ticket=x"},
        {"/a?skerry_ticke%7", PASS_TICKET_NONE, "", "/a?skerry_ticke%7"},
        {"/skerry_ticket=x", PASS_TICKET_NONE, "", "/skerry_ticket=x"},
        {"/a?skerry_ticket", PASS_TICKET_SEVERAL, "", "/a"},
        {"/a?skerry_ticket=", PASS_TICKET_SEVERAL, "", "/a"},
        {"/a?skerry_ticket=x&skerry_ticket=y", PASS_TICKET_SEVERAL, "", "/a"},
        /* They stay on this host. */
        {"//evil.example/?skerry_ticket=x", PASS_TICKET_ONE, "x", "/.//evil.example/"},
        {"/\\evil.example/?skerry_ticket=x&b", PASS_TICKET_ONE, "x", "/./\\evil.example/?b"},
        {"///?skerry_ticket=x", PASS_TICKET_ONE, "x", "/.///"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char out[200];
        struct http_text path = text_of(cases[i].path), ticket = {0};
        enum pass_ticket found = pass_ticket_find(path, &ticket);
        size_t length = pass_location_write(path, out);
        if (found != cases[i].found)
            fail_msg("%s: %d", cases[i].path, (int)found);
        if (found == PASS_TICKET_ONE)
            assert_true(ticket.length == strlen(cases[i].ticket) &&
                        memcmp(ticket.data, cases[i].ticket, ticket.length) == 0);
        assert_in_range(length, 1, path.length + 3);
        out[length] = '\0';
        assert_string_equal(out, cases[i].location);
    }
}

static void other_cookies_stay_as_they_are(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"skerry_join=x", ""},
        {"a=1; skerry_join=x; b=\"2\"", "a=1; b=\"2\""},
        {"skerry_join=x; a=1", "a=1"},
        {"a=1;skerry_join=x", "a=1"},
        {"a=1;  b = 2 ;__Host-skerry_join=x;;c", "a=1;  b = 2 ;;c"},
        {" skerry_join =x ;a", "a"},
        {"skerry_join", ""},
        {"SKERRY_JOIN=x; __HOST-Skerry_join=y; z", "z"},
        {"skerry_join=x; skerry_join=y", ""},
    };
    static const char *const strangers[] = {
        "a=1", "", "askerry_join=x", "skerry_joins=x", "a=skerry_join=x", "__Secure-skerry_join=x",
        ";; ;"};
    char out[200];
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_true(pass_cookies_has(text_of(cases[i][0])));
        out[pass_cookies_strip(text_of(cases[i][0]), out)] = '\0';
        assert_string_equal(out, cases[i][1]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(strangers); i++)
        assert_false(pass_cookies_has(text_of(strangers[i])));
    assert_true(pass_cookie_sets(text_of("skerry_join=x; Path=/")));
    assert_true(pass_cookie_sets(text_of("__HOST-skerry_join = x")));
    assert_false(pass_cookie_sets(text_of("a=1; skerry_join=x")));
}

/* A head of "GET / HTTP/1.1" with a host and more lines; valid until the next call. */
static const struct http_head *head_of(const char *lines)
{
    static const struct http_bounds bounds = {.head_bytes_max = 65536, .target_bytes_max = 8192};
    static struct http_head head;
    static char text[4096];
    struct http_fault fault;
    text_format(text, sizeof text, "GET / HTTP/1.1\r\nHost: Chat.localhost:8080\r\n%s\r\n", lines);
    if (!http_request_parse(&head, text, strlen(text), &bounds, &fault))
        fail_msg("%s: %s", text, fault.why);
    return &head;
}

static void cookie_of_the_scheme_is_found(void **state)
{
    (void)state;
    struct http_text out[PASS_COOKIES_MAX];
    const struct http_head *head =
        head_of("Cookie: a=1; skerry_join=one; __Host-skerry_join=two\r\n"
                "Cookie: skerry_join=three;skerry_join=; Skerry_join=four\r\n");
    assert_int_equal(pass_cookies(head, false, out), 2);
    assert_true(out[0].length == 3 && memcmp(out[0].data, "one", 3) == 0);
    assert_true(out[1].length == 5 && memcmp(out[1].data, "three", 5) == 0);
    assert_int_equal(pass_cookies(head, true, out), 1);
    assert_true(out[0].length == 3 && memcmp(out[0].data, "two", 3) == 0);
    head = head_of("Cookie: skerry_join=1;skerry_join=2;skerry_join=3;skerry_join=4;skerry_join=5;"
                   "skerry_join=6;skerry_join=7;skerry_join=8;skerry_join=9\r\n");
    assert_int_equal(pass_cookies(head, false, out), PASS_COOKIES_MAX);
}

static void pages_of_other_origins_do_not_use_it(void **state)
{
    (void)state;
    static const struct {
        const char *lines;
        bool own, own_forwarded;
    } cases[] = {
        {"", true, true},
        {"Origin: http://chat.localhost:8080\r\n", true, true},
        {"Origin: HTTPS://CHAT.localhost:8080\r\n", true, true},
        {"Origin: http://chat.localhost\r\n", false, false},
        {"Origin: http://shop.localhost:8080\r\n", false, false},
        {"Origin: null\r\n", false, false},
        {"Origin:\r\n", false, false},
        {"Origin: chat.localhost:8080\r\n", false, false},
        {"Origin: ftp://chat.localhost:8080\r\n", false, false},
        {"Origin: http://chat.localhost:8080\r\nOrigin: http://chat.localhost:8080\r\n", false,
         false},
        {"Origin: https://chat.example.org\r\nX-Forwarded-Host: chat.example.org\r\n", false, true},
        {"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: no-cors\r\n", true, true},
        {"Sec-Fetch-Site: none\r\n", true, true},
        {"Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: no-cors\r\n", false, false},
        {"Sec-Fetch-Site: cross-site\r\n", false, false},
        {"Sec-Fetch-Site: what\r\nSec-Fetch-Mode: cors\r\n", false, false},
        {"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n", true, true},
        {"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nOrigin: http://e.test\r\n",
         false, false},
        {"Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n",
         true, true},
        {"Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n",
         false, false},
        {"Sec-Fetch-Site: none\r\nSec-Fetch-Site: same-origin\r\n", false, false},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        if (pass_origin_own(head_of(cases[i].lines), false) != cases[i].own ||
            pass_origin_own(head_of(cases[i].lines), true) != cases[i].own_forwarded)
            fail_msg("%s", cases[i].lines);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tickets_are_found_and_taken_out),
        cmocka_unit_test(other_cookies_stay_as_they_are),
        cmocka_unit_test(cookie_of_the_scheme_is_found),
        cmocka_unit_test(pages_of_other_origins_do_not_use_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
