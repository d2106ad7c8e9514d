#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/private_file.h"
#include "node/cluster/internal.h"

enum { NODES = 3, WAIT_MS = 20000 };

struct end {
    struct world *w;
    node_id id;
    char data[64], address[ADDRESS_TEXT_SIZE];
    struct membership membership;
    struct cluster *cluster;
    struct identity_public key;
    bool closed, left, removed, impostor;
    unsigned changed, asked, accepted, streams_closed;
    struct secure_stream *stream; /* the last accepted */
};

struct world {
    uv_loop_t loop;
    struct end ends[NODES + 1];
    struct membership membership; /* of node 1 */
    struct known known;           /* what the registry would say */
};

/* --- a small cluster ------------------------------------------------------------------------------ */

static void tick_cb(uv_timer_t *timer)
{
    (void)timer;
}

static void flag_cb(uv_handle_t *handle)
{
    *(bool *)handle->data = true;
}

static bool wait_until(struct world *w, bool (*done)(void *user), void *user)
{
    uv_timer_t timer;
    bool closed = false;
    uint64_t until_ms = clock_monotonic_ms() + WAIT_MS;
    uv_timer_init(&w->loop, &timer);
    uv_timer_start(&timer, tick_cb, 5, 5);
    while (!done(user) && clock_monotonic_ms() < until_ms)
        uv_run(&w->loop, UV_RUN_ONCE);
    timer.data = &closed;
    uv_close((uv_handle_t *)&timer, flag_cb);
    while (!closed)
        uv_run(&w->loop, UV_RUN_NOWAIT);
    return done(user);
}

static void asked_cb(void *user, struct peer_question *q)
{
    struct end *end = user;
    size_t size = 0;
    const uint8_t *payload = peer_question_payload(q, &size);
    end->asked++;
    peer_question_answer(q, payload, size);
}

static void stream_closed_cb(void *user)
{
    ((struct end *)user)->streams_closed++;
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    struct end *end = user;
    struct secure_events none = {0};
    end->accepted++;
    secure_stream_set_events(s, &none, end);
    secure_stream_close(s, stream_closed_cb);
}

static void changed_cb(void *user)
{
    ((struct end *)user)->changed++;
}

static void left_cb(void *user)
{
    ((struct end *)user)->left = true;
}

static void removed_cb(void *user)
{
    ((struct end *)user)->removed = true;
}

static void impostor_cb(void *user)
{
    ((struct end *)user)->impostor = true;
}

static int try_start(struct world *w, struct end *end, struct err *e)
{
    struct gossip_meta meta = {.cpu_millis = 4000, .memory_bytes = 1ull << 30};
    struct cluster_options o = {.data = end->data,
                                .bind = end->address,
                                .advertise = end->address,
                                .membership = &end->membership,
                                .meta = &meta,
                                .user = end,
                                .asked = asked_cb,
                                .accepted = accepted_cb,
                                .changed = changed_cb,
                                .left = left_cb,
                                .removed = removed_cb,
                                .impostor = impostor_cb};
    (void)text_format(meta.name, sizeof meta.name, "node%llu", (unsigned long long)end->id);
    (void)text_copy(meta.zone, sizeof meta.zone, "a");
    int rc = cluster_open(&end->cluster, &w->loop, &o, e);
    if (rc == 0) {
        end->key = *identity_public(cluster_identity(end->cluster));
        end->closed = false;
    }
    return rc;
}

static void start(struct world *w, node_id id)
{
    struct err e = {0};
    if (try_start(w, &w->ends[id], &e) != 0)
        fail_msg("%s", e.msg);
}

static void closed_cb(void *user)
{
    ((struct end *)user)->closed = true;
}

static bool is_closed(void *user)
{
    return ((struct end *)user)->closed;
}

static void stop(struct world *w, node_id id)
{
    struct end *end = &w->ends[id];
    cluster_close(end->cluster, closed_cb);
    end->cluster = NULL;
    assert_true(wait_until(w, is_closed, end));
}

