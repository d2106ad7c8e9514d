/* Who votes and who stands by: from one picture to the next change, and where it comes to rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/roles.h"

enum { NODES_MAX = 12, NOW = 100000, CHANGES_MAX = 60 };

struct world {
    struct roles_node nodes[NODES_MAX];
    struct roles_view view;
};

static struct roles_node *node(struct world *w, node_id id)
{
    for (size_t i = 0; i < w->view.count; i++)
        if (w->nodes[i].id == id)
            return &w->nodes[i];
    fail();
    return NULL;
}

/* One letter each, from node 1: V voter, S standby, P spare, - none; small: dead. Node 1 leads. The zones
 * are a letter each, or "". */
static void make(struct world *w, const char *roles, const char *zones, unsigned voters,
                 unsigned standbys)
{
    memset(w, 0, sizeof *w);
    w->view = (struct roles_view){.self = 1,
                                  .nodes = w->nodes,
                                  .count = strlen(roles),
                                  .wanted = {.voters = voters, .standbys = standbys},
                                  .now_ms = NOW};
    for (size_t i = 0; roles[i] != '\0'; i++) {
        struct roles_node *n = &w->nodes[i];
        *n = (struct roles_node){.id = i + 1, .known = true, .alive = true, .synced = true};
        n->alive = strchr("VSP-", roles[i]) != NULL;
        if (strchr("Vv", roles[i]) != NULL)
            n->role = REGISTRY_ROLE_VOTER;
        else if (strchr("Ss", roles[i]) != NULL)
            n->role = REGISTRY_ROLE_STANDBY;
        else if (strchr("Pp", roles[i]) != NULL)
            n->role = REGISTRY_ROLE_SPARE;
        if (zones[0] != '\0')
            n->zone[0] = zones[i];
    }
}

static void apply(struct world *w, const struct roles_change *c)
{
    struct roles_node *n = node(w, c->id);
    if (c->verb == ROLES_ADD)
        n->role = REGISTRY_ROLE_SPARE;
    else if (c->verb == ROLES_ASSIGN)
        n->role = c->role;
    else if (c->verb == ROLES_REMOVE)
        n->role = REGISTRY_ROLE_NONE;
    else if (c->verb == ROLES_TRANSFER)
        w->view.self = c->id;
}

static void quorum_holds(const struct world *w)
{
    unsigned voters = 0, alive = 0;
    for (size_t i = 0; i < w->view.count; i++) {
        if (w->nodes[i].role != REGISTRY_ROLE_VOTER)
            continue;
        voters++;
        alive += w->nodes[i].alive || w->nodes[i].id == w->view.self;
    }
    assert_true(alive * 2 > voters);
}

static void show(const struct world *w, char out[NODES_MAX + 1])
{
    for (size_t i = 0; i < w->view.count; i++) {
        static const char letters[] = {'-', 'V', 'S', 'P'};
        out[i] = letters[w->nodes[i].role];
        if (!w->nodes[i].alive)
            out[i] = (char)(out[i] == '-' ? '.' : out[i] + ('a' - 'A'));
    }
    out[w->view.count] = '\0';
}

/* Changes until there are none; returns how many. A majority must be alive after each. */
static unsigned settle(struct world *w)
{
    for (unsigned i = 0; i < CHANGES_MAX; i++) {
        struct roles_change c = roles_next(&w->view);
        if (c.verb == ROLES_NOTHING)
            return i;
        apply(w, &c);
        quorum_holds(w);
    }
    fail_msg("it does not come to rest");
    return 0;
}

static void comes_to(const char *from, const char *zones, unsigned voters, unsigned standbys,
                     const char *to)
{
    struct world w;
    char shown[NODES_MAX + 1];
    make(&w, from, zones, voters, standbys);
    settle(&w);
    show(&w, shown);
    assert_string_equal(shown, to);
}

