#include "node/control/places.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/cluster/known.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/control/fences.h"
#include "scheduler/placement.h"

#define PLACES_RETRY_MS 1000u

/* All nodes as placement wants them; the two big parts of each stand in one allocation. */
struct places_node {
    struct gossip_meta meta;
    struct gossip_load load;
};

struct places_list {
    struct placement_node *nodes;
    struct places_node *parts;
    size_t count;
};

static void list_free(struct places_list *l)
{
    free(l->nodes);
    free(l->parts);
}

/* --- what is known of the nodes ------------------------------------------------------------------------ */

static bool was_refused(const struct places_want *want, node_id id)
{
    for (size_t k = 0; k < want->refused_count; k++)
        if (want->refused[k] == id)
            return true;
    return false;
}

/* What this node is, by its own word: no gossip is older than that. */
static void fill_self(struct node *n, struct cluster_node *out)
{
    node_id id = n->id;
    *out = (struct cluster_node){.id = id, .self = true, .state = GOSSIP_ALIVE};
    if (n->cluster != NULL)
        (void)cluster_get(n->cluster, id, out);
    out->state = GOSSIP_ALIVE;
    out->self = true;
    out->meta.instances_max = (uint32_t)n->config->limits.instances_max;
    out->load.instances = n->instance_count;
}

static void list_add(struct places_list *l, struct node *n, const struct registry_root *root,
                     const struct places_want *want, const struct cluster_node *node)
{
    const struct registry_node *r = registry_root_node(root, node->id);
    struct places_node *part = &l->parts[l->count];
    part->meta = node->meta;
    part->load = node->load;
    l->nodes[l->count++] = (struct placement_node){
        .id = node->id,
        .self = node->self,
        .alive = node->state == GOSSIP_ALIVE,
        .leased = node->self ? fences_leased(n) : r->leased,
        .draining = r != NULL && r->draining,
        .refused = was_refused(want, node->id),
        .meta = &part->meta,
        .load = &part->load,
    };
}

static bool list_make(struct places_list *l, struct node *n, const struct registry_root *root,
                      const struct places_want *want, bool others)
{
    struct cluster_node node;
    node_id cursor = 0;
    size_t max = 1;
    while (others && n->cluster != NULL && max < KNOWN_NODES_MAX &&
           cluster_next(n->cluster, &cursor, &node))
        max++;
    *l = (struct places_list){.nodes = calloc(max, sizeof *l->nodes),
                              .parts = calloc(max, sizeof *l->parts)};
    if (l->nodes == NULL || l->parts == NULL) {
        list_free(l);
        return false;
    }
    fill_self(n, &node);
    list_add(l, n, root, want, &node);
    cursor = 0;
    while (l->count < max && n->cluster != NULL && cluster_next(n->cluster, &cursor, &node))
        if (!node.self && registry_root_node(root, node.id) != NULL)
            list_add(l, n, root, want, &node);
    return true;
}

/* --- what the registry lists --------------------------------------------------------------------------- */

struct tally {
    const char *workload;
    uint64_t version; /* the current one; 0: it does not matter */
    struct places_list *list;
    uint64_t count; /* those that count for scale.max */
};

static bool tally_owner(void *user, const struct registry_instance *i)
{
    struct tally *t = user;
    if (strcmp(i->workload, t->workload) != 0)
        return true;
    t->count += t->version == 0 || i->version == t->version || i->key[0] != '\0';
    for (size_t k = 0; t->list != NULL && k < t->list->count; k++)
        if (t->list->nodes[k].id == i->owner)
            t->list->nodes[k].of_workload++;
    return true;
}

static uint64_t others_of(struct node *n, const struct registry_root *root,
                          const struct registry_workload *w)
{
    uint32_t all = registry_root_workload_counted(root, w->name);
    if (all == 0 || fences_lone(n))
        return 0;
    struct tally here = {.workload = w->name, .version = w->version};
    registry_root_live(root, n->id, tally_owner, &here);
    return all > here.count ? all - here.count : 0;
}

struct successor {
    const struct registry_workload *workload;
    node_id self;
    bool found;
};

static bool find_successor(void *user, const struct registry_instance *i)
{
    struct successor *s = user;
    s->found = i->owner != s->self && i->state == INSTANCE_STATE_READY &&
               i->version == s->workload->version && i->key[0] == '\0' &&
               strcmp(i->workload, s->workload->name) == 0;
    return !s->found;
}

