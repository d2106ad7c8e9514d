/* Happy path: cluster_open opens key, table, streams, questions and gossip, in this order, and gossip
 * asks the nodes of peers.json for what they know. cluster_follow keeps the table as the registry is.
 * Failure modes: a port that is taken or an address that is public fails the opening, by name; a file
 * that cannot be kept is told in the log and costs the next start time, nothing else. */
#include "node/cluster/cluster.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/cluster/internal.h"
#include "node/cluster/peer_seal.h"

enum { NOTIFY_MS = 5, LEAVE_MS = 2000 };

/* --- telling -------------------------------------------------------------------------------------- */

static void call(const struct cluster *c, void (*what)(void *user))
{
    if (what != NULL && !c->closing)
        what(c->options.user);
}

static void notify_cb(uv_timer_t *timer)
{
    struct cluster *c = container_of(timer, struct cluster, notify);
    bool changed = c->changed, left = c->left && c->leave_asked && !c->left_told;
    bool impostor = c->impostor, removed = c->removed && !c->removed_told;
    if (c->strays)
        cluster_remove_strays(c);
    c->changed = c->impostor = c->strays = false;
    c->left_told |= left;
    c->removed_told |= removed;
    if (changed)
        call(c, c->options.changed);
    if (removed)
        call(c, c->options.removed);
    if (impostor)
        call(c, c->options.impostor);
    if (left)
        call(c, c->options.left);
}

void cluster_notify_soon(struct cluster *c)
{
    if (!c->closing && !uv_is_active((uv_handle_t *)&c->notify))
        (void)uv_timer_start(&c->notify, notify_cb, NOTIFY_MS, 0);
}

static void leaving_cb(uv_timer_t *timer)
{
    struct cluster *c = container_of(timer, struct cluster, leaving);
    c->left = true;
    cluster_notify_soon(c);
}

void cluster_leave(struct cluster *c)
{
    struct err e = {0};
    if (c->leave_asked)
        return;
    c->leave_asked = true;
    (void)uv_timer_start(&c->leaving, leaving_cb, LEAVE_MS, 0);
    if (gossip_udp_step(c->udp, &(struct gossip_event){.kind = GOSSIP_LEAVE}, &e) != 0)
        log_warn("gossip", "%s", e.msg);
}

/* --- questions and streams ------------------------------------------------------------------------ */

static bool address_of(void *user, node_id id, struct sockaddr_storage *out)
{
    return cluster_address(user, id, CLUSTER_PORT_PEER, out);
}

static void asked_cb(void *user, struct peer_question *q)
{
    struct cluster *c = user;
    uint16_t what = peer_question_what(q);
    if (c->closing || what == 0 || what >= CLUSTER_WHAT_COUNT) {
        /* Of a later version perhaps: it hears no answer, and goes on without. */
        peer_question_drop(q);
        return;
    }
    if (what == CLUSTER_GOSSIP_SYNC)
        cluster_gossip_asked(c, q);
    else
        c->options.asked(c->options.user, q);
}

static void outlived_cb(void *user)
{
    struct cluster *c = user;
    c->impostor = true;
    cluster_notify_soon(c);
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    struct cluster *c = user;
    c->options.accepted(c->options.user, s);
}

int cluster_call(struct cluster *c, const struct peer_call *call, struct err *e)
{
    return peer_rpc_call(c->rpc, call, e);
}

/* --- any thread ----------------------------------------------------------------------------------- */

bool cluster_key_of(void *cluster, node_id id, struct identity_public *out)
{
    struct cluster *c = cluster;
    return cluster_table_key(&c->table, id, out);
}

bool cluster_address(struct cluster *c, node_id id, enum cluster_port port,
                     struct sockaddr_storage *out)
{
    return cluster_table_address(&c->table, id, port, out);
}

/* --- reading -------------------------------------------------------------------------------------- */

uint64_t cluster_boot(const struct cluster *c)
{
    return c->boot;
}

const struct identity *cluster_identity(const struct cluster *c)
{
    return c->identity;
}

struct secure_context *cluster_secure(const struct cluster *c)
{
    return c->secure;
}

