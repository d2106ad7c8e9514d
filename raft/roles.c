#include "raft/roles.h"

#include <string.h>

/* --- what is --------------------------------------------------------------------------------------------- */

static bool is_alive(const struct roles_view *v, const struct roles_node *n)
{
    return n->id == v->self || (n->known && n->alive);
}

static bool is_long(const struct roles_view *v, const struct roles_node *n, uint64_t ms)
{
    return v->now_ms - n->since_ms >= ms;
}

static bool is_dead(const struct roles_view *v, const struct roles_node *n)
{
    return n->id != v->self && n->known && !n->alive && is_long(v, n, ROLES_DEAD_MS);
}

static bool may_vote(const struct roles_view *v, const struct roles_node *n)
{
    return !n->removed && is_alive(v, n) && n->synced && is_long(v, n, ROLES_ALIVE_MS);
}

static bool has_role(const struct roles_node *n, enum registry_role role)
{
    return n->role == role;
}

static size_t count_role(const struct roles_view *v, enum registry_role role)
{
    size_t count = 0;
    for (size_t i = 0; i < v->count; i++)
        count += has_role(&v->nodes[i], role);
    return count;
}

/* Voters of that zone. */
static size_t zone_voters(const struct roles_view *v, const char *zone)
{
    size_t count = 0;
    for (size_t i = 0; i < v->count; i++)
        count += has_role(&v->nodes[i], REGISTRY_ROLE_VOTER) && strcmp(v->nodes[i].zone, zone) == 0;
    return count;
}

static size_t odd_below(size_t n)
{
    return n % 2 == 0 && n > 0 ? n - 1 : n;
}

/* How many shall vote: by the nodes that there are, dead ones too, which may come back. */
static size_t voters_wanted(const struct roles_view *v)
{
    size_t nodes = 0;
    for (size_t i = 0; i < v->count; i++)
        nodes += !v->nodes[i].removed;
    size_t wanted = odd_below(nodes < v->wanted.voters ? nodes : v->wanted.voters);
    return wanted > 0 ? wanted : 1;
}

/* True if more than half of the voters are alive when `n` has become or ceased to be one. */
static bool keeps_quorum(const struct roles_view *v, const struct roles_node *n)
{
    size_t voters = 0, alive = 0;
    for (size_t i = 0; i < v->count; i++) {
        const struct roles_node *other = &v->nodes[i];
        bool votes = has_role(other, REGISTRY_ROLE_VOTER);
        if (other == n)
            votes = !votes;
        voters += votes;
        alive += votes && is_alive(v, other);
    }
    return alive * 2 > voters;
}

/* --- choices --------------------------------------------------------------------------------------------- */

/* Who becomes voter next: of the zone with the fewest voters, the lowest id. NULL: nobody can. */
static const struct roles_node *best_standby(const struct roles_view *v)
{
    const struct roles_node *best = NULL;
    size_t best_zone = 0;
    for (size_t i = 0; i < v->count; i++) {
        const struct roles_node *n = &v->nodes[i];
        if (!has_role(n, REGISTRY_ROLE_STANDBY) || !may_vote(v, n))
            continue;
        size_t zone = zone_voters(v, n->zone);
        if (best == NULL || zone < best_zone || (zone == best_zone && n->id < best->id)) {
            best = n;
            best_zone = zone;
        }
    }
    return best;
}

static size_t standbys_ready(const struct roles_view *v)
{
    size_t count = 0;
    for (size_t i = 0; i < v->count; i++)
        count += has_role(&v->nodes[i], REGISTRY_ROLE_STANDBY) && may_vote(v, &v->nodes[i]);
    return count;
}

/* Which of two voters goes first: the dead one, then one of the zone with more voters, then the higher id. */
static bool goes_before(const struct roles_view *v, const struct roles_node *a,
                        const struct roles_node *b)
{
    if (is_alive(v, a) != is_alive(v, b))
        return !is_alive(v, a);
    size_t zone_a = zone_voters(v, a->zone), zone_b = zone_voters(v, b->zone);
    return zone_a != zone_b ? zone_a > zone_b : a->id > b->id;
}

