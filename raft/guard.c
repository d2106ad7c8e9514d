#include "raft/guard.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/entries.h"
#include "raft/membership.h"

#define NOT_ASKED ((raft_index)-1)

/* A message whose time has not come. Those kinds hold no memory but the address. */
struct waiting {
    struct raft_message message;
    char address[32];
};

/* An append under way: stands between libraft's request and the inner one's. */
struct append {
    struct raft_io_append inner;
    struct raft_io_append *outer;
    struct guard *guard;
    struct append *next;
    raft_index asked_index; /* as in struct guard */
    raft_term asked_term;
    raft_index before; /* of a leader's: the last index before its entries; else 0 */
};

/* First in, first out. */
struct appends {
    struct append *first, *last;
};

/* A message that goes nowhere any more. */
struct unsent {
    struct raft_io_send *request;
    struct unsent *next;
};

struct put {
    struct raft_io_snapshot_put inner;
    struct raft_io_snapshot_put *outer;
    struct guard *guard;
    bool install;
};

/* What a follower was told to be committed. */
struct told {
    raft_id id;
    raft_index commit_index;
};

struct guard {
    struct guard_options options;
    struct raft_io io;
    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    raft_io_close_cb close;
    unsigned writes;       /* appends and installed snapshots in flight */
    struct appends held;   /* stored, and libraft does not know yet */
    struct append *stuck;  /* not stored; libraft hears of their end when it has closed */
    struct unsent *unsent; /* likewise */
    struct membership membership;
    bool failed, closing;

    bool leader;          /* as libraft said last */
    bool barrier_pending; /* its callback is to come */
    bool barrier_done;    /* committed */
    raft_index barrier_index;
    raft_term barrier_term;
    struct raft_barrier barrier;

    /* While libraft handles an append of a leader, or stores its entries: the last index that the leader
     * asked about, and so the last at which the two logs are known to be the same; and its term: about the
     * log of a later leader that says nothing. */
    raft_index asked_index;
    raft_term asked_term;

    struct waiting waiting[GUARD_WAITING_MAX];
    size_t waiting_count;

    struct told told[GUARD_TOLD_MAX]; /* in this term of leading */
    size_t told_count;
};

static struct guard *guard_of(struct raft_io *io)
{
    return io->impl;
}

static struct raft *raft_of(struct guard *g)
{
    return g->io.data;
}

static void errmsg_take(struct guard *g)
{
    memcpy(g->io.errmsg, g->options.inner->errmsg, sizeof g->io.errmsg);
    g->io.errmsg[sizeof g->io.errmsg - 1] = '\0';
}

static void fail(struct guard *g, const char *what, int status)
{
    if (g->failed || g->options.off || g->closing)
        return;
    g->failed = true;
    struct err e;
    err_set(&e, ERR_IO, "raft: %s failed: %s (%.120s)", what, raft_strerror(status), g->io.errmsg);
    g->options.failed(g->options.user, &e);
}

/* --- leadership ------------------------------------------------------------------------------------- */

static void barrier_cb(struct raft_barrier *barrier, int status)
{
    struct guard *g = barrier->data;
    g->barrier_pending = false;
    g->barrier_done = status == 0 && raft_of(g)->current_term == g->barrier_term;
}

static bool barrier_stored(struct guard *g)
{
    return g->barrier_index != 0 && raft_of(g)->last_stored >= g->barrier_index;
}

/* A write that answers at once. */
static int written(struct guard *g, const char *what, int rv)
{
    if (rv != 0) {
        errmsg_take(g);
        fail(g, what, rv);
    }
    return rv;
}

/* The lone voter has made itself leader, of a term in which it may have led before and in which others
 * may hold entries that it has lost. Nothing was appended yet: it leads the next term. */
