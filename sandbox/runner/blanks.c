#include "sandbox/runner/blanks.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/image.h"
#include "sandbox/runner/runner.h"

/* The stock is refilled when code was started and the runner has nothing to do but to wait for it, or
 * else after so long. */
#define REFILL_AFTER_MS 20
#define REFILL_AGAIN_MS 1000 /* after a failure */
#define REMOVE_WAIT_MS 2000

struct blanks {
    struct runner *runner;
    uint32_t slot_count;
    uint32_t used_count;
    uint32_t next; /* where the search for a free slot goes on: the longest unused comes first */
    bool *used;
    int *maps;           /* by slot; -1: none yet */
    bool layers_used;    /* so blanks have one */
    struct spare *stock; /* the one behind the last may be in the making */
    size_t stock_count, stock_max;
    enum { MAKING_NONE, MAKING_NETWORK, MAKING_MAP, MAKING_BLANK } making;
    struct loop_timer refill;
};

int blanks_open(struct blanks **out, struct runner *r, struct err *e)
{
    struct blanks *b = calloc(1, sizeof *b);
    if (b == NULL)
        return err_set(e, ERR_NO_MEMORY, "blanks");
    b->runner = r;
    b->slot_count = (uint32_t)r->config.max.instances;
    b->stock_max = r->config.blanks;
    b->used = calloc(b->slot_count, sizeof *b->used);
    b->maps = calloc(b->slot_count, sizeof *b->maps);
    b->stock = calloc(b->stock_max + 1, sizeof *b->stock);
    if (b->used == NULL || b->maps == NULL || b->stock == NULL) {
        blanks_close(b);
        return err_set(e, ERR_NO_MEMORY, "blanks");
    }
    for (uint32_t i = 0; i < b->slot_count; i++)
        b->maps[i] = -1;
    *out = b;
    return 0;
}

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
    place->owned = true;
    place->slot = b->next;
    place->uid_base = (uint32_t)b->runner->config.uid_base + b->next * RUNNER_UIDS_PER_INSTANCE;
    /* With our pid: groups of a dead runner may still be there, waiting to be removed. */
    char name[32];
    text_format(name, sizeof name, "i%u-%d", place->slot, (int)getpid());
    int rc = cgroup_make(&b->runner->cgroups, &place->cgroup, name, e);
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

