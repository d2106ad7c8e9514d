/* Registries of several nodes: real disks, real streams, one loop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "raft/replica.h"
#include "tests/lib/registry_help.h"
#include "tests/lib/registry_many.h"

static int open_three(void **state)
{
    struct many *m = calloc(1, sizeof *m);
    assert_non_null(m);
    many_open(m, 3);
    *state = m;
    return 0;
}

static int open_five(void **state)
{
    struct many *m = calloc(1, sizeof *m);
    assert_non_null(m);
    many_open(m, 5);
    *state = m;
    return 0;
}

static int close_all(void **state)
{
    many_close(*state);
    free(*state);
    return 0;
}

struct wanted {
    node_id at, of;
    enum registry_role role;
    const char *name;
};

static bool has_role(struct many *m, void *user)
{
    const struct wanted *w = user;
    return many_role(m, w->at, w->of) == w->role;
}

static bool has_name(struct many *m, void *user)
{
    const struct wanted *w = user;
    return many_has(m, w->at, w->name);
}

static void a_write_at_any_node_is_everywhere_and_first_where_it_was_made(void **state)
{
    struct many *m = *state;
    many_form(m, 3);
    for (node_id id = 1; id <= 3; id++) {
        char name[16];
        text_format(name, sizeof name, "at-%llu", (unsigned long long)id);
        struct registry_result r = many_put(m, id, name);
        assert_int_equal(r.problem, PROBLEM_NONE);
        assert_int_equal(r.version, 1);
        /* Whoever was answered finds it in the root of the node that answered. */
        assert_true(many_has(m, id, name));
        for (node_id at = 1; at <= 3; at++) {
            struct wanted w = {.at = at, .name = name};
            many_run_until(m, has_name, &w);
        }
    }
}

static void a_refusal_reaches_the_node_that_asked(void **state)
{
    struct many *m = *state;
    many_form(m, 3);
    struct registry_command c = {.kind = REGISTRY_WORKLOAD_REMOVE, .name = "nobody"};
    struct many_answer a = {0};
    struct err e;
    node_id at = many_follower(m);
    assert_int_equal(registry_propose(m->nodes[at].registry, &c, many_answered, &a, &e), 0);
    struct registry_result r = many_wait(m, &a);
    assert_int_equal(r.problem, PROBLEM_WORKLOAD_UNKNOWN);
    assert_true(strlen(r.detail) > 0);
}

static void another_leads_soon_after_the_leader_stopped(void **state)
{
    struct many *m = *state;
    many_form(m, 3);
    node_id first = many_leader(m), other = many_follower(m);
    many_put(m, other, "before");
    uint64_t from = clock_monotonic_ms();
    many_stop(m, first);
    many_put(m, other, "after");
    uint64_t took = clock_monotonic_ms() - from;
    print_message("a write after the leader stopped: %llu ms\n", (unsigned long long)took);
    assert_true(many_leader(m) != first);
    many_start(m, first);
    struct wanted w = {.at = first, .name = "after"};
    many_run_until(m, has_name, &w);
}

/* Its streams end with it, and that is enough: nobody waits for an election's timeout. The best of some, as
 * another program may have the machine for so long. */
static void a_leader_that_ends_is_followed_at_once(void **state)
{
    struct many *m = *state;
    uint64_t best_ms = UINT64_MAX;
    many_form(m, 3);
    for (unsigned round = 0; round < 10 && best_ms >= REPLICA_ELECTION_TIMEOUT_MS; round++) {
        node_id leader = many_leader(m), other = many_follower(m);
        many_put(m, other, "before");
        many_stop(m, leader);
        uint64_t begun_ms = clock_monotonic_ms();
        many_put(m, other, "after");
        uint64_t taken_ms = clock_monotonic_ms() - begun_ms;
        best_ms = taken_ms < best_ms ? taken_ms : best_ms;
        many_start(m, leader);
        many_leader(m);
        many_read(m, leader);
    }
    if (best_ms >= REPLICA_ELECTION_TIMEOUT_MS)
        fail_msg("%llu ms", (unsigned long long)best_ms);
}