static bool term_raise(struct guard *g)
{
    struct raft *raft = raft_of(g);
    raft_term term = raft->current_term + 1;
    struct raft_io *inner = g->options.inner;
    if (written(g, "storing the term", inner->set_term(inner, term)) != 0 ||
        written(g, "storing the vote", inner->set_vote(inner, raft->id)) != 0)
        return false;
    raft->current_term = term;
    raft->voted_for = raft->id;
    return true;
}

/* Follows libraft into and out of leadership. */
static void leadership_follow(struct guard *g)
{
    struct raft *raft = raft_of(g);
    bool leader = raft->state == RAFT_LEADER;
    if (leader && g->leader && raft->current_term == g->barrier_term)
        return;
    if (leader && membership_lone_voter(raft) && !term_raise(g))
        return;
    g->leader = leader;
    g->told_count = 0;
    g->barrier_done = false;
    g->barrier_index = 0;
    /* The callback of an older barrier has come: libraft fails all requests with the leadership. */
    if (!leader || g->barrier_pending)
        return;
    g->barrier_term = raft->current_term;
    g->barrier.data = g;
    int rv = raft_barrier(raft, &g->barrier, barrier_cb);
    if (rv != 0) {
        fail(g, "the barrier of a new leader", rv);
        return;
    }
    g->barrier_pending = true;
    g->barrier_index = raft_last_index(raft);
}

/* --- what waits --------------------------------------------------------------------------------------- */

static bool must_wait(struct guard *g, const struct raft_message *m)
{
    unsigned short state = raft_of(g)->state;
    switch (m->type) {
    case RAFT_IO_APPEND_ENTRIES_RESULT:
        /* A rejection counts nothing, and libraft answers it with what the follower lacks. */
        return state == RAFT_LEADER && m->append_entries_result.rejected == 0 && !barrier_stored(g);
    case RAFT_IO_REQUEST_VOTE:
    case RAFT_IO_TIMEOUT_NOW:
        return g->writes > 0 && state != RAFT_LEADER;
    default:
        return false;
    }
}

static void wait_push(struct guard *g, const struct raft_message *m)
{
    if (g->waiting_count == GUARD_WAITING_MAX)
        return;
    struct waiting *w = &g->waiting[g->waiting_count];
    if (!text_copy(w->address, sizeof w->address, m->server_address))
        return;
    w->message = *m;
    g->waiting_count++;
}

static void hand_over(struct guard *g, struct raft_message *m)
{
    bool vote = !g->options.off && m->type == RAFT_IO_REQUEST_VOTE;
    int role = vote ? membership_vote_begin(raft_of(g)) : 0;
    g->recv(&g->io, m);
    if (vote)
        membership_vote_end(raft_of(g), role);
}

static void wait_deliver(struct guard *g)
{
    for (size_t i = 0; i < g->waiting_count && !g->failed;) {
        struct waiting w = g->waiting[i];
        if (must_wait(g, &w.message)) {
            i++;
            continue;
        }
        g->waiting_count--;
        memmove(&g->waiting[i], &g->waiting[i + 1], (g->waiting_count - i) * sizeof g->waiting[0]);
        w.message.server_address = w.address;
        hand_over(g, &w.message);
        leadership_follow(g);
    }
}

static void append_tell(struct append *a, int status)
{
    struct guard *g = a->guard;
    struct raft_io_append *outer = a->outer;
    g->asked_index = a->asked_index;
    g->asked_term = a->asked_term;
    free(a);
    outer->cb(outer, status);
    g->asked_index = NOT_ASKED;
}

/* What stands before the barrier is committed with it. After voters have gone, libraft commits what the others
 * have only with the next that it hears is stored. */
static bool must_hold(struct guard *g, const struct append *a)
{
    const struct raft *raft = raft_of(g);
    return raft->state == RAFT_LEADER && g->barrier_index != 0 && a->before >= g->barrier_index &&
           a->before > raft->commit_index && !membership_quorum_has(raft, a->before);
}

static struct append *held_pop(struct guard *g)
{
    struct append *a = g->held.first;
    if (a != NULL)
        g->held.first = a->next;
    return a;
}

