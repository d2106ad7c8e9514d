#include "raft/state.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state_parts.h"

struct state {
    struct state_content now;
    struct registry_root *root; /* of `now`, or of an older state */
    struct state_garbage *garbage;
    bool root_stale;
    bool halted;
    struct err halt_cause;
};

static state_apply_fn *const apply_by_kind[] = {
    [REGISTRY_CLUSTER_INIT] = state_apply_cluster_init,
    [REGISTRY_NODE_PUT] = state_apply_node_put,
    [REGISTRY_WORKLOAD_PUT] = state_apply_workload_put,
    [REGISTRY_WORKLOAD_REMOVE] = state_apply_workload_remove,
    [REGISTRY_WORKLOAD_ROLLBACK] = state_apply_workload_rollback,
    [REGISTRY_INSTANCE_RESERVE] = state_apply_instance_reserve,
    [REGISTRY_INSTANCE_UPDATE] = state_apply_instance_update,
    [REGISTRY_INSTANCE_END] = state_apply_instance_end,
    [REGISTRY_SWEEP] = state_apply_sweep,
    [REGISTRY_TOKEN_PUT] = state_apply_token_put,
    [REGISTRY_TOKEN_REVOKE] = state_apply_token_revoke,
    [REGISTRY_IMAGE_PUT] = state_apply_image_put,
    [REGISTRY_IMAGE_REMOVE] = state_apply_image_remove,
    [REGISTRY_FEATURE_LEVEL] = state_apply_feature_level,
    [REGISTRY_NODE_JOIN] = state_apply_node_join,
    [REGISTRY_NODE_REMOVE] = state_apply_node_remove,
    [REGISTRY_NODE_DRAIN] = state_apply_node_drain,
    [REGISTRY_LEASE_GRANT] = state_apply_lease_grant,
    [REGISTRY_LEASE_EXPIRE] = state_apply_lease_expire,
    [REGISTRY_KEYRING] = state_apply_keyring,
    [REGISTRY_SSH_KEY_PUT] = state_apply_ssh_key_put,
    [REGISTRY_SSH_KEY_REMOVE] = state_apply_ssh_key_remove,
    [REGISTRY_SSH_HOST_KEY] = state_apply_ssh_host_key,
    [REGISTRY_DOMAIN_PUT] = state_apply_domain_put,
    [REGISTRY_DOMAIN_REMOVE] = state_apply_domain_remove,
    [REGISTRY_TICKET_USE] = state_apply_ticket_use,
};

/* --- content -------------------------------------------------------------------------------------- */

static struct state_content content_hold(const struct state_content *c)
{
    struct state_content copy = *c;
    for (size_t i = 0; i < STATE_MAP_COUNT; i++)
        copy.maps[i] = map_hold(&c->maps[i]);
    return copy;
}

void state_content_release(struct state_content *c)
{
    for (size_t i = 0; i < STATE_MAP_COUNT; i++)
        map_release(&c->maps[i]);
}

static void garbage_drop(struct state_garbage *garbage)
{
    if (--garbage->references > 0)
        return;
    map_collect(&garbage->maps, SIZE_MAX);
    free(garbage);
}

static void content_discard(struct state_content *c, struct state_garbage *garbage)
{
    for (size_t i = 0; i < STATE_MAP_COUNT; i++)
        map_discard(&c->maps[i], &garbage->maps);
}

static struct registry_root *root_new(const struct state *s)
{
    struct registry_root *root = malloc(sizeof *root);
    if (root == NULL)
        return NULL;
    root->references = 1;
    root->content = content_hold(&s->now);
    root->garbage = s->garbage;
    root->garbage->references++;
    return root;
}

struct registry_root *registry_root_hold(struct registry_root *root)
{
    assert_always(root->references > 0 && root->references < UINT32_MAX);
    root->references++;
    return root;
}

void registry_root_release(struct registry_root *root)
{
    if (root == NULL)
        return;
    assert_always(root->references > 0);
    if (--root->references > 0)
        return;
    content_discard(&root->content, root->garbage);
    garbage_drop(root->garbage);
    free(root);
}

/* --- life ------------------------------------------------------------------------------------------ */

void state_free(struct state *s)
{
    if (s == NULL)
        return;
    registry_root_release(s->root);
    state_content_release(&s->now);
    if (s->garbage != NULL)
        garbage_drop(s->garbage);
    free(s);
}

