/* raft/entries.h - entries on their way into libraft 0.15, and their memory, which is raft_malloc's.
 *
 * Thread: any. Part of the guard. */
#ifndef SKERRY_RAFT_ENTRIES_H
#define SKERRY_RAFT_ENTRIES_H

#include <raft.h>
#include <stdbool.h>
#include <stddef.h>

/* Gives back what libraft would have owned of a message. */
void entries_drop(struct raft_message *m);
/* A leader that knows nothing of a follower asks for everything from the first entry on. What the follower
 * has only in its snapshot libraft would take for new and put behind its last entry. It is committed, and
 * so the same: left out. */
void entries_skip(const struct raft_log *log, struct raft_append_entries *m);
/* Gives each memory of its own, and gives back what they shared. False without memory: nothing has changed. */
bool entries_part(struct raft_entry *entries, size_t count);

#endif
