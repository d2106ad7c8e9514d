/* Workloads and their versions. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state_parts.h"

/* --- values ----------------------------------------------------------------------------------------- */

static void spec_release(struct map_value *value)
{
    struct state_spec *spec = container_of(value, struct state_spec, value);
    workload_free(&spec->spec);
    free(spec->json);
    free(spec);
}

int state_spec_new(struct state_spec **out, const char *json, struct err *e)
{
    struct state_spec *spec = calloc(1, sizeof *spec);
    if (spec == NULL)
        return err_set(e, ERR_NO_MEMORY, "a workload's spec: no memory");
    map_value_init(&spec->value, spec_release);
    spec->json_length = strlen(json);
    spec->json = strdup(json);
    if (spec->json == NULL) {
        map_value_drop(&spec->value);
        return err_set(e, ERR_NO_MEMORY, "a workload's spec: no memory");
    }
    int rc = workload_parse(&spec->spec, "workload", json, spec->json_length, e);
    if (rc < 0) {
        map_value_drop(&spec->value);
        return rc;
    }
    *out = spec;
    return 0;
}

static void version_release(struct map_value *value)
{
    struct state_version *v = container_of(value, struct state_version, workload.value);
    map_value_drop(&v->spec->value);
    free(v);
}

int state_version_put(struct state_content *c, const struct registry_workload *like,
                      struct state_spec *spec, struct err *e)
{
    struct state_version *v = malloc(sizeof *v);
    if (v == NULL)
        return err_set(e, ERR_NO_MEMORY, "a version of %s: no memory", like->name);
    *v = (struct state_version){.workload = *like, .spec = spec};
    map_value_init(&v->workload.value, version_release);
    map_value_hold(&spec->value);
    v->workload.spec = spec->spec;
    struct state_map_key key = {0};
    state_key_text(&key, like->name);
    state_key_u64(&key, like->version);
    return state_put_new(c, STATE_VERSIONS, &key, &v->workload.value, e);
}

int state_version_add(struct state_content *c, const struct registry_workload *like,
                      struct state_spec *spec, struct err *e)
{
    c->spec_bytes += spec->json_length;
    return state_version_put(c, like, spec, e);
}

static void workload_release(struct map_value *value)
{
    free(container_of(value, struct state_workload, value));
}

int state_workload_put(struct state_content *c, const struct state_workload *like, struct err *e)
{
    struct state_workload *w = malloc(sizeof *w);
    if (w == NULL)
        return err_set(e, ERR_NO_MEMORY, "workload %s: no memory", like->name);
    *w = *like;
    map_value_init(&w->value, workload_release);
    struct state_map_key key = {0};
    state_key_bytes(&key, w->name, strlen(w->name));
    return state_put_new(c, STATE_WORKLOADS, &key, &w->value, e);
}

/* --- counting --------------------------------------------------------------------------------------- */

static uint32_t counted(uint32_t count, int change)
{
    assert_always(change >= 0 ? count < UINT32_MAX : count > 0);
    return (uint32_t)((int64_t)count + change);
}

static void add(uint64_t *sum, uint64_t more)
{
    *sum = more > UINT64_MAX - *sum ? UINT64_MAX : *sum + more;
}

static void usage_add(struct registry_usage *sum, const struct registry_usage *more)
{
    add(&sum->wall_us, more->wall_us);
    add(&sum->cpu_us, more->cpu_us);
    add(&sum->memory_kib_ms, more->memory_kib_ms);
    add(&sum->network_in_bytes, more->network_in_bytes);
    add(&sum->network_out_bytes, more->network_out_bytes);
    add(&sum->instances, more->instances);
    if (sum->memory_peak_bytes < more->memory_peak_bytes)
        sum->memory_peak_bytes = more->memory_peak_bytes;
}

int state_count(struct state_content *c, const char *name, uint64_t version, int live, int ended,
                const struct registry_usage *usage, struct err *e)
{
    const struct state_workload *there = state_workload(c, name);
    assert_always(there != NULL);
    struct state_workload w = *there;
    if (live != 0) {
        w.live = counted(w.live, live);
        c->live = live > 0 ? c->live + 1 : c->live - 1;
    }
    if (ended != 0)
        w.ended = counted(w.ended, ended);
    if (usage != NULL)
        usage_add(&w.usage, usage);
    int rc = state_workload_put(c, &w, e);
    const struct state_version *v = state_version(c, name, version);
    if (rc < 0 || live == 0 || v == NULL)
        return rc;
    struct registry_workload changed = v->workload;
    changed.live = counted(changed.live, live);
    return state_version_put(c, &changed, v->spec, e);
}

