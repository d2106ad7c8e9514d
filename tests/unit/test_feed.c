/* A spare and the neighbours that feed it, over real streams: nodes 1 and 2 have the registry, node 3 has
 * nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "base/address.h"
#include "base/buffer.h"
#include "base/clock.h"
#include "base/memory.h"
#include "raft/command.h"
#include "raft/feed.h"
#include "raft/snapshot.h"
#include "raft/spare.h"
#include "tests/lib/registry_help.h"
#include "tests/lib/secure_pair.h"

enum { FEEDERS = 2, SPARE_ID = 3, WAIT_MS = 10000 };

struct feeder {
    struct world *world;
    node_id id;
    struct state *state;
    uint64_t index, applied; /* of the last command; and of raft's entries that hold none */
    struct recent *recent;
    struct feed *feed;
    struct secure_listener *listener;
    struct sockaddr_storage address;
    unsigned sends_per_second;
    bool following, dumb; /* `dumb`: it has no turns */
    uint64_t generation;
    node_id leader;
    struct registry_member members[4];
    size_t member_count;
    /* What it writes itself, in place of a feed. */
    const struct buffer *script;
    struct secure_stream *scripted;
};

struct world {
    struct secure_world secure;
    struct feeder feeders[FEEDERS + 1];
    char *directory;
    struct spare *spare;
    struct spare_want want;
    struct registry_peer peers[3];
    unsigned outcomes; /* of the spare */
    uint64_t sequence, refused;
    bool gone;
    uv_timer_t alarm;
};

/* --- feeders ---------------------------------------------------------------------------------------- */

static struct registry_root *root_of(void *user)
{
    return state_root(((struct feeder *)user)->state);
}

static void no_wake(void *user)
{
    (void)user; /* there is a turn after each round of the loop */
}

static void scripted_ready_cb(struct secure_stream *s, bool readable, bool writable)
{
    char bytes[256];
    size_t count;
    (void)writable;
    if (readable && secure_stream_read(s, bytes, sizeof bytes, &count) > SECURE_BLOCKED)
        secure_stream_want(s, 0);
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    static const struct secure_events events = {.ready = scripted_ready_cb};
    struct feeder *f = user;
    if (f->script == NULL) {
        feed_accept(f->feed, s);
        return;
    }
    const struct iovec part = {f->script->data, f->script->length};
    size_t count = 0;
    if (f->scripted != NULL)
        secure_stream_close(f->scripted, NULL);
    f->scripted = s;
    secure_stream_set_events(s, &events, f);
    assert_int_equal(secure_stream_write(s, &part, 1, &count), SECURE_DONE);
    secure_stream_want(s, SECURE_WANT_READ);
}

static void listen_open(struct feeder *f)
{
    struct world *w = f->world;
    struct sockaddr_storage any;
    struct err e;
    assert_int_equal(address_parse(&any, "127.0.0.1:0", 0, &e), 0);
    const struct secure_listen_options options = {.context = w->secure.contexts[f->id],
                                                  .address = &any,
                                                  .protocols = 1u << SECURE_SPARE,
                                                  .accepted = accepted_cb,
                                                  .user = f};
    assert_int_equal(secure_listener_open(&f->listener, &w->secure.loop, &options, &e), 0);
    f->address = *secure_listener_address(f->listener);
}

static void feed_open(struct feeder *f)
{
    struct err e;
    const struct feed_options options = {.loop = &f->world->secure.loop,
                                         .recent = f->recent,
                                         .sends_per_second = f->sends_per_second,
                                         .user = f,
                                         .root = root_of,
                                         .wake = no_wake};
    assert_int_equal(feed_new(&f->feed, &options, &e), 0);
}

