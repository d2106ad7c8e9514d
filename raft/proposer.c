#include "raft/proposer.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

struct proposal {
    struct proposal *next;
    uint64_t sequence;
    uint64_t deadline_ms;
    registry_result_cb cb; /* NULL: given up */
    void *user;
    unsigned asked; /* times */
    bool answered;
    struct registry_result result;
    uint8_t *bytes;
    size_t length;
};

struct barrier {
    struct barrier *next;
    uint64_t deadline_ms;
    proposer_barrier_cb cb;
    void *user;
};

/* First in, first out. */
struct proposals {
    struct proposal *first, *last;
    size_t count;
};

struct barriers {
    struct barrier *first, *last;
    size_t count;
};

enum under_way { NOTHING, BATCH, BARRIER };

struct proposer {
    struct proposer_options options;
    uint64_t sequence_last;
    struct proposals waiting, done;
    struct barriers barriers_waiting, barriers_asked, barriers_done;
    bool closed;

    /* What libraft has. Its requests are ours again when it has called back, which for a batch is when
     * the first entry was applied. */
    enum under_way under_way;
    raft_term term; /* in which it was asked */
    bool called_back;
    bool lost;
    struct raft_apply apply;
    struct raft_barrier barrier;
    struct proposals batch;
    struct proposal
        *expected;     /* of the batch: the first that is not answered; they come in order */
    size_t unanswered; /* of the batch */

    struct proposer_counts counts;
};

/* --- queues ------------------------------------------------------------------------------------------- */

static void push(struct proposals *q, struct proposal *p)
{
    p->next = NULL;
    if (q->first == NULL)
        q->first = p;
    else
        q->last->next = p;
    q->last = p;
    q->count++;
}

static struct proposal *pop(struct proposals *q)
{
    struct proposal *p = q->first;
    if (p == NULL)
        return NULL;
    q->first = p->next;
    q->count--;
    return p;
}

/* `front` before what is in `q`; empties `front`. */
static void push_front(struct proposals *q, struct proposals *front)
{
    if (front->first == NULL)
        return;
    front->last->next = q->first;
    if (q->first == NULL)
        q->last = front->last;
    q->first = front->first;
    q->count += front->count;
    *front = (struct proposals){0};
}

static void barriers_push(struct barriers *q, struct barrier *b)
{
    b->next = NULL;
    if (q->first == NULL)
        q->first = b;
    else
        q->last->next = b;
    q->last = b;
    q->count++;
}

static void barriers_move(struct barriers *to, struct barriers *from)
{
    if (from->first == NULL)
        return;
    if (to->first == NULL)
        to->first = from->first;
    else
        to->last->next = from->first;
    to->last = from->last;
    to->count += from->count;
    *from = (struct barriers){0};
}

static void proposal_free(struct proposal *p)
{
    free(p->bytes);
    free(p);
}

/* --- asking ------------------------------------------------------------------------------------------- */

static void wake(struct proposer *p)
{
    if (!p->closed)
        p->options.wake(p->options.user);
}

/* All of what was under way is known: the next may go. */
static void finish(struct proposer *p)
{
    if (p->under_way == NOTHING || !p->called_back)
        return;
    if (p->under_way == BATCH && p->unanswered > 0 && !p->lost)
        return;
    struct proposals again = {0};
    for (struct proposal *i = pop(&p->batch); i != NULL; i = pop(&p->batch)) {
        if (i->answered)
            push(&p->done, i);
        else if (i->cb == NULL)
            proposal_free(i);
        else
            push(&again, i);
    }
    p->counts.asked_again += again.count;
    push_front(&p->waiting, &again);
    /* A lost barrier says nothing: whoever waits for it waits for the next. */
    if (p->lost) {
        barriers_move(&p->barriers_asked, &p->barriers_waiting);
        p->barriers_waiting = p->barriers_asked;
        p->barriers_asked = (struct barriers){0};
    } else {
        barriers_move(&p->barriers_done, &p->barriers_asked);
    }
    p->under_way = NOTHING;
    p->lost = false;
    wake(p);
}

