/* The asking half. */
#include "raft/remote.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "raft/remote_internal.h"

static void reads_push(struct remote_reads *q, struct remote_read_one *one)
{
    one->next = NULL;
    if (q->first == NULL)
        q->first = one;
    else
        q->last->next = one;
    q->last = one;
    q->count++;
}

static struct remote_read_one *reads_pop(struct remote_reads *q)
{
    struct remote_read_one *one = q->first;
    if (one == NULL)
        return NULL;
    q->first = one->next;
    q->count--;
    return one;
}

static void reads_move(struct remote_reads *to, struct remote_reads *from)
{
    for (struct remote_read_one *one = reads_pop(from); one != NULL; one = reads_pop(from))
        reads_push(to, one);
}

static void read_end(struct remote_read_one *one, const struct err *error)
{
    one->cb(one->user, error);
    free(one);
}

static void wake(struct remote *r)
{
    if (!r->closed)
        r->options.wake(r->options.user);
}

bool remote_elected(const struct remote *r)
{
    return r->options.raft->state == RAFT_LEADER;
}

/* --- whom to ask -------------------------------------------------------------------------------------- */

static node_id candidate(struct remote *r)
{
    const struct raft_configuration *c = &r->options.raft->configuration;
    size_t count = c->n + r->candidate_count;
    for (size_t tried = 0; tried < count; tried++) {
        size_t i = r->candidate_next++ % count;
        node_id id = i < c->n ? c->servers[i].id : r->candidates[i - c->n];
        if (id != r->options.id)
            return id;
    }
    return 0;
}

/* 0: nobody now. */
static node_id target(struct remote *r)
{
    node_id leader = r->options.leader(r->options.user);
    if (leader != 0) {
        r->leader_seen_ms = r->now_ms;
        if (leader != r->denied)
            return leader;
    }
    if (r->hint != 0)
        return r->hint;
    if (leader != 0 || r->now_ms - r->leader_seen_ms < REMOTE_LEADERLESS_MS)
        return 0;
    return candidate(r);
}

static void hint_take(struct remote *r, node_id denied, node_id leader)
{
    /* Without a better word, not at once again. */
    if (leader == 0 || leader == denied || leader == r->options.id) {
        r->denied = r->hint = 0;
        r->pause_until_ms = r->now_ms + REMOTE_PAUSE_MS;
        return;
    }
    r->denied = denied;
    r->hint = leader;
    r->hint_until_ms = r->now_ms + REMOTE_HINT_MS;
}

/* --- answers ------------------------------------------------------------------------------------------ */

static void call_forget(struct remote_call *call)
{
    struct remote *r = call->remote;
    for (size_t i = 0; i < REMOTE_CALLS_MAX; i++)
        if (r->calls[i] == call)
            r->calls[i] = NULL;
    if (r->read_call == call)
        r->read_call = NULL;
    call->remote = NULL;
}

/* All of it waits again. */
static void call_undo(struct remote_call *call, bool maybe_heard)
{
    struct remote *r = call->remote;
    if (call->number != 0)
        proposer_away_all_back(r->options.proposer, call->number, maybe_heard);
    reads_move(&r->reads_waiting, &call->reads);
    wake(r);
}

static void fail(struct remote_call *call, bool maybe_heard, const char *why)
{
    struct remote *r = call->remote;
    log_debug("registry", "node %llu, asked as the leader: %s", (unsigned long long)call->to, why);
    r->denied = r->hint = 0;
    r->pause_until_ms = r->now_ms + REMOTE_PAUSE_MS;
    call_undo(call, maybe_heard);
}

static void refused(struct remote_call *call, const char *text)
{
    struct remote *r = call->remote;
    struct err e;
    err_set(&e, ERR_DENIED, "node %llu, which leads: %s", (unsigned long long)call->to, text);
    for (size_t i = 0; i < call->count; i++)
        proposer_away_refuse(r->options.proposer, call->number, call->sequences[i], &e);
    for (struct remote_read_one *one = reads_pop(&call->reads); one != NULL;
         one = reads_pop(&call->reads))
        read_end(one, &e);
}

