#include "tests/lib/registry_help.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "raft/state_parts.h"

char *help_workload_json(const char *name, const char *more)
{
    char text[1024];
    struct workload w;
    struct err e;
    assert_always(text_format(text, sizeof text,
                              "id: %s\nkind: server\ncommand: [\"true\"]\n"
                              "port: 8080\n%s",
                              name, more));
    if (workload_parse(&w, "test", text, strlen(text), &e) < 0) {
        fprintf(stderr, "%s\n", e.msg);
        abort();
    }
    json_t *json = workload_to_json(&w);
    char *out = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    workload_free(&w);
    assert_always(out != NULL);
    return out;
}

struct instance_id help_instance_id(node_id owner, uint64_t n)
{
    uint8_t random[11] = {0};
    for (unsigned i = 0; i < 8; i++)
        random[10 - i] = (uint8_t)(n >> (8 * i));
    struct instance_id id;
    instance_id_make(&id, owner, random);
    return id;
}

/* --- a state machine fed by hand ------------------------------------------------------------------ */

void help_state_open(struct help_state *h)
{
    struct err e;
    *h = (struct help_state){0};
    assert_always(state_new(&h->state, &e) == 0);
}

void help_state_close(struct help_state *h)
{
    help_state_check(state_content(h->state));
    state_free(h->state);
}

struct state_outcome help_apply_as(struct help_state *h, const struct registry_command *command,
                                   struct command_session session)
{
    uint8_t *bytes;
    size_t length;
    struct err e;
    struct state_outcome out;
    if (command_encode(&bytes, &length, &session, command, &e) < 0 ||
        state_apply(h->state, ++h->index, bytes, length, &out, &e) < 0) {
        fprintf(stderr, "%s\n", e.msg);
        abort();
    }
    free(bytes);
    return out;
}

struct registry_result help_apply(struct help_state *h, const struct registry_command *command)
{
    struct command_session session = {.node = 1, .boot = 1, .sequence = ++h->sequence};
    return help_apply_as(h, command, session).result;
}

uint64_t help_lease(struct help_state *h, node_id id)
{
    struct registry_node n = {.id = id};
    assert_always(text_format(n.name, sizeof n.name, "node%llu", (unsigned long long)id));
    struct registry_command c = {.kind = REGISTRY_NODE_PUT, .node = &n};
    assert_always(help_apply(h, &c).node == id);
    c.kind = REGISTRY_LEASE_GRANT;
    struct registry_result r = help_apply(h, &c);
    assert_always(r.problem == PROBLEM_NONE && r.epoch != 0);
    return r.epoch;
}

struct registry_result help_deploy(struct help_state *h, const char *name, const char *more)
{
    char *json = help_workload_json(name, more);
    struct registry_command c = {
        .kind = REGISTRY_WORKLOAD_PUT, .wall_ms = 1000 + h->index, .workload_json = json};
    struct registry_result r = help_apply(h, &c);
    free(json);
    return r;
}

struct registry_result help_reserve(struct help_state *h, const char *workload, uint64_t version,
                                    uint64_t n, const char *key)
{
    struct registry_instance i = {
        .id = help_instance_id(1, n), .version = version, .owner = 1, .started_wall_ms = n};
    assert_always(text_copy(i.workload, sizeof i.workload, workload) &&
                  text_copy(i.key, sizeof i.key, key));
    struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &i};
    return help_apply(h, &c);
}

struct registry_result help_end(struct help_state *h, uint64_t n, uint64_t epoch,
                                uint64_t ended_wall_ms)
{
    struct registry_instance i = {.id = help_instance_id(1, n),
                                  .epoch = epoch,
                                  .reason = END_EXITED,
                                  .exit_code = 3,
                                  .ended_wall_ms = ended_wall_ms,
                                  .usage = {.wall_us = 1000 + n,
                                            .cpu_us = 100,
                                            .memory_peak_bytes = 4096 * n,
                                            .memory_kib_ms = 40,
                                            .network_in_bytes = 5,
                                            .network_out_bytes = 6}};
    struct registry_command c = {.kind = REGISTRY_INSTANCE_END, .instance = &i};
    return help_apply(h, &c);
}

/* --- invariants ------------------------------------------------------------------------------------- */

struct recount {
    const struct state_content *c;
    const char *name;
    uint64_t version;
    size_t live, ended, keys, of_version;
};

static bool recount_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct recount *r = user;
    const struct registry_instance *i = container_of(value, const struct registry_instance, value);
    assert_always(key_length == strlen(i->id.text) && memcmp(key, i->id.text, key_length) == 0);
    if (r->name != NULL && strcmp(i->workload, r->name) != 0)
        return true;
    if (i->state == INSTANCE_STATE_ENDED) {
        r->ended++;
        return true;
    }
    r->live++;
    r->keys += i->key[0] != '\0';
    r->of_version += i->version == r->version;
    return true;
}

static struct recount recount(const struct state_content *c, const char *name, uint64_t version)
{
    struct recount r = {.c = c, .name = name, .version = version};
    map_walk(&c->maps[STATE_INSTANCES], NULL, 0, recount_visit, &r);
    return r;
}

static bool workload_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct state_content *c = user;
    const struct state_workload *w = container_of(value, const struct state_workload, value);
    (void)key;
    assert_always(key_length == strlen(w->name));
    struct recount r = recount(c, w->name, 0);
    assert_always(w->live == r.live && w->ended == r.ended);
    assert_always(w->version_current <= w->version_last);
    return true;
}

static bool bytes_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    (void)key;
    (void)key_length;
    *(uint64_t *)user +=
        container_of(value, struct state_version, workload.value)->spec->json_length;
    return true;
}

