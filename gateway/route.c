#include "gateway/route.h"

#include <stddef.h>
#include <string.h>

#include "base/memory.h"

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
}

/* The host without port and last dot. "[::1]:8080" gives "[::1]". */
static struct http_text host_of(struct http_text authority)
{
    if (authority.length == 0)
        return authority;
    if (authority.data[0] == '[') {
        const char *close = memchr(authority.data, ']', authority.length);
        if (close != NULL)
            authority.length = (size_t)(close + 1 - authority.data);
        return authority;
    }
    const char *colon = memchr(authority.data, ':', authority.length);
    if (colon != NULL)
        authority.length = (size_t)(colon - authority.data);
    if (authority.length > 0 && authority.data[authority.length - 1] == '.')
        authority.length--; /* "localhost." */
    return authority;
}

/* What stands before ".DOMAIN"; false if the host is not below the domain. */
static bool label_of(struct http_text host, const char *domain, struct http_text *label)
{
    size_t length = strlen(domain);
    if (host.length <= length + 1 || host.data[host.length - length - 1] != '.')
        return false;
    struct http_text tail = {host.data + host.length - length, length};
    if (!http_text_is(tail, domain))
        return false;
    *label = (struct http_text){host.data, host.length - length - 1};
    return true;
}

static void take_workload(struct route *route, struct http_text name)
{
    route->kind = ROUTE_WORKLOAD;
    /* What is too long names no workload, and "" neither. */
    if (name.length > WORKLOAD_NAME_LENGTH_MAX)
        return;
    memcpy(route->workload, name.data, name.length);
    route->workload[name.length] = '\0';
}

static void take_instance(struct route *route, struct http_text id)
{
    bool valid = instance_id_parse(&route->instance, id.data, id.length);
    route->kind = valid ? ROUTE_INSTANCE : ROUTE_INSTANCE_WRONG;
}

/* "9000--ID": what the label begins with goes to route->port. False: it is no such thing. */
static bool take_port(struct route *route, struct http_text *label)
{
    unsigned port = 0;
    size_t at = 0;
    for (; at < label->length && label->data[at] >= '0' && label->data[at] <= '9'; at++)
        if (port <= UINT16_MAX)
            port = port * 10 + (unsigned)(label->data[at] - '0');
    if (label->length < at + 2 || memcmp(label->data + at, "--", 2) != 0)
        return false;
    route->port_wrong = port == 0 || port > UINT16_MAX || label->data[0] == '0';
    route->port = route->port_wrong ? 0 : (uint16_t)port;
    label->data += at + 2;
    label->length -= at + 2;
    return true;
}

static void take_label(struct route *route, struct http_text label)
{
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    if (label.length < sizeof name)
        for (size_t i = 0; i < label.length; i++)
            name[i] = lower(label.data[i]);
    else
        label.length = 0;
    struct http_text text = {name, label.length};
    bool number = text.length > 0 && name[0] >= '0' && name[0] <= '9';
    if (number && take_port(route, &text) && route->port_wrong)
        route->kind = ROUTE_INSTANCE_WRONG;
    else if (number)
        take_instance(route, text);
    else
        take_workload(route, text);
}

static bool path_is(struct http_text path, const char *text)
{
    size_t length = strlen(text);
    return path.length >= length && memcmp(path.data, text, length) == 0 &&
           (path.length == length || path.data[length] == '?');
}

/* Splits "/w/NAME/rest" behind NAME. */
static struct http_text take_prefix(struct route *route, struct http_text path)
{
    const char *name = path.data + 3;
    const char *end = path.data + path.length;
    const char *p = name;
    while (p < end && *p != '/' && *p != '?')
        p++;
    route->prefix = (struct http_text){path.data, (size_t)(p - path.data)};
    route->path = (struct http_text){p, (size_t)(end - p)};
    return (struct http_text){name, (size_t)(p - name)};
}

static void route_by_path(struct route *route, struct http_text path)
{
    if (path.length >= 3 && memcmp(path.data, "/w/", 3) == 0)
        take_workload(route, take_prefix(route, path));
    else if (path.length >= 3 && memcmp(path.data, "/i/", 3) == 0)
        take_instance(route, take_prefix(route, path));
    else if (path_is(path, "/livez"))
        route->kind = ROUTE_LIVEZ;
    else if (path_is(path, "/readyz"))
        route->kind = ROUTE_READYZ;
}