static void proposed(struct remote_call *call, const struct remote_answer *a)
{
    struct remote *r = call->remote;
    struct proposer *p = r->options.proposer;
    if (a->count != call->count) {
        fail(call, true, "it answered another number of commands");
        return;
    }
    bool again = false;
    for (size_t i = 0; i < call->count; i++) {
        const struct remote_outcome *o = &a->outcomes[i];
        struct err e;
        switch (o->fate) {
        case REMOTE_RESULT:
            proposer_away_answer(p, call->number, call->sequences[i], &o->result, r->now_ms);
            break;
        case REMOTE_NOT_PROPOSED:
        case REMOTE_UNKNOWN:
            again = true;
            proposer_away_back(p, call->number, call->sequences[i], o->fate == REMOTE_UNKNOWN);
            break;
        case REMOTE_DENIED:
            err_set(&e, ERR_DENIED, "node %llu, which leads: %s", (unsigned long long)call->to,
                    o->text);
            proposer_away_refuse(p, call->number, call->sequences[i], &e);
            break;
        }
    }
    if (again)
        r->pause_until_ms = r->now_ms + REMOTE_PAUSE_MS;
}

static void index_told(struct remote_call *call, uint64_t index)
{
    struct remote *r = call->remote;
    for (struct remote_read_one *one = call->reads.first; one != NULL; one = one->next)
        one->index = index;
    reads_move(&r->reads_applying, &call->reads);
}

static void answer_take(struct remote_call *call, const struct remote_answer *a)
{
    struct remote *r = call->remote;
    bool reads = call->number == 0;
    if (a->says == REMOTE_NOT_LEADER) {
        hint_take(r, call->to, a->leader);
        call_undo(call, false);
    } else if (a->says == REMOTE_REFUSED) {
        refused(call, a->text);
    } else if (a->says == REMOTE_PROPOSED && !reads) {
        proposed(call, a);
    } else if (a->says == REMOTE_INDEX && reads) {
        index_told(call, a->index);
    } else {
        fail(call, true, "it answered something else");
    }
}

static void answered_cb(void *user, const struct registry_peer_answer *answer)
{
    struct remote_call *call = user;
    struct remote *r = call->remote;
    if (r != NULL) {
        struct remote_answer a;
        struct err e;
        if (answer->error != NULL) {
            fail(call, answer->maybe_heard, answer->error->msg);
        } else if (remote_answer_decode(&a, answer->payload, answer->size, &e) < 0) {
            fail(call, true, e.msg);
        } else {
            answer_take(call, &a);
            remote_answer_free(&a);
        }
        call_forget(call);
        wake(r);
    }
    free(call);
}

/* --- questions ---------------------------------------------------------------------------------------- */

/* False: it was not asked, and nobody has heard of it. */
static bool ask(struct remote_call *call, const struct remote_question *q, struct err *e)
{
    struct remote *r = call->remote;
    const struct registry_peers *peers = r->options.peers;
    uint8_t *bytes = NULL;
    size_t size = 0;
    int rc = remote_question_encode(&bytes, &size, q, e);
    if (rc == 0)
        rc = peers->ask(peers->user, call->to, bytes, size, REMOTE_ASK_TIMEOUT_MS, answered_cb,
                        call, e);
    free(bytes);
    r->counts.calls++;
    return rc == 0;
}

static void call_send(struct remote_call *call, struct remote_question *q)
{
    struct remote *r = call->remote;
    struct err e;
    q->generation = r->options.generation(r->options.user);
    q->timeout_ms = REMOTE_ASK_TIMEOUT_MS;
    if (ask(call, q, &e))
        return;
    fail(call, false, e.msg);
    call_forget(call);
    free(call);
}

static struct remote_call *call_new(struct remote *r, node_id to)
{
    struct remote_call *call = calloc(1, sizeof *call);
    if (call == NULL)
        return NULL;
    call->remote = r;
    call->to = to;
    return call;
}

