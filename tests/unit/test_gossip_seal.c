#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "gossip/seal.h"

enum { ROOM = 256 };
static const uint8_t key_a[SEAL_KEY_BYTES] = {1}, key_b[SEAL_KEY_BYTES] = {2};
static const uint8_t text[] = "an update";

struct datagram {
    uint8_t bytes[ROOM];
    size_t size;
};

static struct seal *make_in(node_id id, uint64_t boot, uint8_t cluster)
{
    struct seal_options options = {
        .self = id, .boot = boot, .cluster = {cluster}, .senders_max = 4};
    struct seal *s = NULL;
    assert_int_equal(seal_new(&s, &options, NULL), 0);
    assert_int_equal(seal_key_add(s, key_a, NULL), 0);
    return s;
}

static struct seal *make(node_id id, uint64_t boot)
{
    return make_in(id, boot, 1);
}

static struct datagram seal(struct seal *s, node_id to, uint64_t to_boot)
{
    struct datagram d;
    struct err e;
    if (seal_packet(s, to, to_boot, text, sizeof text, d.bytes, &d.size, &e) != 0)
        fail_msg("%s", e.msg);
    assert_int_equal(d.size, sizeof text + SEAL_BYTES);
    return d;
}

/* Of a copy, so that it can be opened again. */
static enum seal_refusal open(struct seal *s, struct datagram d)
{
    struct seal_opened opened;
    enum seal_refusal refusal = seal_open(s, d.bytes, d.size, &opened);
    if (refusal == SEAL_TAKEN) {
        assert_int_equal(opened.size, sizeof text);
        assert_memory_equal(opened.data, text, sizeof text);
    }
    return refusal;
}

static void a_packet_opens_once_at_its_receiver(void **state)
{
    struct seal *a = make(1, 10), *b = make(2, 20), *c = make(3, 30);
    struct seal_opened opened;
    (void)state;
    struct datagram d = seal(a, 2, 20), copy = d;
    assert_int_equal(seal_open(b, copy.bytes, copy.size, &opened), SEAL_TAKEN);
    assert_true(opened.from == 1 && opened.boot == 10);
    assert_int_equal(open(b, d), SEAL_REPLAYED);
    assert_int_equal(open(c, d), SEAL_MISDIRECTED);
    assert_int_equal(open(a, d), SEAL_MISDIRECTED); /* thrown back */
    assert_int_equal(seal_count(b, SEAL_TAKEN), 1);
    assert_int_equal(seal_count(b, SEAL_REPLAYED), 1);
    seal_free(a);
    seal_free(b);
    seal_free(c);
}

static void one_changed_bit_anywhere_refuses(void **state)
{
    struct seal *a = make(1, 10), *b = make(2, 20);
    struct datagram d = seal(a, 2, 20);
    (void)state;
    for (size_t bit = 0; bit < 8 * d.size; bit++) {
        struct datagram bad = d;
        bad.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        enum seal_refusal refusal = open(b, bad);
        if (bit < 8)
            assert_int_equal(refusal, SEAL_SHORT);
        else if (bit < 40)
            assert_int_equal(refusal, SEAL_UNKNOWN_KEY);
        else
            assert_int_equal(refusal, SEAL_FORGED);
    }
    for (size_t size = 0; size < d.size; size++) {
        struct datagram bad = d;
        bad.size = size;
        assert_true(open(b, bad) != SEAL_TAKEN);
    }
    assert_int_equal(open(b, d), SEAL_TAKEN);
    seal_free(a);
    seal_free(b);
}

static void another_cluster_with_the_same_key_is_a_stranger(void **state)
{
    struct seal *a = make_in(1, 10, 1), *b = make_in(2, 20, 2);
    (void)state;
    assert_int_equal(open(b, seal(a, 2, 20)), SEAL_FORGED);
    seal_free(a);
    seal_free(b);
}

