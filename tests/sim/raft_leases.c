#include "tests/sim/raft_leases.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state_parts.h"
#include "scheduler/leases.h"
#include "tests/lib/registry_help.h"

#define MS 1000ull

enum { KEYS = 3, TICK_MS = 50, ASK_MS = 6000 };

/* An instance in the hands of a runner: it runs until its deadline, by the node's clock. */
struct running {
    bool there;
    struct instance_id id;
    uint64_t epoch, deadline_ms;
};

struct lease_node {
    uint64_t life; /* of the process whose the next four are; 0: none */
    struct lease_holder holder;
    struct lease_table *table;
    bool leading;
    uint64_t sequence;
    bool asking[KEYS];            /* a reservation is under way, or an end */
    uint64_t asked[KEYS];         /* its number */
    struct running running[KEYS]; /* the runner's: it stays */
};

struct leases {
    struct world *world;
    struct sim *sim;
    uint32_t n;
    struct lease_node nodes[WORLD_MEMBERS_MAX];
    uint64_t serial;
    struct leases_counts counts;
};

/* A renewal on its way, and its answer. */
struct renewal {
    uint32_t from, to;
    uint64_t life, sent_ms, epoch; /* epoch 0: not renewed */
};

/* At the leader: it waits for a barrier or a grant. */
struct asked {
    struct leases *leases;
    struct renewal renewal;
    uint64_t life; /* the leader's */
};

/* A reservation or an end, asked of whoever leads under one number until it is answered. */
struct change {
    struct leases *leases;
    uint32_t node, key;
    uint64_t life, until_ms, lease_epoch;
    struct command_session session;
    enum registry_command_kind kind;
    struct registry_instance instance;
    struct registry_result result;
};

static bool same_life(const struct leases *l, uint32_t i, uint64_t life)
{
    return member_is_up(l->world, i) && l->nodes[i].life == life;
}

static bool runs(const struct leases *l, uint32_t i, uint32_t key)
{
    const struct running *r = &l->nodes[i].running[key];
    return r->there && member_now_ms(l->world, i) < r->deadline_ms;
}

/* --- starting and ending ------------------------------------------------------------------------------- */

static void change_ask(struct change *c);

static void change_again(void *user, uint32_t node, uint64_t number)
{
    (void)node;
    (void)number;
    change_ask(user);
}

static void run_start(struct leases *l, uint32_t i, const struct change *c)
{
    struct lease_node *n = &l->nodes[i];
    for (uint32_t j = 0; j < l->n; j++)
        if (j != i && runs(l, j, c->key))
            checks_violate(world_checks(l->world),
                           "key excl%u runs as %s on node %u and starts as %s on node %u", c->key,
                           l->nodes[j].running[c->key].id.text, j + 1, c->instance.id.text, i + 1);
    n->running[c->key] = (struct running){.there = true,
                                          .id = c->instance.id,
                                          .epoch = c->result.epoch,
                                          .deadline_ms = n->holder.deadline_ms};
    l->counts.started++;
    world_say(l->world, "node %u runs excl%u until %" PRIu64 " ms", i + 1, c->key,
              n->holder.deadline_ms - member_now_ms(l->world, i));
}

/* The leader's answer has come to the node. */
static void change_arrives(void *user, uint32_t to, uint32_t from, const uint8_t *data, size_t size)
{
    struct leases *l = user;
    struct change c;
    (void)from;
    assert_always(size == sizeof c);
    memcpy(&c, data, size);
    struct lease_node *n = &l->nodes[to];
    /* A second copy answers nothing. */
    if (!same_life(l, to, c.life) || !n->asking[c.key] || n->asked[c.key] != c.session.sequence)
        return;
    n->asking[c.key] = false;
    if (c.kind != REGISTRY_INSTANCE_RESERVE || c.result.problem != PROBLEM_NONE)
        return;
    /* Of the lease under which it was asked for, and that one still holds: else it is lost already, or
     * will be ended with the lease. */
    if (lease_holder_valid(&n->holder, member_now_ms(l->world, to)) &&
        n->holder.epoch == c.lease_epoch)
        run_start(l, to, &c);
}

