/* The node's client of the runner, against a runner that is a thread of the test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/sandbox.h"
#include "sandbox/shared/wire.h"

#define WAIT_MS 5000

/* What the fake does with a verb other than hello. */
enum behaviour { ANSWER, REFUSE, IGNORE, BREAK, GARBAGE, EVENT_FIRST, SEND_DESCRIPTORS };

struct fake {
    char path[96];
    int listener;
    pthread_t thread;
    _Atomic int behaviour;
    _Atomic bool stop;
    _Atomic unsigned connections;
    _Atomic uint32_t protocol;
};

struct fixture {
    uv_loop_t loop;
    struct fake fake;
    struct sandbox *sandbox;
    uv_timer_t deadline;
    bool late;
    unsigned connected, disconnected, events, answers;
    uint32_t event_exec;
    struct err last;
    size_t descriptors;
    bool descriptor_good;
    bool closed;
};

/* --- the fake ---------------------------------------------------------------------------------- */

static void send_to_node(int fd, Skerry__Runner__ToNode *m, const int *descriptors, size_t count)
{
    struct err e;
    (void)!wire_send(fd, &m->base, descriptors, count, &e);
}

static void send_event(int fd)
{
    Skerry__Runner__ExecEnded ended = SKERRY__RUNNER__EXEC_ENDED__INIT;
    Skerry__Runner__Event event = SKERRY__RUNNER__EVENT__INIT;
    Skerry__Runner__ToNode m = SKERRY__RUNNER__TO_NODE__INIT;
    ended.exec_id = 77;
    event.event_case = SKERRY__RUNNER__EVENT__EVENT_EXEC_ENDED;
    event.exec_ended = &ended;
    m.message_case = SKERRY__RUNNER__TO_NODE__MESSAGE_EVENT;
    m.event = &event;
    send_to_node(fd, &m, NULL, 0);
}

static void send_reply(struct fake *f, int fd, const Skerry__Runner__Request *request)
{
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    Skerry__Runner__HelloReply hello = SKERRY__RUNNER__HELLO_REPLY__INIT;
    Skerry__Runner__ToNode m = SKERRY__RUNNER__TO_NODE__INIT;
    reply.seq = request->seq;
    m.message_case = SKERRY__RUNNER__TO_NODE__MESSAGE_REPLY;
    m.reply = &reply;
    bool greeting = request->verb_case == SKERRY__RUNNER__REQUEST__VERB_HELLO;
    if (greeting) {
        hello.protocol = f->protocol;
        reply.result_case = SKERRY__RUNNER__REPLY__RESULT_HELLO;
        reply.hello = &hello;
    } else if (f->behaviour == REFUSE) {
        reply.error = ERR_DENIED;
        reply.message = (char *)(uintptr_t) "not allowed here";
    } else if (f->behaviour == EVENT_FIRST) {
        send_event(fd);
    } else if (f->behaviour == SEND_DESCRIPTORS) {
        int ends[2];
        assert_always(pipe(ends) == 0 && write(ends[1], "d", 1) == 1);
        reply.descriptors = 2;
        send_to_node(fd, &m, ends, 2);
        close(ends[0]);
        close(ends[1]);
        return;
    }
    send_to_node(fd, &m, NULL, 0);
}

/* False: the connection is to be closed. */
static bool serve_one(struct fake *f, int fd)
{
    static uint8_t data[SANDBOX_MESSAGE_BYTES_MAX];
    size_t length, count;
    struct err e = {0};
    if (wire_receive(fd, data, sizeof data, &length, NULL, 0, &count, &e) < 0)
        return e.sys == EAGAIN;
    Skerry__Runner__Request *request = skerry__runner__request__unpack(NULL, length, data);
    assert_always(request != NULL);
    bool greeting = request->verb_case == SKERRY__RUNNER__REQUEST__VERB_HELLO;
    bool keep = true;
    if (!greeting && f->behaviour == BREAK)
        keep = false;
    else if (!greeting && f->behaviour == GARBAGE)
        (void)!send(fd, "\xff\xff\xff", 3, MSG_NOSIGNAL);
    else if (greeting || f->behaviour != IGNORE)
        send_reply(f, fd, request);
    skerry__runner__request__free_unpacked(request, NULL);
    return keep;
}

static void *fake_run(void *argument)
{
    struct fake *f = argument;
    int fd = -1;
    while (!f->stop) {
        struct pollfd wait[2] = {{.fd = f->listener, .events = POLLIN},
                                 {.fd = fd, .events = POLLIN}};
        if (poll(wait, 2, 20) <= 0)
            continue;
        if (wait[0].revents != 0) {
            memory_close(&fd);
            fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
            f->connections++;
        } else if (fd >= 0 && wait[1].revents != 0 && !serve_one(f, fd)) {
            memory_close(&fd);
        }
    }
    memory_close(&fd);
    return NULL;
}

