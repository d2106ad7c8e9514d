/* Nodes, leases and gossip's keys in the registry's state machine, fed by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "raft/snapshot.h"
#include "raft/state_parts.h"
#include "tests/lib/registry_help.h"

#define ADDRESS "10.0.0.9:7600"
#define TOKEN "nnnnnnnnnnnnnnnn"

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

static const struct registry_node *node_of(struct help_state *h, node_id id)
{
    struct registry_root *root = state_root(h->state);
    const struct registry_node *n = registry_root_node(root, id);
    registry_root_release(root); /* the state still holds it */
    return n;
}

static const struct registry_node *node_named(struct help_state *h, const char *name)
{
    struct registry_root *root = state_root(h->state);
    const struct registry_node *n = registry_root_node_named(root, name);
    registry_root_release(root);
    return n;
}

static node_id node_id_next(struct help_state *h)
{
    struct registry_root *root = state_root(h->state);
    node_id next = registry_root_node_id_next(root);
    registry_root_release(root);
    return next;
}

static const struct registry_instance *instance_of(struct help_state *h, node_id owner, uint64_t n)
{
    struct registry_root *root = state_root(h->state);
    struct instance_id id = help_instance_id(owner, n);
    const struct registry_instance *i = registry_root_instance(root, id.text, strlen(id.text));
    registry_root_release(root);
    return i;
}

static struct registry_result of_node(struct help_state *h, enum registry_command_kind kind,
                                      const struct registry_node *node)
{
    static const uint8_t key[REGISTRY_GOSSIP_KEY_BYTES] = {0xee};
    struct registry_command c = {.kind = kind, .wall_ms = 5000, .node = node, .gossip_key = key};
    return help_apply(h, &c);
}

static struct registry_result grant(struct help_state *h, node_id id)
{
    return of_node(h, REGISTRY_LEASE_GRANT, &(struct registry_node){.id = id});
}

static struct registry_result expire(struct help_state *h, node_id id, uint64_t epoch)
{
    return of_node(h, REGISTRY_LEASE_EXPIRE,
                   &(struct registry_node){.id = id, .lease_epoch = epoch});
}

static struct registry_result drain(struct help_state *h, node_id id, bool draining)
{
    return of_node(h, REGISTRY_NODE_DRAIN, &(struct registry_node){.id = id, .draining = draining});
}

static struct registry_result remove_node(struct help_state *h, node_id id)
{
    return of_node(h, REGISTRY_NODE_REMOVE, &(struct registry_node){.id = id});
}

static struct registry_result put(struct help_state *h, struct registry_node node)
{
    return of_node(h, REGISTRY_NODE_PUT, &node);
}

static struct registry_result sweep(struct help_state *h)
{
    struct registry_command c = {.kind = REGISTRY_SWEEP, .wall_ms = 6000};
    return help_apply(h, &c);
}

static struct registry_result reserve_for(struct help_state *h, node_id owner, uint64_t n,
                                          const char *key)
{
    struct registry_instance i = {.id = help_instance_id(owner, n),
                                  .owner = owner,
                                  .version = 1,
                                  .workload = "hello",
                                  .started_wall_ms = n};
    assert_true(text_copy(i.key, sizeof i.key, key));
    struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &i};
    return help_apply(h, &c);
}

static struct registry_result join_at(struct help_state *h, const char *name, uint8_t key,
                                      const char *token, uint64_t wall_ms)
{
    struct registry_node node = {.address = ADDRESS, .public_key = {key}};
    struct registry_token t = {0};
    assert_true(text_copy(node.name, sizeof node.name, name) &&
                text_copy(t.id, sizeof t.id, token));
    struct registry_command c = {
        .kind = REGISTRY_NODE_JOIN, .wall_ms = wall_ms, .node = &node, .token = &t};
    return help_apply(h, &c);
}

static void token_put(struct help_state *h, enum token_role role, uint64_t expires_wall_ms)
{
    struct registry_token t = {.id = TOKEN, .role = role, .expires_wall_ms = expires_wall_ms};
    struct registry_command c = {.kind = REGISTRY_TOKEN_PUT, .token = &t};
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
}

static bool token_there(struct help_state *h)
{
    struct registry_root *root = state_root(h->state);
    bool there = registry_root_token(root, TOKEN, strlen(TOKEN)) != NULL;
    registry_root_release(root);
    return there;
}

/* With a fresh token. */
static struct registry_result join(struct help_state *h, const char *name, uint8_t key)
{
    if (!token_there(h))
        token_put(h, TOKEN_ROLE_NODE, 0);
    return join_at(h, name, key, TOKEN, 5000);
}

