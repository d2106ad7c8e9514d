/* gateway/http.h - a small, strict HTTP/1.1 reader (RFC 9112, RFC 9110) for requests and answers.
 *
 * It works on the caller's bytes, copies nothing and allocates nothing: texts in a head point into
 * the parsed bytes. First http_scan finds the end of the head (it may be called again and again as
 * bytes come and reads none twice), then http_request_parse or http_answer_parse reads it whole.
 *
 * Strict means refused: bare LF, bare CR, folded lines, NUL and other control bytes, a space before
 * a colon, more than one length, a length together with chunked, codings other than chunked. What
 * two readers could understand differently must not pass, since the code behind is one of them.
 *
 * Thread: any; nothing is shared. */
#ifndef SKERRY_GATEWAY_HTTP_H
#define SKERRY_GATEWAY_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/words.h"

#define HTTP_FIELDS_MAX 256
#define HTTP_METHOD_LENGTH_MAX 32
#define HTTP_CONNECTION_OPTIONS_MAX 32
#define HTTP_CHUNK_EXTENSION_BYTES_MAX 256            /* of one chunk */
#define HTTP_CHUNK_EXTENSIONS_BYTES_MAX (16u * 1024u) /* of one body */
#define HTTP_TRAILER_BYTES_MAX (8u * 1024u)

struct http_text {
    const char *data;
    size_t length;
};

enum http_method {
    HTTP_METHOD_OTHER,
    HTTP_METHOD_GET,
    HTTP_METHOD_HEAD,
    HTTP_METHOD_POST,
    HTTP_METHOD_PUT,
    HTTP_METHOD_DELETE,
    HTTP_METHOD_OPTIONS,
    HTTP_METHOD_TRACE,
    HTTP_METHOD_CONNECT,
};

/* The field names that the gateway does something about. */
enum http_name {
    HTTP_NAME_OTHER,
    HTTP_NAME_TE,
    HTTP_NAME_HOST,
    HTTP_NAME_ACCEPT,
    HTTP_NAME_COOKIE,
    HTTP_NAME_EXPECT,
    HTTP_NAME_TRAILER,
    HTTP_NAME_UPGRADE,
    HTTP_NAME_FORWARDED,
    HTTP_NAME_CONNECTION,
    HTTP_NAME_KEEP_ALIVE,
    HTTP_NAME_SET_COOKIE,
    HTTP_NAME_SKERRY_KEY,
    HTTP_NAME_TRACESTATE,
    HTTP_NAME_SKERRY_NODE,
    HTTP_NAME_TRACEPARENT,
    HTTP_NAME_SKERRY_ERROR,
    HTTP_NAME_SKERRY_START,
    HTTP_NAME_SKERRY_TOKEN,
    HTTP_NAME_AUTHORIZATION,
    HTTP_NAME_SKERRY_PREFER,
    HTTP_NAME_CONTENT_LENGTH,
    HTTP_NAME_HTTP2_SETTINGS,
    HTTP_NAME_SKERRY_DEADLINE,
    HTTP_NAME_SKERRY_INSTANCE,
    HTTP_NAME_X_FORWARDED_FOR,
    HTTP_NAME_PROXY_CONNECTION,
    HTTP_NAME_X_FORWARDED_HOST,
    HTTP_NAME_SKERRY_REQUEST_ID,
    HTTP_NAME_TRANSFER_ENCODING,
    HTTP_NAME_X_FORWARDED_PROTO,
    HTTP_NAME_PROXY_AUTHENTICATE,
    HTTP_NAME_X_FORWARDED_PREFIX,
    HTTP_NAME_PROXY_AUTHORIZATION,
    HTTP_NAME_COUNT
};

struct http_field {
    struct http_text name;
    struct http_text value; /* without the white space around it */
    enum http_name known;
    bool named_by_connection; /* a Connection field makes it hop-by-hop */
};

enum http_body {
    HTTP_BODY_NONE,
    HTTP_BODY_LENGTH,
    HTTP_BODY_CHUNKED,
    HTTP_BODY_UNTIL_CLOSE, /* answers only */
};

enum http_target { HTTP_TARGET_ORIGIN, HTTP_TARGET_ABSOLUTE, HTTP_TARGET_ASTERISK };

