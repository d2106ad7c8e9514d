/* Whole registries, with raft, of which one or two are spares: they read and write through the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "raft/spare.h"
#include "tests/lib/registry_many.h"

enum { VOTERS = 3, SPARE = 4, BEHIND = 31 };

static struct registry_status status_of(struct many *m, node_id id)
{
    struct registry_status s;
    registry_status(m->nodes[id].registry, &s);
    return s;
}

static bool is_fed(struct many *m, void *user)
{
    (void)user;
    struct registry_status s = status_of(m, SPARE);
    return s.fed_by != 0 && s.leader_id != 0;
}

static bool is_standby(struct many *m, void *user)
{
    (void)user;
    return status_of(m, SPARE).fed_by == 0 && many_role(m, SPARE, SPARE) == REGISTRY_ROLE_STANDBY &&
           spare_mark_read(m->nodes[SPARE].directory) == 0;
}

static bool is_voter(struct many *m, void *user)
{
    (void)user;
    return many_role(m, SPARE, SPARE) == REGISTRY_ROLE_VOTER && status_of(m, SPARE).voters == 3 &&
           spare_mark_read(m->nodes[SPARE].directory) == 0;
}

static bool is_back_as_a_spare(struct many *m, void *user)
{
    node_id id = *(node_id *)user;
    return status_of(m, id).fed_by != 0 && many_role(m, SPARE, id) == REGISTRY_ROLE_NONE &&
           many_has(m, id, "after");
}

static bool has_it(struct many *m, void *user)
{
    return many_has(m, SPARE, user);
}

static int by_size(const void *a, const void *b)
{
    uint64_t one = *(const uint64_t *)a, other = *(const uint64_t *)b;
    return one < other ? -1 : one > other;
}

/* How long after the leader has answered the spare has it, too: the median. */
static uint64_t behind_us(struct many *m)
{
    uint64_t us[BEHIND];
    for (unsigned i = 0; i < BEHIND; i++) {
        char name[32];
        (void)text_format(name, sizeof name, "timed%u", i);
        (void)many_put(m, many_leader(m), name);
        uint64_t begun_us = clock_monotonic_us();
        many_run_until(m, has_it, name);
        us[i] = clock_monotonic_us() - begun_us;
    }
    qsort(us, BEHIND, sizeof us[0], by_size);
    return us[BEHIND / 2];
}

static void form(struct many *m)
{
    many_open(m, SPARE);
    many_form(m, VOTERS);
    m->wanted.standbys = 0;
    many_start(m, SPARE);
    many_run_until(m, is_fed, NULL);
}

static void it_reads_and_writes_through_others(void **unused)
{
    (void)unused;
    struct many m;
    char name[32];
    form(&m);
    struct registry_status s = status_of(&m, SPARE);
    assert_int_equal(s.leader_id, many_leader(&m));
    assert_int_equal(s.voters, VOTERS);
    assert_true(s.term > 0);
    assert_int_equal(many_role(&m, SPARE, SPARE), REGISTRY_ROLE_NONE); /* raft does not know it */
    assert_int_equal(many_role(&m, SPARE, 1), REGISTRY_ROLE_VOTER);
    /* Whoever is answered finds the change where it asked. */
    for (unsigned i = 0; i < 50; i++) {
        (void)text_format(name, sizeof name, "own%u", i);
        (void)many_put(&m, SPARE, name);
        assert_true(many_has(&m, SPARE, name));
    }
    /* A strong read shows what was acknowledged elsewhere. */
    for (unsigned i = 0; i < 20; i++) {
        (void)text_format(name, sizeof name, "other%u", i);
        (void)many_put(&m, many_leader(&m), name);
        many_read(&m, SPARE);
        assert_true(many_has(&m, SPARE, name));
    }
    print_message("behind the leader: %llu us, the median of %u writes\n",
                  (unsigned long long)behind_us(&m), BEHIND);
    (void)many_put(&m, many_follower(&m), "at-last");
    many_run_until(&m, has_it, "at-last");
    many_close(&m);
}

