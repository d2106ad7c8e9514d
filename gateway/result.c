#include "gateway/result.h"

#include <string.h>

#include "base/memory.h"

/* Length of the UTF-8 character at `data`: 1 to 4; 0 if it is none; -1 if it may become one when
 * more bytes follow. RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
static int utf8_length(const unsigned char *data, size_t length)
{
    unsigned char lead = data[0];
    if (lead < 0x80)
        return 1;
    int need = lead >= 0xc2 && lead <= 0xdf   ? 2
               : lead >= 0xe0 && lead <= 0xef ? 3
               : lead >= 0xf0 && lead <= 0xf4 ? 4
                                              : 0;
    if (need == 0)
        return 0;
    for (int i = 1; i < need; i++) {
        if ((size_t)i >= length)
            return -1;
        unsigned char low = 0x80, high = 0xbf;
        if (i == 1) {
            low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : low;
            high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : high;
        }
        if (data[i] < low || data[i] > high)
            return 0;
    }
    return need;
}

bool result_is_utf8(const char *data, size_t length)
{
    const unsigned char *p = (const unsigned char *)data;
    for (size_t i = 0; i < length;) {
        int n = utf8_length(p + i, length - i);
        if (n <= 0)
            return false;
        i += (size_t)n;
    }
    return true;
}

static bool escape(struct buffer *out, unsigned char c)
{
    switch (c) {
    case '"':
        return buffer_append(out, "\\\"", 2);
    case '\\':
        return buffer_append(out, "\\\\", 2);
    case '\n':
        return buffer_append(out, "\\n", 2);
    case '\r':
        return buffer_append(out, "\\r", 2);
    case '\t':
        return buffer_append(out, "\\t", 2);
    default:
        return buffer_printf(out, "\\u%04x", (unsigned)c);
    }
}

static bool plain(unsigned char c)
{
    return c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
}

bool result_json_text(struct buffer *out, const char *data, size_t length)
{
    const unsigned char *p = (const unsigned char *)data;
    bool ok = buffer_append(out, "\"", 1);
    for (size_t i = 0; ok && i < length;) {
        size_t run = i;
        while (run < length && plain(p[run]))
            run++;
        if (run > i) {
            ok = buffer_append(out, data + i, run - i);
            i = run;
            continue;
        }
        int n = utf8_length(p + i, length - i);
        if (n > 1)
            ok = buffer_append(out, data + i, (size_t)n);
        else if (n == 1)
            ok = escape(out, p[i]);
        else
            ok = buffer_append_text(out, "\xef\xbf\xbd");
        i += n > 1 ? (size_t)n : 1;
    }
    return ok && buffer_append(out, "\"", 1);
}

bool result_base64(struct buffer *out, const char *data, size_t length)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *p = (const unsigned char *)data;
    if (length > SIZE_MAX / 2 || !buffer_reserve(out, (length + 2) / 3 * 4))
        return false;
    char *to = out->data + out->length;
    for (size_t i = 0; i < length; i += 3) {
        size_t left = length - i;
        unsigned bits = (unsigned)p[i] << 16;
        if (left > 1)
            bits |= (unsigned)p[i + 1] << 8;
        if (left > 2)
            bits |= p[i + 2];
        *to++ = alphabet[bits >> 18];
        *to++ = alphabet[(bits >> 12) & 63u];
        *to++ = left > 1 ? alphabet[(bits >> 6) & 63u] : '=';
        *to++ = left > 2 ? alphabet[bits & 63u] : '=';
    }
    out->length = (size_t)(to - out->data);
    return true;
}

static bool output_member(struct buffer *out, const char *name, struct result_bytes bytes)
{
    if (!buffer_printf(out, "\"%s\":", name) || !result_json_text(out, bytes.data, bytes.length))
        return false;
    if (result_is_utf8(bytes.data, bytes.length))
        return true;
    return buffer_printf(out, ",\"%s_base64\":\"", name) &&
           result_base64(out, bytes.data, bytes.length) && buffer_append(out, "\"", 1);
}

static bool end_members(struct buffer *out, const struct result_end *end)
{
    bool ok = buffer_printf(out, "\"exit_code\":%d,\"signal\":", end->exit_code);
    if (end->signal > 0)
        ok = ok && buffer_printf(out, "%u", end->signal);
    else
        ok = ok && buffer_append_text(out, "null");
    return ok && buffer_printf(out,
                               ",\"timed_out\":%s,\"oom\":%s,\"wall_seconds\":%llu.%06llu,"
                               "\"cpu_seconds\":%llu.%06llu,\"memory_peak_bytes\":%llu",
                               end->timed_out ? "true" : "false", end->oom ? "true" : "false",
                               (unsigned long long)(end->wall_us / 1000000u),
                               (unsigned long long)(end->wall_us % 1000000u),
                               (unsigned long long)(end->cpu_us / 1000000u),
                               (unsigned long long)(end->cpu_us % 1000000u),
                               (unsigned long long)end->memory_peak_bytes);
}

/* A character cut in two by the bound would turn the whole text into base64. */
static struct result_bytes cut_to_characters(struct result_bytes bytes)
{
    for (size_t back = 1; back <= 3 && back <= bytes.length; back++) {
        size_t at = bytes.length - back;
        int n = utf8_length((const unsigned char *)bytes.data + at, back);
        if (n < 0) {
            bytes.length = at;
            break;
        }
        if (n > 0)
            break;
    }
    return bytes;
}

