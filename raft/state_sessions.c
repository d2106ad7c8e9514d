/* Sessions: a number that was answered is answered the same again, and nothing is done twice. */
#include <stdlib.h>

#include "base/memory.h"
#include "raft/state_parts.h"

static struct state_map_key session_key(node_id node, uint64_t boot)
{
    struct state_map_key key = {0};
    state_key_u64(&key, node);
    state_key_u64(&key, boot);
    return key;
}

static const struct state_session *session_get(const struct state_content *c, node_id node,
                                               uint64_t boot)
{
    struct state_map_key key = session_key(node, boot);
    const struct map_value *value = state_get(c, STATE_SESSIONS, &key);
    return value == NULL ? NULL : container_of(value, const struct state_session, value);
}

bool state_session_knows(const struct state_content *c, const struct command_session *asked)
{
    const struct state_session *s = session_get(c, asked->node, asked->boot);
    return s != NULL && asked->sequence <= s->sequence_last;
}

bool state_session_refused(const struct state_content *c, const struct command_session *asked,
                           struct registry_result *r)
{
    /* A registry is made, and restored, by a node that is not in it yet. */
    if (asked->node >= c->node_id_next || c->maps[STATE_NODES].count == 0 ||
        state_node(c, asked->node) != NULL)
        return false;
    *r = (struct registry_result){0};
    state_refuse(r, PROBLEM_FORBIDDEN, "node %llu is not of this cluster any more",
                 (unsigned long long)asked->node);
    return true;
}

bool state_session_recall(const struct state_content *c, const struct command_session *asked,
                          struct registry_result *r)
{
    const struct state_session *s = session_get(c, asked->node, asked->boot);
    if (s == NULL || asked->sequence > s->sequence_last)
        return false;
    struct state_map_key key = session_key(asked->node, asked->boot);
    state_key_u64(&key, asked->sequence);
    const struct map_value *value = state_get(c, STATE_RESULTS, &key);
    if (value != NULL) {
        *r = container_of(value, const struct state_result, value)->result;
        return true;
    }
    /* Within the window and without a result: it never arrived, later numbers overtook it. */
    if (s->sequence_last - asked->sequence < STATE_SESSION_RESULTS_MAX)
        return false;
    *r = (struct registry_result){0};
    state_refuse(r, PROBLEM_OUTCOME_UNKNOWN, "number %llu of its session is too old to be answered",
                 (unsigned long long)asked->sequence);
    return true;
}

/* --- remembering ------------------------------------------------------------------------------------ */

static void session_release(struct map_value *value)
{
    free(container_of(value, struct state_session, value));
}

static void result_release(struct map_value *value)
{
    free(container_of(value, struct state_result, value));
}

int state_session_put(struct state_content *c, const struct state_session *like, struct err *e)
{
    struct state_session *s = malloc(sizeof *s);
    if (s == NULL)
        return err_set(e, ERR_NO_MEMORY, "a session: no memory");
    *s = *like;
    map_value_init(&s->value, session_release);
    struct state_map_key key = session_key(s->node, s->boot);
    return state_put_new(c, STATE_SESSIONS, &key, &s->value, e);
}

int state_result_put(struct state_content *c, const struct command_session *asked,
                     const struct registry_result *r, struct err *e)
{
    struct state_result *result = malloc(sizeof *result);
    if (result == NULL)
        return err_set(e, ERR_NO_MEMORY, "a session's result: no memory");
    *result = (struct state_result){.asked = *asked, .result = *r};
    map_value_init(&result->value, result_release);
    struct state_map_key key = session_key(asked->node, asked->boot);
    state_key_u64(&key, asked->sequence);
    return state_put_new(c, STATE_RESULTS, &key, &result->value, e);
}

struct first_result {
    const struct state_map_key *prefix;
    const struct state_result *found;
};

static bool first_result_visit(void *user, const void *key, size_t key_length,
                               struct map_value *value)
{
    struct first_result *f = user;
    if (state_key_starts_with(key, key_length, f->prefix))
        f->found = container_of(value, const struct state_result, value);
    return false;
}

/* Forgets the results of numbers up to `last`, at most so many; adds how many. */
static int results_forget(struct state_content *c, node_id node, uint64_t boot, uint64_t last,
                          size_t max, size_t *forgotten, struct err *e)
{
    struct state_map_key prefix = session_key(node, boot);
    for (size_t n = 0; n < max; n++) {
        struct first_result f = {.prefix = &prefix};
        map_walk(&c->maps[STATE_RESULTS], prefix.bytes, prefix.length, first_result_visit, &f);
        if (f.found == NULL || f.found->asked.sequence > last)
            return 0;
        struct state_map_key key = prefix;
        state_key_u64(&key, f.found->asked.sequence);
        int rc = state_remove(c, STATE_RESULTS, &key, e);
        if (rc < 0)
            return rc;
        (*forgotten)++;
    }
    return 0;
}

