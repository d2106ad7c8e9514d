/* Snapshots: there and back, damaged ones, and how large and slow they are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "raft/snapshot.h"
#include "raft/state_parts.h"
#include "tests/lib/registry_help.h"

static void encode(const struct state_content *content, struct buffer *out)
{
    struct err e;
    buffer_init(out, SNAPSHOT_BYTES_MAX);
    if (snapshot_encode(content, out, &e) < 0)
        fail_msg("%s", e.msg);
}

static int decode(struct state_content *out, const struct buffer *b, struct err *e)
{
    return snapshot_decode(out, b->data, b->length, e);
}

/* Node 3 joined, was replaced by 4, which drains; node 2 has lost its lease; the second key is used. */
static void populate_nodes(struct help_state *h)
{
    static const uint8_t keys[3][REGISTRY_GOSSIP_KEY_BYTES] = {{1}, {2}, {3}};
    struct registry_token token = {.id = "nnnnnnnnnnnnnnnn", .role = TOKEN_ROLE_NODE};
    struct registry_node node = {
        .name = "three", .public_key = {3}, .address = "10.0.0.3:7600", .draining = true};
    struct registry_command put = {.kind = REGISTRY_TOKEN_PUT, .token = &token};
    struct registry_command c = {.kind = REGISTRY_NODE_JOIN, .node = &node, .token = &token};
    for (unsigned i = 0; i < 2; i++) {
        node.public_key[0]++;
        help_apply(h, &put);
        help_apply(h, &c);
    }
    node.id = 4;
    c.kind = REGISTRY_NODE_DRAIN;
    help_apply(h, &c);
    struct registry_node lost = {.id = 2, .lease_epoch = ((uint64_t)1 << 40) + 2};
    c = (struct registry_command){.kind = REGISTRY_LEASE_EXPIRE, .node = &lost};
    help_apply(h, &c);
    c = (struct registry_command){.kind = REGISTRY_KEYRING, .keyring_verb = REGISTRY_KEYRING_ADD};
    for (unsigned i = 0; i < 3; i++) {
        c.gossip_key = keys[i];
        help_apply(h, &c);
    }
    c.keyring_verb = REGISTRY_KEYRING_USE;
    c.gossip_key = keys[1];
    help_apply(h, &c);
}

static const uint8_t ssh_seed[REGISTRY_SSH_SEED_BYTES] = {7, 8};

/* Something of everything. */
static void populate(struct help_state *h)
{
    help_state_open(h);
    struct registry_command c = {.kind = REGISTRY_CLUSTER_INIT, .cluster_id = "0123456789abcdef"};
    help_apply(h, &c);
    help_lease(h, 1);
    help_lease(h, 2);
    populate_nodes(h);
    struct registry_image image = {.name = "alpine", .digest = "sha256:00", .bytes = 7};
    c = (struct registry_command){.kind = REGISTRY_IMAGE_PUT, .image = &image};
    help_apply(h, &c);
    struct registry_ssh_key ssh_key = {
        .id = "bbbbbbbbbbbbbbbb", .workload = "hello", .blob = {1, 2, 3}, .blob_length = 3};
    c = (struct registry_command){.kind = REGISTRY_SSH_KEY_PUT, .ssh_key = &ssh_key};
    help_apply(h, &c);
    c = (struct registry_command){.kind = REGISTRY_SSH_HOST_KEY, .ssh_seed = ssh_seed};
    help_apply(h, &c);
    struct registry_token token = {.id = "aaaaaaaaaaaaaaaa", .hash = {9}, .name = "ci"};
    c = (struct registry_command){.kind = REGISTRY_TOKEN_PUT, .token = &token};
    help_apply(h, &c);
    help_deploy(h, "hello", "");
    help_deploy(h, "hello", "image: alpine\n");
    c = (struct registry_command){.kind = REGISTRY_WORKLOAD_ROLLBACK, .name = "hello"};
    help_apply(h, &c);
    struct registry_domain domain = {
        .name = "hello.example.org", .workload = "hello", .created_wall_ms = 4};
    c = (struct registry_command){.kind = REGISTRY_DOMAIN_PUT, .domain = &domain};
    help_apply(h, &c);
    struct registry_ticket ticket = {.nonce = {5}, .expires_wall_ms = 77};
    c = (struct registry_command){.kind = REGISTRY_TICKET_USE, .ticket = &ticket};
    help_apply(h, &c);
    help_deploy(h, "gone", "");
    help_reserve(h, "gone", 1, 1, "");
    c = (struct registry_command){.kind = REGISTRY_WORKLOAD_REMOVE, .name = "gone", .wall_ms = 9};
    help_apply(h, &c);
    struct registry_result r = help_reserve(h, "hello", 1, 2, "room");
    struct registry_instance ready = {
        .id = help_instance_id(1, 2), .epoch = r.epoch, .state = INSTANCE_STATE_READY};
    c = (struct registry_command){.kind = REGISTRY_INSTANCE_UPDATE, .instance = &ready};
    help_apply(h, &c);
    r = help_reserve(h, "hello", 3, 3, "other room");
    help_end(h, 3, r.epoch, 12345);
    help_reserve(h, "hello", 3, 4, "room"); /* refused: its result is remembered */
    r = help_reserve(h, "", 0, 5, "");
    help_end(h, 5, r.epoch, 12346);
}