static void describe(struct end *end, struct known_node *out)
{
    *out = (struct known_node){.id = end->id, .has_key = true, .key = end->key};
    (void)text_format(out->name, sizeof out->name, "node%llu", (unsigned long long)end->id);
    (void)text_copy(out->address, sizeof out->address, end->address);
}

/* What a registry would say with these nodes in it, told to all that run. */
static void register_nodes(struct world *w, const node_id *ids, size_t count)
{
    struct err e = {0};
    uint64_t index = w->known.index + 1;
    known_free(&w->known);
    w->known = (struct known){.index = index, .next = NODES + 1};
    for (size_t i = 0; i < count; i++) {
        struct known_node node;
        describe(&w->ends[ids[i]], &node);
        assert_int_equal(known_add(&w->known, &node, &e), 0);
    }
    for (node_id id = 1; id <= NODES; id++) {
        if (w->ends[id].cluster != NULL)
            cluster_learn(w->ends[id].cluster, &w->known, false);
    }
}

static void register_all(struct world *w)
{
    register_nodes(w, (const node_id[]){1, 2, 3}, 3);
}

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    assert_int_equal(uv_loop_init(&w->loop), 0);
    membership_make(&w->membership);
    for (node_id id = 1; id <= NODES; id++) {
        struct end *end = &w->ends[id];
        end->w = w;
        end->id = id;
        end->membership = w->membership;
        end->membership.id = id;
        (void)text_copy(end->data, sizeof end->data, "/tmp/skerry-cluster-XXXXXX");
        assert_non_null(mkdtemp(end->data));
        /* Ports of this test alone, by process. */
        (void)text_format(end->address, sizeof end->address, "127.0.8.%d:%d", (int)id,
                          18000 + 4 * (int)(getpid() % 1000));
        start(w, id);
    }
    register_all(w);
    *state = w;
    return 0;
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
    for (node_id id = 1; id <= NODES; id++) {
        if (w->ends[id].cluster != NULL)
            stop(w, id);
        remove_folder(w->ends[id].data);
    }
    known_free(&w->known);
    assert_int_equal(uv_run(&w->loop, UV_RUN_DEFAULT), 0);
    assert_int_equal(uv_loop_close(&w->loop), 0);
    free(w);
    return 0;
}

/* --- gossip --------------------------------------------------------------------------------------- */

static unsigned alive_at(const struct end *end)
{
    struct cluster_node node;
    unsigned alive = 0;
    for (node_id at = 0; cluster_next(end->cluster, &at, &node);)
        alive += node.state == GOSSIP_ALIVE && node.meta.zone[0] == 'a';
    return alive;
}

static bool all_alive(void *user)
{
    struct world *w = user;
    for (node_id id = 1; id <= NODES; id++) {
        if (w->ends[id].cluster != NULL && alive_at(&w->ends[id]) != NODES)
            return false;
    }
    return true;
}

static void nodes_of_the_registry_find_each_other(void **state)
{
    struct world *w = *state;
    struct cluster_node node;
    struct sockaddr_storage address;
    char text[ADDRESS_TEXT_SIZE], wanted[ADDRESS_TEXT_SIZE];
    assert_true(wait_until(w, all_alive, w));
    assert_true(cluster_get(w->ends[1].cluster, 2, &node));
    assert_string_equal(node.meta.name, "node2");
    assert_int_equal(node.meta.cpu_millis, 4000);
    assert_false(node.self);
    assert_true(w->ends[1].changed > 0);
    (void)text_format(wanted, sizeof wanted, "127.0.8.3:%d",
                      18000 + 4 * (int)(getpid() % 1000) + 3);
    assert_true(cluster_address(w->ends[1].cluster, 3, CLUSTER_PORT_ENROLL, &address));
    address_format(&address, text);
    assert_string_equal(text, wanted);
    assert_false(cluster_address(w->ends[1].cluster, 9, CLUSTER_PORT_PEER, &address));
}

