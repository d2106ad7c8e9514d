/* Commands and files through the API: plain, as JSON, as events, and over an upgraded connection. */
#include "tests/lib/api_client.h"
#include "tests/lib/api_frames.h"

#include <stdio.h>

static struct fake fake;

static int setup(void **state)
{
    *state = &fake;
    fake_open(&fake, NULL);
    json_t *json = client_json(&fake,
                               &(struct request){.method = "POST",
                                                 .path = "/v1/workloads",
                                                 .body = "id: hello\ncommand: [x]\nport: 80\n"},
                               200);
    json_decref(json);
    return 0;
}

static int teardown(void **state)
{
    fake_close(*state);
    return 0;
}

static void has_header(const struct answer *a, const char *line)
{
    char whole[128];
    (void)text_format(whole, sizeof(whole), "\r\n%s\r\n", line);
    if (strstr(a->headers, whole) == NULL)
        fail_msg("no %s in %s", line, a->headers);
}

/* `sh -c SCRIPT` as a query. */
static void sh_path(char *out, size_t size, const char *start, const char *script)
{
    char *encoded = curl_easy_escape(NULL, script, 0);
    (void)text_format(out, size, "%scommand=sh&command=-c&command=%s", start, encoded);
    curl_free(encoded);
}

static void instance_of(struct fake *f, struct instance_id *id)
{
    (void)pthread_mutex_lock(&f->lock);
    assert_int_equal(fake_instance(f, "hello", NULL, id), PROBLEM_NONE);
    (void)pthread_mutex_unlock(&f->lock);
}

/* --- plain -------------------------------------------------------------------------------------- */

static void a_body_is_stdin_and_the_answer_stdout(void **state)
{
    struct fake *f = *state;
    struct answer a = client(f, &(struct request){.method = "POST",
                                                  .path = "/v1/run?command=cat",
                                                  .body = "hi there",
                                                  .headers = {"Content-Type: text/plain"}});
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "hi there");
    has_header(&a, "Skerry-Exit-Code: 0");
    assert_non_null(strstr(a.headers, "Skerry-Instance: "));
    answer_free(&a);
}

static void exit_code_and_signal_are_headers_of_a_short_answer(void **state)
{
    struct fake *f = *state;
    char path[256];
    sh_path(path, sizeof(path), "/v1/run?", "echo out; echo err >&2; exit 7");
    struct answer a = client(f, &(struct request){.method = "POST", .path = path});
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "out\n");
    has_header(&a, "Skerry-Exit-Code: 7");
    assert_null(strstr(a.headers, "Skerry-Signal"));
    answer_free(&a);
    sh_path(path, sizeof(path), "/v1/run?", "kill -9 $$");
    a = client(f, &(struct request){.method = "POST", .path = path});
    has_header(&a, "Skerry-Exit-Code: 137");
    has_header(&a, "Skerry-Signal: 9");
    answer_free(&a);
}

static void a_long_answer_has_them_as_trailers(void **state)
{
    struct fake *f = *state;
    char path[256];
    sh_path(path, sizeof(path), "/v1/run?", "head -c 3000000 /dev/zero; exit 3");
    struct answer a = client(f, &(struct request){.method = "POST", .path = path});
    assert_int_equal(a.status, 200);
    assert_int_equal(a.length, 3000000);
    has_header(&a, "Transfer-Encoding: chunked");
    const char *end = strstr(a.headers, "\r\n\r\n");
    assert_non_null(end);
    assert_non_null(strstr(end, "Skerry-Exit-Code: 3"));
    answer_free(&a);
}

static void a_large_body_passes_through(void **state)
{
    struct fake *f = *state;
    size_t size = 3 * 1024 * 1024;
    char *body = malloc(size);
    randombytes_buf_deterministic(body, size, (const unsigned char[32]){7});
    struct request q = {.method = "POST",
                        .path = "/v1/run?command=cat",
                        .body = body,
                        .body_length = size,
                        .headers = {"Transfer-Encoding: chunked", "Content-Type: x/y"}};
    struct answer a = client(f, &q);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.length, size);
    assert_memory_equal(a.body, body, size);
    answer_free(&a);
    free(body);
}