/* --- putting ---------------------------------------------------------------------------------------- */

static void putting_changes_what_is_given_and_nothing_else(void **state)
{
    struct help_state *h = *state;
    uint64_t epoch = help_lease(h, 1);
    drain(h, 1, true);
    struct registry_result r = put(h, (struct registry_node){.id = 1, .address = ADDRESS});
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_int_equal(r.node, 1);
    put(h, (struct registry_node){.id = 1, .public_key = {7}, .lease_epoch = 99});
    put(h, (struct registry_node){.id = 1, .name = "eins"});
    const struct registry_node *n = node_of(h, 1);
    assert_string_equal(n->name, "eins");
    assert_string_equal(n->address, ADDRESS);
    assert_int_equal(n->public_key[0], 7);
    assert_true(n->draining && n->leased);
    assert_int_equal(n->lease_epoch, epoch);
    assert_ptr_equal(node_named(h, "eins"), n);
    assert_null(node_named(h, "node1"));
    /* A new one has no lease, whatever is said. */
    r = put(h, (struct registry_node){.name = "zwei", .leased = true, .draining = true});
    assert_int_equal(r.node, 2);
    assert_false(node_of(h, 2)->leased || node_of(h, 2)->draining);
}

static void names_keys_and_ids_belong_to_one_node(void **state)
{
    struct help_state *h = *state;
    assert_int_equal(put(h, (struct registry_node){.name = "one", .public_key = {1}}).node, 1);
    assert_int_equal(put(h, (struct registry_node){.name = "two"}).node, 2);
    assert_int_equal(put(h, (struct registry_node){.name = "three"}).node, 3);
    assert_int_equal(put(h, (struct registry_node){.id = 2, .name = "one"}).problem,
                     PROBLEM_CONFLICT);
    assert_int_equal(put(h, (struct registry_node){.id = 2, .public_key = {1}}).problem,
                     PROBLEM_CONFLICT);
    assert_int_equal(put(h, (struct registry_node){.name = "four", .public_key = {1}}).problem,
                     PROBLEM_CONFLICT);
    /* A number that is skipped would be gone; the last of all would end all joining. */
    assert_int_equal(put(h, (struct registry_node){.id = UINT64_MAX, .name = "max"}).problem,
                     PROBLEM_CONFLICT);
    assert_int_equal(put(h, (struct registry_node){.id = 5, .name = "five"}).problem,
                     PROBLEM_CONFLICT);
    assert_int_equal(node_id_next(h), 4);
    assert_int_equal(put(h, (struct registry_node){.id = 4}).problem, PROBLEM_BAD_REQUEST);
    assert_int_equal(put(h, (struct registry_node){.id = 4, .name = "four"}).node, 4);
    assert_string_equal(node_of(h, 2)->name, "two");
}

static void there_are_no_more_nodes_than_may_be(void **state)
{
    struct help_state *h = *state;
    char name[16];
    for (unsigned i = 1; i <= STATE_NODES_MAX; i++) {
        snprintf(name, sizeof name, "n%u", i);
        struct registry_node n = {0};
        text_copy(n.name, sizeof n.name, name);
        assert_int_equal(put(h, n).node, i);
    }
    assert_int_equal(put(h, (struct registry_node){.name = "more"}).problem, PROBLEM_LIMIT_REACHED);
    assert_int_equal(join(h, "more", 1).problem, PROBLEM_LIMIT_REACHED);
    assert_true(token_there(h));
    /* One that replaces another has its place. */
    assert_int_equal(join(h, "n7", 1).replaced, 7);
    assert_int_equal(state_content(h->state)->maps[STATE_NODES].count, STATE_NODES_MAX);
}

/* --- joining and leaving ------------------------------------------------------------------------------ */

static void joining_consumes_its_token(void **state)
{
    struct help_state *h = *state;
    help_lease(h, 1);
    token_put(h, TOKEN_ROLE_NODE, 0);
    struct registry_result r = join_at(h, "two", 2, TOKEN, 1);
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_int_equal(r.node, 2);
    assert_int_equal(r.replaced, 0);
    assert_false(token_there(h));
    const struct registry_node *n = node_of(h, 2);
    assert_string_equal(n->name, "two");
    assert_string_equal(n->address, ADDRESS);
    assert_int_equal(n->public_key[0], 2);
    assert_false(n->leased || n->draining);
    assert_int_equal(join_at(h, "three", 3, TOKEN, 1).problem, PROBLEM_UNAUTHORIZED);
    assert_int_equal(node_id_next(h), 3);
}

