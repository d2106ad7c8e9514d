/* What placement reads of the registry: holders of keys, live instances by owner and by workload. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "tests/lib/registry_help.h"

struct seen {
    unsigned count;
    node_id owners[8];
    unsigned stop_after; /* 0: never */
};

static bool see(void *user, const struct registry_instance *i)
{
    struct seen *s = user;
    assert_int_not_equal(i->state, INSTANCE_STATE_ENDED);
    s->owners[s->count++] = i->owner;
    return s->count != s->stop_after;
}

static void reserve(struct help_state *h, node_id owner, uint64_t n, const char *key)
{
    struct registry_instance like = {
        .id = help_instance_id(owner, n), .owner = owner, .version = 1};
    text_copy(like.workload, sizeof like.workload, "hello");
    text_copy(like.key, sizeof like.key, key);
    struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &like};
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
}

static void live_instances_are_found_by_owner_key_and_workload(void **state)
{
    (void)state;
    struct help_state h;
    help_state_open(&h);
    for (node_id id = 1; id <= 3; id++)
        help_lease(&h, id);
    help_deploy(&h, "hello", "");
    reserve(&h, 2, 1, "room");
    reserve(&h, 1, 2, "");
    reserve(&h, 2, 3, "");
    struct registry_root *root = state_root(h.state);
    struct instance_id holder = help_instance_id(2, 1);
    assert_string_equal(registry_root_key_holder(root, "hello", "room")->text, holder.text);
    assert_null(registry_root_key_holder(root, "hello", "roo"));
    assert_null(registry_root_key_holder(root, "hell", "oroom"));
    assert_null(registry_root_key_holder(root, "hello", ""));
    struct seen all = {0}, second = {0}, third = {0}, first = {.stop_after = 1};
    registry_root_live(root, 0, see, &all);
    assert_int_equal(all.count, 3);
    assert_true(all.owners[0] == 1 && all.owners[1] == 2 && all.owners[2] == 2);
    registry_root_live(root, 2, see, &second);
    assert_int_equal(second.count, 2);
    registry_root_live(root, 3, see, &third);
    assert_int_equal(third.count, 0);
    registry_root_live(root, 2, see, &first);
    assert_int_equal(first.count, 1);
    assert_int_equal(registry_root_workload_counted(root, "hello"), 3);
    assert_int_equal(registry_root_workload_counted(root, "other"), 0);
    registry_root_release(root);
    /* With its lease ends what node 2 has. */
    struct registry_node node = {.id = 2};
    struct registry_command grant = {.kind = REGISTRY_LEASE_GRANT, .node = &node};
    node.lease_epoch = help_apply(&h, &grant).epoch;
    struct registry_command expire = {.kind = REGISTRY_LEASE_EXPIRE, .node = &node};
    assert_int_equal(help_apply(&h, &expire).problem, PROBLEM_NONE);
    root = state_root(h.state);
    assert_null(registry_root_key_holder(root, "hello", "room"));
    struct seen left = {0};
    registry_root_live(root, 0, see, &left);
    assert_int_equal(left.count, 1);
    assert_int_equal(registry_root_workload_counted(root, "hello"), 1);
    registry_root_release(root);
    help_state_close(&h);
}

static void what_is_no_workload_leaves_the_workloads_the_same(void **state)
{
    (void)state;
    struct help_state h;
    help_state_open(&h);
    help_deploy(&h, "hello", "");
    struct registry_root *before = state_root(h.state);
    help_lease(&h, 1);
    help_deploy(&h, "hello", ""); /* its very text again */
    struct registry_root *lease = state_root(h.state);
    assert_int_not_equal(registry_root_index(before), registry_root_index(lease));
    assert_true(registry_root_workloads_same(before, lease));
    help_deploy(&h, "hello", "read_only: true\n");
    struct registry_root *changed = state_root(h.state);
    assert_false(registry_root_workloads_same(lease, changed));
    struct registry_command remove = {.kind = REGISTRY_WORKLOAD_REMOVE, .name = "hello"};
    assert_int_equal(help_apply(&h, &remove).problem, PROBLEM_NONE);
    struct registry_root *removed = state_root(h.state);
    assert_false(registry_root_workloads_same(changed, removed));
    registry_root_release(before);
    registry_root_release(lease);
    registry_root_release(changed);
    registry_root_release(removed);
    help_state_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(live_instances_are_found_by_owner_key_and_workload),
        cmocka_unit_test(what_is_no_workload_leaves_the_workloads_the_same),
    };
    return cmocka_run_group_tests_name("reading the registry", tests, NULL, NULL);
}
