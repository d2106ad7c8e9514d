#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/words.h"
#include "tests/lib/runner_fixture.h"
#include "tests/lib/runner_in_process.h"

static struct runner_fixture fixture;

static int setup(void **state)
{
    fixture_open(&fixture, runner_in_process);
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

/* Runs a shell script as the test's user. */
static void script(struct runner_fixture *f, const char *text, struct fixture_result *r)
{
    char id[32];
    Skerry__Runner__Prepare p;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("sh", "-c", (char *)(uintptr_t)text));
    expect(f, &p, NULL, r);
}

/* Whether a process of this machine has that among its arguments. */
static bool runs_with(const char *argument)
{
    bool found = false;
    DIR *proc = opendir("/proc");
    assert_non_null(proc);
    for (struct dirent *entry = readdir(proc); entry != NULL; entry = readdir(proc)) {
        char path[300], text[256] = "";
        text_format(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        found |= n > 0 && memmem(text, (size_t)n, argument, strlen(argument)) != NULL;
        memory_close(&fd);
    }
    closedir(proc);
    return found;
}

static void what_main_left_behind_is_gone_when_its_end_is_told(void **state)
{
    static struct fixture_result r;
    for (int n = 0; n < 10; n++) {
        script(*state, "for i in 1 2 3 4 5 6 7 8; do sleep 613.25 >&- 2>&- & done; exit 3", &r);
        assert_false(runs_with("613.25"));
        assert_int_equal(r.exit_code, 3);
        assert_int_equal(r.reason, END_EXITED);
    }
}

static void host_image_runs_python(void **state)
{
    char id[32];
    Skerry__Runner__Prepare p;
    static struct fixture_result r;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("/usr/bin/python3", "-"));
    expect(*state, &p, "import ssl, os, getpass\nprint(6*7, getpass.getuser(), os.getuid())\n", &r);
    assert_string_equal(r.err, "");
    assert_string_equal(r.out, "42 app 1000\n");
    assert_int_equal(r.exit_code, 0);
}

static void signal_of_the_main_command_is_told(void **state)
{
    static struct fixture_result r;
    script(*state, "kill -9 $$", &r);
    assert_int_equal(r.signal, 9);
    assert_int_equal(r.reason, END_EXITED);
    assert_false(r.oom);
}

static void missing_command_is_127_with_its_name(void **state)
{
    char id[32];
    Skerry__Runner__Prepare p;
    static struct fixture_result r;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("no-such-program"));
    expect(*state, &p, NULL, &r);
    assert_int_equal(r.exit_code, 127);
    assert_non_null(strstr(r.message, "no-such-program"));
}

static void host_image_shows_what_it_should_and_no_more(void **state)
{
    static struct fixture_result r;
    script(
        *state,
        "ls / | tr '\n' ' '; echo; ls /dev | tr '\n' ' '; echo; ls /etc | tr '\n' ' '; echo;"
        "ls /usr/local /usr/src | grep -v : ; id -u; hostname; cat /etc/hostname; pwd; echo $HOME"
        " $PATH; cat /proc/kcore | wc -c; ls -d /proc/1 2>&1 | wc -l; ls -A /proc/acpi 2>&1",
        &r);
    assert_non_null(strstr(r.out, "\nfd full null ptmx pts random shm stderr stdin stdout tty "
                                  "urandom zero \n"));
    assert_null(strstr(r.out, "shadow"));
    assert_null(strstr(r.out, "sys "));
    assert_non_null(strstr(r.out, "\n1000\ntest\ntest\n/\n/tmp /usr/bin:/usr/sbin:/bin:/sbin\n"));
}

