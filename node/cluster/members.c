/* Happy path: members_open opens cluster and handshake on the four ports; questions and streams of other
 * nodes go to the registry, the leases, the gateway, the API and the layers; each tick tells load and
 * meta, and while this node leads, the registry who is alive.
 * Failure modes: what nobody here takes is dropped or closed, and the other node's deadline ends it. A
 * node that was removed, or whose id runs elsewhere with a later boot, stops. */
#include "node/cluster/members.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/api/api.h"
#include "node/cluster/members_internal.h"
#include "node/cluster/table.h"
#include "node/config.h"
#include "node/control/fences.h"
#include "node/control/reports.h"
#include "node/errands/errands.h"
#include "node/layers/copies.h"

enum { TICK_MS = 500, FOLLOW_MS = 10 };

/* --- asking ----------------------------------------------------------------------------------------- */

int members_ask(struct node *n, node_id to, enum cluster_what what, const void *payload,
                size_t size, unsigned timeout_ms, members_answered_cb answered, void *user,
                struct err *e)
{
    const struct peer_call call = {.to = to,
                                   .what = (uint16_t)what,
                                   .payload = payload,
                                   .size = size,
                                   .timeout_ms = timeout_ms,
                                   .answered = answered,
                                   .user = user};
    if (n->members == NULL || n->members->stopping)
        return err_set(e, ERR_CANCELED, "this node stops");
    return cluster_call(n->cluster, &call, e);
}

struct registry_ask {
    registry_peer_cb answered;
    void *user;
};

static void registry_answered(void *user, const struct peer_answer *answer)
{
    struct registry_ask *ask = user;
    const struct registry_peer_answer a = {.error = answer->error,
                                           .maybe_heard = answer->maybe_heard,
                                           .payload = answer->payload,
                                           .size = answer->size};
    ask->answered(ask->user, &a);
    free(ask);
}

static int registry_ask(void *user, node_id to, const void *payload, size_t size,
                        unsigned timeout_ms, registry_peer_cb answered, void *answered_user,
                        struct err *e)
{
    struct registry_ask *ask = malloc(sizeof *ask);
    if (ask == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for a question to node %llu",
                       (unsigned long long)to);
    *ask = (struct registry_ask){.answered = answered, .user = answered_user};
    int rc = members_ask(user, to, CLUSTER_REGISTRY, payload, size, timeout_ms, registry_answered,
                         ask, e);
    if (rc != 0)
        free(ask);
    return rc;
}

static bool stream_address(void *user, node_id id, struct sockaddr_storage *out)
{
    const struct node *n = user;
    return cluster_address(n->cluster, id, CLUSTER_PORT_STREAM, out);
}

void members_registry_options(struct node *n, struct registry_options *out)
{
    const struct members *m = n->members;
    struct cluster_node other;
    bool others = false;
    for (node_id at = 0; cluster_next(n->cluster, &at, &other);)
        others |= !other.self;
    out->id = n->id;
    out->boot = n->boot;
    out->wall_ms = clock_wall_ms;
    /* The first node of a cluster that is being made; where others are known, one exists. */
    out->bootstrap = m->membership.id == 1 && !others;
    out->peers = (struct registry_peers){.secure = cluster_secure(n->cluster),
                                         .user = n,
                                         .stream_address = stream_address,
                                         .ask = registry_ask};
}

/* On the API's thread: key and membership do not change. */
static int join_token(void *user, struct registry_token *out, char *text, size_t size,
                      struct err *e)
{
    const struct node *n = user;
    struct identity_fingerprint print;
    assert_always(size >= ENROLL_TOKEN_TEXT_SIZE);
    identity_fingerprint(identity_public(cluster_identity(n->cluster)), &print);
    return enroll_token_make(out, text, n->members->membership.cluster_id, &print, e);
}

void members_api_peers(struct node *n, struct api_peers *out)
{
    *out = (struct api_peers){.user = n,
                              .self = n->id,
                              .secure = cluster_secure(n->cluster),
                              .address = stream_address,
                              .join_token = join_token};
}

