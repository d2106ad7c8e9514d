#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "gateway/remote.h"

/* A join of an instance on another node: which node, and what follows if it refuses or is gone.
 *
 *     joinable elsewhere:  up to OWNERS_TRIED_MAX owners, only if there is room; then control is asked
 *     preferred elsewhere: its owner, only that instance and only if there is room; then as without it
 *     control says where:  that node; if it refuses, control is asked again and told so
 *     forced:              the owner, which its id names; nobody else has it
 *
 * Nothing goes to a second node once the first may have passed a byte on, unless the method is
 * idempotent and nothing of an answer came. What was sent of the request stays here until the owner
 * has admitted it (exchange.head, .out), so it can be sent again. */

enum {
    OWNERS_TRIED_MAX = 3,
    /* An owner that only looks for room answers at once, but for the time its code takes to accept. */
    TRY_ANSWER_MS = CONNECT_TIMEOUT_MS + 1000,
    /* Any other answer takes as long as a start may; meanwhile gossip tells whether the node lives. */
    ALIVE_CHECK_MS = 1000,
};

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void travel_set_deadline(struct connection *c)
{
    const struct travel *travel = &c->x.travel;
    uint64_t at = c->phase == PHASE_STREAM ? travel->until_ms : travel->alive_at_ms;
    if (c->phase == PHASE_GRANT && travel->mode == TRAVEL_TRY)
        at = earlier(at, travel->until_ms);
    if (c->half_closed_ms != 0)
        at = earlier(at, c->half_closed_ms + HALF_CLOSE_MS);
    connection_set_deadline(c, at);
}

void travel_to(struct connection *c, node_id node, enum travel_mode mode)
{
    uint64_t now_ms = thread_now_ms(c->thread);
    struct travel *travel = &c->x.travel;
    travel->node = node;
    travel->mode = mode;
    travel->sent = false;
    travel->until_ms = now_ms + STREAM_CONNECT_MS;
    travel->alive_at_ms = UINT64_MAX;
    c->phase = PHASE_STREAM;
    if (!remote_acquire(c, node, travel->fresh))
        travel_failed(c, true, false, "there is no way from here to the node of the instance");
    else if (c->phase == PHASE_STREAM)
        travel_set_deadline(c);
}

void travel_sent(struct connection *c)
{
    uint64_t now_ms = thread_now_ms(c->thread);
    c->phase = PHASE_GRANT;
    c->x.travel.sent = true;
    c->x.travel.until_ms = now_ms + TRY_ANSWER_MS;
    c->x.travel.alive_at_ms = now_ms + ALIVE_CHECK_MS;
    travel_set_deadline(c);
}

/* --- which ------------------------------------------------------------------------------------------ */

static bool eligible(const struct connection *c, uint32_t i)
{
    return (c->x.travel.tried & 1u << i) == 0 &&
           !remote_failed_lately(c->thread, c->x.workload.owners[i].node);
}

/* The n-th that is eligible. */
static uint32_t eligible_at(const struct connection *c, uint32_t n)
{
    uint32_t i = 0;
    while (!eligible(c, i) || n-- > 0)
        i++;
    return i;
}

bool travel_try_owner(struct connection *c)
{
    struct exchange *x = &c->x;
    const struct gateway_workload *w = &x->workload;
    uint32_t count = 0;
    if (w->owner_count == 0 || x->travel.tries >= OWNERS_TRIED_MAX ||
        c->thread->gateway->options.secure == NULL)
        return false;
    for (uint32_t i = 0; i < w->owner_count; i++)
        count += eligible(c, i);
    if (count == 0)
        return false;
    uint64_t random = thread_random(c->thread);
    uint32_t first = eligible_at(c, (uint32_t)(random & UINT32_MAX) % count);
    uint32_t other = eligible_at(c, (uint32_t)(random >> 32) % count);
    if (w->owners[other].load < w->owners[first].load)
        first = other;
    x->travel.tried |= 1u << first;
    x->travel.tries++;
    x->travel.fresh = false;
    travel_to(c, w->owners[first].node, TRAVEL_TRY);
    return true;
}

bool travel_try_preferred(struct connection *c)
{
    struct exchange *x = &c->x;
    node_id node = x->prefer.text[0] == '\0' ? 0 : instance_id_owner(&x->prefer);
    if (node == 0 || c->thread->gateway->options.secure == NULL ||
        remote_failed_lately(c->thread, node)) {
        x->prefer.text[0] = '\0';
        return false;
    }
    x->travel.fresh = false;
    travel_to(c, node, TRAVEL_TRY);
    return true;
}

/* Whether control may know a better node. What concerns the workload itself is the same everywhere. */
static bool asks_again(const struct travel *travel, enum problem problem)
{
    if (travel->mode != TRAVEL_START && travel->mode != TRAVEL_KEYED)
        return false;
    if (travel->refused_count >= ARRAY_SIZE(travel->refused))
        return false;
    switch (problem) {
    case PROBLEM_WORKLOAD_UNKNOWN:
    case PROBLEM_INSTANCE_UNKNOWN:
    case PROBLEM_INSTANCE_GONE:
    case PROBLEM_INSTANCE_EXITED:
    case PROBLEM_INSTANCE_OOM:
    case PROBLEM_NODE_FULL:
    case PROBLEM_QUEUE_FULL:
    case PROBLEM_OWNER_UNREACHABLE:
    case PROBLEM_NOT_ENFORCED:
    case PROBLEM_DRAINING:
    case PROBLEM_LIMIT_REACHED:
    case PROBLEM_NO_QUORUM: /* it may be cut off from what we reach */
    case PROBLEM_CONFLICT:  /* another got the key meanwhile */
        return true;
    default:
        return false;
    }
}

