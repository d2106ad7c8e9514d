#include "sandbox/runner/instance.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/adopt.h"
#include "sandbox/runner/imports.h"
#include "sandbox/runner/reaper.h"
#include "sandbox/runner/runner.h"

/* A listing of so many fits a datagram: at most 1 KiB each. */
#define LIST_PER_ANSWER 200
#define OOM_LOOK_MS_MIN 1
#define OOM_LOOK_MS_MAX 1024
#define LOOKED_US_MAX 5000 /* so long what was read while process 1 ended still holds */

struct instances {
    struct runner *runner;
    struct instance *table; /* by id, in the order of their coming */
    size_t ended_count;
    struct instance *forgotten; /* likewise; only their process 1 is waited for */
    bool closing;
};

int instances_open(struct instances **out, struct runner *r, struct err *e)
{
    struct instances *all = calloc(1, sizeof *all);
    if (all == NULL)
        return err_set(e, ERR_NO_MEMORY, "instances");
    all->runner = r;
    *out = all;
    return 0;
}

struct runner *instances_runner(struct instances *all)
{
    return all->runner;
}

struct instance *instance_find(struct instances *all, const char *id)
{
    struct instance *i = NULL;
    HASH_FIND_STR(all->table, id, i);
    return i;
}

struct instance *instances_first(struct instances *all)
{
    return all->table;
}

size_t instances_held_count(const struct instances *all)
{
    return HASH_COUNT(all->table) - all->ended_count;
}

bool instances_use_egress(const struct instances *all)
{
    for (const struct instance *i = all->table; i != NULL; i = i->hh.next)
        if (i->egress != NULL && i->place != NULL)
            return true;
    return false;
}

uint32_t instance_place_number(const struct instance *i)
{
    return (i->place->ids.first - RUNNER_UID_BASE) / RUNNER_UIDS_PER_INSTANCE;
}

bool instances_log_in_use(struct instances *all, const char *id)
{
    struct instance *i = instance_find(all, id);
    return i != NULL && i->phase != INSTANCE_ENDED;
}

/* --- making and freeing ------------------------------------------------------------------------ */

int instance_new(struct instances *all, const char *id, struct instance **out, struct err *e)
{
    struct instance *i = calloc(1, sizeof *i);
    if (i == NULL)
        return err_set(e, ERR_NO_MEMORY, "instance");
    i->runner = all->runner;
    text_copy(i->id, sizeof i->id, id);
    i->channel = i->network_fd = i->oom_fd = i->deadline_fd = -1;
    i->folder = (struct state_folder)STATE_FOLDER_NONE;
    i->blank.pidfd = i->blank.channel = i->blank.store = -1;
    i->channel_watch = i->oom_watch = i->process.watch = LOOP_WATCH_STOPPED;
    HASH_ADD_STR(all->table, id, i);
    *out = i;
    return 0;
}

static void descriptors_close(int *descriptors, size_t *count)
{
    while (*count > 0)
        memory_close(&descriptors[--*count]);
}

/* Whatever is only needed while process 1 lives. The place goes to the reaper by the caller. */
static void release(struct instance *i)
{
    struct loop *loop = i->runner->loop;
    loop_timer_stop(loop, &i->watchdog);
    loop_timer_stop(loop, &i->deadline);
    loop_timer_stop(loop, &i->oom_look);
    loop_watch_stop(loop, &i->channel_watch);
    loop_watch_stop(loop, &i->oom_watch);
    loop_child_stop(loop, &i->process);
    memory_close(&i->channel);
    memory_close(&i->blank.store);
    net_names_remove(steal_pointer(&i->names));
    memory_close(&i->network_fd);
    memory_close(&i->oom_fd);
    memory_close(&i->deadline_fd);
    state_folder_close(&i->folder);
    descriptors_close(i->code_descriptors, &i->code_descriptor_count);
    descriptors_close(i->node_descriptors, &i->node_descriptor_count);
    if (i->request != NULL)
        skerry__runner__request__free_unpacked(i->request, NULL);
    i->request = NULL;
    free(steal_pointer(&i->egress));
}

static void layers_release(struct instance *i)
{
    while (i->layer_count > 0)
        imports_layer_release(i->runner->imports, i->layers[--i->layer_count]);
}

static void forget(struct instances *all, struct instance *i)
{
    all->ended_count--;
    HASH_DEL(all->table, i);
    i->forgotten = true;
    HASH_ADD_STR(all->forgotten, id, i);
}