struct counting {
    struct state_map_key prefix;
    uint64_t current;
    uint64_t count;
};

static bool count_version(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct counting *s = user;
    if (!state_key_starts_with(key, key_length, &s->prefix))
        return false;
    const struct registry_workload *w =
        &container_of(value, const struct state_version, workload.value)->workload;
    if (w->version == s->current || w->spec.join.key[0] != '\0')
        s->count += w->live;
    return true;
}

uint32_t state_workload_counted(const struct state_content *c, const struct state_workload *w)
{
    struct counting s = {.current = w->version_current};
    if (w->live == 0 || w->version_current == 0)
        return w->live;
    state_key_text(&s.prefix, w->name);
    map_walk(&c->maps[STATE_VERSIONS], s.prefix.bytes, s.prefix.length, count_version, &s);
    return (uint32_t)s.count;
}

/* --- pruning ---------------------------------------------------------------------------------------- */

struct prune {
    const struct state_map_key *prefix;
    uint64_t current;
    size_t idle;
    uint64_t oldest; /* idle version; 0: none */
    size_t oldest_bytes;
};

static bool prune_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct prune *p = user;
    if (!state_key_starts_with(key, key_length, p->prefix))
        return false;
    const struct state_version *v = container_of(value, struct state_version, workload.value);
    if (v->workload.version == p->current || v->workload.live > 0)
        return true;
    if (p->idle++ == 0) {
        p->oldest = v->workload.version;
        p->oldest_bytes = v->spec->json_length;
    }
    return true;
}

int state_versions_prune(struct state_content *c, const char *name, struct err *e)
{
    const struct state_workload *w = state_workload(c, name);
    assert_always(w != NULL);
    size_t keep = w->version_current == 0 ? 0 : REGISTRY_VERSIONS_KEPT;
    struct state_map_key prefix = {0};
    state_key_text(&prefix, name);
    for (;;) {
        struct prune p = {.prefix = &prefix, .current = w->version_current};
        map_walk(&c->maps[STATE_VERSIONS], prefix.bytes, prefix.length, prune_visit, &p);
        if (p.idle <= keep)
            return 0;
        struct state_map_key key = prefix;
        state_key_u64(&key, p.oldest);
        c->spec_bytes -= p.oldest_bytes;
        int rc = state_remove(c, STATE_VERSIONS, &key, e);
        if (rc < 0)
            return rc;
    }
}

/* --- commands --------------------------------------------------------------------------------------- */

static bool image_known(const struct state_content *c, const char *image)
{
    if (strcmp(image, "host") == 0)
        return true;
    struct state_map_key key = {0};
    if (strlen(image) > sizeof(((struct registry_image *)0)->name))
        return false;
    state_key_bytes(&key, image, strlen(image));
    return state_get(c, STATE_IMAGES, &key) != NULL;
}

static bool count_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct prune *p = user;
    (void)value;
    p->idle += state_key_starts_with(key, key_length, p->prefix);
    return state_key_starts_with(key, key_length, p->prefix);
}

/* Room for one more version, of so many bytes. */
static bool version_fits(const struct state_content *c, const struct state_spec *spec,
                         struct registry_result *r)
{
    const char *name = spec->spec.id;
    struct state_map_key prefix = {0};
    state_key_text(&prefix, name);
    struct prune all = {.prefix = &prefix};
    map_walk(&c->maps[STATE_VERSIONS], prefix.bytes, prefix.length, count_visit, &all);
    if (all.idle >= STATE_VERSIONS_MAX)
        state_refuse(r, PROBLEM_LIMIT_REACHED,
                     "%s has %zu versions, most of which instances still run; wait for those", name,
                     all.idle);
    else if (c->spec_bytes + spec->json_length > STATE_SPEC_BYTES_MAX)
        state_refuse(r, PROBLEM_LIMIT_REACHED,
                     "the workloads take %llu bytes, of %llu that they may; remove some",
                     (unsigned long long)c->spec_bytes, (unsigned long long)STATE_SPEC_BYTES_MAX);
    return r->problem == PROBLEM_NONE;
}

