#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/units.h"
#include "gateway/thread.h"

/* From a request's head to the instance that serves it.
 *
 * What the routes and a slot can answer is answered here, with no message and no lock; the rest is
 * asked of the control thread: starts, keys, queues, instances that are not ready yet. */

enum { ELSEWHERE_MAX = 3 };

static enum dispatch refuse(struct connection *c, enum problem problem, const char *detail)
{
    answer_problem_simple(c, problem, RAN_NO, detail);
    return DISPATCH_ANSWERED;
}

/* --- the facts of the request --- */

/* "GET /w/hello/", cut, without the query, which may hold what is nobody's business. */
static void note_asked_by(struct exchange *x, const struct http_head *head)
{
    size_t n = head->method_text.length;
    char *p = x->asked_by;
    const char *end = x->asked_by + sizeof x->asked_by - 1;
    memcpy(p, head->method_text.data, n);
    p += n;
    *p++ = ' ';
    for (size_t i = 0; i < head->path.length && p < end && head->path.data[i] != '?'; i++)
        *p++ = head->path.data[i];
    *p = '\0';
}

static void note_accept(struct exchange *x, const struct http_head *head)
{
    for (size_t i = 0; i < head->field_count; i++) {
        if (head->fields[i].known != HTTP_NAME_ACCEPT)
            continue;
        struct http_text list = head->fields[i].value;
        struct http_text item;
        while (http_list_next(&list, &item)) {
            const char *parameters = memchr(item.data, ';', item.length);
            if (parameters != NULL)
                item.length = (size_t)(parameters - item.data);
            while (item.length > 0 && item.data[item.length - 1] == ' ')
                item.length--;
            /* The first of the two that is named wins. */
            if (!x->accept_events && http_text_is(item, "application/json"))
                x->accept_json = true;
            if (!x->accept_json && http_text_is(item, "text/event-stream"))
                x->accept_events = true;
        }
    }
}

static void exchange_begin(struct connection *c, const struct http_head *head)
{
    struct exchange *x = &c->x;
    x->method = head->method;
    x->minor = head->minor;
    x->keep_alive = head->keep_alive;
    x->te_trailers = head->te_trailers;
    x->expect_continue = head->expect_continue;
    x->head_only = head->method == HTTP_METHOD_HEAD;
    x->upgrade = head->upgrade && !http_text_is(head->upgrade_to, "h2c");
    x->started_us = clock_monotonic_us();
    x->progress_ms = thread_now_ms(c->thread);
    x->request_until_ms = UINT64_MAX;
    flow_begin(&x->up, head->body, head->content_length, head->body == HTTP_BODY_CHUNKED);
    answer_request_id(c);
    note_asked_by(x, head);
}

void dispatch_late_text(const struct connection *c, char *out, size_t size)
{
    char limit[UNIT_TEXT_SIZE];
    duration_format(c->x.workload.request_ms, limit);
    text_format(out, size, "%s took longer than its timeouts.request of %s", c->x.workload.name,
                limit);
}

/* --- what is asked for --- */

static void answer_gone(struct connection *c, const struct gateway_instance *instance)
{
    char at[48] = "";
    char exit_code[32] = "";
    char detail[480];
    if (instance->ended_at[0] != '\0')
        text_format(at, sizeof at, " at %s", instance->ended_at);
    if (instance->reason == END_EXITED && instance->exit_code >= 0)
        text_format(exit_code, sizeof exit_code, " with code %d", instance->exit_code);
    text_format(detail, sizeof detail, "instance %s of %s ended%s: %s%s%s%s", c->x.id.text,
                c->x.workload.name, at, end_reason_name(instance->reason), exit_code,
                instance->detail[0] != '\0' ? ". " : "", instance->detail);
    answer_problem(c, &(struct problem_report){.problem = PROBLEM_INSTANCE_GONE,
                                               .ran = RAN_NO,
                                               .detail = detail,
                                               .reason = end_reason_name(instance->reason)});
}

