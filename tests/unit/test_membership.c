/* What is left of a change of members that is taken back, and who votes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "raft/membership.h"

enum { ENTRIES = 3, RING = 8 };

/* A log of three entries of term 1: members at 1, a command, members at 3. */
struct fixture {
    struct membership m;
    struct raft raft;
    struct raft_io io;
    struct raft_entry ring[RING];
};

static raft_time the_time(struct raft_io *io)
{
    (void)io;
    return 10000;
}

/* Servers 1 and 2 vote, 3 has that role. */
static struct raft_buffer members(int role_of_3)
{
    struct raft_configuration c;
    struct raft_buffer encoded;
    raft_configuration_init(&c);
    assert_int_equal(raft_configuration_add(&c, 1, "1", RAFT_VOTER), 0);
    assert_int_equal(raft_configuration_add(&c, 2, "2", RAFT_VOTER), 0);
    assert_int_equal(raft_configuration_add(&c, 3, "3", role_of_3), 0);
    assert_int_equal(raft_configuration_encode(&c, &encoded), 0);
    raft_configuration_close(&c);
    return encoded;
}

static void open_fixture(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    membership_init(&f->m);
    f->ring[0] = (struct raft_entry){.term = 1, .type = RAFT_CHANGE, .buf = members(RAFT_STANDBY)};
    f->ring[1] = (struct raft_entry){.term = 1, .type = RAFT_COMMAND};
    f->ring[2] = (struct raft_entry){.term = 1, .type = RAFT_CHANGE, .buf = members(RAFT_VOTER)};
    f->raft.id = 3;
    f->raft.state = RAFT_FOLLOWER;
    f->raft.current_term = 1;
    f->raft.commit_index = 1;
    f->raft.election_timeout = 200;
    f->raft.io = &f->io;
    f->io.time = the_time;
    f->raft.log = (struct raft_log){.entries = f->ring, .size = RING, .back = ENTRIES};
    /* As libraft leaves it after a start. */
    f->raft.configuration_index = 3;
    raft_configuration_init(&f->raft.configuration);
    for (raft_id id = 1; id <= 3; id++) {
        const char address[2] = {(char)('0' + (char)id), 0};
        assert_int_equal(raft_configuration_add(&f->raft.configuration, id, address, RAFT_VOTER),
                         0);
    }
    assert_int_equal(membership_loaded(&f->m, NULL, 1, f->ring, ENTRIES), 0);
}

static void close_fixture(struct fixture *f)
{
    raft_free(f->ring[0].buf.base);
    raft_free(f->ring[2].buf.base);
    raft_configuration_close(&f->raft.configuration);
    membership_close(&f->m);
}

static void a_change_that_was_loaded_is_not_committed_yet(void **state)
{
    struct fixture f;
    (void)state;
    open_fixture(&f);
    membership_started(&f.m, &f.raft);
    assert_int_equal(f.raft.configuration_uncommitted_index, 3);
    assert_int_equal(f.raft.configuration_index, 1);
    close_fixture(&f);
    open_fixture(&f);
    f.raft.commit_index = 3; /* a snapshot holds it */
    membership_started(&f.m, &f.raft);
    assert_int_equal(f.raft.configuration_uncommitted_index, 0);
    assert_int_equal(f.raft.configuration_index, 3);
    close_fixture(&f);
}

static int come(struct fixture *f, raft_term term, raft_index behind, raft_term entry_term)
{
    struct raft_entry entry = {.term = entry_term, .type = RAFT_BARRIER};
    const struct raft_append_entries append = {.term = term,
                                               .prev_log_index = behind,
                                               .prev_log_term = 1,
                                               .entries = &entry,
                                               .n_entries = 1};
    return membership_append_comes(&f->m, &f->raft, &append);
}

static void a_change_that_is_taken_back_leaves_the_members_before_it(void **state)
{
    struct fixture f;
    (void)state;
    for (int compacted = 0; compacted < 2; compacted++) {
        open_fixture(&f);
        membership_started(&f.m, &f.raft);
        if (compacted == 1) {
            /* A snapshot at 2 has removed what is in front of it. */
            f.raft.log.front = f.raft.log.offset = 1;
            f.raft.log.snapshot.last_index = 2;
            f.raft.log.snapshot.last_term = 1;
        }
        assert_int_equal(come(&f, 2, 2, 2), 0);
        assert_int_equal(f.raft.configuration_uncommitted_index, 0);
        assert_int_equal(f.raft.configuration.n, 3);
        assert_int_equal(f.raft.configuration.servers[2].role, RAFT_STANDBY);
        assert_string_equal(f.raft.configuration.servers[2].address, "3");
        close_fixture(&f);
    }
}