static void voters_are_odd_and_as_many_as_there_may_be(void **state)
{
    (void)state;
    comes_to("V", "", 3, 9, "V");
    comes_to("V-", "", 3, 9, "VS");
    comes_to("V--", "", 3, 9, "VVV");
    comes_to("V---", "", 3, 9, "VVVS");
    comes_to("V----", "", 3, 9, "VVVSS");
    comes_to("V----", "", 5, 9, "VVVVV");
    comes_to("V-----", "", 5, 9, "VVVVVS");
    comes_to("V---", "", 5, 9, "VVVS");
    comes_to("V--", "", 0, 9, "VSS");
}

static void standbys_are_as_many_as_wanted_and_the_rest_no_members(void **state)
{
    (void)state;
    comes_to("V-----", "", 3, 1, "VVVS--");
    comes_to("V-----", "", 3, 0, "VVV---");
    comes_to("VVVSSS", "", 3, 1, "VVVS--");
    comes_to("VVVS--", "", 3, 2, "VVVSS-");
    comes_to("VVVsPP", "", 3, 1, "VVV.S-");
    comes_to("VVVs--", "", 3, 1, "VVV.S-");
    comes_to("VVVPp", "", 3, 0, "VVV-.");
    comes_to("VVVsP", "", 3, 9, "VVVsS");
}

static void a_dead_voter_gives_way_to_a_standby_that_lives(void **state)
{
    (void)state;
    comes_to("VVvS", "", 3, 9, "VV.V");
    comes_to("VVvs", "", 3, 9, "VVvs");
    comes_to("VVv", "", 3, 9, "VVv");
    comes_to("VVVvvSS", "", 5, 9, "VVV..VV");
    /* A spare stands by first, though none else shall. */
    comes_to("VVv-", "", 3, 0, "VV.V");
    comes_to("VVVvv--", "", 5, 0, "VVV..VV");
    comes_to("VVv.", "", 3, 0, "VVv.");
    /* Back: it stands by, and nobody makes way for it. */
    comes_to("VV-V", "", 3, 9, "VVSV");
    comes_to("VV-V", "", 3, 0, "VV-V");
    comes_to("VVVS", "", 3, 0, "VVV-"); /* back before its place was taken */
    /* Too many, after a mishap: a dead one goes first. */
    comes_to("VVVv", "", 3, 9, "VVV.");
    comes_to("VVVV", "", 3, 9, "VVVS");
}

static void what_did_not_last_changes_nothing(void **state)
{
    struct world w;
    (void)state;
    make(&w, "VVvS", "", 3, 9);
    node(&w, 3)->since_ms = NOW - ROLES_DEAD_MS + 1;
    assert_int_equal(roles_next(&w.view).verb, ROLES_NOTHING);
    node(&w, 3)->since_ms = NOW - ROLES_DEAD_MS;
    assert_int_equal(roles_next(&w.view).id, 3);
    /* Nor does a node vote that has just come, or that lacks much of the log. */
    make(&w, "VSS", "", 3, 9);
    node(&w, 2)->since_ms = NOW - ROLES_ALIVE_MS + 1;
    assert_int_equal(roles_next(&w.view).verb, ROLES_NOTHING);
    node(&w, 2)->since_ms = 0;
    node(&w, 2)->synced = false;
    assert_int_equal(roles_next(&w.view).verb, ROLES_NOTHING);
    node(&w, 2)->synced = true;
    assert_int_equal(roles_next(&w.view).id, 2);
    /* Of whom nobody told anything, nothing is believed. */
    make(&w, "VVvS", "", 3, 9);
    node(&w, 3)->known = false;
    assert_int_equal(roles_next(&w.view).verb, ROLES_NOTHING);
    make(&w, "V-", "", 3, 9);
    node(&w, 2)->known = false;
    assert_int_equal(roles_next(&w.view).verb, ROLES_NOTHING);
}