static enum dispatch refuse_keyless(struct connection *c)
{
    static const char *const sources[] = {
        [JOIN_KEY_NONE] = "",         [JOIN_KEY_HEADER] = "header", [JOIN_KEY_QUERY] = "query",
        [JOIN_KEY_COOKIE] = "cookie", [JOIN_KEY_PATH] = "path",
    };
    char detail[320];
    text_format(detail, sizeof detail,
                "the request has no key: join.key of %s is %s:%s; Skerry-Key: KEY does as well",
                c->x.workload.name, sources[c->x.workload.key_source], c->x.workload.key_name);
    return refuse(c, PROBLEM_KEY_MISSING, detail);
}

static bool domain_of(struct connection *c, const char *name, size_t length,
                      char workload[WORKLOAD_NAME_LENGTH_MAX + 1])
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    return calls->domain != NULL && t->routes != NULL &&
           calls->domain(calls->user, t->routes, name, length, workload);
}

/* The workload of that name; or, for a host name, the one of that alias. */
static bool workload_known(struct connection *c, struct route *route)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    size_t length = strlen(route->workload);
    if (t->routes == NULL)
        return false;
    if (calls->workload(calls->user, t->routes, route->workload, length, &c->x.workload))
        return true;
    char name[WORKLOAD_NAME_LENGTH_MAX + 1];
    if (!route->by_host || length == 0 || !domain_of(c, route->workload, length, name))
        return false;
    text_copy(route->workload, sizeof route->workload, name);
    return calls->workload(calls->user, t->routes, name, strlen(name), &c->x.workload);
}

static enum dispatch find_workload(struct connection *c, struct route *route,
                                   const struct http_head *head)
{
    struct gateway_thread *t = c->thread;
    size_t length = strlen(route->workload);
    if (!workload_known(c, route)) {
        if (!c->routes_final && workload_name_valid(route->workload, length))
            return DISPATCH_AGAIN;
        if (t->gateway->options.secure != NULL && workload_name_valid(route->workload, length)) {
            /* Another node may have heard of it: control makes sure. It grants nothing for it. */
            c->x.unknown = true;
            c->x.workload = (struct gateway_workload){0};
            text_copy(c->x.workload.name, sizeof c->x.workload.name, route->workload);
            return DISPATCH_READY;
        }
        char detail[160];
        text_format(detail, sizeof detail, "no workload is called \"%s\"", route->workload);
        return refuse(c, PROBLEM_WORKLOAD_UNKNOWN, detail);
    }
    enum dispatch allowed = admit(c, head, route, NULL);
    if (allowed != DISPATCH_READY)
        return allowed;
    const char *why = NULL;
    enum problem problem = route_key(c->x.key, route, head, &c->x.workload, &why);
    if (problem == PROBLEM_KEY_MISSING)
        return refuse_keyless(c);
    return problem == PROBLEM_NONE ? DISPATCH_READY : refuse(c, problem, why);
}

enum dispatch dispatch_judge_forced(struct connection *c, const struct gateway_instance *instance)
{
    if (instance->state == INSTANCE_STATE_ENDED) {
        answer_gone(c, instance);
        return DISPATCH_ANSWERED;
    }
    if (c->x.workload.kind == WORKLOAD_COMMAND)
        return refuse(c, PROBLEM_CONFLICT,
                      "the instance runs one command for one request; it cannot be joined");
    c->x.slot = instance->slot;
    return DISPATCH_READY;
}

static enum dispatch find_forced(struct connection *c, const struct route *route,
                                 const struct http_head *head)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    struct exchange *x = &c->x;
    struct gateway_instance instance;
    memset(&instance, 0, sizeof instance);
    x->forced = true;
    x->id = route->instance;
    x->port = route->port;
    if (t->routes == NULL ||
        !calls->instance(calls->user, t->routes, &x->id, &instance, &x->workload)) {
        /* Control knows whether there ever was one; it is asked with no workload, and what it may
         * grant is not taken, since nobody could be authorized. */
        x->unknown = true;
        if (instance_id_owner(&x->id) != t->gateway->options.id)
            c->routes_patience_ms = ROUTES_ELSEWHERE_MS;
        return c->routes_final ? DISPATCH_READY : DISPATCH_AGAIN;
    }
    enum dispatch allowed = admit(c, head, route, &x->id);
    if (allowed != DISPATCH_READY)
        return allowed;
    if (route->workload[0] != '\0' && strcmp(route->workload, x->workload.name) != 0)
        return refuse(c, PROBLEM_INSTANCE_UNKNOWN, "the instance is one of another workload");
    if (!instance.local)
        x->travel.node = instance.owner;
    return dispatch_judge_forced(c, &instance);
}