static bool load_of_1_at_2(void *user)
{
    struct world *w = user;
    struct cluster_node node;
    return cluster_get(w->ends[2].cluster, 1, &node) && node.load.joiners == 77;
}

static void loads_reach_others(void **state)
{
    struct world *w = *state;
    struct gossip_load load = {.instances = 3, .joiners = 77};
    assert_true(wait_until(w, all_alive, w));
    cluster_tell_load(w->ends[1].cluster, &load);
    assert_true(wait_until(w, load_of_1_at_2, w));
}

static bool saw_3_dead(void *user)
{
    struct cluster_node node;
    struct world *w = user;
    return cluster_get(w->ends[1].cluster, 3, &node) && node.state >= GOSSIP_DEAD;
}

static bool saw_3_left(void *user)
{
    struct cluster_node node;
    struct world *w = user;
    return cluster_get(w->ends[1].cluster, 3, &node) && node.state == GOSSIP_LEFT;
}

static bool has_left(void *user)
{
    return ((struct end *)user)->left;
}

static void a_node_that_leaves_is_known_to_have_left(void **state)
{
    struct world *w = *state;
    assert_true(wait_until(w, all_alive, w));
    cluster_leave(w->ends[3].cluster);
    assert_true(wait_until(w, has_left, &w->ends[3]));
    stop(w, 3);
    assert_true(wait_until(w, saw_3_left, w));
}

/* With nobody to ask for the registry: what peers.json kept is enough. */
static void a_restarted_node_finds_the_others_by_itself(void **state)
{
    struct world *w = *state;
    assert_true(wait_until(w, all_alive, w));
    stop(w, 3);
    assert_true(wait_until(w, saw_3_dead, w));
    start(w, 3);
    assert_true(wait_until(w, all_alive, w));
}

static void all_restarted_at_once_find_each_other(void **state)
{
    struct world *w = *state;
    assert_true(wait_until(w, all_alive, w));
    for (node_id id = 1; id <= NODES; id++)
        stop(w, id);
    for (node_id id = 1; id <= NODES; id++)
        start(w, id);
    assert_true(wait_until(w, all_alive, w));
}

static bool is_impostor(void *user)
{
    return ((struct end *)user)->impostor;
}

/* A copy of the data folder, started elsewhere: the later one stays. */
static void the_earlier_of_two_with_one_id_is_told_to_stop(void **state)
{
    struct world *w = *state;
    struct end copy = w->ends[3];
    struct err e = {0};
    assert_true(wait_until(w, all_alive, w));
    (void)text_format(copy.address, sizeof copy.address, "127.0.8.9:%d",
                      18000 + 4 * (int)(getpid() % 1000));
    assert_int_equal(try_start(w, &copy, &e), 0);
    assert_true(wait_until(w, is_impostor, &w->ends[3]));
    cluster_close(copy.cluster, closed_cb);
    assert_true(wait_until(w, is_closed, &copy));
    assert_false(copy.impostor);
}

/* --- questions and streams ------------------------------------------------------------------------ */

struct asking {
    bool ended, good;
};

static void answered_cb(void *user, const struct peer_answer *answer)
{
    struct asking *a = user;
    a->ended = true;
    a->good = answer->error == NULL && answer->size == 4 && memcmp(answer->payload, "ping", 4) == 0;
}

static bool asking_ended(void *user)
{
    return ((struct asking *)user)->ended;
}

static bool ask(struct world *w, node_id from, node_id to, uint16_t what)
{
    struct asking a = {.ended = false};
    struct err e = {0};
    struct peer_call call = {.to = to,
                             .what = what,
                             .payload = "ping",
                             .size = 4,
                             .timeout_ms = 1500,
                             .answered = answered_cb,
                             .user = &a};
    if (cluster_call(w->ends[from].cluster, &call, &e) != 0)
        return false;
    assert_true(wait_until(w, asking_ended, &a));
    return a.good;
}

