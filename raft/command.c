#include "raft/command.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/codec.h"

enum { HEADER_BYTES = 8, ALIGNMENT_BYTES = 8 };

uint32_t command_feature_level(enum registry_command_kind kind)
{
    /* Those of the first release. */
    (void)kind;
    return 1;
}

/* --- encoding ------------------------------------------------------------------------------------- */

/* Room for any body, while it is packed. */
struct bodies {
    Skerry__Registry__ClusterInit cluster_init;
    Skerry__Registry__Node node;
    Skerry__Registry__WorkloadPut workload_put;
    Skerry__Registry__WorkloadName workload_name;
    struct codec_instance instance;
    Skerry__Registry__Empty empty;
    Skerry__Registry__Token token;
    Skerry__Registry__Name name;
    Skerry__Registry__Image image;
    Skerry__Registry__FeatureLevel feature_level;
    Skerry__Registry__NodeJoin node_join;
    Skerry__Registry__NodeRemove node_remove;
    Skerry__Registry__NodeDrain node_drain;
    Skerry__Registry__Lease lease;
    Skerry__Registry__Keyring keyring;
    Skerry__Registry__SshKey ssh_key;
    Skerry__Registry__SshHostKey ssh_host_key;
    Skerry__Registry__Domain domain;
    Skerry__Registry__Ticket ticket;
};

static ProtobufCBinaryData key_borrow(const uint8_t *key)
{
    return (ProtobufCBinaryData){.data = (uint8_t *)(uintptr_t)key,
                                 .len = key == NULL ? 0 : REGISTRY_GOSSIP_KEY_BYTES};
}

static void body_name(Skerry__Registry__Command *m, struct bodies *b,
                      const struct registry_command *c)
{
    skerry__registry__name__init(&b->name);
    if (c->kind == REGISTRY_TOKEN_REVOKE) {
        b->name.name = codec_borrow(c->token->id);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_TOKEN_REVOKE;
        m->token_revoke = &b->name;
    } else {
        b->name.name = codec_borrow(c->image->name);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_IMAGE_REMOVE;
        m->image_remove = &b->name;
    }
}

static void body_workload_name(Skerry__Registry__Command *m, struct bodies *b,
                               const struct registry_command *c)
{
    skerry__registry__workload_name__init(&b->workload_name);
    b->workload_name.name = codec_borrow(c->name);
    if (c->kind == REGISTRY_WORKLOAD_REMOVE) {
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_WORKLOAD_REMOVE;
        m->workload_remove = &b->workload_name;
    } else {
        b->workload_name.version = c->version;
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_WORKLOAD_ROLLBACK;
        m->workload_rollback = &b->workload_name;
    }
}

static void body_instance(Skerry__Registry__Command *m, struct bodies *b,
                          const struct registry_command *c)
{
    codec_instance_write(&b->instance, c->instance);
    if (c->kind == REGISTRY_INSTANCE_RESERVE) {
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_INSTANCE_RESERVE;
        m->instance_reserve = &b->instance.message;
    } else if (c->kind == REGISTRY_INSTANCE_UPDATE) {
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_INSTANCE_UPDATE;
        m->instance_update = &b->instance.message;
    } else {
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_INSTANCE_END;
        m->instance_end = &b->instance.message;
    }
}

static void body_cluster_init(Skerry__Registry__Command *m, struct bodies *b,
                              const struct registry_command *c)
{
    skerry__registry__cluster_init__init(&b->cluster_init);
    b->cluster_init.cluster_id = codec_borrow(c->cluster_id);
    b->cluster_init.gossip_key = key_borrow(c->gossip_key);
    m->body_case = SKERRY__REGISTRY__COMMAND__BODY_CLUSTER_INIT;
    m->cluster_init = &b->cluster_init;
}

