#include "scheduler/leases.h"

#include <stdlib.h>
#include <string.h>

/* --- the leader ----------------------------------------------------------------------------------- */

struct lease {
    node_id id;
    uint64_t epoch;
    uint64_t until_ms;
    uint64_t named_ms; /* when its end was last named; 0: not yet */
    bool leased;
    bool ending; /* its end was named: nothing renews it any more */
    bool marked;
};

struct lease_table {
    bool leading;
    uint64_t grace_ms; /* nothing ends before */
    uint32_t count, max;
    struct lease leases[];
};

int lease_table_new(struct lease_table **out, uint32_t nodes_max, struct err *e)
{
    struct lease_table *t = calloc(1, sizeof *t + nodes_max * sizeof t->leases[0]);
    if (t == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for the leases of %u nodes", nodes_max);
    t->max = nodes_max;
    *out = t;
    return 0;
}

void lease_table_free(struct lease_table *t)
{
    free(t);
}

static struct lease *find(const struct lease_table *t, node_id id)
{
    for (uint32_t k = 0; k < t->count; k++)
        if (t->leases[k].id == id)
            return (struct lease *)(uintptr_t)&t->leases[k];
    return NULL;
}

/* Deposed and chosen again, it knows no more of the time between than any other new leader. */
void lease_table_lead(struct lease_table *t, uint64_t now_ms)
{
    t->leading = true;
    t->grace_ms = now_ms + LEASE_GIVEN_MS + 2 * LEASE_ELECTION_MS;
    for (uint32_t k = 0; k < t->count; k++) {
        t->leases[k].until_ms = t->grace_ms;
        t->leases[k].ending = false;
    }
}

void lease_table_depose(struct lease_table *t)
{
    t->leading = false;
}

int lease_table_node(struct lease_table *t, node_id id, bool leased, uint64_t epoch,
                     uint64_t now_ms, struct err *e)
{
    struct lease *l = find(t, id);
    if (l == NULL && t->count == t->max)
        return err_set(e, ERR_LIMIT, "node %llu gets no lease: %u nodes are as many as may be",
                       (unsigned long long)id, t->max);
    if (l == NULL) {
        l = &t->leases[t->count++];
        *l = (struct lease){.id = id};
    }
    l->marked = true;
    if (l->leased == leased && l->epoch == epoch)
        return 0;
    /* A grant is renewed by its answer; until then, and if that is lost, it has a whole lease. */
    uint64_t until_ms = now_ms + LEASE_GIVEN_MS;
    l->leased = leased;
    l->epoch = epoch;
    l->ending = false;
    l->until_ms = until_ms > t->grace_ms ? until_ms : t->grace_ms;
    return 0;
}

void lease_table_forget(struct lease_table *t, node_id id)
{
    struct lease *l = find(t, id);
    if (l != NULL)
        *l = t->leases[--t->count];
}

void lease_table_mark(struct lease_table *t)
{
    for (uint32_t k = 0; k < t->count; k++)
        t->leases[k].marked = false;
}

void lease_table_sweep(struct lease_table *t)
{
    for (uint32_t k = 0; k < t->count;) {
        if (t->leases[k].marked)
            k++;
        else
            t->leases[k] = t->leases[--t->count];
    }
}

bool lease_table_renewed(struct lease_table *t, node_id id, uint64_t epoch, uint64_t now_ms)
{
    struct lease *l = find(t, id);
    if (!t->leading || l == NULL || !l->leased || l->ending || l->epoch != epoch)
        return false;
    uint64_t until_ms = now_ms + LEASE_GIVEN_MS;
    if (until_ms > l->until_ms)
        l->until_ms = until_ms;
    return true;
}

bool lease_table_due(struct lease_table *t, uint64_t now_ms, node_id *id, uint64_t *epoch,
                     uint64_t *next_ms)
{
    *next_ms = UINT64_MAX;
    if (!t->leading)
        return false;
    for (uint32_t k = 0; k < t->count; k++) {
        struct lease *l = &t->leases[k];
        if (!l->leased)
            continue;
        uint64_t at_ms = l->ending ? l->named_ms + LEASE_RETRY_MS : l->until_ms;
        if (at_ms > now_ms) {
            *next_ms = at_ms < *next_ms ? at_ms : *next_ms;
            continue;
        }
        l->ending = true;
        l->named_ms = now_ms;
        *id = l->id;
        *epoch = l->epoch;
        return true;
    }
    return false;
}

uint64_t lease_table_until(const struct lease_table *t, node_id id)
{
    const struct lease *l = find(t, id);
    return t->leading && l != NULL && l->leased ? l->until_ms : 0;
}

/* --- the holder ------------------------------------------------------------------------------------ */

void lease_holder_init(struct lease_holder *h, uint64_t boot_ms)
{
    *h = (struct lease_holder){.renew_ms = boot_ms};
}

uint64_t lease_holder_next(const struct lease_holder *h)
{
    return h->sent_ms != 0 ? h->sent_ms + LEASE_ANSWER_MS : h->renew_ms;
}

bool lease_holder_send(struct lease_holder *h, uint64_t boot_ms)
{
    if (boot_ms < lease_holder_next(h))
        return false;
    h->sent_ms = boot_ms;
    h->renew_ms = boot_ms + LEASE_RENEW_MS;
    return true;
}

bool lease_holder_granted(struct lease_holder *h, uint64_t sent_ms, uint64_t epoch)
{
    if (h->sent_ms == sent_ms)
        h->sent_ms = 0;
    uint64_t deadline_ms = sent_ms + LEASE_MS;
    if (epoch < h->epoch || (epoch == h->epoch && deadline_ms <= h->deadline_ms))
        return false;
    h->epoch = epoch;
    h->deadline_ms = deadline_ms;
    return true;
}

void lease_holder_failed(struct lease_holder *h, uint64_t sent_ms, uint64_t boot_ms)
{
    if (h->sent_ms != sent_ms)
        return; /* another is under way */
    h->sent_ms = 0;
    h->renew_ms = boot_ms + LEASE_RETRY_MS;
}

bool lease_holder_valid(const struct lease_holder *h, uint64_t boot_ms)
{
    return boot_ms < h->deadline_ms;
}
