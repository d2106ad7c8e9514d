#include "sandbox/runner/blanks.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/maker.h"
#include "sandbox/runner/runner.h"

/* The stock is for starts that come at once, and what is made meanwhile takes processors from them: so while
 * half of it is left, nothing is made until so long after the last one was taken or ended. */
#define REFILL_AFTER_MS 50
#define REFILL_AGAIN_MS 1000 /* after a failure */
#define REMOVE_WAIT_MS 2000

struct blanks {
    struct runner *runner;
    uint32_t slot_count;
    uint32_t used_count;
    uint32_t next; /* where the search for a free slot goes on: the longest unused comes first */
    bool *used;
    struct spare *stock;
    size_t stock_count, stock_max;
    struct maker *maker; /* NULL: no stock, or it could not be started */
    bool maker_died;     /* one has */
    struct loop_watch maker_watch;
    struct place *ordered; /* for what the maker makes; NULL: nothing */
    struct loop_timer refill;
    uint64_t used_at_boot_ms; /* the last one was taken, or ended */
};

/* --- places ------------------------------------------------------------------------------------ */

static int place_take(struct blanks *b, struct place **out, struct err *e)
{
    if (b->used_count == b->slot_count)
        return err_set(e, ERR_LIMIT,
                       "%u instances are held, the most that runner.yaml allows (max.instances)",
                       b->slot_count);
    while (b->used[b->next])
        b->next = (b->next + 1) % b->slot_count;
    struct place *place = calloc(1, sizeof *place);
    if (place == NULL)
        return err_set(e, ERR_NO_MEMORY, "place");
    place->layer_map = place->mounts_fd = -1;
    place->owned = true;
    place->slot = b->next;
    place->ids = powers_ids(&b->runner->powers, b->runner->config.uid_base, place->slot);
    /* With our pid: groups of a dead runner may still be there, waiting to be removed. */
    char name[CGROUP_NAME_SIZE];
    text_format(name, sizeof name, "i%u-%d", place->slot, (int)getpid());
    int rc = cgroup_name(&b->runner->cgroups, &place->cgroup, name, e);
    if (rc < 0) {
        free(place);
        return rc;
    }
    b->used[place->slot] = true;
    b->used_count++;
    b->next = (b->next + 1) % b->slot_count;
    *out = place;
    return 0;
}

bool blanks_place_named(const char *name)
{
    unsigned slot;
    int runner, length = 0;
    return sscanf(name, "i%u-%d%n", &slot, &runner, &length) == 2 && name[length] == '\0';
}

/* slot_count: none of ours. */
static uint32_t slot_of(const struct blanks *b, uint32_t uid_base)
{
    uint32_t slot = 0;
    if (b->runner->powers.own_ids) {
        uint32_t offset = uid_base - (uint32_t)b->runner->config.uid_base;
        slot = offset / RUNNER_UIDS_PER_INSTANCE;
        return offset % RUNNER_UIDS_PER_INSTANCE == 0 && slot < b->slot_count ? slot
                                                                              : b->slot_count;
    }
    while (slot < b->slot_count && b->used[slot])
        slot++;
    return slot;
}

int blanks_place_claim(struct blanks *b, uint32_t uid_base, struct place **out, struct err *e)
{
    struct place *place = calloc(1, sizeof *place);
    if (place == NULL)
        return err_set(e, ERR_NO_MEMORY, "place");
    place->layer_map = place->mounts_fd = -1;
    uint32_t slot = slot_of(b, uid_base);
    place->ids = (struct id_range){uid_base, b->runner->powers.layers.count};
    if (slot < b->slot_count) {
        if (b->used[slot]) {
            free(place);
            return err_set(e, ERR_CONFLICT, "the ids from %u are in use twice", uid_base);
        }
        place->owned = true;
        place->slot = slot;
        b->used[slot] = true;
        b->used_count++;
    }
    *out = place;
    return 0;
}

void blanks_place_free(struct blanks *b, struct place *place)
{
    if (place == NULL)
        return;
    if (place->owned) {
        b->used[place->slot] = false;
        b->used_count--;
    }
    memory_close(&place->layer_map);
    memory_close(&place->mounts_fd);
    free(place);
}

