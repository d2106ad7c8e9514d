/* A node that was taken over: what it may send, and what it gets. The runner must refuse it, live
 * on, and keep its other instances. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/shared/wire.h"
#include "tests/lib/runner_fixture.h"
#include "tests/lib/runner_in_process.h"

#define WORDS(...)                                                                                 \
    (char *[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / sizeof(const char *)

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

/* A connection of our own after the runner dropped the last. */
static void reconnect(struct runner_fixture *f)
{
    memory_close(&f->node);
    f->node = fixture_connect(f);
    assert_true(f->node >= 0);
}

static bool dropped(struct runner_fixture *f)
{
    struct pollfd wait = {.fd = f->node, .events = POLLIN};
    char byte;
    return poll(&wait, 1, FIXTURE_WAIT_MS) == 1 && recv(f->node, &byte, 1, 0) <= 0;
}

static void serves(struct runner_fixture *f)
{
    Skerry__Runner__Hello hello = SKERRY__RUNNER__HELLO__INIT;
    hello.protocol = 1;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_HELLO;
    request.hello = &hello;
    assert_int_equal(fixture_code(f, &request), 0);
}

static void garbage_ends_the_connection_only(void **state)
{
    struct runner_fixture *f = *state;
    static uint8_t large[300 * 1024];
    assert_int_equal(send(f->node, "\xff\xff\xff\xff", 4, 0), 4);
    assert_true(dropped(f));
    reconnect(f);
    /* One byte more than a request may have. */
    assert_int_equal(send(f->node, large, 256 * 1024 + 1, 0), 256 * 1024 + 1);
    assert_true(dropped(f));
    reconnect(f);
    serves(f);
}

static void descriptors_end_the_connection_and_are_closed(void **state)
{
    struct runner_fixture *f = *state;
    int ends[2];
    struct err e;
    assert_int_equal(pipe(ends), 0);
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.seq = 1;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_LIST;
    request.list = &empty;
    assert_int_equal(wire_send(f->node, &request.base, &ends[1], 1, &e), 0);
    assert_true(dropped(f));
    close(ends[1]);
    struct pollfd wait = {.fd = ends[0], .events = POLLIN};
    assert_int_equal(poll(&wait, 1, FIXTURE_WAIT_MS), 1);
    assert_true((wait.revents & POLLHUP) != 0);
    close(ends[0]);
    reconnect(f);
    serves(f);
}

static void unknown_verb_is_answered(void **state)
{
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    assert_int_equal(fixture_code(*state, &request), ERR_UNSUPPORTED);
}

static void ids_that_are_none_are_refused(void **state)
{
    static const char *const ids[] = {"",
                                      "..",
                                      "../x",
                                      "x/../../y",
                                      "0",
                                      "aaaaaaaaaaaaaaaaaaa",
                                      "0000000000000000000000000000000000000000000001",
                                      "0123456789abcdefg1/..",
                                      "0123456789abcdefg\n"};
    struct runner_fixture *f = *state;
    for (size_t n = 0; n < ARRAY_SIZE(ids); n++) {
        Skerry__Runner__Prepare p;
        struct fixture_answer answer;
        fixture_prepare_init(&p, ids[n], WORDS("true"));
        assert_int_equal(fixture_prepare(f, &p, &answer), ERR_INVALID);
        fixture_answer_free(&answer);
        assert_int_equal(fixture_commit(f, ids[n]), ERR_INVALID);
        assert_int_equal(fixture_discard(f, ids[n]), ERR_INVALID);
        assert_int_equal(fixture_forget(f, ids[n]), ERR_INVALID);
    }
}

