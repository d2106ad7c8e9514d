#include "sandbox/runner/net_dns.h"

#include <string.h>

#include "base/memory.h"

#define HEAD_SIZE 12u
#define LABEL_MAX 63u
#define CLASS_IN 1u
#define FLAG_RESPONSE 0x8000u
#define FLAG_TRUNCATED 0x0200u
#define FLAG_RECURSION 0x0100u
#define FLAG_AVAILABLE 0x0080u
#define OPCODE(flags) ((flags) >> 11 & 0xfu)
#define CODE(flags) ((flags)&0xfu)
#define NAME_IS_QUESTION 0xc000u /* a pointer; the question is behind the head */

/* --- bytes ---------------------------------------------------------------------------------------- */

struct reader {
    const uint8_t *data;
    size_t size, at;
};

static bool take16(struct reader *r, uint16_t *out)
{
    if (r->size - r->at < 2)
        return false;
    *out = (uint16_t)(r->data[r->at] << 8 | r->data[r->at + 1]);
    r->at += 2;
    return true;
}

static bool take32(struct reader *r, uint32_t *out)
{
    uint16_t high, low;
    if (!take16(r, &high) || !take16(r, &low))
        return false;
    *out = (uint32_t)high << 16 | low;
    return true;
}

static void put16(uint8_t *out, size_t *at, unsigned value)
{
    out[(*at)++] = (uint8_t)(value >> 8);
    out[(*at)++] = (uint8_t)value;
}

static void put32(uint8_t *out, size_t *at, uint32_t value)
{
    put16(out, at, value >> 16);
    put16(out, at, value & 0xffff);
}

/* --- names ---------------------------------------------------------------------------------------- */

static bool character_read(char *out, uint8_t c)
{
    if (c >= 'A' && c <= 'Z')
        c = (uint8_t)(c - 'A' + 'a');
    *out = (char)c;
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static bool label_read(const struct reader *r, size_t at, size_t count, char *out, size_t *length)
{
    if (*length > 0)
        out[(*length)++] = '.';
    if (r->size - at < count || *length + count >= NET_DNS_NAME_SIZE)
        return false;
    for (size_t i = 0; i < count; i++)
        if (!character_read(&out[(*length)++], r->data[at + i]))
            return false;
    return true;
}

/* Into lower case text. A pointer must point before the piece it ends, so that reading comes to an end. */
static bool name_read(struct reader *r, char out[NET_DNS_NAME_SIZE])
{
    size_t at = r->at, piece = r->at, length = 0;
    bool jumped = false;
    while (at < r->size) {
        unsigned count = r->data[at++];
        if (count == 0) {
            out[length] = '\0';
            if (!jumped)
                r->at = at;
            return length > 0;
        }
        if ((count & 0xc0) == 0xc0) {
            if (at == r->size)
                return false;
            size_t target = (count & 0x3fu) << 8 | r->data[at++];
            if (!jumped)
                r->at = at;
            jumped = true;
            if (target >= piece)
                return false;
            at = piece = target;
        } else if (count > LABEL_MAX || !label_read(r, at, count, out, &length)) {
            return false;
        } else {
            at += count;
        }
    }
    return false;
}

/* The text was read from a message, so its labels have the right lengths. */
static void name_put(uint8_t *out, size_t *at, const char *name)
{
    while (*name != '\0') {
        size_t count = strcspn(name, ".");
        out[(*at)++] = (uint8_t)count;
        memcpy(out + *at, name, count);
        *at += count;
        name += count + (name[count] == '.');
    }
    out[(*at)++] = 0;
}

/* --- questions ------------------------------------------------------------------------------------ */

/* Behind the question only an OPT may stand (RFC 6891), which says what the asker takes. */
static bool option_read(struct reader *r, uint16_t *udp_max)
{
    uint16_t type, size, length;
    uint32_t flags;
    if (r->at == r->size || r->data[r->at++] != 0)
        return false;
    if (!take16(r, &type) || !take16(r, &size) || !take32(r, &flags) || !take16(r, &length) ||
        type != NET_DNS_TYPE_OPT || r->size - r->at != length)
        return false;
    *udp_max = size;
    r->at = r->size;
    return true;
}

static enum net_dns_code question_read(struct net_dns_query *q, struct reader *r)
{
    uint16_t class, begin = (uint16_t)r->at;
    if (!name_read(r, q->name))
        return NET_DNS_FORMAT;
    size_t length = r->at - begin;
    if (length > sizeof q->wire || strlen(q->name) + 2 != length) /* a pointer */
        return NET_DNS_FORMAT;
    memcpy(q->wire, r->data + begin, length);
    q->wire_length = length;
    if (!take16(r, &q->type) || !take16(r, &class))
        return NET_DNS_FORMAT;
    q->asked = true;
    bool served = q->type == NET_DNS_TYPE_A || q->type == NET_DNS_TYPE_AAAA;
    return class == CLASS_IN && served ? NET_DNS_OK : NET_DNS_NOT_IMPLEMENTED;
}

bool net_dns_query_read(struct net_dns_query *q, enum net_dns_code *code, const uint8_t *data,
                        size_t size)
{
    struct reader r = {data, size, 0};
    uint16_t flags, counts[4];
    memset(q, 0, sizeof *q);
    q->udp_max = NET_DNS_UDP_MIN;
    if (size > NET_DNS_QUERY_MAX || !take16(&r, &q->id) || !take16(&r, &flags) ||
        (flags & FLAG_RESPONSE) != 0)
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++)
        if (!take16(&r, &counts[i]))
            return false;
    q->recursion = (flags & FLAG_RECURSION) != 0;
    *code = NET_DNS_FORMAT;
    if (OPCODE(flags) != 0)
        *code = NET_DNS_NOT_IMPLEMENTED;
    else if (counts[0] == 1 && counts[1] == 0 && counts[2] == 0 && counts[3] <= 1)
        *code = question_read(q, &r);
    bool option = counts[3] == 1 && q->asked;
    if (q->asked && ((option && !option_read(&r, &q->udp_max)) || r.at != size))
        *code = NET_DNS_FORMAT;
    if (q->udp_max < NET_DNS_UDP_MIN)
        q->udp_max = NET_DNS_UDP_MIN;
    if (q->udp_max > NET_DNS_UDP_MAX)
        q->udp_max = NET_DNS_UDP_MAX;
    return true;
}

