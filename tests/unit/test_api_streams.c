/* What streams through the API: archives, events and logs. */
#include "tests/lib/api_client.h"

#include "sandbox/shared/log_format.h"

static struct fake fake;

static int setup(void **state)
{
    *state = &fake;
    fake_open(&fake, NULL);
    json_decref(client_json(&fake,
                            &(struct request){.method = "POST",
                                              .path = "/v1/workloads",
                                              .body = "id: hello\ncommand: [x]\nport: 80\n"},
                            200));
    return 0;
}

static int teardown(void **state)
{
    fake_close(*state);
    return 0;
}

static const char *text_of(const json_t *json, const char *name)
{
    const char *text = json_string_value(json_object_get(json, name));
    return text == NULL ? "" : text;
}

/* --- images ------------------------------------------------------------------------------------- */

static void an_image_is_imported_used_and_removed(void **state)
{
    struct fake *f = *state;
    size_t size = 24 * 1024 * 1024;
    char *archive = calloc(1, size);
    fake_set(f, import_slow, true);
    struct request q = {.method = "POST",
                        .path = "/v1/images?name=library/alpine:3.19",
                        .body = archive,
                        .body_length = size};
    json_t *json = client_json(f, &q, 201);
    assert_int_equal(json_integer_value(json_object_get(json, "bytes")), size);
    assert_int_equal(fake_get(f, imported_bytes), size);
    assert_string_equal(text_of(json, "digest"), FAKE_DIGEST);
    json_decref(json);
    fake_set(f, import_slow, false);
    json = client_json(f, &(struct request){.path = "/v1/images"}, 200);
    assert_int_equal(json_array_size(json), 1);
    json_decref(json);
    json = client_json(f, &(struct request){.path = "/v1/images/library%2Falpine:3.19"}, 200);
    assert_string_equal(text_of(json, "name"), "library/alpine:3.19");
    json_decref(json);
    json = client_json(f, &(struct request){.method = "POST", .path = "/v1/images/gc"}, 200);
    assert_int_equal(json_integer_value(json_object_get(json, "bytes")), 4096);
    json_decref(json);
    struct answer a = client(
        f, &(struct request){.method = "DELETE", .path = "/v1/images/library%2Falpine:3.19"});
    assert_int_equal(a.status, 204);
    answer_free(&a);
    client_refused(f, &(struct request){.path = "/v1/images/library%2Falpine:3.19"},
                   PROBLEM_IMAGE_UNKNOWN);
    q.path = "/v1/sources";
    q.headers[0] = "Transfer-Encoding: chunked";
    json = client_json(f, &q, 201);
    assert_string_equal(text_of(json, "digest"), FAKE_DIGEST);
    json_decref(json);
    free(archive);
}

static void a_bad_archive_or_name_is_refused(void **state)
{
    struct fake *f = *state;
    size_t size = 4 * 1024 * 1024;
    char *archive = malloc(size);
    memset(archive, 'X', size);
    struct request q = {
        .method = "POST", .path = "/v1/images?name=bad", .body = archive, .body_length = size};
    client_refused(f, &q, PROBLEM_IMAGE_INVALID);
    static const char *const names[] = {"host",  "",          "Upper",   "/etc",
                                        "a%20b", "sha256:aa", "%C3%A4pf"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char path[64];
        (void)text_format(path, sizeof(path), "/v1/images?name=%s", names[i]);
        q = (struct request){.method = "POST", .path = path, .body = "x"};
        client_refused(f, &q, i == 0 ? PROBLEM_CONFLICT : PROBLEM_BAD_REQUEST);
    }
    free(archive);
}

static void an_import_whose_client_leaves_is_not_registered(void **state)
{
    struct fake *f = *state;
    static const char head[] = "POST /v1/images?name=torn HTTP/1.1\r\nHost: x\r\n"
                               "Content-Length: 1000000\r\n\r\nsome bytes";
    unsigned canceled = fake_get(f, canceled);
    fake_set(f, imported_bytes, 0);
    int fd = raw_connect(f, false);
    raw_send(fd, head, sizeof(head) - 1);
    fake_wait_for(fake_get(f, imported_bytes) > 0);
    (void)close(fd);
    fake_wait_for(fake_get(f, canceled) > canceled);
    client_refused(f, &(struct request){.path = "/v1/images/torn"}, PROBLEM_IMAGE_UNKNOWN);
}

