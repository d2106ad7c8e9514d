/* Readiness, health, logs, lifetime and runners that come and go. */
#include "tests/lib/agent_host.h"

#include "sandbox/shared/log_format.h"

#include <netinet/in.h>
#include <sched.h>

struct fixture {
    struct host host;
    struct host_setup setup;
};

static int set_up(void **state)
{
    static struct fixture f;
    host_start(&f.host);
    host_setup_default(&f.setup);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    host_stop(&f->host);
    return 0;
}

static void start_script(struct fixture *f, const char *interpreter, const char *script)
{
    host_setup_send(&f->host, &f->setup);
    assert_int_equal(host_run(&f->host, 0, HOST_ARGV(interpreter, "-c", script)), 0);
}

static Skerry__Agent__FromAgent *take(struct fixture *f, Skerry__Agent__FromAgent__MessageCase kind)
{
    return host_take(&f->host, kind, 0, NULL);
}

static void expect_ending(struct fixture *f, enum end_reason reason)
{
    Skerry__Agent__FromAgent *m = take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_ENDING);
    assert_int_equal(m->ending->reason, reason);
    host_free(m);
    assert_int_equal(host_wait_end(&f->host), 0);
}

static uint32_t stop(struct fixture *f)
{
    return host_stop_verb(&f->host, 0, END_KILLED);
}

/* --- readiness ---------------------------------------------------------------------------------*/

static void listen_script(char *out, size_t size, const char *address, int port, const char *extra)
{
    text_format(out, size,
                "import socket,time\n"
                "s=socket.socket(socket.%s)\n%s\ns.bind(('%s',%d))\ntime.sleep(0.05)\n"
                "s.listen(5)\ntime.sleep(1000)",
                strchr(address, ':') != NULL ? "AF_INET6" : "AF_INET", extra, address, port);
}

static void expect_ready(struct fixture *f, bool ipv6, const uint8_t *address)
{
    Skerry__Agent__FromAgent *m = take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY);
    assert_int_equal(m->ready->port, 8080);
    assert_int_equal(m->ready->ipv6, ipv6);
    assert_int_equal(m->ready->address.len, ipv6 ? 16 : 4);
    assert_memory_equal(m->ready->address.data, address, m->ready->address.len);
    assert_in_range(m->ready->after_us, 50 * 1000, 30 * 1000 * 1000);
    host_free(m);
}

static void listening_port_is_ready(void **state)
{
    struct fixture *f = *state;
    static const uint8_t four[4] = {127, 0, 0, 1};
    static const uint8_t six[16] = {[15] = 1};
    static const struct {
        const char *address;
        const char *extra;
        bool ipv6;
    } cases[] = {
        {"0.0.0.0", "", false}, {"127.0.0.1", "", false},
        {"::", "", true},       {"::", "s.setsockopt(41,26,1)", true}, /* IPV6_V6ONLY */
        {"::1", "", true},      {"::ffff:127.0.0.1", "", false},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char script[512];
        if (i > 0) {
            tear_down(state);
            set_up(state);
        }
        f->setup.setup.ready = SKERRY__RUNNER__READY__READY_LISTEN;
        f->setup.setup.port = 8080;
        listen_script(script, sizeof script, cases[i].address, 8080, cases[i].extra);
        start_script(f, "python3", script);
        expect_ready(f, cases[i].ipv6, cases[i].ipv6 ? six : four);
    }
}

static void wrong_port_is_named(void **state)
{
    struct fixture *f = *state;
    char script[512];
    f->setup.setup.ready = SKERRY__RUNNER__READY__READY_LISTEN;
    f->setup.setup.port = 8080;
    listen_script(script, sizeof script, "0.0.0.0", 3000, "");
    start_script(f, "python3", script);
    Skerry__Agent__FromAgent *m = take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_LISTENING);
    assert_int_equal(m->listening->n_ports, 1);
    assert_int_equal(m->listening->ports[0], 3000);
    host_free(m);
    assert_null(host_take_within(&f->host, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY, 0, NULL, 100));
}

static void exit_before_ready_brings_the_last_line(void **state)
{
    struct fixture *f = *state;
    f->setup.setup.ready = SKERRY__RUNNER__READY__READY_LISTEN;
    f->setup.setup.port = 8080;
    start_script(f, "sh",
                 "echo out; printf 'first\\n\\033[1mbad \\377 \\342\\202\\254\\n\\n' >&2; exit 9");
    Skerry__Agent__FromAgent *m = take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED);
    assert_int_equal(m->exited->exit_code, 9);
    assert_string_equal(m->exited->stderr_tail, "?[1mbad ? \xe2\x82\xac");
    host_free(m);
    expect_ending(f, END_EXITED);
}

