#include "tests/sim/raft_wire.h"

#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/memory.h"

enum { MESSAGE_MAX = 64 * 1024 * 1024 };

/* --- encoding: the struct as it is, then what it points to ------------------------------------------ */

static void put(struct buffer *b, const void *bytes, size_t size)
{
    assert_always(buffer_append(b, bytes, size));
}

static void put_sized(struct buffer *b, const void *bytes, size_t size)
{
    put(b, &size, sizeof size);
    put(b, bytes, size);
}

static void put_entries(struct buffer *b, const struct raft_append_entries *a)
{
    for (unsigned i = 0; i < a->n_entries; i++) {
        const struct raft_entry *e = &a->entries[i];
        put(b, &e->term, sizeof e->term);
        put(b, &e->type, sizeof e->type);
        put_sized(b, e->buf.base, e->buf.len);
    }
}

static void put_snapshot(struct buffer *b, const struct raft_install_snapshot *s)
{
    for (unsigned i = 0; i < s->conf.n; i++) {
        const struct raft_server *server = &s->conf.servers[i];
        put(b, &server->id, sizeof server->id);
        put(b, &server->role, sizeof server->role);
        put_sized(b, server->address, strlen(server->address) + 1);
    }
    put_sized(b, s->data.base, s->data.len);
}

uint8_t *wire_encode(const struct raft_message *m, size_t *size)
{
    struct buffer b;
    buffer_init(&b, MESSAGE_MAX);
    put(&b, m, sizeof *m);
    if (m->type == RAFT_IO_APPEND_ENTRIES)
        put_entries(&b, &m->append_entries);
    else if (m->type == RAFT_IO_INSTALL_SNAPSHOT)
        put_snapshot(&b, &m->install_snapshot);
    *size = b.length;
    return (uint8_t *)b.data;
}

/* --- decoding ---------------------------------------------------------------------------------------- */

struct cursor {
    const uint8_t *at, *end;
};

static void get(struct cursor *c, void *out, size_t size)
{
    assert_always((size_t)(c->end - c->at) >= size);
    memcpy(out, c->at, size);
    c->at += size;
}

static const uint8_t *get_sized(struct cursor *c, size_t *size)
{
    get(c, size, sizeof *size);
    const uint8_t *bytes = c->at;
    assert_always((size_t)(c->end - c->at) >= *size);
    c->at += *size;
    return bytes;
}

static void get_entries(struct cursor *c, struct raft_append_entries *a)
{
    a->entries = NULL;
    if (a->n_entries == 0)
        return;
    char *batch = raft_malloc((size_t)(c->end - c->at));
    a->entries = raft_calloc(a->n_entries, sizeof *a->entries);
    assert_always(batch != NULL && a->entries != NULL);
    size_t used = 0;
    for (unsigned i = 0; i < a->n_entries; i++) {
        struct raft_entry *e = &a->entries[i];
        get(c, &e->term, sizeof e->term);
        get(c, &e->type, sizeof e->type);
        const uint8_t *bytes = get_sized(c, &e->buf.len);
        e->buf.base = batch + used;
        e->batch = batch;
        memcpy(e->buf.base, bytes, e->buf.len);
        used += e->buf.len;
    }
}

static void get_snapshot(struct cursor *c, struct raft_install_snapshot *s)
{
    unsigned n = s->conf.n;
    raft_configuration_init(&s->conf);
    for (unsigned i = 0; i < n; i++) {
        raft_id id;
        int role;
        size_t size;
        get(c, &id, sizeof id);
        get(c, &role, sizeof role);
        const uint8_t *address = get_sized(c, &size);
        assert_always(raft_configuration_add(&s->conf, id, (const char *)address, role) == 0);
    }
    const uint8_t *bytes = get_sized(c, &s->data.len);
    s->data.base = raft_malloc(s->data.len + 1);
    assert_always(s->data.base != NULL);
    memcpy(s->data.base, bytes, s->data.len);
}

void wire_decode(const uint8_t *bytes, size_t size, struct raft_message *out)
{
    struct cursor c = {bytes, bytes + size};
    get(&c, out, sizeof *out);
    if (out->type == RAFT_IO_APPEND_ENTRIES)
        get_entries(&c, &out->append_entries);
    else if (out->type == RAFT_IO_INSTALL_SNAPSHOT)
        get_snapshot(&c, &out->install_snapshot);
}

/* --- for people -------------------------------------------------------------------------------------- */

void wire_describe(const struct raft_message *m, char *out, size_t size)
{
    switch (m->type) {
    case RAFT_IO_APPEND_ENTRIES:
        (void)text_format(
            out, size, "append behind %llu (term %llu), %u entries, commit %llu, term %llu",
            m->append_entries.prev_log_index, m->append_entries.prev_log_term,
            m->append_entries.n_entries, m->append_entries.leader_commit, m->append_entries.term);
        break;
    case RAFT_IO_APPEND_ENTRIES_RESULT:
        (void)text_format(out, size, "append %s %llu, last %llu, term %llu",
                          m->append_entries_result.rejected != 0 ? "refused at" : "done,",
                          m->append_entries_result.rejected,
                          m->append_entries_result.last_log_index, m->append_entries_result.term);
        break;
    case RAFT_IO_REQUEST_VOTE:
        (void)text_format(out, size, "%s? last %llu (term %llu), term %llu%s",
                          m->request_vote.pre_vote ? "would vote" : "vote",
                          m->request_vote.last_log_index, m->request_vote.last_log_term,
                          m->request_vote.term,
                          m->request_vote.disrupt_leader ? ", leader willing" : "");
        break;
    case RAFT_IO_REQUEST_VOTE_RESULT:
        (void)text_format(
            out, size, "%s: %s, term %llu",
            m->request_vote_result.pre_vote == raft_tribool_true ? "would vote" : "vote",
            m->request_vote_result.vote_granted ? "yes" : "no", m->request_vote_result.term);
        break;
    case RAFT_IO_INSTALL_SNAPSHOT:
        (void)text_format(out, size, "snapshot at %llu (term %llu), term %llu",
                          m->install_snapshot.last_index, m->install_snapshot.last_term,
                          m->install_snapshot.term);
        break;
    default:
        (void)text_format(out, size, "campaign now, last %llu, term %llu",
                          m->timeout_now.last_log_index, m->timeout_now.term);
        break;
    }
}
