#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <dirent.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/enroll_internal.h"
#include "node/cluster/enroll_io.h"
#include "node/node.h"
#include "tests/lib/registry_help.h"
#include "tests/lib/registry_lone.h"

#define CLUSTER "0123456789abcdef"
#define OTHER_CLUSTER "fedcba9876543210"

struct world {
    const char *advertise; /* of who joins */
    struct lone lone;
    char *directory;
    struct identity *member, *joiner, *other;
    struct enroll *enroll;
    char address[ADDRESS_TEXT_SIZE], peer[ADDRESS_TEXT_SIZE];
    char data[64];
    bool enroll_closed;
    bool hold; /* proposals are kept */
    registry_result_cb held_cb;
    void *held_user;
};

static int64_t clock_shift_ms; /* of the joiner */

static uint64_t joiner_wall_ms(void)
{
    return clock_wall_ms() + (uint64_t)clock_shift_ms;
}

/* --- a member ------------------------------------------------------------------------------------- */

static int propose(void *user, const struct registry_command *command, registry_result_cb cb,
                   void *cb_user, struct err *e)
{
    struct world *w = user;
    if (w->hold) {
        w->held_cb = cb;
        w->held_user = cb_user;
        return 0;
    }
    return registry_propose(w->lone.registry, command, cb, cb_user, e);
}

static struct registry_root *root_of(void *user)
{
    return registry_root(((struct world *)user)->lone.registry);
}

static void make_cluster(struct world *w)
{
    uint8_t key[32];
    struct registry_node self = {.id = 0};
    memset(key, 7, sizeof key);
    struct registry_command init = {
        .kind = REGISTRY_CLUSTER_INIT, .wall_ms = 1, .cluster_id = CLUSTER, .gossip_key = key};
    assert_int_equal(lone_propose(&w->lone, &init).problem, PROBLEM_NONE);
    (void)text_copy(self.name, sizeof self.name, "node1");
    (void)text_copy(self.address, sizeof self.address, w->peer);
    memcpy(self.public_key, identity_public(w->member)->bytes, 32);
    struct registry_command put = {.kind = REGISTRY_NODE_PUT, .wall_ms = 1, .node = &self};
    struct registry_result r = lone_propose(&w->lone, &put);
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_int_equal(r.node, 1);
}

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct err e = {0};
    clock_shift_ms = 0;
    assert_int_equal(identity_new(&w->member, &e), 0);
    assert_int_equal(identity_new(&w->joiner, &e), 0);
    assert_int_equal(identity_new(&w->other, &e), 0);
    w->directory = help_directory();
    lone_start(&w->lone, w->directory);
    /* Ports of this test alone, by process. */
    int port = 22000 + 4 * (int)(getpid() % 1000);
    (void)text_format(w->peer, sizeof w->peer, "127.0.9.1:%d", port);
    (void)text_format(w->address, sizeof w->address, "127.0.9.1:%d", port + 3);
    w->advertise = "127.0.9.2:7600";
    make_cluster(w);
    struct enroll_options o = {.identity = w->member,
                               .address = w->address,
                               .name = "node1",
                               .id = 1,
                               .nodes_max = 2,
                               .user = w,
                               .propose = propose,
                               .root = root_of};
    if (enroll_open(&w->enroll, &w->lone.loop, &o, &e) != 0)
        fail_msg("%s", e.msg);
    (void)text_copy(w->data, sizeof w->data, "/tmp/skerry-enroll-XXXXXX");
    assert_non_null(mkdtemp(w->data));
    *state = w;
    return 0;
}

static void enroll_closed_cb(void *user)
{
    ((struct world *)user)->enroll_closed = true;
}

static void remove_folder(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            assert_int_equal(unlinkat(dirfd(dir), entry->d_name, 0), 0);
    }
    closedir(dir);
    assert_int_equal(rmdir(path), 0);
}

static int tear_down(void **state)
{
    struct world *w = *state;
    if (w->enroll != NULL)
        enroll_close(w->enroll, enroll_closed_cb);
    lone_run_until(&w->lone, &w->enroll_closed);
    lone_stop(&w->lone); /* checks that the loop is empty */
    help_directory_remove(w->directory);
    identity_free(w->member);
    identity_free(w->joiner);
    identity_free(w->other);
    remove_folder(w->data);
    free(w);
    return 0;
}