static void health_check_decides(void **state)
{
    struct fixture *f = *state;
    char *test[3] = {(char *)(uintptr_t) "test", (char *)(uintptr_t) "-e", NULL};
    char mark[96];
    snprintf(mark, sizeof mark, "%s/well", f->host.directory);
    test[2] = mark;
    f->setup.setup.ready = SKERRY__RUNNER__READY__READY_HEALTHCHECK;
    f->setup.setup.health_test = test;
    f->setup.setup.n_health_test = 3;
    f->setup.setup.health_interval_ms = 30;
    f->setup.setup.health_retries = 3;
    start_script(f, "sleep", "1000"); /* sleep -c: ends at once */
    host_free(take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED));
    tear_down(state);
    set_up(state);
    snprintf(mark, sizeof mark, "%s/well", f->host.directory);
    f->setup.setup.ready = SKERRY__RUNNER__READY__READY_HEALTHCHECK;
    f->setup.setup.health_test = test;
    f->setup.setup.n_health_test = 3;
    f->setup.setup.health_interval_ms = 30;
    f->setup.setup.health_retries = 3;
    start_script(f, "sh", "sleep 1000; true");
    assert_null(host_take_within(&f->host, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY, 0, NULL, 150));
    int fd = open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    close(fd);
    host_free(take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY));
    assert_int_equal(unlink(mark), 0);
    Skerry__Agent__FromAgent *m = take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_HEALTH);
    assert_false(m->health->healthy);
    assert_string_equal(m->health->message, "health check exited with 1");
    host_free(m);
    fd = open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    close(fd);
    m = take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_HEALTH);
    assert_true(m->health->healthy);
    host_free(m);
    assert_int_equal(unlink(mark), 0);
}

static void hanging_health_check_is_killed(void **state)
{
    struct fixture *f = *state;
    char *test[3] = {(char *)(uintptr_t) "sh", (char *)(uintptr_t) "-c",
                     (char *)(uintptr_t) "test $PPID = 1 && sleep 1000"};
    f->setup.setup.health_test = test;
    f->setup.setup.n_health_test = 3;
    f->setup.setup.health_interval_ms = 20;
    f->setup.setup.health_timeout_ms = 50;
    f->setup.setup.health_retries = 2;
    start_script(f, "sh", "sleep 1000; true");
    host_free(take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY));
    Skerry__Agent__FromAgent *m = take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_HEALTH);
    assert_false(m->health->healthy);
    assert_string_equal(m->health->message, "health check took longer than its timeout");
    host_free(m);
}

/* --- logs --------------------------------------------------------------------------------------*/

/* The output that both files hold; checks that the sequence is whole. */
static size_t read_log(struct fixture *f, int which, char *out, size_t size, uint64_t *first,
                       uint64_t *last)
{
    static uint8_t bytes[4 << 20];
    ssize_t length = pread(f->host.logs[which], bytes, sizeof bytes, 0);
    size_t at = 0, used = 0, step;
    struct log_record record;
    *first = *last = 0;
    while (at < (size_t)length &&
           (step = log_record_parse(bytes + at, (size_t)length - at, &record)) != 0) {
        if (*first == 0)
            *first = record.sequence;
        else
            assert_true(record.sequence == *last + 1);
        *last = record.sequence;
        for (size_t i = 0; i < record.length && used + 1 < size; i++)
            out[used++] = (char)record.data[i];
        at += step;
    }
    assert_int_equal(at, length);
    out[used] = '\0';
    return used;
}

static void output_goes_to_the_log(void **state)
{
    struct fixture *f = *state;
    char out[256];
    uint64_t first, last;
    /* The grandchild holds the pipes open; nobody waits for it. */
    start_script(f, "sh",
                 "sleep 1000 & echo out; echo err >&2; ls -ln /proc/self/fd/1 | cut -c1-3;"
                 "echo again > /dev/stdout");
    Skerry__Agent__FromAgent *m = take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED);
    assert_int_equal(m->exited->exit_code, 0);
    assert_string_equal(m->exited->stderr_tail, "err");
    host_free(m);
    expect_ending(f, END_EXITED);
    (void)read_log(f, 0, out, sizeof out, &first, &last);
    assert_int_equal(first, 1);
    assert_non_null(strstr(out, "out\n"));
    assert_non_null(strstr(out, "err\n"));
    assert_non_null(strstr(out, "again\n"));
}

