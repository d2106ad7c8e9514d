/* The registry's state machine, fed by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state.h"
#include "tests/lib/registry_help.h"

#define DAY_MS ((uint64_t)REGISTRY_ENDED_KEPT_MS)

static int setup(void **state)
{
    struct help_state *h = malloc(sizeof *h);
    help_state_open(h);
    help_lease(h, 1);
    *state = h;
    return 0;
}

static int teardown(void **state)
{
    help_state_close(*state);
    free(*state);
    return 0;
}

static const struct registry_workload *workload_of(struct help_state *h, const char *name)
{
    struct registry_root *root = state_root(h->state);
    const struct registry_workload *w = registry_root_workload(root, name, strlen(name));
    registry_root_release(root); /* the state still holds it */
    return w;
}

static const struct registry_workload *version_of(struct help_state *h, const char *name,
                                                  uint64_t version)
{
    struct registry_root *root = state_root(h->state);
    const struct registry_workload *w = registry_root_workload_version(root, name, version);
    registry_root_release(root);
    return w;
}

static const struct registry_instance *instance_of(struct help_state *h, uint64_t n)
{
    struct registry_root *root = state_root(h->state);
    struct instance_id id = help_instance_id(1, n);
    const struct registry_instance *i = registry_root_instance(root, id.text, strlen(id.text));
    registry_root_release(root);
    return i;
}

static struct registry_result update(struct help_state *h, uint64_t n, uint64_t epoch,
                                     enum instance_state to)
{
    struct registry_instance i = {.id = help_instance_id(1, n), .epoch = epoch, .state = to};
    i.marks.ready_us = to == INSTANCE_STATE_READY ? 4321 : 0;
    struct registry_command c = {.kind = REGISTRY_INSTANCE_UPDATE, .instance = &i};
    return help_apply(h, &c);
}

static struct registry_result by_name(struct help_state *h, enum registry_command_kind kind,
                                      const char *name, uint64_t version)
{
    struct registry_command c = {.kind = kind, .wall_ms = 5, .name = name, .version = version};
    return help_apply(h, &c);
}

static struct registry_result sweep(struct help_state *h, uint64_t wall_ms)
{
    struct registry_command c = {.kind = REGISTRY_SWEEP, .wall_ms = wall_ms};
    return help_apply(h, &c);
}

static bool count_visit(void *user, const struct registry_workload *w)
{
    (void)w;
    (*(size_t *)user)++;
    return true;
}

static size_t versions_kept(struct help_state *h, const char *name)
{
    size_t count = 0;
    struct registry_root *root = state_root(h->state);
    registry_root_versions(root, name, count_visit, &count);
    registry_root_release(root);
    return count;
}

static size_t workloads_listed(struct help_state *h, const char *from)
{
    size_t count = 0;
    struct registry_root *root = state_root(h->state);
    registry_root_workloads(root, from, count_visit, &count);
    registry_root_release(root);
    return count;
}

/* --- workloads -------------------------------------------------------------------------------------- */

static void the_same_spec_again_makes_no_version(void **state)
{
    struct help_state *h = *state;
    struct registry_result r = help_deploy(h, "hello", "");
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_true(r.changed);
    assert_int_equal(r.version, 1);
    r = help_deploy(h, "hello", "");
    assert_false(r.changed);
    assert_int_equal(r.version, 1);
    r = help_deploy(h, "hello", "read_only: true\n");
    assert_true(r.changed);
    assert_int_equal(r.version, 2);
    assert_true(workload_of(h, "hello")->spec.read_only);
    assert_false(version_of(h, "hello", 1)->spec.read_only);
    /* Back to what it was: that is a change. */
    r = help_deploy(h, "hello", "");
    assert_true(r.changed);
    assert_int_equal(r.version, 3);
}

static void a_spec_that_cannot_be_is_refused_and_changes_nothing(void **state)
{
    struct help_state *h = *state;
    struct registry_command c = {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = "{\"id\":7}"};
    struct registry_result r = help_apply(h, &c);
    assert_int_equal(r.problem, PROBLEM_WORKLOAD_INVALID);
    assert_true(r.detail[0] != '\0');
    r = help_deploy(h, "hello", "image: alpine\n");
    assert_int_equal(r.problem, PROBLEM_IMAGE_UNKNOWN);
    assert_null(workload_of(h, "hello"));
    assert_int_equal(state_content(h->state)->maps[STATE_WORKLOADS].count, 0);
}

