#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "gossip/packet.h"

static struct gossip_meta meta_full(void)
{
    struct gossip_meta m = {.name = "node1",
                            .zone = "ost-\xc3\xbc",
                            .version = "0.1.0",
                            .roles = 3,
                            .cpu_millis = 64000,
                            .instances_max = 1000,
                            .memory_bytes = 1ull << 40,
                            .label_count = 2};
    m.addresses[GOSSIP_PORT_PEER] =
        (struct address){.family = ADDRESS_V4, .port = 7600, .bytes = {10, 1, 2, 3}};
    m.addresses[GOSSIP_PORT_HTTP] =
        (struct address){.family = ADDRESS_V6, .port = 443, .bytes = {0xfd, [15] = 1}};
    (void)text_copy(m.labels[0].key, GOSSIP_LABEL_SIZE, "disk");
    (void)text_copy(m.labels[0].value, GOSSIP_LABEL_SIZE, "ssd");
    (void)text_copy(m.labels[1].key, GOSSIP_LABEL_SIZE, "gpu");
    return m;
}

static void what_is_written_is_read(void **state)
{
    uint8_t bytes[GOSSIP_PACKET_BYTES_MAX], encoded[GOSSIP_META_BYTES_MAX],
        load_bytes[PACKET_LOAD_BYTES_MAX];
    struct gossip_meta meta = meta_full(), meta_read;
    struct gossip_load load = {.instances = UINT32_MAX,
                               .joiners = 1,
                               .cpu_millis = 128,
                               .memory_bytes = UINT64_MAX,
                               .workload_count = GOSSIP_LOAD_WORKLOADS_MAX},
                       load_read;
    (void)state;
    for (unsigned i = 0; i < GOSSIP_LOAD_WORKLOADS_MAX; i++)
        load.workloads[i] = (struct gossip_load_workload){UINT64_MAX - i, UINT32_MAX, UINT32_MAX};
    struct packet_head head = {PACKET_ASK, PACKET_WANT_META, UINT32_MAX, UINT64_MAX}, head_read;
    struct packet_item items[] = {
        {.kind = PACKET_STATE,
         .id = UINT64_MAX,
         .boot = UINT64_MAX,
         .state = GOSSIP_SUSPECT,
         .incarnation = UINT32_MAX,
         .address = {.family = ADDRESS_V6, .port = 65535, .bytes = {0xfd, [15] = 9}},
         .by_count = 5,
         .by = {1, 2, UINT64_MAX, 4, 5}},
        {.kind = PACKET_META, .id = 1, .boot = 128, .version = 127, .bytes = encoded},
        {.kind = PACKET_LOAD, .id = 1, .boot = 1, .version = UINT32_MAX, .bytes = load_bytes}};
    items[1].size = packet_encode_meta(encoded, &meta);
    items[2].size = packet_encode_load(load_bytes, &load);
    assert_true(items[1].size > 0 && items[2].size > 0);
    struct packet_writer w = {bytes, sizeof bytes, 0};
    assert_true(packet_write_head(&w, &head));
    for (unsigned i = 0; i < 3; i++)
        assert_true(packet_write_item(&w, &items[i]));

    struct packet_reader r = {bytes, bytes + w.length};
    assert_true(packet_read_head(&r, &head_read));
    assert_memory_equal(&head_read.sequence, &head.sequence, sizeof head.sequence);
    assert_true(head_read.kind == PACKET_ASK && head_read.target == UINT64_MAX);
    for (unsigned i = 0; i < 3; i++) {
        struct packet_item item;
        assert_int_equal(packet_read_item(&r, &item), 1);
        assert_true(item.kind == items[i].kind && item.id == items[i].id &&
                    item.boot == items[i].boot && item.version == items[i].version &&
                    item.state == items[i].state && item.incarnation == items[i].incarnation &&
                    item.by_count == items[i].by_count && item.size == items[i].size);
        assert_memory_equal(item.by, items[i].by, sizeof item.by);
        assert_true(address_pack_equal(&item.address, &items[i].address));
        if (item.size > 0)
            assert_memory_equal(item.bytes, items[i].bytes, item.size);
    }
    struct packet_item none;
    assert_int_equal(packet_read_item(&r, &none), 0);
    assert_true(packet_decode_meta(&meta_read, encoded, items[1].size));
    assert_memory_equal(&meta_read, &meta, sizeof meta);
    assert_true(packet_decode_load(&load_read, load_bytes, items[2].size));
    assert_int_equal(load_read.workloads[7].workload, UINT64_MAX - 7);
    assert_int_equal(load_read.memory_bytes, UINT64_MAX);
}