static void feeder_open(struct world *w, node_id id)
{
    struct feeder *f = &w->feeders[id];
    struct err e;
    *f = (struct feeder){.world = w,
                         .id = id,
                         .following = true,
                         .generation = 1,
                         .leader = 1,
                         .members = {{.id = 1, .role = REGISTRY_ROLE_VOTER},
                                     {.id = 2, .role = REGISTRY_ROLE_STANDBY}},
                         .member_count = 2};
    assert_int_equal(state_new(&f->state, &e), 0);
    assert_int_equal(recent_new(&f->recent, &e), 0);
    feed_open(f);
    listen_open(f);
}

static void gone_cb(void *user)
{
    ((struct world *)user)->gone = true;
}

static bool is_gone(struct world *w)
{
    return w->gone;
}

static void until(struct world *w, bool (*done)(struct world *w));

static void feeder_kill(struct world *w, node_id id)
{
    struct feeder *f = &w->feeders[id];
    struct feed *feed = steal_pointer(&f->feed);
    if (feed == NULL)
        return;
    secure_listener_close(steal_pointer(&f->listener), NULL);
    if (f->scripted != NULL)
        secure_stream_close(steal_pointer(&f->scripted), NULL);
    w->gone = false;
    feed_close(feed, gone_cb, w);
    until(w, is_gone);
}

static void feeder_apply(struct feeder *f, const uint8_t *bytes, size_t length)
{
    struct state_outcome outcome;
    struct err e;
    f->applied++; /* something that is no command */
    f->index = ++f->applied;
    assert_int_equal(state_apply(f->state, f->index, bytes, length, &outcome, &e), 0);
    recent_push(f->recent, f->index, bytes, length);
}

/* On all of them, as if it was committed. */
static void deploy(struct world *w, const char *name)
{
    char *json = help_workload_json(name, "");
    const struct registry_command command = {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = json};
    const struct command_session session = {.node = 1, .boot = 1, .sequence = ++w->sequence};
    struct err e;
    uint8_t *bytes;
    size_t length;
    assert_int_equal(command_encode(&bytes, &length, &session, &command, &e), 0);
    for (node_id id = 1; id <= FEEDERS; id++)
        feeder_apply(&w->feeders[id], bytes, length);
    free(bytes);
    free(json);
}

static void deploy_many(struct world *w, const char *prefix, unsigned count)
{
    char name[32];
    for (unsigned i = 0; i < count; i++) {
        (void)text_format(name, sizeof name, "%s%u", prefix, i);
        deploy(w, name);
    }
}

static void feeder_turn(struct feeder *f)
{
    if (f->feed == NULL || f->dumb || !feed_wanted(f->feed))
        return;
    const struct feed_view view = {.following = f->following,
                                   .generation = f->generation,
                                   .applied = f->applied,
                                   .commit = f->applied + 1,
                                   .term = 7,
                                   .leader = f->leader,
                                   .members = f->members,
                                   .member_count = f->member_count};
    feed_turn(f->feed, clock_monotonic_ms(), &view);
}

/* --- the world -------------------------------------------------------------------------------------- */

static bool address_of(void *user, node_id id, struct sockaddr_storage *out)
{
    struct world *w = user;
    if (id == 0 || id > FEEDERS)
        return false;
    *out = w->feeders[id].address;
    return true;
}

static void applied_cb(void *user, const struct state_outcome *outcome)
{
    struct world *w = user;
    w->outcomes++;
    assert_false(outcome->repeated);
}

static void spare_open(struct world *w)
{
    struct err e;
    const struct spare_options options = {.loop = &w->secure.loop,
                                          .directory = w->directory,
                                          .id = SPARE_ID,
                                          .seed = 1,
                                          .secure = w->secure.contexts[SPARE_ID],
                                          .user = w,
                                          .address = address_of,
                                          .applied = applied_cb,
                                          .wake = no_wake};
    assert_int_equal(spare_new(&w->spare, &options, &e), 0);
    spare_peers(w->spare, w->peers, 3);
}

static void spare_end(struct world *w)
{
    w->gone = false;
    spare_close(steal_pointer(&w->spare), gone_cb, w);
    until(w, is_gone);
}

static void alarm_cb(uv_timer_t *timer)
{
    (void)timer;
}