static void a_command_that_does_not_read_does_not_hang(void **state)
{
    struct fake *f = *state;
    size_t size = 8 * 1024 * 1024;
    char *body = calloc(1, size);
    struct answer a = client(f, &(struct request){.method = "POST",
                                                  .path = "/v1/run?command=true",
                                                  .body = body,
                                                  .body_length = size,
                                                  .headers = {"Content-Type: x/y"}});
    assert_int_equal(a.status, 200);
    has_header(&a, "Skerry-Exit-Code: 0");
    answer_free(&a);
    free(body);
}

static void output_before_the_input_ends_is_bounded(void **state)
{
    struct fake *f = *state;
    size_t size = 8 * 1024 * 1024;
    char *body = calloc(1, size);
    char path[256];
    unsigned canceled = fake_get(f, canceled);
    sh_path(path, sizeof(path), "/v1/run?", "head -c 9000000 /dev/zero; sleep 30");
    struct answer a = client(f, &(struct request){.method = "POST",
                                                  .path = path,
                                                  .body = body,
                                                  .body_length = size,
                                                  .headers = {"Content-Type: x/y"}});
    assert_int_equal(a.status, 429);
    assert_non_null(strstr(a.body, "\"ran\":\"yes\""));
    assert_int_equal(fake_get(f, canceled), canceled + 1);
    answer_free(&a);
    free(body);
}

/* However fast the command is and however late the body: it would take it. */
static void output_before_a_late_input_waits(void **state)
{
    struct fake *f = *state;
    static const char head[] = "POST /v1/run?command=head&command=-c&command=9000000&command="
                               "/dev/zero HTTP/1.1\r\nHost: x\r\nContent-Type: x/y\r\n"
                               "Content-Length: 2\r\nConnection: close\r\n\r\n";
    char data[65536];
    size_t total = 0;
    uint64_t index = fake_get(f, index);
    int fd = raw_connect(f, false);
    raw_send(fd, head, sizeof(head) - 1);
    fake_wait_for(fake_get(f, index) > index);
    for (unsigned turn = 0; turn < 100; turn++)
        fake_pause();
    raw_send(fd, "in", 2);
    for (ssize_t count = 1; count != 0;) {
        count = recv(fd, data, sizeof(data), 0);
        assert_true(count >= 0 || errno == EINTR);
        total += count > 0 ? (size_t)count : 0;
    }
    assert_true(total > 9000000);
    (void)close(fd);
}

static void a_client_that_leaves_ends_the_command(void **state)
{
    struct fake *f = *state;
    unsigned canceled = fake_get(f, canceled);
    static const char head[] = "POST /v1/run?command=sleep&command=60 HTTP/1.1\r\nHost: x\r\n\r\n";
    uint64_t index = fake_get(f, index);
    int fd = raw_connect(f, false);
    raw_send(fd, head, sizeof(head) - 1);
    fake_wait_for(fake_get(f, index) > index);
    assert_int_equal(fake_get(f, canceled), canceled);
    (void)close(fd);
    fake_wait_for(fake_get(f, canceled) == canceled + 1);
}

static void a_client_that_reads_slowly_slows_the_command(void **state)
{
    struct fake *f = *state;
    static const char head[] = "POST /v1/run?command=head&command=-c&command=50000000&command="
                               "/dev/zero HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    char data[65536];
    size_t total = 0;
    int fd = raw_connect(f, false);
    raw_send(fd, head, sizeof(head) - 1);
    for (;;) {
        ssize_t count = recv(fd, data, sizeof(data), 0);
        if (count < 0 && errno == EINTR)
            continue;
        assert_true(count >= 0);
        if (count == 0)
            break;
        total += (size_t)count;
        if (total % (1024 * 1024) < (size_t)count)
            fake_pause();
    }
    assert_true(total > 50000000);
    (void)close(fd);
}

/* --- as JSON and as events ---------------------------------------------------------------------- */