static void old_versions_are_forgotten_but_for_those_in_use(void **state)
{
    struct help_state *h = *state;
    char more[64];
    help_deploy(h, "hello", "");
    struct registry_result reserved = help_reserve(h, "hello", 1, 1, "");
    assert_int_equal(reserved.problem, PROBLEM_NONE);
    for (int i = 1; i <= 20; i++) {
        snprintf(more, sizeof more, "environment: {N: \"%d\"}\n", i);
        assert_int_equal(help_deploy(h, "hello", more).version, i + 1);
    }
    /* The current one, ten before it, and the one that an instance runs. */
    assert_int_equal(versions_kept(h, "hello"), 1 + REGISTRY_VERSIONS_KEPT + 1);
    assert_non_null(version_of(h, "hello", 1));
    assert_int_equal(version_of(h, "hello", 1)->live, 1);
    assert_null(version_of(h, "hello", 10));
    assert_non_null(version_of(h, "hello", 11));
    help_end(h, 1, reserved.epoch, 10);
    assert_null(version_of(h, "hello", 1));
    assert_int_equal(versions_kept(h, "hello"), 1 + REGISTRY_VERSIONS_KEPT);
}

static void there_are_no_more_versions_than_may_be(void **state)
{
    struct help_state *h = *state;
    char more[64];
    uint64_t epochs[STATE_VERSIONS_MAX + 1];
    for (unsigned i = 1; i <= STATE_VERSIONS_MAX; i++) {
        snprintf(more, sizeof more, "scale: {max: 1000}\nenvironment: {N: \"%u\"}\n", i);
        assert_int_equal(help_deploy(h, "hello", more).version, i);
        epochs[i] = help_reserve(h, "hello", i, i, "").epoch;
    }
    assert_int_equal(help_deploy(h, "hello", "").problem, PROBLEM_LIMIT_REACHED);
    assert_int_equal(by_name(h, REGISTRY_WORKLOAD_ROLLBACK, "hello", 1).problem,
                     PROBLEM_LIMIT_REACHED);
    assert_int_equal(workload_of(h, "hello")->version, STATE_VERSIONS_MAX);
    for (unsigned i = 1; i <= REGISTRY_VERSIONS_KEPT + 1; i++)
        help_end(h, i, epochs[i], 10);
    assert_int_equal(help_deploy(h, "hello", "").version, STATE_VERSIONS_MAX + 1);
}

static void specs_take_no_more_bytes_than_they_may(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    uint64_t one = state_content(h->state)->spec_bytes;
    help_deploy(h, "other", "");
    by_name(h, REGISTRY_WORKLOAD_REMOVE, "other", 0);
    assert_int_equal(state_content(h->state)->spec_bytes, one);
    /* As if others took the rest. */
    struct state_content content = *state_content(h->state);
    for (size_t i = 0; i < STATE_MAP_COUNT; i++)
        content.maps[i] = map_hold(&content.maps[i]);
    content.spec_bytes = STATE_SPEC_BYTES_MAX - one;
    state_restore(h->state, &content);
    assert_int_equal(help_deploy(h, "longer", "").problem, PROBLEM_LIMIT_REACHED);
    assert_null(workload_of(h, "longer"));
    assert_int_equal(help_deploy(h, "short", "").problem, PROBLEM_NONE);
    content = *state_content(h->state);
    for (size_t i = 0; i < STATE_MAP_COUNT; i++)
        content.maps[i] = map_hold(&content.maps[i]);
    content.spec_bytes = one * 2;
    state_restore(h->state, &content);
}

static void a_rollback_makes_the_old_spec_a_new_version(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    assert_int_equal(by_name(h, REGISTRY_WORKLOAD_ROLLBACK, "hello", 0).problem, PROBLEM_NOT_FOUND);
    help_deploy(h, "hello", "read_only: true\n");
    struct registry_result r = by_name(h, REGISTRY_WORKLOAD_ROLLBACK, "hello", 0);
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_int_equal(r.version, 3);
    assert_true(r.changed);
    assert_false(workload_of(h, "hello")->spec.read_only);
    r = by_name(h, REGISTRY_WORKLOAD_ROLLBACK, "hello", 2);
    assert_int_equal(r.version, 4);
    assert_true(workload_of(h, "hello")->spec.read_only);
    r = by_name(h, REGISTRY_WORKLOAD_ROLLBACK, "hello", 4);
    assert_false(r.changed);
    assert_int_equal(by_name(h, REGISTRY_WORKLOAD_ROLLBACK, "hello", 9).problem, PROBLEM_NOT_FOUND);
    assert_int_equal(by_name(h, REGISTRY_WORKLOAD_ROLLBACK, "other", 0).problem,
                     PROBLEM_WORKLOAD_UNKNOWN);
}