static void an_append_that_takes_nothing_back_changes_nothing(void **state)
{
    struct fixture f;
    (void)state;
    open_fixture(&f);
    membership_started(&f.m, &f.raft);
    f.raft.current_term = 2;
    assert_int_equal(come(&f, 1, 2, 9), 0); /* of an older leader */
    assert_int_equal(come(&f, 2, 2, 1), 0); /* the same entry */
    assert_int_equal(come(&f, 2, 3, 2), 0); /* behind it */
    f.raft.snapshot.put.data = &f;          /* a snapshot is being installed */
    assert_int_equal(come(&f, 2, 2, 2), 0);
    assert_int_equal(f.raft.configuration_uncommitted_index, 3);
    assert_int_equal(f.raft.configuration.servers[2].role, RAFT_VOTER);
    close_fixture(&f);
}

static void bytes_that_are_no_members_are_refused(void **state)
{
    struct fixture f;
    (void)state;
    open_fixture(&f);
    membership_close(&f.m);
    membership_init(&f.m);
    size_t length = f.ring[0].buf.len;
    for (size_t cut = 0; cut < 30; cut++) {
        f.ring[0].buf.len = cut;
        assert_int_not_equal(membership_loaded(&f.m, NULL, 1, f.ring, ENTRIES), 0);
    }
    f.ring[0].buf.len = length;
    assert_int_equal(membership_loaded(&f.m, NULL, 1, f.ring, ENTRIES), 0);
    close_fixture(&f);
}

static void a_change_behind_an_installed_snapshot_is_over(void **state)
{
    struct fixture f;
    (void)state;
    open_fixture(&f);
    membership_started(&f.m, &f.raft);
    f.raft.log.snapshot.last_index = 2;
    membership_installed(&f.raft);
    assert_int_equal(f.raft.configuration_uncommitted_index, 3);
    f.raft.log.snapshot.last_index = 50;
    membership_installed(&f.raft);
    assert_int_equal(f.raft.configuration_uncommitted_index, 0);
    close_fixture(&f);
}

static void who_is_no_voter_votes_once_it_hears_of_no_leader(void **state)
{
    struct fixture f;
    (void)state;
    open_fixture(&f);
    struct raft_server *own = &f.raft.configuration.servers[2];
    own->role = RAFT_SPARE;
    f.raft.follower_state.current_leader.id = 1;
    f.raft.election_timer_start = 9900;
    int role = membership_vote_begin(&f.raft);
    assert_int_equal(own->role, RAFT_VOTER);
    assert_int_equal(f.raft.follower_state.current_leader.id, 1);
    membership_vote_end(&f.raft, role);
    assert_int_equal(own->role, RAFT_SPARE);
    f.raft.election_timer_start = 9800;
    membership_vote_end(&f.raft, membership_vote_begin(&f.raft));
    assert_int_equal(f.raft.follower_state.current_leader.id, 0);
    assert_int_equal(own->role, RAFT_SPARE);
    /* A voter forgets its leader by campaigning, as ever. */
    own->role = RAFT_VOTER;
    f.raft.follower_state.current_leader.id = 1;
    membership_vote_end(&f.raft, membership_vote_begin(&f.raft));
    assert_int_equal(f.raft.follower_state.current_leader.id, 1);
    assert_int_equal(own->role, RAFT_VOTER);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_change_that_was_loaded_is_not_committed_yet),
        cmocka_unit_test(a_change_that_is_taken_back_leaves_the_members_before_it),
        cmocka_unit_test(an_append_that_takes_nothing_back_changes_nothing),
        cmocka_unit_test(bytes_that_are_no_members_are_refused),
        cmocka_unit_test(a_change_behind_an_installed_snapshot_is_over),
        cmocka_unit_test(who_is_no_voter_votes_once_it_hears_of_no_leader),
    };
    return cmocka_run_group_tests_name("membership", tests, NULL, NULL);
}
