/* Keys of SSH in the registry's state machine, fed by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state_parts.h"
#include "tests/lib/registry_help.h"

#define ID "0123456789abcdef"

static int setup(void **state)
{
    struct help_state *h = malloc(sizeof *h);
    help_state_open(h);
    *state = h;
    return 0;
}

static int teardown(void **state)
{
    help_state_close(*state);
    free(*state);
    return 0;
}

static struct registry_ssh_key key_of(const char *id, const char *workload, uint8_t first)
{
    struct registry_ssh_key key = {.blob = {first, 2, 3}, .blob_length = 3};
    (void)text_copy(key.id, sizeof key.id, id);
    (void)text_copy(key.workload, sizeof key.workload, workload);
    return key;
}

static struct registry_result put(struct help_state *h, struct registry_ssh_key key)
{
    return help_apply(h, &(struct registry_command){.kind = REGISTRY_SSH_KEY_PUT, .ssh_key = &key});
}

static const struct registry_ssh_key *find(struct help_state *h, const char *id)
{
    struct registry_root *root = state_root(h->state);
    const struct registry_ssh_key *key = registry_root_ssh_key(root, id, strlen(id));
    registry_root_release(root);
    return key;
}

static void key_is_kept_with_what_it_is_for(void **state)
{
    struct help_state *h = *state;
    assert_true(put(h, key_of(ID, "chat", 1)).changed);
    const struct registry_ssh_key *key = find(h, ID);
    assert_non_null(key);
    assert_string_equal(key->workload, "chat");
    assert_int_equal(key->blob_length, 3);
    assert_null(find(h, "0123456789abcde0"));
}

static void same_key_again_changes_nothing(void **state)
{
    struct help_state *h = *state;
    put(h, key_of(ID, "chat", 1));
    struct registry_result r = put(h, key_of(ID, "chat", 1));
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_false(r.changed);
}

static void another_key_under_its_id_is_refused(void **state)
{
    struct help_state *h = *state;
    put(h, key_of(ID, "chat", 1));
    assert_int_equal(put(h, key_of(ID, "chat", 9)).problem, PROBLEM_CONFLICT);
    assert_int_equal(put(h, key_of(ID, "", 1)).problem, PROBLEM_CONFLICT);
    assert_int_equal(find(h, ID)->blob[0], 1);
}

static void removed_key_is_gone(void **state)
{
    struct help_state *h = *state;
    struct registry_ssh_key key = key_of(ID, "", 1);
    put(h, key);
    struct registry_command c = {.kind = REGISTRY_SSH_KEY_REMOVE, .ssh_key = &key};
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
    assert_null(find(h, ID));
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NOT_FOUND);
}

static void first_host_key_stays(void **state)
{
    struct help_state *h = *state;
    static const uint8_t first[REGISTRY_SSH_SEED_BYTES] = {1};
    static const uint8_t second[REGISTRY_SSH_SEED_BYTES] = {2};
    uint8_t seed[REGISTRY_SSH_SEED_BYTES];
    struct registry_root *root = state_root(h->state);
    assert_false(registry_root_ssh_seed(root, seed));
    registry_root_release(root);
    struct registry_command c = {.kind = REGISTRY_SSH_HOST_KEY, .ssh_seed = first};
    assert_true(help_apply(h, &c).changed);
    c.ssh_seed = second;
    assert_false(help_apply(h, &c).changed);
    root = state_root(h->state);
    assert_true(registry_root_ssh_seed(root, seed));
    registry_root_release(root);
    assert_memory_equal(seed, first, sizeof seed);
}

static void commands_out_of_bounds_do_not_encode(void **state)
{
    (void)state;
    static const uint8_t zeros[REGISTRY_SSH_SEED_BYTES];
    struct registry_ssh_key key = key_of(ID, "", 1);
    struct registry_command c = {.kind = REGISTRY_SSH_KEY_PUT, .ssh_key = &key};
    assert_null(command_fault(&c));
    key.blob_length = 0;
    assert_non_null(command_fault(&c));
    key.blob_length = REGISTRY_SSH_BLOB_MAX + 1;
    assert_non_null(command_fault(&c));
    key = key_of(ID, "No-Name", 1);
    assert_non_null(command_fault(&c));
    key = key_of("short", "", 1);
    assert_non_null(command_fault(&c));
    c = (struct registry_command){.kind = REGISTRY_SSH_HOST_KEY, .ssh_seed = zeros};
    assert_non_null(command_fault(&c));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(key_is_kept_with_what_it_is_for, setup, teardown),
        cmocka_unit_test_setup_teardown(same_key_again_changes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(another_key_under_its_id_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(removed_key_is_gone, setup, teardown),
        cmocka_unit_test_setup_teardown(first_host_key_stays, setup, teardown),
        cmocka_unit_test(commands_out_of_bounds_do_not_encode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
