#include "node/cluster/enroll_wire.h"

#include <string.h>

#include "base/bytes.h"
#include "base/memory.h"

#define MAGIC "SKE\1"
#define MAGIC_BYTES 4u
#define HEAD_BYTES (MAGIC_BYTES + 4u)
#define KEY_BYTES 32u

/* --- writing -------------------------------------------------------------------------------------- */

static bool put_number(struct buffer *b, uint64_t value, unsigned bytes)
{
    uint8_t out[8];
    bytes_put(out, bytes, value);
    return buffer_append(b, out, bytes);
}

static bool put_text(struct buffer *b, const char *text)
{
    size_t length = strlen(text);
    return length <= UINT8_MAX && put_number(b, length, 1) && buffer_append(b, text, length);
}

static bool put_head(struct buffer *b, uint16_t major, uint16_t minor)
{
    return put_number(b, 0, ENROLL_LENGTH_BYTES) && buffer_append(b, MAGIC, MAGIC_BYTES) &&
           put_number(b, major, 2) && put_number(b, minor, 2);
}

/* The length, which is known now. */
static void put_length(struct buffer *b, size_t begin)
{
    bytes_put(b->data + begin, ENROLL_LENGTH_BYTES, b->length - begin - ENROLL_LENGTH_BYTES);
}

bool enroll_request_write(const struct enroll_request *r, struct buffer *out)
{
    size_t begin = out->length;
    if (!put_head(out, r->major, r->minor) || !put_number(out, r->wall_ms, 8) ||
        !put_text(out, r->cluster_id) || !put_text(out, r->token_id) || !put_text(out, r->secret) ||
        !put_text(out, r->name) || !put_text(out, r->address) || !put_text(out, r->version) ||
        (r->member != 0 && !put_number(out, r->member, 8)))
        return false;
    put_length(out, begin);
    return true;
}

static bool put_node(struct buffer *out, const struct known_node *node)
{
    return put_number(out, node->id, 8) && put_number(out, node->has_key ? 1 : 0, 1) &&
           buffer_append(out, node->key.bytes, KEY_BYTES) && put_text(out, node->name) &&
           put_text(out, node->address);
}

static bool put_joined(struct buffer *out, const struct enroll_answer *a)
{
    const struct membership *m = &a->membership;
    bool ok = put_number(out, m->id, 8) && put_text(out, m->cluster_id) &&
              put_number(out, m->gossip_key_count, 1);
    for (size_t i = 0; ok && i < m->gossip_key_count; i++)
        ok = buffer_append(out, m->gossip_keys[i], KEY_BYTES);
    ok = ok && put_number(out, a->known.index, 8) && put_number(out, a->known.next, 8) &&
         put_number(out, a->known.node_count, 2);
    for (size_t i = 0; ok && i < a->known.node_count; i++)
        ok = put_node(out, &a->known.nodes[i]);
    return ok;
}

bool enroll_answer_write(const struct enroll_answer *a, struct buffer *out)
{
    size_t begin = out->length;
    if (!put_head(out, a->major, a->minor) || !put_number(out, a->verdict, 1) ||
        !put_text(out, a->words) || (a->verdict == ENROLL_JOINED && !put_joined(out, a)))
        return false;
    put_length(out, begin);
    return true;
}

/* --- reading -------------------------------------------------------------------------------------- */

struct reader {
    const uint8_t *at, *end;
    bool bad; /* then everything is zero */
};

static const uint8_t *take(struct reader *r, size_t size)
{
    if (r->bad || (size_t)(r->end - r->at) < size) {
        r->bad = true;
        return NULL;
    }
    r->at += size;
    return r->at - size;
}

static uint64_t take_number(struct reader *r, unsigned bytes)
{
    const uint8_t *at = take(r, bytes);
    return at == NULL ? 0 : bytes_get(at, bytes);
}

/* Printable ASCII only: it reaches logs and terminals. */
static void take_text(struct reader *r, char *out, size_t size)
{
    size_t length = (size_t)take_number(r, 1);
    const uint8_t *at = take(r, length);
    out[0] = '\0';
    if (at == NULL)
        return;
    for (size_t i = 0; i < length; i++)
        r->bad |= at[i] < ' ' || at[i] > '~';
    if (length >= size)
        r->bad = true;
    if (r->bad)
        return;
    memcpy(out, at, length);
    out[length] = '\0';
}

static bool take_head(struct reader *r, uint16_t *major, uint16_t *minor)
{
    const uint8_t *magic = take(r, MAGIC_BYTES);
    *major = (uint16_t)take_number(r, 2);
    *minor = (uint16_t)take_number(r, 2);
    return !r->bad && memcmp(magic, MAGIC, MAGIC_BYTES) == 0;
}

