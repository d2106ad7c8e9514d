#include "tests/sim/raft_clients.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "tests/lib/registry_help.h"

enum { WRITERS = 4, WORKLOADS = 4, KEYS = 3, HELD_MAX = 400, BURST_MAX = 40 };

/* What a client knows that it holds. */
struct held {
    struct instance_id id;
    uint64_t epoch;
    bool ready;
};

struct clients {
    struct world *world;
    struct sim *sim;
    uint64_t pause_us;
    bool stopped;
    struct held held[HELD_MAX];
    size_t held_count;
    uint64_t serial; /* of instances, tokens, nodes: names are never used twice */
    uint64_t tokens;
    bool probing, probe_acknowledged;
    uint64_t asked, answered;
};

struct write {
    struct clients *clients;
    struct command_session session;
    enum registry_command_kind kind;
    struct instance_id id;
    uint64_t epoch;
    bool probe;
};

/* --- answers ------------------------------------------------------------------------------------------ */

static struct held *held_find(struct clients *c, const struct instance_id *id)
{
    for (size_t i = 0; i < c->held_count; i++)
        if (strcmp(c->held[i].id.text, id->text) == 0)
            return &c->held[i];
    return NULL;
}

static void learn(struct clients *c, const struct write *w, const struct registry_result *r)
{
    struct held *h = held_find(c, &w->id);
    if (w->kind == REGISTRY_INSTANCE_RESERVE && r->problem == PROBLEM_NONE && h == NULL &&
        c->held_count < HELD_MAX)
        c->held[c->held_count++] = (struct held){.id = w->id, .epoch = r->epoch};
    if (w->kind == REGISTRY_INSTANCE_UPDATE && h != NULL)
        h->ready = true;
    if (w->kind == REGISTRY_INSTANCE_END && h != NULL)
        *h = c->held[--c->held_count];
}

static void answered(void *user, const struct err *error, const struct registry_result *result)
{
    struct write *w = user;
    struct clients *c = w->clients;
    struct checks *checks = world_checks(c->world);
    c->answered++;
    if (w->probe)
        c->probing = false;
    if (error == NULL) {
        checks_acknowledged(checks, &w->session, result);
        learn(c, w, result);
        if (w->probe)
            c->probe_acknowledged = true;
    } else if (error->code == ERR_UNAVAILABLE) {
        checks_not_proposed(checks, &w->session);
    }
    free(w);
}

/* --- writes ------------------------------------------------------------------------------------------- */

static bool propose(struct clients *c, uint32_t at, const struct registry_command *command,
                    struct write like)
{
    struct write *w = malloc(sizeof *w);
    assert_always(w != NULL);
    *w = like;
    w->clients = c;
    w->kind = command->kind;
    if (!member_propose(c->world, at, command, answered, w, &w->session)) {
        free(w);
        return false;
    }
    c->asked++;
    return true;
}

static void workload_name(struct clients *c, char out[8])
{
    (void)text_format(out, 8, "w%u", (unsigned)sim_below(c->sim, WORKLOADS) + 1);
}

static void deploy(struct clients *c, uint32_t at)
{
    char name[8], more[64];
    workload_name(c, name);
    (void)text_format(more, sizeof more, "scale: {max: %u}\n", (unsigned)sim_between(c->sim, 1, 6));
    char *json = help_workload_json(name, more);
    const struct registry_command command = {.kind = REGISTRY_WORKLOAD_PUT,
                                             .wall_ms = member_wall_ms(c->world, at),
                                             .workload_json = json};
    (void)propose(c, at, &command, (struct write){0});
    free(json);
}

static void undeploy(struct clients *c, uint32_t at)
{
    char name[8];
    workload_name(c, name);
    const struct registry_command command = {
        .kind = REGISTRY_WORKLOAD_REMOVE, .name = name, .wall_ms = member_wall_ms(c->world, at)};
    (void)propose(c, at, &command, (struct write){0});
}

static void reserve(struct clients *c, uint32_t at)
{
    struct registry_instance i = {.id = help_instance_id(at + 1, ++c->serial),
                                  .owner = at + 1,
                                  .started_wall_ms = member_wall_ms(c->world, at)};
    char name[8];
    workload_name(c, name);
    (void)text_copy(i.workload, sizeof i.workload, name);
    if (sim_chance(c->sim, 500))
        (void)text_format(i.key, sizeof i.key, "room%u", (unsigned)sim_below(c->sim, KEYS));
    /* Of the version that this member knows, which others may have replaced. */
    struct registry_root *root = state_root(member_state(c->world, at));
    const struct registry_workload *w = registry_root_workload(root, name, strlen(name));
    i.version = w == NULL ? 1 : w->version;
    registry_root_release(root);
    const struct registry_command command = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &i};
    (void)propose(c, at, &command, (struct write){.id = i.id});
}

static void end_or_update(struct clients *c, uint32_t at)
{
    if (c->held_count == 0)
        return;
    const struct held *h = &c->held[sim_below(c->sim, c->held_count)];
    bool end = h->ready || sim_chance(c->sim, 300);
    struct registry_instance i = {.id = h->id, .epoch = h->epoch};
    i.state = INSTANCE_STATE_READY;
    if (end) {
        i.reason = END_EXITED;
        i.ended_wall_ms = member_wall_ms(c->world, at);
    }
    const struct registry_command command = {
        .kind = end ? REGISTRY_INSTANCE_END : REGISTRY_INSTANCE_UPDATE, .instance = &i};
    (void)propose(c, at, &command, (struct write){.id = h->id, .epoch = h->epoch});
}