/* --- a token -------------------------------------------------------------------------------------- */

struct invitation {
    struct registry_token token;
    char text[ENROLL_TOKEN_TEXT_SIZE];
};

static void invite_to(struct world *w, struct invitation *i, const char *cluster,
                      const struct identity *maker, uint64_t expires_wall_ms)
{
    struct identity_fingerprint print;
    struct err e = {0};
    *i = (struct invitation){.token.expires_wall_ms = expires_wall_ms};
    identity_fingerprint(identity_public(maker), &print);
    assert_int_equal(enroll_token_make(&i->token, i->text, cluster, &print, &e), 0);
    struct registry_command put = {
        .kind = REGISTRY_TOKEN_PUT, .wall_ms = clock_wall_ms(), .token = &i->token};
    assert_int_equal(lone_propose(&w->lone, &put).problem, PROBLEM_NONE);
}

static void invite(struct world *w, struct invitation *i)
{
    invite_to(w, i, CLUSTER, w->member, 0);
}

static bool token_is_there(struct world *w, const char *id)
{
    struct registry_root *root = registry_root(w->lone.registry);
    bool there = registry_root_token(root, id, strlen(id)) != NULL;
    registry_root_release(root);
    return there;
}

/* --- joining, in a thread as the member's loop has to run ------------------------------------------- */

struct attempt {
    struct enroll_join_options options;
    const char *peers[1];
    struct membership membership;
    struct err e;
    int rc;
    bool done;
    uv_async_t async;
};

static void *join_main(void *user)
{
    struct attempt *a = user;
    a->rc = enroll_join(&a->options, &a->membership, &a->e);
    uv_async_send(&a->async);
    return NULL;
}

static void joined_cb(uv_async_t *async)
{
    ((struct attempt *)async->data)->done = true;
    uv_close((uv_handle_t *)async, NULL);
}

static void join_as(struct world *w, struct attempt *a, const struct identity *identity,
                    const char *name, const char *token)
{
    pthread_t thread;
    *a = (struct attempt){.peers = {w->peer}};
    a->options = (struct enroll_join_options){.data = w->data,
                                              .identity = identity,
                                              .name = name,
                                              .advertise = w->advertise,
                                              .peers = a->peers,
                                              .peer_count = 1,
                                              .token = token,
                                              .timeout_ms = 300,
                                              .wall_ms = joiner_wall_ms};
    assert_int_equal(uv_async_init(&w->lone.loop, &a->async, joined_cb), 0);
    a->async.data = a;
    assert_int_equal(pthread_create(&thread, NULL, join_main, a), 0);
    lone_run_until(&w->lone, &a->done);
    assert_int_equal(pthread_join(thread, NULL), 0);
    uv_run(&w->lone.loop, UV_RUN_NOWAIT);
}