static int world_open(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    secure_world_open(&w->secure);
    assert_int_equal(uv_timer_init(&w->secure.loop, &w->alarm), 0);
    assert_int_equal(uv_timer_start(&w->alarm, alarm_cb, 2, 2), 0);
    w->directory = help_directory();
    w->want.feed = true;
    for (node_id id = 1; id <= 3; id++)
        w->peers[id - 1] = (struct registry_peer){.id = id, .alive = id != 2};
    for (node_id id = 1; id <= FEEDERS; id++)
        feeder_open(w, id);
    deploy_many(w, "before", 20);
    spare_open(w);
    *state = w;
    return 0;
}

static int world_close(void **state)
{
    struct world *w = *state;
    if (w->spare != NULL)
        spare_end(w);
    for (node_id id = 1; id <= FEEDERS; id++) {
        feeder_kill(w, id);
        recent_free(w->feeders[id].recent);
        state_free(w->feeders[id].state);
    }
    uv_close((uv_handle_t *)&w->alarm, NULL);
    secure_world_close(&w->secure);
    help_directory_remove(w->directory);
    free(w);
    return 0;
}

static void turns(struct world *w)
{
    uv_run(&w->secure.loop, UV_RUN_ONCE);
    for (node_id id = 1; id <= FEEDERS; id++)
        feeder_turn(&w->feeders[id]);
    if (w->spare != NULL)
        spare_turn(w->spare, clock_monotonic_ms(), &w->want);
}

static void until(struct world *w, bool (*done)(struct world *w))
{
    uint64_t end_ms = clock_monotonic_ms() + WAIT_MS;
    while (!done(w) && clock_monotonic_ms() < end_ms)
        turns(w);
    assert_true(done(w));
}

static void run_for(struct world *w, uint64_t ms)
{
    uint64_t end_ms = clock_monotonic_ms() + ms;
    while (clock_monotonic_ms() < end_ms)
        turns(w);
}

static void only(struct world *w, node_id id)
{
    for (node_id i = 1; i <= FEEDERS; i++)
        w->peers[i - 1].alive = i == id;
    spare_peers(w->spare, w->peers, 3);
}

static void both(struct world *w)
{
    w->peers[0].alive = w->peers[1].alive = true;
    spare_peers(w->spare, w->peers, 3);
}

static bool has_all(struct world *w)
{
    struct spare_view v = spare_view(w->spare);
    return v.state != NULL && v.neighbour != 0 && v.applied == w->feeders[v.neighbour].applied;
}

/* Byte for byte. */
static void assert_same(struct world *w)
{
    struct buffer a, b;
    struct err e;
    buffer_init(&a, SNAPSHOT_BYTES_MAX);
    buffer_init(&b, SNAPSHOT_BYTES_MAX);
    assert_int_equal(snapshot_encode(state_content(w->feeders[1].state), &a, &e), 0);
    assert_int_equal(snapshot_encode(state_content(spare_view(w->spare).state), &b, &e), 0);
    assert_int_equal(a.length, b.length);
    assert_memory_equal(a.data, b.data, a.length);
    buffer_free(&a);
    buffer_free(&b);
}

/* --- what is expected ------------------------------------------------------------------------------- */

static void a_snapshot_then_each_command(void **state)
{
    struct world *w = *state;
    until(w, has_all);
    assert_same(w);
    struct spare_view v = spare_view(w->spare);
    assert_int_equal(v.neighbour, 1);
    assert_int_equal(v.leader, 1);
    assert_int_equal(v.term, 7);
    assert_int_equal(v.commit, v.applied + 1);
    assert_int_equal(v.member_count, 2);
    assert_int_equal(v.members[1].role, REGISTRY_ROLE_STANDBY);
    assert_int_equal(w->outcomes, 0);
    deploy_many(w, "after", 200);
    until(w, has_all);
    assert_same(w);
    assert_int_equal(w->outcomes, 200);
    assert_int_equal(spare_view(w->spare).snapshots, 1);
    w->feeders[1].applied += 3; /* barriers: strong reads wait for them */
    until(w, has_all);
}