static void node_fill(const struct cluster *c, const struct cluster_entry *entry,
                      struct cluster_node *out)
{
    struct gossip_member member;
    node_id id = entry->known.id;
    *out = (struct cluster_node){.id = id, .state = GOSSIP_DEAD, .self = id == c->membership.id};
    if (gossip_member_get(c->gossip, id, &member)) {
        out->state = member.state;
        out->state_since_ms = member.since_ms;
    }
    if (!gossip_meta_get(c->gossip, id, &out->meta))
        (void)text_copy(out->meta.name, sizeof out->meta.name, entry->known.name);
    (void)gossip_load_get(c->gossip, id, &out->load);
    if (out->self && !c->leave_asked) {
        out->state = GOSSIP_ALIVE;
        out->state_since_ms = c->started_ms;
    }
}

bool cluster_next(struct cluster *c, node_id *cursor, struct cluster_node *out)
{
    const struct cluster_entry *entry = cluster_table_above(&c->table, *cursor);
    if (entry == NULL)
        return false;
    *cursor = entry->known.id;
    node_fill(c, entry, out);
    return true;
}

bool cluster_get(struct cluster *c, node_id id, struct cluster_node *out)
{
    const struct cluster_entry *entry = cluster_table_find(&c->table, id);
    if (entry != NULL)
        node_fill(c, entry, out);
    return entry != NULL;
}

void cluster_refusals(const struct cluster *c, struct cluster_refusals *out)
{
    *out = (struct cluster_refusals){.gossip_unknown_key = seal_count(c->seal, SEAL_UNKNOWN_KEY),
                                     .gossip_forged = seal_count(c->seal, SEAL_FORGED),
                                     .gossip_replayed = seal_count(c->seal, SEAL_REPLAYED),
                                     .gossip_other = seal_count(c->seal, SEAL_SHORT) +
                                                     seal_count(c->seal, SEAL_MISDIRECTED) +
                                                     seal_count(c->seal, SEAL_OLD_BOOT)};
    for (unsigned i = 0; i < PEER_SEAL_REFUSAL_COUNT; i++) {
        if (i != PEER_SEAL_REFUSED_LIFE)
            out->rpc += refusals_count(peer_rpc_refusals(c->rpc), i);
    }
    for (unsigned i = 0; i < SECURE_REFUSAL_COUNT; i++)
        out->streams += refusals_count(secure_listener_refusals(c->listener), i);
}

size_t cluster_keyring(const struct cluster *c, struct seal_key_shown *out, size_t out_max)
{
    size_t count = 0;
    while (count < out_max && seal_key_get(c->seal, count, &out[count]))
        count++;
    return count;
}

/* --- closing -------------------------------------------------------------------------------------- */

static void dispose(struct cluster *c)
{
    void (*closed)(void *user) = c->closed;
    void *user = c->options.user;
    keeper_close(c->known_keeper);
    keeper_close(c->membership_keeper);
    gossip_free(c->gossip);
    seal_free(c->seal);
    secure_context_free(c->secure);
    identity_free(c->identity);
    cluster_table_free(&c->table);
    membership_wipe(&c->membership);
    free(c);
    if (closed != NULL)
        closed(user);
}

static void part_closed(void *user)
{
    struct cluster *c = user;
    if (--c->open_parts == 0)
        dispose(c);
}

static void timer_closed_cb(uv_handle_t *handle)
{
    part_closed(handle->data);
}

void cluster_close(struct cluster *c, void (*cb)(void *user))
{
    c->closing = true;
    c->closed = cb;
    c->open_parts = 2u + (c->udp != NULL ? 1u : 0u) + (c->rpc != NULL ? 1u : 0u) +
                    (c->listener != NULL ? 1u : 0u);
    if (c->udp != NULL)
        gossip_udp_close(c->udp, part_closed, c);
    if (c->rpc != NULL)
        peer_rpc_close(c->rpc, part_closed);
    if (c->listener != NULL)
        secure_listener_close(c->listener, part_closed);
    c->notify.data = c->leaving.data = c;
    uv_close((uv_handle_t *)&c->notify, timer_closed_cb);
    uv_close((uv_handle_t *)&c->leaving, timer_closed_cb);
}

/* --- opening -------------------------------------------------------------------------------------- */

static int open_addresses(struct cluster *c, const struct cluster_options *o,
                          struct sockaddr_storage *bind, struct err *e)
{
    int rc = known_address_check(o->bind, bind, e);
    if (rc != 0)
        return err_wrap(e, "bind");
    rc = known_address_check(o->advertise, &c->advertise, e);
    if (rc != 0)
        return err_wrap(e, "advertise");
    address_format(&c->advertise, c->advertise_text);
    return 0;
}

