/* Host names and aliases at which workloads answer. */
#include <string.h>

#include "base/clock.h"
#include "base/domain.h"
#include "node/api/internal.h"

static json_t *domain_json(const struct registry_domain *d)
{
    return json_pack("{s:s, s:s, s:s, s:o}", "domain", d->name, "workload", d->workload, "kind",
                     domain_is_alias(d->name) ? "alias" : "host", "created_at",
                     api_time(d->created_wall_ms));
}

static bool list_domain(void *user, const struct registry_domain *d)
{
    return json_array_append_new(user, domain_json(d)) == 0;
}

void api_domains_list(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    json_t *list = json_array();
    struct registry_root *root = calls->root(calls->user);
    registry_root_domains(root, api_query(r, "workload"), list_domain, list);
    calls->root_return(calls->user, root);
    api_answer_json(r, MHD_HTTP_OK, list);
}

/* --- adding ----------------------------------------------------------------------------------------- */

/* What this node serves by itself is nobody's. */
static bool own_refused(struct api_request *r, const char *name)
{
    const char *own = r->api->options.domain;
    if (own == NULL || domain_is_alias(name) || !domain_within(name, own))
        return false;
    if (strcmp(name, own) == 0)
        api_problem(r, PROBLEM_CONFLICT, "%s is the domain of this node, of no workload", name);
    else
        api_problem(r, PROBLEM_CONFLICT,
                    "%.100s lies below %s, where workloads answer by their names: give an alias, a "
                    "name without a point (skerry domain add WORKLOAD %.*s)",
                    name, own, (int)strcspn(name, "."), name);
    return true;
}

/* False: a problem was answered. */
static bool domain_fill(struct api_request *r, const json_t *body, struct registry_domain *d)
{
    const char *name;
    const char *workload;
    struct err e = {0};
    if (!api_json_text(r, body, "domain", &name) || !api_json_text(r, body, "workload", &workload))
        return false;
    if (name == NULL || workload == NULL)
        api_problem(r, PROBLEM_BAD_REQUEST, "domain and workload: which leads to which?");
    else if (domain_parse(d->name, name, &e) < 0)
        api_problem(r, PROBLEM_BAD_REQUEST, "domain: %s", e.msg);
    else if (!workload_name_valid(workload, strlen(workload)))
        api_problem(r, PROBLEM_BAD_REQUEST, "workload: %.80s is no name of a workload", workload);
    else if (!own_refused(r, d->name))
        (void)text_copy(d->workload, sizeof(d->workload), workload);
    d->created_wall_ms = clock_wall_ms();
    return r->response == NULL;
}

static void domain_settled(struct api_request *r)
{
    api_answer_json(r, MHD_HTTP_CREATED, domain_json(&r->ask->domain));
}

static void domain_put(struct api_ask *a)
{
    if (!api_ask_result_refused(a->request, a))
        api_settle_index(a->request, a->ask.result.index, domain_settled);
}

static void propose(struct api_ask *a, enum registry_command_kind kind,
                    void (*answered)(struct api_ask *a))
{
    a->command.domain = &a->domain;
    api_ask_propose(a, kind, answered);
}

/* Host names are one space that all workloads share: a token of one workload may not take from it. */
void api_domain_add(struct api_request *r)
{
    json_t *body = api_body_json(r, "domain workload");
    struct api_ask *a = body == NULL ? NULL : api_ask_new(r, NODE_ASK_PROPOSE);
    bool filled = a != NULL && domain_fill(r, body, &a->domain);
    json_decref(body);
    if (filled)
        propose(a, REGISTRY_DOMAIN_PUT, domain_put);
}

/* --- removing --------------------------------------------------------------------------------------- */

void api_domain_remove(struct api_request *r)
{
    struct api_ask *a = api_ask_new(r, NODE_ASK_PROPOSE);
    struct err e = {0};
    if (a == NULL)
        return;
    if (domain_parse(a->domain.name, r->parameter, &e) < 0)
        api_problem(r, PROBLEM_NOT_FOUND, "%s", e.msg);
    else
        propose(a, REGISTRY_DOMAIN_REMOVE, api_ask_settled_empty);
}