static enum dispatch answer_health(struct connection *c, enum route_kind kind)
{
    const struct gateway_calls *calls = &c->thread->gateway->options.calls;
    char why[256] = "";
    enum problem problem =
        kind == ROUTE_READYZ ? calls->ready(calls->user, why, sizeof why) : PROBLEM_NONE;
    if (kind == ROUTE_OPTIONS)
        answer_options(c);
    else if (problem == PROBLEM_NONE)
        answer_text(c, 200, "ok\n");
    else
        refuse(c, problem, why);
    return DISPATCH_ANSWERED;
}

static enum dispatch refuse_nowhere(struct connection *c)
{
    return refuse(
        c, PROBLEM_NOT_FOUND,
        "joins go to the host WORKLOAD.DOMAIN or INSTANCE.DOMAIN, to a domain of a workload "
        "(skerry domain add), or to the paths /w/WORKLOAD/ and /i/INSTANCE/");
}

static void ask_host(struct connection *c, const char *host);

/* A host name may have been given to a workload a moment ago, here or at another node: control makes sure
 * before that is denied. */
static enum dispatch answer_nowhere(struct connection *c, const struct route *route)
{
    if (route->host[0] != '\0' && !c->routes_final)
        return DISPATCH_AGAIN;
    if (route->host[0] == '\0' || c->thread->gateway->options.secure == NULL)
        return refuse_nowhere(c);
    ask_host(c, route->host);
    return DISPATCH_ANSWERED;
}

static enum dispatch find_target(struct connection *c, struct route *route,
                                 const struct http_head *head)
{
    switch (route->kind) {
    case ROUTE_LIVEZ:
    case ROUTE_READYZ:
    case ROUTE_OPTIONS:
        return answer_health(c, route->kind);
    case ROUTE_NOWHERE:
        return answer_nowhere(c, route);
    case ROUTE_INSTANCE_WRONG:
        if (route->port_wrong)
            return refuse(c, PROBLEM_BAD_REQUEST,
                          "before \"--\" in PORT--INSTANCE.DOMAIN stands a port, from 1 to 65535");
        return refuse(c, PROBLEM_INSTANCE_UNKNOWN,
                      "this is not the id of an instance; whole ids are in the Skerry-Instance of "
                      "answers, and in skerry ps --no-trunc");
    case ROUTE_WORKLOAD:
        return find_workload(c, route, head);
    case ROUTE_INSTANCE:
        return find_forced(c, route, head);
    }
    return DISPATCH_ANSWERED;
}

/* The instance that the client would like best, if it is open. */
static void note_preferred(struct connection *c, const struct route *route)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    struct gateway_instance instance;
    struct gateway_workload workload;
    memset(&instance, 0, sizeof instance);
    if (!calls->instance(calls->user, t->routes, &route->prefer, &instance, &workload) ||
        instance.state != INSTANCE_STATE_READY || strcmp(workload.name, c->x.workload.name) != 0)
        return;
    if (instance.local)
        c->x.slot = instance.slot;
    else if (instance.owner_alive)
        c->x.prefer = route->prefer;
}

static bool named(void *user, const char *host, size_t length,
                  char workload[WORKLOAD_NAME_LENGTH_MAX + 1])
{
    return domain_of(user, host, length, workload);
}

