#include "tests/sim/raft_process.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/snapshot.h"
#include "tests/sim/raft_wire.h"

/* A message that was sent, or a snapshot that was asked for: libraft waits for its callback. */
struct pending {
    struct pending *next;
    struct raft_io_send *send;
    struct raft_io_snapshot_get *get;
    int status;
};

struct process {
    struct process_options options;
    struct sim *sim;
    struct raft raft;
    struct raft_io io;
    struct raft_fsm fsm;
    struct guard *guard;
    struct proposer *proposer;
    struct state *state;
    struct checks_process checks;
    uint64_t sequence; /* the proposer's last */

    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    unsigned tick_ms;
    struct pending *pending, **pending_last;
    bool flush_waits, tend_waits;
    struct raft_io_async_work *work;
    struct registry_root *snapshot_root;
    struct buffer snapshot_bytes;
    struct raft_buffer snapshot_buffer;
    struct raft_transfer transfer;
    bool transferring;
    struct raft_change change;
    bool changing;
    enum world_change change_kind;
    raft_id change_id;

    bool closing;
    bool failed;               /* it must end */
    struct process *lost_next; /* when it has failed and ended */
    const void *lost_writes;
    struct err failure;
    unsigned short state_said;
    raft_term term_said;
};

static struct process *process_of(struct raft_io *io)
{
    return io->impl;
}

static uint64_t now_ms(const struct process *p)
{
    return member_now_ms(p->options.world, p->options.node);
}

/* --- after each event --------------------------------------------------------------------------------- */

static const char *const state_names[] = {"unavailable", "follows", "campaigns", "leads"};

static void say_changes(struct process *p)
{
    if (p->raft.state == p->state_said &&
        (p->raft.state != RAFT_LEADER || p->raft.current_term == p->term_said))
        return;
    p->state_said = p->raft.state;
    p->term_said = p->raft.current_term;
    world_say(p->options.world, "member %llu %s, term %llu, log to %llu, committed %llu",
              p->raft.id, state_names[p->raft.state], p->raft.current_term,
              raft_last_index(&p->raft), p->raft.commit_index);
}

/* What a node's loop does when libraft or a client did something. The process may be gone after it. */
static void settle(struct process *p)
{
    checks_follow(world_checks(p->options.world), &p->checks, &p->raft);
    proposer_deliver(p->proposer);
    proposer_expire(p->proposer, now_ms(p));
    if (p->failed || p->raft.state != RAFT_LEADER)
        proposer_depose(p->proposer);
    proposer_ask(p->proposer, process_leads(p));
    if (!p->failed)
        guard_spread(p->guard);
    say_changes(p);
    if (p->failed)
        p->options.ended(p->options.user, p->options.node, p->failure.msg);
    else if (disk_process_over(p->options.disk))
        p->options.ended(p->options.user, p->options.node, "it crashed in the middle of a write");
}

static void settle_cb(void *user)
{
    settle(user);
}

static void tend_run(void *user, uint32_t node, uint64_t number)
{
    struct process *p = user;
    (void)node;
    (void)number;
    p->tend_waits = false;
    settle(p);
}

static void wake(void *user)
{
    struct process *p = user;
    if (p->tend_waits || p->closing)
        return;
    p->tend_waits = true;
    sim_node_at(p->sim, p->options.node, sim_now_us(p->sim), tend_run, p, 0);
}

static void failed(void *user, const struct err *error)
{
    struct process *p = user;
    if (p->failed)
        return;
    p->failed = true;
    p->failure = *error;
}

static void noted(void *user)
{
    (void)user;
}

/* --- the state machine, as raft/replica.c has it -------------------------------------------------------- */

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buffer, void **result)
{
    struct process *p = fsm->data;
    struct state_outcome outcome;
    struct err e;
    uint64_t index = p->raft.last_applied + 1;
    *result = NULL;
    if (state_apply(p->state, index, buffer->base, buffer->len, &outcome, &e) < 0) {
        failed(p, &e);
        return RAFT_SHUTDOWN;
    }
    const struct checks_applied applied = {index, buffer, &outcome, state_content(p->state)};
    checks_applied(world_checks(p->options.world), &p->checks, &applied);
    proposer_applied(p->proposer, &outcome.session, &outcome.result);
    return 0;
}