static void a_port_of_the_nodes_is_one_workloads(void **state)
{
#define LISTENS "protocol: tcp\naccess: public\nlisten: {tcp: 30000}\n"
    struct help_state *h = *state;
    assert_int_equal(help_deploy(h, "first", LISTENS).problem, PROBLEM_NONE);
    assert_int_equal(help_deploy(h, "first", LISTENS "read_only: true\n").problem, PROBLEM_NONE);
    struct registry_result r = help_deploy(h, "other", LISTENS);
    assert_int_equal(r.problem, PROBLEM_CONFLICT);
    assert_non_null(strstr(r.detail, "port 30000 is taken by workload first"));
    assert_null(workload_of(h, "other"));
    /* Neither a version that does not run, nor one that was removed, has it. */
    assert_int_equal(help_deploy(h, "first", "").problem, PROBLEM_NONE);
    assert_int_equal(help_deploy(h, "other", LISTENS).problem, PROBLEM_NONE);
    assert_int_equal(by_name(h, REGISTRY_WORKLOAD_ROLLBACK, "first", 1).problem, PROBLEM_CONFLICT);
    assert_int_equal(by_name(h, REGISTRY_WORKLOAD_REMOVE, "other", 0).problem, PROBLEM_NONE);
    assert_int_equal(by_name(h, REGISTRY_WORKLOAD_ROLLBACK, "first", 1).problem, PROBLEM_NONE);
#undef LISTENS
}

static void a_removed_workload_never_uses_a_version_again(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "aa", "");
    help_deploy(h, "hello", "");
    struct registry_result reserved = help_reserve(h, "hello", 1, 1, "");
    assert_int_equal(workloads_listed(h, NULL), 2);
    assert_int_equal(workloads_listed(h, "ab"), 1);
    assert_int_equal(by_name(h, REGISTRY_WORKLOAD_REMOVE, "hello", 0).problem, PROBLEM_NONE);
    assert_int_equal(by_name(h, REGISTRY_WORKLOAD_REMOVE, "hello", 0).problem,
                     PROBLEM_WORKLOAD_UNKNOWN);
    assert_null(workload_of(h, "hello"));
    assert_int_equal(workloads_listed(h, NULL), 1);
    /* Its instance goes on, with its version. */
    assert_non_null(version_of(h, "hello", 1));
    assert_int_equal(help_reserve(h, "hello", 1, 2, "").problem, PROBLEM_WORKLOAD_UNKNOWN);
    assert_int_equal(update(h, 1, reserved.epoch, INSTANCE_STATE_READY).problem, PROBLEM_NONE);
    help_end(h, 1, reserved.epoch, 100);
    assert_null(version_of(h, "hello", 1));
    assert_int_equal(help_deploy(h, "hello", "").version, 2);
    by_name(h, REGISTRY_WORKLOAD_REMOVE, "hello", 0);
    /* Remembered as long as its instances are, then forgotten whole. */
    sweep(h, DAY_MS + 50);
    assert_non_null(instance_of(h, 1));
    sweep(h, DAY_MS + 101);
    assert_null(instance_of(h, 1));
    assert_int_equal(state_content(h->state)->maps[STATE_WORKLOADS].count, 1);
    assert_int_equal(help_deploy(h, "hello", "").version, 1);
}

/* --- instances -------------------------------------------------------------------------------------- */

static void a_reservation_needs_a_workload_a_version_and_its_owner(void **state)
{
    struct help_state *h = *state;
    assert_int_equal(help_reserve(h, "hello", 1, 1, "").problem, PROBLEM_WORKLOAD_UNKNOWN);
    help_deploy(h, "hello", "");
    assert_int_equal(help_reserve(h, "hello", 2, 1, "").problem, PROBLEM_CONFLICT);
    struct registry_instance i = {
        .id = help_instance_id(2, 1), .version = 1, .owner = 1, .workload = "hello"};
    struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &i};
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_BAD_REQUEST);
    i.owner = 2;
    help_lease(h, 2);
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
    assert_int_equal(help_reserve(h, "hello", 1, 1, "").problem, PROBLEM_NONE);
    assert_int_equal(workload_of(h, "hello")->live, 2);
    const struct registry_instance *there = instance_of(h, 1);
    assert_int_equal(there->state, INSTANCE_STATE_STARTING);
    assert_int_equal(there->exit_code, -1);
    /* A command of `run` has no workload, and no key. */
    assert_int_equal(help_reserve(h, "", 0, 3, "").problem, PROBLEM_NONE);
    assert_int_equal(help_reserve(h, "", 0, 4, "key").problem, PROBLEM_BAD_REQUEST);
}

