/* Questions of the API thread: registry commands, instances made and ended by hand, ad-hoc commands,
 * execs, imports, status. Each is answered once; those that run something also get `ended`. */
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/control/fences.h"
#include "node/control/places.h"
#include "node/errands/errands.h"
#include "node/layers/copies.h"

/* --- answers -------------------------------------------------------------------------------------- */

static void answered_deliver(struct inbox_message *message, void *owner)
{
    struct node_ask *ask = container_of(message, struct node_ask, message);
    ask->answered(ask, owner);
}

static void ended_deliver(struct inbox_message *message, void *owner)
{
    struct node_ask *ask = container_of(message, struct node_ask, ended_message);
    ask->ended(ask, owner);
}

void asks_answer(struct node_ask *ask)
{
    ask->message.deliver = answered_deliver;
    /* The asker keeps its inbox open until it has all its answers. */
    assert_always(inbox_post_always(ask->reply_to, &ask->message));
}

void asks_ended(struct node_ask *ask)
{
    ask->ended_message.deliver = ended_deliver;
    assert_always(inbox_post_always(ask->reply_to, &ask->ended_message));
}

void asks_refuse(struct node_ask *ask, enum problem problem, const char *format, ...)
{
    ask->problem = problem;
    ask->ran = RAN_NO;
    if (problem_word(problem)->retryable && ask->retry_after_s == 0)
        ask->retry_after_s = 1;
    va_list args;
    va_start(args, format);
    vsnprintf(ask->detail, sizeof ask->detail, format, args);
    va_end(args);
    asks_answer(ask);
}

enum problem asks_problem_of(const struct err *error)
{
    switch (error->code) {
    case ERR_INVALID:
        return PROBLEM_WORKLOAD_INVALID;
    case ERR_NOT_FOUND:
        return PROBLEM_IMAGE_UNKNOWN;
    case ERR_CONFLICT:
    case ERR_EXISTS:
        return PROBLEM_CONFLICT;
    case ERR_LIMIT:
    case ERR_NO_MEMORY:
        return PROBLEM_NODE_FULL;
    case ERR_DENIED: /* by runner.yaml: no token changes that */
    case ERR_UNSUPPORTED:
        return PROBLEM_NOT_ENFORCED;
    default:
        return PROBLEM_START_FAILED;
    }
}

void asks_refuse_err(struct node_ask *ask, const struct err *error)
{
    asks_refuse(ask, asks_problem_of(error), "%s", error->msg);
}

/* --- registry ----------------------------------------------------------------------------------------- */

struct proposal {
    struct node *node;
    struct node_ask *ask;
};

static void propose_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct proposal *p = user;
    struct node_ask *ask = p->ask;
    struct node *n = p->node;
    free(p);
    if (error != NULL) {
        asks_refuse(ask,
                    error->code == ERR_TIMEOUT  ? PROBLEM_OUTCOME_UNKNOWN
                    : error->code == ERR_DENIED ? PROBLEM_CONFLICT
                                                : PROBLEM_NO_QUORUM,
                    "%s", error->msg);
        return;
    }
    ask->result = *result;
    /* Who asked looks at the change next: the first answer of a batch publishes it for all. */
    if (n->publish_wanted)
        routes_publish(n);
    if (result->problem != PROBLEM_NONE)
        asks_refuse(ask, result->problem, "%s", result->detail);
    else
        asks_answer(ask);
}

/* When nobody has led for long, whoever is asked cannot answer: better said now than after the deadline. */
static bool refuse_leaderless(struct node *n, struct node_ask *ask)
{
    struct registry_status s;
    char why[sizeof ask->detail];
    registry_status(n->registry, &s);
    if (s.leader || s.leader_id != 0 || fences_hold(n, why, sizeof why) != PROBLEM_NO_QUORUM)
        return false;
    asks_refuse(ask, PROBLEM_NO_QUORUM, "%s", why);
    return true;
}

