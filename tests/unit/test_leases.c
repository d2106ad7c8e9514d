/* Leases of nodes: the two state machines by themselves, then together in a world of drifting clocks,
 * lost and late messages, stopped nodes and changing leaders, where what a holder believes must be
 * what the registry shows at every moment. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "scheduler/leases.h"

/* --- the leader ------------------------------------------------------------------------------------ */

static struct lease_table *table(uint64_t now_ms)
{
    struct lease_table *t;
    assert_int_equal(lease_table_new(&t, 4, NULL), 0);
    lease_table_lead(t, now_ms);
    return t;
}

static void show(struct lease_table *t, node_id id, bool leased, uint64_t epoch, uint64_t now_ms)
{
    assert_int_equal(lease_table_node(t, id, leased, epoch, now_ms, NULL), 0);
}

static bool due(struct lease_table *t, uint64_t now_ms, node_id *id, uint64_t *next_ms)
{
    uint64_t epoch;
    return lease_table_due(t, now_ms, id, &epoch, next_ms);
}

static void a_new_leader_waits_a_lease_and_two_elections(void **state)
{
    (void)state;
    struct lease_table *t = table(1000);
    node_id id;
    uint64_t next;
    show(t, 2, true, 7, 1000);
    const uint64_t wait = 1000 + LEASE_GIVEN_MS + 2 * LEASE_ELECTION_MS;
    assert_true(LEASE_GIVEN_MS == 6300);
    assert_false(due(t, wait - 1, &id, &next));
    assert_true(next == wait);
    assert_true(lease_table_until(t, 2) == wait);
    assert_true(due(t, wait, &id, &next));
    assert_true(id == 2);
    lease_table_free(t);
}

static void a_renewed_lease_ends_later(void **state)
{
    (void)state;
    struct lease_table *t = table(0);
    node_id id;
    uint64_t next;
    show(t, 2, true, 7, 0);
    assert_true(lease_table_renewed(t, 2, 7, 5000));
    assert_true(lease_table_until(t, 2) == 5000 + LEASE_GIVEN_MS);
    assert_false(due(t, 5000 + LEASE_GIVEN_MS - 1, &id, &next));
    assert_true(due(t, 5000 + LEASE_GIVEN_MS, &id, &next));
    lease_table_free(t);
}

static void a_lease_whose_end_was_proposed_is_not_renewed(void **state)
{
    (void)state;
    struct lease_table *t = table(0);
    node_id id;
    uint64_t next;
    show(t, 2, true, 7, 0);
    assert_true(due(t, 10000, &id, &next));
    assert_false(lease_table_renewed(t, 2, 7, 10001));
    /* Named again until the registry shows the end, but not without a pause. */
    assert_false(due(t, 10001, &id, &next));
    assert_true(next == 10000 + LEASE_RETRY_MS);
    assert_true(due(t, next, &id, &next));
    show(t, 2, false, 7, 11000);
    assert_false(due(t, 99999, &id, &next));
    assert_true(next == UINT64_MAX);
    assert_true(lease_table_until(t, 2) == 0);
    /* A new grant begins anew. */
    show(t, 2, true, 9, 12000);
    assert_true(lease_table_renewed(t, 2, 9, 12500));
    assert_false(lease_table_renewed(t, 2, 7, 12500));
    lease_table_free(t);
}

static void who_does_not_lead_ends_and_renews_nothing(void **state)
{
    (void)state;
    struct lease_table *t = table(0);
    node_id id;
    uint64_t next;
    show(t, 2, true, 7, 0);
    lease_table_depose(t);
    assert_false(due(t, 99999, &id, &next));
    assert_false(lease_table_renewed(t, 2, 7, 1));
    assert_true(lease_table_until(t, 2) == 0);
    lease_table_lead(t, 100000);
    assert_false(due(t, 100001, &id, &next));
    assert_true(lease_table_renewed(t, 2, 7, 100001));
    lease_table_free(t);
}

