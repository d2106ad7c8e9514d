#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "gateway/thread.h"

/* What a listener answers by itself: that it speaks HTTPS, where HTTPS is, and what an ACME server asks
 * for (RFC 8555, 8.3), from the folder that certbot calls its webroot.
 *
 * A challenge is read on the loop, although files are not read there elsewhere: it is one name in one
 * folder of the operator's own, a few hundred bytes that were written a moment ago, and its name must
 * be of base64url, so that nothing can be asked for that is not there. The kernel is told to resolve it
 * beneath the folder, without symbolic links; it must be a plain file of at most CHALLENGE_BYTES_MAX. */

enum {
    /* A token, a point and a digest: 87 characters with a token of today. */
    CHALLENGE_BYTES_MAX = 4096,
    CHALLENGE_NAME_MAX = 128,
    /* Of a host name there are 253 characters. */
    HOST_BYTES_MAX = 260,
};

#define CHALLENGES "/.well-known/acme-challenge/"

static bool name_valid(struct http_text name)
{
    for (size_t i = 0; i < name.length; i++) {
        char c = name.data[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!plain && c != '-' && c != '_')
            return false;
    }
    return name.length > 0 && name.length <= CHALLENGE_NAME_MAX;
}

/* How many bytes, or -1. */
static ssize_t challenge_read(const char *webroot, struct http_text name,
                              char out[CHALLENGE_BYTES_MAX + 1])
{
    char path[sizeof CHALLENGES + CHALLENGE_NAME_MAX];
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
                                      RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    struct stat s;
    CLEANUP_FD int folder = open(webroot, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 ||
        !text_format(path, sizeof path, "%s%.*s", &CHALLENGES[1], (int)name.length, name.data))
        return -1;
    CLEANUP_FD int fd = (int)syscall(SYS_openat2, folder, path, &how, sizeof how);
    if (fd < 0 || fstat(fd, &s) != 0 || !S_ISREG(s.st_mode))
        return -1;
    size_t length = 0;
    while (length <= CHALLENGE_BYTES_MAX) {
        ssize_t n = read(fd, out + length, CHALLENGE_BYTES_MAX + 1 - length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            return (ssize_t)length;
        length += (size_t)n;
    }
    return -1;
}

static enum dispatch refuse(struct connection *c, enum problem problem, const char *detail)
{
    answer_problem_simple(c, problem, RAN_NO, detail);
    return DISPATCH_ANSWERED;
}

static enum dispatch answer_challenge(struct connection *c, const struct http_head *head,
                                      struct http_text name)
{
    char text[CHALLENGE_BYTES_MAX + 1];
    if (head->method != HTTP_METHOD_GET && head->method != HTTP_METHOD_HEAD)
        return refuse(c, PROBLEM_METHOD_NOT_ALLOWED, "challenges of ACME are read with GET");
    ssize_t length = name_valid(name)
                         ? challenge_read(c->thread->gateway->options.acme_webroot, name, text)
                         : -1;
    if (length < 0)
        return refuse(c, PROBLEM_NOT_FOUND, "there is no such challenge of ACME here");
    answer_bytes(c, text, (size_t)length);
    return DISPATCH_ANSWERED;
}

/* Without the port. */
static struct http_text host_of(struct http_text authority)
{
    const char *end = authority.data;
    if (authority.length > 0 && authority.data[0] == '[')
        end = memchr(authority.data, ']', authority.length);
    if (authority.length == 0 || end == NULL)
        return authority;
    size_t before = (size_t)(end - authority.data);
    const char *colon = memchr(end, ':', authority.length - before);
    if (colon != NULL)
        authority.length = (size_t)(colon - authority.data);
    return authority;
}

static bool path_is(struct http_text path, const char *text)
{
    size_t length = strlen(text);
    return path.length >= length && memcmp(path.data, text, length) == 0 &&
           (path.length == length || path.data[length] == '?');
}

static enum dispatch redirect(struct connection *c, const struct http_head *head)
{
    struct http_text host = host_of(head->authority);
    /* Whoever balances load looks here too. */
    if (path_is(head->path, "/livez") || path_is(head->path, "/readyz"))
        return DISPATCH_READY;
    if (host.length == 0 || host.length > HOST_BYTES_MAX)
        return refuse(c, PROBLEM_BAD_REQUEST,
                      "this port only leads to https://HOST, and the request names no host");
    if (head->target == HTTP_TARGET_ASTERISK)
        return refuse(c, PROBLEM_BAD_REQUEST, "this port only leads to HTTPS");
    answer_redirect(c, host, c->thread->gateway->https_port, head->path);
    return DISPATCH_ANSWERED;
}

enum dispatch front_answer(struct connection *c, const struct http_head *head)
{
    static const struct http_text challenges = {CHALLENGES, sizeof CHALLENGES - 1};
    struct http_text path = head->path;
    if (c->kind == LISTENER_TLS && c->tls == NULL) {
        c->x.keep_alive = false;
        return refuse(c, PROBLEM_BAD_REQUEST,
                      "this port speaks HTTPS, and the request came without: ask https://");
    }
    if (c->thread->gateway->options.acme_webroot != NULL && path.length >= challenges.length &&
        memcmp(path.data, challenges.data, challenges.length) == 0) {
        path.data += challenges.length;
        path.length -= challenges.length;
        const char *query = memchr(path.data, '?', path.length);
        if (query != NULL)
            path.length = (size_t)(query - path.data);
        return answer_challenge(c, head, path);
    }
    return c->kind == LISTENER_REDIRECT ? redirect(c, head) : DISPATCH_READY;
}
