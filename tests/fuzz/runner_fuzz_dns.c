/* A question as an instance may send it, and an answer as anybody may: what is taken is in its bounds, and
 * what is made of it can be read again and says the same. The first byte is the length of the question. */
#include <string.h>

#include "base/memory.h"
#include "sandbox/runner/net_dns.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_name(const char *name)
{
    size_t length = strnlen(name, NET_DNS_NAME_SIZE);
    assert_always(length > 0 && length < NET_DNS_NAME_SIZE);
    assert_always(strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == length);
    assert_always(name[0] != '.' && name[length - 1] != '.' && strstr(name, "..") == NULL);
}

static void check_answer(const struct net_dns_query *q, const struct net_dns_answer *a)
{
    uint8_t out[NET_DNS_ANSWER_MAX];
    struct net_dns_answer again;
    size_t size = net_dns_answer_write(out, q->udp_max, q, a->code, a);
    assert_always(size <= q->udp_max);
    size = net_dns_answer_write(out, sizeof out, q, a->code, a);
    assert_always(size <= sizeof out);
    assert_always(net_dns_reply_read(&again, out, size, q->id, q) == NET_DNS_REPLY_WHOLE);
    assert_always(again.code == a->code && again.address_count == a->address_count &&
                  again.chain_count == a->chain_count);
    assert_always(
        memcmp(again.addresses, a->addresses, a->address_count * sizeof a->addresses[0]) == 0);
    for (size_t i = 0; i < a->chain_count; i++) {
        check_name(a->chain[i]);
        assert_always(strcmp(a->chain[i], again.chain[i]) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct net_dns_query q, again;
    enum net_dns_code code;
    uint8_t ask[NET_DNS_QUERY_MAX], out[NET_DNS_UDP_MIN];
    if (size == 0)
        return 0;
    size_t length = data[0] < size - 1 ? data[0] : size - 1;
    if (!net_dns_query_read(&q, &code, data + 1, length))
        return 0;
    assert_always(q.udp_max >= NET_DNS_UDP_MIN && q.udp_max <= NET_DNS_UDP_MAX);
    assert_always(net_dns_answer_write(out, sizeof out, &q, code, NULL) <= sizeof out);
    if (code != NET_DNS_OK)
        return 0;
    check_name(q.name);
    enum net_dns_code code_again;
    size_t asked = net_dns_ask_write(ask, q.id, &q);
    assert_always(net_dns_query_read(&again, &code_again, ask, asked) && code_again == NET_DNS_OK &&
                  strcmp(q.name, again.name) == 0);
    struct net_dns_answer a;
    q.type = NET_DNS_TYPE_A;
    if (net_dns_reply_read(&a, data + 1 + length, size - 1 - length, q.id, &q) ==
        NET_DNS_REPLY_WHOLE)
        check_answer(&q, &a);
    return 0;
}