static void a_token_of_another_role_or_too_old_joins_nobody(void **state)
{
    struct help_state *h = *state;
    help_lease(h, 1);
    for (enum token_role role = TOKEN_ROLE_ADMIN; role <= TOKEN_ROLE_INVOKE; role++) {
        token_put(h, role, 0);
        assert_int_equal(join_at(h, "two", 2, TOKEN, 1).problem, PROBLEM_UNAUTHORIZED);
        assert_true(token_there(h));
        struct registry_token t = {.id = TOKEN};
        struct registry_command c = {.kind = REGISTRY_TOKEN_REVOKE, .token = &t};
        help_apply(h, &c);
    }
    token_put(h, TOKEN_ROLE_NODE, 100);
    assert_int_equal(join_at(h, "two", 2, TOKEN, 100).problem, PROBLEM_UNAUTHORIZED);
    assert_int_equal(join_at(h, "two", 2, TOKEN, 99).problem, PROBLEM_NONE);
}

static void a_join_that_is_refused_keeps_its_token(void **state)
{
    struct help_state *h = *state;
    help_lease(h, 1);
    put(h, (struct registry_node){.id = 1, .public_key = {1}});
    struct registry_result r = join(h, "two", 1);
    assert_int_equal(r.problem, PROBLEM_CONFLICT);
    assert_non_null(strstr(r.detail, "node1"));
    assert_int_equal(r.node, 0);
    /* The only node is not replaced: nobody would be left to vote. */
    assert_int_equal(join(h, "node1", 2).problem, PROBLEM_CONFLICT);
    assert_true(token_there(h));
    assert_int_equal(node_id_next(h), 2);
    assert_int_equal(join(h, "two", 2).node, 2);
}

static void a_known_name_with_another_key_is_replaced(void **state)
{
    struct help_state *h = *state;
    help_lease(h, 1);
    help_deploy(h, "hello", "");
    assert_int_equal(join(h, "two", 2).node, 2);
    grant(h, 2);
    assert_int_equal(reserve_for(h, 2, 1, "room").problem, PROBLEM_NONE);
    struct registry_result r = join(h, "two", 3);
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_int_equal(r.node, 3);
    assert_int_equal(r.replaced, 2);
    assert_null(node_of(h, 2));
    assert_int_equal(node_named(h, "two")->id, 3);
    assert_false(node_of(h, 3)->leased);
    const struct registry_instance *i = instance_of(h, 2, 1);
    assert_int_equal(i->state, INSTANCE_STATE_ENDED);
    assert_int_equal(i->reason, END_NODE_LOST);
    assert_int_equal(i->ended_wall_ms, 5000);
    /* The old entry does not come back. */
    assert_int_equal(put(h, (struct registry_node){.id = 2, .name = "zwei"}).problem,
                     PROBLEM_CONFLICT);
    assert_int_equal(grant(h, 2).problem, PROBLEM_NOT_FOUND);
    /* With its own key it lost its folder but for that: its log may be gone, so its id is, too. */
    r = join(h, "two", 3);
    assert_int_equal(r.node, 4);
    assert_int_equal(r.replaced, 3);
}

static void a_removed_node_holds_nothing_and_the_keys_change(void **state)
{
    struct help_state *h = *state;
    struct registry_gossip_key ring[REGISTRY_KEYRING_MAX];
    help_deploy(h, "hello", "");
    help_lease(h, 1);
    help_lease(h, 2);
    reserve_for(h, 1, 1, "");
    reserve_for(h, 2, 1, "room");
    struct registry_result r = remove_node(h, 2);
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_false(r.changed);
    assert_null(node_of(h, 2));
    assert_int_equal(instance_of(h, 2, 1)->reason, END_NODE_LOST);
    assert_int_equal(instance_of(h, 1, 1)->state, INSTANCE_STATE_STARTING);
    assert_int_equal(reserve_for(h, 1, 2, "room").problem, PROBLEM_NONE);
    assert_int_equal(reserve_for(h, 2, 3, "").problem, PROBLEM_NODE_FULL);
    struct registry_root *root = state_root(h->state);
    assert_int_equal(registry_root_keyring(root, ring), 1);
    registry_root_release(root);
    assert_true(ring[0].used);
    assert_int_equal(ring[0].bytes[0], 0xee);
    assert_int_equal(remove_node(h, 2).problem, PROBLEM_NOT_FOUND);
    assert_int_equal(remove_node(h, 1).problem, PROBLEM_CONFLICT);
    assert_int_equal(node_id_next(h), 3);
    assert_int_equal(put(h, (struct registry_node){.name = "node2"}).node, 3);
}

