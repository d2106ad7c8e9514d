/* gossip's state machine, alone and in small groups. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "tests/lib/gossip_wire.h"

static void options_out_of_range_are_refused(void **state)
{
    struct gossip_meta meta = {.name = "a"};
    struct gossip_options good, bad;
    struct gossip *g = NULL;
    struct err e;
    (void)state;
    gossip_options_defaults(&good);
    good.self.id = 1;
    good.self.boot = 1;
    good.self.address = gossip_wire_address_of(1);
    good.self.meta = &meta;
    for (unsigned i = 0; i < 10; i++) {
        bad = good;
        switch (i) {
        case 0:
            bad.self.id = 0;
            break;
        case 1:
            bad.self.boot = 0;
            break;
        case 2:
            bad.self.meta = NULL;
            break;
        case 3:
            bad.packet_bytes = GOSSIP_PACKET_BYTES_MAX + 1;
            break;
        case 4:
            bad.packet_bytes = GOSSIP_PACKET_BYTES_MIN - 1;
            break;
        case 5:
            bad.probe_timeout_ms = bad.probe_interval_ms + 1;
            break;
        case 6:
            bad.confirmations = GOSSIP_CONFIRMATIONS_MAX + 1;
            break;
        case 7:
            bad.gossip_fanout = 0;
            break;
        case 8:
            bad.members_max = UINT32_MAX;
            break;
        default:
            bad.suspicion_max_ms = bad.suspicion_min_ms - 1;
        }
        assert_int_equal(gossip_new(&g, &bad, &e), -ERR_INVALID);
    }
    memset(meta.zone, 'z', sizeof meta.zone - 1);
    meta.label_count = GOSSIP_LABELS_MAX;
    for (unsigned i = 0; i < GOSSIP_LABELS_MAX; i++)
        memset(meta.labels[i].value, 'v', GOSSIP_LABEL_SIZE - 1);
    assert_int_equal(gossip_new(&g, &good, &e), -ERR_LIMIT);
}

static void those_who_synced_stay_alive_and_know_each_other(void **state)
{
    struct gossip_wire w;
    struct gossip_meta meta;
    (void)state;
    gossip_wire_open(&w, 5);
    gossip_wire_run(&w, 30000);
    for (size_t i = 0; i < 5; i++) {
        for (node_id id = 1; id <= 5; id++) {
            assert_int_equal(gossip_wire_look(&w, i, id).state, GOSSIP_ALIVE);
            assert_int_equal(gossip_wire_look(&w, i, id).incarnation, 1);
            assert_true(gossip_meta_get(w.nodes[i], id, &meta));
            assert_string_equal(meta.labels[0].value, "ssd");
        }
        struct gossip_counts counts;
        gossip_counts(w.nodes[i], &counts);
        assert_int_equal(counts.members[GOSSIP_ALIVE], 5);
        assert_int_equal(counts.health, 0);
        assert_int_equal(counts.suspicions, 0);
        assert_in_range(counts.probes, 140, 155); /* one each 200 ms */
    }
    gossip_wire_close(&w);
}

static void a_silent_member_is_dead_to_all_within_the_bound(void **state)
{
    (void)state;
    for (size_t count = 2; count <= 5; count++) {
        struct gossip_wire w;
        gossip_wire_open(&w, count);
        gossip_wire_run(&w, 3000);
        w.cut[count - 1] = true;
        uint64_t begin_ms = w.now_ms;
        /* Probed by someone within count - 1 intervals; failed after one; confirmed; told. */
        gossip_wire_run(&w, 200 * count + 500 + 100);
        for (size_t i = 0; i + 1 < count; i++) {
            assert_int_equal(gossip_wire_look(&w, i, count).state, GOSSIP_DEAD);
            assert_true(gossip_wire_look(&w, i, count).since_ms - begin_ms >= 500);
            for (node_id id = 1; id < count; id++)
                assert_int_equal(gossip_wire_look(&w, i, id).state, GOSSIP_ALIVE);
        }
        gossip_wire_close(&w);
    }
}