static void the_result_can_be_json(void **state)
{
    struct fake *f = *state;
    char path[256];
    sh_path(path, sizeof(path), "/v1/run?", "cat; printf '\\377' >&2; exit 4");
    struct request q = {.method = "POST",
                        .path = path,
                        .body = "in",
                        .headers = {"Accept: application/json", "Content-Type: text/plain"}};
    json_t *json = client_json(f, &q, 200);
    assert_int_equal(json_integer_value(json_object_get(json, "exit_code")), 4);
    assert_string_equal(json_string_value(json_object_get(json, "stdout")), "in");
    assert_string_equal(json_string_value(json_object_get(json, "stderr_base64")), "/w==");
    assert_true(json_is_false(json_object_get(json, "truncated")));
    assert_true(json_real_value(json_object_get(json, "wall_seconds")) == 1.5);
    json_decref(json);
    sh_path(path, sizeof(path), "/v1/run?", "head -c 5000000 /dev/zero | tr '\\0' a");
    json = client_json(f, &q, 200);
    assert_true(json_is_true(json_object_get(json, "truncated")));
    assert_int_equal(json_string_length(json_object_get(json, "stdout")), 1024 * 1024);
    json_decref(json);
}

static void the_result_can_be_events(void **state)
{
    struct fake *f = *state;
    char path[256];
    sh_path(path, sizeof(path), "/v1/run?", "echo a; echo b >&2; exit 5");
    struct answer a =
        client(f, &(struct request){
                      .method = "POST", .path = path, .headers = {"Accept: text/event-stream"}});
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.headers, "text/event-stream"));
    assert_non_null(strstr(a.body, "event: stdout\ndata: {\"text\":\"a\\n\"}\n\n"));
    assert_non_null(strstr(a.body, "event: stderr\ndata: {\"text\":\"b\\n\"}\n\n"));
    const char *end = strstr(a.body, "event: exit\ndata: {\"exit_code\":5");
    assert_non_null(end);
    assert_string_equal(strstr(end, "\n\n"), "\n\n");
    answer_free(&a);
}

static void a_spec_can_be_json(void **state)
{
    struct fake *f = *state;
    struct request q = {.method = "POST",
                        .path = "/v1/run",
                        .headers = {"Content-Type: application/json"},
                        .body = "{\"command\":[\"cat\"],\"stdin_base64\":\"AAECAw==\","
                                "\"limits\":{\"memory\":\"64M\",\"cpus\":\"0.5\",\"pids\":20},"
                                "\"env\":{\"A\":\"b\"},\"timeout\":\"5s\",\"network\":\"none\"}"};
    struct answer a = client(f, &q);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.length, 4);
    assert_memory_equal(a.body, "\0\1\2\3", 4);
    answer_free(&a);
}

static void bad_specs_are_refused(void **state)
{
    static const char *const bodies[] = {
        "{}",
        "{\"command\":[]}",
        "{\"command\":[\"x\"],\"colour\":1}",
        "{\"command\":[\"x\"],\"limits\":{\"memory\":\"lots\"}}",
        "{\"command\":[\"x\"],\"limits\":{\"colour\":1}}",
        "{\"command\":[\"x\"],\"timeout\":\"soon\"}",
        "{\"command\":[\"x\"],\"tty\":true}",
        "{\"command\":[\"x\"],\"tty\":1}",
        "{\"command\":[\"x\"],\"stdin\":\"a\",\"stdin_base64\":\"YQ==\"}",
        "{\"command\":[\"x\"],\"stdin_base64\":\"!\"}",
        "{\"command\":[\"x\"],\"env\":[\"A=b\"]}",
        "{\"command\":[\"x\"],\"network\":\"host\"}",
        "{\"command\":[\"x\"],\"user\":\"root\"}",
        "{\"command\":[\"x\"],\"rows\":0}",
        "not json",
    };
    static const char *const paths[] = {"/v1/run",
                                        "/v1/run?command=x&env=novalue",
                                        "/v1/run?command=x&memory=1",
                                        "/v1/run?command=x&pids=0",
                                        "/v1/run?command=x&network=host",
                                        "/v1/run?command=%ff",
                                        "/v1/run?command=x&timeout=0s",
                                        "/v1/run?command=x&tty=1",
                                        "/v1/run?command=x&stdin=2"};
    for (size_t i = 0; i < ARRAY_SIZE(bodies); i++)
        client_refused(*state,
                       &(struct request){.method = "POST",
                                         .path = "/v1/run",
                                         .headers = {"Content-Type: application/json"},
                                         .body = bodies[i]},
                       PROBLEM_BAD_REQUEST);
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
        client_refused(*state, &(struct request){.method = "POST", .path = paths[i]},
                       PROBLEM_BAD_REQUEST);
    client_refused(*state,
                   &(struct request){.method = "POST", .path = "/v1/run?command=/no/such/file"},
                   PROBLEM_START_FAILED);
}