size_t members_layers_peers(void *node, struct layers_peer *out, size_t out_max)
{
    struct node *n = node;
    struct cluster_node other;
    size_t count = 0;
    for (node_id at = 0; count < out_max && cluster_next(n->cluster, &at, &other);) {
        if (other.self || other.state > GOSSIP_SUSPECT ||
            !cluster_address(n->cluster, other.id, CLUSTER_PORT_STREAM, &out[count].address))
            continue;
        out[count++].id = other.id;
    }
    for (size_t k = count; k > 1; k--) {
        size_t with = randombytes_uniform((uint32_t)k);
        struct layers_peer kept = out[k - 1];
        out[k - 1] = out[with];
        out[with] = kept;
    }
    return count;
}

/* --- being asked ------------------------------------------------------------------------------------ */

static void answer(void *question, const void *payload, size_t size)
{
    if (size == 0)
        peer_question_drop(question);
    else
        peer_question_answer(question, payload, size);
}

static void asked_cb(void *user, struct peer_question *q)
{
    struct node *n = user;
    size_t size = 0;
    const uint8_t *payload = peer_question_payload(q, &size);
    if (n->members->stopping || n->registry == NULL || n->fences == NULL) {
        peer_question_drop(q);
        return;
    }
    switch ((enum cluster_what)peer_question_what(q)) {
    case CLUSTER_REGISTRY:
        registry_question(n->registry, peer_question_from(q), payload, size, answer, q);
        break;
    case CLUSTER_LEASE:
        fences_question(n, q);
        break;
    case CLUSTER_LAYERS:
        copies_question(n, q);
        break;
    case CLUSTER_REPORT:
        reports_question(n, q);
        break;
    case CLUSTER_GOSSIP_SYNC:
    case CLUSTER_WHAT_COUNT:
        peer_question_drop(q);
    }
}

/* --- streams ---------------------------------------------------------------------------------------- */

static void maybe_closed(struct members *m);

static void detached_cb(void *user, struct secure_parcel *parcel)
{
    struct members *m = user;
    enum secure_protocol protocol = secure_parcel_protocol(parcel);
    bool join = protocol == SECURE_JOIN;
    m->detaching--;
    if (!m->stopping && protocol == SECURE_ERRAND)
        errands_accept(m->node, parcel);
    else if (m->stopping || (join ? m->node->gateway == NULL : m->node->api == NULL))
        secure_parcel_drop(parcel);
    else if (join)
        gateway_accept(m->node->gateway, parcel);
    else
        api_relay_accept(m->node->api, parcel);
    maybe_closed(m);
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    struct node *n = user;
    struct members *m = n->members;
    static const struct secure_events none = {0};
    enum secure_protocol protocol = secure_stream_protocol(s);
    secure_stream_set_events(s, &none, m);
    bool elsewhere =
        (protocol == SECURE_API && n->api != NULL) ||
        (protocol == SECURE_JOIN && n->gateway != NULL && gateway_accepts(n->gateway)) ||
        (protocol == SECURE_ERRAND && n->errands != NULL);
    bool registry = protocol == SECURE_RAFT || protocol == SECURE_SPARE;
    if (!m->stopping && registry && n->registry != NULL) {
        registry_accept(n->registry, s);
    } else if (!m->stopping && protocol == SECURE_IMAGE && n->layers != NULL) {
        layers_accept(n->layers, s);
    } else if (!m->stopping && elsewhere) {
        m->detaching++;
        secure_stream_detach(s, detached_cb);
    } else {
        turned_away_add(&m->turned_away, s);
    }
}

/* --- what the cluster says --------------------------------------------------------------------------- */

static void changed_cb(void *user)
{
    struct node *n = user;
    n->elsewhere_dirty = true;
    routes_dirty(n);
    events_nodes(n);
    errands_changed(n);
}

static void impostor_cb(void *user)
{
    struct node *n = user;
    log_error("node",
              "another process runs as node %llu and was started later: %s was copied. This one "
              "stops; of two, remove one folder and join anew",
              (unsigned long long)n->id, n->config->data);
    node_stop(n, 1);
}