static void questions_reach_their_node(void **state)
{
    struct world *w = *state;
    assert_true(ask(w, 1, 2, CLUSTER_REGISTRY));
    assert_int_equal(w->ends[2].asked, 1);
    assert_int_equal(w->ends[3].asked, 0);
    /* One of a later version is not answered, and harms nobody. */
    assert_false(ask(w, 1, 2, 4000));
    assert_true(ask(w, 1, 2, CLUSTER_LEASE));
}

struct opening {
    bool ended, good, closed;
};

static void opened_cb(struct secure_stream *s, const struct err *error)
{
    struct opening *o = secure_stream_user(s);
    o->ended = true;
    o->good = error == NULL;
}

static void ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    (void)s;
    (void)readable;
    (void)writable;
}

static void opening_closed_cb(void *user)
{
    ((struct opening *)user)->closed = true;
}

static bool opening_ended(void *user)
{
    return ((struct opening *)user)->ended;
}

static bool opening_closed(void *user)
{
    return ((struct opening *)user)->closed;
}

/* Whether node `to` lets a stream of `from` in. */
static bool connects(struct world *w, node_id from, node_id to, const char *address)
{
    struct opening o = {.ended = false};
    struct sockaddr_storage at;
    struct secure_stream *s = NULL;
    struct err e = {0};
    assert_int_equal(address_parse(&at, address, 0, &e), 0);
    cluster_port_shift(&at, CLUSTER_PORT_STREAM);
    struct secure_connect_options options = {.context = cluster_secure(w->ends[from].cluster),
                                             .address = &at,
                                             .protocol = SECURE_RAFT,
                                             .peer = to,
                                             .events = {.opened = opened_cb, .ready = ready_cb},
                                             .user = &o};
    assert_int_equal(secure_stream_connect(&s, &w->loop, &options, &e), 0);
    assert_true(wait_until(w, opening_ended, &o));
    secure_stream_close(s, opening_closed_cb);
    assert_true(wait_until(w, opening_closed, &o));
    return o.good;
}

static void streams_are_accepted(void **state)
{
    struct world *w = *state;
    assert_true(connects(w, 2, 1, w->ends[1].address));
    assert_int_equal(w->ends[1].accepted, 1);
}

/* --- removal -------------------------------------------------------------------------------------- */

static void a_removed_node_is_refused_at_once_everywhere(void **state)
{
    struct world *w = *state;
    struct cluster_node node;
    struct cluster_refusals refused;
    struct identity_public key;
    assert_true(wait_until(w, all_alive, w));
    /* As when it hears nothing of it any more. */
    struct cluster *three = w->ends[3].cluster;
    w->ends[3].cluster = NULL;
    register_nodes(w, (const node_id[]){1, 2}, 2);
    w->ends[3].cluster = three;
    assert_false(cluster_key_of(w->ends[1].cluster, 3, &key));
    assert_false(cluster_get(w->ends[2].cluster, 3, &node));
    assert_false(connects(w, 3, 1, w->ends[1].address));
    assert_false(ask(w, 3, 2, CLUSTER_REGISTRY));
    assert_int_equal(w->ends[2].asked, 0);
    assert_int_equal(w->ends[1].accepted, 0);
    cluster_refusals(w->ends[1].cluster, &refused);
    assert_true(refused.streams > 0);
    cluster_refusals(w->ends[2].cluster, &refused);
    assert_true(refused.rpc > 0);
    /* Gossip does not bring it back, whatever it says. */
    assert_false(ask(w, 1, 3, CLUSTER_REGISTRY));
    assert_false(cluster_get(w->ends[1].cluster, 3, &node));
}

static bool is_removed(void *user)
{
    return ((struct end *)user)->removed;
}

static void a_node_hears_that_it_was_removed(void **state)
{
    struct world *w = *state;
    register_nodes(w, (const node_id[]){1, 2}, 2);
    assert_true(wait_until(w, is_removed, &w->ends[3]));
    assert_false(w->ends[1].removed);
}

static bool node_1_hears_of_3(void *user)
{
    struct world *w = user;
    struct cluster_node node;
    return cluster_get(w->ends[1].cluster, 3, &node);
}

