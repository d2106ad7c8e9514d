/* Reading snapshots: what was written by another build, or damaged, is refused and leaves nothing. */
#include "raft/snapshot.h"

#include <lz4frame.h>
#include <string.h>

#include "base/domain.h"
#include "base/memory.h"
#include "raft/codec.h"
#include "raft/state_parts.h"

struct reader {
    struct state_content *c;
    uint64_t records;
    bool started, ended, complete;
    struct err *e;
};

static int damaged(struct reader *r, const char *what)
{
    return err_set(r->e, ERR_PROTOCOL, "record %llu of the snapshot is damaged: %s",
                   (unsigned long long)r->records, what);
}

static int header_read(struct reader *r, const Skerry__Registry__Header *m)
{
    struct state_content *c = r->c;
    if (r->started)
        return damaged(r, "a second header");
    if (m->feature_level > STATE_FEATURE_LEVEL)
        return err_set(r->e, ERR_UNSUPPORTED,
                       "the snapshot has feature level %u: this build has %u; upgrade this node",
                       m->feature_level, STATE_FEATURE_LEVEL);
    c->index = m->index;
    c->feature_level = m->feature_level;
    c->node_id_next = m->node_id_next;
    c->generation = m->generation;
    c->epoch_sequence = m->epoch_sequence;
    r->started = true;
    if (!codec_text_read(c->cluster_id, sizeof c->cluster_id, m->cluster_id) ||
        c->node_id_next == 0 || c->generation == 0 ||
        c->generation >> (64 - STATE_EPOCH_SEQUENCE_BITS) != 0 ||
        c->epoch_sequence >> STATE_EPOCH_SEQUENCE_BITS != 0)
        return damaged(r, "the header");
    return 0;
}

static uint64_t epoch_last(const struct reader *r)
{
    return r->c->generation << STATE_EPOCH_SEQUENCE_BITS | r->c->epoch_sequence;
}

static int node_read(struct reader *r, const Skerry__Registry__Node *m)
{
    struct registry_node node;
    if (!codec_node_read(&node, m) || node.id == 0 || node.id >= r->c->node_id_next ||
        state_node(r->c, node.id) != NULL || node.lease_epoch > epoch_last(r) ||
        (node.leased && node.lease_epoch == 0))
        return damaged(r, "a node");
    if (r->c->maps[STATE_NODES].count >= STATE_NODES_MAX)
        return damaged(r, "too many nodes");
    return state_node_put(r->c, &node, r->e);
}

static int gossip_key_read(struct reader *r, const Skerry__Registry__GossipKey *m)
{
    struct state_content *c = r->c;
    uint32_t before = c->keyring_count;
    if (m->key.len != REGISTRY_GOSSIP_KEY_BYTES || before == REGISTRY_KEYRING_MAX)
        return damaged(r, "a gossip key");
    for (uint32_t i = 0; i < before; i++)
        if (m->used && c->keyring[i].used)
            return damaged(r, "two gossip keys are used");
    state_keyring_put(c, m->key.data, m->used);
    return c->keyring_count == before + 1 ? 0 : damaged(r, "a gossip key stands twice");
}

static int token_read(struct reader *r, const Skerry__Registry__Token *m)
{
    struct registry_token token;
    return codec_token_read(&token, m) ? state_token_put(r->c, &token, r->e)
                                       : damaged(r, "a token");
}

static int ssh_key_read(struct reader *r, const Skerry__Registry__SshKey *m)
{
    struct registry_ssh_key key;
    if (!codec_ssh_key_read(&key, m) || key.blob_length == 0 || key.id[0] == '\0')
        return damaged(r, "an SSH key");
    return state_ssh_key_put(r->c, &key, r->e);
}

static int ssh_seed_read(struct reader *r, const Skerry__Registry__SshHostKey *m)
{
    struct state_content *c = r->c;
    if (m->seed.len != sizeof c->ssh_seed || c->ssh_seed_made)
        return damaged(r, "the host key of SSH");
    memcpy(c->ssh_seed, m->seed.data, sizeof c->ssh_seed);
    c->ssh_seed_made = true;
    return 0;
}

