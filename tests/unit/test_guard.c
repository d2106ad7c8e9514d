/* What libraft does wrong, shown without the guard, and that the guard puts it right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "tests/lib/raft_cluster.h"

static struct cluster *open_cluster(unsigned n, bool guard_off)
{
    struct cluster *c = malloc(sizeof *c);
    assert_non_null(c);
    raft_cluster_open(c, n, guard_off, 10000);
    return c;
}

static void close_cluster(struct cluster *c)
{
    raft_cluster_close(c);
    free(c);
}

/* --- figure 8 of the Raft paper --------------------------------------------------------------------- */

/* Servers 0 to 4. True if all agree in the end. */
static bool figure_8(bool guard_off)
{
    struct cluster *c = open_cluster(5, guard_off);
    raft_cluster_elect(c, 0);
    raft_cluster_run(c, 300);
    /* (a) 0 leads and replicates an entry to 1 alone. */
    for (unsigned j = 2; j < 5; j++)
        raft_cluster_cut(c, 0, j);
    assert_int_equal(raft_cluster_put(c, 0, 111), 0);
    raft_index entry = raft_last_index(raft_cluster_raft(c, 0));
    raft_cluster_run(c, 150);
    raft_cluster_isolate(c, 0);
    raft_cluster_isolate(c, 1);
    raft_cluster_depose(c, 0);
    /* (b) 4 leads by the votes of 2 and 3, and writes another one at the same index, for itself. */
    raft_cluster_elect(c, 4);
    raft_cluster_cut(c, 4, 2);
    raft_cluster_cut(c, 4, 3);
    assert_int_equal(raft_cluster_put(c, 4, 222), 0);
    raft_cluster_run(c, 60);
    raft_cluster_isolate(c, 4);
    raft_cluster_depose(c, 4);
    /* (c) 0 leads again and brings the old entry to 2: a majority has it, from an old term. */
    raft_cluster_join(c, 0, 1);
    raft_cluster_join(c, 0, 2);
    raft_cluster_join(c, 0, 3);
    raft_cluster_join(c, 1, 2);
    raft_cluster_join(c, 1, 3);
    raft_cluster_join(c, 2, 3);
    raft_cluster_elect(c, 0);
    raft_cluster_cut(c, 0, 3);
    for (unsigned k = 0; k < 100000 && raft_cluster_raft(c, 0)->commit_index < entry; k++)
        raft_cluster_step(c);
    assert_true(raft_cluster_raft(c, 0)->commit_index >= entry);
    /* (d) 0 is gone. Whoever can lead now must have what 0 called committed. */
    raft_cluster_isolate(c, 0);
    raft_cluster_depose(c, 0);
    for (unsigned i = 1; i < 5; i++)
        for (unsigned j = i + 1; j < 5; j++)
            raft_cluster_join(c, i, j);
    for (unsigned i = 0; i < 5; i++)
        raft_fixture_set_randomized_election_timeout(&c->fixture, i, i == 4 ? 1000 : 3000);
    for (unsigned i = 1; i < 5; i++)
        if (raft_cluster_raft(c, i)->state == RAFT_FOLLOWER)
            raft_cluster_raft(c, i)->follower_state.randomized_election_timeout =
                i == 4 ? 1000 : 3000;
    raft_cluster_run(c, 20000);
    int leader = raft_cluster_leader(c);
    assert_true(leader > 0);
    assert_int_equal(raft_cluster_put(c, (unsigned)leader, 333), 0);
    raft_cluster_run(c, 1500);
    bool agrees = raft_cluster_agrees(c);
    close_cluster(c);
    return agrees;
}

static void libraft_alone_commits_what_is_overwritten(void **state)
{
    (void)state;
    assert_false(figure_8(true));
}

static void guarded_nothing_committed_is_overwritten(void **state)
{
    (void)state;
    assert_true(figure_8(false));
}

/* --- a follower with more than it was asked about ------------------------------------------------------ */

/* 1 has entries that nobody else has, from when it led. 0 leads now and asks 1 about what they have in
 * common; when the answer comes, 0 has written an entry of its own, which it must not take for one of
 * those. True if all agree in the end. */
