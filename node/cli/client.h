/* node/cli/client.h - the command line's way to a node: its API over a unix socket or TCP, and joins
 * through its gateway.
 *
 * Thread: one. Blocks. Secrets: the token is sent as Skerry-Token and appears in no error.
 *
 * An answer of any status is success here (0): only what has no answer is an error, ERR_UNAVAILABLE
 * when nobody could be reached, ERR_IO when the answer broke off, or what a callback returned. */
#ifndef SKERRY_NODE_CLI_CLIENT_H
#define SKERRY_NODE_CLI_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/err.h"

#define CLIENT_ADDRESS_DEFAULT "/run/skerry/api.sock"
#define CLIENT_TOKEN_LENGTH_MAX 256
#define CLIENT_ANSWER_BYTES_MAX (64u * 1024 * 1024)
#define CLIENT_HEADERS_MAX 64

struct client_options {
    const char *address;    /* "unix:PATH", "HOST:PORT", "http://HOST:PORT"; NULL: SKERRY_ADDR, else
                               the default socket */
    const char *token_file; /* NULL: SKERRY_TOKEN, else none */
};

struct client;
int client_open(struct client **out, const struct client_options *options,
                struct err *e) ERR_CHECKED;
void client_close(struct client *c); /* NULL is fine */
/* For messages: "unix:/run/skerry/api.sock". */
const char *client_address(const struct client *c);

struct client_request {
    const char *method;       /* NULL: GET */
    const char *path;         /* with its query, encoded: "/v1/status" */
    const char *base;         /* another origin over TCP, "http://127.0.0.1:8080"; NULL: the API */
    const char *accept;       /* NULL: any */
    const char *content_type; /* NULL: application/json for a body */
    const char *const *headers; /* further "Name: value", ended by NULL; or NULL */
    const void *body;           /* or NULL */
    size_t body_length;
    /* Instead of `body`, streamed: up to `size` bytes, *out_length 0 is the end. */
    int (*source)(void *user, void *out, size_t size, size_t *out_length, struct err *e);
    uint64_t source_length; /* 0: unknown, and sent in chunks */
    /* Takes the body of a 2xx answer (with any_status: of every answer) as it comes; NULL: it is
     * kept in the answer. */
    int (*sink)(void *user, const void *data, size_t length, struct err *e);
    bool any_status;
    /* Called once when the headers of the final answer are there; may be NULL. */
    int (*head)(void *user, const char *text, size_t length, struct err *e);
    void *user;
    unsigned timeout_ms; /* for all of it; 0: none */
};

struct client_answer {
    unsigned status;
    struct buffer head; /* status line and headers as they came */
    struct buffer body;
};

int client_do(struct client *c, const struct client_request *request, struct client_answer *answer,
              struct err *e) ERR_CHECKED;
void client_answer_free(struct client_answer *answer);
/* The value of a header in `out`, false if there is none. */
bool client_header(const struct client_answer *answer, const char *name, char *out, size_t size);
/* The body as JSON, or NULL. The caller's reference. */
json_t *client_json(const struct client_answer *answer);

/* POSTs `body` (JSON) asking for Upgrade: skerry-exec/1. On 101 *out_fd is the socket (the caller's)
 * and *answer holds in its body what came behind the headers; else *out_fd is -1 and *answer is the
 * refusal. */
int client_upgrade(struct client *c, const char *path, const char *body, int *out_fd,
                   struct client_answer *answer, struct err *e) ERR_CHECKED;
/* The same in two steps, for who has others to serve meanwhile. The first connects, which blocks, and sends; the
 * second takes what has come of the answer, and blocks nowhere. *out_whole: answer->status is 101 or of a
 * refusal. The descriptor is the caller's from the first on. */
int client_upgrade_begin(struct client *c, const char *path, const char *body, int *out_fd,
                         struct client_answer *answer, struct err *e) ERR_CHECKED;
int client_upgrade_take(int fd, struct client_answer *answer, bool *out_whole,
                        struct err *e) ERR_CHECKED;

/* Percent-encodes everything but unreserved characters; false if it does not fit. */
bool client_encode(char *out, size_t size, const char *text);

#endif