/* Each line is a thing that must not be possible, with a way to see that the line itself works. */
static void code_inside_cannot_get_out(void **state)
{
    static struct fixture_result r;
    script(*state,
           "touch /usr/x 2>/dev/null && echo wrote-usr;"
           "touch /etc/alternatives/x 2>/dev/null && echo wrote-alternatives;"
           "mount -t tmpfs t /tmp 2>/dev/null && echo mounted;"
           "umount /usr 2>/dev/null && echo unmounted;"
           "unshare -U true 2>/dev/null && echo unshared;"
           "kill -9 1 2>/dev/null && echo killed-agent;"
           "echo x > /proc/sys/kernel/hostname 2>/dev/null && echo wrote-sysctl;"
           "cat /proc/1/environ 2>/dev/null && echo read-agent;"
           "ls /proc/1/root/ 2>/dev/null && echo saw-agents-root;"
           "mknod /tmp/n c 1 3 2>/dev/null && echo made-device;"
           "grep -q '^CapEff:.0000000000000000' /proc/self/status || echo has-capabilities;"
           "grep -q '^NoNewPrivs:.1' /proc/self/status || echo may-gain-privileges;"
           "grep -q '^Seccomp:.2' /proc/self/status || echo no-filter;"
           "touch /tmp/works && echo works",
           &r);
    assert_string_equal(r.out, "works\n");
}

static void root_inside_is_nobody_outside(void **state)
{
    char id[32];
    Skerry__Runner__Prepare p;
    static struct fixture_result r;
    fixture_id(id);
    fixture_prepare_init(&p, id,
                         WORDS("sh", "-c",
                               "id -u; touch /root/mine /etc/mine && echo own; "
                               "mount -o remount,rw /usr 2>/dev/null && echo remounted; "
                               "cat /proc/self/uid_map | tr -s ' '; chroot / true 2>/dev/null && "
                               "echo chrooted; kill -9 1 2>/dev/null && echo killed"));
    p.uid = p.gid = 0;
    expect(*state, &p, NULL, &r);
    assert_non_null(strstr(r.out, "0\nown\n"));
    assert_null(strstr(r.out, "remounted"));
    assert_null(strstr(r.out, "chrooted"));
    assert_null(strstr(r.out, "killed"));
    assert_non_null(strstr(r.out, " 0 0 65536\n"));
}

static void read_only_root_leaves_tmp_writable(void **state)
{
    char id[32];
    Skerry__Runner__Prepare p;
    static struct fixture_result r;
    fixture_id(id);
    fixture_prepare_init(
        &p, id,
        WORDS("sh", "-c",
              "touch /x 2>/dev/null && echo root; touch /tmp/x && touch /dev/shm/x && "
              "echo tmp"));
    p.uid = p.gid = 0;
    p.read_only = true;
    expect(*state, &p, NULL, &r);
    assert_string_equal(r.out, "tmp\n");
}

static void what_runs_inside_goes_first_when_the_machine_has_no_memory(void **state)
{
    static struct fixture_result r;
    script(*state, "cat /proc/self/oom_score_adj", &r);
    assert_string_equal(r.out, "500\n");
}

static void memory_above_the_limit_ends_the_instance_as_oom(void **state)
{
    static struct fixture_result r;
    script(*state,
           "python3 -c 'import time; x = bytearray(512 << 20); time.sleep(60)' & sleep 60; echo on",
           &r);
    assert_int_equal(r.reason, END_OOM);
    assert_true(r.oom);
    assert_null(strstr(r.out, "on"));
}

static void disk_above_the_limit_is_no_space(void **state)
{
    static struct fixture_result r;
    script(*state,
           "dd if=/dev/zero of=/tmp/big bs=1M count=64 2>&1 | grep -o 'No space left on device';"
           "python3 -c '\n"
           "import os\n"
           "try:\n"
           "  for i in range(100000): open(\"/tmp/f%d\" % i, \"w\").close()\n"
           "except OSError as e: print(e.strerror)'",
           &r);
    assert_string_equal(r.out, "No space left on device\nNo space left on device\n");
    assert_int_equal(r.reason, END_EXITED);
    assert_int_equal(r.exit_code, 0);
}

static void processes_above_the_limit_cannot_be_made(void **state)
{
    static struct fixture_result r;
    script(*state,
           "python3 -c '\n"
           "import os, time\n"
           "n = 0\n"
           "try:\n"
           "  while n < 100:\n"
           "    if os.fork() == 0: time.sleep(30)\n"
           "    n += 1\n"
           "except OSError as e: print(e.strerror)\n"
           "print(n < 32)'",
           &r);
    assert_string_equal(r.out, "Resource temporarily unavailable\nTrue\n");
}