static void exec_needs_a_live_instance(void **state)
{
    struct fake *f = *state;
    struct instance_id id;
    char path[128];
    instance_of(f, &id);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/exec?command=echo&command=in", id.text);
    struct answer a = client(f, &(struct request){.method = "POST", .path = path});
    assert_int_equal(a.status, 200);
    assert_string_equal(a.body, "in\n");
    answer_free(&a);
    (void)pthread_mutex_lock(&f->lock);
    assert_true(fake_end_instance(f, id.text, END_EXPIRED));
    (void)pthread_mutex_unlock(&f->lock);
    client_refused(f, &(struct request){.method = "POST", .path = path}, PROBLEM_INSTANCE_GONE);
    client_refused(f,
                   &(struct request){.method = "POST",
                                     .path = "/v1/instances/0aaaaaaaaaaaaaaaa1/exec?command=x"},
                   PROBLEM_INSTANCE_UNKNOWN);
}

/* --- files -------------------------------------------------------------------------------------- */

static void files_go_out_and_in(void **state)
{
    struct fake *f = *state;
    struct instance_id id;
    char path[256];
    char made[160];
    instance_of(f, &id);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/files?path=/etc/hostname", id.text);
    struct answer tar = client(f, &(struct request){.path = path});
    assert_int_equal(tar.status, 200);
    assert_true(tar.length >= 1024 && tar.length % 512 == 0);
    assert_string_equal(tar.body, "etc/hostname");
    (void)text_format(path, sizeof(path), "/v1/instances/%s/files?path=%s", id.text, f->directory);
    struct answer a =
        client(f, &(struct request){
                      .method = "PUT", .path = path, .body = tar.body, .body_length = tar.length});
    assert_int_equal(a.status, 204);
    (void)text_format(made, sizeof(made), "%s/etc/hostname", f->directory);
    assert_int_equal(access(made, R_OK), 0);
    answer_free(&a);
    answer_free(&tar);
    a = client(
        f, &(struct request){.method = "PUT", .path = path, .body = "not a tar", .body_length = 9});
    assert_true(a.status == 409 || a.status == 404);
    answer_free(&a);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/files?path=%s/plain&plain=1", id.text,
                      f->directory);
    a = client(f, &(struct request){.method = "PUT", .path = path, .body = "bytes"});
    assert_int_equal(a.status, 204);
    answer_free(&a);
    a = client(f, &(struct request){.path = path});
    assert_string_equal(a.body, "bytes");
    answer_free(&a);
}

static void missing_files_are_not_found(void **state)
{
    struct fake *f = *state;
    struct instance_id id;
    char path[128];
    instance_of(f, &id);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/files?path=/no/such/file", id.text);
    client_refused(f, &(struct request){.path = path}, PROBLEM_NOT_FOUND);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/files?path=relative", id.text);
    client_refused(f, &(struct request){.path = path}, PROBLEM_BAD_REQUEST);
}

/* --- upgraded ----------------------------------------------------------------------------------- */

/* Reads to the end; what came on stdout is counted, the last frame must be 6. */
static size_t to_the_end(int fd, struct frame *last)
{
    size_t output = 0;
    while (frame_read(fd, last))
        if (last->type == 2)
            output += last->size;
        else if (last->type != 3)
            break;
    assert_int_equal(last->type, 6);
    char byte;
    assert_false(raw_read(fd, &byte, 1)); /* nothing behind it */
    (void)close(fd);
    return output;
}

static void frames_carry_both_directions(void **state)
{
    struct fake *f = *state;
    struct frame frame = {0};
    int fd = upgrade(f, "/v1/run?command=cat", "");
    for (unsigned i = 0; i < 3; i++) {
        frame_send(fd, 0, "ping", 4);
        assert_true(frame_read(fd, &frame));
        assert_int_equal(frame.type, 2);
        assert_string_equal(frame.data, "ping");
    }
    frame_send(fd, 1, "", 0);
    assert_int_equal(to_the_end(fd, &frame), 0);
    json_t *json = json_loads(frame.data, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(json, "exit_code")), 0);
    assert_string_equal(json_string_value(json_object_get(json, "reason")), "exited");
    json_decref(json);
}