static void a_suspected_member_refutes(void **state)
{
    struct gossip_wire w;
    struct packet_item item = gossip_wire_statement(2, GOSSIP_WIRE_BOOT, 1, GOSSIP_SUSPECT);
    struct gossip_counts counts;
    (void)state;
    gossip_wire_open(&w, 3);
    gossip_wire_run(&w, 1000);
    gossip_wire_tell(&w, 0, 3, &item, 1);
    gossip_wire_run(&w, 300);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(gossip_wire_look(&w, i, 2).state, GOSSIP_ALIVE);
        assert_int_equal(gossip_wire_look(&w, i, 2).incarnation, 2);
    }
    gossip_counts(w.nodes[1], &counts);
    assert_int_equal(counts.refutations, 1);
    gossip_wire_close(&w);
}

/* Every order of the same statements gives the same belief. */
static void merging_does_not_depend_on_order(void **state)
{
    static const struct {
        uint64_t boot;
        uint32_t incarnation;
        enum gossip_state state;
    } all[] = {{6, 9, GOSSIP_LEFT},  {7, 1, GOSSIP_ALIVE}, {7, 1, GOSSIP_DEAD},
               {7, 2, GOSSIP_ALIVE}, {7, 2, GOSSIP_DEAD},  {7, 2, GOSSIP_SUSPECT}};
    (void)state;
    unsigned seed = 1;
    for (unsigned round = 0; round < 200; round++) {
        unsigned order[ARRAY_SIZE(all)] = {0, 1, 2, 3, 4, 5};
        for (unsigned i = ARRAY_SIZE(all); i > 1; i--) {
            seed = seed * 1103515245u + 12345u;
            unsigned j = (seed >> 16) % i, k = order[j];
            order[j] = order[i - 1];
            order[i - 1] = k;
        }
        struct gossip_wire w;
        gossip_wire_open(&w, 1);
        for (unsigned i = 0; i < ARRAY_SIZE(all); i++) {
            struct packet_item item = gossip_wire_statement(
                50, all[order[i]].boot, all[order[i]].incarnation, all[order[i]].state);
            gossip_wire_tell(&w, 0, 51, &item, 1);
        }
        struct gossip_member m = gossip_wire_look(&w, 0, 50);
        assert_int_equal(m.boot, 7);
        assert_int_equal(m.incarnation, 2);
        assert_int_equal(m.state, GOSSIP_DEAD);
        gossip_wire_close(&w);
    }
}

static void the_dead_return_with_a_higher_incarnation_or_boot_only(void **state)
{
    struct gossip_wire w;
    (void)state;
    gossip_wire_open(&w, 1);
    struct packet_item item = gossip_wire_statement(50, 7, 3, GOSSIP_ALIVE);
    gossip_wire_tell(&w, 0, 51, &item, 1);
    item = gossip_wire_statement(50, 7, 3, GOSSIP_DEAD);
    gossip_wire_tell(&w, 0, 51, &item, 1);
    for (uint32_t incarnation = 1; incarnation <= 3; incarnation++) {
        item = gossip_wire_statement(50, 7, incarnation, GOSSIP_ALIVE);
        gossip_wire_tell(&w, 0, 51, &item, 1);
        item = gossip_wire_statement(50, 6, incarnation + 10, GOSSIP_ALIVE);
        gossip_wire_tell(&w, 0, 51, &item, 1);
        assert_int_equal(gossip_wire_look(&w, 0, 50).state, GOSSIP_DEAD);
    }
    item = gossip_wire_statement(50, 7, 4, GOSSIP_ALIVE);
    gossip_wire_tell(&w, 0, 51, &item, 1);
    assert_int_equal(gossip_wire_look(&w, 0, 50).state, GOSSIP_ALIVE);
    item = gossip_wire_statement(50, 7, 4, GOSSIP_LEFT);
    gossip_wire_tell(&w, 0, 51, &item, 1);
    item = gossip_wire_statement(50, 8, 1, GOSSIP_ALIVE);
    gossip_wire_tell(&w, 0, 51, &item, 1);
    assert_int_equal(gossip_wire_look(&w, 0, 50).state, GOSSIP_ALIVE);
    assert_int_equal(gossip_wire_look(&w, 0, 50).boot, 8);
    gossip_wire_close(&w);
}

