/* The cluster itself, its tokens and images; and the sweep. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state_parts.h"

/* --- the cluster ------------------------------------------------------------------------------------ */

int state_apply_cluster_init(struct state_content *c, const struct registry_command *command,
                             struct registry_result *r, struct err *e)
{
    (void)e;
    if (c->cluster_id[0] == '\0') {
        text_copy(c->cluster_id, sizeof c->cluster_id, command->cluster_id);
        r->changed = true;
    } else if (strcmp(c->cluster_id, command->cluster_id) != 0) {
        state_refuse(r, PROBLEM_CONFLICT, "this is cluster %s", c->cluster_id);
        return 0;
    }
    /* A cluster that was made without one gets it when it is asked again. */
    if (command->gossip_key != NULL && c->keyring_count == 0) {
        state_keyring_put(c, command->gossip_key, true);
        r->changed = true;
    }
    return 0;
}

int state_apply_feature_level(struct state_content *c, const struct registry_command *command,
                              struct registry_result *r, struct err *e)
{
    if (command->version > STATE_FEATURE_LEVEL)
        return err_set(e, ERR_UNSUPPORTED,
                       "feature level %llu: this build has %u; upgrade this node",
                       (unsigned long long)command->version, STATE_FEATURE_LEVEL);
    if (command->version < c->feature_level) {
        state_refuse(r, PROBLEM_CONFLICT, "the feature level is %u and never falls",
                     c->feature_level);
        return 0;
    }
    r->changed = command->version != c->feature_level;
    c->feature_level = (uint32_t)command->version;
    return 0;
}

/* --- tokens ------------------------------------------------------------------------------------------ */

static void token_release(struct map_value *value)
{
    free(container_of(value, struct registry_token, value));
}

static struct state_map_key token_key(const char *id)
{
    struct state_map_key key = {0};
    state_key_bytes(&key, id, strlen(id));
    return key;
}

const struct registry_token *state_token(const struct state_content *c, const char *id)
{
    struct state_map_key key = token_key(id);
    const struct map_value *value = state_get(c, STATE_TOKENS, &key);
    return value == NULL ? NULL : container_of(value, const struct registry_token, value);
}

int state_token_remove(struct state_content *c, const char *id, struct err *e)
{
    struct state_map_key key = token_key(id);
    return state_remove(c, STATE_TOKENS, &key, e);
}

int state_token_put(struct state_content *c, const struct registry_token *like, struct err *e)
{
    struct registry_token *token = malloc(sizeof *token);
    if (token == NULL)
        return err_set(e, ERR_NO_MEMORY, "token %s: no memory", like->id);
    *token = *like;
    map_value_init(&token->value, token_release);
    struct state_map_key key = token_key(token->id);
    return state_put_new(c, STATE_TOKENS, &key, &token->value, e);
}

int state_apply_token_put(struct state_content *c, const struct registry_command *command,
                          struct registry_result *r, struct err *e)
{
    const struct registry_token *there = state_token(c, command->token->id);
    if (there != NULL) {
        if (memcmp(there->hash, command->token->hash, sizeof there->hash) != 0)
            state_refuse(r, PROBLEM_CONFLICT, "token %s exists", there->id);
        return 0;
    }
    if (c->maps[STATE_TOKENS].count >= STATE_TOKENS_MAX) {
        state_refuse(r, PROBLEM_LIMIT_REACHED, "there are %u tokens, as many as there may be",
                     STATE_TOKENS_MAX);
        return 0;
    }
    r->changed = true;
    return state_token_put(c, command->token, e);
}

int state_apply_token_revoke(struct state_content *c, const struct registry_command *command,
                             struct registry_result *r, struct err *e)
{
    if (state_token(c, command->token->id) == NULL) {
        state_refuse(r, PROBLEM_NOT_FOUND, "no token has the id %s", command->token->id);
        return 0;
    }
    r->changed = true;
    return state_token_remove(c, command->token->id, e);
}

/* --- images ------------------------------------------------------------------------------------------ */

static void image_release(struct map_value *value)
{
    free(container_of(value, struct registry_image, value));
}

int state_image_put(struct state_content *c, const struct registry_image *like, struct err *e)
{
    struct registry_image *image = malloc(sizeof *image);
    if (image == NULL)
        return err_set(e, ERR_NO_MEMORY, "image %s: no memory", like->name);
    *image = *like;
    map_value_init(&image->value, image_release);
    struct state_map_key key = {0};
    state_key_bytes(&key, image->name, strlen(image->name));
    return state_put_new(c, STATE_IMAGES, &key, &image->value, e);
}

int state_apply_image_put(struct state_content *c, const struct registry_command *command,
                          struct registry_result *r, struct err *e)
{
    struct state_map_key key = {0};
    state_key_bytes(&key, command->image->name, strlen(command->image->name));
    if (state_get(c, STATE_IMAGES, &key) == NULL &&
        c->maps[STATE_IMAGES].count >= STATE_IMAGES_MAX) {
        state_refuse(r, PROBLEM_LIMIT_REACHED, "there are %u images, as many as there may be",
                     STATE_IMAGES_MAX);
        return 0;
    }
    r->changed = true;
    return state_image_put(c, command->image, e);
}

