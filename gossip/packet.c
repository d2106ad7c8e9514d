#include "gossip/packet.h"

#include <string.h>

#include "base/memory.h"

enum { SYNC_MARK = 'S', SYNC_VERSION = 1, VARINT_BYTES_MAX = 10 };

/* --- writing ---------------------------------------------------------------------------------- */

static bool put(struct packet_writer *w, const void *bytes, size_t size)
{
    if (size > w->size - w->length)
        return false;
    if (size > 0)
        memcpy(w->data + w->length, bytes, size);
    w->length += size;
    return true;
}

static bool put_byte(struct packet_writer *w, unsigned value)
{
    uint8_t byte = (uint8_t)value;
    return put(w, &byte, 1);
}

static bool put_number(struct packet_writer *w, uint64_t value)
{
    uint8_t bytes[VARINT_BYTES_MAX];
    size_t n = 0;
    do {
        bytes[n++] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value > 0);
    return put(w, bytes, n);
}

static bool put_text(struct packet_writer *w, const char *text)
{
    size_t length = strlen(text);
    return length <= UINT8_MAX && put_byte(w, (unsigned)length) && put(w, text, length);
}

static size_t address_bytes(unsigned family)
{
    return family == ADDRESS_V4 ? 4 : family == ADDRESS_V6 ? 16 : 0;
}

static bool put_address(struct packet_writer *w, const struct address *a)
{
    uint8_t port[2] = {(uint8_t)(a->port >> 8), (uint8_t)a->port};
    return put_byte(w, a->family) &&
           (a->family == ADDRESS_NONE ||
            (put(w, a->bytes, address_bytes(a->family)) && put(w, port, sizeof port)));
}

bool packet_write_head(struct packet_writer *w, const struct packet_head *head)
{
    return put_byte(w, head->kind) && put_byte(w, head->flags) && put_number(w, head->sequence) &&
           put_number(w, head->target);
}

bool packet_write_sync_head(struct packet_writer *w)
{
    return put_byte(w, SYNC_MARK) && put_byte(w, SYNC_VERSION);
}

static bool put_state(struct packet_writer *w, const struct packet_item *item)
{
    bool done = put_byte(w, item->state) && put_number(w, item->incarnation) &&
                put_address(w, &item->address);
    if (!done || item->state != GOSSIP_SUSPECT)
        return done;
    done = put_byte(w, item->by_count);
    for (uint32_t i = 0; done && i < item->by_count; i++)
        done = put_number(w, item->by[i]);
    return done;
}

bool packet_write_item(struct packet_writer *w, const struct packet_item *item)
{
    uint8_t space[GOSSIP_META_BYTES_MAX + 64];
    struct packet_writer body = {space, sizeof space, 0};
    bool done = put_number(&body, item->id) && put_number(&body, item->boot);
    if (item->kind == PACKET_STATE)
        done = done && put_state(&body, item);
    else
        done = done && put_number(&body, item->version) && put(&body, item->bytes, item->size);
    size_t before = w->length;
    done =
        done && put_byte(w, item->kind) && put_number(w, body.length) && put(w, space, body.length);
    if (!done)
        w->length = before;
    return done;
}

size_t packet_encode_meta(uint8_t out[GOSSIP_META_BYTES_MAX], const struct gossip_meta *meta)
{
    struct packet_writer w = {out, GOSSIP_META_BYTES_MAX, 0};
    bool done = put_text(&w, meta->name) && put_text(&w, meta->zone) && put_text(&w, meta->version);
    done = done && put_byte(&w, GOSSIP_PORT_COUNT);
    for (size_t i = 0; done && i < GOSSIP_PORT_COUNT; i++)
        done = put_address(&w, &meta->addresses[i]);
    done = done && put_number(&w, meta->roles) && put_number(&w, meta->cpu_millis) &&
           put_number(&w, meta->instances_max) && put_number(&w, meta->memory_bytes) &&
           meta->label_count <= GOSSIP_LABELS_MAX && put_byte(&w, meta->label_count);
    for (size_t i = 0; done && i < meta->label_count; i++)
        done = put_text(&w, meta->labels[i].key) && put_text(&w, meta->labels[i].value);
    struct gossip_meta checked;
    return done && packet_decode_meta(&checked, out, w.length) ? w.length : 0;
}

