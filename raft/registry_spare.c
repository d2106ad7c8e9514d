/* Which of two states this node reads: raft's replica, or the one that a neighbour feeds. And what others are
 * fed with. */
#include <string.h>

#include "raft/registry_internal.h"

enum {
    HEARS_MS = 300,   /* six heartbeats */
    LEADER_MS = 1000, /* who led so long ago is worth asking */
    MEMBER_PATIENCE_MS =
        1000, /* before one that votes or stood by, as far as it knows, asks a neighbour */
    OTHER_PATIENCE_MS = 250,
};

/* --- reading ---------------------------------------------------------------------------------------- */

static struct spare_view fed_view(const struct registry *r)
{
    static const struct spare_view nothing = {0};
    return r->spare == NULL ? nothing : spare_view(r->spare);
}

static uint64_t raft_applied(const struct registry *r)
{
    return replica_raft(r->replica)->last_applied;
}

struct state *registry_state(const struct registry *r)
{
    struct spare_view v = fed_view(r);
    return v.state != NULL && v.applied > raft_applied(r) ? v.state : r->state;
}

uint64_t registry_applied(void *registry)
{
    const struct registry *r = registry;
    struct spare_view v = fed_view(r);
    uint64_t applied = raft_applied(r);
    return v.applied > applied ? v.applied : applied;
}

uint64_t registry_generation(void *registry)
{
    const struct registry *r = registry;
    if (registry_state(r) != r->state)
        return fed_view(r).generation;
    return replica_generation(r->replica);
}

node_id registry_leader(void *registry)
{
    const struct registry *r = registry;
    /* Raft forgets no leader on a node that does not vote. */
    if (replica_follows(r->replica, LEADER_MS))
        return replica_leader(r->replica);
    return fed_view(r).leader;
}

/* What the neighbour knows of raft is newer than what this node's own log says. */
static bool is_fed(const struct registry *r, struct spare_view *v)
{
    *v = fed_view(r);
    return v->state != NULL && v->member_count > 0 && !replica_follows(r->replica, HEARS_MS);
}

static size_t raft_members(const struct registry *r, struct registry_member *out, size_t out_max)
{
    const struct raft_configuration *c = &replica_raft(r->replica)->configuration;
    for (unsigned i = 0; i < c->n && i < out_max; i++)
        out[i] = (struct registry_member){.id = c->servers[i].id,
                                          .role = registry_role_of(&c->servers[i])};
    return c->n;
}

size_t registry_members(const struct registry *r, struct registry_member *out, size_t out_max)
{
    struct spare_view v;
    if (!is_fed(r, &v))
        return raft_members(r, out, out_max);
    for (size_t i = 0; i < v.member_count && i < out_max; i++)
        out[i] = v.members[i];
    return v.member_count;
}

void registry_spare_status(const struct registry *r, struct registry_status *out)
{
    struct spare_view v;
    struct registry_member members[SPARE_MEMBERS_MAX];
    size_t count = registry_members(r, members, SPARE_MEMBERS_MAX);
    for (size_t i = 0; i < count && i < SPARE_MEMBERS_MAX; i++)
        out->voters += members[i].role == REGISTRY_ROLE_VOTER;
    out->spares = r->feed == NULL ? 0 : feed_counts(r->feed).following;
    if (!is_fed(r, &v))
        return;
    out->fed_by = v.neighbour;
    out->term = v.term;
    out->commit_index = v.commit;
}

/* --- turns ------------------------------------------------------------------------------------------ */

static bool is_member(const struct registry *r)
{
    const struct raft_configuration *c = &replica_raft(r->replica)->configuration;
    for (unsigned i = 0; i < c->n; i++)
        if (c->servers[i].id == r->options.id)
            return c->servers[i].role != RAFT_SPARE;
    return false;
}

/* libraft keeps them in order of id, but does not promise it. */
static void in_order(struct registry_member *members, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        struct registry_member m = members[i];
        size_t k = i;
        for (; k > 0 && members[k - 1].id > m.id; k--)
            members[k] = members[k - 1];
        members[k] = m;
    }
}

static void feed_others(struct registry *r, bool follows, uint64_t now_ms)
{
    const struct raft *raft = replica_raft(r->replica);
    struct registry_member members[SPARE_MEMBERS_MAX];
    if (!feed_wanted(r->feed))
        return;
    size_t count = raft_members(r, members, SPARE_MEMBERS_MAX);
    if (count > SPARE_MEMBERS_MAX)
        count = SPARE_MEMBERS_MAX;
    in_order(members, count);
    const struct feed_view view = {.following = follows && !r->failed,
                                   .generation = replica_generation(r->replica),
                                   .applied = raft->last_applied,
                                   .commit = raft->commit_index,
                                   .term = raft->current_term,
                                   .leader = replica_leader(r->replica),
                                   .members = members,
                                   .member_count = count};
    feed_turn(r->feed, now_ms, &view);
}

void registry_spare_turn(struct registry *r, uint64_t now_ms)
{
    bool follows = replica_follows(r->replica, HEARS_MS);
    if (follows || r->followed_ms == 0)
        r->followed_ms = now_ms;
    uint64_t patience_ms = is_member(r) ? MEMBER_PATIENCE_MS : OTHER_PATIENCE_MS;
    const struct spare_want want = {.feed = !follows && !r->failed &&
                                            now_ms - r->followed_ms >= patience_ms,
                                    .follows = follows,
                                    .applied = raft_applied(r),
                                    .generation = replica_generation(r->replica)};
    spare_turn(r->spare, now_ms, &want);
    feed_others(r, follows, now_ms);
}

void registry_spare_review(struct registry *r)
{
    feed_review(r->feed);
    spare_review(r->spare);
}

/* --- life ------------------------------------------------------------------------------------------- */

/* For the feed: as raft has applied it, or not at all. */
static struct registry_root *root_of(void *user)
{
    struct registry *r = user;
    struct registry_root *root = state_root(r->state);
    if (root->content.index == state_content(r->state)->index)
        return root;
    registry_root_release(root);
    return NULL;
}

static bool address_of(void *user, node_id id, struct sockaddr_storage *out)
{
    const struct registry *r = user;
    return r->options.peers.stream_address(r->options.peers.user, id, out);
}

static void applied_cb(void *user, const struct state_outcome *outcome)
{
    struct registry *r = user;
    proposer_applied(r->proposer, &outcome->session, &outcome->result);
}

int registry_spare_open(struct registry *r, struct err *e)
{
    const struct feed_options feed = {
        .loop = r->loop, .recent = r->recent, .user = r, .root = root_of, .wake = registry_wake};
    int rc = feed_new(&r->feed, &feed, e);
    if (rc < 0)
        return rc;
    const struct spare_options spare = {.loop = r->loop,
                                        .directory = r->directory,
                                        .id = r->options.id,
                                        .seed = r->options.boot,
                                        .secure = r->options.peers.secure,
                                        .user = r,
                                        .address = address_of,
                                        .applied = applied_cb,
                                        .wake = registry_wake};
    return spare_new(&r->spare, &spare, e);
}