static void cpu_limit_holds(void **state)
{
    char id[32];
    Skerry__Runner__Prepare p;
    static struct fixture_result r;
    fixture_id(id);
    fixture_prepare_init(&p, id,
                         WORDS("python3", "-c",
                               "import time\nw = time.time(); c = time.process_time()\n"
                               "while time.time() - w < 1: pass\n"
                               "print((time.process_time() - c) < 0.5)"));
    p.cpu_thousandths = 250;
    expect(*state, &p, NULL, &r);
    assert_string_equal(r.out, "True\n");
}

static void standard_output_can_be_opened_again(void **state)
{
    static struct fixture_result r;
    script(*state, "echo again > /dev/stdout; echo err > /dev/stderr", &r);
    assert_string_equal(r.out, "again\n");
    assert_string_equal(r.err, "err\n");
}

static void seccomp_refuses_with_the_right_errors(void **state)
{
    static struct fixture_result r;
    script(*state,
           "python3 -c '\n"
           "import ctypes, errno, socket, fcntl, os\n"
           "libc = ctypes.CDLL(None, use_errno=True)\n"
           "def call(*a):\n"
           "  r = libc.syscall(*a)\n"
           "  return \"ok\" if r >= 0 else errno.errorcode[ctypes.get_errno()]\n"
           "def family(f, t):\n"
           "  try: socket.socket(f, t).close(); return \"ok\"\n"
           "  except OSError as e: return \"ok\" if e.errno == errno.EAFNOSUPPORT else "
           "errno.errorcode[e.errno]\n"
           "def ioctl(n):\n"
           "  try: fcntl.ioctl(0, n, b\"x\" * 64); return \"ok\"\n"
           "  except OSError as e: return errno.errorcode[e.errno]\n"
           "print(call(435, 0, 0), call(165, 0, 0, 0, 0, 0), call(9999), call(425, 1, 0))\n"
           "print(call(56, 0x10000000, 0, 0, 0, 0), call(272, 0x10000000), call(321, 0))\n"
           "print(family(2, 1), family(10, 2), family(1, 1), family(16, 3), family(40, 1), "
           "family(38, 5), family(17, 3))\n"
           "print(ioctl(0x5412), ioctl(0x541c), ioctl(0x5412 | 1 << 33), ioctl(0x5410), "
           "ioctl(0x5413), ioctl(0x5401))'",
           &r);
    assert_string_equal(r.err, "");
    /* clone3, mount, an unknown call, io_uring; clone and unshare of a user namespace, bpf; inet,
     * inet6 (which a kernel may lack, but not the filter), unix, netlink route, vsock, alg, packet; TIOCSTI, TIOCLINUX, TIOCSTI with high bits,
     * and three that exist. */
    assert_string_equal(r.out, "ENOSYS EPERM ENOSYS EPERM\nENOSYS EPERM EPERM\n"
                               "ok ok ok ok ENOSYS ENOSYS ENOSYS\n"
                               "EPERM EPERM EPERM ENOTTY ENOTTY ENOTTY\n");
}

/* Reads until `wanted` came, or nothing more does. */
static bool terminal_says(int fd, const char *wanted)
{
    char text[1024] = "";
    size_t length = 0;
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    while (length < sizeof text - 1 && poll(&wait, 1, FIXTURE_WAIT_MS) == 1) {
        ssize_t n = read(fd, text + length, sizeof text - 1 - length);
        if (n <= 0)
            break;
        length += (size_t)n;
        text[length] = '\0';
        if (strstr(text, wanted) != NULL)
            return true;
    }
    print_message("the terminal said: %s\n", text);
    return false;
}