static void reserving_the_same_again_is_the_same_reservation(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    help_deploy(h, "other", "");
    struct registry_result first = help_reserve(h, "hello", 1, 1, "room");
    struct registry_result again = help_reserve(h, "hello", 1, 1, "room");
    assert_int_equal(again.problem, PROBLEM_NONE);
    assert_int_equal(again.epoch, first.epoch);
    assert_int_equal(workload_of(h, "hello")->live, 1);
    struct registry_result another = help_reserve(h, "other", 1, 1, "room");
    assert_int_equal(another.problem, PROBLEM_CONFLICT);
    assert_string_equal(another.existing.text, help_instance_id(1, 1).text);
    help_end(h, 1, first.epoch, 1);
    assert_int_equal(help_reserve(h, "hello", 1, 1, "room").problem, PROBLEM_CONFLICT);
}

static void a_key_has_one_holder_at_a_time(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    help_deploy(h, "other", "");
    struct registry_result first = help_reserve(h, "hello", 1, 1, "room");
    struct registry_result second = help_reserve(h, "hello", 1, 2, "room");
    assert_int_equal(second.problem, PROBLEM_CONFLICT);
    assert_string_equal(second.existing.text, help_instance_id(1, 1).text);
    assert_null(instance_of(h, 2));
    /* Of another workload, and another key: nothing to do with it. */
    assert_int_equal(help_reserve(h, "other", 1, 3, "room").problem, PROBLEM_NONE);
    assert_int_equal(help_reserve(h, "hello", 1, 4, "roo").problem, PROBLEM_NONE);
    update(h, 1, first.epoch, INSTANCE_STATE_DRAINING);
    assert_int_equal(help_reserve(h, "hello", 1, 2, "room").problem, PROBLEM_CONFLICT);
    help_end(h, 1, first.epoch, 1);
    second = help_reserve(h, "hello", 1, 2, "room");
    assert_int_equal(second.problem, PROBLEM_NONE);
    assert_true(second.epoch > first.epoch);
}

static void scale_max_counts_what_has_not_ended(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "scale: {max: 2}\n");
    struct registry_result one = help_reserve(h, "hello", 1, 1, "");
    assert_int_equal(help_reserve(h, "hello", 1, 2, "").problem, PROBLEM_NONE);
    assert_int_equal(help_reserve(h, "hello", 1, 3, "").problem, PROBLEM_LIMIT_REACHED);
    update(h, 1, one.epoch, INSTANCE_STATE_DRAINING);
    assert_int_equal(help_reserve(h, "hello", 1, 3, "").problem, PROBLEM_LIMIT_REACHED);
    help_end(h, 1, one.epoch, 1);
    assert_int_equal(help_reserve(h, "hello", 1, 3, "").problem, PROBLEM_NONE);
    /* A new version is not kept from starting by what it replaces. */
    help_deploy(h, "hello", "scale: {max: 1}\n");
    assert_int_equal(help_reserve(h, "hello", 2, 4, "").problem, PROBLEM_NONE);
    assert_int_equal(help_reserve(h, "hello", 2, 5, "").problem, PROBLEM_LIMIT_REACHED);
    struct registry_root *root = state_root(h->state);
    assert_int_equal(registry_root_workload_counted(root, "hello"), 1);
    registry_root_release(root);
}

static void rooms_of_older_versions_count_for_scale_max(void **state)
{
    struct help_state *h = *state;
    const char *rooms = "join: {key: \"header:X-Room\"}\nscale: {max: 2}\n";
    help_deploy(h, "hello", rooms);
    struct registry_result red = help_reserve(h, "hello", 1, 1, "red");
    help_deploy(h, "hello", "join: {key: \"query:room\"}\nscale: {max: 2}\n");
    assert_int_equal(help_reserve(h, "hello", 2, 2, "blue").problem, PROBLEM_NONE);
    assert_int_equal(help_reserve(h, "hello", 2, 3, "green").problem, PROBLEM_LIMIT_REACHED);
    help_end(h, 1, red.epoch, 1);
    assert_int_equal(help_reserve(h, "hello", 2, 3, "green").problem, PROBLEM_NONE);
}