static void ask_propose(struct node *n, struct node_ask *ask)
{
    struct err e = {0};
    if (refuse_leaderless(n, ask))
        return;
    struct proposal *p = calloc(1, sizeof *p);
    if (p == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    *p = (struct proposal){.node = n, .ask = ask};
    if (registry_propose(n->registry, ask->command, propose_cb, p, &e) != 0) {
        free(p);
        asks_refuse(ask,
                    e.code == ERR_LIMIT     ? PROBLEM_LIMIT_REACHED
                    : e.code == ERR_INVALID ? PROBLEM_BAD_REQUEST
                                            : PROBLEM_NO_QUORUM,
                    "%s", e.msg);
    }
}

static void transfer_cb(void *user, const struct err *error)
{
    struct node_ask *ask = user;
    if (error == NULL)
        asks_answer(ask);
    else
        asks_refuse(ask, PROBLEM_NO_QUORUM, "%s", error->msg);
}

static void ask_transfer(struct node *n, struct node_ask *ask)
{
    struct err e = {0};
    if (registry_transfer(n->registry, ask->node, transfer_cb, ask, &e) != 0)
        asks_refuse(ask, PROBLEM_CONFLICT, "%s", e.msg);
}

/* --- instances ------------------------------------------------------------------------------------------ */

struct instance *asks_need_instance(struct node *n, struct node_ask *ask)
{
    struct instance *i = instance_find(n, ask->instance);
    if (i != NULL && i->phase != PHASE_ENDED)
        return i;
    struct registry_root *root = registry_root(n->registry);
    const struct registry_instance *r =
        registry_root_instance(root, ask->instance, strlen(ask->instance));
    if (r == NULL)
        asks_refuse(ask, PROBLEM_INSTANCE_UNKNOWN,
                    "no instance has the id %s, or it ended over 24 h ago", ask->instance);
    else
        asks_refuse(ask, PROBLEM_INSTANCE_GONE, "instance %s ended: %s%s%s", ask->instance,
                    end_reason_name(r->reason), r->detail[0] != '\0' ? ": " : "", r->detail);
    registry_root_release(root);
    return NULL;
}

static struct places_want want_of(const struct node *n, const struct node_ask *ask)
{
    return (struct places_want){.workload = ask->workload,
                                .key = ask->key,
                                .stays = ask->stays || n->errands == NULL,
                                .refused = ask->refused,
                                .refused_count = ARRAY_SIZE(ask->refused)};
}

/* True: it is answered, or on its way to another node. */
static bool is_placed(struct node *n, struct node_ask *ask, const struct places_found *found)
{
    if (found->verdict == PLACES_HERE)
        return false;
    if (found->verdict == PLACES_THERE) {
        errands_ask(n, ask, found->node);
        return true;
    }
    ask->id = found->id;
    asks_refuse(ask, found->problem, "%s", found->detail);
    return true;
}

bool asks_elsewhere(struct node *n, struct node_ask *ask, enum problem problem,
                    const struct instance *i)
{
    struct places_want want = want_of(n, ask);
    struct places_found found = {.verdict = PLACES_HERE};
    bool run = ask->kind == NODE_ASK_RUN;
    if (n->stopping || want.stays)
        return false;
    if (run && (problem == PROBLEM_NODE_FULL || problem == PROBLEM_NOT_ENFORCED)) {
        ask->refused[ARRAY_SIZE(ask->refused) - 1] =
            n->id; /* its own slot: others take the first */
        places_run(n, ask->spec, &want, &found);
    } else if (ask->kind == NODE_ASK_START) {
        places_after(n, &want, problem, i, &found);
    }
    return found.verdict == PLACES_THERE && is_placed(n, ask, &found);
}

/* One of another node does not wait here for a place: it may find one elsewhere at once. */
static bool is_crowded(struct node *n, struct node_ask *ask)
{
    if (n->instance_count < n->config->limits.instances_max ||
        (ask->kind != NODE_ASK_RUN && !ask->stays))
        return false;
    if (!asks_elsewhere(n, ask, PROBLEM_NODE_FULL, NULL))
        asks_refuse(ask, PROBLEM_NODE_FULL, "%u instances run on %s: limits.instances_max",
                    n->instance_count, n->config->name);
    return true;
}

static void ask_start(struct node *n, struct node_ask *ask)
{
    struct registry_root *root = registry_root(n->registry);
    const struct registry_workload *w =
        registry_root_workload(root, ask->workload, strlen(ask->workload));
    bool command = w != NULL && w->spec.kind == WORKLOAD_COMMAND;
    registry_root_release(root);
    if (w == NULL) {
        asks_refuse(ask, PROBLEM_WORKLOAD_UNKNOWN, "%s", ask->workload);
        return;
    }
    if (command != (ask->kind == NODE_ASK_COMMAND)) {
        asks_refuse(ask, PROBLEM_CONFLICT,
                    "%s is of kind command: each request runs its own instance; invoke it",
                    ask->workload);
        return;
    }
    bool keyed = ask->key != NULL && ask->key[0] != '\0';
    struct places_want want = want_of(n, ask);
    struct places_found found;
    if (keyed && !ask->stays)
        places_find(n, &want, &found);
    else
        places_start(n, &want, &found);
    if (is_placed(n, ask, &found) || is_crowded(n, ask))
        return;
    struct waiter *waiter = waiter_new(n, NULL, ask);
    if (waiter == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_ASK,
                                           .waiter = waiter->handle,
                                           .name = ask->workload,
                                           .key = ask->key,
                                           .exclusive = !keyed || command});
}

