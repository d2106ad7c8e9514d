/* tests/sim/raft_disk.h - the disk of a simulated raft member: what survives its process.
 *
 * Appends, truncations and snapshots go through one queue in the order in which they were asked for, as in
 * libraft's own back-end; each takes its time. A crash carries out some of the queue, from the front, and
 * the append that it reaches may be torn in the middle. Term and vote are written at once.
 *
 * What can go wrong: writes and fsyncs that fail (with some of the data there or not), a full disk, a
 * crash in the middle of a write, a snapshot that is there while the log that it replaces is too.
 *
 * Memory: entries and snapshots are copied in and out; what disk_load gives is libraft's, by raft_malloc. */
#ifndef SKERRY_TESTS_SIM_RAFT_DISK_H
#define SKERRY_TESTS_SIM_RAFT_DISK_H

#include <raft.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/sim.h"

struct disk;

/* As they come; changed at any time. */
struct disk_faults {
    uint64_t latency_min_us, latency_max_us;
    uint32_t fail_permille; /* of writes */
    bool full;
    bool crash; /* the next write of term or vote, or the next append, is the process's last */
};

struct disk *disk_new(struct sim *s, uint32_t node);
void disk_free(struct disk *d);
struct disk_faults *disk_faults(struct disk *d);

/* A process opens it. `after` whenever the disk has told libraft of something. */
void disk_attach(struct disk *d, void (*after)(void *user), void *user);

/* --- as raft_io asks ------------------------------------------------------------------------------ */

int disk_load(struct disk *d, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot,
              raft_index *start_index, struct raft_entry **entries, size_t *n);
int disk_bootstrap(struct disk *d, const struct raft_configuration *conf);
int disk_set_term(struct disk *d, raft_term term);
int disk_set_vote(struct disk *d, raft_id vote);
int disk_append(struct disk *d, struct raft_io_append *req, const struct raft_entry *entries,
                unsigned n);
int disk_truncate(struct disk *d, raft_index index);
int disk_snapshot_put(struct disk *d, unsigned trailing, struct raft_io_snapshot_put *req,
                      const struct raft_snapshot *snapshot);
/* The newest one, a copy; NULL: there is none. */
struct raft_snapshot *disk_snapshot_copy(struct disk *d);

/* --- the end of a process ------------------------------------------------------------------------- */

/* A write that was its last was asked for: nothing that the process does from then on reaches anybody. */
bool disk_process_over(const struct disk *d);
/* The process is gone: what it had asked for is done in part. */
void disk_crash(struct disk *d);
/* Then: tells libraft that what was under way is canceled. libraft alone must hear of the last first, or it
 * cuts its log beyond the end. */
void disk_cancel(struct disk *d, bool last_first);
/* Or: nobody is told, since the process is gone as it stood. What was under way holds memory of libraft's and
 * is the caller's, never to be freed. */
const void *disk_lost(struct disk *d);

bool disk_empty(const struct disk *d);

#endif
