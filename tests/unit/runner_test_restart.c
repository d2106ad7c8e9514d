/* Runners that end, are killed and come back; and that nothing is left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/words.h"
#include "tests/lib/runner_fixture.h"
#include "tests/lib/runner_in_process.h"

#define WORDS(...)                                                                                 \
    (char *[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / sizeof(const char *)

static struct runner_fixture *setup_with(fixture_run run)
{
    struct runner_fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    fixture_open(f, run);
    return f;
}

static int setup(void **state)
{
    *state = setup_with(runner_in_process);
    return 0;
}

static int setup_blanks(void **state)
{
    *state = setup_with(runner_in_process_with_blanks);
    return 0;
}

static int teardown(void **state)
{
    fixture_close(*state);
    free(*state);
    return 0;
}

/* A server on a port, whose output goes to its log. */
static void server_start(struct runner_fixture *f, const char *id)
{
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    fixture_prepare_init(
        &p, id, WORDS("python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "8080"));
    p.main_pipes = false;
    p.port = 8080;
    p.ready = SKERRY__RUNNER__READY__READY_LISTEN;
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    fixture_answer_free(&answer);
    assert_int_equal(fixture_commit(f, id), 0);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_READY, id, FIXTURE_WAIT_MS);
    assert_non_null(event);
    assert_int_equal(event->ready->address->port, 8080);
}

static void list(struct runner_fixture *f, struct fixture_answer *answer)
{
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_LIST;
    request.list = &empty;
    fixture_ask(f, &request, answer);
    assert_non_null(answer->reply);
    assert_int_equal(answer->reply->error, 0);
}

/* Its state in the listing, or -1. */
static int held_state(struct runner_fixture *f, const char *id, uint32_t *reason)
{
    struct fixture_answer answer;
    list(f, &answer);
    int state = -1;
    const Skerry__Runner__List *l = answer.reply->list;
    for (size_t n = 0; n < l->n_held; n++)
        if (strcmp(l->held[n]->id, id) == 0) {
            state = (int)l->held[n]->state;
            if (reason != NULL && l->held[n]->ended != NULL)
                *reason = l->held[n]->ended->reason;
        }
    fixture_answer_free(&answer);
    return state;
}

static bool answers_http(struct runner_fixture *f, const char *id)
{
    Skerry__Runner__Sockets sockets = SKERRY__RUNNER__SOCKETS__INIT;
    sockets.id = (char *)(uintptr_t)id;
    sockets.count = 3;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_SOCKETS;
    request.sockets = &sockets;
    struct fixture_answer answer;
    fixture_ask(f, &request, &answer);
    assert_int_equal(answer.reply->error, 0);
    assert_int_equal(answer.count, 3);
    bool good = fixture_http_get(answer.descriptors[1], 8080);
    fixture_answer_free(&answer);
    return good;
}

static uint32_t exec_true(struct runner_fixture *f, const char *id, uint32_t exec_id)
{
    Skerry__Runner__Exec exec = SKERRY__RUNNER__EXEC__INIT;
    char *command[] = {(char *)(uintptr_t) "sh", (char *)(uintptr_t) "-c",
                       (char *)(uintptr_t) "echo from-exec; exit 5"};
    exec.id = (char *)(uintptr_t)id;
    exec.exec_id = exec_id;
    exec.command = command;
    exec.n_command = 3;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_EXEC;
    request.exec = &exec;
    struct fixture_answer answer;
    fixture_ask(f, &request, &answer);
    assert_int_equal(answer.reply->error, 0);
    assert_int_equal(answer.count, 3);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_EXEC_ENDED, id, FIXTURE_WAIT_MS);
    assert_non_null(event);
    char text[64] = "";
    assert_true(read(answer.descriptors[1], text, sizeof text - 1) > 0);
    assert_string_equal(text, "from-exec\n");
    fixture_answer_free(&answer);
    return event->exec_ended->exit_code;
}

static void killed_runner_finds_its_instances_again(void **state)
{
    struct runner_fixture *f = *state;
    char id[32];
    fixture_id(id);
    server_start(f, id);
    assert_true(answers_http(f, id));
    for (int round = 0; round < 2; round++) {
        fixture_stop(f, round == 0 ? SIGKILL : SIGTERM);
        fixture_start(f);
        assert_int_equal(held_state(f, id, NULL), SKERRY__RUNNER__HELD_STATE__HELD_READY);
        assert_true(answers_http(f, id));
        assert_int_equal(exec_true(f, id, 1), 5);
    }
    assert_int_equal(fixture_stop_instance(f, id, 2000), 0);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS);
    assert_non_null(event);
    assert_int_equal(event->ended->reason, END_KILLED);
    assert_int_equal(fixture_forget(f, id), 0);
    assert_int_equal(held_state(f, id, NULL), -1);
}

