#include "node/cluster/turned_away.h"

#include <stdlib.h>

struct turned_away {
    struct turned_away_list *list;
    struct secure_stream *stream;
    uv_timer_t timer;
    unsigned handles;
    bool closing;
};

static void part_closed(struct turned_away *t)
{
    struct turned_away_list *list = t->list;
    if (--t->handles > 0)
        return;
    free(t);
    list->count--;
    list->gone(list->user);
}

static void stream_closed_cb(void *user)
{
    part_closed(user);
}

static void timer_closed_cb(uv_handle_t *handle)
{
    part_closed(handle->data);
}

static void end(struct turned_away *t)
{
    if (t->closing)
        return;
    t->closing = true;
    secure_stream_close(t->stream, stream_closed_cb);
    uv_close((uv_handle_t *)&t->timer, timer_closed_cb);
}

static void timer_cb(uv_timer_t *timer)
{
    end(timer->data);
}

/* What it says is dropped: it was told so. */
static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    struct turned_away *t = secure_stream_user(s);
    char bytes[4096];
    size_t n = 0;
    (void)writable;
    if (!readable)
        return;
    enum secure_result result = secure_stream_read(s, bytes, sizeof bytes, &n);
    if (result == SECURE_END || result == SECURE_BROKEN)
        end(t);
}

static void forgotten_cb(void *user)
{
    struct turned_away_list *list = user;
    list->count--;
    list->gone(list->user);
}

void turned_away_add(struct turned_away_list *list, struct secure_stream *s)
{
    static const struct secure_events events = {.ready = ready_cb}, none = {0};
    struct turned_away *t = list->count < TURNED_AWAY_MAX ? calloc(1, sizeof *t) : NULL;
    list->count++;
    if (t == NULL) {
        secure_stream_set_events(s, &none, list);
        secure_stream_close(s, forgotten_cb);
        return;
    }
    *t = (struct turned_away){.list = list, .stream = s, .handles = 2};
    (void)uv_timer_init(list->loop, &t->timer);
    t->timer.data = t;
    (void)uv_timer_start(&t->timer, timer_cb, TURNED_AWAY_MS, 0);
    secure_stream_set_events(s, &events, t);
    if (secure_stream_end(s) == SECURE_BROKEN)
        end(t);
    else
        secure_stream_want(s, SECURE_WANT_READ);
}