struct node_sessions {
    const struct state_map_key *prefix;
    size_t count;
    uint64_t oldest_index;
    uint64_t oldest_boot;
};

static bool node_sessions_visit(void *user, const void *key, size_t key_length,
                                struct map_value *value)
{
    struct node_sessions *n = user;
    if (!state_key_starts_with(key, key_length, n->prefix))
        return false;
    const struct state_session *s = container_of(value, const struct state_session, value);
    if (n->count++ == 0 || s->opened_index < n->oldest_index) {
        n->oldest_index = s->opened_index;
        n->oldest_boot = s->boot;
    }
    return true;
}

/* Makes room for one more session of a node. */
static int sessions_prune(struct state_content *c, node_id node, struct err *e)
{
    struct state_map_key prefix = {0};
    state_key_u64(&prefix, node);
    for (;;) {
        struct node_sessions n = {.prefix = &prefix};
        map_walk(&c->maps[STATE_SESSIONS], prefix.bytes, prefix.length, node_sessions_visit, &n);
        if (n.count < STATE_SESSIONS_PER_NODE_MAX)
            return 0;
        size_t forgotten = 0;
        int rc = results_forget(c, node, n.oldest_boot, UINT64_MAX, SIZE_MAX, &forgotten, e);
        struct state_map_key key = session_key(node, n.oldest_boot);
        if (rc == 0)
            rc = state_remove(c, STATE_SESSIONS, &key, e);
        if (rc < 0)
            return rc;
    }
}

int state_session_remember(struct state_content *c, const struct command_session *asked,
                           const struct registry_result *r, uint64_t index, struct err *e)
{
    const struct state_session *there = session_get(c, asked->node, asked->boot);
    struct state_session s = {.node = asked->node, .boot = asked->boot, .opened_index = index};
    if (there == NULL && c->maps[STATE_SESSIONS].count >= STATE_SESSIONS_MAX &&
        state_node(c, asked->node) == NULL)
        return 0;
    int rc = there == NULL ? sessions_prune(c, asked->node, e) : 0;
    if (there != NULL)
        s = *there;
    if (rc == 0)
        rc = state_result_put(c, asked, r, e);
    if (rc < 0 || (there != NULL && asked->sequence <= s.sequence_last))
        return rc;
    s.sequence_last = asked->sequence;
    rc = state_session_put(c, &s, e);
    if (rc < 0 || s.sequence_last < STATE_SESSION_RESULTS_MAX)
        return rc;
    size_t forgotten = 0;
    return results_forget(c, s.node, s.boot, s.sequence_last - STATE_SESSION_RESULTS_MAX, SIZE_MAX,
                          &forgotten, e);
}

/* --- forgetting ------------------------------------------------------------------------------------- */

static bool first_session_visit(void *user, const void *key, size_t key_length,
                                struct map_value *value)
{
    (void)key;
    (void)key_length;
    *(const struct state_session **)user = container_of(value, const struct state_session, value);
    return false;
}

/* Its results first, so that none is ever there without its session. */
static int session_forget(struct state_content *c, node_id node, uint64_t boot, size_t max,
                          size_t *forgotten, struct err *e)
{
    size_t results = 0;
    int rc = results_forget(c, node, boot, UINT64_MAX, max, &results, e);
    *forgotten += results;
    if (rc < 0 || results == max)
        return rc;
    struct state_map_key key = session_key(node, boot);
    (*forgotten)++;
    return state_remove(c, STATE_SESSIONS, &key, e);
}

int state_sessions_forget(struct state_content *c, size_t max, size_t *forgotten, struct err *e)
{
    size_t until = *forgotten + max;
    struct state_map_key from = {0};
    if (c->maps[STATE_NODES].count == 0)
        return 0; /* who makes the registry has a session before it has an entry */
    while (*forgotten < until) {
        const struct state_session *s = NULL;
        map_walk(&c->maps[STATE_SESSIONS], from.bytes, from.length, first_session_visit, &s);
        if (s == NULL)
            return 0;
        from = (struct state_map_key){0};
        if (state_node(c, s->node) != NULL) {
            if (s->node == UINT64_MAX)
                return 0;
            state_key_u64(&from, s->node + 1);
            continue;
        }
        state_key_u64(&from, s->node);
        int rc = session_forget(c, s->node, s->boot, until - *forgotten, forgotten, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}
