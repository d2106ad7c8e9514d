/* Gossip's part of the cluster: opened with this node's own description, fed with what the registry
 * knows, its syncs carried as questions between nodes. */
#include <sodium.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/internal.h"

void cluster_meta_fill(const struct cluster *c, struct gossip_meta *meta)
{
    static const struct {
        enum gossip_port of_gossip;
        enum cluster_port of_cluster;
    } ports[] = {{GOSSIP_PORT_PEER, CLUSTER_PORT_PEER},
                 {GOSSIP_PORT_STREAM, CLUSTER_PORT_STREAM},
                 {GOSSIP_PORT_HANDSHAKE, CLUSTER_PORT_ENROLL}};
    for (size_t i = 0; i < ARRAY_SIZE(ports); i++) {
        struct sockaddr_storage address = c->advertise;
        cluster_port_shift(&address, ports[i].of_cluster);
        (void)address_pack(&meta->addresses[ports[i].of_gossip], &address);
    }
}

static void step(struct cluster *c, const struct gossip_event *event)
{
    struct err e = {0};
    if (gossip_udp_step(c->udp, event, &e) != 0)
        log_warn("gossip", "%s", e.msg);
}

/* --- what it says --------------------------------------------------------------------------------- */

static void hear(struct cluster *c, node_id id)
{
    struct gossip_member member;
    struct gossip_meta meta;
    if (!gossip_member_get(c->gossip, id, &member))
        return;
    if (member.removed) {
        cluster_table_remove(&c->table, id);
        return;
    }
    struct address addresses[CLUSTER_PORT_COUNT] = {[CLUSTER_PORT_GOSSIP] = member.address};
    if (gossip_meta_get(c->gossip, id, &meta)) {
        addresses[CLUSTER_PORT_PEER] = meta.addresses[GOSSIP_PORT_PEER];
        addresses[CLUSTER_PORT_STREAM] = meta.addresses[GOSSIP_PORT_STREAM];
        addresses[CLUSTER_PORT_ENROLL] = meta.addresses[GOSSIP_PORT_HANDSHAKE];
    }
    if (!cluster_table_hear(&c->table, id, addresses) && !c->full_told) {
        c->full_told = true;
        log_error("cluster", "node %llu finds no room: a cluster has at most %u nodes",
                  (unsigned long long)id, KNOWN_NODES_MAX);
    }
    /* Others may not have heard yet that it was removed. */
    const struct cluster_entry *entry = cluster_table_find(&c->table, id);
    if (entry != NULL && entry->known.name[0] == '\0' && id < c->next)
        c->strays = true;
}

static void changed_cb(void *user, const struct gossip_change *changes, size_t count)
{
    struct cluster *c = user;
    for (size_t i = 0; i < count; i++) {
        if (changes[i].id == c->membership.id)
            continue;
        if ((changes[i].changed & (GOSSIP_CHANGED_STATE | GOSSIP_CHANGED_META)) != 0)
            hear(c, changes[i].id);
    }
    c->changed = true;
    cluster_notify_soon(c);
}

static void left_cb(void *user)
{
    struct cluster *c = user;
    c->left = true;
    cluster_notify_soon(c);
}

static void impostor_cb(void *user)
{
    struct cluster *c = user;
    c->impostor = true;
    cluster_notify_soon(c);
}

/* --- syncs ---------------------------------------------------------------------------------------- */

/* False: nothing can be sent. The caller frees. */
static bool sync_write(struct cluster *c, struct buffer *out)
{
    struct err e = {0};
    buffer_init(out, CLUSTER_MESSAGE_BYTES_MAX);
    if (gossip_sync_write(c->gossip, out, &e) == 0)
        return true;
    log_warn("gossip", "%s", e.msg);
    return false;
}

static void synced_cb(void *user, const struct peer_answer *answer)
{
    struct cluster *c = user;
    /* The call ends here too when the cluster closes; a node that does not answer is asked again by
     * gossip itself. */
    if (answer->error != NULL || c->closing)
        return;
    step(c, &(struct gossip_event){.kind = GOSSIP_SYNC,
                                   .from = answer->from,
                                   .data = answer->payload,
                                   .size = answer->size});
}

