/* Domains and used tickets in the registry's state machine, fed by hand. */
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

static int setup(void **state)
{
    struct help_state *h = malloc(sizeof *h);
    help_state_open(h);
    help_deploy(h, "chat", "");
    help_deploy(h, "shop", "");
    *state = h;
    return 0;
}

static int teardown(void **state)
{
    struct help_state *h = *state;
    help_state_check(state_content(h->state));
    help_state_close(h);
    free(h);
    return 0;
}

static struct registry_result change(struct help_state *h, enum registry_command_kind kind,
                                     const char *workload, const char *name)
{
    struct registry_domain domain = {.created_wall_ms = 5};
    (void)text_copy(domain.name, sizeof domain.name, name);
    (void)text_copy(domain.workload, sizeof domain.workload, workload);
    return help_apply(h, &(struct registry_command){.kind = kind, .domain = &domain});
}

static struct registry_result put(struct help_state *h, const char *workload, const char *name)
{
    return change(h, REGISTRY_DOMAIN_PUT, workload, name);
}

/* The workload that a name leads to; "": none. */
static const char *leads(struct help_state *h, const char *name)
{
    static char workload[WORKLOAD_NAME_LENGTH_MAX + 1];
    struct registry_root *root = state_root(h->state);
    const struct registry_domain *d = registry_root_domain(root, name, strlen(name));
    (void)text_copy(workload, sizeof workload, d == NULL ? "" : d->workload);
    registry_root_release(root);
    return workload;
}

static bool count_visit(void *user, const struct registry_domain *d)
{
    (void)d;
    ++*(unsigned *)user;
    return true;
}

static unsigned count(struct help_state *h, const char *workload)
{
    unsigned n = 0;
    struct registry_root *root = state_root(h->state);
    registry_root_domains(root, workload, count_visit, &n);
    registry_root_release(root);
    return n;
}

static void name_leads_to_one_workload(void **state)
{
    struct help_state *h = *state;
    assert_true(put(h, "chat", "chat.example.org").changed);
    assert_true(put(h, "chat", "room").changed);
    assert_string_equal(leads(h, "chat.example.org"), "chat");
    assert_string_equal(leads(h, "chat.example.or"), "");
    struct registry_result again = put(h, "chat", "room");
    assert_true(again.problem == PROBLEM_NONE && !again.changed);
    struct registry_result r = put(h, "shop", "room");
    assert_int_equal(r.problem, PROBLEM_CONFLICT);
    assert_non_null(strstr(r.detail, "chat"));
    assert_int_equal(put(h, "nobody", "b.example.org").problem, PROBLEM_WORKLOAD_UNKNOWN);
    assert_int_equal(count(h, "chat"), 2);
    assert_int_equal(count(h, "shop"), 0);
    assert_int_equal(change(h, REGISTRY_DOMAIN_REMOVE, "", "room").problem, PROBLEM_NONE);
    assert_int_equal(change(h, REGISTRY_DOMAIN_REMOVE, "", "room").problem, PROBLEM_NOT_FOUND);
    assert_true(put(h, "shop", "room").changed);
}

static void aliases_and_names_of_workloads_do_not_meet(void **state)
{
    struct help_state *h = *state;
    assert_int_equal(put(h, "chat", "shop").problem, PROBLEM_CONFLICT);
    assert_true(put(h, "chat", "later").changed);
    assert_int_equal(help_deploy(h, "later", "").problem, PROBLEM_CONFLICT);
    change(h, REGISTRY_DOMAIN_REMOVE, "", "later");
    assert_int_equal(help_deploy(h, "later", "").problem, PROBLEM_NONE);
    /* The name of a workload that was removed is free. */
    help_apply(h, &(struct registry_command){.kind = REGISTRY_WORKLOAD_REMOVE, .name = "later"});
    assert_true(put(h, "chat", "later").changed);
    assert_int_equal(help_deploy(h, "later", "").problem, PROBLEM_CONFLICT);
}

static void removed_workload_gives_its_domains_back(void **state)
{
    struct help_state *h = *state;
    put(h, "chat", "a.example.org");
    put(h, "chat", "b.example.org");
    put(h, "shop", "c.example.org");
    help_deploy(h, "chat", "life: {idle: 9m}\n");
    assert_string_equal(leads(h, "a.example.org"), "chat"); /* a new version keeps them */
    help_apply(h, &(struct registry_command){.kind = REGISTRY_WORKLOAD_REMOVE, .name = "chat"});
    assert_string_equal(leads(h, "a.example.org"), "");
    assert_int_equal(count(h, NULL), 1);
    assert_int_equal(put(h, "chat", "a.example.org").problem, PROBLEM_WORKLOAD_UNKNOWN);
    assert_true(put(h, "shop", "a.example.org").changed);
}

