/* Instances: reserved, ready, draining, ended and forgotten. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state_parts.h"

/* --- values ----------------------------------------------------------------------------------------- */

static void instance_release(struct map_value *value)
{
    free(container_of(value, struct registry_instance, value));
}

static int instance_put(struct state_content *c, const struct registry_instance *like,
                        struct registry_instance **out, struct err *e)
{
    struct registry_instance *i = malloc(sizeof *i);
    if (i == NULL)
        return err_set(e, ERR_NO_MEMORY, "instance %s: no memory", like->id.text);
    *i = *like;
    map_value_init(&i->value, instance_release);
    struct state_map_key key = {0};
    state_key_bytes(&key, i->id.text, strlen(i->id.text));
    *out = i;
    return state_put_new(c, STATE_INSTANCES, &key, &i->value, e);
}

static void key_release(struct map_value *value)
{
    free(container_of(value, struct state_key, value));
}

static struct state_map_key key_key(const struct registry_instance *i)
{
    struct state_map_key key = {0};
    state_key_text(&key, i->workload);
    state_key_bytes(&key, i->key, strlen(i->key));
    return key;
}

const struct instance_id *state_key_holder(const struct state_content *c,
                                           const struct registry_instance *i)
{
    struct state_map_key key = key_key(i);
    const struct map_value *held = state_get(c, STATE_KEYS, &key);
    return held == NULL ? NULL : &container_of(held, const struct state_key, value)->holder;
}

static int key_put(struct state_content *c, const struct registry_instance *i, struct err *e)
{
    if (i->key[0] == '\0')
        return 0;
    struct state_map_key key = key_key(i);
    struct state_key *k = malloc(sizeof *k);
    if (k == NULL)
        return err_set(e, ERR_NO_MEMORY, "the key of instance %s: no memory", i->id.text);
    k->holder = i->id;
    map_value_init(&k->value, key_release);
    return state_put_new(c, STATE_KEYS, &key, &k->value, e);
}

static struct state_map_key ended_key(const struct registry_instance *i)
{
    struct state_map_key key = {0};
    state_key_text(&key, i->workload);
    state_key_u64(&key, i->ended_wall_ms);
    state_key_bytes(&key, i->id.text, strlen(i->id.text));
    return key;
}

static int ended_put(struct state_content *c, struct registry_instance *i, struct err *e)
{
    struct state_map_key key = ended_key(i);
    return state_put(c, STATE_ENDED, &key, &i->value, e);
}

static struct state_map_key owned_key(const struct registry_instance *i)
{
    struct state_map_key key = {0};
    state_key_u64(&key, i->owner);
    state_key_bytes(&key, i->id.text, strlen(i->id.text));
    return key;
}

static int owned_put(struct state_content *c, struct registry_instance *i, struct err *e)
{
    struct state_map_key key = owned_key(i);
    return state_put(c, STATE_OWNED, &key, &i->value, e);
}

int state_instance_link(struct state_content *c, const struct registry_instance *like,
                        struct err *e)
{
    struct registry_instance *i;
    int rc = instance_put(c, like, &i, e);
    if (rc < 0 || like->state == INSTANCE_STATE_ENDED)
        return rc < 0 ? rc : ended_put(c, i, e);
    rc = owned_put(c, i, e);
    return rc < 0 ? rc : key_put(c, i, e);
}

/* --- reserving -------------------------------------------------------------------------------------- */

/* Asked again, by whom the answer did not reach: the same reservation. */
static bool same_reservation(const struct registry_instance *a, const struct registry_instance *b)
{
    return a->state != INSTANCE_STATE_ENDED && strcmp(a->workload, b->workload) == 0 &&
           a->version == b->version && strcmp(a->key, b->key) == 0 &&
           a->started_wall_ms == b->started_wall_ms;
}

/* What its owner must be. A reservation that stands is told to a node that drains as well. */
static bool owner_allows(const struct state_content *c, const struct registry_instance *i,
                         bool stands, struct registry_result *r)
{
    const struct registry_node *n = state_node(c, i->owner);
    if (n == NULL)
        state_refuse(r, PROBLEM_NODE_FULL, "no node has the id %llu", (unsigned long long)i->owner);
    else if (!n->leased)
        state_refuse(r, PROBLEM_NODE_FULL, "%s has no lease", n->name);
    else if (n->draining && !stands)
        state_refuse(r, PROBLEM_NODE_FULL, "%s drains", n->name);
    return r->problem == PROBLEM_NONE;
}