static void note_host(struct route *route, struct http_text host)
{
    if (host.length > DOMAIN_LENGTH_MAX)
        return; /* no name is so long */
    for (size_t i = 0; i < host.length; i++)
        route->host[i] = lower(host.data[i]);
    route->host[host.length] = '\0';
}

/* A host name of a workload's own. */
static bool take_named(struct route *route, struct http_text host, const struct route_names *names)
{
    note_host(route, host);
    if (names->named == NULL || !domain_valid(route->host) || domain_is_alias(route->host) ||
        strcmp(route->host, names->domain) == 0) {
        route->host[0] = '\0';
        return false;
    }
    route->by_host = names->named(names->user, route->host, host.length, route->workload);
    if (route->by_host)
        route->kind = ROUTE_WORKLOAD;
    return route->by_host;
}

void route_find(struct route *route, const struct http_head *head, const struct route_names *names)
{
    struct http_text host = host_of(head->authority), label;
    memset(route, 0, offsetof(struct route, host));
    route->host[0] = '\0';
    route->path = head->path;
    route->prefix = (struct http_text){0};
    if (label_of(host, names->domain, &label)) {
        route->by_host = true;
        note_host(route, host);
        take_label(route, label);
    } else if (host.length == 0 || !take_named(route, host, names)) {
        if (head->target == HTTP_TARGET_ASTERISK)
            route->kind = ROUTE_OPTIONS;
        else
            route_by_path(route, head->path);
    }

    if (route->kind == ROUTE_LIVEZ || route->kind == ROUTE_READYZ || route->kind == ROUTE_OPTIONS ||
        route->port_wrong)
        return;
    for (size_t i = 0; i < head->field_count; i++) {
        const struct http_field *field = &head->fields[i];
        if (field->known == HTTP_NAME_SKERRY_INSTANCE)
            take_instance(route, field->value);
        else if (field->known == HTTP_NAME_SKERRY_PREFER &&
                 !instance_id_parse(&route->prefer, field->value.data, field->value.length))
            route->prefer.text[0] = '\0';
    }
}

/* --- keys --- */

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Percent-decodes; false if malformed, too long, or with control bytes: a key is given to the code
 * in its environment. */
static bool key_decode(char key[GATEWAY_KEY_LENGTH_MAX + 1], struct http_text text, bool encoded,
                       bool plus_is_space)
{
    size_t n = 0;
    for (size_t i = 0; i < text.length; i++) {
        char c = text.data[i];
        if (encoded && c == '%') {
            int high = i + 2 < text.length ? hex_value(text.data[i + 1]) : -1;
            int low = i + 2 < text.length ? hex_value(text.data[i + 2]) : -1;
            if (high < 0 || low < 0)
                return false;
            c = (char)(high * 16 + low);
            i += 2;
        } else if (plus_is_space && c == '+') {
            c = ' ';
        }
        if ((unsigned char)c < 0x20 || c == 0x7f || n == GATEWAY_KEY_LENGTH_MAX)
            return false;
        key[n++] = c;
    }
    key[n] = '\0';
    return true;
}

static bool text_equals(struct http_text text, const char *expected)
{
    return strlen(expected) == text.length && memcmp(text.data, expected, text.length) == 0;
}

/* The value of `name` in "a=1<separator>name=2". */
static struct http_text pair_find(struct http_text pairs, char separator, const char *name)
{
    if (pairs.length == 0)
        return pairs;
    const char *p = pairs.data;
    const char *end = pairs.data + pairs.length;
    while (p < end) {
        const char *stop = memchr(p, separator, (size_t)(end - p));
        if (stop == NULL)
            stop = end;
        while (p < stop && *p == ' ')
            p++;
        const char *equals = memchr(p, '=', (size_t)(stop - p));
        if (equals != NULL && text_equals((struct http_text){p, (size_t)(equals - p)}, name))
            return (struct http_text){equals + 1, (size_t)(stop - equals - 1)};
        p = stop < end ? stop + 1 : end;
    }
    return (struct http_text){0};
}

static struct http_text query_of(struct http_text path)
{
    const char *mark = path.length > 0 ? memchr(path.data, '?', path.length) : NULL;
    if (mark == NULL)
        return (struct http_text){0};
    return (struct http_text){mark + 1, (size_t)(path.data + path.length - mark - 1)};
}

