/* The agent's commands, logs and end, driven as the runner drives it. */
#include "tests/lib/agent_host.h"

#include <signal.h>

static int set_up(void **state)
{
    static struct host host;
    host_start(&host);
    *state = &host;
    return 0;
}

static int tear_down(void **state)
{
    host_stop(*state);
    return 0;
}

static void expect_exit(struct host *h, uint32_t exec_id, uint32_t code, uint32_t signal)
{
    Skerry__Agent__FromAgent *m = host_take(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED, 0, NULL);
    assert_int_equal(m->exited->exec_id, exec_id);
    assert_int_equal(m->exited->exit_code, code);
    assert_int_equal(m->exited->signal, signal);
    host_free(m);
}

static void expect_ending(struct host *h, enum end_reason reason)
{
    Skerry__Agent__FromAgent *m = host_take(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_ENDING, 0, NULL);
    assert_int_equal(m->ending->reason, reason);
    host_free(m);
    assert_int_equal(host_wait_end(h), 0);
}

static void main_runs_with_pipes_and_ends_the_instance(void **state)
{
    struct host *h = *state;
    struct host_setup s;
    host_setup_default(&s);
    host_setup_send(h, &s);
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    char out[256];
    Skerry__Agent__FromAgent *m = host_pipe(
        h, &command, HOST_ARGV("sh", "-c", "cat; echo $COLOR; exit 7"), "hi\n", 3, out, sizeof out);
    assert_string_equal(out, "hi\nred\n");
    assert_int_equal(m->exited->exit_code, 7);
    assert_true(m->exited->wall_us > 0);
    host_free(m);
    host_free(host_take(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY, 0, NULL));
    expect_ending(h, END_EXITED);
}

static void start_default(struct host *h)
{
    struct host_setup s;
    host_setup_default(&s);
    host_setup_send(h, &s);
}

static void exec_tells_code_or_signal(void **state)
{
    struct host *h = *state;
    start_default(h);
    assert_int_equal(host_run(h, 0, HOST_ARGV("sleep", "1000")), 0);
    assert_int_equal(host_run(h, 1, HOST_ARGV("sh", "-c", "exit 3")), 0);
    expect_exit(h, 1, 3, 0);
    assert_int_equal(host_run(h, 2, HOST_ARGV("sh", "-c", "kill -SEGV $$")), 0);
    expect_exit(h, 2, 0, SIGSEGV);
    assert_int_equal(host_run(h, 3, HOST_ARGV("true")), 0);
    expect_exit(h, 3, 0, 0);
}

static void expect_not_executed(struct host *h, uint32_t exec_id, const char *program,
                                uint32_t code, const char *message)
{
    assert_int_equal(host_run(h, exec_id, HOST_ARGV(program)), 0);
    Skerry__Agent__FromAgent *m = host_take(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED, 0, NULL);
    assert_int_equal(m->exited->exec_id, exec_id);
    assert_int_equal(m->exited->exit_code, code);
    assert_string_equal(m->exited->message, message);
    host_free(m);
}

static void what_cannot_be_executed_says_why(void **state)
{
    struct host *h = *state;
    start_default(h);
    assert_int_equal(host_run(h, 0, HOST_ARGV("sleep", "1000")), 0);
    expect_not_executed(h, 1, "no-such-program", 127, "no-such-program: not found");
    expect_not_executed(h, 2, "/no/such/program", 127, "/no/such/program: not found");
    expect_not_executed(h, 3, "/etc/passwd", 126, "/etc/passwd: Permission denied");
    expect_not_executed(h, 4, "/tmp", 126, "/tmp: Permission denied");
    expect_not_executed(h, 5, "/etc/passwd/x", 127, "/etc/passwd/x: not found");
}

static void main_that_is_not_there_ends_the_instance(void **state)
{
    struct host *h = *state;
    start_default(h);
    assert_int_equal(host_run(h, 0, HOST_ARGV("no-such-program")), 0);
    expect_exit(h, 0, 127, 0);
    expect_ending(h, END_EXITED);
}

/* Design section 7: what a command may not have. */
static void command_is_confined(void **state)
{
    struct host *h = *state;
    start_default(h);
    static const char script[] =
        "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|SigBlk|SigIgn)' /proc/self/status;"
        "ulimit -c; ulimit -n; ls /proc/self/fd | wc -l;"
        "test $(ps -o sid= -p $$) = $$ && echo session; cat /proc/1/environ 2>&1 | wc -c;"
        "kill -KILL 1 2>/dev/null || echo no; ls /proc/1/fd 2>/dev/null || echo no; pwd";
    static const char want[] = "Uid:\t1000\t1000\t1000\t1000\nGid:\t1001\t1001\t1001\t1001\n"
                               "Groups:\t \nSigBlk:\t0000000000000000\n"
                               "SigIgn:\t0000000000000000\nCapInh:\t0000000000000000\n"
                               "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"
                               "CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n"
                               "NoNewPrivs:\t1\nSeccomp:\t2\n0\n256\n4\nsession\n";
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command.exec_id = 9;
    char out[2048];
    host_free(host_pipe(h, &command, HOST_ARGV("sh", "-c", script), "", 0, out, sizeof out));
    out[strlen(want)] = '\0';
    assert_string_equal(out, want);
    assert_non_null(strstr(out + strlen(want) + 1, "no\nno\n/\n"));
}