static bool to_owner(struct node *n, const struct registry_root *root,
                     const struct places_want *want, struct places_found *out);

/* What others have of it. Those who wait here in vain go where they may wait. */
static void tell_others(struct node *n, const struct registry_root *root,
                        const struct registry_workload *w)
{
    struct successor s = {.workload = w, .self = n->id};
    if (scheduler_rolls(n->scheduler, w->name) && !fences_lone(n))
        registry_root_live(root, 0, find_successor, &s);
    steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_OTHERS,
                                           .name = w->name,
                                           .count = others_of(n, root, w),
                                           .idle_elsewhere = places_idle_elsewhere(n, w),
                                           .replaced = s.found});
    struct places_found owner;
    if (scheduler_stranded(n->scheduler, w->name) &&
        to_owner(n, root, &(struct places_want){.workload = w->name}, &owner))
        steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_STRANDED, .name = w->name});
}

/* --- verdicts ------------------------------------------------------------------------------------------- */

static void nowhere(struct places_found *out, enum problem problem)
{
    out->verdict = PLACES_NOWHERE;
    out->problem = problem;
    out->retry_after_ms = PLACES_RETRY_MS;
}

static void there(struct places_found *out, node_id node)
{
    out->verdict = PLACES_THERE;
    out->node = node;
}

static void name_of(struct node *n, node_id id, char out[GOSSIP_NAME_SIZE])
{
    struct cluster_node node;
    text_format(out, GOSSIP_NAME_SIZE, "node %" PRIu64, id);
    if (n->cluster != NULL && cluster_get(n->cluster, id, &node) && node.meta.name[0] != '\0')
        text_copy(out, GOSSIP_NAME_SIZE, node.meta.name);
}

/* The owner of what holds the key. */
static void to_holder(struct node *n, const struct places_want *want,
                      const struct instance_id *holder, struct places_found *out)
{
    node_id owner = instance_id_owner(holder);
    char name[GOSSIP_NAME_SIZE];
    struct cluster_node node = {.state = GOSSIP_DEAD};
    if (owner == n->id)
        return;
    out->id = *holder;
    name_of(n, owner, name);
    if (n->cluster != NULL)
        (void)cluster_get(n->cluster, owner, &node);
    if (want->stays || was_refused(want, owner)) {
        nowhere(out, PROBLEM_OWNER_UNREACHABLE);
        text_format(out->detail, sizeof out->detail,
                    "%s holds this key on %s, which did not let it in", holder->text, name);
    } else if (node.state > GOSSIP_SUSPECT) {
        nowhere(out, PROBLEM_OWNER_UNREACHABLE);
        text_format(out->detail, sizeof out->detail,
                    "%s holds this key on %s, which does not answer; another can hold it when the "
                    "lease of that node is over",
                    holder->text, name);
    } else {
        there(out, owner);
    }
}

/* scale.max is reached: where the workload's instances are, the request may wait for room. A node that
 * refused to start one may have some now; it is asked when all that have some refused. */
static bool to_owner(struct node *n, const struct registry_root *root,
                     const struct places_want *want, struct places_found *out)
{
    struct places_list list;
    if (want->stays || !list_make(&list, n, root, want, true))
        return false;
    struct tally t = {.workload = want->workload, .list = &list};
    registry_root_live(root, 0, tally_owner, &t);
    /* A node that is drained, or has lost its lease, still lets joiners in. */
    size_t count = 0;
    bool fresh = false;
    for (size_t k = 0; k < list.count; k++) {
        struct placement_node *p = &list.nodes[k];
        if (p->self || !p->alive || p->of_workload == 0 || (fresh && p->refused))
            continue;
        if (!fresh && !p->refused)
            count = 0;
        fresh = fresh || !p->refused;
        list.nodes[count++] = *p;
    }
    const struct placement_node *a = NULL;
    if (count > 0) {
        uint32_t first = randombytes_uniform((uint32_t)count);
        a = &list.nodes[first];
        const struct placement_node *b =
            &list.nodes[(first + 1 + (count > 1 ? randombytes_uniform((uint32_t)count - 1) : 0)) %
                        count];
        a = placement_load(b->meta, b->load) < placement_load(a->meta, a->load) ? b : a;
        there(out, a->id);
    }
    list_free(&list);
    return a != NULL;
}

