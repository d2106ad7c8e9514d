#include "tests/sim/raft_checks.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/snapshot.h"
#include "raft/state_parts.h"
#include "tests/sim/raft_model.h"

/* A state's bytes are compared where its index is a multiple of this. */
enum { STATE_EVERY = 64, INDEX_MAX = 1000000, TERM_MAX = 100000 };

/* What stands at an index. */
struct record {
    raft_term term;  /* 0: nobody committed it yet */
    bool command;    /* somebody has applied it, and it was one */
    uint64_t before; /* the command before it */
    uint64_t command_sum, result_sum, state_sum;
    struct command_session session;
    struct registry_result result;
};

struct told {
    struct command_session session;
    bool not_proposed;
    struct registry_result result;
};

struct checks {
    char violation[400];
    struct model *model;
    struct record *records; /* by index */
    uint64_t records_count, command_last, committed_last;
    raft_id *leaders; /* by term */
    uint64_t leaders_count;
    struct told *told;
    size_t told_count, told_capacity, acknowledged;
};

void checks_violate(struct checks *c, const char *format, ...)
{
    if (c->violation[0] != '\0')
        return;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(c->violation, sizeof c->violation, format, args);
    va_end(args);
}

const char *checks_violation(const struct checks *c)
{
    return c->violation[0] == '\0' ? NULL : c->violation;
}

/* --- tables ------------------------------------------------------------------------------------------- */

static void *grown(void *table, uint64_t *count, uint64_t at, size_t size)
{
    if (at < *count)
        return table;
    uint64_t more = *count == 0 ? 1024 : *count * 2;
    while (more <= at)
        more *= 2;
    table = realloc(table, more * size);
    assert_always(table != NULL);
    memset((char *)table + *count * size, 0, (more - *count) * size);
    *count = more;
    return table;
}

static struct record *record_at(struct checks *c, uint64_t index)
{
    assert_always(index < INDEX_MAX);
    c->records = grown(c->records, &c->records_count, index, sizeof *c->records);
    return &c->records[index];
}

static uint64_t sum_of(uint64_t sum, const void *data, size_t size)
{
    const uint8_t *bytes = data; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        sum = (sum ^ bytes[i]) * 1099511628211u;
    return sum;
}

static const uint64_t SUM_START = 14695981039346656037u;

static uint64_t state_sum(const struct state_content *state)
{
    struct buffer b;
    struct err e;
    buffer_init(&b, SNAPSHOT_BYTES_MAX);
    assert_always(snapshot_encode(state, &b, &e) == 0);
    uint64_t sum = sum_of(SUM_START, b.data, b.length);
    buffer_free(&b);
    return sum | 1; /* 0: none */
}

static uint64_t result_sum(const struct registry_result *r)
{
    uint64_t sum = sum_of(SUM_START, &r->problem, sizeof r->problem);
    sum = sum_of(sum, r->detail, strlen(r->detail));
    sum = sum_of(sum, &r->index, sizeof r->index);
    sum = sum_of(sum, &r->version, sizeof r->version);
    sum = sum_of(sum, &r->changed, sizeof r->changed);
    sum = sum_of(sum, &r->epoch, sizeof r->epoch);
    sum = sum_of(sum, r->existing.text, strlen(r->existing.text));
    return sum_of(sum, &r->node, sizeof r->node);
}

static bool same_session(const struct command_session *a, const struct command_session *b)
{
    return a->node == b->node && a->boot == b->boot && a->sequence == b->sequence;
}

/* --- while it runs ------------------------------------------------------------------------------------ */

/* Log entries, as far as libraft still has them (a ring). */
static raft_term term_at(const struct raft_log *log, uint64_t index)
{
    size_t n = log->size == 0 ? 0 : (log->back + log->size - log->front) % log->size;
    if (index <= log->offset || index > log->offset + n)
        return 0;
    return log->entries[(log->front + index - log->offset - 1) % log->size].term;
}

