/* Who is a member of raft, in which role: told, and on the leader changed, one step at a time. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "raft/registry_internal.h"
#include "raft/roles.h"
#include "raft/state_parts.h"

enum {
    CHANGE_PAUSE_MS = 500, /* after one that failed */
    TRANSFER_TRY_MS = 1000 /* libraft gives one up after an election timeout */
};

enum registry_role registry_role_of(const struct raft_server *server)
{
    switch (server->role) {
    case RAFT_VOTER:
        return REGISTRY_ROLE_VOTER;
    case RAFT_STANDBY:
        return REGISTRY_ROLE_STANDBY;
    default:
        return REGISTRY_ROLE_SPARE;
    }
}

static int raft_role(enum registry_role role)
{
    switch (role) {
    case REGISTRY_ROLE_VOTER:
        return RAFT_VOTER;
    case REGISTRY_ROLE_STANDBY:
        return RAFT_STANDBY;
    case REGISTRY_ROLE_NONE:
    case REGISTRY_ROLE_SPARE:
        break;
    }
    return RAFT_SPARE;
}

static const char *role_name(enum registry_role role)
{
    static const char *const names[] = {"nothing", "voter", "standby", "spare"};
    return names[role];
}

/* --- what is known of the nodes --------------------------------------------------------------------------- */

static const struct members_peer *peer_find(const struct members *m, node_id id, size_t hint)
{
    if (hint < m->count && m->peers[hint].peer.id == id)
        return &m->peers[hint];
    for (size_t i = 0; i < m->count; i++)
        if (m->peers[i].peer.id == id)
            return &m->peers[i];
    return NULL;
}

/* How long each is alive or dead is counted on every node, so that a new leader knows it. */
static void peers_note(struct members *m, const struct registry_peer *peers, size_t count,
                       uint64_t now_ms)
{
    struct members_peer *next = calloc(count + 1, sizeof *next);
    if (next == NULL)
        return; /* what was known last serves */
    for (size_t i = 0; i < count; i++) {
        const struct members_peer *before = peer_find(m, peers[i].id, i);
        bool same = before != NULL && before->peer.alive == peers[i].alive;
        next[i] =
            (struct members_peer){.peer = peers[i], .since_ms = same ? before->since_ms : now_ms};
    }
    free(m->peers);
    m->peers = next;
    m->count = count;
}

/* Ids are given out in order: one below the next that is not there was removed. */
static bool is_removed(const struct registry *r, node_id id)
{
    const struct state_content *c = state_content(r->state);
    struct state_map_key key = {0};
    if (id >= c->node_id_next)
        return false;
    state_key_u64(&key, id);
    return state_get(c, STATE_NODES, &key) == NULL;
}

static struct roles_node *node_find(struct roles_node *nodes, size_t count, node_id id)
{
    for (size_t i = 0; i < count; i++)
        if (nodes[i].id == id)
            return &nodes[i];
    return NULL;
}

/* The nodes that were told of, and those of raft's configuration. Returns how many; *out is malloc'ed. */
static size_t nodes_list(struct registry *r, struct roles_node **out)
{
    struct raft *raft = replica_raft(r->replica);
    const struct members *m = &r->members;
    const struct raft_configuration *c = &raft->configuration;
    struct roles_node *nodes = calloc(m->count + c->n + 1, sizeof *nodes);
    *out = nodes;
    if (nodes == NULL)
        return 0;
    size_t count = m->count;
    for (size_t i = 0; i < m->count; i++) {
        const struct members_peer *p = &m->peers[i];
        nodes[i] = (struct roles_node){
            .id = p->peer.id, .known = true, .alive = p->peer.alive, .since_ms = p->since_ms};
        memcpy(nodes[i].zone, p->peer.zone, sizeof nodes[i].zone);
    }
    raft_index last = raft_last_index(raft);
    for (unsigned i = 0; i < c->n; i++) {
        const struct raft_server *server = &c->servers[i];
        struct roles_node *n = node_find(nodes, count, server->id);
        if (n == NULL) {
            n = &nodes[count++];
            n->id = server->id;
        }
        n->role = registry_role_of(server);
        n->synced = raft->leader_state.progress[i].match_index + ROLES_BEHIND_MAX >= last;
    }
    for (size_t i = 0; i < count; i++)
        nodes[i].removed = is_removed(r, nodes[i].id);
    return count;
}