static void a_stale_epoch_changes_nothing(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    uint64_t last = 0;
    for (uint64_t n = 1; n <= 3; n++) {
        struct registry_result r = help_reserve(h, "hello", 1, n, "");
        assert_true(r.epoch > last);
        assert_int_equal(r.epoch >> 40, 1);
        last = r.epoch;
    }
    assert_int_equal(update(h, 3, last - 1, INSTANCE_STATE_READY).problem, PROBLEM_CONFLICT);
    assert_int_equal(help_end(h, 3, last + 1, 1).problem, PROBLEM_CONFLICT);
    assert_int_equal(instance_of(h, 3)->state, INSTANCE_STATE_STARTING);
    assert_int_equal(update(h, 9, 1, INSTANCE_STATE_READY).problem, PROBLEM_INSTANCE_UNKNOWN);
    assert_int_equal(help_end(h, 9, 1, 1).problem, PROBLEM_INSTANCE_UNKNOWN);
    assert_int_equal(update(h, 3, last, INSTANCE_STATE_READY).problem, PROBLEM_NONE);
    assert_int_equal(instance_of(h, 3)->state, INSTANCE_STATE_READY);
    assert_int_equal(instance_of(h, 3)->marks.ready_us, 4321);
}

static void an_end_is_final_and_may_be_told_twice(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    struct registry_result r = help_reserve(h, "hello", 1, 1, "");
    update(h, 1, r.epoch, INSTANCE_STATE_DRAINING);
    assert_int_equal(update(h, 1, r.epoch, INSTANCE_STATE_READY).problem, PROBLEM_CONFLICT);
    assert_true(help_end(h, 1, r.epoch, 77).changed);
    struct registry_result again = help_end(h, 1, r.epoch, 99);
    assert_int_equal(again.problem, PROBLEM_NONE);
    assert_false(again.changed);
    const struct registry_instance *i = instance_of(h, 1);
    assert_int_equal(i->ended_wall_ms, 77);
    assert_int_equal(i->reason, END_EXITED);
    assert_int_equal(i->exit_code, 3);
    assert_int_equal(update(h, 1, r.epoch, INSTANCE_STATE_DRAINING).problem, PROBLEM_INSTANCE_GONE);
    assert_int_equal(workload_of(h, "hello")->live, 0);
}

static struct registry_usage usage_of(struct help_state *h, const char *name)
{
    struct registry_usage usage;
    struct registry_root *root = state_root(h->state);
    registry_root_workload_usage(root, name, &usage);
    registry_root_release(root);
    return usage;
}

static void what_was_used_adds_up_and_outlives_its_instances(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    for (uint64_t n = 1; n <= 3; n++) {
        struct registry_result r = help_reserve(h, "hello", 1, n, "");
        assert_int_equal(usage_of(h, "hello").instances, n - 1);
        help_end(h, n, r.epoch, 1000);
        help_end(h, n, r.epoch, 1000); /* told again it is not counted again */
    }
    assert_int_equal(instance_of(h, 2)->usage.wall_us, 1002);
    help_deploy(h, "hello", "read_only: true\n");
    while (sweep(h, DAY_MS + 1000000).changed)
        ;
    assert_null(instance_of(h, 2));
    struct registry_usage u = usage_of(h, "hello");
    assert_int_equal(u.instances, 3);
    assert_int_equal(u.wall_us, 3006);
    assert_int_equal(u.cpu_us, 300);
    assert_int_equal(u.memory_peak_bytes, 3 * 4096);
    assert_int_equal(u.memory_kib_ms, 120);
    assert_int_equal(u.network_in_bytes, 15);
    assert_int_equal(u.network_out_bytes, 18);
    assert_int_equal(usage_of(h, "other").instances, 0);
}

static void sums_of_what_was_used_stay_at_the_end_of_their_range(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    for (uint64_t n = 1; n <= 2; n++) {
        struct registry_instance i = {.id = help_instance_id(1, n),
                                      .epoch = help_reserve(h, "hello", 1, n, "").epoch,
                                      .reason = END_EXITED,
                                      .usage = {.cpu_us = UINT64_MAX - 5, .instances = 77}};
        struct registry_command c = {.kind = REGISTRY_INSTANCE_END, .instance = &i};
        assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
    }
    assert_true(usage_of(h, "hello").cpu_us == UINT64_MAX);
    assert_int_equal(usage_of(h, "hello").instances, 2); /* whatever a node says */
}