static void changed(void *user, const struct err *error, const struct registry_result *result)
{
    struct change *c = user;
    struct leases *l = c->leases;
    if (error != NULL) {
        sim_at(l->sim, sim_now_us(l->sim) + 100 * MS, change_again, c, 0);
        return;
    }
    checks_acknowledged(world_checks(l->world), &c->session, result);
    c->result = *result;
    int leader = world_leader(l->world);
    if (leader >= 0)
        sim_datagram(l->sim, (uint32_t)leader, c->node, c, sizeof *c, change_arrives, l);
    free(c);
}

static void change_ask(struct change *c)
{
    struct leases *l = c->leases;
    int leader = world_leader(l->world);
    struct registry_command command = {.kind = c->kind, .instance = &c->instance};
    bool here = same_life(l, c->node, c->life);
    if (!here || member_now_ms(l->world, c->node) > c->until_ms) {
        if (here && l->nodes[c->node].asked[c->key] == c->session.sequence)
            l->nodes[c->node].asking[c->key] = false;
        free(c);
        return;
    }
    if (leader < 0 || !sim_reachable(l->sim, c->node, (uint32_t)leader) ||
        !member_propose_foreign(l->world, (uint32_t)leader, &c->session, &command, changed, c))
        sim_at(l->sim, sim_now_us(l->sim) + 100 * MS, change_again, c, 0);
}

static struct change *change_new(struct leases *l, uint32_t i, uint32_t key)
{
    struct lease_node *n = &l->nodes[i];
    struct change *c = calloc(1, sizeof *c);
    assert_always(c != NULL);
    c->leases = l;
    c->node = i;
    c->key = key;
    c->life = n->life;
    c->until_ms = member_now_ms(l->world, i) + ASK_MS;
    c->lease_epoch = n->holder.epoch;
    /* A session beside that of the process's own proposer. */
    c->session = (struct command_session){i + 1, n->life + 1000000, ++n->sequence};
    n->asking[key] = true;
    n->asked[key] = c->session.sequence;
    return c;
}

static void reserve(struct leases *l, uint32_t i, uint32_t key)
{
    struct registry_root *root = state_root(member_state(l->world, i));
    const struct registry_workload *w = registry_root_workload(root, "excl", 4);
    uint64_t version = w == NULL ? 0 : w->version;
    registry_root_release(root);
    if (version == 0)
        return;
    struct change *c = change_new(l, i, key);
    c->kind = REGISTRY_INSTANCE_RESERVE;
    c->instance = (struct registry_instance){.id = help_instance_id(i + 1, 1000000 + ++l->serial),
                                             .owner = i + 1,
                                             .version = version,
                                             .started_wall_ms = member_wall_ms(l->world, i)};
    (void)text_copy(c->instance.workload, sizeof c->instance.workload, "excl");
    (void)text_format(c->instance.key, sizeof c->instance.key, "excl%u", key);
    change_ask(c);
}

/* First the runner, then the registry. */
static void end(struct leases *l, uint32_t i, uint32_t key)
{
    struct running *r = &l->nodes[i].running[key];
    struct change *c = change_new(l, i, key);
    c->kind = REGISTRY_INSTANCE_END;
    c->instance = (struct registry_instance){.id = r->id,
                                             .epoch = r->epoch,
                                             .reason = END_EXITED,
                                             .ended_wall_ms = member_wall_ms(l->world, i)};
    r->there = false;
    change_ask(c);
}

/* What the registry says has ended is not run any more; what it does not know yet is. */
static void reconcile(struct leases *l, uint32_t i, uint32_t key)
{
    struct running *r = &l->nodes[i].running[key];
    const struct registry_instance *there =
        state_instance(state_content(member_state(l->world, i)), &r->id);
    if (r->there && there != NULL && there->state == INSTANCE_STATE_ENDED)
        r->there = false;
}

/* --- the leader ---------------------------------------------------------------------------------------- */