/* --- changes ---------------------------------------------------------------------------------------------- */

/* Out of libraft's stack. */
static void change_cb(struct raft_change *change, int status)
{
    struct registry *r = change->data;
    r->members.changing = false;
    r->members.change_status = status;
}

static void change_say(const struct roles_change *c)
{
    unsigned long long id = c->id;
    if (c->verb == ROLES_ADD)
        log_info("registry", "node %llu joins raft", id);
    else if (c->verb == ROLES_ASSIGN)
        log_info("registry", "node %llu becomes %s", id, role_name(c->role));
    else if (c->verb == ROLES_REMOVE)
        log_info("registry", "node %llu leaves raft", id);
    else
        log_info("registry", "node %llu is to lead", id);
}

static int change_begin(struct registry *r, const struct roles_change *c)
{
    struct raft *raft = replica_raft(r->replica);
    struct raft_change *request = &r->members.change;
    char address[24];
    struct err e;
    request->data = r;
    switch (c->verb) {
    case ROLES_ADD:
        text_format(address, sizeof address, "%llu", (unsigned long long)c->id);
        return raft_add(raft, request, c->id, address, change_cb);
    case ROLES_ASSIGN:
        return raft_assign(raft, request, c->id, raft_role(c->role), change_cb);
    case ROLES_REMOVE:
        return raft_remove(raft, request, c->id, change_cb);
    case ROLES_TRANSFER:
        return registry_transfer(r, c->id, NULL, NULL, &e) == 0 ? 0 : RAFT_BUSY;
    case ROLES_NOTHING:
        break;
    }
    return RAFT_INVALID;
}

static void change_do(struct registry *r, const struct roles_change *c, uint64_t now_ms)
{
    struct raft *raft = replica_raft(r->replica);
    struct members *m = &r->members;
    change_say(c);
    m->changing = c->verb != ROLES_TRANSFER;
    m->change_status = 0;
    int rv = change_begin(r, c);
    if (rv == 0)
        return;
    log_warn("registry", "that change was not begun: %s", raft_strerror(rv));
    m->changing = false;
    m->pause_until_ms = now_ms + CHANGE_PAUSE_MS;
    /* raft_assign keeps it although it failed. */
    if (raft->state == RAFT_LEADER && raft->leader_state.change == &m->change)
        raft->leader_state.change = NULL;
}

void registry_roles(struct registry *r, const struct registry_peer *peers, size_t count,
                    const struct registry_roles_wanted *wanted)
{
    struct members *m = &r->members;
    uint64_t now_ms = clock_monotonic_ms();
    if (r->closing || r->failed)
        return;
    peers_note(m, peers, count, now_ms);
    remote_candidates(r->remote, peers, count);
    spare_peers(r->spare, peers, count);
    replica_review(r->replica);
    registry_spare_review(r);
    if (m->change_status != 0) {
        log_warn("registry", "that change was not made: %s", raft_strerror(m->change_status));
        m->change_status = 0;
        m->pause_until_ms = now_ms + CHANGE_PAUSE_MS;
    }
    if (!replica_leads(r->replica) || m->changing || m->transferring || now_ms < m->pause_until_ms)
        return;
    struct roles_node *nodes;
    struct roles_view view = {.self = r->options.id, .wanted = *wanted, .now_ms = now_ms};
    view.count = nodes_list(r, &nodes);
    view.nodes = nodes;
    struct roles_change change = {.verb = ROLES_NOTHING};
    if (nodes != NULL)
        change = roles_next(&view);
    free(nodes);
    if (change.verb != ROLES_NOTHING)
        change_do(r, &change, now_ms);
}