static void held_push(struct guard *g, struct append *a)
{
    a->next = NULL;
    if (g->held.first == NULL)
        g->held.first = a;
    else
        g->held.last->next = a;
    g->held.last = a;
}

static void held_release(struct guard *g)
{
    while (g->held.first != NULL && !must_hold(g, g->held.first)) {
        append_tell(held_pop(g), 0);
        leadership_follow(g);
    }
}

static int membership_end(struct guard *g, int rv)
{
    if (rv != 0)
        fail(g, "to know the members", rv);
    return rv;
}

/* After anything was handed to libraft. */
static void after(struct guard *g)
{
    if (!g->options.off && !g->failed && !g->closing) {
        membership_end(g, membership_follow(&g->membership, raft_of(g)));
        leadership_follow(g);
        wait_deliver(g);
        held_release(g);
        /* What libraft could not handle makes it deaf for good, and it tells nobody. */
        if (raft_of(g)->state == RAFT_UNAVAILABLE)
            fail(g, "libraft's own work", RAFT_SHUTDOWN);
    }
    g->options.after(g->options.user);
}

void guard_started(struct guard *g)
{
    if (!g->options.off)
        membership_started(&g->membership, raft_of(g));
    after(g);
}

bool guard_leads(const struct guard *g)
{
    const struct raft *raft = g->io.data;
    if (g->failed || g->closing || raft->state != RAFT_LEADER)
        return false;
    return g->options.off || (g->barrier_done && raft->current_term == g->barrier_term);
}

bool guard_may_snapshot(const struct guard *g)
{
    const struct raft *raft = g->io.data;
    return g->options.off || raft->configuration_uncommitted_index == 0;
}

bool guard_failed(const struct guard *g)
{
    return g->failed;
}

/* --- what has committed --------------------------------------------------------------------------------- */

/* The place of that server; NULL when there is no more room. */
static struct told *told_of(struct guard *g, raft_id id)
{
    for (size_t i = 0; i < g->told_count; i++)
        if (g->told[i].id == id)
            return &g->told[i];
    if (g->told_count == GUARD_TOLD_MAX)
        return NULL;
    g->told[g->told_count] = (struct told){.id = id};
    return &g->told[g->told_count++];
}

static void told_note(struct guard *g, const struct raft_message *m)
{
    struct told *told = told_of(g, m->server_id);
    if (told != NULL && told->commit_index < m->append_entries.leader_commit)
        told->commit_index = m->append_entries.leader_commit;
}

/* libraft sends a heartbeat to whom it has sent nothing for long enough: so it is made to believe, of those
 * who shall hear it. */
void guard_spread(struct guard *g)
{
    struct raft *raft = raft_of(g);
    if (g->options.off || g->failed || g->closing || raft->state != RAFT_LEADER)
        return;
    bool any = false;
    for (unsigned i = 0; i < raft->configuration.n; i++) {
        const struct raft_server *server = &raft->configuration.servers[i];
        struct raft_progress *progress = &raft->leader_state.progress[i];
        if (server->id == raft->id || server->role == RAFT_SPARE ||
            progress->match_index < raft->commit_index)
            continue;
        const struct told *told = told_of(g, server->id);
        if (told == NULL || told->commit_index >= raft->commit_index)
            continue;
        progress->last_send = 0;
        any = true;
    }
    if (!any)
        return;
    g->tick(&g->io);
    after(g);
}

/* --- from the inner raft_io --------------------------------------------------------------------------- */

static void tick_cb(struct raft_io *inner)
{
    struct guard *g = inner->data;
    if (g->failed || g->closing)
        return;
    if (!g->options.off && g->writes > 0 && raft_of(g)->state == RAFT_FOLLOWER)
        return;
    g->tick(&g->io);
    after(g);
}

