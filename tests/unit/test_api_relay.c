/* Requests about an instance of another node: two APIs, with real keys and streams between them. */
#include "tests/lib/api_client.h"
#include "tests/lib/secure_pair.h"

#include "base/exec_frame.h"
#include "node/api/relay.h"

/* Node 1 is asked; node 2 owns the instance. */
static struct fake entry, owner;
static struct secure_world world;
static pthread_t listening;
static uv_async_t stop_listening;
static bool away; /* nobody knows where node 2 is */
static struct instance_id instance;

static bool address_of(void *user, node_id id, struct sockaddr_storage *out)
{
    (void)user;
    if (id != 2 || __atomic_load_n(&away, __ATOMIC_SEQ_CST))
        return false;
    *out = world.address;
    return true;
}

static void with_peers(struct api_options *o, node_id context, node_id self)
{
    o->peers =
        (struct api_peers){.self = self, .secure = world.contexts[context], .address = address_of};
    o->idle_timeout_ms = 5000;
}

static void as_entry(struct api_options *o)
{
    with_peers(o, 1, 1);
}

/* The owner takes itself for node 3: were it to look at who owns what is passed on to it, it would pass
 * it on again. */
static void as_owner(struct api_options *o)
{
    with_peers(o, 2, 3);
}

/* --- the listener of node 2, on a thread ------------------------------------------------------------ */

static void detached_cb(void *user, struct secure_parcel *parcel)
{
    (void)user;
    api_relay_accept(owner.api, parcel);
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    (void)user;
    secure_stream_detach(s, detached_cb);
}

static void stop_cb(uv_async_t *async)
{
    uv_stop(async->loop);
}

static void *listening_main(void *user)
{
    (void)user;
    (void)uv_run(&world.loop, UV_RUN_DEFAULT);
    return NULL;
}

static void node_add(struct fake *f, const char *name)
{
    struct registry_node node = {.id = 0};
    (void)text_copy(node.name, sizeof node.name, name);
    fake_propose(f, &(struct registry_command){
                        .kind = REGISTRY_NODE_PUT, .wall_ms = clock_wall_ms(), .node = &node});
}

static int setup(void **state)
{
    (void)state;
    secure_world_open(&world);
    secure_world_listen(
        &world, 2,
        (struct secure_listen_options){.protocols = 1u << SECURE_API, .accepted = accepted_cb});
    (void)uv_async_init(&world.loop, &stop_listening, stop_cb);
    assert_int_equal(pthread_create(&listening, NULL, listening_main, NULL), 0);
    fake_open(&entry, as_entry);
    fake_open(&owner, as_owner);
    node_add(&entry, "node2");
    node_add(&owner, "node2");
    fake_set(&owner, owner, 2);
    struct registry_node leased = {.id = 2};
    fake_propose(&owner, &(struct registry_command){.kind = REGISTRY_LEASE_GRANT,
                                                    .wall_ms = clock_wall_ms(),
                                                    .node = &leased});
    (void)pthread_mutex_lock(&owner.lock);
    assert_int_equal(fake_instance(&owner, "", NULL, &instance), PROBLEM_NONE);
    (void)pthread_mutex_unlock(&owner.lock);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fake_close(&entry);
    fake_close(&owner);
    (void)uv_async_send(&stop_listening);
    assert_int_equal(pthread_join(listening, NULL), 0);
    uv_close((uv_handle_t *)&stop_listening, NULL);
    secure_world_close(&world);
    return 0;
}

static const char *path_of(const char *rest)
{
    static char path[512];
    (void)text_format(path, sizeof path, "/v1/instances/%s%s", instance.text, rest);
    return path;
}

/* --- tests ------------------------------------------------------------------------------------------ */

static void the_owner_answers(void **state)
{
    (void)state;
    json_t *json = client_json(&entry, &(struct request){.path = path_of("")}, 200);
    assert_string_equal(json_string_value(json_object_get(json, "id")), instance.text);
    assert_string_equal(json_string_value(json_object_get(json, "node")), "node2");
    json_decref(json);
    json = client_json(
        &entry, &(struct request){.method = "POST", .path = path_of("/extend?for=90s")}, 200);
    json_decref(json);
    assert_int_equal(fake_get(&owner, extended_ms), 90000);
    assert_int_equal(fake_get(&entry, extended_ms), 0);
}

