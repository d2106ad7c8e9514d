#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/words.h"
#include "sandbox/runner/runner.h"
#include "tests/lib/runner_fixture.h"

extern const uint8_t embedded_agent_begin[], embedded_agent_end[];

static int run(const char *directory, const char *socket, int ready_fd)
{
    const struct runner_options options = {
        .directory = directory,
        .socket = socket,
        .node_uid = 0,
        .node_gid = 0,
        .blanks = 0,
        .ready_fd = ready_fd,
        .agent = embedded_agent_begin,
        .agent_size = (size_t)(embedded_agent_end - embedded_agent_begin),
    };
    struct err e;
    if (runner_run(&options, &e) == 0)
        return 0;
    fprintf(stderr, "runner: %s\n", e.msg);
    return 1;
}

static struct runner_fixture fixture;

static int setup(void **state)
{
    fixture_open(&fixture, run);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    fixture_close(*state);
    return 0;
}

#define WORDS(...)                                                                                 \
    (char *[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / sizeof(const char *)

static void expect(struct runner_fixture *f, Skerry__Runner__Prepare *p, const char *input,
                   struct fixture_result *r)
{
    fixture_run_command(f, p, input, r);
    if (r->prepare_error != 0 || r->commit_error != 0)
        print_message("%s\n", r->message);
    assert_int_equal(r->prepare_error, 0);
    assert_int_equal(r->commit_error, 0);
}

static void input_comes_out_and_the_exit_code_is_told(void **state)
{
    char id[32];
    Skerry__Runner__Prepare p;
    static struct fixture_result r;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("sh", "-c", "cat; echo no >&2; exit 7"));
    expect(*state, &p, "hello\n", &r);
    assert_string_equal(r.out, "hello\n");
    assert_string_equal(r.err, "no\n");
    assert_int_equal(r.exit_code, 7);
    assert_int_equal(r.reason, END_EXITED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(input_comes_out_and_the_exit_code_is_told),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