static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buffer)
{
    struct process *p = fsm->data;
    struct state_content content;
    struct err e;
    if (snapshot_decode(&content, buffer->base, buffer->len, &e) < 0) {
        failed(p, &e);
        return RAFT_CORRUPT;
    }
    raft_free(buffer->base);
    checks_restored(world_checks(p->options.world), &p->checks, &content);
    state_restore(p->state, &content);
    return 0;
}

static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *buffers[], unsigned *count)
{
    struct process *p = fsm->data;
    if (p->snapshot_root != NULL || p->closing || !guard_may_snapshot(p->guard))
        return RAFT_BUSY;
    p->snapshot_root = state_root(p->state);
    *buffers = NULL;
    *count = 0;
    return 0;
}

static int fsm_snapshot_async(struct raft_fsm *fsm, struct raft_buffer *buffers[], unsigned *count)
{
    struct process *p = fsm->data;
    struct err e;
    buffer_init(&p->snapshot_bytes, SNAPSHOT_BYTES_MAX);
    assert_always(snapshot_encode(&p->snapshot_root->content, &p->snapshot_bytes, &e) == 0);
    p->snapshot_buffer =
        (struct raft_buffer){.base = p->snapshot_bytes.data, .len = p->snapshot_bytes.length};
    *buffers = &p->snapshot_buffer;
    *count = 1;
    return 0;
}

static int fsm_snapshot_finalize(struct raft_fsm *fsm, struct raft_buffer *buffers[],
                                 unsigned *count)
{
    struct process *p = fsm->data;
    *buffers = NULL;
    *count = 0;
    buffer_free(&p->snapshot_bytes);
    registry_root_release(p->snapshot_root);
    p->snapshot_root = NULL;
    return 0;
}

static void work_run(void *user, uint32_t node, uint64_t number)
{
    struct process *p = user;
    (void)node;
    (void)number;
    struct raft_io_async_work *work = p->work;
    p->work = NULL;
    guard_async_work_done(p->guard, work, work->work(work));
    settle(p);
}

static int async_work(void *user, struct raft_io_async_work *work)
{
    struct process *p = user;
    if (p->work != NULL)
        return RAFT_BUSY;
    p->work = work;
    sim_node_at(p->sim, p->options.node, sim_now_us(p->sim) + sim_between(p->sim, 100, 50000),
                work_run, p, 0);
    return 0;
}

/* --- raft_io: disk and clock ----------------------------------------------------------------------------- */

static int io_init(struct raft_io *io, raft_id id, const char *address)
{
    (void)io;
    (void)id;
    (void)address;
    return 0;
}

static int io_load(struct raft_io *io, raft_term *term, raft_id *voted_for,
                   struct raft_snapshot **snapshot, raft_index *start_index,
                   struct raft_entry *entries[], size_t *n_entries)
{
    return disk_load(process_of(io)->options.disk, term, voted_for, snapshot, start_index, entries,
                     n_entries);
}

static int io_bootstrap(struct raft_io *io, const struct raft_configuration *conf)
{
    return disk_bootstrap(process_of(io)->options.disk, conf);
}

static int io_recover(struct raft_io *io, const struct raft_configuration *conf)
{
    (void)io;
    (void)conf;
    return RAFT_INVALID;
}

static int io_set_term(struct raft_io *io, raft_term term)
{
    return disk_set_term(process_of(io)->options.disk, term);
}

static int io_set_vote(struct raft_io *io, raft_id server_id)
{
    return disk_set_vote(process_of(io)->options.disk, server_id);
}

static int io_append(struct raft_io *io, struct raft_io_append *req,
                     const struct raft_entry entries[], unsigned n, raft_io_append_cb cb)
{
    req->cb = cb;
    return disk_append(process_of(io)->options.disk, req, entries, n);
}

static int io_truncate(struct raft_io *io, raft_index index)
{
    return disk_truncate(process_of(io)->options.disk, index);
}

static int io_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req,
                           const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    req->cb = cb;
    return disk_snapshot_put(process_of(io)->options.disk, trailing, req, snapshot);
}

static raft_time io_time(struct raft_io *io)
{
    return now_ms(process_of(io));
}

