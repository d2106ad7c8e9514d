/* Questions of gateway threads that the routes could not answer: cold starts, queues, commands,
 * forced joins of instances that start, and autopsies. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control/certain.h"
#include "node/control/control.h"
#include "node/control/fences.h"
#include "node/control/places.h"
#include "node/errands/errands.h"

/* How often one that came too late for the last place of scale.max asks again. */
#define TOO_LATE_MAX 4u

/* --- waiters ---------------------------------------------------------------------------------------- */

struct waiter *waiter_new(struct node *n, struct gateway_ask *gateway_ask,
                          struct node_ask *node_ask)
{
    struct waiter *w = calloc(1, sizeof *w);
    if (w == NULL)
        return NULL;
    w->handle = ++n->waiter_next;
    w->gateway_ask = gateway_ask;
    w->node_ask = node_ask;
    w->ask_key = gateway_ask != NULL ? (const void *)gateway_ask : (const void *)node_ask;
    HASH_ADD(hh, n->waiters, handle, sizeof w->handle, w);
    HASH_ADD(by_ask, n->waiters_by_ask, ask_key, sizeof w->ask_key, w);
    return w;
}

struct waiter *waiter_find(struct node *n, scheduler_waiter handle)
{
    struct waiter *w = NULL;
    HASH_FIND(hh, n->waiters, &handle, sizeof handle, w);
    return w;
}

struct waiter *waiter_by_ask(struct node *n, const void *ask)
{
    struct waiter *w = NULL;
    HASH_FIND(by_ask, n->waiters_by_ask, &ask, sizeof ask, w);
    return w;
}

void waiter_free(struct node *n, struct waiter *w)
{
    HASH_DELETE(hh, n->waiters, w);
    HASH_DELETE(by_ask, n->waiters_by_ask, w);
    free(w);
}

/* --- answers ------------------------------------------------------------------------------------------ */

static unsigned seconds_up(uint64_t ms)
{
    uint64_t s = (ms + 999) / 1000;
    return s == 0 ? 1 : s > 3600 ? 3600 : (unsigned)s;
}

static void fill_timing(struct gateway_ask *ask, const struct instance *i,
                        enum scheduler_start start)
{
    if (start == SCHEDULER_JOIN || i->adopted)
        return;
    ask->timing.reserve_us = i->marks.reserved_us;
    ask->timing.sandbox_us = i->marks.sandbox_us;
    ask->timing.code_us = i->code_us;
}

void joins_answer_problem(struct node *n, struct gateway_ask *ask, enum problem problem,
                          const char *detail, uint64_t retry_after_ms)
{
    joins_answer_ran(n, ask, problem, RAN_NO, detail, retry_after_ms);
}

void joins_answer_ran(struct node *n, struct gateway_ask *ask, enum problem problem, enum ran ran,
                      const char *detail, uint64_t retry_after_ms)
{
    ask->problem = problem;
    ask->ran = ran;
    ask->retry_after_s = problem_word(problem)->retryable ? seconds_up(retry_after_ms) : 0;
    text_copy(ask->detail, sizeof ask->detail, detail != NULL ? detail : "");
    explain_remember(n, ask->request_id, ask->id.text[0] != '\0' ? &ask->id : NULL, problem,
                     ask->detail);
    gateway_answer(ask);
}

