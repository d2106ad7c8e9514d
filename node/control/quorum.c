/* What is said when the registry cannot be written: how many voters this node reaches, and which are lost
 * since when. */
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/control/control.h"

#define QUORUM_MEMBERS_MAX 1024u

/* Wall-clock time of day, of a moment of the monotonic clock. */
static void time_of_day(uint64_t monotonic_ms, char out[16])
{
    char text[CLOCK_RFC3339_SIZE];
    uint64_t now_ms = clock_monotonic_ms();
    uint64_t ago_ms = now_ms > monotonic_ms ? now_ms - monotonic_ms : 0;
    uint64_t wall_ms = clock_wall_ms();
    clock_format_rfc3339(wall_ms > ago_ms ? wall_ms - ago_ms : 0, text);
    /* 2026-11-28T14:02:11.000Z */
    text_format(out, 16, "%.8s", strlen(text) > 11 ? text + 11 : "");
}

struct lost {
    char names[160];
    unsigned count;
    uint64_t since_ms;
};

static void note_lost(struct lost *l, const struct cluster_node *node)
{
    size_t used = strlen(l->names);
    text_format(l->names + used, sizeof l->names - used, "%s%s", l->count > 0 ? ", " : "",
                node->meta.name);
    l->count++;
    if (l->since_ms == 0 || node->state_since_ms < l->since_ms)
        l->since_ms = node->state_since_ms;
}

/* Counts the voters, and those of them that gossip takes for alive. */
static void count_voters(struct node *n, unsigned *voters, unsigned *reachable, struct lost *lost)
{
    struct registry_member members[QUORUM_MEMBERS_MAX];
    size_t count = registry_members(n->registry, members, ARRAY_SIZE(members));
    count = count < ARRAY_SIZE(members) ? count : ARRAY_SIZE(members);
    for (size_t k = 0; k < count; k++) {
        if (members[k].role != REGISTRY_ROLE_VOTER)
            continue;
        ++*voters;
        struct cluster_node node;
        bool known = n->cluster != NULL && cluster_get(n->cluster, members[k].id, &node);
        if (members[k].id == n->id || (known && node.state <= GOSSIP_SUSPECT))
            ++*reachable;
        else if (known)
            note_lost(lost, &node);
    }
}

void quorum_text(struct node *n, char *out, size_t size)
{
    unsigned voters = 0, reachable = 0;
    struct lost lost = {0};
    count_voters(n, &voters, &reachable, &lost);
    struct scheduler_counts counts;
    scheduler_counts(n->scheduler, &counts);
    char since[16], gone[200] = "";
    time_of_day(lost.since_ms, since);
    if (lost.count > 0)
        text_format(gone, sizeof gone, " Lost: %s (since %s).", lost.names, since);
    uint32_t running = counts.instances - counts.starting;
    text_format(out, size,
                "%u of %u voters reachable%s; nothing can start. %" PRIu32
                " running instance%s can still be joined.%s",
                reachable, voters, 2 * reachable > voters ? ", and none of them leads yet" : "",
                running, running == 1 ? "" : "s", gone);
}