static void fake_start(struct fake *f)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    text_copy(address.sun_path, sizeof address.sun_path, f->path);
    unlink(f->path);
    f->stop = false;
    f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_true(f->listener >= 0);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(f->listener, 4), 0);
    assert_int_equal(pthread_create(&f->thread, NULL, fake_run, f), 0);
}

static void fake_stop(struct fake *f)
{
    f->stop = true;
    pthread_join(f->thread, NULL);
    memory_close(&f->listener);
}

/* --- the node's side --------------------------------------------------------------------------- */

static void connected(void *user, const Skerry__Runner__HelloReply *hello)
{
    struct fixture *x = user;
    assert_int_equal(hello->protocol, 1);
    x->connected++;
}

static void disconnected(void *user)
{
    struct fixture *x = user;
    x->disconnected++;
}

static void event(void *user, const Skerry__Runner__Event *e)
{
    struct fixture *x = user;
    x->events++;
    x->event_exec = e->exec_ended->exec_id;
}

static void answered(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                     int *descriptors, size_t count)
{
    struct fixture *x = user;
    (void)reply;
    x->answers++;
    x->last = error == NULL ? (struct err){0} : *error;
    x->descriptors = count;
    char byte = 0;
    x->descriptor_good = count > 0 && read(descriptors[0], &byte, 1) == 1 && byte == 'd';
    for (size_t n = 0; n < count; n++)
        close(descriptors[n]);
}

static void late_cb(uv_timer_t *timer)
{
    container_of(timer, struct fixture, deadline)->late = true;
}

/* Turns the loop until the number is there. */
static void wait_for(struct fixture *x, const unsigned *value, unsigned wanted)
{
    x->late = false;
    uv_timer_start(&x->deadline, late_cb, WAIT_MS, 0);
    while (*value < wanted && !x->late)
        uv_run(&x->loop, UV_RUN_ONCE);
    uv_timer_stop(&x->deadline);
    assert_int_equal(*value, wanted);
}

static uint64_t ask(struct fixture *x)
{
    Skerry__Runner__Instance instance = SKERRY__RUNNER__INSTANCE__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    struct err e;
    instance.id = (char *)(uintptr_t) "x";
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_STATS;
    request.stats = &instance;
    assert_int_equal(sandbox_ask(x->sandbox, &request, answered, x, &e), 0);
    return request.seq;
}

static void client_open(struct fixture *x, unsigned answer_timeout_ms)
{
    const struct sandbox_options options = {
        .socket_path = x->fake.path,
        .node_boot = 5,
        .answer_timeout_ms = answer_timeout_ms,
        .waiting_max = 4,
        .calls = {.user = x, .connected = connected, .disconnected = disconnected, .event = event}};
    struct err e;
    assert_int_equal(sandbox_open(&x->sandbox, &x->loop, &options, &e), 0);
}

static int setup(void **state)
{
    struct fixture *x = calloc(1, sizeof *x);
    assert_non_null(x);
    assert_int_equal(uv_loop_init(&x->loop), 0);
    uv_timer_init(&x->loop, &x->deadline);
    text_format(x->fake.path, sizeof x->fake.path, "/tmp/skerry-client-%d", (int)getpid());
    x->fake.protocol = 1;
    fake_start(&x->fake);
    *state = x;
    return 0;
}

static void closed(void *user)
{
    struct fixture *x = user;
    x->closed = true;
    uv_close((uv_handle_t *)&x->deadline, NULL);
}

static int teardown(void **state)
{
    struct fixture *x = *state;
    if (x->sandbox != NULL)
        sandbox_close(x->sandbox, closed, x);
    else
        uv_close((uv_handle_t *)&x->deadline, NULL);
    uv_run(&x->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&x->loop), 0);
    assert_true(x->sandbox == NULL || x->closed);
    fake_stop(&x->fake);
    unlink(x->fake.path);
    free(x);
    return 0;
}

static void verbs_are_answered_once_each(void **state)
{
    struct fixture *x = *state;
    client_open(x, 0);
    wait_for(x, &x->connected, 1);
    assert_true(sandbox_connected(x->sandbox));
    uint64_t first = ask(x), second = ask(x);
    assert_true(second > first);
    wait_for(x, &x->answers, 2);
    assert_int_equal(x->last.code, ERR_OK);
}

static void refusal_comes_as_an_error_with_its_text(void **state)
{
    struct fixture *x = *state;
    x->fake.behaviour = REFUSE;
    client_open(x, 0);
    wait_for(x, &x->connected, 1);
    ask(x);
    wait_for(x, &x->answers, 1);
    assert_int_equal(x->last.code, ERR_DENIED);
    assert_string_equal(x->last.msg, "not allowed here");
}

static void descriptors_come_with_the_answer(void **state)
{
    struct fixture *x = *state;
    x->fake.behaviour = SEND_DESCRIPTORS;
    client_open(x, 0);
    wait_for(x, &x->connected, 1);
    ask(x);
    wait_for(x, &x->answers, 1);
    assert_int_equal(x->descriptors, 2);
    assert_true(x->descriptor_good);
}