struct listening {
    const struct state_content *c;
    const struct workload *spec;
    const char *found; /* who has its port */
};

static bool listening_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct listening *l = user;
    const struct state_workload *w = container_of(value, const struct state_workload, value);
    (void)key;
    (void)key_length;
    if (w->version_current == 0 || strcmp(w->name, l->spec->id) == 0)
        return true;
    const struct state_version *v = state_version(l->c, w->name, w->version_current);
    if (v != NULL && v->spec->spec.listen.tcp == l->spec->listen.tcp)
        l->found = w->name;
    return l->found == NULL;
}

/* A port of the nodes is one workload's: the first's that has it. */
static bool listen_free(const struct state_content *c, const struct state_spec *spec,
                        struct registry_result *r)
{
    struct listening l = {.c = c, .spec = &spec->spec};
    if (l.spec->listen.tcp != 0)
        map_walk(&c->maps[STATE_WORKLOADS], NULL, 0, listening_visit, &l);
    if (l.found != NULL)
        state_refuse(r, PROBLEM_CONFLICT,
                     "listen.tcp: port %llu is taken by workload %s; choose another for %s",
                     (unsigned long long)l.spec->listen.tcp, l.found, l.spec->id);
    return l.found == NULL;
}

/* `spec` becomes the newest version of its workload, and the current one. */
static int version_add(struct state_content *c, struct state_spec *spec, uint64_t wall_ms,
                       struct registry_result *r, struct err *e)
{
    if (!version_fits(c, spec, r) || !listen_free(c, spec, r))
        return 0;
    const struct state_workload *there = state_workload(c, spec->spec.id);
    struct state_workload w = {0};
    if (there != NULL)
        w = *there;
    text_copy(w.name, sizeof w.name, spec->spec.id);
    w.version_last++;
    w.version_current = w.version_last;
    w.removed_wall_ms = 0;
    struct registry_workload version = {.version = w.version_last, .deployed_wall_ms = wall_ms};
    text_copy(version.name, sizeof version.name, w.name);
    int rc = state_workload_put(c, &w, e);
    if (rc == 0)
        rc = state_version_add(c, &version, spec, e);
    if (rc == 0)
        rc = state_versions_prune(c, w.name, e);
    r->version = w.version_last;
    r->changed = true;
    return rc;
}

/* A name that stands for another workload already. */
static bool alias_taken(const struct state_content *c, const char *name, struct registry_result *r)
{
    const struct registry_domain *alias = state_domain(c, name);
    if (alias != NULL)
        state_refuse(
            r, PROBLEM_CONFLICT,
            "%s is an alias of workload %s: skerry domain rm %s first, or choose another id", name,
            alias->workload, name);
    return alias != NULL;
}

static int spec_put(struct state_content *c, struct state_spec *spec, uint64_t wall_ms,
                    struct registry_result *r, struct err *e)
{
    if (!workload_name_valid(spec->spec.id, strlen(spec->spec.id))) {
        state_refuse(r, PROBLEM_WORKLOAD_INVALID, "%.80s is not a valid name", spec->spec.id);
        return 0;
    }
    const struct state_workload *w = state_workload(c, spec->spec.id);
    if (w != NULL && w->version_current != 0) {
        const struct state_version *v = state_version(c, w->name, w->version_current);
        assert_always(v != NULL);
        if (v->spec->json_length == spec->json_length &&
            memcmp(v->spec->json, spec->json, spec->json_length) == 0) {
            r->version = w->version_current;
            return 0;
        }
    } else if (alias_taken(c, spec->spec.id, r)) {
        return 0;
    } else if (w == NULL && c->maps[STATE_WORKLOADS].count >= STATE_WORKLOADS_MAX) {
        state_refuse(r, PROBLEM_LIMIT_REACHED, "there are %u workloads, as many as there may be",
                     STATE_WORKLOADS_MAX);
        return 0;
    }
    if (!image_known(c, spec->spec.image)) {
        state_refuse(r, PROBLEM_IMAGE_UNKNOWN,
                     "%s: no image is named %.80s; skerry image import %.80s DIR|FILE",
                     spec->spec.id, spec->spec.image, spec->spec.image);
        return 0;
    }
    return version_add(c, spec, wall_ms, r, e);
}

