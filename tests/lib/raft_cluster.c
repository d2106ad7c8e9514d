#include "tests/lib/raft_cluster.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* --- the state machine ------------------------------------------------------------------------------ */

static uint64_t sum_of(const struct raft_buffer *buffer)
{
    const uint8_t *bytes = buffer->base;
    uint64_t sum = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < buffer->len; i++)
        sum = (sum ^ bytes[i]) * 1099511628211u;
    return sum;
}

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buffer, void **result)
{
    struct cluster_node *n = fsm->data;
    uint64_t index = raft_cluster_raft(n->cluster, n->i)->last_applied + 1;
    struct state_outcome outcome;
    struct err e;
    *result = NULL;
    assert_always(n->applied_count < CLUSTER_APPLIED_MAX);
    n->applied_index[n->applied_count] = index;
    n->applied_sum[n->applied_count++] = sum_of(buffer);
    assert_always(state_apply(n->state, index, buffer->base, buffer->len, &outcome, &e) == 0);
    if (!n->deaf)
        proposer_applied(n->proposer, &outcome.session, &outcome.result);
    return 0;
}

/* Of nothing: nobody restores it. */
static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *buffers[], unsigned *count)
{
    const struct cluster_node *n = fsm->data;
    if (!n->snapshots)
        return RAFT_BUSY;
    *buffers = raft_malloc(sizeof **buffers);
    assert_always(*buffers != NULL);
    (*buffers)[0] = (struct raft_buffer){.base = raft_malloc(8), .len = 8};
    assert_always((*buffers)[0].base != NULL);
    memset((*buffers)[0].base, 0, 8);
    *count = 1;
    return 0;
}

static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buffer)
{
    (void)fsm;
    (void)buffer;
    return RAFT_CORRUPT;
}

/* --- between the guard and the disk ----------------------------------------------------------------- */

static struct cluster_node *node_of(struct raft_io *inner);
static struct raft_fixture_server *server_of(struct cluster *c, unsigned i);

static int append(struct raft_io *io, struct raft_io_append *req, const struct raft_entry entries[],
                  unsigned n, raft_io_append_cb cb)
{
    struct cluster_node *node = node_of(io);
    if (!node->hold_appends)
        return node->inner_append(io, req, entries, n, cb);
    assert_always(node->held_count < CLUSTER_HELD_MAX);
    node->held[node->held_count++] = req;
    node->held_cb = cb;
    return 0;
}

static int start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct cluster_node *node = node_of(io);
    node->recv = recv;
    return node->inner_start(io, msecs, tick, recv);
}

/* From the entry with index 1 on, which the log of `from` must have. */
void raft_cluster_send_all(struct cluster *c, unsigned from, unsigned to)
{
    const struct raft *leader = raft_cluster_raft(c, from);
    const struct raft_log *log = &leader->log;
    assert_always(log->offset == 0);
    unsigned n = (unsigned)raft_last_index(raft_cluster_raft(c, from));
    size_t bytes = 1;
    struct raft_entry *entries = raft_calloc(n, sizeof *entries);
    assert_always(entries != NULL);
    for (unsigned i = 0; i < n; i++)
        bytes += log->entries[(log->front + i) % log->size].buf.len;
    char *batch = raft_malloc(bytes);
    assert_always(batch != NULL);
    for (unsigned i = 0, at = 0; i < n; i++) {
        entries[i] = log->entries[(log->front + i) % log->size];
        memcpy(batch + at, entries[i].buf.base, entries[i].buf.len);
        entries[i].buf.base = batch + at;
        entries[i].batch = batch;
        at += (unsigned)entries[i].buf.len;
    }
    struct raft_message m = {.type = RAFT_IO_APPEND_ENTRIES,
                             .server_id = leader->id,
                             .server_address = leader->address,
                             .append_entries = {.term = leader->current_term,
                                                .entries = entries,
                                                .n_entries = n,
                                                .leader_commit = leader->commit_index}};
    c->nodes[to].recv(&server_of(c, to)->io, &m);
}

void raft_cluster_appends_finish(struct cluster *c, unsigned i, int status)
{
    struct cluster_node *n = &c->nodes[i];
    size_t count = n->held_count;
    assert_always(count > 0);
    n->held_count = 0;
    n->hold_appends = false;
    for (size_t k = 0; k < count; k++)
        n->held_cb(n->held[k], status);
}

/* --- nodes ------------------------------------------------------------------------------------------ */

static void noted(void *user)
{
    (void)user;
}

static void failed(void *user, const struct err *error)
{
    struct cluster_node *n = user;
    n->failed = true;
    n->failure = *error;
}

static struct raft_fixture_server *server_of(struct cluster *c, unsigned i)
{
    return &c->fixture.servers[i];
}

struct raft *raft_cluster_raft(struct cluster *c, unsigned i)
{
    return &server_of(c, i)->raft;
}