static void removed_cb(void *user)
{
    struct node *n = user;
    log_error("node",
              "node %llu was removed from the cluster: it stops. Remove %s and join anew with a "
              "new token (skerry token create --node)",
              (unsigned long long)n->id, n->config->data);
    node_stop(n, 1);
}

/* Its streams and connections end now; raft looks by itself. */
static void forgot_cb(void *user, node_id id, bool removed)
{
    struct node *n = user;
    if (removed)
        members_keyring_removed(n->members);
    if (n->gateway != NULL)
        gateway_review(n->gateway);
    if (n->api != NULL)
        api_relay_review(n->api);
    if (n->layers != NULL)
        layers_forget(n->layers, id);
    errands_forget(n, id);
}

static void left_cb(void *user)
{
    struct node *n = user;
    void (*left)(struct node *) = n->members->left;
    n->members->left = NULL;
    if (left != NULL)
        left(n);
}

/* --- following the registry -------------------------------------------------------------------------- */

static void follow_cb(uv_timer_t *timer)
{
    struct members *m = container_of(timer, struct members, follow);
    struct node *n = m->node;
    if (m->stopping || n->registry == NULL)
        return;
    struct registry_root *root = registry_root(n->registry);
    cluster_follow(n->cluster, root, m->caught_up);
    members_keyring_follow(m, root);
    registry_root_release(root);
    members_register(m);
}

void members_registry_changed(struct node *n)
{
    struct members *m = n->members;
    if (!m->stopping && !uv_is_active((uv_handle_t *)&m->follow))
        (void)uv_timer_start(&m->follow, follow_cb, FOLLOW_MS, 0);
}

void members_leader_changed(struct node *n)
{
    members_register(n->members);
}

void members_machine_changed(struct node *n)
{
    if (!n->members->stopping)
        members_tell(n->members);
}

/* Who lives: a leader gives out roles by it, a spare learns whom to ask. */
static void tell_registry(struct members *m)
{
    struct node *n = m->node;
    struct cluster_node node;
    size_t count = 0;
    struct registry_root *root = registry_root(n->registry);
    /* A node that has nothing of the registry yet asks whom the handshake told of. */
    bool known = registry_root_node(root, n->id) != NULL;
    for (node_id at = 0; count < KNOWN_NODES_MAX && cluster_next(n->cluster, &at, &node);) {
        if (known && registry_root_node(root, node.id) == NULL)
            continue;
        struct registry_peer *peer = &m->peers[count++];
        *peer = (struct registry_peer){.id = node.id,
                                       .alive = node.self || node.state <= GOSSIP_SUSPECT};
        (void)text_copy(peer->zone, sizeof peer->zone, node.meta.zone);
    }
    registry_root_release(root);
    const struct registry_roles_wanted wanted = {
        .voters = (unsigned)n->config->raft.voters,
        .standbys = (unsigned)n->config->raft.standbys,
    };
    registry_roles(n->registry, m->peers, count, &wanted);
}

/* --- whether this is a node still --------------------------------------------------------------------- */

static bool anybody(void *user, node_id *id, struct sockaddr_storage *out)
{
    const struct node *n = user;
    struct cluster_node other;
    struct sockaddr_storage address;
    uint32_t count = 0;
    for (node_id at = 0; cluster_next(n->cluster, &at, &other);) {
        if (other.self || !cluster_address(n->cluster, other.id, CLUSTER_PORT_ENROLL, &address) ||
            randombytes_uniform(++count) != 0)
            continue;
        *id = other.id;
        *out = address;
    }
    return count > 0;
}

static void confirmed_removed(void *user, node_id by)
{
    log_info("node", "node %llu was asked whether this is a node still", (unsigned long long)by);
    removed_cb(user);
}

static void confirm(struct members *m)
{
    struct registry_status status;
    registry_status(m->node->registry, &status);
    confirm_tick(m->confirm, clock_monotonic_ms(), m->caught_up && status.leader_id != 0);
}

