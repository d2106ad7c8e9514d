/* Nodes through the API: drained, undrained, made the leader. */
#include "tests/lib/api_client.h"

static struct fake fake;

static int setup(void **state)
{
    *state = &fake;
    fake_open(&fake, NULL);
    return 0;
}

static int teardown(void **state)
{
    fake_close(*state);
    return 0;
}

static bool drains(struct fake *f)
{
    (void)pthread_mutex_lock(&f->lock);
    struct registry_root *root = state_root(f->state);
    bool draining = registry_root_node(root, 1)->draining;
    registry_root_release(root);
    (void)pthread_mutex_unlock(&f->lock);
    return draining;
}

static void a_node_is_drained_by_name_or_id(void **state)
{
    struct fake *f = *state;
    struct request q = {.method = "POST", .path = "/v1/nodes/node1/drain"};
    json_decref(client_json(f, &q, 200));
    assert_true(drains(f));
    q.path = "/v1/nodes/1/undrain";
    json_decref(client_json(f, &q, 200));
    assert_false(drains(f));
    q.path = "/v1/nodes/node9/drain";
    client_refused(f, &q, PROBLEM_NOT_FOUND);
    q.path = "/v1/operator/raft/transfer?to=node1";
    struct answer a = client(f, &q);
    assert_int_equal(a.status, 204);
    answer_free(&a);
    assert_int_equal(fake_get(f, transferred), 1);
    q.path = "/v1/operator/raft/transfer?to=node9";
    client_refused(f, &q, PROBLEM_NOT_FOUND);
}

static json_t *keys_of(struct fake *f, size_t count)
{
    struct request q = {.method = "GET", .path = "/v1/operator/keyring"};
    json_t *keys = client_json(f, &q, 200);
    assert_int_equal(json_array_size(keys), count);
    return keys;
}

static void the_keyring_is_changed_by_ids(void **state)
{
    struct fake *f = *state;
    char path[96];
    struct request q = {.method = "POST", .path = "/v1/operator/keyring"};
    json_t *first = client_json(f, &q, 201), *second = client_json(f, &q, 201);
    const char *used = json_string_value(json_object_get(first, "id"));
    const char *other = json_string_value(json_object_get(second, "id"));
    assert_true(json_is_false(json_object_get(first, "used")));
    (void)text_format(path, sizeof path, "/v1/operator/keyring/%s/use", used);
    q.path = path;
    struct answer a = client(f, &q);
    assert_int_equal(a.status, 204);
    answer_free(&a);
    (void)text_format(path, sizeof path, "/v1/operator/keyring/%s", used);
    q = (struct request){.method = "DELETE", .path = path};
    client_refused(f, &q, PROBLEM_CONFLICT);
    (void)text_format(path, sizeof path, "/v1/operator/keyring/%s/use", other);
    q.method = "POST";
    a = client(f, &q);
    assert_int_equal(a.status, 204);
    answer_free(&a);
    (void)text_format(path, sizeof path, "/v1/operator/keyring/%s", used);
    q.method = "DELETE";
    a = client(f, &q);
    assert_int_equal(a.status, 204);
    answer_free(&a);
    json_t *keys = keys_of(f, 1), *key = json_array_get(keys, 0);
    assert_string_equal(json_string_value(json_object_get(key, "id")), other);
    assert_true(json_is_true(json_object_get(key, "used")));
    json_decref(keys);
    q.path = "/v1/operator/keyring/00000000";
    client_refused(f, &q, PROBLEM_NOT_FOUND);
    json_decref(first);
    json_decref(second);
}

static void the_last_node_is_not_removed(void **state)
{
    struct fake *f = *state;
    struct request q = {.method = "DELETE", .path = "/v1/nodes/node1"};
    client_refused(f, &q, PROBLEM_CONFLICT);
    q.path = "/v1/nodes/node9";
    client_refused(f, &q, PROBLEM_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_node_is_drained_by_name_or_id),
        cmocka_unit_test(the_keyring_is_changed_by_ids),
        cmocka_unit_test(the_last_node_is_not_removed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