static struct cluster_node *node_of(struct raft_io *inner)
{
    /* The guard's raft_io has libraft's `data`, the raft; that has ours. */
    struct raft_fixture_server *s = container_of(inner, struct raft_fixture_server, io);
    return s->raft.data;
}

static void node_open(struct cluster *c, unsigned i, bool guard_off, unsigned timeout_ms)
{
    struct cluster_node *n = &c->nodes[i];
    struct err e;
    n->cluster = c;
    n->i = i;
    n->applied_index = calloc(CLUSTER_APPLIED_MAX, sizeof *n->applied_index);
    n->applied_sum = calloc(CLUSTER_APPLIED_MAX, sizeof *n->applied_sum);
    assert_always(n->applied_index != NULL && n->applied_sum != NULL);
    n->fsm = (struct raft_fsm){.version = 1,
                               .data = n,
                               .apply = fsm_apply,
                               .snapshot = fsm_snapshot,
                               .restore = fsm_restore};
    assert_always(raft_fixture_grow(&c->fixture, &n->fsm) == 0);
    struct raft_fixture_server *s = server_of(c, i);
    const struct guard_options guard = {
        .inner = &s->io, .off = guard_off, .user = n, .after = noted, .failed = failed};
    assert_always(guard_new(&n->guard, &guard, &e) == 0);
    /* The fixture has called raft_init with its own raft_io. */
    s->raft.data = n;
    s->raft.io = guard_io(n->guard);
    guard_io(n->guard)->data = &s->raft;
    s->io.data = n->guard;
    n->inner_append = s->io.append;
    s->io.append = append;
    n->inner_start = s->io.start;
    s->io.start = start;
    const struct proposer_options proposer = {.raft = &s->raft,
                                              .node = i + 1,
                                              .boot = 1,
                                              .waiting_max = 1000,
                                              .timeout_ms = timeout_ms,
                                              .user = n,
                                              .wake = noted};
    assert_always(state_new(&n->state, &e) == 0);
    assert_always(proposer_new(&n->proposer, &proposer, &e) == 0);
}

void raft_cluster_open(struct cluster *c, unsigned n, bool guard_off, unsigned propose_timeout_ms)
{
    memset(c, 0, sizeof *c);
    c->n = n;
    assert_always(raft_fixture_initialize(&c->fixture) == 0);
    for (unsigned i = 0; i < n; i++)
        node_open(c, i, guard_off, propose_timeout_ms);
    struct raft_configuration configuration;
    assert_always(raft_fixture_configuration(&c->fixture, n, &configuration) == 0);
    assert_always(raft_fixture_bootstrap(&c->fixture, &configuration) == 0);
    raft_configuration_close(&configuration);
    assert_always(raft_fixture_start(&c->fixture) == 0);
}

void raft_cluster_close(struct cluster *c)
{
    for (unsigned i = 0; i < c->n; i++) {
        if (c->nodes[i].held_count > 0)
            raft_cluster_appends_finish(c, i, RAFT_CANCELED);
        proposer_close(c->nodes[i].proposer);
    }
    raft_fixture_close(&c->fixture);
    for (unsigned i = 0; i < c->n; i++) {
        struct cluster_node *n = &c->nodes[i];
        proposer_free(n->proposer);
        guard_free(n->guard);
        state_free(n->state);
        free(n->applied_index);
        free(n->applied_sum);
    }
}

/* --- time ------------------------------------------------------------------------------------------- */

/* libraft's log is a ring. */
static raft_term term_at(const struct raft_log *log, raft_index index)
{
    return log->entries[(log->front + index - log->offset - 1) % log->size].term;
}

static void commits_follow(struct cluster *c, struct cluster_node *n)
{
    const struct raft *r = raft_cluster_raft(c, n->i);
    while (n->committed < r->commit_index) {
        raft_index index = ++n->committed;
        if (index <= r->log.offset)
            continue; /* a snapshot holds it */
        raft_term term = term_at(&r->log, index);
        assert_always(index < CLUSTER_APPLIED_MAX);
        if (c->committed[index] == 0)
            c->committed[index] = term;
        else if (c->committed[index] != term)
            c->disagreed = true;
    }
}

void raft_cluster_step(struct cluster *c)
{
    raft_fixture_step(&c->fixture);
    for (unsigned i = 0; i < c->n; i++)
        commits_follow(c, &c->nodes[i]);
    raft_time now = raft_fixture_time(&c->fixture);
    for (unsigned i = 0; i < c->n; i++) {
        struct cluster_node *n = &c->nodes[i];
        proposer_deliver(n->proposer);
        proposer_expire(n->proposer, now);
        proposer_ask(n->proposer, guard_leads(n->guard));
    }
}