static bool longer_log(bool guard_off)
{
    struct cluster *c = open_cluster(3, guard_off);
    raft_cluster_elect(c, 1);
    raft_cluster_run(c, 300);
    raft_cluster_isolate(c, 1);
    assert_int_equal(raft_cluster_put(c, 1, 111), 0);
    assert_int_equal(raft_cluster_put(c, 1, 222), 0);
    raft_cluster_depose(c, 1);
    raft_cluster_elect(c, 0); /* by the vote of 2 */
    raft_cluster_isolate(c, 0);
    raft_cluster_join(c, 0, 1);
    raft_index entry = raft_last_index(raft_cluster_raft(c, 0)) + 1;
    assert_int_equal(raft_cluster_put(c, 0, 333), 0);
    raft_cluster_run(c, 500);
    assert_true(raft_cluster_raft(c, 0)->commit_index >= entry);
    raft_cluster_isolate(c, 0);
    raft_cluster_depose(c, 0);
    raft_cluster_join(c, 1, 2);
    raft_cluster_elect(c, 1);
    assert_int_equal(raft_cluster_put(c, 1, 444), 0);
    raft_cluster_run(c, 500);
    assert_true(raft_cluster_raft(c, 1)->commit_index > entry);
    bool agrees = raft_cluster_agrees(c);
    close_cluster(c);
    return agrees;
}

static void libraft_alone_takes_old_entries_for_its_own(void **state)
{
    (void)state;
    assert_false(longer_log(true));
}

static void guarded_a_follower_answers_what_it_was_asked(void **state)
{
    (void)state;
    assert_true(longer_log(false));
}

/* --- a disk that fails ------------------------------------------------------------------------------ */

static bool failed_write(bool guard_off)
{
    struct cluster *c = open_cluster(3, guard_off);
    raft_cluster_elect(c, 0);
    raft_cluster_run(c, 300);
    assert_int_equal(raft_cluster_put(c, 0, 1), 0);
    raft_cluster_run(c, 300);
    /* The followers store the entry; the leader's own write hangs, then fails. */
    c->nodes[0].hold_appends = true;
    assert_int_equal(raft_cluster_put(c, 0, 111), 0);
    raft_cluster_run(c, 100);
    raft_cluster_appends_finish(c, 0, RAFT_NOSPACE);
    assert_int_equal(c->nodes[0].failed, !guard_off);
    int rv = raft_cluster_put(c, 0, 222);
    if (guard_off) {
        assert_int_equal(rv, 0);
        assert_int_equal(raft_cluster_raft(c, 0)->state, RAFT_LEADER);
        raft_cluster_run(c, 2000);
        assert_int_equal(raft_cluster_put(c, 0, 333), 0);
    } else {
        assert_int_not_equal(rv, 0);
        assert_false(guard_leads(c->nodes[0].guard));
        assert_non_null(strstr(c->nodes[0].failure.msg, "write to the log"));
        raft_cluster_elect(c, 1);
        raft_cluster_run(c, 300);
        assert_int_equal(raft_cluster_put(c, 1, 333), 0);
    }
    raft_cluster_run(c, 2000);
    bool agrees = raft_cluster_agrees(c);
    close_cluster(c);
    return agrees;
}

static void libraft_alone_uses_the_index_of_a_lost_write_again(void **state)
{
    (void)state;
    assert_false(failed_write(true));
}

static void guarded_a_failed_write_ends_it(void **state)
{
    (void)state;
    assert_true(failed_write(false));
}

/* libraft alone would not live through this. */
static void writes_that_fail_together_end_it_once(void **state)
{
    (void)state;
    for (int status = 0; status < 2; status++) {
        struct cluster *c = open_cluster(3, false);
        raft_cluster_elect(c, 0);
        raft_cluster_run(c, 300);
        c->nodes[0].hold_appends = true;
        for (uint64_t n = 1; n <= 3; n++)
            assert_int_equal(raft_cluster_put(c, 0, n), 0);
        assert_int_equal(c->nodes[0].held_count, 3);
        if (status == 1) {
            raft_cluster_appends_finish(c, 0, RAFT_NOSPACE);
            assert_true(c->nodes[0].failed);
            raft_cluster_run(c, 300);
        }
        close_cluster(c); /* which cancels what is held */
    }
}