static void many_are_told_in_batches(void **state)
{
    struct world *w = *state;
    feeder_kill(w, 1);
    w->feeders[1].sends_per_second = 20; /* with one spare: once in 50 ms */
    feed_open(&w->feeders[1]);
    listen_open(&w->feeders[1]);
    until(w, has_all);
    uint64_t writes = feed_counts(w->feeders[1].feed).writes;
    uint64_t begun_ms = clock_monotonic_ms(), ms = 0;
    for (unsigned i = 0; ms < 500; i++, ms = clock_monotonic_ms() - begun_ms) {
        deploy_many(w, i % 2 == 0 ? "even" : "odd", 1);
        turns(w);
    }
    writes = feed_counts(w->feeders[1].feed).writes - writes;
    assert_in_range(writes, 5, 2 * (ms / 50) + 2); /* one more for what is beyond a batch */
    until(w, has_all);
    assert_same(w);
}

static void after_a_break_another_goes_on_where_it_was(void **state)
{
    struct world *w = *state;
    until(w, has_all);
    both(w);
    deploy_many(w, "some", 10);
    until(w, has_all);
    uint64_t begun_ms = clock_monotonic_ms();
    feeder_kill(w, 1);
    deploy_many(w, "missed", 10);
    until(w, has_all);
    assert_in_range(clock_monotonic_ms() - begun_ms, 0, 2000);
    assert_same(w);
    struct spare_view v = spare_view(w->spare);
    assert_int_equal(v.neighbour, 2);
    assert_int_equal(v.snapshots, 1);
    assert_int_equal(v.resumed, 1);
    assert_int_equal(w->outcomes, 20); /* each once */
}

static void who_missed_too_much_gets_a_snapshot(void **state)
{
    struct world *w = *state;
    until(w, has_all);
    both(w);
    feeder_kill(w, 1);
    recent_reset(w->feeders[2].recent, w->feeders[2].index);
    deploy_many(w, "missed", 10);
    recent_reset(w->feeders[2].recent, w->feeders[2].index);
    until(w, has_all);
    assert_same(w);
    assert_int_equal(spare_view(w->spare).snapshots, 2);
    assert_int_equal(w->outcomes, 0);
}

static void a_silent_neighbour_is_left(void **state)
{
    struct world *w = *state;
    until(w, has_all);
    both(w);
    w->feeders[1].dumb = true;
    run_for(w, SPARE_SILENT_MS / 2);
    assert_int_equal(spare_view(w->spare).neighbour, 1);
    deploy(w, "late");
    until(w, has_all);
    assert_int_equal(spare_view(w->spare).neighbour, 2);
    assert_same(w);
}

static void a_neighbour_without_a_leader_is_left(void **state)
{
    struct world *w = *state;
    until(w, has_all);
    both(w);
    w->feeders[1].following = false;
    run_for(w, SPARE_LEADERLESS_MS / 2);
    assert_int_equal(spare_view(w->spare).neighbour, 1);
    assert_int_equal(spare_view(w->spare).leader, 0);
    run_for(w, SPARE_LEADERLESS_MS);
    until(w, has_all);
    assert_int_equal(spare_view(w->spare).neighbour, 2);
}

static bool refused_thrice(struct world *w)
{
    return feed_counts(w->feeders[1].feed).refused >= w->refused + 3;
}

static void nothing_else_is_fed(struct world *w)
{
    uint64_t snapshots = feed_counts(w->feeders[1].feed).snapshots;
    w->refused = feed_counts(w->feeders[1].feed).refused;
    until(w, refused_thrice);
    assert_null(spare_view(w->spare).state);
    assert_int_equal(feed_counts(w->feeders[1].feed).snapshots, snapshots);
    assert_int_equal(feed_counts(w->feeders[1].feed).resumed, 0);
}

