#include "tests/sim/raft_disk.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

struct disk_entry {
    raft_term term;
    unsigned short type;
    size_t length;
    void *bytes;
};

struct disk_snapshot {
    raft_index index, configuration_index;
    raft_term term;
    struct raft_configuration configuration;
    size_t length;
    void *bytes;
};

enum op_kind { OP_APPEND, OP_TRUNCATE, OP_PUT };

struct op {
    struct op *next;
    enum op_kind kind;
    struct disk_entry *entries;
    size_t count;
    raft_index index;
    struct disk_snapshot *snapshot;
    unsigned trailing; /* 0: the snapshot replaces everything */
    struct raft_io_append *append;
    struct raft_io_snapshot_put *put;
    void *forgotten; /* what libraft forgets to free of a snapshot that it could not install */
};

struct disk {
    struct sim *sim;
    uint32_t node;
    struct disk_faults faults;
    raft_term term;
    raft_id vote;
    struct disk_snapshot *snapshot;
    raft_index first; /* of entries[0] */
    struct disk_entry *entries;
    size_t count, capacity;
    struct op *head, *tail;
    bool busy; /* the head is under way */
    bool over;
    struct op *lost; /* of a crashed process: to be canceled, the last first */
    struct op *
        ghost; /* an append that failed: some of it may be there, until something is written over */
    void (*after)(void *user);
    void *after_user;
};

/* --- copies ----------------------------------------------------------------------------------------- */

static void *copy_of(const void *bytes, size_t length)
{
    void *copy = malloc(length > 0 ? length : 1);
    assert_always(copy != NULL);
    memcpy(copy, bytes, length);
    return copy;
}

static void configuration_copy(const struct raft_configuration *from, struct raft_configuration *to)
{
    raft_configuration_init(to);
    for (unsigned i = 0; i < from->n; i++)
        assert_always(raft_configuration_add(to, from->servers[i].id, from->servers[i].address,
                                             from->servers[i].role) == 0);
}

static struct disk_snapshot *snapshot_in(const struct raft_snapshot *from)
{
    struct disk_snapshot *s = calloc(1, sizeof *s);
    assert_always(s != NULL);
    s->index = from->index;
    s->term = from->term;
    s->configuration_index = from->configuration_index;
    configuration_copy(&from->configuration, &s->configuration);
    for (unsigned i = 0; i < from->n_bufs; i++)
        s->length += from->bufs[i].len;
    s->bytes = malloc(s->length + 1);
    assert_always(s->bytes != NULL);
    size_t at = 0;
    for (unsigned i = 0; i < from->n_bufs; i++) {
        memcpy((char *)s->bytes + at, from->bufs[i].base, from->bufs[i].len);
        at += from->bufs[i].len;
    }
    return s;
}

static void snapshot_free(struct disk_snapshot *s)
{
    if (s == NULL)
        return;
    raft_configuration_close(&s->configuration);
    free(s->bytes);
    free(s);
}

struct raft_snapshot *disk_snapshot_copy(struct disk *d)
{
    if (d->snapshot == NULL)
        return NULL;
    struct raft_snapshot *s = raft_calloc(1, sizeof *s);
    assert_always(s != NULL);
    s->index = d->snapshot->index;
    s->term = d->snapshot->term;
    s->configuration_index = d->snapshot->configuration_index;
    configuration_copy(&d->snapshot->configuration, &s->configuration);
    s->bufs = raft_malloc(sizeof *s->bufs);
    s->n_bufs = 1;
    assert_always(s->bufs != NULL);
    s->bufs[0].len = d->snapshot->length;
    s->bufs[0].base = raft_malloc(d->snapshot->length + 1);
    assert_always(s->bufs[0].base != NULL);
    memcpy(s->bufs[0].base, d->snapshot->bytes, d->snapshot->length);
    return s;
}

/* --- the log ---------------------------------------------------------------------------------------- */

static raft_index last_of(const struct disk *d)
{
    return d->first + d->count - 1;
}