static void apply_cb(struct raft_apply *request, int status, void *result)
{
    struct proposer *p = request->data;
    (void)result;
    p->called_back = true;
    if (status != 0)
        p->lost = true;
    finish(p);
}

static void barrier_cb(struct raft_barrier *request, int status)
{
    struct proposer *p = request->data;
    p->called_back = true;
    if (status != 0)
        p->lost = true;
    finish(p);
}

/* Copies for libraft, which takes them over. False without memory. */
static bool buffers_fill(struct raft_buffer *buffers, const struct proposals *batch)
{
    size_t n = 0;
    for (const struct proposal *i = batch->first; i != NULL; i = i->next, n++) {
        buffers[n].len = i->length;
        buffers[n].base = raft_malloc(i->length);
        if (buffers[n].base == NULL) {
            while (n-- > 0)
                raft_free(buffers[n].base);
            return false;
        }
        memcpy(buffers[n].base, i->bytes, i->length);
    }
    return true;
}

static void batch_take(struct proposer *p)
{
    size_t bytes = 0;
    while (p->waiting.first != NULL && p->batch.count < PROPOSER_BATCH_MAX) {
        bytes += p->waiting.first->length;
        if (p->batch.count > 0 && bytes > PROPOSER_BATCH_BYTES_MAX)
            break;
        push(&p->batch, pop(&p->waiting));
    }
}

/* False: libraft did not take it, and nothing of it is in the log. */
static bool batch_ask(struct proposer *p)
{
    struct raft_buffer buffers[PROPOSER_BATCH_MAX];
    batch_take(p);
    bool filled = buffers_fill(buffers, &p->batch);
    if (filled) {
        p->under_way = BATCH;
        p->called_back = false;
        p->unanswered = p->batch.count;
        p->expected = p->batch.first;
        p->term = p->options.raft->current_term;
        p->apply.data = p;
        int rv =
            raft_apply(p->options.raft, &p->apply, buffers, (unsigned)p->batch.count, apply_cb);
        if (rv == 0) {
            for (struct proposal *i = p->batch.first; i != NULL; i = i->next)
                i->asked++;
            p->counts.batches++;
            return true;
        }
        for (size_t i = 0; i < p->batch.count; i++)
            raft_free(buffers[i].base);
        p->under_way = NOTHING;
    }
    push_front(&p->waiting, &p->batch);
    return false;
}

static bool barrier_ask(struct proposer *p)
{
    p->under_way = BARRIER;
    p->called_back = false;
    p->barrier.data = p;
    if (raft_barrier(p->options.raft, &p->barrier, barrier_cb) == 0) {
        p->counts.barriers++;
        return true;
    }
    p->under_way = NOTHING;
    return false;
}

/* libraft tells of a lost leadership through its callback, which for a batch may have come before. */
static void loss_notice(struct proposer *p)
{
    const struct raft *raft = p->options.raft;
    if (p->under_way != BATCH || !p->called_back)
        return;
    if (raft->state == RAFT_LEADER && raft->current_term == p->term)
        return;
    p->lost = true;
    finish(p);
}

void proposer_ask(struct proposer *p, bool leads)
{
    loss_notice(p);
    if (p->closed || !leads || p->under_way != NOTHING)
        return;
    /* A batch that commits proves as much as a barrier. */
    bool asked = false;
    if (p->waiting.first != NULL)
        asked = batch_ask(p);
    else if (p->barriers_waiting.first != NULL)
        asked = barrier_ask(p);
    if (asked)
        barriers_move(&p->barriers_asked, &p->barriers_waiting);
}

/* --- answers ------------------------------------------------------------------------------------------ */