enum dispatch dispatch_request(struct connection *c, const char *data, size_t length)
{
    struct gateway_thread *t = c->thread;
    struct http_head *head = &t->head;
    struct http_fault fault;
    c->phase = PHASE_ASK;
    c->deadline_ms = UINT64_MAX;
    if (!http_request_parse(head, data, length, &t->gateway->bounds, &fault))
        return refuse(c, fault.problem, fault.why);
    exchange_begin(c, head);
    enum dispatch next = front_answer(c, head);
    if (next != DISPATCH_READY)
        return next;
    struct route route;
    const struct route_names names = {.domain = t->gateway->domain, .named = named, .user = c};
    route_find(&route, head, &names);
    next = find_target(c, &route, head);
    if (next != DISPATCH_READY)
        return next;
    if (c->x.workload.no_port && !c->x.unknown && c->x.port == 0) {
        char detail[240];
        text_format(detail, sizeof detail,
                    "%s has no port, so it cannot be joined over HTTP; reach it by skerry exec and "
                    "skerry cp, by PORT--INSTANCE.DOMAIN, or give it a port",
                    c->x.workload.name);
        return refuse(c, PROBLEM_CONFLICT, detail);
    }
    if (c->x.workload.tcp && !c->x.unknown && c->x.port == 0) {
        char detail[240];
        text_format(detail, sizeof detail,
                    "%s has protocol: tcp, so it is not joined over HTTP; skerry proxy %s PORT "
                    "brings its port to you",
                    c->x.workload.name, c->x.workload.name);
        return refuse(c, PROBLEM_CONFLICT, detail);
    }
    if (head->body == HTTP_BODY_LENGTH && head->content_length > t->gateway->options.body_bytes_max)
        return refuse(c, PROBLEM_BODY_TOO_LARGE, "the body is larger than allowed here");
    if (c->x.workload.kind == WORKLOAD_COMMAND) {
        note_accept(&c->x, head);
        return DISPATCH_READY;
    }
    if (route.prefer.text[0] != '\0' && !c->x.forced && c->x.key[0] == '\0')
        note_preferred(c, &route);
    if (!forward_request_write(c, head, &route, length)) {
        connection_close(c, true);
        return DISPATCH_ANSWERED;
    }
    return DISPATCH_READY;
}

/* --- admission --- */

void dispatch_leave_slot(struct connection *c)
{
    const struct gateway_calls *calls = &c->thread->gateway->options.calls;
    if (!c->x.entered)
        return;
    c->x.entered = false;
    unsigned what = slot_leave(c->x.slot, thread_now_ms(c->thread));
    if (what != 0)
        calls->slot_left(calls->user, c->x.slot, what);
}

static void joined(struct connection *c, struct slot_ref ref, enum gateway_start start)
{
    struct exchange *x = &c->x;
    uint64_t now_ms = thread_now_ms(c->thread);
    x->slot = ref;
    x->entered = true;
    x->travel.node = 0;
    x->id = ref.slot->id;
    x->ends_wall_ms = atomic_load_explicit(&ref.slot->ends_wall_ms, memory_order_relaxed);
    x->start = start;
    x->joined_us = clock_monotonic_us();
    if (x->workload.request_ms != DURATION_NONE)
        x->request_until_ms = now_ms + x->workload.request_ms;
    c->bridge->begin(c);
}

static bool try_enter(struct connection *c, struct slot_ref ref)
{
    if (slot_enter(ref, thread_now_ms(c->thread), clock_boot_ms()) != SLOT_ENTERED)
        return false;
    joined(c, ref, GATEWAY_START_JOIN);
    return true;
}

bool dispatch_enter_preferred(struct connection *c, const struct instance_id *id)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    struct gateway_instance instance;
    struct gateway_workload workload;
    memset(&instance, 0, sizeof instance);
    return calls->instance(calls->user, t->routes, id, &instance, &workload) && instance.local &&
           instance.state == INSTANCE_STATE_READY && instance.slot.slot != NULL &&
           strcmp(workload.name, c->x.workload.name) == 0 && try_enter(c, instance.slot);
}

/* The less loaded of two random candidates first, then the others in turn. */
bool dispatch_enter_candidate(struct connection *c)
{
    struct gateway_workload *w = &c->x.workload;
    uint32_t n = w->candidate_count;
    if (n == 0)
        return false;
    uint32_t first = 0;
    if (n > 1) {
        uint64_t random = thread_random(c->thread);
        uint32_t other = (uint32_t)((random >> 32) % n);
        first = (uint32_t)(random & UINT32_MAX) % n;
        if (slot_joiners(w->candidates[other]) < slot_joiners(w->candidates[first]))
            first = other;
    }
    for (uint32_t i = 0; i < n; i++)
        if (try_enter(c, w->candidates[(first + i) % n]))
            return true;
    return false;
}