static void a_token_is_checked_by_the_owner(void **state)
{
    (void)state;
    struct request q = {.path = path_of(""), .tcp = true};
    client_refused(&entry, &q, PROBLEM_UNAUTHORIZED);
    q.token = entry.admin; /* the fakes share no registry */
    client_refused(&entry, &q, PROBLEM_UNAUTHORIZED);
    q.token = owner.admin;
    json_decref(client_json(&entry, &q, 200));
    /* On the unix socket a token counts too, where one is sent. */
    q.token = entry.admin;
    q.tcp = false;
    client_refused(&entry, &q, PROBLEM_UNAUTHORIZED);
    q.tcp = true;
    q.token = owner.admin;
    q.headers[0] = "Host: rebound.example";
    client_refused(&entry, &q, PROBLEM_FORBIDDEN);
}

static void bodies_stream_both_ways(void **state)
{
    (void)state;
    size_t size = 6 * 1024 * 1024; /* more than all buffers on the way hold */
    char *data = malloc(size);
    char rest[200];
    for (size_t i = 0; i < size; i++)
        data[i] = (char)(i * 2654435761u >> 13);
    (void)text_format(rest, sizeof rest, "/files?plain=1&path=%s/big", owner.directory);
    struct request q = {.method = "PUT", .path = path_of(rest), .body = data, .body_length = size};
    struct answer a = client(&entry, &q);
    if (a.status / 100 != 2)
        fail_msg("%ld %s", a.status, a.body);
    answer_free(&a);
    q = (struct request){.path = path_of(rest)};
    a = client(&entry, &q);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.length, size);
    assert_memory_equal(a.body, data, size);
    answer_free(&a);
    free(data);
}

static void a_refusal_overtakes_a_long_body(void **state)
{
    (void)state;
    size_t size = 8 * 1024 * 1024;
    struct request q = {.method = "PUT",
                        .path = path_of("/files?plain=1&path=/x"),
                        .body = calloc(1, size),
                        .body_length = size,
                        .tcp = true,
                        .token = "skt_0000000000000000_wrong"};
    client_refused(&entry, &q, PROBLEM_UNAUTHORIZED);
    free((void *)(uintptr_t)q.body);
}

static void exec_runs_over_an_upgraded_connection(void **state)
{
    (void)state;
    static const char body[] = "{\"command\":[\"cat\"]}";
    char head[4096];
    int fd = raw_connect(&entry, false);
    (void)text_format(head, sizeof head,
                      "POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
                      "Upgrade: skerry-exec/1\r\nContent-Type: application/json\r\n"
                      "Content-Length: %zu\r\n\r\n%s",
                      path_of("/exec"), strlen(body), body);
    raw_send(fd, head, strlen(head));
    raw_head(fd, head, sizeof head);
    if (strncmp(head, "HTTP/1.1 101 ", 13) != 0)
        fail_msg("%s", head);
    char frame[EXEC_FRAME_HEADER_BYTES + 5];
    for (int round = 0; round < 3; round++) {
        exec_frame_header(frame, EXEC_FRAME_STDIN, 5);
        memcpy(frame + EXEC_FRAME_HEADER_BYTES, "salut", 5);
        raw_send(fd, frame, sizeof frame);
        assert_true(raw_read(fd, frame, sizeof frame));
        assert_int_equal(frame[0], EXEC_FRAME_STDOUT);
        assert_memory_equal(frame + EXEC_FRAME_HEADER_BYTES, "salut", 5);
    }
    exec_frame_header(frame, EXEC_FRAME_STDIN_END, 0);
    raw_send(fd, frame, EXEC_FRAME_HEADER_BYTES);
    assert_true(raw_read(fd, frame, 1));
    assert_int_equal(frame[0], EXEC_FRAME_EXIT);
    char byte;
    while (raw_read(fd, &byte, 1))
        ;
    (void)close(fd);
}

static void a_client_that_leaves_ends_its_command(void **state)
{
    (void)state;
    unsigned before = fake_get(&owner, canceled);
    char head[4096];
    int fd = raw_connect(&entry, true);
    (void)text_format(head, sizeof head,
                      "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nSkerry-Token: %s\r\n"
                      "Content-Length: 0\r\n\r\n",
                      path_of("/exec?command=sleep&command=60"), owner.admin);
    raw_send(fd, head, strlen(head));
    (void)poll(NULL, 0, 200);
    (void)close(fd);
    fake_wait_for(fake_get(&owner, canceled) == before + 1);
}

/* One answer of a connection that lives on: its head, and a body of the length that it says. */
static void raw_answer(int fd, char *head, size_t head_size, char *body, size_t body_size)
{
    raw_head(fd, head, head_size);
    const char *length = strcasestr(head, "content-length: ");
    if (length == NULL || strcasestr(head, "connection: close") != NULL)
        fail_msg("an answer after which the connection cannot go on: %s", head);
    size_t size = strtoul(length + strlen("content-length: "), NULL, 10);
    assert_true(size < body_size);
    assert_true(raw_read(fd, body, size));
    body[size] = '\0';
}

