/* Tickets and cookies of browsers as signed text, and what they are good for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/memory.h"
#include "node/control/ticket.h"
#include "tests/lib/registry_help.h"

#define ID "012345678901234561"
#define OTHER_ID "012345678901234571"

static const uint8_t secret[REGISTRY_SSH_SEED_BYTES] = {1, 2, 3};

static struct ticket sample(void)
{
    return (struct ticket){.kind = TICKET_OF_WORKLOAD,
                           .expires_wall_ms = 1000,
                           .session_s = 3600,
                           .nonce = {9, 8},
                           .token = "aaaaaaaaaaaaaaaa",
                           .subject = "chat"};
}

static void text_comes_back_as_it_was(void **state)
{
    (void)state;
    struct ticket t = sample(), out;
    char text[TICKET_TEXT_SIZE];
    ticket_host("chat.localhost", t.host);
    ticket_write(&t, secret, text);
    assert_int_equal(strncmp(text, "skj_", 4), 0);
    assert_true(ticket_read(&out, secret, text, strlen(text)));
    assert_memory_equal(&out, &t, sizeof t);
    /* The longest, and the shortest. */
    memset(t.subject, 'a', WORKLOAD_NAME_LENGTH_MAX);
    ticket_write(&t, secret, text);
    assert_true(ticket_read(&out, secret, text, strlen(text)));
    assert_string_equal(out.subject, t.subject);
    t.token[0] = '\0';
    ticket_write(&t, secret, text);
    assert_true(ticket_read(&out, secret, text, strlen(text)));
    assert_string_equal(out.token, "");
}

static void nothing_of_it_can_be_changed(void **state)
{
    (void)state;
    struct ticket t = sample(), out;
    char text[TICKET_TEXT_SIZE], changed[TICKET_TEXT_SIZE + 2];
    ticket_write(&t, secret, text);
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i++) {
        memcpy(changed, text, length);
        changed[i] = text[i] == 'A' ? 'B' : 'A';
        assert_false(ticket_read(&out, secret, changed, length));
        assert_false(ticket_read(&out, secret, text, i));
    }
    memcpy(changed, text, length);
    changed[length] = 'A';
    changed[length + 1] = 'A';
    assert_false(ticket_read(&out, secret, changed, length + 1));
    assert_false(ticket_read(&out, secret, changed, length + 2));
    static const uint8_t other[REGISTRY_SSH_SEED_BYTES] = {1, 2, 4};
    assert_false(ticket_read(&out, other, text, length));
    assert_true(ticket_read(&out, secret, text, length));
}

static void hosts_are_told_apart(void **state)
{
    (void)state;
    uint8_t one[TICKET_HOST_BYTES], other[TICKET_HOST_BYTES];
    ticket_host("a.localhost", one);
    ticket_host("b.localhost", other);
    assert_memory_not_equal(one, other, sizeof one);
}

static void token_put(struct help_state *h, const char *id, enum token_role role,
                      const char *workload, const char *instance, uint64_t expires)
{
    struct registry_token token = {.role = role, .expires_wall_ms = expires};
    (void)text_copy(token.id, sizeof token.id, id);
    (void)text_copy(token.workload, sizeof token.workload, workload);
    (void)text_copy(token.instance, sizeof token.instance, instance);
    help_apply(h, &(struct registry_command){.kind = REGISTRY_TOKEN_PUT, .token = &token});
}

static void it_is_worth_what_its_token_is(void **state)
{
    (void)state;
    struct help_state h;
    help_state_open(&h);
    token_put(&h, "aaaaaaaaaaaaaaaa", TOKEN_ROLE_INVOKE, "chat", "", 900);
    token_put(&h, "bbbbbbbbbbbbbbbb", TOKEN_ROLE_NODE, "", "", 0);
    token_put(&h, "cccccccccccccccc", TOKEN_ROLE_INVOKE, "", ID, 0);
    token_put(&h, "dddddddddddddddd", TOKEN_ROLE_ADMIN, "", "", 0);
    static const struct {
        enum ticket_kind kind;
        const char *token, *subject, *workload, *instance;
        uint64_t now;
        enum problem problem;
    } cases[] = {
        {TICKET_OF_WORKLOAD, "aaaaaaaaaaaaaaaa", "chat", "chat", NULL, 10, PROBLEM_NONE},
        {TICKET_OF_WORKLOAD, "aaaaaaaaaaaaaaaa", "chat", "chat", ID, 10, PROBLEM_NONE},
        {TICKET_COOKIE_OF_WORKLOAD, "", "chat", "chat", NULL, 999, PROBLEM_NONE},
        {TICKET_COOKIE_OF_WORKLOAD, "", "chat", "chat", NULL, 1000, PROBLEM_UNAUTHORIZED},
        {TICKET_OF_WORKLOAD, "aaaaaaaaaaaaaaaa", "chat", "chat", NULL, 900, PROBLEM_UNAUTHORIZED},
        {TICKET_OF_WORKLOAD, "aaaaaaaaaaaaaaaa", "chat", "shop", NULL, 10, PROBLEM_FORBIDDEN},
        {TICKET_OF_WORKLOAD, "aaaaaaaaaaaaaaaa", "shop", "shop", NULL, 10, PROBLEM_FORBIDDEN},
        {TICKET_OF_WORKLOAD, "bbbbbbbbbbbbbbbb", "chat", "chat", NULL, 10, PROBLEM_UNAUTHORIZED},
        {TICKET_OF_WORKLOAD, "eeeeeeeeeeeeeeee", "chat", "chat", NULL, 10, PROBLEM_UNAUTHORIZED},
        {TICKET_OF_WORKLOAD, "dddddddddddddddd", "chat", "chat", NULL, 10, PROBLEM_NONE},
        {TICKET_OF_INSTANCE, "cccccccccccccccc", ID, "chat", ID, 10, PROBLEM_NONE},
        {TICKET_COOKIE_OF_INSTANCE, "cccccccccccccccc", ID, "chat", OTHER_ID, 10,
         PROBLEM_FORBIDDEN},
        {TICKET_OF_INSTANCE, "cccccccccccccccc", ID, "chat", NULL, 10, PROBLEM_FORBIDDEN},
        {TICKET_OF_WORKLOAD, "cccccccccccccccc", "chat", "chat", ID, 10, PROBLEM_FORBIDDEN},
        /* The name of a workload is no instance, whatever it looks like. */
        {TICKET_OF_INSTANCE, "", "chat", "chat", ID, 10, PROBLEM_FORBIDDEN},
    };
    struct registry_root *root = state_root(h.state);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct ticket t = sample();
        t.kind = cases[i].kind;
        (void)text_copy(t.token, sizeof t.token, cases[i].token);
        (void)text_copy(t.subject, sizeof t.subject, cases[i].subject);
        enum problem problem =
            ticket_judge(root, &t, cases[i].workload, cases[i].instance, cases[i].now);
        if (problem != cases[i].problem)
            fail_msg("case %zu: %d", i, (int)problem);
    }
    registry_root_release(root);
    help_state_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_comes_back_as_it_was),
        cmocka_unit_test(nothing_of_it_can_be_changed),
        cmocka_unit_test(hosts_are_told_apart),
        cmocka_unit_test(it_is_worth_what_its_token_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