static uint64_t held_epoch(struct runner_fixture *f)
{
    struct fixture_answer answer;
    list(f, &answer);
    assert_int_equal(answer.reply->list->n_held, 1);
    uint64_t epoch = answer.reply->list->held[0]->epoch;
    fixture_answer_free(&answer);
    return epoch;
}

/* It would outlive its runner, and keep its groups. */
static void ends_when_stopped(struct runner_fixture *f, const char *id)
{
    assert_int_equal(fixture_stop_instance(f, id, 0), 0);
    assert_non_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS));
}

/* The registry gives it while the sandbox is prepared, so it comes with the commit. */
static void epoch_of_the_commit_is_known_after_a_restart(void **state)
{
    struct runner_fixture *f = *state;
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("sleep", "100"));
    p.epoch = 3;
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    Skerry__Runner__Instance commit = SKERRY__RUNNER__INSTANCE__INIT;
    commit.id = id;
    commit.epoch = 0x100000007;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_COMMIT;
    request.commit = &commit;
    assert_int_equal(fixture_code(f, &request), 0);
    fixture_stop(f, SIGKILL);
    fixture_start(f);
    assert_int_equal(held_epoch(f), 0x100000007);
    fixture_answer_free(&answer);
    ends_when_stopped(f, id);
}

static void end_while_the_runner_was_away_is_told(void **state)
{
    struct runner_fixture *f = *state;
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("cat"));
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    assert_int_equal(fixture_commit(f, id), 0);
    pid_t runner = f->pid;
    fixture_stop(f, SIGKILL);
    /* Its input ends, so it does, with nobody to tell. */
    memory_close(&answer.descriptors[0]);
    char byte;
    assert_int_equal(read(answer.descriptors[1], &byte, 1) <= 0, 1);
    fixture_answer_free(&answer);
    assert_true(fixture_processes_gone(runner, FIXTURE_WAIT_MS));
    fixture_start(f);
    uint32_t reason = 0;
    assert_int_equal(held_state(f, id, &reason), SKERRY__RUNNER__HELD_STATE__HELD_ENDED);
    assert_int_equal(reason, END_AGENT_LOST);
    assert_int_equal(fixture_forget(f, id), 0);
}

static void prepared_instance_does_not_outlive_its_runner(void **state)
{
    struct runner_fixture *f = *state;
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("true"));
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    fixture_answer_free(&answer);
    pid_t runner = f->pid;
    fixture_stop(f, SIGKILL);
    fixture_start(f);
    assert_true(fixture_processes_gone(runner, FIXTURE_WAIT_MS));
    /* Killed right behind its answer, it may not have written down what it had. */
    uint32_t reason = 0;
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    int held = 0;
    do
        held = held_state(f, id, &reason);
    while (held != SKERRY__RUNNER__HELD_STATE__HELD_ENDED && held != -1 &&
           clock_monotonic_ms() < until);
    if (held != -1)
        assert_int_equal(reason, END_START_LOST);
}

static void set_deadline(struct runner_fixture *f, char *id, uint64_t boot_ms)
{
    Skerry__Runner__Deadline deadline = SKERRY__RUNNER__DEADLINE__INIT;
    deadline.id = id;
    deadline.boot_ms = boot_ms;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_DEADLINE;
    request.deadline = &deadline;
    assert_int_equal(fixture_code(f, &request), 0);
}

static void deadline_is_kept_by_the_runner_also_after_a_restart(void **state)
{
    struct runner_fixture *f = *state;
    char ids[2][32];
    for (int n = 0; n < 2; n++) {
        fixture_id(ids[n]);
        server_start(f, ids[n]);
        set_deadline(f, ids[n], clock_boot_ms() + (n == 0 ? 100 : 1500));
    }
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, ids[0], FIXTURE_WAIT_MS);
    assert_non_null(event);
    assert_int_equal(event->ended->reason, END_LEASE_LOST);
    fixture_stop(f, SIGKILL);
    fixture_start(f);
    event = fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, ids[1], FIXTURE_WAIT_MS);
    assert_non_null(event);
    assert_int_equal(event->ended->reason, END_LEASE_LOST);
}

/* No runner, no node: the agent ends by itself. A runner that comes later finds nobody: one that finds an
 * agent past its deadline would call that lease_lost. */
static void deadline_is_kept_while_no_runner_is_there(void **state)
{
    struct runner_fixture *f = *state;
    char id[32];
    fixture_id(id);
    server_start(f, id);
    /* The last one counts: earlier, later, lifted and set again. */
    uint64_t now_ms = clock_boot_ms();
    set_deadline(f, id, now_ms + 60000);
    set_deadline(f, id, 0);
    set_deadline(f, id, now_ms + 1500);
    fixture_stop(f, SIGKILL);
    while (clock_boot_ms() < now_ms + 2500)
        usleep(50000);
    fixture_start(f);
    uint32_t reason = 0;
    assert_int_equal(held_state(f, id, &reason), SKERRY__RUNNER__HELD_STATE__HELD_ENDED);
    assert_int_equal(reason, END_AGENT_LOST);
}

