#include <string.h>

#include "base/memory.h"
#include "gateway/http.h"

/* What a byte may be part of. */
enum { TOKEN = 1, VALUE = 2, TARGET = 4, HOST = 8 };
enum { T = TOKEN, V = VALUE, G = TARGET, H = HOST };

/* clang-format off */
static const unsigned char kinds[256] = {
    ['\t'] = V, [' '] = V,
    ['!'] = T|V|G|H, ['"'] = V|G, ['#'] = T|V, ['$'] = T|V|G|H, ['%'] = T|V|G|H, ['&'] = T|V|G|H,
    ['\''] = T|V|G|H, ['('] = V|G|H, [')'] = V|G|H, ['*'] = T|V|G|H, ['+'] = T|V|G|H,
    [','] = V|G|H, ['-'] = T|V|G|H, ['.'] = T|V|G|H, ['/'] = V|G,
    ['0' ... '9'] = T|V|G|H, [':'] = V|G|H, [';'] = V|G|H, ['<'] = V|G, ['='] = V|G|H,
    ['>'] = V|G, ['?'] = V|G, ['@'] = V|G, ['A' ... 'Z'] = T|V|G|H, ['['] = V|G|H,
    ['\\'] = V|G, [']'] = V|G|H, ['^'] = T|V|G, ['_'] = T|V|G|H, ['`'] = T|V|G,
    ['a' ... 'z'] = T|V|G|H, ['{'] = V|G, ['|'] = T|V|G, ['}'] = V|G, ['~'] = T|V|G|H,
    [0x80 ... 0xff] = V,
};
/* clang-format on */

static bool is(char c, unsigned char kind)
{
    return (kinds[(unsigned char)c] & kind) != 0;
}

static bool all(struct http_text text, unsigned char kind)
{
    for (size_t i = 0; i < text.length; i++)
        if (!is(text.data[i], kind))
            return false;
    return true;
}

bool http_is_token(struct http_text text)
{
    return text.length > 0 && all(text, TOKEN);
}

static bool refuse(struct http_fault *fault, enum problem problem, const char *why)
{
    *fault = (struct http_fault){problem, why};
    return false;
}

static bool bad(struct http_fault *fault, const char *why)
{
    return refuse(fault, PROBLEM_BAD_REQUEST, why);
}

/* --- the end of a head --- */

static ptrdiff_t scan_more(struct http_scan *scan, size_t length, bool request,
                           const struct http_bounds *bounds, struct http_fault *fault)
{
    scan->at = length;
    /* The method and the version stand in the line too. */
    size_t line_max = bounds->target_bytes_max + HTTP_METHOD_LENGTH_MAX + sizeof " HTTP/1.1\r";
    if (request && scan->lines == 0 && length - scan->line > line_max) {
        refuse(fault, PROBLEM_URI_TOO_LONG, "the request line is too long");
        return HTTP_REFUSED;
    }
    if (length - scan->begin > bounds->head_bytes_max) {
        refuse(fault, PROBLEM_HEADER_TOO_LARGE, "the header block is too large");
        return HTTP_REFUSED;
    }
    return HTTP_MORE;
}

ptrdiff_t http_scan(struct http_scan *scan, const char *data, size_t length, bool request,
                    const struct http_bounds *bounds, struct http_fault *fault)
{
    while (scan->at < length) {
        if (scan->at == scan->begin && scan->lines == 0 && !is(data[scan->at], TOKEN) &&
            !(request && scan->begin == 0 && data[scan->at] == '\r')) {
            bad(fault, "the first byte is not one that HTTP/1.1 can begin with");
            return HTTP_REFUSED;
        }
        const char *feed = memchr(data + scan->at, '\n', length - scan->at);
        if (feed == NULL)
            break;
        size_t end = (size_t)(feed - data);
        if (end == scan->line || data[end - 1] != '\r') {
            bad(fault, "a line ends in LF without CR");
            return HTTP_REFUSED;
        }
        bool empty = end - scan->line == 1;
        scan->at = scan->line = end + 1;
        if (empty && scan->lines > 0) {
            if (end + 1 - scan->begin > bounds->head_bytes_max) {
                refuse(fault, PROBLEM_HEADER_TOO_LARGE, "the header block is too large");
                return HTTP_REFUSED;
            }
            return (ptrdiff_t)(end + 1);
        }
        if (empty) /* RFC 9112 section 2.2: one empty line before a request is ignored */
            scan->begin = end + 1;
        else
            scan->lines++;
    }
    return scan_more(scan, length, request, bounds, fault);
}

