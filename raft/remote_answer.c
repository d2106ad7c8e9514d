/* The answering half: questions of other nodes. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "raft/remote_internal.h"

/* A question that is being answered. */
struct asked;
struct asked_item {
    struct asked *asked;
    struct remote_outcome *outcome;
};

struct asked {
    struct remote *remote;
    node_id from;
    registry_answer_fn answer;
    void *question;
    size_t count, open; /* commands, and those of which nothing is known yet */
    struct remote_outcome *outcomes;
    struct asked_item *items;
};

/* --- what another node may propose ---------------------------------------------------------------------- */

/* The owner of an instance speaks for it, and nobody else: a node that was taken over ends no other's.
 * Leases and levels are the leader's own to give. */
static const char *kind_fault(node_id from, const struct registry_command *c)
{
    switch (c->kind) {
    case REGISTRY_INSTANCE_RESERVE:
    case REGISTRY_INSTANCE_UPDATE:
    case REGISTRY_INSTANCE_END:
        if (instance_id_owner(&c->instance->id) != from)
            return "only the owner of an instance may change it";
        if (c->kind == REGISTRY_INSTANCE_RESERVE && c->instance->owner != from)
            return "only a node itself may reserve its instances";
        return NULL;
    case REGISTRY_NODE_PUT:
        return c->node->id == from ? NULL : "a node may put itself only";
    case REGISTRY_CLUSTER_INIT:
    case REGISTRY_FEATURE_LEVEL:
    case REGISTRY_LEASE_GRANT:
    case REGISTRY_LEASE_EXPIRE:
    case REGISTRY_SSH_HOST_KEY:
        return "only the node that leads may propose this";
    case REGISTRY_WORKLOAD_PUT:
    case REGISTRY_WORKLOAD_REMOVE:
    case REGISTRY_WORKLOAD_ROLLBACK:
    case REGISTRY_SWEEP:
    case REGISTRY_TOKEN_PUT:
    case REGISTRY_TOKEN_REVOKE:
    case REGISTRY_IMAGE_PUT:
    case REGISTRY_IMAGE_REMOVE:
    case REGISTRY_NODE_JOIN:
    case REGISTRY_NODE_REMOVE:
    case REGISTRY_NODE_DRAIN:
    case REGISTRY_KEYRING:
    case REGISTRY_SSH_KEY_PUT:
    case REGISTRY_SSH_KEY_REMOVE:
    case REGISTRY_DOMAIN_PUT:
    case REGISTRY_DOMAIN_REMOVE:
    case REGISTRY_TICKET_USE:
        return NULL;
    }
    return "this build does not know its kind";
}

/* Tokens, tickets and nodes are judged by the time that their command brings, and the state machine has no other: a
 * clock that is wrong would make tokens that live for years, or let ones join that are over. */
static bool has_judged_time(enum registry_command_kind kind)
{
    return kind == REGISTRY_TOKEN_PUT || kind == REGISTRY_TOKEN_REVOKE ||
           kind == REGISTRY_NODE_PUT || kind == REGISTRY_NODE_JOIN || kind == REGISTRY_NODE_DRAIN ||
           kind == REGISTRY_NODE_REMOVE || kind == REGISTRY_TICKET_USE;
}

static int check_time(const struct registry_command *c, node_id from, uint64_t wall_ms,
                      struct err *e)
{
    if (wall_ms == 0 || !has_judged_time(c->kind))
        return 0;
    bool ahead = c->wall_ms > wall_ms;
    uint64_t off_ms = ahead ? c->wall_ms - wall_ms : wall_ms - c->wall_ms;
    if (off_ms <= (ahead ? REMOTE_CLOCK_MS : REMOTE_COMMAND_AGE_MS))
        return 0;
    return err_set(
        e, ERR_DENIED,
        "the clock of node %llu is %llu s %s the one of the node that leads; at most %u s "
        "are taken: set them by NTP",
        (unsigned long long)from, (unsigned long long)off_ms / 1000, ahead ? "ahead of" : "behind",
        REMOTE_CLOCK_MS / 1000);
}

int remote_command_check(const struct state *state, node_id from, const uint8_t *bytes,
                         size_t length, uint64_t wall_ms, struct command_session *out,
                         struct err *e)
{
    struct command command;
    int rc = command_decode(&command, bytes, length, e);
    if (rc < 0)
        return rc;
    const char *fault = kind_fault(from, &command.body);
    if (command.session.node != from)
        fault = "its session is another node's";
    else if (command.session.sequence == 0)
        fault = "its number is 0";
    *out = command.session;
    if (fault != NULL)
        rc = err_set(e, ERR_DENIED, "registry command %d of node %llu: %s", (int)command.body.kind,
                     (unsigned long long)from, fault);
    else
        rc = check_time(&command.body, from, wall_ms, e);
    if (rc == 0)
        rc = state_admits(state, &command.body, e);
    command_free(&command);
    return rc;
}

/* --- answering ------------------------------------------------------------------------------------------ */

static void say(const struct remote_answer *a, registry_answer_fn answer, void *question)
{
    uint8_t *bytes;
    size_t size;
    struct err e;
    /* Without memory an empty answer: the other side takes it as one that it cannot read. */
    if (remote_answer_encode(&bytes, &size, a, &e) < 0) {
        answer(question, "", 0);
        return;
    }
    answer(question, bytes, size);
    free(bytes);
}