static void a_lifted_deadline_ends_nothing(void **state)
{
    struct runner_fixture *f = *state;
    char id[32];
    fixture_id(id);
    server_start(f, id);
    set_deadline(f, id, clock_boot_ms() + 700);
    set_deadline(f, id, 0);
    assert_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, 1200));
    fixture_stop(f, SIGKILL);
    fixture_start(f);
    assert_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, 500));
    ends_when_stopped(f, id);
}

static void folders_of_nobody_are_swept(void **state)
{
    struct runner_fixture *f = *state;
    char id[32], path[160];
    fixture_id(id);
    fixture_stop(f, SIGKILL);
    text_format(path, sizeof path, "%s/instances/%s", f->directory, id);
    assert_int_equal(mkdir(path, 0700), 0);
    fixture_start(f);
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    while (access(path, F_OK) == 0 && clock_monotonic_ms() < until)
        usleep(1000);
    assert_int_not_equal(access(path, F_OK), 0);
}

static void folders_of_blanks_do_not_outlive_their_runner(void **state)
{
    struct runner_fixture *f = *state;
    struct fixture_traces before, after;
    assert_true(fixture_settle(f, &before, FIXTURE_WAIT_MS));
    assert_true(before.blanks > 0);
    fixture_stop(f, SIGKILL);
    fixture_start(f);
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    do {
        assert_true(fixture_settle(f, &after, FIXTURE_WAIT_MS));
        assert_true(clock_monotonic_ms() < until);
    } while (after.blanks != before.blanks);
    fixture_stop(f, SIGTERM);
    fixture_traces_read(f, &after);
    assert_int_equal(after.blanks, 0);
    fixture_start(f);
}

static void main_output_goes_to_the_log(void **state)
{
    struct runner_fixture *f = *state;
    char id[32], path[160], text[512] = "";
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("sh", "-c", "echo to-the-log; echo last-words >&2; exit 3"));
    p.main_pipes = false;
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    assert_int_equal(answer.count, 0);
    fixture_answer_free(&answer);
    assert_int_equal(fixture_commit(f, id), 0);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS);
    assert_non_null(event);
    assert_string_equal(event->ended->stderr_tail, "last-words");
    assert_int_equal(event->ended->exit_code, 3);
    text_format(path, sizeof path, "%s/logs/%s.log", f->directory, id);
    FILE *log = fopen(path, "r");
    assert_non_null(log);
    size_t n = fread(text, 1, sizeof text - 1, log);
    fclose(log);
    assert_non_null(memmem(text, n, "to-the-log", 10));
}

/* --- leaks ------------------------------------------------------------------------------------- */

static void starts(struct runner_fixture *f, int count)
{
    static struct fixture_result r;
    for (int n = 0; n < count; n++) {
        char id[32];
        Skerry__Runner__Prepare p;
        fixture_id(id);
        fixture_prepare_init(&p, id, WORDS("sh", "-c", "sleep 100 & echo x > /tmp/f"));
        if (n % 10 == 9) {
            struct fixture_answer answer;
            assert_int_equal(fixture_prepare(f, &p, &answer), 0);
            fixture_answer_free(&answer);
            assert_int_equal(fixture_discard(f, id), 0);
            continue;
        }
        /* The sleeper in the background holds the pipes; it dies with the instance. */
        fixture_run_command(f, &p, NULL, &r);
        assert_int_equal(r.prepare_error, 0);
        assert_int_equal(r.exit_code, 0);
    }
}

static void hundred_starts_leave_nothing_behind(void **state)
{
    struct runner_fixture *f = *state;
    starts(f, 5);
    struct fixture_traces before, after;
    assert_true(fixture_settle(f, &before, FIXTURE_WAIT_MS));
    starts(f, 100);
    assert_true(fixture_settle(f, &after, FIXTURE_WAIT_MS));
    assert_int_equal(after.descriptors, before.descriptors);
    assert_int_equal(after.mounts, before.mounts);
    assert_int_equal(after.children, before.children);
    assert_int_equal(after.groups, before.groups);
    assert_int_equal(after.blanks, before.blanks);
    assert_int_equal(after.folders, 0);
}

