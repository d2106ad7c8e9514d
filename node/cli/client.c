#include "node/cli/client.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/memory.h"
#include "node/cli/home.h"
#include "sandbox/shared/userns.h"

#define HEAD_BYTES_MAX (64u * 1024)
#define CONNECT_TIMEOUT_MS 5000L

struct client {
    CURL *curl; /* NULL until it is needed: libcurl takes longer to start than most commands */
    char *socket_path; /* NULL: over TCP */
    char *origin;      /* "http://127.0.0.1:8081" */
    char *address;     /* as users write it */
    char token[CLIENT_TOKEN_LENGTH_MAX + 1];
};

/* --- where and who ---------------------------------------------------------------------------- */

/* The socket that is meant when nobody says: a user's own node before the machine's. */
static char *default_socket(void)
{
    char path[sizeof((struct sockaddr_un){0}.sun_path)];
    if (geteuid() == 0 && userns_is_machine())
        return strdup(CLIENT_ADDRESS_DEFAULT);
    for (int link = 0; link < HOME_LINK_COUNT; link++)
        if (home_socket((enum home_link)link, path, sizeof path) && access(path, F_OK) == 0)
            return strdup(path);
    return strdup(CLIENT_ADDRESS_DEFAULT);
}

static int set_address(struct client *c, const char *address, struct err *e)
{
    static const char unix_prefix[] = "unix:";
    if (address == NULL)
        address = getenv("SKERRY_ADDR");
    if (address == NULL || address[0] == '\0') {
        c->socket_path = default_socket();
        c->address = c->socket_path == NULL ? NULL : text_new("unix:%s", c->socket_path);
        c->origin = strdup("http://localhost");
    } else if (strncmp(address, unix_prefix, sizeof unix_prefix - 1) == 0 || address[0] == '/') {
        const char *path = address[0] == '/' ? address : address + sizeof unix_prefix - 1;
        c->socket_path = strdup(path);
        c->address = text_new("unix:%s", path);
        c->origin = strdup("http://localhost");
    } else {
        const char *scheme = strstr(address, "://");
        if (scheme != NULL && strncmp(address, "http://", 7) != 0 &&
            strncmp(address, "https://", 8) != 0)
            return err_set(e, ERR_INVALID,
                           "address %.120s: write unix:PATH, HOST:PORT or http://HOST:PORT",
                           address);
        c->origin = scheme != NULL ? strdup(address) : text_new("http://%s", address);
        c->address = strdup(address);
        size_t length = c->origin == NULL ? 0 : strlen(c->origin);
        while (length > 0 && c->origin[length - 1] == '/')
            c->origin[--length] = '\0';
    }
    if (c->origin == NULL || c->address == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    return 0;
}

static int read_token(char *out, size_t size, const char *path, struct err *e)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "token file %s", path);
    ssize_t n = read(fd, out, size);
    if (n < 0)
        return err_sys(e, ERR_IO, errno, "read token file %s", path);
    if ((size_t)n == size)
        return err_set(e, ERR_INVALID, "token file %s is too long for a token", path);
    out[n] = '\0';
    out[strcspn(out, "\r\n \t")] = '\0';
    if (out[0] == '\0')
        return err_set(e, ERR_INVALID, "token file %s is empty", path);
    return 0;
}

static int set_token(struct client *c, const char *file, struct err *e)
{
    if (file != NULL) {
        int rc = read_token(c->token, sizeof c->token, file, e);
        if (rc != 0)
            return rc;
    } else {
        const char *text = getenv("SKERRY_TOKEN");
        if (text != NULL && !text_copy(c->token, sizeof c->token, text))
            return err_set(e, ERR_INVALID, "SKERRY_TOKEN is too long for a token");
    }
    for (const char *p = c->token; *p != '\0'; p++) {
        if (*p <= ' ' || *p > '~')
            return err_set(e, ERR_INVALID, "the token holds a character that no token has");
    }
    return 0;
}