static void refused_as(struct world *w, const struct identity *identity, const char *name,
                       const char *token, const char *says)
{
    struct attempt a;
    join_as(w, &a, identity, name, token);
    assert_int_equal(a.rc, -ERR_DENIED);
    if (strstr(a.e.msg, says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", a.e.msg, says);
    assert_null(strstr(a.e.msg, "skn_"));
}

static void a_machine_with_a_token_becomes_a_node(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct attempt a;
    struct membership kept;
    struct known known;
    struct err e = {0};
    invite(w, &i);
    join_as(w, &a, w->joiner, "node2", i.text);
    if (a.rc != 0)
        fail_msg("%s", a.e.msg);
    assert_int_equal(a.membership.id, 2);
    assert_string_equal(a.membership.cluster_id, CLUSTER);
    assert_int_equal(a.membership.gossip_key_count, 1);
    assert_int_equal(a.membership.gossip_keys[0][5], 7);
    assert_int_equal(membership_load(&kept, w->data, &e), 0);
    assert_memory_equal(&kept, &a.membership, sizeof kept);
    assert_int_equal(known_load(&known, w->data, &e), 0);
    assert_string_equal(known_find(&known, 1)->address, w->peer);
    assert_true(identity_public_equal(&known_find(&known, 1)->key, identity_public(w->member)));
    assert_non_null(known_find(&known, 2));
    assert_int_equal(known.next, 3);
    known_free(&known);
    struct registry_root *root = registry_root(w->lone.registry);
    const struct registry_node *n = registry_root_node(root, 2);
    assert_string_equal(n->name, "node2");
    assert_string_equal(n->address, "127.0.9.2:7600");
    assert_memory_equal(n->public_key, identity_public(w->joiner)->bytes, 32);
    registry_root_release(root);
    assert_false(token_is_there(w, i.token.id));
}

static void a_token_is_good_once(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct attempt a;
    invite(w, &i);
    join_as(w, &a, w->joiner, "node2", i.text);
    assert_int_equal(a.rc, 0);
    refused_as(w, w->other, "node3", i.text, "was used");
    assert_int_equal(refusals_count(enroll_refusals(w->enroll), ENROLL_REFUSED_TOKEN), 1);
}

/* The answer was lost after the registry had taken it. */
static void who_asks_again_with_its_key_gets_its_id_again(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct attempt a;
    invite(w, &i);
    join_as(w, &a, w->joiner, "node2", i.text);
    join_as(w, &a, w->joiner, "node2", i.text);
    assert_int_equal(a.rc, 0);
    assert_int_equal(a.membership.id, 2);
}

static void a_node_of_the_same_name_is_replaced(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct attempt a;
    invite(w, &i);
    join_as(w, &a, w->joiner, "node2", i.text);
    invite(w, &i);
    join_as(w, &a, w->other, "node2", i.text);
    assert_int_equal(a.rc, 0);
    assert_int_equal(a.membership.id, 3);
    struct registry_root *root = registry_root(w->lone.registry);
    assert_null(registry_root_node(root, 2));
    registry_root_release(root);
}

static void an_address_of_another_node_is_refused(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct attempt a;
    invite(w, &i);
    join_as(w, &a, w->joiner, "node2", i.text);
    invite(w, &i);
    refused_as(w, w->other, "node3", i.text, "is the address of node2");
    assert_true(token_is_there(w, i.token.id));
}

static void a_full_cluster_takes_only_who_replaces_a_node(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct attempt a;
    invite(w, &i);
    join_as(w, &a, w->joiner, "node2", i.text);
    assert_int_equal(a.rc, 0);
    invite(w, &i);
    w->advertise = "127.0.9.3:7600";
    refused_as(w, w->other, "node3", i.text, "the cluster has its 2 nodes: remove one first");
    assert_int_equal(refusals_count(enroll_refusals(w->enroll), ENROLL_REFUSED_FULL), 1);
    join_as(w, &a, w->other, "node2", i.text);
    assert_int_equal(a.rc, 0);
}

static void a_wrong_secret_is_refused_as_an_unknown_token_is(void **state)
{
    struct world *w = *state;
    struct invitation i;
    invite(w, &i);
    i.text[30] = i.text[30] == '7' ? '8' : '7';
    refused_as(w, w->joiner, "node2", i.text, "is not known");
    i.text[6] = i.text[6] == '7' ? '8' : '7';
    refused_as(w, w->joiner, "node2", i.text, "is not known");
    assert_true(token_is_there(w, i.token.id));
}

static void a_token_of_another_kind_is_refused(void **state)
{
    struct world *w = *state;
    struct invitation i;
    invite(w, &i);
    /* The same secret, registered for something else. */
    struct registry_command revoke = {
        .kind = REGISTRY_TOKEN_REVOKE, .wall_ms = 1, .token = &i.token};
    assert_int_equal(lone_propose(&w->lone, &revoke).problem, PROBLEM_NONE);
    i.token.role = TOKEN_ROLE_ADMIN;
    struct registry_command put = {.kind = REGISTRY_TOKEN_PUT, .wall_ms = 1, .token = &i.token};
    assert_int_equal(lone_propose(&w->lone, &put).problem, PROBLEM_NONE);
    refused_as(w, w->joiner, "node2", i.text, "is not known");
}

static void an_expired_token_is_refused(void **state)
{
    struct world *w = *state;
    struct invitation i;
    invite_to(w, &i, CLUSTER, w->member, clock_wall_ms() + 100);
    while (clock_wall_ms() < i.token.expires_wall_ms)
        usleep(10000);
    refused_as(w, w->joiner, "node2", i.text, "expired 0 s ago");
}

static void clocks_too_far_apart_are_refused_with_the_side(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct attempt a;
    invite(w, &i);
    clock_shift_ms = 7000;
    refused_as(w, w->joiner, "node2", i.text, " s ahead of that of node1");
    clock_shift_ms = -60000;
    refused_as(w, w->joiner, "node2", i.text, "the clock of node2 is 60.");
    refused_as(w, w->joiner, "node2", i.text, " s behind that of node1");
    assert_int_equal(refusals_count(enroll_refusals(w->enroll), ENROLL_REFUSED_CLOCK), 3);
    clock_shift_ms = -2000;
    join_as(w, &a, w->joiner, "node2", i.text);
    assert_int_equal(a.rc, 0);
}

static void a_token_of_another_cluster_is_refused(void **state)
{
    struct world *w = *state;
    struct invitation i;
    invite_to(w, &i, OTHER_CLUSTER, w->member, 0);
    refused_as(w, w->joiner, "node2", i.text, OTHER_CLUSTER);
}

/* Its key does not hash to the token's print: it never sees the token. */
static void a_peer_that_did_not_make_the_token_is_told_nothing(void **state)
{
    struct world *w = *state;
    struct invitation i;
    invite_to(w, &i, CLUSTER, w->other, 0);
    refused_as(w, w->joiner, "node2", i.text, "none of the peers");
    for (unsigned k = 0; k < ENROLL_REFUSAL_COUNT; k++) {
        if (k != ENROLL_REFUSED_FORMAT)
            assert_int_equal(refusals_count(enroll_refusals(w->enroll), k), 0);
    }
    assert_true(token_is_there(w, i.token.id));
}

static void what_the_joiner_itself_can_see_is_refused_there(void **state)
{
    struct world *w = *state;
    struct membership m;
    struct invitation i;
    struct err e = {0};
    const char *peers[] = {"8.8.8.8:7600"};
    invite(w, &i);
    struct enroll_join_options o = {.data = w->data,
                                    .identity = w->joiner,
                                    .name = "node2",
                                    .advertise = "127.0.9.2:7600",
                                    .peers = peers,
                                    .peer_count = 1,
                                    .token = i.text,
                                    .timeout_ms = 100};
    assert_int_equal(enroll_join(&o, &m, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "8.8.8.8"));
    peers[0] = w->peer;
    o.advertise = "1.1.1.1:7600";
    assert_int_equal(enroll_join(&o, &m, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "1.1.1.1"));
    o.advertise = "127.0.9.2:7600";
    o.token = "skt_0123456789abcdef_0123";
    assert_int_equal(enroll_join(&o, &m, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "for the API"));
    o.token = "";
    assert_int_equal(enroll_join(&o, &m, &e), -ERR_INVALID);
    o.token = i.text;
    o.name = "Node_2";
    assert_int_equal(enroll_join(&o, &m, &e), -ERR_INVALID);
}

static void nobody_there_is_told_after_the_time(void **state)
{
    struct world *w = *state;
    struct membership m;
    struct invitation i;
    struct err e = {0};
    const char *peers[] = {"127.0.9.77:7600", "127.0.9.78:7600"};
    invite(w, &i);
    struct enroll_join_options o = {.data = w->data,
                                    .identity = w->joiner,
                                    .name = "node2",
                                    .advertise = "127.0.9.2:7600",
                                    .peers = peers,
                                    .peer_count = 2,
                                    .token = i.text,
                                    .timeout_ms = 100};
    assert_int_equal(enroll_join(&o, &m, &e), -ERR_UNAVAILABLE);
    assert_non_null(strstr(e.msg, "127.0.9.78"));
}

/* --- who does not keep to it ------------------------------------------------------------------------ */

struct raw {
    struct world *w;
    struct secure_context *context;
    struct secure_stream *stream;
    struct buffer in, out;
    bool answered, ended, closed; /* a whole answer; the member closed */
};

static bool no_key(void *user, node_id id, struct identity_public *out)
{
    (void)user;
    (void)id;
    (void)out;
    return false;
}

static void raw_step(struct raw *r)
{
    if (r->out.length > 0 && enroll_send(r->stream, &r->out) == ENROLL_IO_BROKEN)
        r->ended = true;
    enum enroll_io io = enroll_receive(r->stream, &r->in, ENROLL_ANSWER_BYTES_MAX);
    r->answered |= io == ENROLL_IO_DONE;
    r->ended |= io != ENROLL_IO_WAIT;
    if (r->ended)
        secure_stream_want(r->stream, 0);
}

static void raw_ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    (void)readable;
    (void)writable;
    raw_step(secure_stream_user(s));
}

static void raw_opened_cb(struct secure_stream *s, const struct err *error)
{
    struct raw *r = secure_stream_user(s);
    r->ended = error != NULL;
    if (error == NULL) {
        secure_stream_want(s, SECURE_WANT_READ);
        raw_step(r);
    }
}

static void raw_closed_cb(void *user)
{
    ((struct raw *)user)->closed = true;
}

static void raw_begin(struct world *w, struct raw *r)
{
    struct sockaddr_storage address;
    struct identity_fingerprint print;
    struct err e = {0};
    const struct secure_context_options secure = {.identity = w->joiner, .key_of = no_key};
    *r = (struct raw){.w = w};
    buffer_init(&r->in, ENROLL_LENGTH_BYTES + ENROLL_ANSWER_BYTES_MAX);
    buffer_init(&r->out, 1u << 20);
    identity_fingerprint(identity_public(w->member), &print);
    assert_int_equal(secure_context_open(&r->context, &secure, &e), 0);
    assert_int_equal(address_parse(&address, w->address, 0, &e), 0);
    struct secure_connect_options o = {.context = r->context,
                                       .address = &address,
                                       .protocol = SECURE_ENROLL,
                                       .fingerprint = &print,
                                       .timeout_ms = 5000,
                                       .events = {.opened = raw_opened_cb, .ready = raw_ready_cb},
                                       .user = r};
    assert_int_equal(secure_stream_connect(&r->stream, &w->lone.loop, &o, &e), 0);
}

static void raw_end(struct raw *r)
{
    secure_stream_close(r->stream, raw_closed_cb);
    lone_run_until(&r->w->lone, &r->closed);
    secure_context_free(r->context);
    buffer_free(&r->in);
    buffer_free(&r->out);
}

static void good_request(struct enroll_request *r, const struct invitation *i)
{
    struct enroll_token token;
    struct err e = {0};
    assert_int_equal(enroll_token_parse(&token, i->text, &e), 0);
    *r = (struct enroll_request){
        .major = ENROLL_PROTOCOL_MAJOR, .wall_ms = clock_wall_ms(), .name = "node2"};
    memcpy(r->cluster_id, token.cluster_id, sizeof r->cluster_id);
    memcpy(r->token_id, token.id, sizeof r->token_id);
    memcpy(r->secret, token.secret, sizeof r->secret);
    (void)text_copy(r->address, sizeof r->address, "127.0.9.2:7600");
    (void)text_copy(r->version, sizeof r->version, "0.0.0");
}

static void raw_ask(struct world *w, const struct enroll_request *request,
                    struct enroll_answer *answer)
{
    struct raw r;
    struct err e = {0};
    raw_begin(w, &r);
    assert_true(enroll_request_write(request, &r.out));
    lone_run_until(&w->lone, &r.ended);
    assert_true(r.answered);
    int rc = enroll_answer_read(answer, (uint8_t *)r.in.data + ENROLL_LENGTH_BYTES,
                                r.in.length - ENROLL_LENGTH_BYTES, &e);
    if (rc != 0)
        fail_msg("%s", e.msg);
    known_free(&answer->known);
    raw_end(&r);
}

static void another_protocol_is_refused_with_words(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct enroll_request request;
    struct enroll_answer answer;
    invite(w, &i);
    good_request(&request, &i);
    request.major = 2;
    raw_ask(w, &request, &answer);
    assert_int_equal(answer.verdict, ENROLL_REFUSED);
    assert_non_null(strstr(answer.words, "protocol 2"));
    assert_int_equal(refusals_count(enroll_refusals(w->enroll), ENROLL_REFUSED_PROTOCOL), 1);
}

static void a_public_address_is_refused_by_the_member_too(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct enroll_request request;
    struct enroll_answer answer;
    invite(w, &i);
    good_request(&request, &i);
    (void)text_copy(request.address, sizeof request.address, "8.8.8.8:7600");
    raw_ask(w, &request, &answer);
    assert_int_equal(answer.verdict, ENROLL_REFUSED);
    assert_non_null(strstr(answer.words, "8.8.8.8"));
    good_request(&request, &i);
    (void)text_copy(request.name, sizeof request.name, "a name");
    raw_ask(w, &request, &answer);
    assert_int_equal(answer.verdict, ENROLL_REFUSED);
    assert_int_equal(refusals_count(enroll_refusals(w->enroll), ENROLL_REFUSED_NAME), 1);
    assert_true(token_is_there(w, i.token.id));
}

static void nonsense_is_refused(void **state)
{
    struct world *w = *state;
    struct raw r;
    raw_begin(w, &r);
    buffer_append(&r.out, "\xff\xff\xff\xff nonsense", 14);
    lone_run_until(&w->lone, &r.ended);
    assert_false(r.answered);
    raw_end(&r);
    raw_begin(w, &r);
    buffer_append(&r.out, "\0\0\0\x0cSKE\x01\0\x01\0\0what", 16);
    lone_run_until(&w->lone, &r.ended);
    assert_true(r.answered);
    raw_end(&r);
    assert_int_equal(refusals_count(enroll_refusals(w->enroll), ENROLL_REFUSED_FORMAT), 2);
}

static void silence_ends(void **state)
{
    struct world *w = *state;
    struct raw r[ENROLL_CONNECTIONS_MAX];
    for (unsigned k = 0; k < ENROLL_CONNECTIONS_MAX; k++)
        raw_begin(w, &r[k]);
    for (unsigned k = 0; k < ENROLL_CONNECTIONS_MAX; k++) {
        lone_run_until(&w->lone, &r[k].ended);
        assert_false(r[k].answered);
    }
    for (unsigned k = 0; k < ENROLL_CONNECTIONS_MAX; k++)
        raw_end(&r[k]);
    /* And there is room again. */
    struct invitation i;
    struct attempt a;
    invite(w, &i);
    join_as(w, &a, w->joiner, "node2", i.text);
    assert_int_equal(a.rc, 0);
}

static void who_asks_too_often_has_to_wait(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct enroll_request request;
    struct enroll_answer answer;
    invite(w, &i);
    good_request(&request, &i);
    request.secret[3] ^= 1;
    unsigned asked = 0;
    do
        raw_ask(w, &request, &answer);
    while (answer.verdict == ENROLL_REFUSED && ++asked < 10 * ENROLL_TRIES_MAX);
    assert_int_equal(answer.verdict, ENROLL_LATER);
    assert_true(asked >= ENROLL_TRIES_MAX);
    assert_true(refusals_count(enroll_refusals(w->enroll), ENROLL_REFUSED_BUSY) > 0);
}

static void confirmed(struct world *w, node_id id, const char *cluster, enum enroll_verdict verdict,
                      const char *words)
{
    struct enroll_request request = {
        .major = ENROLL_PROTOCOL_MAJOR, .wall_ms = clock_wall_ms(), .member = id};
    struct enroll_answer answer;
    (void)text_copy(request.cluster_id, sizeof request.cluster_id, cluster);
    raw_ask(w, &request, &answer);
    assert_int_equal(answer.verdict, verdict);
    if (strstr(answer.words, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", answer.words, words);
}

static void a_node_hears_whether_it_still_is_one(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct attempt a;
    confirmed(w, 2, CLUSTER, ENROLL_LATER, "node1 has not heard of node 2 yet");
    invite(w, &i);
    join_as(w, &a, w->joiner, "node2", i.text);
    assert_int_equal(a.rc, 0);
    confirmed(w, 2, CLUSTER, ENROLL_MEMBER, "");
    confirmed(w, 1, CLUSTER, ENROLL_LATER, "another key");
    confirmed(w, 2, OTHER_CLUSTER, ENROLL_LATER, "another cluster");
    struct registry_node gone = {.id = 2};
    const uint8_t key[32] = {8};
    struct registry_command remove = {
        .kind = REGISTRY_NODE_REMOVE, .wall_ms = clock_wall_ms(), .node = &gone, .gossip_key = key};
    assert_int_equal(lone_propose(&w->lone, &remove).problem, PROBLEM_NONE);
    confirmed(w, 2, CLUSTER, ENROLL_REMOVED, "");
    confirmed(w, 3, CLUSTER, ENROLL_LATER, "node 3");
}

/* The member stops while its proposal is under way. */
static void closing_waits_for_the_registry(void **state)
{
    struct world *w = *state;
    struct invitation i;
    struct enroll_request request;
    struct raw r;
    struct err e = {.code = ERR_CANCELED};
    bool held = false;
    invite(w, &i);
    good_request(&request, &i);
    w->hold = true;
    raw_begin(w, &r);
    assert_true(enroll_request_write(&request, &r.out));
    while (w->held_cb == NULL)
        uv_run(&w->lone.loop, UV_RUN_ONCE);
    enroll_close(w->enroll, enroll_closed_cb);
    w->enroll = NULL;
    lone_run_until(&w->lone, &r.ended);
    raw_end(&r);
    assert_false(w->enroll_closed);
    held = true;
    w->held_cb(w->held_user, &e, NULL);
    assert_true(held);
    lone_run_until(&w->lone, &w->enroll_closed);
}

/* --- texts ---------------------------------------------------------------------------------------- */

static void token_texts_are_read_strictly(void **state)
{
    struct world *w = *state;
    struct registry_token t = {0};
    struct identity_fingerprint print;
    struct enroll_token token;
    char text[ENROLL_TOKEN_TEXT_SIZE], other[ENROLL_TOKEN_TEXT_SIZE + 8];
    struct err e = {0};
    identity_fingerprint(identity_public(w->member), &print);
    assert_int_equal(enroll_token_make(&t, text, CLUSTER, &print, &e), 0);
    assert_int_equal(t.role, TOKEN_ROLE_NODE);
    (void)text_format(other, sizeof other, "\n %s\r\n", text);
    assert_int_equal(enroll_token_parse(&token, other, &e), 0);
    assert_string_equal(token.id, t.id);
    assert_string_equal(token.cluster_id, CLUSTER);
    assert_memory_equal(token.member.bytes, print.bytes, 32);
    assert_true(node_token_matches(&t, token.secret));
    for (size_t length = strlen(text); length-- > 0;) {
        (void)text_copy(other, sizeof other, text);
        other[length] = '\0';
        assert_int_not_equal(enroll_token_parse(&token, other, &e), 0);
    }
    for (size_t at = 0; at < strlen(text); at++) {
        (void)text_copy(other, sizeof other, text);
        other[at] = '!';
        assert_int_not_equal(enroll_token_parse(&token, other, &e), 0);
    }
    (void)text_format(other, sizeof other, "%sx", text);
    assert_int_not_equal(enroll_token_parse(&token, other, &e), 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_machine_with_a_token_becomes_a_node),
        CASE(a_token_is_good_once),
        CASE(who_asks_again_with_its_key_gets_its_id_again),
        CASE(a_node_of_the_same_name_is_replaced),
        CASE(an_address_of_another_node_is_refused),
        CASE(a_full_cluster_takes_only_who_replaces_a_node),
        CASE(a_wrong_secret_is_refused_as_an_unknown_token_is),
        CASE(a_token_of_another_kind_is_refused),
        CASE(an_expired_token_is_refused),
        CASE(clocks_too_far_apart_are_refused_with_the_side),
        CASE(a_token_of_another_cluster_is_refused),
        CASE(a_peer_that_did_not_make_the_token_is_told_nothing),
        CASE(what_the_joiner_itself_can_see_is_refused_there),
        CASE(nobody_there_is_told_after_the_time),
        CASE(another_protocol_is_refused_with_words),
        CASE(a_public_address_is_refused_by_the_member_too),
        CASE(nonsense_is_refused),
        CASE(silence_ends),
        CASE(who_asks_too_often_has_to_wait),
        CASE(a_node_hears_whether_it_still_is_one),
        CASE(closing_waits_for_the_registry),
        CASE(token_texts_are_read_strictly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