static void it_goes_on_when_its_neighbour_ends(void **unused)
{
    (void)unused;
    struct many m;
    form(&m);
    for (unsigned round = 0; round < 3; round++) {
        char name[32];
        node_id neighbour = status_of(&m, SPARE).fed_by;
        many_stop(&m, neighbour);
        uint64_t begun_ms = clock_monotonic_ms();
        (void)text_format(name, sizeof name, "round%u", round);
        (void)many_put(&m, SPARE, name);
        print_message("node %llu ended: the next write took %llu ms\n",
                      (unsigned long long)neighbour,
                      (unsigned long long)(clock_monotonic_ms() - begun_ms));
        assert_true(many_has(&m, SPARE, name));
        assert_true(status_of(&m, SPARE).fed_by != neighbour);
        many_start(&m, neighbour);
        many_leader(&m);
        many_run_until(&m, is_fed, NULL);
    }
    many_close(&m);
}

static void it_becomes_standby_and_spare_again(void **unused)
{
    (void)unused;
    struct many m;
    char name[32];
    form(&m);
    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(spare_mark_read(m.nodes[SPARE].directory), 1);
        m.wanted.standbys = 1;
        many_run_until(&m, is_standby, NULL);
        (void)text_format(name, sizeof name, "stood%u", round);
        (void)many_put(&m, SPARE, name);
        assert_true(many_has(&m, SPARE, name));
        m.wanted.standbys = 0;
        many_run_until(&m, is_fed, NULL);
        (void)text_format(name, sizeof name, "spare%u", round);
        (void)many_put(&m, SPARE, name);
        assert_true(many_has(&m, SPARE, name));
        /* A start with an old log is a spare's start. */
        many_stop(&m, SPARE);
        (void)text_format(name, sizeof name, "missed%u", round);
        (void)many_put(&m, 1, name);
        many_start(&m, SPARE);
        many_run_until(&m, is_fed, NULL);
        many_run_until(&m, has_it, name);
    }
    many_close(&m);
}

static void it_takes_the_place_of_a_voter_that_died(void **unused)
{
    (void)unused;
    struct many m;
    form(&m);
    (void)many_put(&m, SPARE, "before");
    node_id leader = many_leader(&m);
    node_id dead = leader == 1 ? 2 : 1;
    many_stop(&m, dead);
    many_run_until(&m, is_voter, NULL);
    (void)many_put(&m, SPARE, "after");
    assert_true(many_has(&m, SPARE, "before") && many_has(&m, SPARE, "after"));
    many_start(&m, dead);
    many_run_until(&m, is_back_as_a_spare, &dead);
    (void)many_put(&m, dead, "from-the-dead");
    assert_true(many_has(&m, dead, "from-the-dead"));
    /* It votes in its log, and nobody minds. */
    many_run_for(&m, 1500);
    assert_int_equal(status_of(&m, SPARE).voters, VOTERS);
    assert_true(status_of(&m, dead).fed_by != 0);
    many_close(&m);
}

static void recovering_with_it_is_refused(void **unused)
{
    (void)unused;
    struct many m;
    char text[512];
    struct err e = {0};
    form(&m);
    many_stop(&m, SPARE);
    assert_int_equal(registry_recover(m.nodes[SPARE].directory, SPARE, text, sizeof text, &e),
                     -ERR_CONFLICT);
    assert_non_null(strstr(e.msg, "this node was a spare"));
    many_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_reads_and_writes_through_others),
        cmocka_unit_test(it_goes_on_when_its_neighbour_ends),
        cmocka_unit_test(it_becomes_standby_and_spare_again),
        cmocka_unit_test(it_takes_the_place_of_a_voter_that_died),
        cmocka_unit_test(recovering_with_it_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