void instance_free(struct instances *all, struct instance *i)
{
    if (i->phase == INSTANCE_ENDED && i->process.watch.fd >= 0 && !all->closing) {
        forget(all, i);
        return;
    }
    release(i);
    layers_release(i);
    while (i->waiting != NULL) {
        struct waiting *w = i->waiting;
        i->waiting = w->next;
        waiting_free(w);
    }
    if (i->place != NULL)
        reaper_add(all->runner->reaper, steal_pointer(&i->place), i->id);
    if (i->phase == INSTANCE_ENDED && !i->forgotten)
        all->ended_count--;
    if (i->forgotten)
        HASH_DEL(all->forgotten, i);
    else
        HASH_DEL(all->table, i);
    free(i);
}

void instances_close(struct instances *all)
{
    if (all == NULL)
        return;
    struct instance *i, *next;
    all->closing = true;
    HASH_ITER(hh, all->table, i, next)
    {
        /* Prepared ones have no agent's timer yet that would end them in time. */
        if (i->phase < INSTANCE_STARTING && i->place != NULL) {
            (void)kill(i->pid, SIGKILL);
        } else if (i->phase != INSTANCE_ENDED && i->place != NULL) {
            /* Left to its agent, with groups and folder. */
            blanks_place_free(all->runner->blanks, steal_pointer(&i->place));
        }
        instance_free(all, i);
    }
    HASH_ITER(hh, all->forgotten, i, next)
    instance_free(all, i);
    free(all);
}

/* --- the end ----------------------------------------------------------------------------------- */

void instance_usage_read(struct instance *i)
{
    cgroup_stats_read(&i->place->cgroup, &i->stats);
    if (i->egress != NULL)
        (void)net_egress_bytes(i->runner->egress, instance_place_number(i), &i->network_in_bytes,
                               &i->network_out_bytes);
}

void instance_stats_fill(const struct instance *i, Skerry__Runner__Stats *out)
{
    skerry__runner__stats__init(out);
    out->cpu_us = i->stats.cpu_us;
    out->memory_bytes = i->stats.memory_bytes;
    out->memory_peak_bytes = i->stats.memory_peak_bytes;
    out->pids = i->stats.pids;
    out->network_in_bytes = i->network_in_bytes;
    out->network_out_bytes = i->network_out_bytes;
}

void instance_look(struct instance *i)
{
    i->oom = i->oom || cgroup_oom_happened(&i->place->cgroup);
    instance_usage_read(i);
    i->looked_us = clock_monotonic_us();
}

static void ended_message(const struct instance *i, Skerry__Runner__Ended *out,
                          Skerry__Runner__Stats *stats)
{
    skerry__runner__ended__init(out);
    instance_stats_fill(i, stats);
    out->id = (char *)(uintptr_t)i->id;
    out->reason = (uint32_t)i->reason;
    out->exit_code = i->exit_code;
    out->signal = i->exit_signal;
    out->oom = i->oom;
    out->stats = stats;
    out->stderr_tail = (char *)(uintptr_t)i->stderr_tail;
    out->wall_us = i->wall_us;
    out->message = (char *)(uintptr_t)i->message;
    if (!i->ready) {
        out->listening = (uint32_t *)(uintptr_t)i->ports;
        out->n_listening = i->port_count;
    }
}

static void tell_ended(struct instance *i)
{
    Skerry__Runner__Ended ended;
    Skerry__Runner__Stats stats;
    ended_message(i, &ended, &stats);
    Skerry__Runner__Event event = SKERRY__RUNNER__EVENT__INIT;
    event.event_case = SKERRY__RUNNER__EVENT__EVENT_ENDED;
    event.ended = &ended;
    server_tell(i->runner->server, &event);
}

static enum end_reason reason_of(const struct instance *i)
{
    if (i->oom)
        return END_OOM;
    if (i->asked_reason != END_NONE && i->agent_reason == END_NONE)
        return i->asked_reason;
    if (i->agent_reason != END_NONE)
        return i->agent_reason;
    if (i->main_exited)
        return END_EXITED;
    return i->started ? END_AGENT_LOST : END_START_FAILED;
}

static void ended_bound(struct instances *all)
{
    struct instance *i, *next;
    HASH_ITER(hh, all->table, i, next)
    {
        if (all->ended_count <= INSTANCE_ENDED_MAX)
            return;
        if (i->phase == INSTANCE_ENDED)
            instance_free(all, i);
    }
}