/* Node 2 has not heard of the removal yet and tells node 1, which was restarted since. */
static void what_gossip_tells_of_a_removed_node_is_not_believed(void **state)
{
    struct world *w = *state;
    assert_true(wait_until(w, all_alive, w));
    struct cluster *two = w->ends[2].cluster, *three = w->ends[3].cluster;
    w->ends[2].cluster = w->ends[3].cluster = NULL;
    register_nodes(w, (const node_id[]){1, 2}, 2);
    stop(w, 1);
    start(w, 1);
    w->ends[2].cluster = two;
    w->ends[3].cluster = three;
    struct cluster_node node;
    uint64_t until_ms = clock_monotonic_ms() + 1500;
    assert_false(node_1_hears_of_3(w));
    while (clock_monotonic_ms() < until_ms) {
        uv_run(&w->loop, UV_RUN_NOWAIT);
        usleep(1000);
    }
    assert_true(cluster_get(w->ends[1].cluster, 2, &node));
    assert_int_equal(node.state, GOSSIP_ALIVE);
    assert_false(node_1_hears_of_3(w));
}

static void an_older_root_brings_no_node_back(void **state)
{
    struct world *w = *state;
    struct identity_public key;
    struct known old = w->known;
    w->known = (struct known){.index = old.index};
    register_nodes(w, (const node_id[]){1, 2}, 2);
    cluster_learn(w->ends[1].cluster, &old, false);
    assert_false(cluster_key_of(w->ends[1].cluster, 3, &key));
    /* After a recovery from a backup the registry begins with lower numbers. */
    cluster_learn(w->ends[1].cluster, &old, true);
    assert_true(cluster_key_of(w->ends[1].cluster, 3, &key));
    known_free(&old);
}

/* --- the keyring ---------------------------------------------------------------------------------- */

static void the_keyring_follows(void **state)
{
    struct world *w = *state;
    struct cluster *c = w->ends[1].cluster;
    uint8_t keys[REGISTRY_KEYRING_MAX][32];
    struct seal_key_shown shown[REGISTRY_KEYRING_MAX];
    char id[SEAL_KEY_ID_SIZE];
    struct membership kept;
    struct err e = {0};
    for (unsigned i = 0; i < REGISTRY_KEYRING_MAX; i++)
        memset(keys[i], (int)i + 1, 32);
    /* All at once other ones: as after a long absence. */
    cluster_keyring_follow(c, (const uint8_t(*)[32])keys, REGISTRY_KEYRING_MAX, 5);
    assert_int_equal(cluster_keyring(c, shown, REGISTRY_KEYRING_MAX), REGISTRY_KEYRING_MAX);
    seal_key_id(keys[5], id);
    for (unsigned i = 0; i < REGISTRY_KEYRING_MAX; i++)
        assert_int_equal(shown[i].used, strcmp(shown[i].id, id) == 0);
    for (unsigned i = 0; i < REGISTRY_KEYRING_MAX; i++)
        keys[i][0] = 200;
    cluster_keyring_follow(c, (const uint8_t(*)[32])keys, REGISTRY_KEYRING_MAX, 7);
    assert_int_equal(cluster_keyring(c, shown, REGISTRY_KEYRING_MAX), REGISTRY_KEYRING_MAX);
    seal_key_id(keys[7], id);
    for (unsigned i = 0; i < REGISTRY_KEYRING_MAX; i++)
        assert_int_equal(shown[i].used, strcmp(shown[i].id, id) == 0);
    cluster_keyring_follow(c, (const uint8_t(*)[32])keys, 2, 1);
    assert_int_equal(cluster_keyring(c, shown, REGISTRY_KEYRING_MAX), 2);
    /* A root without any, of a registry that was not read yet, changes nothing. */
    cluster_keyring_follow(c, (const uint8_t(*)[32])keys, 0, 0);
    assert_int_equal(cluster_keyring(c, shown, REGISTRY_KEYRING_MAX), 2);
    stop(w, 1);
    assert_int_equal(membership_load(&kept, w->ends[1].data, &e), 0);
    assert_int_equal(kept.gossip_key_count, 2);
    assert_memory_equal(kept.gossip_keys[0], keys[1], 32);
    assert_memory_equal(kept.gossip_keys[1], keys[0], 32);
}