static void body_node(Skerry__Registry__Command *m, struct bodies *b,
                      const struct registry_command *c)
{
    codec_node_write(&b->node, c->node);
    if (c->kind == REGISTRY_NODE_PUT) {
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_NODE_PUT;
        m->node_put = &b->node;
        return;
    }
    skerry__registry__node_join__init(&b->node_join);
    b->node_join.node = &b->node;
    b->node_join.token = codec_borrow(c->token->id);
    m->body_case = SKERRY__REGISTRY__COMMAND__BODY_NODE_JOIN;
    m->node_join = &b->node_join;
}

static void body_node_change(Skerry__Registry__Command *m, struct bodies *b,
                             const struct registry_command *c)
{
    if (c->kind == REGISTRY_NODE_REMOVE) {
        skerry__registry__node_remove__init(&b->node_remove);
        b->node_remove.id = c->node->id;
        b->node_remove.gossip_key = key_borrow(c->gossip_key);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_NODE_REMOVE;
        m->node_remove = &b->node_remove;
    } else {
        skerry__registry__node_drain__init(&b->node_drain);
        b->node_drain.id = c->node->id;
        b->node_drain.draining = c->node->draining;
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_NODE_DRAIN;
        m->node_drain = &b->node_drain;
    }
}

static void body_lease(Skerry__Registry__Command *m, struct bodies *b,
                       const struct registry_command *c)
{
    skerry__registry__lease__init(&b->lease);
    b->lease.node = c->node->id;
    if (c->kind == REGISTRY_LEASE_GRANT) {
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_LEASE_GRANT;
        m->lease_grant = &b->lease;
    } else {
        b->lease.epoch = c->node->lease_epoch;
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_LEASE_EXPIRE;
        m->lease_expire = &b->lease;
    }
}

static void body_keyring(Skerry__Registry__Command *m, struct bodies *b,
                         const struct registry_command *c)
{
    skerry__registry__keyring__init(&b->keyring);
    b->keyring.verb = (uint32_t)c->keyring_verb;
    b->keyring.key = key_borrow(c->gossip_key);
    m->body_case = SKERRY__REGISTRY__COMMAND__BODY_KEYRING;
    m->keyring = &b->keyring;
}

static void body_ssh(Skerry__Registry__Command *m, struct bodies *b,
                     const struct registry_command *c)
{
    if (c->kind == REGISTRY_SSH_KEY_PUT) {
        codec_ssh_key_write(&b->ssh_key, c->ssh_key);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_SSH_KEY_PUT;
        m->ssh_key_put = &b->ssh_key;
    } else if (c->kind == REGISTRY_SSH_KEY_REMOVE) {
        skerry__registry__name__init(&b->name);
        b->name.name = codec_borrow(c->ssh_key->id);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_SSH_KEY_REMOVE;
        m->ssh_key_remove = &b->name;
    } else {
        skerry__registry__ssh_host_key__init(&b->ssh_host_key);
        b->ssh_host_key.seed.data = (uint8_t *)(uintptr_t)c->ssh_seed;
        b->ssh_host_key.seed.len = REGISTRY_SSH_SEED_BYTES;
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_SSH_HOST_KEY;
        m->ssh_host_key = &b->ssh_host_key;
    }
}

static void body_route(Skerry__Registry__Command *m, struct bodies *b,
                       const struct registry_command *c)
{
    if (c->kind == REGISTRY_DOMAIN_PUT) {
        codec_domain_write(&b->domain, c->domain);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_DOMAIN_PUT;
        m->domain_put = &b->domain;
    } else if (c->kind == REGISTRY_DOMAIN_REMOVE) {
        skerry__registry__name__init(&b->name);
        b->name.name = codec_borrow(c->domain->name);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_DOMAIN_REMOVE;
        m->domain_remove = &b->name;
    } else {
        codec_ticket_write(&b->ticket, c->ticket);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_TICKET_USE;
        m->ticket_use = &b->ticket;
    }
}