static void proposals_send(struct remote *r, node_id to, struct remote_call **place)
{
    struct proposer_item items[REMOTE_COMMANDS_MAX];
    struct remote_question q = {.asks = REMOTE_PROPOSE};
    struct remote_call *call = call_new(r, to);
    if (call == NULL)
        return;
    if (++r->number_last == 0)
        r->number_last = 1;
    call->number = r->number_last;
    call->count = proposer_away_take(r->options.proposer, call->number, items, REMOTE_COMMANDS_MAX,
                                     REMOTE_COMMANDS_BYTES_MAX);
    q.count = call->count;
    for (size_t i = 0; i < call->count; i++) {
        call->sequences[i] = items[i].sequence;
        q.commands[i] = (struct remote_bytes){.bytes = items[i].bytes, .length = items[i].length};
    }
    *place = call;
    call_send(call, &q);
}

static void reads_send(struct remote *r, node_id to)
{
    struct remote_question q = {.asks = REMOTE_READ};
    struct remote_call *call = call_new(r, to);
    if (call == NULL)
        return;
    reads_move(&call->reads, &r->reads_waiting);
    r->read_call = call;
    call_send(call, &q);
}

/* Raft knows a new leader, or this node became it: nobody waits for the old one. */
static void abandon(struct remote *r, struct remote_call *call, node_id leader)
{
    if (call == NULL || leader == 0 || leader == call->to || leader == r->denied)
        return;
    call_undo(call, true);
    call_forget(call);
}

static bool wanting(const struct remote *r)
{
    return proposer_wanting(r->options.proposer) || r->reads_waiting.first != NULL;
}

static struct remote_call **free_place(struct remote *r)
{
    for (size_t i = 0; i < REMOTE_CALLS_MAX; i++)
        if (r->calls[i] == NULL)
            return &r->calls[i];
    return NULL;
}

static void send_what_waits(struct remote *r)
{
    while (r->now_ms >= r->pause_until_ms && wanting(r)) {
        struct remote_call **place = proposer_wanting(r->options.proposer) ? free_place(r) : NULL;
        bool reads = r->reads_waiting.first != NULL && r->read_call == NULL;
        if (place == NULL && !reads)
            return;
        node_id to = target(r);
        if (to == 0)
            return;
        if (reads)
            reads_send(r, to);
        else
            proposals_send(r, to, place);
    }
}

/* --- strong reads ------------------------------------------------------------------------------------- */

static void barred_cb(void *user, const struct err *error)
{
    struct remote_read_one *one = user;
    struct remote *r = one->remote;
    r->reads_barred--;
    /* Another node leads by now. */
    if (error != NULL && error->code == ERR_CONFLICT)
        reads_push(&r->reads_waiting, one);
    else
        read_end(one, error);
}

/* This node leads: its own barrier tells. */
static void reads_bar(struct remote *r)
{
    struct remote_reads reads = r->reads_waiting;
    r->reads_waiting = (struct remote_reads){0};
    for (struct remote_read_one *one = reads_pop(&reads); one != NULL; one = reads_pop(&reads)) {
        struct err e;
        r->reads_barred++;
        if (proposer_barrier(r->options.proposer, r->now_ms, barred_cb, one, &e) < 0)
            barred_cb(one, &e);
    }
}

static void reads_tell(struct remote *r)
{
    struct remote_reads reads = r->reads_applying;
    r->reads_applying = (struct remote_reads){0};
    for (struct remote_read_one *one = reads_pop(&reads); one != NULL; one = reads_pop(&reads)) {
        if (one->index <= r->options.applied(r->options.user))
            read_end(one, NULL);
        else
            reads_push(&r->reads_applying, one);
    }
}