static void a_member_is_not_fed(void **state)
{
    struct world *w = *state;
    w->feeders[1].members[2] =
        (struct registry_member){.id = SPARE_ID, .role = REGISTRY_ROLE_STANDBY};
    w->feeders[1].member_count = 3;
    nothing_else_is_fed(w);
    assert_int_equal(spare_view(w->spare).member_count, 3); /* it learns who is */
    /* Raft knows it, and brings it nothing. */
    w->feeders[1].members[2].role = REGISTRY_ROLE_SPARE;
    until(w, has_all);
}

static void who_hears_of_no_leader_or_is_of_another_generation_feeds_nobody(void **state)
{
    struct world *w = *state;
    w->feeders[1].following = false;
    nothing_else_is_fed(w);
    w->feeders[1].following = true;
    w->want.generation = 2;
    nothing_else_is_fed(w);
}

static void a_neighbour_that_is_behind_is_no_help(void **state)
{
    struct world *w = *state;
    w->want.applied = w->feeders[1].applied + 1;
    run_for(w, 500);
    assert_null(spare_view(w->spare).state);
    deploy(w, "more");
    until(w, has_all);
    assert_same(w);
}

/* --- forgeries -------------------------------------------------------------------------------------- */

static void script_add(struct buffer *b, const struct spare_record *r)
{
    uint8_t bytes[SPARE_RECORD_BYTES_MAX];
    assert_true(buffer_append(b, bytes, spare_encode(bytes, r)));
    assert_true(r->size == 0 || buffer_append(b, r->data, r->size));
}

static bool is_scripted(struct world *w)
{
    return w->feeders[2].scripted != NULL;
}

static bool is_fed_by_1(struct world *w)
{
    return spare_view(w->spare).neighbour == 1 && has_all(w);
}

/* Node 2 tells what `script` says; then node 1 is asked. */
static void lied_to(struct world *w, const struct buffer *script)
{
    w->feeders[2].script = script;
    only(w, 2);
    until(w, is_scripted);
    run_for(w, 100);
    both(w);
    until(w, is_fed_by_1);
    assert_same(w);
}

static void a_forged_command_ends_the_stream(void **state)
{
    struct world *w = *state;
    struct buffer script;
    uint64_t at = w->feeders[1].applied;
    buffer_init(&script, 1 << 20);
    until(w, has_all);
    feeder_kill(w, 1);
    script_add(&script,
               &(struct spare_record){.kind = SPARE_RESUMED, .generation = 1, .applied = at});
    script_add(&script, &(struct spare_record){.kind = SPARE_ENTRY,
                                               .applied = at + 1,
                                               .data = (const uint8_t *)"no command",
                                               .size = 10});
    w->feeders[2].script = &script;
    only(w, 2);
    until(w, is_scripted);
    run_for(w, 100);
    /* What it had is read on. */
    struct spare_view v = spare_view(w->spare);
    assert_int_equal(v.neighbour, 0);
    assert_int_equal(v.applied, at);
    assert_int_equal(state_content(v.state)->index, w->feeders[1].index);
    assert_int_equal(w->outcomes, 0);
    /* And a state that could not go on begins anew. */
    feed_open(&w->feeders[1]);
    listen_open(&w->feeders[1]);
    deploy(w, "true");
    both(w);
    until(w, is_fed_by_1);
    assert_same(w);
    assert_int_equal(spare_view(w->spare).snapshots, 2);
    assert_int_equal(spare_view(w->spare).resumed, 1);
    buffer_free(&script);
}

static void a_forged_snapshot_is_not_taken(void **state)
{
    struct world *w = *state;
    struct buffer script;
    buffer_init(&script, 1 << 20);
    script_add(&script, &(struct spare_record){
                            .kind = SPARE_SNAPSHOT, .generation = 1, .applied = 900, .bytes = 10});
    script_add(&script, &(struct spare_record){
                            .kind = SPARE_DATA, .data = (const uint8_t *)"SKERRYRSxx", .size = 10});
    lied_to(w, &script);
    buffer_free(&script);
}

