/* A whole runner that an ordinary user starts; in a control group of version 2 that is delegated to it, where
 * this machine has one to give (make check-v2), and else in none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/words.h"
#include "sandbox/shared/userns.h"
#include "tests/lib/runner_import.h"

#define ORDINARY 1878500000u /* nobody's */
#define TREE "/sys/fs/cgroup"

/* Of the delegated group and of the one in it that the runner goes to: the first cannot be entered any more
 * when it has given its controllers away. */
enum { ENTER_GROUP, ENTER_ASIDE, ENTER_UP, ENTER_COUNT };

static struct {
    int probes;  /* the folder of the programs that run inside; likewise */
    int skerry;  /* the whole program; likewise */
    int program; /* the runner's ELF: the user may not be able to pass through its folders */
    int enter[ENTER_COUNT];   /* descriptors of cgroup.procs; -1: there is no group */
    char group[128], up[128]; /* their folders; the second is of the last one */
    bool one_id;
} world = {.probes = -1, .skerry = -1, .program = -1, .enter = {-1, -1, -1}};

static bool delegated(void)
{
    return world.enter[ENTER_ASIDE] >= 0;
}

/* --- as root ---------------------------------------------------------------------------------- */

static bool file_write(const char *folder, const char *name, const char *text)
{
    char path[256];
    (void)text_format(path, sizeof path, "%s/%s", folder, name);
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

static int group_give(const char *path)
{
    static const char *const files[] = {"", "/cgroup.procs", "/cgroup.threads",
                                        "/cgroup.subtree_control"};
    char file[256];
    bool given = mkdir(path, 0755) == 0;
    for (size_t i = 0; given && i < ARRAY_SIZE(files); i++) {
        (void)text_format(file, sizeof file, "%s%s", path, files[i]);
        given = chown(file, ORDINARY, ORDINARY) == 0;
    }
    (void)text_format(file, sizeof file, "%s/cgroup.procs", path);
    return given ? open(file, O_WRONLY | O_CLOEXEC) : -1;
}

/* As systemd does for a user unit with Delegate=yes. */
static void delegate(void)
{
    char aside[160];
    if (!file_write(TREE, "cgroup.subtree_control", "+cpu +memory +pids"))
        return;
    (void)text_format(world.group, sizeof world.group, TREE "/rootless-test-%d", (int)getpid());
    (void)text_format(aside, sizeof aside, "%s/skerry-runner", world.group);
    world.enter[ENTER_GROUP] = group_give(world.group);
    world.enter[ENTER_ASIDE] = group_give(aside);
    (void)text_format(world.up, sizeof world.up, TREE "/rootless-up-%d", (int)getpid());
    world.enter[ENTER_UP] = group_give(world.up);
}

static bool group_enter(void)
{
    for (size_t i = ENTER_GROUP; i <= ENTER_ASIDE; i++)
        if (write(world.enter[i], "0", 1) == 1)
            return true;
    return !delegated();
}

static void group_remove(const char *group)
{
    char path[256];
    (void)text_format(path, sizeof path, "%s/skerry-runner", group);
    (void)rmdir(path);
    if (group[0] != '\0' && rmdir(group) != 0)
        fprintf(stderr, "%s stays: %s\n", group, strerror(errno));
}

/* Without an exec /proc would still take us for root's. */
static bool drop_root(void)
{
    return setgroups(0, NULL) == 0 && setresgid(ORDINARY, ORDINARY, ORDINARY) == 0 &&
           setresuid(ORDINARY, ORDINARY, ORDINARY) == 0 && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0;
}

/* --- as the user ------------------------------------------------------------------------------ */

static int run(const char *directory, const char *socket, int ready_fd)
{
    char config[128], ready[16];
    (void)text_format(config, sizeof config, "%s/runner.yaml", directory);
    FILE *file = fopen(config, "we");
    if (file == NULL)
        return 1;
    fprintf(file, "instances: %s/held\nmax: {instances: 8}\n", directory);
    (void)fclose(file);
    (void)text_format(ready, sizeof ready, "%d", ready_fd);
    const char *argv[] = {"skerry-runner", "--config", config,       "--directory", directory,
                          "--socket",      socket,     "--ready-fd", ready,         NULL};
    if (!group_enter() || fcntl(ready_fd, F_SETFD, 0) != 0)
        return 1;
    syscall(SYS_execveat, world.program, "", argv, environ, AT_EMPTY_PATH);
    return 1;
}

static int open_fixture(void **state)
{
    static struct runner_fixture fixture;
    fixture_open(&fixture, run);
    *state = &fixture;
    return 0;
}

static int close_fixture(void **state)
{
    fixture_close(*state);
    return 0;
}

static void prepare_init(Skerry__Runner__Prepare *p, char id[32], char **command, size_t words)
{
    fixture_id(id);
    fixture_prepare_init(p, id, command, words);
    p->allow_unenforced = !delegated();
}

static void a_command_runs_as_whom_it_asked_for(void **state)
{
    char *command[] = {(char *)(uintptr_t) "sh", (char *)(uintptr_t) "-c",
                       (char *)(uintptr_t) "cat; id -u; id -g"};
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_result result;
    prepare_init(&p, id, command, ARRAY_SIZE(command));
    p.gid = 42;
    fixture_run_command(*state, &p, "through\n", &result);
    assert_int_equal(result.prepare_error, 0);
    assert_string_equal(result.out, "through\n1000\n42\n");
    assert_int_equal(result.exit_code, 0);
}

static void the_probe_passes(void **state)
{
    char *command[] = {(char *)(uintptr_t) "/app/probe", (char *)(uintptr_t) "--one-id"};
    char folder[64], id[32], digest[IMAGE_DIGEST_SIZE], variable[64], *environment[] = {variable};
    Skerry__Runner__Prepare p;
    struct fixture_result result;
    (void)text_format(folder, sizeof folder, "/proc/self/fd/%d", world.probes);
    runner_import(*state, folder, PACK_SOURCE, digest);
    /* With subordinate ids the code's is not the user's. */
    prepare_init(&p, id, command, world.one_id ? 2 : 1);
    (void)text_format(variable, sizeof variable, "SKERRY_INSTANCE=%s", id);
    p.source = digest;
    p.environment = environment;
    p.n_environment = 1;
    fixture_run_command(*state, &p, "", &result);
    assert_int_equal(result.prepare_error, 0);
    for (const char *line = result.out; line[0] != '\0';) {
        size_t length = strcspn(line, "\n");
        if (strncmp(line, "FAIL", 4) == 0)
            print_message("%.*s\n", (int)length, line);
        line += length + (line[length] == '\n');
    }
    assert_int_equal(result.exit_code, 0);
    assert_non_null(strstr(result.out, " passed, 0 failed\n"));
}

static void limits_are_those_of_the_delegated_group(void **state)
{
    struct fixture_answer answer;
    Skerry__Runner__Hello hello = SKERRY__RUNNER__HELLO__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    hello.protocol = 1;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_HELLO;
    request.hello = &hello;
    fixture_ask(*state, &request, &answer);
    assert_non_null(answer.reply);
    assert_int_equal(answer.reply->error, 0);
    const Skerry__Runner__HelloReply *reply = answer.reply->hello;
    assert_int_equal(reply->n_unenforced, !delegated() ? 4 : 0);
    assert_string_equal(reply->cgroup, !delegated() ? "none" : "v2");
    assert_int_equal(reply->n_warnings, 1);
    assert_non_null(strstr(reply->warnings[0], "without root"));
    assert_int_equal(strstr(reply->warnings[0], "delegated") != NULL, !delegated());
    fixture_answer_free(&answer);
}

static void memory_is_bounded_or_refused(void **state)
{
    char *command[] = {(char *)(uintptr_t) "python3", (char *)(uintptr_t) "-c",
                       (char *)(uintptr_t) "x = b'x' * (300 << 20)"};
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_result result;
    prepare_init(&p, id, command, ARRAY_SIZE(command));
    p.allow_unenforced = false;
    fixture_run_command(*state, &p, "", &result);
    if (!delegated()) {
        assert_int_equal(result.prepare_error, ERR_UNSUPPORTED);
        assert_non_null(strstr(result.message, "sandbox.allow_unenforced"));
    } else {
        assert_int_equal(result.prepare_error, 0);
        assert_int_equal(result.reason, END_OOM);
    }
}

static void egress_is_refused_with_its_reason(void **state)
{
    char *command[] = {(char *)(uintptr_t) "true"};
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_result result;
    prepare_init(&p, id, command, ARRAY_SIZE(command));
    p.network = 1;
    fixture_run_command(*state, &p, "", &result);
    assert_int_equal(result.prepare_error, ERR_UNSUPPORTED);
    assert_non_null(strstr(result.message, "without root"));
}

static uint32_t exec_code(struct runner_fixture *f, const char *id)
{
    char *command[] = {(char *)(uintptr_t) "sh", (char *)(uintptr_t) "-c",
                       (char *)(uintptr_t) "exit 5"};
    struct fixture_answer answer;
    Skerry__Runner__Exec exec = SKERRY__RUNNER__EXEC__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    exec.id = (char *)(uintptr_t)id;
    exec.exec_id = 1;
    exec.command = command;
    exec.n_command = ARRAY_SIZE(command);
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_EXEC;
    request.exec = &exec;
    fixture_ask(f, &request, &answer);
    assert_non_null(answer.reply);
    assert_int_equal(answer.reply->error, 0);
    fixture_answer_free(&answer);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_EXEC_ENDED, id, FIXTURE_WAIT_MS);
    assert_non_null(event);
    return event->exec_ended->exit_code;
}

