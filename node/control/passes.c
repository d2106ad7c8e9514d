/* Browsers that come with a ticket or its cookie: whether these are good, for gateway threads, and the one
 * use of a ticket, which the registry decides. */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/control/control.h"
#include "node/control/ticket.h"

/* --- on gateway threads ------------------------------------------------------------------------------ */

/* How long the cookie of a ticket is good: no longer than its token. */
static uint64_t session_ms(const struct registry_root *root, const struct ticket *t,
                           uint64_t wall_ms)
{
    const struct registry_token *token =
        t->token[0] == '\0' ? NULL : registry_root_token(root, t->token, strlen(t->token));
    uint64_t ms = (uint64_t)t->session_s * 1000;
    if (token == NULL || token->expires_wall_ms == 0 || token->expires_wall_ms - wall_ms > ms)
        return ms;
    return token->expires_wall_ms - wall_ms;
}

static void fill_pass(struct gateway_pass *out, const struct registry_root *root,
                      const struct ticket *t, const uint8_t *secret, const char *host,
                      uint64_t wall_ms)
{
    struct ticket cookie = *t;
    uint64_t ms = session_ms(root, t, wall_ms);
    memcpy(out->nonce, t->nonce, sizeof out->nonce);
    out->expires_wall_ms = t->expires_wall_ms;
    out->session_s = ms / 1000;
    cookie.kind =
        t->kind == TICKET_OF_WORKLOAD ? TICKET_COOKIE_OF_WORKLOAD : TICKET_COOKIE_OF_INSTANCE;
    cookie.expires_wall_ms = wall_ms + ms;
    randombytes_buf(cookie.nonce, sizeof cookie.nonce);
    ticket_host(host, cookie.host);
    ticket_write(&cookie, secret, out->cookie);
}

static bool fits(const struct ticket *t, const struct gateway_pass_want *want)
{
    uint8_t host[TICKET_HOST_BYTES];
    bool cookie = t->kind == TICKET_COOKIE_OF_WORKLOAD || t->kind == TICKET_COOKIE_OF_INSTANCE;
    if (cookie != want->cookie)
        return false;
    ticket_host(want->host, host);
    return !cookie || memcmp(host, t->host, sizeof host) == 0;
}

enum problem routes_pass(void *user, const void *routes, const struct gateway_pass_want *want,
                         struct gateway_pass *out)
{
    const struct routes *r = routes;
    uint8_t secret[REGISTRY_SSH_SEED_BYTES];
    struct ticket t;
    uint64_t wall_ms = clock_wall_ms();
    (void)user;
    if (!registry_root_ssh_seed(r->root, secret))
        return PROBLEM_UNAUTHORIZED;
    bool good = ticket_read(&t, secret, want->text, want->length) && fits(&t, want);
    enum problem problem =
        good ? ticket_judge(r->root, &t, want->workload->name,
                            want->instance == NULL ? NULL : want->instance->text, wall_ms)
             : PROBLEM_UNAUTHORIZED;
    if (problem == PROBLEM_NONE && out != NULL)
        fill_pass(out, r->root, &t, secret, want->host, wall_ms);
    explicit_bzero(secret, sizeof secret);
    return problem;
}

/* --- on the control thread ---------------------------------------------------------------------------- */

/* Should it have been used up all the same, the browser hears so when it comes again. */
static void answer_unrecorded(struct gateway_ask *ask, const struct err *error)
{
    ask->problem = PROBLEM_NO_QUORUM;
    ask->retry_after_s = 2;
    text_format(ask->detail, sizeof ask->detail, "the use of the ticket cannot be recorded: %s",
                error->msg);
    gateway_answer(ask);
}

static void used_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct gateway_ask *ask = user;
    if (error != NULL) {
        answer_unrecorded(ask, error);
        return;
    }
    ask->problem = result->problem;
    text_copy(ask->detail, sizeof ask->detail, result->detail);
    gateway_answer(ask);
}

void passes_redeem(struct node *n, struct gateway_ask *ask)
{
    struct registry_ticket ticket = {.expires_wall_ms = ask->pass.expires_wall_ms};
    struct err e = {0};
    _Static_assert(sizeof ticket.nonce == sizeof ask->pass.nonce, "a nonce fits");
    memcpy(ticket.nonce, ask->pass.nonce, sizeof ticket.nonce);
    const struct registry_command command = {
        .kind = REGISTRY_TICKET_USE, .wall_ms = clock_wall_ms(), .ticket = &ticket};
    if (registry_propose(n->registry, &command, used_cb, ask, &e) != 0)
        answer_unrecorded(ask, &e);
}