/* What it wrote as a leader is not stored yet when another leader has it cut its log, and it is closed then. */
static void writes_of_a_former_leader_end_after_its_log_was_cut(void **state)
{
    (void)state;
    struct cluster *c = open_cluster(3, false);
    raft_cluster_elect(c, 0);
    raft_cluster_run(c, 300);
    raft_cluster_isolate(c, 0);
    c->nodes[0].hold_appends = true;
    for (uint64_t n = 1; n <= 4; n++)
        assert_int_equal(raft_cluster_put(c, 0, n), 0);
    raft_index written = raft_last_index(raft_cluster_raft(c, 0));
    raft_cluster_depose(c, 0);
    raft_cluster_elect(c, 1);
    raft_cluster_run(c, 300);
    raft_cluster_heal(c);
    raft_cluster_run(c, 500);
    assert_false(c->nodes[0].failed);
    assert_true(raft_last_index(raft_cluster_raft(c, 0)) < written);
    assert_true(c->nodes[0].held_count >= 4);
    close_cluster(c);
}

static int refuse_term(struct raft_io *io, raft_term term)
{
    (void)io;
    (void)term;
    return RAFT_IOERR;
}

static int refuse_vote(struct raft_io *io, raft_id id)
{
    (void)io;
    (void)id;
    return RAFT_IOERR;
}

static int refuse_truncate(struct raft_io *io, raft_index index)
{
    (void)io;
    (void)index;
    return RAFT_IOERR;
}

static void a_term_or_vote_that_cannot_be_stored_ends_it(void **state)
{
    (void)state;
    for (int which = 0; which < 2; which++) {
        struct cluster *c = open_cluster(3, false);
        if (which == 0)
            c->fixture.servers[2].io.set_term = refuse_term;
        else
            c->fixture.servers[2].io.set_vote = refuse_vote;
        raft_cluster_elect(c, 0);
        raft_cluster_run(c, 500);
        assert_true(c->nodes[2].failed);
        assert_non_null(strstr(c->nodes[2].failure.msg, which == 0 ? "term" : "vote"));
        assert_false(c->nodes[1].failed);
        close_cluster(c);
    }
}

static void a_log_that_cannot_be_truncated_ends_it(void **state)
{
    (void)state;
    struct cluster *c = open_cluster(3, false);
    raft_cluster_elect(c, 0);
    raft_cluster_run(c, 300);
    c->fixture.servers[0].io.truncate = refuse_truncate;
    raft_cluster_isolate(c, 0);
    assert_int_equal(raft_cluster_put(c, 0, 111), 0);
    raft_cluster_depose(c, 0);
    raft_cluster_elect(c, 1);
    raft_cluster_run(c, 300);
    assert_false(c->nodes[0].failed);
    raft_cluster_heal(c);
    raft_cluster_run(c, 2000);
    assert_true(c->nodes[0].failed);
    assert_non_null(strstr(c->nodes[0].failure.msg, "truncating"));
    close_cluster(c);
}

/* --- an append in flight ---------------------------------------------------------------------------- */

/* A follower with an append in flight and no leader. True if it campaigns. */
static bool campaigns_with_an_append_in_flight(bool guard_off)
{
    struct cluster *c = open_cluster(3, guard_off);
    raft_cluster_elect(c, 0);
    raft_cluster_run(c, 300);
    c->nodes[1].hold_appends = true;
    assert_int_equal(raft_cluster_put(c, 0, 111), 0);
    raft_cluster_run(c, 100);
    assert_int_equal(c->nodes[1].held_count, 1);
    raft_cluster_isolate(c, 0);
    raft_cluster_isolate(c, 1);
    raft_cluster_raft(c, 1)->follower_state.randomized_election_timeout = 1000;
    raft_cluster_run(c, 5000);
    bool campaigned = raft_cluster_raft(c, 1)->state != RAFT_FOLLOWER;
    if (!guard_off) {
        raft_cluster_appends_finish(c, 1, 0);
        raft_cluster_run(c, 3000);
        assert_int_not_equal(raft_cluster_raft(c, 1)->state, RAFT_FOLLOWER);
    }
    close_cluster(c);
    return campaigned;
}