void joins_grant(struct node *n, struct waiter *w, struct instance *i, enum scheduler_start start)
{
    struct gateway_ask *ask = w->gateway_ask;
    struct node_ask *node_ask = w->node_ask;
    waiter_free(n, w);
    if (ask == NULL && i->spec->kind == WORKLOAD_COMMAND) {
        i->run_ask = node_ask;
        asks_run_granted(i);
        return;
    }
    if (ask == NULL) {
        /* Who starts a keyed one by hand has entered it, and stays not. */
        unsigned left = node_ask->key != NULL && node_ask->key[0] != '\0' && i->slot.slot != NULL
                            ? slot_leave(i->slot, clock_monotonic_ms())
                            : 0;
        if (left != 0)
            joins_slot_left(n, i->slot, left);
        node_ask->id = i->id;
        asks_answer(node_ask);
        return;
    }
    ask->id = i->id;
    if (ask->kind == WORKLOAD_SERVER && i->spec->port == 0 && !ask->portless) {
        /* The gateway refuses these; a version without a port may have come in between. */
        unsigned left = i->slot.slot != NULL ? slot_leave(i->slot, clock_monotonic_ms()) : 0;
        if (left != 0)
            joins_slot_left(n, i->slot, left);
        joins_answer_problem(n, ask, PROBLEM_CONFLICT,
                             "the instance has no port: it can be reached by exec and files only",
                             0);
        return;
    }
    ask->problem = PROBLEM_NONE;
    ask->slot = i->slot;
    ask->start = (enum gateway_start)start;
    fill_timing(ask, i, start);
    if (ask->kind == WORKLOAD_COMMAND) {
        for (size_t k = 0; k < ARRAY_SIZE(ask->descriptors); k++)
            ask->descriptors[k] = steal_fd(&i->descriptors[k]);
        i->command_ask = ask;
    }
    explain_remember(n, ask->request_id, &i->id, PROBLEM_NONE, NULL);
    /* Who reads the id in this answer may come back with it at once, to another thread. */
    if (n->publish_wanted)
        routes_publish(n);
    gateway_answer(ask);
}

/* --- other nodes ------------------------------------------------------------------------------------- */

static struct places_want want_of(const struct gateway_ask *ask)
{
    return (struct places_want){
        .workload = ask->workload,
        .key = ask->key,
        .stays = ask->forwarded,
        .refused = ask->refused,
        .refused_count = ARRAY_SIZE(ask->refused),
    };
}

/* True: it is answered. */
static bool answer_place(struct node *n, struct gateway_ask *ask, const struct places_found *found)
{
    if (found->verdict == PLACES_HERE)
        return false;
    ask->id = found->id;
    if (found->verdict == PLACES_NOWHERE) {
        joins_answer_problem(n, ask, found->problem, found->detail, found->retry_after_ms);
        return true;
    }
    if (ask->kind == WORKLOAD_COMMAND) {
        errands_command(n, ask, found->node);
        return true;
    }
    ask->problem = PROBLEM_NONE;
    ask->elsewhere = found->node;
    gateway_answer(ask);
    return true;
}

/* The scheduler has said no; somebody else may say yes. */
static bool refused_elsewhere(struct node *n, struct gateway_ask *ask, enum problem problem,
                              const struct instance *i)
{
    if (ask->instance[0] != '\0')
        return false;
    struct places_want want = want_of(ask);
    struct places_found found;
    places_after(n, &want, problem, i, &found);
    return answer_place(n, ask, &found);
}

/* Others have started meanwhile what scale.max allows. By now that is known here, and who asks again may
 * wait for room in it; one of another node only if there are some here. */
static bool came_too_late(struct node *n, const struct gateway_ask *ask, enum problem problem)
{
    if (problem != PROBLEM_LIMIT_REACHED || ask->instance[0] != '\0' ||
        ask->too_late == TOO_LATE_MAX)
        return false;
    return !ask->forwarded || ask->kind == WORKLOAD_COMMAND || ask->key[0] != '\0' ||
           scheduler_hopes(n->scheduler, ask->workload);
}

void joins_refuse(struct node *n, struct waiter *w, enum problem problem, const char *detail,
                  uint64_t retry_after_ms, const struct instance *i)
{
    struct gateway_ask *ask = w->gateway_ask;
    struct node_ask *node_ask = w->node_ask;
    if (ask != NULL && came_too_late(n, ask, problem)) {
        ask->too_late++;
        steps_defer_again(n, w);
        return;
    }
    waiter_free(n, w);
    if (ask == NULL && asks_elsewhere(n, node_ask, problem, i))
        return;
    if (ask == NULL) {
        node_ask->retry_after_s = seconds_up(retry_after_ms);
        if (i != NULL)
            node_ask->id = i->id;
        asks_refuse(node_ask, problem, "%s", detail != NULL ? detail : "");
        return;
    }
    if (refused_elsewhere(n, ask, problem, i))
        return;
    char text[512];
    if (problem == PROBLEM_NO_QUORUM && fences_hold(n, text, sizeof text) == PROBLEM_NO_QUORUM)
        detail = text; /* as it is now, not when starts were held */
    if (i != NULL)
        ask->id = i->id;
    joins_answer_problem(n, ask, problem, detail, retry_after_ms);
}

