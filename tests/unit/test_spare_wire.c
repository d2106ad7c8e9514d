#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "base/buffer.h"
#include "base/memory.h"
#include "raft/spare_wire.h"

static void add(struct buffer *b, const struct spare_record *r)
{
    uint8_t bytes[SPARE_RECORD_BYTES_MAX];
    assert_true(buffer_append(b, bytes, spare_encode(bytes, r)));
    assert_true(r->size == 0 || buffer_append(b, r->data, r->size));
}

/* Reads all of it in parts of `step` bytes; how many records, or the error's code. */
static int read_all(const struct buffer *b, enum spare_side side, size_t step,
                    struct spare_record *out, size_t out_max)
{
    struct spare_decoder d;
    struct err e;
    int count = 0, rc = 0;
    spare_decoder_init(&d, side);
    for (size_t at = 0; at < b->length && rc >= 0;) {
        size_t part = b->length - at < step ? b->length - at : step, taken = 0;
        struct spare_record r;
        rc = spare_decode(&d, &r, (const uint8_t *)b->data + at, part, &taken, &e);
        at += taken;
        if (rc == 1 && (size_t)count < out_max) {
            r.data = NULL; /* borrowed */
            out[count++] = r;
        }
    }
    spare_decoder_free(&d);
    return rc < 0 ? rc : count;
}

static const struct spare_record resumed = {.kind = SPARE_RESUMED, .generation = 3, .applied = 70};
static const struct spare_record snapshot = {
    .kind = SPARE_SNAPSHOT, .generation = 3, .applied = 70, .bytes = 5};
static const struct spare_record data = {
    .kind = SPARE_DATA, .data = (const uint8_t *)"bytes", .size = 5};

static struct spare_record entry(uint64_t index)
{
    return (struct spare_record){
        .kind = SPARE_ENTRY, .applied = index, .data = (const uint8_t *)"command", .size = 7};
}

static void all_kinds_read_as_written_however_they_are_cut(void **unused)
{
    (void)unused;
    const struct spare_record members = {.kind = SPARE_MEMBERS,
                                         .members = {{.id = 1, .role = REGISTRY_ROLE_VOTER},
                                                     {.id = 9, .role = REGISTRY_ROLE_STANDBY}},
                                         .member_count = 2};
    const struct spare_record progress = {
        .kind = SPARE_PROGRESS, .applied = 72, .commit = 75, .term = 4, .leader = 9};
    const struct spare_record first = entry(71);
    for (size_t step = 1; step < 40; step++) {
        struct spare_record out[8];
        struct buffer b;
        buffer_init(&b, 1 << 20);
        add(&b, &snapshot);
        add(&b, &data);
        add(&b, &members);
        add(&b, &first);
        add(&b, &progress);
        assert_int_equal(read_all(&b, SPARE_FEEDS, step, out, 8), 5);
        assert_int_equal(out[0].bytes, 5);
        assert_int_equal(out[0].generation, 3);
        assert_int_equal(out[1].size, 5);
        assert_int_equal(out[2].member_count, 2);
        assert_int_equal(out[2].members[1].id, 9);
        assert_int_equal(out[2].members[1].role, REGISTRY_ROLE_STANDBY);
        assert_int_equal(out[3].applied, 71);
        assert_int_equal(out[3].size, 7);
        assert_int_equal(out[4].commit, 75);
        assert_int_equal(out[4].leader, 9);
        buffer_free(&b);
    }
}

static void refused(enum spare_side side, const struct spare_record *records, size_t count)
{
    struct spare_record out[8];
    struct buffer b;
    buffer_init(&b, 1 << 20);
    for (size_t i = 0; i < count; i++)
        add(&b, &records[i]);
    assert_int_equal(read_all(&b, side, b.length, out, 8), -ERR_PROTOCOL);
    assert_int_equal(read_all(&b, side, 1, out, 8), -ERR_PROTOCOL);
    buffer_free(&b);
}