struct feeder {
    int fd;
    size_t frames;
};

static void *feed(void *user)
{
    struct feeder *s = user;
    char *data = calloc(1, 65536);
    for (size_t i = 0; i < s->frames; i++)
        frame_send(s->fd, 0, data, 65536);
    frame_send(s->fd, 1, "", 0);
    free(data);
    return NULL;
}

static void much_passes_both_ways_at_once(void **state)
{
    struct fake *f = *state;
    struct frame *frame = calloc(1, sizeof(*frame));
    int fd = upgrade(f, "/v1/run?command=cat", "");
    struct feeder s = {.fd = fd, .frames = 512};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, feed, &s), 0);
    assert_int_equal(to_the_end(fd, frame), 512 * 65536);
    (void)pthread_join(thread, NULL);
    free(frame);
}

static void a_last_frame_arrives_although_input_is_on_its_way(void **state)
{
    struct fake *f = *state;
    struct frame *frame = calloc(1, sizeof(*frame));
    for (unsigned i = 0; i < 20; i++) {
        int fd = upgrade_over(f, i % 2 == 0, "/v1/run?command=head&command=-c&command=1", "");
        char data[8192] = "x";
        for (unsigned k = 0; k < 16; k++)
            frame_send(fd, 0, data, sizeof(data));
        assert_int_equal(to_the_end(fd, frame), 1);
    }
    free(frame);
}

static void a_json_spec_can_be_upgraded(void **state)
{
    struct fake *f = *state;
    struct frame *frame = calloc(1, sizeof(*frame));
    int fd = upgrade(f, "/v1/run", "{\"command\":[\"sh\",\"-c\",\"echo e >&2; exit 9\"]}");
    assert_true(frame_read(fd, frame));
    assert_int_equal(frame->type, 3);
    assert_string_equal(frame->data, "e\n");
    (void)to_the_end(fd, frame);
    assert_non_null(strstr(frame->data, "\"exit_code\":9"));
    free(frame);
}

static void signals_and_sizes_reach_the_command(void **state)
{
    struct fake *f = *state;
    struct frame *frame = calloc(1, sizeof(*frame));
    int fd = upgrade(f, "/v1/run?command=cat&tty=1&rows=10&columns=20", "");
    frame_send(fd, 4, "\0\x20\0\x40", 4);
    fake_wait_for(fake_get(f, resized_rows) == 32 && fake_get(f, resized_columns) == 64);
    frame_send(fd, 0, "typed\n", 6);
    size_t echoed = 0;
    while (echoed < 14) { /* "typed\r\n" twice: the terminal's echo and cat */
        assert_true(frame_read(fd, frame));
        assert_int_equal(frame->type, 2);
        echoed += frame->size;
    }
    frame_send(fd, 5, "\x0f", 1);
    (void)to_the_end(fd, frame);
    assert_int_equal(fake_get(f, signaled), 15);
    assert_non_null(strstr(frame->data, "\"exit_code\":143"));
    assert_non_null(strstr(frame->data, "\"signal\":15"));
    free(frame);
}

static void the_end_of_typing_ends_a_terminal_command(void **state)
{
    struct fake *f = *state;
    struct frame *frame = calloc(1, sizeof(*frame));
    int fd = upgrade(f, "/v1/run?command=cat&tty=1", "");
    frame_send(fd, 1, "", 0);
    (void)to_the_end(fd, frame);
    assert_non_null(strstr(frame->data, "\"exit_code\":0"));
    free(frame);
}

static void what_is_no_frame_ends_the_command(void **state)
{
    struct fake *f = *state;
    static const struct {
        const char *bytes;
        size_t size;
    } bad[] = {
        {"\x02\0\0\0\1x", 6},            /* a server's frame */
        {"\x09\0\0\0\0", 5},             /* an unknown one */
        {"\x00\x01\0\0\1", 5},           /* too long */
        {"\x00\xff\xff\xff\xff", 5},     /* far too long */
        {"\x04\0\0\0\2ab", 7},           /* half a size */
        {"\x05\0\0\0\1\0", 6},           /* signal 0 */
        {"\x05\0\0\0\1\x7f", 6},         /* no signal */
        {"\x01\0\0\0\1x", 6},            /* an end with bytes */
        {"\x01\0\0\0\0\0\0\0\0\1x", 11}, /* input behind its end */
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        unsigned canceled = fake_get(f, canceled);
        char byte;
        int fd = upgrade(f, "/v1/run?command=sleep&command=60", "");
        raw_send(fd, bad[i].bytes, bad[i].size);
        fake_wait_for(fake_get(f, canceled) == canceled + 1);
        assert_false(raw_read(fd, &byte, 1));
        (void)close(fd);
    }
}

