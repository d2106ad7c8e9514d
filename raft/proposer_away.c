/* Proposals of this node on their way to another one that leads. */
#include <string.h>

#include "base/memory.h"
#include "raft/proposer_internal.h"

size_t proposer_away_take(struct proposer *p, unsigned call, struct proposer_item out[],
                          size_t items_max, size_t bytes_max)
{
    size_t count = 0, bytes = 0;
    while (count < items_max) {
        struct proposals *q = proposer_next_queue(p);
        if (q == NULL || (count > 0 && bytes + q->first->length > bytes_max))
            break;
        struct proposal *i = proposals_pop(q);
        bytes += i->length;
        i->asked++;
        i->call = call;
        i->told = false;
        out[count++] = (struct proposer_item){
            .bytes = i->bytes, .length = i->length, .sequence = i->session.sequence};
        proposals_push(&p->away, i);
    }
    return count;
}

/* Takes it out of what is away; NULL: it is there no more, or has been taken by a later call. */
static struct proposal *away_find(struct proposer *p, unsigned call, uint64_t sequence)
{
    for (struct proposal *i = p->away.first; i != NULL; i = i->next)
        if (i->session.sequence == sequence)
            return i->call == call && !i->told && !i->answered ? i : NULL;
    return NULL;
}

static bool is_that(const struct proposal *i, const void *user)
{
    return i == user;
}

void proposer_away_answer(struct proposer *p, unsigned call, uint64_t sequence,
                          const struct registry_result *result, uint64_t now_ms)
{
    struct proposal *i = away_find(p, call, sequence);
    if (i == NULL)
        return;
    i->result = *result;
    i->told = true;
    i->told_ms = now_ms + PROPOSER_APPLY_WAIT_MS;
    p->away_told++;
    proposer_wake(p);
}

void proposer_away_refuse(struct proposer *p, unsigned call, uint64_t sequence,
                          const struct err *error)
{
    struct proposal *i = away_find(p, call, sequence);
    if (i == NULL)
        return;
    (void)proposals_take(&p->away, is_that, i);
    proposer_answer(i, error);
}

static void come_back(struct proposer *p, struct proposals *back, bool maybe_heard)
{
    struct proposals again = {0}, fresh = {0};
    for (struct proposal *i = proposals_pop(back); i != NULL; i = proposals_pop(back)) {
        if (!maybe_heard)
            i->asked--;
        proposals_push(i->asked > 0 ? &again : &fresh, i);
    }
    p->counts.asked_again += again.count;
    proposals_push_front(&p->again, &again);
    proposals_push_front(&p->waiting, &fresh);
    proposer_wake(p);
}

void proposer_away_back(struct proposer *p, unsigned call, uint64_t sequence, bool maybe_heard)
{
    struct proposal *i = away_find(p, call, sequence);
    if (i == NULL)
        return;
    struct proposals back = proposals_take(&p->away, is_that, i);
    come_back(p, &back, maybe_heard);
}

static bool is_of_call(const struct proposal *i, const void *user)
{
    return i->call == *(const unsigned *)user && !i->told && !i->answered;
}

void proposer_away_all_back(struct proposer *p, unsigned call, bool maybe_heard)
{
    struct proposals back = proposals_take(&p->away, is_of_call, &call);
    come_back(p, &back, maybe_heard);
}