/* What the workload says of one more instance. */
static bool workload_allows(const struct state_content *c, const struct registry_instance *i,
                            struct registry_result *r)
{
    const struct state_workload *w = state_workload(c, i->workload);
    if (w == NULL || w->version_current == 0) {
        state_refuse(r, PROBLEM_WORKLOAD_UNKNOWN, "no workload is named %s", i->workload);
        return false;
    }
    if (state_version(c, i->workload, i->version) == NULL) {
        state_refuse(r, PROBLEM_CONFLICT, "version %llu of %s is not kept; its newest is %llu",
                     (unsigned long long)i->version, i->workload,
                     (unsigned long long)w->version_current);
        return false;
    }
    const struct instance_id *holder = i->key[0] == '\0' ? NULL : state_key_holder(c, i);
    if (holder != NULL) {
        r->existing = *holder;
        state_refuse(r, PROBLEM_CONFLICT, "the key is held by %s", holder->text);
        return false;
    }
    const struct workload *spec = &state_version(c, i->workload, w->version_current)->workload.spec;
    uint32_t counted = w->live < spec->scale.max ? w->live : state_workload_counted(c, w);
    if (spec->scale.max != 0 && counted >= spec->scale.max) {
        state_refuse(r, PROBLEM_LIMIT_REACHED, "%s has %u instances, scale.max is %llu",
                     i->workload, counted, (unsigned long long)spec->scale.max);
        return false;
    }
    return true;
}

static bool may_reserve(const struct state_content *c, const struct registry_instance *i,
                        struct registry_result *r)
{
    if (i->owner == 0 || instance_id_owner(&i->id) != i->owner) {
        state_refuse(r, PROBLEM_BAD_REQUEST, "instance %s does not belong to node %llu", i->id.text,
                     (unsigned long long)i->owner);
        return false;
    }
    if (i->workload[0] == '\0' && i->key[0] != '\0') {
        state_refuse(r, PROBLEM_BAD_REQUEST, "a command has no key");
        return false;
    }
    if (!owner_allows(c, i, false, r))
        return false;
    if (c->live >= STATE_LIVE_MAX) {
        state_refuse(r, PROBLEM_LIMIT_REACHED, "there are %llu instances, as many as there may be",
                     (unsigned long long)c->live);
        return false;
    }
    return i->workload[0] == '\0' || workload_allows(c, i, r);
}

static int insert(struct state_content *c, const struct registry_instance *i, struct err *e)
{
    int rc = state_instance_link(c, i, e);
    if (rc == 0 && state_workload(c, i->workload) == NULL) {
        struct state_workload w = {0};
        text_copy(w.name, sizeof w.name, i->workload);
        rc = state_workload_put(c, &w, e);
    }
    return rc < 0 ? rc : state_count(c, i->workload, i->version, 1, 0, NULL, e);
}

int state_apply_instance_reserve(struct state_content *c, const struct registry_command *command,
                                 struct registry_result *r, struct err *e)
{
    const struct registry_instance *asked = command->instance;
    const struct registry_instance *there = state_instance(c, &asked->id);
    if (there != NULL && same_reservation(there, asked)) {
        if (owner_allows(c, there, true, r))
            r->epoch = there->epoch;
        return 0;
    }
    if (there != NULL) {
        r->existing = there->id;
        state_refuse(r, PROBLEM_CONFLICT, "instance %s exists", there->id.text);
        return 0;
    }
    if (!may_reserve(c, asked, r))
        return 0;
    struct registry_instance i = *asked;
    i.state = INSTANCE_STATE_STARTING;
    i.reason = END_NONE;
    i.exit_code = -1;
    i.signal = 0;
    i.usage = (struct registry_usage){0};
    i.ended_wall_ms = 0;
    i.joins = 0;
    i.joiners_peak = 0;
    i.detail[0] = '\0';
    if (i.workload[0] == '\0')
        i.version = 0;
    if (!state_epoch_next(c, &i.epoch, r))
        return 0;
    r->epoch = i.epoch;
    r->version = i.version;
    return insert(c, &i, e);
}

