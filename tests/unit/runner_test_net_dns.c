/* Questions and answers of DNS, byte by byte: what is taken, what is refused, and what comes out of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/memory.h"
#include "sandbox/runner/net_dns.h"
#include "sandbox/runner/net_names.h"
#include "sandbox/runner/net_names_wire.h"

#define ID 0x1234

struct bytes {
    uint8_t data[2048];
    size_t size;
};

static void add(struct bytes *b, const void *data, size_t size)
{
    assert_true(b->size + size <= sizeof b->data);
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void add16(struct bytes *b, unsigned value)
{
    const uint8_t two[] = {(uint8_t)(value >> 8), (uint8_t)value};
    add(b, two, sizeof two);
}

static void add_name(struct bytes *b, const char *name)
{
    while (*name != '\0') {
        uint8_t length = (uint8_t)strcspn(name, ".");
        add(b, &length, 1);
        add(b, name, length);
        name += length + (name[length] == '.');
    }
    add(b, "", 1);
}

static void add_head(struct bytes *b, unsigned flags, unsigned answers)
{
    const unsigned words[] = {ID, flags, 1, answers, 0, 0};
    b->size = 0;
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        add16(b, words[i]);
}

static void add_question(struct bytes *b, const char *name, unsigned type)
{
    add_name(b, name);
    add16(b, type);
    add16(b, 1);
}

static void add_record(struct bytes *b, const char *owner, unsigned type, unsigned ttl,
                       const void *data, size_t size)
{
    if (owner == NULL)
        add16(b, 0xc00c);
    else
        add_name(b, owner);
    add16(b, type);
    add16(b, 1);
    add16(b, 0);
    add16(b, ttl);
    add16(b, (unsigned)size);
    add(b, data, size);
}

static struct net_dns_query query_of(const char *name, unsigned type)
{
    struct bytes b = {.size = 0};
    struct net_dns_query q;
    enum net_dns_code code;
    add_head(&b, 0x0100, 0);
    add_question(&b, name, type);
    assert_true(net_dns_query_read(&q, &code, b.data, b.size));
    assert_int_equal(code, NET_DNS_OK);
    return q;
}

static enum net_dns_code code_of(const struct bytes *b)
{
    struct net_dns_query q;
    enum net_dns_code code;
    assert_true(net_dns_query_read(&q, &code, b->data, b->size));
    return code;
}

static void a_question_is_read_in_any_case_and_kept_as_it_was(void **state)
{
    (void)state;
    struct net_dns_query q = query_of("PyPI.org", NET_DNS_TYPE_A);
    assert_string_equal(q.name, "pypi.org");
    assert_memory_equal(q.wire, "\4PyPI\3org", 10);
    assert_int_equal(q.id, ID);
    assert_true(q.recursion);
    assert_int_equal(q.udp_max, NET_DNS_UDP_MIN);
}

static void questions_that_are_none_get_no_answer(void **state)
{
    (void)state;
    struct net_dns_query q;
    enum net_dns_code code;
    struct bytes b;
    add_head(&b, 0x8100, 0); /* an answer */
    add_question(&b, "a.example", NET_DNS_TYPE_A);
    assert_false(net_dns_query_read(&q, &code, b.data, b.size));
    assert_false(net_dns_query_read(&q, &code, b.data, 11));
    uint8_t large[NET_DNS_QUERY_MAX + 1] = {0};
    assert_false(net_dns_query_read(&q, &code, large, sizeof large));
}