static int io_random(struct raft_io *io, int min, int max)
{
    return min + (int)sim_below(process_of(io)->sim, (uint64_t)(max - min));
}

/* --- raft_io: network -------------------------------------------------------------------------------------- */

static void pending_end(struct process *p, struct pending *i, int status)
{
    if (i->send != NULL && i->send->cb != NULL)
        i->send->cb(i->send, status);
    if (i->get != NULL)
        i->get->cb(i->get, status == 0 ? disk_snapshot_copy(p->options.disk) : NULL, status);
    free(i);
}

static void pending_all(struct process *p, bool canceled)
{
    struct pending *i = p->pending;
    p->pending = NULL;
    p->pending_last = &p->pending;
    while (i != NULL) {
        struct pending *next = i->next;
        pending_end(p, i, canceled ? RAFT_CANCELED : i->status);
        i = next;
    }
}

static void flush_run(void *user, uint32_t node, uint64_t number)
{
    struct process *p = user;
    (void)node;
    (void)number;
    p->flush_waits = false;
    pending_all(p, false);
    settle(p);
}

static struct pending *pending_new(struct process *p, int status)
{
    struct pending *i = calloc(1, sizeof *i);
    assert_always(i != NULL);
    i->status = status;
    *p->pending_last = i;
    p->pending_last = &i->next;
    if (!p->flush_waits) {
        p->flush_waits = true;
        sim_node_at(p->sim, p->options.node, sim_now_us(p->sim) + 20, flush_run, p, 0);
    }
    return i;
}

static void say_message(struct process *p, const char *way, raft_id other,
                        const struct raft_message *m)
{
    char text[200];
    if (!p->options.world_options->trace_messages)
        return;
    wire_describe(m, text, sizeof text);
    world_say(p->options.world, "  %llu %s %llu: %s", p->raft.id, way, other, text);
}

static int io_send(struct raft_io *io, struct raft_io_send *req, const struct raft_message *message,
                   raft_io_send_cb cb)
{
    struct process *p = process_of(io);
    uint32_t to = (uint32_t)message->server_id - 1;
    req->cb = cb;
    /* libraft may take it from memory that means something else by now. */
    if (message->server_id == 0 || message->server_id > p->options.world_options->members) {
        checks_violate(world_checks(p->options.world),
                       "member %llu sends a message of type %u to member %llu, which is none",
                       p->raft.id, message->type, message->server_id);
        pending_new(p, RAFT_NOCONNECTION)->send = req;
        return 0;
    }
    bool sent = sim_reachable(p->sim, p->options.node, to) || sim_chance(p->sim, 500);
    pending_new(p, sent ? 0 : RAFT_NOCONNECTION)->send = req;
    /* The write that ends the process comes before what it says after it. */
    if (disk_process_over(p->options.disk) || !member_is_up(p->options.world, to))
        return 0;
    say_message(p, "->", message->server_id, message);
    size_t size;
    uint8_t *bytes = wire_encode(message, &size);
    world_send(p->options.world, p->options.node, to, bytes, size);
    free(bytes);
    return 0;
}

void process_receive(struct process *p, uint32_t from, const uint8_t *data, size_t size)
{
    struct raft_message m;
    char address[24];
    wire_decode(data, size, &m);
    (void)text_format(address, sizeof address, "%u", from + 1);
    m.server_id = from + 1;
    m.server_address = address;
    say_message(p, "<-", m.server_id, &m);
    p->recv(&p->io, &m);
    settle(p);
}

static int io_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req,
                           raft_io_snapshot_get_cb cb)
{
    struct process *p = process_of(io);
    req->cb = cb;
    pending_new(p, 0)->get = req;
    return 0;
}

/* --- its life ------------------------------------------------------------------------------------------------ */

static void tick_run(void *user, uint32_t node, uint64_t number);

static void tick_soon(struct process *p)
{
    uint64_t us = member_real_us(p->options.world, p->options.node, p->tick_ms * 1000ull);
    sim_node_at(p->sim, p->options.node, sim_now_us(p->sim) + us, tick_run, p, 0);
}

static void tick_run(void *user, uint32_t node, uint64_t number)
{
    struct process *p = user;
    (void)node;
    (void)number;
    tick_soon(p);
    p->tick(&p->io);
    settle(p);
}