static bool look_node(void *user, const struct registry_node *n)
{
    const struct asked *a = user;
    struct lease_node *leader = &a->leases->nodes[a->renewal.to];
    struct err e;
    assert_always(lease_table_node(leader->table, n->id, n->leased, n->lease_epoch,
                                   member_now_ms(a->leases->world, a->renewal.to), &e) == 0);
    return true;
}

static void look(struct leases *l, uint32_t i)
{
    struct asked a = {.leases = l, .renewal.to = i};
    struct registry_root *root = state_root(member_state(l->world, i));
    lease_table_mark(l->nodes[i].table);
    registry_root_nodes(root, look_node, &a);
    lease_table_sweep(l->nodes[i].table);
    registry_root_release(root);
}

static void renewal_arrives(void *user, uint32_t to, uint32_t from, const uint8_t *data,
                            size_t size);

static void renew(struct asked *a, uint64_t epoch)
{
    struct leases *l = a->leases;
    uint32_t i = a->renewal.to;
    look(l, i);
    if (lease_table_renewed(l->nodes[i].table, a->renewal.from + 1, epoch,
                            member_now_ms(l->world, i))) {
        a->renewal.epoch = epoch;
        sim_datagram(l->sim, i, a->renewal.from, &a->renewal, sizeof a->renewal, renewal_arrives,
                     l);
    }
    free(a);
}

static void granted(void *user, const struct err *error, const struct registry_result *result)
{
    struct asked *a = user;
    if (error != NULL || result->problem != PROBLEM_NONE ||
        !same_life(a->leases, a->renewal.to, a->life) || !a->leases->nodes[a->renewal.to].leading)
        free(a);
    else
        renew(a, result->epoch);
}

/* It led after the renewal had come. */
static void proved(void *user, const struct err *error)
{
    struct asked *a = user;
    struct leases *l = a->leases;
    uint32_t i = a->renewal.to;
    if (error != NULL || !same_life(l, i, a->life) || !l->nodes[i].leading) {
        free(a);
        return;
    }
    struct registry_root *root = state_root(member_state(l->world, i));
    const struct registry_node *n = registry_root_node(root, a->renewal.from + 1);
    bool known = n != NULL, leased = known && n->leased;
    uint64_t epoch = known ? n->lease_epoch : 0;
    registry_root_release(root);
    if (leased) {
        renew(a, epoch);
        return;
    }
    const struct registry_node node = {.id = a->renewal.from + 1};
    const struct registry_command grant = {.kind = REGISTRY_LEASE_GRANT, .node = &node};
    struct command_session session;
    if (!known || !member_propose(l->world, i, &grant, granted, a, &session))
        free(a);
}

static void asked_by(struct leases *l, const struct renewal *r)
{
    if (!l->nodes[r->to].leading)
        return;
    struct asked *a = malloc(sizeof *a);
    assert_always(a != NULL);
    *a = (struct asked){.leases = l, .renewal = *r, .life = l->nodes[r->to].life};
    if (!member_barrier(l->world, r->to, proved, a))
        free(a);
}

static void expired(void *user, const struct err *error, const struct registry_result *result)
{
    struct leases *l = user;
    if (error == NULL && result->problem == PROBLEM_NONE)
        l->counts.expired++;
}

static void lead(struct leases *l, uint32_t i)
{
    struct lease_node *n = &l->nodes[i];
    uint64_t now_ms = member_now_ms(l->world, i), next_ms;
    bool leads = member_leads(l->world, i);
    if (leads && !n->leading)
        lease_table_lead(n->table, now_ms);
    if (!leads && n->leading)
        lease_table_depose(n->table);
    n->leading = leads;
    if (!leads)
        return;
    look(l, i);
    struct registry_node node = {0};
    while (lease_table_due(n->table, now_ms, &node.id, &node.lease_epoch, &next_ms)) {
        const struct registry_command expire = {
            .kind = REGISTRY_LEASE_EXPIRE, .node = &node, .wall_ms = member_wall_ms(l->world, i)};
        struct command_session session;
        world_say(l->world, "the lease of node %" PRIu64 " is over, says node %u", node.id, i + 1);
        (void)member_propose(l->world, i, &expire, expired, l, &session);
    }
}