/* --- leases ------------------------------------------------------------------------------------------ */

static void a_lease_is_granted_once_and_has_a_new_epoch_each_time(void **state)
{
    struct help_state *h = *state;
    put(h, (struct registry_node){.name = "one"});
    struct registry_result first = grant(h, 1);
    assert_true(first.changed);
    assert_true(first.epoch >> 40 == 1);
    struct registry_result again = grant(h, 1);
    assert_false(again.changed);
    assert_int_equal(again.epoch, first.epoch);
    assert_int_equal(node_of(h, 1)->lease_epoch, first.epoch);
    assert_false(expire(h, 1, first.epoch).changed);
    assert_false(node_of(h, 1)->leased);
    struct registry_result second = grant(h, 1);
    assert_true(second.epoch > first.epoch);
    assert_int_equal(expire(h, 1, first.epoch).problem, PROBLEM_CONFLICT);
    assert_true(node_of(h, 1)->leased);
    assert_int_equal(grant(h, 2).problem, PROBLEM_NOT_FOUND);
    assert_int_equal(expire(h, 2, second.epoch).problem, PROBLEM_NOT_FOUND);
}

static void who_has_no_lease_or_drains_gets_no_instance(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "");
    assert_int_equal(reserve_for(h, 1, 1, "").problem, PROBLEM_NODE_FULL);
    put(h, (struct registry_node){.name = "one"});
    assert_int_equal(reserve_for(h, 1, 1, "").problem, PROBLEM_NODE_FULL);
    uint64_t epoch = grant(h, 1).epoch;
    struct registry_result r = reserve_for(h, 1, 1, "");
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_true(r.epoch > epoch);
    assert_true(drain(h, 1, true).changed);
    assert_false(drain(h, 1, true).changed);
    assert_int_equal(reserve_for(h, 1, 2, "").problem, PROBLEM_NODE_FULL);
    /* What stands is told again to a node that drains, whose first answer may be lost. */
    assert_int_equal(reserve_for(h, 1, 1, "").epoch, r.epoch);
    assert_true(drain(h, 1, false).changed);
    assert_int_equal(reserve_for(h, 1, 2, "").problem, PROBLEM_NONE);
    assert_int_equal(drain(h, 9, true).problem, PROBLEM_NOT_FOUND);
}

static void the_end_of_a_lease_ends_what_it_held(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "scale: {max: 2}\n");
    uint64_t epoch = help_lease(h, 1);
    help_lease(h, 2);
    struct registry_result r = reserve_for(h, 1, 1, "room");
    struct registry_instance ready = {
        .id = help_instance_id(1, 1), .epoch = r.epoch, .state = INSTANCE_STATE_READY};
    struct registry_command c = {.kind = REGISTRY_INSTANCE_UPDATE, .instance = &ready};
    help_apply(h, &c);
    reserve_for(h, 2, 2, "");
    assert_int_equal(expire(h, 1, epoch - 1).problem, PROBLEM_CONFLICT);
    assert_int_equal(instance_of(h, 1, 1)->state, INSTANCE_STATE_READY);
    assert_false(expire(h, 1, epoch).changed);
    const struct registry_instance *i = instance_of(h, 1, 1);
    assert_int_equal(i->state, INSTANCE_STATE_ENDED);
    assert_int_equal(i->reason, END_NODE_LOST);
    assert_int_equal(i->ended_wall_ms, 5000);
    assert_int_equal(i->exit_code, -1);
    assert_int_equal(instance_of(h, 2, 2)->state, INSTANCE_STATE_STARTING);
    assert_int_equal(reserve_for(h, 1, 3, "").problem, PROBLEM_NODE_FULL);
    /* Its key and its place are free for another node. */
    assert_int_equal(reserve_for(h, 2, 3, "room").problem, PROBLEM_NONE);
    /* The node that was cut off comes too late. */
    c.kind = REGISTRY_INSTANCE_END;
    ready.reason = END_EXITED;
    assert_false(help_apply(h, &c).changed);
    assert_int_equal(instance_of(h, 1, 1)->reason, END_NODE_LOST);
}

static void many(struct help_state *h, node_id owner, uint64_t count)
{
    for (uint64_t n = 1; n <= count; n++)
        assert_int_equal(reserve_for(h, owner, n, "").problem, PROBLEM_NONE);
}