/* From here on it is kept for the node only. */
static void tell_end(struct instance *i)
{
    struct err e;
    if (clock_monotonic_us() - i->looked_us > LOOKED_US_MAX)
        instance_look(i);
    i->stats.pids = 0;
    if (i->started_us != 0)
        i->wall_us = clock_monotonic_us() - i->started_us;
    i->reason = reason_of(i);
    err_set(&e, ERR_CONFLICT, "instance %s ended (%s)", i->id, end_reason_name(i->reason));
    instance_waiting_fail(i, &e);
    if (!i->told)
        return;
    i->phase = INSTANCE_ENDED;
    layers_release(i); /* who hears of the end may remove them */
    i->runner->instances->ended_count++;
    tell_ended(i);
}

/* Process 1 is gone, and all others of its pid namespace with it. */
static void ended(struct instance *i)
{
    struct instances *all = i->runner->instances;
    bool adopting = i->phase == INSTANCE_ADOPTING;
    if (i->phase != INSTANCE_ENDED)
        tell_end(i);
    if (i->phase != INSTANCE_ENDED || i->forgotten) {
        instance_free(all, i);
        blanks_start(all->runner->blanks);
        return;
    }
    release(i);
    blanks_start(all->runner->blanks);
    reaper_add(all->runner->reaper, steal_pointer(&i->place), i->id);
    ended_bound(all);
    if (adopting)
        adopt_done(all->runner);
}

void instance_ended_unseen(struct instance *i)
{
    i->phase = INSTANCE_ENDING;
    ended(i);
}

/* Whoever was told runs next, on this processor or another: the rest comes with the end of process 1. */
void instance_ended_leaving(struct instance *i)
{
    tell_end(i);
    (void)syscall(SYS_pidfd_send_signal, i->process.watch.fd, SIGKILL, NULL, 0);
}

static void process_ended_cb(struct loop_child *child, int status)
{
    struct instance *i = container_of(child, struct instance, process);
    /* What the agent said last may still wait in its channel. */
    bool preparing = i->phase == INSTANCE_PREPARING;
    if (i->channel >= 0 && i->channel_watch.fd >= 0)
        instance_channel_cb(&i->channel_watch, EPOLLIN);
    if (preparing) {
        struct err e;
        if (i->asked_reason != END_NONE)
            err_set(&e, ERR_CANCELED, "instance %s was discarded", i->id);
        else if (cgroup_oom_happened(&i->place->cgroup))
            err_set(&e, ERR_LIMIT, "the memory limit is too small to start in");
        else
            err_set(&e, ERR_INTERNAL, "the agent ended during the start (status %d)%s%s", status,
                    i->message[0] != '\0' ? ": " : "", i->message);
        instance_prepare_failed(i, &e);
    }
    ended(i);
}

/* v1 signals that the group is out of memory before it has chosen whom to kill, and then no more:
 * so the count of kills is looked at again for a while. */
static void oom_look_cb(struct loop_timer *timer)
{
    struct instance *i = container_of(timer, struct instance, oom_look);
    struct err e;
    if (cgroup_oom_happened(&i->place->cgroup)) {
        i->oom = true;
        loop_watch_stop(i->runner->loop, &i->oom_watch);
        instance_kill(i, END_OOM);
        return;
    }
    i->oom_look_ms *= 2;
    if (i->oom_look_ms > OOM_LOOK_MS_MAX)
        return;
    if (loop_timer_start(i->runner->loop, timer, clock_boot_ms() + i->oom_look_ms, oom_look_cb,
                         &e) < 0)
        log_error("runner", "%s: %s", i->id, e.msg);
}

static void oom_cb(struct loop_watch *watch, uint32_t events)
{
    (void)events;
    struct instance *i = container_of(watch, struct instance, oom_watch);
    uint64_t drained[32];
    while (read(i->oom_fd, drained, sizeof drained) > 0)
        ;
    i->oom_look_ms = OOM_LOOK_MS_MIN;
    oom_look_cb(&i->oom_look);
}

int instance_watch(struct instance *i, int pidfd, bool ours, struct err *e)
{
    return loop_child_start(i->runner->loop, &i->process, i->pid, pidfd, ours, process_ended_cb, e);
}