static void packets_in_any_order_within_the_window_open_once(void **state)
{
    struct seal *a = make(1, 10), *b = make(2, 20);
    static struct datagram d[3 * SEAL_WINDOW];
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(d); i++)
        d[i] = seal(a, 2, 20);
    /* Blocks of 100 backwards. */
    for (size_t block = 0; block + 100 <= SEAL_WINDOW; block += 100) {
        for (size_t i = 100; i-- > 0;) {
            assert_int_equal(open(b, d[block + i]), SEAL_TAKEN);
            assert_int_equal(open(b, d[block + i]), SEAL_REPLAYED);
        }
    }
    for (size_t i = 0; i < 1000; i++)
        assert_int_equal(open(b, d[i]), SEAL_REPLAYED);
    /* A jump: just inside the window, and just behind it. */
    size_t newest = ARRAY_SIZE(d) - 1;
    assert_int_equal(open(b, d[newest]), SEAL_TAKEN);
    assert_int_equal(open(b, d[newest - SEAL_WINDOW]), SEAL_REPLAYED);
    assert_int_equal(open(b, d[newest - SEAL_WINDOW + 1]), SEAL_TAKEN);
    assert_int_equal(open(b, d[newest - SEAL_WINDOW + 1]), SEAL_REPLAYED);
    assert_int_equal(open(b, d[newest]), SEAL_REPLAYED);
    for (size_t i = 2; i < SEAL_WINDOW; i++)
        assert_int_equal(open(b, d[newest - SEAL_WINDOW + i]), SEAL_TAKEN);
    seal_free(a);
    seal_free(b);
}

static void a_restart_on_either_side_ends_what_was_recorded(void **state)
{
    struct seal *a = make(1, 10), *b = make(2, 20);
    (void)state;
    struct datagram old = seal(a, 2, 20), unused = seal(a, 2, 20);
    assert_int_equal(open(b, old), SEAL_TAKEN);
    struct seal *a2 = make(1, 11), *b2 = make(2, 21);
    assert_int_equal(open(b, seal(a2, 2, 20)), SEAL_TAKEN); /* counts from the beginning */
    assert_int_equal(open(b, unused), SEAL_OLD_BOOT);
    assert_int_equal(open(b2, old), SEAL_MISDIRECTED);
    assert_int_equal(open(b2, unused), SEAL_MISDIRECTED);
    seal_free(a);
    seal_free(b);
    seal_free(a2);
    seal_free(b2);
}

static void keys_rotate_while_packets_flow(void **state)
{
    struct seal *a = make(1, 10), *b = make(2, 20);
    char id_a[SEAL_KEY_ID_SIZE], id_b[SEAL_KEY_ID_SIZE];
    struct seal_key_shown shown;
    struct err e;
    (void)state;
    seal_key_id(key_a, id_a);
    seal_key_id(key_b, id_b);
    struct datagram recorded = seal(a, 2, 20);
    assert_int_equal(seal_key_add(a, key_b, &e), 0);
    assert_int_equal(seal_key_add(a, key_b, &e), -ERR_EXISTS);
    assert_int_equal(open(b, seal(a, 2, 20)), SEAL_TAKEN);
    assert_int_equal(seal_key_add(b, key_b, &e), 0);
    assert_int_equal(seal_key_use(a, id_b, &e), 0);
    assert_int_equal(open(b, seal(a, 2, 20)), SEAL_TAKEN);
    assert_int_equal(open(a, seal(b, 1, 10)), SEAL_TAKEN); /* b still seals with the old one */
    assert_int_equal(seal_key_remove(b, id_a, &e), -ERR_CONFLICT);
    assert_int_equal(seal_key_use(b, id_b, &e), 0);
    assert_int_equal(seal_key_remove(b, id_a, &e), 0);
    assert_int_equal(seal_key_remove(b, id_a, &e), -ERR_NOT_FOUND);
    assert_int_equal(seal_key_use(b, "zz", &e), -ERR_NOT_FOUND);
    assert_int_equal(open(b, recorded), SEAL_UNKNOWN_KEY);
    assert_int_equal(seal_count(b, SEAL_UNKNOWN_KEY), 1);
    assert_int_equal(open(b, seal(a, 2, 20)), SEAL_TAKEN);
    assert_true(seal_key_get(a, 0, &shown) && !shown.used && shown.opened == 1);
    assert_true(seal_key_get(a, 1, &shown) && shown.used);
    assert_string_equal(shown.id, id_b);
    assert_false(seal_key_get(a, 2, &shown));
    seal_free(a);
    seal_free(b);
}