/* The voter that is needed least, of those without whom a majority is alive; never the leader. */
static const struct roles_node *least_voter(const struct roles_view *v)
{
    const struct roles_node *least = NULL;
    for (size_t i = 0; i < v->count; i++) {
        const struct roles_node *n = &v->nodes[i];
        if (!has_role(n, REGISTRY_ROLE_VOTER) || n->id == v->self || !keeps_quorum(v, n))
            continue;
        if (least == NULL || goes_before(v, n, least))
            least = n;
    }
    return least;
}

static const struct roles_node *dead_of(const struct roles_view *v, enum registry_role role)
{
    for (size_t i = 0; i < v->count; i++)
        if (has_role(&v->nodes[i], role) && is_dead(v, &v->nodes[i]))
            return &v->nodes[i];
    return NULL;
}

static size_t standbys_max(const struct roles_view *v)
{
    size_t voters = 0, wanted = voters_wanted(v);
    for (size_t i = 0; i < v->count; i++)
        voters += has_role(&v->nodes[i], REGISTRY_ROLE_VOTER) && !is_dead(v, &v->nodes[i]);
    /* Those on their way to vote, also in the place of a dead one, stand by first. */
    size_t coming = wanted > voters ? wanted - voters : 0;
    return v->wanted.standbys + coming;
}

/* --- rules: each finds the next change, or none -------------------------------------------------------- */

static struct roles_change assign(const struct roles_node *n, enum registry_role role)
{
    return (struct roles_change){.verb = ROLES_ASSIGN, .id = n->id, .role = role};
}

static const struct roles_change nothing = {.verb = ROLES_NOTHING};

static struct roles_change removed_leave(const struct roles_view *v)
{
    for (size_t i = 0; i < v->count; i++) {
        const struct roles_node *n = &v->nodes[i];
        if (!n->removed || n->role == REGISTRY_ROLE_NONE || n->id == v->self)
            continue;
        if (!has_role(n, REGISTRY_ROLE_VOTER) || keeps_quorum(v, n))
            return (struct roles_change){.verb = ROLES_REMOVE, .id = n->id};
    }
    return nothing;
}

/* The leader itself was removed: somebody else leads, and lets it go. */
static struct roles_change leader_leaves(const struct roles_view *v)
{
    const struct roles_node *self = NULL, *heir = NULL;
    for (size_t i = 0; i < v->count; i++) {
        const struct roles_node *n = &v->nodes[i];
        if (n->id == v->self)
            self = n;
        else if (has_role(n, REGISTRY_ROLE_VOTER) && !n->removed && is_alive(v, n) && n->synced)
            heir = heir == NULL || n->id < heir->id ? n : heir;
    }
    if (self == NULL || !self->removed)
        return nothing;
    if (heir != NULL)
        return (struct roles_change){.verb = ROLES_TRANSFER, .id = heir->id};
    const struct roles_node *next = best_standby(v);
    return next != NULL ? assign(next, REGISTRY_ROLE_VOTER) : nothing;
}

static struct roles_change leaves(const struct roles_node *n)
{
    return (struct roles_change){.verb = ROLES_REMOVE, .id = n->id};
}

static struct roles_change votes_no_more(const struct roles_view *v, const struct roles_node *n)
{
    bool room = count_role(v, REGISTRY_ROLE_STANDBY) < v->wanted.standbys;
    return is_alive(v, n) && room ? assign(n, REGISTRY_ROLE_STANDBY) : leaves(n);
}

static struct roles_change voters_shrink(const struct roles_view *v)
{
    const struct roles_node *n = NULL;
    if (count_role(v, REGISTRY_ROLE_VOTER) > voters_wanted(v))
        n = least_voter(v);
    /* Before its replacement comes in: a majority of fewer is easier to have. */
    else if (standbys_ready(v) > 0)
        n = dead_of(v, REGISTRY_ROLE_VOTER);
    return n != NULL && keeps_quorum(v, n) ? votes_no_more(v, n) : nothing;
}