static int io_start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct process *p = process_of(io);
    p->tick = tick;
    p->recv = recv;
    p->tick_ms = msecs;
    tick_soon(p);
    return 0;
}

static void io_close(struct raft_io *io, raft_io_close_cb cb)
{
    struct process *p = process_of(io);
    disk_cancel(p->options.disk, p->options.world_options->guard_off);
    if (p->work != NULL)
        guard_async_work_done(p->guard, p->work, RAFT_CANCELED);
    p->work = NULL;
    pending_all(p, true);
    cb(io);
}

static void transferred(struct raft_transfer *transfer)
{
    struct process *p = transfer->data;
    p->transferring = false;
}

void process_transfer(struct process *p, raft_id to)
{
    if (p->transferring)
        return;
    p->transfer.data = p;
    p->transferring = raft_transfer(&p->raft, &p->transfer, to, transferred) == 0;
    settle(p);
}

static void changed(struct raft_change *change, int status)
{
    struct process *p = change->data;
    p->changing = false;
    if (!p->closing)
        world_changed(p->options.world, p->change_kind, p->change_id, status == 0);
}

bool process_changes(const struct process *p)
{
    return p->changing;
}

void process_change(struct process *p, enum world_change change, raft_id id)
{
    char address[24];
    if (p->changing || !process_leads(p))
        return;
    (void)text_format(address, sizeof address, "%llu", id);
    p->changing = true;
    p->change.data = p;
    p->change_kind = change;
    p->change_id = id;
    int rv = 0;
    switch (change) {
    case WORLD_ADD:
        rv = raft_add(&p->raft, &p->change, id, address, changed);
        break;
    case WORLD_DISMISS:
    case WORLD_REMOVE:
        rv = raft_remove(&p->raft, &p->change, id, changed);
        break;
    default:
        rv = raft_assign(&p->raft, &p->change, id,
                         change == WORLD_VOTER     ? RAFT_VOTER
                         : change == WORLD_STANDBY ? RAFT_STANDBY
                                                   : RAFT_SPARE,
                         changed);
        break;
    }
    /* When it refuses, it does not call back, but may keep the request. */
    if (rv != 0) {
        p->changing = false;
        if (p->raft.state == RAFT_LEADER && p->raft.leader_state.change == &p->change)
            p->raft.leader_state.change = NULL;
    }
    settle(p);
}

struct raft *process_raft(struct process *p)
{
    return &p->raft;
}

struct state *process_state(struct process *p)
{
    return p->state;
}

bool process_leads(struct process *p)
{
    return !p->failed && guard_leads(p->guard);
}

bool process_propose(struct process *p, const struct registry_command *command,
                     registry_result_cb cb, void *user, struct command_session *session)
{
    struct err e;
    if (proposer_propose(p->proposer, command, now_ms(p), cb, user, &e) < 0)
        return false;
    *session = (struct command_session){p->options.id, p->options.boot, ++p->sequence};
    return true;
}

bool process_propose_foreign(struct process *p, const struct command_session *session,
                             const struct registry_command *command, registry_result_cb cb,
                             void *user)
{
    uint8_t *bytes;
    size_t length;
    struct err e;
    assert_always(command_encode(&bytes, &length, session, command, &e) == 0);
    return proposer_propose_foreign(p->proposer, session, bytes, length, now_ms(p) + 2000, cb, user,
                                    &e) == 0;
}

bool process_barrier(struct process *p, proposer_barrier_cb cb, void *user)
{
    struct err e;
    return proposer_barrier(p->proposer, now_ms(p), cb, user, &e) == 0;
}

static void closed(struct raft *r)
{
    (void)r;
}

/* A node whose disk failed exits at once, with libraft as it stands: what an error left in it is not to be
 * closed (it frees entries of a failed truncation twice). Its memory is lost, and kept where a leak checker
 * sees it. */
static void lose(struct process *p)
{
    static struct process *lost;
    p->lost_writes = disk_lost(p->options.disk);
    p->lost_next = lost;
    lost = p;
}

