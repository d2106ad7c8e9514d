#include "tests/sim/raft_model.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { WORKLOADS_MAX = 16, VERSIONS_MAX = 1000 };

struct model_instance {
    struct instance_id id;
    uint64_t version;
    uint64_t epoch;
    char workload[WORKLOAD_NAME_LENGTH_MAX + 1];
    char key[REGISTRY_KEY_LENGTH_MAX + 1];
    node_id owner;
};

struct model_workload {
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    bool removed;
    uint64_t max; /* of the current version; 0: unlimited */
    uint64_t max_of[VERSIONS_MAX];
    bool keyed_of[VERSIONS_MAX];
    uint64_t version_last, version_current;
};

struct model {
    struct model_instance *live;
    size_t count, capacity;
    struct model_workload *workloads[WORKLOADS_MAX];
    size_t workload_count;
    uint64_t epoch_last;
};

static struct model_workload *workload_of(struct model *m, const char *name)
{
    for (size_t i = 0; i < m->workload_count; i++)
        if (strcmp(m->workloads[i]->name, name) == 0)
            return m->workloads[i];
    assert_always(m->workload_count < WORKLOADS_MAX);
    struct model_workload *w = calloc(1, sizeof *w);
    assert_always(w != NULL && text_copy(w->name, sizeof w->name, name));
    m->workloads[m->workload_count++] = w;
    return w;
}

static struct model_instance *instance_of(struct model *m, const struct instance_id *id)
{
    for (size_t i = 0; i < m->count; i++)
        if (strcmp(m->live[i].id.text, id->text) == 0)
            return &m->live[i];
    return NULL;
}

static void instance_drop(struct model *m, struct model_instance *i)
{
    *i = m->live[--m->count];
}

static bool deployed(struct model *m, const struct command *c, const struct registry_result *r,
                     char *why, size_t size)
{
    json_t *json = json_loads(c->body.workload_json, 0, NULL);
    assert_always(json != NULL);
    struct model_workload *w = workload_of(m, json_string_value(json_object_get(json, "id")));
    json_t *max = json_object_get(json_object_get(json, "scale"), "max");
    uint64_t value = json_is_integer(max) ? (uint64_t)json_integer_value(max) : 0;
    const char *key = json_string_value(json_object_get(json_object_get(json, "join"), "key"));
    assert_always(r->version < VERSIONS_MAX);
    w->keyed_of[r->version] = key != NULL && key[0] != '\0';
    json_decref(json);
    if (r->changed && r->version <= w->version_last)
        return text_format(why, size, "version %" PRIu64 " of %s was given out twice", r->version,
                           w->name) &&
               false;
    if (r->changed)
        w->version_last = r->version;
    w->max = w->max_of[r->version] = value;
    w->version_current = r->version;
    w->removed = false;
    return true;
}

static bool reserved(struct model *m, const struct command *c, const struct registry_result *r,
                     char *why, size_t size)
{
    const struct registry_instance *asked = c->body.instance;
    struct model_instance *there = instance_of(m, &asked->id);
    if (there != NULL) {
        (void)text_format(why, size, "instance %s is reserved again with another epoch",
                          asked->id.text);
        return there->epoch == r->epoch;
    }
    struct model_workload *w = workload_of(m, asked->workload);
    uint64_t live = 1;
    for (size_t i = 0; i < m->count; i++) {
        if (strcmp(m->live[i].workload, asked->workload) != 0)
            continue;
        /* Those that an older version shares among its joiners are on their way out. */
        live += m->live[i].version == w->version_current || w->keyed_of[m->live[i].version];
        if (asked->key[0] != '\0' && strcmp(m->live[i].key, asked->key) == 0)
            return text_format(why, size, "key %s of %s is held by %s and by %s", asked->key,
                               asked->workload, m->live[i].id.text, asked->id.text) &&
                   false;
    }
    if (w->removed || (w->max != 0 && live > w->max))
        return text_format(why, size, "%s has %" PRIu64 " instances, scale.max is %" PRIu64 "%s",
                           asked->workload, live, w->max,
                           w->removed ? ", and it is removed" : "") &&
               false;
    if (r->epoch <= m->epoch_last)
        return text_format(why, size, "epoch %" PRIu64 " comes after %" PRIu64, r->epoch,
                           m->epoch_last) &&
               false;
    m->epoch_last = r->epoch;
    if (m->count == m->capacity) {
        m->capacity = m->capacity == 0 ? 64 : m->capacity * 2;
        m->live = realloc(m->live, m->capacity * sizeof *m->live);
        assert_always(m->live != NULL);
    }
    struct model_instance *i = &m->live[m->count++];
    *i = (struct model_instance){
        .id = asked->id, .epoch = r->epoch, .owner = asked->owner, .version = asked->version};
    return text_copy(i->workload, sizeof i->workload, asked->workload) &&
           text_copy(i->key, sizeof i->key, asked->key);
}

static bool ended(struct model *m, const struct command *c, const struct registry_result *r,
                  char *why, size_t size)
{
    struct model_instance *i = instance_of(m, &c->body.instance->id);
    (void)text_format(why, size, "instance %s, epoch %" PRIu64 ", ended twice or out of nothing",
                      c->body.instance->id.text, c->body.instance->epoch);
    if (!r->changed)
        return i == NULL;
    if (i == NULL || i->epoch != c->body.instance->epoch)
        return false;
    instance_drop(m, i);
    return true;
}

/* A node's instances end with its lease; there are never so many here that it takes two commands. */
static void lost(struct model *m, node_id owner)
{
    for (size_t i = 0; i < m->count;) {
        if (m->live[i].owner == owner)
            instance_drop(m, &m->live[i]);
        else
            i++;
    }
}

bool model_apply(struct model *m, const struct command *c, const struct registry_result *r,
                 char *why, size_t size)
{
    if (r->problem != PROBLEM_NONE)
        return true;
    switch (c->body.kind) {
    case REGISTRY_WORKLOAD_PUT:
        return deployed(m, c, r, why, size);
    case REGISTRY_WORKLOAD_REMOVE:
        workload_of(m, c->body.name)->removed = true;
        return true;
    case REGISTRY_WORKLOAD_ROLLBACK: {
        struct model_workload *w = workload_of(m, c->body.name);
        assert_always(c->body.version != 0 && r->version < VERSIONS_MAX);
        w->max = w->max_of[r->version] = w->max_of[c->body.version];
        w->keyed_of[r->version] = w->keyed_of[c->body.version];
        w->version_last = w->version_current = r->version;
        return true;
    }
    case REGISTRY_INSTANCE_RESERVE:
        return reserved(m, c, r, why, size);
    case REGISTRY_INSTANCE_END:
        return ended(m, c, r, why, size);
    case REGISTRY_LEASE_EXPIRE:
    case REGISTRY_NODE_REMOVE:
        lost(m, c->body.node->id);
        return true;
    default:
        return true;
    }
}

struct model *model_new(void)
{
    struct model *m = calloc(1, sizeof *m);
    assert_always(m != NULL);
    return m;
}

void model_free(struct model *m)
{
    for (size_t i = 0; i < m->workload_count; i++)
        free(m->workloads[i]);
    free(m->live);
    free(m);
}
