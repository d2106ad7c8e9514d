/* Reconciliation: what the runner holds against what the registry says, after a start and whenever
 * the runner came back.
 *
 *   held | in the registry | here
 *   yes  | live, our epoch | adopted; a prepared one is discarded, a command has lost its client
 *   yes  | live, other epoch, ended (node_lost: our lease was over meanwhile) or unknown | killed
 *   no   | live, ours | ended: start_lost if it was starting, else agent_lost
 *
 * Until that is done no join is taken, so that nobody is told 404 for an instance that lives. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/control/fences.h"

struct listing {
    struct node *node;
    struct map seen; /* ids that the runner holds */
};

struct seen {
    struct map_value value;
};

static void seen_release(struct map_value *value)
{
    free(container_of(value, struct seen, value));
}

static void ignored_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                       int *descriptors, size_t descriptor_count)
{
    (void)user;
    (void)error;
    (void)reply;
    for (size_t k = 0; k < descriptor_count; k++)
        memory_close(&descriptors[k]);
}

/* `record`: what the registry has of that id, NULL: nothing. */
static void kill_held(struct node *n, const char *id, const struct registry_instance *record)
{
    bool lost = record != NULL &&
                (record->state != INSTANCE_STATE_ENDED || record->reason == END_NODE_LOST);
    log_warn("adopt", "%s is held by the runner but not by the registry: it is ended%s", id,
             lost ? ", since the lease of this node was over meanwhile" : "");
    Skerry__Runner__Stop stop = SKERRY__RUNNER__STOP__INIT;
    stop.id = (char *)(uintptr_t)id;
    stop.reason = lost ? END_NODE_LOST : END_KILLED;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_STOP;
    r.stop = &stop;
    struct err e = {0};
    if (sandbox_ask(n->sandbox, &r, ignored_cb, NULL, &e) != 0)
        log_warn("adopt", "%s: %s", id, e.msg);
    Skerry__Runner__Instance which = SKERRY__RUNNER__INSTANCE__INIT;
    which.id = stop.id;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_FORGET;
    r.forget = &which;
    if (sandbox_ask(n->sandbox, &r, ignored_cb, NULL, &e) != 0)
        log_warn("adopt", "%s: %s", id, e.msg);
}

static struct instance *adopt_record(struct node *n, const struct registry_root *root,
                                     const struct registry_instance *record,
                                     const Skerry__Runner__Held *held)
{
    struct instance *i = instance_new(n, &record->id);
    if (i == NULL)
        return NULL;
    i->adopted = true;
    i->reserved = i->prepared = true;
    i->epoch = record->epoch;
    i->version = record->version;
    i->marks = record->marks;
    text_copy(i->name, sizeof i->name, record->workload);
    text_copy(i->key, sizeof i->key, record->key);
    text_copy(i->asked_by, sizeof i->asked_by, record->asked_by);
    i->asked_wall_ms = record->started_wall_ms;
    uint64_t boot_ms = clock_boot_ms();
    uint64_t age_ms = held->started_boot_ms != 0 && held->started_boot_ms < boot_ms
                          ? boot_ms - held->started_boot_ms
                          : 0;
    uint64_t wall_ms = clock_wall_ms();
    uint64_t asked_ago_ms =
        wall_ms > record->started_wall_ms ? wall_ms - record->started_wall_ms : age_ms;
    uint64_t now_us = clock_monotonic_us();
    i->asked_us = now_us > asked_ago_ms * 1000 ? now_us - asked_ago_ms * 1000 : 1;
    uint64_t now_ms = clock_monotonic_ms();
    i->ready_ms = now_ms > age_ms ? now_ms - age_ms : 1;
    i->last_exec_ms = now_ms; /* idle time begins anew: joiners had no chance meanwhile */
    const struct registry_workload *w =
        record->workload[0] != '\0'
            ? registry_root_workload_version(root, record->workload, record->version)
            : NULL;
    if (w != NULL) {
        i->workload = (struct registry_workload *)(uintptr_t)w;
        map_value_hold(&i->workload->value);
        i->spec = &w->spec;
        i->handle = n->adopted_next++;
    } else {
        i->run_spec.kind = WORKLOAD_COMMAND;
        i->spec = &i->run_spec;
    }
    for (size_t k = 0; k < held->n_exec_ids; k++)
        if (held->exec_ids[k] > i->exec_next)
            i->exec_next = held->exec_ids[k];
    instance_link(i);
    instance_note(i, "asked", "%s", i->asked_by);
    instance_note(i, "adopted", "after a restart of the node");
    return i;
}