static void nodes_that_are_gone_are_forgotten_and_the_table_is_bounded(void **state)
{
    (void)state;
    struct lease_table *t = table(0);
    struct err e = {0};
    node_id id;
    uint64_t next;
    for (node_id n = 1; n <= 4; n++)
        show(t, n, true, n, 0);
    assert_int_equal(lease_table_node(t, 5, true, 5, 0, &e), -ERR_LIMIT);
    assert_false(lease_table_renewed(t, 5, 5, 1));
    lease_table_mark(t);
    show(t, 3, true, 3, 0);
    lease_table_sweep(t);
    show(t, 5, true, 5, 0);
    lease_table_forget(t, 5);
    assert_true(due(t, 10000, &id, &next));
    assert_true(id == 3);
    assert_false(due(t, 10000, &id, &next));
    lease_table_free(t);
}

/* --- the holder ------------------------------------------------------------------------------------- */

static void the_holder_counts_from_when_it_sent(void **state)
{
    (void)state;
    struct lease_holder h;
    lease_holder_init(&h, 500);
    assert_false(lease_holder_valid(&h, 500));
    assert_true(lease_holder_send(&h, 500));
    assert_false(lease_holder_send(&h, 501));
    assert_true(lease_holder_granted(&h, 500, 3));
    assert_true(h.deadline_ms == 500 + LEASE_MS);
    assert_true(lease_holder_valid(&h, 500 + LEASE_MS - 1));
    assert_false(lease_holder_valid(&h, 500 + LEASE_MS));
    assert_true(lease_holder_next(&h) == 500 + LEASE_RENEW_MS);
    assert_false(lease_holder_send(&h, 500 + LEASE_RENEW_MS - 1));
    assert_true(lease_holder_send(&h, 500 + LEASE_RENEW_MS));
}

static void a_failed_renewal_is_sent_again_soon_and_a_lost_one_after_a_while(void **state)
{
    (void)state;
    struct lease_holder h;
    lease_holder_init(&h, 0);
    assert_true(lease_holder_send(&h, 1));
    lease_holder_failed(&h, 1, 100);
    assert_false(lease_holder_send(&h, 100 + LEASE_RETRY_MS - 1));
    assert_true(lease_holder_send(&h, 100 + LEASE_RETRY_MS));
    uint64_t sent = h.sent_ms;
    assert_false(lease_holder_send(&h, sent + LEASE_ANSWER_MS - 1));
    assert_true(lease_holder_send(&h, sent + LEASE_ANSWER_MS));
    /* The first failure comes late: another is under way, and is waited for. */
    lease_holder_failed(&h, sent, sent + LEASE_ANSWER_MS + 1);
    assert_true(h.sent_ms == sent + LEASE_ANSWER_MS);
}

static void late_answers_count_from_their_question_and_old_epochs_not_at_all(void **state)
{
    (void)state;
    struct lease_holder h;
    lease_holder_init(&h, 0);
    assert_true(lease_holder_send(&h, 1000));
    assert_true(lease_holder_send(&h, 2000));
    assert_true(lease_holder_granted(&h, 2000, 5));
    assert_false(lease_holder_granted(&h, 1000, 5));
    assert_true(h.deadline_ms == 2000 + LEASE_MS);
    assert_false(lease_holder_granted(&h, 3000, 4));
    assert_true(h.epoch == 5 && h.deadline_ms == 2000 + LEASE_MS);
    assert_true(lease_holder_granted(&h, 1500, 6));
    assert_true(h.epoch == 6 && h.deadline_ms == 1500 + LEASE_MS);
}

/* --- a world ----------------------------------------------------------------------------------------- */

enum { NODES = 4, EVENTS_MAX = 4096, STEP_MS = 5 };

enum what { RENEWAL, BARRIER, GRANTED, ANSWER, FAILED, EXPIRED };

struct event {
    uint64_t at_ms;
    enum what what;
    node_id holder;
    unsigned leader; /* index of who was asked */
    uint64_t term;   /* in which it was proposed */
    uint64_t sent_ms, epoch;
};

