/* sandbox/sandbox.h - the node's side of the runner: verbs to it, events from it.
 *
 * Thread:  the control loop only. Descriptors that arrive may be handed to other threads.
 * Memory:  what an event or answer points to is valid during the callback only; descriptors become
 *          the callback's: it closes what it does not use.
 * Errors:  every verb is answered exactly once, with an err when the runner refused, went away
 *          (ERR_UNAVAILABLE) or did not answer within `answer_timeout_ms` (ERR_TIMEOUT).
 * Restart: when the connection breaks, all waiting verbs fail with ERR_UNAVAILABLE; the client
 *          connects again (100 ms, doubling to 2 s) and calls `connected` after each hello; the
 *          owner then lists and re-adopts.
 *
 * The wire is sandbox/runner.proto; its generated structs are the types of verbs and events. */
#ifndef SKERRY_SANDBOX_SANDBOX_H
#define SKERRY_SANDBOX_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/err.h"
#include "sandbox/runner.pb-c.h"

#define SANDBOX_DESCRIPTORS_MAX 64
#define SANDBOX_MESSAGE_BYTES_MAX (256 * 1024)

struct sandbox;

struct sandbox_calls {
    void *user;
    void (*connected)(void *user, const Skerry__Runner__HelloReply *hello);
    void (*disconnected)(void *user);
    void (*event)(void *user, const Skerry__Runner__Event *event);
};

struct sandbox_options {
    const char *socket_path;
    uint64_t node_boot;
    unsigned answer_timeout_ms; /* default 10,000 */
    size_t waiting_max;         /* verbs without an answer yet; default 10,000 */
    struct sandbox_calls calls;
};

typedef void (*sandbox_answer_cb)(void *user, const struct err *error /* NULL: done */,
                                  const Skerry__Runner__Reply *reply, int *descriptors,
                                  size_t descriptor_count);
typedef void (*sandbox_closed_cb)(void *user);

int sandbox_open(struct sandbox **out, uv_loop_t *loop, const struct sandbox_options *options,
                 struct err *e) ERR_CHECKED;
/* Fails waiting verbs with ERR_CANCELED, then `cb`. */
void sandbox_close(struct sandbox *s, sandbox_closed_cb cb, void *user);

/* Sends any verb; `request->seq` is filled here. On failure `cb` is not called. */
int sandbox_ask(struct sandbox *s, Skerry__Runner__Request *request, sandbox_answer_cb cb,
                void *user, struct err *e) ERR_CHECKED;
bool sandbox_connected(const struct sandbox *s);
/* -ERR_UNAVAILABLE, with the remedy, when it is not. */
int sandbox_check(const struct sandbox *s, struct err *e) ERR_CHECKED;

#endif
