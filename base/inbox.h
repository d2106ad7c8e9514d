/* base/inbox.h - messages from any thread to one libuv loop, bounded, woken by uv_async_send.
 *
 * A message is a struct of the sender's with a struct inbox_message as a member; ownership passes
 * with inbox_post and `deliver` must release it. Messages of one sender arrive in order.
 *
 * Threads: inbox_open, inbox_close and `deliver` on the loop's thread; inbox_post on any. */
#ifndef SKERRY_BASE_INBOX_H
#define SKERRY_BASE_INBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

#include "base/err.h"

struct inbox;
struct inbox_message {
    struct inbox_message *next;
    void (*deliver)(struct inbox_message *message, void *owner);
};

typedef void (*inbox_closed_cb)(void *owner);

/* `owner` is handed to every deliver. More than `messages_max` waiting messages are refused. */
int inbox_open(struct inbox **out, uv_loop_t *loop, void *owner, size_t messages_max,
               struct err *e) ERR_CHECKED;
/* False when full or closed: the message stays the caller's. */
bool inbox_post(struct inbox *inbox, struct inbox_message *message) ERR_CHECKED;
/* As inbox_post, and never refused for the bound: for answers, whose number the questions bound,
 * and for events that must not be lost. False only once closed. */
bool inbox_post_always(struct inbox *inbox, struct inbox_message *message) ERR_CHECKED;
/* Delivers what waits, then closes; nobody may post after `cb`. */
void inbox_close(struct inbox *inbox, inbox_closed_cb cb);

#endif