static void run_timeout_cb(uv_timer_t *timer)
{
    struct instance *i = timer->data;
    instance_stop(i, END_TIMED_OUT, 0);
}

static void ask_run(struct node *n, struct node_ask *ask)
{
    struct places_want want = want_of(n, ask);
    struct places_found found;
    places_run(n, ask->spec, &want, &found);
    if (is_placed(n, ask, &found) || is_crowded(n, ask))
        return;
    char why[512];
    enum problem hold = fences_hold(n, why, sizeof why);
    if (hold != PROBLEM_NONE) {
        asks_refuse(ask, hold, "%s", why);
        return;
    }
    char by[96];
    text_format(by, sizeof by, "%s at %s%s%s", ask->asked_by, n->config->name,
                ask->request_id != NULL ? ", request " : "",
                ask->request_id != NULL ? ask->request_id : "");
    struct instance_request r = {
        .run_spec = ask->spec,
        .asked_by = by,
        .asked_us = clock_monotonic_us(),
        .tty = ask->tty,
        .no_stdin = ask->no_stdin,
        .rows = ask->rows,
        .columns = ask->columns,
        .run_ask = ask,
    };
    struct instance *i;
    struct err e = {0};
    if (instance_start(n, &r, &i, &e) != 0)
        asks_refuse_err(ask, &e);
}

void asks_run_granted(struct instance *i)
{
    struct node_ask *ask = i->run_ask;
    ask->id = i->id;
    ask->started_wall_ms = i->asked_wall_ms;
    for (size_t k = 0; k < ARRAY_SIZE(ask->descriptors); k++)
        ask->descriptors[k] = steal_fd(&i->descriptors[k]);
    ask->control = i;
    if (ask->timeout_ms != 0) {
        i->timer = calloc(1, sizeof *i->timer);
        if (i->timer != NULL) {
            uv_timer_init(&i->node->loop, i->timer);
            i->timer->data = i;
            uv_timer_start(i->timer, run_timeout_cb, ask->timeout_ms, 0);
        }
    }
    explain_remember(i->node, ask->request_id, &i->id, PROBLEM_NONE, NULL);
    asks_answer(ask);
}

static void ask_stop(struct node *n, struct node_ask *ask)
{
    struct instance *i = asks_need_instance(n, ask);
    if (i == NULL)
        return;
    ask->id = i->id;
    ask->control = i->stop_asks;
    i->stop_asks = ask;
    uint64_t grace_ms = i->spec->timeouts.drain_ms;
    instance_stop(i, END_KILLED,
                  grace_ms < CONTROL_STOP_GRACE_MS ? (unsigned)grace_ms : CONTROL_STOP_GRACE_MS);
}

static void life_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                    int *descriptors, size_t descriptor_count)
{
    (void)user;
    (void)reply;
    (void)descriptors;
    (void)descriptor_count;
    if (error != NULL)
        log_warn("runner", "a new end of life was not taken: %s", error->msg);
}

/* The agent's own timer, which would end it otherwise. */
static void tell_life(struct node *n, const struct instance *i, uint64_t life_ms)
{
    Skerry__Runner__Life life = SKERRY__RUNNER__LIFE__INIT;
    life.id = (char *)(uintptr_t)i->id.text;
    life.remaining_ms = instance_life_bound_ms(i, life_ms);
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_LIFE;
    r.life = &life;
    struct err e = {0};
    if (sandbox_ask(n->sandbox, &r, life_cb, NULL, &e) != 0)
        log_warn("runner", "%s: a new end of life was not told: %s", i->id.text, e.msg);
}