/* A question about the exchange; NULL without memory. */
static struct gateway_ask *ask_new(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    struct exchange *x = &c->x;
    struct gateway_ask *ask = calloc(1, sizeof *ask);
    if (ask == NULL)
        return NULL;
    ask->thread = t;
    ask->request = c;
    ask->number = (++t->ask_number << 8) | (t->index & 0xffu);
    text_copy(ask->workload, sizeof ask->workload, x->workload.name);
    ask->version = x->workload.version;
    if (x->forced)
        text_copy(ask->instance, sizeof ask->instance, x->id.text);
    ask->portless = x->port != 0;
    text_copy(ask->key, sizeof ask->key, x->key);
    ask->kind = x->workload.kind;
    ask->no_stdin = x->up.done;
    text_copy(ask->request_id, sizeof ask->request_id, x->request_id);
    text_copy(ask->asked_by, sizeof ask->asked_by, x->asked_by);
    ask->asked_us = x->started_us;
    ask->forwarded = c->arrival != NULL;
    memcpy(ask->refused, x->travel.refused, sizeof ask->refused);
    ask->descriptors[0] = ask->descriptors[1] = ask->descriptors[2] = -1;
    return ask;
}

/* False: it could not be asked. */
static bool ask_post(struct connection *c, struct gateway_ask *ask)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    if (ask == NULL)
        return false;
    c->x.ask = ask;
    t->asks_out++;
    if (calls->ask(calls->user, ask))
        return true;
    t->asks_out--;
    c->x.ask = NULL;
    free(ask);
    return false;
}

static void ask_or_refuse(struct connection *c, struct gateway_ask *ask)
{
    c->phase = PHASE_ASK;
    /* Control bounds how long it waits; what another node had for an answer is over. */
    bool leaves = c->half_closed && !c->x.raw;
    connection_set_deadline(c, leaves ? thread_now_ms(c->thread) + HALF_CLOSE_MS : UINT64_MAX);
    if (!ask_post(c, ask))
        refuse(c, PROBLEM_LIMIT_REACHED, "the node has too many requests waiting");
}

void dispatch_ask(struct connection *c)
{
    ask_or_refuse(c, ask_new(c));
}

static void ask_host(struct connection *c, const char *host)
{
    struct gateway_ask *ask = ask_new(c);
    if (ask != NULL)
        text_copy(ask->host, sizeof ask->host, host);
    ask_or_refuse(c, ask);
}

void dispatch_ask_redeem(struct connection *c, const struct gateway_pass *pass)
{
    struct gateway_ask *ask = ask_new(c);
    if (ask != NULL) {
        ask->redeem = true;
        ask->pass = *pass;
    }
    ask_or_refuse(c, ask);
}

void dispatch_enter_forced(struct connection *c)
{
    struct slot_ref ref = c->x.slot;
    enum slot_answer answer =
        ref.slot == NULL ? SLOT_STALE : slot_enter_forced(ref, clock_boot_ms());
    switch (answer) {
    case SLOT_ENTERED:
        joined(c, ref, GATEWAY_START_JOIN);
        break;
    case SLOT_FULL:
        refuse(c, PROBLEM_INSTANCE_FULL, "all places in the instance are taken");
        break;
    case SLOT_CLOSED:
        answer_problem(c, &(struct problem_report){.problem = PROBLEM_INSTANCE_GONE,
                                                   .detail = "the instance is draining: it takes "
                                                             "no joiner any more",
                                                   .reason = "draining"});
        break;
    default: /* starting, or changing right now: control knows */
        dispatch_ask(c);
        break;
    }
}

void dispatch_find_instance(struct connection *c)
{
    struct exchange *x = &c->x;
    if (x->workload.kind == WORKLOAD_COMMAND) {
        dispatch_ask(c);
        return;
    }
    if (x->unknown) {
        dispatch_ask(c);
        return;
    }
    if (x->forced && x->travel.node != 0) {
        travel_to(c, x->travel.node, TRAVEL_FORCED);
        return;
    }
    if (x->forced) {
        dispatch_enter_forced(c);
        return;
    }
    if (x->key[0] == '\0' && travel_try_preferred(c))
        return;
    if (x->key[0] == '\0' && ((x->slot.slot != NULL && try_enter(c, x->slot)) ||
                              dispatch_enter_candidate(c) || travel_try_owner(c)))
        return;
    dispatch_ask(c);
}

/* --- why the code went away --- */

