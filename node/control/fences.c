/* What the lease of this node means for its instances.
 *
 *   a new deadline   -> slots and runner of the exclusive ones (keyed: there is one in the cluster)
 *   it is over       -> nothing starts; exclusive ones are fenced by runner and slots; the others go on
 *   node_lost        -> the registry says so: what it lists as ended is stopped
 *   node drain       -> nothing starts, what runs drains
 *
 * A deadline is handed out only when this node's own root shows the lease that it is of: then what an older
 * lease held shows there as ended, and is not extended by mistake.
 *
 * In a registry of one node nobody could take over anything, so there are no deadlines: its instances live
 * on through any restart. The first other node is in the registry before it can be a voter, so the
 * deadlines are there in time. */
#include "node/control/fences.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/cluster/known.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/control/leases.h"
#include "node/control/places.h"

#define FENCES_TICK_MS 200u
/* Elections take less than a second: a start that finds no leader for longer is refused. */
#define FENCES_LEADERLESS_MS 2000u
#define FENCES_RETRY_MS 2000u

struct fences {
    struct node *node;
    struct leases *leases;
    uv_timer_t timer;
    bool lone;            /* the registry has this node alone */
    bool current;         /* the root shows the lease that we hold */
    uint64_t deadline_ms; /* the last that was handed out; UINT64_MAX: none is needed */
    uint64_t epoch_shown; /* of the lease that the root showed last */
    bool leased_shown;
    bool draining;
    uint64_t draining_since_ms, leaderless_since_ms;
    enum problem hold;
};

/* --- deadlines ------------------------------------------------------------------------------------------ */

static bool is_exclusive(const struct instance *i)
{
    return i->key[0] != '\0';
}

static bool is_live(const struct instance *i)
{
    return i->phase == PHASE_COMMITTED || i->phase == PHASE_READY;
}

uint64_t fences_deadline(const struct instance *i)
{
    const struct fences *f = i->node->fences;
    return is_exclusive(i) ? f->deadline_ms : UINT64_MAX;
}

static void deadline_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                        int *descriptors, size_t descriptor_count)
{
    struct instance *i = user;
    (void)reply;
    for (size_t k = 0; k < descriptor_count; k++)
        memory_close(&descriptors[k]);
    /* Gone, or the runner is: it keeps the deadline that it has, and hears of it again when it is back. */
    bool harmless = error == NULL || error->code == ERR_NOT_FOUND || error->code == ERR_CONFLICT ||
                    error->code == ERR_UNAVAILABLE || error->code == ERR_CANCELED;
    if (!harmless && is_live(i)) {
        log_error("lease", "%s: the runner does not fence it, so it is ended: %s", i->id.text,
                  error->msg);
        instance_stop(i, END_LEASE_LOST, 0);
    }
    instance_unpend(i);
}

/* The runner first: whoever enters by the slot finds it fenced. */
static int hand_out(struct instance *i, uint64_t deadline_ms, struct err *e)
{
    struct node *n = i->node;
    Skerry__Runner__Deadline d = SKERRY__RUNNER__DEADLINE__INIT;
    d.id = i->id.text;
    d.boot_ms = deadline_ms == UINT64_MAX ? 0 : deadline_ms;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_DEADLINE;
    r.deadline = &d;
    if (deadline_ms != i->fence_ms) {
        int rc = sandbox_ask(n->sandbox, &r, deadline_cb, i, e);
        if (rc != 0)
            return rc;
        i->pending++;
        i->fence_ms = deadline_ms;
    }
    if (i->slot.slot != NULL)
        atomic_store(&i->slot.slot->lease_deadline_ms, deadline_ms);
    return 0;
}

static void hand_out_all(struct fences *f)
{
    struct instance *i, *next;
    struct err e = {0};
    HASH_ITER(by_handle, f->node->instances_by_handle, i, next)
    {
        if (is_exclusive(i) && is_live(i) && hand_out(i, f->deadline_ms, &e) != 0)
            log_warn("lease", "%s keeps its deadline: %s", i->id.text, e.msg);
    }
}