uint32_t blanks_free_count(const struct blanks *b)
{
    return b->slot_count - b->used_count + (uint32_t)b->stock_count;
}

int blanks_layer_map(const struct blanks *b, struct place *place, struct err *e)
{
    const struct powers *p = &b->runner->powers;
    return place->layer_map >= 0 || !p->map_layers
               ? 0
               : root_map_make(p->layers.first, place->ids.first, &place->layer_map, e);
}

/* --- blanks ------------------------------------------------------------------------------------ */

/* With its groups and its folder, if they were made. */
static void place_undo(struct blanks *b, struct place *place)
{
    struct err e;
    if (cgroup_remove(&place->cgroup, REMOVE_WAIT_MS, &e) < 0)
        log_warn("runner", "blank: %s", e.msg);
    state_folder_remove(b->runner->instances_fd, place->cgroup.name);
    blanks_place_free(b, place);
}

static struct maker_order order_for(const struct place *place, bool layer_map)
{
    return (struct maker_order){.ids = place->ids, .cgroup = place->cgroup, .layer_map = layer_map};
}

static struct spare spare_of(struct place *place, const struct maker_made *made)
{
    place->layer_map = made->layer_map;
    return (struct spare){.place = place,
                          .network_fd = made->network_fd,
                          .folder = made->folder,
                          .blank = made->blank};
}

/* By ourselves: nothing is in stock. */
static int spare_make(struct blanks *b, struct spare *out, struct err *e)
{
    struct place *place;
    struct maker_made made;
    int rc = place_take(b, &place, e);
    if (rc < 0)
        return rc;
    const struct maker_order order = order_for(place, false);
    rc = maker_make(b->runner, &order, NULL, &made, e);
    if (rc < 0)
        place_undo(b, place);
    else
        *out = spare_of(place, &made);
    return rc;
}

static void spare_end(struct blanks *b, struct spare *spare)
{
    (void)kill(spare->blank.pid, SIGKILL);
    (void)waitpid(spare->blank.pid, NULL, 0);
    blank_close(&spare->blank);
    memory_close(&spare->network_fd);
    state_folder_close(&spare->folder);
    place_undo(b, spare->place);
}