static void confirmations_shorten_a_suspicion(void **state)
{
    uint64_t took_ms[2];
    (void)state;
    for (unsigned confirmed = 0; confirmed < 2; confirmed++) {
        struct gossip_wire w;
        gossip_wire_open(&w, 6);
        gossip_wire_run(&w, 3000);
        /* Only node 1 runs on; the others are silent, and it suspects all of them. */
        for (size_t i = 1; i < 6; i++)
            w.cut[i] = true;
        node_id first = 0;
        while (first == 0) {
            gossip_wire_run(&w, 10);
            for (node_id id = 2; id <= 6; id++)
                first = gossip_wire_look(&w, 0, id).state == GOSSIP_SUSPECT ? id : first;
        }
        uint64_t begin_ms = w.now_ms;
        struct packet_item item = gossip_wire_statement(first, GOSSIP_WIRE_BOOT, 1, GOSSIP_SUSPECT);
        item.by_count = 4;
        for (unsigned i = 0; i < 4; i++)
            item.by[i] = 80 + i;
        if (confirmed == 1)
            gossip_wire_tell(&w, 0, 3, &item, 1);
        while (gossip_wire_look(&w, 0, first).state == GOSSIP_SUSPECT &&
               w.now_ms - begin_ms < 20000)
            gossip_wire_run(&w, 10);
        assert_int_equal(gossip_wire_look(&w, 0, first).state, GOSSIP_DEAD);
        took_ms[confirmed] = w.now_ms - begin_ms;
        gossip_wire_close(&w);
    }
    assert_true(took_ms[1] + 500 < took_ms[0]);
}

static void hearsay_alone_kills_nobody(void **state)
{
    struct gossip_wire w;
    (void)state;
    gossip_wire_open(&w, 3);
    gossip_wire_run(&w, 1000);
    /* Many say so of a member that answers; its refutations are lost on the way to node 1. */
    struct packet_item item = gossip_wire_statement(2, GOSSIP_WIRE_BOOT, 5, GOSSIP_SUSPECT);
    item.by_count = 5;
    for (unsigned i = 0; i < 5; i++)
        item.by[i] = 80 + i;
    gossip_wire_tell(&w, 0, 3, &item, 1);
    gossip_wire_run(&w, 5000);
    assert_int_equal(gossip_wire_look(&w, 0, 2).state, GOSSIP_ALIVE);
    assert_int_equal(gossip_wire_look(&w, 0, 2).incarnation, 6);
    gossip_wire_close(&w);
}

static void nobody_is_pronounced_dead_unasked(void **state)
{
    struct gossip_wire w;
    (void)state;
    gossip_wire_open(&w, 1);
    /* So many that 50's turn does not come by itself, in the time it takes. */
    for (node_id id = 50; id < 250; id++) {
        struct packet_item item = gossip_wire_statement(id, 1, 1, GOSSIP_ALIVE);
        gossip_wire_tell(&w, 0, 90, &item, 1);
    }
    struct packet_item item = gossip_wire_statement(50, 1, 1, GOSSIP_SUSPECT);
    item.by_count = 5;
    for (unsigned i = 0; i < 5; i++)
        item.by[i] = 80 + i;
    gossip_wire_tell(&w, 0, 90, &item, 1);
    assert_int_equal(w.pings_of_50, 0);
    gossip_wire_run(&w, 1400);
    assert_int_equal(gossip_wire_look(&w, 0, 50).state, GOSSIP_SUSPECT);
    assert_int_equal(w.pings_of_50, 0);
    for (unsigned i = 0; i < 2000 && gossip_wire_look(&w, 0, 50).state != GOSSIP_DEAD; i++)
        gossip_wire_run(&w, 10);
    assert_int_equal(gossip_wire_look(&w, 0, 50).state, GOSSIP_DEAD);
    assert_true(w.pings_of_50 > 1);
    gossip_wire_close(&w);
}

static void a_third_bridges_a_link_that_is_broken(void **state)
{
    struct gossip_wire w;
    struct gossip_counts counts;
    (void)state;
    gossip_wire_open(&w, 4);
    w.broken[0][1] = w.broken[1][0] = w.broken[2][3] = true;
    gossip_wire_run(&w, 20000);
    gossip_wire_all_alive(&w);
    for (size_t i = 0; i < 4; i++) {
        gossip_counts(w.nodes[i], &counts);
        assert_int_equal(counts.suspicions, 0);
        assert_int_equal(counts.health, 0);
    }
    gossip_counts(w.nodes[0], &counts);
    assert_true(counts.indirect_probes > 10);
    gossip_wire_close(&w);
}