static void each_may_restart_and_nothing_is_lost(void **state)
{
    struct many *m = *state;
    many_form(m, 3);
    for (node_id id = 1; id <= 3; id++) {
        char name[16];
        text_format(name, sizeof name, "round-%llu", (unsigned long long)id);
        many_put(m, id, name);
        many_stop(m, id);
        many_leader(m);
        many_start(m, id);
        many_leader(m);
    }
    for (node_id id = 1; id <= 3; id++) {
        many_read(m, id);
        assert_true(many_has(m, id, "round-1"));
        assert_true(many_has(m, id, "round-2"));
        assert_true(many_has(m, id, "round-3"));
    }
}

static void without_a_majority_nothing_is_promised(void **state)
{
    struct many *m = *state;
    m->propose_timeout_ms = 700;
    many_form(m, 3);
    node_id leader = many_leader(m);
    m->roles = false;
    for (node_id id = 1; id <= 3; id++)
        if (id != leader)
            many_stop(m, id);
    /* The leader does not know yet: it has tried, and cannot tell. */
    struct many_answer a;
    many_deploy(m, leader, "maybe", &a);
    many_run_for(m, 1000);
    assert_true(a.done && a.error);
    assert_int_equal(a.err.code, ERR_TIMEOUT);
    /* Now it does: it does not even try. */
    assert_false(m->nodes[leader].leader);
    many_deploy(m, leader, "no", &a);
    many_run_for(m, 1000);
    assert_true(a.done && a.error);
    assert_int_equal(a.err.code, ERR_UNAVAILABLE);
}

static void what_nobody_heard_of_was_not_made(void **state)
{
    struct many *m = *state;
    m->propose_timeout_ms = 700;
    many_form(m, 3);
    node_id follower = many_follower(m);
    m->unsent = true;
    m->nodes[follower].cut = true;
    /* Its time is over while the question still waits for a way to the leader. */
    struct many_answer a;
    many_deploy(m, follower, "no", &a);
    many_run_for(m, 2000);
    assert_true(a.done && a.error);
    assert_int_equal(a.err.code, ERR_UNAVAILABLE);
    /* And while it is not known whether it was heard, nothing is said that may be wrong. */
    m->unsent = false;
    many_deploy(m, follower, "maybe", &a);
    many_run_for(m, 2000);
    assert_true(a.done && a.error);
    assert_int_equal(a.err.code, ERR_TIMEOUT);
    m->nodes[follower].cut = false;
}

static void a_strong_read_is_never_stale(void **state)
{
    struct many *m = *state;
    many_form(m, 3);
    for (unsigned i = 0; i < 20; i++) {
        char name[16];
        text_format(name, sizeof name, "read-%u", i);
        many_put(m, i % 3 + 1, name);
        node_id at = (i + 1) % 3 + 1;
        many_read(m, at);
        assert_true(many_has(m, at, name));
    }
}