void process_end(struct process *p)
{
    p->closing = true;
    disk_crash(p->options.disk);
    proposer_close(p->proposer);
    if (p->failed) {
        lose(p);
        return;
    }
    raft_close(&p->raft, closed);
    proposer_free(p->proposer);
    guard_free(p->guard);
    state_free(p->state);
    free(p);
}

static void raft_io_fill(struct process *p)
{
    p->io = (struct raft_io){.version = 2,
                             .impl = p,
                             .init = io_init,
                             .close = io_close,
                             .load = io_load,
                             .start = io_start,
                             .bootstrap = io_bootstrap,
                             .recover = io_recover,
                             .set_term = io_set_term,
                             .set_vote = io_set_vote,
                             .send = io_send,
                             .append = io_append,
                             .truncate = io_truncate,
                             .snapshot_put = io_snapshot_put,
                             .snapshot_get = io_snapshot_get,
                             .time = io_time,
                             .random = io_random};
    p->fsm = (struct raft_fsm){.version = 3,
                               .data = p,
                               .apply = fsm_apply,
                               .snapshot = fsm_snapshot,
                               .restore = fsm_restore,
                               .snapshot_finalize = fsm_snapshot_finalize,
                               .snapshot_async = fsm_snapshot_async};
}

static void parts_open(struct process *p)
{
    const struct process_options *o = &p->options;
    const struct guard_options guard = {.inner = &p->io,
                                        .off = o->world_options->guard_off,
                                        .user = p,
                                        .after = noted,
                                        .failed = failed,
                                        .async_work = async_work};
    const struct proposer_options proposer = {.raft = &p->raft,
                                              .node = o->id,
                                              .boot = o->boot,
                                              .waiting_max = 1000,
                                              .timeout_ms = o->world_options->propose_timeout_ms,
                                              .user = p,
                                              .wake = wake};
    char address[24];
    struct err e;
    (void)text_format(address, sizeof address, "%llu", o->id);
    assert_always(state_new(&p->state, &e) == 0);
    assert_always(guard_new(&p->guard, &guard, &e) == 0);
    assert_always(proposer_new(&p->proposer, &proposer, &e) == 0);
    raft_io_fill(p);
    assert_always(raft_init(&p->raft, guard_io(p->guard), &p->fsm, o->id, address) == 0);
    p->raft.data = p;
    raft_set_election_timeout(&p->raft, WORLD_ELECTION_MS);
    raft_set_heartbeat_timeout(&p->raft, WORLD_HEARTBEAT_MS);
    raft_set_install_snapshot_timeout(&p->raft, WORLD_INSTALL_MS);
    raft_set_snapshot_threshold(&p->raft, o->world_options->snapshot_threshold);
    raft_set_snapshot_trailing(&p->raft, o->world_options->snapshot_trailing);
    raft_set_pre_vote(&p->raft, true);
}

static void bootstrap(struct process *p)
{
    struct raft_configuration configuration;
    raft_configuration_init(&configuration);
    for (uint32_t i = 0; i < p->options.world_options->members; i++) {
        char address[24];
        if (p->options.world_options->role[i] == WORLD_OUTSIDE)
            continue;
        (void)text_format(address, sizeof address, "%u", i + 1);
        assert_always(raft_configuration_add(&configuration, i + 1, address,
                                             p->options.world_options->role[i]) == 0);
    }
    int rv = raft_bootstrap(&p->raft, &configuration);
    assert_always(rv == 0 || rv == RAFT_CANTBOOTSTRAP);
    raft_configuration_close(&configuration);
}

bool process_new(struct process **out, const struct process_options *options, char *why,
                 size_t size)
{
    struct process *p = calloc(1, sizeof *p);
    assert_always(p != NULL);
    p->options = *options;
    p->sim = world_sim(options->world);
    p->pending_last = &p->pending;
    p->checks.id = options->id;
    disk_attach(options->disk, settle_cb, p);
    parts_open(p);
    if (options->world_options->role[options->node] == RAFT_VOTER)
        bootstrap(p);
    int rv = raft_start(&p->raft);
    if (rv == 0) {
        guard_started(p->guard);
        *out = p;
        wake(p);
        return true;
    }
    (void)text_format(why, size, "it cannot start: %s", raft_strerror(rv));
    process_end(p);
    return false;
}
