/* Errands on the control loop: who asked, what is told them, and where a refusal leads next; and the thread
 * of errands. */
#include "node/errands/errands.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/config.h"
#include "node/control/places.h"
#include "node/errands/errands_internal.h"

#define SWEEP_MS 1000u
#define CANCEL_WAIT_MS 10000u /* for the end of what was canceled */
#define CLOSE_WAIT_MS 15000u
#define INBOX_MAX 20000u

/* --- messages to the thread ------------------------------------------------------------------------------ */

static void begin_deliver(struct inbox_message *message, void *owner)
{
    (void)owner;
    errand_entry_begin(container_of(message, struct errand, begin));
}

static void release_deliver(struct inbox_message *message, void *owner)
{
    (void)owner;
    errand_hold_drop(container_of(message, struct errand, release));
}

/* A signal, resize or cancel; or, of no errand, that a node is lost. */
struct word {
    struct inbox_message message;
    struct errand *errand;
    enum node_ask_kind kind;
    unsigned signal, rows, columns;
    enum end_reason reason;
    node_id lost;
    const char *why; /* it is */
};

static void cancel_now(struct errand *e, enum end_reason reason)
{
    if (e->phase != ERRAND_OPEN) {
        errand_broken(e, "the client left");
        return;
    }
    bool timed_out = reason == END_TIMED_OUT;
    if (!errand_number_write(&e->sending, ERRAND_CANCEL,
                             timed_out ? END_TIMED_OUT : END_CLIENT_GONE))
        errand_broken(e, "out of memory");
    e->deadline_ms = clock_monotonic_ms() + CANCEL_WAIT_MS;
}

static void word_deliver(struct inbox_message *message, void *owner)
{
    struct word *w = container_of(message, struct word, message);
    struct errand *e = w->errand;
    (void)owner;
    bool good = true;
    if (e->phase == ERRAND_CLOSING) {
        free(w);
        return;
    }
    if (w->kind == NODE_ASK_CANCEL)
        cancel_now(e, w->reason);
    else if (e->phase == ERRAND_OPEN && w->kind == NODE_ASK_RESIZE && w->rows > 0 && w->columns > 0)
        good = errand_resize_write(&e->sending, w->rows, w->columns);
    else if (e->phase == ERRAND_OPEN && w->kind == NODE_ASK_SIGNAL)
        good = errand_number_write(&e->sending, ERRAND_SIGNAL, w->signal);
    free(w);
    if (good)
        errand_pump(e);
    else
        errand_broken(e, "out of memory");
}

static void lost_deliver(struct inbox_message *message, void *owner)
{
    struct word *w = container_of(message, struct word, message);
    struct errands *all = owner;
    struct errand *next;
    for (struct errand *e = all->list; e != NULL; e = next) {
        next = e->next;
        if (e->peer == w->lost)
            errand_broken(e, w->why);
    }
    free(w);
}

/* --- what came of it --------------------------------------------------------------------------------------- */

static void granted_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct errand *e = container_of(message, struct errand, granted);
    e->was_granted = true;
    if (e->gateway_ask != NULL) {
        struct gateway_ask *ask = e->gateway_ask;
        ask->problem = PROBLEM_NONE;
        ask->id = e->answer.instance;
        ask->start = GATEWAY_START_COLD;
        for (size_t k = 0; k < ARRAY_SIZE(ask->descriptors); k++)
            ask->descriptors[k] = steal_fd(&e->given[k]);
        explain_remember(n, ask->request_id, &ask->id, PROBLEM_NONE, NULL);
        gateway_answer(ask);
        return;
    }
    struct node_ask *ask = e->node_ask;
    ask->id = e->answer.instance;
    ask->started_wall_ms = clock_wall_ms();
    for (size_t k = 0; k < ARRAY_SIZE(ask->descriptors); k++)
        ask->descriptors[k] = steal_fd(&e->given[k]);
    explain_remember(n, ask->request_id, &ask->id, PROBLEM_NONE, NULL);
    asks_answer(ask);
}

