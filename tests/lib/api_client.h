/* tests/lib/api_client.h - clients of the fake node's API: one of requests (libcurl), one of bytes.
 *
 * Header only; asserts by cmocka. */
#ifndef SKERRY_TESTS_LIB_API_CLIENT_H
#define SKERRY_TESTS_LIB_API_CLIENT_H

#include "tests/lib/api_fake.h"

/* --- a client ----------------------------------------------------------------------------------- */

struct answer {
    long status;
    char *body;
    size_t length, capacity;
    char headers[8192]; /* and trailers */
    CURLcode code;
};

struct request {
    const char *method; /* NULL: GET */
    const char *path;
    const char *token; /* NULL: none; ADMIN: the fake's */
    const char *headers[6];
    const char *body;
    size_t body_length;
    bool tcp; /* else the unix socket */
    long timeout_ms;
};
#define ADMIN ((const char *)1)

static size_t client_body_cb(char *data, size_t size, size_t count, void *user)
{
    struct answer *a = user;
    if (a->length + size * count + 1 > a->capacity) {
        /* Twice as much: sanitizers take long to copy a large body again and again. */
        size_t capacity = 2 * (a->length + size * count + 1);
        char *more = realloc(a->body, capacity);
        if (more == NULL)
            return 0;
        a->body = more;
        a->capacity = capacity;
    }
    memcpy(a->body + a->length, data, size * count);
    a->length += size * count;
    a->body[a->length] = '\0';
    return size * count;
}

static size_t client_header_cb(char *data, size_t size, size_t count, void *user)
{
    struct answer *a = user;
    size_t used = strlen(a->headers);
    if (used + size * count < sizeof(a->headers)) {
        memcpy(a->headers + used, data, size * count);
        a->headers[used + size * count] = '\0';
    }
    return size * count;
}

static struct answer client(struct fake *f, const struct request *q)
{
    struct answer a = {.body = calloc(1, 1)};
    CURL *curl = curl_easy_init();
    char url[32768];
    char token[128];
    struct curl_slist *headers = curl_slist_append(NULL, "Expect:");
    (void)text_format(url, sizeof(url), "http://127.0.0.1:%u%s", f->port, q->path);
    (void)curl_easy_setopt(curl, CURLOPT_URL, url);
    (void)curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    (void)curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, q->timeout_ms != 0 ? q->timeout_ms : 20000L);
    if (!q->tcp)
        (void)curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, f->socket_path);
    if (q->token != NULL) {
        (void)text_format(token, sizeof(token), "Skerry-Token: %s",
                          q->token == ADMIN ? f->admin : q->token);
        headers = curl_slist_append(headers, token);
    }
    for (size_t i = 0; i < ARRAY_SIZE(q->headers) && q->headers[i] != NULL; i++)
        headers = curl_slist_append(headers, q->headers[i]);
    (void)curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    if (q->body != NULL) {
        (void)curl_easy_setopt(
            curl, CURLOPT_POSTFIELDSIZE_LARGE,
            (curl_off_t)(q->body_length != 0 ? q->body_length : strlen(q->body)));
        (void)curl_easy_setopt(curl, CURLOPT_POSTFIELDS, q->body);
    }
    if (q->method != NULL && strcmp(q->method, "HEAD") == 0)
        (void)curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    else if (q->method != NULL)
        (void)curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, q->method);
    (void)curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, client_body_cb);
    (void)curl_easy_setopt(curl, CURLOPT_WRITEDATA, &a);
    (void)curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, client_header_cb);
    (void)curl_easy_setopt(curl, CURLOPT_HEADERDATA, &a);
    a.code = curl_easy_perform(curl);
    (void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &a.status);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    return a;
}

static void answer_free(struct answer *a)
{
    free(a->body);
    a->body = NULL;
}

/* One request, its status checked; the answer's body as JSON, NULL if it is none. */
static json_t *client_json(struct fake *f, const struct request *q, long status)
{
    struct answer a = client(f, q);
    if (a.status != status)
        fail_msg("%s %s: %ld, not %ld: %s (%s)", q->method != NULL ? q->method : "GET", q->path,
                 a.status, status, a.body, curl_easy_strerror(a.code));
    json_t *json = json_loadb(a.body, a.length, JSON_DECODE_ANY, NULL);
    answer_free(&a);
    return json;
}

/* The request is refused with this code, everywhere where it is said. */
static void client_refused(struct fake *f, const struct request *q, enum problem problem)
{
    const struct problem_word *word = problem_word(problem);
    struct answer a = client(f, q);
    char header[64];
    if (a.status != word->status)
        fail_msg("%s: %ld, not %d: %s", q->path, a.status, word->status, a.body);
    (void)text_format(header, sizeof(header), "Skerry-Error: %s\r\n", word->code);
    if (q->method == NULL || strcmp(q->method, "HEAD") != 0) {
        json_t *json = json_loadb(a.body, a.length, 0, NULL);
        assert_non_null(json);
        assert_string_equal(json_string_value(json_object_get(json, "code")), word->code);
        assert_int_equal(json_integer_value(json_object_get(json, "status")), word->status);
        assert_non_null(json_object_get(json, "ran"));
        assert_non_null(json_object_get(json, "request_id"));
        json_decref(json);
        assert_non_null(strstr(a.headers, "application/problem+json"));
    }
    assert_non_null(strstr(a.headers, header));
    answer_free(&a);
}

/* --- a client of bytes -------------------------------------------------------------------------- */

static inline int raw_connect(struct fake *f, bool tcp)
{
    int fd;
    if (tcp) {
        struct sockaddr_in address = {.sin_family = AF_INET,
                                      .sin_port = htons((uint16_t)f->port),
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    } else {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        (void)text_copy(address.sun_path, sizeof(address.sun_path), f->socket_path);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    }
    struct timeval wait = {.tv_sec = FAKE_WAIT_MS / 1000};
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
    return fd;
}

static inline void raw_send(int fd, const void *data, size_t size)
{
    const char *at = data;
    while (size > 0) {
        ssize_t count = send(fd, at, size, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue; /* the end of a child reaches this thread, as the API's blocks it */
        if (count <= 0)
            fail_msg("send: %s", strerror(errno));
        at += count;
        size -= (size_t)count;
    }
}

static inline bool raw_read(int fd, void *out, size_t size)
{
    char *at = out;
    while (size > 0) {
        ssize_t count = recv(fd, at, size, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return false;
        at += count;
        size -= (size_t)count;
    }
    return true;
}

/* Reads up to the blank line. */
static inline void raw_head(int fd, char *out, size_t size)
{
    size_t used = 0;
    while (used + 1 < size && raw_read(fd, out + used, 1)) {
        out[++used] = '\0';
        if (used >= 4 && memcmp(out + used - 4, "\r\n\r\n", 4) == 0)
            return;
    }
    out[used] = '\0';
}

#endif
