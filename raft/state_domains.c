/* Host names and aliases at which workloads answer. */
#include <stdlib.h>
#include <string.h>

#include "base/domain.h"
#include "base/memory.h"
#include "raft/state_parts.h"

_Static_assert(DOMAIN_LENGTH_MAX == REGISTRY_DOMAIN_LENGTH_MAX, "a domain fits");

static void domain_release(struct map_value *value)
{
    free(container_of(value, struct registry_domain, value));
}

static struct state_map_key name_key(const char *name)
{
    struct state_map_key key = {0};
    state_key_bytes(&key, name, strlen(name));
    return key;
}

static struct state_map_key workload_key(const char *workload, const char *name)
{
    struct state_map_key key = {0};
    state_key_text(&key, workload);
    state_key_bytes(&key, name, strlen(name));
    return key;
}

const struct registry_domain *state_domain(const struct state_content *c, const char *name)
{
    struct state_map_key key = name_key(name);
    const struct map_value *value = state_get(c, STATE_DOMAINS, &key);
    return value == NULL ? NULL : container_of(value, const struct registry_domain, value);
}

int state_domain_put(struct state_content *c, const struct registry_domain *like, struct err *e)
{
    struct registry_domain *made = malloc(sizeof *made);
    if (made == NULL)
        return err_set(e, ERR_NO_MEMORY, "domain %s: no memory", like->name);
    *made = *like;
    map_value_init(&made->value, domain_release);
    struct state_map_key by_name = name_key(made->name);
    struct state_map_key by_workload = workload_key(made->workload, made->name);
    int rc = state_put(c, STATE_DOMAINS, &by_name, &made->value, e);
    if (rc == 0)
        rc = state_put(c, STATE_WORKLOAD_DOMAINS, &by_workload, &made->value, e);
    map_value_drop(&made->value);
    return rc;
}

static int domain_remove(struct state_content *c, const struct registry_domain *domain,
                         struct err *e)
{
    struct state_map_key by_name = name_key(domain->name);
    struct state_map_key by_workload = workload_key(domain->workload, domain->name);
    int rc = state_remove(c, STATE_DOMAINS, &by_name, e);
    return rc < 0 ? rc : state_remove(c, STATE_WORKLOAD_DOMAINS, &by_workload, e);
}

/* --- those of one workload -------------------------------------------------------------------------- */

struct walk {
    struct state_map_key prefix;
    uint32_t count;
    const struct registry_domain *first;
};

static bool walk_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct walk *w = user;
    if (!state_key_starts_with(key, key_length, &w->prefix))
        return false;
    if (w->count++ == 0)
        w->first = container_of(value, const struct registry_domain, value);
    return true;
}

static void walk(const struct state_content *c, const char *workload, struct walk *w)
{
    *w = (struct walk){0};
    state_key_text(&w->prefix, workload);
    map_walk(&c->maps[STATE_WORKLOAD_DOMAINS], w->prefix.bytes, w->prefix.length, walk_visit, w);
}

int state_domains_remove(struct state_content *c, const char *workload, struct err *e)
{
    struct walk w;
    int rc = 0;
    for (walk(c, workload, &w); rc == 0 && w.first != NULL; walk(c, workload, &w))
        rc = domain_remove(c, w.first, e);
    return rc;
}

/* --- commands --------------------------------------------------------------------------------------- */

static bool may_be_put(const struct state_content *c, const struct registry_domain *like,
                       struct registry_result *r)
{
    const struct state_workload *w = state_workload(c, like->workload);
    const struct state_workload *namesake =
        domain_is_alias(like->name) ? state_workload(c, like->name) : NULL;
    struct walk of_workload;
    walk(c, like->workload, &of_workload);
    if (w == NULL || w->version_current == 0)
        state_refuse(r, PROBLEM_WORKLOAD_UNKNOWN, "no workload is named %s", like->workload);
    else if (namesake != NULL && namesake->version_current != 0)
        state_refuse(r, PROBLEM_CONFLICT, "%s is the name of a workload, so it is no alias of %s",
                     like->name, like->workload);
    else if (of_workload.count >= STATE_DOMAINS_PER_WORKLOAD_MAX)
        state_refuse(r, PROBLEM_LIMIT_REACHED,
                     "%s has %u domains, as many as a workload may have; skerry domain rm one",
                     like->workload, of_workload.count);
    else if (c->maps[STATE_DOMAINS].count >= STATE_DOMAINS_MAX)
        state_refuse(r, PROBLEM_LIMIT_REACHED, "there are %u domains, as many as there may be",
                     STATE_DOMAINS_MAX);
    return r->problem == PROBLEM_NONE;
}

int state_apply_domain_put(struct state_content *c, const struct registry_command *command,
                           struct registry_result *r, struct err *e)
{
    const struct registry_domain *like = command->domain;
    const struct registry_domain *there = state_domain(c, like->name);
    if (there != NULL && strcmp(there->workload, like->workload) != 0)
        state_refuse(r, PROBLEM_CONFLICT,
                     "%.100s leads to workload %s; skerry domain rm %.100s first", like->name,
                     there->workload, like->name);
    if (there != NULL || !may_be_put(c, like, r))
        return 0;
    r->changed = true;
    return state_domain_put(c, like, e);
}

int state_apply_domain_remove(struct state_content *c, const struct registry_command *command,
                              struct registry_result *r, struct err *e)
{
    const struct registry_domain *there = state_domain(c, command->domain->name);
    if (there == NULL) {
        state_refuse(r, PROBLEM_NOT_FOUND, "%.200s leads to no workload", command->domain->name);
        return 0;
    }
    r->changed = true;
    return domain_remove(c, there, e);
}