static void reads_of_one_moment_share_a_question(void **state)
{
    struct many *m = *state;
    struct many_answer a[50] = {0};
    struct err e;
    many_form(m, 3);
    node_id at = many_follower(m);
    many_read(m, at);
    unsigned asked = m->asked;
    for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
        assert_int_equal(registry_read(m->nodes[at].registry, many_read_done, &a[i], &e), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
        many_wait(m, &a[i]);
    assert_int_equal(m->asked - asked, 1);
}

static void a_barrier_is_the_leaders_alone(void **state)
{
    struct many *m = *state;
    struct many_answer a = {0};
    struct err e;
    many_form(m, 3);
    node_id leader = many_leader(m), other = many_follower(m);
    assert_int_equal(registry_barrier(m->nodes[other].registry, many_read_done, &a, &e),
                     -ERR_CONFLICT);
    assert_int_equal(registry_barrier(m->nodes[leader].registry, many_read_done, &a, &e), 0);
    many_wait(m, &a);
    /* Asked before it knows that the others are gone: it must not be told that it leads. */
    m->roles = false;
    for (node_id id = 1; id <= 3; id++)
        if (id != leader)
            many_stop(m, id);
    a = (struct many_answer){0};
    assert_int_equal(registry_barrier(m->nodes[leader].registry, many_read_done, &a, &e), 0);
    many_run_for(m, 1500);
    assert_true(a.done && a.error);
    assert_int_equal(a.err.code, ERR_CONFLICT);
}

static void many_in_flight_at_a_follower_share_questions(void **state)
{
    struct many *m = *state;
    enum { N = 320 };
    struct many_answer *a = calloc(N, sizeof *a);
    many_form(m, 3);
    node_id at = many_follower(m);
    unsigned asked = m->asked;
    for (unsigned i = 0; i < N; i++) {
        char name[16];
        text_format(name, sizeof name, "w-%u", i);
        many_deploy(m, at, name, &a[i]);
    }
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(many_wait(m, &a[i]).version, 1);
    assert_true(m->asked - asked <= 16);
    free(a);
}

static void an_answer_that_was_lost_is_given_again_and_nothing_done_twice(void **state)
{
    struct many *m = *state;
    struct many_answer a = {0};
    struct err e;
    many_form(m, 3);
    node_id at = many_follower(m), leader = many_leader(m);
    /* A rollback twice would be a version more. */
    many_put(m, at, "twice");
    m->lose_answers = true;
    char *json = help_workload_json("twice", "scale: {max: 3}\n");
    struct registry_command c = {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = json};
    assert_int_equal(registry_propose(m->nodes[at].registry, &c, many_answered, &a, &e), 0);
    free(json);
    /* While nobody answers, another takes over: what was asked of the old leader is asked of it. */
    many_stop(m, leader);
    m->lose_answers = false;
    assert_int_equal(many_wait(m, &a).version, 2);
    many_read(m, at);
    struct registry_root *root = registry_root(m->nodes[at].registry);
    assert_int_equal(registry_root_workload(root, "twice", 5)->version, 2);
    registry_root_release(root);
}

static bool has_snapshot(struct many *m, void *user)
{
    struct registry_status s;
    (void)user;
    registry_status(m->nodes[1].registry, &s);
    return s.snapshot_index > 100;
}

static void a_late_joiner_gets_a_snapshot(void **state)
{
    struct many *m = *state;
    m->snapshot_threshold = 100;
    m->snapshot_trailing = 10;
    m->wanted.voters = 3;
    m->roles = true;
    many_start(m, 1);
    many_leader(m);
    enum { N = 400 };
    struct many_answer *a = calloc(N, sizeof *a);
    for (unsigned i = 0; i < N; i++) {
        char name[16];
        text_format(name, sizeof name, "w-%u", i);
        many_deploy(m, 1, name, &a[i]);
    }
    for (unsigned i = 0; i < N; i++)
        many_wait(m, &a[i]);
    free(a);
    many_run_until(m, has_snapshot, NULL);
    many_start(m, 2);
    struct wanted w = {.at = 2, .name = "w-399"};
    many_run_until(m, has_name, &w);
    assert_true(many_has(m, 2, "w-0"));
    /* Two nodes are one voter and one that stands by. */
    many_run_for(m, 1500);
    assert_int_equal(many_role(m, 1, 1), REGISTRY_ROLE_VOTER);
    assert_int_equal(many_role(m, 1, 2), REGISTRY_ROLE_STANDBY);
    /* It writes and reads all the same. */
    many_put(m, 2, "by-a-standby");
    many_read(m, 2);
    many_stop(m, 2);
    many_start(m, 2);
    many_put(m, 2, "after-a-restart");
    assert_true(many_has(m, 2, "w-0"));
}

static void a_dead_voter_is_replaced_and_stands_by_when_it_returns(void **state)
{
    struct many *m = *state;
    many_form(m, 3);
    many_start(m, 4);
    struct wanted w = {.at = many_leader(m), .of = 4, .role = REGISTRY_ROLE_STANDBY};
    many_run_until(m, has_role, &w);
    node_id dead = many_follower(m);
    assert_true(dead != 4);
    many_stop(m, dead);
    w.role = REGISTRY_ROLE_VOTER;
    many_run_until(m, has_role, &w);
    assert_int_not_equal(many_role(m, w.at, dead), REGISTRY_ROLE_VOTER);
    many_put(m, 4, "with-three");
    many_start(m, dead);
    w = (struct wanted){.at = w.at, .of = dead, .role = REGISTRY_ROLE_STANDBY};
    many_run_until(m, has_role, &w);
    w = (struct wanted){.at = dead, .name = "with-three"};
    many_run_until(m, has_name, &w);
}

static bool has_no_streams_of_three(struct many *m, void *user)
{
    (void)user;
    for (node_id id = 1; id <= 2; id++) {
        struct registry_status s;
        registry_status(m->nodes[id].registry, &s);
        if (s.streams > 2)
            return false;
    }
    return true;
}

static void a_node_that_was_removed_leaves_and_is_heard_no_more(void **state)
{
    struct many *m = *state;
    many_form(m, 3);
    node_id leader = many_leader(m);
    m->nodes[3].removed = true;
    /* Nobody believes its key: its streams close, though its own side asks again and again. */
    many_run_until(m, has_no_streams_of_three, NULL);
    node_id one = leader == 3 ? many_leader(m) : leader;
    many_put(m, one == 1 ? 2 : 1, "without-it");
    many_run_for(m, 500);
    assert_false(many_has(m, 3, "without-it"));
}

static void propose(struct many *m, const struct registry_command *c)
{
    struct many_answer a = {0};
    struct err e = {0};
    if (registry_propose(m->nodes[many_leader(m)].registry, c, many_answered, &a, &e) < 0)
        fail_msg("%s", e.msg);
    assert_int_equal(many_wait(m, &a).problem, PROBLEM_NONE);
}

static void who_is_removed_from_the_registry_leaves_raft(void **state)
{
    struct many *m = *state;
    uint8_t key[REGISTRY_GOSSIP_KEY_BYTES] = {1};
    many_form(m, 3);
    for (unsigned i = 1; i <= 3; i++) {
        struct registry_node n = {0};
        text_format(n.name, sizeof n.name, "node%u", i);
        memset(n.public_key, (int)i, sizeof n.public_key);
        propose(m, &(struct registry_command){.kind = REGISTRY_NODE_PUT, .node = &n});
    }
    /* The leader itself: it hands over, and the next one lets it go. Two nodes are one voter then. */
    node_id gone = many_leader(m);
    struct registry_node n = {.id = gone};
    propose(
        m, &(struct registry_command){.kind = REGISTRY_NODE_REMOVE, .node = &n, .gossip_key = key});
    struct wanted w = {.at = gone == 1 ? 2 : 1, .of = gone, .role = REGISTRY_ROLE_NONE};
    many_run_until(m, has_role, &w);
    m->nodes[gone].removed = true;
    many_stop(m, gone);
    node_id leader = many_leader(m);
    w = (struct wanted){.at = leader, .of = 6 - gone - leader, .role = REGISTRY_ROLE_STANDBY};
    many_run_until(m, has_role, &w);
    many_put(m, w.of, "by-the-other");
}

static void an_unknown_key_is_no_member(void **state)
{
    struct many *m = *state;
    many_form(m, 3);
    node_id at = many_follower(m);
    many_stop(m, at);
    m->nodes[at].stranger = true;
    many_start(m, at);
    for (node_id id = 1; id <= 3; id++)
        m->nodes[id].streams = 0;
    many_put(m, at == 1 ? 2 : 1, "not-for-strangers");
    many_run_for(m, 500);
    /* Nobody opened a stream to it, and nobody took one of it. */
    assert_int_equal(m->nodes[at].streams, 0);
    for (node_id id = 1; id <= 3; id++)
        assert_true(m->nodes[id].streams == 0);
    assert_false(many_has(m, at, "not-for-strangers"));
}

static void leadership_is_handed_over(void **state)
{
    struct many *m = *state;
    struct many_answer a = {0};
    struct err e = {0};
    many_form(m, 3);
    node_id leader = many_leader(m), other = many_follower(m);
    assert_int_equal(registry_transfer(m->nodes[other].registry, 0, many_read_done, &a, &e),
                     -ERR_CONFLICT);
    assert_int_equal(registry_transfer(m->nodes[leader].registry, 9, many_read_done, &a, &e),
                     -ERR_INVALID);
    assert_int_equal(registry_transfer(m->nodes[leader].registry, other, many_read_done, &a, &e),
                     0);
    many_wait(m, &a);
    assert_int_equal(many_leader(m), other);
    /* Proposals that wait at the old leader go to the new one. */
    struct many_answer b;
    a = (struct many_answer){0};
    assert_int_equal(registry_transfer(m->nodes[other].registry, 0, many_read_done, &a, &e), 0);
    uint64_t from = clock_monotonic_ms();
    many_deploy(m, other, "while-handing-over", &b);
    many_wait(m, &b);
    print_message("a write while leadership is handed over: %llu ms\n",
                  (unsigned long long)(clock_monotonic_ms() - from));
    assert_true(a.done);
}

static bool last_are_voters(struct many *m, void *user)
{
    (void)user;
    return many_role(m, 1, 2) == REGISTRY_ROLE_VOTER && many_role(m, 1, 3) == REGISTRY_ROLE_VOTER;
}

/* The heir lacks the entry that made the last a voter, as that is not stored at the leader yet. */
static void leadership_is_handed_over_in_the_midst_of_a_change(void **state)
{
    struct many *m = *state;
    struct many_answer a = {0};
    struct err e = {0};
    m->roles = true;
    for (node_id id = 1; id <= 3; id++)
        many_start(m, id);
    many_run_until(m, last_are_voters, NULL);
    assert_int_equal(registry_transfer(m->nodes[1].registry, 2, many_read_done, &a, &e), 0);
    many_wait(m, &a);
    assert_false(a.error);
    assert_int_equal(many_leader(m), 2);
}

static void five_lose_two_and_go_on(void **state)
{
    struct many *m = *state;
    many_form(m, 5);
    for (unsigned i = 0; i < 2; i++) {
        node_id leader = many_leader(m);
        uint64_t from = clock_monotonic_ms();
        many_stop(m, leader);
        node_id at = 1;
        while (m->nodes[at].registry == NULL)
            at++;
        many_put(m, at, i == 0 ? "with-four" : "with-three");
        print_message("a write after a leader of five stopped: %llu ms\n",
                      (unsigned long long)(clock_monotonic_ms() - from));
    }
    for (node_id id = 1; id <= 5; id++) {
        if (m->nodes[id].registry == NULL)
            continue;
        many_read(m, id);
        assert_true(many_has(m, id, "with-four"));
        assert_true(many_has(m, id, "with-three"));
    }
}

static void how_fast_a_follower_writes(void **state)
{
    struct many *m = *state;
    many_form(m, 3);
    node_id at = many_follower(m), leader = many_leader(m);
    enum { N = 200 };
    for (unsigned round = 0; round < 3; round++) {
        node_id where = round == 1 ? leader : at;
        uint64_t from = clock_monotonic_us();
        for (unsigned i = 0; i < N; i++) {
            char name[24];
            text_format(name, sizeof name, "f-%u-%u", round, i);
            many_put(m, where, name);
        }
        print_message("%s, one at a time: %llu us each\n", round == 1 ? "leader" : "follower",
                      (unsigned long long)((clock_monotonic_us() - from) / N));
    }
    uint64_t from = clock_monotonic_us();
    for (unsigned i = 0; i < N; i++)
        many_read(m, at);
    print_message("strong read at a follower: %llu us each\n",
                  (unsigned long long)((clock_monotonic_us() - from) / N));
}

int main(void)
{
#define THREE(test) cmocka_unit_test_setup_teardown(test, open_three, close_all)
#define FIVE(test) cmocka_unit_test_setup_teardown(test, open_five, close_all)
    const struct CMUnitTest tests[] = {
        THREE(a_write_at_any_node_is_everywhere_and_first_where_it_was_made),
        THREE(a_refusal_reaches_the_node_that_asked),
        THREE(another_leads_soon_after_the_leader_stopped),
        THREE(a_leader_that_ends_is_followed_at_once),
        THREE(each_may_restart_and_nothing_is_lost),
        THREE(without_a_majority_nothing_is_promised),
        THREE(what_nobody_heard_of_was_not_made),
        THREE(a_strong_read_is_never_stale),
        THREE(reads_of_one_moment_share_a_question),
        THREE(a_barrier_is_the_leaders_alone),
        THREE(many_in_flight_at_a_follower_share_questions),
        THREE(an_answer_that_was_lost_is_given_again_and_nothing_done_twice),
        THREE(a_late_joiner_gets_a_snapshot),
        FIVE(a_dead_voter_is_replaced_and_stands_by_when_it_returns),
        THREE(a_node_that_was_removed_leaves_and_is_heard_no_more),
        THREE(who_is_removed_from_the_registry_leaves_raft),
        THREE(an_unknown_key_is_no_member),
        THREE(leadership_is_handed_over),
        THREE(leadership_is_handed_over_in_the_midst_of_a_change),
        FIVE(five_lose_two_and_go_on),
        THREE(how_fast_a_follower_writes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