static uint64_t live(struct help_state *h)
{
    return state_content(h->state)->live;
}

static void a_lost_node_ends_in_steps_and_gets_nothing_meanwhile(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "scale: {max: 100000}\n");
    uint64_t epoch = help_lease(h, 1);
    many(h, 1, STATE_LOST_MAX * 2 + 10);
    struct registry_result r = expire(h, 1, epoch);
    assert_true(r.changed);
    assert_int_equal(live(h), STATE_LOST_MAX + 10);
    assert_int_equal(reserve_for(h, 1, 9999, "").problem, PROBLEM_NODE_FULL);
    /* Not even what still stands. */
    assert_int_equal(reserve_for(h, 1, STATE_LOST_MAX * 2 + 10, "").problem, PROBLEM_NODE_FULL);
    assert_true(expire(h, 1, epoch).changed);
    assert_int_equal(live(h), 10);
    assert_false(expire(h, 1, epoch).changed);
    assert_int_equal(live(h), 0);
    assert_int_equal(grant(h, 1).problem, PROBLEM_NONE);
}

static void no_instance_outlives_its_lease_into_the_next(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "scale: {max: 100000}\n");
    uint64_t epoch = help_lease(h, 1);
    many(h, 1, STATE_LOST_MAX * 3 + 1);
    expire(h, 1, epoch);
    struct registry_result r = grant(h, 1);
    assert_int_equal(r.problem, PROBLEM_CONFLICT);
    assert_false(node_of(h, 1)->leased);
    assert_int_equal(live(h), STATE_LOST_MAX + 1);
    assert_int_equal(grant(h, 1).problem, PROBLEM_CONFLICT);
    assert_int_equal(live(h), 1);
    r = grant(h, 1);
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_true(r.epoch > epoch);
    assert_int_equal(live(h), 0);
}

static void a_sweep_ends_what_removed_and_lost_nodes_left(void **state)
{
    struct help_state *h = *state;
    help_deploy(h, "hello", "scale: {max: 100000}\n");
    help_lease(h, 1);
    uint64_t epoch = help_lease(h, 2);
    help_lease(h, 3);
    many(h, 1, 20);
    many(h, 2, STATE_LOST_MAX + 30);
    many(h, 3, STATE_LOST_MAX * 2 + 40);
    assert_true(remove_node(h, 3).changed);
    expire(h, 2, epoch);
    assert_int_equal(live(h), 20 + 30 + STATE_LOST_MAX + 40);
    assert_true(sweep(h).changed);
    assert_int_equal(live(h), 20 + 70);
    assert_false(sweep(h).changed);
    assert_int_equal(live(h), 20);
    assert_int_equal(instance_of(h, 3, 1)->reason, END_NODE_LOST);
    sweep(h);
    assert_int_equal(live(h), 20);
    assert_int_equal(instance_of(h, 1, 1)->state, INSTANCE_STATE_STARTING);
}

static void a_registry_older_than_leases_keeps_its_instances(void **state)
{
    struct help_state *h = *state;
    struct err e;
    help_deploy(h, "hello", "");
    help_lease(h, 1);
    many(h, 1, 3);
    struct state_content old = *state_content(h->state);
    for (size_t i = 0; i < STATE_MAP_COUNT; i++)
        old.maps[i] = map_hold(&old.maps[i]);
    assert_int_equal(state_node_put(&old, &(struct registry_node){.id = 1, .name = "node1"}, &e),
                     0);
    state_restore(h->state, &old);
    assert_int_equal(expire(h, 1, 0).problem, PROBLEM_CONFLICT);
    sweep(h);
    assert_int_equal(live(h), 3);
    assert_int_equal(reserve_for(h, 1, 9, "").problem, PROBLEM_NODE_FULL);
    uint64_t epoch = grant(h, 1).epoch;
    assert_int_equal(live(h), 3);
    assert_int_equal(reserve_for(h, 1, 9, "").problem, PROBLEM_NONE);
    expire(h, 1, epoch);
    assert_int_equal(live(h), 0);
}

/* What this thread has computed: the machine may be busy with others. */
static uint64_t thread_us(void)
{
    struct timespec t;
    assert_int_equal(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t), 0);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* Says how long it takes, and asserts nothing about time. */