/* A slot again, and the scheduler's knowledge of it, with the clocks that ran meanwhile. */
static void adopt_running(struct node *n, struct instance *i, const Skerry__Runner__Held *held,
                          enum instance_state recorded)
{
    bool ready = held->state == SKERRY__RUNNER__HELD_STATE__HELD_READY;
    uint64_t ready_ms = i->ready_ms;
    struct err e = {0};
    i->phase = PHASE_COMMITTED;
    if (ready && instance_open(i, held->ready != NULL ? held->ready->address : NULL, &e) != 0) {
        log_error("adopt", "%s: %s", i->id.text, e.msg);
        instance_stop(i, END_AGENT_LOST, 0);
        return;
    }
    if (!ready) {
        i->ready_ms = 0;
        routes_instance(n, i);
    }
    steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_ADOPTED,
                                           .instance = i->handle,
                                           .name = i->name,
                                           .version = i->version,
                                           .key = i->key,
                                           .ready = ready,
                                           .started_ms = ready_ms});
    if (recorded == INSTANCE_STATE_DRAINING)
        steps_run(n, &(struct scheduler_event){
                         .kind = SCHEDULER_DRAIN, .instance = i->handle, .reason = END_DRAINED});
}

static void adopt_held(struct node *n, const struct registry_root *root,
                       const Skerry__Runner__Held *held)
{
    struct instance *known = instance_find(n, held->id);
    if (known != NULL) {
        /* Only the runner was away: what it says now may have happened meanwhile. */
        if (held->state == SKERRY__RUNNER__HELD_STATE__HELD_ENDED && held->ended != NULL)
            instance_ended(known, held->ended);
        else if (held->state == SKERRY__RUNNER__HELD_STATE__HELD_READY &&
                 known->phase == PHASE_COMMITTED)
            instance_make_ready(known, held->ready != NULL ? held->ready->address : NULL);
        return;
    }
    const struct registry_instance *record =
        registry_root_instance(root, held->id, strlen(held->id));
    if (record == NULL || record->owner != n->id || record->state == INSTANCE_STATE_ENDED ||
        /* Prepared while the reservation was under way, it was not told its epoch. */
        (held->epoch != 0 && record->epoch != held->epoch)) {
        kill_held(n, held->id, record);
        return;
    }
    struct instance *i = adopt_record(n, root, record, held);
    if (i == NULL) {
        log_error("adopt", "%s: the node is out of memory", held->id);
        return;
    }
    log_info("adopt", "%s of %s", i->id.text, instance_label(i));
    if (held->state == SKERRY__RUNNER__HELD_STATE__HELD_ENDED && held->ended != NULL) {
        i->phase = PHASE_READY;
        instance_ended(i, held->ended);
    } else if (held->state == SKERRY__RUNNER__HELD_STATE__HELD_PREPARED) {
        i->phase = PHASE_COMMITTED;
        instance_stop(i, END_START_LOST, 0);
    } else if (i->spec->kind == WORKLOAD_COMMAND) {
        i->phase = PHASE_READY;
        instance_stop(i, END_CLIENT_GONE, 0);
    } else {
        adopt_running(n, i, held, record->state);
    }
}

/* --- what the registry says and the runner does not hold -------------------------------------------- */

static void end_lost_cb(void *user, const struct err *error, const struct registry_result *result)
{
    (void)user;
    if (error != NULL)
        log_warn("adopt", "a lost instance was not recorded as ended: %s", error->msg);
    else if (result->problem != PROBLEM_NONE)
        log_debug("adopt", "%s", result->detail);
}

static bool end_lost(void *user, const struct registry_instance *record)
{
    struct listing *l = user;
    struct node *n = l->node;
    if (record->owner != n->id || record->state == INSTANCE_STATE_ENDED ||
        map_get(&l->seen, record->id.text, strlen(record->id.text)) != NULL)
        return true;
    struct instance *i = instance_find(n, record->id.text);
    if (i != NULL) {
        /* One whose prepare is under way is not held yet. */
        if (i->phase != PHASE_STARTING)
            instance_ended_locally(i, END_AGENT_LOST, "the runner lost it");
        return true;
    }
    struct registry_instance end = *record;
    end.state = INSTANCE_STATE_ENDED;
    end.reason = record->state == INSTANCE_STATE_STARTING ? END_START_LOST : END_AGENT_LOST;
    end.ended_wall_ms = clock_wall_ms();
    struct registry_command command = {
        .kind = REGISTRY_INSTANCE_END, .wall_ms = end.ended_wall_ms, .instance = &end};
    struct err e = {0};
    if (registry_propose(n->registry, &command, end_lost_cb, NULL, &e) != 0)
        log_warn("adopt", "%s: %s", record->id.text, e.msg);
    return true;
}