struct http_head {
    struct http_field fields[HTTP_FIELDS_MAX];
    size_t field_count;
    unsigned minor; /* HTTP/1.minor: 0 or 1 */
    enum http_body body;
    uint64_t content_length; /* HTTP_BODY_LENGTH; of a HEAD or 304 answer: what it announces */
    bool content_length_given;
    bool keep_alive; /* the sender lets the connection live */
    bool upgrade;    /* Connection: upgrade, and an Upgrade field */
    struct http_text upgrade_to;

    /* request */
    enum http_method method;
    struct http_text method_text;
    enum http_target target;
    struct http_text path;      /* with the query; may lack its first slash ("http://h?q") */
    struct http_text authority; /* of an absolute target, else the Host field; may be empty */
    bool expect_continue;
    bool te_trailers;

    /* answer */
    unsigned status;
    struct http_text reason;
};

/* Why something was refused: `why` is a constant sentence for the one who sent it. */
struct http_fault {
    enum problem problem;
    const char *why;
};

struct http_bounds {
    size_t head_bytes_max;   /* beyond: PROBLEM_HEADER_TOO_LARGE */
    size_t target_bytes_max; /* of a request: PROBLEM_URI_TOO_LONG */
};

/* How far the search for the end of a head has come. Zeroed at the beginning. */
struct http_scan {
    size_t at;
    size_t line;  /* where the line that `at` is in begins */
    size_t lines; /* whole lines seen */
    size_t begin; /* where the head begins: behind an empty line that a request may start with */
};

#define HTTP_MORE 0
#define HTTP_REFUSED (-1)

/* The length of the head that `data` begins with, with its empty line; HTTP_MORE if its end has not
 * come yet; HTTP_REFUSED with *fault. `data` may move between calls; `length` only grows. */
ptrdiff_t http_scan(struct http_scan *scan, const char *data, size_t length, bool request,
                    const struct http_bounds *bounds, struct http_fault *fault);
/* `data` and `length` as http_scan found them, from scan->begin on. False: refused. */
bool http_request_parse(struct http_head *head, const char *data, size_t length,
                        const struct http_bounds *bounds, struct http_fault *fault);
/* `method` is the one that this answers: it decides whether a body follows. */
bool http_answer_parse(struct http_head *head, const char *data, size_t length,
                       enum http_method method, struct http_fault *fault);
/* Trailer fields: lines as in a head, up to and with the empty line. */
bool http_trailers_parse(struct http_head *head, const char *data, size_t length,
                         struct http_fault *fault);

/* A chunked body as its bytes come. */
enum http_chunk_state {
    HTTP_CHUNK_SIZE,
    HTTP_CHUNK_EXTENSION,
    HTTP_CHUNK_SIZE_LF,
    HTTP_CHUNK_DATA,
    HTTP_CHUNK_DATA_CR,
    HTTP_CHUNK_DATA_LF,
    HTTP_CHUNK_TRAILERS, /* the caller collects; see http_chunked_read */
    HTTP_CHUNK_DONE,
};

struct http_chunked {
    enum http_chunk_state state;
    uint64_t remaining; /* of the chunk */
    unsigned digits;
    unsigned extension_bytes;
    unsigned extensions_bytes;
    unsigned trailer_bytes;
    bool trailer_line_empty; /* since the last line feed */
    char before;             /* the byte before, in trailers */
};

void http_chunked_init(struct http_chunked *c);
/* Reads from `data` up to the end of one span of content, of the trailers, or of the bytes; returns
 * how many it took, or HTTP_REFUSED. A span is set to content bytes or `length` 0; `trailers` to
 * bytes of the trailer section, which the caller keeps one behind the other until DONE (none, if
 * the section is just its empty line). */
ptrdiff_t http_chunked_read(struct http_chunked *c, const char *data, size_t length,
                            struct http_text *content, struct http_text *trailers,
                            struct http_fault *fault);

/* --- small things that others need too --- */
bool http_text_is(struct http_text text, const char *lower); /* without regard to case */
bool http_text_same(struct http_text a, struct http_text b); /* likewise */
/* Takes the next element of a comma-separated list from *list, trimmed; false at the end. */
bool http_list_next(struct http_text *list, struct http_text *out);
const struct http_field *http_field_find(const struct http_head *head, enum http_name name);
enum http_name http_name_find(struct http_text name);
bool http_is_token(struct http_text text);
bool http_method_idempotent(enum http_method method);
const char *http_status_phrase(unsigned status);

#endif