static void log_is_bounded_and_keeps_the_newest(void **state)
{
    struct fixture *f = *state;
    static char out[4 << 20];
    uint64_t first[2], last[2];
    f->setup.setup.log_bytes_max = 256 * 1024;
    start_script(f, "sh", "seq 1 200000");
    expect_ending(f, END_EXITED);
    for (int i = 0; i < 2; i++) {
        struct stat st;
        assert_int_equal(fstat(f->host.logs[i], &st), 0);
        assert_in_range(st.st_size, 1, 128 * 1024);
        (void)read_log(f, i, out, sizeof out, &first[i], &last[i]);
        if (strstr(out, "\n200000\n") != NULL)
            assert_true(i == 0 ? true : last[1] > last[0]);
    }
    assert_true(last[0] + 1 == first[1] || last[1] + 1 == first[0]);
    (void)read_log(f, last[0] > last[1] ? 0 : 1, out, sizeof out, &first[0], &last[0]);
    assert_non_null(strstr(out, "\n200000\n"));
}

static void flood_of_output_holds_up_nobody(void **state)
{
    struct fixture *f = *state;
    start_script(f, "sh", "yes & yes >&2 & yes; true");
    for (uint32_t i = 1; i <= 5; i++) {
        assert_int_equal(host_run(&f->host, i, HOST_ARGV("true")), 0);
        host_free(take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_EXITED));
    }
    assert_int_equal(stop(f), 0);
    expect_ending(f, END_KILLED);
}

/* --- processes ---------------------------------------------------------------------------------*/

/* More at once than one pass of reaping takes. */
static void orphans_are_reaped(void **state)
{
    struct fixture *f = *state;
    static const char script[] =
        "group=$(setsid sh -c 'for i in $(seq 700); do sleep 1000 >/dev/null & done; echo $$');"
        "kill -TERM -$group; while pgrep sleep > /dev/null; do :; done; echo clean";
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    char out[64];
    host_setup_send(&f->host, &f->setup);
    host_free(host_pipe(&f->host, &command, HOST_ARGV("sh", "-c", script), "", 0, out, sizeof out));
    assert_string_equal(out, "clean\n");
}

static void everything_dies_with_the_agent(void **state)
{
    struct fixture *f = *state;
    int out[2];
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    host_setup_send(&f->host, &f->setup);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    const int fds[2] = {out[1], out[1]};
    command.pipes = true;
    command.no_stdin = true;
    assert_int_equal(
        host_run_fds(&f->host, &command,
                     HOST_ARGV("sh", "-c",
                               "trap '' TERM INT HUP; for i in 1 2 3; do setsid sleep 1000 & done;"
                               "sleep 1000; true"),
                     fds, 2, NULL),
        0);
    close(out[1]);
    assert_int_equal(stop(f), 0);
    expect_ending(f, END_KILLED);
    char text[64];
    (void)host_read_all(out[0], text, sizeof text); /* comes to its end: no holder is left */
}

/* --- lifetime ----------------------------------------------------------------------------------*/

static void life_ends_by_itself(void **state)
{
    struct fixture *f = *state;
    f->setup.setup.life_max_ms = 100;
    f->setup.setup.drain_ms = 50;
    start_script(f, "sh", "trap '' TERM; while :; do sleep 1000; done");
    expect_ending(f, END_EXPIRED);
}

static uint32_t life(struct fixture *f, uint64_t remaining_ms)
{
    Skerry__Agent__Life what = SKERRY__AGENT__LIFE__INIT;
    what.remaining_ms = remaining_ms;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_LIFE;
    message.life = &what;
    return host_ask(&f->host, &message, NULL, 0, NULL);
}

static void life_can_be_extended(void **state)
{
    struct fixture *f = *state;
    f->setup.setup.life_max_ms = 1000; /* enough to be extended in, on a busy machine too */
    start_script(f, "sh", "sleep 1000; true");
    assert_int_equal(life(f, 100000), 0);
    assert_null(
        host_take_within(&f->host, SKERRY__AGENT__FROM_AGENT__MESSAGE_ENDING, 0, NULL, 1500));
    assert_int_equal(life(f, 1), 0);
    expect_ending(f, END_EXPIRED);
}