static void tell_end(struct errand *e)
{
    if (e->gateway_ask != NULL) {
        e->gateway_ask->ended = e->end;
        gateway_command_ended(e->gateway_ask);
        return;
    }
    e->node_ask->end = e->end;
    asks_ended(e->node_ask);
}

static bool remember_refusal(node_id refused[ERRAND_REFUSALS_MAX], node_id node)
{
    for (size_t k = 0; k < ERRAND_REFUSALS_MAX; k++)
        if (refused[k] == 0) {
            refused[k] = node;
            return true;
        }
    return false;
}

/* Whether another node may do it. What concerns the workload itself is the same everywhere. */
static bool goes_on(const struct errand *e, node_id refused[ERRAND_REFUSALS_MAX])
{
    if (e->canceled || e->all->node->stopping || e->answer.ran != RAN_NO)
        return false;
    switch (e->answer.problem) {
    case PROBLEM_WORKLOAD_UNKNOWN: /* it learns of it a moment later */
    case PROBLEM_NODE_FULL:
    case PROBLEM_QUEUE_FULL:
    case PROBLEM_OWNER_UNREACHABLE:
    case PROBLEM_NOT_ENFORCED:
    case PROBLEM_DRAINING:
    case PROBLEM_NO_QUORUM: /* it may be cut off from what we reach */
        return remember_refusal(refused, e->peer);
    default:
        return false;
    }
}

static void tell_refusal(struct node *n, const struct errand *e)
{
    const struct errand_answer *a = &e->answer;
    if (e->gateway_ask != NULL) {
        struct gateway_ask *ask = e->gateway_ask;
        if (a->instance.text[0] != '\0')
            ask->id = a->instance;
        joins_answer_ran(n, ask, a->problem, a->ran, a->detail, (uint64_t)a->retry_after_s * 1000);
        return;
    }
    struct node_ask *ask = e->node_ask;
    ask->id = a->instance;
    ask->retry_after_s = a->retry_after_s;
    ask->problem = a->problem;
    ask->ran = a->ran;
    (void)text_copy(ask->detail, sizeof ask->detail, a->detail);
    asks_answer(ask);
}

static void over_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct errand *e = container_of(message, struct errand, over);
    struct gateway_ask *gateway_ask = e->gateway_ask;
    struct node_ask *node_ask_ = e->node_ask;
    HASH_DELETE(hh, n->errands->by_ask, e);
    if (e->was_granted) {
        tell_end(e);
    } else if (e->answer.problem == PROBLEM_NONE) {
        node_ask_->id = e->answer.instance; /* a START */
        asks_answer(node_ask_);
    } else if (gateway_ask != NULL && goes_on(e, gateway_ask->refused)) {
        joins_ask_again(n, gateway_ask);
    } else if (gateway_ask == NULL && goes_on(e, node_ask_->refused)) {
        asks_again(n, node_ask_);
    } else {
        tell_refusal(n, e);
    }
    e->release.deliver = release_deliver;
    assert_always(inbox_post_always(n->errands->inbox, &e->release));
}

/* --- asking -------------------------------------------------------------------------------------------------- */

static bool send_away(struct node *n, struct errand *e, const struct errand_question *q)
{
    e->kind = q->kind;
    e->tty = q->tty;
    e->input_ended = q->no_stdin && !q->tty;
    e->begin.deliver = begin_deliver;
    e->granted.deliver = granted_deliver;
    e->over.deliver = over_deliver;
    if (!errand_question_write(&e->sending, q) || !inbox_post(n->errands->inbox, &e->begin))
        return false;
    HASH_ADD(hh, n->errands->by_ask, ask_key, sizeof e->ask_key, e);
    return true;
}

static struct errand *make(struct node *n, node_id node)
{
    if (n->errands == NULL || atomic_load(&n->errands->count) >= ERRANDS_MAX)
        return NULL;
    return errand_new(n->errands, true, node);
}