bool fences_commit(struct instance *i)
{
    struct fences *f = i->node->fences;
    struct err e = {0};
    if (!leases_held(f->leases).valid || !f->current) {
        i->problem = PROBLEM_NO_QUORUM;
        quorum_text(i->node, i->detail, sizeof i->detail);
        return false;
    }
    if (is_exclusive(i) && f->deadline_ms != UINT64_MAX && hand_out(i, f->deadline_ms, &e) != 0) {
        i->problem = PROBLEM_START_FAILED;
        text_format(i->detail, sizeof i->detail, "%s cannot be fenced: %s", instance_label(i),
                    e.msg);
        return false;
    }
    return true;
}

/* Anew, to a runner that is back: it may not have heard of the last. */
void fences_adopted(struct node *n)
{
    struct instance *i, *next;
    HASH_ITER(by_handle, n->instances_by_handle, i, next)
    i->fence_ms = 0;
    hand_out_all(n->fences);
    n->fences->draining = false; /* what was adopted drains too */
    fences_follow(n);
}

/* --- what the registry lists as ended --------------------------------------------------------------------- */

static void lose(struct node *n, const struct registry_root *root, bool removed)
{
    struct instance *i, *next;
    HASH_ITER(by_id, n->instances_by_id, i, next)
    {
        const struct registry_instance *r =
            registry_root_instance(root, i->id.text, strlen(i->id.text));
        bool lost = removed ||
                    (r != NULL && r->state == INSTANCE_STATE_ENDED && r->reason == END_NODE_LOST);
        if (!lost || !i->reserved || i->phase >= PHASE_STOPPING)
            continue;
        log_warn("lease", "%s is stopped: its node was lost to the others", i->id.text);
        instance_stop(i, END_NODE_LOST, 0);
    }
}

static bool count_to_two(void *user, const struct registry_node *node)
{
    unsigned *count = user;
    (void)node;
    return ++*count < 2;
}

/* --- draining --------------------------------------------------------------------------------------------- */

static void drain_all(struct fences *f)
{
    struct instance *i, *next;
    f->draining_since_ms = clock_monotonic_ms();
    log_info("node", "it is being drained: nothing starts, what runs may finish");
    HASH_ITER(by_handle, f->node->instances_by_handle, i, next)
    steps_run(f->node, &(struct scheduler_event){
                           .kind = SCHEDULER_DRAIN, .instance = i->handle, .reason = END_DRAINED});
}

/* Commands of `skerry run` are not the scheduler's. */
static void drain_runs(struct fences *f)
{
    struct instance *i, *next;
    uint64_t since_ms = clock_monotonic_ms() - f->draining_since_ms;
    HASH_ITER(by_id, f->node->instances_by_id, i, next)
    if (i->handle == 0 && i->phase < PHASE_STOPPING && since_ms >= i->spec->timeouts.drain_ms)
        instance_stop(i, END_DRAINED, CONTROL_STOP_GRACE_MS);
}

/* --- whether anything may start ------------------------------------------------------------------------------ */

enum problem fences_hold(struct node *n, char *out, size_t size)
{
    const struct fences *f = n->fences;
    if (f->hold == PROBLEM_DRAINING)
        text_format(out, size, "%s is being drained and starts nothing; skerry node undrain %s",
                    n->config->name, n->config->name);
    else if (f->hold != PROBLEM_NONE)
        quorum_text(n, out, size);
    return f->hold;
}

/* Starts whose reservation is under way may wait long for a leader: those who wait for them do not. */
static void give_up_starts(struct node *n)
{
    struct instance *i, *next;
    HASH_ITER(by_handle, n->instances_by_handle, i, next)
    {
        if (i->phase != PHASE_STARTING || i->reserved || i->problem != PROBLEM_NONE)
            continue;
        i->problem = PROBLEM_NO_QUORUM;
        quorum_text(n, i->detail, sizeof i->detail);
        steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_FAILED,
                                               .instance = i->handle,
                                               .problem = i->problem,
                                               .detail = i->detail});
    }
}

