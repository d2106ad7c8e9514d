/* Events about nodes: what gossip says of each, when it changes. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/cluster/known.h"
#include "node/control/control.h"

struct node_states {
    size_t count;
    struct {
        node_id id;
        enum gossip_state state;
    } of[KNOWN_NODES_MAX];
};

/* Its place, behind all others when it is not known. */
static size_t find(struct node_states *all, node_id id, bool *is_new)
{
    size_t i = 0;
    while (i < all->count && all->of[i].id != id)
        i++;
    *is_new = i == all->count;
    return i;
}

static void look(struct node *n, struct node_states *all, const struct cluster_node *known)
{
    static const char *const kinds[GOSSIP_STATE_COUNT] = {[GOSSIP_ALIVE] = "node_alive",
                                                          [GOSSIP_SUSPECT] = "node_suspect",
                                                          [GOSSIP_DEAD] = "node_dead",
                                                          [GOSSIP_LEFT] = "node_left"};
    bool is_new;
    size_t at = find(all, known->id, &is_new);
    if (at == ARRAY_SIZE(all->of) || (!is_new && all->of[at].state == known->state))
        return;
    /* One that nobody has heard of yet counts as dead; that is no news. */
    bool news = !is_new || known->state == GOSSIP_ALIVE;
    all->count += is_new;
    all->of[at].id = known->id;
    all->of[at].state = known->state;
    if (news)
        events_post(n, kinds[known->state], NULL, NULL, "%s is %s", known->meta.name,
                    gossip_state_name(known->state));
}

void events_nodes(struct node *n)
{
    struct cluster_node known;
    node_id cursor = 0;
    if (n->node_states == NULL)
        n->node_states = calloc(1, sizeof *n->node_states);
    if (n->node_states == NULL || n->cluster == NULL)
        return;
    while (cluster_next(n->cluster, &cursor, &known))
        look(n, n->node_states, &known);
}
