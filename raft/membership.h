/* raft/membership.h - the configuration that libraft 0.15 must fall back to.
 *
 * A change of who is a member acts as soon as it is in the log, and may be taken back with its entry. What
 * libraft does wrong about that (all found by tests/sim):
 *
 * - It takes the configuration before from the log, where a snapshot may have removed it: it would follow
 *   a null pointer.
 * - After a start it holds the last change in its log for committed. When that is taken back, it goes on
 *   with members that there are not, and majorities of the two need not meet.
 * - A change that was under way when a snapshot was installed counts as under way for ever.
 *
 * So this keeps the configuration before, puts it in place before libraft takes a change back, and tells
 * libraft after a start what is not committed yet.
 *
 * Thread: the loop's. Part of the guard. */
#ifndef SKERRY_RAFT_MEMBERSHIP_H
#define SKERRY_RAFT_MEMBERSHIP_H

#include <raft.h>
#include <stdbool.h>
#include <stddef.h>

struct membership {
    /* That of `before_index`, which is committed, or stands before the only one that is not. */
    struct raft_configuration before;
    raft_index before_index;
    raft_index
        last_index; /* of the last change in the log that was loaded; 0: none behind `before` */
};

void membership_init(struct membership *m);
void membership_close(struct membership *m);

/* All answer with 0 or a code of libraft. */

/* What raft_io's load found. */
int membership_loaded(struct membership *m, const struct raft_snapshot *snapshot,
                      raft_index start_index, const struct raft_entry *entries, size_t n);
/* After raft_start. */
void membership_started(struct membership *m, struct raft *raft);
/* After anything was handed to libraft. */
int membership_follow(struct membership *m, struct raft *raft);
/* Before an append of a leader is. */
int membership_append_comes(struct membership *m, struct raft *raft,
                            const struct raft_append_entries *append);
/* After a leader's snapshot was installed. */
void membership_installed(struct raft *raft);

/* Around the handing over of a request for a vote: this server votes whatever it believes to be. Raft's
 * servers answer without regard to what they know of the members; libraft's refuse when they are no voters
 * as far as they know. The second voter of a cluster may be the last to hear of it, and the first cannot
 * lead again without it. */
int membership_vote_begin(struct raft *raft);
void membership_vote_end(struct raft *raft, int role);

/* No other server is a voter. */
bool membership_lone_voter(const struct raft *raft);
/* Of a leader: whether its voters, as they are now, have stored up to there. */
bool membership_quorum_has(const struct raft *raft, raft_index index);

#endif