static void the_dead_are_told_so_when_they_speak(void **state)
{
    struct gossip_wire w;
    (void)state;
    gossip_wire_open(&w, 3);
    gossip_wire_run(&w, 1000);
    w.no_sync = true;
    w.cut[2] = true;
    gossip_wire_run(&w, 10000);
    assert_int_equal(gossip_wire_look(&w, 0, 3).state, GOSSIP_DEAD);
    w.cut[2] = false;
    gossip_wire_run(&w, 2000);
    gossip_wire_all_alive(&w);
    assert_int_equal(gossip_wire_look(&w, 0, 3).incarnation, 2);
    gossip_wire_close(&w);
}

static void syncs_are_asked_for_at_their_pace(void **state)
{
    struct gossip_wire w;
    (void)state;
    gossip_wire_open(&w, 3);
    gossip_wire_run(&w, 20000);
    w.syncs = 0;
    gossip_wire_run(&w, 100000);
    assert_in_range(w.syncs, 20, 40); /* 3 nodes, 10 s */
    gossip_wire_close(&w);
}

static void who_did_not_run_judges_nobody(void **state)
{
    struct gossip_wire w;
    struct gossip_counts counts;
    (void)state;
    gossip_wire_open(&w, 3);
    gossip_wire_run(&w, 3000);
    /* A probe is under way when node 1 is stopped for a minute; then its timer comes first. */
    struct gossip_event tick = {.kind = GOSSIP_TICK};
    w.cut[1] = w.cut[2] = true;
    gossip_wire_run(&w, 190);
    w.cut[0] = true;
    gossip_wire_run(&w, 60000);
    w.cut[0] = false;
    assert_int_equal(gossip_wire_step(&w, 0, &tick), 0);
    gossip_counts(w.nodes[0], &counts);
    assert_int_equal(counts.late, 1);
    assert_int_equal(counts.deaths, 0);
    assert_int_equal(counts.health, 1);
    assert_true(gossip_wire_look(&w, 0, 2).state <= GOSSIP_SUSPECT &&
                gossip_wire_look(&w, 0, 3).state <= GOSSIP_SUSPECT);
    w.cut[1] = w.cut[2] = false;
    gossip_wire_run(&w, 3000);
    gossip_wire_all_alive(&w);
    for (size_t i = 0; i < 3; i++) {
        gossip_counts(w.nodes[i], &counts);
        assert_int_equal(counts.deaths, 0);
    }
    gossip_wire_close(&w);
}

static void cut_apart_and_healed_they_find_each_other(void **state)
{
    struct gossip_wire w;
    (void)state;
    gossip_wire_open(&w, 2);
    gossip_wire_run(&w, 1000);
    /* Node 2 goes on in silence. */
    struct gossip *kept = w.nodes[1];
    w.cut[1] = true;
    gossip_wire_run(&w, 5000);
    assert_int_equal(gossip_wire_look(&w, 0, 2).state, GOSSIP_DEAD);
    w.cut[1] = false;
    w.nodes[1] = kept;
    gossip_wire_run(&w, 5000);
    assert_int_equal(gossip_wire_look(&w, 0, 2).state, GOSSIP_ALIVE);
    assert_int_equal(gossip_wire_look(&w, 1, 1).state, GOSSIP_ALIVE);
    assert_true(gossip_wire_look(&w, 0, 2).incarnation > 1);
    gossip_wire_close(&w);
}

static void a_seed_is_dead_until_the_sync_that_is_asked_for_at_once(void **state)
{
    struct gossip_wire w = {.count = 1, .now_ms = 1000};
    struct gossip_event tick = {.kind = GOSSIP_TICK};
    struct gossip_event seed = {
        .kind = GOSSIP_SEED, .from = 9, .address = gossip_wire_address_of(9)};
    (void)state;
    w.nodes[0] = gossip_wire_make(1, NULL);
    assert_int_equal(gossip_wire_step(&w, 0, &tick), 0);
    assert_int_equal(gossip_wire_step(&w, 0, &seed), 0);
    assert_int_equal(gossip_wire_look(&w, 0, 9).state, GOSSIP_DEAD);
    assert_int_equal(w.next_ms[0], w.now_ms);
    assert_int_equal(w.syncs, 0);
    gossip_wire_run(&w, 0);
    assert_int_equal(w.syncs, 1);
    gossip_wire_run(&w, 10000);
    assert_in_range(w.syncs, 7, 22);
    assert_int_equal(w.sends, 0); /* nobody is pinged whose boot is not known */
    gossip_wire_close(&w);
}