static void a_follower_does_not_campaign_with_an_append_in_flight(void **state)
{
    (void)state;
    assert_true(campaigns_with_an_append_in_flight(true));
    assert_false(campaigns_with_an_append_in_flight(false));
}

static void a_vote_waits_for_the_append_in_flight(void **state)
{
    (void)state;
    struct cluster *c = open_cluster(3, false);
    raft_cluster_elect(c, 0);
    raft_cluster_run(c, 300);
    c->nodes[1].hold_appends = true;
    assert_int_equal(raft_cluster_put(c, 0, 111), 0);
    raft_cluster_run(c, 200);
    assert_int_equal(c->nodes[1].held_count, 1);
    raft_cluster_isolate(c, 0);
    /* 2 needs the vote of 1, which follows nobody and would give it. */
    for (unsigned i = 1; i < 3; i++) {
        raft_fixture_set_randomized_election_timeout(&c->fixture, i, i == 2 ? 1000 : 60000);
        raft_cluster_raft(c, i)->follower_state.randomized_election_timeout = i == 2 ? 1000 : 60000;
    }
    raft_cluster_raft(c, 1)->follower_state.current_leader.id = 0;
    raft_cluster_run(c, 5000);
    assert_int_equal(raft_cluster_raft(c, 2)->state, RAFT_CANDIDATE);
    raft_cluster_appends_finish(c, 1, 0);
    raft_cluster_run(c, 100);
    assert_int_equal(raft_cluster_raft(c, 2)->state, RAFT_LEADER);
    assert_true(raft_cluster_agrees(c));
    close_cluster(c);
}

/* --- an answer that comes under a later leader --------------------------------------------------------- */

static raft_index answered; /* the highest index that node 1 said to have */
static int (*inner_send)(struct raft_io *io, struct raft_io_send *req,
                         const struct raft_message *message, raft_io_send_cb cb);

static int send_noted(struct raft_io *io, struct raft_io_send *req,
                      const struct raft_message *message, raft_io_send_cb cb)
{
    if (message->type == RAFT_IO_APPEND_ENTRIES_RESULT &&
        message->append_entries_result.rejected == 0 &&
        message->append_entries_result.last_log_index > answered)
        answered = message->append_entries_result.last_log_index;
    return inner_send(io, req, message, cb);
}

/* 1 is storing an entry when it hears of another leader, in whose log there may be another one: libraft
 * would answer that one. */
static void what_an_older_leader_asked_is_not_answered_to_the_next(void **state)
{
    (void)state;
    for (int later = 0; later < 2; later++) {
        struct cluster *c = open_cluster(3, false);
        raft_cluster_elect(c, 0);
        raft_cluster_run(c, 300);
        inner_send = c->fixture.servers[1].io.send;
        c->fixture.servers[1].io.send = send_noted;
        c->nodes[1].hold_appends = true;
        answered = 0;
        assert_int_equal(raft_cluster_put(c, 0, 111), 0);
        raft_index entry = raft_last_index(raft_cluster_raft(c, 0));
        raft_cluster_run(c, 50);
        assert_true(c->nodes[1].held_count > 0);
        raft_cluster_raft(c, 1)->current_term += (raft_term)later;
        raft_cluster_appends_finish(c, 1, 0);
        assert_int_equal(answered, later == 0 ? entry : 0);
        raft_cluster_raft(c, 1)->current_term -= (raft_term)later;
        close_cluster(c);
    }
}

/* --- leadership ------------------------------------------------------------------------------------- */

static void a_leader_leads_once_its_barrier_is_committed(void **state)
{
    (void)state;
    struct cluster *c = open_cluster(3, false);
    raft_cluster_elect(c, 0);
    struct raft *raft = raft_cluster_raft(c, 0);
    assert_false(guard_leads(c->nodes[0].guard));
    raft_index barrier = raft_last_index(raft);
    while (raft->commit_index < barrier)
        raft_cluster_step(c);
    assert_true(guard_leads(c->nodes[0].guard));
    raft_cluster_isolate(c, 0);
    raft_cluster_depose(c, 0);
    assert_false(guard_leads(c->nodes[0].guard));
    close_cluster(c);
}

