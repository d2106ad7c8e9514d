#include "raft/command.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/codec.h"

enum { HEADER_BYTES = 8, ALIGNMENT_BYTES = 8 };

/* --- bounds, for both directions ------------------------------------------------------------------ */

static bool cluster_id_valid(const char *id)
{
    return id != NULL && strlen(id) == 16 && strspn(id, "0123456789abcdef") == 16;
}

static bool name_valid(const char *name)
{
    return name != NULL && workload_name_valid(name, strlen(name));
}

static bool node_valid(const struct registry_node *node)
{
    return node != NULL && codec_text_ended(node->name, sizeof node->name) && node->name[0] != '\0';
}

static bool instance_id_valid(const struct registry_instance *i)
{
    struct instance_id parsed;
    return i != NULL && codec_text_ended(i->id.text, sizeof i->id.text) &&
           instance_id_parse(&parsed, i->id.text, strlen(i->id.text));
}

static bool instance_valid(const struct registry_instance *i)
{
    return instance_id_valid(i) && (unsigned)i->state < INSTANCE_STATE_COUNT &&
           (unsigned)i->reason < END_REASON_COUNT &&
           codec_text_ended(i->workload, sizeof i->workload) &&
           codec_text_ended(i->key, sizeof i->key) &&
           codec_text_ended(i->detail, sizeof i->detail) &&
           codec_text_ended(i->asked_by, sizeof i->asked_by);
}

static bool token_valid(const struct registry_token *t)
{
    return t != NULL && codec_text_ended(t->id, sizeof t->id) && strlen(t->id) == 16 &&
           (unsigned)t->role <= TOKEN_ROLE_INVOKE &&
           codec_text_ended(t->workload, sizeof t->workload) &&
           codec_text_ended(t->instance, sizeof t->instance) &&
           codec_text_ended(t->name, sizeof t->name);
}

static bool image_valid(const struct registry_image *i)
{
    return i != NULL && codec_text_ended(i->name, sizeof i->name) && i->name[0] != '\0' &&
           codec_text_ended(i->digest, sizeof i->digest);
}

/* What is wrong with it, or NULL. */
static const char *command_fault(const struct registry_command *c)
{
    switch (c->kind) {
    case REGISTRY_CLUSTER_INIT:
        return cluster_id_valid(c->cluster_id) ? NULL : "a cluster id is 16 hex characters";
    case REGISTRY_NODE_PUT:
        return node_valid(c->node) ? NULL : "a node needs a name";
    case REGISTRY_WORKLOAD_PUT:
        if (c->workload_json == NULL || c->workload_json[0] == '\0')
            return "a workload needs its JSON";
        return strnlen(c->workload_json, COMMAND_WORKLOAD_JSON_MAX + 1) <= COMMAND_WORKLOAD_JSON_MAX
                   ? NULL
                   : "the JSON of a workload is at most 1 MiB";
    case REGISTRY_WORKLOAD_REMOVE:
    case REGISTRY_WORKLOAD_ROLLBACK:
        return name_valid(c->name) ? NULL : "that is not the name of a workload";
    case REGISTRY_INSTANCE_RESERVE:
        if (!instance_valid(c->instance))
            return "an instance needs a valid id and texts that end";
        return c->instance->workload[0] == '\0' || name_valid(c->instance->workload)
                   ? NULL
                   : "that is not the name of a workload";
    case REGISTRY_INSTANCE_UPDATE:
        if (!instance_valid(c->instance))
            return "an instance needs a valid id and texts that end";
        return c->instance->state == INSTANCE_STATE_READY ||
                       c->instance->state == INSTANCE_STATE_DRAINING
                   ? NULL
                   : "an instance becomes ready or draining, nothing else";
    case REGISTRY_INSTANCE_END:
        if (!instance_valid(c->instance))
            return "an instance needs a valid id and texts that end";
        return c->instance->reason != END_NONE ? NULL : "an instance ends for a reason";
    case REGISTRY_SWEEP:
        return NULL;
    case REGISTRY_TOKEN_PUT:
        return token_valid(c->token) ? NULL : "a token needs an id of 16 characters and a role";
    case REGISTRY_TOKEN_REVOKE:
        return c->token != NULL && codec_text_ended(c->token->id, sizeof c->token->id)
                   ? NULL
                   : "which token?";
    case REGISTRY_IMAGE_PUT:
        return image_valid(c->image) ? NULL : "an image needs a name and texts that end";
    case REGISTRY_IMAGE_REMOVE:
        return c->image != NULL && codec_text_ended(c->image->name, sizeof c->image->name)
                   ? NULL
                   : "which image?";
    case REGISTRY_FEATURE_LEVEL:
        return c->version <= UINT32_MAX ? NULL : "a feature level has 32 bits";
    case REGISTRY_NODE_JOIN:
    case REGISTRY_NODE_REMOVE:
    case REGISTRY_NODE_DRAIN:
    case REGISTRY_LEASE_GRANT:
    case REGISTRY_LEASE_EXPIRE:
    case REGISTRY_KEYRING:
        break;
    }
    return "its kind is unknown";
}

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
};

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

static void body_fill(Skerry__Registry__Command *m, struct bodies *b,
                      const struct registry_command *c)
{
    switch (c->kind) {
    case REGISTRY_CLUSTER_INIT:
        skerry__registry__cluster_init__init(&b->cluster_init);
        b->cluster_init.cluster_id = codec_borrow(c->cluster_id);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_CLUSTER_INIT;
        m->cluster_init = &b->cluster_init;
        return;
    case REGISTRY_NODE_PUT:
        codec_node_write(&b->node, c->node);
        m->body_case = SKERRY__REGISTRY__COMMAND__BODY_NODE_PUT;
        m->node_put = &b->node;
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
    case REGISTRY_NODE_JOIN:
    case REGISTRY_NODE_REMOVE:
    case REGISTRY_NODE_DRAIN:
    case REGISTRY_LEASE_GRANT:
    case REGISTRY_LEASE_EXPIRE:
    case REGISTRY_KEYRING:
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

static bool body_read(struct command *out, const Skerry__Registry__Command *m)
{
    struct registry_command *c = &out->body;
    switch (m->body_case) {
    case SKERRY__REGISTRY__COMMAND__BODY_CLUSTER_INIT:
        c->kind = REGISTRY_CLUSTER_INIT;
        c->cluster_id = m->cluster_init->cluster_id;
        return true;
    case SKERRY__REGISTRY__COMMAND__BODY_NODE_PUT:
        c->kind = REGISTRY_NODE_PUT;
        c->node = &out->node;
        return codec_node_read(&out->node, m->node_put);
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
