/* Every allocation of every command fails once: the state machine must halt, never refuse, skip or
 * half-do the command, for the other replicas had the memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/snapshot.h"
#include "tests/lib/registry_help.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CAN_FAIL 0
static size_t until_failure;
#else
#define CAN_FAIL 1

/* glibc's own, beneath its weak malloc. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *pointer, size_t size);

static size_t until_failure; /* allocations; 0: none fails */

static bool fails(void)
{
    if (until_failure == 0 || --until_failure > 0)
        return false;
    errno = ENOMEM;
    return true;
}

/* In place of libc's for the whole process, and so for the libraries that it uses. */
void *malloc(size_t size)
{
    return fails() ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails() ? NULL : __libc_calloc(count, size);
}

void *realloc(void *pointer, size_t size)
{
    return fails() ? NULL : __libc_realloc(pointer, size);
}
#endif

static void encode(const struct state_content *content, struct buffer *out)
{
    struct err e;
    buffer_init(out, SNAPSHOT_BYTES_MAX);
    assert_int_equal(snapshot_encode(content, out, &e), 0);
}

static struct state *restored(const struct buffer *snapshot)
{
    struct state *s;
    struct state_content content;
    struct err e;
    assert_int_equal(state_new(&s, &e), 0);
    assert_int_equal(snapshot_decode(&content, snapshot->data, snapshot->length, &e), 0);
    state_restore(s, &content);
    return s;
}

static bool same_content(const struct state *s, const struct buffer *expected)
{
    struct buffer is;
    encode(state_content(s), &is);
    bool same = is.length == expected->length && memcmp(is.data, expected->data, is.length) == 0;
    buffer_free(&is);
    return same;
}

/* Applies it to `h`, and before that to copies of it with a failure at each place on the way. A library
 * may do without some allocation: then the outcome must be the right one. */
static size_t failures_of(struct help_state *h, const struct registry_command *command)
{
    struct command_session session = {.node = 1, .boot = 1, .sequence = ++h->sequence};
    struct state_outcome right, out;
    struct buffer before, after;
    uint8_t *bytes;
    size_t length, failures = 0;
    struct err e;
    encode(state_content(h->state), &before);
    assert_int_equal(command_encode(&bytes, &length, &session, command, &e), 0);
    assert_int_equal(state_apply(h->state, ++h->index, bytes, length, &right, &e), 0);
    assert_int_equal(right.result.problem, PROBLEM_NONE);
    encode(state_content(h->state), &after);
    bool reached = true;
    for (size_t at = 1; reached; at++) {
        struct state *s = restored(&before);
        until_failure = at;
        int rc = state_apply(s, h->index, bytes, length, &out, &e);
        reached = until_failure == 0;
        until_failure = 0;
        failures += rc < 0;
        assert_int_equal(state_halted(s), rc < 0);
        if (!same_content(s, rc < 0 ? &before : &after))
            fail_msg("kind %d, allocation %zu: %s", (int)command->kind, at,
                     rc < 0 ? e.msg : out.result.detail);
        state_free(s);
    }
    buffer_free(&before);
    buffer_free(&after);
    free(bytes);
    return failures;
}

#define FIRST_EPOCH ((uint64_t)1 << STATE_EPOCH_SEQUENCE_BITS | 1)

static void without_memory_it_halts(void **state)
{
    (void)state;
    if (!CAN_FAIL) {
        printf("allocations cannot be made to fail beneath a sanitizer\n");
        skip();
    }
    struct help_state h;
    help_state_open(&h);
    char *json = help_workload_json("hello", "environment: {A: b}\n");
    char *other = help_workload_json("hello", "environment: {A: c}\n");
    static const uint8_t key[REGISTRY_GOSSIP_KEY_BYTES] = {1};
    struct registry_node node = {.id = 1, .name = "one"};
    struct registry_node two = {.name = "two", .public_key = {2}, .address = "10.0.0.2:7600"};
    struct registry_node two_again = {.name = "two", .public_key = {3}, .address = "10.0.0.2:7600"};
    struct registry_node three = {.id = 3, .draining = true};
    struct registry_node lease = {.id = 1, .lease_epoch = FIRST_EPOCH};
    struct registry_token joining = {.id = "bbbbbbbbbbbbbbbb", .role = TOKEN_ROLE_NODE};
    struct registry_token token = {.id = "aaaaaaaaaaaaaaaa"};
    struct registry_image image = {.name = "alpine"};
    struct registry_instance i = {
        .id = help_instance_id(1, 1), .owner = 1, .version = 1, .workload = "hello", .key = "room"};
    struct registry_instance ready = {
        .id = i.id, .epoch = FIRST_EPOCH + 1, .state = INSTANCE_STATE_READY};
    struct registry_instance end = ready;
    end.reason = END_EXITED;
    struct registry_instance lost = i;
    lost.id = help_instance_id(1, 2);
    const struct registry_command commands[] = {
        {.kind = REGISTRY_CLUSTER_INIT, .cluster_id = "0123456789abcdef"},
        {.kind = REGISTRY_NODE_PUT, .node = &node},
        {.kind = REGISTRY_LEASE_GRANT, .node = &lease},
        {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = json},
        {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = other},
        {.kind = REGISTRY_WORKLOAD_ROLLBACK, .name = "hello"},
        {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &i},
        {.kind = REGISTRY_INSTANCE_UPDATE, .instance = &ready},
        {.kind = REGISTRY_INSTANCE_END, .instance = &end},
        {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &lost},
        {.kind = REGISTRY_LEASE_EXPIRE, .node = &lease},
        {.kind = REGISTRY_TOKEN_PUT, .token = &joining},
        {.kind = REGISTRY_NODE_JOIN, .node = &two, .token = &joining},
        {.kind = REGISTRY_TOKEN_PUT, .token = &joining},
        {.kind = REGISTRY_NODE_JOIN, .node = &two_again, .token = &joining},
        {.kind = REGISTRY_NODE_DRAIN, .node = &three},
        {.kind = REGISTRY_NODE_REMOVE, .node = &three, .gossip_key = key},
        {.kind = REGISTRY_KEYRING, .keyring_verb = REGISTRY_KEYRING_USE, .gossip_key = key},
        {.kind = REGISTRY_WORKLOAD_REMOVE, .name = "hello"},
        {.kind = REGISTRY_TOKEN_PUT, .token = &token},
        {.kind = REGISTRY_TOKEN_REVOKE, .token = &token},
        {.kind = REGISTRY_IMAGE_PUT, .image = &image},
        {.kind = REGISTRY_IMAGE_REMOVE, .image = &image},
        {.kind = REGISTRY_SWEEP, .wall_ms = (uint64_t)REGISTRY_ENDED_KEPT_MS * 2},
        {.kind = REGISTRY_FEATURE_LEVEL, .version = 1},
    };
    size_t failures = 0;
    for (size_t n = 0; n < ARRAY_SIZE(commands); n++) {
        size_t here = failures_of(&h, &commands[n]);
        assert_true(here > 3);
        failures += here;
    }
    printf("%zu allocations failed\n", failures);
    free(json);
    free(other);
    help_state_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_memory_it_halts),
    };
    return cmocka_run_group_tests_name("state without memory", tests, NULL, NULL);
}