static int open_identity(struct cluster *c, const char *data, struct err *e)
{
    int rc = identity_open(&c->identity, data, e);
    if (rc == 0)
        rc = identity_boot_next(&c->boot, data, clock_wall_ms(), e);
    if (rc == 0)
        rc = keeper_open(&c->known_keeper, data, KNOWN_FILE, e);
    if (rc == 0)
        rc = keeper_open(&c->membership_keeper, data, MEMBERSHIP_FILE, e);
    return rc;
}

static int open_self(struct cluster *c, const struct gossip_meta *meta, struct err *e)
{
    struct known_node self = {
        .id = c->membership.id, .has_key = true, .key = *identity_public(c->identity)};
    memcpy(self.address, c->advertise_text, sizeof self.address);
    (void)text_copy(self.name, sizeof self.name, meta->name);
    return cluster_table_know(&c->table, &self, e);
}

static int open_ports(struct cluster *c, const struct gossip_meta *meta,
                      const struct sockaddr_storage *bind, struct err *e)
{
    struct secure_context_options secure = {
        .identity = c->identity, .id = c->membership.id, .key_of = cluster_key_of, .user = c};
    int rc = secure_context_open(&c->secure, &secure, e);
    if (rc != 0)
        return rc;
    struct sockaddr_storage address = *bind;
    cluster_port_shift(&address, CLUSTER_PORT_STREAM);
    struct secure_listen_options listen = {.context = c->secure,
                                           .address = &address,
                                           .protocols = 1u << SECURE_RAFT | 1u << SECURE_JOIN |
                                                        1u << SECURE_IMAGE | 1u << SECURE_API |
                                                        1u << SECURE_ERRAND | 1u << SECURE_SPARE,
                                           .accepted = accepted_cb,
                                           .user = c};
    rc = secure_listener_open(&c->listener, c->loop, &listen, e);
    if (rc != 0)
        return rc;
    struct peer_rpc_options rpc = {.identity = c->identity,
                                   .id = c->membership.id,
                                   .boot = c->boot,
                                   .address = bind,
                                   .key_of = cluster_key_of,
                                   .address_of = address_of,
                                   .asked = asked_cb,
                                   .outlived = outlived_cb,
                                   .user = c,
                                   .bytes_max = CLUSTER_MESSAGE_BYTES_MAX};
    rc = peer_rpc_open(&c->rpc, c->loop, &rpc, e);
    return rc == 0 ? cluster_gossip_open(c, meta, bind, e) : rc;
}

/* What was known at the last stop. Without the file the registry's own folder has to do. */
static void open_known(struct cluster *c, const char *data)
{
    struct known known;
    struct err e = {0};
    int rc = known_load(&known, data, &e);
    if (rc == 0) {
        cluster_learn(c, &known, false);
        known_free(&known);
    } else if (rc != -ERR_NOT_FOUND) {
        log_warn("cluster", "%s: it is passed over, and written anew from the registry", e.msg);
    }
}

int cluster_open(struct cluster **out, uv_loop_t *loop, const struct cluster_options *options,
                 struct err *e)
{
    struct sockaddr_storage bind;
    struct cluster *c = calloc(1, sizeof *c);
    if (c == NULL)
        return err_set(e, ERR_NO_MEMORY, "open the cluster: no memory");
    c->options = *options;
    c->options.data = c->options.bind = c->options.advertise = NULL;
    c->options.membership = NULL;
    c->options.meta = NULL;
    c->loop = loop;
    c->membership = *options->membership;
    c->started_ms = clock_monotonic_ms();
    cluster_table_open(&c->table);
    (void)uv_timer_init(loop, &c->notify);
    (void)uv_timer_init(loop, &c->leaving);
    int rc = open_addresses(c, options, &bind, e);
    if (rc == 0)
        rc = open_identity(c, options->data, e);
    if (rc == 0)
        rc = open_self(c, options->meta, e);
    if (rc == 0)
        rc = open_ports(c, options->meta, &bind, e);
    if (rc != 0) {
        cluster_close(c, NULL);
        return rc;
    }
    open_known(c, options->data);
    *out = c;
    return 0;
}