/* --- asks ---------------------------------------------------------------------------------------------- */

static void refuse_gone(struct node *n, struct gateway_ask *ask, enum end_reason reason,
                        int exit_code, const char *detail)
{
    char text[400];
    if (reason == END_EXITED && exit_code >= 0)
        text_format(text, sizeof text, "instance %s ended: exited with code %d%s%s", ask->instance,
                    exit_code, detail[0] != '\0' ? ": " : "", detail);
    else
        text_format(text, sizeof text, "instance %s ended: %s%s%s", ask->instance,
                    end_reason_name(reason), detail[0] != '\0' ? ": " : "", detail);
    joins_answer_problem(n, ask, PROBLEM_INSTANCE_GONE, text, 0);
}

static void refuse_unknown(struct node *n, struct gateway_ask *ask)
{
    char text[120];
    text_format(text, sizeof text, "no instance has the id %s, or it ended over 24 h ago",
                ask->instance);
    joins_answer_problem(n, ask, PROBLEM_INSTANCE_UNKNOWN, text, 0);
}

/* Asked once more when the registry's root was proved to hold all that has been committed. */
struct doubt {
    struct node *node;
    struct gateway_ask *ask;
};

static void ask_surely(struct node *n, struct gateway_ask *ask);

static void certain_now_cb(void *user, bool sure)
{
    struct doubt *d = user;
    struct node *n = d->node;
    struct gateway_ask *ask = d->ask;
    free(d);
    char text[512];
    quorum_text(n, text, sizeof text);
    if (sure)
        ask_surely(n, ask);
    else
        joins_answer_problem(n, ask, PROBLEM_NO_QUORUM, text, 2000);
}

static void make_sure(struct node *n, struct gateway_ask *ask)
{
    struct doubt *d = malloc(sizeof *d);
    if (d == NULL) {
        joins_answer_problem(n, ask, PROBLEM_INTERNAL, "the node is out of memory", 1000);
        return;
    }
    *d = (struct doubt){.node = n, .ask = ask};
    certain_wait(n, certain_now_cb, d);
}

/* Not one of those that this node holds. An end is final, whoever tells of it; that there is nothing is
 * said only if it is sure. */
static void answer_absent(struct node *n, struct gateway_ask *ask, bool sure)
{
    struct registry_root *root = registry_root(n->registry);
    const struct registry_instance *r =
        registry_root_instance(root, ask->instance, strlen(ask->instance));
    if (r == NULL && !sure) {
        registry_root_release(root);
        make_sure(n, ask);
        return;
    }
    if (r == NULL) {
        refuse_unknown(n, ask);
    } else if (r->state == INSTANCE_STATE_ENDED) {
        refuse_gone(n, ask, r->reason, r->exit_code, r->detail);
    } else if (r->owner == n->id) {
        joins_answer_problem(n, ask, PROBLEM_OWNER_UNREACHABLE,
                             "the instance is being re-adopted after a restart", 1000);
    } else if (ask->forwarded) {
        joins_answer_problem(n, ask, PROBLEM_OWNER_UNREACHABLE,
                             "the instance lives on another node than the one that was asked",
                             1000);
    } else {
        ask->problem = PROBLEM_NONE;
        ask->elsewhere = r->owner;
        ask->id = r->id;
        gateway_answer(ask);
    }
    registry_root_release(root);
}