/* The leader's disk takes longer than the others' answers, but not than an election. */
static void old_entries_are_not_counted_before_the_barrier_is_stored(void **state)
{
    (void)state;
    for (int off = 0; off < 2; off++) {
        struct cluster *c = open_cluster(3, off == 1);
        raft_cluster_elect(c, 0);
        raft_cluster_run(c, 300);
        raft_cluster_isolate(c, 0);
        assert_int_equal(raft_cluster_put(c, 0, 111), 0);
        raft_index entry = raft_last_index(raft_cluster_raft(c, 0));
        raft_cluster_depose(c, 0);
        raft_fixture_set_disk_latency(&c->fixture, 0, 400);
        raft_cluster_heal(c);
        raft_cluster_elect(c, 0);
        struct raft *raft = raft_cluster_raft(c, 0);
        raft_cluster_run(c, 300);
        assert_true(raft_cluster_raft(c, 1)->last_stored >= entry);
        assert_int_equal(raft->commit_index >= entry, off);
        if (off == 0) {
            /* What waited is not lost: no time passes but that of the disk. */
            raft_cluster_run(c, 150);
            assert_true(raft->commit_index > entry);
            assert_true(guard_leads(c->nodes[0].guard));
        }
        close_cluster(c);
    }
}

/* Else what it loses of a term, and others have of it, passes for what it appends after a restart. */
static void a_lone_voter_leads_a_term_of_its_own(void **state)
{
    (void)state;
    for (int off = 0; off < 2; off++) {
        struct cluster *c = open_cluster(1, off == 1);
        raft_cluster_run(c, 500);
        const struct raft *raft = raft_cluster_raft(c, 0);
        assert_int_equal(raft->state, RAFT_LEADER);
        assert_int_equal(raft->current_term, off == 1 ? 1 : 2);
        assert_int_equal(raft->voted_for, off == 1 ? 0 : raft->id);
        assert_true(guard_leads(c->nodes[0].guard));
        /* And no other one later. */
        raft_cluster_run(c, 5000);
        assert_int_equal(raft->current_term, off == 1 ? 1 : 2);
        close_cluster(c);
    }
}

static void noted(struct raft_change *change, int status)
{
    *(int *)change->data = status;
}

static void a_change_of_members_leaves_once_it_is_stored(void **state)
{
    (void)state;
    for (int off = 0; off < 2; off++) {
        struct cluster *c = open_cluster(3, off == 1);
        int status = -1;
        struct raft_change change = {.data = &status};
        raft_cluster_elect(c, 0);
        raft_cluster_run(c, 300);
        c->nodes[0].hold_appends = true;
        struct raft *raft = raft_cluster_raft(c, 0);
        assert_int_equal(raft_assign(raft, &change, 3, RAFT_STANDBY, noted), 0);
        raft_index entry = raft_last_index(raft);
        raft_cluster_run(c, 300);
        assert_int_equal(raft_last_index(raft_cluster_raft(c, 1)) >= entry, off);
        raft_cluster_appends_finish(c, 0, 0);
        raft_cluster_run(c, 500);
        assert_true(raft_cluster_raft(c, 1)->last_stored >= entry);
        assert_int_equal(status, 0);
        close_cluster(c);
    }
}

/* 1 is gone. 2 has the later term, from when it campaigned and nobody heard, and the shorter log. */
static void a_later_term_is_told_to_who_asks_for_a_pre_vote(void **state)
{
    (void)state;
    for (int off = 0; off < 2; off++) {
        struct cluster *c = open_cluster(3, off == 1);
        for (unsigned i = 0; i < 3; i++)
            raft_set_pre_vote(raft_cluster_raft(c, i), true);
        raft_cluster_elect(c, 0);
        raft_cluster_run(c, 300);
        raft_cluster_isolate(c, 2);
        assert_int_equal(raft_cluster_put(c, 0, 111), 0);
        raft_cluster_run(c, 300);
        raft_cluster_isolate(c, 1);
        raft_cluster_depose(c, 0);
        for (unsigned i = 0; i < 3; i++) {
            raft_fixture_set_randomized_election_timeout(&c->fixture, i, 1000 + 300 * i);
            struct raft *r = raft_cluster_raft(c, i);
            if (r->state == RAFT_FOLLOWER)
                r->follower_state.randomized_election_timeout = 1000 + 300 * i;
            else
                r->candidate_state.randomized_election_timeout = 1000 + 300 * i;
        }
        raft_cluster_raft(c, 2)->current_term += 10;
        raft_cluster_join(c, 0, 2);
        raft_cluster_run(c, 20000);
        assert_int_equal(raft_cluster_raft(c, 0)->state == RAFT_LEADER, off == 0);
        close_cluster(c);
    }
}