/* The version that runs, if this is its very text. Texts are written with their id first, which tells where
 * to look; that all of it is the same tells that nothing need be read, let alone changed. */
static const struct state_version *version_unchanged(const struct state_content *c,
                                                     const char *json)
{
    static const char begin[] = "{\"id\":\"";
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    if (strncmp(json, begin, strlen(begin)) != 0)
        return NULL;
    json += strlen(begin);
    size_t length = strcspn(json, "\"");
    if (length > WORKLOAD_NAME_LENGTH_MAX)
        return NULL;
    memcpy(name, json, length);
    name[length] = '\0';
    const struct state_workload *w = state_workload(c, name);
    if (w == NULL || w->version_current == 0)
        return NULL;
    const struct state_version *v = state_version(c, w->name, w->version_current);
    return v != NULL && strcmp(v->spec->json, json - strlen(begin)) == 0 ? v : NULL;
}

int state_apply_workload_put(struct state_content *c, const struct registry_command *command,
                             struct registry_result *r, struct err *e)
{
    const struct state_version *same = version_unchanged(c, command->workload_json);
    if (same != NULL) {
        r->version = same->workload.version;
        return 0;
    }
    struct state_spec *spec;
    struct err cause = {0};
    int rc = state_spec_new(&spec, command->workload_json, &cause);
    if (rc == -ERR_NO_MEMORY)
        return err_set(e, cause.code, "%s", cause.msg);
    if (rc < 0) {
        state_refuse(r, PROBLEM_WORKLOAD_INVALID, "%s", cause.msg);
        return 0;
    }
    rc = spec_put(c, spec, command->wall_ms, r, e);
    map_value_drop(&spec->value);
    return rc;
}

/* The workload, if it is deployed; else *r says that it is not. */
static const struct state_workload *deployed(const struct state_content *c, const char *name,
                                             struct registry_result *r)
{
    const struct state_workload *w = state_workload(c, name);
    if (w != NULL && w->version_current != 0)
        return w;
    state_refuse(r, PROBLEM_WORKLOAD_UNKNOWN, "no workload is named %s", name);
    return NULL;
}

int state_apply_workload_remove(struct state_content *c, const struct registry_command *command,
                                struct registry_result *r, struct err *e)
{
    const struct state_workload *there = deployed(c, command->name, r);
    if (there == NULL)
        return 0;
    struct state_workload w = *there;
    w.version_current = 0;
    w.removed_wall_ms = command->wall_ms;
    int rc = state_workload_put(c, &w, e);
    if (rc == 0)
        rc = state_domains_remove(c, w.name, e);
    r->changed = true;
    return rc < 0 ? rc : state_versions_prune(c, w.name, e);
}

struct before {
    const struct state_map_key *prefix;
    uint64_t current, found;
};

static bool before_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct before *b = user;
    const struct state_version *v = container_of(value, struct state_version, workload.value);
    if (!state_key_starts_with(key, key_length, b->prefix) || v->workload.version >= b->current)
        return false;
    b->found = v->workload.version;
    return true;
}

int state_apply_workload_rollback(struct state_content *c, const struct registry_command *command,
                                  struct registry_result *r, struct err *e)
{
    const struct state_workload *w = deployed(c, command->name, r);
    if (w == NULL)
        return 0;
    uint64_t to = command->version;
    if (to == 0) {
        struct state_map_key prefix = {0};
        state_key_text(&prefix, w->name);
        struct before b = {.prefix = &prefix, .current = w->version_current};
        map_walk(&c->maps[STATE_VERSIONS], prefix.bytes, prefix.length, before_visit, &b);
        to = b.found;
    }
    if (to == w->version_current) {
        r->version = to;
        return 0;
    }
    const struct state_version *v = to == 0 ? NULL : state_version(c, w->name, to);
    if (v == NULL) {
        if (to == 0)
            state_refuse(r, PROBLEM_NOT_FOUND, "%s has no version before %llu", w->name,
                         (unsigned long long)w->version_current);
        else
            state_refuse(r, PROBLEM_NOT_FOUND, "version %llu of %s is not kept",
                         (unsigned long long)to, w->name);
        return 0;
    }
    return version_add(c, v->spec, command->wall_ms, r, e);
}