static void what_does_not_fit_leaves_nothing(void **state)
{
    uint8_t bytes[64] = {0};
    struct packet_item item = {
        .kind = PACKET_STATE, .id = 1, .boot = 1, .address = {.family = ADDRESS_V4, .port = 1}};
    (void)state;
    for (size_t size = 0; size < sizeof bytes; size++) {
        struct packet_writer w = {bytes, size, 0};
        size_t before = 0;
        while (packet_write_item(&w, &item))
            before = w.length;
        assert_int_equal(w.length, before);
        assert_true(w.length <= size);
    }
}

static void unknown_kinds_and_what_stands_behind_are_skipped(void **state)
{
    /* Kind 77 with three bytes; a state with two bytes behind it. */
    uint8_t bytes[] = {77, 3, 1, 2, 3, 1, 8, 5, 9, 0, 1, 0, 0, 42, 42, 77, 0};
    struct packet_reader r = {bytes, bytes + sizeof bytes};
    struct packet_item item;
    (void)state;
    assert_int_equal(packet_read_item(&r, &item), 1);
    assert_true(item.id == 5 && item.boot == 9 && item.incarnation == 1);
    assert_int_equal(packet_read_item(&r, &item), 0);
}

static void malformed_items_are_refused(void **state)
{
    static const struct {
        uint8_t bytes[16];
        size_t size;
    } bad[] = {
        {{1}, 1},                                          /* no length */
        {{1, 9, 0}, 3},                                    /* longer than what is there */
        {{1, 0x80}, 2},                                    /* a number cut off */
        {{1, 5, 0, 9, 0, 1, 0}, 7},                        /* id 0 */
        {{1, 5, 5, 0, 0, 1, 0}, 7},                        /* boot 0 */
        {{1, 5, 5, 9, 4, 1, 0}, 7},                        /* no such state */
        {{1, 5, 5, 9, 0, 1, 5}, 7},                        /* no such family */
        {{1, 6, 5, 9, 1, 1, 0, 0}, 8},                     /* suspected by nobody */
        {{1, 12, 5, 9, 1, 1, 0, 6, 1, 2, 3, 4, 5, 6}, 14}, /* by too many */
        {{1, 7, 5, 9, 1, 1, 0, 1, 0}, 9},                  /* by id 0 */
        {{2, 3, 5, 9, 0}, 5},                              /* version 0 */
        {{2, 3, 5, 9, 1}, 5},                              /* an empty meta */
        {{3, 8, 5, 9, 1, 0, 0, 0, 0, 9}, 10},              /* nine workloads */
        {{1, 14, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 9, 0, 1, 0},
         16}, /* 2^64 */
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct packet_reader r = {bad[i].bytes, bad[i].bytes + bad[i].size};
        struct packet_item item;
        assert_int_equal(packet_read_item(&r, &item), -1);
    }
}

static void a_meta_too_large_or_with_controls_is_refused(void **state)
{
    uint8_t encoded[GOSSIP_META_BYTES_MAX];
    struct gossip_meta meta = meta_full();
    (void)state;
    meta.label_count = GOSSIP_LABELS_MAX + 1;
    assert_int_equal(packet_encode_meta(encoded, &meta), 0);
    meta.label_count = GOSSIP_LABELS_MAX;
    for (unsigned i = 0; i < GOSSIP_LABELS_MAX; i++)
        memset(meta.labels[i].value, 'x', GOSSIP_LABEL_SIZE - 1);
    assert_int_equal(packet_encode_meta(encoded, &meta), 0);
    meta = meta_full();
    (void)text_copy(meta.name, sizeof meta.name, "a\x1b[2J");
    assert_int_equal(packet_encode_meta(encoded, &meta), 0);
    struct gossip_load load = {.workload_count = GOSSIP_LOAD_WORKLOADS_MAX + 1};
    assert_int_equal(packet_encode_load(encoded, &load), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(what_does_not_fit_leaves_nothing),
        cmocka_unit_test(unknown_kinds_and_what_stands_behind_are_skipped),
        cmocka_unit_test(malformed_items_are_refused),
        cmocka_unit_test(a_meta_too_large_or_with_controls_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