/* An instance that the routes did not show as joinable: what is true now. */
static bool answer_forced_now(struct node *n, struct gateway_ask *ask, bool sure,
                              struct instance **out)
{
    struct instance *i = instance_find(n, ask->instance);
    *out = i;
    if (i == NULL) {
        answer_absent(n, ask, sure);
        return true;
    }
    if (i->phase == PHASE_ENDED || i->phase == PHASE_STOPPING) {
        refuse_gone(n, ask, i->end_reason, instance_exit_code(i), i->end_message);
        return true;
    }
    if (i->handle == 0 || i->spec->kind == WORKLOAD_COMMAND) {
        joins_answer_problem(n, ask, PROBLEM_CONFLICT,
                             "the instance runs one command and cannot be joined", 0);
        return true;
    }
    if (i->phase == PHASE_READY && i->spec->port == 0 && !ask->portless) {
        joins_answer_problem(n, ask, PROBLEM_CONFLICT,
                             "the instance has no port: it can be reached by exec and files only",
                             0);
        return true;
    }
    if (i->closed) {
        joins_answer_problem(n, ask, PROBLEM_INSTANCE_GONE,
                             "the instance is draining: it takes no joiner any more", 0);
        return true;
    }
    return false;
}

/* --- autopsies ------------------------------------------------------------------------------------------ */

static void answer_autopsy(struct node *n, struct gateway_ask *ask, const struct instance *i)
{
    ask->ran = RAN_YES;
    ask->retry_after_s = 1;
    if (i == NULL || i->phase != PHASE_ENDED) {
        ask->problem = PROBLEM_INSTANCE_UNREACHABLE;
        text_format(ask->detail, sizeof ask->detail,
                    "the code closed the connection before it answered");
    } else {
        ask->id = i->id;
        ask->problem = i->end_reason == END_OOM ? PROBLEM_INSTANCE_OOM : PROBLEM_INSTANCE_EXITED;
        if (i->end_reason == END_OOM) {
            char limit[UNIT_TEXT_SIZE];
            bytes_format(i->spec->limits.memory_bytes, limit);
            text_format(ask->detail, sizeof ask->detail,
                        "the instance used up its memory of %s and was ended; raise "
                        "deploy.resources.limits.memory, or lower join.max_joiners",
                        limit);
        } else {
            text_format(ask->detail, sizeof ask->detail, "the instance ended: %s%s%s",
                        end_reason_name(i->end_reason), i->end_message[0] != '\0' ? ": " : "",
                        i->end_message);
        }
    }
    explain_remember(n, ask->request_id, &ask->id, ask->problem, ask->detail);
    gateway_answer(ask);
}

static void autopsy_timer_cb(uv_timer_t *timer)
{
    struct node *n = container_of(timer, struct node, autopsy_timer);
    uint64_t now_ms = clock_monotonic_ms();
    struct autopsy **at = &n->autopsies;
    while (*at != NULL) {
        struct autopsy *a = *at;
        if (a->until_ms > now_ms && !n->stopping) {
            at = &a->next;
            continue;
        }
        *at = a->next;
        answer_autopsy(n, a->ask, instance_find(n, a->ask->instance));
        free(a);
    }
    if (n->autopsies != NULL)
        uv_timer_start(timer, autopsy_timer_cb, 50, 0);
}

static void begin_autopsy(struct node *n, struct gateway_ask *ask)
{
    struct instance *i = instance_find(n, ask->instance);
    struct autopsy *a = i != NULL && i->phase != PHASE_ENDED ? calloc(1, sizeof *a) : NULL;
    if (a == NULL) {
        if (i == NULL) {
            /* Gone from memory already; the registry keeps the reason. */
            struct registry_root *root = registry_root(n->registry);
            const struct registry_instance *r =
                registry_root_instance(root, ask->instance, strlen(ask->instance));
            if (r != NULL && r->state == INSTANCE_STATE_ENDED) {
                ask->ran = RAN_YES;
                ask->problem =
                    r->reason == END_OOM ? PROBLEM_INSTANCE_OOM : PROBLEM_INSTANCE_EXITED;
                text_format(ask->detail, sizeof ask->detail, "the instance ended: %s",
                            end_reason_name(r->reason));
                registry_root_release(root);
                gateway_answer(ask);
                return;
            }
            registry_root_release(root);
        }
        answer_autopsy(n, ask, i);
        return;
    }
    a->ask = ask;
    a->until_ms = clock_monotonic_ms() + CONTROL_AUTOPSY_MS;
    a->next = n->autopsies;
    n->autopsies = a;
    if (!uv_is_active((uv_handle_t *)&n->autopsy_timer))
        uv_timer_start(&n->autopsy_timer, autopsy_timer_cb, 50, 0);
}