static bool same_node_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct state_content *back = user;
    const struct registry_node *a = container_of(value, const struct registry_node, value);
    const struct map_value *there = map_get(&back->maps[STATE_NODES], key, key_length);
    assert_non_null(there);
    const struct registry_node *b = container_of(there, const struct registry_node, value);
    assert_string_equal(a->name, b->name);
    assert_string_equal(a->address, b->address);
    assert_memory_equal(a->public_key, b->public_key, sizeof a->public_key);
    assert_true(a->draining == b->draining && a->leased == b->leased);
    assert_int_equal(a->lease_epoch, b->lease_epoch);
    return true;
}

static bool same_result_visit(void *user, const void *key, size_t key_length,
                              struct map_value *value)
{
    const struct state_content *back = user;
    const struct state_result *a = container_of(value, const struct state_result, value);
    const struct map_value *there = map_get(&back->maps[STATE_RESULTS], key, key_length);
    assert_non_null(there);
    const struct state_result *b = container_of(there, const struct state_result, value);
    assert_int_equal(a->result.problem, b->result.problem);
    assert_string_equal(a->result.detail, b->result.detail);
    assert_int_equal(a->result.epoch, b->result.epoch);
    assert_int_equal(a->result.node, b->result.node);
    assert_int_equal(a->result.replaced, b->result.replaced);
    return true;
}

static void what_comes_back_is_the_same(void **state)
{
    (void)state;
    struct help_state h;
    populate(&h);
    struct buffer first, second;
    encode(state_content(h.state), &first);
    struct state_content content;
    struct err e = {0};
    if (decode(&content, &first, &e) < 0)
        fail_msg("%s", e.msg);
    help_state_check(&content);
    for (size_t i = 0; i < STATE_MAP_COUNT; i++)
        assert_int_equal(content.maps[i].count, state_content(h.state)->maps[i].count);
    assert_int_equal(content.live, state_content(h.state)->live);
    const struct state_content *was = state_content(h.state);
    assert_int_equal(content.keyring_count, 3);
    assert_true(content.ssh_seed_made);
    assert_string_equal(state_domain(&content, "hello.example.org")->workload, "hello");
    assert_int_equal(content.maps[STATE_TICKETS].count, 1);
    assert_memory_equal(content.ssh_seed, ssh_seed, sizeof ssh_seed);
    assert_memory_equal(content.keyring, was->keyring, sizeof was->keyring);
    const struct registry_usage *used = &state_workload(&content, "hello")->usage;
    assert_memory_equal(used, &state_workload(was, "hello")->usage, sizeof *used);
    assert_int_equal(used->cpu_us, 100);
    struct instance_id id = help_instance_id(1, 3);
    assert_memory_equal(&state_instance(&content, &id)->usage, used, sizeof *used);
    map_walk(&was->maps[STATE_NODES], NULL, 0, same_node_visit, &content);
    map_walk(&was->maps[STATE_RESULTS], NULL, 0, same_result_visit, &content);
    encode(&content, &second);
    assert_int_equal(first.length, second.length);
    assert_memory_equal(first.data, second.data, first.length);
    buffer_free(&first);
    buffer_free(&second);
    state_content_release(&content);
    help_state_close(&h);
}

