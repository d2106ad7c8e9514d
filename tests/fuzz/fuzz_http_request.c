/* Requests: a head is judged alike however its bytes are cut, its texts lie inside of it and hold
 * nothing that could mean something else to the next reader, and what is routed was there. The first
 * byte is where the bytes are cut. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gateway/pass.h"
#include "gateway/route.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct http_bounds bounds = {.head_bytes_max = 4096, .target_bytes_max = 512};

static void expect_inside(struct http_text text, const char *data, size_t length)
{
    assert_always(text.length == 0 ||
                  (text.data >= data && text.data + text.length <= data + length));
    for (size_t i = 0; i < text.length; i++)
        assert_always(text.data[i] != '\r' && text.data[i] != '\n' && text.data[i] != '\0');
}

static void expect_sound(const struct http_head *head, const char *data, size_t length)
{
    unsigned lengths = 0, codings = 0;
    for (size_t i = 0; i < head->field_count; i++) {
        expect_inside(head->fields[i].name, data, length);
        expect_inside(head->fields[i].value, data, length);
        assert_always(http_is_token(head->fields[i].name));
        lengths += head->fields[i].known == HTTP_NAME_CONTENT_LENGTH;
        codings += head->fields[i].known == HTTP_NAME_TRANSFER_ENCODING;
    }
    assert_always(lengths <= 1 && (lengths == 0 || codings == 0));
    assert_always((codings > 0) == (head->body == HTTP_BODY_CHUNKED));
    assert_always(head->body != HTTP_BODY_UNTIL_CLOSE);
    expect_inside(head->method_text, data, length);
    expect_inside(head->path, data, length);
    expect_inside(head->authority, data, length);
    for (size_t i = 0; i < head->path.length; i++)
        assert_always(head->path.data[i] > ' ' && head->path.data[i] < 0x7f);
}

static bool named(void *user, const char *host, size_t length,
                  char workload[WORKLOAD_NAME_LENGTH_MAX + 1])
{
    (void)user;
    assert_always(length == strlen(host) && domain_valid(host));
    text_copy(workload, WORKLOAD_NAME_LENGTH_MAX + 1, "named");
    return host[0] == 'n';
}

/* What goes on holds no ticket and none of our cookies, and all others. */
static void pass_it(const struct http_head *head, const struct route *route)
{
    struct http_text ticket, cookies[PASS_COOKIES_MAX];
    char *out = malloc(route->path.length + 4);
    assert_always(out != NULL);
    enum pass_ticket found = pass_ticket_find(route->path, &ticket);
    size_t length = pass_location_write(route->path, out);
    assert_always(length > 0 && length <= route->path.length + 3 && out[0] != '?');
    assert_always(out[0] != '/' || length < 2 || (out[1] != '/' && out[1] != '\\'));
    assert_always(pass_ticket_find((struct http_text){out, length}, &ticket) == PASS_TICKET_NONE);
    assert_always(found != PASS_TICKET_NONE || length >= route->path.length);
    free(out);
    assert_always(pass_cookies(head, true, cookies) <= PASS_COOKIES_MAX);
    (void)pass_origin_own(head, true);
    for (size_t i = 0; i < head->field_count; i++) {
        struct http_text value = head->fields[i].value;
        out = malloc(value.length + 1);
        assert_always(out != NULL);
        length = pass_cookies_strip(value, out);
        assert_always(length <= value.length);
        assert_always(!pass_cookies_has((struct http_text){out, length}));
        (void)pass_cookie_sets(value);
        free(out);
    }
}

static void route_it(const struct http_head *head)
{
    static const struct route_names names = {.domain = "localhost", .named = named};
    struct route route;
    route_find(&route, head, &names);
    assert_always(strlen(route.workload) <= WORKLOAD_NAME_LENGTH_MAX);
    assert_always(route.kind != ROUTE_INSTANCE || route.instance.text[0] != '\0');
    pass_it(head, &route);
    static const enum join_key_source sources[] = {JOIN_KEY_NONE, JOIN_KEY_HEADER, JOIN_KEY_QUERY,
                                                   JOIN_KEY_COOKIE, JOIN_KEY_PATH};
    for (size_t i = 0; i < ARRAY_SIZE(sources); i++) {
        struct gateway_workload workload = {.key_source = sources[i], .key_name = "1"};
        char key[GATEWAY_KEY_LENGTH_MAX + 1];
        const char *why = NULL;
        if (route_key(key, &route, head, &workload, &why) != PROBLEM_NONE)
            assert_always(why != NULL);
        else
            assert_always(strlen(key) <= GATEWAY_KEY_LENGTH_MAX);
    }
    route_token(head);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    static struct http_head head;
    struct http_scan whole = {0}, cut = {0};
    struct http_fault fault = {0}, cut_fault = {0};
    const char *text = (const char *)data + 1;
    size_t length = size - 1;
    size_t split = data[0] % (length + 1);
    ptrdiff_t n = http_scan(&whole, text, length, true, &bounds, &fault);
    ptrdiff_t m = http_scan(&cut, text, split, true, &bounds, &cut_fault);
    if (m == HTTP_MORE)
        m = http_scan(&cut, text, length, true, &bounds, &cut_fault);
    assert_always((n < 0) == (m < 0) || n <= 0);
    if (n < 0)
        assert_always(fault.why != NULL && fault.problem != PROBLEM_NONE);
    if (n <= 0 || m <= 0)
        return 0;
    assert_always(n == m && whole.begin == cut.begin && (size_t)n <= length);
    size_t begin = whole.begin;
    if (!http_request_parse(&head, text + begin, (size_t)n - begin, &bounds, &fault)) {
        assert_always(fault.why != NULL && fault.problem != PROBLEM_NONE);
        return 0;
    }
    expect_sound(&head, text, length);
    route_it(&head);
    return 0;
}