/* --- handing over ----------------------------------------------------------------------------------------- */

/* Out of libraft's stack: told in the next turn. */
static void transfer_cb(struct raft_transfer *transfer)
{
    struct registry *r = transfer->data;
    r->members.transfer_over = true;
    registry_wake(r);
}

/* The other voter that has the most of the log; one that was heard of lately, if two have as much. */
static node_id heir(struct raft *raft)
{
    const struct raft_progress *best = NULL;
    node_id id = 0;
    for (unsigned i = 0; i < raft->configuration.n; i++) {
        const struct raft_server *server = &raft->configuration.servers[i];
        const struct raft_progress *p = &raft->leader_state.progress[i];
        if (server->role != RAFT_VOTER || server->id == raft->id)
            continue;
        if (best == NULL || p->match_index > best->match_index ||
            (p->match_index == best->match_index && p->recent_recv && !best->recent_recv)) {
            best = p;
            id = server->id;
        }
    }
    return id;
}

static int transfer_begin(struct registry *r, struct err *e)
{
    struct raft *raft = replica_raft(r->replica);
    struct members *m = &r->members;
    node_id to = m->transfer_to != 0 ? m->transfer_to : heir(raft);
    if (to == 0)
        return err_set(e, ERR_NOT_FOUND, "there is no other voter to hand over to");
    m->transfer.data = r;
    int rv = raft_transfer(raft, &m->transfer, to, transfer_cb);
    if (rv == RAFT_BADID)
        return err_set(e, ERR_INVALID, "node %llu is no other voter", (unsigned long long)to);
    if (rv != 0)
        return err_set(e, ERR_UNAVAILABLE, "hand over to node %llu: %s", (unsigned long long)to,
                       raft_strerror(rv));
    m->transferring = true;
    m->transfer_over = false;
    return 0;
}

int registry_transfer(struct registry *r, node_id to, registry_read_cb cb, void *user,
                      struct err *e)
{
    struct members *m = &r->members;
    if (r->closing)
        return err_set(e, ERR_CANCELED, "the registry is closing");
    if (r->failed || !replica_leads(r->replica))
        return err_set(e, ERR_CONFLICT, "this node does not lead: ask node %llu",
                       (unsigned long long)replica_leader(r->replica));
    if (m->transferring)
        return err_set(e, ERR_CONFLICT, "leadership is being handed over already");
    m->transfer_to = to;
    m->transfer_until_ms = clock_monotonic_ms() + TRANSFER_TRY_MS;
    int rc = transfer_begin(r, e);
    if (rc < 0)
        return rc;
    m->transfer_done = cb;
    m->transfer_user = user;
    return 0;
}

static void transfer_end(struct members *m, const struct err *error)
{
    registry_read_cb cb = m->transfer_done;
    m->transferring = m->transfer_over = false;
    m->transfer_done = NULL;
    if (cb != NULL)
        cb(m->transfer_user, error);
}

void registry_members_turn(struct registry *r)
{
    struct members *m = &r->members;
    struct err e;
    if (!m->transferring || !m->transfer_over)
        return;
    if (!replica_elected(r->replica)) {
        transfer_end(m, NULL);
        return;
    }
    /* libraft asks the heir once, and that is lost when the heir lacks an entry just then: one that the
     * guard held back until it is stored here is sent again a heartbeat later. */
    if (clock_monotonic_ms() < m->transfer_until_ms) {
        if (transfer_begin(r, &e) != 0)
            transfer_end(m, &e);
        return;
    }
    err_set(&e, ERR_TIMEOUT, "the other node did not take over in time; this one still leads");
    transfer_end(m, &e);
}

void registry_members_close(struct registry *r)
{
    struct err e;
    err_set(&e, ERR_CANCELED, "the registry is closing");
    if (r->members.transferring)
        transfer_end(&r->members, &e);
}

void registry_members_free(struct registry *r)
{
    free(r->members.peers);
}