static void a_removed_member_is_never_heard_again(void **state)
{
    struct gossip_wire w;
    struct gossip_event remove = {.kind = GOSSIP_REMOVE, .from = 3};
    struct gossip_counts counts;
    (void)state;
    gossip_wire_open(&w, 3);
    gossip_wire_run(&w, 1000);
    assert_int_equal(gossip_wire_step(&w, 0, &remove), 0);
    assert_true(gossip_wire_look(&w, 0, 3).removed);
    gossip_wire_run(&w, 10000);
    struct packet_item item = gossip_wire_statement(3, GOSSIP_WIRE_BOOT + 5, 100, GOSSIP_ALIVE);
    gossip_wire_tell(&w, 0, 2, &item, 1);
    item = gossip_wire_statement(60, 1, 1, GOSSIP_ALIVE);
    gossip_wire_tell(&w, 0, 3, &item, 1);
    assert_true(gossip_wire_look(&w, 0, 3).removed);
    assert_int_equal(gossip_wire_look(&w, 0, 3).state, GOSSIP_LEFT);
    assert_int_equal(gossip_wire_look(&w, 0, 60).state, GOSSIP_STATE_COUNT); /* nor what it says */
    gossip_counts(w.nodes[0], &counts);
    assert_int_equal(counts.members[GOSSIP_LEFT], 1);
    gossip_wire_close(&w);
}

static void leaving_is_told_before_it_is_done(void **state)
{
    struct gossip_wire w;
    struct gossip_event leave = {.kind = GOSSIP_LEAVE};
    (void)state;
    gossip_wire_open(&w, 4);
    gossip_wire_run(&w, 1000);
    assert_int_equal(gossip_wire_step(&w, 3, &leave), 0);
    gossip_wire_run(&w, 2000);
    assert_true(w.left);
    w.cut[3] = true;
    gossip_wire_run(&w, 5000);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(gossip_wire_look(&w, i, 4).state, GOSSIP_LEFT);
    gossip_wire_close(&w);

    gossip_wire_open(&w, 1); /* alone: nobody to tell */
    assert_int_equal(gossip_wire_step(&w, 0, &leave), 0);
    gossip_wire_run(&w, 200);
    assert_true(w.left);
    gossip_wire_close(&w);
}

static void another_process_under_our_id_is_noticed(void **state)
{
    struct gossip_wire w;
    (void)state;
    gossip_wire_open(&w, 2);
    struct packet_item item = gossip_wire_statement(1, GOSSIP_WIRE_BOOT - 1, 100, GOSSIP_DEAD);
    gossip_wire_tell(&w, 0, 2, &item, 1);
    assert_false(w.impostor);
    assert_int_equal(gossip_wire_look(&w, 0, 1).incarnation, 1);
    item = gossip_wire_statement(1, GOSSIP_WIRE_BOOT + 1, 1, GOSSIP_ALIVE);
    gossip_wire_tell(&w, 0, 2, &item, 1);
    assert_true(w.impostor);
    gossip_wire_close(&w);
}

static void loads_travel_and_the_newest_counts(void **state)
{
    struct gossip_wire w;
    struct gossip_load load = {.instances = 3, .joiners = 12, .workload_count = 1}, heard;
    struct gossip_event event = {.kind = GOSSIP_TELL_LOAD, .load = &load};
    (void)state;
    load.workloads[0] = (struct gossip_load_workload){gossip_workload_hash("hello"), 3, 12};
    gossip_wire_open(&w, 4);
    gossip_wire_run(&w, 1000);
    for (unsigned i = 0; i < 50; i++) {
        load.joiners = i;
        assert_int_equal(gossip_wire_step(&w, 1, &event), 0);
        gossip_wire_run(&w, 20);
    }
    gossip_wire_run(&w, 1500);
    for (size_t i = 0; i < 4; i++) {
        assert_true(gossip_load_get(w.nodes[i], 2, &heard));
        assert_int_equal(heard.joiners, 49);
        assert_int_equal(heard.workloads[0].workload, gossip_workload_hash("hello"));
        /* 50 in a second, told each 500 ms. */
        assert_in_range(gossip_wire_look(&w, i, 2).load_version, 2, 4);
    }
    assert_true((w.changed & GOSSIP_CHANGED_LOAD) != 0);
    assert_false(gossip_load_get(w.nodes[0], 3, &heard));
    gossip_wire_close(&w);
}