struct machine {
    struct lease_holder holder;
    struct lease_table *table;
    double rate;
    uint64_t mono_offset, boot_offset;
    bool thinks_it_leads;
    uint64_t lead_term;
    uint64_t told_at_ms; /* when it hears of its election or of its successor's */
    bool stopped;
    uint64_t until_ms; /* stopped or running until then */
};

struct world {
    uint64_t random, now_ms, term, epoch_last, election_ms;
    unsigned leader;
    bool healed;
    bool quick; /* nothing takes long: there the drift of clocks is all that counts */
    struct machine machines[NODES];
    struct {
        bool leased;
        uint64_t epoch;
    } registry[NODES];
    struct event events[EVENTS_MAX];
    size_t event_count;
    uint64_t expiries, renewals, changes;
};

static uint64_t draw(struct world *w, uint64_t below)
{
    w->random += 0x9e3779b97f4a7c15u;
    uint64_t z = w->random;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % below;
}

static uint64_t mono(const struct world *w, unsigned m)
{
    return w->machines[m].mono_offset + (uint64_t)((double)w->now_ms * w->machines[m].rate);
}

static uint64_t boot(const struct world *w, unsigned m)
{
    return w->machines[m].boot_offset + (uint64_t)((double)w->now_ms * w->machines[m].rate);
}

static void post(struct world *w, struct event event, uint64_t delay_max)
{
    assert_true(w->event_count < EVENTS_MAX);
    event.at_ms = w->now_ms + draw(w, w->quick ? STEP_MS : delay_max);
    w->events[w->event_count++] = event;
}

/* A message between machines: lost, late, twice. */
static void message(struct world *w, struct event event)
{
    if (!w->healed && draw(w, 5) == 0)
        return;
    uint64_t delay = w->healed ? 10 : draw(w, 10) == 0 ? 8000 : 400;
    post(w, event, delay);
    if (!w->healed && draw(w, 10) == 0)
        post(w, event, delay * 2);
}

static void expire(struct world *w, const struct event *e)
{
    if (w->registry[e->holder - 1].leased && w->registry[e->holder - 1].epoch == e->epoch) {
        w->registry[e->holder - 1].leased = false;
        w->expiries++;
    }
}

static void grant(struct world *w, node_id holder)
{
    if (w->registry[holder - 1].leased)
        return;
    w->registry[holder - 1].leased = true;
    w->registry[holder - 1].epoch = ++w->epoch_last;
}

/* What was proposed in the term that is over survives in the new leader's log, or not; and stands
 * before whatever is proposed in the new one. */
static void elect(struct world *w)
{
    w->term++;
    w->changes++;
    for (size_t k = 0; k < w->event_count; k++) {
        struct event *e = &w->events[k];
        bool pending = e->what == EXPIRED || e->what == GRANTED;
        if (!pending || e->term == w->term || draw(w, 2) == 0)
            continue;
        if (e->what == EXPIRED)
            expire(w, e);
        else
            grant(w, e->holder);
    }
    w->leader = (unsigned)draw(w, NODES);
    w->election_ms = w->now_ms + (w->healed ? UINT64_MAX / 2 : 1000 + draw(w, 20000));
    for (unsigned m = 0; m < NODES; m++)
        w->machines[m].told_at_ms = w->now_ms + draw(w, m == w->leader ? 50 : 3000);
}

static void look(struct world *w, unsigned m)
{
    for (unsigned n = 0; n < NODES; n++)
        show(w->machines[m].table, n + 1, w->registry[n].leased, w->registry[n].epoch, mono(w, m));
}

static void tell_leadership(struct world *w, unsigned m)
{
    struct machine *machine = &w->machines[m];
    if (w->now_ms < machine->told_at_ms)
        return;
    machine->told_at_ms = UINT64_MAX;
    bool leads = m == w->leader;
    if (leads) {
        lease_table_lead(machine->table, mono(w, m));
        look(w, m);
    } else if (machine->thinks_it_leads) {
        lease_table_depose(machine->table);
    }
    machine->thinks_it_leads = leads;
    machine->lead_term = w->term;
}