static void say_not_leader(struct remote *r, registry_answer_fn answer, void *question)
{
    node_id leader = r->options.leader(r->options.user);
    const struct remote_answer a = {.says = REMOTE_NOT_LEADER, .leader = leader};
    say(&a, answer, question);
}

static void asked_free(struct asked *q)
{
    q->remote->questions--;
    free(q->outcomes);
    free(q->items);
    free(q);
}

static struct asked *asked_new(struct remote *r, node_id from, size_t count,
                               registry_answer_fn answer, void *question)
{
    if (r->questions >= REMOTE_QUESTIONS_MAX)
        return NULL;
    struct asked *q = calloc(1, sizeof *q);
    if (q == NULL)
        return NULL;
    r->questions++;
    *q = (struct asked){
        .remote = r, .from = from, .answer = answer, .question = question, .count = count};
    q->outcomes = calloc(count + 1, sizeof *q->outcomes);
    q->items = calloc(count + 1, sizeof *q->items);
    if (q->outcomes != NULL && q->items != NULL)
        return q;
    asked_free(q);
    return NULL;
}

static void asked_settle(struct asked *q)
{
    if (--q->open > 0)
        return;
    const struct remote_answer a = {
        .says = REMOTE_PROPOSED, .outcomes = q->outcomes, .count = q->count};
    say(&a, q->answer, q->question);
    asked_free(q);
}

static void item_answered_cb(void *user, const struct err *error,
                             const struct registry_result *result)
{
    struct asked_item *item = user;
    struct remote_outcome *o = item->outcome;
    if (error == NULL) {
        o->fate = REMOTE_RESULT;
        o->result = *result;
    } else {
        o->fate = error->code == ERR_UNAVAILABLE ? REMOTE_NOT_PROPOSED : REMOTE_UNKNOWN;
    }
    asked_settle(item->asked);
}

static void item_propose(struct asked *q, size_t i, const struct remote_bytes *command,
                         uint64_t deadline_ms)
{
    struct remote *r = q->remote;
    struct asked_item *item = &q->items[i];
    struct command_session session;
    struct err e;
    *item = (struct asked_item){.asked = q, .outcome = &q->outcomes[i]};
    uint64_t wall_ms = r->options.wall_ms == NULL ? 0 : r->options.wall_ms();
    if (remote_command_check(r->options.state, q->from, command->bytes, command->length, wall_ms,
                             &session, &e) < 0) {
        log_warn("registry", "refused: %s", e.msg);
        item->outcome->fate = REMOTE_DENIED;
        (void)text_copy(item->outcome->text, sizeof item->outcome->text, e.msg);
        asked_settle(q);
        return;
    }
    uint8_t *bytes = malloc(command->length);
    if (bytes != NULL) {
        memcpy(bytes, command->bytes, command->length);
        if (proposer_propose_foreign(r->options.proposer, &session, bytes, command->length,
                                     deadline_ms, item_answered_cb, item, &e) == 0)
            return;
    }
    item->outcome->fate = REMOTE_NOT_PROPOSED;
    asked_settle(q);
}

static void propose(struct remote *r, uint64_t now_ms, node_id from,
                    const struct remote_question *m, registry_answer_fn answer, void *question)
{
    struct asked *q = asked_new(r, from, m->count, answer, question);
    if (q == NULL) {
        say_not_leader(r, answer, question);
        return;
    }
    /* One more, so that it is not answered while it is still being read. */
    q->open = m->count + 1;
    for (size_t i = 0; i < m->count; i++)
        item_propose(q, i, &m->commands[i], now_ms + m->timeout_ms);
    asked_settle(q);
}

static void barred_cb(void *user, const struct err *error)
{
    struct asked *q = user;
    struct remote *r = q->remote;
    if (error != NULL) {
        say_not_leader(r, q->answer, q->question);
    } else {
        const struct remote_answer a = {.says = REMOTE_INDEX,
                                        .index = r->options.raft->last_applied};
        say(&a, q->answer, q->question);
    }
    asked_free(q);
}

static void read_index(struct remote *r, uint64_t now_ms, node_id from, registry_answer_fn answer,
                       void *question)
{
    struct err e;
    struct asked *q = asked_new(r, from, 0, answer, question);
    if (q == NULL)
        say_not_leader(r, answer, question);
    else if (proposer_barrier(r->options.proposer, now_ms, barred_cb, q, &e) < 0)
        barred_cb(q, &e);
}

static void refuse(const char *text, registry_answer_fn answer, void *question)
{
    struct remote_answer a = {.says = REMOTE_REFUSED};
    (void)text_copy(a.text, sizeof a.text, text);
    say(&a, answer, question);
}

void remote_question(struct remote *r, uint64_t now_ms, node_id from, const uint8_t *payload,
                     size_t size, registry_answer_fn answer, void *question)
{
    struct remote_question m;
    struct err e;
    r->counts.questions++;
    if (remote_question_decode(&m, payload, size, &e) < 0) {
        log_warn("registry", "node %llu: %s", (unsigned long long)from, e.msg);
        refuse(e.msg, answer, question);
        return;
    }
    uint64_t ours = r->options.generation(r->options.user);
    if (m.generation != ours && m.generation != 0 && ours != 0)
        refuse("the cluster was recovered or restored without this node: wipe its data and let it "
               "join anew",
               answer, question);
    else if (r->closed || !remote_elected(r))
        say_not_leader(r, answer, question);
    else if (m.asks == REMOTE_READ)
        read_index(r, now_ms, from, answer, question);
    else
        propose(r, now_ms, from, &m, answer, question);
    remote_question_free(&m);
}
