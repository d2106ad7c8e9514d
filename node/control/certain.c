#include "node/control/certain.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/control/control.h"

struct wait {
    struct wait *next;
    uint64_t until_ms;
    certain_cb cb;
    void *user;
};

/* In the order of arrival, so the first is the first that is late. */
struct waits {
    struct wait *first, *last;
};

struct certain {
    struct node *node;
    struct waits gathered, reading;
    size_t waiting;
    bool under_way, closed;
    uint64_t read_ms; /* when the last began */
    uv_timer_t timer;
};

static void timer_cb(uv_timer_t *timer);

static void answer_all(struct certain *c, struct waits *waits, bool sure)
{
    struct wait *w = waits->first;
    *waits = (struct waits){0};
    while (w != NULL) {
        struct wait *next = w->next;
        c->waiting--;
        w->cb(w->user, sure);
        free(w);
        w = next;
    }
}

static void answer_late(struct certain *c, struct waits *waits, uint64_t now_ms)
{
    while (waits->first != NULL && waits->first->until_ms <= now_ms) {
        struct wait *w = waits->first;
        waits->first = w->next;
        if (waits->first == NULL)
            waits->last = NULL;
        c->waiting--;
        w->cb(w->user, false);
        free(w);
    }
}

/* For the next read, and for whoever is the next to be late. */
static void arm(struct certain *c)
{
    uint64_t now_ms = clock_monotonic_ms();
    uint64_t at_ms = UINT64_MAX;
    if (c->closed)
        return;
    if (c->gathered.first != NULL && !c->under_way)
        at_ms = c->read_ms + CERTAIN_PAUSE_MS;
    if (c->gathered.first != NULL && c->gathered.first->until_ms < at_ms)
        at_ms = c->gathered.first->until_ms;
    if (c->reading.first != NULL && c->reading.first->until_ms < at_ms)
        at_ms = c->reading.first->until_ms;
    if (at_ms == UINT64_MAX)
        uv_timer_stop(&c->timer);
    else
        uv_timer_start(&c->timer, timer_cb, at_ms > now_ms ? at_ms - now_ms : 0, 0);
}

static void read_cb(void *user, const struct err *error)
{
    struct certain *c = user;
    c->under_way = false;
    if (error != NULL)
        log_debug("registry", "a strong read failed: %s", error->msg);
    /* After a failure they are tried again until they are late: an election may be under way. */
    if (error == NULL) {
        answer_all(c, &c->reading, true);
    } else if (c->reading.first != NULL) {
        c->reading.last->next = c->gathered.first;
        if (c->gathered.first == NULL)
            c->gathered.last = c->reading.last;
        c->gathered.first = c->reading.first;
        c->reading = (struct waits){0};
    }
    arm(c);
}

static void read_now(struct certain *c)
{
    struct err e = {0};
    c->read_ms = clock_monotonic_ms();
    if (registry_read(c->node->registry, read_cb, c, &e) != 0) {
        log_debug("registry", "a strong read failed: %s", e.msg);
        return;
    }
    c->under_way = true;
    c->reading = c->gathered;
    c->gathered = (struct waits){0};
}

static void timer_cb(uv_timer_t *timer)
{
    struct certain *c = container_of(timer, struct certain, timer);
    uint64_t now_ms = clock_monotonic_ms();
    answer_late(c, &c->reading, now_ms);
    answer_late(c, &c->gathered, now_ms);
    if (!c->under_way && c->gathered.first != NULL && now_ms >= c->read_ms + CERTAIN_PAUSE_MS)
        read_now(c);
    arm(c);
}

void certain_wait(struct node *n, certain_cb cb, void *user)
{
    struct certain *c = n->certain;
    struct registry_status s;
    registry_status(n->registry, &s);
    if (s.leader && s.voters <= 1) {
        cb(user, true);
        return;
    }
    struct wait *w = c->waiting < CERTAIN_WAITING_MAX && !c->closed ? malloc(sizeof *w) : NULL;
    if (w == NULL) {
        cb(user, false);
        return;
    }
    *w = (struct wait){.until_ms = clock_monotonic_ms() + CERTAIN_WAIT_MS, .cb = cb, .user = user};
    c->waiting++;
    if (c->gathered.last != NULL)
        c->gathered.last->next = w;
    else
        c->gathered.first = w;
    c->gathered.last = w;
    arm(c);
}

int certain_open(struct node *n, struct err *e)
{
    struct certain *c = calloc(1, sizeof *c);
    if (c == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for strong reads");
    c->node = n;
    uv_timer_init(&n->loop, &c->timer);
    n->certain = c;
    return 0;
}

static void freed_cb(uv_handle_t *handle)
{
    free(container_of((uv_timer_t *)handle, struct certain, timer));
}

void certain_close(struct node *n)
{
    struct certain *c = n->certain;
    if (c == NULL)
        return;
    n->certain = NULL;
    c->closed = true;
    answer_all(c, &c->reading, false);
    answer_all(c, &c->gathered, false);
    uv_close((uv_handle_t *)&c->timer, freed_cb);
}
