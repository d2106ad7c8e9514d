#include "gateway/pass.h"

#include <string.h>

/* --- tickets ---------------------------------------------------------------------------------------- */

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Whether a parameter's name is the ticket's, as the code behind would decode it. */
static bool name_is_ticket(struct http_text name)
{
    static const char expected[] = "skerry_ticket";
    size_t n = 0;
    for (size_t i = 0; i < name.length; i++) {
        char c = name.data[i];
        if (c == '%' && i + 2 < name.length && hex_value(name.data[i + 1]) >= 0 &&
            hex_value(name.data[i + 2]) >= 0) {
            c = (char)(hex_value(name.data[i + 1]) * 16 + hex_value(name.data[i + 2]));
            i += 2;
        }
        if (n == sizeof expected - 1 || c != expected[n++])
            return false;
    }
    return n == sizeof expected - 1;
}

/* The next parameter of a query, from *at on. Some code takes ";" for "&". */
static bool parameter_next(struct http_text query, size_t *at, struct http_text *out)
{
    if (*at > query.length)
        return false;
    size_t end = *at;
    while (end < query.length && query.data[end] != '&' && query.data[end] != ';')
        end++;
    *out = (struct http_text){query.data + *at, end - *at};
    *at = end + 1;
    return true;
}

/* Whether it is the ticket; *value is it. */
static bool is_ticket(struct http_text parameter, struct http_text *value)
{
    const char *equals =
        parameter.length > 0 ? memchr(parameter.data, '=', parameter.length) : NULL;
    size_t length = equals == NULL ? parameter.length : (size_t)(equals - parameter.data);
    if (!name_is_ticket((struct http_text){parameter.data, length}))
        return false;
    *value = (struct http_text){0};
    if (equals != NULL)
        *value = (struct http_text){equals + 1, parameter.length - length - 1};
    return true;
}

static struct http_text query_of(struct http_text path)
{
    const char *mark = path.length > 0 ? memchr(path.data, '?', path.length) : NULL;
    if (mark == NULL)
        return (struct http_text){0};
    return (struct http_text){mark + 1, (size_t)(path.data + path.length - mark - 1)};
}

enum pass_ticket pass_ticket_find(struct http_text path, struct http_text *ticket)
{
    struct http_text query = query_of(path), parameter, value;
    enum pass_ticket found = PASS_TICKET_NONE;
    size_t at = 0;
    if (query.data == NULL)
        return PASS_TICKET_NONE;
    while (parameter_next(query, &at, &parameter)) {
        if (!is_ticket(parameter, &value))
            continue;
        if (found != PASS_TICKET_NONE || value.length == 0)
            return PASS_TICKET_SEVERAL;
        found = PASS_TICKET_ONE;
        *ticket = value;
    }
    return found;
}

size_t pass_location_write(struct http_text path, char *out)
{
    struct http_text query = query_of(path), parameter, value;
    size_t length = query.data == NULL ? path.length : path.length - query.length - 1;
    char *p = out;
    /* "//host" and what browsers take for it would lead to another host; RFC 3986 section 5.2.4 removes
     * the point. */
    if (length == 0)
        *p++ = '/';
    else if (length > 1 && (path.data[1] == '/' || path.data[1] == '\\')) {
        *p++ = '/';
        *p++ = '.';
    }
    if (length > 0) {
        memcpy(p, path.data, length);
        p += length;
    }
    char before = '?';
    size_t at = 0;
    while (query.data != NULL && parameter_next(query, &at, &parameter)) {
        if (is_ticket(parameter, &value))
            continue;
        *p++ = before;
        if (parameter.length > 0)
            memcpy(p, parameter.data, parameter.length);
        p += parameter.length;
        before = at <= query.length ? query.data[at - 1] : '&';
    }
    return (size_t)(p - out);
}

/* --- cookies ---------------------------------------------------------------------------------------- */

static struct http_text trimmed(struct http_text text)
{
    while (text.length > 0 && (text.data[0] == ' ' || text.data[0] == '\t')) {
        text.data++;
        text.length--;
    }
    while (text.length > 0 &&
           (text.data[text.length - 1] == ' ' || text.data[text.length - 1] == '\t'))
        text.length--;
    return text;
}

static bool text_equals(struct http_text text, const char *expected)
{
    return text.length == strlen(expected) && memcmp(text.data, expected, text.length) == 0;
}

/* The next "name=value" of a list, as it stands. */
static bool cookie_next(struct http_text *rest, struct http_text *out)
{
    if (rest->data == NULL)
        return false;
    const char *end = rest->length > 0 ? memchr(rest->data, ';', rest->length) : NULL;
    *out = *rest;
    if (end == NULL) {
        rest->data = NULL;
        return true;
    }
    out->length = (size_t)(end - rest->data);
    rest->length -= out->length + 1;
    rest->data = end + 1;
    return true;
}