bool result_json(struct buffer *out, const struct result_end *end, struct result_bytes output,
                 struct result_bytes errors, bool truncated)
{
    if (truncated) {
        output = cut_to_characters(output);
        errors = cut_to_characters(errors);
    }
    return buffer_append_text(out, "{") && end_members(out, end) && buffer_append_text(out, ",") &&
           output_member(out, "stdout", output) && buffer_append_text(out, ",") &&
           output_member(out, "stderr", errors) &&
           buffer_printf(out, ",\"truncated\":%s}\n", truncated ? "true" : "false");
}

static bool event(struct buffer *out, const char *name, struct result_bytes bytes)
{
    if (bytes.length == 0)
        return true;
    if (!buffer_printf(out, "event: %s\ndata: {", name))
        return false;
    bool ok;
    if (result_is_utf8(bytes.data, bytes.length))
        ok =
            buffer_append_text(out, "\"text\":") && result_json_text(out, bytes.data, bytes.length);
    else
        ok = buffer_append_text(out, "\"base64\":\"") &&
             result_base64(out, bytes.data, bytes.length) && buffer_append(out, "\"", 1);
    return ok && buffer_append_text(out, "}\n\n");
}

bool result_event_output(struct buffer *out, const char *name, struct result_carry *carry,
                         struct result_bytes bytes)
{
    /* Completes what is carried, byte by byte, until it is a character or cannot become one. */
    while (carry->count > 0 && bytes.length > 0) {
        carry->bytes[carry->count++] = *bytes.data++;
        bytes.length--;
        if (utf8_length((const unsigned char *)carry->bytes, carry->count) >= 0 &&
            !result_event_flush(out, name, carry))
            return false;
    }
    if (carry->count > 0)
        return true;
    struct result_bytes whole = cut_to_characters(bytes);
    carry->count = (unsigned)(bytes.length - whole.length);
    if (carry->count > 0)
        memcpy(carry->bytes, whole.data + whole.length, carry->count);
    return event(out, name, whole);
}

bool result_event_flush(struct buffer *out, const char *name, struct result_carry *carry)
{
    struct result_bytes rest = {carry->bytes, carry->count};
    carry->count = 0;
    return event(out, name, rest);
}

bool result_event_exit(struct buffer *out, const struct result_end *end)
{
    return buffer_append_text(out, "event: exit\ndata: {") && end_members(out, end) &&
           buffer_append_text(out, "}\n\n");
}
