#include "scheduler/placement.h"

#include <string.h>

#include "base/memory.h"

/* --- one node ------------------------------------------------------------------------------------- */

static bool has_label(const struct gossip_meta *meta, const char *item)
{
    size_t length = strcspn(item, "=");
    for (uint32_t k = 0; k < meta->label_count && k < GOSSIP_LABELS_MAX; k++) {
        const struct gossip_label *l = &meta->labels[k];
        if (strlen(l->key) == length && strncmp(l->key, item, length) == 0 &&
            strcmp(l->value, item[length] == '=' ? item + length + 1 : "") == 0)
            return true;
    }
    return false;
}

static bool zone_allows(const struct workload *w, const struct gossip_meta *meta)
{
    const char *zone = w->placement.zone == NULL ? "" : w->placement.zone;
    return zone[0] == '\0' || (meta != NULL && strcmp(meta->zone, zone) == 0);
}

static bool labels_allow(const struct workload *w, const struct gossip_meta *meta)
{
    for (size_t k = 0; k < w->placement.labels.count; k++)
        if (meta == NULL || !has_label(meta, w->placement.labels.items[k]))
            return false;
    return true;
}

bool placement_allows(const struct workload *w, const struct gossip_meta *meta)
{
    return zone_allows(w, meta) && labels_allow(w, meta);
}

static uint64_t share(uint64_t used, uint64_t capacity)
{
    if (capacity == 0)
        return 0;
    /* What 2^54 bytes are, times 1,000, fits; beyond that the division comes first. */
    return used < UINT64_MAX / 1000 ? used * 1000 / capacity : used / (capacity / 1000 + 1);
}

uint32_t placement_load(const struct gossip_meta *meta, const struct gossip_load *load)
{
    if (meta == NULL || load == NULL)
        return 0;
    uint64_t most = share(load->instances, meta->instances_max);
    uint64_t cpu = share(load->cpu_millis, meta->cpu_millis);
    uint64_t memory = share(load->memory_bytes, meta->memory_bytes);
    most = cpu > most ? cpu : most;
    most = memory > most ? memory : most;
    return most > UINT32_MAX ? UINT32_MAX : (uint32_t)most;
}

static bool is_full(const struct placement_node *n)
{
    return n->meta != NULL && n->load != NULL && n->meta->instances_max != 0 &&
           n->load->instances >= n->meta->instances_max;
}

/* Where what it lacks is counted; NULL: it may have the instance. */
static uint32_t *lack_of(const struct workload *w, const struct placement_node *n,
                         struct placement_lacks *lacks)
{
    if (!n->alive)
        return &lacks->dead;
    if (!n->leased)
        return &lacks->unleased;
    if (n->draining)
        return &lacks->draining;
    if (n->refused)
        return &lacks->refused;
    if (!zone_allows(w, n->meta))
        return &lacks->zone;
    if (!labels_allow(w, n->meta))
        return &lacks->labels;
    return is_full(n) ? &lacks->full : NULL;
}

/* --- spread ---------------------------------------------------------------------------------------- */

static const char *zone_of(const struct placement_node *n)
{
    return n->meta != NULL ? n->meta->zone : "";
}

/* What `spread` makes small: instances of the workload on the node, or in its whole zone, on nodes that
 * may not have another as well. */
static uint64_t crowd(const struct workload *w, const struct placement_node *nodes, size_t count,
                      const struct placement_node *n)
{
    if (w->placement.spread == SPREAD_NONE)
        return 0;
    if (w->placement.spread == SPREAD_NODE)
        return n->of_workload;
    uint64_t all = 0;
    for (size_t k = 0; k < count; k++)
        if (strcmp(zone_of(&nodes[k]), zone_of(n)) == 0)
            all += nodes[k].of_workload;
    return all;
}

/* --- choosing --------------------------------------------------------------------------------------- */

/* The `wanted`-th of the nodes that may have it and are no more crowded than `crowd_max`. */
static const struct placement_node *nth(const struct workload *w,
                                        const struct placement_node *nodes, size_t count,
                                        uint64_t crowd_max, uint64_t wanted)
{
    struct placement_lacks ignored;
    for (size_t k = 0; k < count; k++) {
        const struct placement_node *n = &nodes[k];
        if (lack_of(w, n, &ignored) != NULL || crowd(w, nodes, count, n) > crowd_max)
            continue;
        if (wanted-- == 0)
            return n;
    }
    return NULL;
}

node_id placement_choose(const struct workload *w, const struct placement_node *nodes, size_t count,
                         uint64_t random, struct placement_lacks *lacks)
{
    *lacks = (struct placement_lacks){.nodes = (uint32_t)count};
    uint64_t fewest = UINT64_MAX, candidates = 0;
    const struct placement_node *self = NULL;
    for (size_t k = 0; k < count; k++) {
        uint32_t *lack = lack_of(w, &nodes[k], lacks);
        if (lack != NULL) {
            ++*lack;
            continue;
        }
        uint64_t crowded = crowd(w, nodes, count, &nodes[k]);
        if (crowded < fewest) {
            fewest = crowded;
            candidates = 0;
            self = NULL;
        }
        if (crowded == fewest) {
            candidates++;
            self = nodes[k].self ? &nodes[k] : self;
        }
    }
    if (self != NULL)
        return self->id;
    if (candidates == 0)
        return 0;
    /* Two different ones, when there are two; the bits of each draw are its own. */
    uint64_t first = (random & UINT32_MAX) % candidates;
    const struct placement_node *a = nth(w, nodes, count, fewest, first);
    if (candidates == 1)
        return a->id;
    uint64_t second = (first + 1 + (random >> 32) % (candidates - 1)) % candidates;
    const struct placement_node *b = nth(w, nodes, count, fewest, second);
    return placement_load(b->meta, b->load) < placement_load(a->meta, a->load) ? b->id : a->id;
}

/* --- for people --------------------------------------------------------------------------------------- */

void placement_why(const struct placement_lacks *lacks, char *out, size_t size)
{
    const struct {
        uint32_t count;
        const char *one, *more;
    } parts[] = {
        {lacks->full, "runs as many instances as it may (limits.instances_max)",
         "run as many instances as they may (limits.instances_max)"},
        {lacks->refused, "refused it", "refused it"},
        {lacks->zone, "is not in placement.zone", "are not in placement.zone"},
        {lacks->labels, "does not have placement.labels", "do not have placement.labels"},
        {lacks->draining, "is being drained", "are being drained"},
        {lacks->unleased, "has no lease", "have no lease"},
        {lacks->dead, "does not answer", "do not answer"},
    };
    size_t used = 0;
    out[0] = '\0';
    text_format(out, size, "of %u node%s", lacks->nodes, lacks->nodes == 1 ? "" : "s");
    const char *before = " ";
    for (size_t k = 0; k < ARRAY_SIZE(parts); k++) {
        if (parts[k].count == 0)
            continue;
        used = strlen(out);
        text_format(out + used, size - used, "%s%u %s", before, parts[k].count,
                    parts[k].count == 1 ? parts[k].one : parts[k].more);
        before = ", ";
    }
}
