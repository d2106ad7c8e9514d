/* Public keys of those who join over SSH, and the seed of the key by which they know the cluster. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state_parts.h"

static void ssh_key_release(struct map_value *value)
{
    free(container_of(value, struct registry_ssh_key, value));
}

static struct state_map_key ssh_key_key(const char *id)
{
    struct state_map_key key = {0};
    state_key_bytes(&key, id, strlen(id));
    return key;
}

static const struct registry_ssh_key *ssh_key(const struct state_content *c, const char *id)
{
    struct state_map_key key = ssh_key_key(id);
    const struct map_value *value = state_get(c, STATE_SSH_KEYS, &key);
    return value == NULL ? NULL : container_of(value, const struct registry_ssh_key, value);
}

int state_ssh_key_put(struct state_content *c, const struct registry_ssh_key *like, struct err *e)
{
    struct registry_ssh_key *made = malloc(sizeof *made);
    if (made == NULL)
        return err_set(e, ERR_NO_MEMORY, "SSH key %s: no memory", like->id);
    *made = *like;
    map_value_init(&made->value, ssh_key_release);
    struct state_map_key key = ssh_key_key(made->id);
    return state_put_new(c, STATE_SSH_KEYS, &key, &made->value, e);
}

int state_apply_ssh_key_put(struct state_content *c, const struct registry_command *command,
                            struct registry_result *r, struct err *e)
{
    const struct registry_ssh_key *like = command->ssh_key;
    const struct registry_ssh_key *there = ssh_key(c, like->id);
    if (there != NULL) {
        /* The id is of what it stands for: anything else under it was made to be mistaken for it. */
        if (there->blob_length != like->blob_length ||
            memcmp(there->blob, like->blob, like->blob_length) != 0 ||
            strcmp(there->workload, like->workload) != 0)
            state_refuse(r, PROBLEM_CONFLICT, "another SSH key has the id %s", there->id);
        return 0;
    }
    if (c->maps[STATE_SSH_KEYS].count >= STATE_SSH_KEYS_MAX) {
        state_refuse(r, PROBLEM_LIMIT_REACHED, "there are %u SSH keys, as many as there may be",
                     STATE_SSH_KEYS_MAX);
        return 0;
    }
    r->changed = true;
    return state_ssh_key_put(c, like, e);
}

int state_apply_ssh_key_remove(struct state_content *c, const struct registry_command *command,
                               struct registry_result *r, struct err *e)
{
    struct state_map_key key = ssh_key_key(command->ssh_key->id);
    if (state_get(c, STATE_SSH_KEYS, &key) == NULL) {
        state_refuse(r, PROBLEM_NOT_FOUND, "no SSH key has the id %s", command->ssh_key->id);
        return 0;
    }
    r->changed = true;
    return state_remove(c, STATE_SSH_KEYS, &key, e);
}

int state_apply_ssh_host_key(struct state_content *c, const struct registry_command *command,
                             struct registry_result *r, struct err *e)
{
    (void)e;
    if (c->ssh_seed_made)
        return 0; /* clients know that one */
    memcpy(c->ssh_seed, command->ssh_seed, sizeof c->ssh_seed);
    c->ssh_seed_made = true;
    r->changed = true;
    return 0;
}