static void a_new_meta_replaces_the_old_everywhere(void **state)
{
    struct gossip_wire w;
    struct gossip_meta meta = {.name = "renamed", .roles = 9}, heard;
    struct gossip_event event = {.kind = GOSSIP_TELL_META, .meta = &meta};
    struct err e;
    (void)state;
    gossip_wire_open(&w, 3);
    gossip_wire_run(&w, 1000);
    assert_int_equal(gossip_wire_step(&w, 0, &event), 0);
    gossip_wire_run(&w, 1000);
    for (size_t i = 0; i < 3; i++) {
        assert_true(gossip_meta_get(w.nodes[i], 1, &heard));
        assert_string_equal(heard.name, "renamed");
        assert_int_equal(heard.roles, 9);
    }
    meta.name[0] = '\n';
    struct gossip_actions actions;
    assert_int_equal(gossip_step(w.nodes[0], &event, w.now_ms, &actions, &e), -ERR_LIMIT);
    assert_true(gossip_meta_get(w.nodes[0], 1, &heard));
    assert_string_equal(heard.name, "renamed");
    gossip_wire_close(&w);
}

static void few_members(struct gossip_options *options)
{
    options->members_max = 4;
}

static void a_full_table_forgets_the_longest_dead_only(void **state)
{
    struct gossip_wire w;
    struct gossip_counts counts;
    (void)state;
    gossip_wire_open_tuned(&w, 1, few_members);
    for (node_id id = 50; id < 53; id++) {
        struct packet_item item = gossip_wire_statement(id, 1, 1, GOSSIP_ALIVE);
        gossip_wire_tell(&w, 0, 51, &item, 1);
    }
    struct packet_item item = gossip_wire_statement(53, 1, 1, GOSSIP_ALIVE);
    gossip_wire_tell(&w, 0, 51, &item, 1);
    assert_int_equal(gossip_wire_look(&w, 0, 53).state, GOSSIP_STATE_COUNT);
    gossip_counts(w.nodes[0], &counts);
    assert_int_equal(counts.dropped, 1);
    struct packet_item dead = gossip_wire_statement(51, 1, 1, GOSSIP_DEAD);
    gossip_wire_tell(&w, 0, 52, &dead, 1);
    gossip_wire_tell(&w, 0, 52, &item, 1);
    assert_int_equal(gossip_wire_look(&w, 0, 51).state, GOSSIP_STATE_COUNT);
    assert_int_equal(gossip_wire_look(&w, 0, 50).state, GOSSIP_ALIVE);
    assert_int_equal(gossip_wire_look(&w, 0, 52).state, GOSSIP_ALIVE);
    assert_int_equal(gossip_wire_look(&w, 0, 53).state, GOSSIP_ALIVE);
    gossip_wire_close(&w);
}

static void dead_for_a_second(struct gossip_options *options)
{
    options->dead_keep_ms = 1000;
}

/* How many the node knows; each is found, and counted in its state. */
static uint32_t known(const struct gossip_wire *w)
{
    uint32_t states[GOSSIP_STATE_COUNT] = {0}, count = 0;
    struct gossip_member m, found;
    struct gossip_counts counts;
    size_t cursor = 0;
    for (; gossip_member_next(w->nodes[0], &cursor, &m); count++) {
        states[m.state]++;
        assert_true(gossip_member_get(w->nodes[0], m.id, &found));
        assert_int_equal(found.state, m.state);
    }
    gossip_counts(w->nodes[0], &counts);
    for (unsigned i = 0; i < GOSSIP_STATE_COUNT; i++)
        assert_int_equal(counts.members[i], states[i]);
    return count;
}

