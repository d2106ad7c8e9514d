#include "raft/membership.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* --- libraft's log: a ring -------------------------------------------------------------------------- */

static const struct raft_entry *log_entry(const struct raft_log *log, raft_index index)
{
    if (log->size == 0)
        return NULL;
    size_t n = (log->back + log->size - log->front) % log->size;
    if (index <= log->offset || index > log->offset + n)
        return NULL;
    return &log->entries[(log->front + (size_t)(index - log->offset - 1)) % log->size];
}

/* 0: it has none there. */
static raft_term log_term(const struct raft_log *log, raft_index index)
{
    const struct raft_entry *e = log_entry(log, index);
    if (e != NULL)
        return e->term;
    return index != 0 && index == log->snapshot.last_index ? log->snapshot.last_term : 0;
}

/* --- configurations --------------------------------------------------------------------------------- */

static int configuration_copy(struct raft_configuration *to, const struct raft_configuration *from)
{
    raft_configuration_init(to);
    for (unsigned i = 0; i < from->n; i++) {
        const struct raft_server *s = &from->servers[i];
        int rv = raft_configuration_add(to, s->id, s->address, s->role);
        if (rv != 0) {
            raft_configuration_close(to);
            raft_configuration_init(to);
            return rv;
        }
    }
    return 0;
}

static uint64_t little_endian(const uint8_t *bytes)
{
    uint64_t value = 0;
    for (unsigned i = 8; i > 0; i--)
        value = value << 8 | bytes[i - 1];
    return value;
}

/* As raft_configuration_encode wrote it: a 1, how many (8 bytes, little endian), and for each its id (the
 * same), its address with a zero behind it, and its role (1 byte). */
static int configuration_decode(struct raft_configuration *to, const struct raft_buffer *from)
{
    const uint8_t *at = from->base, *end = at + from->len;
    raft_configuration_init(to);
    if (from->len < 9 || at[0] != 1)
        return RAFT_MALFORMED;
    uint64_t n = little_endian(at + 1);
    at += 9;
    for (uint64_t i = 0; i < n; i++) {
        if (end - at < 8)
            return RAFT_MALFORMED;
        raft_id id = little_endian(at);
        const char *address = (const char *)at + 8;
        const uint8_t *zero = memchr(address, 0, (size_t)(end - at - 8));
        if (zero == NULL || end - zero < 2)
            return RAFT_MALFORMED;
        int rv = raft_configuration_add(to, id, address, zero[1]);
        if (rv != 0)
            return rv;
        at = zero + 2;
    }
    return 0;
}

/* Takes `configuration` over. */
static void before_set(struct membership *m, struct raft_configuration *configuration,
                       raft_index index)
{
    raft_configuration_close(&m->before);
    m->before = *configuration;
    m->before_index = index;
}

static int before_decode(struct membership *m, const struct raft_buffer *from, raft_index index)
{
    struct raft_configuration c;
    int rv = configuration_decode(&c, from);
    if (rv != 0) {
        raft_configuration_close(&c);
        return rv;
    }
    before_set(m, &c, index);
    return 0;
}

static int before_copy(struct membership *m, const struct raft_configuration *from,
                       raft_index index)
{
    struct raft_configuration c;
    int rv = configuration_copy(&c, from);
    if (rv == 0)
        before_set(m, &c, index);
    return rv;
}

/* --- from the disk ---------------------------------------------------------------------------------- */

int membership_loaded(struct membership *m, const struct raft_snapshot *snapshot,
                      raft_index start_index, const struct raft_entry *entries, size_t n)
{
    raft_index held = snapshot == NULL ? 0 : snapshot->index;
    const struct raft_entry *last = NULL;
    int rv = 0;
    if (snapshot != NULL)
        rv = before_copy(m, &snapshot->configuration, snapshot->configuration_index);
    for (size_t i = 0; i < n && rv == 0; i++) {
        raft_index index = start_index + i;
        if (entries[i].type != RAFT_CHANGE || index <= held)
            continue;
        /* A change is proposed when the one before it is committed. */
        if (last != NULL)
            rv = before_decode(m, &last->buf, m->last_index);
        last = &entries[i];
        m->last_index = index;
    }
    return rv;
}

void membership_started(struct membership *m, struct raft *raft)
{
    if (m->last_index <= raft->commit_index || m->before_index == 0)
        return;
    raft->configuration_uncommitted_index = m->last_index;
    raft->configuration_index = m->before_index;
}

/* --- while it runs ---------------------------------------------------------------------------------- */

