/* The registry: state machine, proposer and replica on one loop.
 *
 * libraft and the disk call back in the middle of their own work, so that all they get to do is note
 * that something happened (`wake`). What follows from it happens in `turn`, at the end of the same
 * round of the loop: before it waits (prepare) or after it has (check). */
#include "raft/registry.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "raft/proposer.h"
#include "raft/replica.h"
#include "raft/state.h"

enum {
    SNAPSHOT_THRESHOLD = 8192,
    SNAPSHOT_TRAILING = 2048,
    WAITING_MAX = 10000,
    PROPOSE_TIMEOUT_MS = 10000,
    DEADLINE_TICK_MS = 100, /* how late a deadline may be noticed */
    COLLECT_MAX = 1000,     /* entries freed in one round of the loop: some 0.2 ms */
};

struct registry {
    struct registry_options options;
    char *directory;
    uv_loop_t *loop;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_timer_t timer;
    uv_idle_t idle;   /* runs while there is something to free */
    unsigned handles; /* that are open */
    bool awake;       /* prepare and check run */
    bool ticked;      /* deadlines are due to be looked at */

    struct state *state;
    struct proposer *proposer;
    struct replica *replica;

    uint64_t told_index; /* of the last `changed` */
    bool told_leader;
    bool failed, told_failed;
    struct err failure;
    uint64_t refusals;

    bool closing, parts_closing;
    void (*closed)(void *user);
    void *closed_user;
};

/* --- turns -------------------------------------------------------------------------------------------- */

static void turn(struct registry *r);

static void prepare_cb(uv_prepare_t *prepare)
{
    turn(container_of(prepare, struct registry, prepare));
}

static void check_cb(uv_check_t *check)
{
    turn(container_of(check, struct registry, check));
}

static void wake(void *user)
{
    struct registry *r = user;
    if (r->awake || r->parts_closing)
        return;
    r->awake = true;
    uv_prepare_start(&r->prepare, prepare_cb);
    uv_check_start(&r->check, check_cb);
}

static void timer_cb(uv_timer_t *timer)
{
    struct registry *r = container_of(timer, struct registry, timer);
    r->ticked = true;
    wake(r);
}

static void idle_cb(uv_idle_t *idle)
{
    struct registry *r = container_of(idle, struct registry, idle);
    if (!state_collect(r->state, COLLECT_MAX))
        uv_idle_stop(idle);
}

static void applied(void *user, const struct state_outcome *outcome)
{
    struct registry *r = user;
    if (outcome->result.problem != PROBLEM_NONE && !outcome->repeated)
        r->refusals++;
    /* While the log is replayed at the start there is no proposer yet. */
    if (r->proposer != NULL)
        proposer_applied(r->proposer, &outcome->session, &outcome->result);
}

static void failed(void *user, const struct err *error)
{
    struct registry *r = user;
    if (r->failed)
        return;
    r->failed = true;
    r->failure = *error;
    wake(r);
}

static void tell(struct registry *r)
{
    bool leader = replica_leads(r->replica);
    if (leader != r->told_leader) {
        r->told_leader = leader;
        if (r->options.leader_changed != NULL)
            r->options.leader_changed(r->options.user, leader);
    }
    uint64_t index = state_content(r->state)->index;
    if (index != r->told_index) {
        r->told_index = index;
        if (r->options.changed != NULL)
            r->options.changed(r->options.user);
    }
    if (r->failed && !r->told_failed) {
        r->told_failed = true;
        if (r->options.failed != NULL)
            r->options.failed(r->options.user, &r->failure);
    }
}

/* Deadlines need a timer only while somebody waits. */
static void timer_follow(struct registry *r)
{
    if (proposer_idle(r->proposer))
        uv_timer_stop(&r->timer);
    else if (!uv_is_active((uv_handle_t *)&r->timer))
        uv_timer_start(&r->timer, timer_cb, DEADLINE_TICK_MS, DEADLINE_TICK_MS);
}

static void close_now(struct registry *r);

static void turn(struct registry *r)
{
    r->awake = false;
    uv_prepare_stop(&r->prepare);
    uv_check_stop(&r->check);
    tell(r);
    proposer_deliver(r->proposer);
    if (r->ticked)
        proposer_expire(r->proposer, clock_monotonic_ms());
    r->ticked = false;
    if (r->closing) {
        close_now(r);
        return;
    }
    proposer_ask(r->proposer, !r->failed && replica_leads(r->replica));
    timer_follow(r);
    if (state_collect(r->state, COLLECT_MAX))
        uv_idle_start(&r->idle, idle_cb);
}

/* --- opening and closing ------------------------------------------------------------------------------ */

static void release(struct registry *r)
{
    proposer_free(r->proposer);
    state_free(r->state);
    free(r->directory);
    free(r);
}

static void handle_closed_cb(uv_handle_t *handle)
{
    struct registry *r = handle->data;
    if (--r->handles > 0)
        return;
    void (*closed)(void *user) = r->closed;
    void *user = r->closed_user;
    release(r);
    if (closed != NULL)
        closed(user);
}

static void handles_close(struct registry *r)
{
    uv_close((uv_handle_t *)&r->prepare, handle_closed_cb);
    uv_close((uv_handle_t *)&r->check, handle_closed_cb);
    uv_close((uv_handle_t *)&r->timer, handle_closed_cb);
    uv_close((uv_handle_t *)&r->idle, handle_closed_cb);
}

static void replica_closed_cb(void *user)
{
    handles_close(user);
}