/* Its old keys open nothing any more; what it needs comes by questions, which need none. */
static void a_node_with_old_keys_still_syncs(void **state)
{
    struct world *w = *state;
    uint8_t key[1][32];
    memset(key[0], 9, 32);
    assert_true(wait_until(w, all_alive, w));
    stop(w, 3);
    assert_true(wait_until(w, saw_3_dead, w));
    for (node_id id = 1; id <= 2; id++)
        cluster_keyring_follow(w->ends[id].cluster, (const uint8_t(*)[32])key, 1, 0);
    start(w, 3);
    struct cluster_node node;
    uint64_t until_ms = clock_monotonic_ms() + WAIT_MS;
    do
        uv_run(&w->loop, UV_RUN_ONCE);
    while (!(cluster_get(w->ends[3].cluster, 1, &node) && node.state == GOSSIP_ALIVE) &&
           clock_monotonic_ms() < until_ms);
    assert_int_equal(node.state, GOSSIP_ALIVE);
    cluster_keyring_follow(w->ends[3].cluster, (const uint8_t(*)[32])key, 1, 0);
    assert_true(wait_until(w, all_alive, w));
}

/* --- opening -------------------------------------------------------------------------------------- */

static void refuse_address(struct world *w, const char *address, const char *says)
{
    struct end end = w->ends[3];
    struct err e = {0};
    (void)text_copy(end.address, sizeof end.address, address);
    assert_true(try_start(w, &end, &e) < 0);
    if (strstr(e.msg, says) == NULL)
        fail_msg("%s: %s", address, e.msg);
}

static void wrong_addresses_are_refused_by_name(void **state)
{
    struct world *w = *state;
    stop(w, 3);
    refuse_address(w, "8.8.8.8:7600", "8.8.8.8");
    refuse_address(w, "127.0.8.3:65533", "three ports");
    refuse_address(w, w->ends[1].address, "127.0.8.1");
    start(w, 3);
}

static void a_damaged_list_of_peers_is_passed_over(void **state)
{
    struct world *w = *state;
    struct err e = {0};
    stop(w, 3);
    int folder = private_folder_open(w->ends[3].data, &e);
    assert_int_equal(private_file_store(folder, KNOWN_FILE, "{", 1, true, &e), 0);
    close(folder);
    start(w, 3);
    cluster_learn(w->ends[3].cluster, &w->known, false);
    assert_true(wait_until(w, all_alive, w));
}

static void the_files_are_private(void **state)
{
    struct world *w = *state;
    char path[128];
    struct stat st;
    stop(w, 1);
    (void)text_format(path, sizeof path, "%s/" KNOWN_FILE, w->ends[1].data);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    struct known known;
    struct err e = {0};
    assert_int_equal(known_load(&known, w->ends[1].data, &e), 0);
    assert_int_equal(known.node_count, 3);
    assert_string_equal(known.nodes[1].address, w->ends[2].address);
    known_free(&known);
}

/* --- files alone ---------------------------------------------------------------------------------- */

static void refuse_known(const char *text)
{
    struct known known;
    struct err e = {0};
    if (known_parse(&known, text, strlen(text), &e) == 0)
        fail_msg("taken: %s", text);
    assert_null(known.nodes);
}