static bool leaderless(struct fences *f)
{
    struct registry_status s;
    registry_status(f->node->registry, &s);
    uint64_t now_ms = clock_monotonic_ms();
    if (s.leader || s.leader_id != 0)
        f->leaderless_since_ms = now_ms;
    return now_ms - f->leaderless_since_ms >= FENCES_LEADERLESS_MS;
}

static void decide_hold(struct fences *f)
{
    struct node *n = f->node;
    bool no_quorum = leaderless(f) || !leases_held(f->leases).valid;
    enum problem hold = no_quorum     ? PROBLEM_NO_QUORUM
                        : f->draining ? PROBLEM_DRAINING
                                      : PROBLEM_NONE;
    if (hold == f->hold)
        return;
    f->hold = hold;
    atomic_store(&n->no_quorum, hold == PROBLEM_NO_QUORUM);
    char detail[512] = "";
    (void)fences_hold(n, detail, sizeof detail);
    if (hold == PROBLEM_NO_QUORUM)
        give_up_starts(n);
    steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_HOLD,
                                           .problem = hold,
                                           .detail = detail,
                                           .retry_after_ms = FENCES_RETRY_MS});
}

/* --- following ------------------------------------------------------------------------------------------------ */

/* Whether the lease that the root shows is ours, and what changed about it. */
static void follow_lease(struct fences *f, const struct registry_root *root,
                         const struct registry_node *self)
{
    struct leases_held held = leases_held(f->leases);
    bool other = self->lease_epoch != f->epoch_shown;
    if (!self->leased || other || !f->leased_shown)
        lose(f->node, root, false);
    f->epoch_shown = self->lease_epoch;
    f->leased_shown = self->leased;
    f->current = self->leased && self->lease_epoch == held.epoch;
    unsigned nodes = 0;
    registry_root_nodes(root, count_to_two, &nodes);
    f->lone = nodes == 1;
    uint64_t deadline_ms = f->lone ? UINT64_MAX : held.deadline_ms;
    if (!f->current || deadline_ms == f->deadline_ms)
        return;
    f->deadline_ms = deadline_ms;
    hand_out_all(f);
}

void fences_follow(struct node *n)
{
    struct fences *f = n->fences;
    struct registry_root *root = registry_root(n->registry);
    const struct registry_node *self = registry_root_node(root, n->id);
    if (self != NULL) {
        bool drains = self->draining && !f->draining;
        follow_lease(f, root, self);
        f->draining = self->draining;
        if (drains)
            drain_all(f);
    } else if (registry_root_node_id_next(root) > n->id) {
        lose(n, root, true);
    }
    registry_root_release(root);
    decide_hold(f);
}

static void timer_cb(uv_timer_t *timer)
{
    struct fences *f = container_of(timer, struct fences, timer);
    if (f->draining)
        drain_runs(f);
    decide_hold(f);
    if (f->hold == PROBLEM_NO_QUORUM)
        asks_leaderless(f->node);
    if (f->lone || !f->node->reconciled)
        return;
    places_tick(f->node);
}

/* --- the leases' way to registry and peers ---------------------------------------------------------------------- */

struct question {
    leases_answered_cb answered;
    void *user;
};

static void answered_cb(void *user, const struct peer_answer *answer)
{
    struct question *q = user;
    q->answered(q->user, answer->error, answer->payload, answer->size);
    free(q);
}