static struct registry_result further(struct help_state *h, unsigned i)
{
    static const char *const keys[] = {"", "room", "other room"};
    uint64_t n = 10 + i / 3;
    if (i % 3 == 0)
        return help_reserve(h, "hello", 1 + i % 3, n, keys[i % 4 % 3]);
    if (i % 3 == 1)
        return help_end(h, n - i % 2, (uint64_t)1 << 40 | (6 + i / 3), 20000 + i);
    struct registry_command sweep = {.kind = REGISTRY_SWEEP,
                                     .wall_ms = 86400000u + 12000u + 30 * i};
    return help_apply(h, &sweep);
}

/* A replica that was restored goes the same way as one that was not. */
static void a_restored_state_goes_on_as_the_other(void **state)
{
    (void)state;
    struct help_state a, b;
    populate(&a);
    struct buffer bytes, x, y;
    struct state_content content;
    struct err e;
    encode(state_content(a.state), &bytes);
    assert_int_equal(decode(&content, &bytes, &e), 0);
    help_state_open(&b);
    state_restore(b.state, &content);
    b.index = a.index;
    b.sequence = a.sequence;
    for (unsigned i = 0; i < 300; i++) {
        struct registry_result one = further(&a, i), two = further(&b, i);
        assert_int_equal(one.problem, two.problem);
        assert_int_equal(one.epoch, two.epoch);
        assert_string_equal(one.detail, two.detail);
    }
    /* A number asked before the snapshot is known after it. */
    struct registry_command sweep = {.kind = REGISTRY_SWEEP};
    struct command_session early = {.node = 1, .boot = 1, .sequence = 3};
    assert_true(help_apply_as(&a, &sweep, early).repeated);
    assert_true(help_apply_as(&b, &sweep, early).repeated);
    encode(state_content(a.state), &x);
    encode(state_content(b.state), &y);
    assert_int_equal(x.length, y.length);
    assert_memory_equal(x.data, y.data, x.length);
    buffer_free(&bytes);
    buffer_free(&x);
    buffer_free(&y);
    help_state_close(&a);
    help_state_close(&b);
}

static void an_empty_registry_has_a_snapshot(void **state)
{
    (void)state;
    struct help_state h;
    help_state_open(&h);
    struct buffer b;
    encode(state_content(h.state), &b);
    struct state_content content;
    struct err e;
    assert_int_equal(decode(&content, &b, &e), 0);
    assert_int_equal(content.maps[STATE_INSTANCES].count, 0);
    assert_int_equal(content.generation, 1);
    state_content_release(&content);
    buffer_free(&b);
    help_state_close(&h);
}

/* lz4 can say the same in two ways: then it is the same. */
static void same_content(struct state_content *content, const struct buffer *b, size_t at)
{
    struct buffer again;
    encode(content, &again);
    if (again.length != b->length || memcmp(again.data, b->data, b->length) != 0)
        fail_msg("byte %zu of %zu", at, b->length);
    buffer_free(&again);
    state_content_release(content);
}