static void sync_cb(void *user, node_id with)
{
    struct cluster *c = user;
    struct buffer text;
    struct err e = {0};
    if (sync_write(c, &text)) {
        struct peer_call call = {.to = with,
                                 .what = CLUSTER_GOSSIP_SYNC,
                                 .payload = text.data,
                                 .size = text.length,
                                 .answered = synced_cb,
                                 .user = c};
        if (peer_rpc_call(c->rpc, &call, &e) != 0)
            log_debug("gossip", "no sync with node %llu: %s", (unsigned long long)with, e.msg);
    }
    buffer_free(&text);
}

void cluster_gossip_asked(struct cluster *c, struct peer_question *q)
{
    size_t size = 0;
    const uint8_t *payload = peer_question_payload(q, &size);
    struct buffer text;
    step(c, &(struct gossip_event){
                .kind = GOSSIP_SYNC, .from = peer_question_from(q), .data = payload, .size = size});
    if (sync_write(c, &text))
        peer_question_answer(q, text.data, text.length);
    else
        peer_question_drop(q);
    buffer_free(&text);
}

/* --- what it is told ------------------------------------------------------------------------------ */

void cluster_gossip_seed(struct cluster *c, const struct known_node *node)
{
    struct sockaddr_storage address;
    struct gossip_event event = {.kind = GOSSIP_SEED, .from = node->id};
    struct err e;
    if (node->address[0] == '\0' || address_parse(&address, node->address, 0, &e) != 0)
        return;
    cluster_port_shift(&address, CLUSTER_PORT_GOSSIP);
    if (address_pack(&event.address, &address))
        step(c, &event);
}

void cluster_gossip_remove(struct cluster *c, node_id id)
{
    step(c, &(struct gossip_event){.kind = GOSSIP_REMOVE, .from = id});
    seal_forget(c->seal, id);
}

bool cluster_all_seal_with(struct cluster *c, const char *key_id)
{
    struct cluster_node node;
    for (node_id at = 0; cluster_next(c, &at, &node);) {
        if (!node.self && node.state <= GOSSIP_SUSPECT &&
            !seal_sender_uses(c->seal, node.id, key_id))
            return false;
    }
    return true;
}

void cluster_tell_load(struct cluster *c, const struct gossip_load *load)
{
    step(c, &(struct gossip_event){.kind = GOSSIP_TELL_LOAD, .load = load});
}

void cluster_tell_meta(struct cluster *c, const struct gossip_meta *meta)
{
    struct gossip_meta mine = *meta;
    cluster_meta_fill(c, &mine);
    step(c, &(struct gossip_event){.kind = GOSSIP_TELL_META, .meta = &mine});
}

/* --- opening -------------------------------------------------------------------------------------- */

static int open_seal(struct cluster *c, struct err *e)
{
    const struct membership *m = &c->membership;
    struct seal_options options = {
        .self = m->id, .boot = c->boot, .senders_max = CLUSTER_ENTRIES_MAX};
    memcpy(options.cluster, m->cluster_id, sizeof options.cluster);
    int rc = seal_new(&c->seal, &options, e);
    for (size_t i = 0; rc == 0 && i < m->gossip_key_count; i++)
        rc = seal_key_add(c->seal, m->gossip_keys[i], e);
    return rc;
}

int cluster_gossip_open(struct cluster *c, const struct gossip_meta *meta,
                        const struct sockaddr_storage *bind, struct err *e)
{
    struct gossip_meta mine = *meta;
    struct gossip_options options;
    struct sockaddr_storage address = c->advertise;
    cluster_meta_fill(c, &mine);
    cluster_port_shift(&address, CLUSTER_PORT_GOSSIP);
    gossip_options_defaults(&options);
    options.self.id = c->membership.id;
    options.self.boot = c->boot;
    (void)address_pack(&options.self.address, &address);
    options.self.meta = &mine;
    options.members_max = CLUSTER_ENTRIES_MAX;
    randombytes_buf(&options.seed, sizeof options.seed);
    int rc = open_seal(c, e);
    if (rc == 0)
        rc = gossip_new(&c->gossip, &options, e);
    if (rc != 0)
        return rc;
    struct gossip_udp_options udp = {.gossip = c->gossip,
                                     .seal = c->seal,
                                     .bind = *bind,
                                     .user = c,
                                     .changed = changed_cb,
                                     .sync = sync_cb,
                                     .left = left_cb,
                                     .impostor = impostor_cb};
    cluster_port_shift(&udp.bind, CLUSTER_PORT_GOSSIP);
    return gossip_udp_open(&c->udp, c->loop, &udp, e);
}