static void log_cut_end(struct disk *d, raft_index from)
{
    while (d->count > 0 && last_of(d) >= from)
        free(d->entries[--d->count].bytes);
}

static void log_cut_front(struct disk *d, raft_index upto)
{
    size_t n = 0;
    while (n < d->count && d->first + n <= upto)
        free(d->entries[n++].bytes);
    memmove(d->entries, d->entries + n, (d->count - n) * sizeof *d->entries);
    d->count -= n;
    d->first += n;
}

static void log_add(struct disk *d, const struct disk_entry *e)
{
    if (d->count == d->capacity) {
        d->capacity = d->capacity == 0 ? 256 : d->capacity * 2;
        d->entries = realloc(d->entries, d->capacity * sizeof *d->entries);
        assert_always(d->entries != NULL);
    }
    struct disk_entry *to = &d->entries[d->count++];
    *to = *e;
    to->bytes = copy_of(e->bytes, e->length);
}

/* --- operations -------------------------------------------------------------------------------------- */

static void op_free(struct op *op)
{
    for (size_t i = 0; i < op->count; i++)
        free(op->entries[i].bytes);
    free(op->entries);
    snapshot_free(op->snapshot);
    free(op);
}

static void snapshot_take(struct disk *d, struct op *op)
{
    snapshot_free(d->snapshot);
    d->snapshot = op->snapshot;
    op->snapshot = NULL;
}

static void snapshot_trim(struct disk *d, unsigned trailing)
{
    raft_index index = d->snapshot->index;
    if (trailing == 0) {
        log_cut_end(d, 0);
        d->first = index + 1;
    } else if (index > trailing) {
        log_cut_front(d, index - trailing);
    }
}

static void op_do(struct disk *d, struct op *op)
{
    switch (op->kind) {
    case OP_APPEND:
        for (size_t i = 0; i < op->count; i++)
            log_add(d, &op->entries[i]);
        break;
    case OP_TRUNCATE:
        log_cut_end(d, op->index);
        break;
    case OP_PUT:
        snapshot_take(d, op);
        snapshot_trim(d, op->trailing);
        break;
    }
}

/* Some of it, when the process ended before it was done. */
static void op_tear(struct disk *d, struct op *op)
{
    size_t kept = op->kind == OP_APPEND ? sim_below(d->sim, op->count + 1) : op->count;
    while (op->count > kept)
        free(op->entries[--op->count].bytes);
    if (op->kind == OP_APPEND || sim_chance(d->sim, 300)) {
        op_do(d, op);
        return;
    }
    /* The new one is there, and the log that it replaces is not removed yet. */
    if (op->kind == OP_PUT && sim_chance(d->sim, 500))
        snapshot_take(d, op);
}

static struct op *op_pop(struct disk *d)
{
    struct op *op = d->head;
    d->head = op->next;
    if (d->head == NULL)
        d->tail = NULL;
    return op;
}

static void op_answer(struct op *op, int status)
{
    if (op->append != NULL)
        op->append->cb(op->append, status);
    if (op->put != NULL)
        op->put->cb(op->put, status);
    if (status != 0)
        raft_free(op->forgotten);
    op_free(op);
}

static void queue_go(struct disk *d);

static void ghost_set(struct disk *d, struct op *failed)
{
    if (d->ghost != NULL)
        op_free(d->ghost);
    d->ghost = NULL;
    if (failed == NULL || failed->kind != OP_APPEND)
        return;
    d->ghost = calloc(1, sizeof *d->ghost);
    assert_always(d->ghost != NULL);
    d->ghost->entries = failed->entries;
    d->ghost->count = failed->count;
    failed->entries = NULL;
    failed->count = 0;
}

/* Whatever was to be written after a write that failed fails with it: it was to stand behind it. */
static void queue_fail(struct disk *d, int status)
{
    struct op *op = d->head;
    d->head = d->tail = NULL;
    while (op != NULL) {
        struct op *next = op->next;
        if (op->kind == OP_TRUNCATE)
            op_do(d, op);
        op_answer(op, op->kind == OP_TRUNCATE ? 0 : status);
        op = next;
    }
}