static void body_fill(Skerry__Registry__Command *m, struct bodies *b,
                      const struct registry_command *c)
{
    switch (c->kind) {
    case REGISTRY_CLUSTER_INIT:
        body_cluster_init(m, b, c);
        return;
    case REGISTRY_NODE_PUT:
    case REGISTRY_NODE_JOIN:
        body_node(m, b, c);
        return;
    case REGISTRY_NODE_REMOVE:
    case REGISTRY_NODE_DRAIN:
        body_node_change(m, b, c);
        return;
    case REGISTRY_LEASE_GRANT:
    case REGISTRY_LEASE_EXPIRE:
        body_lease(m, b, c);
        return;
    case REGISTRY_KEYRING:
        body_keyring(m, b, c);
        return;
    case REGISTRY_SSH_KEY_PUT:
    case REGISTRY_SSH_KEY_REMOVE:
    case REGISTRY_SSH_HOST_KEY:
        body_ssh(m, b, c);
        return;
    case REGISTRY_DOMAIN_PUT:
    case REGISTRY_DOMAIN_REMOVE:
    case REGISTRY_TICKET_USE:
        body_route(m, b, c);
        return;
    case REGISTRY_WORKLOAD_PUT:
        skerry__registry__workload_put__init(&b->workload_put);
        b->workload_put.json = codec_borrow(c->workload_json);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_WORKLOAD_PUT;
        m->workload_put = &b->workload_put;
        return;
    case REGISTRY_WORKLOAD_REMOVE:
    case REGISTRY_WORKLOAD_ROLLBACK:
        body_workload_name(m, b, c);
        return;
    case REGISTRY_INSTANCE_RESERVE:
    case REGISTRY_INSTANCE_UPDATE:
    case REGISTRY_INSTANCE_END:
        body_instance(m, b, c);
        return;
    case REGISTRY_SWEEP:
        skerry__registry__empty__init(&b->empty);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_SWEEP;
        m->sweep = &b->empty;
        return;
    case REGISTRY_TOKEN_PUT:
        codec_token_write(&b->token, c->token);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_TOKEN_PUT;
        m->token_put = &b->token;
        return;
    case REGISTRY_TOKEN_REVOKE:
    case REGISTRY_IMAGE_REMOVE:
        body_name(m, b, c);
        return;
    case REGISTRY_IMAGE_PUT:
        codec_image_write(&b->image, c->image);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_IMAGE_PUT;
        m->image_put = &b->image;
        return;
    case REGISTRY_FEATURE_LEVEL:
        skerry__registry__feature_level__init(&b->feature_level);
        b->feature_level.level = c->version;
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_FEATURE_LEVEL;
        m->feature_level = &b->feature_level;
        return;
    }
}