static const char *const too_many = "too much is under way to other nodes; try again";

void errands_command(struct node *n, struct gateway_ask *ask, node_id node)
{
    struct errand *e = make(n, node);
    struct errand_question q = {.kind = ERRAND_COMMAND, .no_stdin = ask->no_stdin};
    (void)text_copy(q.workload, sizeof q.workload, ask->workload);
    (void)text_copy(q.key, sizeof q.key, ask->key);
    (void)text_copy(q.request_id, sizeof q.request_id, ask->request_id);
    (void)text_format(q.asked_by, sizeof q.asked_by, "%s at %s, for it", ask->asked_by,
                      n->config->name);
    if (e != NULL) {
        e->gateway_ask = ask;
        e->ask_key = ask;
        if (send_away(n, e, &q))
            return;
        errand_hold_drop(e);
    }
    joins_answer_problem(n, ask, PROBLEM_LIMIT_REACHED, too_many, 1000);
}

void errands_ask(struct node *n, struct node_ask *ask, node_id node)
{
    struct errand *e = make(n, node);
    struct errand_question q = {.kind = ask->kind == NODE_ASK_RUN ? ERRAND_RUN : ERRAND_START,
                                .spec = ask->kind == NODE_ASK_RUN ? ask->spec : NULL,
                                .tty = ask->tty,
                                .no_stdin = ask->no_stdin,
                                .rows = ask->rows,
                                .columns = ask->columns,
                                .timeout_ms = ask->timeout_ms};
    (void)text_copy(q.workload, sizeof q.workload, ask->workload != NULL ? ask->workload : "");
    (void)text_copy(q.key, sizeof q.key, ask->key != NULL ? ask->key : "");
    (void)text_copy(q.request_id, sizeof q.request_id,
                    ask->request_id != NULL ? ask->request_id : "");
    (void)text_format(q.asked_by, sizeof q.asked_by, "%s at %s, for it", ask->asked_by,
                      n->config->name);
    if (e != NULL) {
        e->node_ask = ask;
        e->ask_key = ask;
        if (send_away(n, e, &q))
            return;
        errand_hold_drop(e);
    }
    asks_refuse(ask, PROBLEM_LIMIT_REACHED, "%s", too_many);
}

/* --- while it runs ------------------------------------------------------------------------------------------- */

static struct errand *find(const struct node *n, const void *ask)
{
    struct errand *e = NULL;
    if (n->errands != NULL)
        HASH_FIND(hh, n->errands->by_ask, &ask, sizeof ask, e);
    return e;
}

static void say(struct node *n, const struct word *what)
{
    struct word *w = malloc(sizeof *w);
    assert_always(w != NULL); /* what nobody waits for must not run on */
    *w = *what;
    w->message.deliver = what->errand != NULL ? word_deliver : lost_deliver;
    assert_always(inbox_post_always(n->errands->inbox, &w->message));
}

bool errands_cancel(struct node *n, const void *ask, enum end_reason reason)
{
    struct errand *e = find(n, ask);
    if (e == NULL)
        return false;
    e->canceled = true;
    say(n, &(struct word){.errand = e, .kind = NODE_ASK_CANCEL, .reason = reason});
    return true;
}

bool errands_target(struct node *n, const struct node_ask *ask)
{
    struct errand *e = find(n, ask->target);
    if (e == NULL)
        return false;
    if (ask->kind == NODE_ASK_CANCEL)
        return errands_cancel(n, ask->target, END_CLIENT_GONE);
    say(n, &(struct word){.errand = e,
                          .kind = ask->kind,
                          .signal = ask->signal,
                          .rows = ask->rows,
                          .columns = ask->columns});
    return true;
}

void errands_changed(struct node *n)
{
    struct cluster_node node;
    if (errands_count(n) == 0)
        return;
    for (node_id at = 0; cluster_next(n->cluster, &at, &node);)
        if (!node.self && node.state == GOSSIP_DEAD)
            say(n, &(struct word){.lost = node.id, .why = "it is dead"});
}