static void question_put(uint8_t *out, size_t *at, const struct net_dns_query *q, unsigned type)
{
    memcpy(out + *at, q->wire, q->wire_length);
    *at += q->wire_length;
    put16(out, at, type);
    put16(out, at, CLASS_IN);
}

size_t net_dns_ask_write(uint8_t *out, uint16_t id, const struct net_dns_query *q)
{
    const unsigned head[] = {id, FLAG_RECURSION, 1, 0, 0, 1};
    size_t at = 0;
    for (size_t i = 0; i < ARRAY_SIZE(head); i++)
        put16(out, &at, head[i]);
    question_put(out, &at, q, NET_DNS_TYPE_A);
    out[at++] = 0;
    put16(out, &at, NET_DNS_TYPE_OPT);
    put16(out, &at, NET_DNS_UDP_MAX);
    put32(out, &at, 0);
    put16(out, &at, 0);
    return at;
}

/* --- answers of resolvers --------------------------------------------------------------------------- */

struct record {
    char owner[NET_DNS_NAME_SIZE];
    uint16_t type, class, length;
    uint32_t ttl;
    size_t begin; /* of its data */
};

static bool record_read(struct reader *r, struct record *out)
{
    if (!name_read(r, out->owner) || !take16(r, &out->type) || !take16(r, &out->class) ||
        !take32(r, &out->ttl) || !take16(r, &out->length) || r->size - r->at < out->length)
        return false;
    if (out->ttl > INT32_MAX) /* RFC 2181, section 8 */
        out->ttl = 0;
    out->begin = r->at;
    r->at += out->length;
    return true;
}

/* The alias of `owner`: 1, none: 0, malformed: -1. */
static int alias_find(struct reader r, size_t count, const char *owner, char out[NET_DNS_NAME_SIZE],
                      uint32_t *ttl)
{
    struct record record;
    for (size_t i = 0; i < count; i++) {
        if (!record_read(&r, &record))
            return -1;
        if (record.type != NET_DNS_TYPE_CNAME || record.class != CLASS_IN ||
            strcmp(record.owner, owner) != 0)
            continue;
        struct reader data = {r.data, record.begin + record.length, record.begin};
        if (!name_read(&data, out) || data.at != data.size)
            return -1;
        if (record.ttl < *ttl)
            *ttl = record.ttl;
        return 1;
    }
    return 0;
}

static bool addresses_collect(struct net_dns_answer *out, struct reader r, size_t count,
                              const char *owner)
{
    struct record record;
    for (size_t i = 0; i < count; i++) {
        if (!record_read(&r, &record))
            return false;
        if (record.type != NET_DNS_TYPE_A || record.class != CLASS_IN ||
            strcmp(record.owner, owner) != 0)
            continue;
        if (record.length != 4)
            return false;
        if (out->address_count == NET_DNS_ADDRESSES_MAX)
            continue;
        struct reader data = {r.data, record.begin + 4, record.begin};
        if (!take32(&data, &out->addresses[out->address_count++]))
            return false;
        if (record.ttl < out->ttl)
            out->ttl = record.ttl;
    }
    return true;
}