/* libraft alone puts the first entries behind the last ones, finds none where they belong, and cuts its log in
 * front of its beginning. */
static void entries_that_a_snapshot_replaced_are_left_out(void **state)
{
    (void)state;
    struct cluster *c = open_cluster(3, false);
    struct raft *follower = raft_cluster_raft(c, 2);
    raft_set_snapshot_threshold(follower, 4);
    raft_set_snapshot_trailing(follower, 1);
    c->nodes[2].snapshots = true;
    raft_cluster_elect(c, 0);
    for (uint64_t n = 1; n <= 6; n++) {
        assert_int_equal(raft_cluster_put(c, 0, n), 0);
        raft_cluster_run(c, 200);
    }
    c->nodes[2].snapshots = false;
    assert_int_equal(raft_cluster_put(c, 0, 7), 0);
    raft_cluster_run(c, 200);
    raft_index snapshot = follower->log.snapshot.last_index;
    assert_true(snapshot >= 4 && follower->log.offset > 0);
    assert_true(raft_last_index(follower) > snapshot);
    /* It has all of it; then it lacks the last ones. */
    raft_cluster_send_all(c, 0, 2);
    raft_cluster_run(c, 200);
    raft_cluster_isolate(c, 2);
    assert_int_equal(raft_cluster_put(c, 0, 8), 0);
    raft_cluster_run(c, 100);
    raft_index last = raft_last_index(raft_cluster_raft(c, 0));
    assert_int_equal(raft_last_index(follower), last - 1);
    raft_cluster_send_all(c, 0, 2);
    assert_int_equal(raft_last_index(follower), last);
    raft_cluster_heal(c);
    raft_cluster_run(c, 500);
    assert_false(c->nodes[2].failed);
    assert_int_equal(follower->last_applied, last);
    assert_true(raft_cluster_agrees(c));
    close_cluster(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(libraft_alone_commits_what_is_overwritten),
        cmocka_unit_test(guarded_nothing_committed_is_overwritten),
        cmocka_unit_test(libraft_alone_takes_old_entries_for_its_own),
        cmocka_unit_test(guarded_a_follower_answers_what_it_was_asked),
        cmocka_unit_test(what_an_older_leader_asked_is_not_answered_to_the_next),
        cmocka_unit_test(libraft_alone_uses_the_index_of_a_lost_write_again),
        cmocka_unit_test(guarded_a_failed_write_ends_it),
        cmocka_unit_test(writes_that_fail_together_end_it_once),
        cmocka_unit_test(writes_of_a_former_leader_end_after_its_log_was_cut),
        cmocka_unit_test(a_term_or_vote_that_cannot_be_stored_ends_it),
        cmocka_unit_test(a_log_that_cannot_be_truncated_ends_it),
        cmocka_unit_test(a_follower_does_not_campaign_with_an_append_in_flight),
        cmocka_unit_test(a_vote_waits_for_the_append_in_flight),
        cmocka_unit_test(a_leader_leads_once_its_barrier_is_committed),
        cmocka_unit_test(old_entries_are_not_counted_before_the_barrier_is_stored),
        cmocka_unit_test(a_lone_voter_leads_a_term_of_its_own),
        cmocka_unit_test(a_later_term_is_told_to_who_asks_for_a_pre_vote),
        cmocka_unit_test(a_change_of_members_leaves_once_it_is_stored),
        cmocka_unit_test(entries_that_a_snapshot_replaced_are_left_out),
    };
    return cmocka_run_group_tests_name("guard", tests, NULL, NULL);
}