static int domain_read(struct reader *r, const Skerry__Registry__Domain *m)
{
    struct registry_domain domain;
    const struct state_workload *w = NULL;
    if (codec_domain_read(&domain, m) && domain_valid(domain.name))
        w = state_workload(r->c, domain.workload);
    if (w == NULL || w->version_current == 0 || state_domain(r->c, domain.name) != NULL)
        return damaged(r, "a domain");
    w = state_workload(r->c, domain.name);
    if (w != NULL && w->version_current != 0)
        return damaged(r, "an alias that is a workload's name");
    return state_domain_put(r->c, &domain, r->e);
}

static int ticket_read(struct reader *r, const Skerry__Registry__Ticket *m)
{
    struct registry_ticket ticket;
    return codec_ticket_read(&ticket, m) ? state_ticket_put(r->c, &ticket, r->e)
                                         : damaged(r, "a ticket");
}

static int image_read(struct reader *r, const Skerry__Registry__Image *m)
{
    struct registry_image image;
    return codec_image_read(&image, m) ? state_image_put(r->c, &image, r->e)
                                       : damaged(r, "an image");
}

static int workload_read(struct reader *r, const Skerry__Registry__Workload *m)
{
    struct state_workload w = {.version_last = m->version_last,
                               .version_current = m->version_current,
                               .removed_wall_ms = m->removed_wall_ms};
    codec_usage_read(&w.usage, m->usage);
    if (!codec_text_read(w.name, sizeof w.name, m->name) || w.version_current > w.version_last)
        return damaged(r, "a workload");
    if (r->c->maps[STATE_DOMAINS].count > 0)
        return damaged(r, "a workload behind a domain");
    if (r->c->maps[STATE_WORKLOADS].count >= STATE_WORKLOADS_MAX * 2)
        return damaged(r, "too many workloads");
    return state_workload_put(r->c, &w, r->e);
}

static int version_read(struct reader *r, const Skerry__Registry__Version *m)
{
    struct registry_workload v = {.version = m->version, .deployed_wall_ms = m->deployed_wall_ms};
    const struct state_workload *w = NULL;
    if (codec_text_read(v.name, sizeof v.name, m->workload))
        w = state_workload(r->c, v.name);
    if (w == NULL || v.version == 0 || v.version > w->version_last ||
        state_version(r->c, v.name, v.version) != NULL)
        return damaged(r, "a version without its workload");
    struct state_spec *spec;
    int rc = state_spec_new(&spec, m->json, r->e);
    if (rc < 0)
        return err_wrap(r->e, "version %llu of %s in the snapshot", (unsigned long long)v.version,
                        v.name);
    if (strcmp(spec->spec.id, v.name) != 0)
        rc = damaged(r, "a version of another name");
    else
        rc = state_version_add(r->c, &v, spec, r->e);
    map_value_drop(&spec->value);
    return rc;
}

static bool instance_plausible(const struct reader *r, const struct registry_instance *i)
{
    return i->state != INSTANCE_STATE_NONE && i->owner == instance_id_owner(&i->id) &&
           i->epoch <= epoch_last(r) && state_instance(r->c, &i->id) == NULL;
}

/* Counts in place: nobody else has this state yet. */
static int live_count(struct reader *r, const struct registry_instance *i, struct state_workload *w)
{
    struct state_map_key key = {0};
    state_key_text(&key, i->workload);
    state_key_u64(&key, i->version);
    struct map_value *version = state_get(r->c, STATE_VERSIONS, &key);
    if (version != NULL)
        container_of(version, struct state_version, workload.value)->workload.live++;
    else if (i->workload[0] != '\0')
        return damaged(r, "an instance without its version");
    if (i->key[0] != '\0' && state_key_holder(r->c, i) != NULL)
        return damaged(r, "a key with two holders");
    w->live++;
    r->c->live++;
    return 0;
}

static int instance_read(struct reader *r, const Skerry__Registry__Instance *m)
{
    struct registry_instance i;
    if (!codec_instance_read(&i, m) || !instance_plausible(r, &i))
        return damaged(r, "an instance");
    struct state_map_key key = {0};
    state_key_bytes(&key, i.workload, strlen(i.workload));
    struct map_value *workload = state_get(r->c, STATE_WORKLOADS, &key);
    if (workload == NULL)
        return damaged(r, "an instance without its workload");
    struct state_workload *w = container_of(workload, struct state_workload, value);
    int rc = 0;
    if (i.state == INSTANCE_STATE_ENDED)
        w->ended++;
    else
        rc = live_count(r, &i, w);
    return rc < 0 ? rc : state_instance_link(r->c, &i, r->e);
}