/* Each case breaks one field of a good Prepare. */
static void prepare_beyond_what_is_allowed_is_refused(void **state)
{
    struct runner_fixture *f = *state;
    char long_name[80];
    memset(long_name, 'a', sizeof long_name);
    long_name[79] = '\0';
    for (int n = 0;; n++) {
        char id[32];
        Skerry__Runner__Prepare p;
        struct fixture_answer answer;
        char *environment[] = {(char *)(uintptr_t) "NOVALUE"};
        fixture_id(id);
        fixture_prepare_init(&p, id, WORDS("true"));
        switch (n) {
        case 0:
            p.image = (char *)(uintptr_t) "../../etc";
            break;
        case 1:
            p.image = (char *)(uintptr_t) "sha256:../../../../../../../../../../../../../../etc";
            break;
        case 2:
            p.source = (char *)(uintptr_t) "/etc";
            break;
        case 3:
            p.profile = (char *)(uintptr_t) "unconfined";
            break;
        case 4:
            p.network = 1;
            break;
        case 5:
            p.network = 7;
            break;
        case 6:
            p.uid = 65535;
            break;
        case 7:
            p.gid = 65536;
            break;
        case 8:
            p.memory_bytes = UINT64_MAX;
            break;
        case 9:
            p.disk_bytes = UINT64_MAX - 1;
            break;
        case 10:
            p.cpu_thousandths = UINT32_MAX;
            break;
        case 11:
            p.pids = UINT32_MAX;
            break;
        case 12:
            p.hostname = long_name;
            break;
        case 13:
            p.hostname = (char *)(uintptr_t) "a\nb";
            break;
        case 14:
            p.command[0] = (char *)(uintptr_t) "";
            break;
        case 15:
            p.environment = environment;
            p.n_environment = 1;
            break;
        case 16:
            p.log_bytes_max = UINT64_MAX;
            break;
        case 17:
            p.port = 65536;
            break;
        case 18:
            p.rows = 65536;
            break;
        case 19:
            p.drain_ms = UINT64_MAX;
            break;
        case 20: /* runner.yaml does not list it */
            p.profile = (char *)(uintptr_t) "relaxed";
            break;
        case 21: /* nor allow it */
            p.io_bytes = 1u << 20;
            break;
        default:
            return;
        }
        uint32_t code = fixture_prepare(f, &p, &answer);
        if (code != ERR_INVALID && code != ERR_DENIED)
            fail_msg("case %d was answered with %u", n, code);
        fixture_answer_free(&answer);
    }
}

static void image_that_is_not_there_is_named(void **state)
{
    struct runner_fixture *f = *state;
    char id[32], digest[72];
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("true"));
    text_format(digest, sizeof digest, "sha256:%064d", 7);
    p.image = digest;
    assert_int_equal(fixture_prepare(f, &p, &answer), ERR_NOT_FOUND);
    assert_non_null(strstr(answer.reply->message, "0007"));
    fixture_answer_free(&answer);
}

static void verbs_in_the_wrong_order_are_refused(void **state)
{
    struct runner_fixture *f = *state;
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    fixture_id(id);
    assert_int_equal(fixture_commit(f, id), ERR_NOT_FOUND);
    assert_int_equal(fixture_stop_instance(f, id, 0), ERR_NOT_FOUND);
    fixture_prepare_init(&p, id, WORDS("cat"));
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    struct fixture_answer second;
    assert_int_equal(fixture_prepare(f, &p, &second), ERR_EXISTS);
    fixture_answer_free(&second);
    assert_int_equal(fixture_forget(f, id), ERR_CONFLICT);
    Skerry__Runner__Sockets sockets = SKERRY__RUNNER__SOCKETS__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    sockets.id = id;
    sockets.count = 1;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_SOCKETS;
    request.sockets = &sockets;
    assert_int_equal(fixture_code(f, &request), ERR_CONFLICT);
    assert_int_equal(fixture_commit(f, id), 0);
    assert_int_equal(fixture_commit(f, id), ERR_CONFLICT);
    assert_int_equal(fixture_discard(f, id), ERR_CONFLICT);
    sockets.count = 65;
    assert_int_equal(fixture_code(f, &request), ERR_INVALID);
    sockets.count = 0;
    assert_int_equal(fixture_code(f, &request), ERR_INVALID);
    assert_int_equal(fixture_stop_instance(f, id, 0), 0);
    assert_non_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS));
    assert_int_equal(fixture_stop_instance(f, id, 0), 0);
    assert_int_equal(fixture_forget(f, id), 0);
    assert_int_equal(fixture_forget(f, id), ERR_NOT_FOUND);
    fixture_answer_free(&answer);
}