static void tick_cb(uv_timer_t *timer)
{
    struct members *m = container_of(timer, struct members, tick);
    struct node *n = m->node;
    if (m->stopping || n->registry == NULL)
        return;
    members_tell(m);
    members_register(m);
    tell_registry(m);
    confirm(m);
    if (n->leader)
        members_keyring_lead(m);
}

/* --- leaving ---------------------------------------------------------------------------------------- */

static void resigned_cb(void *user, const struct err *error)
{
    (void)user;
    if (error != NULL)
        log_info("registry", "leadership was not handed over: %s", error->msg);
}

void members_resign(struct node *n)
{
    struct registry_status status;
    struct err e = {0};
    if (n->registry == NULL)
        return;
    registry_status(n->registry, &status);
    if (status.leader && status.voters > 1 &&
        registry_transfer(n->registry, 0, resigned_cb, n, &e) != 0)
        resigned_cb(n, &e);
}

bool members_others(const struct node *n)
{
    struct cluster_node node;
    bool others = false;
    for (node_id at = 0; !others && cluster_next(n->cluster, &at, &node);)
        others = !node.self && node.state <= GOSSIP_SUSPECT;
    return others;
}

void members_leave(struct node *n, void (*cb)(struct node *n))
{
    if (!members_others(n)) {
        cb(n);
        return;
    }
    n->members->left = cb;
    cluster_leave(n->cluster);
}

/* --- life ------------------------------------------------------------------------------------------- */

static int propose(void *user, const struct registry_command *command, registry_result_cb cb,
                   void *cb_user, struct err *e)
{
    struct node *n = user;
    if (n->members->stopping || n->registry == NULL)
        return err_set(e, ERR_UNAVAILABLE, "%s starts or stops", n->config->name);
    return registry_propose(n->registry, command, cb, cb_user, e);
}

static struct registry_root *root_of(void *user)
{
    struct node *n = user;
    return n->members->stopping || n->registry == NULL ? NULL : registry_root(n->registry);
}

static int open_enroll(struct members *m, struct err *e)
{
    struct node *n = m->node;
    struct sockaddr_storage address;
    char text[ADDRESS_TEXT_SIZE];
    int rc = known_address_check(n->config->bind, &address, e);
    if (rc != 0)
        return rc;
    cluster_port_shift(&address, CLUSTER_PORT_ENROLL);
    address_format(&address, text);
    struct enroll_options o = {.identity = cluster_identity(n->cluster),
                               .address = text,
                               .name = n->config->name,
                               .id = n->id,
                               .nodes_max = REGISTRY_NODES_MAX,
                               .user = n,
                               .propose = propose,
                               .root = root_of};
    return enroll_open(&m->enroll, &n->loop, &o, e);
}

static void turned_away_gone(void *user);

int members_open(struct node *n, struct err *e)
{
    struct members *m = n->members;
    m->peers = calloc(KNOWN_NODES_MAX, sizeof *m->peers);
    if (m->peers == NULL)
        return err_set(e, ERR_NO_MEMORY, "start the node: no memory");
    m->turned_away =
        (struct turned_away_list){.loop = &n->loop, .gone = turned_away_gone, .user = m};
    members_meta(m, &m->meta);
    members_keyring_open(m);
    m->begun_ms = clock_monotonic_ms();
    struct cluster_options o = {.data = n->config->data,
                                .bind = n->config->bind,
                                .advertise = n->config->advertise,
                                .membership = &m->membership,
                                .meta = &m->meta,
                                .user = n,
                                .asked = asked_cb,
                                .accepted = accepted_cb,
                                .changed = changed_cb,
                                .left = left_cb,
                                .impostor = impostor_cb,
                                .forgot = forgot_cb,
                                .removed = removed_cb};
    int rc = cluster_open(&n->cluster, &n->loop, &o, e);
    if (rc != 0)
        return rc;
    (void)uv_timer_init(&n->loop, &m->tick);
    (void)uv_timer_init(&n->loop, &m->follow);
    m->opened = true;
    n->boot = cluster_boot(n->cluster);
    (void)uv_timer_start(&m->tick, tick_cb, TICK_MS, TICK_MS);
    const struct confirm_options confirm = {.loop = &n->loop,
                                            .secure = cluster_secure(n->cluster),
                                            .membership = &m->membership,
                                            .name = n->config->name,
                                            .user = n,
                                            .peer = anybody,
                                            .removed = confirmed_removed};
    rc = confirm_open(&m->confirm, &confirm, e);
    return rc == 0 ? open_enroll(m, e) : rc;
}

