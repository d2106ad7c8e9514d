/* The bounds of commands, for both directions: what is encoded and what was decoded. */
#include <string.h>

#include "base/domain.h"
#include "raft/codec.h"
#include "raft/command.h"

static bool cluster_id_valid(const char *id)
{
    return id != NULL && strlen(id) == 16 && strspn(id, "0123456789abcdef") == 16;
}

static bool name_valid(const char *name)
{
    return name != NULL && workload_name_valid(name, strlen(name));
}

/* A host name's label: names of nodes are shown, logged and written into files. */
static bool node_name_valid(const char *name)
{
    size_t length = strlen(name);
    return length > 0 && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == length &&
           name[0] != '-' && name[length - 1] != '-';
}

/* An address with a port, which those who dial it check; here: that it can be shown. */
static bool node_address_valid(const char *address)
{
    return address[strspn(address, "abcdefghijklmnopqrstuvwxyz0123456789-.:[]%")] == '\0';
}

static bool zeros(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != 0)
            return false;
    return true;
}

static bool gossip_key_valid(const uint8_t *key)
{
    return key != NULL && !zeros(key, REGISTRY_GOSSIP_KEY_BYTES);
}

static bool token_id_valid(const struct registry_token *t)
{
    return t != NULL && codec_text_ended(t->id, sizeof t->id) && strlen(t->id) == 16;
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
    return token_id_valid(t) && (unsigned)t->role <= TOKEN_ROLE_NODE &&
           codec_text_ended(t->workload, sizeof t->workload) &&
           codec_text_ended(t->instance, sizeof t->instance) &&
           codec_text_ended(t->name, sizeof t->name);
}

static bool image_valid(const struct registry_image *i)
{
    return i != NULL && codec_text_ended(i->name, sizeof i->name) && i->name[0] != '\0' &&
           codec_text_ended(i->digest, sizeof i->digest);
}

static const char *node_texts_fault(const struct registry_node *n, bool all)
{
    if (n == NULL || !codec_text_ended(n->name, sizeof n->name) ||
        !codec_text_ended(n->address, sizeof n->address))
        return "which node?";
    if ((all || n->name[0] != '\0') && !node_name_valid(n->name))
        return "the name of a node is a-z, 0-9 and -, at most 63, no - first or last";
    if (!node_address_valid(n->address))
        return "the address of a node is a host and a port";
    return NULL;
}

static const char *join_fault(const struct registry_command *c)
{
    const char *fault = node_texts_fault(c->node, true);
    if (fault != NULL)
        return fault;
    if (c->node->address[0] == '\0')
        return "a node that joins needs an address";
    if (zeros(c->node->public_key, sizeof c->node->public_key))
        return "a node that joins needs a key";
    return token_id_valid(c->token) ? NULL : "a node joins with a token";
}

static const char *keyring_fault(const struct registry_command *c)
{
    if (!gossip_key_valid(c->gossip_key))
        return "a gossip key has 32 bytes, not all zero";
    return c->keyring_verb >= REGISTRY_KEYRING_ADD && c->keyring_verb <= REGISTRY_KEYRING_REMOVE
               ? NULL
               : "a gossip key is added, used or removed";
}

static bool ssh_key_valid(const struct registry_ssh_key *k)
{
    return k != NULL && codec_text_ended(k->id, sizeof k->id) && strlen(k->id) == 16 &&
           codec_text_ended(k->workload, sizeof k->workload) &&
           (k->workload[0] == '\0' || name_valid(k->workload)) &&
           codec_text_ended(k->name, sizeof k->name) && k->blob_length > 0 &&
           k->blob_length <= sizeof k->blob;
}

/* Of the commands about SSH. */
static const char *ssh_fault(const struct registry_command *c)
{
    if (c->kind == REGISTRY_SSH_KEY_PUT)
        return ssh_key_valid(c->ssh_key) ? NULL
                                         : "an SSH key needs an id of 16 characters and a blob";
    if (c->kind == REGISTRY_SSH_KEY_REMOVE)
        return c->ssh_key != NULL && codec_text_ended(c->ssh_key->id, sizeof c->ssh_key->id)
                   ? NULL
                   : "which SSH key?";
    return c->ssh_seed != NULL && !zeros(c->ssh_seed, REGISTRY_SSH_SEED_BYTES)
               ? NULL
               : "the host key of SSH has a seed of 32 bytes, not all zero";
}

/* Of the commands about domains and tickets. */
static const char *route_fault(const struct registry_command *c)
{
    const struct registry_domain *d = c->domain;
    if (c->kind == REGISTRY_TICKET_USE)
        return c->ticket != NULL && c->ticket->expires_wall_ms != 0 ? NULL : "which ticket?";
    if (d == NULL || !codec_text_ended(d->name, sizeof d->name))
        return "which domain?";
    if (c->kind == REGISTRY_DOMAIN_REMOVE)
        return NULL;
    return domain_valid(d->name) && codec_text_ended(d->workload, sizeof d->workload) &&
                   name_valid(d->workload)
               ? NULL
               : "a domain needs a valid name and a workload";
}

/* Of the commands about one node. */
static const char *node_fault(const struct registry_command *c)
{
    if (c->kind == REGISTRY_NODE_PUT)
        return node_texts_fault(c->node, c->node != NULL && c->node->id == 0);
    if (c->kind == REGISTRY_NODE_JOIN)
        return join_fault(c);
    if (c->node == NULL || c->node->id == 0)
        return "which node?";
    return c->kind != REGISTRY_NODE_REMOVE || gossip_key_valid(c->gossip_key)
               ? NULL
               : "a removal needs a new gossip key of 32 bytes, not all zero";
}

const char *command_fault(const struct registry_command *c)
{
    switch (c->kind) {
    case REGISTRY_CLUSTER_INIT:
        if (c->gossip_key != NULL && !gossip_key_valid(c->gossip_key))
            return "a gossip key has 32 bytes, not all zero";
        return cluster_id_valid(c->cluster_id) ? NULL : "a cluster id is 16 hex characters";
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
    case REGISTRY_NODE_PUT:
    case REGISTRY_NODE_JOIN:
    case REGISTRY_NODE_REMOVE:
    case REGISTRY_NODE_DRAIN:
    case REGISTRY_LEASE_GRANT:
    case REGISTRY_LEASE_EXPIRE:
        return node_fault(c);
    case REGISTRY_KEYRING:
        return keyring_fault(c);
    case REGISTRY_SSH_KEY_PUT:
    case REGISTRY_SSH_KEY_REMOVE:
    case REGISTRY_SSH_HOST_KEY:
        return ssh_fault(c);
    case REGISTRY_DOMAIN_PUT:
    case REGISTRY_DOMAIN_REMOVE:
    case REGISTRY_TICKET_USE:
        return route_fault(c);
    }
    return "its kind is unknown";
}