static int session_read(struct reader *r, const Skerry__Registry__Session *m)
{
    const struct state_session s = {.node = m->node,
                                    .boot = m->boot,
                                    .sequence_last = m->sequence_last,
                                    .opened_index = m->opened_index};
    return state_session_put(r->c, &s, r->e);
}

static int result_read(struct reader *r, const Skerry__Registry__Result *m)
{
    const struct command_session asked = {
        .node = m->node, .boot = m->boot, .sequence = m->sequence};
    struct registry_result result = {.problem = (enum problem)m->problem,
                                     .index = m->index,
                                     .version = m->version,
                                     .changed = m->changed,
                                     .epoch = m->epoch,
                                     .node = m->new_node,
                                     .replaced = m->replaced};
    if (m->problem >= PROBLEM_COUNT ||
        !codec_text_read(result.detail, sizeof result.detail, m->detail) ||
        !codec_text_read(result.existing.text, sizeof result.existing.text, m->existing) ||
        !state_session_knows(r->c, &asked))
        return damaged(r, "a result");
    return state_result_put(r->c, &asked, &result, r->e);
}

static int end_read(struct reader *r, const Skerry__Registry__End *m)
{
    r->ended = true;
    return m->records == r->records ? 0 : damaged(r, "records are missing");
}

static int record_read(struct reader *r, const Skerry__Registry__Record *m)
{
    bool header = m->body_case == SKERRY__REGISTRY__RECORD__BODY_HEADER;
    if (!r->started && !header)
        return damaged(r, "the header is missing");
    switch (m->body_case) {
    case SKERRY__REGISTRY__RECORD__BODY_HEADER:
        return header_read(r, m->header);
    case SKERRY__REGISTRY__RECORD__BODY_NODE:
        return node_read(r, m->node);
    case SKERRY__REGISTRY__RECORD__BODY_WORKLOAD:
        return workload_read(r, m->workload);
    case SKERRY__REGISTRY__RECORD__BODY_VERSION:
        return version_read(r, m->version);
    case SKERRY__REGISTRY__RECORD__BODY_INSTANCE:
        return instance_read(r, m->instance);
    case SKERRY__REGISTRY__RECORD__BODY_TOKEN:
        return token_read(r, m->token);
    case SKERRY__REGISTRY__RECORD__BODY_IMAGE:
        return image_read(r, m->image);
    case SKERRY__REGISTRY__RECORD__BODY_SESSION:
        return session_read(r, m->session);
    case SKERRY__REGISTRY__RECORD__BODY_RESULT:
        return result_read(r, m->result);
    case SKERRY__REGISTRY__RECORD__BODY_GOSSIP_KEY:
        return gossip_key_read(r, m->gossip_key);
    case SKERRY__REGISTRY__RECORD__BODY_SSH_KEY:
        return ssh_key_read(r, m->ssh_key);
    case SKERRY__REGISTRY__RECORD__BODY_SSH_HOST_KEY:
        return ssh_seed_read(r, m->ssh_host_key);
    case SKERRY__REGISTRY__RECORD__BODY_DOMAIN:
        return domain_read(r, m->domain);
    case SKERRY__REGISTRY__RECORD__BODY_TICKET:
        return ticket_read(r, m->ticket);
    case SKERRY__REGISTRY__RECORD__BODY_END:
        return end_read(r, m->end);
    case SKERRY__REGISTRY__RECORD__BODY__NOT_SET:
    case _SKERRY__REGISTRY__RECORD__BODY__CASE_IS_INT_SIZE:
        break;
    }
    return damaged(r, "its kind is unknown");
}

static int record_bytes_read(struct reader *r, const uint8_t *bytes, size_t length)
{
    if (r->ended)
        return damaged(r, "it stands behind the end");
    Skerry__Registry__Record *m = skerry__registry__record__unpack(NULL, length, bytes);
    if (m == NULL)
        return damaged(r, "it does not decode");
    int rc = codec_known(&m->base) ? record_read(r, m)
                                   : damaged(r, "it has parts that this build does not know");
    skerry__registry__record__free_unpacked(m, NULL);
    r->records++;
    return rc;
}