/* --- living ----------------------------------------------------------------------------------------- */

static void mark(uint64_t *to, uint64_t from)
{
    if (from != 0)
        *to = from;
}

static void marks_merge(struct registry_marks *to, const struct registry_marks *from)
{
    mark(&to->reserved_us, from->reserved_us);
    mark(&to->sandbox_us, from->sandbox_us);
    mark(&to->ready_us, from->ready_us);
    mark(&to->ended_us, from->ended_us);
}

/* The instance that an update or end is about, if the epoch is right. */
static const struct registry_instance *held(const struct state_content *c,
                                            const struct registry_instance *asked,
                                            struct registry_result *r)
{
    const struct registry_instance *i = state_instance(c, &asked->id);
    if (i == NULL) {
        state_refuse(r, PROBLEM_INSTANCE_UNKNOWN, "no instance has the id %s", asked->id.text);
        return NULL;
    }
    if (i->epoch != asked->epoch) {
        state_refuse(r, PROBLEM_CONFLICT, "instance %s has epoch %llu, not %llu", i->id.text,
                     (unsigned long long)i->epoch, (unsigned long long)asked->epoch);
        return NULL;
    }
    return i;
}

int state_apply_instance_update(struct state_content *c, const struct registry_command *command,
                                struct registry_result *r, struct err *e)
{
    const struct registry_instance *asked = command->instance;
    const struct registry_instance *there = held(c, asked, r);
    if (there == NULL)
        return 0;
    if (there->state == INSTANCE_STATE_ENDED) {
        state_refuse(r, PROBLEM_INSTANCE_GONE, "instance %s has ended: %s", there->id.text,
                     end_reason_name(there->reason));
        return 0;
    }
    if (there->state == INSTANCE_STATE_DRAINING && asked->state == INSTANCE_STATE_READY) {
        state_refuse(r, PROBLEM_CONFLICT, "instance %s is draining", there->id.text);
        return 0;
    }
    struct registry_instance i = *there;
    i.state = asked->state;
    marks_merge(&i.marks, &asked->marks);
    r->epoch = i.epoch;
    r->changed = there->state != i.state;
    struct registry_instance *put;
    int rc = instance_put(c, &i, &put, e);
    return rc < 0 ? rc : owned_put(c, put, e);
}

/* --- ending ----------------------------------------------------------------------------------------- */

struct first {
    const struct state_map_key *prefix;
    const struct registry_instance *found;
};

static bool first_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct first *f = user;
    if (state_key_starts_with(key, key_length, f->prefix))
        f->found = container_of(value, struct registry_instance, value);
    return false;
}

static int forget(struct state_content *c, const struct registry_instance *i, struct err *e)
{
    struct state_map_key ended = ended_key(i);
    struct state_map_key id = {0};
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    uint64_t version = i->version;
    text_copy(name, sizeof name, i->workload);
    state_key_bytes(&id, i->id.text, strlen(i->id.text));
    int rc = state_remove(c, STATE_ENDED, &ended, e);
    if (rc == 0)
        rc = state_remove(c, STATE_INSTANCES, &id, e);
    return rc < 0 ? rc : state_count(c, name, version, 0, -1, NULL, e);
}

int state_ended_forget(struct state_content *c, const char *name, uint64_t before_wall_ms,
                       size_t max, size_t *forgotten, struct err *e)
{
    struct state_map_key prefix = {0};
    state_key_text(&prefix, name);
    for (size_t n = 0; n < max; n++) {
        struct first oldest = {.prefix = &prefix};
        map_walk(&c->maps[STATE_ENDED], prefix.bytes, prefix.length, first_visit, &oldest);
        if (oldest.found == NULL || oldest.found->ended_wall_ms >= before_wall_ms)
            return 0;
        int rc = forget(c, oldest.found, e);
        if (rc < 0)
            return rc;
        (*forgotten)++;
    }
    return 0;
}