static void terminal_comes_with_commit_and_exec(void **state)
{
    struct runner_fixture *f = *state;
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_answer answer, main_answer;
    fixture_id(id);
    fixture_prepare_init(&p, id,
                         WORDS("sh", "-c", "stty size; read line; echo got $line; sleep 60"));
    p.tty = true;
    p.rows = 33;
    p.columns = 99;
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    assert_int_equal(answer.count, 0);
    fixture_answer_free(&answer);
    Skerry__Runner__Instance instance = SKERRY__RUNNER__INSTANCE__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    instance.id = id;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_COMMIT;
    request.commit = &instance;
    /* Kept to the end: its closing would hang up. */
    fixture_ask(f, &request, &main_answer);
    assert_int_equal(main_answer.count, 1);
    assert_true(terminal_says(main_answer.descriptors[0], "33 99"));
    assert_int_equal(write(main_answer.descriptors[0], "hello\n", 6), 6);
    assert_true(terminal_says(main_answer.descriptors[0], "got hello"));

    Skerry__Runner__Exec exec = SKERRY__RUNNER__EXEC__INIT;
    char *command[] = {(char *)(uintptr_t) "tty"};
    exec.id = id;
    exec.exec_id = 3;
    exec.command = command;
    exec.n_command = 1;
    exec.tty = true;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_EXEC;
    request.exec = &exec;
    fixture_ask(f, &request, &answer);
    assert_int_equal(answer.reply->error, 0);
    assert_int_equal(answer.count, 1);
    assert_true(terminal_says(answer.descriptors[0], "/dev/pts/"));
    fixture_answer_free(&answer);
    assert_non_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_EXEC_ENDED, id, FIXTURE_WAIT_MS));
    /* The end of its terminal ends the shell, and so the instance. */
    fixture_answer_free(&main_answer);
    assert_non_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS));
    assert_int_equal(fixture_forget(f, id), 0);
}

static void stats_tell_what_is_used(void **state)
{
    struct runner_fixture *f = *state;
    char id[32], byte;
    Skerry__Runner__Prepare p;
    struct fixture_answer answer, stats;
    fixture_id(id);
    fixture_prepare_init(
        &p, id,
        WORDS("sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=4 2>/dev/null; echo; cat"));
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    assert_int_equal(fixture_commit(f, id), 0);
    struct pollfd wait = {.fd = answer.descriptors[1], .events = POLLIN};
    assert_int_equal(poll(&wait, 1, FIXTURE_WAIT_MS), 1);
    assert_int_equal(read(answer.descriptors[1], &byte, 1), 1);
    Skerry__Runner__Instance instance = SKERRY__RUNNER__INSTANCE__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    instance.id = id;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_STATS;
    request.stats = &instance;
    fixture_ask(f, &request, &stats);
    assert_in_range(stats.reply->stats->disk_bytes, 4u << 20, 5u << 20);
    assert_in_range(stats.reply->stats->memory_bytes, 4u << 20, 64u << 20);
    assert_in_range(stats.reply->stats->pids, 2, 10);
    assert_true(stats.reply->stats->cpu_us > 0);
    fixture_answer_free(&stats);
    fixture_answer_free(&answer);
    assert_non_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS));
    assert_int_equal(fixture_forget(f, id), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(input_comes_out_and_the_exit_code_is_told),
        cmocka_unit_test(what_main_left_behind_is_gone_when_its_end_is_told),
        cmocka_unit_test(host_image_runs_python),
        cmocka_unit_test(signal_of_the_main_command_is_told),
        cmocka_unit_test(missing_command_is_127_with_its_name),
        cmocka_unit_test(host_image_shows_what_it_should_and_no_more),
        cmocka_unit_test(code_inside_cannot_get_out),
        cmocka_unit_test(root_inside_is_nobody_outside),
        cmocka_unit_test(read_only_root_leaves_tmp_writable),
        cmocka_unit_test(what_runs_inside_goes_first_when_the_machine_has_no_memory),
        cmocka_unit_test(memory_above_the_limit_ends_the_instance_as_oom),
        cmocka_unit_test(disk_above_the_limit_is_no_space),
        cmocka_unit_test(processes_above_the_limit_cannot_be_made),
        cmocka_unit_test(cpu_limit_holds),
        cmocka_unit_test(standard_output_can_be_opened_again),
        cmocka_unit_test(seccomp_refuses_with_the_right_errors),
        cmocka_unit_test(terminal_comes_with_commit_and_exec),
        cmocka_unit_test(stats_tell_what_is_used),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