int blanks_place_claim(struct blanks *b, uint32_t uid_base, struct place **out, struct err *e)
{
    struct place *place = calloc(1, sizeof *place);
    if (place == NULL)
        return err_set(e, ERR_NO_MEMORY, "place");
    place->uid_base = uid_base;
    uint32_t offset = uid_base - (uint32_t)b->runner->config.uid_base;
    uint32_t slot = offset / RUNNER_UIDS_PER_INSTANCE;
    if (slot < b->slot_count && offset % RUNNER_UIDS_PER_INSTANCE == 0) {
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
    free(place);
}

uint32_t blanks_free_count(const struct blanks *b)
{
    return b->slot_count - b->used_count + (uint32_t)b->stock_count;
}

int blanks_layer_map(struct blanks *b, const struct place *place, int *out_fd, struct err *e)
{
    int *map = &b->maps[place->slot];
    b->layers_used = true;
    if (*map < 0) {
        int rc = root_map_make(IMAGE_UID_BASE, place->uid_base, map, e);
        if (rc < 0)
            return rc;
    }
    *out_fd = *map;
    return 0;
}

/* --- blanks ------------------------------------------------------------------------------------ */

static int spare_network(struct blanks *b, struct spare *spare, struct err *e)
{
    return network_namespace_make(b->runner->network, &spare->network_fd, e);
}

static int spare_blank(struct blanks *b, struct spare *spare, struct err *e)
{
    const struct runner *r = b->runner;
    const struct blank_options options = {.uid_base = spare->place->uid_base,
                                          .cgroup = &spare->place->cgroup,
                                          .network = r->network,
                                          .network_fd = spare->network_fd,
                                          .root_base = r->root_base,
                                          .agent_fd = r->agent_fd,
                                          .null_fd = r->null_fd};
    return blank_make(&spare->blank, &options, e);
}

/* One that has no process yet. */
static void spare_undo(struct blanks *b, struct spare *spare)
{
    struct err e;
    memory_close(&spare->network_fd);
    if (cgroup_remove(&spare->place->cgroup, 0, &e) < 0)
        log_warn("runner", "blank: %s", e.msg);
    blanks_place_free(b, spare->place);
}

static int spare_make(struct blanks *b, struct spare *out, struct err *e)
{
    *out = (struct spare){.network_fd = -1};
    int rc = place_take(b, &out->place, e);
    if (rc < 0)
        return rc;
    rc = spare_network(b, out, e);
    if (rc == 0)
        rc = spare_blank(b, out, e);
    if (rc < 0)
        spare_undo(b, out);
    return rc;
}

static void spare_end(struct blanks *b, struct spare *spare)
{
    struct err e;
    (void)kill(spare->blank.pid, SIGKILL);
    (void)waitpid(spare->blank.pid, NULL, 0);
    blank_close(&spare->blank);
    memory_close(&spare->network_fd);
    if (cgroup_remove(&spare->place->cgroup, REMOVE_WAIT_MS, &e) < 0)
        log_warn("runner", "blank: %s", e.msg);
    blanks_place_free(b, spare->place);
}

/* A blank may have been killed since it was made (the machine ran out of memory). */
static bool spare_alive(const struct spare *spare)
{
    siginfo_t info = {0};
    return waitid(P_PIDFD, (id_t)spare->blank.pidfd, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

static void refill_cb(struct loop_timer *timer);

static void refill_at(struct blanks *b, uint64_t after_ms)
{
    struct err e;
    if (loop_timer_start(b->runner->loop, &b->refill, clock_boot_ms() + after_ms, refill_cb, &e) <
        0)
        log_warn("runner", "blanks: %s", e.msg);
}

/* A part of the work: whoever asks meanwhile waits less. */
static int refill_step(struct blanks *b, struct err *e)
{
    struct spare *spare = &b->stock[b->stock_count];
    int rc = 0, map;
    switch (b->making) {
    case MAKING_NONE:
        *spare = (struct spare){.network_fd = -1};
        rc = place_take(b, &spare->place, e);
        if (rc == 0)
            b->making = MAKING_NETWORK;
        return rc;
    case MAKING_NETWORK:
        rc = spare_network(b, spare, e);
        if (rc == 0)
            b->making = b->layers_used ? MAKING_MAP : MAKING_BLANK;
        break;
    case MAKING_MAP:
        rc = blanks_layer_map(b, spare->place, &map, e);
        if (rc == 0)
            b->making = MAKING_BLANK;
        break;
    case MAKING_BLANK:
        rc = spare_blank(b, spare, e);
        if (rc == 0) {
            b->making = MAKING_NONE;
            b->stock_count++;
        }
        break;
    }
    if (rc < 0) {
        b->making = MAKING_NONE;
        spare_undo(b, spare);
    }
    return rc;
}

static void refill_cb(struct loop_timer *timer)
{
    struct blanks *b = container_of(timer, struct blanks, refill);
    struct err e;
    if (b->stock_count >= b->stock_max)
        return;
    /* The last places are for instances. */
    if (b->making == MAKING_NONE && b->slot_count - b->used_count <= b->stock_max) {
        refill_at(b, REFILL_AGAIN_MS);
    } else if (refill_step(b, &e) < 0) {
        log_warn("runner", "make a blank: %s", e.msg);
        refill_at(b, REFILL_AGAIN_MS);
    } else if (b->stock_count < b->stock_max) {
        refill_at(b, 0);
    }
}

void blanks_start(struct blanks *b)
{
    if (b->stock_count < b->stock_max)
        refill_at(b, 0);
}

int blanks_take(struct blanks *b, struct spare *out, struct err *e)
{
    /* A start goes first. */
    if (b->stock_max > 0)
        refill_at(b, REFILL_AFTER_MS);
    /* What is half made is finished rather than begun anew. */
    while (b->stock_count == 0 && b->making != MAKING_NONE) {
        int rc = refill_step(b, e);
        if (rc < 0)
            return rc;
    }
    while (b->stock_count > 0) {
        struct spare *last = &b->stock[b->stock_count - 1];
        *out = *last;
        /* The half made one moves up. */
        if (b->making != MAKING_NONE)
            *last = b->stock[b->stock_count];
        b->stock_count--;
        if (spare_alive(out))
            return 0;
        spare_end(b, out);
    }
    return spare_make(b, out, e);
}

void blanks_close(struct blanks *b)
{
    if (b == NULL)
        return;
    loop_timer_stop(b->runner->loop, &b->refill);
    if (b->making != MAKING_NONE)
        spare_undo(b, &b->stock[b->stock_count]);
    while (b->stock_count > 0)
        spare_end(b, &b->stock[--b->stock_count]);
    for (uint32_t i = 0; b->maps != NULL && i < b->slot_count; i++)
        memory_close(&b->maps[i]);
    free(b->used);
    free(b->maps);
    free(b->stock);
    free(b);
}