/* --- fields --- */

/* One field line at *at; moves behind it. */
static bool field_parse(struct http_field *field, const char **at, const char *end,
                        struct http_fault *fault)
{
    const char *p = *at;
    if (*p == ' ' || *p == '\t')
        return bad(fault, "a header line is folded");
    const char *name = p;
    while (p < end && is(*p, TOKEN))
        p++;
    if (p == name || p == end || *p != ':') {
        bool space = p < end && p > name && (*p == ' ' || *p == '\t');
        return bad(fault, space ? "there is a space between a header name and its colon"
                                : "a header name holds a byte that it may not hold");
    }
    field->name = (struct http_text){name, (size_t)(p - name)};
    p++;
    while (p < end && (*p == ' ' || *p == '\t'))
        p++;
    const char *value = p;
    while (p < end && is(*p, VALUE))
        p++;
    if (end - p < 2 || p[0] != '\r' || p[1] != '\n')
        return bad(fault, "a header value holds a control byte");
    *at = p + 2;
    while (p > value && (p[-1] == ' ' || p[-1] == '\t'))
        p--;
    field->value = (struct http_text){value, (size_t)(p - value)};
    field->known = http_name_find(field->name);
    field->named_by_connection = false;
    return true;
}

/* From `at` to the empty line that `end` stands behind. */
static bool fields_parse(struct http_head *head, const char *at, const char *end,
                         struct http_fault *fault)
{
    head->field_count = 0;
    while (at < end && !(*at == '\r' && end - at == 2)) {
        if (head->field_count == HTTP_FIELDS_MAX)
            return refuse(fault, PROBLEM_HEADER_TOO_LARGE, "there are too many header fields");
        if (!field_parse(&head->fields[head->field_count], &at, end, fault))
            return false;
        head->field_count++;
    }
    if (end - at != 2 || at[0] != '\r' || at[1] != '\n')
        return bad(fault, "the header block does not end in an empty line");
    return true;
}

static bool length_parse(struct http_text text, uint64_t *out)
{
    if (text.length == 0 || text.length > 19) /* 10^19 - 1 fits into 64 bits */
        return false;
    uint64_t n = 0;
    for (size_t i = 0; i < text.length; i++) {
        if (text.data[i] < '0' || text.data[i] > '9')
            return false;
        n = n * 10 + (uint64_t)(text.data[i] - '0');
    }
    *out = n;
    return n <= INT64_MAX;
}

static void name_hop_by_hop(struct http_head *head, struct http_text option)
{
    for (size_t i = 0; i < head->field_count; i++)
        if (http_text_same(head->fields[i].name, option))
            head->fields[i].named_by_connection = true;
}

struct connection_options {
    bool close, keep_alive, upgrade;
};

static bool connection_parse(struct http_head *head, struct connection_options *out,
                             struct http_fault *fault)
{
    unsigned count = 0;
    for (size_t i = 0; i < head->field_count; i++) {
        if (head->fields[i].known != HTTP_NAME_CONNECTION)
            continue;
        struct http_text list = head->fields[i].value;
        struct http_text option;
        while (http_list_next(&list, &option)) {
            if (++count > HTTP_CONNECTION_OPTIONS_MAX)
                return bad(fault, "the Connection field names too many options");
            if (!http_is_token(option))
                return bad(fault, "the Connection field holds something that is no option");
            if (http_text_is(option, "close"))
                out->close = true;
            else if (http_text_is(option, "keep-alive"))
                out->keep_alive = true;
            else if (http_text_is(option, "upgrade"))
                out->upgrade = true;
            else
                name_hop_by_hop(head, option);
        }
    }
    return true;
}