static void ended_instances_are_bounded_oldest_first(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    for (uint64_t n = 1; n <= REGISTRY_ENDED_PER_WORKLOAD_MAX + 3; n++) {
        struct registry_result r = help_reserve(h, "hello", 1, n, "");
        help_end(h, n, r.epoch, 1000 + n);
    }
    assert_null(instance_of(h, 1));
    assert_null(instance_of(h, 3));
    assert_non_null(instance_of(h, 4));
    assert_int_equal(state_content(h->state)->maps[STATE_ENDED].count,
                     REGISTRY_ENDED_PER_WORKLOAD_MAX);
    /* A sweep is bounded as well, and says that there is more. */
    uint64_t late = DAY_MS + 1000000;
    size_t sweeps = 1;
    while (sweep(h, late).changed)
        sweeps++;
    assert_true(sweeps >= REGISTRY_ENDED_PER_WORKLOAD_MAX / STATE_SWEEP_MAX);
    assert_int_equal(state_content(h->state)->maps[STATE_INSTANCES].count, 0);
}

/* --- the rest --------------------------------------------------------------------------------------- */

static struct registry_result token_put(struct help_state *h, const char *id, uint8_t hash,
                                        uint64_t expires)
{
    struct registry_token t = {.role = TOKEN_ROLE_DEPLOY, .expires_wall_ms = expires};
    text_copy(t.id, sizeof t.id, id);
    memset(t.hash, hash, sizeof t.hash);
    struct registry_command c = {.kind = REGISTRY_TOKEN_PUT, .token = &t};
    return help_apply(h, &c);
}

static void tokens_are_made_once_revoked_and_expire(void **state)
{
    struct help_state *h = *state;
    assert_int_equal(token_put(h, "aaaaaaaaaaaaaaaa", 1, 0).problem, PROBLEM_NONE);
    assert_int_equal(token_put(h, "aaaaaaaaaaaaaaaa", 1, 0).problem, PROBLEM_NONE);
    assert_int_equal(token_put(h, "aaaaaaaaaaaaaaaa", 2, 0).problem, PROBLEM_CONFLICT);
    assert_int_equal(token_put(h, "bbbbbbbbbbbbbbbb", 1, 500).problem, PROBLEM_NONE);
    assert_int_equal(token_put(h, "cccccccccccccccc", 1, 501).problem, PROBLEM_NONE);
    sweep(h, 500);
    struct registry_root *root = state_root(h->state);
    assert_non_null(registry_root_token(root, "aaaaaaaaaaaaaaaa", 16));
    assert_null(registry_root_token(root, "bbbbbbbbbbbbbbbb", 16));
    assert_non_null(registry_root_token(root, "cccccccccccccccc", 16));
    registry_root_release(root);
    struct registry_token t = {.id = "cccccccccccccccc"};
    struct registry_command c = {.kind = REGISTRY_TOKEN_REVOKE, .token = &t};
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NOT_FOUND);
}

static void an_image_that_a_version_names_stays(void **state)
{
    struct help_state *h = *state;
    struct registry_image i = {.name = "alpine", .digest = "sha256:00"};
    struct registry_command put = {.kind = REGISTRY_IMAGE_PUT, .image = &i};
    struct registry_command gone = {.kind = REGISTRY_IMAGE_REMOVE, .image = &i};
    assert_int_equal(help_apply(h, &gone).problem, PROBLEM_IMAGE_UNKNOWN);
    assert_int_equal(help_apply(h, &put).problem, PROBLEM_NONE);
    text_copy(i.digest, sizeof i.digest, "sha256:11");
    assert_int_equal(help_apply(h, &put).problem, PROBLEM_NONE);
    struct registry_root *root = state_root(h->state);
    assert_string_equal(registry_root_image(root, "alpine", 6)->digest, "sha256:11");
    registry_root_release(root);
    assert_int_equal(help_deploy(h, "hello", "image: alpine\n").problem, PROBLEM_NONE);
    assert_int_equal(help_apply(h, &gone).problem, PROBLEM_IMAGE_IN_USE);
    by_name(h, REGISTRY_WORKLOAD_REMOVE, "hello", 0);
    assert_int_equal(help_apply(h, &gone).problem, PROBLEM_NONE);
}

static struct registry_result node_put(struct help_state *h, node_id id, const char *name)
{
    struct registry_node n = {.id = id};
    text_copy(n.name, sizeof n.name, name);
    struct registry_command c = {.kind = REGISTRY_NODE_PUT, .node = &n};
    return help_apply(h, &c);
}