static void voters_spread_over_zones(void **state)
{
    (void)state;
    comes_to("V-----", "aaabbc", 3, 9, "VSSVSV");
    comes_to("VVVSS", "aaabc", 3, 9, "VSSVV");
    comes_to("VVVSS", "aabbb", 3, 9, "VVVSS");
    comes_to("VVVVVSS", "aaaaabb", 5, 9, "VVVSSVV");
    /* Not while one of them is away: first come enough, then evenly. */
    comes_to("VVvS", "aaab", 3, 9, "VV.V");
    comes_to("VVvs", "aaab", 3, 9, "VVvs");
    /* The leader stays where it is. */
    comes_to("VS", "ab", 1, 9, "VS");
}

static void who_was_removed_leaves(void **state)
{
    struct world w;
    char shown[NODES_MAX + 1];
    (void)state;
    make(&w, "VVVS", "", 3, 9);
    node(&w, 3)->removed = true;
    settle(&w);
    show(&w, shown);
    assert_string_equal(shown, "VV-V");
    make(&w, "VVvS", "", 3, 9);
    node(&w, 3)->removed = true;
    node(&w, 4)->removed = true;
    settle(&w);
    show(&w, shown);
    assert_string_equal(shown, "VS.-");
    /* It does not come in again. */
    make(&w, "V-", "", 3, 9);
    node(&w, 2)->removed = true;
    assert_int_equal(settle(&w), 0);
}

static void a_leader_that_was_removed_hands_over_and_leaves(void **state)
{
    struct world w;
    char shown[NODES_MAX + 1];
    (void)state;
    make(&w, "VVVS", "", 3, 9);
    node(&w, 1)->removed = true;
    struct roles_change first = roles_next(&w.view);
    assert_int_equal(first.verb, ROLES_TRANSFER);
    settle(&w);
    show(&w, shown);
    assert_string_equal(shown, "-VVV");
    /* A lone voter makes one first. */
    make(&w, "VS", "", 3, 9);
    node(&w, 1)->removed = true;
    settle(&w);
    show(&w, shown);
    assert_string_equal(shown, "-V");
    /* With nobody to hand over to, it stays. */
    make(&w, "Vs", "", 3, 9);
    node(&w, 1)->removed = true;
    assert_int_equal(settle(&w), 0);
}

/* Any picture in which a majority lives comes to rest, with a majority at each step, and rests then. */
static void any_picture_comes_to_rest(void **state)
{
    (void)state;
    uint64_t x = 88172645463325252u;
    for (unsigned round = 0; round < 20000; round++) {
        struct world w;
        char roles[NODES_MAX + 1] = {0}, zones[NODES_MAX + 1] = {0};
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        uint64_t r = x;
        unsigned count = 1 + (unsigned)(r % NODES_MAX);
        r /= NODES_MAX;
        for (unsigned i = 0; i < count; i++, r = r / 8 + (x << 7)) {
            roles[i] = i == 0 ? 'V' : "VvSsPp-V"[r % 8];
            zones[i] = "abc"[(r / 8) % 3];
        }
        make(&w, roles, zones, 1 + 2 * (unsigned)(x % 3), (unsigned)(x % 5));
        for (unsigned i = 1; i < count; i++)
            w.nodes[i].removed = (x >> (20 + i)) % 8 == 0;
        unsigned voters = 0, alive = 0;
        for (unsigned i = 0; i < count; i++) {
            voters += w.nodes[i].role == REGISTRY_ROLE_VOTER;
            alive += w.nodes[i].role == REGISTRY_ROLE_VOTER && w.nodes[i].alive;
        }
        if (alive * 2 <= voters)
            continue;
        settle(&w);
        assert_int_equal(roles_next(&w.view).verb, ROLES_NOTHING);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(voters_are_odd_and_as_many_as_there_may_be),
        cmocka_unit_test(standbys_are_as_many_as_wanted_and_the_rest_no_members),
        cmocka_unit_test(a_dead_voter_gives_way_to_a_standby_that_lives),
        cmocka_unit_test(what_did_not_last_changes_nothing),
        cmocka_unit_test(voters_spread_over_zones),
        cmocka_unit_test(who_was_removed_leaves),
        cmocka_unit_test(a_leader_that_was_removed_hands_over_and_leaves),
        cmocka_unit_test(any_picture_comes_to_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