static bool version_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct state_content *c = user;
    const struct state_version *v = container_of(value, const struct state_version, workload.value);
    (void)key;
    (void)key_length;
    assert_always(v->workload.live == recount(c, v->workload.name, v->workload.version).of_version);
    assert_always(strcmp(v->workload.spec.id, v->workload.name) == 0);
    return true;
}

static bool key_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct state_content *c = user;
    const struct state_key *k = container_of(value, const struct state_key, value);
    (void)key;
    (void)key_length;
    const struct map_value *holder =
        map_get(&c->maps[STATE_INSTANCES], k->holder.text, strlen(k->holder.text));
    assert_always(holder != NULL);
    const struct registry_instance *i = container_of(holder, const struct registry_instance, value);
    assert_always(i->state != INSTANCE_STATE_ENDED && i->key[0] != '\0');
    return true;
}

static bool owned_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct state_content *c = user;
    const struct registry_instance *i = container_of(value, const struct registry_instance, value);
    const unsigned char *bytes = key;
    node_id owner = 0;
    for (size_t n = 0; n < 8; n++)
        owner = owner << 8 | bytes[n];
    assert_always(owner == i->owner && key_length == 8 + strlen(i->id.text) &&
                  memcmp(bytes + 8, i->id.text, key_length - 8) == 0);
    assert_always(i->state != INSTANCE_STATE_ENDED);
    assert_always(map_get(&c->maps[STATE_INSTANCES], i->id.text, strlen(i->id.text)) == value);
    return true;
}

static bool node_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct state_content *c = user;
    const struct registry_node *n = container_of(value, const struct registry_node, value);
    (void)key;
    (void)key_length;
    assert_always(n->id != 0 && n->id < c->node_id_next);
    assert_always(!n->leased || n->lease_epoch != 0);
    return true;
}

static void keyring_check(const struct state_content *c)
{
    unsigned used = 0;
    assert_always(c->keyring_count <= REGISTRY_KEYRING_MAX);
    for (uint32_t i = 0; i < c->keyring_count; i++) {
        used += c->keyring[i].used;
        for (uint32_t j = 0; j < i; j++)
            assert_always(
                memcmp(c->keyring[i].bytes, c->keyring[j].bytes, sizeof c->keyring[i].bytes) != 0);
    }
    assert_always(used <= 1);
}

static bool ended_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct state_content *c = user;
    const struct registry_instance *i = container_of(value, const struct registry_instance, value);
    (void)key;
    (void)key_length;
    assert_always(i->state == INSTANCE_STATE_ENDED);
    assert_always(map_get(&c->maps[STATE_INSTANCES], i->id.text, strlen(i->id.text)) == value);
    return true;
}

/* A domain leads to a workload that is deployed, and an alias is no workload's name. */
static bool domain_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct state_content *c = user;
    const struct registry_domain *d = container_of(value, const struct registry_domain, value);
    const struct state_workload *w = state_workload(c, d->workload);
    const struct state_workload *namesake = state_workload(c, d->name);
    struct state_map_key by_workload = {0};
    assert_always(key_length == strlen(d->name) && memcmp(key, d->name, key_length) == 0);
    assert_always(w != NULL && w->version_current != 0);
    assert_always(namesake == NULL || namesake->version_current == 0);
    state_key_text(&by_workload, d->workload);
    state_key_bytes(&by_workload, d->name, key_length);
    assert_always(state_get(c, STATE_WORKLOAD_DOMAINS, &by_workload) == value);
    return true;
}

void help_state_check(const struct state_content *c)
{
    struct recount all = recount(c, NULL, 0);
    assert_always(c->live == all.live);
    assert_always(c->maps[STATE_KEYS].count == all.keys);
    assert_always(c->maps[STATE_ENDED].count == all.ended);
    assert_always(c->maps[STATE_OWNED].count == all.live);
    assert_always(c->maps[STATE_NODES].count <= STATE_NODES_MAX);
    uint64_t spec_bytes = 0;
    map_walk(&c->maps[STATE_VERSIONS], NULL, 0, bytes_visit, &spec_bytes);
    assert_always(c->spec_bytes == spec_bytes);
    keyring_check(c);
    void *user = (void *)(uintptr_t)c;
    map_walk(&c->maps[STATE_OWNED], NULL, 0, owned_visit, user);
    map_walk(&c->maps[STATE_NODES], NULL, 0, node_visit, user);
    map_walk(&c->maps[STATE_WORKLOADS], NULL, 0, workload_visit, user);
    map_walk(&c->maps[STATE_VERSIONS], NULL, 0, version_visit, user);
    map_walk(&c->maps[STATE_KEYS], NULL, 0, key_visit, user);
    map_walk(&c->maps[STATE_ENDED], NULL, 0, ended_visit, user);
    assert_always(c->maps[STATE_DOMAINS].count == c->maps[STATE_WORKLOAD_DOMAINS].count);
    map_walk(&c->maps[STATE_DOMAINS], NULL, 0, domain_visit, user);
}

/* --- folders ---------------------------------------------------------------------------------------- */

char *help_directory(void)
{
    char path[] = "/tmp/skerry-registry-XXXXXX";
    assert_always(mkdtemp(path) != NULL);
    return text_new("%s", path);
}

void help_directory_remove(char *path)
{
    DIR *directory = opendir(path);
    if (directory != NULL) {
        for (struct dirent *i = readdir(directory); i != NULL; i = readdir(directory))
            unlinkat(dirfd(directory), i->d_name, 0);
        closedir(directory);
    }
    rmdir(path);
    free(path);
}