void dispatch_autopsy_begin(struct connection *c, enum problem otherwise, const char *detail)
{
    struct exchange *x = &c->x;
    x->autopsy_problem = otherwise;
    text_copy(x->autopsy_detail, sizeof x->autopsy_detail, detail);
    c->phase = PHASE_AUTOPSY;
    connection_stop_reading(c, false);
    struct gateway_ask *ask = ask_new(c);
    if (ask != NULL) {
        ask->autopsy = true;
        text_copy(ask->instance, sizeof ask->instance, x->id.text);
    }
    if (ask_post(c, ask))
        connection_set_deadline(c, thread_now_ms(c->thread) + AUTOPSY_MS);
    else
        answer_problem_simple(c, otherwise, x->sent_any ? RAN_MAYBE : RAN_NO, x->autopsy_detail);
}

void dispatch_autopsy_late(struct connection *c)
{
    struct exchange *x = &c->x;
    if (x->ask != NULL)
        x->ask->request = NULL;
    x->ask = NULL;
    answer_problem_simple(c, x->autopsy_problem, x->sent_any ? RAN_MAYBE : RAN_NO,
                          x->autopsy_detail);
}

/* Nothing of the request has reached the instance that ended: another may serve. */
static bool go_elsewhere(struct connection *c)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    struct exchange *x = &c->x;
    struct gateway_workload workload;
    /* Of one that came from another node, that node decides. */
    if (x->sent_any || x->forced || c->arrival != NULL || x->tries >= ELSEWHERE_MAX)
        return false;
    x->tries++;
    x->id.text[0] = '\0';
    x->slot = (struct slot_ref){0};
    if (calls->workload(calls->user, t->routes, x->workload.name, strlen(x->workload.name),
                        &workload))
        x->workload = workload;
    dispatch_find_instance(c);
    return true;
}

static void autopsied(struct connection *c, const struct gateway_ask *ask)
{
    struct exchange *x = &c->x;
    if (ask->problem == PROBLEM_INSTANCE_UNREACHABLE || ask->problem == PROBLEM_NONE) {
        dispatch_autopsy_late(c); /* it lives: what we saw is all there is to say */
        return;
    }
    if (go_elsewhere(c))
        return;
    const struct gateway_calls *calls = &c->thread->gateway->options.calls;
    struct gateway_instance instance;
    struct gateway_workload workload;
    memset(&instance, 0, sizeof instance);
    bool ended = calls->instance(calls->user, c->thread->routes, &x->id, &instance, &workload) &&
                 instance.state == INSTANCE_STATE_ENDED;
    if (ended && !x->sent_any) {
        answer_gone(c, &instance);
        return;
    }
    answer_problem(
        c, &(struct problem_report){.problem = ask->problem,
                                    .ran = x->sent_any ? RAN_YES : RAN_NO,
                                    .retry_after_s = ask->retry_after_s,
                                    .detail = ask->detail,
                                    .reason = ended ? end_reason_name(instance.reason) : NULL});
}

/* --- answers of the control thread --- */

static void ask_free(struct gateway_thread *t, struct gateway_ask *ask)
{
    explicit_bzero(ask->pass.cookie, sizeof ask->pass.cookie);
    for (size_t i = 0; i < ARRAY_SIZE(ask->descriptors); i++)
        memory_close(&ask->descriptors[i]);
    free(ask);
    t->asks_out--;
    thread_check_closed(t);
}

/* Nobody waits for this grant any more. */
static void grant_return(struct gateway_thread *t, struct gateway_ask *ask)
{
    const struct gateway_calls *calls = &t->gateway->options.calls;
    unsigned what = slot_leave(ask->slot, thread_now_ms(t));
    if (what != 0)
        calls->slot_left(calls->user, ask->slot, what);
}

/* Control says that another node shall serve. */
static void sent_elsewhere(struct connection *c, struct gateway_ask *ask)
{
    struct gateway_thread *t = c->thread;
    node_id node = ask->elsewhere;
    c->x.id = ask->id;
    ask_free(t, ask);
    if (c->x.unknown || c->arrival != NULL || c->x.workload.kind == WORKLOAD_COMMAND)
        answer_problem(c, &(struct problem_report){
                              .problem = PROBLEM_OWNER_UNREACHABLE,
                              .detail = c->x.unknown ? "the instance is known here in a moment"
                                                     : "another node would have to serve it"});
    else
        travel_to(c, node,
                  c->x.forced           ? TRAVEL_FORCED
                  : c->x.key[0] != '\0' ? TRAVEL_KEYED
                                        : TRAVEL_START);
}