static void explain_nowhere(struct node *n, const struct places_want *want,
                            const struct placement_lacks *lacks, struct places_found *out)
{
    enum problem hold = fences_hold(n, out->detail, sizeof out->detail);
    /* Without a quorum no other node is of help; and on a lone one that drains, that is the reason. */
    if (hold == PROBLEM_NO_QUORUM || (hold != PROBLEM_NONE && lacks->nodes == 1)) {
        nowhere(out, hold);
        return;
    }
    char why[320];
    placement_why(lacks, why, sizeof why);
    nowhere(out, PROBLEM_NODE_FULL);
    text_format(out->detail, sizeof out->detail, "no node can start %s: %s", want->workload, why);
}

/* A node for a new instance. */
static void to_place(struct node *n, const struct registry_root *root,
                     const struct registry_workload *w, const struct places_want *want,
                     struct places_found *out)
{
    struct placement_lacks lacks;
    struct places_list list;
    node_id other = 0; /* could have it, if it did not have to stay */
    bool others = w->spec.placement.spread != SPREAD_NONE;
    for (int round = others ? 1 : 0; round < 2; round++) {
        /* This node comes first, and mostly may: then nobody else is looked at. */
        if (!list_make(&list, n, root, want, round == 1))
            return;
        struct tally t = {.workload = w->name, .list = &list};
        if (others)
            registry_root_live(root, 0, tally_owner, &t);
        uint64_t random;
        randombytes_buf(&random, sizeof random);
        node_id chosen = placement_choose(&w->spec, list.nodes, list.count, random, &lacks);
        list_free(&list);
        if (chosen == n->id)
            return;
        if (chosen != 0 && !want->stays) {
            there(out, chosen);
            return;
        }
        other = chosen;
    }
    /* Full and nothing else: it waits here for a place, as on a lone node. */
    struct cluster_node self;
    fill_self(n, &self);
    enum problem hold = fences_hold(n, out->detail, sizeof out->detail);
    if (hold == PROBLEM_NONE && fences_leased(n) && placement_allows(&w->spec, &self.meta))
        return;
    explain_nowhere(n, want, &lacks, out);
    char name[GOSSIP_NAME_SIZE];
    name_of(n, other, name);
    if (other != 0 && out->problem == PROBLEM_NODE_FULL)
        text_format(out->detail, sizeof out->detail,
                    "%s starts where it is asked for, and %s may not have it; ask %s",
                    want->workload, n->config->name, name);
}

void places_find(struct node *n, const struct places_want *want, struct places_found *out)
{
    *out = (struct places_found){.verdict = PLACES_HERE};
    struct registry_root *root = registry_root(n->registry);
    const struct registry_workload *w =
        registry_root_workload(root, want->workload, strlen(want->workload));
    const struct instance_id *holder =
        want->key != NULL ? registry_root_key_holder(root, want->workload, want->key) : NULL;
    bool keyed = want->key != NULL && want->key[0] != '\0';
    if (w == NULL) {
        registry_root_release(root); /* the scheduler says so */
        return;
    }
    if (holder != NULL) {
        to_holder(n, want, holder, out);
        registry_root_release(root);
        return;
    }
    tell_others(n, root, w);
    switch (scheduler_prospect(n->scheduler, want->workload, want->key)) {
    case SCHEDULER_SERVED:
    case SCHEDULER_WAITS:
        break;
    case SCHEDULER_STARTS:
        to_place(n, root, w, want, out);
        break;
    case SCHEDULER_NOTHING:
        if (!keyed && w->spec.kind == WORKLOAD_SERVER)
            (void)to_owner(n, root, want, out);
        break;
    }
    registry_root_release(root);
}

void places_start(struct node *n, const struct places_want *want, struct places_found *out)
{
    *out = (struct places_found){.verdict = PLACES_HERE};
    struct registry_root *root = registry_root(n->registry);
    const struct registry_workload *w =
        registry_root_workload(root, want->workload, strlen(want->workload));
    if (w != NULL)
        to_place(n, root, w, want, out);
    registry_root_release(root);
}

