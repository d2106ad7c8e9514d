/* Answers of code: as with requests. The first byte says which method is answered. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/memory.h"
#include "gateway/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct http_bounds bounds = {.head_bytes_max = 4096};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    static struct http_head head;
    struct http_scan scan = {0};
    struct http_fault fault = {0};
    const char *text = (const char *)data + 1;
    size_t length = size - 1;
    enum http_method method = data[0] % (HTTP_METHOD_CONNECT + 1);
    ptrdiff_t n = HTTP_MORE;
    for (size_t seen = 0; n == HTTP_MORE && seen <= length; seen += 1 + length / 7)
        n = http_scan(&scan, text, seen, false, &bounds, &fault);
    if (n == HTTP_MORE)
        n = http_scan(&scan, text, length, false, &bounds, &fault);
    if (n <= 0) {
        assert_always(n == HTTP_MORE || fault.why != NULL);
        return 0;
    }
    assert_always((size_t)n <= length && scan.begin == 0);
    if (!http_answer_parse(&head, text, (size_t)n, method, &fault)) {
        assert_always(fault.why != NULL);
        return 0;
    }
    assert_always(head.status >= 100 && head.status <= 599);
    bool bodiless =
        method == HTTP_METHOD_HEAD || head.status < 200 || head.status == 204 || head.status == 304;
    assert_always(bodiless == (head.body == HTTP_BODY_NONE));
    assert_always(head.body != HTTP_BODY_LENGTH || head.content_length_given);
    for (size_t i = 0; i < head.field_count; i++) {
        assert_always(http_is_token(head.fields[i].name));
        struct http_text value = head.fields[i].value;
        assert_always(value.length == 0 ||
                      (value.data > text && value.data + value.length <= text + n));
        for (size_t at = 0; at < value.length; at++)
            assert_always(value.data[at] != '\r' && value.data[at] != '\n');
    }
    return 0;
}