void members_stop(struct node *n)
{
    if (n->members == NULL)
        return;
    n->members->stopping = true;
}

static void maybe_closed(struct members *m)
{
    if (m->closed == NULL || m->open_parts > 0 || m->detaching > 0 || m->turned_away.count > 0)
        return;
    void (*closed)(void *user) = m->closed;
    void *user = m->closed_user;
    m->node->members = NULL;
    m->node->cluster = NULL;
    membership_wipe(&m->membership);
    free(m->peers);
    free(m);
    closed(user);
}

static void part_closed(struct members *m)
{
    m->open_parts--;
    maybe_closed(m);
}

static void cluster_closed_cb(void *user)
{
    part_closed(((struct node *)user)->members);
}

static void timer_closed_cb(uv_handle_t *handle)
{
    part_closed(handle->data);
}

static void enroll_closed_cb(void *user)
{
    part_closed(((struct node *)user)->members);
}

/* Its stream is of the cluster's context. */
static void confirm_closed_cb(void *user)
{
    struct node *n = user;
    n->members->confirm = NULL;
    cluster_close(n->cluster, cluster_closed_cb);
}

static void close_ports(struct node *n)
{
    struct members *m = n->members;
    m->closing_ports = true;
    if (m->opened) {
        m->tick.data = m->follow.data = m;
        m->open_parts += 2;
        uv_close((uv_handle_t *)&m->tick, timer_closed_cb);
        uv_close((uv_handle_t *)&m->follow, timer_closed_cb);
    }
    if (m->enroll != NULL) {
        m->open_parts++;
        enroll_close(m->enroll, enroll_closed_cb);
    }
    if (n->cluster != NULL) {
        m->open_parts++;
        if (m->confirm != NULL)
            confirm_close(m->confirm, confirm_closed_cb);
        else
            cluster_close(n->cluster, cluster_closed_cb);
    }
    part_closed(m);
}

/* Who was turned away has hung up: those who come now find a port that is closed, which says as much. */
static void turned_away_gone(void *user)
{
    struct members *m = user;
    if (m->closed != NULL && !m->closing_ports && m->turned_away.count == 0)
        close_ports(m->node);
    else
        maybe_closed(m);
}

void members_close(struct node *n, void (*cb)(void *user))
{
    struct members *m = n->members;
    m->stopping = true;
    m->closed = cb;
    m->closed_user = n;
    m->open_parts = 1; /* this call, and close_ports */
    if (m->turned_away.count == 0)
        close_ports(n);
}

void members_metrics(const struct node *n, struct node_metrics *out)
{
    const struct members *m = n->members;
    struct cluster_refusals c;
    if (m == NULL || n->cluster == NULL || m->enroll == NULL)
        return;
    cluster_refusals(n->cluster, &c);
    out->refused_questions = c.rpc;
    out->refused_streams = c.streams;
    out->refused_gossip =
        c.gossip_unknown_key + c.gossip_forged + c.gossip_replayed + c.gossip_other;
    out->refused_joins = 0;
    for (unsigned i = 0; i < ENROLL_REFUSAL_COUNT; i++)
        out->refused_joins += refusals_count(enroll_refusals(m->enroll), i);
    for (unsigned i = 0; i < SECURE_REFUSAL_COUNT; i++)
        out->refused_joins += refusals_count(enroll_stream_refusals(m->enroll), i);
}