/* --- the holder ---------------------------------------------------------------------------------------- */

/* Either way: a renewal to its leader, or the answer to its holder. */
static void renewal_arrives(void *user, uint32_t to, uint32_t from, const uint8_t *data,
                            size_t size)
{
    struct leases *l = user;
    struct renewal r;
    (void)from;
    assert_always(size == sizeof r);
    memcpy(&r, data, size);
    if (r.epoch == 0) {
        asked_by(l, &r);
        return;
    }
    struct lease_node *n = &l->nodes[to];
    if (!same_life(l, to, r.life) || !lease_holder_granted(&n->holder, r.sent_ms, r.epoch))
        return;
    l->counts.renewed++;
    for (uint32_t key = 0; key < KEYS; key++) {
        struct running *run = &n->running[key];
        run->there = runs(l, to, key);
        if (run->there && run->deadline_ms < n->holder.deadline_ms)
            run->deadline_ms = n->holder.deadline_ms;
    }
}

static void hold(struct leases *l, uint32_t i)
{
    struct lease_node *n = &l->nodes[i];
    raft_id leader;
    const char *address;
    if (!lease_holder_send(&n->holder, member_now_ms(l->world, i)))
        return;
    raft_leader(member_raft(l->world, i), &leader, &address);
    if (leader == 0) {
        lease_holder_failed(&n->holder, n->holder.sent_ms, member_now_ms(l->world, i));
        return;
    }
    const struct renewal r = {
        .from = i, .to = (uint32_t)leader - 1, .life = n->life, .sent_ms = n->holder.sent_ms};
    sim_datagram(l->sim, i, r.to, &r, sizeof r, renewal_arrives, l);
}

static void turn(void *user, uint32_t i, uint64_t life)
{
    struct leases *l = user;
    struct lease_node *n = &l->nodes[i];
    if (!same_life(l, i, life))
        return;
    sim_node_at(l->sim, i, sim_now_us(l->sim) + member_real_us(l->world, i, TICK_MS * MS), turn, l,
                life);
    lead(l, i);
    hold(l, i);
    bool valid = lease_holder_valid(&n->holder, member_now_ms(l->world, i));
    for (uint32_t key = 0; key < KEYS; key++) {
        reconcile(l, i, key);
        if (n->asking[key] || !sim_chance(l->sim, 30))
            continue;
        if (runs(l, i, key))
            end(l, i, key);
        else if (valid)
            reserve(l, i, key);
    }
}

/* A process that has come since takes over what its runner has. */
static void watch_run(void *user, uint32_t none, uint64_t number)
{
    struct leases *l = user;
    (void)none;
    (void)number;
    for (uint32_t i = 0; i < l->n; i++) {
        struct lease_node *n = &l->nodes[i];
        uint64_t life = member_life(l->world, i);
        struct err e;
        if (!member_is_up(l->world, i) || n->life == life)
            continue;
        lease_table_free(n->table);
        assert_always(lease_table_new(&n->table, 10000, &e) == 0);
        lease_holder_init(&n->holder, member_now_ms(l->world, i));
        n->life = life;
        n->leading = false;
        n->sequence = 0;
        memset(n->asking, 0, sizeof n->asking);
        sim_node_at(l->sim, i, sim_now_us(l->sim), turn, l, life);
    }
    sim_at(l->sim, sim_now_us(l->sim) + 20 * MS, watch_run, l, 0);
}

/* --- life ---------------------------------------------------------------------------------------------- */

struct leases *leases_new(struct world *w)
{
    struct leases *l = calloc(1, sizeof *l);
    assert_always(l != NULL);
    l->world = w;
    l->sim = world_sim(w);
    l->n = world_members(w);
    sim_at(l->sim, sim_now_us(l->sim), watch_run, l, 0);
    return l;
}

struct leases_counts leases_counts(const struct leases *l)
{
    return l->counts;
}

void leases_free(struct leases *l)
{
    for (uint32_t i = 0; i < l->n; i++)
        lease_table_free(l->nodes[i].table);
    free(l);
}