void places_run(struct node *n, const struct workload *spec, const struct places_want *want,
                struct places_found *out)
{
    struct registry_workload w = {.spec = *spec};
    *out = (struct places_found){.verdict = PLACES_HERE};
    struct registry_root *root = registry_root(n->registry);
    to_place(n, root, &w, want, out);
    registry_root_release(root);
}

void places_after(struct node *n, const struct places_want *want, enum problem problem,
                  const struct instance *i, struct places_found *out)
{
    *out = (struct places_found){.verdict = PLACES_HERE};
    if (want->stays || fences_lone(n))
        return;
    struct registry_root *root = registry_root(n->registry);
    const struct registry_workload *w =
        registry_root_workload(root, want->workload, strlen(want->workload));
    bool keyed = want->key != NULL && want->key[0] != '\0';
    switch (problem) {
    case PROBLEM_CONFLICT:
        if (i != NULL && i->existing.text[0] != '\0')
            to_holder(n, want, &i->existing, out);
        break;
    case PROBLEM_LIMIT_REACHED:
        if (w != NULL && !keyed && w->spec.kind == WORKLOAD_SERVER)
            (void)to_owner(n, root, want, out);
        break;
    case PROBLEM_NODE_FULL:
    case PROBLEM_DRAINING:
    case PROBLEM_NOT_ENFORCED:
        if (w != NULL) {
            /* This node has said no already. */
            node_id refused[8] = {n->id};
            size_t count = want->refused_count < 7 ? want->refused_count : 7;
            memcpy(refused + 1, want->refused, count * sizeof refused[0]);
            struct places_want others = *want;
            others.refused = refused;
            others.refused_count = count + 1;
            to_place(n, root, w, &others, out);
            if (out->verdict == PLACES_NOWHERE)
                out->verdict = PLACES_HERE;
        }
        break;
    default:
        break;
    }
    registry_root_release(root);
}

/* --- what is kept ahead ----------------------------------------------------------------------------------- */

/* Which nodes come first for a workload: rendezvous hashing (Thaler and Ravishankar, 1998). */
static uint64_t rank_of(const char *workload, node_id id)
{
    uint64_t z = gossip_workload_hash(workload) ^ (id * 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

bool places_barred(struct node *n, const struct registry_workload *w)
{
    struct cluster_node self;
    fill_self(n, &self);
    return !placement_allows(&w->spec, &self.meta);
}

uint64_t places_idle_elsewhere(struct node *n, const struct registry_workload *w)
{
    uint64_t wanted = w->spec.scale.idle_min;
    struct registry_root *root = registry_root(n->registry);
    const struct places_want nothing = {.workload = w->name};
    struct places_list list;
    if (wanted == 0 || fences_lone(n) || !list_make(&list, n, root, &nothing, true)) {
        registry_root_release(root);
        return 0;
    }
    uint64_t before = 0, count = 0;
    bool self = false;
    for (size_t k = 0; k < list.count; k++) {
        const struct placement_node *p = &list.nodes[k];
        if (!p->alive || !p->leased || p->draining || !placement_allows(&w->spec, p->meta))
            continue;
        count++;
        self = self || p->self;
        before += rank_of(w->name, p->id) > rank_of(w->name, n->id);
    }
    list_free(&list);
    registry_root_release(root);
    if (!self)
        return wanted;
    uint64_t here = wanted / count + (before < wanted % count ? 1 : 0);
    return wanted - here;
}

void places_tell(struct node *n, const char *workload)
{
    struct registry_root *root = registry_root(n->registry);
    const struct registry_workload *w = registry_root_workload(root, workload, strlen(workload));
    if (w != NULL)
        tell_others(n, root, w);
    registry_root_release(root);
}

struct ticking {
    struct node *node;
    struct registry_root *root;
};

static bool tick_workload(void *user, const struct registry_workload *w)
{
    struct ticking *t = user;
    struct node *n = t->node;
    if (w->spec.scale.idle_min > 0 || scheduler_waited_for(n->scheduler, w->name) ||
        scheduler_rolls(n->scheduler, w->name))
        tell_others(n, t->root, w);
    return true;
}

void places_tick(struct node *n)
{
    struct ticking t = {.node = n, .root = registry_root(n->registry)};
    registry_root_workloads(t.root, NULL, tick_workload, &t);
    registry_root_release(t.root);
}