static void agent_keeps_three_capabilities(void **state)
{
    struct host *h = *state;
    start_default(h);
    char path[64], text[4096] = "";
    snprintf(path, sizeof path, "/proc/%d/status", h->pid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(read(fd, text, sizeof text - 1) > 0);
    assert_non_null(strstr(text, "CapPrm:\t00000000000000e0\n"));
    assert_non_null(strstr(text, "CapEff:\t00000000000000e0\n"));
    assert_non_null(strstr(text, "CapBnd:\t0000000000000000\n"));
    assert_non_null(strstr(text, "NoNewPrivs:\t1\n"));
    char uid[64];
    snprintf(uid, sizeof uid, "Uid:\t%d\t%d\t%d\t%d\n", HOST_UID_FIRST + 65535,
             HOST_UID_FIRST + 65535, HOST_UID_FIRST + 65535, HOST_UID_FIRST + 65535);
    assert_non_null(strstr(text, uid));
}

static void signal_reaches_the_whole_group(void **state)
{
    struct host *h = *state;
    start_default(h);
    assert_int_equal(host_run(h, 0, HOST_ARGV("sleep", "1000")), 0);
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command.exec_id = 1;
    command.pipes = true;
    command.no_stdin = true;
    int out[2];
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    const int fds[2] = {out[1], STDERR_FILENO};
    assert_int_equal(
        host_run_fds(h, &command, HOST_ARGV("sh", "-c", "sleep 1000; true"), fds, 2, NULL), 0);
    close(out[1]);
    Skerry__Agent__Signal what = SKERRY__AGENT__SIGNAL__INIT;
    what.exec_id = 1;
    what.signal = SIGTERM;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_SIGNAL;
    message.signal = &what;
    assert_int_equal(host_ask(h, &message, NULL, 0, NULL), 0);
    expect_exit(h, 1, 0, SIGTERM);
    char text[16];
    assert_int_equal(host_read_all(out[0], text, sizeof text), 0); /* nobody holds the pipe */
    assert_int_equal(host_ask(h, &message, NULL, 0, NULL), ERR_NOT_FOUND);
}

/* Starts a script as main and waits until it has written a byte. */
static void start_main_until_up(struct host *h, const char *script)
{
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command.pipes = true;
    command.no_stdin = true;
    int out[2];
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    const int fds[2] = {out[1], STDERR_FILENO};
    assert_int_equal(host_run_fds(h, &command, HOST_ARGV("sh", "-c", script), fds, 2, NULL), 0);
    close(out[1]);
    char byte;
    struct pollfd up = {.fd = out[0], .events = POLLIN};
    assert_int_equal(poll(&up, 1, HOST_DEADLINE_MS), 1);
    assert_int_equal(read(out[0], &byte, 1), 1);
    close(out[0]);
}

static void stop_waits_for_grace_only(void **state)
{
    struct host *h = *state;
    start_default(h);
    start_main_until_up(h, "trap '' TERM; echo; while :; do sleep 1000; done");
    /* The second stop shortens the first one's grace. */
    assert_int_equal(host_stop_verb(h, 100000, END_KILLED), 0);
    assert_int_equal(host_stop_verb(h, 50, END_IDLE), 0);
    expect_ending(h, END_KILLED);
}

static void stop_ends_with_main(void **state)
{
    struct host *h = *state;
    start_default(h);
    start_main_until_up(h, "trap 'exit 5' TERM; echo; sleep 1000 & wait");
    assert_int_equal(host_stop_verb(h, 100000, END_DRAINED), 0);
    expect_exit(h, 0, 5, 0);
    expect_ending(h, END_DRAINED);
}

static void without_main_it_lives_until_stopped(void **state)
{
    struct host *h = *state;
    start_default(h);
    assert_int_equal(host_run(h, 0, NULL), 0);
    host_free(host_take(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY, 0, NULL));
    assert_int_equal(host_run(h, 1, HOST_ARGV("true")), 0);
    expect_exit(h, 1, 0, 0);
    assert_int_equal(host_stop_verb(h, 100000, END_KILLED), 0);
    expect_ending(h, END_KILLED);
}

/* --- a main that is held ------------------------------------------------------------------------ */

/* Its stdout comes out of the returned descriptor. */
static int hold(struct host *h, const char *const *argv)
{
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command.pipes = command.no_stdin = command.hold = true;
    int out[2];
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    const int fds[2] = {out[1], STDERR_FILENO};
    assert_int_equal(host_run_fds(h, &command, argv, fds, 2, NULL), 0);
    close(out[1]);
    return out[0];
}

static uint32_t go(struct host *h)
{
    Skerry__Agent__Empty empty = SKERRY__AGENT__EMPTY__INIT;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_GO;
    message.go = &empty;
    return host_ask(h, &message, NULL, 0, NULL);
}

/* The agent's only child, and what /proc says of it once it is as confined as it will be. */
static pid_t held_child(const struct host *h, char *status, size_t size)
{
    char path[64], text[64] = "";
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", h->pid, h->pid);
    CLEANUP_FD int children = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(read(children, text, sizeof text - 1) > 0);
    pid_t pid = (pid_t)strtol(text, NULL, 10);
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    for (unsigned n = 0; n < HOST_DEADLINE_MS; n++) {
        CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t length = read(fd, status, size - 1);
        assert_true(length > 0);
        status[length] = '\0';
        if (strstr(status, "Seccomp:\t2\n") != NULL)
            return pid;
        usleep(1000);
    }
    fail_msg("it was not confined");
    return 0;
}

static void held_main_is_confined_and_waits(void **state)
{
    struct host *h = *state;
    start_default(h);
    int out = hold(h, HOST_ARGV("sh", "-c", "ls /proc/self/fd | wc -l; exit 7"));
    char status[4096], text[64];
    (void)held_child(h, status, sizeof status);
    assert_null(strstr(status, "Name:\tsh\n"));
    assert_non_null(strstr(status, "CapEff:\t0000000000000000\n"));
    assert_non_null(strstr(status, "NoNewPrivs:\t1\n"));
    assert_null(host_take_within(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY, 0, NULL, 50));
    assert_int_equal(go(h), 0);
    assert_true(host_read_all(out, text, sizeof text) > 0);
    assert_string_equal(text, "4\n"); /* 0 to 2, and that of the folder */
    host_free(host_take(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY, 0, NULL));
    expect_exit(h, 0, 7, 0);
    expect_ending(h, END_EXITED);
}

static void what_a_held_main_cannot_is_told_after_go(void **state)
{
    struct host *h = *state;
    struct host_setup s;
    host_setup_default(&s);
    s.setup.directory = (char *)(uintptr_t) "/no/such/folder";
    host_setup_send(h, &s);
    close(hold(h, HOST_ARGV("true")));
    assert_null(host_take_within(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED, 0, NULL, 100));
    assert_int_equal(go(h), 0);
    Skerry__Agent__FromAgent *m = host_take(h, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED, 0, NULL);
    assert_int_equal(m->exited->exit_code, 126);
    assert_string_equal(m->exited->message, "/no/such/folder: No such file or directory");
    host_free(m);
    expect_ending(h, END_EXITED);
}

static void a_held_main_that_dies_is_a_failed_start(void **state)
{
    struct host *h = *state;
    start_default(h);
    char status[4096];
    close(hold(h, HOST_ARGV("true")));
    assert_int_equal(kill(held_child(h, status, sizeof status), SIGKILL), 0);
    expect_ending(h, END_START_FAILED);
}

static void only_one_main_is_held_and_let_go_once(void **state)
{
    struct host *h = *state;
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    assert_int_equal(go(h), ERR_CONFLICT);
    start_default(h);
    assert_int_equal(go(h), ERR_CONFLICT);
    command.hold = command.tty = true;
    assert_int_equal(host_run_fds(h, &command, HOST_ARGV("true"), NULL, 0, NULL), ERR_INVALID);
    command = (Skerry__Agent__Command)SKERRY__AGENT__COMMAND__INIT;
    command.hold = true;
    assert_int_equal(host_run_fds(h, &command, NULL, NULL, 0, NULL), ERR_INVALID);
    command.exec_id = 1;
    assert_int_equal(host_run_fds(h, &command, HOST_ARGV("true"), NULL, 0, NULL), ERR_INVALID);
    close(hold(h, HOST_ARGV("sleep", "1000")));
    assert_int_equal(host_run(h, 0, HOST_ARGV("true")), ERR_CONFLICT);
    assert_int_equal(go(h), 0);
    assert_int_equal(go(h), ERR_CONFLICT);
    assert_int_equal(host_run(h, 0, HOST_ARGV("true")), ERR_CONFLICT);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    if (geteuid() != 0) {
        print_message("skipped: making namespaces with mapped ids needs root\n");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        TEST(main_runs_with_pipes_and_ends_the_instance),
        TEST(exec_tells_code_or_signal),
        TEST(what_cannot_be_executed_says_why),
        TEST(main_that_is_not_there_ends_the_instance),
        TEST(command_is_confined),
        TEST(agent_keeps_three_capabilities),
        TEST(signal_reaches_the_whole_group),
        TEST(stop_waits_for_grace_only),
        TEST(stop_ends_with_main),
        TEST(without_main_it_lives_until_stopped),
        TEST(held_main_is_confined_and_waits),
        TEST(what_a_held_main_cannot_is_told_after_go),
        TEST(a_held_main_that_dies_is_a_failed_start),
        TEST(only_one_main_is_held_and_let_go_once),
    };
    return cmocka_run_group_tests_name("agent", tests, NULL, NULL);
}