static void other_questions_are_told_what_is_wrong(void **state)
{
    (void)state;
    struct bytes b;
    add_head(&b, 0x0100, 0);
    add_question(&b, "a.example", 16);
    assert_int_equal(code_of(&b), NET_DNS_NOT_IMPLEMENTED);
    add_head(&b, 0x2800, 0); /* an update */
    add_question(&b, "a.example", NET_DNS_TYPE_A);
    assert_int_equal(code_of(&b), NET_DNS_NOT_IMPLEMENTED);
    add_head(&b, 0x0100, 0);
    add_question(&b, "a b.example", NET_DNS_TYPE_A);
    assert_int_equal(code_of(&b), NET_DNS_FORMAT);
    add_head(&b, 0x0100, 0);
    add_question(&b, "", NET_DNS_TYPE_A);
    assert_int_equal(code_of(&b), NET_DNS_FORMAT);
    add_head(&b, 0x0100, 0);
    add_question(&b, "a.example", NET_DNS_TYPE_A);
    add(&b, "x", 1);
    assert_int_equal(code_of(&b), NET_DNS_FORMAT);
    add_head(&b, 0x0100, 0);
    b.data[5] = 2;
    add_question(&b, "a.example", NET_DNS_TYPE_A);
    add_question(&b, "b.example", NET_DNS_TYPE_A);
    assert_int_equal(code_of(&b), NET_DNS_FORMAT);
    add_head(&b, 0x0100, 0);
    add16(&b, 0xc004); /* a name that points into the head */
    add16(&b, 1);
    add16(&b, 1);
    assert_int_equal(code_of(&b), NET_DNS_FORMAT);
}

static void what_the_asker_takes_is_bounded(void **state)
{
    (void)state;
    static const struct {
        unsigned said, taken;
    } sizes[] = {{0, NET_DNS_UDP_MIN}, {1000, 1000}, {65535, NET_DNS_UDP_MAX}};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        struct bytes b;
        struct net_dns_query q;
        enum net_dns_code code;
        add_head(&b, 0x0100, 0);
        b.data[11] = 1;
        add_question(&b, "a.example", NET_DNS_TYPE_A);
        add(&b, "", 1);
        add16(&b, NET_DNS_TYPE_OPT);
        add16(&b, sizes[i].said);
        add(&b, "\0\0\0\0\0\0", 6);
        assert_true(net_dns_query_read(&q, &code, b.data, b.size));
        assert_int_equal(code, NET_DNS_OK);
        assert_int_equal(q.udp_max, sizes[i].taken);
    }
}

static void names_as_long_as_may_be_are_taken_and_no_longer(void **state)
{
    (void)state;
    char name[300];
    memset(name, 'a', sizeof name);
    name[63] = name[127] = name[191] = '.';
    name[253] = '\0';
    struct net_dns_query q = query_of(name, NET_DNS_TYPE_A);
    assert_int_equal(q.wire_length, NET_DNS_WIRE_SIZE);
    uint8_t ask[NET_DNS_QUERY_MAX];
    assert_int_equal(net_dns_ask_write(ask, ID, &q), 12 + 255 + 4 + 11);
    struct bytes b;
    name[253] = 'a';
    name[254] = '\0';
    add_head(&b, 0x0100, 0);
    add_question(&b, name, NET_DNS_TYPE_A);
    assert_int_equal(code_of(&b), NET_DNS_FORMAT);
}

static void an_answer_follows_aliases_in_any_order(void **state)
{
    (void)state;
    struct net_dns_query q = query_of("www.example.org", NET_DNS_TYPE_A);
    struct net_dns_answer a;
    struct bytes b, alias = {.size = 0};
    add_name(&alias, "cdn.example.net");
    add_head(&b, 0x8180, 4);
    add_question(&b, "WWW.example.org", NET_DNS_TYPE_A);
    add_record(&b, "cdn.example.net", NET_DNS_TYPE_A, 300, "\xc6\x33\x64\x07", 4);
    add_record(&b, NULL, NET_DNS_TYPE_CNAME, 60, alias.data, alias.size);
    add_record(&b, "other.example", NET_DNS_TYPE_A, 1, "\x0a\0\0\1", 4); /* nobody asked */
    add_record(&b, "cdn.example.net", NET_DNS_TYPE_A, 300, "\xc6\x33\x64\x08", 4);
    assert_int_equal(net_dns_reply_read(&a, b.data, b.size, ID, &q), NET_DNS_REPLY_WHOLE);
    assert_int_equal(a.address_count, 2);
    assert_int_equal(a.addresses[0], 0xc6336407);
    assert_int_equal(a.ttl, 60);
    assert_int_equal(a.chain_count, 1);
    assert_string_equal(a.chain[0], "cdn.example.net");
    /* And what is made of it says the same. */
    uint8_t out[NET_DNS_ANSWER_MAX];
    struct net_dns_answer again;
    size_t size = net_dns_answer_write(out, sizeof out, &q, a.code, &a);
    assert_int_equal(net_dns_reply_read(&again, out, size, ID, &q), NET_DNS_REPLY_WHOLE);
    assert_int_equal(again.address_count, 2);
    assert_string_equal(again.chain[0], "cdn.example.net");
}