size_t packet_encode_load(uint8_t out[PACKET_LOAD_BYTES_MAX], const struct gossip_load *load)
{
    struct packet_writer w = {out, PACKET_LOAD_BYTES_MAX, 0};
    bool done = put_number(&w, load->instances) && put_number(&w, load->joiners) &&
                put_number(&w, load->cpu_millis) && put_number(&w, load->memory_bytes) &&
                load->workload_count <= GOSSIP_LOAD_WORKLOADS_MAX &&
                put_byte(&w, load->workload_count);
    for (size_t i = 0; done && i < load->workload_count; i++) {
        const struct gossip_load_workload *l = &load->workloads[i];
        uint8_t hash[8];
        for (unsigned b = 0; b < 8; b++)
            hash[b] = (uint8_t)(l->workload >> (8 * b));
        done = put(&w, hash, 8) && put_number(&w, l->instances) && put_number(&w, l->joiners);
    }
    return done ? w.length : 0;
}

/* --- reading ---------------------------------------------------------------------------------- */

static bool get(struct packet_reader *r, const uint8_t **out, size_t size)
{
    if (size > (size_t)(r->end - r->at))
        return false;
    *out = r->at;
    r->at += size;
    return true;
}

static bool get_byte(struct packet_reader *r, uint8_t *out)
{
    if (r->at == r->end)
        return false;
    *out = *r->at++;
    return true;
}

static bool get_number(struct packet_reader *r, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t byte;
        if (!get_byte(r, &byte) || (shift == 63 && byte > 1))
            return false;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if ((byte & 0x80) == 0) {
            *out = value;
            return value <= max;
        }
    }
    return false;
}

static bool get_number32(struct packet_reader *r, uint32_t *out)
{
    uint64_t value;
    if (!get_number(r, UINT32_MAX, &value))
        return false;
    *out = (uint32_t)value;
    return true;
}

/* What people will read on a terminal: no control characters. */
static bool get_text(struct packet_reader *r, char *out, size_t size)
{
    uint8_t length;
    const uint8_t *bytes;
    if (!get_byte(r, &length) || length >= size || !get(r, &bytes, length))
        return false;
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] < 0x20 || bytes[i] == 0x7f)
            return false;
    }
    memcpy(out, bytes, length);
    out[length] = '\0';
    return true;
}

static bool get_address(struct packet_reader *r, struct address *out)
{
    const uint8_t *bytes, *port;
    *out = (struct address){0};
    if (!get_byte(r, &out->family))
        return false;
    if (out->family == ADDRESS_NONE)
        return true;
    size_t size = address_bytes(out->family);
    if (size == 0 || !get(r, &bytes, size) || !get(r, &port, 2))
        return false;
    memcpy(out->bytes, bytes, size);
    out->port = (uint16_t)(port[0] << 8 | port[1]);
    return true;
}

bool packet_read_head(struct packet_reader *r, struct packet_head *out)
{
    uint8_t kind;
    if (!get_byte(r, &kind) || kind < PACKET_PING || kind > PACKET_GOSSIP ||
        !get_byte(r, &out->flags) || !get_number32(r, &out->sequence) ||
        !get_number(r, UINT64_MAX, &out->target))
        return false;
    out->kind = kind;
    return true;
}

bool packet_read_sync_head(struct packet_reader *r)
{
    uint8_t mark, version;
    return get_byte(r, &mark) && get_byte(r, &version) && mark == SYNC_MARK &&
           version == SYNC_VERSION;
}

static bool get_state(struct packet_reader *r, struct packet_item *out)
{
    uint8_t state, count;
    if (!get_byte(r, &state) || state >= GOSSIP_STATE_COUNT ||
        !get_number32(r, &out->incarnation) || !get_address(r, &out->address))
        return false;
    out->state = state;
    if (state != GOSSIP_SUSPECT)
        return true;
    if (!get_byte(r, &count) || count == 0 || count > ARRAY_SIZE(out->by))
        return false;
    out->by_count = count;
    for (size_t i = 0; i < count; i++) {
        if (!get_number(r, UINT64_MAX, &out->by[i]) || out->by[i] == 0)
            return false;
    }
    return true;
}