/* --- listing ------------------------------------------------------------------------------------------ */

static void list_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                    int *descriptors, size_t descriptor_count);

/* One page of the list, behind the id `after` ("": the first). */
static int ask_list(struct listing *l, char *after, struct err *e)
{
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_LIST;
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    r.list = &empty;
    r.list_after = after;
    return sandbox_ask(l->node->sandbox, &r, list_cb, l, e);
}

static void finish(struct listing *l, bool complete)
{
    struct node *n = l->node;
    if (complete) {
        struct registry_root *root = registry_root(n->registry);
        registry_root_instances(root, NULL, end_lost, l);
        registry_root_release(root);
        n->reconciled = true;
        fences_adopted(n);
    }
    n->reconciling = false;
    map_release(&l->seen);
    free(l);
    node_progress(n);
}

static void list_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                    int *descriptors, size_t descriptor_count)
{
    (void)descriptors;
    (void)descriptor_count;
    struct listing *l = user;
    if (error != NULL || reply->list == NULL) {
        log_warn("adopt", "the runner did not list its instances: %s",
                 error != NULL ? error->msg : "no list came");
        finish(l, false);
        return;
    }
    struct registry_root *root = registry_root(l->node->registry);
    for (size_t k = 0; k < reply->list->n_held; k++) {
        const Skerry__Runner__Held *held = reply->list->held[k];
        struct seen *s = calloc(1, sizeof *s);
        struct err e = {0};
        if (s != NULL) {
            map_value_init(&s->value, seen_release);
            if (map_put(&l->seen, &l->seen, held->id, strlen(held->id), &s->value, &e) != 0)
                log_error("adopt", "%s: %s", held->id, e.msg);
            map_value_drop(&s->value);
        }
        adopt_held(l->node, root, held);
    }
    registry_root_release(root);
    struct err e = {0};
    if (!reply->list->more)
        finish(l, true);
    else if (ask_list(l, reply->list->next, &e) != 0)
        finish(l, false);
}

void adopt_connected(void *user, const Skerry__Runner__HelloReply *hello)
{
    struct node *n = user;
    if (n->hello != NULL)
        skerry__runner__hello_reply__free_unpacked(n->hello, NULL);
    /* A copy by way of the wire: generated structs have no other. */
    size_t size = skerry__runner__hello_reply__get_packed_size(hello);
    uint8_t *packed = malloc(size > 0 ? size : 1);
    assert_always(packed != NULL);
    skerry__runner__hello_reply__pack(hello, packed);
    n->hello = skerry__runner__hello_reply__unpack(NULL, size, packed);
    free(packed);
    n->runner_seen = true;
    pthread_mutex_lock(&n->facts_mutex);
    text_copy(n->logs_directory, sizeof n->logs_directory, hello->logs_directory);
    n->metrics.runner_connected = true;
    pthread_mutex_unlock(&n->facts_mutex);
    log_info("runner", "connected: version %s, cgroup %s", hello->version, hello->cgroup);
    for (size_t k = 0; k < hello->n_warnings; k++)
        log_warn("runner", "%s", hello->warnings[k]);
    if (hello->n_unenforced > 0)
        log_warn("runner",
                 "%zu kinds of limits are NOT enforced on this machine; skerry status names "
                 "them",
                 hello->n_unenforced);
    n->reconciled = false;
    node_progress(n);
}

void adopt_disconnected(void *user)
{
    struct node *n = user;
    n->reconciled = false;
    pthread_mutex_lock(&n->facts_mutex);
    n->metrics.runner_connected = false;
    pthread_mutex_unlock(&n->facts_mutex);
    if (!n->stopping)
        log_warn("runner", "connection lost; running instances go on and are found again");
    imports_runner_gone(n);
}

void adopt_reconcile(struct node *n)
{
    if (n->reconciling || n->reconciled)
        return;
    struct listing *l = calloc(1, sizeof *l);
    struct err e = {0};
    if (l == NULL) {
        log_error("adopt", "the node is out of memory");
        return;
    }
    l->node = n;
    n->reconciling = true;
    if (ask_list(l, (char *)"", &e) != 0) {
        log_warn("adopt", "the runner cannot be asked: %s", e.msg);
        n->reconciling = false;
        free(l);
    }
}
