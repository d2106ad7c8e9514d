/* node/api/authorize.c - whether a request may: where it comes from, and what its token allows. */
#include <arpa/inet.h>
#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/log.h"
#include "node/api/internal.h"

/* A page that resolves its own name to this address (DNS rebinding) sends that name. */
static bool host_allowed(const struct api *api, const char *host)
{
    char name[256];
    unsigned char address[16];
    if (host == NULL || !api_host_name(host, name, sizeof(name)))
        return false;
    if (inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1 ||
        strcasecmp(name, "localhost") == 0)
        return true;
    for (size_t i = 0; api->hosts[i] != NULL; i++)
        if (strcasecmp(name, api->hosts[i]) == 0)
            return true;
    return false;
}

bool api_origin_check(struct api_request *r)
{
    if (r->connection->local)
        return true;
    const char *host = api_header(r, "Host");
    if (!host_allowed(r->api, host)) {
        api_problem(r, PROBLEM_FORBIDDEN,
                    "Host %.100s is not one of this API's; use its IP address or localhost",
                    host == NULL ? "(none)" : host);
        return false;
    }
    const char *origin = api_header(r, "Origin");
    char own[300];
    if (origin == NULL)
        return true;
    (void)text_format(own, sizeof(own), "http://%s", host);
    if (strcasecmp(origin, own) == 0)
        return true;
    api_problem(r, PROBLEM_FORBIDDEN, "requests of web pages elsewhere are refused");
    return false;
}

/* Skerry-Token, else Authorization: Bearer skt_...; NULL: none. */
static const char *token_of(const struct api_request *r)
{
    const char *token = api_header(r, "Skerry-Token");
    if (token != NULL)
        return token;
    const char *authorization = api_header(r, "Authorization");
    if (authorization == NULL || strncasecmp(authorization, "Bearer ", 7) != 0)
        return NULL;
    authorization += 7;
    authorization += strspn(authorization, " ");
    return authorization;
}

static void log_refused(const struct api_request *r, const char *token, enum problem problem)
{
    /* The part before the secret is public: 16 characters behind "skt_". */
    char id[17] = "";
    if (token != NULL && strncmp(token, "skt_", 4) == 0 && strlen(token) > 21)
        for (size_t i = 0; i < 16 && isalnum((unsigned char)token[4 + i]); i++)
            id[i] = token[4 + i];
    log_warn("api", "%s: %s %.100s from %s, request %s, token %s", problem_word(problem)->code,
             r->method, r->path, r->connection->peer, r->id,
             token == NULL   ? "none"
             : id[0] != '\0' ? id
                             : "malformed");
}

/* The most that the token allows on what the request is about. `workload`: what its body names. */
static enum problem role_of(struct api_request *r, const struct registry_root *root,
                            const char *token, const char *workload)
{
    const struct api_calls *calls = &r->api->options.calls;
    const char *instance = NULL;
    if (r->route->scope == API_SCOPE_WORKLOAD)
        workload = r->parameter;
    if (r->route->scope == API_SCOPE_QUERY)
        workload = api_query(r, "workload");
    if (r->route->scope == API_SCOPE_INSTANCE) {
        const struct registry_instance *i =
            registry_root_instance(root, r->parameter, strlen(r->parameter));
        instance = r->parameter;
        workload = i == NULL ? NULL : i->workload;
    }
    enum problem problem = PROBLEM_UNAUTHORIZED;
    for (int role = TOKEN_ROLE_ADMIN; role <= TOKEN_ROLE_INVOKE; role++) {
        problem = calls->authorize(calls->user, root, token, token == NULL ? 0 : strlen(token),
                                   (enum token_role)role, workload, instance, clock_wall_ms());
        if (problem == PROBLEM_NONE) {
            /* It is one: "skt_", its id, "_" and its secret. */
            (void)text_format(r->token_id, sizeof(r->token_id), "%.16s", token + 4);
            r->role = (enum token_role)role;
            return PROBLEM_NONE;
        }
        if (problem == PROBLEM_UNAUTHORIZED)
            break;
    }
    return problem;
}

/* `later`: it is known, and what it may is asked again with api_may. */
static bool allowed(struct api_request *r, enum token_role need, const char *workload, bool later)
{
    const struct api_calls *calls = &r->api->options.calls;
    const char *token = token_of(r);
    r->role = TOKEN_ROLE_ADMIN;
    if (token == NULL && r->connection->trusted)
        return true;
    struct registry_root *root = calls->root(calls->user);
    enum problem problem = role_of(r, root, token, workload);
    calls->root_return(calls->user, root);
    if (problem == PROBLEM_NONE && r->role > need)
        problem = PROBLEM_FORBIDDEN;
    if (problem == PROBLEM_NONE || (later && problem == PROBLEM_FORBIDDEN))
        return true;
    log_refused(r, token, problem);
    api_problem(r, problem, "%s",
                problem == PROBLEM_FORBIDDEN ? "the token's role or scope does not allow this"
                : token == NULL ? "no token: send Skerry-Token, or Authorization: Bearer"
                                : "the token is not valid, or no longer");
    return false;
}

bool api_authorize(struct api_request *r)
{
    if (r->route->open)
        return true;
    enum api_scope scope = r->route->scope;
    return allowed(r, r->route->need, NULL, scope == API_SCOPE_BODY || scope == API_SCOPE_ANY);
}

bool api_may(struct api_request *r, enum token_role need, const char *workload)
{
    return allowed(r, need, workload, false);
}