static void committed_follow(struct checks *c, struct checks_process *p, const struct raft *r)
{
    while (p->committed < r->commit_index) {
        uint64_t index = ++p->committed;
        raft_term term = term_at(&r->log, index);
        if (term == 0)
            continue;
        struct record *record = record_at(c, index);
        if (index > c->committed_last)
            c->committed_last = index;
        if (record->term == 0)
            record->term = term;
        else if (record->term != term)
            checks_violate(c,
                           "a committed entry was lost: member %llu commits index %" PRIu64
                           " of term %llu, another had committed one of term %llu there",
                           p->id, index, term, record->term);
    }
}

void checks_follow(struct checks *c, struct checks_process *p, const struct raft *r)
{
    committed_follow(c, p, r);
    if (r->state != RAFT_LEADER)
        return;
    assert_always(r->current_term < TERM_MAX);
    c->leaders = grown(c->leaders, &c->leaders_count, r->current_term, sizeof *c->leaders);
    raft_id *leader = &c->leaders[r->current_term];
    if (*leader != 0 && *leader != r->id)
        checks_violate(c, "members %llu and %llu both lead term %llu", *leader, r->id,
                       r->current_term);
    *leader = r->id;
}

/* The first to come there: a repetition must be told from what is new. */
static void first_applied(struct checks *c, const struct checks_applied *a, struct record *record)
{
    const struct command_session *session = &a->outcome->session;
    struct command command;
    struct err e;
    char why[300] = "";
    for (uint64_t i = c->command_last; i > 0; i = c->records[i].before) {
        const struct record *old = &c->records[i];
        if (!same_session(&old->session, session) || a->outcome->repeated)
            continue;
        checks_violate(c,
                       "number %" PRIu64 " of session %" PRIu64 "/%" PRIx64
                       " was done at index %" PRIu64 " and again at %" PRIu64,
                       session->sequence, session->node, session->boot, i, a->index);
        return;
    }
    *record = (struct record){.term = record->term,
                              .command = true,
                              .before = c->command_last,
                              .session = *session,
                              .result = a->outcome->result};
    c->command_last = a->index;
    if (a->outcome->repeated)
        return;
    assert_always(command_decode(&command, a->command->base, a->command->len, &e) == 0);
    if (!model_apply(c->model, &command, &a->outcome->result, why, sizeof why))
        checks_violate(c, "index %" PRIu64 ": %s", a->index, why);
    command_free(&command);
}

void checks_applied(struct checks *c, struct checks_process *p, const struct checks_applied *a)
{
    struct record *record = record_at(c, a->index);
    uint64_t sum = sum_of(SUM_START, a->command->base, a->command->len);
    uint64_t result = result_sum(&a->outcome->result);
    if (!record->command) {
        if (a->index <= c->command_last)
            checks_violate(c,
                           "a committed entry was lost: member %llu applies a command at index "
                           "%" PRIu64 ", another went past it without one",
                           p->id, a->index);
        first_applied(c, a, record);
        record->command_sum = sum;
        record->result_sum = result;
    } else if (record->command_sum != sum) {
        checks_violate(c,
                       "a committed entry was lost: member %llu applies number %" PRIu64
                       " of session %" PRIu64 " at index %" PRIu64 ", another had applied number "
                       "%" PRIu64 " of session %" PRIu64 " there",
                       p->id, a->outcome->session.sequence, a->outcome->session.node, a->index,
                       record->session.sequence, record->session.node);
    } else if (record->result_sum != result) {
        checks_violate(c, "member %llu has another result at index %" PRIu64 " than another", p->id,
                       a->index);
    }
    if (record->before > p->applied)
        checks_violate(c,
                       "a committed entry was lost: member %llu applies index %" PRIu64
                       " after %" PRIu64 " and skips the command at %" PRIu64,
                       p->id, a->index, p->applied, record->before);
    p->applied = a->index;
    if (a->index % STATE_EVERY != 0 || checks_violation(c) != NULL)
        return;
    uint64_t state = state_sum(a->state);
    if (record->state_sum == 0)
        record->state_sum = state;
    else if (record->state_sum != state)
        checks_violate(c, "member %llu has another state at index %" PRIu64 " than another", p->id,
                       a->index);
}