static void node_ids_are_counted_and_names_are_unique(void **state)
{
    struct help_state *h = *state;
    assert_int_equal(node_put(h, 1, "one").node, 1);
    assert_int_equal(node_put(h, 2, "two").node, 2);
    assert_int_equal(node_put(h, 2, "zwei").problem, PROBLEM_NONE);
    assert_int_equal(node_put(h, 0, "one").problem, PROBLEM_CONFLICT);
    assert_int_equal(node_put(h, 0, "three").node, 3);
    struct registry_root *root = state_root(h->state);
    assert_string_equal(registry_root_node(root, 2)->name, "zwei");
    assert_null(registry_root_node(root, 4));
    registry_root_release(root);
}

static void a_cluster_is_named_once(void **state)
{
    struct help_state *h = *state;
    struct registry_command c = {.kind = REGISTRY_CLUSTER_INIT, .cluster_id = "0123456789abcdef"};
    assert_true(help_apply(h, &c).changed);
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
    c.cluster_id = "fedcba9876543210";
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_CONFLICT);
    assert_string_equal(state_content(h->state)->cluster_id, "0123456789abcdef");
}

/* --- roots ------------------------------------------------------------------------------------------ */

static void a_root_never_changes(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    struct registry_result r = help_reserve(h, "hello", 1, 1, "");
    struct registry_root *before = state_root(h->state);
    struct registry_root *same = state_root(h->state);
    assert_ptr_equal(before, same);
    registry_root_release(same);
    help_end(h, 1, r.epoch, 1);
    by_name(h, REGISTRY_WORKLOAD_REMOVE, "hello", 0);
    struct registry_root *after = state_root(h->state);
    assert_ptr_not_equal(before, after);
    struct instance_id id = help_instance_id(1, 1);
    assert_int_equal(registry_root_instance(before, id.text, strlen(id.text))->state,
                     INSTANCE_STATE_STARTING);
    assert_int_equal(registry_root_workload(before, "hello", 5)->live, 1);
    assert_null(registry_root_workload(after, "hello", 5));
    assert_true(registry_root_index(after) > registry_root_index(before));
    registry_root_release(before);
    registry_root_release(after);
}

/* --- halting ---------------------------------------------------------------------------------------- */

static void halts_on(struct help_state *h, const uint8_t *bytes, size_t length, const char *why)
{
    struct state_outcome out;
    struct err e = {0};
    uint64_t index = state_content(h->state)->index;
    assert_true(state_apply(h->state, h->index + 1, bytes, length, &out, &e) < 0);
    assert_true(state_halted(h->state));
    assert_non_null(strstr(e.msg, why));
    assert_int_equal(state_content(h->state)->index, index);
}

static void what_it_does_not_know_halts_it_for_good(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    struct registry_command c = {.kind = REGISTRY_SWEEP};
    struct command_session s = {.node = 1, .boot = 1, .sequence = 99};
    uint8_t *good;
    size_t length;
    struct err e;
    assert_int_equal(command_encode(&good, &length, &s, &c, &e), 0);
    uint8_t *later = malloc(length);
    memcpy(later, good, length);
    later[0] = COMMAND_FORMAT + 1;
    halts_on(h, later, length, "format 2");
    /* What came after it would be valid, and still must not be applied. */
    halts_on(h, good, length, "format 2");
    free(good);
    free(later);
}

static void an_unknown_kind_of_command_halts(void **state)
{
    struct help_state *h = *state;
    /* node 1, boot 1 and a body with the unused number 63, empty. */
    static const uint8_t message[] = {0x08, 1, 0x11, 1, 0, 0, 0, 0, 0, 0, 0, 0xfa, 0x03, 0};
    uint8_t bytes[8 + 16] = {COMMAND_FORMAT, 0, 0, 0, sizeof message};
    memcpy(bytes + 8, message, sizeof message);
    halts_on(h, bytes, sizeof bytes, "does not know");
}

static void a_feature_level_above_this_build_halts(void **state)
{
    struct help_state *h = *state;
    struct registry_command c = {.kind = REGISTRY_FEATURE_LEVEL, .version = STATE_FEATURE_LEVEL};
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
    c.version = STATE_FEATURE_LEVEL - 1;
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_CONFLICT);
    c.version = STATE_FEATURE_LEVEL + 1;
    struct command_session s = {.node = 1, .boot = 1, .sequence = 99};
    uint8_t *bytes;
    size_t length;
    struct err e;
    assert_int_equal(command_encode(&bytes, &length, &s, &c, &e), 0);
    halts_on(h, bytes, length, "upgrade this node");
    free(bytes);
}