static void events_come_in_order_with_answers(void **state)
{
    struct fixture *x = *state;
    x->fake.behaviour = EVENT_FIRST;
    client_open(x, 0);
    wait_for(x, &x->connected, 1);
    ask(x);
    wait_for(x, &x->answers, 1);
    assert_int_equal(x->events, 1);
    assert_int_equal(x->event_exec, 77);
}

static void silence_is_a_timeout(void **state)
{
    struct fixture *x = *state;
    x->fake.behaviour = IGNORE;
    client_open(x, 100);
    wait_for(x, &x->connected, 1);
    ask(x);
    wait_for(x, &x->answers, 1);
    assert_int_equal(x->last.code, ERR_TIMEOUT);
}

static void broken_connection_fails_what_waits_and_is_made_again(void **state)
{
    struct fixture *x = *state;
    x->fake.behaviour = BREAK;
    client_open(x, 0);
    wait_for(x, &x->connected, 1);
    ask(x);
    wait_for(x, &x->answers, 1);
    assert_int_equal(x->last.code, ERR_UNAVAILABLE);
    assert_int_equal(x->disconnected, 1);
    x->fake.behaviour = ANSWER;
    wait_for(x, &x->connected, 2);
    ask(x);
    wait_for(x, &x->answers, 2);
    assert_int_equal(x->last.code, ERR_OK);
}

static void datagram_that_cannot_be_read_harms_nothing(void **state)
{
    struct fixture *x = *state;
    x->fake.behaviour = GARBAGE;
    client_open(x, 200);
    wait_for(x, &x->connected, 1);
    ask(x);
    wait_for(x, &x->answers, 1);
    assert_int_not_equal(x->last.code, ERR_OK);
    x->fake.behaviour = ANSWER;
    while (!sandbox_connected(x->sandbox))
        uv_run(&x->loop, UV_RUN_ONCE);
    ask(x);
    wait_for(x, &x->answers, 2);
    assert_int_equal(x->last.code, ERR_OK);
}

static void verbs_that_wait_have_a_bound(void **state)
{
    struct fixture *x = *state;
    x->fake.behaviour = IGNORE;
    client_open(x, 100);
    wait_for(x, &x->connected, 1);
    for (int n = 0; n < 4; n++)
        ask(x);
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    struct err e;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_LIST;
    request.list = &empty;
    assert_int_equal(sandbox_ask(x->sandbox, &request, answered, x, &e), -ERR_LIMIT);
    wait_for(x, &x->answers, 4);
}

static void runner_that_comes_later_is_found(void **state)
{
    struct fixture *x = *state;
    fake_stop(&x->fake);
    unlink(x->fake.path);
    client_open(x, 0);
    uv_run(&x->loop, UV_RUN_ONCE);
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    Skerry__Runner__Request request = SKERRY__RUNNER__REQUEST__INIT;
    struct err e;
    request.verb_case = SKERRY__RUNNER__REQUEST__VERB_LIST;
    request.list = &empty;
    assert_int_equal(sandbox_ask(x->sandbox, &request, answered, x, &e), -ERR_UNAVAILABLE);
    fake_start(&x->fake);
    wait_for(x, &x->connected, 1);
}

static void another_protocol_is_no_connection(void **state)
{
    struct fixture *x = *state;
    x->fake.protocol = 2;
    client_open(x, 0);
    while (x->fake.connections < 2)
        uv_run(&x->loop, UV_RUN_ONCE);
    assert_int_equal(x->connected, 0);
    x->fake.protocol = 1;
    wait_for(x, &x->connected, 1);
}

static void closing_cancels_what_waits(void **state)
{
    struct fixture *x = *state;
    x->fake.behaviour = IGNORE;
    client_open(x, 0);
    wait_for(x, &x->connected, 1);
    ask(x);
    sandbox_close(x->sandbox, closed, x);
    x->sandbox = NULL;
    assert_int_equal(x->answers, 1);
    assert_int_equal(x->last.code, ERR_CANCELED);
    while (!x->closed)
        uv_run(&x->loop, UV_RUN_ONCE);
    /* The teardown closes the timer itself when there is no client. */
    uv_run(&x->loop, UV_RUN_NOWAIT);
    uv_timer_init(&x->loop, &x->deadline);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(verbs_are_answered_once_each, setup, teardown),
        cmocka_unit_test_setup_teardown(refusal_comes_as_an_error_with_its_text, setup, teardown),
        cmocka_unit_test_setup_teardown(descriptors_come_with_the_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(events_come_in_order_with_answers, setup, teardown),
        cmocka_unit_test_setup_teardown(silence_is_a_timeout, setup, teardown),
        cmocka_unit_test_setup_teardown(broken_connection_fails_what_waits_and_is_made_again, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(datagram_that_cannot_be_read_harms_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(verbs_that_wait_have_a_bound, setup, teardown),
        cmocka_unit_test_setup_teardown(runner_that_comes_later_is_found, setup, teardown),
        cmocka_unit_test_setup_teardown(another_protocol_is_no_connection, setup, teardown),
        cmocka_unit_test_setup_teardown(closing_cancels_what_waits, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