void proposer_applied(struct proposer *p, const struct command_session *asked,
                      const struct registry_result *result)
{
    if (asked->node != p->options.node || asked->boot != p->options.boot)
        return;
    struct proposal *i = p->under_way == BATCH ? p->expected : NULL;
    if (i != NULL && i->sequence == asked->sequence) {
        i->answered = true;
        i->result = *result;
        p->expected = i->next;
        p->unanswered--;
        finish(p);
        return;
    }
    /* One of an earlier batch, whose leadership was lost and whose entries were committed all the same:
     * by now it waits to be asked again. */
    for (i = p->waiting.first; i != NULL && i->asked > 0; i = i->next) {
        if (i->sequence == asked->sequence) {
            i->answered = true;
            i->result = *result;
            wake(p);
            return;
        }
    }
}

static void answer(struct proposal *i, const struct err *error)
{
    if (i->cb != NULL)
        i->cb(i->user, error, error == NULL ? &i->result : NULL);
    proposal_free(i);
}

void proposer_deliver(struct proposer *p)
{
    /* Whoever was answered while waiting to be asked again stands at the front. */
    struct proposals rest = {0};
    while (p->waiting.first != NULL && p->waiting.first->asked > 0) {
        struct proposal *i = pop(&p->waiting);
        push(i->answered ? &p->done : &rest, i);
    }
    push_front(&p->waiting, &rest);

    struct proposals done = p->done;
    p->done = (struct proposals){0};
    for (struct proposal *i = pop(&done); i != NULL; i = pop(&done))
        answer(i, NULL);
    struct barriers barriers = p->barriers_done;
    p->barriers_done = (struct barriers){0};
    while (barriers.first != NULL) {
        struct barrier *b = barriers.first;
        barriers.first = b->next;
        b->cb(b->user, NULL);
        free(b);
    }
}

/* --- deadlines ---------------------------------------------------------------------------------------- */

static void give_up(struct proposal *i)
{
    struct err e;
    if (i->asked > 0)
        err_set(&e, ERR_TIMEOUT, "no answer in time: it is not known whether the change was made");
    else
        err_set(&e, ERR_UNAVAILABLE, "no leader in time: the change was not made");
    registry_result_cb cb = i->cb;
    i->cb = NULL;
    cb(i->user, &e, NULL);
}

static void barriers_expire(struct barriers *q, uint64_t now_ms, struct barriers *expired)
{
    struct barriers all = *q;
    *q = (struct barriers){0};
    while (all.first != NULL) {
        struct barrier *b = all.first;
        all.first = b->next;
        barriers_push(b->deadline_ms <= now_ms ? expired : q, b);
    }
}

void proposer_expire(struct proposer *p, uint64_t now_ms)
{
    struct proposals expired = {0}, rest = {0};
    for (struct proposal *i = pop(&p->waiting); i != NULL; i = pop(&p->waiting))
        push(!i->answered && i->deadline_ms <= now_ms ? &expired : &rest, i);
    p->waiting = rest;
    struct barriers barriers = {0};
    barriers_expire(&p->barriers_waiting, now_ms, &barriers);
    barriers_expire(&p->barriers_asked, now_ms, &barriers);

    /* What is under way stays in the batch, without anybody who waits for it. */
    for (struct proposal *i = p->batch.first; i != NULL; i = i->next)
        if (i->cb != NULL && !i->answered && i->deadline_ms <= now_ms)
            give_up(i);
    for (struct proposal *i = pop(&expired); i != NULL; i = pop(&expired)) {
        give_up(i);
        proposal_free(i);
    }
    while (barriers.first != NULL) {
        struct barrier *b = barriers.first;
        barriers.first = b->next;
        struct err e;
        err_set(&e, ERR_UNAVAILABLE, "no leader in time");
        b->cb(b->user, &e);
        free(b);
    }
}

/* --- life --------------------------------------------------------------------------------------------- */