static void answered(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    struct gateway_ask *ask = container_of(message, struct gateway_ask, message);
    struct connection *c = ask->request;
    bool command = ask->kind == WORKLOAD_COMMAND;
    if (ask->autopsy) {
        if (c != NULL) {
            c->x.ask = NULL;
            autopsied(c, ask);
        }
        ask_free(t, ask);
        return;
    }
    if (ask->redeem) {
        if (c != NULL) {
            c->x.ask = NULL;
            admit_redeemed(c, ask);
        }
        ask_free(t, ask);
        return;
    }
    if (ask->problem == PROBLEM_NONE && command) {
        command_begin(c, ask); /* the ask lives on until gateway_command_ended */
        return;
    }
    if (c == NULL) {
        if (ask->problem == PROBLEM_NONE && ask->elsewhere == 0 && !ask->look_again)
            grant_return(t, ask);
        ask_free(t, ask);
        return;
    }
    c->x.ask = NULL;
    if (ask->problem == PROBLEM_NOT_FOUND && ask->host[0] != '\0') {
        ask_free(t, ask);
        refuse_nowhere(c);
        return;
    }
    if (ask->problem == PROBLEM_NONE && ask->look_again) {
        ask_free(t, ask);
        refuse(c, PROBLEM_OWNER_UNREACHABLE, "the workload is known here in a moment");
        return;
    }
    if (ask->problem == PROBLEM_NONE && ask->elsewhere != 0) {
        sent_elsewhere(c, ask);
        return;
    }
    c->x.timing = ask->timing;
    if (ask->problem == PROBLEM_NONE && c->x.unknown) {
        grant_return(t, ask);
        ask_free(t, ask);
        refuse(c, PROBLEM_OWNER_UNREACHABLE, "the instance is known here in a moment");
        return;
    }
    if (ask->problem == PROBLEM_NONE) {
        struct slot_ref ref = ask->slot;
        enum gateway_start start = ask->start;
        ask_free(t, ask);
        joined(c, ref, start);
        return;
    }
    if (ask->id.text[0] != '\0')
        c->x.id = ask->id;
    /* The one of the key, or the one that was asked for. */
    node_id node = c->x.id.text[0] != '\0' ? instance_id_owner(&c->x.id) : 0;
    if (ask->ran == RAN_NO && away_wait(c, node, ask->problem)) {
        ask_free(t, ask);
        return;
    }
    answer_problem(c, &(struct problem_report){.problem = ask->problem,
                                               .ran = ask->ran,
                                               .retry_after_s = ask->retry_after_s,
                                               .detail = ask->detail});
    ask_free(t, ask);
}

static void answered_elsewhere(struct inbox_message *message, void *owner)
{
    struct gateway_ask *ask = container_of(message, struct gateway_ask, message);
    ask->answered(ask, owner);
}

void gateway_answer(struct gateway_ask *ask)
{
    struct inbox *inbox = ask->thread != NULL ? ask->thread->inbox : ask->reply_to;
    ask->message.deliver = ask->thread != NULL ? answered : answered_elsewhere;
    /* The thread closes its inbox only when all asks are answered. */
    bool posted = inbox_post_always(inbox, &ask->message);
    assert_always(posted);
}

static void ended(struct inbox_message *message, void *owner)
{
    struct gateway_thread *t = owner;
    struct gateway_ask *ask = container_of(message, struct gateway_ask, ended_message);
    command_ended(ask);
    ask_free(t, ask);
}

void gateway_command_ended(struct gateway_ask *ask)
{
    ask->ended_message.deliver = ended;
    bool posted = inbox_post_always(ask->thread->inbox, &ask->ended_message);
    assert_always(posted);
}

void dispatch_cancel(struct connection *c, enum end_reason reason)
{
    const struct gateway_calls *calls = &c->thread->gateway->options.calls;
    struct gateway_ask *ask = c->x.ask;
    if (ask == NULL)
        return;
    c->x.ask = NULL;
    ask->request = NULL;
    if (!ask->autopsy && !ask->redeem && ask->host[0] == '\0')
        calls->cancel(calls->user, ask, reason);
}