static void what_a_lost_node_costs(void **state)
{
    (void)state;
    struct help_state h;
    help_state_open(&h);
    uint64_t longest = 0, all = 0, epochs[3];
    for (node_id owner = 1; owner <= 2; owner++)
        epochs[owner] = help_lease(&h, owner);
    char name[16], key[16];
    for (unsigned w = 0; w < 20; w++) {
        snprintf(name, sizeof name, "workload-%u", w);
        help_deploy(&h, name, "scale: {max: 100000}\n");
        for (unsigned i = 0; i < 5000; i++) {
            struct registry_instance instance = {
                .id = help_instance_id(1 + i % 2, w * 5000 + i), .owner = 1 + i % 2, .version = 1};
            snprintf(key, sizeof key, "room-%u", i);
            text_copy(instance.workload, sizeof instance.workload, name);
            text_copy(instance.key, sizeof instance.key, key);
            struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &instance};
            assert_int_equal(help_apply(&h, &c).problem, PROBLEM_NONE);
        }
    }
    struct registry_root *root = state_root(h.state);
    unsigned count = 0;
    for (bool more = true; more; count++) {
        uint64_t begin = thread_us();
        more = expire(&h, 2, epochs[2]).changed;
        uint64_t took = thread_us() - begin;
        longest = took > longest ? took : longest;
        all += took;
    }
    registry_root_release(root);
    printf("%u commands end 50000 of 100000 instances in %.1f ms each; the longest took %.1f ms\n",
           count, (double)all / 1e3 / count, (double)longest / 1e3);
    assert_int_equal(count, 50000 / STATE_LOST_MAX);
    state_free(h.state);
}

/* --- gossip's keys ------------------------------------------------------------------------------------ */

static struct registry_result keyring(struct help_state *h, enum registry_keyring_verb verb,
                                      uint8_t byte)
{
    uint8_t key[REGISTRY_GOSSIP_KEY_BYTES] = {byte};
    struct registry_command c = {.kind = REGISTRY_KEYRING, .keyring_verb = verb, .gossip_key = key};
    return help_apply(h, &c);
}

/* The first bytes of the ring; the used one is upper-case. */
static void assert_ring(struct help_state *h, const char *expected)
{
    struct registry_gossip_key ring[REGISTRY_KEYRING_MAX];
    char is[REGISTRY_KEYRING_MAX + 1] = {0};
    struct registry_root *root = state_root(h->state);
    size_t count = registry_root_keyring(root, ring);
    registry_root_release(root);
    for (size_t i = 0; i < count; i++)
        is[i] = (char)(ring[i].used ? ring[i].bytes[0] - 'a' + 'A' : ring[i].bytes[0]);
    assert_string_equal(is, expected);
}

static void a_key_is_added_then_used_then_the_old_one_goes(void **state)
{
    struct help_state *h = *state;
    assert_ring(h, "");
    uint8_t first[REGISTRY_GOSSIP_KEY_BYTES] = {'a'};
    struct registry_command c = {
        .kind = REGISTRY_CLUSTER_INIT, .cluster_id = "0123456789abcdef", .gossip_key = first};
    assert_true(help_apply(h, &c).changed);
    assert_ring(h, "A");
    first[0] = 'z'; /* the ring of a cluster that has one stays */
    assert_false(help_apply(h, &c).changed);
    assert_true(keyring(h, REGISTRY_KEYRING_ADD, 'b').changed);
    assert_ring(h, "Ab");
    assert_false(keyring(h, REGISTRY_KEYRING_ADD, 'b').changed);
    assert_int_equal(keyring(h, REGISTRY_KEYRING_REMOVE, 'a').problem, PROBLEM_CONFLICT);
    assert_int_equal(keyring(h, REGISTRY_KEYRING_USE, 'c').problem, PROBLEM_NOT_FOUND);
    assert_ring(h, "Ab");
    assert_true(keyring(h, REGISTRY_KEYRING_USE, 'b').changed);
    assert_false(keyring(h, REGISTRY_KEYRING_USE, 'b').changed);
    assert_ring(h, "aB");
    assert_true(keyring(h, REGISTRY_KEYRING_REMOVE, 'a').changed);
    assert_false(keyring(h, REGISTRY_KEYRING_REMOVE, 'a').changed);
    assert_ring(h, "B");
}

static void a_cluster_without_a_key_gets_one_later(void **state)
{
    struct help_state *h = *state;
    uint8_t key[REGISTRY_GOSSIP_KEY_BYTES] = {'a'};
    struct registry_command c = {.kind = REGISTRY_CLUSTER_INIT, .cluster_id = "0123456789abcdef"};
    help_apply(h, &c);
    assert_ring(h, "");
    c.cluster_id = "fedcba9876543210";
    c.gossip_key = key;
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_CONFLICT);
    assert_ring(h, "");
    c.cluster_id = "0123456789abcdef";
    assert_true(help_apply(h, &c).changed);
    assert_ring(h, "A");
}