void checks_restored(struct checks *c, struct checks_process *p, const struct state_content *state)
{
    p->applied = state->index;
    if (state->index == 0 || state->index % STATE_EVERY != 0)
        return;
    const struct record *record = record_at(c, state->index);
    if (record->command && record->state_sum != state_sum(state))
        checks_violate(c, "the snapshot of member %llu differs from what others had at %" PRIu64,
                       p->id, state->index);
}

/* --- clients ------------------------------------------------------------------------------------------ */

static void told(struct checks *c, const struct told *what)
{
    if (c->told_count == c->told_capacity) {
        c->told_capacity = c->told_capacity == 0 ? 256 : c->told_capacity * 2;
        c->told = realloc(c->told, c->told_capacity * sizeof *c->told);
        assert_always(c->told != NULL);
    }
    c->told[c->told_count++] = *what;
}

void checks_acknowledged(struct checks *c, const struct command_session *session,
                         const struct registry_result *result)
{
    const struct record *record = record_at(c, result->index);
    if (result->problem == PROBLEM_OUTCOME_UNKNOWN)
        return;
    if (!record->command || !same_session(&record->session, session) ||
        result_sum(&record->result) != result_sum(result))
        checks_violate(c,
                       "number %" PRIu64 " of session %" PRIu64
                       " was acknowledged with index %" PRIu64 ", where something else stands",
                       session->sequence, session->node, result->index);
    c->acknowledged++;
    told(c, &(struct told){.session = *session, .result = *result});
}

void checks_not_proposed(struct checks *c, const struct command_session *session)
{
    told(c, &(struct told){.session = *session, .not_proposed = true});
}

static bool applied_anywhere(const struct checks *c, const struct command_session *session)
{
    for (uint64_t i = c->command_last; i > 0; i = c->records[i].before)
        if (same_session(&c->records[i].session, session))
            return true;
    return false;
}

/* Sessions are forgotten, the oldest of a node first; those that are kept must answer as they did. */
static bool kept(const struct state_content *state, const struct command_session *session)
{
    struct registry_result r;
    return state_session_recall(state, session, &r) && r.problem != PROBLEM_OUTCOME_UNKNOWN;
}

void checks_final(struct checks *c, const struct state_content *state)
{
    for (size_t i = 0; i < c->told_count; i++) {
        const struct told *t = &c->told[i];
        struct registry_result r;
        if (t->not_proposed) {
            if (applied_anywhere(c, &t->session))
                checks_violate(c,
                               "number %" PRIu64 " of session %" PRIu64
                               " was said not to be proposed, and was done",
                               t->session.sequence, t->session.node);
            continue;
        }
        if (t->result.index > state->index)
            checks_violate(c, "acknowledged at index %" PRIu64 ", but the cluster ends at %" PRIu64,
                           t->result.index, state->index);
        if (kept(state, &t->session) && state_session_recall(state, &t->session, &r) &&
            result_sum(&r) != result_sum(&t->result))
            checks_violate(c, "number %" PRIu64 " of session %" PRIu64 " has another result now",
                           t->session.sequence, t->session.node);
    }
    if (state->index < c->command_last)
        checks_violate(c,
                       "the cluster ends at index %" PRIu64 ", a command was applied at %" PRIu64,
                       state->index, c->command_last);
}

uint64_t checks_acknowledged_count(const struct checks *c)
{
    return c->acknowledged;
}

uint64_t checks_committed_last(const struct checks *c)
{
    return c->committed_last;
}

/* --- life --------------------------------------------------------------------------------------------- */

struct checks *checks_new(void)
{
    struct checks *c = calloc(1, sizeof *c);
    assert_always(c != NULL);
    c->model = model_new();
    return c;
}

void checks_free(struct checks *c)
{
    model_free(c->model);
    free(c->records);
    free(c->leaders);
    free(c->told);
    free(c);
}
