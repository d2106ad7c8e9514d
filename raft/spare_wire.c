#include "raft/spare_wire.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/memory.h"

enum { MEMBER_BYTES = 9 };
static const uint8_t magic[4] = {'S', 'K', 'S', 'P'};

/* What each kind may be long, and who may say it. */
static const struct {
    enum spare_side side;
    uint32_t size_min, size_max;
} kinds[SPARE_KIND_LAST + 1] = {
    [SPARE_HELLO] = {SPARE_ASKS, 24, 24},
    [SPARE_ACK] = {SPARE_ASKS, 8, 8},
    [SPARE_REFUSED] = {SPARE_FEEDS, 1, 1 + SPARE_MEMBERS_MAX *MEMBER_BYTES},
    [SPARE_RESUMED] = {SPARE_FEEDS, 16, 16},
    [SPARE_SNAPSHOT] = {SPARE_FEEDS, 24, 24},
    [SPARE_DATA] = {SPARE_FEEDS, 1, SPARE_DATA_BYTES_MAX},
    [SPARE_ENTRY] = {SPARE_FEEDS, 9, SPARE_ENTRY_BYTES_MAX},
    [SPARE_PROGRESS] = {SPARE_FEEDS, 32, 32},
    [SPARE_MEMBERS] = {SPARE_FEEDS, 0, SPARE_MEMBERS_MAX *MEMBER_BYTES},
    [SPARE_WAIT] = {SPARE_FEEDS, 0, 0},
};

const char *spare_refusal_text(enum spare_refusal why)
{
    static const char *const texts[] = {
        [SPARE_IS_MEMBER] = "raft itself brings this node the log",
        [SPARE_NOT_FOLLOWING] = "it hears of no leader itself",
        [SPARE_FULL] = "it feeds as many as it may",
        [SPARE_OTHER_GENERATION] =
            "the cluster was recovered or restored without this node: wipe its data and let it "
            "join anew",
        [SPARE_OTHER_VERSION] = "it is of a version that does not know this one: upgrade all nodes",
        [SPARE_BEHIND] = "it is behind this node",
    };
    return texts[why];
}

/* --- writing ---------------------------------------------------------------------------------------- */

static size_t members_put(uint8_t *at, const struct spare_record *r)
{
    for (size_t i = 0; i < r->member_count; i++, at += MEMBER_BYTES) {
        bytes_put(at, 8, r->members[i].id);
        at[8] = (uint8_t)r->members[i].role;
    }
    return r->member_count * MEMBER_BYTES;
}

/* Up to four numbers of 8 bytes each. */
static size_t numbers_put(uint8_t *at, const uint64_t *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bytes_put(at + i * 8, 8, numbers[i]);
    return count * 8;
}

size_t spare_encode(uint8_t out[SPARE_RECORD_BYTES_MAX], const struct spare_record *r)
{
    uint8_t *at = out + SPARE_HEADER_BYTES;
    const uint64_t begins[] = {r->generation, r->applied, r->bytes};
    const uint64_t progress[] = {r->applied, r->commit, r->term, r->leader};
    size_t size = 0, follows = 0;
    assert_always(r->member_count <= SPARE_MEMBERS_MAX);
    switch (r->kind) {
    case SPARE_HELLO:
        memcpy(at, magic, sizeof magic);
        bytes_put(at + 4, 4, r->version);
        size = 8 + numbers_put(at + 8, begins, 2);
        break;
    case SPARE_ACK:
        size = numbers_put(at, &r->applied, 1);
        break;
    case SPARE_REFUSED:
        at[0] = (uint8_t)r->why;
        size = 1 + members_put(at + 1, r);
        break;
    case SPARE_RESUMED:
        size = numbers_put(at, begins, 2);
        break;
    case SPARE_SNAPSHOT:
        size = numbers_put(at, begins, 3);
        break;
    case SPARE_DATA:
        follows = r->size;
        break;
    case SPARE_ENTRY:
        size = numbers_put(at, &r->applied, 1);
        follows = r->size;
        break;
    case SPARE_PROGRESS:
        size = numbers_put(at, progress, 4);
        break;
    case SPARE_MEMBERS:
        size = members_put(at, r);
        break;
    case SPARE_WAIT:
        break;
    }
    assert_always(size + follows >= kinds[r->kind].size_min &&
                  size + follows <= kinds[r->kind].size_max);
    out[0] = (uint8_t)r->kind;
    bytes_put(out + 1, 3, size + follows);
    return SPARE_HEADER_BYTES + size;
}