size_t enroll_length_read(const uint8_t bytes[ENROLL_LENGTH_BYTES], size_t length_max)
{
    struct reader r = {.at = bytes, .end = bytes + ENROLL_LENGTH_BYTES};
    uint64_t length = take_number(&r, ENROLL_LENGTH_BYTES);
    return length >= HEAD_BYTES && length <= length_max ? (size_t)length : 0;
}

static bool has_token(const struct enroll_request *r)
{
    return strlen(r->token_id) == ENROLL_ID_SIZE - 1 && strlen(r->secret) == ENROLL_SECRET_SIZE - 1;
}

int enroll_request_read(struct enroll_request *out, const uint8_t *data, size_t size, struct err *e)
{
    struct reader r = {.at = data, .end = data + size};
    *out = (struct enroll_request){0};
    if (!take_head(&r, &out->major, &out->minor))
        return err_set(e, ERR_PROTOCOL, "this is no request to join");
    if (out->major != ENROLL_PROTOCOL_MAJOR)
        return err_set(e, ERR_UNSUPPORTED, "a request of protocol %u", (unsigned)out->major);
    out->wall_ms = take_number(&r, 8);
    take_text(&r, out->cluster_id, sizeof out->cluster_id);
    take_text(&r, out->token_id, sizeof out->token_id);
    take_text(&r, out->secret, sizeof out->secret);
    take_text(&r, out->name, sizeof out->name);
    take_text(&r, out->address, sizeof out->address);
    take_text(&r, out->version, sizeof out->version);
    bool token = out->token_id[0] != '\0' || out->secret[0] != '\0';
    if (!token)
        out->member = take_number(&r, 8);
    if (r.bad || r.at != r.end || !membership_cluster_valid(out->cluster_id) ||
        !(token ? has_token(out) : out->member > 0 && out->member <= INT64_MAX))
        return err_set(e, ERR_PROTOCOL, "this is no request to join");
    return 0;
}

static bool take_nodes(struct reader *r, struct known *known)
{
    struct err e;
    known->index = take_number(r, 8);
    known->next = take_number(r, 8);
    uint64_t count = take_number(r, 2);
    for (uint64_t i = 0; !r->bad && i < count; i++) {
        struct known_node node = {.id = take_number(r, 8)};
        uint64_t has_key = take_number(r, 1);
        const uint8_t *key = take(r, KEY_BYTES);
        take_text(r, node.name, sizeof node.name);
        take_text(r, node.address, sizeof node.address);
        node.has_key = has_key == 1;
        if (r->bad || has_key > 1)
            return false;
        memcpy(node.key.bytes, key, KEY_BYTES);
        if (known_add(known, &node, &e) != 0)
            return false;
    }
    return !r->bad && known->index <= INT64_MAX && known->next <= INT64_MAX;
}

static bool take_joined(struct reader *r, struct enroll_answer *out)
{
    struct membership *m = &out->membership;
    m->id = take_number(r, 8);
    take_text(r, m->cluster_id, sizeof m->cluster_id);
    uint64_t keys = take_number(r, 1);
    if (r->bad || keys > REGISTRY_KEYRING_MAX || m->id == 0 || m->id > INT64_MAX ||
        !membership_cluster_valid(m->cluster_id))
        return false;
    m->gossip_key_count = (size_t)keys;
    for (size_t i = 0; i < m->gossip_key_count; i++) {
        const uint8_t *key = take(r, KEY_BYTES);
        if (key == NULL)
            return false;
        memcpy(m->gossip_keys[i], key, KEY_BYTES);
    }
    return take_nodes(r, &out->known);
}

int enroll_answer_read(struct enroll_answer *out, const uint8_t *data, size_t size, struct err *e)
{
    struct reader r = {.at = data, .end = data + size};
    *out = (struct enroll_answer){0};
    bool ok = take_head(&r, &out->major, &out->minor);
    uint64_t verdict = take_number(&r, 1);
    take_text(&r, out->words, sizeof out->words);
    ok = ok && !r.bad && verdict >= ENROLL_JOINED && verdict <= ENROLL_REMOVED;
    if (ok) {
        out->verdict = (enum enroll_verdict)verdict;
        if (out->major != ENROLL_PROTOCOL_MAJOR)
            return err_set(e, ERR_UNSUPPORTED, "it speaks protocol %u of joining, this version %u",
                           (unsigned)out->major, ENROLL_PROTOCOL_MAJOR);
        ok = verdict != ENROLL_JOINED || take_joined(&r, out);
    }
    if (ok && r.at == r.end)
        return 0;
    return err_set(e, ERR_PROTOCOL, "its answer is none to a request to join");
}