static void recv_cb(struct raft_io *inner, struct raft_message *m)
{
    struct guard *g = inner->data;
    if (g->failed || g->closing) {
        entries_drop(m);
        return;
    }
    if (!g->options.off && must_wait(g, m)) {
        wait_push(g, m);
        return;
    }
    if (!g->options.off && m->type == RAFT_IO_APPEND_ENTRIES)
        entries_skip(&raft_of(g)->log, &m->append_entries);
    if (!g->options.off && m->type == RAFT_IO_APPEND_ENTRIES &&
        membership_end(
            g, membership_append_comes(&g->membership, raft_of(g), &m->append_entries)) != 0) {
        entries_drop(m);
        return;
    }
    if (m->type == RAFT_IO_APPEND_ENTRIES) {
        g->asked_index = m->append_entries.prev_log_index + m->append_entries.n_entries;
        g->asked_term = m->append_entries.term;
    }
    hand_over(g, m);
    g->asked_index = NOT_ASKED;
    after(g);
}

static void append_cb(struct raft_io_append *inner, int status)
{
    struct append *a = inner->data;
    struct guard *g = a->guard;
    g->writes--;
    if (status != 0 && !g->closing)
        errmsg_take(g);
    if (status != 0)
        fail(g, "a write to the log", status);
    /* libraft would cut its log at each of them, and for the second reach beyond its end. */
    if (!g->options.off && (g->failed || status != 0)) {
        a->next = g->stuck;
        g->stuck = a;
        return;
    }
    if (!g->options.off && !g->closing && (g->held.first != NULL || must_hold(g, a)))
        held_push(g, a);
    else
        append_tell(a, status);
    if (!g->closing)
        after(g);
}

static void put_cb(struct raft_io_snapshot_put *inner, int status)
{
    struct put *p = inner->data;
    struct guard *g = p->guard;
    struct raft_io_snapshot_put *outer = p->outer;
    if (p->install)
        g->writes--;
    if (status != 0 && !g->closing)
        errmsg_take(g);
    /* libraft has already forgotten the log that an installed snapshot replaces. A snapshot of our
     * own is merely tried again. */
    if (status != 0 && p->install)
        fail(g, "the writing of an installed snapshot", status);
    bool installed = p->install && status == 0 && !g->options.off;
    free(p);
    outer->cb(outer, status);
    if (installed)
        membership_installed(raft_of(g));
    if (!g->closing)
        after(g);
}

static void close_cb(struct raft_io *inner)
{
    struct guard *g = inner->data;
    /* libraft is unavailable by now: told that a write is done it only gives the memory back. Told that it
     * failed, what led once would cut its log from there on, and that may be beyond its end by now. */
    for (struct append *a = held_pop(g); a != NULL; a = held_pop(g))
        append_tell(a, 0);
    while (g->stuck != NULL) {
        struct append *a = g->stuck;
        g->stuck = a->next;
        append_tell(a, 0);
    }
    while (g->unsent != NULL) {
        struct unsent *u = g->unsent;
        g->unsent = u->next;
        if (u->request->cb != NULL)
            u->request->cb(u->request, RAFT_CANCELED);
        free(u);
    }
    g->close(&g->io);
}

/* --- from libraft --------------------------------------------------------------------------------------- */

static int io_init(struct raft_io *io, raft_id id, const char *address)
{
    struct guard *g = guard_of(io);
    g->options.inner->data = g;
    int rv = g->options.inner->init(g->options.inner, id, address);
    if (rv != 0)
        errmsg_take(g);
    return rv;
}

static void io_close(struct raft_io *io, raft_io_close_cb cb)
{
    struct guard *g = guard_of(io);
    g->closing = true;
    g->close = cb;
    g->options.inner->close(g->options.inner, close_cb);
}

static int io_load(struct raft_io *io, raft_term *term, raft_id *voted_for,
                   struct raft_snapshot **snapshot, raft_index *start_index,
                   struct raft_entry *entries[], size_t *n_entries)
{
    struct guard *g = guard_of(io);
    int rv = g->options.inner->load(g->options.inner, term, voted_for, snapshot, start_index,
                                    entries, n_entries);
    if (rv != 0) {
        errmsg_take(g);
        return rv;
    }
    if (!g->options.off && !entries_part(*entries, *n_entries))
        return RAFT_NOMEM;
    return membership_loaded(&g->membership, *snapshot, *start_index, *entries, *n_entries);
}