static void a_damaged_byte_is_noticed(void **state)
{
    (void)state;
    struct help_state h;
    populate(&h);
    struct buffer b;
    encode(state_content(h.state), &b);
    struct state_content content;
    struct err e;
    size_t same = 0;
    for (size_t at = 0; at < b.length; at++) {
        b.data[at] = (char)(b.data[at] ^ 0x10);
        int rc = decode(&content, &b, &e);
        b.data[at] = (char)(b.data[at] ^ 0x10);
        if (rc == 0) {
            same_content(&content, &b, at);
            same++;
        }
    }
    assert_true(same < b.length / 100);
    for (size_t length = 0; length < b.length; length++)
        assert_true(snapshot_decode(&content, b.data, length, &e) < 0);
    assert_true(buffer_append(&b, "x", 1));
    assert_true(decode(&content, &b, &e) < 0);
    buffer_free(&b);
    help_state_close(&h);
}

static void a_later_format_is_told_from_damage(void **state)
{
    (void)state;
    struct help_state h;
    help_state_open(&h);
    struct buffer b;
    encode(state_content(h.state), &b);
    b.data[8] = SNAPSHOT_FORMAT + 1;
    struct state_content content;
    struct err e = {0};
    assert_true(decode(&content, &b, &e) < 0);
    assert_non_null(strstr(e.msg, "format 2"));
    assert_non_null(strstr(e.msg, "upgrade this node"));
    buffer_free(&b);
    help_state_close(&h);
}

static void what_does_not_fit_the_bound_is_an_error(void **state)
{
    (void)state;
    struct help_state h;
    populate(&h);
    struct buffer b;
    struct err e;
    buffer_init(&b, 200);
    assert_int_equal(snapshot_encode(state_content(h.state), &b, &e), -ERR_NO_MEMORY);
    buffer_free(&b);
    help_state_close(&h);
}

/* Says how it does, and asserts nothing about time. */
static void a_hundred_thousand_instances(void **state)
{
    (void)state;
    enum { WORKLOADS = 20, EACH = 5000 };
    struct help_state h;
    help_state_open(&h);
    help_lease(&h, 1);
    char name[16];
    uint64_t begin = clock_monotonic_us();
    for (unsigned w = 0; w < WORKLOADS; w++) {
        snprintf(name, sizeof name, "workload-%u", w);
        help_deploy(&h, name, "scale: {max: 100000}\n");
        for (unsigned i = 0; i < EACH; i++) {
            uint64_t n = (uint64_t)w * EACH + i;
            struct registry_result r = help_reserve(&h, name, 1, n * 2654435761u % 4294967296u, "");
            if (i % 2 == 0)
                help_end(&h, n * 2654435761u % 4294967296u, r.epoch, 1000 + n);
        }
    }
    uint64_t applied = clock_monotonic_us();
    struct buffer b;
    encode(state_content(h.state), &b);
    uint64_t encoded = clock_monotonic_us();
    struct state_content content;
    struct err e;
    assert_int_equal(decode(&content, &b, &e), 0);
    uint64_t decoded = clock_monotonic_us();
    assert_int_equal(content.maps[STATE_INSTANCES].count, WORKLOADS * EACH);
    printf("%d commands applied in %.2f s; %d instances: %.1f MB, encoded in %.0f ms, decoded in "
           "%.0f ms\n",
           WORKLOADS * EACH * 3 / 2, (double)(applied - begin) / 1e6, WORKLOADS * EACH,
           (double)b.length / 1e6, (double)(encoded - applied) / 1e3,
           (double)(decoded - encoded) / 1e3);
    state_content_release(&content);
    buffer_free(&b);
    state_free(h.state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_comes_back_is_the_same),
        cmocka_unit_test(a_restored_state_goes_on_as_the_other),
        cmocka_unit_test(an_empty_registry_has_a_snapshot),
        cmocka_unit_test(a_damaged_byte_is_noticed),
        cmocka_unit_test(a_later_format_is_told_from_damage),
        cmocka_unit_test(what_does_not_fit_the_bound_is_an_error),
        cmocka_unit_test(a_hundred_thousand_instances),
    };
    return cmocka_run_group_tests_name("snapshot", tests, NULL, NULL);
}