/* Takes whole records off the front of `pending`. */
static int records_take(struct reader *r, struct buffer *pending)
{
    size_t at = 0;
    while (pending->length - at >= 4) {
        const uint8_t *bytes = (const uint8_t *)pending->data + at;
        uint32_t length = codec_get32(bytes);
        if (length > SNAPSHOT_RECORD_BYTES_MAX)
            return damaged(r, "it is too long");
        if (pending->length - at - 4 < length)
            break;
        int rc = record_bytes_read(r, bytes + 4, length);
        if (rc < 0)
            return rc;
        at += 4 + (size_t)length;
    }
    buffer_consume(pending, at);
    return 0;
}

static int frame_read(struct reader *r, LZ4F_dctx *lz4, struct buffer *pending,
                      const uint8_t *bytes, size_t length)
{
    for (;;) {
        if (!buffer_reserve(pending, SNAPSHOT_STAGE_BYTES))
            return err_set(r->e, ERR_NO_MEMORY, "the snapshot: no memory");
        size_t out = SNAPSHOT_STAGE_BYTES, in = length;
        size_t more = LZ4F_decompress(lz4, pending->data + pending->length, &out, bytes, &in, NULL);
        if (LZ4F_isError(more))
            return err_set(r->e, ERR_PROTOCOL, "the snapshot is damaged: lz4 says %s",
                           LZ4F_getErrorName(more));
        pending->length += out;
        bytes += in;
        length -= in;
        int rc = records_take(r, pending);
        if (rc < 0)
            return rc;
        if (more == 0)
            break;
        if (in == 0 && out == 0)
            return err_set(r->e, ERR_PROTOCOL, "the snapshot is cut short");
    }
    if (length > 0 || pending->length > 0 || !r->ended)
        return err_set(r->e, ERR_PROTOCOL, "the snapshot does not end where its content does");
    return 0;
}

/* What no single record can tell. */
static bool workload_check(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct reader *r = user;
    (void)key;
    (void)key_length;
    const struct state_workload *w = container_of(value, const struct state_workload, value);
    r->complete =
        w->version_current == 0 || state_version(r->c, w->name, w->version_current) != NULL;
    return r->complete;
}

static int content_check(struct reader *r)
{
    r->complete = true;
    map_walk(&r->c->maps[STATE_WORKLOADS], NULL, 0, workload_check, r);
    if (!r->complete)
        return err_set(r->e, ERR_PROTOCOL, "the snapshot has a workload without its version");
    return 0;
}

int snapshot_decode(struct state_content *out, const void *data, size_t length, struct err *e)
{
    const uint8_t *bytes = data;
    if (length < SNAPSHOT_HEADER_BYTES || memcmp(bytes, SNAPSHOT_MAGIC, 8) != 0)
        return err_set(e, ERR_PROTOCOL, "%zu bytes that are no snapshot of a registry", length);
    if (codec_get32(bytes + 8) != SNAPSHOT_FORMAT || codec_get32(bytes + 12) != 0)
        return err_set(e, ERR_PROTOCOL,
                       "a snapshot of format %u: this build knows %u; upgrade this node",
                       codec_get32(bytes + 8), SNAPSHOT_FORMAT);
    struct state_content content = {0};
    struct reader r = {.c = &content, .e = e};
    struct buffer pending;
    buffer_init(&pending, SNAPSHOT_STAGE_BYTES + 4 + SNAPSHOT_RECORD_BYTES_MAX);
    LZ4F_dctx *lz4 = NULL;
    int rc = LZ4F_isError(LZ4F_createDecompressionContext(&lz4, LZ4F_VERSION))
                 ? err_set(e, ERR_NO_MEMORY, "the snapshot: no memory")
                 : frame_read(&r, lz4, &pending, bytes + SNAPSHOT_HEADER_BYTES,
                              length - SNAPSHOT_HEADER_BYTES);
    if (rc == 0)
        rc = content_check(&r);
    LZ4F_freeDecompressionContext(lz4);
    buffer_free(&pending);
    if (rc < 0)
        state_content_release(&content);
    else
        *out = content;
    return rc;
}