static bool answer_read(struct net_dns_answer *out, const struct reader *r, size_t count,
                        const char *name)
{
    int found = 1;
    while (found == 1) {
        char next[NET_DNS_NAME_SIZE];
        found = alias_find(*r, count, name, next, &out->ttl);
        if (found < 0 || (found == 1 && out->chain_count == NET_DNS_CHAIN_MAX))
            return false;
        if (found == 1) {
            name = out->chain[out->chain_count++];
            text_copy(out->chain[out->chain_count - 1], NET_DNS_NAME_SIZE, next);
        }
    }
    return addresses_collect(out, *r, count, name);
}

enum net_dns_reply net_dns_reply_read(struct net_dns_answer *out, const uint8_t *data, size_t size,
                                      uint16_t id, const struct net_dns_query *q)
{
    struct reader r = {data, size, 0};
    uint16_t head[6], type, class;
    char name[NET_DNS_NAME_SIZE];
    memset(out, 0, sizeof *out);
    out->ttl = INT32_MAX;
    for (size_t i = 0; i < ARRAY_SIZE(head); i++)
        if (!take16(&r, &head[i]))
            return NET_DNS_REPLY_FOREIGN;
    if (head[0] != id || (head[1] & FLAG_RESPONSE) == 0 || OPCODE(head[1]) != 0 || head[2] != 1)
        return NET_DNS_REPLY_FOREIGN;
    if (!name_read(&r, name) || strcmp(name, q->name) != 0 || !take16(&r, &type) ||
        !take16(&r, &class) || type != NET_DNS_TYPE_A || class != CLASS_IN)
        return NET_DNS_REPLY_FOREIGN;
    if ((head[1] & FLAG_TRUNCATED) != 0)
        return NET_DNS_REPLY_TRUNCATED;
    if (CODE(head[1]) != NET_DNS_OK && CODE(head[1]) != NET_DNS_NO_NAME)
        return NET_DNS_REPLY_FAILED;
    if (head[3] > NET_DNS_RECORDS_MAX || !answer_read(out, &r, head[3], name))
        return NET_DNS_REPLY_FOREIGN;
    out->code = CODE(head[1]) == NET_DNS_OK ? NET_DNS_OK : NET_DNS_NO_NAME;
    return NET_DNS_REPLY_WHOLE;
}

/* --- answers to instances ----------------------------------------------------------------------------- */

static void record_put(uint8_t *out, size_t *at, size_t owner, unsigned type, uint32_t ttl)
{
    put16(out, at, NAME_IS_QUESTION | (unsigned)owner);
    put16(out, at, type);
    put16(out, at, CLASS_IN);
    put32(out, at, ttl);
}

/* The number of records, or 0 and nothing written where they do not fit. */
static size_t records_put(uint8_t *out, size_t *at, size_t size, const struct net_dns_answer *a,
                          size_t addresses)
{
    size_t need = addresses * 16, owner = HEAD_SIZE;
    for (size_t i = 0; i < a->chain_count; i++)
        need += 12 + strlen(a->chain[i]) + 2;
    if (size - *at < need)
        return 0;
    for (size_t i = 0; i < a->chain_count; i++) {
        record_put(out, at, owner, NET_DNS_TYPE_CNAME, a->ttl);
        put16(out, at, (unsigned)strlen(a->chain[i]) + 2);
        owner = *at;
        name_put(out, at, a->chain[i]);
    }
    for (size_t i = 0; i < addresses; i++) {
        record_put(out, at, owner, NET_DNS_TYPE_A, a->ttl);
        put16(out, at, 4);
        put32(out, at, a->addresses[i]);
    }
    return a->chain_count + addresses;
}

size_t net_dns_answer_write(uint8_t *out, size_t size, const struct net_dns_query *q,
                            enum net_dns_code code, const struct net_dns_answer *answer)
{
    size_t at = HEAD_SIZE, count = 0, whole = 0, head = 0;
    assert_always(size >= NET_DNS_UDP_MIN);
    if (q->asked)
        question_put(out, &at, q, q->type);
    if (answer != NULL && q->asked) {
        size_t addresses = q->type == NET_DNS_TYPE_A ? answer->address_count : 0;
        whole = answer->chain_count + addresses;
        count = records_put(out, &at, size, answer, addresses);
    }
    unsigned flags = FLAG_RESPONSE | FLAG_AVAILABLE | (q->recursion ? FLAG_RECURSION : 0) |
                     (count < whole ? FLAG_TRUNCATED : 0) | (unsigned)code;
    const unsigned words[] = {q->id, flags, q->asked, (unsigned)count, 0, 0};
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        put16(out, &head, words[i]);
    return at;
}
