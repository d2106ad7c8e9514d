#include "raft/codec.h"

#include <string.h>

#include "base/memory.h"

bool codec_known(const ProtobufCMessage *message)
{
    if (message->n_unknown_fields > 0)
        return false;
    const ProtobufCMessageDescriptor *descriptor = message->descriptor;
    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &descriptor->fields[i];
        if (field->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        /* No message of the registry repeats a field. */
        assert_always(field->label != PROTOBUF_C_LABEL_REPEATED);
        const char *base = (const char *)message;
        if ((field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0) {
            uint32_t which;
            memcpy(&which, base + field->quantifier_offset, sizeof which);
            if (which != field->id)
                continue;
        }
        const ProtobufCMessage *inner;
        memcpy(&inner, base + field->offset, sizeof inner);
        if (inner != NULL && !codec_known(inner))
            return false;
    }
    return true;
}

bool codec_text_read(char *out, size_t size, const char *in)
{
    return text_copy(out, size, in);
}

bool codec_text_ended(const char *text, size_t size)
{
    return memchr(text, '\0', size) != NULL;
}

static bool bytes_read(uint8_t *out, size_t size, const ProtobufCBinaryData *in)
{
    if (in->len != size)
        return false;
    memcpy(out, in->data, size);
    return true;
}

void codec_node_write(Skerry__Registry__Node *out, const struct registry_node *node)
{
    skerry__registry__node__init(out);
    out->id = node->id;
    out->name = codec_borrow(node->name);
    out->public_key.data = (uint8_t *)(uintptr_t)node->public_key;
    out->public_key.len = sizeof node->public_key;
    out->address = codec_borrow(node->address);
    out->draining = node->draining;
    out->leased = node->leased;
    out->lease_epoch = node->lease_epoch;
}

bool codec_node_read(struct registry_node *out, const Skerry__Registry__Node *in)
{
    *out = (struct registry_node){.id = in->id,
                                  .draining = in->draining,
                                  .leased = in->leased,
                                  .lease_epoch = in->lease_epoch};
    return codec_text_read(out->name, sizeof out->name, in->name) &&
           codec_text_read(out->address, sizeof out->address, in->address) &&
           bytes_read(out->public_key, sizeof out->public_key, &in->public_key);
}

void codec_usage_write(Skerry__Registry__Usage *out, const struct registry_usage *usage)
{
    skerry__registry__usage__init(out);
    out->wall_us = usage->wall_us;
    out->cpu_us = usage->cpu_us;
    out->memory_peak_bytes = usage->memory_peak_bytes;
    out->memory_kib_ms = usage->memory_kib_ms;
    out->network_in_bytes = usage->network_in_bytes;
    out->network_out_bytes = usage->network_out_bytes;
    out->instances = usage->instances;
}

void codec_usage_read(struct registry_usage *out, const Skerry__Registry__Usage *in)
{
    *out = (struct registry_usage){0};
    if (in == NULL)
        return;
    *out = (struct registry_usage){.wall_us = in->wall_us,
                                   .cpu_us = in->cpu_us,
                                   .memory_peak_bytes = in->memory_peak_bytes,
                                   .memory_kib_ms = in->memory_kib_ms,
                                   .network_in_bytes = in->network_in_bytes,
                                   .network_out_bytes = in->network_out_bytes,
                                   .instances = in->instances};
}

void codec_instance_write(struct codec_instance *out, const struct registry_instance *instance)
{
    Skerry__Registry__Instance *m = &out->message;
    skerry__registry__instance__init(m);
    skerry__registry__marks__init(&out->marks);
    m->id = codec_borrow(instance->id.text);
    m->workload = codec_borrow(instance->workload);
    m->version = instance->version;
    m->owner = instance->owner;
    m->epoch = instance->epoch;
    m->state = (uint32_t)instance->state;
    m->reason = (uint32_t)instance->reason;
    m->exit_code = instance->exit_code;
    m->signal = instance->signal;
    m->key = codec_borrow(instance->key);
    m->started_wall_ms = instance->started_wall_ms;
    m->ended_wall_ms = instance->ended_wall_ms;
    out->marks.reserved_us = instance->marks.reserved_us;
    out->marks.sandbox_us = instance->marks.sandbox_us;
    out->marks.ready_us = instance->marks.ready_us;
    out->marks.ended_us = instance->marks.ended_us;
    m->marks = &out->marks;
    m->joins = instance->joins;
    m->joiners_peak = instance->joiners_peak;
    m->detail = codec_borrow(instance->detail);
    m->asked_by = codec_borrow(instance->asked_by);
    static const struct registry_usage nothing;
    if (memcmp(&instance->usage, &nothing, sizeof nothing) == 0)
        return;
    codec_usage_write(&out->usage, &instance->usage);
    m->usage = &out->usage;
}

bool codec_instance_read(struct registry_instance *out, const Skerry__Registry__Instance *in)
{
    if (in->state >= INSTANCE_STATE_COUNT || in->reason >= END_REASON_COUNT)
        return false;
    *out = (struct registry_instance){
        .version = in->version,
        .owner = in->owner,
        .epoch = in->epoch,
        .state = (enum instance_state)in->state,
        .reason = (enum end_reason)in->reason,
        .exit_code = in->exit_code,
        .signal = in->signal,
        .started_wall_ms = in->started_wall_ms,
        .ended_wall_ms = in->ended_wall_ms,
        .joins = in->joins,
        .joiners_peak = in->joiners_peak,
    };
    if (in->marks != NULL)
        out->marks = (struct registry_marks){.reserved_us = in->marks->reserved_us,
                                             .sandbox_us = in->marks->sandbox_us,
                                             .ready_us = in->marks->ready_us,
                                             .ended_us = in->marks->ended_us};
    codec_usage_read(&out->usage, in->usage);
    return instance_id_parse(&out->id, in->id, strlen(in->id)) &&
           codec_text_read(out->workload, sizeof out->workload, in->workload) &&
           codec_text_read(out->key, sizeof out->key, in->key) &&
           codec_text_read(out->detail, sizeof out->detail, in->detail) &&
           codec_text_read(out->asked_by, sizeof out->asked_by, in->asked_by);
}

void codec_token_write(Skerry__Registry__Token *out, const struct registry_token *token)
{
    skerry__registry__token__init(out);
    out->id = codec_borrow(token->id);
    out->hash.data = (uint8_t *)(uintptr_t)token->hash;
    out->hash.len = sizeof token->hash;
    out->role = (uint32_t)token->role;
    out->workload = codec_borrow(token->workload);
    out->instance = codec_borrow(token->instance);
    out->name = codec_borrow(token->name);
    out->created_wall_ms = token->created_wall_ms;
    out->expires_wall_ms = token->expires_wall_ms;
}

bool codec_token_read(struct registry_token *out, const Skerry__Registry__Token *in)
{
    if (in->role > TOKEN_ROLE_NODE)
        return false;
    *out = (struct registry_token){
        .role = (enum token_role)in->role,
        .created_wall_ms = in->created_wall_ms,
        .expires_wall_ms = in->expires_wall_ms,
    };
    return codec_text_read(out->id, sizeof out->id, in->id) &&
           bytes_read(out->hash, sizeof out->hash, &in->hash) &&
           codec_text_read(out->workload, sizeof out->workload, in->workload) &&
           codec_text_read(out->instance, sizeof out->instance, in->instance) &&
           codec_text_read(out->name, sizeof out->name, in->name);
}

void codec_ssh_key_write(Skerry__Registry__SshKey *out, const struct registry_ssh_key *key)
{
    skerry__registry__ssh_key__init(out);
    out->id = codec_borrow(key->id);
    out->blob.data = (uint8_t *)(uintptr_t)key->blob;
    out->blob.len = key->blob_length;
    out->workload = codec_borrow(key->workload);
    out->name = codec_borrow(key->name);
    out->created_wall_ms = key->created_wall_ms;
}

bool codec_ssh_key_read(struct registry_ssh_key *out, const Skerry__Registry__SshKey *in)
{
    if (in->blob.len > sizeof out->blob)
        return false;
    *out = (struct registry_ssh_key){.created_wall_ms = in->created_wall_ms,
                                     .blob_length = (uint16_t)in->blob.len};
    if (in->blob.len > 0)
        memcpy(out->blob, in->blob.data, in->blob.len);
    return codec_text_read(out->id, sizeof out->id, in->id) &&
           codec_text_read(out->workload, sizeof out->workload, in->workload) &&
           codec_text_read(out->name, sizeof out->name, in->name);
}

void codec_domain_write(Skerry__Registry__Domain *out, const struct registry_domain *domain)
{
    skerry__registry__domain__init(out);
    out->name = codec_borrow(domain->name);
    out->workload = codec_borrow(domain->workload);
    out->created_wall_ms = domain->created_wall_ms;
}

bool codec_domain_read(struct registry_domain *out, const Skerry__Registry__Domain *in)
{
    *out = (struct registry_domain){.created_wall_ms = in->created_wall_ms};
    return codec_text_read(out->name, sizeof out->name, in->name) &&
           codec_text_read(out->workload, sizeof out->workload, in->workload);
}

void codec_ticket_write(Skerry__Registry__Ticket *out, const struct registry_ticket *ticket)
{
    skerry__registry__ticket__init(out);
    out->nonce.data = (uint8_t *)(uintptr_t)ticket->nonce;
    out->nonce.len = sizeof ticket->nonce;
    out->expires_wall_ms = ticket->expires_wall_ms;
}

bool codec_ticket_read(struct registry_ticket *out, const Skerry__Registry__Ticket *in)
{
    *out = (struct registry_ticket){.expires_wall_ms = in->expires_wall_ms};
    if (in->nonce.len != sizeof out->nonce)
        return false;
    memcpy(out->nonce, in->nonce.data, sizeof out->nonce);
    return true;
}

void codec_image_write(Skerry__Registry__Image *out, const struct registry_image *image)
{
    skerry__registry__image__init(out);
    out->name = codec_borrow(image->name);
    out->digest = codec_borrow(image->digest);
    out->bytes = image->bytes;
    out->files = image->files;
    out->imported_wall_ms = image->imported_wall_ms;
}

bool codec_image_read(struct registry_image *out, const Skerry__Registry__Image *in)
{
    *out = (struct registry_image){
        .bytes = in->bytes, .files = in->files, .imported_wall_ms = in->imported_wall_ms};
    return codec_text_read(out->name, sizeof out->name, in->name) &&
           codec_text_read(out->digest, sizeof out->digest, in->digest);
}