static void the_ring_is_bounded_and_a_removal_finds_room(void **state)
{
    struct help_state *h = *state;
    for (uint8_t i = 0; i < REGISTRY_KEYRING_MAX; i++)
        assert_int_equal(keyring(h, REGISTRY_KEYRING_ADD, 'a' + i).problem, PROBLEM_NONE);
    assert_int_equal(keyring(h, REGISTRY_KEYRING_ADD, 'z').problem, PROBLEM_LIMIT_REACHED);
    keyring(h, REGISTRY_KEYRING_USE, 'a');
    assert_ring(h, "Abcdefgh");
    help_lease(h, 1);
    help_lease(h, 2);
    uint8_t key[REGISTRY_GOSSIP_KEY_BYTES] = {'k'};
    struct registry_node node = {.id = 2};
    struct registry_command c = {.kind = REGISTRY_NODE_REMOVE, .node = &node, .gossip_key = key};
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
    assert_ring(h, "acdefghK");
    help_lease(h, 3);
    node.id = 3;
    key[0] = 'l';
    assert_int_equal(help_apply(h, &c).problem, PROBLEM_NONE);
    assert_ring(h, "cdefghkL");
}

/* --- generations --------------------------------------------------------------------------------------- */

static void a_raised_generation_is_above_all_epochs_before(void **state)
{
    struct help_state *h = *state;
    struct err e;
    struct state_content content;
    struct buffer b;
    help_deploy(h, "hello", "");
    uint64_t lease = help_lease(h, 1);
    uint64_t before = reserve_for(h, 1, 1, "").epoch;
    assert_int_equal(state_raise_generation(h->state, &e), 0);
    buffer_init(&b, SNAPSHOT_BYTES_MAX);
    assert_int_equal(snapshot_encode(state_content(h->state), &b, &e), 0);
    assert_int_equal(snapshot_decode(&content, b.data, b.length, &e), 0);
    state_restore(h->state, &content);
    assert_int_equal(node_of(h, 1)->lease_epoch, lease);
    uint64_t after = reserve_for(h, 1, 2, "").epoch;
    assert_int_equal(after, ((uint64_t)2 << 40) + 1);
    assert_true(after > before);
    /* What lived on keeps its own. */
    assert_int_equal(instance_of(h, 1, 1)->epoch, before);
    assert_int_equal(help_end(h, 1, before, 9).problem, PROBLEM_NONE);
    buffer_free(&b);
}

static void generations_end(void **state)
{
    struct help_state *h = *state;
    struct err e = {0};
    struct state_content content = *state_content(h->state);
    memset(content.maps, 0, sizeof content.maps);
    content.generation = ((uint64_t)1 << 24) - 2;
    content.epoch_sequence = ((uint64_t)1 << 40) - 2;
    state_restore(h->state, &content);
    put(h, (struct registry_node){.name = "one"});
    put(h, (struct registry_node){.name = "two"});
    assert_int_equal(grant(h, 1).epoch & 0xffffffffff, 0xffffffffff);
    /* Refused, not halted, and not begun from 0 again. */
    assert_int_equal(grant(h, 2).problem, PROBLEM_LIMIT_REACHED);
    assert_int_equal(grant(h, 2).problem, PROBLEM_LIMIT_REACHED);
    help_deploy(h, "hello", "");
    assert_int_equal(reserve_for(h, 1, 1, "").problem, PROBLEM_LIMIT_REACHED);
    assert_null(instance_of(h, 1, 1));
    assert_int_equal(state_raise_generation(h->state, &e), 0);
    assert_int_equal(grant(h, 2).epoch, (((uint64_t)1 << 24) - 1) << 40 | 1);
    assert_int_equal(state_raise_generation(h->state, &e), -ERR_LIMIT);
}

/* --- bounds -------------------------------------------------------------------------------------------- */