static void lease_that_is_over_ends_it_at_once(void **state)
{
    struct fixture *f = *state;
    f->setup.setup.drain_ms = 60000; /* no grace: another may hold its place already */
    start_script(f, "sh", "trap '' TERM; while :; do sleep 1000; done");
    Skerry__Agent__Deadline what = SKERRY__AGENT__DEADLINE__INIT;
    what.boot_ms = clock_boot_ms() + 200;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_DEADLINE;
    message.deadline = &what;
    assert_int_equal(host_ask(&f->host, &message, NULL, 0, NULL), 0);
    expect_ending(f, END_LEASE_LOST);
    assert_true(clock_boot_ms() >= what.boot_ms);
}

/* --- runners -----------------------------------------------------------------------------------*/

static void connect_again(struct fixture *f)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memory_close(&f->host.socket);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", f->host.socket_path);
    f->host.socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    f->host.closed = false;
    assert_int_equal(connect(f->host.socket, (struct sockaddr *)&address, sizeof address), 0);
}

static Skerry__Agent__FromAgent *hello(struct fixture *f)
{
    Skerry__Agent__Empty empty = SKERRY__AGENT__EMPTY__INIT;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_HELLO;
    message.hello = &empty;
    uint64_t seq = host_send(&f->host, &message, NULL, 0);
    return host_take(&f->host, SKERRY__AGENT__FROM_AGENT__MESSAGE_STATE, seq, NULL);
}

static void runner_that_comes_back_hears_all(void **state)
{
    struct fixture *f = *state;
    start_script(f, "sh", "sleep 1000; true");
    host_free(take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY));
    assert_int_equal(host_run(&f->host, 1, HOST_ARGV("sh", "-c", "read x < /proc/1/x; exit 4")), 0);
    assert_int_equal(host_run(&f->host, 2, HOST_ARGV("sleep", "1000")), 0);
    memory_close(&f->host.socket);
    /* While nobody listens, 1 ends. */
    for (;;) {
        connect_again(f);
        Skerry__Agent__FromAgent *m = hello(f);
        const Skerry__Agent__State *s = m->state;
        assert_true(s->setup && s->started && !s->main_exited && s->ready != NULL);
        assert_true(s->started_boot_ms > 0 && s->started_boot_ms <= clock_boot_ms());
        bool ended = s->n_exited == 1;
        assert_int_equal(s->n_exec_ids, ended ? 2 : 3);
        if (ended) {
            assert_int_equal(s->exited[0]->exec_id, 1);
            assert_int_equal(s->exited[0]->exit_code, 4);
        }
        host_free(m);
        if (ended)
            break;
        sched_yield();
    }
    assert_int_equal(stop(f), 0);
    expect_ending(f, END_KILLED);
}

static void without_a_runner_it_ends_after_the_grace(void **state)
{
    struct fixture *f = *state;
    f->setup.setup.runner_grace_ms = 100;
    start_script(f, "sh", "sleep 1000; true");
    memory_close(&f->host.socket);
    assert_int_equal(host_wait_end(&f->host), 0);
    f->host.socket = -1;
}

static void newest_runner_wins(void **state)
{
    struct fixture *f = *state;
    start_script(f, "sh", "sleep 1000; true");
    int older = f->host.socket;
    f->host.socket = -1;
    connect_again(f);
    host_free(hello(f));
    struct pollfd end = {.fd = older, .events = POLLRDHUP};
    assert_int_equal(poll(&end, 1, HOST_DEADLINE_MS), 1);
    close(older);
}

/* Exits pile up behind a runner that does not read: it is dropped, the instance lives. */
static void runner_that_does_not_read_holds_up_nobody(void **state)
{
    struct fixture *f = *state;
    struct err e = {0};
    start_script(f, "sh", "sleep 1000; true");
    int deaf = f->host.socket;
    Skerry__Agent__Signal signal = SKERRY__AGENT__SIGNAL__INIT;
    signal.exec_id = 77;
    signal.signal = 1;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_SIGNAL;
    message.signal = &signal;
    uint64_t until = clock_monotonic_ms() + HOST_DEADLINE_MS;
    for (;;) {
        assert_true(clock_monotonic_ms() < until);
        message.seq = 1;
        if (wire_send(deaf, &message.base, NULL, 0, &e) != 0 && e.sys != EAGAIN)
            break; /* dropped */
        struct pollfd room = {.fd = deaf, .events = POLLOUT};
        (void)poll(&room, 1, 100);
    }
    f->host.socket = -1;
    connect_again(f);
    host_free(hello(f));
    close(deaf);
}