static void a_leader_does_not_append_what_would_halt(void **state)
{
    struct help_state *h = *state;
    struct err e = {0};
    struct registry_command c = {.kind = REGISTRY_FEATURE_LEVEL, .version = STATE_FEATURE_LEVEL};
    assert_int_equal(state_admits(h->state, &c, &e), 0);
    c.version++;
    assert_int_equal(state_admits(h->state, &c, &e), -ERR_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "upgrade this node first"));
    c.kind = REGISTRY_SWEEP;
    assert_int_equal(state_admits(h->state, &c, &e), 0);
    struct state_content content = *state_content(h->state);
    for (size_t i = 0; i < STATE_MAP_COUNT; i++)
        content.maps[i] = map_hold(&content.maps[i]);
    content.feature_level = 0;
    state_restore(h->state, &content);
    assert_int_equal(state_admits(h->state, &c, &e), -ERR_UNSUPPORTED);
    assert_non_null(strstr(e.msg, "upgrade all nodes"));
}

static void commands_out_of_bounds_are_not_even_encoded(void **state)
{
    (void)state;
    struct registry_instance no_id = {.workload = "hello"};
    struct registry_instance endless = {.id = help_instance_id(1, 1), .version = 1};
    memset(endless.key, 'k', sizeof endless.key);
    struct registry_instance no_reason = {.id = help_instance_id(1, 1)};
    char *huge = malloc(COMMAND_WORKLOAD_JSON_MAX + 2);
    memset(huge, 'x', COMMAND_WORKLOAD_JSON_MAX + 1);
    huge[COMMAND_WORKLOAD_JSON_MAX + 1] = '\0';
    const struct registry_command commands[] = {
        {.kind = 0},
        {.kind = REGISTRY_KEYRING + 1},
        {.kind = REGISTRY_CLUSTER_INIT},
        {.kind = REGISTRY_CLUSTER_INIT, .cluster_id = "0123456789ABCDEF"},
        {.kind = REGISTRY_NODE_PUT},
        {.kind = REGISTRY_WORKLOAD_PUT},
        {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = huge},
        {.kind = REGISTRY_WORKLOAD_REMOVE, .name = "Hello"},
        {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &no_id},
        {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &endless},
        {.kind = REGISTRY_INSTANCE_UPDATE, .instance = &no_reason},
        {.kind = REGISTRY_INSTANCE_END, .instance = &no_reason},
        {.kind = REGISTRY_TOKEN_PUT},
        {.kind = REGISTRY_IMAGE_PUT},
    };
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        struct command_session s = {0};
        uint8_t *bytes;
        size_t length;
        struct err e = {0};
        assert_int_equal(command_encode(&bytes, &length, &s, &commands[i], &e), -ERR_INVALID);
    }
    free(huge);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_same_spec_again_makes_no_version),
        TEST(a_spec_that_cannot_be_is_refused_and_changes_nothing),
        TEST(old_versions_are_forgotten_but_for_those_in_use),
        TEST(there_are_no_more_versions_than_may_be),
        TEST(specs_take_no_more_bytes_than_they_may),
        TEST(a_rollback_makes_the_old_spec_a_new_version),
        TEST(a_port_of_the_nodes_is_one_workloads),
        TEST(a_removed_workload_never_uses_a_version_again),
        TEST(a_reservation_needs_a_workload_a_version_and_its_owner),
        TEST(reserving_the_same_again_is_the_same_reservation),
        TEST(a_key_has_one_holder_at_a_time),
        TEST(scale_max_counts_what_has_not_ended),
        TEST(rooms_of_older_versions_count_for_scale_max),
        TEST(a_stale_epoch_changes_nothing),
        TEST(an_end_is_final_and_may_be_told_twice),
        TEST(what_was_used_adds_up_and_outlives_its_instances),
        TEST(sums_of_what_was_used_stay_at_the_end_of_their_range),
        TEST(ended_instances_are_bounded_oldest_first),
        TEST(tokens_are_made_once_revoked_and_expire),
        TEST(an_image_that_a_version_names_stays),
        TEST(node_ids_are_counted_and_names_are_unique),
        TEST(a_cluster_is_named_once),
        TEST(a_root_never_changes),
        TEST(a_leader_does_not_append_what_would_halt),
        TEST(what_it_does_not_know_halts_it_for_good),
        TEST(an_unknown_kind_of_command_halts),
        TEST(a_feature_level_above_this_build_halts),
        TEST(commands_out_of_bounds_are_not_even_encoded),
    };
    return cmocka_run_group_tests_name("state", tests, NULL, NULL);
}