/* The oldest child of the runner with this name, and how many have it; 0: there is none. */
static pid_t children_named(pid_t runner, const char *name, size_t *count)
{
    pid_t first = 0;
    *count = 0;
    char path[64], pids[4096] = "", comm[64];
    text_format(path, sizeof path, "/proc/%d/task/%d/children", (int)runner, (int)runner);
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    pids[fread(pids, 1, sizeof pids - 1, file)] = '\0';
    fclose(file);
    char *rest = NULL;
    for (char *pid = strtok_r(pids, " ", &rest); pid != NULL; pid = strtok_r(NULL, " ", &rest)) {
        text_format(path, sizeof path, "/proc/%s/comm", pid);
        file = fopen(path, "re");
        if (file == NULL)
            continue;
        bool found = fgets(comm, sizeof comm, file) != NULL &&
                     strncmp(comm, name, strlen(name)) == 0 && comm[strlen(name)] == '\n';
        fclose(file);
        if (found && (*count)++ == 0)
            first = (pid_t)strtol(pid, NULL, 10);
    }
    return first;
}

static pid_t child_named(pid_t runner, const char *name)
{
    size_t count;
    return children_named(runner, name, &count);
}

/* Libraries that a process has mapped, but for the C library and what links. */
static size_t libraries_of(pid_t pid)
{
    char path[64], line[512];
    size_t count = 0;
    text_format(path, sizeof path, "/proc/%d/maps", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0; /* it is gone */
    while (fgets(line, sizeof line, file) != NULL)
        count += strstr(line, ".so") != NULL && strstr(line, "/libc.so") == NULL &&
                 strstr(line, "/ld-") == NULL;
    (void)fclose(file);
    return count;
}

static void runner_whose_maker_was_killed_starts_all_the_same(void **state)
{
    struct runner_fixture *f = *state;
    starts(f, 3);
    pid_t maker = child_named(f->pid, "skerry-maker");
    assert_int_not_equal(maker, 0);
    assert_int_equal(kill(maker, SIGKILL), 0);
    starts(f, 10);
    /* There is another one, with all that the runner has, and what it makes is used. */
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    pid_t next = 0;
    while (next == 0 || next == maker || libraries_of(next) == 0) {
        assert_true(clock_monotonic_ms() < until);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        next = child_named(f->pid, "skerry-maker"); /* or what it makes, for a moment */
    }
    starts(f, 10);
}

/* A blank has its maker's name until it executes the agent. */
static void what_a_killed_maker_had_begun_is_waited_for(void **state)
{
    struct runner_fixture *f = *state;
    size_t count = 0, caught = 0;
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    for (size_t i = 0; i < 10; i++) {
        starts(f, 3);
        pid_t maker = 0;
        uint64_t seen_until = clock_monotonic_ms() + 1000;
        while (count < 2 && clock_monotonic_ms() < seen_until)
            maker = children_named(f->pid, "skerry-maker", &count);
        caught += count == 2;
        assert_int_not_equal(maker, 0);
        assert_int_equal(kill(maker, SIGKILL), 0);
        starts(f, 3);
        for (count = 2; count != 1; children_named(f->pid, "skerry-maker", &count))
            assert_true(clock_monotonic_ms() < until);
    }
    assert_true(caught > 0);
}

/* What it does not have, no blank is a copy of. */
static void maker_needs_no_library_but_the_c_library(void **state)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)state;
    print_message("skipped: a sanitizer is a library\n");
    skip();
#else
    struct runner_fixture *f = *state;
    starts(f, 3);
    pid_t maker = child_named(f->pid, "skerry-maker");
    assert_int_equal(libraries_of(maker), 0);
    starts(f, 20);
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    while (child_named(f->pid, "skerry-maker") != maker)
        assert_true(clock_monotonic_ms() < until);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(killed_runner_finds_its_instances_again, setup, teardown),
        cmocka_unit_test_setup_teardown(epoch_of_the_commit_is_known_after_a_restart, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(end_while_the_runner_was_away_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(prepared_instance_does_not_outlive_its_runner, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(deadline_is_kept_by_the_runner_also_after_a_restart, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(deadline_is_kept_while_no_runner_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(a_lifted_deadline_ends_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(folders_of_nobody_are_swept, setup, teardown),
        cmocka_unit_test_setup_teardown(folders_of_blanks_do_not_outlive_their_runner, setup_blanks,
                                        teardown),
        cmocka_unit_test_setup_teardown(main_output_goes_to_the_log, setup, teardown),
        cmocka_unit_test_setup_teardown(hundred_starts_leave_nothing_behind, setup, teardown),
        cmocka_unit_test_setup_teardown(hundred_starts_leave_nothing_behind, setup_blanks,
                                        teardown),
        cmocka_unit_test_setup_teardown(runner_whose_maker_was_killed_starts_all_the_same,
                                        setup_blanks, teardown),
        cmocka_unit_test_setup_teardown(what_a_killed_maker_had_begun_is_waited_for, setup_blanks,
                                        teardown),
        cmocka_unit_test_setup_teardown(maker_needs_no_library_but_the_c_library, setup_blanks,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
