/* What goes on with members: few have something at a time, so that the table of all is small. And the bytes
 * that were told of them. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gossip/state.h"

/* --- activities ------------------------------------------------------------------------------- */

/* A step changes no member without one: there is room for as many changes. */
static bool grow(struct gossip *g)
{
    uint32_t capacity = g->activity_capacity == 0 ? 8 : g->activity_capacity * 2;
    struct activity *activities = realloc(g->activities, capacity * sizeof *activities);
    if (activities == NULL)
        return false;
    g->activities = activities;
    struct gossip_change *changes = realloc(g->changes, capacity * sizeof *changes);
    if (changes == NULL)
        return false;
    g->changes = changes;
    g->activity_capacity = capacity;
    return true;
}

bool gossip_activity_begin(struct gossip *g, struct member *m)
{
    if (m->activity != NONE)
        return true;
    if (g->activity_count == g->activity_capacity && !grow(g)) {
        g->counts.dropped++;
        return false;
    }
    m->activity = g->activity_count++;
    g->activities[m->activity] =
        (struct activity){.member = (uint32_t)(m - g->members), .suspicion = NONE, .change = NONE};
    return true;
}

void gossip_activity_end(struct gossip *g, struct member *m)
{
    if (m->activity == NONE)
        return;
    uint32_t last = --g->activity_count;
    if (m->activity != last) {
        g->activities[m->activity] = g->activities[last];
        g->members[g->activities[last].member].activity = m->activity;
    }
    m->activity = NONE;
}

void gossip_activity_settle(struct gossip *g, struct member *m)
{
    const struct activity *a = gossip_activity(g, m);
    if (a == NULL || m->order == NOWHERE || a->suspicion != NONE || a->change != NONE)
        return;
    for (unsigned t = 0; t < TOPIC_LOAD; t++) {
        if (a->topics[t].queued)
            return;
    }
    gossip_activity_end(g, m);
}

void gossip_changed(struct gossip *g, struct member *m, uint32_t changed)
{
    struct activity *a = gossip_activity(g, m);
    assert_always(a != NULL);
    if (a->change == NONE) {
        a->change = (uint32_t)g->change_count;
        g->changes[g->change_count++] = (struct gossip_change){
            .id = m->id,
            .from = m->boot == 0 && !m->seeded && !m->removed ? GOSSIP_STATE_COUNT
                                                              : (enum gossip_state)m->state};
    }
    g->changes[a->change].changed |= changed;
}

struct topic_link *gossip_link(const struct gossip *g, const struct member *m, enum topic topic)
{
    if (topic == TOPIC_LOAD)
        return m->load == NULL ? NULL : &m->load->link;
    struct activity *a = gossip_activity(g, m);
    return a == NULL ? NULL : &a->topics[topic];
}

bool gossip_is_queued(const struct gossip *g, const struct member *m, enum topic topic)
{
    const struct topic_link *link = gossip_link(g, m, topic);
    return link != NULL && link->queued;
}

/* --- bytes ------------------------------------------------------------------------------------ */

static const void *keep_own(const void *bytes, size_t size)
{
    void *own = malloc(size);
    if (own != NULL)
        memcpy(own, bytes, size);
    return own;
}

const struct kept *gossip_keep(struct gossip *g, uint32_t version, const uint8_t *bytes,
                               size_t size)
{
    uint8_t space[sizeof(struct kept) + GOSSIP_META_BYTES_MAX];
    const struct gossip_store *store = &g->options.store;
    const struct kept head = {.version = version, .size = (uint16_t)size};
    size_t at = offsetof(struct kept, bytes);
    assert_always(size <= GOSSIP_META_BYTES_MAX);
    memcpy(space, &head, at);
    if (size > 0)
        memcpy(space + at, bytes, size);
    const struct kept *kept = store->keep == NULL ? keep_own(space, at + size)
                                                  : store->keep(store->user, space, at + size);
    if (kept == NULL)
        g->counts.dropped++;
    return kept;
}

void gossip_drop(struct gossip *g, const struct kept *kept)
{
    if (kept != NULL && g->options.store.keep != NULL)
        g->options.store.drop(g->options.store.user, kept);
    else
        free((void *)(uintptr_t)kept);
}

bool gossip_meta_set(struct gossip *g, struct member *m, uint32_t version, const uint8_t *bytes,
                     size_t size)
{
    const struct kept *kept = gossip_keep(g, version, bytes, size);
    if (kept == NULL)
        return false;
    gossip_drop(g, m->meta);
    m->meta = kept;
    m->meta_old = false;
    return true;
}

bool gossip_load_set(struct gossip *g, struct member *m, uint32_t version, const uint8_t *bytes,
                     size_t size)
{
    const struct kept *kept = gossip_keep(g, version, bytes, size);
    if (kept == NULL)
        return false;
    if (m->load == NULL) {
        m->load = calloc(1, sizeof *m->load);
        if (m->load == NULL) {
            gossip_drop(g, kept);
            g->counts.dropped++;
            return false;
        }
    }
    gossip_drop(g, m->load->kept);
    m->load->kept = kept;
    m->load->heard_ms = g->now_ms + g->lateness_ms;
    return true;
}

void gossip_load_drop(struct gossip *g, struct member *m)
{
    if (m->load == NULL)
        return;
    gossip_dequeue(g, m, TOPIC_LOAD);
    gossip_drop(g, m->load->kept);
    free(m->load);
    m->load = NULL;
}