static void node_that_does_not_read_is_dropped_and_instances_live(void **state)
{
    struct runner_fixture *f = *state;
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("cat"));
    assert_int_equal(fixture_prepare(f, &p, &answer), 0);
    assert_int_equal(fixture_commit(f, id), 0);
    Skerry__Runner__Instance instance = SKERRY__RUNNER__INSTANCE__INIT;
    instance.id = id;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_STATS;
    request.stats = &instance;
    struct err e = {0};
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    /* Until the runner has had enough of us. */
    while (clock_monotonic_ms() < until) {
        request.seq++;
        if (wire_send(f->node, &request.base, NULL, 0, &e) == 0)
            continue;
        if (e.sys != EAGAIN)
            break;
        struct pollfd wait = {.fd = f->node, .events = POLLOUT};
        (void)poll(&wait, 1, 10);
    }
    assert_int_equal(e.sys, EPIPE);
    reconnect(f);
    f->seq = 1000000;
    assert_int_equal(write(answer.descriptors[0], "still\n", 6), 6);
    char text[16] = "";
    struct pollfd wait = {.fd = answer.descriptors[1], .events = POLLIN};
    assert_int_equal(poll(&wait, 1, FIXTURE_WAIT_MS), 1);
    assert_int_equal(read(answer.descriptors[1], text, sizeof text - 1), 6);
    fixture_answer_free(&answer);
    assert_non_null(fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS));
    assert_int_equal(fixture_forget(f, id), 0);
}

static void second_node_and_strangers_are_refused(void **state)
{
    struct runner_fixture *f = *state;
    serves(f);
    int second = fixture_connect(f);
    char byte;
    if (second >= 0) {
        assert_int_equal(recv(second, &byte, 1, 0), 0);
        close(second);
    }
    serves(f);
    struct stat st;
    assert_int_equal(stat(f->socket, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0660);
    memory_close(&f->node);
    /* Even with the socket open to all, another user is refused. */
    assert_int_equal(chmod(f->socket, 0666), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (setresuid(12345, 12345, 12345) != 0)
            _exit(3);
        int fd = fixture_connect(f);
        if (fd < 0)
            _exit(4);
        _exit(recv(fd, &byte, 1, 0) <= 0 ? 0 : 5);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(chmod(f->socket, 0660), 0);
    reconnect(f);
    serves(f);
}

static void folders_are_shut(void **state)
{
    static const struct {
        const char *name;
        mode_t mode;
    } folders[] = {{"instances", 0700}, {"images", 0700}, {"logs", 0750}, {"mounts", 0700}};
    struct runner_fixture *f = *state;
    for (size_t n = 0; n < ARRAY_SIZE(folders); n++) {
        char path[128];
        struct stat st;
        text_format(path, sizeof path, "%s/%s", f->directory, folders[n].name);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, folders[n].mode);
        assert_int_equal(st.st_uid, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(garbage_ends_the_connection_only),
        cmocka_unit_test(descriptors_end_the_connection_and_are_closed),
        cmocka_unit_test(unknown_verb_is_answered),
        cmocka_unit_test(ids_that_are_none_are_refused),
        cmocka_unit_test(prepare_beyond_what_is_allowed_is_refused),
        cmocka_unit_test(image_that_is_not_there_is_named),
        cmocka_unit_test(verbs_in_the_wrong_order_are_refused),
        cmocka_unit_test(node_that_does_not_read_is_dropped_and_instances_live),
        cmocka_unit_test(second_node_and_strangers_are_refused),
        cmocka_unit_test(folders_are_shut),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