void raft_cluster_run(struct cluster *c, unsigned ms)
{
    raft_time until = raft_fixture_time(&c->fixture) + ms;
    while (raft_fixture_time(&c->fixture) < until)
        raft_cluster_step(c);
}

bool raft_cluster_run_until(struct cluster *c, bool (*done)(void *user), void *user, unsigned ms)
{
    raft_time until = raft_fixture_time(&c->fixture) + ms;
    while (!done(user)) {
        if (raft_fixture_time(&c->fixture) >= until)
            return false;
        raft_cluster_step(c);
    }
    return true;
}

/* --- faults ----------------------------------------------------------------------------------------- */

int raft_cluster_leader(struct cluster *c)
{
    int found = -1;
    for (unsigned i = 0; i < c->n; i++) {
        const struct raft *r = raft_cluster_raft(c, i);
        if (r->state == RAFT_LEADER &&
            (found < 0 || r->current_term > raft_cluster_raft(c, (unsigned)found)->current_term))
            found = (int)i;
    }
    return found;
}

static void election_timeouts(struct cluster *c, unsigned soon)
{
    for (unsigned i = 0; i < c->n; i++) {
        unsigned ms = i == soon ? 1000 : 60000;
        struct raft *r = raft_cluster_raft(c, i);
        raft_fixture_set_randomized_election_timeout(&c->fixture, i, ms);
        if (r->state == RAFT_FOLLOWER) {
            r->follower_state.randomized_election_timeout = ms;
            /* Else it would give no vote before its own election timeout. */
            r->follower_state.current_leader.id = 0;
        } else if (r->state == RAFT_CANDIDATE) {
            r->candidate_state.randomized_election_timeout = ms;
        }
    }
}

void raft_cluster_elect(struct cluster *c, unsigned i)
{
    election_timeouts(c, i);
    for (unsigned k = 0; k < 100000 && raft_cluster_raft(c, i)->state != RAFT_LEADER; k++)
        raft_cluster_step(c);
    assert_always(raft_cluster_raft(c, i)->state == RAFT_LEADER);
}

void raft_cluster_depose(struct cluster *c, unsigned i)
{
    for (unsigned k = 0; k < 100000 && raft_cluster_raft(c, i)->state == RAFT_LEADER; k++)
        raft_cluster_step(c);
    assert_always(raft_cluster_raft(c, i)->state != RAFT_LEADER);
}

void raft_cluster_cut(struct cluster *c, unsigned i, unsigned j)
{
    raft_fixture_disconnect(&c->fixture, i, j);
    raft_fixture_disconnect(&c->fixture, j, i);
}

void raft_cluster_join(struct cluster *c, unsigned i, unsigned j)
{
    raft_fixture_reconnect(&c->fixture, i, j);
    raft_fixture_reconnect(&c->fixture, j, i);
}

void raft_cluster_isolate(struct cluster *c, unsigned i)
{
    for (unsigned j = 0; j < c->n; j++)
        if (j != i)
            raft_cluster_cut(c, i, j);
}

void raft_cluster_heal(struct cluster *c)
{
    for (unsigned i = 0; i < c->n; i++)
        for (unsigned j = i + 1; j < c->n; j++)
            raft_cluster_join(c, i, j);
}

static void put_cb(struct raft_apply *request, int status, void *result)
{
    (void)status;
    (void)result;
    free(request);
}

int raft_cluster_put(struct cluster *c, unsigned i, uint64_t wall_ms)
{
    const struct registry_command command = {.kind = REGISTRY_SWEEP, .wall_ms = wall_ms};
    const struct command_session session = {.node = 99, .boot = 1, .sequence = wall_ms};
    uint8_t *bytes;
    struct raft_buffer buffer;
    struct err e;
    assert_always(command_encode(&bytes, &buffer.len, &session, &command, &e) == 0);
    buffer.base = raft_malloc(buffer.len);
    struct raft_apply *request = calloc(1, sizeof *request);
    assert_always(buffer.base != NULL && request != NULL);
    memcpy(buffer.base, bytes, buffer.len);
    free(bytes);
    int rv = raft_apply(raft_cluster_raft(c, i), request, &buffer, 1, put_cb);
    if (rv != 0) {
        raft_free(buffer.base);
        free(request);
    }
    return rv;
}

bool raft_cluster_agrees(const struct cluster *c)
{
    if (c->disagreed)
        return false;
    for (unsigned i = 0; i < c->n; i++) {
        for (unsigned j = i + 1; j < c->n; j++) {
            const struct cluster_node *a = &c->nodes[i], *b = &c->nodes[j];
            size_t x = 0, y = 0;
            while (x < a->applied_count && y < b->applied_count) {
                if (a->applied_index[x] < b->applied_index[y])
                    x++;
                else if (a->applied_index[x] > b->applied_index[y])
                    y++;
                else if (a->applied_sum[x++] != b->applied_sum[y++])
                    return false;
            }
        }
    }
    return true;
}