static void a_snapshot_of_another_generation_than_said_is_not_taken(void **state)
{
    struct world *w = *state;
    struct buffer script, snapshot;
    struct err e;
    buffer_init(&script, 1 << 20);
    buffer_init(&snapshot, 1 << 20);
    assert_int_equal(snapshot_encode(state_content(w->feeders[1].state), &snapshot, &e), 0);
    script_add(&script, &(struct spare_record){.kind = SPARE_SNAPSHOT,
                                               .generation = 5,
                                               .applied = 900,
                                               .bytes = snapshot.length});
    script_add(&script, &(struct spare_record){.kind = SPARE_DATA,
                                               .data = (const uint8_t *)snapshot.data,
                                               .size = snapshot.length});
    lied_to(w, &script);
    assert_int_equal(spare_view(w->spare).generation, 1);
    buffer_free(&script);
    buffer_free(&snapshot);
}

static void nonsense_ends_the_stream(void **state)
{
    struct world *w = *state;
    struct buffer script;
    buffer_init(&script, 1 << 20);
    assert_true(buffer_append_text(&script, "GET / HTTP/1.1\r\n\r\n"));
    lied_to(w, &script);
    buffer_free(&script);
}

/* --- spares that do not keep to the rules ------------------------------------------------------------ */

struct raw {
    struct secure_stream *stream;
    const struct buffer *says;
};

static void raw_opened_cb(struct secure_stream *s, const struct err *error)
{
    struct raw *raw = secure_stream_user(s);
    const struct iovec part = {raw->says->data, raw->says->length};
    size_t count;
    assert_null(error);
    assert_int_equal(secure_stream_write(s, &part, 1, &count), SECURE_DONE);
    secure_stream_want(s, 0); /* reads nothing */
}

static void raw_open(struct world *w, struct raw *raw)
{
    struct err e;
    const struct secure_connect_options options = {.context = w->secure.contexts[SPARE_ID],
                                                   .address = &w->feeders[1].address,
                                                   .protocol = SECURE_SPARE,
                                                   .peer = 1,
                                                   .events = {.opened = raw_opened_cb},
                                                   .user = raw};
    assert_int_equal(secure_stream_connect(&raw->stream, &w->secure.loop, &options, &e), 0);
}

static bool is_cut(struct world *w)
{
    return feed_counts(w->feeders[1].feed).cut == 1;
}

static bool follows_one(struct world *w)
{
    return feed_counts(w->feeders[1].feed).following == 1;
}

static bool feeds_nobody(struct world *w)
{
    return feed_counts(w->feeders[1].feed).links == 0;
}

static void a_slow_spare_is_cut_and_nothing_piles_up(void **state)
{
    struct world *w = *state;
    struct buffer hello;
    struct raw raw = {.says = &hello};
    buffer_init(&hello, 1 << 10);
    script_add(&hello, &(struct spare_record){.kind = SPARE_HELLO, .version = SPARE_WIRE_VERSION});
    spare_end(w);
    raw_open(w, &raw);
    until(w, follows_one);
    /* Far more than sockets and the ring hold. */
    recent_bound(w->feeders[1].recent, 50, RECENT_BYTES_MAX);
    for (unsigned i = 0; i < 400 && !is_cut(w); i++) {
        uint8_t large[64 * 1024] = {0};
        w->feeders[1].index = w->feeders[1].applied += 1;
        recent_push(w->feeders[1].recent, w->feeders[1].index, large, sizeof large);
        turns(w);
        assert_in_range(recent_count(w->feeders[1].recent), 0, 50);
    }
    assert_true(is_cut(w));
    until(w, feeds_nobody);
    secure_stream_close(raw.stream, NULL);
    buffer_free(&hello);
}