/* The n-th segment of a path, from 1. */
static struct http_text segment_find(struct http_text path, const char *number)
{
    unsigned want = 0;
    for (; *number >= '0' && *number <= '9' && want < 1000; number++)
        want = want * 10 + (unsigned)(*number - '0');
    const char *p = path.data;
    const char *end = path.data + path.length;
    while (p < end && *p == '/') {
        const char *begin = ++p;
        while (p < end && *p != '/' && *p != '?')
            p++;
        if (--want == 0)
            return (struct http_text){begin, (size_t)(p - begin)};
    }
    return (struct http_text){0};
}

static struct http_text field_value(const struct http_head *head, const char *name)
{
    struct http_text wanted = {name, strlen(name)};
    for (size_t i = 0; i < head->field_count; i++)
        if (http_text_same(head->fields[i].name, wanted))
            return head->fields[i].value;
    return (struct http_text){0};
}

static struct http_text cookie_value(const struct http_head *head, const char *name)
{
    for (size_t i = 0; i < head->field_count; i++) {
        if (head->fields[i].known != HTTP_NAME_COOKIE)
            continue;
        struct http_text value = pair_find(head->fields[i].value, ';', name);
        while (value.length > 0 && value.data[value.length - 1] == ' ')
            value.length--;
        if (value.length >= 2 && value.data[0] == '"' && value.data[value.length - 1] == '"')
            value = (struct http_text){value.data + 1, value.length - 2};
        if (value.length > 0)
            return value;
    }
    return (struct http_text){0};
}

enum problem route_key(char key[GATEWAY_KEY_LENGTH_MAX + 1], const struct route *route,
                       const struct http_head *head, const struct gateway_workload *workload,
                       const char **why)
{
    key[0] = '\0';
    const struct http_field *direct = http_field_find(head, HTTP_NAME_SKERRY_KEY);
    enum join_key_source source = workload->key_source;
    if (source == JOIN_KEY_NONE && direct != NULL) {
        *why = "the workload has no join.key, so no key can be given";
        return PROBLEM_BAD_REQUEST;
    }
    if (source == JOIN_KEY_NONE)
        return PROBLEM_NONE;
    struct http_text text = {0};
    bool encoded = false;
    if (direct != NULL) {
        text = direct->value;
    } else if (source == JOIN_KEY_HEADER) {
        text = field_value(head, workload->key_name);
    } else if (source == JOIN_KEY_QUERY) {
        text = pair_find(query_of(route->path), '&', workload->key_name);
        encoded = true;
    } else if (source == JOIN_KEY_COOKIE) {
        text = cookie_value(head, workload->key_name);
    } else {
        text = segment_find(route->path, workload->key_name);
        encoded = true;
    }
    if (text.length == 0) {
        *why = "the request has no key";
        return PROBLEM_KEY_MISSING;
    }
    if (!key_decode(key, text, encoded, source == JOIN_KEY_QUERY && direct == NULL)) {
        *why = "the key is longer than 128 bytes or holds a control byte";
        return PROBLEM_BAD_REQUEST;
    }
    return PROBLEM_NONE;
}

/* --- tokens --- */

/* "Bearer skt_..." without "Bearer "; length 0 if it is something else. */
static struct http_text bearer_of(struct http_text value)
{
    if (value.length < 7 || !http_text_is((struct http_text){value.data, 6}, "bearer") ||
        value.data[6] != ' ')
        return (struct http_text){0};
    struct http_text token = {value.data + 7, value.length - 7};
    while (token.length > 0 && token.data[0] == ' ') {
        token.data++;
        token.length--;
    }
    if (token.length < 4 || memcmp(token.data, "skt_", 4) != 0)
        return (struct http_text){0};
    return token;
}

bool route_is_token(const struct http_field *field)
{
    return field->known == HTTP_NAME_SKERRY_TOKEN ||
           (field->known == HTTP_NAME_AUTHORIZATION && bearer_of(field->value).length > 0);
}

struct http_text route_token(const struct http_head *head)
{
    const struct http_field *direct = http_field_find(head, HTTP_NAME_SKERRY_TOKEN);
    if (direct != NULL)
        return direct->value;
    for (size_t i = 0; i < head->field_count; i++) {
        const struct http_field *field = &head->fields[i];
        if (field->known == HTTP_NAME_AUTHORIZATION && bearer_of(field->value).length > 0)
            return bearer_of(field->value);
    }
    return (struct http_text){0};
}