static void members_come_and_go_and_are_forgotten(void **state)
{
    enum { FIRST = 50, COUNT = 100 };
    struct gossip_wire w;
    uint32_t random = 1;
    (void)state;
    gossip_wire_open_tuned(&w, 1, dead_for_a_second);
    for (uint32_t i = 1; i <= 3000; i++) {
        random = random * 1664525 + 1013904223;
        node_id id = FIRST + (random >> 8) % COUNT;
        struct packet_item item =
            gossip_wire_statement(id, i, 1, (random >> 20) % 3 == 0 ? GOSSIP_DEAD : GOSSIP_ALIVE);
        struct gossip_event removal = {.kind = GOSSIP_REMOVE, .from = id};
        if ((random >> 24) % 16 == 0)
            assert_int_equal(gossip_wire_step(&w, 0, &removal), 0);
        else
            gossip_wire_tell(&w, 0, 200, &item, 1);
        if (i % 50 == 0)
            gossip_wire_run(&w, 700);
        assert_in_range(known(&w), 2, COUNT + 1);
    }
    /* Nobody answers: each is probed, at the pace of a node that holds itself for slow. */
    gossip_wire_run(&w, 10 * 60 * 1000);
    assert_int_equal(known(&w), 1);
    gossip_wire_close(&w);
}

static void seldom(struct gossip_options *options)
{
    static uint64_t seed;
    options->sync_interval_ms = 1000;
    options->seed = ++seed;
}

static void a_large_group_that_starts_at_once_does_not_sync_at_once(void **state)
{
    enum { STARTS = 40, MEMBERS = 640 };
    unsigned syncs = 0;
    (void)state;
    for (unsigned i = 0; i < STARTS; i++) {
        struct gossip_wire w;
        gossip_wire_open_tuned(&w, 1, seldom);
        for (node_id id = 2; id < 2 + MEMBERS; id++) {
            struct packet_item item = gossip_wire_statement(id, 1, 1, GOSSIP_ALIVE);
            gossip_wire_tell(&w, 0, 2, &item, 1);
        }
        gossip_wire_run(&w, 1000);
        syncs += w.syncs;
        gossip_wire_close(&w);
    }
    /* Each has had its time once, with a chance of 1 in 1 + 640 / 32. */
    assert_in_range(syncs, 0, 8);
}

static const void *keep_unless(void *user, const void *bytes, size_t size)
{
    void *kept = *(bool *)user ? NULL : malloc(size);
    if (kept != NULL)
        memcpy(kept, bytes, size);
    return kept;
}

static void drop_kept(void *user, const void *bytes)
{
    (void)user;
    free((void *)(uintptr_t)bytes);
}

static bool store_is_full;

static void small_store(struct gossip_options *options)
{
    options->store = (struct gossip_store){&store_is_full, keep_unless, drop_kept};
}

static void what_a_full_store_does_not_keep_is_dropped_and_counted(void **state)
{
    uint8_t bytes[GOSSIP_META_BYTES_MAX];
    struct gossip_meta meta = {.name = "fifty"}, heard;
    struct packet_item items[2] = {gossip_wire_statement(50, 1, 1, GOSSIP_ALIVE),
                                   {.kind = PACKET_META, .id = 50, .boot = 1, .version = 1}};
    struct gossip_event event = {.kind = GOSSIP_TELL_META, .meta = &meta};
    struct gossip_counts counts;
    struct gossip_wire w;
    (void)state;
    store_is_full = false;
    gossip_wire_open_tuned(&w, 1, small_store);
    items[1].bytes = bytes;
    items[1].size = packet_encode_meta(bytes, &meta);
    store_is_full = true;
    gossip_wire_tell(&w, 0, 51, items, 2);
    assert_int_equal(gossip_wire_step(&w, 0, &event), -ERR_NO_MEMORY);
    gossip_counts(w.nodes[0], &counts);
    assert_int_equal(counts.dropped, 2);
    assert_false(gossip_meta_get(w.nodes[0], 50, &heard));
    assert_int_equal(gossip_wire_look(&w, 0, 50).meta_version, 0);
    store_is_full = false;
    gossip_wire_tell(&w, 0, 51, items, 2);
    assert_true(gossip_meta_get(w.nodes[0], 50, &heard));
    assert_string_equal(heard.name, "fifty");
    gossip_wire_close(&w);
}