static void requests_that_stay_and_that_travel_share_a_connection(void **state)
{
    (void)state;
    char request[512], head[8192], body[8192];
    int fd = raw_connect(&entry, false);
    for (unsigned i = 0; i < 100; i++) {
        bool travels = i % 2 == 1;
        (void)text_format(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n",
                          travels ? path_of("") : "/v1/version");
        raw_send(fd, request, strlen(request));
        raw_answer(fd, head, sizeof head, body, sizeof body);
        assert_non_null(strstr(head, "200 OK"));
        assert_non_null(strstr(body, travels ? instance.text : "\"version\""));
    }
    (void)close(fd);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    (void)state;
    char requests[4096], head[8192], body[8192];
    int fd = raw_connect(&entry, false);
    fake_set(&owner, extended_ms, 0);
    (void)text_format(requests, sizeof requests,
                      "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
                      "GET /v1/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
                      "POST %s/extend HTTP/1.1\r\nHost: localhost\r\n"
                      "Transfer-Encoding: chunked\r\n\r\n"
                      "d\r\n{\"for\":\"70s\"}\r\n0\r\nX-Late: 1\r\n\r\n"
                      "HEAD %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
                      "GET /v1/version HTTP/1.1\r\nHost: localhost\r\n\r\n",
                      path_of(""), path_of(""), path_of(""));
    raw_send(fd, requests, strlen(requests));
    raw_answer(fd, head, sizeof head, body, sizeof body);
    assert_non_null(strstr(body, instance.text));
    raw_answer(fd, head, sizeof head, body, sizeof body);
    assert_non_null(strstr(body, "\"version\""));
    raw_answer(fd, head, sizeof head, body, sizeof body);
    assert_non_null(strstr(head, "200 OK"));
    assert_int_equal(fake_get(&owner, extended_ms), 70000);
    raw_head(fd, head, sizeof head); /* of HEAD: no body follows */
    assert_non_null(strstr(head, "200 OK"));
    assert_non_null(strcasestr(head, "content-length: "));
    raw_answer(fd, head, sizeof head, body, sizeof body);
    assert_non_null(strstr(body, "\"version\""));
    (void)close(fd);
}

static void a_client_that_expects_is_answered_before_its_body(void **state)
{
    (void)state;
    char request[1024], head[8192];
    int fd = raw_connect(&entry, true);
    (void)text_format(request, sizeof request,
                      "PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nSkerry-Token: %s\r\n"
                      "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n",
                      path_of("/files?plain=1&path=/tmp/x"), entry.admin);
    raw_send(fd, request, strlen(request));
    raw_head(fd, head, sizeof head); /* the owner knows no such token */
    assert_non_null(strstr(head, " 401 "));
    (void)close(fd);
    fd = raw_connect(&entry, true);
    (void)text_format(request, sizeof request,
                      "PUT %s%s/expected HTTP/1.1\r\nHost: 127.0.0.1\r\nSkerry-Token: %s\r\n"
                      "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n",
                      path_of("/files?plain=1&path="), owner.directory, owner.admin);
    raw_send(fd, request, strlen(request));
    raw_head(fd, head, sizeof head);
    assert_non_null(strstr(head, " 100 "));
    raw_send(fd, "3\r\nabc\r\n", 8);
    raw_send(fd, "2;x=y\r\nde\r\n0\r\n\r\n", 16);
    raw_head(fd, head, sizeof head);
    assert_non_null(strstr(head, " 204 "));
    (void)text_format(request, sizeof request, "%s/expected", owner.directory);
    char text[16] = "";
    int file = open(request, O_RDONLY | O_CLOEXEC);
    assert_true(file >= 0);
    assert_int_equal(read(file, text, sizeof text), 5);
    assert_memory_equal(text, "abcde", 5);
    (void)close(file);
    (void)close(fd);
}

static void trailers_come_back(void **state)
{
    (void)state;
    struct request q = {.method = "POST",
                        .path = path_of("/exec"),
                        .headers = {"Content-Type: application/json"},
                        .body =
                            "{\"command\":[\"sh\",\"-c\",\"head -c 300000 /dev/zero; exit 7\"]}"};
    struct answer a = client(&entry, &q);
    assert_int_equal(a.status, 200);
    assert_int_equal(a.length, 300000);
    assert_non_null(strstr(a.headers, "Skerry-Exit-Code: 7"));
    answer_free(&a);
}