int membership_follow(struct membership *m, struct raft *raft)
{
    raft_index index = raft->configuration_index;
    if (index == 0 || index == m->before_index)
        return 0;
    if (raft->configuration_uncommitted_index == 0)
        return before_copy(m, &raft->configuration, index);
    const struct raft_entry *e = log_entry(&raft->log, index);
    return e == NULL ? RAFT_CORRUPT : before_decode(m, &e->buf, index);
}

/* From where on libraft will cut its log for this append; 0: it will not. */
static raft_index cut_index(const struct raft *raft, const struct raft_append_entries *append)
{
    if (append->term < raft->current_term)
        return 0;
    /* While it installs a snapshot libraft hears no entries. */
    if (raft->last_stored == 0 && raft->snapshot.put.data != NULL)
        return 0;
    if (append->prev_log_index != 0 &&
        log_term(&raft->log, append->prev_log_index) != append->prev_log_term)
        return 0;
    for (unsigned i = 0; i < append->n_entries; i++) {
        raft_index at = append->prev_log_index + 1 + i;
        raft_term term = log_term(&raft->log, at);
        if (term == 0)
            return 0;
        if (term != append->entries[i].term)
            return at;
    }
    return 0;
}

/* The last change in front of `cut`, or NULL: it is `before`. */
static const struct raft_entry *change_in_front(const struct membership *m, const struct raft *raft,
                                                raft_index cut, raft_index *index)
{
    for (*index = cut - 1; *index > m->before_index; --*index) {
        const struct raft_entry *e = log_entry(&raft->log, *index);
        if (e == NULL)
            break;
        if (e->type == RAFT_CHANGE)
            return e;
    }
    *index = m->before_index;
    return NULL;
}

int membership_append_comes(struct membership *m, struct raft *raft,
                            const struct raft_append_entries *append)
{
    if (raft->configuration_uncommitted_index == 0)
        return 0;
    raft_index cut = cut_index(raft, append), index;
    if (cut == 0 || cut > raft->configuration_uncommitted_index)
        return 0;
    const struct raft_entry *change = change_in_front(m, raft, cut, &index);
    if (index == 0)
        return RAFT_CORRUPT;
    struct raft_configuration c;
    int rv = change != NULL ? configuration_decode(&c, &change->buf)
                            : configuration_copy(&c, &m->before);
    if (rv != 0) {
        raft_configuration_close(&c);
        return rv;
    }
    raft_configuration_close(&raft->configuration);
    raft->configuration = c;
    raft->configuration_uncommitted_index = index > raft->commit_index ? index : 0;
    return 0;
}

static struct raft_server *own_server(struct raft *raft)
{
    for (unsigned i = 0; i < raft->configuration.n; i++)
        if (raft->configuration.servers[i].id == raft->id)
            return &raft->configuration.servers[i];
    return NULL;
}

int membership_vote_begin(struct raft *raft)
{
    struct raft_server *own = own_server(raft);
    if (own == NULL || raft->state != RAFT_FOLLOWER)
        return RAFT_VOTER;
    int role = own->role;
    own->role = RAFT_VOTER;
    /* A voter forgets its leader when it campaigns; who does not would be loyal to a dead one for ever. */
    raft_time now = raft->io->time(raft->io);
    if (role != RAFT_VOTER && now - raft->election_timer_start >= raft->election_timeout)
        raft->follower_state.current_leader.id = 0;
    return role;
}

void membership_vote_end(struct raft *raft, int role)
{
    struct raft_server *own = own_server(raft);
    if (own != NULL && role != RAFT_VOTER)
        own->role = role;
}

void membership_installed(struct raft *raft)
{
    if (raft->configuration_uncommitted_index <= raft->log.snapshot.last_index)
        raft->configuration_uncommitted_index = 0;
}

/* --- life ------------------------------------------------------------------------------------------- */

void membership_init(struct membership *m)
{
    *m = (struct membership){0};
    raft_configuration_init(&m->before);
}

void membership_close(struct membership *m)
{
    raft_configuration_close(&m->before);
}

bool membership_lone_voter(const struct raft *raft)
{
    unsigned others = 0;
    for (unsigned i = 0; i < raft->configuration.n; i++)
        others += raft->configuration.servers[i].role == RAFT_VOTER &&
                  raft->configuration.servers[i].id != raft->id;
    return others == 0;
}

bool membership_quorum_has(const struct raft *raft, raft_index index)
{
    unsigned voters = 0;
    unsigned have = 0;
    for (unsigned i = 0; i < raft->configuration.n; i++) {
        const struct raft_server *server = &raft->configuration.servers[i];
        if (server->role != RAFT_VOTER)
            continue;
        voters++;
        have += (server->id == raft->id ? raft->last_stored
                                        : raft->leader_state.progress[i].match_index) >= index;
    }
    return have > voters / 2;
}
