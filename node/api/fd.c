#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "node/api/internal.h"

static void freed_cb(uv_handle_t *handle)
{
    free(handle->data);
}

static void ready_cb(uv_poll_t *poll, int status, int events)
{
    struct api_fd *f = poll->data;
    /* An error of the descriptor shows itself in the read or write that its owner does next. */
    if (status < 0)
        events = UV_READABLE | UV_WRITABLE;
    api_dirty(poll->loop->data);
    f->events = 0; /* a failed poll is stopped; the owner asks anew for what it wants */
    (void)uv_poll_stop(poll);
    f->ready(f, events);
}

struct api_fd *api_fd_open(struct api *api, int fd, void *owner,
                           void (*ready)(struct api_fd *f, int events))
{
    struct api_fd *f = calloc(1, sizeof(*f));
    /* Makes it non-blocking, too. */
    if (f == NULL || uv_poll_init(&api->loop, &f->poll, fd) != 0) {
        free(f);
        (void)close(fd);
        return NULL;
    }
    f->poll.data = f;
    f->fd = fd;
    f->owner = owner;
    f->ready = ready;
    return f;
}

void api_fd_want(struct api_fd *f, int events)
{
    if (f->events == events)
        return;
    f->events = events;
    if (events == 0)
        (void)uv_poll_stop(&f->poll);
    else
        (void)uv_poll_start(&f->poll, events, ready_cb);
}

void api_fd_close(struct api_fd **f)
{
    if (*f == NULL)
        return;
    /* uv_close takes the descriptor out of the loop's set at once; only the memory must stay. */
    uv_close((uv_handle_t *)&(*f)->poll, freed_cb);
    (void)close((*f)->fd);
    *f = NULL;
}