/* Transfer-Encoding may only be "chunked", once. */
static bool coding_parse(const struct http_head *head, bool *chunked, struct http_fault *fault)
{
    *chunked = false;
    bool given = false;
    bool other = false;
    for (size_t i = 0; i < head->field_count; i++) {
        if (head->fields[i].known != HTTP_NAME_TRANSFER_ENCODING)
            continue;
        given = true;
        struct http_text list = head->fields[i].value;
        struct http_text coding;
        while (http_list_next(&list, &coding)) {
            if (*chunked)
                return bad(fault, "chunked is not the last transfer coding");
            if (http_text_is(coding, "chunked"))
                *chunked = true;
            else
                other = true;
        }
    }
    if (other)
        return refuse(fault, PROBLEM_NOT_IMPLEMENTED, "the only transfer coding is chunked");
    if (given && !*chunked)
        return bad(fault, "the Transfer-Encoding field is empty");
    if (given && head->minor == 0)
        return bad(fault, "HTTP/1.0 has no transfer codings");
    return true;
}

/* What both kinds of head have: connection options and the body's framing. */
static bool framing_parse(struct http_head *head, struct http_fault *fault)
{
    struct connection_options options = {0};
    if (!connection_parse(head, &options, fault))
        return false;
    head->keep_alive = !options.close && (head->minor > 0 || options.keep_alive);
    head->content_length_given = false;
    head->content_length = 0;
    head->upgrade_to = (struct http_text){0};
    for (size_t i = 0; i < head->field_count; i++) {
        const struct http_field *field = &head->fields[i];
        if (field->known == HTTP_NAME_CONTENT_LENGTH) {
            if (head->content_length_given)
                return bad(fault, "there is more than one Content-Length");
            if (!length_parse(field->value, &head->content_length))
                return bad(fault, "the Content-Length is not a number");
            head->content_length_given = true;
        } else if (field->known == HTTP_NAME_UPGRADE) {
            head->upgrade_to = field->value;
        }
    }
    head->upgrade = options.upgrade && head->upgrade_to.length > 0 && head->minor > 0;
    bool chunked;
    if (!coding_parse(head, &chunked, fault))
        return false;
    if (chunked && head->content_length_given)
        return bad(fault, "there are both a Content-Length and chunked");
    head->body = chunked                      ? HTTP_BODY_CHUNKED
                 : head->content_length_given ? HTTP_BODY_LENGTH
                                              : HTTP_BODY_NONE;
    return true;
}

bool http_trailers_parse(struct http_head *head, const char *data, size_t length,
                         struct http_fault *fault)
{
    return fields_parse(head, data, data + length, fault);
}

/* --- requests --- */

static enum http_method method_find(struct http_text text)
{
    static const struct {
        const char *text;
        enum http_method method;
    } methods[] = {
        {"GET", HTTP_METHOD_GET},       {"HEAD", HTTP_METHOD_HEAD},
        {"POST", HTTP_METHOD_POST},     {"PUT", HTTP_METHOD_PUT},
        {"DELETE", HTTP_METHOD_DELETE}, {"OPTIONS", HTTP_METHOD_OPTIONS},
        {"TRACE", HTTP_METHOD_TRACE},   {"CONNECT", HTTP_METHOD_CONNECT},
    };
    for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
        if (strlen(methods[i].text) == text.length &&
            memcmp(methods[i].text, text.data, text.length) == 0)
            return methods[i].method;
    return HTTP_METHOD_OTHER;
}

