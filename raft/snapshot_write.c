/* Writing snapshots. */
#include "raft/snapshot.h"

#include <lz4frame.h>
#include <string.h>

#include "base/memory.h"
#include "raft/codec.h"
#include "raft/state_parts.h"

struct writer {
    struct buffer *out;
    LZ4F_cctx *lz4;
    struct buffer stage;
    uint64_t records;
    bool failed;
};

static const LZ4F_preferences_t preferences = {
    .frameInfo = {.blockSizeID = LZ4F_max64KB, .contentChecksumFlag = LZ4F_contentChecksumEnabled},
};

/* Room for what lz4 may write for `length` bytes; NULL at the bound. */
static char *room(struct writer *w, size_t length, size_t *size)
{
    *size = LZ4F_compressBound(length, &preferences);
    if (!buffer_reserve(w->out, *size))
        return NULL;
    return w->out->data + w->out->length;
}

static bool wrote(struct writer *w, size_t result)
{
    if (LZ4F_isError(result))
        return false;
    w->out->length += result;
    return true;
}

static bool flush(struct writer *w)
{
    size_t size;
    char *to = room(w, w->stage.length, &size);
    if (to == NULL ||
        !wrote(w, LZ4F_compressUpdate(w->lz4, to, size, w->stage.data, w->stage.length, NULL)))
        return false;
    buffer_consume(&w->stage, w->stage.length);
    return true;
}

static bool record_write(struct writer *w, const Skerry__Registry__Record *record)
{
    size_t length = skerry__registry__record__get_packed_size(record);
    assert_always(length <= SNAPSHOT_RECORD_BYTES_MAX);
    if (w->stage.length + 4 + length > SNAPSHOT_STAGE_BYTES && w->stage.length > 0 && !flush(w))
        w->failed = true;
    if (w->failed || !buffer_reserve(&w->stage, 4 + length)) {
        w->failed = true;
        return false;
    }
    uint8_t *to = (uint8_t *)w->stage.data + w->stage.length;
    codec_put32(to, (uint32_t)length);
    skerry__registry__record__pack(record, to + 4);
    w->stage.length += 4 + length;
    w->records++;
    return true;
}

/* Each is a visitor of one map. */

static bool node_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Node m;
    codec_node_write(&m, container_of(value, const struct registry_node, value));
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_NODE;
    record.node = &m;
    return record_write(user, &record);
}

static bool workload_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    const struct state_workload *w = container_of(value, const struct state_workload, value);
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Workload m = SKERRY__REGISTRY__WORKLOAD__INIT;
    m.name = codec_borrow(w->name);
    m.version_last = w->version_last;
    m.version_current = w->version_current;
    m.removed_wall_ms = w->removed_wall_ms;
    Skerry__Registry__Usage usage;
    if (w->usage.instances > 0) {
        codec_usage_write(&usage, &w->usage);
        m.usage = &usage;
    }
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_WORKLOAD;
    record.workload = &m;
    return record_write(user, &record);
}

static bool version_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    const struct state_version *v = container_of(value, const struct state_version, workload.value);
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Version m = SKERRY__REGISTRY__VERSION__INIT;
    m.workload = codec_borrow(v->workload.name);
    m.version = v->workload.version;
    m.deployed_wall_ms = v->workload.deployed_wall_ms;
    m.json = v->spec->json;
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_VERSION;
    record.version = &m;
    return record_write(user, &record);
}

static bool instance_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    struct codec_instance m;
    codec_instance_write(&m, container_of(value, const struct registry_instance, value));
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_INSTANCE;
    record.instance = &m.message;
    return record_write(user, &record);
}

static bool token_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Token m;
    codec_token_write(&m, container_of(value, const struct registry_token, value));
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_TOKEN;
    record.token = &m;
    return record_write(user, &record);
}

static bool image_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Image m;
    codec_image_write(&m, container_of(value, const struct registry_image, value));
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_IMAGE;
    record.image = &m;
    return record_write(user, &record);
}

static bool session_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    const struct state_session *s = container_of(value, const struct state_session, value);
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Session m = SKERRY__REGISTRY__SESSION__INIT;
    m.node = s->node;
    m.boot = s->boot;
    m.sequence_last = s->sequence_last;
    m.opened_index = s->opened_index;
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_SESSION;
    record.session = &m;
    return record_write(user, &record);
}

static bool result_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    const struct state_result *s = container_of(value, const struct state_result, value);
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Result m = SKERRY__REGISTRY__RESULT__INIT;
    m.node = s->asked.node;
    m.boot = s->asked.boot;
    m.sequence = s->asked.sequence;
    m.problem = (uint32_t)s->result.problem;
    m.detail = codec_borrow(s->result.detail);
    m.index = s->result.index;
    m.version = s->result.version;
    m.changed = s->result.changed;
    m.epoch = s->result.epoch;
    m.existing = codec_borrow(s->result.existing.text);
    m.new_node = s->result.node;
    m.replaced = s->result.replaced;
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_RESULT;
    record.result = &m;
    return record_write(user, &record);
}