static struct http_text cookie_name(struct http_text cookie, struct http_text *value)
{
    const char *equals = cookie.length > 0 ? memchr(cookie.data, '=', cookie.length) : NULL;
    size_t length = equals == NULL ? cookie.length : (size_t)(equals - cookie.data);
    *value = (struct http_text){0};
    if (equals != NULL)
        *value = trimmed((struct http_text){equals + 1, cookie.length - length - 1});
    return trimmed((struct http_text){cookie.data, length});
}

/* Browsers keep a prefix in any case from being set by others; the name itself is exact. */
static bool is_ours(struct http_text name)
{
    return http_text_is(name, PASS_COOKIE) || http_text_is(name, "__host-" PASS_COOKIE);
}

size_t pass_cookies(const struct http_head *head, bool secure,
                    struct http_text out[PASS_COOKIES_MAX])
{
    size_t count = 0;
    for (size_t i = 0; i < head->field_count; i++) {
        struct http_text rest = head->fields[i].value, cookie, value;
        if (head->fields[i].known != HTTP_NAME_COOKIE)
            continue;
        while (count < PASS_COOKIES_MAX && cookie_next(&rest, &cookie))
            if (text_equals(cookie_name(cookie, &value),
                            secure ? PASS_COOKIE_SECURE : PASS_COOKIE) &&
                value.length > 0)
                out[count++] = value;
    }
    return count;
}

bool pass_cookies_has(struct http_text value)
{
    struct http_text cookie, ignored;
    while (cookie_next(&value, &cookie))
        if (is_ours(cookie_name(cookie, &ignored)))
            return true;
    return false;
}

size_t pass_cookies_strip(struct http_text value, char *out)
{
    struct http_text cookie, ignored;
    char *p = out;
    while (cookie_next(&value, &cookie)) {
        if (is_ours(cookie_name(cookie, &ignored)))
            continue;
        if (p > out)
            *p++ = ';';
        else
            cookie = trimmed(cookie);
        if (cookie.length > 0)
            memcpy(p, cookie.data, cookie.length);
        p += cookie.length;
    }
    return (size_t)(p - out);
}

bool pass_cookie_sets(struct http_text value)
{
    struct http_text cookie, ignored;
    return cookie_next(&value, &cookie) && is_ours(cookie_name(cookie, &ignored));
}

/* --- origins ---------------------------------------------------------------------------------------- */

static struct http_text field_value(const struct http_head *head, const char *name, unsigned *count)
{
    struct http_text found = {0};
    *count = 0;
    for (size_t i = 0; i < head->field_count; i++) {
        if (head->fields[i].known != HTTP_NAME_OTHER || !http_text_is(head->fields[i].name, name))
            continue;
        found = head->fields[i].value;
        (*count)++;
    }
    return found;
}

/* "https://host:port" against a Host field. The scheme is not compared: another program may speak HTTPS
 * before us. */
static bool origin_is(struct http_text origin, struct http_text host)
{
    size_t scheme = 0;
    if (origin.length > 7 && http_text_is((struct http_text){origin.data, 7}, "http://"))
        scheme = 7;
    else if (origin.length > 8 && http_text_is((struct http_text){origin.data, 8}, "https://"))
        scheme = 8;
    origin.data += scheme;
    origin.length -= scheme;
    return scheme != 0 && host.length > 0 && http_text_same(origin, host);
}

bool pass_origin_own(const struct http_head *head, bool forwarded)
{
    unsigned count, sites, modes, places;
    struct http_text origin = field_value(head, "origin", &count);
    struct http_text site = field_value(head, "sec-fetch-site", &sites);
    struct http_text mode = field_value(head, "sec-fetch-mode", &modes);
    struct http_text place = field_value(head, "sec-fetch-dest", &places);
    const struct http_field *before =
        forwarded ? http_field_find(head, HTTP_NAME_X_FORWARDED_HOST) : NULL;
    if (count > 1 || sites > 1 || modes > 1 || places > 1)
        return false;
    if (count == 1 && !origin_is(origin, head->authority) &&
        (before == NULL || !origin_is(origin, before->value)))
        return false;
    /* Links from elsewhere may be followed; images, scripts and frames are another matter. */
    bool elsewhere =
        sites == 1 && !http_text_is(site, "same-origin") && !http_text_is(site, "none");
    return !elsewhere || (modes == 1 && http_text_is(mode, "navigate") &&
                          (places == 0 || http_text_is(place, "document")));
}