/* A blank may have been killed since it was made (the machine ran out of memory). */
static bool spare_alive(const struct spare *spare)
{
    siginfo_t info = {0};
    return waitid(P_PIDFD, (id_t)spare->blank.pidfd, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

static void refill_cb(struct loop_timer *timer);

static void refill_after(struct blanks *b, uint64_t wait_ms)
{
    struct err e;
    if (loop_timer_start(b->runner->loop, &b->refill, clock_boot_ms() + wait_ms, refill_cb, &e) < 0)
        log_warn("runner", "blanks: %s", e.msg);
}

static void refill(struct blanks *b)
{
    uint64_t unused_ms = clock_boot_ms() - b->used_at_boot_ms;
    bool waits = b->stock_count * 2 >= b->stock_max && unused_ms < REFILL_AFTER_MS;
    if (b->stock_count < b->stock_max)
        refill_after(b, waits ? REFILL_AFTER_MS - unused_ms : 0);
}

static void maker_stop(struct blanks *b)
{
    loop_watch_stop(b->runner->loop, &b->maker_watch);
    maker_close(steal_pointer(&b->maker));
}

/* Takes what was ordered; waits for it. */
static int ordered_take(struct blanks *b, struct spare *out, struct err *e)
{
    struct maker_made made;
    struct place *place = steal_pointer(&b->ordered);
    int rc = maker_take(b->maker, &made, e);
    if (rc == 0) {
        *out = spare_of(place, &made);
        return 0;
    }
    if (rc == -ERR_UNAVAILABLE) {
        b->maker_died = true;
        maker_stop(b);
    }
    place_undo(b, place);
    return rc;
}

static void maker_cb(struct loop_watch *watch, uint32_t events)
{
    (void)events;
    struct blanks *b = container_of(watch, struct blanks, maker_watch);
    struct err e = {0};
    if (b->ordered == NULL) {
        /* Else a start of this round has taken what was announced. */
        if (!maker_gone(b->maker))
            return;
        log_warn("runner", "the maker of blanks ended");
        b->maker_died = true;
        maker_stop(b);
        refill_after(b, REFILL_AGAIN_MS);
    } else if (ordered_take(b, &b->stock[b->stock_count], &e) < 0) {
        log_warn("runner", "make a blank: %s", e.msg);
        refill_after(b, REFILL_AGAIN_MS);
    } else {
        b->stock_count++;
        refill(b);
    }
}

static int maker_start(struct blanks *b, struct err *e)
{
    int rc = maker_open(&b->maker, b->runner, !b->maker_died, e);
    return rc < 0 ? rc
                  : loop_watch_start(b->runner->loop, &b->maker_watch, maker_fd(b->maker), EPOLLIN,
                                     maker_cb, e);
}

static int order(struct blanks *b, struct err *e)
{
    int rc = b->maker == NULL ? maker_start(b, e) : 0;
    if (rc == 0)
        rc = place_take(b, &b->ordered, e);
    if (rc < 0)
        return rc;
    const struct maker_order o = order_for(b->ordered, b->runner->powers.map_layers);
    rc = maker_ask(b->maker, &o, e);
    if (rc < 0)
        blanks_place_free(b, steal_pointer(&b->ordered));
    return rc;
}

static void refill_cb(struct loop_timer *timer)
{
    struct blanks *b = container_of(timer, struct blanks, refill);
    struct err e;
    if (b->stock_count >= b->stock_max || b->ordered != NULL)
        return;
    /* The last places are for instances. */
    if (b->slot_count - b->used_count <= b->stock_max) {
        refill_after(b, REFILL_AGAIN_MS);
    } else if (order(b, &e) < 0) {
        log_warn("runner", "make a blank: %s", e.msg);
        refill_after(b, REFILL_AGAIN_MS);
    }
}

void blanks_start(struct blanks *b)
{
    b->used_at_boot_ms = clock_boot_ms();
    refill(b);
}

/* False: there is none. */
static bool stock_take(struct blanks *b, struct spare *out)
{
    while (b->stock_count > 0) {
        *out = b->stock[--b->stock_count];
        if (spare_alive(out))
            return true;
        spare_end(b, out);
    }
    return false;
}

int blanks_take(struct blanks *b, struct spare *out, struct err *e)
{
    /* What is half made is waited for rather than begun anew; what cannot be made so, may be here. */
    struct err ignored;
    if (b->stock_count == 0 && b->ordered != NULL && ordered_take(b, &b->stock[0], &ignored) == 0)
        b->stock_count = 1;
    int rc = stock_take(b, out) ? 0 : spare_make(b, out, e);
    b->used_at_boot_ms = clock_boot_ms();
    refill(b);
    return rc;
}

/* --- life ------------------------------------------------------------------------------------ */

int blanks_open(struct blanks **out, struct runner *r, struct err *e)
{
    struct blanks *b = calloc(1, sizeof *b);
    if (b == NULL)
        return err_set(e, ERR_NO_MEMORY, "blanks");
    b->runner = r;
    b->slot_count = (uint32_t)r->config.max.instances;
    b->stock_max = r->config.blanks;
    b->used = calloc(b->slot_count, sizeof *b->used);
    b->stock = calloc(b->stock_max + 1, sizeof *b->stock); /* at least one */
    b->maker_watch = LOOP_WATCH_STOPPED;
    if (b->used == NULL || b->stock == NULL) {
        blanks_close(b);
        return err_set(e, ERR_NO_MEMORY, "blanks");
    }
    *out = b;
    return b->stock_max > 0 ? maker_start(b, e) : 0;
}

void blanks_close(struct blanks *b)
{
    if (b == NULL)
        return;
    loop_timer_stop(b->runner->loop, &b->refill);
    struct err e;
    if (b->ordered != NULL && ordered_take(b, &b->stock[b->stock_count], &e) == 0)
        b->stock_count++;
    maker_stop(b);
    while (b->stock_count > 0)
        spare_end(b, &b->stock[--b->stock_count]);
    free(b->used);
    free(b->stock);
    free(b);
}