void joins_autopsies(struct node *n, const struct instance *ended)
{
    struct autopsy **at = &n->autopsies;
    while (*at != NULL) {
        struct autopsy *a = *at;
        if (strcmp(a->ask->instance, ended->id.text) != 0) {
            at = &a->next;
            continue;
        }
        *at = a->next;
        answer_autopsy(n, a->ask, ended);
        free(a);
    }
}

/* --- delivery --------------------------------------------------------------------------------------------- */

/* True: it is for another node, or for none. */
static bool place_ask(struct node *n, struct gateway_ask *ask)
{
    struct places_want want = want_of(ask);
    struct places_found found;
    if (ask->forwarded)
        return false;
    places_find(n, &want, &found);
    return answer_place(n, ask, &found);
}

/* A workload that the routes did not know: they are published again if it is there now. True: answered. */
static bool answer_unknown(struct node *n, struct gateway_ask *ask, bool sure)
{
    struct registry_root *root = registry_root(n->registry);
    size_t length = strlen(ask->workload);
    bool known = registry_root_workload(root, ask->workload, length) != NULL ||
                 (ask->version == 0 && registry_root_domain(root, ask->workload, length) != NULL);
    registry_root_release(root);
    if (known && ask->version != 0)
        return false;
    if (known) {
        steps_sync_workloads(n);
        routes_publish(n);
        ask->problem = PROBLEM_NONE;
        ask->look_again = true;
        gateway_answer(ask);
    } else if (sure) {
        char text[160];
        text_format(text, sizeof text, "no workload is called \"%s\"", ask->workload);
        joins_answer_problem(n, ask, PROBLEM_WORKLOAD_UNKNOWN, text, 0);
    } else {
        make_sure(n, ask);
    }
    return true;
}

static void answer_host(struct node *n, struct gateway_ask *ask, bool sure)
{
    struct registry_root *root = registry_root(n->registry);
    ask->look_again = registry_root_domain(root, ask->host, strlen(ask->host)) != NULL;
    registry_root_release(root);
    if (!ask->look_again && !sure) {
        make_sure(n, ask);
        return;
    }
    if (ask->look_again)
        routes_publish(n);
    else
        ask->problem = PROBLEM_NOT_FOUND;
    gateway_answer(ask);
}

/* While this node drains: the scheduler lets nobody in any more, but the instance that holds a key can be
 * joined nowhere else. True: granted. */
static bool grant_holder(struct node *n, struct gateway_ask *ask)
{
    if (ask->key[0] == '\0' || ask->kind != WORKLOAD_SERVER)
        return false;
    struct registry_root *root = registry_root(n->registry);
    const struct instance_id *holder = registry_root_key_holder(root, ask->workload, ask->key);
    struct instance *i = holder != NULL ? instance_find(n, holder->text) : NULL;
    registry_root_release(root);
    if (i == NULL || i->phase != PHASE_READY || i->closed || i->slot.slot == NULL ||
        i->spec->port == 0 || slot_enter_forced(i->slot, clock_boot_ms()) != SLOT_ENTERED)
        return false;
    ask->problem = PROBLEM_NONE;
    ask->id = i->id;
    ask->slot = i->slot;
    ask->start = GATEWAY_START_JOIN;
    gateway_answer(ask);
    return true;
}

