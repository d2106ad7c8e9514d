#include <string.h>

#include "gateway/http.h"

/*   SIZE --;--> EXTENSION --CR--> SIZE_LF --size--> DATA -> DATA_CR -> DATA_LF -> SIZE
 *    `---------CR------------------^  `----0----> TRAILERS --empty line--> DONE            */

enum { SIZE_DIGITS_MAX = 15 }; /* 60 bits: sums of sizes do not overflow */

void http_chunked_init(struct http_chunked *c)
{
    *c = (struct http_chunked){.state = HTTP_CHUNK_SIZE};
}

static bool refuse(struct http_fault *fault, const char *why)
{
    *fault = (struct http_fault){PROBLEM_BAD_REQUEST, why};
    return false;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static bool size_byte(struct http_chunked *c, char byte, struct http_fault *fault)
{
    int value = hex_value(byte);
    if (value >= 0 && c->digits < SIZE_DIGITS_MAX) {
        c->remaining = c->remaining * 16 + (uint64_t)value;
        c->digits++;
        return true;
    }
    if (c->digits > 0 && byte == ';') {
        c->state = HTTP_CHUNK_EXTENSION;
        c->extension_bytes = 0;
        return true;
    }
    if (c->digits > 0 && byte == '\r') {
        c->state = HTTP_CHUNK_SIZE_LF;
        return true;
    }
    return refuse(fault, "a chunk size is malformed");
}

static bool extension_byte(struct http_chunked *c, char byte, struct http_fault *fault)
{
    if (byte == '\r') {
        c->state = HTTP_CHUNK_SIZE_LF;
        return true;
    }
    c->extension_bytes++;
    c->extensions_bytes++;
    unsigned char u = (unsigned char)byte;
    bool control = (u < 0x20 && u != '\t') || u == 0x7f;
    if (control || c->extension_bytes > HTTP_CHUNK_EXTENSION_BYTES_MAX ||
        c->extensions_bytes > HTTP_CHUNK_EXTENSIONS_BYTES_MAX)
        return refuse(fault, "a chunk extension is malformed or too long");
    return true;
}

/* One byte outside of content and trailers. */
static bool frame_byte(struct http_chunked *c, char byte, struct http_fault *fault)
{
    switch (c->state) {
    case HTTP_CHUNK_SIZE:
        return size_byte(c, byte, fault);
    case HTTP_CHUNK_EXTENSION:
        return extension_byte(c, byte, fault);
    case HTTP_CHUNK_SIZE_LF:
        c->state = c->remaining > 0 ? HTTP_CHUNK_DATA : HTTP_CHUNK_TRAILERS;
        c->trailer_line_empty = true;
        c->before = '\n';
        break;
    case HTTP_CHUNK_DATA_CR:
        if (byte != '\r')
            return refuse(fault, "a chunk is longer than its size");
        c->state = HTTP_CHUNK_DATA_LF;
        return true;
    case HTTP_CHUNK_DATA_LF:
        c->state = HTTP_CHUNK_SIZE;
        c->digits = 0;
        break;
    default:
        return true;
    }
    if (byte != '\n')
        return refuse(fault, "a CR in the framing of chunks is not followed by LF");
    return true;
}

/* Takes trailer bytes up to and with the empty line. */
static bool trailers_read(struct http_chunked *c, const char *data, size_t length,
                          struct http_text *trailers, struct http_fault *fault)
{
    size_t n = 0;
    while (n < length && c->state == HTTP_CHUNK_TRAILERS) {
        char byte = data[n++];
        if (byte == '\n') {
            if (c->before != '\r')
                return refuse(fault, "a trailer line ends in LF without CR");
            if (c->trailer_line_empty)
                c->state = HTTP_CHUNK_DONE;
            c->trailer_line_empty = true;
        } else if (c->before == '\r') {
            return refuse(fault, "a trailer line holds a CR");
        } else if (byte != '\r') {
            c->trailer_line_empty = false;
        }
        c->before = byte;
    }
    if (n > HTTP_TRAILER_BYTES_MAX - c->trailer_bytes)
        return refuse(fault, "the trailers are too large");
    c->trailer_bytes += (unsigned)n;
    *trailers = (struct http_text){data, n};
    return true;
}

ptrdiff_t http_chunked_read(struct http_chunked *c, const char *data, size_t length,
                            struct http_text *content, struct http_text *trailers,
                            struct http_fault *fault)
{
    *content = (struct http_text){data, 0};
    *trailers = (struct http_text){data, 0};
    size_t at = 0;
    while (at < length && c->state != HTTP_CHUNK_DONE) {
        if (c->state == HTTP_CHUNK_DATA) {
            size_t n = length - at;
            if (n >= c->remaining) {
                n = (size_t)c->remaining;
                c->state = HTTP_CHUNK_DATA_CR;
            }
            c->remaining -= n;
            *content = (struct http_text){data + at, n};
            return (ptrdiff_t)(at + n);
        }
        if (c->state == HTTP_CHUNK_TRAILERS) {
            if (!trailers_read(c, data + at, length - at, trailers, fault))
                return HTTP_REFUSED;
            return (ptrdiff_t)(at + trailers->length);
        }
        if (!frame_byte(c, data[at], fault))
            return HTTP_REFUSED;
        at++;
    }
    return (ptrdiff_t)at;
}