int proposer_new(struct proposer **out, const struct proposer_options *options, struct err *e)
{
    struct proposer *p = calloc(1, sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_NO_MEMORY, "the proposer: no memory");
    p->options = *options;
    *out = p;
    return 0;
}

int proposer_propose(struct proposer *p, const struct registry_command *command, uint64_t now_ms,
                     registry_result_cb cb, void *user, struct err *e)
{
    assert_always(cb != NULL);
    if (p->closed)
        return err_set(e, ERR_CANCELED, "the registry is closing");
    if (proposer_waiting(p) >= p->options.waiting_max)
        return err_set(e, ERR_LIMIT, "%zu changes wait to be committed, as many as may",
                       proposer_waiting(p));
    struct proposal *i = calloc(1, sizeof *i);
    if (i == NULL)
        return err_set(e, ERR_NO_MEMORY, "a proposal: no memory");
    struct command_session session = {
        .node = p->options.node, .boot = p->options.boot, .sequence = p->sequence_last + 1};
    int rc = command_encode(&i->bytes, &i->length, &session, command, e);
    if (rc < 0) {
        free(i);
        return rc;
    }
    i->sequence = ++p->sequence_last;
    i->deadline_ms = now_ms + p->options.timeout_ms;
    i->cb = cb;
    i->user = user;
    push(&p->waiting, i);
    p->counts.proposals++;
    wake(p);
    return 0;
}

int proposer_barrier(struct proposer *p, uint64_t now_ms, proposer_barrier_cb cb, void *user,
                     struct err *e)
{
    if (p->closed)
        return err_set(e, ERR_CANCELED, "the registry is closing");
    size_t waiting = p->barriers_waiting.count + p->barriers_asked.count;
    if (waiting >= p->options.waiting_max)
        return err_set(e, ERR_LIMIT, "%zu barriers wait, as many as may", waiting);
    struct barrier *b = calloc(1, sizeof *b);
    if (b == NULL)
        return err_set(e, ERR_NO_MEMORY, "a barrier: no memory");
    b->deadline_ms = now_ms + p->options.timeout_ms;
    b->cb = cb;
    b->user = user;
    barriers_push(&p->barriers_waiting, b);
    wake(p);
    return 0;
}

void proposer_close(struct proposer *p)
{
    p->closed = true;
    struct err e;
    err_set(&e, ERR_CANCELED, "the registry is closing");
    proposer_deliver(p);
    for (struct proposal *i = pop(&p->waiting); i != NULL; i = pop(&p->waiting))
        answer(i, &e);
    for (struct proposal *i = p->batch.first; i != NULL; i = i->next) {
        registry_result_cb cb = i->cb;
        i->cb = NULL;
        if (cb != NULL)
            cb(i->user, i->answered ? NULL : &e, i->answered ? &i->result : NULL);
    }
    barriers_move(&p->barriers_asked, &p->barriers_waiting);
    while (p->barriers_asked.first != NULL) {
        struct barrier *b = p->barriers_asked.first;
        p->barriers_asked.first = b->next;
        b->cb(b->user, &e);
        free(b);
    }
}

void proposer_free(struct proposer *p)
{
    if (p == NULL)
        return;
    for (struct proposal *i = pop(&p->batch); i != NULL; i = pop(&p->batch))
        proposal_free(i);
    for (struct proposal *i = pop(&p->waiting); i != NULL; i = pop(&p->waiting))
        proposal_free(i);
    for (struct proposal *i = pop(&p->done); i != NULL; i = pop(&p->done))
        proposal_free(i);
    free(p);
}

size_t proposer_waiting(const struct proposer *p)
{
    return p->waiting.count + p->batch.count;
}

bool proposer_idle(const struct proposer *p)
{
    return proposer_waiting(p) == 0 && p->done.first == NULL && p->barriers_waiting.first == NULL &&
           p->barriers_asked.first == NULL && p->barriers_done.first == NULL;
}

struct proposer_counts proposer_counts(const struct proposer *p)
{
    return p->counts;
}