static int io_start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct guard *g = guard_of(io);
    g->tick = tick;
    g->recv = recv;
    if (g->options.tick_ms != 0)
        msecs = g->options.tick_ms;
    return g->options.inner->start(g->options.inner, msecs, tick_cb, recv_cb);
}

static int io_bootstrap(struct raft_io *io, const struct raft_configuration *conf)
{
    struct guard *g = guard_of(io);
    int rv = g->options.inner->bootstrap(g->options.inner, conf);
    if (rv != 0)
        errmsg_take(g);
    return rv;
}

static int io_recover(struct raft_io *io, const struct raft_configuration *conf)
{
    struct guard *g = guard_of(io);
    return g->options.inner->recover(g->options.inner, conf);
}

/* What libraft is told of a term or a vote. It cannot bear a failure there: asked by a leader to campaign,
 * it takes a flag of the candidate for the address of a leader, and frees it. So it is told that all went
 * well; nothing that it does from then on reaches anybody. */
static int told(const struct guard *g, int rv)
{
    return g->failed ? 0 : rv;
}

static int io_set_term(struct raft_io *io, raft_term term)
{
    struct guard *g = guard_of(io);
    if (g->failed)
        return 0;
    return told(g,
                written(g, "storing the term", g->options.inner->set_term(g->options.inner, term)));
}

static int io_set_vote(struct raft_io *io, raft_id server_id)
{
    struct guard *g = guard_of(io);
    if (g->failed)
        return 0;
    return told(
        g, written(g, "storing the vote", g->options.inner->set_vote(g->options.inner, server_id)));
}

/* 0 tells a leader nothing. */
static raft_index index_to_answer(struct guard *g, raft_index last)
{
    if (g->asked_term != raft_of(g)->current_term)
        return 0;
    return last < g->asked_index ? last : g->asked_index;
}

/* libraft says no to a pre-vote of an older term with the term that it was asked with. */
static void term_tell(struct guard *g, struct raft_request_vote_result *result)
{
    raft_term term = raft_of(g)->current_term;
    if (!result->vote_granted && result->term < term)
        result->term = term;
}

/* Up to the first change of members that is not stored here. libraft sends the rest again. */
static unsigned entries_to_send(struct guard *g, const struct raft_append_entries *a)
{
    for (unsigned i = 0; i < a->n_entries; i++)
        if (a->entries[i].type == RAFT_CHANGE &&
            a->prev_log_index + 1 + i > raft_of(g)->last_stored)
            return i;
    return a->n_entries;
}

/* libraft frees the entries of an append twice when its answer is refused. */
static int send_nowhere(struct guard *g, struct raft_io_send *req, raft_io_send_cb cb)
{
    struct unsent *u = malloc(sizeof *u);
    if (u == NULL)
        return RAFT_NOMEM;
    req->cb = cb;
    *u = (struct unsent){.request = req, .next = g->unsent};
    g->unsent = u;
    return 0;
}

static int io_send(struct raft_io *io, struct raft_io_send *req, const struct raft_message *message,
                   raft_io_send_cb cb)
{
    struct guard *g = guard_of(io);
    if (g->failed)
        return send_nowhere(g, req, cb);
    struct raft_message m = *message;
    if (!g->options.off && m.type == RAFT_IO_APPEND_ENTRIES_RESULT &&
        m.append_entries_result.rejected == 0 && g->asked_index != NOT_ASKED)
        m.append_entries_result.last_log_index =
            index_to_answer(g, m.append_entries_result.last_log_index);
    if (!g->options.off && m.type == RAFT_IO_REQUEST_VOTE_RESULT)
        term_tell(g, &m.request_vote_result);
    if (!g->options.off && m.type == RAFT_IO_APPEND_ENTRIES)
        m.append_entries.n_entries = entries_to_send(g, &m.append_entries);
    if (m.type == RAFT_IO_APPEND_ENTRIES)
        told_note(g, &m);
    return g->options.inner->send(g->options.inner, req, &m, cb);
}