static void close_now(struct registry *r)
{
    r->parts_closing = true;
    uv_timer_stop(&r->timer);
    uv_idle_stop(&r->idle);
    proposer_close(r->proposer);
    replica_close(r->replica, replica_closed_cb, r);
}

void registry_close(struct registry *r, void (*cb)(void *user), void *user)
{
    assert_always(!r->closing);
    r->closing = true;
    r->closed = cb;
    r->closed_user = user;
    wake(r);
}

static void options_fill(struct registry_options *o)
{
    if (o->snapshot_threshold == 0)
        o->snapshot_threshold = SNAPSHOT_THRESHOLD;
    if (o->snapshot_trailing == 0)
        o->snapshot_trailing = SNAPSHOT_TRAILING;
    if (o->waiting_max == 0)
        o->waiting_max = WAITING_MAX;
    if (o->propose_timeout_ms == 0)
        o->propose_timeout_ms = PROPOSE_TIMEOUT_MS;
}

static void handles_open(struct registry *r)
{
    int rc = uv_prepare_init(r->loop, &r->prepare);
    rc |= uv_check_init(r->loop, &r->check);
    rc |= uv_timer_init(r->loop, &r->timer);
    rc |= uv_idle_init(r->loop, &r->idle);
    assert_always(rc == 0); /* these cannot fail */
    r->prepare.data = r;
    r->check.data = r;
    r->timer.data = r;
    r->idle.data = r;
    r->handles = 4;
}

static int parts_open(struct registry *r, struct err *e)
{
    int rc = state_new(&r->state, e);
    if (rc < 0)
        return rc;
    const struct replica_options replica = {.directory = r->options.directory,
                                            .id = r->options.id,
                                            .bootstrap = r->options.bootstrap,
                                            .snapshot_threshold = r->options.snapshot_threshold,
                                            .snapshot_trailing = r->options.snapshot_trailing,
                                            .state = r->state,
                                            .user = r,
                                            .applied = applied,
                                            .after = wake,
                                            .failed = failed};
    rc = replica_open(&r->replica, r->loop, &replica, e);
    /* The state machine knows better why than libraft. */
    if (rc < 0 && r->failed)
        return err_set(e, r->failure.code, "%s", r->failure.msg);
    return rc;
}

static int proposer_open(struct registry *r, struct err *e)
{
    const struct proposer_options proposer = {.raft = replica_raft(r->replica),
                                              .node = r->options.id,
                                              .boot = r->options.boot,
                                              .waiting_max = r->options.waiting_max,
                                              .timeout_ms = r->options.propose_timeout_ms,
                                              .user = r,
                                              .wake = wake};
    return proposer_new(&r->proposer, &proposer, e);
}

int registry_open(struct registry **out, uv_loop_t *loop, const struct registry_options *options,
                  struct err *e)
{
    if (options->id == 0)
        return err_set(e, ERR_INVALID, "a registry needs the id of its node");
    struct registry *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(e, ERR_NO_MEMORY, "the registry: no memory");
    r->options = *options;
    r->loop = loop;
    options_fill(&r->options);
    handles_open(r);
    r->directory = strdup(options->directory);
    int rc = r->directory == NULL ? err_set(e, ERR_NO_MEMORY, "the registry: no memory") : 0;
    r->options.directory = r->directory;
    if (rc == 0)
        rc = parts_open(r, e);
    if (rc < 0) {
        handles_close(r);
        return rc;
    }
    rc = proposer_open(r, e);
    if (rc < 0) {
        replica_close(r->replica, replica_closed_cb, r);
        return rc;
    }
    wake(r);
    *out = r;
    return 0;
}

/* --- asking ------------------------------------------------------------------------------------------- */

int registry_propose(struct registry *r, const struct registry_command *command,
                     registry_result_cb cb, void *user, struct err *e)
{
    if (r->closing)
        return err_set(e, ERR_CANCELED, "the registry is closing");
    if (r->failed)
        return err_set(e, ERR_UNAVAILABLE, "%s", r->failure.msg);
    uint32_t level = state_content(r->state)->feature_level;
    if (command_feature_level(command->kind) > level)
        return err_set(
            e, ERR_UNSUPPORTED,
            "registry command %d needs feature level %u, the cluster has %u: upgrade all nodes",
            (int)command->kind, command_feature_level(command->kind), level);
    int rc = proposer_propose(r->proposer, command, clock_monotonic_ms(), cb, user, e);
    return rc < 0 ? err_wrap(e, "propose to the registry") : 0;
}

struct registry_root *registry_root(struct registry *r)
{
    return state_root(r->state);
}

void registry_status(const struct registry *r, struct registry_status *out)
{
    struct raft *raft = replica_raft(r->replica);
    struct proposer_counts counts = proposer_counts(r->proposer);
    raft_id leader;
    const char *address;
    raft_leader(raft, &leader, &address);
    unsigned voters = 0;
    for (unsigned i = 0; i < raft->configuration.n; i++)
        voters += raft->configuration.servers[i].role == RAFT_VOTER;
    *out = (struct registry_status){
        .leader = replica_leads(r->replica),
        .leader_id = leader,
        .term = raft->current_term,
        .commit_index = raft->commit_index,
        .applied_index = raft->last_applied,
        .snapshot_index = replica_snapshot_index(r->replica),
        .voters = voters,
        .proposals_total = counts.proposals,
        .batches_total = counts.batches,
        .refusals_total = r->refusals,
        .waiting = proposer_waiting(r->proposer),
    };
}
