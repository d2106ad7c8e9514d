/* Tokens: made, kept as a hash, told apart, bounded by role, scope and time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "node/node.h"
#include "raft/command.h"
#include "raft/state.h"

#define NOW 1000000u

struct world {
    struct state *state;
    uint64_t index;
    struct registry_root *root;
    char text[NODE_TOKEN_TEXT_SIZE];
    struct registry_token token;
};

static void apply(struct world *w, const struct registry_command *command)
{
    struct err e = {0};
    uint8_t *bytes;
    size_t length;
    struct state_outcome outcome;
    struct command_session session = {1, 1, ++w->index};
    assert_int_equal(command_encode(&bytes, &length, &session, command, &e), 0);
    assert_int_equal(state_apply(w->state, w->index, bytes, length, &outcome, &e), 0);
    free(bytes);
    if (outcome.result.problem != PROBLEM_NONE)
        fail_msg("%s", outcome.result.detail);
}

/* A registry with one token. */
static void world_open(struct world *w, struct registry_token token)
{
    struct err e = {0};
    *w = (struct world){.token = token};
    assert_int_equal(state_new(&w->state, &e), 0);
    apply(w, &(struct registry_command){
                 .kind = REGISTRY_CLUSTER_INIT, .wall_ms = NOW, .cluster_id = "0123456789abcdef"});
    assert_int_equal(node_token_make(&w->token, w->text, &e), 0);
    w->token.created_wall_ms = NOW;
    apply(w, &(struct registry_command){
                 .kind = REGISTRY_TOKEN_PUT, .wall_ms = NOW, .token = &w->token});
    w->root = state_root(w->state);
}

static void world_close(struct world *w)
{
    registry_root_release(w->root);
    state_free(w->state);
}

static enum problem may(const struct world *w, enum token_role need, const char *workload,
                        const char *instance)
{
    return node_authorize(w->root, w->text, strlen(w->text), need, workload, instance, NOW + 1);
}

static void a_token_is_made_of_id_and_secret(void **state)
{
    (void)state;
    struct registry_token a = {0};
    struct registry_token b = {0};
    char text_a[NODE_TOKEN_TEXT_SIZE];
    char text_b[NODE_TOKEN_TEXT_SIZE];
    struct err e = {0};
    uint8_t hash[32];
    assert_int_equal(node_token_make(&a, text_a, &e), 0);
    assert_int_equal(node_token_make(&b, text_b, &e), 0);
    assert_int_equal(strlen(text_a), 73);
    assert_memory_equal(text_a, "skt_", 4);
    assert_memory_equal(text_a + 4, a.id, 16);
    assert_int_equal(text_a[20], '_');
    assert_int_equal(strspn(text_a + 21, "0123456789abcdefghjkmnpqrstvwxyz"), 52);
    assert_string_not_equal(text_a + 21, text_b + 21);
    assert_string_not_equal(a.id, b.id);
    (void)crypto_hash_sha256(hash, (const unsigned char *)text_a + 21, 52);
    assert_memory_equal(hash, a.hash, 32);
}

static void the_right_text_is_known_and_nothing_else(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, (struct registry_token){.role = TOKEN_ROLE_ADMIN});
    size_t length = strlen(w.text);
    assert_int_equal(may(&w, TOKEN_ROLE_ADMIN, NULL, NULL), PROBLEM_NONE);
    for (size_t i = 0; i < length; i++) {
        char wrong[NODE_TOKEN_TEXT_SIZE];
        memcpy(wrong, w.text, sizeof(wrong));
        wrong[i] = wrong[i] == '7' ? '8' : '7';
        assert_int_equal(
            node_authorize(w.root, wrong, length, TOKEN_ROLE_INVOKE, NULL, NULL, NOW + 1),
            PROBLEM_UNAUTHORIZED);
        assert_int_equal(node_authorize(w.root, w.text, i, TOKEN_ROLE_INVOKE, NULL, NULL, NOW + 1),
                         PROBLEM_UNAUTHORIZED);
    }
    assert_int_equal(node_authorize(w.root, NULL, 0, TOKEN_ROLE_INVOKE, NULL, NULL, NOW + 1),
                     PROBLEM_UNAUTHORIZED);
    world_close(&w);
}

static void a_role_holds_the_weaker_ones(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, (struct registry_token){.role = TOKEN_ROLE_DEPLOY});
    assert_int_equal(may(&w, TOKEN_ROLE_ADMIN, NULL, NULL), PROBLEM_FORBIDDEN);
    assert_int_equal(may(&w, TOKEN_ROLE_DEPLOY, NULL, NULL), PROBLEM_NONE);
    assert_int_equal(may(&w, TOKEN_ROLE_INVOKE, "any", "0any"), PROBLEM_NONE);
    world_close(&w);
}

static void a_scope_is_all_that_it_is_good_for(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, (struct registry_token){.role = TOKEN_ROLE_INVOKE, .workload = "hello"});
    assert_int_equal(may(&w, TOKEN_ROLE_INVOKE, "hello", NULL), PROBLEM_NONE);
    assert_int_equal(may(&w, TOKEN_ROLE_INVOKE, "hello", "0any"), PROBLEM_NONE);
    assert_int_equal(may(&w, TOKEN_ROLE_INVOKE, "hell", NULL), PROBLEM_FORBIDDEN);
    assert_int_equal(may(&w, TOKEN_ROLE_INVOKE, "hello2", NULL), PROBLEM_FORBIDDEN);
    assert_int_equal(may(&w, TOKEN_ROLE_INVOKE, NULL, NULL), PROBLEM_FORBIDDEN);
    world_close(&w);
    world_open(
        &w, (struct registry_token){.role = TOKEN_ROLE_INVOKE, .instance = "70123456789abcdef1"});
    assert_int_equal(may(&w, TOKEN_ROLE_INVOKE, "hello", "70123456789abcdef1"), PROBLEM_NONE);
    assert_int_equal(may(&w, TOKEN_ROLE_INVOKE, "hello", NULL), PROBLEM_FORBIDDEN);
    world_close(&w);
}

static void time_ends_a_token(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, (struct registry_token){.role = TOKEN_ROLE_DEPLOY, .expires_wall_ms = NOW + 10});
    size_t length = strlen(w.text);
    assert_int_equal(node_authorize(w.root, w.text, length, TOKEN_ROLE_DEPLOY, NULL, NULL, NOW + 9),
                     PROBLEM_NONE);
    assert_int_equal(
        node_authorize(w.root, w.text, length, TOKEN_ROLE_DEPLOY, NULL, NULL, NOW + 10),
        PROBLEM_UNAUTHORIZED);
    world_close(&w);
}

static void a_node_s_token_opens_nothing(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, (struct registry_token){.role = TOKEN_ROLE_NODE});
    for (enum token_role need = TOKEN_ROLE_ADMIN; need <= TOKEN_ROLE_NODE; need++) {
        assert_int_equal(may(&w, need, NULL, NULL), PROBLEM_UNAUTHORIZED);
        assert_int_equal(may(&w, need, "hello", "70123456789abcdef1"), PROBLEM_UNAUTHORIZED);
    }
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_token_is_made_of_id_and_secret),
        cmocka_unit_test(the_right_text_is_known_and_nothing_else),
        cmocka_unit_test(a_role_holds_the_weaker_ones),
        cmocka_unit_test(a_scope_is_all_that_it_is_good_for),
        cmocka_unit_test(time_ends_a_token),
        cmocka_unit_test(a_node_s_token_opens_nothing),
    };
    return cmocka_run_group_tests_name("tokens", tests, NULL, NULL);
}