/* The node does not serve it; `again`: another may. */
static void go_on(struct connection *c, const struct problem_report *report, bool again)
{
    struct travel *travel = &c->x.travel;
    node_id node = travel->node;
    c->x.head_sent = c->x.out_sent = 0;
    if (again && c->x.prefer.text[0] != '\0') {
        /* As if it had named none. */
        c->x.prefer.text[0] = c->x.id.text[0] = '\0';
        c->x.node_name = NULL;
        travel->node = 0;
        dispatch_find_instance(c);
        return;
    }
    if (again && travel->mode == TRAVEL_TRY && travel_try_owner(c))
        return;
    bool asks = again && (travel->mode == TRAVEL_TRY || asks_again(travel, report->problem));
    if (!asks && again && away_wait(c, node, report->problem))
        return;
    if (!asks) {
        c->phase = PHASE_FLUSH;
        answer_problem(c, report);
        return;
    }
    if (travel->mode != TRAVEL_TRY)
        travel->refused[travel->refused_count++] = node;
    travel->node = 0;
    travel->fresh = false;
    c->x.node_name = NULL;
    if (!c->x.forced)
        c->x.id.text[0] = '\0';
    dispatch_ask(c);
}

/* --- what came of it -------------------------------------------------------------------------------- */

void travel_granted(struct connection *c, const struct travel_answer *answer)
{
    struct exchange *x = &c->x;
    uint64_t now_us = clock_monotonic_us();
    uint64_t now_ms = thread_now_ms(c->thread);
    away_over(c->thread, x->travel.node);
    x->id = answer->instance;
    x->ends_wall_ms = answer->ends_wall_ms;
    x->start = answer->start;
    x->timing = answer->timing;
    x->joined_us = answer->code_us < now_us ? now_us - answer->code_us : 1;
    if (x->workload.request_ms != DURATION_NONE)
        x->request_until_ms = now_ms + x->workload.request_ms;
    x->sent_any = true;
    x->answered = x->raw;
    x->progress_ms = now_ms;
    c->phase = PHASE_JOIN;
    if (x->out_sent > 0)
        queue_consume(&c->thread->blocks, &x->out, x->out_sent);
    x->out_sent = 0;
    join_upstream_writable(c); /* the rest of the request */
}

void travel_refused(struct connection *c, const struct travel_answer *answer)
{
    struct exchange *x = &c->x;
    if (answer->instance.text[0] != '\0')
        x->id = answer->instance;
    if (!away_is(answer->problem))
        away_over(c->thread, x->travel.node);
    x->sent_any = x->sent_any || answer->ran != RAN_NO;
    x->timing = (struct gateway_timing){0};
    go_on(c,
          &(struct problem_report){.problem = answer->problem,
                                   .ran = x->sent_any && answer->ran == RAN_NO ? RAN_MAYBE
                                                                               : answer->ran,
                                   .retry_after_s = answer->retry_after_s,
                                   .detail = answer->detail,
                                   .reason = answer->reason},
          answer->ran == RAN_NO);
}

void travel_failed(struct connection *c, bool surely_not_run, bool stale, const char *detail)
{
    struct exchange *x = &c->x;
    if (x->travel.sent && !surely_not_run)
        x->sent_any = true;
    bool again = !x->travel.sent || surely_not_run || http_method_idempotent(x->method);
    if (again && stale && !x->travel.fresh) {
        x->travel.fresh = true;
        x->head_sent = x->out_sent = 0;
        travel_to(c, x->travel.node, x->travel.mode);
        return;
    }
    go_on(c,
          &(struct problem_report){.problem = PROBLEM_OWNER_UNREACHABLE,
                                   .ran = x->sent_any ? RAN_MAYBE : RAN_NO,
                                   .detail = detail},
          again);
}

/* --- ends of patience ------------------------------------------------------------------------------- */

void travel_abandon(struct connection *c)
{
    remote_stop_waiting(c);
    if (c->x.upstream != NULL)
        upstream_release(c->x.upstream, UPSTREAM_BROKEN_OFF);
}

void travel_client_closed_half(struct connection *c)
{
    if (!c->x.up.done && !c->x.raw) /* the rest of the body will never come */
        connection_close(c, true);
    else
        travel_set_deadline(c);
}

static bool node_lives(struct connection *c)
{
    const struct gateway_calls *calls = &c->thread->gateway->options.calls;
    struct gateway_peer peer = {0};
    return calls->peer(calls->user, c->x.travel.node, &peer) && peer.alive;
}

void travel_deadline(struct connection *c)
{
    struct travel *travel = &c->x.travel;
    uint64_t now_ms = thread_now_ms(c->thread);
    const char *why = NULL;
    if (c->half_closed_ms != 0 && now_ms >= c->half_closed_ms + HALF_CLOSE_MS) {
        connection_close(c, true);
        return;
    }
    if (c->phase == PHASE_STREAM && now_ms >= travel->until_ms)
        why = "the node of the instance did not answer within 1 s";
    else if (travel->mode == TRAVEL_TRY && now_ms >= travel->until_ms)
        why = "the node of the instance took the request and did not answer";
    else if (c->phase == PHASE_GRANT && now_ms >= travel->alive_at_ms && !node_lives(c))
        why = "the node of the instance was lost while it had the request";
    if (why != NULL) {
        travel_abandon(c);
        travel_failed(c, false, false, why);
        return;
    }
    if (c->phase == PHASE_GRANT && now_ms >= travel->alive_at_ms)
        travel->alive_at_ms = now_ms + ALIVE_CHECK_MS;
    travel_set_deadline(c);
}