/* --- events ------------------------------------------------------------------------------------- */

static void events_are_listed_and_followed(void **state)
{
    struct fake *f = *state;
    static const char head[] = "GET /v1/events HTTP/1.1\r\nHost: x\r\n"
                               "Accept: text/event-stream\r\nLast-Event-ID: 1\r\n\r\n";
    char text[2048] = "";
    fake_event(f, "first");
    fake_event(f, "second");
    struct answer a = client(f, &(struct request){.path = "/v1/events"});
    assert_int_equal(a.status, 200);
    assert_non_null(strstr(a.headers, "application/x-ndjson"));
    assert_non_null(strstr(a.body, "\"kind\":\"first\""));
    assert_non_null(strstr(a.body, "\n{"));
    assert_non_null(strstr(a.body, "it \\\"happened\\\""));
    answer_free(&a);
    a = client(f, &(struct request){.path = "/v1/events?after=1"});
    assert_null(strstr(a.body, "first"));
    answer_free(&a);
    int fd = raw_connect(f, false);
    raw_send(fd, head, sizeof(head) - 1);
    for (size_t used = 0; strstr(text, "second") == NULL; used++)
        assert_true(used + 1 < sizeof(text) && raw_read(fd, text + used, 1));
    assert_null(strstr(text, "first"));
    fake_event(f, "third");
    text[0] = '\0';
    for (size_t used = 0; strstr(text, "id: 3\nevent: third\ndata: {") == NULL; used++) {
        assert_true(used + 1 < sizeof(text) && raw_read(fd, text + used, 1));
        text[used + 1] = '\0';
    }
    (void)close(fd);
}

/* --- logs --------------------------------------------------------------------------------------- */

static uint64_t log_sequence;

static void log_append(struct fake *f, const struct instance_id *id, enum log_stream stream,
                       const char *text)
{
    char path[160];
    uint8_t header[LOG_RECORD_HEADER_BYTES];
    (void)text_format(path, sizeof(path), "%s/%s.log", f->directory, id->text);
    struct log_record record = {.sequence = ++log_sequence,
                                .wall_ms = clock_wall_ms(),
                                .stream = stream,
                                .length = (uint32_t)strlen(text),
                                .data = (const uint8_t *)text};
    log_record_header(&record, header);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, header, sizeof(header)), sizeof(header));
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    (void)close(fd);
}

static void logs_are_shown_as_asked(void **state)
{
    struct fake *f = *state;
    struct instance_id id;
    char path[160];
    (void)pthread_mutex_lock(&f->lock);
    assert_int_equal(fake_instance(f, "hello", NULL, &id), PROBLEM_NONE);
    (void)pthread_mutex_unlock(&f->lock);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/logs", id.text);
    struct answer a = client(f, &(struct request){.path = path});
    assert_int_equal(a.status, 200);
    assert_int_equal(a.length, 0); /* it wrote nothing yet */
    answer_free(&a);
    log_append(f, &id, LOG_STREAM_STDOUT, "one\ntw");
    log_append(f, &id, LOG_STREAM_STDERR, "oops \xff\n");
    log_append(f, &id, LOG_STREAM_STDOUT, "o\nlast");
    a = client(f, &(struct request){.path = path});
    assert_string_equal(a.body, "one\ntwoops \xff\no\nlast");
    answer_free(&a);
    a = client(f, &(struct request){.path = path, .headers = {"Accept: application/x-ndjson"}});
    assert_non_null(strstr(a.body, "\"stream\":\"stdout\",\"text\":\"one\"}\n"));
    assert_non_null(strstr(a.body, "\"stream\":\"stderr\",\"text\":\"oops \xef\xbf\xbd\"}\n"));
    assert_non_null(strstr(a.body, "\"text\":\"two\"}\n"));
    assert_non_null(strstr(a.body, "\"text\":\"last\"}\n"));
    answer_free(&a);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/logs?stream=stderr", id.text);
    a = client(f, &(struct request){.path = path});
    assert_string_equal(a.body, "oops \xff\n");
    answer_free(&a);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/logs?since=2099-01-01T00:00:00Z",
                      id.text);
    a = client(f, &(struct request){.path = path});
    assert_int_equal(a.length, 0);
    answer_free(&a);
    (void)text_format(path, sizeof(path), "/v1/instances/%s/logs?since=yesterday", id.text);
    client_refused(f, &(struct request){.path = path}, PROBLEM_BAD_REQUEST);
}

