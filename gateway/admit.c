#include <ctype.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "gateway/pass.h"
#include "gateway/thread.h"

/* Whether a request may join: its token, or what a browser has in its place (gateway/pass.h).
 *
 *     public workload ------------------------------------------> ready
 *     token, or cookie of this host and page ---------------------> ready, or refused
 *     ticket in the query --(its one use, control)--> 303, cookie    or refused */

static enum dispatch refuse(struct connection *c, enum problem problem, const char *detail)
{
    answer_problem_simple(c, problem, RAN_NO, detail);
    return DISPATCH_ANSWERED;
}

/* Who guesses leaves a line. */
static void log_refused(struct connection *c, enum problem problem, const char *what)
{
    log_warn("gateway", "%s: %s from %s, request %s, %s", problem_word(problem)->code,
             c->x.asked_by, forward_peer_text(c), c->x.request_id, what);
}

/* Of a token only the part before the secret is written: 16 characters behind "skt_". */
static void log_token_refused(struct connection *c, enum problem problem, struct http_text token)
{
    char what[32] = "token none";
    size_t length = 0;
    if (token.length > 21 && memcmp(token.data, "skt_", 4) == 0)
        while (length < 16 && isalnum((unsigned char)token.data[4 + length]))
            length++;
    if (length > 0)
        text_format(what, sizeof what, "token %.*s", (int)length, token.data + 4);
    else if (token.length > 0)
        text_copy(what, sizeof what, "token malformed");
    log_refused(c, problem, what);
}

/* The client sees HTTPS. */
static bool is_secure(const struct connection *c, const struct http_head *head)
{
    const struct http_field *proto = c->thread->gateway->options.trust_forwarded
                                         ? http_field_find(head, HTTP_NAME_X_FORWARDED_PROTO)
                                         : NULL;
    return c->tls != NULL || (proto != NULL && http_text_is(proto->value, "https"));
}

static enum problem pass_check(struct connection *c, const struct route *route,
                               const struct instance_id *instance, bool cookie,
                               struct http_text text, struct gateway_pass *out)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    const struct gateway_pass_want want = {.cookie = cookie,
                                           .text = text.data,
                                           .length = text.length,
                                           .host = route->host,
                                           .workload = &c->x.workload,
                                           .instance = instance};
    if (calls->pass == NULL)
        return PROBLEM_UNAUTHORIZED;
    return calls->pass(calls->user, t->routes, &want, out);
}

/* PROBLEM_NONE if one of the cookies is good; UNAUTHORIZED: there is none, or none is. */
static enum problem cookie_check(struct connection *c, const struct http_head *head,
                                 const struct route *route, const struct instance_id *instance)
{
    struct http_text cookies[PASS_COOKIES_MAX];
    size_t found = route->by_host ? pass_cookies(head, is_secure(c, head), cookies) : 0;
    enum problem problem = PROBLEM_UNAUTHORIZED;
    for (size_t i = 0; i < found && problem != PROBLEM_NONE; i++) {
        enum problem checked = pass_check(c, route, instance, true, cookies[i], NULL);
        if (checked != PROBLEM_UNAUTHORIZED)
            problem = checked;
    }
    return problem;
}

/* --- tickets ---------------------------------------------------------------------------------------- */

/* Where the browser goes from here waits in x->head. */
static bool keep_location(struct connection *c, const struct route *route)
{
    struct queue *head = &c->x.head;
    char *begin = queue_reserve(&c->thread->blocks, head, route->path.length + 3);
    if (begin != NULL)
        queue_commit(head, pass_location_write(route->path, begin));
    return begin != NULL;
}

static enum dispatch refuse_ticket(struct connection *c, enum problem problem)
{
    char detail[320];
    const char *name = c->x.forced ? c->x.id.text : c->x.workload.name;
    if (problem == PROBLEM_FORBIDDEN)
        text_format(detail, sizeof detail, "the ticket is for something else than %s", name);
    else
        text_format(detail, sizeof detail,
                    "the ticket was used before, is over, or is none; skerry ticket %s makes "
                    "another",
                    name);
    log_refused(c, problem, "its ticket");
    return refuse(c, problem, detail);
}