static void lists_of_peers_are_read_strictly(void **state)
{
    (void)state;
    struct known known;
    struct err e = {0};
    const char *empty = "{\"index\": 3, \"next\": 2, \"nodes\": []}";
    assert_int_equal(known_parse(&known, empty, strlen(empty), &e), 0);
    assert_int_equal(known.index, 3);
    known_free(&known);
#define KEY "\"ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\""
    refuse_known("");
    refuse_known("{\"index\": -1, \"next\": 2, \"nodes\": []}");
    refuse_known("{\"index\": 1, \"next\": 2, \"nodes\": [], \"more\": 1}");
    refuse_known("{\"index\": 1, \"next\": 2, \"nodes\": {}}");
    refuse_known(
        "{\"index\": 1, \"next\": 2, \"nodes\": [{\"id\": 0, \"name\": \"a\", \"address\": "
        "\"10.0.0.1:7600\", \"key\": " KEY "}]}");
    refuse_known(
        "{\"index\": 1, \"next\": 2, \"nodes\": [{\"id\": 1, \"name\": \"a\", \"address\": "
        "\"8.8.8.8:7600\", \"key\": " KEY "}]}");
    refuse_known(
        "{\"index\": 1, \"next\": 2, \"nodes\": [{\"id\": 1, \"name\": \"a b\", \"address\": "
        "\"10.0.0.1:7600\", \"key\": " KEY "}]}");
    refuse_known(
        "{\"index\": 1, \"next\": 2, \"nodes\": [{\"id\": 1, \"name\": \"a\", \"address\": "
        "\"10.0.0.1:7600\", \"key\": \"ed25519:x\"}]}");
    const char *good = "{\"index\": 1, \"next\": 2, \"nodes\": [{\"id\": 1, \"name\": \"a\", "
                       "\"address\": \"10.0.0.1:7600\", \"key\": " KEY "}]}";
    assert_int_equal(known_parse(&known, good, strlen(good), &e), 0);
    char *text = known_text(&known);
    struct known again;
    assert_int_equal(known_parse(&again, text, strlen(text), &e), 0);
    assert_memory_equal(again.nodes, known.nodes, sizeof *known.nodes);
    free(text);
    known_free(&again);
    known_free(&known);
}

static void memberships_are_read_strictly(void **state)
{
    (void)state;
    struct membership m, again;
    struct err e = {0};
    membership_make(&m);
    char *text = membership_text(&m);
    assert_int_equal(membership_parse(&again, text, strlen(text), &e), 0);
    assert_memory_equal(&m, &again, sizeof m);
    for (size_t length = 0; length + 2 < strlen(text); length++)
        assert_int_not_equal(membership_parse(&again, text, length, &e), 0);
    free(text);
    static const char *const bad[] = {
        "{\"id\": 0, \"cluster\": \"0123456789abcdef\", \"gossip_keys\": []}",
        "{\"id\": 1, \"cluster\": \"0123456789abcdeg\", \"gossip_keys\": []}",
        "{\"id\": 1, \"cluster\": \"0123456789abcdef\", \"gossip_keys\": [\"00\"]}",
        "{\"id\": 1, \"cluster\": \"0123456789abcdef\"}",
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_not_equal(membership_parse(&again, bad[i], strlen(bad[i]), &e), 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(nodes_of_the_registry_find_each_other),
        CASE(loads_reach_others),
        CASE(a_node_that_leaves_is_known_to_have_left),
        CASE(a_restarted_node_finds_the_others_by_itself),
        CASE(all_restarted_at_once_find_each_other),
        CASE(the_earlier_of_two_with_one_id_is_told_to_stop),
        CASE(questions_reach_their_node),
        CASE(streams_are_accepted),
        CASE(a_removed_node_is_refused_at_once_everywhere),
        CASE(a_node_hears_that_it_was_removed),
        CASE(what_gossip_tells_of_a_removed_node_is_not_believed),
        CASE(an_older_root_brings_no_node_back),
        CASE(the_keyring_follows),
        CASE(a_node_with_old_keys_still_syncs),
        CASE(wrong_addresses_are_refused_by_name),
        CASE(a_damaged_list_of_peers_is_passed_over),
        CASE(the_files_are_private),
        cmocka_unit_test(lists_of_peers_are_read_strictly),
        cmocka_unit_test(memberships_are_read_strictly),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
