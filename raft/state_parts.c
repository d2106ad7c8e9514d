/* The maps of the registry: their keys, and access to their values. */
#include "raft/state_parts.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

void state_refuse(struct registry_result *r, enum problem problem, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(r->detail, sizeof r->detail, format, args);
    va_end(args);
    r->problem = problem;
}

void state_key_bytes(struct state_map_key *key, const void *bytes, size_t length)
{
    assert_always(length <= sizeof key->bytes - key->length);
    memcpy(key->bytes + key->length, bytes, length);
    key->length += length;
}

void state_key_text(struct state_map_key *key, const char *text)
{
    state_key_bytes(key, text, strlen(text) + 1);
}

/* Big-endian, so that the order of the bytes is that of the numbers. */
void state_key_u64(struct state_map_key *key, uint64_t number)
{
    unsigned char bytes[8];
    for (unsigned i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(number >> (56 - 8 * i));
    state_key_bytes(key, bytes, sizeof bytes);
}

bool state_key_starts_with(const void *key, size_t key_length, const struct state_map_key *prefix)
{
    return key_length >= prefix->length && memcmp(key, prefix->bytes, prefix->length) == 0;
}

int state_put(struct state_content *c, enum state_map map, const struct state_map_key *key,
              struct map_value *value, struct err *e)
{
    return map_put(&c->maps[map], &c->maps[map], key->bytes, key->length, value, e);
}

int state_put_new(struct state_content *c, enum state_map map, const struct state_map_key *key,
                  struct map_value *value, struct err *e)
{
    if (value == NULL)
        return err_set(e, ERR_NO_MEMORY, "the registry's state: no memory");
    int rc = state_put(c, map, key, value, e);
    map_value_drop(value);
    return rc;
}

int state_remove(struct state_content *c, enum state_map map, const struct state_map_key *key,
                 struct err *e)
{
    return map_remove(&c->maps[map], &c->maps[map], key->bytes, key->length, e);
}

struct map_value *state_get(const struct state_content *c, enum state_map map,
                            const struct state_map_key *key)
{
    return map_get(&c->maps[map], key->bytes, key->length);
}

const struct state_workload *state_workload(const struct state_content *c, const char *name)
{
    struct state_map_key key = {0};
    state_key_bytes(&key, name, strlen(name));
    return (const struct state_workload *)(const void *)state_get(c, STATE_WORKLOADS, &key);
}

const struct state_version *state_version(const struct state_content *c, const char *name,
                                          uint64_t version)
{
    struct state_map_key key = {0};
    state_key_text(&key, name);
    state_key_u64(&key, version);
    return (const struct state_version *)(const void *)state_get(c, STATE_VERSIONS, &key);
}

const struct registry_instance *state_instance(const struct state_content *c,
                                               const struct instance_id *id)
{
    struct state_map_key key = {0};
    state_key_bytes(&key, id->text, strlen(id->text));
    return (const struct registry_instance *)(const void *)state_get(c, STATE_INSTANCES, &key);
}

const struct registry_node *state_node(const struct state_content *c, node_id id)
{
    struct state_map_key key = {0};
    state_key_u64(&key, id);
    const struct map_value *value = state_get(c, STATE_NODES, &key);
    return value == NULL ? NULL : container_of(value, const struct registry_node, value);
}

bool state_epoch_next(struct state_content *c, uint64_t *epoch, struct registry_result *r)
{
    if ((c->epoch_sequence + 1) >> STATE_EPOCH_SEQUENCE_BITS != 0) {
        state_refuse(
            r, PROBLEM_LIMIT_REACHED,
            "generation %llu has no epochs left; skerry operator raft recover begins the next",
            (unsigned long long)c->generation);
        return false;
    }
    c->epoch_sequence++;
    *epoch = c->generation << STATE_EPOCH_SEQUENCE_BITS | c->epoch_sequence;
    return true;
}