static void an_upgraded_client_that_leaves_ends_the_command(void **state)
{
    struct fake *f = *state;
    unsigned canceled = fake_get(f, canceled);
    int fd = upgrade(f, "/v1/run?command=sleep&command=60", "");
    (void)close(fd);
    fake_wait_for(fake_get(f, canceled) == canceled + 1);
    /* Also one that has filled the command's stdin and all between. */
    char *data = calloc(1, 65536);
    fd = upgrade(f, "/v1/run?command=sleep&command=60", "");
    struct timeval wait = {.tv_usec = 300000};
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
    unsigned char header[5] = {0, 0, 1, 0, 0};
    while (send(fd, header, 5, MSG_NOSIGNAL) == 5 && send(fd, data, 65536, MSG_NOSIGNAL) == 65536)
        ;
    assert_int_equal(fake_get(f, canceled), canceled + 1);
    (void)close(fd);
    fake_wait_for(fake_get(f, canceled) == canceled + 2);
    free(data);
}

static void a_refused_upgrade_is_answered_with_a_problem(void **state)
{
    struct fake *f = *state;
    struct request q = {.method = "POST",
                        .path = "/v1/run?command=/no/such/file",
                        .headers = {"Connection: Upgrade", "Upgrade: skerry-exec/1"}};
    client_refused(f, &q, PROBLEM_START_FAILED);
    q.path = "/v1/run?command=x";
    q.tcp = true;
    client_refused(f, &q, PROBLEM_UNAUTHORIZED);
    q.tcp = false;
    q.body = "stdin";
    client_refused(f, &q, PROBLEM_BAD_REQUEST);
}

static void it_closes_while_upgraded(void **state)
{
    (void)state;
    struct fake f;
    char byte;
    fake_open(&f, NULL);
    int fd = upgrade(&f, "/v1/run?command=sleep&command=60", "");
    fake_close(&f);
    assert_false(raw_read(fd, &byte, 1));
    (void)close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_body_is_stdin_and_the_answer_stdout),
        cmocka_unit_test(exit_code_and_signal_are_headers_of_a_short_answer),
        cmocka_unit_test(a_long_answer_has_them_as_trailers),
        cmocka_unit_test(a_large_body_passes_through),
        cmocka_unit_test(a_command_that_does_not_read_does_not_hang),
        cmocka_unit_test(output_before_the_input_ends_is_bounded),
        cmocka_unit_test(output_before_a_late_input_waits),
        cmocka_unit_test(a_client_that_leaves_ends_the_command),
        cmocka_unit_test(a_client_that_reads_slowly_slows_the_command),
        cmocka_unit_test(the_result_can_be_json),
        cmocka_unit_test(the_result_can_be_events),
        cmocka_unit_test(a_spec_can_be_json),
        cmocka_unit_test(bad_specs_are_refused),
        cmocka_unit_test(exec_needs_a_live_instance),
        cmocka_unit_test(files_go_out_and_in),
        cmocka_unit_test(missing_files_are_not_found),
        cmocka_unit_test(frames_carry_both_directions),
        cmocka_unit_test(much_passes_both_ways_at_once),
        cmocka_unit_test(a_last_frame_arrives_although_input_is_on_its_way),
        cmocka_unit_test(a_json_spec_can_be_upgraded),
        cmocka_unit_test(signals_and_sizes_reach_the_command),
        cmocka_unit_test(the_end_of_typing_ends_a_terminal_command),
        cmocka_unit_test(what_is_no_frame_ends_the_command),
        cmocka_unit_test(an_upgraded_client_that_leaves_ends_the_command),
        cmocka_unit_test(a_refused_upgrade_is_answered_with_a_problem),
        cmocka_unit_test(it_closes_while_upgraded),
    };
    return cmocka_run_group_tests_name("api commands", tests, setup, teardown);
}