/* Only in the namespace that the first one made may the second speak for them. */
static void a_killed_runner_finds_its_instances_again(void **state)
{
    struct runner_fixture *f = *state;
    char *command[] = {(char *)(uintptr_t) "sleep", (char *)(uintptr_t) "600"};
    char id[32];
    struct fixture_answer answer;
    Skerry__Runner__Prepare p;
    prepare_init(&p, id, command, ARRAY_SIZE(command));
    p.main_pipes = false;
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    fixture_answer_free(&answer);
    assert_int_equal(fixture_commit(f, id), 0);
    assert_non_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_READY, id, FIXTURE_WAIT_MS));
    fixture_stop(f, SIGKILL);
    fixture_start(f);
    assert_int_equal(exec_code(f, id), 5);
    assert_int_equal(fixture_stop_instance(f, id, 0), 0);
    const Skerry__Runner__Event *ended =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS);
    assert_non_null(ended);
    assert_int_equal(ended->ended->reason, END_KILLED);
    assert_int_equal(fixture_forget(f, id), 0);
}

/* The command line with words behind `skerry`; what it says goes to `out`. */
static int skerry(const char *directory, const char *const *words, char *out, size_t size)
{
    const char *argv[8] = {"skerry"};
    char home[80], address[128];
    const char *const environment[] = {home, address, NULL};
    int ends[2], status;
    size_t length = 0;
    (void)text_format(home, sizeof home, "HOME=%s", directory);
    (void)text_format(address, sizeof address, "SKERRY_ADDR=unix:%s/up/node1/run/api.sock",
                      directory);
    for (size_t i = 0; words[i] != NULL; i++)
        argv[1 + i] = words[i];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (write(world.enter[ENTER_UP], "0", 1) != 1 || dup2(ends[1], 1) < 0)
            _exit(99);
        syscall(SYS_execveat, world.skerry, "", argv, environment, AT_EMPTY_PATH);
        _exit(98);
    }
    memory_close(&ends[1]);
    for (ssize_t n; length < size - 1 && (n = read(ends[0], out + length, size - 1 - length)) > 0;)
        length += (size_t)n;
    out[length] = '\0';
    memory_close(&ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static void up_in_a_delegated_group_has_limits(void **state)
{
    const struct runner_fixture *f = *state;
    char folder[80], said[16384];
    (void)text_format(folder, sizeof folder, "%s/up", f->directory);
    const char *const up[] = {"up", "--detach", "--dir", folder, NULL}, *const down[] = {
                                                                            "down", "--delete",
                                                                            "--dir", folder, NULL};
    if (!delegated()) {
        print_message("skipped: there are no control groups of version 2 to delegate here\n");
        skip();
    }
    assert_int_equal(skerry(f->directory, up, said, sizeof said), 0);
    assert_non_null(strstr(said, "without root"));
    assert_null(strstr(said, "not enforced"));
    /* Where it has been before nobody may be any more. */
    world.enter[ENTER_UP] = world.enter[ENTER_ASIDE];
    assert_int_equal(skerry(f->directory, down, said, sizeof said), 0);
}

static int as_the_user(void)
{
    enum userns_ids ids;
    char lack[256];
    struct err e;
    if (!drop_root()) {
        perror("become an ordinary user");
        return 1;
    }
    if (userns_probe(&ids, lack, sizeof lack, &e) != 0) {
        print_message("skipped: %s\n", e.msg);
        return 0;
    }
    world.one_id = ids == USERNS_ONE;
    print_message("%s; %s\n", !delegated() ? "no control group" : "a delegated control group",
                  ids == USERNS_RANGE ? "subordinate ids" : "one id");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_command_runs_as_whom_it_asked_for),
        cmocka_unit_test(the_probe_passes),
        cmocka_unit_test(limits_are_those_of_the_delegated_group),
        cmocka_unit_test(memory_is_bounded_or_refused),
        cmocka_unit_test(egress_is_refused_with_its_reason),
        cmocka_unit_test(a_killed_runner_finds_its_instances_again),
        cmocka_unit_test(up_in_a_delegated_group_has_limits),
    };
    return cmocka_run_group_tests_name("rootless", tests, open_fixture, close_fixture);
}

int main(void)
{
    if (geteuid() != 0) {
        print_message("skipped: needs root, to be somebody else\n");
        return 0;
    }
    char path[256];
    const char *build = getenv("B");
    (void)text_format(path, sizeof path, "%s/probe", build != NULL ? build : "build");
    world.probes = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    (void)text_format(path, sizeof path, "%s/skerry", build != NULL ? build : "build");
    world.skerry = open(path, O_RDONLY | O_CLOEXEC);
    (void)text_format(path, sizeof path, "%s/skerry-runner", build != NULL ? build : "build");
    world.program = open(path, O_RDONLY | O_CLOEXEC);
    if (world.program < 0 || world.probes < 0 || world.skerry < 0) {
        perror(path);
        return 1;
    }
    delegate();
    pid_t child = fork();
    if (child == 0)
        exit(as_the_user());
    int status = 1;
    (void)waitpid(child, &status, 0);
    group_remove(world.group);
    group_remove(world.up);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
