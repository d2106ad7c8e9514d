#include "base/inbox.h"

#include <stdlib.h>

#include "base/memory.h"

struct inbox {
    uv_async_t async;
    uv_mutex_t mutex;
    struct inbox_message *head;
    struct inbox_message **tail;
    size_t waiting;
    size_t messages_max;
    bool closed;
    void *owner;
    inbox_closed_cb closed_cb;
};

static void deliver_all(struct inbox *inbox)
{
    uv_mutex_lock(&inbox->mutex);
    struct inbox_message *m = inbox->head;
    inbox->head = NULL;
    inbox->tail = &inbox->head;
    inbox->waiting = 0;
    uv_mutex_unlock(&inbox->mutex);
    while (m != NULL) {
        struct inbox_message *next = m->next;
        m->deliver(m, inbox->owner);
        m = next;
    }
}

static void async_cb(uv_async_t *async)
{
    deliver_all(container_of(async, struct inbox, async));
}

int inbox_open(struct inbox **out, uv_loop_t *loop, void *owner, size_t messages_max, struct err *e)
{
    struct inbox *inbox = calloc(1, sizeof *inbox);
    if (inbox == NULL)
        return err_set(e, ERR_NO_MEMORY, "open inbox");
    inbox->owner = owner;
    inbox->messages_max = messages_max;
    inbox->tail = &inbox->head;
    int rc = uv_mutex_init(&inbox->mutex);
    if (rc == 0) {
        rc = uv_async_init(loop, &inbox->async, async_cb);
        if (rc != 0)
            uv_mutex_destroy(&inbox->mutex);
    }
    if (rc != 0) {
        free(inbox);
        return err_sys(e, ERR_IO, -rc, "open inbox");
    }
    *out = inbox;
    return 0;
}

static bool post(struct inbox *inbox, struct inbox_message *message, bool bounded)
{
    message->next = NULL;
    uv_mutex_lock(&inbox->mutex);
    bool taken = !inbox->closed && (!bounded || inbox->waiting < inbox->messages_max);
    bool first = inbox->head == NULL;
    if (taken) {
        *inbox->tail = message;
        inbox->tail = &message->next;
        inbox->waiting++;
    }
    /* Inside the mutex, so that inbox_close cannot run in between and free the handle. */
    if (taken && first)
        uv_async_send(&inbox->async);
    uv_mutex_unlock(&inbox->mutex);
    return taken;
}

bool inbox_post(struct inbox *inbox, struct inbox_message *message)
{
    return post(inbox, message, true);
}

bool inbox_post_always(struct inbox *inbox, struct inbox_message *message)
{
    return post(inbox, message, false);
}

static void async_closed_cb(uv_handle_t *handle)
{
    struct inbox *inbox = container_of(handle, struct inbox, async);
    inbox_closed_cb cb = inbox->closed_cb;
    void *owner = inbox->owner;
    uv_mutex_destroy(&inbox->mutex);
    free(inbox);
    if (cb != NULL)
        cb(owner);
}

void inbox_close(struct inbox *inbox, inbox_closed_cb cb)
{
    inbox->closed_cb = cb;
    uv_mutex_lock(&inbox->mutex);
    inbox->closed = true;
    uv_mutex_unlock(&inbox->mutex);
    deliver_all(inbox);
    uv_close((uv_handle_t *)&inbox->async, async_closed_cb);
}
