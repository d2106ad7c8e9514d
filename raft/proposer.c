#include "raft/proposer.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/proposer_internal.h"

/* --- asking ------------------------------------------------------------------------------------------- */

void proposer_wake(struct proposer *p)
{
    if (!p->closed)
        p->options.wake(p->options.user);
}

void proposer_answer(struct proposal *i, const struct err *error)
{
    registry_result_cb cb = i->cb;
    i->cb = NULL;
    if (cb != NULL)
        cb(i->user, error, error == NULL ? &i->result : NULL);
    proposal_free(i);
}

/* Of one that nobody asks again from here. */
static void lost_answer(struct proposal *i)
{
    struct err e;
    if (i->asked > 0)
        err_set(&e, ERR_TIMEOUT,
                "leadership was lost: it is not known whether the change was made");
    else
        err_set(&e, ERR_UNAVAILABLE, "this node does not lead: the change was not made");
    proposer_answer(i, &e);
}

/* Whoever leads now may have done what it would undo. */
static bool is_over(const struct proposer *p, const struct proposal *i)
{
    const struct raft *raft = p->options.raft;
    return i->once && (i->asked > 0 || raft->state != RAFT_LEADER || raft->current_term != i->term);
}

static void drop_over(struct proposer *p, struct proposals *q)
{
    while (q->first != NULL && is_over(p, q->first)) {
        proposals_push(&p->over, proposals_pop(q));
        proposer_wake(p);
    }
}

struct proposals *proposer_next_queue(struct proposer *p)
{
    drop_over(p, &p->again);
    drop_over(p, &p->waiting);
    if (p->again.first != NULL)
        return &p->again;
    return p->waiting.first != NULL ? &p->waiting : NULL;
}

/* Of the i-th that is under way, or of the next. */
static size_t place(const struct proposer *p, size_t i)
{
    return (p->first + i) % PROPOSER_BATCHES_MAX;
}

static struct batch *batch_at(struct proposer *p, size_t i)
{
    return &p->batches[place(p, i)];
}

/* libraft has none of it any more. Who was not answered is asked again. */
static void batch_end(struct proposer *p, struct batch *b)
{
    struct proposals again = {0};
    for (struct proposal *i = proposals_pop(&b->proposals); i != NULL;
         i = proposals_pop(&b->proposals)) {
        if (i->answered)
            proposals_push(&p->done, i);
        else if (i->cb == NULL)
            proposal_free(i);
        else
            proposals_push(&again, i);
    }
    p->counts.asked_again += again.count;
    proposals_push_front(&p->again, &again);
    /* A lost barrier says nothing: whoever waits for it waits for the next. */
    if (b->lost) {
        barriers_move(&b->barriers, &p->barriers_waiting);
        p->barriers_waiting = b->barriers;
    } else {
        barriers_move(&p->barriers_done, &b->barriers);
    }
    b->barriers = (struct barriers){0};
    proposer_wake(p);
}

/* Those that are known to be lost, the last first: what they asked goes again in the order of before. libraft
 * calls back for all when leadership is lost; until the last one nothing is done. */
static void lost_end(struct proposer *p)
{
    for (size_t i = 0; i < p->under_way; i++)
        if (!batch_at(p, i)->called_back)
            return;
    while (p->under_way > 0) {
        struct batch *b = batch_at(p, --p->under_way);
        b->lost = true;
        batch_end(p, b);
    }
}

/* Ends what is known whole: there is room for the next. */
static void finish(struct proposer *p)
{
    while (p->under_way > 0) {
        struct batch *b = batch_at(p, 0);
        if (b->lost)
            lost_end(p);
        if (!b->called_back || b->expected != NULL || b->lost)
            return;
        p->first = (p->first + 1) % PROPOSER_BATCHES_MAX;
        p->under_way--;
        batch_end(p, b);
    }
}

static void called_back(struct batch *b, int status)
{
    b->called_back = true;
    b->lost = b->lost || status != 0;
    finish(b->proposer);
}

static void apply_cb(struct raft_apply *request, int status, void *result)
{
    (void)result;
    called_back(request->data, status);
}