static void a_record_out_of_order_is_an_error(void **unused)
{
    (void)unused;
    const struct spare_record one = entry(71), other = entry(71);
    const struct spare_record back = {.kind = SPARE_PROGRESS, .applied = 69};
    const struct spare_record no = {.kind = SPARE_REFUSED, .why = SPARE_FULL};
    const struct spare_record wait = {.kind = SPARE_WAIT};
    const struct spare_record ack = {.kind = SPARE_ACK, .applied = 1};
    const struct spare_record hello = {.kind = SPARE_HELLO, .version = 1, .applied = 5};
    refused(SPARE_FEEDS, (struct spare_record[]){one}, 1);                 /* no beginning */
    refused(SPARE_FEEDS, (struct spare_record[]){resumed, one, other}, 3); /* twice */
    refused(SPARE_FEEDS, (struct spare_record[]){resumed, back}, 2);
    refused(SPARE_FEEDS, (struct spare_record[]){resumed, snapshot}, 2);
    refused(SPARE_FEEDS, (struct spare_record[]){resumed, data}, 2);
    refused(SPARE_FEEDS, (struct spare_record[]){snapshot, one}, 2);        /* not whole yet */
    refused(SPARE_FEEDS, (struct spare_record[]){snapshot, data, data}, 3); /* more than said */
    refused(SPARE_FEEDS, (struct spare_record[]){no, resumed}, 2);
    refused(SPARE_FEEDS, (struct spare_record[]){wait, resumed, wait}, 3);
    refused(SPARE_FEEDS, (struct spare_record[]){resumed, ack}, 2); /* the other side's */
    refused(SPARE_ASKS, (struct spare_record[]){ack}, 1);
    refused(SPARE_ASKS, (struct spare_record[]){hello, ack}, 2); /* it falls */
    refused(SPARE_ASKS, (struct spare_record[]){hello, hello}, 2);
}

static void members_out_of_order_are_an_error(void **unused)
{
    (void)unused;
    const struct spare_record twice = {
        .kind = SPARE_MEMBERS,
        .members = {{.id = 4, .role = REGISTRY_ROLE_VOTER}, {.id = 4, .role = REGISTRY_ROLE_VOTER}},
        .member_count = 2};
    const struct spare_record none = {.kind = SPARE_MEMBERS,
                                      .members = {{.id = 4, .role = REGISTRY_ROLE_NONE}},
                                      .member_count = 1};
    refused(SPARE_FEEDS, (struct spare_record[]){resumed, twice}, 2);
    refused(SPARE_FEEDS, (struct spare_record[]){resumed, none}, 2);
}

static void sizes_beyond_the_bounds_are_refused_by_the_header_alone(void **unused)
{
    (void)unused;
    static const uint8_t headers[][SPARE_HEADER_BYTES] = {
        {SPARE_HELLO, 0, 0, 25},
        {SPARE_ENTRY, 0xff, 0xff, 0xff},
        {SPARE_DATA, 1, 0, 1},
        {SPARE_MEMBERS, 0, 5, 0},
        {0, 0, 0, 0},
        {SPARE_KIND_LAST + 1, 0, 0, 1},
    };
    for (size_t i = 0; i < ARRAY_SIZE(headers); i++) {
        struct spare_decoder d;
        struct spare_record r;
        struct err e;
        size_t taken;
        spare_decoder_init(&d, headers[i][0] == SPARE_HELLO ? SPARE_ASKS : SPARE_FEEDS);
        assert_int_equal(spare_decode(&d, &r, headers[i], SPARE_HEADER_BYTES, &taken, &e),
                         -ERR_PROTOCOL);
        assert_null(d.gathered);
        spare_decoder_free(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_kinds_read_as_written_however_they_are_cut),
        cmocka_unit_test(a_record_out_of_order_is_an_error),
        cmocka_unit_test(members_out_of_order_are_an_error),
        cmocka_unit_test(sizes_beyond_the_bounds_are_refused_by_the_header_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