static void ask_extend(struct node *n, struct node_ask *ask)
{
    struct instance *i = asks_need_instance(n, ask);
    if (i == NULL)
        return;
    if (i->handle == 0 || i->phase != PHASE_READY) {
        asks_refuse(ask, PROBLEM_CONFLICT, "instance %s is %s: only a ready one is extended",
                    ask->instance, i->handle == 0 ? "a single command" : "not ready");
        return;
    }
    uint64_t until_ms =
        ask->duration_ms == DURATION_NONE ? UINT64_MAX : clock_monotonic_ms() + ask->duration_ms;
    char span[UNIT_TEXT_SIZE];
    duration_format(ask->duration_ms, span);
    instance_note(i, "extended", "by an operator: %s from now", span);
    tell_life(n, i, ask->duration_ms);
    i->extended_ms = until_ms;
    if (i->slot.slot != NULL)
        atomic_store(&i->slot.slot->ends_wall_ms, instance_ends_wall_ms(i));
    steps_run(n, &(struct scheduler_event){
                     .kind = SCHEDULER_EXTEND, .instance = i->handle, .until_ms = until_ms});
    ask->id = i->id;
    asks_answer(ask);
}

void asks_again(struct node *n, struct node_ask *ask)
{
    ask->problem = PROBLEM_NONE;
    ask->id.text[0] = '\0';
    if (ask->kind == NODE_ASK_RUN)
        ask_run(n, ask);
    else
        ask_start(n, ask);
}

/* --- ends ---------------------------------------------------------------------------------------- */

void asks_instance_ended(struct instance *i)
{
    if (i->run_ask != NULL) {
        struct node_ask *ask = i->run_ask;
        i->run_ask = NULL;
        bool granted = ask->control == i;
        ask->control = NULL;
        instance_end_tell(i, &ask->end);
        ask->id = i->id;
        enum problem problem = i->problem != PROBLEM_NONE ? i->problem : PROBLEM_START_FAILED;
        if (granted)
            asks_ended(ask);
        else if (!asks_elsewhere(i->node, ask, problem, i))
            asks_refuse(ask, problem, "%s", i->detail);
    }
    while (i->stop_asks != NULL) {
        struct node_ask *ask = i->stop_asks;
        i->stop_asks = ask->control;
        ask->control = NULL;
        asks_answer(ask);
    }
    execs_instance_ended(i);
}

/* --- the rest --------------------------------------------------------------------------------------------------- */

static void stats_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                     int *descriptors, size_t descriptor_count)
{
    (void)descriptors;
    (void)descriptor_count;
    struct node_ask *ask = user;
    if (error != NULL || reply->stats == NULL) {
        asks_refuse(ask, PROBLEM_INSTANCE_GONE, "%s",
                    error != NULL ? error->msg : "the runner sent no numbers");
        return;
    }
    ask->usage.cpu_us = reply->stats->cpu_us;
    ask->usage.memory_bytes = reply->stats->memory_bytes;
    ask->usage.memory_peak_bytes = reply->stats->memory_peak_bytes;
    ask->usage.disk_bytes = reply->stats->disk_bytes;
    ask->usage.network_in_bytes = reply->stats->network_in_bytes;
    ask->usage.network_out_bytes = reply->stats->network_out_bytes;
    ask->usage.pids = reply->stats->pids;
    asks_answer(ask);
}

static void ask_stats(struct node *n, struct node_ask *ask)
{
    struct instance *i = asks_need_instance(n, ask);
    if (i == NULL)
        return;
    ask->usage.joiners = i->slot.slot != NULL ? slot_joiners(i->slot) : 0;
    Skerry__Runner__Instance which = SKERRY__RUNNER__INSTANCE__INIT;
    which.id = i->id.text;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_STATS;
    r.stats = &which;
    struct err e = {0};
    if (sandbox_ask(n->sandbox, &r, stats_cb, ask, &e) != 0)
        asks_refuse_err(ask, &e);
}

/* A strong read that is under way. */
struct strong_read {
    struct strong_read *next;
    struct node *node;
    struct node_ask *ask; /* NULL: answered that there is no quorum; the registry gives up later */
};

static void read_forget(struct strong_read *read)
{
    struct strong_read **at = &read->node->strong_reads;
    while (*at != read)
        at = &(*at)->next;
    *at = read->next;
    free(read);
}