static struct registry_instance ended_instance(const struct registry_instance *there,
                                               const struct registry_command *command)
{
    const struct registry_instance *asked = command->instance;
    struct registry_instance i = *there;
    i.state = INSTANCE_STATE_ENDED;
    i.reason = asked->reason;
    i.exit_code = asked->exit_code;
    i.signal = asked->signal;
    i.ended_wall_ms = asked->ended_wall_ms != 0 ? asked->ended_wall_ms : command->wall_ms;
    marks_merge(&i.marks, &asked->marks);
    i.joins = asked->joins;
    i.joiners_peak = asked->joiners_peak;
    text_copy(i.detail, sizeof i.detail, asked->detail);
    i.usage = asked->usage;
    i.usage.instances = 1;
    return i;
}

static int end(struct state_content *c, const struct registry_instance *i, struct err *e)
{
    struct registry_instance *put;
    int rc = instance_put(c, i, &put, e);
    if (rc == 0)
        rc = ended_put(c, put, e);
    struct state_map_key owned = owned_key(i);
    if (rc == 0)
        rc = state_remove(c, STATE_OWNED, &owned, e);
    if (rc == 0 && i->key[0] != '\0') {
        struct state_map_key key = key_key(i);
        rc = state_remove(c, STATE_KEYS, &key, e);
    }
    if (rc == 0)
        rc = state_count(c, i->workload, i->version, -1, 1, &i->usage, e);
    if (rc == 0)
        rc = state_versions_prune(c, i->workload, e);
    if (rc == 0 && (state_workload(c, i->workload)->ended > REGISTRY_ENDED_PER_WORKLOAD_MAX ||
                    c->maps[STATE_ENDED].count > STATE_ENDED_MAX)) {
        size_t forgotten = 0;
        rc = state_ended_forget(c, i->workload, UINT64_MAX, 1, &forgotten, e);
    }
    return rc;
}

int state_apply_instance_end(struct state_content *c, const struct registry_command *command,
                             struct registry_result *r, struct err *e)
{
    const struct registry_instance *there = held(c, command->instance, r);
    if (there == NULL)
        return 0;
    r->epoch = there->epoch;
    if (there->state == INSTANCE_STATE_ENDED)
        return 0;
    r->changed = true;
    struct registry_instance i = ended_instance(there, command);
    return end(c, &i, e);
}

/* --- lost nodes ------------------------------------------------------------------------------------- */

const struct registry_instance *state_owned_first(const struct state_content *c, node_id owner)
{
    struct state_map_key prefix = {0};
    state_key_u64(&prefix, owner);
    struct first f = {.prefix = &prefix};
    map_walk(&c->maps[STATE_OWNED], prefix.bytes, prefix.length, first_visit, &f);
    return f.found;
}

int state_owned_lose(struct state_content *c, node_id owner, uint64_t wall_ms, size_t max,
                     size_t *ended, struct err *e)
{
    for (size_t n = 0; n < max; n++) {
        const struct registry_instance *there = state_owned_first(c, owner);
        if (there == NULL)
            return 0;
        struct registry_instance i = *there;
        i.state = INSTANCE_STATE_ENDED;
        i.reason = END_NODE_LOST;
        i.ended_wall_ms = wall_ms;
        i.usage.instances = 1; /* what it used nobody knows */
        text_format(i.detail, sizeof i.detail, "the lease of node %llu has ended",
                    (unsigned long long)owner);
        int rc = end(c, &i, e);
        if (rc < 0)
            return rc;
        (*ended)++;
    }
    return 0;
}

static bool any_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    *(node_id *)user = container_of(value, const struct registry_instance, value)->owner;
    return false;
}

int state_lost_end(struct state_content *c, uint64_t wall_ms, size_t max, size_t *ended,
                   struct err *e)
{
    /* From owner to owner: one look-up for each node, however many instances it has. The last number
     * of all is no node's. */
    node_id owner = 0;
    for (size_t n = 0; n < max && owner < UINT64_MAX; owner++) {
        struct state_map_key from = {0};
        state_key_u64(&from, owner);
        node_id found = 0;
        map_walk(&c->maps[STATE_OWNED], from.bytes, from.length, any_visit, &found);
        if (found == 0)
            return 0;
        owner = found;
        const struct registry_node *node = state_node(c, owner);
        /* A registry of before there were leases has instances of nodes that never had one. */
        if (node != NULL && (node->leased || node->lease_epoch == 0))
            continue;
        size_t before = *ended;
        int rc = state_owned_lose(c, owner, wall_ms, max - n, ended, e);
        if (rc < 0)
            return rc;
        n += *ended - before;
    }
    return 0;
}