/* Instances have no IPv6 way out: a resolver is asked for the other kind, and the code of its answer
 * counts. */
static void who_asks_for_ipv6_gets_the_code_and_no_address(void **state)
{
    (void)state;
    struct net_dns_query q = query_of("a.example", NET_DNS_TYPE_AAAA);
    const struct net_dns_answer a = {.ttl = 60, .addresses = {0xc6336407}, .address_count = 1};
    uint8_t out[NET_DNS_UDP_MIN];
    assert_int_equal(net_dns_ask_write(out, ID, &q), 12 + 11 + 4 + 11);
    assert_int_equal(out[12 + 11 + 1], NET_DNS_TYPE_A);
    assert_int_equal(net_dns_answer_write(out, sizeof out, &q, NET_DNS_OK, &a), 12 + 11 + 4);
    assert_int_equal(out[3] & 0xf, NET_DNS_OK);
    assert_int_equal(out[7], 0);
    assert_int_equal(out[12 + 11 + 1], NET_DNS_TYPE_AAAA);
}

static void answers_to_something_else_are_foreign(void **state)
{
    (void)state;
    struct net_dns_query q = query_of("www.example.org", NET_DNS_TYPE_A);
    struct net_dns_answer a;
    struct bytes b;
    add_head(&b, 0x8180, 1);
    add_question(&b, "www.example.com", NET_DNS_TYPE_A);
    add_record(&b, NULL, NET_DNS_TYPE_A, 300, "\xc6\x33\x64\x07", 4);
    assert_int_equal(net_dns_reply_read(&a, b.data, b.size, ID, &q), NET_DNS_REPLY_FOREIGN);
    add_head(&b, 0x8180, 1);
    add_question(&b, "www.example.org", NET_DNS_TYPE_A);
    add_record(&b, NULL, NET_DNS_TYPE_A, 300, "\xc6\x33\x64\x07", 4);
    assert_int_equal(net_dns_reply_read(&a, b.data, b.size, ID, &q), NET_DNS_REPLY_WHOLE);
    assert_int_equal(net_dns_reply_read(&a, b.data, b.size, ID + 1, &q), NET_DNS_REPLY_FOREIGN);
    for (size_t size = 0; size < b.size; size++)
        assert_int_equal(net_dns_reply_read(&a, b.data, size, ID, &q), NET_DNS_REPLY_FOREIGN);
    b.data[2] = 0x01; /* a question */
    assert_int_equal(net_dns_reply_read(&a, b.data, b.size, ID, &q), NET_DNS_REPLY_FOREIGN);
    b.data[2] = 0x83; /* truncated */
    assert_int_equal(net_dns_reply_read(&a, b.data, b.size, ID, &q), NET_DNS_REPLY_TRUNCATED);
    b.data[2] = 0x81;
    b.data[3] = 0x82;
    assert_int_equal(net_dns_reply_read(&a, b.data, b.size, ID, &q), NET_DNS_REPLY_FAILED);
}

static void names_that_point_in_circles_end(void **state)
{
    (void)state;
    struct net_dns_query q = query_of("a.example", NET_DNS_TYPE_A);
    struct net_dns_answer a;
    struct bytes b;
    add_head(&b, 0x8180, 1);
    add_question(&b, "a.example", NET_DNS_TYPE_A);
    add16(&b, 0xc000 | (unsigned)b.size); /* itself */
    add(&b, "\0\1\0\1\0\0\0\1\0\4\1\2\3\4", 14);
    assert_int_equal(net_dns_reply_read(&a, b.data, b.size, ID, &q), NET_DNS_REPLY_FOREIGN);
    /* An alias of itself. */
    add_head(&b, 0x8180, 1);
    add_question(&b, "a.example", NET_DNS_TYPE_A);
    add_record(&b, NULL, NET_DNS_TYPE_CNAME, 60, "\xc0\x0c", 2);
    assert_int_equal(net_dns_reply_read(&a, b.data, b.size, ID, &q), NET_DNS_REPLY_FOREIGN);
}

