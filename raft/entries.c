#include "raft/entries.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

void entries_drop(struct raft_message *m)
{
    if (m->type == RAFT_IO_APPEND_ENTRIES && m->append_entries.n_entries > 0) {
        raft_free(m->append_entries.entries[0].batch);
        raft_free(m->append_entries.entries);
    } else if (m->type == RAFT_IO_INSTALL_SNAPSHOT) {
        raft_configuration_close(&m->install_snapshot.conf);
        raft_free(m->install_snapshot.data.base);
    }
}

void entries_skip(const struct raft_log *log, struct raft_append_entries *m)
{
    raft_index last = log->snapshot.last_index;
    if (m->n_entries == 0 || m->prev_log_index >= log->offset || m->prev_log_index >= last)
        return;
    raft_index covered = last - m->prev_log_index;
    if (covered < m->n_entries) {
        m->n_entries -= (unsigned)covered;
        memmove(m->entries, m->entries + covered, m->n_entries * sizeof *m->entries);
    } else {
        raft_free(m->entries[0].batch);
        raft_free(m->entries);
        m->entries = NULL;
        m->n_entries = 0;
    }
    m->prev_log_index = last;
    m->prev_log_term = log->snapshot.last_term;
}

bool entries_part(struct raft_entry *entries, size_t count)
{
    size_t done = 0;
    CLEANUP_FREE void **own = calloc(count + 1, sizeof *own);
    for (; own != NULL && done < count; done++) {
        if (entries[done].buf.len == 0)
            continue;
        own[done] = raft_malloc(entries[done].buf.len);
        if (own[done] == NULL)
            break;
        memcpy(own[done], entries[done].buf.base, entries[done].buf.len);
    }
    if (own == NULL || done < count) {
        while (done > 0)
            raft_free(own[--done]);
        return false;
    }
    void *shared = NULL;
    for (size_t i = 0; i < count; i++) {
        if (entries[i].batch == NULL) {
            raft_free(entries[i].buf.base);
        } else if (entries[i].batch != shared) {
            shared = entries[i].batch;
            raft_free(shared);
        }
        entries[i].batch = NULL;
        entries[i].buf.base = own[i];
    }
    return true;
}