/* "HTTP/1.1" at `p`, which has at least 8 bytes. */
static bool version_parse(const char *p, unsigned *minor, struct http_fault *fault)
{
    bool shape = memcmp(p, "HTTP/", 5) == 0 && p[5] >= '0' && p[5] <= '9' && p[6] == '.' &&
                 p[7] >= '0' && p[7] <= '9';
    if (!shape)
        return bad(fault, "the HTTP version is malformed");
    if (p[5] != '1')
        return refuse(fault, PROBLEM_HTTP_VERSION, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    *minor = p[7] == '0' ? 0 : 1;
    return true;
}

static bool authority_valid(struct http_text text)
{
    return all(text, HOST);
}

/* "http://authority/path?query" */
static bool absolute_parse(struct http_head *head, struct http_text target,
                           struct http_fault *fault)
{
    size_t scheme = 0;
    if (target.length >= 7 && http_text_is((struct http_text){target.data, 7}, "http://"))
        scheme = 7;
    else if (target.length >= 8 && http_text_is((struct http_text){target.data, 8}, "https://"))
        scheme = 8;
    if (scheme == 0)
        return bad(fault, "the request target is neither a path nor an http URI");
    const char *p = target.data + scheme;
    const char *end = target.data + target.length;
    const char *authority = p;
    while (p < end && *p != '/' && *p != '?')
        p++;
    head->target = HTTP_TARGET_ABSOLUTE;
    head->authority = (struct http_text){authority, (size_t)(p - authority)};
    head->path = (struct http_text){p, (size_t)(end - p)};
    if (head->authority.length == 0 || !authority_valid(head->authority))
        return bad(fault, "the host in the request target is malformed");
    return true;
}

static bool target_parse(struct http_head *head, struct http_text target, struct http_fault *fault)
{
    if (target.length == 0 || !all(target, TARGET))
        return bad(fault, "the request target holds a byte that it may not hold");
    head->authority = (struct http_text){0};
    head->path = target;
    if (target.data[0] == '/') {
        head->target = HTTP_TARGET_ORIGIN;
        return true;
    }
    if (target.length == 1 && target.data[0] == '*') {
        head->target = HTTP_TARGET_ASTERISK;
        if (head->method != HTTP_METHOD_OPTIONS)
            return bad(fault, "only OPTIONS may ask for *");
        return true;
    }
    return absolute_parse(head, target, fault);
}

static bool request_line_parse(struct http_head *head, struct http_text line,
                               const struct http_bounds *bounds, struct http_fault *fault)
{
    const char *space = memchr(line.data, ' ', line.length);
    if (space == NULL)
        return bad(fault, "the request line is malformed");
    head->method_text = (struct http_text){line.data, (size_t)(space - line.data)};
    if (!http_is_token(head->method_text))
        return bad(fault, "the method holds a byte that it may not hold");
    if (head->method_text.length > HTTP_METHOD_LENGTH_MAX)
        return refuse(fault, PROBLEM_NOT_IMPLEMENTED, "the method is too long");
    head->method = method_find(head->method_text);
    /* " HTTP/1.1" is what the line must end in. */
    const char *end = line.data + line.length;
    if (end - space < 10 || end[-9] != ' ' || end - 9 == space)
        return bad(fault, "the request line is malformed");
    if (!version_parse(end - 8, &head->minor, fault))
        return false;
    if (head->method == HTTP_METHOD_CONNECT)
        return refuse(fault, PROBLEM_NOT_IMPLEMENTED, "CONNECT is not supported");
    struct http_text target = {space + 1, (size_t)(end - 9 - space - 1)};
    if (target.length > bounds->target_bytes_max)
        return refuse(fault, PROBLEM_URI_TOO_LONG, "the request target is too long");
    return target_parse(head, target, fault);
}

static bool host_parse(struct http_head *head, struct http_fault *fault)
{
    const struct http_field *host = NULL;
    for (size_t i = 0; i < head->field_count; i++) {
        if (head->fields[i].known != HTTP_NAME_HOST)
            continue;
        if (host != NULL)
            return bad(fault, "there is more than one Host");
        host = &head->fields[i];
    }
    if (host == NULL && head->minor > 0)
        return bad(fault, "there is no Host");
    if (host != NULL && !authority_valid(host->value))
        return bad(fault, "the Host is malformed");
    /* RFC 9112 section 3.2.2: an absolute target wins over Host. */
    if (host != NULL && head->target != HTTP_TARGET_ABSOLUTE)
        head->authority = host->value;
    return true;
}

static bool expectations_parse(struct http_head *head, struct http_fault *fault)
{
    head->expect_continue = false;
    head->te_trailers = false;
    for (size_t i = 0; i < head->field_count; i++) {
        const struct http_field *field = &head->fields[i];
        if (field->known == HTTP_NAME_EXPECT && head->minor > 0) {
            if (!http_text_is(field->value, "100-continue"))
                return refuse(fault, PROBLEM_EXPECTATION_FAILED,
                              "the only expectation is 100-continue");
            head->expect_continue = true;
        } else if (field->known == HTTP_NAME_TE) {
            struct http_text list = field->value;
            struct http_text item;
            while (http_list_next(&list, &item))
                head->te_trailers = head->te_trailers || http_text_is(item, "trailers");
        }
    }
    return true;
}

/* The first line without its CRLF; moves *at behind it. */
static bool line_take(const char **at, const char *end, struct http_text *out)
{
    const char *feed = memchr(*at, '\n', (size_t)(end - *at));
    if (feed == NULL || feed == *at || feed[-1] != '\r')
        return false;
    *out = (struct http_text){*at, (size_t)(feed - 1 - *at)};
    *at = feed + 1;
    return true;
}

bool http_request_parse(struct http_head *head, const char *data, size_t length,
                        const struct http_bounds *bounds, struct http_fault *fault)
{
    const char *at = data;
    const char *end = data + length;
    struct http_text line;
    if (!line_take(&at, end, &line))
        return bad(fault, "the request line is malformed");
    return request_line_parse(head, line, bounds, fault) && fields_parse(head, at, end, fault) &&
           framing_parse(head, fault) && host_parse(head, fault) && expectations_parse(head, fault);
}

/* --- answers --- */

static bool status_line_parse(struct http_head *head, struct http_text line,
                              struct http_fault *fault)
{
    const char *p = line.data;
    if (line.length < 12 || !version_parse(p, &head->minor, fault) || p[8] != ' ')
        return bad(fault, "the status line is malformed");
    unsigned status = 0;
    for (size_t i = 9; i < 12; i++) {
        if (p[i] < '0' || p[i] > '9')
            return bad(fault, "the status is not a number");
        status = status * 10 + (unsigned)(p[i] - '0');
    }
    if (status < 100 || status > 599)
        return bad(fault, "the status is not one of 100 to 599");
    /* Some leave out the space where there is no reason; nothing else can be meant. */
    if (line.length > 12 && p[12] != ' ')
        return bad(fault, "the status line is malformed");
    head->status = status;
    head->reason = (struct http_text){p + 12, 0};
    if (line.length > 13)
        head->reason = (struct http_text){p + 13, line.length - 13};
    if (!all(head->reason, VALUE))
        return bad(fault, "the reason holds a control byte");
    return true;
}

bool http_answer_parse(struct http_head *head, const char *data, size_t length,
                       enum http_method method, struct http_fault *fault)
{
    const char *at = data;
    const char *end = data + length;
    struct http_text line;
    if (!line_take(&at, end, &line))
        return bad(fault, "the status line is malformed");
    if (!status_line_parse(head, line, fault) || !fields_parse(head, at, end, fault) ||
        !framing_parse(head, fault))
        return false;
    /* RFC 9112 section 6.3 */
    if (method == HTTP_METHOD_HEAD || head->status < 200 || head->status == 204 ||
        head->status == 304)
        head->body = HTTP_BODY_NONE;
    else if (head->body == HTTP_BODY_NONE)
        head->body = HTTP_BODY_UNTIL_CLOSE;
    return true;
}
