/* Tickets: links by which a browser comes to a private workload (node/control/ticket.h). */
#include <sodium.h>
#include <string.h>

#include "base/clock.h"
#include "base/units.h"
#include "node/api/internal.h"
#include "node/control/ticket.h"

/* A duration of the body, between 1 s and `max_ms`; false: a problem was answered. */
static bool duration_of(struct api_request *r, const json_t *body, const char *name,
                        uint64_t max_ms, uint64_t *out_ms)
{
    const char *text;
    struct err e = {0};
    char max[UNIT_TEXT_SIZE];
    if (!api_json_text(r, body, name, &text))
        return false;
    if (text == NULL)
        return true;
    duration_format(max_ms, max);
    if (duration_parse(out_ms, text, false, &e) < 0)
        api_problem(r, PROBLEM_BAD_REQUEST, "%s: %s", name, e.msg);
    else if (*out_ms < 1000 || *out_ms > max_ms)
        api_problem(r, PROBLEM_BAD_REQUEST, "%s: from 1s to %s", name, max);
    return r->response == NULL;
}

/* False: a problem was answered. */
static bool port_of(struct api_request *r, const json_t *body, unsigned *out)
{
    const json_t *port = json_object_get(body, "port");
    if (port == NULL)
        return true;
    json_int_t number = json_is_integer(port) ? json_integer_value(port) : 0;
    if (number < 1 || number > UINT16_MAX)
        api_problem(r, PROBLEM_BAD_REQUEST, "port: a number from 1 to 65535");
    else if (r->route->scope != API_SCOPE_INSTANCE)
        api_problem(r, PROBLEM_BAD_REQUEST, "port: only of an instance");
    *out = (unsigned)number;
    return r->response == NULL;
}

static void answer(struct api_request *r, struct ticket *t, uint64_t ttl_ms, unsigned port)
{
    const struct api_calls *calls = &r->api->options.calls;
    uint8_t secret[REGISTRY_SSH_SEED_BYTES];
    char text[TICKET_TEXT_SIZE], label[WORKLOAD_NAME_LENGTH_MAX + 16], url[TICKET_TEXT_SIZE + 512];
    struct registry_root *root = calls->root(calls->user);
    bool made = registry_root_ssh_seed(root, secret);
    calls->root_return(calls->user, root);
    if (!made) {
        api_problem(r, PROBLEM_NO_QUORUM, "the cluster has no secret yet; try again in a moment");
        return;
    }
    t->expires_wall_ms = clock_wall_ms() + ttl_ms;
    randombytes_buf(t->nonce, sizeof t->nonce);
    ticket_write(t, secret, text);
    if (port != 0)
        (void)text_format(label, sizeof label, "%u--%s", port, t->subject);
    else
        (void)text_copy(label, sizeof label, t->subject);
    if (calls->join_url != NULL && calls->join_url(calls->user, label, url, sizeof url)) {
        size_t used = strlen(url);
        (void)text_format(url + used, sizeof url - used, "?skerry_ticket=%s", text);
    } else {
        url[0] = '\0';
    }
    json_t *json = json_pack(
        "{s:s, s:s, s:o, s:o, s:I}", t->kind == TICKET_OF_INSTANCE ? "instance" : "workload",
        t->subject, "ticket", text, "url", api_text_or_null(url), "expires_at",
        api_time(t->expires_wall_ms), "session_seconds", (json_int_t)t->session_s);
    explicit_bzero(secret, sizeof secret);
    explicit_bzero(text, sizeof text);
    explicit_bzero(url, sizeof url);
    api_answer_json(r, MHD_HTTP_CREATED, json);
}

/* That the token may join was asked already. */
static void make(struct api_request *r, enum ticket_kind kind)
{
    struct ticket t = {.kind = kind};
    uint64_t ttl_ms = TICKET_TTL_MS, session_ms = TICKET_SESSION_MS;
    unsigned port = 0;
    json_t *body = r->body.length == 0 ? json_object() : api_body_json(r, "ttl session port");
    bool good = body != NULL && duration_of(r, body, "ttl", TICKET_TTL_MAX_MS, &ttl_ms) &&
                duration_of(r, body, "session", TICKET_SESSION_MAX_MS, &session_ms) &&
                port_of(r, body, &port);
    json_decref(body);
    if (!good)
        return;
    t.session_s = (uint32_t)(session_ms / 1000);
    (void)text_copy(t.token, sizeof t.token, r->token_id);
    (void)text_copy(t.subject, sizeof t.subject, r->parameter);
    answer(r, &t, ttl_ms, port);
}

void api_workload_ticket(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct registry_root *root = calls->root(calls->user);
    const struct registry_workload *w =
        registry_root_workload(root, r->parameter, strlen(r->parameter));
    bool command = w != NULL && w->spec.kind == WORKLOAD_COMMAND;
    calls->root_return(calls->user, root);
    if (w == NULL)
        api_problem(r, PROBLEM_WORKLOAD_UNKNOWN, "no workload is called \"%.80s\"", r->parameter);
    else if (command)
        api_problem(r, PROBLEM_CONFLICT, "%s runs commands; it has no pages", r->parameter);
    else
        make(r, TICKET_OF_WORKLOAD);
}

void api_instance_ticket(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct registry_root *root = calls->root(calls->user);
    bool live = api_instance_live(r, root) != NULL;
    calls->root_return(calls->user, root);
    if (live)
        make(r, TICKET_OF_INSTANCE);
}