static int ask_call(void *user, node_id to, const void *payload, size_t size, unsigned timeout_ms,
                    leases_answered_cb answered, void *answered_user, struct err *e)
{
    struct node *n = user;
    if (n->cluster == NULL)
        return err_set(e, ERR_UNAVAILABLE, "this node is alone");
    struct question *q = malloc(sizeof *q);
    if (q == NULL)
        return err_set(e, ERR_NO_MEMORY, "renew the lease");
    *q = (struct question){.answered = answered, .user = answered_user};
    struct peer_call call = {.to = to,
                             .what = CLUSTER_LEASE,
                             .payload = payload,
                             .size = size,
                             .timeout_ms = timeout_ms,
                             .answered = answered_cb,
                             .user = q};
    int rc = cluster_call(n->cluster, &call, e);
    if (rc != 0)
        free(q);
    return rc;
}

static int barrier_call(void *user, registry_read_cb cb, void *cb_user, struct err *e)
{
    struct node *n = user;
    return registry_barrier(n->registry, cb, cb_user, e);
}

static int propose_call(void *user, const struct registry_command *command, registry_result_cb cb,
                        void *cb_user, struct err *e)
{
    struct node *n = user;
    return registry_propose(n->registry, command, cb, cb_user, e);
}

static struct registry_root *root_call(void *user)
{
    struct node *n = user;
    return registry_root(n->registry);
}

static void leader_call(void *user, struct leases_leader *out)
{
    struct node *n = user;
    struct registry_status s;
    registry_status(n->registry, &s);
    *out = (struct leases_leader){.self = s.leader, .id = s.leader_id, .voters = s.voters};
}

static void changed_call(void *user)
{
    struct node *n = user;
    fences_follow(n);
    if (leases_held(n->fences->leases).valid)
        node_progress(n);
}

static void answer_peer(void *question, const void *payload, size_t size)
{
    if (size > 0)
        peer_question_answer(question, payload, size);
    else
        peer_question_drop(question);
}

void fences_question(struct node *n, struct peer_question *q)
{
    size_t size;
    const uint8_t *payload = peer_question_payload(q, &size);
    leases_question(n->fences->leases, peer_question_from(q), payload, size, answer_peer, q);
}

void fences_leader_changed(struct node *n)
{
    if (n->fences != NULL)
        leases_leader_changed(n->fences->leases);
}

/* --- life ------------------------------------------------------------------------------------------------------------ */

int fences_open(struct node *n, struct err *e)
{
    struct fences *f = calloc(1, sizeof *f);
    if (f == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for fences");
    f->node = n;
    f->leased_shown = true;
    f->leaderless_since_ms = clock_monotonic_ms();
    n->fences = f;
    struct leases_options o = {
        .self = n->id,
        .nodes_max = KNOWN_NODES_MAX,
        .calls = {n, ask_call, barrier_call, propose_call, root_call, leader_call, changed_call}};
    int rc = leases_open(&f->leases, &n->loop, &o, e);
    if (rc != 0) {
        n->fences = NULL;
        free(f);
        return rc;
    }
    uv_timer_init(&n->loop, &f->timer);
    uv_timer_start(&f->timer, timer_cb, FENCES_TICK_MS, FENCES_TICK_MS);
    return 0;
}

void fences_stop(struct node *n)
{
    if (n->fences == NULL)
        return;
    uv_timer_stop(&n->fences->timer);
    leases_stop(n->fences->leases);
}

static void freed_cb(uv_handle_t *handle)
{
    free(container_of((uv_timer_t *)handle, struct fences, timer));
}

void fences_close(struct node *n)
{
    if (n->fences == NULL)
        return;
    leases_close(n->fences->leases);
    uv_close((uv_handle_t *)&n->fences->timer, freed_cb);
    n->fences = NULL;
}

bool fences_leased(const struct node *n)
{
    return leases_held(n->fences->leases).valid && n->fences->current;
}

bool fences_lone(const struct node *n)
{
    return n->fences->lone;
}

uint64_t fences_left_ms(const struct node *n, node_id id)
{
    struct leases_held held = leases_held(n->fences->leases);
    uint64_t now_ms = clock_boot_ms();
    if (id == n->id)
        return held.deadline_ms > now_ms ? held.deadline_ms - now_ms : 0;
    return leases_left_ms(n->fences->leases, id);
}
