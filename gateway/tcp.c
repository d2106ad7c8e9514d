#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "gateway/thread.h"

/* Raw TCP: a connection to the listener of a workload is one join, and every byte of it the code's.
 *
 *     accepted -> tcp_begin -> (dispatch.c, as a request) -> JOIN: a tunnel (join.c), here or on another node
 *                      `-> refused: closed by a reset, counted and told in the log
 *
 * There are no words for a refusal, no head to wait for, and nothing that is sent twice: the code may have
 * been connected to, and spoken first. Who may is decided by where the listener is opened: such workloads
 * are public. Either side may end before the other; what breaks off is a reset on the other side. */

enum { REFUSED };
const char *const tcp_refusal_names[] = {[REFUSED] = "refused"};

static void refuse(struct connection *c, const struct problem_report *report)
{
    struct gateway_thread *t = c->thread;
    const struct problem_word *word = problem_word(report->problem);
    count(&t->counters.problems[report->problem], 1);
    count(c->x.answered ? &t->counters.tcp_broken : &t->counters.tcp_refused, 1);
    refusals_note(&t->tcp_refusals, REFUSED, "%s from %s, %s: %s: %s", c->x.asked_by,
                  forward_peer_text(c), c->x.request_id, word->code,
                  report->detail == NULL ? word->title : report->detail);
    connection_close(c, true);
}

const struct bridge tcp_bridge = {
    .begin = join_begin,
    .connected = join_connected,
    .unreachable = join_unreachable,
    .readable = join_upstream_readable,
    .writable = join_upstream_writable,
    .set_deadline = join_set_deadline,
    .problem = refuse,
};

void tcp_begin(struct connection *c, const char *workload)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    struct exchange *x = &c->x;
    c->bridge = &tcp_bridge;
    c->phase = PHASE_ASK;
    x->raw = x->tunnel = true;
    x->method = HTTP_METHOD_OTHER;
    x->started_us = clock_monotonic_us();
    x->progress_ms = thread_now_ms(t);
    x->request_until_ms = UINT64_MAX;
    flow_begin(&x->up, HTTP_BODY_UNTIL_CLOSE, 0, false);
    flow_begin(&x->down, HTTP_BODY_UNTIL_CLOSE, 0, false);
    answer_request_id(c);
    text_format(x->asked_by, sizeof x->asked_by, "TCP %s", workload);
    count(&t->counters.tcp_accepted, 1);
    if (t->routes == NULL ||
        !calls->workload(calls->user, t->routes, workload, strlen(workload), &x->workload))
        answer_problem_simple(c, PROBLEM_WORKLOAD_UNKNOWN, RAN_NO, "it was removed");
    else if (!x->workload.tcp || !x->workload.public_access)
        answer_problem_simple(c, PROBLEM_FORBIDDEN, RAN_NO,
                              "the workload is not of protocol: tcp and access: public any more");
    else
        dispatch_find_instance(c);
}