static bool header_write(struct writer *w, const struct state_content *c)
{
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Header m = SKERRY__REGISTRY__HEADER__INIT;
    m.index = c->index;
    m.feature_level = c->feature_level;
    m.cluster_id = codec_borrow(c->cluster_id);
    m.node_id_next = c->node_id_next;
    m.generation = c->generation;
    m.epoch_sequence = c->epoch_sequence;
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_HEADER;
    record.header = &m;
    return record_write(w, &record);
}

static bool keyring_write(struct writer *w, const struct state_content *c)
{
    for (uint32_t i = 0; i < c->keyring_count; i++) {
        Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
        Skerry__Registry__GossipKey m = SKERRY__REGISTRY__GOSSIP_KEY__INIT;
        m.key.data = (uint8_t *)(uintptr_t)c->keyring[i].bytes;
        m.key.len = sizeof c->keyring[i].bytes;
        m.used = c->keyring[i].used;
        record.body_case = SKERRY__REGISTRY__RECORD__BODY_GOSSIP_KEY;
        record.gossip_key = &m;
        if (!record_write(w, &record))
            return false;
    }
    return true;
}

static bool ssh_key_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__SshKey m;
    codec_ssh_key_write(&m, container_of(value, const struct registry_ssh_key, value));
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_SSH_KEY;
    record.ssh_key = &m;
    return record_write(user, &record);
}

static bool domain_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Domain m;
    codec_domain_write(&m, container_of(value, const struct registry_domain, value));
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_DOMAIN;
    record.domain = &m;
    return record_write(user, &record);
}

static bool ticket_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__Ticket m;
    codec_ticket_write(&m, &container_of(value, const struct state_ticket, value)->ticket);
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_TICKET;
    record.ticket = &m;
    return record_write(user, &record);
}

static bool ssh_seed_write(struct writer *w, const struct state_content *c)
{
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__SshHostKey m = SKERRY__REGISTRY__SSH_HOST_KEY__INIT;
    if (!c->ssh_seed_made)
        return true;
    m.seed.data = (uint8_t *)(uintptr_t)c->ssh_seed;
    m.seed.len = sizeof c->ssh_seed;
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_SSH_HOST_KEY;
    record.ssh_host_key = &m;
    return record_write(w, &record);
}

static bool end_write(struct writer *w)
{
    Skerry__Registry__Record record = SKERRY__REGISTRY__RECORD__INIT;
    Skerry__Registry__End m = SKERRY__REGISTRY__END__INIT;
    m.records = w->records;
    record.body_case = SKERRY__REGISTRY__RECORD__BODY_END;
    record.end = &m;
    return record_write(w, &record);
}

/* STATE_KEYS, STATE_OWNED and STATE_ENDED follow from the instances, STATE_WORKLOAD_DOMAINS from the domains. What refers to another stands after it. */
static const struct {
    enum state_map map;
    bool (*visit)(void *user, const void *key, size_t key_length, struct map_value *value);
} parts[] = {
    {STATE_NODES, node_visit},       {STATE_WORKLOADS, workload_visit},
    {STATE_VERSIONS, version_visit}, {STATE_INSTANCES, instance_visit},
    {STATE_TOKENS, token_visit},     {STATE_IMAGES, image_visit},
    {STATE_SESSIONS, session_visit}, {STATE_RESULTS, result_visit},
    {STATE_SSH_KEYS, ssh_key_visit}, {STATE_DOMAINS, domain_visit},
    {STATE_TICKETS, ticket_visit},
};

static bool content_write(struct writer *w, const struct state_content *c)
{
    size_t size;
    char *to = room(w, 0, &size);
    if (to == NULL || !wrote(w, LZ4F_compressBegin(w->lz4, to, size, &preferences)) ||
        !header_write(w, c) || !keyring_write(w, c) || !ssh_seed_write(w, c))
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(parts) && !w->failed; i++)
        map_walk(&c->maps[parts[i].map], NULL, 0, parts[i].visit, w);
    if (w->failed || !end_write(w) || !flush(w))
        return false;
    to = room(w, 0, &size);
    return to != NULL && wrote(w, LZ4F_compressEnd(w->lz4, to, size, NULL));
}

int snapshot_encode(const struct state_content *content, struct buffer *out, struct err *e)
{
    struct writer w = {.out = out};
    uint8_t header[SNAPSHOT_HEADER_BYTES] = {0};
    memcpy(header, SNAPSHOT_MAGIC, 8);
    codec_put32(header + 8, SNAPSHOT_FORMAT);
    buffer_init(&w.stage, SNAPSHOT_STAGE_BYTES + 4 + SNAPSHOT_RECORD_BYTES_MAX);
    bool done = !LZ4F_isError(LZ4F_createCompressionContext(&w.lz4, LZ4F_VERSION)) &&
                buffer_append(out, header, sizeof header) && content_write(&w, content);
    LZ4F_freeCompressionContext(w.lz4);
    buffer_free(&w.stage);
    if (!done)
        return err_set(e, ERR_NO_MEMORY,
                       "snapshot of %zu instances: no memory, or more than %zu bytes",
                       content->maps[STATE_INSTANCES].count, out->length_max);
    return 0;
}