int command_encode(uint8_t **out, size_t *out_length, const struct command_session *session,
                   const struct registry_command *command, struct err *e)
{
    const char *fault = command_fault(command);
    if (fault != NULL)
        return err_set(e, ERR_INVALID, "registry command %d: %s", (int)command->kind, fault);
    Skerry__Registry__Command m = SKERRY__REGISTRY__COMMAND__INIT;
    struct bodies bodies;
    m.node = session->node;
    m.boot = session->boot;
    m.sequence = session->sequence;
    m.wall_ms = command->wall_ms;
    body_fill(&m, &bodies, command);

    size_t packed = skerry__registry__command__get_packed_size(&m);
    size_t length =
        (HEADER_BYTES + packed + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    assert_always(length <= COMMAND_BYTES_MAX);
    uint8_t *bytes = calloc(1, length);
    if (bytes == NULL)
        return err_set(e, ERR_NO_MEMORY, "registry command of %zu bytes: no memory", length);
    codec_put32(bytes, COMMAND_FORMAT);
    codec_put32(bytes + 4, (uint32_t)packed);
    skerry__registry__command__pack(&m, bytes + HEADER_BYTES);
    *out = bytes;
    *out_length = length;
    return 0;
}

/* --- decoding ------------------------------------------------------------------------------------- */

static bool instance_body_read(struct command *out, enum registry_command_kind kind,
                               const Skerry__Registry__Instance *m)
{
    out->body.kind = kind;
    out->body.instance = &out->instance;
    return codec_instance_read(&out->instance, m);
}

static void workload_name_read(struct command *out, enum registry_command_kind kind,
                               const Skerry__Registry__WorkloadName *m)
{
    out->body.kind = kind;
    out->body.name = m->name;
    out->body.version = m->version;
}

/* Of 32 bytes, or none where it may be missing. */
static bool key_read(struct command *out, const ProtobufCBinaryData *key, bool optional)
{
    if (key->len == 0)
        return optional;
    out->body.gossip_key = key->data;
    return key->len == REGISTRY_GOSSIP_KEY_BYTES;
}

static bool join_read(struct command *out, const Skerry__Registry__NodeJoin *m)
{
    out->body.token = &out->token;
    return m->node != NULL && codec_node_read(&out->node, m->node) &&
           codec_text_read(out->token.id, sizeof out->token.id, m->token);
}

/* The commands about nodes, leases and gossip's keys; false for any other. */
static bool nodes_read(struct command *out, const Skerry__Registry__Command *m)
{
    struct registry_command *c = &out->body;
    c->node = &out->node;
    switch ((unsigned)m->body_case) {
    case SKERRY__REGISTRY__COMMAND__BODY_NODE_PUT:
        c->kind = REGISTRY_NODE_PUT;
        return codec_node_read(&out->node, m->node_put);
    case SKERRY__REGISTRY__COMMAND__BODY_NODE_JOIN:
        c->kind = REGISTRY_NODE_JOIN;
        return join_read(out, m->node_join);
    case SKERRY__REGISTRY__COMMAND__BODY_NODE_REMOVE:
        c->kind = REGISTRY_NODE_REMOVE;
        out->node.id = m->node_remove->id;
        return key_read(out, &m->node_remove->gossip_key, false);
    case SKERRY__REGISTRY__COMMAND__BODY_NODE_DRAIN:
        c->kind = REGISTRY_NODE_DRAIN;
        out->node.id = m->node_drain->id;
        out->node.draining = m->node_drain->draining;
        return true;
    case SKERRY__REGISTRY__COMMAND__BODY_LEASE_GRANT:
        c->kind = REGISTRY_LEASE_GRANT;
        out->node.id = m->lease_grant->node;
        return true;
    case SKERRY__REGISTRY__COMMAND__BODY_LEASE_EXPIRE:
        c->kind = REGISTRY_LEASE_EXPIRE;
        out->node.id = m->lease_expire->node;
        out->node.lease_epoch = m->lease_expire->epoch;
        return true;
    case SKERRY__REGISTRY__COMMAND__BODY_KEYRING:
        c->kind = REGISTRY_KEYRING;
        c->keyring_verb = (enum registry_keyring_verb)m->keyring->verb;
        return key_read(out, &m->keyring->key, false);
    default:
        return false;
    }
}

/* The commands about SSH; false for any other. */
static bool ssh_read(struct command *out, const Skerry__Registry__Command *m)
{
    struct registry_command *c = &out->body;
    c->ssh_key = &out->ssh_key;
    switch ((unsigned)m->body_case) {
    case SKERRY__REGISTRY__COMMAND__BODY_SSH_KEY_PUT:
        c->kind = REGISTRY_SSH_KEY_PUT;
        return codec_ssh_key_read(&out->ssh_key, m->ssh_key_put);
    case SKERRY__REGISTRY__COMMAND__BODY_SSH_KEY_REMOVE:
        c->kind = REGISTRY_SSH_KEY_REMOVE;
        return codec_text_read(out->ssh_key.id, sizeof out->ssh_key.id, m->ssh_key_remove->name);
    case SKERRY__REGISTRY__COMMAND__BODY_SSH_HOST_KEY:
        c->kind = REGISTRY_SSH_HOST_KEY;
        c->ssh_seed = m->ssh_host_key->seed.data;
        return m->ssh_host_key->seed.len == REGISTRY_SSH_SEED_BYTES;
    default:
        return false;
    }
}

/* The commands about domains and tickets; false for any other. */
static bool route_read(struct command *out, const Skerry__Registry__Command *m)
{
    struct registry_command *c = &out->body;
    c->domain = &out->domain;
    c->ticket = &out->ticket;
    switch ((unsigned)m->body_case) {
    case SKERRY__REGISTRY__COMMAND__BODY_DOMAIN_PUT:
        c->kind = REGISTRY_DOMAIN_PUT;
        return codec_domain_read(&out->domain, m->domain_put);
    case SKERRY__REGISTRY__COMMAND__BODY_DOMAIN_REMOVE:
        c->kind = REGISTRY_DOMAIN_REMOVE;
        return codec_text_read(out->domain.name, sizeof out->domain.name, m->domain_remove->name);
    case SKERRY__REGISTRY__COMMAND__BODY_TICKET_USE:
        c->kind = REGISTRY_TICKET_USE;
        return codec_ticket_read(&out->ticket, m->ticket_use);
    default:
        return false;
    }
}

static bool body_read(struct command *out, const Skerry__Registry__Command *m)
{
    struct registry_command *c = &out->body;
    switch (m->body_case) {
    case SKERRY__REGISTRY__COMMAND__BODY_CLUSTER_INIT:
        c->kind = REGISTRY_CLUSTER_INIT;
        c->cluster_id = m->cluster_init->cluster_id;
        return key_read(out, &m->cluster_init->gossip_key, true);
    case SKERRY__REGISTRY__COMMAND__BODY_NODE_PUT:
    case SKERRY__REGISTRY__COMMAND__BODY_NODE_JOIN:
    case SKERRY__REGISTRY__COMMAND__BODY_NODE_REMOVE:
    case SKERRY__REGISTRY__COMMAND__BODY_NODE_DRAIN:
    case SKERRY__REGISTRY__COMMAND__BODY_LEASE_GRANT:
    case SKERRY__REGISTRY__COMMAND__BODY_LEASE_EXPIRE:
    case SKERRY__REGISTRY__COMMAND__BODY_KEYRING:
        return nodes_read(out, m);
    case SKERRY__REGISTRY__COMMAND__BODY_SSH_KEY_PUT:
    case SKERRY__REGISTRY__COMMAND__BODY_SSH_KEY_REMOVE:
    case SKERRY__REGISTRY__COMMAND__BODY_SSH_HOST_KEY:
        return ssh_read(out, m);
    case SKERRY__REGISTRY__COMMAND__BODY_DOMAIN_PUT:
    case SKERRY__REGISTRY__COMMAND__BODY_DOMAIN_REMOVE:
    case SKERRY__REGISTRY__COMMAND__BODY_TICKET_USE:
        return route_read(out, m);
    case SKERRY__REGISTRY__COMMAND__BODY_WORKLOAD_PUT:
        c->kind = REGISTRY_WORKLOAD_PUT;
        c->workload_json = m->workload_put->json;
        return true;
    case SKERRY__REGISTRY__COMMAND__BODY_WORKLOAD_REMOVE:
        workload_name_read(out, REGISTRY_WORKLOAD_REMOVE, m->workload_remove);
        return true;
    case SKERRY__REGISTRY__COMMAND__BODY_WORKLOAD_ROLLBACK:
        workload_name_read(out, REGISTRY_WORKLOAD_ROLLBACK, m->workload_rollback);
        return true;
    case SKERRY__REGISTRY__COMMAND__BODY_INSTANCE_RESERVE:
        return instance_body_read(out, REGISTRY_INSTANCE_RESERVE, m->instance_reserve);
    case SKERRY__REGISTRY__COMMAND__BODY_INSTANCE_UPDATE:
        return instance_body_read(out, REGISTRY_INSTANCE_UPDATE, m->instance_update);
    case SKERRY__REGISTRY__COMMAND__BODY_INSTANCE_END:
        return instance_body_read(out, REGISTRY_INSTANCE_END, m->instance_end);
    case SKERRY__REGISTRY__COMMAND__BODY_SWEEP:
        c->kind = REGISTRY_SWEEP;
        return true;
    case SKERRY__REGISTRY__COMMAND__BODY_TOKEN_PUT:
        c->kind = REGISTRY_TOKEN_PUT;
        c->token = &out->token;
        return codec_token_read(&out->token, m->token_put);
    case SKERRY__REGISTRY__COMMAND__BODY_TOKEN_REVOKE:
        c->kind = REGISTRY_TOKEN_REVOKE;
        c->token = &out->token;
        return codec_text_read(out->token.id, sizeof out->token.id, m->token_revoke->name);
    case SKERRY__REGISTRY__COMMAND__BODY_IMAGE_PUT:
        c->kind = REGISTRY_IMAGE_PUT;
        c->image = &out->image;
        return codec_image_read(&out->image, m->image_put);
    case SKERRY__REGISTRY__COMMAND__BODY_IMAGE_REMOVE:
        c->kind = REGISTRY_IMAGE_REMOVE;
        c->image = &out->image;
        return codec_text_read(out->image.name, sizeof out->image.name, m->image_remove->name);
    case SKERRY__REGISTRY__COMMAND__BODY_FEATURE_LEVEL:
        c->kind = REGISTRY_FEATURE_LEVEL;
        c->version = m->feature_level->level;
        return true;
    case SKERRY__REGISTRY__COMMAND__BODY__NOT_SET:
    case _SKERRY__REGISTRY__COMMAND__BODY__CASE_IS_INT_SIZE:
        break;
    }
    return false;
}

static bool zeros(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != 0)
            return false;
    return true;
}