static void ask_now(struct node *n, struct gateway_ask *ask, bool sure)
{
    struct instance *forced = NULL;
    if (ask->host[0] != '\0') {
        answer_host(n, ask, sure);
        return;
    }
    if (n->stopping && grant_holder(n, ask))
        return;
    if (n->stopping) {
        joins_answer_problem(n, ask, PROBLEM_DRAINING, "the node is stopping", 1000);
        return;
    }
    if (ask->instance[0] != '\0' && answer_forced_now(n, ask, sure, &forced))
        return;
    if (forced == NULL && (answer_unknown(n, ask, sure) || place_ask(n, ask)))
        return;
    struct waiter *w = waiter_new(n, ask, NULL);
    if (w == NULL) {
        joins_answer_problem(n, ask, PROBLEM_INTERNAL, "the node is out of memory", 1000);
        return;
    }
    steps_run(n, &(struct scheduler_event){
                     .kind = SCHEDULER_ASK,
                     .waiter = w->handle,
                     .name = forced != NULL ? forced->name : ask->workload,
                     .instance = forced != NULL ? forced->handle : 0,
                     .key = forced != NULL ? NULL : ask->key,
                     .exclusive = ask->kind == WORKLOAD_COMMAND,
                 });
}

static void ask_surely(struct node *n, struct gateway_ask *ask)
{
    ask_now(n, ask, true);
}

void joins_waiter_again(struct node *n, struct waiter *w)
{
    struct gateway_ask *ask = w->gateway_ask;
    waiter_free(n, w);
    places_tell(n, ask->workload);
    joins_ask_again(n, ask);
}

void joins_ask_again(struct node *n, struct gateway_ask *ask)
{
    ask->problem = PROBLEM_NONE;
    ask->id.text[0] = '\0';
    ask_surely(n, ask);
}

static void ask_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct gateway_ask *ask = container_of(message, struct gateway_ask, message);
    ask->problem = PROBLEM_NONE;
    ask->elsewhere = 0;
    ask->look_again = false;
    ask->ran = RAN_NO;
    ask->descriptors[0] = ask->descriptors[1] = ask->descriptors[2] = -1;
    if (ask->redeem)
        passes_redeem(n, ask);
    else if (ask->autopsy)
        begin_autopsy(n, ask);
    else
        ask_now(n, ask, false);
}

bool joins_ask(void *user, struct gateway_ask *ask)
{
    struct node *n = user;
    ask->message.deliver = ask_deliver;
    return inbox_post(n->inbox, &ask->message);
}

struct cancel_message {
    struct inbox_message message;
    struct gateway_ask *ask;
    char instance[INSTANCE_ID_LENGTH_MAX + 1];
    enum end_reason reason;
};

static void cancel_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct cancel_message *c = container_of(message, struct cancel_message, message);
    struct waiter *w = waiter_by_ask(n, c->ask);
    struct instance *i, *next;
    if (w != NULL) {
        steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_CANCEL, .waiter = w->handle});
        w = waiter_by_ask(n, c->ask);
        if (w != NULL)
            joins_refuse(n, w, PROBLEM_INTERNAL, "the client left", 0, NULL);
    } else if (!errands_cancel(n, c->ask, c->reason)) {
        /* Not waiting any more: a command that runs, or an answer that is under way. */
        HASH_ITER(by_handle, n->instances_by_handle, i, next)
        if (i->command_ask == c->ask)
            instance_stop(i, c->reason, 0);
    }
    free(c);
}

void joins_cancel(void *user, struct gateway_ask *ask, enum end_reason reason)
{
    struct node *n = user;
    struct cancel_message *c = calloc(1, sizeof *c);
    assert_always(c != NULL); /* a command that nobody waits for must not run on */
    c->message.deliver = cancel_deliver;
    c->ask = ask;
    c->reason = reason;
    if (!inbox_post_always(n->inbox, &c->message))
        free(c);
}

void joins_command_ended(struct instance *i)
{
    struct gateway_ask *ask = i->command_ask;
    if (ask == NULL)
        return;
    i->command_ask = NULL;
    instance_end_tell(i, &ask->ended);
    gateway_command_ended(ask);
}