static void an_update_is_told_so_often_and_no_more(void **state)
{
    struct gossip_wire w;
    (void)state;
    gossip_wire_open(&w, 5);
    gossip_wire_run(&w, 10000);
    w.sends = 0;
    gossip_wire_run(&w, 10000);
    /* 5 nodes, 5 pings and 5 acks a second each, nothing else. */
    assert_in_range(w.sends, 480, 520);
    gossip_wire_close(&w);
}

static void malformed_packets_and_syncs_are_refused_and_counted(void **state)
{
    static const uint8_t bad_kind[] = {99, 0, 0, 0}, cut_short[] = {5, 0},
                         bad_item[] = {5, 0, 0, 0, 1, 9};
    const struct {
        enum gossip_event_kind kind;
        const uint8_t *data;
        size_t size;
        node_id from;
    } bad[] = {{GOSSIP_PACKET, bad_kind, sizeof bad_kind, 2},
               {GOSSIP_PACKET, cut_short, sizeof cut_short, 2},
               {GOSSIP_PACKET, bad_item, sizeof bad_item, 2},
               {GOSSIP_PACKET, NULL, 0, 2},
               {GOSSIP_PACKET, bad_item, 4, 1}, /* from ourselves */
               {GOSSIP_SYNC, bad_item, sizeof bad_item, 2}};
    struct gossip_wire w;
    struct gossip_counts counts;
    (void)state;
    gossip_wire_open(&w, 2);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct gossip_event event = {.kind = bad[i].kind,
                                     .from = bad[i].from,
                                     .from_boot = GOSSIP_WIRE_BOOT,
                                     .address = gossip_wire_address_of(bad[i].from),
                                     .data = bad[i].data,
                                     .size = bad[i].size};
        assert_int_equal(gossip_wire_step(&w, 0, &event), -ERR_PROTOCOL);
        gossip_counts(w.nodes[0], &counts);
        assert_int_equal(counts.malformed, i + 1);
    }
    gossip_wire_close(&w);
}

static void a_sync_that_does_not_fit_says_so(void **state)
{
    struct gossip_wire w;
    struct buffer small;
    struct err e;
    (void)state;
    gossip_wire_open(&w, 3);
    buffer_init(&small, 100);
    assert_int_equal(gossip_sync_write(w.nodes[0], &small, &e), -ERR_LIMIT);
    assert_int_equal(small.length, 0);
    buffer_free(&small);
    gossip_wire_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_out_of_range_are_refused),
        cmocka_unit_test(those_who_synced_stay_alive_and_know_each_other),
        cmocka_unit_test(a_silent_member_is_dead_to_all_within_the_bound),
        cmocka_unit_test(a_suspected_member_refutes),
        cmocka_unit_test(merging_does_not_depend_on_order),
        cmocka_unit_test(the_dead_return_with_a_higher_incarnation_or_boot_only),
        cmocka_unit_test(confirmations_shorten_a_suspicion),
        cmocka_unit_test(hearsay_alone_kills_nobody),
        cmocka_unit_test(nobody_is_pronounced_dead_unasked),
        cmocka_unit_test(a_third_bridges_a_link_that_is_broken),
        cmocka_unit_test(the_dead_are_told_so_when_they_speak),
        cmocka_unit_test(syncs_are_asked_for_at_their_pace),
        cmocka_unit_test(who_did_not_run_judges_nobody),
        cmocka_unit_test(cut_apart_and_healed_they_find_each_other),
        cmocka_unit_test(a_seed_is_dead_until_the_sync_that_is_asked_for_at_once),
        cmocka_unit_test(a_removed_member_is_never_heard_again),
        cmocka_unit_test(leaving_is_told_before_it_is_done),
        cmocka_unit_test(another_process_under_our_id_is_noticed),
        cmocka_unit_test(loads_travel_and_the_newest_counts),
        cmocka_unit_test(a_new_meta_replaces_the_old_everywhere),
        cmocka_unit_test(a_full_table_forgets_the_longest_dead_only),
        cmocka_unit_test(members_come_and_go_and_are_forgotten),
        cmocka_unit_test(a_large_group_that_starts_at_once_does_not_sync_at_once),
        cmocka_unit_test(what_a_full_store_does_not_keep_is_dropped_and_counted),
        cmocka_unit_test(an_update_is_told_so_often_and_no_more),
        cmocka_unit_test(malformed_packets_and_syncs_are_refused_and_counted),
        cmocka_unit_test(a_sync_that_does_not_fit_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