static void a_senders_key_is_that_of_its_newest_packet(void **state)
{
    (void)state;
    struct seal *a = make(1, 10), *b = make(2, 20);
    char id_a[SEAL_KEY_ID_SIZE], id_b[SEAL_KEY_ID_SIZE];
    seal_key_id(key_a, id_a);
    seal_key_id(key_b, id_b);
    assert_int_equal(seal_key_add(a, key_b, NULL), 0);
    assert_int_equal(seal_key_add(b, key_b, NULL), 0);
    assert_false(seal_sender_uses(b, 1, id_a)); /* not heard yet */
    struct datagram early = seal(a, 2, 20), late = seal(a, 2, 20);
    assert_int_equal(open(b, late), SEAL_TAKEN);
    assert_true(seal_sender_uses(b, 1, id_a));
    assert_int_equal(seal_key_use(a, id_b, NULL), 0);
    assert_int_equal(open(b, seal(a, 2, 20)), SEAL_TAKEN);
    /* One that was on its way for long says nothing of now. */
    assert_int_equal(open(b, early), SEAL_TAKEN);
    assert_true(seal_sender_uses(b, 1, id_b));
    assert_false(seal_sender_uses(b, 1, id_a));
    seal_forget(b, 1);
    assert_false(seal_sender_uses(b, 1, id_b));
    seal_free(a);
    seal_free(b);
}

static void the_keyring_has_a_bound_and_may_be_empty(void **state)
{
    struct seal_options options = {.self = 1, .boot = 1, .senders_max = 1};
    struct seal *s = NULL;
    struct datagram d;
    struct err e;
    (void)state;
    assert_int_equal(seal_new(&s, &options, &e), 0);
    assert_int_equal(seal_packet(s, 2, 1, text, 1, d.bytes, &d.size, &e), -ERR_CONFLICT);
    for (unsigned i = 0; i <= SEAL_KEYS_MAX; i++) {
        uint8_t key[SEAL_KEY_BYTES] = {(uint8_t)i, 3};
        assert_int_equal(seal_key_add(s, key, &e), i < SEAL_KEYS_MAX ? 0 : -ERR_LIMIT);
    }
    seal_free(s);
    options.boot = 0;
    assert_int_equal(seal_new(&s, &options, &e), -ERR_INVALID);
}

static void beyond_senders_max_the_silent_one_is_forgotten(void **state)
{
    struct seal *b = make(100, 20);
    struct datagram kept[12];
    (void)state;
    for (node_id id = 1; id <= 12; id++) {
        struct seal *a = make(id, 10);
        kept[id - 1] = seal(a, 100, 20);
        assert_int_equal(open(b, kept[id - 1]), SEAL_TAKEN);
        seal_free(a);
        /* The last four are remembered, whatever was moved in the table. */
        for (node_id other = id > 3 ? id - 3 : 1; other <= id; other++)
            assert_int_equal(open(b, kept[other - 1]), SEAL_REPLAYED);
    }
    seal_forget(b, 12);
    seal_forget(b, 12);
    seal_forget(b, 55);
    for (node_id other = 9; other <= 11; other++)
        assert_int_equal(open(b, kept[other - 1]), SEAL_REPLAYED);
    assert_int_equal(open(b, kept[11]), SEAL_TAKEN);
    seal_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_packet_opens_once_at_its_receiver),
        cmocka_unit_test(one_changed_bit_anywhere_refuses),
        cmocka_unit_test(another_cluster_with_the_same_key_is_a_stranger),
        cmocka_unit_test(packets_in_any_order_within_the_window_open_once),
        cmocka_unit_test(a_restart_on_either_side_ends_what_was_recorded),
        cmocka_unit_test(keys_rotate_while_packets_flow),
        cmocka_unit_test(a_senders_key_is_that_of_its_newest_packet),
        cmocka_unit_test(the_keyring_has_a_bound_and_may_be_empty),
        cmocka_unit_test(beyond_senders_max_the_silent_one_is_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