static void what_breaks_a_bound_is_not_even_encoded(void **state)
{
    (void)state;
    static const uint8_t key[REGISTRY_GOSSIP_KEY_BYTES] = {1};
    static const uint8_t no_key[REGISTRY_GOSSIP_KEY_BYTES];
    static const struct registry_token token = {.id = TOKEN}, no_token = {.id = "short"};
    static const struct registry_node good = {
        .id = 1, .name = "two", .address = ADDRESS, .public_key = {1}};
    static const struct registry_node upper = {
        .id = 1, .name = "Two", .address = ADDRESS, .public_key = {1}};
    static const struct registry_node escape = {
        .name = "two", .address = "\033[2J", .public_key = {1}};
    static const struct registry_node nowhere = {.name = "two", .public_key = {1}};
    static const struct registry_node keyless = {.name = "two", .address = ADDRESS};
    static const struct registry_node nobody = {.address = ADDRESS};
    struct registry_node endless = good;
    memset(endless.name, 'n', sizeof endless.name);
    const struct registry_command commands[] = {
        {.kind = REGISTRY_CLUSTER_INIT, .cluster_id = "0123456789abcdef", .gossip_key = no_key},
        {.kind = REGISTRY_NODE_PUT},
        {.kind = REGISTRY_NODE_PUT, .node = &nobody},
        {.kind = REGISTRY_NODE_PUT, .node = &upper},
        {.kind = REGISTRY_NODE_PUT, .node = &endless},
        {.kind = REGISTRY_NODE_PUT, .node = &escape},
        {.kind = REGISTRY_NODE_JOIN, .node = &good},
        {.kind = REGISTRY_NODE_JOIN, .token = &token},
        {.kind = REGISTRY_NODE_JOIN, .node = &good, .token = &no_token},
        {.kind = REGISTRY_NODE_JOIN, .node = &upper, .token = &token},
        {.kind = REGISTRY_NODE_JOIN, .node = &escape, .token = &token},
        {.kind = REGISTRY_NODE_JOIN, .node = &nowhere, .token = &token},
        {.kind = REGISTRY_NODE_JOIN, .node = &keyless, .token = &token},
        {.kind = REGISTRY_NODE_REMOVE, .node = &good},
        {.kind = REGISTRY_NODE_REMOVE, .node = &good, .gossip_key = no_key},
        {.kind = REGISTRY_NODE_REMOVE, .node = &nobody, .gossip_key = key},
        {.kind = REGISTRY_NODE_DRAIN},
        {.kind = REGISTRY_NODE_DRAIN, .node = &nobody},
        {.kind = REGISTRY_LEASE_GRANT, .node = &nobody},
        {.kind = REGISTRY_LEASE_EXPIRE},
        {.kind = REGISTRY_KEYRING, .gossip_key = key},
        {.kind = REGISTRY_KEYRING, .keyring_verb = 4, .gossip_key = key},
        {.kind = REGISTRY_KEYRING, .keyring_verb = REGISTRY_KEYRING_ADD},
        {.kind = REGISTRY_KEYRING, .keyring_verb = REGISTRY_KEYRING_ADD, .gossip_key = no_key},
    };
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        struct command_session s = {0};
        uint8_t *bytes;
        size_t length;
        struct err e = {0};
        if (command_encode(&bytes, &length, &s, &commands[i], &e) != -ERR_INVALID)
            fail_msg("command %zu was encoded", i);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(putting_changes_what_is_given_and_nothing_else),
        TEST(names_keys_and_ids_belong_to_one_node),
        TEST(there_are_no_more_nodes_than_may_be),
        TEST(joining_consumes_its_token),
        TEST(a_token_of_another_role_or_too_old_joins_nobody),
        TEST(a_join_that_is_refused_keeps_its_token),
        TEST(a_known_name_with_another_key_is_replaced),
        TEST(a_removed_node_holds_nothing_and_the_keys_change),
        TEST(a_lease_is_granted_once_and_has_a_new_epoch_each_time),
        TEST(who_has_no_lease_or_drains_gets_no_instance),
        TEST(the_end_of_a_lease_ends_what_it_held),
        TEST(a_lost_node_ends_in_steps_and_gets_nothing_meanwhile),
        TEST(no_instance_outlives_its_lease_into_the_next),
        TEST(a_sweep_ends_what_removed_and_lost_nodes_left),
        TEST(a_registry_older_than_leases_keeps_its_instances),
        cmocka_unit_test(what_a_lost_node_costs),
        TEST(a_key_is_added_then_used_then_the_old_one_goes),
        TEST(a_cluster_without_a_key_gets_one_later),
        TEST(the_ring_is_bounded_and_a_removal_finds_room),
        TEST(a_raised_generation_is_above_all_epochs_before),
        TEST(generations_end),
        TEST(what_breaks_a_bound_is_not_even_encoded),
    };
    return cmocka_run_group_tests_name("nodes of the state", tests, NULL, NULL);
}