static struct roles_change voters_grow(const struct roles_view *v)
{
    size_t voters = count_role(v, REGISTRY_ROLE_VOTER), wanted = voters_wanted(v);
    size_t reach = voters + standbys_ready(v);
    /* Not to an even number, from which nothing leads on. */
    size_t goal = odd_below(reach < wanted ? reach : wanted);
    if (voters >= goal)
        return nothing;
    const struct roles_node *n = best_standby(v);
    return n != NULL && keeps_quorum(v, n) ? assign(n, REGISTRY_ROLE_VOTER) : nothing;
}

/* One voter more, of a zone that has two fewer than another: the next change lets one of that go. */
static struct roles_change zones_even(const struct roles_view *v)
{
    const struct roles_node *n = best_standby(v);
    if (n == NULL || count_role(v, REGISTRY_ROLE_VOTER) != voters_wanted(v))
        return nothing;
    size_t here = zone_voters(v, n->zone);
    bool uneven = false;
    for (size_t i = 0; i < v->count; i++) {
        const struct roles_node *other = &v->nodes[i];
        if (!has_role(other, REGISTRY_ROLE_VOTER))
            continue;
        if (!is_alive(v, other))
            return nothing;
        /* The leader does not demote itself. */
        uneven |= other->id != v->self && zone_voters(v, other->zone) >= here + 2;
    }
    return uneven ? assign(n, REGISTRY_ROLE_VOTER) : nothing;
}

/* A spare is no member of raft, but for a moment on its way to stand by: libraft adds it so. The one that is
 * on its way goes first, then the lowest id; NULL: none lives. */
static const struct roles_node *next_spare(const struct roles_view *v)
{
    const struct roles_node *next = NULL;
    for (size_t i = 0; i < v->count; i++) {
        const struct roles_node *n = &v->nodes[i];
        bool added = has_role(n, REGISTRY_ROLE_SPARE);
        if ((!added && !has_role(n, REGISTRY_ROLE_NONE)) || n->removed || !is_alive(v, n))
            continue;
        bool other_added = next != NULL && has_role(next, REGISTRY_ROLE_SPARE);
        if (next == NULL || (added && !other_added) || (added == other_added && n->id < next->id))
            next = n;
    }
    return next;
}

static struct roles_change standbys_fill(const struct roles_view *v)
{
    const struct roles_node *spare = next_spare(v), *last = NULL;
    for (size_t i = 0; i < v->count; i++) {
        const struct roles_node *n = &v->nodes[i];
        if (has_role(n, REGISTRY_ROLE_STANDBY) && (last == NULL || n->id > last->id))
            last = n;
    }
    size_t standbys = count_role(v, REGISTRY_ROLE_STANDBY), max = standbys_max(v);
    if (spare != NULL && standbys < max)
        return has_role(spare, REGISTRY_ROLE_SPARE)
                   ? assign(spare, REGISTRY_ROLE_STANDBY)
                   : (struct roles_change){.verb = ROLES_ADD, .id = spare->id};
    const struct roles_node *dead = dead_of(v, REGISTRY_ROLE_STANDBY);
    if (dead != NULL && (standbys > max || spare != NULL))
        return leaves(dead);
    return last != NULL && standbys > max ? leaves(last) : nothing;
}

/* Those that were on their way to stand by and are not needed, or died. */
static struct roles_change spares_leave(const struct roles_view *v)
{
    bool room = count_role(v, REGISTRY_ROLE_STANDBY) < standbys_max(v);
    for (size_t i = 0; i < v->count; i++) {
        const struct roles_node *n = &v->nodes[i];
        if (has_role(n, REGISTRY_ROLE_SPARE) && (!room || is_dead(v, n)))
            return leaves(n);
    }
    return nothing;
}

struct roles_change roles_next(const struct roles_view *v)
{
    static struct roles_change (*const rules[])(const struct roles_view *v) = {
        removed_leave, leader_leaves, voters_shrink, voters_grow,
        zones_even,    standbys_fill, spares_leave,
    };
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        struct roles_change change = rules[i](v);
        if (change.verb != ROLES_NOTHING)
            return change;
    }
    return nothing;
}
