/* Tickets that were used, so that none is good twice, whichever nodes it is shown to. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/state_parts.h"

/* Of those that are over each use takes away a few, so that they need not wait for a sweep. */
enum { FORGOTTEN_PER_USE = 4 };

static void ticket_release(struct map_value *value)
{
    free(container_of(value, struct state_ticket, value));
}

static struct state_map_key ticket_key(const struct registry_ticket *ticket)
{
    struct state_map_key key = {0};
    state_key_u64(&key, ticket->expires_wall_ms);
    state_key_bytes(&key, ticket->nonce, sizeof ticket->nonce);
    return key;
}

int state_ticket_put(struct state_content *c, const struct registry_ticket *ticket, struct err *e)
{
    struct state_ticket *made = malloc(sizeof *made);
    if (made == NULL)
        return err_set(e, ERR_NO_MEMORY, "a used ticket: no memory");
    made->ticket = *ticket;
    map_value_init(&made->value, ticket_release);
    struct state_map_key key = ticket_key(ticket);
    return state_put_new(c, STATE_TICKETS, &key, &made->value, e);
}

static bool over(const struct registry_ticket *ticket, uint64_t wall_ms)
{
    return wall_ms > STATE_TICKET_KEPT_MS &&
           ticket->expires_wall_ms < wall_ms - STATE_TICKET_KEPT_MS;
}

static bool first_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    const struct registry_ticket **first = user;
    (void)key;
    (void)key_length;
    *first = &container_of(value, const struct state_ticket, value)->ticket;
    return false;
}

int state_tickets_forget(struct state_content *c, uint64_t wall_ms, size_t max, size_t *removed,
                         struct err *e)
{
    for (size_t i = 0; i < max; i++) {
        const struct registry_ticket *first = NULL;
        map_walk(&c->maps[STATE_TICKETS], NULL, 0, first_visit, &first);
        if (first == NULL || !over(first, wall_ms))
            break;
        struct state_map_key key = ticket_key(first);
        int rc = state_remove(c, STATE_TICKETS, &key, e);
        if (rc < 0)
            return rc;
        (*removed)++;
    }
    return 0;
}

int state_apply_ticket_use(struct state_content *c, const struct registry_command *command,
                           struct registry_result *r, struct err *e)
{
    const struct registry_ticket *ticket = command->ticket;
    struct state_map_key key = ticket_key(ticket);
    size_t removed = 0;
    int rc = state_tickets_forget(c, command->wall_ms, FORGOTTEN_PER_USE, &removed, e);
    if (rc < 0)
        return rc;
    if (over(ticket, command->wall_ms) || state_get(c, STATE_TICKETS, &key) != NULL) {
        state_refuse(r, PROBLEM_CONFLICT, "the ticket was used before, or is over");
        return 0;
    }
    if (c->maps[STATE_TICKETS].count >= STATE_TICKETS_MAX) {
        state_refuse(r, PROBLEM_LIMIT_REACHED,
                     "%u tickets were used lately, as many as are remembered; try again in a while",
                     STATE_TICKETS_MAX);
        return 0;
    }
    r->changed = true;
    return state_ticket_put(c, ticket, e);
}