/* --- reading ---------------------------------------------------------------------------------------- */

static bool members_get(struct spare_record *out, const uint8_t *at, size_t size)
{
    node_id last = 0;
    out->member_count = size / MEMBER_BYTES;
    for (size_t i = 0; i < out->member_count; i++, at += MEMBER_BYTES) {
        struct registry_member *m = &out->members[i];
        m->id = bytes_get(at, 8);
        if (m->id <= last || at[8] < REGISTRY_ROLE_VOTER || at[8] > REGISTRY_ROLE_SPARE)
            return false;
        m->role = (enum registry_role)at[8];
        last = m->id;
    }
    return size % MEMBER_BYTES == 0;
}

static const char *begin_get(struct spare_decoder *d, struct spare_record *out, const uint8_t *at)
{
    out->generation = bytes_get(at, 8);
    out->applied = bytes_get(at + 8, 8);
    if (out->generation == 0)
        return "a beginning without a generation";
    d->applied = out->applied;
    d->phase = SPARE_FOLLOWS;
    if (out->kind == SPARE_RESUMED)
        return NULL;
    out->bytes = bytes_get(at + 16, 8);
    if (out->bytes == 0 || out->bytes > SPARE_SNAPSHOT_BYTES_MAX)
        return "a snapshot larger than any, or empty";
    d->remaining = out->bytes;
    d->phase = SPARE_IN_SNAPSHOT;
    return NULL;
}

static const char *data_get(struct spare_decoder *d, struct spare_record *out, const uint8_t *at,
                            size_t size)
{
    if (size > d->remaining)
        return "more of a snapshot than was said";
    d->remaining -= size;
    if (d->remaining == 0)
        d->phase = SPARE_FOLLOWS;
    out->data = at;
    out->size = size;
    return NULL;
}

static const char *applied_get(struct spare_decoder *d, struct spare_record *out, const uint8_t *at)
{
    out->applied = bytes_get(at, 8);
    bool rises = out->kind == SPARE_ENTRY ? out->applied > d->applied : out->applied >= d->applied;
    if (!rises)
        return "an index that does not rise";
    d->applied = out->applied;
    return NULL;
}

/* NULL, or what is wrong. */
static const char *record_get(struct spare_decoder *d, struct spare_record *out, const uint8_t *at,
                              size_t size)
{
    const char *fault = NULL;
    switch (out->kind) {
    case SPARE_HELLO:
        out->version = (uint32_t)bytes_get(at + 4, 4);
        out->generation = bytes_get(at + 8, 8);
        out->applied = d->applied = bytes_get(at + 16, 8);
        d->phase = SPARE_FOLLOWS;
        return memcmp(at, magic, sizeof magic) == 0 ? NULL : "a greeting that is none";
    case SPARE_REFUSED:
        d->phase = SPARE_ENDED;
        if (at[0] == 0 || at[0] > SPARE_REFUSAL_LAST)
            return "a refusal without a reason";
        out->why = (enum spare_refusal)at[0];
        return members_get(out, at + 1, size - 1) ? NULL : "members out of order";
    case SPARE_RESUMED:
    case SPARE_SNAPSHOT:
        return begin_get(d, out, at);
    case SPARE_DATA:
        return data_get(d, out, at, size);
    case SPARE_ACK:
        return applied_get(d, out, at);
    case SPARE_ENTRY:
        out->data = at + 8;
        out->size = size - 8;
        return applied_get(d, out, at);
    case SPARE_PROGRESS:
        fault = applied_get(d, out, at);
        out->commit = bytes_get(at + 8, 8);
        out->term = bytes_get(at + 16, 8);
        out->leader = bytes_get(at + 24, 8);
        return fault;
    case SPARE_MEMBERS:
        return members_get(out, at, size) ? NULL : "members out of order";
    case SPARE_WAIT:
        return NULL;
    }
    return "a kind that is none";
}

