#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "raft/spare_choose.h"

static void a_neighbour_is_chosen_by_zone_among_members_at_random(void **unused)
{
    (void)unused;
    struct registry_peer peers[] = {
        {.id = 1, .alive = true, .zone = "a"},  {.id = 2, .alive = true, .zone = "b"},
        {.id = 3, .alive = false, .zone = "b"}, {.id = 4, .alive = true, .zone = "b"},
        {.id = 5, .alive = true, .zone = "b"},  {.id = 6, .alive = true, .zone = "b"},
    };
    const struct registry_member members[] = {{.id = 1, .role = REGISTRY_ROLE_VOTER},
                                              {.id = 2, .role = REGISTRY_ROLE_VOTER},
                                              {.id = 3, .role = REGISTRY_ROLE_VOTER},
                                              {.id = 4, .role = REGISTRY_ROLE_STANDBY},
                                              {.id = 5, .role = REGISTRY_ROLE_SPARE}};
    struct spare_choice c = {.self = 6,
                             .seed = 4,
                             .peers = peers,
                             .peer_count = 6,
                             .members = members,
                             .member_count = 5};
    unsigned times[7] = {0};
    for (unsigned i = 0; i < 1000; i++)
        times[spare_choose(&c, 0)]++;
    assert_int_equal(times[2] + times[4], 1000);
    assert_in_range(times[2], 400, 600);
    spare_avoid(&c, 2, 100);
    spare_avoid(&c, 4, 100);
    assert_int_equal(spare_choose(&c, 99), 1); /* of another zone, but it votes */
    spare_avoid(&c, 1, 100);
    assert_int_equal(spare_choose(&c, 99), 5); /* it may know more than this node */
    spare_avoid(&c, 5, 100);
    assert_true(spare_choose(&c, 99) != 0); /* better than nobody */
    node_id after = spare_choose(&c, 100);
    assert_true(after == 2 || after == 4);
    for (size_t i = 0; i < 6; i++)
        peers[i].alive = peers[i].id == 6;
    assert_int_equal(spare_choose(&c, 100), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_neighbour_is_chosen_by_zone_among_members_at_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