static void barrier_cb(struct raft_barrier *request, int status)
{
    called_back(request->data, status);
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

static void batch_take(struct proposer *p, struct proposals *out)
{
    size_t bytes = 0;
    while (out->count < PROPOSER_BATCH_MAX) {
        struct proposals *q = proposer_next_queue(p);
        if (q == NULL)
            break;
        bytes += q->first->length;
        if (out->count > 0 && bytes > PROPOSER_BATCH_BYTES_MAX)
            break;
        proposals_push(out, proposals_pop(q));
    }
}

/* False: libraft did not take it, and nothing of it is in the log. */
static bool batch_apply(struct proposer *p, struct batch *b)
{
    struct raft_buffer buffers[PROPOSER_BATCH_MAX];
    if (!buffers_fill(buffers, &b->proposals))
        return false;
    b->apply.data = b;
    if (raft_apply(p->options.raft, &b->apply, buffers, (unsigned)b->proposals.count, apply_cb) !=
        0) {
        for (size_t i = 0; i < b->proposals.count; i++)
            raft_free(buffers[i].base);
        return false;
    }
    for (struct proposal *i = b->proposals.first; i != NULL; i = i->next)
        i->asked++;
    p->counts.batches++;
    return true;
}

static bool barrier_ask(struct proposer *p, struct batch *b)
{
    b->barrier.data = b;
    if (raft_barrier(p->options.raft, &b->barrier, barrier_cb) != 0)
        return false;
    p->counts.barriers++;
    return true;
}

/* Of all that waits as much as goes at once. */
static bool batch_ask(struct proposer *p)
{
    struct batch *b = batch_at(p, p->under_way);
    *b = (struct batch){.proposer = p, .term = p->options.raft->current_term};
    batch_take(p, &b->proposals);
    b->expected = b->proposals.first;
    if (!(b->proposals.count > 0 ? batch_apply(p, b) : barrier_ask(p, b))) {
        /* In the order in which they were taken; one that was never asked may stand among `again`. */
        proposals_push_front(&p->again, &b->proposals);
        return false;
    }
    /* A batch that commits proves as much as a barrier. */
    barriers_move(&b->barriers, &p->barriers_waiting);
    p->under_way++;
    return true;
}

static size_t under_way_count(const struct proposer *p)
{
    size_t count = 0;
    for (size_t i = 0; i < p->under_way; i++)
        count += p->batches[place(p, i)].proposals.count;
    return count;
}

/* libraft tells of a lost leadership through its callback, which for a batch may have come before. */
static void loss_notice(struct proposer *p)
{
    const struct raft *raft = p->options.raft;
    if (p->under_way == 0 || !batch_at(p, 0)->called_back)
        return;
    if (raft->state == RAFT_LEADER && raft->current_term == batch_at(p, 0)->term)
        return;
    batch_at(p, 0)->lost = true;
    finish(p);
}

/* Each batch costs a write to the disks of all, so one more goes only with as many proposals as are under
 * way: few who ask do not wait for each other, and many go in few batches. */
static bool is_worth_one(struct proposer *p)
{
    if (proposer_next_queue(p) == NULL)
        return p->barriers_waiting.first != NULL;
    return p->again.count + p->waiting.count >= under_way_count(p);
}

void proposer_ask(struct proposer *p, bool leads)
{
    loss_notice(p);
    while (!p->closed && leads && p->under_way < PROPOSER_BATCHES_MAX && is_worth_one(p))
        if (!batch_ask(p))
            return;
}

static bool is_foreign(const struct proposal *i, const void *user)
{
    (void)user;
    return i->foreign;
}

/* The nodes that asked do it again. */
static void foreign_end(struct proposer *p)
{
    if (p->again.first == NULL && p->waiting.first == NULL)
        return;
    struct proposals foreign = proposals_take(&p->again, is_foreign, NULL);
    struct proposals waiting = proposals_take(&p->waiting, is_foreign, NULL);
    proposals_append(&foreign, &waiting);
    for (struct proposal *i = proposals_pop(&foreign); i != NULL; i = proposals_pop(&foreign))
        lost_answer(i);
}

void proposer_depose(struct proposer *p)
{
    struct barriers barriers = p->barriers_waiting;
    p->barriers_waiting = (struct barriers){0};
    for (struct barrier *b = barriers_pop(&barriers); b != NULL; b = barriers_pop(&barriers)) {
        struct err e;
        err_set(&e, ERR_CONFLICT, "this node does not lead");
        b->cb(b->user, &e);
        free(b);
    }
    foreign_end(p);
}

/* --- answers ------------------------------------------------------------------------------------------ */

static bool is_session(const struct command_session *a, const struct command_session *b)
{
    return a->node == b->node && a->boot == b->boot && a->sequence == b->sequence;
}

/* The batch whose answers come next. NULL: of none. */
static struct batch *batch_answered(struct proposer *p)
{
    for (size_t i = 0; i < p->under_way; i++)
        if (batch_at(p, i)->expected != NULL)
            return batch_at(p, i);
    return NULL;
}

/* A proposal of this node that is in no batch, and was asked before. */
static struct proposal *asked_find(struct proposer *p, const struct command_session *asked)
{
    if (asked->node != p->options.node || asked->boot != p->options.boot)
        return NULL;
    for (struct proposal *i = p->away.first; i != NULL; i = i->next)
        if (i->session.sequence == asked->sequence)
            return i;
    for (struct proposal *i = p->again.first; i != NULL; i = i->next)
        if (!i->foreign && i->session.sequence == asked->sequence)
            return i;
    return NULL;
}

void proposer_applied(struct proposer *p, const struct command_session *asked,
                      const struct registry_result *result)
{
    struct batch *b = batch_answered(p);
    struct proposal *i = b != NULL ? b->expected : NULL;
    if (i != NULL && is_session(&i->session, asked)) {
        i->answered = true;
        i->result = *result;
        b->expected = i->next;
        finish(p);
        return;
    }
    /* By way of another leader; or one of an earlier batch, whose leadership was lost and whose entries
     * were committed all the same: by now it waits to be asked again. */
    i = asked_find(p, asked);
    if (i == NULL || i->answered)
        return;
    if (i->told)
        p->away_told--;
    i->told = false;
    i->answered = true;
    i->result = *result;
    p->answered_elsewhere++;
    proposer_wake(p);
}

static bool is_answered(const struct proposal *i, const void *user)
{
    (void)user;
    return i->answered;
}

/* Asked before, it stays unknown whatever the question under way brings. */
static bool is_late_away(const struct proposal *i, const void *user)
{
    uint64_t wait_ms = i->asked > 1 ? 0 : PROPOSER_AWAY_WAIT_MS;
    return !i->answered && !i->told && i->deadline_ms + wait_ms <= *(const uint64_t *)user;
}

/* The leader has told its result, and the entry was applied here: with a snapshot, if not by itself. */
static bool is_applied(const struct proposal *i, const void *user)
{
    return i->told && i->result.index <= *(const raft_index *)user;
}

void proposer_deliver(struct proposer *p)
{
    struct proposals done = p->done;
    p->done = (struct proposals){0};
    if (p->answered_elsewhere > 0) {
        struct proposals away = proposals_take(&p->away, is_answered, NULL);
        struct proposals again = proposals_take(&p->again, is_answered, NULL);
        p->answered_elsewhere -= away.count + again.count;
        proposals_append(&done, &again);
        proposals_append(&done, &away);
    }
    if (p->away_told > 0) {
        raft_index applied = p->options.applied == NULL ? p->options.raft->last_applied
                                                        : p->options.applied(p->options.user);
        struct proposals told = proposals_take(&p->away, is_applied, &applied);
        p->away_told -= told.count;
        proposals_append(&done, &told);
    }
    for (struct proposal *i = proposals_pop(&done); i != NULL; i = proposals_pop(&done))
        proposer_answer(i, NULL);
    struct proposals over = p->over;
    p->over = (struct proposals){0};
    for (struct proposal *i = proposals_pop(&over); i != NULL; i = proposals_pop(&over))
        lost_answer(i);
    struct barriers barriers = p->barriers_done;
    p->barriers_done = (struct barriers){0};
    for (struct barrier *b = barriers_pop(&barriers); b != NULL; b = barriers_pop(&barriers)) {
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
    for (struct barrier *b = barriers_pop(&all); b != NULL; b = barriers_pop(&all))
        barriers_push(b->deadline_ms <= now_ms ? expired : q, b);
}

static bool is_late(const struct proposal *i, const void *user)
{
    return !i->answered && !i->told && i->deadline_ms <= *(const uint64_t *)user;
}

/* The leader has told its result, and it was waited for long enough until it was applied here. */
static bool is_waited_for(const struct proposal *i, const void *user)
{
    return i->told && i->told_ms <= *(const uint64_t *)user;
}

void proposer_expire(struct proposer *p, uint64_t now_ms)
{
    struct proposals told = proposals_take(&p->away, is_waited_for, &now_ms);
    p->away_told -= told.count;
    struct proposals expired = proposals_take(&p->away, is_late_away, &now_ms);
    struct proposals again = proposals_take(&p->again, is_late, &now_ms);
    struct proposals waiting = proposals_take(&p->waiting, is_late, &now_ms);
    proposals_append(&expired, &again);
    proposals_append(&expired, &waiting);
    struct barriers barriers = {0};
    barriers_expire(&p->barriers_waiting, now_ms, &barriers);
    for (size_t n = 0; n < p->under_way; n++)
        barriers_expire(&batch_at(p, n)->barriers, now_ms, &barriers);

    /* What is under way stays in its batch, without anybody who waits for it. */
    for (size_t n = 0; n < p->under_way; n++)
        for (struct proposal *i = batch_at(p, n)->proposals.first; i != NULL; i = i->next)
            if (i->cb != NULL && !i->answered && i->deadline_ms <= now_ms)
                give_up(i);
    for (struct proposal *i = proposals_pop(&told); i != NULL; i = proposals_pop(&told))
        proposer_answer(i, NULL);
    for (struct proposal *i = proposals_pop(&expired); i != NULL; i = proposals_pop(&expired)) {
        give_up(i);
        proposal_free(i);
    }
    for (struct barrier *b = barriers_pop(&barriers); b != NULL; b = barriers_pop(&barriers)) {
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

static int room_check(const struct proposer *p, struct err *e)
{
    if (p->closed)
        return err_set(e, ERR_CANCELED, "the registry is closing");
    if (proposer_waiting(p) >= p->options.waiting_max)
        return err_set(e, ERR_LIMIT, "%zu changes wait to be committed, as many as may",
                       proposer_waiting(p));
    return 0;
}

static int proposal_new(struct proposal **out, const struct proposer *p, struct err *e)
{
    int rc = room_check(p, e);
    if (rc < 0)
        return rc;
    *out = calloc(1, sizeof **out);
    return *out == NULL ? err_set(e, ERR_NO_MEMORY, "a proposal: no memory") : 0;
}

int proposer_propose(struct proposer *p, const struct registry_command *command, uint64_t now_ms,
                     registry_result_cb cb, void *user, struct err *e)
{
    assert_always(cb != NULL);
    struct proposal *i;
    bool once = command->kind == REGISTRY_LEASE_EXPIRE;
    if (once && p->options.raft->state != RAFT_LEADER)
        return err_set(e, ERR_UNAVAILABLE, "this node does not lead: the change was not made");
    int rc = proposal_new(&i, p, e);
    if (rc < 0)
        return rc;
    i->session = (struct command_session){
        .node = p->options.node, .boot = p->options.boot, .sequence = p->sequence_last + 1};
    rc = command_encode(&i->bytes, &i->length, &i->session, command, e);
    if (rc < 0) {
        free(i);
        return rc;
    }
    p->sequence_last++;
    i->once = once;
    i->term = p->options.raft->current_term;
    i->deadline_ms = now_ms + p->options.timeout_ms;
    i->cb = cb;
    i->user = user;
    proposals_push(&p->waiting, i);
    p->counts.proposals++;
    proposer_wake(p);
    return 0;
}

int proposer_propose_foreign(struct proposer *p, const struct command_session *session,
                             uint8_t *bytes, size_t length, uint64_t deadline_ms,
                             registry_result_cb cb, void *user, struct err *e)
{
    assert_always(cb != NULL);
    struct proposal *i;
    int rc = proposal_new(&i, p, e);
    if (rc < 0) {
        free(bytes);
        return rc;
    }
    i->session = *session;
    i->foreign = true;
    i->bytes = bytes;
    i->length = length;
    i->deadline_ms = deadline_ms;
    i->cb = cb;
    i->user = user;
    proposals_push(&p->waiting, i);
    p->counts.foreign++;
    proposer_wake(p);
    return 0;
}

static size_t barriers_waiting(const struct proposer *p)
{
    size_t count = p->barriers_waiting.count;
    for (size_t i = 0; i < p->under_way; i++)
        count += p->batches[place(p, i)].barriers.count;
    return count;
}

int proposer_barrier(struct proposer *p, uint64_t now_ms, proposer_barrier_cb cb, void *user,
                     struct err *e)
{
    if (p->closed)
        return err_set(e, ERR_CANCELED, "the registry is closing");
    size_t waiting = barriers_waiting(p);
    if (waiting >= p->options.waiting_max)
        return err_set(e, ERR_LIMIT, "%zu barriers wait, as many as may", waiting);
    struct barrier *b = calloc(1, sizeof *b);
    if (b == NULL)
        return err_set(e, ERR_NO_MEMORY, "a barrier: no memory");
    b->deadline_ms = now_ms + p->options.timeout_ms;
    b->cb = cb;
    b->user = user;
    barriers_push(&p->barriers_waiting, b);
    proposer_wake(p);
    return 0;
}

void proposer_close(struct proposer *p)
{
    p->closed = true;
    struct err e;
    err_set(&e, ERR_CANCELED, "the registry is closing");
    proposer_deliver(p);
    struct proposals all = p->away;
    p->away = (struct proposals){0};
    proposals_append(&all, &p->again);
    proposals_append(&all, &p->waiting);
    for (struct proposal *i = proposals_pop(&all); i != NULL; i = proposals_pop(&all))
        proposer_answer(i, i->told ? NULL : &e);
    struct barriers barriers = {0};
    for (size_t n = 0; n < p->under_way; n++) {
        for (struct proposal *i = batch_at(p, n)->proposals.first; i != NULL; i = i->next) {
            registry_result_cb cb = i->cb;
            i->cb = NULL;
            if (cb != NULL)
                cb(i->user, i->answered ? NULL : &e, i->answered ? &i->result : NULL);
        }
        barriers_move(&barriers, &batch_at(p, n)->barriers);
    }
    barriers_move(&barriers, &p->barriers_waiting);
    for (struct barrier *b = barriers_pop(&barriers); b != NULL; b = barriers_pop(&barriers)) {
        b->cb(b->user, &e);
        free(b);
    }
}

void proposer_free(struct proposer *p)
{
    if (p == NULL)
        return;
    struct proposals all = {0};
    struct proposals *const queues[] = {&p->again, &p->waiting, &p->away, &p->done, &p->over};
    for (size_t q = 0; q < ARRAY_SIZE(queues); q++)
        proposals_append(&all, queues[q]);
    for (size_t n = 0; n < p->under_way; n++)
        proposals_append(&all, &batch_at(p, n)->proposals);
    for (struct proposal *i = proposals_pop(&all); i != NULL; i = proposals_pop(&all))
        proposal_free(i);
    free(p);
}

size_t proposer_waiting(const struct proposer *p)
{
    return p->again.count + p->waiting.count + under_way_count(p) + p->away.count + p->over.count;
}

bool proposer_wanting(struct proposer *p)
{
    return proposer_next_queue(p) != NULL;
}

bool proposer_idle(const struct proposer *p)
{
    return proposer_waiting(p) == 0 && barriers_waiting(p) == 0 && p->done.first == NULL &&
           p->barriers_done.first == NULL;
}

struct proposer_counts proposer_counts(const struct proposer *p)
{
    return p->counts;
}