static int io_append(struct raft_io *io, struct raft_io_append *req,
                     const struct raft_entry entries[], unsigned n, raft_io_append_cb cb)
{
    struct guard *g = guard_of(io);
    if (g->failed)
        return RAFT_IOERR;
    struct append *a = calloc(1, sizeof *a);
    if (a == NULL)
        return RAFT_NOMEM;
    a->guard = g;
    a->asked_index = g->asked_index;
    a->asked_term = g->asked_term;
    if (raft_of(g)->state == RAFT_LEADER)
        a->before = raft_last_index(raft_of(g)) - n;
    a->outer = req;
    a->inner.data = a;
    req->cb = cb;
    int rv = g->options.inner->append(g->options.inner, &a->inner, entries, n, append_cb);
    if (rv != 0) {
        free(a);
        return written(g, "a write to the log", rv);
    }
    g->writes++;
    return 0;
}

static int io_truncate(struct raft_io *io, raft_index index)
{
    struct guard *g = guard_of(io);
    if (g->failed)
        return RAFT_IOERR;
    return written(g, "truncating the log", g->options.inner->truncate(g->options.inner, index));
}

static int io_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req,
                           const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    struct guard *g = guard_of(io);
    if (g->failed)
        return RAFT_IOERR;
    struct put *p = calloc(1, sizeof *p);
    if (p == NULL)
        return RAFT_NOMEM;
    p->guard = g;
    p->outer = req;
    p->install = trailing == 0;
    p->inner.data = p;
    req->cb = cb;
    int rv =
        g->options.inner->snapshot_put(g->options.inner, trailing, &p->inner, snapshot, put_cb);
    if (rv != 0) {
        free(p);
        errmsg_take(g);
        return rv;
    }
    if (p->install)
        g->writes++;
    return 0;
}

static int io_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req,
                           raft_io_snapshot_get_cb cb)
{
    struct guard *g = guard_of(io);
    return g->options.inner->snapshot_get(g->options.inner, req, cb);
}

static raft_time io_time(struct raft_io *io)
{
    struct guard *g = guard_of(io);
    return g->options.inner->time(g->options.inner);
}

static int io_random(struct raft_io *io, int min, int max)
{
    struct guard *g = guard_of(io);
    return g->options.inner->random(g->options.inner, min, max);
}

static int io_async_work(struct raft_io *io, struct raft_io_async_work *work,
                         raft_io_async_work_cb cb)
{
    struct guard *g = guard_of(io);
    if (g->options.async_work == NULL)
        return g->options.inner->async_work(g->options.inner, work, cb);
    work->cb = cb;
    return g->options.async_work(g->options.user, work);
}

void guard_async_work_done(struct guard *g, struct raft_io_async_work *work, int status)
{
    work->cb(work, status);
    if (!g->closing)
        after(g);
}

/* --- life ----------------------------------------------------------------------------------------------- */

int guard_new(struct guard **out, const struct guard_options *options, struct err *e)
{
    struct guard *g = calloc(1, sizeof *g);
    if (g == NULL)
        return err_set(e, ERR_NO_MEMORY, "the guard: no memory");
    g->options = *options;
    g->asked_index = NOT_ASKED;
    membership_init(&g->membership);
    g->io = (struct raft_io){
        .version = 2,
        .impl = g,
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
        .random = io_random,
        .async_work = io_async_work,
    };
    *out = g;
    return 0;
}

void guard_free(struct guard *g)
{
    if (g == NULL)
        return;
    membership_close(&g->membership);
    free(g);
}

struct raft_io *guard_io(struct guard *g)
{
    return &g->io;
}
