#include <string.h>

#include "base/memory.h"
#include "gateway/http.h"

/* Sorted by length, so that a name is compared with two or three others at most. */
static const struct {
    const char *text;
    enum http_name name;
} names[] = {
    {"te", HTTP_NAME_TE},
    {"host", HTTP_NAME_HOST},
    {"accept", HTTP_NAME_ACCEPT},
    {"cookie", HTTP_NAME_COOKIE},
    {"expect", HTTP_NAME_EXPECT},
    {"trailer", HTTP_NAME_TRAILER},
    {"upgrade", HTTP_NAME_UPGRADE},
    {"forwarded", HTTP_NAME_FORWARDED},
    {"connection", HTTP_NAME_CONNECTION},
    {"keep-alive", HTTP_NAME_KEEP_ALIVE},
    {"set-cookie", HTTP_NAME_SET_COOKIE},
    {"skerry-key", HTTP_NAME_SKERRY_KEY},
    {"tracestate", HTTP_NAME_TRACESTATE},
    {"skerry-node", HTTP_NAME_SKERRY_NODE},
    {"traceparent", HTTP_NAME_TRACEPARENT},
    {"skerry-error", HTTP_NAME_SKERRY_ERROR},
    {"skerry-start", HTTP_NAME_SKERRY_START},
    {"skerry-token", HTTP_NAME_SKERRY_TOKEN},
    {"authorization", HTTP_NAME_AUTHORIZATION},
    {"skerry-prefer", HTTP_NAME_SKERRY_PREFER},
    {"content-length", HTTP_NAME_CONTENT_LENGTH},
    {"http2-settings", HTTP_NAME_HTTP2_SETTINGS},
    {"skerry-deadline", HTTP_NAME_SKERRY_DEADLINE},
    {"skerry-instance", HTTP_NAME_SKERRY_INSTANCE},
    {"x-forwarded-for", HTTP_NAME_X_FORWARDED_FOR},
    {"proxy-connection", HTTP_NAME_PROXY_CONNECTION},
    {"x-forwarded-host", HTTP_NAME_X_FORWARDED_HOST},
    {"skerry-request-id", HTTP_NAME_SKERRY_REQUEST_ID},
    {"transfer-encoding", HTTP_NAME_TRANSFER_ENCODING},
    {"x-forwarded-proto", HTTP_NAME_X_FORWARDED_PROTO},
    {"proxy-authenticate", HTTP_NAME_PROXY_AUTHENTICATE},
    {"x-forwarded-prefix", HTTP_NAME_X_FORWARDED_PREFIX},
    {"proxy-authorization", HTTP_NAME_PROXY_AUTHORIZATION},
};
_Static_assert(ARRAY_SIZE(names) == HTTP_NAME_COUNT - 1, "each known name has its line");

/* Index of the first name with at least so many bytes. */
enum { NAME_LENGTH_MAX = 19 };
static const unsigned char first_of_length[NAME_LENGTH_MAX + 2] = {
    0, 0, 0, 1, 1, 2, 2, 5, 7, 7, 8, 13, 15, 18, 20, 22, 25, 27, 30, 32, 33,
};

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
}

bool http_text_is(struct http_text text, const char *expected)
{
    for (size_t i = 0; i < text.length; i++)
        if (expected[i] == '\0' || lower(text.data[i]) != expected[i])
            return false;
    return expected[text.length] == '\0';
}

bool http_text_same(struct http_text a, struct http_text b)
{
    if (a.length != b.length)
        return false;
    for (size_t i = 0; i < a.length; i++)
        if (lower(a.data[i]) != lower(b.data[i]))
            return false;
    return true;
}

enum http_name http_name_find(struct http_text name)
{
    if (name.length > NAME_LENGTH_MAX)
        return HTTP_NAME_OTHER;
    for (size_t i = first_of_length[name.length]; i < first_of_length[name.length + 1]; i++)
        if (http_text_is(name, names[i].text))
            return names[i].name;
    return HTTP_NAME_OTHER;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

bool http_list_next(struct http_text *list, struct http_text *out)
{
    while (list->length > 0) {
        const char *comma = memchr(list->data, ',', list->length);
        size_t length = comma != NULL ? (size_t)(comma - list->data) : list->length;
        struct http_text item = {list->data, length};
        size_t taken = comma != NULL ? length + 1 : length;
        list->data += taken;
        list->length -= taken;
        while (item.length > 0 && is_space(item.data[0])) {
            item.data++;
            item.length--;
        }
        while (item.length > 0 && is_space(item.data[item.length - 1]))
            item.length--;
        if (item.length > 0) { /* RFC 9110 section 5.6.1: empty elements are skipped */
            *out = item;
            return true;
        }
    }
    return false;
}

const struct http_field *http_field_find(const struct http_head *head, enum http_name name)
{
    for (size_t i = 0; i < head->field_count; i++)
        if (head->fields[i].known == name)
            return &head->fields[i];
    return NULL;
}

bool http_method_idempotent(enum http_method method)
{
    switch (method) {
    case HTTP_METHOD_GET:
    case HTTP_METHOD_HEAD:
    case HTTP_METHOD_PUT:
    case HTTP_METHOD_DELETE:
    case HTTP_METHOD_OPTIONS:
    case HTTP_METHOD_TRACE:
        return true;
    default:
        return false;
    }
}

const char *http_status_phrase(unsigned status)
{
    switch (status) {
    case 200:
        return "OK";
    case 204:
        return "No Content";
    case 308:
        return "Permanent Redirect";
    case 400:
        return "Bad Request";
    case 401:
        return "Unauthorized";
    case 403:
        return "Forbidden";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 409:
        return "Conflict";
    case 410:
        return "Gone";
    case 413:
        return "Content Too Large";
    case 414:
        return "URI Too Long";
    case 417:
        return "Expectation Failed";
    case 429:
        return "Too Many Requests";
    case 431:
        return "Request Header Fields Too Large";
    case 500:
        return "Internal Server Error";
    case 501:
        return "Not Implemented";
    case 502:
        return "Bad Gateway";
    case 503:
        return "Service Unavailable";
    case 504:
        return "Gateway Timeout";
    case 505:
        return "HTTP Version Not Supported";
    default:
        return "Unknown";
    }
}