static void workload_has_so_many(void **state)
{
    struct help_state *h = *state;
    char name[40];
    for (unsigned i = 0; i < STATE_DOMAINS_PER_WORKLOAD_MAX; i++) {
        text_format(name, sizeof name, "n%u.example.org", i);
        assert_true(put(h, "chat", name).changed);
    }
    assert_int_equal(put(h, "chat", "more.example.org").problem, PROBLEM_LIMIT_REACHED);
    assert_int_equal(put(h, "chat", "n3.example.org").problem, PROBLEM_NONE);
    assert_true(put(h, "shop", "more.example.org").changed);
    change(h, REGISTRY_DOMAIN_REMOVE, "", "n3.example.org");
    assert_true(put(h, "chat", "n3.example.org").changed);
}

static void commands_out_of_bounds_do_not_encode(void **state)
{
    (void)state;
    static const char *const names[] = {"", "A.example.org", "a..b", "10.0.0.1", "*.a.b", "9x"};
    struct registry_domain domain = {.name = "a.example.org", .workload = "chat"};
    struct registry_ticket ticket = {.expires_wall_ms = 1};
    struct registry_command c = {.kind = REGISTRY_DOMAIN_PUT, .domain = &domain};
    assert_null(command_fault(&c));
    text_copy(domain.workload, sizeof domain.workload, "No Name");
    assert_non_null(command_fault(&c));
    text_copy(domain.workload, sizeof domain.workload, "chat");
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        text_copy(domain.name, sizeof domain.name, names[i]);
        assert_non_null(command_fault(&c));
    }
    memset(domain.name, 'a', sizeof domain.name);
    assert_non_null(command_fault(&c));
    c = (struct registry_command){.kind = REGISTRY_TICKET_USE, .ticket = &ticket};
    assert_null(command_fault(&c));
    ticket.expires_wall_ms = 0;
    assert_non_null(command_fault(&c));
}

/* --- tickets ------------------------------------------------------------------------------------- */

static struct registry_result use(struct help_state *h, uint8_t nonce, uint64_t expires,
                                  uint64_t now)
{
    struct registry_ticket ticket = {.nonce = {nonce}, .expires_wall_ms = expires};
    return help_apply(h, &(struct registry_command){
                             .kind = REGISTRY_TICKET_USE, .ticket = &ticket, .wall_ms = now});
}

static size_t kept(struct help_state *h)
{
    return state_content(h->state)->maps[STATE_TICKETS].count;
}

static void ticket_is_good_once(void **state)
{
    struct help_state *h = *state;
    const uint64_t now = 10000000;
    assert_true(use(h, 1, now + 1000, now).changed);
    assert_int_equal(use(h, 1, now + 1000, now + 1).problem, PROBLEM_CONFLICT);
    /* By a clock that lies behind, long after: it is remembered as long as that. */
    assert_int_equal(use(h, 1, now + 1000, now + STATE_TICKET_KEPT_MS).problem, PROBLEM_CONFLICT);
    assert_int_equal(use(h, 2, now + 1000, now + STATE_TICKET_KEPT_MS + 1001).problem,
                     PROBLEM_CONFLICT);
    assert_true(use(h, 2, now + 2000, now).changed);
}

static void used_ones_are_forgotten_when_they_are_over(void **state)
{
    struct help_state *h = *state;
    const uint64_t now = 10000000, later = now + STATE_TICKET_KEPT_MS + 100;
    for (uint8_t i = 0; i < 20; i++)
        assert_true(use(h, i, now + i, now).changed);
    assert_true(use(h, 30, later + 1000, later).changed);
    assert_int_equal(kept(h), 21 - 4); /* a few with each use */
    help_apply(h, &(struct registry_command){.kind = REGISTRY_SWEEP, .wall_ms = later});
    assert_int_equal(kept(h), 1);
    help_apply(h, &(struct registry_command){.kind = REGISTRY_SWEEP, .wall_ms = 5});
    assert_int_equal(kept(h), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(name_leads_to_one_workload, setup, teardown),
        cmocka_unit_test_setup_teardown(aliases_and_names_of_workloads_do_not_meet, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(removed_workload_gives_its_domains_back, setup, teardown),
        cmocka_unit_test_setup_teardown(workload_has_so_many, setup, teardown),
        cmocka_unit_test(commands_out_of_bounds_do_not_encode),
        cmocka_unit_test_setup_teardown(ticket_is_good_once, setup, teardown),
        cmocka_unit_test_setup_teardown(used_ones_are_forgotten_when_they_are_over, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