static void a_followed_log_ends_with_its_instance(void **state)
{
    struct fake *f = *state;
    struct instance_id id;
    char head[256];
    char text[4096] = "";
    (void)pthread_mutex_lock(&f->lock);
    assert_int_equal(fake_instance(f, "hello", NULL, &id), PROBLEM_NONE);
    (void)pthread_mutex_unlock(&f->lock);
    log_append(f, &id, LOG_STREAM_STDOUT, "before\n");
    (void)text_format(head, sizeof(head),
                      "GET /v1/instances/%s/logs?follow=1 HTTP/1.1\r\nHost: x\r\n"
                      "Accept: text/event-stream\r\nConnection: close\r\n\r\n",
                      id.text);
    int fd = raw_connect(f, false);
    raw_send(fd, head, strlen(head));
    size_t used = 0;
    while (strstr(text, "\"before\"") == NULL) {
        assert_true(used + 1 < sizeof(text) && raw_read(fd, text + used, 1));
        text[++used] = '\0';
    }
    log_append(f, &id, LOG_STREAM_STDERR, "later\n");
    while (strstr(text, "event: stderr\ndata: {") == NULL || strstr(text, "\"later\"") == NULL) {
        assert_true(used + 1 < sizeof(text) && raw_read(fd, text + used, 1));
        text[++used] = '\0';
    }
    log_append(f, &id, LOG_STREAM_STDOUT, "its last word");
    (void)pthread_mutex_lock(&f->lock);
    assert_true(fake_end_instance(f, id.text, END_IDLE));
    (void)pthread_mutex_unlock(&f->lock);
    while (used + 1 < sizeof(text) && raw_read(fd, text + used, 1))
        text[++used] = '\0';
    assert_non_null(strstr(text, "its last word"));
    assert_non_null(strstr(text, "event: end\ndata: {\"reason\":\"idle\""));
    (void)close(fd);
}

static void a_consistent_read_asks_the_cluster_first(void **state)
{
    struct fake *f = *state;
    struct request q = {.method = "GET", .path = "/v1/workloads"};
    unsigned reads = fake_get(f, reads);
    json_decref(client_json(f, &q, 200));
    assert_int_equal(fake_get(f, reads), reads);
    q.path = "/v1/workloads?consistent=1";
    json_decref(client_json(f, &q, 200));
    assert_int_equal(fake_get(f, reads), reads + 1);
    q.path = "/v1/workloads?consistent=yes";
    json_decref(client_json(f, &q, 400));
    fake_set(f, no_quorum, true);
    q.path = "/v1/instances?consistent=1";
    json_t *problem = client_json(f, &q, 503);
    assert_string_equal(json_string_value(json_object_get(problem, "code")), "no_quorum");
    json_decref(problem);
    fake_set(f, no_quorum, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_consistent_read_asks_the_cluster_first),
        cmocka_unit_test(an_image_is_imported_used_and_removed),
        cmocka_unit_test(a_bad_archive_or_name_is_refused),
        cmocka_unit_test(an_import_whose_client_leaves_is_not_registered),
        cmocka_unit_test(events_are_listed_and_followed),
        cmocka_unit_test(logs_are_shown_as_asked),
        cmocka_unit_test(a_followed_log_ends_with_its_instance),
    };
    return cmocka_run_group_tests_name("api streams", tests, setup, teardown);
}