static bool in_order(const struct spare_decoder *d, enum spare_kind kind)
{
    bool begins = kind == SPARE_HELLO || kind == SPARE_REFUSED || kind == SPARE_RESUMED ||
                  kind == SPARE_SNAPSHOT;
    switch (d->phase) {
    case SPARE_BEFORE:
        return begins || kind == SPARE_WAIT;
    case SPARE_IN_SNAPSHOT:
        return kind == SPARE_DATA;
    case SPARE_FOLLOWS:
        return !begins && kind != SPARE_DATA && kind != SPARE_WAIT;
    case SPARE_ENDED:
        break;
    }
    return false;
}

/* The size of the record that begins with this header, or what is wrong. */
static const char *header_get(const struct spare_decoder *d, const uint8_t *header,
                              enum spare_kind *kind, size_t *size)
{
    if (header[0] == 0 || header[0] > SPARE_KIND_LAST || kinds[header[0]].side != d->side)
        return "a kind that this side does not say";
    *kind = (enum spare_kind)header[0];
    *size = (size_t)bytes_get(header + 1, 3);
    if (*size < kinds[*kind].size_min || *size > kinds[*kind].size_max)
        return "a size that this kind does not have";
    return in_order(d, *kind) ? NULL : "a record out of order";
}

/* Up to `wanted` bytes of the record are in `gathered`; false without memory. */
static bool gather(struct spare_decoder *d, size_t wanted, const uint8_t *data, size_t size,
                   size_t *taken)
{
    if (wanted > d->gathered_capacity) {
        uint8_t *more = realloc(d->gathered, wanted);
        if (more == NULL)
            return false;
        d->gathered = more;
        d->gathered_capacity = wanted;
    }
    size_t missing = wanted - d->gathered_length, part = size < missing ? size : missing;
    memcpy(d->gathered + d->gathered_length, data, part);
    d->gathered_length += part;
    *taken += part;
    return true;
}

static int wrong(struct err *e, const char *fault)
{
    return err_set(e, ERR_PROTOCOL, "the stream of a spare: %s", fault);
}

int spare_decode(struct spare_decoder *d, struct spare_record *out, const uint8_t *data,
                 size_t size, size_t *taken, struct err *e)
{
    const uint8_t *record = data;
    enum spare_kind kind;
    size_t length;
    *taken = 0;
    if (size == 0)
        return 0;
    if (d->gathered_length < SPARE_HEADER_BYTES &&
        (d->gathered_length > 0 || size < SPARE_HEADER_BYTES)) {
        if (!gather(d, SPARE_HEADER_BYTES, data, size, taken))
            return err_set(e, ERR_NO_MEMORY, "the stream of a spare: no memory");
        if (d->gathered_length < SPARE_HEADER_BYTES)
            return 0;
    }
    if (d->gathered_length > 0)
        record = d->gathered;
    const char *fault = header_get(d, record, &kind, &length);
    if (fault != NULL)
        return wrong(e, fault);
    size_t whole = SPARE_HEADER_BYTES + length;
    if (d->gathered_length == 0 && size >= whole) {
        *taken = whole;
    } else {
        if (!gather(d, whole, data + *taken, size - *taken, taken))
            return err_set(e, ERR_NO_MEMORY, "the stream of a spare: no memory");
        if (d->gathered_length < whole)
            return 0;
        record = d->gathered;
        d->gathered_length = 0;
    }
    memset(out, 0, offsetof(struct spare_record, members));
    out->member_count = 0;
    out->kind = kind;
    fault = record_get(d, out, record + SPARE_HEADER_BYTES, length);
    return fault == NULL ? 1 : wrong(e, fault);
}

void spare_decoder_init(struct spare_decoder *d, enum spare_side side)
{
    *d = (struct spare_decoder){.side = side};
}

void spare_decoder_free(struct spare_decoder *d)
{
    free(d->gathered);
    *d = (struct spare_decoder){.side = d->side, .phase = SPARE_ENDED};
}