static void token(struct clients *c, uint32_t at)
{
    bool revoke = c->tokens > 0 && sim_chance(c->sim, 400);
    struct registry_token t = {.role = TOKEN_ROLE_INVOKE,
                               .created_wall_ms = member_wall_ms(c->world, at)};
    uint64_t number = revoke ? sim_below(c->sim, c->tokens) : c->tokens++;
    (void)text_format(t.id, sizeof t.id, "token%011" PRIu64, number);
    (void)text_format(t.name, sizeof t.name, "client's %" PRIu64, number);
    const struct registry_command command = {
        .kind = revoke ? REGISTRY_TOKEN_REVOKE : REGISTRY_TOKEN_PUT, .token = &t};
    (void)propose(c, at, &command, (struct write){0});
}

static bool node(struct clients *c, uint32_t at, bool probe)
{
    struct registry_node n = {0};
    (void)text_format(n.name, sizeof n.name, "n%" PRIu64, ++c->serial);
    const struct registry_command command = {.kind = REGISTRY_NODE_PUT, .node = &n};
    return propose(c, at, &command, (struct write){.probe = probe});
}

/* Members are nodes of the cluster: what others ask is not remembered for long. */
static void found_run(void *user, uint32_t none, uint64_t number)
{
    struct clients *c = user;
    int leader = world_leader(c->world);
    (void)none;
    (void)number;
    if (leader < 0 || !member_leads(c->world, (uint32_t)leader)) {
        sim_at(c->sim, sim_now_us(c->sim) + 100000, found_run, c, 0);
        return;
    }
    for (uint32_t i = 1; i <= world_members(c->world); i++) {
        struct registry_node n = {.id = i};
        (void)text_format(n.name, sizeof n.name, "member%u", i);
        const struct registry_command put = {.kind = REGISTRY_NODE_PUT, .node = &n};
        const struct registry_command grant = {.kind = REGISTRY_LEASE_GRANT, .node = &n};
        (void)propose(c, (uint32_t)leader, &put, (struct write){0});
        (void)propose(c, (uint32_t)leader, &grant, (struct write){0});
    }
    char *json = help_workload_json("excl", "");
    const struct registry_command excl = {.kind = REGISTRY_WORKLOAD_PUT,
                                          .wall_ms = member_wall_ms(c->world, (uint32_t)leader),
                                          .workload_json = json};
    (void)propose(c, (uint32_t)leader, &excl, (struct write){0});
    free(json);
}

static void sweep(struct clients *c, uint32_t at)
{
    const struct registry_command command = {.kind = REGISTRY_SWEEP,
                                             .wall_ms = member_wall_ms(c->world, at)};
    (void)propose(c, at, &command, (struct write){0});
}

static void write_one(struct clients *c, uint32_t at)
{
    uint64_t which = sim_below(c->sim, 100);
    if (which < 6)
        deploy(c, at);
    else if (which < 8)
        undeploy(c, at);
    else if (which < 45)
        reserve(c, at);
    else if (which < 75)
        end_or_update(c, at);
    else if (which < 87)
        token(c, at);
    else if (which < 97)
        (void)node(c, at, false);
    else
        sweep(c, at);
}

/* Mostly at who leads, sometimes at who thinks that it does, or at anybody: it waits there for a leader. */
static uint32_t choose(struct clients *c)
{
    uint32_t n = world_members(c->world), from = (uint32_t)sim_below(c->sim, n);
    int leader = world_leader(c->world);
    if (leader >= 0 && sim_chance(c->sim, 600))
        return (uint32_t)leader;
    for (uint32_t i = 0; i < n && sim_chance(c->sim, 800); i++)
        if (member_leads(c->world, (from + i) % n))
            return (from + i) % n;
    return from;
}

static void write_run(void *user, uint32_t none, uint64_t number)
{
    struct clients *c = user;
    (void)none;
    (void)number;
    if (c->stopped)
        return;
    uint32_t at = choose(c);
    unsigned many = sim_chance(c->sim, 30) ? BURST_MAX : (unsigned)sim_between(c->sim, 1, 3);
    for (unsigned i = 0; i < many && member_is_up(c->world, at); i++)
        write_one(c, at);
    sim_at(c->sim, sim_now_us(c->sim) + sim_below(c->sim, 2 * c->pause_us), write_run, c, 0);
}

void clients_probe(struct clients *c, uint32_t i)
{
    if (!c->probing && !c->probe_acknowledged && member_is_up(c->world, i))
        c->probing = node(c, i, true);
}

bool clients_probe_acknowledged(const struct clients *c)
{
    return c->probe_acknowledged;
}

uint64_t clients_asked(const struct clients *c)
{
    return c->asked;
}

uint64_t clients_answered(const struct clients *c)
{
    return c->answered;
}

void clients_stop(struct clients *c)
{
    c->stopped = true;
}

struct clients *clients_new(struct world *w, uint64_t pause_us)
{
    struct clients *c = calloc(1, sizeof *c);
    assert_always(c != NULL);
    c->world = w;
    c->sim = world_sim(w);
    c->pause_us = pause_us;
    sim_at(c->sim, 100000, found_run, c, 0);
    for (uint32_t i = 0; i < WRITERS; i++)
        sim_at(c->sim, 1500000ull + i * 100000ull, write_run, c, 0);
    return c;
}

void clients_free(struct clients *c)
{
    free(c);
}