static void read_cb(void *user, const struct err *error)
{
    struct strong_read *read = user;
    struct node *n = read->node;
    struct node_ask *ask = read->ask;
    read_forget(read);
    if (ask == NULL)
        return;
    if (error != NULL) {
        asks_refuse(ask, PROBLEM_NO_QUORUM, "the newest state could not be read: %s", error->msg);
        return;
    }
    struct registry_root *root = registry_root(n->registry);
    ask->result.index = registry_root_index(root);
    registry_root_release(root);
    asks_answer(ask);
}

static void ask_read(struct node *n, struct node_ask *ask)
{
    struct err e = {0};
    if (refuse_leaderless(n, ask))
        return;
    struct strong_read *read = calloc(1, sizeof *read);
    if (read == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    *read = (struct strong_read){.next = n->strong_reads, .node = n, .ask = ask};
    n->strong_reads = read;
    if (registry_read(n->registry, read_cb, read, &e) == 0)
        return;
    read_forget(read);
    asks_refuse(ask, e.code == ERR_LIMIT ? PROBLEM_LIMIT_REACHED : PROBLEM_NO_QUORUM, "%s", e.msg);
}

void asks_leaderless(struct node *n)
{
    for (struct strong_read *read = n->strong_reads; read != NULL; read = read->next)
        if (read->ask != NULL && refuse_leaderless(n, read->ask))
            read->ask = NULL;
}

static void ask_explain(struct node *n, struct node_ask *ask)
{
    ask->json = explain_json(n, ask->instance);
    if (ask->json == NULL)
        asks_refuse(ask, PROBLEM_NOT_FOUND,
                    "no instance or workload is called %s, and no request that started one, waited "
                    "for one or was refused",
                    ask->instance);
    else
        asks_answer(ask);
}

static void deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct node_ask *ask = container_of(message, struct node_ask, message);
    bool makes = ask->kind == NODE_ASK_START || ask->kind == NODE_ASK_RUN ||
                 ask->kind == NODE_ASK_COMMAND || ask->kind == NODE_ASK_EXEC ||
                 ask->kind == NODE_ASK_SOCKET || ask->kind == NODE_ASK_IMPORT;
    if (n->stopping && makes) {
        asks_refuse(ask, PROBLEM_DRAINING, "the node is stopping");
        return;
    }
    switch (ask->kind) {
    case NODE_ASK_PROPOSE:
        ask_propose(n, ask);
        break;
    case NODE_ASK_START:
    case NODE_ASK_COMMAND:
        ask_start(n, ask);
        break;
    case NODE_ASK_RUN:
        ask_run(n, ask);
        break;
    case NODE_ASK_STOP:
        ask_stop(n, ask);
        break;
    case NODE_ASK_EXTEND:
        ask_extend(n, ask);
        break;
    case NODE_ASK_EXEC:
        execs_ask(n, ask);
        break;
    case NODE_ASK_SOCKET:
        sockets_ask(n, ask);
        break;
    case NODE_ASK_SIGNAL:
    case NODE_ASK_RESIZE:
    case NODE_ASK_CANCEL:
        execs_ask_target(n, ask);
        break;
    case NODE_ASK_IMPORT:
        imports_ask(n, ask);
        break;
    case NODE_ASK_STATS:
        ask_stats(n, ask);
        break;
    case NODE_ASK_READ:
        ask_read(n, ask);
        break;
    case NODE_ASK_STATUS:
        ask->json = status_json(n);
        asks_answer(ask);
        break;
    case NODE_ASK_EXPLAIN:
        ask_explain(n, ask);
        break;
    case NODE_ASK_TRANSFER:
        ask_transfer(n, ask);
        break;
    case NODE_ASK_COPIES:
        copies_ask(n, ask);
        break;
    case NODE_ASK_IMAGE_GC:
        imports_collect(n, ask);
        break;
    }
}

bool node_ask(struct node *n, struct node_ask *ask)
{
    ask->problem = PROBLEM_NONE;
    ask->ran = RAN_NO;
    ask->retry_after_s = 0;
    ask->detail[0] = '\0';
    ask->id.text[0] = '\0';
    ask->json = NULL;
    ask->control = NULL;
    memset(ask->refused, 0, sizeof ask->refused);
    ask->descriptors[0] = ask->descriptors[1] = ask->descriptors[2] = -1;
    memset(&ask->end, 0, sizeof ask->end);
    memset(&ask->import, 0, sizeof ask->import);
    ask->end.exit_code = -1;
    ask->message.deliver = deliver;
    return inbox_post(n->inbox, &ask->message);
}
