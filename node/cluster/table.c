#include "node/cluster/table.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

void cluster_table_open(struct cluster_table *t)
{
    *t = (struct cluster_table){0};
    (void)pthread_mutex_init(&t->lock, NULL);
}

void cluster_table_free(struct cluster_table *t)
{
    free(t->entries);
    (void)pthread_mutex_destroy(&t->lock);
    *t = (struct cluster_table){0};
}

void cluster_port_shift(struct sockaddr_storage *address, enum cluster_port port)
{
    in_port_t *at = address->ss_family == AF_INET6 ? &((struct sockaddr_in6 *)address)->sin6_port
                                                   : &((struct sockaddr_in *)address)->sin_port;
    *at = htons((in_port_t)(ntohs(*at) + port));
}

/* --- the control loop ----------------------------------------------------------------------------- */

/* Where `id` is, or would be. */
static size_t place_of(const struct cluster_table *t, node_id id)
{
    size_t low = 0, high = t->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->entries[middle].known.id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct cluster_entry *cluster_table_find(const struct cluster_table *t, node_id id)
{
    size_t at = place_of(t, id);
    return at < t->count && t->entries[at].known.id == id ? &t->entries[at] : NULL;
}

const struct cluster_entry *cluster_table_above(const struct cluster_table *t, node_id id)
{
    size_t at = id == UINT64_MAX ? t->count : place_of(t, id + 1);
    return at < t->count ? &t->entries[at] : NULL;
}

/* Under the lock. NULL without room. */
static struct cluster_entry *entry_need(struct cluster_table *t, node_id id)
{
    size_t at = place_of(t, id);
    if (at < t->count && t->entries[at].known.id == id)
        return &t->entries[at];
    if (t->count == CLUSTER_ENTRIES_MAX)
        return NULL;
    if (t->count == t->room) {
        size_t room = t->room == 0 ? 16 : t->room * 2;
        struct cluster_entry *entries = realloc(t->entries, room * sizeof *entries);
        if (entries == NULL)
            return NULL;
        t->entries = entries;
        t->room = room;
    }
    memmove(&t->entries[at + 1], &t->entries[at], (t->count - at) * sizeof *t->entries);
    t->count++;
    t->entries[at] = (struct cluster_entry){.known.id = id};
    return &t->entries[at];
}

int cluster_table_know(struct cluster_table *t, const struct known_node *node, struct err *e)
{
    pthread_mutex_lock(&t->lock);
    struct cluster_entry *entry = entry_need(t, node->id);
    if (entry != NULL)
        entry->known = *node;
    pthread_mutex_unlock(&t->lock);
    return entry != NULL
               ? 0
               : err_set(e, ERR_LIMIT, "no room for node %llu", (unsigned long long)node->id);
}

bool cluster_table_hear(struct cluster_table *t, node_id id,
                        const struct address addresses[CLUSTER_PORT_COUNT])
{
    pthread_mutex_lock(&t->lock);
    struct cluster_entry *entry = entry_need(t, id);
    if (entry != NULL)
        memcpy(entry->heard, addresses, sizeof entry->heard);
    pthread_mutex_unlock(&t->lock);
    return entry != NULL;
}

void cluster_table_remove(struct cluster_table *t, node_id id)
{
    size_t at = place_of(t, id);
    if (at == t->count || t->entries[at].known.id != id)
        return;
    pthread_mutex_lock(&t->lock);
    t->count--;
    memmove(&t->entries[at], &t->entries[at + 1], (t->count - at) * sizeof *t->entries);
    pthread_mutex_unlock(&t->lock);
}

/* --- any thread ----------------------------------------------------------------------------------- */

bool cluster_table_key(struct cluster_table *t, node_id id, struct identity_public *out)
{
    pthread_mutex_lock(&t->lock);
    const struct cluster_entry *entry = cluster_table_find(t, id);
    bool found = entry != NULL && entry->known.has_key;
    if (found)
        *out = entry->known.key;
    pthread_mutex_unlock(&t->lock);
    return found;
}

bool cluster_table_address(struct cluster_table *t, node_id id, enum cluster_port port,
                           struct sockaddr_storage *out)
{
    struct address heard = {0};
    char registered[ADDRESS_TEXT_SIZE] = "";
    struct err e;
    pthread_mutex_lock(&t->lock);
    const struct cluster_entry *entry = cluster_table_find(t, id);
    if (entry != NULL) {
        heard = entry->heard[port];
        memcpy(registered, entry->known.address, sizeof registered);
    }
    pthread_mutex_unlock(&t->lock);
    if (address_unpack(out, &heard) && address_private(out))
        return true;
    if (registered[0] == '\0' || address_parse(out, registered, 0, &e) != 0)
        return false;
    cluster_port_shift(out, port);
    return true;
}