static void answer(struct world *w, const struct event *e)
{
    uint64_t epoch = w->registry[e->holder - 1].epoch;
    if (!lease_table_renewed(w->machines[e->leader].table, e->holder, epoch, mono(w, e->leader)))
        return;
    w->renewals++;
    message(w, (struct event){
                   .what = ANSWER, .holder = e->holder, .sent_ms = e->sent_ms, .epoch = epoch});
}

static void happen(struct world *w, struct event e)
{
    struct machine *leader = &w->machines[e.leader];
    bool still = leader->thinks_it_leads && e.term == w->term && e.leader == w->leader;
    switch (e.what) {
    case RENEWAL:
        if (!leader->thinks_it_leads || leader->stopped)
            return;
        e.what = BARRIER;
        e.term = leader->lead_term;
        post(w, e, 300);
        return;
    case BARRIER:
        if (!still)
            return;
        look(w, e.leader);
        if (w->registry[e.holder - 1].leased) {
            answer(w, &e);
            return;
        }
        e.what = GRANTED;
        post(w, e, 300);
        return;
    case GRANTED:
        if (!still)
            return;
        grant(w, e.holder);
        look(w, e.leader);
        answer(w, &e);
        return;
    case EXPIRED:
        if (!still)
            return;
        expire(w, &e);
        look(w, e.leader);
        return;
    case ANSWER:
        (void)lease_holder_granted(&w->machines[e.holder - 1].holder, e.sent_ms, e.epoch);
        return;
    case FAILED:
        lease_holder_failed(&w->machines[e.holder - 1].holder, e.sent_ms,
                            boot(w, (unsigned)e.holder - 1));
        return;
    }
}

static void run_events(struct world *w)
{
    for (size_t k = 0; k < w->event_count;) {
        if (w->events[k].at_ms > w->now_ms) {
            k++;
            continue;
        }
        struct event e = w->events[k];
        w->events[k] = w->events[--w->event_count];
        happen(w, e);
        k = 0;
    }
}

static void run_machine(struct world *w, unsigned m)
{
    struct machine *machine = &w->machines[m];
    if (w->now_ms >= machine->until_ms) {
        machine->stopped = !w->healed && !machine->stopped;
        machine->until_ms = w->now_ms + 500 + draw(w, machine->stopped ? 15000 : 40000);
    }
    if (machine->stopped)
        return;
    tell_leadership(w, m);
    if (lease_holder_send(&machine->holder, boot(w, m))) {
        struct event e = {.what = RENEWAL, .holder = m + 1, .sent_ms = machine->holder.sent_ms};
        /* Mostly the leader; sometimes one that only thinks it leads. */
        e.leader = w->healed || draw(w, 4) != 0 ? w->leader : (unsigned)draw(w, NODES);
        message(w, e);
        if (draw(w, 10) == 0)
            post(w, (struct event){.what = FAILED, .holder = m + 1, .sent_ms = e.sent_ms}, 500);
    }
    node_id id;
    uint64_t epoch, next;
    while (lease_table_due(machine->table, mono(w, m), &id, &epoch, &next))
        post(w,
             (struct event){.what = EXPIRED,
                            .holder = id,
                            .leader = m,
                            .term = machine->lead_term,
                            .epoch = epoch},
             600);
}

/* The invariant: who believes that it has a lease has it. */
static void check(const struct world *w, uint64_t seed)
{
    for (unsigned m = 0; m < NODES; m++) {
        const struct lease_holder *h = &w->machines[m].holder;
        if (!lease_holder_valid(h, boot(w, m)))
            continue;
        if (!w->registry[m].leased || w->registry[m].epoch != h->epoch)
            fail_msg("seed %" PRIu64 ", %" PRIu64 " ms: node %u believes in epoch %" PRIu64
                     " for %" PRIu64 " ms more, the registry shows %s %" PRIu64,
                     seed, w->now_ms, m + 1, h->epoch, h->deadline_ms - boot(w, m),
                     w->registry[m].leased ? "epoch" : "the end of epoch", w->registry[m].epoch);
    }
}