static bool write_fails(struct disk *d)
{
    return d->faults.full || sim_chance(d->sim, d->faults.fail_permille);
}

static void op_end(void *user, uint32_t node, uint64_t number)
{
    struct disk *d = user;
    (void)node;
    (void)number;
    struct op *op = op_pop(d);
    d->busy = false;
    if (op->kind == OP_TRUNCATE || !write_fails(d)) {
        ghost_set(d, NULL);
        op_do(d, op);
        op_answer(op, 0);
    } else {
        int status = d->faults.full ? RAFT_NOSPACE : RAFT_IOERR;
        ghost_set(d, op);
        op_answer(op, status);
        queue_fail(d, status);
    }
    queue_go(d);
    d->after(d->after_user);
}

static void queue_go(struct disk *d)
{
    if (d->busy || d->head == NULL || d->over)
        return;
    d->busy = true;
    uint64_t takes_us = sim_between(d->sim, d->faults.latency_min_us, d->faults.latency_max_us);
    sim_node_at(d->sim, d->node, sim_now_us(d->sim) + takes_us, op_end, d, 0);
}

static struct op *op_push(struct disk *d, enum op_kind kind)
{
    struct op *op = calloc(1, sizeof *op);
    assert_always(op != NULL);
    op->kind = kind;
    if (d->tail == NULL)
        d->head = op;
    else
        d->tail->next = op;
    d->tail = op;
    queue_go(d);
    return op;
}

static void crash_comes(struct disk *d)
{
    if (d->faults.crash)
        d->over = true;
    d->faults.crash = false;
}

/* Of term or vote: whether it is on disk after it failed, nobody knows. */
static bool write_now(struct disk *d, bool *done)
{
    crash_comes(d);
    bool good = !d->over && (d->faults.full ? sim_chance(d->sim, 500) : !write_fails(d));
    *done = good || sim_chance(d->sim, 500);
    return good;
}

int disk_set_term(struct disk *d, raft_term term)
{
    bool done, over = d->over, good = write_now(d, &done);
    if (done && !over) {
        d->term = term;
        d->vote = 0;
    }
    return good ? 0 : RAFT_IOERR;
}

int disk_set_vote(struct disk *d, raft_id vote)
{
    bool done, over = d->over, good = write_now(d, &done);
    if (done && !over)
        d->vote = vote;
    return good ? 0 : RAFT_IOERR;
}

int disk_append(struct disk *d, struct raft_io_append *req, const struct raft_entry *entries,
                unsigned n)
{
    struct op *op = op_push(d, OP_APPEND);
    op->append = req;
    op->entries = calloc(n, sizeof *op->entries);
    assert_always(op->entries != NULL);
    op->count = n;
    for (unsigned i = 0; i < n; i++)
        op->entries[i] = (struct disk_entry){entries[i].term, entries[i].type, entries[i].buf.len,
                                             copy_of(entries[i].buf.base, entries[i].buf.len)};
    crash_comes(d);
    return 0;
}

int disk_truncate(struct disk *d, raft_index index)
{
    op_push(d, OP_TRUNCATE)->index = index;
    return 0;
}

int disk_snapshot_put(struct disk *d, unsigned trailing, struct raft_io_snapshot_put *req,
                      const struct raft_snapshot *snapshot)
{
    struct op *op = op_push(d, OP_PUT);
    op->put = req;
    op->trailing = trailing;
    op->snapshot = snapshot_in(snapshot);
    if (trailing == 0)
        op->forgotten = snapshot->bufs;
    return 0;
}

/* --- the beginning and the end of a process ---------------------------------------------------------- */