void errands_forget(struct node *n, node_id id)
{
    if (errands_count(n) > 0)
        say(n, &(struct word){.lost = id, .why = "it was removed from the cluster"});
}

unsigned errands_count(const struct node *n)
{
    return n->errands == NULL ? 0 : atomic_load(&n->errands->count);
}

/* --- the thread ---------------------------------------------------------------------------------------------- */

static void sweep_cb(uv_timer_t *timer)
{
    struct errands *all = timer->data;
    uint64_t now_ms = clock_monotonic_ms();
    struct errand *next;
    for (struct errand *e = all->list; e != NULL; e = next) {
        next = e->next;
        if (e->deadline_ms != 0 && now_ms >= e->deadline_ms)
            errand_broken(e, "it took too long");
    }
}

static void gone_cb(void *owner)
{
    struct errands *all = owner;
    uv_close((uv_handle_t *)&all->stop, NULL);
    uv_close((uv_handle_t *)&all->sweep, NULL);
}

static void stop_cb(uv_async_t *async)
{
    struct errands *all = async->data;
    all->stopping = true;
    struct errand *next;
    for (struct errand *e = all->list; e != NULL; e = next) {
        next = e->next;
        errand_broken(e, "a node is stopping");
    }
    if (all->list != NULL || all->handles_closing || atomic_load(&all->count) > 0)
        return;
    all->handles_closing = true;
    inbox_close(all->inbox, gone_cb);
}

static void *thread_main(void *user)
{
    struct errands *all = user;
    uv_run(&all->loop, UV_RUN_DEFAULT);
    atomic_store(&all->finished, true);
    return NULL;
}

int errands_open(struct node *n, struct err *e)
{
    struct errands *all = calloc(1, sizeof *all);
    if (all == NULL)
        return err_set(e, ERR_NO_MEMORY, "start the thread of errands");
    all->node = n;
    if (uv_loop_init(&all->loop) != 0) {
        free(all);
        return err_set(e, ERR_NO_MEMORY, "start the thread of errands");
    }
    uv_async_init(&all->loop, &all->stop, stop_cb);
    all->stop.data = all;
    uv_timer_init(&all->loop, &all->sweep);
    all->sweep.data = all;
    uv_timer_start(&all->sweep, sweep_cb, SWEEP_MS, SWEEP_MS);
    uv_unref((uv_handle_t *)&all->sweep);
    int rc = inbox_open(&all->inbox, &all->loop, all, INBOX_MAX, e);
    if (rc == 0 && pthread_create(&all->thread, NULL, thread_main, all) != 0) {
        rc = err_set(e, ERR_NO_MEMORY, "start the thread of errands");
        inbox_close(all->inbox, gone_cb);
    } else if (rc != 0) {
        gone_cb(all);
    }
    if (rc == 0) {
        n->errands = all;
        return 0;
    }
    uv_run(&all->loop, UV_RUN_DEFAULT);
    (void)uv_loop_close(&all->loop);
    free(all);
    return rc;
}

void errands_close(struct node *n, void (*pump)(void *user), void *user)
{
    struct errands *all = n->errands;
    if (all == NULL)
        return;
    uint64_t deadline_ms = clock_monotonic_ms() + CLOSE_WAIT_MS;
    while (!atomic_load(&all->finished)) {
        (void)uv_async_send(&all->stop);
        if (clock_monotonic_ms() >= deadline_ms) {
            /* A runner that is away tells no ends: the thread ends with the process. */
            log_warn("errand", "commands of other nodes are left without an end");
            (void)pthread_detach(all->thread);
            return;
        }
        pump(user);
    }
    (void)pthread_join(all->thread, NULL);
    assert_always(uv_loop_close(&all->loop) == 0);
    assert_always(all->by_ask == NULL);
    n->errands = NULL;
    free(all);
}