static void world_open(struct world *w, uint64_t seed)
{
    *w = (struct world){.random = seed, .now_ms = 1000, .quick = seed % 2 == 0};
    for (unsigned m = 0; m < NODES; m++) {
        struct machine *machine = &w->machines[m];
        /* Two clocks are at most 4.9 % apart, less than LEASE_DRIFT_PERCENT. */
        machine->rate = draw(w, 2) == 0 ? 0.976 : 1.023;
        machine->mono_offset = draw(w, 1000000);
        machine->boot_offset = machine->mono_offset + draw(w, 1000000);
        machine->told_at_ms = UINT64_MAX;
        machine->until_ms = w->now_ms + draw(w, 20000);
        lease_holder_init(&machine->holder, boot(w, m));
        assert_int_equal(lease_table_new(&machine->table, NODES, NULL), 0);
    }
    elect(w);
}

static void run(struct world *w, uint64_t seed, uint64_t until_ms)
{
    for (; w->now_ms < until_ms; w->now_ms += STEP_MS) {
        if (w->now_ms >= w->election_ms)
            elect(w);
        /* Entries take effect and machines act in any order within a step. */
        run_events(w);
        check(w, seed);
        for (unsigned m = 0; m < NODES; m++)
            run_machine(w, m);
        check(w, seed);
    }
}

static void what_a_holder_believes_is_what_the_registry_shows(void **state)
{
    (void)state;
    uint64_t expiries = 0, renewals = 0, changes = 0;
    struct world *w = malloc(sizeof *w);
    assert_non_null(w);
    const char *only = getenv("SEED");
    uint64_t first = only != NULL ? strtoull(only, NULL, 10) : 1;
    for (uint64_t seed = first; seed < first + (only != NULL ? 1 : 60); seed++) {
        world_open(w, seed);
        run(w, seed, 180000);
        /* Without faults everybody has a lease soon, and keeps it. */
        w->healed = true;
        elect(w);
        run(w, seed, w->now_ms + 30000);
        uint64_t before = w->expiries;
        for (unsigned m = 0; m < NODES; m++)
            if (!lease_holder_valid(&w->machines[m].holder, boot(w, m)))
                fail_msg("seed %" PRIu64 ": node %u has no lease", seed, m + 1);
        run(w, seed, w->now_ms + 60000);
        assert_true(w->expiries == before);
        expiries += w->expiries;
        renewals += w->renewals;
        changes += w->changes;
        for (unsigned m = 0; m < NODES; m++)
            lease_table_free(w->machines[m].table);
    }
    free(w);
    /* It was about something. */
    if (only == NULL) {
        assert_true(expiries > 100);
        assert_true(renewals > 5000);
        assert_true(changes > 500);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_leader_waits_a_lease_and_two_elections),
        cmocka_unit_test(a_renewed_lease_ends_later),
        cmocka_unit_test(a_lease_whose_end_was_proposed_is_not_renewed),
        cmocka_unit_test(who_does_not_lead_ends_and_renews_nothing),
        cmocka_unit_test(nodes_that_are_gone_are_forgotten_and_the_table_is_bounded),
        cmocka_unit_test(the_holder_counts_from_when_it_sent),
        cmocka_unit_test(a_failed_renewal_is_sent_again_soon_and_a_lost_one_after_a_while),
        cmocka_unit_test(late_answers_count_from_their_question_and_old_epochs_not_at_all),
        cmocka_unit_test(what_a_holder_believes_is_what_the_registry_shows),
    };
    return cmocka_run_group_tests_name("leases", tests, NULL, NULL);
}