int instance_watch_memory(struct instance *i, struct err *e)
{
    i->oom_fd = cgroup_oom_fd(&i->place->cgroup);
    if (i->oom_fd < 0)
        return 0;
    return loop_watch_start(i->runner->loop, &i->oom_watch, i->oom_fd, EPOLLIN, oom_cb, e);
}

void instance_kill(struct instance *i, enum end_reason reason)
{
    if (i->phase == INSTANCE_ENDED || i->place == NULL)
        return;
    if (i->asked_reason == END_NONE)
        i->asked_reason = reason;
    if (i->phase != INSTANCE_PREPARING)
        i->phase = INSTANCE_ENDING;
    cgroup_kill(&i->place->cgroup);
    if (i->process.watch.fd >= 0)
        (void)syscall(SYS_pidfd_send_signal, i->process.watch.fd, SIGKILL, NULL, 0);
}

/* --- listing ----------------------------------------------------------------------------------- */

static Skerry__Runner__HeldState state_of(const struct instance *i)
{
    switch (i->phase) {
    case INSTANCE_ENDED:
        return SKERRY__RUNNER__HELD_STATE__HELD_ENDED;
    case INSTANCE_PREPARING:
    case INSTANCE_PREPARED:
        return SKERRY__RUNNER__HELD_STATE__HELD_PREPARED;
    default:
        return i->ready ? SKERRY__RUNNER__HELD_STATE__HELD_READY
                        : SKERRY__RUNNER__HELD_STATE__HELD_STARTING;
    }
}

/* Messages of one entry, for as long as the answer is being made. */
struct entry {
    Skerry__Runner__Held held;
    Skerry__Runner__BecameReady ready;
    Skerry__Runner__Address address;
    Skerry__Runner__Ended ended;
    Skerry__Runner__Stats stats;
};

static void entry_fill(struct entry *entry, const struct instance *i)
{
    skerry__runner__held__init(&entry->held);
    entry->held.id = (char *)(uintptr_t)i->id;
    entry->held.epoch = i->epoch;
    entry->held.state = state_of(i);
    entry->held.started_boot_ms = i->started_boot_ms;
    entry->held.exec_ids = (uint32_t *)(uintptr_t)i->execs;
    entry->held.n_exec_ids = i->exec_count;
    if (i->ready) {
        skerry__runner__became_ready__init(&entry->ready);
        skerry__runner__address__init(&entry->address);
        entry->ready.id = entry->held.id;
        entry->ready.after_us = i->ready_after_us;
        entry->ready.address = &entry->address;
        entry->address.ipv6 = i->ready_ipv6;
        entry->address.port = i->ready_port;
        entry->address.address.data = (uint8_t *)(uintptr_t)i->ready_address;
        entry->address.address.len = i->ready_ipv6 ? 16 : 4;
        entry->held.ready = &entry->ready;
    }
    if (i->phase == INSTANCE_ENDED) {
        ended_message(i, &entry->ended, &entry->stats);
        entry->held.ended = &entry->ended;
    }
}

void instances_list(struct instances *all, const char *after, const struct asker *asker)
{
    struct entry *entries = calloc(LIST_PER_ANSWER, sizeof *entries);
    Skerry__Runner__Held **held = calloc(LIST_PER_ANSWER, sizeof(Skerry__Runner__Held *));
    struct instance *i = after[0] == '\0' ? all->table : instance_find(all, after);
    Skerry__Runner__List list = SKERRY__RUNNER__LIST__INIT;
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    struct err e;
    if (entries == NULL || held == NULL || (i == NULL && after[0] != '\0')) {
        err_set(&e, entries == NULL || held == NULL ? ERR_NO_MEMORY : ERR_NOT_FOUND,
                "list after %s: begin anew", after);
        server_answer(all->runner->server, asker, &e, NULL, NULL, 0);
        free(entries);
        free(held);
        return;
    }
    if (after[0] != '\0')
        i = i->hh.next;
    for (; i != NULL && list.n_held < LIST_PER_ANSWER; i = i->hh.next) {
        entry_fill(&entries[list.n_held], i);
        held[list.n_held] = &entries[list.n_held].held;
        list.n_held++;
    }
    list.held = held;
    list.more = i != NULL;
    if (list.more)
        list.next = held[list.n_held - 1]->id;
    reply.result_case = SKERRY__RUNNER__REPLY__RESULT_LIST;
    reply.list = &list;
    server_answer(all->runner->server, asker, NULL, &reply, NULL, 0);
    free(entries);
    free(held);
}