int command_decode(struct command *out, const void *data, size_t length, struct err *e)
{
    const uint8_t *bytes = data;
    memset(out, 0, sizeof *out);
    if (length < HEADER_BYTES || length > COMMAND_BYTES_MAX || length % ALIGNMENT_BYTES != 0)
        return err_set(e, ERR_PROTOCOL, "registry command of %zu bytes: not a valid length",
                       length);
    uint32_t format = codec_get32(bytes);
    uint32_t packed = codec_get32(bytes + 4);
    if (format != COMMAND_FORMAT)
        return err_set(e, ERR_PROTOCOL,
                       "registry command of format %u: this build knows %u; upgrade this node",
                       format, COMMAND_FORMAT);
    if (packed > length - HEADER_BYTES || length - HEADER_BYTES - packed >= ALIGNMENT_BYTES ||
        !zeros(bytes + HEADER_BYTES + packed, length - HEADER_BYTES - packed))
        return err_set(e, ERR_PROTOCOL, "registry command of %zu bytes says it has %u", length,
                       packed);
    Skerry__Registry__Command *m =
        skerry__registry__command__unpack(NULL, packed, bytes + HEADER_BYTES);
    if (m == NULL)
        return err_set(e, ERR_PROTOCOL, "registry command of %zu bytes does not decode", length);
    out->message = m;
    out->session =
        (struct command_session){.node = m->node, .boot = m->boot, .sequence = m->sequence};
    out->body.wall_ms = m->wall_ms;
    const char *fault = NULL;
    if (!codec_known(&m->base) || m->body_case == SKERRY__REGISTRY__COMMAND__BODY__NOT_SET)
        fault = "it has parts that this build does not know; upgrade this node";
    else if (!body_read(out, m))
        fault = "it breaks a bound";
    else
        fault = command_fault(&out->body);
    if (fault == NULL)
        return 0;
    command_free(out);
    return err_set(e, ERR_PROTOCOL, "registry command of %zu bytes: %s", length, fault);
}

void command_free(struct command *c)
{
    if (c->message != NULL)
        skerry__registry__command__free_unpacked(c->message, NULL);
    c->message = NULL;
}