int state_new(struct state **out, struct err *e)
{
    struct state *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NO_MEMORY, "the registry's state: no memory");
    s->now.feature_level = STATE_FEATURE_LEVEL;
    s->now.node_id_next = 1;
    s->now.generation = 1;
    s->garbage = calloc(1, sizeof *s->garbage);
    if (s->garbage != NULL) {
        s->garbage->references = 1;
        s->root = root_new(s);
    }
    if (s->root == NULL) {
        state_free(s);
        return err_set(e, ERR_NO_MEMORY, "the registry's state: no memory");
    }
    *out = s;
    return 0;
}

bool state_halted(const struct state *s)
{
    return s->halted;
}

bool state_collect(struct state *s, size_t entries_max)
{
    return map_collect(&s->garbage->maps, entries_max);
}

struct registry_root *state_root(struct state *s)
{
    if (s->root_stale) {
        struct registry_root *root = root_new(s);
        if (root != NULL) {
            registry_root_release(s->root);
            s->root = root;
            s->root_stale = false;
        }
    }
    return registry_root_hold(s->root);
}

const struct state_content *state_content(const struct state *s)
{
    return &s->now;
}

void state_restore(struct state *s, struct state_content *content)
{
    content_discard(&s->now, s->garbage);
    s->now = *content;
    memset(content->maps, 0, sizeof content->maps);
    s->root_stale = true;
}

int state_raise_generation(struct state *s, struct err *e)
{
    if (s->now.generation + 1 >= (uint64_t)1 << (64 - STATE_EPOCH_SEQUENCE_BITS))
        return err_set(e, ERR_LIMIT, "generation %llu of the registry is the last that there is",
                       (unsigned long long)s->now.generation);
    s->now.generation++;
    s->now.epoch_sequence = 0;
    s->root_stale = true;
    return 0;
}

int state_admits(const struct state *s, const struct registry_command *command, struct err *e)
{
    uint32_t needs = command_feature_level(command->kind);
    if (needs > s->now.feature_level)
        return err_set(e, ERR_UNSUPPORTED,
                       "registry command %d needs feature level %u, the cluster has %u; upgrade "
                       "all nodes first",
                       (int)command->kind, needs, s->now.feature_level);
    if (command->kind == REGISTRY_FEATURE_LEVEL && command->version > STATE_FEATURE_LEVEL)
        return err_set(e, ERR_UNSUPPORTED,
                       "feature level %llu: this build has %u; upgrade this node first",
                       (unsigned long long)command->version, STATE_FEATURE_LEVEL);
    return 0;
}

/* --- apply ------------------------------------------------------------------------------------------ */

static int apply_new(struct state_content *c, uint64_t index, const struct command *command,
                     struct registry_result *r, struct err *e)
{
    *r = (struct registry_result){.index = index};
    int rc = apply_by_kind[command->body.kind](c, &command->body, r, e);
    if (rc == 0)
        rc = state_session_remember(c, &command->session, r, index, e);
    return rc;
}

static int apply_decoded(struct state *s, uint64_t index, const struct command *command,
                         struct state_outcome *out, struct err *e)
{
    out->session = command->session;
    if (state_session_refused(&s->now, &command->session, &out->result)) {
        out->result.index = index;
        s->now.index = index;
        s->root_stale = true;
        return 0;
    }
    out->repeated = state_session_recall(&s->now, &command->session, &out->result);
    if (out->repeated) {
        s->now.index = index;
        s->root_stale = true;
        return 0;
    }
    struct state_content next = content_hold(&s->now);
    next.index = index;
    int rc = apply_new(&next, index, command, &out->result, e);
    if (rc < 0) {
        state_content_release(&next);
        return rc;
    }
    state_content_release(&s->now);
    s->now = next;
    s->root_stale = true;
    return 0;
}

int state_apply(struct state *s, uint64_t index, const void *data, size_t length,
                struct state_outcome *out, struct err *e)
{
    if (s->halted)
        return err_set(e, s->halt_cause.code, "%s", s->halt_cause.msg);
    memset(out, 0, sizeof *out);
    struct command command;
    struct err cause = {0};
    int rc = command_decode(&command, data, length, &cause);
    if (rc == 0) {
        rc = apply_decoded(s, index, &command, out, &cause);
        command_free(&command);
    }
    if (rc == 0)
        return 0;
    s->halted = true;
    err_wrap(&cause, "the registry halts at index %llu", (unsigned long long)index);
    s->halt_cause = cause;
    return err_set(e, cause.code, "%s", cause.msg);
}