static void nonsense_is_refused(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(host_run(&f->host, 0, HOST_ARGV("true")), ERR_CONFLICT); /* no setup yet */
    f->setup.setup.uid = AGENT_UID;
    Skerry__Agent__ToAgent message = SKERRY__AGENT__TO_AGENT__INIT;
    message.verb_case = SKERRY__AGENT__TO_AGENT__VERB_SETUP;
    message.setup = &f->setup.setup;
    assert_int_equal(host_ask(&f->host, &message, NULL, 0, NULL), ERR_INVALID);
    f->setup.setup.uid = 1;
    host_setup_send(&f->host, &f->setup);
    assert_int_equal(host_ask(&f->host, &message, NULL, 0, NULL), ERR_CONFLICT); /* twice */
    assert_int_equal(host_run(&f->host, 0, HOST_ARGV("sleep", "1000")), 0);
    assert_int_equal(host_run(&f->host, 0, HOST_ARGV("true")), ERR_CONFLICT);
    assert_int_equal(host_run(&f->host, 5, HOST_ARGV("sleep", "1000")), 0);
    assert_int_equal(host_run(&f->host, 5, HOST_ARGV("true")), ERR_EXISTS);
    Skerry__Agent__Command command = SKERRY__AGENT__COMMAND__INIT;
    command.exec_id = 6;
    command.set_user = true;
    command.uid = AGENT_UID;
    assert_int_equal(host_run_fds(&f->host, &command, HOST_ARGV("true"), NULL, 0, NULL),
                     ERR_INVALID);
    /* A message that does not decode drops the runner, which may come back. */
    assert_int_equal(send(f->host.socket, "\xff\xff\xff", 3, 0), 3);
    struct pollfd end = {.fd = f->host.socket, .events = POLLRDHUP};
    assert_int_equal(poll(&end, 1, HOST_DEADLINE_MS), 1);
    connect_again(f);
    host_free(hello(f));
}

static void commands_are_bounded(void **state)
{
    struct fixture *f = *state;
    host_setup_send(&f->host, &f->setup);
    uint32_t error = 0;
    uint32_t started = 0;
    while (error == 0 && started <= AGENT_COMMANDS_MAX) {
        error = host_run(&f->host, started + 1, HOST_ARGV("sleep", "1000"));
        started += error == 0;
    }
    assert_int_equal(error, ERR_LIMIT);
    assert_int_equal(started, AGENT_COMMANDS_MAX);
}

static void agent_is_small(void **state)
{
    struct fixture *f = *state;
    char path[64], text[4096] = "";
    start_script(f, "sh", "sleep 1000; true");
    host_free(take(f, SKERRY__AGENT__FROM_AGENT__MESSAGE_READY));
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", f->host.pid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(read(fd, text, sizeof text - 1) > 0);
    /* The rest is the program itself, one memfd for all instances of a runner. */
    unsigned anonymous = 0;
    assert_int_equal(sscanf(strstr(text, "\nAnonymous:"), "\nAnonymous: %u", &anonymous), 1);
    print_message("agent: %u KiB of its own\n", anonymous);
    assert_in_range(anonymous, 1, 200);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    if (geteuid() != 0) {
        print_message("skipped: making namespaces with mapped ids needs root\n");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        TEST(listening_port_is_ready),
        TEST(wrong_port_is_named),
        TEST(exit_before_ready_brings_the_last_line),
        TEST(health_check_decides),
        TEST(hanging_health_check_is_killed),
        TEST(output_goes_to_the_log),
        TEST(log_is_bounded_and_keeps_the_newest),
        TEST(flood_of_output_holds_up_nobody),
        TEST(orphans_are_reaped),
        TEST(everything_dies_with_the_agent),
        TEST(life_ends_by_itself),
        TEST(life_can_be_extended),
        TEST(lease_that_is_over_ends_it_at_once),
        TEST(runner_that_comes_back_hears_all),
        TEST(without_a_runner_it_ends_after_the_grace),
        TEST(newest_runner_wins),
        TEST(runner_that_does_not_read_holds_up_nobody),
        TEST(nonsense_is_refused),
        TEST(commands_are_bounded),
        TEST(agent_is_small),
    };
    return cmocka_run_group_tests_name("agent life", tests, NULL, NULL);
}
