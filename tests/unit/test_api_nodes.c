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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_node_is_drained_by_name_or_id),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