static void entries_out(const struct disk *d, struct raft_entry **entries, size_t *n)
{
    size_t size = 0, at = 0;
    *entries = NULL;
    *n = d->count;
    if (d->count == 0)
        return;
    for (size_t i = 0; i < d->count; i++)
        size += d->entries[i].length;
    char *batch = raft_malloc(size + 1);
    struct raft_entry *out = raft_calloc(d->count, sizeof *out);
    assert_always(batch != NULL && out != NULL);
    for (size_t i = 0; i < d->count; i++) {
        const struct disk_entry *e = &d->entries[i];
        memcpy(batch + at, e->bytes, e->length);
        out[i] = (struct raft_entry){
            .term = e->term, .type = e->type, .buf = {batch + at, e->length}, .batch = batch};
        at += e->length;
    }
    *entries = out;
}

int disk_load(struct disk *d, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot,
              raft_index *start_index, struct raft_entry **entries, size_t *n)
{
    if (sim_chance(d->sim, d->faults.fail_permille))
        return RAFT_IOERR;
    /* Nothing that a snapshot holds is needed of a log that does not reach it. */
    if (d->snapshot != NULL && (d->count == 0 || last_of(d) < d->snapshot->index)) {
        log_cut_end(d, 0);
        d->first = d->snapshot->index + 1;
    }
    *term = d->term;
    *voted_for = d->vote;
    *snapshot = disk_snapshot_copy(d);
    *start_index = d->first;
    entries_out(d, entries, n);
    return 0;
}

int disk_bootstrap(struct disk *d, const struct raft_configuration *conf)
{
    struct raft_buffer encoded;
    if (!disk_empty(d))
        return RAFT_CANTBOOTSTRAP;
    assert_always(raft_configuration_encode(conf, &encoded) == 0);
    struct disk_entry e = {.term = 1, RAFT_CHANGE, encoded.len, encoded.base};
    log_add(d, &e);
    raft_free(encoded.base);
    d->term = 1;
    return 0;
}

bool disk_process_over(const struct disk *d)
{
    return d->over;
}

void disk_crash(struct disk *d)
{
    uint64_t whole = 0, total = 0;
    if (d->ghost != NULL)
        op_tear(d, d->ghost);
    ghost_set(d, NULL);
    for (struct op *op = d->head; op != NULL; op = op->next)
        total++;
    whole = sim_below(d->sim, total + 1);
    while (d->head != NULL) {
        struct op *op = op_pop(d);
        if (whole > 0)
            op_do(d, op);
        else if (total > 0)
            op_tear(d, op);
        if (whole == 0)
            total = 0; /* nothing behind it */
        else
            whole--;
        op->next = d->lost;
        d->lost = op;
    }
    d->busy = false;
    d->over = true;
    d->faults.crash = false;
}

void disk_cancel(struct disk *d, bool last_first)
{
    struct op *op = d->lost, *turned = NULL;
    d->lost = NULL;
    while (!last_first && op != NULL) {
        struct op *next = op->next;
        op->next = turned;
        turned = op;
        op = next;
    }
    for (op = last_first ? op : turned; op != NULL;) {
        struct op *next = op->next;
        op_answer(op, RAFT_CANCELED);
        op = next;
    }
}

const void *disk_lost(struct disk *d)
{
    const struct op *lost = d->lost;
    d->lost = NULL;
    return lost;
}

bool disk_empty(const struct disk *d)
{
    return d->term == 0 && d->snapshot == NULL && d->count == 0;
}

void disk_attach(struct disk *d, void (*after)(void *user), void *user)
{
    d->after = after;
    d->after_user = user;
    d->over = false;
}

struct disk_faults *disk_faults(struct disk *d)
{
    return &d->faults;
}

struct disk *disk_new(struct sim *s, uint32_t node)
{
    struct disk *d = calloc(1, sizeof *d);
    assert_always(d != NULL);
    d->sim = s;
    d->node = node;
    d->first = 1;
    d->faults = (struct disk_faults){.latency_min_us = 200, .latency_max_us = 3000};
    return d;
}

void disk_free(struct disk *d)
{
    if (d == NULL)
        return;
    while (d->head != NULL)
        op_free(op_pop(d));
    ghost_set(d, NULL);
    log_cut_end(d, 0);
    free(d->entries);
    snapshot_free(d->snapshot);
    free(d);
}