static void what_two_readers_could_take_differently_does_not_travel(void **state)
{
    (void)state;
    static const char *const fields[] = {"Content-Length: 2\r\nContent-Length: 3\r\n",
                                         "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                                         "Transfer-Encoding: gzip, chunked\r\n",
                                         "X: a\rY: b\r\n",
                                         "Bad Name: a\r\n",
                                         "X: \001\r\n"};
    for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
        char request[1024], head[8192], body[8192];
        int fd = raw_connect(&entry, false);
        /* Behind a first request, which the gateway's reader looks at. */
        raw_send(fd, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 41);
        raw_answer(fd, head, sizeof head, body, sizeof body);
        fake_set(&owner, extended_ms, 0);
        (void)text_format(request, sizeof request,
                          "POST %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n2\r\n{}\r\n0\r\n\r\n",
                          path_of("/extend?for=80s"), fields[i]);
        raw_send(fd, request, strlen(request));
        raw_head(fd, head, sizeof head);
        if (strstr(head, " 200 ") != NULL || fake_get(&owner, extended_ms) != 0)
            fail_msg("%s went through", fields[i]);
        (void)close(fd);
    }
}

static void an_owner_that_is_away_is_told(void **state)
{
    (void)state;
    __atomic_store_n(&away, true, __ATOMIC_SEQ_CST);
    uint64_t begun = clock_monotonic_ms();
    struct answer a = client(&entry, &(struct request){.method = "POST", .path = path_of("/stop")});
    assert_int_equal(a.status, 503);
    assert_non_null(strstr(a.body, "\"owner_unreachable\""));
    assert_non_null(strstr(a.body, "node2"));
    assert_non_null(strstr(a.body, "\"ran\":\"no\""));
    assert_non_null(strstr(a.headers, "Retry-After: 1"));
    answer_free(&a);
    assert_true(clock_monotonic_ms() - begun < 1000 + 1000);
    /* What the registry knows is answered here. */
    client_refused(&entry, &(struct request){.path = path_of("")}, PROBLEM_INSTANCE_UNKNOWN);
    __atomic_store_n(&away, false, __ATOMIC_SEQ_CST);
}

static void what_is_passed_on_is_not_passed_on_again(void **state)
{
    (void)state;
    /* The owner thinks that it is node 3 (as_owner), and all of the above was of node 2. */
    json_decref(client_json(&entry, &(struct request){.path = path_of("")}, 200));
    struct instance_id gone;
    uint8_t random[11] = {1, 2, 3};
    char path[128];
    instance_id_make(&gone, 7, random); /* of a node that never was: answered here */
    (void)text_format(path, sizeof path, "/v1/instances/%s", gone.text);
    client_refused(&entry, &(struct request){.path = path}, PROBLEM_INSTANCE_UNKNOWN);
}

static void a_record_reads_as_it_was_written(void **state)
{
    (void)state;
    uint8_t bytes[API_RELAY_RECORD_BYTES_MAX];
    struct api_relay_record in = {.trusted = true, .local = true, .who = "uid 0"}, out;
    size_t length = api_relay_record_write(&in, bytes);
    for (size_t part = 0; part < length; part++)
        assert_int_equal(api_relay_record_read(&out, bytes, part), 0);
    assert_int_equal(api_relay_record_read(&out, bytes, length), length);
    assert_true(out.trusted && out.local);
    assert_string_equal(out.who, "uid 0");
    bytes[0] = 1; /* trusted, and not over the unix socket */
    assert_int_equal(api_relay_record_read(&out, bytes, length), -1);
    bytes[0] = 4;
    assert_int_equal(api_relay_record_read(&out, bytes, length), -1);
    bytes[0] = 0;
    bytes[1] = 64;
    assert_int_equal(api_relay_record_read(&out, bytes, sizeof bytes), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_owner_answers),
        cmocka_unit_test(a_token_is_checked_by_the_owner),
        cmocka_unit_test(bodies_stream_both_ways),
        cmocka_unit_test(a_refusal_overtakes_a_long_body),
        cmocka_unit_test(exec_runs_over_an_upgraded_connection),
        cmocka_unit_test(a_client_that_leaves_ends_its_command),
        cmocka_unit_test(requests_that_stay_and_that_travel_share_a_connection),
        cmocka_unit_test(pipelined_requests_are_answered_in_order),
        cmocka_unit_test(a_client_that_expects_is_answered_before_its_body),
        cmocka_unit_test(trailers_come_back),
        cmocka_unit_test(what_two_readers_could_take_differently_does_not_travel),
        cmocka_unit_test(an_owner_that_is_away_is_told),
        cmocka_unit_test(what_is_passed_on_is_not_passed_on_again),
        cmocka_unit_test(a_record_reads_as_it_was_written),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