int client_open(struct client **out, const struct client_options *options, struct err *e)
{
    struct client *c = calloc(1, sizeof *c);
    if (c == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    int rc = set_address(c, options->address, e);
    if (rc == 0)
        rc = set_token(c, options->token_file, e);
    if (rc != 0) {
        client_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

void client_close(struct client *c)
{
    if (c == NULL)
        return;
    if (c->curl != NULL)
        curl_easy_cleanup(c->curl);
    explicit_bzero(c->token, sizeof c->token);
    free(c->socket_path);
    free(c->origin);
    free(c->address);
    free(c);
}

const char *client_address(const struct client *c)
{
    return c->address;
}

/* --- one exchange ----------------------------------------------------------------------------- */

struct exchange {
    const struct client_request *request;
    struct client_answer *answer;
    struct err err; /* of a callback */
    bool failed, head_done;
    char curl_text[CURL_ERROR_SIZE];
};

static void exchange_fail(struct exchange *x, enum err_code code, const char *text)
{
    x->failed = true;
    err_set(&x->err, code, "%s", text);
}

static size_t take_header(char *data, size_t size, size_t count, void *user)
{
    struct exchange *x = user;
    struct buffer *head = &x->answer->head;
    size_t length = size * count;
    /* A new status line: what came before was interim (100, 103). */
    if (length > 5 && memcmp(data, "HTTP/", 5) == 0)
        head->length = 0;
    if (!buffer_append(head, data, length)) {
        exchange_fail(x, ERR_PROTOCOL, "the answer's headers are too long");
        return 0;
    }
    return length;
}

static bool head_once(struct exchange *x, unsigned status)
{
    if (x->head_done)
        return true;
    x->head_done = true;
    x->answer->status = status;
    const struct client_request *r = x->request;
    if (r->head == NULL)
        return true;
    x->failed = r->head(r->user, x->answer->head.data, x->answer->head.length, &x->err) != 0;
    return !x->failed;
}

static unsigned status_of(const struct buffer *head)
{
    if (head->length < 12)
        return 0;
    return (unsigned)strtoul(head->data + 9, NULL, 10);
}

static size_t take_body(char *data, size_t size, size_t count, void *user)
{
    struct exchange *x = user;
    const struct client_request *r = x->request;
    size_t length = size * count;
    unsigned status = status_of(&x->answer->head);
    if (!head_once(x, status))
        return 0;
    if (r->sink != NULL && (r->any_status || status / 100 == 2)) {
        x->failed = r->sink(r->user, data, length, &x->err) != 0;
        return x->failed ? 0 : length;
    }
    if (!buffer_append(&x->answer->body, data, length)) {
        exchange_fail(x, ERR_LIMIT, "the answer is too long");
        return 0;
    }
    return length;
}

static size_t give_body(char *out, size_t size, size_t count, void *user)
{
    struct exchange *x = user;
    size_t length = 0;
    x->failed = x->request->source(x->request->user, out, size * count, &length, &x->err) != 0;
    return x->failed ? CURL_READFUNC_ABORT : length;
}

static int add_header(struct curl_slist **list, const char *text, struct err *e)
{
    struct curl_slist *longer = curl_slist_append(*list, text);
    if (longer == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    *list = longer;
    return 0;
}

static int add_header_value(struct curl_slist **list, const char *name, const char *value,
                            struct err *e)
{
    CLEANUP_FREE char *line = text_new("%s: %s", name, value);
    if (line == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    int rc = add_header(list, line, e);
    explicit_bzero(line, strlen(line));
    return rc;
}

static int make_headers(const struct client *c, const struct client_request *r,
                        struct curl_slist **list, struct err *e)
{
    bool body = r->body != NULL || r->source != NULL;
    const char *type = r->content_type != NULL ? r->content_type : "application/json";
    int rc = add_header(list, "Expect:", e);
    if (rc == 0)
        rc = body ? add_header_value(list, "Content-Type", type, e)
                  : add_header(list, "Content-Type:", e);
    if (rc == 0 && r->accept != NULL)
        rc = add_header_value(list, "Accept", r->accept, e);
    if (rc == 0 && c->token[0] != '\0')
        rc = add_header_value(list, "Skerry-Token", c->token, e);
    for (size_t i = 0; rc == 0 && r->headers != NULL && r->headers[i] != NULL; i++)
        rc = i < CLIENT_HEADERS_MAX ? add_header(list, r->headers[i], e)
                                    : err_set(e, ERR_LIMIT, "too many headers");
    return rc;
}

static int curl_start(struct client *c, struct err *e)
{
    if (c->curl == NULL &&
        (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK || (c->curl = curl_easy_init()) == NULL))
        return err_set(e, ERR_NO_MEMORY, "libcurl does not start");
    return 0;
}

static void common_options(const struct client *c, const char *base)
{
    CURL *h = c->curl;
    curl_easy_reset(h);
    curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h, CURLOPT_PROXY, "");
    curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_TIMEOUT_MS);
    curl_easy_setopt(h, CURLOPT_USERAGENT, "skerry/" SKERRY_VERSION);
    curl_easy_setopt(h, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(h, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    if (base == NULL && c->socket_path != NULL)
        curl_easy_setopt(h, CURLOPT_UNIX_SOCKET_PATH, c->socket_path);
}

static int explain_failure(const struct client *c, const struct client_request *r, CURLcode code,
                           const struct exchange *x, struct err *e)
{
    const char *where = r->base != NULL ? r->base : c->address;
    const char *text = x->curl_text[0] != '\0' ? x->curl_text : curl_easy_strerror(code);
    long number = 0;
    (void)curl_easy_getinfo(c->curl, CURLINFO_OS_ERRNO, &number);
    /* libcurl's text would speak of a port. */
    if (code == CURLE_COULDNT_CONNECT && r->base == NULL && c->socket_path != NULL && number > 0)
        return err_sys(e, ERR_UNAVAILABLE, (int)number, "no node answers at %s", where);
    switch (code) {
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
        return err_set(e, ERR_UNAVAILABLE, "no node answers at %s: %s", where, text);
    case CURLE_OPERATION_TIMEDOUT:
        return err_set(e, x->answer->head.length == 0 ? ERR_UNAVAILABLE : ERR_TIMEOUT, "%s: %s",
                       where, text);
    case CURLE_URL_MALFORMAT:
        return err_set(e, ERR_INVALID, "%s is no address", where);
    default:
        return err_set(e, x->answer->head.length == 0 ? ERR_UNAVAILABLE : ERR_IO, "%s: %s", where,
                       text);
    }
}

static void configure(struct client *c, const struct client_request *r, const char *url,
                      struct curl_slist *headers, struct exchange *x)
{
    CURL *h = c->curl;
    const char *method = r->method != NULL ? r->method : "GET";
    common_options(c, r->base);
    curl_easy_setopt(h, CURLOPT_URL, url);
    curl_easy_setopt(h, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(h, CURLOPT_ERRORBUFFER, x->curl_text);
    curl_easy_setopt(h, CURLOPT_TIMEOUT_MS, (long)r->timeout_ms);
    curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(h, CURLOPT_HEADERDATA, x);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, x);
    if (r->source != NULL) {
        curl_easy_setopt(h, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(h, CURLOPT_READFUNCTION, give_body);
        curl_easy_setopt(h, CURLOPT_READDATA, x);
        if (r->source_length > 0)
            curl_easy_setopt(h, CURLOPT_INFILESIZE_LARGE, (curl_off_t)r->source_length);
    } else if (r->body != NULL) {
        curl_easy_setopt(h, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body_length);
        curl_easy_setopt(h, CURLOPT_POSTFIELDS, r->body);
    }
    if (strcmp(method, "HEAD") == 0)
        curl_easy_setopt(h, CURLOPT_NOBODY, 1L);
    curl_easy_setopt(h, CURLOPT_CUSTOMREQUEST, method);
}

int client_do(struct client *c, const struct client_request *r, struct client_answer *answer,
              struct err *e)
{
    *answer = (struct client_answer){0};
    buffer_init(&answer->head, HEAD_BYTES_MAX);
    buffer_init(&answer->body, CLIENT_ANSWER_BYTES_MAX);
    struct exchange x = {.request = r, .answer = answer};
    CLEANUP_FREE char *url = text_new("%s%s", r->base != NULL ? r->base : c->origin, r->path);
    if (url == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    struct curl_slist *headers = NULL;
    int rc = curl_start(c, e);
    if (rc == 0)
        rc = make_headers(c, r, &headers, e);
    if (rc != 0)
        goto done;
    configure(c, r, url, headers, &x);
    CURLcode code = curl_easy_perform(c->curl);
    answer->status = status_of(&answer->head);
    /* A refusal that came before the whole body was sent is an answer all the same. */
    bool answered =
        code == CURLE_OK || (answer->status >= 400 && answer->body.length > 0 && r->source != NULL);
    if (answered && !x.failed)
        (void)head_once(&x, answer->status);
    if (!x.failed) {
        rc = answered ? 0 : explain_failure(c, r, code, &x, e);
    } else {
        if (e != NULL)
            *e = x.err;
        rc = -(int)x.err.code;
    }
done:
    if (headers != NULL)
        curl_slist_free_all(headers);
    return rc;
}

void client_answer_free(struct client_answer *answer)
{
    buffer_free(&answer->head);
    buffer_free(&answer->body);
}

bool client_header(const struct client_answer *answer, const char *name, char *out, size_t size)
{
    const char *p = answer->head.data;
    const char *end = p + answer->head.length;
    size_t name_length = strlen(name);
    while (p != NULL && p < end) {
        const char *line_end = memchr(p, '\n', (size_t)(end - p));
        if (line_end == NULL)
            line_end = end;
        if ((size_t)(line_end - p) > name_length && p[name_length] == ':' &&
            strncasecmp(p, name, name_length) == 0) {
            const char *value = p + name_length + 1;
            while (value < line_end && (*value == ' ' || *value == '\t'))
                value++;
            while (line_end > value && (line_end[-1] == '\r' || line_end[-1] == ' '))
                line_end--;
            return text_format(out, size, "%.*s", (int)(line_end - value), value);
        }
        p = line_end + 1;
    }
    return false;
}

json_t *client_json(const struct client_answer *answer)
{
    return json_loadb(answer->body.data == NULL ? "" : answer->body.data, answer->body.length,
                      JSON_DECODE_ANY, NULL);
}

bool client_encode(char *out, size_t size, const char *text)
{
    static const char digits[] = "0123456789ABCDEF";
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~";
    size_t n = 0;
    for (; *text != '\0'; text++) {
        bool keep = strchr(plain, *text) != NULL;
        if (n + (keep ? 1 : 3) >= size)
            return false;
        if (keep) {
            out[n++] = *text;
            continue;
        }
        unsigned char byte = (unsigned char)*text;
        out[n++] = '%';
        out[n++] = digits[byte >> 4];
        out[n++] = digits[byte & 15];
    }
    out[n] = '\0';
    return true;
}

/* --- upgrade ---------------------------------------------------------------------------------- */

static int send_all(int fd, const char *data, size_t length, struct err *e)
{
    while (length > 0) {
        ssize_t n = send(fd, data, length, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            (void)poll(&p, 1, -1);
            continue;
        }
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "send the request");
        data += n;
        length -= (size_t)n;
    }
    return 0;
}

/* Whether the head is whole now; what came behind it goes to the body. */
static int split_head(struct client_answer *answer, struct err *e)
{
    struct buffer *head = &answer->head;
    const char *end = memmem(head->data, head->length, "\r\n\r\n", 4);
    if (end == NULL)
        return 0;
    size_t length = (size_t)(end + 4 - head->data);
    if (!buffer_append(&answer->body, head->data + length, head->length - length))
        return err_set(e, ERR_NO_MEMORY, "no memory");
    head->length = length;
    answer->status = status_of(head);
    return answer->status != 0 ? 0 : err_set(e, ERR_PROTOCOL, "the node's answer is not HTTP");
}

/* A refusal is short, and has a length or ends with the connection. */
static bool is_whole(const struct client_answer *answer)
{
    char text[24] = "";
    return answer->status == 101 || (client_header(answer, "Content-Length", text, sizeof text) &&
                                     answer->body.length >= strtoull(text, NULL, 10));
}

int client_upgrade_take(int fd, struct client_answer *answer, bool *out_whole, struct err *e)
{
    char data[16384];
    *out_whole = false;
    while (!*out_whole) {
        ssize_t n = recv(fd, data, sizeof data, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "read the answer");
        if (n == 0 && answer->status == 0)
            return err_set(e, ERR_IO, "the connection was closed before an answer came");
        if (!buffer_append(answer->status == 0 ? &answer->head : &answer->body, data, (size_t)n))
            return err_set(e, ERR_LIMIT, "the answer is too long");
        int rc = answer->status == 0 ? split_head(answer, e) : 0;
        if (rc != 0)
            return rc;
        *out_whole = answer->status != 0 && (n == 0 || is_whole(answer));
    }
    return 0;
}

static int send_upgrade(const struct client *c, int fd, const char *path, const char *body,
                        struct err *e)
{
    const char *host = strstr(c->origin, "://");
    struct buffer b;
    buffer_init(&b, 2u * 1024 * 1024);
    bool fits = buffer_printf(&b,
                              "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: skerry/" SKERRY_VERSION
                              "\r\nConnection: Upgrade\r\nUpgrade: skerry-exec/1\r\n"
                              "Content-Type: application/json\r\nContent-Length: %zu\r\n",
                              path, host == NULL ? "localhost" : host + 3, strlen(body));
    if (fits && c->token[0] != '\0')
        fits = buffer_printf(&b, "Skerry-Token: %s\r\n", c->token);
    fits = fits && buffer_append_text(&b, "\r\n") && buffer_append_text(&b, body);
    int rc = fits ? send_all(fd, b.data, b.length, e)
                  : err_set(e, ERR_LIMIT, "the command is longer than a request may be");
    if (b.data != NULL)
        explicit_bzero(b.data, b.length);
    buffer_free(&b);
    return rc;
}

static int connect_socket(const struct client *c, struct err *e)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!text_copy(address.sun_path, sizeof address.sun_path, c->socket_path))
        return err_set(e, ERR_INVALID, "%s is longer than a socket's path may be", c->socket_path);
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* A node that is there and accepts nobody is waited for, but not for long. */
    const struct timeval wait = {.tv_sec = CONNECT_TIMEOUT_MS / 1000};
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) < 0 ||
        connect(fd, (const struct sockaddr *)&address, sizeof address) < 0)
        return err_sys(e, ERR_UNAVAILABLE, errno, "no node answers at %s", c->address);
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        return err_sys(e, ERR_IO, errno, "keep the connection");
    return steal_fd(&fd);
}

static int connect_tcp(struct client *c, struct client_answer *answer, struct err *e)
{
    int rc = curl_start(c, e);
    if (rc != 0)
        return rc;
    const struct client_request r = {0};
    struct exchange x = {.request = &r, .answer = answer};
    common_options(c, NULL);
    curl_easy_setopt(c->curl, CURLOPT_URL, c->origin);
    curl_easy_setopt(c->curl, CURLOPT_CONNECT_ONLY, 1L);
    curl_easy_setopt(c->curl, CURLOPT_ERRORBUFFER, x.curl_text);
    CURLcode code = curl_easy_perform(c->curl);
    curl_socket_t socket = CURL_SOCKET_BAD;
    if (code == CURLE_OK)
        code = curl_easy_getinfo(c->curl, CURLINFO_ACTIVESOCKET, &socket);
    if (code != CURLE_OK)
        return explain_failure(c, &r, code, &x, e);
    if (strncmp(c->origin, "https:", 6) == 0)
        return err_set(e, ERR_UNSUPPORTED, "run, exec and proxy need a plain http or unix address");
    int fd = fcntl(socket, F_DUPFD_CLOEXEC, 3);
    int sys = errno;
    /* libcurl keeps a descriptor of its own, which would keep the connection open. */
    curl_easy_cleanup(c->curl);
    c->curl = NULL;
    return fd < 0 ? err_sys(e, ERR_IO, sys, "keep the connection") : fd;
}

int client_upgrade_begin(struct client *c, const char *path, const char *body, int *out_fd,
                         struct client_answer *answer, struct err *e)
{
    *out_fd = -1;
    *answer = (struct client_answer){0};
    buffer_init(&answer->head, HEAD_BYTES_MAX);
    buffer_init(&answer->body, CLIENT_ANSWER_BYTES_MAX);
    CLEANUP_FD int fd = c->socket_path != NULL ? connect_socket(c, e) : connect_tcp(c, answer, e);
    if (fd < 0)
        return fd;
    int rc = send_upgrade(c, fd, path, body, e);
    if (rc == 0)
        *out_fd = steal_fd(&fd);
    return rc;
}

int client_upgrade(struct client *c, const char *path, const char *body, int *out_fd,
                   struct client_answer *answer, struct err *e)
{
    CLEANUP_FD int fd = -1;
    bool whole = false;
    *out_fd = -1;
    int rc = client_upgrade_begin(c, path, body, &fd, answer, e);
    while (rc == 0 && !whole) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        (void)poll(&p, 1, -1);
        rc = client_upgrade_take(fd, answer, &whole, e);
    }
    if (rc == 0 && answer->status == 101)
        *out_fd = steal_fd(&fd);
    return rc;
}