static bool get_versioned(struct packet_reader *r, struct packet_item *out)
{
    if (!get_number32(r, &out->version) || out->version == 0)
        return false;
    out->bytes = r->at;
    out->size = (size_t)(r->end - r->at);
    r->at = r->end;
    if (out->kind == PACKET_META) {
        struct gossip_meta meta;
        return packet_decode_meta(&meta, out->bytes, out->size);
    }
    struct gossip_load load;
    return packet_decode_load(&load, out->bytes, out->size);
}

int packet_read_item(struct packet_reader *r, struct packet_item *out)
{
    while (r->at < r->end) {
        uint8_t kind;
        uint64_t size;
        const uint8_t *bytes;
        if (!get_byte(r, &kind) || !get_number(r, UINT16_MAX, &size) ||
            !get(r, &bytes, (size_t)size))
            return -1;
        if (kind < PACKET_STATE || kind > PACKET_LOAD)
            continue;
        struct packet_reader body = {bytes, bytes + size};
        *out = (struct packet_item){.kind = kind};
        if (!get_number(&body, UINT64_MAX, &out->id) || out->id == 0 ||
            !get_number(&body, UINT64_MAX, &out->boot) || out->boot == 0)
            return -1;
        bool good = kind == PACKET_STATE ? get_state(&body, out) : get_versioned(&body, out);
        /* Bytes behind what we know are a later version's. */
        return good ? 1 : -1;
    }
    return 0;
}

bool packet_decode_meta(struct gossip_meta *out, const uint8_t *bytes, size_t size)
{
    if (size > GOSSIP_META_BYTES_MAX)
        return false;
    struct packet_reader r = {bytes, bytes + size};
    uint8_t addresses, labels;
    *out = (struct gossip_meta){0};
    if (!get_text(&r, out->name, sizeof out->name) || !get_text(&r, out->zone, sizeof out->zone) ||
        !get_text(&r, out->version, sizeof out->version) || !get_byte(&r, &addresses))
        return false;
    for (unsigned i = 0; i < addresses; i++) {
        struct address address;
        if (!get_address(&r, &address))
            return false;
        if (i < GOSSIP_PORT_COUNT)
            out->addresses[i] = address;
    }
    if (!get_number32(&r, &out->roles) || !get_number32(&r, &out->cpu_millis) ||
        !get_number32(&r, &out->instances_max) || !get_number(&r, UINT64_MAX, &out->memory_bytes) ||
        !get_byte(&r, &labels) || labels > GOSSIP_LABELS_MAX)
        return false;
    out->label_count = labels;
    for (size_t i = 0; i < labels; i++) {
        struct gossip_label *l = &out->labels[i];
        if (!get_text(&r, l->key, sizeof l->key) || !get_text(&r, l->value, sizeof l->value))
            return false;
    }
    return true;
}

bool packet_decode_load(struct gossip_load *out, const uint8_t *bytes, size_t size)
{
    if (size > PACKET_LOAD_BYTES_MAX)
        return false;
    struct packet_reader r = {bytes, bytes + size};
    uint8_t count;
    *out = (struct gossip_load){0};
    if (!get_number32(&r, &out->instances) || !get_number32(&r, &out->joiners) ||
        !get_number32(&r, &out->cpu_millis) || !get_number(&r, UINT64_MAX, &out->memory_bytes) ||
        !get_byte(&r, &count) || count > GOSSIP_LOAD_WORKLOADS_MAX)
        return false;
    out->workload_count = count;
    for (size_t i = 0; i < count; i++) {
        struct gossip_load_workload *l = &out->workloads[i];
        const uint8_t *hash;
        if (!get(&r, &hash, 8) || !get_number32(&r, &l->instances) ||
            !get_number32(&r, &l->joiners))
            return false;
        for (unsigned b = 0; b < 8; b++)
            l->workload |= (uint64_t)hash[b] << (8 * b);
    }
    return true;
}