static void nonsense_from_a_spare_ends_its_stream(void **state)
{
    struct world *w = *state;
    struct buffer says;
    struct raw raw = {.says = &says};
    buffer_init(&says, 1 << 10);
    assert_true(buffer_append_text(&says, "what is this?"));
    spare_end(w);
    raw_open(w, &raw);
    until(w, is_cut);
    until(w, feeds_nobody);
    secure_stream_close(raw.stream, NULL);
    buffer_free(&says);
}

static void who_does_not_greet_is_cut(void **state)
{
    struct world *w = *state;
    struct buffer says;
    struct raw raw = {.says = &says};
    buffer_init(&says, 1 << 10);
    assert_true(buffer_append(&says, "\1", 1));
    spare_end(w);
    raw_open(w, &raw);
    until(w, is_cut);
    secure_stream_close(raw.stream, NULL);
    buffer_free(&says);
}

static void a_removed_node_is_cut(void **state)
{
    struct world *w = *state;
    until(w, has_all);
    w->secure.removed[SPARE_ID] = true;
    feed_review(w->feeders[1].feed);
    until(w, feeds_nobody);
    assert_int_equal(feed_counts(w->feeders[1].feed).cut, 1);
}

/* --- roles ------------------------------------------------------------------------------------------- */

static bool is_dropped(struct world *w)
{
    return spare_view(w->spare).state == NULL && spare_mark_read(w->directory) == 0;
}

static void raft_takes_over_once_it_has_come_as_far_and_back(void **state)
{
    struct world *w = *state;
    until(w, has_all);
    assert_int_equal(spare_mark_read(w->directory), 1);
    /* It has become a standby, and raft begins with what it once had. */
    w->want = (struct spare_want){.follows = true, .applied = 5, .generation = 1};
    run_for(w, 100);
    assert_int_equal(spare_view(w->spare).neighbour, 1);
    deploy(w, "meanwhile");
    until(w, has_all);
    w->want.applied = w->feeders[1].applied;
    until(w, is_dropped);
    until(w, feeds_nobody);
    /* And is a spare again, when raft's state is of use no more. */
    deploy(w, "later");
    w->want =
        (struct spare_want){.feed = true, .applied = w->feeders[1].applied - 1, .generation = 1};
    until(w, has_all);
    assert_same(w);
    assert_int_equal(spare_mark_read(w->directory), 1);
}

static void the_mark_says_of_which_generation_after_a_restart(void **state)
{
    struct world *w = *state;
    until(w, has_all);
    spare_end(w);
    w->feeders[1].generation = 2; /* recovered meanwhile, without it */
    spare_open(w);
    nothing_else_is_fed(w);
    assert_int_equal(spare_mark_read(w->directory), 1);
}

#define WORLD_TEST(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WORLD_TEST(a_snapshot_then_each_command),
        WORLD_TEST(many_are_told_in_batches),
        WORLD_TEST(after_a_break_another_goes_on_where_it_was),
        WORLD_TEST(who_missed_too_much_gets_a_snapshot),
        WORLD_TEST(a_silent_neighbour_is_left),
        WORLD_TEST(a_neighbour_without_a_leader_is_left),
        WORLD_TEST(a_member_is_not_fed),
        WORLD_TEST(who_hears_of_no_leader_or_is_of_another_generation_feeds_nobody),
        WORLD_TEST(a_neighbour_that_is_behind_is_no_help),
        WORLD_TEST(a_forged_command_ends_the_stream),
        WORLD_TEST(a_forged_snapshot_is_not_taken),
        WORLD_TEST(a_snapshot_of_another_generation_than_said_is_not_taken),
        WORLD_TEST(nonsense_ends_the_stream),
        WORLD_TEST(a_slow_spare_is_cut_and_nothing_piles_up),
        WORLD_TEST(nonsense_from_a_spare_ends_its_stream),
        WORLD_TEST(who_does_not_greet_is_cut),
        WORLD_TEST(a_removed_node_is_cut),
        WORLD_TEST(raft_takes_over_once_it_has_come_as_far_and_back),
        WORLD_TEST(the_mark_says_of_which_generation_after_a_restart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
