/* What skerry status warns of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "node/control/status_facts.h"

enum { NODES = 3 };
static struct status_fact nodes[NODES];
static struct status_facts facts;
static char said[4096];

static int setup(void **state)
{
    (void)state;
    facts = (struct status_facts){
        .nodes = nodes, .count = NODES, .has_leader = true, .voters_wanted = 3};
    for (unsigned i = 0; i < NODES; i++) {
        nodes[i] = (struct status_fact){.id = i + 1,
                                        .state = GOSSIP_ALIVE,
                                        .role = REGISTRY_ROLE_VOTER,
                                        .version = "0.2.0",
                                        .instances = 2};
        (void)text_format(nodes[i].name, sizeof nodes[i].name, "node%u", i + 1);
    }
    return 0;
}

static size_t warnings(void)
{
    json_t *all = json_array();
    json_t *one;
    size_t i;
    status_warnings(all, &facts);
    said[0] = '\0';
    json_array_foreach(all, i, one)
    {
        size_t length = strlen(said);
        (void)snprintf(said + length, sizeof said - length, "%s\n", json_string_value(one));
    }
    size_t count = json_array_size(all);
    json_decref(all);
    return count;
}

static void a_whole_cluster_has_no_warning(void **state)
{
    (void)state;
    assert_int_equal(warnings(), 0);
    struct status_verdict v = status_judge(&facts);
    assert_true(v.well);
    assert_int_equal(v.can_lose, 1);
}

static void a_lost_quorum_names_who_is_lost_and_since_when(void **state)
{
    (void)state;
    facts.has_leader = false;
    nodes[1].state = nodes[2].state = GOSSIP_DEAD;
    nodes[1].since_wall_ms = (14 * 3600 + 2 * 60 + 11) * 1000u;
    (void)warnings();
    assert_non_null(strstr(said,
                           "no_quorum: 1 of 3 voters reachable; nothing can start. 2 running "
                           "instances can still be joined. Lost: node2 since 14:02:11Z, node3"));
    assert_false(status_judge(&facts).well);
}

static void an_election_is_no_lost_quorum(void **state)
{
    (void)state;
    facts.has_leader = false;
    assert_int_equal(warnings(), 1);
    assert_null(strstr(said, "no_quorum"));
}

static void the_last_voter_that_can_be_lost_is_told(void **state)
{
    (void)state;
    nodes[2].state = GOSSIP_DEAD;
    (void)warnings();
    assert_non_null(strstr(said, "node3  dead"));
    assert_non_null(strstr(said, "the loss of one more voter"));
    struct status_verdict v = status_judge(&facts);
    assert_false(v.well);
    assert_int_equal(v.can_lose, 0);
    assert_int_equal(v.voters_alive, 2);
}

static void versions_apart_strangers_and_drains_are_told(void **state)
{
    (void)state;
    (void)text_copy(nodes[1].version, sizeof nodes[1].version, "0.3.0");
    nodes[2].draining = true;
    facts.strangers = 7;
    assert_int_equal(warnings(), 3);
    assert_non_null(strstr(said, "apart: node1 0.2.0, node2 0.3.0, node3 0.2.0"));
    assert_non_null(strstr(said, "node3  drains"));
    assert_non_null(strstr(said, "strangers  7"));
}

static void one_that_left_is_missed_only_as_a_voter(void **state)
{
    (void)state;
    nodes[2].state = GOSSIP_LEFT;
    assert_false(status_judge(&facts).well);
    nodes[2].role = REGISTRY_ROLE_SPARE;
    facts.voters_wanted = 1;
    assert_true(status_judge(&facts).well);
}

static void the_clock_that_is_off_is_named(void **state)
{
    (void)state;
    for (unsigned i = 0; i < NODES; i++)
        nodes[i].clock_known = true;
    nodes[1].ahead_ms = 1000;
    assert_int_equal(warnings(), 0);
    nodes[1].ahead_ms = -3200;
    assert_int_equal(warnings(), 1);
    assert_non_null(strstr(said, "node2  its clock is 3.2 s behind that of the others"));
    /* The one that is asked sees all others off by the same. */
    nodes[1].ahead_ms = nodes[2].ahead_ms = 5000;
    assert_int_equal(warnings(), 1);
    assert_non_null(strstr(said, "node1  its clock is 5.0 s behind that of the others"));
    nodes[1].clock_known = false;
    assert_int_equal(warnings(), 1);
    assert_non_null(strstr(said, "node3  its clock is 5.0 s ahead of that of the other node"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_whole_cluster_has_no_warning, setup),
        cmocka_unit_test_setup(a_lost_quorum_names_who_is_lost_and_since_when, setup),
        cmocka_unit_test_setup(an_election_is_no_lost_quorum, setup),
        cmocka_unit_test_setup(the_last_voter_that_can_be_lost_is_told, setup),
        cmocka_unit_test_setup(versions_apart_strangers_and_drains_are_told, setup),
        cmocka_unit_test_setup(the_clock_that_is_off_is_named, setup),
        cmocka_unit_test_setup(one_that_left_is_missed_only_as_a_voter, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