static void what_does_not_fit_is_marked_as_truncated(void **state)
{
    (void)state;
    struct net_dns_query q = query_of("a.example", NET_DNS_TYPE_A);
    struct net_dns_answer a = {.ttl = 60, .address_count = NET_DNS_ADDRESSES_MAX}, again;
    uint8_t out[NET_DNS_ANSWER_MAX];
    for (size_t i = 0; i < a.address_count; i++)
        a.addresses[i] = 0xcb007100u + (uint32_t)i;
    size_t size = net_dns_answer_write(out, NET_DNS_UDP_MIN, &q, NET_DNS_OK, &a);
    assert_int_equal(net_dns_reply_read(&again, out, size, ID, &q), NET_DNS_REPLY_TRUNCATED);
    /* The longest chain there can be. */
    for (size_t i = 0; i < NET_DNS_CHAIN_MAX; i++) {
        memset(a.chain[i], 'a' + (int)i, 253);
        a.chain[i][63] = a.chain[i][127] = a.chain[i][191] = '.';
    }
    a.chain_count = NET_DNS_CHAIN_MAX;
    size = net_dns_answer_write(out, sizeof out, &q, NET_DNS_OK, &a);
    assert_int_equal(net_dns_reply_read(&again, out, size, ID, &q), NET_DNS_REPLY_WHOLE);
    assert_int_equal(again.chain_count, NET_DNS_CHAIN_MAX);
    assert_int_equal(again.address_count, NET_DNS_ADDRESSES_MAX);
}

static void a_rate_gives_its_burst_and_then_its_share(void **state)
{
    (void)state;
    struct names_rate rate = {0};
    unsigned taken = 0;
    while (names_rate_take(&rate, 10, 30, 5000))
        taken++;
    assert_int_equal(taken, 30);
    assert_false(names_rate_take(&rate, 10, 30, 5099));
    assert_true(names_rate_take(&rate, 10, 30, 5100));
    assert_false(names_rate_take(&rate, 10, 30, 5100));
    assert_false(
        names_rate_take(&rate, 10, 30, 0)); /* no clock goes back, but none is paid for it */
}

static void messages_have_exactly_their_size(void **state)
{
    (void)state;
    struct names_message m = {.kind = NAMES_ALLOW, .count = 2};
    assert_true(names_message_valid(&m, names_message_size(&m)));
    assert_false(names_message_valid(&m, names_message_size(&m) - 1));
    m.count = NET_DNS_ADDRESSES_MAX + 1;
    assert_false(names_message_valid(&m, names_message_size(&m)));
    m = (struct names_message){.kind = NAMES_CONFIRM, .count = 1};
    assert_false(names_message_valid(&m, names_message_size(&m)));
    m.kind = (enum names_kind)0;
    assert_false(names_message_valid(&m, names_message_size(&m)));
    assert_false(names_message_valid(&m, 3));
}

static void resolvers_are_addresses(void **state)
{
    (void)state;
    assert_true(net_names_resolver_valid("192.0.2.53"));
    assert_true(net_names_resolver_valid("2001:db8::53"));
    assert_false(net_names_resolver_valid("dns.example.org"));
    assert_false(net_names_resolver_valid("192.0.2.53:53"));
    assert_false(net_names_resolver_valid("fe80::1%eth0"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_question_is_read_in_any_case_and_kept_as_it_was),
        cmocka_unit_test(questions_that_are_none_get_no_answer),
        cmocka_unit_test(other_questions_are_told_what_is_wrong),
        cmocka_unit_test(what_the_asker_takes_is_bounded),
        cmocka_unit_test(names_as_long_as_may_be_are_taken_and_no_longer),
        cmocka_unit_test(an_answer_follows_aliases_in_any_order),
        cmocka_unit_test(who_asks_for_ipv6_gets_the_code_and_no_address),
        cmocka_unit_test(answers_to_something_else_are_foreign),
        cmocka_unit_test(names_that_point_in_circles_end),
        cmocka_unit_test(what_does_not_fit_is_marked_as_truncated),
        cmocka_unit_test(a_rate_gives_its_burst_and_then_its_share),
        cmocka_unit_test(messages_have_exactly_their_size),
        cmocka_unit_test(resolvers_are_addresses),
    };
    return cmocka_run_group_tests_name("net dns", tests, NULL, NULL);
}
