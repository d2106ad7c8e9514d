#include "tests/sim/raft_roles.h"

#include <stdlib.h>

#include "base/memory.h"
#include "raft/roles.h"

#define MS 1000ull

/* How a member looks from another one. */
struct seen {
    bool alive;
    uint64_t since_ms;
};

struct roles {
    struct world *world;
    struct sim *sim;
    uint32_t n;
    struct registry_roles_wanted wanted;
    char zone[WORLD_MEMBERS_MAX];
    struct seen seen[WORLD_MEMBERS_MAX][WORLD_MEMBERS_MAX];
};

/* By one clock for all, which is what roles are given out by on each leader. */
static uint64_t now_ms(const struct roles *r)
{
    return sim_now_us(r->sim) / 1000;
}

static void watch(struct roles *r)
{
    for (uint32_t i = 0; i < r->n; i++) {
        for (uint32_t j = 0; j < r->n; j++) {
            struct seen *s = &r->seen[i][j];
            bool alive = member_is_up(r->world, j) && sim_reachable(r->sim, i, j) &&
                         sim_reachable(r->sim, j, i);
            if (alive != s->alive)
                s->since_ms = now_ms(r);
            s->alive = alive;
        }
    }
}

static enum registry_role role_of(int raft_role)
{
    return raft_role == RAFT_VOTER     ? REGISTRY_ROLE_VOTER
           : raft_role == RAFT_STANDBY ? REGISTRY_ROLE_STANDBY
                                       : REGISTRY_ROLE_SPARE;
}

static struct roles_change next(struct roles *r, uint32_t leader)
{
    struct roles_node nodes[WORLD_MEMBERS_MAX] = {0};
    struct raft *raft = member_raft(r->world, leader);
    for (uint32_t j = 0; j < r->n; j++) {
        nodes[j] = (struct roles_node){.id = j + 1,
                                       .known = true,
                                       .alive = r->seen[leader][j].alive,
                                       .since_ms = r->seen[leader][j].since_ms};
        nodes[j].zone[0] = r->zone[j];
    }
    for (unsigned k = 0; k < raft->configuration.n; k++) {
        const struct raft_server *server = &raft->configuration.servers[k];
        struct roles_node *node = &nodes[server->id - 1];
        node->role = role_of(server->role);
        node->synced =
            raft->leader_state.progress[k].match_index + ROLES_BEHIND_MAX >= raft_last_index(raft);
    }
    const struct roles_view view = {.self = leader + 1,
                                    .nodes = nodes,
                                    .count = r->n,
                                    .wanted = r->wanted,
                                    .now_ms = now_ms(r)};
    return roles_next(&view);
}

static void give(struct roles *r, uint32_t leader, const struct roles_change *c)
{
    switch (c->verb) {
    case ROLES_NOTHING:
        break;
    case ROLES_ADD:
        member_change(r->world, leader, WORLD_ADD, c->id);
        break;
    case ROLES_REMOVE:
        member_change(r->world, leader, WORLD_DISMISS, c->id);
        break;
    case ROLES_ASSIGN:
        member_change(r->world, leader,
                      c->role == REGISTRY_ROLE_VOTER     ? WORLD_VOTER
                      : c->role == REGISTRY_ROLE_STANDBY ? WORLD_STANDBY
                                                         : WORLD_SPARE,
                      c->id);
        break;
    case ROLES_TRANSFER:
        member_transfer(r->world, leader, c->id);
        break;
    }
}

static void roles_run(void *user, uint32_t none, uint64_t number)
{
    struct roles *r = user;
    (void)none;
    (void)number;
    watch(r);
    for (uint32_t i = 0; i < r->n; i++) {
        if (!member_leads(r->world, i))
            continue;
        struct roles_change c = next(r, i);
        give(r, i, &c);
    }
    sim_at(r->sim, sim_now_us(r->sim) + 200 * MS, roles_run, r, 0);
}

bool roles_settled(struct roles *r, char *why, size_t size)
{
    int leader = world_leader(r->world);
    unsigned voters = 0, standbys = 0, most = r->n % 2 == 1 ? r->n : r->n - 1;
    if (most > r->wanted.voters)
        most = r->wanted.voters;
    if (leader < 0 || !member_leads(r->world, (uint32_t)leader))
        return text_format(why, size, "nobody leads, so that nobody gives out roles") && false;
    const struct raft *raft = member_raft(r->world, (uint32_t)leader);
    for (unsigned k = 0; k < raft->configuration.n; k++) {
        voters += raft->configuration.servers[k].role == RAFT_VOTER;
        standbys += raft->configuration.servers[k].role == RAFT_STANDBY;
    }
    struct roles_change c = next(r, (uint32_t)leader);
    (void)text_format(why, size,
                      "roles: %u of %u members vote and %u stand by, %u and %u may; %u are known, "
                      "next is %d of member %llu",
                      voters, r->n, standbys, most, r->wanted.standbys, raft->configuration.n,
                      (int)c.verb, (unsigned long long)c.id);
    unsigned rest = r->n - most, stand = rest < r->wanted.standbys ? rest : r->wanted.standbys;
    return voters == most && standbys == stand && raft->configuration.n == most + stand &&
           c.verb == ROLES_NOTHING && raft->configuration_uncommitted_index == 0;
}

struct roles *roles_new(struct world *w, unsigned voters, unsigned standbys)
{
    struct roles *r = calloc(1, sizeof *r);
    assert_always(r != NULL);
    r->world = w;
    r->sim = world_sim(w);
    r->n = world_members(w);
    r->wanted = (struct registry_roles_wanted){.voters = voters, .standbys = standbys};
    for (uint32_t i = 0; i < r->n; i++)
        r->zone[i] = (char)('a' + (char)sim_below(r->sim, 3));
    sim_at(r->sim, 0, roles_run, r, 0);
    return r;
}

void roles_free(struct roles *r)
{
    free(r);
}