static enum dispatch redeem(struct connection *c, const struct http_head *head,
                            const struct route *route, const struct instance_id *instance,
                            struct http_text ticket)
{
    struct gateway_pass pass = {0};
    if (!route->by_host)
        return refuse(
            c, PROBLEM_BAD_REQUEST,
            "a ticket is good on a host name of the workload's own, WORKLOAD.DOMAIN: below "
            "/w/ and /i/ pages of all workloads share one origin");
    if ((head->method != HTTP_METHOD_GET && head->method != HTTP_METHOD_HEAD) || head->upgrade ||
        head->body != HTTP_BODY_NONE)
        return refuse(c, PROBLEM_BAD_REQUEST,
                      "a ticket is exchanged for a cookie by the GET of a page; this request shall "
                      "bring the cookie");
    if (!keep_location(c, route)) {
        connection_close(c, true);
        return DISPATCH_ANSWERED;
    }
    c->x.has_cookie = cookie_check(c, head, route, instance) == PROBLEM_NONE;
    c->x.secure = is_secure(c, head);
    enum problem problem = pass_check(c, route, instance, false, ticket, &pass);
    if (problem == PROBLEM_NONE)
        dispatch_ask_redeem(c, &pass);
    else if (c->x.has_cookie) /* the link once more */
        answer_admitted(c, NULL, 0, c->x.secure);
    else
        refuse_ticket(c, problem);
    explicit_bzero(&pass, sizeof pass);
    return DISPATCH_ANSWERED;
}

void admit_redeemed(struct connection *c, const struct gateway_ask *ask)
{
    if (ask->problem == PROBLEM_NONE)
        answer_admitted(c, ask->pass.cookie, ask->pass.session_s, c->x.secure);
    else if (ask->problem == PROBLEM_CONFLICT && c->x.has_cookie)
        answer_admitted(c, NULL, 0, c->x.secure);
    else if (ask->problem == PROBLEM_CONFLICT)
        refuse_ticket(c, PROBLEM_UNAUTHORIZED);
    else
        answer_problem(c, &(struct problem_report){.problem = ask->problem,
                                                   .ran = RAN_NO,
                                                   .retry_after_s = ask->retry_after_s,
                                                   .detail = ask->detail});
}

/* --- tokens and cookies ----------------------------------------------------------------------------- */

static const char *refused_text(enum problem problem, struct http_text token)
{
    if (problem == PROBLEM_FORBIDDEN)
        return token.length > 0 ? "the token is valid, but not for this workload"
                                : "the cookie of this host is for something else; another ticket "
                                  "(skerry ticket) gives the right one";
    if (token.length > 0)
        return "the token is unknown, expired or revoked";
    return "this workload is private: send Skerry-Token: skt_..., or Authorization: Bearer "
           "skt_...; browsers come with a ticket (skerry ticket)";
}

/* By a token, or without one by a cookie. */
static enum problem bearer_check(struct connection *c, const struct http_head *head,
                                 const struct route *route, const struct instance_id *instance,
                                 struct http_text token)
{
    struct gateway_thread *t = c->thread;
    const struct gateway_calls *calls = &t->gateway->options.calls;
    if (token.length == 0)
        return cookie_check(c, head, route, instance);
    return calls->authorize(calls->user, t->routes, &c->x.workload, instance, token.data,
                            token.length);
}

enum dispatch admit(struct connection *c, const struct http_head *head, const struct route *route,
                    const struct instance_id *instance)
{
    struct http_text ticket = {0};
    bool public_access = c->x.workload.public_access;
    enum pass_ticket tickets = pass_ticket_find(route->path, &ticket);
    if (tickets == PASS_TICKET_SEVERAL)
        return refuse(c, PROBLEM_BAD_REQUEST, "one skerry_ticket is taken, and not an empty one");
    if (tickets == PASS_TICKET_ONE)
        return redeem(c, head, route, instance, ticket);
    if (public_access && route->port == 0)
        return DISPATCH_READY;
    struct http_text token = route_token(head);
    enum problem problem = bearer_check(c, head, route, instance, token);
    bool own = problem != PROBLEM_NONE || token.length > 0 ||
               pass_origin_own(head, c->thread->gateway->options.trust_forwarded);
    c->x.port_any = problem == PROBLEM_NONE && own;
    if (public_access || c->x.port_any)
        return DISPATCH_READY;
    if (!own)
        return refuse(
            c, PROBLEM_FORBIDDEN,
            "the cookie of this host is for its own pages; another page's request needs a "
            "token of its own");
    log_token_refused(c, problem, token);
    return refuse(c, problem, refused_text(problem, token));
}