int remote_read(struct remote *r, uint64_t now_ms, registry_read_cb cb, void *user, struct err *e)
{
    if (r->closed)
        return err_set(e, ERR_CANCELED, "the registry is closing");
    size_t waiting = r->reads_waiting.count + r->reads_applying.count + r->reads_barred;
    if (waiting >= r->options.waiting_max)
        return err_set(e, ERR_LIMIT, "%zu strong reads wait, as many as may", waiting);
    struct remote_read_one *one = calloc(1, sizeof *one);
    if (one == NULL)
        return err_set(e, ERR_NO_MEMORY, "a strong read: no memory");
    *one = (struct remote_read_one){
        .remote = r, .deadline_ms = now_ms + r->options.timeout_ms, .cb = cb, .user = user};
    reads_push(&r->reads_waiting, one);
    wake(r);
    return 0;
}

bool remote_idle(const struct remote *r)
{
    return r->reads_waiting.first == NULL && r->reads_applying.first == NULL &&
           r->read_call == NULL;
}

/* --- turns -------------------------------------------------------------------------------------------- */

void remote_turn(struct remote *r, uint64_t now_ms)
{
    r->now_ms = now_ms;
    if (now_ms >= r->hint_until_ms)
        r->denied = r->hint = 0;
    reads_tell(r);
    node_id leader = r->options.leader(r->options.user);
    if (remote_elected(r))
        leader = r->options.id;
    for (size_t i = 0; i < REMOTE_CALLS_MAX; i++)
        abandon(r, r->calls[i], leader);
    abandon(r, r->read_call, leader);
    if (remote_elected(r))
        reads_bar(r);
    else if (r->options.peers->ask != NULL)
        send_what_waits(r);
}

static void reads_expire(struct remote_reads *q, uint64_t now_ms, struct remote_reads *late)
{
    struct remote_reads all = *q;
    *q = (struct remote_reads){0};
    for (struct remote_read_one *one = reads_pop(&all); one != NULL; one = reads_pop(&all))
        reads_push(one->deadline_ms <= now_ms ? late : q, one);
}

static void reads_end(struct remote_reads *q, enum err_code code, const char *text)
{
    struct err e;
    err_set(&e, code, "%s", text);
    for (struct remote_read_one *one = reads_pop(q); one != NULL; one = reads_pop(q))
        read_end(one, &e);
}

void remote_expire(struct remote *r, uint64_t now_ms)
{
    struct remote_reads late = {0};
    reads_expire(&r->reads_waiting, now_ms, &late);
    reads_expire(&r->reads_applying, now_ms, &late);
    if (r->read_call != NULL)
        reads_expire(&r->read_call->reads, now_ms, &late);
    reads_end(&late, ERR_UNAVAILABLE, "no leader in time");
}

void remote_candidates(struct remote *r, const struct registry_peer *peers, size_t count)
{
    if (count > REMOTE_CANDIDATES_MAX)
        count = REMOTE_CANDIDATES_MAX;
    node_id *ids = calloc(count + 1, sizeof *ids);
    if (ids == NULL)
        return; /* those from before serve */
    free(r->candidates);
    r->candidates = ids;
    r->candidate_count = 0;
    for (size_t i = 0; i < count; i++)
        if (peers[i].alive)
            ids[r->candidate_count++] = peers[i].id;
}

/* --- life --------------------------------------------------------------------------------------------- */

int remote_new(struct remote **out, const struct remote_options *options, struct err *e)
{
    struct remote *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(e, ERR_NO_MEMORY, "the way to the leader: no memory");
    r->options = *options;
    *out = r;
    return 0;
}

void remote_close(struct remote *r)
{
    struct remote_reads all = {0};
    r->closed = true;
    for (size_t i = 0; i < REMOTE_CALLS_MAX; i++)
        if (r->calls[i] != NULL)
            call_forget(r->calls[i]);
    if (r->read_call != NULL) {
        reads_move(&all, &r->read_call->reads);
        call_forget(r->read_call);
    }
    reads_move(&all, &r->reads_waiting);
    reads_move(&all, &r->reads_applying);
    reads_end(&all, ERR_CANCELED, "the registry is closing");
}

void remote_free(struct remote *r)
{
    if (r == NULL)
        return;
    free(r->candidates);
    free(r);
}

struct remote_counts remote_counts(const struct remote *r)
{
    return r->counts;
}
