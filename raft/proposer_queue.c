/* The queues of the proposer. */
#include <stdlib.h>

#include "raft/proposer_internal.h"

void proposals_push(struct proposals *q, struct proposal *p)
{
    p->next = NULL;
    if (q->first == NULL)
        q->first = p;
    else
        q->last->next = p;
    q->last = p;
    q->count++;
}

struct proposal *proposals_pop(struct proposals *q)
{
    struct proposal *p = q->first;
    if (p == NULL)
        return NULL;
    q->first = p->next;
    q->count--;
    return p;
}

void proposals_push_front(struct proposals *q, struct proposals *front)
{
    proposals_append(front, q);
    *q = *front;
    *front = (struct proposals){0};
}

void proposals_append(struct proposals *q, struct proposals *more)
{
    if (more->first == NULL)
        return;
    if (q->first == NULL)
        q->first = more->first;
    else
        q->last->next = more->first;
    q->last = more->last;
    q->count += more->count;
    *more = (struct proposals){0};
}

struct proposals proposals_take(struct proposals *q,
                                bool (*match)(const struct proposal *p, const void *user),
                                const void *user)
{
    struct proposals taken = {0}, rest = {0};
    for (struct proposal *i = proposals_pop(q); i != NULL; i = proposals_pop(q))
        proposals_push(match(i, user) ? &taken : &rest, i);
    *q = rest;
    return taken;
}

void proposal_free(struct proposal *p)
{
    free(p->bytes);
    free(p);
}

void barriers_push(struct barriers *q, struct barrier *b)
{
    b->next = NULL;
    if (q->first == NULL)
        q->first = b;
    else
        q->last->next = b;
    q->last = b;
    q->count++;
}

struct barrier *barriers_pop(struct barriers *q)
{
    struct barrier *b = q->first;
    if (b == NULL)
        return NULL;
    q->first = b->next;
    q->count--;
    return b;
}

void barriers_move(struct barriers *to, struct barriers *from)
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