struct image_use {
    const char *image;
    const struct registry_workload *found;
};

static bool image_use_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct image_use *u = user;
    (void)key;
    (void)key_length;
    const struct registry_workload *w = container_of(value, const struct registry_workload, value);
    if (strcmp(w->spec.image, u->image) == 0)
        u->found = w;
    return u->found == NULL;
}

int state_apply_image_remove(struct state_content *c, const struct registry_command *command,
                             struct registry_result *r, struct err *e)
{
    struct state_map_key key = {0};
    state_key_bytes(&key, command->image->name, strlen(command->image->name));
    if (state_get(c, STATE_IMAGES, &key) == NULL) {
        state_refuse(r, PROBLEM_IMAGE_UNKNOWN, "no image is named %s", command->image->name);
        return 0;
    }
    struct image_use use = {.image = command->image->name};
    map_walk(&c->maps[STATE_VERSIONS], NULL, 0, image_use_visit, &use);
    if (use.found != NULL) {
        state_refuse(r, PROBLEM_IMAGE_IN_USE, "version %llu of %s names it",
                     (unsigned long long)use.found->version, use.found->name);
        return 0;
    }
    r->changed = true;
    return state_remove(c, STATE_IMAGES, &key, e);
}

/* --- the sweep --------------------------------------------------------------------------------------- */

struct sweep {
    struct state_content *c;
    uint64_t wall_ms;
    size_t removed;
    int rc;
    struct err *e;
};

static uint64_t kept_since(uint64_t wall_ms)
{
    return wall_ms > REGISTRY_ENDED_KEPT_MS ? wall_ms - REGISTRY_ENDED_KEPT_MS : 0;
}

static bool sweep_workload_visit(void *user, const void *key, size_t key_length,
                                 struct map_value *value)
{
    struct sweep *s = user;
    const struct state_workload *w = container_of(value, const struct state_workload, value);
    if (w->ended > 0)
        s->rc = state_ended_forget(s->c, w->name, kept_since(s->wall_ms),
                                   STATE_SWEEP_MAX - s->removed, &s->removed, s->e);
    if (s->rc < 0)
        return false;
    w = state_workload(s->c, w->name);
    if (w->version_current == 0 && w->live == 0 && w->ended == 0 &&
        w->removed_wall_ms < kept_since(s->wall_ms)) {
        s->rc = map_remove(&s->c->maps[STATE_WORKLOADS], &s->c->maps[STATE_WORKLOADS], key,
                           key_length, s->e);
        s->removed++;
    }
    return s->rc == 0 && s->removed < STATE_SWEEP_MAX;
}

static bool sweep_token_visit(void *user, const void *key, size_t key_length,
                              struct map_value *value)
{
    struct sweep *s = user;
    const struct registry_token *t = container_of(value, const struct registry_token, value);
    if (t->expires_wall_ms == 0 || t->expires_wall_ms > s->wall_ms)
        return true;
    s->rc = map_remove(&s->c->maps[STATE_TOKENS], &s->c->maps[STATE_TOKENS], key, key_length, s->e);
    s->removed++;
    return s->rc == 0 && s->removed < STATE_SWEEP_MAX;
}

/* Walks a map that the visitor changes: over the map as it was. */
static void sweep_walk(struct sweep *s, enum state_map map,
                       bool (*visit)(void *user, const void *key, size_t key_length,
                                     struct map_value *value))
{
    if (s->rc < 0 || s->removed >= STATE_SWEEP_MAX)
        return;
    struct map before = map_hold(&s->c->maps[map]);
    map_walk(&before, NULL, 0, visit, s);
    map_release(&before);
}

int state_apply_sweep(struct state_content *c, const struct registry_command *command,
                      struct registry_result *r, struct err *e)
{
    struct sweep s = {.c = c, .wall_ms = command->wall_ms, .e = e};
    size_t lost = 0;
    s.rc = state_lost_end(c, command->wall_ms, STATE_LOST_MAX, &lost, e);
    s.removed = lost;
    if (s.rc == 0)
        s.rc = state_sessions_forget(c, STATE_SWEEP_MAX - s.removed, &s.removed, e);
    if (s.rc == 0)
        s.rc =
            state_tickets_forget(c, command->wall_ms, STATE_SWEEP_MAX - s.removed, &s.removed, e);
    sweep_walk(&s, STATE_TOKENS, sweep_token_visit);
    sweep_walk(&s, STATE_WORKLOADS, sweep_workload_visit);
    r->changed = s.removed >= STATE_SWEEP_MAX || lost >= STATE_LOST_MAX;
    return s.rc;
}
