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
#include "raft/registry_internal.h"

enum {
    SNAPSHOT_THRESHOLD = 8192,
    SNAPSHOT_TRAILING = 2048,
    WAITING_MAX = 10000,
    PROPOSE_TIMEOUT_MS = 10000,
    TICK_MS = REMOTE_PAUSE_MS, /* how late a deadline or a pause may be noticed */
    COLLECT_MAX = 1000,        /* entries freed in one round of the loop: some 0.2 ms */
    TURNS_MAX = 4,             /* one after the other, before the loop has a look at the rest */
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

void registry_wake(void *registry)
{
    struct registry *r = registry;
    r->again = r->turning;
    if (r->awake || r->turning || r->parts_closing)
        return;
    r->awake = true;
    uv_prepare_start(&r->prepare, prepare_cb);
    uv_check_start(&r->check, check_cb);
}

static void timer_cb(uv_timer_t *timer)
{
    struct registry *r = container_of(timer, struct registry, timer);
    r->ticked = true;
    registry_wake(r);
}

/* False: nothing is left to be freed. */
static bool collect(struct registry *r)
{
    bool more = state_collect(r->state, COLLECT_MAX);
    return spare_collect(r->spare, COLLECT_MAX) || more;
}

static void idle_cb(uv_idle_t *idle)
{
    struct registry *r = container_of(idle, struct registry, idle);
    if (!collect(r))
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
    registry_wake(r);
}

static void tell(struct registry *r)
{
    bool leader = replica_leads(r->replica);
    if (leader != r->told_leader) {
        r->told_leader = leader;
        if (r->options.leader_changed != NULL)
            r->options.leader_changed(r->options.user, leader);
    }
    uint64_t index = state_content(registry_state(r))->index;
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
    if (proposer_idle(r->proposer) && remote_idle(r->remote))
        uv_timer_stop(&r->timer);
    else if (!uv_is_active((uv_handle_t *)&r->timer))
        uv_timer_start(&r->timer, timer_cb, TICK_MS, TICK_MS);
}

/* Nodes may have come, been removed, or got another key. */
static void nodes_follow(struct registry *r)
{
    const struct map *nodes = &state_content(registry_state(r))->maps[STATE_NODES];
    if (nodes->root == r->nodes_seen)
        return;
    r->nodes_seen = nodes->root;
    replica_review(r->replica);
    registry_spare_review(r);
}

static void close_now(struct registry *r);

static void turn_once(struct registry *r)
{
    uint64_t now_ms = clock_monotonic_ms();
    tell(r);
    nodes_follow(r);
    registry_members_turn(r);
    proposer_deliver(r->proposer);
    if (r->ticked) {
        proposer_expire(r->proposer, now_ms);
        remote_expire(r->remote, now_ms);
    }
    r->ticked = false;
    if (r->closing)
        return;
    if (r->failed || !replica_elected(r->replica))
        proposer_depose(r->proposer);
    remote_turn(r->remote, now_ms);
    registry_spare_turn(r, now_ms);
    proposer_ask(r->proposer, !r->failed && replica_leads(r->replica));
    /* Unless entries went out just now, which tell as much. */
    replica_spread(r->replica);
}

static void turn(struct registry *r)
{
    r->awake = false;
    uv_prepare_stop(&r->prepare);
    uv_check_stop(&r->check);
    r->turning = true;
    for (unsigned i = 0; i < TURNS_MAX; i++) {
        r->again = false;
        turn_once(r);
        if (!r->again || r->closing)
            break;
    }
    r->turning = false;
    if (r->closing) {
        close_now(r);
        return;
    }
    timer_follow(r);
    bool more = r->again;
    if (more)
        registry_wake(r);
    /* So that the loop does not wait before that. */
    if (collect(r) || more)
        uv_idle_start(&r->idle, idle_cb);
}

/* --- opening and closing ------------------------------------------------------------------------------ */

static void release(struct registry *r)
{
    registry_members_free(r);
    remote_free(r->remote);
    proposer_free(r->proposer);
    recent_free(r->recent);
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

static void parts_close(struct registry *r);

static void feed_closed_cb(void *user)
{
    struct registry *r = user;
    r->feed = NULL;
    parts_close(r);
}

static void spare_closed_cb(void *user)
{
    struct registry *r = user;
    r->spare = NULL;
    parts_close(r);
}

/* One after the other; those that were never opened are passed over. */
static void parts_close(struct registry *r)
{
    if (r->feed != NULL)
        feed_close(r->feed, feed_closed_cb, r);
    else if (r->spare != NULL)
        spare_close(r->spare, spare_closed_cb, r);
    else
        replica_close(r->replica, replica_closed_cb, r);
}

static void close_now(struct registry *r)
{
    r->parts_closing = true;
    uv_timer_stop(&r->timer);
    uv_idle_stop(&r->idle);
    proposer_close(r->proposer);
    remote_close(r->remote);
    registry_members_close(r);
    parts_close(r);
}

void registry_close(struct registry *r, void (*cb)(void *user), void *user)
{
    assert_always(!r->closing);
    r->closing = true;
    r->closed = cb;
    r->closed_user = user;
    registry_wake(r);
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
    if (rc == 0)
        rc = recent_new(&r->recent, e);
    if (rc < 0)
        return rc;
    const struct replica_options replica = {.directory = r->options.directory,
                                            .id = r->options.id,
                                            .bootstrap = r->options.bootstrap,
                                            .peers = &r->options.peers,
                                            .snapshot_threshold = r->options.snapshot_threshold,
                                            .snapshot_trailing = r->options.snapshot_trailing,
                                            .state = r->state,
                                            .recent = r->recent,
                                            .user = r,
                                            .applied = applied,
                                            .after = registry_wake,
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
                                              .applied = registry_applied,
                                              .wake = registry_wake};
    int rc = proposer_new(&r->proposer, &proposer, e);
    if (rc < 0)
        return rc;
    const struct remote_options remote = {.wall_ms = r->options.wall_ms,
                                          .id = r->options.id,
                                          .state = r->state,
                                          .raft = replica_raft(r->replica),
                                          .proposer = r->proposer,
                                          .peers = &r->options.peers,
                                          .waiting_max = r->options.waiting_max,
                                          .timeout_ms = r->options.propose_timeout_ms,
                                          .user = r,
                                          .generation = registry_generation,
                                          .leader = registry_leader,
                                          .applied = registry_applied,
                                          .wake = registry_wake};
    return remote_new(&r->remote, &remote, e);
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
    if (rc == 0)
        rc = registry_spare_open(r, e);
    if (rc < 0) {
        r->parts_closing = true;
        parts_close(r);
        return rc;
    }
    registry_wake(r);
    *out = r;
    return 0;
}

/* --- asking ------------------------------------------------------------------------------------------- */

static int open_check(const struct registry *r, struct err *e)
{
    if (r->closing)
        return err_set(e, ERR_CANCELED, "the registry is closing");
    return r->failed ? err_set(e, ERR_UNAVAILABLE, "%s", r->failure.msg) : 0;
}

int registry_propose(struct registry *r, const struct registry_command *command,
                     registry_result_cb cb, void *user, struct err *e)
{
    int rc = open_check(r, e);
    if (rc < 0)
        return rc;
    rc = state_admits(registry_state(r), command, e);
    if (rc < 0)
        return rc;
    rc = proposer_propose(r->proposer, command, clock_monotonic_ms(), cb, user, e);
    return rc < 0 ? err_wrap(e, "propose to the registry") : 0;
}

int registry_read(struct registry *r, registry_read_cb cb, void *user, struct err *e)
{
    int rc = open_check(r, e);
    if (rc == 0)
        rc = remote_read(r->remote, clock_monotonic_ms(), cb, user, e);
    return rc < 0 ? err_wrap(e, "read the registry's newest state") : 0;
}

int registry_barrier(struct registry *r, registry_read_cb cb, void *user, struct err *e)
{
    int rc = open_check(r, e);
    if (rc == 0 && !replica_elected(r->replica))
        rc = err_set(e, ERR_CONFLICT, "this node does not lead");
    if (rc == 0)
        rc = proposer_barrier(r->proposer, clock_monotonic_ms(), cb, user, e);
    return rc < 0 ? err_wrap(e, "prove that this node leads") : 0;
}

void registry_question(struct registry *r, node_id from, const uint8_t *payload, size_t size,
                       registry_answer_fn answer, void *question)
{
    remote_question(r->remote, clock_monotonic_ms(), from, payload, size, answer, question);
}

void registry_accept(struct registry *r, struct secure_stream *s)
{
    if (r->parts_closing)
        secure_stream_close(s, NULL);
    else if (secure_stream_protocol(s) == SECURE_SPARE)
        feed_accept(r->feed, s);
    else
        replica_accept(r->replica, s);
}

struct registry_root *registry_root(struct registry *r)
{
    return state_root(registry_state(r));
}

void registry_status(const struct registry *r, struct registry_status *out)
{
    struct raft *raft = replica_raft(r->replica);
    struct proposer_counts counts = proposer_counts(r->proposer);
    *out = (struct registry_status){
        .leader = replica_leads(r->replica),
        .leader_id = registry_leader((void *)(uintptr_t)r), /* it only reads */
        .term = raft->current_term,
        .commit_index = raft->commit_index,
        .applied_index = registry_applied((void *)(uintptr_t)r),
        .snapshot_index = replica_snapshot_index(r->replica),
        .proposals_total = counts.proposals,
        .batches_total = counts.batches,
        .refusals_total = r->refusals,
        .foreign_total = counts.foreign,
        .asked_total = remote_counts(r->remote).calls,
        .streams = replica_streams(r->replica),
        .waiting = proposer_waiting(r->proposer),
    };
    registry_spare_status(r, out);
}
